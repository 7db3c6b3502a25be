"""The journal: append-only JSON lines, the truth about a study; and the lock that lets one driver hold it.

Events carry a key; the first of a key counts, so emitting again changes nothing. What ends a trial is fsynced. MLflow and
Parquet are projections of this file (record.py) and can be rebuilt from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

Event = dict[str, Any]
SYNCED = {"trial", "trunk", "session"}
"""Kinds of events that must survive a power cut; the others are rebuilt by resuming."""
LEASE_SECONDS = 60.0
"""A driver on another machine that has not renewed its lease for this long is taken for dead."""


def home_folder() -> Path:
    """Where results live: $EMERGENCE_HOME, else ./runs."""
    return Path(os.environ.get("EMERGENCE_HOME") or "runs").expanduser().absolute()


def study_folder(study_id: str) -> Path:
    """The folder of one study at one version."""
    return home_folder() / study_id


class Journal:
    """The single writer. Appends whole lines to `journal.jsonl`; a line torn by a crash is closed off and skipped."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self._file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, events: list[Event]) -> None:
        """Append; returns after the data has reached the disk if an event ends something."""
        data = "".join(json.dumps(event, allow_nan=False) + "\n" for event in events).encode()
        while data:
            data = data[os.write(self._file, data) :]
        if any(event["kind"] in SYNCED for event in events):
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(folder: Path, start: int = 0) -> tuple[list[Event], int]:
    """Events from byte `start` on, and the byte after the last whole line. A torn line is skipped."""
    path = folder / "journal.jsonl"
    if not path.exists():
        return [], 0
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "kind" in event and "key" in event:
            events.append(event)
    return events, start + len(whole)


class State:
    """A journal in memory: what has happened to each trunk and trial. Feed it events in order, in any portions."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.study: dict[str, Any] | None = None  # the resolved study of the last session
        self.sessions: list[Event] = []
        self.evaluations: dict[str, list[Event]] = {}  # by trunk id
        self.trials: dict[str, Event] = {}  # by trial id: how it ended
        self.trunks: list[Event] = []
        self.last_time = 0.0  # of the newest event

    @classmethod
    def of(cls, folder: Path) -> State:
        """The state of a study's folder."""
        state = cls()
        state.feed(read(folder)[0])
        return state

    def feed(self, events: list[Event]) -> None:
        """Take events in; a key that is known already changes nothing."""
        for event in events:
            if event["key"] in self.keys:
                continue
            self.keys.add(event["key"])
            self.last_time = max(self.last_time, event.get("time", 0.0))
            kind = event["kind"]
            if kind == "session":
                self.sessions.append(event)
                self.study = event["study"]
            elif kind == "evaluation":
                self.evaluations.setdefault(event["trunk"], []).append(event)
            elif kind == "trial":
                ended = self.trials.get(event["trial"])
                if ended is None or ended["status"] == "failed":  # a failure may be made good later
                    self.trials[event["trial"]] = event
            elif kind == "trunk":
                self.trunks.append(event)


class StudyHeldError(Exception):
    """Another driver holds the study."""


class StudyLock:
    """One driver at a time. Held by an flock on this machine, by a renewed lease as seen from others."""

    def __init__(self, folder: Path, study_id: str) -> None:
        self.path, self.study_id = folder / "driver.lock", study_id
        self._file = -1
        self._done = threading.Event()

    def __enter__(self) -> StudyLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except OSError:
            mine = False
        holder = lock_holder(self.path.parent)
        if not mine or (holder and holder["host"] != socket.gethostname() and not _expired(holder)):
            os.close(self._file)
            who = (
                f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another process"
            )
            raise StudyHeldError(
                f"{self.study_id} is being run by {who}; watch it with 'emergence status', end it with 'emergence stop'"
            )
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._renew()
        self._renewing = threading.Thread(target=self._keep_renewing, daemon=True)
        self._renewing.start()
        return self

    def _renew(self) -> None:
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": self._since, "renewed": time.time()}
        data = json.dumps(facts).encode()
        os.pwrite(self._file, data.ljust(256), 0)

    def _keep_renewing(self) -> None:
        while not self._done.wait(LEASE_SECONDS / 4):
            self._renew()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._renewing.join()
        os.ftruncate(self._file, 0)
        os.close(self._file)


def lock_holder(folder: Path) -> dict[str, Any] | None:
    """Who holds or last held the study without letting go, as written in the lock; None if nobody."""
    try:
        holder = json.loads((folder / "driver.lock").read_text())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def is_held(folder: Path) -> bool:
    """Is a driver alive on this study? On this machine flock tells; for another one its lease does."""
    holder = lock_holder(folder)
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return not _expired(holder)
    with open(folder / "driver.lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True


def _expired(holder: dict[str, Any]) -> bool:
    return bool(time.time() - holder["renewed"] > LEASE_SECONDS)
