"""The journal: append-only JSON lines, the truth about a study.

Events carry a key; the first of a key counts, so emitting again changes nothing. What ends a trial is fsynced. Each line carries
its number, a checksum, and the lease under which it was written: a damaged or superseded line never counts, and is named.
MLflow and Parquet are projections of this file (`publisher.py`) and can be rebuilt from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from orchestrator.files import replace
from orchestrator.record.lease import LeaseLostError, StudyLock
from trainers.durable import make_folder, sync_folder

Event = dict[str, Any]
FILE = "journal.jsonl"
SYNCED = {"trial", "trunk", "session"}
"""Kinds of events that must survive a power cut; the others are rebuilt by resuming."""
INCOMPLETE = f"{FILE}: the last line is incomplete, as a crash leaves it"
"""Of a journal that a driver is writing at this moment, too."""


def home_folder() -> Path:
    """Where results live: $EMERGENCE_HOME, else ./runs."""
    return Path(os.environ.get("EMERGENCE_HOME") or "runs").expanduser().absolute()


def study_folder(study_id: str) -> Path:
    """The folder of one study at one version."""
    return home_folder() / study_id


class Journal:
    """The single writer. Appends whole lines to `journal.jsonl`; a line torn by a crash is closed off and never counts.

    With the `lock` of the study, nothing is written once that is lost.
    """

    def __init__(self, folder: Path, lock: StudyLock | None = None) -> None:
        """Raises OSError, and LeaseLostError where the lock is lost already."""
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
        """Append; returns after the data has reached the disk if an event ends something.

        Raises OSError where the disk is full, say: what did not arrive whole never counts, and the next call goes on.
        Raises LeaseLostError, having written nothing.
        """
        reader = self._reader
        if os.fstat(self._file).st_size != reader.position:  # our last write failed half-way, or somebody else wrote
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
"""What each kind of event must have. A checksum says so too; lines of earlier versions have none."""


def _line(number: int, lease: int, event: Event) -> bytes:
    """One line: the event with its number and its lease before it, and at its end a checksum over all before that."""
    body = json.dumps({"line": number, "lease": lease} | event, allow_nan=False)[:-1].encode()
    return body + f'{_SUM}{_sum(body)}"}}\n'.encode()


def _sum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=_DIGITS // 2).hexdigest()


def _event(line: bytes) -> Event | None:
    """The event of a line, its envelope included; None where the line is damaged. A line of earlier versions has no envelope."""
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
    """Reads a journal in portions and judges every line: `damage` has a sentence for each that does not count.

    A line that a crash tore is no damage: its number is given to the next one. A gap in the numbers is.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.position = self.size = 0
        """Bytes read: up to the end of the last whole line, and in all."""
        self.next_number = 1
        """Of the line that is written next."""
        self.lease = 0
        """The highest so far."""
        self.is_torn = False
        """The file ends in the middle of a line, or just before its end."""
        self.is_unended = False
        """That line lacks nothing but its end: once it is closed off it counts."""
        self.damage: list[str] = []
        self._row = 0  # as an editor counts
        self._broken: list[int] = []  # rows that are torn or damaged: the number of the next good one tells which

    def read(self) -> list[Event]:
        """The events that count since the last time. Raises OSError."""
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
        if self._broken and not self.is_torn:  # nothing came after: whatever it was, its number is not given again
            self._tell(self._broken, "damaged")
            self._broken = []
            self.next_number += 1
        return [event for _, event in found]

    def _place(self, event: Event, found: list[tuple[int, Event]]) -> int | None:
        """The number under which a sound line counts; None if it does not."""
        number, lease = event.get("line", self.next_number), event.get("lease", self.lease)
        if "line" not in event and self._broken:  # of an earlier version, whose lines have no numbers to tell which
            self._tell(self._broken, "damaged, or torn by a crash")
        if lease < self.lease:
            self._tell([self._row], "written by a driver that had lost the study")
            return None
        if number < self.next_number and lease == self.lease:
            self._tell([self._row], f"a copy of line {number}")
            return None
        if number < self.next_number:
            late = [one for one in found if one[0] >= number]
            found[:] = [one for one in found if one[0] < number]
            self._tell([self._row - 1], f"written by a driver that had lost the study ({len(late)} events)")
        elif number > self.next_number:
            self._tell(self._broken or [self._row], "damaged" if self._broken else "preceded by a line that is missing")
        self._broken = []
        self.next_number, self.lease = number + 1, lease
        return int(number)

    def _tell(self, rows: list[int], what: str) -> None:
        named = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        self.damage.append(f"{FILE}: line {named} is {what}" if len(rows) == 1 else f"{FILE}: lines {named} are {what}")

    def written(self, n_lines: int, lease: int, size: int) -> None:
        """So many sound lines were appended since the last reading, up to this size."""
        self._row += n_lines + self.is_torn
        self.next_number += n_lines + self.is_unended
        self.position = self.size = size
        self.is_torn, self.is_unended, self.lease = False, False, max(lease, self.lease)


