"""Families in which a task is a probability distribution (a law). A sequence is drawn from one law. Predictions are scored
against the law itself, not against the drawn tokens.

The universe has 2^62 tasks, and half of them train. The evaluation has fresh sequences of held-out tasks, the same for all
trials, and fresh sequences of training tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

from trainers.streams import stream
from trainers.tasks.probes import Batch, ItemSet
from trainers.tasks.references import ExactFamily
from trainers.tasks.request import Request

Listed = tuple[np.ndarray, np.ndarray | None]
"""The training tasks (K, ...), and the natural log of each one's share in training (K,), or None for equal shares."""


class LawFamily(ExactFamily):
    """A family whose tasks are laws from which sequences are drawn. Subclasses define `tasks`, `sequences` and `item_set`."""

    memorizer_max_tasks: ClassVar[int | None] = 4096
    has_distances: ClassVar[bool] = True

    @property
    def universe_size(self) -> int:
        return 2**62

    @property
    def n_held_out(self) -> int:
        return self.universe_size // 2

    @abstractmethod
    def sequences(self, tasks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """One fresh sequence of each task: tasks (N, ...) -> tokens (N, T+1) or (N, T+1, W)."""

    @abstractmethod
    def item_set(
        self, split: Literal["seen", "held_out"], tasks: np.ndarray, tokens: np.ndarray, train: Listed | None
    ) -> ItemSet:
        """The item set of sequences `tokens` (N, T+1) or (N, T+1, W), drawn from the laws `tasks` (N, ...).

        `train` lists the training tasks for the memoriser. None: the item set has no memoriser.
        """

    def scored(self) -> np.ndarray:
        """Positions at which the next token is predicted: (T,) bool."""
        return np.ones(self.seq_len, dtype=bool)

    def shown_tasks(self, request: Request, draw: np.random.Generator, n_sequences: int) -> np.ndarray:
        """The training task of each sequence in the seen split, as in `seen_tasks`. Subclasses may draw them with `draw`."""
        return self.seen_tasks(request, n_sequences)

    def batch(self, request: Request, step: int) -> Batch:
        name: Any = self
        draw = stream(name.name, "batch", request.replicate, step)
        tasks = self.tasks(self.train_ids(request.replicate, self.draw_tasks(request, draw, request.batch_size)))
        return Batch(self.sequences(tasks, draw), np.tile(self.scored(), (request.batch_size, 1)))

    def suite_size(self, request: Request) -> int:
        return 2 * request.n_sequences

    def suite(self, request: Request) -> list[ItemSet]:
        name: Any = self
        n, draw = request.n_sequences, stream(name.name, "evaluation", request.replicate)
        train = None
        if self.memorizer_max_tasks is None or request.n_tasks <= self.memorizer_max_tasks:
            listed = self.tasks(self.train_ids(request.replicate, np.arange(request.n_tasks)))
            train = (listed, self.log_shares(request))
        seen = self.tasks(self.train_ids(request.replicate, self.shown_tasks(request, draw, n)))
        held_out = self.tasks(self.held_out_ids(n))
        fixed = self.sequences(held_out, stream(name.name, "evaluation"))
        return [
            self.item_set("held_out", held_out, fixed, train),
            self.item_set("seen", seen, self.sequences(seen, draw), train),
        ]
