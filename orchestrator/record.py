"""The record: the journal projected into Parquet and MLflow. Repeatable, never the truth; the only file that imports mlflow.

The publisher is a process of its own, `python -m orchestrator.record FOLDER --follow`, that tails the journal until its
standard input closes: MLflow being slow, locked or down never slows training. `emergence publish` does the same once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import findings, links, recorded, results, summary, terminal
from orchestrator.journal import Event, State, home_folder, read
from orchestrator.recorded import trial_evaluations
from orchestrator.study import Study
from orchestrator.words import number
from trainers import budget
from trainers.spec import TrialSpec
from trainers.tasks import Family
from trainers.tasks.decomposition import PREDICTORS

Say = Callable[[str], None]
"""Takes one line for the person who waits."""

REFERENCES = ("uniform", "generalizer", "memorizer", "oracle")
_SUMS = ("nll_nats", "p_correct", "brier")
_DISTANCES = ("skl_memorizer", "skl_generalizer", "skl_references")

RESULTS = pa.schema(
    [(name, pa.string()) for name in ("trial", "trunk", "arm", "variant")]
    + [("n_tasks", pa.int64()), ("compute_flops", pa.float64()), ("replicate", pa.int64())]
    + [("step", pa.int64()), ("flops", pa.float64())]
    + [(name, pa.string()) for name in ("phase", "skill", "split")]
    + [("n", pa.int64()), ("n_correct", pa.int64())]
    + [(name, pa.float64()) for name in _SUMS]
    + [("n_sequences", pa.int64()), ("n_exact", pa.int64()), ("p_exact", pa.float64())]
    + [(f"nll_{name}", pa.float64()) for name in REFERENCES]
    + [(f"correct_{name}", pa.float64()) for name in REFERENCES]
    + [("exact_memorizer", pa.float64())]
    + [(name, pa.float64()) for name in (*(f"weight_{name}" for name in PREDICTORS), "unexplained_nats")]
    + [(name, pa.float64()) for name in (*_DISTANCES, "se_ability_gap", "se_memory_gap", "train_loss_nats")]
)
"""One row per (trial, step, skill, split): raw counts and sums, divide when reading; but for `weight_<predictor>` and
`unexplained_nats`, how the model's predictions decompose, and the standard errors. `phase`: on the way along the
`trunk`, at the branch point (`pre_decay`), or at the end of the budget (`final`)."""

_PLACE = {
    "workers": pa.int64(),
    "zero_stage": pa.int64(),
    "micro_batch": pa.int64(),
    "halvings": pa.int64(),
    "recompute": pa.bool_(),
    "offload": pa.bool_(),
    "compiled": pa.bool_(),
}
"""Of how a trial was laid on its workers; `halvings` counts how often the micro-batch was halved for lack of memory."""

RUNS = pa.schema(
    [(name, pa.string()) for name in ("trial", "trunk", "arm", "variant")]
    + [("n_tasks", pa.int64()), ("compute_flops", pa.float64()), ("replicate", pa.int64())]
    + [(name, pa.string()) for name in ("status", "reason", "fingerprint")]
    + [("steps", pa.int64()), ("sequences", pa.int64()), ("distinct_tasks", pa.float64())]
    + [(name, pa.float64()) for name in ("flops_own", "flops_run", "eval_flops", "train_seconds", "eval_seconds")]
    + [("ended", pa.timestamp("ms", tz="UTC")), ("attempt", pa.int64())]
    + list(_PLACE.items())
    + [(name, pa.string()) for name in ("host", "device", "commit", "versions")]
)
"""One row per trial, ended or not: what it cost, where and when it ran. `flops_own` is its budget as spent; `flops_run`
what was run for it beyond the smaller budgets of its trunk, so that a trunk is charged once."""


_ORDER = ("arm", "variant", "n_tasks")

# Projection ---------------------------------------------------------------------------------------------------------


def results_table(state: State, study: Study) -> pa.Table:
    """`results.parquet`: the ended trials of this study, sorted by key. Nothing in it tells when or where it was run."""
    rows = []
    for trial in study.trials():
        if state.trials.get(trial.id, {}).get("status") in ("done", "diverged"):
            rows += [
                row for phase, event in trial_evaluations(state, trial) for row in _result_rows(trial, phase, event)
            ]
    rows.sort(key=lambda r: tuple(r[k] for k in (*_ORDER, "replicate", "compute_flops", "step", "skill", "split")))
    return pa.Table.from_pylist(rows, schema=RESULTS)


def outside(state: State, study: Study) -> int:
    """How many recorded trials the study's axes no longer hold: they stay in the journal and in no table."""
    return len(state.trials.keys() - {trial.id for trial in study.trials()})


