"""A study: YAML -> Study -> trunks and trials. Every refusal of a study file happens here, before anything starts.

May not know Ray, MLflow or torch: a bad file dies in well under two seconds, with file, line, what was given, what is
allowed and the nearest key. sweeps/README.md explains every key for people; a test holds the two together.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from orchestrator.study import claimable as primaries
from orchestrator.study import yaml_file
from orchestrator.study.claimable import Finite, Primary
from trainers import budget
from trainers.fit.place import Fitting, shares
from trainers.shapes import SHAPE, Dial, expanded, preset_for, with_preset
from trainers.spec import (
    TRAINER_VERSION,
    VARIANT,
    Count,
    Evaluation,
    Limit,
    Model,
    Positive,
    Record,
    Training,
    TrialSpec,
    TrunkSpec,
    beyond_limits,
    without_neutral,
)
from trainers.tasks import FAMILIES, Family, FamilyError, failure_of, family_from

MAX_EVALUATION_SHARE = 0.10
"""Evaluation may cost at most this share of a trial's training FLOPs."""
MAX_TRIALS = 100_000
"""A larger crossing is a slip of the pen, and would fill the memory before anything else."""
MAX_STEPS = 10**9
"""More optimizer steps than anything here can run: such a budget is a slip of the exponent."""
MAX_PROBLEMS = 20
"""Lines of a refusal; the rest are counted."""
MAX_GIVEN = 100
"""Characters of a given value that a refusal shows."""


NAME = "[a-z][a-z0-9_]*"
"""Of studies; it stands in the name of a folder."""


def is_id(text: str) -> bool:
    """Is this NAME@VERSION, as `Study.id` is, and so the name of a folder in the home and of nothing outside it?"""
    return len(text) <= 100 and re.fullmatch(f"{NAME}@[1-9][0-9]*", text) is not None


class StudyError(Exception):
    """A study that cannot be run as written. One line per problem: where, what was given, what is allowed."""


def _listed(**constraints: Any) -> Any:
    return Field(strict=False, min_length=1, **constraints)  # YAML has lists, a frozen record has tuples


class Variant(Record):
    """What one variant changes of the settings that the study states once."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Keys of `model`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Keys of `training`."""
    family: dict[str, Any] = Field(default_factory=dict)
    """Keys of `family`, but for its name."""
    place: dict[str, Any] = Field(default_factory=dict)
    """Keys of `place`, which change no result: to ask what workers gain."""


Text = Annotated[str, Limit(10_000)]


class Axes(Record):
    """What a study crosses. Adding values or replicates later runs only the new trials."""

    arm: Annotated[tuple[str, ...], _listed()]
    """How the tasks are presented; the family says which arms it has."""
    variant: Annotated[
        dict[Annotated[str, Field(pattern=VARIANT, min_length=1, max_length=60)], Variant], Limit(100)
    ] = Field(default_factory=dict)
    """Named variants, each with what it changes of model, training or family; left out: one, as stated."""
    training_of_arm: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keys of `training` that an arm changes, by its name: a learning rate tuned for each, say; left out: none."""
    n_tasks: Annotated[tuple[Count, ...], _listed(), Limit(items=1000)]
    """Numbers of distinct training tasks."""
    compute_flops: Annotated[tuple[Positive, ...], _listed(), Limit(1e30, 1, 100)]
    """Budgets in training FLOPs; each at least 50 optimizer steps."""
    replicates: Annotated[Count, Field(le=10_000)]
    """Independent repetitions of every cell: replicate 0 ... replicates - 1."""


class Cell(Record):
    """Which results an expected value speaks of; what is left out is the study's only, or the natural, value."""

    n_tasks: Count
    """Number of training tasks."""
    compute_flops: Positive | None = None
    """Budget; left out: the largest."""
    arm: str | None = None
    """Arm; left out: the first."""
    skill: str | None = None
    """Skill; left out: the headline skill."""
    split: Literal["seen", "held_out"] = "held_out"
    """On training tasks or on held-out ones."""


