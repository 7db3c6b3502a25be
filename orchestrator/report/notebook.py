"""Figures and surfaces for notebooks: the same as on the page, as objects that a notebook can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from orchestrator.analysis import answer, means
from orchestrator.analysis.findings import Findings
from orchestrator.files import replace
from orchestrator.formatting import decimal, number
from orchestrator.report import page, palette, surface, svg
from orchestrator.terminal import printable


class Picture:
    """A figure of a study. A notebook shows it as SVG, in light or dark colours by the preference of the reader's screen."""

    def __init__(self, figure: svg.Figure, study: str) -> None:
        self._figure, self._study = figure, study
        self.name, self.title, self.sentence = figure.name, figure.title, figure.sentence

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The numbers in the figure, a row each, as in `figures/<name>.csv`."""
        return [row for panel in self._figure.panels for row in panel.rows]

    def save(self, path: str | Path) -> Path:
        """Write the figure to a file: .svg the picture in light colours, .csv its numbers. Raises ValueError, OSError."""
        path = Path(path)
        makers = {".svg": lambda: svg.sheet(self._figure, self._study), ".csv": lambda: svg.table(self.rows)}
        if path.suffix not in makers:
            raise ValueError(f"{path}: a figure is saved as .svg or .csv")
        replace(path, makers[path.suffix]())
        return path

    def _repr_svg_(self) -> str:
        return svg.sheet(self._figure, self._study, in_notebook=True).decode()

    def __repr__(self) -> str:
        return f"<figure {self.name}: {self.title}>"


def pictures(found: Findings) -> dict[str, Picture]:
    """All figures of the page by name, in its order."""
    return {figure.name: Picture(figure, found.study.id) for figure in page.figures(found)}


def answer_html(found: Findings) -> str:
    """The answer in one sentence, the verdict on the primary claim, and a table of ability for each condition."""
    verdict, claim = answer.badge(found)
    parts = [f"<p><b>{_safe(answer.sentence(found))}</b></p><p>{_safe(verdict)}: {_safe(claim)}</p>"]
    for condition in [alike[0] for alike in found.study.same_question()]:
        shown = surface.shown_of(found, "ability", condition)
        several = f", {condition}" if len(found.study.conditions) > 1 else ""
        parts.append(_table(found, shown, f"{shown.title}{several}"))
    return "".join(parts)


def _table(found: Findings, shown: surface.Shown, title: str) -> str:
    """A surface as an HTML table. It needs no style sheet: a viewer that drops styles shows its numbers."""
    cells = means.cells(found.results, shown.measure, shown.condition, shown.skill)
    head = "".join(f"<th>{number(budget)}</th>" for budget in found.study.budgets)
    lines = []
    for n_tasks, row in reversed(list(zip(found.results.levels, cells, strict=True))):
        drawn = "".join(f"<td>{_safe(cell.state)}</td>" if cell.value is None else _shaded(cell.value) for cell in row)
        lines.append(f"<tr><th>{number(n_tasks)}</th>{drawn}</tr>")
    return (
        f"<p>{_safe(title)}; rows: tasks, columns: training FLOPs</p>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _shaded(value: float) -> str:
    """A cell with its value, on the colour of the page's scale."""
    colour = palette.mix(palette.LIGHT.scale, min(max(value, -1.0), 1.0))
    return f'<td style="background:rgb{colour};color:{palette.ink_on(colour)}">{decimal(value)}</td>'


def _safe(words: str) -> Markup:
    return escape(printable(words))
