"""The parent of a run and its driver, without Ray: a stand-in for the driver says what it hears of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from alone import TINY, go_on, study_with
from conftest import PATIENCE_SECONDS, tally
from test_cli import emergence

from orchestrator.run import output, supervise

STAND_IN = """
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from orchestrator.run import output, supervise

supervise.LEAVING_SECONDS = 0.5 if "hang" in sys.argv else supervise.LEAVING_SECONDS
supervise.begin()  # the parent stays in here
supervise.take_over()
request = supervise.StopRequest(Path(sys.argv[2]))
for number in supervise.ending_signals():
    signal.signal(number, request.on_signal)
output.outlive_readers(Path(sys.argv[2]) / "driver.log")
inherited = supervise.VARIABLE in subprocess.run(["env"], capture_output=True, text=True).stdout
print("ready", os.getpid(), os.getsid(0) != os.getsid(os.getppid()), inherited, flush=True)
try:
    while not request.is_asked():
        time.sleep(0.01)
    print("saving", flush=True)
    if "much" in sys.argv:
        print("x" * 1_000_000, flush=True)
    if "slow" in sys.argv:
        while True:
            time.sleep(0.01)
    (Path(sys.argv[2]) / "saved").touch()
    supervise.tell("left", 130)
    if "hang" in sys.argv:
        threading.Thread(target=time.sleep, args=(1000,)).start()
    if "crash" in sys.argv:
        os.abort()
    sys.exit(130)
except KeyboardInterrupt:
    supervise.tell("left", 77)
"""
"""Run as `stand_in.py run FOLDER`, it takes the place of `emergence run STUDY`."""


class StandIn:
    """A parent with its driver, which is ready."""

    def __init__(self, folder: Path, *words: str, before: tuple[str, ...] = ()) -> None:
        program = folder / "stand_in.py"
        program.write_text(STAND_IN)
        root = str(Path(supervise.__file__).parents[2])
        self.folder = folder
        self.parent = subprocess.Popen(
            [*before, sys.executable, str(program), "run", str(folder), *words],
            env=os.environ | {"PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.parent.stdout is not None
        said = self.parent.stdout.readline().split()
        self.driver, self.facts = int(said[1]), said[2:]

    def heard(self) -> None:
        """Wait until the driver has heard of the stop."""
        assert self.parent.stdout is not None and self.parent.stdout.readline() == "saving\n"

    def end(self) -> tuple[int, str]:
        """Exit code of the parent, and what went to standard error."""
        _, said = self.parent.communicate(timeout=PATIENCE_SECONDS)
        return self.parent.returncode, said

    def saved(self) -> bool:
        """Did the driver save?"""
        return (self.folder / "saved").exists()


def is_alive(pid: int) -> bool:
    """Does this process run, other than as a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def signals_of(pid: int, what: str) -> set[int]:
    """Signals that a process ignores (SigIgn) or holds back (SigBlk)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_the_driver_has_a_session_of_its_own_and_passes_the_socket_to_nobody(folder: Path) -> None:
    """Fails without `start_new_session`, or if the variable stays in the environment."""
    run = StandIn(folder)
    assert run.facts == ["True", "False"]
    run.parent.terminate()
    assert run.end() == (130, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: signal.Signals(n).name)
def test_a_signal_to_the_whole_group_twice_is_one_stop_that_saves(number: int, folder: Path) -> None:
    """Fails if each repetition counts as wanting to leave at once."""
    run = StandIn(folder)
    os.killpg(run.parent.pid, number)
    os.killpg(run.parent.pid, number)
    os.kill(run.driver, number)
    assert run.end() == (130, "") and run.saved()
    tally("stop: signal to the group, no Ray", 1, 1)


def test_a_parent_that_is_killed_is_a_stop_too(folder: Path) -> None:
    """Fails if the driver does not listen to the socket's end."""
    run = StandIn(folder)
    run.parent.kill()
    run.heard()
    while is_alive(run.driver):
        time.sleep(0.01)
    assert run.end()[0] == -signal.SIGKILL and run.saved()
    tally("killed: parent, no Ray", 1, 1)


def test_a_driver_that_is_killed_is_one_line_and_exit_code_1(folder: Path) -> None:
    """Fails without the parent's last word."""
    run = StandIn(folder)
    os.kill(run.driver, signal.SIGKILL)
    code, said = run.end()
    assert code == 1 and len(said.splitlines()) == 1 and "ended unexpectedly (signal 9" in said
    assert str(folder / "driver.log") in said
    tally("killed: driver, no Ray", 1, 1)


def test_the_exit_code_that_is_meant_outlives_a_crash_at_the_very_end(folder: Path) -> None:
    """Fails if the parent goes by how the process ended alone."""
    run = StandIn(folder, "crash")
    run.parent.terminate()
    assert run.end()[0] == 130 and run.saved()


def test_a_driver_that_hangs_at_the_very_end_is_killed_and_the_code_is_that_which_was_meant(folder: Path) -> None:
    """Fails if the parent waits without a bound: a thread holds the interpreter."""
    run = StandIn(folder, "hang")
    run.parent.terminate()
    assert run.parent.wait(60.0) == 130 and run.saved() and not is_alive(run.driver)
    assert run.end() == (130, "")
    tally("driver hangs at its end, no Ray", 1, 1)


def test_a_second_ctrl_c_leaves_at_once(folder: Path) -> None:
    """Fails if the driver takes each signal for the same."""
    run = StandIn(folder, "slow")
    run.parent.send_signal(signal.SIGINT)
    run.heard()
    time.sleep(supervise.SAME_SECONDS + 0.2)  # what comes sooner is the same Ctrl-C
    run.parent.send_signal(signal.SIGINT)
    assert run.end() == (77, "") and not run.saved()


