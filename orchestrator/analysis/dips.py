"""Dips: does a mean over replicates go against its expected direction along an axis, such as ability that falls with more compute?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from orchestrator import stats
from orchestrator.analysis.boundaries import DIRECTION, measures
from orchestrator.analysis.finding import FALSE_SHARE, Finding, claim_of, in_condition
from orchestrator.analysis.results import Results, surface
from orchestrator.formatting import number, signed
from orchestrator.stats import multiplicity


def ask(results: Results) -> Iterator[Finding]:
    """A test for a dip along the numbers of tasks at each budget, and of ability along compute at each number of tasks.

    Ability should rise, memory should fall with more tasks. The p-values are corrected among themselves, apart from all
    other findings. Along compute a negative ability counts as 0: a model that is wrong with growing confidence had no
    skill to lose.
    """
    found = [one for condition in results.study.conditions for one in _of_condition(results, condition)]
    claims = multiplicity.adjust([one.p for one in found]).claims
    for one, claim in zip(found, claims, strict=True):
        significant = claim.adjusted_p is not None and claim.adjusted_p < FALSE_SHARE
        yield replace(one, adjusted_p=claim.adjusted_p, significance="significant" if significant else "")


def _of_condition(results: Results, condition: str) -> Iterator[Finding]:
    levels = [float(n) for n in results.levels]
    for measure, skill in measures(results):
        cube = surface(results, measure, condition, skill)
        for j, c in enumerate(results.budgets):
            if not np.isnan(cube[:, j]).all():
                test = stats.monotone(levels, cube[:, j].T, DIRECTION[measure])
                yield _dip(results, condition, skill, test, int((~np.isnan(cube[:, j])).any(0).sum()), flops=c)
        for i, n in enumerate(results.levels if measure == "ability" else ()):
            if not np.isnan(cube[i]).all():
                test = stats.monotone(results.budgets, np.maximum(cube[i], 0.0).T, "rising")
                yield _dip(results, condition, skill, test, int((~np.isnan(cube[i])).any(0).sum()), n_tasks=n)


def _dip(
    results: Results,
    condition: str,
    skill: str,
    test: stats.Monotone,
    n: int,
    n_tasks: int | None = None,
    flops: float | None = None,
) -> Finding:
    """The finding of one test. n: replicates with a value. Either n_tasks or flops is given: the value that stays fixed."""
    unit, place = ("tasks", f"{number(flops)} FLOPs") if flops else ("FLOPs", f"{number(n_tasks or 0)} tasks")
    name = f"{f'ability of {skill}' if skill else 'memory'}{in_condition(results, condition)}"

    def words(one: Finding) -> str:
        if test.pair is None:
            return f"a change of {name} with {'tasks' if flops else 'compute'} could not be tested at {place}"
        first, second = map(number, test.pair)
        return f"{name} changes by {signed(one.estimate or 0.0)} between {first} and {second} {unit} at {place}"

    return Finding(
        name=claim_of("dip", "n_tasks" if flops else "compute_flops", condition, skill, flops or float(n_tasks or 0)),
        question=f"dip along {'n_tasks' if flops else 'compute_flops'}",
        words=words,
        condition=condition,
        skill=skill,
        n_tasks=n_tasks,
        compute_flops=flops,
        verdict="missing" if test.pair is None else "dips" if (test.change or 0.0) * _sign(skill) < 0 else "monotone",
        n=n,
        p=test.p_value,
        estimate=test.change,
        counted=False,
    )


def _sign(skill: str) -> int:
    """The sign of an expected change: +1 for ability, -1 for memory (skill "")."""
    return 1 if skill else -1
