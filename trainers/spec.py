"""TrialSpec: everything that decides the result of one trial, and nothing else.

Machine, device, number of workers and output folder belong to the *place* (`fit.place.Place`), never to a spec. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from trainers.records import LABEL, VARIANT, Count, Index, Limit, NotNegative, Positive, Record, short_number
from trainers.shapes import Model
from trainers.tasks import family_from
from trainers.tasks.request import Request

TRAINER_VERSION = 1
"""Raise it when a change of the trainer changes results. Every fingerprint then changes, and old studies no longer match."""


class Training(Record):
    """The optimiser (AdamW, fused) and its schedule."""

    batch_size: Annotated[Count, Limit(1e6)] = 32
    """Sequences per optimizer step, over all workers. It belongs to the spec, not to the place."""
    # AdamW moves a weight by about the rate in a step, and weights start below 1. A rate above 10 erases them in one step.
    learning_rate: Annotated[Positive, Limit(10)] = 3e-3
    """Learning rate after the warm-up."""
    beta1: NotNegative = 0.9
    """AdamW's decay of the first moment."""
    beta2: NotNegative = 0.98
    """AdamW's decay of the second moment."""
    # A step multiplies weights by 1 - rate * decay. At the default rate, a decay above 700 makes them grow.
    weight_decay: Annotated[NotNegative, Limit(1000)] = 0.0
    """Decoupled weight decay of AdamW, on weight matrices only. A step multiplies them by 1 - rate x decay."""
    base_d_model: Annotated[Count | None, Limit(100_000)] = None
    """Width at which `learning_rate` was tuned. Left out: one rate for all widths.

    If given, models follow the maximal update rule for Adam (Yang et al. 2022, arXiv 2203.03466). The learning rate of the
    matrices in the blocks and of the output is scaled by base_d_model / d_model. The output's initial weights are scaled by
    the square root of that."""
    clip_norm: Annotated[Positive, Limit(1e30)] = 1.0
    """Largest norm of the gradient over all parameters. Longer gradients are scaled down to it."""
    schedule: Literal["constant", "wsd"] = "wsd"
    """`constant`, or `wsd` (warm-up, stable, decay). The linear decay to zero over the last share of a budget is a branch."""
    warmup_steps: Annotated[Index, Limit(1e9)] = 0
    """Linear warm-up of the learning rate over this many optimizer steps."""
    decay_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of a budget's steps in which the rate decays (`wsd` only). These steps count against the budget."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matmuls: `fp32`, or `bf16` (torch.autocast: weights, moments and sums stay fp32). It changes results, so it
    belongs to the spec and not to the place."""
    task_exponent: Annotated[NotNegative, Limit(100)] = 0.0
    """Training task number r (from 1) is drawn in proportion to r^-task_exponent. 0 draws all equally often; 1 is Zipf's
    law."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> Training:
        if max(self.beta1, self.beta2) >= 1:
            raise ValueError(f"beta1 {self.beta1} and beta2 {self.beta2} must stay below 1")
        return self


class Evaluation(Record):
    """The evaluations along a trunk. Their compute is no part of a budget.

    Studies in which it exceeds 10 % of a trial's training compute are refused.
    """

    points_per_decade: Annotated[Count, Field(le=1000)] = 4
    """Evaluations per factor ten of compute, on the absolute grid 10^(k / points_per_decade) FLOPs."""
    first_flops: Annotated[Positive, Limit(1e30)] = 1e10
    """Start of the grid. There is no evaluation before it."""
    n_sequences: Annotated[Count, Limit(1e6)] = 64
    """Sequences per item set (held-out tasks, seen tasks, ...), the same for every trial."""


