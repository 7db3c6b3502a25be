"""urns: its universe, batches, references and distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from families import probe_of, tasks_of, tokens_of, trunks_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainers.tasks import Urns

V, C = 8, 128
trunk_of = trunks_of("urns", 4)
ORACLE = sum(1 / k for k in range(2, V + 1))
"""Mean entropy of an urn drawn from Dirichlet(1_V), in nats: psi(V + 1) - psi(2) = 1.71786."""


# The universe ----------------------------------------------------------------------------------------------------


def test_urns_are_drawn_from_the_flat_dirichlet():
    """Means, covariances and a marginal of Dirichlet(1_8), over neighbouring ids; each marginal is Beta(1, 7)."""
    n = 100_000
    theta = Urns().tasks(np.arange(n))
    assert np.allclose(theta.sum(axis=1), 1, rtol=0, atol=1e-12) and theta.min() > 0
    variance = (V - 1) / (V**2 * (V + 1))
    assert np.abs(theta.mean(axis=0) - 1 / V).max() < 5 * np.sqrt(variance / n)
    expected = np.full((V, V), -1 / (V**2 * (V + 1)))
    np.fill_diagonal(expected, variance)
    assert np.abs(np.cov(theta.T) - expected).max() < 0.03 * variance
    for column in theta.T:
        assert stats.kstest(column, stats.beta(1, V - 1).cdf).pvalue > 1e-4
    entropies = stats.entropy(theta, axis=1)
    assert entropies.mean() == pytest.approx(ORACLE, abs=5 * entropies.std() / np.sqrt(n))


# Batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_starts_with_the_start_token_and_scores_every_draw():
    trunk = trunk_of()
    batch = trunk.family.batch(trunk.request, 7)
    assert batch.tokens.shape == (32, C + 1) and batch.loss_mask.shape == (32, C)
    assert (batch.tokens[:, 0] == V).all() and batch.tokens[:, 1:].min() >= 0 and batch.tokens[:, 1:].max() < V
    assert batch.loss_mask.all()


def test_draws_follow_the_urn():
    trunk = trunk_of(1)
    tokens = tokens_of(trunk, 20)[:, 1:]
    (theta,) = tasks_of(trunk)
    assert stats.chisquare(np.bincount(tokens.ravel(), minlength=V), theta * tokens.size).pvalue > 1e-3
    pairs = np.histogram2d(tokens[:, :-1].ravel(), tokens[:, 1:].ravel(), bins=np.arange(V + 1))[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3  # one draw says nothing about the next


# References ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_the_memoriser_is_bayes_over_the_training_urns(draws, n_urns, first, alike):
    family = Urns(n_colors=3, n_draws=len(draws))
    theta = family.tasks(np.arange(first, first + n_urns))
    weights = [1.0 if alike else 0.5**i for i in range(n_urns)]
    prior = None if alike else np.log(weights)
    found = family.memorizer(family.counts(np.array([draws])), theta, prior)[0]
    for position, color in enumerate(draws):
        total = sum(weights)
        expected = [sum(w * urn[v] for w, urn in zip(weights, theta, strict=True)) / total for v in range(3)]
        assert np.allclose(found[position], expected, rtol=0, atol=1e-9)
        weights = [w * urn[color] for w, urn in zip(weights, theta, strict=True)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_the_generaliser_chains_to_the_closed_form_of_a_whole_sequence(draws):
    """Under Dirichlet(1_V) a sequence with counts c has probability (V-1)! prod c_v! / (n+V-1)!."""
    family = Urns(n_colors=4, n_draws=len(draws))
    found = family.generalizer(family.counts(np.array([draws])))[0]
    assert np.allclose(found.sum(axis=1), 1, rtol=0, atol=1e-12)
    product = np.prod([p[color] for p, color in zip(found, draws, strict=True)])
    counts = np.bincount(draws, minlength=4)
    whole = math.factorial(3) * math.prod(math.factorial(c) for c in counts) / math.factorial(len(draws) + 3)
    assert product == pytest.approx(whole, rel=1e-9)


def exact_generalizer_nll() -> float:
    """Expected loss of (c_v + 1)/(n + V) on fresh urns, over C draws: counts are uniform over all compositions of n."""
    total = 0.0
    for n in range(C):
        ways = math.comb(n + V - 1, V - 1)
        for k in range(n + 1):
            p = (k + 1) / (n + V)
            total -= V * math.comb(n - k + V - 2, V - 2) / ways * p * math.log(p)
    return total / C


def test_on_held_out_urns_the_generaliser_and_the_oracle_lose_what_theory_says():
    _, probe = probe_of(trunk_of(10**6, n_sequences=4096), "held_out")
    for name, expected in (("generalizer", exact_generalizer_nll()), ("oracle", ORACLE)):
        per_sequence = probe.references[name].nll_nats.mean(axis=1)
        error = per_sequence.std(ddof=1) / np.sqrt(len(per_sequence))
        assert error < 0.004
        assert per_sequence.mean() == pytest.approx(expected, abs=4 * error)
    assert set(probe.references) == {"uniform", "generalizer", "oracle"}  # a million urns are not enumerated


@pytest.mark.parametrize(("n_urns", "in_distribution"), [(4, (1.722, 1.784, 1.711)), (64, (1.756, 1.797, 1.724))])
def test_references_lose_what_science_says_in_distribution(n_urns, in_distribution):
    """SCIENCE §2, C=128, memoriser, generaliser and oracle; over many replicates, because few urns differ much."""
    found = []
    for replicate in range(200 if n_urns == 4 else 40):
        _, probe = probe_of(trunk_of(n_urns, replicate=replicate, n_sequences=max(16, n_urns)), "seen")
        found.append([probe.references[name].nll_nats.mean() for name in ("memorizer", "generalizer", "oracle")])
    assert np.mean(found, axis=0) == pytest.approx(in_distribution, abs=0.02)


@pytest.mark.parametrize(("n_urns", "memorizer", "generalizer"), [(4, 2.185, 1.808), (64, 1.904, 1.800)])
def test_references_lose_what_science_says_out_of_distribution(n_urns, memorizer, generalizer):
    """SCIENCE §2; each training set meets its own fresh urns, because one set of held-out urns is a sample too."""
    family, found = Urns(), []
    rng = np.random.default_rng(0)
    n_sets, n_fresh = (400, 16) if n_urns == 4 else (60, 32)
    for replicate in range(n_sets):
        train = family.tasks(family.train_ids(replicate, np.arange(n_urns)))
        fresh = family.tasks(family.n_train_ids + replicate * n_fresh + np.arange(n_fresh))
        colors = np.stack([rng.choice(V, C, p=theta) for theta in fresh])
        counts = family.counts(colors)
        losses = [
            -(fresh[:, None] * np.log(p)).sum(axis=2).mean()
            for p in (family.memorizer(counts, train), family.generalizer(counts))
        ]
        found.append(losses)
    assert np.mean(found, axis=0) == pytest.approx((memorizer, generalizer), abs=0.02)


# Scores ----------------------------------------------------------------------------------------------------------


def test_seen_sequences_come_from_the_training_urns():
    trunk = trunk_of(4)
    _, probe = probe_of(trunk, "seen")
    assert np.array_equal(probe.target[:, 0, :V], tasks_of(trunk)[np.arange(64) % 4])


@pytest.mark.parametrize("split", ["seen", "held_out"])
def test_distances_are_symmetrised_divergences(split):
    """Against sums of two one-sided Kullback-Leibler divergences, position by position."""
    trunk = trunk_of(4, n_sequences=6, n_draws=10)
    tokens, probe = probe_of(trunk, split)
    family = trunk.family
    counts = family.counts(tokens[:, 1:])
    m, g = family.memorizer(counts, tasks_of(trunk)), family.generalizer(counts)
    model = np.random.default_rng(0).dirichlet(np.ones(V), (6, 10))

    def symmetrised(p: np.ndarray, q: np.ndarray) -> float:
        return sum(
            stats.entropy(p[i, t], q[i, t]) + stats.entropy(q[i, t], p[i, t]) for i in range(6) for t in range(10)
        )

    row = probe.score(np.log(np.concatenate([model, np.full((6, 10, 1), 1e-12)], axis=2)))
    assert row["skl_memorizer"] == pytest.approx(symmetrised(model, m), rel=1e-6)
    assert row["skl_generalizer"] == pytest.approx(symmetrised(model, g), rel=1e-6)
    assert row["skl_references"] == pytest.approx(symmetrised(m, g), rel=1e-6)
