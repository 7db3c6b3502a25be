"""The least replicates and scales from which each kind of claim can be tested.

Imports nothing, so that `emergence plan` prints from it without numpy or scipy. docs/statistics.md, "Least replicates".
"""

from __future__ import annotations

from typing import NamedTuple


class Minimum(NamedTuple):
    """The least data for one kind of claim."""

    replicates: int
    scales: int = 1
    """Distinct numbers of tasks, evaluations, budgets or model sizes along the axis of the claim."""


BREAK = Minimum(replicates=4, scales=8)
"""A break. Three replicates that jump each at its own place jump between the same two scales in 6 % of studies. At 8 scales the
largest model of the tests, with 7 parameters, keeps one degree of freedom."""

BOUNDARY = Minimum(replicates=6, scales=2)
"""A boundary, or compute to skill. A sign test of the median replicate at 5 % needs six: 2 x 2^-6 = .031, while 2 x 2^-5 = .0625."""

DIFFERENCE = Minimum(replicates=3)
"""A difference, drift, crossover or fall. Two bimodal replicates come out high at one level and low at the next by chance (1 in 16
for each pair of levels). False alarms then reach 7 % at a nominal 5 %."""

MODEL_SIZE = Minimum(replicates=1, scales=3)
"""A best model size at one budget: a parabola has three parameters."""

NORMAL = Minimum(replicates=5)
"""A t-interval. Fewer values cannot show two levels."""

MIN_REPLICATES, MIN_SCALES = BREAK


class Least(NamedTuple):
    """Replicates that a primary claim takes."""

    to_settle: int
    """Fewer cannot settle it, however well they agree."""
    to_trust: int
    """From here on replicates of a bimodal onset seldom agree by chance on the wrong answer."""


CROSSING = Least(2, 5)
"""A boundary, or compute to skill. If thresholds are of two kinds, intervals of three replicates cover 76 %, of five 94 %."""
DRIFT = Least(3, 3)
"""A drift with compute. Its test is guarded against chance agreement."""
OVERTAKING = Least(3, 5)
"""One condition that overtakes another."""
MEAN = Least(2, 6)
"""A mean in a cell. Let 47 % of the replicates be up, and a claim be false by .1. The interval then lies on the wrong side in
25 % of studies of 3 replicates, 13 % of 4, 6 % of 5 and 3 % of 6."""

LEAST = {
    "k_ability": CROSSING,
    "k_memory": CROSSING,
    "compute_to_skill": CROSSING,
    "drift_ability": DRIFT,
    "drift_memory": DRIFT,
    "crossover": OVERTAKING,
    "overtakes": OVERTAKING,
    "emergence": Least(MIN_REPLICATES, MIN_REPLICATES),
    "accuracy": MEAN,
    "ability": MEAN,
    "memory": MEAN,
    "change_accuracy": MEAN,
    "change_ability": MEAN,
}
"""Kind of a primary claim -> the replicates that it takes."""
