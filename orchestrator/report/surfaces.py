"""Surfaces: a measure by number of tasks and compute, and the boundaries K_A and K_M in lanes beside the cells."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from orchestrator import stats
from orchestrator.analysis import boundaries, claims
from orchestrator.analysis.boundaries import interval_words, within
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import Phase
from orchestrator.formatting import counted, decimal, number, sure
from orchestrator.report.plates import CIVIDIS, FAINT, GREY, LIST, RULE, TINT, Margins, Panel, Row, Sheet


def on_split(split: str) -> str:
    """A split as people call it."""
    return "held-out tasks" if split == "held_out" else "training tasks"


def of_arm(found: Findings, arm: str) -> str:
    """The arm, to follow a study's name; nothing where there is only one."""
    return f", arm {arm}" if len(found.study.lines) > 1 else ""


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
    results, trials = found.results, Trials(found)
    present = results.present(arm, skill, split, phase)
    values = results.cube(measure, arm, skill, split, phase).tolist()

    def cell(i: int, j: int) -> Cell:
        n_tasks, flops = results.levels[i], results.budgets[j]
        those = tuple(
            Replicate(*trials.at(arm, n_tasks, flops, r), None if math.isnan(v) else v)
            for r, v in enumerate(values[i][j])
        )
        known = [r.value for r in those if r.value is not None]
        if known:
            return Cell(sum(known) / len(known), len(known), "value", n_tasks, flops, those)
        state = "undefined" if present[i, j].any() else Counter(r.status for r in those).most_common(1)[0][0]
        return Cell(None, 0, state, n_tasks, flops, those)

    return [[cell(i, j) for j in range(len(results.budgets))] for i in range(len(results.levels))]


def has_values(cells: list[list[Cell]]) -> bool:
    """Is there anything to draw?"""
    return any(cell.value is not None for line in cells for cell in line)


def alt_cells(cells: list[list[Cell]]) -> str:
    """The surface in words, row by row."""
    return " ".join(
        f"{counted(line[0].n_tasks, 'task')}: {', '.join(decimal(c.value) for c in line)}." for line in cells
    )


# Boundaries ---------------------------------------------------------------------------------------------------------


class Edge(NamedTuple):
    """A boundary at one budget."""

    found: stats.Boundary
    replicates: tuple[int, ...]
    """Whose brackets these are: a replicate that has not come so far has none."""
    confidence: float
    standing: claims.Standing

    @property
    def mark(self) -> str:
        """Beside its words, as in the table of boundaries."""
        return claims.mark(self.standing) if self.found.is_told else ""


class Band(NamedTuple):
    """A boundary to draw: its colour, and per budget what stats found (None: nothing to draw there)."""

    colour: str
    side: Literal[-1, 1]
    edges: tuple[Edge | None, ...]

    @property
    def name(self) -> str:
        """K_A or K_M."""
        return "K_A" if self.colour == RULE else "K_M"

    @property
    def boundaries(self) -> tuple[stats.Boundary | None, ...]:
        """Per budget."""
        return tuple(edge.found if edge else None for edge in self.edges)


def ability_band(found: Findings, arm: str, skill: str) -> Band | None:
    """K_A as drawn; None where no replicate reaches the skill at any budget: there is no boundary then."""
    if all(b.verdict in ("beyond", "missing") for _, b in found.k_ability[(arm, skill)]):
        return None
    return Band(RULE, -1, _edges(found, "ability", arm, skill, found.k_ability[(arm, skill)]))


def memory_band(found: Findings, arm: str) -> Band | None:
    """K_M as drawn; None where nothing is memorised at any budget."""
    if all(b.verdict in ("below", "missing") for _, b in found.k_memory[arm]):
        return None
    return Band(LIST, 1, _edges(found, "memory", arm, "", found.k_memory[arm]))


def _edges(
    found: Findings, measure: Literal["ability", "memory"], arm: str, skill: str, of: boundaries.Boundaries
) -> tuple[Edge | None, ...]:
    edges = []
    for (flops, boundary), (_, which) in zip(of, boundaries.judged(found.results, measure, arm, skill), strict=True):
        claim = claims.claim_of("k", measure, arm, skill, flops)
        edge = Edge(boundary, tuple(int(r) for r in which), found.confidence(claim), found.standings[claim])
        edges.append(edge if boundary.verdict != "missing" else None)
    return tuple(edges)


