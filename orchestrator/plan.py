"""The plan: what is still to do, in which order, at what price. Prints every derived number before a machine is taken.

May not import Ray, MLflow or torch (calibrating does, in the function that calibrates).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from orchestrator.journal import State
from orchestrator.provenance import cpu_name
from orchestrator.study import Study, StudyError, differences
from trainers import budget, checkpoint
from trainers.spec import TrunkSpec
from trainers.tasks import Family

START_SECONDS = 15.0
"""From the command to the first step: Ray, then torch and DeepSpeed on each slot; seen 10 to 20 s on two cores."""
TRUNK_SECONDS = 0.1
"""Overhead of a trunk beyond its training and evaluation (`make bench` shows it)."""


class Options(NamedTuple):
    """Where a study runs: nothing here changes a result."""

    address: Literal["local", "auto"] | str = "local"
    """`local` starts Ray on this machine, `auto` joins the cluster this machine belongs to."""
    slots: int | None = None
    """Trunks at once; None: one per core (local), or as many as the cluster takes."""
    device: Literal["cpu", "cuda"] = "cpu"
    slots_per_gpu: int = 1
    """Trunks that share one GPU (`cuda` only)."""
    checkpoint_seconds: float = 30.0
    retries: int = 2
    """How often Ray starts a trunk again whose actor or machine died; it goes on from its checkpoint."""


class Job(NamedTuple):
    """One trunk with the budgets that it still owes: what one Ray Tune trial executes."""

    trunk: TrunkSpec
    budgets: tuple[float, ...]
    price: budget.Price
    """What is left to run."""
    at: budget.Standing = budget.START
    """From where its checkpoint goes on."""


def jobs(study: Study, state: State, folder: Path | None = None) -> list[Job]:
    """The jobs still to do, largest first: within 0-3 % of the makespan bound, where arrival order lost up to 36 %.

    A trial that is done or diverged is not repeated; one that failed is tried again. With the study's `folder`, a trunk is
    priced from its checkpoint on.
    """
    ended = {t for t, event in state.trials.items() if event["status"] in ("done", "diverged")}
    found = []
    for trunk in study.trunks():
        owed = tuple(b for b in study.budgets if trunk.trial(b).id not in ended)
        if owed:
            at = standing(trunk, owed, folder) if folder else budget.START
            found.append(Job(trunk, owed, budget.price(trunk, owed, at), at))
    return sorted(found, key=lambda job: -(job.price.train_flops + job.price.eval_flops))


def checkpoint_folder(folder: Path, trunk: TrunkSpec) -> Path:
    """Where a trunk keeps its checkpoints: under the study's folder, by its id."""
    return folder / "checkpoints" / trunk.id


def standing(trunk: TrunkSpec, budgets: Sequence[float], folder: Path) -> budget.Standing:
    """From where a run for these budgets will go on: the newest checkpoint, or the start."""
    meta = checkpoint.peek(checkpoint_folder(folder, trunk), trunk.fingerprint())
    steps = {b: budget.steps_of(trunk, b) for b in budgets}
    return (budget.Standing.of(meta).toward(steps) if meta else None) or budget.START


def check_against_record(study: Study, state: State, source: str) -> None:
    """Refuse a study that changed more than its axes under the same version. Raises StudyError naming the fields."""
    if state.study is None:
        return
    old = Study.from_record(state.study)
    recorded = state.sessions[-1].get("science", old.science())
    changed = differences(recorded, study.science())
    if changed:
        raise StudyError(
            f"{source}: {study.id} has results of other settings; changed: {'; '.join(changed)}. "
            f"Raise 'version' to start afresh, or restore the old settings"
        )
    for trial in study.trials():
        event = state.trials.get(trial.id)
        if event and event.get("fingerprint") not in (None, trial.fingerprint()):
            raise StudyError(
                f"{source}: {trial.id} was recorded with fingerprint {event['fingerprint']}, now it is "
                f"{trial.fingerprint()}; raise 'version' to start afresh"
            )


class Plan(NamedTuple):
    """Every derived number of a study."""

    study: Study
    jobs: list[Job]
    n_trials: int
    n_open: int
    train_flops: int
    """To run now."""
    eval_flops: int
    kept_flops: int
    """Training FLOPs that checkpoints make unnecessary."""
    separate_flops: int
    tokens: int
    slots: int
    flops_per_second: float | None
    seconds: float | None
    source: str


