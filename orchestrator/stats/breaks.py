"""Breaks in scores along ascending scales: break, smooth or undecided. Arrays in, verdicts out.

A **break** is a change of slope (hinge) or of level (jump) of the mean over replicates against the log scale. At least two
scales lie on either side, and no smooth curve explains it. Smooth are: a straight line, quadratic or cubic; a power law or
exponential in the scale; a transition on top of any slope (logistic, exp(-exp(-z)), 1 - exp(-exp(z))); a rounded bend. 10-90 %
of a smooth transition take SMOOTH_STEPS grid steps or more. A faster one cannot be distinguished from a jump on the grid.

Three things must agree, and there must be MIN_SCALES scales and MIN_REPLICATES replicates:

1. The Davies test (Davies 1987, Biometrika 74:33; 2002, Biometrika 89:484) of a hinge or jump at an unknown place against a
   straight line: `p_straight`. Any curve fails it.
2. The same test on top of each smooth family, fitted first. Its centre and width are profiled, and their tangents are kept in
   the design. `p_smooth` is the largest of these p-values. It answers all families at once: it is cautious.
3. Leave one scale out. Break models must predict it no worse than smooth ones. Beside a jump both are blind, so ties
   (OUT_OF_SAMPLE_TIE) count as agreement.

**Smooth** needs no such evidence near (SUGGESTIVE), and a jump of half the change excluded. It does not exclude a hinge, which
a bend explains. Everything else is **undecided**, a score that does not move beyond the noise too.

Noise. Replicates may differ by an offset along the whole cut. Offsets cancel, since every tested contrast sums to zero. The
variance of a contrast is the larger of two estimates. One is from each scale's spread: a pooled spread, unless equal spread is
refuted. The other is between replicates, and stays right for any correlation along a replicate.

Power and false breaks: docs/statistics.md, "Breaks".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.break_models import (
    ALPHA,
    SHAPES,
    Data,
    Floats,
    Grid,
    Strongest,
    critical_value,
    fitted_design,
    grid_of,
    out_of_sample,
    strongest_contrast,
    summary_of,
)
from orchestrator.stats.minimums import MIN_REPLICATES, MIN_SCALES

SUGGESTIVE = 0.2
"""A `p_smooth` between ALPHA and this gives neither the verdict break nor smooth."""

PLACE_CONFIDENCE = 0.99
"""Confidence of the F test that decides which gaps belong to the interval of a break's place. Among curves with the verdict break,
the interval covers 95 %."""

EXCLUDED_JUMP = 0.5
"""A jump as a share of the whole change of the mean. The verdict smooth needs a jump of this size excluded at every gap."""

OUT_OF_SAMPLE_TIE = 1.1
"""Factor by which the leave-one-out error of break models may exceed that of smooth models. Neither kind of model can predict the
scale beside a jump, so their errors tie."""

OUT_OF_SAMPLE_WINS = 0.5
"""Smooth models whose leave-one-out error is at most this share of the break models' give the verdict smooth, for any `p_smooth`."""

NO_MOVEMENT = "nothing moves beyond the noise"
"""Reason for a verdict undecided: no change from a constant mean is significant."""

Verdict = Literal["break", "smooth", "undecided", "missing"]
"""`missing`: the score has no value at any scale."""


class Break(NamedTuple):
    """The verdict on one score along one cut. Fields that do not apply are None; none is ever NaN."""

    verdict: Verdict
    why: str
    """The reason for the verdict, a clause."""
    scales: tuple[float, ...] = ()
    """Distinct log scales with data, ascending."""
    n_replicates: int = 0
    moves: bool = True
    """False: the Davies test finds no change from a constant mean at level ALPHA. The verdict is then undecided."""
    kind: Literal["jump", "hinge"] | None = None
    """The kind of break that fits the means better. Verdict break only."""
    low: float | None = None
    high: float | None = None
    """The break lies between these two log scales (95 %). Verdict break only."""
    p_straight: float | None = None
    """p-value of the Davies test of a break against a straight line."""
    p_smooth: float | None = None
    """The largest p-value of the Davies tests of a break against each smooth family."""


