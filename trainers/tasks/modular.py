"""modular: linear functions modulo p, inferred from examples in the context (after He et al. 2024, arXiv 2406.02550).

A task is D coefficients c modulo the prime p. A sequence is x1 z1 x2 z2 ... xP zP. Each x is D numbers, not all of them 0, and
z = (c · x) mod p. Numbers are tokens 0 ... p - 1, results p ... 2p - 1. A model may memorise the training functions, copy
earlier results, or solve for a new one: if x is a linear combination of earlier ones, their results decide its result.

A recipe that learns it: 2 layers of width 64, 4 heads, `conv_kernel: 4`, init_gain 1, embed_std 0.1, batch 32, rate 3e-3 after
50 steps of warm-up, decayed over the last fifth; 23 ms per step on one core. Accuracy of `solve_new` on held-out functions,
modulo 5, two numbers, one run each:

    19 of the 25 functions      .60 after 2,500 steps, .89 after 5,000 (ability .84; the memoriser has .00)
    10 of them                  .08 after 2,500 steps (ability −3)
    4 of them                   .09 after 2,500 steps (ability −6; training functions are all right, memory .98)

`scale` and `recall` are learned first. With the coefficients shown (`task_id`), 19 functions reach .89 after 1,500 steps at a
constant rate. Three numbers, 94 of 125 functions and 10 examples are not learned: accuracy is at chance after 4,000 steps, on
training functions too.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from trainers.records import Count, Limit
from trainers.streams import keyed_permutation, stream
from trainers.tasks.base import register
from trainers.tasks.probes import Batch, ItemSet, Probe, Reference, graded
from trainers.tasks.references import ExactFamily
from trainers.tasks.request import Request

EPSILON = 1e-3
"""ε: the memoriser assumes that a number follows the task with 1 - ε and is uniform over all p with ε. No loss is infinite."""
MEMORIZER_MAX_TASKS = 4096
"""With more training tasks no memoriser is computed, and memory is undefined."""


class Solved(NamedTuple):
    """The results that follow from the earlier examples of a sequence, without knowing the coefficients."""

    known: np.ndarray  # (N, P) bool: x is a linear combination of earlier ones, so its result follows
    result: np.ndarray  # (N, P): the result of x, if known


@register
class Modular(ExactFamily):
    """Linear functions of `n_inputs` numbers modulo `modulus`, shown by `n_examples` examples."""

    name: Literal["modular"] = "modular"
    modulus: Annotated[Count, Field(ge=2, le=127)] = 5
    """p: a prime, at most 127."""
    n_inputs: Annotated[Count, Field(ge=2, le=16)] = 2
    """D: numbers that a function takes, from 2 to 16. The universe has p^D tasks, at most 2^62."""
    n_examples: Annotated[Count, Field(ge=2), Limit(10_000)] = 8
    """P: examples per sequence."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer", "next_token", "task_id")
    headline: ClassVar[str] = "solve_new"
    mixture: ClassVar[str] = "mixture"
    memorizer_max_tasks: ClassVar[int | None] = MEMORIZER_MAX_TASKS
    skills: ClassVar[dict[str, str]] = {
        "solve_new": "an x that is a linear combination of earlier ones, but a multiple of none: solve for its result",
        "scale": "an x that did not occur, but is a multiple of one that did",
        "recall": "an x that occurred earlier in the sequence: copy its result",
        "undecided": "an x that the examples so far do not determine: chance, unless the coefficients are shown",
    }

    @model_validator(mode="after")
    def _fits(self) -> Modular:
        p = self.modulus
        if any(p % factor == 0 for factor in range(2, int(p**0.5) + 1)):
            raise ValueError(f"modulus {p} is no prime, so not every number has an inverse; give a prime")
        if self.universe_size > 2**62:
            raise ValueError(f"{self.n_inputs} coefficients modulo {p} are more than 2^62 tasks")
        return self

    # The universe ----------------------------------------------------------------------------------------------

    @property
    def universe_size(self) -> int:
        return int(self.modulus**self.n_inputs)

    @property
    def n_held_out(self) -> int:
        return self.universe_size // 4

    @property
    def vocab_size(self) -> int:
        return 2 * self.modulus

    @property
    def seq_len(self) -> int:
        return self.length("task_id")

    def length(self, arm: str) -> int:
        return self._first(arm) + self.n_examples * (self.n_inputs + 1) - 1

    def _first(self, arm: str) -> int:
        """Position of the first example: after the coefficients, if the arm shows them."""
        return self.n_inputs if arm == "task_id" else 0

    def chance(self, skill: str) -> float | None:
        return 1 / self.modulus

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        return self.coefficients(ids)

    def coefficients(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, D). A keyed permutation shuffles the ids, so neighbouring ids are unrelated."""
        size = self.universe_size
        return self._digits(keyed_permutation(size, "modular", "unrank", self.modulus, self.n_inputs)(ids))

    def _digits(self, ranks: np.ndarray) -> np.ndarray:
        """The D digits of numbers in base p, lowest first: (...,) -> (..., D)."""
        return ranks[..., None] // self.modulus ** np.arange(self.n_inputs) % self.modulus

    def _inputs(self, draw: np.random.Generator, n: int) -> np.ndarray:
        """Random inputs (n, P, D), none of them all zeros: those have the result 0 in every task."""
        return self._digits(draw.integers(1, self.universe_size, (n, self.n_examples)))

    def _sequences(self, arm: str, tasks: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Tokens of the examples x (N, P, D) with their results for tasks (N, D): (N, T+1). In `task_id` the task comes first."""
        examples = np.concatenate([x, self.modulus + self.results(tasks, x)[:, :, None]], axis=2)
        shown = tasks if arm == "task_id" else tasks[:, :0]
        return np.concatenate([shown, examples.reshape(len(x), -1)], axis=1)

    def results(self, tasks: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """The results c · x mod p: tasks (N, D), inputs (N, P, D) -> (N, P)."""
        return (inputs * tasks[:, None]).sum(axis=2) % self.modulus

    def batch(self, request: Request, step: int) -> Batch:
        draw = stream("modular", "batch", request.replicate, step)
        size = request.batch_size
        tasks = self.coefficients(self.train_ids(request.replicate, self.draw_tasks(request, draw, size)))
        tokens = self._sequences(request.arm, tasks, self._inputs(draw, size))
        if request.arm == "next_token":
            return Batch(tokens, np.ones((size, self.length(request.arm)), dtype=bool))
        return Batch(tokens, self._lift(request.arm, np.ones((size, self.n_examples), dtype=bool)))

    def _lift(self, arm: str, examples: np.ndarray) -> np.ndarray:
        """Move values of examples (N, P) to positions (N, T), zeros elsewhere. A result is predicted at the last number of x."""
        positions = np.zeros((len(examples), self.length(arm)), dtype=examples.dtype)
        positions[:, self._first(arm) + self.n_inputs - 1 :: self.n_inputs + 1] = examples
        return positions

    # Evaluation ------------------------------------------------------------------------------------------------

    def suite_size(self, request: Request) -> int:
        return 2 * request.n_sequences

    def suite(self, request: Request) -> list[ItemSet]:
        n = request.n_sequences
        seen = self.coefficients(self.train_ids(request.replicate, self.seen_tasks(request, n)))
        held_out = self.coefficients(self.held_out_ids(n))
        return [
            self._item_set(request, "held_out", held_out, self._inputs(stream("modular", "held out"), n)),
            self._item_set(request, "seen", seen, self._inputs(stream("modular", "seen"), n)),
        ]

    def _item_set(self, request: Request, split: str, tasks: np.ndarray, x: np.ndarray) -> ItemSet:
        """The item set of tasks (N, D) with inputs x (N, P, D)."""
        arm, z = request.arm, self.results(tasks, x)
        solved = self.solve(x, z)
        occurred, multiple = _occurred_before(x), _occurred_before(self._directions(x))
        masks = {
            "solve_new": solved.known & ~multiple,
            "scale": multiple & ~occurred,
            "recall": occurred,
            "undecided": ~solved.known,
            self.mixture: np.ones_like(occurred),
        }
        references = {
            name: Reference(*(self._lift(arm, scores) for scores in graded(probs, z)))
            for name, probs in self.predictions(request, tasks, x, z).items()
        }
        target = self._lift(arm, z + self.modulus)
        probes = tuple(
            Probe(skill=skill, split=split, mask=self._lift(arm, mask), target=target, references=references)
            for skill, mask in masks.items()
        )
        return ItemSet(tokens=self._sequences(arm, tasks, x), probes=probes)

    # References ------------------------------------------------------------------------------------------------

    def predictions(
        self, request: Request, tasks: np.ndarray, inputs: np.ndarray, results: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Each reference's probabilities (N, P, p) for every result: tasks (N, D), inputs (N, P, D), results (N, P).

        In `task_id` the generaliser computes with the shown coefficients. The memoriser looks them up in its list, so the two
        agree on training tasks.
        """
        shown = tasks if request.arm == "task_id" else None
        predictions = {
            "uniform": np.full((*results.shape, self.modulus), 1 / self.modulus),
            "generalizer": np.eye(self.modulus)[results] if shown is not None else self.generalizer(inputs, results),
        }
        if request.n_tasks <= MEMORIZER_MAX_TASKS:
            train = self.coefficients(self.train_ids(request.replicate, np.arange(request.n_tasks)))
            predictions["memorizer"] = self.memorizer(inputs, results, train, shown, self.log_shares(request))
        return predictions

    def generalizer(self, inputs: np.ndarray, results: np.ndarray) -> np.ndarray:
        """Bayes over all p^D functions, equally likely: the result that follows from the earlier examples, else a uniform guess.

        inputs (N, P, D), results (N, P) -> probabilities (N, P, p). No other case exists: the functions that fit the examples
        give a new x either one result, or all results equally often.
        """
        known, result = self.solve(inputs, results)
        return np.where(known[:, :, None], np.eye(self.modulus)[result], 1 / self.modulus)

    def _inverses(self) -> np.ndarray:
        """Table (p,) of the inverses of 0 ... p - 1 modulo p, with 0 for 0."""
        return np.array([pow(a, -1, self.modulus) if a else 0 for a in range(self.modulus)])

    def _directions(self, x: np.ndarray) -> np.ndarray:
        """The multiple of each x whose first nonzero number is 1: (N, P, D) -> (N, P, D). Multiples of one x share it."""
        first = np.take_along_axis(x, (x > 0).argmax(axis=2)[:, :, None], axis=2)
        return x * self._inverses()[first] % self.modulus

    def solve(self, inputs: np.ndarray, results: np.ndarray) -> Solved:
        """Which results follow from the earlier examples? inputs (N, P, D), results (N, P), with one function per sequence.

        It is Gaussian elimination modulo p, one example after another.
        """
        p, (n, n_examples, d) = self.modulus, inputs.shape
        inverse = self._inverses()
        basis = np.zeros((n, d, d), dtype=np.int64)  # row i, if present, has its first nonzero number, a 1, at i
        basis_results = np.zeros((n, d), dtype=np.int64)
        known = np.zeros((n, n_examples), dtype=bool)
        result = np.zeros((n, n_examples), dtype=np.int64)
        for e in range(n_examples):
            rest, due = inputs[:, e].copy(), 0 * results[:, e]
            new = np.zeros(n, dtype=bool)  # does this example add a row?
            for i in range(d):
                there = basis[:, i, i] == 1
                times = np.where(there & ~new, rest[:, i], 0)
                rest = (rest - times[:, None] * basis[:, i]) % p
                due = (due + times * basis_results[:, i]) % p
                brings = ~there & ~new & (rest[:, i] != 0)
                scale = inverse[rest[brings, i]]
                basis[brings, i] = rest[brings] * scale[:, None] % p
                basis_results[brings, i] = (results[brings, e] - due[brings]) * scale % p
                new |= brings
            known[:, e], result[:, e] = ~new, due
        return Solved(known, result)

    def memorizer(
        self,
        inputs: np.ndarray,
        results: np.ndarray,
        train: np.ndarray,
        shown: np.ndarray | None = None,
        log_shares: np.ndarray | None = None,
    ) -> np.ndarray:
        """Bayes over exactly the training functions; it expects a number to follow the function with probability 1 - ε.

        inputs (N, P, D), results (N, P), train (K, D), prior `log_shares` (K,) or None for uniform -> probabilities (N, P, p).
        `shown` (N, D) are the coefficients that the arm `task_id` shows, or None.
        """
        p, (n, n_examples) = self.modulus, results.shape
        surprise = np.log1p(-EPSILON + EPSILON / p) - np.log(EPSILON / p)  # log odds of a match
        prior = np.zeros((n, len(train))) if log_shares is None else np.tile(log_shares, (n, 1))
        if shown is not None:
            prior += surprise * (shown[:, None] == train).sum(axis=2)
        out = np.empty((n, n_examples, p))
        columns = train.T.astype(np.float32)  # (D, K); exact: numbers stay below 2^24, and matmuls of floats are fast
        for i in range(n):  # one sequence at a time stays in the cache
            given = (inputs[i].astype(np.float32) @ columns).astype(np.int64) % p  # (P, K)
            matches = given == results[i][:, None]
            logs = surprise * (np.cumsum(matches, axis=0) - matches) + prior[i]
            weight = np.exp(logs - logs.max(axis=1, keepdims=True))
            cells = given + p * np.arange(n_examples)[:, None]
            out[i] = np.bincount(cells.ravel(), weight.ravel(), n_examples * p).reshape(n_examples, p)
        out /= out.sum(axis=2, keepdims=True)
        return (1 - EPSILON) * out + EPSILON / p


def _occurred_before(x: np.ndarray) -> np.ndarray:
    """Did the same x occur earlier in its sequence? (N, P, D) -> (N, P) bool."""
    same = (x[:, :, None] == x[:, None, :]).all(axis=3)
    return np.tril(same, k=-1).any(axis=2)
