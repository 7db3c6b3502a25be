"""Where a study runs, and how trunks are placed on workers. Nothing here changes a result."""

from __future__ import annotations

from typing import Literal, NamedTuple

from trainers.fit import memory


class Options(NamedTuple):
    """Where a study runs: nothing here changes a result."""

    address: Literal["local", "auto"] | str = "local"
    """`local` starts Ray on this machine, `auto` joins the cluster this machine belongs to."""
    slots: int | None = None
    """Workers at once, one a trunk unless it needs more; None: one per core (local), or as many as the cluster takes."""
    device: Literal["cpu", "cuda"] = "cpu"
    slots_per_gpu: int = 1
    """Trunks that share one GPU (`cuda` only)."""
    checkpoint_seconds: float = 30.0
    retries: int = 2
    """How often Ray starts a trunk again that failed or whose machine died; it goes on from its checkpoint."""
    storage: str | None = None
    """Where checkpoints go, if not to the study's folder: a folder that every node sees, or a URI of pyarrow.fs."""
    workers: int | None = None
    """Workers a trial, whatever the study says; None: as the study says, or as few as it fits on."""
    gpu_bytes: int | None = None
    """Memory of one GPU (`cuda` only); None: not known, and nothing is made to fit."""
    n_gpus: int | None = None
    """GPUs that there are (`cuda` only); None: not known before the cluster is asked."""
    keep_weights: bool = False
    """Keep the weights that each trial ends with, beside its checkpoints."""


class Laid(NamedTuple):
    """How a trunk is laid on workers: place, not science."""

    workers: int
    fit: memory.Fit | None
    """None: whole, as on one worker of a CPU."""
    compiled: bool = False


ONE_WORKER = Laid(1, None)


def slots_of(laid: Laid, options: Options) -> int:
    """Slots that a trunk takes: one, or one for each worker; of several workers each has a GPU to itself."""
    return laid.workers if laid.workers == 1 or options.device == "cpu" else laid.workers * options.slots_per_gpu
