"""Simulated truths for forecasts: laws with and without a floor, noise that lasts, replicates that differ.

A run is evaluated four times a decade; the fit sees `n` points and the top lies three points (a factor 5.6) further on. The
excess at the first point is one before replicates differ; a floor is stated as a multiple of the excess at the top. Noise is
multiplicative, in proportion to the excess or to the loss, autoregressive from point to point.

Coverage of the measured mean at the top by the 95 % interval: .94 to .96 where noise lasts, .98 and more where it does not; that
is the price of not knowing how long it lasts, nor what it is in proportion to. Width, in units of that of an oracle who knows
the noise, its correlation, and whether there is a floor (not its height), with 3 / 5 / 10 replicates: a floor 1.5 / 1.3 / 1.2; a
floor and lasting noise 1.1 / 1.1 / 1.0; a pure law 3.4 / 3.2 / 2.8, since the oracle needs to rule out no floor.

What no interval can promise (`UNKNOWABLE`; six points of five replicates, 1,000 runs): where a skill emerges beyond the fit and
takes the loss to a half or a tenth, the interval *never* covers, the forecast is too high by a factor 2.0 or 9.3, and nothing in
what was seen warns of it (misfit in 5 % of the runs). Where the slope grows by half within the fit, it misses by 19 % and never
covers either, but there 94 % of the runs say `misfit_p` < .05; beyond the fit, by 17 %, and 10 % say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special
from simulation import Outcome, Scenario

from orchestrator.stats.forecast import Forecast, forecast

AHEAD = 3
"""Points from the last one fitted to the top: the first evaluation at or below a quarter lies .75 decades down."""


class Truth(NamedTuple):
    """A law C^-slope over a floor, and the noise on it."""

    slope: float = 0.3
    floor: float = 0.0
    """In units of the mean excess at the top."""
    noise: float = 0.02
    lasts: float = 0.0
    """Correlation of neighbouring evaluations."""
    of_loss: bool = False
    """Noise in proportion to the loss, not to the excess."""
    spread_log_amplitude: float = 0.0
    spread_slope: float = 0.0
    """Between replicates, relative."""
    bend: Callable[[np.ndarray], np.ndarray] = np.zeros_like
    """Added to the log excess; of log compute, 0 at the first point."""


def log_compute(n: int) -> np.ndarray:
    return np.arange(n + AHEAD) * np.log(10) / 4


def losses(truth: Truth, n: int, n_replicates: int, rng: np.random.Generator) -> np.ndarray:
    """(R, n + AHEAD)"""
    x, shape = log_compute(n), (n_replicates, n + AHEAD)
    noise = rng.standard_normal(shape)
    for k in range(1, shape[1]):
        noise[:, k] = truth.lasts * noise[:, k - 1] + np.sqrt(1 - truth.lasts**2) * noise[:, k]
    amplitude = truth.spread_log_amplitude * rng.standard_normal((n_replicates, 1))
    slope = truth.slope * (1 + truth.spread_slope * rng.standard_normal((n_replicates, 1)))
    excess = np.exp(amplitude - slope * x + truth.bend(x))
    floor = truth.floor * excess[:, -1].mean()
    wobble = np.exp(truth.noise * noise)
    return (floor + excess) * wobble if truth.of_loss else floor + excess * wobble


def played(
    truth: Truth, n: int, n_replicates: int, n_runs: int, rng: np.random.Generator, know_floor: bool = False
) -> list[Forecast]:
    """The forecasts of that many runs."""
    found = []
    for _ in range(n_runs):
        y = losses(truth, n, n_replicates, rng)
        floor = truth.floor * float(np.exp(-truth.slope * log_compute(n)[-1])) if know_floor else None
        found.append(forecast(np.exp(log_compute(n)), y, floor))
    return found


def coverage(truth: Truth, n: int, n_replicates: int, know_floor: bool = False) -> Callable[..., Outcome]:
    def run(n_runs: int, rng: np.random.Generator) -> Outcome:
        found = played(truth, n, n_replicates, n_runs, rng, know_floor)
        return Outcome(float(np.mean([f.covers for f in found])), n_runs)

    return run


def oracle_width(truth: Truth, n: int, n_replicates: int, fits_floor: bool) -> float:
    """Width in log loss at the top of the interval of one who knows the noise (first order, normal)."""
    x = log_compute(n)
    excess = np.exp(-truth.slope * x)
    loss = excess + truth.floor * excess[-1]
    unit = loss if truth.of_loss else excess
    columns = [excess / unit, excess * x / unit] + ([1 / unit] if fits_floor else [])
    X, steps = np.stack(columns, 1), np.abs(np.subtract.outer(np.arange(n + AHEAD), np.arange(n + AHEAD)))
    K = np.where(steps == 0, 1.0, truth.lasts**steps)
    P, c = np.linalg.inv(K[:n, :n]), K[-1, :n]
    u = X[-1] - X[:n].T @ P @ c
    variance = 1 - c @ P @ c + u @ np.linalg.solve(X[:n].T @ P @ X[:n], u)
    error = truth.noise * np.sqrt(variance / n_replicates) * unit[-1]
    return float(np.log1p(special.ndtri(0.975) * error / loss[-1]) - np.log1p(-special.ndtri(0.975) * error / loss[-1]))


def width_over_oracle(truth: Truth, n: int, n_replicates: int, n_runs: int, rng: np.random.Generator) -> float:
    """Median width over the oracle's, who knows that there is no floor where there is none, and fits it where there is one."""
    widths = [
        np.log(f.high / f.low)
        for f in played(truth, n, n_replicates, n_runs, rng)
        if f.high is not None and f.low is not None
    ]
    return float(np.median(widths)) / oracle_width(truth, n, n_replicates, truth.floor > 0)


