"""The best model size for a budget: parabolas of loss at equal compute. docs/statistics.md, "Best model size".

No form of the law of loss in size and compute is assumed. Each budget needs at least three sizes. Sizes are parameters, tokens
are training tokens, compute is FLOPs, loss is in nats, logs are natural.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # not scipy.stats or scipy.optimize: they take half a second to import

from orchestrator.stats.minimums import MODEL_SIZE

MIN_SIZES = MODEL_SIZE.scales
"""Least sizes for a parabola."""
WINDOW = 16.0
"""Sizes further than this factor from the size with the lowest loss are left out of the fit: a parabola is a local approximation."""
ASYMMETRY = 0.1
"""Largest |alpha - beta| allowed for, with loss falling as N^-alpha in size and D^-beta in tokens. Let a parabola be fitted over
+-h in log N to a curve of loss at equal compute. Its vertex lies off the minimum by (alpha - beta) h^2 / 10, since the third
derivative over the second is beta - alpha. Published: .06 (Hoffmann et al. 2022, arXiv 2203.15556), -.02 (Besiroglu et al. 2024,
arXiv 2404.10102). See also Xu et al. 2026, arXiv 2603.22339."""
SAME_BUDGET = 0.02
"""Neighbouring budgets that differ by less than this in log FLOPs count as one budget."""


# --- parabolas at equal compute ----------------------------------------------------------------------------------------


class Isoflop(NamedTuple):
    """One budget: the model size with the lowest loss, or the reason for naming none."""

    compute: float
    """The budget in FLOPs."""
    verdict: Literal["minimum", "beyond", "below", "unclear", "missing"]
    """`minimum`: the parabola has its minimum within the sizes. `beyond` / `below`: the largest / smallest size has the lowest
    mean loss, so the best size may lie outside. `unclear`: a size between has the lowest loss, and the parabola has no
    minimum there (flat or noisy). `missing`: fewer than three sizes."""
    n_optimal: float | None = None
    """Parameters at the parabola's minimum. None without a minimum."""
    low: float | None = None
    high: float | None = None
    """Interval of `n_optimal`. An end outside the sizes of the trials is open (None). Both ends are None if the trials leave no
    degree of freedom for the variance of the loss."""
    tokens_per_parameter: float | None = None
    """Training tokens per parameter at `n_optimal`. Tokens are interpolated between the sizes of the trials."""
    sizes: tuple[float, ...] = ()
    """Sizes of the trials with a loss, in parameters, ascending."""
    log_error: float | None = None
    """Standard error of log n_optimal, by the delta method."""
    shape_error: float = 0.0
    """Largest error of log n_optimal because the true curve is no parabola (ASYMMETRY). Part of the interval."""


class Isoflops(NamedTuple):
    """The best size at each budget, and its growth N_opt ~ C^exponent with N in parameters and C in FLOPs."""

    budgets: tuple[Isoflop, ...]
    """One for each budget, ascending."""
    exponent: float | None
    """None with fewer than two budgets of verdict `minimum`."""
    low: float | None
    high: float | None
    """Interval of the exponent."""


class _Parabola(NamedTuple):
    """Least-squares fit: loss = b[0] + b[1] z + b[2] z^2, with z = log size - centre."""

    centre: float
    """Mean log size of the fitted trials."""
    b: np.ndarray  # (3,)
    V: np.ndarray  # (3, 3)
    """Covariance of b, divided by the variance of one loss."""
    squares: float
    """Sum of squared residuals."""
    dof: int
    """Degrees of freedom of `squares`."""
    half_width: float
    """Half of the range of the fitted log sizes."""
    mean_loss: float

    @property
    def vertex(self) -> float:
        """z at the extremum of the parabola."""
        return float(-self.b[1] / (2 * self.b[2]))


