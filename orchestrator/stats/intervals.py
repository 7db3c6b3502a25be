"""Means, proportions and their intervals; agreement with a claimed range. docs/statistics.md, "Means and proportions"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import


class Interval(NamedTuple):
    """A mean of `n` values with its interval. With a single value both ends are None."""

    mean: float
    low: float | None
    high: float | None
    n: int


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean and t-interval of independent normal values (n,). None for an empty sequence."""
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
    """Wilson's interval for the probability behind `successes` out of `n`. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError("a proportion of nothing")
    z = float(special.ndtri(0.5 + confidence / 2))
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return low if successes > 0 else 0.0, high if successes < n else 1.0  # exactly, without rounding


def agreement(measured: Interval | None, lo: float, hi: float) -> Literal["consistent", "inconsistent", "inconclusive"]:
    """Agreement of a measured mean and interval with a claimed range, `lo` to `hi`.

    Interval and range disjoint: inconsistent. Mean in the range and interval no wider than it: consistent. Anything else,
    a single value and None are inconclusive.
    """
    if measured is None or measured.low is None or measured.high is None:
        return "inconclusive"
    if measured.high < lo or measured.low > hi:
        return "inconsistent"
    if measured.high - measured.low <= hi - lo and lo <= measured.mean <= hi:
        return "consistent"
    return "inconclusive"


def containment(
    low: float | None, high: float | None, lo: float | None, hi: float | None
) -> Literal["consistent", "inconsistent", "inconclusive"]:
    """An interval, `low` to `high`, against a claimed range, `lo` to `hi`; None is an open end of either.

    Consistent: the whole interval lies in the range. Inconsistent: none of it does. Else inconclusive.
    """
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    first, last = -math.inf if lo is None else lo, math.inf if hi is None else hi
    if first <= least and most <= last:
        return "consistent"
    return "inconsistent" if most < first or least > last else "inconclusive"


def by_chance(n_a: int, n_b: int) -> float:
    """Largest probability that two equal conditions look different because a bimodal measure splits them by chance.

    n_a and n_b: replicates of either condition. All n_a come out in one mode and all n_b in the other with a probability of at
    most 2 (n_a/n)^n_a (n_b/n)^n_b, n = n_a + n_b. For n pairs that is 2 x 4^-n, and holds for any distribution. The difference
    of two values drawn alike falls between l and h < 2 l with a probability of at most 1/4 (no three values differ pairwise by
    that; Motzkin and Straus 1965).
    """
    n = n_a + n_b
    return min(1.0, 2 * (n_a / n) ** n_a * (n_b / n) ** n_b)
