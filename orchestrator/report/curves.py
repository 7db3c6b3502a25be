"""Figures with axes: along training, and by number of tasks. They show values and counts; they compute no statistic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np

from orchestrator.analysis import by_task, onsets
from orchestrator.analysis.expected import crossing
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.measures import over_replicates
from orchestrator.analysis.results import surface
from orchestrator.formatting import counted, decimal, number
from orchestrator.report.surface import OWN_TASKS, shown_of, words_of
from orchestrator.report.svg import HALVES, Axes, Drawing, Figure, Panel, Point, Row, compute_ticks
from orchestrator.study.pairs import measure_of, pairs_of
from trainers.tasks import Family

PANELS = 4
"""Most panels of a figure above the fold."""
CONDITIONS = 6
"""Most conditions in one figure, each with its colour."""
WIDTH, HEIGHT = 240, 150
"""Pixels of a panel's axes."""
LOWEST, HIGHEST = -0.5, 1.3
"""Widest vertical scale. Values outside are drawn at its edge: ability and memory lie around 0 to 1."""
STARTED = " Level and dashed: the score of the model that training began with."
"""For the note of a figure with such lines."""
FARTHEST = 100
"""Largest factor between two numbers of tasks that a line joins (assumed)."""


def conditions_of(found: Findings) -> list[str]:
    """The conditions that have a result; of several that differ in placement alone, the first."""
    return [alike[0] for alike in found.study.same_question() if found.ended(alike[0])]


def some(values: Sequence[Any], most: int = PANELS) -> list[Any]:
    """At most `most` of the values, evenly spread, first and last included."""
    places = (
        np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
        if len(values) > most
        else range(len(values))
    )
    return [values[i] for i in places]


class Series(NamedTuple):
    """One measure of one condition in a panel by number of tasks."""

    name: str
    colour: int
    """Index in `Palette.series`."""
    mark: str
    """`round` or `square`, as in `Drawing.mark`. Squares are hollow, and their line is dashed."""
    values: np.ndarray
    """(n_tasks, replicates); NaN is missing."""


class Run(NamedTuple):
    """The curve of one replicate in a panel along training."""

    name: str
    colour: int
    """Index in `Palette.series`."""
    mark: str
    """`round` or `square`, as in `Drawing.mark`. Squares are hollow, and their line is dashed."""
    strokes: list[list[Point]]
    """Lines through the evaluations, as (training FLOPs, value)."""
    ends: list[Point]
    """Evaluations at the ends of budgets; they get a mark."""
    tip: str = ""
    """Tooltip of line and marks."""
    lost: Point | None = None
    """The last evaluation of a run that diverged; it gets a cross."""
    start: float | None = None
    """The value of the model that training began with, if another trial trained it; a dashed level line."""


# By number of tasks -------------------------------------------------------------------------------------------------


def by_tasks(
    found: Findings,
    series: Sequence[Series],
    title: str,
    y_title: str,
    bounds: tuple[float, float],
    halves: bool = True,
) -> Panel:
    """A panel with replicates as marks and their mean as a line, one column for each number of tasks.

    bounds: vertical scale (lowest, highest). halves: ticks at 0, ½ and 1; else at round values.
    """
    levels = found.results.levels
    width = WIDTH + 22
    drawing = Drawing(width, HEIGHT + 70)
    axes = Axes(drawing, (42, 24, width - 10, 24 + HEIGHT), (-0.5, len(levels) - 0.5), bounds, log=False)
    axes.frame(_ticks(*bounds, halves), y_title, "number of training tasks")
    axes.names(range(len(levels)), [number(n) for n in levels])
    cuts = [i for i, (a, b) in enumerate(pairwise(levels), 1) if b > FARTHEST * a]
    rows: list[Row] = []
    for k, one in enumerate(series):
        side = (k - (len(series) - 1) / 2) * min(0.2, 0.7 / len(series))
        mean = over_replicates(one.values)
        for part in np.split(np.arange(len(levels)), cuts):
            line = [(axes.x(i + side), axes.y(mean[i])) for i in part.tolist() if not math.isnan(mean[i])]
            drawing.path([line], f"s{one.colour} mid{' dash' if one.mark == 'square' else ''}")
        n = one.values.shape[1]
        for i, r in zip(*np.nonzero(~np.isnan(one.values)), strict=True):
            value = float(one.values[i, r])
            x = axes.x(i + side + (r - (n - 1) / 2) * min(0.07, 0.25 / n))
            shape = axes.beyond(value) or one.mark
            kind = f"{'o' if one.mark == 'square' else 'f'}{one.colour} thin"
            tip = f"{one.name} {decimal(value, 3)}\n{counted(levels[i], 'task')}, replicate {r}" if n <= 10 else ""
            drawing.mark(x, axes.y(value), kind, shape, tip, 3.2 if n <= 10 else 1.8)
            rows.append({"panel": title, "series": one.name, "n_tasks": levels[i], "replicate": int(r), "value": value})
    alt = "; ".join(
        f"{one.name}: {', '.join(decimal(v) for v in over_replicates(one.values).tolist())}" for one in series
    )
    return Panel(title=title, alt=f"{y_title} by number of tasks, means. {alt}.", drawing=drawing, rows=rows)


