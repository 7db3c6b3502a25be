"""The request to a family for batches and evaluations. A family knows nothing else of a trunk."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """The part of a trunk's spec that its family uses. `TrunkSpec.request` makes it."""

    arm: str
    """Name of the way to present the tasks, one of `Family.arms`."""
    n_tasks: int
    """Number of distinct training tasks. With domains: of each domain."""
    replicate: int
    """Number of the independent repetition. Each has its own tasks and batches."""
    batch_size: int
    """Sequences per batch."""
    n_sequences: int
    """Sequences per item set of the evaluation."""
    task_exponent: float = 0.0
    """Training task number r (from 1) is drawn in proportion to r^-task_exponent. 0 draws all equally often."""
