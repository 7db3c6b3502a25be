"""What the engine asks of an objective, and the rows of a batch that it hands to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trainers.tasks import Batch

Network = Callable[..., Tensor]
"""The model, as `models/transformer.py` is called."""


class NoTargetsError(ValueError):
    """A batch whose mask sets no position: nothing could be learned from it, and its mean would be 0 / 0."""


class Rows(NamedTuple):
    """Some rows of a batch, on the device."""

    tokens: Tensor  # (b, T+1) int64, or (b, T+1, W) float32
    loss_mask: Tensor  # (b, T) bool
    positions: Tensor | None = None  # (b, T) int64
    segments: Tensor | None = None  # (b, T) int64

    @classmethod
    def of(cls, batch: Batch, begin: int, end: int, device: str) -> Rows:
        """Rows begin ... end - 1."""
        tokens, loss_mask, *others = (
            None if part is None else torch.from_numpy(part[begin:end]).to(device) for part in batch
        )
        assert tokens is not None and loss_mask is not None
        return cls(tokens, loss_mask, *others)


class Objective(Protocol):
    """How a step and a model become a loss. `objectives/` has what there is; one is made for each trunk, on every rank alike."""

    def batch(self, step: int) -> Batch:
        """What step number `step` (from 0) learns from."""

    def n_targets(self, batch: Batch, begin: int = 0, end: int | None = None) -> int:
        """How many targets the loss of these rows is a mean over."""

    def loss(self, model: Network, rows: Rows) -> Tensor:
        """The mean over the targets of these rows, a scalar with a gradient; 0 where they have none."""
