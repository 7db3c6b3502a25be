"""FLOPs and optimizer steps, and the conversion between them. This is the only accounting of compute. No torch here.

FLOPs are counted by hand (`Shape.forward_flops`). torch's FlopCounterMode counts CPU attention as 0 and a depthwise convolution
22 times over. A multiply-add is 2 FLOPs. The backward pass costs twice the forward pass. Attention counts as the full T x T.
Embedding look-ups, norms, softmax and the optimiser count as 0. Recomputation and evaluation are counted apart.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainers.records import flops_words
from trainers.shapes import Shape
from trainers.spec import Training, TrunkSpec

MIN_STEPS = 50
"""Fewer steps are refused. Rounding to whole steps would then exceed 1 % of the budget, and warm-up would fill all of it."""


class BudgetTooSmall(ValueError):
    """A budget of fewer than MIN_STEPS optimizer steps."""


def shape_of(trunk: TrunkSpec) -> Shape:
    """The trunk's `Shape`, from which parameters, FLOPs and bytes are counted."""
    family: Any = trunk.family
    return Shape(trunk.model, family.vocab_size, family.length(trunk.arm), family.numbers)


def answer_flops(trunk: TrunkSpec) -> int:
    """FLOPs to read a question and write its answer, intermediate steps included: one forward pass over a whole sequence.

    This assumes that no position is computed twice. A report shows the number beside the budgets. No budget includes it.
    """
    return shape_of(trunk).forward_flops


def flops_per_step(trunk: TrunkSpec) -> int:
    """Training FLOPs of one optimizer step: forward and backward of one global batch, after `sampling_flops`."""
    return 3 * trunk.training.batch_size * shape_of(trunk).forward_flops + sampling_flops(trunk)


def sampling_flops(trunk: TrunkSpec) -> int:
    """FLOPs to sample the answers of one step: 0 unless the arm is `reward`.

    All answers count with the most tokens that they may have, and with cached attention. Shorter ones cost less than is
    charged. A prompt is read once for its group.
    """
    family: Any = trunk.family
    if trunk.reward is None:
        return 0
    n_prompts = trunk.training.batch_size // trunk.reward.group_size
    n_prompt, n_new = family.answer_shape
    return n_prompts * shape_of(trunk).sampling_flops(n_prompt, n_new, trunk.reward.group_size)


def start_flops(trunk: TrunkSpec, n_prompts: int) -> int:
    """FLOPs to sample the start model's answers to so many held-out prompts (`Reward.samples_of_start`), which no budget includes.

    0 if a trunk does not ask for them.
    """
    if trunk.reward is None or trunk.start is None or not trunk.reward.samples_of_start:
        return 0
    family: Any = trunk.family
    n_prompt, n_new = family.answer_shape
    return n_prompts * shape_of(trunk).sampling_flops(n_prompt, n_new, trunk.reward.samples_of_start + 1)


def flops_at(trunk: TrunkSpec, step: int) -> int:
    """Training FLOPs with which a trunk is charged at a step: those of its start, if it has one, and of its own steps."""
    return (trunk.start.flops if trunk.start else 0) + step * flops_per_step(trunk)


class Steps(NamedTuple):
    """A budget in optimizer steps, counted from the start of the trunk."""

    branch: int
    """Step at which the branch begins. Up to there the trunk trains at the constant rate."""
    end: int
    """Step at which the branch, and so the trial, ends. It equals `branch` if the schedule has no decay."""


def steps_of(trunk: TrunkSpec, compute_flops: float) -> Steps:
    """A budget in FLOPs as whole steps, rounded by at most 1 %. Raises BudgetTooSmall below MIN_STEPS steps.

    With a start, the steps are those that its FLOPs leave of the budget.
    """
    cost, before = flops_per_step(trunk), flops_at(trunk, 0)
    end = round((compute_flops - before) / cost)
    if end < MIN_STEPS or abs(flops_at(trunk, end) - compute_flops) > 0.01 * compute_flops:
        after = f" after the {flops_words(before)} of its start" if before else ""
        raise BudgetTooSmall(
            f"{flops_words(compute_flops)} FLOPs is {max(0.0, (compute_flops - before) / cost):.3g} steps of "
            f"{flops_words(cost)} FLOPs{after}; "
            f"at least {MIN_STEPS} steps, {flops_words(flops_at(trunk, MIN_STEPS))} FLOPs, are needed"
        )
    decay = round(end * trunk.training.decay_share) if trunk.training.schedule == "wsd" else 0
    return Steps(end - decay, end)


def evaluation_steps(trunk: TrunkSpec, last_step: int) -> list[int]:
    """Steps of the trunk, up to `last_step`, at which the skills are evaluated.

    They lie on the absolute FLOP grid 10^(k / points_per_decade) from `first_flops` on. The grid depends on no axis value, so
    curves of different trials have points at the same compute. A trunk with a start has step 0 too: the score of the start
    itself, at its FLOPs.
    """
    cost, evaluation = flops_per_step(trunk), trunk.evaluation
    decades = math.ceil(math.log10(flops_at(trunk, last_step + 1)))
    grid = _grid(cost, flops_at(trunk, 0), evaluation.points_per_decade, evaluation.first_flops, decades)
    return list(grid[: bisect.bisect_right(grid, last_step)])


