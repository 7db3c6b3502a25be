"""Several workers on this machine without Ray: one process each. They find each other through a file.

    python -m trainers trial.json --workers 2 --zero-stage 2

They open no port but gloo's on loopback. On a cluster, Ray Train starts the workers instead (`orchestrator/run/worker.py`).
Each worker runs the same code in both cases.
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
    """A worker process ended without a traceback: it was killed or it exited."""


def together(workers: int, on_gpu: bool, main: Callable[..., None], *given: Any) -> None:
    """Run `main(rank, *given)` in `workers` processes that form a process group, and wait for them.

    `main` and `given` must pickle. The group uses NCCL if `on_gpu`, else gloo. If a process fails, the others are ended. Raises
    torch's ProcessRaisedException with the first traceback, or WorkerLost if there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (workers, on_gpu, str(Path(folder) / "meet"), main, given)
        try:
            spawn(_rank, args=given, nprocs=workers)
        except ProcessExitedException as problem:
            raise WorkerLost(f"a worker was lost: {problem}") from None


def n_gpus() -> int:
    """Number of GPUs of this machine that torch can use."""
    return torch.cuda.device_count()


def _rank(rank: int, workers: int, on_gpu: bool, meet: str, main: Callable[..., None], given: tuple[Any, ...]) -> None:
    """One of the processes: join the process group, call `main`, leave the group. They meet through the file `meet`."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(workers)}
    store = dist.FileStore(meet, workers)  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=workers)
    try:
        main(rank, *given)
    finally:
        dist.destroy_process_group()
