"""Two conditions beside each other: crossovers along compute, ratios of compute, and which needs fewer tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

from orchestrator import stats
from orchestrator.analysis import boundaries, claims
from orchestrator.analysis.boundaries import brackets_in_both
from orchestrator.analysis.claims import Confidence, Looked, claim_of, claim_of_arms, plain_confidence
from orchestrator.analysis.onsets import Told, ToSkill, to_skill
from orchestrator.analysis.results import Results, surface
from orchestrator.formatting import factor, number, range_words
from orchestrator.stats import differences
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.intervals import by_chance
from orchestrator.study.pairs import pairs_of


class Overtaking(NamedTuple):
    """One arm against another along compute, at one number of tasks, on the headline skill's ability."""

    first: str
    second: str
    n_tasks: int
    result: stats.Crossover


def crossovers(results: Results, skill: str, confidence: Confidence) -> list[Overtaking]:
    """Every pair of arms at every number of tasks; the order in which one is seen to overtake, if either is."""
    found = []
    for a, b in results.study.comparable:
        for i, n in enumerate(results.levels):
            first, second = (surface(results, "ability", arm, skill)[i].T for arm in (a, b))
            level = confidence(claim_of_arms(a, b, skill, n))
            there = stats.crossover(results.budgets, first, second, level)
            back = stats.crossover(results.budgets, second, first, level)
            reverse = back.verdict == "crosses" and there.verdict != "crosses"
            found.append(Overtaking(b, a, n, back) if reverse else Overtaking(a, b, n, there))
    return found


class Multiplier(NamedTuple):
    """How much more compute than `first` the arm `second` needs until the headline skill is there, at one number of tasks."""

    first: str
    second: str
    n_tasks: int
    ratio: stats.Drift
    """In doublings: 2 is four times the compute, negative is less. Per replicate, paired; an end is open where one is censored."""


def multipliers(
    results: Results, skill: str, told: dict[tuple[str, int], ToSkill], confidence: Confidence
) -> list[Multiplier]:
    """Every pair of arms at every number of tasks, by the replicates that can be judged of both; compute to skill against compute to
    skill.

    Where the size of one follows the budget, both are read at the ends of budgets: like against like.
    """
    found = []
    for a, b in results.study.comparable:
        at_ends = results.study.grows(a) != results.study.grows(b)
        for n in results.levels:
            pair = [
                to_skill(results, arm, skill, n, 0.95, at_ends=True) if at_ends else told.get((arm, n))
                for arm in (a, b)
            ]
            of = [dict(zip(one.judged, one.boundary.brackets, strict=True)) if one else {} for one in pair]
            both = sorted(of[0].keys() & of[1].keys())
            if not both:
                continue
            rows = [[brackets[r] for r in both] for brackets in of]
            level = confidence(claim_of_arms(a, b, skill, n, "multiplier"))
            found.append(Multiplier(a, b, n, stats.drift([1.0, 2.0], rows, level)))
    return found


def claims_of_fewer_tasks(results: Results, skill: str) -> Iterator[Looked]:
    """That two conditions need different numbers of tasks, for each pair."""
    for one in fewer_tasks(results, skill, plain_confidence):
        says = f"{one.first} and {one.second} need different numbers of tasks at {number(one.compute_flops)} FLOPs"
        yield one.name, says, _least_sure(one.shift)


def claims_of_crossovers(results: Results, skill: str) -> Iterator[Looked]:
    """That one arm overtakes another, or is ahead of it, whichever; as the verdict says."""
    for o in crossovers(results, skill, plain_confidence):
        says = f"{who_is_ahead(o.first, o.second, o.result)} at {number(o.n_tasks)} tasks"
        crosses = differences.crossing_p(o.result, len(results.budgets))  # in either order
        p = crossover_p(o.result, crosses, len(results.budgets))
        yield claim_of_arms(o.first, o.second, skill, o.n_tasks), says, p


def claims_of_multipliers(results: Results, skill: str, every: Told) -> Iterator[Looked]:
    """That two conditions need different compute until the skill is there, for each pair and number of tasks."""
    known = {(arm, n): told for (arm, of, n), told in every.items() if told is not None and of == skill}
    for m in multipliers(results, skill, known, plain_confidence):
        says = f"{m.first} and {m.second} need different compute at {number(m.n_tasks)} tasks"
        yield claim_of_arms(m.first, m.second, skill, m.n_tasks, "multiplier"), says, _least_sure(m.ratio)


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


