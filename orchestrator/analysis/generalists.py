"""Generalist/specialist comparison: from which multiple of a specialist's compute on is the generalist better?

A generalist trains on several domains, a specialist on one of them. At each of its budgets the generalist is compared with
three states of the specialist: at one fixed budget of the specialist, at the same budget, and at the specialist's best
budget. The families of a study decide which conditions are specialists (`study/pairs.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from orchestrator import stats
from orchestrator.analysis.arms import AHEAD, crossover_p, pairs
from orchestrator.analysis.finding import CONFIDENCE, Ends, Finding, between, claim_of
from orchestrator.analysis.results import Results
from orchestrator.formatting import number
from orchestrator.stats import differences
from orchestrator.study.pairs import Pair, measure_of, pairs_of

Against = Literal["its budget", "the same", "its best"]
"""The state of the specialist: at one fixed budget, at the generalist's budget, or at the budget with its largest value."""

ALL = "all domains"
"""The `skill` of findings on the mean over all domains with a specialist."""


def ask(results: Results) -> Iterator[Finding]:
    """Every generalist against the mean of its specialists, then against each specialist, at every number of tasks in a domain."""
    for generalist, of_domains in _sides(results).items():
        for domain, sides in of_domains.items():
            for i, n in enumerate(results.levels):
                at_n = Sides(*(side[i].T for side in sides))
                for (against, spent), rival in _rivals(at_n, results.budgets).items():
                    yield _comparison(results, generalist, domain, n, against, spent, rival, at_n.general)


class Sides(NamedTuple):
    """Scores of specialist and generalist in one domain; (n_tasks, budgets, replicates) each."""

    special: np.ndarray
    best: np.ndarray
    """The specialist's largest value over all its budgets, for each replicate, repeated at every budget."""
    general: np.ndarray


def _sides(results: Results) -> dict[str, dict[str, Sides]]:
    """Generalist -> domain -> both sides. With several specialists the first domain is ALL, their mean."""
    found: dict[str, dict[str, Sides]] = {}
    for pair in pairs_of(results.study):
        found.setdefault(pair.generalist, {})[pair.domain] = _of_pair(results, pair)
    return {
        generalist: {ALL: Sides(*(np.mean(side, axis=0) for side in zip(*many.values(), strict=True)))} | many
        if len(many) > 1
        else many
        for generalist, many in found.items()
    }


def _of_pair(results: Results, pair: Pair) -> Sides:
    """The scores of both sides of one pair of conditions in its domain."""
    special, general = (_surface(results, condition, pair.domain) for condition in (pair.specialist, pair.generalist))
    known = ~np.isnan(special).all(axis=1, keepdims=True)
    largest = np.where(known, np.where(np.isnan(special), -np.inf, special).max(axis=1, keepdims=True), np.nan)
    return Sides(special, np.broadcast_to(largest, special.shape), general)


def _surface(results: Results, condition: str, domain: str) -> np.ndarray:
    """Scores of a condition on a domain's held-out tasks, (n_tasks, budgets, replicates).

    A lost trial without a value gets an exact match of 0, or an ability of -1, if its cell has another value.
    """
    measure = measure_of(results.study)
    cube = results.cube(measure, condition, domain, "held_out")
    lost = results.ended(condition, ("diverged", "failed")) & ~np.isnan(cube).all(axis=2, keepdims=True)
    return np.where(lost & np.isnan(cube), 0.0 if measure == "exact_match" else -1.0, cube)


def _rivals(sides: Sides, budgets: list[float]) -> dict[tuple[Against, float | None], np.ndarray]:
    """(state, fixed budget or None) of the specialist -> its scores at the generalist's budgets, (replicates, budgets)."""
    special = sides.special
    of_budget: dict[tuple[Against, float | None], np.ndarray] = {
        ("its budget", c): np.repeat(special[:, [j]], len(budgets), axis=1) for j, c in enumerate(budgets[:-1])
    }
    return of_budget | {("the same", None): special, ("its best", None): sides.best}


def _comparison(
    results: Results,
    generalist: str,
    domain: str,
    n_tasks: int,
    against: Against,
    spent: float | None,
    rival: np.ndarray,
    general: np.ndarray,
) -> Finding:
    """The compute at which the generalist overtakes one state of a specialist.

    rival (specialist) and general are scores, (replicates, budgets). spent: the specialist's fixed budget in FLOPs, or None.
    The interval is a multiple of `spent`, or in FLOPs without it. The estimate is the specialist's mean score, if that is
    one value. The specialist's best is the largest of several random values, which favours the specialist: so the verdict
    that it is ahead gets p = 1.
    """
    budgets = results.budgets
    at_95 = stats.crossover(budgets, rival, general, CONFIDENCE)
    known = rival[~np.isnan(rival[:, 0]), 0] if against != "the same" else np.array([])
    p = crossover_p(at_95, differences.crossing_p(at_95, len(budgets), either=False), len(budgets))
    if against == "its best" and at_95.verdict == AHEAD[0]:
        p = 1.0
    unit = spent or 1.0

    def interval(confidence: float) -> Ends:
        met = at_95 if confidence == CONFIDENCE else stats.crossover(budgets, rival, general, confidence)
        return met.low and met.low / unit, met.high and met.high / unit

    return Finding(
        name=name_of(generalist, domain, n_tasks, against, spent),
        question=f"generalist against {against}",
        words=lambda one: f"{comparison_words(one, budgets)} ({number(n_tasks)} tasks a domain)",
        condition=generalist,
        skill=domain,
        n_tasks=n_tasks,
        compute_flops=spent,
        against=against,
        verdict=at_95.verdict,
        n=pairs(rival, general),
        p=p,
        estimate=float(known.mean()) if len(known) else None,
        interval=interval,
        brackets=at_95.brackets,
    )


def name_of(generalist: str, domain: str, n_tasks: int, against: Against, spent: float | None) -> str:
    """Unique name of the finding; arguments as in `_comparison`."""
    return claim_of("generalist", generalist, domain, against, f"{n_tasks}/{spent!r}")


def comparison_words(one: Finding, budgets: list[float]) -> str:
    """The comparison of a generalist with a specialist as a sentence without its full stop."""
    spent, (low, high) = one.compute_flops, one.ends
    whose = "the mean specialist" if one.skill == ALL else f"the specialist of {one.skill}"
    state = {
        "its budget": f"with {number(spent or 0.0)} FLOPs",
        "the same": "at equal compute",
        "its best": "at its best",
    }[one.against]
    who, unit = one.condition, "FLOPs" if spent is None else "times its compute"

    def amount(value: float | None) -> str:
        return f"{number(float(f'{value or 0.0:.3g}'))} {unit}"

    top = budgets[-1] / (spent or 1.0)
    where = between(low, high, unit) if low or high else "at an unknown amount of compute"
    return {
        "crosses": f"{who} overtakes {whose} {state}, {where}",
        AHEAD[0]: f"{who} stays behind {whose} {state}, up to {amount(top)}",
        AHEAD[1]: f"{who} is ahead of {whose} {state}, from {amount(high)} on",
        "no difference shown": f"{who} and {whose} {state} are not distinguishable, up to {amount(top)}",
        "missing": f"{who} and {whose} {state} were not both measured",
    }.get(one.verdict, f"{who} may overtake {whose} {state}")
