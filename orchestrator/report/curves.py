"""Curves along training, and dots at one budget: every replicate for itself, beside the exact references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import Track as Along
from orchestrator.formatting import counted, decimal, number
from orchestrator.report.plates import FAINT, GREY, INK, LIST, Key, Margins, Panel, Row, Sheet, Spoken, line_key
from orchestrator.report.surfaces import Trials


class Series(NamedTuple):
    """One kind of line in a panel of curves."""

    measure: str
    skill: str
    split: str
    colour: str
    dashed: bool
    name: str
    """What the key calls it."""
    unit: str = "ratio"
    words: tuple[str, str] | None = None
    """What a reader who points at a value is told before and after it; left out, the measure and the name."""

    @property
    def spoken(self) -> Spoken:
        """How its values are told."""
        named = (self.name, "") if self.name.startswith(self.measure) else (self.measure, f", {self.name}")
        return Spoken(*(self.words or named), self.colour)

    @property
    def mark(self) -> dict[str, Any]:
        """Round and filled, or square and open: nothing hangs on colour alone."""
        shape, face = ("s", "white") if self.dashed else ("o", self.colour)
        return {"marker": shape, "mfc": face, "color": self.colour}

    @property
    def dash(self) -> Any:
        """The pattern of its line."""
        return (0, (4, 2)) if self.dashed else "-"


def key_of(series: Sequence[Series]) -> Key:
    """The key of a plate of these."""
    return tuple(line_key(one.colour, one.dashed, one.name) for one in series)


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
    """From the branch point to the end of a budget; a single look where nothing branches off. Where each budget has a model of
    its own size no trunk is theirs in common: then the whole way to the end."""
    diverged: bool

    def last_of_diverged(self) -> list[Look]:
        """Where it was last seen, if it diverged: the trunk, or each run of its own that came to no end."""
        return self.trunk[-1:] or [run[-1] for run in self.branches if run[-1].phase != "final"]


def _whole_runs(along: Along) -> list[list[Look]]:
    """Each trial's history as a line of its own, by budget."""
    runs: dict[float, list[Look]] = {}
    for step, flops, value, budget, phase in zip(*(part.tolist() for part in along), strict=True):
        if not math.isnan(value):
            runs.setdefault(budget, []).append(Look(flops, value, int(step), phase, budget))
    return list(runs.values())


class Curves:
    """Training runs as lines to draw."""

    def __init__(self, found: Findings) -> None:
        self.found = found
        self.trials = Trials(found)
        self._spans: dict[str, tuple[float, float]] = {}
        self.diverged = {(r["arm"], r["n_tasks"], r["replicate"]) for r in found.runs if r["status"] == "diverged"}

    def track(self, series: Series, arm: str, n_tasks: int, replicate: int) -> Track:
        """All that was measured of one replicate, over all its budgets."""
        along = self.found.results.track(series.measure, arm, series.skill, series.split, n_tasks, replicate)
        diverged = (arm, n_tasks, replicate) in self.diverged
        if self.found.study.grows(arm):
            return Track([], _whole_runs(along), diverged)
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
        return Track([trunk[s] for s in sorted(trunk)], branches, diverged)

    def span(self, arm: str) -> tuple[float, float]:
        """The range of training FLOPs of an arm's curves."""
        if arm not in self._spans:
            low, high = self.found.results.span(arm) or (math.inf, 0.0)
            budgets = self.found.study.budgets
            self._spans[arm] = min(low, budgets[0]) / 1.25, max(high, budgets[-1]) * 1.2
        return self._spans[arm]

    def row(
        self,
        series: Series,
        arm: str,
        n_tasks: int,
        replicate: int,
        value: float | None,
        budget: float | None,
        **more: Any,
    ) -> Row:
        """A value as a row of a CSV: that of a trial at the end of its budget, or of the trunk that several share."""
        if budget is None:
            trial, status = "", "diverged" if (arm, n_tasks, replicate) in self.diverged else ""
        else:
            trial, status = self.trials.at(arm, n_tasks, budget, replicate)
        return {
            "series": series.name,
            "measure": series.measure,
            "unit": series.unit,
            "skill": series.skill,
            "split": series.split,
            "trial": trial,
            "arm": arm,
            "n_tasks": n_tasks,
            "compute_flops": budget,
            "replicate": replicate,
            "status": status,
            "phase": "final",
            "value": value,
        } | more


