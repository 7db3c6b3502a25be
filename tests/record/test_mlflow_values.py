"""What MLflow holds of a trial: the page's figures under the page's names, training curves, tasks, weights."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_SECONDS
from mlflow_facts import mlflow_facts
from test_record import SMALL

from orchestrator.analysis import findings
from orchestrator.record import links, mlflow_runs, mlflow_values, publisher
from orchestrator.record.journal import Journal, State
from orchestrator.record.provenance import session_event
from orchestrator.record.recorded import trial_evaluations, trial_telemetry
from orchestrator.study.schema import Study
from trainers import budget
from trainers.checkpoint import POINT
from trainers.fit.place import Place
from trainers.train import run_trunk

WIDE: dict[str, Any] = SMALL | {
    "study": "wide",
    "evaluation": SMALL["evaluation"] | {"n_sequences": 24},  # enough items for an ability
    "axes": {"arm": ["answer", "next_token"], "n_tasks": [4, 64], "compute_flops": [3e8, 6e8], "replicates": 1},
}


class World:
    """A study with weights that ran for real, in a home of its own with an SQLite store."""

    def __init__(self, home: Path) -> None:
        self.study = Study.from_record(WIDE)
        self.folder, self.uri = home / self.study.id, f"sqlite:///{home / 'mlflow.db'}"
        self.events: list[dict[str, Any]] = [session_event(self.study, {})]
        for trunk in self.study.trunks():
            place = Place(weights_folder=str(self.folder / "weights"))
            run_trunk(trunk, self.study.budgets, place, self.events.extend)
        log = Journal(self.folder)
        log.append(self.events)
        log.close()
        publisher.publish(self.folder, self.uri)
        self.record = self.events[0]["session"]

    def runs(self) -> dict[str, Any]:
        """Trial id -> its run."""
        target = mlflow_runs.MlflowRecord(self.uri, self.study, self.record)
        return {key: target.client.get_run(run) for key, run in target.runs.items() if key != mlflow_runs.PARENT}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch, home = pytest.MonkeyPatch(), tmp_path_factory.mktemp("home")
    patch.setenv("EMERGENCE_HOME", str(home))
    yield World(home)
    patch.undo()


def test_the_last_values_without_a_prefix_are_those_of_the_page(world: World) -> None:
    found, runs = findings.read(world.folder, world.study), world.runs()
    skill, mixture = world.study.shown_skills[0], world.study.family.mixture  # type: ignore[attr-defined]
    compared = 0
    for trial in world.study.trials():
        condition, run = world.study.condition_of(trial.arm, trial.variant), runs[trial.id]
        place = (trial.n_tasks, trial.compute_flops)
        shown = {
            "ability": found.results.values("ability", condition, skill, "held_out", *place)[0],
            "accuracy": found.results.values("accuracy", condition, skill, "held_out", *place)[0],
            "memory": found.results.values("memory", condition, mixture, "seen", *place, "pre_decay")[0],
        }
        got = {name: run.data.metrics.get(name) for name in shown}
        assert got == {name: pytest.approx(value) if value is not None else None for name, value in shown.items()}
        compared += sum(value is not None for value in shown.values())
        assert run.info.run_name == mlflow_values.run_name(world.study, trial)
        assert (run.data.tags["n_tasks"], run.data.params["log2_n_tasks"]) == (
            str(trial.n_tasks),
            f"{math.log2(trial.n_tasks):g}",
        )
        assert not {"n_tasks", "compute_flops"} & run.data.params.keys() and "nll_nats" not in str(run.data.metrics)
    assert compared > len(world.study.trials())


def test_runs_sort_as_one_surface_for_each_replicate() -> None:
    axes = {"arm": ["answer"], "n_tasks": [4, 64, 1024, 10**12], "compute_flops": [9e8, 1e10], "replicates": 11}
    study = Study.from_record(SMALL | {"axes": axes, "family": {"name": "cipher", "n_symbols": 16, "n_pairs": 20}})
    found = sorted(study.trials(), key=lambda trial: mlflow_values.order(study, trial))
    assert found == sorted(study.trials(), key=lambda trial: (trial.replicate, trial.n_tasks, trial.compute_flops))


def test_the_same_tasks_are_the_same_dataset_and_others_are_not(world: World) -> None:
    seen: dict[str, set[Any]] = {}
    for key, run in world.runs().items():
        (given,) = run.inputs.dataset_inputs
        trial = next(trial for trial in world.study.trials() if trial.id == key)
        assert given.dataset.name == "cipher" and json.loads(given.dataset.profile)["n_tasks"] == trial.n_tasks
        seen.setdefault(given.dataset.digest, set()).add(trial.n_tasks)
    assert sorted(map(sorted, seen.values())) == [[4], [64]]


# Telemetry ----------------------------------------------------------------------------------------------------------


def telemetry(trunk: str, on: str, steps: list[int], at: float, n_ranks: int = 1) -> dict[str, Any]:
    sample = {"cpu_percent": 90.0, "memory_mb": 700.0, "gpu_percent": None, "gpu_memory_mb": None}
    curves = {name: [float(step) for step in steps] for name in ("loss_nats", "learning_rate", "grad_norm")}
    curves |= {"tokens_per_second": [at] * len(steps), "mfu": [None] * len(steps)}
    place = {"kind": "telemetry", "key": f"{trunk}/telemetry/{on}/{steps[-1]}", "trunk": trunk, "on": on, "time": at}
    return place | curves | {"steps": steps, "times": [at + step for step in steps], "system": [sample] * n_ranks}


def test_curves_and_samples_of_workers_become_points(world: World) -> None:
    """Fails if a trial gets the trunk's points beyond its branch, a point twice, or a value that is missing."""
    trial = world.study.trials()[0]
    name, branch = repr(trial.compute_flops), budget.steps_of(trial, trial.compute_flops).branch
    trunk, alone = trial.trunk.id, {name: [] for name in POINT}  # the load without points
    state = State()
    state.telemetry[trunk] = [
        telemetry(trunk, "trunk", [1, 2], 0.0),
        telemetry(trunk, "trunk", [2, branch, branch + 1], 100.0),  # step 2 is repeated after a kill
        telemetry(trunk, name, [branch + 1], 200.0, n_ranks=2),
        telemetry(trunk, "9e8", [branch + 2], 300.0),
        telemetry(trunk, "trunk", [branch - 1], 50.0) | alone | {"step": branch - 1},
        telemetry(trunk, "trunk", [branch + 1], 60.0) | alone | {"step": branch + 1},
    ]
    points = list(mlflow_values.of_telemetry(trial_telemetry(state, trial)))
    losses = [(p.step, p.time) for p in points if p.name == "train/loss_nats"]
    assert losses == [(1, 1.0), (2, 2.0), (branch, 100.0 + branch), (branch + 1, 201.0 + branch)]
    assert {p.name for p in points if p.name.startswith("train/")} == {
        *("train/loss_nats", "train/learning_rate", "train/grad_norm", "train/tokens_per_second")  # no mfu: None
    }
    system = {(p.name, p.step): p.time for p in points if "cpu" in p.name}
    assert system == {
        ("system/process_cpu_percentage", 2): 2.0,
        ("system/process_cpu_percentage", branch): 100.0 + branch,
        ("system/process_cpu_percentage", branch - 1): 50.0,
        **{(f"system/rank_{rank}/process_cpu_percentage", branch + 1): 201.0 + branch for rank in (0, 1)},
    }