def find_breaks(log_scale: Sequence[float] | Floats, scores: Floats) -> list[Break]:
    """The verdicts on N scores along one cut, in order.

    log_scale (S,): log of the numbers of tasks or of compute. scores (N, R, S): N scores of R replicates, NaN for missing. Scales may
    come in any order. Scores at equal scales are averaged within a replicate. NaN scales are dropped. Raises ValueError for other
    shapes.
    """
    x, Y = np.asarray(log_scale, dtype=float), np.asarray(scores, dtype=float)
    if x.ndim != 1 or Y.ndim != 3 or Y.shape[2] != len(x):
        raise ValueError(f"scores {Y.shape[1:]} do not go with {x.shape} scales: (replicates, scales) is wanted")
    x, Y = merged_scales(x, Y)
    there = np.isfinite(Y)
    patterns: dict[bytes, list[int]] = {}
    for n, pattern in enumerate(there):
        patterns.setdefault(pattern.tobytes(), []).append(n)
    found: dict[int, Break] = {}
    for members in patterns.values():
        mask = there[members[0]]
        rows, columns = mask.any(1), mask.any(0)
        for lo in range(0, len(members), 256):  # blocks that stay in the cache
            block = members[lo : lo + 256]
            part = Y[block][:, rows][:, :, columns]
            found.update(zip(block, _judge(x[columns], part, mask[rows][:, columns]), strict=True))
    return [found[n] for n in range(len(Y))]


