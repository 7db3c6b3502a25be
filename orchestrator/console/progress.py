"""The display of a running study: trials, FLOPs, time left, failures, running trunks, and the tasks x compute surface.

A live panel on a terminal; plain lines elsewhere, for logs. Reads events and live values, computes no statistic.
"""

from __future__ import annotations

import re
import threading
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

from orchestrator.analysis.measures import compared_on, of_rows, over_replicates
from orchestrator.formatting import clock, decimal, figure, number, on_split, rounded
from orchestrator.plan import price
from orchestrator.plan.options import slots_of
from orchestrator.plan.order import makespan
from orchestrator.plan.price import Plan
from orchestrator.record.journal import Event, State
from orchestrator.report import palette
from orchestrator.study.schema import Study
from orchestrator.terminal import Terminal, styled
from trainers import budget
from trainers.tasks import Family
from trainers.tasks.references import ExactFamily

MOST_TRUNKS = 8
"""Most running trunks that the panel shows, one line each."""

ID_WIDTH = 34
"""Most characters of an id in such a line: with the longest numbers it then fits in 80 columns."""

QUIET_SECONDS = 300.0
"""A trunk without live values for so long is no longer shown: its worker may be lost."""

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
        self.measure = "ability" if isinstance(family, ExactFamily) or family.ability_of == "right" else "accuracy"
        self.split = ""
        self.cells: dict[tuple[str, int, float], dict[int, float | None]] = {}
        self.budgets = {condition: study.budgets_of(condition) for condition in study.conditions}
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
            row = next((mine[split] for split in compared_on(self.ability_of) if split in mine), None)
            if mine:  # of text there may be no held-out task in the clusters that this trial trains
                cell = self.cells.setdefault((condition, trunk.n_tasks, float(event["on"])), {})
                cell[trunk.replicate] = of_rows(self.measure, [row], self.ability_of)[0] if row else None
            self.split = row["split"] if row else self.split

    @property
    def title(self) -> str:
        """Skill, measure and, after the first evaluation, its split."""
        of_text = self.ability_of == "right"
        one = "all right" if of_text else "the rule"
        scale = f" (0 {'trivial' if of_text else 'nothing'}, 1 {one})" if self.measure == "ability" else ""
        return f"{self.skill}: {self.measure}{f' on {on_split(self.split, of_text)}' if self.split else ''}{scale}"

    def render(self) -> RenderableType:
        """Rows are numbers of tasks, columns are budgets; one block per condition."""
        blocks: list[RenderableType] = []
        for condition in self.study.conditions:
            which = f", {condition}" if len(self.study.conditions) > 1 else ""
            blocks.append(styled((f"{self.title}{which}, by FLOPs", "bold")))
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
        cells = sum(len(c) * len(self.study.levels_of(condition)) for condition, c in self.budgets.items())
        marks = [f"…: mean of fewer than all {n} replicates so far"] if any(0 < k < n for k in known) else []
        marks += ["·: none has ended yet"] if len(known) < cells else []
        undefined = any(set(values.values()) == {None} for values in self.cells.values())
        marks += [f"—: {self.measure} is not defined"] if undefined else []
        return "; ".join(marks)

    def _cell(self, condition: str, n_tasks: int, flops: float) -> Text:
        values = self.cells.get((condition, n_tasks, flops), {})
        if flops not in self.budgets[condition] or n_tasks not in self.study.levels_of(condition):
            return Text("")
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
        self.ahead = {
            job.trunk.id: float(job.price.train_flops) for job in plan.jobs
        }  # FLOPs of trials that have not ended
        self.before = {  # the FLOPs reported for a trunk's first trial include those of an earlier run
            job.trunk.id: float(job.at.charged_steps * budget.flops_per_step(job.trunk)) for job in plan.jobs
        }
        self.live: dict[str, tuple[float, Event]] = {}  # the last live values of each running trunk, and when they came
        self._trunks = {job.trunk.id: job.trunk for job in plan.jobs}
        self._lock = threading.Lock()  # `take` and `watch` have threads of their own
        self._ended_at: dict[str, float] = {}  # a trunk's clock when its last trial ended
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
        self.console.print(styled(line), soft_wrap=self._live is None)  # it would hold for the panel too

    def on_slots(self, slots: int) -> None:
        """Take the number of slots from Ray, and recompute the time if it differs from the plan."""
        if slots != self.plan.slots:
            self.plan = price.on_slots(self.plan, slots)
            left = f": about {clock(self.plan.seconds)}" if self.plan.seconds else ""
            self.say(f"Ray offers {slots} slot{'s' if slots > 1 else ''}{left}")

    def take(self, events: list[Event]) -> None:
        """Take new events from the driver."""
        with self._lock:
            fresh = [event for event in events if event["key"] not in self.keys]
            self.keys |= {event["key"] for event in fresh}
            self.surface.take(fresh)
            for event in fresh:
                if event["kind"] == "evaluation":
                    self._ran(event["trunk"], event["flops_run"])
                elif event["kind"] == "trunk":
                    self.live.pop(event["trunk"], None)
                    self._ended_at[event["trunk"]] = event["time"]
                elif event["kind"] == "trial":
                    self.running.pop(event["trunk"], None)
                    self._ended_at[event["trunk"]] = event["time"]
                    if event["status"] == "failed":
                        self.live.pop(event["trunk"], None)
                    if cost := self.planned.get(event["trial"], 0.0):  # zero: it had ended before and is only repeated
                        self.before.pop(event["trunk"], None)
                    self.ended_flops += cost
                    self.ahead[event["trunk"]] = self.ahead.get(event["trunk"], 0.0) - cost
                    self.status[event["status"]] += 1
                    self._trial_line(event)
            self._begin(bool(fresh))

    def watch(self, live: dict[str, Event]) -> None:
        """Take live values (`telemetry.Telemetry.after_step`) by trunk id. They may be older than events of the trunk."""
        with self._lock:
            for trunk, values in live.items():
                if trunk in self._trunks and values["time"] > self._ended_at.get(trunk, 0.0):
                    self._ran(trunk, values["flops_run"])
                    self.live[trunk] = (time.monotonic(), values)
            self._begin(bool(live))

    def _ran(self, trunk: str, flops_run: float) -> None:
        """Take a trunk's FLOPs since its last trial ended. Reports come late, so the largest number counts."""
        here = flops_run - self.before.get(trunk, 0.0)
        self.running[trunk] = max(0.0, here, self.running.get(trunk, 0.0))

    def _begin(self, has_news: bool) -> None:
        if self.first_event is None and has_news:
            self.first_event = (time.monotonic(), self.flops)

    @property
    def flops(self) -> float:
        """Training FLOPs done in this run, at most `plan.train_flops`."""
        return min(self.ended_flops + sum(list(self.running.values())), float(self.plan.train_flops))

    def seconds_left(self) -> float | None:
        """Time until the last trunk ends, by the speed since the first report; by the plan before 2 % are done.

        None if unknown. Each slot is taken to have the same speed.
        """
        if self.first_event is not None:
            begun, flops = self.first_event
            seconds, done = time.monotonic() - begun, self.flops - flops
            enough = 0.02 * self.plan.train_flops if self.plan.seconds is not None else 0.0
            if done > enough and seconds > 2:
                workers = [slots_of(job.placement, self.plan.options) for job in self.plan.jobs]
                slots = min(self.plan.slots, sum(workers))
                ahead = [self.ahead[job.trunk.id] - self.running.get(job.trunk.id, 0.0) for job in self.plan.jobs]
                each = [
                    max(0.0, n / job_workers) * slots * seconds / done
                    for n, job_workers in zip(ahead, workers, strict=True)
                ]
                return makespan(each, slots, workers)
        if self.plan.seconds is None:
            return None
        return max(0.0, self.plan.seconds - (time.monotonic() - self.started))

    def summary(self) -> str:
        """One line: trials, FLOPs, time, failures."""
        ended = self.status["done"] + self.status["diverged"] + self.status["failed"]
        share = self.flops / self.plan.train_flops if self.plan.train_flops else 1.0
        left = self.seconds_left()
        ahead = "time left unknown" if left is None else f"about {clock(left)} left"
        parts = [
            f"{ended} of {self.n_todo} trials",
            f"{share:{'.1%' if 0 < share < 0.1 else '.0%'}} of {number(float(self.plan.train_flops))} FLOPs",
            f"{clock(time.monotonic() - self.started)} gone" + ("" if ended == self.n_todo else f", {ahead}"),
        ]
        parts += [f"{self.status[name]} {name}" for name in ("failed", "diverged") if self.status[name]]
        return " · ".join(parts)

    def render(self) -> RenderableType:
        """The live panel."""
        bar = ProgressBar(total=max(self.plan.train_flops, 1), completed=self.flops, width=60)
        return Group(Text(self.summary()), bar, *self._running_trunks(), Text(""), self.surface.render())

    def _running_trunks(self) -> list[RenderableType]:
        """One line for each running trunk, up to MOST_TRUNKS. During a branch it has the id of the branch's trial."""
        heard = time.monotonic() - QUIET_SECONDS
        shown = [(trunk, values) for trunk, (at, values) in list(self.live.items()) if at > heard]
        if not shown:
            return [Text(""), Text("Workers are starting.", "dim")] if self.first_event is None else []
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("running", no_wrap=True, min_width=max(len(_shortened(trial)) for trial in self.planned))
        for name, width in (
            ("step", 0),
            ("loss", 6),
            ("tokens/s", 7),
            ("MFU", 6),
        ):  # so that columns stay where they are
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        for trunk, values in shown[:MOST_TRUNKS]:
            on, speed, mfu = values["on"], values["tokens_per_second"], values["mfu"]
            name = trunk if on == "trunk" else self._trunks[trunk].trial(float(on)).id
            table.add_row(
                _shortened(name),
                f"{number(values['step'])} of {number(values['last_step'])}",
                decimal(values["loss_nats"], 3),
                "—" if speed is None else rounded(speed),
                "—" if mfu is None else f"{figure(float(f'{100 * mfu:.2g}'))} %",
            )
        more = len(shown) - MOST_TRUNKS
        return [Text(""), table, *([Text(f"and {more:,} more", "dim")] if more > 0 else [])]

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


def _shortened(name: str) -> str:
    """An id of at most ID_WIDTH characters. Its longest names are cut; numbers stay, so that replicates keep different ids."""
    parts = name.split("/")
    names = [i for i, part in enumerate(parts) if i == 0 or not re.fullmatch(r"[ncr]\d[\d.e]*", part)]
    while len("/".join(parts)) > ID_WIDTH and len(parts[longest := max(names, key=lambda i: len(parts[i]))]) > 2:
        parts[longest] = parts[longest].rstrip("…")[:-1] + "…"
    return "/".join(parts)
