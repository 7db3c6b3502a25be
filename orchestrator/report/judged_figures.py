"""Figures of the verdicts: the four scores of a skill side by side, compute-to-skill, the forecast. Compute no statistic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import NullLocator

from orchestrator.analyses import ToSkill
from orchestrator.report.curves import Curves, beside, decays
from orchestrator.report.plates import LIST, RULE, TINT, Margins, Panel, Plate, Sheet, counted, decimal, line_key
from orchestrator.report.surfaces import on_split
from orchestrator.stats.forecast import Forecast
from orchestrator.words import flops_words, forecast_words, number

# Four scores --------------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """One panel of the four scores: a measure, and what is drawn beside it."""

    measure: str
    title: str
    note: str
    unit: str
    beside: tuple[str, str] | None = None
    """(measure, what the key calls it): open squares."""


SCORES = (
    Score("loss_nats", "Log loss", "continuous", "nats"),
    Score("brier", "Brier score", "continuous", "1"),
    Score("accuracy", "Accuracy of an answer", "greedy; squares: sampled", "ratio", ("probability", "sampled")),
    Score(
        "exact_match", "Exact match", "all answers; squares: predicted", "ratio", ("predicted_exact_match", "predicted")
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
    arms = f", arm {arm}" if len(found.study.axes.arm) > 1 else ""
    after = " after the decay" if decays(found) else ""
    return Plate(
        heading=f"{skill}: one change, four scores",
        about=f"{found.study.id}{arms}, at {number(flops)} FLOPs{after}, on {on_split(split)}. A mark is a replicate, the line "
        "joins their means. Squares: what the probabilities predict for sampled decoding.",
        panels=tuple(_score_panel(curves, arm, skill, split, flops, score) for score in shown),
        columns=2,
    )


def _score_panel(curves: Curves, arm: str, skill: str, split: str, flops: float, score: Score) -> Panel:
    found = curves.found
    levels = found.results.levels
    lines = found.results.cube(score.measure, arm, skill, split)[:, -1]  # (n_tasks, replicates)
    second = (
        found.results.cube(score.beside[0], arm, skill, split)[:, -1] if score.beside else np.full(lines.shape, np.nan)
    )
    ratio = score.unit != "nats"
    highest = max(1.0, np.nanmax(lines) * 1.08) if ratio else np.nanmax(lines) * 1.08 or 1.0

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_ylim(-0.04 * highest, highest * 1.02)
        ax.set_xticks(range(len(levels)), _thinned([number(n) for n in levels], 230), fontsize=9)
        ax.tick_params(axis="x", length=2)
        ax.tick_params(axis="y", labelsize=9)
        ax.locator_params(axis="y", nbins=4)
        ax.set_xlabel("number of training tasks", fontsize=9, labelpad=2)
        for table, colour, marker, face, name in (
            (second, LIST, "s", "white", score.beside[1] if score.beside else ""),
            (lines, RULE, "o", RULE, score.title),
        ):
            known = ~np.isnan(table).all(axis=1)
            if not known.any():
                continue
            means = np.nanmean(table[known], axis=1)
            ax.plot(
                np.flatnonzero(known),
                means,
                color=colour,
                lw=1,
                alpha=0.55,
                zorder=2,
                ls="-" if marker == "o" else "--",
            )
            sheet.colours[name] = colour
            for i, r in zip(*np.nonzero(~np.isnan(table)), strict=True):
                x, value = i + 0.6 * beside(int(r), table.shape[1]), float(table[i, r])
                ax.plot(x, value, marker=marker, ms=3.6, color=colour, mfc=face, mew=0.9, zorder=4)
                place = {"skill": skill, "split": split, "arm": arm, "n_tasks": levels[i], "compute_flops": flops}
                measure = score.measure if marker == "o" else score.beside[0] if score.beside else ""
                row = sheet.row(
                    series=name,
                    measure=measure,
                    unit=score.unit,
                    replicate=int(r),
                    value=value,
                    trial=curves.trials.at(arm, levels[i], flops, int(r))[0],
                    **place,
                )
                sheet.point(x, value, row)

    means = [decimal(float(np.nanmean(line))) if not np.isnan(line).all() else "—" for line in lines]
    alt = "; ".join(f"{number(n)} tasks {mean}" for n, mean in zip(levels, means, strict=True))
    return Panel(
        title=score.title,
        note=score.note,
        alt=f"{score.title} of {skill} by number of tasks: {alt}.",
        width=230,
        height=140,
        margins=Margins(36, 12, 36, 8),
        draw=draw,
    )


def _thinned(labels: Sequence[str], pixels: float) -> list[str]:
    """As many labels as do not touch, the last one always."""
    pitch = pixels / max(len(labels), 1)
    kept, last = [""] * len(labels), math.inf
    for i in range(len(labels) - 1, -1, -1):
        if (last - i) * pitch >= 5.4 * (len(labels[i]) + 1):
            kept[i], last = labels[i], i
    return kept


# Compute to skill ---------------------------------------------------------------------------------------------------


def to_skill_plate(curves: Curves, arm: str) -> Plate | None:
    """Kaplan and Meier's curve at every number of tasks: the share of replicates that have had the skill by then."""
    found = curves.found
    told = {n: t for (a, n), t in found.to_skill.items() if a == arm and t.curve is not None and len(t.curve.steps) > 1}
    if not told:
        return None
    arms = f", arm {arm}" if len(found.study.axes.arm) > 1 else ""
    skill = found.study.shown_skills[0]
    return Plate(
        heading=f"{skill}: from how much compute on",
        about=f"{found.study.id}{arms}. Share of replicates with an ability of one half by then (Kaplan and Meier), with its "
        "pointwise interval. An onset counts at the look that first sees it.",
        key=(line_key(RULE, False, "share of replicates"),),
        panels=tuple(_to_skill_panel(curves, arm, n, t) for n, t in sorted(told.items())),
    )


