"""Numbers and boundaries as people say them: the same words on the terminal, in MLflow and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from orchestrator import stats
from orchestrator.stats.breaks import MIN_SCALES, Break, Emergence
from orchestrator.stats.forecast import Forecast
from orchestrator.stats.frontier import MIN_SIZES, Chinchilla, Isoflops, Optimum, interval
from orchestrator.stats.replicates import Needed
from trainers import budget
from trainers.spec import TrunkSpec
from trainers.tasks import Family

if TYPE_CHECKING:
    from orchestrator.analysis.boundaries import Dip, Multiplier, Overtaking
    from orchestrator.analysis.claims import Fewer
    from orchestrator.analysis.generalists import Contest


def number(value: float) -> str:
    """A count or budget as people write it: 64, 1,024, 1e12, 4e11."""
    if value >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")  # rounded first: 9.999e11 is 1e12
        return f"{float(mantissa):g}e{int(exponent)}"
    if value < 0:
        return "\u2212" + number(-value)
    return f"{value:,.0f}" if value >= 10 or float(value).is_integer() else f"{value:.2g}"


def figure(value: float | None) -> str:
    """A measured value to three figures, with a true minus sign; an em dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\u2014"
    return number(value) if abs(value) >= 1000 else f"{value:.3g}".replace("-", "\u2212")


def _boundary_words(
    boundary: stats.Boundary,
    levels: Sequence[float],
    *,
    crossed: str,
    never: str,
    everywhere: str,
    again: str,
    already: str,
) -> str:
    """A boundary in words, open ends said as such; {} is the last level seen, or the first."""
    if boundary.verdict == "missing":
        return "is not defined (no value, the references coincide, or the memoriser cannot be enumerated)"
    if boundary.verdict == "beyond":
        return never.format(number(_edge(boundary)))
    if boundary.verdict == "below":
        return everywhere.format(number(_edge(boundary)))
    if boundary.verdict == "undecided" or boundary.high is None:
        reached, n = sum(b.high is not None for b in boundary.brackets), len(boundary.brackets)
        last = number(boundary.last or levels[-1])
        if n == 1:
            return f"{crossed}, but not for good: it is {again} again by {last} tasks"
        least, most = stats.wilson_interval(reached, n)
        closed = "" if boundary.high is None else f", in the median one at {number(boundary.high)} tasks or fewer"
        lost = f", in {boundary.lost_again} more only to be {again} again" if boundary.lost_again else ""
        return (
            f"{crossed} up to {last} tasks in {reached} of {n} replicates{lost} "
            f"(95 % interval of the share {least:.2f} to {most:.2f}){closed}"
        )
    low, high = _told(boundary.low, levels), _told(boundary.high, levels)
    at_first = [b.high for b in boundary.brackets if b.low is None and b.high is not None]
    there = (
        f" (in {len(at_first)} of {len(boundary.brackets)} replicates {already.format(number(min(at_first)))})"
        if at_first
        else ""
    )
    if low is None and high is None:
        return f"{crossed}, at a number of tasks that is open at both ends{there}"
    if high is None:
        return f"{crossed} at more than {number(cast(float, low))} tasks{there}"
    return (
        f"{crossed} at {number(high)} tasks or fewer{there}"
        if low is None
        else f"{crossed} between {number(low)} and {number(high)} tasks{there}"
    )


def _told(end: float | None, levels: Sequence[float]) -> float | None:
    """An end that may be told as a number: one within the grid.

    Outside nothing was measured, and what a t-interval says there is its formula's, not the study's: from the quickstart's
    levels, of which the last two lie a factor of 1e9 apart, it once told 1e20 ciphers where there are 2e13.
    """
    if end is None or not levels[0] <= end <= levels[-1]:
        return None
    return end if end in levels else float(f"{end:.3g}")


