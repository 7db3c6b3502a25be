"""Reward only: the model answers prompts freely, answers are judged, and right ones become more likely.

The reward r of an answer is 1 if it is right, else 0. A group has the G answers to one prompt. A batch has N answers of at most L
tokens. log p is the log-probability of an answer's tokens. The loss is minus the sum over answers of

    leave_one_out     (r - mean r of the G - 1 others) log p / (N L)
    grpo              (r - mean r) / (standard deviation of r) log p / (N x tokens of the answer)
    rejection, star   r log p / (tokens of all right answers)

`leave_one_out` (Kool et al. 2019) is the policy gradient without bias, up to the constant L. `grpo` (Shao et al. 2024, arXiv 2402.03300) weights a prompt by about 1 / sqrt(p (1 - p)), with p the
chance of a right answer, and short right and long wrong answers more; its own mean alone gives 1 - 1/G of the gradient.
There is no KL term and no clipping: each batch makes one update.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from trainers import budget
from trainers.engine.rows import VERDICTS, Network, Rows, Sampled, Write
from trainers.spec import TrunkSpec
from trainers.tasks.probes import Batch, Questions

TRANSCRIPTS = 4
"""Answers of a batch that are kept as text: the first of each of the first groups."""
CHARACTERS = 400
"""Characters of each text in a transcript."""


class RewardOnly:
    """The objective of arm `reward`. The settings are the trunk's `Reward`."""

    def __init__(self, trunk: TrunkSpec) -> None:
        assert trunk.reward is not None
        self.trunk, self.settings = trunk, trunk.reward
        family: Any = trunk.family
        self.n_prompt, self.n_new = family.answer_shape
        self.forbidden: list[int] = []
        self.write: Write
        """Samples answers of the model as it is before the step. `train.py` sets it, once there is an engine."""
        self.sums: dict[str, float] = {}
        """Counts and sums over the samples of the last batch."""
        self.transcripts: list[dict[str, Any]] = []
        """Some samples of the last batch."""

    def batch(self, step: int) -> Batch:
        """Ask the prompts of this step and weight the sampled answers. One row per answer: its prompt, then its tokens."""
        trunk, size = self.trunk, self.settings.group_size
        family: Any = trunk.family
        asked: Questions = family.questions(trunk.request, step, trunk.training.batch_size // size)
        asked = asked.repeated(np.repeat(np.arange(len(asked.prompts)), size))
        self.forbidden = list(asked.forbidden)
        samples = np.arange(len(asked.prompts)) % size
        purpose = (family.name, "reward", trunk.replicate, step)
        sampled = self.write(asked, self.settings.temperature, purpose, samples, self.settings.algorithm == "star")
        right = sampled.verdicts[:, VERDICTS.index("right")].reshape(-1, size)
        weights = answer_weights(self.settings.algorithm, right, sampled.n_tokens.reshape(-1, size), self.n_new)
        self.sums = _sums(sampled, right)
        shape, n_prompts = budget.shape_of(trunk), len(right)
        self.sums["flops"] = shape.written_flops(self.n_prompt, n_prompts, sampled.n_tokens)
        self.transcripts = _transcripts(asked, sampled, size)
        return _rows(asked, sampled, weights.ravel(), self.n_prompt + self.n_new)

    def after(self, sampled: dict[str, Any]) -> dict[str, Any]:
        """The sums of earlier steps with those of the last batch, and its transcripts: `{"sums": ..., "transcripts": ...}`."""
        sums = {name: sampled["sums"].get(name, 0) + value for name, value in self.sums.items()}
        return {"sums": sums, "transcripts": self.transcripts}

    def n_targets(self, batch: Batch, begin: int = 0, end: int | None = None) -> int:
        """Answers in the rows begin ... end - 1, times the most tokens of an answer: a constant, whatever was written."""
        return len(batch.tokens[begin:end]) * self.n_new

    def loss(self, model: Network, rows: Rows) -> Tensor:
        """Minus the weighted sum of log-probabilities of the written tokens, divided by `n_targets`: a scalar with a gradient.

        Log-probabilities are those of the distribution that the tokens were drawn from: at the temperature, without the
        forbidden ids.
        """
        assert rows.weights is not None
        mask = rows.loss_mask
        at = model(rows.tokens[:, :-1], mask)  # (n, V) where the mask is set
        if self.forbidden:
            at = at.index_fill(1, rows.tokens.new_tensor(self.forbidden), float("-inf"))
        logs = (at / self.settings.temperature).log_softmax(1).gather(1, rows.tokens[:, 1:][mask][:, None])[:, 0]
        return -(rows.weights[mask] * logs).sum() / (len(rows.tokens) * self.n_new)


def answer_weights(algorithm: str, right: np.ndarray, n_tokens: np.ndarray, n_new: int) -> np.ndarray:
    """The weight of each answer's log-probability, before the division by N n_new, the answers and the most tokens of one.

    right (P, G) bool and n_tokens (P, G) of P groups -> (P, G) float64. Groups of equal rewards have weight 0, except for right
    answers of `rejection` and `star`.
    """
    r, size = right.astype(float), right.shape[1]
    if algorithm in ("rejection", "star"):
        weights: np.ndarray = r * (r.size * n_new / max(1.0, (r * n_tokens).sum()))
        return weights
    above = r - r.mean(axis=1, keepdims=True)
    if algorithm == "leave_one_out":
        return above * (size / (size - 1))  # the mean of the others is that of all, moved by (r - mean) / (G - 1)
    spread = r.std(axis=1, ddof=1, keepdims=True)
    return np.divide(above, spread, out=np.zeros_like(r), where=spread > 0) * n_new / n_tokens


def _rows(asked: Questions, sampled: Sampled, weights: np.ndarray, length: int) -> Batch:
    """The batch (N, length) of prompts with their answers behind them; the mask has the written tokens."""
    n = len(asked.prompts)
    tokens = np.full((n, length), max(asked.end, 0), np.int64)
    written = np.zeros((n, length), bool)
    for i, (prompt, answer, k) in enumerate(zip(asked.prompts, sampled.tokens, sampled.n_tokens.tolist(), strict=True)):
        tokens[i, : len(prompt)] = prompt
        tokens[i, len(prompt) : len(prompt) + k] = answer[:k]
        written[i, len(prompt) : len(prompt) + k] = True
    of_token = np.where(written, weights[:, None], 0.0).astype(np.float32)
    return Batch(tokens, written[:, 1:], weights=of_token[:, 1:])


def _sums(sampled: Sampled, right: np.ndarray) -> dict[str, float]:
    """Counts and sums of one step: samples by verdict, tokens, minus log-probabilities in nats, groups by their rewards."""
    n_right = right.sum(axis=1)
    found = {"samples": len(sampled.tokens)} | dict(zip(VERDICTS, sampled.verdicts.sum(axis=0).tolist(), strict=True))
    found |= {"tokens": int(sampled.n_tokens.sum()), "nll_nats": -float(sampled.log_probs.sum(dtype=np.float64))}
    found |= {"groups": len(right), "groups_right": int((n_right == right.shape[1]).sum())}
    return found | {"groups_wrong": int((n_right == 0).sum())}


def _transcripts(asked: Questions, sampled: Sampled, size: int) -> list[dict[str, Any]]:
    found = []
    for i in range(0, min(len(asked.prompts), TRANSCRIPTS * size), size):
        k = int(sampled.n_tokens[i]) - (asked.end >= 0 and bool(sampled.verdicts[i, 0]))  # without the end
        prompt, target = asked.texts[i]
        shown = {"prompt": prompt, "target": target, "answer": asked.decode(sampled.tokens[i, :k])}
        found.append({"task": asked.tasks[i]} | {name: text[:CHARACTERS] for name, text in shown.items()})
        found[-1] |= dict(zip(VERDICTS, sampled.verdicts[i].tolist(), strict=True))
    return found
