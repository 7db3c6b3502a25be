"""The values of a trial as MLflow shows them: name, colour, params, tags, metrics, training tasks. Imports no MLflow.

Means have the names of `analysis/measures.py`, sums and costs those of the tables, so that one name is one quantity.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from orchestrator.analysis import measures, reranking, samples
from orchestrator.analysis.measures import HEADLINE, compared_on, headline
from orchestrator.formatting import counted, number
from orchestrator.record.journal import Event
from orchestrator.stats.pass_at import pass_at_k
from orchestrator.study.schema import Study
from trainers import budget
from trainers.checkpoint import CURVES, SYSTEM_FIELDS
from trainers.records import short_number
from trainers.spec import TrialSpec
from trainers.tasks import Family

SHOWN = (*HEADLINE, "loss_nats", "probability", "brier", "exact_match")
"""Measures of each skill and split, by their names in `measures.MEASURES`."""

SHOWN_OF_TEXT = (
    *headline("right"),
    "answered",
    "answer_tokens",
    "long_answers",
    "floor",
    *SHOWN[len(HEADLINE) :],
    "accuracy",
)
"""SHOWN for families of text. Accuracy counts tokens there."""


def shown(ability_of: str) -> tuple[str, ...]:
    """SHOWN, or SHOWN_OF_TEXT. ability_of: `Family.ability_of`."""
    return SHOWN_OF_TEXT if ability_of == "right" else SHOWN


COSTS = ("flops_own", "flops_run", "eval_flops", "train_seconds", "eval_seconds")
"""Fields of a trial's end that become `trial_cost/...`. The UI sorts groups by name, and charts of one point belong last."""

_SYSTEM = (
    *("process_cpu_percentage", "process_memory_usage_megabytes"),
    *("gpu_utilization_percentage", "gpu_memory_usage_megabytes"),
)
"""Names under `system/` of SYSTEM_FIELDS. MLflow's own CPU percentage is a share of the machine; ours has 100 for one core."""


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    time: float
    """Unix seconds."""
    step: int


def run_name(study: Study, trial: TrialSpec) -> str:
    """The name of a trial's run: `64 tasks · 3.2e11 FLOPs · r0`, after its condition if the study has several."""
    condition = f"{study.condition_of(trial.arm, trial.variant)} · " if len(study.conditions) > 1 else ""
    place = f"{counted(trial.n_tasks, 'task')} · {number(trial.compute_flops)} FLOPs"
    return f"{condition}{place} · r{trial.replicate}"


BLUES = ("#9ecae1", "#6baed6", "#3f8fc5", "#2171b5", "#08519c", "#08306b")


def colour(study: Study, trial: TrialSpec) -> str:
    """The colour of a trial's run in charts: the darker, the larger its budget."""
    budgets = study.budgets
    place = budgets.index(trial.compute_flops) / (len(budgets) - 1) if len(budgets) > 1 else 1.0
    return BLUES[round(place * (len(BLUES) - 1))]


def look(study: Study, trial: TrialSpec) -> dict[str, str]:
    """Tags of a trial's run that change when the axes grow: its colour, and the name and colour that we gave to it."""
    shade = colour(study, trial)
    return {"mlflow.runColor": shade, "emergence.look": f"{run_name(study, trial)} {shade}"}


def order(study: Study, trial: TrialSpec) -> str:
    """Text by which runs sort as a whole surface for each replicate: replicate, condition, number of tasks, budget.

    It does not depend on the axes, which may grow.
    """
    condition = study.condition_of(trial.arm, trial.variant)
    place = f"{math.log2(trial.n_tasks):08.4f} {math.log10(trial.compute_flops):08.4f}"
    return f"r{trial.replicate:05d} {condition} {place}"


def params(study: Study, trial: TrialSpec) -> dict[str, Any]:
    """Params of a trial: its place in the study, then its settings.

    Number of tasks and budget are logarithms, because the UI's axes are linear. Their plain values are tags (`tags`).
    """
    found: dict[str, Any] = {
        "condition": study.condition_of(trial.arm, trial.variant),
        "log2_n_tasks": f"{math.log2(trial.n_tasks):.6g}",
        "log10_compute_flops": f"{math.log10(trial.compute_flops):.6g}",
        "replicate": trial.replicate,
        "arm": trial.arm,
    }
    if trial.variant:
        found["variant"] = trial.variant
    found["model.n_parameters"] = budget.shape_of(trial).n_parameters
    for part in ("family", "model", "training", "evaluation", *(["reward"] if trial.reward is not None else [])):
        found |= {f"{part}.{k}": v for k, v in getattr(trial, part).model_dump().items()}
    if trial.reward is not None:
        found["sampling_flops_share"] = f"{budget.sampling_flops(trial) / budget.flops_per_step(trial):.6g}"
    found |= {f"start.{k}": v for k, v in trial.start.model_dump().items()} if trial.start else {}
    return found


