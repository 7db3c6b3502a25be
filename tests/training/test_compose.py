"""compose: its universe, sequences, references, skills and domains."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from families import find, suite_of, tasks_of, tokens_of, trunks_of
from scipy import stats

from trainers.tasks.compose import EPSILON, Compose

LONGER = {"n_slots": 4, "n_functions": 5, "max_length": 2}
HUGE = {"n_slots": 14}
DOMAINS = {"n_slots": 4, "n_functions": 5, "n_domains": 3}
POSITIONS = {"kind": "positions", "n_input": 4}
trunk_of = trunks_of("compose", 64)
FAMILIES = [{}, {"n_input": 3}, POSITIONS, DOMAINS, DOMAINS | {"share": False}, DOMAINS | {"domain": 1}, LONGER]


def rows_of(trunk: Any, skill: str, split: str = "held_out") -> list[tuple[int, ...]]:
    """The compositions that a skill is scored on, as the tokens tell them."""
    items, probe = find(trunk, skill, split)
    shown = items.tokens[probe.mask.any(axis=1), : trunk.family.n_slots] - trunk.family.n_letters
    return [tuple(row) for row in shown.tolist()]


def by_hand(family: Compose, composition: list[int], x: list[int]) -> list[list[int]]:
    """y1 ... yL, letter by letter."""
    functions, y, out = family.functions().tolist(), x, []
    for number in composition:
        function = functions[number]
        y = [function[letter] for letter in y] if family.kind == "letters" else [y[place] for place in function]
        out.append(y)
    return out


def brute_force(family: Compose, asked: list[int], x: list[int], answer: list[int], train: list[list[int]]) -> Any:
    """The memoriser's predictions (S, A), from the joint probability of every prefix of an answer. Slow and plain."""
    shared = [sum(f == g for f, g in zip(asked, task, strict=True)) for task in train]
    outputs = [by_hand(family, t, x)[-1] for t, s in zip(train, shared, strict=True) if s == max(shared)]
    a = family.n_letters

    def joint(prefix: list[int]) -> float:
        each = [
            np.prod([(1 - EPSILON) * (u == v) + EPSILON / a for u, v in zip(prefix, output, strict=False)])
            for output in outputs
        ]
        return float(np.mean(each))

    return [[joint([*answer[:s], letter]) / joint(answer[:s]) for letter in range(a)] for s in range(len(answer))]


# Longer compositions than any that trains ---------------------------------------------------------------------------


def test_with_a_longest_training_task_the_longer_ones_are_held_out_and_asked_apart():
    trunk = trunk_of(**LONGER)
    family = trunk.family

    def length(rows):
        return [sum(f % family.n_functions > 0 for f in row) for row in rows]

    short = 1 + 4 * 4 + 6 * 4**2
    assert family._n_short == short and family.n_train_ids == short - short // 8
    assert max(length(family.compositions(np.arange(family.n_train_ids)))) == 2
    assert max(length(family.compositions(family.held_out_ids(99)))) == 2
    assert len(set(family.held_out_ids(99))) == short // 8 and len(family.held_out_ids(99)) == 99
    assert set(length(rows_of(trunk, "longer"))) == {3, 4} and max(length(rows_of(trunk, "compose"))) == 2
    assert "compose_3" not in family.skills and "longer" not in Compose().skills
    asked = family.unseen_questions(trunk.request)
    assert max(sum(f != "0" for f in task.split()) for task in asked.tasks) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"max_length": 4}, "below n_slots, 4"),
        ({"n_domains": 2}, "n_domains 0"),
        ({"n_slots": 20}, "fewer than 1,048,576"),
    ],
)
def test_a_longest_training_task_that_cannot_be_is_refused(more, says):
    with pytest.raises(ValueError, match=says):
        Compose(**LONGER | more)