def _to_skill_panel(curves: Curves, arm: str, n_tasks: int, told: ToSkill) -> Panel:
    assert told.curve is not None
    steps, looks = told.curve.steps[1:], curves.found.looks(arm, n_tasks)
    span = (min(looks) / 1.25, max(looks) * 1.2)
    words = flops_words(told.boundary, looks)

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xscale("log")
        ax.set_xlim(*span)
        ax.set_ylim(-0.04, 1.06)
        ax.set_yticks([0, 0.5, 1], ["0", "½", "1"], fontsize=9.5)
        ends = [looks[0], looks[-1]] if len(looks) > 1 else looks
        ax.set_xticks(ends, [number(c) for c in ends], fontsize=9)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("training compute (FLOPs)", fontsize=9, labelpad=-4)
        at = [s.at for s in steps] + [span[1]]
        for low, high, face in (([s.low for s in steps], [s.high for s in steps], TINT[RULE]),):
            ax.fill_between(at, [*low, low[-1]], [*high, high[-1]], step="post", color=face, alpha=0.55, lw=0, zorder=1)
        ax.step(at, [*(s.reached for s in steps), steps[-1].reached], where="post", color=RULE, lw=1.4, zorder=3)
        ax.axhline(0.5, color="#8a8a8a", lw=0.8, ls=(0, (1, 2)), zorder=1)
        sheet.colours["share"] = RULE
        for s in steps:
            ax.plot(s.at, s.reached, marker="o", ms=3.4, color=RULE, zorder=4)
            values = {"low_share": s.low, "high_share": s.high, "at_risk": s.at_risk, "onsets": s.onsets}
            row = sheet.row(
                series="share", measure="share with the skill", unit="ratio", arm=arm, n_tasks=n_tasks, flops=s.at,
                value=s.reached, **values,
            )  # fmt: skip
            onsets = counted(s.onsets, "onset") + f" among {s.at_risk} at risk"
            says = f"{decimal(s.reached)} of the replicates\n{decimal(s.low)} to {decimal(s.high)}\nby {number(s.at)} FLOPs, {onsets}"
            sheet.point(s.at, s.reached, row, says)

    return Panel(
        title=counted(n_tasks, "task"),
        note=words,
        alt=f"Share of replicates with the skill against compute, {counted(n_tasks, 'task')}: {words}.",
        width=220,
        height=110,
        margins=Margins(28, 20, 32, 8),
        draw=draw,
    )


