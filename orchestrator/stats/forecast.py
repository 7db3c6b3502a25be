"""Does the bottom of a study predict its top? Curves continued as they bend, and forecasts scored against what costs
nothing.

A forecast sees the evaluations up to a quarter of the top's compute and states the mean loss at the top, with an
interval; then it is compared with what was measured and with three predictions that cost nothing. It presumes no law:
held-out loss can rise again while tasks are memorised, and a law that only falls then misses for certain. It presumes
that the curve bends ahead no more sharply than it was seen to bend. Four kinds of curve break that as a rule and are
refused: one that does not clearly fall at the end of the fit (it may stay, rise, or fall at a jump), one that has
hardly begun to fall, one that grew steeper in the last decade of the fit (a skill is being learned, and learning ends),
and one that would have to fall past what the best possible predictor scores. What begins beyond the fit, a rise, a
skill or the end of a fall, is in no curve fitted before it, and no interval holds it. How often each is forecast,
refused and missed is simulated: tests/simulations/simulate_forecast.py, `python tests/simulations/calibration.py --only forecast`. Arrays in,
numbers out: knows no study, no file, no figure.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # not scipy.stats: it takes a second to import

FIT_SHARE = 0.25
"""A forecast sees compute up to this share of the top's: two doublings ahead, the step from one study to the next."""
MIN_POINTS = 3
"""Below three points, bending and noise cannot be told apart."""
CLEARLY = 0.985
"""Probability from which on the curve falls at the end of the fit. By simulation, a curve that turns at the last point
and then rises twice as fast as it fell passes, and misses, in 2.6 to 3.8 % of the runs (at .975: in up to 5 %); of laws
with 2 % of noise 70 % pass with three points of three replicates, and all with six."""
LEARNED = 0.2
"""Share of the way from the first loss to the floor (to zero where none is known) that must lie within the fit. The
first few percent of a skill look like a slow power law; without this, up to 2.4 % of such curves were forecast, and one
in six of those forecasts held. The price: a law as slow as C^-.07 is refused unless the fit is longer than a decade and
a quarter."""
STEEPENS = 0.8
"""Probability from which on the curve counts as growing steeper at one of the last points fitted. It refuses all but
some of a thousand of the skills that are learned within the fit, at the price of 4 to 12 % of the pure power laws."""
LATELY = math.log(10)
"""How far back from the last point that is looked for: what began to fall more than a decade ago and only levelled off
since (a plateau at the start of training, a skill that has long been learned) is continued, and the intervals hold."""
PASSES = 0.25
"""Probability of passing the floor from which on there is no forecast: the fall must end on the way. Intervals are not
cut off at the floor: the noise of a measured mean does not stop there, and at the end of a skill 84 to 96 % of the
intervals held if they were, 99 % if not."""
_RHOS = (0.0, 0.5, 0.85)
"""Correlations of neighbouring evaluations that are considered, a quarter of a decade apart (assumed to span what
occurs)."""
_QUARTER_DECADE = math.log(10) / 4
_SIZES = tuple(0.01 * 30.0**k for k in range(5))
"""Sizes of bending that are considered, all equally likely: from nothing that matters to all there is (see `_design`).
Assumed; by simulation, a grid that starts 30 times lower or higher, or is three times as fine, changes widths by 25 %
at most."""
_LARGEST = 300.0
"""Cap on a log loss: an end beyond e^300 is "no idea", and infinity is no number."""


class Rival(NamedTuple):
    """A prediction that costs nothing, and its error."""

    name: str
    predicted: float
    log_error: float | None


Verdict = Literal["forecast", "uninformative", "not falling", "hardly fallen", "steepens", "floor", "missing"]


