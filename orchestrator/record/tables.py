"""The record as tables: `results.parquet`, `runs.parquet`, those of text and of arm `reward`, and the summary."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import files
from orchestrator.analysis import findings, reranking, samples, summary
from orchestrator.analysis.measures import RAW, REFERENCES
from orchestrator.record.journal import Event, State
from orchestrator.record.recorded import telemetry, trial_evaluations
from orchestrator.study.schema import Study
from trainers import budget
from trainers.checkpoint import CURVES, SYSTEM_FIELDS
from trainers.spec import TrialSpec
from trainers.tasks import Family
from trainers.tasks.decomposition import PREDICTORS
from trainers.tasks.text import FLOORS

RESULTS = pa.schema(
    [(name, pa.string()) for name in ("trial", "trunk", "arm", "variant")]
    + [("n_tasks", pa.int64()), ("compute_flops", pa.float64()), ("replicate", pa.int64())]
    + [("step", pa.int64()), ("flops", pa.float64())]
    + [(name, pa.string()) for name in ("phase", "skill", "split")]
    + [("n", pa.int64()), ("n_correct", pa.int64())]
    + [(f"sum_{name}", pa.float64()) for name in ("nll_nats", "p_correct", "brier")]
    + [("n_sequences", pa.int64()), ("n_exact", pa.int64()), ("sum_p_exact", pa.float64())]
    + [(f"sum_nll_{name}", pa.float64()) for name in REFERENCES]
    + [(f"sum_correct_{name}", pa.float64()) for name in REFERENCES]
    + [("sum_exact_memorizer", pa.float64())]
    + [(name, pa.float64()) for name in (*(f"weight_{name}" for name in PREDICTORS), "unexplained_nats")]
    + [(f"sum_skl_{name}", pa.float64()) for name in ("memorizer", "generalizer", "references")]
    + [(name, pa.float64()) for name in ("se_ability_gap", "se_memory_gap", "mean_train_loss_nats")]
)
"""One row per (trial, step, skill, split): counts `n...` and sums `sum_...`, to be divided by the reader.

Four kinds of columns are neither: `weight_<predictor>` and `unexplained_nats` (the decomposition of the model's
predictions), the standard errors, and `mean_train_loss_nats` (mean training loss since the last evaluation of the trunk).
`phase` is `trunk`, `pre_decay` (the branch point) or `final` (the end of the budget).
"""

OF_TEXT = pa.schema(
    [(name, pa.int64()) for name in ("n_answered", "n_right", "n_written", "n_long")]
    + [(f"sum_right_{name}", pa.int64()) for name in FLOORS]
    + [("n_train_tokens", pa.int64()), ("sum_nll_train_items", pa.float64())]
)
"""Columns that families of text have beside RESULTS: counts of free answers and of their tokens, and of the trivial predictors'
right answers; and on the rows of new items the loss on training items."""

OF_STARTS = pa.schema([("start", pa.string()), ("start_flops", pa.float64())])
"""Columns of studies with `start_from`: the trial whose final weights a trial begins with, and the FLOPs with which it is charged
for that. They are missing on trials that begin with initial weights."""

_CELL = [(name, pa.string()) for name in ("trial", "condition")] + [
    ("n_tasks", pa.int64()),
    ("compute_flops", pa.float64()),
]
_CELL += [("replicate", pa.int64()), ("split", pa.string()), ("task", pa.string())]

TASKS = pa.schema(
    [*_CELL, ("cluster", pa.string())]
    + [(name, pa.int64()) for name in ("n_sequences", "n_answered", "n_right", "n")]
    + [("sum_nll_nats", pa.float64())]
)
"""`tasks.parquet`, of families of text: one row per (trial, split, task) at the trial's end. `n_sequences` items were read,
`n_answered` and `n_right` of them answered and right; `n` target tokens cost `sum_nll_nats`."""

EXAMPLES = pa.schema(
    _CELL
    + [(name, pa.string()) for name in ("prompt", "target", "answer")]
    + [(name, pa.bool_()) for name in ("answered", "right")]
)
"""`examples.parquet`, of families of text: a few items of each task with the trial's free answer."""

SAMPLES = pa.schema(
    [(name, pa.string()) for name in ("trial", "trunk", "condition", "arm", "variant")]
    + [("n_tasks", pa.int64()), ("compute_flops", pa.float64()), ("replicate", pa.int64())]
    + [("step", pa.int64()), ("flops", pa.float64()), ("phase", pa.string())]
    + [(name, pa.float64() if name.startswith("sum") else pa.int64()) for name in samples.SUMS]
)
"""`samples.parquet`, of arm `reward`: one row per (trial, step). Counts and sums over the answers that were sampled for training
since the evaluation before: on the trunk, or since the decay began. `n_tokens` counts the end of an answer, too."""

