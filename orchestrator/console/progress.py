"""The display of a running study: trials, FLOPs, time left, failures, and the tasks x compute surface.

A live panel on a terminal; plain lines elsewhere, for logs. Reads events, computes no statistic.
"""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import cast

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.measures import of_rows, over_replicates
from orchestrator.formatting import clock, decimal, number, on_split
from orchestrator.plan import price
from orchestrator.plan.price import Plan
from orchestrator.record.journal import Event, State
from orchestrator.report import palette
from orchestrator.study.schema import Study
from orchestrator.terminal import Terminal, styled
from trainers import budget
from trainers.tasks import Family
from trainers.tasks.references import ExactFamily

LINES_EVERY_SECONDS = 2.0
"""Least time between two lines without a terminal, so that a log of 10,000 trials stays readable."""


class Surface:
    """Mean ability of the headline skill at the end of each (n_tasks, budget), over the trials that have ended.

    Accuracy if the family has no exact references.
    """

    def __init__(self, study: Study, state: State) -> None:
        self.study = study
        family = cast(Family, study.family)
        self.skill = study.shown_skills[0]
        self.ability_of = family.ability_of
        self.measure = "ability" if isinstance(family, ExactFamily) else "accuracy"
        self.split = ""
        self.cells: dict[tuple[str, int, float], dict[int, float | None]] = {}
        self._trunks = {trunk.id: trunk for trunk in study.trunks()}
        self.take([event for events in state.evaluations.values() for event in events])

    def take(self, events: list[Event]) -> None:
        """Add final evaluations; other events are ignored."""
        for event in events:
            trunk = self._trunks.get(event.get("trunk", ""))
            if event["kind"] != "evaluation" or event["on"] == "trunk" or trunk is None:
                continue
            condition = self.study.condition_of(trunk.arm, trunk.variant)
            mine = {row["split"]: row for row in event["rows"] if row["skill"] == self.skill}
            row = mine.get("held_out") or mine.get("seen")  # some skills exist on seen tasks only
            if row:
                self.split = row["split"]
                cell = self.cells.setdefault((condition, trunk.n_tasks, float(event["on"])), {})
                cell[trunk.replicate] = of_rows(self.measure, [row], self.ability_of)[0]

    @property
    def title(self) -> str:
        """Skill, measure and, after the first evaluation, its split."""
        scale = " (0 knows nothing, 1 has the rule)" if self.measure == "ability" else ""
        return f"{self.skill}: {self.measure}{f' on {on_split(self.split)}' if self.split else ''}{scale}"

    def render(self) -> RenderableType:
        """Rows are numbers of tasks, columns are budgets; one block per condition."""
        blocks: list[RenderableType] = []
        for condition in self.study.conditions:
            which = f", {condition}" if len(self.study.conditions) > 1 else ""
            blocks.append(styled((f"{self.title}{which}; columns: training FLOPs", "bold")))
            table = Table(box=None, padding=(0, 1))
            table.add_column("tasks", justify="right")
            for flops in self.study.budgets:
                table.add_column(f"{number(flops)}", justify="center")
            for n_tasks in sorted(self.study.axes.n_tasks, reverse=True):
                table.add_row(number(n_tasks), *(self._cell(condition, n_tasks, c) for c in self.study.budgets))
            blocks.append(table)
        if legend := self._legend():
            blocks.append(styled((legend, "dim")))
        return Group(*blocks)

    def _legend(self) -> str:
        n = self.study.axes.replicates
        known = [len(values) for values in self.cells.values()]
        cells = len(self.study.conditions) * len(self.study.axes.n_tasks) * len(self.study.budgets)
        marks = [f"…: mean of fewer than all {n} replicates so far"] if any(0 < k < n for k in known) else []
        marks += ["·: none has ended yet"] if len(known) < cells else []
        undefined = any(set(values.values()) == {None} for values in self.cells.values())
        marks += [f"—: {self.measure} is not defined"] if undefined else []
        return "; ".join(marks)

    def _cell(self, condition: str, n_tasks: int, flops: float) -> Text:
        values = self.cells.get((condition, n_tasks, flops), {})
        if not values:
            return Text("  ·   ", style="dim")
        defined = [value for value in values.values() if value is not None]
        if not defined:
            return Text("  —   ", style="dim")
        mean = float(over_replicates(np.array(defined)))
        colour = palette.mix(palette.LIGHT.scale, min(max(mean, -1.0), 1.0))
        style = f"{palette.ink_on(colour)} on #{bytes(colour).hex()}"
        partly = "" if len(values) == self.study.axes.replicates else "…"
        return Text(f" {decimal(mean):>5}{partly or ' '} ", style=style)


