"""Caps: the wall-clock hours and the training FLOPs after which a study ends, with the rest of its trials open.

A cap counts all runs of a study, as its journal has them. It never looks at a result: a rule that stopped trials on the skill under
study would remove exactly those in which a skill appears late.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from orchestrator.formatting import clock, number
from orchestrator.plan.options import Options
from orchestrator.record.journal import Event, State


class Meter:
    """Hours and training FLOPs that all runs of a study have taken so far."""

    def __init__(self, state: State) -> None:
        """`state`: the journal before this run. An earlier run lasted from its start to its last event."""
        self.flops = 0.0
        """Training FLOPs that ran, those of a shared trunk once."""
        self._ended: dict[str, float] = {}  # by trial
        self._running: dict[str, float] = {}  # by trunk, since its last trial ended
        events = [*(e for many in state.evaluations.values() for e in many), *state.trials.values()]
        self.take(sorted(events, key=lambda event: event["time"]))
        ends: dict[str, float] = {}
        for event in events:
            session = event.get("session", "")
            ends[session] = max(ends.get(session, 0.0), event["time"])
        spans = (ends[s["session"]] - s["time"] for s in state.sessions if s["session"] in ends)
        self._earlier_seconds = sum(max(0.0, span) for span in spans)
        self._begun = time.monotonic()

    def take(self, events: Iterable[Event]) -> None:
        """Count evaluations and ends of trials, in order. Repeated ones change nothing."""
        for event in events:
            if event["kind"] == "evaluation":
                self._running[event["trunk"]] = event["flops_run"]
            elif event["kind"] == "trial" and event.get("flops_run") is not None:
                self._ended[event["trial"]] = event["flops_run"]
                self._running.pop(event["trunk"], None)
        self.flops = sum(self._ended.values()) + sum(self._running.values())

    @property
    def hours(self) -> float:
        """Wall-clock hours of all runs. This one counts from the making of the meter."""
        return (self._earlier_seconds + time.monotonic() - self._begun) / 3600


def reached(meter: Meter, options: Options) -> str:
    """The first cap that is reached, in words: `--max-flops 1e12 is reached (1.02e12 used)`; "" if none is."""
    if options.max_flops is not None and meter.flops >= options.max_flops:
        return f"--max-flops {number(options.max_flops)} is reached ({number(meter.flops)} training FLOPs in all runs)"
    if options.max_hours is not None and meter.hours >= options.max_hours:
        return f"--max-hours {options.max_hours:g} is reached ({clock(3600 * meter.hours)} in all runs)"
    return ""
