"""A study: its question, its axes, its settings; and the trunks and trials that follow from them.

May not know Ray, MLflow or torch. `reader.py` makes one from a YAML file. sweeps/README.md explains every key for people; a test
holds the two together.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, cast

from pydantic import Field, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer, model_validator

from orchestrator.formatting import number
from orchestrator.study.claim import Finite, Primary
from trainers import budget
from trainers.fit.place import Fitting
from trainers.records import VARIANT, Count, Limit, Positive, Record
from trainers.shapes import SHAPE, Dial, Model, expanded, preset_for, with_preset
from trainers.spec import TRAINER_VERSION, Evaluation, Training, TrialSpec, TrunkSpec, without_neutral
from trainers.tasks import Family, family_from


def model_words(trunk: TrunkSpec) -> str:
    """A model's size, the length of its sequences, what a step costs and, beside any budget, what an answer does."""
    family = cast(Family, trunk.family)
    step, answer = float(budget.flops_per_step(trunk)), float(budget.answer_flops(trunk))
    size = f"{budget.shape_of(trunk).n_parameters:,} parameters, sequences of {family.length(trunk.arm)}"
    return f"{size}, {number(step)} FLOPs a step, {number(answer)} to answer"


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


PART_MODELS: dict[str, type[Record]] = {"model": SizedModel, "training": Training, "place": Fitting}


def with_changes(record: Record, changes: dict[str, Any]) -> Record:
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
        fixed, stated = self.first_trunk(line)
        return of_size(fixed, stated, size_of(fixed, stated, flops or self.budgets[-1]))

    def first_trunk(self, line: str) -> tuple[TrunkSpec, SizedModel]:
        """The first trunk of a line with the model that it states, or the default's widths in place of a rule; and what it states."""
        settings = self.settings(line)
        stated = cast(SizedModel, settings.pop("model"))
        return TrunkSpec(n_tasks=min(self.axes.n_tasks), replicate=0, model=stated.at(""), **settings), stated

    def sizes(self, line: str) -> list[tuple[TrunkSpec, tuple[float, ...]]]:
        """The models of a line, each by its first trunk with the budgets that it is for, ascending; most lines have one.

        Raises ValueError as `trunk_of` does.
        """
        fixed, stated = self.first_trunk(line)
        sizes = itertools.groupby(self.budgets, key=lambda flops: size_of(fixed, stated, flops))
        # More compute never makes a smaller one: budgets of one size stand together.
        return [(of_size(fixed, stated, size), tuple(budgets)) for size, budgets in sizes]

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
            shared[part] = with_changes(getattr(self, part), of_arm | getattr(changes, part))
        return shared

    def fitting(self, line: str) -> Fitting:
        """How the trials of a line are laid on workers. Raises pydantic's ValidationError as `settings` does."""
        variant = self.axes.variant.get(self.lines[line][1], Variant())
        return cast(Fitting, with_changes(self.place, variant.place))

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


def size_of(fixed: TrunkSpec, stated: SizedModel, flops: float) -> str:
    """The preset that a rule gives to a budget, "" where there is no rule. Raises ValueError as `Study.trunk_of` does."""
    if stated.tokens_per_parameter is None:
        return ""
    return preset_for(budget.shape_of(fixed), flops, stated.tokens_per_parameter)


def of_size(fixed: TrunkSpec, stated: SizedModel, size: str) -> TrunkSpec:
    """A trunk with the model of a size."""
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
