"""FLOPs per second of a slot, recorded by this study or measured now. Only measuring loads torch."""

from __future__ import annotations

from typing import Any

from orchestrator.record.journal import State
from orchestrator.study.schema import Study
from trainers import budget


def recorded_throughput(state: State, device: str) -> float | None:
    """FLOPs per second of one slot over a journal's trials on this device, evaluation included; None if none ran."""
    ended = [
        e
        for e in state.trials.values()
        if e["status"] != "failed" and e.get("device", device) == device and e.get("train_seconds")
    ]
    seconds = sum((e["train_seconds"] + e["eval_seconds"]) * e.get("workers", 1) for e in ended)
    return float(sum(e["flops_run"] + e["eval_flops"] for e in ended) / seconds) if seconds else None


def calibrate(study: Study, device: str) -> float:
    """FLOPs per second of one slot from one short trial: 50 steps, some 5 s with loading. Imports torch."""
    from trainers.fit.place import Place
    from trainers.train import run_trunk

    trunk = study.trunks()[0]
    events: list[dict[str, Any]] = []
    smallest = float(budget.flops_per_step(trunk) * budget.MIN_STEPS)
    run_trunk(trunk, [smallest], Place(device=device), events.extend)
    end = next(e for e in events if e["kind"] == "trial")
    return float((end["flops_run"] + end["eval_flops"]) / (end["train_seconds"] + end["eval_seconds"]))
