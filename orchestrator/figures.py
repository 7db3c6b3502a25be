"""The figures of a study: plates of panels, drawn from what findings.py says. Computes no statistic itself.

On the page each panel is an SVG of its own, so that plates can wrap on a narrow screen; as a file (for MLflow, for a README)
a plate is one picture that explains itself. Lengths are CSS pixels, which are points of the figure.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from orchestrator import findings, stats
from orchestrator.findings import Findings
from orchestrator.results import Phase
from orchestrator.results import Track as Along
from orchestrator.words import number
from trainers.tasks import Family

INK, GREY, FAINT = "#1a1a1a", "#5f5f5f", "#e4e4e4"
RULE, LIST = "#D55E00", "#0072B2"
"""The two colours of the report (Okabe and Ito 2008): vermilion for the general rule, blue for the remembered list. Each
also has its own mark and line, so that nothing hangs on colour alone."""
TINT = {RULE: "#f6cfb5", LIST: "#b5d5ea"}
CIVIDIS = matplotlib.colormaps["cividis"]
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#9a9a9a",
    "ytick.color": "#9a9a9a",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text: small, selectable, set in the reader's own font
    "legend.frameon": False,
}
PNG_DPI = 200
MAX_SVG_BYTES = 60_000
"""A panel with more marks than this holds goes on the page as PNG, if that is smaller (assumed: 1,500 marks)."""


# Plates and panels --------------------------------------------------------------------------------------------------


class Margins(NamedTuple):
    """Room around the axes, in CSS pixels."""

    left: float
    right: float
    bottom: float
    top: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One axes and what is drawn on it. Lengths are CSS pixels, which are points of the figure."""

    title: str
    note: str = ""
    """A line under the title."""
    alt: str
    """What a reader who cannot see the panel is told."""
    width: float
    height: float
    margins: Margins
    draw: Callable[[Axes], None]
    least: float = 0.88
    """How far a narrow screen may shrink the panel before it scrolls: no text below 8 pixels."""

    @property
    def box(self) -> tuple[float, float]:
        """Width and height with margins."""
        m = self.margins
        return self.width + m.left + m.right, self.height + m.bottom + m.top


@dataclass(frozen=True, kw_only=True)
class Plate:
    """Panels that belong together: one file, and one grid on the page."""

    heading: str
    about: str
    """A sentence under the heading of the file; the page says it in its own text."""
    key: tuple[tuple[Line2D, str], ...] = ()
    panels: tuple[Panel, ...]
    columns: int = 3
    name: str = ""
    """Of its files; `plates_of` gives it."""


