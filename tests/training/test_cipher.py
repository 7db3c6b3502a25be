"""cipher: its universe, batches, references and skills."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from families import find, suite_of, tasks_of, tokens_of, trunks_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainers.spec import TrunkSpec
from trainers.tasks import Cipher
from trainers.tasks.cipher import EPSILON

trunk_of = trunks_of("cipher", 64)
SMALL = Cipher(n_symbols=4, n_pairs=8)
ALL_OF_FOUR = list(itertools.permutations(range(4)))


def pairs_of(tokens: np.ndarray, n_symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions and answers of sequences, both 0 ... V-1."""
    return tokens[:, ::2], tokens[:, 1::2] - n_symbols


def per_token(trunk: TrunkSpec, skill: str, split: str, reference: str) -> tuple[float, float]:
    """A reference's mean log loss and accuracy on a probe."""
    _, probe = find(trunk, skill, split)
    nll, correct = probe.references[reference]
    return float(nll[probe.mask].mean()), float(correct[probe.mask].mean())


def bayes(
    tasks: list[tuple[int, ...]], xs: list[int], ys: list[int], epsilon: float, fall: float = 1.0
) -> list[list[float]]:
    """The predictive distribution before each answer, by enumerating tasks one at a time. Slow and plain.

    Each task gives its own answer with 1 - ε, and with ε any of the V. Its share is `fall` times that of the task before it.
    """
    v = len(tasks[0])

    def chance(task: tuple[int, ...], x: int, y: int) -> float:
        return (1 - epsilon) * (task[x] == y) + epsilon / v

    weights, predictions = [fall**i for i in range(len(tasks))], []
    for x, y in zip(xs, ys, strict=True):
        total = sum(weights)
        predictions.append(
            [sum(w * chance(task, x, a) for w, task in zip(weights, tasks, strict=True)) / total for a in range(v)]
        )
        weights = [w * chance(task, x, y) for w, task in zip(weights, tasks, strict=True)]
    return predictions


# The universe ----------------------------------------------------------------------------------------------------


# Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tasks", [1, 8])
def test_every_sequence_is_shown_by_one_of_the_training_tasks(n_tasks):
    trunk = trunk_of(n_tasks, n_pairs=40)
    family = trunk.family
    tasks = tasks_of(trunk)
    batches = [family.batch(trunk.request, step).tokens for step in range(30)]
    x, y = pairs_of(np.concatenate(batches), 16)
    assert x.min() == 0 and x.max() == 15
    agrees = (tasks[:, x] == y).all(axis=2)  # (K, N)
    assert (agrees.sum(axis=0) == 1).all()
    assert stats.chisquare(agrees.sum(axis=1)).pvalue > 1e-3 or n_tasks == 1
    assert stats.chisquare(np.bincount(x.ravel())).pvalue > 1e-3


def test_the_arms_show_the_same_tokens_and_differ_in_what_the_loss_sees():
    answer, everything = trunk_of(arm="answer"), trunk_of(arm="next_token")
    taught, all_of_it = answer.family.batch(answer.request, 3), everything.family.batch(everything.request, 3)
    assert np.array_equal(taught.tokens, all_of_it.tokens)
    assert np.array_equal(taught.loss_mask, taught.tokens[:, 1:] >= 16)  # answers are 16 ... 31
    assert taught.loss_mask.sum() == 32 * 24
    assert all_of_it.loss_mask.all() and all_of_it.loss_mask.shape == (32, 47)


def test_noise_answers_have_nothing_to_do_with_questions_or_earlier_answers():
    trunk = trunk_of(n_tasks=4, answers="noise")
    tokens = tokens_of(trunk, 100)
    x, y = pairs_of(tokens, 16)
    assert stats.chi2_contingency(np.histogram2d(x.ravel(), y.ravel(), bins=16)[0]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(y.ravel(), minlength=16)).pvalue > 1e-3
    same_question = np.triu(x[:, :, None] == x[:, None, :], k=1)
    same_answer = (y[:, :, None] == y[:, None, :])[same_question]
    assert abs(same_answer.mean() - 1 / 16) < 5 * np.sqrt(1 / 16 / len(same_answer))


