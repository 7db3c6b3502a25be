"""Where one half is crossed along a grid: brackets of replicates, and the interval over them. Arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

HALF = 0.5
"""Where a boundary is drawn."""


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
