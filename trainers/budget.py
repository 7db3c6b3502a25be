"""FLOPs <-> optimizer steps. The only accounting there is: counted by hand, because torch's counter is no oracle.

(FlopCounterMode counts CPU attention as 0 and a depthwise convolution 22 times over.) A multiply-add is 2 FLOPs; the
backward pass costs twice the forward; attention is counted as the full T x T; embedding look-ups, norms, softmax and
the optimiser count as nothing; recomputation and evaluation are counted apart. No torch here.
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
"""A smaller budget is refused: rounding to whole steps would exceed 1 % of it, and warm-up would be all there is."""


class BudgetTooSmall(ValueError):
    """A budget of fewer than MIN_STEPS optimizer steps."""


def shape_of(trunk: TrunkSpec) -> Shape:
    """What parameters, FLOPs and bytes are counted from: the model, outputs a position, positions, and what a token is."""
    family: Any = trunk.family
    return Shape(trunk.model, family.vocab_size, family.length(trunk.arm), family.numbers)


def answer_flops(trunk: TrunkSpec) -> int:
    """What it takes to read a question and write its answer, steps included, nothing computed twice: one forward pass over a
    whole sequence. It is no part of any budget, and is told beside it."""
    return shape_of(trunk).forward_flops


def flops_per_step(trunk: TrunkSpec) -> int:
    """Training FLOPs of one optimizer step: forward and backward of one global batch."""
    return 3 * trunk.training.batch_size * shape_of(trunk).forward_flops


class Steps(NamedTuple):
    """A budget in optimizer steps: `branch` on the trunk at the constant rate, then a decay up to `end`."""

    branch: int
    end: int


def steps_of(trunk: TrunkSpec, compute_flops: float) -> Steps:
    """Whole steps within 1 % of the budget. Raises BudgetTooSmall below MIN_STEPS steps."""
    cost = flops_per_step(trunk)
    end = round(compute_flops / cost)
    if end < MIN_STEPS or abs(end * cost - compute_flops) > 0.01 * compute_flops:
        raise BudgetTooSmall(
            f"{flops_words(compute_flops)} FLOPs is {compute_flops / cost:.3g} steps of {flops_words(cost)} FLOPs; "
            f"at least {MIN_STEPS} steps, {flops_words(MIN_STEPS * cost)} FLOPs, are needed"
        )
    decay = round(end * trunk.training.decay_share) if trunk.training.schedule == "wsd" else 0
    return Steps(end - decay, end)


def evaluation_steps(trunk: TrunkSpec, last_step: int) -> list[int]:
    """The absolute FLOP grid 10^(k / points_per_decade) from `first_flops` on, as trunk steps up to `last_step`.

    It depends on the model and on no axis value, so that curves of different trials meet at the same compute.
    """
    cost, of = flops_per_step(trunk), trunk.evaluation
    decades = math.ceil(math.log10((last_step + 1) * cost))
    grid = _grid(cost, of.points_per_decade, of.first_flops, decades)
    return list(grid[: bisect.bisect_right(grid, last_step)])


@functools.lru_cache(maxsize=256)
def _grid(cost: int, per_decade: int, first_flops: float, decades: int) -> tuple[int, ...]:
    """The grid in steps of so many FLOPs up to 10^decades FLOPs or one step more, ascending. Kept: trunks share it by the thousand."""
    first = math.ceil(per_decade * math.log10(first_flops) - 1e-9)
    first = max(first, math.floor(per_decade * math.log10(cost / 2)))  # what is below rounds to no step at all
    steps = {round(10 ** (k / per_decade) / cost) for k in range(first, per_decade * decades + 1)}
    return tuple(sorted(s for s in steps if s >= 1))


class Standing(NamedTuple):
    """How far a trunk has come, as its checkpoint has it: `train.py` goes on from there, `price` charges what is left."""

    trunk_step: int = 0
    """Where the trunk is, or was left for the branch that it is on."""
    branch: float | None = None
    """The budget whose branch it is on."""
    branch_step: int = 0
    """Where on that branch."""
    charged_steps: int = 0
    """Steps run since a trial last ended: they count for the next one."""
    ended: frozenset[float] = frozenset()
    """Budgets that have ended."""
    exams: frozenset[str] = frozenset()
    """Evaluations that are behind it: `trunk/<step>`, `<budget>/<step>`."""

    @classmethod
    def of(cls, meta: dict[str, Any]) -> Standing:
        """From the meta of a checkpoint that `train.py` wrote."""
        now, left = meta["now"], meta["left"]
        on_branch = now["branch"] is not None
        return cls(
            trunk_step=left["step"] if on_branch else now["step"],
            branch=now["branch"],
            branch_step=now["step"] if on_branch else 0,
            charged_steps=now["steps_charged"],
            ended=frozenset(now["ended"]),
            exams=frozenset(now["exams"]),
        )

    def toward(self, steps: Mapping[float, Steps]) -> Standing | None:
        """From where a run for these budgets goes on; None if the trunk has passed one of them, and begins again.

        None also for a place beyond the end of its branch, where no run ever stood and none would end.
        """
        wanted = self.branch is None or self.branch in steps
        on = self if wanted else self._replace(branch=None, branch_step=0, charged_steps=0)  # its trial has ended
        ahead = [s for b, s in steps.items() if b not in on.ended and b != on.branch]
        beyond = on.branch is not None and on.branch_step > steps[on.branch].end
        return on if not beyond and all(s.branch >= on.trunk_step for s in ahead) else None


START = Standing()


def marginal_flops(trunk: TrunkSpec, budgets: Sequence[float], at: Standing = START) -> dict[float, int]:
    """Training FLOPs still to run for each budget beyond the smaller ones: its stretch of the trunk, and its branch.

    `at` must lead to all of them (`Standing.toward`).
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
    """What a trunk costs when it carries these budgets: all in FLOPs, training and evaluation apart."""

    train_flops: int
    eval_flops: int
    separate_flops: int
    """Training FLOPs had every trial been run by itself, from the start."""


def price(trunk: TrunkSpec, budgets: Sequence[float], at: Standing = START) -> Price:
    """Trunk up to the last branch point, plus every branch; each evaluation is one forward pass of the suite.

    With `at`, what is left of that from there on.
    """
    family: Any = trunk.family
    steps = {b: steps_of(trunk, b) for b in budgets}
    last = max(s.branch for s in steps.values())
    points = set(evaluation_steps(trunk, last)) | {s.branch for s in steps.values() if s.end > s.branch}
    n_ahead = len(points) + len(steps)
    if at != START:
        ahead = {f"trunk/{p}" for p in points if p >= at.trunk_step} | {f"{b!r}/{s.end}" for b, s in steps.items()}
        n_ahead = len(ahead - at.exams)
    forward = shape_of(trunk).forward_flops
    return Price(
        sum(marginal_flops(trunk, budgets, at).values()),
        n_ahead * family.suite_size(trunk.request) * forward,
        sum(s.end for s in steps.values()) * flops_per_step(trunk),
    )


def learning_rate_at(training: Training, step: int, decay_from: int | None, end: int) -> float:
    """Rate of optimizer step `step` (0-based). On the trunk `decay_from` is None; on a branch it decays linearly to 0."""
    rate = training.learning_rate
    if training.warmup_steps:
        rate *= min(1.0, (step + 1) / training.warmup_steps)
    if decay_from is not None:
        rate *= (end - step) / (end - decay_from + 1)  # the last step still moves
    return rate
