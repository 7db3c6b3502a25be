"""Figures as SVG text, in CSS pixels. Uses no study: values and words come from the callers.

A figure is one or more panels. The page shows each panel at its own size, so that text keeps its size on a phone. As a file,
`figures/<name>.svg` holds all panels on one sheet, and `figures/<name>.csv` holds their numbers. Arguments `kind` are CSS
classes of `palette.py`. Coordinates are pixels from the upper left corner, y downwards.
"""

from __future__ import annotations

import csv
import html
import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from orchestrator.formatting import number
from orchestrator.report.palette import NOTEBOOK, file_css, notebook_css
from orchestrator.terminal import printable

Point = tuple[float, float]
"""(x, y), in pixels or in values of the axes."""
Row = dict[str, Any]
"""A row of a figure's CSV: values by column. Missing is None."""


def _n(value: float) -> str:
    """A length in pixels with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _safe(words: str) -> str:
    """Text for SVG and HTML: escaped, without control characters."""
    return html.escape(printable(words), quote=True)


def width_of(words: str, size: float = 12) -> float:
    """Estimated width of a text in pixels, at a font size in pixels: 0.58 of it a letter (assumed; digits take 0.56)."""
    return 0.58 * size * len(words)


class Drawing:
    """An SVG picture that is built shape by shape. `kind` holds the CSS classes of a shape, `title` its tooltip."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Add a straight line."""
        self.parts.append(f'<line class="{kind}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>')

    def path(self, strokes: Iterable[Sequence[Point]], kind: str, title: str = "") -> None:
        """Add lines through the points of each stroke, as one element. Strokes of fewer than two points are left out."""
        drawn = " ".join("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in stroke) for stroke in strokes if len(stroke) > 1)
        if drawn:
            self.parts.append(self._titled("path", f'class="{kind}" d="{drawn}"', title))

    def area(self, points: Sequence[Point], kind: str) -> None:
        """Add a filled polygon."""
        self.parts.append(f'<polygon class="{kind}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>')

    def mark(self, x: float, y: float, kind: str, shape: str = "round", title: str = "", size: float = 3.4) -> None:
        """Add a mark centred at (x, y): `round`, `square`, `cross`, or triangles `up` and `down` for values beyond the axes.

        size: half of its width in pixels.
        """
        if shape == "round":
            self.parts.append(self._titled("circle", f'class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{size:g}"', title))
            return
        s = size
        shapes = {
            "square": f"M{_n(x - s)} {_n(y - s)}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z",
            "cross": f"M{_n(x - s)} {_n(y - s)}l{2 * s:g} {2 * s:g}m{-2 * s:g} 0l{2 * s:g} {-2 * s:g}",
            "up": f"M{_n(x - s)} {_n(y + s)}h{2 * s:g}l{-s:g} {-1.7 * s:g}z",
            "down": f"M{_n(x - s)} {_n(y - s)}h{2 * s:g}l{-s:g} {1.7 * s:g}z",
        }
        self.parts.append(self._titled("path", f'class="{kind}" d="{shapes[shape]}"', title))

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Add a line of text with its baseline at y. It begins at x, unless `kind` has m (centred) or e (ends at x)."""
        self.parts.append(f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{_safe(words)}</text>')

    def cell(
        self, x: float, y: float, width: float, height: float, kind: str, words: Sequence[str], title: str
    ) -> None:
        """Add a rectangle with one or two lines of text in its middle. (x, y) is its upper left corner."""
        box = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"/>'
        top = y + height / 2 + 4.5 - 7 * (len(words) - 1)
        lines = [
            f'<text class="m" x="{_n(x + width / 2)}" y="{_n(top + 14 * k)}">{_safe(w)}</text>'
            for k, w in enumerate(words)
        ]
        tip = f"<title>{_safe(title)}</title>" if title else ""
        self.parts.append(f'<g class="{kind}">{tip}{box}{"".join(lines)}</g>')

    @staticmethod
    def _titled(name: str, attributes: str, title: str) -> str:
        return f"<{name} {attributes}>" + (f"<title>{_safe(title)}</title></{name}>" if title else f"</{name}>")

    def render(self, alt: str) -> Markup:
        """The picture as an <svg> element; `alt` describes it for readers who cannot see it."""
        return Markup(
            f'<svg role="img" aria-label="{_safe(alt)}" width="{_n(self.width)}" height="{_n(self.height)}" '
            f'viewBox="0 0 {_n(self.width)} {_n(self.height)}">{"".join(self.parts)}</svg>'
        )


@dataclass(kw_only=True)
class Panel:
    """One picture of a figure, with its numbers."""

    title: str = ""
    note: str = ""
    """A line under the title."""
    alt: str
    """A description for readers who cannot see the picture."""
    drawing: Drawing
    rows: list[Row] = field(default_factory=list)
    """The values in the picture, for the figure's CSV file."""

    @property
    def picture(self) -> Markup:
        """The <svg> element for the page."""
        return self.drawing.render(self.alt)


@dataclass(kw_only=True)
class Figure:
    """Panels with a common title and key; one section of the page, one SVG and one CSV file."""

    name: str
    """The name of its files and of its anchor on the page."""
    title: str
    sentence: str
    """One sentence on the result in the figure."""
    panels: list[Panel]
    key: Sequence[tuple[int, str, str]] = ()
    """The key: (index of a colour in `Palette.series`, mark as in `Drawing.mark`, name) of each series."""
    note: str = ""
    """A reading aid, if the axes do not suffice."""

    @property
    def pictures(self) -> int:
        """Length of the panels' SVG text; the page compares it with MAX_FIGURE_BYTES."""
        return sum(len(part) for panel in self.panels for part in panel.drawing.parts)

    @property
    def swatches(self) -> list[tuple[Markup, str]]:
        """The key for the page: (small picture, name) of each series."""
        return [(_swatch(colour, mark), words) for colour, mark, words in self.key]


def _swatch(colour: int, mark: str) -> Markup:
    """The small picture of a series in the key: its line and its mark."""
    drawing = Drawing(28, 12)
    drawing.line(1, 6, 27, 6, f"s{colour} mid{' dash' if mark == 'square' else ''}")
    drawing.mark(14, 6, f"{'o' if mark == 'square' else 'f'}{colour} mid", mark)
    return Markup(f'<svg aria-hidden="true" width="28" height="12" viewBox="0 0 28 12">{"".join(drawing.parts)}</svg>')


def sheet(figure: Figure, study: str, columns: int = 3, in_notebook: bool = False) -> bytes:
    """All panels of a figure on one sheet, as a self-contained SVG file. study: its id, for the title. columns: panels in a row.

    in_notebook: its style leaves the page around it alone, and has dark colours too.
    """
    columns = min(columns, len(figure.panels))
    cell_w = max(panel.drawing.width for panel in figure.panels) + 20
    notes = [textwrap.wrap(panel.note, int(cell_w / 6.4)) for panel in figure.panels]
    titled = any(p.title for p in figure.panels) * 21 + 15 * max(map(len, notes)) + 4
    cell_h = max(panel.drawing.height for panel in figure.panels) + titled + 8
    width = max(columns * cell_w + 12, 460)
    head = Drawing(width, 0)
    head.text(12, 24, f"{study}: {figure.title}", "b big")
    lines = textwrap.wrap(" ".join(filter(None, (figure.sentence, figure.note))), int((width - 24) / 6.4))
    for k, words in enumerate(lines):
        head.text(12, 44 + 16 * k, words, "g")
    top = 44 + 16 * len(lines) + (22 if figure.key else 4)
    x = 12.0
    for colour, mark, words in figure.key:
        head.line(x, top - 18, x + 26, top - 18, f"s{colour} mid{' dash' if mark == 'square' else ''}")
        head.mark(x + 13, top - 18, f"{'o' if mark == 'square' else 'f'}{colour} mid", mark)
        head.text(x + 32, top - 14, words)
        x += 52 + width_of(words)
    body = []
    for k, panel in enumerate(figure.panels):
        left, up = 12 + (k % columns) * cell_w, top + (k // columns) * cell_h
        head.text(left, up + 14, panel.title, "b")
        for m, words in enumerate(notes[k]):
            head.text(left, up + 29 + 15 * m, words, "g")
        size = f'width="{_n(panel.drawing.width)}" height="{_n(panel.drawing.height)}"'
        body.append(
            f'<svg x="{_n(left)}" y="{_n(up + titled)}" {size} overflow="visible">{"".join(panel.drawing.parts)}</svg>'
        )
    height = top + math.ceil(len(figure.panels) / columns) * cell_h
    kind, style = (f' class="{NOTEBOOK}"', notebook_css()) if in_notebook else ("", file_css())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"{kind} width="{_n(width)}" height="{_n(height)}" '
        f'viewBox="0 0 {_n(width)} {_n(height)}"><style>{style}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(head.parts)}{"".join(body)}</svg>\n'
    ).encode(errors="replace")


def table(rows: Sequence[Row]) -> bytes:
    """Rows as a CSV file; columns in the order in which they first appear, empty fields for missing values."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: printable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode(errors="replace")


# Axes ---------------------------------------------------------------------------------------------------------------


class Axes:
    """Axes of a figure: they convert values to pixels, and draw frame, ticks and names.

    box: (left, top, right, bottom) in pixels. across, up: (lowest, highest) value of the horizontal and the vertical scale.
    log: whether the horizontal scale is logarithmic. The vertical one is linear.
    """

    def __init__(
        self,
        drawing: Drawing,
        box: tuple[float, float, float, float],
        across: tuple[float, float],
        up: tuple[float, float],
        log: bool = True,
    ) -> None:
        self.drawing, self.across, self.up, self.log = drawing, across, up, log
        self.left, self.top, self.right, self.bottom = box

    def x(self, value: float) -> float:
        """x in pixels of a value on the horizontal scale."""
        low, high = self.across
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """y in pixels of a value on the vertical scale, clipped to it."""
        low, high = self.up
        return self.bottom - (min(max(value, low), high) - low) / (high - low) * (self.bottom - self.top)

    def beyond(self, value: float) -> str:
        """The mark for a value outside the vertical scale, `down` or `up`; "" for one inside."""
        return "down" if value < self.up[0] else "up" if value > self.up[1] else ""

    def frame(self, ticks: Sequence[tuple[float, str]], title: str, x_title: str) -> None:
        """Draw horizontal lines at the ticks of the vertical scale, (value, name), and the titles of both axes."""
        d = self.drawing
        for value, words in ticks:
            d.line(self.left, self.y(value), self.right, self.y(value), "axis dot" if words == "½" else "grid")
            d.text(self.left - 6, self.y(value) + 4, words, "e")
        d.text(2, self.top - 9, title, "g")
        d.text((self.left + self.right) / 2, self.bottom + 34, x_title, "g m")
        d.line(self.left, self.bottom, self.right, self.bottom, "axis")

    def names(self, places: Sequence[float], words: Sequence[str]) -> None:
        """Draw names below the horizontal axis at these values; names that would overlap are left out (`spaced`)."""
        for x, name in spaced([self.x(place) for place in places], words):
            self.drawing.text(x, self.bottom + 17, name, "m")


HALVES = ((0.0, "0"), (0.5, "½"), (1.0, "1"))
"""Ticks for ability and memory, (value, name)."""


def spaced(at: Sequence[float], words: Sequence[str], size: float = 12) -> list[tuple[float, str]]:
    """(pixel, name) of the names to draw: all, or every second, third, ... counted from the last, so that none overlap.

    at: centre of each name in pixels. words: the names. size: font size in pixels.
    """
    named = list(zip(at, words, strict=True))
    for stride in range(1, len(named)):
        kept = named[::-1][::stride][::-1]
        gaps = [b[0] - a[0] - (width_of(a[1], size) + width_of(b[1], size)) / 2 for a, b in pairwise(kept)]
        if all(gap >= 5 for gap in gaps):
            return kept
    return named[-1:]


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Positions for labels, in the order given: at their values, or increased until any two differ by at least `gap`."""
    places = [0.0] * len(values)
    last = -math.inf
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        last = places[i] = max(values[i], last + gap)
    return places


def compute_ticks(axes: Axes, places: Sequence[float]) -> None:
    """Draw names below the horizontal axis at these values (budgets, or powers of ten), as far as they lie inside."""
    inside = [place for place in places if axes.across[0] <= place <= axes.across[1]]
    axes.names(inside, [number(place) for place in inside])