def isoflop(
    n_parameters: ArrayLike,
    n_tokens: ArrayLike,
    loss: ArrayLike,
    compute: ArrayLike,
    replicate: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Isoflops:
    """At each budget a parabola of loss in log N (Hoffmann et al. 2022, approach 2); over budgets the exponent of N_opt.

    n_parameters, n_tokens, loss, compute, replicate: (T,), one entry a trial. `loss` is NaN for a trial without a loss. `replicate`:
    the same id for trials of different sizes on the same training tasks. Each replicate then has its own offset in loss. The
    interval of a minimum is Fieller's (1954), for a ratio of normal coefficients, widened by the parabola's own error
    (`ASYMMETRY`). With fewer than four degrees of freedom at a budget, the relative variance of the loss is pooled over budgets.
    The exponent is the weighted slope of log N_opt on log C, its interval by Student's t. Budgets of one trunk are not
    independent trials. That shifts neighbouring budgets alike and makes the interval too wide, never too narrow. Raises
    ValueError for lengths that differ, and for sizes, tokens or budgets that are not positive and finite.
    """
    N, D, L, C = (np.asarray(a, dtype=float) for a in (n_parameters, n_tokens, loss, compute))
    who = np.zeros(len(N), dtype=int) if replicate is None else _codes(replicate)
    _check(N, D, L, C, who)
    groups = _budgets(C)
    fits = {at: _parabola(N[rows], L[rows], who[rows]) for at, rows in groups.items()}
    dof = sum(f.dof for f in fits.values() if f is not None)
    pooled = sum(f.squares / f.mean_loss**2 for f in fits.values() if f is not None) / dof if dof else None
    found = tuple(_judge(at, N[r], D[r], L[r], fits[at], pooled, dof, confidence) for at, r in groups.items())
    return _exponent(found, dof, confidence)


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels as integers, numbered in the order in which they first appear."""
    names = {name: k for k, name in enumerate(dict.fromkeys(labels))}
    return np.array([names[label] for label in labels], dtype=int)


def _check(N: np.ndarray, D: np.ndarray, L: np.ndarray, *more: np.ndarray) -> None:
    """Raise ValueError for unequal lengths, or values of N, D or the budgets that are not positive and finite."""
    if any(a.ndim != 1 or len(a) != len(N) for a in (N, D, L, *more)):
        raise ValueError(f"one entry a trial is needed, not {[a.shape for a in (N, D, L, *more)]}")
    if any((a <= 0).any() or not np.isfinite(a).all() for a in (N, D, *more[:1])):
        raise ValueError("sizes, tokens and budgets must be positive")


def _budgets(compute: np.ndarray) -> dict[float, np.ndarray]:
    """Budget in FLOPs -> indices of its trials, ascending. Neighbours within SAME_BUDGET are one budget, with the smallest's value."""
    order = compute.argsort(kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(compute[order])) > SAME_BUDGET) + 1
    return {float(compute[rows[0]]): rows for rows in np.split(order, cuts) if len(rows)}


def _parabola(N: np.ndarray, L: np.ndarray, who: np.ndarray) -> _Parabola | None:
    """Fit to the trials of one budget, around the size with the lowest mean loss (WINDOW). None with fewer than three sizes.

    N: sizes, L: losses, who: codes of the replicates, all (T,).
    """
    there = np.isfinite(L)
    N, L, who = N[there], L[there], who[there]
    sizes, means = _means(N, L)
    if len(sizes) < MIN_SIZES:
        return None
    best = min(max(int(means.argmin()), 1), len(sizes) - 2)  # at the edge, keep a third size
    near = np.abs(np.log(sizes / sizes[means.argmin()])) <= math.log(WINDOW) * (1 + 1e-9)
    near[best - 1 : best + 2] = True
    keep = near[np.searchsorted(sizes, N)]
    z, y, who = np.log(N[keep]), L[keep], who[keep]
    centre = float(z.mean())
    z = z - centre
    present, codes = np.unique(who, return_inverse=True)
    offsets = np.eye(len(present))[codes][:, 1:]
    X = np.concatenate([np.stack([np.ones_like(z), z, z * z], 1), offsets], 1)
    if np.linalg.matrix_rank(X) < X.shape[1]:  # a replicate with one size, apart from all others
        X = X[:, :3]
    V = np.linalg.inv(X.T @ X)
    b = V @ X.T @ y
    rest = y - X @ b
    dof = len(y) - X.shape[1]
    b[0] = y.mean() - b[1] * z.mean() - b[2] * (z * z).mean()  # the mean replicate's
    return _Parabola(centre, b[:3], V[:3, :3], float(rest @ rest), dof, float(np.ptp(z)) / 2, float(y.mean()))


