"""New skill or re-ranking? Classes the answers that a trial from a start model newly gets right.

The trial's likeliest answer to a held-out prompt is right, and that of its start model was not. Then the reward has

- *sharpened*: a right answer was among the samples of the start model;
- *composed*: none was, but the start model gave each token of the new answer a chance of at least one in as many samples;
- *created*: the new answer has a token below that chance.

Sampling cannot tell a chance below one in `n_samples` from none. So both borders lie at what the samples resolve.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from orchestrator.stats.intervals import wilson_interval
from orchestrator.stats.pass_at import pass_at_k

CLASSES = ("sharpened", "composed", "created")


class Reranking(NamedTuple):
    """What one trial shows on N held-out prompts."""

    n_prompts: int
    n_samples: int
    """Samples of the start model for each prompt."""
    start_right: float
    """Share of prompts that the start model answers right greedily."""
    right: float
    """The same share for the trial."""
    pass_at: dict[int, float]
    """k = 1, 2, 4, ... -> mean chance that one of k samples of the start model is right (pass@k, unbiased)."""
    n_new: int
    """Prompts that the trial answers right and the start model does not."""
    counts: dict[str, int]
    """Class -> number of these."""

    @property
    def verdict(self) -> str:
        """The class of more than half of the newly right answers; "" if none has that."""
        return next((name for name, n in self.counts.items() if 2 * n > self.n_new), "")

    def interval(self, name: str) -> tuple[float, float]:
        """95 % Wilson interval of a class's share among the newly right answers. Prompts are the units."""
        return wilson_interval(self.counts[name], self.n_new)


def reranking(facts: dict[str, Any]) -> Reranking:
    """The classes from the facts `reranking` of a trial's end (`trainers/engine/reranking.py`)."""
    before, counts = np.array(facts["greedy_right"], bool), np.array(facts["sampled_right"])
    after, least, n_samples = np.array(facts["right"], bool), np.array(facts["least_log_p"]), int(facts["n_samples"])
    new = after & ~before
    sampled, likely = counts > 0, least >= -math.log(n_samples)
    of_class = {"sharpened": new & sampled, "composed": new & ~sampled & likely, "created": new & ~sampled & ~likely}
    powers = [2**k for k in range(int(math.log2(n_samples)) + 1)]
    return Reranking(
        n_prompts=len(after),
        n_samples=n_samples,
        start_right=float(before.mean()),
        right=float(after.mean()),
        pass_at={k: float(pass_at_k(n_samples, counts, k).mean()) for k in powers},
        n_new=int(new.sum()),
        counts={name: int(hits.sum()) for name, hits in of_class.items()},
    )
