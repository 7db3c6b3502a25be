"""One training run, told in order: `run_trunk` trains a trunk and reads its trials off along it.

    python -m trainers trial.json          # alone: no Ray, no MLflow

The trunk trains at a constant rate. At each budget it branches: the learning rate decays over the last part, the trial is
evaluated and ends, and the trunk goes on from where it was. Whatever happens is emitted as keyed events; a checkpoint
contains every event emitted before it, so a killed run continues bit for bit and re-emits what may have been lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from trainers import budget, checkpoint
from trainers.engine import Diverged, Engine, Tensors
from trainers.place import Place
from trainers.spec import Training, TrialSpec, TrunkSpec
from trainers.tasks import ItemSet

Event = dict[str, Any]
Status = Literal["finished", "stopped"]

SAVES_SHARE = 20
"""A save that takes long is not made often: this many times as long is trained in between, unless one after each step is
asked for."""


def run_trunk(
    trunk: TrunkSpec,
    budgets: Sequence[float],
    place: Place,
    emit: Callable[[list[Event]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Status:
    """Train `trunk` and emit the results of its trials at `budgets` (training FLOPs each, in any order).

    Returns "stopped" when `should_stop` asked for it: a checkpoint then holds everything, and the same call goes on from
    there. Budgets that ended in an earlier call are simply left out. Raises BudgetTooSmall, ValueError for a batch that the
    workers cannot share, and OSError when a checkpoint cannot be written.

    In a process group every rank makes this call, and does the same; rank 0 alone emits, saves and is asked to stop.
    """
    # 1. The plan: at which steps something happens. All of it follows from the spec.
    started = time.time()
    torch.set_num_threads(place.threads)
    family: Any = trunk.family
    fingerprint = trunk.fingerprint()
    cost = budget.flops_per_step(trunk)
    steps = {b: budget.steps_of(trunk, b) for b in sorted(budgets)}
    last = max(s.branch for s in steps.values())
    grid = set(budget.evaluation_steps(trunk, last))

    # 2. The model, its optimiser and DeepSpeed's engine; then the exam, the same for the whole run.
    engine = Engine(trunk, place)
    leads = engine.rank == 0
    suite = suite_of(trunk)
    exam_flops = family.suite_size(trunk) * budget.forward_flops_per_sequence(*budget.shape_of(trunk))

    # 3. Where we stand: at the start, or where a checkpoint left off. `now` is all the progress there is, as JSON.
    now: dict[str, Any] = {"step": 0, "branch": None, "loss_sum": 0.0, "loss_n": 0}
    now |= {"ended": [], "exams": [], "events": [], "resumed": 0, "saves": 0}
    now |= {"steps_charged": 0, "exams_charged": 0, "train_seconds": 0.0, "eval_seconds": 0.0}  # since a trial ended
    left: dict[str, Any] = {}  # while on a branch: where the trunk was left, step and loss
    left_state: Tensors = {}  # and its weights and moments
    folder = place.checkpoint_folder
    found = _newest_checkpoint(trunk, folder, engine) if folder else None
    if found and budget.Standing.of(found[0]).toward(steps):
        now, left, left_state = found[0]["now"], found[0]["left"], found[1].get("left", {})
        engine.restore(found[1]["live"])
        now["resumed"] += 1
        if now["events"] and leads:
            emit([{"fingerprint": fingerprint} | event for event in now["events"]])  # earlier versions named none
    elif found and folder and leads:
        checkpoint.clear(folder)  # it has passed a budget that is wanted now: train again from the start
    saved_at, save_seconds = time.monotonic(), 0.0

    def say(kind: str, key: str, **facts: Any) -> None:
        event: Event = {"kind": kind, "key": f"{trunk.id}/{key}", "trunk": trunk.id, "fingerprint": fingerprint}
        event |= {"time": time.time(), **facts}
        now["events"].append(event)
        if leads:
            emit([event])

    def save() -> None:
        nonlocal saved_at, save_seconds
        begin = time.monotonic()
        if folder:
            tensors = {"live": engine.snapshot()} | ({"left": left_state} if left_state else {})
            now["saves"] += 1
            if leads:
                checkpoint.save(folder, now["saves"], trunk.fingerprint(), {"now": now, "left": left}, tensors)
        saved_at = time.monotonic()
        save_seconds = saved_at - begin

    def examine(on: str, **facts: Any) -> bool:
        """Evaluate and emit, once for each (trunk or branch, step) even across restarts. Is the model still finite?"""
        key = f"{on}/{now['step']}"
        if key in now["exams"]:
            return True
        with _timed(now, "eval_seconds"):
            rows = evaluate(engine, suite)
        facts |= {"train_loss_nats": now["loss_sum"] / now["loss_n"] if now["loss_n"] else None, "rows": rows}
        now["exams_charged"] += 1
        now["exams"].append(key)
        facts |= {"step": now["step"], "flops": now["step"] * cost, "flops_run": now["steps_charged"] * cost}
        say("evaluation", key, on=on, **facts)
        if facts.get("grid"):  # only there, so that a trial's numbers do not depend on the other budgets
            now.update(loss_sum=0.0, loss_n=0)
        return all(row["nll_nats"] is not None for row in rows if row["n"])

    def end_trial(budget_flops: float, status: str, **facts: Any) -> None:
        facts |= {"compute_flops": budget_flops, "status": status, "step": now["step"]}
        facts |= {"flops_own": now["step"] * cost, "flops_run": now["steps_charged"] * cost}
        facts |= {"eval_flops": now["exams_charged"] * exam_flops, "attempt": now["resumed"] + 1}
        facts |= {"train_seconds": now["train_seconds"], "eval_seconds": now["eval_seconds"]}
        facts |= {"workers": engine.world, "micro_batch": engine.micro_batch}
        facts |= {name: getattr(place, name) for name in ("zero_stage", "recompute", "offload", "compiled", "halvings")}
        trial = trunk.trial(budget_flops)
        say("trial", f"end/{budget_flops!r}", trial=trial.id, fingerprint=trial.fingerprint(), **facts)
        now["ended"].append(budget_flops)
        now.update(steps_charged=0, exams_charged=0, train_seconds=0.0, eval_seconds=0.0)

    def return_to_trunk() -> None:
        engine.restore(left_state)
        now.update(left, branch=None)
        left.clear()
        left_state.clear()

    if now["branch"] is not None and now["branch"] not in steps:  # its trial ended after this checkpoint, and was told
        return_to_trunk()
        now.update(steps_charged=0, exams_charged=0, train_seconds=0.0, eval_seconds=0.0)
    setup_seconds = time.time() - started
    try:
        while now["branch"] is not None or any(b not in now["ended"] for b in steps):
            step, branch = now["step"], now["branch"]

            # 4. A branch is at its end: examine it, close its trial, return to the trunk where it was left.
            if branch is not None and step == steps[branch].end:
                if examine(repr(branch)):
                    if place.weights_folder:
                        _keep_weights(place.weights_folder, trunk.trial(branch), engine)
                    end_trial(branch, "done")
                else:
                    end_trial(branch, "diverged", reason=f"step {step}: weights not finite after the last update")
                return_to_trunk()
                continue

            # 5. The trunk is at a budget's branch point: examine it, remember it, let the learning rate decay from here.
            here = [b for b, s in steps.items() if s.branch == step and b not in now["ended"]]  # two may share a step
            if branch is None and here:
                decays = steps[here[0]].end > step
                loss = {"loss_sum": 0.0, "loss_n": 0} if decays else {k: now[k] for k in ("loss_sum", "loss_n")}
                if step in grid or decays:  # without a decay the final look is this one
                    examine("trunk", grid=step in grid)
                left |= {k: now[k] for k in ("step", "loss_sum", "loss_n")}
                left_state |= engine.snapshot()
                now.update(loss, branch=here[0])
                continue
            if branch is None and step in grid:
                examine("trunk", grid=True)

            # 6. Between two steps: is somebody asking us to stop, is it time to save?
            every = place.checkpoint_every_seconds
            patience = max(every, SAVES_SHARE * save_seconds) if every else 0.0
            asked, due = engine.agreed(leads and should_stop(), time.monotonic() - saved_at > patience)
            if asked or due:
                save()
            if asked:
                return "stopped"

            # 7. One optimizer step; a loss or gradient that is not finite ends what is under way, before the update.
            decay_from, end = steps[branch] if branch is not None else (None, last)
            rate = budget.learning_rate_at(trunk.training, step, decay_from, end)
            try:
                with _timed(now, "train_seconds"):
                    loss_nats = engine.step(family.batch(trunk, step), rate, step)
            except Diverged as reason:
                for lost in [branch] if branch is not None else [b for b in steps if b not in now["ended"]]:
                    end_trial(lost, "diverged", reason=str(reason))
                if branch is not None:
                    return_to_trunk()
                continue
            now.update(step=step + 1, steps_charged=now["steps_charged"] + 1)
            now.update(loss_sum=now["loss_sum"] + loss_nats, loss_n=now["loss_n"] + 1)

        # 8. Every budget has ended. The trunk's last constant-rate state stays: a larger budget may come later.
        save()
        seconds = {"setup_seconds": setup_seconds, "wall_seconds": time.time() - started}
        say("trunk", f"end/{len(now['ended'])}", device=place.device, resumed=now["resumed"], **seconds)
        return "finished"
    finally:
        engine.destroy()


SUITES_BYTES = 64 * 2**20
"""Suites that a process keeps for trunks to come: some forty of the quickstart's, of 1.5 MB each."""
_SUITES: dict[str, list[ItemSet]] = {}  # by what they depend on, the one used last at the end


