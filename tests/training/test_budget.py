"""FLOPs and steps: the accounting, against counts made another way."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from trainers.budget import (
    MIN_STEPS,
    BudgetTooSmall,
    answer_flops,
    evaluation_steps,
    flops_at,
    flops_per_step,
    learning_rate_at,
    price,
    steps_of,
)
from trainers.models.transformer import Attention, CausalConvolution, build
from trainers.records import Numbers
from trainers.shapes import Model, Shape
from trainers.spec import Start, Training, TrunkSpec

SHAPES = [
    Model(
        n_layers=layers, d_model=8 * heads, n_heads=heads, d_mlp=d_mlp, norm=norm, positions=positions, conv_kernel=conv
    )
    for layers, heads, d_mlp, norm, positions, conv in itertools.product(
        (1, 3), (1, 4), (16, 50), ("rms", "layer"), ("rotary", "learned"), (0, 1, 4)
    )
]


def trunk_of(**changes: Any) -> TrunkSpec:
    """A small cipher trunk: 2 layers of width 16."""
    record: dict[str, Any] = {
        "family": {"name": "cipher", "n_symbols": 6, "n_pairs": 5},
        "arm": "answer",
        "n_tasks": 8,
        "replicate": 0,
        "model": {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24},
        "training": {"batch_size": 4},
        "evaluation": {"first_flops": 1e6},
    }
    return TrunkSpec.model_validate(record | changes)


# Counting --------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_model_that_is_built():
    for model, vocab_size, seq_len, numbers in itertools.product(SHAPES, (5, 32), (7,), (None, Numbers(6, 0.25))):
        net = build(model, vocab_size, seq_len, replicate=0, numbers=numbers)
        assert Shape(model, vocab_size, seq_len, numbers).n_parameters == sum(p.numel() for p in net.parameters()), (
            model
        )


def test_forward_flops_are_the_multiply_adds_that_a_forward_pass_makes():
    """Counted from the shapes that really pass through: linear layers, attention over all T x T, convolutions."""
    shapes = ((5, 7, None), (33, 12, None), (1, 12, Numbers(6, 0.25)))
    for model, (vocab_size, seq_len, numbers) in itertools.product(SHAPES, shapes):
        counted = 0

        def count(module, inputs, output):
            nonlocal counted
            tokens, width = math.prod(inputs[0].shape[:-1]), inputs[0].shape[-1]
            if isinstance(module, torch.nn.Linear):
                counted += 2 * tokens * width * output.shape[-1]
            elif isinstance(module, Attention):
                counted += 2 * (2 * tokens * tokens * width)  # QK^T, then AV, of one sequence
            elif isinstance(module, CausalConvolution):
                counted += 2 * tokens * width * module.weight.shape[0]

        net = build(model, vocab_size, seq_len, replicate=0, numbers=numbers)
        for module in net.modules():
            module.register_forward_hook(count)
        net(torch.zeros(1, seq_len, numbers.width) if numbers else torch.zeros(1, seq_len, dtype=torch.int64))
        assert Shape(model, vocab_size, seq_len, numbers).forward_flops == counted, model


def test_the_quickest_model_by_hand():
    """d=4, T=3, V=5, one layer, MLP 8, convolution over 2: per token 4·16 + 2·32 + 4·5 + 2·3·4 + 2·4 multiply-adds."""
    model = Model(n_layers=1, d_model=4, n_heads=1, d_mlp=8, conv_kernel=2)
    assert Shape(model, 5, 3).forward_flops == 2 * 3 * (64 + 64 + 20 + 24 + 8)
    assert Shape(model, 5, 3).n_parameters == 2 * 20 + 64 + 64 + 8 + 3 * 4


def test_numbers_cost_the_matrix_that_embeds_them_and_a_head_of_one():
    """As above with tokens of 9 numbers: 4·9 and 4·1 multiply-adds for 4·5; the bias adds parameters only."""
    model = Model(n_layers=1, d_model=4, n_heads=1, d_mlp=8, conv_kernel=2)
    assert Shape(model, 1, 3, Numbers(9, 0.25)).forward_flops == 2 * 3 * (36 + 64 + 64 + 4 + 24 + 8)
    assert Shape(model, 1, 3, Numbers(9, 0.25)).n_parameters == 36 + 4 + 4 + 64 + 64 + 8 + 3 * 4
    family = {"name": "regression", "n_dims": 8, "n_pairs": 2}
    trunk = trunk_of(family=family, model=model.model_dump(), training={"batch_size": 7})
    assert flops_per_step(trunk) == 3 * 7 * 2 * 3 * (36 + 64 + 64 + 4 + 24 + 8)


def test_a_training_step_costs_three_forward_passes_of_the_batch():
    trunk = trunk_of(training={"batch_size": 7})
    assert flops_per_step(trunk) == 3 * 7 * Shape(trunk.model, 12, 9).forward_flops
    assert answer_flops(trunk) == Shape(trunk.model, 12, 9).forward_flops


# Steps -----------------------------------------------------------------------------------------------------------


@given(st.floats(MIN_STEPS, 1e7), st.floats(0, 0.99), st.sampled_from(["wsd", "constant"]))
def test_steps_spend_the_budget_within_one_percent(exact_steps, decay_share, schedule):
    trunk = trunk_of(training={"batch_size": 4, "decay_share": decay_share, "schedule": schedule})
    cost = flops_per_step(trunk)
    steps = steps_of(trunk, exact_steps * cost)
    assert abs(steps.end * cost - exact_steps * cost) <= 0.01 * exact_steps * cost
    assert steps.end >= MIN_STEPS
    assert 0 <= steps.branch <= steps.end
    share = decay_share if schedule == "wsd" else 0
    assert abs((steps.end - steps.branch) - share * steps.end) <= 0.5 + 1e-9


@pytest.mark.parametrize("exact_steps", [1e-6, 1, 10, 49, 49.49, 49.5, 49.503])
def test_fewer_than_fifty_steps_are_refused(exact_steps):
    trunk = trunk_of()
    with pytest.raises(BudgetTooSmall, match="at least 50 steps"):
        steps_of(trunk, exact_steps * flops_per_step(trunk))


def test_the_budget_that_a_refusal_names_is_accepted():
    trunk = trunk_of()
    with pytest.raises(BudgetTooSmall) as refusal:
        steps_of(trunk, 1e3)
    named = float(str(refusal.value).split(" steps, ")[1].split(" FLOPs")[0])
    assert steps_of(trunk, named).end == MIN_STEPS


# Evaluation points -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_decade", [1, 3, 4, 10])
@pytest.mark.parametrize("first_flops", [1.0, 1e6, 2e6, 1e7])
def test_the_grid_is_every_power_of_ten_that_rounds_to_a_step_of_the_trunk(per_decade, first_flops):
    trunk = trunk_of(evaluation={"points_per_decade": per_decade, "first_flops": first_flops})
    cost = flops_per_step(trunk)
    points = [10 ** (k / per_decade) for k in range(-50, 20 * per_decade)]
    for last_step in (1, 5, 40, 333, 10_000):
        expected = {round(p / cost) for p in points if p >= first_flops * (1 - 1e-9)}
        assert evaluation_steps(trunk, last_step) == sorted(s for s in expected if 1 <= s <= last_step)


def test_the_grid_does_not_depend_on_arm_tasks_or_replicate():
    grids = {
        tuple(evaluation_steps(trunk_of(arm=arm, n_tasks=n_tasks, replicate=replicate), 5000))
        for arm, n_tasks, replicate in itertools.product(("answer", "next_token"), (1, 8, 500), (0, 3))
    }
    assert len(grids) == 1
    assert len(grids.pop()) > 10


# A start ---------------------------------------------------------------------------------------------------------


def begun(trunk: TrunkSpec, flops: int) -> TrunkSpec:
    """The trunk with a start that cost so much."""
    return trunk.model_copy(update={"start": Start(trial="steps/n8/c1e9/r0", fingerprint="b", flops=flops)})


@given(st.integers(1, 10**12), st.integers(MIN_STEPS, 2000), st.floats(-0.4, 0.4))
def test_the_steps_after_a_start_are_those_that_it_leaves_of_the_budget(before, n_steps, rest):
    trunk = begun(trunk_of(), before)
    cost = flops_per_step(trunk)
    budget = before + (n_steps + rest) * cost
    if abs(rest) * cost > 0.01 * budget:
        return
    steps = steps_of(trunk, budget)
    assert steps.end == n_steps and steps.end - steps.branch == round(0.2 * n_steps)
    assert flops_at(trunk, steps.end) == before + n_steps * cost
    with pytest.raises(BudgetTooSmall, match="of its start"):
        steps_of(trunk, before + 49 * cost)


def test_a_start_is_evaluated_at_its_own_compute_and_then_the_same_grid_goes_on():
    plain = trunk_of(evaluation={"points_per_decade": 10, "first_flops": 1e6})
    cost = flops_per_step(plain)
    trunk, last = begun(plain, 70 * cost + 5), 3000
    found = {flops_at(trunk, s) for s in evaluation_steps(trunk, last)}
    assert min(found) == 70 * cost + 5
    powers = [10 ** (k / 10) for k in range(50, 120) if min(found) < 10 ** (k / 10) < flops_at(trunk, last)]
    nearest = {round((p - min(found)) / cost) for p in powers}
    assert len(powers) > 10 and found == {flops_at(trunk, s) for s in nearest | {0}}


def test_a_start_costs_its_dependent_nothing_to_run_and_is_charged_to_each_of_its_trials():
    plain = trunk_of()
    cost, ends = flops_per_step(plain), (60, 100)
    trunk = begun(plain, 500 * cost)
    alone, after = price(plain, [float(n * cost) for n in ends]), price(trunk, [float((500 + n) * cost) for n in ends])
    assert after.train_flops == alone.train_flops
    assert after.separate_flops == alone.separate_flops + 2 * 500 * cost
    n_points = len(evaluation_steps(trunk, 80)) + 2 + 2  # with step 0, two branch points and two ends
    assert {48, 80}.isdisjoint(evaluation_steps(trunk, 80)) and 0 in evaluation_steps(trunk, 80)
    exam = (
        plain.family.suite_size(plain.request)
        * Shape(plain.model, plain.family.vocab_size, plain.family.length("answer")).forward_flops
    )
    assert after.eval_flops == n_points * exam


# Price -----------------------------------------------------------------------------------------------------------


def simulated(trunk: TrunkSpec, budgets: list[float]) -> tuple[int, int]:
    """Optimizer steps and evaluations of a trunk, by walking along it step by step."""
    ends = {b: steps_of(trunk, b) for b in budgets}
    last = max(s.branch for s in ends.values())
    grid = set(evaluation_steps(trunk, last))
    n_steps = n_evaluations = 0
    for step in range(last + 1):
        leaving = [s for s in ends.values() if s.branch == step]
        n_evaluations += step in grid or any(s.end > step for s in leaving)  # once, before it decays
        for s in leaving:
            n_steps += sum(1 for _ in range(s.branch, s.end))
            n_evaluations += 1  # the trial's own, at its end
        n_steps += step < last
    return n_steps, n_evaluations


@given(
    st.lists(st.integers(MIN_STEPS, 400), min_size=1, max_size=5, unique=True),
    st.sampled_from([0.0, 0.2, 0.5, 0.99]),
    st.sampled_from(["wsd", "constant"]),
)
def test_the_price_is_what_the_schedule_does(ends, decay_share, schedule):
    trunk = trunk_of(training={"batch_size": 4, "decay_share": decay_share, "schedule": schedule})
    cost, family = flops_per_step(trunk), trunk.family
    budgets = [float(end * cost) for end in ends]
    n_steps, n_evaluations = simulated(trunk, budgets)
    length = family.length(trunk.arm)
    exam = family.suite_size(trunk.request) * Shape(trunk.model, family.vocab_size, length).forward_flops
    assert price(trunk, budgets) == (n_steps * cost, n_evaluations * exam, 0, sum(ends) * cost)


def test_four_budgets_a_factor_two_apart_cost_well_under_two_thirds_of_separate_runs():
    """DESIGN §5 states 0.63, for decays of a fifth: (0.8·8 + 0.2·15) / 15 of the smallest budget."""
    trunk = trunk_of()
    found = price(trunk, [float(n * flops_per_step(trunk)) for n in (100, 200, 400, 800)])
    assert Fraction(found.train_flops, found.separate_flops) == Fraction(640 + 300, 1500)


# Learning rate ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_linearly_and_then_stays():
    training = Training(learning_rate=0.4, warmup_steps=4)
    rates = [learning_rate_at(training, step, None, 100) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4], rel=1e-15)


def test_a_branch_decays_linearly_and_its_last_step_still_moves():
    training = Training(learning_rate=0.5)
    rates = [learning_rate_at(training, step, 96, 100) for step in range(96, 100)]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1], rel=1e-15)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 50))
def test_the_learning_rate_never_jumps_where_a_branch_leaves_the_trunk(branch, length, warmup_steps):
    assume(warmup_steps <= branch)
    training = Training(learning_rate=1.0, warmup_steps=warmup_steps)
    end = branch + length
    rates = [learning_rate_at(training, step, None, end) for step in range(max(branch - 1, 0), branch)]
    rates += [learning_rate_at(training, step, branch, end) for step in range(branch, end)]
    falls = [a - b for a, b in itertools.pairwise([*rates, 0.0])]  # after the last step it would be zero
    assert all(rate > 0 for rate in rates)
    assert falls == pytest.approx([1 / (length + 1)] * len(falls), abs=1e-12) or branch == 0
    assert rates[-1] == pytest.approx(1 / (length + 1), abs=1e-12)


def test_a_branch_inside_the_warm_up_keeps_warming_while_it_decays():
    training = Training(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(training, step, 4, 8) for step in range(4, 8)]
    assert rates == pytest.approx([0.5 * 0.8, 0.6 * 0.6, 0.7 * 0.4, 0.8 * 0.2], rel=1e-12)
