"""How every estimator is put to the proof: data simulated from a known truth, thousands of times.

Each `tests/simulations/simulate_*.py` lists its `SCENARIOS`. `make test` runs a fixed stream of them (2,000 runs each unless stated),
`make calibration` the same at length and prints a table; tests/simulations/calibration.py is that command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from trainers.streams import stream


class Outcome(NamedTuple):
    """What came of the runs of a scenario."""

    share: float
    """Of the runs: those that covered the truth, claimed falsely, or found what was planted."""
    n_runs: int
    width_ratio: float | None = None
    """Median over runs: the interval's width over the mean width of the brackets behind it, infinite if an end is open.
    None where there is nothing to compare with."""

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return math.sqrt(max(self.share * (1 - self.share), 1e-9) / self.n_runs)


class Scenario(NamedTuple):
    """A simulated truth, and what must hold of an estimator on it."""

    name: str
    kind: Literal["coverage", "false claims", "power"]
    bound: float
    """The share must be at least this (coverage, power), or at most (false claims)."""
    run: Callable[[int, np.random.Generator], Outcome]
    """(number of runs, generator) -> outcome."""
    widest: float | None = None
    """The width ratio must be at most this, a few percent above what was measured: an interval must not cover by being
    needlessly wide. None: nothing is promised."""

    def play(self, n_runs: int) -> Outcome:
        """Run with the stream named after the scenario: the same numbers every time."""
        return self.run(n_runs, stream("simulation", self.name))

    def holds(self, outcome: Outcome, errors_allowed: float = 0.0) -> bool:
        """Are the bounds kept, that of the share but for so many standard errors?"""
        missed_by = outcome.share - self.bound if self.kind == "false claims" else self.bound - outcome.share
        return missed_by <= errors_allowed * outcome.error and not self.too_wide(outcome)

    def too_wide(self, outcome: Outcome) -> bool:
        """Is the interval wider than promised?"""
        return self.widest is not None and (outcome.width_ratio is None or outcome.width_ratio > self.widest)
