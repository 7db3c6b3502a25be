"""One training run, in order: `run_trunk` trains a trunk and ends one trial at each of its budgets.

    python -m trainers trial.json          # alone: no Ray, no MLflow

The trunk trains at a constant rate. At each budget it branches: the learning rate decays over the last part, the trial is
evaluated and ends, and the trunk continues from the branch point. All results are emitted as keyed events. A checkpoint
contains every event emitted before it. So a killed run continues bit for bit, and emits again all events that may be lost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal

import torch

from trainers import budget, checkpoint, weights
from trainers.data import store
from trainers.engine.engine import Diverged, Engine
from trainers.engine.evaluation import evaluate, suite_of
from trainers.engine.reranking import against_start
from trainers.fit.place import Place
from trainers.objectives import objective_of
from trainers.objectives.reward import RewardOnly
from trainers.spec import Start, TrialSpec, TrunkSpec
from trainers.tasks.text import packed_names
from trainers.telemetry import Telemetry, Watch, matmul_flops_per_second, on_of

Event = dict[str, Any]
"""A JSON object. `kind` is "evaluation", "trial", "trunk", "telemetry" or "tasks". `key` is the same if a resumed run emits it again."""
Status = Literal["finished", "stopped"]
"""`finished`: every budget has ended. `stopped`: `should_stop` ended the run early."""

SAVES_SHARE = 20
"""The time between two saves is at least this many times the duration of the last save. So saves take at most about 5 % of the
time. If `checkpoint_every_seconds` is 0, this rule is off. The first save comes after `checkpoint_every_seconds` alone, because
no duration is known yet."""


NOTHING: dict[str, Any] = {"loss_sum": 0.0, "loss_n": 0, "sampled": {"sums": {}, "transcripts": []}}
"""Sums of training since the last evaluation on the grid, before its first step. Arm `reward` has samples in place of a loss."""


class _Stopped(Exception):
    """Raised inside `run_trunk` when `should_stop` asks to stop. The step or evaluation in progress is done again on resume."""


def _to_stderr(note: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed
        print(note, file=sys.stderr, flush=True)


def run_trunk(
    trunk: TrunkSpec,
    budgets: Sequence[float],
    place: Place,
    emit: Callable[[list[Event]], None],
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = _to_stderr,
    watch: Watch = lambda live: None,
) -> Status:
    """Train `trunk` and emit the results of its trials at `budgets` (training FLOPs each, in any order).

    `emit` receives lists of events in order. After a resume it receives the earlier events again, with the same keys.
    `should_stop` is called between any two micro-batches, evaluation chunks and steps. If it returns True, the run returns
    "stopped". A checkpoint then holds all progress, and the same call continues from it. Without a checkpoint folder all
    progress is lost. Budgets that ended in an earlier call are skipped. `note` receives messages for people, such as a damaged
    checkpoint or a failed save. No result needs them. `watch` receives live values (`Telemetry.after_step`), at most once a
    second.

    Raises BudgetTooSmall for a budget of fewer than `budget.MIN_STEPS` steps; ValueError if the workers cannot share the batch;
    OSError, in one line, if checkpoints cannot be read or written, or the weights of its start are lost (`weights.load`).

    In a process group every rank makes this call and does the same work. Only rank 0 emits, saves and calls `should_stop` and
    `watch`.
    """
    # 1. The plan: the steps of branches and evaluations. The spec alone decides them.
    started = time.time()
    torch.set_num_threads(place.threads)
    if place.data_folder:
        store.use(place.data_folder)
    family: Any = trunk.family
    fingerprint, cost = trunk.fingerprint(), budget.flops_per_step(trunk)
    steps = {b: budget.steps_of(trunk, b) for b in sorted(budgets)}
    last, ends = (max(part) for part in zip(*steps.values(), strict=True))  # of the trunk, and of the largest budget
    grid = set(budget.evaluation_steps(trunk, last))

    # 2. The objective, then the engine (model, optimiser, DeepSpeed), then the evaluation suite, the same for the whole run.
    objective: Any = objective_of(trunk)
    by_reward = isinstance(objective, RewardOnly)
    peak = matmul_flops_per_second(place.device, trunk.training.precision, place.threads)  # while memory is free
    engine = Engine(trunk, place)
    leads = engine.rank == 0
    suite = suite_of(trunk)
    suite_flops = family.suite_size(trunk.request) * budget.shape_of(trunk).forward_flops

    # 3. The progress: from the start or from a checkpoint. `now` holds all of it as JSON (`checkpoint.Now` explains the keys).
    now: dict[str, Any] = {"step": 0, "branch": None} | NOTHING
    now |= {"ended": [], "exams": [], "events": [], "points": [], "resumed": 0, "saves": 0}
    # Since the last trial ended:
    now |= {"steps_charged": 0, "exams_charged": 0, "train_seconds": 0.0, "eval_seconds": 0.0}
    left: dict[str, Any] = {}  # during a branch: step and loss of the trunk at the branch point
    left_state: checkpoint.Tensors = {}  # and its weights and moments there
    folder = place.checkpoint_folder
    loaded = _newest_checkpoint(folder, fingerprint, engine, note) if folder else None
    resumes = loaded is not None and budget.Standing.of(loaded[0]).toward(steps) is not None
    if trunk.start:
        _begin_with(trunk.start, place, engine, resumes, trunk.reward is not None)
    if loaded and resumes:
        now, left, left_state = loaded[0]["now"], loaded[0]["left"], loaded[1].get("left", {})
        engine.restore(loaded[1]["live"])
        now["resumed"] += 1
        now = {"points": [], "sampled": NOTHING["sampled"]} | now  # older versions had none
        for event in now["events"]:
            event.setdefault("fingerprint", fingerprint)  # older versions named it only in trial events
        if now["events"] and leads:
            emit(now["events"])
    elif loaded and folder and leads:
        checkpoint.discard(folder)  # the trunk has passed a budget of this call: train again from the start
    names = None if any(event["kind"] == "tasks" for event in now["events"]) else family.trained_names(trunk.request)
    telemetry = Telemetry(trunk, place, engine.world * peak, now, watch if leads else lambda live: None)
    saved_at, save_seconds = time.monotonic(), 0.0
    saves_worked, noted = loaded is not None, False

    def emit_event(kind: str, key: str, **facts: Any) -> None:
        event = {"kind": kind, "key": f"{trunk.id}/{key}", "trunk": trunk.id, "time": time.time()}
        event |= {"fingerprint": fingerprint} | facts
        now["events"].append(event)
        if leads:
            emit([event])

    def emit_telemetry(load: bool = False) -> None:
        """Emit the pending points of the trunk or branch, or the `load` alone. Every rank must call it."""
        if now["points"] or load:
            on, step = on_of(now), now["points"][-1][0] if now["points"] else now["step"]
            facts = telemetry.take(engine.gathered(telemetry.system()))
            emit_event("telemetry", f"telemetry/{on}/{step}", on=on, step=step, **facts)

    def save(needed: bool = False) -> None:
        """Save a checkpoint. A failed save is noted, and the next one is tried when it is due: a full disk may pass.

        It raises OSError if no save has worked yet, because the folder may never be writable and little work is lost. It also
        raises if the save is `needed`, for a stop or at the end, because no later save follows.
        """
        nonlocal saved_at, save_seconds, saves_worked, noted
        begin = time.monotonic()
        if folder:
            tensors = {"live": engine.snapshot()} | ({"left": left_state} if left_state else {})
            now["saves"] += 1
            try:
                if leads:
                    checkpoint.save(folder, now["saves"], fingerprint, {"now": now, "left": left}, tensors)
                saves_worked, noted = True, False
            except OSError as problem:
                now["saves"] -= 1
                if needed or not saves_worked:
                    raise
                if not noted:
                    note(f"{trunk.id}: {problem.strerror or problem}; training goes on, and the save is tried again")
                noted = True
        saved_at = time.monotonic()
        save_seconds = saved_at - begin

    def stop_if_asked() -> None:
        """Raise _Stopped on every rank if `should_stop` asks for it."""
        if engine.agreed(leads and should_stop())[0]:
            raise _Stopped

    if by_reward:
        objective.write = partial(engine.write, between=stop_if_asked)

    def evaluate_once(on: str, **facts: Any) -> bool:
        """Evaluate and emit, once per (trunk or branch, step) even across restarts. Returns whether all losses are finite.

        `on` is "trunk", or the budget of the branch as text.
        """
        key = f"{on}/{now['step']}"
        if key in now["exams"]:
            return True
        emit_telemetry()
        with _timed(now, "eval_seconds"):
            rows = evaluate(engine, suite, stop_if_asked, detailed=on != "trunk")
        facts |= {"train_loss_nats": now["loss_sum"] / now["loss_n"] if now["loss_n"] else None, "rows": rows}
        facts |= {"sampled": now["sampled"]} if now["sampled"]["sums"] else {}
        now["exams_charged"] += 1
        now["exams"].append(key)
        facts |= {"step": now["step"], "flops": budget.flops_at(trunk, now["step"])}
        facts |= {"flops_run": now["steps_charged"] * cost}
        emit_event("evaluation", key, on=on, **facts)
        if facts.get("grid"):  # only on the grid: a trial's numbers must not depend on other budgets
            now.update(NOTHING)
        return all(row["nll_nats"] is not None for row in rows if row["n"])

    def end_trial(budget_flops: float, status: str, **facts: Any) -> None:
        """Emit the end of a trial. `status` is "done" or "diverged". The costs since the last trial's end are charged to it."""
        emit_telemetry()
        facts |= {"compute_flops": budget_flops, "status": status, "step": now["step"]}
        facts |= {"flops_own": budget.flops_at(trunk, now["step"]), "flops_run": now["steps_charged"] * cost}
        facts |= {"eval_flops": now["exams_charged"] * suite_flops, "attempt": now["resumed"] + 1}
        facts |= {"train_seconds": now["train_seconds"], "eval_seconds": now["eval_seconds"]}
        facts |= {"workers": engine.world, "micro_batch": engine.micro_batch}
        facts |= {name: getattr(place, name) for name in ("zero_stage", "recompute", "offload", "compiled", "halvings")}
        trial = trunk.trial(budget_flops)
        emit_event("trial", f"end/{budget_flops!r}", trial=trial.id, fingerprint=trial.fingerprint(), **facts)
        now["ended"].append(budget_flops)
        now.update(steps_charged=0, exams_charged=0, train_seconds=0.0, eval_seconds=0.0)

    def return_to_trunk() -> None:
        """End the branch: restore weights, moments, step and loss of the trunk at the branch point."""
        engine.restore(left_state)
        now.update(left, branch=None)
        now["points"].clear()
        left.clear()
        left_state.clear()

    if now["branch"] is not None and now["branch"] not in steps:  # its trial ended after this checkpoint
        return_to_trunk()
        now.update(steps_charged=0, exams_charged=0, train_seconds=0.0, eval_seconds=0.0)
    if names is not None:
        emit_event("tasks", "tasks", n_tasks=len(names), packed=packed_names(names))
    setup_seconds = time.time() - started
    try:
        while now["branch"] is not None or any(b not in now["ended"] for b in steps):
            step, branch = now["step"], now["branch"]

            # 4. Before each step or evaluation: are we asked to stop? Is a save or telemetry due?
            every = place.checkpoint_every_seconds
            interval = max(every, SAVES_SHARE * save_seconds) if every else 0.0
            is_due = time.monotonic() - saved_at > interval
            stopping, due, waiting = engine.agreed(leads and should_stop(), is_due, telemetry.is_due())
            if stopping:
                raise _Stopped
            if waiting:
                emit_telemetry(load=True)
            if due:
                save()

            # 5. The end of a branch: evaluate, end its trial, return to the branch point of the trunk.
            if branch is not None and step == steps[branch].end:
                if evaluate_once(repr(branch)):
                    with _timed(now, "eval_seconds"):
                        facts = against_start(engine, trunk, now, stop_if_asked)
                    _keep_weights(place, trunk.trial(branch), engine)  # before its end: dependents may begin at once
                    end_trial(branch, "done", **facts)
                else:
                    end_trial(branch, "diverged", reason=f"step {step}: weights not finite after the last update")
                return_to_trunk()
                continue

            # 6. A branch point of the trunk: evaluate, keep its state, start the branch.
            here = [b for b, s in steps.items() if s.branch == step and b not in now["ended"]]  # two may share a step
            if branch is None and here:
                decays = steps[here[0]].end > step
                so_far = NOTHING if decays else {k: now[k] for k in NOTHING}
                if step in grid or decays:  # without a decay, the evaluation at the branch's end is at this same step
                    evaluate_once("trunk", grid=step in grid)
                emit_telemetry()
                left |= {k: now[k] for k in ("step", *NOTHING)}
                left_state |= engine.snapshot()
                now.update(so_far, branch=here[0])
                continue
            if branch is None and step in grid and f"trunk/{step}" not in now["exams"]:
                evaluate_once("trunk", grid=True)
                continue

            # 7. One optimizer step. A loss or gradient that is not finite ends the branch, or all trials of the trunk.
            decay_from, end = steps[branch] if branch is not None else (None, ends)
            rate, before = budget.learning_rate_at(trunk.training, step, decay_from, end), now["train_seconds"]
            try:
                with _timed(now, "train_seconds"):
                    loss_nats, grad_norm = engine.step(objective, step, rate, stop_if_asked)
            except Diverged as reason:
                for diverged in [branch] if branch is not None else [b for b in steps if b not in now["ended"]]:
                    end_trial(diverged, "diverged", reason=str(reason))
                if branch is not None:
                    return_to_trunk()
                continue
            now.update(step=step + 1, steps_charged=now["steps_charged"] + 1)
            if by_reward:
                now["sampled"] = objective.after(now["sampled"])
            else:
                now.update(loss_sum=now["loss_sum"] + loss_nats, loss_n=now["loss_n"] + 1)
            shown = None if by_reward else loss_nats  # the surrogate of a policy gradient is no result
            telemetry.after_step(shown, rate, grad_norm, now["train_seconds"] - before, end)

        # 8. Every budget has ended. Save the trunk's last constant-rate state for larger budgets in a later call.
        save(needed=True)
        seconds = {"setup_seconds": setup_seconds, "wall_seconds": time.time() - started}
        emit_event("trunk", f"end/{len(now['ended'])}", device=place.device, resumed=now["resumed"], **seconds)
        return "finished"
    except _Stopped:  # the progress is consistent: an abandoned step or evaluation leaves no trace
        save(needed=True)
        return "stopped"
    finally:
        engine.destroy()


