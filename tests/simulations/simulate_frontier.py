"""Simulated studies for the best model size: a known law of loss in size and tokens, and noise alone.

Results: docs/statistics.md, "Best model size".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from simulation import Outcome, Scenario

from orchestrator.stats.frontier import isoflop

Rng = np.random.Generator
EXPONENT = 0.28 / 0.62
"""Of the best size, by `known_loss`."""


def known_loss(n_parameters: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Hoffmann et al. 2022, section 3.3 (rounded)."""
    return 1.69 + 406.4 / n_parameters**0.34 + 410.7 / n_tokens**0.28


def best_size(compute: Any) -> Any:
    """Parameters with the lowest loss, tokens being compute / 6 / parameters."""
    ratio = 0.34 * 406.4 / (0.28 * 410.7)
    return ratio ** (1 / 0.62) * (compute / 6) ** EXPONENT


def study(budgets: ArrayLike, factors: ArrayLike, n_replicates: int = 1, centre: float | None = None) -> np.ndarray:
    """(5, trials): sizes, tokens, loss of the known law, compute, replicate.

    Sizes lie around the best one, or around one centre for all budgets.
    """
    C, factor, replicate = (
        part.ravel() for part in np.meshgrid(budgets, factors, np.arange(n_replicates), indexing="ij")
    )
    N = (best_size(C) if centre is None else centre) * factor
    return np.stack([N, C / 6 / N, known_loss(N, C / 6 / N), C, replicate])


class Design(NamedTuple):
    """A grid of sizes at three budgets, and its noise."""

    n_sizes: int
    factor: float
    """Between neighbouring sizes."""
    n_replicates: int
    noise: float
    fixed: bool = False
    """One set of sizes for all budgets."""
    offset: float = 0.0
    """Steps by which the grid lies off the best size. Replicates then have offsets of their own (sd .05 nats)."""


DESIGNS = {
    "own sizes, one replicate": Design(5, 2.0, 1, 0.003),
    "one set of sizes for all budgets": Design(9, 2.0, 3, 0.003, fixed=True),
    "wide grid and little noise": Design(7, 4.0, 3, 0.002),
    "off centre, offsets of replicates": Design(5, 2.0, 3, 0.005, offset=0.7),
}


def covered(design: Design) -> Callable[[int, Rng], Outcome]:
    """Coverage of minima or of the exponent, the smaller of both. The truth is no parabola.

    Fewer than nine in ten intervals given count as none covered.
    """

    def run(n_runs: int, draw: Rng) -> Outcome:
        budgets = 1e19 * 4.0 ** np.arange(3)
        minima, exponents = [], []
        for _ in range(n_runs):
            steps = np.arange(design.n_sizes) - (design.n_sizes - 1) / 2 + draw.uniform(-0.5, 0.5) + design.offset
            centre = best_size(budgets[1]) if design.fixed else None
            data = study(budgets, design.factor**steps, design.n_replicates, centre)
            loss, replicate = data[2] * np.exp(design.noise * draw.standard_normal(data.shape[1])), data[4].astype(int)
            if design.offset:
                loss = loss + 0.05 * draw.standard_normal(design.n_replicates)[replicate]
            found = isoflop(data[0], data[1], loss, data[3], replicate.tolist())
            if found.low is not None and found.high is not None:
                exponents.append(found.low <= EXPONENT <= found.high)
            for one in found.budgets:
                if one.verdict == "minimum":
                    truth = best_size(one.compute)
                    minima.append((one.low is None or one.low <= truth) and (one.high is None or truth <= one.high))
        if len(minima) <= 0.9 * 3 * n_runs or len(exponents) <= 0.9 * n_runs:
            return Outcome(0.0, n_runs)
        return Outcome(min(float(np.mean(minima)), float(np.mean(exponents))), n_runs)

    return run


def named_in_noise(n_runs: int, draw: Rng) -> Outcome:
    """Share of studies of noise alone that name a size with a closed interval."""
    z = np.tile(np.arange(5.0), 3)
    closed = 0
    for _ in range(n_runs):
        found = isoflop(np.exp(z), np.exp(-z), 2 + 0.01 * draw.standard_normal(15), np.ones(15)).budgets[0]
        closed += found.low is not None and found.high is not None
    return Outcome(closed / n_runs, n_runs)


SCENARIOS = (
    *(Scenario(f"frontier: {name}", "coverage", 0.93, covered(design)) for name, design in DESIGNS.items()),
    Scenario("frontier: noise alone", "false claims", 0.05, named_in_noise),
)
