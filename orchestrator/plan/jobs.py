"""The open jobs of a study: one a trunk, with its open budgets and its workers. May not import Ray, MLflow or torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from orchestrator.plan.options import ONE_WORKER, Options, Placement
from orchestrator.record import links, recorded
from orchestrator.record.journal import State
from orchestrator.study.schema import Study, StudyError, differences
from trainers import budget, checkpoint, weights
from trainers.fit import memory
from trainers.spec import TrunkSpec

COMPILED_PARAMETERS = 10_000_000
"""Models of at least this size are compiled on a GPU. Compiling costs every trunk some seconds, too much for a small
model. Assumed: not yet measured on a GPU."""


class Job(NamedTuple):
    """One trunk with its open budgets; one Ray Tune trial executes it."""

    trunk: TrunkSpec
    budgets: tuple[float, ...]
    price: budget.Price
    """Cost of the part that is still to run."""
    at: budget.Standing = budget.START
    """Position of the checkpoint from which it resumes."""
    placement: Placement = ONE_WORKER
    """Its workers and its placement on them."""
    starts: tuple[float, ...] = ()
    """Those of its budgets whose final weights other trials begin with."""


def placements_of(study: Study, options: Options) -> dict[tuple[str, str], Placement]:
    """(condition, size) -> placement of its trials. Raises StudyError if a trial cannot be placed on the workers."""
    return {
        (condition, trunk.size): _placement(study, condition, trunk, options)
        for condition in study.conditions
        for trunk, _ in study.sizes(condition)
    }


def jobs_of(study: Study, state: State, folder: Path | None = None, options: Options = Options()) -> list[Job]:  # noqa: B008
    """The open jobs; `order.py` puts them into the order of work.

    A trial that has `ended` is not repeated. With the study's `folder`, a trunk is priced from its checkpoint on.
    Raises StudyError if a trial cannot be placed on the workers.
    """
    placements = placements_of(study, options)
    done, donors = ended(study, state), {*donors_of(study).values()}
    found = []
    for trunk, budgets in study.carried():
        owed = tuple(b for b in budgets if trunk.trial(b).id not in done)
        if owed:
            at = _standing(trunk, owed, folder, options.storage) if folder else budget.START
            where = placements[study.condition_of(trunk.arm, trunk.variant), trunk.size]
            starts = tuple(b for b in owed if trunk.trial(b).id in donors)
            found.append(Job(trunk, owed, budget.price(trunk, owed, at), at, where, starts))
    return found


def ended(study: Study, state: State) -> set[str]:
    """Ids of the trials that are not run again.

    They are done or diverged, or failed because they begin with the weights of a trial that diverged, or of one that failed for
    the same reason. Other failed trials are tried again.
    """
    statuses = {trial: event["status"] for trial, event in state.trials.items()}
    donors = donors_of(study) if "failed" in statuses.values() else {}

    def is_lost(trial: str) -> bool:
        status = statuses.get(trial)
        return status == "diverged" or (status == "failed" and trial in donors and is_lost(donors[trial]))

    return {trial for trial, status in statuses.items() if status == "done" or is_lost(trial)}


def donors_of(study: Study) -> dict[str, str]:
    """Id of a trial -> id of the trial whose weights it begins with, for each that has one."""
    if not any(study.start_of(condition) for condition in study.conditions):
        return {}
    return {trial.id: trial.start.trial for trial in study.trials() if trial.start}


def needed_starts(study: Study, state: State) -> set[str]:
    """Ids of the trials that others begin with which have not ended."""
    over = ended(study, state)
    return {donor for trial, donor in donors_of(study).items() if trial not in over}


def owes(study: Study, state: State) -> bool:
    """Whether any trial is open."""
    return bool({trial.id for trial in study.trials()} - ended(study, state))


def check_starts(todo: Sequence[Job], state: State, folder: Path, storage: str | None = None) -> None:
    """Refuse jobs that must begin with weights that are lost. Raises StudyError, in one line with the donor and the remedy.

    A trunk that resumes needs its start no more, except in arm `reward`, which also samples from it.
    """
    place = stored("starts", folder, storage)
    needed = [job.trunk.start.trial for job in todo if job.trunk.start and (job.at == budget.START or job.trunk.reward)]
    done = {trial for trial, event in state.trials.items() if event["status"] == "done"}
    lost = [trial for trial in dict.fromkeys(needed) if trial in done and not weights.size(place, trial)]
    if lost:
        more = f" (and those of {len(lost) - 1} more trials)" if len(lost) > 1 else ""
        raise StudyError(f"{links.without_password(weights.lost(lost[0], place))} missing{more}; {weights.REMEDY}")


def _placement(study: Study, condition: str, trunk: TrunkSpec, options: Options) -> Placement:
    """Place a trunk on workers, and fit it to a device's memory if that is known.

    Raises StudyError with the arithmetic if nothing fits, or if the batch cannot be divided.
    """
    asked = study.fitting(condition)
    given = {name: getattr(asked, name) for name in ("zero_stage", "micro_batch", "recompute", "offload")}
    room = options.gpu_bytes if options.device == "cuda" else None
    most = min(options.n_gpus or trunk.training.batch_size, trunk.training.batch_size)
    workers = options.workers or asked.workers
    source = f"--workers {options.workers}" if options.workers else "place"
    try:
        workers = workers or memory.workers_needed(trunk, room, most)
        part = room // options.slots_per_gpu if room and workers == 1 else room  # one-worker trunks share a GPU
        fit = memory.fit(trunk, workers, part, **given)
    except ValueError as problem:
        raise StudyError(f"{study.id}: {condition}: {source}: {problem}") from None
    large = budget.shape_of(trunk).n_parameters >= COMPILED_PARAMETERS
    pays = options.device == "cuda" and large and fit.zero_stage < 3
    return Placement(workers, fit, pays if asked.compiled is None else asked.compiled)


def checkpoint_folder(folder: Path, trunk: TrunkSpec, storage: str | None = None) -> str:
    """The folder of a trunk's checkpoints, named by its id, under the study's folder or `storage`."""
    return checkpoint.under(stored("checkpoints", folder, storage), trunk.id)


def stored(what: Literal["checkpoints", "weights", "starts"], folder: Path, storage: str | None = None) -> str:
    """The folder or URI of a study's checkpoints, of the final weights of its trials, or of those that others begin with."""
    return checkpoint.under(storage, folder.name, what) if storage else str(folder / what)


