"""The command line as a person types it: help, plans, and every refusal that is not about a study's text."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = ("plan", "run", "status", "stop", "report", "publish", "ui", "clean")
SMALL = """
study: small
version: 1
question: Is anything written?
family: {name: cipher, n_symbols: 8, n_pairs: 8}
axes: {arm: [answer], n_tasks: [4], compute_flops: [5e8], replicates: 1}
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}
evaluation: {n_sequences: 4, first_flops: 1e8, points_per_decade: 2}
"""


def emergence(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    surroundings |= {"EMERGENCE_HOME": str(home), "COLUMNS": "100"} | environment
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    done = emergence(command, "--help", home=tmp_path)
    assert done.returncode == 0 and f"Example: emergence {command}" in done.stdout


def test_a_plan_shows_trials_price_and_budgets_in_steps_and_writes_nothing(tmp_path: Path) -> None:
    done = emergence("plan", "quickstart", home=tmp_path / "home")
    assert done.returncode == 0
    for said in ("72 trials", "1.35e13", "6.4e11 = 771 steps", "1e12", "103,232 parameters"):
        assert said in done.stdout
    assert not (tmp_path / "home").exists()


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr for word in said), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize("command", ["plan", "run", "status", "stop", "report", "publish", "clean"])
def test_a_missing_file_is_refused_by_every_command_and_nothing_is_written(command: str, tmp_path: Path) -> None:
    refused(
        emergence(command, "nowhere.yaml", home=tmp_path / "home"), "nowhere.yaml: no such study file", "quickstart"
    )
    assert not (tmp_path / "home").exists()


def test_a_bad_study_is_refused_before_ray_starts_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(SMALL.replace("replicates: 1", "replicate: 1"))
    begin = time.monotonic()
    emergence("--version", home=tmp_path / "home")
    start_alone = time.monotonic() - begin
    begin = time.monotonic()
    done = emergence("run", str(file), home=tmp_path / "home")
    seconds = time.monotonic() - begin
    refused(done, f"{file}:6: axes: unknown key 'replicate'; did you mean 'replicates'?")
    assert not (tmp_path / "home").exists()
    assert seconds < 3 * start_alone  # Ray alone takes several times longer to import than this


@pytest.mark.parametrize("command", ["run"])
def test_an_output_folder_that_cannot_be_written_is_refused(command: str, tmp_path: Path) -> None:
    file, in_the_way = tmp_path / "small.yaml", tmp_path / "file"
    file.write_text(SMALL)
    in_the_way.write_text("")
    done = emergence(command, str(file), home=in_the_way / "home")
    refused(done, str(in_the_way), "cannot be written", "EMERGENCE_HOME")


@pytest.mark.parametrize("command", ["status", "stop", "report", "publish", "clean"])
def test_a_study_that_never_ran_is_refused_with_the_command_that_runs_it(command: str, tmp_path: Path) -> None:
    refused(emergence(command, "quickstart", home=tmp_path / "home"), "quickstart@1", "emergence run quickstart")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quickstart", "--device", "gpu"], ["--device gpu", "cpu or cuda"]),
        (["run", "quickstart", "--slots", "0"], ["--slots", "greater than or equal to 1"]),
        (["plan", "quickstart", "--slots", "two"], ["--slots", "integer"]),
        (["run"], ["STUDY"]),
        (["rum", "quickstart"], ["rum"]),
        (["ui", "--port", "99999"], ["--port"]),
    ],
)
def test_a_bad_option_is_refused_with_what_is_allowed(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    refused(emergence(*arguments, home=tmp_path / "home"), *said)
    assert not (tmp_path / "home").exists()


def test_the_ui_of_a_store_that_does_not_exist_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(emergence("ui", home=tmp_path), "no MLflow store", "emergence run quickstart")


def test_a_tracking_uri_that_mlflow_does_not_know_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = emergence("run", "quickstart", "--tracking-uri", "ftp://x", home=tmp_path / "home")
    refused(done, "ftp://x", "sqlite:///", "http")
    assert not (tmp_path / "home").exists()


def test_a_relative_home_in_a_job_folder_named_after_its_content_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k != "EMERGENCE_HOME"}
    command = [sys.executable, "-m", "orchestrator.cli", "run", "quickstart"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
    refused(done, "EMERGENCE_HOME", "absolute folder")
    assert list(folder.iterdir()) == []


def test_status_without_a_study_lists_none_in_an_empty_home(tmp_path: Path) -> None:
    done = emergence("status", home=tmp_path / "home")
    assert done.returncode == 0 and "No study has run yet" in done.stdout
