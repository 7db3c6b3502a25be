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

from orchestrator.record import files, recorded
from orchestrator.record.journal import State
from orchestrator.record.provenance import cpu_name
from orchestrator.study.schema import Study, StudyError, differences
from trainers import budget, checkpoint
from trainers.fit import memory
from trainers.spec import TrunkSpec
from trainers.tasks import Family

START_SECONDS = 15.0
"""From the command to the first step: Ray, then torch and DeepSpeed on each slot; seen 10 to 20 s on two cores."""
TRUNK_SECONDS = 0.1
"""Overhead of a trunk beyond its training and evaluation (`make bench` shows it)."""
GROUP_SECONDS = 12.0
"""What it takes Ray Train to start a group of workers and to end it; seen 10 s on two quiet cores (time_multiplier), more on busy ones."""


COMPILED_PARAMETERS = 10_000_000
"""Models of so many are compiled on a GPU: every trunk waits some seconds for it, small ones for nothing. Assumed: measured on
no GPU yet."""


class Options(NamedTuple):
    """Where a study runs: nothing here changes a result."""

    address: Literal["local", "auto"] | str = "local"
    """`local` starts Ray on this machine, `auto` joins the cluster this machine belongs to."""
    slots: int | None = None
    """Workers at once, one a trunk unless it needs more; None: one per core (local), or as many as the cluster takes."""
    device: Literal["cpu", "cuda"] = "cpu"
    slots_per_gpu: int = 1
    """Trunks that share one GPU (`cuda` only)."""
    checkpoint_seconds: float = 30.0
    retries: int = 2
    """How often Ray starts a trunk again that failed or whose machine died; it goes on from its checkpoint."""
    storage: str | None = None
    """Where checkpoints go, if not to the study's folder: a folder that every node sees, or a URI of pyarrow.fs."""
    workers: int | None = None
    """Workers a trial, whatever the study says; None: as the study says, or as few as it fits on."""
    gpu_bytes: int | None = None
    """Memory of one GPU (`cuda` only); None: not known, and nothing is made to fit."""
    n_gpus: int | None = None
    """GPUs that there are (`cuda` only); None: not known before the cluster is asked."""
    keep_weights: bool = False
    """Keep the weights that each trial ends with, beside its checkpoints."""


class Laid(NamedTuple):
    """How a trunk is laid on workers: place, not science."""

    workers: int
    fit: memory.Fit | None
    """None: whole, as on one worker of a CPU."""
    compiled: bool = False


ONE_WORKER = Laid(1, None)


def slots_of(laid: Laid, options: Options) -> int:
    """Slots that a trunk takes: one, or one for each worker; of several workers each has a GPU to itself."""
    return laid.workers if laid.workers == 1 or options.device == "cpu" else laid.workers * options.slots_per_gpu


class Job(NamedTuple):
    """One trunk with the budgets that it still owes: what one Ray Tune trial executes."""

    trunk: TrunkSpec
    budgets: tuple[float, ...]
    price: budget.Price
    """What is left to run."""
    at: budget.Standing = budget.START
    """From where its checkpoint goes on."""
    laid: Laid = ONE_WORKER
    """The workers that share it, and how it is fitted to them."""


def widest(study: Study, options: Options) -> tuple[str, Laid]:
    """The line whose trials take most workers, and how they are laid. Raises StudyError for what cannot be laid."""
    laid = {line: [lay(study, line, trunk, options) for trunk, _ in study.sizes(line)] for line in study.lines}
    of_line = {line: max(sizes, key=lambda one: one.workers) for line, sizes in laid.items()}
    line = max(of_line, key=lambda name: of_line[name].workers)
    return line, of_line[line]


