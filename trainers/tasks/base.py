"""What every family offers, and how its skills are counted."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ValidationError

from trainers.records import Numbers, Record
from trainers.tasks.probes import Batch, ItemSet
from trainers.tasks.request import Request


class Family(Record):
    """What every family offers: tasks to train on and tasks held out, batches, an evaluation, skills. Subclasses declare
    `name: Literal[...]`. One with exact predictors is an `ExactFamily` (`references.py`).
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
    memorizer_max_tasks: ClassVar[int | None] = 0
    """Longer lists of training tasks have no memoriser, and so no memory; None: all have. 0: there is no memoriser here."""
    ability_of: ClassVar[Literal["nll", "accuracy"]] = "nll"
    """What ability is read from: log losses, (U - h) / (U - G); or, where a sequence is one answer and the generaliser never
    errs, exact matches against the memoriser's on the same items, (acc - acc_M) / (1 - acc_M), undefined if acc_M > 0.9."""
    objectives: ClassVar[dict[str, str]] = {}
    """Arm -> "package.module:Class" of what it learns from (`trainers/objectives/`); left out: targets. A name, so that no torch
    is loaded with a family."""
    mixture: ClassVar[str]
    """The probe that scores the training mixture itself; memory is read on its seen split."""

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
    def batch(self, request: Request, step: int) -> Batch:
        """The batch of one step: a pure function of (family, replicate, n_tasks, step)."""

    @abstractmethod
    def suite(self, request: Request) -> list[ItemSet]:
        """The evaluation of a trunk: the same sequences at every evaluation."""

    @abstractmethod
    def suite_size(self, request: Request) -> int:
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
    @abstractmethod
    def n_tasks_max(self) -> int:
        """The most that `n_tasks` may say."""

    @abstractmethod
    def contents(self, request: Request, split: Literal["seen", "held_out"], n: int) -> list[bytes]:
        """The first `n` tasks that training draws from ("seen"), or that are held out from it, each by its content. Two that are
        equal are one task, whatever their ids: nothing that is held out may be among what is trained."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Skills, each measured on one of the domains that this family trains on; none where it knows no domains."""
        return ()

    @property
    def whole(self) -> Family:
        """Of a specialist in one domain the generalist to compare it with: the same family with all of its domains."""
        return self


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
