"""Many claims at once: which survive Benjamini and Hochberg's procedure, and at what confidence to show their intervals.

One primary claim a study stays outside; the other claims go through here together. Imports scipy.stats inside.
Checked by tests/simulations/simulate_replicates.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple


class Claim(NamedTuple):
    """One of many claims after correction."""

    p: float | None
    adjusted_p: float | None
    """Smallest share of false discoveries at which it would be selected; None if it could not be tested."""
    verdict: Literal["selected", "not selected", "untested"]
    confidence: float | None
    """At which to show its interval; None if it could not be tested (an interval, if it has one, supports no claim)."""


class Adjusted(NamedTuple):
    """All claims, corrected together."""

    claims: tuple[Claim, ...]
    """In the order given."""
    selected: int
    """R."""


def adjust(p_values: Sequence[float | None], q: float = 0.05) -> Adjusted:
    """Keep the expected share of false ones among the selected claims at or below `q`, and of intervals that miss, too.

    Two-sided p-values (n,), None or NaN for what could not be tested. Benjamini and Hochberg (1995): right for independent and for
    positively dependent tests. Intervals of selected claims: Benjamini and Yekutieli (2005, JASA 100:71), confidence
    1 - q R / m. That holds where an interval and its p-value come from the same test. Of one kind of claim they do not: boundaries and
    compute-to-skill are tested by signs, while up to five replicates their intervals are t-limits. These intervals can look sure
    of what the signs do not show; none is ever selected, as fewer than six signs are not tested (the least p of five is .0625). From six replicates on
    the intervals are order statistics, which are sign tests, too, as far as they reach.

    Intervals of the others: their guarantee covers selected claims only, and the plain 95 % would let rows that were not
    selected exclude zero. They get 1 - q (R + 1) / m, what the next claim to be selected would have got. So an interval
    of the same test excludes zero exactly where its claim is selected; and as none is narrower than the plain one, the expected
    share of misses over the whole table is at most q as well. `compare` shows these; a study's report does not (`analysis/claims.py`): it
    shows plain 95 % intervals of what is not selected, and marks them as supporting no claim.

    Whether a claim can be tested must not depend on how it would come out. Raises ValueError for a p-value outside [0, 1]
    and a q outside (0, 1).
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
    chosen = [a is not None and a <= q * (1 + 1e-12) for a in ranked]  # p = q i / m counts, whatever the rounding
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
