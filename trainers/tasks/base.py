"""What every family offers, and how its skills are counted."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import ValidationError

from trainers.records import Numbers, Record
from trainers.streams import keyed_permutation, stream
from trainers.tasks.asked import Asked
from trainers.tasks.probes import Batch, ItemSet

SMALL_UNIVERSE = 2**20
"""Below this many tasks all but a declared number train; from here on one half trains and the other is held out."""


class Family(Record):
    """A universe of tasks. Task i is a pure function of (family, i); subclasses declare `name: Literal[...]`.

    Ids below `n_train_ids` may train, the others are held out for every trial of every replicate.
    """

    version: ClassVar[int]
    """Raise it when tasks, batches or evaluation sets change: it enters every fingerprint."""
    arms: ClassVar[tuple[str, ...]]
    skills: ClassVar[dict[str, str]]
    """Skill -> one line on what it measures, shown in the report."""
    headline: ClassVar[str]
    """The skill whose surface is shown while a study runs."""
    has_distances: ClassVar[bool] = False
    """Do its probes carry full predictions, so that the relative distance d_rel can be read?"""
    memorizer_max_tasks: ClassVar[int | None] = None
    """Longer lists of training tasks have no memoriser that could be enumerated, and so no memory; None: all have."""
    ability_of: ClassVar[Literal["nll", "accuracy"]] = "nll"
    """What ability is read from: log losses, (U - h) / (U - G); or, where a sequence is one answer and the generaliser never
    errs, exact matches against the memoriser's on the same items, (acc - acc_M) / (1 - acc_M), undefined if acc_M > 0.9."""
    mixture: ClassVar[str]
    """The probe that scores the training mixture itself; memory is read on its seen split."""

    @property
    @abstractmethod
    def universe_size(self) -> int:
        """Number of distinct task ids."""

    @property
    @abstractmethod
    def n_held_out(self) -> int:
        """Ids kept from training in a universe below 2^20 tasks; half of them from there on."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids the model reads and predicts."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Positions the model reads, T; of the longest arm where arms differ."""

    @property
    def numbers(self) -> Numbers | None:
        """What a token is where it is no id but a vector of numbers; `vocab_size` is then 1, the number predicted."""
        return None

    def length(self, arm: str) -> int:
        """Positions the model reads in an arm, T."""
        return self.seq_len

    @abstractmethod
    def batch(self, ask: Asked, step: int) -> Batch:
        """The batch of one step: a pure function of (family, replicate, n_tasks, step)."""

    @abstractmethod
    def suite(self, ask: Asked) -> list[ItemSet]:
        """The evaluation of a trunk: the same sequences at every evaluation."""

    @abstractmethod
    def suite_size(self, ask: Asked) -> int:
        """Sequences in the suite times their readings, without building it: what an evaluation costs."""

    def chance(self, skill: str) -> float | None:
        """Accuracy of a uniform guess on a skill, None where it has no meaning."""
        return None

    def objection(self, task_exponent: float) -> str | None:
        """Why this family cannot be trained so, in a sentence; None where it can."""
        return None

    def n_distinct(self, n_tasks: int) -> int:
        """Distinct tasks that a stream of `n_tasks` draws from: as many, or as many of each of its domains."""
        return n_tasks

    def draws_alike(self, task_exponent: float) -> bool:
        """Is every training task drawn as often as every other?"""
        return not task_exponent

    @property
    def n_tasks_max(self) -> int:
        """The most that `n_tasks` may say."""
        return self.n_train_ids

    @property
    def domains(self) -> tuple[str, ...]:
        """Skills, each measured on one of the domains that this family trains on; none where it knows no domains."""
        return ()

    @property
    def whole(self) -> Family:
        """Of a specialist in one domain the generalist to compare it with: the same family with all of its domains."""
        return self

    @property
    def n_train_ids(self) -> int:
        """Ids 0 ... n_train_ids - 1 may train."""
        size = self.universe_size
        return size - self.n_held_out if size < SMALL_UNIVERSE else size // 2

    def train_ids(self, replicate: int, indices: np.ndarray) -> np.ndarray:
        """Ids of a replicate's training tasks number `indices`: nested (the first 64 of 256 are the 64), never stored."""
        name: Any = self
        return keyed_permutation(self.n_train_ids, name.name, "training tasks", replicate)(indices)

    def draw_tasks(self, ask: Asked, draw: np.random.Generator, size: int) -> np.ndarray:
        """The training mixture: which training tasks, 0 ... n_tasks - 1, `size` sequences show. (size,) int64.

        Number i is drawn in proportion to (i + 1)^-task_exponent; at 0 with the very draws of a uniform mixture.
        """
        if not ask.task_exponent:
            return draw.integers(0, ask.n_tasks, size)
        return zipf_ranks(draw, ask.task_exponent, ask.n_tasks, size) - 1

    def log_shares(self, ask: Asked) -> np.ndarray | None:
        """Natural logs of how often each training task is drawn, (n_tasks,): a memoriser's prior. None: all alike."""
        if not ask.task_exponent:
            return None
        logs: np.ndarray = -ask.task_exponent * np.log(np.arange(1, ask.n_tasks + 1))
        return logs - np.logaddexp.reduce(logs)

    def seen_tasks(self, ask: Asked, n: int) -> np.ndarray:
        """Which training tasks `n` sequences of the seen split show, (n,): each in turn, or drawn from their mixture."""
        if not ask.task_exponent:
            return np.arange(n) % self.n_distinct(ask.n_tasks)
        name: Any = self
        return self.draw_tasks(ask, stream(name.name, "seen tasks", ask.replicate), n)

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


