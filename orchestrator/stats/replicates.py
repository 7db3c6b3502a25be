"""How noisy replicates are, and how many of them succeed.

Simulated in tests/simulations/simulate_replicates.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.differences import is_constant, present
from orchestrator.stats.intervals import wilson_interval

# --- how noisy? ---------------------------------------------------------------------------------------------------------


class Noise(NamedTuple):
    """The spread over replicates, with its own uncertainty: three replicates know their sd within a factor of 12."""

    n: int
    mean: float
    sd: float | None
    """None of one replicate."""
    sd_low: float | None
    sd_high: float | None
    """Chi-square interval of the sd; None of one replicate and where all are equal."""
    cv: float | None
    """sd / |mean|; None where the mean is within one standard error of zero (no measure that cannot be negative ever is)."""
    cv_low: float | None
    cv_high: float | None
    """Exact interval of the cv for normal values. A high end of None beside a low end: unbounded, the mean may be zero."""


def noise(values: Sequence[float | None], confidence: float = 0.95) -> Noise | None:
    """Mean, sd (n - 1) and coefficient of variation of `values` (R,), missing ones passed over; None of none.

    Intervals hold for normal values. That of the cv turns the noncentral t (sqrt(n) mean / sd has noncentrality sqrt(n) / cv)
    around, so that it knows the uncertainty of the mean too (Johnson and Welch 1940, Biometrika 31:362).
    """
    known = present(values)
    n = len(known)
    if n == 0:
        return None
    mean = float(known.mean())
    if n == 1:
        return Noise(1, mean, None, None, None, None, None, None)
    if is_constant(known):
        return Noise(n, mean, 0.0, None, None, 0.0 if mean else None, None, None)
    sd, tail = float(known.std(ddof=1)), 0.5 - confidence / 2
    sd_low = sd * math.sqrt((n - 1) / special.chdtri(n - 1, tail))
    sd_high = sd * math.sqrt((n - 1) / special.chdtri(n - 1, 1 - tail))
    errors = abs(mean) / (sd / math.sqrt(n))
    if errors <= 1 + 1e-9:
        return Noise(n, mean, sd, sd_low, sd_high, None, None, None)
    if errors > 1e3:  # the inverse loses digits, and the mean's own error no longer matters
        ends: tuple[float, float | None] = (sd_low / abs(mean), sd_high / abs(mean))
    else:
        most = float(special.nctdtrinc(n - 1, tail, errors))
        least = float(special.nctdtrinc(n - 1, 1 - tail, errors))
        ends = (math.sqrt(n) / most, math.sqrt(n) / least if least > 1e-9 else None)
    return Noise(n, mean, sd, sd_low, sd_high, sd / abs(mean), *ends)


TOLD_APART = 0.2
"""Level of Bartlett's test, above which cells are as noisy as each other. Assumed, by simulation: of six cells of 5 replicates, one
with a cv of .1 among five of .03, the median estimate is .055 at a level of .05 and .086 at this one; among six of .1 it is
.1 at either."""


class Noisiest(NamedTuple):
    """How noisy the noisiest of several cells is."""

    noise: Noise
    """Mean, sd and cv pooled over `cells`; their intervals are those of the noisiest, wherever it is."""
    cells: tuple[int, ...]
    """Which cells are pooled: the noisiest, and what is not told apart from it; ascending."""


def noisiest(cells: Sequence[Sequence[float | None]], confidence: float = 0.95) -> Noisiest | None:
    """The largest coefficient of variation among `cells` (a row of values each); None where none has one.

    The largest of several noisy cvs is too large: of six equal ones, of 3 replicates, half again. So it is pooled with those
    that Bartlett's test does not tell from it. The interval is not narrowed by that, because a test of so few says little: a lottery
    among steady cells must not be averaged away. It is that of the noisiest cell, its low end corrected (Bonferroni) for
    having looked at all; its high end needs none. Whatever the cells' cvs are, it covers the largest of them in 97 % of runs
    or more. What is pooled falls short of that where cells differ and are not told apart: of six of 3 replicates, one of .1 among
    five of .05 is told as .06, and the high end is what to plan with.
    """
    known = [present(cell) for cell in cells]
    spread: dict[int, float] = {}  # squared cv
    for i, values in enumerate(known):
        if len(values) > 1 and (squared_cv := _squared_cv(values)) is not None:
            spread[i] = squared_cv
    if not spread:
        return None
    order = sorted(spread, key=lambda i: -spread[i])
    plain = cast(Noise, noise(known[order[0]].tolist(), confidence))
    surer = cast(Noise, noise(known[order[0]].tolist(), 1 - (1 - confidence) / len(order)))
    squared, freedom = np.array([spread[i] for i in order]), np.array([len(known[i]) - 1 for i in order])
    k = len(order)
    while k > 1 and not _alike(squared[:k], freedom[:k], surer.cv_low):
        k -= 1
    pooled = sorted(order[:k])
    cv = math.sqrt(float(np.average(squared[:k], weights=freedom[:k])))
    mean = float(np.mean([known[i].mean() for i in pooled]))
    told = plain._replace(mean=mean, sd=cv * abs(mean), cv=cv, sd_low=surer.sd_low, cv_low=surer.cv_low)
    return Noisiest(told, tuple(pooled))


def _squared_cv(values: np.ndarray) -> float | None:
    """As `noise`, of two or more finite values."""
    mean = float(values.mean())
    if is_constant(values):
        return 0.0 if mean else None
    variance = float(values.var(ddof=1))
    return variance / mean**2 if mean**2 > (1 + 1e-9) ** 2 * variance / len(values) else None


def _alike(squared: np.ndarray, freedom: np.ndarray, least: float | None) -> bool:
    """Bartlett's test of equal squared cvs (k,), and do they agree with what the noisiest has at least?"""
    if not squared.all():
        return not squared.any()
    k, total = len(squared), float(freedom.sum())
    pooled = float(np.average(squared, weights=freedom))
    stretch = 1 + (float((1 / freedom).sum()) - 1 / total) / (3 * (k - 1))
    statistic = (total * math.log(pooled) - float((freedom * np.log(squared)).sum())) / stretch
    return float(special.chdtrc(k - 1, statistic)) >= TOLD_APART and math.sqrt(pooled) >= (least or 0.0)


