"""cipher: associative recall. A task is a permutation of V symbols. V = 16 gives 2.09e13 of them.

A sequence is x1 π(x1) x2 π(x2) ... xP π(xP), with x uniform with replacement. x and y symbols are separate tokens (x: 0..V-1,
y: V..2V-1). A model may memorise the training permutations, or learn the rule "copy the answer from the context".

In the arm `task_id` a sequence begins with the table π(0) ... π(V-1) of its map, also if a skill swaps answers or draws a
random map. The rule is then to look answers up in the table. No answer has to be inferred, even for a new question. On
training tasks the rule and the memoriser agree. Only the table answers `elimination`. With the quickstart's recipe and 1e12
tasks, recall is .97 and elimination .03 after 379 steps, and 1.00 and .81 after 1,483 (one run each).
"""

from __future__ import annotations

from math import factorial
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from trainers.records import Count, Limit
from trainers.streams import keyed_permutation, stream
from trainers.tasks.base import register
from trainers.tasks.probes import Batch, ItemSet, Probe, Reference, graded
from trainers.tasks.references import ExactFamily
from trainers.tasks.request import Request

EPSILON = 1e-3
"""ε: the memoriser assumes that an answer follows the task with 1 - ε and is uniform over all V with ε. No loss is infinite."""
MEMORIZER_MAX_TASKS = 4096
"""With more training tasks no memoriser is computed, and memory is undefined. 1,024 tasks cost 0.1 s per trunk, so 4,096 about
0.4 s (assumed)."""
Trained = tuple[np.ndarray, np.ndarray | None]
"""The training permutations (K, V), and the natural log of each one's share in training (K,), or None for equal shares."""