def _newest_checkpoint(
    folder: str, fingerprint: str, engine: Engine, note: Callable[[str], None]
) -> checkpoint.Loaded | None:
    """The newest checkpoint that this model can restore (`_fits`); None if there is none.

    Rank 0 chooses it, and every other rank reads the same one. Raises OSError if a rank cannot read it.
    """
    number, loaded = _newest_that_fits(folder, fingerprint, engine, note) if engine.rank == 0 else (-1, None)
    (agreed,) = engine.agreed(number)
    if engine.rank and agreed >= 0:
        loaded = checkpoint.load(folder, fingerprint, int(agreed))
        if loaded is None:
            raise OSError(
                f"{folder}: checkpoint {int(agreed)} cannot be read on rank {engine.rank}; do all nodes see it?"
            )
    return loaded


def _newest_that_fits(
    folder: str, fingerprint: str, engine: Engine, note: Callable[[str], None]
) -> tuple[int, checkpoint.Loaded | None]:
    """(number, checkpoint) of the newest that this model can restore, or (-1, None).

    Damaged and unreadable checkpoints are skipped, and `note` receives a message on them. Raises OSError if some cannot be
    read and no other one can be restored.
    """
    skipped: list[int] = []
    unreadable: OSError | None = None
    for number in reversed(checkpoint.numbers(folder)):
        try:
            loaded = checkpoint.load(folder, fingerprint, number)
        except OSError as problem:
            unreadable = unreadable or problem
            loaded = None
        if loaded and _fits(loaded, engine):
            if skipped:
                note(f"{folder}: checkpoint {skipped[0]} is damaged; training goes on from checkpoint {number}")
            return number, loaded
        if not checkpoint.is_anothers(folder, fingerprint, number):
            skipped.append(number)
    if unreadable:
        raise OSError(f"{folder}: no checkpoint can be read: {unreadable.strerror or unreadable}") from unreadable
    if skipped:
        note(f"{folder}: every checkpoint here is damaged; training begins at the start")
    return -1, None


