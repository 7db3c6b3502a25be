"""What more workers gain: hand-computed from trials' costs, and silent where nothing can be compared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.analysis import answer, findings
from orchestrator.record import tables
from orchestrator.record.journal import State
from orchestrator.study.schema import Study

RECORD: dict[str, Any] = {
    "study": "gain",
    "version": 1,
    "question": "What do two workers gain?",
    "family": {"name": "cipher", "n_symbols": 8, "n_pairs": 8},
    "axes": {
        "arm": ["answer"],
        "variant": {"one": {"place": {"workers": 1}}, "two": {"place": {"workers": 2}}, "wide": {"model": {"d_model": 32}}},
        "n_tasks": [4, 64],
        "compute_flops": [1e9, 2e9],
        "replicates": 2,
    },
    "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32},
    "training": {"batch_size": 8},
    "evaluation": {"n_sequences": 4, "first_flops": 1e8, "points_per_decade": 2},
}  # fmt: skip


def found_with(seconds: dict[tuple[str, int, int], float]) -> findings.Findings:
    """Findings where a trunk (variant, n_tasks, replicate) took so many seconds for each of its two trials."""
    study, state = Study.from_record(RECORD), State()
    for trial in study.trials():
        took = seconds.get((trial.variant, trial.n_tasks, trial.replicate))
        if took is not None:
            facts = {
                "trunk": trial.trunk.id,
                "trial": trial.id,
                "status": "done",
                "workers": 1 + (trial.variant == "two"),
            }
            costs = {"flops_run": 1e9, "train_seconds": took, "eval_seconds": 1.0, "step": 60}
            state.feed([{"kind": "trial", "key": trial.id, **facts, **costs}])
    return findings.find(study, tables.results_table(state, study), tables.runs_table(state, study))


def test_two_workers_are_measured_by_one_with_the_same_tasks_and_replicate() -> None:
    times = {("one", n, r): 10.0 * (1 + r) for n in (4, 64) for r in (0, 1)}
    gains = {(4, 0): 2.0, (4, 1): 1.6, (64, 0): 1.8, (64, 1): 1.5}
    times |= {("two", n, r): 10.0 * (1 + r) / gain for (n, r), gain in gains.items()}
    (two,) = found_with(times).of("speed")
    assert (two.condition, two.against, two.verdict, two.n) == ("two", "one", "measured", 4)
    logs = [math.log(gain) for gain in gains.values()]
    mean = sum(logs) / 4
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / 3) / 2  # standard error of four
    assert two.estimate == pytest.approx(math.exp(mean))
    assert two.low == pytest.approx(math.exp(mean - 3.1824463 * spread), rel=1e-6)  # t, 3 degrees of freedom
    assert not two.counted and two.p is None


def test_pairs_that_miss_a_partner_do_not_count_and_without_a_pair_nothing_is_measured() -> None:
    times = {("one", 4, 0): 10.0, ("two", 4, 0): 5.0, ("two", 64, 1): 1.0, ("one", 64, 0): 7.0}
    (two,) = found_with(times).of("speed")
    assert (two.estimate, two.n, two.low) == (pytest.approx(2.0), 1, None)
    apart = found_with({("one", 4, 0): 10.0, ("two", 64, 0): 5.0})
    (two,) = apart.of("speed")
    assert (two.verdict, two.estimate) == ("missing", None) and two.sentence not in answer.more(apart)
    assert found_with({("one", 4, 0): 10.0}).of("speed") == []


def test_conditions_that_ask_the_same_on_other_workers_are_one_and_not_compared() -> None:
    study = Study.from_record(RECORD)
    assert study.same_question() == [["one", "two"], ["wide"]] and study.comparable == [("one", "wide")]
    found = found_with({("one", 4, 0): 10.0, ("two", 4, 0): 5.0})
    assert {(one.against, one.condition) for one in found.of("crossover")} == {("one", "wide")}
    assert answer._conditions(found) == ["one", "wide"]
