"""rewrite: instructions as string rewriting in plain text. 26 letters give 4e6 instructions of the default lengths.

An instruction is a pattern and its replacement. The prompt states both and a string: `ab>xyz:qabt`. The target is the string
with the leftmost occurrence of the pattern replaced: `qxyzt`. A model may memorise replacements, or learn to read the
instruction and apply it. Published anchor: Zhang, Wang, Charton 2024 (arXiv 2402.10891): with a fixed number of examples,
a small GPT-2 never applies unseen instructions below about 300 trained ones, and always above 1,000.

A cluster holds the instructions with the same lengths of pattern and replacement. The last cluster is held out whole. Among
the others, ids below `n_train_ids` may train.
"""

from __future__ import annotations

import zlib
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from trainers.data.tokens import Tokens, of_characters
from trainers.records import Count, Limit, as_tuple
from trainers.streams import hashed_uniforms, keyed_permutation, stream
from trainers.tasks.base import register
from trainers.tasks.references import zipf_ranks
from trainers.tasks.request import Request
from trainers.tasks.text import TextFamily, TextItems, items_of

_MAX_ITEMS = 10**6
"""Most training items of a task."""
_NEW_ONE_IN = 8
"""One string in so many is never trained on, whatever the task."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MEMORIZED = 2**14
"""Training instructions among which the memoriser looks for the nearest one."""


@register
class Rewrite(TextFamily):
    """Instructions `pattern>replacement` on strings of `n_string` letters."""

    name: Literal["rewrite"] = "rewrite"
    n_letters: Annotated[Count, Field(ge=2, le=26)] = 26
    """Letters of the alphabet."""
    n_string: Annotated[Count, Field(le=1000)] = 12
    """Letters of the string that is rewritten."""
    lengths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=6)], ...], BeforeValidator(as_tuple), Field(min_length=1), Limit(items=6)
    ] = (2, 3, 4)
    """Lengths of patterns and of replacements. Each pair of lengths is a cluster."""
    items_per_task: Annotated[Count | None, Limit(1e6)] = None
    """Training items of each task, drawn again and again. Left out: 1e6."""
    items_total: Annotated[Count | None, Limit(1e12)] = None
    """Training items of all tasks together: more tasks then have fewer items each, so that more tasks are not more data."""

    version: ClassVar[int] = 2

    @model_validator(mode="after")
    def _fits(self) -> Rewrite:
        if self.items_per_task is not None and self.items_total is not None:
            raise ValueError("items_per_task and items_total both give the number of items; keep one")
        if len(set(self.lengths)) != len(self.lengths):
            raise ValueError(f"lengths {list(self.lengths)}: a length is given twice")
        if max(self.lengths) > self.n_string:
            raise ValueError(f"a pattern of {max(self.lengths)} letters does not fit into n_string {self.n_string}")
        if len(self.lengths) == 1 and self._per_cluster < 8:
            raise ValueError("fewer than 8 instructions; give more letters or longer patterns")
        return self

    # The universe ----------------------------------------------------------------------------------------------

    @cached_property
    def clusters(self) -> list[tuple[int, int]]:
        """(pattern length, replacement length) of each cluster. The last one is held out if there are several."""
        pairs = [(p, r) for p in sorted(self.lengths) for r in sorted(self.lengths)]
        order = keyed_permutation(len(pairs), "rewrite", "clusters")(np.arange(len(pairs)))
        return [pairs[i] for i in order]

    @property
    def n_trained_clusters(self) -> int:
        return max(1, len(self.clusters) - 1)

    @property
    def _per_cluster(self) -> int:
        """Instructions of a cluster that have ids: as many in each as the smallest cluster has."""
        return int(self.n_letters ** (2 * min(self.lengths)))

    @property
    def n_train_ids(self) -> int:
        """Tasks that may train: in each trained cluster, all but a quarter."""
        return (self._per_cluster - self._per_cluster // 4) * self.n_trained_clusters

    @property
    def n_tasks_max(self) -> int:
        return min(self.n_train_ids, self.items_total or self.n_train_ids)  # a task has an item at least

    @property
    def text_tokens(self) -> Tokens:
        return _characters(self.n_letters)

    @property
    def n_new(self) -> int:
        return self.n_string - min(self.lengths) + max(self.lengths) + 1

    @property
    def mean_tokens(self) -> float:
        return 2 * self.n_string + 2 * float(np.mean(self.lengths)) + 4

    @cached_property
    def longest(self) -> int:
        return max(p + r + 2 + self.n_string + 1 + self.n_string - p + r + 1 for p, r in self.clusters)

    @cached_property
    def longest_prompt(self) -> int:
        return max(p + r for p, r in self.clusters) + 2 + self.n_string

    @property
    def seq_len(self) -> int:
        """Room for four of the longest items, so that little of a row is padding."""
        return 4 * self.longest - 1

    def rules(self, ids: np.ndarray) -> list[tuple[str, str]]:
        """Instructions of task ids (n,), as (pattern, replacement).

        An id is place * trained clusters + cluster. Ids from n_train_ids on are held out. Negative ids are the held-out
        cluster: -1 - place.
        """
        place, cluster = np.divmod(ids, self.n_trained_clusters)
        place = np.where(ids < 0, -1 - ids, place)
        cluster = np.where(ids < 0, len(self.clusters) - 1, cluster)
        found: list[tuple[str, str]] = [("", "")] * len(ids)
        for which in np.unique(cluster).tolist():
            p, r = self.clusters[which]
            mine = np.flatnonzero(cluster == which)
            shuffled = keyed_permutation(self.n_letters ** (p + r), "rewrite", "rules", p, r, self.n_letters)
            codes = shuffled(place[mine])[:, None] // self.n_letters ** np.arange(p + r) % self.n_letters
            for i, row in zip(mine.tolist(), codes.tolist(), strict=True):
                letters = "".join([_LETTERS[letter] for letter in row])
                found[i] = letters[:p], letters[p:]
        return found

    def task_name(self, task: int) -> str:
        pattern, replacement = self.rules(np.array([task]))[0]
        return f"{pattern}>{replacement}"

    def cluster_name(self, task: int) -> str:
        """Lengths of pattern and replacement, such as `2>3`."""
        return ">".join(str(len(part)) for part in self.rules(np.array([task]))[0])

    def train_ids(self, replicate: int, indices: np.ndarray) -> np.ndarray:
        """Ids of a replicate's training tasks, (n,) -> (n,): spread over the trained clusters, nested in n_tasks."""
        place, cluster = np.divmod(np.asarray(indices, np.int64), self.n_trained_clusters)
        size = self.n_train_ids // self.n_trained_clusters
        order = keyed_permutation(self.n_trained_clusters, "rewrite", "cluster order", replicate)
        return keyed_permutation(size, "rewrite", "training tasks", replicate)(place) * self.n_trained_clusters + order(
            cluster
        )

    def held_out_ids(self, split: str, n: int) -> np.ndarray:
        """The first n held-out ids of a split, (n,), fewer if there are not so many."""
        if split == "held_out_clusters":
            return -1 - np.arange(min(n, self._per_cluster) if len(self.clusters) > 1 else 0)
        first, last = self.n_train_ids, self._per_cluster * self.n_trained_clusters
        size = last - first
        return first + keyed_permutation(size, "rewrite", "held-out tasks")(np.arange(min(n, size)))

    def contents(self, request: Request, split: Literal["seen", "held_out"], n_first: int) -> list[bytes]:
        if split == "held_out":
            ids = np.concatenate([self.held_out_ids(s, n_first) for s in ("held_out", "held_out_clusters")])[:n_first]
        else:
            ids = self.train_ids(request.replicate, np.arange(min(n_first, request.n_tasks)))
        return [f"{pattern}>{replacement}".encode() for pattern, replacement in self.rules(ids)]

    # Items -----------------------------------------------------------------------------------------------------

    def _n_items(self, n_tasks: int) -> int:
        """Training items of each task."""
        of_total = None if self.items_total is None else max(1, self.items_total // n_tasks)
        return min(self.items_per_task or of_total or _MAX_ITEMS, _MAX_ITEMS)

    def items(self, ids: np.ndarray, numbers: np.ndarray, new: bool = False) -> TextItems:
        """Item `numbers` (n,) of tasks `ids` (n,): each a pure function of the two. Training never has a `new` item.

        One string in _NEW_ONE_IN is new, by a hash of its letters. A string of the other kind is drawn again.
        """
        rules = self.rules(ids)
        strings = [""] * len(ids)
        left = np.arange(len(ids))
        for again in range(1000):
            codes = ids[left] * np.int64(_MAX_ITEMS) + numbers[left]
            u = hashed_uniforms(codes, self.n_string + 1, "rewrite", "strings", self.n_letters, self.n_string, again)
            letters = (u[:, 1:] * self.n_letters).astype(int)
            for i, row, at in zip(left.tolist(), letters.tolist(), u[:, 0].tolist(), strict=True):
                text, pattern = "".join([_LETTERS[letter] for letter in row]), rules[i][0]
                first = int(at * (self.n_string - len(pattern) + 1))
                strings[i] = text[:first] + pattern + text[first + len(pattern) :]
            is_new = np.array([zlib.crc32(strings[i].encode()) % _NEW_ONE_IN == 0 for i in left.tolist()])
            left = left[is_new != new]
            if not len(left):
                break
        else:
            raise ValueError(f"n_letters {self.n_letters}, n_string {self.n_string}: too few strings; raise either")
        pairs = [(f"{p}>{r}:{text}", text.replace(p, r, 1)) for (p, r), text in zip(rules, strings, strict=True)]
        return items_of(self.text_tokens, pairs, ids)

    def drawn(self, request: Request, draw: np.random.Generator, n: int) -> TextItems:
        if request.task_exponent:
            places = zipf_ranks(draw, request.task_exponent, request.n_tasks, n) - 1
        else:
            places = draw.integers(0, request.n_tasks, n)
        return self.items(
            self.train_ids(request.replicate, places), draw.integers(0, self._n_items(request.n_tasks), n)
        )

    def n_chosen(self, request: Request, split: str) -> int:
        n = request.n_sequences
        return n if split in ("train_items", "seen") else len(self.held_out_ids(split, n))

    def chosen(self, request: Request, split: str) -> TextItems:
        n = self.n_chosen(request, split)
        if split in ("held_out", "held_out_clusters"):
            return self.items(self.held_out_ids(split, n), np.zeros(n, np.int64), new=True)
        ids = self.train_ids(request.replicate, np.arange(n) % request.n_tasks)
        if split == "seen":
            return self.items(ids, np.arange(n) // request.n_tasks, new=True)
        draw = stream("rewrite", "train items", request.replicate)
        return self.items(ids, draw.integers(0, self._n_items(request.n_tasks), n))

    def floors(self, request: Request, items: TextItems, known: TextItems) -> dict[str, np.ndarray]:
        """As in the base, and `memorizer`: it applies the training instruction that is nearest by its letters."""
        found = super().floors(request, items, known)
        trained = self.rules(self.train_ids(request.replicate, np.arange(min(request.n_tasks, _MEMORIZED))))
        asked = self.rules(items.tasks)
        width = 2 * max(self.lengths)
        rows = [
            np.array([list((p + " " * width)[: width // 2] + (r + " " * width)[: width // 2]) for p, r in of])
            for of in (asked, trained)
        ]
        hits = []
        for i, (row, (pattern, _)) in enumerate(zip(rows[0], asked, strict=True)):
            _, replacement = trained[int((rows[1] == row).sum(axis=1).argmax())]
            text = self.text_tokens.decode(items.prompt(i)).partition(":")[2]
            hits.append(text.replace(pattern, replacement, 1) == self.text_tokens.decode(items.target(i)))
        return found | {"memorizer": np.array(hits, bool)}


@lru_cache(maxsize=32)
def _characters(n_letters: int) -> Tokens:
    return of_characters(set(_LETTERS[:n_letters]) | set(">:"))
