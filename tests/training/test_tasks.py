"""What every family shares: the register, the counting of a probe, the split of the ids."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar, Literal

import numpy as np
import pytest
from scipy import stats

from trainers.tasks import FAMILIES, Cipher, Family, Probe, Reference, family_from, register
from trainers.tasks.probes import normal_loss_nats

# Probes ----------------------------------------------------------------------------------------------------------


def by_hand() -> tuple[Probe, np.ndarray]:
    """Two sequences of three positions, three of six scored; a model over three tokens."""
    mask = np.array([[True, False, True], [False, True, False]])
    target = np.array([[0, 0, 2], [0, 1, 0]])
    ones = np.ones((2, 3))
    probe = Probe(
        skill="s",
        split="seen",
        mask=mask,
        target=target,
        references={
            "uniform": Reference(ones * 2.0, ones * 0.25),
            "generalizer": Reference(np.array([[0.5, 9, 0.25], [9, 1.0, 9]]), ones),
        },
    )
    probs = np.array(
        [
            [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]],
            [[0.1, 0.1, 0.8], [0.125, 0.75, 0.125], [0.1, 0.1, 0.8]],
        ]
    )
    return probe, np.log(probs)


def test_a_score_is_the_sum_that_one_makes_by_hand():
    probe, log_probs = by_hand()
    row = probe.score(log_probs)
    assert row["n"] == 3
    assert row["n_correct"] == 2  # the second scored position prefers token 1 to the target 2
    assert row["nll_nats"] == pytest.approx(np.log(2) + np.log(4) + np.log(4 / 3), rel=1e-12)
    assert row["p_correct"] == pytest.approx(0.5 + 0.25 + 0.75, rel=1e-12)
    brier = (0.25 + 0.0625 + 0.0625) + (0.0625 + 0.25 + 0.5625) + (0.015625 + 0.0625 + 0.015625)
    assert row["brier"] == pytest.approx(brier, rel=1e-12)
    assert (row["nll_uniform"], row["correct_uniform"]) == (6.0, 0.75)
    assert (row["nll_generalizer"], row["correct_generalizer"]) == (1.75, 3.0)
    assert (row["exact_uniform"], row["exact_generalizer"]) == (0.25**2 + 0.25, 2.0)
    json.dumps(row, allow_nan=False)


def test_positions_outside_the_mask_change_no_score():
    probe, log_probs = by_hand()
    other = np.where(probe.mask[:, :, None], log_probs, np.nan)
    assert probe.score(other) == probe.score(log_probs)


def test_a_score_against_a_distribution_is_its_expected_loss():
    truth = np.array([[[0.5, 0.25, 0.25]]])
    probe = Probe(skill="s", split="seen", mask=np.ones((1, 1), dtype=bool), target=truth)
    probs = np.array([[[0.25, 0.25, 0.5]]])
    row = probe.score(np.log(probs))
    assert row["nll_nats"] == pytest.approx(0.5 * np.log(4) + 0.25 * np.log(4) + 0.25 * np.log(2), rel=1e-12)
    assert row["n_correct"] == 0
    assert row["p_correct"] == pytest.approx(0.125 + 0.0625 + 0.125)
    assert row["brier"] == pytest.approx(0.5 * 0.875 + 0.25 * 0.875 + 0.25 * 0.375)  # the Brier score of each outcome
    best = probe.score(np.log(truth))
    assert best["n_correct"] == 1
    assert best["nll_nats"] == pytest.approx(stats.entropy(truth[0, 0]), rel=1e-12)


def test_a_sequence_is_an_exact_match_when_every_scored_position_is_right():
    mask = np.array([[True, True], [True, True], [True, False], [False, False]])
    target = np.zeros((4, 2), int)
    p = np.array([[0.9, 0.8], [0.9, 0.2], [0.3, 0.9], [0.1, 0.1]])  # (N, T) probability of the target, of two tokens
    row = Probe(skill="s", split="seen", mask=mask, target=target).score(np.log(np.stack([p, 1 - p], axis=-1)))
    assert (row["n_sequences"], row["n_exact"]) == (3, 1)
    assert row["p_exact"] == pytest.approx(0.9 * 0.8 + 0.9 * 0.2 + 0.3)


def numbers_by_hand() -> tuple[Probe, np.ndarray]:
    """Two sequences, three of four positions scored, noise of variance 4; a model's predictions."""
    mask = np.array([[True, True], [False, True]])
    target = np.array([[1.0, -2.0], [9.0, 0.0]])
    memorizer, generalizer = np.array([[1.0, 0.0], [9.0, 0.0]]), np.array([[0.0, 0.0], [9.0, 3.0]])
    ones = np.ones((2, 2))
    references = {
        "uniform": Reference(ones * 3, ones * 0),
        "generalizer": Reference(ones * 2, ones),
        "memorizer": Reference(ones, ones),
    }
    both = {"memorizer": memorizer, "generalizer": generalizer}
    parts = {"mask": mask, "target": target, "references": references, "distributions": both}
    return Probe(skill="s", split="seen", noise_variance=4.0, **parts), np.array([[3.0, 0.5], [0.0, 1.0]])