def test_curves_are_published_in_portions_and_again_without_a_change(world: World, tmp_path: Path) -> None:
    """Fails if a portion is sent twice, or a point that a resumed run repeats is another point."""
    trial = world.study.trials()[0]
    branch = budget.steps_of(trial, trial.compute_flops).branch
    curves = [telemetry(trial.trunk.id, "trunk", [1, 2, branch], 1e9), telemetry(trial.trunk.id, "trunk", [2, 3], 2e9)]
    uri, record = f"sqlite:///{tmp_path / 'm.db'}", world.record

    def state_of(events: list[dict[str, Any]], n_curves: int) -> State:
        state = State()
        state.feed(events)
        state.telemetry = {trial.trunk.id: curves[:n_curves]}
        return state

    target = mlflow_runs.MlflowRecord(uri, world.study, record)
    target.publish(state_of([event for event in world.events if event["kind"] != "trial"], 1))
    target.publish(state_of(world.events, 2))
    before = mlflow_facts(uri, world.study.id)
    history = before[trial.id][0]["metrics"]["train/loss_nats"]
    assert history == [(step, float(step)) for step in (1, 2, 3, branch)]
    publisher.publish_runs(uri, world.study, state_of(world.events, 2))
    assert mlflow_facts(uri, world.study.id) == before


