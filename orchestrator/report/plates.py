"""What every figure is made of: panels on plates, as inline SVG, as files, as numbers. Knows no study.

A panel is drawn once, on a Sheet, which notes what is drawn on it: the page's script shows these notes where a reader
points, and the CSV beside a figure is their numbers. On the page each panel is a picture of its own, so that plates can wrap
on a narrow screen; as a file (for MLflow, for a README) a plate is these same pictures on one sheet that explains itself.
Lengths are CSS pixels, which are points of the figure.
"""

from __future__ import annotations

from orchestrator.report import surroundings  # noqa: F401 - before anything else loads matplotlib

# isort: split
import base64
import contextlib
import csv
import hashlib
import html
import io
import itertools
import math
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from orchestrator.formatting import number
from orchestrator.terminal import printable

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
    "text.parse_math": False,  # names may hold dollars; `_image` has the one formula that there is
}

PNG_DPI, FINE_COLOURS = 144, 256
"""Two pixels for one of CSS. So many colours cannot be told from all, and take a third of the bytes (measured)."""

MAX_SVG_BYTES = 60_000
"""A panel with more marks than this holds goes on the page as PNG, if that is smaller (assumed: 1,500 marks)."""

COARSE_BYTES, COARSE_COLOURS = 12_000, 64
"""Where a page has very many panels, larger SVGs become PNGs of few colours: 6 to 13 kB each, surfaces of 480 cells 60
(measured). With fewer colours, or by median cut, vermilion on a yellow surface turned brown."""


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw in the report's style, whatever a matplotlibrc, a notebook or TeX settings say outside; these stay as they are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a name in letters that DejaVu lacks: the SVG still has them
        yield


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


class Spoken(NamedTuple):
    """How the values of a series are told where a reader points: `before` 0.982 `after`; and its colour."""

    before: str
    after: str
    colour: str


MANY = 400
"""A series with more marks than this in a panel draws those on the same pixel once (assumed; a panel is some 200 pixels wide)."""


