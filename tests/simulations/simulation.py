"""Simulation of known truths, the check of every estimator.

Each `tests/simulations/simulate_*.py` lists its `SCENARIOS`. The tests play a fixed stream of each with RUNS_IN_TESTS runs. `make
calibration` (tests/simulations/calibration.py) plays the same at length and prints a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from trainers.streams import stream

RUNS_IN_TESTS = 500
"""Runs of each scenario in a test. A share near .95 then has a standard error of 1 %."""
ERRORS_ALLOWED = 2.0
"""Standard errors by which a share may miss its bound."""


class Outcome(NamedTuple):
    """The result of playing a scenario."""

    share: float
    """Share of runs that covered the truth, claimed falsely, or found a planted effect."""
    n_runs: int
    width_ratio: float | None = None
    """Median over runs: the interval's width over the mean width of the brackets behind it, infinite if an end is open.
    None without such a comparison."""

    width_low: float | None = None
    """Lower end of that median, at two standard errors; None: as `width_ratio`."""

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return math.sqrt(max(self.share * (1 - self.share), 1e-9) / self.n_runs)


def median_of(ratios: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The median, and its lower end at two standard errors by order statistics: the rank has an error of sqrt(n) / 2."""
    ordered = np.sort(ratios)
    n = len(ordered)
    return float(np.median(ordered)), float(ordered[max(0, math.floor(n / 2 - math.sqrt(n)))])


class Scenario(NamedTuple):
    """A simulated truth, and a bound on an estimator."""

    name: str
    kind: Literal["coverage", "false claims", "power"]
    bound: float
    """The share must be at least this (coverage, power), or at most (false claims)."""
    run: Callable[[int, np.random.Generator], Outcome]
    """(number of runs, generator) -> outcome."""
    widest: float | None = None
    """Largest allowed width ratio, a few percent above the measured one: an interval must not cover by being needlessly wide. None:
    no promise."""

    def play(self, n_runs: int) -> Outcome:
        """Run with the stream named after the scenario: the same numbers every time."""
        return self.run(n_runs, stream("simulation", self.name))

    def holds(self, outcome: Outcome, errors_allowed: float = ERRORS_ALLOWED) -> bool:
        """True if the bounds hold, the share within so many standard errors."""
        missed_by = outcome.share - self.bound if self.kind == "false claims" else self.bound - outcome.share
        return missed_by <= errors_allowed * outcome.error and not self.too_wide(outcome)

    def too_wide(self, outcome: Outcome) -> bool:
        """True if the interval is wider than promised, beyond the error of the simulation."""
        low = outcome.width_ratio if outcome.width_low is None else outcome.width_low
        return self.widest is not None and (low is None or low > self.widest)
