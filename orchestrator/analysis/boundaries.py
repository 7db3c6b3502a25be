"""The boundaries at each budget, K_A (a skill appears) and K_M (memory ends), and their drift with compute."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from scipy import special

from orchestrator import stats
from orchestrator.analysis.finding import CONFIDENCE, Ends, Finding, between, claim_of, in_condition, remembered
from orchestrator.analysis.results import Results, surface
from orchestrator.formatting import factor, number, rounded, signed
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.minimums import BOUNDARY

Measure = Literal["ability", "memory"]
"""A measure with a boundary."""
DIRECTION: dict[Measure, Literal["rising", "falling"]] = {"ability": "rising", "memory": "falling"}
"""The way in which a measure crosses one half with more tasks."""
LETTER: dict[Measure, str] = {"ability": "A", "memory": "M"}
"""The index of a boundary's name: K_A, K_M."""


def ask(results: Results) -> Iterator[Finding]:
    """K_A of every shown skill and K_M at every budget, and the drift of each boundary; for every condition."""
    for condition in results.study.conditions:
        for measure, skill in measures(results):
            yield from boundaries(results, measure, condition, skill)
            if len(results.budgets) > 1:
                yield drift(results, measure, condition, skill)


def measures(results: Results) -> list[tuple[Measure, str]]:
    """(measure, skill) pairs: ability with each shown skill, then memory with the empty string."""
    return [*(("ability", skill) for skill in results.study.shown_skills), ("memory", "")]


# Boundaries ---------------------------------------------------------------------------------------------------------


def boundaries(results: Results, measure: Measure, condition: str, skill: str) -> list[Finding]:
    """K_A (measure ability) or K_M (memory, skill "") at every budget, ascending.

    A diverged or failed trial counts as without ability, or as without memory. A replicate that has yet to end at some levels is
    left out, or those levels are (`settled`).
    """
    tables = zip(results.budgets, judged(results, measure, condition, skill), strict=True)
    make = lambda: [_boundary(results, measure, condition, skill, c, *table) for c, table in tables]  # noqa: E731
    return results.once(("boundaries", measure, condition, skill), make)


def _boundary(
    results: Results, measure: Measure, condition: str, skill: str, flops: float, table: np.ndarray, rows: np.ndarray
) -> Finding:
    name = f"{skill or 'memory of the training tasks'}{in_condition(results, condition)}"
    return of_median(
        [float(n) for n in results.levels],
        table,
        DIRECTION[measure],
        rows.tolist(),
        name=claim_of("k", measure, condition, skill, flops),
        question=f"K_{LETTER[measure]}",
        words=lambda one: f"{name} {place_words(one)} at {number(flops)} FLOPs",
        condition=condition,
        skill=skill,
        compute_flops=flops,
    )


def of_median(
    levels: Sequence[float],
    table: np.ndarray,
    direction: Literal["rising", "falling"],
    replicates: Sequence[int],
    **fields: Any,
) -> Finding:
    """The finding on the level at which the median replicate crosses one half; table (replicates, levels).

    replicates: their numbers. fields: name, question, words and place of the finding. `crossed` is an answer if the finding
    has an interval or one replicate.
    """
    found = stats.boundary(levels, table, direction, CONFIDENCE)
    one = Finding(
        **fields,
        verdict=found.verdict,
        n=len(found.brackets),
        p=boundary_p(table, found.verdict, direction),
        interval=remembered(found[:2], lambda confidence: stats.boundary(levels, table, direction, confidence)[:2]),
        reach=tried(levels, table),
        brackets=found.brackets,
        replicates=tuple(replicates),
    )
    whole = one.verdict == "crossed" and (one.n == 1 or one.has_interval)
    return replace(one, answered=whole or one.verdict in ("below", "beyond"))


def tried(levels: Sequence[float], table: np.ndarray) -> tuple[float, float] | None:
    """The first and the last level at which a replicate has a value; table (replicates, levels). None if there is none."""
    known = np.flatnonzero(~np.isnan(table).all(axis=0)) if len(table) else np.array([], int)
    return (levels[known[0]], levels[known[-1]]) if len(known) else None


