"""regression: its universe, sequences, references, scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from families import probe_of, tasks_of, tokens_of, trunks_of
from scipy import integrate, stats

from trainers.tasks import Regression

D, K = 8, 16
trunk_of = trunks_of("regression", 4)


def pairs_of(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (N, K, D) and y (N, K)."""
    return tokens[:, 0::2, 1:].astype(float), tokens[:, 1::2, 0].astype(float)


# The universe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_dims", [1, 3, 8])
def test_tasks_are_independent_standard_normals_over_neighbouring_ids(n_dims):
    n = 40_000
    w = Regression(n_dims=n_dims).tasks(np.arange(n))
    assert w.shape == (n, n_dims)
    for column in w.T[:3]:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.cov(w.T) - np.eye(n_dims)).max() < 5 * math.sqrt(2 / n)
    assert stats.kstest((w**2).sum(axis=1), stats.chi2(n_dims).cdf).pvalue > 1e-4  # Box and Muller's pairs, too
    assert abs(np.corrcoef(w[:-1, 0], w[1:, 0])[0, 1]) < 5 / math.sqrt(n)


# Batches ---------------------------------------------------------------------------------------------------------


def test_x_and_y_take_turns_and_only_y_is_scored():
    trunk = trunk_of()
    tokens, mask, *_ = trunk.family.batch(trunk.request, 7)
    assert tokens.shape == (32, 2 * K, D + 1) and tokens.dtype == np.float32 and mask.shape == (32, 2 * K - 1)
    assert not tokens[:, 0::2, 0].any() and not tokens[:, 1::2, 1:].any()
    assert (tokens[:, 0::2, 1:] != 0).all() and (tokens[:, 1::2, 0] != 0).all()
    assert mask[:, 0::2].all() and not mask[:, 1::2].any()  # what follows an x is its y


def test_answers_are_a_training_task_applied_to_normal_x_plus_normal_noise():
    trunk = trunk_of(4, noise_variance=0.09)
    x, y = pairs_of(tokens_of(trunk, 40))
    errors = y[:, None] - np.einsum("nkd,md->nmk", x, tasks_of(trunk))  # (N, 4, K)
    which = (errors**2).sum(axis=2).argmin(axis=1)
    assert stats.chisquare(np.bincount(which, minlength=4)).pvalue > 1e-4
    noise = errors[np.arange(len(x)), which] / 0.3
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise.ravel(), x[:, :, 0].ravel())[0, 1]) < 5 / math.sqrt(noise.size)


# References ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [None, "zipf"])
def test_the_memoriser_is_bayes_over_the_training_tasks(prior):
    family = Regression(n_dims=2, n_pairs=6, noise_variance=0.5)
    train = family.tasks(np.arange(5))
    shares = np.full(5, 0.2) if prior is None else np.array([60, 30, 20, 15, 12]) / 137
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6, 2)), 2 * rng.normal(size=(20, 6))
    found = family.memorizer(x, y, train, None if prior is None else np.log(shares))
    for row in range(20):
        weights = list(shares)
        for i in range(6):
            mean = sum(p * (w @ x[row, i]) for p, w in zip(weights, train, strict=True)) / sum(weights)
            assert found[row, i] == pytest.approx(mean, abs=1e-9)
            weights = [
                p * math.exp(-((y[row, i] - w @ x[row, i]) ** 2) / (2 * 0.5))
                for p, w in zip(weights, train, strict=True)
            ]


def test_the_memoriser_survives_answers_that_no_training_task_gives():
    family = Regression()
    predicted = family.memorizer(np.ones((1, K, D)), np.full((1, K), 1e6), family.tasks(np.arange(3)))
    assert np.isfinite(predicted).all()


def test_the_generaliser_is_the_posterior_mean_under_the_normal_prior():
    """One dimension, by numerical integration over w."""
    family = Regression(n_dims=1, n_pairs=5, noise_variance=0.4)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 5, 1)), rng.normal(size=(4, 5))
    found = family.generalizer(x, y)
    w = np.linspace(-9, 9, 20_001)
    for row in range(4):
        posterior = stats.norm.pdf(w)
        for i in range(5):
            assert found[row, i] == pytest.approx((posterior @ w) / posterior.sum() * x[row, i, 0], abs=1e-9)
            posterior = posterior * stats.norm(w * x[row, i, 0], math.sqrt(0.4)).pdf(y[row, i])