def jobs_of(study: Study, state: State, folder: Path | None = None, options: Options = Options()) -> list[Job]:  # noqa: B008
    """The jobs still to do, those of most workers first, then largest first: within 0-3 % of the makespan bound, where arrival
    order lost up to 36 %.

    A trial that is done or diverged is not repeated; one that failed is tried again. With the study's `folder`, a trunk is
    priced from its checkpoint on. Raises StudyError for what cannot be laid on the workers.
    """
    laid = {
        (*study.lines[line], trunk.size): lay(study, line, trunk, options)
        for line in study.lines
        for trunk, _ in study.sizes(line)
    }
    ended = _ended(state)
    found = []
    for trunk, budgets in study.carried():
        owed = tuple(b for b in budgets if trunk.trial(b).id not in ended)
        if owed:
            at = standing(trunk, owed, folder, options.storage) if folder else budget.START
            of = laid[trunk.arm, trunk.variant, trunk.size]
            found.append(Job(trunk, owed, budget.price(trunk, owed, at), at, of))
    return sorted(found, key=lambda job: (-job.laid.workers, -(job.price.train_flops + job.price.eval_flops)))


def _ended(state: State) -> set[str]:
    return {t for t, event in state.trials.items() if event["status"] in ("done", "diverged")}


def owes(study: Study, state: State) -> bool:
    """Is any trial still to do?"""
    return bool({trial.id for trial in study.trials()} - _ended(state))


def lay(study: Study, line: str, trunk: TrunkSpec, options: Options) -> Laid:
    """The workers of one trunk of a line and of those of its size, and how they are fitted to a device's memory where that is
    known.

    Raises StudyError with the arithmetic where nothing fits, and for a batch that cannot be shared so.
    """
    asked = study.fitting(line)
    given = {name: getattr(asked, name) for name in ("zero_stage", "micro_batch", "recompute", "offload")}
    room = options.gpu_bytes if options.device == "cuda" else None
    most = min(options.n_gpus or trunk.training.batch_size, trunk.training.batch_size)
    workers = options.workers or asked.workers
    source = f"--workers {options.workers}" if options.workers else "place"
    try:
        workers = workers or memory.workers_needed(trunk, room, most)
        part = (
            room // options.slots_per_gpu if room and workers == 1 else room
        )  # others of one worker are on the same GPU
        fit = memory.fit(trunk, workers, part, **given)
    except ValueError as problem:
        raise StudyError(f"{study.id}: {line}: {source}: {problem}") from None
    large = budget.n_parameters(*budget.shape_of(trunk)) >= COMPILED_PARAMETERS
    pays = options.device == "cuda" and large and fit.zero_stage < 3
    return Laid(workers, fit, pays if asked.compiled is None else asked.compiled)


def checkpoint_folder(folder: Path, trunk: TrunkSpec, storage: str | None = None) -> str:
    """Where a trunk keeps its checkpoints: by its id, under the study's folder or under the storage's."""
    return checkpoint.under(checkpoints_of(folder, storage), trunk.id)


def checkpoints_of(folder: Path, storage: str | None = None) -> str:
    """Where a study's checkpoints are: a folder, or a URI."""
    return checkpoint.under(storage, folder.name, "checkpoints") if storage else str(folder / "checkpoints")


def weights_of(folder: Path, storage: str | None = None) -> str:
    """Where the weights of a study's trials are kept, if they are."""
    return checkpoint.under(storage, folder.name, "weights") if storage else str(folder / "weights")


def standing(trunk: TrunkSpec, budgets: Sequence[float], folder: Path, storage: str | None = None) -> budget.Standing:
    """From where a run for these budgets will go on: the newest checkpoint, or the start."""
    meta = checkpoint.peek(checkpoint_folder(folder, trunk, storage), trunk.fingerprint())
    steps = {b: budget.steps_of(trunk, b) for b in budgets}
    return (budget.Standing.of(meta).toward(steps) if meta else None) or budget.START


def check_against_record(study: Study, state: State, source: str) -> None:
    """Refuse a study that changed more than its axes under the same version. Raises StudyError naming the fields.

    `state` is all that was recorded: whatever has events is compared, ended or not.
    """
    changed: list[str] = []
    if state.study is not None:
        old = state.sessions[-1].get("science") or Study.from_record(state.study).science()
        changed = differences(old, study.science())
    changed = changed or recorded.changed(state, study)
    if changed:
        raise StudyError(
            f"{source}: {study.id} has results of other settings; changed: {'; '.join(changed)}. "
            f"Raise 'version' to start afresh, or restore the old settings"
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
    """The plan of what is still to do on so many slots; times only where a throughput is known.

    With the study's `folder`, its checkpoints are counted on. Raises StudyError for what cannot be laid on the workers.
    """
    todo = jobs_of(study, state, folder, options)
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
        seconds=_seconds(todo, slots, speed, options),
        options=options,
        source=source,
    )


