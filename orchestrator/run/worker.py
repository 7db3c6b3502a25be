"""What Ray executes: one trunk on one worker, inside a reused actor, or on several, as a group that Ray Train starts.

Either way the same `run_trunk` runs on every worker. Rank 0 hands its events to the event relay, an actor beside the driver; the
request to stop comes from there too, so that nothing but checkpoints has to be seen from all machines.
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
from functools import partial
from typing import Any

import ray
from ray import tune

from orchestrator.record.journal import Event
from orchestrator.run.supervise import StopRequest

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


RELAY_SECONDS = 60.0
"""An event relay that died and does not answer by then is given up; Ray starts it anew in some three seconds."""


# Every trunk has a question waiting here; by itself Ray holds 1,000.
@ray.remote(num_cpus=0, max_concurrency=100_000, max_restarts=-1, max_task_retries=-1)
class Relay:
    """The event relay, beside the driver: rank 0 of a group leaves events here, and all ask here whether to stop.

    Started anew after its death it is empty. Rank 0 then sends again what it had sent, and the driver repeats a stop.
    """

    def __init__(self) -> None:
        self.held: dict[str, list[Event]] = {}
        self.taken: dict[str, int] = {}
        self.met: set[str] = set()
        self.stopping = asyncio.Event()

    async def meet(self, group: str) -> None:
        """The workers of this group have found each other."""
        self.met.add(group)

    async def have_met(self, group: str) -> bool:
        """Have they?"""
        return group in self.met

    async def put(self, group: str, start: int, events: list[Event]) -> int:
        """Rank 0 leaves its events number `start` and following. Returns how many are here: less than it sent, if we were lost."""
        held = self.held.setdefault(group, [])
        if start <= len(held):
            held[start:] = events
        return len(held)

    async def take(self, group: str, start: int) -> list[Event]:
        """The events from number `start` on. Those before it are in the journal."""
        self.taken[group] = start
        return self.held.get(group, [])[start:]

    async def is_taken(self, group: str, n_events: int) -> bool:
        """Are so many events of this group in the journal?"""
        return self.taken.get(group, 0) >= n_events

    async def forget(self, group: str) -> None:
        """This group has ended."""
        self.held.pop(group, None)
        self.taken.pop(group, None)
        self.met.discard(group)

    async def stop(self) -> None:
        """From now on everybody who asks is told to stop."""
        self.stopping.set()

    async def is_stopping(self, wait_seconds: float = 0.0) -> bool:
        """Should I stop? Answered as soon as so, else when so long has passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), wait_seconds)
        return self.stopping.is_set()


def _ask(relay: str, method: str, *given: Any) -> Any:
    """Ask the event relay of this name, again where it died meanwhile. Raises what Ray raises, after RELAY_SECONDS."""
    give_up_at = time.monotonic() + RELAY_SECONDS
    while True:
        try:
            return ray.get(getattr(ray.get_actor(relay), method).remote(*given))
        except (ray.exceptions.RayActorError, ValueError):  # ValueError: no actor of this name
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)


def execute(config: dict[str, Any]) -> None:
    """One Ray Tune trial: one trunk with the budgets it owes. Runs inside a reused actor, off its main thread."""
    from trainers.fit import memory
    from trainers.fit.place import Place
    from trainers.spec import TrunkSpec

    job = config["job"]
    if _ask(job["relay"], "is_stopping"):
        tune.report({"events": "[]"})  # of a trial that never reported Tune prints a line of its own
        return
    run = _alone if job["workers"] == 1 else _in_a_group
    batch_size = TrunkSpec.model_validate_json(job["trunk"]).training.batch_size

    def at(place: Place) -> None:
        run(job | {"place": place.model_dump()})

    memory.with_less(at, Place(**job["place"]), batch_size, job["workers"])


def _alone(job: dict[str, Any]) -> None:
    """On this actor's own slot."""
    _train(job, _report, job["place"]["device"])


NOTE = "note"
"""The kind of what a trunk says to the person who watches: it comes among the events, and goes into no journal."""


def _report(events: list[Event]) -> None:
    """Hand events to the driver; returns once it has them."""
    notes = [event["text"] for event in events if event["kind"] == NOTE]
    lasting = json.dumps([event for event in events if event["kind"] != NOTE])
    tune.report({"events": lasting} | ({"note": "\n".join(notes)} if notes else {}))


