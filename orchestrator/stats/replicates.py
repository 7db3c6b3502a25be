"""Variation between replicates, and how many of them reach a threshold. docs/statistics.md, "Noise" and "Success"."""

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
    """Standard deviation and coefficient of variation over replicates, with intervals.

    From three replicates, the upper end of the sd's interval is 12 times the lower one.
    """

    n: int
    """Replicates with a value."""
    mean: float
    sd: float | None
    """Standard deviation (n - 1). None for one replicate."""
    sd_low: float | None
    sd_high: float | None
    """Chi-square interval of the sd. None for one replicate and for equal values."""
    cv: float | None
    """sd / |mean|. None if the mean lies within one standard error of zero. A measure that cannot be negative never does."""
    cv_low: float | None
    cv_high: float | None
    """Exact interval of the cv for normal values. A high end of None beside a low end is unbounded: the mean may be zero."""


def noise(values: Sequence[float | None], confidence: float = 0.95) -> Noise | None:
    """Mean, standard deviation and coefficient of variation of `values` (R,).

    Missing values (None, NaN, infinite) are left out. None if all are missing.

    Intervals hold for normal values. sqrt(n) mean / sd has a noncentral t distribution with noncentrality sqrt(n) / cv. Its inverse gives
    the interval of the cv (Johnson and Welch 1940, Biometrika 31:362), with the uncertainty of the mean.
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


BARTLETT_ALPHA = 0.2
"""Cells whose coefficients of variation Bartlett's test does not reject as equal at this level are pooled. Assumed, by simulation
(docs/statistics.md, "Noise")."""


class Noisiest(NamedTuple):
    """The largest coefficient of variation among several cells."""

    noise: Noise
    """Mean, sd and cv pooled over `cells`. The intervals are those of the single cell with the largest cv."""
    cells: tuple[int, ...]
    """Indices of the pooled cells, ascending: the cell with the largest cv, and those that Bartlett's test does not distinguish from
    it."""


def noisiest(cells: Sequence[Sequence[float | None]], confidence: float = 0.95) -> Noisiest | None:
    """The largest coefficient of variation (cv) among `cells`, each a row of values over replicates. None if no cell has a cv.

    The largest of several estimates is too large on average: by half for six equal cells of 3 replicates. So the cell with the
    largest cv is pooled with the cells that Bartlett's test does not distinguish from it. The interval stays that of the single
    cell, because the test has little power: a bimodal cell among steady ones must not be averaged away. Its low end is corrected
    (Bonferroni) for the number of cells. Its high end needs no correction. The interval covers the largest true cv in 97 % of
    runs or more. The pooled estimate can be too small, so plan with the high end.
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
    pooled_noise = plain._replace(mean=mean, sd=cv * abs(mean), cv=cv, sd_low=surer.sd_low, cv_low=surer.cv_low)
    return Noisiest(pooled_noise, tuple(pooled))


def _squared_cv(values: np.ndarray) -> float | None:
    """Squared coefficient of variation of two or more finite values; None if `noise` gives no cv."""
    mean = float(values.mean())
    if is_constant(values):
        return 0.0 if mean else None
    variance = float(values.var(ddof=1))
    return variance / mean**2 if mean**2 > (1 + 1e-9) ** 2 * variance / len(values) else None


def _alike(squared: np.ndarray, freedom: np.ndarray, least: float | None) -> bool:
    """Whether cells may be pooled: Bartlett's test does not reject equal cvs, and the pooled cv is at least `least`.

    squared (k,): squared cvs; freedom (k,): their degrees of freedom. least: lower limit of the largest cv, or None.
    """
    if not squared.all():
        return not squared.any()
    k, total = len(squared), float(freedom.sum())
    pooled = float(np.average(squared, weights=freedom))
    stretch = 1 + (float((1 / freedom).sum()) - 1 / total) / (3 * (k - 1))
    statistic = (total * math.log(pooled) - float((freedom * np.log(squared)).sum())) / stretch
    return float(special.chdtrc(k - 1, statistic)) >= BARTLETT_ALPHA and math.sqrt(pooled) >= (least or 0.0)


# --- how many made it? -------------------------------------------------------------------------------------------------


class Success(NamedTuple):
    """k of n replicates reach a threshold, with Wilson's interval of the probability."""

    k: int
    n: int
    low: float
    high: float
    lost: int
    """Replicates that diverged or failed without a value. They are part of n, and not of k."""


def success(
    values: Sequence[float | None] | np.ndarray,
    threshold: float,
    lost: Sequence[bool] | np.ndarray | None = None,
    confidence: float = 0.95,
) -> Success | None:
    """Number of replicates with a value of at least `threshold`. None if no replicate can be counted.

    values (R,), None or NaN for missing. lost (R,): the replicate diverged or failed (default: none did). A replicate with a value
    counts by its value, lost or not. A lost replicate without a value counts as below the threshold. A replicate without a value
    that was not lost has yet to end, and is left out. Raises ValueError for arrays of different lengths.
    """
    found = np.asarray(values, dtype=float)
    gone = np.zeros(len(found), bool) if lost is None else np.asarray(lost, dtype=bool)
    if found.shape != gone.shape:
        raise ValueError(f"values of {found.shape} and losses of {gone.shape} are not of the same replicates")
    missing = np.isnan(found)
    n, k = int((~missing | gone).sum()), int((found >= threshold).sum())
    if n == 0:
        return None
    return Success(k, n, *wilson_interval(k, n, confidence), int((missing & gone).sum()))


def nearest_success(
    cells: np.ndarray, threshold: float, lost: np.ndarray, confidence: float = 0.95
) -> tuple[int, Success] | None:
    """Index of the cell with its mean nearest to the threshold, and its `success`. None if no cell has a value.

    cells (C, R): values, NaN for missing; lost (C, R) as in `success`. In a cell chosen so, the share of successes is biased towards
    one half, and a plain interval covers as little as 55 %. This interval is corrected for the number of cells with a value
    (Bonferroni) and covers in 96 % of runs or more. docs/statistics.md, "Success".
    """
    known = np.flatnonzero(~np.isnan(cells).all(axis=1))
    if not len(known):
        return None
    chosen = int(known[np.abs(np.nanmean(cells[known], axis=1) - threshold).argmin()])
    made = success(cells[chosen], threshold, lost[chosen], 1 - (1 - confidence) / len(known))
    return chosen, cast(Success, made)
