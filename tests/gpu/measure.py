"""What a GPU is worth to a trial: speed against the card's own peak and against plain PyTorch, memory against its estimate,
losses against the CPU's.  `tests/gpu/run.sh`; knows the trainers' room alone.

Each part runs in a process of its own, so that peaks of memory are its own and a part that fails leaves the others standing.
On the CPU they share one: the same code on a small model, where aims are not judged, because they are a card's. What was
not measured is null in the JSON, with its reason beside it: a zero would be a finding.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # trainers/ travels beside this folder, not installed

import torch
import torch.nn.functional as F

from trainers import budget
from trainers.engine.engine import Engine, parameter_groups
from trainers.fit import memory
from trainers.fit.place import Place, halved
from trainers.models.transformer import Transformer, build
from trainers.objectives.supervised import Supervised
from trainers.shapes import PRESETS, Model
from trainers.spec import TrunkSpec
from trainers.tasks import Batch
from trainers.train import run_trunk

Figures = dict[str, Any]


class Size(NamedTuple):
    """How much is measured."""

    preset: str
    vocab_size: int
    seq_len: int
    batch_size: int
    rounds: int
    steps_per_round: int
    products: tuple[int, ...]
    """Widths n of the square matrices n x n whose products are timed."""
    curve_steps: int
    compiled: bool = True
    """Blocks compiled, too?"""


ON_A_GPU = Size("124m", 50_304, 1024, 32, 10, 10, (2048, 4096, 8192, 16384), 300)
"""GPT-2's vocabulary of 50,257, filled up to a multiple of 64 as is usual (tensor cores want multiples of 8)."""
ON_THE_CPU = Size("0.1m", 256, 64, 8, 5, 2, (256, 512, 1024), 60)

CURVE_TOLERANCE_NATS = 1e-4
"""Between the fp32 losses of CPU and GPU at any step: assumed, some two hundred times what another order of sums came to on a
CPU, 4.8e-7 in 300 steps, in which the skill appeared; that is measured again beside it (`reordered_max_nats`)."""
BF16_TOLERANCE_NATS = 0.01
"""Between fp32 and bf16 in the mean over the last fifth of a curve: assumed. On a CPU single steps differed by up to 0.0016 in
the same 300."""
N_BATCHES = 4
"""Made beforehand and taken in turn: `urns` finds a draw by comparing it with every edge, seconds for a batch of 50,304 tokens."""

GIVEN = ("preset", "batch_size", "curve_steps")
"""What may be given instead."""


class Figure(NamedTuple):
    """A number that is told: where it comes from, how it is written, what it is, and what is aimed at."""

    of: str
    """The parts that it comes from."""
    form: str
    what: str
    least: float | None = None
    most: float | None = None