def test_in_many_dimensions_the_generaliser_is_least_squares_with_the_prior_as_further_data():
    """Ridge: D more rows, σ on the diagonal, answered 0."""
    family = Regression(n_dims=3, n_pairs=6)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 6, 3)), rng.normal(size=(5, 6))
    found = family.generalizer(x, y)
    for row in range(5):
        for i in range(6):
            rows, answers = np.vstack([x[row, :i], 0.5 * np.eye(3)]), np.append(y[row, :i], np.zeros(3))
            assert found[row, i] == pytest.approx(x[row, i] @ np.linalg.lstsq(rows, answers)[0], abs=1e-9)


def test_on_held_out_tasks_the_references_lose_what_theory_says():
    """In units of 2σ²: 0 is off by |x|², D on average; ridge by its posterior variance, tr σ² (XᵀX + σ² I)^-1, from
    designs drawn here; the oracle by nothing. The log loss has the entropy of the noise besides."""
    _, probe = probe_of(trunk_of(10**6, n_sequences=2048), "held_out")
    designs = np.random.default_rng(5).normal(size=(1000, K, D))
    variance = [
        0.25
        * np.trace(np.linalg.inv(np.einsum("nkd,nke->nde", designs[:, :i], designs[:, :i]) + 0.25 * np.eye(D)), 0, 1, 2)
        for i in range(K)
    ]
    expected = {"uniform": D, "generalizer": np.mean(variance), "oracle": 0.0}
    assert set(probe.references) == set(expected)  # a million tasks are not enumerated
    for name, squared in expected.items():
        per_sequence = probe.references[name].nll_nats[:, 0::2].mean(axis=1)
        error = per_sequence.std(ddof=1) / math.sqrt(len(per_sequence))
        assert per_sequence.mean() == pytest.approx(
            2 * squared + stats.norm(0, 0.5).entropy(), abs=5 * error + 0.05 * (name == "generalizer") + 1e-9
        )


@pytest.mark.parametrize(("n_dims", "variance"), [(1, 0.25), (8, 0.25), (3, 2.0)])
def test_chance_is_how_often_zero_is_near_enough(n_dims, variance):
    family = Regression(n_dims=n_dims, noise_variance=variance)
    rng = np.random.default_rng(6)
    products = (rng.normal(size=(200_000, n_dims)) * rng.normal(size=(200_000, n_dims))).sum(axis=1)
    share = (np.abs(products) <= math.sqrt(variance)).mean()
    assert family.chance("regress") == pytest.approx(share, abs=5 * math.sqrt(0.25 / 200_000))
    if n_dims == 1:  # the density of a product of two normals is K_0(|t|) / π
        from scipy.special import k0

        assert family.chance("regress") == pytest.approx(2 / math.pi * integrate.quad(k0, 0, 0.5)[0], abs=1e-3)


# Scores ----------------------------------------------------------------------------------------------------------


def test_seen_sequences_come_from_the_training_tasks_and_targets_are_free_of_noise():
    trunk = trunk_of(4)
    tokens, probe = probe_of(trunk, "seen")
    x, y = pairs_of(tokens)
    truth = np.einsum("nkd,nd->nk", x, tasks_of(trunk)[np.arange(64) % 4])
    assert np.allclose(probe.target[:, 0::2], truth, rtol=0, atol=1e-6)
    assert stats.kstest(((y - truth) / 0.5).ravel(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("split", ["seen", "held_out"])
def test_a_model_that_is_a_reference_scores_what_the_reference_scores(split):
    trunk = trunk_of(4, n_sequences=16)
    tokens, probe = probe_of(trunk, split)
    x, y = pairs_of(tokens)
    family = trunk.family
    models = {"memorizer": family.memorizer(x, y, tasks_of(trunk)), "generalizer": family.generalizer(x, y)}
    for name, other in (("memorizer", "generalizer"), ("generalizer", "memorizer")):
        predicted = np.full((16, 2 * K - 1), np.nan)
        predicted[:, 0::2] = models[name]
        row = probe.score(predicted)
        assert row["n"] == 16 * K
        assert row["nll_nats"] == pytest.approx(row[f"nll_{name}"], rel=1e-6)
        assert row["n_correct"] == row[f"correct_{name}"]
        assert row[f"skl_{name}"] == 0 and row[f"skl_{other}"] == row["skl_references"] > 0
