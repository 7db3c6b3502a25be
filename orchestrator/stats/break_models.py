"""Curves and tests behind `breaks.py`: smooth families, hinges and jumps on a grid, Davies tests, leave-one-out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.minimums import MIN_SCALES

SMOOTH_STEPS = 2.0
"""10-90 % of a smooth transition take this many grid steps or more. Three would be the natural definition. The step between is a
margin: it keeps noisy transitions three steps wide from being called breaks."""

ALPHA = 0.05

EQUAL_SPREAD_ALPHA = 0.1
"""Each scale keeps its own variance if equal spread is refuted at this level, as with bimodal cells beside steady ones."""

FLOOR = 0.002
"""Least noise of a mean, in shares of the change. No smooth family is exact to the last digit."""

CENTRE_STEP = 0.25
WIDTH_RATIO = 1.35
HINGES_A_GAP = 2
"""Fineness of the grid before refinement: centres (grid steps), widths (ratio), hinges."""


ONE_ODD = "without one odd scale a smooth curve would do"
NOTHING_FITS = "neither a smooth curve nor a single break describes it"

Floats = np.ndarray


# --- means, and their noise


class Data(NamedTuple):
    """Means and noise of N curves (S scales, R replicates)."""

    means: Floats  # (N, S), offsets removed
    variance: Floats  # (N, S) of the means
    own: Floats  # (N, S) does a scale's variance stand for itself, or is it the pooled one?
    present: Floats  # (S,) replicates at each scale
    df_own: Floats  # (S,)
    df: int
    pooled: Floats  # (N,) of one replicate at one scale
    spread: Floats  # (N, R, S) residual over count: the variance of a contrast is the sum of the squares of its own

    def of(self, some: Floats) -> Data:
        return self._replace(**{k: getattr(self, k)[some] for k in ("means", "variance", "own", "pooled", "spread")})


def summary_of(Y: Floats, mask: Floats) -> Data:
    """Fit scale + offset of the replicate by least squares. The residual is noise.  Y (N, R, S), mask (R, S)."""
    R, S = mask.shape
    count = mask.sum(0)
    if mask.all():
        m = Y.mean(1)
        E = Y - m[:, None] - Y.mean(2, keepdims=True) + Y.mean((1, 2), keepdims=True)
        df = (R - 1) * (S - 1)
    else:
        r, s = np.nonzero(mask)
        design = np.concatenate([np.eye(S)[s], np.eye(R)[r]], 1)  # (cells, S + R)
        y = Y[:, r, s]
        fit = y @ np.linalg.pinv(design).T
        E = np.zeros_like(Y)
        E[:, r, s] = y - fit @ design.T
        offsets = fit[:, S:]
        m = fit[:, :S] + offsets.mean(1, keepdims=True)  # as if every replicate had been everywhere
        df = len(r) - int(np.linalg.matrix_rank(design))
    squares = (E**2).sum(1)  # (N, S)
    df_own = np.maximum(count - 1, 0) * (S - 1) / S
    floor = R * np.maximum(FLOOR * np.ptp(m, axis=1), np.maximum(1e-9 * np.abs(m).max(1), 1e-100)) ** 2
    pooled = squares.sum(1) / max(df, 1)
    calm = np.maximum(pooled, floor)[:, None]
    own = np.where(df_own > 0, squares / np.maximum(df_own, 1e-9), 0)
    # Equal spread is refuted if one scale's share of the squares is too large (beta; Bonferroni over the scales).
    share = squares / np.maximum(squares.sum(1, keepdims=True), 1e-300)
    a, b = df_own / 2, (df_own.sum() - df_own) / 2
    tail = 1 - special.betainc(np.maximum(a, 1e-9), np.maximum(b, 1e-9), np.clip(share, 0, 1))
    unequal = np.where(a > 0, tail, 1.0).min(1) * S < EQUAL_SPREAD_ALPHA
    stands = unequal[:, None] & (own > calm)
    variance = np.where(stands, own, calm) / np.maximum(count, 1)
    return Data(m, variance, stands, count, df_own, df, pooled, E / np.maximum(count, 1))


# --- the Davies test


class Strongest(NamedTuple):
    """The strongest of K breaks on top of a design, for N curves."""

    p: Floats  # (N,) Davies' bound
    top: Floats  # (N,) the largest |t|
    df: Floats  # (N,) of it
    angle: Floats  # (N, K - 1) between neighbouring candidates; inf where a new chain starts
    size: Floats  # (N, K) estimated size of each break
    error: Floats  # (N, K) standard error of it
    known: Floats  # (N, K) is it distinguishable from the design?


def strongest_contrast(design: Floats, grid: Grid, data: Data) -> Strongest:
    """t of every break added to an orthonormal design (N, p, S), and the p-value of the largest."""
    D = grid.breaks  # (K, S)
    rest = D - np.matmul(np.matmul(D, design.transpose(0, 2, 1)), design)  # (N, K, S)
    square = (rest**2).sum(-1)
    known = square > 0.01 * (grid.unlined**2).sum(1)  # less than that is left: the design imitates this break
    dot = np.matmul(rest, data.means[..., None])[..., 0]
    parts = rest**2 * data.variance[:, None]
    within, shared = parts.sum(-1), (parts * ~data.own[:, None]).sum(-1)
    own = (parts**2 * data.own[:, None] / np.maximum(data.df_own, 1e-9)).sum(-1)
    df = within**2 / np.maximum(own + shared**2 / data.df, 1e-300)  # Satterthwaite
    R = data.spread.shape[1]
    between = (np.matmul(rest, data.spread.transpose(0, 2, 1)) ** 2).sum(-1) * (R / max(R - 1, 1))
    variance = np.maximum(np.maximum(within, between), 1e-300)
    t = np.where(known, np.abs(dot) / np.sqrt(variance), 0)
    best = (np.arange(len(t)), t.argmax(1))
    scaled = rest * np.sqrt(data.variance)[:, None]
    scaled /= np.maximum(np.linalg.norm(scaled, axis=-1, keepdims=True), 1e-300)
    angle = np.arccos(np.clip(np.abs((scaled[:, 1:] * scaled[:, :-1]).sum(-1)), 0, 1))
    angle = np.where(grid.is_jump[1:] == grid.is_jump[:-1], angle, np.inf)
    angle = np.where(known[:, :-1], angle, np.inf)
    angle = np.where(known[:, 1:], angle, 0)
    square = np.maximum(square, 1e-300)
    df_best = np.maximum(df[best], 1)
    p = _bound(t[best], df_best, angle)
    return Strongest(p, t[best], df_best, angle, dot / square, np.sqrt(variance / square), known)


def _bound(top: Floats, df: Floats, angle: Floats) -> Floats:
    """Upper bound of P(largest |t| along a path of breaks > `top`). Shapes (N,), (N,), (N, K - 1).

    Davies' bound for the linear model is the tail at the start plus a term for each stretch of the path. The term is the length of
    the stretch on the unit sphere times (1 + top^2 / df)^(-(df - 1) / 2) / pi (Hotelling 1939; Davies 2002). A hinge that moves
    between two neighbouring scales follows a great circle, so lengths are sums of angles, exactly. No more than K breaks are
    tried, so none needs more than a tail of its own (Bonferroni). That is less for distant neighbours, as jumps are.
    """
    tail = 2 * special.stdtr(df, -top)
    arc = np.maximum((1 + top**2 / df) ** (-(df - 1) / 2) / math.pi, 1e-300)
    return np.minimum(1.0, tail + np.minimum(angle * arc[:, None], tail[:, None]).sum(1))


def critical_value(best: Strongest, df_times: Floats | float) -> Floats:
    """The |t| at which the bound is ALPHA, with df_times the degrees of freedom.  (N,)"""
    low, high = np.zeros(len(best.top)), np.full(len(best.top), 5.0)  # in log
    for _ in range(14):
        middle = (low + high) / 2
        beyond = _bound(np.exp(middle), best.df * df_times, best.angle) <= ALPHA
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.exp(high)


# --- smooth curves


SHAPES = ("logistic", "early", "late", "bend")
"""Transitions: even, exp(-exp(-z)), 1 - exp(-exp(z)). The bend log(1 + exp(z)) has the logistic as its slope."""

_TEN_TO_NINETY = {
    "logistic": 2 * math.log(9),
    "early": math.log(math.log(10) / -math.log(0.9)),
    "late": math.log(math.log(10) / -math.log(0.9)),
    "bend": 2 * math.log(9),
}


def _curve(shape: str, z: Floats) -> tuple[Floats, Floats]:
    """The shape at z and its slope."""
    if shape == "logistic":
        f = special.expit(z)
        return f, f * (1 - f)
    if shape == "bend":
        return np.logaddexp(0, z), special.expit(z)
    if shape == "late":
        e = np.exp(np.minimum(z, 20.0))
        return -np.expm1(-e), e * np.exp(-e)
    e = np.exp(np.minimum(-z, 20.0))
    return np.exp(-e), e * np.exp(-e)


class Grid(NamedTuple):
    """Designs that depend on the scales alone. Positions u are in mean grid steps."""

    u: Floats  # (S,)
    line: Floats  # (2, S) orthonormal
    cubic: Floats  # (4, S) orthonormal; its first rows span the lower degrees
    theta: dict[str, Floats]  # shape -> (T, 2): centre, 10-90 % width
    unit: dict[str, Floats]  # shape -> (T, S): the curve, less its straight line, of norm 1
    breaks: Floats  # (K, S): jumps, then hinges in order
    is_jump: Floats  # (K,)
    unlined: Floats  # (K, S): breaks, less their straight line
    halves: tuple[Floats, ...]  # for every gap the orthonormal pair of lines split there

    def narrowest(self, centre: Floats) -> Floats:
        """The least width that is still smooth at a centre: SMOOTH_STEPS of the gaps around."""
        return SMOOTH_STEPS * np.interp(centre, (self.u[1:] + self.u[:-1]) / 2, np.diff(self.u))


_grids: dict[tuple[float, ...], Grid] = {}
"""Cache. A study has few cuts and many skills, and building a grid takes longer than using it."""


def grid_of(scales: tuple[float, ...]) -> Grid:
    """The designs for these scales, cached."""
    if scales not in _grids:
        if len(_grids) >= 64:
            _grids.clear()
        _grids[scales] = _new_grid(scales)
    return _grids[scales]


def _new_grid(scales: tuple[float, ...]) -> Grid:
    x = np.array(scales)
    S = len(x)
    u = (x - x[0]) / (x[-1] - x[0]) * (S - 1)
    left = np.arange(S) < np.arange(1, S)[:, None]  # (S - 1, S): left of each gap
    v = 2 * u / u[-1] - 1
    line = _orthonormal([np.ones(S), v])
    jumps = ~left[1:-1]  # at least two scales on either side
    knots = np.interp(np.arange(0, S - 3, 1 / HINGES_A_GAP), np.arange(S - 2), u[1:-1])
    hinges = np.maximum(u - np.append(knots, u[-2])[:, None], 0)
    breaks = np.concatenate([jumps.astype(float), hinges])
    bare = Grid(
        u=u, line=line, cubic=_orthonormal([v**k for k in range(4)]), theta={}, unit={}, breaks=breaks,
        is_jump=np.arange(len(breaks)) < len(jumps), unlined=breaks - breaks @ line.T @ line,
        halves=tuple(_orthonormal([a * 1.0, ~a * 1.0, a * u, ~a * u]) for a in left),
    )  # fmt: skip
    for shape in SHAPES if S >= MIN_SCALES else ():
        theta = _thetas(bare)
        curves, _ = _curve(shape, (u - theta[:, :1]) * _TEN_TO_NINETY[shape] / theta[:, 1:])
        rest = curves - curves @ line.T @ line
        norm = np.linalg.norm(rest, axis=1)
        some = norm > 1e-6
        bare.theta[shape], bare.unit[shape] = theta[some], rest[some] / norm[some, None]
    return bare


def _thetas(grid: Grid) -> Floats:
    """Centres and widths to try, (T, 2). Some centres lie well outside: the tail of a transition is a power law."""
    found = []
    width, u = SMOOTH_STEPS * float(np.diff(grid.u).min()), grid.u
    while width < 4 * u[-1]:
        fine, coarse = max(CENTRE_STEP, width / 20), width / 4
        outside = np.arange(1, 7) * coarse
        centres = np.concatenate([u[0] - outside, np.arange(u[0], u[-1] + fine, fine), u[-1] + outside])
        centres = centres[width >= 0.999 * grid.narrowest(centres)]
        found.append(np.stack([centres, np.full(len(centres), width)], 1))
        width *= WIDTH_RATIO
    return np.concatenate(found)


def _orthonormal(columns: list[Floats]) -> Floats:
    """Gram-Schmidt, twice. Columns that add nothing are left out.  -> (p, S)"""
    found: list[Floats] = []
    for column in columns:
        rest = column
        for _ in range(2):
            for q in found:
                rest = rest - (rest @ q) * q
        norm = np.linalg.norm(rest)
        if norm > 1e-9 * max(float(np.linalg.norm(column)), 1e-300):
            found.append(rest / norm)
    return np.array(found)


def fitted_design(grid: Grid, shape: str, m: Floats) -> Floats:
    """Orthonormal designs (N, 5, S): line, the best curve of the shape, and its tangents in centre and width.

    Variable projection: for given centre and width the fit is linear. So the best pair is the one whose curve, less its line, has the
    largest dot product with the means. The search runs over the whole grid, then over two finer ones around the best. The tangents
    correct for the steps of the grid and for the estimation of centre and width. At the least width its tangent is left out.
    """
    N, everyone = len(m), np.arange(len(m))
    best = grid.theta[shape][np.argmax((m @ grid.unit[shape].T) ** 2, axis=1)]  # (N, 2)
    step, ratio, around = np.maximum(CENTRE_STEP, best[:, 1] / 20), math.log(WIDTH_RATIO), np.linspace(-1, 1, 5)
    for shrink in (1, 3):
        centre = best[:, 0, None, None] + step[:, None, None] / shrink * around[:, None] + 0 * around
        width = best[:, 1, None, None] * np.exp(ratio / shrink * around) + 0 * centre
        width = np.maximum(width, grid.narrowest(centre))
        centre, width = centre.reshape(N, -1), width.reshape(N, -1)
        curve, _ = _curve(shape, (grid.u - centre[..., None]) * _TEN_TO_NINETY[shape] / width[..., None])
        rest = curve - curve @ grid.line.T @ grid.line
        square = (rest**2).sum(-1)
        fit = np.where(square > 1e-10, np.matmul(rest, m[..., None])[..., 0] ** 2 / np.maximum(square, 1e-10), -1)
        k = fit.argmax(1)
        best = np.stack([centre[everyone, k], width[everyone, k]], 1)
    z = (grid.u - best[:, :1]) * _TEN_TO_NINETY[shape] / best[:, 1:]
    curve, slope = _curve(shape, z)
    free = best[:, 1] > 1.02 * grid.narrowest(best[:, 0])
    design = [np.broadcast_to(q, curve.shape) for q in grid.line]
    for column in (curve, slope, z * slope * free[:, None]):
        rest = column
        for _ in range(2):
            for q in design:
                rest = rest - (rest * q).sum(1, keepdims=True) * q
        norm = np.linalg.norm(rest, axis=1, keepdims=True)
        some = norm > np.maximum(1e-4 * np.linalg.norm(column, axis=1, keepdims=True), 1e-9)
        design.append(np.where(some, rest / np.where(some, norm, 1), 0))
    return np.stack(design, 1)


# --- out of sample, and where


class _Unseen(NamedTuple):
    smooth: Floats  # (N,) root mean squared error at the scale left out: the better smooth model
    broken: Floats  # (N,) the better break model
    doubt: list[str]  # why the curve is no break all the same; "" without a reason


def out_of_sample(grid: Grid, data: Data) -> _Unseen:
    """Leave one scale out: errors of smooth models (polynomials, logistic on a slope) and break models (jump, hinge, two lines).

    A model is a list of linear designs, one for each place of the break or each centre and width. The design that fits the other
    scales best predicts the one left out.
    """
    m, S = data.means, len(grid.u)
    polynomials = [_left_out(m, q[None]) for q in (grid.line, grid.cubic[:3], grid.cubic)]
    bent = grid.unlined / np.linalg.norm(grid.unlined, axis=1, keepdims=True)
    logistic, jump, hinge = (
        _left_out(m, np.concatenate([np.broadcast_to(grid.line, (len(unit), 2, S)), unit[:, None]], 1))
        for unit in (grid.unit["logistic"], bent[grid.is_jump], bent[~grid.is_jump])
    )
    lines = _left_out(m, np.stack(grid.halves[1:-1]))
    smooth, broken = [*polynomials, logistic], [jump, hinge, lines]
    # Schwarz's criterion: squares over the noise, plus log S for each parameter; the place of a break is one, an odd scale two.
    noise, parameters = np.maximum(data.variance.mean(1), 1e-300), (4, 5, 6, 7)
    squares = np.array([f.others / noise for f in smooth])  # without the oddest scale
    one_odd = np.min(squares + np.array(parameters)[:, None] * math.log(S), axis=0)
    a_break = np.min([f.all / noise + k * math.log(S) for f, k in zip(broken, (4, 4, 5), strict=True)], axis=0)
    fits = np.any(
        [q <= k * special.fdtri(k, data.df, 0.99) for q, k in zip(squares, S - np.array(parameters), strict=True)],
        axis=0,
    )
    doubt = [
        "" if better else ONE_ODD if fit else NOTHING_FITS for better, fit in zip(a_break <= one_odd, fits, strict=True)
    ]
    return _Unseen(np.min([f.error for f in smooth], axis=0), np.min([f.error for f in broken], axis=0), doubt)


class _LeftOut(NamedTuple):
    error: Floats  # (N,) root mean squared, over the scales left out
    others: Floats  # (N,) squares of the best fit to all scales but the oddest
    all: Floats  # (N,) squares of the best fit to all


def _left_out(m: Floats, designs: Floats) -> _LeftOut:
    """Errors at scales left out. Means m (N, S), orthonormal designs (T, p, S).

    The error at a scale is e / (1 - h), h its leverage, so no refit is needed. Several designs may fit the others equally well (a jump
    on either side of the scale left out). Then their mean predicts.
    """
    e = np.matmul(np.matmul(m, designs.transpose(0, 2, 1)), designs)  # (T, N, S)
    np.subtract(m, e, out=e)
    left = 1 - (designs**2).sum(1)[:, None]
    fixed = left < 1e-9  # this design follows this scale exactly
    weight = np.where(fixed, 0, 1 / np.where(fixed, 1, left))
    others = e**2
    squares = others.sum(-1)  # (T, N)
    others *= -weight
    others += squares[..., None]
    others += np.where(fixed, np.inf, 0)
    least = others.min(0)  # (N, S)
    ties = others <= least + 1e-9 * (m.var(1) * m.shape[1])[:, None]
    e *= weight
    e *= ties
    predicted = e.sum(0) / ties.sum(0)
    return _LeftOut(np.sqrt((predicted**2).mean(1)), least.min(1), squares.min(0))
