"""Surfaces: a measure by number of tasks, or by a family parameter, and compute, with the boundaries drawn through the cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from orchestrator.analysis import along, boundaries, means
from orchestrator.analysis.finding import Finding
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.means import Cell
from orchestrator.analysis.results import Phase, scope_of
from orchestrator.formatting import counted, decimal, number, on_split
from orchestrator.report.palette import shade
from orchestrator.report.svg import Drawing, Panel, Point, Row, apart, spaced, width_of
from orchestrator.study.claimed import claimed_condition
from trainers.tasks import Family

TITLED_CELLS = 250
"""Most cells of a surface with tooltips: in larger surfaces they would take most of the page's bytes."""


WHISKERS = 70
"""Least width in pixels of cells with the intervals of boundaries drawn in them: narrower ones have no room beside the number."""


class Shown(NamedTuple):
    """The content of a surface: one measure of one condition, with the arguments of `Results.cube`."""

    measure: str
    """A key of `measures.MEASURES`."""
    condition: str
    skill: str
    split: str
    phase: Phase = "final"
    of_text: bool = False
    """Whether its family is one of text, which has other splits."""

    @property
    def title(self) -> str:
        """Title of the surface: measure, skill and split."""
        if self.measure == "memory":
            return "Memory of the training tasks"
        measure = self.measure.replace("_", " ")
        return f"{measure[0].upper()}{measure[1:]} in {self.skill} on {on_split(self.split, self.of_text)}"


def shown_of(found: Findings, measure: str, condition: str, skill: str = "") -> Shown:
    """The content of a surface in one measure. skill: as in `scope_of`."""
    of_text = cast(Family, found.study.family).ability_of == "right"
    return Shown(measure, condition, *scope_of(found.results, measure, skill), of_text)


class Rows(NamedTuple):
    """What the rows of a surface are."""

    axis: str = "training tasks"
    """Words for the axis: training tasks, or the family parameter."""
    key: str = "n_tasks"
    """Column of the CSV file with the row's value."""

    def name(self, level: float) -> str:
        """A row's label."""
        return number(level) if self.key == "n_tasks" else f"{level:g}"

    def place(self, level: float) -> str:
        """A row in words: 64 tasks, share 0.25."""
        return counted(level, "task") if self.key == "n_tasks" else f"{self.axis} {level:g}"


TASKS = Rows()


class Plane(NamedTuple):
    """One surface of a study: a condition by number of tasks, or a series of conditions by the value of a family parameter."""

    name: str
    """The condition, or the series (`Study.series`)."""
    conditions: tuple[str, ...]
    """The one condition, or one for each row."""
    levels: tuple[float, ...]
    """The value of each row, ascending."""
    rows: Rows

    def cells(self, found: Findings, measure: str, skill: str = "") -> list[list[Cell]]:
        """A measure in every cell, as `means.cells`."""
        return [row for condition in self.conditions for row in means.cells(found.results, measure, condition, skill)]

    def edges(self, found: Findings, skill: str) -> list[Edge]:
        """The boundaries that are drawn through the surface."""
        if self.rows.key == "n_tasks":
            return edges_of(found, self.name, skill)
        return edges_along(found, self, skill)


def planes(found: Findings) -> list[Plane]:
    """The surfaces of a study. Of conditions that differ in placement alone, the first."""
    study = found.study
    if along.spans(study):
        rows = Rows(study.axis, f"family_{study.axis}")
        return [Plane(name, tuple(of.values()), tuple(of), rows) for name, of in study.series.items()]
    levels = tuple(found.results.levels)
    return [Plane(alike[0], (alike[0],), levels, TASKS) for alike in study.same_question()]


def split_planes(found: Findings, every: list[Plane], most: int) -> tuple[list[Plane], list[Plane]]:
    """The planes that are shown, at most `most`, and the others. If some must go, the one of the primary claim stays first."""
    claim = found.study.primary
    if claim and len(every) > most:
        claimed = claimed_condition(found.study, claim)
        every = sorted(every, key=lambda plane: claimed not in (plane.name, *plane.conditions))
    return every[:most], every[most:]


class Words(NamedTuple):
    """Ability and memory in the words of figures."""

    axis: str
    half: str
    """An ability of one half."""
    ability: str
    memory: str


