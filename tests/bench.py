"""Benchmarks: ratios, each measured side by side in one run, alternating.  `make bench`, some three minutes.

Prints a table; exits with 1 where a ratio misses its aim. No absolute time is judged: machines differ, and so does the
weather on them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import ray
import synthetic
import torch
from gpu.measure import Plain

from orchestrator.analysis import findings
from orchestrator.record.journal import read
from orchestrator.run.relay import Relay, showing
from orchestrator.study.reader import load
from trainers import budget, checkpoint
from trainers.data.prepared import Columns, Rules, prepare
from trainers.data.tokens import Tokens
from trainers.engine.engine import Engine
from trainers.engine.evaluation import evaluate
from trainers.fit.place import Place
from trainers.models.transformer import build
from trainers.objectives.reward import RewardOnly
from trainers.objectives.supervised import Supervised
from trainers.sampling import generate
from trainers.shapes import Model, Shape
from trainers.spec import Training, TrunkSpec
from trainers.tasks import FAMILIES
from trainers.telemetry import Telemetry
from trainers.train import run_trunk

ROUNDS = 15


def alternate(
    first: Callable[[], Any],
    second: Callable[[], Any],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Median seconds of both, taking turns (and turns at going first), and the median of the paired ratios first / second."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            begin = clock()
            (first, second)[which]()
            seconds[which].append(clock() - begin)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios)


def loop_speed(trunk: TrunkSpec, steps_per_round: int) -> tuple[float, float]:
    """(speed of our loop / speed of the plain loop, milliseconds of a plain step)."""
    engine, learning = Engine(trunk, Place()), Supervised(trunk)
    plain = Plain(trunk, Place())
    at = [0, 0]

    def run_ours() -> None:
        for _ in range(steps_per_round):
            engine.step(learning, at[0], 1e-3)
            at[0] += 1

    def run_theirs() -> None:
        for _ in range(steps_per_round):
            plain.step(learning, at[1], 1e-3)
            at[1] += 1

    run_ours(), run_theirs()
    _, plain_seconds, ratio = alternate(run_theirs, run_ours)
    engine.destroy()
    return ratio, plain_seconds / steps_per_round * 1e3


def reward_speed(trunk: TrunkSpec, steps_per_round: int) -> tuple[float, float]:
    """(speed of arm `reward` / speed of a plain loop, milliseconds of a plain step): sampling and training together.

    The plain loop is what one writes by hand for this family: prompts as one tensor, torch.multinomial with the model's cache,
    the last letters compared as tensors, one pass forward and back, AdamW.
    """
    assert trunk.reward is not None
    family: Any = trunk.family
    engine, objective = Engine(trunk, Place()), RewardOnly(trunk)
    objective.write = engine.write
    (n_prompt, n_new), size = family.answer_shape, trunk.reward.group_size
    net = build(trunk.model, family.vocab_size, family.length("reward"), trunk.replicate)
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    prompts_of = trunk.request._replace(batch_size=trunk.training.batch_size // size)
    at = [0, 0]

    def run_ours() -> None:
        for _ in range(steps_per_round):
            engine.step(objective, at[0], 1e-3)
            at[0] += 1

    def plain_step(step: int) -> None:
        rows = torch.from_numpy(family.batch(prompts_of, step).tokens)
        with torch.no_grad():
            cache = net.new_cache(len(rows), n_prompt + n_new - 1)
            logits = net(rows[:, :n_prompt], cache=cache)[:, -1].repeat_interleave(size, 0)
            cache.select(torch.arange(len(rows)).repeat_interleave(size))
            answers = []
            for i in range(n_new):
                answers.append(torch.multinomial(logits.softmax(1), 1))
                if i + 1 < n_new:
                    positions = torch.full((len(logits), 1), n_prompt + i)
                    logits = net(answers[-1], positions=positions, cache=cache)[:, 0]
        written = torch.cat(answers, 1)
        right = (written[:, -1] == rows[:, -1].repeat_interleave(size)).float().view(-1, size)
        weight = ((right - right.mean(1, keepdim=True)) * size / (size - 1)).view(-1, 1)
        tokens = torch.cat([rows[:, :n_prompt].repeat_interleave(size, 0), written], 1)
        logs = net(tokens[:, :-1])[:, n_prompt - 1 :].log_softmax(2).gather(2, written[..., None])[..., 0]
        (-(weight * logs).mean()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    def run_theirs() -> None:
        for _ in range(steps_per_round):
            plain_step(at[1])
            at[1] += 1

    run_ours(), run_theirs()
    _, plain_seconds, ratio = alternate(run_theirs, run_ours)
    engine.destroy()
    return ratio, plain_seconds / steps_per_round * 1e3


def telemetry_share(trunk: TrunkSpec, n_steps: int = 4000) -> tuple[float, float]:
    """(seconds inside telemetry's calls by seconds of training, milliseconds of a step), in one real training.

    Live values go to a real event relay. The calls are summed, because 1 % is less than other processes do to the time of a step.
    """
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    relay = Relay.options(name="relay").remote()  # type: ignore[attr-defined]
    ray.get(relay.is_stopping.remote())
    events: list[dict[str, Any]] = []
    inside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*given: Any) -> Any:
            nonlocal inside
            begin = time.perf_counter()
            result = call(*given)
            inside += time.perf_counter() - begin
            return result

        return timed_call

    calls = {name: timed(getattr(Telemetry, name)) for name in ("after_step", "is_due", "system", "take")}
    with patch.multiple(Telemetry, **calls):
        flops = float(n_steps * budget.flops_per_step(trunk))
        run_trunk(trunk, [flops], Place(), events.extend, watch=showing("relay", trunk.id))
    ray.shutdown()
    (end,) = [event for event in events if event["kind"] == "trial"]
    return inside / end["train_seconds"], end["train_seconds"] / end["step"] * 1e3


STUDY = """
study: bench
version: 1
question: What does a trunk cost beyond its training?
family: {name: cipher, n_symbols: 16, n_pairs: 20}
axes: {arm: [answer], n_tasks: [64], compute_flops: [5e10, 1e11, 1.5e11, 2e11], replicates: 8}
model: {n_heads: 8, conv_kernel: 4, init_gain: 1.0, embed_std: 0.1}
evaluation: {first_flops: 1e11}
"""


def overhead_of_a_trunk() -> float:
    """Median seconds that a trunk after the first on a slot costs beyond its training and evaluation.

    For real: through Ray Tune on two busy slots, four budgets, checkpoints included; read off the journal. What Tune
    takes between two trunks is not in it (16 ms median when it was measured alone).
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(STUDY)
        environment = os.environ | {"EMERGENCE_HOME": folder}
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(file), "--slots", "2"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        events = read(Path(folder) / "bench@1")[0]
    seconds: dict[str, float] = {}
    extra = []
    for event in events:
        if event["kind"] == "trial":
            spent = event["train_seconds"] + event["eval_seconds"]
            seconds[event["trunk"]] = seconds.get(event["trunk"], 0.0) + spent
        elif event["kind"] == "trunk":
            extra.append(event["wall_seconds"] - seconds[event["trunk"]])
    return statistics.median(extra[2:])  # the first on each of two slots loads torch and DeepSpeed


def shares(trunk: TrunkSpec, budgets: list[float]) -> tuple[float, float]:
    """(batch making / step, evaluation / training of the whole trunk), as shares of time."""
    family: Any = trunk.family
    engine, learning = Engine(trunk, Place()), Supervised(trunk)
    suite = family.suite(trunk.request)
    step = [0]

    def train() -> None:
        for _ in range(10):
            engine.step(learning, step[0], 1e-3)
            step[0] += 1

    train_seconds, batch_seconds, _ = alternate(train, lambda: [family.batch(trunk.request, i) for i in range(10)])
    eval_seconds = alternate(lambda: evaluate(engine, suite), lambda: None)[0]
    engine.destroy()
    steps = budget.price(trunk, budgets).train_flops / budget.flops_per_step(trunk)
    n_evaluations = budget.price(trunk, budgets).eval_flops / (
        family.suite_size(trunk.request) * Shape(trunk.model, family.vocab_size, family.length(trunk.arm)).forward_flops
    )
    return batch_seconds / train_seconds, n_evaluations * eval_seconds / (steps * train_seconds / 10)


MANY: dict[str, dict[str, Any]] = {"compose": {"n_slots": 14}, "modular": {"modulus": 31, "n_inputs": 10}}
"""Parameters with which a family has a trillion training tasks, where its default ones have fewer."""


def gain_of_the_cache(trunk: TrunkSpec, n_prompts: int = 64, n_prompt: int = 40, n_new: int = 128) -> float:
    """(seconds without the cache / seconds with it) of the same greedy answers, none of which ends early.

    Without it, each new token costs a pass over all tokens before it. That pass, too, computes logits at the last position alone.
    """
    end, family = -1, trunk.family
    net = build(trunk.model, family.vocab_size, n_prompt + n_new, 0)
    prompts = np.random.default_rng(0).integers(0, family.vocab_size, (n_prompts, n_prompt))
    answers = {}

    def cached() -> None:
        answers["cached"] = generate(net, list(prompts), n_new, end).tokens

    @torch.no_grad()
    def uncached() -> None:
        tokens = torch.from_numpy(prompts)
        for _ in range(n_new):
            last = torch.zeros(tokens.shape, dtype=torch.bool)
            last[:, -1] = True
            tokens = torch.cat([tokens, net(tokens, last).argmax(-1, keepdim=True)], dim=1)
        answers["uncached"] = tokens[:, n_prompt:].numpy()

    ratio = alternate(uncached, cached, rounds=3)[2]
    assert (answers["cached"] == answers["uncached"]).mean() > 0.9  # a tie within rounding may send a row elsewhere
    return ratio


def price_of_many_tasks() -> dict[str, float]:
    """What a batch costs from a trillion tasks, by what it costs from 4: of every family that has as many."""
    ratios = {}
    for name, kind in FAMILIES.items():
        if kind.resolved_fields:
            continue  # its tasks are those of a file
        family: Any = kind.model_validate({"name": name} | MANY.get(name, {}))
        if family.n_tasks_max < 10**12:
            continue
        many, few = (TrunkSpec(family=family, arm=family.arms[0], n_tasks=n, replicate=0) for n in (10**12, 4))
        draws = [partial(_batches, family, trunk) for trunk in (many, few)]
        ratios[name] = alternate(*draws, rounds=31)[2]
    return ratios


def _batches(family: Any, trunk: TrunkSpec) -> None:
    for step in range(100):
        family.batch(trunk.request, step)


def main() -> int:
    """Run all, print a table; 1 if an aim is missed."""
    torch.set_num_threads(1)
    quick = load("quickstart")
    trunk = next(t for t in quick.trunks() if t.n_tasks == 1024)
    wide = trunk.model_copy(
        update={"model": Model(n_layers=3, d_model=96, d_mlp=384, conv_kernel=4), "training": Training()}
    )
    rows: list[tuple[str, float, str, bool]] = []

    def row(name: str, value: float, aim: float, at_least: bool) -> None:
        fine = value >= aim if at_least else value <= aim
        rows.append((name, value, f"{'>=' if at_least else '<='} {aim:g}", fine))
        print(
            f"{name:<74} {value:8.3f}   {'>=' if at_least else '<='} {aim:<5g} {'ok' if fine else 'MISSED'}", flush=True
        )

    ratio, step_ms = loop_speed(trunk, 20)
    row(f"speed of our loop / plain loop, quickstart's model ({step_ms:.0f} ms a step)", ratio, 0.93, True)
    ratio, ms = loop_speed(wide, 10)
    row(f"speed of our loop / plain loop, larger model ({ms:.0f} ms a step)", ratio, 0.98, True)
    family = {"name": "compose"}
    model = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_mlp": 256, "positions": "learned"}
    rewarded = TrunkSpec.model_validate(
        {"family": family, "arm": "reward", "n_tasks": 64, "replicate": 0, "model": model}
        | {"training": {"batch_size": 512}, "reward": {"group_size": 16}}
    )
    ratio, ms = reward_speed(rewarded, 3)
    row(f"speed of arm reward / plain loop, sampling and training ({ms:.0f} ms a step)", ratio, 0.9, True)
    small = trunk.model_copy(
        update={"model": Model(n_layers=1, d_model=16, d_mlp=32, n_heads=2), "training": Training(batch_size=8)}
    )
    share, ms = telemetry_share(small)
    row(f"telemetry: share of training time, small model ({ms:.1f} ms a step)", share, 0.01, False)
    row("seconds of a trunk beyond training and evaluation (not a ratio)", overhead_of_a_trunk(), 0.1, False)
    batch, evaluation = shares(trunk, quick.budgets)
    row(f"batch making ({batch:.3f}) and evaluation / training, the quickstart", batch + evaluation, 0.10, False)
    row("speed of sampling with the cache / without, 128 new tokens", gain_of_the_cache(trunk), 5, True)
    for name, ratio in price_of_many_tasks().items():
        row(f"cost of a batch of {name} from a trillion tasks / from 4", ratio, 1.1, False)
    save_seconds, step_seconds = save_and_step(trunk)
    row("checkpoint every 30 s: share of time", save_seconds / 30, 0.01, False)
    trained = trunk.request.batch_size * trunk.family.length(trunk.arm) / step_ms * 1e3
    (few_drawn, few_mb), (drawn, mb) = (drawn_from_a_table(n_bytes) for n_bytes in (5_000_000, 200_000_000))
    row("tokens drawn from a table of 200 MB / tokens trained, the quickstart", drawn / trained, 20, True)
    row("tokens drawn from a table of 200 MB / from one of 5 MB", drawn / few_drawn, 0.2, True)
    row("anonymous memory with a table of 200 MB beyond one of 5 MB, in MB (not a ratio)", mb - few_mb, 10, False)
    for shape, axes in SHAPES.items():
        seconds, n_rows = statistics_seconds(axes)
        row(f"processor seconds of the statistics of {shape} trials ({n_rows:,} evaluations)", seconds, 10, False)
    print(f"\none step {step_seconds * 1e3:.1f} ms, one checkpoint {save_seconds * 1e3:.1f} ms")
    return 0 if all(fine for *_, fine in rows) else 1


SHAPES: dict[str, dict[str, Any]] = {
    "1 x 10 x 10 x 100": {
        "n_tasks": tuple(4**k for k in range(1, 11)),
        "compute_flops": tuple(1e11 * 2**k for k in range(10)),
        "replicates": 100,
    },
    "3 x 34 x 10 x 10": {
        "arm": ("answer", "next_token", "task_id"),
        "n_tasks": tuple(int(3 * 1.7**k) for k in range(1, 35)),
        "compute_flops": tuple(1e11 * 2**k for k in range(10)),
        "replicates": 10,
    },
}
"""10,000 trials: arms x numbers of tasks x budgets x replicates. What they cost goes with the cells and cuts, not with the trials."""


def statistics_seconds(axes: dict[str, Any]) -> tuple[float, int]:
    """Processor seconds of everything that is computed from the tables of a study with these axes, and its evaluations."""
    study = synthetic.made_up(**axes)
    results, runs = synthetic.tables(study)
    begin = time.process_time()
    findings.find(study, results, runs)
    return time.process_time() - begin, results.num_rows


DRAWING = """
import sys, time
import numpy as np
from trainers.data.prepared import open_prepared
from trainers.streams import stream

prepared = open_prepared(sys.argv[1])
train = [task for task, part in enumerate(prepared.part) if part == "train"]
n_tokens, begin = 0, time.perf_counter()
for step in range(400):
    draws = stream("draw", 0, step)
    tasks, places = draws.choice(train, 256), draws.random(256)
    items = [prepared.train_items(task) for task in tasks]
    numbers = np.array([own[int(place * len(own))] for own, place in zip(items, places)])
    n_tokens += len(prepared.items.tokens(numbers)[0])
seconds = time.perf_counter() - begin
anonymous = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(n_tokens / seconds, int(anonymous.split()[1]) / 1024)
"""


def drawn_from_a_table(n_bytes: int) -> tuple[float, float]:
    """(tokens a second, anonymous resident MB) of a process that draws 400 batches of 256 items. Checksums are verified too."""
    draws = np.random.default_rng(0)
    text = "".join(map(chr, draws.integers(97, 123, 1_000_000)))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.jsonl"
        with open(table, "w") as file:
            for start in draws.integers(0, len(text) - 2000, n_bytes // 2000).tolist():
                item = {"prompt": text[start : start + 1960], "target": text[start + 1960 : start + 2000]}
                file.write(json.dumps(item | {"task": f"task {start % 100}"}) + "\n")
        prepared = prepare(table, Columns(), Tokens(), Rules(max_tokens=2100), folder)
        command = [sys.executable, "-c", DRAWING, str(prepared.folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    rate, anonymous_mb = map(float, done.stdout.split())
    return rate, anonymous_mb


def save_and_step(trunk: TrunkSpec) -> tuple[float, float]:
    """Median seconds of a checkpoint and of a step."""
    engine = Engine(trunk, Place())
    learning = Supervised(trunk)
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(1, 1000))

        def save() -> None:
            checkpoint.save(Path(folder), next(number), "x", {}, {"live": engine.snapshot()})

        seconds = alternate(save, lambda: engine.step(learning, 0, 1e-3))
    engine.destroy()
    return seconds[0], seconds[1]


if __name__ == "__main__":
    sys.exit(main())
