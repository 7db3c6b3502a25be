"""Supervised learning: the log loss of the next token, at the positions that the loss mask of a batch sets.

The loss of a step is the mean over the targets of the global batch, for any number of workers and accumulation steps. An
objective gives the mean over some rows and the number of targets. The engine weights the means.
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
    """Log loss of the next token, in nats.

    For tokens that are numbers it is minus the log density of a normal distribution around the prediction, with the variance
    `family.numbers.noise_variance`. That is the squared error up to a factor and a constant.
    """

    def __init__(self, trunk: TrunkSpec) -> None:
        self.trunk = trunk

    def batch(self, step: int) -> Batch:
        """The batch of step number `step` (from 0): a pure function of the trunk and the step."""
        family: Any = self.trunk.family
        batch: Batch = family.batch(self.trunk.request, step)
        return batch

    def n_targets(self, batch: Batch, begin: int = 0, end: int | None = None) -> int:
        """Number of targets, positions with the loss mask set, in the rows begin ... end - 1 of the batch."""
        return int(np.count_nonzero(batch.loss_mask[begin:end]))

    def loss(self, model: Network, rows: Rows) -> Tensor:
        """The mean loss over the targets of these rows: a scalar with a gradient, 0 if they have no target."""
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
