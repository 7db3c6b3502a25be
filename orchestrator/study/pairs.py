"""Generalists and their specialists among the conditions of a study, and the measure that compares them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from orchestrator.study.schema import Study
from trainers.tasks import Family

Measure = Literal["ability", "exact_match"]


class Pair(NamedTuple):
    """Two lines of a study: a specialist, the generalist that it belongs to, and the domain that both know."""

    generalist: str
    specialist: str
    domain: str
    """The skill that is measured on it."""


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
