"""The leak certificate: does training hold items of the held-out sets, word for word or nearly so?

    compared = compare(train, {"new_items": ..., "held_out": ..., "held_out_clusters": ...}, Limits())
    compared.certificate.lines()   # for a terminal or a report
    compared.certificate.leaking   # why a study must stop; "" if it may start
    compared.drop                  # the training items that `on_leak: drop` removes

Exact copies are sought among all items, by a hash of their content. Near-duplicates are sought among all items up to a limit, of
more among a sample (`trainers.data.near` says how). Limits of what is found:

- An item is compared for near-duplicates if five pairs of neighbouring words are left of it without its task's template: about six
  words. Of copies with one word in ten changed, 0.89 were found at 8 words, 0.95 at 9, 0.98 at 10 and 0.99 from 12 on. Of a number, a short phrase or a string without blanks only exact copies are found, and so in small vocabularies (a pair of
  words that a hundredth of the items has is no content). Only the first 500 words of prompt and target are read.
- A text in five or more items of a task, and in a fiftieth of them, counts as its template. So does a text in all items of a task
  with two to four. Near-duplicates of such texts are not found.
- Paraphrases, translations, and the same content in another notation are not found.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainers.data.near import (
    FEWEST,
    Contents,
    contents,
    joined,
    near_duplicates,
    same_templates,
    templates,
    usual_pairs,
)
from trainers.records import Index, Record
from trainers.streams import key_of, mix64

N_EXAMPLES = 5
"""Most examples of a set, and most pairs of tasks, that a certificate holds."""

N_CHARACTERS = 200
"""Most characters of a text in an example. Longer texts are cut."""

_BLOCK = 1 << 20  # items a block: 16 MiB of hashes
_MOST_TASKS = 1000  # a side, for the comparison of instructions


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
    """Most training items that are compared for near-duplicates; of more, or of more than five million words, a sample."""
    n_held_out: Index = 10_000
    """Most items of each held-out set that are compared for near-duplicates; of more, or of more than five million words, a sample."""
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
    """Jaccard similarity of both contents, templates taken off. 1 for exact copies."""


class SetLeaks(Record):
    """The items of one held-out set that training holds too."""

    n_items: Index
    n_exact: Index
    """Items with an exact copy in training."""
    n_compared: Index
    """Items compared for near-duplicates, those of `n_short` included."""
    n_short: Index
    """Compared items whose content is too short for near-duplicates. Only exact copies of them are found."""
    n_near: Index
    """Compared items with a near-duplicate in training and no exact copy."""
    n_near_other_answer: Index
    """Items of `n_near` whose near-duplicates all have another target. They are no leak: tasks may share their inputs."""
    exact: tuple[Example, ...]
    near: tuple[Example, ...]
    """The most similar near-duplicates, those with the same answer first."""


class TaskPair(Record):
    """A held-out task whose items stand in a training task."""

    held_out: str
    train: str
    n_items: Index
    """Items of the held-out task in its set."""
    n_found: Index
    """Items of `n_items` with a copy in the training task, or a near-duplicate with the same answer among those compared."""
    example: Example


_SETS = {"new_items": "New items", "held_out": "Held-out tasks", "held_out_clusters": "Clusters held out whole"}
"""Names of the sets in sentences."""


class Certificate(Record):
    """What was compared, and what was found."""

    limits: Limits
    n_train: Index
    n_train_compared: Index
    """Training items compared for near-duplicates."""
    n_dropped: Index
    """Training items that `on_leak: drop` had removed before."""
    sets: dict[str, SetLeaks]
    n_pairs: Index
    """Pairs of a held-out and a training task that share at least `limits.task_share` of the held-out task's items."""
    pairs: tuple[TaskPair, ...]
    """The pairs with the largest shares."""
    n_tasks_compared: Index
    """Held-out tasks whose instructions were compared: those with a template of at least six words, at most 1,000."""
    n_same_template: Index
    """Tasks of `n_tasks_compared` whose template, equal or nearly so, is that of one of at most 1,000 training tasks. They are no
    leak. They may differ in nothing but their contents."""
    same_template: tuple[Example, ...]
    """Items of such tasks. `similarity` is that of the templates."""

    @property
    def n_near_sought(self) -> int:
        """Held-out items that are long enough to have near-duplicates, of those compared."""
        return sum(found.n_compared - found.n_short for found in self.sets.values())

    @property
    def leaking(self) -> str:
        """Why no study must start, in one line with an example; "" if one may."""
        reasons: list[str] = []
        examples: list[Example] = []
        for name, found in self.sets.items():
            if found.n_exact:
                reasons.append(f"{found.n_exact} of {found.n_items} items of {name} stand in training")
                examples += found.exact
            near, limit = found.n_near - found.n_near_other_answer, self.limits.near_share
            if limit is not None and near > limit * found.n_compared:
                reasons.append(
                    f"{near} of {found.n_compared} items of {name} have near-duplicates in training, at most a share of {limit:g} is "
                    "allowed"
                )
                examples += found.near
        if not reasons:
            return ""
        return f"{'; '.join(reasons)}; for example {_told(examples[0])}"

    def lines(self) -> list[str]:
        """The certificate in a few sentences, for a terminal or a report."""
        part = (
            ""
            if self.n_train_compared == self.n_train
            else f" (a sample of {self.n_train_compared:,} for near-duplicates)"
        )
        lines = [f"Held-out items were compared with {self.n_train:,} training items{part}."]
        if self.n_dropped:
            lines.append(f"{self.n_dropped} training items were dropped because a held-out set has them.")
        for name, found in self.sets.items():
            if not found.n_items:
                continue
            line = f"{_SETS.get(name, name)}: {found.n_exact:,} of {found.n_items:,} are exact copies of training items"
            if sought := found.n_compared - found.n_short:
                other = (
                    f", {found.n_near_other_answer:,} of them with another answer" if found.n_near_other_answer else ""
                )
                line += f"; {found.n_near:,} of {sought:,} that are long enough have a near-duplicate{other}"
            lines.append(f"{line}." if sought else f"{line}; all are too short for near-duplicates.")
            lines += [f"  Exact copy: {_told(example)}" for example in found.exact[:1]]
            lines += [f"  Near-duplicate: {_told(example)}" for example in found.near[:1]]
        if self.n_pairs:
            pair = self.pairs[0]
            lines.append(
                f"{self.n_pairs} pairs of a held-out and a training task share items: {pair.train!r} has {pair.n_found} of {pair.n_items} "
                f"items of {pair.held_out!r}."
            )
        if self.n_same_template:
            first = self.same_template[0]
            lines.append(
                f"{self.n_same_template} of {self.n_tasks_compared} held-out tasks have the instruction of a training task: "
                f"{first.held_out_task!r} that of {first.train_task!r}."
            )
        return lines


