"""Checkpoints: atomic save, validated load, in a folder of this machine or wherever pyarrow.fs can write.

DeepSpeed's own `latest` file can name a half-written checkpoint, so atomicity is ours: write everything, the manifest with
sizes and hashes last. On a local file system that happens in a temporary folder, synced and then renamed; an object store
has no rename, and there a folder without its manifest does not count. A load takes the newest checkpoint whose manifest
holds. Two are kept. Tensors are safetensors, which hold no code; torch is imported where they are touched: a plan looks at
checkpoints too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

KEEP = 2
TENSORS = ".safetensors"
PROBE = ".writable"
GIVE_UP_SECONDS = 30
"""Google's storage is tried for so long; by itself its client would try for a quarter of an hour. `?retry_limit_seconds=` in the
URI goes before."""
Tensors = dict[str, "torch.Tensor"]
Meta = dict[str, Any]


def save(folder: str | Path, number: int, fingerprint: str, meta: Meta, tensors: dict[str, Tensors]) -> str:
    """Write checkpoint `number` under `folder`; returns its name there once it is safe.

    `meta` is JSON; `tensors` maps a name to a flat dictionary of tensors, a file each. Raises OSError (disk full, no
    permission): an older checkpoint is then still whole.
    """
    from safetensors.torch import save as as_bytes

    store, name = store_of(folder), f"{number:012d}"
    files = {"meta.json": json.dumps(meta).encode()}
    files |= {f"{part}{TENSORS}": as_bytes(of_part) for part, of_part in tensors.items()}
    facts = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    manifest = {"fingerprint": fingerprint, "number": number, "files": facts}
    store.put(name, files | {"manifest.json": json.dumps(manifest).encode()})
    for other in _numbered(store):  # a valid one of a higher number is another's, who has come further: leave it
        if int(other) <= number - KEEP or (int(other) > number and not valid(store, other, fingerprint)):
            store.remove(other)
    return name


def load(folder: str | Path, fingerprint: str, number: int | None = None) -> tuple[Meta, dict[str, Tensors]] | None:
    """The newest valid checkpoint of this fingerprint, or that number, as (meta, tensors); None when there is none."""
    from safetensors.torch import load as from_bytes

    store = store_of(folder)
    name = _newest(store, fingerprint) if number is None else f"{number:012d}"
    if name is None or (number is not None and not valid(store, name, fingerprint)):
        return None
    files = json.loads(store.read(name, "manifest.json"))["files"]  # no other file here was checked
    parts = {file.removesuffix(TENSORS): store.read(name, file) for file in files if file.endswith(TENSORS)}
    return json.loads(store.read(name, "meta.json")), {part: from_bytes(data) for part, data in parts.items()}


def newest(folder: str | Path, fingerprint: str) -> int | None:
    """The number of the checkpoint that `load` would take."""
    name = _newest(store_of(folder), fingerprint)
    return int(name) if name else None


def peek(folder: str | Path, fingerprint: str) -> Meta | None:
    """The `meta` that `load` would return, without reading a tensor: of those only the sizes are checked."""
    store = store_of(folder)
    name = _newest(store, fingerprint, tensors=False)
    return json.loads(store.read(name, "meta.json")) if name else None


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


def clear(folder: str | Path) -> int:
    """Delete `folder` and whatever is in it; returns the bytes of its files."""
    store = store_of(folder)
    n_bytes = store.n_bytes()
    store.remove("")
    return n_bytes


def _newest(store: Store, fingerprint: str, tensors: bool = True) -> str | None:
    return next((name for name in reversed(_numbered(store)) if valid(store, name, fingerprint, tensors)), None)


def valid(store: Store, name: str, fingerprint: str, tensors: bool = True) -> bool:
    """Does every file have the size and hash that the manifest states, for this fingerprint? Tensors' hash on demand."""
    try:
        manifest = json.loads(store.read(name, "manifest.json"))
        return manifest["fingerprint"] == fingerprint and all(
            store.size(name, file) == facts["bytes"]
            if file.endswith(TENSORS) and not tensors
            else hashlib.sha256(store.read(name, file)).hexdigest() == facts["sha256"]
            for file, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _numbered(store: Store) -> list[str]:
    return sorted(name for name in store.names() if name[:1].isdigit() and name.isdigit())


# Where ---------------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """A folder of checkpoints, each a folder of files."""

    def names(self) -> list[str]:
        """Folders in it; none where it does not exist."""

    def read(self, name: str, file: str) -> bytes:
        """A file's content. Raises OSError."""

    def size(self, name: str, file: str) -> int:
        """A file's bytes. Raises OSError."""

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
        return [p.name for p in self.folder.glob("*") if p.is_dir()]

    def read(self, name: str, file: str) -> bytes:
        return (self.folder / name / file).read_bytes()

    def size(self, name: str, file: str) -> int:
        return (self.folder / name / file).stat().st_size

    def put(self, name: str, files: dict[str, bytes]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(f".[0-9]*.{socket.gethostname()}.*"):  # left by a kill in mid-write
            if not Path("/proc", torn.suffix[1:]).exists():  # another's who is at it, if this machine can tell
                shutil.rmtree(torn, ignore_errors=True)
        target, temporary = self.folder / name, self.folder / f".{name}.{socket.gethostname()}.{os.getpid()}"
        temporary.mkdir()
        try:
            for file, data in files.items():
                _write(temporary / file, data)
            if target.exists():
                shutil.rmtree(target)  # only ever the same number again, after a resume
            os.rename(temporary, target)
            _sync_folder(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def put_file(self, file: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{file}.{os.getpid()}"
        _write(temporary, data)
        os.replace(temporary, self.folder / file)

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
        self.remove(name)
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


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
