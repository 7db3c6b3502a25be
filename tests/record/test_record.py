"""The record: what of a journal belongs to which trial, and that it can be rebuilt whatever MLflow does."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PATIENCE_SECONDS

from orchestrator.record import links, mlflow_runs, mlflow_values, publisher, tables
from orchestrator.record.journal import Journal, State, read
from orchestrator.record.provenance import session_event
from orchestrator.record.recorded import trial_evaluations
from orchestrator.study.schema import Study
from trainers import budget
from trainers.fit.place import Place
from trainers.train import run_trunk

SMALL: dict[str, Any] = {
    "study": "small",
    "version": 1,
    "question": "What is projected?",
    "family": {"name": "cipher", "n_symbols": 8, "n_pairs": 8},
    "axes": {"arm": ["answer"], "n_tasks": [4], "compute_flops": [3e8, 6e8], "replicates": 1},
    "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32},
    "training": {"batch_size": 8},
    "evaluation": {"n_sequences": 4, "first_flops": 1e8, "points_per_decade": 8},
}


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.from_record(SMALL)


@pytest.fixture(scope="module")
def events(study: Study) -> list[dict[str, Any]]:
    """A session and one real trunk with two budgets."""
    found = [session_event(study, {})]
    run_trunk(study.trunks()[0], study.budgets, Place(), found.extend)
    return found


def state_of(events: list[dict[str, Any]]) -> State:
    state = State()
    state.feed(events)
    return state


def test_a_trial_owns_its_trunk_up_to_its_branch_then_its_branch(study: Study, events: list[dict[str, Any]]) -> None:
    state = state_of(events)
    for trial in study.trials():
        steps = budget.steps_of(trial, trial.compute_flops)
        grid = [s for s in budget.evaluation_steps(trial, steps.branch) if s < steps.branch]
        found = [(phase, event["step"]) for phase, event in trial_evaluations(state, trial)]
        assert found == [("trunk", s) for s in grid] + [("pre_decay", steps.branch), ("final", steps.end)]


def test_results_have_one_row_per_trial_step_skill_and_split_in_the_order_of_their_key(study, events) -> None:
    rows = tables.results_table(state_of(events), study).to_pylist()
    keys = [
        (r["arm"], r["n_tasks"], r["replicate"], r["compute_flops"], r["step"], r["skill"], r["split"]) for r in rows
    ]
    assert keys == sorted(keys) and len(set(keys)) == len(keys) > 100


def test_results_do_not_depend_on_when_where_or_in_which_order_events_came(study, events) -> None:
    moved = [e | {"time": e["time"] + 1e6, "host": "elsewhere"} for e in reversed(events)]
    moved = [e for e in moved if e["kind"] == "session"] + [e for e in moved if e["kind"] != "session"]
    assert tables.results_table(state_of(moved), study).equals(tables.results_table(state_of(events), study))


def test_a_trial_that_has_not_ended_is_in_runs_and_not_in_results(study, events) -> None:
    last = study.trials()[-1].id
    state = state_of([e for e in events if e.get("trial") != last])
    assert last not in {r["trial"] for r in tables.results_table(state, study).to_pylist()}
    runs = {r["trial"]: r for r in tables.runs_table(state, study).to_pylist()}
    assert runs[last]["status"] == "open" and runs[last]["flops_run"] is None
    assert runs[study.trials()[0].id]["status"] == "done"


def test_a_shared_trunk_is_charged_once(study, events) -> None:
    runs = tables.runs_table(state_of(events), study).to_pylist()
    price = budget.price(study.trunks()[0], study.budgets)
    assert sum(r["flops_run"] for r in runs) == price.train_flops
    assert sum(r["flops_own"] for r in runs) == price.separate_flops
    for r in runs:
        assert abs(r["flops_own"] / r["compute_flops"] - 1) <= 0.01


@pytest.mark.parametrize(("n_tasks", "sequences"), [(1, 50), (4, 3), (64, 100), (1000, 500)])
def test_the_expected_number_of_distinct_tasks_agrees_with_a_simulation(n_tasks: int, sequences: int) -> None:
    draw = np.random.default_rng(0)
    seen = [len(np.unique(draw.integers(0, n_tasks, sequences))) for _ in range(3000)]
    expected = tables.distinct_tasks(n_tasks, sequences)
    assert expected is not None
    assert abs(np.mean(seen) - expected) <= 4 * np.std(seen) / math.sqrt(3000) + 1e-9


def test_among_a_trillion_tasks_every_sequence_meets_a_new_one() -> None:
    assert tables.distinct_tasks(10**12, 19_200) == pytest.approx(19_200, rel=1e-6)


def test_no_number_of_a_record_is_infinite_or_not_a_number(study, events) -> None:
    for table in (tables.results_table(state_of(events), study), tables.runs_table(state_of(events), study)):
        for row in table.to_pylist():
            assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    for event in events:
        if event["kind"] == "evaluation":
            assert all(math.isfinite(v) for v in mlflow_values.of_evaluation(event).values())


def test_with_mlflow_down_tables_and_report_are_written_and_the_exit_code_says_no(
    study, events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    log = Journal(tmp_path)
    log.append(events)
    log.close()
    address = "http://me:secret@127.0.0.1:9"
    command = [sys.executable, "-m", "orchestrator.record.publisher", str(tmp_path), "--tracking-uri", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1 and "http://***@127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr + done.stdout
    assert pq.read_table(tmp_path / "results.parquet").num_rows > 100
    assert (tmp_path / "report.html").exists()
    questions = {row["question"] for row in csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())}
    assert {"K_A", "K_M", "compute to skill"} <= questions
    assert publisher.report_is_current(tmp_path, study) and not publisher.mlflow_is_current(tmp_path, address, study)

    uri, said = f"sqlite:///{tmp_path / 'm.db'}", list[str]()
    publisher.publish(tmp_path, uri, say=said.append)
    assert publisher.behind(tmp_path, uri, study) == ""
    assert said[0] == "Tables ..." and len(said) == 4


def test_tables_and_report_are_current_until_the_journal_or_the_study_moves_on(study, events, tmp_path: Path) -> None:
    log = Journal(tmp_path)
    log.append(events[:-2])
    assert not publisher.report_is_current(tmp_path, study)
    publisher.rewrite(tmp_path)
    assert publisher.report_is_current(tmp_path, study)
    assert not publisher.report_is_current(tmp_path, study.model_copy(update={"question": "Another one?"}))
    log.append(events[-2:])
    log.close()
    assert not publisher.report_is_current(tmp_path, study)
    publisher.rewrite(tmp_path)
    (tmp_path / "report.html").unlink()
    assert not publisher.report_is_current(tmp_path, study)


def test_a_folder_is_being_published_while_a_publisher_holds_it(tmp_path: Path) -> None:
    assert not publisher.is_publishing(tmp_path)
    process = publisher.start_publisher(tmp_path, f"sqlite:///{tmp_path / 'm.db'}", follow=True)
    while not publisher.is_publishing(tmp_path):
        assert process.poll() is None
    said: list[str] = []
    assert publisher.finish_publishing(process, tmp_path, said.append)  # an empty journal: nothing to do
    assert not publisher.is_publishing(tmp_path) and said == []


def test_a_study_has_its_page_and_its_answer_in_mlflow_before_any_trial_has_ended(
    study, events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the first page waits for a trial, or for a minute."""
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    folder, uri = tmp_path / study.id, f"sqlite:///{tmp_path / 'm.db'}"
    log = Journal(folder)
    log.append(events[:1])
    process = publisher.start_publisher(folder, uri, follow=True)
    try:
        while not publisher._marker(folder, "report"):
            assert process.poll() is None, (folder / publisher.LOG_FILE).read_text()
            time.sleep(0.05)
        assert links.study_link(folder, uri) and "refresh" in (folder / "report.html").read_text()
        assert not pq.read_table(folder / "results.parquet").num_rows
    finally:
        log.close()
        assert publisher.finish_publishing(process, folder, print)
    note = mlflow_runs.connect(uri).get_experiment_by_name(study.id).tags["mlflow.note.content"]
    assert note.startswith("Nothing can be said") and "get-artifact" in note