# --- how many made it? -------------------------------------------------------------------------------------------------


class Success(NamedTuple):
    """k of n replicates made it, with Wilson's interval of the probability."""

    k: int
    n: int
    low: float
    high: float
    lost: int
    """Of the n: diverged or failed before there was a value, and counted as not having made it."""
    pending: int
    """Besides the n: without a value, because they have yet to come so far or the measure is not defined."""


def success(
    values: Sequence[float | None] | np.ndarray,
    threshold: float,
    lost: Sequence[bool] | np.ndarray | None = None,
    confidence: float = 0.95,
) -> Success | None:
    """How many of the replicates reach the threshold? None where none can be counted.

    values (R,), None or NaN where missing; lost (R,): the replicate diverged or failed (nobody, if left out). One with a value is
    judged by it. One that was lost without a value will never have one: it stays in the denominator. One without a value that was
    not lost has not come so far: it is counted neither as having made it nor as not. Raises ValueError for rows of different lengths.
    """
    found = np.asarray(values, dtype=float)
    gone = np.zeros(len(found), bool) if lost is None else np.asarray(lost, dtype=bool)
    if found.shape != gone.shape:
        raise ValueError(f"values of {found.shape} and losses of {gone.shape} are not of the same replicates")
    missing = np.isnan(found)
    n, k = int((~missing | gone).sum()), int((found >= threshold).sum())
    if n == 0:
        return None
    return Success(k, n, *wilson_interval(k, n, confidence), int((missing & gone).sum()), len(found) - n)


def nearest_success(
    cells: np.ndarray, threshold: float, lost: np.ndarray, confidence: float = 0.95
) -> tuple[int, Success] | None:
    """Of cells (C, R), which one has its mean nearest to the threshold, and how many of its replicates reach it.

    A cell chosen so looks more even than it is: of 18 cells that succeed in one of five, the plain interval of the chosen one
    covers 80 % (5 replicates), 58 % (10) and 55 % (20). This one is corrected for the C cells that could have been chosen
    (Bonferroni) and covers in 96 % of runs or more. Choosing by the neighbours instead would leave the interval alone, but
    finds cells further from the threshold and still falls to 89 % where replicates are alike from cell to cell. lost (C, R), as
    `success`; NaN missing. None where nothing is known.
    """
    known = np.flatnonzero(~np.isnan(cells).all(axis=1))
    if not len(known):
        return None
    chosen = int(known[np.abs(np.nanmean(cells[known], axis=1) - threshold).argmin()])
    made = success(cells[chosen], threshold, lost[chosen], 1 - (1 - confidence) / len(known))
    return chosen, cast(Success, made)
