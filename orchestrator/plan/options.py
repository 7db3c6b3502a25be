"""Options of a run, and the placement of a trunk on workers. Nothing here changes a result."""

from __future__ import annotations

from typing import Literal, NamedTuple

from trainers.fit import memory


class Options(NamedTuple):
    """Options of a run: none changes a result."""

    address: Literal["local", "auto"] | str = "local"
    """`local` starts Ray on this machine, `auto` joins this machine's cluster, otherwise the address of a cluster's head."""
    slots: int | None = None
    """Slots in use at once; a trunk takes one for each worker. None: one per core (local), or all of the cluster's."""
    device: Literal["cpu", "cuda"] = "cpu"
    slots_per_gpu: int = 1
    """Trunks that share one GPU (`cuda` only)."""
    checkpoint_seconds: float = 30.0
    retries: int = 2
    """How often Ray restarts a trunk that failed or lost its machine. It resumes from its checkpoint."""
    storage: str | None = None
    """Folder or pyarrow.fs URI of the checkpoints, seen by every node. None: the study's folder."""
    workers: int | None = None
    """Workers per trial. None: as the study states, or as few as fit."""
    gpu_bytes: int | None = None
    """Memory of one GPU (`cuda` only). None: unknown, and nothing is fitted."""
    n_gpus: int | None = None
    """Number of GPUs (`cuda` only). None: unknown before the cluster is asked."""
    max_hours: float | None = None
    """Wall-clock hours of all runs after which the study ends (`caps.py`). None: no cap."""
    max_flops: float | None = None
    """Training FLOPs of all runs after which the study ends. None: no cap."""
    keep_weights: bool = False
    """Save the final weights of each trial, beside its checkpoints."""


class Placement(NamedTuple):
    """Placement of a trunk on workers."""

    workers: int
    fit: memory.Fit | None
    """None: unfitted, as on one worker of a CPU."""
    compiled: bool = False


ONE_WORKER = Placement(1, None)


def slots_of(placement: Placement, options: Options) -> int:
    """Slots of a trunk: one for each worker. On GPUs each of several workers has a whole GPU."""
    return (
        placement.workers
        if placement.workers == 1 or options.device == "cpu"
        else placement.workers * options.slots_per_gpu
    )
