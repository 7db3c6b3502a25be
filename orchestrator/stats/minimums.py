"""How many replicates, and how many scales, it takes before something may be claimed. Imports nothing of ours.

`docs/statistics.md` has the simulations behind these numbers.
"""

from __future__ import annotations

from typing import NamedTuple


class Least(NamedTuple):
    """Replicates that a kind of claim takes."""

    to_settle: int
    """Fewer cannot settle it, however well they agree."""
    to_trust: int
    """From here on replicates of a bimodal onset seldom agree by chance on the wrong answer."""


CROSSING = Least(2, 5)
"""A boundary, or compute to skill. Where replicates are of two kinds, 95 % intervals of three cover 76 %, of five 94 %."""
DRIFT = Least(3, 3)
"""A drift with compute. Its test is guarded against chance agreement."""
OVERTAKING = Least(3, 5)
"""One condition overtaking another: below three replicates nothing is tested."""
MEAN = Least(2, 6)
"""A mean in a cell. With 47 % of replicates up and a claim that is false by .1, the interval lies on the wrong side in 25 %
of studies of 3 replicates, 13 % of 4, 6 % of 5, 3 % of 6 (40,000 each)."""
BREAK = Least(4, 4)
"""A break: with fewer replicates at the scales around it none is claimed."""

MIN_SCALES = 8
"""Below this many distinct scales no break is claimed."""
MIN_REPLICATES = BREAK.to_settle

LEAST = {
    "k_ability": CROSSING,
    "k_memory": CROSSING,
    "compute_to_skill": CROSSING,
    "drift_ability": DRIFT,
    "drift_memory": DRIFT,
    "crossover": OVERTAKING,
    "overtakes": OVERTAKING,
    "emergence": BREAK,
    "accuracy": MEAN,
    "ability": MEAN,
    "memory": MEAN,
    "change_accuracy": MEAN,
    "change_ability": MEAN,
}
"""Kind of a primary claim -> the replicates that it takes."""
