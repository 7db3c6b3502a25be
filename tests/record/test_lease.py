"""The lease: one driver at a time, on one machine and on several, with and without flock, and none that writes too late."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.record import journal, lease
from orchestrator.record.journal import Journal, State
from orchestrator.record.lease import LeaseLostError, StudyHeldError, StudyLock
from trainers import durable

HOLD = "import sys; from pathlib import Path; from orchestrator.record.lease import StudyLock\n" + (
    "with StudyLock(Path(sys.argv[1]), 's@1'):\n    print('held', flush=True)\n    sys.stdin.read()"
)


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def event(key: str) -> dict[str, Any]:
    return {"kind": "evaluation", "key": key, "trunk": "t", "time": 1.0}


def take(folder: Path) -> StudyLock:
    """A lock that is not let go of: its holder is as good as dead, but for the flock, which is released."""
    lock = StudyLock(folder, "s@1")
    lock.__enter__()
    return lock


def let_go_of_flock(lock: StudyLock) -> None:
    fcntl.flock(lock._file, fcntl.LOCK_UN)


def rewrite(folder: Path, **changes: Any) -> dict[str, Any]:
    holder = lease.lock_holder(folder)
    assert holder is not None
    (folder / lease.LOCK_FILE).write_text(json.dumps(holder | changes))
    return holder | changes


def date(folder: Path, seconds_from_now: float) -> None:
    os.utime(folder / lease.LOCK_FILE, times=(time.time() + seconds_from_now,) * 2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leases of a second."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)
    yield


def test_a_second_driver_is_refused_by_name_until_the_first_lets_go(tmp_path: Path) -> None:
    first = hold(tmp_path)
    assert lease.is_held(tmp_path)
    with (
        pytest.raises(StudyHeldError, match=rf"s@1 is being run by process {first.pid} on "),
        StudyLock(tmp_path, "s@1"),
    ):
        pass
    first.communicate("")
    assert not lease.is_held(tmp_path)
    with StudyLock(tmp_path, "s@1"):
        assert lease.is_held(tmp_path)
    assert not lease.is_held(tmp_path)


def test_a_killed_driver_holds_nothing(tmp_path: Path) -> None:
    first = hold(tmp_path)
    first.kill()
    first.communicate()
    assert not lease.is_held(tmp_path)
    with StudyLock(tmp_path, "s@1") as second:
        holder = lease.lock_holder(tmp_path)
        assert holder is not None and holder["pid"] == os.getpid() and second.number == 2


def test_a_driver_on_another_machine_holds_until_its_lease_runs_out(tmp_path: Path) -> None:
    other = {"host": "elsewhere", "pid": 7, "since": "today", "renewed": 0}
    (tmp_path / lease.LOCK_FILE).write_text(json.dumps(other))
    assert lease.is_held(tmp_path)
    with pytest.raises(StudyHeldError, match="process 7 on elsewhere"), StudyLock(tmp_path, "s@1"):
        pass
    date(tmp_path, -lease.LEASE_SECONDS - 1)
    assert not lease.is_held(tmp_path)
    with StudyLock(tmp_path, "s@1"):
        pass


def test_a_lock_of_the_version_before_is_read_by_its_host_and_dates(tmp_path: Path) -> None:
    first = take(tmp_path)
    old = {k: v for k, v in rewrite(tmp_path).items() if k in ("host", "pid", "since", "renewed")}
    (tmp_path / lease.LOCK_FILE).write_text(json.dumps(old))
    assert lease.is_held(tmp_path)
    let_go_of_flock(first)
    assert not lease.is_held(tmp_path)
    with StudyLock(tmp_path, "s@1", lambda: 7) as second:
        assert second.number == 8


# Time -------------------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_while_its_holder_lives(tmp_path: Path, quick: None) -> None:
    """Without the renewal another machine takes the study over after one lease; seen so."""
    with StudyLock(tmp_path, "s@1") as lock:
        beats = set()
        until = time.monotonic() + 20
        while len(beats) < 6:  # longer than a lease
            assert time.monotonic() < until, "the lease is not renewed"
            beats.add((lease.lock_holder(tmp_path) or {}).get("beat"))
            time.sleep(0.02)
        assert lease._age_seconds(lock.path) <= lease.LEASE_SECONDS
        lock.check()


def test_a_clock_that_differs_between_machines_decides_nothing(tmp_path: Path) -> None:
    """The dates inside a lock are of its holder's clock: an hour ahead or behind, it is held as long as it is renewed."""
    for renewed in (time.time() + 3600, time.time() - 3600):
        other = {"host": "elsewhere", "pid": 7, "since": "today", "renewed": renewed, "beat": 1, "lease": 3}
        (tmp_path / lease.LOCK_FILE).write_text(json.dumps(other))
        assert lease.is_held(tmp_path)


