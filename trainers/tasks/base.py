"""The contract of a family, and the registry of families."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ValidationError

from trainers.records import Numbers, Record
from trainers.tasks.probes import Batch, ItemSet
from trainers.tasks.request import Request


class Family(Record):
    """The contract of every family: tasks to train on and held-out tasks, batches, an evaluation, skills.

    Subclasses declare `name: Literal[...]`. A family with exact predictors is an `ExactFamily` (`references.py`).
    """

    version: ClassVar[int]
    """Part of every fingerprint. Raise it when tasks, batches or evaluation sets change."""
    arms: ClassVar[tuple[str, ...]]
    skills: ClassVar[dict[str, str]]
    """Skill -> one line on what it measures, shown in the report."""
    headline: ClassVar[str]
    """The skill whose surface is shown while a study runs."""
    has_distances: ClassVar[bool] = False
    """Do its probes hold full predictions, from which the relative distance d_rel is computed?"""
    memorizer_max_tasks: ClassVar[int | None] = 0
    """Most training tasks for which there is a memoriser, and so a memory. None: no limit. 0: this family has no memoriser."""
    ability_of: ClassVar[Literal["nll", "accuracy"]] = "nll"
    """The measure behind ability.

    `nll`: log losses, (U - h) / (U - G). `accuracy`: exact matches, compared with the memoriser's on the same items,
    (acc - acc_M) / (1 - acc_M), undefined if acc_M > 0.9. `accuracy` is for families whose sequences hold one answer and whose
    generaliser never errs."""
    objectives: ClassVar[dict[str, str]] = {}
    """Arm -> "package.module:Class" of its objective (`trainers/objectives/`). Arms left out learn from targets.

    The objective is given by name, so that loading a family loads no torch."""
    mixture: ClassVar[str]
    """Skill name of the probe that scores the training mixture. Memory is read on its seen split."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids the model reads and predicts."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Positions the model reads, T, in the longest arm."""

    @property
    def numbers(self) -> Numbers | None:
        """Set if tokens are vectors of numbers instead of ids. `vocab_size` is then 1, the predicted number."""
        return None

    def length(self, arm: str) -> int:
        """Positions the model reads in an arm, T."""
        return self.seq_len

    @abstractmethod
    def batch(self, request: Request, step: int) -> Batch:
        """The batch of one step: a pure function of (family, replicate, n_tasks, step)."""

    @abstractmethod
    def suite(self, request: Request) -> list[ItemSet]:
        """The evaluation of a trunk: the same sequences at every evaluation."""

    @abstractmethod
    def suite_size(self, request: Request) -> int:
        """Cost of an evaluation in forward passes of one sequence: sequences times their readings. It builds no suite."""

    def chance(self, skill: str) -> float | None:
        """Accuracy of a uniform guess on a skill; None if that has no meaning."""
        return None

    def objection(self, task_exponent: float) -> str | None:
        """Why this family cannot be trained with this exponent, as one sentence; None if it can."""
        return None

    def n_distinct(self, n_tasks: int) -> int:
        """Distinct tasks that a stream of `n_tasks` draws from: `n_tasks`, or `n_tasks` of each domain."""
        return n_tasks

    def draws_alike(self, task_exponent: float) -> bool:
        """Are all training tasks drawn equally often?"""
        return not task_exponent

    @property
    @abstractmethod
    def n_tasks_max(self) -> int:
        """Largest allowed `n_tasks`."""

    @abstractmethod
    def contents(self, request: Request, split: Literal["seen", "held_out"], n: int) -> list[bytes]:
        """The content of the first `n` training tasks ("seen") or held-out tasks.

        Tasks with equal content are the same task, even if their ids differ. No held-out task may equal a training task.
        """

    @property
    def domains(self) -> tuple[str, ...]:
        """Skills that are each measured on one of the trained domains. Empty for a family without domains."""
        return ()

    @property
    def whole(self) -> Family:
        """The generalist that a specialist is compared with: the same family with all of its domains."""
        return self


class SkillsOfParameters:
    """`skills` of a family whose parameters decide them (`_skills()`). On the class: those of the default parameters."""

    def __get__(self, family: Any, owner: Any) -> dict[str, str]:
        skills: dict[str, str] = (owner() if family is None else family)._skills()
        return skills


FAMILIES: dict[str, type[Family]] = {}

LEFT_OUT: dict[str, str] = {}
"""Families of other packages that could not be loaded: name of the entry point -> reason."""

_F = TypeVar("_F", bound=type[Family])


class FamilyError(ValueError):
    """A family that is unknown, incomplete or broken."""


def register(family: _F) -> _F:
    """Class decorator: register a family under its `name`.

    Raises ValueError if the name is taken, and FamilyError if the family lacks a part of the contract.
    """
    fields: Any = family.__pydantic_fields__
    name = fields["name"].default if "name" in fields else None
    if not isinstance(name, str):
        raise FamilyError(f"{family.__qualname__} has no `name: Literal[...]` with that name as its default")
    if FAMILIES.get(name, family) is not family:
        raise ValueError(f"family '{name}' is already registered by {FAMILIES[name].__module__}")
    known = {part for kind in family.__mro__ for part in vars(kind)}  # only names: skills may be computed
    needed = ("version", "arms", "skills", "headline", "mixture")
    if lacking := sorted(family.__abstractmethods__) + [part for part in needed if part not in known]:
        raise FamilyError(f"{family.__qualname__} lacks {', '.join(lacking)}")
    FAMILIES[name] = family
    return family


def family_from(value: Any) -> Any:
    """A family from its record, or from a mapping with `name` and parameters.

    Raises FamilyError for an unknown name, and pydantic's ValidationError for wrong parameters. Both are ValueErrors.
    """
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
    """The message if the code of another package's family fails; None for our own families and for refused parameters."""
    package = kind.__module__.partition(".")[0]
    if package == __name__.partition(".")[0] or isinstance(problem, ValidationError):
        return None
    name = kind.model_fields["name"].default
    return f"family '{name}' of {package} fails with {type(problem).__name__}: {problem}; mend or update that package"


def family_named(name: Any) -> type[Family]:
    """The class of the family of that name.

    Raises FamilyError with the known names, or with the reason why it could not be loaded.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if isinstance(name, str) and name in LEFT_OUT:
        raise FamilyError(f"family '{name}' cannot be used: {LEFT_OUT[name]}; mend or update that package")
    given = str(name)[:100]
    near = difflib.get_close_matches(given, FAMILIES, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    broken = f". Could not be loaded: {', '.join(LEFT_OUT)}" if LEFT_OUT else ""
    raise FamilyError(f"unknown family '{given}'{hint} Families: {', '.join(FAMILIES)}{broken}")
