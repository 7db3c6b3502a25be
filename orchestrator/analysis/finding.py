"""A finding: one question of a study with its answer. Every table, page and sentence prints findings and computes nothing.

A question is a file of this folder. Its function `ask` yields findings, and each finding holds a function that puts it into
words (`Finding.words`). `findings.py` asks all questions once and corrects their p-values together (`corrected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from orchestrator.analysis.results import Results
from orchestrator.formatting import factor, percent, rounded, times
from orchestrator.stats import multiplicity
from orchestrator.stats.boundaries import Bracket
from orchestrator.stats.minimums import BOUNDARY, BREAK, DIFFERENCE

CONFIDENCE = 0.95
"""Confidence of an interval that no correction has changed."""

FALSE_SHARE = 0.05
"""Bound of the expected share of false findings among the significant ones (false discovery rate)."""

Ends = tuple[float | None, float | None]
"""Low and high end of an interval; None is open."""

Significance = Literal["significant", "not significant", "untested", "primary", ""]
"""The result of a finding's test after correction. `untested`: it has no p-value, for lack of replicates or values. `primary`: the
finding of the primary claim, tested without correction. Empty: the finding takes no part in the correction, such as an
expected value."""


def no_interval(confidence: float) -> Ends:
    """`Finding.interval` of a finding without an interval: open at both ends."""
    return None, None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One question at one place of a study (condition, skill, number of tasks, budget), and its answer."""

    name: str
    """Unique in a study, and the same before and after correction (`claim_of`)."""
    question: str
    """The kind of question: `K_A`, `K_M`, `drift of K_A`, `compute to skill`, `crossover`, ..."""
    words: Callable[[Finding], str]
    """Puts the finding into one sentence without its full stop. It gets the finding itself, and so the corrected interval."""
    condition: str
    skill: str = ""
    """Empty for memory."""
    n_tasks: int | None = None
    """The number of tasks at which the question is asked; None if it is asked over all of them."""
    compute_flops: float | None = None
    """The budget in FLOPs at which the question is asked; None if it is asked over all of them."""
    against: str = ""
    """The condition, or the state of a specialist, on the other side of a comparison."""
    verdict: str
    """The answer in a word or a few, such as `crossed` or `undecided`; each question has its own. `missing`: no value."""
    answered: bool = False
    """Whether the verdict is an answer even if the finding is not significant, so that tables have a row for it."""
    n: int
    """Replicates, or pairs of replicates, with a value."""
    p: float | None = None
    """Raw p-value; None if nothing was tested."""
    estimate: float | None = None
    """A point estimate, in the unit of the interval; None for questions that give an interval alone."""
    interval: Callable[[float], Ends] = no_interval
    """Confidence -> ends of the interval."""
    reach: tuple[float, float] | None = None
    """The first and the last level with a value (numbers of tasks or FLOPs). An end of the interval outside counts as open."""
    brackets: tuple[Bracket, ...] = ()
    """For each replicate, the two levels between which it crosses. For a ratio or drift, the least and the largest one that the
    replicate allows."""
    replicates: tuple[int, ...] = ()
    """The number of the replicate that each bracket belongs to."""
    counted: bool = True
    """Whether it takes part in the correction."""
    adjusted_p: float | None = None
    """p-value after the correction; None if untested or outside the correction."""
    significance: Significance = ""
    confidence: float = CONFIDENCE
    """Confidence of `low` and `high`."""

    @cached_property
    def ends(self) -> Ends:
        """The interval at `confidence`. An end outside `reach` is open."""
        low, high = self.interval(self.confidence)
        first, last = self.reach or (float("-inf"), float("inf"))
        inside = [end if end is not None and first <= end <= last else None for end in (low, high)]
        return inside[0], inside[1]

    @property
    def low(self) -> float | None:
        """Lower end of `ends`; None is open."""
        return self.ends[0]

    @property
    def high(self) -> float | None:
        """Upper end of `ends`; None is open."""
        return self.ends[1]

    @property
    def has_interval(self) -> bool:
        """Whether at least one end is closed, from more than one replicate."""
        return self.n > 1 and self.ends != (None, None)

    @property
    def sentence(self) -> str:
        """The finding in words, without a full stop."""
        return self.words(self)


