"""table: tasks of your own, from a table with a prompt, a target and the name of its task in each row.

    family: {name: table, path: tasks.parquet}

The table is read once. Its rows become items in memory-mapped shards (`trainers/data/prepared.py`), which all trials of a machine
share. A study knows the table by the digest of its content, so a copy elsewhere, or in another format, is the same table.
"""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, model_validator

from trainers.data import store
from trainers.data.chat import template_of
from trainers.data.parts import Rules
from trainers.data.prepared import Prepared, open_prepared, prepare
from trainers.data.sources import TableError
from trainers.data.tables import Columns
from trainers.data.tokens import Tokens, of_file
from trainers.records import Count, Limit, Positive, Record, as_tuple
from trainers.streams import keyed_permutation
from trainers.tasks.base import register
from trainers.tasks.request import Request
from trainers.tasks.text import MAX_MEMORY_ITEMS, Scorer, TextFamily, TextItems

KNOWN = "known"
"""Training items from which trivial predictors answer: as `train_items`, with all items of a task."""
_NAMED = 80
"""Most characters of a name in `data_facts`."""
SCORED = 8
"""Items on which a scorer is tried when a study is read."""
SCORER = "scorer.py"
SCORER_SECONDS = 1.0
"""Longest call of a scorer when it is tried. A trial evaluates some twenty times, with hundreds of answers each."""
"""Name of a scorer's source in its prepared folder."""


class Content(Record):
    """A prepared table, by its digest, and the facts that decide the shapes of a study."""

    digest: str
    """Folder of the prepared table."""
    tasks_per_cluster: Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
    """Training tasks of each cluster that has some, descending; one number without clusters."""
    longest: int
    """Tokens of the longest item, marks included."""
    longest_prompt: int
    """Tokens of the longest prompt, without marks."""
    longest_target: int
    """Tokens of the longest target, without marks."""
    mean_tokens: float
    """Mean tokens of an item, marks included."""


