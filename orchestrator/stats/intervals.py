"""Means, proportions and their intervals; does a measured interval agree with a claimed range?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import


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


MIN_SPREAD = 0.01
"""Replicates closer together than this are taken to scatter so much: a test must not draw certainty from few values that
happen to agree (assumed: the size of the evaluation's own noise, on a scale from 0 to 1)."""


def one_sided_p(values: Sequence[float], bound: float, side: Literal["above", "below"]) -> float | None:
    """p-value of the claim that the mean of replicates lies above (below) a bound: one-sample t-test, one-sided.

    None with fewer than two values. Values on a scale from 0 to 1; see MIN_SPREAD.
    """
    if len(values) < 2:
        return None
    error = max(float(np.std(values, ddof=1)), MIN_SPREAD) / math.sqrt(len(values))
    t = (float(np.mean(values)) - bound) / error
    return float(special.stdtr(len(values) - 1, -t if side == "above" else t))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError("a proportion of nothing")
    z = float(special.ndtri(0.5 + confidence / 2))
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return low if successes > 0 else 0.0, high if successes < n else 1.0  # exactly, without what rounding leaves


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


def by_chance(n_a: int, n_b: int) -> float:
    """The largest probability with which replicates of one and the same lottery come out on two levels, those of one arm
    all on the one and those of the other all on the other: 2 (n_a/n)^n_a (n_b/n)^n_b, n = n_a + n_b.

    For n pairs 2 x 4^-n, and not only for lotteries: whatever two values are drawn alike, their difference falls between l
    and h < 2 l with probability of at most 1/4 (no three values differ pairwise by that; Motzkin and Straus 1965).
    """
    n = n_a + n_b
    return min(1.0, 2 * (n_a / n) ** n_a * (n_b / n) ** n_b)
