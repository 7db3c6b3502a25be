"""Caps: the wall-clock hours and the training FLOPs after which a study ends, with the rest of its trials open.

A cap counts all runs of a study, as its journal has them. It never looks at a result: a rule that stopped trials on the skill under
study would remove exactly those in which a skill appears late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping

from orchestrator.formatting import clock, number
from orchestrator.plan.options import Options
from orchestrator.record.journal import Event, State


class Meter:
    """Hours and training FLOPs that all runs of a study have taken so far."""

    def __init__(self, state: State) -> None:
        """`state`: the journal before this run. An earlier run lasted from its start to its end, or to its last event if
        it was killed."""
        self.flops = 0.0
        """Training FLOPs that ran, those of a shared trunk once."""
        self._keys: set[str] = set()
        self._ended: dict[str, float] = {}  # by trial
        self._running: dict[str, float] = {}  # by trunk, since its last trial ended
        self._ended_at: dict[str, float] = {}  # a trunk's clock when its last trial ended
        self._lock = threading.Lock()
        of_trunks = [*state.evaluations.values(), *state.telemetry.values()]
        events = [
            *(event for many in of_trunks for event in many),
            *state.trials.values(),
            *state.session_ends.values(),
        ]
        self.take(sorted(events, key=lambda event: event["time"]))
        ends: dict[str, float] = {}
        for event in events:
            session = event.get("session", "")
            ends[session] = max(ends.get(session, 0.0), event["time"])
        spans = (ends[s["session"]] - s["time"] for s in state.sessions if s["session"] in ends)
        self._earlier_seconds = sum(max(0.0, span) for span in spans)
        self._begun = time.monotonic()

    def take(self, events: Iterable[Event]) -> None:
        """Count evaluations, ends of trials and ends of sessions, in order. Repeated ones, as after a resume, change nothing."""
        with self._lock:
            for event in events:
                if event["key"] in self._keys:
                    continue
                self._keys.add(event["key"])
                if event["kind"] == "evaluation":
                    self._ran(event["trunk"], event["flops_run"])
                elif event["kind"] == "trial" and event.get("flops_run") is not None:
                    self._ended[event["trial"]] = event["flops_run"]
                    self._running.pop(event["trunk"], None)
                    self._ended_at[event["trunk"]] = event["time"]
                elif event["kind"] == "session_end":  # its checkpoints hold more than the last evaluations
                    for trunk, flops in event["running_flops"].items():
                        self._ran(trunk, flops)
            self._add_up()

    @property
    def running_flops(self) -> dict[str, float]:
        """Training FLOPs of each trunk since its last trial ended."""
        with self._lock:
            return dict(self._running)

    def watch(self, live: Mapping[str, Event]) -> None:
        """Count live values by trunk. Those from before the end of a trunk's last trial are out of date."""
        with self._lock:
            for trunk, values in live.items():
                if values["time"] > self._ended_at.get(trunk, 0.0):
                    self._ran(trunk, values["flops_run"])
            self._add_up()

    def _ran(self, trunk: str, flops: float) -> None:
        self._running[trunk] = max(flops, self._running.get(trunk, 0.0))

    def _add_up(self) -> None:
        self.flops = sum(self._ended.values()) + sum(self._running.values())

    @property
    def hours(self) -> float:
        """Wall-clock hours of all runs. This one counts from the making of the meter."""
        return (self._earlier_seconds + time.monotonic() - self._begun) / 3600


def reached(meter: Meter, options: Options) -> str:
    """The first cap that is reached, in words: `its cap of 1e12 training FLOPs is reached: ...`; "" if none is."""
    if options.max_flops is not None and meter.flops >= options.max_flops:
        return f"its cap of {number(options.max_flops)} training FLOPs is reached: {number(meter.flops)} in all runs"
    if options.max_hours is not None and meter.hours >= options.max_hours:
        return f"its cap of {options.max_hours:g} hours is reached: {clock(3600 * meter.hours)} in all runs"
    return ""
