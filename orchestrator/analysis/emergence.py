"""Break or smooth: does a shown skill change abruptly along the numbers of tasks, or along compute?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np

from orchestrator.analysis.finding import Finding, between, claim_of, in_condition
from orchestrator.analysis.results import Axis, Results, split_of
from orchestrator.formatting import number
from orchestrator.stats import breaks
from orchestrator.stats.minimums import MIN_REPLICATES, MIN_SCALES


def ask(results: Results) -> Iterator[Finding]:
    """Break or smooth for every skill, along the numbers of tasks at each budget, and along compute at each number of tasks.

    Along compute only evaluations at the constant learning rate are read: the decay at the end would look like a break.
    """
    for condition in results.study.conditions:
        for skill in results.study.shown_skills:
            split = split_of(results, skill)
            if (condition, skill, split) not in results.groups():
                continue
            cubes = {m: results.cube(m, condition, skill, split) for m in _METRICS}
            levels = np.array(results.levels, float)
            for j, c in enumerate(results.budgets):
                lines = {m: cube[:, j].T for m, cube in cubes.items()}
                yield _finding(results, condition, skill, "n_tasks", c, levels, lines)
            for n in results.levels:
                runs = {m: results.along(m, condition, skill, split, n, decayed=False) for m in _METRICS}
                scale = np.unique(np.concatenate([flops for flops, _ in runs.values()]))
                lines = {m: _on(scale, *run) for m, run in runs.items()}
                yield _finding(results, condition, skill, "compute_flops", float(n), scale, lines)


_METRICS = {
    "loss_nats": "loss",
    "brier": "brier",
    "probability": "expected_accuracy",
    "accuracy": "accuracy",
    "exact_match": "exact_match",
}
"""Name in MEASURES -> name among the scores of `breaks.emergence`."""


def _on(scale: np.ndarray, flops: np.ndarray, values: np.ndarray) -> np.ndarray:
    """values (R, P) at compute `flops` (P,), as a table (R, S) over the whole `scale` (S,), with NaN elsewhere."""
    table = np.full((len(values), len(scale)), np.nan)
    table[:, np.searchsorted(scale, flops)] = values
    return table


def _finding(
    results: Results,
    condition: str,
    skill: str,
    axis: Axis,
    fixed: float,
    scale: np.ndarray,
    lines: dict[str, np.ndarray],
) -> Finding:
    """Break or smooth of one skill along one cut.

    fixed: the budget in FLOPs, or the number of tasks, that stays fixed. scale (S,): values along the axis, not logs. lines: measure
    -> (R, S).
    """
    found = _emergence(scale, lines)
    along, unit, at = ("tasks", "tasks", "FLOPs") if axis == "n_tasks" else ("compute", "FLOPs", "tasks")
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    what, where = f"{skill}{in_condition(results, condition)}", f"at {number(fixed)} {at}"

    def words(one: Finding) -> str:
        if one.verdict == "break":
            return f"{what} changes abruptly along {along}, {between(*one.ends, unit=unit)}, {where}"
        if one.verdict == "undecided":
            return f"{what} is not shown to change abruptly or smoothly along {along} {where} ({found.why})"
        return f"{what} {'was not measured' if one.verdict == 'missing' else 'changes smoothly'} along {along} {where}"

    return Finding(
        name=claim_of("break", axis, condition, skill, fixed),
        question=f"emergence along {axis}",
        words=words,
        condition=condition,
        skill=skill,
        n_tasks=int(fixed) if axis == "compute_flops" else None,
        compute_flops=fixed if axis == "n_tasks" else None,
        verdict=found.verdict,
        answered=found.verdict == "smooth",
        n=max((one.n_replicates for one in found.metrics.values()), default=0),
        p=_break_p(found),
        interval=lambda confidence: (low, high) if found.verdict == "break" else (None, None),
    )


def _emergence(scale: np.ndarray, lines: dict[str, np.ndarray]) -> breaks.Emergence:
    """`breaks.emergence` with the names of scores. Exact match is left out if it has no value."""
    scores = {_METRICS[m]: values for m, values in lines.items()}
    if not np.isfinite(scores["exact_match"]).any():
        del scores["exact_match"]
    return breaks.emergence(np.log(scale) if len(scale) else np.array([]), scores)


def _break_p(found: breaks.Emergence) -> float | None:
    """p-value of a break: the larger of `p_smooth` and `p_straight` of the decisive score. 1 for another verdict.

    None if no score has MIN_SCALES scales and MIN_REPLICATES replicates.
    """
    scores = found.metrics.values()
    if not any(len(one.scales) >= MIN_SCALES and one.n_replicates >= MIN_REPLICATES for one in scores):
        return None
    if found.verdict != "break":
        return 1.0
    decisive = found.metrics[cast(str, found.decisive)]
    return max(cast(float, decisive.p_smooth), cast(float, decisive.p_straight))