@pytest.mark.parametrize("months", [1, 1200])
def test_a_lock_dated_months_ahead_of_the_clock_is_watched_and_then_taken(
    tmp_path: Path, quick: None, months: int
) -> None:
    """Where the age alone decides, such a lock holds the study for months; seen so."""
    other = {"host": "elsewhere", "pid": 7, "since": "today", "renewed": 0, "beat": 1, "lease": 3}
    (tmp_path / lease.LOCK_FILE).write_text(json.dumps(other))
    date(tmp_path, months * 30 * 86400)
    said: list[str] = []
    assert not lease.is_held(tmp_path)
    with StudyLock(tmp_path, "s@1", say=said.append) as lock:
        assert lock.number == 4 and len(said) == 1 and "ahead of the clock" in said[0]


def test_a_lock_dated_ahead_whose_holder_lives_is_not_taken(tmp_path: Path, quick: None) -> None:
    other = {"host": "elsewhere", "pid": 7, "since": "today", "renewed": 0, "beat": 1, "lease": 3}
    path = tmp_path / lease.LOCK_FILE
    path.write_text(json.dumps(other))
    date(tmp_path, 1e6)

    def beat(line: str) -> None:
        path.write_text(json.dumps(other | {"beat": 2}))

    with pytest.raises(StudyHeldError, match="process 7 on elsewhere"), StudyLock(tmp_path, "s@1", say=beat):
        pass


def test_a_lock_of_before_a_restart_of_this_machine_holds_for_one_lease_at_most(tmp_path: Path) -> None:
    first = take(tmp_path)
    rewrite(tmp_path, boot="another start of this machine")
    let_go_of_flock(first)
    assert lease.is_held(tmp_path)  # another machine of the same name writes the same
    date(tmp_path, -lease.LEASE_SECONDS - 1)
    assert not lease.is_held(tmp_path)


# File systems without flock -------------------------------------------------------------------------------------------


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch, quick: None) -> Iterator[None]:
    """As on a file system that has none."""

    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lease.fcntl, "flock", refuse)
    yield


def test_where_the_file_system_has_no_flock_a_study_can_be_held_and_let_go(tmp_path: Path, without_flock: None) -> None:
    """Where every error of flock reads as held, nobody can run there; seen so."""
    with StudyLock(tmp_path, "s@1"):
        assert lease.is_held(tmp_path)
        with pytest.raises(StudyHeldError), StudyLock(tmp_path, "s@1"):
            pass
    assert not lease.is_held(tmp_path)


def test_without_flock_a_process_that_is_gone_holds_nothing_and_a_live_one_does(
    tmp_path: Path, without_flock: None
) -> None:
    take(tmp_path)
    date(tmp_path, -1000.0)
    assert lease.is_held(tmp_path)  # alive, if perhaps stopped for a while
    gone = subprocess.Popen(["true"])
    gone.wait()
    rewrite(tmp_path, pid=gone.pid)
    assert not lease.is_held(tmp_path)
    rewrite(tmp_path, pid=os.getpid(), started="1")  # the id was given to another process since
    assert not lease.is_held(tmp_path)


