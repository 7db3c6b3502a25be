"""What counts and what does not: trials still to come, diverged and failed ones, arms that never ran. Hand-made tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import synthetic

from orchestrator import formatting
from orchestrator.analysis import boundaries, claims
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.findings import Findings, find
from orchestrator.analysis.results import surface
from orchestrator.analysis.summary import description
from orchestrator.study.schema import Variant

NAN = np.nan
LEVELS = (4, 16, 64, 256)
AXES: dict[str, Any] = {"n_tasks": LEVELS, "compute_flops": (1e11, 4e11), "replicates": 4, "skills": ("recall",)}


def sharp(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    """The skill is there from 64 tasks on, and at 64 only with the larger compute."""
    return np.where((n_tasks > 64) | ((n_tasks == 64) & (flops > 2e11)), 0.95, 0.05)


def found_of(change: dict[str, Any] | None = None, **axes: Any) -> Findings:
    """A study whose every trial is done, but for those of `change`: {(arm, n_tasks, flops, replicate): status}."""
    study = synthetic.made_up(**(AXES | axes))
    results, runs = synthetic.tables(study, sharp)
    statuses = []
    keep = np.ones(results.num_rows, bool)
    for run in runs.to_pylist():
        place = run["arm"], run["n_tasks"], run["compute_flops"], run["replicate"]
        status = next((s for of, s in (change or {}).items() if _matches(of, place)), "done")
        statuses.append(status)
        if status != "done":
            names = ("arm", "n_tasks", "compute_flops", "replicate")
            here = np.ones(results.num_rows, bool)
            for name, value in zip(names, place, strict=True):
                here &= np.asarray(pc.equal(results[name], value))
            keep &= ~here
    runs = runs.set_column(runs.column_names.index("status"), "status", [statuses])
    return find(study, results.filter(pa.array(keep)), runs)


def _matches(of: tuple[Any, ...], place: tuple[Any, ...]) -> bool:
    return all(wanted is None or wanted == is_ for wanted, is_ in zip(of, place, strict=True))


@pytest.mark.parametrize(
    ("table", "waiting", "rows", "known"),
    [
        # Nothing waits: the table as it is, a hole included.
        ([[0, 1], [NAN, 1]], [[0, 0], [0, 0]], [0, 1], [[1, 1], [0, 1]]),
        # A replicate that has not run at all is not counted.
        ([[0, 1], [NAN, NAN]], [[0, 0], [1, 1]], [0], [[1, 1]]),
        # Three have both levels, one waits for the second: it is not counted.
        ([[0, 1], [0, 1], [0, 1], [0, NAN]], [[0, 0]] * 3 + [[0, 1]], [0, 1, 2], [[1, 1]] * 3),
        # One has a new level, three wait for it: the old levels of all four say more.
        (
            [[0, 1, 1], [0, 1, NAN], [0, 1, NAN], [0, 1, NAN]],
            [[0, 0, 0]] + [[0, 0, 1]] * 3,
            [0, 1, 2, 3],
            [[1, 1, 0]] * 4,
        ),
        # A level for which all wait changes nothing.
        ([[0, NAN], [0, NAN]], [[0, 1], [0, 1]], [0, 1], [[1, 0], [1, 0]]),
    ],
)
def test_replicates_that_wait_are_not_counted_either_way(table: Any, waiting: Any, rows: Any, known: Any) -> None:
    kept, which = boundaries.settled(np.array(table, float), np.array(waiting, bool))
    assert which.tolist() == rows
    assert (~np.isnan(kept)).astype(int).tolist() == known


def test_a_widened_study_says_what_its_finished_replicates_say() -> None:
    whole, widened = found_of(replicates=2), found_of({(None, None, None, r): "open" for r in (2, 3)})
    for (_, a), (_, b) in zip(whole.k_ability["answer", "recall"], widened.k_ability["answer", "recall"], strict=True):
        assert a == b and a.verdict == "crossed" and len(a.brackets) == 2
    assert "2 of 4" not in paragraph(widened) and "in both replicates" in paragraph(widened)
    shares = [(s.k, s.n) for _, s in widened.to_skill["answer", 256].successes]
    assert shares == [(2, 2), (2, 2)]
    assert all(len(t.boundary.brackets) == 2 for t in widened.to_skill.values())


def test_a_diverged_replicate_is_one_that_does_not_get_there() -> None:
    found = found_of({(None, 256, None, 3): "diverged", (None, 64, None, 3): "diverged"})
    ((_, low), (_, high)) = found.k_ability["answer", "recall"]
    assert low.verdict == high.verdict == "undecided"
    assert "appears up to 256 tasks in 3 of 4 replicates" in paragraph(found)
    told = found.to_skill["answer", 256]
    assert [(s.k, s.n) for _, s in told.successes] == [(3, 4), (3, 4)]
    assert told.curve is not None and told.curve.steps[-1].reached == 0.75


def test_an_arm_that_never_ran_is_said_to_be_so_and_not_called_coinciding() -> None:
    arms = ("answer", "next_token")
    waits = paragraph(found_of({("next_token", None, None, None): "open"}, arm=arms))
    assert "No trial of arm next_token has come to the end of a budget" in waits and "coincide" not in waits
    lost = paragraph(found_of({("next_token", None, None, None): "diverged"}, arm=arms))
    assert "Every trial of arm next_token diverged" in lost and "coincide" not in lost


def test_intervals_name_their_confidence_wherever_they_are_told() -> None:
    found = found_of(replicates=10)
    kept = {claim.name: claim.confidence for claim in found.claims if claim.verdict == "kept"}
    name = claims.claim_of("k", "ability", "answer", "recall", 4e11)
    assert 0.95 < kept[name] < 1
    said = formatting.sure(kept[name])
    assert f"({said} interval for the median one: " in paragraph(found) and f"({said})" in description(found)


@pytest.mark.parametrize(
    ("confidence", "text"), [(0.95, "95 %"), (0.992, "99.2 %"), (0.99968, "99.96 %"), (0.9599, "95.9 %")]
)
def test_a_confidence_is_never_rounded_up(confidence: float, text: str) -> None:
    assert formatting.sure(confidence) == text


def test_dips_are_corrected_for_all_that_were_asked() -> None:
    found = found_of(replicates=3)
    asked = [dip.test for dip in found.dips]
    along = {dip.axis for dip in found.dips if dip.skill == ""}, {dip.axis for dip in found.dips if dip.skill}
    assert along == ({"n_tasks"}, {"n_tasks", "compute_flops"})
    raw = []
    for measure, skill in (("ability", "recall"), ("memory", "")):
        cube, direction = surface(found.results, measure, "answer", skill), boundaries.DIRECTION[measure]
        raw += [boundaries.stats.monotone([float(n) for n in LEVELS], cube[:, j].T, direction) for j in range(2)]
        if skill:
            raw += [
                boundaries.stats.monotone(found.results.budgets, np.maximum(cube[i], 0).T, "rising")
                for i in range(len(LEVELS))
            ]
    assert len(asked) == len(raw)
    tested = [(a.p_value, r.p_value) for a, r in zip(asked, raw, strict=True) if r.p_value is not None]
    assert tested and all(a is not None and a >= r for a, r in tested)


def test_which_arm_needs_fewer_tasks_is_said_where_it_is_shown_and_not_elsewhere() -> None:
    arms, replicates = ("answer", "next_token"), 8
    study = synthetic.made_up(
        **(AXES | {"n_tasks": (4, 16, 64, 256, 1024, 4096), "arm": arms, "replicates": replicates})
    )
    same, runs = synthetic.tables(study, sharp)
    assert "Which arm needs fewer tasks is not shown at 4e11 FLOPs" in paragraph(find(study, same, runs))

    later, _ = synthetic.tables(study, lambda n, flops, r: np.where(n > 1000, 0.95, 0.05))
    second = np.array(same["arm"].to_pylist()) == "next_token"
    nll = np.where(second, later["nll_nats"].to_numpy(), same["nll_nats"].to_numpy())
    mixed = same.set_column(same.column_names.index("nll_nats"), "nll_nats", [nll])
    assert "Answer needs fewer tasks than next_token at 4e11 FLOPs" in paragraph(find(study, mixed, runs))


def test_arms_that_are_alike_share_a_sentence_and_what_holds_of_all_is_said_once() -> None:
    """Two arms from 16 tasks on, two from 1,024 on; memory defined for none of them."""
    arms = ("answer", "next_token")
    study = synthetic.made_up(
        **(AXES | {"n_tasks": (4, 16, 64, 256, 1024, 4096), "arm": arms, "replicates": 8}),
    )
    study = study.model_copy(
        update={
            "axes": study.axes.model_copy(update={"variant": {"one": Variant(), "two": Variant(model={"n_layers": 3})}})
        }
    )

    def at(where: float) -> synthetic.Truth:
        return lambda n, flops, r: np.where(n > where, 0.95, 0.05)

    truths = {line: at(10 if line.startswith("answer") else 500) for line in study.lines}
    results, runs = synthetic.of_variants(study, truths)
    nothing = pa.nulls(results.num_rows, pa.float64())
    results = results.set_column(results.column_names.index("nll_memorizer"), "nll_memorizer", nothing)
    said = paragraph(find(study, results, runs))
    assert "Answer, one and answer, two need fewer tasks than next_token, one and next_token, two at 4e11 FLOPs" in said
    assert said.count("Memory is not defined here.") == 1 and "Memory is not defined here (" not in said


def test_arms_are_compared_by_the_replicates_that_have_ended_in_both() -> None:
    arms = ("answer", "next_token")
    apart = {("answer", None, None, r): "open" for r in (2, 3)} | {
        ("next_token", None, None, r): "open" for r in (0, 1)
    }
    assert not found_of(apart, arm=arms, replicates=4).multipliers
    shared = found_of(
        {("answer", None, None, 3): "open", ("next_token", None, None, 0): "open"}, arm=arms, replicates=4
    )
    assert shared.multipliers and {len(m.ratio.slopes) for m in shared.multipliers} == {2}


def test_where_every_trial_failed_nothing_is_said_to_be_on_its_way() -> None:
    assert paragraph(found_of({(None, None, None, None): "failed"})) == "Every trial failed: nothing can be said."
