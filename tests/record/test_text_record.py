"""A study of text as it is seen: tables by task, examples, trained tasks by name, MLflow, the page. One tiny study, really trained."""

from __future__ import annotations

import csv
import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from browser import DESKTOP, PHONE, Open, chromium, open_page, overlaps, sticking_out

from orchestrator import open_study
from orchestrator.analysis import answer, by_task, means
from orchestrator.analysis.findings import find
from orchestrator.analysis.results import Results
from orchestrator.console import data, progress
from orchestrator.formatting import on_split
from orchestrator.record import mlflow_runs, mlflow_values, publisher, recorded, tables
from orchestrator.record.journal import Journal, State
from orchestrator.record.provenance import session_event
from orchestrator.report import asked, page
from orchestrator.report import tables as report_tables
from orchestrator.study.reader import load
from trainers import budget
from trainers.fit.place import Place
from trainers.tasks.text import SPLITS, packed_names, unpacked_names
from trainers.train import run_trunk

__all__ = ["chromium", "open_page"]  # fixtures

HOSTILE = "</details></main><script>document.title = 'run'</script> <img src=x onerror=alert(1)> & \x1b[31m\u202eK_A "
STUDY = """study: words
version: 1
question: Are unseen tasks solved?
family: {name: table, path: tasks.csv, rules: {max_tokens: 1024, on_leak: drop}}
axes: {arm: [answer], n_tasks: [8], compute_flops: [6.6e9, 8.2e9], replicates: 2}
model: {n_layers: 1, d_model: 8, n_heads: 2, d_mlp: 16}
training: {batch_size: 10}
evaluation: {n_sequences: 20, first_flops: 1e11, points_per_decade: 1}
"""


def write_table(path: Path, held_out: str = "") -> None:
    """Tasks in six clusters; some have hostile prompts, and the names of some are not plain. held_out: the one cluster with held-out
    tasks, two of its four; no prompt is hostile then."""
    draw = np.random.default_rng(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["task", "cluster", "prompt", "target", *(["split"] if held_out else [])])
        for k in range(24):
            name, first = (
                f"<b>{k}</b>/\N{SNOWMAN} task {k}",
                f"{HOSTILE}{'x' * 24} " if k % 3 == 0 and not held_out else "",
            )
            for i in range(10):
                word = "".join(draw.choice(list("abcd"), 4))
                split = "held_out" if k < 12 and f"kind & {k % 6}" == held_out else "train"
                row = [name, f"kind & {k % 6}", f"{first}{k}.{i}: {word}", word[::-1]]
                out.writerow(row + ([split] if held_out else []))


class World:
    """The study, its journal and its projections, in a home of its own."""

    def __init__(self, home: Path, study: str = STUDY, held_out: str = "") -> None:
        write_table(home / "tasks.csv", held_out)
        (home / "words.yaml").write_text(study)
        self.study = load(str(home / "words.yaml"))
        self.folder, self.uri = home / self.study.id, f"sqlite:///{home / 'mlflow.db'}"
        self.events: list[dict[str, Any]] = [session_event(self.study, {})]
        for trunk in self.study.trunks():
            run_trunk(trunk, self.study.budgets, Place(), self.events.extend)
        log = Journal(self.folder)
        log.append(self.events)
        log.close()
        publisher.publish(self.folder, self.uri)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch, home = pytest.MonkeyPatch(), tmp_path_factory.mktemp("home")
    patch.setenv("EMERGENCE_HOME", str(home))
    yield World(home)
    patch.undo()


def test_the_splits_of_text_and_of_other_families_have_words_of_their_own() -> None:
    assert len({on_split(split, of_text=True) for split in SPLITS}) == 4
    assert on_split("seen") != on_split("seen", of_text=True) and on_split("held_out") == on_split("held_out", True)


