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

BIMODAL_CROSSING = Minimum(replicates=5, scales=2)
"""A crossing without a caution. If thresholds are of two kinds, intervals of three replicates cover 76 %, of five 94 %."""

BIMODAL_MEAN = Minimum(replicates=6)
"""A mean without a caution. Let 47 % of the replicates be up, and a claim be false by .1. The interval then lies on the wrong side in
25 % of studies of 3 replicates, 13 % of 4, 6 % of 5 and 3 % of 6."""

MOST_TRIED = 20
"""Replicates up to which `primary.least` looks for the least number that could settle a claim. Boundaries need 6 at most."""

MIN_REPLICATES, MIN_SCALES = BREAK
