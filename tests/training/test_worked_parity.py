"""worked_parity: answers by hand, the odds from which the threshold 1 / (A + 1) follows, and both judges."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from trainers.tasks import Request, WorkedParity


def request(family, n_tasks=None, replicate=0, arm="next_token"):
    n = family.n_tasks_max if n_tasks is None else n_tasks
    return Request(arm=arm, n_tasks=n, replicate=replicate, batch_size=6, n_sequences=24)


def texts_of(family, items):
    decode = family.text_tokens.decode
    return [(decode(items.prompt(i)), decode(items.target(i))) for i in range(len(items))]


def worked(prompt, n_letters):
    """The prefix sums, one after another."""
    sums, total = "", 0
    for letter in prompt:
        total = (total + int(letter)) % n_letters
        sums += str(total)
    return sums


@pytest.mark.parametrize("n_letters", [2, 5])
def test_an_answer_is_the_sum_or_all_prefix_sums_and_a_string_gets_both(n_letters):
    family = WorkedParity(n_positions=8, n_letters=n_letters, share=0.5)
    texts = texts_of(family, family.drawn(request(family, n_tasks=40), np.random.default_rng(0), 2000))
    ways = {}
    for prompt, target in texts:
        sums = worked(prompt, n_letters)
        assert len(prompt) == 8 and target in (sums, sums[-1])
        ways.setdefault(prompt, set()).add(len(target))
    assert len(ways) == 40 and all(way == {1, 8} for way in ways.values())


@pytest.mark.parametrize(("n_letters", "share"), [(2, 0.25), (4, 0.5), (8, 0.1)])
def test_the_odds_of_going_on_are_those_from_which_the_threshold_follows(n_letters, share):
    """Counted in training items: the first token is the first letter in p + (1 - p) / A, and then p : (1 - p) / A go on."""
    family, n = WorkedParity(n_positions=12, n_letters=n_letters, share=share), 40_000
    texts = texts_of(family, family.drawn(request(family), np.random.default_rng(1), n))
    begins = [len(target) > 1 for prompt, target in texts if target[0] == prompt[0]]
    chance = share + (1 - share) / n_letters
    assert abs(len(begins) - n * chance) < 5 * np.sqrt(n * chance * (1 - chance))
    goes_on = share / chance
    assert abs(sum(begins) - len(begins) * goes_on) < 5 * np.sqrt(len(begins) * goes_on * (1 - goes_on))
    assert (goes_on > 0.5) == (share > 1 / (n_letters + 1))


def test_no_credit_for_containing_the_sum_and_the_strict_judge_wants_the_work_right():
    family = WorkedParity(n_positions=4, n_letters=3)
    judge, strict = family.judge(), family.oracle()
    assert worked("1112", 3) == "1202"
    verdicts = {
        "2": (True, True),
        "1202": (True, True),
        "0002": (True, False),
        "12": (True, False),
        "21": (False, False),
        "1201": (False, False),
        "12021": (False, False),
        "": (None, False),
        "x2": (None, False),
    }
    for answer, expected in verdicts.items():
        assert (judge("1112", "1202", answer), strict("1112", "1202", answer)) == expected, answer


def test_held_out_strings_are_the_same_for_every_share_and_asked_with_their_work():
    few, many = (WorkedParity(n_positions=10, share=share) for share in (0.0, 0.5))
    for one, other in zip(few.suite(request(few)), many.suite(request(many)), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert all(target == worked(prompt, 2) for prompt, target in one.questions.texts)
    (held_out,) = [items.questions for items in many.suite(request(many)) if items.probes[0].split == "held_out"]
    trained = set(many.contents(request(many), "seen", 2000))
    assert len(trained) == many.n_tasks_max == 896
    asked = {np.array([int(letter) for letter in name]).tobytes() for name in held_out.tasks}
    assert len(asked) == 24 and not asked & trained


def test_the_nearest_trained_string_errs_where_every_neighbour_is_trained():
    """With two letters a string at distance one has the other sum."""
    family = WorkedParity(n_positions=10)
    of = {items.probes[0].split: items.questions.floors for items in family.suite(request(family))}
    assert of["seen"]["memorizer"].all() and of["held_out"]["memorizer"].mean() < 0.1


def test_too_many_strings_are_refused():
    assert WorkedParity(n_positions=31, n_letters=4).n_tasks_max == 2**61
    with pytest.raises(ValidationError, match="2\\^62"):
        WorkedParity(n_positions=32, n_letters=4)
