"""Claims, and the correction of all but the primary one (`primary.py`) together.

A claim is a sentence that the report says because of a test. The more is looked at, the more is found by chance: claims go through
Benjamini and Hochberg's procedure, and their intervals get the matching confidence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from orchestrator.analysis.results import Results
from orchestrator.stats import multiplicity

Confidence = Callable[[str], float]
"""Name of a claim -> the confidence of its interval."""


def claim_of(kind: str, measure: str, arm: str, skill: str, place: float | str = "") -> str:
    """Name of a claim, the same wherever it is counted and wherever its interval is drawn."""
    at = repr(place) if isinstance(place, float) else str(place)
    return f"{kind}_{measure}/{arm}/{skill}/{at}"


def claim_of_arms(a: str, b: str, skill: str, n_tasks: int, kind: str = "crossover") -> str:
    """Name of the claim that one of two arms overtakes the other, whichever of them; or that it needs more compute."""
    first, second = sorted((a, b))
    return claim_of(kind, first, second, skill, float(n_tasks))


Measure = Literal["ability", "memory"]

CONFIDENCE = 0.95

FALSE_SHARE = 0.05
"""Of the claims that are kept, at most this share is expected to be false."""

NOT_KEPT, TOO_FEW = "not kept", "too few to test"


class Claim(NamedTuple):
    """One thing that was looked at besides the primary claim."""

    name: str
    says: str
    p_value: float | None
    """None: it could not be tested."""
    adjusted_p: float | None
    verdict: Literal["kept", "not kept", "untested"]
    confidence: float
    """Of its interval, if it has one."""


class Standing(NamedTuple):
    """Where what a result rests on stands after the correction; every field empty where nothing was counted."""

    p: float | None = None
    adjusted_p: float | None = None
    kept: Literal["yes", "no", "untested", "primary", ""] = ""
    """`untested`: nothing defines it, or there are too few replicates for any test. Empty: it is outside the count."""


def standings(made: Sequence[Claim], primary: str | None) -> Mapping[str, Standing]:
    """Name of a claim -> where it stands, of any name: what is not among them was not counted."""
    kept: dict[str, Literal["yes", "no", "untested"]] = {"kept": "yes", "not kept": "no", "untested": "untested"}
    known = {claim.name: Standing(claim.p_value, claim.adjusted_p, kept[claim.verdict]) for claim in made}
    if primary is not None:
        known[primary] = Standing(kept="primary")
    return defaultdict(Standing, known)


def mark(standing: Standing) -> str:
    """To stand beside a result that is worded as a fact: nothing where it is kept, or was declared, or is outside the count."""
    return {"no": NOT_KEPT, "untested": TOO_FEW}.get(standing.kept, "")


Looked = tuple[str, str, float | None]
"""Name of a claim, what it says, its p-value (None: it could not be tested)."""


def plain_confidence(name: str) -> float:
    """A verdict is looked for at 95 %, whatever becomes of its interval."""
    return CONFIDENCE


def words_of_arm(results: Results, arm: str) -> str:
    """The name of a condition in parentheses, where a study has several; else nothing."""
    return f" ({arm})" if len(results.study.lines) > 1 else ""


# Correction ---------------------------------------------------------------------------------------------------------


def correct(looked: list[Looked], primary: str | None) -> tuple[Claim, ...]:
    """All claims but the primary one, corrected together (Benjamini and Hochberg; intervals by Benjamini and Yekutieli)."""
    others = [claim for claim in looked if claim[0] != primary]
    adjusted = multiplicity.adjust([p for _, _, p in others], FALSE_SHARE)
    verdicts: dict[str, Any] = {"selected": "kept", "not selected": "not kept", "untested": "untested"}
    return tuple(
        Claim(name, says, p, one.adjusted_p, verdicts[one.verdict], _confidence(one))
        for (name, says, p), one in zip(others, adjusted.claims, strict=True)
    )


def _confidence(claim: multiplicity.Claim) -> float:
    """Of kept claims the intervals are corrected for the selection; of others the plain one is shown, and supports no claim."""
    return claim.confidence if claim.verdict == "selected" and claim.confidence else CONFIDENCE
