"""Checkpoints: atomic save and validated load, in a folder of this machine or on any storage that pyarrow.fs can write to.

DeepSpeed's own `latest` file can name a half-written checkpoint. So this module writes all files itself, and the manifest with
sizes and hashes last. On a local file system it writes to a temporary folder, syncs it and then renames it. An object store
has no rename: there a folder counts only with its manifest. A load takes the newest checkpoint whose files match its manifest.
Two are kept. Tensors are safetensors, which hold no code. torch is imported only to read or write tensors, because a plan
looks at checkpoints too.

A checkpoint may come from a stranger. Its manifest can name only files of its own folder, and names must match a pattern. No
link is followed. No file is parsed before its size and hash match the manifest. The content must have the form that a trainer
writes. Anything else does not count as a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field, model_validator

from trainers import durable
from trainers.records import NotNegative, Positive, Record

if TYPE_CHECKING:
    import torch

KEEP = 2
"""Number of checkpoints that stay in a folder after a save: the new one and the one before it."""
TENSORS = ".safetensors"
"""Ending of the names of files with tensors."""
MANIFEST, META = "manifest.json", "meta.json"
MANIFEST_BYTES = 2**16
"""A larger manifest is invalid and not read. One for three files takes 400 bytes."""
PROBE = ".writable"
"""`check_writable` writes a file whose name begins with this."""
GIVE_UP_SECONDS = 30
"""Time limit for retries on Google's storage. The client's own limit is 15 minutes. `?retry_limit_seconds=` in a URI wins."""
Tensors = dict[str, "torch.Tensor"]
"""Weights and moments by name, as `Engine.snapshot` returns them."""
Meta = dict[str, Any]
"""JSON of the form `Progress`."""
Loaded = tuple[Meta, dict[str, Tensors]]
"""A checkpoint's content: its meta, and tensors by part.

The part `live` is the state that trains. During a branch, `left` is the state of the trunk at the branch point."""

CURVES = ("loss_nats", "learning_rate", "grad_norm", "tokens_per_second", "mfu")
"""Values of a point of telemetry."""
POINT = ("steps", "times", *CURVES)
"""Lists of a telemetry event, one entry per point. Here, the order of a point's numbers."""
SYSTEM_FIELDS = ("cpu_percent", "memory_mb", "gpu_percent", "gpu_memory_mb")
"""Numbers of a worker's sample in a telemetry event. CPU: 100 is one busy core. Memory: resident, and reserved by torch, in
10^6 bytes.

The use of the GPU comes from NVML (package nvidia-ml-py). It is unknown without that, and without the right to ask.
"""

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class File(Record, extra="ignore"):
    """A manifest's entry for one file."""

    bytes: Whole
    """Size of the file."""
    sha256: str
    """Hash of its content, as hex digits."""


class Manifest(Record, extra="ignore"):
    """Content of `manifest.json`, which is written last. A folder without a valid one is no checkpoint."""

    fingerprint: str
    """Fingerprint of the trunk."""
    number: Whole
    """Number of the checkpoint, equal to its folder's name."""
    files: dict[Annotated[str, Field(pattern=r"^(meta\.json|[a-z_]{1,32}\.safetensors)$")], File]
    """All other files of the checkpoint, by name."""

    @model_validator(mode="after")
    def _has_meta(self) -> Manifest:
        if META not in self.files:
            raise ValueError(f"{META} is missing")
        return self


class Emitted(Record, extra="ignore"):
    """An event that was emitted before the save. Only these two of its keys are checked."""

    kind: str
    """`evaluation`, `telemetry`, `trial` or `trunk`."""
    key: str
    """Identity of the event: a resumed run emits it with the same key."""


class Left(Record, extra="ignore"):
    """The progress of the trunk at the branch point, saved during a branch."""

    step: Whole
    """Step on the trunk or branch, counted from the start of the trunk."""
    loss_sum: Finite
    """Sum of the training losses of the steps since the last evaluation on the grid or since the decay began, in nats."""
    loss_n: Whole
    """Number of these steps."""
    sampled: dict[str, Any] = Field(default={})
    """Sums and transcripts of the answers that were sampled in these steps. Older versions have none."""


