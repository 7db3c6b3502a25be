"""grok: addition modulo p, on which models generalise long after they remember (Power et al. 2022, arXiv 2201.02177).

A task is one pair (a, b), and a sequence is a b = c with c = (a + b) mod p. So the number of tasks is the share of the p²
pairs that train; published are p = 97 and 113, there with 30 % of the pairs (Nanda et al. 2023, arXiv 2301.05217). A model
may keep the pairs, or learn to add.

Seen at p = 47 with the recipe of `sweeps/grokking.yaml` (1 layer of width 64, learned positions, batch 256, rate 1e-3, weight
decay 1; 9 ms a step of one core): trained pairs are all known by step 309. Pairs of neither order pass one half at step 250
to 309 where 75 % of all pairs train, 550 to 734 where 45 % do, 3,093 to 4,000 where 30 % do (two runs, else one each), and are
at .00 after 4,125 where 20 % do. Mirror images come first: .96 at step 309 where 45 % train. Without weight decay 45 % are at
.18 after 4,000 steps, with it at 1.00 after 1,740.
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
"""The references believe an answer with 1 - ε and any of the p numbers with ε, so that no loss is infinite."""


@register
class Grok(ExactFamily):
    """Pairs of numbers below `modulus`, to be added."""

    name: Literal["grok"] = "grok"
    modulus: Annotated[Count, Field(ge=5, le=1000)] = 47
    """p: numbers 0 ... p - 1; the universe has p² pairs, of which a quarter is held out."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer",)
    headline: ClassVar[str] = "add"
    mixture: ClassVar[str] = "mixture"
    ability_of: ClassVar[Literal["nll", "accuracy"]] = (
        "accuracy"  # log losses of wrong answers soar before it generalises
    )
    skills: ClassVar[dict[str, str]] = {
        "add": "pairs that were trained in neither order",
        "commuted": "untrained pairs (a, b) of which (b, a) was trained: that the order is no matter is enough",
        "add_any": "all untrained pairs, as published: both kinds together",
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
        """Tasks as rows: ids (n,) -> (n, 2), a and b. A keyed permutation, so that neighbouring ids share no number."""
        return np.stack(np.divmod(self._order()(ids), self.modulus), axis=1)

    def ids(self, pairs: np.ndarray) -> np.ndarray:
        """The inverse of `pairs`: (n, 2) -> (n,)."""
        return self._order().inverse(pairs @ np.array([self.modulus, 1]))

    def _order(self) -> KeyedPermutation:
        return keyed_permutation(self.universe_size, "grok", "unrank", self.modulus)

    def trained(self, request: Request, pairs: np.ndarray) -> np.ndarray:
        """Which pairs (n, 2) are among the training tasks: (n,) bool. Looked up in the list, which is never written."""
        ids = self.ids(pairs)
        listed = ids < self.n_train_ids
        order = keyed_permutation(self.n_train_ids, "grok", "training tasks", request.replicate)
        listed[listed] = order.inverse(ids[listed]) < request.n_tasks
        return listed

    def _sequences(self, pairs: np.ndarray) -> np.ndarray:
        """Tokens (N, 4): the numbers are 0 ... p - 1, the equals sign is p."""
        equals = np.full(len(pairs), self.modulus)
        return np.column_stack([pairs, equals, pairs.sum(axis=1) % self.modulus])

    def _scored(self, rows: np.ndarray) -> np.ndarray:
        """Only the answer counts: rows (N,) -> (N, 3)."""
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
        asked = {"add": ~mirrored, "commuted": mirrored, "add_any": everything, self.mixture: everything}
        return [
            self._item_set(request, "held_out", held_out, asked),
            self._item_set(request, "seen", seen, {"add": everything, self.mixture: everything}),
        ]

    def _item_set(self, request: Request, split: str, pairs: np.ndarray, skills: dict[str, np.ndarray]) -> ItemSet:
        """The sums of pairs (N, 2); `skills` tells which of them belong to each (N,)."""
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
        """Each reference's prediction of the sum: pairs (N, 2), and which of them were trained (N,) -> (N, p) each.

        The generaliser knows all sums. The memoriser knows those of its list, however long, and guesses all others; on
        the list the two are one, so that there is no memory to tell apart from ability.
        """
        p = self.modulus
        uniform = np.full((len(pairs), p), 1 / p)
        known = (1 - EPSILON) * np.eye(p)[pairs.sum(axis=1) % p] + EPSILON / p
        return {"uniform": uniform, "generalizer": known, "memorizer": np.where(trained[:, None], known, uniform)}
