"""regression: linear functions in context (Raventós et al. 2023, arXiv 2306.15063). A task is a vector w ~ N(0, I_D).

A sequence is x_1, y_1, ..., x_K, y_K with x ~ N(0, I_D) and y = w·x + noise. Tokens are D + 1 numbers instead of ids. The first
number is y, or the others are x, and the rest are zeros. y_i is predicted at the position of x_i. The memoriser (the paper's
dMMSE) averages the training tasks by their posterior. The generaliser (ridge) is the posterior mean over all tasks.

The loss is minus the log density of y, in nats, under a normal distribution around the prediction ŷ with the variance σ² of
the noise: (y - ŷ)² / 2σ² plus a constant. So ability and memory, ratios of differences of log losses, equal ratios of excess
squared errors. Scores are computed against w·x, without the noise. The oracle's log loss is the constant plus ½, 0.726 at σ²
= ¼. Distances are symmetrised divergences of these normal distributions, squared differences over σ². They equal the paper's
up to that factor.

Measured with D = 4 and K = 8, one run each, after the decay of 1,500 and of 3,000 steps:

    1e9 tasks   held-out ability .95 and .97 (ridge has 1); with two layers instead of four .83 and .88, and .89 after 6,000
    64 tasks    held-out ability .90 and .93, memory −.02 and .15
    4 tasks     held-out ability −.69 and −.69, memory .94 and .97 (dMMSE has 1)

To repeat it, save this as trial.json:

    {"family": {"name": "regression", "n_dims": 4, "n_pairs": 8}, "arm": "answer", "n_tasks": 1e9, "replicate": 0,
     "model": {"n_layers": 4}, "training": {"batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 200},
     "evaluation": {"first_flops": 1e11, "n_sequences": 128}, "compute_flops": [1.7684e12, 3.5367e12]}

and run `python -m trainers trial.json --events events.jsonl`. Ability and memory are ratios of the sums in its rows.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np

from trainers.records import Count, Limit, Numbers, Positive
from trainers.streams import hashed_uniforms
from trainers.tasks.base import register
from trainers.tasks.laws import LawFamily, Listed
from trainers.tasks.probes import ItemSet, Probe, Reference, normal_loss_nats


@register
class Regression(LawFamily):
    """Linear functions of `n_dims` numbers, shown by `n_pairs` noisy pairs."""

    name: Literal["regression"] = "regression"
    n_dims: Annotated[Count, Limit(10_000)] = 8
    """D: how many numbers x has, and the weights w of a task."""
    n_pairs: Annotated[Count, Limit(10_000)] = 16
    """K: pairs (x, y) per sequence. Every y is predicted, the first one without any example."""
    noise_variance: Annotated[Positive, Limit(1e6, 1e-12)] = 0.25
    """σ²: variance of the noise on y."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer",)
    headline: ClassVar[str] = "regress"
    mixture: ClassVar[str] = "regress"
    memorizer_max_tasks: ClassVar[int | None] = 2**15
    skills: ClassVar[dict[str, str]] = {
        "regress": "predict y from the pairs before it; an answer is right within one standard deviation of the noise around w·x"
    }

    @property
    def vocab_size(self) -> int:
        return 1

    @property
    def numbers(self) -> Numbers:
        return Numbers(self.n_dims + 1, self.noise_variance)

    @property
    def seq_len(self) -> int:
        return 2 * self.n_pairs - 1

    def chance(self, skill: str) -> float | None:
        """Probability that the answer 0, the mean of the prior, is right: P(|w·x| <= σ).

        Given the length r of x, w·x is N(0, r²).
        """
        r = np.linspace(0, math.sqrt(self.n_dims) + 8, 4001)[1:]
        log_density = (self.n_dims - 1) * np.log(r) - r**2 / 2
        weight = np.exp(log_density - log_density.max())
        right = [math.erf(math.sqrt(self.noise_variance / 2) / length) for length in r]
        return float(weight @ right / weight.sum())

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows of D standard normal weights: ids (n,) -> (n, D), by the method of Box and Muller (1958)."""
        half = -(-self.n_dims // 2)
        uniforms = hashed_uniforms(ids, 2 * half, "regression", self.n_dims)
        radius, angle = np.sqrt(-2 * np.log(uniforms[:, :half])), 2 * np.pi * uniforms[:, half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, : self.n_dims]

    def sequences(self, tasks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """New random pairs (x, y) for each task (N, D), as tokens (N, 2K, D+1) float32."""
        n, d, k = len(tasks), self.n_dims, self.n_pairs
        drawn = draw.standard_normal((n, k, d + 1), dtype=np.float32)  # x, then the noise
        tokens = np.zeros((n, 2 * k, d + 1), dtype=np.float32)
        tokens[:, 0::2, 1:] = drawn[:, :, :d]
        tokens[:, 1::2, 0] = self._means(tasks, drawn[:, :, :d]) + math.sqrt(self.noise_variance) * drawn[:, :, d]
        return tokens

    def _means(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The values w·x, y without its noise: w (N, D), x (N, K, D) -> (N, K)."""
        means: np.ndarray = (x @ w[:, :, None])[:, :, 0]
        return means

    def scored(self) -> np.ndarray:
        """Which positions predict a y? (T,) bool. They are the positions of the x."""
        return np.arange(self.seq_len) % 2 == 0

    # Evaluation ------------------------------------------------------------------------------------------------

    def item_set(
        self, split: Literal["seen", "held_out"], tasks: np.ndarray, tokens: np.ndarray, train: Listed | None
    ) -> ItemSet:
        x, y = tokens[:, 0::2, 1:].astype(np.float64), tokens[:, 1::2, 0].astype(np.float64)
        truth = self._means(tasks, x)  # (N, K)
        predictions = {"uniform": np.zeros_like(truth), "generalizer": self.generalizer(x, y), "oracle": truth}
        if train is not None:
            predictions["memorizer"] = self.memorizer(x, y, *train)
        probe = Probe(
            skill="regress",
            split=split,
            mask=np.tile(self.scored(), (len(tasks), 1)),
            target=self._spread(truth),
            references={name: self._reference(p, truth) for name, p in predictions.items()},
            distributions={name: self._spread(p) for name, p in predictions.items() if name[0] in "mg"},
            noise_variance=self.noise_variance,
        )
        return ItemSet(tokens=tokens, probes=(probe,))

    def _spread(self, pairs: np.ndarray) -> np.ndarray:
        """Move values of pairs (N, K) to positions (N, T), with zeros at positions that predict no y."""
        out = np.zeros((len(pairs), self.seq_len))
        out[:, self.scored()] = pairs
        return out

    def _reference(self, predicted: np.ndarray, truth: np.ndarray) -> Reference:
        """Scores of predictions (N, K) against w·x, `truth` (N, K), at their positions (N, T)."""
        nll = normal_loss_nats(predicted, truth, self.noise_variance)
        return Reference(self._spread(nll), self._spread(np.abs(predicted - truth) <= math.sqrt(self.noise_variance)))

    # References ------------------------------------------------------------------------------------------------

    def generalizer(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Ridge regression on the earlier pairs: the posterior mean of w·x under w ~ N(0, I).

        inputs x (N, K, D), outputs y (N, K) -> predictions (N, K). The uniform reference U is the prior mean, 0.
        """
        moments = _before(inputs[:, :, :, None] * inputs[:, :, None, :])  # (N, K, D, D)
        posterior = np.linalg.solve(
            moments + self.noise_variance * np.eye(self.n_dims), _before(inputs * outputs[:, :, None])[..., None]
        )
        predicted: np.ndarray = (posterior[..., 0] * inputs).sum(axis=2)
        return predicted

    def memorizer(
        self, inputs: np.ndarray, outputs: np.ndarray, train: np.ndarray, log_shares: np.ndarray | None = None
    ) -> np.ndarray:
        """The posterior mean of w·x over exactly the training tasks (dMMSE), from the earlier pairs.

        inputs x (N, K, D), outputs y (N, K), train (M, D), prior `log_shares` (M,) or None for uniform -> predictions (N, K).
        """
        out = np.empty(outputs.shape)
        prior = 0.0 if log_shares is None else log_shares
        for predicted, xs, ys in zip(out, inputs, outputs, strict=True):  # one sequence at a time stays in the cache
            answers = xs @ train.T  # (K, M)
            log_weight = prior - _before((ys[:, None] - answers) ** 2 / (2 * self.noise_variance), axis=0)
            log_weight -= log_weight.max(axis=1, keepdims=True)
            weight = np.exp(log_weight, out=log_weight)
            predicted[:] = (weight * answers).sum(axis=1) / weight.sum(axis=1)
        return out


def _before(terms: np.ndarray, axis: int = 1) -> np.ndarray:
    """For each pair along `axis`, the sum of `terms` over the pairs before it. The result has the shape of `terms`."""
    sums = np.zeros_like(terms)
    most, rest = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
    np.cumsum(terms[most], axis=axis, out=sums[rest])
    return sums