class Expected(Record):
    """A published or earlier value and its range; the report prints consistent, inconsistent or inconclusive."""

    what: Literal[
        "accuracy",
        "ability",
        "memory",
        "crossing_steps",
        "excess_memorizer_nats",
        "excess_generalizer_nats",
    ]
    """The quantity: `crossing_steps` is where the relative distance d_rel passes one half on its way to the memoriser,
    `excess_*_nats` a reference's log loss above the oracle's."""
    cell: Cell
    """Where it is measured."""
    value: Finite
    """The value."""
    lo: Finite
    """Lower end of what would agree."""
    hi: Finite
    """Upper end of what would agree."""
    source: Text
    """Paper, figure or run that the value comes from."""
    evidence: Literal["V", "F", "C"]
    """V read in the paper or its code, F read off a figure, C computed or run by us."""
    replicates: Annotated[Count | None, Limit(1e6)] = None
    """How many repetitions the source had, where it says so."""

    @model_validator(mode="after")
    def _ordered(self) -> Expected:
        if not self.lo <= self.value <= self.hi:
            raise ValueError(f"lo {self.lo:g} <= value {self.value:g} <= hi {self.hi:g} does not hold")
        return self


PARTS = ("model", "training", "family")
"""What a variant may change of the question; besides, its place."""


class SizedModel(Model):
    """The transformer as a study states it: one for all budgets, or one for each by a rule."""

    tokens_per_parameter: Annotated[Positive | None, Limit(1e6)] = None
    """Given in place of the widths, a rule: each budget trains the largest preset of which it reads so many tokens a parameter.
    Its trials then share no training run with those of another size."""

    @model_validator(mode="before")
    @classmethod
    def _widths_or_a_rule(cls, value: Any) -> Any:
        shape = {*SHAPE, *Dial.model_fields}
        if isinstance(value, dict) and value.get("tokens_per_parameter") is not None and (both := shape & value.keys()):
            raise ValueError(f"tokens_per_parameter and {', '.join(sorted(both))} both give the shape; keep one")
        return value

    @model_serializer(mode="wrap")
    def _as_stated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was stated: the rule or the widths."""
        left_out = {"tokens_per_parameter"} if self.tokens_per_parameter is None else {*SHAPE}
        return {name: value for name, value in dump(self).items() if name not in left_out}

    def at(self, preset: str) -> Model:
        """The model itself: as stated, or, by the rule, a preset with all else from here."""
        others = Model.model_validate({name: getattr(self, name) for name in Model.model_fields})
        return with_preset(others, preset) if preset else others


_MODELS: dict[str, type[Record]] = {"model": SizedModel, "training": Training, "place": Fitting}


def _changed(record: Record, changes: dict[str, Any]) -> Record:
    """A record with some keys changed. Raises pydantic's ValidationError."""
    if not changes:
        return record
    stated = record.model_dump()
    if isinstance(record, SizedModel):
        if changes.keys() & {*SHAPE, *Dial.model_fields}:
            stated.pop("tokens_per_parameter", None)
        if changes.get("tokens_per_parameter") is not None:
            stated = {name: value for name, value in stated.items() if name not in SHAPE}
        changes = expanded(changes)  # here: the widths of a preset go before those that the study states
    return type(record).model_validate(stated | changes)