@dataclass(kw_only=True)
class Sheet:
    """What a panel is drawn on: its axes, and notes of what is there. Set the limits of the axes before noting places."""

    axes: Axes
    panel: str
    rows: list[Row] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    places: list[tuple[float, float]] = field(default_factory=list)
    """Where the points are: in the units of the axes, once the sheet is settled in CSS pixels from the upper left corner."""
    areas: list[Area] = field(default_factory=list)
    strokes: list[list[list[int]]] = field(default_factory=list)
    """Each is one replicate's lines, as runs of indices of points."""
    series: dict[str, Spoken] = field(default_factory=dict)
    """By their name in the rows: those whose points have no words of their own."""
    merged: int = 0
    """Marks that are not drawn, because another one of their series is on the same pixel."""

    def row(self, **values: Any) -> Row:
        """Note a row of the CSV; its columns are COLUMNS, and any others that this figure needs."""
        values["panel"] = self.panel
        self.rows.append(values)
        return values

    def point(self, x: float, y: float, row: Row | None = None, says: str = "", stroke: int | None = None) -> int:
        """Note a mark at (x, y) in the units of the axes, and what it is: a row, or words. Returns its index."""
        self.points.append(Point(row or {}, says, stroke))
        self.places.append((x, y))
        return len(self.points) - 1

    def area(self, left: float, bottom: float, right: float, top: float, says: str) -> None:
        """Note a rectangle, in the units of the axes, and its words."""
        self.areas.append(Area(left, bottom, right - left, top - bottom, says))

    def marks(self, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, **style: Any) -> None:
        """Draw the marks of a series as one artist: an artist each is what took a minute for 10,000 trials."""
        places = np.column_stack([np.asarray(x, float), np.asarray(y, float)])  # (marks, 2)
        if len(places) > MANY:
            _, first = np.unique(np.round(self.axes.transData.transform(places)), axis=0, return_index=True)
            self.merged += len(places) - len(first)
            places = places[np.sort(first)]
        if len(places):
            self.axes.plot(*places.T, ls="", **style)

    def settle(self) -> None:
        """Turn the units of the axes into pixels, all at once: one at a time is slow. Then the axes are let go, because a
        hundred figures are a gigabyte: nothing is drawn after it."""
        self.places = self._pixels(self.places)
        corners = self._pixels([(area.x, area.y) for area in self.areas])
        others = self._pixels([(area.x + area.width, area.y + area.height) for area in self.areas])
        self.areas = [
            Area(left, top, right - left, bottom - top, area.says)
            for area, (left, bottom), (right, top) in zip(self.areas, corners, others, strict=True)
        ]
        del self.axes

    def _pixels(self, places: list[tuple[float, float]]) -> list[tuple[float, float]]:
        figure = cast(Figure, self.axes.figure)
        if not places:
            return []
        across, up = self.axes.transData.transform(places).T * 72 / figure.dpi
        return list(zip(across.tolist(), (figure.bbox.height * 72 / figure.dpi - up).tolist(), strict=True))


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
    """At least: they grow where words stick out."""
    draw: Callable[[Sheet], None]
    least: float = 0.88
    """How far a narrow screen may shrink the panel before it scrolls: no text below 8 pixels."""


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


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A panel that has been drawn, once: every form in which it is shown is made of these."""

    panel: Panel
    sheet: Sheet
    box: tuple[float, float]
    """Width and height with margins."""
    svg: str
    image: Image.Image
    """See-through around its axes."""


def draw(panel: Panel, salt: str) -> Drawn:
    """Draw a panel; `salt` sets its marks apart from those of the other drawings on a page."""
    m = panel.margins
    figure = _blank(panel.width + m.left + m.right, panel.height + m.bottom + m.top)
    figure.patch.set_alpha(0)
    sheet = Sheet(axes=figure.add_axes((0, 0, 1, 1)), panel=panel.title)
    _margins(sheet.axes, panel, m)
    sheet.axes.tick_params(length=3, width=0.8, pad=3)
    panel.draw(sheet)
    _margins(sheet.axes, panel, _roomier(sheet.axes, m))
    sheet.settle()
    width, height = (figure.get_size_inches() * 72).tolist()
    return Drawn(panel=panel, sheet=sheet, box=(width, height), svg=_svg(figure, salt), image=_image(figure))


def _margins(axes: Axes, panel: Panel, m: Margins) -> None:
    """Give the figure its size and its axes their place in it."""
    width, height = panel.width + m.left + m.right, panel.height + m.bottom + m.top
    cast(Figure, axes.figure).set_size_inches(width / 72, height / 72)
    axes.set_position((m.left / width, m.bottom / height, panel.width / width, panel.height / height))


def _roomier(axes: Axes, m: Margins) -> Margins:
    """The margins, grown where an axis title, a tick's name or a label would be cut off: a figure of one cell is narrower
    than the words below it."""
    figure = cast(Figure, axes.figure)
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    labels = [text for text in axes.texts if isinstance(text, Annotation)]  # other texts lie within the axes
    words = axes.get_tightbbox(renderer, bbox_extra_artists=cast(Any, labels))
    if words is None:
        return m
    frame = cast(Bbox, figure.bbox)
    out = (-words.x0, words.x1 - frame.width, -words.y0, words.y1 - frame.height)
    return Margins(*(side + max(0.0, math.ceil(by + 1)) for side, by in zip(m, out, strict=True)))


def _frame(plate: Plate, drawn: Sequence[Drawn]) -> tuple[Figure, list[tuple[float, float]]]:
    """All of a plate but its panels: heading, sentence, key, titles; and each panel's upper left corner."""
    columns = min(plate.columns, len(drawn))
    cell_w = max(max(one.box[0] for one in drawn), 460 / columns)
    titled = len(drawn) > 1 or bool(drawn[0].panel.note)
    cell_h = max(one.box[1] for one in drawn) + titled * (36 if any(p.note for p in plate.panels) else 22)
    lines = math.ceil(len(drawn) / columns)
    width = columns * cell_w + 24
    per_line = int((width - 24) / 5.6)
    about = textwrap.wrap(f"{plate.about} {merged_words(drawn)}", per_line)
    heading = textwrap.wrap(plate.heading, int(per_line * 0.74))
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
    corners = []
    for i, one in enumerate(drawn):
        x, y = 12 + (i % columns) * cell_w, head + (i // columns) * cell_h
        if titled:
            say(x + 2, y + 4, one.panel.title, fontsize=11, fontweight="bold")
            say(x + 2, y + 19, one.panel.note, fontsize=9, color=GREY)
        corners.append((x, y + cell_h - one.box[1]))
    return figure, corners


def merged_words(drawn: Sequence[Drawn]) -> str:
    """What is not drawn of these panels, as a sentence; nothing where all is."""
    merged = sum(one.sheet.merged for one in drawn)
    return (
        f"Of marks that share a pixel only one is drawn ({number(merged)} are not); the CSV has all." if merged else ""
    )


class Files(NamedTuple):
    """A plate as files: what MLflow shows, and the numbers."""

    svg: bytes
    png: bytes
    csv: bytes
    frame: str
    """The SVG without what is in its panels: the page has these already, and its script puts them back."""


def files_of(plate: Plate, drawn: Sequence[Drawn]) -> Files:
    """The plate as files. `drawn` are its panels."""
    figure, corners = _frame(plate, drawn)
    rows = [row for one in drawn for row in one.sheet.rows]
    around = _svg(figure, plate.name)
    whole, scale = _image(figure), PNG_DPI / 72
    for one, (x, y) in zip(drawn, corners, strict=True):
        whole.alpha_composite(one.image, (round(x * scale), round(y * scale)))
    nested = [_nested(one, *corner) for one, corner in zip(drawn, corners, strict=True)]
    empty = [f"{svg[: svg.index('>') + 1]}</svg>" for svg in nested]
    return Files(
        svg=around.replace("</svg>", "".join(nested) + "</svg>").encode(),
        png=_png(_of_colours(whole.convert("RGB"), FINE_COLOURS)),
        csv=csv_of([*rows, *plate.rows]),
        frame=around.replace("</svg>", "".join(empty) + "</svg>"),
    )


def _nested(drawn: Drawn, x: float, y: float) -> str:
    """A panel's drawing within another one, at a place."""
    width, height = drawn.box
    shape = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return _reopened(drawn.svg, f'{shape} overflow="visible"')


def _reopened(svg: str, attributes: str) -> str:
    """A drawing whose first tag has only its box, the reader's font and these attributes."""
    root = re.match(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', svg)
    assert root is not None
    return f'<svg font-family="{FONTS}" viewBox="{root[1]}" {attributes}>{svg[root.end() :]}'


def csv_of(rows: Sequence[Row]) -> bytes:
    """Rows as CSV: the columns that any of them uses, floats to their last digit, nothing where a value is missing."""
    named = dict.fromkeys(itertools.chain.from_iterable(rows))
    used = {name for name in named if any(row.get(name) not in (None, "") for row in rows)}
    columns = [name for name in (*COLUMNS, *(name for name in named if name not in COLUMNS)) if name in used]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(list(map(row.get, columns)) for row in rows)
    return text.getvalue().encode(errors="replace")


def _image(figure: Figure) -> Image.Image:
    """A figure as a picture, in which K_A and K_M have their letter below the line."""
    plain = {text: text.get_text() for text in figure.findobj(Text) if re.search(r"K_[AM]", text.get_text())}
    for text, words in plain.items():
        text.set_text(re.sub(r"K_([AM])", r"$K_\1$", words.replace("$", r"\$")))
        text.set_parse_math(True)
    pixels = io.BytesIO()
    figure.savefig(pixels, format="rgba", dpi=PNG_DPI)
    for text, words in plain.items():
        text.set_text(words)
        text.set_parse_math(False)
    width, height = (figure.get_size_inches() * PNG_DPI).astype(int).tolist()  # rounded as the renderer does
    return Image.frombytes("RGBA", (width, height), pixels.getvalue())


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


def _svg(figure: Figure, salt: str) -> str:
    """A figure as SVG: deterministic, without prolog and metadata, two decimals, in the reader's font."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = printable(buffer.getvalue())  # XML has no control characters
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


def inline(panel: Panel, salt: str) -> Inline:
    """A panel for a page: a picture that shrinks with its box."""
    return shown(draw(panel, salt))


def shown(drawn: Drawn, coarse: bool = False) -> Inline:
    """A drawn panel for a page; `coarse`: as a small PNG, if it is large."""
    panel, (width, _) = drawn.panel, drawn.box
    style = f"width:{width * 1.15:.0f}px;min-width:{width * panel.least:.0f}px"
    if len(drawn.svg) > (COARSE_BYTES if coarse else MAX_SVG_BYTES):
        png = _png(_of_colours(_on_paper(drawn.image), COARSE_COLOURS if coarse else FINE_COLOURS))
        if 4 / 3 * len(png) < len(drawn.svg):  # in base64
            return Inline(_picture(png, drawn), style)
    return Inline(Markup(_reopened(drawn.svg, f'role="img" aria-label="{html.escape(panel.alt)}"')), style)


def _of_colours(image: Image.Image, colours: int) -> Image.Image:
    """The same picture with so many colours."""
    return image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _on_paper(image: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return paper.convert("RGB")


def _picture(png: bytes, drawn: Drawn) -> Markup:
    width, height = drawn.box
    shape = f'alt="{html.escape(drawn.panel.alt)}" width="{width:.0f}" height="{height:.0f}"'
    return Markup(f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" {shape}>')


def line_key(colour: str, dashed: bool, words: str) -> tuple[Line2D, str]:
    """A line with its mark, for a plate's key."""
    mark = Line2D([], [], color=colour, lw=1.3, ls=(0, (4, 2)) if dashed else "-", ms=4, mec=colour)
    mark.set_marker("s" if dashed else "o")
    mark.set_markerfacecolor("white" if dashed else colour)
    return mark, words
