"""What MLflow holds of a study, for comparing two publications: all of it but time, place and attempt."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import Any

from orchestrator.record import links

_OF_TIME_AND_PLACE = {
    *("mlflow.user", "mlflow.source.git.commit", "mlflow.source.name", "mlflow.source.type", "mlflow.parentRunId"),
    *("emergence.record", "emergence.changes"),
}
_SECONDS = ("trial_cost/train_seconds", "trial_cost/eval_seconds")

Facts = dict[str, list[dict[str, Any]]]


def mlflow_facts(tracking_uri: str, study_id: str, record_id: str = "") -> Facts:
    """By key, the runs of a study in an SQLite store that are not deleted: status, params, tags, whole histories.

    A key that has two runs has two entries. `parent` is the key of the parent run, by whatever id. `record_id` leaves
    out the runs of other records. Seconds are there without their values. Of the study's own run a step has its newest
    value alone: how often it was told depends on attempts.
    """
    path = links.sqlite_file(tracking_uri)
    assert path is not None and path.exists(), f"{tracking_uri}: no SQLite store"
    with contextlib.closing(sqlite3.connect(path)) as store:
        found = [
            _run(store, run_id, status)
            for run_id, status in store.execute(
                "SELECT run_uuid, status FROM runs JOIN experiments USING (experiment_id) "
                "WHERE experiments.name = ? AND runs.lifecycle_stage = 'active'",
                (study_id,),
            )
        ]
    keys = {run["id"]: run["tags"]["emergence.key"] for run in found}
    facts: Facts = {}
    for run in sorted(found, key=lambda run: str(run["id"])):
        if record_id and run["tags"]["emergence.record"] != record_id:
            continue
        above = run["tags"].get("mlflow.parentRunId")
        kept = {name: text for name, text in run["tags"].items() if name not in _OF_TIME_AND_PLACE}
        if (note := kept.get("mlflow.note.content")) is not None:  # it links to its run and experiment
            note = note.replace(str(run["id"]), keys[run["id"]])
            kept["mlflow.note.content"] = re.sub(r"experiments/\d+/", "experiments/0/", note)
        facts.setdefault(keys[run.pop("id")], []).append(run | {"tags": kept, "parent": keys.get(above, above)})
    return facts


def _run(store: sqlite3.Connection, run_id: str, status: str) -> dict[str, Any]:
    tags = dict(store.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))
    is_study = tags.get("emergence.kind") == "study"
    histories: dict[str, list[Any]] = {}
    for key, step, value, is_nan in store.execute(
        "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY key, step, timestamp", (run_id,)
    ):
        history = histories.setdefault(key, [])
        if is_study and history and history[-1][0] == step:
            history.pop()
        history.append((step, None if is_nan or key in _SECONDS else value))
    return {
        "id": run_id,
        "status": status,
        "params": dict(store.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,))),
        "tags": tags,
        "metrics": histories,
    }


def still_running(tracking_uri: str, study_id: str) -> int:
    """Runs of a study, deleted ones included, that MLflow takes for running."""
    path = links.sqlite_file(tracking_uri)
    assert path is not None
    with contextlib.closing(sqlite3.connect(path)) as store:
        counted = store.execute(
            "SELECT count(*) FROM runs JOIN experiments USING (experiment_id) "
            "WHERE experiments.name = ? AND runs.status = 'RUNNING'",
            (study_id,),
        )
        return int(counted.fetchone()[0])