def _fits(loaded: checkpoint.Loaded, engine: Engine) -> bool:
    """Can this model restore the checkpoint? Its tensors must have the model's names, shapes and types.

    On the trunk it must have exactly the part `live`. On a branch it must also have `left`, the trunk's state at the branch
    point.
    """
    meta, parts = loaded
    needed = {"live"} if meta["now"]["branch"] is None else {"live", "left"}
    return parts.keys() == needed and not any(engine.misfit(tensors) for tensors in parts.values())


def _begin_with(start: Start, place: Place, engine: Engine, resumes: bool, keeps: bool) -> None:
    """Set the weights to those of the start, unless the trunk resumes. `keeps`: the engine keeps a copy to sample from.

    Every rank must call it. Raises OSError, in one line, if they are lost or do not fit.
    """
    if resumes and not keeps:
        return
    if place.starts_folder is None:
        raise OSError(f"the weights of trial {start.trial}, with which this trunk begins, are in no known folder")
    tensors = weights.load(place.starts_folder, start)
    if (
        rows := tensors.get("position")
    ) is not None:  # of the donor's longer rows, whose sequences also begin at position 0
        tensors["position"] = rows[: budget.shape_of(engine.trunk).seq_len]
    if problem := engine.misfit(tensors):
        raise OSError(f"{weights.lost(start.trial, place.starts_folder)} of another shape than this trunk's: {problem}")
    if keeps:
        engine.keep_start(tensors)
    engine.restore(tensors)  # where it resumes, its checkpoint follows


def _keep_weights(place: Place, trial: TrialSpec, engine: Engine) -> None:
    """Write the trial's final weights to the folders that the place has for them. Every rank must call it."""
    wanted = {place.weights_folder, place.starts_folder if trial.compute_flops in place.starts else None} - {None}
    if wanted:
        tensors = engine.snapshot(moments=False)
        for folder in wanted if engine.rank == 0 else ():
            weights.save(str(folder), trial, tensors)


@contextmanager
def _timed(now: dict[str, Any], key: str) -> Any:
    """Add the seconds that the `with` block takes to now[key], also if it raises."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        now[key] += time.perf_counter() - begin
