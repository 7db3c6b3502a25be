"""Simulated truths for forecasts: curves that fall by a law, learn a skill, level off, or turn and rise; noise that lasts.

A run is evaluated four times a decade; the fit sees `n` points and the top lies .75 decades (a factor 5.6) beyond the
last of them. Of a law, the excess at the first point is one before replicates differ; a floor is stated as a multiple
of the excess at the top. Noise is multiplicative, in proportion to the excess or to the loss, autoregressive from point
to point. A skill takes the loss from uniform to the exact generaliser's, logistic in log compute, with a middle that is
another in every run.

Four kinds of scenario, each with 3, 5 and 10 replicates; what 2,000 to 4,000 runs of each gave
(`python tests/simulations/calibration.py --only forecast`):
- FALLS: of the intervals claimed, at least 93 % hold the mean measured at the top: 97.8 to 100 %. There is a forecast of
  93 to 96 % of the pure laws (88 to 91 % where noise lasts), of 99 % of those with a floor and of those that begin with
  a plateau, of 52, 74 and 85 % with three points; of 82 to 97 % where almost all is floor, and of 60 to 70 % of these
  where that is known, since then it may be passed; of a law that goes on after a skill 34, 62 and 96 %, of the end of a
  skill 3 to 8 %. Median width over that of an oracle, who knows the noise, its correlation, and whether there is a
  floor (not its height): 1.8 to 2.9 with a floor, 1.9 for a law whose noise lasts, 3.8 to 4.2 for one whose noise does
  not, since the oracle has no bend to rule out; 5.5 to 7.9 for a high floor and four points: there it is worth most to
  know that there is one.
- LEARNS: a skill is being learned in the last decade of the fit, or begins to be. It is refused, all but 6 of a
  thousand; no run in two thousand claims an interval that misses, whether the floor is known or not.
- STOPS: the curve has its least value within the fit, never fell, or ends at a floor that is known. At most 5 % of the
  runs claim an interval that misses: 2.6 to 3.8 % where it turns at the very last point and rises twice as fast as it
  fell, else 0.1 % and less.
- LATER: what nobody can know, since it begins beyond the fit. How often the interval holds is printed and bounded by
  nothing: 70 to 85 % where the curve turns and rises twice as fast as it fell, 12 to 27 % where it rises four times as
  fast; 23 to 67 % where the fall grows steeper by half; 1 to 7 % where the fall ends a quarter of a decade later at a
  floor that is not known (0 with little noise), 6 to 41 % after half a decade; 1 % and less where a skill emerges. Nor
  can a skill that takes three decades be told from a law by half of it: there is a forecast of 10, 6 and 4 % (3, 5 and
  10 replicates), which holds in 73, 66 and 53 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy import special
from simulation import Outcome, Scenario

from orchestrator.stats.forecast import Forecast, forecast

Kind = Literal["coverage", "false claims", "power"]
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


class Skill(NamedTuple):
    """A skill is learned: the loss falls to its floor, logistic in log compute, over a law if there is one."""

    width_decades: float
    """From a tenth to nine tenths of the way."""
    between: tuple[float, float]
    """Points of the grid between which the middle lies, another in every run."""
    floor_nats: float = 0.93
    height_nats: float = 1.84
    """Defaults: from uniform over 16 answers to what the exact generaliser of `cipher` scores."""
    law_nats: float = 0.0
    """Amplitude of a law C^-0.15 that is added."""
    noise: float = 0.01
    spread: float = 0.15
    """Of the replicates' middles, in e-folds of compute."""


def log_compute(n: int, a_decade: int = 4) -> np.ndarray:
    """(n + points ahead,)"""
    return np.arange(n + round(AHEAD_DECADES * a_decade)) * math.log(10) / a_decade