# Forecast -----------------------------------------------------------------------------------------------------------


def forecast_plate(curves: Curves, arm: str) -> Plate | None:
    """The loss at the largest budget as a quarter of it told it, where it told anything."""
    found = curves.found
    made = {n: f for (a, n), f in found.forecasts.items() if a == arm and f.predicted is not None}
    if not made:
        return None
    arms = f", arm {arm}" if len(found.study.axes.arm) > 1 else ""
    skill = found.study.shown_skills[0]
    return Plate(
        heading=f"{skill}: does the bottom predict the top?",
        about=f"{found.study.id}{arms}. Mean log loss on {on_split(found.skill_split(skill))}: a law fitted to the filled marks, "
        "up to a quarter of the largest budget; its 95 % interval there, and what was measured.",
        key=(line_key(RULE, False, "measured"), line_key(LIST, True, "forecast")),
        panels=tuple(_forecast_panel(curves, arm, n, f) for n, f in sorted(made.items())),
    )


def _forecast_panel(curves: Curves, arm: str, n_tasks: int, made: Forecast) -> Panel:
    found = curves.found
    skill = found.study.shown_skills[0]
    split = found.skill_split(skill)
    flops, values = found.results.along("loss_nats", arm, skill, split, n_tasks)
    means = np.nanmean(values, axis=0)
    assert made.predicted is not None and made.top is not None and made.last_fitted is not None
    predicted, top, last = made.predicted, made.top, made.last_fitted

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xscale("log")
        ax.set_xlim(flops[0] / 1.3, top * 1.5)
        ax.set_xticks([flops[0], last, top], [number(c) for c in (flops[0], last, top)], fontsize=9)
        ax.xaxis.set_minor_locator(NullLocator())
        ends = [v for v in (made.low, made.high, predicted) if v is not None]
        low, high = min(*ends, *means.tolist()), max(*ends, *means.tolist())
        room = 0.08 * (high - low) or 0.1
        ax.set_ylim(low - room, high + room)
        ax.locator_params(axis="y", nbins=4)
        ax.tick_params(axis="y", labelsize=9)
        ax.set_xlabel("training compute (FLOPs)", fontsize=9, labelpad=2)
        ax.axvspan(flops[0] / 1.3, last, color="#f1f1f1", lw=0, zorder=0)
        ax.plot(flops, means, color=RULE, lw=1, alpha=0.6, zorder=2)
        sheet.colours |= {"measured": RULE, "forecast": LIST}
        where = {"measure": "loss", "unit": "nats", "arm": arm, "n_tasks": n_tasks}
        for c, mean in zip(flops.tolist(), means.tolist(), strict=True):
            seen = c <= last
            ax.plot(c, mean, marker="o", ms=3.6, color=RULE, mfc=RULE if seen else "white", mew=0.9, zorder=4)
            row = sheet.row(series="measured", flops=c, value=mean, fitted=int(seen), **where)
            sheet.point(c, mean, row, f"{mean:.3g} nats\nat {number(c)} FLOPs{', fitted' if seen else ''}")
        if made.low is not None and made.high is not None:
            ax.plot(
                [top * 1.12] * 2, [made.low, made.high], color=LIST, lw=3, alpha=0.4, zorder=2, solid_capstyle="butt"
            )
        ax.plot(top * 1.12, predicted, marker="s", ms=4.5, color=LIST, mfc="white", mew=1, zorder=5)
        row = sheet.row(series="forecast", flops=top, value=predicted, low_nats=made.low, high_nats=made.high, **where)
        sheet.point(top * 1.12, predicted, row, forecast_words(made).replace("; ", "\n"))

    return Panel(
        title=counted(n_tasks, "task"),
        note=f"{'inside' if made.covers else 'outside'} the interval" if made.covers is not None else "",
        alt=f"Loss against compute and its forecast, {counted(n_tasks, 'task')}: {forecast_words(made)}.",
        width=220,
        height=130,
        margins=Margins(36, 16, 34, 8),
        draw=draw,
    )