class Study(Record):
    """One YAML file in sweeps/: the question, the axes, the expectation."""

    study: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=80)]
    """Its name: small letters, digits, underscores."""
    version: Annotated[Count, Limit(1e15)]
    """Raise it to change anything but the axes: results live under `study@version`."""
    question: Text
    """What is asked, in a sentence or two; the report opens with it."""
    expectation: Text = ""
    """What you expect, written before the run."""
    family: SerializeAsAny[Record]
    """The universe of tasks: `name`, and the parameters of that family."""
    axes: Axes
    """What is varied."""
    model: SizedModel = SizedModel()
    """The transformer; the same for all trials, but for what variants change, or a size that follows the budget."""
    training: Training = Training()
    """Optimiser and schedule; the same for all trials, but for what arms and variants change."""
    evaluation: Evaluation = Evaluation()
    """What is measured along the way."""
    place: Fitting = Fitting()
    """How trials are laid on workers: changes no result, and may change from run to run. Mostly left out."""
    skills: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Skills shown, the headline first; left out: all of the family's."""
    primary: Primary | None = None
    """The one claim that is tested without correction; left out: none is."""
    expected: Annotated[tuple[Expected, ...], Field(strict=False), Limit(items=100)] = ()
    """Values to compare with; without any, the study is exploratory."""

    @property
    def id(self) -> str:
        """`name@version`: names the folder of its results and its MLflow experiment."""
        return f"{self.study}@{self.version}"

    @property
    def shown_skills(self) -> tuple[str, ...]:
        """The skills of the report, headline first."""
        family = cast(Family, self.family)
        return self.skills or (family.headline, *(s for s in family.skills if s != family.headline))

    @property
    def budgets(self) -> list[float]:
        """Budgets in training FLOPs, ascending."""
        return sorted(self.axes.compute_flops)

    @property
    def lines(self) -> dict[str, tuple[str, str]]:
        """What is compared at equal compute, in order: name -> (arm, variant). Every arm in every variant.

        A line is called by its variant where there is one arm, and by its arm where there are no variants.
        """
        pairs = itertools.product(self.axes.arm, self.axes.variant or [""])
        return {self.line_of(arm, variant): (arm, variant) for arm, variant in pairs}

    def line_of(self, arm: str, variant: str) -> str:
        """The name of a line."""
        return arm if not variant else variant if len(self.axes.arm) == 1 else f"{arm}, {variant}"

    def carried(self) -> list[tuple[TrunkSpec, tuple[float, ...]]]:
        """Every trunk with the budgets that it carries, ascending: lines x sizes x n_tasks x replicates."""
        axes = self.axes
        cells = list(itertools.product(sorted(axes.n_tasks), range(axes.replicates)))
        found = []
        for line in self.lines:
            for of, budgets in self.sizes(line):
                found += [(of.model_copy(update={"n_tasks": n, "replicate": r}), budgets) for n, r in cells]
        return found

    def trunks(self) -> list[TrunkSpec]:
        """Every trunk: lines x sizes x n_tasks x replicates."""
        return [trunk for trunk, _ in self.carried()]

    def trunk_of(self, line: str, flops: float | None = None) -> TrunkSpec:
        """The first trunk of a line: its settings, at the smallest number of tasks; of the budget, left out: of the largest.

        Raises ValueError for a budget too small for any size, where a rule gives it one.
        """
        fixed, stated = self._first_trunk(line)
        return _of_size(fixed, stated, _size(fixed, stated, flops or self.budgets[-1]))

    def _first_trunk(self, line: str) -> tuple[TrunkSpec, SizedModel]:
        """The first trunk of a line with the model that it states, or the default's widths in place of a rule; and what it states."""
        settings = self.settings(line)
        stated = cast(SizedModel, settings.pop("model"))
        return TrunkSpec(n_tasks=min(self.axes.n_tasks), replicate=0, model=stated.at(""), **settings), stated

    def sizes(self, line: str) -> list[tuple[TrunkSpec, tuple[float, ...]]]:
        """The models of a line, each by its first trunk with the budgets that it is for, ascending; most lines have one.

        Raises ValueError as `trunk_of` does.
        """
        fixed, stated = self._first_trunk(line)
        sizes = itertools.groupby(self.budgets, key=lambda flops: _size(fixed, stated, flops))
        # More compute never makes a smaller one: budgets of one size stand together.
        return [(_of_size(fixed, stated, size), tuple(budgets)) for size, budgets in sizes]

    def _has_rule(self, line: str) -> bool:
        return cast(SizedModel, self.settings(line)["model"]).tokens_per_parameter is not None

    def grows(self, line: str) -> bool:
        """Does a rule give the budgets of this line models of several sizes? Then no one training run leads through them."""
        return self._has_rule(line) and len(self.sizes(line)) > 1

    def ends(self, line: str, last: Literal["end", "branch"] = "end") -> list[float]:
        """Training FLOPs as spent where each budget of a line ends, or where its decay branches off, ascending."""
        found = []
        for trunk, budgets in self.sizes(line):
            steps = [budget.steps_of(trunk, flops) for flops in budgets]
            found += [float(getattr(s, last) * budget.flops_per_step(trunk)) for s in steps]
        return found

    def family_of(self, line: str) -> Family:
        """The family of a line."""
        return cast(Family, self.settings(line)["family"])

    def same_question(self) -> list[list[str]]:
        """Lines that ask the same and differ in their place alone, together; in order, the others by themselves."""
        alike: dict[str, list[str]] = {}
        for line in self.lines:
            asked = {k: v for k, v in self.settings(line).items() if k != "variant"}
            alike.setdefault(repr(asked), []).append(line)
        return list(alike.values())

    @property
    def comparable(self) -> list[tuple[str, str]]:
        """Pairs of lines of which it makes sense to ask who is ahead: all, but for those that learn different domains, or
        domains made of different functions, and so are asked different things; or that ask the same, on other workers."""

        def asked(line: str) -> Any:
            family = self.family_of(line)
            return family.model_dump(exclude={"domain_shares"}) if family.domains else None

        of_line = {line: asked(line) for line in self.lines}
        firsts = [alike[0] for alike in self.same_question()]
        return [(a, b) for a, b in itertools.combinations(firsts, 2) if of_line[a] == of_line[b]]

    def settings(self, line: str) -> dict[str, Any]:
        """What all trunks of a line share, the model as it is stated. Raises pydantic's ValidationError for a variant that its
        record refuses."""
        arm, variant = self.lines[line]
        shared: dict[str, Any] = {"arm": arm, "variant": variant, "evaluation": self.evaluation}
        changes = self.axes.variant.get(variant, Variant())
        for part in PARTS:
            of_arm = self.axes.training_of_arm.get(arm, {}) if part == "training" else {}
            shared[part] = _changed(getattr(self, part), of_arm | getattr(changes, part))
        return shared

    def fitting(self, line: str) -> Fitting:
        """How the trials of a line are laid on workers. Raises pydantic's ValidationError as `settings` does."""
        variant = self.axes.variant.get(self.lines[line][1], Variant())
        return cast(Fitting, _changed(self.place, variant.place))

    def trials(self) -> list[TrialSpec]:
        """Every trial: trunks x budgets."""
        return [trunk.trial(b) for trunk, budgets in self.carried() for b in budgets]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Study:
        """A study as the journal keeps it (`model_dump`). Raises FamilyError where its family is not here, and pydantic's
        ValidationError; both are ValueErrors."""
        return cls.model_validate(record | {"family": family_from(record["family"])})

    def science(self) -> dict[str, Any]:
        """What decides results besides the axes, and the primary claim: may not change under one version, or a claim could be
        fitted to what was seen."""
        family = cast(Family, self.family)
        named = {"family", "model", "training", "evaluation", "primary"}
        fixed = without_neutral(self.model_dump(mode="json", include=named))
        return fixed | {"versions": {"family": family.version, "trainer": TRAINER_VERSION}}