def _in_a_group(job: dict[str, Any]) -> None:
    """On workers of a group of its own; what rank 0 leaves at the event relay is reported from here."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.run.network import OnTheClustersNetwork

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(GROUP_START_SECONDS)
    ask = partial(_ask, job["relay"])
    group = f"group-{job['trunk_id'].replace('/', '-')}-{time.time_ns()}"
    on_gpu = job["place"]["device"] == "cuda"
    trainer = TorchTrainer(
        _one_of_a_group,
        train_loop_config=job | {"group": group},
        scaling_config=ScalingConfig(
            num_workers=job["workers"], use_gpu=on_gpu, resources_per_worker={"CPU": 1} | ({"GPU": 1} if on_gpu else {})
        ),
        torch_config=OnTheClustersNetwork(backend="nccl" if on_gpu else "gloo"),
        run_config=RunConfig(
            name=group,
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

    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    speak_at, n_reported = time.monotonic() + SLOW_START_SECONDS, 0
    over = False
    while not over:
        fitting.join(REPORT_EVERY_SECONDS / 3)
        over = not fitting.is_alive()
        if not over and time.monotonic() > speak_at:
            speak_at = math.inf
            if not ask("have_met", group):
                tune.report({"events": "[]", "note": _slow_start(job)})
        if (events := ask("take", group, n_reported)) or over:
            _report(events)
            n_reported += len(events)
    ask("forget", group)
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

    ask, group, device = partial(_ask, job["relay"]), job["group"], get_device()
    ask("meet", group)
    sent: list[Event] = []

    def deliver(events: list[Event]) -> None:
        start = len(sent)
        sent.extend(events)
        while (there := ask("put", group, start, sent[start:])) < len(sent):
            start = there

    try:
        _train(job, deliver, str(device))
    finally:  # this process ends, and with it the only other copy
        give_up_at = time.monotonic() + RELAY_SECONDS
        while not ask("is_taken", group, len(sent)) and time.monotonic() < give_up_at:
            deliver([])
            time.sleep(0.2)


def _train(job: dict[str, Any], deliver: Callable[[list[Event]], None], device: str) -> None:
    """Run the trunk here until it ends or is to stop; hand on what it emits, some events at a time."""
    from trainers.fit.place import Place
    from trainers.spec import TrunkSpec
    from trainers.train import run_trunk

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

    def note(text: str) -> None:
        waiting.append({"kind": NOTE, "text": text})
        hand_in()

    trunk = TrunkSpec.model_validate_json(job["trunk"])
    place = Place(**job["place"] | {"device": device})
    try:
        run_trunk(trunk, job["budgets"], place, emit, _asking(job["relay"]), note)
    finally:
        hand_in()


def _asking(relay: str) -> Callable[[], bool]:
    """Ask whether to stop, and look twice a second whether an answer has come: the trunk never waits for one."""
    actor = ray.get_actor(relay)
    looked, question, answer = time.monotonic(), actor.is_stopping.remote(PATIENCE_SECONDS), False

    def ask() -> bool:
        nonlocal looked, question, answer
        if time.monotonic() - looked > LOOK_EVERY_SECONDS and not answer:
            looked = time.monotonic()
            if ray.wait([question], timeout=0)[0]:
                with contextlib.suppress(ray.exceptions.RayActorError):  # it died: ask the one that is started anew
                    answer = bool(ray.get(question))
                question = actor.is_stopping.remote(PATIENCE_SECONDS)
        return answer

    return ask


def hand_on_stop(request: StopRequest, relay: Any, done: threading.Event, say: Callable[[str], None]) -> None:
    """Until `done`: once a stop is asked for, tell the event relay, and again each second: it may be started anew.

    For a thread of the driver.
    """
    said = False
    while not done.wait(1.0 if said else 0.1):
        if request.is_asked():
            with contextlib.suppress(Exception):  # whatever it is, it is tried again
                ray.get(relay.stop.remote(), timeout=5)
            if not said:
                said = True
                say("Stopping: every trunk saves after the step it is in. Ctrl-C again leaves at once.")
