"""parity: a sum of emergences (Michaud et al. 2023, arXiv 2303.13506; Nam et al. 2024, arXiv 2404.17563).

A task is the parity of k of n bits. A sequence is b1 ... bn c a: random bits, a control token that names the task, and the
answer. Only the answer is predicted. One subset of bits gives no information on another, so every task is its own skill. With
`training.task_exponent` = α + 1, tasks are shown in proportion to rank^-(α + 1). They should then be learned one after another,
each suddenly, while the mean loss falls smoothly.

Generalisation here means new data. An untrained control token has no meaning, so a model cannot be asked an unseen task. The
held-out split asks trained tasks on bit strings that no batch contains. Ability is R_k / S of the second paper, the
correlation of answer and truth. It is 2 accuracy - 1, because a table of the training data can only guess on new data. (A
table that looked up the nearest trained string, if all others trained, would be right in a share of 1 - k/n.) Memory of tasks
has no meaning here.

A recipe that learns it in a minute on one core: 3 of 10 bits, 16 tasks, 1 layer of width 32 with 4 heads, `positions: learned`,
`embed_std: 0.3`, batch 128, a constant rate of 4e-3. With task_exponent 1.6, task 1 is learned after 700 steps and task 4 after
1,700. After 4,400 steps all but one of the evaluated tasks are learned (one run). With 16 bits and width 64, task 1 is learned
after 380 steps, and no other by step 1,145.
"""

from __future__ import annotations

from math import comb
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from trainers.records import Count, Limit
from trainers.streams import key_of, keyed_permutation, mix64, stream
from trainers.tasks.base import SkillsOfParameters, register
from trainers.tasks.probes import Batch, ItemSet, Probe, Reference
from trainers.tasks.references import ExactFamily
from trainers.tasks.request import Request

HELD_OUT_SHARE = 8
"""One in this many bit strings is held out from training, by a hash of its bits."""


