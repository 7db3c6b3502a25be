"""Families with exact predictors: a universe of tasks by integer id. Some tasks train, the others are held out.

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
"""In a universe below this size, all but a declared number of tasks may train. From this size on, half of them may."""


class ExactFamily(Family):
    """A universe of tasks, indexed by integer id, and the draws from it."""

    memorizer_max_tasks: ClassVar[int | None] = None
    """Most training tasks that a memoriser enumerates. Longer lists have no memory. None: no limit."""

    @property
    @abstractmethod
    def universe_size(self) -> int:
        """Number of distinct task ids. Ids below `n_train_ids` may train. The others are held out in every trial."""

    @property
    @abstractmethod
    def n_held_out(self) -> int:
        """Number of held-out ids in a universe below 2^20 tasks. From 2^20 on, half of the ids are held out."""

    @abstractmethod
    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, ...). A row holds the whole content of a task."""

    def contents(self, request: Request, split: Literal["seen", "held_out"], n: int) -> list[bytes]:
        if split == "held_out":
            ids = self.held_out_ids(n)
        else:
            ids = self.train_ids(request.replicate, np.arange(min(n, self.n_distinct(request.n_tasks))))
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
        """Ids of a replicate's training tasks number `indices`. They are nested (the 64 tasks are the first 64 of 256), and not
        stored.
        """
        name: Any = self
        return keyed_permutation(self.n_train_ids, name.name, "training tasks", replicate)(indices)

    def draw_tasks(self, request: Request, draw: np.random.Generator, size: int) -> np.ndarray:
        """Draw from the training mixture: numbers of training tasks, 0 ... n_tasks - 1, for `size` sequences. (size,) int64.

        Number i is drawn in proportion to (i + 1)^-task_exponent. At exponent 0 the draws are those of a uniform mixture.
        """
        if not request.task_exponent:
            return draw.integers(0, request.n_tasks, size)
        return zipf_ranks(draw, request.task_exponent, request.n_tasks, size) - 1

    def log_shares(self, request: Request) -> np.ndarray | None:
        """A memoriser's prior: the natural log of each training task's share, (n_tasks,). None for equal shares."""
        if not request.task_exponent:
            return None
        logs: np.ndarray = -request.task_exponent * np.log(np.arange(1, request.n_tasks + 1))
        return logs - np.logaddexp.reduce(logs)

    def seen_tasks(self, request: Request, n: int) -> np.ndarray:
        """Numbers of the training tasks of the `n` sequences in the seen split, (n,).

        Tasks take turns. With a task_exponent they are drawn from the training mixture instead.
        """
        if not request.task_exponent:
            return np.arange(n) % self.n_distinct(request.n_tasks)
        name: Any = self
        return self.draw_tasks(request, stream(name.name, "seen tasks", request.replicate), n)

    def held_out_ids(self, n: int) -> np.ndarray:
        """The first `n` held-out ids, the same for all trials. They repeat if there are fewer."""
        size = self.universe_size - self.n_train_ids
        name: Any = self
        return self.n_train_ids + keyed_permutation(size, name.name, "held-out tasks")(np.arange(n) % size)


def zipf_ranks(draw: np.random.Generator, exponent: float, n: int, size: int) -> np.ndarray:
    """Ranks r in 1 ... n, drawn in proportion to r^-exponent, exponent > 0: (size,) int64, a pure function of the stream.

    The method is rejection-inversion (Hörmann and Derflinger 1996, ACM TOMACS 6, 169). It inverts the integral of x^-exponent,
    rounds, and rejects the excess that rounding adds to the exact shares. It needs no table, so n may be 2^61. At all exponents
    tried, at least 98 % of the draws were accepted.
    """
    q = 1.0 - exponent

    def integral(x: Any) -> Any:  # from 1 to x
        return np.expm1(q * np.log(x)) / q if q else np.log(x)

    def inverse(u: Any) -> Any:
        return np.exp(np.log1p(q * u) / q) if q else np.exp(u)

    ranks = np.empty(size, dtype=np.int64)
    left = np.arange(size)
    with np.errstate(divide="ignore"):  # a share that rounds to 0 has its edge at infinity
        low, high = integral(1.5) - 1.0, integral(n + 0.5)
        sure_below = 2.0 - inverse(integral(2.5) - 2.0**-exponent)  # ranks this close above x are always accepted
        while len(left):
            u = high + draw.random(len(left)) * (low - high)
            x = np.minimum(inverse(u), n + 0.5)
            rank = np.clip(np.rint(x), 1, n)
            accepted = (rank - x <= sure_below) | (u >= integral(rank + 0.5) - rank**-exponent)
            ranks[left[accepted]] = rank[accepted]
            left = left[~accepted]
    return np.minimum(ranks, n)  # beyond 2^53 a float may round upwards
