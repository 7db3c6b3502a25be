"""The whole path for real: the command line, Ray Tune, DeepSpeed, the journal, Parquet, MLflow on SQLite, the report.

One tiny study, interrupted in every way a study can be, against the same study left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from alone import go_on
from conftest import PATIENCE_SECONDS
from test_run import descendants

from orchestrator.plan import caps
from orchestrator.record import links, publisher, recorded, tables
from orchestrator.record.journal import State, read
from orchestrator.record.lease import lock_holder
from orchestrator.study.reader import load
from orchestrator.study.schema import Study

pytestmark = pytest.mark.end_to_end

TINY = """
study: tiny
version: 1
question: Does a tiny model learn anything?
family: {name: cipher, n_symbols: 8, n_pairs: 8}
axes:
  arm: [answer]
  n_tasks: [4, 1024]
  compute_flops: [2e8, 5e8, 1e9]
  replicates: 2
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32, conv_kernel: 4}
training: {batch_size: 8, warmup_steps: 10}
evaluation: {points_per_decade: 2, first_flops: 1e8, n_sequences: 8}
"""
N_TRIALS = 12
Emergence = Callable[..., "subprocess.CompletedProcess[str]"]


def publishers_of(study: Path) -> list[int]:
    """The process that publishes a study."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"orchestrator.record.publisher" in words and str(study).encode() in words:
                found.append(int(process.name))
    return found


