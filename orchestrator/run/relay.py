"""The event relay: a Ray actor beside the driver. Workers leave events there, and ask whether to stop."""

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
"""How often a trunk looks whether it is to stop: it has asked once and does not wait. To ask each time took some 3 ms on two busy cores."""

PATIENCE_SECONDS = 10.0
"""A trunk that asks is answered no later than this, so that few questions of trunks that have ended lie about."""

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


def ask_relay(relay: str, method: str, *given: Any) -> Any:
    """Ask the event relay of this name, again where it died meanwhile. Raises what Ray raises, after RELAY_SECONDS."""
    give_up_at = time.monotonic() + RELAY_SECONDS
    while True:
        try:
            return ray.get(getattr(ray.get_actor(relay), method).remote(*given))
        except (ray.exceptions.RayActorError, ValueError):  # ValueError: no actor of this name
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)


def asking(relay: str) -> Callable[[], bool]:
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