def _size(fixed: TrunkSpec, stated: SizedModel, flops: float) -> str:
    """The preset that a rule gives to a budget, "" where there is no rule. Raises ValueError as `Study.trunk_of` does."""
    if stated.tokens_per_parameter is None:
        return ""
    return preset_for(flops, stated.tokens_per_parameter, *budget.shape_of(fixed)[1:], others=fixed.model)


def _of_size(fixed: TrunkSpec, stated: SizedModel, size: str) -> TrunkSpec:
    return fixed.model_copy(update={"model": stated.at(size), "size": size}) if size else fixed


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields that two nested records disagree in, as `model.d_model: 64 -> 128`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {old.get(key, 'not stated')} -> {new.get(key, 'not stated')}")
    return found


# Reading ------------------------------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """The studies that come with the project, by name."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "sweeps", here.parent / "sweeps"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find(name: str) -> Path:
    """The file of a study given by path or, if it ships, by name. Raises StudyError when there is none."""
    path = Path(name)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as problem:  # a name too long, a folder that may not be looked into
        said = problem.strerror or problem
        raise StudyError(
            f"{_one_line(name)[:MAX_GIVEN]}: cannot be read: {said}; give the path of a study file"
        ) from None
    if is_file:
        return path
    if name in shipped():
        return shipped()[name]
    if is_folder:
        raise StudyError(f"{name}: that is a folder; give a study file, or a study that ships: {', '.join(shipped())}")
    name = _one_line(name)
    near = difflib.get_close_matches(path.stem, shipped(), 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise StudyError(f"{name}: no such study file{hint} Give a path, or one that ships: {', '.join(shipped())}")


def load(name: str) -> Study:
    """Read and check a study. Raises StudyError with every problem found, a line each."""
    path = find(name)
    try:
        raw, lines = yaml_file.read(path)
    except OSError as problem:
        raise StudyError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except yaml_file.Unreadable as problem:
        raise StudyError(f"{path}:{problem.line}: {_one_line(str(problem))}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{path}:1: a study is a mapping of keys; required are {', '.join(_required(Study))}")
    return _Reader(path, raw, lines).study()


def _one_line(text: str) -> str:
    """Without line breaks, and no longer than a person reads."""
    plain = " ".join(text.split())
    return plain if len(plain) <= 1000 else f"{plain[:1000]} ..."


def _required(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def _keys(model: type[BaseModel]) -> list[str]:
    """What may be written in a record: its fields, and in a model what stands for some of them."""
    return [*model.model_fields, *(Dial.model_fields if issubclass(model, Model) else ())]


class _Reader:
    """One file on its way to a Study: knows the lines, collects the problems."""

    def __init__(self, path: Path, raw: dict[str, Any], lines: dict[yaml_file.Place, int]) -> None:
        self.path, self.raw, self.lines = path, raw, lines
        self.problems: list[tuple[int, str]] = []
        self.n_left_out = 0
        self._broken: list[tuple[Any, ...]] = []  # places whose limits are broken
        self._suggested: set[tuple[Any, ...]] = set()  # keys that an unknown one was taken to mean

    def study(self) -> Study:
        """The study. Raises StudyError with every problem found, a line each."""
        self._limits()
        family = self._family(self.raw.get("family")) if "family" in self.raw else None
        study = None
        try:
            study = Study.model_validate(self.raw | ({"family": family} if family else {}))
        except ValidationError as error:
            of_family = [e for e in error.errors() if e["loc"][:1] == ("family",) and e["type"] != "missing"]
            self._all([e for e in error.errors() if e not in of_family], (), Study)  # those are said better by _family
        if study and family:
            self._variants(study)
            self._arms(study, family)
            if not self.problems:
                self._meaning(study, family)
        if self.problems or study is None:
            raise StudyError("\n".join(self._lines()))
        return study

    def _lines(self) -> list[str]:
        """The refusal: a line for each problem, in the order of the file."""
        found = sorted(set(self.problems))
        told = [f"{self.path}:{line}: {text}" for line, text in found[:MAX_PROBLEMS]]
        if n_more := len(found) - len(told) + self.n_left_out:
            told.append(f"{self.path}:{found[len(told) - 1][0]}: and {n_more} problems more")
        return told

    def _limits(self) -> None:
        """What is beyond the limits of the fields, wherever a person may write it."""
        axes, question = self.raw.get("axes"), self.raw.get("question")
        self._beyond((), Study)
        self._beyond(("axes",), Axes)
        self._beyond(("evaluation",), Evaluation)
        self._settings(())
        if isinstance(question, str) and not any(letter.isalnum() for letter in question):
            self._say(("question",), f"a question in words is needed; given {question!r:.80}")
        for i, _ in enumerate(given if isinstance(given := self.raw.get("expected"), list) else []):
            self._beyond(("expected", i), Expected)
        if not isinstance(axes, dict):
            return
        for arm in _keys_of(axes.get("training_of_arm")):
            self._beyond(("axes", "training_of_arm", arm), Training)
        for name in _keys_of(axes.get("variant")):
            self._settings(("axes", "variant", name))

    def _settings(self, place: tuple[Any, ...]) -> None:
        """What the study states, or one of its variants."""
        for part, record in _MODELS.items():
            self._beyond((*place, part), record)
        self._beyond((*place, "model"), Dial)
        self._beyond((*place, "family"), self._kind())

    def _kind(self) -> type[Record]:
        """The record of the family that is named, or an empty one."""
        given = self.raw.get("family")
        name = given.get("name") if isinstance(given, dict) else None
        return FAMILIES.get(name, Record) if isinstance(name, str) else Record

    def _beyond(self, place: tuple[Any, ...], record: type[BaseModel]) -> None:
        given: Any = self.raw
        for part in place:
            if isinstance(given, dict):
                given = given.get(part)
            elif isinstance(given, list) and isinstance(part, int):
                given = given[part]
            else:
                return
        if isinstance(given, dict):
            for inner, said in beyond_limits(record, given):
                self._say((*place, *inner), said)
                self._broken.append((*place, *inner))

    def _family(self, given: Any) -> Family | None:
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            self._say(("family",), f"a mapping with 'name' is needed; families are {', '.join(FAMILIES)}")
            return None
        try:
            return cast(Family, family_from(given))
        except FamilyError as problem:
            self._say(("family", "name"), str(problem), named=False)
        except ValidationError as error:
            self._all(error.errors(), ("family",), self._kind())
        return None

    def _meaning(self, study: Study, family: Family) -> None:
        """What single fields cannot tell. Here a family of another package is first asked for its numbers, and may fail."""
        try:
            for loc, message in _meaning(study, family):
                self._say(loc, message)
        except Exception as problem:
            if (failed := failure_of(type(family), problem)) is None:
                raise
            self._say(("family", "name"), failed, named=False)

    def _all(self, errors: Iterable[Any], prefix: tuple[Any, ...], model: type[BaseModel]) -> None:
        """Pydantic's errors in our words: misspelt keys first, and no more than anybody reads."""
        ordered = sorted(errors, key=lambda e: e["type"] == "missing")
        for error in ordered[: 5 * MAX_PROBLEMS]:
            self._pydantic(error, prefix, model)
        self.n_left_out += len(ordered[5 * MAX_PROBLEMS :])

    def _variants(self, study: Study) -> None:
        """Every change of every variant against the record that it changes."""
        for name, variant in study.axes.variant.items():
            for part in (*PARTS, "place"):
                base, changes, place = getattr(study, part), getattr(variant, part), ("axes", "variant", name, part)
                if part == "family" and "name" in changes:
                    self._say((*place, "name"), "a variant keeps the family; compare families as studies of their own")
                    continue
                try:
                    _changed(base, changes)
                except ValidationError as error:
                    self._all(error.errors(), place, type(base))

    def _arms(self, study: Study, family: Family) -> None:
        """Every change of every arm against the training that it changes."""
        for arm, changes in study.axes.training_of_arm.items():
            place = ("axes", "training_of_arm", arm)
            if arm not in study.axes.arm and not set(study.axes.arm) <= set(family.arms):
                continue  # the arm of the axes may be the misspelt one, and is refused
            if arm not in study.axes.arm:
                allowed = ", ".join(study.axes.arm)
                self._say(place, f"no arm of this study{_nearest(arm, study.axes.arm)}; it has {allowed}")
                continue
            try:
                _changed(study.training, changes)
            except ValidationError as error:
                self._all(error.errors(), place, Training)

    def _pydantic(self, error: Any, prefix: tuple[Any, ...], model: type[BaseModel]) -> None:
        """Put one of pydantic's errors into our words."""
        loc, given, context = tuple(error["loc"]), error["input"], error.get("ctx", {})
        kind = error["type"]
        if kind == "too_short" and given:
            return  # its items are refused one by one
        if kind == "extra_forbidden":
            parent = _model_at(model, loc[:-1])
            allowed = _keys(parent) if parent else []
            where = f"{'.'.join(map(str, prefix + loc[:-1]))}: " if prefix + loc[:-1] else ""
            text = f"{where}unknown key '{loc[-1]}'{_nearest(str(loc[-1]), allowed)}; keys are {', '.join(allowed)}"
            of = next((part for part, record in _MODELS.items() if loc[-1] in _keys(record)), None)
            if not prefix + loc[:-1] and loc[-1] in Axes.model_fields:
                text = f"'{loc[-1]}' is a key of axes: write it there"
            if prefix + loc[:-1] == ("axes",) and of is not None:
                text = f"axes: '{loc[-1]}' is a key of {of}: vary it by name, as in axes.variant: {{one: {{{of}: {{{loc[-1]}: ...}}}}}}"
            self._say(prefix + loc, text, named=False)
            self._suggested |= {(*prefix, *loc[:-1], near) for near in _close(str(loc[-1]), allowed)}
        elif kind == "missing" and prefix + loc in self._suggested:
            return  # it is there, misspelt
        elif kind == "value_error" and any(place[: len(prefix + loc)] == prefix + loc for place in self._broken):
            return  # keys that do not go together, one of them beyond its limit
        elif kind == "missing":
            self._say(prefix + loc[:-1], f"key '{loc[-1]}' is required", named=bool(loc[:-1]))
        else:
            wanted = {
                "int_type": "a whole number is needed",
                "bool_type": "true or false is needed",
                "float_type": "a number is needed",
                "string_type": "text is needed",
                "tuple_type": "a list is needed",
                "too_short": "at least one value is needed",
                "finite_number": "a finite number is needed",
                "model_type": "a mapping of keys is needed",
                "dict_type": "a mapping of keys is needed",
                "string_pattern_mismatch": "small letters, digits and underscores only",
                "greater_than": f"a number greater than {context.get('gt')} is needed",
                "greater_than_equal": f"a number of at least {context.get('ge')} is needed",
                "less_than": f"a number below {context.get('lt')} is needed",
                "less_than_equal": f"a number of at most {context.get('le')} is needed",
                "literal_error": f"one of {context.get('expected')} is needed",
            }.get(kind, error["msg"].removeprefix("Value error, "))
            if isinstance(given, str) and kind in ("int_type", "float_type"):
                wanted += ", without unit or quotes"
            self._say(prefix + loc, wanted if kind == "value_error" else f"{wanted}; given {_shown(given)}")

    def _say(self, loc: tuple[Any, ...], message: str, named: bool = True) -> None:
        name = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part)[:MAX_GIVEN] for part in loc))
        line = next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), 1)
        self.problems.append((line, _one_line(f"{name}: {message}" if named and name else message)))