# Stops and growth ---------------------------------------------------------------------------------------------------


def test_runs_that_a_stop_left_open_are_killed_and_run_again_when_the_study_goes_on(
    world: World, tmp_path: Path
) -> None:
    """Fails if a run shows RUNNING for ever after a cap or a stop, or KILLED while its trial trains."""
    uri, folder = f"sqlite:///{tmp_path / 'm.db'}", tmp_path / world.study.id
    log = Journal(folder)
    first = next(event for event in world.events if event["kind"] == "evaluation")
    log.append([world.events[0], first])

    def statuses(target: mlflow_runs.MlflowRecord) -> dict[str, str]:
        return {key: target.client.get_run(run).info.status for key, run in target.runs.items()}

    publisher.publish(folder, uri)
    state = State.of(folder)
    target = mlflow_runs.MlflowRecord(uri, world.study, world.record)
    assert len(target.runs) > 1 and set(statuses(target).values()) == {"KILLED"}
    assert publisher.behind(folder, uri, world.study) == ""
    target.begin(state)
    assert set(statuses(target).values()) == {"RUNNING"}
    log.append(world.events[1:])
    log.close()
    publisher.publish(folder, uri)
    assert set(statuses(mlflow_runs.MlflowRecord(uri, world.study, world.record)).values()) == {"FINISHED"}