def _blank(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    return figure


def _place(figure: Figure, panel: Panel, x: float, y: float) -> None:
    """Draw a panel with the lower left corner of its box at (x, y) pixels."""
    width, height = figure.get_size_inches() * 72
    m = panel.margins
    axes = figure.add_axes(((x + m.left) / width, (y + m.bottom) / height, panel.width / width, panel.height / height))
    axes.tick_params(length=3, width=0.8, pad=3)
    panel.draw(axes)


def _alone(panel: Panel) -> Figure:
    figure = _blank(*panel.box)
    _place(figure, panel, 0, 0)
    return figure


def _together(plate: Plate) -> Figure:
    """The plate as one picture: heading, sentence, key, panels in a grid with their titles."""
    columns = min(plate.columns, len(plate.panels))
    cell_w = max(max(p.box[0] for p in plate.panels), 460 / columns)
    titled = len(plate.panels) > 1
    cell_h = max(p.box[1] for p in plate.panels) + titled * (36 if any(p.note for p in plate.panels) else 22)
    rows = math.ceil(len(plate.panels) / columns)
    width = columns * cell_w + 24
    per_line = int((width - 24) / 5.6)
    about, heading = textwrap.wrap(plate.about, per_line), textwrap.wrap(plate.heading, int(per_line * 0.74))
    head = 16 + 19 * len(heading) + 14 * len(about) + (24 if plate.key else 8)
    height = head + rows * cell_h + 8
    figure = _blank(width, height)
    figure.set_facecolor("white")

    def say(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="top", **style)

    say(14, 12, "\n".join(heading), fontsize=14, fontweight="bold", linespacing=1.15)
    say(14, 14 + 19 * len(heading), "\n".join(about), fontsize=10, color=GREY, linespacing=1.2)
    if plate.key:
        figure.legend(
            [mark for mark, _ in plate.key],
            [words for _, words in plate.key],
            loc="upper left",
            bbox_to_anchor=(14 / width, 1 - (head - 24) / height),
            borderaxespad=0,
            ncols=len(plate.key),
            fontsize=9.5,
            borderpad=0,
            handlelength=2.2,
            columnspacing=1.6,
        )
    for i, panel in enumerate(plate.panels):
        x, y = 12 + (i % columns) * cell_w, head + (i // columns) * cell_h
        if titled:
            say(x + 2, y + 4, panel.title, fontsize=11, fontweight="bold")
            say(x + 2, y + 19, panel.note, fontsize=9, color=GREY)
        _place(figure, panel, x, height - y - cell_h)
    return figure


def files_of(plate: Plate) -> dict[str, bytes]:
    """The plate as the files that MLflow shows."""
    figure = _together(plate)
    return {"svg": _svg(figure, plate.name).encode(), "png": _png(figure)}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    texts = [t for t in figure.findobj(Text) if re.search(r"K_[AM]", t.get_text())]
    for text in texts:
        text.set_text(re.sub(r"K_([AM])", r"$K_\1$", text.get_text()))
    figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure, salt: str) -> str:
    """A figure as SVG: deterministic, without prolog and metadata, two decimals, in the reader's font."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(?<=\s)(d|x|y|x1|y1|points|transform|width|height)="([^"]*)"', _rounded, text)
    text = text.replace("font-family: 'DejaVu Sans'; ", "").replace(' transform="rotate(-0 ', ' data-at="')
    text = re.sub(r' data-at="[^"]*"', "", text)
    text = text.replace("<svg ", f'<svg font-family="{FONTS}" ', 1)
    text = re.sub(r">([^<]*)K_([AM])([^<]*)</text>", _subscript, text)
    return _classed(re.sub(r">\s+<", "><", text))


def _classed(svg: str) -> str:
    """Styles that occur often, once: halves a figure. Named by their content, so that two figures cannot disagree."""
    often = {style for style, count in Counter(re.findall(r' style="([^"]*)"', svg)).items() if count > 2}
    names = {style: "e" + hashlib.sha256(style.encode()).hexdigest()[:7] for style in sorted(often)}
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    for style, name in names.items():
        svg = svg.replace(f' style="{style}"', f' class="{name}"')
    return svg.replace(">", f"><style>{rules}</style>", 1)


def _rounded(found: re.Match[str]) -> str:
    short = re.sub(r"(-?[0-9]+[.][0-9]{2})[0-9]+", r"\1", " ".join(found[2].split()))
    return f'{found[1]}="{short}"'


def _subscript(found: re.Match[str]) -> str:
    before, letter, after = found.groups()
    low = f'<tspan dy=".24em" font-size="76%">{letter}</tspan>'
    return f'>{before}K{low}<tspan dy="-.18em">{after}</tspan></text>'


def inline(panel: Panel, salt: str) -> Markup:
    """A panel for the page: inline SVG that shrinks with its box, or a PNG where that is much smaller."""
    figure = _alone(panel)
    figure.patch.set_alpha(0)
    width, _ = panel.box
    alt, style = html.escape(panel.alt), f"width:{width * 1.15:.0f}px;min-width:{width * panel.least:.0f}px"
    svg = _svg(figure, salt)
    if len(svg) > MAX_SVG_BYTES:
        png = base64.b64encode(_png(figure)).decode()
        if len(png) < len(svg):
            return Markup(f'<img src="data:image/png;base64,{png}" alt="{alt}" style="{style}">')
    root = re.match(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', svg)
    assert root is not None
    opening = f'<svg font-family="{FONTS}" viewBox="{root[1]}" role="img" aria-label="{alt}" style="{style}">'
    return Markup(opening + svg[root.end() :])


# Surfaces -----------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """What one cell of a surface shows."""

    value: float | None
    known: int
    """Replicates that have the value."""
    state: str
    """`value`; `undefined` (measured, but the references coincide or are missing); else what became of the trials."""


class Band(NamedTuple):
    """A boundary to draw: its colour, and per budget what stats.py found (None: nothing to draw there)."""

    colour: str
    side: Literal[-1, 1]
    boundaries: tuple[stats.Boundary | None, ...]


def _cell(
    found: Findings, measure: str, phase: Phase, arm: str, skill: str, split: str, n_tasks: int, flops: float
) -> Cell:
    values = found.values(measure, arm, skill, split, n_tasks, flops, phase)
    known = sum(v is not None for v in values)
    if known:
        return Cell(found.mean(measure, arm, skill, split, n_tasks, flops, phase), known, "value")
    place = found.results.levels.index(n_tasks), found.results.budgets.index(flops)
    if found.results.present(arm, skill, split, phase)[place].any():
        return Cell(None, 0, "undefined")
    status = Counter(
        r["status"] for r in found.runs if (r["arm"], r["n_tasks"], r["compute_flops"]) == (arm, n_tasks, flops)
    )
    return Cell(None, 0, status.most_common(1)[0][0] if status else "open")


def grid(found: Findings, measure: str, arm: str, skill: str, split: str, phase: Phase = "final") -> list[list[Cell]]:
    """Rows by ascending number of tasks, columns by ascending budget."""
    study = found.study
    return [
        [_cell(found, measure, phase, arm, skill, split, n, c) for c in study.budgets]
        for n in sorted(study.axes.n_tasks)
    ]


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


def _surface(
    found: Findings, cells: list[list[Cell]], bands: Sequence[Band], title: str, alt: str, small: bool = False
) -> Panel:
    """A surface: rows are numbers of tasks, columns are budgets; boundaries in lanes beside the cells they belong to."""
    study = found.study
    levels, budgets = [float(n) for n in sorted(study.axes.n_tasks)], study.budgets
    narrow = small or len(budgets) > 6
    cell, lane, gap = (38.0 if narrow else 58.0), (17.0 if narrow else 20.0), (8.0 if narrow else 16.0)
    sides = {band.side for band in bands}
    pitch = cell + gap + lane * len(sides)
    row = 24.0 if small or len(levels) > 14 else 37.0
    font = 9.5 if narrow else 11.5

    def draw(ax: Axes) -> None:
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
        _say(ax, "tasks", (0, 1), (-5, 3), ha="right", va="bottom", fontsize=font - 0.5)
        for edge in range(len(levels) + 1):
            ax.axhline(edge - 0.5, color=FAINT, lw=0.8, zorder=0)
        for i, line in enumerate(cells):
            for j, one in enumerate(line):
                _draw_cell(ax, one, j + first, i, cell / pitch, 1.5 / row, study.axes.replicates, font)
        for band in bands:
            beside = (cell / pitch if band.side > 0 else 0) + band.side * lane / pitch / 2
            for j, boundary in enumerate(band.boundaries):
                if boundary is not None:
                    _draw_bracket(ax, band, boundary, levels, j + first + beside, pitch, row)

    longest = max(len(number(n)) for n in levels)
    return Panel(
        title=title,
        alt=alt,
        width=pitch * len(budgets),
        height=row * len(levels),
        margins=Margins(8 + 0.66 * font * max(longest, 5), 10, 52 if bands else 40, 20),
        draw=draw,
        least=0.85 if narrow else 0.7,
    )


def _say(ax: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Small grey text, `offset` pixels off a place given in fractions of the axes."""
    style = cast(dict[str, Any], {"fontsize": 9.5, "color": GREY}) | style
    ax.annotate(text, xy, xycoords="axes fraction", xytext=offset, textcoords="offset points", **style)


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
    ink = _ink(colour)
    some = cell.known < replicates
    ax.text(centre, i + (0.16 if some else 0), decimal(cell.value), ha="center", va="center", fontsize=font, color=ink)
    if some:
        words = f"{cell.known} of {replicates}"
        ax.text(centre, i - 0.27, words, ha="center", va="center", fontsize=font - 3, color=ink)


def _ink(colour: Sequence[float]) -> str:
    """Black or white, whichever stands out more (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def decimal(value: float | None, digits: int = 2) -> str:
    """A ratio to two decimals with a true minus sign; an em dash where it is missing."""
    if value is None or not math.isfinite(value):
        return "—"
    text = f"{value:.{digits}f}" if abs(value) < 99.5 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def _rank(levels: Sequence[float], value: float | None, otherwise: float) -> tuple[float, bool]:
    """Where a number of tasks lies on rows one apart, log-linear between two rows; False where it is off the grid.

    Row i is centred on i: an interval from 32 to 64 tasks runs from the middle of one row to the middle of the next,
    because either row was measured and only what lies between them was not.
    """
    if value is None or not levels[0] <= value <= levels[-1]:
        off = otherwise if value is None else -0.5 if value < levels[0] else len(levels) - 0.5
        return off, False
    return float(np.interp(math.log(value), np.log(levels), np.arange(len(levels)))), True


def _draw_bracket(
    ax: Axes, band: Band, boundary: stats.Boundary, levels: Sequence[float], x: float, pitch: float, row: float
) -> None:
    """The interval of a boundary at one budget, fading out where it is open, and where each replicate crosses.

    `pitch` and `row` are the pixels between two budgets and two numbers of tasks.
    """
    width = 11 / pitch
    (low, low_closed), (high, high_closed) = (
        _rank(levels, boundary.low, -0.5),
        _rank(levels, boundary.high, len(levels) - 0.5),
    )
    shape: dict[str, Any] = {"facecolor": TINT[band.colour], "linewidth": 0, "clip_on": False}
    ax.add_patch(Rectangle((x - width / 2, low), width, high - low, zorder=3, **shape))
    for end, closed, sign in ((low, low_closed, -1), (high, high_closed, 1)):
        if closed:
            ax.plot([x - width / 2, x + width / 2], [end, end], color=band.colour, lw=1.6, zorder=4, clip_on=False)
            continue
        for k in range(5):  # fades over 10 pixels
            bottom = end + sign * k * 2 / row - (2 / row if sign < 0 else 0)
            ax.add_patch(Rectangle((x - width / 2, bottom), width, 2 / row, zorder=3, alpha=1 - (k + 1) / 6, **shape))
    at: Counter[tuple[float, str]] = Counter()
    for bracket in boundary.brackets:
        if bracket.high is None:
            at[(len(levels) - 0.5 + 7 / row, "^")] += 1
        elif bracket.low is None:
            at[(-0.5 - 7 / row, "v")] += 1
        else:
            middle = (_rank(levels, bracket.low, 0)[0] + _rank(levels, bracket.high, 0)[0]) / 2
            at[(middle, "o" if band.colour == RULE else "s")] += 1
    for (y, mark), count in at.items():
        _draw_marks(ax, x, y, mark, count, band.colour, pitch)


def _draw_marks(ax: Axes, x: float, y: float, mark: str, count: int, colour: str, pitch: float) -> None:
    """Replicates that cross at one place: side by side up to three, else one mark and their number."""
    style: dict[str, Any] = {"marker": mark, "ls": "", "color": colour, "zorder": 5, "clip_on": False, "mew": 0}
    if mark in "^v":
        style |= {"mfc": "white", "mew": 0.9}
    if count <= 3:
        step = 4.9 / pitch
        xs = [x + (k - (count - 1) / 2) * step for k in range(count)]
        ax.plot(xs, [y] * count, ms={"o": 4.0, "s": 3.5}.get(mark, 3.7), **style)
        return
    ax.plot([x], [y], ms=10, **style)
    ink = colour if mark in "^v" else "white"
    ax.text(x, y, str(count), ha="center", va="center_baseline", fontsize=7, color=ink, zorder=6)


_SURFACE_KEY = {
    RULE: (Line2D([], [], color=TINT[RULE], lw=7, marker="o", mfc=RULE, mec=RULE, ms=4), "K_A: the skill appears"),
    LIST: (
        Line2D([], [], color=TINT[LIST], lw=7, marker="s", mfc=LIST, mec=LIST, ms=4),
        "K_M: memorised up to here",
    ),
}


# Curves -------------------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """One kind of line in a panel of curves."""

    measure: str
    skill: str
    split: str
    colour: str
    dashed: bool


Point = tuple[float, float]


class Track(NamedTuple):
    """One replicate along its trunk, and the branches off it."""

    trunk: list[Point]
    branches: list[list[Point]]
    """From the branch point to the end of a budget; a single point where nothing branches off."""
    diverged: bool


class Curves:
    """Training runs as lines to draw."""

    def __init__(self, found: Findings) -> None:
        self.found = found
        self.diverged = {(r["arm"], r["n_tasks"], r["replicate"]) for r in found.runs if r["status"] == "diverged"}

    def track(self, series: Series, arm: str, n_tasks: int, replicate: int) -> Track:
        """All that was measured of one replicate, over all its budgets: (FLOPs, value)."""
        along = self.found.results.track(series.measure, arm, series.skill, series.split, n_tasks, replicate)
        trunk: dict[int, Point] = {}
        branch_points: dict[float, Point] = {}
        ends: dict[float, tuple[int, Point]] = {}
        for step, flops, value, budget, phase in zip(*(part.tolist() for part in along), strict=True):
            if math.isnan(value):
                continue
            point = (flops, value)
            if phase == "final":
                ends[budget] = (step, point)
                continue
            trunk[step] = point
            if phase == "pre_decay":
                branch_points[budget] = point
        for budget, (step, point) in ends.items():
            if budget not in branch_points:
                trunk[step] = point
        branches = [[*([branch_points[c]] if c in branch_points else []), end] for c, (_, end) in sorted(ends.items())]
        return Track([trunk[s] for s in sorted(trunk)], branches, (arm, n_tasks, replicate) in self.diverged)

    def span(self, arm: str) -> tuple[float, float]:
        """The range of training FLOPs of an arm's curves."""
        low, high = self.found.results.span(arm) or (math.inf, 0.0)
        budgets = self.found.study.budgets
        return (min(low, budgets[0]) / 1.25, max(high, budgets[-1]) * 1.2)


def _curve_panel(
    curves: Curves,
    arm: str,
    n_tasks: int,
    series: Sequence[Series],
    references: Sequence[tuple[str, float]],
    span: tuple[float, float],
    alt: str,
) -> Panel:
    """Every replicate of one number of tasks against compute, with labelled reference lines."""
    budgets = curves.found.study.budgets
    replicates = curves.found.study.axes.replicates

    def draw(ax: Axes) -> None:
        ax.set_xscale("log")
        ax.set_xlim(*span)
        _compute_ticks(ax, budgets, span)
        ax.set_ylim(-0.03, 1.04)
        ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9.5)
        ax.set_xlabel("training compute (FLOPs)", fontsize=9, labelpad=2)
        _draw_references(ax, references)
        for kind in series:
            _draw_tracks(ax, [curves.track(kind, arm, n_tasks, r) for r in range(replicates)], kind)

    title = f"{number(n_tasks)} task" + ("s" if n_tasks > 1 else "")
    margins = Margins(28, 84 if references else 14, 34, 8)
    return Panel(title=title, alt=alt, width=190, height=140, margins=margins, draw=draw)


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