class Compared(NamedTuple):
    """A certificate, and the training items to remove."""

    certificate: Certificate
    drop: np.ndarray
    """Numbers of the training items that `on_leak: drop` removes, ascending, (M,) int64: exact copies of held-out items; and, if
    `Limits.near_share` is declared, near-duplicates with the same answer among the items compared."""


def compare(train: Pool, sets: Mapping[str, Pool], limits: Limits | None = None, n_dropped: int = 0) -> Compared:
    """Compare the training items with each held-out set. `n_dropped` is copied into the certificate.

    After a drop, compare again without the dropped items: the second certificate is the study's. Raises TableError with one line
    if the extra `text` is not installed.
    """
    limits = limits or Limits()
    exact = {}
    for name, pool in sets.items():
        held_out, copies = exact_copies(train.hashes, pool.hashes)
        exact[name] = _Pairs(held_out, copies, np.ones(len(copies)), np.ones(len(copies), bool))
    near = _near(train, sets, limits)
    drop = [pairs.train for pairs in exact.values()]
    if limits.near_share is not None:
        drop += [pairs.train[pairs.same_answer] for pairs in near.pairs.values()]
    n_pairs, pairs = _task_pairs(
        train, sets, {name: [exact[name], near.pairs[name]] for name in sets}, limits.task_share
    )
    certificate = Certificate(
        limits=limits,
        n_train=len(train),
        n_train_compared=near.n_train,
        n_dropped=n_dropped,
        sets={
            name: _set_leaks(train, pool, exact[name], near.pairs[name], near.n_compared[name], near.n_short[name])
            for name, pool in sets.items()
        },
        n_pairs=n_pairs,
        pairs=pairs,
        n_tasks_compared=near.n_tasks,
        n_same_template=near.n_same_template,
        same_template=tuple(near.same_template),
    )
    return Compared(certificate, np.unique(np.concatenate([np.empty(0, np.int64), *drop])))


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


