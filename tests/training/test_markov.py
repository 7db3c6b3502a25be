"""markov: its universe, batches, references and distances, and the decomposition of a model into known predictors."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from families import probe_of, tasks_of, tokens_of, trunks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from trainers.tasks import Markov
from trainers.tasks.decomposition import decompose
from trainers.tasks.markov import stationary

K, T = 8, 128
SMALL = Markov(n_states=3, n_tokens=12)
trunk_of = trunks_of("markov", 4)
PREDICTORS = {"generalizer", "memorizer", "unigram_generalizer", "unigram_memorizer", "uniform", "backward"}


def simulate(rng: np.random.Generator, n: int, k: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh chains and one sequence of each, one state at a time; the first law by multiplying the chain with itself."""
    chains = rng.dirichlet(np.ones(k), size=(n, k))
    law = np.linalg.matrix_power(chains, 512)[:, 0]
    states = np.empty((n, length), dtype=int)
    for t in range(length):
        row = law if t == 0 else chains[np.arange(n), states[:, t - 1]]
        states[:, t] = (rng.random((n, 1)) >= np.cumsum(row, axis=1)[:, :-1]).sum(axis=1)
    return chains, states


# The universe ----------------------------------------------------------------------------------------------------


def test_rows_of_chains_are_drawn_from_the_flat_dirichlet_independently():
    """Means and covariances of all entries of the matrix, over neighbouring ids; each marginal is Beta(1, k - 1)."""
    k, n = 4, 100_000
    chains = Markov(n_states=k).tasks(np.arange(n))
    assert np.allclose(chains.sum(axis=2), 1, rtol=0, atol=1e-12) and chains.min() > 0
    variance = (k - 1) / (k**2 * (k + 1))
    entries = chains.reshape(n, k * k)
    assert np.abs(entries.mean(axis=0) - 1 / k).max() < 5 * np.sqrt(variance / n)
    within = np.full((k, k), -1 / (k**2 * (k + 1)))
    np.fill_diagonal(within, variance)
    assert np.abs(np.cov(entries.T) - np.kron(np.eye(k), within)).max() < 0.03 * variance  # nothing between rows
    for column in entries.T:
        assert stats.kstest(column, stats.beta(1, k - 1).cdf).pvalue > 1e-4


def test_the_stationary_law_is_that_of_a_long_walk():
    chains = np.random.default_rng(0).dirichlet(np.ones(5), size=(2000, 5))
    assert np.allclose(stationary(chains), np.linalg.matrix_power(chains, 4096)[:, 2], rtol=0, atol=1e-9)
    slow = np.array([[[1 - 3e-9, 2e-9, 1e-9], [1e-9, 1 - 2e-9, 1e-9], [1e-9, 1e-9, 1 - 2e-9]]])
    assert stationary(slow)[0] == pytest.approx([1 / 4, 5 / 12, 1 / 3], abs=1e-6)  # hardly moves, and still


# The prior over chains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["ranked", "uniform"])
def test_chains_are_drawn_as_often_as_their_shares_say(prior):
    family = Markov(prior=prior)
    ranks = family.ranks(np.random.default_rng(0), 12, 100_000)
    assert stats.chisquare(np.bincount(ranks, minlength=12), family.shares(12) * 100_000).pvalue > 1e-3


def test_ranked_shares_are_a_flat_dirichlet_prior_in_order_of_size():
    drawn = np.sort(np.random.default_rng(0).dirichlet(np.ones(6), 200_000), axis=1)[:, ::-1].mean(axis=0)
    assert Markov().shares(6) == pytest.approx(drawn, abs=0.002)


@pytest.mark.parametrize(("prior", "mean"), [("ranked", 1 / 4), ("uniform", 1 / 2)])
def test_a_trillion_chains_are_really_drawn_from(prior, mean):
    """Mean rank n/4: half of the broken half. Of 4,096 draws none comes twice."""
    ranks = Markov(prior=prior).ranks(np.random.default_rng(0), 10**12, 4096)
    assert ranks.mean() / 1e12 == pytest.approx(mean, abs=0.02) and ranks.max() > 9e11
    assert len(np.unique(ranks)) == 4096


