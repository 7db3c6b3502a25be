"""Ray at its start and in groups, for real: `make faults`. Workers that cannot meet, errors between start and run, an object store."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from alone import go_on, rows_of
from conftest import PATIENCE_SECONDS, tally
from test_cli import SMALL, emergence
from test_end_to_end import Home
from test_object_storage import KEYS, address, uri  # noqa: F401 - fixtures
from test_starts_end_to_end import CHAIN

from orchestrator.record.journal import read
from orchestrator.study.reader import load
from trainers import checkpoint

pytestmark = pytest.mark.end_to_end


def test_workers_that_cannot_reach_each_other_are_spoken_of_at_every_try_and_end_as_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    options = ("--slots", "2", "--workers", "2", "--retries", "1")
    done = emergence("run", str(file), *options, home=tmp_path / "home", GLOO_SOCKET_IFNAME="nowhere0")
    assert done.returncode == 1, done.stdout + done.stderr
    (retried,) = [line for line in done.stdout.splitlines() if line.startswith("answer/n4/r0 failed: ")]
    assert "1 try is left" in retried and "nowhere0" in retried  # and so the first try gave its slots back
    (end,) = [e for e in read(tmp_path / "home" / "small@1")[0] if e["kind"] == "trial"]
    assert end["status"] == "failed" and end["reason"]


LEAVES = """
import psutil

from orchestrator.plan import jobs
from orchestrator.run import machines

try:
    with machines.started(jobs.Options(slots=1), 1):
        assert psutil.Process().children()
        raise OSError("no space left")
except OSError:
    print(psutil.Process().children(recursive=True))
"""


def test_whatever_ends_a_command_between_rays_start_and_the_run_leaves_no_ray(tmp_path: Path) -> None:
    """Fails without `started`: Ray's processes last until the interpreter has ended, and hold back the signals that end them."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout == "[]\n", done


def test_a_study_of_two_workers_a_trial_keeps_its_checkpoints_there_and_gives_them_back(
    uri: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    file, home = tmp_path / "small.yaml", tmp_path / "home"
    file.write_text(SMALL)
    options = ["--workers", "2", "--storage", uri, "--keep-weights"]
    done = emergence("run", str(file), *options, home=home, **KEYS)
    assert done.returncode == 0, done.stderr
    trunks = load(str(file)).trunks()
    place = checkpoint.under(uri, "small@1")
    for trunk in trunks:
        folder = checkpoint.under(place, "checkpoints", trunk.id)
        assert checkpoint.peek(folder, trunk.fingerprint()) is not None
    assert sorted(checkpoint.store_of(place).names()) == ["checkpoints", "weights"]  # what Ray writes is thrown away
    assert not (home / "small@1" / "checkpoints").exists()
    cleaned = emergence("clean", str(file), "--storage", uri, home=home, **KEYS)
    assert cleaned.returncode == 0 and "weights" in checkpoint.store_of(place).names()
    assert all(checkpoint.peek(checkpoint.under(place, "checkpoints", t.id), t.fingerprint()) is None for t in trunks)


def test_trials_that_begin_with_others_equal_those_left_alone_after_any_kill_to_the_bit(tmp_path: Path) -> None:
    """The driver is killed with every worker, at moments that are drawn: while donors train, save their weights, and after that."""
    home, alone = Home(tmp_path / "home"), tmp_path / "alone"
    home.file.write_text(CHAIN.replace("4e7]", "4e7, 4e8]").replace("replicates: 1", "replicates: 2"))
    study = load(str(home.file))
    go_on(study, alone)
    draw, n_kills = random.Random(3), 0
    while n_kills < 5:
        driver = home.run_until(len(home.events("evaluation")) + draw.randint(1, 6))
        time.sleep(draw.uniform(0.0, 0.5))
        with contextlib.suppress(AssertionError, ProcessLookupError):  # it has just ended
            os.kill(home.driver_pid(), signal.SIGKILL)
        driver.communicate(timeout=PATIENCE_SECONDS)
        n_kills += 1
        if driver.returncode == 0:
            break
    code, out = home.run()
    assert code == 0 and "Traceback" not in out, out
    assert pq.read_table(home.study / "results.parquet").to_pylist() == rows_of(study, alone)
    tally("killed: driver, among trials that begin with others", n_kills, n_kills)
