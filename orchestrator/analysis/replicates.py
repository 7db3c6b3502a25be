"""Variation between replicates: k of n with the skill in the cell at the onset, and the coefficient of variation of accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis.finding import Ends, Finding, claim_of, in_condition, no_interval, remembered
from orchestrator.analysis.measures import headline
from orchestrator.analysis.results import Results, split_of, surface
from orchestrator.formatting import decimal, number, percent
from orchestrator.stats import replicates
from trainers.tasks import Family


def ask(results: Results) -> Iterator[Finding]:
    """For each condition, the share of replicates with the headline skill at its onset, and the noise of every shown skill."""
    for condition in results.study.conditions:
        if (share := _share_at_the_onset(results, condition)) is not None:
            yield share
    for condition in results.study.conditions:
        for skill in results.study.shown_skills:
            if (one := _noise(results, condition, skill)) is not None:
                yield one


NEAR = 0.35
"""Largest distance of a cell's mean ability from one half at which the cell counts as at the onset (assumed)."""


def _share_at_the_onset(results: Results, condition: str) -> Finding | None:
    """k of n replicates with the skill, in the cell whose mean ability is nearest to one half.

    None if no cell has a mean within NEAR of one half, or if no replicate has an ability of one half anywhere. Lost trials
    count as without the skill. Wilson's interval is corrected for the choice of the cell.
    """
    skill = results.study.shown_skills[0]
    cube, lost = surface(results, "ability", condition, skill), results.ended(condition, ("diverged", "failed"))
    cells = cube.reshape(-1, results.n_replicates)
    found = replicates.nearest_success(cells, stats.HALF, lost.reshape(cells.shape))
    if found is None or not (cells >= stats.HALF).any():
        return None
    place, made = found
    if abs(float(np.nanmean(cells[place])) - stats.HALF) > NEAR:
        return None
    i, j = np.unravel_index(place, cube.shape[:2])
    n_tasks, flops = results.levels[i], results.budgets[j]
    lowest, highest = float(np.nanmin(cells[place])), float(np.nanmax(cells[place]))

    def interval(confidence: float) -> Ends:
        at = replicates.nearest_success(cells, stats.HALF, lost.reshape(cells.shape), confidence)
        return (None, None) if at is None else (at[1].low, at[1].high)

    def words(one: Finding) -> str:
        where = f"at {number(n_tasks)} tasks and {number(flops)} FLOPs"
        have = f"{made.k} of {made.n} replicates have {skill}{in_condition(results, condition)}"
        return f"{have} {where}, with abilities from {decimal(lowest)} to {decimal(highest)}"

    return Finding(
        name=claim_of("share", "ability", condition, skill),
        question="share at the onset",
        words=words,
        condition=condition,
        skill=skill,
        n_tasks=n_tasks,
        compute_flops=flops,
        verdict="all" if made.k == made.n else "none" if made.k == 0 else "some",
        answered=True,
        n=made.n,
        estimate=made.k / made.n,
        interval=remembered((made.low, made.high), interval),
        counted=False,
    )


def _noise(results: Results, condition: str, skill: str) -> Finding | None:
    """The largest coefficient of variation of accuracy (of text, of right answers) between replicates, over the numbers of tasks at the largest budget with one.

    Only numbers of tasks with a mean of at least half of the largest mean count.
    """
    measure = headline(cast(Family, results.study.family).ability_of)[1]
    cube = results.cube(measure, condition, skill, split_of(results, skill))
    for j in reversed(range(len(results.budgets))):
        found = _noisiest(results.levels, cube[:, j])
        if found is not None:
            levels, noise = found
            break
    else:
        return None
    flops = results.budgets[j]
    where = f"at {' and '.join(map(number, levels))} tasks and {number(flops)} FLOPs"
    what = f"{measure} of {skill}{in_condition(results, condition)}"

    def words(one: Finding) -> str:
        sd = "" if noise.sd is None else f" (standard deviation {decimal(noise.sd, 3)})"
        return f"{what} varies between replicates by {percent(one.estimate or 0.0)}{sd} {where}"

    return Finding(
        name=claim_of("noise", measure, condition, skill),
        question="noise",
        words=words,
        condition=condition,
        skill=skill,
        compute_flops=flops,
        verdict="measured",
        answered=True,
        n=noise.n,
        estimate=noise.cv,
        interval=remembered((noise.cv_low, noise.cv_high), no_interval),
        counted=False,
    )


def _noisiest(levels: list[int], lines: np.ndarray) -> tuple[tuple[int, ...], replicates.Noise] | None:
    """The numbers of tasks with the largest coefficient of variation, and their pooled noise (`replicates.noisiest`); or None.

    lines (n_tasks, replicates): accuracy at one budget.
    """
    measured = [(n, line) for n, line in zip(levels, lines, strict=True) if not np.isnan(line).all()]
    top = max((float(np.nanmean(line)) for _, line in measured), default=0.0)
    comparable = [(n, line.tolist()) for n, line in measured if np.nanmean(line) >= top / 2]
    found = replicates.noisiest([line for _, line in comparable])
    return None if found is None else (tuple(comparable[i][0] for i in found.cells), found.noise)
