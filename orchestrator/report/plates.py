"""What every figure is made of: panels on plates, as inline SVG, as files, as numbers. Knows no study.

A panel is drawn on a Sheet, which notes what is drawn on it: the page's script shows these notes where a reader points, and
the CSV beside a figure is their numbers. On the page each panel is an SVG of its own, so that plates can wrap on a narrow
screen; as a file (for MLflow, for a README) a plate is one picture that explains itself. Lengths are CSS pixels, which are
points of the figure.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from orchestrator.words import number

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
COARSE_BYTES, COARSE_DPI, COARSE_COLOURS = 12_000, 130, 32
"""Where a page has very many panels, larger SVGs become small PNGs: 5 to 10 kB each (measured)."""


# What is drawn, noted -----------------------------------------------------------------------------------------------

Row = dict[str, Any]
"""A row of a figure's CSV: values by column. Missing is None."""
COLUMNS = (
    *("panel", "series", "measure", "unit", "skill", "split", "trial", "arm", "n_tasks", "compute_flops", "replicate"),
    *("status", "phase", "step", "flops", "value", "low_tasks", "high_tasks", "verdict"),
)
"""Columns of the CSVs in their order; a figure has those that it uses, and others after them. Named as in results.parquet:
`compute_flops` is the budget of a trial, `flops` the training compute at which a value was read."""


class Point(NamedTuple):
    """A mark that a reader can point at: a row of the CSV, or words where it stands for more than one value."""

    x: float
    y: float
    """In CSS pixels from the panel's upper left corner, once the sheet is settled."""
    row: Row
    says: str
    stroke: int | None
    """Which of the strokes is shown with it."""


class Area(NamedTuple):
    """A rectangle that a reader can point at, and its words: lines, the first one large."""

    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(kw_only=True)
class Sheet:
    """What a panel is drawn on: its axes, and notes of what is there. Set the limits of the axes before noting places."""

    axes: Axes
    panel: str
    rows: list[Row] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    strokes: list[list[list[int]]] = field(default_factory=list)
    """Each is one replicate's lines, as runs of indices of points."""
    colours: dict[str, str] = field(default_factory=dict)
    """Of the series whose strokes are shown."""

    def row(self, **values: Any) -> Row:
        """Note a row of the CSV; its columns are COLUMNS, and any others that this figure needs."""
        self.rows.append({"panel": self.panel} | values)
        return self.rows[-1]

    def point(self, x: float, y: float, row: Row | None = None, says: str = "", stroke: int | None = None) -> int:
        """Note a mark at (x, y) in the units of the axes, and what it is: a row, or words. Returns its index."""
        self.points.append(Point(x, y, row or {}, says, stroke))
        return len(self.points) - 1

    def area(self, left: float, bottom: float, right: float, top: float, says: str) -> None:
        """Note a rectangle, in the units of the axes, and its words."""
        self.areas.append(Area(left, bottom, right - left, top - bottom, says))

    def settle(self) -> None:
        """Turn the units of the axes into pixels, all at once: one at a time is slow. Nothing is drawn after it."""
        across, down = self._pixels([(point.x, point.y) for point in self.points])
        self.points = [p._replace(x=x, y=y) for p, x, y in zip(self.points, across, down, strict=True)]
        left, bottom = self._pixels([(area.x, area.y) for area in self.areas])
        right, top = self._pixels([(area.x + area.width, area.y + area.height) for area in self.areas])
        self.areas = [
            Area(x, y, end - x, foot - y, area.says)
            for area, x, y, end, foot in zip(self.areas, left, top, right, bottom, strict=True)
        ]

    def _pixels(self, places: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
        figure = cast(Figure, self.axes.figure)
        if not places:
            return [], []
        across, up = self.axes.transData.transform(places).T * 72 / figure.dpi
        return across.tolist(), (figure.bbox.height * 72 / figure.dpi - up).tolist()


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
    draw: Callable[[Sheet], None]
    least: float = 0.88
    """How far a narrow screen may shrink the panel before it scrolls: no text below 8 pixels."""

    @property
    def box(self) -> tuple[float, float]:
        """Width and height with margins."""
        m = self.margins
        return self.width + m.left + m.right, self.height + m.bottom + m.top


Key = tuple[tuple[Line2D, str], ...]


@dataclass(frozen=True, kw_only=True)
class Plate:
    """Panels that belong together: one file of each kind, and one grid on the page."""

    heading: str
    about: str
    """A sentence under the heading of the file; the page says it in its own text."""
    key: Key = ()
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...] = ()
    """Rows of the CSV besides those of the panels."""
    columns: int = 3
    name: str = ""
    """Of its files; `plates_of` gives it."""