class SkillsOfParameters:
    """For a family whose parameters decide its skills (`_skills()`); of the class itself, they are those of the default ones."""

    def __get__(self, family: Any, owner: Any) -> dict[str, str]:
        skills: dict[str, str] = (owner() if family is None else family)._skills()
        return skills


FAMILIES: dict[str, type[Family]] = {}

LEFT_OUT: dict[str, str] = {}
"""Families of other packages that could not be loaded, by the name of their entry point: why."""

_F = TypeVar("_F", bound=type[Family])


class FamilyError(ValueError):
    """A family that is not known here, or that its package does not bring whole."""


def register(family: _F) -> _F:
    """Class decorator: make a family known under its `name`. Raises ValueError when the name is taken, and FamilyError for a
    family that lacks a part of the contract."""
    fields: Any = family.__pydantic_fields__
    name = fields["name"].default if "name" in fields else None
    if not isinstance(name, str):
        raise FamilyError(f"{family.__qualname__} has no `name: Literal[...]` with that name as its default")
    if FAMILIES.get(name, family) is not family:
        raise ValueError(f"family '{name}' is already registered by {FAMILIES[name].__module__}")
    known = {part for kind in family.__mro__ for part in vars(kind)}  # looked at, not asked: skills may be computed
    needed = ("version", "arms", "skills", "headline", "mixture")
    if lacking := sorted(family.__abstractmethods__) + [part for part in needed if part not in known]:
        raise FamilyError(f"{family.__qualname__} lacks {', '.join(lacking)}")
    FAMILIES[name] = family
    return family


def family_from(value: Any) -> Any:
    """A family from its record, or from a mapping with `name` and parameters. Raises FamilyError where there is none of that
    name, and pydantic's ValidationError for parameters that it does not take. Both are ValueErrors."""
    if isinstance(value, Family):
        return value
    if not isinstance(value, dict) or "name" not in value:
        raise FamilyError(f"a family is a mapping with 'name'; families: {', '.join(FAMILIES)}")
    kind = family_named(value["name"])
    try:
        return kind.model_validate(value)
    except Exception as problem:
        if (failed := failure_of(kind, problem)) is None:
            raise
        raise FamilyError(failed) from None


def failure_of(kind: type[Family], problem: Exception) -> str | None:
    """What to say where the code of a family of another package fails; None for our own, and for parameters that it refuses."""
    package = kind.__module__.partition(".")[0]
    if package == __name__.partition(".")[0] or isinstance(problem, ValidationError):
        return None
    name = kind.model_fields["name"].default
    return f"family '{name}' of {package} fails with {type(problem).__name__}: {problem}; mend or update that package"


def family_named(name: Any) -> type[Family]:
    """The family of that name. Raises FamilyError, saying what is known or why it could not be loaded."""
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if isinstance(name, str) and name in LEFT_OUT:
        raise FamilyError(f"family '{name}' cannot be used: {LEFT_OUT[name]}; mend or update that package")
    given = str(name)[:100]
    near = difflib.get_close_matches(given, FAMILIES, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    broken = f". Could not be loaded: {', '.join(LEFT_OUT)}" if LEFT_OUT else ""
    raise FamilyError(f"unknown family '{given}'{hint} Families: {', '.join(FAMILIES)}{broken}")