def remembered(at_95: Ends, compute: Callable[[float], Ends]) -> Callable[[float], Ends]:
    """A `Finding.interval` that returns `at_95` at 95 %, and calls `compute` for other confidences."""
    return lambda confidence: at_95 if confidence == CONFIDENCE else compute(confidence)


def claim_of(kind: str, measure: str, condition: str, skill: str, place: float | str = "") -> str:
    """Unique name of a finding in its study.

    kind and measure name the question, such as k and ability. place: the number of tasks or the budget, if it has one.
    """
    at = repr(place) if isinstance(place, float) else str(place)
    return f"{kind}_{measure}/{condition}/{skill}/{at}"


def claim_of_pair(kind: str, a: str, b: str, skill: str, place: float) -> str:
    """Unique name of a finding on conditions a and b; the same for b and a."""
    return claim_of(kind, min(a, b), max(a, b), skill, place)


def capitalised(clause: str) -> str:
    """A clause with a capital first letter. A name such as next_token stays as it is."""
    first = clause.split(" ", 1)[0]
    return clause if not first.isalpha() else clause[0].upper() + clause[1:]


def in_condition(results: Results, condition: str) -> str:
    """ " (condition)" for a sentence if the study has several conditions; else the empty string."""
    return f" ({condition})" if len(results.study.conditions) > 1 else ""


def between(low: float | None, high: float | None, unit: str) -> str:
    """A range in words: between 64 and 256 tasks, at 64 tasks or fewer, at 1e9 FLOPs or less, above 256 tasks."""
    write = rounded if unit in ("tasks", "FLOPs", "parameters") else factor
    if low is not None and high is not None:
        return f"between {write(low)} and {write(high)} {unit}"
    if high is not None:
        return f"at {write(high)} {unit} or {'fewer' if unit in ('tasks', 'parameters') else 'less'}"
    return f"above {write(low)} {unit}" if low is not None else f"at an unknown number of {unit}"


# Correction ---------------------------------------------------------------------------------------------------------


def corrected(asked: Iterable[Finding], primary: str | None = None, false_share: float = FALSE_SHARE) -> list[Finding]:
    """All findings with their significance (Benjamini and Hochberg 1995), in the same order.

    primary: name of the finding of the primary claim, which is left out of the correction. false_share: bound of the expected
    share of false findings among the significant ones. A significant finding gets its interval at the confidence of
    Benjamini and Yekutieli (2005); any other at 95 %.
    """
    found = list(asked)
    tested = [one for one in found if one.counted and one.name != primary]
    claims = multiplicity.adjust([one.p for one in tested], false_share).claims
    of = {one.name: claim for one, claim in zip(tested, claims, strict=True)}
    return [_settled(one, of.get(one.name), one.name == primary) for one in found]


def _settled(one: Finding, claim: multiplicity.Claim | None, is_primary: bool) -> Finding:
    """A finding with the outcome of its claim. claim: None if the finding took no part in the correction."""
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
    """Number of findings with this significance, among those that take part in the correction."""
    return sum(one.counted and one.significance == significance for one in found)


def tested_words(found: Sequence[Finding]) -> list[str]:
    """Sentences: how many findings were tested and are significant; how many could not be tested, and what a test needs."""
    significant, untested = count(found, "significant"), count(found, "untested")
    said = []
    if tested := significant + count(found, "not significant"):
        false = f", of which at most {percent(FALSE_SHARE)} are expected to be false" if significant else ""
        said.append(
            f"{times(tested, 'question')} tested and corrected together (Benjamini and Hochberg): "
            f"{significant:,} significant{false}."
        )
    if untested:
        asked = {one.question for one in found if one.counted and one.significance == "untested"}
        breaks = {name for name in asked if name.startswith("emergence ")}
        crossings = {"K_A", "K_M", "compute to skill", *(name for name in asked if name.startswith("along "))}
        needs = {
            f"{BOUNDARY.replicates} replicates for a boundary or compute to skill": asked & crossings,
            f"{DIFFERENCE.replicates} replicates for a comparison": asked - crossings - breaks,
            f"{BREAK.replicates} replicates with {BREAK.scales} scales for a break": breaks,
        }
        least = ", ".join(words for words, those in needs.items() if those)
        said.append(f"{times(untested, 'question')} could not be tested. A test needs at least {least}.")
    return said