def curve_panel(curves: Curves, arm: str, n_tasks: int, series: Sequence[Series], references: Lines, alt: str) -> Panel:
    """Every replicate of one number of tasks against compute, with labelled reference lines."""
    return Panel(
        title=counted(n_tasks, "task"),
        alt=alt,
        width=190,
        height=140,
        margins=Margins(28, 84 if references else 14, 34, 8),
        draw=partial(_draw_curves, curves, arm, n_tasks, series, references),
    )


def _draw_curves(
    curves: Curves, arm: str, n_tasks: int, series: Sequence[Series], references: Lines, sheet: Sheet
) -> None:
    """The panel's axes, references and tracks."""
    ax = sheet.axes
    compute_axis(ax, curves.span(arm), curves.found.study.budgets)
    ax.set_ylim(-0.03, 1.04)
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9.5)
    _draw_references(sheet, references, series[-1].measure, arm, n_tasks)
    for kind in series:
        draw_tracks(sheet, curves, kind, arm, n_tasks)


def compute_axis(ax: Axes, span: tuple[float, float], places: Sequence[float]) -> None:
    """Training compute across, with a tick at these places; names as far as they do not touch, from the largest down."""
    ax.set_xscale("log")
    ax.set_xlim(*span)
    ax.set_xlabel("training compute (FLOPs)", fontsize=9, labelpad=2)
    pixels = ax.get_window_extent().width / (ax.figure.dpi / 72)
    places = sorted(set(places))
    at = [math.log(place / span[0]) / math.log(span[1] / span[0]) * pixels for place in places]
    ax.set_xticks(places, thinned([number(place) for place in places], at), fontsize=9)
    ax.xaxis.set_minor_locator(NullLocator())


def tasks_axis(ax: Axes, levels: Sequence[float]) -> None:
    """A column for each number of training tasks; names as far as they do not touch."""
    ax.set_xlim(-0.5, len(levels) - 0.5)
    pitch = ax.get_window_extent().width / (ax.figure.dpi / 72) / len(levels)
    names = thinned([number(n) for n in levels], [i * pitch for i in range(len(levels))])
    ax.set_xticks(range(len(levels)), names, fontsize=9)
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel(tasks_words(levels), fontsize=9, labelpad=2)


def tasks_words(levels: Sequence[float]) -> str:
    """The name of an axis with a column for each number of tasks, which has no scale unless each is as many times the last."""
    steps = [math.log(b / a) for a, b in pairwise(levels)]
    even = not steps or max(steps) < 1.05 * min(steps)
    return "number of training tasks" + ("" if even else ", not to scale")


FARTHEST = 100
"""Over a larger jump in the number of tasks no line joins two columns: what lies between was not looked at (assumed)."""


def jumps(levels: Sequence[float]) -> list[int]:
    """The columns that no line joins to the one before."""
    return [i for i, (a, b) in enumerate(pairwise(levels), 1) if b > FARTHEST * a]


def join(ax: Axes, levels: Sequence[float], values: np.ndarray, side: float = 0.0, **style: Any) -> None:
    """A line through a value (n_tasks,) of each column, with gaps where it is missing and over jumps."""
    at, cuts = np.arange(len(levels)), jumps(levels)
    ax.plot(np.insert(at + side, cuts, np.nan), np.insert(np.asarray(values, float), cuts, np.nan), **style)


def thinned(names: Sequence[str], at: Sequence[float]) -> list[str]:
    """As many names, centred on these ascending pixels, as do not touch; the last one always, the others are blank."""
    kept, free = [""] * len(names), math.inf
    for i in range(len(names) - 1, -1, -1):
        half = 2.9 * len(names[i])  # a figure of 9 pixels is 5.7 wide
        if at[i] + half <= free:
            kept[i], free = names[i], at[i] - half - 5
    return kept


_DASHES: dict[str, Any] = {"generaliser": "-", "memoriser": (0, (6, 2, 1, 2)), "chance": (0, (1, 2))}