_OF_RULES = Words(
    "ability (share of the rule)", "half of the rule", "share of the rule learned", "share of the list remembered"
)
_OF_TEXT = Words(
    "ability (beyond the floor)", "an ability of ½", "right beyond the floor", "loss saved on training items"
)


OWN_TASKS = "Each condition is asked held-out tasks of the clusters that it trains."
"""A note on conditions that were asked different tasks (`by_task.asked_alike`)."""


def words_of(found: Findings) -> Words:
    """The words for a study's family: with an exact rule, or of text."""
    return _OF_TEXT if cast(Family, found.study.family).ability_of == "right" else _OF_RULES


def has_values(cells: Sequence[Sequence[Cell]]) -> bool:
    """Whether any cell has a value."""
    return any(cell.value is not None for line in cells for cell in line)


# Boundaries ---------------------------------------------------------------------------------------------------------


class Edge(NamedTuple):
    """A boundary (K_A or K_M, or one along a family parameter) as a line through a surface."""

    words: str
    """Its name in figure and legend."""
    kind: str
    """CSS classes of its line: `edge` for ability, `edge dash` for memory and long answers."""
    heights: tuple[float | None, ...]
    """For each budget, the height of the line in rows; 0 is the middle of the first row, 0.5 lies between the first two. None: the
    boundary is undefined there."""
    intervals: tuple[tuple[float, float] | None, ...]
    """For each budget, the ends of the boundary's interval as heights; None: no interval to draw."""

    @property
    def has_interval(self) -> bool:
        """Whether any budget has an interval to draw."""
        return any(interval is not None for interval in self.intervals)


def edges_of(found: Findings, condition: str, skill: str) -> list[Edge]:
    """K_A and K_M of a condition as lines. A boundary outside the levels at every budget is left out."""
    wanted = (("K_A", skill, "skill appears", "edge"), ("K_M", "", "memory ends", "edge dash"))
    edges = []
    for question, of, words, kind in wanted:
        at = {one.compute_flops: one for one in found.of(question, condition, of)}
        many = [at.get(c) for c in found.study.budgets]
        heights = [_height(found.results.levels, one) for one in many]
        top = len(found.results.levels) - 0.5
        outside = {"K_A": top, "K_M": -0.5}[question]
        if all(h is None or h == outside for h in heights):
            continue
        ends = [_interval(found.results.levels, one) for one in many]
        edges.append(Edge(words, kind, tuple(heights), tuple(ends)))
    return edges


def edges_along(found: Findings, plane: Plane, skill: str) -> list[Edge]:
    """The boundaries of a series along its parameter as lines. One that lies outside the values at every budget is left out."""
    edges, top = [], len(plane.levels) - 0.5
    for measure, words, kind in (("ability", "ability at ½", "edge"), ("long_answers", "half are long", "edge dash")):
        question = along.question_of(found.results, measure)
        at = {one.compute_flops: one for one in found.of(question, plane.name, skill)}
        many = [at.get(c) for c in found.study.budgets]
        heights = [_height(plane.levels, one) for one in many]
        if not all(h in (None, -0.5, top) for h in heights):
            ends = [_interval(plane.levels, one, logs=False) for one in many]
            edges.append(Edge(words, kind, tuple(heights), tuple(ends)))
    return edges


def _height(levels: Sequence[float], one: Finding | None) -> float | None:
    """Height of the boundary at one budget: the lower side of the first row across one half, in the median replicate.

    None if the boundary is undefined. levels: the value of each row.
    """
    if one is None or (level := boundaries.median_level(one)) is None:
        return None
    if one.verdict == "beyond":  # the cells above the last one seen are undefined: nothing is known there
        return len(levels) - 0.5 if boundaries.edge(one) == levels[-1] else None
    return (levels.index(level) if level < math.inf else len(levels)) - 0.5


def _interval(levels: Sequence[float], one: Finding | None, logs: bool = True) -> tuple[float, float] | None:
    """The interval of a boundary at one budget as heights in rows. An open end lies at the edge of the surface. None: not drawn.

    logs: heights between two rows go by the logarithm of the value.
    """
    if one is None or not one.has_interval or one.verdict not in ("crossed", "undecided"):
        return None
    scale = np.log if logs else np.asarray
    places, rows = scale(np.array(levels, float)), np.arange(len(levels), dtype=float)
    low = -0.5 if one.low is None else float(np.interp(scale(one.low), places, rows))
    high = len(levels) - 0.5 if one.high is None else float(np.interp(scale(one.high), places, rows))
    return low, high