def emerges(beyond: float, to: float) -> Callable[[np.ndarray], np.ndarray]:
    """A bend by which the excess falls to this share once log compute is past that point, over a fifth of a decade."""
    width = np.log(10) / 20
    return lambda x: np.log(to + (1 - to) * special.expit((beyond - x) / width))


def steepens(at: float, by: float) -> Callable[[np.ndarray], np.ndarray]:
    """A bend by which the slope grows by this much past that point, over half an e-fold either side."""
    return lambda x: -by * 0.5 * np.log1p(np.exp((x - at) / 0.5))


UNKNOWABLE: dict[str, Truth] = {
    "a skill emerges beyond the fit and takes the loss to a half": Truth(bend=emerges(log_compute(6)[5] + 1.2, 0.5)),
    "a skill emerges beyond the fit and takes the loss to a tenth": Truth(bend=emerges(log_compute(6)[5] + 1.2, 0.1)),
    "the slope grows by half within the fit": Truth(bend=steepens(log_compute(6)[3], 0.15)),
    "the slope grows by half beyond the fit": Truth(bend=steepens(log_compute(6)[5] + 0.6, 0.15)),
}
"""Six points are fitted. What comes of these is reported, and bounded by nothing."""


def unknowable(truth: Truth, n_runs: int, rng: np.random.Generator) -> dict[str, float]:
    """What a forecast from six points of five replicates is worth on a truth that it cannot know."""
    found = played(truth, 6, 5, n_runs, rng)
    return {
        "coverage": float(np.mean([f.covers for f in found])),
        "median log error": float(np.median([f.log_error for f in found if f.log_error is not None])),
        "misfit seen": float(np.mean([f.misfit_p < 0.05 for f in found if f.misfit_p is not None])),
        "beaten": float(np.mean([f.winner != "forecast" for f in found])),
    }


def scenario(name: str, truth: Truth, n: int, n_replicates: int, know_floor: bool = False) -> Scenario:
    return Scenario(f"forecast {name}", "coverage", 0.93, coverage(truth, n, n_replicates, know_floor))


TRUTHS: dict[str, tuple[Truth, int]] = {
    "pure law": (Truth(), 6),
    "pure law, noise that lasts": (Truth(lasts=0.9), 8),
    "floor": (Truth(floor=1.0), 6),
    "high floor, short fit": (Truth(slope=0.6, floor=3.0), 4),
    "floor, lasting noise of the loss": (Truth(floor=1.0, noise=0.01, lasts=0.7, of_loss=True), 8),
    "floor, replicates that differ": (Truth(floor=1.0, spread_log_amplitude=0.2, spread_slope=0.15), 6),
}
"""Truths and the points fitted, chosen among what was tried for the lowest coverage."""

SCENARIOS: tuple[Scenario, ...] = (
    *(
        scenario(f"{name}, {R} replicates", *TRUTHS[name], R)
        for name, R in (
            ("pure law", 3),
            ("pure law, noise that lasts", 5),
            ("floor", 5),
            ("high floor, short fit", 3),
            ("floor, lasting noise of the loss", 10),
            ("floor, replicates that differ", 3),
        )
    ),
    scenario("known floor, 10 replicates", Truth(floor=1.0, lasts=0.5), 5, 10, know_floor=True),
)
