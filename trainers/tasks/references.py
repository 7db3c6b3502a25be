"""What a family with exact predictors adds: a universe of tasks by integer id, of which some train and the others are held out.

Task i is a pure function of (family, i). Then a memoriser of exactly the training tasks and a generaliser that knows the general
rule can be computed, and `Probe.references` says what they score.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

from trainers.streams import keyed_permutation, stream
from trainers.tasks.base import Family
from trainers.tasks.request import Request

SMALL_UNIVERSE = 2**20
"""Below this many tasks all but a declared number train; from here on one half trains and the other is held out."""


class ExactFamily(Family):
    """A universe of tasks, indexed by integer id, with the means to draw from it."""

    memorizer_max_tasks: ClassVar[int | None] = None
    """Longer lists of training tasks have no memoriser that could be enumerated, and so no memory; None: all have."""

    @property
    @abstractmethod
    def universe_size(self) -> int:
        """Number of distinct task ids. Those below `n_train_ids` may train, the others are held out for every trial."""

    @property
    @abstractmethod
    def n_held_out(self) -> int:
        """Ids kept from training in a universe below 2^20 tasks; half of them from there on."""

    @abstractmethod
    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, ...), all that makes a task."""

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
        """Ids 0 ... n_train_ids - 1 may train."""
        size = self.universe_size
        return size - self.n_held_out if size < SMALL_UNIVERSE else size // 2

    def train_ids(self, replicate: int, indices: np.ndarray) -> np.ndarray:
        """Ids of a replicate's training tasks number `indices`: nested (the first 64 of 256 are the 64), never stored."""
        name: Any = self
        return keyed_permutation(self.n_train_ids, name.name, "training tasks", replicate)(indices)

    def draw_tasks(self, request: Request, draw: np.random.Generator, size: int) -> np.ndarray:
        """The training mixture: which training tasks, 0 ... n_tasks - 1, `size` sequences show. (size,) int64.

        Number i is drawn in proportion to (i + 1)^-task_exponent; at 0 with the very draws of a uniform mixture.
        """
        if not request.task_exponent:
            return draw.integers(0, request.n_tasks, size)
        return zipf_ranks(draw, request.task_exponent, request.n_tasks, size) - 1

    def log_shares(self, request: Request) -> np.ndarray | None:
        """Natural logs of how often each training task is drawn, (n_tasks,): a memoriser's prior. None: all alike."""
        if not request.task_exponent:
            return None
        logs: np.ndarray = -request.task_exponent * np.log(np.arange(1, request.n_tasks + 1))
        return logs - np.logaddexp.reduce(logs)

    def seen_tasks(self, request: Request, n: int) -> np.ndarray:
        """Which training tasks `n` sequences of the seen split show, (n,): each in turn, or drawn from their mixture."""
        if not request.task_exponent:
            return np.arange(n) % self.n_distinct(request.n_tasks)
        name: Any = self
        return self.draw_tasks(request, stream(name.name, "seen tasks", request.replicate), n)

    def held_out_ids(self, n: int) -> np.ndarray:
        """The first `n` held-out ids (repeating where the universe has fewer), the same for all trials."""
        size = self.universe_size - self.n_train_ids
        name: Any = self
        return self.n_train_ids + keyed_permutation(size, name.name, "held-out tasks")(np.arange(n) % size)


def zipf_ranks(draw: np.random.Generator, exponent: float, n: int, size: int) -> np.ndarray:
    """Ranks 1 ... n, each in proportion to r^-exponent, exponent > 0: (size,) int64, a pure function of the stream.

    Rejection-inversion (Hörmann and Derflinger 1996, ACM TOMACS 6, 169): invert the integral of x^-exponent, round, and
    reject what rounding adds to the exact shares. No table: n may be 2^61. Of a hundred draws 98 or more were kept, at any exponent tried.
    """
    q = 1.0 - exponent

    def integral(x: Any) -> Any:  # from 1 to x
        return np.expm1(q * np.log(x)) / q if q else np.log(x)

    def inverse(u: Any) -> Any:
        return np.exp(np.log1p(q * u) / q) if q else np.exp(u)

    ranks = np.empty(size, dtype=np.int64)
    left = np.arange(size)
    with np.errstate(divide="ignore"):  # a share that rounds to nothing has its edge at infinity
        low, high = integral(1.5) - 1.0, integral(n + 0.5)
        kept_below = 2.0 - inverse(integral(2.5) - 2.0**-exponent)  # a rank so little above its x needs no second look
        while len(left):
            u = high + draw.random(len(left)) * (low - high)
            x = np.minimum(inverse(u), n + 0.5)
            rank = np.clip(np.rint(x), 1, n)
            kept = (rank - x <= kept_below) | (u >= integral(rank + 0.5) - rank**-exponent)
            ranks[left[kept]] = rank[kept]
            left = left[~kept]
    return np.minimum(ranks, n)  # beyond 2^53 a float may round upwards
