"""Checkpoints: atomic save, validated load.

DeepSpeed's own `latest` file can name a half-written checkpoint, so atomicity is ours: write into a temporary folder,
fsync, write the manifest with sizes and hashes last, rename. A load takes the newest folder whose manifest holds and
unpickles nothing before its hash was checked. Two are kept. torch is imported where tensors are touched: a plan looks at
checkpoints too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KEEP = 2
Tensors = dict[str, "torch.Tensor"]


def save(folder: Path, number: int, fingerprint: str, meta: dict[str, Any], tensors: dict[str, Tensors]) -> Path:
    """Write checkpoint `number` under `folder`; returns its path once it is safely there.

    `meta` is JSON; `tensors` maps a name to a flat dictionary of tensors, a file each. Raises OSError (disk full, no
    permission): an older checkpoint is then still whole.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{number:012d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(temporary / "meta.json", json.dumps(meta).encode())
        for name, part in tensors.items():
            with open(temporary / f"{name}.pt", "wb") as file:
                torch.save(part, file)
                _sync(file)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())}
        manifest = {"fingerprint": fingerprint, "number": number, "files": files}
        _write(temporary / "manifest.json", json.dumps(manifest).encode())
        if target.exists():
            shutil.rmtree(target)  # only ever the same number again, after a resume
        os.rename(temporary, target)
        _sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in _numbered(folder):  # a higher number is left from a run that did not count: load found it invalid
        if not number - KEEP < int(other.name) <= number:
            shutil.rmtree(other, ignore_errors=True)
    for torn in folder.glob(".[0-9]*"):  # left by a kill in mid-write
        shutil.rmtree(torn, ignore_errors=True)
    return target


def load(folder: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensors]] | None:
    """The newest valid checkpoint of this fingerprint, as (meta, tensors); None when there is none."""
    import torch

    path = _newest(folder, fingerprint)
    if path is None:
        return None
    names = json.loads((path / "manifest.json").read_bytes())["files"]  # no other file here was checked
    files = [path / name for name in names if name.endswith(".pt")]
    parts = {p.stem: torch.load(p, map_location="cpu", weights_only=True) for p in files}
    return json.loads((path / "meta.json").read_bytes()), parts


def peek(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The `meta` that `load` would return, without reading a tensor: of those only the sizes are checked."""
    path = _newest(folder, fingerprint, tensors=False)
    return json.loads((path / "meta.json").read_bytes()) if path else None


def _newest(folder: Path, fingerprint: str, tensors: bool = True) -> Path | None:
    return next((path for path in reversed(_numbered(folder)) if valid(path, fingerprint, tensors)), None)


def valid(path: Path, fingerprint: str, tensors: bool = True) -> bool:
    """Does every file have the size and hash that the manifest states, for this fingerprint? The hash of tensors on demand."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        return manifest["fingerprint"] == fingerprint and all(
            (path / name).stat().st_size == facts["bytes"]
            and ((name.endswith(".pt") and not tensors) or _sha256(path / name) == facts["sha256"])
            for name, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def clear(folder: Path) -> None:
    """Delete every checkpoint under `folder`."""
    shutil.rmtree(folder, ignore_errors=True)


def _numbered(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
