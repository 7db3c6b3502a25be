"""How every estimator is put to the proof: data simulated from a known truth, thousands of times.

Each `tests/simulate_*.py` lists its `SCENARIOS`. `make test` runs a fixed stream of them (2,000 runs each unless stated),
`make calibration` the same at length and prints a table; tests/calibration.py is that command.
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
    """Median width of the interval over the median width of one bracket (log units); None where there is no bracket."""

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

    def play(self, n_runs: int) -> Outcome:
        """Run with the stream named after the scenario: the same numbers every time."""
        return self.run(n_runs, stream("simulation", self.name))

    def holds(self, outcome: Outcome) -> bool:
        """Is the bound kept?"""
        return outcome.share <= self.bound if self.kind == "false claims" else outcome.share >= self.bound