def _result_rows(trial: TrialSpec, phase: str, event: Event) -> list[dict[str, Any]]:
    shared = _axes(trial) | {k: event[k] for k in ("step", "flops", "train_loss_nats")} | {"phase": phase}
    return [shared | row for row in event["rows"]]


def _axes(trial: TrialSpec) -> dict[str, Any]:
    axes = {k: getattr(trial, k) for k in ("arm", "variant", "n_tasks", "compute_flops", "replicate")}
    return {"trial": trial.id, "trunk": trial.trunk.id} | axes


def runs_table(state: State, study: Study) -> pa.Table:
    """`runs.parquet`: every trial of the study, what became of it and what it cost."""
    session = state.sessions[-1] if state.sessions else {}
    by_id = {s["session"]: s for s in state.sessions}
    rows = []
    for trial in study.trials():
        event = state.trials.get(trial.id, {})
        origin = by_id.get(event.get("session", ""), session)
        steps = event.get("step")
        sequences = steps * trial.training.batch_size if steps is not None else None
        family = cast(Family, trial.family)
        alike = sequences if family.draws_alike(trial.training) else None  # else their number is not told
        ended = event.get("time")
        rows.append(
            _axes(trial)
            | {
                k: event.get(k)
                for k in ("reason", "flops_own", "flops_run", "eval_flops", "train_seconds", "eval_seconds")
            }
            | {"status": event.get("status", "open"), "fingerprint": trial.fingerprint(), "steps": steps}
            | {"sequences": sequences, "distinct_tasks": distinct_tasks(family.n_distinct(trial.n_tasks), alike)}
            | {"ended": round(ended * 1000) if ended else None, "attempt": event.get("attempt")}
            | {k: event.get(k) for k in ("host", "device", *_PLACE)}
            | {"commit": origin.get("commit"), "versions": json.dumps(origin.get("versions"), sort_keys=True)}
        )
    rows.sort(key=lambda r: tuple(r[k] for k in (*_ORDER, "replicate", "compute_flops")))
    return pa.Table.from_pylist(rows, schema=RUNS)


def distinct_tasks(n_tasks: int, sequences: int | None) -> float | None:
    """Expected number of distinct tasks among so many uniform draws: n (1 - (1 - 1/n)^sequences)."""
    if sequences is None:
        return None
    return -n_tasks * math.expm1(sequences * math.log1p(-1 / n_tasks)) if n_tasks > 1 else 1.0


def write_parquet(folder: Path, state: State, study: Study) -> None:
    """Write both tables, each in one rename. Raises OSError."""
    for name, table in (("results", results_table(state, study)), ("runs", runs_table(state, study))):
        temporary = folder / f".{name}.parquet.{os.getpid()}"
        pq.write_table(table, temporary, compression="zstd")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{name}.parquet")


SUMMARY_FILE, CLAIMS_FILE = "summary.csv", "claims.csv"
"""Every boundary and verdict of a study, a row each, with where its claim stands (`summary.rows`); and every claim that was
counted (`summary.claim_rows`)."""


def write_summary(folder: Path, found: findings.Findings) -> None:
    """Write the tables of results and of claims, each in one rename. Raises OSError."""
    tables = ((SUMMARY_FILE, summary.COLUMNS, summary.rows), (CLAIMS_FILE, summary.CLAIM_COLUMNS, summary.claim_rows))
    for name, columns, rows in tables:
        temporary = folder / f".{name}.{os.getpid()}"
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=columns)
            table.writeheader()
            table.writerows(rows(found))
        os.replace(temporary, folder / name)


