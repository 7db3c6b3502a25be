"""The order of work: coarse to fine, at next to no cost in time."""

from __future__ import annotations

import itertools
import random

import pytest
from test_plan import ended

from orchestrator.plan import order, price
from orchestrator.plan.options import Options, slots_of
from orchestrator.record.journal import State
from orchestrator.study import reader
from orchestrator.study.reader import load


def test_levels_are_refined_from_the_ends_to_the_middle() -> None:
    levels = {n: sorted(range(n), key=order.refinement(n).__getitem__) for n in range(1, 9)}
    assert levels == {
        1: [0],
        2: [1, 0],
        3: [2, 0, 1],
        4: [3, 0, 1, 2],
        5: [4, 0, 2, 1, 3],
        6: [5, 0, 2, 1, 3, 4],
        7: [6, 0, 3, 1, 4, 2, 5],
        8: [7, 0, 3, 1, 5, 2, 4, 6],
    }
    for n in range(1, 40):
        ranks = order.refinement(n)
        assert sorted(ranks) == list(range(n))
        for taken in range(2, n):  # whenever the work stops, no gap is more than twice as wide as another, and one step
            here = sorted(ranks.index(rank) for rank in range(taken))
            gaps = [b - a for a, b in itertools.pairwise(here)]
            assert max(gaps) <= 2 * min(gaps) + 2


def test_the_first_replicate_is_finished_before_the_second_begins_and_begins_at_its_ends() -> None:
    plan = price.make(load("quickstart"), State(), 2, "cpu")
    first = [(job.trunk.n_tasks, job.trunk.replicate) for job in plan.jobs]
    assert first[:3] == [(10**12, 0), (4, 0), (32, 0)]
    assert [r for _, r in first] == sorted(r for _, r in first)


def lasts(plan: price.Plan, jobs: list[price.Job]) -> float:
    each = [(job.price.train_flops + job.price.eval_flops) / job.placement.workers for job in jobs]
    return order.makespan(each, plan.slots, [slots_of(job.placement, plan.options) for job in jobs])


@pytest.mark.parametrize("slots", [2, 8, 16])
def test_no_shipped_study_takes_over_three_percent_longer_than_with_its_largest_jobs_first(slots: int) -> None:
    for name, path in reader.shipped().items():
        if "made_by:" in path.read_text():
            continue  # it needs a table first
        plan = price.make(load(name), State(), slots, "cpu")
        largest = sorted(plan.jobs, key=lambda j: (-j.placement.workers, -j.price.train_flops - j.price.eval_flops))
        assert lasts(plan, plan.jobs) <= 1.03 * lasts(plan, largest) + 1e-6, name


def test_a_long_job_that_would_come_last_comes_first() -> None:
    """Fails with the plain order from coarse to fine: the job of the last replicate would run alone at the end."""
    study = load("quickstart")
    last = [t.id for t in study.trials() if (t.n_tasks, t.replicate) != (1024, 2) and t.compute_flops > 1e11]
    plan = price.make(study, ended(study, last), 17, "cpu")
    assert (plan.jobs[0].trunk.n_tasks, plan.jobs[0].trunk.replicate) == (1024, 2)
    assert [j.trunk.replicate for j in plan.jobs[1:]] == sorted(j.trunk.replicate for j in plan.jobs[1:])


def test_another_number_of_slots_gives_the_plan_that_it_would_have_had() -> None:
    study = load("teach_vs_incentivize")
    made = price.make(study, State(), 2, "cpu", options=Options())
    assert price.on_slots(made, 16) == price.make(study, State(), 16, "cpu", options=Options())


def test_a_makespan_is_within_the_known_bound_of_the_best_possible_schedule() -> None:
    draw = random.Random(3)
    for _ in range(200):
        seconds = sorted((draw.uniform(1, 9) for _ in range(6)), reverse=True)
        best = min(
            max(sum(j for j, s in zip(seconds, at, strict=True) if s == slot) for slot in range(2))
            for at in itertools.product(range(2), repeat=6)
        )
        assert best - 1e-9 <= order.makespan(seconds, 2) <= (4 / 3 - 1 / 6) * best + 1e-9  # Graham 1969, largest first
