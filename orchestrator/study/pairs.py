"""Pairs of generalist and specialist among the conditions of a study, and the measure that compares them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from orchestrator.study.schema import Study
from trainers.tasks import Family

Measure = Literal["ability", "exact_match"]


class Pair(NamedTuple):
    """Two conditions of a study: a specialist, its generalist, and the domain that both learn."""

    generalist: str
    specialist: str
    domain: str
    """The skill on which both are compared."""


def pairs_of(study: Study) -> list[Pair]:
    """Every specialist with its generalist, in the study's order; none if the family has no domains."""
    families = {condition: study.family_of(condition) for condition in study.conditions}
    return [
        Pair(g, s, special.domains[0])
        for g, general in families.items()
        for s, special in families.items()
        if len(special.domains) == 1
        and len(general.domains) > 1
        and study.conditions[g][0] == study.conditions[s][0]
        and _same(special.whole, general)
        and study.settings(g)["model"] == study.settings(s)["model"]
    ]


def _same(a: Family, b: Family) -> bool:
    """Whether two families are equal except for the domain shares, which only a generalist has."""
    return a.model_dump(exclude={"domain_shares"}) == b.model_dump(exclude={"domain_shares"})


def measure_of(study: Study) -> Measure:
    """The compared measure: ability, or exact matches if ability is read from accuracy.

    That ability counts matches beyond the memoriser's. Every condition has another memoriser, and so another zero.
    """
    return "exact_match" if study.family_of(next(iter(study.conditions))).ability_of == "accuracy" else "ability"