SURFACE_KEY = {
    RULE: (Line2D([], [], color=TINT[RULE], lw=7, marker="o", mfc=RULE, mec=RULE, ms=4), "K_A: the skill appears"),
    LIST: (
        Line2D([], [], color=TINT[LIST], lw=7, marker="s", mfc=LIST, mec=LIST, ms=4),
        "K_M: memorised up to here",
    ),
}


# Drawing ------------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Where the cells of a surface and the lanes beside them lie; lengths in pixels."""

    cell: float
    lane: float
    gap: float
    row: float
    font: float
    sides: frozenset[int]
    """-1: there is a lane left of a cell, 1: right of it."""

    @property
    def pitch(self) -> float:
        """From one budget to the next."""
        return self.cell + self.gap + self.lane * len(self.sides)

    @property
    def first(self) -> float:
        """The left edge of a cell, from the middle of its column; in columns."""
        return -0.5 + (self.gap / 2 + (self.lane if -1 in self.sides else 0)) / self.pitch

    @property
    def width(self) -> float:
        """Of a cell, in columns."""
        return self.cell / self.pitch

    def middle(self, side: int) -> float:
        """Of a lane, from the middle of its column; in columns."""
        return self.first + (self.width if side > 0 else 0) + side * self.lane / self.pitch / 2


def surface(
    found: Findings, arm: str, measure: str, skill: str, split: str, bands: Sequence[Band], small: bool = False
) -> Panel:
    """A surface: rows are numbers of tasks, columns are budgets; boundaries in lanes beside the cells they belong to.

    Memory is that of the training mixture, before the decay.
    """
    memory = measure == "memory"
    phase: Phase = "pre_decay" if memory else "final"
    cells = grid(found, measure, arm, skill, split, phase)
    n_rows, n_columns = len(cells), len(cells[0])
    narrow = small or n_columns > 6
    layout = _Layout(
        cell=38.0 if narrow else 58.0,
        lane=17.0 if narrow else 20.0,
        gap=8.0 if narrow else 16.0,
        row=24.0 if small or n_rows > 14 else 37.0,
        font=9.5 if narrow else 11.5,
        sides=frozenset(band.side for band in bands),
    )
    title = "memory" if memory else skill
    longest = max(len(number(line[0].n_tasks)) for line in cells)
    on = "training mixture" if memory else on_split(split)
    where = {"measure": measure, "unit": "ratio", "arm": arm, "skill": skill, "split": split, "phase": phase}
    return Panel(
        title=title,
        alt=f"Surface of {title} on {on} by number of tasks and compute. {alt_cells(cells)}",
        width=layout.pitch * n_columns,
        height=layout.row * n_rows,
        margins=Margins(8 + 0.66 * layout.font * max(longest, 5), 10, 52 if bands else 40, 20),
        draw=partial(_draw_surface, cells, layout, tuple(bands), where),
        least=0.85 if narrow else 0.7,
    )


def _draw_surface(cells: list[list[Cell]], layout: _Layout, bands: Sequence[Band], where: Row, sheet: Sheet) -> None:
    """The panel's axes, cells and lanes."""
    levels, budgets = [float(line[0].n_tasks) for line in cells], [cell.flops for cell in cells[0]]
    _draw_axes(sheet.axes, levels, budgets, layout, bool(bands))
    placed = [_Placed(one, j + layout.first, i) for i, line in enumerate(cells) for j, one in enumerate(line)]
    _draw_cells(sheet.axes, placed, layout)
    for one, left, i in placed:
        sheet.area(left, i - 0.5, left + layout.width, i + 0.5, _cell_words(one, where["measure"]))
        place = where | {"series": "cell", "n_tasks": one.n_tasks, "compute_flops": one.flops}
        for r, each in enumerate(one.replicates):
            sheet.row(**place, trial=each.trial, replicate=r, status=each.status, value=each.value)
    shared = {"unit": "tasks", "arm": where["arm"], "skill": where["skill"]}
    for band in bands:
        at = [(j + layout.middle(band.side), budgets[j], edge) for j, edge in enumerate(band.edges) if edge is not None]
        lanes = [_Lane(band, levels, x, layout.pitch, layout.row, flops, edge) for x, flops, edge in at]
        _draw_bars(sheet.axes, lanes)
        for lane in lanes:
            _note_interval(sheet, lane)
            _draw_brackets(sheet, lane)
            _note_boundary(sheet, lane, shared | {"compute_flops": lane.flops})


