"""Where a skill appears and where memory ends, budget by budget, and how both move with compute.

Every interval takes a confidence: those of all claims but the primary one are corrected for how much was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
from scipy import special

from orchestrator import stats
from orchestrator.analysis.claims import (
    CONFIDENCE,
    Confidence,
    Looked,
    Measure,
    claim_of,
    plain_confidence,
    words_of_arm,
)
from orchestrator.analysis.results import Axis, Results, surface
from orchestrator.formatting import factor, number, signed
from orchestrator.stats import multiplicity
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.minimums import BOUNDARY

Boundaries = list[tuple[float, stats.Boundary]]
"""(compute_flops, boundary) by ascending budget."""


DIRECTION: dict[str, Literal["rising", "falling"]] = {"ability": "rising", "memory": "falling"}


# Boundaries along the numbers of tasks ------------------------------------------------------------------------------


def boundaries_of(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str, confidence: Confidence
) -> Boundaries:
    """K_A or K_M at every budget. A replicate that diverged or failed where others have a value counts as not there; one
    that has not come so far is not counted, neither as there nor as not."""
    levels = [float(n) for n in results.levels]
    tables = judged(results, measure, arm, skill)
    return [
        (c, stats.boundary(levels, table, DIRECTION[measure], confidence(claim_of("k", measure, arm, skill, c))))
        for c, (table, _) in zip(results.budgets, tables, strict=True)
    ]


def judged(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At every budget, what a boundary is read from: a table (replicates, n_tasks), and which replicates these are."""
    cube, waiting = counted(results, measure, arm, skill)
    tables = lambda: [settled(cube[:, j].T, waiting[:, j].T) for j in range(len(results.budgets))]  # noqa: E731
    return results.once(("judged", measure, arm, skill), tables)


def counted(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str
) -> tuple[np.ndarray, np.ndarray]:
    """The surface with its lost trials, and which trials have yet to end; (n_tasks, compute, replicates) each.

    Diverged and failed trials are as far below one half as need be, wherever the quantity is defined for another replicate.
    """
    return results.once(("counted", measure, arm, skill), lambda: _counted(results, measure, arm, skill))


def _counted(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str
) -> tuple[np.ndarray, np.ndarray]:
    cube = surface(results, measure, arm, skill)
    ended = results.ended(arm, ("done", "diverged", "failed"))
    lost = results.ended(arm, ("diverged", "failed"))
    defined = ~np.isnan(cube).all(axis=2, keepdims=True)
    return np.where(lost & np.isnan(cube) & defined, -1.0, cube), ~ended & np.isnan(cube)