@functools.lru_cache(maxsize=256)
def _grid(cost: int, before: int, per_decade: int, first_flops: float, decades: int) -> tuple[int, ...]:
    """The grid of `evaluation_steps` as ascending step numbers, up to 10^decades FLOPs or one step more.

    `cost` is the FLOPs of a step, `before` those of the start. The result is cached, because thousands of trunks share one
    grid.
    """
    first = math.ceil(per_decade * math.log10(first_flops) - 1e-9)
    first = max(first, math.floor(per_decade * math.log10(before + cost / 2)))  # points below round to step 0
    steps = {round((10 ** (k / per_decade) - before) / cost) for k in range(first, per_decade * decades + 1)}
    return (*([0] if before else []), *sorted(s for s in steps if s >= 1))


class Standing(NamedTuple):
    """Progress of a trunk, read from its checkpoint. `train.py` continues from it, and `price` counts the cost of the rest."""

    trunk_step: int = 0
    """Step of the trunk. During a branch: the step at which the branch began."""
    branch: float | None = None
    """Budget of the branch that is being trained, or None."""
    branch_step: int = 0
    """Step on that branch, counted from the start of the trunk. 0 without a branch."""
    charged_steps: int = 0
    """Steps run since the last trial ended. The next trial is charged with them."""
    ended: frozenset[float] = frozenset()
    """Budgets whose trials have ended."""
    evaluations: frozenset[str] = frozenset()
    """Keys of the evaluations already made: `trunk/<step>`, `<budget>/<step>`."""

    @classmethod
    def of(cls, meta: dict[str, Any]) -> Standing:
        """The progress in `meta`, the JSON part of a checkpoint (`checkpoint.peek`)."""
        now, left = meta["now"], meta["left"]
        on_branch = now["branch"] is not None
        return cls(
            trunk_step=left["step"] if on_branch else now["step"],
            branch=now["branch"],
            branch_step=now["step"] if on_branch else 0,
            charged_steps=now["steps_charged"],
            ended=frozenset(now["ended"]),
            evaluations=frozenset(now["exams"]),
        )

    def toward(self, steps: Mapping[float, Steps]) -> Standing | None:
        """The progress from which a run for these budgets continues, or None if it must begin again.

        `steps` maps each budget to its steps (`steps_of`). The run must begin again if the trunk has passed the branch point
        of a budget that has not ended. None also if the step lies beyond the end of its branch: no valid run is ever there.
        """
        is_wanted = self.branch is None or self.branch in steps
        at = self if is_wanted else self._replace(branch=None, branch_step=0, charged_steps=0)  # its trial has ended
        ahead = [s for b, s in steps.items() if b not in at.ended and b != at.branch]
        beyond = at.branch is not None and at.branch_step > steps[at.branch].end
        return at if not beyond and all(s.branch >= at.trunk_step for s in ahead) else None


START = Standing()
"""The progress of a trunk that has not begun."""


def marginal_flops(trunk: TrunkSpec, budgets: Sequence[float], at: Standing = START) -> dict[float, int]:
    """Training FLOPs still to run, by budget: its part of the trunk beyond the smaller budgets, and its branch.

    `at` is the trunk's progress. It must be a result of `Standing.toward` for these budgets.
    """
    cost, marginal, before = flops_per_step(trunk), {}, at.trunk_step
    for flops in sorted(budgets):
        branch, end = steps_of(trunk, flops)
        if flops in at.ended:
            marginal[flops] = 0
        elif flops == at.branch:
            marginal[flops] = (end - at.branch_step) * cost
        else:
            marginal[flops] = (end - before) * cost
            before = branch
    return marginal


class Price(NamedTuple):
    """Cost of a trunk and its trials in FLOPs."""

    train_flops: int
    """Training: the trunk up to its last branch point, and every branch."""
    eval_flops: int
    """Evaluations on the trunk and at the end of each branch."""
    start_flops: int
    """Samples of the start model (`start_flops`)."""
    separate_flops: int
    """Training FLOPs if each trial ran separately, from scratch: the training of its start included."""

    @property
    def all_flops(self) -> int:
        """What is computed: training and what no budget includes."""
        return self.train_flops + self.eval_flops + self.start_flops


def price(trunk: TrunkSpec, budgets: Sequence[float], at: Standing = START) -> Price:
    """Cost of a trunk with these budgets. An evaluation costs `Family.suite_size` forward passes.

    `at` is the trunk's progress, a result of `Standing.toward` for these budgets. Training and evaluations before it cost
    nothing more. `separate_flops` stays the cost from scratch.
    """
    family: Any = trunk.family
    steps = {b: steps_of(trunk, b) for b in budgets}
    last = max(s.branch for s in steps.values())
    points = set(evaluation_steps(trunk, last)) | {s.branch for s in steps.values() if s.end > s.branch}
    n_ahead = len(points) + len(steps)
    if at != START:
        ahead = {f"trunk/{p}" for p in points if p >= at.trunk_step} | {f"{b!r}/{s.end}" for b, s in steps.items()}
        n_ahead = len(ahead - at.evaluations)
    forward = shape_of(trunk).forward_flops
    return Price(
        sum(marginal_flops(trunk, budgets, at).values()),
        n_ahead * family.suite_size(trunk.request) * forward,
        start_flops(trunk, trunk.evaluation.n_sequences),
        sum(flops_at(trunk, s.end) for s in steps.values()),
    )


def learning_rate_at(training: Training, step: int, decay_from: int | None, end: int) -> float:
    """Learning rate of optimizer step `step` (0-based).

    On a branch, `decay_from` is its first step and `end` the step after its last one. The rate then decays linearly, and
    would be 0 at `end`. On the trunk, `decay_from` is None and `end` is ignored.
    """
    rate = training.learning_rate
    if training.warmup_steps:
        rate *= min(1.0, (step + 1) / training.warmup_steps)
    if decay_from is not None:
        rate *= (end - step) / (end - decay_from + 1)  # the last step still has a rate above 0
    return rate
