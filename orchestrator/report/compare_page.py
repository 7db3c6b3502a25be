"""The page of a comparison: one sentence, both surfaces and their difference, the significant differences.

It computes no statistic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.analysis import answer, compare, means
from orchestrator.analysis.compare import Comparison, Pair
from orchestrator.analysis.finding import tested_words
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.means import Cell
from orchestrator.files import replace
from orchestrator.formatting import signed
from orchestrator.report import page, surface, tables
from orchestrator.report.surface import Shown
from orchestrator.report.svg import Panel

PAIRS = 4
"""Most pairs of conditions with surfaces on the page."""


def write(home: Path, found: Comparison) -> Path:
    """Write `compare_A_B.html` into the home folder atomically; A and B are study ids. Returns its path. Raises OSError if it fails."""
    ids = [found.a.study.id, found.b.study.id]
    made = page.templates().get_template("compare.html.j2").render(_contents(found, ids))
    path = home / f"compare_{ids[0]}_{ids[1]}.html"
    replace(path, made.encode(errors="replace"))
    return path


def _contents(found: Comparison, ids: list[str]) -> dict[str, Any]:
    """The variables of the template compare.html.j2. ids: the ids of both studies."""
    shown = found.significant()
    sides = [side for pair in found.pairs for side in zip((found.a, found.b), pair, strict=True)]
    edges = [edge for of, condition in sides for edge in surface.edges_of(of, condition, found.skill)]
    n_budgets = max(len(of.study.budgets) for of in (found.a, found.b))
    return {
        "ids": ids,
        "answer": compare.sentence(found),
        "more": compare.more(found),
        "title": f"Ability in {found.skill}",
        "rows": [_surfaces(found, pair) for pair in found.pairs[:PAIRS]],
        "measures": {"ability": page.MEASURES["ability"]},
        "lines": surface.legend(edges, n_budgets, (page.NARROW,)),
        "replicates": "all replicates",
        "table": tables.finding_table("Significant differences", shown) if shown else None,
        "counts": " ".join(tested_words(found.findings)),
        "settings": found.settings,
        "alone": [{"id": f.study.id, "answer": answer.sentence(f)} for f in (found.a, found.b)][: len(set(ids))],
        "style": page.style(),
        "script": page.script(),
    }


def _surfaces(found: Comparison, pair: Pair) -> list[Panel]:
    """Three surfaces of a pair of conditions: first study, second study, and their difference in the cells that both have."""
    panels = [_side(found, of, condition) for of, condition in zip((found.a, found.b), pair, strict=True)]
    return [*panels, _difference(found, pair)]


def _side(found: Comparison, of: Findings, condition: str) -> Panel:
    """The ability surface of one study of the comparison."""
    shown = surface.shown_of(of, "ability", condition, found.skill)
    cells = means.cells(of.results, "ability", condition, found.skill)
    edges = surface.edges_of(of, condition, found.skill)
    title = of.study.id + (f", {condition}" if len(found.pairs) > 1 or len(of.study.conditions) > 1 else "")
    return surface.panel(
        (of.results.levels, of.study.budgets), shown, cells, edges, page.NARROW, title=title, labelled=True
    )


def _difference(found: Comparison, pair: Pair) -> Panel:
    """Surface of the difference of ability, second study less first; a star marks a significant cell."""
    names = tuple(side.name for side in compare.sides(found, pair))
    at = {
        (one.n_tasks, one.compute_flops): one
        for one in found.findings
        if one.question == "difference of ability"
        and one.skill == found.skill
        and (one.against, one.condition) == names
    }

    def cell(n: int, c: float) -> Cell:
        one = at.get((n, c))
        if one is None or one.estimate is None:
            return Cell(None, 0, "open")
        star = "*" if one.significance == "significant" else ""
        return Cell(one.estimate, one.n, "value", words=signed(round(one.estimate, 2), 2) + star)

    cells = [[cell(n, c) for c in found.budgets] for n in found.levels]
    shown = Shown("difference of ability", pair[1], found.skill, "held_out")
    axes = found.levels, found.budgets
    return surface.panel(
        axes, shown, cells, [], page.NARROW, title="Difference", note="second less first; * significant"
    )