def within(boundary: stats.Boundary, levels: Sequence[float]) -> tuple[float | None, float | None]:
    """The ends of its interval as far as they lie within what was looked at; what lies beyond is open."""
    low, high = (end if _told(end, levels) is not None else None for end in (boundary.low, boundary.high))
    return low, high


def _edge(boundary: stats.Boundary) -> float:
    """The last level that was not across in any replicate (verdict beyond), or the first that was in all (below)."""
    if boundary.verdict == "beyond":
        return max(b.low for b in boundary.brackets if b.low is not None)
    return min(b.high for b in boundary.brackets if b.high is not None)


def interval_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """The interval of a boundary in figures, `levels` ascending; an end far outside the grid is told as open."""
    if boundary.verdict == "missing":
        return "—"
    n = len(boundary.brackets)
    if (
        boundary.verdict in ("beyond", "below") and n > 1
    ):  # the interval ends inside the grid, as few may agree by chance
        return f"{'beyond' if boundary.verdict == 'beyond' else 'below'} {number(_edge(boundary))} in all {n}"
    low, high = _told(boundary.low, levels), _told(boundary.high, levels)
    if low is None and high is None:
        return "open at both ends"
    one = " (one bracket)" if n == 1 else ""  # what a single replicate says, and no interval
    if high is None:
        return f"above {number(cast(float, low))}{one}"
    return (f"{number(high)} or fewer" if low is None else f"{number(low)} to {number(high)}") + one


def seen_words(boundary: stats.Boundary) -> str:
    """Between which levels all replicates of a boundary cross: what was seen, before any inference. Empty if one does not."""
    ends = [end for b in boundary.brackets for end in (b.low, b.high)]
    if boundary.verdict != "crossed" or not ends or None in ends:
        return ""
    known = cast(list[float], ends)
    return f"between {number(min(known))} and {number(max(known))} tasks"


def ability_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """K_A in words; an end outside the grid of `levels` is told by the grid's end."""
    return _boundary_words(
        boundary,
        levels,
        crossed="appears",
        never="does not appear up to {} tasks",
        everywhere="is there from {} tasks on",
        again="lost",
        already="it is there at {} already",
    )


def memory_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """K_M in words; an end outside the grid of `levels` is told by the grid's end."""
    return _boundary_words(
        boundary,
        levels,
        crossed="ends",
        never="holds up to {} tasks and more",
        everywhere="is not there, not even at {} tasks",
        again="there",
        already="not even {} are memorised",
    )