@register
class Table(TextFamily):
    """Tasks from a table: one row per item, with its task, prompt and target."""

    name: Literal["table"] = "table"
    path: str = ""
    """The table: a file (Parquet, Arrow, JSONL, CSV, TSV), a folder or glob of files, or a URI of an object store."""
    made_by: str | None = None
    """Command that makes the table if its path is put behind. It is shown if the table is not there yet, and never run."""
    columns: Columns = Columns()
    """Names of the table's columns."""
    tokenizer: str = "bytes"
    """`bytes`, or a `tokenizer.json` of the library tokenizers, or a folder that holds one."""
    template: str | None = None
    """A chat template (Jinja), or the folder of a model that has one. It makes the text of the turns in a column of messages, or of
    prompt and target as turns of user and assistant. Left out: prompt and target as they are, turns as `role: content`."""
    scorer: str | None = None
    """`module:function` of a judge (prompt, target, answer) -> true, false, or None if it is no answer. Left out: an answer is
    right if it equals the target."""
    rules: Rules = Rules()
    """What is held out, what is too long, what counts as a leak."""
    row_tokens: Annotated[Count | None, Limit(1e6)] = None
    """Tokens of a training row, into which whole items are packed. Left out: four items of mean length, or the longest."""
    n_clusters: Annotated[Count | None, Limit(1e6)] = None
    """Clusters that training tasks are drawn from. Left out: all that are not held out."""
    items_per_task: Annotated[Count | None, Limit(1e9)] = None
    """Most training items of a task. Left out: all."""
    items_total: Annotated[Count | None, Limit(1e12)] = None
    """Most training items of all tasks together, the same number of each: more tasks then are not more data."""
    weights: Literal["uniform", "proportional", "given"] = "uniform"
    """Frequencies of the tasks in training: equal, by number of items, or by the table's column of weights."""
    cap: Annotated[Count | None, Limit(1e9)] = None
    """Most items that count for a task's frequency (`proportional` only)."""
    temperature: Annotated[Positive, Limit(1000, 0.01)] = 1.0
    """Frequencies are raised to the power 1 / temperature: 1 leaves them, more evens them out."""
    tokens: Tokens = Tokens()
    """Resolved from `tokenizer` when the study is read."""
    scorer_digest: str = ""
    """Resolved from `scorer`: digest of its source."""
    content: Content | None = None
    """Resolved from `path`: the content of the table."""
    unread: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Resolved from `path` and `columns`: columns of the table that are not used."""

    version: ClassVar[int] = 3
    labels: ClassVar[frozenset[str]] = frozenset({"path", "made_by", "columns", "tokenizer", "template", "unread"})
    resolved_from: ClassVar[frozenset[str]] = frozenset({"path", "columns", "tokenizer", "template", "scorer", "rules"})
    resolved_fields: ClassVar[frozenset[str]] = frozenset({"tokens", "scorer_digest", "content", "unread"})

    @model_validator(mode="after")
    def _fits(self) -> Table:
        if self.items_per_task is not None and self.items_total is not None:
            raise ValueError("items_per_task and items_total both limit the items of a task; keep one")
        if self.cap is not None and self.weights != "proportional":
            raise ValueError(f"cap limits weights: proportional, and weights is {self.weights}; leave cap out")
        if self.temperature != 1 and self.weights == "uniform":
            raise ValueError(f"temperature {self.temperature:g} changes nothing with weights: uniform; leave it out")
        if self.n_clusters is not None and self.content and self.n_clusters > len(self.content.tasks_per_cluster):
            raise ValueError(
                f"n_clusters {self.n_clusters}: the table has {len(self.content.tasks_per_cluster)} clusters for training"
            )
        needed = self.content.longest_prompt + self.content.longest_target + 2 if self.content else 0
        if self.row_tokens is not None and self.row_tokens < needed:
            raise ValueError(f"row_tokens {self.row_tokens}: the longest prompt and target need {needed} tokens")
        return self

    @classmethod
    def resolved(cls, given: dict[str, Any], beside: Path, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """The parameters with the contents of table, tokenizer and scorer. Paths are relative to the folder `beside`."""
        if named := sorted(cls.resolved_fields & given.keys()):
            raise TableError(f"{named[0]}: is resolved from the files; leave it out")
        stated = cls.model_validate(given)
        if not stated.path:
            raise TableError("path: the table is required: a file, a folder, a glob or a URI")
        store.use(root)
        tokens = Tokens() if stated.tokenizer == "bytes" else of_file(beside / stated.tokenizer, root)
        source = stated.path if "://" in stated.path else str(beside / stated.path)
        if stated.made_by and "://" not in source and not Path(source).exists():
            raise TableError(f"path: {stated.path} is not there yet; make it with: {stated.made_by} {source}")
        template = None if stated.template is None else template_of(beside / stated.template)
        made = prepare(source, stated.columns, tokens, stated.rules, root, say, template)
        if stated.weights == "given" and not made.facts.has_weights:
            raise TableError("weights: given needs a column of weights; name it under columns.weight")
        if stated.rules.leaks.near_share is not None and not made.facts.certificate.n_near_sought:
            raise TableError("rules: leaks.near_share: all items are too short for near-duplicates; leave it out")
        if not made.facts.n_tasks["held_out"]:
            raise TableError(
                "rules: no task of a trained cluster is held out, so nothing would show whether unseen tasks are solved; raise "
                "held_out_tasks, or give more tasks"
            )
        if leaking := made.facts.certificate.leaking:
            raise TableError(f"{stated.path}: {leaking}; mend the table, or say rules: {{on_leak: drop}}")
        tried = [made.items.item(i) for i in range(min(SCORED, made.facts.n_items))]
        digest = "" if stated.scorer is None else _kept_scorer(stated.scorer, beside, root, tokens, tried)
        return given | {"tokens": tokens, "scorer_digest": digest, "content": content_of(made), "unread": made.unread}

    # Sizes, without the data -----------------------------------------------------------------------------------

    @property
    def _content(self) -> Content:
        assert self.content is not None, "a table is resolved by the reader of studies"
        return self.content

    @property
    def data_digests(self) -> tuple[str, ...]:
        return tuple(digest for digest in (self._content.digest, self.tokens.digest, self.scorer_digest) if digest)

    @property
    def text_tokens(self) -> Tokens:
        return self.tokens

    @property
    def n_new(self) -> int:
        return self._content.longest_target + 1

    @property
    def longest(self) -> int:
        return self._content.longest

    @property
    def longest_prompt(self) -> int:
        return self._content.longest_prompt

    @property
    def mean_tokens(self) -> float:
        return self._content.mean_tokens

    @property
    def seq_len(self) -> int:
        if self.row_tokens is not None:
            return self.row_tokens
        needed = self._content.longest_prompt + self._content.longest_target + 2
        return int(-(-max(needed, 4 * self.mean_tokens) // 16) * 16)

    @property
    def n_tasks_max(self) -> int:
        sizes = self._content.tasks_per_cluster
        n = sum(sizes if self.n_clusters is None else sizes[-self.n_clusters :])  # the smallest: whichever are drawn
        return n if self.items_total is None else min(n, self.items_total)  # a task has an item at least

    def objection(self, task_exponent: float) -> str | None:
        return (
            "family 'table' has weights of its own: family.weights; leave out training.task_exponent"
            if task_exponent
            else None
        )

    def draws_alike(self, task_exponent: float) -> bool:
        return self.weights == "uniform"

    # Tasks -----------------------------------------------------------------------------------------------------

    @property
    def prepared(self) -> Prepared:
        """The prepared table on this machine. Raises DataMissingError if it is not there, TableError if it is damaged."""
        return _opened(str(store.folder_of(self._content.digest)))

    def task_name(self, task: int) -> str:
        return self.prepared.names[task]

    def cluster_name(self, task: int) -> str:
        names = self.prepared.cluster_names
        return names[self.prepared.clusters[task]] if names else ""

    def train_tasks(self, replicate: int) -> np.ndarray:
        """All training tasks in a replicate's order: one of each cluster in turn, (K,) int64. A trial has the first n_tasks."""
        return _ordered(self._content.digest, replicate, self.n_clusters)

    def held_out_tasks(self, request: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The held-out tasks of trained clusters, of clusters held out whole, and of clusters that this trial leaves out.

        (K,) int64 each, in a fixed order: trials that train the same clusters have the same tasks.
        """
        of_clusters, whole = _held_out(self._content.digest)
        clusters = self.prepared.clusters
        trained = np.isin(clusters[of_clusters], clusters[self.train_tasks(request.replicate)[: request.n_tasks]])
        return of_clusters[trained], whole, of_clusters[~trained]

    def trained_names(self, request: Request) -> list[tuple[str, str]]:
        """(task, cluster) of each training task of a trial, by name."""
        data, tasks = self.prepared, self.train_tasks(request.replicate)[: request.n_tasks].tolist()
        clusters = data.cluster_names or [""]
        return [(data.names[task], clusters[data.clusters[task]]) for task in tasks]

    def data_facts(self) -> dict[str, Any]:
        """`Facts` of the table as JSON, its path and digest, the sentences of its leak certificate, columns that are not used, and
        names of what is held out. Raises as `prepared`."""
        data, content = self.prepared, self._content
        of_clusters, whole = _held_out(content.digest)
        clusters = np.unique(data.clusters[whole]).tolist()
        place = {
            "path": self.path,
            "digest": content.digest,
            "leaks": data.facts.certificate.lines(),
            "unread": list(self.unread),
            "held_out_clusters": [data.cluster_names[cluster][:_NAMED] for cluster in clusters[:10]],
            "held_out_tasks": [data.names[task][:_NAMED] for task in of_clusters[:5].tolist()],
        }
        return data.facts.model_dump(mode="json") | place

    def contents(self, request: Request, split: Literal["seen", "held_out"], n_first: int) -> list[bytes]:
        if split == "held_out":
            tasks = np.concatenate(self.held_out_tasks(request))[:n_first]
        else:
            tasks = self.train_tasks(request.replicate)[: min(n_first, request.n_tasks)]
        data = self.prepared
        items = (data.items.tokens(data.items_of(task))[0] for task in tasks.tolist())
        return [hashlib.blake2b(flat.tobytes(), digest_size=16).digest() for flat in items]

    # Items -----------------------------------------------------------------------------------------------------

    def _n_train(self, request: Request, tasks: np.ndarray) -> np.ndarray:
        """Training items of each task that a trial uses, (n,)."""
        most = self.items_per_task
        if self.items_total is not None:
            most = max(1, self.items_total // request.n_tasks)
        counts = self.prepared.n_train[tasks]
        return counts if most is None else np.minimum(counts, most)

    def _shares(self, request: Request, tasks: np.ndarray) -> np.ndarray:
        """The share of each task in training, (n,), summing to 1."""
        if self.weights == "given":
            raw = self.prepared.weights[tasks]
        elif self.weights == "proportional":
            raw = np.minimum(self._n_train(request, tasks), self.cap or np.inf).astype(float)
        else:
            raw = np.ones(len(tasks))
        powered = raw ** (1 / self.temperature)
        shares: np.ndarray = powered / powered.sum()
        return shares

    def drawn(self, request: Request, draw: np.random.Generator, n: int) -> TextItems:
        tasks, edges, counts = _mixture(self, request)
        which = np.minimum(np.searchsorted(edges, draw.random(n), side="right"), len(tasks) - 1)
        at = (draw.random(n) * counts[which]).astype(np.int64)
        return self._items(tasks[which], at, new=False)

    def _items(self, tasks: np.ndarray, at: np.ndarray, new: bool) -> TextItems:
        """The items numbered `at` (n,) among the training or new items of `tasks` (n,)."""
        data = self.prepared
        flat, offsets, n_prompt = data.items.tokens(data.numbers(tasks, at, new))
        return TextItems(flat.astype(np.int64), offsets, n_prompt, tasks)

    def n_chosen(self, request: Request, split: str) -> int:
        return len(self._places(request, split)[0])

    def chosen(self, request: Request, split: str) -> TextItems:
        return self._items(*self._places(request, split), new=split not in ("train_items", KNOWN))

    def known(self, request: Request) -> TextItems:
        return self.chosen(request._replace(n_sequences=MAX_MEMORY_ITEMS), KNOWN)

    def _places(self, request: Request, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Task and number in it of each item of an item set, at most n_sequences: one of each task in turn.

        All items of clusters held out whole come before those of clusters that this trial leaves out. So trials that leave out
        different clusters are asked the same items, as far as there are enough.
        """
        if split in ("held_out", "held_out_clusters"):
            known, *others = self.held_out_tasks(request)
            groups = [(tasks, self.prepared.n_new[tasks]) for tasks in ([known] if split == "held_out" else others)]
        else:
            tasks = self.train_tasks(request.replicate)[: request.n_tasks]
            counts = self._n_train(request, tasks)
            if split != KNOWN:  # as many items of a task in both sets: memory compares their losses
                counts = np.minimum(counts, self.prepared.n_new[tasks])
            groups = [(tasks, counts)]
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        left = request.n_sequences
        for tasks, counts in groups:
            level = 0
            while left > 0 and len(here := tasks[counts > level][:left]):
                found.append((here, np.full(len(here), level)))
                left, level = left - len(here), level + 1
        return np.concatenate([t for t, _ in found]), np.concatenate([k for _, k in found])

    # Judging ---------------------------------------------------------------------------------------------------

    def judge(self) -> Scorer:
        return super().judge() if self.scorer is None else _loaded_scorer(self.scorer, self.scorer_digest)


def content_of(made: Prepared) -> Content:
    """The content of a prepared table."""
    train = np.array(made.part) == "train"
    sizes = np.bincount(made.clusters[train]) if train.any() else np.zeros(0, np.int64)
    facts = made.facts
    return Content(
        digest=made.digest,
        tasks_per_cluster=tuple(sorted((int(s) for s in sizes if s), reverse=True)),
        longest=facts.longest,
        longest_prompt=int(made.items.n_prompt.max()),
        longest_target=int(made.items.n_target.max()),
        mean_tokens=facts.n_tokens / facts.n_items,
    )


@lru_cache(maxsize=8)
def _opened(folder: str) -> Prepared:
    return open_prepared(folder)


@lru_cache(maxsize=8)
def _held_out(digest: str) -> tuple[np.ndarray, np.ndarray]:
    """Held-out tasks of clusters that may train, and tasks of clusters held out whole: (K,) int64 each, in a fixed order."""
    part = np.array(_opened(str(store.folder_of(digest))).part)
    found = []
    for split in ("held_out", "held_out_clusters"):
        tasks = np.flatnonzero(part == split)
        order = keyed_permutation(max(1, len(tasks)), "table", "held-out tasks", split)
        found.append(tasks[order(np.arange(len(tasks)))])
    return found[0], found[1]


@lru_cache(maxsize=32)
def _ordered(digest: str, replicate: int, n_clusters: int | None) -> np.ndarray:
    data = _opened(str(store.folder_of(digest)))
    train = np.flatnonzero(np.array(data.part) == "train")
    train = train[keyed_permutation(len(train), "table", "training tasks", replicate)(np.arange(len(train)))]
    clusters = np.unique(data.clusters[train])
    clusters = clusters[keyed_permutation(len(clusters), "table", "clusters", replicate)(np.arange(len(clusters)))]
    rank = np.full(int(clusters.max()) + 1, -1)
    rank[clusters[:n_clusters]] = np.arange(len(clusters[:n_clusters]))
    train = train[rank[data.clusters[train]] >= 0]
    of = rank[data.clusters[train]]
    order = np.argsort(of, kind="stable")
    turn = np.empty(len(train), np.int64)
    turn[order] = np.arange(len(train)) - np.searchsorted(of[order], of[order])  # place within the cluster
    return train[np.lexsort((of, turn))]


@lru_cache(maxsize=32)
def _mixture(family: Table, request: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training tasks of a trial, the cumulative shares behind each, and their numbers of training items; (n_tasks,) each."""
    tasks = family.train_tasks(request.replicate)[: request.n_tasks]
    return tasks, np.cumsum(family._shares(request, tasks)), family._n_train(request, tasks)


# Scorers ----------------------------------------------------------------------------------------------------------------


def _kept_scorer(
    named: str, beside: Path, root: Path, tokens: Tokens, items: Sequence[tuple[np.ndarray, np.ndarray]]
) -> str:
    """Keep the source of `module:function` under `root`, so that every machine judges by it. Returns its digest.

    The module is looked for in the study's folder, then among the installed ones. It is tried on items (prompt ids, target
    ids), with their targets and some wrong answers. Raises TableError in one line if it fails, or accepts no target.
    """
    module, colon, function = named.partition(":")
    if not (colon and module and function.isidentifier()):
        raise TableError(f"scorer: {named!r}: give module:function, such as my_scorer:judge")
    file = beside / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is None or not found.origin or not found.origin.endswith(".py"):
            raise TableError(
                f"scorer: {named}: there is no {file.name} beside the study, and no installed module {module}"
            )
        file = Path(found.origin)
    source = file.read_bytes()
    digest = hashlib.blake2b(source, digest_size=16).hexdigest()
    store.put(root, digest, {SCORER: source})
    with _in_time(f"scorer: {named} has not loaded"):
        loaded = _loaded_scorer(named, digest)

    def judge(prompt: str, target: str, answer: str) -> bool | None:
        with _in_time(f"scorer: {named} has not judged {_asked(prompt, target, answer)}"):
            return loaded(prompt, target, answer)

    texts = [(tokens.decode(prompt), tokens.decode(target)) for prompt, target in items]
    for prompt, target in texts:
        for wrong in ("", "?", prompt):  # a model writes anything
            judge(prompt, target, wrong)
    if not any(judge(prompt, target, target) for prompt, target in texts):
        raise TableError(
            f"scorer: {named} accepts none of {len(texts)} targets as the answer to their prompts; its parameters are "
            "(prompt, target, answer), and it returns True for a right answer"
        )
    return digest


class ScorerError(TableError):
    """A scorer failed on an answer, in one line. It would fail on the same answer again."""


class _TooSlow(BaseException):
    """A scorer did not come to an end in time. A scorer that catches every Exception does not catch it."""


@contextmanager
def _in_time(what: str) -> Iterator[None]:
    """Raise TableError, `what` with the limit, if the `with` block takes SCORER_SECONDS.

    Only the main thread of a process can be interrupted. In other threads nothing is limited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, SCORER_SECONDS)
    try:
        yield
    except _TooSlow:
        raise TableError(f"{what} within {SCORER_SECONDS:g} s; an evaluation judges hundreds of answers") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _asked(prompt: str, target: str, answer: str) -> str:
    return f"prompt {prompt[:60]!r}, target {target[:60]!r}, answer {answer[:60]!r}"


