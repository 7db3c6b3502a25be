"""Files that are whole or absent: written aside, synced, then renamed. A crash leaves the old file or the new one."""

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
"""A file aside that is older than this belongs to a dead process (assumed: no file takes an hour to write)."""


@contextlib.contextmanager
def aside(path: Path, synced: bool = True) -> Iterator[Path]:
    """Yield a unique path to write to; at the end that file replaces `path`. Raises OSError.

    With `synced`, data and folder are on the disk at the end, so that the new file survives a power cut.
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
            problem.filename = str(path)  # not the temporary name
        raise
    if synced:
        sync_folder(path.parent)


def replace(path: Path, data: bytes, synced: bool = True) -> None:
    """Write a whole file in place of another. Raises OSError."""
    with aside(path, synced) as temporary:
        temporary.write_bytes(data)


def remove_stale(folder: Path) -> None:
    """Remove files that killed writers left aside."""
    for path in folder.glob(f".*{ASIDE}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def facts_of(path: Path) -> dict[str, Any]:
    """Size and hash of a file. Raises OSError."""
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def is_whole(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file has this size and hash. The size is compared first."""
    try:
        return path.stat().st_size == facts.get("bytes") and facts_of(path) == facts
    except OSError:
        return False


def home_folder() -> Path:
    """The folder of all results: $EMERGENCE_HOME, else ./runs."""
    return Path(os.environ.get("EMERGENCE_HOME") or "runs").expanduser().absolute()


def data_folder() -> Path:
    """The folder of prepared tables, tokenizers and scorers, under the results."""
    return home_folder() / "data"
