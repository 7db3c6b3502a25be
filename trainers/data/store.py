"""Where prepared data lies: in folders named by the digest of their content, so it is right wherever it is found.

A root is a folder that this machine sees, or a URI. What lies behind a URI is copied to this machine's disk once.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from trainers.data import folders, shards

_ROOTS: list[str] = []


class DataMissingError(OSError):
    """No known root holds the data of a digest."""


def use(root: str | Path) -> None:
    """Look for data under `root`, a folder or a URI, before all other roots."""
    if (place := str(root)) in _ROOTS:
        _ROOTS.remove(place)
    _ROOTS.insert(0, place)


def folder_of(digest: str) -> Path:
    """The folder of a digest on this machine.

    Raises DataMissingError with the roots in which it was sought, and TableError for a copy that is damaged.
    """
    here = [root for root in _ROOTS if "://" not in root]
    for root in here:
        if folders.is_whole(Path(root) / digest):
            return Path(root) / digest
    for root in _ROOTS:
        if root not in here:
            return folders.fetch(root, digest, _cache())
    sought = f"not in {', '.join(_ROOTS)}" if _ROOTS else "looked for nowhere: no folder of data is named"
    raise DataMissingError(
        f"the prepared data {digest} is {sought}; every machine must see it: put EMERGENCE_HOME on a disk that all "
        "machines share, or give --storage"
    )


def put(root: Path, digest: str, files: dict[str, bytes]) -> Path:
    """Write a folder of small files under `root`, once, and use that root. A kill leaves nothing that counts."""
    use(root)
    folder = root / digest
    if not folders.is_whole(folder):
        with folders.unfinished(root) as part:
            for name, data in files.items():
                (part / name).write_bytes(data)
            shards.seal(part, shards.describe(part, digest, 1))
            folders.publish(part, folder)
    return folder


def _cache() -> Path:
    """A folder of this user alone, on this machine's disk, for copies. Raises OSError if it belongs to another user."""
    folder = Path(tempfile.gettempdir()) / f"emergence-data-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if (status := folder.lstat()).st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder}: others may write there; remove it, or set TMPDIR")
    return folder
