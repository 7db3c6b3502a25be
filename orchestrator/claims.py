"""What a study claims: one primary claim, declared before the run, and everything else that was looked at, corrected together.

A claim is a sentence that the report says because of a test. The more is looked at, the more is found by chance: all claims but
the primary one go through Benjamini and Hochberg's procedure, and their intervals get the matching confidence.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast

from orchestrator import analyses, stats
from orchestrator.analyses import claim_of, claim_of_arms
from orchestrator.results import Results
from orchestrator.stats import multiplicity
from orchestrator.study import Primary
from orchestrator.words import number
from trainers.tasks import Family

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


class PrimaryFinding(NamedTuple):
    """The declared claim and what became of it."""

    claim: Primary
    low: float | None
    high: float | None
    """95 % interval; None is open."""
    measured: str
    """What was found, in words."""
    verdict: Literal["consistent", "inconsistent", "inconclusive", "not measured"]


def looked_at(
    results: Results, skills: tuple[str, ...], cuts: list[analyses.Cut]
) -> list[tuple[str, str, float | None]]:
    """Every claim a report of this study can make, (name, what it says, p-value), the primary one included."""
    study = results.study
    plain = lambda name: CONFIDENCE  # noqa: E731  a verdict does not depend on the confidence
    found: list[tuple[str, str, float | None]] = []
    several = len(study.axes.arm) > 1
    for arm in study.axes.arm:
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
                    found.append((claim_of("drift", measure, arm, skill), says, moved.p_value))
        for n in results.levels:
            told = analyses.to_skill(results, arm, skills[0], n, CONFIDENCE)
            comes = {"crossed": "comes in the course of training", "below": "is there at the first look"}
            verdict = told.boundary.verdict if told else "missing"
            said = "does not come" if verdict == "beyond" else comes.get(verdict, "comes or does not")
            says = f"{skills[0]}{of_arm} {said} at {number(n)} tasks"
            found.append((claim_of("to", "skill", arm, skills[0], float(n)), says, told.p_value if told else None))
    for o in analyses.crossovers(results, skills[0], plain):
        says = f"{o.second} overtakes {o.first} at {number(o.n_tasks)} tasks"
        found.append((claim_of_arms(o.first, o.second, skills[0], o.n_tasks), says, o.result.p_value))
    for cut in cuts:
        along, unit = ("tasks", "FLOPs") if cut.axis == "n_tasks" else ("compute", "tasks")
        of_arm = f" ({cut.arm})" if several else ""
        says = f"{cut.skill}{of_arm} breaks along {along} at {number(cut.fixed)} {unit}"
        found.append((claim_of_cut(cut), says, _break_p(cut)))
    return found


def _break_p(cut: analyses.Cut) -> float | None:
    """p-value of a break: of its leading score where one is called, 1 where it was tested and is not, None where it was not."""
    tested = [one for one in cut.result.metrics.values() if one.p_smooth is not None and one.p_straight is not None]
    if not tested:
        return None
    leading = tested[0]
    return max(leading.p_smooth or 0.0, leading.p_straight or 0.0) if cut.result.verdict == "break" else 1.0


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
    arm = primary.arm or study.axes.arm[0]
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
    if primary.what == "emergence":
        along = "n_tasks" if primary.n_tasks is None else "compute_flops"
        fixed = primary.compute_flops if primary.n_tasks is None else primary.n_tasks
        return claim_of("break", along, arm, skill, float(cast(float, fixed)))
    return None


def examine(results: Results, cuts: list[analyses.Cut]) -> PrimaryFinding | None:
    """What became of the primary claim, at 95 %; None where none was declared."""
    study, claim = results.study, results.study.primary
    if claim is None:
        return None
    arm, skill = claim.arm or study.axes.arm[0], claim.skill or study.shown_skills[0]
    flops, n_tasks = claim.compute_flops or study.budgets[-1], claim.n_tasks or results.levels[0]
    i, j = results.levels.index(n_tasks), results.budgets.index(flops)
    kind, _, measure = claim.what.partition("_")
    if kind in ("k", "drift"):
        of = cast(Literal["ability", "memory"], measure)
        whole = analyses.boundaries(results, of, arm, skill if of == "ability" else "", lambda name: CONFIDENCE)
        if kind == "k":
            return _ranged(
                claim, study.axes.replicates, whole[j][1].low, whole[j][1].high, whole[j][1].verdict != "missing"
            )
        moved = analyses.drift(results, of, arm, skill if of == "ability" else "", whole, CONFIDENCE)
        return _ranged(claim, study.axes.replicates, moved.low, moved.high, moved.verdict != "missing")
    if claim.what == "compute_to_skill":
        told = analyses.to_skill(results, arm, skill, n_tasks, CONFIDENCE)
        return _ranged(
            claim,
            study.axes.replicates,
            *((told.boundary.low, told.boundary.high, True) if told else (None, None, False)),
        )
    if claim.what == "crossover":
        first, second = (analyses.surface(results, "ability", a, skill)[i].T for a in (arm, cast(str, claim.against)))
        met = stats.crossover(results.budgets, first, second, CONFIDENCE)
        return _ranged(
            claim,
            study.axes.replicates,
            met.low,
            met.high,
            met.verdict in ("crosses", "a ahead throughout", "b ahead throughout"),
        )
    if claim.what == "emergence":
        return _emerged(cuts, claim, arm, skill)
    if claim.what == "memory":
        values = results.cube("memory", arm, cast(Family, study.family).mixture, "seen", "pre_decay")[i, j]
    else:
        values = results.cube(claim.what, arm, skill, analyses.split_of(results, skill))[i, j]
    complete = not any(map(math.isnan, values.tolist()))
    interval = stats.t_interval(values.tolist()) if complete else None
    return _ranged(
        claim,
        study.axes.replicates,
        interval.low if interval else None,
        interval.high if interval else None,
        interval is not None,
    )


def _ranged(claim: Primary, replicates: int, low: float | None, high: float | None, measured: bool) -> PrimaryFinding:
    """Consistent: the whole interval lies in the claimed range. Inconsistent: none of it does."""
    if not measured:
        return PrimaryFinding(claim, None, None, "it was not measured", "not measured")
    if replicates < 2:  # a bracket is no interval
        return PrimaryFinding(claim, None, None, "one replicate gives no interval", "inconclusive")
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    lo, hi = -math.inf if claim.lo is None else claim.lo, math.inf if claim.hi is None else claim.hi
    verdict: Literal["consistent", "inconsistent", "inconclusive"] = "inconclusive"
    if lo <= least and most <= hi:
        verdict = "consistent"
    elif most < lo or least > hi:
        verdict = "inconsistent"
    return PrimaryFinding(claim, low, high, range_words(low, high), verdict)


def range_words(low: float | None, high: float | None) -> str:
    """An interval in words, an open end said as such."""
    if low is None and high is None:
        return "nothing: the interval is open at both ends"
    if low is None or high is None:
        return f"at most {number(cast(float, high))}" if low is None else f"more than {number(low)}"
    return f"{number(low)} to {number(high)}"


def _emerged(cuts: list[analyses.Cut], claim: Primary, arm: str, skill: str) -> PrimaryFinding:
    along: analyses.Axis = "n_tasks" if claim.n_tasks is None else "compute_flops"
    fixed = claim.compute_flops if claim.n_tasks is None else float(claim.n_tasks)
    for cut in cuts:
        if (cut.arm, cut.skill, cut.axis, cut.fixed) == (arm, skill, along, fixed):
            said = cut.result.verdict
            decided = said in ("break", "smooth", "metric artefact")
            verdict = "inconclusive" if not decided else "consistent" if said == claim.verdict else "inconsistent"
            return PrimaryFinding(claim, None, None, said, cast(Any, verdict))
    return PrimaryFinding(claim, None, None, "it was not measured", "not measured")
