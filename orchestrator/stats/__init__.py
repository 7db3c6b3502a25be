"""The estimators: arrays in, numbers out. Know no study, no file, no figure.

What decides a claim is checked by thousands of simulated runs (tests/simulations/simulation.py); the frontier, which is slow, by dozens of
studies (tests/stats/test_frontier.py), ability and memory against values computed by hand.

measures    ability and memory           boundaries  where one half is crossed, drift, crossovers
intervals   means and proportions        survival    compute-to-skill with censored replicates
replicates  noise, k of n succeed        breaks      break or smooth
frontier    best size for a budget       multiplicity  many claims at once

What is used everywhere is exported here, loaded when it is first asked for: half of the commands draw no statistic, and scipy takes
a moment to import. For the same reason what is a line of scipy.special is written so (Student's t, Wilson, Welch), and tests
hold it to scipy.stats or to published values.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.stats.boundaries import (
        HALF,
        Boundary,
        Bracket,
        Crossover,
        Drift,
        Monotone,
        boundary,
        crossing_step,
        crossover,
        drift,
        monotone,
    )
    from orchestrator.stats.intervals import Interval, agreement, one_sided_p, t_interval, wilson_interval
    from orchestrator.stats.measures import (
        MIN_GAP_ERRORS,
        MIN_GAP_NATS,
        MIN_ITEMS,
        abilities,
        ability,
        memories,
        memory,
        relative_distance,
        relative_distances,
    )

_EXPORTS = {
    "boundaries": (
        "HALF",
        "Boundary",
        "Bracket",
        "Crossover",
        "Drift",
        "Monotone",
        "boundary",
        "crossing_step",
        "crossover",
        "drift",
        "monotone",
    ),
    "intervals": ("Interval", "agreement", "one_sided_p", "t_interval", "wilson_interval"),
    "measures": (
        "MIN_GAP_ERRORS",
        "MIN_GAP_NATS",
        "MIN_ITEMS",
        "abilities",
        "ability",
        "memories",
        "memory",
        "relative_distance",
        "relative_distances",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _EXPORTS.items():
        if name in names:
            return getattr(import_module(f"orchestrator.stats.{module}"), name)
    raise AttributeError(f"module 'orchestrator.stats' has no {name!r}")


__all__ = [
    "HALF",
    "MIN_GAP_ERRORS",
    "MIN_GAP_NATS",
    "MIN_ITEMS",
    "Boundary",
    "Bracket",
    "Crossover",
    "Drift",
    "Interval",
    "Monotone",
    "abilities",
    "ability",
    "agreement",
    "boundary",
    "crossing_step",
    "crossover",
    "drift",
    "memories",
    "memory",
    "monotone",
    "one_sided_p",
    "relative_distance",
    "relative_distances",
    "t_interval",
    "wilson_interval",
]
