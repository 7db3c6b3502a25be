"""Folders that several processes of a machine make once: locks, unfinished folders, and copies to and from other storage."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers import durable
from trainers.data import shards
from trainers.data.sources import TableError, first_line, shown, system_of

BLOCK_BYTES = 2**22
"""Bytes that a copy holds in memory."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it. It ends with the process at the latest. Its file is removed at the end.

    Raises OSError in one line on a file system without locks.
    """
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as problem:
                text = f"{path.parent}: this file system has no locks ({problem.strerror}); use a folder on another one"
                raise OSError(problem.errno, text) from None
            if not _is_at(path, file.fileno()):
                continue  # its last holder removed this file
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def unfinished(root: Path) -> Iterator[Path]:
    """A new folder below `root` for `publish`. It is removed at the end, or by the next call if this process is killed."""
    durable.make_folder(root)
    for part in root.glob(".*.part"):
        with (
            contextlib.suppress(OSError),
            open(part.with_suffix(".lock"), "w") as file,
        ):  # OSError: its maker still runs
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
            part.with_suffix(".lock").unlink(missing_ok=True)
    part = root / f".{os.getpid()}-{time.time_ns():x}.part"
    with locked(part.with_suffix(".lock")):
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Was this folder published? It may have been damaged since then."""
    return (folder / shards.MANIFEST).is_file()


def publish(part: Path, folder: Path) -> None:
    """Give an unfinished folder with a manifest its name. If another process was faster, its folder stays."""
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder)  # damaged by hand
    try:
        part.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise
    durable.sync_folder(folder.parent)


# Other storage ----------------------------------------------------------------------------------------------------------


def put(folder: str | Path, place: str | Path) -> None:
    """Copy a prepared folder into the folder or URI `place`, under its digest. It counts there once its manifest is written.

    A folder that is there already is left as it is. Raises TableError in one line if the storage refuses.
    """
    folder = Path(folder)
    manifest = shards.open_manifest(folder)
    with _storage(place, "cannot be written") as (system, root):
        target = f"{root}/{manifest.digest}"
        if _size(system, f"{target}/{shards.MANIFEST}") is not None:
            return
        system.create_dir(target, recursive=True)
        for name in (*manifest.files, shards.MANIFEST):
            with open(folder / name, "rb") as source, system.open_output_stream(f"{target}/{name}") as sink:
                shutil.copyfileobj(source, sink, BLOCK_BYTES)


def fetch(place: str | Path, digest: str, cache_root: str | Path) -> Path:
    """Copy the prepared folder `digest` from the folder or URI `place` to `cache_root`, once. Returns its folder there.

    Sizes and checksums are checked while it is copied. Raises TableError in one line if it is not there, cannot be read, or
    differs from its manifest.
    """
    folder = Path(cache_root) / digest
    durable.make_folder(folder.parent)
    with locked(folder.parent / f".{digest}.lock"):
        if is_whole(folder):
            return folder
        with (
            unfinished(folder.parent) as part,
            _storage(place, f"prepared data {digest} cannot be read") as (system, root),
        ):
            (part / shards.MANIFEST).write_bytes(_manifest(system, f"{root}/{digest}", f"{shown(str(place))}/{digest}"))
            manifest = shards.read_manifest(part)
            if manifest.digest != digest:
                raise TableError(
                    f"{shown(str(place))}/{digest}: its manifest names {manifest.digest}; put the folder there again"
                )
            for name, facts in manifest.files.items():
                _copy(system, f"{root}/{digest}/{name}", part / name, facts)
            durable.sync_folder(part)
            publish(part, folder)
    return folder


def _manifest(system: Any, path: str, label: str) -> bytes:
    size = _size(system, f"{path}/{shards.MANIFEST}")
    if size is None or size > shards.MANIFEST_BYTES:
        what = "there is no prepared data here" if size is None else f"{shards.MANIFEST} is too large"
        raise TableError(f"{label}: {what}; run the study again from the machine that has its table")
    with system.open_input_stream(f"{path}/{shards.MANIFEST}") as stream:
        return bytes(stream.read())


def _copy(system: Any, source: str, target: Path, facts: shards.File) -> None:
    """Copy a file to this machine, to disk. Raises TableError if its size or checksum is not as in the manifest."""
    found, size = hashlib.blake2b(digest_size=16), 0
    with system.open_input_stream(source, compression=None) as stream, open(target, "wb") as sink:
        while block := stream.read(BLOCK_BYTES):
            found.update(block)
            size += len(block)
            sink.write(block)
        sink.flush()
        os.fsync(sink.fileno())
    if (size, found.hexdigest()) != (facts.bytes, facts.blake2b):
        raise TableError(
            f"{source}: {size:,} bytes with checksum {found.hexdigest()}; its manifest says {facts.bytes:,} bytes with "
            f"{facts.blake2b}; delete this folder there, and put it there again"
        )


@contextlib.contextmanager
def _storage(place: str | Path, failure: str) -> Iterator[tuple[Any, str]]:
    """The file system and path of a folder or URI. Its errors become a TableError in one line."""
    try:
        yield system_of(str(place))
    except TableError:
        raise
    except (OSError, ValueError) as problem:  # Arrow's errors are ValueErrors or OSErrors
        raise TableError(f"{shown(str(place))}: {failure}: {first_line(problem)}") from None


def _size(system: Any, path: str) -> int | None:
    info = system.get_file_info(path)
    return int(info.size) if info.is_file else None