def settled(table: np.ndarray, waiting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a table (replicates, levels) with trials still to come: the replicates that can be judged, and which they are.

    A replicate that lacks a level others have would count as not across there, though it has only not run yet. So the
    levels that some replicate has are kept with the replicates that have all of them: the choice with the most cells,
    and, of equals, the one with the most replicates. Other levels are blank. Nothing waiting: the table as it is.
    """
    known = ~np.isnan(table)
    if not (waiting & known.any(axis=0)).any():
        rows = np.flatnonzero(known.any(axis=1) | ~waiting.all(axis=1))
        return table[rows], rows
    best: tuple[int, int] = (0, 0)
    kept, rows = np.zeros(table.shape[1], bool), np.array([], int)
    for levels in np.unique(known, axis=0):
        can = np.flatnonzero(~waiting[:, levels].any(axis=1) & known[:, levels].any(axis=1))
        score = (len(can) * int(levels.sum()), len(can))
        if score > best:
            best, kept, rows = score, levels, can
    return np.where(kept, table[rows], np.nan), rows


LEAST_TESTED = BOUNDARY.replicates
"""Replicates from which a sign test of the median can be significant at 5 %."""


def boundary_p(table: np.ndarray, verdict: str, direction: Literal["rising", "falling"]) -> float | None:
    """Two-sided sign test of what a boundary's verdict says of the median replicate. table (replicates, levels).

    `crossed`: the first level is not across and the last one is; `below`: the first is; `beyond`: the last is not. A boundary
    is a median over replicates, and n of them agree by chance with probability 2^-n on either side: below LEAST_TESTED
    nothing can be shown at 5 %, however clear each one is. Such a test could not be kept and would only make the others
    harder to keep, so it is none (Tarone 1990: what its least p-value, known before the outcome, rules out is left out of the
    count). An undecided boundary is a claim that failed (p = 1), not one that could not be tested. None, too, where nothing is
    defined.
    """
    known = table.T[~np.isnan(table).all(axis=0)]  # (levels, replicates)
    if not len(known) or known.shape[1] < LEAST_TESTED:
        return None
    if verdict not in ("crossed", "below", "beyond"):
        return 1.0

    def sign_p(line: np.ndarray, should_be_across: bool) -> float:
        line = line[~np.isnan(line)]
        across = (line >= stats.HALF) == (direction == "rising")
        return min(1.0, 2 * float(special.bdtr(int((across != should_be_across).sum()), len(line), 0.5)))

    if verdict == "below":
        return sign_p(known[0], True)
    if verdict == "beyond":
        return sign_p(known[-1], False)
    return max(sign_p(known[0], False), sign_p(known[-1], True))


def drift(
    results: Results,
    measure: Literal["ability", "memory"],
    arm: str,
    skill: str,
    found: Boundaries,
    confidence: float,
) -> stats.Drift:
    """How a boundary moves with compute, in doublings per doubling, between the budgets at which every replicate crosses.

    Where none does, at a budget too small for anything, the distance to the grid's end is the grid's and not a rate.
    Only replicates that have come to all of these budgets can say how they moved.
    """
    of_budget = [rows.tolist() for _, rows in judged(results, measure, arm, skill)]
    crossed = [b.verdict == "crossed" for _, b in found]
    common = set(range(results.n_replicates)).intersection(
        *(of for of, yes in zip(of_budget, crossed, strict=True) if yes)
    )
    rows = [
        tuple(bracket for r, bracket in zip(of, b.brackets, strict=True) if r in common) if yes else ()
        for (_, b), of, yes in zip(found, of_budget, crossed, strict=True)
    ]
    return stats.drift([c for c, _ in found], rows, confidence)


class Dip(NamedTuple):
    """Does a mean go against its direction along one axis, the other held fixed?"""

    arm: str
    skill: str
    """"" is memory."""
    axis: Axis
    fixed: float
    test: stats.Monotone
    """p-values are adjusted."""

    @property
    def is_shown(self) -> bool:
        """Is it more than noise explains, at 5 % of what is told being false?"""
        return self.test.p_value is not None and self.test.p_value < 0.05


def dips(results: Results, skills: tuple[str, ...]) -> tuple[Dip, ...]:
    """Is each mean monotone along the numbers of tasks at every budget, and ability along the budgets at every number of tasks,
    or does noise not explain a dip? p-values are adjusted (Benjamini and Hochberg) over all that is asked here.

    Along compute a negative ability counts as 0: a model that knows nothing and grows surer of it loses no skill.
    """
    levels = [float(n) for n in results.levels]
    asked: list[Dip] = []
    for arm in results.study.lines:
        measures: list[tuple[Literal["ability", "memory"], str]] = [("ability", skill) for skill in skills]
        for measure, skill in [*measures, ("memory", "")]:
            cube = surface(results, measure, arm, skill)
            for j, c in enumerate(results.budgets):
                test = stats.monotone(levels, cube[:, j].T, DIRECTION[measure])
                asked += [Dip(arm, skill, "n_tasks", c, test)] if not np.isnan(cube[:, j]).all() else []
            for i, n in enumerate(results.levels if measure == "ability" else ()):
                test = stats.monotone(results.budgets, np.maximum(cube[i], 0.0).T, "rising")
                asked += [Dip(arm, skill, "compute_flops", float(n), test)] if not np.isnan(cube[i]).all() else []
    adjusted = multiplicity.adjust([one.test.p_value for one in asked]).claims
    return tuple(
        one._replace(test=one.test._replace(p_value=claim.adjusted_p))
        for one, claim in zip(asked, adjusted, strict=True)
    )


def claims_of_boundaries(results: Results, arm: str, skills: tuple[str, ...]) -> Iterator[Looked]:
    """Where each skill appears and memory ends, budget by budget; and how that moves with compute."""
    kinds: list[tuple[Measure, str]] = [*(("ability", skill) for skill in skills), ("memory", "")]
    for measure, skill in kinds:
        tables = judged(results, measure, arm, skill)
        whole = boundaries_of(results, measure, arm, skill, plain_confidence)
        what = f"{skill or 'memory'}{words_of_arm(results, arm)}"
        for (table, _), (c, b) in zip(tables, whole, strict=True):
            p = boundary_p(table, b.verdict, DIRECTION[measure])
            yield claim_of("k", measure, arm, skill, c), _says(what, measure, b, c), p
        if len(whole) > 1:
            moved = drift(results, measure, arm, skill, whole, CONFIDENCE)
            says = (
                f"K_A of {what} drifts with compute"
                if skill
                else f"K_M{words_of_arm(results, arm)} drifts with compute"
            )
            yield claim_of("drift", measure, arm, skill), says, _drift_p(moved, whole)


Brackets = tuple[tuple[stats.Bracket, ...], tuple[stats.Bracket, ...]]
"""Where the replicates of one side cross, and those of another, paired."""

Judged = tuple[np.ndarray, np.ndarray]
"""A table (replicates, levels), and which replicates these are (`judged`)."""


def brackets_in_both(
    grids: tuple[Sequence[float], Sequence[float]], judged: tuple[Judged, Judged], measure: Measure
) -> Brackets:
    """Where each replicate crosses on either side; of the replicates that can be judged on both."""
    rows = [of.tolist() for _, of in judged]
    common = [r for r in rows[0] if r in rows[1]]
    first, second = (
        stats.boundary(levels, table[[own.index(r) for r in common]], DIRECTION[measure]).brackets
        for levels, (table, _), own in zip(grids, judged, rows, strict=True)
    )
    return first, second


def _drift_p(moved: stats.Drift, whole: Boundaries) -> float | None:
    """p-value of a drift: 1 where the boundary was looked for at two budgets and is not seen at both, None where it was not, or in
    too few replicates."""
    looked = [b for _, b in whole if b.verdict != "missing" and len(b.brackets) >= MIN_TESTED]
    return (1.0 if moved.p_value is None else moved.p_value) if len(looked) > 1 else None


def _says(what: str, measure: Measure, boundary: stats.Boundary, flops: float) -> str:
    said = {
        "ability": {
            "crossed": "appears within the grid",
            "below": "is there from the first level on",
            "beyond": "does not appear",
        },
        "memory": {
            "crossed": "ends within the grid",
            "below": "is not there at any level",
            "beyond": "holds to the last level",
        },
    }[measure]
    return f"{what} {said.get(boundary.verdict, 'has a boundary')} at {number(flops)} FLOPs"


def _boundary_words(
    boundary: stats.Boundary,
    levels: Sequence[float],
    *,
    crossed: str,
    never: str,
    everywhere: str,
    again: str,
    already: str,
) -> str:
    """A boundary in words, open ends said as such; {} is the last level seen, or the first."""
    if boundary.verdict == "missing":
        return "is not defined (no value, the references coincide, or the memoriser cannot be enumerated)"
    if boundary.verdict == "beyond":
        return never.format(number(_edge(boundary)))
    if boundary.verdict == "below":
        return everywhere.format(number(_edge(boundary)))
    if boundary.verdict == "undecided" or boundary.high is None:
        reached, n = sum(b.high is not None for b in boundary.brackets), len(boundary.brackets)
        last = number(boundary.last or levels[-1])
        if n == 1:
            return f"{crossed}, but not for good: it is {again} again by {last} tasks"
        least, most = stats.wilson_interval(reached, n)
        closed = "" if boundary.high is None else f", in the median one at {number(boundary.high)} tasks or fewer"
        lost = f", in {boundary.lost_again} more only to be {again} again" if boundary.lost_again else ""
        return (
            f"{crossed} up to {last} tasks in {reached} of {n} replicates{lost} "
            f"(95 % interval of the share {least:.2f} to {most:.2f}){closed}"
        )
    low, high = _told(boundary.low, levels), _told(boundary.high, levels)
    at_first = [b.high for b in boundary.brackets if b.low is None and b.high is not None]
    there = (
        f" (in {len(at_first)} of {len(boundary.brackets)} replicates {already.format(number(min(at_first)))})"
        if at_first
        else ""
    )
    if low is None and high is None:
        return f"{crossed}, at a number of tasks that is open at both ends{there}"
    if high is None:
        return f"{crossed} at more than {number(cast(float, low))} tasks{there}"
    return (
        f"{crossed} at {number(high)} tasks or fewer{there}"
        if low is None
        else f"{crossed} between {number(low)} and {number(high)} tasks{there}"
    )


def _told(end: float | None, levels: Sequence[float]) -> float | None:
    """An end that may be told as a number: one within the grid.

    Outside nothing was measured, and what a t-interval says there is its formula's, not the study's: from the quickstart's
    levels, of which the last two lie a factor of 1e9 apart, it once told 1e20 ciphers where there are 2e13.
    """
    if end is None or not levels[0] <= end <= levels[-1]:
        return None
    return end if end in levels else float(f"{end:.3g}")


def within(boundary: stats.Boundary, levels: Sequence[float]) -> tuple[float | None, float | None]:
    """The ends of its interval as far as they lie within what was looked at; what lies beyond is open."""
    low, high = (end if _told(end, levels) is not None else None for end in (boundary.low, boundary.high))
    return low, high


def _edge(boundary: stats.Boundary) -> float:
    """The last level that was not across in any replicate (verdict beyond), or the first that was in all (below)."""
    if boundary.verdict == "beyond":
        return max(b.low for b in boundary.brackets if b.low is not None)
    return min(b.high for b in boundary.brackets if b.high is not None)


def interval_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """The interval of a boundary in figures, `levels` ascending; an end far outside the grid is told as open."""
    if boundary.verdict == "missing":
        return "—"
    n = len(boundary.brackets)
    if (
        boundary.verdict in ("beyond", "below") and n > 1
    ):  # the interval ends inside the grid, as few may agree by chance
        return f"{'beyond' if boundary.verdict == 'beyond' else 'below'} {number(_edge(boundary))} in all {n}"
    low, high = _told(boundary.low, levels), _told(boundary.high, levels)
    if low is None and high is None:
        return "open at both ends"
    one = " (one bracket)" if n == 1 else ""  # what a single replicate says, and no interval
    if high is None:
        return f"above {number(cast(float, low))}{one}"
    return (f"{number(high)} or fewer" if low is None else f"{number(low)} to {number(high)}") + one


def seen_words(boundary: stats.Boundary) -> str:
    """Between which levels all replicates of a boundary cross: what was seen, before any inference. Empty if one does not."""
    ends = [end for b in boundary.brackets for end in (b.low, b.high)]
    if boundary.verdict != "crossed" or not ends or None in ends:
        return ""
    known = cast(list[float], ends)
    return f"between {number(min(known))} and {number(max(known))} tasks"


def ability_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """K_A in words; an end outside the grid of `levels` is told by the grid's end."""
    return _boundary_words(
        boundary,
        levels,
        crossed="appears",
        never="does not appear up to {} tasks",
        everywhere="is there from {} tasks on",
        again="lost",
        already="it is there at {} already",
    )


def memory_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """K_M in words; an end outside the grid of `levels` is told by the grid's end."""
    return _boundary_words(
        boundary,
        levels,
        crossed="ends",
        never="holds up to {} tasks and more",
        everywhere="is not there, not even at {} tasks",
        again="there",
        already="not even {} are memorised",
    )


def drift_words(moved: stats.Drift, letter: str) -> str:
    """How a boundary moves with compute, as a sentence without its full stop."""
    name = f"K_{letter}"
    if moved.verdict == "missing":
        return f"how {name} moves with compute cannot be told: it is not seen at two budgets"
    if moved.low is None and moved.high is None:
        return f"how {name} moves with compute is not settled: a replicate leaves it open at both ends"
    if moved.verdict in ("rises", "falls"):
        least, most = sorted(abs(end) if end is not None else math.inf for end in (moved.low, moved.high))
        by = f"{factor(least)} to {factor(most)}" if math.isfinite(most) else f"at least {factor(least)}"
        return f"{name} {moved.verdict} with compute, by {by} doublings of tasks per doubling of compute"
    low = "" if moved.low is None else f"{signed(moved.low)} or more"
    high = "" if moved.high is None else f"{signed(moved.high)} or less"
    both = (
        f"{signed(moved.low)} to {signed(moved.high)}"
        if moved.low is not None and moved.high is not None
        else low or high
    )
    return f"whether {name} moves with compute is not settled ({both} doublings of tasks per doubling of compute)"


def slopes_words(moved: stats.Drift) -> str:
    """What each replicate's brackets allow, in the unit of the drift: -0.5 to +1.5, +0.2 or more, open."""

    def one(slope: stats.Bracket) -> str:
        if slope.low is None or slope.high is None:
            ends = [
                f"{signed(end)} or {word}" for end, word in zip(slope, ("more", "less"), strict=True) if end is not None
            ]
            return ends[0] if ends else "open"
        return f"{signed(slope.low)} to {signed(slope.high)}"

    return ", ".join(one(slope) for slope in moved.slopes)


def dip_words(dip: Dip) -> str:
    """How a mean goes against its direction: changes by -0.2 between 4 and 64 tasks."""
    first, second = (number(end) for end in cast(tuple[float, float], dip.test.pair))
    unit = "tasks" if dip.axis == "n_tasks" else "FLOPs"
    return f"changes by {signed(cast(float, dip.test.change))} between {first} and {second} {unit}"