def _standing(trunk: TrunkSpec, budgets: Sequence[float], folder: Path, storage: str | None) -> budget.Standing:
    """The position from which a run for these budgets resumes: the newest checkpoint, or the start."""
    meta = checkpoint.peek(checkpoint_folder(folder, trunk, storage), trunk.fingerprint())
    steps = {b: budget.steps_of(trunk, b) for b in budgets}
    return (budget.Standing.of(meta).toward(steps) if meta else None) or budget.START


def check_against_record(study: Study, state: State, source: str) -> None:
    """Refuse a study that changed more than its axes under the same version. Raises StudyError with the fields.

    `state` is the whole journal: everything that has events is compared, ended or not.
    """
    changed: list[str] = []
    if state.study is not None:
        old = state.sessions[-1].get("science") or Study.from_record(state.study).science()
        changed = differences(old, study.science())
        if of_files := [line for line in changed if line.startswith("family.content.")]:
            path = getattr(study.family, "path", "")
            changed = [f"the content of {path}", *(line for line in changed if line not in of_files)]
    changed = changed or recorded.changed(state, study)
    if changed:
        raise StudyError(
            f"{source}: {study.id} has results of other settings; changed: {'; '.join(changed)}. "
            f"Raise 'version' to start afresh, or restore the old settings"
        )