class Forecast(NamedTuple):
    """What the bottom says of the top, and what the top said. `reason` says why there is no forecast."""

    verdict: Verdict = "missing"
    """`uninformative`: the interval is as wide as all that the loss could do. `missing`: too little was evaluated. The
    others are the refusals: see `reason`, and the module's first words."""
    predicted: float | None = None
    """Mean loss at the top, over the replicates fitted: the median of what is possible."""
    low: float | None = None
    high: float | None = None
    """Interval for the *measured* mean of these replicates, noise at the top included; None for one replicate."""
    measured: float | None = None
    """Mean over those of them that have a value at the top; None until it is there, and without a forecast."""
    log_error: float | None = None
    """ln(predicted / measured)."""
    covers: bool | None = None
    rivals: tuple[Rival, ...] = ()
    """Last value, constant (mean of what was seen), plain power law (no floor)."""
    winner: str | None = None
    """Whose error is smallest, "forecast" among them; None until the top is there."""
    falling: float | None = None
    """Probability that the mean curve falls at the last point fitted."""
    floor: float | None = None
    """As given: what the best possible predictor scores."""
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
    span: float | None = None,
    top: float | None = None,
    confidence: float = 0.95,
    floor: float | None = None,
) -> Forecast:
    """Fit on compute <= top / 4, predict the mean loss at `top` (None: the largest compute), and score it.

    compute (P,) distinct and positive, in any order; loss (R, P), NaN for missing: evaluations along one training run
    a replicate, so points of a row depend on each other and rows do not. `span`: the loss of knowing nothing less that
    of the general rule, in the unit of loss; an interval that is wider is uninformative (None: wider than the mean
    loss moved within the fit). `floor`: the loss of the best possible predictor, below which no model can fall; without
    it the interval assumes that the fall goes on to the top. Without values at the top there is a forecast and no
    score, and the forecast does not move when they arrive.

    The model: the log of the mean loss is a line in log compute, plus a parabola, plus a curve whose third derivative
    is white noise (kriging; its mean is a quintic spline: Wahba 1990, Spline Models for Observational Data, section
    1.5), plus noise. The replicates' deviations from each other's lines tell the noise. Averaged over the sizes of
    parabola and curve in `_SIZES` and the correlations of the noise in `_RHOS`, each by its restricted likelihood, so
    that the bending ahead is as uncertain as the bending seen. The interval holds the middle of that mixture of
    Student's t. Raises ValueError for shapes that do not fit together and for compute that is not positive and
    distinct.
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
    given = Forecast(top=at, n_left_out=int((~rows).sum()), floor=floor)
    if columns.sum() < MIN_POINTS:
        n = int(columns.sum())
        reason = f"{n} evaluation{'' if n == 1 else 's'} up to a quarter of the largest compute, {MIN_POINTS} needed"
        return given._replace(reason=reason)
    if not rows.any():
        return given._replace(reason="no replicate has every point up to a quarter of the top")
    seen, log_x = y[np.ix_(rows, columns)], np.log(x[columns])  # (R, n), (n,)
    if (seen <= 0).any():
        return given._replace(reason="a loss is not positive")
    given = given._replace(n_points=len(log_x), n_replicates=len(seen), last_fitted=float(x[columns][-1]))
    made = _continued(given, log_x, seen, math.log(at), span, confidence)
    if made.predicted is None:
        return made
    ends = y[rows][:, x == at].ravel()
    return _scored(made, seen, log_x, math.log(at), ends[np.isfinite(ends)])


def _complete(compute: np.ndarray, there: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Points to fit (at least half of the replicates have them), replicates with all of them.  (P,), (R, P) -> (P,), (R,)"""
    within = (compute <= top * FIT_SHARE * (1 + 1e-9))[None]
    alive = (there & within).any(1, keepdims=True)
    often = 2 * (there & alive).sum(0) >= max(1, alive.sum())
    columns = within[0] & often
    return columns, there[:, columns].all(1) & columns.any()


class _Kriged(NamedTuple):
    """Generalised least squares of n points on a trend, and what it says of some places ahead."""

    misfit: np.ndarray  # (n, n) of the points: squares left over, in units of the variance
    weights: np.ndarray  # (places, n) of the points in the prediction
    variance: np.ndarray  # (places,) of the prediction's error
    log_det: float  # as restricted likelihood wants it


