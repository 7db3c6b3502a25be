"""Faults on real processes, with Ray: `make faults`. One study goes through all of them; another one is left alone.

Each fault hits a run in the middle, at a moment that is drawn. Then the same command goes on, into the next fault. After each of them
all that is recorded equals the golden run; at the end `results.parquet` does to the bit. A stop saves every trunk that runs, whoever got
the signal. The study saves at a stop only, so a new checkpoint is a stop's. Seconds from the fault to the end are printed, not asserted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_SECONDS, tally
from test_end_to_end import N_TRIALS, TINY, Home

from orchestrator.record import lease, publisher
from orchestrator.study.reader import load
from trainers import checkpoint

pytestmark = pytest.mark.end_to_end

STUDY = TINY.replace("1e9]", "2e10]")
assert STUDY != TINY, "the study must last through all faults"
SEED = int(os.environ.get("FAULTS_SEED", time.time_ns() % 10**6))
"""Moments are drawn with it. It is printed, so that a failure can be repeated."""
DRAWN = random.Random(SEED)


WORDS = {
    "raylet": "/raylet",
    "gcs_server": "/gcs_server",
    "worker": "ray::ImplicitFunc",
    "relay": "ray::Relay",
    "publisher": "orchestrator.record.publisher",
}
"""What stands in the command line of each process that is killed. The driver is found by the study's lock."""


class Run:
    """One start of the command, in the middle of its work."""

    def __init__(self, home: Faulty, wait: bool = True, **streams: Any) -> None:
        self.home = home
        self.saves_before = home.saves()
        self.n_sessions = len(home.events("session"))
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | streams
        command = [sys.executable, "-u", "-m", "orchestrator.cli", *home.command]
        self.parent = subprocess.Popen(
            command, env=home.environment, cwd=home.folder, text=True, start_new_session=True, **given
        )
        if wait:
            while not self.active():
                assert self.parent.poll() is None, self.parent.communicate()[0]
                time.sleep(0.05)
            time.sleep(DRAWN.uniform(0.0, 1.0))  # the moment that is drawn

    def active(self) -> set[str]:
        """Trunks that have said something in this run, and have not ended."""
        sessions = self.home.events("session")
        mine = sessions[-1]["session"] if len(sessions) > self.n_sessions else None
        said = {e["trunk"] for e in self.home.events("evaluation") if e["session"] == mine}
        return said - {e["trunk"] for e in self.home.events("trunk")}

    def driver(self) -> int:
        """The process that holds the study."""
        return self.home.driver_pid()

    def end(self, code: int, *said: str) -> str:
        """Wait until it has ended, with this code, in a way that we call orderly. Prints how long that took."""
        begin = time.monotonic()
        out, _ = self.parent.communicate(timeout=PATIENCE_SECONDS)
        print(f"  {time.monotonic() - begin:.1f} s to the end", end="")
        out = out or ""
        assert self.parent.returncode == code, out
        assert all(words in out for words in said), out
        assert "Traceback" not in out, out
        self.home.wait_until_gone()
        print(f", {time.monotonic() - begin:.1f} s until nothing runs")
        return out

    def all_saved(self, kind: str, but: int = 0) -> None:
        """Does each trunk that ran have a new checkpoint, `but` for so many? The study saves at a stop only: no step is lost."""
        ran, after = self.active(), self.home.saves()
        saved = {trunk for trunk in ran if after[trunk] > self.saves_before[trunk]}
        tally(f"stop: {kind} (trunks, saved)", len(ran), len(saved))
        assert ran and len(ran - saved) <= but


class Faulty(Home):
    """The home of the study that goes through the faults."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file.write_text(STUDY)
        self.command = ("run", str(self.file), "--checkpoint-seconds", "1000", "--slots", "2")
        self.trunks = load(str(self.file)).trunks()

    def processes(self) -> dict[int, str]:
        """Every living process of this home: its command line by its id."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"EMERGENCE_HOME={self.study.parent}".encode() in (process / "environ").read_bytes().split(b"\0")
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if ours and words:
                    found[int(process.name)] = words
        return found

    def pids_of(self, what: str) -> list[int]:
        """The processes of this kind (WORDS)."""
        return [pid for pid, words in self.processes().items() if WORDS[what] in words]

    def pid_of(self, what: str) -> int:
        """A process of this kind; waits for one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := self.pids_of(what)):
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.05)
        return DRAWN.choice(found)

    def wait_until_gone(self) -> None:
        """Until no process of this home is left, the publisher included."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.1)

    def saves(self) -> Counter[str]:
        """The number of the newest checkpoint of each trunk."""
        folder, found = self.study / "checkpoints", Counter[str]()
        for trunk in self.trunks:
            if (number := checkpoint.newest(str(folder / trunk.id), trunk.fingerprint())) is not None:
                found[trunk.id] = int(number)
        return found

    def rows(self) -> dict[str, Any]:
        """What was measured, by the key of the evaluation."""
        return {e["key"]: e["rows"] for e in self.events("evaluation")}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """The study, run once and left alone."""
    return run_alone(tmp_path_factory)