def _told(example: Example) -> str:
    """An example in a message: both places where the texts are equal, else both texts."""
    places = [example.held_out_where, example.train_where]
    if example.held_out == example.train:
        return f"{example.held_out!r} ({' and '.join(place for place in places if place) or example.held_out_task})"
    first, second = (
        f"{text!r}{f' ({place})' if place else ''}"
        for text, place in zip((example.held_out, example.train), places, strict=True)
    )
    return f"{first} and in training {second}"


class _Pairs(NamedTuple):
    """Held-out items and training items that have the same content or nearly so, as numbers in their pools: four arrays (P,)."""

    held_out: np.ndarray
    train: np.ndarray
    similar: np.ndarray
    same_answer: np.ndarray


def _read(pool: Pool, most: int) -> tuple[np.ndarray, Contents]:
    """The contents of at most `most` items, drawn by their own hash and so in whatever order they come, and their numbers."""
    words = np.ascontiguousarray(pool.hashes).view(np.uint64)[::2]
    with np.errstate(over="ignore"):
        draws = mix64(words + np.uint64(key_of("leaks", "sample") & (2**64 - 1)))
    numbers = np.arange(len(pool))
    if len(pool) > most:
        numbers = np.argpartition(draws, most)[:most]
    numbers = numbers[np.argsort(draws[numbers], kind="stable")]
    read = contents(pool.item(int(number))[:2] for number in numbers)
    return numbers[: len(read.answers)], read


class _Nears(NamedTuple):
    """What the comparison for near-duplicates found."""

    n_train: int
    """Training items compared."""
    n_compared: dict[str, int]
    n_short: dict[str, int]
    pairs: dict[str, _Pairs]
    n_tasks: int
    n_same_template: int
    same_template: list[Example]


def _near(train: Pool, sets: Mapping[str, Pool], limits: Limits) -> _Nears:
    numbers, read = _read(train, limits.n_train)
    samples = {name: _read(pool, limits.n_held_out) for name, pool in sets.items()}
    pools = [(train, numbers), *((sets[name], some) for name, (some, _) in samples.items())]
    ends = np.cumsum([len(some) for _, some in pools])
    _, task = np.unique(np.concatenate([pool.tasks[some] for pool, some in pools]), return_inverse=True)
    held_out = joined([contents([]), *(one for _, one in samples.values())])
    parts, whole = templates(joined([read, held_out]), task, 0.02, 0.5)
    usual = np.union1d(usual_pairs(read), parts.pairs)
    same = _same_templates(pools, np.split(task, ends[:-1]), whole)
    held_out, read = held_out.without(usual), read.without(usual)
    found = [np.concatenate(part) for part in zip(*near_duplicates(held_out, read), strict=True)]
    items, others, similar, same_answer = found or [np.empty(0, kind) for kind in (int, int, float, bool)]
    pairs, n_short = {}, {}
    for (name, (some, _)), start, end in zip(samples.items(), ends - ends[0], ends[1:] - ends[0], strict=False):
        n_short[name] = int((held_out.sizes[start:end] < FEWEST).sum())
        of = (items >= start) & (items < end)
        pairs[name] = _Pairs(some[items[of] - start], numbers[others[of]], similar[of], same_answer[of])
    return _Nears(len(numbers), {name: len(some) for name, (some, _) in samples.items()}, n_short, pairs, *same)