def test_tables_by_task_add_up_to_the_results_and_examples_are_real_items(world: World) -> None:
    frames = {name: pd.read_parquet(world.folder / f"{name}.parquet") for name in ("results", "tasks", "examples")}
    ends = frames["results"][frames["results"]["phase"] == "final"].set_index(["trial", "split"])
    sums = frames["tasks"].groupby(["trial", "split"])
    counts = ["n_sequences", "n_answered", "n_right", "n"]
    pd.testing.assert_frame_equal(sums[counts].sum(), ends[counts].loc[sums[counts].sum().index])
    np.testing.assert_allclose(sums["sum_nll_nats"].sum(), ends["sum_nll_nats"].loc[sums["n"].sum().index])
    assert set(frames["tasks"]["split"]) == set(SPLITS) == set(frames["examples"]["split"])
    with open(world.folder.parent / "tasks.csv", newline="", encoding="utf-8") as file:
        rows = {(row["task"], row["prompt"][:400], row["target"]) for row in csv.DictReader(file)}
    examples = frames["examples"]
    assert len(examples) > 200 and {*zip(examples["task"], examples["prompt"], examples["target"], strict=True)} <= rows
    assert examples.groupby(["trial", "split", "task"]).size().max() == 3


def test_publishing_again_from_the_journal_alone_gives_the_same_files(world: World, tmp_path: Path) -> None:
    """Fails if anything is read from the prepared table, or if a file changes when it is written again."""
    folder = tmp_path / "elsewhere" / world.folder.name
    folder.mkdir(parents=True)
    shutil.copy(world.folder / "journal.jsonl", folder)
    publisher.rewrite(folder)
    for name in ("results.parquet", "runs.parquet", "tasks.parquet", "examples.parquet", "summary.csv"):
        assert (folder / name).read_bytes() == (world.folder / name).read_bytes(), name


def test_the_trained_tasks_of_every_trial_are_in_the_journal_and_in_mlflow(world: World) -> None:
    state = recorded.of_study(State.of(world.folder), world.study)
    target = mlflow_runs.MlflowRecord(world.uri, world.study, state.record)
    for trial in world.study.trials():
        expected = trial.family.trained_names(trial.request)  # type: ignore[attr-defined]
        assert len(expected) == trial.n_tasks and recorded.trained_tasks(state, trial.trunk.id) == expected
        text = target.client.download_artifacts(target.runs[trial.id], mlflow_runs.TRAINED)
        named = json.loads(Path(text).read_text())
        assert sorted((task, cluster) for cluster, tasks in named.items() for task in tasks) == sorted(expected)
    other = world.events[0] | {
        "kind": "tasks",
        "trunk": "answer/n8/r0",
        "key": "answer/n8/r0/tasks",
        "fingerprint": "x",
    }
    stranger = State()
    stranger.feed([world.events[0], other])
    assert not recorded.of_study(stranger, world.study).tasks  # of other settings


def test_many_names_of_tasks_are_short_in_the_journal() -> None:
    names = [(f"rewrite {k * 7919 % 100_003:x} of kind {k % 37}", f"kind {k % 37}") for k in range(20_000)]
    packed = packed_names(names)
    assert unpacked_names(packed) == names and len(packed) < 12 * len(names)
    assert unpacked_names(packed_names([])) == []


def test_a_trunk_names_its_tasks_once_also_after_a_stop(world: World, tmp_path: Path) -> None:
    trunk, events = world.study.trunks()[0], []
    place = Place(checkpoint_folder=str(tmp_path))
    for _ in range(2):
        run_trunk(trunk, world.study.budgets, place, events.extend, should_stop=lambda: True)
    named = [event for event in events if event["kind"] == "tasks"]
    assert len(named) == 2 and named[0] == named[1]  # the second is that of the checkpoint, which a resumed run repeats


def test_the_frames_hold_the_tables_and_the_headline_of_text(world: World) -> None:
    study = open_study("words@1", world.folder.parent)
    assert len(study.tasks) == len(pd.read_parquet(world.folder / "tasks.parquet"))
    assert set(study.examples.columns) >= {"prompt", "target", "answer", "answered", "right"}
    assert {"ability", "right", "memory"} <= set(study.runs.columns) and "accuracy" not in study.runs.columns
    ends = study.results[(study.results["phase"] == "final") & (study.results["split"] == "held_out")]
    both = study.runs.merge(ends, on="trial", suffixes=("", "_of_row"))
    np.testing.assert_allclose(both["right"], both["n_right"] / both["n_sequences"])