def times(n: int, what: str) -> str:
    """A count and its noun: 1 scale, 3 scales."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """A share as people write it, with a space before the sign."""
    return f"{share:.0%}".replace("%", " %")


def sure(confidence: float) -> str:
    """The confidence of an interval, never rounded up: 95 %, 99.2 %, 99.97 %."""
    digits = 0 if abs(100 * confidence - round(100 * confidence)) < 1e-9 else 1 if confidence < 0.999 else 2
    return f"{math.floor(100 * confidence * 10**digits + 1e-6) / 10**digits:.{digits}f} %"


def signed(value: float, digits: int | None = None) -> str:
    """A change to two figures, or to so many decimals, with a true minus sign; no change at all has none."""
    told = f"{value:+.2g}" if digits is None else f"{value:+.{digits}f}"
    return told.replace("-", "\u2212") if value else told[1:]


def flops_words(boundary: stats.Boundary, looks: Sequence[float]) -> str:
    """From how much compute on, in words; an end outside the evaluations is told by their end."""
    if boundary.verdict == "missing":
        return "is not defined"
    if boundary.verdict == "beyond":
        return f"is not there by {number(max(looks))} FLOPs"
    if boundary.verdict == "below":
        return f"is there at the first look, {number(min(looks))} FLOPs"
    low, high = boundary.low, boundary.high
    if high is None or high > max(looks):
        bound = f", not before {number(low)} FLOPs" if low is not None and low >= min(looks) else ""
        reached = sum(b.high is not None for b in boundary.brackets)
        lost = f" ({boundary.lost_again} had it and lost it again)" if boundary.lost_again else ""
        n = times(len(boundary.brackets), "replicate")
        return f"is there to stay in {reached} of {n} by {number(max(looks))} FLOPs{lost}{bound}"
    if low is None or low < min(looks):
        return f"comes by {number(high)} FLOPs"
    return f"comes between {number(low)} and {number(high)} FLOPs"


def drift_words(moved: stats.Drift, letter: str) -> str:
    """How a boundary moves with compute, as a sentence without its full stop."""
    name = f"K_{letter}"
    if moved.verdict == "missing":
        return f"how {name} moves with compute cannot be told: it is not seen at two budgets"
    if moved.low is None and moved.high is None:
        return f"how {name} moves with compute is not settled: a replicate leaves it open at both ends"
    if moved.verdict in ("rises", "falls"):
        least, most = sorted(abs(end) if end is not None else math.inf for end in (moved.low, moved.high))
        by = f"{_factor(least)} to {_factor(most)}" if math.isfinite(most) else f"at least {_factor(least)}"
        return f"{name} {moved.verdict} with compute, by {by} doublings of tasks per doubling of compute"
    low = "" if moved.low is None else f"{signed(moved.low)} or more"
    high = "" if moved.high is None else f"{signed(moved.high)} or less"
    both = (
        f"{signed(moved.low)} to {signed(moved.high)}"
        if moved.low is not None and moved.high is not None
        else low or high
    )
    return f"whether {name} moves with compute is not settled ({both} doublings of tasks per doubling of compute)"


def slopes_words(moved: stats.Drift) -> str:
    """What each replicate's brackets allow, in the unit of the drift: -0.5 to +1.5, +0.2 or more, open."""

    def one(slope: stats.Bracket) -> str:
        if slope.low is None or slope.high is None:
            ends = [
                f"{signed(end)} or {word}" for end, word in zip(slope, ("more", "less"), strict=True) if end is not None
            ]
            return ends[0] if ends else "open"
        return f"{signed(slope.low)} to {signed(slope.high)}"

    return ", ".join(one(slope) for slope in moved.slopes)


def dip_words(dip: Dip) -> str:
    """How a mean goes against its direction: changes by -0.2 between 4 and 64 tasks."""
    first, second = (number(end) for end in cast(tuple[float, float], dip.test.pair))
    unit = "tasks" if dip.axis == "n_tasks" else "FLOPs"
    return f"changes by {signed(cast(float, dip.test.change))} between {first} and {second} {unit}"


def times_of(ratio: stats.Drift) -> tuple[float | None, float | None]:
    """The ends of a ratio in doublings, as factors."""
    low, high = (None if end is None else float(2**end) for end in (ratio.low, ratio.high))
    return low, high


def range_words(low: float | None, high: float | None) -> str:
    """An interval in words, an open end said as such."""
    if low is None and high is None:
        return "nothing: the interval is open at both ends"
    if low is None or high is None:
        return f"at most {number(cast(float, high))}" if low is None else f"more than {number(low)}"
    return f"{number(low)} to {number(high)}"


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
            f" ({second} {_factor(low)} to {_factor(high)} times that of {first})"
            if low is not None and high is not None
            else ""
        )
        return f"which of {first} and {second} needs less compute is not shown{between}"
    if low is None or high is None:
        bound = f"at least {_factor(low)}" if low is not None else f"at most {_factor(cast(float, high))}"
        return f"{second} needs {bound} times the compute of {first}"
    return f"{second} needs {_factor(low)} to {_factor(high)} times the compute of {first}"


def _factor(value: float) -> str:
    """A factor or a number of doublings to two figures, never as 1e+02."""
    return number(value) if value >= 100 else f"{value:.2g}"