def _kriged(covariance: np.ndarray, trend: np.ndarray, n: int) -> _Kriged:
    """Universal kriging (Cressie 1993, section 3.4); places are the rows after the first n.

    covariance (n + places, n + places), trend (n + places, k).
    """
    X, c = trend[:n], covariance[:n, n:]
    P = np.linalg.inv(covariance[:n, :n])
    A = np.linalg.inv(X.T @ P @ X)
    short = trend[n:].T - X.T @ P @ c  # (k, places)
    variance = np.diag(covariance[n:, n:]) - (c * (P @ c)).sum(0) + (short * (A @ short)).sum(0)
    log_det = np.linalg.slogdet(covariance[:n, :n])[1] - np.linalg.slogdet(A)[1]
    return _Kriged(P - P @ X @ A @ X.T @ P, (P @ (c + X @ A @ short)).T, variance, float(log_det))


class _Design(NamedTuple):
    """All that depends on the grid alone, an entry a model (M,): replicates, and studies, share one grid.

    A model is a correlation of the noise, a size of the parabola and one of the roughness. Variances are in units of
    the noise's for one replicate.
    """

    correlation: np.ndarray  # (M,) index of
    own: np.ndarray  # (rhos, n, n) misfit of a replicate's deviations from the mean, about a line
    own_log_det: np.ndarray  # (rhos,)
    shared: np.ndarray  # (M, n, n) misfit of the mean
    log_det: np.ndarray  # (M,)
    weights: np.ndarray  # (M, 2 + n, n) predict the top, the slope at the last point, and the curvature at each point
    variance: np.ndarray  # (M, 2 + n)


@lru_cache(maxsize=64)
def _design(log_x: tuple[float, ...], log_top: float) -> _Design:
    """Sizes of bending are in units of what the noise costs: 1 doubles the variance of a prediction along a line
    (parabola), or along a parabola (roughness). So neither the spacing of the points nor how far ahead the top lies
    changes their meaning.
    """
    n, x = len(log_x), (np.array([*log_x, log_top]) - np.mean(log_x)) / _QUARTER_DECADE
    values = np.stack([np.ones(n + 1), x, x**2], 1)
    trend = np.array([*values, [0, 1, 2 * x[n - 1]], *[[0, 0, 2]] * n])  # (n + 1 + 1 + n, 3): values, slope, curvatures
    parabola, rough = np.outer(trend[:, 2], trend[:, 2]), _roughness(x - x[0])
    own, models = [], []
    for i, rho in enumerate(_RHOS):
        noise = np.pad(np.where(np.equal.outer(x, x), 1.0, rho ** np.abs(np.subtract.outer(x, x))), (0, 1 + n))
        line, curve = (_kriged(noise, trend[:, :k], n) for k in (2, 3))
        own.append(line)
        units = [
            found.variance[0] / float(error @ bending[: n + 1, : n + 1] @ error)
            for found, bending in ((line, parabola), (curve, rough))
            for error in [np.array([*-found.weights[0], 1])]
        ]
        for bend, wander in ((bend, wander) for bend in _SIZES for wander in (0.0, *_SIZES)):
            covariance = noise + bend * units[0] * parabola + wander * units[1] * rough
            models.append((i, _kriged(covariance, trend[:, :2], n)))
    each = [found for _, found in models]
    return _Design(
        np.array([i for i, _ in models]),
        np.array([found.misfit for found in own]),
        np.array([found.log_det for found in own]),
        np.array([found.misfit for found in each]),
        np.array([found.log_det for found in each]),
        np.array([found.weights for found in each]),
        np.array([found.variance for found in each]),
    )


