"""The base of families whose items are text: a prompt and its target. The model reads the prompt and writes an answer.

An item is `[prompt] ANSWER [target] END` in tokens. Training rows are packed: a row holds whole items one behind another, each
a segment of its own, and attention stays within a segment. So every step costs the same FLOPs, whatever the lengths.

There are four item sets, one per split: training items, new items of the training tasks (`seen`), held-out tasks of the clusters
that the trial trains (`held_out`), and held-out tasks of other clusters (`held_out_clusters`). Answers are written freely and greedily. They count as *answered* if they end (and a scorer can
read them), and as *right* by the scorer. No credit is given for containing the target.
"""

from __future__ import annotations

import base64
import json
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from trainers.data.tokens import Tokens
from trainers.streams import mix64, stream
from trainers.tasks.base import Family
from trainers.tasks.probes import Batch, ItemSet, Probe, Questions
from trainers.tasks.request import Request

SPLITS = ("train_items", "seen", "held_out", "held_out_clusters")
"""The item sets: items that train, new items of training tasks, held-out tasks of trained clusters, and of untrained clusters."""
FLOORS = ("frequent", "copy", "nearest", "memorizer")
"""Names of the trivial predictors. The last is for families that can apply a memoriser of their training tasks."""
MAX_MEMORY_ITEMS = 2048
"""Training items among which the trivial predictors look. With more, these many are drawn."""
_HASHED = 2048
"""Columns of the hashed trigram counts by which the nearest training item is found."""

Scorer = Callable[[str, str, str], bool | None]
"""(prompt, target, answer) -> whether the answer is right; None if it cannot be read as an answer."""


class TextItems(NamedTuple):
    """Items as tokens, `[prompt] ANSWER [target] END` one behind another."""

    flat: np.ndarray  # (tokens,) int64
    offsets: np.ndarray  # (n + 1,) int64: item i is flat[offsets[i] : offsets[i + 1]]
    n_prompt: np.ndarray  # (n,) int64: tokens of the prompt, without ANSWER
    tasks: np.ndarray  # (n,) int64: number of each item's task

    def __len__(self) -> int:
        return len(self.n_prompt)

    def item(self, i: int) -> np.ndarray:
        """The tokens of item i."""
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    def prompt(self, i: int) -> np.ndarray:
        """The tokens that the model reads before it answers, ANSWER included."""
        return self.item(i)[: self.n_prompt[i] + 1]

    def target(self, i: int) -> np.ndarray:
        """The tokens of the target, without END."""
        return self.item(i)[self.n_prompt[i] + 1 : -1]


def packed_names(tasks: list[tuple[str, str]]) -> str:
    """(task, cluster) of many tasks as a short text: 100,000 names of tasks take some hundred kilobytes."""
    return base64.b64encode(zlib.compress(json.dumps(list(zip(*tasks, strict=True))).encode())).decode()


def unpacked_names(text: str) -> list[tuple[str, str]]:
    """(task, cluster) of many tasks, from `packed_names`."""
    return list(zip(*json.loads(zlib.decompress(base64.b64decode(text))), strict=True))


def items_of(tokens: Tokens, pairs: list[tuple[str, str]], tasks: np.ndarray) -> TextItems:
    """Items from (prompt, target) texts. tasks (n,) are the numbers of their tasks."""
    encoded = tokens.encode_batch([text for pair in pairs for text in pair])
    marks = np.array([tokens.answer]), np.array([tokens.end])
    parts = [part for i in range(len(pairs)) for part in (encoded[2 * i], marks[0], encoded[2 * i + 1], marks[1])]
    n_prompt = np.array([len(encoded[2 * i]) for i in range(len(pairs))], np.int64)
    lengths = n_prompt + [len(encoded[2 * i + 1]) + 2 for i in range(len(pairs))]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return TextItems(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), n_prompt, tasks)


