"""Simulated truths for forecasts: curves that fall by a law, level off, or turn and rise; noise that lasts.

A run is evaluated four times a decade; the fit sees `n` points and the top lies .75 decades (a factor 5.6) beyond the
last of them. The excess at the first point is one before replicates differ; a floor is stated as a multiple of the
excess at the top. Noise is multiplicative, in proportion to the excess or to the loss, autoregressive from point to
point.

Three kinds of scenario, each with 3, 5 and 10 replicates; what 2,000 runs of each gave:
- FALLS: of the intervals claimed, at least 93 % hold the mean measured at the top: 97.9 to 100 %. Median width over
  that of an oracle, who knows the noise, its correlation, and whether there is a floor (not its height): 1.8 to 2.9
  with a floor, 1.9 for a law whose noise lasts, 3.8 to 4.2 for one whose noise does not, since the oracle has no bend
  to rule out; 5.5 to 7.9 for a high floor and four points, and more still where almost all is floor: there it is worth
  most to know that there is one.
- STOPS: the curve has its least value within the fit, or never fell. At most 7 % of the runs claim an interval that
  misses: 4.0 to 5.6 % where it turns at the very last point and rises twice as fast as it fell, else 0.6 % and less.
- LATER: what nobody can know, since it begins beyond the fit. How often the interval holds is printed and bounded by
  nothing: 78 to 86 % where the curve turns a quarter of a decade later and rises twice as fast as it fell, 71 to 79 %
  where it does so after half a decade, 12 to 26 % where it rises four times as fast; 48 to 74 % where the fall grows
  steeper by half; 1.2 % and less where a skill emerges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special
from simulation import Outcome, Scenario

from orchestrator.stats.forecast import Forecast, forecast

AHEAD_DECADES = 0.75
"""From the last point fitted to the top: with four points a decade, the last at or below a quarter lies that far down."""


class Truth(NamedTuple):
    """A law C^-slope over a floor, and the noise on it."""

    slope: float = 0.3
    floor: float = 0.0
    """In units of the mean excess at the top."""
    noise: float = 0.02
    lasts: float = 0.0
    """Correlation of evaluations a quarter of a decade apart."""
    of_loss: bool = False
    """Noise in proportion to the loss, not to the excess."""
    spread_log_amplitude: float = 0.0
    spread_slope: float = 0.0
    """Between replicates, relative."""
    bend: Callable[[np.ndarray], np.ndarray] = np.zeros_like
    """Added to the log excess; of log compute, 0 at the first point."""
    a_decade: int = 4
    """Evaluations."""


def log_compute(n: int, a_decade: int = 4) -> np.ndarray:
    """(n + points ahead,)"""
    return np.arange(n + round(AHEAD_DECADES * a_decade)) * math.log(10) / a_decade


def losses(truth: Truth, n: int, n_replicates: int, rng: np.random.Generator) -> np.ndarray:
    """(R, n + points ahead)"""
    x = log_compute(n, truth.a_decade)
    noise = rng.standard_normal((n_replicates, len(x)))
    lasts = truth.lasts ** (4 / truth.a_decade)
    for k in range(1, len(x)):
        noise[:, k] = lasts * noise[:, k - 1] + math.sqrt(1 - lasts**2) * noise[:, k]
    amplitude = truth.spread_log_amplitude * rng.standard_normal((n_replicates, 1))
    slope = truth.slope * (1 + truth.spread_slope * rng.standard_normal((n_replicates, 1)))
    excess = np.exp(amplitude - slope * x + truth.bend(x))
    floor = truth.floor * excess[:, -1].mean()
    wobble = np.exp(truth.noise * noise)
    return (floor + excess) * wobble if truth.of_loss else floor + excess * wobble


def played(truth: Truth, n: int, n_replicates: int, n_runs: int, rng: np.random.Generator) -> list[Forecast]:
    """The forecasts of that many runs."""
    compute = np.exp(log_compute(n, truth.a_decade))
    return [forecast(compute, losses(truth, n, n_replicates, rng)) for _ in range(n_runs)]


# What the curve does ahead ------------------------------------------------------------------------------------------


def turns(at_point: float, rises: float, slope: float = 0.3) -> Truth:
    """C^-slope + b C^(rises slope), least at that point of the grid: a skill is lost again, or tasks are memorised."""
    b = np.exp(-(1 + rises) * slope * at_point * math.log(10) / 4) / rises
    return Truth(slope=slope, bend=lambda x: np.log1p(b * np.exp((1 + rises) * slope * x)))


def levels_off(at_point: float, slope: float = 0.3) -> Truth:
    """Falls by the law up to that point of the grid, and no further."""
    return Truth(slope=slope, bend=lambda x: slope * np.maximum(x - at_point * math.log(10) / 4, 0))


def emerges(beyond: float, to: float) -> Callable[[np.ndarray], np.ndarray]:
    """A bend by which the excess falls to this share once log compute is past that point, over a fifth of a decade."""
    width = np.log(10) / 20
    return lambda x: np.log(to + (1 - to) * special.expit((beyond - x) / width))


def steepens(at: float, by: float) -> Callable[[np.ndarray], np.ndarray]:
    """A bend by which the slope grows by this much past that point, over half an e-fold either side."""
    return lambda x: -by * 0.5 * np.log1p(np.exp((x - at) / 0.5))


class Falls(NamedTuple):
    """A truth whose interval must hold, and the points fitted."""

    truth: Truth
    n: int
    widest: float | None = None
    """Bound on the median width in units of the oracle's, for any number of replicates; None where no oracle is fair."""