def losses(truth: Truth | Skill, n: int, n_replicates: int, rng: np.random.Generator, n_runs: int = 0) -> np.ndarray:
    """(R, n + points ahead), or (runs, R, n + points ahead)"""
    shape = (n_runs, n_replicates) if n_runs else (n_replicates,)
    if isinstance(truth, Skill):
        x = log_compute(n)
        step, noise = x[1], rng.standard_normal((*shape, len(x)))
        middle = rng.uniform(*truth.between, (*shape[:-1], 1, 1)) * step
        middle = middle + truth.spread * rng.standard_normal((*shape, 1))
        known = special.expit((x - middle) * 2 * math.log(9) / (truth.width_decades * math.log(10)))
        law = truth.law_nats * np.exp(-0.15 * x)
        return (truth.floor_nats + law + truth.height_nats * (1 - known)) * np.exp(truth.noise * noise)
    x = log_compute(n, truth.a_decade)
    noise = rng.standard_normal((*shape, len(x)))
    lasts = truth.lasts ** (4 / truth.a_decade)
    for k in range(1, len(x)):
        noise[..., k] = lasts * noise[..., k - 1] + math.sqrt(1 - lasts**2) * noise[..., k]
    amplitude = truth.spread_log_amplitude * rng.standard_normal((*shape, 1))
    slope = truth.slope * (1 + truth.spread_slope * rng.standard_normal((*shape, 1)))
    excess = np.exp(amplitude - slope * x + truth.bend(x))
    floor = truth.floor * excess[..., -1:].mean(axis=-2, keepdims=True)
    wobble = np.exp(truth.noise * noise)
    return (floor + excess) * wobble if truth.of_loss else floor + excess * wobble


class Case(NamedTuple):
    """A truth, the points fitted, and what is promised of it."""

    truth: Truth | Skill
    n: int = 6
    known: float | None = None
    """Floor that the forecast is told."""
    made: float = 0.0
    """Least share of the runs in which there is a forecast, with any number of replicates."""
    widest: float | None = None
    """Bound on the median width in units of the oracle's, for any number of replicates; None where no oracle is fair."""


def played(case: Case, n_replicates: int, n_runs: int, rng: np.random.Generator) -> list[Forecast]:
    """The forecasts of that many runs."""
    a_decade = case.truth.a_decade if isinstance(case.truth, Truth) else 4
    compute = np.exp(log_compute(case.n, a_decade))
    runs = losses(case.truth, case.n, n_replicates, rng, n_runs)
    return [forecast(compute, run, floor=case.known) for run in runs]


# What the curve does ahead ------------------------------------------------------------------------------------------


def turns(at_point: float, rises: float, slope: float = 0.3) -> Truth:
    """C^-slope + b C^(rises slope), least at that point of the grid: a skill is lost again, or tasks are memorised."""
    b = np.exp(-(1 + rises) * slope * at_point * math.log(10) / 4) / rises
    return Truth(slope=slope, bend=lambda x: np.log1p(b * np.exp((1 + rises) * slope * x)))


def levels_off(at_point: float, slope: float = 0.3, noise: float = 0.02) -> Truth:
    """Falls by the law up to that point of the grid, and no further."""
    return Truth(slope=slope, noise=noise, bend=lambda x: slope * np.maximum(x - at_point * math.log(10) / 4, 0))


def end_of(at_point: float, slope: float = 0.3) -> float:
    """The loss at which it then stays."""
    return math.exp(-slope * at_point * math.log(10) / 4)


def begins(at_point: float) -> Truth:
    """A plateau up to that point of the grid, then C^-0.3 down to a floor."""
    at = at_point * math.log(10) / 4
    return Truth(floor=1.0, bend=lambda x: 0.3 * x - 0.15 * np.log1p(np.exp(2 * (x - at))))


def with_known_floor(truth: Truth, n: int = 6, made: float = 0.0) -> Case:
    """A law that falls towards a floor that the forecast is told."""
    x = log_compute(n, truth.a_decade)
    return Case(truth, n, truth.floor * float(np.exp(truth.bend(x) - truth.slope * x)[-1]), made)


def emerges(beyond: float, to: float) -> Callable[[np.ndarray], np.ndarray]:
    """A bend by which the excess falls to this share once log compute is past that point, over a fifth of a decade."""
    width = np.log(10) / 20
    return lambda x: np.log(to + (1 - to) * special.expit((beyond - x) / width))