def merged_scales(log_scale: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Distinct log scales, ascending, and the scores averaged over equal scales. (S,), (N, R, S) -> (S',), (N, R, S').

    Scales equal to 9 decimals are one. Infinite scores become NaN. Scales that are infinite or NaN are dropped.
    """
    Y = np.where(np.isfinite(scores), scores, np.nan)[..., np.isfinite(log_scale)]
    x = log_scale[np.isfinite(log_scale)]
    _, first, where = np.unique(np.round(x, 9), return_index=True, return_inverse=True)
    x = x[first]
    if len(x) == Y.shape[2]:
        return x, Y[..., np.argsort(where)]
    onto = where[:, None] == np.arange(len(x))  # (columns, S)
    n = np.isfinite(Y) @ onto.astype(float)
    return x, np.where(n > 0, np.nan_to_num(Y) @ onto.astype(float) / np.maximum(n, 1), np.nan)


# --- the verdict


def _judge(x: Floats, Y: Floats, mask: Floats) -> list[Break]:
    """Verdicts on N curves with the same missing values. x (S,): log scales; Y (N, R, S): scores; mask (R, S): True if present."""
    N, (R, S) = len(Y), mask.shape
    if not mask.any():
        return [Break("missing", "nothing was measured")] * N
    data = summary_of(Y, mask)
    scales, few = tuple(x.tolist()), S < MIN_SCALES
    why = (
        f"{S} scale{'' if S == 1 else 's'}, and a break needs {MIN_SCALES}"
        if few
        else "there is no estimate of the noise"
    )
    found = [Break("undecided", why, scales, R)] * N
    low, high = np.where(mask, Y, np.inf).min((1, 2)), np.where(mask, Y, -np.inf).max((1, 2))
    moving = high - low > 1e-12 * np.maximum(np.abs(high), np.abs(low))
    if S >= 4 and data.df:
        grid = grid_of(scales)
        flat = strongest_contrast(np.broadcast_to(grid.line[:1], (N, 1, S)), grid, data)
        straight = strongest_contrast(np.broadcast_to(grid.line, (N, 2, S)), grid, data)
        found = [b._replace(p_straight=float(p)) for b, p in zip(found, straight.p, strict=True)]
        moving &= flat.p < ALPHA
        if not few and moving.any():
            some = np.flatnonzero(moving)
            decided = _decide(grid, data.of(some), straight.p[some], [found[n] for n in some])
            for n, one in zip(some, decided, strict=True):
                found[n] = one
    for n in np.flatnonzero(~moving if S > 1 else []):
        found[n] = found[n]._replace(why=NO_MOVEMENT, moves=False, p_straight=None)
    return found


def _decide(grid: Grid, data: Data, p_straight: Floats, blank: list[Break]) -> list[Break]:
    """Verdicts on the N curves that change by the Davies test and have MIN_SCALES scales or more.

    p_straight (N,). blank: a `Break` of each curve, to be completed.
    """
    N = len(data.means)
    families = [strongest_contrast(np.broadcast_to(grid.cubic, (N, *grid.cubic.shape)), grid, data)]
    families += [strongest_contrast(fitted_design(grid, shape, data.means), grid, data) for shape in SHAPES]
    best = _worst(families)
    unseen = out_of_sample(grid, data)
    no_large_jump = _excludes_large_jumps(best, grid, data)
    p, smooth, broken = best.p, unseen.smooth, unseen.broken
    out = []
    for n, b in enumerate(blank):
        b = b._replace(p_smooth=float(p[n]))
        excluded = bool(no_large_jump[n])
        if max(p[n], p_straight[n]) < ALPHA and broken[n] <= OUT_OF_SAMPLE_TIE * smooth[n]:
            if doubt := unseen.doubt[n]:
                out.append(b._replace(why=doubt))
                continue
            kind, i, j = _place(grid, data, n)
            there = int(data.present[i : j + 1].min())
            if there < MIN_REPLICATES:
                b = b._replace(
                    why=f"it looks like a break, but {there} replicates can look so by chance: a break needs {MIN_REPLICATES}"
                )
            else:
                b = b._replace(
                    verdict="break", why="no smooth curve explains it", kind=kind, low=b.scales[i], high=b.scales[j]
                )
        elif excluded and smooth[n] <= OUT_OF_SAMPLE_WINS * broken[n]:
            b = b._replace(verdict="smooth", why="smooth curves predict unseen scales far better")
        elif p[n] < ALPHA:
            b = b._replace(why="a break fits best, but smooth curves predict unseen scales better")
        elif excluded and p[n] >= SUGGESTIVE and broken[n] > OUT_OF_SAMPLE_WINS * smooth[n]:
            b = b._replace(verdict="smooth", why="no break is needed to explain it")
        else:
            b = b._replace(why="too noisy")
        out.append(b)
    return out


def _worst(families: list[Strongest]) -> Strongest:
    """For each curve, the results of the smooth family with the largest p-value of a break."""
    which = np.argmax([f.p for f in families], axis=0)
    everyone = np.arange(len(which))
    return Strongest(*(np.stack(field)[which, everyone] for field in zip(*families, strict=True)))


def _excludes_large_jumps(best: Strongest, grid: Grid, data: Data) -> Floats:
    """Whether a jump of EXCLUDED_JUMP of the whole change is excluded at every gap.  -> (N,) bool

    The interval of every jump, added to the best smooth curve (`best`), must stay below that size. A steep smooth curve can
    take the place of a jump. So every straight line with such a jump must be rejected, too (F test of its lack of fit).
    """
    S = data.spread.shape[2]
    large = EXCLUDED_JUMP * np.ptp(data.means, axis=1)[:, None]
    jumps = grid.is_jump & best.known
    left = np.maximum(large - np.abs(best.size), 1e-300)
    ratio = np.where(jumps, critical_value(best, 1.0)[:, None] * best.error / left, 0).max(1)
    on_top = jumps.any(1) & (ratio <= 1)
    e, jump = data.means - data.means @ grid.line.T @ grid.line, grid.unlined[grid.is_jump]
    size = e @ jump.T / (jump**2).sum(1)  # (N, K)
    size = np.where(size < 0, -1, 1) * np.maximum(np.abs(size), large)
    misfit = ((e[:, None] - size[..., None] * jump) ** 2 / data.variance[:, None]).sum(-1).min(1)  # F times S - 3
    return on_top & (misfit >= (S - 3) * special.fdtri(S - 3, data.df, 1 - ALPHA))


def _place(grid: Grid, data: Data, n: int) -> tuple[Literal["jump", "hinge"], int, int]:
    """For curve n: the kind of break that fits better, and the indices of the two scales around its place.

    Two separate lines, split at a gap, can be a hinge or a jump. The place spans every gap whose split an F test of two
    parameters does not reject against the best split (PLACE_CONFIDENCE).
    """
    m = data.means[n]
    squares = np.array([((m - m @ q.T @ q) ** 2).sum() for q in grid.halves])
    limit = 2 * float(special.fdtri(2, data.df, PLACE_CONFIDENCE)) * float(data.variance[n].mean())
    near = np.flatnonzero(squares <= squares.min() + limit)
    gain = (grid.unlined @ m) ** 2 / (grid.unlined**2).sum(1)
    kind: Literal["jump", "hinge"] = "jump" if gain[grid.is_jump].max() >= gain[~grid.is_jump].max() else "hinge"
    return kind, int(near[0]), int(near[-1]) + 1


# --- several scores of one skill


class Emergence(NamedTuple):
    """The verdict on one skill along one cut, taken from one of its continuous scores (`weigh`)."""

    verdict: Verdict
    why: str
    """The reason for the verdict, a clause."""
    metrics: dict[str, Break]
    """Name of a score -> its verdict, for all given scores."""
    decisive: str | None = None
    """The score that gives the verdict. None without continuous scores."""
    low: float | None = None
    high: float | None = None
    """The break lies between these two log scales. Verdict break only."""


CONTINUOUS = ("loss", "brier", "expected_accuracy")
"""Scores that change gradually if the probabilities do. The first with data leads (`weigh`)."""


def emergence(log_scale: Sequence[float] | Floats, scores: Mapping[str, Floats]) -> Emergence:
    """The verdict on a skill's emergence along one cut.

    log_scale (S,): log of the numbers of tasks or of compute. scores: name -> (R, S) with NaN for missing.
    `loss` (nats per token), `brier` and `expected_accuracy` (mean probability of the right token) are continuous and decide.
    `accuracy` (greedy, per token) and `exact_match` (whole sequences) are discrete and decide nothing. Such a threshold can jump
    although the probabilities move gradually (Schaeffer et al. 2023, arXiv 2304.15004). Raises ValueError for unequal shapes.
    docs/statistics.md, "Breaks".
    """
    given = {name: np.asarray(y, dtype=float) for name, y in scores.items()}
    if len({y.shape for y in given.values()}) > 1:
        raise ValueError(f"scores of different shapes: { {name: y.shape for name, y in given.items()} }")
    if not given:
        return weigh({})
    return weigh(dict(zip(given, find_breaks(log_scale, np.stack(list(given.values()))), strict=True)))


def weigh(metrics: dict[str, Break]) -> Emergence:
    """The verdict over several scores. metrics: name of a score -> its verdict.

    The first of CONTINUOUS with data leads and gives the verdict. If it changes by no more than its noise, the next continuous
    score that changes gives it. The verdict is undecided if the leading score breaks and no other does, or if another one
    breaks and the leading one does not. Discrete scores have no say.
    """
    known = {name: found for name, found in metrics.items() if found.verdict != "missing"}
    continuous = {name: known[name] for name in CONTINUOUS if name in known}
    if not known:
        return Emergence("missing", "nothing was measured", metrics)
    if not continuous:
        return Emergence("undecided", "there is no continuous score", metrics)
    (first, lead), *others = continuous.items()
    breaking = [found.verdict == "break" for _, found in others]
    calm = [found.verdict == "smooth" or not found.moves for _, found in others]
    disagree = all(calm) and bool(calm) if lead.verdict == "break" else any(breaking)
    if disagree and (lead.verdict != "undecided" or not lead.moves):
        return Emergence("undecided", "the continuous scores disagree", metrics, first)
    decisive = next((name for name, found in continuous.items() if found.moves), first)
    found = continuous[decisive]
    return Emergence(found.verdict, found.why, metrics, decisive, found.low, found.high)
