"""A home whose journal is gone: nothing of it is written over, nobody is told that nothing ran, and no file speaks for another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from alone import go_on, rows_of
from conftest import tally
from test_cli import emergence, refused

from orchestrator.record import journal, publisher
from orchestrator.study.reader import load
from orchestrator.study.schema import Study

TEXT = """
study: tiny
version: 1
question: What survives?
family: {name: cipher, n_symbols: 6, n_pairs: 6}
axes: {arm: [answer], n_tasks: [4], compute_flops: [1e7, 2e7], replicates: 1}
model: {n_layers: 1, d_model: 8, n_heads: 1, d_mlp: 8}
training: {batch_size: 4, warmup_steps: 10}
evaluation: {points_per_decade: 4, first_flops: 2e6, n_sequences: 4}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study that has run, and its tables."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.yaml").write_text(TEXT)
    study = load(str(home / "tiny.yaml"))
    go_on(study, home / study.id)
    publisher.rewrite(home / study.id)
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "home"))


def study_in(home: Path) -> Study:
    return load(str(home / "tiny.yaml"))


def everything(home: Path) -> dict[str, bytes]:
    """Every file of the study, but what a driver writes before it refuses."""
    found = {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if Path(name).name not in ("driver.lock", "driver.log")}


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_without_its_journal_a_study_is_refused_and_nothing_is_written_over(how: str, home: Path) -> None:
    """Without `left_without_journal` tables of 520 rows become empty ones, and `status` says that nothing ran."""
    path = home / "tiny@1" / journal.FILE
    path.unlink()
    if how == "emptied":
        path.touch()
    before = everything(home)
    for command in (("run",), ("status",), ("report",), ("publish",)):
        done = emergence(*command, str(home / "tiny.yaml"), home=home)
        refused(done, journal.FILE, "results.parquet", "report.html")
    assert everything(home) == before
    tally("journal gone", 4, 4)


def test_checkpoints_of_other_settings_are_not_written_over_either(home: Path) -> None:
    folder = home / "tiny@1"
    for name in (journal.FILE, *("results.parquet", "runs.parquet", "report.html", "published.json")):
        (folder / name).unlink()
    (home / "tiny.yaml").write_text(TEXT.replace("warmup_steps: 10", "warmup_steps: 12"))
    before = everything(home)
    refused(emergence("run", str(home / "tiny.yaml"), home=home), "checkpoints of other settings")
    assert everything(home) == before
    tally("journal gone", 1, 1)


def test_from_checkpoints_of_its_own_settings_a_study_comes_back_without_training(whole: Path, home: Path) -> None:
    study = study_in(home)
    for name in (journal.FILE, *("results.parquet", "runs.parquet", "report.html", "published.json")):
        (home / study.id / name).unlink()
    assert go_on(study, home / study.id) == 0
    assert rows_of(study, home / study.id) == rows_of(study, whole / study.id)
    tally("journal gone", 1, 1)


def test_a_file_that_differs_from_what_was_run_is_named_as_such(home: Path) -> None:
    (home / "tiny.yaml").write_text(
        TEXT.replace("warmup_steps: 10", "warmup_steps: 12").replace("replicates: 1", "replicates: 2")
    )
    done = emergence("status", str(home / "tiny.yaml"), home=home)
    assert done.returncode == 0 and "2 done of 2 trials" in done.stdout
    assert "axes.replicates: 1 -> 2; training.warmup_steps: 10 -> 12" in done.stderr


@pytest.mark.parametrize("given", ["inf", "1e400", "nan"])
def test_an_interval_that_is_no_number_of_seconds_is_refused(given: str, home: Path) -> None:
    done = emergence("run", str(home / "tiny.yaml"), "--checkpoint-seconds", given, home=home)
    assert done.returncode == 2 and "checkpoint-seconds" in done.stderr and "Traceback" not in done.stderr
