"""The answer of a study in words: one sentence, the verdict on the primary claim, and at most four further sentences.

The report, the terminal and MLflow print these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.analysis import along
from orchestrator.analysis.boundaries import edge, place_words
from orchestrator.analysis.finding import Finding, capitalised, in_condition
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.generalists import ALL
from orchestrator.formatting import number, rounded, sure, times

MAX_WORDS = 25
"""Most words of `sentence`."""
MAX_MORE = 4
"""Most sentences of `more`."""


def sentence(found: Findings) -> str:
    """The answer of a study in one sentence of at most MAX_WORDS words. It begins with "So far" while trials are open.

    The subject is a generalist/specialist comparison if the study has one, else a boundary along a family parameter, else a
    difference between conditions, else the boundary of the one condition.
    """
    ways = {r["status"] for r in found.runs}
    if "done" not in ways:
        yet, result = " yet" if ways <= {"open"} or "open" in ways else "", " with a result" if ways - {"open"} else ""
        return f"Nothing can be said{yet}: no trial has ended{result}."
    so_far = "so far, " if "open" in ways else ""
    for candidate in _candidates(found):
        if len(f"{so_far}{candidate}".split()) <= MAX_WORDS:
            return f"{capitalised(so_far + candidate)}."
    raise AssertionError("the last candidate is short")


def _candidates(found: Findings) -> Iterator[str]:
    """Sentences without their full stop, in order of preference; `sentence` takes the first that is short enough."""
    if found.of("generalist "):
        yield from _of_comparison(found)
    if along.spans(found.study):
        for one in [one for one in _along(found) if one.answered]:
            yield f"{one.sentence}{f' ({certainty})' if (certainty := _certainty(one)) else ''}"
            yield one.sentence
    measured = [c for c in _conditions(found) if _is_measured(found, c)]
    if len(measured) > 1:
        yield from _of_conditions(found, measured)
    yield from _of_one(found, (measured or _conditions(found))[0])


def _along(found: Findings) -> list[Finding]:
    """The boundaries along a family parameter at the largest budget: that of the primary claim first, then measure by measure."""
    asked = found.of("along ", skill=found.study.shown_skills[0], compute_flops=found.study.budgets[-1])
    claimed = [found.primary.finding] if found.primary is not None and found.primary.finding in asked else []
    return [*claimed, *(one for one in asked if one not in claimed)]


def _conditions(found: Findings) -> list[str]:
    """The conditions of a study; of several that differ in placement alone, the first."""
    return [alike[0] for alike in found.study.same_question()]


def _is_measured(found: Findings, condition: str) -> bool:
    """Whether the headline skill's K_A has a value at any budget."""
    return _top(found, "K_A", condition, found.study.shown_skills[0]).verdict != "missing"


def _top(found: Findings, question: str, condition: str, skill: str = "") -> Finding:
    """K_A or K_M (`question`) at the largest budget with as many replicates as any."""
    known = found.of(question, condition, skill)
    most = max(one.n for one in known)
    return [one for one in known if one.n == most][-1]


def _of_one(found: Findings, condition: str) -> Iterator[str]:
    """Sentences on one condition: the tasks and the compute at which the headline skill appears."""
    skill = found.study.shown_skills[0]
    k = _top(found, "K_A", condition, skill)
    what, flops = f"{skill}{in_condition(found.results, condition)}", number(k.compute_flops or 0.0)
    n = times(k.n, "replicate")
    if k.verdict == "missing":
        yield f"ability of {what} is not defined in any cell"
    elif k.verdict == "beyond":
        yield f"the skill {what} does not appear up to {number(edge(k))} tasks and {flops} FLOPs ({n})"
        yield f"the skill {skill} does not appear"
    elif k.verdict == "undecided":
        has = sum(b.high is not None for b in k.brackets)
        yield f"the skill {what} appears in only {has} of {n}, up to {number(k.reach[1] if k.reach else 0)} tasks at {flops} FLOPs"
        yield f"the skill {skill} appears in only {has} of {n}"
    else:
        onset = _onset(found, condition, skill)
        many = place_words(k)
        if onset is not None and onset.has_interval and onset.verdict == "crossed":
            needs = f"and needs {_needs(onset)} FLOPs ({number(onset.n_tasks or 0)} tasks)"
            yield f"the skill {what} {many} ({flops} FLOPs), {needs}; {_certainty(k, onset)}"
        sure_words = _certainty(k)
        yield f"the skill {what} {many} at {flops} FLOPs{f' ({sure_words})' if sure_words else ''}"
        yield f"the skill {skill} {many}"


