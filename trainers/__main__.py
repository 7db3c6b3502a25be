"""Run one trial, or several budgets of one trunk, alone: no Ray, no MLflow, no study.

    python -m trainers trial.json                     # {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 64, ...}
    python -m trainers trial.json --prove             # runs each trial also by itself; it must equal the trunk to the bit
    python -m trainers trial.json --events out.jsonl --checkpoints folder
    python -m trainers trial.json --workers 2 --zero-stage 2          # two processes, each with its half of the batch

`compute_flops` in the file is a number or a list of numbers. Bad input ends with one line and exit code 2. Ctrl-C and SIGTERM
save a checkpoint first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from trainers import budget
from trainers.checkpoint import check_writable
from trainers.fit import memory
from trainers.fit.place import Place, shares
from trainers.records import MAX_DIGITS, beyond_limits
from trainers.shapes import Dial, Model
from trainers.spec import Evaluation, Start, Training, TrialSpec, TrunkSpec
from trainers.tasks import FAMILIES, Family, FamilyError, failure_of

MAX_CHARACTERS = 1_000_000
"""Most characters of a trial's file. Usual files have some hundreds."""

Emit = Callable[[list[dict[str, Any]]], None]
"""A function that receives events (`train.Event`)."""


def main(argv: list[str] | None = None) -> int:
    """The entry point. Returns the exit code: 0 done, 1 the run or the proof failed, 2 bad input, 130 or 143 stopped."""
    parser = argparse.ArgumentParser(prog="python -m trainers", description="Train one trial or trunk, alone.")
    parser.add_argument("spec", type=Path, help="JSON file: a TrialSpec, compute_flops a number or a list")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--checkpoints", help="folder or URI for checkpoints; the same call then resumes")
    parser.add_argument("--events", type=Path, help="write the events here, JSON lines")
    parser.add_argument("--data", type=Path, help="folder of prepared tables (default: data, beside the file)")
    parser.add_argument("--keep-weights", help="folder or URI for the weights of every trial, as safetensors")
    parser.add_argument("--starts", help="folder or URI of the weights that its start names")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the batch (default 1)")
    parser.add_argument(
        "--zero-stage", type=int, default=0, choices=(0, 1, 2, 3), help="ZeRO stage (default 0: nothing is partitioned)"
    )
    parser.add_argument(
        "--micro-batch", type=int, help="sequences that a worker processes at once (default: its whole share)"
    )
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing, block by block")
    parser.add_argument("--offload", action="store_true", help="optimiser state in the host's memory (ZeRO 1 to 3)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (not with ZeRO 3)")
    parser.add_argument("--prove", action="store_true", help="run every trial by itself too, and compare to the bit")
    options = parser.parse_args(argv)
    try:
        options.data = options.data or options.spec.absolute().parent / "data"
        trunk, budgets = read(options.spec, options.data)
        for name in ("threads", "workers", "micro_batch"):
            if (given := getattr(options, name)) is not None and given < 1:
                raise ValueError(f"--{name.replace('_', '-')} {given}: at least 1 is needed")
        if options.offload and not options.zero_stage:
            raise ValueError("--offload: needs --zero-stage 1, 2 or 3")
        if options.prove and options.workers > 1:
            raise ValueError("--prove: needs --workers 1, because it compares to the bit")
        shares(trunk.training.batch_size, options.workers, options.micro_batch)
        if (trunk.start is None) != (options.starts is None):
            raise ValueError(
                "'start' in the file and --starts, the folder with its weights, belong together; give both or none"
            )
        if options.compile and options.zero_stage == 3:
            raise ValueError("--compile: not with --zero-stage 3, whose hooks inside a block would break every graph")
        for folder in (options.checkpoints, options.keep_weights):
            if folder:
                check_writable(folder)
        if options.events:
            _close_the_last_line(options.events)
    except (OSError, ValueError, OverflowError, RecursionError) as problem:
        print(f"{options.spec}: {_one_line(problem)}", file=sys.stderr)
        return 2
    stop = multiprocessing.get_context("spawn").RawValue("i", 0)
    with _signals_ask(stop):
        return _carry_out(options, trunk, budgets, stop)


