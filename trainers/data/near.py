"""Near-duplicates: which training items have nearly the content of a held-out item?

The content of an item is its set of neighbouring pairs of words, of the prompt and of the target, without the pairs of templates:

- pairs in a fiftieth of the items of any task, and in at least five of them (in all of them, if it has two to four);
- pairs in a hundredth of all training items, and in at least five.

Numbers are words, symbols are not, and each letter of a script without blanks is one. MinHash LSH proposes pairs of items. Two
exact figures decide: the smaller content must share half of its pairs with the larger one (`SIMILAR`), and training items made by
chance must not be expected to share as much (`CHANCE`). So short contents, such as "17 + 25", have no near-duplicates.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from re import compile as regex
from typing import Any, NamedTuple

import numpy as np

from trainers.data.sources import TableError
from trainers.streams import mix64, stream

MOST_WORDS = 500
"""Words of a prompt, and of a target, that are compared. The rest of longer texts is not."""
FEWEST = 5
"""Fewest pairs in a content. Only exact copies are found of items with fewer."""
SIMILAR = 0.5
"""Least share of the smaller content that near-duplicates share. With one word in ten changed a long content keeps 0.8 of its
pairs; nine words with two changed keep 4 of 8."""
CHANCE = 1e-3
"""Largest number of training items expected to share by chance what two near-duplicates share.

The expectation is the number of training items times the product of the square roots of the pairs' shares of training items: each
word stands in two pairs. Only prompt or target counts, the rarer one, because a target may follow from its prompt."""
BANDS, ROWS = 32, 2
"""Shape of MinHash LSH. Contents of Jaccard similarity J are proposed with probability 1 - (1 - J^2)^32: 0.98 at 0.35, 0.9999 at 0.5."""
SAME_TEMPLATE = 0.9
"""Least Jaccard similarity of two tasks' templates that count as one."""