@lru_cache(maxsize=8)
def _loaded_scorer(named: str, digest: str) -> Scorer:
    """The function of a kept source. Raises TableError if the source fails, or lacks it."""
    name = named.partition(":")[2]
    file = store.folder_of(digest) / SCORER
    source = file.read_bytes()
    if hashlib.blake2b(source, digest_size=16).hexdigest() != digest:
        raise TableError(f"{file}: this scorer was changed; delete its folder, and it is kept again")
    made = types.ModuleType(f"scorer_{digest}")
    made.__file__ = str(file)
    try:
        exec(
            compile(source, f"{named.partition(':')[0]}.py", "exec"), made.__dict__
        )  # these bytes, and no cached bytecode
    except (Exception, SystemExit) as problem:
        raise TableError(f"scorer: {named} cannot be loaded: {type(problem).__name__}: {problem}") from None
    function = getattr(made, name, None)
    if not callable(function):
        there = [each for each, value in vars(made).items() if callable(value) and not each.startswith("_")]
        raise TableError(f"scorer: {named}: there is no function {name}; there are {', '.join(there) or 'none'}")

    def judge(prompt: str, target: str, answer: str) -> bool | None:
        try:
            verdict = function(prompt, target, answer)
        except (Exception, SystemExit) as problem:
            asked = _asked(prompt, target, answer)
            raise ScorerError(f"scorer: {named} fails on {asked}: {type(problem).__name__}: {problem}") from None
        if verdict is None or isinstance(verdict, bool | np.bool_):
            return None if verdict is None else bool(verdict)
        given = f"{verdict!r:.60} ({type(verdict).__name__})"
        raise ScorerError(f"scorer: {named} returned {given}; allowed: True, False, or None for no answer")

    return judge
