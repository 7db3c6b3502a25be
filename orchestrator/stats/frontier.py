"""The best model size for a budget: parabolas of loss at equal compute. docs/statistics.md, "Best model size".

Nothing is assumed of the law's form. Each budget needs at least three sizes. Sizes are parameters, tokens are training tokens,
compute is FLOPs, logs are natural.
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
WINDOW = 16.0
"""Largest factor between a size and the best measured one. A parabola is a local approximation."""
ASYMMETRY = 0.1
"""Largest |alpha - beta| allowed for. Let a parabola be fitted over +-h in log N to a curve of loss at equal compute. Its vertex lies
off the minimum by (alpha - beta) h^2 / 10, since the third derivative over the second is beta - alpha. Published: .06 (Hoffmann et
al. 2022, arXiv 2203.15556), -.02 (Besiroglu et al. 2024, arXiv 2404.10102). See also Xu et al. 2026, arXiv 2603.22339."""
SAME_BUDGET = 0.02
"""Budgets closer than this share are one budget."""


# --- parabolas at equal compute ----------------------------------------------------------------------------------------


class Isoflop(NamedTuple):
    """One budget: the size with the lowest loss, or the reason for naming none."""

    compute: float
    verdict: Literal["minimum", "beyond", "below", "unclear", "missing"]
    """`beyond` / `below`: the best size is the last / first measured. `unclear`: the best measured size is inside, and the
    parabola has no minimum there (flat or noisy). `missing`: fewer than three sizes."""
    n_optimal: float | None = None
    """Parameters. None without a minimum."""
    low: float | None = None
    high: float | None = None
    """Interval. An end outside the measured sizes is open (None). Both are None if the noise is unknown."""
    tokens_per_parameter: float | None = None
    """At the optimum. Tokens are interpolated between the measured sizes."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    """Tokens per parameter at the ends of the interval of the size. Open if that end is."""
    at_least: float | None = None
    at_most: float | None = None
    """If the best measured size is the last (first), the optimum is not below the last but one (not above the second). Assumes one minimum."""
    sizes: tuple[float, ...] = ()
    """Measured, ascending."""
    log_error: float | None = None
    """Standard error of log n_optimal, first order."""
    shape_error: float = 0.0
    """Bound of the parabola's own error, in log n_optimal. Part of the interval."""


class Isoflops(NamedTuple):
    """All budgets, and N_opt = coefficient * C^exponent. `reason` is set if there is no exponent."""

    budgets: tuple[Isoflop, ...]
    exponent: float | None
    low: float | None
    high: float | None
    coefficient: float | None
    reason: str | None


class _Parabola(NamedTuple):
    """Loss in log size, centred: coefficients, their covariance over the noise variance, and the noise."""

    centre: float
    b: np.ndarray  # (3,)
    V: np.ndarray  # (3, 3)
    squares: float
    dof: int
    half_width: float
    mean_loss: float

    @property
    def vertex(self) -> float:
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

    All (T,), one entry a trial. `loss` is NaN for a trial without one. `replicate`: an id that trials of different sizes share, with
    their training tasks. Each replicate then has its own offset. The interval of a minimum is Fieller's (1954), a ratio of normal
    coefficients, widened by the parabola's own error (`ASYMMETRY`). With fewer than four degrees of freedom the noise is pooled over
    budgets, relative to loss. The exponent is the weighted slope of log N_opt on log C, its interval by Student's t. Trials along
    one trunk are not independent. That shifts neighbouring budgets alike and makes the interval too wide, never too narrow.
    Raises ValueError for lengths that differ, and for sizes, tokens or budgets that are not positive.
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
    names = {name: k for k, name in enumerate(dict.fromkeys(labels))}
    return np.array([names[label] for label in labels], dtype=int)


def _check(N: np.ndarray, D: np.ndarray, L: np.ndarray, *more: np.ndarray) -> None:
    if any(a.ndim != 1 or len(a) != len(N) for a in (N, D, L, *more)):
        raise ValueError(f"one entry a trial is needed, not {[a.shape for a in (N, D, L, *more)]}")
    if any((a <= 0).any() or not np.isfinite(a).all() for a in (N, D, *more[:1])):
        raise ValueError("sizes, tokens and budgets must be positive")


def _budgets(compute: np.ndarray) -> dict[float, np.ndarray]:
    """Rows of each budget, ascending. Budgets within 2 % of their neighbour are one, known by its first value."""
    order = compute.argsort(kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(compute[order])) > SAME_BUDGET) + 1
    return {float(compute[rows[0]]): rows for rows in np.split(order, cuts) if len(rows)}


def _parabola(N: np.ndarray, L: np.ndarray, who: np.ndarray) -> _Parabola | None:
    """Fit of one budget around its best size (WINDOW). None with fewer than three sizes."""
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
    """Sizes ascending, and the mean loss at each."""
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
    """The result of one budget."""
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
        return seen._replace(verdict="beyond", at_least=float(sizes[-2]))
    if best == 0:
        return seen._replace(verdict="below", at_most=float(sizes[1]))
    x = fit.vertex
    if fit.b[2] <= 0 or not math.log(sizes[0]) <= x + fit.centre <= math.log(sizes[-1]):
        return seen._replace(verdict="unclear")
    low, high = (None, None) if variance is None else _fieller(fit, variance, dof, confidence)
    low = low if low is not None and low >= sizes[0] else None
    high = high if high is not None and high <= sizes[-1] else None
    optimal = math.exp(x + fit.centre)
    log_sizes, log_tokens = _means(np.log(N[there]), np.log(D[there]))

    def tokens(size: float) -> float:
        return math.exp(float(np.interp(math.log(size), log_sizes, log_tokens)))

    gradient = np.array([0.0, 1.0, 2 * x])
    error = None if variance is None else math.sqrt(variance * float(gradient @ fit.V @ gradient)) / (2 * fit.b[2])
    return seen._replace(
        verdict="minimum",
        n_optimal=optimal,
        low=low,
        high=high,
        tokens_per_parameter=tokens(optimal) / optimal,
        ratio_low=tokens(high) / high if high is not None else None,
        ratio_high=tokens(low) / low if low is not None else None,
        log_error=error,
        shape_error=_shape_error(fit),
    )


def _fieller(fit: _Parabola, variance: float, dof: int, confidence: float) -> tuple[float | None, float | None]:
    """All vertices x at which b1 + 2 b2 x is not distinguishable from 0 (Fieller 1954), widened by the parabola's own error."""
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
    return ASYMMETRY * fit.half_width**2 / 10


def _exponent(budgets: tuple[Isoflop, ...], dof: int, confidence: float) -> Isoflops:
    """Weighted slope of log N_opt on log C, over the budgets with a minimum."""
    used = [b for b in budgets if b.n_optimal is not None]
    if len(used) < 2:
        reason = f"{len(used)} of {len(budgets)} budgets bracket a minimum, 2 needed"
        return Isoflops(budgets, None, None, None, None, reason)
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
    return Isoflops(budgets, slope, low, high, math.exp(level - slope * centre), None)