def _blank(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    return figure


def _place(figure: Figure, panel: Panel, x: float, y: float) -> Sheet:
    """Draw a panel with the lower left corner of its box at (x, y) pixels."""
    width, height = figure.get_size_inches() * 72
    m = panel.margins
    axes = figure.add_axes(((x + m.left) / width, (y + m.bottom) / height, panel.width / width, panel.height / height))
    axes.tick_params(length=3, width=0.8, pad=3)
    sheet = Sheet(axes=axes, panel=panel.title)
    panel.draw(sheet)
    sheet.settle()
    return sheet


def _together(plate: Plate) -> tuple[Figure, list[Row]]:
    """The plate as one picture: heading, sentence, key, panels in a grid with their titles; and its rows."""
    columns = min(plate.columns, len(plate.panels))
    cell_w = max(max(p.box[0] for p in plate.panels), 460 / columns)
    titled = len(plate.panels) > 1
    cell_h = max(p.box[1] for p in plate.panels) + titled * (36 if any(p.note for p in plate.panels) else 22)
    lines = math.ceil(len(plate.panels) / columns)
    width = columns * cell_w + 24
    per_line = int((width - 24) / 5.6)
    about, heading = textwrap.wrap(plate.about, per_line), textwrap.wrap(plate.heading, int(per_line * 0.74))
    head = 16 + 19 * len(heading) + 14 * len(about) + (24 if plate.key else 8)
    height = head + lines * cell_h + 8
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
    rows: list[Row] = []
    for i, panel in enumerate(plate.panels):
        x, y = 12 + (i % columns) * cell_w, head + (i // columns) * cell_h
        if titled:
            say(x + 2, y + 4, panel.title, fontsize=11, fontweight="bold")
            say(x + 2, y + 19, panel.note, fontsize=9, color=GREY)
        rows += _place(figure, panel, x, height - y - cell_h).rows
    return figure, [*rows, *plate.rows]


def files_of(plate: Plate) -> dict[str, bytes]:
    """The plate as files, by their ending: what MLflow shows, and the numbers."""
    figure, rows = _together(plate)
    return {"svg": _svg(figure, plate.name).encode(), "png": _png(figure), "csv": csv_of(rows)}


def csv_of(rows: Sequence[Row]) -> bytes:
    """Rows as CSV: the columns that any of them uses, floats to their last digit, nothing where a value is missing."""
    used = {name for row in rows for name, value in row.items() if value is not None and value != ""}
    others = dict.fromkeys(name for row in rows for name in row if name in used and name not in COLUMNS)
    columns = [*(name for name in COLUMNS if name in used), *others]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name) for name in columns] for row in rows)
    return text.getvalue().encode()


def _png(figure: Figure, dpi: int = PNG_DPI) -> bytes:
    buffer = io.BytesIO()
    texts = [t for t in figure.findobj(Text) if re.search(r"K_[AM]", t.get_text())]
    for text in texts:
        text.set_text(re.sub(r"K_([AM])", r"$K_\1$", text.get_text()))
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
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


class Inline(NamedTuple):
    """A panel for the page."""

    picture: Markup
    """Inline SVG, or a PNG where that is much smaller."""
    style: str
    """Its width, and how far it may shrink."""
    sheet: Sheet


def inline(panel: Panel, salt: str) -> Inline:
    """A panel for the page: a picture that shrinks with its box."""
    width, height = panel.box
    figure = _blank(width, height)
    sheet = _place(figure, panel, 0, 0)
    figure.patch.set_alpha(0)
    style = f"width:{width * 1.15:.0f}px;min-width:{width * panel.least:.0f}px"
    svg = _svg(figure, salt)
    if len(svg) > MAX_SVG_BYTES:
        png = _png(figure)
        if 4 / 3 * len(png) < len(svg):
            return Inline(_image(png, panel), style, sheet)
    root = re.match(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', svg)
    assert root is not None
    opening = f'<svg font-family="{FONTS}" viewBox="{root[1]}" role="img" aria-label="{html.escape(panel.alt)}">'
    return Inline(Markup(opening + svg[root.end() :]), style, sheet)


def coarser(drawn: Inline, panel: Panel) -> Inline:
    """The same panel as a small PNG, if it is large."""
    if len(drawn.picture) <= COARSE_BYTES:
        return drawn
    fine = Image.open(io.BytesIO(_png(cast(Figure, drawn.sheet.axes.figure), COARSE_DPI))).convert("RGBA")
    paper = Image.new("RGBA", fine.size, "white")
    small = io.BytesIO()
    Image.alpha_composite(paper, fine).convert("RGB").quantize(COARSE_COLOURS).save(small, "png", optimize=True)
    return drawn._replace(picture=_image(small.getvalue(), panel))


def _image(png: bytes, panel: Panel) -> Markup:
    width, height = panel.box
    shape = f'alt="{html.escape(panel.alt)}" width="{width:.0f}" height="{height:.0f}"'
    return Markup(f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" {shape}>')


# Small things that figures share ------------------------------------------------------------------------------------


def say(ax: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Small grey text, `offset` pixels off a place given in fractions of the axes."""
    style = cast(dict[str, Any], {"fontsize": 9.5, "color": GREY}) | style
    ax.annotate(text, xy, xycoords="axes fraction", xytext=offset, textcoords="offset points", **style)


def decimal(value: float | None, digits: int = 2) -> str:
    """A ratio to two decimals with a true minus sign; an em dash where it is missing."""
    if value is None or not math.isfinite(value):
        return "—"
    text = f"{value:.{digits}f}" if abs(value) < 99.5 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def line_key(colour: str, dashed: bool, words: str) -> tuple[Line2D, str]:
    """A line with its mark, for a plate's key."""
    mark = Line2D([], [], color=colour, lw=1.3, ls=(0, (4, 2)) if dashed else "-", ms=4, mec=colour)
    mark.set_marker("s" if dashed else "o")
    mark.set_markerfacecolor("white" if dashed else colour)
    return mark, words


def counted(n: float, word: str) -> str:
    """1 task, 1,024 tasks."""
    return f"{number(n)} {word}{'' if n == 1 else 's'}"
