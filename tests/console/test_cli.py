"""The command line as a person types it: help, plans, and every refusal that is not about a study's text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS
from typer.testing import CliRunner

from orchestrator import cli
from orchestrator.console.checks import UsageProblem
from orchestrator.record.journal import Journal
from orchestrator.record.provenance import session_event
from orchestrator.study.reader import find, load
from orchestrator.study.schema import StudyError

COMMANDS = ("plan", "run", "status", "stop", "report", "compare", "publish", "ui", "clean")
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
    left_out = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
    surroundings = {k: v for k, v in os.environ.items() if k not in left_out}
    surroundings |= {"EMERGENCE_HOME": str(home), "COLUMNS": "100"} | environment
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def inside(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in this very process, which takes a tenth of the time."""
    left_out: dict[str, str | None] = dict.fromkeys(("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"))
    surroundings = left_out | {"EMERGENCE_HOME": str(home), "COLUMNS": "100"} | environment
    done = CliRunner().invoke(cli.app, arguments, env=surroundings)
    if isinstance(done.exception, UsageProblem | StudyError):  # as `main` says it
        return subprocess.CompletedProcess(arguments, 2, done.stdout, f"{done.stderr}{done.exception}\n")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    done = inside(command, "--help", home=tmp_path)
    assert done.returncode == 0 and f"Example: emergence {command}" in done.stdout


def test_a_plan_shows_trials_price_and_budgets_in_steps_and_writes_nothing(tmp_path: Path) -> None:
    done = inside("plan", "quickstart", home=tmp_path / "home")
    assert done.returncode == 0
    for said in ("72 trials", "1.35e13", "6.4e11 = 771 steps", "1e12", "103,232 parameters"):
        assert said in done.stdout
    assert not (tmp_path / "home").exists()


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr for word in said), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(("replicates", "warned"), [(3, True), (4, False)])
def test_a_plan_warns_where_many_numbers_of_tasks_have_too_few_replicates_for_a_break(
    tmp_path: Path, replicates: int, warned: bool
) -> None:
    text = find("tasks_by_compute").read_text()
    study = tmp_path / "x.yaml"
    study.write_text(re.sub(r"replicates: \d+", f"replicates: {replicates}", text))
    said = " ".join(inside("plan", str(study), home=tmp_path).stdout.split())
    assert ("break" in said and "4 replicates" in said) == warned


@pytest.mark.parametrize("command", ["plan", "run", "status", "stop", "report", "publish", "clean"])
def test_a_missing_file_is_refused_by_every_command_and_nothing_is_written(command: str, tmp_path: Path) -> None:
    ask = emergence if command in ("plan", "run") else inside
    refused(ask(command, "nowhere.yaml", home=tmp_path / "home"), "nowhere.yaml: no such study file", "quickstart")
    assert not (tmp_path / "home").exists()


def test_a_bad_study_is_refused_before_ray_is_even_imported_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(SMALL.replace("replicates: 1", "replicate: 1"))
    done = emergence("run", str(file), home=tmp_path / "home", PYTHONPROFILEIMPORTTIME="1")
    refused(done, f"{file}:6: axes: unknown key 'replicate'; did you mean 'replicates'?")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "orchestrator.study.schema" in imported and not {"ray", "torch", "deepspeed", "mlflow"} & imported
    assert not (tmp_path / "home").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file, in_the_way = tmp_path / "small.yaml", tmp_path / "file"
    file.write_text(SMALL)
    in_the_way.write_text("")
    done = inside("run", str(file), home=in_the_way / "home")
    refused(done, str(in_the_way), "cannot be written", "EMERGENCE_HOME")


@pytest.mark.parametrize("command", ["status", "stop", "report", "publish", "clean"])
def test_a_study_that_never_ran_is_refused_with_the_command_that_runs_it(command: str, tmp_path: Path) -> None:
    refused(inside(command, "quickstart", home=tmp_path / "home"), "quickstart@1", "emergence run quickstart")
    assert not (tmp_path / "home").exists()


def home_of(tmp_path: Path, *ids: str) -> Path:
    """A home in which studies of these names and versions ran."""
    for study_id in ids:
        name, _, version = study_id.partition("@")
        file = tmp_path / "small.yaml"
        file.write_text(SMALL.replace("study: small", f"study: {name}").replace("version: 1", f"version: {version}"))
        log = Journal(tmp_path / "home" / study_id)
        log.append([session_event(load(str(file)), {})])
        log.close()
        file.rename(tmp_path / "home" / study_id / "study.yaml")
    return tmp_path / "home"