def fewer_tasks(results: Results, skill: str, confidence: claims.Confidence) -> list[Fewer]:
    """Every pair of arms; none where generalists meet specialists, of which something else is asked."""
    study = results.study
    if pairs_of(study):
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


def who_is_ahead(a: str, b: str, met: stats.Crossover) -> str:
    """What the verdict on two conditions says, as a clause."""
    said = {"crosses": f"{b} overtakes {a}", AHEAD[0]: f"{a} is ahead of {b}", AHEAD[1]: f"{b} is ahead of {a}"}
    return said.get(met.verdict, f"{b} overtakes {a}, or one is ahead,")


def crossover_p(met: stats.Crossover, crosses: float | None, n_levels: int) -> float | None:
    """p-value of what the verdict on two arms says: `crosses` where one overtakes; where one is ahead, of that, and at least what
    lotteries bring, at any level; 1 where neither is shown."""
    if met.p_value is None or met.verdict == "crosses":
        return crosses
    if met.ahead_p is None:
        return 1.0
    n = len(met.brackets)
    return min(1.0, max(met.ahead_p, n_levels * by_chance(n, n)))


def _least_sure(ratio: stats.Drift | None) -> float | None:
    """p-value of a pair: 1 where replicates enough were looked at and nobody was seen to cross, so that what is tested does not
    depend on how it came out."""
    if ratio is None or len(ratio.slopes) < MIN_TESTED:
        return None
    return 1.0 if ratio.p_value is None else ratio.p_value


def times_of(ratio: stats.Drift) -> tuple[float | None, float | None]:
    """The ends of a ratio in doublings, as factors."""
    low, high = (None if end is None else float(2**end) for end in (ratio.low, ratio.high))
    return low, high


def overtaking_words(o: Overtaking) -> str:
    """One arm against another along compute."""
    met = o.result
    return {
        "crosses": f"{o.second} overtakes {o.first} at {range_words(met.low, met.high)} FLOPs",
        "a ahead throughout": f"{o.first} is ahead throughout; no crossover below {number(met.low or 0)} FLOPs",
        "b ahead throughout": f"{o.second} is ahead throughout, from {number(met.high or 0)} FLOPs on",
        "no difference shown": "no difference is shown at any budget",
        "missing": "not measured",
    }.get(met.verdict, f"undecided between {o.first} and {o.second}")


def multiplier_words(found: Multiplier) -> str:
    """How much more compute one arm needs than another for the skill, as a sentence without its full stop."""
    low, high = times_of(found.ratio)
    first, second = found.first, found.second
    if found.ratio.verdict == "missing" or (low is None and high is None):
        return f"how the compute that {first} and {second} need compares cannot be told"
    if high is not None and high < 1:  # said of the one that needs more
        first, second, low, high = second, first, 1 / high, None if low is None else 1 / low
    if found.ratio.verdict not in ("rises", "falls"):
        between = (
            f" ({second} {factor(low)} to {factor(high)} times that of {first})"
            if low is not None and high is not None
            else ""
        )
        return f"which of {first} and {second} needs less compute is not shown{between}"
    if low is None or high is None:
        bound = f"at least {factor(low)}" if low is not None else f"at most {factor(cast(float, high))}"
        return f"{second} needs {bound} times the compute of {first}"
    return f"{second} needs {factor(low)} to {factor(high)} times the compute of {first}"


def fewer_words(found: Fewer) -> str:
    """Which of two arms needs fewer tasks, and how many times fewer, as a sentence without its full stop."""
    if found.shift is None or found.shift.verdict == "missing":
        return f"how the numbers of tasks that {found.first} and {found.second} need compare cannot be told"
    if not found.shown:
        return f"which of {found.first} and {found.second} needs fewer tasks is not shown"
    falls = found.shift.verdict == "falls"
    less, more = (found.second, found.first) if falls else (found.first, found.second)
    least, most = sorted(math.inf if end is None else 2 ** abs(end) for end in (found.shift.low, found.shift.high))
    by = f"{factor(least)} to {factor(most)}" if math.isfinite(most) else f"at least {factor(least)}"
    return f"{less} needs fewer tasks than {more}, {by} times"
