"""The journal: append-only JSON lines, the truth about a study.

Events carry a key, and the first event of a key counts, so emitting it again changes nothing. An event that ends a
trial is fsynced. Each line carries its number, a checksum and the lease under which it was written. A damaged or
superseded line never counts, and is reported. MLflow and Parquet are projections of this file (`publisher.py`) and can
be rebuilt from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from orchestrator.files import home_folder, replace
from orchestrator.record.lease import LeaseLostError, StudyLock
from trainers.durable import make_folder, sync_folder

Event = dict[str, Any]
FILE = "journal.jsonl"
SYNCED = {"trial", "trunk", "session"}
"""Kinds of events that must survive a power cut. A resumed run emits the others again."""
INCOMPLETE = f"{FILE}: the last line is incomplete, as after a crash"
"""Also true of a journal that a driver is writing at this moment."""


def study_folder(study_id: str) -> Path:
    """The folder of one study at one version."""
    return home_folder() / study_id


class Journal:
    """The single writer. Appends whole lines to `journal.jsonl`. A line torn by a crash is closed and never counts.

    With the study's `lock`, nothing is written once the lock is lost.
    """

    def __init__(self, folder: Path, lock: StudyLock | None = None) -> None:
        """Raises OSError, and LeaseLostError if the lock is lost already."""
        make_folder(folder)
        self.path, self._lock = folder / FILE, lock
        if lock is not None:
            lock.check()
        _give_checksums(self.path)
        is_new = not self.path.exists()
        self._file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        if is_new:
            sync_folder(folder)
        self._reader = Reader(folder)
        self._reader.read()
        self._check_lease()

    def append(self, events: list[Event]) -> None:
        """Append events. If one is of a SYNCED kind, return only when all are on the disk.

        Raises OSError, for example on a full disk: partly written events never count, and the next call continues.
        Raises LeaseLostError before anything is written.
        """
        reader = self._reader
        if os.fstat(self._file).st_size != reader.position:  # our last write failed half-way, or another process wrote
            reader.read()
        if self._lock is not None:
            self._lock.check()
        self._check_lease()
        lease = self._lock.number if self._lock else reader.lease
        first = reader.next_number + reader.is_unended
        data = b"".join(_line(first + i, lease, event) for i, event in enumerate(events))
        if reader.is_torn:
            data = b"\n" + data
        size = reader.size + len(data)
        while data:
            data = data[os.write(self._file, data) :]
        if any(event["kind"] in SYNCED for event in events):
            os.fsync(self._file)
        reader.written(len(events), lease, size)

    def _check_lease(self) -> None:
        if self._lock is not None and self._reader.lease > self._lock.number:
            raise LeaseLostError(f"{self.path}: another driver has written here since this one took the study")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


# Lines --------------------------------------------------------------------------------------------------------------

_SUM = ', "sum": "'
_DIGITS = 16
_TAIL = len(_SUM) + _DIGITS + len('"}')
_ENVELOPE = ("line", "lease", "sum")
_KEYS = {
    "session": {"session", "study", "time"},
    "evaluation": {"trunk", "on", "step", "flops", "train_loss_nats", "rows", "time"},
    "trial": {"trial", "trunk", "status", "time"},
    "trunk": {"trunk", "time"},
}
"""Keys that each kind of event must have. Lines of earlier versions have no checksum, so this is their only check."""


def _line(number: int, lease: int, event: Event) -> bytes:
    """One line: number, lease, the event, and a checksum over everything before it."""
    body = json.dumps({"line": number, "lease": lease} | event, allow_nan=False)[:-1].encode()
    return body + f'{_SUM}{_sum(body)}"}}\n'.encode()


def _sum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=_DIGITS // 2).hexdigest()


def _event(line: bytes) -> Event | None:
    """The event of a line, with its number, lease and checksum; None if damaged. A line of an earlier version has none of the three."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not {"kind", "key"} <= event.keys():
        return None
    if not any(name in event for name in _ENVELOPE):
        return event if _KEYS.get(event["kind"], set()) <= event.keys() else None
    body, tail = line[:-_TAIL], line[-_TAIL:]
    if tail != f'{_SUM}{_sum(body)}"}}'.encode() or not all(name in event for name in _ENVELOPE):
        return None
    return event


