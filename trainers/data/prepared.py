"""Prepared tables: a user's table, checked, tokenised and split once, in a folder that all trials of a machine share.

    prepared = prepare("tasks.csv", Columns(), Tokens(), Rules(), "data")
    prepared = open_prepared("data/<digest>")

The folder's name is a digest of the rows' content, the tokens and the rules. The same rows in another format have the same digest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainers import durable
from trainers.data import folders, shards
from trainers.data.making import FACTS, ORDER, PREPARE_VERSION, TASKS, Making, Say, digest_of
from trainers.data.parts import Facts, Part, Rules
from trainers.data.sources import Source, TableError, first_line
from trainers.data.tables import Columns, Render
from trainers.data.tokens import Tokens

__all__ = ["Columns", "Facts", "Part", "Prepared", "Rules", "TableError", "open_prepared", "prepare"]
KNOWN = "known.json"
"""File below a root: tables that were prepared there, so that they are not read again."""


class Prepared:
    """A prepared table. Arrays that grow with the number of items are memory maps. K is the number of tasks.

    Tasks are numbered in the order of their names. Within a task, items are in the order of their content's hash.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = shards.open_manifest(self.folder)
        if manifest.digest != self.folder.name:
            raise TableError(
                f"{self.folder}: {shards.MANIFEST} names {manifest.digest}; delete this folder, and prepare it again"
            )
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
        self._order = shards.load_array(self.folder / ORDER, manifest.files[ORDER], np.int64, -1)
        self._offsets = np.concatenate([[0], np.cumsum(tasks["n_items"], dtype=np.int64)])
        self.n_new = np.array(tasks["n_new"], np.int64)
        """Items of each task that training never sees, (K,). For a held-out task: all its items."""
        self.n_train = np.array(tasks["n_items"], np.int64) - self.n_new
        """Training items of each task, (K,)."""
        self.unread: tuple[str, ...] = ()
        """Columns of the table that are not used, by name. `prepare` knows them; the same rows elsewhere may have others."""

    @property
    def n_tasks(self) -> int:
        """Number of tasks, K."""
        return len(self.names)

    def items_of(self, task: int) -> np.ndarray:
        """Numbers of a task's items, int64, as a view. The new items come first."""
        return self._order[self._offsets[task] : self._offsets[task + 1]]

    def new_items(self, task: int) -> np.ndarray:
        """Numbers of the items that training never sees, int64, as a view. For a held-out task: all its items."""
        return self.items_of(task)[: self.n_new[task]]

    def numbers(self, tasks: np.ndarray, at: np.ndarray, new: bool) -> np.ndarray:
        """Numbers of the items at places `at` (n,), from 0, among the new items or the training items of `tasks` (n,): (n,)."""
        first = self._offsets[tasks] + (0 if new else self.n_new[tasks])
        return np.asarray(self._order[first + at])

    def train_items(self, task: int) -> np.ndarray:
        """Numbers of the items to train on, int64, as a view. Empty for a held-out task."""
        return self.items_of(task)[self.n_new[task] :]


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
    of chat turns; if it has a `digest`, an unchanged table is recognised with it. A kill leaves nothing that counts. Raises
    TableError, in one line, for a table that cannot be used, and if `root` cannot be written to.
    """
    try:
        return _prepared(path, columns, tokens, rules, Path(root), say, render)
    except OSError as problem:  # the disk is full, or the file system refuses
        reason = problem.strerror or first_line(problem)
        raise TableError(f"{root}: the table cannot be prepared in this folder: {reason}; use another one") from None


def _prepared(
    path: str | Path, columns: Columns, tokens: Tokens, rules: Rules, root: Path, say: Say | None, render: Render | None
) -> Prepared:
    durable.make_folder(root)
    source = Source(path)
    if source.left_out and say:
        say(f"{source.label}: left out, as no table: {', '.join(source.left_out[:5])} ({len(source.left_out)} files)")
    request = _request(source, columns, tokens, rules, render)
    with folders.locked(root / f".{request}.lock"):
        known = _known(root).get(request)
        if not known or not folders.is_whole(root / known["digest"]):
            making = Making(source, columns, tokens, rules, render, say or (lambda _: None))
            known = {"digest": _into(root, making), "unread": sorted(making.unread)}
            if render is None or hasattr(render, "digest"):
                _remember(root, request, known)
    prepared = Prepared(root / known["digest"])
    prepared.unread = tuple(known["unread"])
    return prepared


def _request(source: Source, columns: Columns, tokens: Tokens, rules: Rules, render: Any) -> str:
    """A key of everything that decides on the digest, files by path, size and time."""
    records = [record.model_dump_json() for record in (columns, tokens, rules)]
    return digest_of([source.stamps(), *records, getattr(render, "digest", ""), PREPARE_VERSION])


def _into(root: Path, making: Making) -> str:
    """Prepare a table below `root`. Returns the digest, which is the folder's name."""
    with folders.unfinished(root) as part:
        making.read(part)
        digest = making.digest
        if not folders.is_whole(root / digest):
            making.finish(part)
            folders.publish(part, root / digest)
    return digest


def _known(root: Path) -> dict[str, Any]:
    try:
        known = json.loads((root / KNOWN).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(root: Path, request: str, known: dict[str, Any]) -> None:
    with folders.locked(root / f".{KNOWN}.lock"):
        temporary = root / f".{KNOWN}.new"
        temporary.write_text(json.dumps(_known(root) | {request: known}, indent=1))
        temporary.replace(root / KNOWN)