def fewer_words(found: Fewer) -> str:
    """Which of two arms needs fewer tasks, and how many times fewer, as a sentence without its full stop."""
    if found.shift is None or found.shift.verdict == "missing":
        return f"how the numbers of tasks that {found.first} and {found.second} need compare cannot be told"
    if not found.shown:
        return f"which of {found.first} and {found.second} needs fewer tasks is not shown"
    falls = found.shift.verdict == "falls"
    less, more = (found.second, found.first) if falls else (found.first, found.second)
    least, most = sorted(math.inf if end is None else 2 ** abs(end) for end in (found.shift.low, found.shift.high))
    by = f"{_factor(least)} to {_factor(most)}" if math.isfinite(most) else f"at least {_factor(least)}"
    return f"{less} needs fewer tasks than {more}, {by} times"


def contest_words(found: Contest, budgets: Sequence[float], level: bool = False) -> str:
    """What can be said of a generalist against a specialist, as a sentence without its full stop; `level`: with what it has."""
    spent, verdict = found.specialist_flops, found.result.verdict
    whose = "the mean specialist" if found.pooled else f"the specialist of {found.domain}"
    state = {
        "its budget": f"of {number(spent or 0.0)} FLOPs",
        "the same": "with as much compute",
        "its best": "at its best",
    }
    rival = f"{whose} {state[found.against]}"
    rival += f" (at {found.rival:.2f})" if level and found.rival is not None else ""

    def amount(*ends: float | None) -> str:
        known = [end for end in ends if end is not None]
        if spent is None:
            return " to ".join(map(number, known)) + " FLOPs"
        return (
            " to ".join(f"{end / spent:.2g}" if end < 100 * spent else f"{end / spent:.0f}" for end in known)
            + " times its compute"
        )

    low, high = found.result.low, found.result.high
    if verdict == "crosses":
        bound = "" if low and high else "at most " if high else "more than "
        return f"{found.generalist} overtakes {rival} at {bound}{amount(low, high)}"
    told = {
        "a ahead throughout": f"{found.generalist} stays behind {rival}, up to {amount(budgets[-1])}",
        "b ahead throughout": f"{found.generalist} is ahead of {rival}, from {amount(high)} on",
        "no difference shown": f"no difference is shown between {found.generalist} and {rival}, up to {amount(budgets[-1])}",
        "missing": f"{found.generalist} and {rival} were not both measured",
    }
    return told.get(verdict, f"whether {found.generalist} overtakes {rival} is undecided")


def model_words(trunk: TrunkSpec) -> str:
    """A model's size, the length of its sequences, what a step costs and, beside any budget, what an answer does."""
    family = cast(Family, trunk.family)
    step, answer = float(budget.flops_per_step(trunk)), float(budget.answer_flops(trunk))
    size = f"{budget.n_parameters(*budget.shape_of(trunk)):,} parameters, sequences of {family.length(trunk.arm)}"
    return f"{size}, {number(step)} FLOPs a step, {number(answer)} to answer"


def settles(further_scales: int | None, further_replicates: int | None, estimated: bool = False) -> str:
    """What an open question takes: the least that could settle it, or what is estimated to."""
    parts = [times(further_scales, "more scale")] if further_scales else []
    parts += [times(further_replicates, "more replicate")] if further_replicates else []
    if not parts:
        return "more replicates alone are not known to settle it"
    what = " and ".join(parts)
    if estimated:
        return f"{what} should settle it, if all stays as it looks"
    one = (further_scales or 0) + (further_replicates or 0) == 1
    return f"{what} {'is' if one else 'are'} the least that could settle it"


_SCORES = {
    "loss": "the loss",
    "brier": "the Brier score",
    "expected_accuracy": "the probability of the right answer",
    "accuracy": "greedy accuracy",
    "exact_match": "exact match",
}