_RUN_ALONE: list[Faulty] = []


def run_alone(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """One golden run for all files of `make faults`."""
    if _RUN_ALONE:
        return _RUN_ALONE[0]
    home = Faulty(tmp_path_factory.mktemp("golden"))
    begin = time.monotonic()
    code, out = home.run()
    assert code == 0, out
    _RUN_ALONE.append(home)
    print(f"\nFAULTS_SEED={SEED}; the golden run took {time.monotonic() - begin:.0f} s")
    return home


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """The study that goes on from fault to fault."""
    return Faulty(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def home(going: Faulty, golden: Faulty, request: pytest.FixtureRequest) -> Iterator[Faulty]:
    """The same, and afterwards: is all that it has recorded what the golden run has?"""
    print(f"\n{request.node.name}")
    yield going
    rows = golden.rows()
    assert all(rows[key] == found for key, found in going.rows().items())
    assert not lease.is_held(going.study)


# Kills --------------------------------------------------------------------------------------------------------------


def test_a_driver_that_is_killed_is_one_line(home: Faulty) -> None:
    """Fails without the parent's last word."""
    run = Run(home)
    os.kill(run.driver(), signal.SIGKILL)
    out = run.end(1)
    assert [line for line in out.splitlines() if "ended unexpectedly (signal 9" in line]
    tally("killed: driver", 1, 1)


def test_a_parent_that_is_killed_is_a_stop(home: Faulty) -> None:
    """Fails if the driver does not listen to the socket's end."""
    run = Run(home)
    run.parent.kill()
    run.end(-signal.SIGKILL)
    run.all_saved("parent killed")
    tally("killed: parent", 1, 1)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_ray_that_is_killed_ends_the_run_with_one_line_within_a_bound(name: str, home: Faulty) -> None:
    """Fails without `Lifeline`: the driver waits for ever or for a minute. Without `_to_the_log` Ray says pages, and without what
    `needs` tells the parent cannot say what died: both seen so."""
    run = Run(home)
    os.kill(home.pid_of(name), signal.SIGKILL)
    out = run.end(1)
    said = out.rpartition("Starting Ray")[2].strip().splitlines()[1:]
    (line,) = [line for line in said if " trials · " not in line]  # beside the progress
    assert "ended unexpectedly (Ray's " in line and " died; see " in line
    tally(f"killed: {name}", 1, 1)


def test_a_worker_that_is_killed_is_begun_again_from_its_checkpoint(home: Faulty) -> None:
    """Fails without retries."""
    run = Run(home)
    before = len(home.events("evaluation"))
    os.kill(home.pid_of("worker"), signal.SIGKILL)
    while len(home.events("evaluation")) <= before:
        assert run.parent.poll() is None
        time.sleep(0.05)
    run.parent.send_signal(signal.SIGTERM)
    run.end(130)
    run.all_saved("after a worker was killed", but=1)  # that which was killed may not be back yet
    tally("killed: worker", 1, 1)


def test_a_relay_that_is_killed_fails_no_trial_and_a_stop_still_reaches_all(home: Faulty) -> None:
    """Fails without `max_restarts`, or if the stop is told once only."""
    run = Run(home)
    os.kill(home.pid_of("relay"), signal.SIGKILL)
    run.parent.send_signal(signal.SIGTERM)
    out = run.end(130)
    assert "failed:" not in out
    run.all_saved("relay killed")
    tally("killed: event relay", 1, 1)


def test_a_publisher_that_is_killed_costs_nothing_but_delay(home: Faulty) -> None:
    """Fails if no other publisher does its work at the end."""
    run = Run(home)
    os.kill(home.pid_of("publisher"), signal.SIGKILL)
    code, out = home.emergence("stop", str(home.file))
    assert code == 0, out
    run.end(130, "another one does its work")
    run.all_saved("emergence stop")
    assert publisher.report_is_current(home.study, load(str(home.file)))
    tally("killed: publisher", 1, 1)


# Stops --------------------------------------------------------------------------------------------------------------


def to_parent(run: Run, number: int) -> None:
    """As `kill` does."""
    run.parent.send_signal(number)


def to_group(run: Run, number: int) -> None:
    """As a terminal, `timeout` and batch systems do; twice, as some wrappers do."""
    os.killpg(run.parent.pid, number)
    os.killpg(run.parent.pid, number)


def to_driver(run: Run, number: int) -> None:
    """As somebody does who read the process id in `emergence status`."""
    os.kill(run.driver(), number)


def to_all(run: Run, number: int) -> None:
    """As systemd, Slurm and containers do: every process, Ray's and the workers too."""
    for pid in run.home.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize(
    ("whom", "number"),
    [(to_group, signal.SIGTERM), (to_group, signal.SIGINT), (to_all, signal.SIGTERM), (to_all, signal.SIGHUP)],
)
def test_a_signal_to_many_processes_saves_every_trunk(
    whom: Callable[[Run, int], None], number: int, home: Faulty
) -> None:
    """Fails for all if Ray's processes do not inherit a mask, and for the group if the driver has no session of its own."""
    run = Run(home)
    whom(run, number)
    run.end(130, "Go on with")
    run.all_saved(f"{signal.Signals(number).name} {whom.__name__.replace('_', ' ')}")


def test_a_signal_to_the_driver_alone_saves_every_trunk(home: Faulty) -> None:
    run = Run(home)
    to_driver(run, signal.SIGTERM)
    run.end(130)
    run.all_saved("SIGTERM to driver")


def test_a_second_ctrl_c_leaves_at_once(home: Faulty) -> None:
    run = Run(home)
    to_group(run, signal.SIGINT)
    time.sleep(0.7)  # so that it is a second one
    to_group(run, signal.SIGINT)
    run.end(130)
    tally("stop: leaving at once", 1, 1)


@pytest.mark.parametrize("how", ["pipe", "terminal"])
def test_ctrl_c_saves_also_when_nobody_reads_the_output_any_more(how: str, home: Faulty) -> None:
    """Fails without `outlive_readers`: the first line that is said ends the driver before anything is saved."""
    reader, writer = os.pipe() if how == "pipe" else os.openpty()
    run = Run(home, stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    run.parent.send_signal(signal.SIGINT if how == "pipe" else signal.SIGHUP)
    run.end(130)
    run.all_saved(f"the reader's {how} is gone")


def test_a_stop_while_ray_starts_is_honoured(home: Faulty) -> None:
    """Fails if the stop flag is cleared later than the lock is taken."""
    run = Run(home, wait=False)
    assert run.parent.stdout is not None
    while "Starting Ray" not in run.parent.stdout.readline():
        assert run.parent.poll() is None
    code, out = home.emergence("stop", str(home.file))
    assert code == 0, out
    run.end(130, "Go on with")
    assert not run.active()
    tally("stop: while Ray starts", 1, 1)


def test_a_second_driver_is_refused_and_the_first_goes_on(home: Faulty) -> None:
    run = Run(home)
    code, out = home.run()
    assert code == 2 and "is being run by process" in out
    run.parent.send_signal(signal.SIGTERM)
    run.end(130)
    run.all_saved("SIGTERM to parent")
    tally("second driver", 1, 1)


def test_a_machine_that_sleeps_for_a_minute_loses_nothing(home: Faulty) -> None:
    """Everything is stopped for a minute, as in a laptop that is closed. Ray may take itself for dead: then the run ends."""
    run = Run(home)
    every = list(home.processes())
    for pid in every:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(60)
    for pid in every:
        os.kill(pid, signal.SIGCONT)
    run.parent.send_signal(signal.SIGTERM)
    run.parent.wait(PATIENCE_SECONDS)
    print(f"  ended with code {run.parent.returncode}")
    run.end(run.parent.returncode)
    assert run.parent.returncode in (1, 130)
    tally("asleep for a minute", 1, 1)


# The end ------------------------------------------------------------------------------------------------------------


def test_after_all_of_that_the_results_are_those_of_the_golden_run_to_the_bit(golden: Faulty, going: Faulty) -> None:
    code, out = going.run()
    assert code == 0, out
    assert (going.study / "results.parquet").read_bytes() == (golden.study / "results.parquet").read_bytes()
    assert len({event["key"] for event in going.events("trial")}) == N_TRIALS
    assert set(going.mlflow_runs().values()) == {1} and len(going.mlflow_runs()) == N_TRIALS + 1
