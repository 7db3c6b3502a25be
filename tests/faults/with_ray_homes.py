"""Faults of homes, with Ray: full disks, copies, two publishers, lack of memory. The second half of `make faults`."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, tally
from with_ray import Faulty, Run, run_alone

pytestmark = pytest.mark.end_to_end
HERE = Path(__file__).parent
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """The study, run once and left alone: the same as in `with_ray.py`."""
    return run_alone(tmp_path_factory)


def is_golden(home: Faulty, golden: Faulty) -> bool:
    """Are the results those of the golden run, to the bit?"""
    return (home.study / "results.parquet").read_bytes() == (golden.study / "results.parquet").read_bytes()


ON_A_DISK_THAT_FILLS_UP = """
import errno, shutil, subprocess, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from with_ray import Faulty, Run, run_alone
folder = Path(sys.argv[1])
runs = folder / "runs"
runs.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(runs)], check=True)
home = Faulty(folder)
home.command = ("run", str(home.file), "--checkpoint-seconds", "0.2", "--slots", "2")
run = Run(home)
filling = runs / "filling"
with open(filling, "wb", buffering=0) as file:
    for size in (65536, 1):
        try:
            while True:
                file.write(bytes(size))
        except OSError as problem:
            assert problem.errno == errno.ENOSPC
begin = time.monotonic()
out, _ = run.parent.communicate(timeout=600)
print(f"full: code {run.parent.returncode} after {time.monotonic() - begin:.1f} s")
assert run.parent.returncode == 1 and "Traceback" not in out and "No space left" in out, out
said = [line for line in out.splitlines() if "No space left" in line]
assert len(said) <= 8, out
home.wait_until_gone()
filling.unlink()
code, out = home.run()
assert code == 0, out
shutil.copy(home.study / "results.parquet", folder / "results.parquet")
"""


def test_a_disk_that_fills_up_ends_the_run_in_words_and_with_room_again_it_goes_on(
    golden: Faulty, tmp_path: Path
) -> None:
    """Fails if an error of the journal reaches Tune: no trunk then saves, and 125 lines are printed."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    command = [
        *UNSHARE,
        sys.executable,
        "-c",
        ON_A_DISK_THAT_FILLS_UP,
        str(tmp_path),
        str(HERE),
        str(HERE.parent),
        str(HERE.parent / "console"),
        str(HERE.parent / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results.parquet").read_bytes() == (golden.study / "results.parquet").read_bytes()
    tally("disk full, with resume", 1, 1)


def test_a_home_copied_while_a_study_runs_goes_on_in_both_places(golden: Faulty, tmp_path: Path) -> None:
    first = Faulty(tmp_path / "first")
    run = Run(first)
    shutil.copytree(first.study.parent, tmp_path / "second" / "runs", ignore=shutil.ignore_patterns("mlflow.db*"))
    run.parent.send_signal(signal.SIGTERM)
    run.end(130)
    second = Faulty(tmp_path / "second")
    for home in (second, first):
        code, out = home.run()
        assert code == 0, out
        assert is_golden(home, golden)
        assert set(home.mlflow_runs().values()) == {1}
    tally("copied home", 2, 2)


def test_publishers_at_the_same_time_make_one_run_a_trial(golden: Faulty, tmp_path: Path) -> None:
    home = Faulty(tmp_path)
    shutil.copytree(golden.study.parent, home.study.parent, ignore=shutil.ignore_patterns("mlflow.db*"))
    several = [home.start("publish", str(home.file)) for _ in range(3)]
    for publisher in several:
        out, _ = publisher.communicate(timeout=PATIENCE_SECONDS)
        assert publisher.returncode == 0 and "Traceback" not in out, out
    assert home.mlflow_runs() == golden.mlflow_runs() and is_golden(home, golden)
    tally("publishers at the same time", 3, 3)


def test_workers_that_are_ended_for_lack_of_memory_are_failures_and_with_memory_the_study_goes_on(
    golden: Faulty, tmp_path: Path
) -> None:
    """Ray ends workers where a machine's memory runs short; here it is told that it always does."""
    home = Faulty(tmp_path)
    enough = dict(home.environment)
    home.environment |= {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "100"}
    begin = time.monotonic()
    code, out = home.run("--retries", "1")
    print(f"\n  without memory: code {code} after {time.monotonic() - begin:.1f} s")
    assert code == 1 and "Traceback" not in out, out
    assert "memory" in out
    home.wait_until_gone()
    home.environment = enough
    code, out = home.run()
    assert code == 0, out
    assert is_golden(home, golden)
    tally("out of memory", 1, 1)


def test_a_study_edited_between_two_runs_is_refused_by_name_and_unchanged_goes_on(
    golden: Faulty, tmp_path: Path
) -> None:
    """`tests/faults/test_journal_faults.py` has every kind of edit; here is the command line."""
    home = Faulty(tmp_path)
    run = Run(home)
    run.parent.send_signal(signal.SIGTERM)
    run.end(130)
    text = home.file.read_text()
    before = (home.study / "journal.jsonl").read_bytes()
    edits = {"warmup_steps: 10": "warmup_steps: 11", "d_mlp: 32": "d_mlp: 48", "n_pairs: 8": "n_pairs: 7"}
    for old, new in edits.items():
        home.file.write_text(text.replace(old, new))
        code, out = home.run()
        assert code == 2 and new.split(": ")[0] in out and "version" in out, out
        assert (home.study / "journal.jsonl").read_bytes() == before
    home.file.write_text(text)
    code, out = home.run()
    assert code == 0, out
    assert is_golden(home, golden)
    tally("edited studies", len(edits), len(edits))