def test_the_floor_stands_beside_the_ability_of_every_cell_and_trial(world: World) -> None:
    """A floor of our own in the place of that of the table."""
    state = recorded.of_study(State.of(world.folder), world.study)
    frame = tables.results_table(state, world.study).to_pandas()
    frame[["sum_right_frequent", "sum_right_nearest"]] = 0.0
    frame["sum_right_copy"] = 2.0 + 3 * frame["replicate"]
    results = pa.Table.from_pandas(frame, preserve_index=False)
    found = find(world.study, results, *(make(state, world.study) for make in (tables.runs_table, tables.tasks_table)))
    cells = means.cells(found.results, "ability", "answer")
    assert [cell.floor for cell in cells[0]] == pytest.approx([0.175, 0.175])  # of 20 items each
    assert "floor 0.17" in str(page.figures(found)[0].panels[0].picture)
    assert by_task.floors(found.results, "answer") == pytest.approx({8: 0.175})
    trials = report_tables.trials(found, {})
    shown = [row[trials.columns.index("Floor")] for row in trials.rows]
    assert shown == [f"0.{100 + 150 * run['replicate']}" for run in found.runs]


def test_mlflow_has_right_answered_and_floor_of_the_four_splits(world: World) -> None:
    target = mlflow_runs.MlflowRecord(world.uri, world.study, State.of(world.folder).record)
    study = open_study("words@1", world.folder.parent)
    ends = study.results[study.results["phase"] == "final"].set_index(["trial", "split"])
    for trial in world.study.trials():
        metrics = target.client.get_run(target.runs[trial.id]).data.metrics
        for split in SPLITS:
            for name in ("right", "answered", "floor", "loss_nats", "accuracy"):
                assert metrics[f"{split}/solve/{name}"] == pytest.approx(ends.loc[(trial.id, split), name])
        assert metrics["right"] == metrics["held_out/solve/right"] and "accuracy" not in metrics
        steps = budget.steps_of(trial, trial.compute_flops)
        assert steps.end >= 50


# Data and leaks -----------------------------------------------------------------------------------------------------


def test_the_session_knows_the_data_so_that_a_report_elsewhere_shows_them(world: World, tmp_path: Path) -> None:
    (one,) = world.events[0]["data"]
    facts = world.study.family.prepared.facts  # type: ignore[attr-defined]
    assert one["conditions"] == ["answer"] and one["facts"]["leaks"] == facts.certificate.lines()
    assert one["facts"]["n_of_set"] == facts.n_of_set and len(json.dumps(one)) < 20_000
    page = html.unescape((world.folder / "report.html").read_text())
    assert all(line in page for line in facts.certificate.lines())
    rows = dict(data.data_rows(world.study))
    assert {"data", "leaks", "padding"} <= rows.keys() and str(facts.n_tasks["train"]) in rows["data"]


