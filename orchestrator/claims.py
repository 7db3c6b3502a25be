"""What a study claims besides the primary claim (primary_verdict.py): everything that was looked at, corrected together.

A claim is a sentence that the report says because of a test. The more is looked at, the more is found by chance: all claims but
the primary one go through Benjamini and Hochberg's procedure, and their intervals get the matching confidence.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple, cast

from orchestrator import analyses, generalists, stats
from orchestrator.analyses import claim_of, claim_of_arms
from orchestrator.primary import Primary
from orchestrator.results import Results
from orchestrator.stats import multiplicity
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.breaks import MIN_REPLICATES, MIN_SCALES
from orchestrator.words import number

CONFIDENCE = 0.95
FALSE_SHARE = 0.05
"""Of the claims that are kept, at most this share is expected to be false."""


class Claim(NamedTuple):
    """One thing that was looked at besides the primary claim."""

    name: str
    says: str
    p_value: float | None
    """None: it could not be tested."""
    adjusted_p: float | None
    verdict: Literal["kept", "not kept", "untested"]
    confidence: float
    """Of its interval, if it has one."""


def looked_at(
    results: Results, skills: tuple[str, ...], cuts: list[analyses.Cut]
) -> list[tuple[str, str, float | None]]:
    """Every claim a report of this study can make, (name, what it says, p-value), the primary one included."""
    study = results.study
    plain = lambda name: CONFIDENCE  # noqa: E731  a verdict does not depend on the confidence
    found: list[tuple[str, str, float | None]] = []
    several = len(study.lines) > 1
    to_skill = {
        (a, s, n): analyses.to_skill(results, a, s, n, CONFIDENCE)
        for a in study.lines
        for s in skills
        for n in results.levels
    }
    for arm in study.lines:
        of_arm = f" ({arm})" if several else ""
        for measure, names in (("ability", skills), ("memory", ("",))):
            kind = cast(Literal["ability", "memory"], measure)
            for skill in names:
                tables = analyses.judged(results, kind, arm, skill)
                whole = analyses.boundaries(results, kind, arm, skill, plain)
                what = f"{skill}{of_arm}" if skill else f"memory{of_arm}"
                for j, (c, b) in enumerate(whole):
                    p = analyses.boundary_p(tables[j][0], b.verdict, analyses.DIRECTION[measure])
                    found.append((claim_of("k", measure, arm, skill, c), _says(what, kind, b, c), p))
                if len(whole) > 1:
                    moved = analyses.drift(results, kind, arm, skill, whole, CONFIDENCE)
                    letter = "A" if skill else "M"
                    says = f"K_{letter} of {what} drifts with compute" if skill else f"K_M{of_arm} drifts with compute"
                    found.append((claim_of("drift", measure, arm, skill), says, _drift_p(moved, whole)))
        for skill, n in itertools.product(skills, results.levels):
            told = to_skill[(arm, skill, n)]
            if told is None and skill != skills[0]:
                continue
            comes = {"crossed": "comes in the course of training", "below": "is there at the first look"}
            verdict = told.boundary.verdict if told else "missing"
            said = "does not come" if verdict == "beyond" else comes.get(verdict, "comes or does not")
            says = f"{skill}{of_arm} {said} at {number(n)} tasks"
            found.append((claim_of("to", "skill", arm, skill, float(n)), says, told.p_value if told else None))
    for o in analyses.crossovers(results, skills[0], plain):
        says = f"{o.second} overtakes {o.first} at {number(o.n_tasks)} tasks"
        found.append((claim_of_arms(o.first, o.second, skills[0], o.n_tasks), says, o.result.p_value))
    known = {(a, n): told for (a, s, n), told in to_skill.items() if told is not None and s == skills[0]}
    for m in analyses.multipliers(results, skills[0], known, plain):
        says = f"{m.first} and {m.second} need different compute at {number(m.n_tasks)} tasks"
        found.append((claim_of_arms(m.first, m.second, skills[0], m.n_tasks, "multiplier"), says, m.ratio.p_value))
    for contest in generalists.contests(results, plain):
        of = contest.domain if contest.domain == generalists.ALL else f"the specialist of {contest.domain}"
        spent = (
            f"{contest.against}, {number(contest.specialist_flops)} FLOPs"
            if contest.specialist_flops
            else contest.against
        )
        says = f"{contest.generalist} overtakes {of} at {number(contest.n_tasks)} tasks ({spent})"
        where = contest.generalist, contest.domain, contest.n_tasks, contest.against, contest.specialist_flops
        found.append((generalists.claim_of_contest(*where), says, contest.result.p_value))
    for cut in cuts:
        along, unit = ("tasks", "FLOPs") if cut.axis == "n_tasks" else ("compute", "tasks")
        of_arm = f" ({cut.arm})" if several else ""
        says = f"{cut.skill}{of_arm} breaks along {along} at {number(cut.fixed)} {unit}"
        found.append((claim_of_cut(cut), says, _break_p(cut)))
    return found


def _break_p(cut: analyses.Cut) -> float | None:
    """p-value of a break: of the decisive score where one is called, 1 where one could have been and is not, None where there are
    too few scales or replicates for any: what cannot be tested must not depend on how it came out."""
    scores = cut.result.metrics.values()
    if not any(len(one.scales) >= MIN_SCALES and one.n_replicates >= MIN_REPLICATES for one in scores):
        return None
    if cut.result.verdict != "break":
        return 1.0
    decisive = cut.result.metrics[cast(str, cut.result.decisive)]
    return max(cast(float, decisive.p_smooth), cast(float, decisive.p_straight))


def _drift_p(moved: stats.Drift, whole: analyses.Boundaries) -> float | None:
    """p-value of a drift: 1 where the boundary was looked for at two budgets and is not seen at both, None where it was not, or in
    too few replicates."""
    looked = [b for _, b in whole if b.verdict != "missing" and len(b.brackets) >= MIN_TESTED]
    return (1.0 if moved.p_value is None else moved.p_value) if len(looked) > 1 else None


def claim_of_cut(cut: analyses.Cut) -> str:
    """Name of the claim that a cut has a break."""
    return claim_of("break", cut.axis, cut.arm, cut.skill, cut.fixed)


def _says(what: str, measure: Literal["ability", "memory"], boundary: stats.Boundary, flops: float) -> str:
    said = {
        "ability": {
            "crossed": "appears within the grid",
            "below": "is there from the first level on",
            "beyond": "does not appear",
        },
        "memory": {
            "crossed": "ends within the grid",
            "below": "is not there at any level",
            "beyond": "holds to the last level",
        },
    }[measure]
    return f"{what} {said.get(boundary.verdict, 'has a boundary')} at {number(flops)} FLOPs"


def correct(looked: list[tuple[str, str, float | None]], primary: str | None) -> tuple[Claim, ...]:
    """All claims but the primary one, corrected together (Benjamini and Hochberg; intervals by Benjamini and Yekutieli)."""
    others = [claim for claim in looked if claim[0] != primary]
    adjusted = multiplicity.adjust([p for _, _, p in others], FALSE_SHARE)
    verdicts: dict[str, Any] = {"selected": "kept", "not selected": "not kept", "untested": "untested"}
    return tuple(
        Claim(name, says, p, one.adjusted_p, verdicts[one.verdict], _confidence(one))
        for (name, says, p), one in zip(others, adjusted.claims, strict=True)
    )


def _confidence(claim: multiplicity.Claim) -> float:
    """Of kept claims the intervals are corrected for the selection; of others the plain one is shown, and supports no claim."""
    return claim.confidence if claim.verdict == "selected" and claim.confidence else CONFIDENCE


def name_of(results: Results, primary: Primary | None) -> str | None:
    """The primary claim's name among the claims looked at; None where there is none of its kind."""
    if primary is None:
        return None
    study = results.study
    arm = primary.arm or next(iter(study.lines))
    skill = primary.skill or study.shown_skills[0]
    flops = primary.compute_flops or study.budgets[-1]
    kind, _, measure = primary.what.partition("_")
    if kind in ("k", "drift"):
        skill = skill if measure == "ability" else ""
        return claim_of(kind, measure, arm, skill, flops if kind == "k" else "")
    if primary.what == "compute_to_skill":
        return claim_of("to", "skill", arm, skill, float(cast(int, primary.n_tasks)))
    if primary.what == "crossover":
        return claim_of_arms(cast(str, primary.against), arm, skill, cast(int, primary.n_tasks))
    if primary.what == "overtakes":
        domain = primary.skill or next(
            (c.domain for c in generalists.contests(results, lambda name: CONFIDENCE) if c.generalist == arm), ""
        )
        against: generalists.Against = "its budget" if primary.from_flops else "its best"
        return generalists.claim_of_contest(arm, domain, cast(int, primary.n_tasks), against, primary.from_flops)
    if primary.what == "emergence":
        along = "n_tasks" if primary.n_tasks is None else "compute_flops"
        fixed = primary.compute_flops if primary.n_tasks is None else primary.n_tasks
        return claim_of("break", along, arm, skill, float(cast(float, fixed)))
    return None


def range_words(low: float | None, high: float | None) -> str:
    """An interval in words, an open end said as such."""
    if low is None and high is None:
        return "nothing: the interval is open at both ends"
    if low is None or high is None:
        return f"at most {number(cast(float, high))}" if low is None else f"more than {number(low)}"
    return f"{number(low)} to {number(high)}"
