"""One preparation of a table: reads its rows once, writes token ids, chooses the parts and compares them for leaks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from trainers.data import leaks, shards
from trainers.data.parts import PARTS, Facts, Part, Rules, choose, n_new
from trainers.data.sources import Source, TableError, first_line
from trainers.data.tables import Columns, Render, Rows, place, rows
from trainers.data.tokens import Tokens
from trainers.streams import mix64

PREPARE_VERSION = 3
"""Part of every digest. Raise it when the same table gives other items, parts or files."""
FACTS, LEAKS, TASKS, ORDER = "facts.json", "leaks.json", "tasks.json", "order.npy"
NOTES = {".hashes": "S16", ".tasks": "<i4", ".places": "<i8", ".prompts": "<u8"}
"""Files with one value an item, while a table is prepared: content hash, task by first row, file and row, hash of prompt and task."""
SAY_SECONDS = 5
"""Seconds between two lines of progress."""
Say = Callable[[str], None]


def digest_of(content: Any) -> str:
    """A digest of JSON."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Index:
    """Tasks in the order of their names, and their items in the order of their hashes, new items first."""

    names: list[str]
    clusters: list[str] | None
    weights: list[float] | None
    parts: list[Part]
    n_items: np.ndarray
    """Items of each task, (K,)."""
    n_new: np.ndarray
    """New items of each task, (K,). All items of a held-out task are new."""
    order: np.ndarray
    """Item numbers, (N,) int64, task by task."""

    def sets(self) -> dict[str, np.ndarray]:
        """Item numbers of the four sets."""
        starts = np.cumsum(self.n_items) - self.n_items
        rank = np.arange(len(self.order)) - np.repeat(starts, self.n_items)
        is_new = rank < np.repeat(self.n_new, self.n_items)
        part = np.repeat([PARTS.index(part) for part in self.parts], self.n_items)
        found = {"train_items": self.order[~is_new], "new_items": self.order[is_new & (part == 0)]}
        return found | {name: self.order[part == i] for i, name in enumerate(PARTS) if i}

    def without(self, dropped: np.ndarray) -> Index:
        """The index without some training items, and without training tasks that have none left."""
        task = np.repeat(np.arange(len(self.names)), self.n_items)
        left = ~np.isin(self.order, dropped)
        n_items = np.bincount(task[left], minlength=len(self.names))
        stays = (n_items > self.n_new) | np.array([part != "train" for part in self.parts])
        tasks = np.flatnonzero(stays).tolist()
        return Index(
            names=[self.names[i] for i in tasks],
            clusters=[self.clusters[i] for i in tasks] if self.clusters else None,
            weights=[self.weights[i] for i in tasks] if self.weights else None,
            parts=[self.parts[i] for i in tasks],
            n_items=n_items[stays],
            n_new=self.n_new[stays],
            order=self.order[left & stays[task]],
        )

    def save(self, folder: Path) -> None:
        """Write the tasks and the order of their items to the folder."""
        shards.save_array(folder / ORDER, self.order)
        cluster_names = sorted(set(self.clusters or []))
        numbers = {name: i for i, name in enumerate(cluster_names)}
        tasks = {
            "names": self.names,
            "cluster_names": cluster_names,
            "clusters": [numbers[cluster] for cluster in self.clusters or []] or [0] * len(self.names),
            "parts": self.parts,
            "weights": self.weights or [1.0] * len(self.names),
            "n_items": self.n_items.tolist(),
            "n_new": self.n_new.tolist(),
        }
        (folder / TASKS).write_text(json.dumps(tasks, ensure_ascii=False))


