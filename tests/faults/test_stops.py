"""A stop in the middle of a step or of an evaluation: noticed at the next micro-batch or chunk, saved, and continued to the bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from conftest import tally
from steps import under_way
from test_train import Events, keyed

from trainers.budget import flops_per_step
from trainers.fit.place import Place
from trainers.spec import TrunkSpec
from trainers.train import run_trunk

TRUNK = TrunkSpec.model_validate(
    {
        "family": {"name": "compose"},
        "arm": "steps",  # the model writes its own intermediate results in an evaluation: many passes a chunk
        "n_tasks": 8,
        "replicate": 0,
        "model": {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_mlp": 12},
        "training": {"batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5},
        "evaluation": {"first_flops": 1e6, "n_sequences": 2},
    }
)
BUDGETS = [float(end * flops_per_step(TRUNK)) for end in (50, 62)]
"""Branches at 40 and 50: 72 steps of four micro-batches each."""


class After:
    """A `should_stop` that asks to stop when it is asked for the n-th time, and knows what was under way then."""

    def __init__(self, n: int) -> None:
        self.left, self.place = n, "none"

    def __call__(self) -> bool:
        assert self.left > 0, "it went on after it was asked to stop"
        self.left -= 1
        if self.left == 0:
            self.place = under_way()
        return self.left == 0


def place_of(folder: Path, zero_stage: int) -> Place:
    return Place(checkpoint_folder=str(folder), checkpoint_every_seconds=1e9, micro_batch=2, zero_stage=zero_stage)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # DeepSpeed's ZeRO imports it
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_trunk_stopped_at_any_moment_of_a_step_or_an_evaluation_equals_an_uninterrupted_one_to_the_bit(
    zero_stage: int, tmp_path: Path
) -> None:
    """Stopped again and again (`test_workers.py` has ZeRO 0 to 3 on two workers) after 1 to 60 questions. Fails without the question between micro-batches, without those in
    evaluations, and if a step that is given up leaves a trace: its gradients, its loss or its count."""
    whole: Events = []
    assert run_trunk(TRUNK, BUDGETS, place_of(tmp_path / "whole", zero_stage), whole.extend) == "finished"
    rng, told, places = random.Random(zero_stage), [], []
    while True:
        stop = After(rng.randint(1, 60))
        status = run_trunk(TRUNK, BUDGETS, place_of(tmp_path / "stopped", zero_stage), told.extend, stop)
        if status == "finished":
            break
        places.append(stop.place)
        assert stop.left == 0 and len(places) < 300
    found, expected = keyed(told), keyed(whole)
    assert found.keys() == expected.keys()
    for key, event in expected.items():
        assert found[key] == event, key
    assert {"evaluation", "step"} <= set(places) and len(places) >= 8
    tally("stops inside a step or an evaluation", len(places), len(places))


def test_a_stop_passes_at_most_one_micro_batch_or_one_chunk(tmp_path: Path) -> None:
    """Forward passes between two questions, counted over a whole run: one. Fails if any question is left out."""
    import torch

    passes, most = 0, 0

    def count(module: Any, *_: Any) -> None:
        nonlocal passes
        passes += type(module).__name__ == "Transformer"

    def ask() -> bool:
        nonlocal passes, most
        most, passes = max(most, passes), 0
        return False

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        run_trunk(TRUNK, BUDGETS[:1], place_of(tmp_path, 0), lambda events: None, ask)
    finally:
        hook.remove()
    assert most == 1