def _tokens(job: Job) -> int:
    steps = job.price.train_flops // budget.flops_per_step(job.trunk)
    return int(steps * job.trunk.training.batch_size * cast(Family, job.trunk.family).length(job.trunk.arm))


def on_slots(plan: Plan, slots: int) -> Plan:
    """The same plan on another number of slots."""
    return plan._replace(slots=slots, seconds=_seconds(plan.jobs, slots, plan.flops_per_second, plan.options))


def _seconds(todo: Sequence[Job], slots: int, flops_per_second: float | None, options: Options) -> float | None:
    """How long these jobs take from the command on; None where the speed is unknown."""
    if not todo:
        return 0.0
    if not flops_per_second:
        return None
    each = [(j.price.train_flops + j.price.eval_flops) / flops_per_second + TRUNK_SECONDS for j in todo]
    each = [seconds / j.laid.workers for seconds, j in zip(each, todo, strict=True)]  # assumed: no time for talk
    each = [s + (GROUP_SECONDS if j.laid.workers > 1 else 0) for s, j in zip(each, todo, strict=True)]
    return START_SECONDS + makespan(each, slots, [slots_of(j.laid, options) for j in todo])


def makespan(seconds: Sequence[float], slots: int, workers: Sequence[int] = ()) -> float:
    """When the last of these jobs ends, started in order on the slots that are free first, one for each of its workers."""
    free = [0.0] * max(1, slots)
    for job, n in zip(seconds, workers or [1] * len(seconds), strict=True):
        taken = [heapq.heappop(free) for _ in range(min(n, len(free)))]
        for _ in taken:
            heapq.heappush(free, taken[-1] + job)
    return max(free)


# Throughput ---------------------------------------------------------------------------------------------------------


def shape_key(study: Study, device: str) -> str:
    """What throughput depends on: machine, device, model, batch, sequence length. Replicates and tasks do not matter."""
    facts = []
    for line, (arm, _) in study.lines.items():
        family = study.family_of(line)
        for trunk, _ in study.sizes(line):
            facts.append([trunk.model.model_dump(), trunk.training.batch_size, family.vocab_size, family.length(arm)])
    # All cores of the machine, not those that we may use: they tell which machine it is.
    text = json.dumps([platform.machine(), cpu_name(), os.cpu_count(), device, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recorded_throughput(state: State, device: str) -> float | None:
    """FLOPs per second of one slot over a journal's trials on this device, evaluation included; None if none ran."""
    good = [
        e for e in state.trials.values() if e["status"] in ("done", "diverged") and e.get("device", device) == device
    ]
    ended = [e for e in good if e.get("train_seconds")]
    seconds = sum((e["train_seconds"] + e["eval_seconds"]) * e.get("workers", 1) for e in ended)
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
        known = _throughputs() | {shape_key(study, device): flops_per_second}
        files.replace(path, json.dumps(known, indent=1).encode())
    except OSError:
        pass


def _throughput_file() -> Path:
    from orchestrator.record.journal import home_folder

    return home_folder() / "throughput.json"


def _throughputs() -> dict[str, float]:
    try:
        table: Any = json.loads(_throughput_file().read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def calibrate(study: Study, device: str) -> float:
    """FLOPs per second of one slot, from one short trial: 50 steps, some 5 s with loading. Imports torch."""
    from trainers.fit.place import Place
    from trainers.train import run_trunk

    trunk = study.trunks()[0]
    events: list[dict[str, Any]] = []
    smallest = float(budget.flops_per_step(trunk) * budget.MIN_STEPS)
    run_trunk(trunk, [smallest], Place(device=device), events.extend)
    end = next(e for e in events if e["kind"] == "trial")
    speed = (end["flops_run"] + end["eval_flops"]) / (end["train_seconds"] + end["eval_seconds"])
    remember_throughput(study, device, speed)
    return float(speed)