def _carry_out(options: argparse.Namespace, trunk: TrunkSpec, budgets: list[float], stop: Any) -> int:
    """Run the trunk with options that are already checked. Returns the exit code.

    `stop` is an integer in shared memory: 0, or the number of the signal that asked to stop.
    """
    from trainers.engine.rows import NoTargetsError
    from trainers.engine.workers import WorkerLost, n_gpus
    from trainers.train import run_trunk  # imported here: a bad file is refused before torch is loaded

    if options.device == "cuda" and (here := n_gpus()) < options.workers:
        print(f"--device cuda: {here} GPUs here, {options.workers} are needed", file=sys.stderr)
        return 2
    place = Place(
        device=options.device,
        threads=options.threads,
        checkpoint_folder=options.checkpoints,
        weights_folder=options.keep_weights,
        starts_folder=options.starts,
        data_folder=str(options.data),
        zero_stage=options.zero_stage,
        micro_batch=options.micro_batch,
        recompute=options.recompute,
        offload=options.offload,
        compiled=options.compile,
    )
    emitted: list[dict[str, Any]] = []

    def emit(events: list[dict[str, Any]]) -> None:
        emitted.extend(events)
        _write(events, options.events)

    try:
        memory.with_less(
            lambda place: _run(trunk, budgets, place, options, stop, emit),
            place,
            trunk.training.batch_size,
            options.workers,
        )
    except (OSError, WorkerLost, NoTargetsError, FamilyError) as problem:
        if not stop.value or not isinstance(problem, WorkerLost):  # a signal ends a worker that is just starting
            print(f"{options.spec}: {_one_line(problem)}", file=sys.stderr)
            return 1
    if stop.value:
        kept = "the same command goes on from there" if options.checkpoints else "without --checkpoints nothing is kept"
        print(f"{options.spec}: stopped; {kept}", file=sys.stderr)
        return 128 + int(stop.value)
    if not options.prove:
        return 0
    agree = True
    for flops in budgets:
        alone: list[dict[str, Any]] = []
        apart = place.model_copy(update={"checkpoint_folder": None})
        if run_trunk(trunk, [flops], apart, alone.extend, lambda: bool(stop.value)) == "stopped":
            return 128 + int(stop.value)
        same = results_of(alone, trunk, flops) == results_of(emitted, trunk, flops)
        agree = agree and same
        print(f"{trunk.trial(flops).id}: by itself {'equals' if same else 'DIFFERS FROM'} the trunk, to the bit")
    return 0 if agree else 1


def _run(
    trunk: TrunkSpec, budgets: list[float], place: Place, options: argparse.Namespace, stop: Any, emit: Emit
) -> None:
    """Run the trunk on one worker in this process, or on several workers in processes of their own.

    If the run still finishes after a signal, `stop` is set to 0.
    """
    if options.workers == 1:
        from trainers.train import run_trunk

        if run_trunk(trunk, budgets, place, emit, lambda: bool(stop.value)) == "finished":
            stop.value = 0
        return
    # Run by `-m`, this module is called __main__, and another process cannot import that.
    from trainers import __main__ as module
    from trainers.engine.workers import together

    given = (trunk, budgets, place, options.events, stop)
    together(options.workers, options.device == "cuda", module._one_of_several, *given)


def _one_of_several(
    rank: int, trunk: TrunkSpec, budgets: list[float], place: Place, events: Path | None, stop: Any
) -> None:
    """Run the trunk as worker `rank` in its own process. `events` is the file for events, or None."""
    from trainers.train import run_trunk

    if place.device == "cuda":
        place = place.model_copy(update={"device": f"cuda:{rank}"})
    with _signals_ask(stop):  # Ctrl-C reaches every process of a terminal, and so may SIGTERM
        try:
            status = run_trunk(trunk, budgets, place, lambda emitted: _write(emitted, events), lambda: bool(stop.value))
        except OSError as problem:
            sys.exit(_one_line(problem))
    if rank == 0 and status == "finished":
        stop.value = 0


@contextmanager
def _signals_ask(stop: Any) -> Iterator[None]:
    """During the `with` block, the first Ctrl-C or SIGTERM sets `stop` to its number. The second one ends the process.

    Ignored signals stay ignored, as under nohup.
    """

    def ask(number: int, _: Any) -> None:
        stop.value = number
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def _write(events: list[dict[str, Any]], file: Path | None) -> None:
    """Append events to the file, if there is one, and print them."""
    if file:
        with file.open("ab", buffering=0) as out:
            data = "".join(json.dumps(event) + "\n" for event in events).encode()
            while data:
                data = data[out.write(data) :]
    try:
        for event in events:
            _show(event)
    except BrokenPipeError:  # the reader is gone; training goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _close_the_last_line(file: Path) -> None:
    """Make the file if there is none. Otherwise end its last line, if a kill or a full disk cut it off."""
    file.open("ab").close()
    if not file.is_file():
        return  # a pipe or a terminal
    with file.open("ab+", buffering=0) as out:
        if size := out.seek(0, os.SEEK_END):
            out.seek(size - 1)
            if out.read(1) != b"\n":
                out.write(b"\n")