# Batches ---------------------------------------------------------------------------------------------------------


def test_each_state_follows_the_one_before_as_its_chain_says():
    """Of one chain: rows as they should be, whatever came two steps before, early and late; and the first state, too."""
    trunk = trunk_of(1, n_states=4)
    (chain,) = tasks_of(trunk)
    tokens = tokens_of(trunk, 60)  # (1920, 128)
    for part in (tokens[:, :9], tokens[:, -9:]):
        counts = np.zeros((4, 4, 4))
        np.add.at(counts, (part[:, :-2], part[:, 1:-1], part[:, 2:]), 1)
        for before, state in itertools.product(range(4), range(4)):
            found = counts[before, state]
            assert stats.chisquare(found, chain[state] * found.sum()).pvalue > 1e-4
    law = np.linalg.matrix_power(chain, 4096)[0]
    for column in (tokens[:, 0], tokens[:, -1]):
        assert stats.chisquare(np.bincount(column, minlength=4), law * len(tokens)).pvalue > 1e-3


def test_sequences_of_a_batch_come_from_the_training_chains_by_their_shares():
    trunk = trunk_of(4)
    tokens = tokens_of(trunk, 40)
    logs = np.log(tasks_of(trunk))  # (4, K, K)
    likeliest = logs[:, tokens[:, :-1], tokens[:, 1:]].sum(axis=2).argmax(axis=0)
    shares = [25 / 48, 13 / 48, 7 / 48, 3 / 48]
    assert stats.chisquare(np.bincount(likeliest, minlength=4), np.array(shares) * 1280).pvalue > 1e-4


# References ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=12),
    st.integers(1, 5),
    st.integers(0, 1000),
    st.sampled_from(["ranked", "uniform"]),
    st.booleans(),
)
def test_the_memorisers_are_bayes_over_the_training_chains(states, n_chains, first, prior, unigram):
    """One chain and one state at a time; the unigram one takes every state for a fresh draw from the stationary law."""
    family = Markov(n_states=3, n_tokens=max(4, len(states)), prior=prior)
    train = family.tasks(np.arange(first, first + n_chains))
    laws = [np.linalg.matrix_power(chain, 2**20)[0] for chain in train]
    found = family.predictors(np.array([states]), train)["unigram_memorizer" if unigram else "memorizer"][0]
    weights = [family.shares(n_chains)[i] * laws[i][states[0]] for i in range(n_chains)]
    for position, (state, after) in enumerate(itertools.pairwise(states)):
        rows = laws if unigram else [chain[state] for chain in train]
        expected = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        assert np.allclose(found[position], expected, rtol=0, atol=1e-9)
        weights = [w * row[after] for w, row in zip(weights, rows, strict=True)]


def test_the_memoriser_does_not_lose_a_chain_that_was_far_behind():
    """4,000 states of one chain, then 4,000 of the other: the log odds pass 1,000 nats either way, and come back."""
    family = Markov(n_states=3, n_tokens=8000, prior="uniform")
    chains = np.array([[[0.5, 0.25, 0.25]] * 3, [[0.25, 0.5, 0.25]] * 3])
    states = np.concatenate([np.zeros(4000, int), np.ones(4000, int)])[None]
    found = family.memorizer(states, chains, stationary(chains))[0]
    assert found[3998] == pytest.approx([0.5, 0.25, 0.25], abs=1e-9)
    assert found[-1] == pytest.approx([0.25, 0.5, 0.25], abs=1e-9)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_the_generaliser_chains_to_the_closed_form_of_a_whole_sequence(states):
    """Under Dirichlet(1) each row's departures have probability (k-1)! prod n_ij! / (n_i + k - 1)!."""
    family = Markov(n_states=4)
    found = family.predictors(np.array([states]), None)["generalizer"][0]
    product = np.prod([p[after] for p, after in zip(found, states[1:], strict=True)])
    whole = 1.0
    for i in range(4):
        row = np.bincount([b for a, b in itertools.pairwise(states) if a == i], minlength=4)
        whole *= math.factorial(3) * math.prod(map(math.factorial, row)) / math.factorial(row.sum() + 3)
    assert product == pytest.approx(whole, rel=1e-9)


