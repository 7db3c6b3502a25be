"""worked_parity: the sum of a string's letters, with the work shown in a share of the training answers. 2^62 strings at most.

The prompt is d letters of an alphabet of A, written as digits: `01101`. The answer is their sum modulo A. A task is a string. With
probability `share` a training answer is long: all d prefix sums, `01001`, of which the last is the sum. Else it is short: the
sum alone, `1`. Nothing in the prompt says which is coming.

So consider a model that cannot compute the sum at once, and knows the frequencies. With p = share, it gives the first prefix
sum the probability p + (1 - p) / A. After it the odds of going on to stopping are p : (1 - p) / A. A greedy answer is long if
and only if p > 1 / (A + 1). For A = 2 that is one third (Tsilivis et al. 2025, arXiv 2510.11495). For other A it was derived for
this project.

A recipe on both sides of the threshold, a minute on one core: 2^18 strings (18, 9 or 6 letters of 2, 4 or 8), 2 layers of width 64,
`positions: learned`, `embed_std: 0.1`, batch 32, rate 2e-3, arm `next_token`, 2e12 FLOPs. Share of long greedy answers on
held-out strings, two pilot replicates each: for 2 letters 0 and .02 at p = .3 and 1.0 at .36; for 4 letters .08 and .24 at .17, .85
and 1.0 at .23; for 8 letters .20 and .26 at .1, .60 and .73 at .125.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from trainers.data.tokens import Tokens
from trainers.records import Count
from trainers.streams import keyed_permutation
from trainers.tasks.base import register
from trainers.tasks.references import SMALL_UNIVERSE, zipf_ranks
from trainers.tasks.request import Request
from trainers.tasks.text import Scorer, TextFamily, TextItems

_DIGITS = "0123456789"
_MEMORIZED = 2**14
"""Training strings among which the memoriser looks for the nearest one."""


@register
class WorkedParity(TextFamily):
    """Sums of `n_positions` letters modulo `n_letters`. A share of the training answers writes the prefix sums out."""

    name: Literal["worked_parity"] = "worked_parity"
    n_positions: Annotated[Count, Field(ge=3, le=62)] = 16
    """d: letters of a string. The universe has A^d strings, at most 2^62."""
    n_letters: Annotated[Count, Field(ge=2, le=10)] = 2
    """A: letters of the alphabet, the digits from 0. The answer is the sum modulo A."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the training answers that write out all prefix sums. Each occurrence of a string draws anew."""

    version: ClassVar[int] = 1
    skills: ClassVar[dict[str, str]] = {
        "solve": "strings, answered freely: right if the last letter is the sum modulo the alphabet's size"
    }
    memorizer_max_tasks: ClassVar[int | None] = 0  # a task is one item, so there are no new items of training tasks

    @model_validator(mode="after")
    def _fits(self) -> WorkedParity:
        if self._n_strings > 2**62:
            raise ValueError(f"{self.n_positions} letters of {self.n_letters} are more than 2^62 strings")
        return self

    # The universe ----------------------------------------------------------------------------------------------

    @property
    def _n_strings(self) -> int:
        return int(self.n_letters**self.n_positions)

    @property
    def n_train_ids(self) -> int:
        """Strings that may train. An eighth of a universe below SMALL_UNIVERSE is held out, half of a larger one."""
        size = self._n_strings
        return size - (max(1, size // 8) if size < SMALL_UNIVERSE else size - size // 2)

    @property
    def n_tasks_max(self) -> int:
        return self.n_train_ids

    @property
    def text_tokens(self) -> Tokens:
        return Tokens(kind="characters", characters=_DIGITS[: self.n_letters], n_ids=self.n_letters)

    @property
    def n_new(self) -> int:
        return self.n_positions + 1

    @property
    def longest_prompt(self) -> int:
        return self.n_positions

    @property
    def longest(self) -> int:
        return 2 * self.n_positions + 2

    @property
    def mean_tokens(self) -> float:
        return self.n_positions + 3 + self.share * (self.n_positions - 1)

    @property
    def seq_len(self) -> int:
        """Room for four long answers, the same for every share, so that little of a row is padding."""
        return 4 * self.longest - 1

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Strings of ids (n,): (n, d) int64, letters 0 ... A-1. Ids from n_train_ids on are held out."""
        rank = keyed_permutation(self._n_strings, "worked_parity", "unrank", self.n_letters, self.n_positions)(ids)
        out = np.empty((len(rank), self.n_positions), np.int64)
        for k in range(self.n_positions - 1, -1, -1):
            rank, out[:, k] = np.divmod(rank, self.n_letters)
        return out

    def task_name(self, task: int) -> str:
        return "".join(_DIGITS[letter] for letter in self.tasks(np.array([task]))[0])

    def train_ids(self, replicate: int, indices: np.ndarray) -> np.ndarray:
        """Ids of a replicate's training strings, by their places in its list, (n,) -> (n,): nested in n_tasks."""
        return keyed_permutation(self.n_train_ids, "worked_parity", "training tasks", replicate)(indices)

    def held_out_ids(self, n: int) -> np.ndarray:
        """The first n held-out ids of a fixed shuffle, (n,), fewer if there are not so many."""
        size = self._n_strings - self.n_train_ids
        return self.n_train_ids + keyed_permutation(size, "worked_parity", "held-out tasks")(np.arange(min(n, size)))

    def contents(self, request: Request, split: Literal["seen", "held_out"], n_first: int) -> list[bytes]:
        if split == "held_out":
            ids = self.held_out_ids(n_first)
        else:
            ids = self.train_ids(request.replicate, np.arange(min(n_first, request.n_tasks)))
        return [row.tobytes() for row in self.tasks(ids)]

    # Items -----------------------------------------------------------------------------------------------------

    def items(self, ids: np.ndarray, long: np.ndarray) -> TextItems:
        """The strings of ids (n,) with their answers, of which those marked `long` (n,) hold all prefix sums."""
        d, tokens, n = self.n_positions, self.text_tokens, len(ids)
        strings = self.tasks(ids)
        sums = strings.cumsum(axis=1) % self.n_letters  # (n, d)
        answers = np.where(long[:, None], sums, sums[:, -1:])
        rows = np.concatenate([strings, np.full((n, 1), tokens.answer), answers, np.full((n, 1), tokens.end)], axis=1)
        sizes = np.where(long, self.longest, d + 3)
        rows[np.arange(n), sizes - 1] = tokens.end
        flat = rows[np.arange(self.longest) < sizes[:, None]]
        return TextItems(flat, np.concatenate([[0], np.cumsum(sizes)]), np.full(n, d), ids)

    def _places(self, request: Request, draw: np.random.Generator, n: int) -> np.ndarray:
        """Draw n training strings as their places in the list, (n,)."""
        if request.task_exponent:
            return zipf_ranks(draw, request.task_exponent, request.n_tasks, n) - 1
        return draw.integers(0, request.n_tasks, n)

    def drawn(self, request: Request, draw: np.random.Generator, n: int) -> TextItems:
        ids = self.train_ids(request.replicate, self._places(request, draw, n))
        return self.items(ids, draw.random(n) < self.share)

    def n_chosen(self, request: Request, split: str) -> int:
        n = request.n_sequences
        return len(self.held_out_ids(n)) if split == "held_out" else n if split == "seen" else 0

    def chosen(self, request: Request, split: str) -> TextItems:
        """As in the base. Every item has its long answer. So the loss is that of the prefix sums, for every share."""
        n = self.n_chosen(request, split)
        if split == "held_out":
            ids = self.held_out_ids(n)
        else:
            ids = self.train_ids(request.replicate, np.arange(n) % request.n_tasks)
        return self.items(ids, np.ones(n, bool))

    # Judging ---------------------------------------------------------------------------------------------------

    def judge(self) -> Scorer:
        """Right if the last letter is the sum. An answer has at least one letter, and letters alone."""

        def scorer(prompt: str, target: str, answer: str) -> bool | None:
            return None if not answer or answer.strip(_DIGITS) else answer[-1] == self._worked(prompt)[-1]

        return scorer

    def oracle(self) -> Scorer:
        """The strict judge: right if the answer is the sum alone, or exactly the prefix sums."""
        return lambda prompt, target, answer: answer in (self._worked(prompt), self._worked(prompt)[-1])

    def _worked(self, prompt: str) -> str:
        """The prefix sums of a prompt as text."""
        return "".join(_DIGITS[s % self.n_letters] for s in np.cumsum([int(letter) for letter in prompt]).tolist())

    def floors(self, request: Request, items: TextItems, known: TextItems) -> dict[str, np.ndarray]:
        """`frequent`: the sum 0, as all sums are equally frequent. `memorizer`: the sum of the training string that shares most
        letters with the prompt."""
        trained = self.tasks(self.train_ids(request.replicate, np.arange(min(request.n_tasks, _MEMORIZED))))
        asked = self.tasks(items.tasks)
        nearest = np.array([(trained == row).sum(axis=1).argmax() for row in asked])
        sums = asked.sum(axis=1)
        return {
            "frequent": sums % self.n_letters == 0,
            "memorizer": (trained[nearest].sum(axis=1) - sums) % self.n_letters == 0,
        }