# MLflow -------------------------------------------------------------------------------------------------------------


def default_tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else an SQLite file in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home_folder() / 'mlflow.db'}"


def experiment_id(tracking_uri: str, study_id: str) -> str | None:
    """The MLflow experiment of a study, None while there is none. Imports mlflow."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri).get_experiment_by_name(study_id)
    return found.experiment_id if found else None


PARENT = "study"
"""Key of the parent run; the key of any other run is its trial's id."""
RUNNING_NOTE = "**Running now; what follows is what was known before.**\n\n"


class MlflowRecord:
    """The projection into MLflow: one experiment a study, one parent run, one child run a trial.

    Runs are found again by their tags, points by (step, timestamp): publishing again changes nothing. `record_id` names
    the journal: two homes that share a server have a parent run each, and never mix.
    """

    def __init__(self, tracking_uri: str, study: Study, record_id: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its 7 are minutes before it says no,
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # and 120 s is long for a server that hangs
        import mlflow.entities
        from mlflow import MlflowClient

        self._entities = mlflow.entities
        self.client = MlflowClient(tracking_uri)
        self.study, self.record_id = study, record_id
        found = self.client.get_experiment_by_name(study.id)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is not None and tracking_uri.startswith("sqlite") and found.artifact_location != self._artifacts():
            raise RuntimeError(
                f"{tracking_uri} keeps the artifacts of {study.id} in {found.artifact_location}, outside this home: it was "
                "copied or moved. Remove the .db file, which is rebuilt, and publish again"
            )
        self.experiment = found.experiment_id if found else self._create_experiment(tracking_uri)
        self.runs: dict[str, str] = {}  # trial id, or PARENT -> run id
        self._described: set[str] = set()  # keys whose run has its params
        self._settled: set[str] = set()  # trials whose run holds all there will ever be
        self._logged: dict[str, int] = {}  # evaluations already sent, by trial
        self._counts: dict[str, int] = {}  # of trials, as last told
        token = None
        while True:
            mine = f"tags.`emergence.record` = '{record_id}'"
            page = self.client.search_runs([self.experiment], mine, max_results=1000, page_token=token)
            for run in page:
                key = run.data.tags["emergence.key"]
                self.runs[key] = run.info.run_id
                if run.data.tags.get("emergence.ended"):
                    self._settled.add(key)
                if run.data.params:
                    self._described.add(key)
            token = page.token
            if not token:
                break

    def _artifacts(self) -> str:
        return (home_folder() / "mlartifacts" / self.study.id).as_uri()

    def _create_experiment(self, tracking_uri: str) -> str:
        place = None
        if not tracking_uri.startswith("http"):  # a server keeps artifacts itself
            place = self._artifacts()
        tags = {"emergence.question": self.study.question, "mlflow.note.content": self.study.question}
        tags["mlflow.experimentKind"] = "custom_model_development"  # or the UI opens on its pages for agents
        return cast(str, self.client.create_experiment(self.study.id, artifact_location=place, tags=tags))

    def _run(self, key: str, name: str, started: float, tags: dict[str, Any]) -> str:
        """The run of this key, made on first use: its tag is written with it, so a crash cannot make a second one."""
        if key not in self.runs:
            tags = {k: str(v) for k, v in tags.items()} | {"emergence.key": key, "emergence.record": self.record_id}
            run = self.client.create_run(self.experiment, round(started * 1000), tags=tags, run_name=name)
            self.runs[key] = run.info.run_id
        return self.runs[key]

    def publish(self, state: State, say: Say | None = None) -> None:
        """Bring every run up to the journal. Raises mlflow's exceptions; call again later."""
        if not state.sessions:
            return
        parent = self._parent(state)
        unsettled = [trial for trial in self.study.trials() if trial.id not in self._settled]
        told = time.monotonic()
        for i, trial in enumerate(unsettled):
            self._publish_trial(state, trial, parent)
            if say and time.monotonic() - told > SAY_EVERY_SECONDS:
                told = time.monotonic()
                say(f"MLflow: {i + 1} of {len(unsettled)} trials")
        self._tell_counts(parent, state)

    def _parent(self, state: State) -> str:
        tags = {"emergence.kind": "study", "emergence.study": self.study.id}
        return self._run(PARENT, self.study.id, state.sessions[0]["time"], tags)

    def begin(self, state: State) -> None:
        """A session has begun: the parent run says so, and with which axes; an answer that it had stays, and is called older."""
        parent = self._parent(state)
        run = self.client.get_run(parent)
        note = run.data.tags.get("mlflow.note.content", "")
        if note and not note.startswith(RUNNING_NOTE):
            self.client.set_tag(parent, "mlflow.note.content", RUNNING_NOTE + note)
        self._tell_axes(parent, run.data.params)
        self._tell_counts(parent, state)
        if run.info.status != "RUNNING":
            self.client.update_run(parent, status="RUNNING")

    def _tell_counts(self, parent: str, state: State) -> None:
        """How many trials are done, diverged, failed and open, whenever that has changed."""
        ended = [state.trials.get(trial.id, {}).get("status", "open") for trial in self.study.trials()]
        counts = {kind: ended.count(kind) for kind in ("done", "diverged", "failed", "open")}
        if counts != self._counts:
            when, metric = round(state.last_time * 1000), self._entities.Metric
            points = [metric(f"trials/{kind}", float(n), when, 0) for kind, n in counts.items()]
            self.client.log_batch(parent, metrics=points)
            self._counts = counts

    def _tell_axes(self, parent: str, known: dict[str, str]) -> None:
        """The family and the axes, as params that the UI's columns show. MLflow never changes a param and axes may grow: what
        they have grown to is a param beside the first, and the tags say what they are now."""
        axes = axes_words(self.study)
        params = {"family": cast(Any, self.study.family).name} | axes
        for name, words in params.items():
            told = [key for key in known if key == name or key.startswith(f"{name}/extended")]
            if not told or known[max(told, key=len)] != words:
                key = name if not told else f"{name}/extended{'_again' * (len(told) - 1)}"
                self.client.log_param(parent, key, words)
        for axis, words in axes.items():
            self.client.set_tag(parent, f"emergence.axes.{axis}", words)

    def _publish_trial(self, state: State, trial: TrialSpec, parent: str) -> None:
        evaluations = trial_evaluations(state, trial)
        end = state.trials.get(trial.id)
        if not evaluations and end is None:
            return
        known = self._logged.get(trial.id, 0)
        started = evaluations[0][1]["time"] if evaluations else cast(Event, end)["time"]
        session = next((s for s in state.sessions if end and s["session"] == end.get("session")), state.sessions[-1])
        tags = {"emergence.kind": "trial", "emergence.trial": trial.id, "emergence.trunk": trial.trunk.id}
        tags |= {"emergence.fingerprint": trial.fingerprint(), "mlflow.parentRunId": parent}
        tags |= {"mlflow.source.git.commit": session.get("commit") or "unknown", "mlflow.source.name": "emergence run"}
        if changes := session.get("changes"):
            tags["emergence.changes"] = ", ".join(changes)[:5000]
        run = self._run(trial.id, trial.id, started, tags)
        metric, param = self._entities.Metric, self._entities.Param
        is_new = trial.id not in self._described
        params = [param(k, str(v)) for k, v in trial_params(trial).items()] if is_new else []
        points = [
            metric(key, value, round(event["time"] * 1000), event["step"])
            for _, event in evaluations[known:]
            for key, value in trial_metrics(event, cast(Family, trial.family).ability_of).items()
        ]
        for start in range(0, max(len(points), 1), 900):
            self.client.log_batch(run, metrics=points[start : start + 900], params=params if start == 0 else [])
        self._described.add(trial.id)
        self._logged[trial.id] = len(evaluations)
        if end is not None:
            when = round(end["time"] * 1000)
            costs = {k: end.get(k) for k in ("flops_own", "flops_run", "eval_flops", "train_seconds", "eval_seconds")}
            totals = [
                metric(f"trial_cost/{k}", v, when, end.get("step") or 0) for k, v in costs.items() if v is not None
            ]
            ended = [self._entities.RunTag("emergence.ended", end["status"])]
            if end.get("reason"):
                ended.append(self._entities.RunTag("emergence.reason", end["reason"][:500]))
            self.client.log_batch(run, metrics=totals, tags=ended if end["status"] != "failed" else ended[1:])
            good = end["status"] in ("done", "diverged")
            self.client.set_terminated(run, "FINISHED" if good else "FAILED", when)
            if good:
                self._settled.add(trial.id)

    def links(self, tracking_uri: str) -> dict[str, Any]:
        """Where the UI shows the runs: {"base": address, "study": path, "runs": {trial id: path}, "store": which}."""
        runs = {key: links.run_path(self.experiment, run) for key, run in self.runs.items()}
        study = runs.pop(PARENT, None)
        return {
            "base": links.ui_address(tracking_uri),
            "study": study,
            "runs": runs,
            "store": links.store_of(tracking_uri),
        }

    def publish_study(
        self, folder: Path, description: str, metrics: dict[str, list[tuple[int, float]]], when_seconds: float
    ) -> None:
        """What the whole study came to, on the parent run: the answer as its description, figures, tables, report.

        `when_seconds` is the journal's time, so that publishing again adds no points.
        """
        parent = self.runs[PARENT]
        now = round(when_seconds * 1000)
        points = [
            self._entities.Metric(key, value, now, step) for key, series in metrics.items() for step, value in series
        ]
        note = [self._entities.RunTag("mlflow.note.content", description)]
        self.client.log_batch(parent, metrics=points[:1000], tags=note)
        self._tell_axes(parent, self.client.get_run(parent).data.params)
        tables = [folder / SUMMARY_FILE, folder / CLAIMS_FILE]
        for path in sorted(folder.glob("*.parquet")) + sorted(folder.glob("report.html")) + tables:
            self.client.log_artifact(parent, str(path))
        for path in sorted((folder / "figures").glob("*")):
            self.client.log_artifact(parent, str(path), "figures")
        self.client.set_terminated(parent, "FINISHED", now)


def axes_words(study: Study) -> dict[str, str]:
    """The axes of a study in readable numbers: n_tasks, compute_flops, replicates, arms."""
    return {
        "n_tasks": ", ".join(number(n) for n in sorted(study.axes.n_tasks)),
        "compute_flops": ", ".join(number(c) for c in study.budgets),
        "replicates": str(study.axes.replicates),
        "arms": ", ".join(study.lines),
    }


def trial_params(trial: TrialSpec) -> dict[str, Any]:
    """MLflow params of a trial: axes (with logarithms, as the UI's param axes are linear), model, training, family."""
    params: dict[str, Any] = {
        "n_tasks": trial.n_tasks,
        "n_tasks_log10": round(math.log10(trial.n_tasks), 4),
        "compute_flops": trial.compute_flops,
        "compute_flops_log10": round(math.log10(trial.compute_flops), 4),
        "arm": trial.arm,
        "variant": trial.variant,
        "replicate": trial.replicate,
    }
    params["model.n_parameters"] = budget.n_parameters(*budget.shape_of(trial))
    for part in ("family", "model", "training"):
        params |= {f"{part}.{k}": v for k, v in getattr(trial, part).model_dump().items()}
    return params


def trial_metrics(event: Event, ability_of: str = "nll") -> dict[str, float]:
    """MLflow metrics of one evaluation: `<split>/<skill>/accuracy | nll_nats | p_correct | exact_match | ability | memory`, `flops`."""
    metrics = {"flops": float(event["flops"])}
    if event["train_loss_nats"] is not None and math.isfinite(event["train_loss_nats"]):
        metrics["train/loss_nats"] = event["train_loss_nats"]
    rows = [row for row in event["rows"] if row["n"]]
    for measure, name in _METRICS.items():
        for row, value in zip(rows, results.of_rows(measure, rows, ability_of), strict=True):
            if value is not None:
                metrics[f"{row['split']}/{row['skill']}/{name}"] = value
    return metrics


_METRICS = {"accuracy": "accuracy", "loss_nats": "nll_nats", "probability": "p_correct", "exact_match": "exact_match"}
_METRICS |= {"ability": "ability", "memory": "memory"}


# The publisher ------------------------------------------------------------------------------------------------------


def publish(
    folder: Path,
    tracking_uri: str,
    follow: bool = False,
    pause_seconds: float = 2.0,
    say: Say = lambda line: None,
) -> None:
    """Project the journal of a study's folder into Parquet, report and MLflow; with `follow`, until stdin closes.

    One publisher at a time per folder: a second one waits. Parquet and report come first and do not need MLflow;
    MLflow's exceptions are raised only after they are written.
    """
    with open(folder / LOCK_FILE, "w") as lock:
        _wait_for(lock, folder)
        everything, position, target = State(), 0, None
        while True:
            ending = not follow or _stdin_closed(pause_seconds)
            if ending:
                everything = State.of(folder)  # anew: a line that came under an older lease may count no longer
            else:
                events, position = read(folder, position)
                everything.feed(events)
            if everything.study is None:
                if ending:
                    return
                continue
            study = Study.from_record(everything.study)
            state = recorded.of_study(everything, study)
            if ending:
                break
            try:
                if target is None or target.study != study:
                    target = MlflowRecord(tracking_uri, study, state.record)
                    target.begin(state)
                target.publish(state)
            except Exception as problem:  # MLflow down or locked: the journal waits, and so does training not
                print(f"MLflow: {one_line(problem)}", file=sys.stderr, flush=True)
                target = None
        say("Tables ...")
        found = _write_tables(folder, state, study)
        unpublished: Exception | None = None
        say("MLflow runs ...")
        try:
            target = MlflowRecord(tracking_uri, study, state.record)
            target.publish(state, say)
            links.write(folder, target.links(tracking_uri))
        except Exception as problem:  # the report needs no MLflow: it comes first
            unpublished = problem
        say("Report and figures ...")
        _write_report(folder, found, state)
        if unpublished is not None:
            raise unpublished
        assert target is not None
        say("Report, figures and tables to MLflow ...")
        target.publish_study(folder, summary.description(found), found.metrics(), state.last_time)
        _mark(
            folder, {"journal_bytes": state.n_bytes, "tracking_uri": links.store_of(tracking_uri), "study": state.study}
        )


def rewrite(folder: Path, say: Say = lambda line: None) -> Path:
    """Tables, summary and report anew from the journal, without MLflow; returns the path of the report. Raises OSError."""
    everything = State.of(folder)
    assert everything.study is not None
    study = Study.from_record(everything.study)
    state = recorded.of_study(everything, study)
    say("Tables ...")
    found = _write_tables(folder, state, study)
    say("Report and figures ...")
    return _write_report(folder, found, state)


def _write_tables(folder: Path, state: State, study: Study) -> findings.Findings:
    write_parquet(folder, state, study)
    found = findings.read(folder, study)
    write_summary(folder, found)
    return found


def _write_report(folder: Path, found: findings.Findings, state: State) -> Path:
    from orchestrator import report  # here: matplotlib takes a second that following does not need

    path = report.write(folder, found, state.sessions, links.of(folder), outside(state, found.study))
    _mark(folder, {"report": {"journal_bytes": state.n_bytes, "study": state.study}})
    return path


LOCK_FILE, MARKER_FILE = "publisher.lock", "published.json"
SAY_EVERY_SECONDS = 5.0


def _mark(folder: Path, facts: dict[str, Any]) -> None:
    """Note what the record shows by now."""
    links.write_json(folder / MARKER_FILE, (links.read_json(folder / MARKER_FILE) or {}) | facts)


PUBLISHER_PATIENCE_SECONDS = 300.0
"""How long a driver waits for MLflow at the end; the journal is safe long before."""


def start_publisher(folder: Path, tracking_uri: str, follow: bool) -> subprocess.Popen[bytes]:
    """The publisher process; with `follow` it works until its standard input closes, that is until we end, however."""
    command = [sys.executable, "-P", "-m", "orchestrator.record", str(folder)]  # our code, not the current folder's
    code = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    }
    log = open(folder / LOG_FILE, "ab")  # noqa: SIM115 - the child keeps it
    with log:
        return subprocess.Popen(
            ["nice", "-n", "5", *command, *(["--follow"] if follow else [])],
            env=os.environ
            | code
            | {"MLFLOW_TRACKING_URI": tracking_uri},  # not among the arguments: it may hold a password
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the driver; the publisher finishes what it has
        )