def _bounds(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The vertical scale (lowest, highest): at least 0 to 1, at most LOWEST to HIGHEST, with a margin."""
    known = np.concatenate([v[~np.isnan(v)] for v in values] or [np.zeros(0)])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return max(min(low, 0) - 0.06, LOWEST - 0.06), min(max(high, 1) + 0.06, HIGHEST)


def _ticks(low: float, high: float, halves: bool) -> list[tuple[float, str]]:
    """(value, name) of the ticks on a vertical scale. halves: 0, ½ and 1; else round values."""
    if halves:
        return [*([(-0.5, "−½")] if low < -0.5 else []), *HALVES]
    step = 10 ** math.floor(math.log10(high - low))
    step *= next(m for m in (0.2, 0.5, 1, 2) if (high - low) / (m * step) <= 5)
    first = math.ceil(low / step) * step
    return [(v, f"{v:.3g}".replace("-", "−")) for v in np.arange(first, high + 1e-9, step).round(9).tolist()]


# Along training -----------------------------------------------------------------------------------------------------


def along(
    runs: Sequence[Run],
    title: str,
    y_title: str,
    bounds: tuple[float, float],
    span: tuple[float, float],
    ticks: Sequence[float],
    x_title: str = "training compute (FLOPs)",
    halves: bool = True,
) -> Panel:
    """A panel with every replicate as a line over compute; a mark is the end of a budget, a cross a divergence.

    bounds: vertical scale (lowest, highest). span: horizontal scale, logarithmic. ticks: values named below it. halves: as in `by_tasks`.
    """
    drawing = Drawing(WIDTH + 22, HEIGHT + 70)
    axes = Axes(drawing, (42, 24, WIDTH, 24 + HEIGHT), span, bounds)
    axes.frame(_ticks(*bounds, halves), y_title, x_title)
    compute_ticks(axes, ticks)
    many = len(runs) > 10
    rows: list[Row] = []
    for run in runs:
        strokes = [[(axes.x(x), axes.y(v)) for x, v in stroke] for stroke in run.strokes]
        style = f"s{run.colour} {'thin' if many else 'mid'}{' dash' if run.mark == 'square' else ''}"
        drawing.path(strokes, style, run.tip)
        if run.start is not None:
            level = axes.y(run.start)
            drawing.path([[(strokes[0][0][0], level), (axes.right, level)]], f"s{run.colour} thin dash")
        for x, v in run.ends:
            kind = f"{'o' if run.mark == 'square' else 'f'}{run.colour} thin"
            drawing.mark(axes.x(x), axes.y(v), kind, axes.beyond(v) or run.mark, run.tip, 2 if many else 3)
        if run.lost is not None:
            drawing.mark(axes.x(run.lost[0]), axes.y(run.lost[1]), "cross mid", "cross")
        rows += [
            {"panel": title, "series": run.name, "flops": x, "value": v} for stroke in run.strokes for x, v in stroke
        ]
    ends = "; ".join(f"{run.name} {decimal(run.ends[-1][1])}" for run in runs[:40] if run.ends)
    alt = f"{title}: {y_title} along training. At the end: {ends}."
    return Panel(title=title, alt=alt, drawing=drawing, rows=rows)


def bounds_of_runs(runs: Sequence[Run]) -> tuple[float, float]:
    """The vertical scale (lowest, highest) that holds all runs, so that all panels of a figure share it."""
    return _bounds([np.array([v for run in runs for stroke in (*run.strokes, run.ends) for _, v in stroke])])


def runs_of(
    found: Findings,
    measure: str,
    condition: str,
    skill: str,
    split: str,
    n_tasks: int,
    colour: int,
    mark: str,
    name: str,
) -> list[Run]:
    """The curves of all replicates of a condition at one number of tasks. name, colour, mark: as in `Run`."""
    results, runs = found.results, []
    grows = found.study.grows(condition)
    lost = results.ended(condition, ("diverged",))[results.levels.index(n_tasks)].any(axis=0)
    for r in range(results.n_replicates):
        track = results.track(measure, condition, skill, split, n_tasks, r)
        known = ~np.isnan(track.values) & (track.flops > 0)
        if not known.any():
            continue
        final = known & (track.phases == "final")
        budgets = np.unique(track.budgets[known]) if grows else [track.budgets[known].max()]
        strokes = [_points(track, known & (track.budgets == c)) for c in budgets]
        tip = f"{name}\n{counted(n_tasks, 'task')}, replicate {r}"
        start = next(iter(track.values[known & (track.steps == 0)].tolist()), None)
        ends = _points(track, final)
        runs.append(Run(name, colour, mark, strokes, ends, tip, strokes[-1][-1] if lost[r] else None, start))
    return runs


def _points(track: Any, which: np.ndarray) -> list[Point]:
    """(training FLOPs, value) of the selected evaluations of a `Track`. which: bool for each evaluation."""
    return list(zip(track.flops[which].tolist(), track.values[which].tolist(), strict=True))


def span_of(found: Findings, conditions: Iterable[str]) -> tuple[float, float]:
    """The horizontal scale of a study's figures: lowest and highest training FLOPs of these conditions, with a margin."""
    spans = [span for condition in conditions if (span := found.results.span(condition))]
    low = min((s[0] for s in spans), default=found.study.budgets[0])
    high = max((s[1] for s in spans), default=found.study.budgets[-1])
    return low / 1.15, high * 1.25


# The story ----------------------------------------------------------------------------------------------------------


def emergence(found: Findings) -> Figure | None:
    """Figure of ability along training for every replicate, at a few numbers of tasks; a colour is a condition.

    None without a result, and for generalist/specialist studies.
    """
    conditions = conditions_of(found)[:CONDITIONS]
    if not conditions or pairs_of(found.study):  # `generalists` shows the training of these
        return None
    shown = [shown_of(found, "ability", c) for c in conditions]
    levels = _telling(found, conditions)
    runs = {
        n: [run for k, s in enumerate(shown) for run in runs_of(found, *s[:4], n, k, "round", s.condition)]
        for n in levels
    }
    levels = [n for n in levels if runs[n]]
    if not levels:
        return None
    bounds, span = bounds_of_runs([run for n in levels for run in runs[n]]), span_of(found, conditions)
    return Figure(
        name="emergence",
        title=f"Ability in {shown[0].skill} along training",
        sentence=_reach_words(found, conditions, levels),
        panels=[
            along(runs[n], counted(n, "task"), words_of(found).axis, bounds, span, found.study.budgets) for n in levels
        ],
        key=_key(conditions),
        note="A line is a replicate; a mark is the end of a budget."
        + (" × marks a divergence." if any(r["status"] == "diverged" for r in found.runs) else "")
        + (STARTED if any(run.start is not None for n in levels for run in runs[n]) else ""),
    )


def _telling(found: Findings, conditions: Sequence[str]) -> list[int]:
    """At most PANELS numbers of tasks that show the change, ascending: the first and last with a result, and some between.

    Those between differ from a neighbour in `onsets.reached`. The most divided come first: half of the replicates have the skill.
    """
    results = found.results
    counts = {n: tuple(onsets.reached(found.results, c, n) for c in conditions) for n in results.levels}
    known = [n for n in results.levels if any(of for _, of in counts[n])]
    changes = {m for a, b in pairwise(known) if counts[a] != counts[b] for m in (a, b)}
    ends = {*known[:1], *known[-1:]}

    def turn(n: int) -> tuple[bool, float]:
        return n not in changes, min(abs(k / of - 0.5) if of else 1.0 for k, of in counts[n])

    between = sorted((n for n in known if n not in ends), key=turn)
    return sorted(ends | set(between[: PANELS - len(ends)]))


def _reach_words(found: Findings, conditions: Sequence[str], levels: Sequence[int]) -> str:
    """A sentence with the number of replicates that have half of the rule, by condition or by number of tasks."""
    if len(conditions) > 1:
        n = levels[-1]
        parts = [f"{k} of {of} ({c})" for c in conditions[:4] for k, of in [onsets.reached(found.results, c, n)]]
        return f"At {counted(n, 'task')}, replicates with {words_of(found).half}: {', '.join(parts)}."
    parts = [
        f"{k} of {of} at {counted(n, 'task')}"
        for n in levels
        for k, of in [onsets.reached(found.results, conditions[0], n)]
    ]
    return f"Replicates that end with {words_of(found).half}: {', '.join(parts)}."


def _key(conditions: Sequence[str]) -> list[tuple[int, str, str]]:
    """The key of a figure with a colour for each condition; empty for one condition."""
    return [(k, "round", name) for k, name in enumerate(conditions)] if len(conditions) > 1 else []


def memory_and_ability(found: Findings) -> Figure | None:
    """Figure of ability and memory by number of tasks. None if memory is undefined in all conditions.

    With one condition it has a panel for each of a few budgets. With several it has a panel for each, at the largest budget.
    """
    conditions = [c for c in conditions_of(found) if np.isfinite(surface(found.results, "memory", c)).any()]
    if not conditions:
        return None
    budgets = found.study.budgets
    places = [(conditions[0], j) for j in some(range(len(budgets)))]
    if len(conditions) > 1:
        places = [(c, len(budgets) - 1) for c in conditions[:PANELS]]
    many = [
        [
            Series(measure, k, "square" if k else "round", surface(found.results, measure, condition)[:, j])
            for k, measure in enumerate(("ability", "memory"))
        ]
        for condition, j in places
    ]
    bounds = _bounds([one.values for series in many for one in series])
    titles = [f"{number(budgets[j])} FLOPs" if len(conditions) == 1 else condition for condition, j in places]
    panels = [
        by_tasks(found, series, title, "ability, memory", bounds)
        for title, series in zip(titles, many, strict=True)
        if any(np.isfinite(one.values).any() for one in series)
    ]
    return (
        Figure(
            name="memory",
            title="Memory against ability",
            sentence=_ends_words(found, conditions[0], None if len(conditions) == 1 else len(budgets) - 1),
            panels=panels,
            key=[
                (0, "round", f"ability: {words_of(found).ability}"),
                (1, "square", f"memory: {words_of(found).memory}"),
            ],
            note="A mark is a replicate, the line their mean. A triangle lies beyond the edge."
            + (f" All at {number(budgets[-1])} FLOPs." if len(conditions) > 1 else ""),
        )
        if panels
        else None
    )


def _ends_words(found: Findings, condition: str, at: int | None = None) -> str:
    """A sentence on the change of mean ability and memory with the number of tasks, at the largest budget with two such numbers."""
    cubes = {measure: surface(found.results, measure, condition) for measure in ("memory", "ability")}
    for j in reversed(range(len(found.study.budgets))) if at is None else [at]:
        mean = {measure: over_replicates(cube[:, j]) for measure, cube in cubes.items()}
        both = np.flatnonzero(~np.isnan(mean["memory"]) & ~np.isnan(mean["ability"]))
        if len(both) > 1:
            a, b = int(both[0]), int(both[-1])
            where = f"{number(found.results.levels[a])} to {counted(found.results.levels[b], 'task')}"
            parts = [_change_words(measure, v[a], v[b]) for measure, v in mean.items()]
            of = f" ({condition})" if len(found.study.conditions) > 1 else ""
            return f"At {number(found.study.budgets[j])} FLOPs, from {where}, {' and '.join(parts)}{of}."
    return ""


def _change_words(measure: str, first: float, last: float) -> str:
    """The change of a mean in words: ability rises from 0.10 to 0.90."""
    a, b = decimal(first), decimal(last)
    return f"{measure} stays at {a}" if a == b else f"{measure} {'rises' if last > first else 'falls'} from {a} to {b}"


def conditions_side_by_side(found: Findings) -> Figure | None:
    """Figure of ability in several conditions: by tasks at the largest budget, and by compute at the most tasks.

    None with one condition, and for generalist/specialist studies.
    """
    conditions = conditions_of(found)
    shown = conditions[:CONDITIONS]
    if len(conditions) < 2 or pairs_of(found.study):
        return None
    series = [Series(c, k, "round", surface(found.results, "ability", c)[:, -1]) for k, c in enumerate(shown)]
    bounds = _bounds([s.values for s in series])
    panels = [by_tasks(found, series, f"At {number(found.study.budgets[-1])} FLOPs", words_of(found).axis, bounds)]
    if len(found.study.budgets) > 1:
        n = found.results.levels[-1]
        runs = [
            Run(c, k, "round", [_mean_line(found, c)], _mean_line(found, c), f"{c}\nmean of replicates")
            for k, c in enumerate(shown)
        ]
        title = f"With {counted(n, 'task')}, mean"
        panels.append(along(runs, title, words_of(found).axis, bounds, span_of(found, shown), found.study.budgets))
    ends = {c: float(over_replicates(s.values)[-1]) for c, s in zip(shown, series, strict=True)}
    ranked = sorted((c for c in ends if not math.isnan(ends[c])), key=lambda c: -ends[c])
    words = "; ".join(f"{c}: {decimal(ends[c])}" for c in ranked)
    most = counted(found.results.levels[-1], "task")
    notes = [f"The first {len(shown)} of {len(conditions)} conditions."] if len(shown) < len(conditions) else []
    if not by_task.asked_alike(found.results, shown):
        notes.append(OWN_TASKS)
    return Figure(
        name="conditions",
        title="Conditions side by side",
        sentence=f"Ability at {number(found.study.budgets[-1])} FLOPs and {most}: {words}." if words else "",
        panels=panels,
        key=_key(shown),
        note=" ".join(notes),
    )


def _mean_line(found: Findings, condition: str) -> list[Point]:
    """(budget, mean ability over replicates) at the largest number of tasks."""
    mean = over_replicates(surface(found.results, "ability", condition)[-1])
    return [(c, float(v)) for c, v in zip(found.study.budgets, mean.tolist(), strict=True) if not math.isnan(v)]


def generalists(found: Findings) -> Figure | None:
    """Figure of generalists and specialists along training, a panel for each pair, at the most tasks; None without pairs."""
    pairs = [p for p in pairs_of(found.study) if found.ended(p.generalist) and found.ended(p.specialist)]
    if not pairs:
        return None
    measure, n = measure_of(found.study), found.results.levels[-1]
    what = "exact match" if measure == "exact_match" else "ability"
    several = len({p.generalist for p in pairs}) > 1
    titles = {p: f"{p.domain}, {p.generalist}" if several else p.domain for p in pairs[: 2 * PANELS]}
    runs = {
        p: [
            run
            for k, (name, mark) in enumerate((("generalist", "round"), ("specialist", "square")))
            for run in runs_of(found, measure, getattr(p, name), p.domain, "held_out", n, k, mark, name)
        ]
        for p in titles
    }
    bounds = bounds_of_runs([run for many in runs.values() for run in many])
    spans = span_of(found, [condition for p in titles for condition in p[:2]])
    panels = [along(runs[p], title, what, bounds, spans, found.study.budgets) for p, title in titles.items()]
    parts = []
    for pair in list(titles)[:PANELS]:
        ends = [found.results.cube(measure, condition, pair.domain, "held_out")[-1, -1] for condition in pair[:2]]
        of = [decimal(float(over_replicates(end))) for end in ends]
        parts.append(f"{of[0]} against {of[1]} in {pair.domain}")
    return Figure(
        name="generalists",
        title="Generalist against specialists",
        sentence=f"At {number(found.study.budgets[-1])} FLOPs the generalist reaches {'; '.join(parts)}.",
        panels=panels,
        key=[(0, "round", "generalist"), (1, "square", "specialist")],
        note=f"{what.capitalize()} on unseen tasks, {counted(n, 'task')} of each domain. A line is a replicate.",
    )


# Behind the fold ----------------------------------------------------------------------------------------------------

SCORES = (
    ("loss_nats", "log loss (nats)"),
    ("brier", "Brier score"),
    ("accuracy", "accuracy"),
    ("exact_match", "exact match"),
)
"""(measure, title) of each panel of the figure `scores`."""
SCORES_OF_TEXT = (*SCORES[:2], ("accuracy", "token accuracy"), ("right", "right"))
"""SCORES for families of text."""


def scores(found: Findings) -> Figure | None:
    """Figure of loss, Brier score, accuracy and exact match by number of tasks, for the headline skill at the largest budget."""
    conditions = conditions_of(found)[:CONDITIONS]
    panels, parts = [], []
    of_text = cast(Family, found.study.family).ability_of == "right"
    for measure, title in SCORES_OF_TEXT if of_text else SCORES:
        series = []
        for k, condition in enumerate(conditions):
            series.append(Series(condition, k, "round", surface(found.results, measure, condition)[:, -1]))
        known = [one.values for one in series if np.isfinite(one.values).any()]
        if not known:
            continue
        top = max(1.0, *(float(np.nanmax(values)) for values in known))
        panels.append(by_tasks(found, series, title, title, (-0.03 * top, 1.05 * top), halves=False))
        mean = over_replicates(known[0])
        ends = mean[~np.isnan(mean)]
        parts.append(f"{title} goes from {decimal(ends[0])} to {decimal(ends[-1])}")
    if not panels:
        return None
    return Figure(
        name="scores",
        title="The same change in four scores",
        sentence=f"From the fewest to the most tasks, {', '.join(parts)}.",
        panels=panels,
        key=_key(conditions),
        note=f"At {number(found.study.budgets[-1])} FLOPs. A jump that loss and Brier score lack comes from the score.",
    )


def compute_to_skill(found: Findings) -> Figure | None:
    """Figure of Kaplan-Meier curves: the share of replicates whose ability stays at or above one half, by compute."""
    panels = []
    several = len(conditions_of(found)) > 1
    skill = found.study.shown_skills[0]
    for condition in conditions_of(found):
        for n in found.results.levels:
            curve = onsets.curve(found.results, condition, skill, n)
            if curve is not None and curve.steps[-1].reached > 0:
                title = counted(n, "task") + (f", {condition}" if several else "")
                panels.append(_share_panel(found, curve.steps[1:], title))
    if not panels:
        return None
    return Figure(
        name="compute_to_skill",
        title="From how much compute on",
        sentence=f"Share of replicates that have {words_of(found).half} and keep it, by compute (Kaplan and Meier).",
        panels=panels,
        note="Shaded: pointwise 95 % interval.",
    )


def _share_panel(found: Findings, steps: Sequence[Any], title: str) -> Panel:
    """A panel with a Kaplan-Meier curve (`survival.Step`s) as steps, and its pointwise interval as an area."""
    drawing = Drawing(WIDTH + 22, 190)
    axes = Axes(drawing, (42, 24, WIDTH, 134), span_of(found, found.study.conditions), (-0.03, 1.03))
    axes.frame(HALVES, "share of replicates", "training compute (FLOPs)")
    compute_ticks(axes, found.study.budgets)
    end = axes.across[1]

    def stairs(values: Sequence[float]) -> list[Point]:
        at = [*(s.at for s in steps), end]
        return [(axes.x(x), axes.y(v)) for k, v in enumerate(values) for x in at[k : k + 2]]

    drawing.area([*stairs([s.low for s in steps]), *reversed(stairs([s.high for s in steps]))], "w0")
    drawing.path([stairs([s.reached for s in steps])], "s0 line")
    rows: list[Row] = [
        {"panel": title, "flops": s.at, "value": s.reached, "low": s.low, "high": s.high, "at_risk": s.at_risk}
        for s in steps
    ]
    words = "; ".join(f"{decimal(s.reached)} by {number(s.at)} FLOPs" for s in steps)
    return Panel(title=title, alt=f"Share of replicates that have the skill. {words}.", drawing=drawing, rows=rows)


def override(found: Findings) -> Figure | None:
    """Figure of two probabilities by number of tasks, for families with the skills `override` and `override_memory`.

    The context contradicts a training task. The model can give the context's answer or the memorised one.
    """
    panels = []
    conditions = conditions_of(found)[:PANELS]
    for condition in conditions:
        pair = [found.results.cube("probability", condition, s, "seen") for s in ("override", "override_memory")]
        both = [j for j in range(len(found.study.budgets)) if all(np.isfinite(cube[:, j]).any() for cube in pair)]
        if both:
            names = ("the context's answer", "the memorised answer")
            series = [
                Series(n, k, "square" if k else "round", cube[:, both[-1]])
                for k, (n, cube) in enumerate(zip(names, pair, strict=True))
            ]
            title = condition if len(conditions) > 1 else f"{number(found.study.budgets[both[-1]])} FLOPs"
            panels.append(by_tasks(found, series, title, "probability", (-0.03, 1.05)))
    if not panels:
        return None
    return Figure(
        name="override",
        title="Context against memory",
        sentence="Two answers of a training task are swapped in the context: which answer does the model give?",
        panels=panels,
        key=[(0, "round", "the context's answer"), (1, "square", "the memorised answer")],
    )


def distance(found: Findings) -> Figure | None:
    """Figure of the relative distance d_rel along training, for families that measure it: 0 is the generaliser, 1 the memoriser."""
    panels = []
    mixture = cast(Family, found.study.family).mixture
    for condition in conditions_of(found)[:1]:
        for n in found.results.levels:
            runs: list[Run] = []
            for r in range(found.results.n_replicates):
                track = found.results.curve("d_rel", condition, mixture, "seen", n, r)
                points = [(s, v) for s, v in zip(track.steps.tolist(), track.values.tolist(), strict=True) if s > 0]
                met = crossing(found.results, condition, n, r)
                ends = [(met, 0.5)] if met is not None else []
                if points:
                    runs.append(Run("relative distance", 1, "square", [points], ends, f"replicate {r}"))
            if runs:
                steps = [x for run in runs for stroke in run.strokes for x, _ in stroke]
                decades = [10.0**k for k in range(9)]
                span = (min(steps) / 1.2, max(steps) * 1.2)
                bounds = bounds_of_runs(runs)
                panels.append(along(runs, counted(n, "task"), "distance", bounds, span, decades, "optimizer step"))
    if not panels:
        return None
    return Figure(
        name="distance",
        title="Relative distance to generaliser and memoriser",
        sentence="0 predicts like the generaliser, 1 like the memoriser; a square is where a replicate crosses ½.",
        panels=panels,
    )


STORY = (emergence, memory_and_ability, conditions_side_by_side, generalists)
"""Functions that make the figures below the surface, in their order. Each returns None if it has nothing to show."""
FOLDED = (scores, override, distance)
"""Functions that make the figures behind the fold."""
