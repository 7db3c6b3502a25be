"""Curves along training, and dots at one budget: every replicate for itself, beside the exact references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from orchestrator.findings import Findings
from orchestrator.report.plates import FAINT, GREY, INK, LIST, Margins, Panel, Sheet, counted, decimal, say
from orchestrator.report.surfaces import Trials
from orchestrator.results import Track as Along
from orchestrator.words import number


class Series(NamedTuple):
    """One kind of line in a panel of curves."""

    measure: str
    skill: str
    split: str
    colour: str
    dashed: bool
    name: str
    """What the key calls it."""


Lines = Sequence[tuple[str, float]]
"""Reference lines across a panel: (name, value)."""


def decays(found: Findings) -> bool:
    """Does the schedule end a budget with a decay?"""
    training = found.study.training
    return training.schedule == "wsd" and training.decay_share > 0


# Along training -----------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """One evaluation of a training run."""

    flops: float
    value: float
    step: int
    phase: str
    budget: float | None
    """Whose end it is; None along the trunk, which several budgets share."""


class Track(NamedTuple):
    """One replicate along its trunk, and the branches off it."""

    trunk: list[Look]
    branches: list[list[Look]]
    """From the branch point to the end of a budget; a single look where nothing branches off."""
    diverged: bool


class Curves:
    """Training runs as lines to draw."""

    def __init__(self, found: Findings) -> None:
        self.found = found
        self.trials = Trials(found)
        self.diverged = {(r["arm"], r["n_tasks"], r["replicate"]) for r in found.runs if r["status"] == "diverged"}

    def track(self, series: Series, arm: str, n_tasks: int, replicate: int) -> Track:
        """All that was measured of one replicate, over all its budgets."""
        along = self.found.results.track(series.measure, arm, series.skill, series.split, n_tasks, replicate)
        trunk: dict[int, Look] = {}
        branched_at: dict[float, int] = {}
        ends: dict[float, Look] = {}
        for step, flops, value, budget, phase in zip(*(part.tolist() for part in along), strict=True):
            if math.isnan(value):
                continue
            if phase == "final":
                ends[budget] = Look(flops, value, int(step), phase, budget)
                continue
            trunk[step] = Look(flops, value, int(step), phase, None)
            if phase == "pre_decay":
                branched_at[budget] = step
        for budget, end in ends.items():
            if budget not in branched_at:
                trunk[end.step] = end
        branches = [[*([trunk[branched_at[c]]] if c in branched_at else []), end] for c, end in sorted(ends.items())]
        return Track([trunk[s] for s in sorted(trunk)], branches, (arm, n_tasks, replicate) in self.diverged)

    def span(self, arm: str) -> tuple[float, float]:
        """The range of training FLOPs of an arm's curves."""
        low, high = self.found.results.span(arm) or (math.inf, 0.0)
        budgets = self.found.study.budgets
        return (min(low, budgets[0]) / 1.25, max(high, budgets[-1]) * 1.2)


def curve_panel(curves: Curves, arm: str, n_tasks: int, series: Sequence[Series], references: Lines, alt: str) -> Panel:
    """Every replicate of one number of tasks against compute, with labelled reference lines."""
    budgets, span = curves.found.study.budgets, curves.span(arm)

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xscale("log")
        ax.set_xlim(*span)
        _compute_ticks(ax, budgets, span)
        ax.set_ylim(-0.03, 1.04)
        ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9.5)
        ax.set_xlabel("training compute (FLOPs)", fontsize=9, labelpad=2)
        _draw_references(ax, references)
        for name, value in references:
            sheet.row(series=name, measure=series[-1].measure, unit="ratio", arm=arm, n_tasks=n_tasks, value=value)
        for kind in series:
            _draw_tracks(sheet, curves, kind, arm, n_tasks)

    margins = Margins(28, 84 if references else 14, 34, 8)
    return Panel(title=counted(n_tasks, "task"), alt=alt, width=190, height=140, margins=margins, draw=draw)


