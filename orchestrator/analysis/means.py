"""Means over replicates: of every cell, for figures; of one cell or a change between two, if the primary claim is about it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis.finding import CONFIDENCE, Ends, Finding, claim_of, in_condition
from orchestrator.analysis.measures import over_replicates
from orchestrator.analysis.results import Results, scope_of, surface
from orchestrator.formatting import figure, number, times
from trainers.tasks import Family


class Cell(NamedTuple):
    """A measure in one cell."""

    value: float | None
    """Mean over the replicates that have a value; None if none has."""
    known: int
    """Number of replicates with a value."""
    state: str
    """`value`; `undefined` if trials were evaluated and the measure is undefined; else the most common status of its trials.
    `no trial` if the condition does not train this budget."""
    replicates: tuple[float, ...] = ()
    """The value of each replicate; NaN is missing."""
    words: str = ""
    """The text that a figure shows; "" shows the value."""
    floor: float | None = None
    """Of an ability that is counted from a floor: its mean over the replicates."""


def cells(results: Results, measure: str, condition: str, skill: str = "") -> list[list[Cell]]:
    """A measure in every cell: rows by ascending number of tasks, columns by ascending budget. skill: as in `scope_of`."""
    values = surface(results, measure, condition, skill)
    present = results.present(condition, *scope_of(results, measure, skill))
    rests = measure == "ability" and cast(Family, results.study.family).ability_of == "right"
    floors = (
        over_replicates(surface(results, "floor", condition, skill)) if rests else np.full(values.shape[:2], np.nan)
    )
    statuses: dict[tuple[int, float], Counter[str]] = {}
    for run in results.runs:
        if run["arm"] == condition:
            statuses.setdefault((run["n_tasks"], run["compute_flops"]), Counter())[run["status"]] += 1

    def cell(i: int, j: int) -> Cell:
        line = values[i, j]
        if known := int((~np.isnan(line)).sum()):
            floor = None if np.isnan(floors[i, j]) else float(floors[i, j])
            return Cell(float(over_replicates(line)), known, "value", tuple(line.tolist()), floor=floor)
        became = statuses.get((results.levels[i], results.budgets[j]), Counter({"no trial": 1}))
        state = "undefined" if present[i, j].any() else became.most_common(1)[0][0]
        return Cell(None, 0, state, tuple(line.tolist()))

    return [[cell(i, j) for j in range(len(results.budgets))] for i in range(len(results.levels))]


def mean(
    results: Results,
    measure: str,
    condition: str,
    skill: str,
    n_tasks: int,
    flops: float,
    from_flops: float | None = None,
) -> Finding:
    """Mean of a measure at the end of budget `flops`, or its change from budget `from_flops` to `flops` in the same replicates.

    The interval is a t-interval over replicates. The verdict is `incomplete`, without an interval, if a replicate ended without
    a value.
    """
    level = results.levels.index(n_tasks)
    cube = surface(results, measure, condition, skill)
    values = cube[level, results.budgets.index(flops)]
    if from_flops is not None:
        values = values - cube[level, results.budgets.index(from_flops)]
    ended = results.ended(condition, ("done", "diverged", "failed"))[level, results.budgets.index(flops)]
    known, lost = values[~np.isnan(values)].tolist(), int((ended & np.isnan(values)).sum())
    change = "" if from_flops is None else "the change in "
    what = f"{change}{measure}{f' of {skill}' if skill else ''}{in_condition(results, condition)}"
    budgets = f"from {number(from_flops)} to {number(flops)}" if from_flops else f"and {number(flops)}"
    place = f"at {number(n_tasks)} tasks {budgets} FLOPs"
    return Finding(
        name=claim_of("mean", measure, condition, skill, f"{n_tasks}/{from_flops!r}/{flops!r}"),
        question=f"{'change in ' if change else ''}{measure}",
        words=lambda one: f"{what} {place} is {mean_words(one)}",
        condition=condition,
        skill=skill,
        n_tasks=n_tasks,
        compute_flops=flops,
        verdict="missing" if not known else "incomplete" if lost else "measured",
        n=len(known),
        estimate=float(np.mean(known)) if known else None,
        interval=lambda confidence: t_ends([] if lost else known, confidence),
        counted=False,
    )


def t_ends(values: list[float], confidence: float) -> Ends:
    """The t-interval of a mean over replicates; both ends None with fewer than two values."""
    interval = stats.t_interval(values, confidence)
    return (None, None) if interval is None else (interval.low, interval.high)


def mean_words(one: Finding) -> str:
    """A mean with its interval for a sentence: `0.83 (95 % interval 0.7 to 0.96)`."""
    if one.estimate is None:
        return "not measured"
    if one.verdict == "incomplete":
        return (
            f"{figure(one.estimate)} in the {times(one.n, 'replicate')} that {'has' if one.n == 1 else 'have'} a value"
        )
    if not one.has_interval:
        return f"{figure(one.estimate)} ({times(one.n, 'replicate')}, no interval)"
    ends = f"{figure(one.low)} to {figure(one.high)}"
    return f"{figure(one.estimate)} ({round(100 * CONFIDENCE)} % interval {ends})"
