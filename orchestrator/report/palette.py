"""Colours of pages and figures, in light and in dark, as CSS.

The colour scale of a surface diverges at 0: blue above, orange below. Colour-blind readers can distinguish blue and orange. Every
cell shows its number, so that a print in grey loses nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

STEPS = 20
"""Number of shades for values from 0 to 1, and from 0 to -1."""


class Palette(NamedTuple):
    """One colour scheme, light or dark; colours are #rrggbb."""

    paper: str
    """Background."""
    ink: str
    """Text and boundaries."""
    grey: str
    """Secondary text and axes."""
    faint: str
    """Grid lines and borders."""
    wash: str
    """Background of undefined cells."""
    scale: tuple[str, ...]
    """Colours of a surface at −1, −0.5, 0, 0.5 and 1."""
    series: tuple[str, ...]
    """Colours of curves by index: the first for ability or the first condition, the second for memory or the second condition, ...
    (Okabe and Ito 2008)."""


LIGHT = Palette(
    paper="#ffffff",
    ink="#16181c",
    grey="#5a5f66",
    faint="#dcdee2",
    wash="#f4f5f7",
    scale=("#c4640a", "#f2b878", "#f3f3f1", "#8dbae0", "#0f4f94"),
    series=("#0b5cad", "#c24e00", "#00785a", "#a8407e", "#7a6200", "#4c5560"),
)
DARK = Palette(
    paper="#15171b",
    ink="#eceef1",
    grey="#a3a9b2",
    faint="#3a3f47",
    wash="#1f2228",
    scale=("#f09a45", "#8a5526", "#2b2e34", "#36689c", "#8cc4ff"),
    series=("#74b6ff", "#ff9a52", "#3fcf9f", "#ee8fc6", "#d9bb3a", "#b4bcc7"),
)


def shade(value: float) -> str:
    """CSS class of a value's colour: `z` for a value written 0.00, `p1` to `p20` above, `n1` to `n20` below; −1 and 1 are the ends."""
    if abs(value) < 0.005:
        return "z"
    step = min(max(1, round(abs(value) * STEPS)), STEPS)
    return f"{'p' if value > 0 else 'n'}{step}"


def mix(stops: tuple[str, ...], value: float) -> tuple[int, int, int]:
    """Colour (red, green, blue) at −1 ≤ value ≤ 1, linear between the stops. stops: colours at even distances from −1 to 1."""
    place = (value + 1) * (len(stops) - 1) / 2
    i = min(int(place), len(stops) - 2)
    first, second = (tuple(int(stop[k : k + 2], 16) for k in (1, 3, 5)) for stop in stops[i : i + 2])
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ink_on(colour: tuple[int, int, int]) -> str:
    """Text colour on a background, given as (red, green, blue): black or white, the one with the higher contrast (WCAG)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def css(palette: Palette) -> str:
    """CSS rules for the figures: shades of cells, series, lines and text. They use no CSS variable, so that a lone SVG file works."""
    rules = []
    values = [0.0, *(sign * (k / STEPS) for sign in (-1, 1) for k in range(1, STEPS + 1))]
    for value in values:
        cell, name = mix(palette.scale, value), shade(value)
        rules.append(f".{name} rect{{fill:rgb{cell}}}.{name} text{{fill:{ink_on(cell)}}}")
    for k, colour in enumerate(palette.series):
        rules.append(f".s{k}{{stroke:{colour};fill:none}}.f{k}{{fill:{colour};stroke:{colour}}}")
        rules.append(f".o{k}{{fill:{palette.paper};stroke:{colour}}}.w{k}{{fill:{colour};opacity:.22;stroke:none}}")
    p = palette
    rules.append(
        f"svg text{{fill:{p.ink}}}svg .g{{fill:{p.grey}}}.paper{{fill:{p.paper}}}.grid{{stroke:{p.faint}}}"
        f".axis{{stroke:{p.grey}}}.edge{{stroke:{p.ink};fill:none}}.case{{stroke:{p.paper};fill:none}}"
        f".blank rect{{fill:{p.paper};stroke:{p.faint}}}.void rect{{fill:{p.wash};stroke:{p.faint}}}"
        f".blank text,.void text{{fill:{p.grey}}}.cross{{stroke:{p.ink};fill:none}}"
    )
    return "\n".join(rules)


def variables(palette: Palette) -> str:
    """The colours as CSS variables, for the page's style in report.css."""
    ramp, half = ", ".join(palette.scale), ", ".join(palette.scale[2:])
    p = palette
    first = ";".join(f"--{name}:{getattr(p, name)}" for name in ("paper", "ink", "grey", "faint", "wash"))
    return f"{first};--ramp:{ramp};--half:{half};--s0:{p.series[0]};--s1:{p.series[1]}"


GEOMETRY = (
    "svg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:12px;"
    "font-variant-numeric:tabular-nums}"
    ".b{font-weight:600}.m{text-anchor:middle}.e{text-anchor:end}.dash{stroke-dasharray:5 4}.dot{stroke-dasharray:1.5 3}"
    ".thin{stroke-width:1}.mid{stroke-width:1.6}.line{stroke-width:2.4;stroke-linejoin:round}.grid,.axis{stroke-width:1}"
    ".halo{stroke-width:4.5}.edge{stroke-width:3;stroke-linejoin:round}.case{stroke-width:7;stroke-linejoin:round}"
    ".whisker{stroke-width:1.8}.blank rect{stroke-dasharray:2 2}.big{font-size:14px}"
)
"""CSS rules for fonts and line widths, the same in light and in dark. No text is smaller than 12 pixels."""


def page_css() -> str:
    """All CSS of a page: light colours, and dark ones on screens whose reader prefers them. Print is light."""
    dark = f":root{{{variables(DARK)};color-scheme:dark}}{css(DARK)}"
    return (
        f":root{{{variables(LIGHT)};color-scheme:light}}{GEOMETRY}{css(LIGHT)}\n"
        f"@media screen and (prefers-color-scheme: dark){{{dark}}}"
    )


def file_css() -> str:
    """All CSS of an SVG file: light colours only."""
    return GEOMETRY + css(LIGHT)


NOTEBOOK = "emergence-figure"
"""CSS class of a figure in a notebook."""


def notebook_css() -> str:
    """All CSS of a figure in a notebook, light and dark. The rules apply inside the figure alone: a notebook may put it in its page."""
    dark = _inside(css(DARK))
    return f"{_inside(GEOMETRY + css(LIGHT))}@media screen and (prefers-color-scheme: dark){{{dark}}}"


def _inside(rules: str) -> str:
    """CSS rules with every selector limited to figures of class NOTEBOOK."""

    def limited(found: re.Match[str]) -> str:
        selectors = [re.sub(r"^svg\b", "", part.strip()).strip() for part in found[1].split(",")]
        return ",".join(f".{NOTEBOOK} {part}".strip() for part in selectors) + "{"

    return re.sub(r"([^{}]+)\{", limited, rules)
