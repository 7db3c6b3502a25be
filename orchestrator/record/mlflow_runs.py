"""A study's runs in MLflow: one run a trial, found by its key before it is made."""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from orchestrator.analysis import summary
from orchestrator.analysis.findings import Findings
from orchestrator.files import home_folder
from orchestrator.formatting import number
from orchestrator.record import links, mlflow_models, mlflow_values, mlflow_view
from orchestrator.record.journal import Event, State
from orchestrator.record.mlflow_values import Point
from orchestrator.record.recorded import trained_tasks, trial_evaluations, trial_telemetry
from orchestrator.record.tables import SUMMARY_FILE, TABLES, TABLES_OF_REWARD, TABLES_OF_TEXT, outcome_of
from orchestrator.record.trouble import RecordProblem
from orchestrator.study.schema import Study
from trainers import budget, checkpoint
from trainers.spec import TrialSpec
from trainers.tasks import Family

Say = Callable[[str], None]
"""Shows one line to the user."""

REPORT_FILE = "report.html"

PICTURE = "figures/surface.svg"
"""The surface, shown in MLflow's description."""

EVALUATIONS = "evaluations.json"
"""A trial's last evaluation as a table that MLflow compares between runs (`mlflow_values.table_of`)."""

EXAMPLES = "examples.json"
"""Items with the free answers of a trial of text, as a table that MLflow compares between runs."""

TRANSCRIPTS = "transcripts.json"
"""Answers that a trial of arm `reward` sampled along its training, as such a table."""

LEAKS = "leaks.json"
"""The leak certificates of a study's data, on its parent run."""

TRAINED = "tasks.json"
"""The training tasks of a trial by name, cluster -> tasks. Of families that name them."""

RUN_TYPE = "evaluation"
"""`mlflow.runType` of trials: the UI unfolds the parent of such runs on a browser's first visit."""

SAY_EVERY_SECONDS = 5.0
"""Interval between two progress lines."""


def default_tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else an SQLite file in the home folder. Raises ValueError if no URI can name that file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or links.sqlite_uri(home_folder() / "mlflow.db")


PARENT = "study"
"""Key of the parent run. Every other run has its trial's id as key."""

MAX_TAG, MAX_PARAM, MAX_NAME, MAX_METRICS = 5000, 6000, 250, 900
"""MLflow's limits: characters of a tag, a param and a name; metrics in one request."""

LAYOUT = "2"
"""Tag `emergence.layout` of a trial's final run. Runs of an earlier version lack it and are completed once."""

_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"

_PATIENCE = {_RETRIES: "1", _TIMEOUT: "20"}
"""MLflow's default of 7 tries takes minutes to fail. Its 120 s are too long for a server that hangs."""

_FIRST_TIMEOUT = "5"
"""A server that does not answer the first request counts as down, after two tries of 5 s."""

SQLITE_PATIENCE_SECONDS = 5.0
"""Wait for a locked database before the first request. MLflow alone would try for minutes."""


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set these variables inside the block: MLflow reads them at each request."""
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


def connect(tracking_uri: str) -> Any:
    """A quiet client of this store with short timeouts. Raises sqlite3.Error or OSError for an unusable SQLite file."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # else a line for each run
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    if (path := links.sqlite_file(tracking_uri)) is not None:
        _check_sqlite(path)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # their errors are raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri)


def _check_sqlite(path: Path) -> None:
    """Write to a database and roll back. Raises sqlite3.Error, and OSError if its folder is missing or not writable.

    MLflow would try ten times, for minutes, and then quote SQL.
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


def first_contact(client: Any, study_id: str) -> Any:
    """The experiment of a study, or None. As the first request it shows whether the server answers."""
    is_ours = os.environ.get(_TIMEOUT) == _PATIENCE[_TIMEOUT]
    with _environment({_TIMEOUT: _FIRST_TIMEOUT} if is_ours else {}):
        return client.get_experiment_by_name(study_id)


def runs_of(client: Any, experiment: str, record_id: str) -> Iterator[Any]:
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
    """A value as a tag: within MLflow's length limit, without characters that a database refuses."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