class Progress:
    """The display of a run, drawn from its events. A context manager."""

    def __init__(self, study: Study, state: State, plan: Plan, console: Console | None = None) -> None:
        self.console = console or Terminal()
        self.plan = plan
        self.surface = Surface(study, state)
        self.status: Counter[str] = Counter()
        self.n_todo = plan.n_open
        self.ended_flops = 0.0
        self.running: dict[str, float] = {}  # FLOPs of each trunk in this run since its last trial ended
        self.planned = {  # an ended trial counts with its whole cost
            job.trunk.trial(flops).id: float(cost)
            for job in plan.jobs
            for flops, cost in budget.marginal_flops(job.trunk, job.budgets, job.at).items()
        }
        self.before = {  # the FLOPs reported for a trunk's first trial include those of an earlier run
            job.trunk.id: float(job.at.charged_steps * budget.flops_per_step(job.trunk)) for job in plan.jobs
        }
        self.keys = set(state.keys)
        self.started = time.monotonic()
        self.first_event: tuple[float, float] | None = None
        self._last_line = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal and not self.console.is_dumb_terminal:  # `ray submit` always gives a terminal
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, value, trace)
            self._live = None

    def say(self, line: str) -> None:
        """Print one line, above the live panel if there is one."""
        self.console.print(styled(line), soft_wrap=True)

    def on_slots(self, slots: int) -> None:
        """Take the number of slots from Ray, and recompute the time if it differs from the plan."""
        if slots != self.plan.slots:
            self.plan = price.on_slots(self.plan, slots)
            left = f": about {clock(self.plan.seconds)}" if self.plan.seconds else ""
            self.say(f"Ray offers {slots} slot{'s' if slots > 1 else ''}{left}")

    def take(self, events: list[Event]) -> None:
        """Take new events from the driver."""
        fresh = [event for event in events if event["key"] not in self.keys]
        self.keys |= {event["key"] for event in fresh}
        self.surface.take(fresh)
        for event in fresh:
            if event["kind"] == "evaluation":
                self.running[event["trunk"]] = max(0.0, event["flops_run"] - self.before.get(event["trunk"], 0.0))
            elif event["kind"] == "trial":
                self.running.pop(event["trunk"], None)
                if cost := self.planned.get(event["trial"], 0.0):  # zero: it had ended before and is only repeated
                    self.before.pop(event["trunk"], None)
                self.ended_flops += cost
                self.status[event["status"]] += 1
                self._trial_line(event)
        if self.first_event is None and fresh:
            self.first_event = (time.monotonic(), self.flops)

    @property
    def flops(self) -> float:
        """Training FLOPs done in this run, at most `plan.train_flops`."""
        return min(self.ended_flops + sum(self.running.values()), float(self.plan.train_flops))

    def seconds_left(self) -> float | None:
        """Time left by the speed since the first report, or by the plan before there is one; None if unknown."""
        if self.first_event is not None:
            begun, flops = self.first_event
            seconds, done = time.monotonic() - begun, self.flops - flops
            if done > 0.02 * self.plan.train_flops and seconds > 2:
                return max(0.0, (self.plan.train_flops - self.flops) * seconds / done)
        if self.plan.seconds is None:
            return None
        return max(0.0, self.plan.seconds - (time.monotonic() - self.started))

    def summary(self) -> str:
        """One line: trials, FLOPs, time, failures."""
        ended = self.status["done"] + self.status["diverged"] + self.status["failed"]
        share = self.flops / self.plan.train_flops if self.plan.train_flops else 1.0
        left = self.seconds_left()
        parts = [
            f"{ended} of {self.n_todo} trials",
            f"{share:.0%} of {number(float(self.plan.train_flops))} FLOPs",
            f"{clock(time.monotonic() - self.started)} gone, {f'about {clock(left)} left' if left is not None else 'time left unknown'}",
            f"{self.status['failed']} failed",
        ]
        if self.status["diverged"]:
            parts.append(f"{self.status['diverged']} diverged")
        return " · ".join(parts)

    def render(self) -> RenderableType:
        """The live panel."""
        bar = ProgressBar(total=max(self.plan.train_flops, 1), completed=self.flops, width=60)
        return Group(Text(self.summary()), bar, Text(""), self.surface.render())

    def _trial_line(self, event: Event) -> None:
        if self._live is not None:
            if event["status"] in ("failed", "diverged"):
                self.say(f"{event['trial']} {event['status']}: {event.get('reason', '')}")
            return
        last = sum(self.status.values()) >= self.n_todo
        if time.monotonic() - self._last_line >= LINES_EVERY_SECONDS or last or event["status"] != "done":
            self._last_line = time.monotonic()
            reason = f": {event['reason']}" if event.get("reason") else ""
            self.say(f"{self.summary()} · {event['trial']} {event['status']}{reason}")
