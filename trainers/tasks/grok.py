"""grok: addition modulo p. Models generalise on it long after they memorise (Power et al. 2022, arXiv 2201.02177).

A task is one pair (a, b). A sequence is a b = c with c = (a + b) mod p. So the number of tasks is the number of the p² pairs
that train. Published are p = 97, and p = 113 with 30 % of the pairs (Nanda et al. 2023, arXiv 2301.05217). A model may memorise
the pairs, or learn to add.

Measured at p = 47 with the recipe of `sweeps/grokking.yaml`: 1 layer of width 64, learned positions, batch 256, rate 1e-3,
weight decay 1; 9 ms per step on one core. All trained pairs are known by step 309. Accuracy on pairs that trained in neither
order passes one half at these steps:

    75 % of all pairs train     250 to 309
    45 %                        550 to 734
    30 %                        3,093 to 4,000 (two runs; one run in the other rows)
    20 %                        not by 4,125, accuracy .00

Mirror images come first: .96 at step 309 if 45 % train. Without weight decay, 45 % lead to .18 after 4,000 steps. With it they
lead to 1.00 after 1,740.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from trainers.records import Count
from trainers.streams import KeyedPermutation, keyed_permutation, stream
from trainers.tasks.base import register
from trainers.tasks.probes import Batch, ItemSet, Probe, Reference, graded
from trainers.tasks.references import ExactFamily
from trainers.tasks.request import Request

EPSILON = 1e-3
"""ε: the references give 1 - ε to their answer and spread ε over all p numbers. So no loss is infinite."""


@register
class Grok(ExactFamily):
    """Addition of two numbers modulo `modulus`."""

    name: Literal["grok"] = "grok"
    modulus: Annotated[Count, Field(ge=5, le=1000)] = 47
    """p: numbers are 0 ... p - 1. The universe has p² pairs, and a quarter of them is held out."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer",)
    headline: ClassVar[str] = "add"
    mixture: ClassVar[str] = "mixture"
    # Accuracy, because the log loss of wrong answers soars before the model generalises:
    ability_of: ClassVar[Literal["nll", "accuracy"]] = "accuracy"
    skills: ClassVar[dict[str, str]] = {
        "add": "pairs that were trained in neither order",
        "commuted": "untrained pairs (a, b) whose mirror image (b, a) was trained: knowing that order does not matter is enough",
        "add_any": "all untrained pairs, as in the papers: the items of add and commuted together",
    }

    @property
    def universe_size(self) -> int:
        return self.modulus**2

    @property
    def n_held_out(self) -> int:
        return self.universe_size // 4

    @property
    def vocab_size(self) -> int:
        return self.modulus + 1

    @property
    def seq_len(self) -> int:
        return 3

    def chance(self, skill: str) -> float | None:
        return 1 / self.modulus

    # Pairs -----------------------------------------------------------------------------------------------------

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        return self.pairs(ids)

    def pairs(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows (a, b): ids (n,) -> (n, 2). A keyed permutation shuffles the ids, so neighbouring ids are unrelated."""
        return np.stack(np.divmod(self._order()(ids), self.modulus), axis=1)

    def ids(self, pairs: np.ndarray) -> np.ndarray:
        """The inverse of `pairs`: rows (n, 2) -> ids (n,)."""
        return self._order().inverse(pairs @ np.array([self.modulus, 1]))

    def _order(self) -> KeyedPermutation:
        """The permutation from ids to pairs numbered as a * p + b."""
        return keyed_permutation(self.universe_size, "grok", "unrank", self.modulus)

    def trained(self, request: Request, pairs: np.ndarray) -> np.ndarray:
        """Which of the pairs (n, 2) are training tasks? (n,) bool. It inverts the permutations, and needs no list of tasks."""
        ids = self.ids(pairs)
        listed = ids < self.n_train_ids
        order = keyed_permutation(self.n_train_ids, "grok", "training tasks", request.replicate)
        listed[listed] = order.inverse(ids[listed]) < request.n_tasks
        return listed

    def _sequences(self, pairs: np.ndarray) -> np.ndarray:
        """Tokens a b = c for pairs (N, 2): (N, 4). Numbers are 0 ... p - 1, and the equals sign is p."""
        equals = np.full(len(pairs), self.modulus)
        return np.column_stack([pairs, equals, pairs.sum(axis=1) % self.modulus])

    def _scored(self, rows: np.ndarray) -> np.ndarray:
        """A mask over positions (N, 3) from a mask over sequences (N,). Only the answer is scored."""
        return rows[:, None] & (np.arange(3) == 2)

    def batch(self, request: Request, step: int) -> Batch:
        draw = stream("grok", "batch", request.replicate, step)
        size = request.batch_size
        ids = self.train_ids(request.replicate, self.draw_tasks(request, draw, size))
        return Batch(self._sequences(self.pairs(ids)), self._scored(np.ones(size, dtype=bool)))

    # Evaluation ------------------------------------------------------------------------------------------------

    def suite_size(self, request: Request) -> int:
        return 2 * request.n_sequences

    def suite(self, request: Request) -> list[ItemSet]:
        n = request.n_sequences
        seen = self.pairs(self.train_ids(request.replicate, self.seen_tasks(request, n)))
        held_out = self.pairs(self.held_out_ids(n))
        everything = np.ones(n, dtype=bool)
        mirrored = self.trained(request, held_out[:, ::-1])
        by_skill = {"add": ~mirrored, "commuted": mirrored, "add_any": everything, self.mixture: everything}
        return [
            self._item_set(request, "held_out", held_out, by_skill),
            self._item_set(request, "seen", seen, {"add": everything, self.mixture: everything}),
        ]

    def _item_set(self, request: Request, split: str, pairs: np.ndarray, skills: dict[str, np.ndarray]) -> ItemSet:
        """The item set of pairs (N, 2). `skills` maps each skill to the rows that it scores, (N,) bool."""
        tokens = self._sequences(pairs)
        references = {
            name: Reference(*(np.pad(scores[:, None], ((0, 0), (2, 0))) for scores in graded(probs, tokens[:, -1])))
            for name, probs in self.predictions(pairs, self.trained(request, pairs)).items()
        }
        probes = tuple(
            Probe(skill=skill, split=split, mask=self._scored(rows), target=tokens[:, 1:], references=references)
            for skill, rows in skills.items()
        )
        return ItemSet(tokens=tokens, probes=probes)

    def predictions(self, pairs: np.ndarray, trained: np.ndarray) -> dict[str, np.ndarray]:
        """Each reference's probabilities (N, p) for the sum of each pair (N, 2). `trained` (N,) marks the training tasks.

        The generaliser knows all sums. The memoriser knows the trained pairs, however many, and guesses all others. On trained
        pairs the two agree, so memory and ability cannot be distinguished there.
        """
        p = self.modulus
        uniform = np.full((len(pairs), p), 1 / p)
        known = (1 - EPSILON) * np.eye(p)[pairs.sum(axis=1) % p] + EPSILON / p
        return {"uniform": uniform, "generalizer": known, "memorizer": np.where(trained[:, None], known, uniform)}
