"""Where prepared data lies on this machine. A folder is known by the digest of its content, so it is right wherever it lies."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_ROOTS: list[Path] = []


class DataMissingError(OSError):
    """No known root holds the data of a digest."""


def use(root: str | Path) -> None:
    """Look for data under `root` from now on, in folders named by their digest."""
    if (path := Path(root)) not in _ROOTS:
        _ROOTS.insert(0, path)


def folder_of(digest: str) -> Path:
    """The folder of a digest. Raises DataMissingError with the roots in which it was sought."""
    for root in _ROOTS:
        if (root / digest).is_dir():
            return root / digest
    sought = ", ".join(map(str, _ROOTS)) or "no folder"
    raise DataMissingError(
        f"the prepared data {digest} is not in {sought}; run the study again, and it is prepared again"
    )


def put(root: Path, digest: str, files: dict[str, bytes]) -> Path:
    """Write a folder of small files under `root`, once, and use that root. A kill leaves nothing that counts."""
    use(root)
    folder = root / digest
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-", ignore_cleanup_errors=True) as new:
        made = Path(new) / "made"
        made.mkdir()
        for name, data in files.items():
            with open(made / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder
