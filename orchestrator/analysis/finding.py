"""A finding: one question of a study with its answer. Every table, page and sentence prints findings and computes nothing.

A question is a file of this room. It yields findings (`ask`) and puts one into words (`words`). `findings.py` asks all
questions once and corrects their p-values together (`corrected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from orchestrator.analysis.results import Results
from orchestrator.formatting import number
from orchestrator.stats import multiplicity
from orchestrator.stats.boundaries import Bracket

CONFIDENCE = 0.95
"""Confidence of an interval that no correction has changed."""

FALSE_SHARE = 0.05
"""Expected share of false findings among the significant ones."""

Ends = tuple[float | None, float | None]
"""Low and high end of an interval; None is open."""

Significance = Literal["significant", "not significant", "untested", "primary", ""]
"""After correction. `untested`: too few replicates, or undefined. `primary`: declared before the run, not corrected.
Empty: outside the count, such as an expected value."""


def no_interval(confidence: float) -> Ends:
    """The interval of a finding that has none."""
    return None, None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One question, its place, and its answer."""

    name: str
    """Unique in a study, and the same before and after correction."""
    question: str
    """Its kind: `K_A`, `K_M`, `drift of K_A`, `compute to skill`, `crossover`, ..."""
    words: Callable[[Finding], str]
    """Puts the finding into one sentence without its full stop."""
    condition: str
    skill: str = ""
    """Empty for memory."""
    n_tasks: int | None = None
    compute_flops: float | None = None
    against: str = ""
    """The condition, or the state of a specialist, on the other side of a comparison."""
    verdict: str
    n: int
    """Replicates, or pairs of replicates, behind it."""
    p: float | None = None
    """Raw p-value; None if nothing was tested."""
    estimate: float | None = None
    interval: Callable[[float], Ends] = no_interval
    """Confidence -> ends."""
    reach: tuple[float, float] | None = None
    """The first and the last value that was tried. An end outside counts as open: nothing was measured there."""
    brackets: tuple[Bracket, ...] = ()
    """For each replicate, the two values between which it crosses."""
    replicates: tuple[int, ...] = ()
    """The replicates that the brackets belong to."""
    counted: bool = True
    """Does it take part in the correction?"""
    adjusted_p: float | None = None
    significance: Significance = ""
    confidence: float = CONFIDENCE
    """Confidence of `low` and `high`."""

    @cached_property
    def ends(self) -> Ends:
        """The interval at its confidence, as far as values were tried; none from a single replicate."""
        low, high = self.interval(self.confidence)
        first, last = self.reach or (float("-inf"), float("inf"))
        inside = [end if end is not None and first <= end <= last else None for end in (low, high)]
        return inside[0], inside[1]

    @property
    def low(self) -> float | None:
        """Lower end; None is open."""
        return self.ends[0]

    @property
    def high(self) -> float | None:
        """Upper end; None is open."""
        return self.ends[1]

    @property
    def has_interval(self) -> bool:
        """Is there an interval with an end, from more than one replicate?"""
        return self.n > 1 and self.ends != (None, None)

    @property
    def sentence(self) -> str:
        """The finding in words, without a full stop."""
        return self.words(self)


def remembered(at_95: Ends, compute: Callable[[float], Ends]) -> Callable[[float], Ends]:
    """An interval that is known at 95 % and computed at other confidences."""
    return lambda confidence: at_95 if confidence == CONFIDENCE else compute(confidence)


def claim_of(kind: str, measure: str, condition: str, skill: str, place: float | str = "") -> str:
    """Name of a finding."""
    at = repr(place) if isinstance(place, float) else str(place)
    return f"{kind}_{measure}/{condition}/{skill}/{at}"


def claim_of_pair(kind: str, a: str, b: str, skill: str, place: float) -> str:
    """Name of a finding on two conditions, in either order."""
    return claim_of(kind, min(a, b), max(a, b), skill, place)


def capitalised(clause: str) -> str:
    """A clause at the start of a sentence. A name such as next_token stays as it is."""
    first = clause.split(" ", 1)[0]
    return clause if not first.isalpha() else clause[0].upper() + clause[1:]


def in_condition(results: Results, condition: str) -> str:
    """The condition in parentheses if a study has several; else nothing."""
    return f" ({condition})" if len(results.study.conditions) > 1 else ""


def between(low: float | None, high: float | None, unit: str) -> str:
    """A range in words: between 64 and 256 tasks, at 64 tasks or fewer, at 1e9 FLOPs or less, above 256 tasks."""
    if low is not None and high is not None:
        return f"between {_figure(low)} and {_figure(high)} {unit}"
    if high is not None:
        return f"at {_figure(high)} {unit} or {'fewer' if unit in ('tasks', 'parameters') else 'less'}"
    return f"above {_figure(low)} {unit}" if low is not None else f"at an unknown number of {unit}"


def _figure(value: float) -> str:
    return number(float(f"{value:.3g}"))


# Correction ---------------------------------------------------------------------------------------------------------


def corrected(asked: Iterable[Finding], primary: str | None = None, false_share: float = FALSE_SHARE) -> list[Finding]:
    """All findings with their significance (Benjamini and Hochberg 1995), the primary one aside.

    A significant finding shows its interval at the confidence of Benjamini and Yekutieli (2005); any other at 95 %.
    """
    found = list(asked)
    tested = [one for one in found if one.counted and one.name != primary]
    claims = multiplicity.adjust([one.p for one in tested], false_share).claims
    of = {one.name: claim for one, claim in zip(tested, claims, strict=True)}
    return [_settled(one, of.get(one.name), one.name == primary) for one in found]


def _settled(one: Finding, claim: multiplicity.Claim | None, is_primary: bool) -> Finding:
    if claim is None:
        return replace(one, significance="primary") if is_primary else one
    named: dict[str, Significance] = {
        "selected": "significant",
        "not selected": "not significant",
        "untested": "untested",
    }
    confidence = claim.confidence if claim.verdict == "selected" and claim.confidence else CONFIDENCE
    return replace(one, adjusted_p=claim.adjusted_p, significance=named[claim.verdict], confidence=confidence)


def count(found: Sequence[Finding], significance: Significance) -> int:
    """How many findings of those that are corrected together have this significance."""
    return sum(one.counted and one.significance == significance for one in found)