def _draw_axes(ax: Axes, levels: list[float], budgets: list[float], layout: _Layout, lanes: bool) -> None:
    """Names and lines of rows and columns."""
    font = layout.font
    ax.set_xlim(-0.5, len(budgets) - 0.5)
    ax.set_ylim(-0.5, len(levels) - 0.5)
    ax.spines[:].set_visible(False)
    middle = layout.first + layout.width / 2
    ax.set_xticks([j + middle for j in range(len(budgets))], [number(c) for c in budgets], fontsize=font)
    ax.set_yticks(range(len(levels)), [number(n) for n in levels], fontsize=font)
    ax.tick_params(length=0, pad=4)
    ax.tick_params(axis="x", pad=15 if lanes else 4)
    ax.set_xlabel("training compute (FLOPs)", fontsize=font - 0.5, labelpad=3)
    words: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": font - 0.5, "color": GREY}
    ax.annotate("tasks", (0, 1), xycoords="axes fraction", xytext=(-5, 3), textcoords="offset points", **words)
    ax.hlines(np.arange(len(levels) + 1) - 0.5, -0.5, len(budgets) - 0.5, color=FAINT, lw=0.8, zorder=0)


_EMPTY = {"open": "open", "failed": "failed", "diverged": "div.", "done": "no item"}


class _Placed(NamedTuple):
    """A cell, its left edge and its row."""

    cell: Cell
    left: float
    row: int


_LOOKS: dict[str, dict[str, Any]] = {
    "value": {"linewidths": 0},
    "undefined": {"facecolors": "#f1f1f1", "hatch": "////", "edgecolors": "#c4c4c4", "linewidths": 0},
    "blank": {"facecolors": "white", "edgecolors": "#b5b5b5", "linewidths": 0.8, "linestyles": [(0, (2, 2))]},
}


def _draw_cells(ax: Axes, placed: list[_Placed], layout: _Layout) -> None:
    """Cells of a kind as one artist, and what is written on each."""
    inset = 0.5 - 1.5 / layout.row
    kinds: dict[str, list[_Placed]] = {}
    for one in placed:
        kinds.setdefault(one.cell.state if one.cell.state in _LOOKS else "blank", []).append(one)
    for kind, those in kinds.items():
        boxes = [(left, row - inset, left + layout.width, row + inset) for _, left, row in those]
        filled = {"facecolors": [_colour(one.cell) for one in those]} if kind == "value" else {}
        _draw_boxes(ax, boxes, zorder=1, **_LOOKS[kind], **filled)
    for one in placed:
        _write_on(ax, one, layout)


def _draw_boxes(ax: Axes, boxes: Sequence[tuple[float, float, float, float]], **style: Any) -> None:
    """Rectangles (left, bottom, right, top) as one artist: one each takes seconds where there are hundreds of cells."""
    left, bottom, right, top = np.array(boxes, float).reshape(-1, 4).T
    corners = np.stack([left, bottom, right, bottom, right, top, left, top], 1).reshape(-1, 4, 2)
    ax.add_collection(PolyCollection(list(corners), **style), autolim=False)


def _colour(cell: Cell) -> Any:
    return CIVIDIS(min(max(cell.value or 0.0, 0.0), 1.0))