class MlflowRecord:
    """The projection into MLflow: one experiment a study, one parent run, one child run a trial.

    Runs are found by their tags, points by (step, timestamp). Publishing again therefore changes nothing. `record_id`
    identifies the journal: two homes on one server have separate parent runs. A copy of a home has the same id and is
    the same record. It needs a store of its own.

    MLflow may do its work and lose the answer, and two publishers may work side by side. After any error a new record
    therefore looks for its runs before it makes one. If one key has several runs, the fullest stays.
    """

    def __init__(self, tracking_uri: str, study: Study, record_id: str) -> None:
        self.client = connect(tracking_uri)
        import mlflow.entities

        self._entities = mlflow.entities
        self.study, self.record_id, self.tracking_uri = study, record_id, tracking_uri
        found = first_contact(self.client, study.id)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is not None and tracking_uri.startswith("sqlite") and found.artifact_location != self._artifacts():
            raise RecordProblem(
                f"{tracking_uri} keeps the artifacts of {study.id} in {found.artifact_location}, outside this home: it was "
                "copied or moved. Remove the .db file, which is rebuilt, and publish again"
            )
        self.experiment = found.experiment_id if found else self._create_experiment(tracking_uri)
        self._experiment_tags: dict[str, str] = dict(found.tags) if found else {}
        self.runs: dict[str, str] = {}  # trial id, or PARENT -> run id
        self._parents: dict[str, str] = {}  # trial id -> parent of its run
        self._looks: dict[str, str] = {}  # trial id -> name and colour that we gave to its run
        self._running: set[str] = set()  # keys of runs whose status is RUNNING
        self._params: dict[str, set[str]] = {}  # key -> names of the params of its run
        self._settled: set[str] = set()  # trials whose run is final
        self._shown: dict[
            str, tuple[int, int, float]
        ] = {}  # trial id -> evaluations, telemetry events, time of the end
        self._sent: dict[str, set[tuple[str, int]]] = {}  # trial id -> metric and step of points of unsettled runs
        self._counts: dict[str, int] = {}  # numbers of trials, as last sent
        self.find()

    def find(self) -> None:
        """Find the existing runs. If one key has several, all but the fullest are ended and deleted."""
        by_key: dict[str, list[Any]] = {}
        for run in runs_of(self.client, self.experiment, self.record_id):
            by_key.setdefault(run.data.tags["emergence.key"], []).append(run)
        for key, runs in by_key.items():
            run, *others = sorted(  # settled runs first, then those with most metrics and params
                runs, key=lambda r: (not _is_settled(r), -len(r.data.metrics) - len(r.data.params), r.info.run_id)
            )
            for other in others:
                if other.info.status == "RUNNING":
                    self.client.set_terminated(other.info.run_id, "KILLED")
                self.client.delete_run(other.info.run_id)
            if self.runs.get(key, run.info.run_id) != run.info.run_id:  # our points went to the deleted run
                self._shown.pop(key, None)
                self._sent.pop(key, None)
            self.runs[key] = run.info.run_id
            self._looks[key] = run.data.tags.get("emergence.look", "")
            (self._running.add if run.info.status == "RUNNING" else self._running.discard)(key)
            self._params[key] = set(run.data.params)
            self._parents[key] = run.data.tags.get("mlflow.parentRunId", "")
            if _is_settled(run):
                self._settled.add(key)

    def _artifacts(self) -> str:
        return (home_folder() / "mlartifacts" / self.study.id).as_uri()

    def _create_experiment(self, tracking_uri: str) -> str:
        place = None if tracking_uri.startswith("http") else self._artifacts()  # a server keeps artifacts itself
        note = summary.as_markdown(_tag(self.study.question, MAX_TAG // 6))
        tags = {"emergence.question": _tag(self.study.question), "mlflow.note.content": note}
        tags["mlflow.experimentKind"] = "custom_model_development"  # else the UI opens on its pages for agents
        try:
            with _environment({_RETRIES: "0"}):
                return cast(str, self.client.create_experiment(self.study.id, artifact_location=place, tags=tags))
        except Exception:  # another publisher may have made it, or the answer was lost
            found = self.client.get_experiment_by_name(self.study.id)
            if found is None:
                raise
            return cast(str, found.experiment_id)

    def _run(self, key: str, name: str, started: float, tags: dict[str, Any]) -> str:
        """The run of this key, made on first use together with its key. After any error a new record finds it.

        MLflow's client must not repeat the request: a repeated request makes a second run.
        """
        if key not in self.runs:
            tags = {k: _tag(v) for k, v in tags.items()} | {"emergence.key": key, "emergence.record": self.record_id}
            at = round(started * 1000)
            with _environment({_RETRIES: "0"}):
                run = self.client.create_run(self.experiment, at, tags=tags, run_name=_tag(name, MAX_NAME))
            self.runs[key] = run.info.run_id
            self._running.add(key)
            self._looks[key] = tags.get("emergence.look", "")
        return self.runs[key]

    def _log(self, run: str, points: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        """Log to a run in requests within MLflow's limits: params with the first, tags with the last."""
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
        """Bring every run up to the journal. Raises mlflow's exceptions; the caller may try again later."""
        if not state.sessions:
            return
        parent = self._parent(state)
        self._tag_experiment({mlflow_view.TAG: mlflow_view.tag(self.study, state.sessions[0]["time"])})
        for key in self._settled - {PARENT}:
            self._set_parent(key, self.runs[key], parent)
        trials = self.study.trials()
        for trial in (one for one in trials if one.id in self._settled):
            self._set_look(trial)
        unsettled = [trial for trial in trials if trial.id not in self._settled]
        said_at = time.monotonic()
        for i, trial in enumerate(unsettled):
            self._publish_trial(state, trial, parent)
            if say and time.monotonic() - said_at > SAY_EVERY_SECONDS:
                said_at = time.monotonic()
                say(f"MLflow: {i + 1} of {len(unsettled)} trials")
        self._log_counts(parent, state)

    def _set_parent(self, key: str, run: str, parent: str) -> None:
        if self._parents.get(key, parent) != parent:
            self.client.set_tag(run, "mlflow.parentRunId", parent)
        self._parents[key] = parent

    def _parent(self, state: State) -> str:
        tags = {"emergence.kind": "study", "emergence.study": self.study.id} | _source_tags(state.sessions[-1])
        return self._run(PARENT, self.study.id, state.sessions[0]["time"], tags)

    def begin(self, state: State) -> None:
        """Mark the parent run, and those of trials without an end, as running, and log the axes of the study.

        An earlier answer stays in its description.
        """
        parent = self._parent(state)
        self._log_axes(parent, self.client.get_run(parent).data.params)
        self._log_counts(parent, state)
        open_trials = {trial.id for trial in self.study.trials()} - state.trials.keys()
        for key in (self.runs.keys() & (open_trials | {PARENT})) - self._running:
            self.client.update_run(self.runs[key], status="RUNNING")
            self._running.add(key)

    def _log_counts(self, parent: str, state: State) -> None:
        ended = [state.trials.get(trial.id, {}).get("status", "open") for trial in self.study.trials()]
        counts = {kind: ended.count(kind) for kind in ("done", "diverged", "failed", "open")}
        if counts != self._counts:
            when, metric = round(state.last_time * 1000), self._entities.Metric
            self._log(parent, [metric(f"trials/{kind}", float(n), when, 0) for kind, n in counts.items()])
            self._counts = counts

    def _log_axes(self, parent: str, known: dict[str, str]) -> None:
        """Log the family as a param, and the axes as tags: axes may grow, and MLflow never changes a param."""
        family = {"family": cast(Any, self.study.family).name}
        tags = {f"emergence.axes.{axis}": words for axis, words in axes_words(self.study).items()}
        tags |= {"emergence.order": "0"}  # before the trials (`mlflow_values.order`)
        self._log(parent, params=self._as_params(family if "family" not in known else {}), tags=self._as_tags(tags))

    def _publish_trial(self, state: State, trial: TrialSpec, parent: str) -> None:
        evaluations, end = trial_evaluations(state, trial), state.trials.get(trial.id)
        telemetry = state.telemetry.get(trial.trunk.id, [])
        shown = len(evaluations), len(telemetry), cast(float, end["time"]) if end else 0.0
        before = self._shown.get(trial.id)
        if shown in ((0, 0, 0.0), before):
            return
        times = [
            *(t for event in telemetry[:1] for t in event["times"][:1]),
            *(event["time"] for _, event in evaluations[:1]),
        ]
        look = mlflow_values.look(self.study, trial)
        name, tags = mlflow_values.run_name(self.study, trial), {"mlflow.parentRunId": parent} | look
        run = self._run(trial.id, name, min(times or [shown[2]]), tags)
        self._set_parent(trial.id, run, parent)
        self._set_look(trial)
        points = [*self._evaluation_points(trial, evaluations[before[0] if before else 0 :])]
        if not before or before[1] != len(telemetry):
            portions = trial_telemetry(state, trial)
            curves = [*mlflow_values.of_telemetry(portions), *mlflow_values.of_sampling(trial, portions)]
            points += [point for point in curves if (point.name, point.step) not in self._sent.get(trial.id, ())]
        tags = {}
        if before is None:
            tags = self._tags_of(trial, _session_of(state, trial))
            tags |= mlflow_values.leak_tags(facts) if (facts := self._facts(state, trial)) else {}
            self._log_tasks(run, trial, self._facts(state, trial))
            if (names := trained_tasks(state, trial.trunk.id)) is not None:
                self.client.log_text(run, json.dumps(mlflow_values.by_cluster(names), ensure_ascii=False), TRAINED)
        known = self._params.setdefault(trial.id, set())
        params = {k: v for k, v in mlflow_values.params(self.study, trial).items() if k not in known}
        if end is not None:
            costs = mlflow_values.of_end(end, cast(Family, trial.family).ability_of)
            points += [Point(k, v, end["time"], end.get("step") or 0) for k, v in costs.items()]
            points += mlflow_values.against_start(end)
            tags |= {"emergence.reason": _tag(end["reason"], 500)} if end.get("reason") else {}
            tags |= self._log_tables(run, trial, [event for _, event in evaluations]) if evaluations else {}
            tags |= {"outcome": named} if (named := outcome_of(state, self.study, trial)) else {}
            if end["status"] != "failed":
                tags |= {"emergence.ended": end["status"], "emergence.layout": LAYOUT}
        self._log(run, self._metrics(points), self._as_params(params), self._as_tags(tags))
        known |= params.keys()
        self._shown[trial.id] = shown
        self._sent.setdefault(trial.id, set()).update((point.name, point.step) for point in points)
        if end is not None:
            good = end["status"] in ("done", "diverged")
            self._end(trial.id, "FINISHED" if good else "FAILED", end["time"])
            if good:
                self._settled.add(trial.id)
                del self._sent[trial.id]

    def _end(self, key: str, status: str, when_seconds: float) -> None:
        self.client.set_terminated(self.runs[key], status, round(when_seconds * 1000))
        self._running.discard(key)

    def _set_look(self, trial: TrialSpec) -> None:
        """Give a trial's run its name and colour, which depend on the study's axes. A look that a user changed stays."""
        look = mlflow_values.look(self.study, trial)
        if self._looks.get(trial.id) != look["emergence.look"]:
            name = _tag(mlflow_values.run_name(self.study, trial), MAX_NAME)
            self.client.update_run(self.runs[trial.id], name=name)
            self._log(self.runs[trial.id], tags=self._as_tags(look))
            self._looks[trial.id] = look["emergence.look"]

    def _facts(self, state: State, trial: TrialSpec) -> dict[str, Any] | None:
        condition = self.study.condition_of(trial.arm, trial.variant)
        return mlflow_values.facts_of(_session_of(state, trial), condition)

    def _log_tasks(self, run: str, trial: TrialSpec, facts: dict[str, Any] | None) -> None:
        """Log the training tasks as the run's dataset, and the table they come from. MLflow ignores one that is there."""
        sets, of = {"training": mlflow_values.training_tasks(trial)}, self._entities
        sets |= {"table": mlflow_values.data_set(facts)} if facts else {}
        inputs = []
        for context, tasks in sets.items():
            source, profile = json.dumps(tasks.source), json.dumps(tasks.profile)
            dataset = of.Dataset(tasks.name, tasks.digest, "emergence", source, profile=profile)
            inputs.append(of.DatasetInput(dataset, [of.InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(run, inputs)

    def _log_tables(self, run: str, trial: TrialSpec, events: list[Event]) -> dict[str, str]:
        """Log the table of the last evaluation, its examples, and all transcripts. Returns the tag by which the UI finds them."""
        ability_of = cast(Family, trial.family).ability_of
        table = mlflow_values.table_of(mlflow_values.of_evaluation(events[-1], ability_of), ability_of)
        named = {EVALUATIONS: table, EXAMPLES: mlflow_values.examples_of(events[-1])}
        named |= {TRANSCRIPTS: mlflow_values.transcripts_of(events)}
        logged = {name: of for name, of in named.items() if of is not None}
        for name, of in logged.items():
            self.client.log_text(run, json.dumps(of), name)
        return {"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"} for name in logged])}

    def _tags_of(self, trial: TrialSpec, session: Event) -> dict[str, str]:
        tags = {"emergence.kind": "trial", "emergence.trial": trial.id, "emergence.trunk": trial.trunk.id}
        tags |= {"emergence.fingerprint": trial.fingerprint(), "mlflow.runType": RUN_TYPE}
        tags |= _source_tags(session)
        if changes := session.get("changes"):
            tags["emergence.changes"] = ", ".join(changes)
        options = session.get("options") or {}
        if options.get("keep_weights") and (storage := options.get("storage")):
            tags["emergence.weights"] = checkpoint.under(storage, self.study.id, "weights", f"{trial.id}.safetensors")
        return tags | mlflow_values.tags(self.study, trial)

    def _evaluation_points(self, trial: TrialSpec, evaluations: list[tuple[str, Event]]) -> Iterator[Point]:
        ability_of = cast(Family, trial.family).ability_of
        steps = budget.steps_of(trial, trial.compute_flops)
        for phase, event in evaluations:
            named = mlflow_values.of_evaluation(event, ability_of)
            first = mlflow_values.results_of(self.study, phase, steps.branch < steps.end, named)
            yield from (Point(name, value, event["time"], event["step"]) for name, value in (first | named).items())

    def _metrics(self, points: Sequence[Point]) -> list[Any]:
        return [self._entities.Metric(p.name, p.value, round(p.time * 1000), p.step) for p in points]

    def _as_params(self, params: dict[str, Any]) -> list[Any]:
        return [self._entities.Param(key, _tag(value, MAX_PARAM)) for key, value in params.items()]

    def _as_tags(self, tags: dict[str, Any]) -> list[Any]:
        return [self._entities.RunTag(key, _tag(value)) for key, value in tags.items()]

    def links(self) -> dict[str, Any]:
        """Addresses of the runs in the UI, as in `links.LINKS_FILE`."""
        runs = {key: links.run_path(self.experiment, run) for key, run in self.runs.items()}
        study, store = runs.pop(PARENT, None), links.store_of(self.tracking_uri)
        addresses = {
            "base": links.ui_address(self.tracking_uri),
            "view": links.view_path(self.experiment),
            "study": study,
        }
        return addresses | {"runs": runs, "store": store}

    def publish_study(self, folder: Path, found: Findings, state: State) -> None:
        """Log the study's results on the parent run: the answer as its description, figures, tables, report.

        Runs of trials without an end, and the study's own while it has such trials, end as KILLED until `begin`. Points have
        the journal's time, so that publishing again adds none.
        """
        parent, when_seconds = self.runs[PARENT], state.last_time
        points = [Point(name, value, when_seconds, 0) for name, value in summary.metrics(found).items()]
        self._log(parent, self._metrics(points))
        self._log_axes(parent, self.client.get_run(parent).data.params)
        if data := _newest_data(state):
            certificates = [{"conditions": one["conditions"]} | one["facts"]["certificate"] for one in data]
            self.client.log_text(parent, json.dumps(certificates, indent=1, ensure_ascii=False), LEAKS)
            self._log(parent, tags=self._as_tags(mlflow_values.leak_tags(data[0]["facts"])))
        for name in shown_files(folder):
            self.client.log_artifact(parent, str(folder / name), str(Path(name).parent) if "/" in name else None)
        self._describe(found)
        weights = {trial.id: _weights_of(state, trial, folder) for trial in self.study.trials()}
        mlflow_models.log_models(self.client, self.experiment, self.runs, self.record_id, weights, found)
        for key in self._running - {PARENT}:
            self._end(key, "KILLED", when_seconds)
        is_open = any(run["status"] == "open" for run in found.runs)
        self._end(PARENT, "KILLED" if is_open else "FINISHED", when_seconds)

    def show_so_far(self, folder: Path, found: Findings) -> None:
        """Show the answer of a running study: its description, with the surface as it is now."""
        if (folder / PICTURE).exists():
            self.client.log_artifact(self.runs[PARENT], str(folder / PICTURE), str(Path(PICTURE).parent))
        self._describe(found)

    def _describe(self, found: Findings) -> None:
        """Make the answer the description of the experiment and of the parent run.

        The picture's address is relative to the UI, whatever its host. Markdown in MLflow loads images from there.
        """
        parent = self.runs[PARENT]
        picture = f"get-artifact?path={quote(PICTURE, safe='')}&run_uuid={parent}"
        note = summary.description(found, picture, [links.markdown(self.experiment, parent)])
        self.client.set_tag(parent, "mlflow.note.content", note)
        self._tag_experiment({"mlflow.note.content": note})

    def _tag_experiment(self, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            if self._experiment_tags.get(key) != value:
                self.client.set_experiment_tag(self.experiment, key, value)
                self._experiment_tags[key] = value


def _session_of(state: State, trial: TrialSpec) -> Event:
    """The session in which a trial ended; the last one if it has not."""
    name = state.trials.get(trial.id, {}).get("session")
    return next((session for session in state.sessions if session["session"] == name), state.sessions[-1])


def _newest_data(state: State) -> list[dict[str, Any]]:
    """The data of the last session that knows them; empty for families that make their tasks."""
    return next((session["data"] for session in reversed(state.sessions) if session.get("data")), [])


def _weights_of(state: State, trial: TrialSpec, folder: Path) -> str:
    """The path or URI of a trial's weights, kept or not."""
    storage = (_session_of(state, trial).get("options") or {}).get("storage")
    return checkpoint.under(storage or folder.parent, folder.name, "weights", f"{trial.id}.safetensors")


def _source_tags(session: Event) -> dict[str, str]:
    """MLflow's own tags on the origin of a run."""
    tags = {"mlflow.source.name": "emergence run", "mlflow.source.type": "LOCAL"}
    tags["mlflow.source.git.commit"] = session.get("commit") or "unknown"
    with contextlib.suppress(KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _is_settled(run: Any) -> bool:
    """Whether a trial's run is final, and complete by this version's layout. Its status is set last."""
    tags = run.data.tags
    return (
        bool(tags.get("emergence.ended")) and run.info.status == "FINISHED" and tags.get("emergence.layout") == LAYOUT
    )


def shown_files(folder: Path) -> list[str]:
    """The files of the record in a study's folder, as relative paths."""
    figures = [path for path in (folder / "figures").glob("*") if path.is_file() and path.name[0] != "."]
    tables = [*TABLES, *(name for name in (*TABLES_OF_TEXT, *TABLES_OF_REWARD) if (folder / name).exists())]
    return [*tables, SUMMARY_FILE, REPORT_FILE, *sorted(f"figures/{path.name}" for path in figures)]


def axes_words(study: Study) -> dict[str, str]:
    """The axes of a study in readable numbers: n_tasks, compute_flops, replicates, arms."""
    return {
        "n_tasks": ", ".join(number(n) for n in sorted(study.axes.n_tasks)),
        "compute_flops": ", ".join(number(c) for c in study.budgets),
        "replicates": str(study.axes.replicates),
        "arms": ", ".join(study.conditions),
    }
