"""The record: the journal projected into Parquet and MLflow. Repeatable, never the truth; the only file that imports mlflow.

The publisher is a process of its own, `python -m orchestrator.record.publisher FOLDER --follow`, that tails the journal until its
standard input closes: MLflow being slow, locked or down never slows training. `emergence publish` does the same once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import terminal
from orchestrator.analysis import findings, results, summary
from orchestrator.formatting import number
from orchestrator.record import files, links, recorded, trouble
from orchestrator.record.journal import Event, State, home_folder, read
from orchestrator.record.lease import flock
from orchestrator.record.recorded import trial_evaluations
from orchestrator.record.trouble import RecordProblem
from orchestrator.study.schema import Study
from trainers import budget
from trainers.spec import TrialSpec
from trainers.tasks import Family
from trainers.tasks.decomposition import PREDICTORS

T = TypeVar("T")
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
        with files.aside(folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")


TABLES = ("results.parquet", "runs.parquet")
REPORT_FILE = "report.html"
SUMMARY_FILE, CLAIMS_FILE = "summary.csv", "claims.csv"
"""Every boundary and verdict of a study, a row each, with where its claim stands (`summary.rows`); and every claim that was
counted (`summary.claim_rows`)."""


def write_summary(folder: Path, found: findings.Findings) -> None:
    """Write the tables of results and of claims, each in one rename. Raises OSError."""
    tables = ((SUMMARY_FILE, summary.COLUMNS, summary.rows), (CLAIMS_FILE, summary.CLAIM_COLUMNS, summary.claim_rows))
    for name, columns, rows in tables:
        with files.aside(folder / name) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=columns)
            table.writeheader()
            table.writerows(rows(found))


# MLflow -------------------------------------------------------------------------------------------------------------


def default_tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else an SQLite file in the home folder. Raises ValueError where no URI can name that file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or links.sqlite_uri(home_folder() / "mlflow.db")


PARENT = "study"
"""Key of the parent run; the key of any other run is its trial's id."""
RUNNING_NOTE = "**Running now; what follows is what was known before.**\n\n"
MAX_TAG, MAX_PARAM, MAX_NAME, MAX_METRICS = 5000, 6000, 250, 900
"""What MLflow takes: characters of a tag, a param and a name; metrics in one request."""
_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = {_RETRIES: "1", _TIMEOUT: "20"}
"""Its own 7 tries are minutes before it says no, and its 120 s are long for a server that hangs."""
_FIRST_TIMEOUT = "5"
"""A server that does not answer the first request of all is taken for dead after ten seconds."""
SQLITE_PATIENCE_SECONDS = 5.0
"""How long a locked database is waited for before the first request; MLflow alone would try for minutes."""


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set these variables for a while: MLflow reads them at each request."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _client(tracking_uri: str) -> Any:
    """A client of this store, quiet and not endlessly patient. Raises what is wrong with a store that is a file."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line for each run, among our answers
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    if (path := links.sqlite_file(tracking_uri)) is not None:
        _check_sqlite(path)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # what they log is raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri)


def _check_sqlite(path: Path) -> None:
    """Write to a database and take it back. Raises sqlite3.Error, and OSError where its folder is missing.

    MLflow would try ten times for minutes, and then quote SQL.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
        return
    database = sqlite3.connect(path, timeout=SQLITE_PATIENCE_SECONDS, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE emergence_probe (x)")
        database.execute("ROLLBACK")
    finally:
        database.close()


def _first_contact(client: Any, study_id: str) -> Any:
    """The experiment of a study, None while there is none. The first request: it tells whether anybody is there."""
    is_ours = os.environ.get(_TIMEOUT) == _PATIENCE[_TIMEOUT]
    with _environment({_TIMEOUT: _FIRST_TIMEOUT} if is_ours else {}):
        return client.get_experiment_by_name(study_id)


def _runs_of(client: Any, experiment: str, record_id: str) -> Iterator[Any]:
    """Every run of a record that is not deleted."""
    token = None
    while True:
        mine = f"tags.`emergence.record` = '{record_id}'"
        page = client.search_runs([experiment], mine, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tag(value: Any, limit: int = MAX_TAG) -> str:
    """A value as a tag: of a length that MLflow takes, without characters that a database refuses."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


class MlflowRecord:
    """The projection into MLflow: one experiment a study, one parent run, one child run a trial.

    Runs are found again by their tags, points by (step, timestamp): publishing again changes nothing. `record_id` names
    the journal: two homes that share a server have a parent run each. A copy of a home has the same name, and is the
    same record: give it a store of its own.

    An answer may be lost after MLflow has done the work, and two publishers may have worked side by side. So after any
    error a new record looks for its runs before it makes one, and of several runs of one key the fullest stays.
    """

    def __init__(self, tracking_uri: str, study: Study, record_id: str) -> None:
        self.client = _client(tracking_uri)
        import mlflow.entities

        self._entities = mlflow.entities
        self.study, self.record_id = study, record_id
        found = _first_contact(self.client, study.id)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is not None and tracking_uri.startswith("sqlite") and found.artifact_location != self._artifacts():
            raise RecordProblem(
                f"{tracking_uri} keeps the artifacts of {study.id} in {found.artifact_location}, outside this home: it was "
                "copied or moved. Remove the .db file, which is rebuilt, and publish again"
            )
        self.experiment = found.experiment_id if found else self._create_experiment(tracking_uri)
        self.runs: dict[str, str] = {}  # trial id, or PARENT -> run id
        self._above: dict[str, str] = {}  # trial id -> the parent that its run names
        self._described: set[str] = set()  # keys whose run has its params
        self._settled: set[str] = set()  # trials whose run holds all there will ever be
        self._logged: dict[str, int] = {}  # evaluations already sent, by trial
        self._counts: dict[str, int] = {}  # of trials, as last told
        self._find()

    def _find(self) -> None:
        """Learn which runs there are. Of several for one key all but the fullest are ended and deleted."""
        by_key: dict[str, list[Any]] = {}
        for run in _runs_of(self.client, self.experiment, self.record_id):
            by_key.setdefault(run.data.tags["emergence.key"], []).append(run)
        for key, runs in by_key.items():
            run, *others = sorted(runs, key=_fullest_first)
            for other in others:
                if other.info.status == "RUNNING":
                    self.client.set_terminated(other.info.run_id, "KILLED")
                self.client.delete_run(other.info.run_id)
            if self.runs.get(key, run.info.run_id) != run.info.run_id:  # what we have sent went to the other one
                self._logged.pop(key, None)
                self._described.discard(key)
            self.runs[key] = run.info.run_id
            self._above[key] = run.data.tags.get("mlflow.parentRunId", "")
            if _is_settled(run):
                self._settled.add(key)
            if run.data.params:
                self._described.add(key)

    def _artifacts(self) -> str:
        return (home_folder() / "mlartifacts" / self.study.id).as_uri()

    def _create_experiment(self, tracking_uri: str) -> str:
        place = None
        if not tracking_uri.startswith("http"):  # a server keeps artifacts itself
            place = self._artifacts()
        note = summary.as_markdown(_tag(self.study.question, MAX_TAG // 6))
        tags = {"emergence.question": _tag(self.study.question), "mlflow.note.content": note}
        tags["mlflow.experimentKind"] = "custom_model_development"  # or the UI opens on its pages for agents
        try:
            with _environment({_RETRIES: "0"}):
                return cast(str, self.client.create_experiment(self.study.id, artifact_location=place, tags=tags))
        except Exception:
            found = self.client.get_experiment_by_name(
                self.study.id
            )  # made by another publisher, or for us, and the answer was lost
            if found is None:
                raise
            return cast(str, found.experiment_id)

    def _run(self, key: str, name: str, started: float, tags: dict[str, Any]) -> str:
        """The run of this key, made on first use. Its key is written with it: after any error a new record finds it.

        MLflow's client may not repeat the request by itself: a repeated one makes a second run.
        """
        if key not in self.runs:
            tags = {k: _tag(v) for k, v in tags.items()} | {"emergence.key": key, "emergence.record": self.record_id}
            at = round(started * 1000)
            with _environment({_RETRIES: "0"}):
                run = self.client.create_run(self.experiment, at, tags=tags, run_name=_tag(name, MAX_NAME))
            self.runs[key] = run.info.run_id
        return self.runs[key]

    def _log(self, run: str, points: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        """Log to a run in requests of a size that MLflow takes; params with the first, tags with the last."""
        starts = range(0, max(len(points), 1), MAX_METRICS)
        for start in starts:
            is_last = start == starts[-1]
            self.client.log_batch(
                run,
                metrics=points[start : start + MAX_METRICS],
                params=params if start == 0 else [],
                tags=tags if is_last else [],
            )

    def publish(self, state: State, say: Say | None = None) -> None:
        """Bring every run up to the journal. Raises mlflow's exceptions; call again later."""
        if not state.sessions:
            return
        parent = self._parent(state)
        for key in self._settled - {PARENT}:
            if self._above[key] != parent:
                self.client.set_tag(self.runs[key], "mlflow.parentRunId", parent)
                self._above[key] = parent
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
            self._log(parent, [metric(f"trials/{kind}", float(n), when, 0) for kind, n in counts.items()])
            self._counts = counts

    def _tell_axes(self, parent: str, known: dict[str, str]) -> None:
        """The family and the axes, as params that the UI's columns show. MLflow never changes a param and axes may grow: what
        they have grown to is a param beside the first, and the tags say what they are now."""
        axes = axes_words(self.study)
        params, fresh = {"family": cast(Any, self.study.family).name} | axes, []
        for name, words in params.items():
            words = _tag(words, MAX_PARAM)
            told = [key for key in known if key == name or key.startswith(f"{name}/extended")]
            if not told or known[max(told, key=len)] != words:
                key = name if not told else f"{name}/extended{'_again' * (len(told) - 1)}"
                if len(key) <= MAX_NAME:  # it was extended dozens of times; the tags have what holds now
                    fresh.append(self._entities.Param(key, words))
        tags = [self._entities.RunTag(f"emergence.axes.{axis}", _tag(words)) for axis, words in axes.items()]
        self._log(parent, params=fresh, tags=tags)

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
            tags["emergence.changes"] = ", ".join(changes)
        run = self._run(trial.id, trial.id, started, tags)
        metric, param = self._entities.Metric, self._entities.Param
        is_new = trial.id not in self._described
        params = [param(k, _tag(v, MAX_PARAM)) for k, v in trial_params(trial).items()] if is_new else []
        points = [
            metric(key, value, round(event["time"] * 1000), event["step"])
            for _, event in evaluations[known:]
            for key, value in trial_metrics(event, cast(Family, trial.family).ability_of).items()
        ]
        if self._above.get(trial.id, parent) != parent:
            self.client.set_tag(run, "mlflow.parentRunId", parent)
        self._above[trial.id] = parent
        if points or params:
            self._log(run, points, params)
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
                ended.append(self._entities.RunTag("emergence.reason", _tag(end["reason"], 500)))
            self._log(run, totals, tags=ended if end["status"] != "failed" else ended[1:])
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

    def heal(self) -> None:
        """Look once more for runs that were made twice: MLflow may have made one long after it was asked."""
        self._find()

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
        self._log(parent, points, tags=[self._entities.RunTag("mlflow.note.content", description)])
        self._tell_axes(parent, self.client.get_run(parent).data.params)
        for name in _shown_files(folder):
            self.client.log_artifact(parent, str(folder / name), str(Path(name).parent) if "/" in name else None)
        self.client.set_terminated(parent, "FINISHED", now)


def _fullest_first(run: Any) -> tuple[bool, int, str]:
    """The order in which runs of one key are kept: settled ones, then by how much they hold; the rest by their ids."""
    return not _is_settled(run), -len(run.data.metrics) - len(run.data.params), run.info.run_id


def _is_settled(run: Any) -> bool:
    """Does a trial's run hold all there will ever be? Its status is set last."""
    return bool(run.data.tags.get("emergence.ended")) and run.info.status == "FINISHED"


def _shown_files(folder: Path) -> list[str]:
    """What the record consists of in a study's folder, by their paths in it."""
    figures = [path for path in (folder / "figures").glob("*") if path.is_file() and path.name[0] != "."]
    return [*TABLES, SUMMARY_FILE, CLAIMS_FILE, REPORT_FILE, *sorted(f"figures/{path.name}" for path in figures)]


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
    MLflow's exceptions are raised only after they are written. Raises OSError where the folder cannot be written.
    """
    with open(folder / LOCK_FILE, "w") as lock:
        _wait_for(lock, folder)
        everything, position, target, told, pause = State(), 0, None, "", pause_seconds
        while True:
            ending = not follow or _stdin_closed(pause)
            began = time.monotonic()
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
                told = ""
            except Exception as problem:  # MLflow down or locked: the journal waits, and so does training not
                if (what := trouble.of(problem, tracking_uri).what) != told:
                    print(f"MLflow: {what}", file=sys.stderr, flush=True)
                told, target = what, None
            pause = max(pause_seconds, 10 * (time.monotonic() - began))  # following takes a tenth of a core at most
        for place in (folder, folder / "figures"):
            files.remove_stale(place)
        say("Tables ...")
        found = _write_tables(folder, state, study)
        _mark(folder, {"mlflow": None})
        unpublished: Exception | None = None
        say("MLflow runs ...")
        try:
            target = publish_runs(tracking_uri, study, state, say)
            links.write(folder, target.links(tracking_uri))
        except Exception as problem:  # the report needs no MLflow: it comes first
            unpublished = problem
        say("Report and figures ...")
        _write_report(folder, found, state)
        if unpublished is not None:
            raise unpublished
        assert target is not None
        say("Report, figures and tables to MLflow ...")
        described, metrics = summary.description(found), found.metrics()
        last = target
        after_outages(lambda: last.publish_study(folder, described, metrics, state.last_time))
        if (store := links.sqlite_file(tracking_uri)) is not None and not store.exists():
            raise RecordProblem(f"{store} was removed while it was written; publish again")
        shown = _what_is_shown(folder, state)
        _mark(folder, {"mlflow": shown | {"store": links.store_of(tracking_uri), "record": target.record_id}})


PAUSES_SECONDS = (1.0, 2.0, 4.0)
"""Between attempts to reach an MLflow that hung up or refused."""


def publish_runs(tracking_uri: str, study: Study, state: State, say: Say | None = None) -> MlflowRecord:
    """Bring MLflow's runs up to the journal, also through short outages. Raises what MLflow raises."""

    def attempt() -> MlflowRecord:
        target = MlflowRecord(tracking_uri, study, state.record)
        target.publish(state, say)
        target.heal()
        return target

    return after_outages(attempt)


def after_outages(work: Callable[[], T]) -> T:
    """Do what needs MLflow; again after a short outage. The work finds what is there already, and repeats nothing."""
    for pause in PAUSES_SECONDS:
        try:
            return work()
        except Exception as problem:
            found = trouble.of(problem)
            if not found.is_away or found.is_slow:
                raise
        time.sleep(pause)
    return work()


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
    from orchestrator.report import page  # here: matplotlib takes a second that following does not need

    path = page.write(folder, found, state.sessions, links.of(folder), outside(state, found.study))
    facts = {name: files.facts_of(folder / name) for name in _shown_files(folder)}
    _mark(folder, {"report": _what_is_shown(folder, state) | {"files": facts}})
    return path


LOCK_FILE = "publisher.lock"
SAY_EVERY_SECONDS = 5.0


def _mark(folder: Path, facts: dict[str, Any]) -> None:
    """Note what the record shows by now."""
    links.write_json(folder / links.MARKER_FILE, (links.read_json(folder / links.MARKER_FILE) or {}) | facts)


def _what_is_shown(folder: Path, state: State) -> dict[str, Any]:
    """Which part of which journal, and which study."""
    digest = _journal_hash(folder, state.n_bytes)
    return {"journal_bytes": state.n_bytes, "journal_sha256": digest, "study": state.study}


def _journal_hash(folder: Path, n_bytes: int) -> str:
    digest = hashlib.sha256()
    with open(folder / "journal.jsonl", "rb") as file:
        while n_bytes > 0 and (data := file.read(min(n_bytes, 1 << 20))):
            digest.update(data)
            n_bytes -= len(data)
    return digest.hexdigest()


PUBLISHER_PATIENCE_SECONDS = 300.0
"""How long a driver waits for MLflow at the end; the journal is safe long before."""


def start_publisher(folder: Path, tracking_uri: str, follow: bool) -> subprocess.Popen[bytes]:
    """The publisher process; with `follow` it works until its standard input closes, that is until we end, however."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "orchestrator.record.publisher",
        str(folder),
    ]  # our code, not the current folder's
    code = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])}
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


def finish_publishing(
    publisher: subprocess.Popen[bytes],
    folder: Path,
    say: Say,
    again: Callable[[], subprocess.Popen[bytes]] | None = None,
) -> bool:
    """Let the publisher finish, and say what it is at. False, and why, if MLflow could not be brought up to date.

    One that was killed, maybe long ago, is made good by another, that `again` starts.
    """
    assert publisher.stdin is not None
    path = folder / LOG_FILE
    position = path.stat().st_size
    publisher.stdin.close()
    reasons: list[str] = []
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
                elif line.strip():
                    reasons.append(line)
    except KeyboardInterrupt:
        code = None
    if code is None:
        say(f"The publisher goes on by itself (its log: {path}).")
        return False
    if code < 0 and again is not None:
        say(f"The publisher was ended by signal {-code}; another one does its work ...")
        return finish_publishing(again(), folder, say)
    if code:
        how = f"the publisher was ended by signal {-code}" if code < 0 else f"the publisher ended with code {code}"
        say(f"The record is not up to date: {reasons[-1] if reasons and code > 0 else how}")
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
    """Does the record show all that the journal has, as far as can be seen? Files and MLflow's store are looked at."""
    try:
        return not behind(folder, tracking_uri, study)
    except Exception:
        return False


def behind(folder: Path, tracking_uri: str, study: Study) -> str:
    """Why the record must be written anew; "" where it shows all that the journal has.

    Files are looked at by size and hash, MLflow's store by asking it for the runs. Raises what MLflow raises.
    """
    if not mlflow_is_current(folder, tracking_uri, study):
        return "The record is behind the journal"
    if lost := _lost_files(folder, study):
        return lost
    return _lost_runs(folder, tracking_uri, study)


def mlflow_is_current(folder: Path, tracking_uri: str, study: Study) -> bool:
    """Was all that the journal has published in this store? Looks at our own notes only."""
    marker = _marker(folder, "mlflow")
    return marker.get("store") == links.store_of(tracking_uri) and _shows_all(marker, folder, study)


def report_is_current(folder: Path, study: Study) -> bool:
    """Are tables, report and figures whole, and do they show all that the journal has, for the study as it is now?"""
    return not _lost_files(folder, study)


def _lost_files(folder: Path, study: Study) -> str:
    marker = _marker(folder, "report")
    facts = marker.get("files")
    if not isinstance(facts, dict) or not _shows_all(marker, folder, study):
        return "The record is behind the journal"
    lost = [name for name, fact in facts.items() if not files.is_whole(folder / name, fact)]
    return f"{folder / lost[0]} is missing or damaged" if lost else ""


def _lost_runs(folder: Path, tracking_uri: str, study: Study) -> str:
    """What MLflow's store has lost of a record that was published there."""
    store, shown = links.sqlite_file(tracking_uri), links.of(folder)
    if store is not None and not store.exists():
        return f"MLflow's store {store} is gone"
    if shown is None or shown.get("store") != links.store_of(tracking_uri):
        return f"{folder / links.LINKS_FILE} is missing or damaged"
    client = _client(tracking_uri)
    experiment = _first_contact(client, study.id)
    if experiment is None or experiment.lifecycle_stage != "active":
        return "MLflow no longer has the experiment"
    wanted = shown["runs"] | {PARENT: shown["study"]}
    there: dict[str, str] = {}
    parent = ""
    for run in _runs_of(client, experiment.experiment_id, _marker(folder, "mlflow")["record"]):
        key = run.data.tags["emergence.key"]
        if key in there or run.info.status == "RUNNING":
            return f"MLflow's run of {key} is not as it was published"
        there[key] = links.run_path(experiment.experiment_id, run.info.run_id)
        parent = run.info.run_id if key == PARENT else parent
    if lost := [key for key, path in wanted.items() if there.get(key) != path]:
        return f"MLflow no longer has the run of {lost[0]}"
    kept = {file.path for place in (None, "figures") for file in client.list_artifacts(parent, place)}
    if lost := [name for name in _marker(folder, "report")["files"] if name not in kept]:
        return f"MLflow no longer has the file {lost[0]}"
    return ""


def _marker(folder: Path, part: str) -> dict[str, Any]:
    """A part of the notes on what is published; empty where it is missing, or written by an older version."""
    found = (links.read_json(folder / links.MARKER_FILE) or {}).get(part)
    return found if isinstance(found, dict) else {}


def _shows_all(marker: dict[str, Any], folder: Path, study: Study) -> bool:
    """Do notes speak of the journal as it is, byte for byte, and of the study as it is? A torn last line is no event."""
    journal, position = folder / "journal.jsonl", marker.get("journal_bytes")
    if not isinstance(position, int) or marker.get("study") != study.model_dump(mode="json"):
        return False
    try:
        with open(journal, "rb") as file:
            file.seek(position)
            rest = file.read()
        return b"\n" not in rest and marker.get("journal_sha256") == _journal_hash(folder, position)
    except OSError:
        return False


def is_publishing(folder: Path) -> bool:
    """Is a publisher at work on this folder now, on this machine?"""
    try:
        with open(folder / LOCK_FILE, "rb") as lock:
            return flock(lock.fileno(), fcntl.LOCK_SH) is False
    except OSError:
        return False


def _wait_for(lock: IO[str], folder: Path) -> None:
    """Take the publisher's lock; say so where another publisher has it.

    Some file systems know no locks. Two publishers then may work side by side: each file is whole all the same, and runs
    that are made twice are healed.
    """
    if flock(lock.fileno(), fcntl.LOCK_EX) is False:
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
    parser = argparse.ArgumentParser(prog="python -m orchestrator.record.publisher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tracking-uri", default=default_tracking_uri())
    parser.add_argument("--follow", action="store_true", help="until standard input closes")
    options = parser.parse_args()
    try:
        publish(
            options.folder, options.tracking_uri, options.follow, say=lambda line: print(PROGRESS + line, flush=True)
        )
    except Exception as problem:  # whatever it is, one line says it; tables and report may be written all the same
        print(trouble.of(problem, options.tracking_uri).what, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