def test_noise_changes_training_and_leaves_the_evaluation_alone():
    plain, noise = trunk_of(), trunk_of(answers="noise")
    shown, drawn = plain.family.batch(plain.request, 0).tokens, noise.family.batch(noise.request, 0).tokens
    assert np.array_equal(shown[:, ::2], drawn[:, ::2])
    assert (shown[:, 1::2] == drawn[:, 1::2]).mean() < 0.2
    for one, other in zip(suite_of(plain), suite_of(noise), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        for a, b in zip(one.probes, other.probes, strict=True):
            assert (a.skill, a.split) == (b.skill, b.split)
            assert np.array_equal(a.mask, b.mask) and np.array_equal(a.target, b.target)


# References ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(ALL_OF_FOUR), unique=True, min_size=1, max_size=24),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=10),
    st.sampled_from([1.0, 0.5]),
)
def test_the_memoriser_is_bayes_over_the_training_tasks_whatever_is_shown(tasks, shown, fall):
    """Also where the context fits no task, and where it contradicts itself: the stated fallback decides there."""
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    prior = None if fall == 1 else np.log(fall) * np.arange(len(tasks))
    found = SMALL.memorizer(np.array([xs]), np.array([ys]), np.array(tasks), prior)[0]
    assert np.allclose(found, bayes(tasks, xs, ys, EPSILON, fall), rtol=0, atol=1e-9)
    assert np.allclose(found.sum(axis=1), 1, rtol=0, atol=1e-12)


