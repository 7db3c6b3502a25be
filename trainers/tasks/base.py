"""The contract of a family, and the registry of families."""

from __future__ import annotations

import difflib
import inspect
from abc import abstractmethod
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ValidationError

from trainers.records import Numbers, Record
from trainers.tasks.probes import Batch, ItemSet, Questions
from trainers.tasks.request import Request


class Family(Record):
    """The contract of every family: tasks to train on and held-out tasks, batches, an evaluation, skills.

    Subclasses declare `name: Literal[...]`. A family with exact predictors is an `ExactFamily` (`references.py`).
    """

    version: ClassVar[int]
    """Part of every fingerprint. Raise it when tasks, batches or evaluation sets change."""
    arms: ClassVar[tuple[str, ...]]
    """Names of the ways to present the tasks."""
    skills: ClassVar[dict[str, str]]
    """Skill -> one line for the report on its items."""
    headline: ClassVar[str]
    """The skill whose surface is shown while a study runs."""
    has_distances: ClassVar[bool] = False
    """Do its probes hold the full predictions of generaliser and memoriser (`Probe.distributions`)? The relative distance of a
    model to these two is computed from them."""
    memorizer_max_tasks: ClassVar[int | None] = 0
    """Most training tasks for which the memoriser is computed. With more, memory is undefined. None: no limit. 0: this family
    has no memoriser."""
    ability_of: ClassVar[Literal["nll", "accuracy", "right"]] = "nll"
    """The measure from which ability is computed.

    `nll`: log losses in nats, (U - h) / (U - G). `accuracy`: shares of exact matches, acc of the model and acc_M of the
    memoriser on the same items, (acc - acc_M) / (1 - acc_M), undefined if acc_M > 0.9. `accuracy` is for families whose
    sequences hold one answer and whose generaliser never errs. `right`: shares of right free answers, (right - floor) /
    (1 - floor), with the best of the trivial predictors as floor (`trainers/tasks/text.py`)."""
    objectives: ClassVar[dict[str, str]] = {}
    """Arm -> "package.module:Class" of its objective (`trainers/objectives/`). Arms left out use `Supervised`, and `reward`
    its own.

    The objective is given by name, so that loading a family loads no torch."""
    labels: ClassVar[frozenset[str]] = frozenset()
    """Parameters that are no part of a trial's identity, such as the path of a file whose content is."""
    neutral: ClassVar[dict[str, Any]] = {}
    """Parameters that were added after the first results, with the value that changes nothing. A fingerprint leaves them out at it."""
    resolved_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that no study states: `resolved` fills them."""
    resolved_from: ClassVar[frozenset[str]] = frozenset()
    """Parameters that decide the resolved fields."""
    mixture: ClassVar[str]
    """Name of the skill that scores all answers, on tasks as frequent as in training. Memory is read on its seen split."""

    @classmethod
    def resolved(cls, given: dict[str, Any], beside: Path, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """The parameters of a study with what their files hold. The reader of studies calls it once, before validation.

        `beside` is the study's folder, `root` the folder of prepared data, and `say` takes lines of progress. Raises ValueError
        in one line, `parameter: problem`, for a file that cannot be used.
        """
        return given

    @property
    def data_digests(self) -> tuple[str, ...]:
        """Digests of the prepared folders that every machine needs (`trainers/data/store.py`)."""
        return ()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids that the model reads and predicts."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Positions that the model reads in the longest arm, T."""

    @property
    def numbers(self) -> Numbers | None:
        """Set if tokens are vectors of numbers instead of ids. `vocab_size` is then 1: the model predicts one number."""
        return None

    def length(self, arm: str) -> int:
        """Positions that the model reads in an arm, T."""
        return self.seq_len

    @property
    def answer_shape(self) -> tuple[int, int] | None:
        """(tokens of the longest prompt, most tokens of an answer), marks included. None: the family has no arm `reward`.

        `length("reward")` is their sum minus 1: the last token is predicted and never read."""
        return None

    def questions(self, request: Request, step: int, n_prompts: int) -> Questions:
        """The prompts that arm `reward` asks at one step, of training tasks: a pure function of its arguments, as `batch` is."""
        raise NotImplementedError

    def unseen_questions(self, request: Request) -> Questions:
        """Prompts of held-out tasks for arm `reward`, at most `request.n_sequences`: a pure function of its argument."""
        raise NotImplementedError

    @abstractmethod
    def batch(self, request: Request, step: int) -> Batch:
        """The batch of one step: a pure function of (family, replicate, n_tasks, step)."""

    @abstractmethod
    def suite(self, request: Request) -> list[ItemSet]:
        """The item sets of a trunk's evaluations. Every evaluation of the trunk reads these same sequences."""

    @abstractmethod
    def suite_size(self, request: Request) -> int:
        """Cost of an evaluation in forward passes over one sequence: the number of sequences times the passes over each.

        It must equal the cost of `suite`, without building it: plans call it for every trial.
        """

    def chance(self, skill: str) -> float | None:
        """Expected accuracy of a uniform guess on a skill; None if such a guess has no meaning."""
        return None

    def objection(self, task_exponent: float) -> str | None:
        """Message with the reason why this family cannot be trained with `training.task_exponent`; None if it can."""
        return None

    def n_distinct(self, n_tasks: int) -> int:
        """Number of distinct training tasks: `n_tasks`, or with domains `n_tasks` of each trained domain."""
        return n_tasks

    def draws_alike(self, task_exponent: float) -> bool:
        """Are all training tasks equally likely in a batch, with this `training.task_exponent`?"""
        return not task_exponent

    @property
    @abstractmethod
    def n_tasks_max(self) -> int:
        """Largest allowed `n_tasks`."""

    @abstractmethod
    def contents(self, request: Request, split: Literal["seen", "held_out"], n_first: int) -> list[bytes]:
        """The content of each of the first `n_first` training tasks ("seen") or held-out tasks, as bytes to compare.

        Tasks with equal content are the same task, even if their ids differ. No held-out task may equal a training task.
        """

    def trained_names(self, request: Request) -> list[tuple[str, str]] | None:
        """(task, cluster) of each training task of a trial, by name, for the record; None if numbers in the spec name them."""
        return None

    def data_facts(self) -> dict[str, Any] | None:
        """Counts of the family's data and their leak certificate, for the record; None for families that make their tasks."""
        return None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of skills, one for each trained domain: it is measured on that domain alone. Empty without domains."""
        return ()

    @property
    def whole(self) -> Family:
        """The generalist that a specialist is compared with: the same family trained on all domains. Without domains: itself."""
        return self


class SkillsOfParameters:
    """A descriptor for `skills` in families whose parameters decide them: it calls the family's `_skills()`.

    On the class instead of a family it gives the skills of the default parameters.
    """

    def __get__(self, family: Any, owner: Any) -> dict[str, str]:
        skills: dict[str, str] = (owner() if family is None else family)._skills()
        return skills


FAMILIES: dict[str, type[Family]] = {}
"""All registered families by name."""

LEFT_OUT: dict[str, str] = {}
"""Families of other packages that could not be loaded: name of the entry point -> reason."""

_F = TypeVar("_F", bound=type[Family])


class FamilyError(ValueError):
    """A family is unknown, lacks a part of the contract, or fails in the code of another package."""


def register(family: _F) -> _F:
    """Class decorator: register a family under its `name`.

    Raises FamilyError if the name is taken, or if the family lacks a part of the contract.
    """
    fields: Any = family.__pydantic_fields__
    name = fields["name"].default if "name" in fields else None
    if not isinstance(name, str):
        raise FamilyError(
            f"{family.__qualname__} has no `name: Literal[...]` field; give the name that studies write twice, as in "
            '`name: Literal["line"] = "line"`'
        )
    if FAMILIES.get(name, family) is not family:
        other = FAMILIES[name].__module__
        if any(point.value.partition(":")[0] == other for point in entry_points(group="emergence.families")):
            by = f"an installed entry point, module {other}; check that one by its name, uninstall its package, or"
        else:
            by = f"the module {other};"
        raise FamilyError(f"family '{name}' is already registered by {by} give this one another name")
    if lacks := lacking(family):
        raise FamilyError(lacks)
    FAMILIES[name] = family
    return family


_DECLARED = {
    "version": "version: ClassVar[int], a whole number from 1",
    "arms": "arms: ClassVar[tuple[str, ...]], at least one name",
    "skills": "skills: ClassVar[dict[str, str]], skill -> one line of text",
    "headline": "headline: ClassVar[str], one of skills",
    "mixture": "mixture: ClassVar[str], the skill that scores all answers",
}


def lacking(kind: type[Family]) -> str | None:
    """A line with the parts of the contract that a class lacks, each with its signature and meaning; None if it has all."""
    known = {part for of in kind.__mro__ for part in vars(of)}  # only names: skills may be computed
    parts = [words for part, words in _DECLARED.items() if part not in known]
    asks = ("answer_shape", "questions", "unseen_questions") if "reward" in getattr(kind, "arms", ()) else ()
    missing = {name for name in asks if getattr(kind, name) is getattr(Family, name)}  # what arm `reward` needs
    for name in sorted(kind.__abstractmethods__ | missing):
        part = getattr(kind, name)
        function: Any = part.fget if isinstance(part, property) else part
        signature = inspect.signature(function)
        given = ", ".join(f"{p.name}: {p.annotation}" for p in signature.parameters.values() if p.name != "self")
        shown = f"@property {name}" if isinstance(part, property) else f"{name}({given})"
        meaning = (inspect.getdoc(function) or "").splitlines()[0].rstrip(".")
        parts.append(f"{shown} -> {signature.return_annotation}: {meaning}")
    return f"{kind.__qualname__} lacks {'; and '.join(parts)} (docs/families.md)" if parts else None


def family_from(value: Any) -> Any:
    """A family from a mapping with `name` and parameters. A value that is a family already is returned as it is.

    Raises FamilyError for an unknown name or if the code of another package's family fails. Raises pydantic's ValidationError
    for wrong parameters. Both are ValueErrors.
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
    """A message for users if `problem`, an error of family `kind`, is a fault in the code of another package.

    None for errors of the families here, which are our own faults, and for refused parameters.
    """
    package = kind.__module__.partition(".")[0]
    if package == __name__.partition(".")[0] or isinstance(problem, ValidationError):
        return None
    name = kind.model_fields["name"].default
    return f"family '{name}' of {package} fails with {type(problem).__name__}: {problem}; mend or update that package"


def family_named(name: Any) -> type[Family]:
    """The class of the family with this name.

    Raises FamilyError for an unknown name, with the known ones and the reason of each entry point that could not be loaded.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if isinstance(name, str) and name in LEFT_OUT:
        raise FamilyError(f"family '{name}' cannot be used: {LEFT_OUT[name]}; mend or update that package")
    given = str(name)[:100]
    near = difflib.get_close_matches(given, FAMILIES, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    broken = f". It may be in a package to mend or update: {'; '.join(LEFT_OUT.values())}" if LEFT_OUT else ""
    raise FamilyError(f"unknown family '{given}'{hint} Families: {', '.join(FAMILIES)}{broken}")