def tags(study: Study, trial: TrialSpec) -> dict[str, str]:
    """Tags of a trial that people read: number of tasks and budget as plain numbers, and the order of runs in the UI."""
    place = {"n_tasks": short_number(trial.n_tasks), "compute_flops": short_number(trial.compute_flops)}
    place |= {"emergence.start": trial.start.trial} if trial.start else {}
    return place | {"emergence.order": order(study, trial)}


class Tasks(NamedTuple):
    """The training tasks of a trial as a dataset."""

    name: str
    digest: str
    profile: dict[str, Any]
    source: dict[str, Any]


def training_tasks(trial: TrialSpec) -> Tasks:
    """The training tasks of a trial: the same digest means the same tasks, drawn with the same frequencies.

    A task depends on the family and its number alone, and a replicate draws its own numbers.
    """
    family = cast(Family, trial.family)
    source: dict[str, Any] = {
        "family": {k: v for k, v in family.model_dump(mode="json").items() if k not in family.labels},
        "version": family.version,
        "n_tasks": trial.n_tasks,
    }
    source |= {"replicate": trial.replicate, "task_exponent": trial.training.task_exponent}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    profile = {"n_tasks": family.n_distinct(trial.n_tasks), "sequence_length": family.length(trial.arm)}
    return Tasks(source["family"]["name"], digest, profile, source)


def data_set(facts: Mapping[str, Any]) -> Tasks:
    """A table as a dataset: its name, the digest of its content, its counts, its path. facts: `Family.data_facts`."""
    counts = {k: v for k, v in facts.items() if k not in ("certificate", "leaks", "lengths", "path", "digest")}
    name = str(facts["path"]).rstrip("/").rpartition("/")[2] or str(facts["path"])
    return Tasks(name[:MAX_DATASET], facts["digest"], counts, {"uri": facts["path"], "digest": facts["digest"]})


MAX_DATASET = 500
"""Most characters of a dataset's name in MLflow."""


def facts_of(session: Mapping[str, Any], condition: str) -> dict[str, Any] | None:
    """The facts of the data of a condition in a session's event; None if there are none."""
    return next((one["facts"] for one in session.get("data") or () if condition in one["conditions"]), None)


def leak_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Tags with the number of held-out items that have an exact copy, or a near-duplicate with the same answer, in training."""
    sets = facts["certificate"]["sets"].values()
    near = sum(one["n_near"] - one["n_near_other_answer"] for one in sets)
    return {"leaks.exact": str(sum(one["n_exact"] for one in sets)), "leaks.near": str(near)}


def examples_of(event: Event) -> dict[str, Any] | None:
    """The examples of an evaluation as a table that MLflow compares between runs; None without any. The UI groups by the first column
    and compares the second."""
    columns = ("prompt", "answer", "target", "answered", "right", "task", "split")
    rows = [one | {"split": row["split"]} for row in event["rows"] for one in row.get("examples") or ()]
    return {"columns": list(columns), "data": [[row[k] for k in columns] for row in rows]} if rows else None


def transcripts_of(events: Sequence[Event]) -> dict[str, Any] | None:
    """The transcripts of a trial's evaluations as such a table, the last evaluation first; None without any."""
    columns = ("prompt", "answer", "target", "right", "sound", "answered", "ended", "step", "task")
    rows = [
        one | {"step": e["step"]} for e in reversed(events) for one in (e.get("sampled") or {}).get("transcripts", ())
    ]
    return {"columns": list(columns), "data": [[row[k] for k in columns] for row in rows]} if rows else None