# The universe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [*FAMILIES, HUGE, {"n_slots": 31, "n_functions": 4}])
def test_the_id_of_a_composition_can_be_found_again(parameters):
    family = Compose(**parameters)
    ids = np.array([i * (family.universe_size - 1) // 998 for i in range(999)])
    assert np.array_equal(family.ids(family.compositions(ids)), ids)


def test_the_functions_of_a_slot_are_different_bijections_and_the_first_is_the_identity():
    for parameters in (*FAMILIES, {"n_functions": 24, "n_letters": 4}):
        family = Compose(**parameters)
        table = family.functions().reshape(family.n_slots, -1, family.functions().shape[1])
        points = np.arange(table.shape[2])
        assert np.array_equal(np.sort(table, axis=2), np.broadcast_to(points, table.shape))
        for slot in table:
            identities = (slot == points).all(axis=1)
            assert np.flatnonzero(identities).tolist() == list(range(0, len(slot), family.n_functions))
            assert len(np.unique(slot[~identities], axis=0)) == (~identities).sum()
    assert (Compose().functions().reshape(3, 8, 8)[0, 1:] != Compose().functions().reshape(3, 8, 8)[1, 1:]).any()


def test_more_slots_or_functions_leave_the_others_as_they_are():
    small, large = Compose().functions(), Compose(n_slots=5, n_functions=12).functions()
    assert np.array_equal(small.reshape(3, 8, 8), large.reshape(5, 12, 8)[:3, :8])


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"n_functions": 25, "n_letters": 4}, "a slot needs 25 different functions, but 4 letters allow only 24"),
        ({"kind": "positions", "n_input": 3}, "a slot needs 8 different functions, but 3 positions allow only 6"),
        ({"kind": "positions", "n_input": 6, "n_letters": 5}, "n_input 6: .* n_letters 5"),
        ({"n_domains": 8}, "n_domains 8: at most 7"),
        ({"n_domains": 4, "domain": 4}, "domain 4 is none of the 4"),
        ({"domain": 0}, "domain 0 is none of the 0"),
        ({"share": False}, "no difference without n_domains"),
        ({"n_domains": 3, "domain_shares": (1.0, 2.0)}, "domain_shares: 2 given, but n_domains is 3"),
        ({"n_slots": 21}, r"more than 2\^62 tasks"),
    ],
)
def test_what_cannot_be_is_refused(parameters, complaint):
    with pytest.raises(ValueError, match=complaint):
        Compose(**parameters)


# Sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", Compose.arms)
@pytest.mark.parametrize("parameters", FAMILIES)
def test_a_sequence_is_the_functions_the_input_and_what_they_make_of_it(arm, parameters):
    trunk = trunk_of(24, arm, **parameters)
    family = trunk.family
    n_slots, s = family.n_slots, family.n_input
    colon, filler = family.vocab_size - 2, family.vocab_size - 1
    tasks = set(map(tuple, tasks_of(trunk).tolist()))
    batch = family.batch(trunk.request, 7)
    assert batch.loss_mask.shape == (32, family.length(arm)) and batch.tokens.shape == (32, family.length(arm) + 1)
    for row, mask in zip(batch.tokens.tolist(), batch.loss_mask.tolist(), strict=True):
        composition = [token - family.n_letters for token in row[:n_slots]]
        assert tuple(composition) in tasks
        assert row[n_slots] == colon
        x, shown = row[n_slots + 1 : n_slots + 1 + s], row[n_slots + 1 + s :]
        assert family.kind == "letters" or len(set(x)) == s
        *steps, answer = by_hand(family, composition, x)
        between = {"answer": [], "latent": [filler] * (s * (n_slots - 1))}.get(arm, [*itertools.chain(*steps)])
        assert shown == between + answer
        scored = [token for token, counts in zip(row[1:], mask, strict=True) if counts]
        written = between + answer  # what arm `reward` samples, too: its own batches hold what was sampled
        assert scored == {"steps": written, "reward": written, "next_token": row[1:]}.get(arm, answer)


def test_training_draws_all_its_tasks_and_inputs_equally():
    trunk = trunk_of(24)
    tokens = tokens_of(trunk, 100)
    which = (tokens[:, None, :3] - 8 == tasks_of(trunk)).all(axis=2)  # (N, K)
    assert (which.sum(axis=1) == 1).all()
    counts = np.zeros((24, 8))
    np.add.at(counts, (which.argmax(axis=1), tokens[:, 4]), 1)
    assert stats.chisquare(counts.sum(axis=1)).pvalue > 1e-3
    assert stats.chisquare(counts.sum(axis=0)).pvalue > 1e-3
    assert stats.chi2_contingency(counts).pvalue > 1e-3


