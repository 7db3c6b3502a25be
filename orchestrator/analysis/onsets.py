"""Compute to skill: the compute from which on a skill is there (ability at or above one half), at each number of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis.boundaries import counted, edge, of_median, seen, settled
from orchestrator.analysis.finding import CONFIDENCE, Finding, between, claim_of, in_condition
from orchestrator.analysis.results import Results, split_of, surface
from orchestrator.formatting import number
from orchestrator.stats import replicates, survival


def ask(results: Results) -> Iterator[Finding]:
    """Compute to skill at every number of tasks: of the headline skill, and of other shown skills with a defined ability."""
    skills = results.study.shown_skills
    for condition in results.study.conditions:
        for skill in skills:
            for n in results.levels:
                one = onset(results, condition, skill, n)
                if one.verdict != "missing" or skill == skills[0]:
                    yield one


def onset(results: Results, condition: str, skill: str, n_tasks: int, at_ends: bool = False) -> Finding:
    """Compute to skill in training FLOPs; verdict `missing` if ability was never defined.

    After its last evaluation, a replicate whose training run diverged or failed counts as without the skill. A replicate that
    is still training is not judged beyond its last evaluation. `at_ends`: only evaluations at the ends of the budgets count,
    not those along the trunk. It is always so if the model's size follows the budget.
    """
    key = ("onset", condition, skill, str(n_tasks), str(at_ends))
    return results.once(key, lambda: _onset(results, condition, skill, n_tasks, at_ends))


def _onset(results: Results, condition: str, skill: str, n_tasks: int, at_ends: bool) -> Finding:
    looks = looks_of(results, condition, skill, n_tasks, at_ends)
    what = f"{skill}{in_condition(results, condition)}"
    return of_median(
        looks.flops if looks else [1.0],
        looks.values if looks else np.empty((0, 1)),
        "rising",
        looks.judged if looks else (),
        name=claim_of("to", "skill", condition, skill, float(n_tasks)),
        question="compute to skill",
        words=lambda one: f"{what} {onset_words(one)} at {number(n_tasks)} tasks",
        condition=condition,
        skill=skill,
        n_tasks=n_tasks,
    )


class Looks(NamedTuple):
    """The evaluations of ability behind a compute to skill; a look is the compute of an evaluation."""

    flops: list[float]
    """Training FLOPs of each look, ascending."""
    values: np.ndarray
    """Ability, (judged replicates, looks); NaN is missing, -1 a lost replicate."""
    onsets: tuple[np.ndarray, np.ndarray]
    """For all replicates, two arrays in FLOPs: the onset, and the last look without one. Input of `survival.kaplan_meier`."""
    judged: tuple[int, ...]
    """Numbers of the replicates in `values`: those that have ended, or have all chosen looks (`boundaries.settled`)."""


def looks_of(results: Results, condition: str, skill: str, n_tasks: int, at_ends: bool = False) -> Looks | None:
    """The evaluations of ability at one number of tasks; None if ability was never defined. at_ends: as in `onset`."""
    at_ends = at_ends or results.study.grows(condition)
    read = _at_ends if at_ends else _along
    key = ("looks", condition, skill, str(n_tasks), str(at_ends))
    return results.once(key, lambda: read(results, condition, skill, n_tasks))


def _at_ends(results: Results, condition: str, skill: str, n_tasks: int) -> Looks | None:
    """The looks at the ends of the budgets. A replicate with an open trial is left out: no other budget can stand in for it."""
    level, looks = results.levels.index(n_tasks), results.study.ends(condition)
    cube, open_trials = counted(results, "ability", condition, skill)
    rows = np.flatnonzero(~open_trials[level].any(axis=0))  # a larger budget says nothing of one that has yet to run
    own = [results.budgets.index(flops) for flops in results.study.budgets_of(condition)]
    values = cube[level][own].T[rows]
    if not np.isfinite(values).any():
        return None
    return Looks(looks, values, survival.onsets(looks, values, np.zeros(len(values), bool)), tuple(rows.tolist()))


def _along(results: Results, condition: str, skill: str, n_tasks: int) -> Looks | None:
    """The looks along the training runs, at all evaluations."""
    flops, values = results.along("ability", condition, skill, split_of(results, skill), n_tasks)
    if not np.isfinite(values).any():
        return None
    level = results.levels.index(n_tasks)
    lost = results.ended(condition, ("diverged", "failed"))[level].any(axis=0)
    waiting = counted(results, "ability", condition, skill)[1][level].any(axis=0)
    onsets = survival.onsets(flops, values, lost)
    looked = np.array([flops[~np.isnan(line)].max(initial=0.0) for line in values])
    after = flops > looked[:, None]  # (replicates, evaluations)
    values = np.where(after & lost[:, None], -1.0, values)
    counting, rows = settled(values, after & np.isnan(values) & waiting[:, None])
    return Looks(flops.tolist(), counting, onsets, tuple(rows.tolist()))


def curve(results: Results, condition: str, skill: str, n_tasks: int) -> survival.KaplanMeier | None:
    """Kaplan-Meier curve of the share of replicates with the skill, by compute; None if ability was never defined."""
    looks = looks_of(results, condition, skill, n_tasks)
    return None if looks is None else survival.kaplan_meier(*looks.onsets, looks.flops, CONFIDENCE)


def successes(results: Results, condition: str, skill: str, n_tasks: int) -> dict[float, replicates.Success]:
    """Budget -> number of replicates with an ability of at least one half at its end, for each budget with a value."""
    level = results.levels.index(n_tasks)
    values = surface(results, "ability", condition, skill)[level]
    lost = results.ended(condition, ("diverged", "failed"))[level]
    return {
        c: cast(replicates.Success, replicates.success(line, stats.HALF, gone))
        for c, line, gone in zip(results.budgets, values, lost, strict=True)
        if not np.isnan(line).all()
    }


def reached(results: Results, condition: str, n_tasks: int) -> tuple[int, int]:
    """k of n replicates with the headline skill at the end of the largest budget with a value; lost trials count as without."""
    made = [*successes(results, condition, results.study.shown_skills[0], n_tasks).values()]
    return (made[-1].k, made[-1].n) if made else (0, 0)


def onset_words(one: Finding) -> str:
    """The compute to skill for a sentence, as a verb with its object: `appears between 1e10 and 4e10 FLOPs`."""
    if one.verdict == "missing":
        return "has no value"
    if one.verdict == "beyond":
        return f"does not appear up to {number(edge(one))} FLOPs"
    if one.verdict == "below":
        return f"is already there at the first evaluation ({number(edge(one))} FLOPs)"
    if one.verdict == "undecided":
        return f"appears in {sum(b.high is not None for b in one.brackets)} of {one.n} replicates"
    if one.ends == (None, None):
        return f"appears {between(*seen(one), unit='FLOPs')} in each of {one.n} replicates"
    return f"appears {between(*one.ends, unit='FLOPs')}"
