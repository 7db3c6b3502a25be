"""Boundaries along a family parameter (`axes.family`): from which value on is a measure past one half?

The values are taken as equal steps of a scale, as their distances may mean nothing. So the interval does not depend on the
unit of the parameter, and 0 may be a value. Ends between two values are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis.boundaries import counted, edge, of_median, seen, settled
from orchestrator.analysis.finding import Ends, Finding, claim_of
from orchestrator.analysis.results import Results
from orchestrator.formatting import figure, number, times
from orchestrator.stats.boundaries import Bracket
from orchestrator.study.schema import Study
from trainers.tasks import Family

SUBJECTS = {"ability": "ability in {skill}", "long_answers": "the share of long answers in {skill}"}
"""Measure with a boundary along a family parameter -> its name in sentences."""


def measures(results: Results) -> list[str]:
    """The measures with such a boundary: ability, and of text the share of long answers."""
    return [*SUBJECTS] if cast(Family, results.study.family).ability_of == "right" else ["ability"]


def spans(study: Study) -> bool:
    """Whether surfaces run along the parameter instead of the number of tasks: the study has one, and a single number of tasks."""
    return bool(study.axis) and len(study.axes.n_tasks) == 1


def ask(results: Results) -> Iterator[Finding]:
    """The boundary of each measure in each series of conditions (`Study.series`), at every number of tasks and budget.

    Skills other than the headline skill are left out where they have no value.
    """
    skills = results.study.shown_skills
    for name in results.study.series:
        for measure in measures(results):
            for skill in skills:
                for n in results.levels:
                    for flops in results.budgets:
                        one = boundary(results, measure, name, skill, n, flops)
                        if one.verdict != "missing" or skill == skills[0]:
                            yield one


def name_of(measure: str, series: str, skill: str, n_tasks: int, flops: float) -> str:
    """The name of the finding."""
    return claim_of("along", measure, series, skill, f"{n_tasks}/{flops!r}")


def question_of(results: Results, measure: str) -> str:
    """`Finding.question` of a measure: `along share: ability`."""
    return f"along {results.study.axis}: {measure}"


def boundary(results: Results, measure: str, series: str, skill: str, n_tasks: int, flops: float) -> Finding:
    """The value at which the median replicate passes one half, in a series of conditions. `Finding.condition` is the series.

    Rising, unless the median is at or above one half at the first value, and below it at the last. A diverged or failed trial
    counts as below one half (`boundaries.counted`).
    """
    study = results.study
    values = [*study.series[series]]
    i, j = results.levels.index(n_tasks), results.budgets.index(flops)
    parts = [counted(results, measure, condition, skill) for condition in study.series[series].values()]
    cells, waiting = (np.stack([part[k][i, j] for part in parts], axis=1) for k in (0, 1))  # (replicates, values)
    table, rows = settled(cells, waiting)
    direction = _direction(table)
    several = f" ({series})" if len(study.series) > 1 else ""
    subject = SUBJECTS[measure].format(skill=skill) + several
    tasks = "" if spans(study) else f"{times(n_tasks, 'task')} and "
    place = f"at {tasks}{number(flops)} FLOPs"
    one = of_median(
        np.exp(np.arange(len(values))).tolist(),
        table,
        direction,
        rows.tolist(),
        name=name_of(measure, series, skill, n_tasks, flops),
        question=question_of(results, measure),
        words=lambda one: f"{subject} {place_words(one, study.axis, direction)} {place}",
        condition=series,
        skill=skill,
        n_tasks=n_tasks,
        compute_flops=flops,
    )

    def back(ends: Ends) -> Ends:
        """Steps of the scale as values of the parameter. Steps outside the scale are open ends."""
        steps = [None if end is None else float(np.log(end)) for end in ends]
        known = [None if s is None or not -1e-9 <= s <= len(values) - 1 + 1e-9 else s for s in steps]
        low, high = (None if s is None else _at(values, s) for s in known)
        return low, high

    return replace(
        one,
        interval=lambda confidence: back(one.interval(confidence)),
        reach=cast(tuple[float, float] | None, back(one.reach) if one.reach else None),
        brackets=tuple(Bracket(*back(bracket)) for bracket in one.brackets),
    )


def _at(values: list[float], step: float) -> float:
    """The value at a step of the scale; between two values interpolated."""
    if abs(step - round(step)) < 1e-9:
        return values[round(step)]
    return float(np.interp(step, np.arange(len(values)), values))


def _direction(table: np.ndarray) -> Literal["rising", "falling"]:
    """The way in which the median of a table (replicates, values) passes one half; rising if it does not pass it."""
    known = table[:, ~np.isnan(table).all(axis=0)] if len(table) else table
    if not known.size:
        return "rising"
    first, last = (float(np.nanmedian(known[:, k])) for k in (0, -1))
    return "falling" if first >= stats.HALF > last else "rising"


_PLACES = {
    "rising": ("passes one half", "stays below one half up to", "is at one half or more from"),
    "falling": ("falls below one half", "stays at one half or more up to", "is below one half from"),
}
"""Direction -> verbs of the verdicts crossed, beyond and below."""


def place_words(one: Finding, axis: str, direction: Literal["rising", "falling"]) -> str:
    """The position of the boundary for a sentence: `passes one half between share 0.25 and 0.4`."""
    passes, beyond, below = _PLACES[direction]
    if one.verdict == "missing":
        return "has no value"
    if one.verdict == "beyond":
        return f"{beyond} {axis} {figure(edge(one))}"
    if one.verdict == "below":
        return f"{below} {axis} {figure(edge(one))} on"
    if one.verdict == "undecided":
        k = sum(bracket.high is not None for bracket in one.brackets)
        return f"{passes} in {k} of {times(one.n, 'replicate')}"
    if None in one.ends and len(set(one.brackets)) == 1:  # an open end says less than that all agree
        return f"{passes} {_between(seen(one), axis)} in each of {times(one.n, 'replicate')}"
    return f"{passes} {_between(one.ends, axis)}"


def _between(ends: Ends, axis: str) -> str:
    low, high = ends
    if low is not None and high is not None:
        return f"between {axis} {figure(low)} and {figure(high)}"
    return f"at {axis} {figure(high)} or less" if high is not None else f"above {axis} {figure(low)}"
