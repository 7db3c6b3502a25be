"""Families of tasks, with their batches, evaluations and skills. Most have exact references.

There is one file per family. A family is a frozen record of its parameters, with methods for its tasks, evaluation and
exact references. To add one: subclass `Family`, decorate it with `register`, import it here. numpy only: the orchestrator asks
families for their names and sizes without importing torch.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from trainers.tasks.base import FAMILIES, LEFT_OUT, Family, FamilyError, failure_of, family_from, family_named, register
from trainers.tasks.cipher import Cipher
from trainers.tasks.compose import Compose
from trainers.tasks.grok import Grok
from trainers.tasks.markov import Markov
from trainers.tasks.modular import Modular
from trainers.tasks.parity import Parity
from trainers.tasks.probes import Batch, ItemSet, Probe, Reference
from trainers.tasks.references import ExactFamily
from trainers.tasks.regression import Regression
from trainers.tasks.request import Request
from trainers.tasks.rewrite import Rewrite
from trainers.tasks.table import Table
from trainers.tasks.urns import Urns
from trainers.tasks.worked_parity import WorkedParity

__all__ = [
    "FAMILIES",
    "LEFT_OUT",
    "Batch",
    "Cipher",
    "Compose",
    "ExactFamily",
    "Family",
    "FamilyError",
    "Grok",
    "ItemSet",
    "Markov",
    "Modular",
    "Parity",
    "Probe",
    "Reference",
    "Regression",
    "Request",
    "Rewrite",
    "Table",
    "Urns",
    "WorkedParity",
    "failure_of",
    "family_from",
    "family_named",
    "register",
]


def _load_others() -> None:
    """Load the families of other installed packages. They declare them as entry points of the group `emergence.families`.

    A family that cannot be loaded is skipped, and the reason is kept in LEFT_OUT. Only a study that asks for it is refused.
    """
    for point in entry_points(group="emergence.families"):
        try:
            point.load()
        except (Exception, SystemExit) as problem:
            text = " ".join(str(problem).split())[:800]
            LEFT_OUT[point.name] = (
                f"entry point {point.name} = {point.value} could not be loaded: {type(problem).__name__}: {text}"
            )


_load_others()


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'trainers.tasks' has no {name!r}; families: {', '.join(FAMILIES)}")