class Reward(Record):
    """Arm `reward`: the model answers freely, and a reward of 1 for a right answer is all that it learns from."""

    algorithm: Literal["leave_one_out", "grpo", "rejection", "star"] = "leave_one_out"
    """Weight of an answer's log-probability in the loss, with r = 1 for a right answer, else 0 (`trainers/objectives/reward.py`):

    - `leave_one_out`: r minus the mean r of the other answers to the prompt, divided by the most tokens of an answer. This is
      the policy gradient without bias;
    - `grpo`: (r - mean) / standard deviation of the prompt's answers, divided by the tokens of this answer;
    - `rejection`: right answers are targets, as in supervised learning;
    - `star`: the same, with answers of the model that the trial starts from. It needs `start_from`."""
    group_size: Annotated[Count, Field(ge=2), Limit(65_536)] = 8
    """Answers to each prompt of a step. `training.batch_size` counts answers, so a step has batch_size / group_size prompts."""
    temperature: Annotated[Positive, Limit(100, 0.01)] = 1.0
    """Temperature of sampling: answers are drawn from softmax(logits / temperature)."""
    samples_of_start: Annotated[Index, Limit(1e6)] = 1024
    """Answers of the start model to each of `evaluation.n_sequences` held-out prompts, sampled once per trunk, outside of all
    budgets: was a newly right answer among them? 0: the question is not asked."""


class Start(Record):
    """The weights that a trunk begins with: those of another trial at its end.

    The optimiser and the learning rate begin anew, as from scratch.
    """

    trial: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]*(/[A-Za-z0-9][A-Za-z0-9_.+=-]*)+$"), Limit(1000)]
    """Id of that trial, the donor. It is a label only: the fingerprint identifies the donor."""
    fingerprint: Annotated[str, Limit(100)]
    """Fingerprint of the donor."""
    flops: Annotated[Count, Limit(1e30)]
    """Training FLOPs of the donor, those of its own start included. They are charged: the trunk counts its compute from here."""


_NEUTRAL: dict[str, dict[str, Any]] = {
    "model": {"attention_window": 0},
    "training": {"base_d_model": None, "task_exponent": 0.0, "precision": "fp32"},
}
"""Part of a spec -> field -> value at which the field changes nothing.

These fields were added after the first fingerprints. A fingerprint leaves them out at this value, so that old ones stay valid."""


_LATER = ("reward", "start")
"""Parts of a spec that were added after the first fingerprints, and that a fingerprint leaves out if they are None."""


def identity_of(record: dict[str, Any], family: Any) -> dict[str, Any]:
    """A copy of a dumped spec of `family` without its labels, and without the later fields at their neutral value."""
    stated = {k: v for k, v in record["family"].items() if k not in family.labels}
    record = record | {"family": {k: v for k, v in stated.items() if family.neutral.get(k, ...) != v}}
    record = {part: value for part, value in record.items() if value is not None or part not in _LATER}
    if start := record.get("start"):
        record |= {"start": {k: v for k, v in start.items() if k != "trial"}}
    return {
        part: {k: v for k, v in value.items() if k not in _NEUTRAL[part] or v != _NEUTRAL[part][k]}
        if part in _NEUTRAL
        else value
        for part, value in record.items()
    }


