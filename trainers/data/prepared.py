"""Prepared tables: a user's table, checked, tokenised and split once, in a folder that all trials of a machine share.

    prepared = prepare("tasks.csv", Columns(), Tokens(), Rules(), "data")
    prepared = open_prepared("data/<digest>")

The folder's name is a digest of the rows' content, the tokens and the rules. The same rows in another format have the same digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainers import durable
from trainers.data import leaks, shards
from trainers.data.parts import PARTS, Part, Rules, choose, n_new
from trainers.data.sources import Source, TableError, first_line
from trainers.data.tables import Columns, Render, Rows, place, rows
from trainers.data.tokens import Tokens
from trainers.records import Index, Record
from trainers.streams import mix64

PREPARE_VERSION = 1
"""Part of every digest. Raise it when the same table gives other items, parts or files."""
FACTS, LEAKS, TASKS, KNOWN = "facts.json", "leaks.json", "tasks.json", "known.json"
SAY_SECONDS = 5
"""Seconds between two lines of progress."""
Say = Callable[[str], None]


class Facts(Record):
    """What a table holds and what became of its rows: n_rows = n_items + n_repeats + n_too_long + n_leaking."""

    table: str
    """Digest of the rows' content."""
    n_rows: Index
    n_items: Index
    """Items of all parts."""
    n_repeats: Index
    """Rows left out because their task has the same item already."""
    n_too_long: Index
    """Rows left out because they have more tokens than `Rules.max_tokens`."""
    n_leaking: Index
    """Training items left out because a held-out set has them (`Rules.on_leak`)."""
    n_without_items: Index
    """Tasks left out because no item of theirs was left."""
    n_single: Index
    """Training tasks with one item. They have no new items."""
    n_tasks: dict[Part, Index]
    n_clusters: dict[Part, Index]
    """Clusters with at least one task of the part. Empty without a column for clusters."""
    n_of_set: dict[str, Index]
    """Items of the four sets: train_items, new_items, held_out, held_out_clusters."""
    n_tokens: Index
    """Tokens of all items, marks included."""
    longest: Index
    """Tokens of the longest item, marks included."""
    lengths: tuple[tuple[Index, Index], ...]
    """Histogram of the items' tokens: (largest length of the bin, number of items). Bins are 1/8 of a power of two wide."""
    has_weights: bool
    certificate: leaks.Certificate
    """The leak certificate."""


class Prepared:
    """A prepared table. Arrays that grow with the number of items are memory maps. K is the number of tasks.

    Tasks are numbered in the order of their names. Within a task, items are in the order of their content's hash.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = shards.open_manifest(self.folder)
        for name in (FACTS, TASKS):
            shards.verify_file(self.folder / name, manifest.files[name])
        tasks = json.loads((self.folder / TASKS).read_bytes())
        self.digest = manifest.digest
        self.facts = Facts.model_validate_json((self.folder / FACTS).read_bytes())
        self.items = shards.Items(self.folder, manifest)
        self.names: list[str] = tasks["names"]
        """Names of the tasks, (K,)."""
        self.cluster_names: list[str] = tasks["cluster_names"]
        """Names of the clusters, in order; empty if the table has no column for them."""
        self.clusters = np.array(tasks["clusters"], np.int64)
        """Number of each task's cluster, (K,). All 0 if the table has no column for them."""
        self.part: list[Part] = tasks["parts"]
        """Part of each task, (K,)."""
        self.weights = np.array(tasks["weights"], np.float64)
        """Weight of each task, (K,). All 1 if the table has no column for them."""
        self._order = shards.load_array(self.folder / "order.npy", manifest.files["order.npy"], np.int64, -1)
        self._offsets = np.concatenate([[0], np.cumsum(tasks["n_items"], dtype=np.int64)])
        self._n_new = np.array(tasks["n_new"], np.int64)

    @property
    def n_tasks(self) -> int:
        """Number of tasks, K."""
        return len(self.names)

    def items_of(self, task: int) -> np.ndarray:
        """Numbers of a task's items, int64, as a view. The new items come first."""
        return self._order[self._offsets[task] : self._offsets[task + 1]]

    def new_items(self, task: int) -> np.ndarray:
        """Numbers of the items that training never sees, int64, as a view. For a held-out task: all its items."""
        return self.items_of(task)[: self._n_new[task]]

    def train_items(self, task: int) -> np.ndarray:
        """Numbers of the items to train on, int64, as a view. Empty for a held-out task."""
        return self.items_of(task)[self._n_new[task] :]


