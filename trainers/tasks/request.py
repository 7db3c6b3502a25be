"""The request to a family: which tasks, their presentation, how many sequences. A family knows no more of a trunk."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """The data of one trunk, for its family. `TrunkSpec.request` makes it."""

    arm: str
    """Name of the way in which the tasks are presented."""
    n_tasks: int
    """Distinct training tasks."""
    replicate: int
    """Number of the independent repetition. Each has its own tasks and batches."""
    batch_size: int
    """Sequences per batch."""
    n_sequences: int
    """Sequences per item set of the evaluation."""
    task_exponent: float = 0.0
    """Training task number r (from 1) is drawn in proportion to r^-task_exponent. 0 draws all equally often."""