def _roughness(x: np.ndarray) -> np.ndarray:
    """Covariance of a curve whose third derivative is white noise from the first point on: its value at every x, its
    slope at the last point fitted, its curvature at all of those.

    x (n + 1,) from 0, the last of them the top -> (2 n + 2, 2 n + 2). The curve is the integral of (x - u)^2 / 2 dB(u).
    """
    n, fitted, whole = len(x) - 1, x[:-1], x[-2]
    s, t = np.minimum.outer(x, x), np.maximum.outer(x, x)
    rough = np.pad(s**3 * (10 * t**2 - 5 * s * t + s**2) / 120, (0, 1 + n))
    rough[n + 1, :n] = rough[:n, n + 1] = fitted**3 * (4 * whole - fitted) / 24
    rough[n + 1, n + 1] = whole**3 / 3
    bending = (fitted[:, None] ** 3 - np.maximum(np.subtract.outer(fitted, fitted), 0) ** 3) / 6
    rough[:n, n + 2 :], rough[n + 2 :, :n] = bending, bending.T
    rough[n + 2 :, n + 2 :] = np.minimum.outer(fitted, fitted)
    return rough  # what top, slope and curvatures share is left 0: each is predicted for itself


class _Mixture(NamedTuple):
    """What the models say of the log mean loss at the top, its slope at the last point, and its curvature at each, as
    Student's t."""

    weights: np.ndarray  # (M,)
    centres: np.ndarray  # (M, 2 + n)
    scales: np.ndarray  # (M, 2 + n)
    dof: int

    def below(self, place: int | slice, value: float) -> np.ndarray:
        """Probability that what is predicted there lies below a value.  -> () or (places,)"""
        at, chance = _student(self.dof)
        z = (value - self.centres[:, place]) / self.scales[:, place]
        return np.asarray(self.weights @ np.interp(z, at, chance))


def _mixture(design: _Design, y: np.ndarray) -> _Mixture:
    """y (R, n): noise by what the replicates do not share, bending by what they share, each model by its likelihood."""
    R, n = y.shape
    log_mean, logs = np.log(y.mean(0)), np.log(y)
    deviations = logs - logs.mean(0)
    own = (design.own * (deviations.T @ deviations)).sum((1, 2))[design.correlation]
    shared = design.shared @ log_mean @ log_mean
    dof = R * (n - 2)
    total = own + R * np.maximum(shared, 0) + dof * 1e-12  # (M,); exact numbers get noise of 1e-6
    likely = -0.5 * (design.log_det + (R - 1) * design.own_log_det[design.correlation] + dof * np.log(total))
    weights = np.exp(likely - likely.max())
    scales = np.sqrt(design.variance * (total / dof / R)[:, None])
    return _Mixture(weights / weights.sum(), design.weights @ log_mean, scales, dof)


_REASONS: dict[Verdict, str] = {
    "not falling": "the loss does not clearly fall at the end of what was fitted, so it may stay, rise, or fall at a jump",
    "hardly fallen": f"the loss fell by less than {LEARNED:.0%} of what it can fall by within what was fitted, and so slow "
    "a start does not tell when the rest follows".replace("%", " %"),
    "steepens": "the loss falls faster and faster somewhere in the last decade of compute that was fitted, as where a "
    "skill is being learned, and where such a fall ends is not told by how it began",
    "floor": "at the rate at which it falls at the end of what was fitted, the loss would pass what the best possible "
    "predictor scores, so the fall must end before the top, and nothing tells where",
}


def _refused(given: Forecast, mixed: _Mixture, log_x: np.ndarray, mean: np.ndarray) -> Verdict | None:
    """Why what was seen must not be continued.  log_x (n,) ascending, mean (n,) of the replicates"""
    floor = given.floor or 0.0
    if given.falling is None or given.falling < CLEARLY:
        return "not falling"
    if mean[0] - mean[-1] < LEARNED * (mean[0] - floor):
        return "hardly fallen"
    lately = int(np.searchsorted(log_x, log_x[-1] - LATELY * (1 + 1e-9)))
    if mixed.below(slice(2 + lately, None), 0.0).max() >= STEEPENS:
        return "steepens"
    if floor > 0 and mixed.below(0, math.log(floor)) >= PASSES:
        return "floor"
    return None