def _draw_references(sheet: Sheet, references: Lines, measure: str, arm: str, n_tasks: int | None = None) -> None:
    """Thin lines across, named at the right; names that would touch are moved apart."""
    ax = sheet.axes
    places = spread([value for _, value in references], 0.085)
    for (name, value), place in zip(references, places, strict=True):
        ax.axhline(value, color="#8a8a8a", lw=0.9, ls=_DASHES[name], zorder=1)
        right: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "textcoords": ax.get_yaxis_transform()}
        words = f"{name} {decimal(value)}"
        ax.annotate(words, (1, value), xytext=(1.02, place), va="center", fontsize=9, color=GREY, **right)
        sheet.row(series=name, measure=measure, unit="ratio", arm=arm, n_tasks=n_tasks, value=value)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels, at their values where there is room, else moved up by as little as keeps them apart."""
    places = [0.0] * len(values)
    last = -math.inf
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        last = places[i] = max(values[i], last + gap)
    return places


def draw_tracks(sheet: Sheet, curves: Curves, series: Series, arm: str, n_tasks: int) -> None:
    """All replicates of one kind: trunks and branches in one go, because hundreds of artists are slow and heavy."""
    tracks = [curves.track(series, arm, n_tasks, r) for r in range(curves.found.study.axes.replicates)]
    many = len(tracks) > 5
    style: dict[str, Any] = {"color": series.colour, "lw": 0.7 if many else 1.1, "ls": series.dash, "zorder": 3}
    trunks = _joined([track.trunk for track in tracks])
    branches = _joined([branch for track in tracks for branch in track.branches if len(branch) > 1])
    for lines in (trunks, branches):
        sheet.axes.plot(*lines, solid_capstyle="round", **style)
    ends = [branch[-1] for track in tracks for branch in track.branches if branch[-1].phase == "final"]
    lost = [last for track in tracks if track.diverged for last in track.last_of_diverged()]
    _mark(sheet, ends, ms=2.4 if many else 3.4, mew=0.9, zorder=4, **series.mark)
    _mark(sheet, lost, marker="x", color=INK, ms=6, mew=1.4, zorder=6)
    sheet.series[series.name] = series.spoken
    for replicate, track in enumerate(tracks):
        _note_track(sheet, curves, track, series, arm, n_tasks, replicate)


def _mark(sheet: Sheet, looks: Sequence[Look], **style: Any) -> None:
    sheet.marks([look.flops for look in looks], [look.value for look in looks], **style)


def _joined(lines: Sequence[Sequence[Look]]) -> tuple[list[float], list[float]]:
    """Several lines as one, with a gap after each."""
    points = [point for line in lines for point in (*((look.flops, look.value) for look in line), (math.nan, math.nan))]
    return [x for x, _ in points], [y for _, y in points]


def _note_track(
    sheet: Sheet, curves: Curves, track: Track, series: Series, arm: str, n_tasks: int, replicate: int
) -> None:
    """Every look of a replicate as a row and a place to point at; its trunk and branches as one stroke."""
    stroke, index = len(sheet.strokes), {}
    for look in dict.fromkeys((*track.trunk, *(look for branch in track.branches for look in branch))):
        along = {"phase": look.phase, "step": look.step, "flops": look.flops}
        row = sheet.row(**curves.row(series, arm, n_tasks, replicate, look.value, look.budget, **along))
        index[look] = sheet.point(look.flops, look.value, row, stroke=stroke)
    lines = [track.trunk, *(branch for branch in track.branches if len(branch) > 1)]
    sheet.strokes.append([[index[look] for look in line] for line in lines if line])


# At one budget ------------------------------------------------------------------------------------------------------


def dots_panel(curves: Curves, arm: str, flops: float, series: Sequence[Series], references: Lines, alt: str) -> Panel:
    """Two series at one budget against the number of tasks: a mark is a replicate, a bar their mean."""
    levels = curves.found.results.levels
    return Panel(
        title=f"At {number(flops)} FLOPs",
        note="a mark is a replicate, a bar their mean",
        alt=alt,
        width=54.0 * len(levels),  # five of them fit on a phone
        height=190,
        margins=Margins(42, 78, 40, 8),
        draw=partial(_draw_both, curves, arm, flops, series, references),
    )


def _draw_both(
    curves: Curves, arm: str, flops: float, series: Sequence[Series], references: Lines, sheet: Sheet
) -> None:
    """The panel's axes, references and dots."""
    ax, results = sheet.axes, curves.found.results
    tasks_axis(ax, results.levels)
    ax.set_ylim(-0.03, 1.04)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    ax.set_ylabel(series[0].measure, fontsize=9.5, labelpad=2)
    _draw_references(sheet, references, series[0].measure, arm)
    for kind, side in zip(series, (-0.2, 0.2), strict=True):
        values = results.cube(kind.measure, arm, kind.skill, kind.split)[:, results.budgets.index(flops)]
        draw_dots(sheet, values, side, kind)
        note_dots(sheet, curves, values, side, kind, arm, flops)


