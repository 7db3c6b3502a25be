"""grok: its pairs, batches, references and skills."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from families import find, suite_of, tasks_of, tokens_of, trunks_of
from scipy import stats

from orchestrator.analysis.measures import of_rows
from orchestrator.stats import measures
from trainers.tasks import Grok, Probe
from trainers.tasks.grok import EPSILON

trunk_of = functools.partial(trunks_of("grok", 600), n_sequences=256, modulus=47)


def pairs_of(trunk: Any, skill: str, split: str = "held_out") -> list[tuple[int, int]]:
    """The pairs that a skill is scored on, as the tokens tell them."""
    items, probe = find(trunk, skill, split)
    return [(a, b) for a, b in items.tokens[probe.mask.any(axis=1), :2].tolist()]


def score(probe: Probe, p: int) -> dict[str, Any]:
    """The row of a model that finds all tokens equally likely."""
    return probe.score(np.full((*probe.mask.shape, p + 1), -np.log(p + 1)))


# The universe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulus", [5, 12, 47])
def test_the_universe_holds_every_pair_exactly_once_and_ids_can_be_found_again(modulus):
    family = Grok(modulus=modulus)
    ids = np.arange(modulus**2)
    pairs = family.pairs(ids)
    assert sorted(map(tuple, pairs.tolist())) == list(itertools.product(range(modulus), repeat=2))
    assert np.array_equal(family.ids(pairs), ids)


def test_the_published_number_of_training_pairs_fits():
    """Nanda et al. 2023: p = 113, 30 % of 12,769 pairs."""
    assert Grok(modulus=113).n_train_ids == 12_769 - 3_192 > 3_830


# Batches ---------------------------------------------------------------------------------------------------------


def test_a_sequence_is_a_training_pair_an_equals_sign_and_the_sum():
    trunk = trunk_of(40)
    train = set(map(tuple, tasks_of(trunk).tolist()))
    batch = trunk.family.batch(trunk.request, 3)
    assert batch.tokens.shape == (32, 4) and batch.loss_mask.shape == (32, 3)
    for a, b, equals, c in batch.tokens.tolist():
        assert (a, b) in train and equals == 47 and c == (a + b) % 47
    assert batch.loss_mask[:, 2].all() and batch.loss_mask.sum() == 32  # the answer alone


def test_pairs_are_drawn_by_their_rank_where_a_study_says_so():
    """Three of them, as 1 : 1/2 : 1/3, in training and among the seen ones."""
    trunk = trunk_of(3, exponent=1.0)
    tokens = tokens_of(trunk, 60)
    ranked = trunk.family.pairs(trunk.family.train_ids(0, np.arange(3))) @ [47, 1]
    for shown in (tokens, find(trunk, "add", "seen")[0].tokens):
        counts = (shown[:, :2] @ [47, 1] == ranked[:, None]).sum(axis=1)
        assert stats.chisquare(counts, len(shown) * np.array([6, 3, 2]) / 11).pvalue > 1e-3


# References ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tasks", [1, 10, 18])
def test_the_references_are_the_stated_ones_by_enumeration(n_tasks):
    """All 25 pairs of p = 5, one at a time: to 1e-9."""
    trunk = trunk_of(n_tasks, replicate=2, modulus=5)
    family, train = trunk.family, set(map(tuple, tasks_of(trunk).tolist()))
    everything = list(itertools.product(range(5), repeat=2))
    pairs = np.array(everything)
    found = family.predictions(pairs, family.trained(trunk.request, pairs))
    for i, (a, b) in enumerate(everything):
        rule = [1 - EPSILON + EPSILON / 5 if c == (a + b) % 5 else EPSILON / 5 for c in range(5)]
        assert np.allclose(found["uniform"][i], [0.2] * 5, rtol=0, atol=1e-9)
        assert np.allclose(found["generalizer"][i], rule, rtol=0, atol=1e-9)
        assert np.allclose(found["memorizer"][i], rule if (a, b) in train else [0.2] * 5, rtol=0, atol=1e-9)
    for probs in found.values():
        assert np.allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-12)


def test_the_references_know_what_they_should():
    """By hand: a known sum costs -log(1 - ε + ε/p) nats, a guess log p; a guess is right once in p."""
    known, guess = -np.log(1 - EPSILON + EPSILON / 47), np.log(47)
    for items in suite_of(trunk_of()):
        for probe in items.probes:
            row, n = score(probe, 47), int(probe.mask.sum())
            assert n >= 50 and row["n_sequences"] == n
            assert (row["nll_uniform"], row["exact_uniform"]) == (pytest.approx(n * guess), pytest.approx(n / 47))
            assert (row["nll_generalizer"], row["exact_generalizer"]) == (pytest.approx(n * known), n)
            of_memory = (n * known, n) if probe.split == "seen" else (n * guess, n / 47)
            assert (row["nll_memorizer"], row["exact_memorizer"]) == pytest.approx(of_memory)


def test_of_memory_nothing_is_said_because_the_references_coincide():
    trunk = trunk_of()
    _, mixture = find(trunk, Grok.mixture, "seen")
    row = score(mixture, 47)
    per_item = [row[f"nll_{name}"] / row["n"] for name in ("nats", "generalizer", "memorizer")]
    assert per_item[1] == per_item[2] and np.isnan(measures.memories(*per_item, row["se_memory_gap"]))
    assert of_rows("memory", [row], Grok.ability_of) == of_rows("memory", [row]) == [None]


def test_ability_is_one_for_the_rule_and_nought_for_the_list():
    trunk = trunk_of()
    items, add = find(trunk, "add")
    log_probs = np.full((*add.mask.shape, 48), -np.inf)
    told = trunk.family.predictions(items.tokens[:, :2], np.zeros(len(items.tokens), dtype=bool))
    log_probs[:, 2, :47] = np.log(told["generalizer"])
    rule = add.score(log_probs)
    a_list = rule | {"n_exact": rule["exact_memorizer"]}  # what it gets right by guessing, on average
    assert of_rows("ability", [rule, a_list], Grok.ability_of) == [pytest.approx(1), pytest.approx(0)]


# Skills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tasks", [1, 221, 1657])
def test_skills_tell_apart_what_symmetry_can_answer(n_tasks):
    trunk = trunk_of(n_tasks, replicate=1)
    train = set(map(tuple, tasks_of(trunk).tolist()))
    asked = pairs_of(trunk, "add_any")
    assert len(asked) == len(set(asked)) == 256 and not set(asked) & train
    assert pairs_of(trunk, "commuted") == [(a, b) for a, b in asked if (b, a) in train]
    assert pairs_of(trunk, "add") == [(a, b) for a, b in asked if (b, a) not in train]
    assert pairs_of(trunk, Grok.mixture) == asked
    assert set(pairs_of(trunk, "add", "seen")) <= train and len(pairs_of(trunk, "add", "seen")) == 256
    for items in suite_of(trunk):
        assert np.array_equal(items.tokens[:, 3], items.tokens[:, :2].sum(axis=1) % 47)
        assert all(np.array_equal(probe.target, items.tokens[:, 1:]) for probe in items.probes)
