"""The primary claim: what it says, what could settle it before the run, what became of it after, and what is still wanting.

Knows the study and its tables; knows no figure, no MLflow, no Ray. What may be claimed is checked by `study/claimable.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis import boundaries, emergence, generalists, onsets
from orchestrator.analysis.boundaries import within
from orchestrator.analysis.claims import CONFIDENCE, claim_of, claim_of_arms
from orchestrator.analysis.emergence import emergence_words
from orchestrator.analysis.results import Axis, Results, split_of, surface
from orchestrator.formatting import figure, number, range_words, times
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.minimums import BIMODAL_CROSSING, BIMODAL_MEAN, MIN_REPLICATES, MOST_TRIED
from orchestrator.study.claim import RETIRED_VERDICT, Primary
from orchestrator.study.claimable import BOUNDS, OVERTAKING, grid
from orchestrator.study.pairs import pairs_of
from orchestrator.study.schema import Study
from trainers.tasks import Family

Verdict = Literal["consistent", "inconsistent", "inconclusive", "not measured"]


class PrimaryFinding(NamedTuple):
    """The declared claim and what became of it."""

    claim: Primary
    low: float | None
    high: float | None
    """95 % interval; None is open."""
    measured: str
    """What was found, in words."""
    verdict: Verdict
    """`inconclusive` where something was recorded and does not settle it, `not measured` where nothing was."""
    wanting: str = ""
    """The least that could settle it, where it is inconclusive; what to doubt where it is not. A sentence without its full stop, or
    nothing."""


# What is claimed ----------------------------------------------------------------------------------------------------

_QUANTITIES = {
    "k_ability": "the number of tasks from which on {skill} appears at {flops} FLOPs",
    "k_memory": "the number of training tasks up to which all are memorised{of_arm} at {flops} FLOPs",
    "drift_ability": "the drift of K_A of {skill}, in doublings per doubling of compute,",
    "drift_memory": "the drift of K_M{of_arm}, in doublings per doubling of compute,",
    "compute_to_skill": "the FLOPs from which on {skill} is there at {n} tasks",
    "crossover": "the FLOPs at which {against} overtakes {arm} in {bare_skill} at {n} tasks",
    "overtakes": "the FLOPs at which {arm} overtakes {rivals} at {n} tasks of a domain",
    "accuracy": "the accuracy of {skill} at {n} tasks and {flops} FLOPs",
    "ability": "the ability of {skill} at {n} tasks and {flops} FLOPs",
    "memory": "the memory of the training tasks{of_arm} at {n} tasks and {flops} FLOPs",
    "change_accuracy": "the change in accuracy of {skill} at {n} tasks from {from_flops} to {flops} FLOPs",
    "change_ability": "the change in ability of {skill} at {n} tasks from {from_flops} to {flops} FLOPs",
}


def claim_words(study: Study, claim: Primary) -> str:
    """The claim as a clause; it names its arm where the study has several."""
    arm, skill = _arm(study, claim), claim.skill or study.shown_skills[0]
    of_arm = f" ({arm})" if len(study.lines) > 1 else ""
    names = {
        "skill": skill + of_arm,
        "bare_skill": skill,
        "of_arm": of_arm,
        "arm": arm,
        "against": claim.against,
        "rivals": _rivals(claim),
        "flops": number(claim.compute_flops or study.budgets[-1]),
        "from_flops": number(claim.from_flops) if claim.from_flops else "",
        "n": number(claim.n_tasks) if claim.n_tasks else "",
    }
    if claim.what == "emergence":
        along = f"along compute at {names['n']} tasks" if claim.n_tasks else f"along tasks at {names['flops']} FLOPs"
        return f"the emergence of {names['skill']} {along} is a {claim.verdict}".replace("a smooth", "smooth")
    if claim.lo is not None and claim.hi is not None:
        asked = f"{_exactly(claim.lo)} to {_exactly(claim.hi)}"
    else:
        asked = f"at least {_exactly(claim.lo)}" if claim.lo is not None else f"at most {_exactly(claim.hi or 0.0)}"
    return f"{_QUANTITIES[claim.what].format(**names)} is {asked}"


def _rivals(claim: Primary) -> str:
    whose = f"the specialist of {claim.skill}" if claim.skill else "its mean specialist"
    return f"{whose} of {number(claim.from_flops)} FLOPs" if claim.from_flops else f"{whose} at its best"


def sentences(study: Study, found: PrimaryFinding) -> str:
    """The claim, what was found, whether they agree, and what would settle it if that is open."""
    said = f"Primary claim, that {claim_words(study, found.claim)}: {found.verdict} ({found.measured})."
    return f"{said} {found.wanting}." if found.wanting else said


def _exactly(value: float) -> str:
    """An end of a claim, as it was given."""
    return number(value) if abs(value) >= 1000 else f"{value:g}".replace("-", "\u2212")


def _arm(study: Study, claim: Primary) -> str:
    return claim.arm or next(iter(study.lines))


# What could settle it -----------------------------------------------------------------------------------------------

CROSSED = ("k_ability", "k_memory", "compute_to_skill", *OVERTAKING)
"""What is told by where replicates cross. Where they are of two kinds, by lot, intervals of three cover 76 % and of five 94 %
(simulate_boundaries: thresholds of two kinds). Drifts are guarded against that (stats.drift)."""
CROSS_BY_LOTTERY = BIMODAL_CROSSING.replicates
AGREE_BY_LOTTERY = BIMODAL_MEAN.replicates
"""From so many replicates on a mean is told rightly even in a cell where the skill comes by lottery: with 47 % up, and a claim that is
false by .1, the interval lies on the wrong side in 25 % of studies of 3 replicates, 13 % of 4, 6 % of 5, 3 % of 6 (40,000 each). The
t-interval knows nothing of a level that none of its replicates has come to."""
TRIED = MOST_TRIED
"""Replicates up to which it is tried whether they could settle a claim by agreeing."""


class Least(NamedTuple):
    """The least numbers of replicates that could settle a claim, however well they agree; None: no number tried could."""

    confirm: int | None
    refute: int | None


def least(study: Study, claim: Primary) -> Least:
    """What a claim takes at least: found by trying, with the very estimators that will judge it, 2, 3, ... replicates that
    agree in each of the ways they can."""
    confirm = refute = None
    for n in range(2, TRIED + 1):
        for verdict in _if_they_agree(study, claim, n):
            confirm = n if confirm is None and verdict == "consistent" else confirm
            refute = n if refute is None and verdict == "inconsistent" else refute
        if confirm is not None and refute is not None:
            break
    return Least(confirm, refute)


def _if_they_agree(study: Study, claim: Primary, n: int) -> Iterator[Verdict]:
    """The verdicts that n replicates in agreement can lead to."""
    if claim.what in BOUNDS:
        yield from ("consistent", "inconsistent")  # a mean without spread is known exactly
        return
    if claim.what == "emergence":
        for verdict in ("smooth", "break") if n >= MIN_REPLICATES else ("smooth",):
            yield "consistent" if verdict == claim.verdict else "inconsistent"
        return
    levels = grid(study, cast(Family, study.family), claim)
    if claim.what.startswith("drift"):
        yield from _drifts_if_they_agree(study, claim, levels, n)
        return
    for first in range(len(levels) + 1):  # across from the first level on, from the second, ... nowhere
        line = (np.arange(len(levels)) >= first).astype(float)
        if claim.what in OVERTAKING:
            gain = np.tile(2 * line - 1, (n, 1))
            yield _of_crossover(claim, stats.crossover(levels, np.zeros_like(gain), gain, CONFIDENCE))
        else:
            found = stats.boundary(levels, np.tile(line, (n, 1)), "rising", CONFIDENCE)
            yield _judged(claim, found.low, found.high)


def _drifts_if_they_agree(study: Study, claim: Primary, levels: Sequence[float], n: int) -> Iterator[Verdict]:
    """Between the two ends of the budgets, and between the two nearest. All replicates cross in the same step of tasks, or all
    but one below the first level: were that one there, too, nothing would be seen to cross."""
    rows = [[stats.Bracket(*step)] * n for step in pairwise(levels)]
    rows.append([stats.Bracket(None, levels[0])] * (n - 1) + [stats.Bracket(*levels[:2])])
    nearest = min(pairwise(study.budgets), key=lambda pair: pair[1] / pair[0])
    for pair in {(study.budgets[0], study.budgets[-1]), nearest}:
        for start in rows:
            for end in rows:
                found = stats.drift(pair, [start, end], CONFIDENCE)
                yield _judged(claim, found.low, found.high)


def least_words(known: Least) -> str:
    """The least that could settle a claim, in words."""
    if known.confirm == known.refute:
        return _that_could(known.confirm, "settle it")
    if known.confirm is None or known.refute is None:
        return f"{_that_could(known.confirm, 'confirm it')}; {_that_could(known.refute, 'refute it')}"
    return f"{_that_could(known.confirm, 'confirm it')}, {known.refute} that could refute it"


def _that_could(n: int | None, what: str) -> str:
    if n is None:
        return f"no replicates that agree could {what}, be it {TRIED} of them"
    return f"{times(n, 'replicate')} are the least that could {what}"


def planned(study: Study) -> list[tuple[str, str]]:
    """For the plan: the claim, what settles it, and a warning where the study has too few replicates; (name, text) each."""
    claim = study.primary
    if claim is None:
        return []
    known, n = least(study, claim), study.axes.replicates
    rule = (
        "consistent if the verdict is that one, inconsistent if it is the other of break and smooth"
        if claim.what == "emergence"
        else "consistent if the whole 95 % interval over replicates lies there, inconsistent if none of it does"
    )
    lines = [("claim", f"{claim_words(study, claim)}; {rule}")]
    caution = lottery_words(claim.what, n)
    lines.append(("settled by", f"{least_words(known)}; the less they agree, the more it takes. This study has {n:,}"))
    short = [what for what, k in (("confirm", known.confirm), ("refute", known.refute)) if k is not None and n < k]
    if short:
        could = "cannot settle the claim" if len(short) == 2 else f"cannot {short[0]} the claim"
        they = f"{times(n, 'replicate')} {could}, however well they agree" if n > 1 else f"one replicate {could}"
        lines.append(("warning", f"{they}; raise axes.replicates, now or after the run"))
    elif caution:
        lines.append(("warning", caution))
    return lines


def lottery_words(what: str, n: int) -> str:
    """What to doubt in a mean, or in where something is crossed, over few replicates; "" where there is nothing."""
    enough = AGREE_BY_LOTTERY if what in BOUNDS else CROSS_BY_LOTTERY if what in CROSSED else 0
    if not 1 < n < enough:
        return ""
    return f"should the skill come by lottery there, {n} replicates can agree by chance; {enough} seldom do"


# What became of it --------------------------------------------------------------------------------------------------


def examine(results: Results, cuts: list[emergence.Cut]) -> PrimaryFinding | None:
    """What became of the primary claim, at 95 %; None where none was declared."""
    claim = results.study.primary
    if claim is None:
        return None
    kind = claim.what.partition("_")[0]
    if kind == "k":
        return _examine_boundary(results, claim)
    if kind == "drift":
        return _examine_drift(results, claim)
    examined: dict[str, Callable[[Results, Primary], PrimaryFinding]] = {
        "compute_to_skill": _examine_to_skill,
        "crossover": _examine_crossover,
        "overtakes": _examine_crossover,
    }
    if claim.what == "emergence":
        return _examine_emergence(results.study, cuts, claim)
    return examined.get(claim.what, _examine_mean)(results, claim)


def _judged(claim: Primary, low: float | None, high: float | None) -> Verdict:
    """Consistent: the whole interval lies in the claimed range. Inconsistent: none of it does."""
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    lo, hi = -math.inf if claim.lo is None else claim.lo, math.inf if claim.hi is None else claim.hi
    if lo <= least and most <= hi:
        return "consistent"
    return "inconsistent" if most < lo or least > hi else "inconclusive"


def _finding(
    results: Results,
    claim: Primary,
    n: int,
    ends: tuple[float | None, float | None],
    verdict: Verdict,
    instead: str = "",
) -> PrimaryFinding:
    """A finding from an interval over n replicates; `instead` of the interval, what there is to say."""
    measured = instead or f"measured: 95 % interval {_interval_words(claim, *ends)}"
    wanting = ""
    if n < 2 and verdict == "inconclusive":  # a bracket is no interval
        ends, measured = (None, None), instead or "one replicate gives no interval"
    if verdict == "inconclusive":
        wanting = _wanting(results.study, claim, n)
    elif caution := lottery_words(claim.what, n):
        wanting = caution[0].upper() + caution[1:]
    return PrimaryFinding(claim, *ends, measured, verdict, wanting)


def _interval_words(claim: Primary, low: float | None, high: float | None) -> str:
    """An interval in words: of means and drifts to three figures, of tasks and FLOPs as they are written elsewhere."""
    if low is None or high is None or not (claim.what in BOUNDS or claim.what.startswith("drift")):
        return range_words(low, high)
    return f"{figure(low)} to {figure(high)}"


def _wanting(study: Study, claim: Primary, n: int) -> str:
    """The least that could settle it, where the study has fewer replicates."""
    known = least(study, claim)
    said = least_words(known)
    return said[0].upper() + said[1:] if n < max(known.confirm or 0, known.refute or 0) else ""


def _not_measured(claim: Primary) -> PrimaryFinding:
    return PrimaryFinding(claim, None, None, "nothing was recorded that defines it", "not measured")


def _examine_boundary(results: Results, claim: Primary) -> PrimaryFinding:
    study = results.study
    of: Literal["ability", "memory"] = "ability" if claim.what == "k_ability" else "memory"
    whole = _boundaries(results, claim, of)
    found = whole[results.budgets.index(claim.compute_flops or study.budgets[-1])][1]
    return _of_boundary(results, claim, found, [float(n) for n in results.levels])


def _boundaries(results: Results, claim: Primary, of: Literal["ability", "memory"]) -> boundaries.Boundaries:
    skill = (claim.skill or results.study.shown_skills[0]) if of == "ability" else ""
    return boundaries.boundaries_of(results, of, _arm(results.study, claim), skill, lambda name: CONFIDENCE)


def _of_boundary(results: Results, claim: Primary, found: stats.Boundary, levels: Sequence[float]) -> PrimaryFinding:
    if found.verdict == "missing":
        return _not_measured(claim)
    n = len(found.brackets)

    verdict = _judged(claim, found.low, found.high) if n > 1 else "inconclusive"
    return _finding(results, claim, n, within(found, levels), verdict)


def _examine_to_skill(results: Results, claim: Primary) -> PrimaryFinding:
    study, n_tasks = results.study, cast(int, claim.n_tasks)
    arm, skill = _arm(study, claim), claim.skill or study.shown_skills[0]
    told = onsets.to_skill(results, arm, skill, n_tasks, CONFIDENCE)
    if told is None:
        return _not_measured(claim)
    looks = results.along("ability", arm, skill, split_of(results, skill), n_tasks)[0]
    return _of_boundary(results, claim, told.boundary, looks.tolist())


def _examine_drift(results: Results, claim: Primary) -> PrimaryFinding:
    study = results.study
    of: Literal["ability", "memory"] = "ability" if claim.what == "drift_ability" else "memory"
    whole = _boundaries(results, claim, of)
    if all(b.verdict == "missing" for _, b in whole):
        return _not_measured(claim)
    skill = (claim.skill or study.shown_skills[0]) if of == "ability" else ""
    moved = boundaries.drift(results, of, _arm(study, claim), skill, whole, CONFIDENCE)
    seen = "" if moved.verdict != "missing" else f"K_{of[0].upper()} is not seen at two budgets"
    n = max(len(b.brackets) for _, b in whole)
    verdict = _judged(claim, moved.low, moved.high) if n > 1 and not seen else "inconclusive"
    return _finding(results, claim, n, (moved.low, moved.high), verdict, seen)


def _examine_crossover(results: Results, claim: Primary) -> PrimaryFinding:
    study = results.study
    arm, n_tasks = _arm(study, claim), cast(int, claim.n_tasks)
    if claim.what == "overtakes":
        behind, ahead = _rivals(claim), arm
        first, second = generalists.claimed(results, arm, claim.skill, n_tasks, claim.from_flops)
    else:
        behind, ahead = arm, cast(str, claim.against)
        skill, i = claim.skill or study.shown_skills[0], results.levels.index(n_tasks)
        first, second = (surface(results, "ability", line, skill)[i].T for line in (behind, ahead))
    met = stats.crossover(results.budgets, first, second, CONFIDENCE)
    if met.verdict == "missing":
        return _not_measured(claim)
    n = int((~np.isnan(second - first).all(axis=1)).sum())
    instead = _crossover_words(met, behind, ahead, n)
    return _finding(results, claim, n, (met.low, met.high), _of_crossover(claim, met), instead)


def _of_crossover(claim: Primary, met: stats.Crossover) -> Verdict:
    """The verdict on a crossover. It is consistent only if it was seen: where B is ahead from the start, it was not seen to
    overtake. Only that it does not come before `lo` can be seen without it, where A is shown ahead up to there."""
    verdict = _judged(claim, met.low, met.high)
    unseen = met.verdict != "crosses" and (claim.hi is not None or met.low is None)
    return "inconclusive" if verdict == "consistent" and unseen else verdict


def _crossover_words(met: stats.Crossover, arm: str, against: str, n: int) -> str:
    """What there is to say of two arms where no interval tells it; "" where one does."""
    if met.verdict == "crosses":
        return ""
    if met.verdict == "no difference shown":
        return "the arms are not told apart at any budget"
    if met.verdict == "b ahead throughout":
        return f"{against} is ahead at {number(met.b_ahead[0])} FLOPs and was not seen to overtake"
    if met.a_ahead and not met.b_ahead:
        return f"{arm} is ahead up to {number(met.a_ahead[-1])} FLOPs, and {against} was not seen to overtake"
    if n < MIN_TESTED:
        return f"{times(n, 'replicate')} cannot tell the arms apart"
    return f"{arm} is ahead only at more compute than {against}"


def _examine_mean(results: Results, claim: Primary) -> PrimaryFinding:
    """A mean over replicates, of a value or of what it gains between two budgets. A replicate that is yet to end is not counted; of one that ended without a value, by diverging,
    nobody knows what it would have added to the mean."""
    study = results.study
    arm, skill = _arm(study, claim), claim.skill or study.shown_skills[0]
    n_tasks, flops = cast(int, claim.n_tasks), claim.compute_flops or study.budgets[-1]
    cell = results.levels.index(n_tasks), results.budgets.index(flops)
    if claim.what == "memory":
        values = results.cube("memory", arm, cast(Family, study.family).mixture, "seen", "pre_decay")[cell]
    else:
        cube = results.cube(claim.what.removeprefix("change_"), arm, skill, split_of(results, skill))
        values = cube[cell]
        if claim.from_flops is not None:
            values = values - cube[cell[0], results.budgets.index(claim.from_flops)]
    ended = {
        run["replicate"]
        for run in results.runs
        if (run["arm"], run["n_tasks"], run["compute_flops"]) == (arm, n_tasks, flops)
        and run["status"] in ("done", "diverged", "failed")
    }
    known = values[~np.isnan(values)].tolist()
    lost = len(ended - set(np.flatnonzero(~np.isnan(values)).tolist()))
    if not known:
        return _not_measured(claim)
    if lost:
        instead = f"only {len(known)} of {times(len(known) + lost, 'replicate')} have a value"
        return _finding(results, claim, len(known), (None, None), "inconclusive", instead)
    interval = stats.t_interval(known)
    ends = (None, None) if interval is None else (interval.low, interval.high)
    verdict = _judged(claim, *ends) if len(known) > 1 else "inconclusive"
    return _finding(results, claim, len(known), ends, verdict)


def _examine_emergence(study: Study, cuts: list[emergence.Cut], claim: Primary) -> PrimaryFinding:
    along: Axis = "n_tasks" if claim.n_tasks is None else "compute_flops"
    fixed = claim.compute_flops if claim.n_tasks is None else float(claim.n_tasks)
    place = (_arm(study, claim), claim.skill or study.shown_skills[0], along, fixed)
    for cut in cuts:
        if (cut.arm, cut.skill, cut.axis, cut.fixed) == place and cut.result.verdict != "missing":
            decided = cut.result.verdict == "break" or (
                cut.result.verdict == "smooth" and claim.verdict != RETIRED_VERDICT
            )
            verdict = "consistent" if cut.result.verdict == claim.verdict else "inconsistent"
            said = f"found: {emergence_words(cut.result)}"
            return PrimaryFinding(claim, None, None, said, cast(Any, verdict if decided else "inconclusive"))
    return _not_measured(claim)


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
        domains = [pair.domain for pair in pairs_of(study) if pair.generalist == arm]
        domain = primary.skill or (generalists.ALL if len(domains) > 1 else "".join(domains))
        against: generalists.Against = "its budget" if primary.from_flops else "its best"
        return generalists.claim_of_contest(arm, domain, cast(int, primary.n_tasks), against, primary.from_flops)
    if primary.what == "emergence":
        along = "n_tasks" if primary.n_tasks is None else "compute_flops"
        fixed = primary.compute_flops if primary.n_tasks is None else primary.n_tasks
        return claim_of("break", along, arm, skill, float(cast(float, fixed)))
    return None
