"""Telemetry: loss, gradient norm and speed along a trunk, and the load of its processes. No result depends on it.

Points lie on a grid of steps that depends on the step alone. So trials of different budgets have points at the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from trainers import budget
from trainers.checkpoint import POINT, SYSTEM_FIELDS
from trainers.fit.place import Place
from trainers.spec import TrunkSpec

DENSE_STEPS = 50
"""Every step up to this one is on the grid."""
GRID_RATIO = 1.1
"""Ratio of neighbouring steps of the grid beyond DENSE_STEPS: 130 points up to step 100,000."""
PENDING_SECONDS = 30.0
"""Points that have waited for longer are emitted before the next step."""
LOAD_SECONDS = 300.0
"""The load is emitted at least this often, also without points: late in a long run these are hours apart."""
SAMPLE_SECONDS = 5.0
"""Time between two samples of the load of a process. A sample takes 0.05 ms."""
WATCH_SECONDS = 1.0
"""Least time between two calls of `watch`. One through Ray takes 1.4 ms on two busy cores."""
MATMUL_SECONDS = 1e-3
"""A matmul that takes this long is large enough to measure the speed of a device. One of twice the size takes 8 times as long."""

Watch = Callable[[dict[str, Any]], None]
"""A function that receives live values (`Telemetry.after_step`). They are no results."""


def on_grid(step: int) -> bool:
    """Whether the grid has a point at this step, counted from 1."""
    if step <= DENSE_STEPS:
        return step >= 1
    k = round(math.log(step / DENSE_STEPS) / math.log(GRID_RATIO))
    return step == round(DENSE_STEPS * GRID_RATIO**k)


class Telemetry:
    """The points and samples of one process that trains a trunk.

    `peak` is the FLOPs per second of all workers at an MFU of 1 (`matmul_flops_per_second`).
    `now` is the progress of `train.run_trunk`. It keeps the pending points as `points`, so that checkpoints hold them.
    """

    def __init__(self, trunk: TrunkSpec, place: Place, peak: float, now: dict[str, Any], watch: Watch) -> None:
        family: Any = trunk.family
        self.now, self.watch, self.device, self.peak = now, watch, place.device, peak
        self.points: list[list[float | None]] = now["points"]
        self.tokens = trunk.training.batch_size * family.length(trunk.arm)
        self.flops = budget.flops_per_step(trunk)
        self.total = self.at_point = self.at_watch = (0, 0.0)  # steps and seconds of training in this process
        self.process = psutil.Process()
        self.samples: list[list[float]] = []  # the last one before the last event, and those since
        self._sample()
        self.samples[0][0] = math.nan  # the first call only begins to count
        self.watched_at, self.emitted_at = -math.inf, time.monotonic()
        self.waiting_since = math.inf if not self.points else time.monotonic()

    def after_step(
        self, loss_nats: float | None, rate: float, grad_norm: float | torch.Tensor, seconds: float, end: int
    ) -> None:
        """Take note of one optimizer step of `seconds`. `end` is the last step of the trunk or branch.

        Loss, learning rate and gradient norm of a point are those of its step. Its speed is that of all steps since the last
        point. Arm `reward` has no loss: None. `watch` receives `on`, `step`, `last_step`, `loss_nats`, `tokens_per_second`, `mfu`, `flops_run` and `time`.
        """
        self.total = self.total[0] + 1, self.total[1] + seconds
        step, clock = self.now["step"], time.monotonic()
        if on_grid(step):
            norm = float(grad_norm)
            point = [step, time.time(), loss_nats, rate, norm if math.isfinite(norm) else None]
            self.points.append(point + self._speed(self.at_point))
            self.at_point = self.total
            self.waiting_since = min(self.waiting_since, clock)
        if clock - self.sampled_at > SAMPLE_SECONDS:
            self._sample()
        if clock - self.watched_at > WATCH_SECONDS:
            tokens_per_second, mfu = self._speed(self.at_watch)
            self.watched_at, self.at_watch = clock, self.total
            live = {"on": on_of(self.now), "step": step, "last_step": end, "loss_nats": loss_nats, "time": time.time()}
            live |= {"tokens_per_second": tokens_per_second, "mfu": mfu}
            self.watch(live | {"flops_run": self.now["steps_charged"] * self.flops})

    def is_due(self) -> bool:
        """Whether points have waited for PENDING_SECONDS, or the load for LOAD_SECONDS. Each process has its own answer."""
        clock = time.monotonic()
        return clock - self.waiting_since > PENDING_SECONDS or clock - self.emitted_at > LOAD_SECONDS

    def system(self) -> torch.Tensor:
        """The load since the last call: (1, 4) float64, in the order of SYSTEM_FIELDS. NaN is unknown.

        Means of CPU and GPU, maxima of memory.
        """
        if time.monotonic() - self.sampled_at > 0.1:  # the share of a CPU needs some time to be measured
            self._sample()
        samples = torch.tensor([self.samples[1:] or self.samples], dtype=torch.float64, device=self.device)
        self.samples = self.samples[-1:]
        load = samples.mean(1)
        load[:, 1::2] = samples[:, :, 1::2].amax(1)
        return load

    def take(self, system: torch.Tensor) -> dict[str, Any]:
        """The pending points, or none, and the load of all ranks, (world, 4), as facts of an event. They are no longer pending."""
        facts: dict[str, Any] = {name: [point[i] for point in self.points] for i, name in enumerate(POINT)}
        loads = [[None if math.isnan(x) else round(x, 1) for x in row] for row in system.tolist()]
        self.points.clear()
        self.waiting_since, self.emitted_at = math.inf, time.monotonic()
        return facts | {"system": [dict(zip(SYSTEM_FIELDS, load, strict=True)) for load in loads]}

    def _speed(self, since: tuple[int, float]) -> list[float | None]:
        """Tokens per second and MFU of the training since then."""
        steps, seconds = self.total[0] - since[0], self.total[1] - since[1]
        if not seconds:
            return [None, None]
        return [steps * self.tokens / seconds, steps * self.flops / seconds / self.peak]

    def _sample(self) -> None:
        gpu = _gpu_load(self.device) if self.device.startswith("cuda") else [math.nan, math.nan]
        self.samples.append([self.process.cpu_percent(), self.process.memory_info().rss / 1e6, *gpu])
        self.sampled_at = time.monotonic()


def on_of(now: dict[str, Any]) -> str:
    """`trunk`, or the budget of the branch as text."""
    return "trunk" if now["branch"] is None else repr(now["branch"])


def _gpu_load(device: str) -> list[float]:
    """Utilisation in percent, and memory that this process has reserved, in 10^6 bytes."""
    try:
        busy = float(torch.cuda.utilization(device))
    except Exception:  # no NVML, or no permission: each library of a vendor has its own errors
        busy = math.nan
    return [busy, torch.cuda.memory_reserved(device) / 1e6]


@cache
def matmul_flops_per_second(device: str, precision: str, threads: int) -> float:
    """FLOPs per second of a large square matmul, measured once in a process: the speed that an MFU of 1 would have.

    The matrices grow until a product takes MATMUL_SECONDS, or to 4,096. The fastest of three counts, because other processes
    may be busy. `threads` must be torch's present number. It takes some 20 ms of a CPU core, also in bf16.
    """
    on_gpu, best, size = device.startswith("cuda"), 0.0, 128
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    numbers = torch.Generator().manual_seed(0)  # the global generator stays as it is
    while size <= 4096:
        a = torch.rand(size, size, generator=numbers).to(device, dtype)
        seconds = math.inf
        for _ in range(4):  # the first one warms up
            begin = time.perf_counter()
            torch.mm(a, a)
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds = min(seconds, time.perf_counter() - begin)
        best = max(best, 2 * size**3 / seconds)
        if seconds > MATMUL_SECONDS:
            break
        size *= 2
    if on_gpu:
        torch.cuda.empty_cache()
    return best