def test_a_signal_at_any_line_of_asking_whether_to_stop_is_no_deadlock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if what a handler sets is an Event: its lock is held in some of these lines."""
    monkeypatch.setattr(supervise, "_asked", False)
    request, n = supervise.StopRequest(folder), 0

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal n
        if event == "line":
            n += 1
            request.on_signal(signal.SIGTERM, frame)
        return interrupt

    def ask() -> None:
        request.flag.touch()
        sys.settrace(interrupt)
        request.is_asked()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(10.0)
    assert not asking.is_alive() and n > 3 and request.is_asked()
    tally("stop: signal while asking, no Ray", n, n)


def test_what_nohup_ignores_stays_ignored(folder: Path) -> None:
    """Fails if the parent takes every signal."""
    run = StandIn(folder, before=("sh", "-c", "trap '' HUP; exec \"$@\"", "sh"))
    assert signal.SIGHUP in signals_of(run.parent.pid, "SigIgn") & signals_of(run.driver, "SigIgn")
    run.parent.terminate()
    assert run.end() == (130, "") and run.saved()


def test_ctrl_z_stops_nobody(folder: Path) -> None:
    """Fails without the parent's ignoring it. The kernel stops no group without a shell, so the signal alone tells nothing."""
    run = StandIn(folder)
    os.killpg(run.parent.pid, signal.SIGTSTP)
    assert signal.SIGTSTP in signals_of(run.parent.pid, "SigIgn")
    os.killpg(run.parent.pid, signal.SIGINT)
    assert run.end() == (130, "") and run.saved()


def test_a_reader_that_is_gone_does_not_keep_the_driver_from_saving(folder: Path) -> None:
    """Fails without `outlive_readers`: to say that it saves ends the driver."""
    run = StandIn(folder)
    assert run.parent.stdout is not None and run.parent.stderr is not None
    run.parent.stdout.close()
    run.parent.stderr.close()
    run.parent.terminate()
    assert run.parent.wait(PATIENCE_SECONDS) == 130 and run.saved()
    tally("stop: reader gone, no Ray", 1, 1)


def test_what_a_ctrl_c_interrupts_is_not_said_twice(folder: Path) -> None:
    """Fails with a buffer between, which keeps what was written until it hears so."""
    reader, writer = os.pipe()

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is output._Lasting.write.__code__ and event == "return":
            raise KeyboardInterrupt
        return interrupt

    with open(writer, "w") as given:
        stream = output._lasting(given, writer)
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                print("once", file=stream, flush=True)
        finally:
            sys.settrace(None)
        print("after", file=stream, flush=True)
    with open(reader) as said:
        assert said.read() == "once\nafter\n"


def test_a_reader_that_is_stuck_does_not_keep_the_driver_from_saving(folder: Path) -> None:
    """Fails if a write waits for a reader for ever. The pipe is open, and nobody takes what is in it."""
    run = StandIn(folder, "much")
    run.parent.terminate()
    assert run.parent.wait(PATIENCE_SECONDS) == 130 and run.saved()
    run.end()
    tally("stop: reader stuck, no Ray", 1, 1)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_trouble_and_no_other_file_takes_its_place(closed: str, folder: Path) -> None:
    """Fails without `_open_what_is_closed`: a stream is None, and the lock gets its number."""
    program, told = folder / "closed.py", folder / "told"
    program.write_text(CLOSED)
    command = f'exec "$@" {closed}'
    environment = os.environ | {"PYTHONPATH": str(Path(supervise.__file__).parents[2])}
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, str(program), "run", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert told.read_text() == str(folder / "driver.lock")
    tally("closed standard streams, no Ray", 1, 1)


CLOSED = """
import os
import sys
from pathlib import Path

from orchestrator.run import supervise

supervise.begin()
from orchestrator.record import lease
from orchestrator.run import output

folder = Path(sys.argv[2])
with lease.StudyLock(folder, "tiny@1") as lock:
    output.outlive_readers(folder / "driver.log")
    print("a line", flush=True)
    sys.stdin.read(0)
    (folder / "told").write_text(os.readlink(f"/proc/self/fd/{lock._file}"))
supervise.tell("left", 0)
"""
"""A driver with a lock, which notes at what file the lock's descriptor is in the end."""


def test_a_command_whose_publisher_is_killed_each_time_does_not_end_as_if_all_was_published(folder: Path) -> None:
    """Fails if the exit code says nothing of tables and report. `nice` is what starts the publisher; here it is killed."""
    study = study_with()
    go_on(study, folder / study.id)
    file, nice = folder / "tiny.yaml", folder / "nice"
    file.write_text(json.dumps(TINY))
    nice.write_text("#!/bin/sh\nkill -9 $$\n")
    nice.chmod(0o755)
    killed = emergence("run", str(file), home=folder, PATH=f"{folder}:{os.environ['PATH']}")
    assert killed.returncode == 1 and "not up to date" in killed.stdout and "not written yet" in killed.stdout, killed
    nice.unlink()
    assert emergence("run", str(file), home=folder).returncode == 0
    tally("killed: publisher, twice", 1, 1)


def test_what_is_started_shielded_holds_back_the_signals_that_stop_a_run() -> None:
    """Fails without the mask that Ray's processes inherit. The shell's child stands for a worker."""
    from orchestrator.run import machines

    with machines._children_shielded():
        child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    asked = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    try:
        assert asked <= signals_of(child.pid, "SigBlk") & signals_of(worker, "SigBlk")
        assert not asked & signals_of(os.getpid(), "SigBlk")
    finally:
        os.kill(worker, signal.SIGKILL)
        child.kill()
        child.communicate(timeout=PATIENCE_SECONDS)
