"""What the spread over replicates says: are there two kinds of them, how noisy are they, how many made it?

Imports scikit-learn, statsmodels and diptest inside the functions that need them: by name, never from the package's front door.
Checked by tests/simulations/simulate_replicates.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.differences import is_constant, present
from orchestrator.stats.intervals import wilson_interval

MIN_FOR_KINDS = 20
"""Fewer values say nothing of kinds: the dip test finds two even modes at .1 and .95 in 36 % of runs of 5 and 98 % of 20 where
each has sd .05; in 23 % and 93 % at sd .085."""
DIP_ALPHA = 0.05
"""Level of the dip test."""
NO_SEPARATION = 2.25
"""Distance of two modes, in sums of their standard deviations, below which they are one kind with a bend."""
SMALLEST_SD = 0.05
"""No Gaussian component is narrower than this share of the spread of all values: ties would win any comparison otherwise."""


# --- two kinds? --------------------------------------------------------------------------------------------------------


class Mode(NamedTuple):
    """One kind of replicates."""

    mean: float
    share: float
    """Of the replicates."""
    n: int


def separation_needed(n: int) -> float:
    """Distance of two modes, in sums of their standard deviations, from which on n values may be two kinds. Assumed, by simulation.

    Needed beside the dip test, whose p-values come from the uniform: on a flat stretch with a heap at its end, the shape of
    accuracies that reach 1.0, it finds two kinds in up to 17 % of runs of 20 and 22 % of 50. Such a shape sits at sqrt(3) = 1.7, as
    do the halves of a flat stretch, give or take less with more values; modes at .1 and .95 sit at 8.5 where each has sd .05,
    at 2.8 where it has .15.
    """
    return NO_SEPARATION + 22 / n


class Bimodality(NamedTuple):
    """Are there two kinds of replicates, and which?"""

    verdict: Literal["two kinds", "one kind", "undecided", "too few", "constant"]
    """`two kinds`: the dip test and the mixture both say so; `one kind`: both deny it; `undecided`: anything else."""
    n: int
    more: int
    """How many more replicates the question needs; 0 where there are enough."""
    dip_p: float | None = None
    bic_gain: float | None = None
    """BIC of one Gaussian less that of two: positive speaks for two."""
    separation: float | None = None
    """Distance of the two fitted means over the sum of their standard deviations."""
    modes: tuple[Mode, ...] = ()
    """The two components, lower mean first, whatever the verdict; () where nothing was fitted."""


def bimodality(values: Sequence[float | None], resolution: float = 0.0) -> Bimodality:
    """Are there two kinds of replicates? Hartigan's dip test (1985) and one against two Gaussians, which must agree.

    `values` (R,), missing ones passed over. `resolution`: the step between neighbouring values where the measure has one (an
    accuracy over 512 items: 1/512). Tied values are then spread evenly over their step; otherwise the steps themselves pass
    for kinds where all replicates are within two or three of them. Ties that are no rounding (0 and 1 of a lottery) want none.

    False "two kinds" on unimodal truths: at most 4 % with 20 or more values, on a flat stretch with a heap at its end, else below
    1 %. Found, modes at .1 and .95: of 20 values 97 % where the kinds are even and have sd .05, 26 % with sd .15, 32 % where one in
    five is of the other kind; of 50 values 68 % of the latter. What is missed is "undecided" nearly always: "one kind" is said of
    1 to 5 %. Raises ValueError for a negative resolution.
    """
    if resolution < 0:
        raise ValueError(f"a resolution cannot be negative; given {resolution}")
    known = present(values)
    n = len(known)
    if n < MIN_FOR_KINDS:
        return Bimodality("too few", n, MIN_FOR_KINDS - n)
    if is_constant(known):
        return Bimodality("constant", n, 0)
    known = spread_ties(known, resolution)
    dip_p = dip_p_value(known)
    bic_gain, separation, modes = _two_gaussians(known)
    verdict: Literal["two kinds", "one kind", "undecided"] = "undecided"
    if dip_p <= DIP_ALPHA and bic_gain > 0 and separation >= separation_needed(n):
        verdict = "two kinds"
    elif dip_p > DIP_ALPHA and (bic_gain <= 0 or separation < NO_SEPARATION):
        verdict = "one kind"
    return Bimodality(verdict, n, 0, dip_p, bic_gain, separation, modes)


def dip_p_value(values: np.ndarray) -> float:
    """p-value of the dip test for finite `values` (n,), n >= 4, interpolated in its published table: the same every time."""
    from diptest import diptest

    return float(diptest(values, boot_pval=False)[1])


def spread_ties(values: np.ndarray, step: float) -> np.ndarray:
    """The finite values (n,) in ascending order, tied ones spread evenly over one `step` around their value."""
    ordered = np.sort(values)
    if step == 0:
        return ordered
    _, first, counts = np.unique(np.round(ordered / step), return_index=True, return_counts=True)
    rank = np.arange(len(ordered)) - np.repeat(first, counts)
    return np.sort(ordered + step * ((rank + 0.5) / np.repeat(counts, counts) - 0.5))


def _two_gaussians(ordered: np.ndarray) -> tuple[float, float, tuple[Mode, Mode]]:
    """BIC gain of two Gaussians over one, their separation and the modes, for ascending values (n,) that differ.

    Standardised first, so that the floor under a component's width is relative. EM starts from the best split into two
    contiguous groups (exact 2-means, which one dimension allows), so that neither seeds nor restarts matter.
    """
    from sklearn.mixture import GaussianMixture

    n = len(ordered)
    z = (ordered - ordered.mean()) / ordered.std()
    sizes = np.arange(1, n)
    sums = np.cumsum(z)[:-1]
    k = int(np.argmax(sums**2 / sizes + sums**2 / (n - sizes))) + 1  # z sums to 0: between-group sum of squares
    groups = (z[:k], z[k:])
    mixture = GaussianMixture(
        2,
        reg_covar=SMALLEST_SD**2,
        max_iter=1000,
        weights_init=[k / n, 1 - k / n],
        means_init=[[g.mean()] for g in groups],
        precisions_init=[[[1 / (g.var() + SMALLEST_SD**2)]] for g in groups],
        random_state=0,
    ).fit(z[:, None])
    one_variance = 1 + SMALLEST_SD**2  # the same floor: otherwise two components start at a disadvantage
    bic_one = n * (math.log(2 * math.pi * one_variance) + 1 / one_variance) + 2 * math.log(n)
    means, widths = mixture.means_[:, 0], np.sqrt(mixture.covariances_[:, 0, 0])
    member = mixture.predict(z[:, None])
    low, high = (
        Mode(float(ordered.mean() + ordered.std() * means[c]), float(mixture.weights_[c]), int((member == c).sum()))
        for c in np.argsort(means)
    )
    separation = float(abs(means[1] - means[0]) / widths.sum())
    return bic_one - float(mixture.bic(z[:, None])), separation, (low, high)


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
