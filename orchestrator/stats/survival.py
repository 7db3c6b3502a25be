"""Compute to skill with censored replicates: Kaplan-Meier curves. docs/statistics.md, "Compute to skill".

A look is the compute of an evaluation, in FLOPs. The onset is the look from which on a replicate has the skill. The skill came
between this look and the one before. Nothing is assumed of the distribution of onsets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.boundaries import HALF


class Step(NamedTuple):
    """One step of a Kaplan-Meier curve."""

    at: float
    """Compute of the look in FLOPs; 0 for the step before the first look."""
    reached: float
    """Estimated share of replicates with the skill."""
    low: float
    high: float
    """Pointwise interval of the share."""
    at_risk: int
    """Replicates that are followed to this look and did not have the skill at the look before."""
    onsets: int
    """Replicates at risk whose onset is this look."""


class KaplanMeier(NamedTuple):
    """The curve of compute to skill: the share of replicates with the skill, by compute."""

    steps: tuple[Step, ...]
    """The first at 0, before any look. Then one for each look, up to the last with a replicate at risk."""
    n: int
    """Replicates in the curve: all that had an evaluation, or diverged or failed."""


class Onsets(NamedTuple):
    """Every replicate's onset or censoring, the input of `kaplan_meier`."""

    first_seen: np.ndarray
    """(R,) the look from which on a replicate stays at or above one half. NaN: it has no onset."""
    censored_at: np.ndarray
    """(R,) for a replicate without onset, the last look at which it is known to lack the skill. 0: it was never evaluated."""


def onsets(
    looks: Sequence[float] | np.ndarray,
    values: Sequence[Sequence[float | None]] | np.ndarray,
    lost: Sequence[bool] | np.ndarray,
) -> Onsets:
    """Onset or censoring of each replicate, if some diverged, failed or have yet to end.

    looks (P,): compute at the evaluations in FLOPs, ascending. values (R, P): ability; None or NaN for no evaluation. lost (R,): the
    training diverged or failed. The onset is the look from which on a replicate stays at or above one half, to its last value.
    A lost replicate never has an onset. A replicate without onset is censored
    - at the last look of all replicates if it was lost: it will never have the skill. Censored at its own last look, it would be
      assumed to fare as the others do. If half diverge and the others learn, the curve would rise to 1;
    - at its own last value if it is still training, or has ended without the skill;
    - at 0 if it has no value and was not lost: `kaplan_meier` leaves it out.
    Beyond the last values of replicates still in training, lost replicates are over-represented. There the curve is too low (by .03
    with 10 replicates, three diverged and three in training). Its intervals cover all the same. Raises ValueError if the shapes
    differ, or if looks are not positive and ascending.
    """
    grid, table = np.asarray(looks, dtype=float), np.asarray(values, dtype=float)
    gone = np.asarray(lost, dtype=bool)
    if not len(table):
        table = table.reshape(0, len(grid))
    if table.shape != (len(gone), len(grid)):
        raise ValueError(f"values of {table.shape} do not fit {len(gone)} replicates and {len(grid)} looks")
    if not ((grid > 0).all() and (np.diff(grid) > 0).all()):
        raise ValueError("looks must be positive and ascending")
    known = ~np.isnan(table)
    at = np.arange(len(grid))
    last_below = np.where(known & (table < HALF), at, -1).max(1, initial=-1)
    stays = known & (at > last_below[:, None]) & ~gone[:, None]
    seen = np.where(stays, grid, np.inf).min(1, initial=np.inf)
    until = np.where(gone, grid.max(initial=0.0), np.where(known, grid, 0.0).max(1, initial=0.0))
    return Onsets(np.where(np.isinf(seen), np.nan, seen), until)


