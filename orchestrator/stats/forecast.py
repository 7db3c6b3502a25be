"""Does the bottom of a study predict its top? Power laws with a floor, and forecasts scored against what costs nothing.

A forecast sees the evaluations up to a quarter of the top's compute and states the mean loss at the top, with an interval;
then it is compared with what was measured and with three predictions that cost nothing. It can only know a skill that has
begun to show: where one emerges beyond the fitted range, it misses by as much as the skill is worth, and nothing warns of it
(tests/simulate_forecast.py states by how much). Arrays in, numbers out: knows no study, no file, no figure.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # not scipy.stats: it takes a second to import

FIT_SHARE = 0.25
"""A forecast sees compute up to this share of the top's: two doublings ahead, the step from one study to the next."""
MIN_POINTS = 3
"""Below three points a floor and a slope cannot be told apart."""
_RHOS = (0.0, 0.5, 0.85)
"""Correlations of neighbouring evaluations that are considered, a quarter of a decade apart (assumed to span what occurs)."""
_QUARTER_DECADE = math.log(10) / 4
_NO_FLOOR_WEIGHT = 0.5
"""Weight of "there is no floor" in the point forecast. By simulation, from 0.3 to 0.7 the error falls by 20-45 % where there
is none and grows by 0-40 % where there is one."""
_ASSUMED_NOISE = 0.01
"""Relative noise taken for a single replicate whose points show less: three points show none at all."""
_UNKNOWN_SHAPE = 1.1
"""On standard errors, since how the noise grows and how long it lasts is read off a few points: without it the coverage falls
to .91 where noise is in proportion to the loss and lasts; with it the worst found is .93, and independent noise gets .98."""
_STEPS, _ROUNDS, _FLOORS = 3, 5, 16
_EXPONENTS = (1e-3, 8.0)


class PowerLaw(NamedTuple):
    """y = floor + amplitude * x^-exponent. `reason` says why the rest is None."""

    floor: float | None
    amplitude: float | None
    exponent: float | None
    """Positive for a falling law."""
    low: float | None
    """t-interval of the exponent, for *independent* points; None without a degree of freedom left."""
    high: float | None
    n: int
    floor_at_bound: bool
    """The best floor is one of the bounds given: then it is a bound, not a finding."""
    reason: str | None


def power_law(
    x: ArrayLike, y: ArrayLike, floor_low: float = 0.0, floor_high: float | None = None, confidence: float = 0.95
) -> PowerLaw:
    """Fit y = E + A x^-b to independent points, E within [floor_low, floor_high] (None: the smallest y).

    Least squares of the residuals relative to y. By variable projection (Golub and Pereyra 1973): at a given b the law is
    linear in E and A, so only b is searched, in (0.001, 8). Equal bounds are a known floor: then the line of log (y - E) on
    log x, and b may have either sign.  x, y (n,), x positive; pairs with a missing member are passed over.
    """
    x_, y_ = (np.asarray(a, dtype=float) for a in (x, y))
    if x_.shape != y_.shape or x_.ndim != 1:
        raise ValueError(f"x and y must be two rows of one length, not {x_.shape} and {y_.shape}")
    keep = np.isfinite(x_) & np.isfinite(y_)
    x_, y_ = x_[keep], y_[keep]
    n, known = len(x_), floor_high is not None and floor_high <= floor_low
    if (x_ <= 0).any():
        raise ValueError("x must be positive")
    needed = 2 if known else 3
    if len(np.unique(x_)) < needed:
        return _no_law(n, f"{len(np.unique(x_))} distinct x, {needed} needed")
    if (y_ <= floor_low).any() or (not known and (y_ <= 0).any()):
        return _no_law(n, "a value lies at or below the floor")
    if known:
        return _line(np.log(x_), np.log(y_ - floor_low), floor_low, confidence)
    return _projected(
        np.log(x_), y_, floor_low, y_.min() if floor_high is None else min(floor_high, y_.min()), confidence
    )


def _no_law(n: int, reason: str) -> PowerLaw:
    return PowerLaw(None, None, None, None, None, n, False, reason)