CROWD = 20
"""From so many replicates on, their marks touch."""


def draw_dots(
    sheet: Sheet,
    values: np.ndarray,
    side: float,
    series: Series,
    size: float = 4.5,
    within: tuple[float, float] = (-math.inf, math.inf),
    bars: bool = True,
) -> None:
    """Replicates side by side, in order, with their mean as a bar; (n_tasks, replicates), NaN is missing.

    `side`: how far from the middle of a column, in columns. What lies outside `within` is left to the caller.
    """
    low, high = within
    columns, replicates = np.nonzero((values >= low) & (values <= high))
    n = values.shape[1]
    x = columns + side + beside(replicates, n)
    sheet.marks(x, values[columns, replicates], ms=size if n < 8 else 0.67 * size, mew=1, zorder=4, **series.mark)
    if not bars:
        return
    mean = means(values)
    barred = np.flatnonzero((np.isfinite(values).sum(1) > 1) & (mean >= low) & (mean <= high))
    x = np.stack([barred + side - 0.17, barred + side + 0.17, np.full(len(barred), np.nan)], 1)  # a gap after each
    colour = series.colour if n < CROWD else INK  # on top of a crowd that hides it
    sheet.axes.plot(x.ravel(), np.repeat(mean[barred], 3), color=colour, lw=1.2, zorder=3 if n < CROWD else 5)


def note_dots(
    sheet: Sheet, curves: Curves, values: np.ndarray, side: float, series: Series, arm: str, flops: float
) -> None:
    """Every replicate at the end of a budget as a row, and as a place to point at where it has a value."""
    sheet.series[series.name] = series.spoken
    n = values.shape[1]
    for i, (n_tasks, cell) in enumerate(zip(curves.found.results.levels, values.tolist(), strict=True)):
        for replicate, value in enumerate(cell):
            known = not math.isnan(value)
            row = sheet.row(**curves.row(series, arm, n_tasks, replicate, value if known else None, flops))
            if known:
                sheet.point(i + side + float(beside(replicate, n)), value, row)


def beside(replicate: Any, n: int) -> Any:
    """How far a replicate's mark lies from the middle of its column, in columns: side by side, in order."""
    return (replicate - (n - 1) / 2) * min(0.09, 0.3 / max(n, 1))


def means(values: np.ndarray) -> np.ndarray:
    """(n_tasks, replicates) -> (n_tasks,): mean over those that have a value; NaN where none has."""
    known = ~np.isnan(values)
    n = known.sum(-1)
    return np.where(n > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(n, 1), np.nan)


# The relative distance ----------------------------------------------------------------------------------------------

DISTANCE = Series("d_rel", "", "", LIST, False, "relative distance", words=("relative distance", ""))
NAMED_CROSSINGS = 5
"""More crossings than this are told as their range."""


class Distances(NamedTuple):
    """What a panel of the relative distance shows."""

    arm: str
    n_tasks: int
    tracks: list[Along]
    crossings: list[float | None]
    """Optimizer step at which each replicate rises through one half; None where it is not seen to."""

    @property
    def words(self) -> str:
        """The crossings, in a clause."""
        seen, n = sorted(step for step in self.crossings if step is not None), len(self.crossings)
        if not seen:
            return "no crossing of ½ seen"
        if len(seen) > NAMED_CROSSINGS:
            return f"{len(seen)} of {n} cross ½, at step {number(round(seen[0]))} to {number(round(seen[-1]))}"
        named = ", ".join(number(round(step)) for step in self.crossings if step is not None)
        return f"crosses ½ at step {named}" + (f"; {n - len(seen)} of {n} not seen to" if len(seen) < n else "")