def kaplan_meier(
    first_seen: Sequence[float | None] | np.ndarray,
    censored_at: float | Sequence[float | None] | np.ndarray,
    looks: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> KaplanMeier | None:
    """Kaplan-Meier's curve of the share with the skill, with pointwise intervals. None if no replicate was evaluated.

    first_seen (R,): compute at the onset, None or NaN for none. censored_at (R,), or one number for all: the last look of a replicate
    without onset. None or 0: never evaluated, and left out. `onsets` returns both arrays. looks: compute of the evaluations, a step
    each; default, the distinct onsets and censorings. Raises ValueError for onsets that are not above zero, negative looks, or
    arrays of different lengths.

    Intervals: the beta product confidence procedure by moments (Fay, Brittain, Proschan 2013, Biostatistics 14:4). Without censoring it
    is Clopper and Pearson's interval, so it holds for any number of replicates, and is wide. Log-log and Wilson's intervals cover
    too seldom (docs/statistics.md, "Compute to skill").
    """
    seen = np.asarray(first_seen, dtype=float)
    until = np.broadcast_to(np.asarray(censored_at, dtype=float), seen.shape)
    event = ~np.isnan(seen)
    times = np.where(event, seen, np.nan_to_num(until))
    if (times < 0).any() or (seen[event] == 0).any():
        raise ValueError("onsets lie above zero and looks not below it")
    event, times = event[times > 0], times[times > 0]
    if not len(times):
        return None
    grid = np.unique(np.append(times, [] if looks is None else np.asarray(looks, dtype=float)))
    grid = grid[(grid > 0) & (grid <= times.max())]
    steps = [Step(0.0, 0.0, *_limits([], len(times), confidence), len(times), 0)]
    share = _survival(times, event)
    past: list[tuple[int, int]] = []  # (at risk, onsets)
    for t in grid.tolist():
        risk, onsets = int((times >= t).sum()), int((event & (times == t)).sum())
        if onsets:
            past.append((risk, onsets))
        reached = 1 - share[t] if t in share else steps[-1].reached
        steps.append(Step(t, reached, *_limits(past, risk - onsets, confidence), risk, onsets))
    return KaplanMeier(tuple(steps), len(times))


def _survival(times: np.ndarray, event: np.ndarray) -> dict[float, float]:
    """Time -> share of replicates without the skill by then (product limit), at each time with an onset.

    times (R,): onset or censoring. event (R,): True for an onset.
    """
    from statsmodels.duration.survfunc import SurvfuncRight  # a second and a half to import

    if not event.any():
        return {}
    curve = SurvfuncRight(times, event.astype(int))
    return dict(zip(curve.surv_times.tolist(), curve.surv_prob.tolist(), strict=True))


def _limits(past: Sequence[tuple[int, int]], left: int, confidence: float) -> tuple[float, float]:
    """Interval of the share with the skill at a look.

    past: (replicates at risk, onsets) of each look with onsets so far. left: replicates still at risk after it.

    The share without the skill is a product of beta variables, one for each look with onsets. Its lower limit has one more factor,
    for an onset that might follow at once (Fay and others 2013, section 3). A beta distribution with the same first two moments
    replaces the product. That is exact without censoring.
    """
    tail = (1 - confidence) / 2
    upper = _beta_quantile([(n - d + 1, d) for n, d in past], 1 - tail)
    lower = _beta_quantile([*((n - d + 1, d) for n, d in past), (left, 1)], tail) if left else 0.0
    return 1 - upper, 1 - lower


def _beta_quantile(factors: Sequence[tuple[int, int]], probability: float) -> float:
    """Quantile of a product of independent beta variables, by matching two moments. factors: their (a, b). Without factors, 1."""
    if not factors:
        return 1.0
    mean = math.prod(a / (a + b) for a, b in factors)
    square = math.prod(a * (a + 1) / ((a + b) * (a + b + 1)) for a, b in factors)
    size = (mean - square) / (square - mean * mean)  # a + b of the matching beta
    return float(special.betaincinv(mean * size, (1 - mean) * size, probability))
