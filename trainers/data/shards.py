"""Token ids of items in Arrow files, written once with checksums and read through memory maps.

A folder holds shards, arrays by item and its manifest, which is written last. An item is stored as the model reads it:
`[prompt] ANSWER [target] END`. No read copies a shard into memory, so all processes of a machine share its pages.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from trainers import durable
from trainers.data.sources import TableError, first_line
from trainers.records import Index, Record

MANIFEST = "manifest.json"
VERIFIERS = 4
"""Threads that verify checksums. One verifies about 0.8 GB a second."""
MANIFEST_BYTES = 2**22
"""A larger manifest is not fetched. One for 500 shards takes 60 kB."""
SHARD_ITEMS = 2**18
"""Most items of a shard."""
SHARD_BYTES = 2**28
"""A shard ends early at this size. Each open shard holds a file handle, and a checksum is verified for a whole shard."""
BATCH_BYTES = 2**23
"""Bytes of ids in one record batch of a shard. A writer holds one batch in memory."""
_VERIFIED: set[tuple[int, int, int, int, str]] = set()
"""Files whose checksums this process has verified: device, inode, size, time of modification, checksum."""


class File(Record):
    """A manifest's entry for one file."""

    bytes: Index
    blake2b: str
    """Hash of the content, 16 bytes as hex digits."""


class Manifest(Record):
    """Content of `manifest.json`. A folder without it does not count."""

    digest: str
    """Identity of the folder's content, and its name."""
    vocab_size: Index
    """Number of token ids, the two marks included. ids are uint16 up to 65,536 of them, else uint32."""
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+\.[a-z]+$")], File]
    """All other files, by name."""


def dtype_of(vocab_size: int) -> np.dtype[Any]:
    """Type of stored token ids: uint16 if they fit, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


# Writing ----------------------------------------------------------------------------------------------------------------


class Writer:
    """Writes items into the shards of a folder. It holds `BATCH_BYTES` in memory, and 8 bytes an item."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder, self.dtype = folder, dtype_of(vocab_size)
        self.n_prompt: list[np.ndarray] = []
        self.n_target: list[np.ndarray] = []
        self._sink: Any = None
        self._n_shards = self._n_items = self._n_bytes = self._held = 0
        self._ids: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def add(self, ids: np.ndarray, n_prompt: np.ndarray, n_target: np.ndarray) -> None:
        """Add n items: their sequences (sum of lengths,), and the lengths of prompts and targets (n,)."""
        self.n_prompt.append(n_prompt.astype(np.uint32))
        self.n_target.append(n_target.astype(np.uint32))
        self._ids.append(ids.astype(self.dtype))
        self._lengths.append(n_prompt + n_target + 2)
        self._held += ids.size * self.dtype.itemsize
        if self._held >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the rest, and the arrays of lengths."""
        self._flush()
        self._end_shard()
        for name, parts in (("n_prompt", self.n_prompt), ("n_target", self.n_target)):
            save_array(self.folder / f"{name}.npy", np.concatenate(parts) if parts else np.zeros(0, np.uint32))

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._ids:
            return
        ids, lengths = np.concatenate(self._ids), np.concatenate(self._lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._ids, self._lengths, self._held = [], [], 0
        if self._sink is None:
            schema = schema_of(self.dtype)
            self._sink = pa.ipc.new_file(
                pa.OSFile(str(self.folder / f"shard-{self._n_shards:05d}.arrow"), "wb"), schema
            )
        column = pa.LargeListArray.from_arrays(
            pa.array(offsets), pa.array(ids), type=schema_of(self.dtype).field(0).type
        )
        self._sink.write_batch(pa.record_batch([column], schema=schema_of(self.dtype)))
        self._n_items += len(lengths)
        self._n_bytes += ids.nbytes
        if self._n_items >= SHARD_ITEMS or self._n_bytes >= SHARD_BYTES:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._n_shards, self._n_items, self._n_bytes, self._sink = self._n_shards + 1, 0, 0, None


def schema_of(dtype: np.dtype[Any]) -> Any:
    """The Arrow schema of a shard."""
    import pyarrow as pa

    ids = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    return pa.schema([pa.field("ids", pa.large_list(ids), nullable=False)])


def save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def describe(folder: Path, digest: str, vocab_size: int, before: Manifest | None = None) -> Manifest:
    """The manifest of a folder's files, not yet written. Files that `before` names are taken over from it."""
    files = dict(before.files if before else {})
    for path in sorted(folder.iterdir()):
        if path.name not in (*files, MANIFEST) and not path.name.startswith("."):
            files[path.name] = File(bytes=path.stat().st_size, blake2b=_hash(path))
            _VERIFIED.add(_key(path.stat(), files[path.name]))
    return Manifest(digest=digest, vocab_size=vocab_size, files=dict(sorted(files.items())))


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, after all its files are on disk."""
    for name in manifest.files:
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
    with open(folder / MANIFEST, "w") as text:
        text.write(manifest.model_dump_json(indent=1))
        text.flush()
        os.fsync(text.fileno())
    durable.sync_folder(folder)


# Reading ----------------------------------------------------------------------------------------------------------------


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a folder. Raises TableError if it is missing or damaged, or a file is missing or has another size."""
    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        _check_size(folder / name, facts)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, without a look at its files. Raises TableError if it is missing or not of its form."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as problem:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {problem.strerror or problem}") from None
    except ValueError:
        raise _damaged(folder, f"{MANIFEST} is not of the form that is written here") from None


