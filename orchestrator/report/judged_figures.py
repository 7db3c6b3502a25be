"""Figures of the verdicts: the four scores of a skill side by side, compute-to-skill. Compute no statistic."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from orchestrator.analysis.claims import claim_of
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.onsets import ToSkill, flops_words
from orchestrator.formatting import counted, decimal, number, sure
from orchestrator.report.curves import (
    Curves,
    Series,
    compute_axis,
    decays,
    draw_dots,
    join,
    key_of,
    means,
    note_dots,
    tasks_axis,
)
from orchestrator.report.judged_tables import to_skill_mark
from orchestrator.report.plates import GREY, LIST, RULE, TINT, Margins, Panel, Plate, Sheet
from orchestrator.report.surfaces import of_arm, on_split

# Four scores --------------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """One panel of the four scores: a measure, and what is drawn beside it."""

    measure: str
    title: str
    note: str
    unit: str
    words: tuple[str, str]
    """What a reader who points at a value is told before and after it."""
    beside: tuple[str, str, tuple[str, str]] | None = None
    """(measure, name, words): open squares."""

    def series(self, skill: str, split: str) -> list[Series]:
        """What is drawn, the measured values last."""
        drawn = [Series(self.measure, skill, split, RULE, False, self.title, self.unit, self.words)]
        if self.beside:
            measure, name, words = self.beside
            drawn.insert(0, Series(measure, skill, split, LIST, True, name, self.unit, words))
        return drawn


SCORES = (
    Score("loss_nats", "Log loss", "continuous, in nats", "nats", ("log loss", " nats")),
    Score("brier", "Brier score", "continuous", "1", ("Brier score", "")),
    Score(
        "accuracy",
        "Accuracy of an answer",
        "greedy; squares: sampled",
        "ratio",
        ("accuracy", ", greedy"),
        ("probability", "sampled", ("accuracy", ", sampled")),
    ),
    Score(
        "exact_match",
        "Exact match",
        "all answers; squares: predicted",
        "ratio",
        ("exact match", ", greedy"),
        ("predicted_exact_match", "predicted", ("exact match", ", predicted for sampling")),
    ),
)


def scores_plate(curves: Curves, arm: str) -> Plate | None:
    """Loss, Brier, accuracy and exact match of the headline skill along the numbers of tasks, at the largest budget."""
    found = curves.found
    skill = found.study.shown_skills[0]
    split, flops = found.skill_split(skill), found.study.budgets[-1]
    shown = [s for s in SCORES if np.isfinite(found.results.cube(s.measure, arm, skill, split)[:, -1]).any()]
    if not shown:
        return None
    after = " after the decay" if decays(found) else ""
    return Plate(
        heading=f"{skill}: one change, four scores",
        about=f"{found.study.id}{of_arm(found, arm)}, at {number(flops)} FLOPs{after}, on {on_split(split)}. A mark is a "
        "replicate, the line joins their means. Squares: what the probabilities predict for sampled decoding.",
        panels=tuple(_score_panel(curves, arm, score, skill, split) for score in shown),
        columns=2,
    )


def _score_panel(curves: Curves, arm: str, score: Score, skill: str, split: str) -> Panel:
    results = curves.found.results
    mean = means(results.cube(score.measure, arm, skill, split)[:, -1]).tolist()
    said = "; ".join(f"{counted(n, 'task')} {decimal(value)}" for n, value in zip(results.levels, mean, strict=True))
    return Panel(
        title=score.title,
        note=score.note,
        alt=f"{score.title} of {skill} by number of tasks: {said}.",
        width=230,
        height=140,
        margins=Margins(36, 12, 36, 8),
        draw=partial(_draw_score, curves, arm, score.series(skill, split)),
    )


def _draw_score(curves: Curves, arm: str, series: list[Series], sheet: Sheet) -> None:
    """The panel's axes, and each series with the line through its means."""
    ax, results = sheet.axes, curves.found.results
    drawn = [
        results.cube(one.measure, arm, one.skill, one.split)[:, -1] for one in series
    ]  # (n_tasks, replicates) each
    largest = float(np.nanmax(drawn[-1]))
    highest = (largest * 1.08 or 1.0) if series[-1].unit == "nats" else max(1.0, largest * 1.08)
    tasks_axis(ax, results.levels)
    ax.set_ylim(-0.04 * highest, highest * 1.02)
    ax.locator_params(axis="y", nbins=4)
    ax.tick_params(axis="y", labelsize=9)
    for one, values in zip(series, drawn, strict=True):
        join(ax, results.levels, means(values), color=one.colour, lw=1, alpha=0.55, zorder=2, ls=one.dash)
        draw_dots(sheet, values, 0, one, 3.6, bars=False)
        note_dots(sheet, curves, values, 0, one, arm, results.budgets[-1])


# Compute to skill ---------------------------------------------------------------------------------------------------

SHARE = Series("share with the skill to stay", "", "", RULE, False, "share of replicates that have it to stay")
BAR: dict[str, Any] = {"color": GREY, "lw": 4, "alpha": 0.55, "solid_capstyle": "butt"}


def to_skill_plate(curves: Curves, arm: str) -> Plate | None:
    """Kaplan and Meier's curve at every number of tasks: the share of replicates that have the skill to stay by then."""
    found = curves.found
    told = {n: t for (a, n), t in found.to_skill.items() if a == arm and t.curve is not None and len(t.curve.steps) > 1}
    if not told:
        return None
    skill = found.study.shown_skills[0]
    return Plate(
        heading=f"{skill}: from how much compute on",
        about=f"{found.study.id}{of_arm(found, arm)}. Share of replicates that have an ability of one half, and keep it, from a "
        "look up to then on (Kaplan and Meier; shaded: pointwise interval). Bar at ½: interval for the compute at which "
        "half of the replicates have it to stay; a bar with an arrow goes on.",
        key=(*key_of([SHARE]), (Line2D([], [], **BAR), "interval: half of them")),
        panels=tuple(_to_skill_panel(found, arm, n, t) for n, t in sorted(told.items())),
    )


