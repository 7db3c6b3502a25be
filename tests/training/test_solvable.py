"""The analysis against a model whose answers are known: emergence of many skills, solved exactly, with no training.

Nam et al. 2024 (arXiv 2404.17563): skill k = 1, 2, ... occurs with frequency P(k) ~ k^-(alpha + 1) and is learned by itself as
R_k(T) / S = 1 / (1 + (S / R_0 - 1) exp(-2 eta P(k) B^2 S T)); the loss is the sum of P(k) (S - R_k)^2 / 2. Every skill appears
suddenly, and the loss is a power law: of time with exponent -alpha / (alpha + 1), of the number N of skills that can be learned
with -alpha, of compute N T at the best split with -alpha / (alpha + 2); skill k emerges at a time ~ k^(alpha + 1).

The laws are asymptotic. They hold where the number of skills learned so far is large (the sum over skills is then an integral)
and small against all skills there are; so there are infinitely many here, of which the ones beyond `EXPLICIT`, not begun to be
learned at any time used, are added up by Hurwitz's zeta function. With a finite number the loss would have the floor N^-alpha,
which at alpha = .3 still is an eighth of the loss when a thousandth of the skills are learned.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from orchestrator import stats
from orchestrator.stats.frontier import isoflop

S, R0, RATE = 1.0, 0.01, 1.0
"""Target strength, strength at the start, and 2 eta B^2."""
EXPLICIT = 200_000
TOLERANCE = 0.01
"""The largest deviation found is .004."""

ALPHAS = pytest.mark.parametrize("alpha", [0.3, 0.6, 0.9])


def frequency(k: np.ndarray, alpha: float) -> np.ndarray:
    return k ** -(alpha + 1.0) / special.zeta(alpha + 1, 1)


def strength(k: np.ndarray, time: np.ndarray, alpha: float) -> np.ndarray:
    """R_k(T) / S.  k (K,), time (T,) -> (T, K)"""
    return special.expit(RATE * S * np.multiply.outer(time, frequency(k, alpha)) - np.log(S / R0 - 1))


def time_of(k: float, alpha: float) -> float:
    """When skill k reaches a half."""
    return float(np.log(S / R0 - 1) / (RATE * S * frequency(np.array(k), alpha)))


def losses(n_skills: np.ndarray, time: float, alpha: float) -> np.ndarray:
    """Loss at one time for models that can learn the n most frequent skills.  n_skills (N,), at most EXPLICIT -> (N,)"""
    k = np.arange(1.0, EXPLICIT + 1)
    P = frequency(k, alpha)
    learned = np.cumsum(P * (S - S * strength(k, np.array([time]), alpha)[0]) ** 2 / 2)
    unlearnable = special.zeta(alpha + 1, n_skills + 1.0) / special.zeta(alpha + 1, 1) * (S - R0) ** 2 / 2
    return learned[n_skills.astype(int) - 1] + unlearnable


def loss_over_time(time: np.ndarray, alpha: float) -> np.ndarray:
    """Loss of a model that can learn every skill."""
    return np.array([losses(np.array([EXPLICIT]), float(t), alpha)[0] for t in time])


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """Of y ~ x^-exponent: a line through the logarithms."""
    return -float(np.polyfit(np.log(x), np.log(y), 1)[0])


@ALPHAS
def test_loss_falls_with_time_as_published(alpha: float) -> None:
    # From 100 to 3,000 skills learned: below, single skills show; above, the unlisted ones would begin.
    time = np.geomspace(time_of(100, alpha), time_of(3000, alpha), 12)
    assert exponent(time, loss_over_time(time, alpha)) == pytest.approx(alpha / (alpha + 1), abs=TOLERANCE)


@ALPHAS
def test_loss_falls_with_parameters_as_published(alpha: float) -> None:
    n_skills = np.unique(np.geomspace(30, 3000, 10).round())
    assert exponent(n_skills, losses(n_skills, 1e6 * time_of(3000, alpha), alpha)) == pytest.approx(
        alpha, abs=TOLERANCE
    )


@ALPHAS
def test_the_best_split_of_compute_and_its_loss_are_as_published(alpha: float) -> None:
    # Best sizes from a hundred to a few thousand skills, tried in steps of a factor 1.5.
    budgets = [n * time_of(n, alpha) for n in (100.0, 300.0, 1000.0, 3000.0)]
    rows = []
    for compute in budgets:
        centre = (compute / budgets[0]) ** (1 / (alpha + 2)) * 100
        sizes = np.unique((centre * 1.5 ** np.arange(-6.0, 4)).round())
        rows += [(n, compute / n, losses(np.array([n]), compute / n, alpha)[0], compute) for n in sizes]
    n_skills, time, loss, compute_ = np.array(rows).T
    found = isoflop(n_skills, time, loss, compute_)
    assert len(found.budgets) == len(budgets) and all(b.verdict == "minimum" for b in found.budgets)
    assert found.exponent == pytest.approx(1 / (alpha + 2), abs=TOLERANCE)
    envelope = np.array([loss[compute_ == c].min() for c in budgets])
    assert exponent(np.array(budgets), envelope) == pytest.approx(alpha / (alpha + 2), abs=TOLERANCE)


@ALPHAS
def test_skills_emerge_at_the_published_times_and_suddenly(alpha: float) -> None:
    k = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    steps = np.exp(np.arange(np.log(time_of(1, alpha)) - 1, np.log(time_of(128, alpha)) + 1, np.log(1.2)))
    curves = strength(k, steps, alpha).T
    times = [stats.crossing_step(steps.tolist(), curve.tolist()) for curve in curves]
    assert all(t is not None for t in times)
    assert exponent(k, np.array(times, dtype=float)) == pytest.approx(-(alpha + 1), abs=TOLERANCE)
    assert np.array(times, dtype=float) == pytest.approx([time_of(i, alpha) for i in k], rel=0.01)
