"""Everything that a study asked, as the page needs it. The one place that reads the findings' own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.analysis import boundaries as bounds
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.claims import claim_of
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.onsets import flops_words
from orchestrator.analysis.primary import claim_words
from orchestrator.stats.boundaries import Bracket

BADGES = {"consistent": "consistent", "inconsistent": "inconsistent", "inconclusive": "inconclusive"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question with its answer."""

    name: str
    question: str
    condition: str
    skill: str = ""
    n_tasks: int | None = None
    compute_flops: float | None = None
    verdict: str = ""
    n: int = 0
    p: float | None = None
    adjusted_p: float | None = None
    significance: str = ""
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    brackets: tuple[Bracket, ...] = ()
    sentence: str = ""

    @property
    def has_interval(self) -> bool:
        return self.n > 1 and (self.low is not None or self.high is not None)


def asked(found: Findings) -> list[Asked]:
    levels = [float(n) for n in found.results.levels]
    kept: Any = {"yes": "significant", "no": "not significant", "untested": "untested", "primary": "primary", "": ""}
    out: list[Asked] = []

    def standing(name: str) -> dict[str, Any]:
        one = found.standings[name]
        return {"name": name, "p": one.p, "adjusted_p": one.adjusted_p, "significance": kept[one.kept],
                "confidence": found.confidence(name)}

    named = [("K_A", a, s, b) for (a, s), b in found.k_ability.items()]
    named += [("K_M", a, "", b) for a, b in found.k_memory.items()]
    for question, arm, skill, many in named:
        measure = "ability" if question == "K_A" else "memory"
        words = bounds.ability_words if question == "K_A" else bounds.memory_words
        for c, b in many:
            low, high = bounds.within(b, levels)
            out.append(Asked(question=question, condition=arm, skill=skill, compute_flops=c, verdict=b.verdict,
                             n=len(b.brackets), low=low, high=high, brackets=b.brackets,
                             sentence=f"{skill or 'memory'} {words(b, levels)}",
                             **standing(claim_of("k", measure, arm, skill, c))))
    every = {(a, found.study.shown_skills[0], n): one for (a, n), one in found.to_skill.items()} | found.onsets
    for (a, s, n), one in every.items():
        out.append(Asked(question="compute to skill", condition=a, skill=s, n_tasks=n, verdict=one.boundary.verdict,
                         n=len(one.boundary.brackets), low=one.boundary.low, high=one.boundary.high,
                         brackets=one.boundary.brackets, sentence=f"{s} {flops_words(one.boundary, found.looks(a, n, s))}",
                         **standing(claim_of("to", "skill", a, s, float(n)))))
    done = {one.name for one in out}
    for claim in found.claims:
        if claim.name not in done:
            out.append(Asked(question=claim.name.split("_")[0], condition="", sentence=claim.says, **standing(claim.name)))
    return out


def sentence(found: Findings) -> str:
    """The answer in one sentence of at most 25 words."""
    return " ".join(paragraph(found).split(". ")[0].split()[:25])


def more(found: Findings) -> list[str]:
    """At most four short sentences more."""
    return [one.rstrip(".") + "." for one in paragraph(found).split(". ")[1:5]]


def badge(found: Findings) -> tuple[str, str]:
    """Verdict on the primary claim, and its words."""
    if found.primary is None:
        return "", "No claim was declared before the run"
    return found.primary.verdict, f"{claim_words(found.study, found.primary.claim)} ({found.primary.measured})"
