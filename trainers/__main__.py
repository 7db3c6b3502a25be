"""Run one trial, or several budgets of one trunk, alone: no Ray, no MLflow, no study.

    python -m trainers trial.json                     # {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 64, ...}
    python -m trainers trial.json --prove             # each trial also by itself: must agree with the trunk to the bit
    python -m trainers trial.json --events out.jsonl --checkpoints folder
    python -m trainers trial.json --workers 2 --zero-stage 2          # two processes, each with its half of the batch

`compute_flops` in the file is a number or a list of numbers. Bad input: one line, exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainers import budget, memory
from trainers.checkpoint import check_writable
from trainers.place import Place, shares
from trainers.spec import TrialSpec, TrunkSpec


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 the proof failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m trainers", description="Train one trial or trunk, alone.")
    parser.add_argument("spec", type=Path, help="JSON file: a TrialSpec, compute_flops a number or a list")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--checkpoints", help="folder or URI for checkpoints; the same call then resumes")
    parser.add_argument("--events", type=Path, help="write the events here, JSON lines")
    parser.add_argument("--keep-weights", help="folder or URI for the weights of every trial, as safetensors")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the batch (default 1)")
    parser.add_argument(
        "--zero-stage", type=int, default=0, choices=(0, 1, 2, 3), help="what ZeRO shares out (default 0)"
    )
    parser.add_argument("--micro-batch", type=int, help="sequences a worker takes at once (default: its whole share)")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing, by the block")
    parser.add_argument("--offload", action="store_true", help="optimiser state in the host's memory (ZeRO 1 to 3)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (not with ZeRO 3)")
    parser.add_argument("--prove", action="store_true", help="run every trial by itself too, and compare to the bit")
    options = parser.parse_args(argv)
    try:
        trunk, budgets = read(options.spec)
        for flops in budgets:
            budget.steps_of(trunk, flops)
        for name in ("threads", "workers", "micro_batch"):
            if (given := getattr(options, name)) is not None and given < 1:
                raise ValueError(f"--{name.replace('_', '-')} {given}: at least 1 is needed")
        if options.offload and not options.zero_stage:
            raise ValueError("--offload: needs --zero-stage 1, 2 or 3")
        if options.prove and options.workers > 1:
            raise ValueError("--prove: compares to the bit, and so with one worker alone")
        shares(trunk.training.batch_size, options.workers, options.micro_batch)
        if options.compile and options.zero_stage == 3:
            raise ValueError("--compile: not with --zero-stage 3, whose hooks inside a block would break every graph")
        for folder in (options.checkpoints, options.keep_weights):
            if folder:
                check_writable(folder)
        if options.events:
            options.events.open("a").close()
    except (OSError, ValueError, OverflowError, RecursionError) as problem:
        print(f"{options.spec}: {_one_line(problem)}", file=sys.stderr)
        return 2

    from trainers.train import run_trunk  # here: a bad file is refused before torch is loaded
    from trainers.workers import n_gpus, together

    if options.device == "cuda" and (here := n_gpus()) < options.workers:
        print(f"--device cuda: {here} GPUs here, {options.workers} are needed", file=sys.stderr)
        return 2
    place = Place(
        device=options.device,
        threads=options.threads,
        checkpoint_folder=options.checkpoints,
        weights_folder=options.keep_weights,
        zero_stage=options.zero_stage,
        micro_batch=options.micro_batch,
        recompute=options.recompute,
        offload=options.offload,
        compiled=options.compile,
    )
    if options.workers > 1:
        # Run by `-m` this module goes by a name that another process cannot import.
        from trainers import __main__ as module

        on_gpu = options.device == "cuda"
        memory.with_less(
            lambda place: together(
                options.workers, on_gpu, module._one_of_several, trunk, budgets, place, options.events
            ),
            place,
            trunk.training.batch_size,
            options.workers,
        )
        return 0
    told: list[dict[str, Any]] = []

    def emit(events: list[dict[str, Any]]) -> None:
        told.extend(events)
        _tell(events, options.events)

    memory.with_less(lambda place: run_trunk(trunk, budgets, place, emit), place, trunk.training.batch_size, 1)
    if not options.prove:
        return 0
    agree = True
    for flops in budgets:
        alone: list[dict[str, Any]] = []
        run_trunk(trunk, [flops], place.model_copy(update={"checkpoint_folder": None}), alone.extend)
        same = results_of(alone, trunk, flops) == results_of(told, trunk, flops)
        agree = agree and same
        print(f"{trunk.trial(flops).id}: by itself {'equals' if same else 'DIFFERS FROM'} the trunk, to the bit")
    return 0 if agree else 1


def _one_of_several(rank: int, trunk: TrunkSpec, budgets: list[float], place: Place, events: Path | None) -> None:
    from trainers.train import run_trunk

    if place.device == "cuda":
        place = place.model_copy(update={"device": f"cuda:{rank}"})
    run_trunk(trunk, budgets, place, lambda told: _tell(told, events))


def _tell(events: list[dict[str, Any]], file: Path | None) -> None:
    for event in events:
        _show(event)
    if file:
        with file.open("a") as out:
            out.writelines(json.dumps(event) + "\n" for event in events)


def read(path: Path) -> tuple[TrunkSpec, list[float]]:
    """The trunk and its budgets. Raises OSError or ValueError (pydantic's ValidationError is one)."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ValueError("expected a JSON object")
    flops = raw.pop("compute_flops", None)
    budgets = flops if isinstance(flops, list) else [flops]
    if not budgets or not all(isinstance(b, int | float) and not isinstance(b, bool) for b in budgets):
        raise ValueError(f"compute_flops: {flops!r} given; a number of FLOPs, or a list of them, is needed")
    trunk = TrunkSpec.model_validate(raw)
    return trunk, sorted({TrialSpec(**dict(trunk), compute_flops=float(b)).compute_flops for b in budgets})


def results_of(events: list[dict[str, Any]], trunk: TrunkSpec, flops: float) -> list[Any]:
    """What a trial came to: its evaluations, on the trunk up to its branch and on its branch, and its end; no times."""
    branch = budget.steps_of(trunk, flops).branch
    kept = []
    for event in events:
        mine = event.get("on") == repr(flops) or event.get("trial") == trunk.trial(flops).id
        on_the_way = event.get("on") == "trunk" and (
            (event["grid"] and event["step"] < branch) or event["step"] == branch
        )
        if mine or on_the_way:
            kept.append(
                [event.get(k) for k in ("kind", "step", "flops", "train_loss_nats", "rows", "status", "flops_own")]
            )
    return kept


def _show(event: dict[str, Any]) -> None:
    if event["kind"] == "evaluation":
        scores = [
            f"{row['skill']}({row['split']}) {row['n_correct'] / row['n']:.3f}"
            for row in event["rows"]
            if row["n_correct"] is not None
        ]
        where = "" if event["on"] == "trunk" else f" budget {float(event['on']):g}"
        print(f"step {event['step']:>6}{where}  " + "  ".join(scores), flush=True)
    elif event["kind"] == "trial":
        print(f"{event['trial']}: {event['status']} after {event['step']} steps, {event['flops_own']:.4g} FLOPs")


def _one_line(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    return str(problem)


if __name__ == "__main__":
    sys.exit(main())