def test_what_the_publisher_is_at_is_said_while_it_works_and_what_an_earlier_one_said_is_not(tmp_path: Path) -> None:
    (tmp_path / publisher.LOG_FILE).write_text("> an earlier one\n")
    script = (
        "import sys; sys.stdin.read(); print('> Tables ...', flush=True); print('disk full', file=sys.stderr); exit(1)"
    )
    with open(tmp_path / publisher.LOG_FILE, "ab") as log:
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=log, stderr=log)
    said: list[str] = []
    assert not publisher.finish_publishing(process, tmp_path, said.append)
    assert said[0] == "Tables ..." and said[1] == "The record is not up to date: disk full" and len(said) == 3


@pytest.mark.parametrize("n_killed", [1, 2])
def test_a_publisher_that_was_killed_is_made_good_once(n_killed: int, tmp_path: Path) -> None:
    """Fails if a publisher that was killed, maybe while trunks ran, is only spoken of."""
    commands = ["kill -9 $$"] * n_killed + ["exit 0"]
    (tmp_path / publisher.LOG_FILE).touch()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sh", "-c", commands.pop(0)], stdin=subprocess.PIPE)

    said: list[str] = []
    assert publisher.finish_publishing(start(), tmp_path, said.append, start) == (n_killed == 1)
    assert "signal 9" in said[0] and ("not up to date" in said[-2] if n_killed == 2 else len(said) == 1)
    assert len(commands) == n_killed - 1


def test_a_session_that_extends_a_study_shows_in_mlflow_before_any_of_its_trials_ends(
    study, events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    uri = f"sqlite:///{tmp_path / 'm.db'}"

    def parent() -> Any:
        target = mlflow_runs.MlflowRecord(uri, study, events[0]["session"])
        return target.client.get_run(target.runs[mlflow_runs.PARENT])

    folder = tmp_path / study.id
    log = Journal(folder)
    log.append(events)
    publisher.publish(folder, uri)
    before = parent()
    assert before.info.status == "FINISHED" and before.data.metrics["trials/open"] == 0
    axes = {"n_tasks": "4", "compute_flops": "3e8, 6e8", "replicates": "1", "arms": "answer"}
    assert before.data.params == {"family": "cipher"}
    assert before.data.tags.items() >= {f"emergence.axes.{name}": words for name, words in axes.items()}.items()
    for replicates in (3, 4):
        axes = {**SMALL["axes"], "replicates": replicates}
        longer = Study.from_record(SMALL | {"axes": axes})
        log.append([session_event(longer, {})])
        target = mlflow_runs.MlflowRecord(uri, longer, events[0]["session"])
        for _ in range(2):  # a publisher that lost MLflow in between begins again
            target.begin(state_of(read(folder)[0]))
        running = parent()
        assert running.info.status == "RUNNING" and running.data.metrics["trials/open"] == 2 * (replicates - 1)
        assert running.data.tags["emergence.axes.replicates"] == str(replicates)
        assert running.data.tags["mlflow.note.content"] == before.data.tags["mlflow.note.content"]
    log.close()
    publisher.publish(folder, uri)
    after = parent()
    assert after.info.status == "KILLED"  # it was left with open trials
