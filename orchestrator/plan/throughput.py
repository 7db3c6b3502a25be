"""FLOPs per second of a slot, recorded by earlier runs or measured now. Only measuring loads torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from typing import Any

from orchestrator.record import links
from orchestrator.record.journal import State, home_folder
from orchestrator.record.provenance import cpu_name
from orchestrator.study.schema import Study
from trainers import budget

FILE = "throughput.json"
"""In the home folder: `shape_key` -> FLOPs per second of one slot."""


def shape_key(study: Study, device: str) -> str:
    """A hash of everything that throughput depends on: machine, device, model, batch, sequence length."""
    facts = []
    for condition, (arm, _) in study.conditions.items():
        family = study.family_of(condition)
        for trunk, _ in study.sizes(condition):
            facts.append([trunk.model.model_dump(), trunk.training.batch_size, family.vocab_size, family.length(arm)])
    # All cores of the machine, not only the usable ones, because they identify the machine.
    text = json.dumps([platform.machine(), cpu_name(), os.cpu_count(), device, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recorded_throughput(state: State, device: str) -> float | None:
    """FLOPs per second of one slot over a journal's trials on this device, evaluation included; None if none ran."""
    ended = [
        e
        for e in state.trials.values()
        if e["status"] != "failed" and e.get("device", device) == device and e.get("train_seconds")
    ]
    seconds = sum((e["train_seconds"] + e["eval_seconds"]) * e.get("workers", 1) for e in ended)
    return float(sum(e["flops_run"] + e["eval_flops"] for e in ended) / seconds) if seconds else None


def known_throughput(study: Study, state: State, device: str) -> tuple[float | None, str]:
    """FLOPs per second of one slot, and its source: this study's own trials, or an earlier run of the same `shape_key`."""
    if (speed := recorded_throughput(state, device)) is not None:
        return speed, "recorded in this study"
    known = links.read_json(home_folder() / FILE) or {}
    if (speed := known.get(shape_key(study, device))) is not None:
        return speed, "recorded on this machine for this model"
    return None, "unknown before the first reports; plan --calibrate measures it"


def remember_throughput(study: Study, device: str, flops_per_second: float) -> None:
    """Save a throughput for later plans. Errors are ignored, because a plan does not need it."""
    path = home_folder() / FILE
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        links.write_json(path, (links.read_json(path) or {}) | {shape_key(study, device): flops_per_second})


def calibrate(study: Study, device: str) -> float:
    """FLOPs per second of one slot from one short trial: 50 steps, some 5 s with loading. Imports torch."""
    from trainers.fit.place import Place
    from trainers.train import run_trunk

    trunk = study.trunks()[0]
    events: list[dict[str, Any]] = []
    smallest = float(budget.flops_per_step(trunk) * budget.MIN_STEPS)
    run_trunk(trunk, [smallest], Place(device=device), events.extend)
    end = next(e for e in events if e["kind"] == "trial")
    speed = (end["flops_run"] + end["eval_flops"]) / (end["train_seconds"] + end["eval_seconds"])
    remember_throughput(study, device, speed)
    return float(speed)
