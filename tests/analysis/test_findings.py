"""Findings: rows joined into cells, and what is said of them. Synthetic tables with a known truth, and nulls."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from orchestrator import formatting
from orchestrator.analysis import boundaries, expected, findings, measures
from orchestrator.analysis.answer import paragraph
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.study.schema import Study

LEVELS, BUDGETS = [4, 64, 1024], [1e11, 8e11]


def study(**changes: Any) -> Study:
    record = {
        "study": "made_up",
        "version": 1,
        "question": "What is said?",
        "family": {"name": "cipher"},
        "axes": {"arm": ["answer"], "n_tasks": LEVELS, "compute_flops": BUDGETS, "replicates": 2},
        "skills": ["recall"],
    }
    return Study.from_record(record | changes)


def row(
    n_tasks: int, c: float, r: int, *, skill: str = "recall", split: str = "held_out", phase: str = "final", **sums: Any
) -> dict:
    shared = {
        "arm": "answer",
        "n_tasks": n_tasks,
        "compute_flops": c,
        "replicate": r,
        "phase": phase,
        "step": 100,
        "flops": c,
    }
    references = {"nll_uniform": 200.0, "nll_generalizer": 100.0, "nll_memorizer": 0.0, "n": 100, "n_correct": 50}
    return shared | {"skill": skill, "split": split} | references | sums


def find(of: Study, rows: list[dict], runs: list[dict]) -> findings.Findings:
    tables = (pa.Table.from_pylist(rows, schema=RESULTS), pa.Table.from_pylist(runs, schema=RUNS))
    return findings.find(of, *tables)


def tables(ability: dict, memory: dict | None = None) -> tuple[list[dict], list[dict]]:
    """Rows in which every replicate has these abilities and memories at (n_tasks, budget)."""
    rows = [row(n, c, r, nll_nats=200 - 100 * a) for (n, c), a in ability.items() for r in range(2)]
    for (n, c), m in (memory or {}).items():
        rows += [
            row(n, c, r, skill="mixture", split="seen", phase="pre_decay", nll_nats=100 - 100 * m) for r in range(2)
        ]
    runs = [
        {"arm": "answer", "n_tasks": n, "compute_flops": c, "replicate": r, "status": "done"}
        for n, c in ability
        for r in range(2)
    ]
    return rows, runs


def test_boundaries_and_answer_tell_a_known_truth() -> None:
    ability = {(4, 1e11): 0, (64, 1e11): 0.1, (1024, 1e11): 0.2, (4, 8e11): -3, (64, 8e11): 0.8, (1024, 8e11): 1}
    memory = {(4, 1e11): 0.9, (64, 1e11): 0.1, (1024, 1e11): 0, (4, 8e11): 1, (64, 8e11): 0.9, (1024, 8e11): 0.1}
    found = find(study(), *tables(ability, memory))
    (_, low), (_, high) = found.k_ability[("answer", "recall")]
    assert low.verdict == "beyond" and set(high.brackets) == {(4, 64)}
    (_, small), (_, large) = found.k_memory["answer"]
    assert set(small.brackets) == {(4, 64)} and set(large.brackets) == {(64, 1024)}
    # Two replicates that agree are no proof: a median beside a level sends both to the same side in one case of four.
    assert high.low < 4 and high.high > 64
    told = boundaries.interval_words(high, [float(n) for n in LEVELS])
    assert (
        f"Recall appears between 4 and 64 tasks in both replicates at 8e11 FLOPs (95 % interval for the median one: {told}), "
        "and nowhere up to 1,024 tasks at 1e11 FLOPs."
    ) in paragraph(found)
    assert "Memory of the training tasks ends between 64 and 1,024 tasks in both replicates at 8e11 FLOPs" in paragraph(
        found
    )
    assert "; at 1e11 it ends between 4 and 64 tasks. " in paragraph(found)


def test_the_answer_begins_with_how_often_the_skill_is_right() -> None:
    rows, runs = tables({(n, c): 0.9 for n in LEVELS for c in BUDGETS})
    for r in rows:
        r["n"], r["n_correct"] = (
            10_000,
            {4: 600, 64: 5_000, 1024: 9_996 if r["compute_flops"] == 8e11 else 7_000}[r["n_tasks"]],
        )
    expected = (
        "At 8e11 FLOPs, trained on 1,024 tasks, recall on unseen tasks is right in 99.9 % of cases, "
        "trained on 4 in 6 % (by chance 6 %)."
    )
    assert paragraph(find(study(), rows, runs)).startswith(expected)


def test_what_only_some_replicates_have_shown_so_far_is_not_said_to_be_nowhere() -> None:
    """At 64 tasks one replicate of two has ended, and has the skill; at 4 both have ended, without it."""
    rows = [row(4, 1e11, r, nll_nats=195) for r in range(2)] + [row(64, 1e11, 0, nll_nats=112)]
    runs = [
        {
            "arm": "answer",
            "n_tasks": n,
            "compute_flops": 1e11,
            "replicate": r,
            "status": "open" if (n, r) == (64, 1) else "done",
        }
        for n in (4, 64)
        for r in range(2)
    ]
    one = study(axes={"arm": ["answer"], "n_tasks": [4, 64], "compute_flops": [1e11], "replicates": 2})
    said = paragraph(find(one, rows, runs))
    assert "nowhere" not in said.split("Memory")[0]
    assert "cannot be told yet: 1 of the 1 replicate that has ended at 64 tasks" in said and "ability is 0.88" in said


def test_one_number_of_tasks_tells_no_boundary() -> None:
    one = study(axes={"arm": ["answer"], "n_tasks": [64], "compute_flops": [8e11], "replicates": 2})
    said = paragraph(find(one, *tables({(64, 8e11): 0.9}, {(64, 8e11): 0.1})))
    assert "tells no boundary: at 8e11 FLOPs recall is there in 2 of 2 replicates" in said
    assert "memorised in 0 of 2" in said and "from 64 tasks on" not in said


def test_where_nothing_is_learned_nothing_is_claimed() -> None:
    flat = {(n, c): 0.02 for n in LEVELS for c in BUDGETS}
    found = find(study(), *tables(flat, dict.fromkeys(flat, -2.0)))
    assert "appears nowhere" in paragraph(found) and "the highest ability of any trial is 0.02" in paragraph(found)
    assert "memorised nowhere" in paragraph(found)
    assert not any("/high" in name for name in found.metrics() if name.startswith("k_ability"))


def test_ability_is_read_after_the_decay_and_memory_before_it() -> None:
    rows, runs = tables({(4, 1e11): 0.9}, {(4, 1e11): 0.9})
    rows += [row(4, 1e11, r, phase="pre_decay", nll_nats=200) for r in range(2)]
    rows += [row(4, 1e11, r, skill="mixture", split="seen", phase="final", nll_nats=100) for r in range(2)]
    found = find(study(), rows, runs)
    assert found.values("ability", "answer", "recall", "held_out", 4, 1e11) == [pytest.approx(0.9)] * 2
    assert found.k_memory["answer"][0][1].verdict == "beyond"


def test_without_a_decay_the_final_look_serves_both() -> None:
    rows, runs = tables({(4, 1e11): 0.9})
    rows += [row(4, 1e11, r, skill="mixture", split="seen", phase="final", nll_nats=10) for r in range(2)]
    assert find(study(), rows, runs).k_memory["answer"][0][1].verdict == "beyond"


def test_before_any_trial_has_ended_nothing_is_said() -> None:
    assert paragraph(find(study(), [], [])) == "Nothing can be said yet: no trial has ended."


def test_a_missing_cell_and_a_lost_replicate_are_passed_over_not_filled() -> None:
    ability = {(4, 8e11): 0.1, (1024, 8e11): 0.9}
    rows, runs = tables(ability)
    found = find(study(), rows[:-1], runs)
    assert found.values("ability", "answer", "recall", "held_out", 1024, 8e11) == [pytest.approx(0.9), None]
    assert found.values("ability", "answer", "recall", "held_out", 64, 8e11) == [None, None]


def test_one_replicate_gives_a_bracket_and_no_interval() -> None:
    ability = {(4, 8e11): 0.1, (64, 8e11): 0.9}
    one = study(axes={"arm": ["answer"], "n_tasks": [4, 64], "compute_flops": [8e11], "replicates": 1})
    rows, runs = tables(ability)
    found = find(one, [r for r in rows if r["replicate"] == 0], [r for r in runs if r["replicate"] == 0])
    ((_, boundary),) = found.k_ability[("answer", "recall")]
    assert boundaries.interval_words(boundary, [4.0, 64.0]) == "4 to 64 (one bracket)"
    assert "One replicate: no interval can be given" in paragraph(found)


def test_a_row_without_items_or_with_a_model_out_of_its_senses_has_no_measure() -> None:
    for broken in ({"n": 0}, {"nll_nats": None, "n_correct": None}):
        rows = [row(4, 1e11, 0, split="seen", **({"nll_nats": 1.0} | broken))]
        assert all(measures.of_rows(measure, rows) == [None] for measure in ("ability", "accuracy", "memory"))


def curve_rows(crossing: float, r: int) -> list[dict]:
    """d_rel = 1 / (1 + (crossing / step)²) along the trunk of the largest budget."""
    rows = []
    for step in (round(10 ** (k / 8)) for k in range(8, 25)):
        d_rel = 1 / (1 + (crossing / step) ** 2)
        sums = {"skl_generalizer": 2 * d_rel - 1, "skl_memorizer": 0.0, "skl_references": 1.0, "nll_nats": 1.0}
        rows.append(row(64, 8e11, r, skill="mixture", split="seen", phase="trunk", **sums) | {"step": step})
    return rows


@pytest.mark.parametrize(
    ("crossings", "verdict"),
    [
        ((230, 240), "consistent"),
        ((700, 705), "inconsistent"),
        ((100, 390), "inconclusive"),
        ((230, 1e9), "inconclusive"),
    ],
)
def test_an_expected_crossing_gets_its_verdict(crossings: tuple[float, float], verdict: str) -> None:
    entry = {"what": "crossing_steps", "cell": {"n_tasks": 64}, "value": 230, "lo": 100, "hi": 400}
    wanted = study(expected=[entry | {"source": "made up", "evidence": "C"}])
    rows = [r for i, at in enumerate(crossings) for r in curve_rows(at, i)]
    (found,) = find(wanted, rows, []).verdicts
    assert found.verdict == verdict and found.censored == sum(at > 1e6 for at in crossings)
    assert verdict in expected.verdict_line(found) and "made up" in expected.verdict_line(found)
    assert found.caution == ""  # no mean over what may be a lottery


@pytest.mark.parametrize(("lo", "verdict"), [(0.8, "consistent"), (0.97, "inconsistent"), (0.89, "inconclusive")])
@pytest.mark.parametrize("replicates", [3, 6])
def test_an_expected_mean_is_doubted_as_a_primary_one_where_few_replicates_settle_it(
    lo: float, verdict: str, replicates: int
) -> None:
    entry = {"what": "ability", "cell": {"n_tasks": 64}, "value": 0.98, "lo": lo, "hi": 0.99}
    wanted = study(
        axes={"arm": ["answer"], "n_tasks": LEVELS, "compute_flops": BUDGETS, "replicates": replicates},
        expected=[entry | {"source": "made up", "evidence": "C"}],
    )
    spread = {"inconclusive": 0.2}.get(verdict, 0.002)
    rows = [row(64, 8e11, r, nll_nats=200 - 100 * (0.9 + spread * (r % 3 - 1) / 2)) for r in range(replicates)]
    (found,) = find(wanted, rows, []).verdicts
    assert found.verdict == verdict
    doubted = f"{replicates} replicates can agree by chance" in expected.verdict_line(found)
    assert doubted == (replicates < 6 and verdict != "inconclusive")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (64, "64"),
        (1024, "1,024"),
        (10**12, "1e12"),
        (4e11, "4e11"),
        (1.69e13, "1.69e13"),
        (999999, "999,999"),
        (7.46, "7.5"),
        (9.999e11, "1e12"),
    ],
)
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert formatting.number(value) == text


def test_every_value_of_the_metrics_is_finite() -> None:
    ability = {(n, c): 0.9 if n > 4 else 0.1 for n in LEVELS for c in BUDGETS}
    series = find(study(), *tables(ability)).metrics()
    assert all(math.isfinite(value) for points in series.values() for _, value in points)
    assert [i for i, _ in series["k_ability/answer/recall/low"]] == [0, 1]
    assert all(low < 4 for _, low in series["k_ability/answer/recall/low"])
