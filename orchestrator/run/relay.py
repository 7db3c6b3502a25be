"""The event relay: a Ray actor beside the driver. Workers leave events and live values there and ask whether to stop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from orchestrator.record.journal import Event
from orchestrator.run.supervise import StopRequest

LOOK_EVERY_SECONDS = 0.5
"""A trunk looks this often for an answer, and never waits for one: waiting took some 3 ms on two busy cores."""

PATIENCE_SECONDS = 10.0
"""The relay answers a question no later than this. Thus few questions of ended trunks remain in it."""

RELAY_SECONDS = 60.0
"""An event relay that died and does not answer by then is given up. Ray restarts it in some three seconds."""


# Every trunk has a pending call here; Ray's default limit is 1,000.
@ray.remote(num_cpus=0, max_concurrency=100_000, max_restarts=-1, max_task_retries=-1)
class Relay:
    """The event relay: rank 0 of a group leaves events here, and all workers ask here whether to stop.

    After a restart it is empty. Rank 0 then sends its events again, and the driver repeats a stop.
    """

    def __init__(self) -> None:
        self.held: dict[str, list[Event]] = {}
        self.taken: dict[str, int] = {}
        self.met: set[str] = set()
        self.stopping = asyncio.Event()
        self.live: dict[str, Event] = {}

    async def meet(self, group: str) -> None:
        """Record that the workers of this group have found each other."""
        self.met.add(group)

    async def have_met(self, group: str) -> bool:
        """Whether `meet` was called for this group."""
        return group in self.met

    async def put(self, group: str, start: int, events: list[Event]) -> int:
        """Store the events of rank 0 from number `start` on. Returns the number held: after a restart, less than it sent."""
        held = self.held.setdefault(group, [])
        if start <= len(held):
            held.extend(events[len(held) - start :])  # the other ranks send none at their end, from number 0 on
        return len(held)

    async def take(self, group: str, start: int) -> list[Event]:
        """Return the events from number `start` on. Earlier ones are in the journal."""
        self.taken[group] = start
        return self.held.get(group, [])[start:]

    async def is_taken(self, group: str, n_events: int) -> bool:
        """Whether the first `n_events` events of this group are in the journal."""
        return self.taken.get(group, 0) >= n_events

    async def forget(self, group: str) -> None:
        """Drop a group that has ended."""
        self.held.pop(group, None)
        self.taken.pop(group, None)
        self.met.discard(group)

    @ray.method(max_task_retries=0)
    async def show(self, trunk: str, live: Event) -> None:
        """Keep the newest live values of a trunk, until `take_live`."""
        self.live[trunk] = live

    async def take_live(self) -> dict[str, Event]:
        """The live values since the last call, by trunk id."""
        live, self.live = self.live, {}
        return live

    async def stop(self) -> None:
        """Answer every question with "stop" from now on."""
        self.stopping.set()

    async def is_stopping(self, wait_seconds: float = 0.0) -> bool:
        """Whether to stop. Waits up to `wait_seconds` for a stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), wait_seconds)
        return self.stopping.is_set()


def ask_relay(relay: str, method: str, *given: Any) -> Any:
    """Call a method of the event relay of this name, again if the relay died. Raises Ray's error after RELAY_SECONDS."""
    give_up_at = time.monotonic() + RELAY_SECONDS
    while True:
        try:
            return ray.get(getattr(ray.get_actor(relay), method).remote(*given))
        except (ray.exceptions.RayActorError, ValueError):  # ValueError: no actor of this name
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)


def asking(relay: str) -> Callable[[], bool]:
    """Return a function: must this trunk stop? It looks for an answer twice a second and never waits for one."""
    actor = ray.get_actor(relay)
    looked, question, answer = time.monotonic(), actor.is_stopping.remote(PATIENCE_SECONDS), False

    def ask() -> bool:
        nonlocal looked, question, answer
        if time.monotonic() - looked > LOOK_EVERY_SECONDS and not answer:
            looked = time.monotonic()
            if ray.wait([question], timeout=0)[0]:
                with contextlib.suppress(ray.exceptions.RayActorError):  # it died: ask the restarted one
                    answer = bool(ray.get(question))
                question = actor.is_stopping.remote(PATIENCE_SECONDS)
        return answer

    return ask


def showing(relay: str, trunk: str) -> Callable[[Event], None]:
    """Return a function that sends a trunk's live values to the event relay. It waits for nothing; values may be lost."""
    actor = ray.get_actor(relay)

    def show(live: Event) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the relay restarts
            actor.show.remote(trunk, live)

    return show


def hand_on_live(relay: Any, done: threading.Event, watch: Callable[[dict[str, Event]], None]) -> None:
    """Run in a driver thread until `done`. Pass the live values of all trunks on to `watch`, each second."""
    while not done.wait(1.0):
        with contextlib.suppress(Exception):  # tried again in a second; no result needs it
            watch(ray.get(relay.take_live.remote(), timeout=5))


def hand_on_stop(request: StopRequest, relay: Any, done: threading.Event, say: Callable[[str], None]) -> None:
    """Run in a driver thread until `done`. Pass a stop on to the event relay each second: the relay may be restarted."""
    announced = False
    while not done.wait(1.0 if announced else 0.1):
        if request.is_asked():
            with contextlib.suppress(Exception):  # tried again in a second
                ray.get(relay.stop.remote(), timeout=5)
            if not announced:
                announced = True
                again = " Ctrl-C again leaves at once." if request.by_signal else ""
                say(f"Stopping: every trunk saves after the step it is in.{again}")