def make(
    study: Study,
    state: State,
    slots: int,
    device: str,
    flops_per_second: float | None = None,
    folder: Path | None = None,
) -> Plan:
    """The plan of what is still to do on so many slots; times only where a throughput is known.

    With the study's `folder`, its checkpoints are counted on.
    """
    todo = jobs(study, state, folder)
    speed, source = flops_per_second, "calibrated just now"
    if speed is None:
        speed, source = known_throughput(study, state, device)
    train_flops = sum(job.price.train_flops for job in todo)
    return Plan(
        study=study,
        jobs=todo,
        n_trials=len(study.trials()),
        n_open=sum(len(job.budgets) for job in todo),
        train_flops=train_flops,
        eval_flops=sum(job.price.eval_flops for job in todo),
        kept_flops=sum(budget.price(job.trunk, job.budgets).train_flops for job in todo) - train_flops,
        separate_flops=sum(job.price.separate_flops for job in todo),
        tokens=sum(_tokens(job) for job in todo),
        slots=slots,
        flops_per_second=speed,
        seconds=_seconds(todo, slots, speed),
        source=source,
    )


def _tokens(job: Job) -> int:
    steps = job.price.train_flops // budget.flops_per_step(job.trunk)
    return int(steps * job.trunk.training.batch_size * cast(Family, job.trunk.family).length(job.trunk.arm))


def on_slots(plan: Plan, slots: int) -> Plan:
    """The same plan on another number of slots."""
    return plan._replace(slots=slots, seconds=_seconds(plan.jobs, slots, plan.flops_per_second))


def _seconds(todo: Sequence[Job], slots: int, flops_per_second: float | None) -> float | None:
    """How long these jobs take from the command on; None where the speed is unknown."""
    if not todo:
        return 0.0
    if not flops_per_second:
        return None
    each = [(j.price.train_flops + j.price.eval_flops) / flops_per_second + TRUNK_SECONDS for j in todo]
    return START_SECONDS + makespan(each, slots)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of these jobs ends, started in order on the first free slot."""
    free = [0.0] * max(1, slots)
    for job in seconds:
        heapq.heappush(free, heapq.heappop(free) + job)
    return max(free)


# Throughput ---------------------------------------------------------------------------------------------------------


def shape_key(study: Study, device: str) -> str:
    """What throughput depends on: machine, device, model, batch, sequence length. Replicates and tasks do not matter."""
    facts = []
    for line, (arm, _) in study.lines.items():
        trunk, family = study.trunk_of(line), study.family_of(line)
        facts.append([trunk.model.model_dump(), trunk.training.batch_size, family.vocab_size, family.length(arm)])
    text = json.dumps([platform.machine(), cpu_name(), os.cpu_count(), device, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recorded_throughput(state: State, device: str) -> float | None:
    """FLOPs per second of one slot over a journal's trials on this device, evaluation included; None if none ran."""
    good = [
        e for e in state.trials.values() if e["status"] in ("done", "diverged") and e.get("device", device) == device
    ]
    ended = [e for e in good if e.get("train_seconds")]
    seconds = sum(e["train_seconds"] + e["eval_seconds"] for e in ended)
    return float(sum(e["flops_run"] + e["eval_flops"] for e in ended) / seconds) if seconds else None


def known_throughput(study: Study, state: State, device: str) -> tuple[float | None, str]:
    """FLOPs per second of one slot and where it is known from: this study's own trials, or an earlier run's like it."""
    if (speed := recorded_throughput(state, device)) is not None:
        return speed, "recorded in this study"
    table = _throughputs()
    if (speed := table.get(shape_key(study, device))) is not None:
        return speed, "recorded on this machine for this model"
    return None, "unknown before the first reports; plan --calibrate measures it"


def remember_throughput(study: Study, device: str, flops_per_second: float) -> None:
    """Keep a throughput for later plans. Best effort: a plan can live without."""
    path = _throughput_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(_throughputs() | {shape_key(study, device): flops_per_second}, indent=1))
        os.replace(temporary, path)
    except OSError:
        pass


def _throughput_file() -> Path:
    from orchestrator.journal import home_folder

    return home_folder() / "throughput.json"


def _throughputs() -> dict[str, float]:
    try:
        table: Any = json.loads(_throughput_file().read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def calibrate(study: Study, device: str) -> float:
    """FLOPs per second of one slot, from one short trial: 50 steps, some 5 s with loading. Imports torch."""
    from trainers.place import Place
    from trainers.train import run_trunk

    trunk = study.trunks()[0]
    events: list[dict[str, Any]] = []
    smallest = float(budget.flops_per_step(trunk) * budget.MIN_STEPS)
    run_trunk(trunk, [smallest], Place(device=device), events.extend)
    end = next(e for e in events if e["kind"] == "trial")
    speed = (end["flops_run"] + end["eval_flops"]) / (end["train_seconds"] + end["eval_seconds"])
    remember_throughput(study, device, speed)
    return float(speed)
