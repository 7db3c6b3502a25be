"""regression: linear functions in context (Raventós et al. 2023, arXiv 2306.15063). A task is a vector w ~ N(0, I_D).

A sequence is x_1, y_1, ..., x_K, y_K with x ~ N(0, I_D) and y = w·x + noise. Tokens are no ids but D + 1 numbers: y in
the first place, or x in the others, zeros elsewhere; y_i is predicted at the place of x_i. The memoriser (the paper's
dMMSE) averages the training tasks by their posterior, the generaliser (ridge) is the posterior mean for any task.

The loss is minus the log density of y under a normal law of the noise's variance σ² around the prediction ŷ, in nats:
(y - ŷ)² / 2σ² and a constant. So ability and memory, ratios of differences of log losses, are the very ratios of excess
squared errors. Scores are against w·x, the noise averaged out: the oracle's log loss is that constant, 0.726 at σ² = ¼.
Distances, symmetrised divergences of these normal laws, are squared differences over σ²: the paper's, but for that factor.

Checked small, D = 4 and K = 8, one run each. After the decay of 1,500 and 3,000 steps held-out ability is .95 and .97 with
1e9 tasks (ridge has 1), .90 and .93 with 64, −.69 and −.69 with 4; memory is −.02 and .15 with 64 tasks, .94 and .97 with 4
(dMMSE has 1). Two layers instead of four have ability .83 and .88 with 1e9 tasks, .89 after 6,000 steps. To see it again:

    {"family": {"name": "regression", "n_dims": 4, "n_pairs": 8}, "arm": "answer", "n_tasks": 1e9, "replicate": 0,
     "model": {"n_layers": 4}, "training": {"batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 200},
     "evaluation": {"first_flops": 1e11, "n_sequences": 128}, "compute_flops": [1.7684e12, 3.5367e12]}

as trial.json, python -m trainers trial.json --events events.jsonl; ability and memory are ratios of the sums in its rows.
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
    """Linear functions of `n_dims` numbers, shown as `n_pairs` noisy pairs."""

    name: Literal["regression"] = "regression"
    n_dims: Annotated[Count, Limit(10_000)] = 8
    """D: numbers in x, and weights of a task."""
    n_pairs: Annotated[Count, Limit(10_000)] = 16
    """K: pairs per sequence, every y of them predicted, the first from nothing."""
    noise_variance: Annotated[Positive, Limit(1e6, 1e-12)] = 0.25
    """σ²: variance of the noise on y."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer",)
    headline: ClassVar[str] = "regress"
    mixture: ClassVar[str] = "regress"
    memorizer_max_tasks: ClassVar[int | None] = 2**15
    skills: ClassVar[dict[str, str]] = {
        "regress": "predict y from the pairs before it; right is within one standard deviation of the noise around w·x"
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
        """How often 0, the mean of the prior, is right: P(|w·x| <= σ). Given the length r of x, w·x is N(0, r²)."""
        r = np.linspace(0, math.sqrt(self.n_dims) + 8, 4001)[1:]
        log_density = (self.n_dims - 1) * np.log(r) - r**2 / 2
        weight = np.exp(log_density - log_density.max())
        right = [math.erf(math.sqrt(self.noise_variance / 2) / length) for length in r]
        return float(weight @ right / weight.sum())

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, D) standard normals (Box and Muller 1958)."""
        half = -(-self.n_dims // 2)
        uniforms = hashed_uniforms(ids, 2 * half, "regression", self.n_dims)
        radius, angle = np.sqrt(-2 * np.log(uniforms[:, :half])), 2 * np.pi * uniforms[:, half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, : self.n_dims]

    def sequences(self, tasks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Fresh pairs for tasks (N, D) -> tokens (N, 2K, D+1) float32."""
        n, d, k = len(tasks), self.n_dims, self.n_pairs
        drawn = draw.standard_normal((n, k, d + 1), dtype=np.float32)  # x, then the noise
        tokens = np.zeros((n, 2 * k, d + 1), dtype=np.float32)
        tokens[:, 0::2, 1:] = drawn[:, :, :d]
        tokens[:, 1::2, 0] = self._means(tasks, drawn[:, :, :d]) + math.sqrt(self.noise_variance) * drawn[:, :, d]
        return tokens

    def _means(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """w·x: (N, D) and (N, K, D) -> (N, K)."""
        means: np.ndarray = (x @ w[:, :, None])[:, :, 0]
        return means

    def scored(self) -> np.ndarray:
        """Where an x stands, and its y is predicted: (T,) bool."""
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

    def _spread(self, of_pairs: np.ndarray) -> np.ndarray:
        """From pairs to positions, zeros where no y is predicted: (N, K) -> (N, T)."""
        out = np.zeros((len(of_pairs), self.seq_len))
        out[:, self.scored()] = of_pairs
        return out

    def _reference(self, predicted: np.ndarray, truth: np.ndarray) -> Reference:
        nll = normal_loss_nats(predicted, truth, self.noise_variance)
        return Reference(self._spread(nll), self._spread(np.abs(predicted - truth) <= math.sqrt(self.noise_variance)))

    # References ------------------------------------------------------------------------------------------------

    def generalizer(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Ridge, the posterior mean of w·x under w ~ N(0, I); U is its prior mean, 0: x (N, K, D), y (N, K) -> (N, K)."""
        moments = _before(x[:, :, :, None] * x[:, :, None, :])  # (N, K, D, D)
        posterior = np.linalg.solve(
            moments + self.noise_variance * np.eye(self.n_dims), _before(x * y[:, :, None])[..., None]
        )
        predicted: np.ndarray = (posterior[..., 0] * x).sum(axis=2)
        return predicted

    def memorizer(
        self, x: np.ndarray, y: np.ndarray, train: np.ndarray, log_shares: np.ndarray | None = None
    ) -> np.ndarray:
        """The posterior mean of w·x over exactly the training tasks (dMMSE), from the pairs before.

        x (N, K, D), y (N, K), train (M, D), the prior `log_shares` (M,) or uniform -> (N, K).
        """
        out = np.empty(y.shape)
        prior = 0.0 if log_shares is None else log_shares
        for predicted, xs, ys in zip(out, x, y, strict=True):  # one sequence at a time stays in the cache
            answers = xs @ train.T  # (K, M)
            log_weight = prior - _before((ys[:, None] - answers) ** 2 / (2 * self.noise_variance), axis=0)
            log_weight -= log_weight.max(axis=1, keepdims=True)
            weight = np.exp(log_weight, out=log_weight)
            predicted[:] = (weight * answers).sum(axis=1) / weight.sum(axis=1)
        return out


def _before(terms: np.ndarray, axis: int = 1) -> np.ndarray:
    """Sums over the pairs before each, zero before the first: as terms."""
    sums = np.zeros_like(terms)
    most, rest = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
    np.cumsum(terms[most], axis=axis, out=sums[rest])
    return sums