def distance_panel(curves: Curves, shown: Distances, span: tuple[float, float], heights: tuple[float, float]) -> Panel:
    """d_rel of every replicate along optimizer steps, and where each rises through one half."""
    title = counted(shown.n_tasks, "task")
    return Panel(
        title=title,
        note=shown.words,
        alt=f"Relative distance along training, {title}: {shown.words}.",
        width=230,
        height=150,
        margins=Margins(28, 12, 34, 8),
        draw=partial(_draw_distance, curves, shown, span, heights),
    )


def _draw_distance(
    curves: Curves, shown: Distances, span: tuple[float, float], heights: tuple[float, float], sheet: Sheet
) -> None:
    """The panel's axes, lines and diamonds."""
    ax = sheet.axes
    _steps_axis(ax, span)
    ax.set_ylim(*heights)
    halves(ax)
    sheet.series[DISTANCE.name] = DISTANCE.spoken
    joined = [np.concatenate([np.append(part, math.nan) for part in (one[k] for one in shown.tracks)]) for k in (0, 2)]
    ax.plot(*joined, color=LIST, lw=1.1, zorder=3)
    for replicate, one in enumerate(shown.tracks):
        _note_distance(sheet, curves, one, shown, replicate)
    crossed = [(replicate, step) for replicate, step in enumerate(shown.crossings) if step is not None]
    at = [step for _, step in crossed]
    sheet.marks(at, [0.5] * len(at), marker="D", ms=5, mfc="white", mec=LIST, mew=1.3, zorder=5)
    for replicate, step in crossed:
        sheet.point(step, 0.5, says=f"crosses ½ at step {number(round(step))}\nreplicate {replicate}, {sheet.panel}")
        shared: dict[str, Any] = {"arm": shown.arm, "n_tasks": shown.n_tasks, "replicate": replicate}
        sheet.row(series="crossing of one half", measure="step", unit="steps", value=step, **shared)


def _steps_axis(ax: Axes, span: tuple[float, float]) -> None:
    """Optimizer steps across, a tick at each power of ten, or near both ends where there is but one."""
    ax.set_xscale("log")
    ax.set_xlim(*span)
    decades = [10.0**k for k in range(math.ceil(math.log10(span[0])), math.floor(math.log10(span[1])) + 1)]
    ticks = decades if len(decades) > 1 else sorted({float(f"{s:.1g}") for s in (span[0] * 1.2, span[1] / 1.2)})
    ax.set_xticks(ticks, [number(t) for t in ticks], fontsize=9)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("optimizer step", fontsize=9, labelpad=2)


def halves(ax: Axes) -> None:
    """Lines and names at 0, ½ and 1, and at −½ where it is in sight."""
    low = ax.get_ylim()[0]
    ticks = [(at, words) for at, words in ((-0.5, "−½"), (0, "0"), (0.5, "½"), (1, "1")) if at >= low]
    ax.set_yticks([at for at, _ in ticks], [words for _, words in ticks], fontsize=9.5)
    for value in (0, 0.5, 1):
        ax.axhline(value, color="#8a8a8a" if value == 0.5 else FAINT, lw=0.9, zorder=1)


def _note_distance(sheet: Sheet, curves: Curves, along: Along, shown: Distances, replicate: int) -> None:
    """Every look of a replicate as a row; as a place to point at where it is in sight."""
    stroke: list[int] = []
    low, high = sheet.axes.get_ylim()
    for step, flops, value, budget, phase in zip(*(part.tolist() for part in along), strict=True):
        ended = budget if phase == "final" else None
        row = sheet.row(
            **curves.row(
                DISTANCE, shown.arm, shown.n_tasks, replicate, value, ended, phase=phase, step=int(step), flops=flops
            )
        )
        if step > 0 and low <= value <= high:
            stroke.append(sheet.point(step, value, row, stroke=len(sheet.strokes)))
    sheet.strokes.append([stroke])