_OPEN = {
    "few scales": "too few scales",
    "few replicates": "all speaks for a break, but so few replicates can look like one by chance",
    "no noise estimate": "one replicate gives no estimate of the noise",
    "noisy": "too noisy",
    "smooth predicts better": "a break fits best, smooth curves predict unseen scales better",
    "one odd scale": "without one odd scale a smooth curve would do",
    "nothing fits": "neither a smooth curve nor a single break describes it",
    "discrete score undecided": "only a threshold moves, and what it does is not decided",
    "continuous scores disagree": "the continuous scores disagree",
    "no continuous score": "there is no continuous score",
    "exact match unexplained": "exact match is abrupt alone, and not what the token probabilities predict",
    "exact match unpredicted": "exact match is abrupt alone, and nothing predicts it",
}
"""Why a question stays open, in words."""


def break_words(found: Break) -> str:
    """What is known of one score along one cut, in a clause."""
    if found.verdict == "break" and found.low is not None and found.high is not None:
        return f"{found.kind} between {number(math.exp(found.low))} and {number(math.exp(found.high))}"
    if found.verdict == "undecided":
        return f"undecided: {_OPEN.get(found.reason, found.reason)}"
    return str(found.verdict)


def emergence_words(found: Emergence) -> str:
    """The verdict on one skill along one cut, as a sentence without its full stop."""
    place = ""
    if found.low is not None and found.high is not None:
        place = f" between {number(math.exp(found.low))} and {number(math.exp(found.high))}"
    decisive = _SCORES.get(found.decisive or "", "the score")
    if found.verdict == "break":
        return f"a break of {decisive}{place}: no smooth curve explains it"
    if found.verdict == "metric artefact":
        return f"a metric artefact: {decisive} is abrupt{place}, while the continuous scores move gradually"
    if found.verdict == "smooth":
        return "smooth: no break is needed to explain it"
    if found.verdict == "constant":
        return "nothing moves beyond the noise"
    if found.verdict == "missing":
        return "not measured"
    one = found.metrics.get(found.decisive or "")
    why: str = one.reason if one is not None and found.reason == "continuous score undecided" else found.reason
    said = _OPEN.get(why, why)
    if one is not None and why == "few scales":
        said = f"{times(len(one.scales), 'scale')}, and a break needs {MIN_SCALES}"
    return f"undecided, {said}: {settles(found.further_scales, found.further_replicates, estimated=why == 'noisy')}"


def forecast_words(found: Forecast) -> str:
    """A forecast and its score, as a sentence without its full stop."""
    if found.predicted is None:
        return f"no forecast: {found.reason}"
    interval = "" if found.low is None or found.high is None else f" ({found.low:.3g} to {found.high:.3g})"
    vague = ", an interval too wide to say anything" if found.verdict == "uninformative" else ""
    vague += "" if found.floor is not None else ", if the fall goes on to the top"
    told = f"{found.predicted:.3g} nats{interval}{vague}"
    if found.measured is None:
        return f"{told}; the top is not there yet"
    hit = {True: "inside the interval", False: "outside the interval", None: "no interval to hold it"}[found.covers]
    return f"{told}; measured {found.measured:.3g}, {hit}"


def forecast_score_words(found: Iterable[Forecast]) -> str | None:
    """How several forecasts fared, as sentences; None below two that could be scored."""
    scored = [one for one in found if one.log_error is not None]
    if len(scored) < 2:
        return None
    claims = [one for one in scored if one.covers is not None]
    vague = sum(one.verdict == "uninformative" for one in claims)
    wide = f" ({vague} of them too wide to say anything)" if vague else ""
    held = f"The measured loss lay inside {sum(bool(one.covers) for one in claims)} of {len(claims)} intervals{wide}. "
    nearer: dict[str, list[bool]] = {}
    for one in scored:
        for rival in one.rivals:
            if rival.log_error is not None and one.log_error is not None:
                nearer.setdefault(rival.name, []).append(abs(one.log_error) < abs(rival.log_error))
    than = ", ".join(f"the {name}'s in {sum(won)} of {len(won)}" for name, won in nearer.items())
    return f"{held if claims else ''}The forecast's log error was smaller than {than}."