def steepens(at: float, by: float) -> Callable[[np.ndarray], np.ndarray]:
    """A bend by which the slope grows by this much past that point, over half an e-fold either side."""
    return lambda x: -by * 0.5 * np.log1p(np.exp((x - at) / 0.5))


LAW_AND_SKILL = Skill(0.478, (2.0, 5.59), floor_nats=0.4, height_nats=0.5, law_nats=1.5, noise=0.005)
HIGH, NEAR = Truth(slope=0.6, floor=3.0), Truth(slope=0.6, floor=40.0, noise=0.005, of_loss=True)

FALLS: dict[str, Case] = {
    "pure law": Case(Truth(), made=0.9, widest=4.6),
    "pure law, noise that lasts": Case(Truth(lasts=0.9), 8, made=0.8, widest=2.1),
    "pure law, eight points a decade": Case(Truth(a_decade=8), 13, made=0.8),
    "floor": Case(Truth(floor=1.0), made=0.9, widest=3.0),
    "floor, three points": Case(Truth(floor=1.0), 3, made=0.45, widest=3.0),
    "floor, eight points a decade": Case(Truth(floor=1.0, noise=0.01, lasts=0.8, a_decade=8), 13, made=0.9, widest=2.3),
    "floor, lasting noise of the loss": Case(
        Truth(floor=1.0, noise=0.01, lasts=0.7, of_loss=True), 8, made=0.9, widest=2.6
    ),
    "floor, replicates that differ": Case(
        Truth(floor=1.0, spread_log_amplitude=0.2, spread_slope=0.15), made=0.9, widest=3.2
    ),
    "high floor, short fit": Case(HIGH, 4, made=0.9, widest=8.8),
    "high floor, short fit, known": with_known_floor(HIGH, 4, made=0.9),
    "almost at its floor": Case(NEAR, made=0.7),
    "almost at its floor, known": with_known_floor(NEAR, made=0.5),
    "the end of a skill of 1.5 decades, floor known": Case(Skill(1.5, (-2.6, 1.0)), known=0.93),
    "a plateau, then a law": Case(begins(3), 14, made=0.8),
    "a law, and a skill long before": Case(LAW_AND_SKILL._replace(between=(2.0, 9.0)), 14, known=0.4, made=0.1),
    "turns a quarter decade later, rises as it fell": Case(turns(6, 1)),
    "turns half a decade later, rises as it fell": Case(turns(7, 1), made=0.7),
}

PLACES = {"anywhere": (1.0, 8.87), "within the fit": (2.0, 5.24), "beyond the fit": (5.59, 8.87)}
LEARNS: dict[str, Case] = {
    f"a skill of {width} decades, {place}": Case(Skill(width, between), known=0.93)
    for width in (0.3, 0.8, 1.5)
    for place, between in PLACES.items()
} | {
    "a skill of 0.8 decades, anywhere, floor unknown": Case(Skill(0.8, PLACES["anywhere"])),
    "a law, and a skill within the fit": Case(LAW_AND_SKILL, known=0.4),
    "a law, and a skill within the fit, floor unknown": Case(LAW_AND_SKILL),
    "the slope grows by half within the fit": Case(Truth(bend=steepens(log_compute(6)[3], 0.15))),
}

STOPS: dict[str, Case] = {
    "plateau": Case(Truth(slope=0.0)),
    "plateau, noise that lasts": Case(Truth(slope=0.0, lasts=0.9), 8),
    "at its floor": with_known_floor(Truth(slope=1.5, floor=2000.0, noise=0.01, of_loss=True)),
    "at its floor, unknown": Case(Truth(slope=1.5, floor=2000.0, noise=0.01, of_loss=True)),
    "levels off within the fit": Case(levels_off(3)),
    "ends at a known floor a quarter decade later": Case(levels_off(6), known=end_of(6)),
    "ends at a known floor half a decade later": Case(levels_off(7), known=end_of(7)),
    "turns within the fit, rises as it fell": Case(turns(3, 1)),
    "turns within the fit, rises twice as fast": Case(turns(5, 2), 8),
    "turns near the end, rises as it fell": Case(turns(4.5, 1)),
    "turns near the end, rises twice as fast": Case(turns(6.5, 2), 8),
    "turns near the end, rises four times as fast": Case(turns(4.5, 4)),
    "turns at the last point, rises as it fell": Case(turns(5, 1)),
    "turns at the last point, rises twice as fast": Case(turns(5, 2)),
}

