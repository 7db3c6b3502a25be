"""The plan: every derived number of a study, its price in FLOPs and its time, before a machine is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from orchestrator.plan.jobs import Job, check_starts, jobs_of
from orchestrator.plan.options import Options, slots_of
from orchestrator.plan.order import coarse_to_fine, makespan
from orchestrator.record.journal import State
from orchestrator.study.schema import Study
from trainers import budget
from trainers.tasks import Family

START_SECONDS = 15.0
"""Time from the command to the first step (Ray, torch and DeepSpeed on each slot). Measured: 10 to 20 s on two cores."""

TRUNK_SECONDS = 0.1
"""Overhead of a trunk beyond training and evaluation, measured by `make bench`."""

GROUP_SECONDS = 12.0
"""Time in which Ray Train starts and ends a group. Measured: 10 s on two quiet cores (`time_multiplier`), more on busy ones."""


class Plan(NamedTuple):
    """Every derived number of a study."""

    study: Study
    jobs: list[Job]
    n_trials: int
    n_open: int
    train_flops: int
    """Training FLOPs still to run."""
    eval_flops: int
    kept_flops: int
    """Training FLOPs saved by checkpoints."""
    separate_flops: int
    tokens: int
    slots: int
    flops_per_second: float | None
    seconds: float | None
    source: str
    """Origin of `flops_per_second`; empty if that is unknown."""
    options: Options


def make(
    study: Study,
    state: State,
    slots: int,
    device: str,
    flops_per_second: float | None = None,
    folder: Path | None = None,
    options: Options = Options(),  # noqa: B008
) -> Plan:
    """The plan of the open jobs on `slots` slots; a time only if a throughput is known.

    With the study's `folder`, its checkpoints count. Raises StudyError if a trial cannot be placed on the workers, or must begin
    with weights that are lost.
    """
    todo = coarse_to_fine(study, jobs_of(study, state, folder, options), slots, options)
    if folder:
        check_starts(todo, state, folder, options.storage)
    speed, source = flops_per_second, "calibrated just now"
    if speed is None:
        speed, source = recorded_throughput(state, device), "recorded in this study"
    train_flops = sum(job.price.train_flops for job in todo)
    return Plan(
        study=study,
        jobs=todo,
        n_trials=len(study.trials()),
        n_open=sum(len(job.budgets) for job in todo),
        train_flops=train_flops,
        eval_flops=sum(job.price.all_flops - job.price.train_flops for job in todo),
        kept_flops=sum(budget.price(job.trunk, job.budgets).train_flops for job in todo) - train_flops,
        separate_flops=sum(job.price.separate_flops for job in todo),
        tokens=sum(_tokens(job) for job in todo),
        slots=slots,
        flops_per_second=speed,
        seconds=_seconds(todo, slots, speed, options),
        options=options,
        source=source if speed else "",
    )


def _tokens(job: Job) -> int:
    steps = job.price.train_flops // budget.flops_per_step(job.trunk)
    return int(steps * job.trunk.training.batch_size * cast(Family, job.trunk.family).length(job.trunk.arm))


def on_slots(plan: Plan, slots: int) -> Plan:
    """The same plan on another number of slots."""
    jobs = coarse_to_fine(plan.study, plan.jobs, slots, plan.options)
    return plan._replace(slots=slots, jobs=jobs, seconds=_seconds(jobs, slots, plan.flops_per_second, plan.options))


def _seconds(todo: Sequence[Job], slots: int, flops_per_second: float | None, options: Options) -> float | None:
    """Duration of these jobs from the command on; None if the speed is unknown."""
    if not todo:
        return 0.0
    if not flops_per_second:
        return None
    each = [j.price.all_flops / flops_per_second + TRUNK_SECONDS for j in todo]
    each = [s / j.placement.workers for s, j in zip(each, todo, strict=True)]  # assumed: no time for communication
    each = [s + (GROUP_SECONDS if j.placement.workers > 1 else 0) for s, j in zip(each, todo, strict=True)]
    return START_SECONDS + makespan(each, slots, [slots_of(j.placement, options) for j in todo])


def recorded_throughput(state: State, device: str) -> float | None:
    """FLOPs per second of one slot over a journal's trials on this device, evaluation included; None if none ran."""
    ended = [
        e
        for e in state.trials.values()
        if e["status"] != "failed" and e.get("device", device) == device and e.get("train_seconds")
    ]
    seconds = sum((e["train_seconds"] + e["eval_seconds"]) * e.get("workers", 1) for e in ended)
    return float(sum(e["flops_run"] + e["eval_flops"] for e in ended) / seconds) if seconds else None


def calibrate(study: Study, device: str) -> float:
    """FLOPs per second of one slot from one short trial: 50 steps, some 5 s with loading. Imports torch."""
    from trainers.fit.place import Place
    from trainers.train import run_trunk

    trunk = next(trunk for trunk in study.trunks() if trunk.start is None)
    events: list[dict[str, Any]] = []
    smallest = float(budget.flops_per_step(trunk) * budget.MIN_STEPS)
    run_trunk(trunk, [smallest], Place(device=device), events.extend)
    end = next(e for e in events if e["kind"] == "trial")
    return float((end["flops_run"] + end["eval_flops"]) / (end["train_seconds"] + end["eval_seconds"]))