def frontier_words(found: Isoflops) -> str:
    """The best model size at each compute, or why none can be named; sentences."""
    sizes = {size for one in found.budgets for size in one.sizes}
    if len(sizes) < MIN_SIZES:
        given = {0: "No model size", 1: "One model size", 2: "Two model sizes"}[len(sizes)]
        return f"{given} in this study: which is best for a budget takes {MIN_SIZES} or more, at two budgets, to tell."
    said = []
    for one in found.budgets:
        at = f"At {number(one.compute)} FLOPs"
        if one.n_optimal is not None and one.tokens_per_parameter is not None:
            ends = f" ({_open_range(one.low, one.high)})" if one.low is not None or one.high is not None else ""
            per = f"{one.tokens_per_parameter:.3g} tokens a parameter"
            per += f" ({_open_range(one.ratio_low, one.ratio_high)})" if one.ratio_low or one.ratio_high else ""
            said.append(f"{at} the best size is {number(one.n_optimal)} parameters{ends}, {per}.")
        elif one.verdict in ("beyond", "below"):
            edge = "largest" if one.verdict == "beyond" else "smallest"
            bound = (
                f"at least {number(one.at_least)}"
                if one.at_least
                else f"at most {number(one.at_most)}"
                if one.at_most
                else ""
            )
            said.append(
                f"{at} the {edge} size is the best: the grid does not bracket the minimum, so none is claimed"
                f"{f' but that it has {bound} parameters, if there is one minimum' if bound else ''}."
            )
        elif one.verdict == "unclear":
            said.append(f"{at} the sizes are not told apart.")
    if found.exponent is not None:
        ends = f" ({found.low:.2f} to {found.high:.2f})" if found.low is not None and found.high is not None else ""
        law = f": {found.coefficient:.3g} C^{found.exponent:.3f} parameters" if found.coefficient is not None else ""
        said.append(f"The best size grows as compute to the power of {found.exponent:.2f}{ends}{law}.")
    elif found.reason:
        said.append(f"No exponent: {found.reason}.")
    return " ".join(said)


def law_words(found: Chinchilla, best: Optimum | None) -> str:
    """The parametric law and what it says of the best size, as sentences."""
    if found.law is None or best is None:
        return f"No parametric law: {found.reason}." if found.reason else ""
    fit = found.law
    said = (
        f"Parametric law over {times(found.n_trials, 'trial')}: loss = {figure(fit.floor)} + A / N^α + B / D^β, "
        f"α {fit.alpha:.2f}{_at_95(interval(found, lambda law: law.alpha))}, β {fit.beta:.2f}{_at_95(interval(found, lambda law: law.beta))}, "
        f"within {percent(found.rms_log_error or 0.0)} of what was measured; at {number(best.compute)} FLOPs its best "
        f"size is {number(best.n_parameters)} parameters"
    )
    if best.n_parameters_interval:
        said += f" ({number(best.n_parameters_interval[0])} to {number(best.n_parameters_interval[1])} at 95 %)"
    said += f", {figure(best.tokens_per_parameter)} tokens a parameter{_at_95(best.ratio_interval)}."
    if best.extrapolated:
        said += " That is outside the sizes that were tried: an extrapolation."
    if found.edge:
        said += f" The loss hardly depends on {found.edge}: read the law with care."
    return said


def _at_95(ends: tuple[float, float] | None) -> str:
    """An interval behind a number, in brackets; nothing where there is none."""
    return f" ({figure(ends[0])} to {figure(ends[1])} at 95 %)" if ends else ""


def _open_range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at most {number(cast(float, high))}" if low is None else f"at least {number(low)}"
    return f"{number(low)} to {number(high)}"


def needed_words(needed: Needed | None) -> str:
    """Replicates that a comparison needs; an em dash where it cannot be computed."""
    return "—" if needed is None else f"more than {needed.n:,}" if needed.or_more else f"{needed.n:,}"