def leave_publishing(publisher: subprocess.Popen[bytes]) -> None:
    """Let the publisher finish by itself."""
    assert publisher.stdin is not None
    with contextlib.suppress(OSError):
        publisher.stdin.close()


def finish_publishing(publisher: subprocess.Popen[bytes], folder: Path, say: Say) -> bool:
    """Let the publisher finish, and say what it is at. False, and why, if MLflow could not be brought up to date."""
    assert publisher.stdin is not None
    path = folder / LOG_FILE
    position = path.stat().st_size
    publisher.stdin.close()
    deadline = time.monotonic() + PUBLISHER_PATIENCE_SECONDS
    try:
        code = None
        while code is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = publisher.wait(0.2)
            lines, position = _new_lines(path, position)
            for line in lines:
                if line.startswith(PROGRESS):
                    say(line.removeprefix(PROGRESS))
    except KeyboardInterrupt:
        code = None
    if code is None:
        say(f"The publisher goes on by itself (its log: {path}).")
        return False
    if code:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line and line[0] != PROGRESS[0]]
        say(f"The record is not up to date: {lines[-1] if lines else 'no reason given'}")
        say("The journal has everything; 'emergence publish' rebuilds the record from it.")
    return code == 0


LOG_FILE = "publisher.log"
PROGRESS = "> "
"""Before a line of the publisher's log that tells how far it is."""