@pytest.mark.parametrize("command", ["status", "report", "compare"])
def test_the_name_of_ones_own_study_suggests_its_versions(command: str, tmp_path: Path) -> None:
    home = home_of(tmp_path, "mine@1", "mine@2", "mines@1")
    done = inside(command, "mine", *(["mine@1"] if command == "compare" else []), home=home)
    refused(done, "mine: no such study file", "mine@1, mine@2")
    assert "mines@1" not in done.stderr


def test_a_name_that_nothing_ran_under_is_told_what_comes_near_and_a_folder_what_it_is(tmp_path: Path) -> None:
    home = home_of(tmp_path, "mine@1", "other@2")
    refused(inside("report", "mien", home=home), "mien: has not been run in", "did you mean 'mine'?")
    refused(inside("status", "nosuch", home=home), "nosuch: has not been run in", "mine@1, other@2")
    refused(inside("plan", str(tmp_path), home=home), f"{tmp_path}: that is a folder; give a study file")


def test_the_name_of_ones_own_study_is_enough_where_one_version_ran(tmp_path: Path) -> None:
    home = home_of(tmp_path, "mine@1", "mine@2", "mines@3")
    assert "mines@3: not running" in inside("status", "mines", home=home).stdout
    assert inside("report", "mines", home=home).stdout.strip() == str(home / "mines@3" / "report.html")
    refused(inside("compare", "mines", "mine@1", home=home), "mines@3 and mine@1 cannot be compared")
    refused(inside("report", "mines.yaml", home=home), "mines.yaml: no such study file")


def test_a_version_that_never_ran_suggests_those_that_did_and_run_names_the_file_that_is_kept(tmp_path: Path) -> None:
    home = home_of(tmp_path, "mine@1", "mine@2")
    refused(inside("status", "mine@3", home=home), "mine@3: has not been run", "mine@1, mine@2 has")
    refused(inside("report", "mein@1", home=home), "mein@1: has not been run", "mine@1 has")
    kept = home / "mine@2" / "study.yaml"
    refused(inside("plan", "mine@2", home=home), "a study file is needed", f"run {kept}")
    assert inside("plan", str(kept), home=home).returncode == 0


def test_a_plan_for_gpus_says_how_many_it_counts_on_and_why(tmp_path: Path) -> None:
    for seen, address, said in (
        ("0,3", "", "2 slots (2 GPUs here)"),
        ("", "", "1 slot (assumed: one GPU; none was found here)"),
        ("0,3", "auto", "1 slot (assumed: one GPU; known once the cluster is joined)"),
    ):
        environment = {"CUDA_VISIBLE_DEVICES": seen, "RAY_ADDRESS": address}
        done = inside("plan", "quickstart", "--device", "cuda", home=tmp_path, **environment)
        assert done.returncode == 0 and said in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quickstart", "--device", "gpu"], ["--device", "'gpu'", "cpu", "cuda"]),
        (["run", "quickstart", "--slots", "0"], ["--slots", "greater than or equal to 1"]),
        (["plan", "quickstart", "--slots", "two"], ["--slots", "integer"]),
        (["run"], ["STUDY"]),
        (["rum", "quickstart"], ["rum"]),
        (["ui", "--port", "99999"], ["--port"]),
    ],
)
def test_a_bad_option_is_refused_with_what_is_allowed(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    refused(inside(*arguments, home=tmp_path / "home"), *said)
    assert not (tmp_path / "home").exists()


def test_the_ui_of_a_store_that_does_not_exist_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(inside("ui", home=tmp_path), "no MLflow store", "emergence run quickstart")


def test_a_tracking_uri_that_mlflow_does_not_know_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = inside("run", "quickstart", "--tracking-uri", "ftp://x", home=tmp_path / "home")
    refused(done, "ftp://x", "sqlite:///", "http")
    assert not (tmp_path / "home").exists()


def test_a_relative_home_in_a_job_folder_named_after_its_content_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k != "EMERGENCE_HOME"}
    command = [sys.executable, "-m", "orchestrator.cli", "run", "quickstart"]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    refused(done, "EMERGENCE_HOME", "absolute folder")
    assert list(folder.iterdir()) == []


def test_no_password_of_a_tracking_uri_is_shown(tmp_path: Path) -> None:
    done = inside("ui", "--tracking-uri", "https://me:secret@mlflow.example.org/team", home=tmp_path)
    assert done.returncode == 0 and "open https://mlflow.example.org/team" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_status_without_a_study_lists_none_in_an_empty_home(tmp_path: Path) -> None:
    done = inside("status", home=tmp_path / "home")
    assert done.returncode == 0 and "No study has run yet" in done.stdout
