"""Studies with next to nothing in them: the answer, the summary and MLflow's page are written all the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import synthetic

from orchestrator.analysis import answer, summary
from orchestrator.analysis.findings import find
from orchestrator.study.schema import Study

EVERY = (None, None, None, None)
TWO: dict[str, Any] = {"arm": ("answer", "next_token")}
COMMA: dict[str, Any] = TWO | {"variant": {"one": {}, "two": {"model": {"n_layers": 3}}}}
REFERENCES = (
    "sum_nll_memorizer",
    "sum_nll_generalizer",
    "sum_nll_uniform",
    "sum_nll_oracle",
    "sum_correct_memorizer",
    "sum_correct_generalizer",
)
URNS: dict[str, Any] = {"family": {"name": "urns"}, "arm": ("next_token",)}
GROKS: dict[str, Any] = {"family": {"name": "grok"}, "n_tasks": (4, 64)}
CLAIM = {"primary": {"what": "k_ability", "lo": 16}}
CROSSOVER = {"primary": {"what": "crossover", "against": "next_token", "n_tasks": 64, "lo": 2e11}}
CASES: dict[str, tuple[dict[str, Any], dict[tuple[Any, ...], str], tuple[str, ...]]] = {
    "one number of tasks": ({"n_tasks": (64,)}, {}, ()),
    "one budget": ({"compute_flops": (8e11,)}, {}, ()),
    "one cell, one replicate": ({"n_tasks": (64,), "compute_flops": (8e11,), "replicates": 1}, {}, ()),
    "two replicates": ({"replicates": 2}, {}, ()),
    "all open": (CLAIM, {EVERY: "open"}, ()),
    "all diverged": (CLAIM, {EVERY: "diverged"}, ()),
    "all failed": (CLAIM, {EVERY: "failed"}, ()),
    "diverged and failed": ({}, {(None, 4, None, None): "diverged", EVERY: "failed"}, ()),
    "one trial has ended": ({}, {(None, 4, 1e11, 0): "done", EVERY: "open"}, ()),
    "a number of tasks to come": ({}, {(None, 1024, None, None): "open"}, ()),
    "a budget to come": ({}, {(None, None, 8e11, None): "open"}, ()),
    "replicates to come": ({}, {(None, 1024, None, 1): "open", (None, None, None, 2): "open"}, ()),
    "memory is undefined": ({}, {}, ("sum_nll_memorizer",)),
    "no references": (CLAIM, {}, REFERENCES),
    "no losses": ({}, {}, ("sum_nll_nats",)),
    "two conditions, one to come": (TWO | CROSSOVER, {("next_token", None, None, None): "open"}, ()),
    "two conditions, the first diverged": (TWO | CROSSOVER, {("answer", None, None, None): "diverged"}, ()),
    "two conditions at different budgets": (TWO, {("next_token", None, 8e11, None): "open"}, ()),
    "names with a comma": (COMMA, {}, ()),
}


def tables_of(name: str) -> tuple[Study, Any]:
    axes, statuses, empty = CASES[name]
    study = synthetic.made_up(**axes)
    if study.axes.variant:
        return study, synthetic.of_variants(study, dict.fromkeys(study.conditions, synthetic.rising()))
    tables = synthetic.without(synthetic.tables(study), *empty)
    return study, synthetic.changed(tables, statuses) if statuses else tables


def check(study: Study, tables: Any) -> None:
    """Everything that prints findings prints them."""
    found = find(study, *tables)
    assert len(answer.sentence(found).split()) <= answer.MAX_WORDS and answer.sentence(found).endswith(".")
    assert len(answer.more(found)) <= answer.MAX_MORE and answer.badge(found)
    assert len(summary.rows(found)) == len(found.findings) + (study.primary is not None)
    assert len(summary.description(found)) <= summary.MAX_DESCRIPTION
    assert all(map(math.isfinite, summary.metrics(found).values()))
    assert found.costs().train_flops >= 0
    for one in found.findings:
        assert one.sentence and "None" not in one.sentence and "nan" not in one.sentence
        low, high = one.ends
        assert low is None or high is None or low <= high
        assert one.reach is None or all(end is None or one.reach[0] <= end <= one.reach[1] for end in one.ends)
        assert one.p is None or one.n > 0


@pytest.mark.parametrize("name", CASES)
def test_a_study_with_next_to_nothing_is_described(name: str) -> None:
    check(*tables_of(name))


@pytest.mark.parametrize(
    "axes", [CLAIM, TWO | CROSSOVER, COMMA, URNS, GROKS], ids=["one", "two", "comma", "urns", "grok"]
)
def test_a_study_without_any_record_is_described(axes: dict[str, Any]) -> None:
    results, runs = synthetic.tables(synthetic.made_up())
    check(synthetic.made_up(**axes), (results.slice(0, 0), runs.slice(0, 0)))


def test_the_answer_leaves_out_a_condition_to_come_and_compares_at_a_budget_that_both_have_reached() -> None:
    study, tables = tables_of("two conditions, one to come")
    said = answer.sentence(find(study, *tables))
    assert "(answer)" in said and "next_token" not in said
    axes = TWO | {"n_tasks": (4, 64, 1024), "skills": ("recall",)}
    truths = synthetic.step(16, 2e11), synthetic.step(16)
    found = synthetic.found(axes, truths, statuses={("next_token", None, 8e11, None): "open"})
    there, nowhere, flops = answer._at_one_budget(found, ["answer", "next_token"], "recall")
    assert ([one.condition for one in there], [one.condition for one in nowhere]) == (["next_token"], ["answer"])
    assert flops == 1e11