# Drawing ------------------------------------------------------------------------------------------------------------

EMPTY = {"open": "", "no trial": "", "failed": "failed", "diverged": "div.", "done": "—", "undefined": "—"}
"""`Cell.state` -> text in a cell without a value."""


class Grid(NamedTuple):
    """The layout of a surface, in pixels."""

    left: float
    top: float
    """Upper left corner of the cells."""
    cell_w: float
    cell_h: float
    """Width and height of a cell."""
    n_rows: int
    n_columns: int

    def y(self, height: float) -> float:
        """y in pixels of a height in rows; 0 is the middle of the first (lowest) row."""
        return self.top + (self.n_rows - 0.5 - height) * self.cell_h

    def x(self, column: int) -> float:
        """x in pixels of the left side of a column."""
        return self.left + column * self.cell_w


def grid_of(
    levels: Sequence[float], n_columns: int, width: float, tallest: float, labelled: bool, rows: Rows = TASKS
) -> Grid:
    """The layout of a surface that is `width` pixels wide, with cells of at most `tallest` pixels height.

    levels: the value of each row. labelled: as in `panel`.
    """
    left = 10 + max(width_of(rows.name(level)) for level in levels)
    right = (118 if width > 500 else 66) if labelled else 8
    cell_w = min(150.0, (width - left - right) / n_columns)
    cell_h = max(17.0, min(tallest, 400 / len(levels)))
    return Grid(left, 24, cell_w, cell_h, len(levels), n_columns)


def legend(edges: Sequence[Edge], n_columns: int, widths: Sequence[float]) -> set[str]:
    """Entries that a legend must explain: names of the edges, and `wide` or `narrow` if intervals are drawn at that width.

    n_columns: number of budgets. widths: pixels of a surface on a wide screen, ..., on a phone.
    """
    found = {edge.words for edge in edges}
    if any(edge.has_interval for edge in edges):
        rooms = zip(("wide", "narrow"), (widths[0], widths[-1]), strict=True)
        found |= {name for name, width in rooms if grid_of([1000], n_columns, width, 44, True).cell_w >= WHISKERS}
    return found


def panel(
    axes: tuple[Sequence[float], Sequence[float]],
    shown: Shown,
    cells: Sequence[Sequence[Cell]],
    edges: Sequence[Edge],
    width: float,
    tallest: float = 44,
    title: str = "",
    note: str = "",
    labelled: bool | None = None,
    rows: Rows = TASKS,
) -> Panel:
    """Draw a surface: rows are numbers of tasks or values of a parameter, columns are budgets, ascending from the lower left.

    axes: the values of the rows, and the budgets. width: of the panel; tallest: largest height of a cell; both in pixels.
    labelled: leave room for the names of boundaries at the right, so that surfaces side by side have equal cells. None: only if
    there are edges.
    """
    levels, budgets = axes
    grid = grid_of(levels, len(budgets), width, tallest, bool(edges) if labelled is None else labelled, rows)
    leaving = _leaving(edges, grid.n_rows)
    bottom = grid.y(-0.5)
    below = bottom + (15 if -0.5 in leaving else 0)  # room for the name of a boundary
    drawing = Drawing(width, below + 42)
    drawing.text(2, 13, rows.axis, "g")
    for i, level in enumerate(levels):
        drawing.text(grid.left - 6, grid.y(i) + 4, rows.name(level), "e")
    centres = [grid.x(j) + grid.cell_w / 2 for j in range(len(budgets))]
    for x, name in spaced(centres, [number(c) for c in budgets]):
        drawing.text(x, below + 17, name, "m")
    drawing.text(grid.left + grid.n_columns * grid.cell_w / 2, below + 35, "training compute (FLOPs)", "g m")
    words = _formatted(cells, grid.cell_w - 3)
    for i, line in enumerate(cells):
        for j, cell in enumerate(line):
            _draw_cell(drawing, grid, i, j, cell, words[i][j], _tip(axes, rows, shown, i, j, cell))
    _draw_edges(drawing, grid, edges, leaving, rows)
    said = " ".join(
        f"{rows.place(level)}: {', '.join(decimal(c.value) for c in line)}."
        for level, line in zip(levels, cells, strict=True)
    )
    return Panel(
        title=title,
        note=note,
        alt=f"{shown.title} by {'number of tasks' if rows == TASKS else rows.axis} (rows) and compute (columns). {said}",
        drawing=drawing,
        rows=_rows(axes, rows, shown, cells),
    )