def _means(N: np.ndarray, L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of N, ascending, and the mean of L at each. N and L are (T,)."""
    sizes, at = np.unique(N, return_inverse=True)
    return sizes, np.bincount(at, L) / np.bincount(at)


def _judge(
    compute: float,
    N: np.ndarray,
    D: np.ndarray,
    L: np.ndarray,
    fit: _Parabola | None,
    pooled: float | None,
    pooled_dof: int,
    confidence: float,
) -> Isoflop:
    """The verdict on one budget. N sizes, D tokens, L losses (T,); `pooled` the relative variance of a loss over all budgets."""
    there = np.isfinite(L)
    sizes, means = _means(N[there], L[there])
    seen = Isoflop(compute, "missing", sizes=tuple(map(float, sizes)))
    if fit is None:
        return seen
    variance, dof = (fit.squares / fit.dof, fit.dof) if fit.dof >= 4 else (None, pooled_dof)
    if variance is None and pooled is not None:
        variance = pooled * fit.mean_loss**2
    best = int(means.argmin())
    if best == len(sizes) - 1:
        return seen._replace(verdict="beyond")
    if best == 0:
        return seen._replace(verdict="below")
    x = fit.vertex
    if fit.b[2] <= 0 or not math.log(sizes[0]) <= x + fit.centre <= math.log(sizes[-1]):
        return seen._replace(verdict="unclear")
    low, high = (None, None) if variance is None else _fieller(fit, variance, dof, confidence)
    low = low if low is not None and low >= sizes[0] else None
    high = high if high is not None and high <= sizes[-1] else None
    optimal = math.exp(x + fit.centre)
    tokens = math.exp(float(np.interp(x + fit.centre, *_means(np.log(N[there]), np.log(D[there])))))
    gradient = np.array([0.0, 1.0, 2 * x])
    error = None if variance is None else math.sqrt(variance * float(gradient @ fit.V @ gradient)) / (2 * fit.b[2])
    return seen._replace(
        verdict="minimum",
        n_optimal=optimal,
        low=low,
        high=high,
        tokens_per_parameter=tokens / optimal,
        log_error=error,
        shape_error=_shape_error(fit),
    )


def _fieller(fit: _Parabola, variance: float, dof: int, confidence: float) -> tuple[float | None, float | None]:
    """Interval of the minimum in parameters: all z with b[1] + 2 b[2] z = 0 not rejected by a t-test (Fieller 1954).

    Widened by the parabola's own error. Both ends None if b[2] = 0 is not rejected. variance: of one loss, with `dof`.
    """
    t2 = float(special.stdtrit(dof, 0.5 + confidence / 2)) ** 2 * variance
    a = 4 * (fit.b[2] ** 2 - t2 * fit.V[2, 2])
    half_b = 2 * (fit.b[1] * fit.b[2] - t2 * fit.V[1, 2])
    c = fit.b[1] ** 2 - t2 * fit.V[1, 1]
    if a <= 0:  # curvature is not distinguishable from none: any size may be the best
        return None, None
    root = math.sqrt(max(half_b**2 - a * c, 0.0))
    own = _shape_error(fit)
    return math.exp(fit.centre + (-half_b - root) / a - own), math.exp(fit.centre + (-half_b + root) / a + own)


def _shape_error(fit: _Parabola) -> float:
    """Largest error of log n_optimal because the true curve is no parabola (ASYMMETRY)."""
    return ASYMMETRY * fit.half_width**2 / 10


def _exponent(budgets: tuple[Isoflop, ...], dof: int, confidence: float) -> Isoflops:
    """Weighted slope of log N_opt on log C, over the budgets with a minimum. `dof`: degrees of freedom of all parabolas."""
    used = [b for b in budgets if b.n_optimal is not None]
    if len(used) < 2:
        return Isoflops(budgets, None, None, None)
    x = np.log([b.compute for b in used])
    y = np.log([b.n_optimal for b in used if b.n_optimal is not None])
    errors = np.array([b.log_error if b.log_error is not None else 1.0 for b in used])
    w = 1 / np.maximum(errors, 1e-9) ** 2
    centre, level = np.average(x, weights=w), np.average(y, weights=w)
    spread = float(w @ (x - centre) ** 2)
    slope = float(w @ ((x - centre) * (y - level))) / spread
    low = high = None
    if dof and all(b.log_error is not None for b in used):
        left = float(w @ (y - level - slope * (x - centre)) ** 2)  # chi-square on len(used) - 2 if the law holds
        total = dof + len(used) - 2
        error = math.sqrt((dof + left) / total / spread)
        # If the sizes lie differently about the minimum, the parabola is off differently: by half its error (measured).
        own = 0.5 * float(np.mean([b.shape_error for b in used])) / float(np.ptp(x))
        half = float(special.stdtrit(total, 0.5 + confidence / 2)) * error + own
        low, high = slope - half, slope + half
    return Isoflops(budgets, slope, low, high)