def test_the_plan_warns_of_padding_and_names_rows_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items of one length, of which a row holds one and nearly another; fails if the values named do not do."""
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    lines = [f"{k},{'p' * 38}{i}{k:02},t" for k in range(12) for i in range(10, 20)]
    (tmp_path / "tasks.csv").write_text("\n".join(["task,prompt,target", *lines]))
    text = STUDY.replace("tasks.csv, rules", "tasks.csv, row_tokens: 80, rules").replace("n_tasks: [8]", "n_tasks: [4]")
    (tmp_path / "padded.yaml").write_text(text.replace("path: ", "columns: {}, path: "))
    study = load(str(tmp_path / "padded.yaml"))
    trunk = study.trunks()[0]
    share = data.padding(trunk)
    assert share is not None and share == pytest.approx(1 - 45 / 80, abs=0.02)
    (warning,) = [words for name, words in data.data_rows(study) if name == "warning"]
    values = [int(word) for word in warning.partition("row_tokens: ")[2].split() if word.isdigit()]
    assert values
    for n in values:
        family = trunk.family.model_copy(update={"row_tokens": n})
        less = data.padding(trunk.model_copy(update={"family": family}))
        assert less is not None and less <= data.MAX_PADDING


def test_a_trial_without_a_held_out_task_in_its_clusters_has_no_ability_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one task, no held-out task is of its cluster; with 20 some are. Ability is missing, and is no zero."""
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    two = STUDY.replace(
        "n_tasks: [8], compute_flops: [6.6e9, 8.2e9], replicates: 2",
        "n_tasks: [1, 20], compute_steps: [50], replicates: 1",
    )
    two = two.replace("batch_size: 10", "batch_size: 4").replace("first_flops: 1e11", "first_flops: 1e9")
    world = World(tmp_path, two, "kind & 3")
    n_asked = {t.n_tasks: t.family.n_chosen(t.request, "held_out") for t in world.study.trunks()}  # type: ignore[attr-defined]
    assert n_asked == {1: 0, 20: 20}
    results = pd.read_parquet(world.folder / "results.parquet")
    splits = {n: set(of["split"]) for n, of in results.groupby("n_tasks")}
    assert splits == {1: {*SPLITS} - {"held_out"}, 20: {*SPLITS} - {"held_out_clusters"}}
    runs = open_study("words@1", tmp_path).runs.set_index("n_tasks")[["ability", "right"]]
    assert runs.loc[1].isna().all(axis=None) and runs.loc[20].notna().all(axis=None)
    target = mlflow_runs.MlflowRecord(world.uri, world.study, State.of(world.folder).record)
    for trial in world.study.trials():
        metrics = target.client.get_run(target.runs[trial.id]).data.metrics
        assert {"ability" in metrics, "held_out/solve/right" in metrics} == {trial.n_tasks == 20}
        assert ("held_out_clusters/solve/right" in metrics) == (trial.n_tasks == 1)
    surface = progress.Surface(world.study, State.of(world.folder))
    assert [surface.cells["answer", n, world.study.budgets[0]][0] is None for n in (1, 20)] == [True, False]
    ((low,), (high,)) = means.cells(Results.read(world.folder, world.study), "ability", "answer")
    assert (low.value, low.known, high.known) == (None, 0, 1)
    (warning,) = [words for name, words in data.data_rows(world.study) if name == "warning" and "held-out" in words]
    assert "1 task " in warning
    (tmp_path / "words.yaml").write_text(two.replace("[1, 20]", "[1]"))  # none has a value
    few = load(str(tmp_path / "words.yaml"))
    state = recorded.of_study(State.of(world.folder), few)
    make = (tables.results_table, tables.runs_table, tables.tasks_table, tables.examples_table)
    found = find(few, *(table(state, few) for table in make))
    assert page.write(tmp_path, found, world.events[:1]).exists() and answer.sentence(found)
    assert not any(one.answered for one in found.findings if one.question in ("K_A", by_task.THESE, by_task.OTHERS))


# MLflow -------------------------------------------------------------------------------------------------------------


