"""A generalist against the specialists of its domains: from which multiple of their compute on is it at least as good?

SCIENCE asks for three comparisons, so that none of them flatters: the generalist at a multiple of what the specialist has
spent, both at the same compute, and the generalist against the specialist at its best stopping time. Which lines of a study
are specialists, and of which generalist, follows from their families (`Family.domains`, `Family.whole`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from orchestrator import stats
from orchestrator.analysis.arms import AHEAD, crossover_p, who_is_ahead
from orchestrator.analysis.claims import Confidence, Looked, claim_of, plain_confidence
from orchestrator.analysis.results import Results
from orchestrator.formatting import number
from orchestrator.stats import differences
from orchestrator.study.pairs import Pair, measure_of, pairs_of


def claims_of_contests(results: Results) -> Iterator[Looked]:
    """That a generalist overtakes its specialists, or that one of them is ahead; as the verdict says."""
    for met in contests(results, plain_confidence):
        of = met.domain if met.domain == ALL else f"the specialist of {met.domain}"
        flops = f", {number(met.specialist_flops)} FLOPs" if met.specialist_flops else ""
        said = who_is_ahead(of, met.generalist, met.result)
        where = met.generalist, met.domain, met.n_tasks, met.against, met.specialist_flops
        crosses = differences.crossing_p(met.result, len(results.budgets), either=False)
        p = crossover_p(met.result, crosses, len(results.budgets))
        if met.against == "its best" and met.result.verdict == AHEAD[0]:
            p = 1.0  # the largest of noisy values, chosen after the fact, is ahead by that alone
        yield claim_of_contest(*where), f"{said} at {number(met.n_tasks)} tasks ({met.against}{flops})", p


Against = Literal["its budget", "the same", "its best"]

ALL = "all domains"
"""The mean over the domains that have a specialist: of one replicate, so that it is still paired."""


class Contest(NamedTuple):
    """A generalist against one specialist, or the mean over all of them, at one number of tasks of each domain."""

    generalist: str
    domain: str
    """A skill, or `ALL`."""
    n_tasks: int
    against: Against
    """What the specialist had spent: one of its budgets, as much as the generalist, or whatever was best for it."""
    specialist_flops: float | None
    """For `its budget`."""
    rival: float | None
    """What the specialist had there (`measure_of`), mean over replicates; None for `the same`, or where nothing is known."""
    result: stats.Crossover
    """Along the generalist's training FLOPs: where it overtakes the specialist."""

    @property
    def pooled(self) -> bool:
        """Against the mean over all specialists?"""
        return self.domain == ALL

    @property
    def multiples(self) -> tuple[float | None, float | None]:
        """The interval as multiples of the specialist's compute; as FLOPs where that is not one amount."""
        per = self.specialist_flops or 1.0
        low, high = self.result.low, self.result.high
        return low and low / per, high and high / per


class Sides(NamedTuple):
    """(n_tasks, compute, replicates) each."""

    special: np.ndarray
    best: np.ndarray
    """Of the specialist over all its budgets, at every one of them."""
    general: np.ndarray


def contests(results: Results, confidence: Confidence) -> list[Contest]:
    """All comparisons, generalist by generalist: of the mean over its specialists, then of each domain.

    A specialist's best is the largest of noisy values, which flatters it: a generalist that is ahead of it is ahead all the more.
    """
    found = []
    for generalist, sides in _sides(results).items():
        for domain, of_domain in sides.items():
            for i, n in enumerate(results.levels):
                at_n = Sides(*(side[i].T for side in of_domain))
                found += at_one_level(results.budgets, generalist, domain, n, at_n, confidence)
    return found


def _sides(results: Results) -> dict[str, dict[str, Sides]]:
    """Generalist -> domain -> both sides, the mean over several specialists first."""
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
    special, general = (_surface(results, line, pair.domain) for line in (pair.specialist, pair.generalist))
    known = ~np.isnan(special).all(axis=1, keepdims=True)
    largest = np.where(known, np.where(np.isnan(special), -np.inf, special).max(axis=1, keepdims=True), np.nan)
    return Sides(special, np.broadcast_to(largest, special.shape), general)


