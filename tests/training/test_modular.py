"""modular: its universe, sequences, references and skills."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from families import find, tasks_of, tokens_of, trunks_of
from scipy import stats

from trainers.tasks.modular import EPSILON, Modular

trunk_of = trunks_of("modular", 12)
HUGE = {"modulus": 29, "n_inputs": 12}


def read(family: Modular, arm: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients told (N, 0 or D), x (N, P, D) and z (N, P), as the tokens tell them."""
    d = family.n_inputs
    first = d if arm == "task_id" else 0
    examples = tokens[:, first:].reshape(len(tokens), family.n_examples, d + 1)
    return tokens[:, :first], examples[:, :, :d], examples[:, :, d] - family.modulus


def bayes(
    family: Modular, tasks: list[tuple[float, tuple[int, ...]]], x: np.ndarray, z: np.ndarray, epsilon: float
) -> list[list[float]]:
    """The predictive distribution before each result, a weighted task at a time. Slow and plain."""
    p = family.modulus
    weights, predictions = [w for w, _ in tasks], []

    def chance(task: tuple[int, ...], numbers: list[int], result: int) -> float:
        own = sum(c * number for c, number in zip(task, numbers, strict=True)) % p
        return (1 - epsilon) * (own == result) + epsilon / p

    for numbers, result in zip(x.tolist(), z.tolist(), strict=True):
        total = sum(weights)
        each = [
            sum(w * chance(t, numbers, a) for w, (_, t) in zip(weights, tasks, strict=True)) / total for a in range(p)
        ]
        predictions.append(each)
        weights = [w * chance(t, numbers, result) for w, (_, t) in zip(weights, tasks, strict=True)]
    return predictions


# The universe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [({"modulus": 9}, "9 is no prime"), ({"modulus": 127, "n_inputs": 9}, r"more than 2\^62 tasks")],
)
def test_what_cannot_be_is_refused(parameters, complaint):
    with pytest.raises(ValueError, match=complaint):
        Modular(**parameters)


# Sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", Modular.arms)
@pytest.mark.parametrize("parameters", [{}, {"modulus": 3, "n_inputs": 4, "n_examples": 5}])
def test_a_sequence_shows_one_training_function_and_the_loss_sees_what_its_arm_says(arm, parameters):
    trunk = trunk_of(3, arm, **parameters)
    family, tasks = trunk.family, set(map(tuple, tasks_of(trunk).tolist()))
    batch = family.batch(trunk.request, 4)
    assert batch.tokens.shape == (32, family.length(arm) + 1) and batch.loss_mask.shape == (32, family.length(arm))
    told, x, z = read(family, arm, batch.tokens)
    assert x.any(axis=2).all() and x.max() < family.modulus
    for i in range(32):
        fits = [
            c
            for c in tasks
            if all(
                sum(a * b for a, b in zip(c, row, strict=True)) % family.modulus == r
                for row, r in zip(x[i].tolist(), z[i].tolist(), strict=True)
            )
        ]
        assert fits and (arm != "task_id" or tuple(told[i].tolist()) in fits)
    if arm == "next_token":
        assert batch.loss_mask.all()
    else:
        assert np.array_equal(batch.loss_mask, batch.tokens[:, 1:] >= family.modulus)  # results are p ... 2p - 1
        assert batch.loss_mask.sum() == 32 * family.n_examples


def test_batches_draw_functions_and_inputs_equally():
    trunk = trunk_of(15)
    _, x, z = read(trunk.family, "answer", tokens_of(trunk, 60))
    assert stats.chisquare(np.bincount((x @ [1, 5]).ravel(), minlength=25)[1:]).pvalue > 1e-3
    own = ((x[:, None] * tasks_of(trunk)[None, :, None]).sum(axis=3) % 5 == z[:, None]).all(axis=2)  # (N, K)
    assert stats.chisquare(own[own.sum(axis=1) == 1].sum(axis=0)).pvalue > 1e-3


def test_a_trillion_tasks_are_really_drawn_from():
    trunk = trunk_of(10**12, "task_id", **HUGE)
    assert len(np.unique(tokens_of(trunk, 40)[:, :12], axis=0)) == 40 * 32


