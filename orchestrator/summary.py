"""What a study found, as one table for spreadsheets and one page of Markdown for MLflow."""

from __future__ import annotations

from typing import Any

from orchestrator import claims
from orchestrator.analyses import claim_of, claim_of_arms
from orchestrator.answer import confidence_words, of_line, primary_sentence, verdict_line
from orchestrator.findings import Findings
from orchestrator.generalists import claim_of_contest
from orchestrator.words import (
    ability_words,
    contest_words,
    drift_words,
    emergence_words,
    flops_words,
    interval_words,
    memory_words,
    multiplier_words,
    number,
    percent,
    times_of,
)

COLUMNS = ("quantity", "arm", "skill", "n_tasks", "compute_flops", "low", "high", "confidence", "verdict", "words")
"""Columns of the summary table: an interval's ends are empty where it is open, or where there is none."""


def rows(found: Findings) -> list[dict[str, Any]]:
    """The study in one table: boundaries, drifts, compute-to-skill, crossovers, breaks, claims; a row each."""
    levels = [float(n) for n in found.results.levels]
    confidences = {claim.name: claim.confidence for claim in found.claims}
    made: list[dict[str, Any]] = []

    def add(quantity: str, claim: str | None, **values: Any) -> None:
        confidence = None if claim is None else confidences.get(claim, claims.CONFIDENCE)
        made.append(dict.fromkeys(COLUMNS) | {"quantity": quantity, "confidence": confidence} | values)

    if found.primary is not None:
        claim = found.primary.claim
        where = {"arm": claim.arm, "skill": claim.skill, "n_tasks": claim.n_tasks, "compute_flops": claim.compute_flops}
        ends = {"low": found.primary.low, "high": found.primary.high, "confidence": claims.CONFIDENCE}
        add("primary claim", None, **where, **ends, verdict=found.primary.verdict, words=primary_sentence(found))
    for (arm, skill), whole in found.k_ability.items():
        for c, b in whole:
            name, said = claim_of("k", "ability", arm, skill, c), ability_words(b, levels)
            add(
                "K_A",
                name,
                arm=arm,
                skill=skill,
                compute_flops=c,
                low=b.low,
                high=b.high,
                verdict=b.verdict,
                words=said,
            )
    for arm, whole in found.k_memory.items():
        for c, b in whole:
            name, said = claim_of("k", "memory", arm, "", c), memory_words(b, levels)
            add("K_M", name, arm=arm, compute_flops=c, low=b.low, high=b.high, verdict=b.verdict, words=said)
    for (arm, skill), d in found.drift_ability.items():
        name, said = claim_of("drift", "ability", arm, skill), drift_words(d, "A")
        add("drift of K_A", name, arm=arm, skill=skill, low=d.low, high=d.high, verdict=d.verdict, words=said)
    for arm, d in found.drift_memory.items():
        name, said = claim_of("drift", "memory", arm, ""), drift_words(d, "M")
        add("drift of K_M", name, arm=arm, low=d.low, high=d.high, verdict=d.verdict, words=said)
    headline = found.study.shown_skills[0]
    every = {(arm, headline, n): told for (arm, n), told in found.to_skill.items()} | found.onsets
    for (arm, skill, n), told in every.items():
        b, name = told.boundary, claim_of("to", "skill", arm, skill, float(n))
        said = flops_words(b, found.looks(arm, n, skill))
        ends = {"low": b.low, "high": b.high}
        add("compute to skill", name, arm=arm, skill=skill, n_tasks=n, verdict=b.verdict, words=said, **ends)
    for o in found.crossovers:
        said = f"{o.second} over {o.first}: {o.result.verdict}"
        ends = {"low": o.result.low, "high": o.result.high}
        name = claim_of_arms(o.first, o.second, headline, o.n_tasks)
        add(
            "crossover",
            name,
            arm=o.second,
            skill=headline,
            n_tasks=o.n_tasks,
            verdict=o.result.verdict,
            words=said,
            **ends,
        )
    for m in found.multipliers:
        name, (low, high) = claim_of_arms(m.first, m.second, headline, m.n_tasks, "multiplier"), times_of(m.ratio)
        where = {"arm": m.second, "skill": headline, "n_tasks": m.n_tasks}
        add("compute multiplier", name, **where, low=low, high=high, verdict=m.ratio.verdict, words=multiplier_words(m))
    for met in found.contests:
        name = claim_of_contest(met.generalist, met.domain, met.n_tasks, met.against, met.specialist_flops)
        where = {"arm": met.generalist, "skill": met.domain, "n_tasks": met.n_tasks}
        (low, high), said = met.multiples, contest_words(met, found.study.budgets)
        ends = {"low": low, "high": high, "compute_flops": met.specialist_flops}
        add(f"generalist against {met.against}", name, **where, **ends, verdict=met.result.verdict, words=said)
    for cut in found.cuts:
        place: dict[str, Any] = {"compute_flops": cut.fixed} if cut.axis == "n_tasks" else {"n_tasks": int(cut.fixed)}
        said = emergence_words(cut.result)
        add(
            f"emergence along {cut.axis}",
            None,
            arm=cut.arm,
            skill=cut.skill,
            verdict=cut.result.verdict,
            words=said,
            **place,
        )
    for v in found.verdicts:
        cell = v.expected.cell
        where = {"arm": cell.arm, "skill": cell.skill, "n_tasks": cell.n_tasks, "compute_flops": cell.compute_flops}
        ends = {"low": v.measured.low, "high": v.measured.high} if v.measured else {}
        add(f"expected {v.expected.what}", None, **where, **ends, verdict=v.verdict, words=verdict_line(v))
    return made


def description(found: Findings) -> str:
    """The answer and both boundaries in Markdown, for a person who opens nothing but MLflow."""
    levels = [float(n) for n in found.results.levels]
    parts = [f"**{found.study.question.strip()}**", found.answer]
    for arm in found.study.lines:
        skill = found.study.shown_skills[0]
        pairs = zip(found.k_ability[(arm, skill)], found.k_memory[arm], strict=True)
        head = f"| training FLOPs{of_line(found, arm)} | {skill} appears (K_A, tasks) | memory ends (K_M, tasks) |\n|---|---|---|"
        lines = []
        for (c, a), (_, m) in pairs:
            shown = [(a, claim_of("k", "ability", arm, skill, c)), (m, claim_of("k", "memory", arm, "", c))]
            cells = [interval_words(b, levels) + confidence_words(found, b, claim) for b, claim in shown]
            lines.append(f"| {number(c)} | {' | '.join(cells)} |")
        parts.append("\n".join([head, *lines]))
    parts += [f"- {verdict_line(v)}" for v in found.verdicts]
    kept = sum(claim.verdict == "kept" for claim in found.claims)
    tested = sum(claim.verdict != "untested" for claim in found.claims)
    primary = "One primary claim" if found.primary else "No primary claim"
    parts.append(
        f"{primary}; {tested} other claims were tested, {kept} kept after correction (at most "
        f"{percent(claims.FALSE_SHARE)} of them expected to be false). Figures, tables and the report are among the artifacts."
    )
    return "\n\n".join(parts)