# References ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"n_input": 3, "n_letters": 5}, POSITIONS, DOMAINS])
@pytest.mark.parametrize("n_tasks", [1, 6, 40])
def test_the_memoriser_is_the_stated_one_by_brute_force(parameters, n_tasks):
    """On seen, unseen and out-of-order compositions, after right and after wrong letters: to 1e-9."""
    trunk = trunk_of(n_tasks, **parameters)
    family, train = trunk.family, tasks_of(trunk)
    asked = np.concatenate([train[:5], family.compositions(family.held_out_ids(15))])
    asked = np.concatenate([asked, np.roll(asked[-5:], 1, axis=1)])
    rng = np.random.default_rng(0)
    x = family._inputs(rng, len(asked))
    answer = rng.integers(0, family.n_letters, x.shape)
    answer[::2] = [by_hand(family, c, i)[-1] for c, i in zip(asked[::2].tolist(), x[::2].tolist(), strict=True)]
    found = family.memorizer(asked, x, answer, train, family.maps(train))
    assert np.allclose(found.sum(axis=2), 1, rtol=0, atol=1e-12)
    for i in range(len(asked)):
        rows = (asked[i].tolist(), x[i].tolist(), answer[i].tolist(), train.tolist())
        assert np.allclose(found[i], brute_force(family, *rows), rtol=0, atol=1e-9)


@pytest.mark.parametrize("arm", ["steps", "answer"])
@pytest.mark.parametrize("parameters", [{}, {"n_input": 3}, POSITIONS])
def test_the_references_know_what_they_should(arm, parameters):
    """By hand: a believed letter costs -log(1 - ε + ε/A); the uniform guess has one letter in A right."""
    trunk = trunk_of(24, arm, **parameters)
    s, a = trunk.family.n_input, trunk.family.n_letters
    sure = -np.log(1 - EPSILON + EPSILON / a) * s
    for items in suite_of(trunk):
        for probe in items.probes:
            row = probe.score(np.full((*probe.mask.shape, trunk.family.vocab_size), -np.log(trunk.family.vocab_size)))
            n = row["n_sequences"]
            if not n:
                continue
            assert row["n"] == n * s
            assert row["nll_uniform"] == pytest.approx(n * s * np.log(a)) and row["exact_uniform"] == pytest.approx(
                n / a**s
            )
            assert row["nll_generalizer"] == pytest.approx(n * sure) and row["exact_generalizer"] == n
            if probe.split == "seen":
                assert row["nll_memorizer"] == pytest.approx(n * sure) and row["exact_memorizer"] == n
            else:
                assert row["exact_memorizer"] < 0.5 * n


def test_the_memoriser_of_nearly_all_tasks_is_right_on_the_others_as_often_as_functions_agree():
    """By another way: its neighbours differ in one function, so it is right where two functions of a slot agree.

    Over the 448 training tasks of the default universe, all 64 held-out ones, all inputs: near chance, 1/8.
    """
    family = Compose()
    train, asked = (family.compositions(ids) for ids in (family.train_ids(0, np.arange(448)), family.held_out_ids(64)))
    asked, x = np.repeat(asked, 8, axis=0), np.tile(np.arange(8), 64)[:, None]
    *_, answer = family.steps(asked, x)
    found = np.take_along_axis(family.memorizer(asked, x, answer, train, family.maps(train)), answer[:, :, None], 2)
    agree = [
        (f == g).mean() for slot in family.functions().reshape(3, 8, 8) for f, g in itertools.permutations(slot, 2)
    ]
    assert found.mean() == pytest.approx((1 - EPSILON) * np.mean(agree) + EPSILON / 8, abs=0.01)
    assert np.mean(agree) == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize("n_tasks", [40, 300, 448])
def test_looking_neighbours_up_finds_the_same_memoriser_as_going_through_the_list(n_tasks):
    trunk = trunk_of(n_tasks)
    family, train = trunk.family, tasks_of(trunk)
    asked = np.concatenate([family.compositions(family.held_out_ids(64)), train[:30]])
    x = family._inputs(np.random.default_rng(0), len(asked))
    *_, answer = family.steps(asked, x)
    near = family._looked_up(trunk.request, asked)
    assert {tuple(row) for row in near.tolist()} <= {tuple(row) for row in train.tolist()}
    through, looked_up = (family.memorizer(asked, x, answer, tasks, family.maps(tasks)) for tasks in (train, near))
    assert np.allclose(through, looked_up, rtol=0, atol=1e-12)