FIGURES: dict[str, Figure] = {
    "matmul_tflops": Figure("products", "{:.4g} TFLOP/s", "bf16 matrix product, the best of a few sizes: the measured peak"),
    "tokens_per_second": Figure("speed", "{:,.0f} tokens/s", "training, the faster of compiled or not"),
    "tokens_per_second_eager": Figure("speed", "{:,.0f} tokens/s", "training, not compiled"),
    "tokens_per_second_compiled": Figure("speed", "{:,.0f} tokens/s", "training, blocks compiled"),
    "compiled_over_eager": Figure("speed", "{:.3f} x", "speed of compiled blocks, not compiled being 1"),
    "compile_seconds": Figure("speed", "{:.1f} s", "the first compiled step, beyond a later one"),
    "mfu": Figure("products speed", "{:.3f}", "model FLOPs utilisation of the faster: FLOPs of trainers/budget.py by the measured peak", 0.42),
    "mfu_causal": Figure("products speed", "{:.3f}", "model FLOPs utilisation with attention counted at the half that a causal kernel must compute"),
    "engine_over_plain_eager": Figure("speed", "{:.3f} x", "speed of our engine, a plain PyTorch loop being 1, not compiled", 0.98),
    "engine_over_plain_compiled": Figure("speed", "{:.3f} x", "speed of our engine, a plain PyTorch loop being 1, both compiled", 0.98),
    "loss_engine_to_plain_nats": Figure("speed", "{:.2g} nats", "largest difference of their losses, same weights and batches"),
    "trunk_tokens_per_second": Figure("trunk", "{:,.0f} tokens/s", "a whole trunk by run_trunk, small vocabulary, batches made on the way"),
    "step_peak_gb": Figure("speed", "{:.3g} GB", "peak memory of training steps"),
    "step_estimate_gb": Figure("speed", "{:.3g} GB", "what trainers/fit/memory.py estimates for training steps"),
    "step_peak_over_estimate": Figure("speed", "{:.2f}", "peak by estimate of training steps: the estimate is meant to err upward", None, 1.0),
    "trunk_peak_gb": Figure("trunk", "{:.3g} GB", "peak memory of a trunk: branch, evaluations and checkpoint included"),
    "trunk_estimate_gb": Figure("trunk", "{:.3g} GB", "what trainers/fit/memory.py estimates for a trunk"),
    "trunk_peak_over_estimate": Figure("trunk", "{:.2f}", "peak by estimate of a trunk", None, 1.0),
    "reordered_max_nats": Figure("curves cpu_curves", "{:.2g} nats", "fp32 on the CPU, batch whole against in turns: what reordered sums come to"),
    "gpu_to_cpu_max_nats": Figure("curves cpu_curves", "{:.2g} nats", "fp32 on GPU against CPU, largest difference of a step's loss", None, CURVE_TOLERANCE_NATS),
    "bf16_to_fp32_max_nats": Figure("curves", "{:.2g} nats", "bf16 against fp32 on this device, largest difference of a step's loss"),
    "bf16_to_fp32_late_nats": Figure("curves", "{:.2g} nats", "bf16 against fp32 on this device, means over the last fifth of the steps", None, BF16_TOLERANCE_NATS),
    "oom_halvings": Figure("out_of_memory", "{:d}", "halvings until a trunk fit into memory that was made too small on purpose", 1),
    "oom_loss_nats": Figure("out_of_memory", "{:.2g} nats", "first loss of the trunk that was halved against that of the same turns with memory to spare", None, 1e-2),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure, tell, write the JSON. Returns 1 where an aim was missed on a GPU, or a part failed; else 0."""
    options = _options(argv)
    if options.part:
        return _one_process(options)
    on_gpu = options.device == "cuda"
    print(f"{_machine(options.device)['name']}, torch {torch.__version__}", flush=True)
    groups = [[part] for part in PARTS] if on_gpu else [list(PARTS)]
    details: Figures = {}
    failed: dict[str, str] = {}
    for group in groups:
        told, lost = _apart(options, group, options.device)
        details, failed = details | told, failed | lost
    if on_gpu:  # a process has one accelerator: the CPU's curve comes from another one
        options.curve_steps = _size(options, "cuda").curve_steps
        told, lost = _apart(options, ["curves"], "cpu")
        details["cpu_curves"], failed = (
            told.get("curves", {}),
            failed | {f"cpu_{part}": why for part, why in lost.items()},
        )
    report = _report(options, details, failed)
    options.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    _tell(report)
    print(f"all of it: {options.out}")
    return 1 if failed or any(aim["held"] is False for aim in report["aims"].values()) else 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description="Measure what a GPU is worth to a trial.")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, choices=("cpu", "cuda"), help=f"default, as found here: {there}")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="model; default 124m on a GPU, 0.1m on the CPU")
    parser.add_argument("--batch-size", type=int, help="sequences a step; default 32 on a GPU, 8 on the CPU")
    parser.add_argument(
        "--curve-steps", type=int, help="steps of the curves compared; default 300 with a GPU, 60 without"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the figures as JSON (default gpu.json)")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out what needs torch.compile: it takes longest"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)  # a process of our own
    options = parser.parse_args(argv)
    if options.device == "cuda" and there == "cpu":
        parser.error("--device cuda: torch sees no GPU here")
    if options.batch_size is not None and (options.batch_size < 4 or options.batch_size % 4):
        parser.error(f"--batch-size {options.batch_size}: a multiple of 4 is needed, to be halved twice")
    if options.curve_steps is not None and options.curve_steps < 5:
        parser.error(f"--curve-steps {options.curve_steps}: at least 5 are needed, to have a last fifth")
    return options


def _size(options: argparse.Namespace, device: str) -> Size:
    given = {name: getattr(options, name) for name in GIVEN}
    size = (ON_A_GPU if device == "cuda" else ON_THE_CPU)._replace(compiled=not options.no_compile)
    return size._replace(**{k: v for k, v in given.items() if v is not None})


# Processes -------------------------------------------------------------------------------------------------------


def _apart(options: argparse.Namespace, parts: list[str], device: str) -> tuple[Figures, dict[str, str]]:
    """Run parts in a process of their own: what each found, and why one did not."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, __file__, "--part", ",".join(parts), "--device", device, "--out", str(out)]
        for name in GIVEN:
            if (given := getattr(options, name)) is not None:
                command += [f"--{name.replace('_', '-')}", str(given)]
        command += ["--no-compile"] * options.no_compile
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        code = subprocess.run(command, env=environment).returncode
        found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    lost = {part: f"its process ended with code {code}" for part in parts if part not in found}
    lost |= {part: told["failed"] for part, told in found.items() if "failed" in told}
    return {part: told for part, told in found.items() if "failed" not in told}, lost


def _one_process(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # as a slot has, and a curve on the CPU needs
    found: dict[str, Figures] = {}
    for part in options.part.split(","):
        print(f"measuring: {part} on {options.device} ...", flush=True)
        try:
            found[part] = PARTS[part](_size(options, options.device), options.device)
        except Exception as problem:  # told as its reason for not having been measured
            found[part] = {"failed": _one_line(problem)}
        options.out.write_text(json.dumps(found))
    return 0


def _one_line(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:300]


def _machine(device: str) -> Figures:
    about: Figures = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        return about | {"name": card.name, "memory_gb": card.total_memory / 1e9, "cuda": torch.version.cuda}
    return about | {"name": f"no GPU: this machine's CPU ({platform.machine()}), one thread, in small"}


# What is trained -------------------------------------------------------------------------------------------------


def _trunk(model: Model, vocab_size: int, seq_len: int, batch_size: int, precision: str = "bf16") -> TrunkSpec:
    """Urns: the one family with any vocabulary and any length, and a loss at every position. (The start token is one more.)"""
    return TrunkSpec.model_validate(
        {
            "family": {"name": "urns", "n_colors": vocab_size - 1, "n_draws": seq_len},
            "arm": "next_token",
            "n_tasks": 64,
            "replicate": 0,
            "model": model,
            "training": {"batch_size": batch_size, "learning_rate": 3e-4, "warmup_steps": 20, "precision": precision},
            "evaluation": {"n_sequences": 4, "first_flops": 1e30},
        }
    )


def _fit(trunk: TrunkSpec, device: str, others: int = 0) -> memory.Fit:
    """How it fits on the card, beside the states of so many other models of its size."""
    if device != "cuda":
        return memory.fit(trunk, 1, None)
    state = memory.state_bytes(budget.shape_of(trunk).n_parameters)
    return memory.fit(trunk, 1, torch.cuda.get_device_properties(0).total_memory - others * state.device)


def _place(fitted: memory.Fit, device: str) -> Place:
    chosen = {name: getattr(fitted, name) for name in ("zero_stage", "micro_batch", "recompute", "offload")}
    return Place(device=device, **chosen)


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_gb(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


# The parts -------------------------------------------------------------------------------------------------------


def products(size: Size, device: str) -> Figures:
    """The measured peak: bf16 products of square matrices (2 n³ FLOPs each), random numbers as training has."""
    tflops = {}
    for n in size.products:
        draw = torch.Generator(device).manual_seed(n)
        a, b = (torch.randn(n, n, device=device, generator=draw).bfloat16() for _ in range(2))
        once = 2 * n**3 / 1e12
        for _ in range(3):
            a @ b
        _settle(device)
        times = []
        repeats = max(1, round((20 if device == "cuda" else 0.02) / once))
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(repeats):
                a @ b
            _settle(device)
            times.append((time.perf_counter() - begin) / repeats)
        tflops[n] = once / min(times)
    best = max(tflops, key=lambda n: tflops[n])
    return {"matmul_tflops": tflops[best], "best_n": best, "tflops_by_n": {str(n): v for n, v in tflops.items()}}


class Plain:
    """What anybody would write: the same model, batches, autocast, clipping and AdamW, turn by turn; no DeepSpeed."""

    def __init__(self, trunk: TrunkSpec, place: Place) -> None:
        model, vocab_size, seq_len, _ = budget.shape_of(trunk)
        self.net: Transformer = build(model, vocab_size, seq_len, trunk.replicate).to(place.device)
        self.net.recompute = place.recompute
        if place.compiled:
            for block in self.net.blocks:
                block.compile()
        training, self.place, self.trunk = trunk.training, place, trunk
        betas = (training.beta1, training.beta2)
        groups = parameter_groups(self.net, trunk)
        self.adamw = torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, fused=True)

    def step(self, learning: Supervised, number: int, rate: float) -> float:
        """One optimizer step; the mean loss in nats. Every position is in the loss, so a turn weighs as its sequences."""
        batch = learning.batch(number)
        micro = self.place.micro_batch or len(batch.tokens)
        turns = len(batch.tokens) // micro
        total = torch.zeros((), device=self.place.device)
        in_bf16 = self.trunk.training.precision == "bf16"
        for rows in (slice(i * micro, (i + 1) * micro) for i in range(turns)):
            tokens = torch.from_numpy(batch.tokens[rows]).to(self.place.device)
            mask = torch.from_numpy(batch.loss_mask[rows]).to(self.place.device)
            with torch.autocast(self.place.device, torch.bfloat16, enabled=in_bf16):
                loss = F.cross_entropy(self.net(tokens[:, :-1], mask), tokens[:, 1:][mask])
            (loss / turns).backward()
            total += loss.detach() / turns
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.trunk.training.clip_norm)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return total.item()


class Prepared(Supervised):
    """Batches that were made before the clock runs, again and again."""

    def __init__(self, trunk: TrunkSpec, batches: list[Batch]) -> None:
        super().__init__(trunk)
        self.batches = batches

    def batch(self, step: int) -> Batch:
        return self.batches[step % len(self.batches)]


class Runner:
    """An engine or a plain loop on its way through the prepared batches."""

    def __init__(self, stepper: Any, trunk: TrunkSpec, batches: list[Batch]) -> None:
        self.stepper, self.trunk, self.learning = stepper, trunk, Prepared(trunk, batches)
        self.losses: list[float] = []

    def go(self, steps: int) -> float:
        """Seconds of so many steps, the device's own work included."""
        begin = time.perf_counter()
        for _ in range(steps):
            number = len(self.losses)
            rate = budget.learning_rate_at(self.trunk.training, number, None, 10**9)
            outcome = self.stepper.step(self.learning, number, rate)
            self.losses.append(outcome[0] if isinstance(outcome, tuple) else outcome)  # an engine's norm is beside it
        _settle(self.stepper.place.device)
        return time.perf_counter() - begin


def speed(size: Size, device: str) -> Figures:
    """Engine and plain loop, compiled or not, taking turns in each round and at going first; and the engine's memory."""
    trunk = _trunk(PRESETS[size.preset], size.vocab_size, size.seq_len, size.batch_size)
    family: Any = trunk.family
    begin = time.perf_counter()
    batches = [family.batch(trunk.request, i) for i in range(N_BATCHES)]
    found: Figures = {"batch_seconds": (time.perf_counter() - begin) / N_BATCHES}
    fitted = _fit(trunk, device, others=3)
    place = _place(fitted, device)
    found["fit"] = fitted.why

    runners = {"engine_eager": Runner(Engine(trunk, place), trunk, batches)}  # alone at first: the peak is its own
    runners["engine_eager"].go(3)
    found["step_peak_gb"] = _peak_gb(device)
    found["step_estimate_gb"] = _estimate_of_steps(trunk, place) / 1e9
    runners["plain_eager"] = Runner(Plain(trunk, place), trunk, batches)
    runners["plain_eager"].go(3)
    try:
        compiled = place.model_copy(update={"compiled": True})
        for name, kind in (("engine_compiled", Engine), ("plain_compiled", Plain)) if size.compiled else ():
            runner = Runner(kind(trunk, compiled), trunk, batches)
            first = runner.go(1)
            found.setdefault("compile_seconds", first - runner.go(2) / 2)
            runners[name] = runner
    except Exception as problem:  # no compiler, say: the rest is worth having
        found["not_compiled"] = f"nothing could be compiled: {_one_line(problem)}"
        runners = {name: runner for name, runner in runners.items() if "eager" in name}
    if not size.compiled:
        found["not_compiled"] = "left out with --no-compile"

    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for i in range(size.rounds):
        order = list(runners)
        for name in order[i % len(order) :] + order[: i % len(order)]:
            seconds[name].append(runners[name].go(size.steps_per_round) / size.steps_per_round)
    found["loss_engine_to_plain_nats"] = _largest_gap(runners["engine_eager"].losses, runners["plain_eager"].losses)
    return found | _of_seconds(trunk, seconds)


def _of_seconds(trunk: TrunkSpec, seconds: dict[str, list[float]]) -> Figures:
    """Speeds, and medians of the ratios within a round, from seconds a step by who took them."""

    def ratio(slow: str, fast: str) -> float | None:
        if not {slow, fast} <= seconds.keys():
            return None
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    family: Any = trunk.family
    tokens = trunk.training.batch_size * family.length(trunk.arm)
    found: Figures = {"seconds_per_step": {name: statistics.median(all_of) for name, all_of in seconds.items()}}
    for how in ("eager", "compiled"):
        took = found["seconds_per_step"].get(f"engine_{how}")
        found[f"tokens_per_second_{how}"] = tokens / took if took else None
        found[f"engine_over_plain_{how}"] = ratio(f"plain_{how}", f"engine_{how}")
    speeds = [found[f"tokens_per_second_{how}"] or 0.0 for how in ("eager", "compiled")]
    found["tokens_per_second"] = max(speeds)
    found["compiled_over_eager"] = ratio("engine_eager", "engine_compiled")
    found["tokens_per_step"], found["flops_per_step"] = tokens, budget.flops_per_step(trunk)
    model = trunk.model
    causal = 6 * tokens * model.n_layers * family.length(trunk.arm) * model.d_model  # half of budget.py's 2 T d a token
    return found | {"flops_per_step_causal": found["flops_per_step"] - causal}


def _estimate_of_steps(trunk: TrunkSpec, place: Place) -> int:
    """The estimate for bare training steps: no branch that was left, no checkpoint, no evaluation."""
    how = memory.How(place.zero_stage, place.micro_batch or trunk.training.batch_size, place.recompute, place.offload)
    need = memory.needs(trunk, 1, how)
    return need.state.device - need.state.left + max(need.activations + need.gathered, need.update)


def trunk(size: Size, device: str) -> Figures:
    """A trial of 50 steps by `run_trunk`: branch, evaluations, checkpoint. A vocabulary of 256, or exact references for the
    evaluation would be gigabytes of probabilities."""
    spec = _trunk(PRESETS[size.preset], 256, size.seq_len, size.batch_size)
    fitted, steps = _fit(spec, device), budget.MIN_STEPS
    place = _place(fitted, device)
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        there = place.model_copy(update={"checkpoint_folder": folder, "checkpoint_every_seconds": 1e9})
        run_trunk(spec, [float(steps * budget.flops_per_step(spec))], there, events.extend)
    (trial,) = [event for event in events if event["kind"] == "trial"]
    if trial["status"] != "done":
        raise RuntimeError(f"the trial ended as {trial['status']}: {trial.get('reason', 'no reason told')}")
    tokens = steps * size.batch_size * size.seq_len
    return {
        "trunk_tokens_per_second": tokens / trial["train_seconds"],
        "trunk_peak_gb": _peak_gb(device),
        "trunk_estimate_gb": fitted.device_bytes / 1e9,
        "trunk_fit": fitted.why,
        "trunk_train_loss_nats": [event["train_loss_nats"] for event in events if event["kind"] == "evaluation"],
    }


def curves(size: Size, device: str) -> Figures:
    """Losses of a small model on cipher, step by step, on this device: fp32, bf16, and fp32 in turns, whose sums come in
    another order. Weights and batches come from numpy's streams, so that they are alike everywhere."""
    found: Figures = {}
    for name, precision, micro_batch in (("fp32", "fp32", None), ("bf16", "bf16", None), ("turns", "fp32", 8)):
        spec = TrunkSpec.model_validate(
            {
                "family": {"name": "cipher", "n_symbols": 8, "n_pairs": 12},
                "arm": "answer",
                "n_tasks": 64,
                "replicate": 0,
                "model": {"n_layers": 2, "d_model": 64, "n_heads": 4, "conv_kernel": 4, "init_gain": 1.0, "embed_std": 0.3},
                "training": {"batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 20, "precision": precision},
            }
        )  # fmt: skip
        engine, learning = Engine(spec, Place(device=device, micro_batch=micro_batch)), Supervised(spec)
        rates = [budget.learning_rate_at(spec.training, i, None, 10**9) for i in range(size.curve_steps)]
        found[name] = [engine.step(learning, i, rate)[0] for i, rate in enumerate(rates)]
        engine.destroy()
    return found


def out_of_memory(size: Size, device: str) -> Figures:
    """Make the card too small for a whole batch, and halve until it fits: `place.halved`, for real. Nothing on the CPU, where
    memory that runs out ends the process, or the machine."""
    if device == "cpu":
        return {}
    spec = _trunk(PRESETS[size.preset], 256, size.seq_len, size.batch_size)
    learning = Supervised(spec)

    def first_steps(place: Place) -> float:
        engine = Engine(spec, place)
        try:
            first, _ = engine.step(learning, 0, 1e-4)
            engine.step(learning, 1, 1e-4)
            return first
        finally:
            engine.destroy()

    small = Place(device=device, micro_batch=size.batch_size // 4)
    expected = first_steps(small)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    cap = 1.25 * torch.cuda.max_memory_reserved()  # room for a quarter of the batch at once, and not for the whole
    torch.cuda.set_per_process_memory_fraction(cap / total)
    place: Place | None = Place(device=device)
    while place is not None:
        try:
            loss = first_steps(place)
            break
        except torch.OutOfMemoryError as problem:
            if not memory.is_out_of_memory(problem):
                raise RuntimeError("memory.is_out_of_memory does not know this card's words") from None
        gc.collect()  # here: what failed, and the tensors that its frames held, have been let go of
        torch.cuda.empty_cache()
        place = halved(place, size.batch_size, 1)
    else:
        raise RuntimeError(f"not even one sequence at once fitted {cap / 1e9:.3g} GB")
    found = {"oom_halvings": place.halvings, "oom_loss_nats": abs(loss - expected)}
    return found | {"oom_micro_batch": place.micro_batch, "oom_cap_gb": cap / 1e9}


PARTS: dict[str, Callable[[Size, str], Figures]] = {
    "products": products,
    "speed": speed,
    "trunk": trunk,
    "curves": curves,
    "out_of_memory": out_of_memory,
}


# Together --------------------------------------------------------------------------------------------------------


def _derived(details: Figures) -> Figures:
    """Figures that come of more than one part; those that lack one are left out."""
    flat: Figures = {k: v for part in PARTS for k, v in details.get(part, {}).items() if k in FIGURES}
    fast, peak, speeds = flat.get("tokens_per_second"), flat.get("matmul_tflops"), details.get("speed", {})
    if fast and peak:
        for name, cost in (("mfu", "flops_per_step"), ("mfu_causal", "flops_per_step_causal")):
            flat[name] = fast / speeds["tokens_per_step"] * speeds[cost] / (peak * 1e12)
    for kind in ("step", "trunk"):
        if flat.get(f"{kind}_peak_gb"):
            flat[f"{kind}_peak_over_estimate"] = flat[f"{kind}_peak_gb"] / flat[f"{kind}_estimate_gb"]
    here = details.get("curves")
    if here:
        late = len(here["fp32"]) * 4 // 5
        flat["bf16_to_fp32_max_nats"] = _largest_gap(here["bf16"], here["fp32"])
        flat["bf16_to_fp32_late_nats"] = abs(
            statistics.mean(here["bf16"][late:]) - statistics.mean(here["fp32"][late:])
        )
    on_cpu = details.get("cpu_curves", here)
    if on_cpu:
        flat["reordered_max_nats"] = _largest_gap(on_cpu["turns"], on_cpu["fp32"])
    if here and details.get("cpu_curves"):
        flat["gpu_to_cpu_max_nats"] = _largest_gap(here["fp32"], details["cpu_curves"]["fp32"])
    return flat


def _largest_gap(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _report(options: argparse.Namespace, details: Figures, failed: dict[str, str]) -> Figures:
    found = _derived(details)
    sound = {k: v for k, v in found.items() if v is not None and math.isfinite(v)}
    figures = {name: sound.get(name) for name in FIGURES}
    return {
        "machine": _machine(options.device),
        "size": _size(options, options.device)._asdict(),
        "figures": figures,
        "not_measured": {name: _why_not(name, options.device, details, failed) for name, v in figures.items() if v is None},
        "aims": {
            name: {"least": aim.least, "most": aim.most, "held": _held(aim, figures[name], options.device)}
            for name, aim in FIGURES.items()
            if aim.least is not None or aim.most is not None
        },
        "failed": failed,
        "details": details,
    }  # fmt: skip


def _held(aim: Figure, value: float | None, device: str) -> bool | None:
    """None where nothing was measured, or not on a GPU."""
    if value is None or device != "cuda":
        return None
    return (aim.least is None or value >= aim.least) and (aim.most is None or value <= aim.most)


def _why_not(name: str, device: str, details: Figures, failed: dict[str, str]) -> str:
    if "compile" in name and (why := details.get("speed", {}).get("not_compiled")):
        return str(why)
    if device == "cpu" and ("peak" in name or name.startswith(("gpu", "oom"))):
        return "no GPU"
    lost = {part: why for part, why in failed.items() if part in FIGURES[name].of.split()}
    return "; ".join(f"part '{part}' failed: {why}" for part, why in lost.items()) or "no finite value"


def _tell(report: Figures) -> None:
    """A line a figure; then what was not measured, and why."""
    for name, figure in FIGURES.items():
        if (value := report["figures"][name]) is not None:
            print(f"{figure.form.format(value):>20}  {figure.what}{_aim(figure, report['aims'].get(name))}")
    for name, why in report["not_measured"].items():
        print(f"{'not measured':>20}  {FIGURES[name].what}: {why}")


def _aim(figure: Figure, aim: Figures | None) -> str:
    if aim is None:
        return ""
    bound = f"at least {figure.least:g}" if figure.least is not None else f"at most {figure.most:g}"
    held = {True: "held", False: "MISSED", None: "not judged without a GPU"}[aim["held"]]
    return f" (aim: {bound}, {held})"


if __name__ == "__main__":
    sys.exit(main())
