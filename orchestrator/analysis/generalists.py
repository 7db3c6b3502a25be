"""A generalist against the specialists of its domains: from which multiple of their compute on is it at least as good?

SCIENCE asks for three comparisons, so that none of them flatters: the generalist at a multiple of what the specialist has
spent, both at the same compute, and the generalist against the specialist at its best stopping time. Which lines of a study
are specialists, and of which generalist, follows from their families (`Family.domains`, `Family.whole`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from orchestrator import stats
from orchestrator.analysis.boundaries import Confidence, claim_of
from orchestrator.analysis.results import Results
from orchestrator.study.schema import Study
from trainers.tasks import Family

Measure = Literal["ability", "exact_match"]
Against = Literal["its budget", "the same", "its best"]
ALL = "all domains"
"""The mean over the domains that have a specialist: of one replicate, so that it is still paired."""


class Pair(NamedTuple):
    """Two lines of a study: a specialist, the generalist that it belongs to, and the domain that both know."""

    generalist: str
    specialist: str
    domain: str
    """The skill that is measured on it."""


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


def pairs_of(study: Study) -> list[Pair]:
    """Every specialist with its generalist, in the order of the study's lines; none where there are no domains."""
    families = {line: study.family_of(line) for line in study.lines}
    return [
        Pair(g, s, special.domains[0])
        for g, general in families.items()
        for s, special in families.items()
        if len(special.domains) == 1
        and len(general.domains) > 1
        and study.lines[g][0] == study.lines[s][0]
        and _same(special.whole, general)
        and study.settings(g)["model"] == study.settings(s)["model"]
    ]


def _same(a: Family, b: Family) -> bool:
    """Shares of the domains are the generalist's own affair."""
    return a.model_dump(exclude={"domain_shares"}) == b.model_dump(exclude={"domain_shares"})


def measure_of(study: Study) -> Measure:
    """What is compared: ability; or, where that is read from exact matches beyond the memoriser's, the exact matches themselves,
    because every line has a memoriser of its own and so another zero."""
    return "exact_match" if study.family_of(next(iter(study.lines))).ability_of == "accuracy" else "ability"


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