TRANSCRIPTS = pa.schema(
    [(name, pa.string()) for name in ("trial", "condition")]
    + [("n_tasks", pa.int64()), ("compute_flops", pa.float64()), ("replicate", pa.int64())]
    + [("step", pa.int64()), ("flops", pa.float64())]
    + [(name, pa.string()) for name in ("phase", "task", "prompt", "target", "answer")]
    + [(name, pa.bool_()) for name in ("ended", "answered", "right", "sound")]
)
"""`transcripts.parquet`, of arm `reward`: some answers that were sampled in the last step before each evaluation."""

_PLACE = dict.fromkeys(("workers", "zero_stage", "micro_batch", "halvings"), pa.int64())
_PLACE |= dict.fromkeys(("recompute", "offload", "compiled"), pa.bool_())
"""Placement of a trial on its workers; `halvings` counts how often the micro-batch was halved for lack of memory."""

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
"""One row per trial, ended or not: its cost, time and machine. `flops_own` is its budget as spent, `start_flops` included.
`flops_run` is the compute beyond the smaller budgets of its trunk, so that a trunk is charged once."""

OF_REWARD = pa.schema(
    [("outcome", pa.string()), ("sampling_flops_share", pa.float64())]
    + [(name, pa.int64()) for name in reranking.COUNTS]
    + [("reranking_flops", pa.float64())]
)
"""Columns that studies with arm `reward` have beside RUNS: the named outcome, if any, and the share of the training FLOPs that are
charged for sampling. Trials from a start also have the counts of `analysis/reranking.py`, and what sampling the start model cost,
which is part of no budget. Trials of other arms have none."""

_ORDER = ("arm", "variant", "n_tasks")


def of_axis(study: Study) -> list[pa.Field]:
    """The column with the value of the family parameter that is an axis, such as `family_share`; none without such an axis."""
    return [pa.field(f"family_{study.axis}", pa.float64())] if study.axis else []


def _of_starts(study: Study) -> list[pa.Field]:
    """OF_STARTS, if any condition has a start."""
    return list(OF_STARTS) if any(map(study.start_of, study.conditions)) else []


def results_table(state: State, study: Study) -> pa.Table:
    """`results.parquet`: the ended trials of this study, sorted by key. It holds no time and no machine."""
    rows = []
    for trial in study.trials():
        if state.trials.get(trial.id, {}).get("status") in ("done", "diverged"):
            for phase, event in trial_evaluations(state, trial):
                shared = {k: event[k] for k in ("step", "flops", "train_loss_nats")} | {"phase": phase}
                rows += [_axes(study, trial) | shared | row for row in event["rows"]]
    rows.sort(key=lambda r: tuple(r[k] for k in (*_ORDER, "replicate", "compute_flops", "step", "skill", "split")))
    schema = [*RESULTS, *of_axis(study), *(OF_TEXT if cast(Family, study.family).ability_of == "right" else ())]
    schema += _of_starts(study)
    raw = pa.schema([(RAW.get(field.name, field.name), field.type) for field in schema])
    return pa.Table.from_pylist(rows, schema=raw).rename_columns([field.name for field in schema])


def tasks_table(state: State, study: Study) -> pa.Table:
    """`tasks.parquet`: counts and sums by task at the end of each trial, sorted as `results.parquet`."""
    rows = []
    for place, row in _last_rows(state, study):
        columns = {RAW.get(name, name): name for name in TASKS.names}
        of = row.get("tasks") or {"task": []}
        rows += [place | {columns[key]: of[key][i] for key in of if key in columns} for i in range(len(of["task"]))]
    return pa.Table.from_pylist(rows, schema=TASKS)


def examples_table(state: State, study: Study) -> pa.Table:
    """`examples.parquet`: items with the answers of each trial, sorted as `results.parquet`."""
    rows = [place | one for place, row in _last_rows(state, study) for one in row.get("examples") or ()]
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def samples_table(state: State, study: Study) -> pa.Table:
    """`samples.parquet`: what the trials of arm `reward` sampled, sorted as `results.parquet`."""
    rows = [row for trial in _sampling(state, study) for row, _ in _sampled(state, study, trial)]
    return pa.Table.from_pylist(rows, schema=pa.schema([*SAMPLES, *of_axis(study)]))


