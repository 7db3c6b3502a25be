"""Curves and tests behind `breaks.py`: smooth families, hinges and jumps on a grid, Davies tests, leave-one-out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator.stats.minimums import MIN_SCALES

SMOOTH_STEPS = 2.0
"""Least width of a smooth transition, from 10 to 90 % of its change, in grid steps. A faster one counts as a jump. Three would be the
natural definition. Two leave a margin: noisy transitions three steps wide are not called breaks."""

ALPHA = 0.05
"""Level of the tests behind a verdict."""

EQUAL_SPREAD_ALPHA = 0.1
"""Level of the test that all scales have the same variance between replicates. If it is rejected, as with bimodal cells beside steady
ones, a scale with a larger variance keeps its own. Otherwise the variance is pooled."""

FLOOR = 0.002
"""Least standard error of a mean, as a share of the whole change. No smooth family is exact to the last digit."""

CENTRE_STEP = 0.25
WIDTH_RATIO = 1.35
HINGES_A_GAP = 2
"""The candidates that are tried: distance of neighbouring centres (grid steps), ratio of neighbouring widths, hinges per gap between
scales."""


ONE_ODD = "without one odd scale a smooth curve would do"
"""Reason against a break: a smooth curve with one outlying scale fits as well, by Schwarz's criterion."""
NOTHING_FITS = "neither a smooth curve nor a single break describes it"
"""Reason against a break: no model fits the means within their standard errors."""

Floats = np.ndarray
"""An array of floats, or of bools where a mask is meant. N curves, S scales, R replicates, K breaks."""


# --- means, and their noise


class Data(NamedTuple):
    """Means over replicates and their variances, for N curves (S scales, R replicates)."""

    means: Floats  # (N, S), less each replicate's offset
    variance: Floats  # (N, S) of the means
    own: Floats  # (N, S) bool: the variance is estimated from this scale alone; else from all scales
    present: Floats  # (S,) number of replicates at each scale
    df_own: Floats  # (S,) degrees of freedom of a scale's own variance
    df: int  # degrees of freedom of the pooled variance
    pooled: Floats  # (N,) variance of one replicate at one scale, pooled over the scales
    spread: (
        Floats  # (N, R, S) residuals over the number of replicates; a contrast of them gives its variance by squares
    )

    def of(self, some: Floats) -> Data:
        """The data of some of the N curves, given by index."""
        return self._replace(**{k: getattr(self, k)[some] for k in ("means", "variance", "own", "pooled", "spread")})


def summary_of(scores: Floats, mask: Floats) -> Data:
    """Means and variances of N curves, from a least-squares fit of a mean for each scale and an offset for each replicate.

    scores (N, R, S); mask (R, S): True if present. The variances are those of the residuals.
    """
    Y = scores
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
    """Tests of K breaks, each added to a smooth design, for N curves."""

    p: Floats  # (N,) p-value of the largest |t| (Davies' bound)
    top: Floats  # (N,) the largest |t|
    df: Floats  # (N,) degrees of freedom of `top`
    angle: Floats  # (N, K - 1) radians between neighbouring breaks; inf between jumps and hinges, and after an unknown break
    size: Floats  # (N, K) estimated size of each break
    error: Floats  # (N, K) standard error of `size`
    known: (
        Floats  # (N, K) bool: more than 1 % of the break's squares are left beside the design, so it can be estimated
    )


def strongest_contrast(design: Floats, grid: Grid, data: Data) -> Strongest:
    """The t of every break of `grid`, added to a design, and the p-value of the largest |t|.

    design (N, p, S): orthonormal rows, the p parameters of each curve's smooth fit.
    """
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
    """Upper bound of P(largest |t| along a path of K breaks > `top`).

    top (N,). df (N,): degrees of freedom of that t. angle (N, K - 1): radians between neighbouring breaks.

    Davies' bound for the linear model is the tail at the start plus a term for each stretch of the path. The term is the length of
    the stretch on the unit sphere times (1 + top^2 / df)^(-(df - 1) / 2) / pi (Hotelling 1939; Davies 2002). A hinge that moves
    between two neighbouring scales follows a great circle, so lengths are sums of angles, exactly. No more than K breaks are
    tried, so no term needs to exceed the tail of one t (Bonferroni). For distant neighbours, such as jumps, the tail is smaller
    than the term.
    """
    tail = 2 * special.stdtr(df, -top)
    arc = np.maximum((1 + top**2 / df) ** (-(df - 1) / 2) / math.pi, 1e-300)
    return np.minimum(1.0, tail + np.minimum(angle * arc[:, None], tail[:, None]).sum(1))


