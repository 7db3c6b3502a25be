"""The parts of a table: which tasks and clusters are held out, and which items of a training task are new.

Names and contents decide, through hashes, and never the places of rows. So the same table in another order has the same parts.
"""

from __future__ import annotations

import difflib
import hashlib
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from trainers.data.leaks import Certificate, Limits
from trainers.data.sources import TableError
from trainers.records import Count, Index, Record, as_tuple

Part = Literal["train", "held_out", "held_out_clusters"]
PARTS: tuple[Part, ...] = ("train", "held_out", "held_out_clusters")
FEW_CLUSTERS = 5
"""With fewer clusters, a share of them holds out none."""
Share = Annotated[float, Field(ge=0, lt=1)]


class Rules(Record):
    """How a table becomes items and parts."""

    max_tokens: Count = 512
    """Most tokens of an item: prompt, target and the two marks."""
    too_long: Literal["stop", "drop"] = "stop"
    """Longer items stop the preparation, or are left out and counted."""
    new_items_max: Index = 8
    """Most items of a training task that are held out as its new items. At most a fifth of its items, and at least one of two."""
    held_out_clusters: Annotated[Share | tuple[str, ...], BeforeValidator(as_tuple)] = 0.1
    """Clusters that are held out whole: a share (at least one cluster of five or more), or their names."""
    held_out_tasks: Share = 0.2
    """Share of the remaining tasks that is held out, at least one of two. Spread over clusters, which all keep a training task."""
    on_leak: Literal["stop", "drop"] = "stop"
    """If training holds held-out items: no study starts, or those training items are left out and counted."""
    leaks: Limits = Limits()
    """Limits of the leak certificate."""


class Facts(Record):
    """Counts of a table. All rows are accounted for: n_rows = n_items + n_repeats + n_too_long + n_leaking."""

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
    """Training items left out because a held-out set has them (`Rules.on_leak`), and the new items of tasks that this empties."""
    n_without_items: Index
    """Tasks left out because no item of theirs was left."""
    n_single: Index
    """Training tasks with one item. They have no new items."""
    n_tasks: dict[Part, Index]
    n_clusters: dict[Part, Index]
    """Clusters with at least one task of the part. Empty without a column for clusters."""
    n_of_set: dict[str, Index]
    """Items of the four sets: train_items, new_items, held_out, held_out_clusters."""
    n_two_targets: Index
    """Prompts with several targets in a task. An answer is compared with one of them, unless a scorer knows better."""
    two_targets: str
    """One of these prompts with two of its targets; "" without one."""
    n_altered: Index
    """Targets that the tokenizer gives back otherwise, apart from blanks at both ends. Answers are compared with what it gives back."""
    altered: str
    """One of these targets, and what becomes of it; "" without one."""
    n_tokens: Index
    """Tokens of all items, marks included."""
    longest: Index
    """Tokens of the longest item, marks included."""
    lengths: tuple[tuple[Index, Index], ...]
    """Histogram of the items' tokens: (largest length of the bin, number of items). Bins are 1/8 of a power of two wide."""
    has_weights: bool
    certificate: Certificate
    """The leak certificate."""


def choose(
    names: list[str], clusters: list[str] | None, splits: list[str] | None, rules: Rules, label: str
) -> list[Part]:
    """The part of each task, from the names of K tasks, and their clusters and splits if the table has them.

    With splits, a held-out task whose cluster has no training task counts as of a held-out cluster. `label` names the table in
    messages. Raises TableError if no task is left for training, a held-out cluster is unknown, or splits and rules both hold out.
    """
    if splits is not None:
        for name in ("held_out_clusters", "held_out_tasks"):
            if getattr(rules, name) != Rules.model_fields[name].default:
                raise TableError(
                    f"{label}: the table's column for the split decides what is held out; leave out rules.{name}"
                )
        trained = {c for c, split in zip(clusters or [], splits, strict=False) if split == "train"}
        whole = [clusters is not None and cluster not in trained for cluster in clusters or [""] * len(names)]
        parts: list[Part] = [
            "train" if split == "train" else "held_out_clusters" if alone else "held_out"
            for split, alone in zip(splits, whole, strict=True)
        ]
    else:
        of_task = clusters or [""] * len(names)
        out = _held_out_clusters(sorted(set(of_task)) if clusters else [], rules, label)
        rest = [i for i, cluster in enumerate(of_task) if cluster not in out]
        held = _held_out_tasks([names[i] for i in rest], [of_task[i] for i in rest], rules.held_out_tasks)
        tasks = {rest[i] for i in held}
        parts = [
            "held_out_clusters" if cluster in out else "held_out" if i in tasks else "train"
            for i, cluster in enumerate(of_task)
        ]
    if "train" not in parts:
        raise TableError(
            f"{label}: all {len(names)} tasks are held out; hold out fewer tasks or clusters, or add tasks"
        )
    return parts


def _held_out_clusters(names: list[str], rules: Rules, label: str) -> set[str]:
    given = rules.held_out_clusters
    if isinstance(given, tuple):
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                there = ", ".join(map(repr, names[:8])) or "none, without a column for them"
                raise TableError(
                    f"{label}: rules.held_out_clusters: there is no cluster {name!r}; {hint}the clusters are {there}"
                )
        return set(given)
    least = 1 if given and len(names) >= FEW_CLUSTERS else 0
    n = max(least, int(given * len(names))) if len(names) >= FEW_CLUSTERS else 0
    return set(sorted(names, key=lambda name: _hash("cluster", name))[:n])


def _held_out_tasks(names: list[str], clusters: list[str], share: float) -> list[int]:
    """Numbers of the tasks to hold out. In each cluster, tasks are taken in the order of their hashes, and one stays."""
    of_cluster: dict[str, list[tuple[bytes, int]]] = {}
    for i, (name, cluster) in enumerate(zip(names, clusters, strict=True)):
        of_cluster.setdefault(cluster, []).append((_hash("task", name), i))
    queue = []
    for tasks in of_cluster.values():
        tasks.sort()
        queue += [((rank + 0.5) / len(tasks), key, i) for rank, (key, i) in enumerate(tasks[:-1])]
    n = max(1 if share and len(names) > 1 else 0, int(share * len(names)))
    return [i for _, _, i in sorted(queue)[:n]]


def _hash(*words: str) -> bytes:
    return hashlib.blake2b("\x1f".join(words).encode(), digest_size=16).digest()


def n_new(n_items: np.ndarray, n_most: int) -> np.ndarray:
    """Number of new items of training tasks with these numbers of items: a fifth, at most `n_most`, at least one of two."""
    fifth = np.maximum(n_items // 5, (n_items >= 2).astype(n_items.dtype))
    new: np.ndarray = np.minimum(fifth, n_most)
    return new
