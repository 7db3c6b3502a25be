"""A study whose trials begin with others, from the journal to the page: charged, first score, resumed, cleaned, and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from alone import go_on, rows_of, study_with
from steps import Counter

from orchestrator import cli
from orchestrator.analysis.findings import find
from orchestrator.plan import jobs, order, price
from orchestrator.plan.options import Options
from orchestrator.record import mlflow_values, recorded, tables
from orchestrator.record.journal import State
from orchestrator.study.schema import Study, StudyError
from trainers import budget, weights

CHAIN: dict[str, Any] = {
    "arm": ["answer", "next_token"],
    "variant": {
        "scratch": {"arms": ["answer"]},
        "begun": {"arms": ["next_token"], "start_from": {"arm": "answer", "compute_flops": 1e7}},
        "again": {"arms": ["answer"], "start_from": {"arm": "next_token", "compute_flops": 2e7, "variant": "begun"}},
    },
    "n_tasks": [4],
    "compute_flops": [1e7, 2e7, 4e7],
}
DONORS = {"answer/n4/c1e7/r0/scratch", "next_token/n4/c2e7/r0/begun"}


COST = 173_184
"""FLOPs of a step."""


@pytest.fixture(scope="module")
def study() -> Study:
    return study_with(axes=CHAIN)


@pytest.fixture(scope="module")
def folder(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    go_on(study, folder)
    return folder


def test_jobs_come_after_their_donors_which_keep_the_weights_that_others_need(study: Study, folder: Path) -> None:
    todo = jobs.jobs_of(study, State())
    for made in (order.donors_first(todo[::-1]), order.coarse_to_fine(study, todo, 2, Options())):
        ends: set[str] = set()
        for job in made:
            assert job.trunk.start is None or job.trunk.start.trial in ends
            ends |= {job.trunk.trial(flops).id for flops in job.budgets}
        assert {job.trunk.trial(flops).id for job in made for flops in job.starts} == DONORS
        assert len(made) == len(todo)
    kept = {
        str(file.relative_to(folder / "starts").with_suffix("")) for file in (folder / "starts").rglob("*.safetensors")
    }
    assert kept == DONORS
    assert price.make(study, recorded.read(folder, study), 1, "cpu", folder=folder).jobs == []


def test_every_row_counts_from_the_donors_compute_and_the_first_is_the_donors_last(study: Study, folder: Path) -> None:
    state = recorded.read(folder, study)
    assert state.short == ()
    rows = tables.results_table(state, study).to_pylist()
    runs = {run["trial"]: run for run in tables.runs_table(state, study).to_pylist()}
    n_compared = 0
    for trial in study.trials():
        mine, run = [row for row in rows if row["trial"] == trial.id], runs[trial.id]
        assert max(row["flops"] for row in mine) == run["flops_own"] == pytest.approx(trial.compute_flops, rel=0.01)
        if trial.start is None:
            assert {row["start"] for row in mine} | {run["start_flops"]} == {None} and min(r["step"] for r in mine) > 0
            continue
        assert {row["start"] for row in mine} == {run["start"]} == {trial.start.trial}
        assert {row["start_flops"] for row in mine} == {trial.start.flops} == {runs[trial.start.trial]["flops_own"]}
        first = [row for row in mine if row["step"] == 0]
        last = [row for row in rows if row["trial"] == trial.start.trial and row["phase"] == "final"]
        assert {row["flops"] for row in first} == {trial.start.flops} and {row["phase"] for row in first} == {"trunk"}
        known = {(row["skill"], row["split"]): row for row in last if row["skill"] != study.family.mixture}  # type: ignore[attr-defined]
        for row in first:
            if same := known.get((row["skill"], row["split"])):
                assert [row[k] for k in ("n", "n_correct", "n_exact")] == [
                    same[k] for k in ("n", "n_correct", "n_exact")
                ]
                n_compared += 1
        assert mlflow_values.params(study, trial)["start.trial"] == mlflow_values.tags(study, trial)["emergence.start"]
    assert n_compared > 10
    run_here = sum(run["flops_run"] for run in runs.values())
    assert run_here == sum(budget.price(trunk, budgets).train_flops for trunk, budgets in study.carried())
    found = find(study, *(make(state, study) for make in (tables.results_table, tables.runs_table)))
    assert found.costs().saved_flops == sum(run["flops_own"] for run in runs.values()) - run_here


@pytest.mark.parametrize("n", [100, 300])
def test_a_study_stopped_anywhere_and_gone_on_with_equals_one_left_alone_to_the_bit(
    n: int, study: Study, folder: Path, tmp_path: Path
) -> None:
    done = go_on(study, tmp_path, Counter(n))
    assert done == n and recorded.read(tmp_path, study).trials.keys() < recorded.read(folder, study).trials.keys()
    done += go_on(study, tmp_path)
    assert rows_of(study, tmp_path) == rows_of(study, folder)
    assert done == sum(end["flops_run"] for end in State.of(tmp_path).trials.values()) // COST


def test_lost_weights_are_refused_by_name_only_while_a_trial_must_begin_with_them(
    study: Study, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    here = tmp_path / "copy"
    lost = "answer/n4/c1e7/r0/scratch"
    weights.remove(here / "starts", lost)
    wider = study_with(axes=CHAIN | {"variant": CHAIN["variant"] | {
        "more": CHAIN["variant"]["begun"] | {"training": {"learning_rate": 0.01}}}})  # fmt: skip
    assert price.make(study, recorded.read(here, study), 1, "cpu", folder=here).jobs == []
    with pytest.raises(StudyError, match=rf"weights of trial {lost}.* missing; put") as refusal:
        price.make(wider, recorded.read(here, wider), 1, "cpu", folder=here)
    assert "\n" not in str(refusal.value)
    shutil.copy(folder / "starts" / f"{lost}.safetensors", here / "starts" / f"{lost}.safetensors")
    go_on(wider, here, Counter(60))  # the first of the new trials has begun
    state = recorded.read(here, wider)
    assert jobs.needed_starts(wider, state) == {lost} and jobs.needed_starts(study, state) == set()
    weights.remove(here / "starts", lost)
    assert len(price.make(wider, state, 1, "cpu", folder=here).jobs) == 1  # it resumes


def test_clean_keeps_the_weights_that_open_trials_begin_with_and_no_others(
    study: Study, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    here = tmp_path / study.id
    go_on(study, here, Counter(266 + 150))  # the second donor has ended, and its trunk has not
    (here / "starts" / "other.safetensors").touch()
    cli.clean(study.id)
    kept = {str(file.relative_to(here / "starts").with_suffix("")) for file in (here / "starts").rglob("*.safetensors")}
    assert kept >= DONORS and not (here / "checkpoints").exists() and "2 trials stay" in capsys.readouterr().out
    go_on(study, here)
    assert rows_of(study, here) == rows_of(study, folder)
    cli.clean(study.id)
    assert not list(here.rglob("*.safetensors"))


def test_a_trial_whose_donor_diverged_has_ended_and_one_whose_donor_failed_is_tried_again(study: Study) -> None:
    def ends(**statuses: str) -> State:
        state = State()
        for name, status in statuses.items():
            trial = {
                "a": "answer/n4/c1e7/r0/scratch",
                "b": "next_token/n4/c2e7/r0/begun",
                "c": "answer/n4/c4e7/r0/again",
            }[name]
            state.feed([{"kind": "trial", "key": f"{trial}/{status}", "trial": trial, "status": status, "time": 0.0}])
        return state

    over = {trial.rpartition("/")[2] for trial in jobs.ended(study, ends(a="diverged", b="failed", c="failed"))}
    assert over == {"scratch", "begun", "again"}
    assert jobs.ended(study, ends(a="failed", b="failed", c="failed")) == set()
    assert len(jobs.ended(study, ends(a="done", b="failed", c="failed"))) == 1