def _draw_references(ax: Axes, references: Sequence[tuple[str, float]]) -> None:
    """Thin lines across, named at the right; names that would touch are moved apart."""
    dashes: dict[str, Any] = {"generaliser": "-", "memoriser": (0, (6, 2, 1, 2)), "chance": (0, (1, 2))}
    places = _spread([value for _, value in references], 0.085)
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


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels, at their values where there is room, else moved up by as little as keeps them apart."""
    places = [0.0] * len(values)
    last = -math.inf
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        last = places[i] = max(values[i], last + gap)
    return places


def _draw_tracks(ax: Axes, tracks: Sequence[Track], series: Series) -> None:
    """All replicates of one kind: trunks and branches in one go, because hundreds of artists are slow and heavy."""
    many = len(tracks) > 5
    dash: Any = (0, (4, 2)) if series.dashed else "-"
    trunks = _joined([track.trunk for track in tracks])
    branches = _joined([branch for track in tracks for branch in track.branches if len(branch) > 1])
    for lines in (trunks, branches):
        ax.plot(*lines, color=series.colour, lw=0.7 if many else 1.1, ls=dash, zorder=3, solid_capstyle="round")
    ends = [branch[-1] for track in tracks for branch in track.branches]
    ax.plot(
        [x for x, _ in ends],
        [y for _, y in ends],
        ls="",
        marker="s" if series.dashed else "o",
        ms=2.4 if many else 3.4,
        mew=0.9,
        mfc="white" if series.dashed else series.colour,
        color=series.colour,
        zorder=4,
    )
    for track in tracks:
        if track.diverged and track.trunk:
            ax.plot(*track.trunk[-1], marker="x", color=INK, ms=6, mew=1.4, zorder=6)


def _joined(lines: Sequence[Sequence[Point]]) -> tuple[list[float], list[float]]:
    """Several lines as one, with a gap after each."""
    points = [point for line in lines for point in (*line, (math.nan, math.nan))]
    return [x for x, _ in points], [y for _, y in points]


def _line_key(colour: str, dashed: bool, words: str) -> tuple[Line2D, str]:
    mark = Line2D([], [], color=colour, lw=1.3, ls=(0, (4, 2)) if dashed else "-", ms=4, mec=colour)
    mark.set_marker("s" if dashed else "o")
    mark.set_markerfacecolor("white" if dashed else colour)
    return mark, words


# The plates of an arm -----------------------------------------------------------------------------------------------


def plates_of(found: Findings, arm: str) -> dict[str, Plate | None]:
    """Every plate of an arm by its place on the page; None where there is nothing to draw."""
    curves = Curves(found)
    plates = {
        "surface": _headline_plate(found, arm),
        "skills": _skills_plate(found, arm),
        "memory": _memory_plate(found, arm),
        "curves": _curves_plate(curves, arm),
        "override": _override_plate(found, arm),
        "override_compute": _override_compute_plate(curves, arm),
        "distance": _distance_plate(curves, arm),
    }
    suffix = f"_{arm}" if len(found.study.axes.arm) > 1 else ""
    return {name: replace(plate, name=name + suffix) if plate else None for name, plate in plates.items()}


def decays(found: Findings) -> bool:
    """Does the schedule end a budget with a decay?"""
    training = found.study.training
    return training.schedule == "wsd" and training.decay_share > 0


def _of_arm(found: Findings, arm: str) -> str:
    return f", arm {arm}" if len(found.study.axes.arm) > 1 else ""


def on_split(split: str) -> str:
    return "held-out tasks" if split == "held_out" else "training tasks"


def _headline_plate(found: Findings, arm: str) -> Plate:
    skill = found.study.shown_skills[0]
    split = found.skill_split(skill)
    bands = [b for b in (ability_band(found, arm, skill), memory_band(found, arm)) if b]
    cells = grid(found, "ability", arm, skill, split)
    alt = f"Surface of {skill}: ability by number of tasks and compute. " + _alt_cells(found, cells)
    about = (
        f"{found.study.id}{_of_arm(found, arm)}. Ability on {on_split(split)}, mean of up to {found.study.axes.replicates} "
        "replicates: 0 knows nothing, 1 the general rule; colour clipped to 0 ... 1. Bars: 95 % intervals of the "
        "boundaries; marks: where each replicate crosses. Triangles: beyond the grid."
    )
    return Plate(
        heading=f"{skill}: tasks × compute",
        about=about,
        key=tuple(_SURFACE_KEY[b.colour] for b in bands),
        panels=(_surface(found, cells, bands, skill, alt),),
    )


def _alt_cells(found: Findings, cells: list[list[Cell]]) -> str:
    rows = zip(sorted(found.study.axes.n_tasks), cells, strict=True)
    return " ".join(f"{number(n)} tasks: {', '.join(decimal(c.value) for c in line)}." for n, line in rows)


def has_values(cells: list[list[Cell]]) -> bool:
    return any(cell.value is not None for line in cells for cell in line)


def _skills_plate(found: Findings, arm: str) -> Plate | None:
    panels = []
    for skill in found.study.shown_skills[1:]:
        split = found.skill_split(skill)
        cells = grid(found, "ability", arm, skill, split)
        if has_values(cells):
            band = ability_band(found, arm, skill)
            alt = f"Surface of {skill} on {on_split(split)}. " + _alt_cells(found, cells)
            panel = _surface(found, cells, [band] if band else [], skill, alt, small=True)
            panels.append(replace(panel, note=f"on {on_split(split)}"))
    if not panels:
        return None
    about = (
        f"{found.study.id}{_of_arm(found, arm)}. Ability, mean over replicates; colour clipped to 0 ... 1. Hatched: "
        "ability is not defined there."
    )
    return Plate(
        heading="The other skills: tasks × compute",
        about=about,
        key=(_SURFACE_KEY[RULE],),
        panels=tuple(panels),
    )


def _memory_plate(found: Findings, arm: str) -> Plate | None:
    skill = cast(Family, found.study.family).mixture
    cells = grid(found, "memory", arm, skill, "seen", "pre_decay")
    if not has_values(cells):
        return None
    band = memory_band(found, arm)
    alt = "Surface of memory on the training mixture. " + _alt_cells(found, cells)
    before = " before the decay" if decays(found) else ""
    about = (
        f"{found.study.id}{_of_arm(found, arm)}. Memory of the training tasks{before}, mean over replicates: "
        "0 no better than the general rule, 1 perfect memory; colour clipped to 0 ... 1. Hatched: not defined there."
    )
    return Plate(
        heading="Memory: tasks × compute",
        about=about,
        key=(_SURFACE_KEY[LIST],) if band else (),
        panels=(_surface(found, cells, [band] if band else [], "memory", alt, small=True),),
    )


def _curves_plate(curves: Curves, arm: str) -> Plate | None:
    found = curves.found
    skill = found.study.shown_skills[0]
    split = found.skill_split(skill)
    series = [Series("accuracy", skill, split, RULE, False)]
    if split != "seen":
        series.insert(0, Series("accuracy", skill, "seen", LIST, True))
    if not any(group[:2] == (arm, skill) for group in found.results.groups()):
        return None
    span = curves.span(arm)
    panels = []
    for n_tasks in sorted(found.study.axes.n_tasks):
        references = _references(found, arm, skill, split, n_tasks)
        known = [v for c in found.study.budgets for v in found.values("accuracy", arm, skill, split, n_tasks, c)]
        lines = ", ".join(f"{name} {decimal(value)}" for name, value in references)
        best = max((v for v in known if v is not None), default=None)
        alt = f"{skill} accuracy against compute, {number(n_tasks)} tasks; best {decimal(best)}; {lines}."
        panels.append(_curve_panel(curves, arm, n_tasks, series, references, span, alt))
    return Plate(
        heading=f"{skill}: accuracy along training",
        about=f"{found.study.id}{_of_arm(found, arm)}. Every replicate is a line; a mark is the end of a budget"
        f"{', after its decay' if decays(found) else ''}. Reference values are those on {on_split(split)}.",
        key=_curves_key(split),
        panels=tuple(panels),
    )


def _curves_key(split: str) -> tuple[tuple[Line2D, str], ...]:
    seen = (_line_key(LIST, True, "training tasks"),) if split != "seen" else ()
    return (_line_key(RULE, False, on_split(split)), *seen)


def _references(found: Findings, arm: str, skill: str, split: str, n_tasks: int) -> list[tuple[str, float]]:
    """Generaliser, memoriser and chance on the items of a skill: (name, accuracy), as far as they exist."""
    chance = cast(Family, found.study.family).chance(skill)
    named = [
        ("generaliser", found.reference_accuracy("generalizer", arm, skill, split, n_tasks)),
        ("memoriser", found.reference_accuracy("memorizer", arm, skill, split, n_tasks)),
        ("chance", chance),
    ]
    return [(name, value) for name, value in named if value is not None]


_OVERRIDE = (
    Series("probability", "override", "seen", RULE, False),
    Series("probability", "override_memory", "seen", LIST, True),
)
_OVERRIDE_KEY = (
    _line_key(RULE, False, "the context's answer"),
    _line_key(LIST, True, "the memorised answer"),
)


def _override_plate(found: Findings, arm: str) -> Plate | None:
    """P(context's answer) beside P(memorised answer) at the largest budget that has them."""
    flops = override_budget(found, arm)
    if flops is None:
        return None
    levels = sorted(found.study.axes.n_tasks)
    chance = cast(Family, found.study.family).chance("override")
    pitch = 62.0 if len(levels) <= 8 else 52.0

    def draw(ax: Axes) -> None:
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_ylim(-0.03, 1.04)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        ax.set_xticks(range(len(levels)), [number(n) for n in levels], fontsize=9.5)
        ax.tick_params(axis="x", length=0)
        ax.set_xlabel("number of training tasks", fontsize=9.5)
        ax.set_ylabel("probability", fontsize=9.5, labelpad=2)
        if chance is not None:
            ax.axhline(chance, color="#8a8a8a", lw=0.9, ls=(0, (1, 2)), zorder=1)
            _say(ax, f"chance {decimal(chance)}", (1, (chance + 0.03) / 1.07), (3, 0), va="center", fontsize=9)
        for series, side in zip(_OVERRIDE, (0.2, -0.2), strict=True):
            for i, n in enumerate(levels):
                values = found.values("probability", arm, series.skill, "seen", n, flops)
                mean = found.mean("probability", arm, series.skill, "seen", n, flops)
                _draw_dots(ax, i - side, values, mean, series)

    both = [(n, [found.mean("probability", arm, s.skill, "seen", n, flops) for s in _OVERRIDE]) for n in levels]
    words = "; ".join(f"{number(n)} tasks {decimal(a)} and {decimal(b)}" for n, (a, b) in both)
    panel = Panel(
        title=f"At {number(flops)} FLOPs",
        note="a mark is a replicate, a bar their mean",
        alt=f"Probability of the context's answer and of the memorised answer at {number(flops)} FLOPs: {words}.",
        width=pitch * len(levels),
        height=190,
        margins=Margins(42, 78, 40, 8),
        draw=draw,
    )
    return Plate(
        heading="Does the context win, or the memory?",
        about=f"{found.study.id}{_of_arm(found, arm)}, at {number(flops)} FLOPs. Two answers of a training task are "
        "swapped in the context. A mark is a replicate, a bar their mean.",
        key=_OVERRIDE_KEY,
        panels=(panel,),
    )


def override_budget(found: Findings, arm: str) -> float | None:
    """The largest budget at which both sides of the override were measured."""
    for flops in reversed(found.study.budgets):
        cells = [
            [found.mean("probability", arm, s.skill, "seen", n, flops) for s in _OVERRIDE]
            for n in found.study.axes.n_tasks
        ]
        if any(None not in pair for pair in cells):
            return flops
    return None


def _draw_dots(ax: Axes, x: float, values: Sequence[float | None], mean: float | None, series: Series) -> None:
    """Replicates side by side, in order, with their mean as a bar."""
    known = [(r, v) for r, v in enumerate(values) if v is not None]
    step = min(0.09, 0.3 / max(len(values), 1))
    for r, value in known:
        ax.plot(
            x + (r - (len(values) - 1) / 2) * step,
            value,
            marker="s" if series.dashed else "o",
            ms=4.5 if len(values) < 8 else 3,
            mfc="white" if series.dashed else series.colour,
            color=series.colour,
            mew=1,
            zorder=4,
        )
    if mean is not None and len(known) > 1:
        ax.plot([x - 0.17, x + 0.17], [mean, mean], color=series.colour, lw=1.2, zorder=3)


def _override_compute_plate(curves: Curves, arm: str) -> Plate | None:
    found = curves.found
    if override_budget(found, arm) is None:
        return None
    chance = cast(Family, found.study.family).chance("override")
    references = [("chance", chance)] if chance is not None else []
    span = curves.span(arm)
    panels = tuple(
        _curve_panel(
            curves,
            arm,
            n,
            _OVERRIDE,
            references,
            span,
            f"The same two probabilities against compute, {number(n)} tasks.",
        )
        for n in sorted(found.study.axes.n_tasks)
    )
    return Plate(
        heading="Context against memory along training",
        about=f"{found.study.id}{_of_arm(found, arm)}. Probability of the two answers; every replicate is a line, a mark "
        "is the end of a budget.",
        key=_OVERRIDE_KEY,
        panels=panels,
    )


def _distance_plate(curves: Curves, arm: str) -> Plate | None:
    """The relative distance along training, for families that offer it."""
    found = curves.found
    series = Series("d_rel", cast(Family, found.study.family).mixture, "seen", LIST, False)
    replicates = range(found.study.axes.replicates)
    tracks = {
        n: [found.results.curve("d_rel", arm, series.skill, "seen", n, r) for r in replicates]
        for n in sorted(found.study.axes.n_tasks)
    }
    steps = [s for many in tracks.values() for one in many for s in one.steps.tolist() if s > 0]
    values = [v for many in tracks.values() for one in many for v in one.values.tolist()]
    if not steps:
        return None
    span = (min(steps) / 1.2, max(steps) * 1.2)
    heights = (max(min(*values, -0.05), -0.5), min(max(*values, 1.05), 1.5)) if len(values) > 1 else (-0.05, 1.05)
    panels = []
    for n, many in tracks.items():
        crossings = [findings.crossing(found, arm, n, r) for r in replicates]
        panels.append(_distance_panel(n, many, crossings, span, heights))
    return Plate(
        heading="From counting to remembering",
        about=f"{found.study.id}{_of_arm(found, arm)}. Relative distance along training: 0 predicts like the generaliser, "
        "1 like the memoriser. Every replicate is a line; a diamond is its crossing of one half.",
        panels=tuple(panels),
    )


def _distance_panel(
    n_tasks: int,
    tracks: list[Along],
    crossings: list[float | None],
    span: tuple[float, float],
    heights: tuple[float, float],
) -> Panel:
    def draw(ax: Axes) -> None:
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
        for one in tracks:
            if len(one.steps):
                ax.plot(one.steps, one.values, color=LIST, lw=1.1, zorder=3)
        for step in crossings:
            if step is not None:
                ax.plot(step, 0.5, marker="D", ms=5, mfc="white", mec=LIST, mew=1.3, zorder=5)

    seen = [number(round(step)) for step in crossings if step is not None]
    missed = len(crossings) - len(seen)
    note = f"crosses ½ at step {', '.join(seen)}" if seen else "no crossing of ½ seen"
    if seen and missed:
        note += f"; {missed} of {len(crossings)} not seen to"
    return Panel(
        title=f"{number(n_tasks)} task" + ("s" if n_tasks > 1 else ""),
        note=note,
        alt=f"Relative distance along training, {number(n_tasks)} tasks: {note}.",
        width=230,
        height=150,
        margins=Margins(28, 12, 34, 8),
        draw=draw,
    )