@register
class Parity(ExactFamily):
    """Parities of `n_summed` of `n_bits` bits, one for each of `n_controls` control tokens."""

    name: Literal["parity"] = "parity"
    n_bits: Annotated[Count, Field(ge=8, le=60)] = 16
    """n: number of bits in a sequence, from 8 to 60."""
    n_summed: Count = 3
    """k: number of bits whose parity a task asks for; below n_bits."""
    n_controls: Annotated[Count, Limit(100_000)] = 64
    """Number of control tokens, and so the largest n_tasks. The model has a token for each, even if it is not used."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer",)
    headline: ClassVar[str] = "mean"
    mixture: ClassVar[str] = "mean"
    ability_of: ClassVar[Literal["nll", "accuracy"]] = "accuracy"
    memorizer_max_tasks: ClassVar[int | None] = None
    skills: ClassVar[dict[str, str]] = SkillsOfParameters()  # type: ignore[assignment]

    @model_validator(mode="after")
    def _fits(self) -> Parity:
        if not self.n_summed < self.n_bits:
            raise ValueError(f"n_summed {self.n_summed}: fewer than the n_bits {self.n_bits} are needed")
        if self.universe_size <= self.n_controls:
            raise ValueError(
                f"n_controls {self.n_controls}: {self.n_summed} of {self.n_bits} bits can be chosen in "
                f"{self.universe_size} ways, and there must be fewer controls"
            )
        return self

    def _skills(self) -> dict[str, str]:
        of_rank = {f"task_{r}": f"the task drawn {_ordinal(r)}most often, on new data" for r in self.ranks}
        return {"mean": "all tasks in their training mixture, on new data: its loss is the mean loss"} | of_rank

    @property
    def ranks(self) -> list[int]:
        """Ranks of the tasks that have a skill of their own: 1, 2, 4, ... up to n_controls. Rank 1 is drawn most often."""
        return [2**i for i in range(self.n_controls.bit_length())]

    @property
    def universe_size(self) -> int:
        return comb(self.n_bits, self.n_summed)

    @property
    def n_held_out(self) -> int:
        return self.universe_size - self.n_controls

    @property
    def n_train_ids(self) -> int:
        return self.n_controls

    @property
    def vocab_size(self) -> int:
        return 2 + self.n_controls

    @property
    def seq_len(self) -> int:
        return self.n_bits + 1

    def chance(self, skill: str) -> float | None:
        return 0.5

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        return self.subsets(ids)

    def subsets(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, k), the positions of the summed bits, descending.

        A keyed permutation shuffles the ids. The results are decoded in the combinatorial number system: rank = Σ C(c_j, j) over
        the chosen c_k > ... > c_1 >= 0.
        """
        rank = keyed_permutation(self.universe_size, "parity", "unrank", self.n_bits, self.n_summed)(ids)
        out = np.empty((len(rank), self.n_summed), dtype=np.int64)
        for column, j in enumerate(range(self.n_summed, 0, -1)):
            ways = np.array([comb(c, j) for c in range(self.n_bits)])
            out[:, column] = np.searchsorted(ways, rank, side="right") - 1
            rank = rank - ways[out[:, column]]
        return out

    # Data ------------------------------------------------------------------------------------------------------

    def is_held_out(self, codes: np.ndarray) -> np.ndarray:
        """Is the bit string held out from training? codes (n,) -> (n,) bool. Bit i of a code is bit i of the sequence."""
        key = np.uint64(key_of("parity", "held-out data", self.n_bits) & (2**64 - 1))
        held_out: np.ndarray = mix64(codes.astype(np.uint64) ^ key) % np.uint64(HELD_OUT_SHARE) == 0
        return held_out

    def _codes(self, draw: np.random.Generator, n: int, held_out: bool) -> np.ndarray:
        """Random bit strings as codes (n,), all of them held out from training or none of them."""
        codes = draw.integers(0, 2**self.n_bits, n)
        while (wrong := self.is_held_out(codes) != held_out).any():
            codes[wrong] = draw.integers(0, 2**self.n_bits, int(wrong.sum()))
        return codes

    def _sequences(self, ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Tokens (N, n+2) for task ids (N,) and bit strings `codes` (N,): the n bits, then the control 2 + id, then the answer.

        The control comes last, at the position that predicts the answer. So one layer of attention can look up its bits.
        """
        bits = codes[:, None] >> np.arange(self.n_bits) & 1  # (N, n)
        answer = np.take_along_axis(bits, self.subsets(ids), axis=1).sum(axis=1) % 2
        return np.concatenate([bits, 2 + ids[:, None], answer[:, None]], axis=1)

    def batch(self, request: Request, step: int) -> Batch:
        draw = stream("parity", "batch", request.replicate, step)
        size = request.batch_size
        ids = self.train_ids(request.replicate, self.draw_tasks(request, draw, size))
        loss_mask = np.zeros((size, self.seq_len), dtype=bool)
        loss_mask[:, -1] = True
        return Batch(self._sequences(ids, self._codes(draw, size, held_out=False)), loss_mask)

    # Evaluation ------------------------------------------------------------------------------------------------

    def suite_size(self, request: Request) -> int:
        return (2 + sum(r <= request.n_tasks for r in self.ranks)) * request.n_sequences

    def suite(self, request: Request) -> list[ItemSet]:
        """The item sets: the training mixture on held-out and on other bit strings, then each of `ranks` on held-out ones.

        Tasks of the mixture are not drawn but allotted by their shares, so chance does not move the mean loss.
        """
        n = request.n_sequences
        mixed = self._allotted(request, n)
        absent = [r for r in self.ranks if r > request.n_tasks]
        sets = [
            self._item_set(request, "mean", mixed, absent=[f"task_{r}" for r in absent]),
            self._item_set(request, "mean", mixed, split="seen"),
        ]
        present = [r for r in self.ranks if r <= request.n_tasks]
        return sets + [self._item_set(request, f"task_{r}", np.full(n, r - 1)) for r in present]

    def _allotted(self, request: Request, n: int) -> np.ndarray:
        """Task numbers (n,) in proportion to their shares in training: those at the quantiles (i + 1/2) / n of all shares."""
        logs = self.log_shares(request)
        shares = np.full(request.n_tasks, 1 / request.n_tasks) if logs is None else np.exp(logs)
        return np.searchsorted(np.cumsum(shares)[:-1], (np.arange(n) + 0.5) / n)

    def _item_set(
        self, request: Request, skill: str, tasks: np.ndarray, split: str = "held_out", absent: list[str] | None = None
    ) -> ItemSet:
        """The item set of `skill` with training tasks number `tasks` (N,), on held-out bit strings unless the split is "seen".

        `absent` names skills for which this trial has no items, because it has too few tasks. They get empty probes.
        """
        codes = self._codes(stream("parity", "questions", skill, split), len(tasks), held_out=split == "held_out")
        tokens = self._sequences(self.train_ids(request.replicate, tasks), codes)
        mask = np.zeros((len(tasks), self.seq_len), dtype=bool)
        mask[:, -1] = True
        guess = Reference(mask * np.log(2), mask * 0.5)
        references = {"uniform": guess, "generalizer": Reference(mask * 0.0, mask * 1.0)}
        if split == "held_out":
            references["memorizer"] = guess  # it has stored only training sequences, and these are none
        probes = [Probe(skill=skill, split=split, mask=mask, target=tokens[:, 1:], references=references)]
        nothing = np.zeros_like(mask)
        probes += [
            Probe(skill=name, split=split, mask=nothing, target=tokens[:, 1:], references=references)
            for name in absent or ()
        ]
        return ItemSet(tokens=tokens, probes=tuple(probes))


def _ordinal(rank: int) -> str:
    """A power of two as an ordinal, before "most": "", "2nd ", "64th "."""
    return "" if rank == 1 else f"{rank}{'nd' if rank % 10 == 2 and rank % 100 != 12 else 'th'} "
