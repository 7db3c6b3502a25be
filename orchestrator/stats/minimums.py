"""The least replicates and scales from which each kind of claim can be tested.

Imports nothing, so that `emergence plan` prints from it without numpy or scipy. docs/statistics.md, "Least replicates".
"""

from __future__ import annotations

from typing import NamedTuple


class Minimum(NamedTuple):
    """The least data with which one kind of claim can be tested."""

    replicates: int
    """Replicates in every cell of the claim."""
    scales: int = 1
    """Distinct numbers of tasks, evaluations, budgets or model sizes along the axis of the claim."""


BREAK = Minimum(replicates=4, scales=8)
"""A break (`breaks.py`). Three replicates that jump each at its own place jump between the same two scales in 6 % of studies. At 8
scales the largest curve that the tests fit, with 7 parameters, keeps one degree of freedom."""

BOUNDARY = Minimum(replicates=6, scales=2)
"""A boundary, or compute to skill. A sign test of the median replicate at 5 % needs six: 2 x 2^-6 = .031, while 2 x 2^-5 = .0625."""

DIFFERENCE = Minimum(replicates=3)
"""A difference of means, a drift, a crossover, or a fall of a mean along an axis. Two bimodal replicates come out high at one level
and low at the next by chance (1 in 16 for each pair of levels). False alarms then reach 7 % at a nominal 5 %."""

MODEL_SIZE = Minimum(replicates=1, scales=3)
"""A best model size at one budget: a parabola has three parameters."""

MIN_REPLICATES, MIN_SCALES = BREAK
"""Least replicates and scales of a break."""


class Least(NamedTuple):
    """The least replicates for a verdict on a primary claim; `emergence plan` warns below either number."""

    to_settle: int
    """With fewer the interval cannot settle the claim, however well they agree."""
    to_trust: int
    """With at least as many, bimodal replicates seldom agree by chance on the wrong answer."""


CROSSING = Least(2, 5)
"""A boundary, or compute to skill. If replicates cross at one of two places, intervals of three replicates cover 76 %, of five 94 %."""
DRIFT = Least(3, 3)
"""A drift with compute. Its test is guarded against chance agreement."""
OVERTAKING = Least(3, 5)
"""One condition that overtakes another."""
MEAN = Least(2, 6)
"""A mean in a cell. Let the cell be bimodal with 47 % of the replicates high, and a claim on the mean be false by .1. The interval
then lies on the wrong side of the claim's end in 25 % of studies of 3 replicates, 13 % of 4, 6 % of 5 and 3 % of 6."""

LEAST = {
    "k_ability": CROSSING,
    "k_memory": CROSSING,
    "compute_to_skill": CROSSING,
    "along_ability": CROSSING,
    "along_long_answers": CROSSING,
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
"""`Primary.what` of a primary claim -> the least replicates for it."""
