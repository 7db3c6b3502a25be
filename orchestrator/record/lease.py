"""The lease: one driver holds a study at a time. A driver that has lost it stops before it writes.

On one machine flock decides. Other machines see a lease that the holder renews. Its age is measured by the clock of the
file system: the machines need not agree on the time. Each lease has a number higher than all before it. Every journal
line carries the number, so a line of a superseded holder never counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from trainers import durable

LOCK_FILE = "driver.lock"
LEASE_SECONDS = 60.0
"""A driver on another machine that has not renewed its lease for this long counts as dead."""
SETTLE_SECONDS = 1.0
"""Without flock, the lock is read again after this time. Of two drivers that wrote it, the later one holds it."""
LOOK_SECONDS = 1.0
"""A held flock is tried again for this long: `emergence status` takes it for a moment to see whether it is free."""
CLOCK_SECONDS = 5.0
"""A lock dated further ahead than this has a useless date: a clock or the file's date was changed."""
_LOCK_BYTES = 512  # size of the lock, always written whole
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class StudyHeldError(Exception):
    """Another driver holds the study."""


class LeaseLostError(Exception):
    """This driver held the study and lost it."""


@cache
def here() -> dict[str, str]:
    """This machine since its last boot: host name, boot id, and the namespace of its process ids."""
    return {"host": socket.gethostname(), "boot": durable.boot(), "pids": durable.process_space()}


class StudyLock:
    """Holds a study; a context manager. `number` is the lease's number. `check` raises once the lease is lost."""

    def __init__(
        self,
        folder: Path,
        study_id: str,
        last_lease: Callable[[], int] = lambda: 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`last_lease()` is the journal's highest lease: the lock file may be lost or foreign. `say` reports waiting."""
        self.path, self.study_id, self.number = folder / LOCK_FILE, study_id, 0
        self._last_lease, self._say = last_lease, say
        self._token, self._beat = uuid.uuid4().hex, 0
        self._file = -1
        self._done = threading.Event()

    def __enter__(self) -> StudyLock:
        """Raises StudyHeldError if another driver is alive, and OSError if the lock cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._renewing = threading.Thread(target=self._keep_renewing, daemon=True)
        self._renewing.start()
        return self

    def _take(self) -> None:
        until = time.monotonic() + LOOK_SECONDS
        while (free := flock(self._file, fcntl.LOCK_EX)) is False and time.monotonic() < until:
            time.sleep(0.05)
        before = _read(self.path)
        if free is False or (before and _is_alive(before, self.path, free, self._say)):
            raise StudyHeldError(self._refusal(before))
        self.number = 1 + max((before or {}).get("lease", 0), self._last_lease())
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._write()
        if free is None:
            time.sleep(SETTLE_SECONDS)
            if not self._is_mine():
                raise StudyHeldError(self._refusal(_read(self.path)))

    def _refusal(self, holder: dict[str, Any] | None) -> str:
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another process"
        return f"{self.study_id} is being run by {who}; watch it with 'emergence status', end it with 'emergence stop'"

    def check(self) -> None:
        """Raises LeaseLostError if another driver took over or the lock file is gone."""
        if not any(self._is_mine(pause) for pause in (0.0, 0.1, 0.5)):  # a file server may be away for a moment
            holder = _read(self.path)
            named = f"process {holder['pid']} on {holder['host']}" if holder else "nobody"
            raise LeaseLostError(
                f"{self.study_id}: this driver no longer holds the study: {self.path} names {named}; nothing more is written here"
            )

    def _is_mine(self, pause_seconds: float = 0.0) -> bool:
        time.sleep(pause_seconds)
        return (_read(self.path) or {}).get("token") == self._token

    def _write(self, **changes: Any) -> None:
        self._beat += 1
        facts: dict[str, Any] = here() | {
            "pid": os.getpid(),
            "started": durable.started(os.getpid()),
            "since": self._since,
        }
        facts |= {"renewed": time.time(), "beat": self._beat, "lease": self.number, "token": self._token} | changes
        os.pwrite(self._file, json.dumps(facts).encode().ljust(_LOCK_BYTES), 0)
        os.fsync(self._file)  # else other machines may see it late

    def _keep_renewing(self) -> None:
        while not self._done.wait(LEASE_SECONDS / 4):
            with contextlib.suppress(OSError):  # a file server may be away for a moment: try again
                looked_at = time.monotonic()
                if not self._is_mine():
                    return  # `check` raises before the next write
                if time.monotonic() - looked_at < LEASE_SECONDS / 4:  # after a slow read it may be lost: read again
                    self._write()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._renewing.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._write(renewed=0, released=True)
        os.close(self._file)


def lock_holder(folder: Path) -> dict[str, Any] | None:
    """The facts of the driver that holds the study, or held it without releasing it; None if there is none."""
    holder = _read(folder / LOCK_FILE)
    return None if holder is None or holder.get("released") else holder


def is_held(folder: Path) -> bool:
    """Whether a living driver holds this study. Never waits: a lock dated ahead of the clock counts as free."""
    path = folder / LOCK_FILE
    holder = lock_holder(folder)
    if holder is None:
        return False
    try:
        with open(path, "rb") as file:
            free = flock(file.fileno(), fcntl.LOCK_SH)
    except OSError:
        free = None
    return free is False or _is_alive(holder, path, free, None)


def _read(path: Path) -> dict[str, Any] | None:
    """The lock's facts; None if there is no lock or it names no holder."""
    try:
        holder = json.loads(path.read_bytes() or b"null")
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"host", "pid", "since"} <= holder.keys() else None


def flock(file: int, how: int) -> bool | None:
    """Take an flock: True if it was free, False if another process has it, None if the file system has no flock."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as problem:
        return False if problem.errno in _TAKEN else None
    return True


def _is_alive(holder: dict[str, Any], path: Path, free: bool | None, say: Callable[[str], None] | None) -> bool:
    """Whether the holder in a lock is alive. `free` is flock's answer. With `say`, waits if the dates do not decide."""
    if holder.get("released"):
        return False
    if holder["host"] == here()["host"] and holder.get("boot", here()["boot"]) == here()["boot"]:
        if free is not None:
            return not free
        if holder.get("pids", "") == here()["pids"]:
            return durable.lives(holder["pid"], holder.get("started"))
    age = _age_seconds(path)
    if age >= -CLOCK_SECONDS:
        return age <= LEASE_SECONDS
    if say is None:
        return False
    say(f"The lock of {path.parent.name} is dated ahead of the clock; watching it for {LEASE_SECONDS / 2:.0f} s ...")
    until = time.monotonic() + LEASE_SECONDS / 2
    while time.monotonic() < until:
        if (_read(path) or {}).get("beat") != holder.get("beat"):
            return True
        time.sleep(LEASE_SECONDS / 120)
    return False


def _age_seconds(path: Path) -> float:
    """Seconds since the lock was written, by the file system's clock. If the folder cannot be written, our clock counts."""
    written = path.stat().st_mtime
    probe = path.with_name(f".{LOCK_FILE}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - written
