"""Crossings of one half along a grid, their drift with compute, and crossovers of two conditions.

A boundary K is the level from which on a replicate is across one half with probability one half. That is a median over
replicates. Levels are values along one axis: numbers of tasks, budgets, or the compute of evaluations. Nothing is
interpolated: each replicate gives two levels between which it crosses. Tables are (replicates x levels): nested sequences
with None, or arrays with NaN, for missing values. Across means at or above one half for a rising measure (ability), and
below it for a falling one (memory).
Definitions, sources and simulated coverage: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.intervals import by_chance
from orchestrator.stats.minimums import DIFFERENCE

HALF = 0.5
"""The value of ability or memory that a boundary crosses."""
MIN_TESTED = DIFFERENCE.replicates
"""Least replicates for a p-value of a difference, drift, crossover or fall."""
INSET = 0.25
"""Distance from a bracket's end to the assumed crossing of its replicate, as a share of the bracket's width in log level. The
t-limits estimate the spread between replicates from these places. Assumed, by simulation: 0 makes intervals half a bracket
wider, .5 loses 1 to 4 % of coverage (docs/statistics.md, "Boundaries")."""
OPEN_STEPS = 3.0
"""Width given to an open bracket, as a multiple of the step between the grid's two outermost levels. Assumed. Spreads of
thresholds up to one and a half steps are then covered at the grid's ends as well as within (simulated)."""

Direction = Literal["rising", "falling"]
"""The way in which a measure crosses one half with more tasks or compute: ability rises, memory falls."""
Table = Sequence[Sequence[float | None]] | np.ndarray
"""(replicates x levels); None or NaN: missing."""


class Bracket(NamedTuple):
    """Two levels: one replicate crosses above `low` and at or below `high`.

    `low` is the last level before the first crossing of one half; None: it is across at its first level. From `high` on the
    replicate stays across; None: it is not across at its last level. Levels without a value are passed over. For a monotone
    replicate the two levels are neighbours. The first crossing alone would be biased in bimodal cells: one of many levels
    below the boundary is across by chance. Both None: unknown. Such a replicate is lost, or it is across at the first level
    and not at the last.
    """

    low: float | None
    high: float | None


class Boundary(NamedTuple):
    """A boundary over replicates: the interval of the median replicate's crossing, and a verdict."""

    low: float | None
    high: float | None
    """Ends of the interval, in levels. None is an open end: no level that was tried bounds it."""
    brackets: tuple[Bracket, ...]
    """One for each replicate, in the order of the table."""
    verdict: Literal["crossed", "below", "beyond", "undecided", "missing"]
    """`crossed`: every replicate stays across up to the last level, and not all are across at their first. `below`: every
    replicate is across at its first level and stays across from some level on. `beyond`: none is across at any level.
    `undecided`: some are not across at the last level. `missing`: the table has no value."""


# Brackets -----------------------------------------------------------------------------------------------------------


def _table(levels: Sequence[float], replicates: Table) -> tuple[np.ndarray, np.ndarray]:
    """Levels (L,) and values (R, L) as arrays, with NaN for missing.

    Raises ValueError if their shapes differ, or if levels are not positive, finite and ascending.
    """
    grid = np.asarray(levels, dtype=float)
    table = np.asarray(replicates, dtype=float)
    if not len(table):
        table = table.reshape(0, len(grid))
    if table.ndim != 2 or table.shape[1] != len(grid):
        raise ValueError(f"a table of {table.shape} does not fit {len(grid)} levels")
    if not (len(grid) and grid[0] > 0 and grid[-1] < np.inf and (grid[1:] > grid[:-1]).all()):
        raise ValueError("levels must be positive, finite and ascending")
    return grid, table


def _across(table: np.ndarray, direction: Direction) -> np.ndarray:
    """+1 if a value is across one half, -1 if not, 0 if it is missing.  (..., L) -> (..., L)"""
    return np.where(np.isnan(table), 0, np.where((table >= HALF) == (direction == "rising"), 1, -1))