def _keys_of(given: Any) -> list[Any]:
    return list(given) if isinstance(given, dict) else []


def _shown(given: Any) -> str:
    """A value as a refusal shows it."""
    text = repr(given)
    return text if len(text) <= MAX_GIVEN else f"{text[:MAX_GIVEN]} ..."


def _meaning(study: Study, family: Family) -> Iterator[tuple[tuple[Any, ...], str]]:
    """What single fields cannot tell: checks between fields and against the family. Yields (place, problem)."""
    axes = study.axes
    twice = False
    for axis in ("arm", "n_tasks", "compute_flops"):
        seen: set[Any] = set()
        for i, value in enumerate(getattr(axes, axis)):
            if value in seen:
                given = f"{value:g}".replace("e+", "e") if isinstance(value, float) else value
                yield ("axes", axis, i), f"{given} is given twice"
                twice = True
            seen.add(value)
    for i, arm in enumerate(axes.arm):
        if arm not in family.arms:
            near = _nearest(arm, family.arms)
            later = " (arm 'reward' is to come)" if arm == "reward" else ""
            yield (
                ("axes", "arm", i),
                f"{_name(family)} has no arm '{arm}'{near}; it has {', '.join(family.arms)}{later}",
            )
    families = {line: study.family_of(line) for line in study.lines}
    for i, n_tasks in enumerate(axes.n_tasks):
        for line, of_line in families.items():
            if n_tasks > of_line.n_tasks_max:
                which = f" in {line}" if axes.variant else ""
                each = " in each domain" if of_line.domains else ""
                said = f"{n_tasks} tasks given, {_name(family)} has {of_line.n_tasks_max:,} for training{each}{which}"
                yield ("axes", "n_tasks", i), said
                break
    alike: dict[str, str] = {}
    for line, (_, of) in study.lines.items():
        settings = {k: v for k, v in study.settings(line).items() if k != "variant"}
        same = alike.setdefault(repr((settings, study.fitting(line))), line)
        if same != line:
            yield (
                ("axes", "variant", of),
                f"'{line}' is the same as '{same}': nothing that it changes differs; leave one out",
            )
    objections = {
        ("axes", "variant", of) if (of := study.lines[line][1]) else ("training",): why
        for line in study.lines
        if (why := study.family_of(line).objection(study.settings(line)["training"])) is not None
    }
    yield from objections.items()
    for i, skill in enumerate(study.skills):
        if skill in study.skills[:i]:
            yield ("skills", i), f"'{skill}' is given twice"
        if skill not in family.skills:
            near = _nearest(skill, family.skills)
            yield ("skills", i), f"{_name(family)} has no skill '{skill}'{near}; it has {', '.join(family.skills)}"
    for i, expected in enumerate(study.expected):
        yield from _expected_meaning(study, family, i, expected)
    claim = study.primary
    wrong = [] if claim is None else list(primaries.problems(study, family, claim))
    yield from wrong
    least = min(of_line.n_tasks_max for of_line in families.values())
    if twice or any(arm not in family.arms for arm in axes.arm) or max(axes.n_tasks) > least or objections:
        return
    n_trials = len(study.lines) * len(axes.n_tasks) * len(axes.compute_flops) * axes.replicates
    if n_trials > MAX_TRIALS:
        yield ("axes",), f"{n_trials:,} trials; at most {MAX_TRIALS:,} are allowed"
        return
    unsound: dict[tuple[Any, ...], str] = {}  # one problem a place: what one line meets, others like it meet too
    for line in study.lines:
        for place, said in (*_budget_meaning(study, line), *_fitting_meaning(study, line)):
            unsound.setdefault(place, said)
    yield from unsound.items()
    if claim is not None and not wrong and not unsound:  # what its axes can tell is known only where they are sound
        yield from primaries.out_of_reach(study, family, claim)


