"""A study: its question, axes and settings, and the trunks and trials that follow from them.

May not import Ray, MLflow or torch. `reader.py` makes a study from a YAML file. sweeps/README.md explains every key; a test
compares it with the docstrings here.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

from pydantic import Field, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer, model_validator

from orchestrator.formatting import number
from orchestrator.study.claim import Finite, Primary
from trainers import budget
from trainers.fit.place import Fitting
from trainers.records import VARIANT, Count, Limit, Positive, Record, short_number
from trainers.shapes import SHAPE, Dial, Model, expanded, preset_for, with_preset
from trainers.spec import TRAINER_VERSION, Evaluation, Reward, Start, Training, TrialSpec, TrunkSpec, identity_of
from trainers.tasks import Family, family_from


def model_words(trunk: TrunkSpec) -> str:
    """A sentence with a model's parameters, sequence length, training FLOPs per optimizer step, and inference FLOPs per answer."""
    family = cast(Family, trunk.family)
    step, answer = float(budget.flops_per_step(trunk)), float(budget.answer_flops(trunk))
    size = f"{budget.shape_of(trunk).n_parameters:,} parameters, sequences of {family.length(trunk.arm)}"
    return f"{size}, {number(step)} FLOPs a step, {number(answer)} to answer"


NAME = "[a-z][a-z0-9_]*"
"""Regular expression of a study's name, which becomes part of a folder name."""


def is_id(text: str) -> bool:
    """Whether the text is NAME@VERSION like `Study.id`. Such a text holds no path separator, so it is safe as a folder name."""
    return len(text) <= 100 and re.fullmatch(f"{NAME}@[1-9][0-9]*", text) is not None


class StudyError(Exception):
    """A study file that cannot be run as written. Its text has one line per problem: place, given value, allowed values."""


def _listed(**constraints: Any) -> Any:
    """A pydantic field for a list with one value or more."""
    return Field(strict=False, min_length=1, **constraints)  # YAML has lists, a frozen record has tuples


class StartFrom(Record):
    """A trial of the same study, the donor, whose final weights other trials begin with: replicate r with those of replicate r."""

    arm: str
    """Arm of the donor."""
    compute_flops: Positive
    """Budget of the donor. It is charged to the trials that begin with it, so these have the larger budgets alone."""
    n_tasks: Count | None = None
    """Number of training tasks of the donor; left out: that of the trial itself."""
    variant: Annotated[str, Field(pattern=VARIANT, max_length=60)] | None = None
    """Variant of the donor; left out: that of the trial itself if the donor's arm runs in it, else the only one in which it does."""


class Variant(Record):
    """The settings that one variant changes."""

    arms: Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1)] = None
    """Arms that the variant is combined with; left out: all."""
    n_tasks: Annotated[tuple[Count, ...] | None, Field(strict=False, min_length=1), Limit(items=1000)] = None
    """Numbers of tasks, some of `axes.n_tasks`, that the variant trains; left out: all."""
    values: Annotated[tuple[Finite, ...] | None, Field(strict=False, min_length=1, max_length=100)] = None
    """Values of the parameter in `axes.family`, some of those there, at which the variant runs; left out: all."""
    start_from: StartFrom | None = None
    """Trial whose final weights its trials begin with; left out: initial weights, or for arm `reward` the study's `start_from`."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Keys of `model`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Keys of `training`."""
    family: dict[str, Any] = Field(default_factory=dict)
    """Keys of `family`, except its name."""
    reward: dict[str, Any] = Field(default_factory=dict)
    """Keys of `reward`."""
    place: dict[str, Any] = Field(default_factory=dict)
    """Keys of `place`, which change no result: to measure the gain of more workers."""


Text = Annotated[str, Limit(10_000)]