def _formatted(cells: Sequence[Sequence[Cell]], room: float) -> list[list[str]]:
    """The text of every cell: `0.25`, or `.25` if that is too wide for `room` pixels, or "" if both are, in all cells alike."""
    formats = (lambda w: w, lambda w: w.replace("0.", ".", 1), lambda w: "")
    for write in formats:
        words = [
            [write(c.words or decimal(c.value)) if c.value is not None else EMPTY.get(c.state, c.state) for c in line]
            for line in cells
        ]
        if max(width_of(w) for line in words for w in line) <= room:
            break
    return words


def _draw_cell(drawing: Drawing, grid: Grid, i: int, j: int, cell: Cell, word: str, tip: str) -> None:
    """Draw the cell in row i and column j: colour, value, and `k of n` if some replicates have no value."""
    kind = "void" if cell.state == "undefined" else "blank" if cell.value is None else shade(cell.value)
    words = [word] if word else []
    if 0 < cell.known < len(cell.replicates) and grid.cell_h >= 34:
        words.append(f"{cell.known} of {len(cell.replicates)}")
    words = [w for w in words if width_of(w) < grid.cell_w]
    drawing.cell(grid.x(j) + 1, grid.y(i) - grid.cell_h / 2 + 1, grid.cell_w - 2, grid.cell_h - 2, kind, words, tip)


def _tip(axes: tuple[Sequence[float], Sequence[float]], rows: Rows, shown: Shown, i: int, j: int, cell: Cell) -> str:
    """The tooltip of a cell: mean, place, and the value of each replicate. "" for surfaces with too many cells."""
    levels, budgets = axes
    if len(levels) * len(budgets) > TITLED_CELLS:
        return ""
    where = f"{rows.place(levels[i])}, {number(budgets[j])} FLOPs"
    each = ", ".join(decimal(v) for v in cell.replicates[:20])
    more = f" and {len(cell.replicates) - 20} more" if len(cell.replicates) > 20 else ""
    value = f"{shown.measure.replace('_', ' ')} {decimal(cell.value)}" if cell.value is not None else cell.state
    value += f", floor {decimal(cell.floor)}" if cell.floor is not None else ""
    return f"{value}\n{where}\nreplicates: {each}{more}"


def _leaving(edges: Sequence[Edge], n_rows: int) -> dict[float, tuple[Edge, int]]:
    """Boundaries whose line ends at the lower or upper side of a surface: height of the side -> boundary, column behind its line.

    Of two that end at one side, the first.
    """
    sides, found = (-0.5, n_rows - 0.5), {}
    for edge in reversed(edges):
        known = [(j, h) for j, h in enumerate(edge.heights) if h is not None]
        inside = [j for j, h in known if h not in sides]
        if inside and known[-1][1] in sides:
            found[known[-1][1]] = edge, inside[-1] + 1
    return found


def _draw_edges(
    drawing: Drawing, grid: Grid, edges: Sequence[Edge], leaving: Mapping[float, tuple[Edge, int]], rows: Rows
) -> None:
    """Draw every boundary as a step line with its intervals as thin bars in the columns, and its name at the end of the line.

    leaving: the boundaries with their name above or below the surface (`_leaving`). Other names stand at its right.
    """
    right = grid.x(grid.n_columns)
    for height, (edge, column) in leaving.items():
        half = width_of(edge.words) / 2
        x = min(grid.x(column), right + 8 - half)
        if height < 0:
            drawing.text(x, grid.y(height) + 14, edge.words, "b m")
        else:
            drawing.text(max(x, half + 10 + width_of(rows.axis)), 14, edge.words, "b m")
    _name_at_the_right(drawing, grid, [edge for edge in edges if not any(edge is one for one, _ in leaving.values())])
    for k, edge in enumerate(edges):
        strokes = _steps(grid, edge, edges[:k])
        for kind in ("case", edge.kind):
            drawing.path(strokes, kind)
        inset = 0.13 * grid.cell_w
        for j, interval in enumerate(edge.intervals if grid.cell_w >= WHISKERS else ()):
            if interval is not None:
                x = grid.x(j) + (inset if edge.kind == "edge" else grid.cell_w - inset)
                _draw_interval(drawing, x, grid.y(interval[0]), grid.y(interval[1]), edge.kind)