def _write_on(ax: Axes, placed: _Placed, layout: _Layout) -> None:
    """The value of a cell, or why it has none; and how many replicates it is of, where some are missing."""
    cell, i, font = placed.cell, placed.row, layout.font
    centre = placed.left + layout.width / 2
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    if cell.value is None:
        undefined = cell.state == "undefined"
        words = "—" if undefined else _EMPTY.get(cell.state, cell.state)
        around = {"facecolor": "#f1f1f1", "edgecolor": "none", "pad": 1.5} if undefined else None
        ax.text(centre, i, words, fontsize=font - 1.5, color=GREY, bbox=around, **middle)
        return
    ink = ink_on(_colour(cell))
    some = cell.known < len(cell.replicates)
    ax.text(centre, i + (0.16 if some else 0), decimal(cell.value), fontsize=font, color=ink, **middle)
    if some:
        words = f"{cell.known} of {len(cell.replicates)}"
        ax.text(centre, i - 0.27, words, fontsize=font - 3, color=ink, **middle)


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
    flops: float
    edge: Edge

    @property
    def ends(self) -> tuple[tuple[float, bool], tuple[float, bool]]:
        """Of the interval, in rows; False where it is open, or ends beyond the grid."""
        boundary, last = self.edge.found, len(self.levels) - 0.5
        return _rank(self.levels, boundary.low, -0.5), _rank(self.levels, boundary.high, last)


FADE = 5
"""Steps of two pixels over which an open end fades out."""


def _draw_bars(ax: Axes, lanes: Sequence[_Lane]) -> None:
    """Intervals as bars, each end with a line across it if it is closed, else fading out."""
    boxes, shades, across = [], [], []
    for lane in lanes:
        left, right = lane.x - 5.5 / lane.pitch, lane.x + 5.5 / lane.pitch
        boxes.append((left, lane.ends[0][0], right, lane.ends[1][0]))
        shades.append(1.0)
        for (end, closed), sign in zip(lane.ends, (-1, 1), strict=True):
            if closed:
                across.append((left, end, right, end))
                continue
            for k in range(FADE):
                near, far = (end + sign * step * 2 / lane.row for step in (k, k + 1))
                boxes.append((left, min(near, far), right, max(near, far)))
                shades.append(1 - (k + 1) / (FADE + 1))
    if lanes:
        colour = lanes[0].band.colour
        tints = [to_rgba(TINT[colour], shade) for shade in shades]
        _draw_boxes(ax, boxes, facecolors=tints, linewidths=0, clip_on=False, zorder=3)
        lines = np.array(across, float).reshape(-1, 2, 2)
        ax.add_collection(LineCollection(list(lines), colors=colour, lw=1.6, zorder=4, clip_on=False), autolim=False)


def _draw_brackets(sheet: Sheet, lane: _Lane) -> None:
    """Where each replicate crosses."""
    levels, x, colour = lane.levels, lane.x, lane.band.colour
    at: dict[tuple[float, str], list[int]] = {}
    for k, bracket in enumerate(lane.edge.found.brackets):
        if bracket.low is None and bracket.high is None:
            continue  # lost, or it says nothing
        if bracket.high is None:
            place = (len(levels) - 0.5 + 7 / lane.row, "^")
        elif bracket.low is None:
            place = (-0.5 - 7 / lane.row, "v")
        else:
            between = _rank(levels, bracket.low, 0)[0], _rank(levels, bracket.high, 0)[0]
            place = (sum(between) / 2, "o" if colour == RULE else "s")
            if between[1] - between[0] > 1.001:  # it goes back and forth over several rows
                sheet.axes.plot([x, x], between, color=colour, lw=0.9, zorder=4, solid_capstyle="butt")
        at.setdefault(place, []).append(k)
    for (y, mark), those in at.items():
        _draw_marks(sheet, lane, y, mark, those)


