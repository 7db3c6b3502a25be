"""What a study claims besides the primary claim (primary_verdict.py): all of it counted, and corrected together.

A claim is a sentence that the report says because of a test. The more is looked at, the more is found by chance: all claims counted
here but the primary one go through Benjamini and Hochberg's procedure, and their intervals get the matching confidence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis import boundaries, generalists
from orchestrator.analysis.boundaries import claim_of, claim_of_arms
from orchestrator.analysis.results import Results
from orchestrator.formatting import number
from orchestrator.stats import differences, multiplicity
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.breaks import MIN_REPLICATES, MIN_SCALES
from orchestrator.stats.intervals import by_chance
from orchestrator.study.claimable import Primary

Measure = Literal["ability", "memory"]
CONFIDENCE = 0.95
FALSE_SHARE = 0.05
"""Of the claims that are kept, at most this share is expected to be false."""
NOT_KEPT, TOO_FEW = "not kept", "too few to test"


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


class Standing(NamedTuple):
    """Where what a result rests on stands after the correction; every field empty where nothing was counted."""

    p: float | None = None
    adjusted_p: float | None = None
    kept: Literal["yes", "no", "untested", "primary", ""] = ""
    """`untested`: nothing defines it, or there are too few replicates for any test. Empty: it is outside the count."""


def standings(made: Sequence[Claim], primary: str | None) -> Mapping[str, Standing]:
    """Name of a claim -> where it stands, of any name: what is not among them was not counted."""
    kept: dict[str, Literal["yes", "no", "untested"]] = {"kept": "yes", "not kept": "no", "untested": "untested"}
    known = {claim.name: Standing(claim.p_value, claim.adjusted_p, kept[claim.verdict]) for claim in made}
    if primary is not None:
        known[primary] = Standing(kept="primary")
    return defaultdict(Standing, known)


def mark(standing: Standing) -> str:
    """To stand beside a result that is worded as a fact: nothing where it is kept, or was declared, or is outside the count."""
    return {"no": NOT_KEPT, "untested": TOO_FEW}.get(standing.kept, "")


# What was looked at -------------------------------------------------------------------------------------------------

Looked = tuple[str, str, float | None]
"""Name of a claim, what it says, its p-value (None: it could not be tested)."""


def looked_at(results: Results, skills: tuple[str, ...], cuts: list[boundaries.Cut]) -> list[Looked]:
    """Every claim that goes into the count, the primary one included. What a report says besides, it says uncorrected: see the
    page's section on claims."""
    told = {
        (arm, skill, n): boundaries.to_skill(results, arm, skill, n, CONFIDENCE)
        for arm in results.study.lines
        for skill in skills
        for n in results.levels
    }
    return [
        *(claim for arm in results.study.lines for claim in _of_boundaries(results, arm, skills)),
        *_of_compute_to_skill(results, skills, told),
        *_of_fewer_tasks(results, skills[0]),
        *_of_overtaking(results, skills[0]),
        *_of_multipliers(results, skills[0], told),
        *_of_contests(results),
        *_of_breaks(results, cuts),
    ]


def _plain(name: str) -> float:
    """A verdict is looked for at 95 %, whatever becomes of its interval."""
    return CONFIDENCE


def _of_arm(results: Results, arm: str) -> str:
    return f" ({arm})" if len(results.study.lines) > 1 else ""


def _of_boundaries(results: Results, arm: str, skills: tuple[str, ...]) -> Iterator[Looked]:
    """Where each skill appears and memory ends, budget by budget; and how that moves with compute."""
    kinds: list[tuple[Measure, str]] = [*(("ability", skill) for skill in skills), ("memory", "")]
    for measure, skill in kinds:
        tables = boundaries.judged(results, measure, arm, skill)
        whole = boundaries.boundaries_of(results, measure, arm, skill, _plain)
        what = f"{skill or 'memory'}{_of_arm(results, arm)}"
        for (table, _), (c, b) in zip(tables, whole, strict=True):
            p = boundaries.boundary_p(table, b.verdict, boundaries.DIRECTION[measure])
            yield claim_of("k", measure, arm, skill, c), _says(what, measure, b, c), p
        if len(whole) > 1:
            moved = boundaries.drift(results, measure, arm, skill, whole, CONFIDENCE)
            says = f"K_A of {what} drifts with compute" if skill else f"K_M{_of_arm(results, arm)} drifts with compute"
            yield claim_of("drift", measure, arm, skill), says, _drift_p(moved, whole)


Told = Mapping[tuple[str, str, int], boundaries.ToSkill | None]
"""(arm, skill, n_tasks) -> compute to skill."""