LATER: dict[str, Case] = {
    "a skill of 3 decades, anywhere": Case(Skill(3.0, PLACES["anywhere"]), known=0.93),
    "levels off a quarter decade later": Case(levels_off(6)),
    "levels off half a decade later": Case(levels_off(7)),
    "levels off a quarter decade later, little noise": Case(levels_off(6, noise=0.005)),
    "turns a quarter decade later, rises twice as fast": Case(turns(6, 2)),
    "turns a quarter decade later, rises four times as fast": Case(turns(6, 4)),
    "turns half a decade later, rises twice as fast": Case(turns(7, 2)),
    "turns half a decade later, rises four times as fast": Case(turns(7, 4)),
    "the slope grows by half later": Case(Truth(bend=steepens(log_compute(6)[5] + 0.6, 0.15))),
    "a skill emerges later, half the loss": Case(Truth(bend=emerges(log_compute(6)[5] + 1.2, 0.5))),
    "a skill emerges later, a tenth of the loss": Case(Truth(bend=emerges(log_compute(6)[5] + 1.2, 0.1))),
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


def of_claims(case: Case, n_replicates: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Share of the intervals that hold, among those claimed (their number is the outcome's), and their median width over
    the oracle's."""

    def run(n_runs: int, rng: np.random.Generator) -> Outcome:
        claims = [f for f in played(case, n_replicates, n_runs, rng) if f.low is not None]
        widths = [w for w in map(width, claims) if w is not None]
        held = float(np.mean([f.covers for f in claims])) if claims else 0.0
        fair = case.widest is not None and isinstance(case.truth, Truth) and widths
        wide = float(np.median(widths)) / oracle_width(case.truth, case.n, n_replicates) if fair else None
        return Outcome(held, max(1, len(claims)), wide)

    return run


def misled(case: Case, n_replicates: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Share of the runs that claim an interval, and it misses."""

    def run(n_runs: int, rng: np.random.Generator) -> Outcome:
        found = played(case, n_replicates, n_runs, rng)
        return Outcome(float(np.mean([f.covers is False for f in found])), n_runs)

    return run


def made(case: Case, n_replicates: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Share of the runs that claim an interval."""

    def run(n_runs: int, rng: np.random.Generator) -> Outcome:
        found = played(case, n_replicates, n_runs, rng)
        return Outcome(float(np.mean([f.low is not None for f in found])), n_runs)

    return run


REPLICATES = (3, 5, 10)
Play = Callable[["Case", int], Callable[[int, np.random.Generator], Outcome]]


def _scenarios(kind: Kind, cases: dict[str, Case], bound: float | None, play: Play, what: str = "") -> list[Scenario]:
    """One for each number of replicates; `bound` None: the case's own."""
    return [
        Scenario(
            f"forecast {name}, {R} replicates{what}",
            kind,
            case.made if bound is None else bound,
            play(case, R),
            case.widest if kind == "coverage" else None,
        )
        for name, case in cases.items()
        for R in REPLICATES
    ]


PROMISED: tuple[Scenario, ...] = (
    *_scenarios("coverage", FALLS, 0.93, of_claims),
    *_scenarios("false claims", LEARNS, 0.01, misled),
    *_scenarios("false claims", STOPS, 0.05, misled),
)

SCENARIOS: tuple[Scenario, ...] = (
    *PROMISED,
    *_scenarios("power", FALLS, None, made, ", made"),
    *_scenarios("coverage", LATER, 0.0, of_claims),
)
"""Bound 0 is printed as "measured": what begins beyond the fit."""