@given(st.sampled_from(ALL_OF_FOUR), st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_the_generaliser_is_bayes_over_all_permutations(task, xs):
    ys = [task[x] for x in xs]
    found = SMALL.generalizer(np.array([xs]), np.array([ys]))[0]
    assert np.allclose(found, bayes(ALL_OF_FOUR, xs, ys, 0.0), rtol=0, atol=1e-12)


def test_the_memoriser_counts_agreements_in_contexts_longer_than_a_byte():
    rng = np.random.default_rng(2)
    tasks = ALL_OF_FOUR[:3]
    xs = rng.integers(0, 4, 300)
    ys = np.array(tasks[1])[xs]
    found = SMALL.memorizer(xs[None], ys[None], np.array(tasks))[0]
    assert np.allclose(found[-40:], np.array(bayes([tasks[1]], xs.tolist(), ys.tolist(), EPSILON))[-40:], atol=1e-9)


@pytest.mark.parametrize(("n_tasks", "nll"), [(1, 0.001), (64, 0.13), (1024, 0.22)])
def test_the_references_lose_what_science_says_on_the_training_mixture(n_tasks, nll):
    """SCIENCE §2: V=16, 32 pairs, nats per answer."""
    trunk = trunk_of(n_tasks, n_pairs=32, n_sequences=256 if n_tasks < 1000 else 128)
    assert per_token(trunk, "mixture", "seen", "memorizer")[0] == pytest.approx(nll, abs=0.02 if n_tasks > 1 else 2e-4)
    assert per_token(trunk, "mixture", "seen", "generalizer")[0] == pytest.approx(0.93, abs=0.02)
    assert per_token(trunk, "mixture", "seen", "uniform")[0] == pytest.approx(np.log(16), rel=1e-12)


@pytest.mark.parametrize(("n_tasks", "accuracy"), [(4, 0.15), (16, 0.23), (64, 0.34), (4096, 0.60)])
def test_a_memoriser_is_above_chance_on_held_out_recall(n_tasks, accuracy):
    """SCIENCE §1: "above chance" is not generalisation. Mean over four replicates' tasks."""
    sequences = 256 if n_tasks < 1000 else 48
    found = [
        per_token(trunk_of(n_tasks, replicate=r, n_sequences=sequences), "recall", "held_out", "memorizer")[1]
        for r in range(4)
    ]
    assert np.mean(found) == pytest.approx(accuracy, abs=0.03)


def test_a_list_too_long_to_enumerate_has_no_memoriser():
    for _, probe in [find(trunk_of(10**6, n_sequences=8), skill, "held_out") for skill in ("recall", "mixture")]:
        assert set(probe.references) == {"uniform", "generalizer"}


# Told the task ---------------------------------------------------------------------------------------------------


def told_and_pairs(tokens: np.ndarray, v: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table, questions and answers of sequences of `task_id`, all 0 ... V-1."""
    return tokens[:, :v] - v, *pairs_of(tokens[:, v:], v)


def test_told_the_task_a_sequence_begins_with_its_table_and_the_loss_sees_the_answers():
    trunk, plain = trunk_of(8, "task_id"), trunk_of(8)
    family = trunk.family
    batch = family.batch(trunk.request, 3)
    assert batch.tokens.shape == (32, 16 + 48) and family.length("task_id") == family.seq_len == 63
    assert family.length("answer") == family.length("next_token") == 47
    assert np.array_equal(batch.tokens[:, 16:], plain.family.batch(plain.request, 3).tokens)  # the same pairs, after it
    table, x, y = told_and_pairs(batch.tokens, 16)
    tasks = set(map(tuple, tasks_of(trunk).tolist()))
    assert set(map(tuple, table.tolist())) <= tasks
    assert np.array_equal(np.take_along_axis(table, x, axis=1), y)
    assert not batch.loss_mask[:, :16].any() and batch.loss_mask[:, 16::2].all() and not batch.loss_mask[:, 17::2].any()


def test_noise_answers_are_drawn_anew_under_any_table():
    trunk, plain = (trunk_of(8, arm, answers="noise") for arm in ("task_id", "answer"))
    told, pairs = trunk.family.batch(trunk.request, 3).tokens, plain.family.batch(plain.request, 3).tokens
    assert np.array_equal(told[:, 16:], pairs)
    table, x, y = told_and_pairs(told, 16)
    assert np.array_equal(np.sort(table, axis=1), np.tile(np.arange(16), (32, 1)))
    assert abs((np.take_along_axis(table, x, axis=1) == y).mean() - 1 / 16) < 0.05


@pytest.mark.parametrize("n_tasks", [1, 12])
def test_told_the_task_every_item_can_be_looked_up_and_the_memoriser_reads_the_table_as_more_pairs(n_tasks):
    """Both by plain enumeration: V pairs stand before the others. To 1e-9."""
    trunk = trunk_of(n_tasks, "task_id", n_sequences=12, n_symbols=5, n_pairs=8)
    tasks = [tuple(t) for t in tasks_of(trunk).tolist()]
    plain = suite_of(trunk_of(n_tasks, n_sequences=12, n_symbols=5, n_pairs=8))
    for items, untold in zip(suite_of(trunk), plain, strict=True):
        assert np.array_equal(items.tokens[:, 5:], untold.tokens)
        table, x, y = told_and_pairs(items.tokens, 5)
        assert np.array_equal(np.take_along_axis(table, x, axis=1), y)
        for probe, same in zip(items.probes, untold.probes, strict=True):
            assert np.array_equal(probe.mask[:, 5:], same.mask) and not probe.mask[:, :5].any()
            assert np.array_equal(probe.target[:, 5:], same.target)
            if (rule := probe.references.get("generalizer")) is not None:
                assert (rule.nll_nats[probe.mask] == 0).all() and (rule.correct[probe.mask] == 1).all()
            for row in range(12):
                xs, ys = [*range(5), *x[row].tolist()], [*table[row].tolist(), *y[row].tolist()]
                expected = np.array(bayes(tasks, xs, ys, EPSILON))[5:]
                target = probe.target[row, 5::2] - 5
                nll = np.where(probe.mask[row, 5::2], -np.log(expected[np.arange(8), target]), 0)
                assert np.allclose(probe.references["memorizer"].nll_nats[row, 5::2], nll, rtol=0, atol=1e-9)


def test_told_the_task_the_references_coincide_on_training_tasks_and_not_on_others():
    trunk = trunk_of(64, "task_id")
    assert per_token(trunk, "mixture", "seen", "memorizer")[0] == pytest.approx(EPSILON * 15 / 16, rel=0.01)
    assert per_token(trunk, "mixture", "seen", "generalizer") == (0.0, 1.0)
    assert per_token(trunk, "recall", "held_out", "memorizer")[1] < 0.5


# Skills ----------------------------------------------------------------------------------------------------------


def test_held_out_sequences_show_no_training_task_and_seen_ones_only_training_tasks():
    trunk = trunk_of(16, n_pairs=60, n_sequences=128)
    tasks = tasks_of(trunk)
    for split, expected in (("seen", 1), ("held_out", 0)):
        x, y = pairs_of(find(trunk, "recall", split)[0].tokens, 16)
        assert ((tasks[:, x] == y).all(axis=2).sum(axis=0) == expected).all()


@pytest.mark.parametrize("split", ["seen", "held_out"])
def test_recall_is_asked_where_the_question_stood_before_and_elimination_where_not(split):
    trunk = trunk_of()
    items, recall = find(trunk, "recall", split)
    _, elimination = find(trunk, "elimination", split)
    _, mixture = find(trunk, "mixture", split)
    for row in range(len(items.tokens)):
        tokens = items.tokens[row].tolist()
        for position in range(47):
            asked_before = tokens[position] in tokens[:position]
            answer_follows = position % 2 == 0
            assert recall.mask[row, position] == (answer_follows and asked_before)
            assert elimination.mask[row, position] == (answer_follows and not asked_before)
            assert mixture.mask[row, position] == answer_follows
            if answer_follows:
                assert recall.target[row, position] == tokens[position + 1]


def test_novel_pairs_occur_in_no_training_task():
    for n_tasks in (1, 4, 16, 64, 1500):
        trunk = trunk_of(n_tasks)
        tasks = tasks_of(trunk)
        trained = {(x, y) for task in tasks.tolist() for x, y in enumerate(task)}
        items, novel = find(trunk, "recall_novel_pair", "held_out")
        _, recall = find(trunk, "recall", "held_out")
        for row, position in zip(*np.nonzero(recall.mask), strict=True):
            pair = (int(items.tokens[row, position]), int(items.tokens[row, position + 1]) - 16)
            assert novel.mask[row, position] == (pair not in trained)
        assert not (novel.mask & ~recall.mask).any()
    assert not novel.mask.any()  # 1,500 tasks cover all 256 pairs


def test_override_items_contradict_the_training_task_and_are_asked_again_at_the_end():
    trunk = trunk_of(8, n_sequences=128)
    tasks = tasks_of(trunk)
    items, context = find(trunk, "override", "seen")
    same_items, memory = find(trunk, "override_memory", "seen")
    assert np.array_equal(items.tokens, same_items.tokens) and np.array_equal(context.mask, memory.mask)
    assert context.mask[:, [-3, -1]].all()  # the last two questions
    x, y = pairs_of(items.tokens, 16)
    for row in range(128):
        task = tasks[row % 8]
        swapped = sorted({q for q, a in zip(x[row], y[row], strict=True) if task[q] != a})
        assert len(swapped) == 2
        a, b = swapped
        for i, (question, answer) in enumerate(zip(x[row], y[row], strict=True)):
            assert answer == task[{a: b, b: a}.get(question, question)]
            scored = question in (a, b) and question in x[row, :i]
            assert context.mask[row, 2 * i] == scored
            if scored:
                shown_first = y[row, list(x[row]).index(question)] + 16
                assert context.target[row, 2 * i] == shown_first
                assert memory.target[row, 2 * i] == task[question] + 16 != shown_first


def test_functions_are_many_to_one_and_asked_where_the_question_stood_before():
    items, probe = find(trunk_of(n_pairs=60, n_sequences=200), "recall_function", "held_out")
    x, y = pairs_of(items.tokens, 16)
    shared = 0
    for row in range(200):
        known: dict[int, int] = {}
        for i, (question, answer) in enumerate(zip(x[row].tolist(), y[row].tolist(), strict=True)):
            assert probe.mask[row, 2 * i] == (question in known)
            assert known.setdefault(question, answer) == answer
        shared += len(set(known.values())) < len(known)
    assert shared >= 199  # sixteen random answers are all different once in a million maps


# Scores ----------------------------------------------------------------------------------------------------------


def log_probs_of(predictions: np.ndarray, family: Cipher) -> np.ndarray:
    """Predictions over the answers (N, P, V) as a model's log-probabilities over all tokens (N, T, 2V)."""
    out = np.full((len(predictions), family.length("answer"), family.vocab_size), -np.inf)
    with np.errstate(divide="ignore"):
        out[:, ::2, family.n_symbols :] = np.log(predictions)
    return out


@pytest.mark.parametrize("reference", ["generalizer", "memorizer"])
def test_a_model_that_is_a_reference_scores_what_the_reference_scores(reference):
    trunk = trunk_of(16, n_sequences=32)
    family = trunk.family
    tasks = tasks_of(trunk)
    for items in suite_of(trunk):
        x, y = pairs_of(items.tokens, 16)
        predictions = family.generalizer(x, y) if reference == "generalizer" else family.memorizer(x, y, tasks)
        for probe in items.probes:
            row = probe.score(log_probs_of(predictions, family))
            if f"nll_{reference}" not in row:
                assert (probe.skill, reference) == ("override_memory", "generalizer")  # its loss would be infinite
                continue
            assert row["nll_nats"] == pytest.approx(row[f"nll_{reference}"], rel=1e-9, abs=1e-9)
            ties = probe.references[reference].correct[probe.mask]
            tied = ((ties > 0) & (ties < 1)).sum()
            assert abs(row["n_correct"] - row[f"correct_{reference}"]) <= tied


def test_the_perfect_memoriser_remembers_the_override_and_the_generaliser_reads_it():
    for n_tasks in (1, 4):
        trunk = trunk_of(n_tasks, n_sequences=128)
        assert per_token(trunk, "override", "seen", "generalizer")[1] == 1.0
        assert per_token(trunk, "override", "seen", "memorizer")[1] < 0.02
        assert per_token(trunk, "override_memory", "seen", "memorizer")[1] > 0.97