def test_predictors_count_what_one_counts_by_hand():
    found = SMALL.predictors(np.array([[0, 1, 0, 1, 2, 0]]), None)
    assert found["generalizer"][0, 0].tolist() == [1 / 3, 1 / 3, 1 / 3]  # nothing has followed anything yet
    assert found["generalizer"][0, 3].tolist() == [2 / 4, 1 / 4, 1 / 4]  # at 1: it was followed by 0
    assert found["unigram_generalizer"][0, 3].tolist() == [3 / 7, 3 / 7, 1 / 7]  # 0 1 0 1
    assert found["backward"][0, 3].tolist() == [3 / 5, 1 / 5, 1 / 5]  # at 1: twice 0 came before it
    assert found["uniform"][0, 3].tolist() == [1 / 3, 1 / 3, 1 / 3]


def test_all_predictors_sum_to_one_and_see_only_what_stands_before():
    trunk = trunk_of(16, n_sequences=16, n_tokens=40)
    family, train = trunk.family, tasks_of(trunk)
    tokens = family.batch(trunk.request, 0).tokens
    found = family.predictors(tokens, train)
    changed = tokens.copy()
    changed[:, 20:] = (changed[:, 20:] + 1) % K
    again = family.predictors(changed, train)
    assert set(found) == PREDICTORS
    for name, probs in found.items():
        assert np.allclose(probs.sum(axis=2), 1, rtol=0, atol=1e-12) and probs.min() > 0
        assert np.array_equal(probs[:, :20], again[name][:, :20])
        assert name == "uniform" or not np.allclose(probs[:, 20:], again[name][:, 20:])


def test_on_held_out_chains_the_generaliser_and_the_oracle_lose_what_an_independent_simulation_does():
    """By another route: log likelihoods of whole simulated sequences, from their final counts alone; entropies of rows."""
    rng = np.random.default_rng(1)
    n = 3000
    chains, states = simulate(rng, n, K, T)
    counts = np.zeros((n, K, K))
    np.add.at(counts, (np.arange(n)[:, None], states[:, :-1], states[:, 1:]), 1)
    log_likelihood = special.gammaln(K) + special.gammaln(counts + 1).sum(2) - special.gammaln(counts.sum(2) + K)
    entropies = stats.entropy(chains, axis=2)[np.arange(n)[:, None], states[:, :-1]].mean(axis=1)
    simulated = {"generalizer": -log_likelihood.sum(axis=1) / (T - 1), "oracle": entropies}
    _, probe = probe_of(trunk_of(10**6, n_sequences=500), "held_out")
    for name, expected in simulated.items():
        found = probe.references[name].nll_nats.mean(axis=1)
        error = np.hypot(stats.sem(found), stats.sem(expected))
        assert error < 0.006
        assert found.mean() == pytest.approx(expected.mean(), abs=4 * error)
    better = np.log(K) - simulated["generalizer"].mean()  # than chance: 0.15 nats
    assert better > 0.14
    assert np.log(K) - probe.references["generalizer"].nll_nats.mean() == pytest.approx(better, abs=4 * error)
    assert set(probe.references) == {"uniform", "generalizer", "oracle"}  # a million chains are not enumerated
    assert set(probe.distributions) == PREDICTORS - {"memorizer", "unigram_memorizer"}


def test_on_the_training_mixture_the_memoriser_loses_the_entropy_of_the_mixture():
    """All 3^7 sequences of two chains: H(x2 ... x7 | x1) of their mixture is what Bayes loses on average."""
    trunk = trunk_of(2, n_sequences=4096, n_states=3, n_tokens=7)
    train = tasks_of(trunk)
    every = np.array(list(itertools.product(range(3), repeat=7)))
    p, first = np.zeros(len(every)), np.zeros(3)
    for share, chain in zip((0.75, 0.25), train, strict=True):
        law = np.linalg.matrix_power(chain, 4096)[0]
        p += share * law[every[:, 0]] * np.prod(chain[every[:, :-1], every[:, 1:]], axis=1)
        first += share * law
    expected = (stats.entropy(p) - stats.entropy(first)) / 6
    _, probe = probe_of(trunk, "seen")
    found = probe.references["memorizer"].nll_nats.mean(axis=1)
    assert found.mean() == pytest.approx(expected, abs=4 * stats.sem(found))
    assert stats.sem(found) < 0.01 < probe.references["generalizer"].nll_nats.mean() - found.mean()


