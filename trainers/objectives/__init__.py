"""Objectives: each gives a trunk's batches and the loss of a model on them. `train.py` passes one to the engine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trainers.engine.rows import Objective
from trainers.objectives.reward import RewardOnly
from trainers.objectives.supervised import Supervised
from trainers.spec import TrunkSpec


def objective_of(trunk: TrunkSpec) -> Objective:
    """The objective of a trunk's arm: the class that `Family.objectives` names for the arm, `RewardOnly`, or `Supervised`.

    Raises ImportError if the named module, and AttributeError if the class in it, does not exist.
    """
    family: Any = trunk.family
    if trunk.arm not in family.objectives:
        return Supervised(trunk) if trunk.reward is None else RewardOnly(trunk)
    module, _, name = family.objectives[trunk.arm].partition(":")
    objective: Objective = getattr(import_module(module), name)(trunk)
    return objective
