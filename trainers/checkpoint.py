"""Checkpoints: atomic save, validated load, in a folder of this machine or wherever pyarrow.fs can write.

DeepSpeed's own `latest` file can name a half-written checkpoint, so atomicity is ours: write everything, the manifest with
sizes and hashes last. On a local file system that happens in a temporary folder, synced and then renamed; an object store
has no rename, and there a folder without its manifest does not count. A load takes the newest checkpoint whose manifest
holds. Two are kept. Tensors are safetensors, which hold no code; torch is imported where they are touched: a plan looks at
checkpoints too.

A checkpoint may come from a stranger. Its manifest names files of this folder only, by names from a short list. Nothing is
opened through a link. Nothing is parsed before its size and hash agree with the manifest, and all of it must have the
form that a trainer writes. Anything else is no checkpoint.
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
TENSORS = ".safetensors"
MANIFEST, META = "manifest.json", "meta.json"
MANIFEST_BYTES = 2**16
"""A larger manifest is none, and is not read: three files take 400 bytes."""
PROBE = ".writable"
GIVE_UP_SECONDS = 30
"""Google's storage is tried for so long; by itself its client would try for a quarter of an hour. `?retry_limit_seconds=` in the
URI goes before."""
Tensors = dict[str, "torch.Tensor"]
Meta = dict[str, Any]
Found = tuple[Meta, dict[str, Tensors]]

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class File(Record, extra="ignore"):
    """What a manifest says of one file."""

    bytes: Whole
    sha256: str


class Manifest(Record, extra="ignore"):
    """The file that makes a checkpoint count."""

    fingerprint: str
    number: Whole
    files: dict[Annotated[str, Field(pattern=r"^(meta\.json|[a-z_]{1,32}\.safetensors)$")], File]

    @model_validator(mode="after")
    def _has_meta(self) -> Manifest:
        if META not in self.files:
            raise ValueError(f"{META} is missing")
        return self


class Told(Record, extra="ignore"):
    """An event that was emitted before the save."""

    kind: str
    key: str


class Left(Record, extra="ignore"):
    """Where the trunk was left for a branch."""

    step: Whole
    loss_sum: Finite
    loss_n: Whole


class Now(Left, extra="ignore"):
    """How far a trunk has come (`train.run_trunk`)."""

    branch: Positive | None
    ended: list[Positive]
    exams: list[str]
    events: list[Told]
    resumed: Whole
    saves: Whole
    steps_charged: Whole
    exams_charged: Whole
    train_seconds: NotNegative
    eval_seconds: NotNegative


class Progress(Record, extra="ignore"):
    """The form of `meta`."""

    now: Now
    left: Left | dict[str, Any]

    @model_validator(mode="after")
    def _left_for_a_branch(self) -> Progress:
        if self.now.branch is None and self.left == {}:
            return self
        if self.now.branch is not None and isinstance(self.left, Left):
            return self
        raise ValueError("a branch needs the place where the trunk was left, and the trunk none")


def save(folder: str | Path, number: int, fingerprint: str, meta: Meta, tensors: dict[str, Tensors]) -> str:
    """Write checkpoint `number` under `folder`; returns its name there once it is safe.

    `meta` is JSON of the form `Progress`; `tensors` maps a name to a flat dictionary of tensors, a file each. A valid
    checkpoint is never written over: where this number has one, the next number is taken. Raises OSError in one line
    (disk full, no permission): an older checkpoint is then still whole.
    """
    from safetensors.torch import save as as_bytes

    try:
        store = store_of(folder)
        taken = set(_numbered(store))
        while _name(number) in taken and not _is_damaged(store, _name(number), fingerprint):
            number += 1  # another's, of a run that was taken for dead: a write that fails must not cost it
        name = _name(number)
        files = {META: json.dumps(meta).encode()}
        files |= {f"{part}{TENSORS}": as_bytes(of_part) for part, of_part in tensors.items()}
        facts = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
        manifest = {"fingerprint": fingerprint, "number": number, "files": facts}
        store.put(name, files | {MANIFEST: json.dumps(manifest).encode()})
    except OSError as problem:
        raise _in_one_line(f"{folder}: checkpoint {number} cannot be written", problem) from problem
    with contextlib.suppress(OSError):  # the checkpoint is safe: what cannot be removed now is removed next time
        names = _numbered(store)
        for other in [n for n in names if n <= name][:-KEEP]:
            store.remove(other)
        for other in (n for n in names if n > name):  # a valid one is another's, who has come further: leave it
            if _is_damaged(store, other, fingerprint):
                store.remove(other)
    return name


def load(folder: str | Path, fingerprint: str, number: int | None = None) -> Found | None:
    """The newest valid checkpoint of this fingerprint, or that number, as (meta, tensors); None when there is none.

    Raises OSError if that number, or all that there are, cannot be read. What cannot be read may be whole all the same:
    nobody is to start again because a disk was away for a moment.
    """
    store = store_of(folder)
    if number is not None:
        return _look(store, _name(number), fingerprint)
    found = _newest(store, fingerprint)
    return found[1] if found else None


def newest(folder: str | Path, fingerprint: str) -> int | None:
    """The number of the checkpoint that `load` would take. Raises OSError as `load` does."""
    found = _newest(store_of(folder), fingerprint)
    return int(found[0]) if found else None


def numbers(folder: str | Path) -> list[int]:
    """The numbers of all checkpoints, valid or not, in order. Raises OSError if the folder cannot be read."""
    return [int(name) for name in _numbered(store_of(folder))]


def is_anothers(folder: str | Path, fingerprint: str, number: int) -> bool:
    """Does that number say that another setting made it? Then it is not damaged, and not ours either."""
    try:
        manifest = _manifest(store_of(folder), _name(number))
    except (OSError, ValueError, RecursionError):
        return False
    return manifest.fingerprint != fingerprint


def peek(folder: str | Path, fingerprint: str) -> Meta | None:
    """The `meta` that `load` would return, without reading a tensor: of those only the sizes are checked.

    None also where nothing can be read now: a plan is an estimate, and a run says why it cannot go on.
    """
    try:
        found = _newest(store_of(folder), fingerprint, tensors=False)
    except OSError:
        return None
    return found[1][0] if found else None


def save_weights(folder: str | Path, name: str, tensors: Tensors, facts: dict[str, str]) -> None:
    """Weights alone, `name`.safetensors under `folder`, with facts about them in its header. Raises OSError."""
    from safetensors.torch import save as as_bytes

    *above, leaf = name.split("/")
    store = store_of(under(folder, *above))
    store.put_file(f"{leaf}{TENSORS}", as_bytes(tensors, metadata=facts))


def check_writable(folder: str | Path) -> None:
    """Write a byte there and take it away again. Raises OSError, and ValueError for a URI that no storage answers to."""
    store, probe = store_of(folder), f"{PROBE}-{uuid.uuid4().hex}"  # another run may be at it at the same moment
    store.put_file(probe, b"1")
    store.remove_file(probe)


def discard(folder: str | Path) -> None:
    """Delete the checkpoints in `folder`, and nothing else that somebody keeps there."""
    store = store_of(folder)
    for name in _numbered(store):
        store.remove(name)


def clear(folder: str | Path) -> int:
    """Delete `folder` and whatever is in it; returns the bytes of its files."""
    store = store_of(folder)
    n_bytes = store.n_bytes()
    store.remove("")
    return n_bytes


def _newest(store: Store, fingerprint: str, tensors: bool = True) -> tuple[str, Found] | None:
    unreadable: OSError | None = None
    for name in reversed(_numbered(store)):
        try:
            found = _look(store, name, fingerprint, tensors)
        except OSError as problem:
            unreadable = unreadable or problem
            continue
        if found:
            return name, found
    if unreadable:
        raise unreadable
    return None


def _is_damaged(store: Store, name: str, fingerprint: str) -> bool:
    """Is it surely no checkpoint of this fingerprint? One that cannot be read at present may be."""
    try:
        return _look(store, name, fingerprint) is None
    except OSError:
        return False


def _look(store: Store, name: str, fingerprint: str, tensors: bool = True) -> Found | None:
    """What a checkpoint holds; None unless all of it has the size, hash and form that it must have, for this fingerprint.

    Tensors are read on demand; otherwise their sizes alone are checked. Raises OSError for what cannot be read.
    """
    try:
        manifest = _manifest(store, name)
        if (manifest.fingerprint, _name(manifest.number)) != (fingerprint, name):
            return None
        data: dict[str, bytes] = {}
        for file, facts in manifest.files.items():
            if store.size(name, file) != facts.bytes:  # before memory is taken for it
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
    """Raises OSError, ValueError, and RecursionError for one that is nested too deeply."""
    if store.size(name, MANIFEST) > MANIFEST_BYTES:
        raise ValueError(f"{MANIFEST} is too large")
    return Manifest.model_validate(json.loads(store.read(name, MANIFEST), object_pairs_hook=_once))


def _tensors(data: bytes) -> Tensors:
    """Raises ValueError for what is no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(data)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as problem:  # types that torch lacks are a KeyError
        raise ValueError(f"no safetensors: {problem}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _name(number: int) -> str:
    return f"{number:012d}"


def _numbered(store: Store) -> list[str]:
    return sorted(name for name in store.names() if re.fullmatch("[0-9]{12}", name))


def _in_one_line(what: str, problem: OSError) -> OSError:
    said = problem.strerror or str(problem) or type(problem).__name__
    text = f"{what}: {said.splitlines()[0]}"
    return OSError(text) if problem.errno is None else OSError(problem.errno, text)


# Where ---------------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """A folder of checkpoints, each a folder of files."""

    def names(self) -> list[str]:
        """Folders in it; none where it does not exist."""

    def read(self, name: str, file: str) -> bytes:
        """A file's content. Raises OSError."""

    def size(self, name: str, file: str) -> int:
        """A file's bytes, asked before it is read. Raises OSError, and ValueError for what is no plain file."""

    def put(self, name: str, files: dict[str, bytes]) -> None:
        """Write a folder: whole, or not so that it counts. The last file is the one that makes it count. Raises OSError."""

    def put_file(self, file: str, data: bytes) -> None:
        """Write one file beside the folders, whole or not at all. Raises OSError."""

    def remove_file(self, file: str) -> None:
        """Delete a file beside the folders. Raises OSError."""

    def n_bytes(self) -> int:
        """Of all files in it, however deep."""

    def remove(self, name: str) -> None:
        """Delete a folder and what is in it; "" is the whole store. Silent where there is none."""


def store_of(folder: str | Path) -> Store:
    """The store at a path, or at a URI: file:///..., s3://bucket/..., gs://bucket/... Raises ValueError for another."""
    return Remote(str(folder)) if "://" in str(folder) else Local(Path(folder))


def under(place: str | Path, *names: str) -> str:
    """A folder inside a place: a path, or a URI, whose query (`?endpoint_override=...`) stays at its end."""
    if "://" not in str(place):
        return str(Path(place, *names))
    path, mark, query = str(place).partition("?")
    return "/".join((path.rstrip("/"), *names)) + mark + query


class Local:
    """On a file system of this machine, NFS included: synced, then renamed."""

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
        found = (self.folder / name / file).lstat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{file}: a link, pipe or folder")
        return found.st_size

    def put(self, name: str, files: dict[str, bytes]) -> None:
        durable.make_folder(self.folder)
        _remove_torn(self.folder)
        target, temporary = self.folder / name, self.folder / _temporary(name)
        try:
            temporary.mkdir()
            for file, data in files.items():
                _write(temporary / file, data)
            durable.sync_folder(temporary)
            _remove(target)  # no valid one: `save` sees to that
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
    """Wherever pyarrow.fs can write. A put of one object is atomic there; what makes a checkpoint count is its manifest."""

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
        found = self.system.get_file_info(self._fs.FileSelector(self.root, allow_not_found=True))
        return [info.base_name for info in found if info.type == self._fs.FileType.Directory]

    def read(self, name: str, file: str) -> bytes:
        with self.system.open_input_stream(f"{self.root}/{name}/{file}") as stream:
            return bytes(stream.read())

    def size(self, name: str, file: str) -> int:
        info = self.system.get_file_info(f"{self.root}/{name}/{file}")
        if info.type != self._fs.FileType.File:
            raise FileNotFoundError(info.path)
        return int(info.size)

    def put(self, name: str, files: dict[str, bytes]) -> None:
        self.remove(name)  # no valid one: `save` sees to that
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
"""What a save left unfinished is removed at this age if nobody can say whether its writer lives. Assumed: no save takes a
day; and if one does, its removal costs that save alone."""
TORN = re.compile(
    r"\..+~(?P<system>[0-9a-f-]+)~(?P<pid>[0-9]{1,9})~(?P<started>[0-9]+)~[0-9a-f]{32}"
    r"|\.[0-9]{12}\..+\.[0-9]+"  # as the version before named them
    rf"|\{PROBE}-[0-9a-f]{{32}}"
)


def _temporary(name: str) -> str:
    """A name that nobody else takes, and that says who writes: the system, the process there and when it started."""
    pid = os.getpid()
    return f".{name}~{_system() or 0}~{pid}~{durable.started(pid) or 0}~{uuid.uuid4().hex}"


def _remove_torn(folder: Path) -> None:
    """Remove what writers that are gone left unfinished, and nothing of those that live.

    A PID means something only within one boot of one machine and one PID namespace, and only with the time at which its
    process started: containers share host names, and PIDs come again. Elsewhere age decides.
    """
    with os.scandir(folder) as entries:
        found = [(entry, match) for entry in entries if (match := TORN.fullmatch(entry.name))]
    for entry, of in found:
        with contextlib.suppress(OSError):  # somebody else was faster
            if of["system"] and of["system"] == _system():
                gone = not durable.lives(int(of["pid"]), of["started"])
            else:
                gone = time.time() - entry.stat(follow_symlinks=False).st_mtime > TORN_SECONDS
            if gone:
                _remove(Path(entry.path))


def _system() -> str | None:
    """This boot of this machine and this process space; None where the system does not say."""
    return f"{durable.boot()}-{durable.process_space()}" if durable.boot() and durable.process_space() else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