def _of_compute_to_skill(results: Results, skills: tuple[str, ...], every: Told) -> Iterator[Looked]:
    """That a skill comes, does not, or is there at the first look, at each number of tasks."""
    comes = {
        "crossed": "comes in the course of training",
        "below": "is there at the first look",
        "beyond": "does not come",
    }
    for (arm, skill, n), told in every.items():
        if told is None and skill != skills[0]:
            continue
        said = comes.get(told.boundary.verdict if told else "missing", "comes or does not")
        says = f"{skill}{_of_arm(results, arm)} {said} at {number(n)} tasks"
        yield claim_of("to", "skill", arm, skill, float(n)), says, told.p_value if told else None


def _of_fewer_tasks(results: Results, skill: str) -> Iterator[Looked]:
    for one in fewer_tasks(results, skill, _plain):
        says = f"{one.first} and {one.second} need different numbers of tasks at {number(one.compute_flops)} FLOPs"
        yield one.name, says, _least_sure(one.shift)


def _of_overtaking(results: Results, skill: str) -> Iterator[Looked]:
    """That one arm overtakes another, or is ahead of it, whichever; as the verdict says."""
    for o in boundaries.crossovers(results, skill, _plain):
        says = f"{_who_is_ahead(o.first, o.second, o.result)} at {number(o.n_tasks)} tasks"
        crosses = differences.crossing_p(o.result, len(results.budgets))  # in either order
        p = _met_p(o.result, crosses, len(results.budgets))
        yield claim_of_arms(o.first, o.second, skill, o.n_tasks), says, p


def _of_multipliers(results: Results, skill: str, every: Told) -> Iterator[Looked]:
    known = {(arm, n): told for (arm, of, n), told in every.items() if told is not None and of == skill}
    for m in boundaries.multipliers(results, skill, known, _plain):
        says = f"{m.first} and {m.second} need different compute at {number(m.n_tasks)} tasks"
        yield claim_of_arms(m.first, m.second, skill, m.n_tasks, "multiplier"), says, _least_sure(m.ratio)


def _of_contests(results: Results) -> Iterator[Looked]:
    """That a generalist overtakes its specialists, or that one of them is ahead; as the verdict says."""
    for met in generalists.contests(results, _plain):
        of = met.domain if met.domain == generalists.ALL else f"the specialist of {met.domain}"
        flops = f", {number(met.specialist_flops)} FLOPs" if met.specialist_flops else ""
        said = _who_is_ahead(of, met.generalist, met.result)
        where = met.generalist, met.domain, met.n_tasks, met.against, met.specialist_flops
        crosses = differences.crossing_p(met.result, len(results.budgets), either=False)
        p = _met_p(met.result, crosses, len(results.budgets))
        if met.against == "its best" and met.result.verdict == AHEAD[0]:
            p = 1.0  # the largest of noisy values, chosen after the fact, is ahead by that alone
        yield generalists.claim_of_contest(*where), f"{said} at {number(met.n_tasks)} tasks ({met.against}{flops})", p


def _of_breaks(results: Results, cuts: list[boundaries.Cut]) -> Iterator[Looked]:
    for cut in cuts:
        along, unit = ("tasks", "FLOPs") if cut.axis == "n_tasks" else ("compute", "tasks")
        of_arm = _of_arm(results, cut.arm)
        says = f"{cut.skill}{of_arm} breaks along {along} at {number(cut.fixed)} {unit}"
        yield claim_of_cut(cut), says, _break_p(cut)


# Pairs of arms ------------------------------------------------------------------------------------------------------

Brackets = tuple[tuple[stats.Bracket, ...], tuple[stats.Bracket, ...]]
"""Where the replicates of one side cross, and those of another, paired."""
Judged = tuple[np.ndarray, np.ndarray]
"""A table (replicates, levels), and which replicates these are (`analyses.judged`)."""


def brackets_in_both(
    grids: tuple[Sequence[float], Sequence[float]], judged: tuple[Judged, Judged], measure: Measure
) -> Brackets:
    """Where each replicate crosses on either side; of the replicates that can be judged on both."""
    rows = [of.tolist() for _, of in judged]
    common = [r for r in rows[0] if r in rows[1]]
    first, second = (
        stats.boundary(levels, table[[own.index(r) for r in common]], boundaries.DIRECTION[measure]).brackets
        for levels, (table, _), own in zip(grids, judged, rows, strict=True)
    )
    return first, second


class Fewer(NamedTuple):
    """Two arms by the numbers of tasks that it takes until the headline skill appears, at the largest budget."""

    name: str
    """Of the claim."""
    first: str
    second: str
    compute_flops: float
    shift: stats.Drift | None
    """From the first to the second in doublings of tasks, paired by replicate; None where either was not measured."""
    shown: bool
    """Is it shown, for itself, that one needs fewer? The second does where the shift falls."""