_MOST_WORDS = 5_000_000  # read of one set: 40 MB an array of their pairs
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai to Chinese
_WORD = regex(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_U64, _HALF = np.uint64, np.uint64(32)
_BLOCK = 20_000


@dataclass(frozen=True)
class Contents:
    """Sets of pairs of words. A pair is a hash of 32 bits; it is odd if it stands in a target."""

    keys: np.ndarray
    """Number of the item << 32 | pair: (M,) uint64, ascending."""
    answers: np.ndarray
    """A hash of each item's target: (N,) uint32."""

    @property
    def pairs(self) -> np.ndarray:
        """(M,) uint32."""
        return self.keys.astype(np.uint32)

    @property
    def owners(self) -> np.ndarray:
        """The item of each pair: (M,) int64."""
        return (self.keys >> _HALF).astype(np.int64)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the pairs of each item begin, and the end: (N + 1,) int64."""
        return np.searchsorted(self.keys, np.arange(len(self.answers) + 1).astype(_U64) << _HALF)

    @property
    def sizes(self) -> np.ndarray:
        """Pairs of each item: (N,)."""
        return np.diff(self.starts)

    def without(self, pairs: np.ndarray) -> Contents:
        """The contents without some pairs, (K,) uint32 ascending."""
        if not len(pairs):
            return self
        own = self.pairs
        return Contents(self.keys[pairs[np.minimum(np.searchsorted(pairs, own), len(pairs) - 1)] != own], self.answers)

    def chosen(self, items: np.ndarray) -> Contents:
        """The contents of some items, numbered anew."""
        places, _ = self.places(items)
        owners = np.repeat(np.arange(len(items), dtype=_U64), self.sizes[items])
        return Contents(owners << _HALF | self.pairs[places], self.answers[items])

    def places(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the pairs of some items, one item after the other, and where each item begins among them."""
        sizes = self.sizes[items]
        begins = np.cumsum(sizes) - sizes
        return np.arange(sizes.sum()) + np.repeat(self.starts[items] - begins, sizes), begins


def words(text: str) -> list[int]:
    """The first words of a text as numbers below 2^32. Case and symbols do not count."""
    found = _WORD.findall(text[: 20 * MOST_WORDS].casefold())
    return [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in found[:MOST_WORDS]]


def contents(texts: Iterable[tuple[str, str]]) -> Contents:
    """The contents of (prompt, target), templates included. Reading ends after five million words; see the number of `answers`."""
    answers, keys = array("I"), [np.empty(0, _U64)]
    total = 0
    texts = iter(texts)
    while total < _MOST_WORDS and (block := [*islice(texts, 1000)]):
        flat, sizes = array("I"), []
        for prompt, target in block:
            for text in (prompt, target):
                found = words(text)
                flat.extend(found)
                sizes.append(len(found))
            answers.append(zlib.crc32(" ".join(target.split()).casefold().encode("utf-8", "surrogatepass")))
        word = np.array(flat, _U64)
        part = np.repeat(np.arange(len(sizes)), sizes)
        inside = part[:-1] == part[1:]
        part = part[:-1][inside].astype(_U64)
        hashes = mix64((word[:-1] << _HALF | word[1:])[inside]) >> _HALF
        pairs = hashes >> _U64(1) << _U64(1) | part % _U64(2)
        first = _U64(len(answers) - len(block))
        keys.append(np.unique((part // _U64(2) + first) << _HALF | pairs))
        total += len(word)
    return Contents(np.concatenate(keys), np.array(answers, np.uint32))


def templates(contents: Contents, tasks: np.ndarray, *shares: float) -> list[Contents]:
    """The template of each task, for each of `shares`: the pairs in at least this share of its items, and in five (in all of two to
    four). `tasks` (N,) has the task of each item, numbered from 0.
    """
    n_items = np.bincount(tasks)
    keys = tasks.astype(_U64)[contents.owners]
    keys <<= _HALF
    keys |= contents.pairs
    keys, counts = np.unique(keys, return_counts=True)
    n = n_items[(keys >> _HALF).astype(np.int64)]
    some = (n > 1) & (counts >= np.minimum(n, 5))
    keys, counts, n = keys[some], counts[some], n[some]
    return [Contents(keys[counts >= share * n], np.zeros(len(n_items), np.uint32)) for share in shares]


def joined(sets: list[Contents]) -> Contents:
    """The items of all sets, one set after the other."""
    firsts = np.cumsum([0, *(len(one.answers) for one in sets)]).astype(_U64)
    keys = [one.keys + (first << _HALF) for one, first in zip(sets, firsts[:-1], strict=True)]
    return Contents(np.concatenate(keys), np.concatenate([one.answers for one in sets]))


def usual_pairs(contents: Contents) -> np.ndarray:
    """The pairs in a hundredth of all items and in at least five: (K,) uint32."""
    pairs, counts = np.unique(contents.pairs, return_counts=True)
    return pairs[counts >= np.maximum(5, 0.01 * len(contents.answers))]


class Near(NamedTuple):
    """Pairs of near-duplicates, four arrays (P,)."""

    held_out: np.ndarray
    train: np.ndarray
    similar: np.ndarray
    """Jaccard similarity."""
    same_answer: np.ndarray
    """True if the targets are equal, or share half of their pairs."""


def near_duplicates(held_out: Contents, train: Contents) -> Iterator[Near]:
    """All near-duplicates that MinHash LSH proposes, in blocks.

    Raises TableError, in one line, if the library datasketch is not installed.
    """
    known, counts = np.unique(train.pairs, return_counts=True)
    shares = np.zeros(len(held_out.keys))
    if len(known):
        at = np.minimum(np.searchsorted(known, held_out.pairs), len(known) - 1)
        shares = np.where(known[at] == held_out.pairs, counts[at] / len(train.answers), 0.0)
    for items, others in _proposed(held_out, train):
        places, begins = held_out.places(items)
        sizes = held_out.sizes[items]
        shared = _held(train, others, sizes, held_out.pairs[places])
        n_shared = np.add.reduceat(shared.astype(np.int64), begins)
        of_target = held_out.pairs[places] % 2 == 1
        surprise = np.sqrt(shares[places], out=np.ones(len(places)), where=shared)
        np.log(surprise, out=surprise)
        expected = np.log(len(train.answers)) + np.minimum(
            np.add.reduceat(surprise * of_target, begins), np.add.reduceat(surprise * ~of_target, begins)
        )
        answers = np.add.reduceat(np.stack([of_target & shared, of_target]).astype(np.int64), begins, axis=1)
        same = held_out.answers[items] == train.answers[others]
        same |= (answers[0] > 0) & (answers[0] >= SIMILAR * answers[1])
        found = (n_shared >= SIMILAR * np.minimum(sizes, train.sizes[others])) & (expected <= np.log(CHANCE))
        similar = n_shared / (sizes + train.sizes[others] - n_shared)
        yield Near(items[found], others[found], similar[found], same[found])


def same_templates(held_out: Contents, train: Contents) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tasks whose templates are equal or nearly so, in blocks of three arrays: tasks, tasks, and their Jaccard similarities."""
    for items, others in _proposed(held_out, train):
        places, begins = held_out.places(items)
        shared = _held(train, others, held_out.sizes[items], held_out.pairs[places])
        n_shared = np.add.reduceat(shared.astype(np.int64), begins)
        similar = n_shared / (held_out.sizes[items] + train.sizes[others] - n_shared)
        found = similar >= SAME_TEMPLATE
        yield items[found], others[found], similar[found]


def _held(contents: Contents, items: np.ndarray, repeats: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Does an item hold a pair? Item i is asked for `repeats[i]` of the pairs."""
    sought = np.repeat(items.astype(_U64) << _HALF, repeats) | pairs
    return contents.keys[np.minimum(np.searchsorted(contents.keys, sought), len(contents.keys) - 1)] == sought


def _proposed(held_out: Contents, train: Contents) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of items that share a band of their MinHash signatures, in blocks: items of `held_out`, items of `train`."""
    indexed, asking = (np.flatnonzero(one.sizes >= FEWEST) for one in (held_out, train))
    if not len(indexed) or not len(asking):
        return
    index, sketch = _empty_index()
    for item, signature in zip(indexed.tolist(), _signatures(held_out, indexed), strict=True):
        sketch.hashvalues = signature
        index.insert(item, sketch, check_duplication=False)
    items: list[int] = []
    others: list[int] = []
    for start in range(0, len(asking), _BLOCK):
        block = asking[start : start + _BLOCK]
        for other, signature in zip(block.tolist(), _signatures(train, block), strict=True):
            sketch.hashvalues = signature
            found = index.query(sketch)
            items += found
            others += [other] * len(found)
            if len(items) > _BLOCK:
                yield np.array(items), np.array(others)
                items, others = [], []
    if items:
        yield np.array(items), np.array(others)


def _empty_index() -> tuple[Any, Any]:
    """An LSH index, and a MinHash that carries signatures to it."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise TableError(
            "near-duplicates need the library datasketch, which is not installed: pip install 'emergence-lab[text]'"
        ) from None
    return MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS)), MinHash(num_perm=BANDS * ROWS)


def _signatures(contents: Contents, items: np.ndarray) -> np.ndarray:
    """MinHash signatures of items that are not empty: (R, BANDS * ROWS) uint32.

    Permutation i maps a pair x to a_i x + b_i modulo 2^32 with an odd a_i. numpy takes 2 µs an item for all of them at once;
    datasketch's own `MinHash.bulk` takes 28 µs, with SHA-1 65 µs.
    """
    factors, terms = stream("near-duplicates").integers(0, 2**32, (2, BANDS * ROWS), dtype=np.uint32)
    places, begins = contents.places(items)
    pairs = contents.pairs[places]
    permuted = (pairs * (a | np.uint32(1)) + b for a, b in zip(factors, terms, strict=True))
    return np.stack([np.minimum.reduceat(one, begins) for one in permuted], axis=1)
