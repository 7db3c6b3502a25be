"""Figure of a generalist beside the specialists of its domains. Computes no statistic."""

from __future__ import annotations

from functools import partial

import numpy as np

from orchestrator.formatting import counted, decimal, number
from orchestrator.report.curves import Curves, Series, compute_axis, decays, draw_tracks, key_of, means
from orchestrator.report.plates import LIST, RULE, Margins, Panel, Plate, Sheet
from orchestrator.study.pairs import Pair, measure_of, pairs_of
from orchestrator.study.schema import Study


def contest_plate(curves: Curves, generalist: str) -> Plate | None:
    """A row for each number of tasks, a column for each domain; None for a line that is no generalist with specialists."""
    found = curves.found
    pairs = [p for p in pairs_of(found.study) if p.generalist == generalist]
    if not pairs or not all(found.ended(line) for p in pairs for line in (p.generalist, p.specialist)):
        return None
    after = ", after its decay" if decays(found) else ""
    return Plate(
        heading="Generalist against specialists",
        about=f"{found.study.id}, {generalist}. {_what(found.study)} on the unseen tasks of a domain, by number of training tasks in each domain. "
        f"Every replicate is a line; a mark is the end of a budget{after}.",
        key=key_of(_series(found.study, "")),
        panels=tuple(_panel(curves, p, n) for n in found.results.levels for p in pairs),
        columns=len(pairs),
    )


def _what(study: Study) -> str:
    return "Exact match" if measure_of(study) == "exact_match" else "Ability"


def _series(study: Study, domain: str) -> list[Series]:
    """The specialist first, so that the generalist lies on top."""
    measure, what = measure_of(study), _what(study).lower()
    return [
        Series(measure, domain, "held_out", LIST, True, "specialist", words=(what, ", specialist")),
        Series(measure, domain, "held_out", RULE, False, "generalist", words=(what, ", generalist")),
    ]


def _panel(curves: Curves, pair: Pair, n_tasks: int) -> Panel:
    results, study = curves.found.results, curves.found.study
    i = results.levels.index(n_tasks)
    ends = {
        name: means(results.cube(measure_of(study), line, pair.domain, "held_out")[i])
        for name, line in (("generalist", pair.generalist), ("specialist", pair.specialist))
    }
    said = "; ".join(
        f"{number(c)} FLOPs {decimal(g)} and {decimal(s)}"
        for c, g, s in zip(results.budgets, ends["generalist"].tolist(), ends["specialist"].tolist(), strict=True)
    )
    return Panel(
        title=pair.domain,
        note=f"{counted(n_tasks, 'task')} of a domain",
        alt=f"{_what(study)} on {pair.domain} at {number(n_tasks)} tasks of a domain, mean of the generalist and of the specialist: {said}.",
        width=190,
        height=140,
        margins=Margins(28, 14, 34, 8),
        draw=partial(_draw, curves, pair, n_tasks),
    )


def _draw(curves: Curves, pair: Pair, n_tasks: int, sheet: Sheet) -> None:
    ax, study = sheet.axes, curves.found.study
    compute_axis(ax, curves.span(pair.generalist), study.budgets)
    cubes = [curves.found.results.cube(measure_of(study), line, pair.domain, "held_out") for line in pair[:2]]
    lowest = min((float(np.nanmin(cube)) for cube in cubes if np.isfinite(cube).any()), default=0.0)
    ax.set_ylim(max(min(-0.03, lowest - 0.03), -1.0), 1.04)
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9.5)
    for series, line in zip(_series(study, pair.domain), (pair.specialist, pair.generalist), strict=True):
        draw_tracks(sheet, curves, series, line, n_tasks)