class Reader:
    """Reads a journal in portions and checks every line. `damage` has a sentence for each line that does not count.

    A line torn by a crash is no damage, because the next line takes its number. A gap in the numbers is damage.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.position = self.size = 0
        """Bytes read, up to the end of the last whole line and in total."""
        self.next_number = 1
        """Number of the next line to be written."""
        self.lease = 0
        """The highest lease so far."""
        self.is_torn = False
        """The file does not end with a newline."""
        self.is_unended = False
        """The torn line lacks only its newline: once that is added, the line counts."""
        self.damage: list[str] = []
        self._row = 0  # line number in an editor
        self._broken: list[int] = []  # rows that are torn or damaged; the number of the next sound row decides which

    def read(self) -> list[Event]:
        """The counting events since the last call. Raises OSError."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.size = self.position + len(data)
        self.is_torn = len(whole) < len(data)
        self.is_unended = self.is_torn and _event(data[len(whole) :]) is not None
        self.position += len(whole)
        found: list[tuple[int, Event]] = []
        for line in whole.split(b"\n")[:-1]:
            self._row += 1
            event = _event(line)
            if event is None:
                self._broken += [self._row] if line else []
            elif (place := self._place(event, found)) is not None:
                found.append((place, {k: v for k, v in event.items() if k not in _ENVELOPE}))
        if self._broken and not self.is_torn:  # no line follows, and the next one will not take its number
            self._report(self._broken, "damaged")
            self._broken = []
            self.next_number += 1
        return [event for _, event in found]

    def _place(self, event: Event, found: list[tuple[int, Event]]) -> int | None:
        """The number of a sound line, or None if the line does not count."""
        number, lease = event.get("line", self.next_number), event.get("lease", self.lease)
        if "line" not in event and self._broken:  # lines of earlier versions have no numbers to decide with
            self._report(self._broken, "damaged, or torn by a crash")
        if lease < self.lease:
            self._report([self._row], "written by a driver that had lost the study")
            return None
        if number < self.next_number and lease == self.lease:
            self._report([self._row], f"a copy of line {number}")
            return None
        if number < self.next_number:
            n_late = sum(n >= number for n, _ in found)
            found[:] = [(n, earlier) for n, earlier in found if n < number]
            self._report([self._row - 1], f"written by a driver that had lost the study ({n_late} events)")
        elif number > self.next_number:
            problem = "damaged" if self._broken else "preceded by a line that is missing"
            self._report(self._broken or [self._row], problem)
        self._broken = []
        self.next_number, self.lease = number + 1, lease
        return int(number)

    def _report(self, rows: list[int], problem: str) -> None:
        named = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        self.damage.append(f"{FILE}: line{f' {named} is' if len(rows) == 1 else f's {named} are'} {problem}")

    def written(self, n_lines: int, lease: int, size: int) -> None:
        """Note that `n_lines` sound lines were appended since the last read, up to this file size."""
        self._row += n_lines + self.is_torn
        self.next_number += n_lines + self.is_unended
        self.position = self.size = size
        self.is_torn, self.is_unended, self.lease = False, False, max(lease, self.lease)


def read(folder: Path, start: int = 0) -> tuple[list[Event], int]:
    """Events from byte `start` on, and the byte after the last whole line. Lines that do not count are left out."""
    reader = Reader(folder)
    reader.position = start
    if start:  # the earlier numbers are not known
        reader.next_number = 0
    return reader.read(), reader.position


def _give_checksums(path: Path) -> None:
    """Add numbers and checksums to a journal of an earlier version, in one rename. The old file stays beside it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    lines = [line for line in data.split(b"\n") if line]
    events = [_event(line) for line in lines]
    if not any(event is not None and "sum" not in event for event in events):
        return
    if any(event is not None and "sum" in event for event in events):
        return  # an earlier version continued a journal of this version: its lines count without a checksum
    sound = [event for event in events if event is not None]
    before = path.with_name(f"{path.stem}.before_checksums.jsonl")
    if not before.exists():
        replace(before, data)
    replace(path, b"".join(_line(i, 0, event) for i, event in enumerate(sound, 1)))


class State:
    """Everything recorded in a journal, in memory. Feed it events in order, in any portions.

    It may hold events of other settings; `recorded.py` decides which of them count for a study.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.study: dict[str, Any] | None = None  # the resolved study of the last session
        self.sessions: list[Event] = []
        self.session_ends: dict[str, Event] = {}  # by session; a killed one has none
        self.evaluations: dict[str, list[Event]] = {}  # by trunk id
        self.telemetry: dict[str, list[Event]] = {}  # by trunk id; events may share points (`recorded.trial_telemetry`)
        self.tasks: dict[str, list[Event]] = {}  # by trunk id: its training tasks by name, of families that name them
        self.trials: dict[str, Event] = {}  # by trial id: how it ended
        self.ends: list[Event] = []  # ends of trials in order, of all settings
        self.last_time = 0.0  # of the newest event
        self.record = ""
        """Identifies this journal among others of the same study: its first session."""
        self.lease = 0
        """The highest lease of a line."""
        self.n_bytes = 0
        """Size of the journal up to the end of its last whole line, if it was read from its start."""
        self.damage: list[str] = []
        """A sentence for each line that does not count."""
        self._known: set[tuple[str, str | None]] = set()  # (key, fingerprint of the spec)

    @classmethod
    def of(cls, folder: Path) -> State:
        """The state of a study's folder."""
        state, reader = cls(), Reader(folder)
        state.feed(reader.read())
        state.damage, state.n_bytes, state.lease = reader.damage, reader.position, reader.lease
        if reader.is_torn:
            state.damage.append(INCOMPLETE)
        return state

    def feed(self, events: list[Event]) -> None:
        """Add events. A known key changes nothing, unless other settings made the event."""
        for event in events:
            known = event["key"], event.get("fingerprint")
            if known in self._known:
                continue
            self._known.add(known)
            self.keys.add(event["key"])
            self.last_time = max(self.last_time, event.get("time", 0.0))
            self.record = self.record or event.get("record") or event.get("session", "")
            kind = event["kind"]
            if kind == "session":
                self.sessions.append(event)
                self.study = event["study"]
            elif kind == "session_end":
                self.session_ends[event["session"]] = event
            elif kind == "evaluation":
                self.evaluations.setdefault(event["trunk"], []).append(event)
            elif kind == "telemetry":
                self.telemetry.setdefault(event["trunk"], []).append(event)
            elif kind == "tasks":
                self.tasks.setdefault(event["trunk"], []).append(event)
            elif kind == "trial":
                self.ends.append(event)
                ended = self.trials.get(event["trial"])
                if ended is None or ended["status"] == "failed":  # a failed trial may succeed later
                    self.trials[event["trial"]] = event
