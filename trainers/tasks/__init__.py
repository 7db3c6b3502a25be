"""Families of tasks: universes indexed by integer id, with their batches, references and skills.

One file a family. A family is a frozen record of its parameters that also knows what to do with them, so that tasks,
evaluation and exact baselines stand together. To add one: subclass `Family`, decorate it with `register`, import it
here. numpy only: the orchestrator asks families for their names and sizes without importing torch.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Any

from trainers.tasks.base import FAMILIES, Batch, Family, ItemSet, Probe, Reference, family_from, register
from trainers.tasks.cipher import Cipher
from trainers.tasks.compose import Compose
from trainers.tasks.grok import Grok
from trainers.tasks.markov import Markov
from trainers.tasks.modular import Modular
from trainers.tasks.parity import Parity
from trainers.tasks.regression import Regression
from trainers.tasks.urns import Urns

__all__ = [
    "FAMILIES",
    "Batch",
    "Cipher",
    "Compose",
    "Family",
    "Grok",
    "ItemSet",
    "Markov",
    "Modular",
    "Parity",
    "Probe",
    "Reference",
    "Regression",
    "Urns",
    "family_from",
    "register",
]


def _load_others() -> None:
    """Families of other packages: whatever they name as entry points of the group `emergence.families`.

    One that cannot be imported is named on stderr and passed over: a study that does not use it still runs.
    """
    for point in entry_points(group="emergence.families"):
        try:
            point.load()
        except Exception as problem:
            print(
                f"family '{point.name}' of {point.value} is left out: {type(problem).__name__}: {problem}",
                file=sys.stderr,
            )


_load_others()


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'trainers.tasks' has no {name!r}; families: {', '.join(FAMILIES)}")