def fewer_tasks(results: Results, skill: str, confidence: boundaries.Confidence) -> list[Fewer]:
    """Every pair of arms; none where generalists meet specialists, of which something else is asked."""
    study = results.study
    if generalists.pairs_of(study):
        return []
    levels, top = [float(n) for n in results.levels], results.budgets[-1]
    judged = {line: boundaries.judged(results, "ability", line, skill)[-1] for line in study.lines}
    found = []
    for a, b in study.comparable:
        name = claim_of("fewer", min(a, b), max(a, b), skill, top)
        brackets = brackets_in_both((levels, levels), (judged[a], judged[b]), "ability")
        shift, alpha = differences.shift(*brackets, confidence(name)), 1 - confidence(name)
        shown = shift is not None and shift.verdict in ("rises", "falls") and (shift.p_value or 0.0) <= alpha + 1e-12
        found.append(Fewer(name, a, b, top, shift, shown))
    return found


AHEAD = ("a ahead throughout", "b ahead throughout")


def _who_is_ahead(a: str, b: str, met: stats.Crossover) -> str:
    said = {"crosses": f"{b} overtakes {a}", AHEAD[0]: f"{a} is ahead of {b}", AHEAD[1]: f"{b} is ahead of {a}"}
    return said.get(met.verdict, f"{b} overtakes {a}, or one is ahead,")


def _met_p(met: stats.Crossover, crosses: float | None, n_levels: int) -> float | None:
    """p-value of what the verdict on two arms says: `crosses` where one overtakes; where one is ahead, of that, and at least what
    lotteries bring, at any level; 1 where neither is shown."""
    if met.p_value is None or met.verdict == "crosses":
        return crosses
    if met.ahead_p is None:
        return 1.0
    n = len(met.brackets)
    return min(1.0, max(met.ahead_p, n_levels * by_chance(n, n)))


# p-values -----------------------------------------------------------------------------------------------------------


def _break_p(cut: boundaries.Cut) -> float | None:
    """p-value of a break: of the decisive score where one is called, 1 where one could have been and is not, None where there are
    too few scales or replicates for any: what cannot be tested must not depend on how it came out."""
    scores = cut.result.metrics.values()
    if not any(len(one.scales) >= MIN_SCALES and one.n_replicates >= MIN_REPLICATES for one in scores):
        return None
    if cut.result.verdict != "break":
        return 1.0
    decisive = cut.result.metrics[cast(str, cut.result.decisive)]
    return max(cast(float, decisive.p_smooth), cast(float, decisive.p_straight))


def _drift_p(moved: stats.Drift, whole: boundaries.Boundaries) -> float | None:
    """p-value of a drift: 1 where the boundary was looked for at two budgets and is not seen at both, None where it was not, or in
    too few replicates."""
    looked = [b for _, b in whole if b.verdict != "missing" and len(b.brackets) >= MIN_TESTED]
    return (1.0 if moved.p_value is None else moved.p_value) if len(looked) > 1 else None


def _least_sure(ratio: stats.Drift | None) -> float | None:
    """p-value of a pair: 1 where replicates enough were looked at and nobody was seen to cross, so that what is tested does not
    depend on how it came out."""
    if ratio is None or len(ratio.slopes) < MIN_TESTED:
        return None
    return 1.0 if ratio.p_value is None else ratio.p_value


def claim_of_cut(cut: boundaries.Cut) -> str:
    """Name of the claim that a cut has a break."""
    return claim_of("break", cut.axis, cut.arm, cut.skill, cut.fixed)


def _says(what: str, measure: Measure, boundary: stats.Boundary, flops: float) -> str:
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


# Correction ---------------------------------------------------------------------------------------------------------


def correct(looked: list[Looked], primary: str | None) -> tuple[Claim, ...]:
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
        domains = [pair.domain for pair in generalists.pairs_of(study) if pair.generalist == arm]
        domain = primary.skill or (generalists.ALL if len(domains) > 1 else "".join(domains))
        against: generalists.Against = "its budget" if primary.from_flops else "its best"
        return generalists.claim_of_contest(arm, domain, cast(int, primary.n_tasks), against, primary.from_flops)
    if primary.what == "emergence":
        along = "n_tasks" if primary.n_tasks is None else "compute_flops"
        fixed = primary.compute_flops if primary.n_tasks is None else primary.n_tasks
        return claim_of("break", along, arm, skill, float(cast(float, fixed)))
    return None
