"""What Ray executes: one trunk on one worker, inside a reused actor, or on several, as a group that Ray Train starts.

Either way the same `run_trunk` runs on every worker. Rank 0 hands its events in at the desk, an actor beside the driver; what
asks the workers to stop hangs there too, so that nothing but checkpoints has to be seen from all machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune

from orchestrator.journal import Event

REPORT_EVERY_SECONDS = 3.0
"""Events wait this long for company: a report costs a trunk some milliseconds, and a short one emits twenty events."""
LOOK_EVERY_SECONDS = 0.5
"""How often a trunk looks whether it is to stop: it has asked once and does not wait. To ask each time took some 3 ms on two busy cores."""
PATIENCE_SECONDS = 10.0
"""A trunk that asks is answered no later than this, so that few questions of trunks that have ended lie about."""
GROUP_START_SECONDS = 600.0
"""A group of workers that has room and has not started by then is given up, and its trunk tried again."""
SLOW_START_SECONDS = 60.0
"""A group that is not training by then is spoken of: it takes ten seconds where all is well."""


@ray.remote(num_cpus=0, max_concurrency=100_000)  # every trunk has a question waiting here; by itself Ray holds 1,000
class Desk:
    """Beside the driver: where workers leave events, and where they ask whether to stop."""

    def __init__(self) -> None:
        self.left: dict[str, list[Event]] = {}
        self.met: set[str] = set()
        self.stopping = asyncio.Event()

    async def expect(self, trunk: str) -> None:
        """A group is about to be started for this trunk."""
        self.met.discard(trunk)

    async def meet(self, trunk: str) -> None:
        """The workers of its group have found each other."""
        self.met.add(trunk)

    async def have_met(self, trunk: str) -> bool:
        """Have they?"""
        return trunk in self.met

    async def put(self, trunk: str, events: list[Event]) -> None:
        """Rank 0 of a group leaves events."""
        self.left.setdefault(trunk, []).extend(events)

    async def take(self, trunk: str) -> list[Event]:
        """All that was left since the last time."""
        return self.left.pop(trunk, [])

    async def stop(self) -> None:
        """From now on everybody who asks is told to stop."""
        self.stopping.set()

    async def is_stopping(self, wait_seconds: float = 0.0) -> bool:
        """Should I stop? Answered as soon as so, else when so long has passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), wait_seconds)
        return self.stopping.is_set()


def execute(config: dict[str, Any]) -> None:
    """One Ray Tune trial: one trunk with the budgets it owes. Runs inside a reused actor, off its main thread."""
    from trainers import memory
    from trainers.place import Place
    from trainers.spec import TrunkSpec

    job = config["job"]
    if ray.get(ray.get_actor(job["desk"]).is_stopping.remote()):
        tune.report({"events": "[]"})  # of a trial that never reported Tune prints a line of its own
        return
    run = _alone if job["workers"] == 1 else _in_a_group
    batch_size = TrunkSpec.model_validate_json(job["trunk"]).training.batch_size

    def at(place: Place) -> None:
        run(job | {"place": place.model_dump()})

    memory.with_less(at, Place(**job["place"]), batch_size, job["workers"])


def _alone(job: dict[str, Any]) -> None:
    """On this actor's own slot."""

    def report(events: list[Event]) -> None:
        tune.report({"events": json.dumps(events)})  # returns once the driver has it

    _train(job, report, job["place"]["device"])


def _in_a_group(job: dict[str, Any]) -> None:
    """On workers of a group of its own; what rank 0 leaves at the desk is reported from here."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.network import OnTheClustersNetwork

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(GROUP_START_SECONDS)
    desk, trunk = ray.get_actor(job["desk"]), job["trunk_id"]
    on_gpu = job["place"]["device"] == "cuda"
    trainer = TorchTrainer(
        _one_of_a_group,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=job["workers"], use_gpu=on_gpu, resources_per_worker={"CPU": 1} | ({"GPU": 1} if on_gpu else {})
        ),
        torch_config=OnTheClustersNetwork(backend="nccl" if on_gpu else "gloo"),
        run_config=RunConfig(
            name=f"group-{trunk.replace('/', '-')}-{time.time_ns()}",
            storage_path=job["scratch"],
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    )
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as problem:
            failed.append(problem)

    ray.get(desk.expect.remote(trunk))
    group = threading.Thread(target=fit, daemon=True)
    group.start()
    speak_at = time.monotonic() + SLOW_START_SECONDS
    while True:
        group.join(REPORT_EVERY_SECONDS / 3)
        over = not group.is_alive()
        if not over and time.monotonic() > speak_at:
            speak_at = math.inf
            if not ray.get(desk.have_met.remote(trunk)):
                tune.report({"events": "[]", "note": _slow_start(job)})
        if (events := ray.get(desk.take.remote(trunk))) or over:
            tune.report({"events": json.dumps(events)})
        if over:
            break
    if failed:
        raise failed[0]


def _slow_start(job: dict[str, Any]) -> str:
    return (
        f"{job['trunk_id']}: its {job['workers']} workers have not met after {SLOW_START_SECONDS:.0f} s. They wait for room, or "
        f"cannot reach each other: docs/cluster.md, 'When workers do not meet'"
    )


def _one_of_a_group(job: dict[str, Any]) -> None:
    """What each worker of a group runs. Ray Train has made the process group."""
    from ray.train.torch import get_device

    desk, trunk = ray.get_actor(job["desk"]), job["trunk_id"]
    device = get_device()
    desk.meet.remote(trunk)
    _train(job, lambda events: ray.get(desk.put.remote(trunk, events)), str(device))


def _train(job: dict[str, Any], deliver: Callable[[list[Event]], None], device: str) -> None:
    """Run the trunk here, as far as the desk lets it; hand on what it emits, some events at a time."""
    from trainers.place import Place
    from trainers.spec import TrunkSpec
    from trainers.train import run_trunk

    desk = ray.get_actor(job["desk"])
    facts = {"session": job["session"], "host": socket.gethostname(), "device": job["place"]["device"]}
    waiting: list[Event] = []
    handed_in = time.monotonic()

    def hand_in() -> None:
        nonlocal handed_in
        deliver(list(waiting))
        waiting.clear()
        handed_in = time.monotonic()

    def emit(events: list[Event]) -> None:
        waiting.extend(facts | event for event in events)
        if time.monotonic() - handed_in > REPORT_EVERY_SECONDS:
            hand_in()

    trunk = TrunkSpec.model_validate_json(job["trunk"])
    place = Place(**job["place"] | {"device": device})
    try:
        run_trunk(trunk, job["budgets"], place, emit, _asking(desk))
    finally:
        hand_in()


def _asking(desk: Any) -> Callable[[], bool]:
    """Ask whether to stop, and look twice a second whether an answer has come: the trunk never waits for one."""
    looked, question, answer = time.monotonic(), desk.is_stopping.remote(PATIENCE_SECONDS), False

    def ask() -> bool:
        nonlocal looked, question, answer
        if time.monotonic() - looked > LOOK_EVERY_SECONDS and not answer:
            looked = time.monotonic()
            if ray.wait([question], timeout=0)[0]:
                answer, question = bool(ray.get(question)), desk.is_stopping.remote(PATIENCE_SECONDS)
        return answer

    return ask


def watch(flag: Path, desk: Any, done: threading.Event) -> None:
    """Until `done`: once the flag is there, tell the desk. For a thread of the driver."""
    while not done.wait(0.1):
        if flag.exists():
            desk.stop.remote()
            return