class Making:
    """One preparation: `read` writes the items of a table into a folder, `finish` the rest."""

    def __init__(
        self, source: Source, columns: Columns, tokens: Tokens, rules: Rules, render: Render | None, say: Say
    ) -> None:
        self.source, self.columns, self.tokens, self.rules, self.render, self.say = (
            source, columns, tokens, rules, render, say)  # fmt: skip
        self.n_rows = self.n_repeats = self.n_too_long = self.n_altered = self.n_unknown = 0
        self.altered = self.unknown = ""
        self.unread: frozenset[str] = frozenset()
        self.content = _Content()
        self.seen = _Seen()
        self.tasks: dict[str, int] = {}  # name -> number by first row
        self.about: list[tuple[str | None, str | None, float | None]] = []  # cluster, split, weight
        self.first_at: list[tuple[int, int]] = []  # file and row of each task, for messages
        self.alike: dict[tuple[str, str], tuple[str, int]] = {}  # a normalised name -> the name and its task
        self.began = self.said = time.monotonic()

    @property
    def digest(self) -> str:
        """Name of the folder, once the table is read."""
        records = [record.model_dump_json() for record in (self.tokens, self.rules)]
        return digest_of([self.content.digest(), *records, PREPARE_VERSION])

    def read(self, folder: Path) -> None:
        """Read all rows. Writes the shards, the lengths, and `NOTES`. Raises TableError for a row that cannot be used."""
        writer = shards.Writer(folder, self.tokens.vocab_size)
        self.file_numbers = {file: number for number, file in enumerate(self.source.files)}
        with contextlib.ExitStack() as stack:
            hashes, tasks, places, prompts = (stack.enter_context(open(folder / name, "wb")) for name in NOTES)
            for batch in rows(self.source, self.columns, self.render):
                self.unread |= batch.unread
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
                asked = np.array([leaks.content_hash(batch.task[i], batch.prompt[i]) for i in kept.tolist()], "S16")
                asked.view("<u8")[::2].tofile(prompts)
                self._progress()
            writer.close()
        if changed := self.source.changed():
            raise TableError(f"{changed}: this file changed while it was read; start again when nothing writes to it")
        if self.n_unknown:
            raise TableError(
                f"{self.unknown}: the tokenizer lacks text of {self.n_unknown:,} of {self.n_rows:,} targets, and an answer of its "
                "unknown token would count as right; use a tokenizer that knows it, or bytes"
            )

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
                self._check_name("task", name, number, batch.where(i))
                self._check_name("cluster", facts[0] or "", number, batch.where(i))
            elif facts != self.about[number]:
                k = next(k for k in range(3) if facts[k] != self.about[number][k])
                raise TableError(
                    f"{batch.where(i)}: task {name!r} has {('cluster', 'split', 'weight')[k]} {facts[k]!r} here and "
                    f"{self.about[number][k]!r} in {self._place(*self.first_at[number])}; one is allowed a task; make them equal"
                )
        return found

    def _check_name(self, kind: str, name: str, task: int, at: str) -> None:
        """Refuse a name that looks like another: one task in two parts would leak, and nobody would see it."""
        plain = " ".join(unicodedata.normalize("NFC", name).split())
        other, first = self.alike.setdefault((kind, plain), (name, task))
        if other != name:
            raise TableError(
                f"{at}: {kind} {name!r} and {kind} {other!r} of {self._place(*self.first_at[first])} differ in nothing that "
                "can be seen, only in white space or in the form of an accent; make them equal"
            )

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
                    "raise rules.max_tokens, or say rules.too_long: drop"
                )
            self.n_too_long += int((~fits).sum())
            prompts = [ids for ids, fit in zip(prompts, fits, strict=True) if fit]
            targets = [ids for ids, fit in zip(targets, fits, strict=True) if fit]
        if self.tokens.kind == "file":
            self._compare(batch, kept[fits], targets)
        answer, end = np.array([self.tokens.answer]), np.array([self.tokens.end])
        pieces = [piece for p, t in zip(prompts, targets, strict=True) for piece in (p, answer, t, end)]
        if pieces:
            writer.add(np.concatenate(pieces), n_prompt[fits], n_target[fits])
        return kept[fits]

    def _compare(self, batch: Rows, kept: np.ndarray, targets: list[np.ndarray]) -> None:
        """Count the targets that the tokenizer does not give back, and those with its unknown token. kept: numbers of their rows."""
        unknown = self.tokens.unknown
        for i, ids, back in zip(kept.tolist(), targets, self.tokens.decode_batch(targets), strict=True):
            text = batch.target[i]
            if back.strip() == text.strip():
                continue
            words = f"target {text[:60]!r} becomes {back[:60]!r}"
            if unknown is not None and unknown in ids:
                self.n_unknown += 1
                self.unknown = self.unknown or f"{batch.where(i)}: {words}"
            else:
                self.n_altered += 1
                self.altered = self.altered or words

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
            self.say(f"{self.source.label}: {self.n_rows:,} rows read, {self.n_rows / (now - self.began):,.0f} rows/s")

    # From rows to parts

    def finish(self, folder: Path) -> None:
        """Choose the parts, compare them for leaks, write index and facts, and seal the folder."""
        hashes, of_row, places, prompts = (_notes(folder / name, dtype) for name, dtype in NOTES.items())
        index, task = self._index(hashes, of_row)
        written = shards.describe(folder, self.digest, self.tokens.vocab_size)
        items = shards.Items(folder, written)

        def item(number: int) -> leaks.Item:
            prompt, target = (self.tokens.decode(ids) for ids in items.item(number))
            file, row = divmod(int(places[number]), 1 << 40)
            of = self.source.files[file]
            where = place(PurePosixPath(of.label).name, of.format, row)  # of any machine: without folders
            return leaks.Item(prompt, target, names[task[number]], where)

        def pool(numbers: np.ndarray) -> leaks.Pool:
            return leaks.Pool(hashes[numbers], task[numbers], lambda i: item(int(numbers[i])))

        def compared(n_dropped: int) -> leaks.Compared:
            if time.monotonic() - self.began > SAY_SECONDS:
                self.say(f"{self.source.label}: looking for items of the held-out sets in training")
            train, *others = ((name, pool(numbers)) for name, numbers in index.sets().items())
            return leaks.compare(train[1], dict(others), self.rules.leaks, n_dropped)

        names = index.names
        found = compared(0)
        if self.rules.on_leak == "drop" and len(found.drop):
            index = index.without(index.sets()["train_items"][found.drop])
            found = compared(len(found.drop))
        index.save(folder)
        n_two, first = _several(prompts[index.order])
        two_targets = ""
        if n_two:
            one, other = (item(int(index.order[i])) for i in first)
            two_targets = f"{one.prompt[:60]!r} of task {one.task!r} has {one.target[:60]!r} and {other.target[:60]!r}"
        facts = self._facts(folder, index, found.certificate, n_two, two_targets)
        (folder / FACTS).write_text(facts.model_dump_json(indent=1))
        (folder / LEAKS).write_text(found.certificate.model_dump_json(indent=1))
        shards.seal(folder, shards.describe(folder, self.digest, self.tokens.vocab_size, written))
        for name in NOTES:
            (folder / name).unlink()

    def _index(self, hashes: np.ndarray, of_row: np.ndarray) -> tuple[Index, np.ndarray]:
        """The index of all items, and the task of each item in its order of names, (N,) int32."""
        counts = np.bincount(of_row, minlength=len(self.tasks))
        names = sorted(name for name, number in self.tasks.items() if counts[number])
        if not names:
            raise TableError(f"{self.source.label}: all {self.n_rows:,} rows are too long; raise rules.max_tokens")
        old = [self.tasks[name] for name in names]
        about = [self.about[i] for i in old]
        clusters = [cluster for cluster, _, _ in about if cluster is not None] or None
        splits = [split for _, split, _ in about if split is not None] or None
        weights = [weight for _, _, weight in about if weight is not None] or None
        parts = choose(names, clusters, splits, self.rules, self.source.label)
        n_items = counts[old]
        is_train = np.array([part == "train" for part in parts])
        new = np.where(is_train, n_new(n_items, self.rules.new_items_max), n_items)
        renumber = np.zeros(len(self.tasks), np.int32)
        renumber[old] = np.arange(len(old))
        task = renumber[of_row]
        order = np.lexsort((hashes.view(">u8")[::2], task))  # by task, then by hash
        return Index(names, clusters, weights, parts, n_items, new, order), task

    def _facts(
        self, folder: Path, index: Index, certificate: leaks.Certificate, n_two_targets: int, two_targets: str
    ) -> Facts:
        n_prompt, n_target = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("n_prompt", "n_target"))
        lengths = (n_prompt + n_target + np.uint32(2))[index.order]
        clusters = list(zip(index.clusters or [], index.parts, strict=False))
        is_train = np.array([part == "train" for part in index.parts])
        return Facts(
            table=self.content.digest(),
            n_rows=self.n_rows,
            n_items=len(index.order),
            n_repeats=self.n_repeats,
            n_too_long=self.n_too_long,
            n_leaking=len(n_prompt) - len(index.order),
            n_without_items=len(self.tasks) - len(index.names),
            n_single=int((is_train & (index.n_items == 1)).sum()),
            n_tasks={part: index.parts.count(part) for part in PARTS},
            n_clusters={part: len({cluster for cluster, p in clusters if p == part}) for part in PARTS},
            n_of_set={name: len(numbers) for name, numbers in index.sets().items()},
            n_two_targets=n_two_targets,
            two_targets=two_targets,
            n_altered=self.n_altered,
            altered=self.altered,
            n_tokens=int(lengths.sum()),
            longest=int(lengths.max()),
            lengths=histogram(lengths),
            has_weights=index.weights is not None,
            certificate=certificate,
        )


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
        return digest_of({field: [h.hexdigest() for h in pair] for field, pair in sorted(self._hashes.items())})


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


def _several(keys: np.ndarray) -> tuple[int, tuple[int, int]]:
    """The number of values that occur several times in `keys` (N,), and two places of the first of them."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    begins = same & ~np.concatenate([[False], same[:-1]]) if len(same) else same
    places = np.flatnonzero(begins)
    if not len(places):
        return 0, (0, 0)
    return len(places), (int(order[places[0]]), int(order[places[0] + 1]))


def histogram(lengths: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(upper length of the bin, number of items) of the bins that are not empty. Bins are 1/8 of a power of two wide."""
    _, exponent = np.frexp(lengths.astype(np.float64))
    width = np.maximum(1, 2.0 ** (exponent - 4)).astype(np.int64)
    upper = -(-lengths.astype(np.int64) // width) * width
    values, counts = np.unique(upper, return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


def _notes(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