def verify_file(path: Path, facts: File) -> None:
    """Check the checksum of a file, once in a process. Raises TableError if size or checksum differ from the manifest's."""
    status = _check_size(path, facts)
    if _key(status, facts) not in _VERIFIED:
        if _hash(path) != facts.blake2b:
            raise _damaged(path.parent, f"{path.name} has another checksum than {MANIFEST} says")
        _VERIFIED.add(_key(status, facts))


def _key(status: os.stat_result, facts: File) -> tuple[int, int, int, int, str]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, facts.blake2b


def load_array(path: Path, facts: File, dtype: type, n: int) -> np.ndarray:
    """An array (n,) of a folder as a memory map, verified. Raises TableError if it is not of this type and length."""
    verify_file(path, facts)
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise _damaged(path.parent, f"{path.name} is no array") from None
    if array.dtype != dtype or (n >= 0 and array.shape != (n,)) or array.ndim != 1:
        raise _damaged(path.parent, f"{path.name} is {array.dtype} {array.shape}; needed: {np.dtype(dtype)} ({n},)")
    return array


class Items:
    """The items of a prepared folder: token ids by item number, through memory maps.

    Presence, size and type of all files are checked at once, the checksum of a shard when it is first used. Raises TableError
    with the name of a file that was truncated, altered or retyped.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None) -> None:
        self.folder = Path(folder)
        self._manifest = manifest or open_manifest(self.folder)
        self.dtype = dtype_of(self._manifest.vocab_size)
        self._shards = sorted(name for name in self._manifest.files if name.startswith("shard-"))
        self._ids: list[np.ndarray] = []  # by record batch
        self._offsets: list[np.ndarray] = []
        self._shard_of: list[int] = []
        firsts = [0]
        for number, name in enumerate(self._shards):
            for ids, offsets in self._open(name):
                self._ids.append(ids)
                self._offsets.append(offsets)
                self._shard_of.append(number)
                firsts.append(firsts[-1] + len(offsets) - 1)
        self._firsts = np.array(firsts)
        self._unverified = set(range(len(self._shards)))
        self.n_prompt = self._lengths("n_prompt.npy")
        """Token ids of each prompt, (n,) uint32."""
        self.n_target = self._lengths("n_target.npy")
        """Token ids of each target, without the mark at its end, (n,) uint32."""

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def item(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(prompt ids, target ids) of an item, as views of the memory map, without marks."""
        batch = self._batch_of(np.array([number]))[0]
        at = number - int(self._firsts[batch])
        start, stop = self._offsets[batch][at : at + 2].tolist()
        middle = start + int(self.n_prompt[number])
        ids = self._ids[batch]
        return ids[start:middle], ids[middle + 1 : stop - 1]

    def tokens(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sequences `[prompt] ANSWER [target] END` of many items, one behind the other, in the given order.

        Returns (ids (sum of lengths,), offsets (n + 1,) int64, n_prompt (n,)). Sequence i is `ids[offsets[i] : offsets[i + 1]]`.
        Raises IndexError for a number that is no item's.
        """
        numbers = np.asarray(numbers, np.int64)
        batches = self._batch_of(numbers)
        n_prompt = self.n_prompt[numbers].astype(np.int64)
        lengths = n_prompt + self.n_target[numbers] + 2
        offsets = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids = np.empty(int(offsets[-1]), self.dtype)
        starts = np.empty(len(numbers), np.int64)
        for batch in np.unique(batches).tolist():
            here = batches == batch
            starts[here] = self._offsets[batch][numbers[here] - self._firsts[batch]]
        sources = self._ids
        for batch, start, length, to in zip(
            batches.tolist(), starts.tolist(), lengths.tolist(), offsets.tolist(), strict=False
        ):
            ids[to : to + length] = sources[batch][start : start + length]
        return ids, offsets, n_prompt

    def verify(self) -> None:
        """Verify the checksums of all files. Raises TableError with the name of the first file that differs."""
        for name, facts in self._manifest.files.items():
            verify_file(self.folder / name, facts)
        self._unverified.clear()

    def _batch_of(self, numbers: np.ndarray) -> np.ndarray:
        """The record batch of each item. Verifies the shards that are used for the first time."""
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"item numbers are 0 ... {len(self) - 1}")
        batches: np.ndarray = np.searchsorted(self._firsts, numbers, side="right") - 1
        if self._unverified:
            new = self._unverified & {self._shard_of[batch] for batch in np.unique(batches).tolist()}
            names = [self._shards[number] for number in new]
            with ThreadPoolExecutor(VERIFIERS) as threads:
                list(threads.map(lambda name: verify_file(self.folder / name, self._manifest.files[name]), names))
            self._unverified -= new
        return batches

    def _open(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, offsets) of each record batch of a shard, over the memory map."""
        import pyarrow as pa

        try:
            shard = pa.ipc.open_file(pa.memory_map(str(self.folder / name)))
            if shard.schema != schema_of(self.dtype):
                kinds = ", ".join(f"{field.name}: {field.type}" for field in shard.schema)
                raise _damaged(self.folder, f"{name} holds {kinds}; needed: {self.dtype} ids")
            columns = [shard.get_batch(i).column(0) for i in range(shard.num_record_batches)]
        except TableError:
            raise
        except (
            OSError,
            ValueError,
            NotImplementedError,
            MemoryError,
        ) as problem:  # all errors of Arrow are one of these
            raise _damaged(self.folder, f"{name} is no Arrow file: {first_line(problem)}") from None
        return [
            (np.frombuffer(c.values.buffers()[1], self.dtype), np.frombuffer(c.buffers()[1], np.int64)) for c in columns
        ]

    def _lengths(self, name: str) -> np.ndarray:
        if name not in self._manifest.files:
            raise _damaged(self.folder, f"{MANIFEST} names no {name}")
        return load_array(self.folder / name, self._manifest.files[name], np.uint32, len(self))


def _check_size(path: Path, facts: File) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as problem:
        raise _damaged(path.parent, f"{path.name} cannot be read: {problem.strerror or problem}") from None
    if status.st_size != facts.bytes:
        raise _damaged(path.parent, f"{path.name} has {status.st_size:,} bytes; {MANIFEST} says {facts.bytes:,}")
    return status


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _damaged(folder: Path, what: str) -> TableError:
    return TableError(f"{folder}: {what}; delete this folder, and it is prepared again from its table")
