"""The jobs that are still to do: one a trunk, with the budgets that it owes and the workers that it takes.

May not import Ray, MLflow or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.plan.options import ONE_WORKER, Laid, Options
from orchestrator.record import recorded
from orchestrator.record.journal import State
from orchestrator.study.schema import Study, StudyError, differences
from trainers import budget, checkpoint
from trainers.fit import memory
from trainers.spec import TrunkSpec

COMPILED_PARAMETERS = 10_000_000
"""Models of so many are compiled on a GPU: every trunk waits some seconds for it, small ones for nothing. Assumed: measured on
no GPU yet."""


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
    large = budget.shape_of(trunk).n_parameters >= COMPILED_PARAMETERS
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