def _certainty(*shown: Finding) -> str:
    """The number of replicates, and the least confidence of the intervals of these findings: 3 replicates, 95 % intervals.

    "" if there is no interval and the words of the finding name the replicates themselves.
    """
    n = times(shown[0].n, "replicate")
    crossed = [one for one in shown if one.verdict == "crossed" and one.has_interval]
    if not crossed:
        return n if shown[0].verdict == "below" or shown[0].n == 1 else ""
    return f"{n}, {sure(min(one.confidence for one in crossed))} interval{'s' if len(crossed) > 1 else ''}"


def _onset(found: Findings, condition: str, skill: str) -> Finding | None:
    """Compute to skill at the largest number of tasks at which it has a value; None if it has none."""
    known = [one for one in found.of("compute to skill", condition, skill) if one.verdict != "missing"]
    return known[-1] if known else None


def _needs(onset: Finding) -> str:
    """The interval of a compute to skill for a sentence, in FLOPs: `1e10 to 4e10`, `at most 4e10`."""
    low, high = onset.ends
    if low is None or high is None:
        return f"at most {rounded(high)}" if high is not None else f"more than {rounded(low or 0.0)}"
    return f"{rounded(low)} to {rounded(high)}"


def _of_conditions(found: Findings, conditions: list[str]) -> Iterator[str]:
    """Sentences on several conditions: their significant differences; without any, that no difference is significant.

    conditions: two or more, whose K_A has a value.
    """
    skill = found.study.shown_skills[0]
    asked = [*found.of("task multiplier"), *found.of("crossover"), *found.of("compute multiplier")]
    shown = [one for one in asked if one.significance in ("significant", "primary") and one.verdict in SHOWN]
    if found.primary is not None and found.primary.finding in shown:
        yield found.primary.finding.sentence
    for one in shown:
        yield one.sentence
    if shown:
        yield f"{times(len(shown), 'difference')} between conditions can be shown"
    there, nowhere, flops = _at_one_budget(found, conditions, skill)
    if there and nowhere:
        having, lacking = (listed([one.condition for one in side]) for side in (there, nowhere))
        top = f"up to {number(min(edge(one) for one in nowhere))} tasks and {number(flops)} FLOPs"
        yield f"{skill} appears with {having}, but not with {lacking}, {top}"
        yield f"{skill} appears with {len(there)} of {len(conditions)} conditions"
    few = times(found.study.axes.replicates, "replicate")
    for names in (listed(conditions), f"{len(conditions)} conditions"):
        if any(one.p is not None for one in asked):
            yield f"no difference between {names} is significant"
        else:
            yield f"{few} cannot show a difference between {names}"


def _at_one_budget(found: Findings, conditions: list[str], skill: str) -> tuple[list[Finding], list[Finding], float]:
    """K_A of the conditions with the skill, K_A of those without, and the budget.

    The budget is the largest one at which K_A has a value in all conditions.
    """
    for flops in reversed(found.study.budgets):
        known = [one for c in conditions for one in found.of("K_A", c, skill, compute_flops=flops)]
        if all(one.verdict != "missing" for one in known):
            there = [one for one in known if one.verdict in ("crossed", "below")]
            return there, [one for one in known if one.verdict == "beyond"], flops
    return [], [], 0.0


def _missing_words(found: Findings) -> str:
    """The numbers of tasks, replicates, budgets and conditions without any ended trial, for a sentence; "" if each has one.

    Example: `, among them all at 16 and 64 tasks and all of replicate 2`.
    """
    ended = [run for run in found.runs if run["status"] != "open"]
    axes = found.study.axes

    def lacking(key: str, values: Iterable[Any]) -> list[Any]:
        there = {run[key] for run in ended}
        return [value for value in values if value not in there]

    def names(values: list[str], several: str) -> str:
        return listed(values) if len(values) <= MAX_LISTED else f"{len(values)} {several}"

    parts = []
    if tasks := lacking("n_tasks", sorted(axes.n_tasks)):
        parts.append(f"all at {names([number(n) for n in tasks], 'numbers of')} tasks")
    if replicates := lacking("replicate", range(axes.replicates)):
        plural = "s" if 1 < len(replicates) <= MAX_LISTED else ""
        numbered = f"replicate{plural} " if len(replicates) <= MAX_LISTED else ""
        parts.append(f"all of {numbered}{names([str(r) for r in replicates], 'replicates')}")
    if budgets := lacking("compute_flops", found.study.budgets):
        parts.append(f"all at {names([number(c) for c in budgets], 'budgets of')} FLOPs")
    if conditions := lacking("arm", found.study.conditions):
        parts.append(f"all of {names(conditions, 'conditions')}")
    return f", among them {(' and ' if len(parts) < 3 else '; ').join(parts)}" if parts else ""