class Now(Left, extra="ignore"):
    """The present progress of a trunk or of its branch (`train.run_trunk`)."""

    branch: Positive | None
    """Budget of the branch that is being trained. None on the trunk."""
    ended: list[Positive]
    """Budgets whose trials have ended."""
    exams: list[str]
    """Keys of the evaluations already made: `trunk/<step>`, `<budget>/<step>`."""
    events: list[Emitted]
    """All events emitted so far. A resumed run emits them again."""
    resumed: Whole
    """How often the run was resumed from a checkpoint."""
    saves: Whole
    """Number of the last checkpoint."""
    points: list[Annotated[list[Finite | None], Field(min_length=len(POINT), max_length=len(POINT))]] = Field(
        default=[]
    )
    """Telemetry of the trunk or branch that is not emitted yet (`POINT`). Older versions have none."""
    steps_charged: Whole
    """Optimizer steps since the last trial ended. The next trial is charged with them, as with the next three numbers."""
    exams_charged: Whole
    """Evaluations since the last trial ended."""
    train_seconds: NotNegative
    """Seconds of training since the last trial ended."""
    eval_seconds: NotNegative
    """Seconds of evaluation since the last trial ended."""


class Progress(Record, extra="ignore"):
    """The form that the `meta` of a checkpoint must have."""

    now: Now
    left: Left | dict[str, Any]
    """{} on the trunk."""

    @model_validator(mode="after")
    def _left_for_a_branch(self) -> Progress:
        if self.now.branch is None and self.left == {}:
            return self
        if self.now.branch is not None and isinstance(self.left, Left):
            return self
        raise ValueError("a branch needs the place where the trunk was left, and the trunk none")


def save(folder: str | Path, number: int, fingerprint: str, meta: Meta, tensors: dict[str, Tensors]) -> str:
    """Write checkpoint `number` under `folder`, a path or URI. Returns the name of its subfolder once it survives a power cut.

    `meta` is JSON of the form `Progress`. `tensors` maps a part (`Loaded`) to its tensors. Each part becomes one file. A valid
    checkpoint of this fingerprint is never overwritten: if this number has one, the next number is taken. Older checkpoints
    than the last two are deleted. Raises OSError in one line (disk full, no permission). Older checkpoints are then still
    whole.
    """
    from safetensors.torch import save as as_bytes

    try:
        store = store_of(folder)
        taken = set(_numbered(store))
        while _name(number) in taken and not _is_damaged(store, _name(number), fingerprint):
            number += 1  # it may belong to a run that was taken for dead; a failed write must not destroy it
        name = _name(number)
        files = {META: json.dumps(meta).encode()}
        files |= {f"{part}{TENSORS}": as_bytes(of_part) for part, of_part in tensors.items()}
        facts = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
        manifest = {"fingerprint": fingerprint, "number": number, "files": facts}
        store.put(name, files | {MANIFEST: json.dumps(manifest).encode()})
    except OSError as problem:
        raise _in_one_line(f"{folder}: checkpoint {number} cannot be written", problem) from problem
    with contextlib.suppress(OSError):  # the checkpoint is durable; the next save removes what this one cannot
        names = _numbered(store)
        for other in [n for n in names if n <= name][:-KEEP]:
            store.remove(other)
        for other in (n for n in names if n > name):  # a valid one belongs to another run that is further on: leave it
            if _is_damaged(store, other, fingerprint):
                store.remove(other)
    return name


def load(folder: str | Path, fingerprint: str, number: int | None = None) -> Loaded | None:
    """The newest valid checkpoint of this fingerprint; None if there is none. If `number` is given, only that one is tried.

    Raises OSError if checkpoint `number` cannot be read. Without a number, it raises OSError if no checkpoint is valid and some
    cannot be read: they may still be whole, and no run should start again because a disk was away for a moment.
    """
    store = store_of(folder)
    if number is not None:
        return _look(store, _name(number), fingerprint)
    numbered = _newest(store, fingerprint)
    return numbered[1] if numbered else None


def newest(folder: str | Path, fingerprint: str) -> int | None:
    """The number of the newest valid checkpoint of this fingerprint; None if there is none. Raises OSError as `load` does."""
    numbered = _newest(store_of(folder), fingerprint)
    return int(numbered[0]) if numbered else None