def _compute_ticks(ax: Axes, budgets: Sequence[float], span: tuple[float, float]) -> None:
    """A tick at every budget; labels as far as they do not touch, from the largest down."""
    pixels = ax.get_window_extent().width / (ax.figure.dpi / 72)
    last, labels = math.inf, []
    for budget in sorted(budgets, reverse=True):
        place = math.log(budget / span[0]) / math.log(span[1] / span[0]) * pixels
        fits = last - place >= 5.6 * len(number(budget)) + 6
        labels.append(number(budget) if fits else "")
        last = place if fits else last
    ax.set_xticks(sorted(budgets), labels[::-1], fontsize=9)
    ax.xaxis.set_minor_locator(NullLocator())


def _draw_references(ax: Axes, references: Lines) -> None:
    """Thin lines across, named at the right; names that would touch are moved apart."""
    dashes: dict[str, Any] = {"generaliser": "-", "memoriser": (0, (6, 2, 1, 2)), "chance": (0, (1, 2))}
    places = spread([value for _, value in references], 0.085)
    for (name, value), place in zip(references, places, strict=True):
        ax.axhline(value, color="#8a8a8a", lw=0.9, ls=dashes[name], zorder=1)
        ax.annotate(
            f"{name} {decimal(value)}",
            (1, value),
            xycoords=ax.get_yaxis_transform(),
            xytext=(1.02, place),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=GREY,
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels, at their values where there is room, else moved up by as little as keeps them apart."""
    places = [0.0] * len(values)
    last = -math.inf
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        last = places[i] = max(values[i], last + gap)
    return places


def _draw_tracks(sheet: Sheet, curves: Curves, series: Series, arm: str, n_tasks: int) -> None:
    """All replicates of one kind: trunks and branches in one go, because hundreds of artists are slow and heavy."""
    ax = sheet.axes
    tracks = [curves.track(series, arm, n_tasks, r) for r in range(curves.found.study.axes.replicates)]
    many = len(tracks) > 5
    dash: Any = (0, (4, 2)) if series.dashed else "-"
    trunks = _joined([track.trunk for track in tracks])
    branches = _joined([branch for track in tracks for branch in track.branches if len(branch) > 1])
    for lines in (trunks, branches):
        ax.plot(*lines, color=series.colour, lw=0.7 if many else 1.1, ls=dash, zorder=3, solid_capstyle="round")
    ends = [branch[-1] for track in tracks for branch in track.branches]
    ax.plot(
        [look.flops for look in ends],
        [look.value for look in ends],
        ls="",
        marker="s" if series.dashed else "o",
        ms=2.4 if many else 3.4,
        mew=0.9,
        mfc="white" if series.dashed else series.colour,
        color=series.colour,
        zorder=4,
    )
    for replicate, track in enumerate(tracks):
        if track.diverged and track.trunk:
            last = track.trunk[-1]
            ax.plot(last.flops, last.value, marker="x", color=INK, ms=6, mew=1.4, zorder=6)
        _note_track(sheet, curves, track, series, arm, n_tasks, replicate)


def _note_track(
    sheet: Sheet, curves: Curves, track: Track, series: Series, arm: str, n_tasks: int, replicate: int
) -> None:
    """Every look of a replicate as a row and a place to point at; its trunk and branches as one stroke."""
    stroke, index = len(sheet.strokes), {}
    sheet.colours[series.name] = series.colour
    looks = dict.fromkeys(look for look in (*track.trunk, *(look for branch in track.branches for look in branch)))
    for look in looks:
        trial, status = "", "diverged" if track.diverged else ""
        if look.budget is not None:
            trial, status = curves.trials.at(arm, n_tasks, look.budget, replicate)
        row = sheet.row(
            series=series.name,
            measure=series.measure,
            unit="ratio",
            skill=series.skill,
            split=series.split,
            trial=trial,
            arm=arm,
            n_tasks=n_tasks,
            compute_flops=look.budget,
            replicate=replicate,
            status=status,
            phase=look.phase,
            step=look.step,
            flops=look.flops,
            value=look.value,
        )
        index[look] = sheet.point(look.flops, look.value, row, stroke=stroke)
    lines = [track.trunk, *(branch for branch in track.branches if len(branch) > 1)]
    sheet.strokes.append([[index[look] for look in line] for line in lines if line])


def _joined(lines: Sequence[Sequence[Look]]) -> tuple[list[float], list[float]]:
    """Several lines as one, with a gap after each."""
    points = [point for line in lines for point in (*((look.flops, look.value) for look in line), (math.nan, math.nan))]
    return [x for x, _ in points], [y for _, y in points]


# At one budget ------------------------------------------------------------------------------------------------------


def dots_panel(curves: Curves, arm: str, flops: float, series: Sequence[Series], references: Lines, alt: str) -> Panel:
    """Two series at one budget against the number of tasks: a mark is a replicate, a bar their mean."""
    found = curves.found
    levels = sorted(found.study.axes.n_tasks)
    pitch = 62.0 if len(levels) <= 8 else 52.0

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_ylim(-0.03, 1.04)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        ax.set_xticks(range(len(levels)), [number(n) for n in levels], fontsize=9.5)
        ax.tick_params(axis="x", length=0)
        ax.set_xlabel("number of training tasks", fontsize=9.5)
        ax.set_ylabel(series[0].measure, fontsize=9.5, labelpad=2)
        for name, value in references:
            ax.axhline(value, color="#8a8a8a", lw=0.9, ls=(0, (1, 2)), zorder=1)
            say(ax, f"{name} {decimal(value)}", (1, (value + 0.03) / 1.07), (3, 0), va="center", fontsize=9)
            sheet.row(series=name, measure=series[0].measure, unit="ratio", arm=arm, value=value)
        for kind, side in zip(series, (-0.2, 0.2), strict=True):
            sheet.colours[kind.name] = kind.colour
            for i, n in enumerate(levels):
                cell = found.values(kind.measure, arm, kind.skill, kind.split, n, flops)
                mean = found.mean(kind.measure, arm, kind.skill, kind.split, n, flops)
                draw_dots(ax, i + side, cell, mean, kind)
                _note_dots(sheet, curves, i + side, cell, kind, arm, n, flops)

    return Panel(
        title=f"At {number(flops)} FLOPs",
        note="a mark is a replicate, a bar their mean",
        alt=alt,
        width=pitch * len(levels),
        height=190,
        margins=Margins(42, 78, 40, 8),
        draw=draw,
    )


def _note_dots(
    sheet: Sheet,
    curves: Curves,
    x: float,
    values: Sequence[float | None],
    series: Series,
    arm: str,
    n_tasks: int,
    flops: float,
) -> None:
    for replicate, value in enumerate(values):
        trial, status = curves.trials.at(arm, n_tasks, flops, replicate)
        row = sheet.row(
            series=series.name,
            measure=series.measure,
            unit="ratio",
            skill=series.skill,
            split=series.split,
            trial=trial,
            arm=arm,
            n_tasks=n_tasks,
            compute_flops=flops,
            replicate=replicate,
            status=status,
            phase="final",
            value=value,
        )
        if value is not None:
            sheet.point(x + beside(replicate, len(values)), value, row)


def beside(replicate: int, n: int) -> float:
    """How far a replicate's mark lies from the middle of its column, in columns: side by side, in order."""
    return (replicate - (n - 1) / 2) * min(0.09, 0.3 / max(n, 1))


def draw_dots(
    ax: Axes, x: float, values: Sequence[float | None], mean: float | None, series: Series, size: float = 4.5
) -> None:
    """Replicates side by side, in order, with their mean as a bar."""
    known = [(r, v) for r, v in enumerate(values) if v is not None]
    ax.plot(
        [x + beside(r, len(values)) for r, _ in known],
        [v for _, v in known],
        ls="",
        marker="s" if series.dashed else "o",
        ms=size if len(values) < 8 else 0.67 * size,
        mfc="white" if series.dashed else series.colour,
        color=series.colour,
        mew=1,
        zorder=4,
    )
    if mean is not None and len(known) > 1:
        ax.plot([x - 0.17, x + 0.17], [mean, mean], color=series.colour, lw=1.2, zorder=3)


# The relative distance ----------------------------------------------------------------------------------------------


def distance_panel(
    curves: Curves,
    arm: str,
    n_tasks: int,
    tracks: list[Along],
    crossings: list[float | None],
    span: tuple[float, float],
    heights: tuple[float, float],
) -> Panel:
    """d_rel of every replicate along optimizer steps, and where each rises through one half."""

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xscale("log")
        ax.set_xlim(*span)
        ax.set_ylim(*heights)
        ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        decades = [10.0**k for k in range(math.ceil(math.log10(span[0])), math.floor(math.log10(span[1])) + 1)]
        ticks = decades if len(decades) > 1 else sorted({float(f"{s:.1g}") for s in (span[0] * 1.2, span[1] / 1.2)})
        ax.set_xticks(ticks, [number(t) for t in ticks], fontsize=9)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("optimizer step", fontsize=9, labelpad=2)
        for value in (0, 0.5, 1):
            ax.axhline(value, color="#8a8a8a" if value == 0.5 else FAINT, lw=0.9, zorder=1)
        for replicate, one in enumerate(tracks):
            if len(one.steps):
                ax.plot(one.steps, one.values, color=LIST, lw=1.1, zorder=3)
                _note_distance(sheet, curves, one, arm, n_tasks, replicate, heights)
        for replicate, step in enumerate(crossings):
            if step is not None:
                ax.plot(step, 0.5, marker="D", ms=5, mfc="white", mec=LIST, mew=1.3, zorder=5)
                sheet.point(
                    step, 0.5, says=f"crosses ½ at step {number(round(step))}\nreplicate {replicate}, {sheet.panel}"
                )
                shared: dict[str, Any] = {"arm": arm, "n_tasks": n_tasks, "replicate": replicate}
                sheet.row(series="crossing of one half", measure="step", unit="steps", value=step, **shared)

    seen = [number(round(step)) for step in crossings if step is not None]
    missed = len(crossings) - len(seen)
    note = f"crosses ½ at step {', '.join(seen)}" if seen else "no crossing of ½ seen"
    if seen and missed:
        note += f"; {missed} of {len(crossings)} not seen to"
    title = counted(n_tasks, "task")
    return Panel(
        title=title,
        note=note,
        alt=f"Relative distance along training, {title}: {note}.",
        width=230,
        height=150,
        margins=Margins(28, 12, 34, 8),
        draw=draw,
    )


def _note_distance(
    sheet: Sheet, curves: Curves, along: Along, arm: str, n_tasks: int, replicate: int, heights: tuple[float, float]
) -> None:
    stroke: list[int] = []
    sheet.colours["relative distance"] = LIST
    for step, flops, value, budget, phase in zip(*(part.tolist() for part in along), strict=True):
        final = phase == "final"
        trial, status = curves.trials.at(arm, n_tasks, budget, replicate) if final else ("", "")
        row = sheet.row(
            series="relative distance",
            measure="d_rel",
            unit="ratio",
            trial=trial,
            arm=arm,
            n_tasks=n_tasks,
            compute_flops=budget if final else None,
            replicate=replicate,
            status=status,
            phase=phase,
            step=int(step),
            flops=flops,
            value=value,
        )
        if step > 0 and heights[0] <= value <= heights[1]:
            stroke.append(sheet.point(step, value, row, stroke=len(sheet.strokes)))
    sheet.strokes.append([stroke])
