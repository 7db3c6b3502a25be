"""Final weights of trials, a safetensors file each, with the trial's spec in its header. Other trials may begin with them.

A file is written whole or not at all (`checkpoint.Store.put_file`), on any storage. Its header holds a hash of the tensors. A
trunk that begins with a file checks that and the fingerprint of the trial. torch is imported only to read or write tensors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trainers.checkpoint import TENSORS, Store, Tensors, store_of, under
from trainers.spec import Start, TrialSpec


def save(folder: str | Path, trial: TrialSpec, tensors: Tensors) -> None:
    """Write the weights of a trial under `folder`, a path or URI, as `<trial's id>.safetensors`. They then survive a power cut.

    Raises OSError if that fails.
    """
    from safetensors.torch import save as as_bytes

    facts = {"trial": trial.model_dump_json(), "fingerprint": trial.fingerprint()}
    facts["sha256"] = _split(as_bytes(tensors))[1]
    *above, leaf = trial.id.split("/")
    store_of(under(folder, *above)).put_file(f"{leaf}{TENSORS}", as_bytes(tensors, metadata=facts))


def load(folder: str | Path, start: Start) -> Tensors:
    """The weights with which a trunk begins.

    Raises OSError, in one line with the donor and the remedy, if they are missing, damaged, or of another trial, or cannot be
    read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        store, above, file = _place(folder, start.trial)
        data = store.read(above, file)
        facts, digest = _split(data)
        if facts.get("sha256") != digest:
            raise ValueError("damaged")
        if facts.get("fingerprint") != start.fingerprint:
            raise ValueError("of a trial with other settings")
        return from_bytes(data)
    except (FileNotFoundError, NotADirectoryError):
        why = "missing"
    except OSError as problem:
        why = f"unreadable ({problem.strerror or str(problem).splitlines()[0]})"
    except (ValueError, RecursionError, SafetensorError, KeyError, RuntimeError, TypeError) as problem:
        why = str(problem) if str(problem).startswith("of a trial") else "damaged"
    raise OSError(f"{lost(start.trial, folder)} {why}; {REMEDY}")


def lost(trial: str, folder: str | Path) -> str:
    """The beginning of a message on the weights of a trial: `... are missing`, for example, follows."""
    return f"{under(folder, f'{trial}{TENSORS}')}: the weights of trial {trial}, with which others begin, are"


REMEDY = "put its file back there (one that --keep-weights kept will do), or raise the version of the study to train that trial again"
"""The end of such a message."""


def size(folder: str | Path, trial: str) -> int:
    """Bytes of the file with a trial's weights; 0 if there is none. Raises OSError if the folder cannot be read."""
    store, above, file = _place(folder, trial)
    try:
        return store.size(above, file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def remove(folder: str | Path, trial: str) -> int:
    """Delete the weights of a trial. Returns the bytes of their file, 0 if there was none. Raises OSError if that fails."""
    n_bytes = size(folder, trial)
    if n_bytes:
        *above, leaf = trial.split("/")
        store_of(under(folder, *above)).remove_file(f"{leaf}{TENSORS}")
    return n_bytes


def _place(folder: str | Path, trial: str) -> tuple[Store, str, str]:
    """The store, folder and file of a trial's weights, as `Store.read` takes them."""
    *above, last, leaf = trial.split("/")
    return store_of(under(folder, *above)), last, f"{leaf}{TENSORS}"


def _split(data: bytes) -> tuple[dict[str, Any], str]:
    """The facts in the header of a safetensors file, and the hash of its tensors. Raises ValueError if it is none."""
    begin = 8 + int.from_bytes(data[:8], "little")
    if not 8 < begin <= len(data):
        raise ValueError("no header")
    header = json.loads(data[8:begin])
    facts = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return facts if isinstance(facts, dict) else {}, hashlib.sha256(memoryview(data)[begin:]).hexdigest()