def last_lease(folder: Path) -> int:
    """The highest lease under which a line was written; 0 where there is none. Raises OSError."""
    reader = Reader(folder)
    with contextlib.suppress(FileNotFoundError):
        reader.position = max(0, (folder / FILE).stat().st_size - _NEWEST_BYTES)
    if reader.position:
        reader.next_number = 0
        reader.read()
    if not reader.lease:  # nothing sound among the newest lines
        reader = Reader(folder)
        reader.read()
    return reader.lease


_NEWEST_BYTES = 2**20


def read(folder: Path, start: int = 0) -> tuple[list[Event], int]:
    """Events from byte `start` on, and the byte after the last whole line. Lines that do not count are left out."""
    reader = Reader(folder)
    reader.position = start
    if start:  # the numbers before are not known
        reader.next_number = 0
    return reader.read(), reader.position


def _give_checksums(path: Path) -> None:
    """Write a journal of an earlier version anew with numbers and checksums, in one rename. The old file stays beside it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    lines = [line for line in data.split(b"\n") if line]
    events = [_event(line) for line in lines]
    if not any(event is not None and "sum" not in event for event in events):
        return
    if any(event is not None and "sum" in event for event in events):
        return  # an earlier version went on with a journal of this one: its lines count, without a checksum
    sound = [event for event in events if event is not None]
    before = path.with_name(f"{path.stem}.before_checksums.jsonl")
    if not before.exists():
        replace(before, data)
    replace(path, b"".join(_line(i, 0, event) for i, event in enumerate(sound, 1)))


class State:
    """A journal in memory: all that was recorded. Feed it events in order, in any portions.

    What of it counts for a study is the matter of `recorded.py`: events of other settings may stand among them.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.study: dict[str, Any] | None = None  # the resolved study of the last session
        self.sessions: list[Event] = []
        self.evaluations: dict[str, list[Event]] = {}  # by trunk id
        self.trials: dict[str, Event] = {}  # by trial id: how it ended
        self.ends: list[Event] = []  # of trials, in order, of whatever settings
        self.trunks: list[Event] = []
        self.last_time = 0.0  # of the newest event
        self.record = ""
        """Names this journal among others of the same study: its first session."""
        self.lease = 0
        """The highest under which a line was written."""
        self.n_bytes = 0
        """Of the journal up to the end of its last whole line, where it was read whole."""
        self.damage: list[str] = []
        """A sentence for each line that does not count."""
        self._known: set[tuple[str, str | None]] = set()  # a key and the fingerprint of what made it

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
        """Take events in; a key that is known already changes nothing, unless other settings made it."""
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
            elif kind == "evaluation":
                self.evaluations.setdefault(event["trunk"], []).append(event)
            elif kind == "trial":
                self.ends.append(event)
                ended = self.trials.get(event["trial"])
                if ended is None or ended["status"] == "failed":  # a failure may be made good later
                    self.trials[event["trial"]] = event
            elif kind == "trunk":
                self.trunks.append(event)