def transcripts_table(state: State, study: Study) -> pa.Table:
    """`transcripts.parquet`: sampled answers as text, sorted as `results.parquet`."""
    trials = _sampling(state, study)
    rows = [row | one for trial in trials for row, texts in _sampled(state, study, trial) for one in texts]
    return pa.Table.from_pylist(rows, schema=TRANSCRIPTS)


def _sampling(state: State, study: Study) -> list[TrialSpec]:
    """The trials of arm `reward` that have ended, in the order of `results.parquet`."""
    ended = [t for t in study.trials() if state.trials.get(t.id, {}).get("status") in ("done", "diverged")]
    rewarded = [trial for trial in ended if trial.reward is not None]
    return sorted(rewarded, key=lambda t: (*(getattr(t, k) for k in _ORDER), t.replicate, t.compute_flops))


def _sampled(state: State, study: Study, trial: TrialSpec) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The row of `samples.parquet` and the transcripts of each evaluation of a trial, in order of steps."""
    axes = _axes(study, trial) | {"condition": study.condition_of(trial.arm, trial.variant)}
    for phase, event in trial_evaluations(state, trial):
        if of := event.get("sampled"):
            place = axes | {"step": event["step"], "flops": event["flops"], "phase": phase}
            yield place | {column: of["sums"].get(key) for column, key in samples.SUMS.items()}, of["transcripts"]


def outcome_of(state: State, study: Study, trial: TrialSpec) -> str | None:
    """The named outcome of a trial of arm `reward` (`samples.outcome`); None if none applies, or the trial is not done."""
    if trial.reward is None or state.trials.get(trial.id, {}).get("status") != "done":
        return None
    _, most_tokens = cast(Any, trial.family).answer_shape
    return samples.outcome([row for row, _ in _sampled(state, study, trial)], most_tokens)


def _last_rows(state: State, study: Study) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(place, row) of each item set in the last evaluation of each trial that is done."""
    trials = [trial for trial in study.trials() if state.trials.get(trial.id, {}).get("status") == "done"]
    for trial in sorted(trials, key=lambda t: (*(getattr(t, k) for k in _ORDER), t.replicate, t.compute_flops)):
        place = {k: getattr(trial, k) for k in ("n_tasks", "compute_flops", "replicate")}
        place |= {"trial": trial.id, "condition": study.condition_of(trial.arm, trial.variant)}
        for phase, event in trial_evaluations(state, trial):
            if phase == "final":
                yield from ((place | {"split": row["split"]}, row) for row in event["rows"])


def outside(state: State, study: Study) -> int:
    """The number of recorded trials outside the study's axes: they stay in the journal and are in no table."""
    return len(state.trials.keys() - {trial.id for trial in study.trials()})


def _axes(study: Study, trial: TrialSpec) -> dict[str, Any]:
    axes = {k: getattr(trial, k) for k in ("arm", "variant", "n_tasks", "compute_flops", "replicate")}
    axes |= {field.name: study.labels[trial.variant][1] for field in of_axis(study)}
    axes |= {"start": trial.start.trial, "start_flops": float(trial.start.flops)} if trial.start else {}
    return {"trial": trial.id, "trunk": trial.trunk.id} | axes


def runs_table(state: State, study: Study) -> pa.Table:
    """`runs.parquet`: every trial of the study with its outcome and cost."""
    session = state.sessions[-1] if state.sessions else {}
    by_id = {s["session"]: s for s in state.sessions}
    rows = []
    for trial in study.trials():
        event = state.trials.get(trial.id, {})
        origin = by_id.get(event.get("session", ""), session)
        steps = event.get("step")
        sequences = steps * trial.training.batch_size if steps is not None else None
        family = cast(Family, trial.family)
        uniform = sequences if family.draws_alike(trial.training.task_exponent) else None  # else the number is unknown
        ended = event.get("time")
        rows.append(
            _axes(study, trial)
            | {
                k: event.get(k)
                for k in ("reason", "flops_own", "flops_run", "eval_flops", "train_seconds", "eval_seconds")
            }
            | {"status": event.get("status", "open"), "fingerprint": trial.fingerprint(), "steps": steps}
            | {"sequences": sequences, "distinct_tasks": distinct_tasks(family.n_distinct(trial.n_tasks), uniform)}
            | {"ended": round(ended * 1000) if ended else None, "attempt": event.get("attempt")}
            | {k: event.get(k) for k in ("host", "device", *_PLACE)}
            | reranking_of(event)
            | {"outcome": outcome_of(state, study, trial), "sampling_flops_share": sampling_flops_share(trial)}
            | {"commit": origin.get("commit"), "versions": json.dumps(origin.get("versions"), sort_keys=True)}
        )
    rows.sort(key=lambda r: tuple(r[k] for k in (*_ORDER, "replicate", "compute_flops")))
    schema = [*RUNS, *of_axis(study), *_of_starts(study), *(OF_REWARD if "reward" in study.axes.arm else ())]
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def reranking_of(end: Event) -> dict[str, float]:
    """The counts of a trial's end against its start model, with their cost; empty if the question was not asked."""
    facts = end.get("reranking")
    return {} if facts is None else reranking.counts(facts) | {"reranking_flops": float(facts["flops"])}