def _draw_marks(sheet: Sheet, lane: _Lane, y: float, mark: str, those: list[int]) -> None:
    """Brackets that lie at one place: side by side up to three, else one mark and their number."""
    ax, x, colour, count = sheet.axes, lane.x, lane.band.colour, len(those)
    style: dict[str, Any] = {"marker": mark, "ls": "", "color": colour, "zorder": 5, "clip_on": False, "mew": 0}
    if mark in "^v":
        style |= {"mfc": "white", "mew": 0.9}
    said = [f"replicate {lane.edge.replicates[k]}: {_bracket_words(lane, lane.edge.found.brackets[k])}" for k in those]
    head = f"{lane.band.name} at {number(lane.flops)} FLOPs\n"
    if count <= 3:
        step = 4.9 / lane.pitch
        xs = [x + (k - (count - 1) / 2) * step for k in range(count)]
        ax.plot(xs, [y] * count, ms={"o": 4.0, "s": 3.5}.get(mark, 3.7), **style)
        for at, words in zip(xs, said, strict=True):
            sheet.point(at, y, says=head + words)
        return
    ink = colour if mark in "^v" else "white"
    written: dict[str, Any] = {"ha": "center", "va": "center_baseline", "color": ink, "zorder": 6}
    if count < 100:
        ax.plot([x], [y], ms=10, **style)
        aside = {"^": -1.2, "v": 1.2}.get(mark, 0.0) / lane.row  # where a triangle is wide
        ax.text(x, y + aside, str(count), fontsize=7, **written)
    else:
        box = {"boxstyle": "square,pad=0.15", "fc": "white" if mark in "^v" else colour, "ec": colour, "lw": 0.9}
        ax.text(x, y, number(count), fontsize=6.5, bbox=box, **written)
    more = [f"and {count - TOLD_REPLICATES} more in the CSV"] if count > TOLD_REPLICATES else []
    sheet.point(x, y, says=head + "\n".join(said[:TOLD_REPLICATES] + more))


def _bracket_words(lane: _Lane, bracket: stats.Bracket) -> str:
    """What a replicate's mark says, of the skill or of memory."""
    skill, last = lane.band.colour == RULE, lane.edge.found.last
    if bracket.high is None and bracket.low is not None and last is not None and bracket.low < last:
        back = "has it in between, and not" if skill else "does not remember in between, and does"
        return f"{back} at {counted(last, 'task')}"
    if bracket.high is None and bracket.low is not None:
        return f"{'does not have it' if skill else 'remembers'} up to {counted(bracket.low, 'task')}"
    if bracket.low is None and bracket.high is not None:
        return f"{'has it at' if skill else 'does not even remember'} {counted(bracket.high, 'task')}{' already' if skill else ''}"
    return f"crosses between {number(cast(float, bracket.low))} and {number(cast(float, bracket.high))} tasks"


def interval_in_tasks(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """The interval as the table has it, with its unit: 14 to 36 tasks, beyond 1e12 tasks in all 3 replicates."""
    words = interval_words(boundary, levels)
    words = re.sub(r"(?:\d| or fewer)(?= in all | \(|$)", r"\g<0> tasks", words, count=1)
    words = re.sub(r"(?<![\d.,])1 tasks", "1 task", words)
    return words + (" replicates" if " in all " in words else "")


def _note_interval(sheet: Sheet, lane: _Lane) -> None:
    """The bar as something to point at, in the words and numbers of the table of boundaries."""
    boundary = lane.edge.found
    known = sum(b != (None, None) for b in boundary.brackets)
    sided = len(boundary.brackets) > 1 and boundary.verdict in ("crossed", "undecided")
    kind = f"{sure(lane.edge.confidence)} interval" if sided else "interval" if known > 1 else "bracket"
    head = f"{lane.band.name}: {interval_in_tasks(boundary, lane.levels)}"
    about = f"{kind} at {number(lane.flops)} FLOPs, {counted(known, 'replicate')}"
    mark = f" ({lane.edge.mark})" if lane.edge.mark else ""
    says = f"{head}\n{about}\nverdict: {boundary.verdict}{mark}"
    half, ((low, _), (high, _)) = 7 / lane.pitch, lane.ends
    sheet.area(lane.x - half, low - 0.2, lane.x + half, high + 0.2, says)


def _note_boundary(sheet: Sheet, lane: _Lane, shared: Row) -> None:
    """Rows of the CSV: the interval as drawn, ends beyond the grid left open, and every replicate's bracket."""
    boundary, name = lane.edge.found, lane.band.name
    low, high = within(boundary, lane.levels)
    shared = shared | {"measure": "boundary"}
    found = {"low_tasks": low, "high_tasks": high, "verdict": boundary.verdict, "kept": lane.edge.standing.kept}
    sheet.row(series=f"{name} interval", **found, **shared)
    for replicate, bracket in zip(lane.edge.replicates, boundary.brackets, strict=True):
        ends = {"low_tasks": bracket.low, "high_tasks": bracket.high}
        sheet.row(series=f"{name} of a replicate", replicate=replicate, **ends, **shared)
