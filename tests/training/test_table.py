"""The family `table`: its contract, nested tasks spread over clusters, mixtures, scorers, and training that resumes to the bit."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from trainers.__main__ import main
from trainers.data import folders, store
from trainers.data.sources import TableError
from trainers.fit.place import Place
from trainers.shapes import Model
from trainers.spec import Evaluation, Training, TrunkSpec
from trainers.tasks import Request, Table, conformance, family_from, table
from trainers.train import run_trunk

LETTERS = "abcdefghijkl"


def write(path, n_tasks=30, n_items=12, n_clusters=5):
    """A table of tasks `x to y`, in clusters, with as many items each, but the first has one alone."""
    draw = np.random.default_rng(3)
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["task", "cluster", "prompt", "target", "weight"])
        for k in range(n_tasks):
            a, b = LETTERS[k % 12], LETTERS[(k // 12 + k % 12 + 1) % 12]
            for _ in range(n_items if k else 1):
                text = "".join(draw.choice(list(LETTERS), 7)) + a
                row = [f"{a} to {b}", f"kind {k % n_clusters}", f"{a}>{b}: {text}", text.replace(a, b), 1 + k % 3]
                out.writerow(row)
    return path


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    write(folder / "tasks.csv")
    (folder / "lenient.py").write_text("def judge(prompt, target, answer):\n    return len(answer) > 0 or None\n")

    def family(**given):
        given = {"name": "table", "path": "tasks.csv", **given}
        return family_from(conformance.family_named("table").resolved(given, folder, folder / "data", print))

    return family


def request(n_tasks=8, replicate=0, n=24, batch_size=6):
    return Request(arm="answer", n_tasks=n_tasks, replicate=replicate, batch_size=batch_size, n_sequences=n)


@pytest.mark.parametrize("given", [{}, {"n_clusters": 2}, {"items_per_task": 3, "weights": "proportional"}])
def test_a_table_keeps_the_contract(make, given):
    conformance.conforms(make(**given))


def test_a_trial_of_fewer_tasks_has_the_first_ones_and_they_spread_over_clusters(make):
    family = make()
    for replicate in (0, 1):
        order = family.train_tasks(replicate)
        assert sorted(order.tolist()) == [k for k, part in enumerate(family.prepared.part) if part == "train"]
        for n in (4, 8, 12):
            clusters = Counter(family.prepared.clusters[order[:n]].tolist())
            assert max(clusters.values()) - min(clusters.values()) <= 1, (n, clusters)
    assert family.train_tasks(0).tolist() != family.train_tasks(1).tolist()
    few = make(n_clusters=2)
    assert len({cluster for _, cluster in few.trained_names(request(n_tasks=few.n_tasks_max))}) == 2


def test_held_out_tasks_are_of_trained_clusters_and_the_others_a_set_of_their_own(make):
    family = make()
    part, clusters = np.array(family.prepared.part), family.prepared.clusters
    whole = set(np.flatnonzero(part == "held_out_clusters").tolist())
    for given in (family, make(n_clusters=2)):
        for n_tasks, replicate in ((1, 0), (3, 1), (8, 0), (given.n_tasks_max, 1)):
            asked = request(n_tasks=n_tasks, replicate=replicate, n=1000)
            trained = set(clusters[given.train_tasks(replicate)[:n_tasks]].tolist())
            tasks = {split: given.chosen(asked, split).tasks for split in ("held_out", "held_out_clusters")}
            of = {split: set(clusters[those].tolist()) for split, those in tasks.items()}
            assert of["held_out"] <= trained and not of["held_out_clusters"] & trained
            both = np.concatenate([*tasks.values()])
            assert set(both.tolist()) == set(np.flatnonzero(part != "train").tolist())  # as the certificate compared
            assert len(both) == sum(family.prepared.n_new[task] for task in set(both.tolist()))
            first = [task in whole for task in tasks["held_out_clusters"].tolist()]
            assert first == sorted(first, reverse=True) and sum(first) == family.prepared.n_new[[*whole]].sum()
            few = given.chosen(asked._replace(n_sequences=5), "held_out_clusters").tasks.tolist()
            assert few == family.chosen(request(n=5), "held_out_clusters").tasks.tolist()
    sets = family.prepared.facts.certificate.sets
    assert {name: found.n_items for name, found in sets.items() if name != "new_items"} == {
        name: family.prepared.n_new[part == name].sum() for name in ("held_out", "held_out_clusters")
    }


def test_without_clusters_every_trial_is_asked_all_held_out_tasks(tmp_path):
    rows = [f"t{k},p{k}.{i},{i}" for k in range(9) for i in range(9)]
    (tmp_path / "plain.csv").write_text("\n".join(["task,prompt,target", *rows]))
    given = {"name": "table", "path": "plain.csv", "rules": {"held_out_tasks": 0.5}}
    family = family_from(Table.resolved(given, tmp_path, tmp_path / "data", print))
    few, many = (family.chosen(request(n_tasks=n), "held_out") for n in (1, family.n_tasks_max))
    assert len(set(few.tasks.tolist())) == 4 and np.array_equal(few.flat, many.flat)
    assert family.n_chosen(request(), "held_out_clusters") == 0


def test_no_held_out_item_or_new_item_is_ever_drawn(make):
    family = make()
    drawn = family.drawn(request(n_tasks=family.n_tasks_max), np.random.default_rng(0), 20_000)
    trained = {drawn.item(i).tobytes() for i in range(len(drawn))}
    assert len(trained) == family.prepared.n_train[family.train_tasks(0)].sum()
    for items in family.suite(request(n_tasks=family.n_tasks_max, n=500)):
        asked = [row[row != family.tokens.end].tobytes() for row in items.tokens]
        found = sum(np.append(np.frombuffer(a, np.int64), family.tokens.end).tobytes() in trained for a in asked)
        assert found == (len(asked) if items.probes[0].split == "train_items" else 0)


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, lambda n, w: np.ones(len(n))),
        ({"weights": "proportional"}, lambda n, w: n),
        ({"weights": "proportional", "cap": 2}, lambda n, w: np.minimum(n, 2)),
        ({"weights": "given"}, lambda n, w: w),
        ({"weights": "given", "temperature": 2}, lambda n, w: np.sqrt(w)),
        ({"items_per_task": 2, "weights": "proportional"}, lambda n, w: np.minimum(n, 2)),
    ],
)
def test_tasks_are_drawn_by_their_weights(make, given, share):
    family, n = make(**given), 40_000
    asked = request(n_tasks=12)
    tasks = family.train_tasks(0)[:12]
    drawn = family.drawn(asked, np.random.default_rng(1), n)
    expected = share(family.prepared.n_train[tasks].astype(float), family.prepared.weights[tasks])
    counts = np.array([(drawn.tasks == task).sum() for task in tasks])
    chi2 = ((counts - n * expected / expected.sum()) ** 2 / (n * expected / expected.sum())).sum()
    assert chi2 < 45  # 11 degrees of freedom: above 45 in one of 200,000


def test_more_tasks_need_not_be_more_items(make):
    family = make(items_total=24)
    for n_tasks in (4, 12):
        drawn = family.drawn(request(n_tasks=n_tasks), np.random.default_rng(0), 5000)
        assert len({drawn.item(i).tobytes() for i in range(5000)}) <= 24


def test_a_scorer_of_ones_own_judges_and_its_source_is_identity(make, tmp_path):
    family = make(scorer="lenient:judge")
    answers = family.suite(request())[0].questions
    n = len(answers.tasks) // 2
    judged = answers.judged([np.array([65]), np.array([], np.int64)] * n, np.ones(2 * n, bool))
    assert judged[1].tolist() == [True, False] * n == judged[2].tolist()
    assert family.scorer_digest and family.scorer_digest != make().scorer_digest
    trunks = [TrunkSpec(family=f, arm="answer", n_tasks=4, replicate=0) for f in (family, make())]
    assert trunks[0].fingerprint() != trunks[1].fingerprint()
    for bad in ("lenient", "lenient:nothing", "nowhere_at_all:judge"):
        with pytest.raises(TableError) as refused:
            make(scorer=bad)
        assert "\n" not in str(refused.value) and str(refused.value).startswith("scorer: ")


@pytest.mark.parametrize(
    ("body", "allowed"),
    [("1", False), ("0.5", False), ("__import__('numpy').bool_(target == answer)", True), ("target == answer", True)],
)
def test_a_scorer_answers_true_false_or_none_and_nothing_else(make, body, allowed, tmp_path):
    (tmp_path / "mine.py").write_text(f"def judge(prompt, target, answer):\n    return {body}\n")
    write(tmp_path / "tasks.csv")
    given = {"name": "table", "path": "tasks.csv", "scorer": "mine:judge"}
    if allowed:
        family = family_from(Table.resolved(given, tmp_path, tmp_path / "data", print))
        assert family.judge()("p", "a", "a") is True and family.judge()("p", "a", "b") is False
    else:
        with pytest.raises(TableError, match="returned"):
            Table.resolved(given, tmp_path, tmp_path / "data", print)


def test_a_scorer_that_ends_the_process_and_a_column_named_twice_are_refused_in_a_line(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\n\ndef judge(prompt, target, answer):\n    sys.exit(3)\n")
    write(tmp_path / "tasks.csv")
    for more in ({"scorer": "mine:judge"}, {"columns": {"prompt": "target"}}):
        with pytest.raises(ValueError) as refused:
            Table.resolved({"name": "table", "path": "tasks.csv", **more}, tmp_path, tmp_path / "data", print)
        assert "SystemExit" in str(refused.value) or "'target'" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("1 // (answer == target) == 1", "answer '': ZeroDivisionError"),
        ("False", "accepts none of 8 targets"),
        ("None", "accepts none of 8 targets"),
        ("answer == prompt and answer != target", "accepts none of 8 targets"),
    ],
)
def test_a_scorer_that_fails_on_wrong_answers_or_accepts_no_target_is_refused(body, problem, tmp_path):
    (tmp_path / "mine.py").write_text(f"def judge(prompt, target, answer):\n    return {body}\n")
    write(tmp_path / "tasks.csv")
    with pytest.raises(TableError, match=problem) as refused:
        Table.resolved(
            {"name": "table", "path": "tasks.csv", "scorer": "mine:judge"}, tmp_path, tmp_path / "data", print
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "body", ["    while True:\n        pass\n", "    return re.match('(a|a)*c', 'a' * 60) is None\n"]
)
def test_a_scorer_that_does_not_come_to_an_end_is_refused_with_what_it_was_asked(body, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "SCORER_SECONDS", 0.2)
    (tmp_path / "mine.py").write_text(f"import re\n\ndef judge(prompt, target, answer):\n{body}")
    write(tmp_path / "tasks.csv")
    given = {"name": "table", "path": "tasks.csv", "scorer": "mine:judge"}
    with pytest.raises(TableError, match=r"has not judged prompt .*, answer '' within 0\.2 s") as refused:
        Table.resolved(given, tmp_path, tmp_path / "data", print)
    assert "\n" not in str(refused.value)
    (tmp_path / "mine.py").write_text("while True:\n    pass\n")
    with pytest.raises(TableError, match=r"has not loaded within 0\.2 s"):
        Table.resolved(given, tmp_path, tmp_path / "data", print)


def test_a_stop_need_not_wait_until_all_answers_are_judged(make):
    asked = make().suite(request())[0].questions
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    n = len(asked.prompts)
    with pytest.raises(InterruptedError):
        asked.repeated(np.arange(n).repeat(20)).judged([np.array([1])] * 20 * n, np.ones(20 * n, bool), stop)


def test_a_scorer_that_fails_in_a_run_is_named_with_what_it_was_asked(tmp_path):
    body = "    return answer == target if len(answer) < 30 else 1 // 0 == 1\n"
    (tmp_path / "mine.py").write_text(f"def judge(prompt, target, answer):\n{body}")
    write(tmp_path / "tasks.csv")
    given = {"name": "table", "path": "tasks.csv", "scorer": "mine:judge"}
    judge = family_from(Table.resolved(given, tmp_path, tmp_path / "data", print)).judge()
    with pytest.raises(TableError, match=r"scorer: mine:judge fails on prompt 'p'.* answer 'x+': ZeroDivisionError"):
        judge("p", "t", "x" * 30)


def test_a_trial_of_a_table_runs_alone(tmp_path):
    write(tmp_path / "tasks.csv")
    trial = {"family": {"name": "table", "path": "tasks.csv"}, "arm": "answer", "n_tasks": 4, "replicate": 0}
    trial |= {"model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 16}, "compute_flops": 1e9}
    trial |= {"training": {"batch_size": 2}, "evaluation": {"n_sequences": 4}}
    (tmp_path / "trial.json").write_text(json.dumps(trial))
    assert main([str(tmp_path / "trial.json"), "--events", str(tmp_path / "e.jsonl")]) == 0
    assert '"status": "done"' in (tmp_path / "e.jsonl").read_text()
    (tmp_path / "trial.json").write_text(json.dumps(trial | {"family": {"name": "table", "path": "none.csv"}}))
    assert main([str(tmp_path / "trial.json")]) == 2


def test_weights_that_are_not_there_or_change_nothing_are_refused(make, tmp_path):
    (tmp_path / "plain.csv").write_text("\n".join(["task,prompt,target", *(f"t{i % 9},p{i},{i}" for i in range(90))]))
    with pytest.raises(TableError, match=r"^weights: "):
        Table.resolved({"name": "table", "path": "plain.csv", "weights": "given"}, tmp_path, tmp_path / "data", print)
    with pytest.raises(ValueError, match="temperature"):
        make(temperature=2)
    assert make(items_total=5).n_tasks_max == 5


def test_memory_compares_as_many_training_items_as_new_ones_of_each_task(make):
    family = make()
    suite = {
        items.probes[0].split: items.questions for items in family.suite(request(n_tasks=family.n_tasks_max, n=500))
    }
    assert Counter(suite["train_items"].tasks) == Counter(suite["seen"].tasks)


def test_the_same_rows_elsewhere_in_another_format_are_the_same_trial(make, tmp_path):
    import pandas as pd

    write(tmp_path / "other.csv")
    pd.read_csv(tmp_path / "other.csv").to_parquet(tmp_path / "renamed.parquet")
    kind = conformance.family_named("table")
    other = family_from(kind.resolved({"name": "table", "path": "renamed.parquet"}, tmp_path, tmp_path / "data", print))
    trunks = [TrunkSpec(family=f, arm="answer", n_tasks=4, replicate=0) for f in (make(), other)]
    assert trunks[0].fingerprint() == trunks[1].fingerprint() and trunks[0].family.path != trunks[1].family.path


def trunk_of(family):
    return TrunkSpec(
        family=family, arm="answer", n_tasks=8, replicate=0, model=Model(n_layers=1, d_model=32, n_heads=4, d_mlp=64),
        training=Training(batch_size=4), evaluation=Evaluation(n_sequences=8, points_per_decade=2, first_flops=1e9),
    )  # fmt: skip


def results(events):
    return {e["key"]: e["rows"] for e in events if e["kind"] == "evaluation"}


def test_a_run_that_stops_at_any_point_and_goes_on_ends_as_if_it_had_not(make, tmp_path):
    trunk, budgets = trunk_of(make()), [3e9, 6e9]
    whole: list = []
    run_trunk(trunk, budgets, Place(), whole.extend)
    calls = [0]
    for stop_at in (7, 60):
        events: list = []
        place = Place(checkpoint_folder=str(tmp_path / str(stop_at)), checkpoint_every_seconds=0)
        for _ in range(400):
            calls[0] = 0

            def stop(at=stop_at):
                calls[0] += 1
                return calls[0] > at

            if run_trunk(trunk, budgets, place, events.extend, stop) == "finished":
                break
            stop_at += 400
        assert results(events) == results(whole)


def test_data_behind_a_uri_is_copied_once_and_a_damaged_copy_is_refused(make, tmp_path, monkeypatch):
    family = make(scorer="lenient:judge")
    far = tmp_path / "far"
    for digest in family.data_digests:
        folders.put(store.folder_of(digest), far.as_uri())
    monkeypatch.setattr(store, "_ROOTS", [far.as_uri()])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = store.folder_of(family.content.digest)
    assert far not in folder.parents and store.folder_of(family.content.digest) == folder
    shutil.rmtree(folder)
    shard = next((far / family.content.digest).glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    with pytest.raises(TableError, match=shard.name):
        store.folder_of(family.content.digest)