FALLS: dict[str, Falls] = {
    "pure law": Falls(Truth(), 6, 4.6),
    "pure law, noise that lasts": Falls(Truth(lasts=0.9), 8, 2.1),
    "floor": Falls(Truth(floor=1.0), 6, 3.0),
    "floor, three points": Falls(Truth(floor=1.0), 3, 3.0),
    "floor, eight points a decade": Falls(Truth(floor=1.0, noise=0.01, lasts=0.8, a_decade=8), 13, 2.3),
    "floor, lasting noise of the loss": Falls(Truth(floor=1.0, noise=0.01, lasts=0.7, of_loss=True), 8, 2.6),
    "floor, replicates that differ": Falls(Truth(floor=1.0, spread_log_amplitude=0.2, spread_slope=0.15), 6, 3.2),
    "high floor, short fit": Falls(Truth(slope=0.6, floor=3.0), 4, 8.8),
    "almost at its floor": Falls(Truth(slope=0.6, floor=40.0, noise=0.005, of_loss=True), 6),
    "the slope grows by half within the fit": Falls(Truth(bend=steepens(log_compute(6)[3], 0.15)), 6),
    "turns a quarter decade later, rises as it fell": Falls(turns(6, 1), 6),
    "turns half a decade later, rises as it fell": Falls(turns(7, 1), 6),
}

STOPS: dict[str, tuple[Truth, int]] = {
    "plateau": (Truth(slope=0.0), 6),
    "plateau, noise that lasts": (Truth(slope=0.0, lasts=0.9), 8),
    "at its floor": (Truth(slope=1.5, floor=2000.0, noise=0.01, of_loss=True), 6),
    "levels off within the fit": (levels_off(3), 6),
    "turns within the fit, rises as it fell": (turns(3, 1), 6),
    "turns within the fit, rises twice as fast": (turns(5, 2), 8),
    "turns near the end, rises as it fell": (turns(4.5, 1), 6),
    "turns near the end, rises twice as fast": (turns(6.5, 2), 8),
    "turns near the end, rises four times as fast": (turns(4.5, 4), 6),
    "turns at the last point, rises as it fell": (turns(5, 1), 6),
    "turns at the last point, rises twice as fast": (turns(5, 2), 6),
}