def _fitting_meaning(study: Study, line: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    place, (_, variant) = study.fitting(line), study.lines[line]
    where = ("axes", "variant", variant, "place") if variant and study.axes.variant[variant].place else ("place",)
    try:
        shares(study.settings(line)["training"].batch_size, place.workers or 1, place.micro_batch)
    except ValueError as problem:
        yield where, str(problem)
    if place.compiled and place.zero_stage == 3:
        yield where, "compiled does not go with zero_stage 3, whose hooks inside a block would break every graph"
    if place.offload and place.zero_stage == 0:
        yield where, "offload needs a zero_stage of 1, 2 or 3: what ZeRO does not share out it cannot move either"


def _budget_meaning(study: Study, line: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    which = f" ({line})" if len(study.lines) > 1 else ""
    seen: dict[tuple[str, int], float] = {}
    good = []
    fixed, stated = study._first_trunk(line)
    for i, flops in enumerate(study.axes.compute_flops):
        place = ("axes", "compute_flops", i)
        try:
            trunk = _of_size(fixed, stated, _size(fixed, stated, flops))
            end = budget.steps_of(trunk, flops).end
        except ValueError as problem:  # too small for any size, or for the size that it has
            yield place, f"{problem}{which}"
            continue
        if end > MAX_STEPS:
            a_step = f"{budget.flops_per_step(trunk):.4g} FLOPs"
            yield place, f"{flops:g} FLOPs is {end:.3g} steps of {a_step}; at most {MAX_STEPS:g} can run{which}"
            continue
        if (same := seen.get((trunk.size, end), flops)) != flops:
            yield place, f"{flops:g} and {same:g} FLOPs are both {end} steps{which}; keep one"
        seen[trunk.size, end] = flops
        good.append((trunk, flops))
    warmup = study.settings(line)["training"].warmup_steps
    for size in {size: None for size, _ in seen}:
        longest = max(end for of, end in seen if of == size)
        if warmup > longest:
            whose = f"the largest budget of size {size}" if size else "the largest budget"
            said = f"{warmup} steps of warm-up given, {whose} has {longest} steps{which}"
            yield ("training", "warmup_steps"), said
            break
    for trunk, flops in good:
        price = budget.price(trunk, [flops])  # as if it were alone: a trial's own share
        share = price.eval_flops / price.train_flops
        if share > MAX_EVALUATION_SHARE:
            yield (
                ("evaluation",),
                f"evaluating would cost {share:.0%} of the training of a trial of {flops:g} FLOPs{which}, at most {MAX_EVALUATION_SHARE:.0%} is allowed; "
                "lower points_per_decade or n_sequences, or raise first_flops",
            )
            return


def _expected_meaning(
    study: Study, family: Family, i: int, expected: Expected
) -> Iterator[tuple[tuple[Any, ...], str]]:
    cell = expected.cell
    if expected.what == "crossing_steps" and not family.has_distances:
        yield ("expected", i, "what"), f"{_name(family)} offers no relative distance to the memoriser"
    for key, allowed in (
        ("arm", tuple(study.lines)),
        ("n_tasks", study.axes.n_tasks),
        ("compute_flops", study.axes.compute_flops),
        ("skill", tuple(family.skills)),
    ):
        value = getattr(cell, key)
        if value is not None and value not in allowed:
            listed = ", ".join(f"{a:g}" if isinstance(a, float) else str(a) for a in allowed)
            yield ("expected", i, "cell", key), f"{value} is not in the study; it has {listed}"


def _name(family: Family) -> str:
    return f"family '{cast(Any, family).name}'"


def _close(word: str, among: Any) -> list[str]:
    return difflib.get_close_matches(word, list(among), 1, cutoff=0.5)


def _nearest(word: str, among: Any) -> str:
    near = _close(word, among)
    return f"; did you mean '{near[0]}'?" if near else ""


def _model_at(model: type[BaseModel], loc: tuple[Any, ...]) -> type[BaseModel] | None:
    """The record type at a place, following fields and list items."""
    current: Any = model
    named = False  # the next part names an entry of a mapping
    for part in loc:
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = current.model_fields[part].annotation
        named = getattr(annotation, "__origin__", None) is dict
        arguments = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)]
        current = next((a for a in [annotation, *arguments] if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if current is None:
            return None
    return cast("type[BaseModel] | None", current)