def test_mlflow_has_examples_data_and_leaks_and_publishing_again_changes_nothing(world: World) -> None:
    def everything() -> Any:
        target = mlflow_runs.MlflowRecord(world.uri, world.study, State.of(world.folder).record)
        runs = {key: target.client.get_run(run) for key, run in target.runs.items()}
        files = {key: sorted(f.path for f in target.client.list_artifacts(run)) for key, run in target.runs.items()}
        inputs = {
            key: sorted((i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs)
            for key, run in runs.items()
        }
        tags = {
            key: {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.note")}
            for key, run in runs.items()
        }
        return target, {
            "files": files,
            "inputs": inputs,
            "tags": tags,
            "metrics": {k: r.data.metrics for k, r in runs.items()},
        }

    target, before = everything()
    (one,) = world.events[0]["data"]
    for trial in world.study.trials():
        assert ("tasks.csv", one["facts"]["digest"]) in before["inputs"][trial.id] and len(
            before["inputs"][trial.id]
        ) == 2
        logged = json.loads(before["tags"][trial.id]["mlflow.loggedArtifacts"])
        assert {"path": mlflow_runs.EXAMPLES, "type": "table"} in logged
        assert before["tags"][trial.id]["leaks.exact"] == before["tags"][mlflow_runs.PARENT]["leaks.exact"] == "0"
        table = json.loads(
            Path(target.client.download_artifacts(target.runs[trial.id], mlflow_runs.EXAMPLES)).read_text()
        )
        rows = pd.DataFrame(table["data"], columns=table["columns"])
        frame = pd.read_parquet(world.folder / "examples.parquet")
        frame = frame[frame["trial"] == trial.id].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, frame[table["columns"]])
    (leaks,) = json.loads(Path(target.client.download_artifacts(target.runs["study"], mlflow_runs.LEAKS)).read_text())
    assert leaks["sets"] == one["facts"]["certificate"]["sets"]
    publisher.publish(world.folder, world.uri)
    assert everything()[1] == before


def test_a_table_elsewhere_is_the_same_dataset(world: World) -> None:
    trial = world.study.trials()[0]
    moved = trial.model_copy(update={"family": trial.family.model_copy(update={"path": "elsewhere/copy.parquet"})})
    assert mlflow_values.training_tasks(moved).digest == mlflow_values.training_tasks(trial).digest


# Intervals and the page ---------------------------------------------------------------------------------------------


def test_both_intervals_of_held_out_tasks_are_findings_and_the_wider_one_counts_tasks(world: World) -> None:
    """Answers of our own in the place of the tiny model's: five tasks, two replicates."""
    state = recorded.of_study(State.of(world.folder), world.study)
    results, runs, tasks = (
        make(state, world.study) for make in (tables.results_table, tables.runs_table, tables.tasks_table)
    )
    frame = tasks.to_pandas()
    held_out = frame["split"] == "held_out"
    names = sorted(set(frame[held_out]["task"]))
    frame.loc[held_out, "n_sequences"] = 10
    frame.loc[held_out, "n_right"] = [
        2 * names.index(task) + replicate
        for task, replicate in zip(frame[held_out]["task"], frame[held_out]["replicate"], strict=True)
    ]
    found = find(
        world.study, results, runs, pa.Table.from_pandas(frame, tables.TASKS), tables.examples_table(state, world.study)
    )
    (these,), (others,) = found.of(by_task.THESE), found.of(by_task.OTHERS)
    shares = np.array([[2 * i + r for r in range(2)] for i in range(len(names))]) / 10
    assert these.estimate == others.estimate == pytest.approx(shares.mean()) and len(names) >= 3
    half = 12.706 * np.std(shares.mean(axis=0), ddof=1) / np.sqrt(2)
    assert these.low == pytest.approx(max(0, shares.mean() - half), abs=1e-3)
    (low, high), (lowest, highest) = these.interval(0.5), others.interval(0.5)
    assert lowest is not None and low is not None and high is not None and highest is not None
    assert lowest < low < high < highest
    assert these.sentence != others.sentence and these.n == 2
    never, always = (shares.mean(axis=1) == 0).sum(), (shares.mean(axis=1) == 1).sum()
    (section,) = asked.asked(found)
    assert section.tasks is not None and section.tasks.rows[0][0] == names[-1] and never == always == 0
    lost = held_out & (frame["task"] == frame["replicate"].map({0: names[0], 1: names[-1]}))
    own = pa.Table.from_pandas(frame[~lost], tables.TASKS, preserve_index=False)
    found = find(world.study, results, runs, own, tables.examples_table(state, world.study))
    (one,) = (*found.of(by_task.THESE), *found.of(by_task.OTHERS))  # each replicate has tasks of its own
    means = [shares[1:, 0].mean(), shares[:-1, 1].mean()]
    assert one.question == by_task.OTHERS and one.estimate == pytest.approx(np.mean(means)) and one.has_interval


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_shows_what_was_asked_and_runs_none_of_it(
    world: World, size: tuple[int, int], open_page: Open
) -> None:
    opened = open_page(world.folder / "report.html", size)
    page = opened.page
    assert page.title() == "words@1" and not opened.complaints and len(opened.requests) == 1
    assert len(page.inner_text("body").split()) <= 2500
    section = page.locator("#asked")
    assert section.locator("#item_sets tbody tr").count() == 4 and section.locator("details").count() == 4
    assert not section.locator("details.examples dd").locator("visible=true").count()  # folded
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    shown = set(section.locator("details.examples dd").all_inner_texts())
    examples = pd.read_parquet(world.folder / "examples.parquet")
    last = examples[(examples["compute_flops"] == world.study.budgets[-1]) & (examples["replicate"] == 0)]
    printed = {text.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e") for text in last["prompt"]}
    assert len(shown & printed) >= 24 and any("</details>" in text for text in shown & printed)
    assert section.locator("script, img").count() == 0 and page.locator("main > *").last.get_attribute("id") == "sure"
    assert page.locator("#data li").count() >= 3
    assert overlaps(page) == [] and sticking_out(page) == []