def open_prepared(folder: str | Path) -> Prepared:
    """Open a prepared folder. Raises TableError, in one line, if a file is missing, truncated, altered or retyped."""
    return Prepared(folder)


def prepare(
    path: str | Path,
    columns: Columns,
    tokens: Tokens,
    rules: Rules,
    root: str | Path,
    say: Say | None = None,
    render: Render | None = None,
) -> Prepared:
    """Prepare a table in a folder below `root`, once, and open it. An unchanged table is not read again.

    `path` is a file, a folder, a glob or a URI. `say` gets a line of progress now and then. `render` makes prompt and target
    of chat turns; if it has a `digest`, an unchanged table is recognised with it. Raises TableError for a table that cannot be
    used. A kill leaves nothing that counts.
    """
    root = Path(root)
    durable.make_folder(root)
    source = Source(path)
    request = _request(source, columns, tokens, rules, render)
    with _locked(root / f".{request}.lock"):
        known = _known(root).get(request)
        if known and (root / known / shards.MANIFEST).is_file():
            return Prepared(root / known)
        digest = _Making(source, columns, tokens, rules, render, say or (lambda _: None)).into(root)
        if getattr(render, "digest", render) is None or hasattr(render, "digest"):
            _remember(root, request, digest)
    return Prepared(root / digest)


def _request(source: Source, columns: Columns, tokens: Tokens, rules: Rules, render: Any) -> str:
    """A key of everything that decides on the digest, files by path, size and time."""
    records = [record.model_dump_json() for record in (columns, tokens, rules)]
    return _digest([source.stamps(), *records, getattr(render, "digest", ""), PREPARE_VERSION])


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


# One preparation --------------------------------------------------------------------------------------------------------


