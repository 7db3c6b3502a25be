"""Files that are whole or not there: written aside, synced, then renamed. A crash leaves the old file, or the new one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers.durable import sync_folder

ASIDE = ".aside"
STALE_SECONDS = 3600.0
"""A file written aside that is older than this belongs to a process that died (assumed: nothing here takes an hour to write)."""


@contextlib.contextmanager
def aside(path: Path, synced: bool = True) -> Iterator[Path]:
    """Give a new name to write under; what stands there at the end takes the place of `path`. Raises OSError.

    The name is unique, so that two writers never share one. With `synced`, data and folder have reached the disk at the
    end: a power cut after this leaves the new file whole.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{ASIDE}")
    try:
        yield temporary
        if synced:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            problem.filename = str(path)  # the name that people know
        raise
    if synced:
        sync_folder(path.parent)


def replace(path: Path, data: bytes, synced: bool = True) -> None:
    """Put a whole file in place of another. Raises OSError."""
    with aside(path, synced) as temporary:
        temporary.write_bytes(data)


def remove_stale(folder: Path) -> None:
    """Remove what writers left aside when they were killed."""
    for path in folder.glob(f".*{ASIDE}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def facts_of(path: Path) -> dict[str, Any]:
    """Size and hash of a file. Raises OSError."""
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def is_whole(path: Path, facts: dict[str, Any]) -> bool:
    """Does a file have this size and this hash? The size is looked at first."""
    try:
        return path.stat().st_size == facts.get("bytes") and facts_of(path) == facts
    except OSError:
        return False