def read(path: Path, data: Path) -> tuple[TrunkSpec, list[float]]:
    """The trunk and its budgets, ascending, in a trial's file. What the family's files hold is kept under `data`.

    Raises OSError if it cannot be read. Raises ValueError (pydantic's ValidationError is one) if it is no valid trial.
    """
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the file is longer than {MAX_CHARACTERS:,} characters, the most that a trial may have")
    raw = json.loads(text, object_pairs_hook=_each_key_once, parse_int=_whole_number)
    if not isinstance(raw, dict):
        raise ValueError("expected a JSON object")
    kind = _kind(raw.get("family"))
    _check_limits(raw, kind)
    flops = raw.pop("compute_flops", None)
    budgets = flops if isinstance(flops, list) else [flops]
    if not budgets or not all(isinstance(b, int | float) and not isinstance(b, bool) for b in budgets):
        raise ValueError(f"compute_flops: {flops!r} given; a number of FLOPs, or a list of them, is needed")
    if isinstance(given := raw.get("family"), dict) and not kind.resolved_fields & given.keys():
        raw["family"] = kind.resolved(given, path.absolute().parent, data, partial(print, file=sys.stderr))
    try:
        trunk = TrunkSpec.model_validate(raw)
        trials = [TrialSpec(**dict(trunk), compute_flops=float(b)) for b in budgets]
        for trial in trials:
            budget.steps_of(trunk, trial.compute_flops)
    except Exception as problem:
        if (failed := failure_of(kind, problem)) is None:
            raise
        raise FamilyError(failed) from None
    return trunk, sorted({trial.compute_flops for trial in trials})


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises ValueError if a key is given twice."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key '{twice}' is given twice; keep one")
    return mapping


def _whole_number(digits: str) -> int:
    """A JSON whole number. Raises ValueError beyond MAX_DIGITS digits, which Python would convert slowly."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits; at most {MAX_DIGITS} can be read")
    return int(digits)


PARTS = (("model", Model), ("model", Dial), ("training", Training), ("evaluation", Evaluation), ("start", Start))
"""(Key of a trial's file, record with the limits of the mapping there). The family is missing: its name decides its record."""


def _kind(family: Any) -> type[Family]:
    """The class of the family in a trial's file; `Family` if the file names no known one."""
    return FAMILIES.get(str(family.get("name")), Family) if isinstance(family, dict) else Family  # type: ignore[type-abstract]


def _check_limits(raw: dict[str, Any], kind: type[Family]) -> None:
    """Raises ValueError if a value of a trial's file is beyond the limit of its field. `kind` is the class of its family."""
    given: list[tuple[str, type[BaseModel], Any]] = [("", TrialSpec, raw), ("family", kind, raw.get("family"))]
    given += [(part, record, raw.get(part)) for part, record in PARTS]
    for part, record, keys in given:
        for place, message in beyond_limits(record, keys) if isinstance(keys, dict) else ():
            raise ValueError(f"{'.'.join(map(str, (part, *place))).removeprefix('.')}: {message}")


def results_of(events: list[dict[str, Any]], trunk: TrunkSpec, flops: float) -> list[Any]:
    """The results of a trial in the events of its trunk, without times. `flops` is its budget.

    They are its evaluations on the trunk and on its branch, and its end. Two runs with equal results agree to the bit.
    """
    branch = budget.steps_of(trunk, flops).branch
    results = []
    for event in (event for event in events if event["kind"] != "telemetry"):
        mine = event.get("on") == repr(flops) or event.get("trial") == trunk.trial(flops).id
        on_the_way = event.get("on") == "trunk" and (
            (event["grid"] and event["step"] < branch) or event["step"] == branch
        )
        if mine or on_the_way:
            results.append(
                [event.get(k) for k in ("kind", "step", "flops", "train_loss_nats", "rows", "status", "flops_own")]
            )
    return results


def _show(event: dict[str, Any]) -> None:
    """Print an event in one line: accuracies of an evaluation, or the end of a trial."""
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
    """The message of an error in one line of at most 1,000 characters."""
    text = _text(problem)
    return text if len(text) <= 1000 else f"{text[:1000]} ..."


def _text(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return " ".join((f"{where}: {message}" if where else message).split())
    return " ".join(str(problem).split())


if __name__ == "__main__":
    sys.exit(main())
