"""The interface between engine and objective, and the rows of a batch that pass between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.tasks import Batch

Network = Callable[..., Tensor]
"""The model, with the call signature of `models/transformer.py`."""


class NoTargetsError(ValueError):
    """The loss mask of a batch is empty. Its mean loss would be 0 / 0."""


class Rows(NamedTuple):
    """Some sequences of a `Batch`, as tensors on the device. The fields mean the same as there."""

    tokens: Tensor  # (b, T+1) int64, or (b, T+1, W) float32
    loss_mask: Tensor  # (b, T) bool
    positions: Tensor | None = None  # (b, T) int64
    segments: Tensor | None = None  # (b, T) int64
    weights: Tensor | None = None  # (b, T) float32

    @classmethod
    def of(cls, batch: Batch, begin: int, end: int, device: str) -> Rows:
        """Rows begin ... end - 1 of the batch, copied to the device."""
        tokens, loss_mask, *others = (
            None if part is None else torch.from_numpy(part[begin:end]).to(device) for part in batch
        )
        assert tokens is not None and loss_mask is not None
        return cls(tokens, loss_mask, *others)


class Sampled(NamedTuple):
    """Answers to N questions, the same on every rank."""

    tokens: np.ndarray
    """Written ids (N, n_new) int64; behind an answer stands the end alone."""
    n_tokens: np.ndarray
    """Tokens of each answer (N,) int64, its end included."""
    log_probs: np.ndarray
    """Log-probability of each written token when it was drawn (N, n_new) float32, in nats; 0 behind the answer."""
    verdicts: np.ndarray
    """Verdicts (N, 4) bool, in the order of VERDICTS."""


VERDICTS = ("ended", "answered", "right", "sound")
"""An answer ended, can be read as an answer, is right by the scorer, is right by the oracle, too (`Questions.oracle`)."""

Write = Callable[..., Sampled]
"""`Engine.write`, which samples answers."""


class Objective(Protocol):
    """Gives the batch of each step and the loss of a model on it. Objectives are in `objectives/`.

    Every rank makes its own, and all of them must give the same batches.
    """

    def batch(self, step: int) -> Batch:
        """The batch of step number `step` (from 0)."""

    def n_targets(self, batch: Batch, begin: int = 0, end: int | None = None) -> int:
        """Number of targets in the rows begin ... end - 1 of the batch. The loss is the mean over targets."""

    def loss(self, model: Network, rows: Rows) -> Tensor:
        """The mean loss over the targets of these rows: a scalar with a gradient, 0 if they have no target."""
