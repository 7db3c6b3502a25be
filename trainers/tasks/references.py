"""Families with exact predictors. Each task has an integer id. Some ids may train, the others are held out.

Task i is a pure function of (family, i). So two predictors can be computed exactly: a memoriser of exactly the training tasks,
and a generaliser that knows the general rule. `Probe.references` holds their scores.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

from trainers.streams import keyed_permutation, stream
from trainers.tasks.base import Family
from trainers.tasks.request import Request

SMALL_UNIVERSE = 2**20
"""In a universe below this size, all but `ExactFamily.n_held_out` tasks may train. From this size on, half of them may."""


class ExactFamily(Family):
    """A family whose tasks have integer ids, some for training and the others held out. It draws training tasks by id."""

    memorizer_max_tasks: ClassVar[int | None] = None
    """Most training tasks that a memoriser enumerates. With more, memory is undefined. None: no limit."""

    @property
    @abstractmethod
    def universe_size(self) -> int:
        """Number of task ids. Tasks with ids below `n_train_ids` may train. The others are held out in every trial."""

    @property
    @abstractmethod
    def n_held_out(self) -> int:
        """Number of held-out ids in a universe below SMALL_UNIVERSE tasks. Larger universes ignore it and hold out half."""

    @abstractmethod
    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, ...). A row holds the whole content of a task."""

    def contents(self, request: Request, split: Literal["seen", "held_out"], n_first: int) -> list[bytes]:
        if split == "held_out":
            ids = self.held_out_ids(n_first)
        else:
            ids = self.train_ids(request.replicate, np.arange(min(n_first, self.n_distinct(request.n_tasks))))
        return [row.tobytes() for row in self.tasks(ids)]

    @property
    def n_tasks_max(self) -> int:
        return self.n_train_ids

    @property
    def n_train_ids(self) -> int:
        """Number of ids that may train: 0 ... n_train_ids - 1."""
        size = self.universe_size
        return size - self.n_held_out if size < SMALL_UNIVERSE else size // 2

    def train_ids(self, replicate: int, indices: np.ndarray) -> np.ndarray:
        """Ids of a replicate's training tasks: their places in its list, from 0, (n,) -> (n,).

        The list is a shuffle of all ids that may train, computed and never stored. A trial with n_tasks uses the first n_tasks
        of it. So the 64 tasks of one trial are the first 64 of another one's 256.
        """
        name: Any = self
        return keyed_permutation(self.n_train_ids, name.name, "training tasks", replicate)(indices)

    def draw_tasks(self, request: Request, draw: np.random.Generator, size: int) -> np.ndarray:
        """Draw a training task for each of `size` sequences, as its place in the list, 0 ... n_tasks - 1: (size,) int64.

        Place i is drawn in proportion to (i + 1)^-task_exponent: at exponent 0 uniformly.
        """
        if not request.task_exponent:
            return draw.integers(0, request.n_tasks, size)
        return zipf_ranks(draw, request.task_exponent, request.n_tasks, size) - 1

    def log_shares(self, request: Request) -> np.ndarray | None:
        """The natural log of each task's share in training, (n_tasks,): the memoriser's prior. None for equal shares."""
        if not request.task_exponent:
            return None
        logs: np.ndarray = -request.task_exponent * np.log(np.arange(1, request.n_tasks + 1))
        return logs - np.logaddexp.reduce(logs)

    def seen_tasks(self, request: Request, n_sequences: int) -> np.ndarray:
        """The training task of each sequence in the seen split, as its place in the list, 0 ... n_tasks - 1: (n_sequences,).

        Sequence i has task i modulo the number of tasks. With a task_exponent, tasks are drawn as in training instead.
        """
        if not request.task_exponent:
            return np.arange(n_sequences) % self.n_distinct(request.n_tasks)
        name: Any = self
        return self.draw_tasks(request, stream(name.name, "seen tasks", request.replicate), n_sequences)

    def held_out_ids(self, n_ids: int) -> np.ndarray:
        """The first `n_ids` ids of a fixed shuffle of all held-out ids, the same for all trials. They repeat if too few."""
        size = self.universe_size - self.n_train_ids
        name: Any = self
        return self.n_train_ids + keyed_permutation(size, name.name, "held-out tasks")(np.arange(n_ids) % size)


def zipf_ranks(draw: np.random.Generator, exponent: float, n_ranks: int, size: int) -> np.ndarray:
    """Draw `size` ranks r in 1 ... n_ranks in proportion to r^-exponent, exponent > 0: (size,) int64.

    The method is rejection-inversion (Hörmann and Derflinger 1996, ACM TOMACS 6, 169). It inverts the integral of x^-exponent,
    rounds, and rejects the excess that rounding adds to the exact shares. It needs no table, so n_ranks may be 2^61. At all
    exponents tried, at least 98 % of the draws were accepted.
    """
    q = 1.0 - exponent

    def integral(x: Any) -> Any:  # from 1 to x
        return np.expm1(q * np.log(x)) / q if q else np.log(x)

    def inverse(u: Any) -> Any:
        return np.exp(np.log1p(q * u) / q) if q else np.exp(u)

    ranks = np.empty(size, dtype=np.int64)
    left = np.arange(size)
    with np.errstate(divide="ignore"):  # a share that rounds to 0 has its edge at infinity
        low, high = integral(1.5) - 1.0, integral(n_ranks + 0.5)
        sure_below = 2.0 - inverse(integral(2.5) - 2.0**-exponent)  # ranks this close above x are always accepted
        while len(left):
            u = high + draw.random(len(left)) * (low - high)
            x = np.minimum(inverse(u), n_ranks + 0.5)
            rank = np.clip(np.rint(x), 1, n_ranks)
            accepted = (rank - x <= sure_below) | (u >= integral(rank + 0.5) - rank**-exponent)
            ranks[left[accepted]] = rank[accepted]
            left = left[~accepted]
    return np.minimum(ranks, n_ranks)  # beyond 2^53 a float may round upwards