def test_at_the_default_size_memory_and_ability_have_room_and_the_memoriser_has_no_ability():
    """Gaps of 0.1 nats and ten standard errors, below which nothing is divided; with five states memory had neither."""
    for n_tasks in (4, 64, 1024):
        trunk = trunk_of(n_tasks)
        rows = {
            s: p.score(np.log(p.distributions["memorizer"]))
            for s in ("held_out", "seen")
            for _, p in [probe_of(trunk, s)]
        }
        ability_gap = (rows["held_out"]["nll_uniform"] - rows["held_out"]["nll_generalizer"]) / (64 * 127)
        memory_gap = (rows["seen"]["nll_generalizer"] - rows["seen"]["nll_memorizer"]) / (64 * 127)
        assert ability_gap > max(0.13, 10 * rows["held_out"]["se_ability_gap"])
        assert memory_gap > max(0.13, 10 * rows["seen"]["se_memory_gap"])
        assert rows["held_out"]["nll_nats"] > rows["held_out"]["nll_uniform"]  # remembering is worse than guessing


# Scores ----------------------------------------------------------------------------------------------------------


def test_seen_sequences_come_from_the_training_chains_by_their_shares():
    trunk = trunk_of(3, n_sequences=2000, n_tokens=4)
    tokens, probe = probe_of(trunk, "seen")
    rows = tasks_of(trunk)[:, tokens[:, 0]]  # (3, N, K)
    which = (rows == probe.target[:, 0]).all(axis=2)
    assert (which.sum(axis=0) == 1).all()
    assert stats.chisquare(which.sum(axis=1), np.array([11, 5, 2]) / 18 * 2000).pvalue > 1e-3


def test_held_out_targets_are_the_rows_of_the_held_out_chains():
    trunk = trunk_of(4, n_sequences=8)
    tokens, probe = probe_of(trunk, "held_out")
    chains = trunk.family.tasks(trunk.family.held_out_ids(8))
    for i, t in itertools.product(range(8), (0, 50, T - 2)):
        assert np.array_equal(probe.target[i, t], chains[i, tokens[i, t]])


def test_a_model_that_is_a_reference_scores_what_the_reference_scores():
    for split in ("seen", "held_out"):
        _, probe = probe_of(trunk_of(4, n_sequences=16), split)
        for name, other in (("memorizer", "generalizer"), ("generalizer", "memorizer")):
            row = probe.score(np.log(probe.distributions[name]))
            assert row["n"] == 16 * (T - 1)
            assert row["nll_nats"] == pytest.approx(row[f"nll_{name}"], rel=1e-9)
            assert row[f"skl_{name}"] == pytest.approx(0, abs=1e-6)
            assert row[f"skl_{other}"] == pytest.approx(row["skl_references"], rel=1e-6)
            assert row["nll_oracle"] < row["nll_nats"]


def test_a_uniform_guess_names_the_likeliest_state_by_chance():
    _, probe = probe_of(trunk_of(4), "held_out")
    assert np.allclose(probe.references["uniform"].correct, 1 / K, rtol=0, atol=1e-12)
    assert Markov().chance("induct") == 1 / K
    assert (probe.references["oracle"].correct == 1).all()


# Decomposition ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> dict[str, np.ndarray]:
    return probe_of(trunk_of(64), "held_out")[1].distributions


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_a_model_that_is_one_predictor_is_all_of_it(known, name):
    found = decompose(np.log(known[name]), known)
    assert found.weights[name] > 0.999
    assert sum(found.weights.values()) == pytest.approx(1, abs=1e-12)
    assert found.residual_nats == pytest.approx(0, abs=1e-6)