class Home:
    """A results home of its own, and the `emergence` command in it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "tiny.yaml"
        self.file.write_text(TINY)
        self.study = folder / "runs" / "tiny@1"
        # Two slots on any machine: with a slot for every trunk the work is over before it can be interrupted four times.
        self.command = ("run", str(self.file), "--checkpoint-seconds", "0.5", "--slots", "2")
        self.environment = os.environ | {"EMERGENCE_HOME": str(folder / "runs"), "COLUMNS": "120"}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def start(self, *arguments: str, start_new_session: bool = False) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "orchestrator.cli", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            start_new_session=start_new_session,
        )

    def copied_to(self, folder: Path) -> Home:
        """A home of its own with the same results, but MLflow's: that store would lead back here, and is rebuilt."""
        home = Home(folder)
        subprocess.run(["cp", "-r", str(self.study.parent), str(folder)], check=True)
        (folder / "runs" / "mlflow.db").unlink()
        return home

    def emergence(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out

    def run(self, *arguments: str) -> tuple[int, str]:
        return self.emergence(*self.command, *arguments)

    def events(self, kind: str) -> list[dict]:
        return [event for event in read(self.study)[0] if event["kind"] == kind]

    def run_until(self, n_evaluations: int) -> subprocess.Popen[str]:
        """Start a run and wait until its journal has so many evaluations; it is then somewhere in the middle."""
        driver = self.start(*self.command)
        while len(self.events("evaluation")) < n_evaluations:
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        return driver

    def driver_pid(self) -> int:
        """The process that holds the study; what was started is its parent."""
        holder = lock_holder(self.study)
        assert holder is not None
        return int(holder["pid"])

    def client(self) -> Any:
        """MLflow's store."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}")

    def stored_runs(self) -> list[Any]:
        """All runs of the study in MLflow's store."""
        return list(self.client().search_runs([self.client().get_experiment_by_name("tiny@1").experiment_id]))

    def mlflow_runs(self) -> Counter:
        return Counter(r.data.tags["emergence.key"] for r in self.stored_runs())

    def parent_link(self, port: int = 5000) -> str:
        """Where the UI shows the runs."""
        run = next(r for r in self.stored_runs() if r.data.tags["emergence.key"] == "study")
        return f"http://127.0.0.1:{port}/{links.view_path(run.info.experiment_id)}"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The study, run once without interruption."""
    home = Home(tmp_path_factory.mktemp("quiet"))
    code, out = home.run()
    assert code == 0, out
    return home


def test_a_run_ends_with_a_surface_an_answer_a_report_and_the_command_for_the_ui(quiet: Home) -> None:
    """And, run again, computes nothing."""
    before = (quiet.study / "journal.jsonl").read_bytes()
    code, out = quiet.emergence("run", str(quiet.file))
    assert code == 0 and "nothing to run" in out and (quiet.study / "journal.jsonl").read_bytes() == before
    assert "1,024" in out and "1e9" in out and "recall" in out
    assert str(quiet.study / "report.html") in out.replace("\n", "")
    assert "emergence ui" in out and f"MLflow:    {quiet.parent_link()}\n" in out
    assert (quiet.study / "report.html").stat().st_size > 10_000


def test_every_trial_is_one_row_of_runs_and_one_mlflow_run_under_one_parent(quiet: Home) -> None:
    runs = pq.read_table(quiet.study / "runs.parquet").to_pylist()
    assert [r["status"] for r in runs] == ["done"] * N_TRIALS
    keys = quiet.mlflow_runs()
    assert keys == Counter(["study"] + [r["trial"] for r in runs])


def test_mlflow_runs_carry_params_for_its_charts_and_histories_in_optimizer_steps(quiet: Home) -> None:
    client = quiet.client()
    every = {r.data.tags["emergence.key"]: r for r in quiet.stored_runs()}
    run, parent = every["answer/n1024/c1e9/r1"], every["study"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["n_tasks"] == "1024" and float(run.data.params["log2_n_tasks"]) == 10
    assert float(run.data.params["log10_compute_flops"]) == pytest.approx(9.0, abs=1e-4)
    assert run.data.tags["emergence.fingerprint"] and run.data.tags["mlflow.source.git.commit"]
    table = pq.read_table(quiet.study / "results.parquet").to_pylist()
    mine = [r for r in table if (r["trial"], r["skill"], r["split"]) == ("answer/n1024/c1e9/r1", "recall", "held_out")]
    history = client.get_metric_history(run.info.run_id, "held_out/recall/accuracy")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["n_correct"] / r["n"]) for r in mine]
    flops = client.get_metric_history(run.info.run_id, "train/flops")
    assert [m.value for m in flops] == [r["flops"] for r in mine]
    assert parent.data.tags["mlflow.note.content"]
    names = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "results.parquet", "runs.parquet", "figures"} <= names


def test_publishing_again_changes_nothing_in_mlflow_and_rebuilds_lost_tables_to_the_bit(quiet: Home) -> None:
    client = quiet.client()

    def everything() -> dict:
        keys = ("held_out/recall/accuracy", "train/flops")
        return {
            r.data.tags["emergence.key"]: [
                [(m.step, m.value, m.timestamp) for m in client.get_metric_history(r.info.run_id, k)] for k in keys
            ]
            for r in quiet.stored_runs()
        }

    table, before = (quiet.study / "results.parquet").read_bytes(), everything()
    (quiet.study / "results.parquet").unlink()
    code, out = quiet.emergence("publish", str(quiet.file))
    assert code == 0, out
    assert (quiet.study / "results.parquet").read_bytes() == table
    assert everything() == before


def test_the_ui_on_another_port_says_where_each_study_is_and_leads_its_report_there(quiet: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "http://127.0.0.1:5000/#/experiments/" in (quiet.study / "report.html").read_text()
    ui = quiet.start("ui", "--port", str(port), start_new_session=True)
    assert ui.stdout is not None
    assert f"http://127.0.0.1:{port} " in ui.stdout.readline()
    assert ui.stdout.readline() == f"  tiny@1: {quiet.parent_link(port)}\n"
    page = (quiet.study / "report.html").read_text()
    assert page.count(f"http://127.0.0.1:{port}/#/experiments/") == N_TRIALS and ":5000/" not in page
    while not any("mlflow" in words for words in descendants(quiet.study.parent)):
        assert ui.poll() is None
        time.sleep(0.02)
    os.killpg(ui.pid, signal.SIGINT)  # as a terminal does: the server is still being loaded
    assert ui.communicate(timeout=PATIENCE_SECONDS)[0] == "" and ui.returncode == 0
    while descendants(quiet.study.parent):  # what was just ended may still be listed
        time.sleep(0.05)
    code, out = quiet.run()
    assert code == 0 and f"emergence ui --port {port}" in out and quiet.parent_link(port) in out


def test_ctrl_c_while_publishing_says_what_is_the_case_and_the_publisher_goes_on(quiet: Home, tmp_path: Path) -> None:
    home = quiet.copied_to(tmp_path)
    (home.study / "published.json").unlink()
    driver = home.start("run", str(home.file))
    assert driver.stdout is not None
    said = ""
    while "\nTables ...\n" not in said:
        line = driver.stdout.readline()
        assert line, said
        said += line
    assert "The record is behind the journal" in said
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 0 and "Traceback" not in out  # nothing is left for the driver to do
    assert "publisher.log" in out
    assert f"Report:    still being written, to {home.study / 'report.html'}\n" in out
    while publisher.is_publishing(home.study):
        time.sleep(0.1)
    code, out = home.run()
    assert code == 0 and f"Report:    {home.study / 'report.html'}\n" in out and "behind" not in out


def used(home: Home, study: Study) -> float:
    """Training FLOPs that count against a cap so far."""
    return caps.Meter(recorded.read(home.study, study)).flops


def test_a_study_stopped_killed_capped_and_run_again_equals_one_left_alone_to_the_bit(tmp_path: Path) -> None:
    home, alone = Home(tmp_path / "interrupted"), tmp_path / "left_alone"
    # No trunk is near its end when it is interrupted: the last budget is 20 times the one before it, and evaluations are close
    # together, so that waiting for three more of them is short. `make faults` has the other signals.
    long = TINY.replace("1e9]", "1e10]").replace("points_per_decade: 2", "points_per_decade: 8")
    home.file.write_text(long.replace("replicates: 2", "replicates: 1"))
    study = load(str(home.file))
    go_on(study, alone)  # without Ray, in one go
    tables.write_parquet(alone, State.of(alone), study)

    driver = home.run_until(n_evaluations=1)
    code, out = home.run()  # a second driver, while the first one runs
    assert code == 2 and "tiny@1 is being run by process" in out and "Traceback" not in out
    assert home.emergence("stop", str(home.file))[0] == 0
    out, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 130 and "Go on with: emergence run" in out
    assert 0 < len(State.of(home.study).trials) < N_TRIALS // 2

    driver = home.run_until(n_evaluations=len(home.events("evaluation")) + 3)
    for pid in (publishers := publishers_of(home.study)):
        os.kill(pid, signal.SIGTERM)  # `ray job stop` sends it to all processes
    assert publishers
    os.kill(home.driver_pid(), signal.SIGKILL)
    out, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 1 and out.count("The driver ended unexpectedly (signal 9") == 1
    assert len(State.of(home.study).trials) < N_TRIALS // 2

    cap = f"{used(home, study) + 5e8:g}"
    code, out = home.run("--max-flops", cap)
    assert code == 0 and "is reached" in out and "Ended by its cap" in out and "Traceback" not in out, out
    # One evaluation more on each slot at most: the last interval of the grid, from 7.5e9 to 1e10.
    assert float(cap) <= used(home, study) <= float(cap) + 2 * 2.6e9
    assert len(State.of(home.study).trials) < N_TRIALS // 2
    n_events = len(read(home.study)[0])
    code, out = home.run("--max-flops", cap)
    assert code == 0 and "nothing is run" in out and len(read(home.study)[0]) == n_events

    code, out = home.run()
    assert code == 0, out
    assert (home.study / "results.parquet").read_bytes() == (alone / "results.parquet").read_bytes()
    ended = [event["key"] for event in home.events("trial")]
    assert len(set(ended)) == N_TRIALS // 2
    assert set(home.mlflow_runs().values()) == {1} and len(home.mlflow_runs()) == N_TRIALS // 2 + 1


def test_more_tasks_more_replicates_and_a_larger_budget_run_only_the_new_trials(quiet: Home, tmp_path: Path) -> None:
    """And what failed of them is told, kept apart and tried again."""
    home = quiet.copied_to(tmp_path)
    wider = TINY.replace("[4, 1024]", "[4, 64, 1024]").replace("replicates: 2", "replicates: 3")
    home.file.write_text(wider.replace("1e9]", "1e9, 1.25e9]"))
    old = {event["key"] for event in home.events("trial")}
    old_rows = pq.read_table(home.study / "results.parquet").to_pylist()

    blocked = home.study / "checkpoints" / "answer" / "n64"
    blocked.mkdir()
    (blocked / "r2").write_text("a file where the checkpoint folder should be")
    code, out = home.run("--retries", "0")
    assert code == 1 and "failed" in out and "Traceback" not in out
    assert "3.2e9 more are done, in checkpoints" in " ".join(out.split())
    runs = pq.read_table(home.study / "runs.parquet").to_pylist()
    failed = {r["trial"] for r in runs if r["status"] == "failed" and r["reason"]}
    assert failed and {r["status"] for r in runs if r["trial"] not in failed} == {"done"}
    assert all(trial.startswith("answer/n64/") and trial.endswith("/r2") for trial in failed)
    (blocked / "r2").unlink()

    code, out = home.run()
    assert code == 0 and f"{len(failed)} of {len(failed)} trials · 100% of" in out, out
    assert {r["status"] for r in pq.read_table(home.study / "runs.parquet").to_pylist()} == {"done"}
    new = [event for event in home.events("trial") if event["key"] not in old and event["status"] == "done"]
    assert len(new) == 3 * 3 * 4 - N_TRIALS
    rows = pq.read_table(home.study / "results.parquet").to_pylist()
    kept = {r["trial"] for r in old_rows}
    assert [r for r in rows if r["trial"] in kept] == old_rows
    resumed = next(e for e in new if e["trial"] == "answer/n4/c1.25e9/r0")
    assert resumed["flops_run"] < 0.6 * resumed["flops_own"]  # went on from the trunk, not from the start


def test_a_changed_setting_under_the_same_version_is_refused_by_name(quiet: Home, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(TINY.replace("warmup_steps: 10", "warmup_steps: 20"))
    before = (quiet.study / "journal.jsonl").read_bytes()
    code, out = quiet.emergence("run", str(changed))
    assert code == 2 and "training.warmup_steps: 10 -> 20" in out and "version" in out
    assert (quiet.study / "journal.jsonl").read_bytes() == before


def test_a_scorer_that_fails_on_an_answer_of_the_model_is_named_and_not_tried_again(tmp_path: Path) -> None:
    """Another try would end the same. It can read what is tried before a run: nothing, a question mark, prompt and target."""
    pairs = [(a, b) for a in "abcdef" for b in "abcdef"]
    rows = [f"shift {k},{k}:{a}{b},{'abcdef'[k]}{b}\n" for k in range(6) for a, b in pairs]
    (tmp_path / "tasks.csv").write_text("task,prompt,target\n" + "".join(rows))
    body = "    assert answer in ('', '?', prompt, target), 'what is this?'\n    return answer == target\n"
    (tmp_path / "mine.py").write_text(f"def judge(prompt, target, answer):\n{body}")
    home = Home(tmp_path)
    family = "{name: table, path: tasks.csv, scorer: mine:judge, rules: {held_out_tasks: 0.3}}"
    text = TINY.replace("{name: cipher, n_symbols: 8, n_pairs: 8}", family).replace("[4, 1024]", "[4]")
    home.file.write_text(text.replace("replicates: 2", "replicates: 1").replace("2e8, 5e8, 1e9", "6e8, 1e9"))
    code, out = home.run("--retries", "3")
    said = " ".join(out.split())
    assert code == 1 and "Traceback" not in out and " left" not in said.split("scorer: ")[-1], out
    assert "scorer: mine:judge fails on prompt" in said and "AssertionError: what is this?" in said, out
    assert {e["status"] for e in home.events("trial")} == {"failed"} and len(home.events("trial")) == 2
