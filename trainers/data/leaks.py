"""The leak certificate: does training hold items of the held-out sets, word for word or nearly so?

    compared = compare(train, {"new_items": ..., "held_out": ..., "held_out_clusters": ...}, Limits())
    compared.certificate.lines()   # for a terminal or a report
    compared.certificate.leaking   # why a study must stop; "" if it may start
    compared.drop                  # the training items that `on_leak: drop` removes

Exact copies are sought among all items, by content hash.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainers.records import Index, Record

N_EXAMPLES = 5
"""Most examples of a set, and most pairs of tasks, that a certificate holds."""

N_CHARACTERS = 200
"""Most characters of a text in an example. Longer texts are cut."""

_BLOCK = 1 << 20  # items a block: 16 MiB of hashes


class Item(NamedTuple):
    """One item as text."""

    prompt: str
    target: str
    task: str
    """Name of its task."""
    where: str = ""
    """Its place for a reader, such as "tasks.csv, row 12"."""


def content_hash(prompt: str, target: str) -> bytes:
    """The 16 bytes that identify an item's content. Unicode is normalised (NFC), and a run of white space counts as one blank."""
    return hashlib.blake2b(
        f"{_normal(prompt)}\n{_normal(target)}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def _normal(text: str) -> str:
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


@dataclass(frozen=True)
class Pool:
    """The items of one set. Their texts are read one by one, so they need not be in memory."""

    hashes: np.ndarray
    """`content_hash` of each item: (N,) of dtype S16."""
    tasks: np.ndarray
    """Number of each item's task: (N,) integers. One task has the same number in all pools."""
    item: Callable[[int], Item]
    """Gives item 0 ... N-1. Called for the items that are compared for near-duplicates, and for examples."""

    def __len__(self) -> int:
        return len(self.hashes)


def pools(sets: Mapping[str, Sequence[Item]]) -> dict[str, Pool]:
    """A pool of each list of items. Tasks are numbered by their names."""
    numbers: dict[str, int] = {}
    return {
        name: Pool(
            np.array([content_hash(item.prompt, item.target) for item in items], dtype="S16"),
            np.array([numbers.setdefault(item.task, len(numbers)) for item in items], dtype=np.int64),
            items.__getitem__,
        )
        for name, items in sets.items()
    }


class Limits(Record):
    """What counts as a leak, and how many items are compared. Exact copies always count, and all items are compared for them."""

    near_share: float | None = None
    """Largest share of near-duplicates in a held-out set. More is a leak. None: near-duplicates are counted and never a leak."""
    n_train: Index = 200_000
    """Most training items that are compared for near-duplicates; of more a sample."""
    n_held_out: Index = 10_000
    """Most items of each held-out set that are compared for near-duplicates; of more a sample."""
    task_share: float = 0.2
    """A held-out task and a training task are reported as a pair if at least this share of the held-out task's items, and at
    least two items, have a copy or near-duplicate in the training task."""


class Example(Record):
    """A held-out item and the training item that gives it away. Texts are cut to `N_CHARACTERS` characters."""

    held_out: str
    train: str
    held_out_task: str
    train_task: str
    held_out_where: str
    train_where: str
    similarity: float
    """Jaccard similarity of both items' contents. 1 for exact copies."""


class SetLeaks(Record):
    """The items of one held-out set that training holds too."""

    n_items: Index
    n_exact: Index
    """Items with an exact copy in training."""
    n_compared: Index
    """Items compared for near-duplicates. It counts those in `n_short` too."""
    n_short: Index
    """Compared items whose content is too short for near-duplicates. Only exact copies of them are found."""
    n_near: Index
    """Compared items with a near-duplicate in training, without exact copies."""
    n_near_other_answer: Index
    """Items of `n_near` whose near-duplicates all have another target. They are no leak: tasks may share their inputs."""
    exact: tuple[Example, ...]
    near: tuple[Example, ...]


class TaskPair(Record):
    """A held-out task whose items stand in a training task."""

    held_out: str
    train: str
    n_items: Index
    """Items of the held-out task that were compared."""
    n_found: Index
    """Items of `n_items` with an exact copy or a near-duplicate in the training task."""
    example: Example


class Certificate(Record):
    """What was compared and what was found."""

    limits: Limits
    n_train: Index
    n_train_compared: Index
    """Training items compared for near-duplicates."""
    n_dropped: Index
    """Training items that `on_leak: drop` had removed before."""
    sets: dict[str, SetLeaks]
    n_pairs: Index
    """Pairs of a held-out and a training task above `limits.task_share`."""
    pairs: tuple[TaskPair, ...]
    """The pairs with the largest shares."""

    @property
    def leaking(self) -> str:
        """Why the study must not start, in one line with an example; "" if it may."""
        reasons = []
        for name, found in self.sets.items():
            if found.n_exact:
                reasons.append(f"{found.n_exact} of {found.n_items} items of {name} stand in training")
            near, limit = found.n_near - found.n_near_other_answer, self.limits.near_share
            if limit is not None and near > limit * found.n_compared:
                reasons.append(
                    f"{near} of {found.n_compared} items of {name} have near-duplicates in training (limit {limit:g})"
                )
        examples = [e for found in self.sets.values() for e in (*found.exact, *found.near)]
        if not reasons:
            return ""
        first = examples[0]
        places = " and ".join(place for place in (first.held_out_where, first.train_where) if place)
        return f"{'; '.join(reasons)}; for example {first.held_out!r}{f' ({places})' if places else ''}"

    def lines(self) -> list[str]:
        """The certificate in a few sentences."""
        lines = []
        for name, found in self.sets.items():
            line = f"{name}: {found.n_exact} of {found.n_items} items are exact copies of training items"
            lines.append(line)
        return lines


class Compared(NamedTuple):
    """A certificate, and the training items to remove."""

    certificate: Certificate
    drop: np.ndarray
    """Numbers of the training items that `on_leak: drop` removes, ascending, (M,) int64: exact copies of held-out items; and
    near-duplicates with the same answer that were found, if `Limits.near_share` is declared."""


def compare(train: Pool, sets: Mapping[str, Pool], limits: Limits | None = None, n_dropped: int = 0) -> Compared:
    """Compare the training items with each held-out set. `n_dropped` is copied into the certificate.

    After a drop, compare again without the dropped items: the second certificate is the study's. Equal contents give equal
    certificates. Raises ModuleNotFoundError with one line if the extra `text` is not installed.
    """
    limits = limits or Limits()
    drop: set[int] = set()
    found = {}
    for name, pool in sets.items():
        held_out, copies = exact_copies(train.hashes, pool.hashes)
        drop.update(copies.tolist())
        items, first = np.unique(held_out, return_index=True)
        examples = [
            _example(pool.item(int(h)), train.item(int(t)), 1.0)
            for h, t in zip(items[:N_EXAMPLES], copies[first][:N_EXAMPLES], strict=True)
        ]
        found[name] = SetLeaks(
            n_items=len(pool),
            n_exact=len(items),
            n_compared=0,
            n_short=0,
            n_near=0,
            n_near_other_answer=0,
            exact=tuple(examples),
            near=(),
        )
    certificate = Certificate(
        limits=limits, n_train=len(train), n_train_compared=0, n_dropped=n_dropped, sets=found, n_pairs=0, pairs=()
    )
    return Compared(certificate, np.array(sorted(drop), dtype=np.int64))


def exact_copies(train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of equal hashes, as two arrays (M,) int64: places in `held_out` and places in `train`.

    `train` (N,) and `held_out` (K,) are S16. `train` may be a memory map: it is read in blocks.
    """
    order = np.argsort(held_out, kind="stable")
    keys, starts, counts = np.unique(held_out[order], return_index=True, return_counts=True)
    places, groups = [], []
    for start in range(0, len(train) if len(keys) else 0, _BLOCK):
        block = train[start : start + _BLOCK]
        group = np.minimum(np.searchsorted(keys, block), len(keys) - 1)
        hits = np.flatnonzero(keys[group] == block)
        places.append(start + hits)
        groups.append(group[hits])
    if not places:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    place, group = np.concatenate(places), np.concatenate(groups)
    sizes = counts[group]  # equal items of the held-out set
    offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.repeat(starts[group], sizes) + offset], np.repeat(place, sizes)


def _example(held_out: Item, train: Item, similarity: float) -> Example:
    return Example(
        held_out=_cut(held_out),
        train=_cut(train),
        held_out_task=held_out.task,
        train_task=train.task,
        held_out_where=held_out.where,
        train_where=train.where,
        similarity=similarity,
    )


def _cut(item: Item) -> str:
    text = f"{_normal(item.prompt)} → {_normal(item.target)}"
    return text if len(text) <= N_CHARACTERS else f"{text[: N_CHARACTERS - 1]}…"
