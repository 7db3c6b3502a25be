"""Supervised learning: the log loss of the next token, at the positions that the mask of a batch sets.

The loss of a step is the mean over the targets of the global batch, whatever the workers and the accumulation steps: an objective
gives the mean over the rows that it is handed, and how many targets there are in all; the engine weighs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from trainers.engine.rows import Network, Rows
from trainers.spec import TrunkSpec
from trainers.tasks import Batch


class Supervised:
    """Log loss in nats. For tokens that are numbers: minus the log density of a normal law of the family's variance around the
    prediction, which is the squared error but for a factor and a constant."""

    def __init__(self, trunk: TrunkSpec) -> None:
        self.trunk = trunk

    def batch(self, step: int) -> Batch:
        """What step number `step` (from 0) learns from: a pure function of the trunk and the step."""
        family: Any = self.trunk.family
        batch: Batch = family.batch(self.trunk.request, step)
        return batch

    def n_targets(self, batch: Batch, begin: int = 0, end: int | None = None) -> int:
        """How many targets the loss of these rows is a mean over."""
        return int(np.count_nonzero(batch.loss_mask[begin:end]))

    def loss(self, model: Network, rows: Rows) -> Tensor:
        """The mean over the targets of these rows, a scalar with a gradient; 0 where they have none."""
        mask = rows.loss_mask
        at = model(rows.tokens[:, :-1], mask, rows.positions, rows.segments)  # (n, V) where the mask is set
        if not len(at):
            return at.sum()  # 0, with a gradient of zeros for every parameter
        targets = rows.tokens[:, 1:][mask]
        family: Any = self.trunk.family
        if family.numbers is None:
            return F.cross_entropy(at, targets)
        variance = at.new_tensor(family.numbers.noise_variance).expand(len(at))
        return F.gaussian_nll_loss(at[:, 0], targets[:, 0], variance, full=True)
