"""Two conditions side by side: the ratio of tasks, the ratio of compute, and the compute at which one overtakes.

The two sides may belong to one study or to two (`compare.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from orchestrator import stats
from orchestrator.analysis.boundaries import DIRECTION, Measure, judged
from orchestrator.analysis.finding import CONFIDENCE, Ends, Finding, between, claim_of_pair, remembered
from orchestrator.analysis.onsets import onset
from orchestrator.analysis.results import Results, surface
from orchestrator.formatting import factor, number
from orchestrator.stats import differences
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.intervals import by_chance
from orchestrator.study.claimed import claimed_condition
from orchestrator.study.pairs import pairs_of


class Side(NamedTuple):
    """One side of a comparison: a condition of a study."""

    results: Results
    condition: str
    name: str
    """The side as sentences call it: the condition, or the study if two studies are compared."""


def ask(results: Results) -> Iterator[Finding]:
    """Ratio of tasks, crossover and ratio of compute, for every pair of comparable conditions, on the headline skill."""
    skill = results.study.shown_skills[0]
    pairs = [
        (Side(results, a, a), Side(results, b, b))
        for a, b in (_as_claimed(results, *p) for p in results.study.comparable)
    ]
    if not pairs_of(results.study):  # generalists and specialists have a question of their own
        yield from (fewer_tasks(a, b, "ability", skill, results.budgets[-1]) for a, b in pairs)
    yield from (
        crossover(a, b, skill, n, results.study.budgets_of(a.condition, b.condition), _is_claimed(results, a, b, n))
        for a, b in pairs
        for n in results.levels
    )
    yield from (one for a, b in pairs for n in results.levels if (one := multiplier(a, b, skill, n)) is not None)


def _as_claimed(results: Results, a: str, b: str) -> tuple[str, str]:
    """The pair (a, b), or (b, a) if the primary claim is that a overtakes b in a crossover."""
    claim = results.study.primary
    if claim is None or claim.what != "crossover":
        return a, b
    first = claimed_condition(results.study, claim)
    return (b, a) if (first, claim.against) == (b, a) else (a, b)


def _is_claimed(results: Results, a: Side, b: Side, n_tasks: int) -> bool:
    """Whether the primary claim is that b overtakes a in a crossover at this number of tasks. For such a pair the order stays fixed."""
    claim = results.study.primary
    if claim is None or claim.what != "crossover" or claim.n_tasks != n_tasks:
        return False
    return (claimed_condition(results.study, claim), claim.against) == (a.condition, b.condition)


# Tasks --------------------------------------------------------------------------------------------------------------


def fewer_tasks(a: Side, b: Side, measure: Measure, skill: str, flops: float) -> Finding:
    """Ratio of the number of tasks at a boundary, b's over a's, at one budget, paired by replicate.

    measure: ability compares K_A, memory K_M. flops: the budget.
    """
    brackets = _brackets_of_both(a, b, measure, skill, flops)
    at_95 = differences.shift(*brackets, CONFIDENCE)
    return Finding(
        name=claim_of_pair("fewer", a.name, b.name, skill, flops),
        question="task multiplier",
        words=lambda one: f"{_ratio_words(one, 'tasks')} at {number(flops)} FLOPs",
        condition=b.name,
        skill=skill,
        compute_flops=flops,
        against=a.name,
        verdict="missing" if at_95 is None else _shown(at_95),
        n=len(brackets[0]),
        p=_pair_p(at_95),
        interval=remembered(_as_factors(at_95), lambda c: _as_factors(differences.shift(*brackets, c))),
        brackets=at_95.slopes if at_95 else (),
    )


def _brackets_of_both(
    a: Side, b: Side, measure: Measure, skill: str, flops: float
) -> tuple[Sequence[stats.Bracket], Sequence[stats.Bracket]]:
    """The brackets of a and of b, one for each replicate that has ended on both sides (`boundaries.judged`)."""
    tables = [
        judged(side.results, measure, side.condition, skill)[side.results.budgets.index(flops)] for side in (a, b)
    ]
    rows = [of.tolist() for _, of in tables]
    common = [r for r in rows[0] if r in rows[1]]
    first, second = (
        stats.boundary(
            [float(n) for n in side.results.levels], table[[own.index(r) for r in common]], DIRECTION[measure]
        ).brackets
        for side, (table, _), own in zip((a, b), tables, rows, strict=True)
    )
    return first, second


def _shown(shift: stats.Drift) -> str:
    """The verdict on a ratio: `rises` or `falls` only if the p-value is at most 1 - CONFIDENCE, else `undecided`."""
    if shift.verdict in ("rises", "falls") and (shift.p_value or 0.0) <= 1 - CONFIDENCE + 1e-12:
        return shift.verdict
    return "missing" if shift.verdict == "missing" else "undecided"


# Compute ------------------------------------------------------------------------------------------------------------


def multiplier(a: Side, b: Side, skill: str, n_tasks: int) -> Finding | None:
    """Ratio of the compute to skill, b's over a's, at one number of tasks, paired by replicate.

    None if no replicate has both. If the model's size follows the budget in one condition alone, both are read at the ends
    of the budgets.
    """
    at_ends = a.results.study.grows(a.condition) != b.results.study.grows(b.condition)
    both = [onset(side.results, side.condition, skill, n_tasks, at_ends) for side in (a, b)]
    of = [dict(zip(one.replicates, one.brackets, strict=True)) for one in both]
    common = sorted(of[0].keys() & of[1].keys())
    if not common:
        return None
    rows = [[brackets[r] for r in common] for brackets in of]
    at_95 = stats.drift([1.0, 2.0], rows, CONFIDENCE)
    return Finding(
        name=claim_of_pair("multiplier", a.name, b.name, skill, float(n_tasks)),
        question="compute multiplier",
        words=lambda one: f"{_ratio_words(one, 'compute')} at {number(n_tasks)} tasks",
        condition=b.name,
        skill=skill,
        n_tasks=n_tasks,
        against=a.name,
        verdict=at_95.verdict,
        n=len(common),
        p=_pair_p(at_95),
        interval=remembered(_as_factors(at_95), lambda c: _as_factors(stats.drift([1.0, 2.0], rows, c))),
        brackets=at_95.slopes,
        replicates=tuple(common),
    )


def _pair_p(ratio: stats.Drift | None) -> float | None:
    """p-value of a ratio. None below MIN_TESTED replicates; 1 if no ratio could be computed from enough replicates."""
    if ratio is None or len(ratio.slopes) < MIN_TESTED:
        return None
    return 1.0 if ratio.p_value is None else ratio.p_value


def _as_factors(ratio: stats.Drift | None) -> Ends:
    """The ends of an interval in doublings, as factors; open without a ratio."""
    low, high = (None if end is None else float(2**end) for end in (ratio[:2] if ratio else (None, None)))
    return low, high


def _ratio_words(one: Finding, of: str) -> str:
    """A ratio as a sentence. of: `tasks` or `compute`. Conditions need tasks for a skill, or memorise them if `skill` is empty."""
    first, second, (low, high) = one.against, one.condition, one.ends
    need, what = ("need", f" for {one.skill}") if one.skill else ("memorise", "")
    if one.verdict == "missing":
        return f"the {of} that {first} and {second} {need}{what} cannot be compared"
    if one.verdict not in ("rises", "falls"):
        ends = f" ({factor(low)} to {factor(high)} times)" if low is not None and high is not None else ""
        fewer = "less" if of == "compute" else "fewer"
        return f"{second} may {need} more or {fewer} {of} than {first}{what}{ends}"
    if one.verdict == "falls":  # words name the side that needs more
        first, second, low, high = second, first, high and 1 / high, low and 1 / low
    by = f"{factor(low)} to {factor(high)}" if low and high else f"at least {factor(low or 1.0)}"
    return f"{second} {need}s {by} times the {of} of {first}{what}"


# Along compute ------------------------------------------------------------------------------------------------------

AHEAD = ("a ahead throughout", "b ahead throughout")
"""Verdicts of `stats.crossover` without a crossing."""


def crossover(
    a: Side, b: Side, skill: str, n_tasks: int, budgets: Sequence[float], in_this_order: bool = False
) -> Finding:
    """The compute at which b overtakes a in ability, at one number of tasks, over these budgets.

    If b does not overtake a but a overtakes b, the sides are exchanged. in_this_order: never exchange them, because the
    primary claim names the direction.
    """
    first, second = (_along(side, skill, n_tasks, budgets) for side in (a, b))
    there = stats.crossover(budgets, first, second, CONFIDENCE)
    if not in_this_order and there.verdict != "crosses":
        back = stats.crossover(budgets, second, first, CONFIDENCE)
        if back.verdict == "crosses":
            a, b, first, second, there = b, a, second, first, back
    crosses = differences.crossing_p(there, len(budgets))  # in either order
    return Finding(
        name=claim_of_pair("crossover", a.name, b.name, skill, float(n_tasks)),
        question="crossover",
        words=lambda one: (
            f"{crossover_words(one)}{' ' if one.verdict == 'missing' else ', '}at {number(n_tasks)} tasks"
        ),
        condition=b.name,
        skill=skill,
        n_tasks=n_tasks,
        against=a.name,
        verdict=there.verdict,
        n=pairs(first, second),
        p=crossover_p(there, crosses, len(budgets)),
        interval=remembered(there[:2], lambda c: stats.crossover(budgets, first, second, c)[:2]),
        brackets=there.brackets,
    )


def _along(side: Side, skill: str, n_tasks: int, budgets: Sequence[float]) -> np.ndarray:
    """Ability of a side at the ends of the budgets, (replicates, budgets)."""
    of = side.results
    cube = surface(of, "ability", side.condition, skill)[of.levels.index(n_tasks)].T
    return cube[:, [of.budgets.index(c) for c in budgets]]


def pairs(first: np.ndarray, second: np.ndarray) -> int:
    """Number of replicates with a value on both sides at some budget; first and second are (replicates, budgets)."""
    return int((~np.isnan(second - first).all(axis=1)).sum())


def crossover_p(met: stats.Crossover, crosses: float | None, n_levels: int) -> float | None:
    """p-value of the verdict on two conditions; None if nothing was tested.

    crosses: the p-value of a crossing (`differences.crossing_p`), returned for the verdict `crosses`. For a verdict "ahead
    throughout", twice the one-sided p, and at least the chance that bimodal replicates agree at any of n_levels levels
    (`by_chance`). For other verdicts 1.
    """
    if met.p_value is None or met.verdict == "crosses":
        return crosses
    if met.ahead_p is None:
        return 1.0
    n = len(met.brackets)
    return min(1.0, max(met.ahead_p, n_levels * by_chance(n, n)))


def crossover_words(one: Finding) -> str:
    """A crossover as a sentence without its full stop."""
    a, b, (low, high) = one.against, one.condition, one.ends
    return {
        "crosses": f"{b} overtakes {a} {between(low, high, 'FLOPs')}",
        AHEAD[0]: f"{a} is ahead of {b} up to {number(low or 0)} FLOPs",
        AHEAD[1]: f"{b} is ahead of {a} from {number(high or 0)} FLOPs on",
        "no difference shown": f"{b} and {a} are not distinguishable at any budget",
        "missing": f"{b} and {a} were not both measured",
    }.get(one.verdict, f"either {b} or {a} may be ahead")
