"""The estimators: arrays in, numbers out. Know no study, no file, no figure.

measures    ability and memory           boundaries    boundaries, drift, crossovers
intervals   means and proportions        survival      compute to skill with censored replicates
replicates  noise, k of n succeed        breaks        break or smooth
differences two conditions               multiplicity  many claims at once
frontier    best size for a budget       minimums      the least replicates of each kind of claim

docs/statistics.md has definitions, sources and simulated coverage. Common names are exported here and loaded on first use: half of the
commands use no statistic, and scipy takes a moment to import. For the same reason Student's t, Wilson's and Welch's
intervals are written with scipy.special. Tests compare them with scipy.stats or with published values.
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
    from orchestrator.stats.intervals import Interval, agreement, containment, t_interval, wilson_interval
    from orchestrator.stats.measures import (
        MIN_GAP_ERRORS,
        MIN_GAP_NATS,
        MIN_ITEMS,
        abilities,
        memories,
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
    "intervals": ("Interval", "agreement", "containment", "t_interval", "wilson_interval"),
    "measures": (
        "MIN_GAP_ERRORS",
        "MIN_GAP_NATS",
        "MIN_ITEMS",
        "abilities",
        "memories",
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
    "agreement",
    "boundary",
    "containment",
    "crossing_step",
    "crossover",
    "drift",
    "memories",
    "monotone",
    "relative_distances",
    "t_interval",
    "wilson_interval",
]
