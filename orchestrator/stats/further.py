"""How many replicates would settle a claim whose interval lies neither within the claimed range nor outside it?

The study is played on: futures are drawn in which more replicates like those seen are added to them, and the answer is the
least number in all with which POWER of the futures are settled, either way, beside the one with which half of them are: of three
replicates so little is known that no number may settle four futures in five where nine settle half. Replicates are taken to
be normal (of boundaries: the logarithm of the threshold, anywhere within its bracket), and their mean and spread to be as
uncertain as so few leave them: the mean of a future is drawn from the t-distribution around the mean seen, its variance from the inverse chi-square, which is what
Bayes' rule gives without prior knowledge. Putting in the spread of three replicates as if it were known would promise too much
(replicates.replicates_needed tells by how much).

The promise is kept on average over what may be true, with spreads of up to a quarter of the claimed range (of means, a half): of
studies begun with 3 or 5 replicates that settle nothing, and gone on to the number named, 85 to 95 % are settled (tests/simulations/simulate_claims.py).
Where the spread is wider the few cases in which a number is named at all are those in which it looks small by luck, and 57 to 75 %
of them are settled. A truth on the edge of the claimed range is settled by no number, which shows as "more than MOST". Where that
is so, and a number of an even chance is told instead, it settles 56 to 71 % (of 240 to 360 studies each; boundaries, means,
crossovers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.stats.boundaries import (
    OPEN_STEPS,
    Boundary,
    Bracket,
    Crossover,
    Drift,
    boundary,
    crossover,
    drift,
)
from orchestrator.stats.intervals import t_interval
from orchestrator.stats.replicates import Needed

POWER = 0.8
FUTURES = 200
"""The share of settled futures then has a standard error of 3 %."""
MOST = 100
"""Replicates of one cell that anybody might run; beyond, the answer is "more than that"."""

Floats = np.ndarray
Ends = tuple[float | None, float | None]
"""Of an interval; None is open."""


def for_mean(values: Sequence[float], settled: Callable[[Ends], bool], draw: np.random.Generator) -> Needed | None:
    """Replicates in all that settle what is claimed of the mean of `values` (R,); None of fewer than two, or without spread.

    `settled`: does an interval with these ends settle it? The confidence is 95 %.
    """
    seen = np.asarray(values, dtype=float)
    if len(seen) < 2 or np.ptp(seen) == 0:
        return None
    new = _more_like(np.broadcast_to(seen[:, None], (FUTURES, len(seen), 1)), draw)[..., 0]

    def is_settled(future: int, total: int) -> bool:
        interval = t_interval(np.concatenate([seen, new[future, : total - len(seen)]]).tolist())
        return interval is not None and settled((interval.low, interval.high))

    return _least_total(len(seen), is_settled)


def for_boundary(
    levels: Sequence[float],
    brackets: Sequence[Bracket],
    settled: Callable[[Boundary], bool],
    draw: np.random.Generator,
    confidence: float = 0.95,
) -> Needed | None:
    """Replicates in all that settle what is claimed of a boundary, from the brackets (R,) of `boundary` on its levels.

    None of fewer than two replicates or levels. Brackets that are wider than a step, of replicates that go back and forth,
    stay as wide in the futures.
    """
    if len(brackets) < 2 or len(levels) < 2:
        return None
    seen = _places(levels, [brackets])
    new = _new_places(np.log(levels), seen, draw)[:, :, 0]

    def is_settled(future: int, total: int) -> bool:
        places = np.concatenate([seen[:, 0], new[future, : total - len(seen)]])
        return settled(boundary(levels, _table(len(levels), places), "rising", confidence))

    return _least_total(len(seen), is_settled)


def for_drift(
    levels: Sequence[float],
    budgets: Sequence[float],
    brackets: Sequence[Sequence[Bracket]],
    settled: Callable[[Drift], bool],
    draw: np.random.Generator,
    confidence: float = 0.95,
) -> Needed | None:
    """Replicates in all that settle what is claimed of a drift, from the brackets (B x R) at the budgets where all cross."""
    if len(budgets) < 2 or len(brackets[0]) < 2 or len(levels) < 2:
        return None
    seen = _places(levels, brackets)
    new = _new_places(np.log(levels), seen, draw)
    names = [*levels, None]

    def is_settled(future: int, total: int) -> bool:
        places = np.concatenate([seen, new[future, : total - len(seen)]])  # (total, B, 2)
        rows = []
        for ends in places.transpose(1, 0, 2):
            crossed = (ends[:, 1] < len(levels)).all() and not (ends[:, 0] < 0).all()
            rows.append([Bracket(names[i], names[j]) for i, j in ends.tolist()] if crossed else [])
        return settled(drift(budgets, rows, confidence))

    return _least_total(len(seen), is_settled)


def for_crossover(
    levels: Sequence[float],
    a: Floats,
    b: Floats,
    settled: Callable[[Crossover], bool],
    draw: np.random.Generator,
    confidence: float = 0.95,
) -> Needed | None:
    """Replicates in all that settle what is claimed of a crossover, a and b (R, L) paired; None where a value is missing."""
    seen = np.concatenate([a, b], axis=1)
    if len(seen) < 2 or np.isnan(seen).any() or not np.ptp(seen, axis=0).any():
        return None
    new = _more_like(np.broadcast_to(seen, (FUTURES, *seen.shape)), draw)

    def is_settled(future: int, total: int) -> bool:
        rows = np.concatenate([seen, new[future, : total - len(seen)]])
        return settled(crossover(levels, rows[:, : len(levels)], rows[:, len(levels) :], confidence))

    return _least_total(len(seen), is_settled)


# Futures ------------------------------------------------------------------------------------------------------------


def _more_like(rows: Floats, draw: np.random.Generator) -> Floats:
    """New replicates for rows (F, R, L) of each future: (F, MOST - R, L), from the normal with uncertain mean and spread.

    A row of normals is drawn as the mean plus a random combination of the residuals, so that columns keep their correlation.
    """
    F, R, _ = rows.shape
    mean = rows.mean(1, keepdims=True)
    basis = (rows - mean) / np.sqrt(R - 1)  # basis^T basis is the covariance
    scale = np.sqrt((R - 1) / draw.chisquare(R - 1, (F, 1, 1)))
    centre = mean + scale / np.sqrt(R) * np.matmul(draw.standard_normal((F, 1, R)), basis)
    return centre + scale * np.matmul(draw.standard_normal((F, max(MOST - R, 0), R)), basis)


def _places(levels: Sequence[float], brackets: Sequence[Sequence[Bracket]]) -> np.ndarray:
    """Brackets (B x R) as indices into the levels, (R, B, 2): -1 below all of them, L beyond."""
    at = {level: i for i, level in enumerate(levels)}
    low = [[-1 if b.low is None else at[b.low] for b in row] for row in brackets]
    high = [[len(levels) if b.high is None else at[b.high] for b in row] for row in brackets]
    return np.stack([np.array(low).T, np.array(high).T], axis=-1)


def _new_places(logs: Floats, seen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Brackets of new replicates (F, MOST - R, B, 2) like those seen (R, B, 2), as indices into log levels (L,).

    In each future every threshold lies somewhere in its bracket, an open one reaching OPEN_STEPS of the outermost steps out.
    New brackets are the step around a new threshold, with as many steps more on either side as a replicate's that was seen.
    """
    beyond, below = OPEN_STEPS * (logs[-1] - logs[-2]), OPEN_STEPS * (logs[1] - logs[0])
    ends = np.concatenate([logs, [logs[-1] + beyond, logs[0] - below]])  # the last two are indices L and -1
    low, high = ends[seen[..., 0]], ends[seen[..., 1]]
    thresholds = low + (high - low) * draw.random((FUTURES, *low.shape))  # (F, R, B)
    new = _more_like(thresholds, draw)
    step, new_step = np.searchsorted(logs, thresholds), np.searchsorted(logs, new)  # the level above each
    like = draw.integers(0, len(seen), (*new.shape[:2], 1))
    more_below = np.take_along_axis(step - 1 - seen[..., 0], like, axis=1)
    more_above = np.take_along_axis(seen[..., 1] - step, like, axis=1)
    return np.stack([np.maximum(new_step - 1 - more_below, -1), np.minimum(new_step + more_above, len(logs))], axis=-1)


def _table(n_levels: int, places: np.ndarray) -> Floats:
    """Values (R, L) whose brackets are these: 0 up to the low end, 1 from the high end on, missing between."""
    at = np.arange(n_levels)
    return np.where(at <= places[:, :1], 0.0, np.where(at >= places[:, 1:], 1.0, np.nan))


def _least_total(n: int, is_settled: Callable[[int, int], bool]) -> Needed:
    """The least numbers in all with which POWER of the futures are settled, and half of them; by halving, and beyond 12 a
    fifth apart."""
    totals = [total for total in (*range(2, 13), 15, 18, 22, 26, 32, 38, 46, 55, 66, 80, MOST) if total > n]

    def enough(total: int, share: float) -> bool:
        may_fail = FUTURES - int(np.ceil(share * FUTURES))
        for future in range(FUTURES):
            may_fail -= not is_settled(future, total)
            if may_fail < 0:
                return False
        return True

    def least(share: float) -> int | None:
        if not totals or not enough(MOST, share):
            return None
        low, high = -1, len(totals) - 1  # the last is enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(totals[middle], share) else (middle, high)
        return totals[high]

    found, even = least(POWER), least(0.5)
    return Needed(MOST if found is None else found, found is None, even)
