"""TrialSpec: everything that decides the result of one trial, and nothing that does not.

Machine, device, number of workers and output folder are a *place* (`place.Place`), never part of a spec. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

TRAINER_VERSION = 1
"""Raise it when a change of the trainer moves results: every fingerprint then changes, and old studies say so."""

MAX_DIGITS = 40
"""Of a whole number in a file. Python converts long ones slowly, and refuses to write them."""


class Record(BaseModel):
    """A frozen, strict record: unknown keys, strings for numbers and True for 1 are all refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _integral(value: Any) -> Any:
    """YAML and JSON write a trillion as 1e12, a float: take it where it is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_integral), Field(gt=0)]
Index = Annotated[int, BeforeValidator(_integral), Field(ge=0)]
VARIANT = r"^([a-z0-9][a-z0-9_.-]*)?$"
"""Names of variants: they stand in ids and in folders."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Limit:
    """How far a value may go in a file that a person writes; in a field's annotation, `Annotated[Count, Limit(1000)]`.

    A record that is read back is not held to it: results of an older, laxer version still open. Limits are generous. They
    refuse slips of the pen, and keep the arithmetic of FLOPs inside what a float holds.
    """

    most: float = float("inf")
    """Of a number or of each in a list; of text the characters, of a mapping the entries."""
    least: float = float("-inf")
    items: int | None = None
    """Values in a list."""

    def broken_by(self, given: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What is beyond the limit: (place inside `given`, what is allowed and what was given)."""
        if isinstance(given, list | tuple):
            if self.items is not None and len(given) > self.items:
                yield (), f"at most {limit_words(self.items)} values are allowed; given {limit_words(len(given))}"
            else:
                yield from (((i,), said) for i, one in enumerate(given) for _, said in self.broken_by(one))
        elif isinstance(given, str | dict):
            if len(given) > self.most:
                what = "characters" if isinstance(given, str) else "entries"
                yield (), f"at most {limit_words(self.most)} {what} are allowed; given {limit_words(len(given))}"
        elif isinstance(given, int | float) and not isinstance(given, bool):
            if self.most < given < float("inf"):  # what is not finite is refused as such
                yield (), f"at most {limit_words(self.most)} is allowed; given {limit_words(given)}"
            elif self.least > given > 0:  # as is what is not positive
                yield (), f"at least {limit_words(self.least)} is needed; given {limit_words(given)}"


def limit_words(value: float) -> str:
    """A number as messages and sweeps/README.md write limits: 10,000, 1e6, 0.5."""
    return f"{int(value):,}" if abs(value) < 1e6 and float(value).is_integer() else short_number(value)


def beyond_limits(record: type[BaseModel], given: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What a mapping of keys gives beyond the limits of a record's fields: (place, what is allowed and what was given)."""
    for name, field in record.model_fields.items():
        for limit in field.metadata:
            if isinstance(limit, Limit) and name in given:
                yield from (((name, *place), said) for place, said in limit.broken_by(given[name]))


class Model(Record):
    """The decoder-only transformer (`trainers/models/transformer.py`)."""

    n_layers: Annotated[Count, Limit(1000)] = 2
    """Number of blocks, each attention then MLP, with a residual around both."""
    d_model: Annotated[Count, Limit(100_000)] = 64
    """Width of the residual stream; a multiple of `n_heads`."""
    n_heads: Annotated[Count, Limit(10_000)] = 4
    """Attention heads."""
    d_mlp: Annotated[Count, Limit(1e6)] = 256
    """Width of the hidden layer of the MLP."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalisation before attention, MLP and output: RMSNorm or LayerNorm."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary angles inside attention, or a learned vector added to each token."""
    conv_kernel: Annotated[Index, Limit(10_000)] = 0
    """Length of a depthwise causal convolution before attention; 0 has none. A built-in structure, and a strong one."""
    attention_window: Annotated[Index, Limit(1e6)] = 0
    """Positions that attention looks back on, its own included; 0 looks at all. A built-in structure."""
    init_gain: Annotated[Positive, Limit(1000)] = 0.58
    """Weight matrices start as N(0, init_gain² / fan_in); 0.58 is the spread of torch's default uniform, 1/sqrt(3)."""
    embed_std: Annotated[Positive, Limit(1000)] = 1.0
    """Standard deviation of token and learned position vectors at the start."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_dial(cls, value: Any) -> Any:
        """`preset` or `depth` in place of the widths (`presets.Dial`): what is recorded is what they stand for."""
        if not isinstance(value, dict) or not {"preset", "depth"} & value.keys():
            return value
        from trainers.shapes import expanded  # here: presets build on this module

        return expanded(value)

    @model_validator(mode="after")
    def _widths_fit(self) -> Model:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")
        if self.positions == "rotary" and (self.d_model // self.n_heads) % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.d_model // self.n_heads}")
        return self


class Training(Record):
    """The optimiser (AdamW, fused) and its schedule."""

    batch_size: Annotated[Count, Limit(1e6)] = 32
    """Sequences per optimizer step, over all workers: science, not place."""
    # AdamW moves a weight by about the rate in a step, and weights start below 1: more than 10 erases them in the first.
    learning_rate: Annotated[Positive, Limit(10)] = 3e-3
    """Learning rate after the warm-up."""
    beta1: NotNegative = 0.9
    """AdamW's decay of the first moment."""
    beta2: NotNegative = 0.98
    """AdamW's decay of the second moment."""
    # A step multiplies weights by 1 - rate * decay: at the default rate more than 700 no longer shrinks them but throws them up.
    weight_decay: Annotated[NotNegative, Limit(1000)] = 0.0
    """Decoupled weight decay, on weight matrices only."""
    base_d_model: Annotated[Count | None, Limit(100_000)] = None
    """Width at which `learning_rate` was tuned. Given, wider models follow the maximal update rule (Yang et al. 2022,
    arXiv 2203.03466, for Adam): matrices inside the blocks and the output learn at base_d_model / d_model of the rate, and
    the output starts smaller by the square root of that. Left out: one rate for all widths."""
    clip_norm: Annotated[Positive, Limit(1e30)] = 1.0
    """Gradients longer than this (all parameters together) are scaled down to it."""
    schedule: Literal["constant", "wsd"] = "wsd"
    """`constant`, or `wsd`: warm up, stay, decay linearly to zero over the last share of each budget, as a branch off the trunk."""
    warmup_steps: Annotated[Index, Limit(1e9)] = 0
    """Linear warm-up of the learning rate over this many optimizer steps."""
    decay_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of a budget's steps that decay (`wsd` only); it belongs to the budget."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of what is multiplied: `fp32`, or `bf16` (torch.autocast: weights, moments and sums stay fp32). It moves results, so it
    is part of the question and not of the place."""
    task_exponent: Annotated[NotNegative, Limit(100)] = 0.0
    """How often training task number r (from 1) is drawn: in proportion to r^-task_exponent; 0 draws all alike. Zipf's law
    is 1."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> Training:
        if max(self.beta1, self.beta2) >= 1:
            raise ValueError(f"beta1 {self.beta1} and beta2 {self.beta2} must stay below 1")
        return self


class Evaluation(Record):
    """What is measured along a trunk. It costs compute that is counted apart; over 10 % of training is refused."""

    points_per_decade: Annotated[Count, Field(le=1000)] = 4
    """Evaluations per factor ten of compute, on the absolute grid 10^(k / points_per_decade) FLOPs."""
    first_flops: Annotated[Positive, Limit(1e30)] = 1e10
    """The grid starts here; before it nothing is evaluated."""
    n_sequences: Annotated[Count, Limit(1e6)] = 64
    """Sequences per item set (held-out tasks, seen tasks, ...), the same for every trial."""


def _family(value: Any) -> Any:
    from trainers.tasks import family_from  # here: tasks build on this module

    return family_from(value)


class Numbers(NamedTuple):
    """Tokens that are vectors of numbers instead of ids; the first number of the next one is what is predicted."""

    width: int
    """Numbers a token."""
    noise_variance: float
    """Of the normal law around a prediction; its log density is the loss."""


_NEUTRAL: dict[str, dict[str, Any]] = {
    "model": {"attention_window": 0},
    "training": {"base_d_model": None, "task_exponent": 0.0, "precision": "fp32"},
}
"""Fields younger than the first fingerprints: at these values they change nothing and stay out of a fingerprint."""


def without_neutral(record: dict[str, Any]) -> dict[str, Any]:
    """A dumped record less those younger fields that are at the value at which they change nothing."""
    return {
        part: {k: v for k, v in value.items() if k not in _NEUTRAL[part] or v != _NEUTRAL[part][k]}
        if part in _NEUTRAL
        else value
        for part, value in record.items()
    }


class TrunkSpec(Record):
    """A trial without its budget: the trials that agree in this share one training run, the trunk."""

    family: Annotated[SerializeAsAny[Record], BeforeValidator(_family)]
    """The universe of tasks (`trainers/tasks/`), with its parameters."""
    arm: str
    """How the tasks are presented: which tokens the loss sees."""
    n_tasks: Count
    """How many distinct tasks the training stream draws from."""
    replicate: Index
    """Which independent repetition: its own tasks, initial weights and batches."""
    variant: Annotated[str, Field(pattern=VARIANT)] = ""
    """Name of the variant of the study that this is; a label only, as what it varies stands in the fields below."""
    size: Annotated[str, Field(pattern=VARIANT)] = ""
    """Name of the size that the study's rule gave to this budget (`presets.preset_for`); a label only, like the variant. It
    keeps apart trunks that differ in nothing else."""
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _family_can(self) -> TrunkSpec:
        family: Any = self.family
        if self.arm not in family.arms:
            raise ValueError(f"family '{family.name}' has no arm '{self.arm}'; it has {', '.join(family.arms)}")
        if self.n_tasks > family.n_tasks_max:
            of = f"training tasks of {'each domain of ' if family.domains else ''}family '{family.name}'"
            raise ValueError(f"n_tasks {self.n_tasks} is beyond the {family.n_tasks_max} {of}")
        if (objection := family.objection(self.training)) is not None:
            raise ValueError(objection)
        return self

    @property
    def id(self) -> str:
        """Readable and unique within a study: `answer/n64/r0`."""
        of_size = f"/{self.size}" if self.size else ""
        return f"{self.arm}/n{short_number(self.n_tasks)}/r{self.replicate}{self._of_variant}{of_size}"

    @property
    def _of_variant(self) -> str:
        return f"/{self.variant}" if self.variant else ""

    def fingerprint(self) -> str:
        """20 hex digits over the resolved spec and the versions of its family and of the trainer."""
        family: Any = self.family
        spec = without_neutral(self.model_dump(mode="json", exclude={"variant", "size"}))
        payload = {"spec": spec, "family": family.version, "trainer": TRAINER_VERSION}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:20]

    def trial(self, compute_flops: float) -> TrialSpec:
        """The trial that this trunk carries at one budget, a positive number. All else has been checked with the trunk, and a wide
        study has 100,000 trials: they are not checked again."""
        return TrialSpec.model_construct(**self.__dict__, compute_flops=float(compute_flops))


class TrialSpec(TrunkSpec):
    """One (arm, n_tasks, compute_flops, replicate): one row of results, one MLflow run."""

    compute_flops: Annotated[Positive, Limit(1e30)]
    """Training FLOPs: matmuls and attention, forward and backward, branch included."""

    @property
    def id(self) -> str:
        """Readable and unique within a study: `answer/n64/c1e12/r0`."""
        return f"{self.arm}/n{short_number(self.n_tasks)}/c{short_number(self.compute_flops)}/r{self.replicate}{self._of_variant}"

    @property
    def trunk(self) -> TrunkSpec:
        """The trunk that carries this trial."""
        return TrunkSpec(**{k: v for k, v in dict(self).items() if k != "compute_flops"})


def short_number(value: float) -> str:
    """The shortest exact way to write a number in an id: 64, 1024, 1e12, 1.5e11. Two different numbers never agree."""
    plain = str(int(value)) if float(value).is_integer() else repr(float(value))
    science = np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e")
    exact = float(science) == value
    return science if exact and len(science) < len(plain) else plain