# References ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "d"), [(2, 3), (3, 2), (3, 3), (5, 2)])
def test_the_generaliser_is_bayes_over_all_functions(p, d):
    family = Modular(modulus=p, n_inputs=d, n_examples=7)
    everything = [(1.0, c) for c in itertools.product(range(p), repeat=d)]
    rng = np.random.default_rng(0)
    x = family._digits(rng.integers(1, p**d, (40, 7)))
    z = family.results(rng.integers(0, p, (40, d)), x)
    found = family.generalizer(x, z)
    for i in range(40):
        assert np.allclose(found[i], bayes(family, everything, x[i], z[i], 0.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_tasks", [1, 4, 19])
@pytest.mark.parametrize("exponent", [0.0, 1.3])
@pytest.mark.parametrize("told", [False, True])
def test_the_memoriser_is_bayes_over_the_training_functions(n_tasks, exponent, told):
    """On functions of the list and others, told which or not, to 1e-9; what is told counts like D more examples."""
    trunk = trunk_of(n_tasks, "task_id" if told else "answer", exponent=exponent, n_examples=6)
    family, train = trunk.family, tasks_of(trunk)
    asked = np.concatenate([train[:3], family.coefficients(family.held_out_ids(6))])
    x = family._inputs(np.random.default_rng(1), len(asked))
    z = family.results(asked, x)
    found = family.predictions(trunk.request, asked, x, z)["memorizer"]
    assert np.allclose(found.sum(axis=2), 1, rtol=0, atol=1e-12)
    believed, other = 1 - EPSILON + EPSILON / 5, EPSILON / 5
    for i, task in enumerate(asked.tolist()):
        weights = [
            float(r**-exponent)
            * float(np.prod([believed if a == b else other for a, b in zip(c, task, strict=True)]) if told else 1.0)
            for r, c in enumerate(train.tolist(), start=1)
        ]
        tasks = [(w, tuple(c)) for w, c in zip(weights, train.tolist(), strict=True)]
        assert np.allclose(found[i], bayes(family, tasks, x[i], z[i], EPSILON), rtol=0, atol=1e-9)


def test_examples_decide_as_much_as_their_rank_says():
    """By another way: i random vectors that are not 0 span s of p^D - 1 others; the chain of ranks gives the share known."""
    p, d, n_examples = 5, 3, 8
    family = Modular(modulus=p, n_inputs=d, n_examples=n_examples)
    rank, shares = {0: 1.0}, []
    for _ in range(n_examples):
        inside = {r: (p**r - 1) / (p**d - 1) for r in rank}
        shares.append(sum(share * inside[r] for r, share in rank.items()))
        after: dict[int, float] = {}
        for r, share in rank.items():
            after[r] = after.get(r, 0.0) + share * inside[r]
            if r < d:
                after[r + 1] = after.get(r + 1, 0.0) + share * (1 - inside[r])
        rank = after
    rng = np.random.default_rng(3)
    x = family._inputs(rng, 20_000)
    found = family.solve(x, family.results(rng.integers(0, p, (20_000, d)), x)).known.mean(axis=0)
    assert np.allclose(found, shares, rtol=0, atol=5 * np.sqrt(0.25 / 20_000))
    assert shares[0] == 0 and shares[-1] > 0.99


def test_told_the_task_the_references_coincide_on_training_tasks_and_not_on_others():
    for arm, apart in (("task_id", False), ("answer", True)):
        trunk = trunk_of(10, arm, n_sequences=128, n_inputs=3)
        _, seen = find(trunk, "mixture", "seen")
        gap = [float(seen.references[name].nll_nats[seen.mask].mean()) for name in ("generalizer", "memorizer")]
        assert (gap[0] - gap[1] > 0.1) == apart
        _, held_out = find(trunk, "solve_new")
        right = [held_out.references[name].correct[held_out.mask].mean() for name in ("generalizer", "memorizer")]
        assert right[0] == 1.0 and right[1] < 0.6


def test_a_generaliser_that_is_told_nothing_knows_what_the_examples_decide():
    """By hand: log p nats and one in p right where they decide nothing, 0 nats and all right where they do."""
    trunk = trunk_of(10)
    for skill, nats, correct in (("solve_new", 0.0, 1.0), ("scale", 0.0, 1.0), ("undecided", np.log(5), 0.2)):
        _, probe = find(trunk, skill)
        reference = probe.references["generalizer"]
        assert np.allclose(reference.nll_nats[probe.mask], nats) and np.allclose(reference.correct[probe.mask], correct)
        assert np.allclose(probe.references["uniform"].nll_nats[probe.mask], np.log(5))


def test_a_list_too_long_to_enumerate_has_no_memoriser():
    _, probe = find(trunk_of(10**6, n_sequences=8, **HUGE), "mixture")
    assert set(probe.references) == {"uniform", "generalizer"}


# Skills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", Modular.arms)
@pytest.mark.parametrize("split", ["seen", "held_out"])
def test_every_result_belongs_to_one_skill_which_is_told_by_span_and_occurrence(arm, split):
    trunk = trunk_of(6, arm, modulus=3, n_examples=6)
    family = trunk.family
    items, _ = find(trunk, "mixture", split)
    told, x, z = read(family, arm, items.tokens)
    masks = {skill: find(trunk, skill, split)[1] for skill in (*family.skills, "mixture")}
    train = set(map(tuple, tasks_of(trunk).tolist()))
    assert all((tuple(row) in train) == (split == "seen") for row in told.tolist()) or arm != "task_id"
    for i in range(len(x)):
        for e in range(family.n_examples):
            position = family._first(arm) + 3 * e + 1
            before, now = x[i, :e].tolist(), x[i, e].tolist()
            combinations = [
                [sum(t * row[k] for t, row in zip(times, before, strict=True)) % 3 for k in range(2)]
                for times in itertools.product(range(3), repeat=e)
            ]
            multiples = [[2 * number % 3 for number in row] for row in before]
            decided = "scale" if now in multiples else "solve_new" if now in combinations else "undecided"
            expected = "recall" if now in before else decided
            belongs = {skill for skill, probe in masks.items() if probe.mask[i, position]}
            assert belongs == {expected, "mixture"}
            assert all(
                probe.target[i, position] == z[i, e] + 3 == items.tokens[i, position + 1] for probe in masks.values()
            )
    assert sum(probe.mask.sum() for probe in masks.values()) == 2 * 64 * 6