class _Making:
    """One preparation: reads the table once and writes a folder."""

    def __init__(
        self, source: Source, columns: Columns, tokens: Tokens, rules: Rules, render: Render | None, say: Say
    ) -> None:
        self.source, self.columns, self.tokens, self.rules, self.render, self.say = (
            source, columns, tokens, rules, render, say)  # fmt: skip
        self.n_rows = self.n_repeats = self.n_too_long = 0
        self.content = _Content()
        self.seen = _Seen()
        self.tasks: dict[str, int] = {}  # name -> number by first row
        self.about: list[tuple[str | None, str | None, float | None]] = []  # cluster, split, weight
        self.first_at: list[tuple[int, int]] = []  # of each task, for messages
        self.began = self.said = time.monotonic()

    def into(self, root: Path) -> str:
        """Prepare the table below `root`. Returns the digest, which is the folder's name."""
        _sweep(root)
        part = root / f".{time.time_ns():x}-{id(self):x}.part"
        with _locked(part.with_suffix(".lock")):
            part.mkdir()
            try:
                self._read(part)
                digest = _digest(
                    [
                        self.content.digest(),
                        self.tokens.model_dump_json(),
                        self.rules.model_dump_json(),
                        PREPARE_VERSION,
                    ]
                )
                if not (root / digest / shards.MANIFEST).is_file():
                    self._finish(part, digest)
                    _publish(part, root / digest)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return digest

    def _read(self, folder: Path) -> None:
        """Read all rows. Writes the shards, and by item its hash, its task and its place."""
        writer = shards.Writer(folder, self.tokens.vocab_size)
        self.file_numbers = {file: number for number, file in enumerate(self.source.files)}
        with (
            open(folder / ".hashes", "wb") as hashes,
            open(folder / ".tasks", "wb") as tasks,
            open(folder / ".places", "wb") as places,
        ):
            for batch in rows(self.source, self.columns, self.render):
                self.n_rows += len(batch.task)
                self.content.add(batch)
                of_task = self._tasks_of(batch)
                content = np.array(
                    [leaks.content_hash(p, t) for p, t in zip(batch.prompt, batch.target, strict=True)], "S16"
                )
                kept = self.seen.add(content, of_task)
                self.n_repeats += len(of_task) - len(kept)
                kept = self._write(writer, batch, kept)
                content[kept].tofile(hashes)
                of_task[kept].tofile(tasks)
                numbers = np.array(batch.where.numbers, np.int64)[kept]
                (numbers | self.file_numbers[batch.where.file] << 40).tofile(places)
                self._progress()
            writer.close()
        if changed := self.source.changed():
            raise TableError(f"{changed}: this file changed while it was read; start again when nothing writes to it")

    def _tasks_of(self, batch: Rows) -> np.ndarray:
        """The number of each row's task, (n,) int32. Raises TableError if a row contradicts the first row of its task."""
        found = np.empty(len(batch.task), np.int32)
        n = len(batch.task)
        nothing = [None] * n
        about = zip(batch.cluster or nothing, batch.split or nothing, batch.weight or nothing, strict=True)
        for i, (name, facts) in enumerate(zip(batch.task, about, strict=True)):
            number = found[i] = self.tasks.setdefault(name, len(self.tasks))
            if number == len(self.about):
                self.about.append(facts)
                self.first_at.append((self.file_numbers[batch.where.file], batch.where.numbers[i]))
            elif facts != self.about[number]:
                k = next(k for k in range(3) if facts[k] != self.about[number][k])
                raise TableError(
                    f"{batch.where(i)}: task {name!r} has {('cluster', 'split', 'weight')[k]} {facts[k]!r} here and "
                    f"{self.about[number][k]!r} in {self._place(*self.first_at[number])}; one is allowed a task; make them equal"
                )
        return found

    def _place(self, file: int, number: int) -> str:
        of = self.source.files[file]
        return place(of.label, of.format, number)

    def _write(self, writer: shards.Writer, batch: Rows, kept: np.ndarray) -> np.ndarray:
        """Tokenise rows and write them, without those that are too long. Returns the numbers of the written rows."""
        chosen = kept.tolist()
        prompts = self._encoded(batch, "prompt", chosen)
        targets = self._encoded(batch, "target", chosen)
        n_prompt = np.fromiter(map(len, prompts), np.int64, len(prompts))
        n_target = np.fromiter(map(len, targets), np.int64, len(targets))
        fits = n_prompt + n_target + 2 <= self.rules.max_tokens
        if not fits.all():
            if self.rules.too_long == "stop":
                i = int(np.flatnonzero(~fits)[0])
                raise TableError(
                    f"{batch.where(chosen[i])}: {n_prompt[i] + n_target[i] + 2:,} tokens ({n_prompt[i]:,} of the prompt, "
                    f"{n_target[i]:,} of the target, 2 marks); at most {self.rules.max_tokens:,} are allowed; "
                    "raise max_tokens, or say too_long: drop"
                )
            self.n_too_long += int((~fits).sum())
            prompts = [ids for ids, fit in zip(prompts, fits, strict=True) if fit]
            targets = [ids for ids, fit in zip(targets, fits, strict=True) if fit]
        answer, end = np.array([self.tokens.answer]), np.array([self.tokens.end])
        pieces = [piece for p, t in zip(prompts, targets, strict=True) for piece in (p, answer, t, end)]
        if pieces:
            writer.add(np.concatenate(pieces), n_prompt[fits], n_target[fits])
        return kept[fits]

    def _encoded(self, batch: Rows, field: str, chosen: list[int]) -> list[np.ndarray]:
        texts = [getattr(batch, field)[i] for i in chosen]
        try:
            return self.tokens.encode_batch(texts)
        except ValueError:
            for i, text in zip(chosen, texts, strict=True):
                try:
                    self.tokens.encode_batch([text])
                except ValueError as problem:
                    raise TableError(
                        f"{batch.where(i)}, {field}: {first_line(problem)}; use other tokens or text"
                    ) from None
            raise

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self.said >= SAY_SECONDS:
            self.said = now
            self.say(f"{self.source.path}: {self.n_rows:,} rows read, {self.n_rows / (now - self.began):,.0f} rows/s")

    # From rows to parts

    def _finish(self, folder: Path, digest: str) -> None:
        """Choose the parts, compare them, write index and facts, and seal the folder."""
        hashes = _column(folder / ".hashes", "S16")
        of_row = _column(folder / ".tasks", np.int32)
        places = _column(folder / ".places", np.int64)
        counts = np.bincount(of_row, minlength=len(self.tasks))
        names = sorted(name for name, number in self.tasks.items() if counts[number])
        if not names:
            raise TableError(
                f"{self.source.path}: no item is left of {self.n_rows:,} rows; all are too long; raise max_tokens"
            )
        old = [self.tasks[name] for name in names]
        clusters = [c for c, _, _ in map(self.about.__getitem__, old) if c is not None]
        splits = [s for _, s, _ in map(self.about.__getitem__, old) if s is not None]
        weights = [w for _, _, w in map(self.about.__getitem__, old) if w is not None]
        parts = choose(names, clusters or None, splits or None, self.rules, self.source.path)
        is_train = np.array([part == "train" for part in parts])
        n_items = counts[old]
        new = np.where(is_train, n_new(n_items, self.rules.new_items_max), n_items)
        renumber = np.empty(len(self.tasks), np.int32)
        renumber[old] = np.arange(len(old))
        task = renumber[of_row]
        order = np.lexsort((hashes.view(">u8")[::2], task))  # by task, then by hash
        written = shards.describe(folder, digest, self.tokens.vocab_size)
        items = shards.Items(folder, written)
        order, n_items, certificate = self._compared(items, order, n_items, new, parts, names, hashes, task, places)
        shards.save_array(folder / "order.npy", order)
        cluster_names = sorted(set(clusters))
        numbers = {name: i for i, name in enumerate(cluster_names)}
        tasks = {
            "names": names,
            "cluster_names": cluster_names,
            "clusters": [numbers[cluster] for cluster in clusters] or [0] * len(names),
            "parts": parts,
            "weights": weights or [1.0] * len(names),
            "n_items": n_items.tolist(),
            "n_new": new.tolist(),
        }
        (folder / TASKS).write_text(json.dumps(tasks, ensure_ascii=False))
        lengths = (_lengths(folder, "n_prompt") + _lengths(folder, "n_target") + 2)[order]
        train = n_items - new
        facts = Facts(
            table=self.content.digest(),
            n_rows=self.n_rows,
            n_items=len(order),
            n_repeats=self.n_repeats,
            n_too_long=self.n_too_long,
            n_leaking=len(of_row) - len(order),
            n_without_items=len(self.tasks) - len(names),
            n_single=int((is_train & (n_items == 1)).sum()),
            n_tasks={part: parts.count(part) for part in PARTS},
            n_clusters={part: len({c for c, p in zip(clusters, parts, strict=False) if p == part}) for part in PARTS},
            n_of_set={
                "train_items": int(train[is_train].sum()),
                "new_items": int(new[is_train].sum()),
                "held_out": int(n_items[[part == "held_out" for part in parts]].sum()),
                "held_out_clusters": int(n_items[[part == "held_out_clusters" for part in parts]].sum()),
            },
            n_tokens=int(lengths.sum()),
            longest=int(lengths.max()),
            lengths=histogram(lengths),
            has_weights=bool(weights),
            certificate=certificate,
        )
        (folder / FACTS).write_text(facts.model_dump_json(indent=1))
        (folder / LEAKS).write_text(certificate.model_dump_json(indent=1))
        for name in (".hashes", ".tasks", ".places"):
            (folder / name).unlink()
        shards.seal(folder, shards.describe(folder, digest, self.tokens.vocab_size, written))

    def _compared(
        self,
        items: shards.Items,
        order: np.ndarray,
        n_items: np.ndarray,
        new: np.ndarray,
        parts: list[Part],
        names: list[str],
        hashes: np.ndarray,
        task: np.ndarray,
        places: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, leaks.Certificate]:
        """Make the leak certificate. With `on_leak: drop`, leave leaking training items out of the order and of the counts."""

        def pool(numbers: np.ndarray) -> leaks.Pool:
            def item(i: int) -> leaks.Item:
                number = int(numbers[i])
                prompt, target = (self.tokens.decode(ids) for ids in items.item(number))
                file, row = divmod(int(places[number]), 1 << 40)
                return leaks.Item(prompt, target, names[task[number]], self._place(file, row))

            return leaks.Pool(hashes[numbers], task[numbers], item)

        starts = np.concatenate([[0], np.cumsum(n_items)])
        rank = np.arange(len(order)) - np.repeat(starts[:-1], n_items)
        is_new = rank < np.repeat(new, n_items)
        part = np.repeat([PARTS.index(p) for p in parts], n_items)
        train = order[~is_new]
        sets = {"new_items": pool(order[is_new & (part == 0)])} | {
            name: pool(order[part == i]) for i, name in enumerate(PARTS) if i
        }
        compared = leaks.compare(pool(train), sets, self.rules.leaks)
        if self.rules.on_leak == "drop" and len(compared.drop):
            dropped = train[compared.drop]
            n_items = n_items - np.bincount(task[dropped], minlength=len(n_items))
            order = order[~np.isin(order, dropped)]
            left = np.delete(train, compared.drop)
            compared = leaks.compare(pool(left), sets, self.rules.leaks, len(dropped))
        return order, n_items, compared.certificate


