"""What more workers gain: hand-computed from trials' costs, and silent where nothing can be compared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.analysis import findings, speed
from orchestrator.analysis.answer import paragraph
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
    one, two = found_with(times).speeds
    assert (one.workers, one.multiple, two.workers, two.beside) == (1, None, 2, "one")
    logs = [math.log(gain) for gain in gains.values()]
    mean = sum(logs) / 4
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / 3) / 2  # standard error of four
    assert two.multiple is not None and two.multiple.n == 4
    assert two.multiple.mean == pytest.approx(math.exp(mean))
    assert two.multiple.low == pytest.approx(math.exp(mean - 3.1824463 * spread), rel=1e-6)  # t, 3 degrees of freedom
    assert two.flops_per_second == pytest.approx(1e8 / math.sqrt(2) * math.exp(mean))
    said = speed.speed_sentence(two)
    assert said.startswith("2 workers train 1.71 times as fast as 1 (95 % interval 1.") and "4 pairs of runs" in said


def test_pairs_that_miss_a_partner_do_not_count_and_without_a_pair_nothing_is_said() -> None:
    times = {("one", 4, 0): 10.0, ("two", 4, 0): 5.0, ("two", 64, 1): 1.0, ("one", 64, 0): 7.0}
    multiple = found_with(times).speeds[1].multiple
    assert multiple is not None and (multiple.mean, multiple.n, multiple.low) == (pytest.approx(2.0), 1, None)
    apart = found_with({("one", 4, 0): 10.0, ("two", 64, 0): 5.0})
    assert apart.speeds[1].multiple is None and "as fast" not in paragraph(apart)
    assert found_with({("one", 4, 0): 10.0}).speeds == ()


def test_lines_that_ask_the_same_on_other_workers_are_told_once_and_not_set_against_each_other() -> None:
    study = Study.from_record(RECORD)
    assert study.same_question() == [["one", "two"], ["wide"]] and study.comparable == [("one", "wide")]
    said = paragraph(found_with({("one", 4, 0): 10.0, ("two", 4, 0): 5.0}))
    assert "arm one" in said and "arm wide" in said and "arm two" not in said