def by_cluster(tasks: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Cluster -> its tasks, in their order, from (task, cluster)."""
    found: dict[str, list[str]] = {}
    for task, cluster in tasks:
        found.setdefault(cluster, []).append(task)
    return found


# Metrics ------------------------------------------------------------------------------------------------------------


def of_evaluation(event: Event, ability_of: str = "nll") -> dict[str, float]:
    """Metrics of one evaluation: `<split>/<skill>/<measure>`, `train/flops`, `train/mean_train_loss_nats`, `reward/<mean>`."""
    found = {"train/flops": float(event["flops"])}
    if of := event.get("sampled"):
        counts = {column: of["sums"].get(key) for column, key in samples.SUMS.items()}
        found |= {f"reward/{name}": float(value) for name, value in samples.means(counts).items()}
    if (loss := event["train_loss_nats"]) is not None and math.isfinite(loss):
        found["train/mean_train_loss_nats"] = loss
    rows = [row for row in event["rows"] if row["n"]]
    for measure in shown(ability_of):
        for row, value in zip(rows, measures.of_rows(measure, rows, ability_of), strict=True):
            if value is not None:
                found[f"{row['split']}/{row['skill']}/{measure}"] = value
    return found


def table_of(named: dict[str, float], ability_of: str = "nll") -> dict[str, Any]:
    """The metrics of one evaluation (`of_evaluation`) as a table that MLflow compares between runs: a row for each skill and split."""
    by_skill: dict[str, dict[str, float]] = {}
    for name, value in named.items():
        split, _, rest = name.partition("/")
        skill, _, measure = rest.rpartition("/")
        if skill:
            by_skill.setdefault(f"{skill} ({split})", {})[measure] = round(value, 4)
    names = shown(ability_of)
    data = [[skill, *(values.get(measure) for measure in names)] for skill, values in by_skill.items()]
    return {"columns": ["skill", *names], "data": data}


def results_of(study: Study, phase: str, has_decay: bool, named: dict[str, float]) -> dict[str, float]:
    """The metrics without a prefix among those of one evaluation (`of_evaluation`). Their last values are the trial's results.

    `ability` and `accuracy` (of text: `right`): of the headline skill on the first of `compared_on` on which it is measured.
    `memory`: of all answers on training tasks, up to the end of the constant learning rate.
    """
    family = cast(Family, study.family)
    skill, mixture = study.shown_skills[0], family.mixture
    measured = {name.partition("/")[0] for name in named if name.split("/")[1:2] == [skill]}
    on = next((split for split in compared_on(family.ability_of) if split in measured), "held_out")
    found = {name: named.get(f"{on}/{skill}/{name}") for name in headline(family.ability_of)[:2]}
    if phase != "final" or not has_decay:
        found["memory"] = named.get(f"seen/{mixture}/memory")
    return {name: value for name, value in found.items() if value is not None}


def of_telemetry(events: list[Event]) -> Iterator[Point]:
    """Training curves and system metrics of a trial's telemetry (`recorded.trial_telemetry`)."""
    for event in events:
        for name in CURVES:
            for step, at, value in zip(event["steps"], event["times"], event.get(name) or (), strict=False):
                if value is not None and math.isfinite(value):
                    yield Point(f"train/{name}", float(value), at, step)
        yield from _system(event)


def of_sampling(trial: TrialSpec, events: list[Event]) -> Iterator[Point]:
    """Answers per second of training along a trial of arm `reward`, sampling and learning together. events: as in `of_telemetry`."""
    length = cast(Family, trial.family).length(trial.arm)
    for event in events if trial.reward is not None else ():
        for step, at, speed in zip(event["steps"], event["times"], event["tokens_per_second"], strict=True):
            if speed is not None and math.isfinite(speed):
                yield Point("reward/samples_per_second", speed / length, at, step)


def against_start(end: Event) -> Iterator[Point]:
    """The counts of `analysis/reranking.py` as `reranking/<name>`, and the start model's pass@k as `start/pass_at`, with k as step."""
    if (facts := end.get("reranking")) is None:
        return
    for name, n in reranking.counts(facts).items():
        yield Point(f"reranking/{name}", float(n), end["time"], end["step"])
    k, n_samples = 1, facts["n_samples"]
    while k <= n_samples:
        share = pass_at_k(n_samples, np.array(facts["sampled_right"]), k).mean()
        yield Point("start/pass_at", float(share), end["time"], k)
        k *= 2


def _system(event: Event) -> Iterator[Point]:
    """The samples of a trial's workers in one telemetry event, one a rank."""
    workers = event.get("system") or []
    at, step = (event["times"][-1], event["steps"][-1]) if event["steps"] else (event["time"], event["step"])
    for rank, sample in enumerate(workers):
        prefix = f"system/rank_{rank}/" if len(workers) > 1 else "system/"
        for field, name in zip(SYSTEM_FIELDS, _SYSTEM, strict=True):
            if (value := sample.get(field)) is not None and math.isfinite(value):
                yield Point(prefix + name, float(value), at, step)


def of_end(event: Event, ability_of: str = "nll") -> dict[str, float]:
    """Costs of a trial that has ended. A diverged trial has no results: NaN follows the values on its way."""
    found = {f"trial_cost/{name}": float(event[name]) for name in COSTS if event.get(name) is not None}
    return found | (dict.fromkeys(headline(ability_of)[:2], math.nan) if event["status"] == "diverged" else {})