def packed(items: TextItems, n_rows: int, length: int, longest: int, end: int, all_tokens: bool) -> tuple[Batch, int]:
    """Pack whole items into rows of length + 1 tokens. Returns the batch and the number of items used.

    An item goes into the first row with room. Packing ends when no row has room for the `longest` item. It does not look at
    the next item, so items of every length are trained as often as they are drawn (Wald's identity). The loss sees the targets
    with their END, or `all_tokens` of an item but its first.
    """
    tokens = np.full((n_rows, length + 1), end, np.int64)
    segments = np.full((n_rows, length + 1), -1, np.int64)
    positions = np.zeros((n_rows, length + 1), np.int64)
    predicted = np.zeros((n_rows, length + 1), bool)
    free, used = np.full(n_rows, length + 1), 0
    sizes = np.diff(items.offsets)
    for size, begin, n_prompt in zip(sizes.tolist(), items.offsets[:-1].tolist(), items.n_prompt.tolist(), strict=True):
        if free.max() < longest:
            break
        row = int(np.argmax(free >= size))
        at = length + 1 - free[row]
        tokens[row, at : at + size] = items.flat[begin : begin + size]
        segments[row, at : at + size] = used
        positions[row, at : at + size] = np.arange(size)
        predicted[row, at + (1 if all_tokens else n_prompt + 1) : at + size] = True
        free[row] -= size
        used += 1
    return Batch(tokens, predicted[:, 1:], positions[:, :-1], segments[:, :-1]), used