def _line(log_x: np.ndarray, log_y: np.ndarray, floor: float, confidence: float) -> PowerLaw:
    """The straight line through log y on log x."""
    n, centred = len(log_x), log_x - log_x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ log_y) / spread
    residual = log_y - log_y.mean() - slope * centred
    error = math.sqrt(float(residual @ residual) / (n - 2) / spread) if n > 2 else None
    low, high = _t_ends(-slope, error, n - 2, confidence)
    amplitude = math.exp(log_y.mean() - slope * log_x.mean())
    return PowerLaw(floor, amplitude, -slope, low, high, n, False, None)


def _t_ends(value: float, error: float | None, dof: int, confidence: float) -> tuple[float | None, float | None]:
    if error is None or dof < 1:
        return None, None
    half = float(special.stdtrit(dof, 0.5 + confidence / 2)) * error
    return value - half, value + half


def _projected(log_x: np.ndarray, y: np.ndarray, low: float, high: float, confidence: float) -> PowerLaw:
    """Search b alone: at each b, floor and amplitude are a bounded linear least-squares problem."""
    n, centre = len(y), log_x.mean()
    b_low, b_high = _EXPONENTS
    for _ in range(6):  # each round narrows b 25-fold: from 8 to 1e-7
        b = np.linspace(b_low, b_high, 51)
        floor, amplitude, misfit = _project(b, log_x - centre, y, low, high)
        best = int(misfit.argmin())
        b_low, b_high = b[max(best - 1, 0)], b[min(best + 1, 50)]
    e, a, slope = float(floor[best]), float(amplitude[best]), float(b[best])
    if a == 0 or not 1.01 * _EXPONENTS[0] < slope < 0.99 * _EXPONENTS[1]:
        return _no_law(n, "no falling power law fits")
    power = np.exp(-slope * (log_x - centre))
    # Three columns even where the floor is at its bound: a floor that could not be fitted is no floor that is known.
    J = np.stack([a * (log_x - centre) * power / y, power / y, 1 / y], 1)  # (n, 3)
    error = None
    if n > 3 and np.linalg.matrix_rank(J) == 3:
        error = math.sqrt(float(misfit[best]) / (n - 3) * np.linalg.inv(J.T @ J)[0, 0])
    ends = _t_ends(slope, error, n - 3, confidence)
    return PowerLaw(e, a * math.exp(slope * centre), slope, *ends, n, not low < e < high, None)