def test_settled_runs_get_the_names_and_colours_of_grown_axes_and_keep_those_of_a_user(
    world: World, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    narrow = Study.from_record(WIDE | {"axes": WIDE["axes"] | {"arm": ["answer"], "compute_flops": [3e8]}})
    trials = narrow.trials()
    publisher.publish_runs(uri, narrow, _state(world.events))
    for study in (narrow, world.study):
        target = publisher.publish_runs(uri, study, _state(world.events))
        for trial in trials:
            run = target.client.get_run(target.runs[trial.id])
            assert run.info.run_name == mlflow_values.run_name(study, trial)
            assert run.data.tags["mlflow.runColor"] == mlflow_values.colour(study, trial)
    assert mlflow_values.look(narrow, trials[0]) != mlflow_values.look(world.study, trials[0])
    target.client.update_run(target.runs[trials[0].id], name="mine")
    again = publisher.publish_runs(uri, world.study, _state(world.events))
    assert again.client.get_run(again.runs[trials[0].id]).info.run_name == "mine"


# Earlier versions ---------------------------------------------------------------------------------------------------


def test_a_run_of_an_earlier_version_is_completed_once_and_keeps_its_params(world: World, tmp_path: Path) -> None:
    """Fails if it counts as settled, or if a param that has another value now is sent again."""
    uri, trial = f"sqlite:///{tmp_path / 'm.db'}", world.study.trials()[0]
    state = State()
    state.feed(world.events)
    target = mlflow_runs.MlflowRecord(uri, world.study, world.record)
    tags = {"emergence.key": trial.id, "emergence.record": world.record, "emergence.ended": "done"}
    run = target.client.create_run(target.experiment, tags=tags, run_name=trial.id).info.run_id
    for name, value in {"n_tasks": "4", "condition": "an older name"}.items():
        target.client.log_param(run, name, value)
    target.client.set_terminated(run)
    for _ in range(2):
        target = publisher.publish_runs(uri, world.study, state)
        data = target.client.get_run(run).data
        assert target.runs[trial.id] == run and target._settled == {one.id for one in world.study.trials()}
        assert data.params["condition"] == "an older name" and data.params["n_tasks"] == "4"
        assert data.params["log2_n_tasks"] == "2" and "accuracy" in data.metrics
        assert data.tags["mlflow.runName"] == mlflow_values.run_name(world.study, trial)


def test_a_diverged_trial_has_no_result_in_mlflow(world: World, tmp_path: Path) -> None:
    """Fails if the last evaluation before the divergence is left as the trial's result."""
    trial = world.study.trials()[0]
    evaluations = trial_evaluations(_state(world.events), trial)
    step = evaluations[0][1]["step"]
    end = next(e for e in world.events if e.get("trial") == trial.id and e["kind"] == "trial")
    kept = [e for e in world.events if e["kind"] == "session" or (e["kind"] == "evaluation" and e["step"] <= step)]
    state = _state([*kept, end | {"status": "diverged", "step": step + 1}])
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    target = publisher.publish_runs(uri, world.study, state)
    metrics = target.client.get_run(target.runs[trial.id]).data.metrics
    assert math.isnan(metrics["ability"]) and math.isnan(metrics["accuracy"])
    assert math.isfinite(metrics["held_out/recall/accuracy"])


def _state(events: list[dict[str, Any]]) -> State:
    state = State()
    state.feed(events)
    return state


# Weights ------------------------------------------------------------------------------------------------------------


def test_kept_weights_are_logged_models_that_load_and_predict_as_the_trial_did(world: World) -> None:
    """In a process of its own, with nothing but MLflow and the model's address. Accuracy on held-out tasks is that of the record."""
    runs, trial = world.runs(), world.study.trials()[-1]
    outputs = {key: [output.model_id for output in run.outputs.model_outputs] for key, run in runs.items()}
    assert all(len(models) == 1 for models in outputs.values())
    script = f"""
import mlflow, numpy as np
mlflow.set_tracking_uri({world.uri!r})
model = mlflow.pyfunc.load_model("models:/{outputs[trial.id][0]}")
spec = model.get_raw_model().spec
for items in spec.family.suite(spec.request):
    for probe in items.probes:
        if (probe.skill, probe.split) == ("recall", "held_out"):
            row = probe.score(np.log(model.predict(items.tokens[:, :-1])))
            print(row["n_correct"] / row["n"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(runs[trial.id].data.metrics["accuracy"])


def test_weights_at_a_storage_path_are_logged_and_those_at_a_uri_are_named(world: World, tmp_path: Path) -> None:
    session = world.events[0]
    for name, storage in {"path": str(tmp_path / "storage"), "uri": "s3://bucket/place"}.items():
        folder, uri = tmp_path / name / world.study.id, f"sqlite:///{tmp_path / name}.db"
        options = {"keep_weights": True, "storage": storage}
        log = Journal(folder)
        log.append([session | {"options": options}, *world.events[1:]])
        log.close()
        if name == "path":
            shutil.copytree(world.folder / "weights", tmp_path / "storage" / world.study.id / "weights")
        publisher.publish(folder, uri)
        target = mlflow_runs.MlflowRecord(uri, world.study, world.record)
        for trial in world.study.trials():
            run = target.client.get_run(target.runs[trial.id])
            assert len(run.outputs.model_outputs if run.outputs else []) == (name == "path")
            assert run.data.tags["emergence.weights"] == f"{storage}/{world.study.id}/weights/{trial.id}.safetensors"


def test_weights_are_logged_once_and_again_if_a_publisher_died_on_the_way(world: World) -> None:
    def models() -> dict[str, str]:
        with sqlite3.connect(links.sqlite_file(world.uri) or "") as store:
            return dict(store.execute("SELECT name, model_id FROM logged_models WHERE lifecycle_stage = 'active'"))

    before = models()
    publisher.publish(world.folder, world.uri)
    assert models() == before and len(before) == len(world.study.trials())
    name, model = next(iter(before.items()))
    with sqlite3.connect(links.sqlite_file(world.uri) or "") as store:
        store.execute("UPDATE logged_models SET status = 1 WHERE model_id = ?", (model,))
    publisher.publish(world.folder, world.uri)
    after = models()
    assert after[name] != model and {**after, name: model} == before
