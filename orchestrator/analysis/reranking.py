"""New skill or re-ranking? Classes the answers that a trial from a start model newly gets right.

The trial's likeliest answer to a held-out prompt is right, and that of its start model was not. Then the reward has

- *sharpened*: a right answer was among the samples of the start model;
- *composed*: none was, but the start model gave each token of the new answer a chance of at least one in as many samples;
- *created*: the new answer has a token below that chance.

Sampling cannot tell a chance below one in `n_samples` from none. So both borders lie at what the samples resolve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orchestrator.stats.intervals import wilson_interval

CLASSES = ("sharpened", "composed", "created")
COUNTS = ("n_prompts", "n_start_right", "n_start_sampled", "n_end_right", *(f"n_{name}" for name in CLASSES))
"""Names of `counts`: held-out prompts, those that the start model answers right greedily, those with a right answer among its
samples, those that the trial answers right greedily, and the newly right ones by class."""


def counts(facts: Mapping[str, Any]) -> dict[str, int]:
    """The counts of one trial, by the names of COUNTS. facts: `reranking` of its end (`trainers/engine/reranking.py`)."""
    before, n_right = np.array(facts["greedy_right"], bool), np.array(facts["sampled_right"])
    after, least = np.array(facts["right"], bool), np.array(facts["least_log_p"])
    new, sampled, likely = after & ~before, n_right > 0, least >= -math.log(facts["n_samples"])
    found = [np.ones_like(after), before, sampled, after]
    found += [new & sampled, new & ~sampled & likely, new & ~sampled & ~likely]
    return {name: int(hits.sum()) for name, hits in zip(COUNTS, found, strict=True)}


class Reranking(NamedTuple):
    """The newly right answers of some trials together."""

    n_trials: int
    n_prompts: int
    """Prompts of all these trials."""
    start_right: float
    """Share of prompts that the start model answers right greedily."""
    start_sampled: float
    """Share of prompts with a right answer among the samples of the start model: pass@k at k = all of them."""
    end_right: float
    """Share of prompts that the trials answer right greedily."""
    of_class: dict[str, int]
    """Class -> newly right answers."""

    @property
    def n_new(self) -> int:
        """Prompts that the trials answer right and their start models do not."""
        return sum(self.of_class.values())

    @property
    def verdict(self) -> str:
        """The class of more than half of the newly right answers; "" if none has that."""
        return next((name for name, n in self.of_class.items() if 2 * n > self.n_new), "")

    def interval(self, name: str) -> tuple[float, float]:
        """95 % Wilson interval of a class's share among the newly right answers. Prompts are the units."""
        return wilson_interval(self.of_class[name], self.n_new)


def reranking(runs: Sequence[Mapping[str, Any]]) -> Reranking | None:
    """The answers of trials, rows of `runs.parquet`; None if no row has the counts."""
    rows = [run for run in runs if run.get("n_prompts")]
    if not rows:
        return None
    total = {name: sum(row[name] for row in rows) for name in COUNTS}
    n, of_class = total["n_prompts"], {name: total[f"n_{name}"] for name in CLASSES}
    start, sampled, end = (total[name] / n for name in ("n_start_right", "n_start_sampled", "n_end_right"))
    return Reranking(len(rows), n, start, sampled, end, of_class)
