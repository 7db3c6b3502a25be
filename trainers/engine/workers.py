"""Several workers on this machine without Ray: one process each, which meet through a file. No port but gloo's on loopback.

    python -m trainers trial.json --workers 2 --zero-stage 2

On a cluster Ray Train starts the workers instead (`orchestrator/run/worker.py`); what each of them runs is the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn


class WorkerLost(Exception):
    """A worker ended by itself or was killed, and left no traceback."""


def together(workers: int, on_gpu: bool, main: Callable[..., None], *given: Any) -> None:
    """Run `main(rank, *given)` in so many processes that form a process group; `main` and `given` must pickle.

    Raises torch's ProcessRaisedException with the traceback of the first that fails, or WorkerLost, after ending the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (workers, on_gpu, str(Path(folder) / "meet"), main, given)
        try:
            spawn(_rank, args=given, nprocs=workers)
        except ProcessExitedException as problem:
            raise WorkerLost(f"a worker was lost: {problem}") from None


def n_gpus() -> int:
    """GPUs of this machine that torch can use."""
    return torch.cuda.device_count()


def _rank(rank: int, workers: int, on_gpu: bool, meet: str, main: Callable[..., None], given: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(workers)}
    store = dist.FileStore(meet, workers)  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=workers)
    try:
        main(rank, *given)
    finally:
        dist.destroy_process_group()