def numbers(folder: str | Path) -> list[int]:
    """The numbers of all checkpoints, valid or not, ascending. Raises OSError if the folder cannot be read."""
    return [int(name) for name in _numbered(store_of(folder))]


def is_anothers(folder: str | Path, fingerprint: str, number: int) -> bool:
    """Does the manifest of checkpoint `number` name another fingerprint? Then it belongs to another trunk and is not damaged.

    False if the manifest cannot be read or is invalid.
    """
    try:
        manifest = _manifest(store_of(folder), _name(number))
    except (OSError, ValueError, RecursionError):
        return False
    return manifest.fingerprint != fingerprint


def peek(folder: str | Path, fingerprint: str) -> Meta | None:
    """The `meta` that `load` would return, without reading tensors. Only their sizes are checked.

    None also if no checkpoint can be read. A plan is an estimate; a run will report the error.
    """
    try:
        numbered = _newest(store_of(folder), fingerprint, tensors=False)
    except OSError:
        return None
    return numbered[1][0] if numbered else None


def check_writable(folder: str | Path) -> None:
    """Write a file of one byte into the folder and delete it. Raises OSError if that fails, ValueError for an unknown URI."""
    store, probe = store_of(folder), f"{PROBE}-{uuid.uuid4().hex}"  # another run may probe at the same moment
    store.put_file(probe, b"1")
    store.remove_file(probe)


def discard(folder: str | Path) -> None:
    """Delete the checkpoints in `folder`, and no other file there. Raises OSError if the folder cannot be read."""
    store = store_of(folder)
    for name in _numbered(store):
        store.remove(name)


def clear(folder: str | Path) -> int:
    """Delete `folder` and everything in it. Returns the number of bytes that its files had."""
    store = store_of(folder)
    n_bytes = store.n_bytes()
    store.remove("")
    return n_bytes


def _newest(store: Store, fingerprint: str, tensors: bool = True) -> tuple[str, Loaded] | None:
    """(name, content) of the newest valid checkpoint; None if there is none. `tensors` and the errors are as in `_look`.

    A checkpoint that cannot be read raises its OSError only if no other one is valid.
    """
    unreadable: OSError | None = None
    for name in reversed(_numbered(store)):
        try:
            loaded = _look(store, name, fingerprint, tensors)
        except OSError as problem:
            unreadable = unreadable or problem
            continue
        if loaded:
            return name, loaded
    if unreadable:
        raise unreadable
    return None


def _is_damaged(store: Store, name: str, fingerprint: str) -> bool:
    """Is it certain that this is no valid checkpoint of this fingerprint? False for one that cannot be read now."""
    try:
        return _look(store, name, fingerprint) is None
    except OSError:
        return False