@register
class Cipher(ExactFamily):
    """Permutations of `n_symbols` symbols, shown as `n_pairs` question-answer pairs."""

    name: Literal["cipher"] = "cipher"
    n_symbols: Annotated[Count, Field(ge=4, le=20)] = 16
    """V: symbols per side; the universe has V! tasks (20! is the last below 2^62)."""
    n_pairs: Annotated[Count, Field(ge=4), Limit(10_000)] = 24
    """P: pairs per sequence."""
    answers: Literal["permutation", "noise"] = "permutation"
    """`noise` trains on answers that are drawn independently of all else. It is a null: no skill can be learned."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer", "next_token", "task_id")
    headline: ClassVar[str] = "recall"
    mixture: ClassVar[str] = "mixture"
    memorizer_max_tasks: ClassVar[int | None] = MEMORIZER_MAX_TASKS
    skills: ClassVar[dict[str, str]] = {
        "recall": "the question occurred earlier in the sequence: copy its answer",
        "elimination": "the question is new to the sequence: choose among the answers not yet used",
        "recall_novel_pair": "recall of a question-answer pair that no training task contains",
        "override": "two answers of a training task are swapped in the context: is the answer that of the context?",
        "override_memory": "the same items as in override, scored for the answer that the training task would give",
        "recall_function": "recall in random many-to-one maps, a kind of task that is never trained",
    }

    @property
    def universe_size(self) -> int:
        return factorial(self.n_symbols)

    @property
    def n_held_out(self) -> int:
        return self.universe_size // 4

    @property
    def vocab_size(self) -> int:
        return 2 * self.n_symbols

    @property
    def seq_len(self) -> int:
        return self.length("task_id")

    def length(self, arm: str) -> int:
        return self._first(arm) + 2 * self.n_pairs - 1

    def _first(self, arm: str) -> int:
        """Position of the first question: after the table of answers, if the arm shows it."""
        return self.n_symbols if arm == "task_id" else 0

    def chance(self, skill: str) -> float | None:
        return 1 / self.n_symbols

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        return self.permutations(ids)

    def permutations(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, V), row[x] = π(x).

        A keyed permutation shuffles the ids 0 ... V! - 1. Each result is decoded as the Lehmer code of a permutation.
        """
        v = self.n_symbols
        rank = keyed_permutation(self.universe_size, "cipher", "unrank", v)(ids)
        out = np.zeros((len(rank), v), dtype=np.int64)
        for position in range(v - 1, -1, -1):  # insert from the last position backwards
            rank, digit = np.divmod(rank, v - position)
            later = out[:, position + 1 :]
            later += later >= digit[:, None]
            out[:, position] = digit
        return out

    def _sequences(self, arm: str, maps: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Tokens (N, T+1): questions x (N, P) and their answers by maps (N, V), interleaved. In `task_id` the map comes first."""
        y = np.take_along_axis(maps, x, axis=1) + self.n_symbols
        pairs = np.stack([x, y], axis=2).reshape(len(x), -1)
        return np.concatenate([maps + self.n_symbols, pairs], axis=1) if arm == "task_id" else pairs

    def _lift(self, arm: str, pairs: np.ndarray) -> np.ndarray:
        """Move values of pairs (N, P) to positions (N, T), zeros elsewhere. An answer is predicted where its question stands."""
        positions = np.zeros((len(pairs), self.length(arm)), dtype=pairs.dtype)
        positions[:, self._first(arm) :: 2] = pairs
        return positions

    def batch(self, request: Request, step: int) -> Batch:
        draw = stream("cipher", "batch", request.replicate, step)
        size = request.batch_size
        maps = self.permutations(self.train_ids(request.replicate, self.draw_tasks(request, draw, size)))
        tokens = self._sequences(request.arm, maps, draw.integers(0, self.n_symbols, (size, self.n_pairs)))
        if self.answers == "noise":
            noise = draw.integers(0, self.n_symbols, (size, self.n_pairs))
            tokens[:, self._first(request.arm) + 1 :: 2] = self.n_symbols + noise
        if request.arm == "next_token":
            return Batch(tokens, np.ones((size, self.length(request.arm)), dtype=bool))
        answers = np.ones((size, self.n_pairs), dtype=bool)  # questions and the table are irreducible noise
        return Batch(tokens, self._lift(request.arm, answers))

    # Evaluation ------------------------------------------------------------------------------------------------

    def suite_size(self, request: Request) -> int:
        return 4 * request.n_sequences

    def suite(self, request: Request) -> list[ItemSet]:
        n, v = request.n_sequences, self.n_symbols
        train = None
        if request.n_tasks <= MEMORIZER_MAX_TASKS:
            tasks = self.permutations(self.train_ids(request.replicate, np.arange(request.n_tasks)))
            train = (tasks, self.log_shares(request))
        # With more tasks than sequences, the seen split has the first tasks of the replicate.
        seen = self.permutations(self.train_ids(request.replicate, self.seen_tasks(request, n)))
        held_out = self.permutations(self.held_out_ids(n))
        functions = stream("cipher", "functions").integers(0, v, (n, v))
        questions = stream("cipher", "questions").integers(0, v, (4, n, self.n_pairs))
        return [
            self._plain_set(request.arm, "held_out", held_out, questions[0], train, self._novel_pairs(request)),
            self._plain_set(request.arm, "seen", seen, questions[1], train, None),
            self._override_set(request.arm, seen, questions[2], train),
            self._function_set(request.arm, functions, questions[3], train),
        ]

    def _novel_pairs(self, request: Request) -> np.ndarray:
        """Is the pair (question, answer) in no training task? (V, V) bool."""
        novel = np.ones((self.n_symbols, self.n_symbols), dtype=bool)
        for start in range(0, request.n_tasks, 1024):
            chunk = self.train_ids(request.replicate, np.arange(start, min(start + 1024, request.n_tasks)))
            novel[np.arange(self.n_symbols), self.permutations(chunk)] = False
            if not novel.any():
                break
        return novel

    def _plain_set(
        self, arm: str, split: str, maps: np.ndarray, x: np.ndarray, train: Trained | None, novel: np.ndarray | None
    ) -> ItemSet:
        """The item set of questions x (N, P) on maps (N, V). `novel` is the array of `_novel_pairs`, or None."""
        y = np.take_along_axis(maps, x, axis=1)
        in_context = _occurred_before(x)
        references = self._references(arm, maps, x, train)
        masks = {"recall": in_context, "elimination": ~in_context, self.mixture: np.ones_like(in_context)}
        if novel is not None:
            masks["recall_novel_pair"] = in_context & novel[x, y]
        return ItemSet(
            tokens=self._sequences(arm, maps, x),
            probes=tuple(self._probe(arm, s, split, mask, y, references) for s, mask in masks.items()),
        )

    def _override_set(self, arm: str, maps: np.ndarray, x: np.ndarray, train: Trained | None) -> ItemSet:
        """The item set of `override`, from training tasks `maps` (N, V) and questions x (N, P).

        The answers of two questions are swapped. Each is shown in the first half, and both are asked again at the end.
        """
        n, p = x.shape
        draw = stream("cipher", "override")
        pair = np.stack([draw.choice(self.n_symbols, 2, replace=False) for _ in range(n)])  # (n, 2)
        early = np.stack([draw.choice(p // 2, 2, replace=False) for _ in range(n)])  # (n, 2)
        x = x.copy()
        np.put_along_axis(x, early, pair, axis=1)
        x[:, -2:] = draw.permuted(pair, axis=1)
        swapped = maps.copy()
        np.put_along_axis(swapped, pair, np.take_along_axis(maps, pair[:, ::-1], axis=1), axis=1)
        shown, remembered = np.take_along_axis(swapped, x, axis=1), np.take_along_axis(maps, x, axis=1)
        mask = _occurred_before(x) & (x[:, :, None] == pair[:, None, :]).any(2)
        references = self._references(arm, swapped, x, train)
        # Without the generaliser, which gives 0 to the remembered answer:
        finite = {name: probs for name, probs in references.items() if name != "generalizer"}
        probes = (
            self._probe(arm, "override", "seen", mask, shown, references),
            self._probe(arm, "override_memory", "seen", mask, remembered, finite),
        )
        return ItemSet(tokens=self._sequences(arm, swapped, x), probes=probes)

    def _function_set(self, arm: str, maps: np.ndarray, x: np.ndarray, train: Trained | None) -> ItemSet:
        """The item set of `recall_function`: questions x (N, P) on many-to-one maps (N, V)."""
        y = np.take_along_axis(maps, x, axis=1)
        references = self._references(arm, maps, x, train)
        probe = self._probe(arm, "recall_function", "held_out", _occurred_before(x), y, references)
        return ItemSet(tokens=self._sequences(arm, maps, x), probes=(probe,))

    def _probe(
        self, arm: str, skill: str, split: str, mask: np.ndarray, y: np.ndarray, references: dict[str, np.ndarray]
    ) -> Probe:
        """A probe from a mask and right answers y over pairs (N, P), and each reference's probabilities (N, P, V)."""

        def reference(probs: np.ndarray) -> Reference:  # (N, P, V) predictions
            nll, right = graded(probs, y)
            nll = np.where(mask, np.minimum(nll, -np.log(1e-300)), 0.0)
            return Reference(self._lift(arm, nll), self._lift(arm, right))

        return Probe(
            skill=skill,
            split=split,
            mask=self._lift(arm, mask),
            target=self._lift(arm, y + self.n_symbols),
            references={name: reference(probs) for name, probs in references.items()},
        )

    # References ------------------------------------------------------------------------------------------------

    def _references(self, arm: str, maps: np.ndarray, x: np.ndarray, train: Trained | None) -> dict[str, np.ndarray]:
        """Each reference's probabilities (N, P, V) for the answers to questions x (N, P) on maps (N, V).

        If `train` is None there is no memoriser. In `task_id` the generaliser looks answers up in the table. For the memoriser
        the table is V more pairs.
        """
        y = np.take_along_axis(maps, x, axis=1)
        shown = maps if arm == "task_id" else None
        references = {
            "uniform": np.full((*x.shape, self.n_symbols), 1 / self.n_symbols),
            "generalizer": self.generalizer(x, y) if shown is None else np.eye(self.n_symbols)[y],
        }
        if train is not None:
            references["memorizer"] = self.memorizer(x, y, *train, shown=shown)
        return references

    def generalizer(self, questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Right for any permutation: it copies the answer if the question occurred, else guesses among the answers not yet used.

        questions, answers (N, P) -> probabilities (N, P, V). Each prediction uses only its question and earlier pairs.
        """
        n, p = questions.shape
        v = self.n_symbols
        known = np.full((n, v), -1)  # answer of each question so far
        used = np.zeros((n, v), dtype=bool)
        out = np.zeros((n, p, v))
        rows = np.arange(n)
        for i in range(p):
            answer = known[rows, questions[:, i]]
            free = np.where(used.all(1, keepdims=True), True, ~used)
            copy = np.eye(v)[np.maximum(answer, 0)]
            out[:, i] = np.where((answer >= 0)[:, None], copy, free / free.sum(1, keepdims=True))
            known[rows, questions[:, i]] = answers[:, i]
            used[rows, answers[:, i]] = True
        return out

    def memorizer(
        self,
        questions: np.ndarray,
        answers: np.ndarray,
        train: np.ndarray,
        log_shares: np.ndarray | None = None,
        shown: np.ndarray | None = None,
    ) -> np.ndarray:
        """Bayes over exactly the training permutations; it expects an answer to follow the permutation with probability 1 - ε.

        questions, answers (N, P), train (K, V), prior `log_shares` (K,) or None for uniform -> probabilities (N, P, V). The
        entries of `shown` (N, V), the table of `task_id` or None, count as answers.
        """
        v, (n, p) = self.n_symbols, questions.shape
        surprise = np.log1p(-EPSILON + EPSILON / v) - np.log(EPSILON / v)  # log odds of a match
        table = np.ascontiguousarray(train.T.astype(np.uint8))  # (V, K); bytes, because this is the costly array
        matches = table[questions] == answers.astype(np.uint8)[:, :, None]  # (N, P, K)
        byte = np.min_scalar_type(p + v)  # two bytes if p + v is 256 or more
        before = np.cumsum(matches, axis=1, dtype=byte)  # agreements in the context, this pair included
        before -= matches
        if shown is not None:
            before += (shown.astype(np.uint8)[:, :, None] == table).sum(axis=1, dtype=byte)[:, None]
        behind = before.max(axis=2, keepdims=True) - before
        if log_shares is None:
            weight = np.exp(-surprise * np.arange(p + v + 1))[behind]  # (N, P, K), unnormalised posterior
        else:
            weight = log_shares - surprise * behind
            weight = np.exp(weight - weight.max(axis=2, keepdims=True))
        out = np.empty((n, p, v))
        for question in range(v):  # one matmul per question: posterior (m, K) @ one-hot answers (K, V)
            at = questions == question
            out[at] = weight[at] @ np.eye(v)[train[:, question]]
        out /= out.sum(axis=2, keepdims=True)
        return (1 - EPSILON) * out + EPSILON / v


def _occurred_before(x: np.ndarray) -> np.ndarray:
    """Did the same symbol occur earlier in its row? (N, P) -> (N, P) bool."""
    same = x[:, :, None] == x[:, None, :]  # (N, P, P)
    return np.tril(same, k=-1).any(axis=2)
