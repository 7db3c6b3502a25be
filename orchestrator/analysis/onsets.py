"""From how much compute on a skill is there, at each number of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis.boundaries import boundary_p, counted, settled
from orchestrator.analysis.claims import Looked, claim_of, words_of_arm
from orchestrator.analysis.results import Results, split_of, surface
from orchestrator.formatting import number, times
from orchestrator.stats import replicates, survival


class ToSkill(NamedTuple):
    """From how much compute on the headline skill is there, at one number of tasks."""

    boundary: stats.Boundary
    """In training FLOPs, along the evaluations of the largest budget's training run; where the model's size follows the budget,
    over the budgets."""
    curve: survival.KaplanMeier | None
    """Kaplan-Meier: share of replicates that have the skill by then; None where nothing was measured."""
    successes: tuple[tuple[float, replicates.Success], ...]
    """(budget, k of n replicates at or above one half after its decay)."""
    p_value: float | None
    """Of what the boundary's verdict says."""
    judged: tuple[int, ...]
    """The replicates behind the boundary's brackets."""


def to_skill(
    results: Results, arm: str, skill: str, n_tasks: int, confidence: float, at_ends: bool = False
) -> ToSkill | None:
    """Compute-to-skill; None where ability was never defined.

    A replicate whose training run diverged or failed is not there from then on; one that is still under way is not
    judged beyond its last look, and not at all where it has none. `at_ends`: by the ends of budgets alone, which is all there
    is where the model's size follows the budget; each is a training run of its own then, and is lost by itself; a replicate
    counts once all of its budgets have ended.
    """
    at_ends = at_ends or results.study.grows(arm)
    key = ("looks", arm, skill, str(n_tasks), str(at_ends))
    seen = results.once(key, lambda: (_at_ends if at_ends else _along)(results, arm, skill, n_tasks))
    if seen is None:
        return None
    boundary = stats.boundary(seen.flops, seen.values, "rising", confidence)
    p_value = boundary_p(seen.values, boundary.verdict, "rising")
    curve = survival.kaplan_meier(*seen.onsets, seen.flops, confidence)
    return ToSkill(boundary, curve, seen.successes, p_value, seen.judged)


class _Looks(NamedTuple):
    """What compute-to-skill is read from, at whatever confidence."""

    flops: list[float]
    values: np.ndarray  # (replicates that can be judged, looks)
    onsets: tuple[np.ndarray, np.ndarray]
    """Of all replicates, for the Kaplan-Meier curve."""
    successes: tuple[tuple[float, replicates.Success], ...]
    judged: tuple[int, ...]
    """The replicates that `values` are of."""


def _at_ends(results: Results, arm: str, skill: str, n_tasks: int) -> _Looks | None:
    level, looks = results.levels.index(n_tasks), results.study.ends(arm)
    cube, open_trials = counted(results, "ability", arm, skill)
    rows = np.flatnonzero(~open_trials[level].any(axis=0))  # a larger budget says nothing of one that has yet to run
    counting = cube[level].T[rows]
    if not np.isfinite(counting).any():
        return None
    onsets = survival.onsets(looks, counting, np.zeros(len(counting), bool))
    return _Looks(looks, counting, onsets, _successes(results, arm, skill, level), tuple(rows.tolist()))


def _along(results: Results, arm: str, skill: str, n_tasks: int) -> _Looks | None:
    flops, values = results.along("ability", arm, skill, split_of(results, skill), n_tasks)
    if not np.isfinite(values).any():
        return None
    level = results.levels.index(n_tasks)
    lost = results.ended(arm, ("diverged", "failed"))[level].any(axis=0)
    waiting = counted(results, "ability", arm, skill)[1][level].any(axis=0)
    onsets = survival.onsets(flops, values, lost)
    looked = np.array([flops[~np.isnan(line)].max(initial=0.0) for line in values])
    after = flops > looked[:, None]  # (replicates, looks)
    values = np.where(after & lost[:, None], -1.0, values)
    counting, rows = settled(values, after & np.isnan(values) & waiting[:, None])
    return _Looks(flops.tolist(), counting, onsets, _successes(results, arm, skill, level), tuple(rows.tolist()))


def _successes(results: Results, arm: str, skill: str, level: int) -> tuple[tuple[float, replicates.Success], ...]:
    values, lost = surface(results, "ability", arm, skill)[level], results.ended(arm, ("diverged", "failed"))[level]
    return tuple(
        (c, cast(replicates.Success, replicates.success(line, stats.HALF, gone)))
        for c, line, gone in zip(results.budgets, values, lost, strict=True)
        if not np.isnan(line).all()
    )


Told = Mapping[tuple[str, str, int], ToSkill | None]
"""(arm, skill, n_tasks) -> compute to skill."""


def claims_of_onsets(results: Results, skills: tuple[str, ...], every: Told) -> Iterator[Looked]:
    """That a skill comes, does not, or is there at the first look, at each number of tasks."""
    comes = {
        "crossed": "comes in the course of training",
        "below": "is there at the first look",
        "beyond": "does not come",
    }
    for (arm, skill, n), told in every.items():
        if told is None and skill != skills[0]:
            continue
        said = comes.get(told.boundary.verdict if told else "missing", "comes or does not")
        says = f"{skill}{words_of_arm(results, arm)} {said} at {number(n)} tasks"
        yield claim_of("to", "skill", arm, skill, float(n)), says, told.p_value if told else None


def flops_words(boundary: stats.Boundary, looks: Sequence[float]) -> str:
    """From how much compute on, in words; an end outside the evaluations is told by their end."""
    if boundary.verdict == "missing":
        return "is not defined"
    if boundary.verdict == "beyond":
        return f"is not there by {number(max(looks))} FLOPs"
    if boundary.verdict == "below":
        return f"is there at the first look, {number(min(looks))} FLOPs"
    low, high = boundary.low, boundary.high
    if high is None or high > max(looks):
        bound = f", not before {number(low)} FLOPs" if low is not None and low >= min(looks) else ""
        reached = sum(b.high is not None for b in boundary.brackets)
        lost = f" ({boundary.lost_again} had it and lost it again)" if boundary.lost_again else ""
        n = times(len(boundary.brackets), "replicate")
        return f"is there to stay in {reached} of {n} by {number(max(looks))} FLOPs{lost}{bound}"
    if low is None or low < min(looks):
        return f"comes by {number(high)} FLOPs"
    return f"comes between {number(low)} and {number(high)} FLOPs"