class TextFamily(Family):
    """The base of text families. Subclasses give tasks, items and clusters."""

    arms: ClassVar[tuple[str, ...]] = ("answer", "next_token", "reward")
    skills: ClassVar[dict[str, str]] = {
        "solve": "items of tasks, answered freely: right if the scorer accepts the answer"
    }
    headline: ClassVar[str] = "solve"
    mixture: ClassVar[str] = "solve"
    ability_of: ClassVar[Literal["nll", "accuracy", "right"]] = "right"
    memorizer_max_tasks: ClassVar[int | None] = None

    @property
    @abstractmethod
    def text_tokens(self) -> Tokens:
        """The tokens of this family's text."""

    @property
    @abstractmethod
    def n_new(self) -> int:
        """Most tokens of an answer, END included."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Most tokens of an item, marks included."""

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt, without its mark. Here a bound: an item has both marks, and a target of one token at least."""
        return self.longest - 3

    @property
    @abstractmethod
    def mean_tokens(self) -> float:
        """Mean length of an item in tokens, marks included: a guess at how many items fill a batch."""

    @abstractmethod
    def drawn(self, request: Request, draw: np.random.Generator, n: int) -> TextItems:
        """Draw n training items, as a batch does: their tasks by the mixture, items of a task alike."""

    @abstractmethod
    def chosen(self, request: Request, split: str) -> TextItems:
        """The items of an item set, at most `request.n_sequences`. Of held-out tasks, trials that train the same clusters have the
        same items. Without clusters all trials have."""

    @abstractmethod
    def n_chosen(self, request: Request, split: str) -> int:
        """The number of items that `chosen` gives, without building them."""

    @abstractmethod
    def task_name(self, task: int) -> str:
        """The name of a task, for tables and reports."""

    def cluster_name(self, task: int) -> str:
        """The name of a task's cluster; "" without clusters."""
        return ""

    def judge(self) -> Scorer:
        """The judge of answers. By default an answer is right if it equals the target, apart from blanks at both ends."""
        return lambda prompt, target, answer: answer.strip() == target.strip()

    def oracle(self) -> Scorer | None:
        """The strict judge of answers that the scorer accepts (`Questions.oracle`); None without one."""
        return None

    @property
    def vocab_size(self) -> int:
        return self.text_tokens.vocab_size

    def length(self, arm: str) -> int:
        """Positions of a row. Rows of arm `reward` hold one prompt and its answer, those of others whole items."""
        return sum(self.answer_shape) - 1 if arm == "reward" else self.seq_len

    @property
    def answer_shape(self) -> tuple[int, int]:
        return self.longest_prompt + 1, self.n_new

    def questions(self, request: Request, step: int, n_prompts: int) -> Questions:
        name: Any = self
        items = self.drawn(request, stream(name.name, "questions", request.replicate, step), n_prompts)
        return self.asked(items, {})

    def unseen_questions(self, request: Request) -> Questions:
        return self.asked(self.chosen(request, "held_out"), {})

    def batch(self, request: Request, step: int) -> Batch:
        name: Any = self
        length, end, every = self.length(request.arm), self.text_tokens.end, request.arm == "next_token"
        n = int(1.2 * request.batch_size * (length + 1) / self.mean_tokens) + 8
        for k in range(40):  # twice as many items each time, until the rows are full
            draw = stream(name.name, "batch", request.replicate, step)
            items = self.drawn(request, draw, n << k)
            batch, used = packed(items, request.batch_size, length, self.longest, end, every)
            if used < len(items):
                return batch
        raise AssertionError("a batch has room for no end of items")

    # Evaluation ------------------------------------------------------------------------------------------------

    def suite_size(self, request: Request) -> int:
        n = sum(self.n_chosen(request, split) for split in SPLITS)
        return -(
            -n * (2 * self.longest + self.n_new) // (self.length(request.arm) + 1)
        )  # each read once and answered once

    def suite(self, request: Request) -> list[ItemSet]:
        known = self.known(request)
        sets = []
        for split in SPLITS:
            items = self.chosen(request, split)
            if len(items):
                sets.append(self._item_set(request, split, items, self.floors(request, items, known)))
        return sets

    def known(self, request: Request) -> TextItems:
        """Training items of a trial from which trivial predictors answer, at most MAX_MEMORY_ITEMS."""
        name: Any = self
        return self.drawn(request, stream(name.name, "memory", request.replicate), MAX_MEMORY_ITEMS)

    def _item_set(self, request: Request, split: str, items: TextItems, floors: dict[str, np.ndarray]) -> ItemSet:
        """The item set of some items. floors: the trivial predictors, as in `floors`."""
        length, tokens = self.length(request.arm), self.text_tokens
        rows = np.full((len(items), length + 1), tokens.end, np.int64)
        predicted = np.zeros((len(items), length + 1), bool)
        for i in range(len(items)):
            item = items.item(i)
            rows[i, : len(item)] = item
            predicted[i, items.n_prompt[i] + 1 : len(item)] = True
        probe = Probe(skill=self.headline, split=split, mask=predicted[:, 1:], target=rows[:, 1:])
        return ItemSet(tokens=rows, probes=(probe,), questions=self.asked(items, floors))

    def asked(self, items: TextItems, floors: dict[str, np.ndarray]) -> Questions:
        """The prompts of some items, and how their answers are judged. floors: as in `floors`."""
        tokens = self.text_tokens
        return Questions(
            prompts=[items.prompt(i) for i in range(len(items))],
            n_new=self.n_new,
            end=tokens.end,
            forbidden=(tokens.answer,),
            tasks=[self.task_name(task) for task in items.tasks.tolist()],
            clusters=[self.cluster_name(task) for task in items.tasks.tolist()],
            floors=floors,
            texts=[(tokens.decode(items.prompt(i)), tokens.decode(items.target(i))) for i in range(len(items))],
            decode=tokens.decode,
            scorer=self.judge(),
            oracle=self.oracle(),
        )

    def floors(self, request: Request, items: TextItems, known: TextItems) -> dict[str, np.ndarray]:
        """Named trivial predictors: whether each is right on each item, (n,) bool. `known` are training items.

        `frequent`: the most frequent target of the item's task in training, else of all training. `copy`: the prompt itself.
        `nearest`: the target of the training item whose prompt shares most trigrams of tokens with this prompt.
        """
        judge, decode = self.judge(), self.text_tokens.decode
        texts = [(decode(items.prompt(i)), decode(items.target(i))) for i in range(len(items))]
        targets = [decode(known.target(i)) for i in range(len(known))]
        of_task: dict[int, Counter[str]] = {}
        for task, target in zip(known.tasks.tolist(), targets, strict=True):
            of_task.setdefault(task, Counter())[target] += 1
        often = sum(of_task.values(), Counter()).most_common(1)[0][0]
        nearest = np.argmax(_trigrams(items) @ _trigrams(known).T, axis=1)
        guesses = {
            "frequent": [of_task[t].most_common(1)[0][0] if t in of_task else often for t in items.tasks.tolist()],
            "copy": [prompt for prompt, _ in texts],
            "nearest": [targets[i] for i in nearest.tolist()],
        }
        return {
            name: np.array([judge(*text, guess) is True for text, guess in zip(texts, guessed, strict=True)], bool)
            for name, guessed in guesses.items()
        }


def _trigrams(items: TextItems) -> np.ndarray:
    """Counts of hashed trigrams of each prompt's tokens, as vectors of length 1: (n, _HASHED) float32."""
    counts = np.zeros((len(items), _HASHED), np.float32)
    for i in range(len(items)):
        ids = np.concatenate([[-1, -1], items.prompt(i)]).astype(np.uint64)
        with np.errstate(over="ignore"):
            grams = mix64(mix64(mix64(ids[:-2]) + ids[1:-1]) + ids[2:])
        np.add.at(counts[i], (grams % np.uint64(_HASHED)).astype(int), 1)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
