"""Figures as SVG text, drawn in CSS pixels with the classes of `palette.py`. Knows no study.

A figure is one or more panels. The page shows each panel at its own size, so that text keeps its size on a phone. As a file,
`figures/<name>.svg` holds all panels on one sheet, and `figures/<name>.csv` holds their numbers.
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
from orchestrator.report.palette import file_css
from orchestrator.terminal import printable

Point = tuple[float, float]
Row = dict[str, Any]
"""A row of a figure's CSV: values by column. Missing is None."""


def _n(value: float) -> str:
    """A length in at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _safe(words: str) -> str:
    return html.escape(printable(words), quote=True)


def width_of(words: str, size: float = 12) -> float:
    """Estimated width of a text in pixels: 0.58 of its size a letter (assumed; digits of common fonts take 0.56)."""
    return 0.58 * size * len(words)


class Drawing:
    """An SVG that grows from shapes. Every shape takes CSS classes; y runs downwards."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.parts.append(f'<line class="{kind}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>')

    def path(self, strokes: Iterable[Sequence[Point]], kind: str, title: str = "") -> None:
        """Broken lines as one element; strokes of fewer than two points are left out."""
        drawn = " ".join("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in stroke) for stroke in strokes if len(stroke) > 1)
        if drawn:
            self.parts.append(self._titled("path", f'class="{kind}" d="{drawn}"', title))

    def area(self, points: Sequence[Point], kind: str) -> None:
        """A filled polygon."""
        self.parts.append(f'<polygon class="{kind}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>')

    def mark(self, x: float, y: float, kind: str, shape: str = "round", title: str = "", size: float = 3.4) -> None:
        """A mark: `round`, `square`, `cross`, or `up` and `down` for a value beyond the edge."""
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
        """A line of text with its baseline at y."""
        self.parts.append(f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{_safe(words)}</text>')

    def cell(
        self, x: float, y: float, width: float, height: float, kind: str, words: Sequence[str], title: str
    ) -> None:
        """A cell of a surface with one or two lines of text in its middle."""
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
        """The whole picture for a page; `alt` is its text for readers who cannot see it."""
        return Markup(
            f'<svg role="img" aria-label="{_safe(alt)}" width="{_n(self.width)}" height="{_n(self.height)}" '
            f'viewBox="0 0 {_n(self.width)} {_n(self.height)}">{"".join(self.parts)}</svg>'
        )


@dataclass(kw_only=True)
class Panel:
    """One picture of a figure."""

    title: str = ""
    note: str = ""
    """A line under the title."""
    alt: str
    """The picture in words."""
    drawing: Drawing
    rows: list[Row] = field(default_factory=list)

    @property
    def picture(self) -> Markup:
        """As the page shows it."""
        return self.drawing.render(self.alt)


@dataclass(kw_only=True)
class Figure:
    """Panels that belong together."""

    name: str
    """The name of its files and of its anchor on the page."""
    title: str
    sentence: str
    """One sentence on the result in the figure."""
    panels: list[Panel]
    key: Sequence[tuple[int, str, str]] = ()
    """Series as (colour, mark, words)."""
    note: str = ""
    """A reading aid, if the axes do not suffice."""

    @property
    def pictures(self) -> int:
        """Bytes that the panels take on a page."""
        return sum(len(part) for panel in self.panels for part in panel.drawing.parts)

    @property
    def swatches(self) -> list[tuple[Markup, str]]:
        """The key: a small picture and its words."""
        return [(_swatch(colour, mark), words) for colour, mark, words in self.key]


def _swatch(colour: int, mark: str) -> Markup:
    drawing = Drawing(28, 12)
    drawing.line(1, 6, 27, 6, f"s{colour} mid{' dash' if mark == 'square' else ''}")
    drawing.mark(14, 6, f"{'o' if mark == 'square' else 'f'}{colour} mid", mark)
    return Markup(f'<svg aria-hidden="true" width="28" height="12" viewBox="0 0 28 12">{"".join(drawing.parts)}</svg>')


def sheet(figure: Figure, study: str, columns: int = 3) -> bytes:
    """All panels of a figure on one sheet, as an SVG file that needs nothing else."""
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
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(width)}" height="{_n(height)}" '
        f'viewBox="0 0 {_n(width)} {_n(height)}"><style>{file_css()}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(head.parts)}{"".join(body)}</svg>\n'
    ).encode(errors="replace")


def table(rows: Sequence[Row]) -> bytes:
    """Rows as CSV; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: printable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode(errors="replace")


# Axes ---------------------------------------------------------------------------------------------------------------


class Axes:
    """A rectangle of a drawing with its scales: across either logarithmic or a column a category, up linear."""

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
        """Pixels of a value across."""
        low, high = self.across
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """Pixels of a value up, cut to the axes."""
        low, high = self.up
        return self.bottom - (min(max(value, low), high) - low) / (high - low) * (self.bottom - self.top)

    def beyond(self, value: float) -> str:
        """The mark at the edge for a value outside: `down`, `up`, or nothing."""
        return "down" if value < self.up[0] else "up" if value > self.up[1] else ""

    def frame(self, ticks: Sequence[tuple[float, str]], title: str, x_title: str) -> None:
        """Lines across at the ticks, their names, and the titles of both axes."""
        d = self.drawing
        for value, words in ticks:
            d.line(self.left, self.y(value), self.right, self.y(value), "axis dot" if words == "½" else "grid")
            d.text(self.left - 6, self.y(value) + 4, words, "e")
        d.text(2, self.top - 9, title, "g")
        d.text((self.left + self.right) / 2, self.bottom + 34, x_title, "g m")
        d.line(self.left, self.bottom, self.right, self.bottom, "axis")

    def names(self, places: Sequence[float], words: Sequence[str]) -> None:
        """Names below the axis, as many as do not touch; the last one always."""
        for x, name in spaced([self.x(place) for place in places], words):
            self.drawing.text(x, self.bottom + 17, name, "m")


HALVES = ((0.0, "0"), (0.5, "½"), (1.0, "1"))
"""Ticks of ability and memory."""


def spaced(at: Sequence[float], words: Sequence[str], size: float = 12) -> list[tuple[float, str]]:
    """Every name, or every second, third, ... from the last one back, so that centred names do not touch."""
    named = list(zip(at, words, strict=True))
    for stride in range(1, len(named)):
        kept = named[::-1][::stride][::-1]
        gaps = [b[0] - a[0] - (width_of(a[1], size) + width_of(b[1], size)) / 2 for a, b in pairwise(kept)]
        if all(gap >= 5 for gap in gaps):
            return kept
    return named[-1:]


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels, in the order given: at their values, or moved up just enough to keep them apart."""
    places = [0.0] * len(values)
    last = -math.inf
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        last = places[i] = max(values[i], last + gap)
    return places


def compute_ticks(axes: Axes, places: Sequence[float]) -> None:
    """Ticks at budgets or powers of ten, named in FLOPs."""
    inside = [place for place in places if axes.across[0] <= place <= axes.across[1]]
    axes.names(inside, [number(place) for place in inside])
