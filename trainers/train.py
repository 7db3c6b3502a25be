"""One training run, told in order: `run_trunk` trains a trunk and reads its trials off along it.

    python -m trainers trial.json          # alone: no Ray, no MLflow

The trunk trains at a constant rate. At each budget it branches: the learning rate decays over the last part, the trial is
evaluated and ends, and the trunk goes on from where it was. Whatever happens is emitted as keyed events; a checkpoint
contains every event emitted before it, so a killed run continues bit for bit and re-emits what may have been lost.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from pydantic import Field

from trainers import budget, checkpoint
from trainers.model import build
from trainers.spec import NotNegative, Record, Training, TrunkSpec
from trainers.tasks import ItemSet

Event = dict[str, Any]
Status = Literal["finished", "stopped"]


class Place(Record):
    """Where a trunk runs. Nothing here may change a result, so nothing here enters a fingerprint."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch on the CPU; one a slot, because results are promised to the bit only for the same number."""
    checkpoint_folder: str | None = None
    """Where this trunk's checkpoints live; none are written without it."""
    checkpoint_every_seconds: NotNegative = 30.0
    """What a kill may cost. Saving the quickstart's model takes about 10 ms (measure: `make bench`)."""


class Diverged(Exception):
    """A loss or gradient that is not finite, met before the update that it would have spoilt."""


def run_trunk(
    trunk: TrunkSpec,
    budgets: Sequence[float],
    place: Place,
    emit: Callable[[list[Event]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Status:
    """Train `trunk` and emit the results of its trials at `budgets` (training FLOPs each, in any order).

    Returns "stopped" when `should_stop` asked for it: a checkpoint then holds everything, and the same call goes on from
    there. Budgets that ended in an earlier call are simply left out. Raises BudgetTooSmall, and OSError when a
    checkpoint cannot be written.
    """
    # 1. The plan: at which steps something happens. All of it follows from the spec.
    started = time.time()
    torch.set_num_threads(place.threads)
    family: Any = trunk.family
    cost = budget.flops_per_step(trunk)
    steps = {b: budget.steps_of(trunk, b) for b in sorted(budgets)}
    last = max(s.branch for s in steps.values())
    grid = set(budget.evaluation_steps(trunk, last))

    # 2. The model, its optimiser and DeepSpeed's engine; then the exam, the same for the whole run.
    engine, adamw = _start_engine(trunk, place)
    suite = suite_of(trunk)
    exam_flops = family.suite_size(trunk) * budget.forward_flops_per_sequence(*budget.shape_of(trunk))

    # 3. Where we stand: at the start, or where a checkpoint left off. `now` is all the progress there is, as JSON.
    now: dict[str, Any] = {"step": 0, "branch": None, "loss_sum": 0.0, "loss_n": 0}
    now |= {"ended": [], "exams": [], "events": [], "resumed": 0, "saves": 0}
    now |= {"steps_charged": 0, "exams_charged": 0, "train_seconds": 0.0, "eval_seconds": 0.0}  # since a trial ended
    left: dict[str, Any] = {}  # while on a branch: where the trunk was left, step and loss
    left_state: checkpoint.Tensors = {}  # and its weights and moments
    folder = Path(place.checkpoint_folder) if place.checkpoint_folder else None
    found = checkpoint.load(folder, trunk.fingerprint()) if folder else None
    if found and budget.Standing.of(found[0]).toward(steps):
        now, left, left_state = found[0]["now"], found[0]["left"], found[1].get("left", {})
        _restore(engine.module, adamw, found[1]["live"])
        now["resumed"] += 1
        if now["events"]:
            emit(now["events"])
    elif found and folder:
        checkpoint.clear(folder)  # it has passed a budget that is wanted now: train again from the start
    saved_at = time.monotonic()

    def say(kind: str, key: str, **facts: Any) -> None:
        event = {"kind": kind, "key": f"{trunk.id}/{key}", "trunk": trunk.id, "time": time.time(), **facts}
        now["events"].append(event)
        emit([event])

    def save() -> None:
        nonlocal saved_at
        if folder:
            tensors = {"live": _snapshot(engine.module, adamw)} | ({"left": left_state} if left_state else {})
            now["saves"] += 1
            checkpoint.save(folder, now["saves"], trunk.fingerprint(), {"now": now, "left": left}, tensors)
        saved_at = time.monotonic()

    def examine(on: str, **facts: Any) -> bool:
        """Evaluate and emit, once for each (trunk or branch, step) even across restarts. Is the model still finite?"""
        key = f"{on}/{now['step']}"
        if key in now["exams"]:
            return True
        with _timed(now, "eval_seconds"):
            rows = evaluate(engine.module, suite)
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
        trial = trunk.trial(budget_flops)
        say("trial", f"end/{budget_flops!r}", trial=trial.id, fingerprint=trial.fingerprint(), **facts)
        now["ended"].append(budget_flops)
        now.update(steps_charged=0, exams_charged=0, train_seconds=0.0, eval_seconds=0.0)

    def return_to_trunk() -> None:
        _restore(engine.module, adamw, left_state)
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
                left_state |= _snapshot(engine.module, adamw)
                now.update(loss, branch=here[0])
                continue
            if branch is None and step in grid:
                examine("trunk", grid=True)

            # 6. Between two steps: is somebody asking us to stop, is it time to save?
            if should_stop():
                save()
                return "stopped"
            if time.monotonic() - saved_at > place.checkpoint_every_seconds:
                save()

            # 7. One optimizer step; a loss or gradient that is not finite ends what is under way, before the update.
            decay_from, end = steps[branch] if branch is not None else (None, last)
            rate = budget.learning_rate_at(trunk.training, step, decay_from, end)
            try:
                with _timed(now, "train_seconds"):
                    loss_nats = _step(engine, adamw, trunk, step, rate, place.device)
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
        engine = adamw = None
        _collect_garbage()


def _step(engine: Any, adamw: torch.optim.Optimizer, trunk: TrunkSpec, step: int, rate: float, device: str) -> float:
    """Batch, forward, backward, finite?, clip, update. Returns the loss in nats; raises Diverged before any update."""
    family: Any = trunk.family
    batch = family.batch(trunk, step)
    tokens = torch.from_numpy(batch.tokens).to(device)  # (B, T+1)
    loss_mask = torch.from_numpy(batch.loss_mask).to(device)  # (B, T)
    loss = engine(tokens[:, :-1], tokens[:, 1:], loss_mask)
    engine.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), trunk.training.clip_norm)
    loss_nats, length = loss.item(), norm.item()
    if not (math.isfinite(loss_nats) and math.isfinite(length)):
        adamw.zero_grad(set_to_none=True)
        raise Diverged(f"step {step}: loss {loss_nats:g} nats, gradient norm {length:g}")
    for group in adamw.param_groups:
        group["lr"] = rate * group["rate_share"]
    engine.step()
    return loss_nats


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
def evaluate(model: torch.nn.Module, suite: list[ItemSet]) -> list[dict[str, Any]]:
    """One row of raw sums per probe of the suite (`Probe.score`); changes neither the model nor any stream."""
    rows = []
    for items in suite:
        parts = [_read(model, part, items.written) for part in torch.from_numpy(items.tokens[:, :-1]).split(256)]
        predicted = torch.cat(parts).numpy()  # (N, T, V), or (N, T) numbers
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
    return torch.Tensor((out[:, :, 0] if tokens.is_floating_point() else out.log_softmax(-1)).cpu())


def _start_engine(trunk: TrunkSpec, place: Place) -> tuple[Any, Any]:
    """The model under DeepSpeed, ZeRO stage 0: everything here fits. Returns the engine and its AdamW."""
    deepspeed = _deepspeed(place.device)
    training = trunk.training
    model, vocab_size, length, numbers = budget.shape_of(trunk)
    net = build(model, vocab_size, length, trunk.replicate, training.base_d_model, numbers).to(place.device)
    adamw = torch.optim.AdamW(
        parameter_groups(net, trunk),
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        fused=True,
    )
    config = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.batch_size,
        "steps_per_print": 10**12,
        "gradient_clipping": 0.0,  # its default is 1, on top of our own
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=net, optimizer=adamw, config=config, dist_init_required=False)
    return engine, adamw