def _to_skill_panel(found: Findings, arm: str, n_tasks: int, told: ToSkill) -> Panel:
    words = flops_words(told.boundary, found.looks(arm, n_tasks))
    return Panel(
        title=counted(n_tasks, "task"),
        note=words,
        alt=f"Share of replicates that have the skill to stay against compute, {counted(n_tasks, 'task')}: {words}.",
        width=220,
        height=110,
        margins=Margins(42, 20, 34, 8),
        draw=partial(_draw_to_skill, found, arm, n_tasks, told),
    )


def _draw_to_skill(found: Findings, arm: str, n_tasks: int, told: ToSkill, sheet: Sheet) -> None:
    """The panel's axes, the curve with its shade, and the interval of the boundary."""
    assert told.curve is not None
    ax, steps, looks = sheet.axes, told.curve.steps[1:], found.looks(arm, n_tasks)
    span = (min(looks) / 1.25, max(looks) * 1.2)
    compute_axis(ax, span, [c for c in found.study.budgets if span[0] <= c <= span[1]])
    ax.set_ylabel("share of replicates", fontsize=9, labelpad=2)
    ax.set_ylim(-0.04, 1.06)
    ax.set_yticks([0, 0.5, 1], ["0", "½", "1"], fontsize=9.5)
    ax.axhline(0.5, color="#8a8a8a", lw=0.8, ls=(0, (1, 2)), zorder=1)
    at, reached = [s.at for s in steps], [s.reached for s in steps]
    on, low, high = [*at, span[1]], [s.low for s in steps], [s.high for s in steps]
    ax.fill_between(on, [*low, low[-1]], [*high, high[-1]], step="post", color=TINT[RULE], alpha=0.55, lw=0, zorder=1)
    ax.step(on, [*reached, reached[-1]], where="post", color=RULE, lw=1.4, zorder=3)
    sheet.marks(at, reached, ms=3.4, zorder=4, **SHARE.mark)
    _draw_median(found, arm, n_tasks, told, span, sheet)
    for s in steps:
        values = {"low_share": s.low, "high_share": s.high, "at_risk": s.at_risk, "onsets": s.onsets}
        shared: dict[str, Any] = {"measure": SHARE.measure, "unit": "ratio", "arm": arm, "n_tasks": n_tasks}
        row = sheet.row(series="share", flops=s.at, value=s.reached, **shared, **values)
        onsets = f"{counted(s.onsets, 'onset')} among {s.at_risk} at risk"
        lines = [f"{decimal(s.reached)} of the replicates", f"have it to stay by {number(s.at)} FLOPs", onsets]
        if s.at == looks[-1]:
            lines += _at_the_end(told)
        sheet.point(s.at, s.reached, row, "\n".join(lines))


def _at_the_end(told: ToSkill) -> list[str]:
    """The last entry of the table beside the figure: k of n at the end of the largest budget, with its interval."""
    if not told.successes:
        return []
    _, made = told.successes[-1]
    return [
        f"{made.k} of {made.n} at the end of the budget (95 % interval {decimal(made.low)} to {decimal(made.high)})"
    ]


def _draw_median(
    found: Findings, arm: str, n_tasks: int, told: ToSkill, span: tuple[float, float], sheet: Sheet
) -> None:
    """The interval that the words tell, as a bar at one half; an arrow where it is open or goes on beyond the looks."""
    low, high = told.boundary.low, told.boundary.high
    if told.boundary.verdict == "missing":
        return
    looks = found.looks(arm, n_tasks)
    ends = [span[0] if low is None or low < looks[0] else low, span[1] if high is None or high > looks[-1] else high]
    sheet.axes.plot(ends, [0.5, 0.5], zorder=2, **BAR)
    for mark, edge, end in zip("<>", span, ends, strict=True):
        if end == edge:
            sheet.marks([edge], [0.5], marker=mark, ms=6, color=GREY, mew=0, clip_on=False, zorder=2)
    claim = claim_of("to", "skill", arm, found.study.shown_skills[0], float(n_tasks))
    confidence = sure(found.confidence(claim))
    n = len(told.boundary.brackets)
    kind = "one bracket, no interval" if n == 1 else f"{confidence} interval for half of {counted(n, 'replicate')}"
    kind += ", open at both ends" if low is None and high is None else ""
    mark = to_skill_mark(found, claim, told.boundary, looks)
    words = flops_words(told.boundary, looks) + (f" ({mark})" if mark else "")
    sheet.area(ends[0], 0.46, ends[1], 0.54, f"{words}\n{kind}{_by_curve(told)}")
    shared: dict[str, Any] = {"measure": "compute to skill", "unit": "FLOPs", "arm": arm, "n_tasks": n_tasks}
    verdict = {"verdict": told.boundary.verdict, "kept": found.standings[claim].kept}
    sheet.row(series="interval", low_flops=low, high_flops=high, **verdict, **shared)
    if told.curve is not None and told.curve.median is not None:
        seen = told.curve.median
        sheet.row(series="the curve passes one half", low_flops=seen.low, high_flops=seen.high, **shared)


def _by_curve(told: ToSkill) -> str:
    """Between which looks the curve passes one half, as a line of its own; it also counts those of which the end is not known."""
    seen = None if told.curve is None else told.curve.median
    if seen is None or seen.high is None:
        return ""
    return f"\nthe curve passes ½ {f'between {number(seen.low)} and' if seen.low else 'by'} {number(seen.high)} FLOPs"