MAX_LISTED = 4
"""Most numbers of tasks or conditions that a sentence lists by name."""

SHOWN = ("rises", "falls", "crosses", "a ahead throughout", "b ahead throughout")
"""Verdicts on two conditions that favour one of them."""


def _of_comparison(found: Findings) -> Iterator[str]:
    """Sentences on the generalist against its specialists: the significant comparison at the most tasks, or that there is none."""
    asked = found.of("generalist against its best") + found.of("generalist against its budget")
    several = any(one.skill == ALL for one in asked)
    asked = [one for one in asked if (one.skill == ALL) == several]
    for significance in ("primary", "significant"):
        for one in reversed(asked):
            if one.significance == significance and one.verdict in SHOWN:
                yield one.sentence
    if any(one.p is not None for one in asked):
        yield "no difference between generalist and specialists is significant"
    elif any(one.verdict != "missing" for one in asked):
        few = times(found.study.axes.replicates, "replicate")
        yield f"{few} cannot show a difference between generalist and specialists"


def listed(names: list[str]) -> str:
    """a, b and c. Names that hold a comma and a space stand in quotes."""
    names = [f"'{name}'" if any(", " in one for one in names) else name for name in names]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def badge(found: Findings) -> tuple[str, str]:
    """(verdict, claim in words) of the primary claim; ("exploratory", a remark) if the study declares none."""
    if found.primary is None:
        return "exploratory", "no claim was declared before the run"
    return found.primary.verdict, found.primary.claimed


def more(found: Findings) -> list[str]:
    """At most MAX_MORE further sentences, the most important first."""
    answered = sentence(found)
    further = dict.fromkeys(capitalised(one) for one in _further(found))
    return [f"{one}." for one in further if not answered.startswith(one)][:MAX_MORE]


def _further(found: Findings) -> Iterator[str]:
    """Further sentences without their full stop."""
    n = {status: sum(r["status"] == status for r in found.runs) for status in ("open", "diverged", "failed")}
    if 0 < n["open"] < len(found.runs):
        has = "has" if n["open"] == 1 else "have"
        yield f"{n['open']:,} of {times(len(found.runs), 'trial')} {has} not ended{_missing_words(found)}"
    if n["diverged"]:
        yield f"{times(n['diverged'], 'trial')} diverged: try a lower learning rate"
    if n["failed"]:
        yield f"{times(n['failed'], 'trial')} failed"
    if named := Counter(run["outcome"] for run in found.runs if run.get("outcome")):
        of = sum(run["status"] == "done" and run["sampling_flops_share"] is not None for run in found.runs)
        yield f"named outcomes of {times(of, 'trial')} with a reward: {', '.join(f'{k} {name}' for name, k in named.most_common())}"
    if all(r["status"] != "done" for r in found.runs):
        return
    if found.study.axes.replicates < 2:
        yield "one replicate gives no interval and no test"
    if along.spans(found.study):
        yield from (one.sentence for one in _along(found) if one.verdict != "missing")
        return
    conditions = _conditions(found)
    for condition in conditions[:2]:
        if (memory := _top(found, "K_M", condition)).verdict != "missing":
            yield memory.sentence
    for question in ("drift of K_A", "drift of K_M", "dip along compute_flops"):
        yield from (one.sentence for one in found.of(question) if one.significance == "significant")
    if len(conditions) > 1 and any(_is_measured(found, condition) for condition in conditions):
        for condition in conditions[:3]:
            yield _top(found, "K_A", condition, found.study.shown_skills[0]).sentence
    yield from (one.sentence for one in found.of("speed") if one.verdict == "measured")
