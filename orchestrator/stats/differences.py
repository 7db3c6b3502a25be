"""Differences of means between two conditions over replicates, with t-intervals.

A rare mode of a bimodal measure goes unseen, and no warning from the values can save the interval. Report k of n for a measure
that is known to be bimodal. Tests of many cells use `guarded_difference`. Coverage: docs/statistics.md, "Differences".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.boundaries import Bracket, Crossover, Drift, drift
from orchestrator.stats.intervals import by_chance


class Difference(NamedTuple):
    """Mean of condition a less mean of condition b, over replicates."""

    mean: float
    low: float | None
    high: float | None
    """t-interval. None for one replicate, and without spread: an interval of zero width would be an invented certainty."""
    p: float | None
    """Two-sided t-test of no difference. Without spread, the permutation test: 1 for equal conditions. None for one replicate."""
    df: float | None
    """Degrees of freedom of the t-test. None if there was none."""
    n_a: int
    n_b: int
    """Replicates used of a and of b. If paired, both are the number of pairs."""


def paired_difference(
    a: Sequence[float | None], b: Sequence[float | None], confidence: float = 0.95
) -> Difference | None:
    """Mean of a - b over the replicates with both values, with its t-interval. None if no replicate has both.

    `a`, `b`: (R,), the same replicates in the same order; None or NaN for missing. The interval is right for normal differences.
    Raises ValueError for unequal lengths.
    """
    pairs = paired(a, b)
    if not len(pairs):
        return None
    n = len(pairs)
    differences = pairs[:, 0] - pairs[:, 1]
    scale = float(np.abs(pairs).max())
    still = bool(np.ptp(differences) <= 1e-12 * scale)  # rounding is no spread
    mean = _exactly(float(differences.mean()), scale)

    def result(low: float | None, high: float | None, p: float | None, df: float | None) -> Difference:
        return Difference(mean, low, high, p, df, n, n)

    if n < 2:
        return result(None, None, None, None)
    if still:  # the signs of n equal differences: two of 2^n arrangements are as one-sided
        return result(None, None, 1.0 if mean == 0 else 2.0 ** (1 - n), None)
    return result(*_t_test(mean, float(differences.std(ddof=1)) / math.sqrt(n), n - 1, confidence), n - 1)


def welch_difference(
    a: Sequence[float | None], b: Sequence[float | None], confidence: float = 0.95
) -> Difference | None:
    """Mean of a less mean of b for unpaired conditions, with Welch's t-interval (Satterthwaite's degrees of freedom).

    `a` (R_a,), `b` (R_b,); missing values (None, NaN) are left out. None if a condition has no value. A condition without spread
    adds no variance. If neither has spread, there is no interval.
    """
    x, y = present(a), present(b)
    n_a, n_b = len(x), len(y)
    if not n_a or not n_b:
        return None
    still = is_constant(x), is_constant(y)
    mean = _exactly(float(x.mean() - y.mean()), float(max(np.abs(x).max(), np.abs(y).max())))

    def result(low: float | None, high: float | None, p: float | None, df: float | None) -> Difference:
        return Difference(mean, low, high, p, df, n_a, n_b)

    if n_a < 2 or n_b < 2:
        return result(None, None, None, None)
    if all(still):  # of all ways to deal the values to the arms, at most two set them as far apart
        return result(None, None, 1.0 if mean == 0 else 2 / math.comb(n_a + n_b, n_a), None)
    v_a = 0.0 if still[0] else float(x.var(ddof=1)) / n_a
    v_b = 0.0 if still[1] else float(y.var(ddof=1)) / n_b
    part = v_a / (v_a + v_b)
    df = 1 / (part**2 / (n_a - 1) + (1 - part) ** 2 / (n_b - 1))
    return result(*_t_test(mean, math.sqrt(v_a + v_b), df, confidence), df)


def guarded_difference(
    a: Sequence[float | None], b: Sequence[float | None], in_pairs: bool, confidence: float = 0.95
) -> Difference | None:
    """Mean of a less mean of b, with a p-value that is guarded against bimodal values that agree by chance.

    `in_pairs`: `paired_difference`. Else the larger p-value and wider interval of Welch's test and Student's: three bimodal
    values that agree by chance have a small variance, and Welch's test of them against ten others is false at 5 % in 21 % of
    runs. Student's pooled variance is not. In both cases p is raised to at least `by_chance`. The interval excludes zero exactly if p
    is at most 1 - confidence. If only `by_chance` forbids that, the interval is extended beyond zero, to the least difference of
    two bimodal means at which so few replicates agree that often.

    For equal conditions p is below alpha (.0002 to .05) in at most 1.8 alpha of runs paired and 2.3 alpha unpaired; worst .0007 at
    .0002, of 5 against 10. docs/statistics.md, "Differences".
    """
    found = paired_difference(a, b, confidence) if in_pairs else welch_difference(a, b, confidence)
    if found is None or found.p is None:
        return found
    p, low, high = found.p, found.low, found.high
    if not in_pairs and low is not None and high is not None:
        student_low, student_high, student_p = _student(present(a), present(b), found.mean, confidence)
        p, low, high = max(p, student_p), min(low, student_low), max(high, student_high)
    chance, alpha = by_chance(found.n_a, found.n_b), 1 - confidence
    if chance > p:
        p = chance
        if low is not None and high is not None and chance > alpha:
            back = found.mean * ((alpha / chance) ** (1 / (found.n_a + found.n_b)) - 1)
            low, high = min(low, back), max(high, back)
    return found._replace(p=p, low=low, high=high)


def _student(x: np.ndarray, y: np.ndarray, mean: float, confidence: float) -> tuple[float, float, float]:
    """Low end, high end and p-value of Student's test, with the pooled variance. x, y: values of a and b; mean: their difference."""
    df = len(x) + len(y) - 2
    pooled = float(((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()) / df
    return _t_test(mean, math.sqrt(pooled * (1 / len(x) + 1 / len(y))), df, confidence)


def present(values: Sequence[float | None]) -> np.ndarray:
    """The finite values as an array, in order. None, NaN and infinities are missing and left out."""
    known = _as_floats(values)
    return known[np.isfinite(known)]


def paired(a: Sequence[float | None], b: Sequence[float | None]) -> np.ndarray:
    """Values of a and b, (n, 2), of the n replicates that have both. Raises ValueError for unequal lengths."""
    if len(a) != len(b):
        raise ValueError(f"paired arms need the same replicates in the same order; given {len(a)} and {len(b)}")
    both = np.column_stack([_as_floats(a), _as_floats(b)])
    return both[np.isfinite(both).all(axis=1)]


def is_constant(values: np.ndarray) -> bool:
    """True if the values differ by no more than rounding (1e-12 of the largest), or if there are none."""
    return bool(values.size == 0 or np.ptp(values) <= 1e-12 * np.abs(values).max())


# Places, not means --------------------------------------------------------------------------------------------------


def shift(a: Sequence[Bracket], b: Sequence[Bracket], confidence: float = 0.95) -> Drift | None:
    """Ratio of B's boundary to A's in doublings of tasks, paired by replicate. None if a or b is empty.

    a, b: brackets of the same replicates in two conditions. Computed as `drift` between two scales a factor 2 apart, so that
    `low` and `high` are doublings.
    """
    return drift([1.0, 2.0], [a, b], confidence) if a and b else None


def crossing_p(met: Crossover, n_levels: int, either: bool = True) -> float | None:
    """p-value of the verdict that one condition overtakes the other; None if nothing was tested.

    At least the chance that bimodal cells look so at some two of `n_levels` levels (`by_chance`). `either`: both directions were
    tried, so the p of `met` is doubled. False: only the direction of `met` was asked for.
    """
    if met.p_value is None:
        return None
    n = len(met.brackets)
    return min(1.0, max((1 + either) * met.p_value, math.comb(n_levels, 2) * by_chance(2 * n, 2 * n)))


def _as_floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _exactly(mean: float, scale: float) -> float:
    """The mean, or exactly 0 if it is no larger than the rounding of values of size `scale`."""
    return 0.0 if abs(mean) <= 1e-12 * scale else mean


def _t_test(mean: float, error: float, df: float, confidence: float) -> tuple[float, float, float]:
    """Low end, high end and two-sided p-value of a t-test of a mean with standard error `error`."""
    half = float(special.stdtrit(df, 0.5 + confidence / 2)) * error
    return mean - half, mean + half, min(1.0, 2 * float(special.stdtr(df, -abs(mean) / error)))
