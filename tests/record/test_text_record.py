"""A study of text as it is seen: tables by task, examples, trained tasks by name, MLflow, the page. One tiny study, really trained."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator import open_study
from orchestrator.formatting import on_split
from orchestrator.record import mlflow_runs, publisher, recorded
from orchestrator.record.journal import Journal, State
from orchestrator.record.provenance import session_event
from orchestrator.study.reader import load
from trainers import budget
from trainers.fit.place import Place
from trainers.tasks.text import SPLITS, packed_names, unpacked_names
from trainers.train import run_trunk

HOSTILE = "</details></main><script>document.title = 'run'</script> <img src=x onerror=alert(1)> & \x1b[31m\u202eK_A "
STUDY = """study: words
version: 1
question: Are unseen tasks solved?
family: {name: table, path: tasks.csv, rules: {max_tokens: 1024, on_leak: drop}}
axes: {arm: [answer], n_tasks: [8], compute_flops: [1.2e10, 1.8e10], replicates: 2}
model: {n_layers: 1, d_model: 8, n_heads: 2, d_mlp: 16}
training: {batch_size: 16}
evaluation: {n_sequences: 20, first_flops: 1e11, points_per_decade: 1}
"""


def write_table(path: Path) -> None:
    """Tasks in six clusters; some have hostile prompts, and the names of some are not plain."""
    draw = np.random.default_rng(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["task", "cluster", "prompt", "target"])
        for k in range(24):
            name, first = f"<b>{k}</b>/\N{SNOWMAN} task {k}", f"{HOSTILE}{'x' * 60} " if k % 3 == 0 else ""
            for i in range(10):
                word = "".join(draw.choice(list("abcd"), 4))
                out.writerow([name, f"kind & {k % 6}", f"{first}{k}.{i}: {word}", word[::-1]])


class World:
    """The study, its journal and its projections, in a home of its own."""

    def __init__(self, home: Path) -> None:
        write_table(home / "tasks.csv")
        (home / "words.yaml").write_text(STUDY)
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