def _same_templates(
    pools: list[tuple[Pool, np.ndarray]], tasks: list[np.ndarray], own: Contents
) -> tuple[int, int, list[Example]]:
    """The number of held-out tasks compared, of those with the template of a training task, and examples."""
    of_prompts = Contents(own.keys[own.pairs % 2 == 0], own.answers)
    able = np.flatnonzero(of_prompts.sizes >= FEWEST)
    order = able[np.argsort(mix64(able.astype(np.uint64)), kind="stable")]  # no task is preferred for its name
    of_train = order[np.isin(order, tasks[0])][:_MOST_TASKS]
    held_out = order[~np.isin(order, tasks[0])][:_MOST_TASKS]
    best: dict[int, tuple[float, int]] = {}
    for block in same_templates(of_prompts.chosen(held_out), of_prompts.chosen(of_train)):
        for one, other, similar in zip(*(part.tolist() for part in block), strict=True):
            best[one] = max(best.get(one, (0.0, -1)), (similar, other))

    def first(task: int, chosen: slice) -> Item:
        for (pool, some), of in zip(pools[chosen], tasks[chosen], strict=True):
            if len(places := np.flatnonzero(of == task)):
                return pool.item(int(some[places[0]]))
        raise AssertionError("a task without items")

    examples = [
        _example(first(int(held_out[one]), slice(1, None)), first(int(of_train[other]), slice(0, 1)), similar)
        for one, (similar, other) in sorted(best.items())[:N_EXAMPLES]
    ]
    return len(held_out), len(best), examples


def _set_leaks(train: Pool, pool: Pool, exact: _Pairs, near: _Pairs, n_compared: int, n_short: int) -> SetLeaks:
    is_exact = np.zeros(len(pool), bool)
    is_exact[exact.held_out] = True
    ordered = np.lexsort((near.train, near.held_out, -near.similar, ~near.same_answer))
    ordered = ordered[~is_exact[near.held_out[ordered]]]
    items, first = np.unique(near.held_out[ordered], return_index=True)
    best = ordered[np.sort(first)]  # of each held-out item: the same answer first, then the most similar

    def examples(pairs: _Pairs, which: np.ndarray) -> tuple[Example, ...]:
        chosen = zip(*(part[which[:N_EXAMPLES]].tolist() for part in pairs[:3]), strict=True)
        return tuple(_example(pool.item(h), train.item(t), similar) for h, t, similar in chosen)

    return SetLeaks(
        n_items=len(pool),
        n_exact=int(is_exact.sum()),
        n_compared=n_compared,
        n_short=n_short,
        n_near=len(items),
        n_near_other_answer=int((~near.same_answer[best]).sum()),
        exact=examples(exact, np.unique(exact.held_out, return_index=True)[1]),
        near=examples(near, best),
    )


def _task_pairs(
    train: Pool, sets: Mapping[str, Pool], pairs: Mapping[str, list[_Pairs]], share: float
) -> tuple[int, tuple[TaskPair, ...]]:
    """The number of pairs of a held-out and a training task that share items, and the largest."""
    of_train = np.unique(train.tasks)
    found: list[tuple[float, int, int, int, str]] = []
    for name, pool in sets.items():
        held_out, others = (
            np.concatenate([getattr(one, part)[one.same_answer] for one in pairs[name]])
            for part in ("held_out", "train")
        )
        unseen = ~np.isin(pool.tasks[held_out], of_train)
        rows = np.stack([pool.tasks[held_out], train.tasks[others], held_out, others])[:, unseen]
        _, first = np.unique(rows[:3], axis=1, return_index=True)  # a held-out item counts once for a training task
        both, at, counts = np.unique(rows[:2, first], axis=1, return_index=True, return_counts=True)
        n_items = dict(zip(*(part.tolist() for part in np.unique(pool.tasks, return_counts=True)), strict=True))
        for task, place, n_found in zip(both[0].tolist(), at.tolist(), counts.tolist(), strict=True):
            if n_found >= max(2, share * n_items[task]):
                item, other = rows[2:, first[place]].tolist()
                found.append((n_found / n_items[task], n_found, item, other, name))
    largest = sorted(found, key=lambda one: (-one[0], -one[1], one[2:]))[:N_EXAMPLES]
    told = []
    for _, n_found, item, other, name in largest:
        example = _example(sets[name].item(item), train.item(other), 1.0)
        n = int((sets[name].tasks == sets[name].tasks[item]).sum())
        told.append(
            TaskPair(
                held_out=example.held_out_task, train=example.train_task, n_items=n, n_found=n_found, example=example
            )
        )
    return len(found), tuple(told)