def judged(results: Results, measure: Measure, condition: str, skill: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every budget, two arrays: a table (replicates, n_tasks) of the measure, and the numbers of these replicates (replicates,).

    Replicates and levels that have yet to run are left out (`settled`).
    """
    cube, waiting = counted(results, measure, condition, skill)
    tables = lambda: [settled(cube[:, j].T, waiting[:, j].T) for j in range(len(results.budgets))]  # noqa: E731
    return results.once(("judged", measure, condition, skill), tables)


def counted(results: Results, measure: str, condition: str, skill: str) -> tuple[np.ndarray, np.ndarray]:
    """A measure with a value for lost trials, and whether a trial has yet to end. Both (n_tasks, budgets, replicates).

    Cells that a condition does not train (`Study.budgets_of`, `levels_of`) have no trial that could end. A diverged or failed
    trial without a value gets -1, if another replicate of its cell has a value. The second array is True for open trials
    without a value.
    """
    return results.once(("counted", measure, condition, skill), lambda: _counted(results, measure, condition, skill))


def _counted(results: Results, measure: str, condition: str, skill: str) -> tuple[np.ndarray, np.ndarray]:
    cube = surface(results, measure, condition, skill)
    ended = results.ended(condition, ("done", "diverged", "failed"))
    lost = results.ended(condition, ("diverged", "failed"))
    defined = ~np.isnan(cube).all(axis=2, keepdims=True)
    trained = np.isin(results.budgets, results.study.budgets_of(condition))[None, :, None]
    trained = trained & np.isin(results.levels, results.study.levels_of(condition))[:, None, None]
    return np.where(lost & np.isnan(cube) & defined, -1.0, cube), ~ended & np.isnan(cube) & trained


def settled(table: np.ndarray, waiting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a table (replicates, levels) without open trials, and the indices of its replicates.

    waiting (replicates, levels): True if a trial has yet to end. A level that a replicate has yet to run must not count as not
    across. So a set of levels is chosen, with all replicates that have no open trial on it: the choice with the most cells
    and, of equals, with the most replicates. Other levels become NaN. Without open trials the values stay as they are.
    """
    known = ~np.isnan(table)
    if not (waiting & known.any(axis=0)).any():
        rows = np.flatnonzero(known.any(axis=1) | ~waiting.all(axis=1))
        return table[rows], rows
    best: tuple[int, int] = (0, 0)
    chosen, rows = np.zeros(table.shape[1], bool), np.array([], int)
    for levels in np.unique(known, axis=0):
        can = np.flatnonzero(~waiting[:, levels].any(axis=1) & known[:, levels].any(axis=1))
        score = (len(can) * int(levels.sum()), len(can))
        if score > best:
            best, chosen, rows = score, levels, can
    return np.where(chosen, table[rows], np.nan), rows


def boundary_p(table: np.ndarray, verdict: str, direction: Literal["rising", "falling"]) -> float | None:
    """p-value of a boundary's verdict: a two-sided sign test on the median replicate. table (replicates, levels).

    `crossed`: the median is not across one half at the first level with a value, and is at the last one. `below`: it is
    across at the first. `beyond`: it is not at the last. An undecided boundary was tested without success: p = 1. None if
    there is no value, or with fewer replicates than BOUNDARY.replicates. A test of so few could never be significant, and
    would weaken the correction of the others (Tarone 1990).
    """
    known = table.T[~np.isnan(table).all(axis=0)]  # (levels, replicates)
    if not len(known) or known.shape[1] < BOUNDARY.replicates:
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


def edge(one: Finding) -> float:
    """For verdict `beyond`, the last level, which no replicate has crossed. For `below`, the level from which on all replicates
    stay across."""
    if one.verdict == "beyond":
        return max(b.low for b in one.brackets if b.low is not None)
    return max(b.high for b in one.brackets if b.high is not None)


def median_level(one: Finding) -> float | None:
    """The first level from which on the median replicate stays across; infinite above the last level, None without a value.

    Of an even number of replicates, the lower of the two in the middle.
    """
    firsts = sorted(math.inf if b.high is None else b.high for b in one.brackets)
    return firsts[(len(firsts) - 1) // 2] if firsts else None


def seen(one: Finding) -> Ends:
    """The levels between which all replicates cross: lowest and highest bracket end. An end is open if a bracket's is."""
    lows, highs = ([b[i] for b in one.brackets] for i in (0, 1))
    low = min((v for v in lows if v is not None), default=None) if None not in lows else None
    high = max((v for v in highs if v is not None), default=None) if None not in highs else None
    return low, high


_PLACES = {
    "K_A": {
        "crossed": "appears {between}",
        "beyond": "does not appear up to {edge} tasks",
        "below": "is already there at {edge} tasks",
        "below again": "is there from {edge} tasks on",
        "undecided": "appears in {k} of {n} replicates",
    },
    "K_M": {
        "crossed": "ends {between}",
        "beyond": "still holds at {edge} tasks",
        "below": "is absent even at {edge} tasks",
        "below again": "is absent from {edge} tasks on",
        "undecided": "ends in {k} of {n} replicates",
    },
}


def place_words(one: Finding) -> str:
    """The position of a boundary for a sentence, as a verb with its object: `appears between 64 and 256 tasks`."""
    if one.verdict == "missing":
        return "has no value"
    if one.verdict == "crossed" and one.ends == (None, None):
        verb = "appears" if one.question == "K_A" else "ends"
        return f"{verb} {between(*seen(one), unit='tasks')} in each of {one.n} replicates"
    comes_back = one.verdict == "below" and one.reach is not None and edge(one) > one.reach[0]
    return _PLACES[one.question]["below again" if comes_back else one.verdict].format(
        between=between(*one.ends, unit="tasks"),
        edge=number(edge(one)) if one.verdict in ("beyond", "below") else "",
        k=sum(b.high is not None for b in one.brackets),
        n=one.n,
    )


def interval_words(one: Finding) -> str:
    """The interval of a boundary for a table cell: `64 to 256`, `above 1e6`, a dash if missing."""
    if one.verdict == "missing":
        return "\u2014"
    if one.verdict in ("beyond", "below"):
        return f"{'above' if one.verdict == 'beyond' else 'below'} {number(edge(one))}"
    low, high = (None if end is None else rounded(end) for end in one.ends)
    if low and high:
        return f"{low} to {high}"
    return f"{high} or fewer" if high else f"above {low}" if low else "not settled"


# Drift with compute -------------------------------------------------------------------------------------------------


def drift(results: Results, measure: Measure, condition: str, skill: str) -> Finding:
    """Doublings of a boundary per doubling of compute, over the budgets at which its verdict is `crossed`.

    Only replicates that have ended at all of these budgets take part. At other budgets some replicates cross outside the
    tried levels, and the distance to the last level is no rate.
    """
    found = boundaries(results, measure, condition, skill)
    crossed = [one.verdict == "crossed" for one in found]
    common = set(range(results.n_replicates)).intersection(
        *(one.replicates for one, yes in zip(found, crossed, strict=True) if yes)
    )
    rows = [
        tuple(b for r, b in zip(one.replicates, one.brackets, strict=True) if r in common) if yes else ()
        for one, yes in zip(found, crossed, strict=True)
    ]
    at_95 = stats.drift(results.budgets, rows, CONFIDENCE)
    name = f"K_{LETTER[measure]}{f' of {skill}' if skill else ''}{in_condition(results, condition)}"
    return Finding(
        name=claim_of("drift", measure, condition, skill),
        question=f"drift of K_{LETTER[measure]}",
        words=lambda one: f"{name} {drift_words(one)}",
        condition=condition,
        skill=skill,
        verdict=at_95.verdict,
        n=len(at_95.slopes) if at_95.verdict != "missing" else max(one.n for one in found),
        p=_drift_p(at_95, found),
        interval=remembered(at_95[:2], lambda confidence: stats.drift(results.budgets, rows, confidence)[:2]),
        brackets=at_95.slopes,
        replicates=tuple(sorted(common)) if at_95.slopes else (),
    )


def _drift_p(moved: stats.Drift, found: Sequence[Finding]) -> float | None:
    """p-value of a drift: 1 if the boundary is not crossed at two budgets. None if it has MIN_TESTED replicates at fewer than two.

    `found`: the boundary at each budget.
    """
    looked = [one for one in found if one.verdict != "missing" and one.n >= MIN_TESTED]
    return (1.0 if moved.p_value is None else moved.p_value) if len(looked) > 1 else None


def drift_words(one: Finding) -> str:
    """The drift of a boundary for a sentence, as a verb with its object: `rises with compute by 0.5 to 1.2 doublings ...`."""
    unit = "doublings of tasks per doubling of compute"
    low, high = one.ends
    if one.verdict == "missing":
        return "is not seen at two budgets"
    if low is None and high is None:
        return "may move with compute in either direction"
    if one.verdict in ("rises", "falls"):
        least, most = sorted(abs(end) if end is not None else math.inf for end in (low, high))
        by = f"{factor(least)} to {factor(most)}" if math.isfinite(most) else f"at least {factor(least)}"
        return f"{one.verdict} with compute by {by} {unit}"
    ends = [f"{signed(end)}" for end in (low, high) if end is not None]
    open_end = " or more" if high is None else " or less" if low is None else ""
    return f"may not move with compute: {' to '.join(ends)}{open_end} {unit}"
