"""What a model's predictions are made of: the mixture of known ways to predict that is nearest to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

PREDICTORS = ("generalizer", "memorizer", "unigram_generalizer", "unigram_memorizer", "uniform", "backward")
"""What a probe is to offer, all of it, for its weights to be recorded: with one missing the others would share its part.
Pairs of states counted or remembered, single ones, nothing, and a control that should get no weight (`Markov.predictors`)."""
INTERIOR_STEPS = 24
"""Of `decompose`, each some three times nearer: a model that is one predictor has .96, .996, .9996 after 12, 16, 20."""


class Decomposition(NamedTuple):
    """A model's predictions as a mixture of known ways to predict."""

    weights: dict[str, float]
    """Name of a predictor -> its share, summing to 1."""
    residual_nats: float
    """KL divergence of the mixture from the model, per position: what no mixture of these explains."""


def decompose(log_probs: np.ndarray, predictors: Mapping[str, np.ndarray]) -> Decomposition | None:
    """The non-negative weights, summing to 1, whose mixture of predictors is nearest to a model.

    log_probs (N, T, V), natural log; predictors (N, T, V) each. Minimises KL(model || mixture), which is convex. Left to
    itself, with the sum of the weights added to it, it has the same minimum, so that only w >= 0 remains to be kept: by
    a primal-dual interior point (Nocedal and Wright 2006, chapter 19). Expectation-maximisation does not get there: a
    model equal to one predictor had a weight of .65 to .95 after 400 steps. Predictors that say the same share what they
    explain between them. None where there is nothing to decompose, a log-probability of the model is not finite, or no
    predictor allows what the model does.
    """
    logs = log_probs.astype(np.float64).reshape(-1)  # (N T V,)
    if not len(predictors) or not logs.size or not np.isfinite(logs).all():
        return None
    known = np.stack([p.reshape(-1) for p in predictors.values()])  # (P, N T V)
    if not (known.max(axis=0) > 0).all():  # no mixture allows what the model does
        return None
    n_positions = logs.size / log_probs.shape[-1]
    model = np.exp(logs) / n_positions
    weights = np.full(len(known), 1 / len(known))
    prices = np.ones(len(known))  # multipliers of w >= 0
    for centering in 0.3 ** np.arange(INTERIOR_STEPS):
        ratio = model / (weights @ known)
        curvature = (known * (ratio / (weights @ known))) @ known.T
        pull = known @ ratio - 1 + centering / weights
        move = np.linalg.solve(curvature + np.diag(prices / weights), pull)
        reprice = (centering - prices * move) / weights - prices
        weights += move * _stay_positive(weights, move)
        prices += reprice * _stay_positive(prices, reprice)
    weights /= weights.sum()
    residual = float(model @ (logs - np.log(weights @ known)))
    return Decomposition(dict(zip(predictors, weights.tolist(), strict=True)), residual)


def _stay_positive(values: np.ndarray, move: np.ndarray) -> float:
    """The share of a move, at most 1, that takes none of the values further than 95 % of the way to zero."""
    return float(min(1.0, 0.95 / max((-move / values).max(), 1e-9)))