def _new_lines(path: Path, start: int) -> tuple[list[str], int]:
    """Whole lines of a file from byte `start` on, and the byte after them."""
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), start + len(whole)


def is_published(folder: Path, tracking_uri: str, study: Study) -> bool:
    """Does the record already show all that the journal has?"""
    marker = links.read_json(folder / MARKER_FILE) or {}
    here = marker.get("tracking_uri") == links.store_of(tracking_uri)
    return here and _shows_all(marker, folder, study) and report_is_current(folder, study)


def report_is_current(folder: Path, study: Study) -> bool:
    """Do tables and report show all that the journal has, for the study as it is now?"""
    marker = links.read_json(folder / MARKER_FILE) or {}
    return _shows_all(marker.get("report", marker), folder, study) and (folder / "report.html").exists()


def _shows_all(marker: dict[str, Any], folder: Path, study: Study) -> bool:
    journal = folder / "journal.jsonl"
    size = journal.stat().st_size if journal.exists() else 0
    return bool(marker.get("journal_bytes") == size and marker.get("study") == study.model_dump(mode="json"))


def is_publishing(folder: Path) -> bool:
    """Is a publisher at work on this folder now, on this machine?"""
    try:
        with open(folder / LOCK_FILE, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _wait_for(lock: IO[str], folder: Path) -> None:
    """Take the publisher's lock; say so where another publisher has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f"Another publisher is at work on {folder.name}; waiting for it ...", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _stdin_closed(seconds: float) -> bool:
    """Wait; true as soon as standard input is at its end: the driver has finished, or died."""
    import select

    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def main() -> int:
    """The publisher process."""
    terminal.prepare()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `ray job stop` sends it to all; our end is our standard input's
    parser = argparse.ArgumentParser(prog="python -m orchestrator.record")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tracking-uri", default=default_tracking_uri())
    parser.add_argument("--follow", action="store_true", help="until standard input closes")
    options = parser.parse_args()
    try:
        publish(
            options.folder, options.tracking_uri, options.follow, say=lambda line: print(PROGRESS + line, flush=True)
        )
    except Exception as problem:  # MLflow's, after tables and report were written; whatever it is, one line tells it
        print(one_line(problem), file=sys.stderr)
        return 1
    return 0


def one_line(problem: Exception) -> str:
    """What went wrong, short, and without the password that MLflow quotes."""
    text = links.without_password(" ".join(str(problem).split()))
    return f"{type(problem).__name__}: {text[:300]}"


if __name__ == "__main__":
    sys.exit(main())