def critical_value(best: Strongest, df_times: Floats | float) -> Floats:
    """The |t| at which the p-value of the largest is ALPHA.  -> (N,)

    df_times: factor on the degrees of freedom of `best`.
    """
    low, high = np.zeros(len(best.top)), np.full(len(best.top), 5.0)  # in log
    for _ in range(14):
        middle = (low + high) / 2
        beyond = _bound(np.exp(middle), best.df * df_times, best.angle) <= ALPHA
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.exp(high)


# --- smooth curves


SHAPES = ("logistic", "early", "late", "bend")
"""Smooth transitions: 1 / (1 + exp(-z)), exp(-exp(-z)), 1 - exp(-exp(z)). The bend log(1 + exp(z)) has the logistic as its slope."""

_TEN_TO_NINETY = {
    "logistic": 2 * math.log(9),
    "early": math.log(math.log(10) / -math.log(0.9)),
    "late": math.log(math.log(10) / -math.log(0.9)),
    "bend": 2 * math.log(9),
}
"""Shape -> distance in z between 10 and 90 % of the change, which converts a width to a scale of z."""


def _curve(shape: str, z: Floats) -> tuple[Floats, Floats]:
    """The shape at z (centred and scaled log scale), and its derivative in z."""
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
    """Designs that depend on the scales alone, so that one grid serves all curves along a cut."""

    u: Floats  # (S,) log scales from 0 to S - 1, in mean steps between scales
    line: Floats  # (2, S) orthonormal basis of straight lines
    cubic: Floats  # (4, S) orthonormal basis of cubics; its first rows span the lower degrees
    theta: dict[str, Floats]  # shape -> (T, 2): centre and 10-90 % width of T candidates, in mean steps
    unit: dict[str, Floats]  # shape -> (T, S): the candidate curves, less their best straight line, of norm 1
    breaks: Floats  # (K, S): jumps in order of place, then hinges
    is_jump: Floats  # (K,) bool
    unlined: Floats  # (K, S): the breaks, less their best straight line
    halves: tuple[Floats, ...]  # for every gap, the orthonormal basis (p, S) of two lines that are split there

    def narrowest(self, centre: Floats) -> Floats:
        """The least width of a smooth transition at a centre: SMOOTH_STEPS times the step between scales there."""
        return SMOOTH_STEPS * np.interp(centre, (self.u[1:] + self.u[:-1]) / 2, np.diff(self.u))


_grids: dict[tuple[float, ...], Grid] = {}
"""Cache. A study has few cuts and many skills, and building a grid takes longer than using it."""


def grid_of(scales: tuple[float, ...]) -> Grid:
    """The designs for these log scales (ascending), cached."""
    if scales not in _grids:
        if len(_grids) >= 64:
            _grids.clear()
        _grids[scales] = _new_grid(scales)
    return _grids[scales]


def _new_grid(scales: tuple[float, ...]) -> Grid:
    """The designs for these log scales. Jumps and hinges leave two scales or more on either side."""
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
    """Centres and widths to try, (T, 2), in mean steps. Some centres lie well outside the scales: a transition's tail is a power law."""
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
    """An orthonormal basis of the columns, each (S,), by Gram-Schmidt, twice. Dependent columns are left out.  -> (p, S)"""
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


def fitted_design(grid: Grid, shape: str, means: Floats) -> Floats:
    """Orthonormal designs (N, 5, S) of one shape, fitted to means (N, S): line, best curve, its tangents in centre and width.

    Variable projection: for given centre and width the fit is linear. So the best pair is the one whose curve, less its line, has the
    largest dot product with the means. The search runs over the whole grid, then over two finer ones around the best. The tangents
    correct for the steps of the grid and for the estimation of centre and width. At the least width its tangent is left out.
    """
    m = means
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
    """Errors of prediction at scales left out, for N curves."""

    smooth: Floats  # (N,) root mean squared error of the best smooth model
    broken: Floats  # (N,) root mean squared error of the best break model
    doubt: list[str]  # for each curve, a reason against the verdict break from Schwarz's criterion; "" without one


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
    """Errors of one kind of model on N curves, each scale predicted from the others in turn."""

    error: Floats  # (N,) root mean squared error at the scale left out, over all scales in turn
    others: Floats  # (N,) sum of squared residuals without the one scale whose omission lowers it most
    all: Floats  # (N,) sum of squared residuals over all scales


def _left_out(m: Floats, designs: Floats) -> _LeftOut:
    """Errors of prediction at scales left out. m (N, S): means. designs (T, p, S): T orthonormal designs of one kind of model.

    The error at a scale is e / (1 - h), with its residual e and leverage h, so no refit is needed. Several designs may fit the other
    scales equally well (a jump on either side of the scale left out). Then the mean of their predictions counts.
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
