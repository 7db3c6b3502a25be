"""Compute to skill where not every replicate gets there, and not every one has ended: Kaplan-Meier curves.

A replicate's onset is seen at a look (an evaluation), having happened since the look before. Without censoring before
the last look, `boundary` gives the same median interval from six replicates on; for fewer it leans on a normal spread
of log onsets, where this module, which assumes nothing, leaves the interval open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.boundaries import HALF, Bracket


class Step(NamedTuple):
    """The share of replicates that have the skill at a look (or at 0, before any), with its pointwise interval."""

    at: float
    reached: float
    low: float
    high: float
    at_risk: int
    """Replicates looked at that did not have it at the look before."""
    onsets: int
    """Of these, now seen to have it."""


class KaplanMeier(NamedTuple):
    """The curve of compute to skill."""

    steps: tuple[Step, ...]
    """The first at 0, before any look; then one for each look, up to the last at which a replicate was at risk."""
    median: Bracket | None
    """Between which looks half of the replicates get there; None: they do not."""
    n: int
    """Replicates that were looked at, or were lost before anybody could."""


class Onsets(NamedTuple):
    """What is known of every replicate's compute to skill: what `kaplan_meier` takes."""

    first_seen: np.ndarray
    """(R,) the look from which on it stays across one half; NaN: none."""
    censored_at: np.ndarray
    """(R,) where there is none: until when that is known; 0: not at all."""


def onsets(
    looks: Sequence[float] | np.ndarray,
    values: Sequence[Sequence[float | None]] | np.ndarray,
    lost: Sequence[bool] | np.ndarray,
) -> Onsets:
    """Onsets of replicates of which some diverged or failed, some are half done, and some have not begun.

    looks (P,): compute at the evaluations, ascending; values (R, P), None or NaN where a replicate was not evaluated;
    lost (R,): its training diverged or failed (as long as that is not made good). The onset is the look from which on a
    replicate stays at or above one half, to its last value. Without one it is followed
    - to the last look of all if it was lost, whatever it had reached: it does not have the skill and will not. Censored
      at its own last look it would be taken to fare as the others do from there on, and where half diverge and the
      others learn, the curve would rise to 1;
    - to its own last value if it is half done, or has ended without the skill;
    - to 0, which is not at all, if it has no value: it is counted neither as having the skill nor as not.
    The lost stay while the half done leave, so that beyond the looks of the latter the curve leans low until they have
    ended (where three in ten diverge and three are half done, by .03 of 10 replicates); its intervals cover all the same.
    Raises ValueError if the shapes do not fit, or looks are not positive and ascending.
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
    """Kaplan-Meier's curve of the share that has the skill, with pointwise intervals; None if none was looked at.

    first_seen (R,): compute at the first look with the skill, None or NaN where it never was. censored_at (R,) or one
    for all: the last look of those that never had it (read only there); None or 0: never looked at, and not counted.
    `onsets` makes both of evaluations. looks: the grid of evaluations; left out, the times that occur. Raises ValueError for onsets that are not above zero, negative looks, or rows of
    different lengths.

    An onset counts at the look at which it is first seen. At the looks nothing is lost by that; between two looks the
    curve would show the share of the look before, which is too low, and the median is a bracket of looks.

    Intervals: the beta product confidence procedure by moments (Fay, Brittain, Proschan 2013, Biostatistics 14:4);
    where nothing is censored it is Clopper and Pearson's, so it holds for any number of replicates, and is wide. What
    is usual does not hold here: log-log intervals from Greenwood's error cover at most 78 % at 3 replicates, 93 % at 5,
    and at 10 still 71 % where one in eight has the skill; they do not exist where none or all have it. Wilson's with an
    effective number of replicates falls to 63 %, 84 % and 82 %.
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
    return KaplanMeier(tuple(steps), _median(steps), len(times))


def _survival(times: np.ndarray, event: np.ndarray) -> dict[float, float]:
    """The product limit at each time with an event."""
    from statsmodels.duration.survfunc import SurvfuncRight  # a second and a half to import

    if not event.any():
        return {}
    curve = SurvfuncRight(times, event.astype(int))
    return dict(zip(curve.surv_times.tolist(), curve.surv_prob.tolist(), strict=True))


def _limits(past: Sequence[tuple[int, int]], left: int, confidence: float) -> tuple[float, float]:
    """Interval for the share reached, after onsets among those at risk and with `left` replicates still at risk.

    The share without the skill is a product of beta variables, one for each time of onsets; its lower limit has one
    more, for the onset that might follow at once (Fay and others 2013, section 3). The product is replaced by the beta
    distribution with its first two moments, exact where nothing is censored.
    """
    tail = (1 - confidence) / 2
    upper = _beta_quantile([(n - d + 1, d) for n, d in past], 1 - tail)
    lower = _beta_quantile([*((n - d + 1, d) for n, d in past), (left, 1)], tail) if left else 0.0
    return 1 - upper, 1 - lower


def _beta_quantile(factors: Sequence[tuple[int, int]], probability: float) -> float:
    """Quantile of a product of independent beta variables, by matching two moments; of no factors, 1."""
    if not factors:
        return 1.0
    mean = math.prod(a / (a + b) for a, b in factors)
    square = math.prod(a * (a + 1) / ((a + b) * (a + b + 1)) for a, b in factors)
    size = (mean - square) / (square - mean * mean)  # a + b of the matching beta
    return float(special.betaincinv(mean * size, (1 - mean) * size, probability))


def _median(steps: Sequence[Step]) -> Bracket | None:
    """Between which looks the curve passes one half."""
    passes = next((k for k, s in enumerate(steps) if s.reached >= 0.5 - 1e-12), None)
    return None if passes is None else Bracket(steps[passes - 1].at or None, steps[passes].at)