def sampling_flops_share(trial: TrialSpec) -> float | None:
    """The share of a trial's training FLOPs that are charged for sampling; None if its arm samples nothing."""
    return budget.sampling_flops(trial) / budget.flops_per_step(trial) if trial.reward is not None else None


_CURVES = {"train_loss_nats" if name == "loss_nats" else name: name for name in CURVES}
"""Column -> value of a point in the journal. In all tables, `loss_nats` is the loss of evaluation items."""

TELEMETRY = pa.schema(
    [("condition", pa.string()), ("n_tasks", pa.int64()), ("replicate", pa.int64()), ("trunk", pa.string())]
    + [("compute_flops", pa.float64()), ("step", pa.int64()), ("time", pa.timestamp("ms", tz="UTC"))]
    + [(name, pa.float64()) for name in (*_CURVES, *SYSTEM_FIELDS)]
)
"""One row per point of telemetry. `compute_flops` is the budget of a branch, and missing on the trunk. The load of the
workers, their mean or the maximum of memory, is that of the time up to the last point of an event, and missing at its other
points. An event without points is a row without the numbers of a point."""


def telemetry_table(state: State, study: Study) -> pa.Table:
    """The telemetry of a study's trunks, sorted by trunk, branch and step."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for trunk in study.trunks():
        place = {"n_tasks": trunk.n_tasks, "replicate": trunk.replicate, "trunk": trunk.id}
        place |= {"condition": study.condition_of(trunk.arm, trunk.variant)}
        for event in telemetry(state, trunk.id):
            budget = None if event["on"] == "trunk" else float(event["on"])
            for i, step in enumerate(event["steps"]):
                row = place | {"compute_flops": budget, "step": step, "time": round(event["times"][i] * 1000)}
                row |= {column: event[name][i] for column, name in _CURVES.items()}
                rows.setdefault((trunk.id, event["on"], step), row)
            step = event["steps"][-1] if event["steps"] else event["step"]
            here = place | {"compute_flops": budget, "step": step, "time": round(event["time"] * 1000)}
            last = rows.setdefault((trunk.id, event["on"], step), here)
            for name in SYSTEM_FIELDS:
                known = [rank[name] for rank in event["system"] if rank[name] is not None]
                of_workers = max if "memory" in name else fmean
                last.setdefault(name, of_workers(known) if known else None)
    order = sorted(rows.values(), key=lambda r: (r["trunk"], r["compute_flops"] or 0.0, r["step"]))
    return pa.Table.from_pylist(order, schema=TELEMETRY)


def distinct_tasks(n_tasks: int, sequences: int | None) -> float | None:
    """Expected number of distinct tasks among uniform draws: n (1 - (1 - 1/n)^sequences)."""
    if sequences is None:
        return None
    return -n_tasks * math.expm1(sequences * math.log1p(-1 / n_tasks)) if n_tasks > 1 else 1.0


def write_parquet(folder: Path, state: State, study: Study) -> None:
    """Write the tables, each in one rename: `results` and `runs`, and those of text and of arm `reward`. Raises OSError."""
    tables = {"results": results_table(state, study), "runs": runs_table(state, study)}
    if cast(Family, study.family).ability_of == "right":
        tables |= {"tasks": tasks_table(state, study), "examples": examples_table(state, study)}
    if "reward" in study.axes.arm:
        tables |= {"samples": samples_table(state, study), "transcripts": transcripts_table(state, study)}
    for name, table in tables.items():
        with files.aside(folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")


TABLES = ("results.parquet", "runs.parquet")
TABLES_OF_TEXT = ("tasks.parquet", "examples.parquet")
TABLES_OF_REWARD = ("samples.parquet", "transcripts.parquet")

SUMMARY_FILE = "summary.csv"
"""The findings of a study, a row each (`summary.rows`)."""


def write_summary(folder: Path, found: findings.Findings) -> None:
    """Write the table of findings in one rename. Raises OSError."""
    path = folder / SUMMARY_FILE
    with files.aside(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=summary.COLUMNS)
        table.writeheader()
        table.writerows(summary.rows(found))
    (folder / "claims.csv").unlink(missing_ok=True)  # an earlier version kept a part of it there