LATER: dict[str, tuple[Truth, int]] = {
    "turns a quarter decade later, rises twice as fast": (turns(6, 2), 6),
    "turns a quarter decade later, rises four times as fast": (turns(6, 4), 6),
    "turns half a decade later, rises twice as fast": (turns(7, 2), 6),
    "turns half a decade later, rises four times as fast": (turns(7, 4), 6),
    "the slope grows by half later": (Truth(bend=steepens(log_compute(6)[5] + 0.6, 0.15)), 6),
    "a skill emerges later, half the loss": (Truth(bend=emerges(log_compute(6)[5] + 1.2, 0.5)), 6),
    "a skill emerges later, a tenth of the loss": (Truth(bend=emerges(log_compute(6)[5] + 1.2, 0.1)), 6),
}


# Scores -------------------------------------------------------------------------------------------------------------


def oracle_width(truth: Truth, n: int, n_replicates: int) -> float:
    """Width in log loss at the top of the interval of one who knows the noise (first order, normal)."""
    x = log_compute(n, truth.a_decade)
    excess = np.exp(truth.bend(x) - truth.slope * x)
    loss = excess + truth.floor * excess[-1]
    unit = loss if truth.of_loss else excess
    X = np.stack([excess / unit, excess * x / unit] + ([1 / unit] if truth.floor else []), 1)
    gaps = np.abs(np.subtract.outer(x, x)) / (math.log(10) / 4)
    K = np.where(gaps == 0, 1.0, truth.lasts**gaps)
    P, c = np.linalg.inv(K[:n, :n]), K[-1, :n]
    u = X[-1] - X[:n].T @ P @ c
    variance = 1 - c @ P @ c + u @ np.linalg.solve(X[:n].T @ P @ X[:n], u)
    error = special.ndtri(0.975) * truth.noise * math.sqrt(variance / n_replicates) * unit[-1] / loss[-1]
    return math.log1p(error) - math.log1p(-error)


def width(made: Forecast) -> float | None:
    """In log loss; None without an interval."""
    return None if made.low is None or made.high is None else math.log(made.high / made.low)


def of_claims(truth: Truth, n: int, n_replicates: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Share of the intervals that hold, among those claimed, and their median width over the oracle's."""

    def run(n_runs: int, rng: np.random.Generator) -> Outcome:
        claims = [f for f in played(truth, n, n_replicates, n_runs, rng) if f.low is not None]
        widths = [w for w in map(width, claims) if w is not None]
        held = float(np.mean([f.covers for f in claims])) if claims else 0.0
        wide = float(np.median(widths)) / oracle_width(truth, n, n_replicates) if claims else None
        return Outcome(held, max(1, len(claims)), wide)

    return run


def misled(truth: Truth, n: int, n_replicates: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Share of the runs that claim an interval, and it misses."""

    def run(n_runs: int, rng: np.random.Generator) -> Outcome:
        found = played(truth, n, n_replicates, n_runs, rng)
        return Outcome(float(np.mean([f.covers is False for f in found])), n_runs)

    return run


REPLICATES = (3, 5, 10)

PROMISED: tuple[Scenario, ...] = (
    *(
        Scenario(f"forecast {name}, {R} replicates", "coverage", 0.93, of_claims(truth, n, R))
        for name, (truth, n, _) in FALLS.items()
        for R in REPLICATES
    ),
    *(
        Scenario(f"forecast {name}, {R} replicates", "false claims", 0.07, misled(truth, n, R))
        for name, (truth, n) in STOPS.items()
        for R in REPLICATES
    ),
)

SCENARIOS: tuple[Scenario, ...] = (
    *PROMISED,
    *(
        Scenario(f"forecast {name}, {R} replicates", "coverage", 0.0, of_claims(truth, n, R))
        for name, (truth, n) in LATER.items()
        for R in REPLICATES
    ),
)
"""Bound 0 is printed as "measured": what begins beyond the fit."""