def test_a_trillion_tasks_have_a_memoriser_and_a_million_are_too_many_and_too_few():
    _, trillion = find(trunk_of(10**12, "answer", **HUGE), "compose")
    assert {"uniform", "generalizer", "memorizer"} == trillion.references.keys()
    assert trillion.references["memorizer"].correct[trillion.mask].mean() < 0.4
    for skill in ("compose", "out_of_order"):
        _, million = find(trunk_of(10**6, "answer", **HUGE), skill)
        assert {"uniform", "generalizer"} == million.references.keys()
    _, out_of_order = find(trunk_of(10**12, "answer", **HUGE), "out_of_order")
    assert "memorizer" not in out_of_order.references  # it shares nothing with any of them


# Skills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tasks", "parameters"), [(6, {}), (64, {}), (448, {}), (3, DOMAINS), (10, DOMAINS | {"share": False}), (6, HUGE)]
)
def test_compose_asks_unseen_compositions_of_functions_trained_where_they_stand(n_tasks, parameters):
    trunk = trunk_of(n_tasks, n_sequences=256, **parameters)
    family, train = trunk.family, tasks_of(trunk)
    every_training_task = set(map(tuple, family.compositions(np.arange(min(family.n_train_ids, 1000))).tolist()))
    trained = [set(column) for column in train.T.tolist()]
    changing = {row: sum(f % family.n_functions > 0 for f in row) for row in rows_of(trunk, "compose")}
    assert len(rows_of(trunk, "compose")) == 256
    for row in changing:
        assert row not in every_training_task
        assert all(f in functions for f, functions in zip(row, trained, strict=True))
    for k in range(2, family.n_slots + 1):
        assert set(rows_of(trunk, f"compose_{k}")) == {row for row, n in changing.items() if n == k}
    for row in rows_of(trunk, "single_step"):
        assert row not in every_training_task
        assert sum(f % family.n_functions > 0 for f in row) == 1
        assert all(f in functions for f, functions in zip(row, trained, strict=True))
    for row in rows_of(trunk, "out_of_order"):
        slots = [f // family._width for f in row]
        assert sorted(slots) == list(range(family.n_slots)) and all(s != i for i, s in enumerate(slots))
        assert tuple(sorted(row)) in changing
    held_out = rows_of(trunk, "mixture")
    novel = {row for row in held_out if not all(f in fs for f, fs in zip(row, trained, strict=True))}
    assert set(rows_of(trunk, "novel_function")) == novel


def test_every_answer_asked_for_is_what_the_functions_make_in_the_order_written():
    for parameters in FAMILIES:
        trunk = trunk_of(24, "answer", **parameters)
        s, n_slots = trunk.family.n_input, trunk.family.n_slots
        for items in suite_of(trunk):
            for row in items.tokens.tolist():
                functions = [token - trunk.family.n_letters for token in row[:n_slots]]
                assert row[-s:] == by_hand(trunk.family, functions, row[n_slots + 1 : n_slots + 1 + s])[-1]
            for probe in items.probes:
                assert np.array_equal(probe.target, items.tokens[:, 1:])
                assert not probe.mask[:, :-s].any() and (probe.mask[:, -s:] == probe.mask[:, -1:]).all()


def test_the_seen_split_shows_training_tasks_only():
    trunk = trunk_of(24)
    assert set(rows_of(trunk, "compose", "seen")) == set(map(tuple, tasks_of(trunk).tolist()))


def test_the_model_writes_every_step_but_the_answer_itself():
    for arm in ("steps", "next_token"):
        trunk = trunk_of(24, arm, n_slots=4, n_input=2)
        for items in suite_of(trunk):  # f f f f : x x y1 y1 y2 y2 y3 y3 y4 y4
            assert [position + 1 for position in items.written] == [7, 8, 9, 10, 11, 12]
    for arm in ("answer", "latent"):
        assert not any(items.written for items in suite_of(trunk_of(24, arm)))


def test_one_task_leaves_nothing_to_compose():
    trunk = trunk_of(1)
    for skill in ("compose", "compose_2", "single_step", "out_of_order"):
        _, probe = find(trunk, skill)
        row = probe.score(np.zeros((*probe.mask.shape, trunk.family.vocab_size)))
        assert row["n"] == 0 and row["n_exact"] is None and row["exact_memorizer"] is None
    assert len(rows_of(trunk, "novel_function")) == len(rows_of(trunk, "mixture", "seen")) == 64


# Domains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_a_generalist_trains_on_the_tasks_of_its_specialists(share):
    generalist = trunk_of(20, **DOMAINS, share=share)
    assert len(tasks_of(generalist)) == 3 * 20
    specialists = [trunk_of(20, **DOMAINS, share=share, domain=d) for d in range(3)]
    for d, specialist in enumerate(specialists):
        tasks = tasks_of(specialist)
        assert (tasks[:, 0] == 1 + d).all()
        assert np.array_equal(tasks, tasks_of(generalist)[d::3])
        assert specialist.family.vocab_size == generalist.family.vocab_size
    tails = [set(map(bytes, tasks_of(s)[:, 1:])) for s in specialists]
    assert len(tails[0] & tails[1]) < 15  # each domain has tasks of its own, of 110


@pytest.mark.parametrize("share", [True, False])
def test_each_domain_is_examined_alike_for_all_on_tasks_that_nobody_trains(share):
    trunks = [trunk_of(20, **DOMAINS, share=share), *(trunk_of(20, **DOMAINS, share=share, domain=d) for d in range(3))]
    trainable = set()
    for trunk in trunks[1:]:
        trainable |= set(map(bytes, trunk.family.compositions(np.arange(trunk.family.n_train_ids))))
    assert len(trainable) == trunks[0].family.n_train_ids
    for d in range(3):
        found = [find(trunk, f"domain_{d}") for trunk in trunks]
        assert len({items.tokens.tobytes() for items, _ in found}) == 1
        asked = np.array(rows_of(trunks[0], f"domain_{d}"))
        assert (asked[:, 0] == 1 + d).all()
        assert not set(map(bytes, asked)) & trainable


def test_domains_that_share_nothing_have_no_function_in_common():
    """Neither a token nor, the identity and the first slot apart, a bijection."""
    family = Compose(**DOMAINS, share=False)
    rows = family.compositions(np.arange(family.universe_size))
    used = [set(rows[rows[:, 0] == 1 + d].ravel().tolist()) for d in range(3)]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
    functions = family.functions()
    for slot in range(1, 4):
        kinds = [{tuple(functions[f]) for f in u if f // 15 == slot and f % 5} for u in used]
        assert [len(kind) for kind in kinds] == [4, 4, 4] and len(set().union(*kinds)) == 12
    shared = Compose(**DOMAINS)
    assert set(shared.compositions(np.arange(shared.universe_size))[:, 1].tolist()) == set(range(5, 10))


def test_nobody_has_more_tasks_of_a_domain_than_it_holds():
    assert Compose(**DOMAINS, domain=0).n_train_ids * 3 == Compose(**DOMAINS).n_train_ids == 3 * (125 - 15)
    for parameters in ({"domain": 0}, {}):
        trunk_of(110, **DOMAINS, **parameters)
        with pytest.raises(ValueError, match="n_tasks 111 is beyond the 110 training tasks of each domain"):
            trunk_of(111, **DOMAINS, **parameters)


@pytest.mark.parametrize(("shares", "exponent"), [((), 0.0), ((2.0, 1.0, 5.0), 0.0), ((2.0, 1.0, 5.0), 1.0)])
def test_domains_are_drawn_by_their_shares_and_tasks_alike_within_each(shares, exponent):
    trunk = trunk_of(4, **DOMAINS, domain_shares=shares)
    trunk = trunk.model_copy(update={"training": trunk.training.model_copy(update={"task_exponent": exponent})})
    drawn = trunk.family.draw_tasks(trunk.request, np.random.default_rng(0), 40_000)
    by_domain = np.array(shares or (1, 1, 1)) / sum(shares or (1, 1, 1))
    within = np.arange(1, 5) ** -exponent / (np.arange(1, 5) ** -exponent).sum()
    expected = 40_000 * (within[:, None] * by_domain).ravel()  # task i of domain d is number 3 i + d
    assert stats.chisquare(np.bincount(drawn, minlength=12), expected).pvalue > 1e-3
    assert trunk.family.draws_alike(trunk.training.task_exponent) == (not shares)
    seen = trunk.family.seen_tasks(trunk.request, 1200)
    assert abs(np.bincount(seen % 3) / 1200 - by_domain).max() < 0.05


def test_what_a_specialist_is_compared_with():
    generalist, specialist = Compose(**DOMAINS), Compose(**DOMAINS, domain=2)
    assert (generalist.domains, specialist.domains) == (("domain_0", "domain_1", "domain_2"), ("domain_2",))
    assert specialist.whole == generalist.whole == generalist and Compose().domains == ()
    assert set(generalist.domains) <= set(generalist.skills)