def _look(store: Store, name: str, fingerprint: str, tensors: bool = True) -> Loaded | None:
    """The content of a checkpoint. None if it has another fingerprint, or any size, hash or form is wrong.

    Without `tensors` only their sizes are checked. Raises OSError if a file cannot be read.
    """
    try:
        manifest = _manifest(store, name)
        if (manifest.fingerprint, _name(manifest.number)) != (fingerprint, name):
            return None
        data: dict[str, bytes] = {}
        for file, facts in manifest.files.items():
            if store.size(name, file) != facts.bytes:  # checked before memory is allocated
                return None
            if file == META or tensors:
                data[file] = store.read(name, file)
                if hashlib.sha256(data[file]).hexdigest() != facts.sha256:
                    return None
        meta = json.loads(data.pop(META))
        Progress.model_validate(meta)
        return meta, {file.removesuffix(TENSORS): _tensors(content) for file, content in data.items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def _manifest(store: Store, name: str) -> Manifest:
    """The manifest of a checkpoint.

    Raises OSError if it cannot be read, ValueError if it is invalid, RecursionError if it is nested too deeply.
    """
    if store.size(name, MANIFEST) > MANIFEST_BYTES:
        raise ValueError(f"{MANIFEST} is too large")
    return Manifest.model_validate(json.loads(store.read(name, MANIFEST), object_pairs_hook=_once))


def _tensors(data: bytes) -> Tensors:
    """The tensors in the bytes of a safetensors file. Raises ValueError if they are none."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(data)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as problem:  # KeyError: a type that torch lacks
        raise ValueError(f"no safetensors: {problem}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises ValueError if a key is given twice."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key is given twice")
    return mapping


def _name(number: int) -> str:
    """Name of a checkpoint's folder: the number with 12 digits."""
    return f"{number:012d}"


def _numbered(store: Store) -> list[str]:
    """Names of all folders that may be checkpoints, ascending."""
    return sorted(name for name in store.names() if re.fullmatch("[0-9]{12}", name))


def _in_one_line(failure: str, problem: OSError) -> OSError:
    """An OSError with the errno of `problem` and the message "failure: reason" in one line."""
    reason = problem.strerror or str(problem) or type(problem).__name__
    text = f"{failure}: {reason.splitlines()[0]}"
    return OSError(text) if problem.errno is None else OSError(problem.errno, text)


# Storage -------------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """File operations on a folder of checkpoints, on any storage. Each checkpoint is a folder of files.

    `name` is the name of a checkpoint's folder, and `file` that of a file.
    """

    def names(self) -> list[str]:
        """Names of all folders in the store. Empty if the store does not exist. Raises OSError if it cannot be read."""

    def read(self, name: str, file: str) -> bytes:
        """A file's content. Raises OSError if it cannot be read."""

    def size(self, name: str, file: str) -> int:
        """Bytes of a file. Raises OSError if it is missing or cannot be read, and ValueError if it is no plain file."""

    def put(self, name: str, files: dict[str, bytes]) -> None:
        """Write a folder with these files, by name, in this order. Raises OSError if that fails.

        The manifest comes last. So a folder that is only partly written is no checkpoint.
        """

    def put_file(self, file: str, data: bytes) -> None:
        """Write one file beside the checkpoints, whole or not at all. Raises OSError if that fails."""

    def remove_file(self, file: str) -> None:
        """Delete a file beside the checkpoints. Raises OSError if there is none or it cannot be deleted."""

    def n_bytes(self) -> int:
        """Bytes of all files in the store, at any depth."""

    def remove(self, name: str) -> None:
        """Delete a checkpoint's folder; "" deletes the whole store. No error if there is none."""


def store_of(folder: str | Path) -> Store:
    """The store at a path, or at a URI: file:///..., s3://bucket/..., gs://bucket/... Raises ValueError for other URIs."""
    return Remote(str(folder)) if "://" in str(folder) else Local(Path(folder))


def under(place: str | Path, *names: str) -> str:
    """The path or URI of the folder `names[0]`/`names[1]`/... inside `place`. A URI's query (`?endpoint_override=...`) stays
    at the end."""
    if "://" not in str(place):
        return str(Path(place, *names))
    path, mark, query = str(place).partition("?")
    return "/".join((path.rstrip("/"), *names)) + mark + query


class Local:
    """A store on a file system of this machine, NFS included. A write is synced, then renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str, file: str) -> bytes:
        return (self.folder / name / file).read_bytes()

    def size(self, name: str, file: str) -> int:
        status = (self.folder / name / file).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{file}: a link, pipe or folder")
        return status.st_size

    def put(self, name: str, files: dict[str, bytes]) -> None:
        durable.make_folder(self.folder)
        _remove_torn(self.folder)
        target, temporary = self.folder / name, self.folder / _temporary(name)
        try:
            temporary.mkdir()
            for file, data in files.items():
                _write(temporary / file, data)
            durable.sync_folder(temporary)
            _remove(target)  # never a valid one: `save` checks
            os.rename(temporary, target)
            durable.sync_folder(self.folder)
        finally:
            _remove(temporary)

    def put_file(self, file: str, data: bytes) -> None:
        durable.make_folder(self.folder)
        _remove_torn(self.folder)
        temporary = self.folder / _temporary(file)
        try:
            _write(temporary, data)
            os.replace(temporary, self.folder / file)
            durable.sync_folder(self.folder)
        finally:
            _remove(temporary)

    def remove_file(self, file: str) -> None:
        (self.folder / file).unlink()

    def n_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())

    def remove(self, name: str) -> None:
        shutil.rmtree(self.folder / name if name else self.folder, ignore_errors=True)


class Remote:
    """A store on any storage that pyarrow.fs can write to.

    Writing one object is atomic there. A checkpoint counts once its manifest is written.
    """

    def __init__(self, uri: str) -> None:
        from pyarrow import ArrowInvalid, fs

        self._fs = fs
        if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
            uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={GIVE_UP_SECONDS}"
        try:
            self.system, self.root = fs.FileSystem.from_uri(under(uri))
        except ArrowInvalid as problem:
            raise ValueError(f"{uri}: no storage that can be written to: {str(problem).splitlines()[0]}") from None

    def names(self) -> list[str]:
        entries = self.system.get_file_info(self._fs.FileSelector(self.root, allow_not_found=True))
        return [info.base_name for info in entries if info.type == self._fs.FileType.Directory]

    def read(self, name: str, file: str) -> bytes:
        with self.system.open_input_stream(f"{self.root}/{name}/{file}") as stream:
            return bytes(stream.read())

    def size(self, name: str, file: str) -> int:
        info = self.system.get_file_info(f"{self.root}/{name}/{file}")
        if info.type != self._fs.FileType.File:
            raise FileNotFoundError(info.path)
        return int(info.size)

    def put(self, name: str, files: dict[str, bytes]) -> None:
        self.remove(name)  # never a valid one: `save` checks
        self.system.create_dir(f"{self.root}/{name}", recursive=True)
        for file, data in files.items():
            self._write(f"{self.root}/{name}/{file}", data)

    def put_file(self, file: str, data: bytes) -> None:
        self.system.create_dir(self.root, recursive=True)
        self._write(f"{self.root}/{file}", data)

    def _write(self, path: str, data: bytes) -> None:
        with self.system.open_output_stream(path) as stream:
            stream.write(data)

    def remove_file(self, file: str) -> None:
        self.system.delete_file(f"{self.root}/{file}")

    def n_bytes(self) -> int:
        chosen = self._fs.FileSelector(self.root, allow_not_found=True, recursive=True)
        return sum(info.size for info in self.system.get_file_info(chosen) if info.type == self._fs.FileType.File)

    def remove(self, name: str) -> None:
        path = f"{self.root}/{name}" if name else self.root
        if self.system.get_file_info(path).type == self._fs.FileType.Directory:
            self.system.delete_dir(path)


# On a file system ----------------------------------------------------------------------------------------------------

TORN_SECONDS = 86_400
"""Age in seconds at which an unfinished save is removed if nothing shows whether its writer still runs. Assumed: no save takes
a day. If one does, only that save is lost."""
TORN = re.compile(
    r"\..+~(?P<system>[0-9a-f-]+)~(?P<pid>[0-9]{1,9})~(?P<started>[0-9]+)~[0-9a-f]{32}"
    r"|\.[0-9]{12}\..+\.[0-9]+"  # names of an older version
    rf"|\{PROBE}-[0-9a-f]{{32}}"
)
"""Names of unfinished saves and of files of `check_writable`. If the groups are empty, the name does not show the writer."""


def _temporary(name: str) -> str:
    """A unique name for an unfinished save. It holds the writer's system (`_system`), process id and start time."""
    pid = os.getpid()
    return f".{name}~{_system() or 0}~{pid}~{durable.started(pid) or 0}~{uuid.uuid4().hex}"


def _remove_torn(folder: Path) -> None:
    """Delete the unfinished saves in a folder whose writers have ended. Saves of running writers stay.

    A PID identifies a process only within one boot and one PID namespace, and only with its start time: containers share host
    names, and PIDs are reused. For saves of another boot or namespace, age decides.
    """
    with os.scandir(folder) as entries:
        unfinished = [(entry, match) for entry in entries if (match := TORN.fullmatch(entry.name))]
    for entry, writer in unfinished:
        with contextlib.suppress(OSError):  # another process was faster
            if writer["system"] and writer["system"] == _system():
                gone = not durable.lives(int(writer["pid"]), writer["started"])
            else:
                gone = time.time() - entry.stat(follow_symlinks=False).st_mtime > TORN_SECONDS
            if gone:
                _remove(Path(entry.path))


def _system() -> str | None:
    """Id of this boot and this PID namespace; None if the system gives none."""
    return f"{durable.boot()}-{durable.process_space()}" if durable.boot() and durable.process_space() else None


def _remove(path: Path) -> None:
    """Delete a file, link or folder. No error if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _write(path: Path, data: bytes) -> None:
    """Write a file so that its content survives a power cut. Its name survives only after `durable.sync_folder`."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
