"""Simulated truths for shares of tasks by replicates: does the interval over both cover the mean of all tasks and replicates?

A bound of 0 is measured, not promised. `python tests/simulations/calibration.py --only crossed` plays them at length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from simulation import Outcome, Scenario

from orchestrator.stats.crossed import crossed

N_ITEMS = 8
Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""(generator, tasks, replicates) -> shares (tasks, replicates)."""


class Truth(NamedTuple):
    """A law of shares, and its mean over all tasks and replicates."""

    mean: float
    draw: Draw


def _share(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def answers(of_tasks: float, of_replicates: float, of_both: float = 0.5) -> Truth:
    """Right answers to N_ITEMS items a task. Log odds have normal effects of tasks, replicates and both."""

    def draw(stream: np.random.Generator, n_tasks: int, n: int) -> np.ndarray:
        odds = of_tasks * stream.standard_normal((n_tasks, 1)) + of_replicates * stream.standard_normal((1, n))
        return stream.binomial(N_ITEMS, _share(odds + of_both * stream.standard_normal((n_tasks, n)))) / N_ITEMS

    return Truth(0.5, draw)


def solved(share: float, of_replicates: float = 0.7) -> Truth:
    """A `share` of the tasks is solved in most items, the others hardly ever."""

    def draw(stream: np.random.Generator, n_tasks: int, n: int) -> np.ndarray:
        is_solved = stream.random((n_tasks, 1)) < share
        odds = np.where(is_solved, 2.0, -4.0) + of_replicates * stream.standard_normal((1, n))
        return stream.binomial(N_ITEMS, _share(odds)) / N_ITEMS

    points, weights = np.polynomial.hermite_e.hermegauss(60)  # the mean over replicates of both kinds of tasks
    solved, other = (float(_share(at + of_replicates * points) @ weights / weights.sum()) for at in (2.0, -4.0))
    return Truth(share * solved + (1 - share) * other, draw)


def missing(truth: Truth, share: float) -> Truth:
    """A `share` of the cells is missing."""

    def draw(stream: np.random.Generator, n_tasks: int, n: int) -> np.ndarray:
        found = truth.draw(stream, n_tasks, n)
        return np.where(stream.random(found.shape) < share, np.nan, found)

    return Truth(truth.mean, draw)


def by_cluster(n_own: int, of_clusters: float, n_asked: int = 90, n_clusters: int = 15) -> Truth:
    """Each replicate is asked the first `n_asked` tasks of `n_own` clusters of its own, of a table with `n_clusters`.

    The mean is that over these clusters, whose effects are evenly spread.
    """
    effects = np.linspace(-1, 1, n_clusters) * of_clusters

    def draw(stream: np.random.Generator, n_tasks: int, n: int) -> np.ndarray:
        cluster = stream.permutation(np.arange(n_tasks) % n_clusters)
        of_task = effects[cluster] + 0.15 * stream.standard_normal(n_tasks)
        found = np.full((n_tasks, n), np.nan)
        for r in range(n):
            asked = np.flatnonzero(np.isin(cluster, stream.permutation(n_clusters)[:n_own]))[:n_asked]
            share = np.clip(0.5 + of_task[asked] + 0.03 * stream.standard_normal(), 0, 1)
            found[asked, r] = stream.binomial(4, share) / 4
        return found

    return Truth(0.5, draw)


def covered(
    truth: Truth, n_tasks: int, n: int, confidence: float = 0.95, own_units: bool = False
) -> Callable[[int, np.random.Generator], Outcome]:
    """Coverage of the interval over both. A table without any spread has no interval, and counts as not covered."""

    def run(n_runs: int, stream: np.random.Generator) -> Outcome:
        hits = 0
        for _ in range(n_runs):
            found = crossed(truth.draw(stream, n_tasks, n), confidence, own_units)
            ends = found.over_both if found is not None else None
            hits += ends is not None and ends[0] <= truth.mean <= ends[1]
        return Outcome(hits / n_runs, n_runs)

    return run


EVEN, TASKS, REPLICATES, FEW = answers(1.5, 0.7), answers(3.0, 0.2), answers(0.2, 0.7), solved(0.1)
SCENARIOS = (
    *(
        Scenario(f"crossed: {name}, {n_tasks} tasks, {n} replicates", "coverage", bound, covered(truth, n_tasks, n))
        for name, truth, bound in (
            ("tasks and replicates differ", EVEN, 0.94),
            ("tasks differ", TASKS, 0.94),
            ("replicates differ", REPLICATES, 0.93),
        )
        for n_tasks, n in ((6, 2), (20, 2), (20, 3), (100, 3), (100, 5))
    ),
    Scenario("crossed: a fifth of the cells missing", "coverage", 0.93, covered(missing(EVEN, 0.2), 20, 3)),
    *(
        Scenario(
            f"crossed: {n} replicates with {n_own} of 15 clusters each, which differ by {of_clusters}",
            "coverage",
            0.94,
            covered(by_cluster(n_own, of_clusters), 390, n, own_units=True),
        )
        for n_own, of_clusters, n in ((5, 0.4, 3), (5, 0.4, 10), (12, 0.4, 3), (5, 0.05, 5))
    ),
    Scenario("crossed: at 99 %", "coverage", 0.98, covered(EVEN, 20, 3, 0.99)),
    Scenario("crossed: a third of 20 tasks solved", "coverage", 0.92, covered(solved(0.3), 20, 3)),
    *(
        Scenario(f"crossed: a tenth of {n_tasks} tasks solved", "coverage", bound, covered(FEW, n_tasks, 3))
        for n_tasks, bound in ((20, 0.0), (100, 0.92))
    ),
)