def test_a_mixture_gets_its_weights_back_and_the_control_none(known):
    """Eight random mixtures without the control, as single precision, which is what a model gives."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        truth = dict(zip(sorted(PREDICTORS - {"backward"}), rng.dirichlet(np.ones(5)), strict=True))
        mixture = np.log(sum(weight * known[name] for name, weight in truth.items())).astype(np.float32)
        found = decompose(mixture, known)
        for name, weight in truth.items():
            assert found.weights[name] == pytest.approx(weight, abs=0.002)
        assert found.weights["backward"] < 0.001
        assert found.residual_nats == pytest.approx(0, abs=1e-5)


def test_no_other_weights_explain_a_model_better(known):
    """A model that is no mixture: tempered, and blurred by noise. The divergence is convex, so looking nearby suffices."""
    rng = np.random.default_rng(0)
    names = list(known)
    model = known["generalizer"] ** 1.3 * np.exp(0.3 * rng.normal(size=known["generalizer"].shape))
    model /= model.sum(axis=2, keepdims=True)
    found = decompose(np.log(model), known)

    def divergence(weights: np.ndarray) -> float:
        mixture = sum(w * known[name] for name, w in zip(names, weights, strict=True))
        return float((model * np.log(model / mixture)).sum(axis=2).mean())

    best = np.array([found.weights[name] for name in names])
    assert found.residual_nats == pytest.approx(divergence(best), rel=1e-9)
    assert found.residual_nats > 0.01
    for step in (0.1, 0.01):
        others = [divergence((1 - step) * best + step * rng.dirichlet(np.ones(6))) for _ in range(20)]
        corners = [divergence((1 - step) * best + step * corner) for corner in np.eye(6)]
        assert min(others + corners) > found.residual_nats - 1e-7


def test_a_model_that_knows_nothing_holds_nothing_of_the_control(known):
    """Near uniform, with noise of its own: without `uniform` among the predictors the broad ones would take its place."""
    noise = 0.1 * np.random.default_rng(0).normal(size=known["uniform"].shape)
    found = decompose(noise - special.logsumexp(noise, axis=2, keepdims=True), known)
    assert found.weights["uniform"] > 0.95 and found.weights["backward"] < 0.01


def test_what_cannot_be_decomposed_has_no_weights(known):
    logs = np.log(known["generalizer"])
    broken = logs.copy()
    broken[3, 5, 0] = np.nan
    assert decompose(broken, known) is None
    assert decompose(np.where(np.arange(K) == 1, -np.inf, logs), known) is None
    assert decompose(logs[:0], {name: probs[:0] for name, probs in known.items()}) is None
    assert decompose(logs, {}) is None
    assert decompose(logs, {"never": np.where(np.arange(K) == 1, 0.0, 1 / (K - 1)) + 0 * logs}) is None


def test_a_score_records_how_the_model_decomposes_where_all_predictors_are_on_offer():
    trunk = trunk_of(64)
    _, probe = probe_of(trunk, "held_out")
    known = probe.distributions
    row = probe.score(np.log(0.6 * known["generalizer"] + 0.4 * known["unigram_memorizer"]).astype(np.float32))
    weights = {name: row[f"weight_{name}"] for name in PREDICTORS}
    assert weights["generalizer"] == pytest.approx(0.6, abs=0.002)
    assert weights["unigram_memorizer"] == pytest.approx(0.4, abs=0.002)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12) and row["unexplained_nats"] < 1e-5
    json.dumps(row, allow_nan=False)
    broken = probe.score(np.full(probe.target.shape, np.nan))
    assert {broken[f"weight_{name}"] for name in PREDICTORS} | {broken["unexplained_nats"]} == {None}
    _, many = probe_of(trunk_of(10**6), "held_out")  # not enumerated: no memorisers
    assert not [name for name in many.score(np.log(many.distributions["generalizer"])) if "weight" in name]


@pytest.mark.parametrize("sharpness", [30.0, 1000.0])
def test_a_model_of_no_doubt_at_all_is_decomposed_too(known, sharpness):
    """Logits of a thousand, as a model that diverges may give: weights, or none, but never an error on the way."""
    logits = sharpness * np.random.default_rng(0).normal(size=known["uniform"].shape)
    found = decompose((logits - special.logsumexp(logits, axis=2, keepdims=True)).astype(np.float32), known)
    assert sum(found.weights.values()) == pytest.approx(1) and found.residual_nats > 0.5
