"""Many claims at once: Benjamini and Hochberg's procedure, and the confidence of each claim's interval.

The primary claim of a study stays outside. All other findings are corrected together here. docs/statistics.md, "Many claims".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple


class Claim(NamedTuple):
    """One of many claims after correction."""

    p: float | None
    """Raw p-value. None if the claim could not be tested."""
    adjusted_p: float | None
    """Smallest `q` of `adjust` at which the claim is selected. None if it could not be tested."""
    verdict: Literal["selected", "not selected", "untested"]
    """`selected`: significant after the correction."""
    confidence: float | None
    """Confidence of its interval. None if it could not be tested: its interval supports no claim."""


class Adjusted(NamedTuple):
    """All claims, corrected together."""

    claims: tuple[Claim, ...]
    """In the order given."""
    selected: int
    """Number of selected (significant) claims."""


def adjust(p_values: Sequence[float | None], q: float = 0.05) -> Adjusted:
    """Bound the expected share of false claims among the selected, and of intervals that miss, by `q`.

    Two-sided p-values (n,), None or NaN for an untestable claim. Selection: Benjamini and Hochberg (1995), right for independent and
    positively dependent tests. Intervals of selected claims: Benjamini and Yekutieli (2005, JASA 100:71), confidence 1 - q R / m,
    with R selected of m tested claims. Other tested claims get 1 - q (R + 1) / m, the confidence of the next claim to be
    selected. So an interval of the same test excludes zero exactly if its claim is selected. No interval is narrower than
    one at confidence 1 - q, so the expected share of misses over all intervals is at most q as well. `analysis/finding.py`
    shows plain 95 % intervals of claims that are not selected.

    An interval and its p-value must come from the same test. Boundaries and compute to skill are the exception: signs test them,
    while intervals of up to five replicates are t-limits. None of those is selected: the least p of five signs is .0625. From
    six replicates on the intervals are order statistics, which are sign tests, too.

    The testability of a claim must not depend on its outcome. Raises ValueError for a p-value outside [0, 1] and a q outside (0, 1).
    """
    if not 0 < q < 1:
        raise ValueError(f"a share of false discoveries is between 0 and 1; given {q}")
    known = [None if p is None or math.isnan(p) else float(p) for p in p_values]
    tested = [p for p in known if p is not None]
    if wrong := [p for p in tested if not 0 <= p <= 1]:
        raise ValueError(f"a p-value is between 0 and 1; given {wrong[0]}")
    m = len(tested)
    adjusted = iter(_benjamini_hochberg(tested))
    ranked = [None if p is None else next(adjusted) for p in known]
    chosen = [a is not None and a <= q * (1 + 1e-12) for a in ranked]  # p = q i / m counts, for any rounding
    R = sum(chosen)
    confidence_selected = 1 - q * R / m if R else None
    confidence_others = 1 - q * (R + 1) / m if m > R else None
    claims = []
    for p, adjusted_p, is_chosen in zip(known, ranked, chosen, strict=True):
        if p is None:
            claims.append(Claim(None, None, "untested", None))
        elif is_chosen:
            claims.append(Claim(p, adjusted_p, "selected", confidence_selected))
        else:
            claims.append(Claim(p, adjusted_p, "not selected", confidence_others))
    return Adjusted(tuple(claims), R)


def _benjamini_hochberg(p_values: list[float]) -> list[float]:
    if not p_values:
        return []
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values, method="bh")]
