"""What a family is asked for: which tasks, how they are presented, how many sequences. All that a family may know of a trunk."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """One trunk's data, as a family sees it. `TrunkSpec.request` makes it."""

    arm: str
    """How the tasks are presented."""
    n_tasks: int
    """Distinct training tasks."""
    replicate: int
    """Which independent repetition: its own tasks and batches."""
    batch_size: int
    """Sequences of a batch."""
    n_sequences: int
    """Sequences of each item set of the evaluation."""
    task_exponent: float = 0.0
    """Training task number r (from 1) is drawn in proportion to r^-task_exponent; 0 draws all alike."""