def _surface(results: Results, line: str, domain: str) -> np.ndarray:
    """One line on a domain's held-out tasks, (n_tasks, compute, replicates); lost trials know nothing of it."""
    measure = measure_of(results.study)
    cube = results.cube(measure, line, domain, "held_out")
    lost = results.ended(line, ("diverged", "failed")) & ~np.isnan(cube).all(axis=2, keepdims=True)
    return np.where(lost & np.isnan(cube), 0.0 if measure == "exact_match" else -1.0, cube)


def rivals(sides: Sides, budgets: list[float]) -> dict[tuple[Against, float | None], np.ndarray]:
    """What a generalist is compared with at its every budget, (replicates, budgets) each."""
    special = sides.special
    of_budget: dict[tuple[Against, float | None], np.ndarray] = {
        ("its budget", c): np.repeat(special[:, [j]], len(budgets), axis=1) for j, c in enumerate(budgets[:-1])
    }
    return of_budget | {("the same", None): special, ("its best", None): sides.best}


def at_one_level(
    budgets: list[float], generalist: str, domain: str, n_tasks: int, sides: Sides, confidence: Confidence
) -> list[Contest]:
    """The three comparisons at one number of tasks; sides of (replicates, budgets)."""
    out = []
    for (against, spent), rival in rivals(sides, budgets).items():
        level = confidence(claim_of_contest(generalist, domain, n_tasks, against, spent))
        known = rival[~np.isnan(rival[:, 0]), 0] if against != "the same" else np.array([])
        mean = float(known.mean()) if len(known) else None
        met = stats.crossover(budgets, rival, sides.general, level)
        out.append(Contest(generalist, domain, n_tasks, against, spent, mean, met))
    return out


def claimed(
    results: Results, generalist: str, domain: str | None, n_tasks: int, spent: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rival and generalist, (replicates, budgets) each, of a claim that the one overtakes the other (`primary.py`)."""
    of_domain = _sides(results)[generalist]
    sides = of_domain[domain if domain is not None else next(iter(of_domain))]
    i = results.levels.index(n_tasks)
    at_n = Sides(*(side[i].T for side in sides))
    return rivals(at_n, results.budgets)[("its best" if spent is None else "its budget", spent)], at_n.general


def claim_of_contest(generalist: str, domain: str, n_tasks: int, against: Against, spent: float | None) -> str:
    """Name of the claim that the generalist overtakes."""
    return claim_of("generalist", generalist, domain, against, f"{n_tasks}/{spent!r}")


def contest_words(found: Contest, budgets: Sequence[float], level: bool = False) -> str:
    """What can be said of a generalist against a specialist, as a sentence without its full stop; `level`: with what it has."""
    spent, verdict = found.specialist_flops, found.result.verdict
    whose = "the mean specialist" if found.pooled else f"the specialist of {found.domain}"
    state = {
        "its budget": f"of {number(spent or 0.0)} FLOPs",
        "the same": "with as much compute",
        "its best": "at its best",
    }
    rival = f"{whose} {state[found.against]}"
    rival += f" (at {found.rival:.2f})" if level and found.rival is not None else ""

    def amount(*ends: float | None) -> str:
        known = [end for end in ends if end is not None]
        if spent is None:
            return " to ".join(map(number, known)) + " FLOPs"
        return (
            " to ".join(f"{end / spent:.2g}" if end < 100 * spent else f"{end / spent:.0f}" for end in known)
            + " times its compute"
        )

    low, high = found.result.low, found.result.high
    if verdict == "crosses":
        bound = "" if low and high else "at most " if high else "more than "
        return f"{found.generalist} overtakes {rival} at {bound}{amount(low, high)}"
    told = {
        "a ahead throughout": f"{found.generalist} stays behind {rival}, up to {amount(budgets[-1])}",
        "b ahead throughout": f"{found.generalist} is ahead of {rival}, from {amount(high)} on",
        "no difference shown": f"no difference is shown between {found.generalist} and {rival}, up to {amount(budgets[-1])}",
        "missing": f"{found.generalist} and {rival} were not both measured",
    }
    return told.get(verdict, f"whether {found.generalist} overtakes {rival} is undecided")
