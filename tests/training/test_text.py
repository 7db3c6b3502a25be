"""Text families: packed rows hold whole items, the four item sets are apart, answers are judged whole, measures by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.analysis import measures
from trainers.engine.answers import with_train_items
from trainers.fit.place import Place
from trainers.models.transformer import build
from trainers.shapes import Model
from trainers.spec import Evaluation, Training, TrunkSpec
from trainers.tasks import Request, Rewrite
from trainers.tasks.text import SPLITS, TextItems, packed
from trainers.train import run_trunk

FAMILY = Rewrite(n_letters=6, n_string=6, lengths=(1, 2))


def request(n_tasks=8, replicate=0, n=24, **more):
    return Request(arm="answer", n_tasks=n_tasks, replicate=replicate, batch_size=6, n_sequences=n, **more)


def items_in(batch):
    """The tokens of each segment of a batch, in rows."""
    found = []
    for row, of in zip(batch.tokens, batch.segments, strict=True):
        for segment in range(of.max() + 1):
            if (of == segment).any():
                found.append(row[:-1][of == segment])
    return found


def test_rows_hold_whole_items_and_the_loss_sees_targets_and_their_end_alone():
    draw = np.random.default_rng(0)
    items = FAMILY.drawn(request(), draw, 60)
    end, answer = FAMILY.text_tokens.end, FAMILY.text_tokens.answer
    batch, used = packed(items, 6, FAMILY.seq_len, FAMILY.longest, end, all_tokens=False)
    assert 20 < used < 60
    whole = sorted(tuple(items.item(i)) for i in range(used))
    rows = [tuple(row[row != end]) for row in batch.tokens]
    assert sorted(token for row in rows for token in row) == sorted(t for item in whole for t in item if t != end)
    predicted = batch.tokens[:, 1:][batch.loss_mask]
    assert predicted.tolist().count(end) == used and answer not in predicted
    assert batch.loss_mask.sum() == sum(len(items.target(i)) + 1 for i in range(used))
    every, _ = packed(items, 6, FAMILY.seq_len, FAMILY.longest, end, all_tokens=True)
    assert every.loss_mask.sum() == sum(len(items.item(i)) - 1 for i in range(used))
    for row, of, positions in zip(batch.tokens, batch.segments, batch.positions, strict=True):
        for segment in set(of[of >= 0].tolist()):
            assert positions[of == segment].tolist() == list(range((of == segment).sum())), row


@pytest.mark.parametrize(("n_rows", "share"), [(2, 0.01), (4, 0.2)])
def test_long_items_are_trained_as_often_as_they_are_drawn(n_rows, share):
    """Packing that ended at the first item without room lost the long ones: .6 of their share in two rows."""
    draw, long, n_long, n_all = np.random.default_rng(5), 64, 0, 0
    for _ in range(4000):
        sizes = np.where(draw.random(60) < share, long, 8)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        items = TextItems(np.ones(offsets[-1], np.int64), offsets, np.ones(60, np.int64), np.zeros(60, np.int64))
        _, used = packed(items, n_rows, 63, long, 0, all_tokens=False)
        n_long, n_all = n_long + int((sizes[:used] == long).sum()), n_all + used
    expected = share * n_all
    assert abs(n_long - expected) < 5 * np.sqrt(expected)


def test_a_packed_item_is_predicted_as_if_it_were_alone():
    net = build(Model(n_layers=2, d_model=32, n_heads=4, d_mlp=64, conv_kernel=3), FAMILY.vocab_size, FAMILY.seq_len, 0)
    batch = FAMILY.batch(request(), 0)
    tokens, positions, segments = (torch.from_numpy(a) for a in (batch.tokens[:, :-1], batch.positions, batch.segments))
    with torch.no_grad():
        together = net(tokens, positions=positions, segments=segments)
        for row, segment in ((0, batch.segments[0, 0]), (3, batch.segments[3, 40])):
            at = segments[row] == segment
            alone = net(tokens[row][at][None])[0]
            torch.testing.assert_close(together[row][at], alone, atol=2e-5, rtol=1e-4)


def test_the_four_item_sets_share_no_task_or_item_that_they_may_not_share():
    suite = {items.probes[0].split: items.questions for items in FAMILY.suite(request(n_tasks=12))}
    assert tuple(suite) == SPLITS
    tasks = {split: set(of.tasks) for split, of in suite.items()}
    trained = {c.decode() for c in FAMILY.contents(request(n_tasks=12), "seen", 12)}
    assert tasks["train_items"] <= trained and tasks["seen"] <= trained
    assert not (tasks["held_out"] | tasks["held_out_clusters"]) & trained
    assert not tasks["held_out"] & tasks["held_out_clusters"]
    several = [FAMILY.drawn(request(n_tasks=12), np.random.default_rng(seed), 500) for seed in range(8)]
    drawn = {items.prompt(i).tobytes() for items in several for i in range(500)}
    new = [p.tobytes() for p in suite["seen"].prompts]
    assert len(new) == 24 and sum(p in drawn for p in new) == 0


@pytest.mark.parametrize("n_tasks", [1, 7, 40])
def test_rewriting_is_right_by_hand_and_more_tasks_need_not_be_more_data(n_tasks):
    family = Rewrite(n_letters=6, n_string=6, lengths=(1, 2), items_total=80)
    items = family.drawn(request(n_tasks=n_tasks), np.random.default_rng(1), 4000)
    texts = {
        family.text_tokens.decode(items.prompt(i)): family.text_tokens.decode(items.target(i)) for i in range(4000)
    }
    for prompt, target in texts.items():
        rule, _, string = prompt.partition(":")
        pattern, _, replacement = rule.partition(">")
        at = string.index(pattern)
        assert target == string[:at] + replacement + string[at + len(pattern) :]
    assert len(texts) <= 80 and len(texts) > 0.6 * (80 // n_tasks * n_tasks)


def test_answers_are_right_only_whole_and_ended():
    answers = FAMILY.suite(request())[0].questions
    encode = FAMILY.text_tokens.encode
    right = [encode(target) for _, target in answers.texts]
    ones = np.ones(len(right), bool)
    assert answers.judged(right, ones)[2].all() and not answers.judged(right, ~ones)[1].any()
    longer = [np.append(ids, ids[:1]) for ids in right]
    _, answered, hits = answers.judged(longer, ones)
    assert answered.all() and not hits.any()


def test_ability_and_memory_of_text_by_hand():
    base = {"skill": "solve", "n": 50, "nll_nats": 40.0, "n_sequences": 40, "n_right": 28, "n_answered": 36}
    base |= {"right_frequent": 4, "right_copy": 0, "right_nearest": 10}
    rows = with_train_items([base | {"split": "train_items", "nll_nats": 8.0}, base | {"split": "seen"}])
    assert measures.of_rows("ability", rows, "right")[1] == pytest.approx((28 / 40 - 10 / 40) / (1 - 10 / 40))
    assert measures.of_rows("memory", rows, "right") == [None, pytest.approx(1 - 8 / 40)]
    small = with_train_items(
        [base | {"split": "train_items", "nll_nats": 8.0}, base | {"split": "seen", "nll_nats": 4.9}]
    )
    assert measures.of_rows("memory", small, "right") == [None, None]  # .098 nats a token
    assert measures.of_rows("right", rows, "right")[0] == 0.7 and measures.of_rows("answered", rows, "right")[0] == 0.9
    assert measures.of_rows("ability", [base | {"split": "held_out", "right_copy": 37}], "right") == [None]
    assert measures.of_rows("ability", [base | {"split": "held_out", "n_sequences": 19, "n_right": 3}], "right") == [
        None
    ]


def test_a_text_trunk_trains_answers_and_is_the_same_again():
    trunk = TrunkSpec(
        family=FAMILY, arm="answer", n_tasks=8, replicate=0, model=Model(n_layers=1, d_model=32, n_heads=4, d_mlp=64),
        training=Training(batch_size=4), evaluation=Evaluation(n_sequences=8, points_per_decade=1, first_flops=1e9),
    )  # fmt: skip
    runs = []
    for _ in range(2):
        events = []
        run_trunk(trunk, [2.5e9], Place(), events.extend)
        runs.append([e["rows"] for e in events if e["kind"] == "evaluation"])
    assert runs[0] == runs[1]
    last = {row["split"]: row for row in runs[0][-1]}
    assert set(last) == set(SPLITS)
    for row in last.values():
        assert 0 <= row["n_right"] <= row["n_answered"] <= row["n_sequences"] == 8
        assert row["n_exact"] == row["n_right"]  # greedy answers: right where each token of the target is the likeliest
        assert row["n_written"] == sum(len(one["answer"]) for one in row["examples"])  # of 8 tasks each has one item
        assert row["n_long"] == sum(2 * len(one["answer"]) > FAMILY.n_new for one in row["examples"])
        assert sum(row["tasks"]["n_right"]) == row["n_right"] and sum(row["tasks"]["n"]) == row["n"]
        assert row["examples"][0].keys() == {"task", "prompt", "target", "answer", "answered", "right"}