def parameter_groups(net: torch.nn.Module, trunk: TrunkSpec) -> list[dict[str, Any]]:
    """Weights by what AdamW does to them: decay on matrices only; `rate_share` is their part of the learning rate, less
    than one for the matrices of a model wider than the one for which the rate was tuned (`Training.base_d_model`)."""
    training, share = trunk.training, 1.0
    if training.base_d_model is not None:
        share = training.base_d_model / trunk.model.d_model
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for name, parameter in net.named_parameters():
        of_width = parameter.ndim >= 2 and not name.startswith(("embed", "position")) and "conv" not in name
        (vectors if parameter.ndim < 2 else inner if of_width and share != 1.0 else outer).append(parameter)
    groups = [
        {"params": outer, "weight_decay": training.weight_decay, "rate_share": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_share": 1.0},
        {"params": inner, "weight_decay": training.weight_decay, "rate_share": share},
    ]
    return [group for group in groups if group["params"]]


def _deepspeed(device: str) -> Any:
    """DeepSpeed, imported quietly, its process group of one in memory: no port but gloo's on loopback, no compiler."""
    on_gpu = device.startswith("cuda")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo listens even when it is alone
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles a C++ op at its first start, 22 s
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.distributed.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        torch.distributed.init_process_group(
            backend,
            store=torch.distributed.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )
        deepspeed.init_distributed(backend, dist_init_required=False, auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _snapshot(model: torch.nn.Module, adamw: torch.optim.Optimizer) -> checkpoint.Tensors:
    """Clones of weights, moments and step counts, by name. What DeepSpeed counts itself need not be copied."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().clone()
        tensors |= {f"{name}//{k}": v.detach().clone() for k, v in adamw.state.get(parameter, {}).items()}
    return tensors


@torch.no_grad()
def _restore(model: torch.nn.Module, adamw: torch.optim.Optimizer, tensors: checkpoint.Tensors) -> None:
    """The inverse of `_snapshot`, in place: bit for bit."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
        prefix = f"{name}//"
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not state:
            adamw.state.pop(parameter, None)  # before the first step AdamW has none
        for key, value in state.items():
            old = adamw.state[parameter].get(key)
            if old is None:
                adamw.state[parameter][key] = value.to(parameter.device).clone()
            else:
                old.copy_(value)


@cache
def _freeze_what_stays() -> None:
    gc.collect()
    gc.freeze()


def _collect_garbage() -> None:
    """Free the engine: `destroy()` leaves reference cycles that hold the weights (636 -> 1,432 MB after five models).

    The first time torch's and DeepSpeed's modules are put out of the collector's sight: 0.3 ms a trunk then, not 170.
    """
    _freeze_what_stays()
    gc.collect()


@contextmanager
def _timed(now: dict[str, Any], key: str) -> Any:
    begin = time.perf_counter()
    try:
        yield
    finally:
        now[key] += time.perf_counter() - begin