def _project(
    b: np.ndarray, log_x: np.ndarray, y: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best floor and amplitude at each exponent, and the sum of squares left.  b (G,), log_x, y (n,) -> three (G,)."""
    u, v = 1 / y, np.exp(-b[:, None] * log_x) / y  # the law over y is floor * u + amplitude * v, and should be 1
    uu, uv, vv = u @ u, v @ u, (v * v).sum(1)
    su, sv = u.sum(), v.sum(1)
    det = np.maximum(uu * vv - uv * uv, 1e-300)
    floor = np.clip((su * vv - sv * uv) / det, low, high)
    amplitude = np.maximum((sv - floor * uv) / vv, 0.0)
    misfit = ((floor[:, None] * u + amplitude[:, None] * v - 1) ** 2).sum(1)
    return floor, amplitude, misfit


class Rival(NamedTuple):
    """A prediction that costs nothing, and its error."""

    name: str
    predicted: float
    log_error: float | None


class Forecast(NamedTuple):
    """What the bottom says of the top, and what the top said. `reason` says why there is no forecast."""

    predicted: float | None = None
    """Mean loss at the top, over the replicates fitted."""
    low: float | None = None
    high: float | None = None
    """Interval for the *measured* mean of these replicates, noise at the top included; None for one replicate."""
    measured: float | None = None
    """Mean over those of them that have a value at the top; None until it is there."""
    log_error: float | None = None
    """ln(predicted / measured) of the excess over a known floor, else of the loss; None where either is not above the floor."""
    covers: bool | None = None
    rivals: tuple[Rival, ...] = ()
    """Last value, constant (mean of what was seen), plain power law (no floor)."""
    winner: str | None = None
    """Whose error is smallest, "forecast" among them; None until the top is there."""
    exponent: float | None = None
    """Of the mean curve, at the floor that fits best."""
    fitted_floor: float | None = None
    """The floor that fits best, or the known one."""
    misfit_p: float | None = None
    """Chance of so bad a fit if the law held (F test of the mean curve's scatter about the law against the scatter between
    replicates). Small: the law does not describe what was *seen*, let alone what comes."""
    n_points: int = 0
    n_replicates: int = 0
    n_measured: int = 0
    """Of the replicates fitted, those with a value at the top."""
    n_left_out: int = 0
    """Replicates without a value at one of the points fitted."""
    top: float | None = None
    last_fitted: float | None = None
    """Largest compute that the forecast has seen."""
    reason: str | None = None


def forecast(
    compute: ArrayLike,
    loss: ArrayLike,
    floor: float | None = None,
    top: float | None = None,
    confidence: float = 0.95,
) -> Forecast:
    """Fit on compute <= top / 4, predict the mean loss at `top` (None: the largest compute), and score it.

    compute (P,) distinct and positive, in any order; loss (R, P), NaN for missing: evaluations along one training run a
    replicate, so points of a row depend on each other and rows do not. `floor`: known lowest loss (the exact generaliser's);
    None: anything from 0 to the lowest mean. Without values at the top there is a forecast and no score, and the forecast
    does not move when they arrive.

    The law: L_r = E + A_r C^-b_r, one floor E, each replicate its own line of log excess on log compute. Only the floor bends
    the curve, and it is judged by the residuals that the replicates *share*: those fall with their number, while three
    parameters fitted to each curve alone are biased alike and never average out. What they do not share is the noise, so
    replicates may differ in A and b at no cost. The interval holds every value at the top that some floor not rejected by
    the points allows (a profile), over the correlations in `_RHOS` (kriging with a linear trend, Cressie 1993, section 3.4)
    and over noise in proportion to the excess or to the loss, by Student's t with the degrees of freedom of noise and fit.
    A curve that fell within the range is taken not to rise after it.
    Raises ValueError for shapes that do not fit together and for compute that is not positive and distinct.
    """
    x, y = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != len(x):
        raise ValueError(f"compute must be (P,) and loss (R, P), not {x.shape} and {y.shape}")
    if (x <= 0).any() or not np.isfinite(x).all() or len(np.unique(x)) < len(x):
        raise ValueError("compute must be positive and distinct")
    if not len(x):
        return Forecast(reason="no evaluation")
    order = x.argsort()
    x, y = x[order], y[:, order]
    at = float(x[-1]) if top is None else top
    columns, rows = _complete(x, np.isfinite(y), at)
    lost = int((~rows).sum())
    if columns.sum() < MIN_POINTS:
        n = int(columns.sum())
        reason = f"{n} evaluation{'' if n == 1 else 's'} up to a quarter of the largest compute, {MIN_POINTS} needed"
        return Forecast(top=at, n_left_out=lost, reason=reason)
    if not rows.any():
        return Forecast(top=at, n_left_out=lost, reason="no replicate has every point up to a quarter of the top")
    seen, base = y[np.ix_(rows, columns)], 0.0 if floor is None else floor  # (R, n)
    if (seen <= 0).any():
        return Forecast(top=at, n_left_out=lost, reason="a loss is not positive")
    if (seen.mean(0) <= base).any():
        reason = "the loss has reached its floor within the range fitted: nothing is left to forecast"
        return Forecast(top=at, n_left_out=lost, reason=reason)
    law = _extrapolate(np.log(x[columns]), seen, math.log(at), floor, confidence)
    ends = y[rows][:, x == at].ravel()
    ends = ends[np.isfinite(ends)]
    return _scored(law, seen, np.log(x[columns]), math.log(at), ends, base)._replace(
        n_left_out=lost, top=at, last_fitted=float(x[columns][-1])
    )


def _complete(compute: np.ndarray, there: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Points to fit (at least half of the replicates have them) and replicates with all of them.  (P,), (R, P) -> (P,), (R,)"""
    within = (compute <= top * FIT_SHARE * (1 + 1e-9))[None]
    alive = (there & within).any(1, keepdims=True)
    often = 2 * (there & alive).sum(0) >= max(1, alive.sum())
    columns = within[0] & often
    return columns, there[:, columns].all(1) & columns.any()


class _Design(NamedTuple):
    """All that depends on the grid alone, one entry a correlation (C,): studies share one grid."""

    precision: np.ndarray  # (C, n, n) inverse correlation of the points
    line: np.ndarray  # (C, 2, n) generalised least squares: level at the centre, and slope
    at_top: np.ndarray  # (C, n) weights of the residuals in the prediction
    variance: np.ndarray  # (C,) of the prediction error, noise at the top included, in units of the noise
    uncurve: np.ndarray  # (C, n, n) takes out a quadratic
    log_det_line: np.ndarray  # (C,) of correlation and trend, as restricted likelihood wants them
    log_det_curve: np.ndarray  # (C,)
    trend: np.ndarray  # (n, 2)
    trend_top: np.ndarray  # (2,)
    n_curve: int


@lru_cache(maxsize=64)
def _design(log_x: tuple[float, ...], log_top: float) -> _Design:
    lx = np.array(log_x)
    n, centred = len(lx), lx - lx.mean()
    X, X_top = np.stack([np.ones(n), centred], 1), np.array([1.0, log_top - lx.mean()])
    Q = np.vander(centred, min(3, n - 1), increasing=True)
    gaps = np.abs(np.subtract.outer([*log_x, log_top], [*log_x, log_top])) / _QUARTER_DECADE
    found = []
    for rho in _RHOS:
        K = np.where(gaps == 0, 1.0, rho**gaps)
        P, c = np.linalg.inv(K[:n, :n]), K[n, :n]
        line = np.linalg.solve(X.T @ P @ X, X.T @ P)
        u = X_top - X.T @ P @ c
        variance = 1 - c @ P @ c + u @ np.linalg.solve(X.T @ P @ X, u)
        uncurve = np.eye(n) - Q @ np.linalg.solve(Q.T @ P @ Q, Q.T @ P)
        log_dets = [np.linalg.slogdet(K[:n, :n])[1] + np.linalg.slogdet(Z.T @ P @ Z)[1] for Z in (X, Q)]
        found.append((P, line, P @ c, variance, uncurve, *log_dets))
    P, line, at_top, variance, uncurve, of_line, of_curve = (np.array(a) for a in zip(*found, strict=True))
    return _Design(P, line, at_top, variance, uncurve, of_line, of_curve, X, X_top, Q.shape[1])


class _Noise(NamedTuple):
    """The noise of a replicate's log loss, by correlation (C,)."""

    scatter: np.ndarray  # (C, n, n) products of the deviations, summed over replicates
    variance: np.ndarray  # (C,)
    unlikely: np.ndarray  # (C,) twice the log-likelihood lost against the best correlation
    dof: int


def _noise(design: _Design, deviations: np.ndarray, log_det: np.ndarray, n_trend: int) -> _Noise:
    """Noise from what a trend with `n_trend` terms leaves of each replicate, less what they share.  deviations (C, R, n)."""
    _, R, n = deviations.shape
    dof = max(1, R - 1) * (n - n_trend)
    scatter = deviations.transpose(0, 2, 1) @ deviations
    total = np.maximum((scatter * design.precision).sum((1, 2)), dof * 1e-12)  # exact numbers get noise of 1e-6
    if R == 1:  # in one curve, correlation cannot be told from curvature
        total = np.maximum(total, dof * _ASSUMED_NOISE**2)
        scatter = np.eye(n) * total[:, None, None] / n
        return _Noise(scatter, total / dof, np.where(np.array(_RHOS) == 0, 0.0, np.inf), dof)
    likely = -0.5 * (R - 1) * log_det - 0.5 * dof * np.log(total)
    return _Noise(scatter, total / dof, 2 * (likely.max() - likely), dof)


class _Law(NamedTuple):
    """The law fitted at each correlation and floor (C, G)."""

    floors: np.ndarray  # (G,)
    misfit: np.ndarray  # squares of the shared residuals in units of their noise: chi-square at the true floor
    log_excess: np.ndarray  # of the mean, at the top
    variance: np.ndarray  # of that, noise at the top included
    slope: np.ndarray
    deviations: np.ndarray  # (C, G, R, n) residuals that are not shared, relative to the mean loss


def _fit(design: _Design, noise: _Noise, y: np.ndarray, floors: np.ndarray) -> _Law:
    """Each replicate's line at given floors.  y (R, n), floors (G,).

    Residuals are relative to the *fitted* excess, never to the measured one: log (y - E) of the lowest point runs off to
    minus infinity as the floor nears it, and every high floor would look acceptable.
    """
    R, n = y.shape
    mean = y.mean(0)
    excess = y - floors[:, None, None]  # (G, R, n)
    hat = design.line.transpose(0, 2, 1) @ design.trend.T  # (C, n, n) log excess -> its line
    line = np.log(np.maximum(excess, 0.05 * (mean - floors[:, None])[:, None])).reshape(-1, n) @ hat
    excess = excess.reshape(-1, n)  # (G R, n): a few large products instead of many small ones
    for _ in range(_STEPS):
        line = line + np.clip(excess * np.exp(-line) - 1, -1.0, 3.0) @ hat
    line, excess = line.reshape(-1, len(floors), R, n), excess.reshape(-1, R, n)
    fitted = np.exp(line)  # (C, G, R, n)
    residual = np.clip(excess / fitted - 1, -3.0, 3.0)
    shared = residual.mean(2)  # (C, G, n)
    terms = line @ design.line.transpose(0, 2, 1)[:, None]  # (C, G, R, 2)
    tops = np.exp(terms @ design.trend_top + np.einsum("cgrn,cn->cgr", residual, design.at_top))
    top = tops.mean(2)  # (C, G)

    def squares(a: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.einsum("cgn,cnm,cgm->cg", a, weight, a)

    # Is noise in proportion to the excess, or to the loss (then it is larger at the top)? Each by its likelihood.
    scale = mean / fitted.mean(2)  # (C, G, n) a relative error of the loss, as one of the excess
    of_loss = noise.variance[:, None]
    of_excess = squares(scale, noise.scatter * design.precision) / noise.dof + 1e-12
    likelier = 0.5 * noise.dof * (np.log(of_loss) - np.log(of_excess)) + noise.dof / n * np.log(scale).sum(2)
    share = special.expit(likelier)
    misfit = share * squares(shared, design.precision) / of_excess
    misfit = R * (misfit + (1 - share) * squares(shared / scale, design.precision) / of_loss)
    variance = share * of_excess + (1 - share) * of_loss * (1 + floors / top) ** 2
    variance = (
        variance * design.variance[:, None] * (tops**2).sum(2) / tops.sum(2) ** 2
    )  # the last: 1/R if all are alike
    deviations = (residual - shared[:, :, None]) * fitted / mean
    return _Law(floors, misfit, np.log(top), variance, terms[..., 1].mean(2), deviations)


class _Profile(NamedTuple):
    """The law at the floors that are not rejected."""

    law: _Law
    rejected: np.ndarray  # (C, G) squared t against each pair of correlation and floor
    error: np.ndarray  # (C, G) of the log excess at the top
    t: float
    noise: _Noise
    misfit_p: float | None


def _profile(design: _Design, y: np.ndarray, floor: float | None, confidence: float) -> _Profile:
    """Search the floors; each round keeps those that are not rejected, and knows the noise better."""
    R, n = y.shape
    mean, logs = y.mean(0), np.log(y)
    deviations = (logs - logs.mean(0) if R > 1 else logs) @ design.uncurve.transpose(0, 2, 1)
    noise = _noise(design, deviations, design.log_det_curve, design.n_curve)
    fit_dof = n - 3 if floor is None else n - 2
    if floor is None:
        least, fall = float(mean.min()), float(np.ptp(mean))
        nearest = max(
            min(0.015 * least, 0.02 * fall), 1e-6 * least
        )  # below the lowest mean: nearer, it only fits its noise
        floors = least * (1 - (nearest / least) ** np.linspace(0, 1, _FLOORS))
    else:
        floors = np.array([floor])
    for attempt in range(_ROUNDS):
        law = _fit(design, noise, y, floors)
        dof = noise.dof + fit_dof
        t = _UNKNOWN_SHAPE * float(special.stdtrit(dof, 0.5 + confidence / 2))
        least_misfit = law.misfit.min(1, keepdims=True)
        factor = (noise.dof + least_misfit) / dof  # what the law leaves over is noise as well
        rejected = (law.misfit - least_misfit) / factor + noise.unlikely[:, None]  # (C, G)
        kept = np.flatnonzero((rejected < 1.2 * t * t).any(0))
        if attempt and (len(kept) >= 6 or len(floors) == 1):
            break
        if (
            attempt < 2 and R > 1
        ):  # the best law so far takes out the trends for fewer degrees of freedom than a quadratic
            best = np.unravel_index(rejected.argmin(), rejected.shape)[1]
            noise = _noise(design, law.deviations[:, best], design.log_det_line, 2)
        if len(floors) > 1:
            floors = np.linspace(floors[max(kept[0] - 1, 0)], floors[min(kept[-1] + 1, len(floors) - 1)], _FLOORS)
    plausible = least_misfit[(rejected < t * t).any(1), 0]
    p = float(special.fdtrc(fit_dof, noise.dof, plausible.min() / fit_dof)) if fit_dof and R > 1 else None
    return _Profile(law, rejected, np.sqrt(law.variance * factor), t, noise, p)


def _extrapolate(log_x: np.ndarray, y: np.ndarray, log_top: float, floor: float | None, confidence: float) -> Forecast:
    """The forecast without its score.  log_x (n,) ascending, y (R, n) complete."""
    R, n = y.shape
    law, rejected, error, t, noise, p = _profile(_design(tuple(log_x), log_top), y, floor, confidence)
    floors, best = law.floors, np.unravel_index(rejected.argmin(), rejected.shape)
    prior = np.where(floors == 0, _NO_FLOOR_WEIGHT * len(floors), 1 - _NO_FLOOR_WEIGHT)
    predicted = float(np.average(floors + np.exp(law.log_excess), weights=np.exp(-rejected / 2) * prior))
    known = Forecast(
        predicted=predicted,
        exponent=-float(law.slope[best]),
        fitted_floor=float(floors[best[1]]),
        misfit_p=p,
        n_points=n,
        n_replicates=R,
    )
    if R == 1:
        return known
    inside = rejected < t * t
    reach = np.sqrt(np.maximum(t * t - rejected, 0)) * error
    low = float(np.where(inside, floors + np.exp(law.log_excess - reach), np.inf).min())
    high = float(np.where(inside, floors + np.exp(np.minimum(law.log_excess + reach, 50.0)), -np.inf).max())
    mean = y.mean(0)
    if mean[-1] <= mean[0]:
        spread = float(np.average(noise.variance, weights=np.exp(-noise.unlikely / 2)))
        high = min(high, float(mean[-1]) * math.exp(t * math.sqrt(2 * spread / R)))
    return known._replace(low=min(predicted, low), high=max(predicted, high))


def _scored(
    law: Forecast, seen: np.ndarray, log_x: np.ndarray, log_top: float, ends: np.ndarray, floor: float
) -> Forecast:
    """Compare with what was measured, and with predictions that cost nothing.  seen (R, n), ends (up to R,)."""
    measured = float(ends.mean()) if len(ends) else None

    def error(predicted: float | None) -> float | None:
        if measured is None or predicted is None or min(measured, predicted) <= floor:
            return None
        return math.log((predicted - floor) / (measured - floor))

    centred, logs = log_x - log_x.mean(), np.log(seen)
    slopes = logs @ centred / (centred @ centred)  # (R,)
    guesses = {
        "last value": float(seen[:, -1].mean()),
        "constant": float(seen.mean()),
        "plain power law": float(np.exp(logs.mean(1) + slopes * (log_top - log_x.mean())).mean()),
    }
    rivals = tuple(Rival(name, guess, error(guess)) for name, guess in guesses.items())
    own = error(law.predicted)
    errors = {"forecast": own} | {r.name: r.log_error for r in rivals}
    known = {name: abs(e) for name, e in errors.items() if e is not None}
    covers = None
    if measured is not None and law.low is not None and law.high is not None:
        covers = law.low <= measured <= law.high
    winner = min(known, key=known.__getitem__) if known else None
    return law._replace(
        measured=measured, log_error=own, covers=covers, rivals=rivals, winner=winner, n_measured=len(ends)
    )
