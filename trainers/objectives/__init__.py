"""Objectives: how (trunk, step, model) becomes a loss. `train.py` hands one to the engine; an arm may bring its own."""

from __future__ import annotations

from trainers.objectives.supervised import Objective, Supervised
from trainers.spec import TrunkSpec

OF_ARMS: dict[str, type[Objective]] = {}
"""Arms that do not learn from targets, and what they learn from instead. A package adds its own: `OF_ARMS["mine"] = Mine`."""


def objective_of(trunk: TrunkSpec) -> Objective:
    """What a trunk's arm learns from."""
    return OF_ARMS.get(trunk.arm, Supervised)(trunk)
