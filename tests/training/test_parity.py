"""parity: its universe, data, references and skills."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from families import find, tokens_of, trunks_of
from pydantic import ValidationError
from scipy import stats

from orchestrator.analysis.measures import of_rows
from trainers.tasks.parity import Parity

trunk_of = functools.partial(trunks_of("parity", 32), batch_size=256)


def codes_of(family: Parity, tokens: np.ndarray) -> np.ndarray:
    """The data of sequences as whole numbers: (N, n+2) -> (N,)."""
    return tokens[:, : family.n_bits] @ (1 << np.arange(family.n_bits))


def controls_of(family: Parity, tokens: np.ndarray) -> np.ndarray:
    """The task ids that sequences ask for."""
    return tokens[:, family.n_bits] - 2


# The universe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(8, 1), (8, 3), (10, 4), (9, 8)])
def test_the_universe_holds_every_choice_of_bits_exactly_once(n: int, k: int) -> None:
    family = Parity(n_bits=n, n_summed=k, n_controls=4)
    subsets = family.subsets(np.arange(family.universe_size))
    expected = {tuple(sorted(c, reverse=True)) for c in itertools.combinations(range(n), k)}
    assert {tuple(row) for row in subsets.tolist()} == expected and len(subsets) == len(expected)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"n_summed": 16}, "fewer than the n_bits 16"),
        ({"n_bits": 8, "n_summed": 1, "n_controls": 8}, "can be chosen in 8 ways, and there must be fewer controls"),
        ({"n_bits": 7}, "n_bits"),
        ({"n_bits": 61}, "n_bits"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, int], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Parity(**parameters)


def test_no_more_tasks_than_controls() -> None:
    with pytest.raises(ValidationError, match="n_tasks 65 is beyond the 64 training tasks"):
        trunk_of(65)


# Data ------------------------------------------------------------------------------------------------------------


def test_a_sequence_is_bits_a_control_and_the_parity_of_its_subset() -> None:
    trunk = trunk_of(32, exponent=1.6, n_bits=12)
    family = trunk.family
    batch = family.batch(trunk.request, 3)
    assert batch.tokens.shape == (256, 14) and batch.loss_mask.shape == (256, 13)
    assert batch.loss_mask.sum(axis=0).tolist() == [0] * 12 + [256]
    for row in batch.tokens.tolist():
        chosen = family.subsets(np.array([row[12] - 2]))[0]
        assert row[13] == sum(row[i] for i in chosen) % 2
    assert set(np.unique(batch.tokens[:, :12])) == {0, 1} and batch.tokens.max() < family.vocab_size
    in_use = set(family.train_ids(0, np.arange(32)).tolist())
    assert set(controls_of(family, batch.tokens).tolist()) <= in_use


def test_no_string_that_trains_is_ever_asked_as_new_data() -> None:
    """Counted in a universe that training covers: every string that may train does, and no other."""
    trunk = trunk_of(4, n_bits=8, n_controls=8, n_sequences=200)
    family = trunk.family
    trained = set(codes_of(family, tokens_of(trunk, 30)).tolist())
    held_out = set(np.flatnonzero(family.is_held_out(np.arange(256))).tolist())
    assert trained == set(range(256)) - held_out and 16 <= len(held_out) <= 48
    for items in family.suite(trunk.request):
        asked = set(codes_of(family, items.tokens).tolist())
        (split,) = {p.split for p in items.probes}
        assert asked <= (held_out if split == "held_out" else trained)
    codes = np.random.default_rng(0).integers(0, 2**32, 80_000)
    assert Parity(n_bits=32).is_held_out(codes).sum() == pytest.approx(10_000, abs=5 * 94)


def test_bits_answers_and_tasks_are_drawn_without_a_hint_of_each_other() -> None:
    trunk = trunk_of(8, exponent=1.0, n_bits=12)
    tokens = tokens_of(trunk, 80)
    n = len(tokens)
    correlations = np.corrcoef(tokens[:, :12].T, tokens[:, 13])[-1, :-1]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(n)  # no single bit tells the answer
    assert tokens[:, :12].mean(axis=0) == pytest.approx(0.5, abs=4.5 * 0.5 / np.sqrt(n))
    law = 1 / np.arange(1.0, 9)
    order = trunk.family.train_ids(0, np.arange(8))
    shown = controls_of(trunk.family, tokens)
    counts = [(shown == task).sum() for task in order]
    assert stats.chisquare(counts, law / law.sum() * n).pvalue > 1e-3


# Skills ----------------------------------------------------------------------------------------------------------


def test_skills_are_of_the_tasks_by_their_rank() -> None:
    assert list(Parity.skills) == ["mean", "task_1", "task_2", "task_4", "task_8", "task_16", "task_32", "task_64"]
    assert list(Parity(n_controls=5).skills) == ["mean", "task_1", "task_2", "task_4"]
    assert "drawn most often" in Parity.skills["task_1"] and "drawn 32nd most often" in Parity.skills["task_32"]
    assert "drawn 512th most often" in Parity(n_bits=32, n_controls=600).skills["task_512"]


def test_a_rank_asks_for_the_task_of_that_rank_and_is_missing_where_there_is_none() -> None:
    trunk = trunk_of(5, exponent=1.6, replicate=3)
    family = trunk.family
    order = family.train_ids(3, np.arange(5))
    for rank in (1, 2, 4):
        items, _ = find(trunk, f"task_{rank}")
        assert set(controls_of(family, items.tokens).tolist()) == {order[rank - 1]}
    for rank in (8, 64):
        _, probe = find(trunk, f"task_{rank}")
        row = probe.score(np.zeros((*probe.mask.shape, family.vocab_size)))
        assert row["n"] == 0 and row["n_exact"] is None and row["exact_memorizer"] is None


@pytest.mark.parametrize("exponent", [0.0, 1.6])
def test_the_mean_asks_for_tasks_by_their_shares_and_not_by_chance(exponent: float) -> None:
    trunk = trunk_of(8, exponent=exponent, n_sequences=1000)
    family = trunk.family
    order = family.train_ids(0, np.arange(8)).tolist()
    law = np.arange(1.0, 9) ** -exponent
    for split in ("held_out", "seen"):
        shown = controls_of(family, find(trunk, "mean", split)[0].tokens)
        counts = np.array([(shown == task).sum() for task in order])
        assert np.abs(counts - 1000 * law / law.sum()).max() <= 1


def test_new_data_are_the_same_for_all_trials() -> None:
    trunks = [trunk_of(32), trunk_of(4, replicate=2), trunk_of(64, exponent=1.0)]
    for skill in ("mean", "task_4"):
        assert len({codes_of(t.family, find(t, skill)[0].tokens).tobytes() for t in trunks}) == 1


# References ------------------------------------------------------------------------------------------------------


def test_ability_is_the_correlation_of_answers_and_truth() -> None:
    """R_k / S of SCIENCE: the mean of (answer)(truth) as ±1, by hand; a guess has 0, the rule 1, and loss is in nats."""
    trunk = trunk_of(n_sequences=400)
    _, probe = find(trunk, "task_2")
    assert trunk.family.ability_of == "accuracy"
    truth = probe.target[:, -1]
    said = np.where(np.random.default_rng(0).random(400) < 0.8, truth, 1 - truth)
    log_probs = np.full((*probe.mask.shape, trunk.family.vocab_size), -20.0)
    log_probs[np.arange(400), -1, said] = np.log(0.9)
    log_probs[np.arange(400), -1, 1 - said] = np.log(0.1)
    row = probe.score(log_probs)
    correlation = ((2 * said - 1) * (2 * truth - 1)).mean()
    assert of_rows("ability", [row], "accuracy") == [pytest.approx(correlation, abs=1e-12)]
    assert 0.4 < correlation < 0.8
    assert row["nll_uniform"] == pytest.approx(400 * np.log(2)) and row["nll_generalizer"] == 0
    assert row["correct_memorizer"] == row["exact_memorizer"] == 200 and row["exact_generalizer"] == 400