def _continued(
    given: Forecast, log_x: np.ndarray, y: np.ndarray, log_top: float, span: float | None, confidence: float
) -> Forecast:
    """The forecast without its score.  log_x (n,) ascending, y (R, n) complete."""
    mixed = _mixture(_design(tuple(log_x), log_top), y)
    given = given._replace(falling=float(mixed.below(1, 0.0)))
    refused = _refused(given, mixed, log_x, y.mean(0))
    if refused is not None:
        return given._replace(verdict=refused, reason=_REASONS[refused])
    at = _quantiles(np.array([0.5, 0.5 - confidence / 2, 0.5 + confidence / 2]), mixed)
    predicted, low, high = (math.exp(min(value, _LARGEST)) for value in at.tolist())
    if len(y) == 1:  # in one curve, noise that lasts cannot be told from bending
        return given._replace(verdict="forecast", predicted=predicted)
    told = high - low <= (float(np.ptp(y.mean(0))) if span is None else span)
    return given._replace(verdict="forecast" if told else "uninformative", predicted=predicted, low=low, high=high)


def _quantiles(p: np.ndarray, mixed: _Mixture) -> np.ndarray:
    """Of the top, by Newton's steps, halving instead where one leaves the bracket: a mixture's quantile lies among
    those of its parts.  p (Q,) -> (Q,)"""
    kept = mixed.weights > 1e-5
    weights, centres, scales = mixed.weights[kept], mixed.centres[kept, 0], mixed.scales[kept, 0]
    weights = weights / weights.sum()
    parts = centres + scales * special.stdtrit(mixed.dof, p)[:, None]  # (Q, M)
    low, high, place = parts.min(1), parts.max(1), parts @ weights
    (at, chance), dof = _student(mixed.dof), mixed.dof
    heights = weights / scales / (math.sqrt(dof) * special.beta(0.5, dof / 2))  # of the densities
    for _ in range(60):  # six, as a rule
        z = (place[:, None] - centres) / scales
        over = np.interp(z, at, chance) @ weights - p
        low, high = np.where(over < 0, place, low), np.where(over < 0, high, place)
        density = (1 + z * z / dof) ** (-(dof + 1) / 2) @ heights
        step = place - over / np.maximum(density, 1e-300)
        last, place = place, np.where((low < step) & (step < high), step, (low + high) / 2)
        if (np.abs(place - last) < 1e-8).all():  # of the logarithm of a loss
            break
    return np.asarray(place)


@lru_cache(maxsize=64)
def _student(dof: int) -> tuple[np.ndarray, np.ndarray]:
    """Distribution function of Student's t as a table, to 1e-6: it is asked for a hundred times as often as that
    takes."""
    chance = special.expit(np.linspace(-16, 16, 4001))
    return special.stdtrit(dof, chance), chance


def _scored(made: Forecast, seen: np.ndarray, log_x: np.ndarray, log_top: float, ends: np.ndarray) -> Forecast:
    """Compare with what was measured, and with predictions that cost nothing.  seen (R, n), ends (up to R,)."""
    measured = float(ends.mean()) if len(ends) else None

    def error(predicted: float | None) -> float | None:
        if measured is None or predicted is None or min(measured, predicted) <= 0:
            return None
        return math.log(predicted / measured)

    centred, logs = log_x - log_x.mean(), np.log(seen)
    slopes = logs @ centred / (centred @ centred)  # (R,)
    guesses = {
        "last value": float(seen[:, -1].mean()),
        "constant": float(seen.mean()),
        "plain power law": float(np.exp(logs.mean(1) + slopes * (log_top - log_x.mean())).mean()),
    }
    rivals = tuple(Rival(name, guess, error(guess)) for name, guess in guesses.items())
    own = error(made.predicted)
    errors = {"forecast": own} | {r.name: r.log_error for r in rivals}
    known = {name: abs(e) for name, e in errors.items() if e is not None}
    covers = None
    if measured is not None and made.low is not None and made.high is not None:
        covers = made.low <= measured <= made.high
    winner = min(known, key=known.__getitem__) if known else None
    return made._replace(
        measured=measured, log_error=own, covers=covers, rivals=rivals, winner=winner, n_measured=len(ends)
    )