def test_without_flock_one_of_two_that_come_at_once_has_the_study(
    tmp_path: Path, without_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found the study free before either writes. Without the second look both have it; seen so."""
    other = {"host": "elsewhere", "pid": 7, "since": "today", "renewed": 0, "lease": 1}
    (tmp_path / lease.LOCK_FILE).write_text(json.dumps(other))
    date(tmp_path, -1000.0)
    held: list[StudyLock] = []
    refused: list[StudyHeldError] = []
    ready, write = threading.Barrier(2), StudyLock._write

    def write_together(lock: StudyLock, **changes: Any) -> None:
        if not lock._beat:
            ready.wait(20)
        write(lock, **changes)

    monkeypatch.setattr(StudyLock, "_write", write_together)

    def come() -> None:
        lock = StudyLock(tmp_path, "s@1")
        try:
            lock.__enter__()
            held.append(lock)
        except StudyHeldError as problem:
            refused.append(problem)

    comers = [threading.Thread(target=come) for _ in range(2)]
    for comer in comers:
        comer.start()
    for comer in comers:
        comer.join()
    assert (len(held), len(refused)) == (1, 1)
    held[0].check()


# Too late -------------------------------------------------------------------------------------------------------------


def test_a_holder_that_lost_its_lease_writes_nothing_more(tmp_path: Path, quick: None) -> None:
    """Without the check before each write the late events stand in the journal; seen so."""
    late = take(tmp_path)
    log = Journal(tmp_path, late)
    log.append([event("in time")])
    let_go_of_flock(late)
    rewrite(tmp_path, host="elsewhere", token="another's")
    date(tmp_path, -1000.0)
    with StudyLock(tmp_path, "s@1") as lock:
        new = Journal(tmp_path, lock)
        new.append([event("new")])
        with pytest.raises(LeaseLostError, match=r"no longer holds the study.*names process"):
            log.append([event("too late")])
        new.append([event("newer")])
        late._renewing.join(20)  # it has seen that it is no longer meant
        assert not late._renewing.is_alive()
        lock.check()
    state = State.of(tmp_path)
    assert state.keys == {"in time", "new", "newer"} and state.damage == []


def test_a_line_of_an_older_lease_never_counts_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks and the write are two moments. Without numbers of leases in the lines the late event counts; seen so."""
    late = take(tmp_path)
    log = Journal(tmp_path, late)
    log.append([event("in time")])
    let_go_of_flock(late)
    rewrite(tmp_path, host="elsewhere")
    date(tmp_path, -1000.0)
    with StudyLock(tmp_path, "s@1") as lock:
        new = Journal(tmp_path, lock)
        monkeypatch.setattr(late, "check", lambda: None)
        monkeypatch.setattr(log, "_check_lease", lambda: None)
        log.append([event("before the new holder wrote")])
        new.append([event("new")])
        log._reader = journal.Reader(tmp_path)  # it has seen nothing of that
        log._reader.written(2, 1, log.path.stat().st_size)
        log.append([event("too late")])
        assert State.of(tmp_path).keys == {"in time", "before the new holder wrote", "new"}
        new.append([event("newer")])
    state = State.of(tmp_path)
    assert state.keys == {"in time", "before the new holder wrote", "new", "newer"}
    assert len(state.damage) == 1 and "lost the study" in state.damage[0]


def test_of_two_lines_with_one_number_that_of_the_higher_lease_counts(tmp_path: Path) -> None:
    """The late one came between the new holder's look at the file and its write."""
    lines = [(1, 1, "in time"), (2, 1, "between"), (2, 2, "new"), (3, 2, "newer")]
    data = b"".join(journal._line(number, lease, event(key)) for number, lease, key in lines)
    (tmp_path / journal.FILE).write_bytes(data)
    state = State.of(tmp_path)
    assert state.keys == {"in time", "new", "newer"}
    assert len(state.damage) == 1 and "lost the study" in state.damage[0]


def test_a_lock_file_that_was_removed_stops_its_holder_before_it_writes(tmp_path: Path) -> None:
    lock = take(tmp_path)
    log = Journal(tmp_path, lock)
    lock.path.unlink()
    with pytest.raises(LeaseLostError, match="names nobody"):
        log.append([event("a")])


def test_leases_are_numbered_on_where_the_lock_file_was_lost(tmp_path: Path) -> None:
    for _ in range(3):
        with StudyLock(tmp_path, "s@1", lambda: State.of(tmp_path).lease) as lock:
            Journal(tmp_path, lock).append([event(f"under {lock.number}")])
    (tmp_path / lease.LOCK_FILE).unlink()
    with StudyLock(tmp_path, "s@1", lambda: State.of(tmp_path).lease) as lock:
        assert lock.number == 4


def test_a_lock_file_older_than_the_journal_gives_no_number_twice(tmp_path: Path) -> None:
    """Somebody copied a newer journal into this home. Where the lock's number alone counts, all that the new driver writes
    stands under an older lease and never counts; seen so."""
    for _ in range(3):
        with StudyLock(tmp_path, "s@1", lambda: State.of(tmp_path).lease) as lock:
            Journal(tmp_path, lock).append([event(f"under {lock.number}")])
    older = json.loads((tmp_path / lease.LOCK_FILE).read_text()) | {"lease": 1}
    (tmp_path / lease.LOCK_FILE).write_text(json.dumps(older))
    with StudyLock(tmp_path, "s@1", lambda: State.of(tmp_path).lease) as lock:
        Journal(tmp_path, lock).append([event("newest")])
        assert lock.number == 4
    assert "newest" in State.of(tmp_path).keys and State.of(tmp_path).damage == []


def test_a_holder_that_took_its_lock_back_is_told_by_the_journal(tmp_path: Path) -> None:
    """It slept between looking at the lock and renewing it: the lock names it again. Without the look at who wrote in the
    journal its lines go on and never count; seen so."""
    late = take(tmp_path)
    log = Journal(tmp_path, late)
    log.append([event("in time")])
    mine = (tmp_path / lease.LOCK_FILE).read_bytes()
    let_go_of_flock(late)
    rewrite(tmp_path, host="elsewhere")
    date(tmp_path, -1000.0)
    with StudyLock(tmp_path, "s@1", lambda: State.of(tmp_path).lease) as lock:
        Journal(tmp_path, lock).append([event("new")])
    (tmp_path / lease.LOCK_FILE).write_bytes(mine)
    with pytest.raises(LeaseLostError, match="another driver has written"):
        log.append([event("too late")])
    with pytest.raises(LeaseLostError, match="another driver has written"):
        Journal(tmp_path, late)
    assert State.of(tmp_path).keys == {"in time", "new"}


def test_somebody_who_looks_at_a_study_keeps_nobody_from_running_it(tmp_path: Path) -> None:
    """`emergence status` takes the flock for a moment. Without a second try runs are refused, naming a dead process; seen so."""
    first = hold(tmp_path)
    first.kill()
    first.communicate()
    with open(tmp_path / lease.LOCK_FILE, "rb") as file:
        assert lease.flock(file.fileno(), fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (file.fileno(), fcntl.LOCK_UN)).start()
        with StudyLock(tmp_path, "s@1"):
            pass


def test_a_lock_reaches_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines read it there. Without the fsync this fails; seen so."""
    synced: list[str] = []
    monkeypatch.setattr(lease.os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    with StudyLock(tmp_path, "s@1") as lock:
        assert synced == [str(lock.path)]


def test_a_zombie_holds_nothing_without_flock(tmp_path: Path, without_flock: None) -> None:
    """In containers whose first process reaps nobody. Where a zombie counts as alive this fails."""
    take(tmp_path)
    child = subprocess.Popen(["sleep", "60"])
    rewrite(tmp_path, pid=child.pid, started=durable.started(child.pid))
    assert lease.is_held(tmp_path)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
    assert not lease.is_held(tmp_path)
    child.wait()
