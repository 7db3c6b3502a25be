"""Measures, thresholds and intervals. Arrays in, numbers out: knows no study, no file, no figure.

Definitions and the simulations behind them: the tests of this module; ability and memory are defined in README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

MIN_GAP_NATS = 0.1
"""References closer than this coincide: dividing by their gap would only amplify noise."""
MIN_GAP_ERRORS = 10.0
"""Neither are they told apart below this many standard errors of the gap."""
MIN_ITEMS = 20
"""Below this many items nothing is divided: two lucky answers are no ability."""
HALF = 0.5
"""Where a boundary is drawn."""


def _ratio(part: float, gap: float, gap_error: float | None) -> float | None:
    if gap < MIN_GAP_NATS or (gap_error is not None and gap < MIN_GAP_ERRORS * gap_error):
        return None
    return part / gap


def ability(nll: float, uniform: float, generalizer: float, gap_error: float | None = None) -> float | None:
    """(U - h) / (U - G), mean log losses in nats on held-out tasks: 0 knows nothing, 1 the perfect general rule.

    Unclipped: negative is confidently wrong. None where the references coincide.
    """
    return _ratio(uniform - nll, uniform - generalizer, gap_error)


def memory(nll: float, generalizer: float, memorizer: float, gap_error: float | None = None) -> float | None:
    """(G - h) / (G - M), mean log losses in nats on the training mixture: 0 no better than the rule, 1 perfect memory.

    Negative is under-trained. None where the references coincide.
    """
    return _ratio(generalizer - nll, generalizer - memorizer, gap_error)


def relative_distance(to_generalizer: float, to_memorizer: float, between: float) -> float | None:
    """The published index d_rel = (r + 1) / 2, r = (d(h, G) - d(h, M)) / d(G, M); 1 = memorising (arXiv 2506.17859)."""
    return None if between <= 0 else ((to_generalizer - to_memorizer) / between + 1) / 2


class Bracket(NamedTuple):
    """Where one replicate crosses: above `low` (None: below the first level), at or below `high` (None: beyond the last).

    Both None: nothing is known of it."""

    low: float | None
    high: float | None


def bracket(
    levels: Sequence[float], values: Sequence[float | None], direction: Literal["rising", "falling"]
) -> Bracket | None:
    """The first crossing of one half along ascending levels. Missing values are passed over; None if all are missing."""
    known = [(level, value) for level, value in zip(levels, values, strict=True) if value is not None]
    if not known:
        return None
    low = None
    for level, value in known:
        if (value >= HALF) == (direction == "rising"):
            return Bracket(low, level)
        low = level
    return Bracket(low, None)


def comes_back(
    levels: Sequence[float], values: Sequence[float | None], direction: Literal["rising", "falling"]
) -> bool:
    """Does this replicate cross one half back again after its first crossing? Then "the" boundary is a manner of speaking."""
    found = bracket(levels, values, direction)
    if found is None or found.high is None:
        return False
    later = [v for level, v in zip(levels, values, strict=True) if level > found.high and v is not None]
    return any((v >= HALF) != (direction == "rising") for v in later)


class Boundary(NamedTuple):
    """A boundary over replicates: the interval (None: open end), the brackets behind it, and what to think of it."""

    low: float | None
    high: float | None
    brackets: tuple[Bracket, ...]
    verdict: Literal["crossed", "below", "beyond", "undecided", "missing"]
    """`below`: every replicate is across at the first level; `beyond`: none is at the last; `undecided`: some are."""
    not_monotone: int
    """Replicates that come back after their first crossing."""


def boundary(
    levels: Sequence[float],
    replicates: Sequence[Sequence[float | None]],
    direction: Literal["rising", "falling"],
    confidence: float = 0.95,
) -> Boundary:
    """The level at which one half is crossed: t-lower of the brackets' low ends to t-upper of their high ends.

    On a log scale, levels ascending and positive. A censored replicate leaves its end open, a lost one both. One replicate gives its
    bracket and no interval. No interpolation: on a coarse grid it looks precise and covers 20-57 %.
    """
    maybe = [bracket(levels, values, direction) for values in replicates]
    if all(b is None for b in maybe):
        return Boundary(None, None, (), "missing", 0)
    found = [b or Bracket(None, None) for b in maybe]  # a lost replicate stays in the count, open at both ends
    lows, highs = [b.low for b in found], [b.high for b in found]
    verdict: Literal["crossed", "below", "beyond", "undecided"] = "crossed"
    if all(low is not None and high is None for low, high in found):
        verdict = "beyond"
    elif all(low is None and high is not None for low, high in found):
        verdict = "below"
    elif any(high is None for high in highs):
        verdict = "undecided"
    back = sum(comes_back(levels, values, direction) for values in replicates)
    return Boundary(_t_end(lows, -1, confidence), _t_end(highs, +1, confidence), tuple(found), verdict, back)


def _t_end(ends: Sequence[float | None], side: int, confidence: float) -> float | None:
    """One end of a t-interval for the mean log level; open where any replicate is."""
    known = [e for e in ends if e is not None]
    if len(known) < len(ends):
        return None
    logs = np.log(known)
    if len(logs) < 2 or np.ptp(logs) == 0:
        return float(known[0])
    half_width = special.stdtrit(len(logs) - 1, 0.5 + confidence / 2) * logs.std(ddof=1) / math.sqrt(len(logs))
    return float(np.exp(logs.mean() + side * half_width))


class Interval(NamedTuple):
    """A mean with its interval; the ends are None where there is only one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean and t-interval of independent values; None of none. Raises nothing."""
    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, 1)
    half = float(
        special.stdtrit(len(values) - 1, 0.5 + confidence / 2) * np.std(values, ddof=1) / math.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half, len(values))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError("a proportion of nothing")
    z = float(special.ndtri(0.5 + confidence / 2))
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n)))


def crossing_step(steps: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Step at which a curve first rises through one half, interpolated on log step between neighbours; None if never.

    For curves read at closely spaced steps (a factor 1.4 or less), where interpolating is honest.
    """
    before: tuple[float, float] | None = None
    for step, value in zip(steps, values, strict=True):
        if value is None:
            continue
        if value >= HALF:
            if before is None:
                return None  # already across at the first look: no crossing was seen
            share = (HALF - before[1]) / (value - before[1])
            return float(math.exp(math.log(before[0]) + share * (math.log(step) - math.log(before[0]))))
        before = (step, value)
    return None


def agreement(measured: Interval | None, lo: float, hi: float) -> Literal["consistent", "inconsistent", "inconclusive"]:
    """Does a measured interval agree with a claimed range?

    Disjoint: inconsistent. Mean inside and interval no wider than the claim: consistent. Anything else, and a single
    value, is inconclusive.
    """
    if measured is None or measured.low is None or measured.high is None:
        return "inconclusive"
    if measured.high < lo or measured.low > hi:
        return "inconsistent"
    if measured.high - measured.low <= hi - lo and lo <= measured.mean <= hi:
        return "consistent"
    return "inconclusive"