class Axes(Record):
    """The axes of a study. Values or replicates added later run only the new trials."""

    arm: Annotated[tuple[str, ...], _listed()]
    """Ways of presenting the tasks; each family has its own arms."""
    variant: Annotated[
        dict[Annotated[str, Field(pattern=VARIANT, min_length=1, max_length=60)], Variant], Limit(100)
    ] = Field(default_factory=dict)
    """Named variants, each with its changes of model, training or family; left out: a single one without changes."""
    family: dict[str, Annotated[tuple[Finite, ...], _listed(max_length=100)]] = Field(default_factory=dict)
    """One parameter of the family with its values, such as `share: [0, 0.25]`; each variant is run at every value, and boundaries
    run along them. Left out: none."""
    training_of_arm: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keys of `training` that an arm changes, by its name, such as a tuned learning rate; left out: none."""
    n_tasks: Annotated[tuple[Count, ...], _listed(), Limit(items=1000)]
    """Numbers of distinct training tasks."""
    compute_flops: Annotated[tuple[Positive, ...], _listed(), Limit(1e30, 1, 100)]
    """Budgets in training FLOPs; each at least 50 optimizer steps."""
    replicates: Annotated[Count, Field(le=10_000)]
    """Independent repetitions of every cell: replicate 0 ... replicates - 1."""


class OtherBudgets(Record):
    """Keys of `axes` that state the budgets in another unit, in place of `compute_flops`. Only the FLOPs are recorded."""

    compute_tokens: Annotated[tuple[Positive, ...] | None, Field(strict=False, min_length=1), Limit(1e18, 1, 100)] = (
        None
    )
    """Budgets in training tokens, padding included; all conditions must cost the same FLOPs per token."""
    compute_steps: Annotated[tuple[Count, ...] | None, Field(strict=False, min_length=1), Limit(1e9, items=100)] = None
    """Budgets in optimizer steps; all conditions must cost the same FLOPs per step."""


class Cell(Record):
    """The results to which an expected value refers. Every key but `n_tasks` has a default."""

    n_tasks: Count
    """Number of training tasks."""
    compute_flops: Positive | None = None
    """Budget; left out: the largest."""
    arm: str | None = None
    """Condition; left out: the first. For `along_*` its name without the value."""
    skill: str | None = None
    """Skill; left out: the headline skill."""
    split: Literal["seen", "held_out"] = "held_out"
    """Training tasks or held-out tasks."""


class Expected(Record):
    """A published or earlier value and its range; the report prints consistent, inconsistent or inconclusive."""

    what: Literal[
        "accuracy",
        "ability",
        "memory",
        "right",
        "answer_tokens",
        "long_answers",
        "along_ability",
        "along_long_answers",
        "crossing_steps",
        "excess_memorizer_nats",
        "excess_generalizer_nats",
    ]
    """The quantity. `right`, `answer_tokens` and `long_answers` are those of free answers to text; `along_*` are as in a primary
    claim. `crossing_steps` is the step at which the relative distance d_rel passes one half on its way to the
    memoriser; `excess_*_nats` is a reference's log loss above the oracle's."""
    cell: Cell
    """The cell of the measurement."""
    value: Finite
    """The value."""
    lo: Finite
    """Lower end of the range that agrees."""
    hi: Finite
    """Upper end of the range that agrees."""
    source: Text
    """Paper, figure or run of the value."""
    evidence: Literal["V", "F", "C"]
    """V read in the paper or its code, F read off a figure, C computed or run by us."""
    replicates: Annotated[Count | None, Limit(1e6)] = None
    """Number of repetitions in the source, if stated there."""

    @model_validator(mode="after")
    def _ordered(self) -> Expected:
        if not self.lo <= self.value <= self.hi:
            raise ValueError(f"lo {self.lo:g} <= value {self.value:g} <= hi {self.hi:g} does not hold")
        return self


PARTS = ("model", "training", "family", "reward")
"""Settings that decide results and that a variant may change. It may also change `place`, which changes no result."""


class SizedModel(Model):
    """The transformer as a study states it: one for all budgets, or one for each budget by a rule."""

    tokens_per_parameter: Annotated[Positive | None, Limit(1e6)] = None
    """A rule in place of the widths. Each budget trains the largest preset for which it reads this many tokens a
    parameter. Trials of different sizes share no training run."""

    @model_validator(mode="before")
    @classmethod
    def _widths_or_a_rule(cls, value: Any) -> Any:
        shape = {*SHAPE, *Dial.model_fields}
        if isinstance(value, dict) and value.get("tokens_per_parameter") is not None and (both := shape & value.keys()):
            raise ValueError(f"tokens_per_parameter and {', '.join(sorted(both))} both give the shape; keep one")
        return value

    @model_serializer(mode="wrap")
    def _as_stated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = {"tokens_per_parameter"} if self.tokens_per_parameter is None else {*SHAPE}
        return {name: value for name, value in dump(self).items() if name not in left_out}

    def at(self, preset: str) -> Model:
        """This model with the widths of a named preset; for "" the model as stated. Other settings stay."""
        others = Model.model_validate({name: getattr(self, name) for name in Model.model_fields})
        return with_preset(others, preset) if preset else others


PART_MODELS: dict[str, type[Record]] = {"model": SizedModel, "training": Training, "reward": Reward, "place": Fitting}
"""Key of a study with settings -> their record class; the key `family` depends on the family."""


def with_changes(record: Record, changes: dict[str, Any]) -> Record:
    """A copy of a settings record with some keys changed. Raises pydantic's ValidationError for unknown keys or bad values.

    For a model, given widths replace a rule (`tokens_per_parameter`), and a given rule replaces the widths.
    """
    if not changes:
        return record
    stated = record.model_dump()
    if isinstance(record, SizedModel):
        if changes.keys() & {*SHAPE, *Dial.model_fields}:
            stated.pop("tokens_per_parameter", None)
        if changes.get("tokens_per_parameter") is not None:
            stated = {name: value for name, value in stated.items() if name not in SHAPE}
        changes = expanded(changes)  # the widths of a preset override those that the study states
    return type(record).model_validate(stated | changes)


class Stop(Record):
    """Caps over all runs of a study. They change no result, and may change from run to run."""

    max_hours: Annotated[Positive | None, Limit(1e6)] = None
    """Wall-clock hours after which the study ends; `--max-hours` overrides it."""
    max_flops: Annotated[Positive | None, Limit(1e30)] = None
    """Training FLOPs after which the study ends; `--max-flops` overrides it."""


class Study(Record):
    """One YAML file in sweeps/: the question, the axes, the expectation."""

    study: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=80)]
    """Its name: small letters, digits, underscores."""
    version: Annotated[Count, Limit(1e15)]
    """Raise it to change anything but the axes: results are stored under `study@version`."""
    question: Text
    """The question in a sentence or two; the report opens with it."""
    expectation: Text = ""
    """Your expectation, written before the run."""
    family: SerializeAsAny[Record]
    """The universe of tasks: `name`, and the parameters of that family."""
    axes: Axes
    """The quantities that vary."""
    model: SizedModel = SizedModel()
    """The transformer of all trials, except for changes by variants or a size that follows the budget."""
    training: Training = Training()
    """Optimiser and schedule of all trials, except for changes by arms and variants."""
    reward: Reward = Reward()
    """Sampling and learning of arm `reward`, except for changes by variants. Other arms have none."""
    start_from: StartFrom | None = None
    """Trial whose final weights the trials of arm `reward` begin with, unless a variant states its own; left out: initial weights."""
    evaluation: Evaluation = Evaluation()
    """The measurements during training."""
    place: Fitting = Fitting()
    """Placement of the trials on workers. It changes no result, may change from run to run, and is mostly left out."""
    stop: Stop = Stop()
    """Caps after which the study ends with open trials; left out: none."""
    skills: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Skills in the report, the headline first; left out: all of the family's."""
    primary: Primary | None = None
    """The one claim that is tested without correction; left out: none."""
    expected: Annotated[tuple[Expected, ...], Field(strict=False), Limit(items=100)] = ()
    """Values to compare with; left out: the study is exploratory."""

    @property
    def id(self) -> str:
        """`name@version`, the name of the results folder and of the MLflow experiment."""
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
    def conditions(self) -> dict[str, tuple[str, str]]:
        """The conditions compared at equal compute: name -> (arm, variant), every arm in every variant of `labels` that has it.

        With a single arm a condition is named by its variant; without variants, by its arm.
        """
        stated = self.axes.variant
        only = {label: stated[name].arms if name in stated else None for label, (name, _) in self.labels.items()}
        pairs = [
            (arm, label) for arm in self.axes.arm for label, arms in only.items() if arm in (arms or self.axes.arm)
        ]
        return {self.condition_of(arm, variant): (arm, variant) for arm, variant in pairs}

    @property
    def axis(self) -> str:
        """The family parameter with several values (`axes.family`); "" without one."""
        return next(iter(self.axes.family), "")

    @property
    def labels(self) -> dict[str, tuple[str, float | None]]:
        """Names of variants as ids hold them -> (the variant as stated, the value of `axis`). Both may be missing: "" and None."""
        stated = list(self.axes.variant) or [""]
        if not self.axis:
            return {name: (name, None) for name in stated}
        values = sorted(self.axes.family[self.axis])
        at = {value: f"{self.axis}={short_number(value)}" for value in values}
        only = {name: variant.values for name, variant in self.axes.variant.items()}
        return {
            f"{name}/{at[v]}" if name else at[v]: (name, v)
            for name in stated
            for v in values
            if v in (only.get(name) or values)
        }

    def variant_of(self, label: str) -> Variant:
        """The changes of a variant, by its name in `labels`."""
        name, value = self.labels[label]
        variant = self.axes.variant.get(name, Variant())
        if value is None:
            return variant
        changes = variant.family | {self.axis: int(value) if value.is_integer() else value}
        return variant.model_copy(update={"family": changes})

    @property
    def series(self) -> dict[str, dict[float, str]]:
        """Conditions that differ in the value of `axis` alone: their common name -> value, ascending -> condition.

        Empty without an axis.
        """
        found: dict[str, dict[float, str]] = {}
        for condition, (arm, label) in self.conditions.items():
            name, value = self.labels[label]
            if value is not None:
                found.setdefault(self.condition_of(arm, name), {})[value] = condition
        return found

    def condition_of(self, arm: str, variant: str) -> str:
        """The name of the condition of an arm in a variant ("" if the study has no variants), as in `conditions`."""
        return arm if not variant else variant if len(self.axes.arm) == 1 else f"{arm}, {variant}"

    def start_of(self, condition: str) -> StartFrom | None:
        """The donor of a condition's trials, with its variant as in `labels`; None if they begin with initial weights.

        With an `axis`, the donor is at the same value.
        """
        (arm, label), labels = self.conditions[condition], self.labels
        name, value = labels[label]
        of_study = self.start_from if arm == "reward" else None
        stated = (self.axes.variant[name].start_from if name in self.axes.variant else None) or of_study
        if stated is None:
            return None
        there = {
            labels[of][0]: of
            for donor, of in self.conditions.values()
            if donor == stated.arm and labels[of][1] == value
        }
        if stated.variant is None:
            return stated.model_copy(update={"variant": there.get(name, next(iter(there.values()), ""))})
        return stated.model_copy(update={"variant": there.get(stated.variant, stated.variant)})

    def budgets_of(self, *conditions: str) -> list[float]:
        """The budgets that all of these conditions train, ascending. One with a start has those above its donor's."""
        starts = [start.compute_flops for one in conditions if (start := self.start_of(one)) is not None]
        return [flops for flops in self.budgets if flops > max(starts, default=0.0)]

    def levels_of(self, condition: str) -> list[int]:
        """The numbers of tasks that a condition trains, ascending: all, unless its variant states some."""
        stated = self.variant_of(self.conditions[condition][1]).n_tasks
        return sorted(n for n in self.axes.n_tasks if stated is None or n in stated)

    def carried(self) -> list[tuple[TrunkSpec, tuple[float, ...]]]:
        """Every trunk with the budgets that branch off it, ascending: conditions x sizes x n_tasks x replicates."""
        found = []
        for condition in self.conditions:
            cells = list(itertools.product(self.levels_of(condition), range(self.axes.replicates)))
            begins = self._begins(condition)
            for of, budgets in self.sizes(condition):
                for n, r in cells:
                    place = {"n_tasks": n, "replicate": r, "start": begins(n, r)}
                    found.append((of.model_copy(update=place), budgets))
        return found

    def trunks(self) -> list[TrunkSpec]:
        """Every trunk: conditions x sizes x n_tasks x replicates."""
        return [trunk for trunk, _ in self.carried()]

    def trunk_of(self, condition: str, flops: float | None = None) -> TrunkSpec:
        """The trunk of a condition at the smallest number of tasks and replicate 0.

        `flops` is a budget: it selects the model if the size follows the budget; None: the largest budget. Raises ValueError
        if a rule gives the size and the budget is too small for any preset.
        """
        return sized(*self.first_trunk(condition), flops or self.budgets[-1])

    def first_trunk(self, condition: str) -> tuple[TrunkSpec, SizedModel]:
        """The trunk of a condition at the smallest number of tasks and replicate 0, and the condition's model as stated.

        If a rule gives the size, the trunk's model has the default widths; `of_size` puts in those of a preset.
        """
        return self._first_trunk(condition, self._begins(condition))

    def _first_trunk(self, condition: str, begins: Begins) -> tuple[TrunkSpec, SizedModel]:
        settings, n_tasks = self.settings(condition), min(self.levels_of(condition))
        stated = cast(SizedModel, settings.pop("model"))
        settings["start"] = begins(n_tasks, 0) if settings.pop("start_from") else None
        return TrunkSpec(n_tasks=n_tasks, replicate=0, model=stated.at(""), **settings), stated

    def _begins(self, condition: str) -> Begins:
        """A function from a number of tasks and a replicate to the start of a condition's trunk there."""
        of = self.start_of(condition)
        if of is None:
            return lambda n_tasks, replicate: None
        donors = self.condition_of(of.arm, of.variant or "")
        before = self._begins(donors)
        first = sized(*self._first_trunk(donors, before), of.compute_flops)
        end = budget.steps_of(first, of.compute_flops).end

        def start(n_tasks: int, replicate: int) -> Start:
            n_tasks = of.n_tasks or n_tasks
            place = {"n_tasks": n_tasks, "replicate": replicate, "start": before(n_tasks, replicate)}
            donor = first.model_copy(update=place).trial(of.compute_flops)
            return Start(trial=donor.id, fingerprint=donor.fingerprint(), flops=budget.flops_at(donor, end))

        return functools.cache(start)

    def sizes(self, condition: str) -> list[tuple[TrunkSpec, tuple[float, ...]]]:
        """The models of a condition by ascending budget: each as a trunk (first number of tasks, replicate 0), with its budgets.

        One entry, unless the size follows the budget. Raises ValueError as `trunk_of` does.
        """
        fixed, stated = self.first_trunk(condition)
        found: dict[str, tuple[TrunkSpec, list[float]]] = {}
        for flops in self.budgets_of(condition):
            trunk = sized(fixed, stated, flops)
            found.setdefault(trunk.size, (trunk, []))[1].append(flops)
        return [(trunk, tuple(budgets)) for trunk, budgets in found.values()]

    def grows(self, condition: str) -> bool:
        """Whether the budgets of this condition train models of several sizes, and so share no single training run."""
        return len(self.sizes(condition)) > 1

    def ends(self, condition: str, last: Literal["end", "branch"] = "end") -> list[float]:
        """Training FLOPs at the end of each budget of a condition, or at its branch point, ascending.

        They are whole optimizer steps, so they differ a little from the budgets.
        """
        found = []
        for trunk, budgets in self.sizes(condition):
            steps = [budget.steps_of(trunk, flops) for flops in budgets]
            found += [float(budget.flops_at(trunk, getattr(s, last))) for s in steps]
        return found

    def family_of(self, condition: str) -> Family:
        """The family of a condition, with the changes of its variant."""
        return cast(Family, self.settings(condition)["family"])

    def same_question(self) -> list[list[str]]:
        """Groups of conditions that differ in placement (`place`) alone; every other condition is a group by itself."""
        alike: dict[str, list[str]] = {}
        for condition in self.conditions:
            asked = {k: v for k, v in self.settings(condition).items() if k != "variant"}
            alike.setdefault(repr(asked), []).append(condition)
        return list(alike.values())

    @property
    def comparable(self) -> list[tuple[str, str]]:
        """Pairs of conditions that may be compared.

        Pairs whose families have different domains are left out, because their tasks differ. So are pairs at different values of
        `axis`: boundaries along it compare them. Of several conditions that differ in placement alone, only the first is used.
        """

        def asked(condition: str) -> Any:
            family = self.family_of(condition)
            value = self.labels[self.conditions[condition][1]][1]
            return value, family.model_dump(exclude={"domain_shares"}) if family.domains else None

        of_condition = {condition: asked(condition) for condition in self.conditions}
        firsts = [alike[0] for alike in self.same_question()]
        return [(a, b) for a, b in itertools.combinations(firsts, 2) if of_condition[a] == of_condition[b]]

    def settings(self, condition: str) -> dict[str, Any]:
        """Settings that all trunks of a condition share, by name: arm, variant, `start_of`, evaluation, and each of PARTS as stated.

        Raises pydantic's ValidationError if a change by arm or variant is invalid.
        """
        arm, variant = self.conditions[condition]
        shared: dict[str, Any] = {"arm": arm, "variant": variant, "evaluation": self.evaluation}
        shared["start_from"] = self.start_of(condition)
        changes = self.variant_of(variant)
        for part in PARTS:
            of_arm = self.axes.training_of_arm.get(arm, {}) if part == "training" else {}
            shared[part] = with_changes(getattr(self, part), of_arm | getattr(changes, part))
        if arm != "reward":
            shared["reward"] = None
        return shared

    def fitting(self, condition: str) -> Fitting:
        """Placement settings of a condition's trials. Raises pydantic's ValidationError as `settings` does."""
        return cast(Fitting, with_changes(self.place, self.variant_of(self.conditions[condition][1]).place))

    def trials(self) -> list[TrialSpec]:
        """Every trial: trunks x budgets."""
        return [trunk.trial(b) for trunk, budgets in self.carried() for b in budgets]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Study:
        """A study from its record in the journal (`model_dump`).

        Raises FamilyError if its family is not installed, and pydantic's ValidationError for invalid values. Both are
        ValueErrors.
        """
        return cls.model_validate(record | {"family": family_from(record["family"])})

    def science(self) -> dict[str, Any]:
        """The settings that decide results, without the axes, and the primary claim; nested.

        It may not change under one version of a study: otherwise a claim could be fitted to results.
        """
        family = cast(Family, self.family)
        named = {"family", "model", "training", "evaluation", "primary"}
        fixed = identity_of(self.model_dump(mode="json", include=named), family)
        if self.reward != Reward():  # older studies stated none
            fixed["reward"] = self.reward.model_dump(mode="json")
        if self.start_from is not None:
            fixed["start_from"] = self.start_from.model_dump(mode="json")
        return fixed | {"versions": {"family": family.version, "trainer": TRAINER_VERSION}}


Begins = Callable[[int, int], Start | None]
"""A function from a number of tasks and a replicate to the start of the trunk there; None if it has initial weights."""


def sized(fixed: TrunkSpec, stated: SizedModel, flops: float) -> TrunkSpec:
    """The trunk with the model that a rule gives to a budget; without a rule the trunk as it is. Raises ValueError as
    `Study.trunk_of` does."""
    if stated.tokens_per_parameter is None:
        return fixed
    size = preset_for(budget.shape_of(fixed), flops, stated.tokens_per_parameter)
    return fixed.model_copy(update={"model": stated.at(size), "size": size})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two nested records differ, as `model.d_model: 64 -> 128`. prefix: put before each name."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {old.get(key, 'not stated')} -> {new.get(key, 'not stated')}")
    return found