def suite_of(trunk: TrunkSpec) -> list[ItemSet]:
    """A trunk's evaluation suite, kept for others that are asked the same: variants of it, or its trials one by one.

    It is built from what it may depend on alone, so that no trunk is given the suite of another model's or optimiser's;
    of those it knows only the mixture in which the tasks are drawn.
    """
    asked = ("family", "arm", "n_tasks", "replicate", "evaluation")
    mixture = Training(task_exponent=trunk.training.task_exponent)
    bare = TrunkSpec(**{name: getattr(trunk, name) for name in asked}, training=mixture)
    family: Any = bare.family
    key = bare.fingerprint()
    suite = _SUITES.pop(key) if key in _SUITES else family.suite(bare)
    _SUITES[key] = suite
    while sum(items.n_bytes for kept in _SUITES.values() for items in kept) > SUITES_BYTES:
        del _SUITES[next(iter(_SUITES))]
    return suite


@torch.no_grad()
def evaluate(engine: Engine, suite: list[ItemSet]) -> list[dict[str, Any]]:
    """One row of raw sums per probe of the suite (`Probe.score`); changes neither the model nor any stream.

    Every rank reads its part of the sequences, and all score them.
    """
    rows = []
    for items in suite:
        tokens = torch.from_numpy(items.tokens[:, :-1])
        n_here = -(-len(tokens) // engine.world)
        mine = tokens.roll(-engine.rank * n_here, 0)[
            :n_here
        ]  # the last rank may begin again: what is too much is cut off
        with engine.autocast():
            parts = [_read(engine.model, part, items.written) for part in mine.split(256)]
        predicted = engine.gathered(torch.cat(parts))[: len(tokens)].cpu().numpy()  # (N, T, V), or (N, T) numbers
        rows += [probe.score(predicted) for probe in items.probes]
    return rows


def _read(model: torch.nn.Module, tokens: torch.Tensor, written: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (B, T, V) for tokens (B, T); at the positions `written` the model's likeliest token is what it
    goes on from, so that an early mistake is carried along as it would be in use. Numbers (B, T) for tokens (B, T, W)."""
    device = next(model.parameters()).device
    tokens = tokens.to(device, copy=True)
    for position in written:
        if position + 1 < tokens.shape[1]:
            tokens[:, position + 1] = model(tokens)[:, position].argmax(-1)
    out = model(tokens).float()
    return torch.Tensor(out[:, :, 0] if tokens.is_floating_point() else out.log_softmax(-1))


def _newest_checkpoint(
    trunk: TrunkSpec, folder: str, engine: Engine
) -> tuple[dict[str, Any], dict[str, Tensors]] | None:
    """What rank 0 finds, read by every rank; raises OSError on one that cannot."""
    found = checkpoint.newest(folder, trunk.fingerprint()) if engine.rank == 0 else None
    (number,) = engine.agreed(-1 if found is None else found)
    if number < 0:
        return None
    read = checkpoint.load(folder, trunk.fingerprint(), int(number))
    if read is None:
        raise OSError(f"{folder}: checkpoint {int(number)} cannot be read on rank {engine.rank}; do all nodes see it?")
    return read


def _keep_weights(folder: str, trial: TrialSpec, engine: Engine) -> None:
    weights = engine.snapshot(moments=False)
    if engine.rank == 0:
        checkpoint.save_weights(folder, trial.id, weights, {"trial": trial.model_dump_json()})


@contextmanager
def _timed(now: dict[str, Any], key: str) -> Any:
    begin = time.perf_counter()
    try:
        yield
    finally:
        now[key] += time.perf_counter() - begin
