"""The tables as arrays: values by column equal values row by row."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import synthetic

from orchestrator.analysis.measures import MEASURES, RAW, of_rows
from orchestrator.analysis.results import Results
from orchestrator.record.tables import RESULTS

STUDY = synthetic.made_up(
    n_tasks=(4, 64, 10**6), compute_flops=(1e11, 3e11, 8e11), replicates=4, arm=("answer", "next_token")
)


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return synthetic.tables(STUDY)


@pytest.fixture(scope="module")
def results(tables: tuple[pa.Table, pa.Table]) -> Results:
    return Results.of_tables(STUDY, *tables)


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_a_cube_holds_the_measures_of_single_rows(
    measure: str, results: Results, tables: tuple[pa.Table, pa.Table]
) -> None:
    for skill, split in (("recall", "held_out"), ("mixture", "seen")):
        cube = results.cube(measure, "next_token", skill, split)
        wanted = np.full(cube.shape, np.nan)
        for row in tables[0].to_pylist():
            if (row["arm"], row["skill"], row["split"], row["phase"]) == ("next_token", skill, split, "final"):
                place = (
                    results.levels.index(row["n_tasks"]),
                    results.budgets.index(row["compute_flops"]),
                    row["replicate"],
                )
                (value,) = of_rows(measure, [{RAW.get(k, k): v for k, v in row.items()}])
                wanted[place] = math.nan if value is None else value
        np.testing.assert_array_equal(cube, wanted)


def test_a_track_is_one_training_run_in_order_and_a_curve_its_largest_budget(results: Results) -> None:
    track = results.track("ability", "answer", "recall", "held_out", 64, 2)
    assert (np.lexsort((track.steps, track.budgets)) == np.arange(len(track.steps))).all()
    assert set(track.phases) == {"trunk", "pre_decay", "final"} and set(track.budgets) == {1e11, 3e11, 8e11}
    curve = results.curve("ability", "answer", "recall", "held_out", 64, 2)
    assert set(curve.budgets) == {8e11} and (np.diff(curve.steps) > 0).all()
    assert curve.phases[-1] == "final" and curve.phases[-2] == "pre_decay"


@pytest.mark.parametrize("decayed", [True, False])
def test_runs_lie_side_by_side_on_one_axis_of_compute(decayed: bool, results: Results) -> None:
    flops, values = results.along("ability", "answer", "recall", "held_out", 64, decayed)
    assert values.shape == (4, len(flops)) and (np.diff(flops) > 0).all() and np.isfinite(values).all()
    for replicate, line in enumerate(values):
        curve = results.curve("ability", "answer", "recall", "held_out", 64, replicate)
        kept = curve.phases != ("pre_decay" if decayed else "final")
        np.testing.assert_array_equal(flops, curve.flops[kept])
        np.testing.assert_array_equal(line, curve.values[kept])


def test_where_nothing_decays_the_end_is_a_point_like_any_other(tables: tuple[pa.Table, pa.Table]) -> None:
    constant = tables[0].filter(pa.array([p != "pre_decay" for p in tables[0]["phase"].to_pylist()]))
    results = Results.of_tables(STUDY, constant, tables[1])
    group = ("answer", "mixture", "seen")
    np.testing.assert_array_equal(results.cube("memory", *group, "pre_decay"), results.cube("memory", *group, "final"))
    assert results.along("ability", "answer", "recall", "held_out", 64, decayed=False)[0][-1] == 8e11


def test_values_outside_the_axes_and_older_tables_do_no_harm(tables: tuple[pa.Table, pa.Table]) -> None:
    smaller = synthetic.made_up(n_tasks=(4, 64), compute_flops=(1e11, 8e11), replicates=2)
    older = tables[0].drop_columns(["n_exact", "sum_p_exact", "n_sequences"])
    results = Results.of_tables(smaller, older, tables[1])
    assert results.cube("ability", "answer", "recall", "held_out").shape == (2, 2, 2)
    assert np.isfinite(results.cube("ability", "answer", "recall", "held_out")).all()
    assert np.isnan(results.cube("exact_match", "answer", "recall", "held_out")).all()


def test_an_empty_table_has_empty_answers() -> None:
    results = Results.of_tables(STUDY, pa.Table.from_pylist([], schema=RESULTS), pa.Table.from_pylist([]))
    assert results.groups() == set() and results.span("answer") is None
    assert np.isnan(results.cube("ability", "answer", "recall", "held_out")).all()
    flops, values = results.along("ability", "answer", "recall", "held_out", 64)
    assert len(flops) == 0 and values.shape == (4, 0)
    assert not len(results.curve("ability", "answer", "recall", "held_out", 64, 0).steps)


def test_an_ability_of_matches_is_the_share_beyond_the_memoriser() -> None:
    """Hand-computed: 60 of 100 sequences against 20 of the memoriser's is (.6 - .2) / .8."""
    row = {"n": 100, "n_sequences": 100, "n_exact": 60, "exact_memorizer": 20.0, "split": "held_out"}
    assert of_rows("ability", [row], "accuracy") == [pytest.approx(0.5)]
    assert of_rows("ability", [row | {"exact_memorizer": 91.0}], "accuracy") == [None]
    assert of_rows("ability", [row | {"n_sequences": 5}], "accuracy") == [None]
    assert of_rows("ability", [row | {"exact_memorizer": None}], "accuracy") == [None]
    sums = {"nll_generalizer": 50.0, "nll_memorizer": 10.0, "nll_nats": 20.0, "se_memory_gap": 0.0, "split": "seen"}
    assert of_rows("memory", [row | sums]) == [pytest.approx(0.75)] and of_rows("memory", [row | sums], "accuracy") == [
        None
    ]


def test_a_row_without_items_or_with_a_loss_that_is_missing_has_no_measure() -> None:
    sums = {
        "nll_uniform": 200.0,
        "nll_generalizer": 100.0,
        "nll_memorizer": 0.0,
        "n": 100,
        "n_correct": 50,
        "split": "seen",
    }
    for broken in ({"n": 0, "nll_nats": 1.0}, {"nll_nats": None, "n_correct": None}):
        assert {of_rows(measure, [sums | broken])[0] for measure in ("ability", "accuracy", "memory")} == {None}


def test_the_ends_of_trials_are_found_by_arm_and_cell() -> None:
    study = synthetic.made_up(arm=("answer", "next_token"))
    gone = {("answer", 64, 8e11, 1): "diverged", ("answer", 4, 1e11, 0): "failed", ("next_token", 4, 1e11, 2): "open"}
    found = Results.of_tables(study, *synthetic.changed(synthetic.tables(study), gone))
    lost = found.ended("answer", ("diverged", "failed"))
    assert np.argwhere(lost).tolist() == [[0, 0, 0], [1, 1, 1]] and lost.shape == (3, 2, 3)
    assert not found.ended("next_token", ("diverged", "failed")).any()
    assert found.ended("next_token", ("done",)).sum() == 17 and not found.ended("nobody", ("done",)).any()


def test_a_value_made_once_is_not_made_again(results: Results) -> None:
    made: list[int] = []
    make = lambda: made.append(1) or len(made)  # type: ignore[func-returns-value]  # noqa: E731
    assert [results.once(("a", "b"), make), results.once(("a", "b"), make), results.once(("a",), make)] == [1, 1, 2]