def _hulls(across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brackets as level indices. across (..., L) as from `_across` -> two arrays (...,), an index each for every replicate.

    The first array holds the last level before the first crossing (-1: none). The second holds the level from which on the
    replicate stays across (L: none).
    """
    n_levels = across.shape[-1]
    at = np.arange(n_levels)
    first = np.where(across > 0, at, n_levels).min(-1)
    low = np.where((across != 0) & (at < first[..., None]), at, -1).max(-1)
    last_short = np.where(across < 0, at, -1).max(-1)
    high = np.where((across > 0) & (at > last_short[..., None]), at, n_levels).min(-1)
    return low, high


def _brackets(grid: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[Bracket, ...]:
    """Brackets from indices into the grid, as `_hulls` returns them."""
    named = [*grid.tolist(), None]  # index -1 and L are None
    return tuple(Bracket(named[i], named[j]) for i, j in zip(low.tolist(), high.tolist(), strict=True))


# Boundaries ---------------------------------------------------------------------------------------------------------


def boundary(levels: Sequence[float], replicates: Table, direction: Direction, confidence: float = 0.95) -> Boundary:
    """The level from which on a replicate is across one half with probability one half.

    levels (L,) ascending and positive; replicates (R, L), values of the measure. The interval runs from a lower limit of the
    brackets' low ends to an upper limit of their high ends (`_limits`). A replicate that is not across at the last level
    counts as crossing beyond it. A replicate with an unknown bracket counts as crossing anywhere. With up to five
    replicates, one such replicate leaves an end open. From six on (at 95 %) the limits are order statistics, and an end
    stays closed if enough other replicates have closed brackets. One replicate gives its bracket, which is no interval.
    Raises ValueError for levels that are not ascending and positive, or a table of another shape.
    docs/statistics.md, "Boundaries".
    """
    grid, table = _table(levels, replicates)
    across = _across(table, direction)
    if not across.any():
        return Boundary(None, None, (), "missing")
    low, high = _hulls(across)
    ever, always = (across > 0).any(-1), high < len(grid)
    verdict: Literal["crossed", "below", "beyond", "undecided"] = "crossed"
    if (~ever & (low >= 0)).all():
        verdict = "beyond"
    elif ((low < 0) & always).all():
        verdict = "below"
    elif not always.all():
        verdict = "undecided"
    ends = _interval(grid, low, high, confidence)
    return Boundary(*ends, _brackets(grid, low, high), verdict)


def _interval(
    grid: np.ndarray, low: np.ndarray, high: np.ndarray, confidence: float
) -> tuple[float | None, float | None]:
    """Interval of the median crossing. low and high (R,) are bracket ends as indices into `grid` (L,): -1 and L are open."""
    logs = np.concatenate([np.log(grid), [np.inf, -np.inf]])
    lows, highs = logs[low], logs[high]  # -1 and L, for open ends, are the last two
    logs = logs[:-2]
    widths = highs - lows
    if (open_ends := np.isinf(widths)).any():
        first, last = (logs[1] - logs[0], logs[-1] - logs[-2]) if len(logs) > 1 else (np.inf, np.inf)
        widths[open_ends] = OPEN_STEPS * np.where(np.isinf(lows), first, last)[open_ends]
    below, above = _limits(lows, highs, widths, confidence)
    return _on_grid(grid, logs, below), _on_grid(grid, logs, above)


def _on_grid(grid: np.ndarray, logs: np.ndarray, log_level: float) -> float | None:
    """A level from its logarithm. A logarithm within 1e-9 of a grid level's (`logs`) gives exactly that level.

    None if the logarithm is infinite (an open end), or at least 700 in size (the level would overflow).
    """
    if not abs(log_level) < 700:
        return None
    nearest = int(np.abs(logs - log_level).argmin())
    return float(grid[nearest]) if abs(logs[nearest] - log_level) < 1e-9 else math.exp(log_level)


def _limits(lows: np.ndarray, highs: np.ndarray, widths: np.ndarray, confidence: float) -> tuple[float, float]:
    """Lower limit of the brackets' low ends and upper limit of their high ends, in log level. Infinite is open.

    lows, highs and widths are (R,): ends and widths of the brackets in log level.

    Enough replicates for `_outside`: order statistics. A replicate's low end lies below the median crossing with a
    probability of at least one half, for any distribution. So the (k+1)-th lowest lies above the median with the probability
    of at most k heads in R tosses. A t-interval is for the mean. It fails in cells that stay bimodal: 37 % coverage at 20
    replicates.

    Fewer replicates: t-limits of places a little inside the brackets (INSET), and never inside the extremes. The extremes
    alone would cover 75 % at 3 replicates.
    """
    n = len(lows)
    if n == 1:
        return float(lows[0]), float(highs[0])
    outside = _outside(n, confidence)
    if outside is not None:
        return float(np.partition(lows, outside)[outside]), float(np.partition(highs, n - 1 - outside)[n - 1 - outside])
    below, above = _t_limits(lows, highs, float(widths.mean()), confidence)
    return min(below, float(lows.min())), max(above, float(highs.max()))


@lru_cache(maxsize=1024)
def _outside(n: int, confidence: float) -> int | None:
    """How many of n replicates may lie outside a sign-test interval on each side; None if n is too small for any interval.

    It is the largest k with P(at most k heads in n tosses) <= (1 - confidence) / 2.
    """
    allowed = np.flatnonzero(special.bdtr(np.arange(n // 2 + 1), n, 0.5) <= (1 - confidence) / 2)
    return int(allowed[-1]) if len(allowed) else None


def _t_limits(lows: np.ndarray, highs: np.ndarray, width: float, confidence: float) -> tuple[float, float]:
    """Limits of a t-interval for the mean crossing. An open end gives an infinite limit.

    lows and highs (R,) are bracket ends in log level, `width` their mean width. The limits lie beyond the mean low end and
    the mean high end by at least `_margin` widths.
    """
    n = len(lows)
    agreeing = margin * width if (margin := _margin(n, confidence)) else 0.0
    t = float(special.stdtrit(n - 1, 0.5 + confidence / 2))
    (first, first_error), (last, last_error) = map(_mean, _inner(lows, highs))
    below = min(first - t * first_error, _mean(lows)[0] - agreeing)
    return below, max(last + t * last_error, _mean(highs)[0] + agreeing)


def _inner(lows: np.ndarray, highs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assumed crossings: low ends moved up, and high ends moved down, by INSET of the width. Open brackets stay as they are."""
    inset = np.where(np.isinf(highs - lows), 0.0, INSET * (highs - lows))
    return lows + inset, highs - inset


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean of two or more values, and its standard error. The error of an infinite mean is 0."""
    n = len(values)
    mean = float(values.sum()) / n
    return mean, 0.0 if math.isinf(mean) else math.sqrt(float(((values - mean) ** 2).sum()) / ((n - 1) * n))


@lru_cache(maxsize=1024)
def _margin(n: int, confidence: float) -> float:
    """Distance by which the limits reach beyond the mean bracket ends of n replicates, in bracket widths.

    It covers replicates that share one bracket by chance. Let the boundary lie just beyond a level. Then n replicates all
    cross before that level with probability 2^-n (12.5 % at 3), and their spread is zero. If the boundary lies m widths
    beyond the level, they do so with a probability below `_agree(m)^n`, for any spread. The margin is the m at which this
    probability falls to 1 - confidence. At 95 %: 0.58 for 2 replicates, 0.16 for 3, 0.02 for 4, none from 5 on. At 99 %:
    0.62 for 3, 0.11 for 5, none from 7 on.
    """
    allowed = (1 - confidence) ** (1 / n)
    if allowed >= _agree(0.0):
        return 0.0
    below, above = 0.0, 100.0
    for _ in range(50):
        middle = (below + above) / 2
        below, above = (middle, above) if _agree(middle) > allowed else (below, middle)
    return above


def _agree(distance: float) -> float:
    """Largest probability, over all standard deviations, that a normal variable falls into an interval of width one.

    `distance`: from the centre of the normal to the nearer end of the interval. 0.5 if it is not positive.
    """
    if distance <= 0:
        return 0.5
    spread = np.geomspace(0.01, 100, 2000) * (distance + 0.5)
    return float((special.ndtr((1 + distance) / spread) - special.ndtr(distance / spread)).max())


def crossing_step(steps: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Optimizer step at which a curve first rises to one half. None if it never does, or if its first value is there already.

    steps ascending and positive; values one each, None for missing. Interpolated linearly in log step between neighbouring
    values. For curves read at steps a factor 1.4 apart or less.
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


# Monotone? ----------------------------------------------------------------------------------------------------------


class Monotone(NamedTuple):
    """Result of `monotone`: does a mean over replicates go against its direction between some two levels?"""

    p_value: float | None
    """For the null hypothesis that the mean never goes against its direction. Corrected for all pairs of levels. None: fewer than
    MIN_TESTED replicates at every pair."""
    pair: tuple[float, float] | None
    """The two levels with the smallest p, significant or not."""
    change: float | None
    """Mean change between these two levels over replicates, negative for a fall."""


def monotone(levels: Sequence[float], replicates: Table, direction: Direction) -> Monotone:
    """Test that the mean is monotone along the levels: all pairs of levels, paired by replicate, one-sided t-tests.

    levels (L,), replicates (R, L). `direction`: the way in which the mean should go; the alternative is a change the other
    way. Each p-value is the larger of two (`_tails`). The least of them is multiplied by the number of pairs, the first
    step of Holm's procedure (1979). Raises ValueError as `boundary` does. docs/statistics.md, "Monotone".
    """
    grid, table = _table(levels, replicates)
    first, second = np.triu_indices(len(grid), 1)
    changes = table[:, second] - table[:, first]  # (R, pairs)
    above, below = _tails(changes, len(grid) - 1)
    p_values = below if direction == "rising" else above
    if np.isnan(p_values).all():
        return Monotone(None, None, None)
    worst = int(np.nanargmin(p_values))
    tested = int((~np.isnan(p_values)).sum())
    return Monotone(
        min(1.0, tested * float(p_values[worst])),
        (float(grid[first[worst]]), float(grid[second[worst]])),
        float(np.nanmean(changes[:, worst])),
    )


def _tails(values: np.ndarray, n_free: int) -> tuple[np.ndarray, np.ndarray]:
    """One-sided p-values for the mean of each column. values (R, m), NaN for missing -> two arrays (m,).

    The first has small p-values if the mean lies above zero, the second if it lies below. NaN for columns with fewer than
    MIN_TESTED values. Each p-value is the larger of two t-tests. One uses the column's own variance and allows unequal
    variances. The other uses the variance of all columns, of which `n_free` are linearly independent. It guards the first:
    three bimodal replicates come out alike at two levels (1 in 64 for each pair of levels), and their own variance is then
    next to nothing.
    """
    known = ~np.isnan(values)
    n = known.sum(0)
    enough, divisor = n >= MIN_TESTED, np.maximum(n, 1)
    mean = np.where(known, values, 0.0).sum(0) / divisor
    squares = (np.where(known, values - mean, 0.0) ** 2).sum(0)
    freedom, shared = np.maximum(n - 1, 1), max((len(values) - 1) * n_free, 1)
    own, pooled = squares / freedom, squares[enough].sum() / max(freedom[enough].sum(), 1)
    t_own, t_pooled = _ratio(mean, np.sqrt(own / divisor)), _ratio(mean, np.sqrt(pooled / divisor))
    above = np.maximum(special.stdtr(freedom, -t_own), special.stdtr(shared, -t_pooled))
    below = np.maximum(special.stdtr(freedom, t_own), special.stdtr(shared, t_pooled))
    return np.where(enough, above, np.nan), np.where(enough, below, np.nan)


def _ratio(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """mean / standard error, elementwise. An error of zero gives 1e9 with the sign of the mean, or 0 for a mean of zero."""
    return np.divide(mean, error, out=np.sign(mean) * 1e9, where=error > 0)


def _holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (1979). NaN stays NaN and is not counted."""
    order = np.argsort(p_values)  # NaN last
    n = int((~np.isnan(p_values)).sum())
    adjusted = np.full(len(p_values), np.nan)
    adjusted[order[:n]] = np.minimum(1, np.maximum.accumulate(p_values[order[:n]] * np.arange(n, 0, -1)))
    return adjusted


# Drift with compute -------------------------------------------------------------------------------------------------


class Drift(NamedTuple):
    """Doublings of a boundary per doubling of compute, with its interval."""

    low: float | None
    high: float | None
    """Ends of the interval. None is an open end."""
    slopes: tuple[Bracket, ...]
    """The least and the largest drift that each replicate's brackets allow (None: unbounded)."""
    verdict: Literal["rises", "falls", "undecided", "missing"]
    """`rises`, `falls`: the interval excludes zero. `undecided`: it does not, or there are fewer than MIN_TESTED replicates.
    `missing`: no replicate has a bracket at two budgets."""
    p_value: float | None
    """Two-sided. The smallest 1 - confidence at which the interval excludes zero. None below MIN_TESTED replicates."""


def drift(budgets: Sequence[float], brackets: Sequence[Sequence[Bracket]], confidence: float = 0.95) -> Drift:
    """Drift of a boundary from the brackets of each budget: `drift(budgets, [b.brackets for b in boundaries])`.

    budgets (B,) ascending; brackets (B x R), the same replicates at every budget. An empty row is a budget without brackets.
    Each replicate is read at the smallest and the largest budget at which it has a bracket. Its least drift runs from the
    upper end of the first bracket to the lower end of the second, its largest drift from the lower end to the upper. An
    open bracket end leaves that drift unbounded. Over replicates: t-limits as for a boundary of few replicates, widened by
    `_margin`. Without any drift, bimodal thresholds can differ between the two budgets by chance, with a probability of at
    most `by_chance`. So p is at least that, and the interval contains zero if this chance exceeds 1 - confidence. Raises
    ValueError for budgets that are not ascending and positive, or rows of different lengths. docs/statistics.md, "Drift".
    """
    costs = np.asarray(budgets, dtype=float)
    if len(costs) != len(brackets) or not ((costs > 0).all() and (np.diff(costs) > 0).all()):
        raise ValueError("drift needs ascending positive budgets and a row of brackets for each")
    rows = [row for row in brackets if row]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("drift needs the same replicates at every budget")
    if not rows:
        return Drift(None, None, (), "missing", None)
    logs = np.log(costs[[bool(row) for row in brackets]])
    ends = np.array([[(b.low or 0.0, b.high or math.inf) for b in row] for row in rows])  # (B, R, 2)
    with np.errstate(divide="ignore"):
        ends = np.log(ends)
    seen = np.isfinite(ends).any(-1)  # (B, R)
    at, bottom, top = np.arange(ends.shape[1]), seen.argmax(0), len(rows) - 1 - seen[::-1].argmax(0)
    usable = seen.any(0) & (top > bottom)
    if not usable.any():
        return Drift(None, None, tuple(Bracket(None, None) for _ in at), "missing", None)
    doublings = np.where(usable, logs[top] - logs[bottom], 1.0)
    start, end = ends[bottom, at], ends[top, at]  # (R, 2)
    lows = np.where(usable, end[:, 0] - start[:, 1], -np.inf) / doublings
    highs = np.where(usable, end[:, 1] - start[:, 0], np.inf) / doublings
    widths = ends[..., 1] - ends[..., 0]
    closed = np.isfinite(widths)
    widths[~closed] = OPEN_STEPS * widths[closed].max() if closed.any() else np.inf
    width = float(((widths[bottom, at] + widths[top, at]) / doublings)[usable].mean())
    n, alpha = len(at), 1 - confidence
    below, above = float(lows[0]), float(highs[0])
    p_value, chance = None, by_chance(n, n)
    if n > 1:
        below, above = _t_limits(lows, highs, width, confidence)
    if n > 1 and chance > alpha:  # as in `differences.guarded_difference`, to the far ends, which may be open
        back = (alpha / chance) ** (1 / (2 * n)) - 1
        below, above = (
            (min(below, float(highs.mean()) * back) if below > 0 else below),
            (max(above, float(lows.mean()) * back) if above < 0 else above),
        )
    verdict: Literal["rises", "falls", "undecided"] = "undecided"
    if n >= MIN_TESTED:
        p_value = max(chance, min(_excludes_zero(lows, highs, width), _excludes_zero(-highs, -lows, width)))
        if below > 0 or above < 0:
            verdict = "rises" if below > 0 else "falls"
    slopes = tuple(Bracket(_finite(lo), _finite(hi)) for lo, hi in zip(lows.tolist(), highs.tolist(), strict=True))
    return Drift(_finite(below), _finite(above), slopes, verdict, p_value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _excludes_zero(lows: np.ndarray, highs: np.ndarray, width: float) -> float:
    """p-value of a drift above zero: the smallest 1 - confidence at which the lower of `_t_limits` is above zero, or 1.

    lows and highs (R,): the least and largest drift of each replicate. `width`: mean width of these ranges.
    """
    if np.isinf(lows).any() or lows.mean() <= 0:
        return 1.0
    n = len(lows)
    inner, error = _mean(_inner(lows, highs)[0])
    by_spread = 2 * float(special.stdtr(n - 1, -inner / error)) if error > 0 else 0.0
    return max(by_spread, _agree(float(lows.mean()) / width) ** n)


# Crossovers ---------------------------------------------------------------------------------------------------------


class Crossover(NamedTuple):
    """Result of `crossover`: the compute at which condition B overtakes condition A, and a verdict."""

    low: float | None
    high: float | None
    """Ends of the interval, in levels. None is an open end."""
    brackets: tuple[Bracket, ...]
    """Levels between which the sign of B - A changes, for each replicate. If the verdict is `crosses`, only levels from the first
    at which A is significantly ahead to the last at which B is are read."""
    verdict: Literal[
        "crosses", "a ahead throughout", "b ahead throughout", "no difference shown", "undecided", "missing"
    ]
    """Throughout: at every level with a significant difference (paired t-tests, Holm), and for A at the last level, too.
    `undecided`: A is significantly ahead but not at the last level; or B before A (ask for the reverse); or there are fewer than
    three replicates. `missing`: no replicate has both values at a level."""
    p_value: float | None
    """The smallest 1 - confidence at which the verdict is `crosses`. None below MIN_TESTED replicates."""
    ahead_p: float | None = None
    """Two-sided p-value of a verdict "ahead throughout": twice A's p at the last level, or twice B's smallest p. None for
    other verdicts."""


def crossover(levels: Sequence[float], a: Table, b: Table, confidence: float = 0.95) -> Crossover:
    """Compute at which condition B overtakes condition A.

    levels (L,) ascending; a and b (R x L), values of A and B, paired by replicate. At each level: one-sided paired t-tests
    for A ahead and for B ahead, each corrected over levels (Holm 1979). B overtakes A if A is significantly ahead at some
    level and B at a later one. That is false in at most 1 - confidence of cases: if one condition is always ahead, it
    needs a false finding for the other. Between these levels each replicate's change of sign gives a bracket. The brackets
    give the interval as for a boundary. Levels outside are left out, since their signs may be chance. Without a crossing
    the ends are bounds: `low` is the last level at which A is significantly ahead, `high` the first at which B is. Raises
    ValueError as `boundary` does, and if a and b have different shapes. docs/statistics.md, "Crossovers".
    """
    grid, first = _table(levels, a)
    _, second = _table(levels, b)
    if first.shape != second.shape:
        raise ValueError(f"arms of {first.shape} and {second.shape} are not paired")
    gain = second - first  # (R, L), above zero where B is ahead
    if np.isnan(gain).all():
        return Crossover(None, None, (), "missing", None)
    p_b, p_a = map(_holm, _tails(gain, len(grid)))
    if np.isnan(p_a).all():
        return Crossover(None, None, _sign_changes(grid, gain)[0], "undecided", None)
    alpha = 1 - confidence
    a_at, b_at = np.flatnonzero(p_a < alpha), np.flatnonzero(p_b < alpha)
    p_value = _before(p_a, p_b)
    if len(a_at) and len(b_at) and a_at[0] < b_at[-1]:
        window = slice(a_at[0], b_at[-1] + 1)
        brackets, (low, high) = _sign_changes(grid[window], gain[:, window], confidence)
        if _outside(len(gain), confidence) is None:
            # Three replicates pass when they happen to agree, and their interval is too narrow just then: it covers
            # 92 % of the claims. Between these two levels the conditions are not distinguishable.
            last_a = a_at[a_at < b_at[-1]][-1]
            low = low and min(low, float(grid[last_a]))
            high = high and max(high, float(grid[b_at[b_at > last_a][0]]))
        return Crossover(low, high, brackets, "crosses", p_value)
    verdict: Literal["a ahead throughout", "b ahead throughout", "no difference shown", "undecided"] = "undecided"
    ahead_p = None
    if not len(a_at) and not len(b_at):
        verdict = "no difference shown"
    elif not len(a_at):
        verdict, ahead_p = "b ahead throughout", min(1.0, 2 * float(np.nanmin(p_b)))
    elif not len(b_at) and a_at[-1] == len(grid) - 1:
        verdict, ahead_p = "a ahead throughout", min(1.0, 2 * float(p_a[-1]))
    from_a = float(grid[a_at[-1]]) if len(a_at) and not len(b_at) else None
    to_b = float(grid[b_at[0]]) if len(b_at) and not len(a_at) else None
    return Crossover(from_a, to_b, _sign_changes(grid, gain)[0], verdict, p_value, ahead_p)


def _sign_changes(
    grid: np.ndarray, gain: np.ndarray, confidence: float = 0.95
) -> tuple[tuple[Bracket, ...], tuple[float | None, float | None]]:
    """For each replicate, the bracket in which gain (R, L) rises above zero; and the interval of the median replicate."""
    low, high = _hulls(np.where(np.isnan(gain), 0, np.where(gain > 0, 1, -1)))
    return _brackets(grid, low, high), _interval(grid, low, high, confidence)


def _before(p_a: np.ndarray, p_b: np.ndarray) -> float:
    """p-value of "A ahead at some level, B at a later one": the least over levels i < j of max(p_a[i], p_b[j]). Both (L,)."""
    if len(p_a) < 2:
        return 1.0
    earliest = np.fmin.accumulate(np.where(np.isnan(p_a), 1.0, p_a))[:-1]
    return float(np.maximum(earliest, np.where(np.isnan(p_b), 1.0, p_b)[1:]).min())
