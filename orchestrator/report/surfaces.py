"""Surfaces: a measure by number of tasks and compute, and the boundaries K_A and K_M in lanes beside the cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from orchestrator import stats
from orchestrator.findings import Findings
from orchestrator.report.plates import (
    CIVIDIS,
    FAINT,
    GREY,
    LIST,
    RULE,
    TINT,
    Margins,
    Panel,
    Sheet,
    counted,
    decimal,
    say,
)
from orchestrator.results import Phase
from orchestrator.words import interval_words, number


def on_split(split: str) -> str:
    """A split as people call it."""
    return "held-out tasks" if split == "held_out" else "training tasks"


# Cells --------------------------------------------------------------------------------------------------------------


class Replicate(NamedTuple):
    """One trial in a cell."""

    trial: str
    status: str
    value: float | None


class Cell(NamedTuple):
    """What one cell of a surface shows."""

    value: float | None
    """Mean over the replicates that have one."""
    known: int
    """Replicates that have the value."""
    state: str
    """`value`; `undefined` (measured, but the references coincide or are missing); else what became of the trials."""
    n_tasks: int
    flops: float
    replicates: tuple[Replicate, ...]


class Trials:
    """The trials of a study by their place."""

    def __init__(self, found: Findings) -> None:
        self._at = {(r["arm"], r["n_tasks"], r["compute_flops"], r["replicate"]): r for r in found.runs}

    def at(self, arm: str, n_tasks: int, flops: float, replicate: int) -> tuple[str, str]:
        """Id and status of a trial; ("", "open") where the table has none."""
        run = self._at.get((arm, n_tasks, flops, replicate))
        return (run["trial"], run["status"]) if run else ("", "open")


def grid(found: Findings, measure: str, arm: str, skill: str, split: str, phase: Phase = "final") -> list[list[Cell]]:
    """Rows by ascending number of tasks, columns by ascending budget."""
    study, trials = found.study, Trials(found)
    present = found.results.present(arm, skill, split, phase)

    def cell(i: int, n_tasks: int, j: int, flops: float) -> Cell:
        values = found.values(measure, arm, skill, split, n_tasks, flops, phase)
        those = tuple(Replicate(*trials.at(arm, n_tasks, flops, r), v) for r, v in enumerate(values))
        known = sum(v is not None for v in values)
        if known:
            mean = found.mean(measure, arm, skill, split, n_tasks, flops, phase)
            return Cell(mean, known, "value", n_tasks, flops, those)
        state = "undefined" if present[i, j].any() else Counter(r.status for r in those).most_common(1)[0][0]
        return Cell(None, 0, state, n_tasks, flops, those)

    return [[cell(i, n, j, c) for j, c in enumerate(study.budgets)] for i, n in enumerate(sorted(study.axes.n_tasks))]


def has_values(cells: list[list[Cell]]) -> bool:
    """Is there anything to draw?"""
    return any(cell.value is not None for line in cells for cell in line)


def alt_cells(cells: list[list[Cell]]) -> str:
    """The surface in words, row by row."""
    return " ".join(
        f"{counted(line[0].n_tasks, 'task')}: {', '.join(decimal(c.value) for c in line)}." for line in cells
    )


# Boundaries ---------------------------------------------------------------------------------------------------------


class Band(NamedTuple):
    """A boundary to draw: its colour, and per budget what stats found (None: nothing to draw there)."""

    colour: str
    side: Literal[-1, 1]
    boundaries: tuple[stats.Boundary | None, ...]

    @property
    def name(self) -> str:
        """K_A or K_M."""
        return "K_A" if self.colour == RULE else "K_M"


def ability_band(found: Findings, arm: str, skill: str) -> Band | None:
    """K_A as drawn; None where no replicate reaches the skill at any budget: there is no boundary then."""
    boundaries = [b for _, b in found.k_ability[(arm, skill)]]
    if all(b.verdict in ("beyond", "missing") for b in boundaries):
        return None
    return Band(RULE, -1, tuple(b if b.verdict != "missing" else None for b in boundaries))


def memory_band(found: Findings, arm: str) -> Band | None:
    """K_M as drawn; None where nothing is memorised at any budget."""
    boundaries = [b for _, b in found.k_memory[arm]]
    if all(b.verdict in ("below", "missing") for b in boundaries):
        return None
    return Band(LIST, 1, tuple(b if b.verdict != "missing" else None for b in boundaries))


SURFACE_KEY = {
    RULE: (Line2D([], [], color=TINT[RULE], lw=7, marker="o", mfc=RULE, mec=RULE, ms=4), "K_A: the skill appears"),
    LIST: (
        Line2D([], [], color=TINT[LIST], lw=7, marker="s", mfc=LIST, mec=LIST, ms=4),
        "K_M: memorised up to here",
    ),
}


# Drawing ------------------------------------------------------------------------------------------------------------


def surface(
    found: Findings, arm: str, measure: str, skill: str, split: str, bands: Sequence[Band], small: bool = False
) -> Panel:
    """A surface: rows are numbers of tasks, columns are budgets; boundaries in lanes beside the cells they belong to.

    Memory is that of the training mixture, before the decay.
    """
    study = found.study
    memory = measure == "memory"
    cells = grid(found, measure, arm, skill, split, "pre_decay" if memory else "final")
    title = "memory" if memory else skill
    levels, budgets = [float(n) for n in sorted(study.axes.n_tasks)], study.budgets
    narrow = small or len(budgets) > 6
    cell, lane, gap = (38.0 if narrow else 58.0), (17.0 if narrow else 20.0), (8.0 if narrow else 16.0)
    sides = {band.side for band in bands}
    pitch = cell + gap + lane * len(sides)
    row = 24.0 if small or len(levels) > 14 else 37.0
    font = 9.5 if narrow else 11.5

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xlim(-0.5, len(budgets) - 0.5)
        ax.set_ylim(-0.5, len(levels) - 0.5)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, pad=4)
        first = -0.5 + (gap / 2 + (lane if -1 in sides else 0)) / pitch
        ax.set_xticks(
            [j + first + cell / pitch / 2 for j in range(len(budgets))], [number(c) for c in budgets], fontsize=font
        )
        ax.set_yticks(range(len(levels)), [number(n) for n in levels], fontsize=font)
        ax.tick_params(axis="x", pad=15 if bands else 4)
        ax.set_xlabel("training compute (FLOPs)", fontsize=font - 0.5, labelpad=3)
        say(ax, "tasks", (0, 1), (-5, 3), ha="right", va="bottom", fontsize=font - 0.5)
        for edge in range(len(levels) + 1):
            ax.axhline(edge - 0.5, color=FAINT, lw=0.8, zorder=0)
        for i, line in enumerate(cells):
            for j, one in enumerate(line):
                _draw_cell(ax, one, j + first, i, cell / pitch, 1.5 / row, study.axes.replicates, font)
                sheet.area(j + first, i - 0.5, j + first + cell / pitch, i + 0.5, _cell_words(one, measure))
                for r, each in enumerate(one.replicates):
                    sheet.row(
                        series="cell",
                        measure=measure,
                        unit="ratio",
                        trial=each.trial,
                        arm=arm,
                        n_tasks=one.n_tasks,
                        compute_flops=one.flops,
                        replicate=r,
                        status=each.status,
                        phase="pre_decay" if memory else "final",
                        value=each.value,
                        skill=skill,
                        split=split,
                    )
        for band in bands:
            beside = (cell / pitch if band.side > 0 else 0) + band.side * lane / pitch / 2
            for j, boundary in enumerate(band.boundaries):
                if boundary is not None:
                    at = _Lane(band, levels, j + first + beside, pitch, row, f"{number(budgets[j])} FLOPs")
                    _draw_boundary(sheet, at, boundary)
                    _note_boundary(sheet, at, boundary, arm, budgets[j], skill)

    longest = max(len(number(n)) for n in levels)
    on = "training mixture" if memory else on_split(split)
    return Panel(
        title=title,
        alt=f"Surface of {title} on {on} by number of tasks and compute. {alt_cells(cells)}",
        width=pitch * len(budgets),
        height=row * len(levels),
        margins=Margins(8 + 0.66 * font * max(longest, 5), 10, 52 if bands else 40, 20),
        draw=draw,
        least=0.85 if narrow else 0.7,
    )


_EMPTY = {"open": "open", "failed": "failed", "diverged": "div.", "done": "no item"}


def _draw_cell(
    ax: Axes, cell: Cell, x: float, i: int, width: float, inset: float, replicates: int, font: float
) -> None:
    """One cell with its left edge at x, in row i."""
    box: dict[str, Any] = {"xy": (x, i - 0.5 + inset), "width": width, "height": 1 - 2 * inset, "zorder": 1}
    centre = x + width / 2
    if cell.value is None:
        undefined = cell.state == "undefined"
        hatch: dict[str, Any] = {"facecolor": "#f1f1f1", "hatch": "////", "edgecolor": "#c4c4c4", "linewidth": 0}
        blank: dict[str, Any] = {
            "facecolor": "white",
            "edgecolor": "#b5b5b5",
            "linewidth": 0.8,
            "linestyle": (0, (2, 2)),
        }
        ax.add_patch(Rectangle(**box, **(hatch if undefined else blank)))
        words = "—" if undefined else _EMPTY.get(cell.state, cell.state)
        around = {"facecolor": "#f1f1f1", "edgecolor": "none", "pad": 1.5} if undefined else None
        ax.text(centre, i, words, ha="center", va="center", fontsize=font - 1.5, color=GREY, bbox=around)
        return
    colour = CIVIDIS(min(max(cell.value, 0.0), 1.0))
    ax.add_patch(Rectangle(**box, facecolor=colour, linewidth=0))
    ink = ink_on(colour)
    some = cell.known < replicates
    ax.text(centre, i + (0.16 if some else 0), decimal(cell.value), ha="center", va="center", fontsize=font, color=ink)
    if some:
        words = f"{cell.known} of {replicates}"
        ax.text(centre, i - 0.27, words, ha="center", va="center", fontsize=font - 3, color=ink)


def ink_on(colour: Sequence[float]) -> str:
    """Black or white, whichever stands out more (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


TOLD_REPLICATES = 20
"""A cell's words tell the values of so many replicates; the others are in the CSV."""


def _cell_words(cell: Cell, measure: str) -> str:
    """What a reader who points at a cell is told: the mean, the cell, each replicate's value or what became of it."""
    n = len(cell.replicates)
    where = f"{counted(cell.n_tasks, 'task')}, {number(cell.flops)} FLOPs"
    if cell.state == "undefined":
        return f"{measure} is not defined here\n{where}\nThe references coincide or are missing."
    if cell.value is None:
        status = Counter(r.status for r in cell.replicates)
        return f"no result\n{where}\n{', '.join(f'{count} {name}' for name, count in sorted(status.items()))}"
    told = [
        f"{r}: {decimal(each.value, 3) if each.value is not None else _lost(each)}"
        for r, each in enumerate(cell.replicates[:TOLD_REPLICATES])
    ]
    lines = [" · ".join(told[i : i + 4]) for i in range(0, len(told), 4)]
    more = [f"and {n - TOLD_REPLICATES} more in the CSV"] if n > TOLD_REPLICATES else []
    head = f"{measure} {decimal(cell.value)}, mean of {cell.known} of {counted(n, 'replicate')}"
    return "\n".join([head, where, "replicate " + lines[0], *lines[1:], *more])


def _lost(replicate: Replicate) -> str:
    return "not defined" if replicate.status == "done" else replicate.status


def _rank(levels: Sequence[float], value: float | None, otherwise: float) -> tuple[float, bool]:
    """Where a number of tasks lies on rows one apart, log-linear between two rows; False where it is off the grid.

    Row i is centred on i: an interval from 32 to 64 tasks runs from the middle of one row to the middle of the next,
    because either row was measured and only what lies between them was not.
    """
    if value is None or not levels[0] <= value <= levels[-1]:
        off = otherwise if value is None else -0.5 if value < levels[0] else len(levels) - 0.5
        return off, False
    return float(np.interp(math.log(value), np.log(levels), np.arange(len(levels)))), True


class _Lane(NamedTuple):
    """Where a boundary is drawn at one budget."""

    band: Band
    levels: list[float]
    x: float
    pitch: float
    """Pixels between two budgets."""
    row: float
    """Pixels between two numbers of tasks."""
    budget: str


def _draw_boundary(sheet: Sheet, lane: _Lane, boundary: stats.Boundary) -> None:
    """The interval of a boundary at one budget, fading out where it is open, and where each replicate crosses."""
    ax, x, row, levels, colour = sheet.axes, lane.x, lane.row, lane.levels, lane.band.colour
    width = 11 / lane.pitch
    (low, low_closed), (high, high_closed) = (
        _rank(levels, boundary.low, -0.5),
        _rank(levels, boundary.high, len(levels) - 0.5),
    )
    shape: dict[str, Any] = {"facecolor": TINT[colour], "linewidth": 0, "clip_on": False}
    ax.add_patch(Rectangle((x - width / 2, low), width, high - low, zorder=3, **shape))
    for end, closed, sign in ((low, low_closed, -1), (high, high_closed, 1)):
        if closed:
            ax.plot([x - width / 2, x + width / 2], [end, end], color=colour, lw=1.6, zorder=4, clip_on=False)
            continue
        for k in range(5):  # fades over 10 pixels
            bottom = end + sign * k * 2 / row - (2 / row if sign < 0 else 0)
            ax.add_patch(Rectangle((x - width / 2, bottom), width, 2 / row, zorder=3, alpha=1 - (k + 1) / 6, **shape))
    _note_interval(sheet, lane, boundary, (low, high))
    at: dict[tuple[float, str], list[int]] = {}
    for replicate, bracket in enumerate(boundary.brackets):
        if bracket.low is None and bracket.high is None:
            continue  # lost, or it says nothing
        if bracket.high is None:
            place = (len(levels) - 0.5 + 7 / row, "^")
        elif bracket.low is None:
            place = (-0.5 - 7 / row, "v")
        else:
            ends = _rank(levels, bracket.low, 0)[0], _rank(levels, bracket.high, 0)[0]
            place = (sum(ends) / 2, "o" if colour == RULE else "s")
            if ends[1] - ends[0] > 1.001:  # it goes back and forth over several rows
                ax.plot([x, x], ends, color=colour, lw=0.9, zorder=4, solid_capstyle="butt")
        at.setdefault(place, []).append(replicate)
    for (y, mark), replicates in at.items():
        _draw_marks(sheet, lane, y, mark, replicates, boundary)


def _draw_marks(sheet: Sheet, lane: _Lane, y: float, mark: str, replicates: list[int], found: stats.Boundary) -> None:
    """Replicates that cross at one place: side by side up to three, else one mark and their number."""
    ax, x, colour, count = sheet.axes, lane.x, lane.band.colour, len(replicates)
    style: dict[str, Any] = {"marker": mark, "ls": "", "color": colour, "zorder": 5, "clip_on": False, "mew": 0}
    if mark in "^v":
        style |= {"mfc": "white", "mew": 0.9}
    said = [(r, f"replicate {r}: {_bracket_words(found.brackets[r])}") for r in replicates]
    head = f"{lane.band.name} at {lane.budget}\n"
    if count <= 3:
        step = 4.9 / lane.pitch
        xs = [x + (k - (count - 1) / 2) * step for k in range(count)]
        ax.plot(xs, [y] * count, ms={"o": 4.0, "s": 3.5}.get(mark, 3.7), **style)
        for at, (_, words) in zip(xs, said, strict=True):
            sheet.point(at, y, says=head + words)
        return
    ax.plot([x], [y], ms=10, **style)
    ink = colour if mark in "^v" else "white"
    ax.text(x, y, str(count), ha="center", va="center_baseline", fontsize=7, color=ink, zorder=6)
    more = [f"and {count - TOLD_REPLICATES} more in the CSV"] if count > TOLD_REPLICATES else []
    sheet.point(x, y, says=head + "\n".join([words for _, words in said[:TOLD_REPLICATES]] + more))


def _bracket_words(bracket: stats.Bracket) -> str:
    if bracket.high is None and bracket.low is not None:
        return f"not up to {counted(bracket.low, 'task')}"
    if bracket.low is None and bracket.high is not None:
        return f"across at {counted(bracket.high, 'task')} already"
    return f"crosses between {number(cast(float, bracket.low))} and {number(cast(float, bracket.high))} tasks"


def _note_interval(sheet: Sheet, lane: _Lane, boundary: stats.Boundary, ends: tuple[float, float]) -> None:
    """The bar as something to point at."""
    known = sum(b != (None, None) for b in boundary.brackets)
    words = interval_words(boundary, lane.levels)
    head = f"{lane.band.name}: {words}{' tasks' if words[-1].isdigit() or words.endswith('fewer') else ''}"
    says = f"{head}\ninterval at {lane.budget}, {counted(known, 'replicate')}\nverdict: {boundary.verdict}"
    half = 7 / lane.pitch
    sheet.area(lane.x - half, ends[0] - 0.2, lane.x + half, ends[1] + 0.2, says)


def _note_boundary(sheet: Sheet, lane: _Lane, boundary: stats.Boundary, arm: str, flops: float, skill: str) -> None:
    """Rows of the CSV: the interval as drawn, ends beyond the grid left open, and every replicate's bracket."""
    inside = [
        end if end is not None and _rank(lane.levels, end, 0)[1] else None for end in (boundary.low, boundary.high)
    ]
    shared: dict[str, Any] = {"unit": "tasks", "arm": arm, "compute_flops": flops, "skill": skill}
    sheet.row(
        series=f"{lane.band.name} interval",
        measure="boundary",
        low_tasks=inside[0],
        high_tasks=inside[1],
        verdict=boundary.verdict,
        **shared,
    )
    for replicate, bracket in enumerate(boundary.brackets):
        sheet.row(
            series=f"{lane.band.name} of a replicate",
            measure="boundary",
            replicate=replicate,
            low_tasks=bracket.low,
            high_tasks=bracket.high,
            **shared,
        )