def _name_at_the_right(drawing: Drawing, grid: Grid, edges: Sequence[Edge]) -> None:
    """Write the names of boundaries beside a surface. A line leads from the last budget with a value to each."""
    right = grid.x(grid.n_columns)
    last = [[(j, h) for j, h in enumerate(edge.heights) if h is not None][-1] for edge in edges]
    words_of = [[edge.words] if drawing.width > 500 else edge.words.split() for edge in edges]
    room = 13 * max(map(len, words_of), default=1) + 4
    places = apart([-grid.y(height) for _, height in last], room)
    for edge, words, (column, height), place in zip(edges, words_of, last, places, strict=True):
        style = f"{edge.kind} mid" if column == grid.n_columns - 1 else "axis"
        drawing.path([[(grid.x(column + 1), grid.y(height)), (right + 8, -place)]], style)
        for m, word in enumerate(words):
            drawing.text(right + 12, -place + 4 + 13 * (m - (len(words) - 1) / 2), word, "b")


def _steps(grid: Grid, edge: Edge, others: Sequence[Edge]) -> list[list[Point]]:
    """The strokes of a boundary in pixels: horizontal in a column, vertical between columns, with gaps for undefined budgets.

    At a budget at which the boundary lies outside the grid, no level line is drawn along the frame. A line that coincides
    with one of the others runs just below it.
    """
    strokes: list[list[Point]] = [[]]
    for j, height in enumerate(edge.heights):
        if height is None:
            strokes.append([])
            continue
        y = grid.y(height) + (4 if any(other.heights[j] == height for other in others) else 0)
        if height in (-0.5, grid.n_rows - 0.5):
            strokes[-1] += [(grid.x(j), y)] if strokes[-1] else []
            strokes.append([(grid.x(j + 1), y)])
        else:
            strokes[-1] += [(grid.x(j), y), (grid.x(j + 1), y)]
    return [stroke for stroke in strokes if len(stroke) > 1]


def _draw_interval(drawing: Drawing, x: float, low: float, high: float, kind: str) -> None:
    """Draw an interval as a vertical bar with two caps. low, high: pixels."""
    strokes: list[list[Point]] = [[(x, low), (x, high)], [(x - 3, low), (x + 3, low)], [(x - 3, high), (x + 3, high)]]
    drawing.path(strokes, "halo")
    drawing.path(strokes, f"{kind} whisker")


def _rows(
    axes: tuple[Sequence[float], Sequence[float]], of: Rows, shown: Shown, cells: Sequence[Sequence[Cell]]
) -> list[Row]:
    """The values of a surface as rows of a CSV file, one for each replicate."""
    rows: list[Row] = []
    shared: dict[str, Any] = {"condition": shown.condition, "measure": shown.measure, "skill": shown.skill}
    for level, line in zip(axes[0], cells, strict=True):
        for c, cell in zip(axes[1], line, strict=True):
            for r, value in enumerate(cell.replicates):
                place = {of.key: level, "compute_flops": c, "replicate": r}
                row = shared | place | {"state": cell.state, "value": None if math.isnan(value) else value}
                rows.append(row if cell.floor is None else row | {"mean_floor": cell.floor})
    return rows


def edge_rows(found: Findings, plane: Plane, skill: str) -> list[Row]:
    """The boundaries through a surface at every budget, as rows of the figure's CSV file."""
    if plane.rows == TASKS:
        what, asked = "tasks", [*found.of("K_A", plane.name, skill), *found.of("K_M", plane.name, "")]
    else:
        what, asked = found.study.axis, found.of("along ", plane.name, skill)
    return [
        {"condition": plane.name, "measure": one.question, "skill": one.skill, "compute_flops": one.compute_flops}
        | {"state": one.verdict, f"low_{what}": one.low, f"high_{what}": one.high, "replicates": one.n}
        for one in asked
    ]
