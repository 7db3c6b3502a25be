"""Pairs of generalist and specialist among the conditions of a study, and the measure that compares them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from orchestrator.study.schema import Study
from trainers.tasks import Family

Measure = Literal["ability", "exact_match"]
"""A measure that compares generalist and specialist."""


class Pair(NamedTuple):
    """Two conditions of a study that are compared on one domain. A specialist learns that domain alone, its generalist several."""

    generalist: str
    """Name of a condition."""
    specialist: str
    """Name of a condition."""
    domain: str
    """The domain that both learn. It is the name of the skill on which they are compared."""


def pairs_of(study: Study) -> list[Pair]:
    """Every specialist with each generalist of the same arm, family and model, in the study's order.

    Empty if the family has no domains.
    """
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
    """Whether two families are equal except for the shares of the domains in the training stream."""
    return a.model_dump(exclude={"domain_shares"}) == b.model_dump(exclude={"domain_shares"})


def measure_of(study: Study) -> Measure:
    """The measure that compares generalist and specialist: `exact_match` if ability is read from accuracy, else `ability`.

    Ability from accuracy counts matches beyond those of the memoriser. Each condition has its own memoriser, so its zero
    differs between conditions.
    """
    return "exact_match" if study.family_of(next(iter(study.conditions))).ability_of == "accuracy" else "ability"