class TrunkSpec(Record):
    """A trial without its budget. Trials with the same TrunkSpec share one training run, the trunk."""

    family: Annotated[SerializeAsAny[Record], BeforeValidator(family_from)]
    """The universe of tasks (`trainers/tasks/`), with its parameters."""
    arm: str
    """Name of the way to present the tasks: which tokens a sequence shows, and which of them the loss sees."""
    n_tasks: Count
    """Distinct tasks that the training stream draws from."""
    replicate: Index
    """Number of the independent repetition. Each has its own tasks, initial weights and batches."""
    variant: Annotated[str, Field(pattern=LABEL)] = ""
    """Name of the study's variant, and the value of its family parameter: `late/share=0.25`. It is a label only: the values that
    a variant changes stand in the other fields."""
    size: Annotated[str, Field(pattern=VARIANT)] = ""
    """Name of the preset that the study chose for this budget (`shapes.preset_for`). It is a label only, like `variant`: its
    widths stand in `model`. It is part of the id, so trunks of different sizes have different ids."""
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    reward: Reward | None = None
    """Settings of arm `reward`; None for other arms. Left out: the default settings, for arm `reward`."""
    start: Start | None = None
    """The weights that it begins with. None: initial weights of its replicate."""

    @model_validator(mode="before")
    @classmethod
    def _default_reward(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("arm") == "reward" and given.get("reward") is None:
            return given | {"reward": {}}
        return given

    @model_validator(mode="after")
    def _family_can(self) -> TrunkSpec:
        family: Any = self.family
        if self.arm not in family.arms:
            raise ValueError(f"family '{family.name}' has no arm '{self.arm}'; it has {', '.join(family.arms)}")
        if self.n_tasks > family.n_tasks_max:
            of = f"training tasks of {'each domain of ' if family.domains else ''}family '{family.name}'"
            raise ValueError(f"n_tasks {self.n_tasks} is beyond the {family.n_tasks_max} {of}")
        if (objection := family.objection(self.training.task_exponent)) is not None:
            raise ValueError(objection)
        if self.reward is not None and self.arm != "reward":
            raise ValueError(f"arm '{self.arm}' has no settings 'reward'; leave them out")
        if self.reward is not None and self.reward.algorithm == "star" and self.start is None:
            raise ValueError("reward.algorithm 'star' samples from the model that a trial starts from; give start_from")
        if self.reward is not None and self.training.batch_size % self.reward.group_size:
            sizes = (
                f"batch_size {self.training.batch_size} answers are no multiple of group_size {self.reward.group_size}"
            )
            raise ValueError(sizes)
        return self

    @property
    def id(self) -> str:
        """Readable and unique within a study: `answer/n64/r0`."""
        of_size = f"/{self.size}" if self.size else ""
        return f"{self.arm}/n{short_number(self.n_tasks)}/r{self.replicate}{self._of_variant}{of_size}"

    @property
    def _of_variant(self) -> str:
        return f"/{self.variant}" if self.variant else ""

    @property
    def request(self) -> Request:
        """The part of this spec by which the family makes batches and evaluations."""
        training, n_sequences = self.training, self.evaluation.n_sequences
        return Request(self.arm, self.n_tasks, self.replicate, training.batch_size, n_sequences, training.task_exponent)

    def fingerprint(self) -> str:
        """20 hex digits of a SHA-256 over the spec and the versions of its family and of the trainer.

        Equal fingerprints mean equal results. The labels `variant` and `size` are left out.
        """
        family: Any = self.family
        spec = identity_of(self.model_dump(mode="json", exclude={"variant", "size"}), family)
        payload = {"spec": spec, "family": family.version, "trainer": TRAINER_VERSION}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:20]

    def trial(self, compute_flops: float) -> TrialSpec:
        """The trial of this trunk at one budget, a positive number. Its fields are not validated again.

        The trunk has validated them already, and a wide study has 100,000 trials.
        """
        return TrialSpec.model_construct(**self.__dict__, compute_flops=float(compute_flops))


class TrialSpec(TrunkSpec):
    """One (arm, n_tasks, compute_flops, replicate): one row of results, one MLflow run."""

    compute_flops: Annotated[Positive, Limit(1e30)]
    """Budget in training FLOPs: matmuls and attention, forward and backward, branch included."""

    @property
    def id(self) -> str:
        """Readable and unique within a study: `answer/n64/c1e12/r0`."""
        return f"{self.arm}/n{short_number(self.n_tasks)}/c{short_number(self.compute_flops)}/r{self.replicate}{self._of_variant}"

    @property
    def trunk(self) -> TrunkSpec:
        """The trunk of this trial: the same spec without the budget."""
        return TrunkSpec(**{k: v for k, v in dict(self).items() if k != "compute_flops"})