def test_a_score_of_numbers_is_the_sum_that_one_makes_by_hand():
    probe, predicted = numbers_by_hand()
    row = probe.score(predicted.astype(np.float32))
    assert (row["n"], row["n_correct"]) == (3, 2)  # off by 2, the standard deviation itself, by 2.5 and by 1
    assert row["nll_nats"] == pytest.approx((4 + 6.25 + 1) / 8 + 3 * (0.5 + 0.5 * np.log(8 * np.pi)))
    simulated = -stats.norm(3.0, 2.0).logpdf(np.random.default_rng(0).normal(1.0, 2.0, 100_000)).mean()
    assert normal_loss_nats(np.array(3.0), np.array(1.0), 4.0) == pytest.approx(simulated, abs=0.01)
    assert row["skl_memorizer"] == pytest.approx((4 + 0.25 + 1) / 4)
    assert row["skl_generalizer"] == pytest.approx((9 + 0.25 + 4) / 4)
    assert row["skl_references"] == pytest.approx((1 + 0 + 9) / 4)
    assert [row[f"nll_{name}"] for name in ("uniform", "generalizer", "memorizer")] == [9, 6, 3]
    assert row["se_ability_gap"] == row["se_memory_gap"] == 0
    assert [row.get(k) for k in ("p_correct", "brier", "n_exact", "exact_memorizer")] == [None] * 4
    json.dumps(row, allow_nan=False)


def test_numbers_that_are_not_finite_or_not_there_score_nothing():
    probe, predicted = numbers_by_hand()
    found = probe.score(np.where(probe.mask, np.nan, predicted))
    names = ("n", "n_correct", "nll_nats", "skl_memorizer", "nll_uniform")
    assert [found[name] for name in names] == [3, None, None, None, 9]
    huge = probe.score(np.full((2, 2), np.inf, np.float32))
    assert (huge["n_correct"], huge["nll_nats"]) == (0, None)
    empty = dataclasses.replace(probe, mask=np.zeros((2, 2), dtype=bool)).score(predicted)
    assert {value for key, value in empty.items() if key not in ("skill", "split", "n")} == {None}
    assert probe.score(np.where(probe.mask, predicted, np.nan)) == probe.score(predicted)
    json.dumps([found, huge, empty], allow_nan=False)


def test_an_empty_probe_has_no_number_but_its_count():
    probe, log_probs = by_hand()
    nothing = np.zeros_like(probe.mask)
    full = np.full(log_probs.shape, 1 / 3)
    both = {"memorizer": full, "generalizer": full}
    empty = Probe(
        skill="s", split="seen", mask=nothing, target=probe.target, references=probe.references, distributions=both
    )
    row = empty.score(log_probs)
    assert row["n"] == row["n_sequences"] == 0
    rest = {key: value for key, value in row.items() if key not in ("skill", "split", "n", "n_sequences")}
    assert "skl_references" in rest and "nll_uniform" in rest
    assert set(rest.values()) == {None}


def test_what_a_model_of_no_finite_prediction_scores_is_missing():
    probe, log_probs = by_hand()
    row = probe.score(np.full_like(log_probs, np.nan))
    assert row["n"] == 3
    assert [row[k] for k in ("n_correct", "nll_nats", "p_correct", "brier")] == [None] * 4
    assert row["nll_uniform"] == 6.0
    impossible = probe.score(np.where(np.arange(3) == 2, 0.0, -np.inf) + np.zeros_like(log_probs))
    assert impossible["nll_nats"] is None  # infinite: the target was given no probability
    assert impossible["n_correct"] == 1
    json.dumps([row, impossible], allow_nan=False)


def test_the_standard_error_of_a_gap_covers_what_new_sequences_would_give():
    """Simulated truth: sequences with their own mean gap and their own number of scored positions."""
    rng = np.random.default_rng(0)
    zeros = np.zeros((60, 12))

    def sample() -> tuple[float, float]:
        mask = rng.random((60, 12)) < rng.random((60, 1))
        gap = 1 + rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(60, 12))
        references = {"uniform": Reference(gap, zeros), "generalizer": Reference(zeros, zeros)}
        probe = Probe(skill="s", split="seen", mask=mask, target=np.zeros((60, 12), dtype=int), references=references)
        row = probe.score(np.zeros((60, 12, 1)))
        return (row["nll_uniform"] - row["nll_generalizer"]) / row["n"], row["se_ability_gap"]

    means, errors = np.array([sample() for _ in range(1500)]).T
    assert errors.mean() == pytest.approx(means.std(ddof=1), rel=0.07)
    assert (np.abs(means - 1) < 1.96 * errors).mean() == pytest.approx(0.945, abs=0.02)


# Families --------------------------------------------------------------------------------------------------------


def test_a_family_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"unknown family 'urn'; did you mean 'urns'\? Families: cipher, "):
        family_from({"name": "urn"})
    with pytest.raises(ValueError, match=r"unknown family 'zebra'\. Families: cipher, "):
        family_from({"name": "zebra"})


def test_a_taken_name_is_refused():
    before = dict(FAMILIES)

    class Twin(Family):
        name: Literal["cipher"] = "cipher"
        version: ClassVar[int] = 1

    with pytest.raises(ValueError, match=r"'cipher' is already registered by .*trainers\.tasks\.cipher"):
        register(Twin)
    assert before == FAMILIES


def test_a_small_universe_repeats_its_held_out_tasks():
    family = Cipher(n_symbols=4)
    ids = family.held_out_ids(20)
    assert sorted(ids[:6].tolist()) == [18, 19, 20, 21, 22, 23]
    assert np.array_equal(ids, np.resize(ids[:6], 20))
