"""Trunks, probes and tasks of any family, for the tests of all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from trainers.spec import TrunkSpec
from trainers.tasks import FAMILIES
from trainers.tasks.probes import ItemSet, Probe


def trunks_of(name: str, usual: int) -> Callable[..., Any]:
    """What makes trunks of a family: of so many tasks, of its first arm, `parameters` being the family's."""

    def trunk_of(
        n_tasks: int = usual,
        arm: str = FAMILIES[name].arms[0],
        replicate: int = 0,
        n_sequences: int = 64,
        exponent: float = 0.0,
        batch_size: int = 32,
        **parameters: Any,
    ) -> Any:
        return TrunkSpec.model_validate(
            {
                "family": {"name": name, **parameters},
                "arm": arm,
                "n_tasks": n_tasks,
                "replicate": replicate,
                "training": {"task_exponent": exponent, "batch_size": batch_size},
                "evaluation": {"n_sequences": n_sequences},
            }
        )

    return trunk_of


@functools.cache
def suite_of(trunk: Any) -> list[ItemSet]:
    return list(trunk.family.suite(trunk.request))


def find(trunk: Any, skill: str, split: str = "held_out") -> tuple[ItemSet, Probe]:
    """The one probe of a skill on a split, with the sequences that it is scored on."""
    (found,) = [(i, p) for i in suite_of(trunk) for p in i.probes if (p.skill, p.split) == (skill, split)]
    return found


def probe_of(trunk: Any, split: str) -> tuple[np.ndarray, Probe]:
    """Tokens and probe of a family that has one a split."""
    items, probe = find(trunk, trunk.family.mixture, split)
    return items.tokens, probe


def tasks_of(trunk: Any) -> np.ndarray:
    """The training tasks of a trunk."""
    return trunk.family.tasks(
        trunk.family.train_ids(trunk.replicate, np.arange(trunk.family.n_distinct(trunk.n_tasks)))
    )


def tokens_of(trunk: Any, n_steps: int) -> np.ndarray:
    """The sequences of the first batches."""
    return np.concatenate([trunk.family.batch(trunk.request, step).tokens for step in range(n_steps)])