class _Content:
    """The digest of a table's content: rows in their order, however they are cut into batches and files."""

    def __init__(self) -> None:
        self._hashes: dict[str, tuple[Any, Any]] = {}

    def add(self, batch: Rows) -> None:
        for field in ("prompt", "target", "task", "cluster", "split"):
            if (values := getattr(batch, field)) is not None:
                data = [value.encode() for value in values]
                self._add(field, b"".join(data), np.fromiter(map(len, data), "<u8", len(data)).tobytes())
        if batch.weight is not None:
            self._add("weight", np.array(batch.weight, "<f8").tobytes(), b"")

    def _add(self, field: str, data: bytes, lengths: bytes) -> None:
        of_data, of_lengths = self._hashes.setdefault(
            field, (hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16))
        )
        of_data.update(data)
        of_lengths.update(lengths)

    def digest(self) -> str:
        return _digest({field: [h.hexdigest() for h in pair] for field, pair in sorted(self._hashes.items())})


class _Seen:
    """The items seen so far, as sorted arrays of 64-bit hashes: 8 bytes an item.

    Arrays of similar length are merged, so there are few. Two different items of 25 million agree with probability 2e-5.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, hashes: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """The numbers of the rows, ascending, whose item is new in its task. hashes (n,) S16, tasks (n,)."""
        words = hashes.view("<u8").reshape(-1, 2)
        with np.errstate(over="ignore"):
            keys = mix64(words[:, 0] + mix64(words[:, 1] + tasks.astype(np.uint64)))
        keys, first = np.unique(keys, return_index=True)
        fresh = np.ones(len(keys), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            fresh &= run[at] != keys
        self._runs.append(keys[fresh])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")  # radix or merge sort: the two parts are sorted already
            self._runs.append(merged)
        kept: np.ndarray = np.sort(first[fresh])
        return kept


def histogram(lengths: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(upper length of the bin, number of items) of the bins that are not empty. Bins are 1/8 of a power of two wide."""
    _, exponent = np.frexp(lengths.astype(np.float64))
    width = np.maximum(1, 2.0 ** (exponent - 4)).astype(np.int64)
    upper = -(-lengths.astype(np.int64) // width) * width
    values, counts = np.unique(upper, return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


def _column(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _lengths(folder: Path, name: str) -> np.ndarray:
    found: np.ndarray = np.load(folder / f"{name}.npy")
    return found


# Folders and locks ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process. The lock's file is removed at the end."""
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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


def _sweep(root: Path) -> None:
    """Remove what killed preparations left: folders whose lock nobody holds."""
    for part in root.glob(".*.part"):
        with contextlib.suppress(OSError), open(part.with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
            part.with_suffix(".lock").unlink(missing_ok=True)


def _publish(part: Path, folder: Path) -> None:
    if folder.exists() and not (folder / shards.MANIFEST).is_file():
        shutil.rmtree(folder)  # damaged by hand
    try:
        part.rename(folder)
    except OSError:
        if not (folder / shards.MANIFEST).is_file():  # else another process was faster
            raise
    durable.sync_folder(folder.parent)


def _known(root: Path) -> dict[str, str]:
    try:
        known = json.loads((root / KNOWN).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(root: Path, request: str, digest: str) -> None:
    with _locked(root / f".{KNOWN}.lock"):
        temporary = root / f".{KNOWN}.new"
        temporary.write_text(json.dumps(_known(root) | {request: digest}, indent=1))
        temporary.replace(root / KNOWN)
