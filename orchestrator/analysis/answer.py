"""The answer of a study: one sentence, a badge for the primary claim, and at most four more short sentences.

The report, the terminal and MLflow print these.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.boundaries import edge, place_words
from orchestrator.analysis.finding import Finding, count, in_condition
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.generalists import ALL
from orchestrator.formatting import number, times

MAX_WORDS = 25
"""Words of the sentence."""
MAX_MORE = 4
"""Further sentences."""


def sentence(found: Findings) -> str:
    """The answer in one sentence of at most MAX_WORDS words."""
    if not any(r["status"] in ("done", "diverged") for r in found.runs):
        waits = not found.runs or any(r["status"] == "open" for r in found.runs)
        return "Nothing can be said yet: no trial has ended." if waits else "Every trial failed: nothing can be said."
    for candidate in _candidates(found):
        if len(candidate.split()) <= MAX_WORDS:
            return f"{candidate[0].upper()}{candidate[1:]}."
    raise AssertionError("the last candidate is short")


def _candidates(found: Findings) -> Iterator[str]:
    """Sentences without their full stop, the best first; the last one is short."""
    if found.of("generalist "):
        yield from _of_comparison(found)
    if len(_conditions(found)) > 1:
        yield from _of_conditions(found)
    yield from _of_one(found, _conditions(found)[0])


def _conditions(found: Findings) -> list[str]:
    """The conditions that ask different questions; those that differ in placement alone count once."""
    return [alike[0] for alike in found.study.same_question()]


def _top(found: Findings, question: str, condition: str, skill: str = "") -> Finding:
    """K_A or K_M at the largest budget that was reached."""
    known = found.of(question, condition, skill)
    defined = [one for one in known if one.verdict != "missing"]
    return (defined or known)[-1]


def _of_one(found: Findings, condition: str) -> Iterator[str]:
    """Where the skill of one condition appears, in tasks and in compute."""
    skill = found.study.shown_skills[0]
    k = _top(found, "K_A", condition, skill)
    what, flops = f"{skill}{in_condition(found.results, condition)}", number(k.compute_flops or 0.0)
    n = times(k.n, "replicate")
    if k.verdict == "missing":
        yield f"{what} could not be measured in any cell"
    elif k.verdict == "beyond":
        yield f"{what} appears nowhere, up to {number(edge(k))} tasks and {flops} FLOPs, in {n}"
        yield f"{skill} appears nowhere"
    elif k.verdict == "undecided":
        has = sum(b.high is not None for b in k.brackets)
        yield f"{what} appears in {has} of {n} only, up to {number(k.reach[1] if k.reach else 0)} tasks at {flops} FLOPs"
        yield f"{skill} appears in {has} of {n} only"
    else:
        sure = f" ({n}, 95 % intervals)" if k.n > 1 else " (one replicate)"
        onset = _onset(found, condition, skill)
        many = place_words(k)
        if onset is not None and onset.has_interval and onset.verdict == "crossed":
            yield f"{what} {many} at {flops} FLOPs, and needs {_needs(onset)} FLOPs at {number(onset.n_tasks or 0)} tasks{sure}"
        yield f"{what} {many} at {flops} FLOPs{sure}"
        yield f"{skill} {many}"


def _onset(found: Findings, condition: str, skill: str) -> Finding | None:
    """Compute to skill at the largest number of tasks."""
    known = [one for one in found.of("compute to skill", condition, skill) if one.verdict != "missing"]
    return known[-1] if known else None


def _needs(onset: Finding) -> str:
    low, high = onset.ends
    if low is None or high is None:
        return f"at most {number(high)}" if high is not None else f"more than {number(low or 0.0)}"
    return f"{number(low)} to {number(high)}"


def _of_conditions(found: Findings) -> Iterator[str]:
    """Which condition needs fewer tasks, or is ahead, where that is shown; else that no difference is."""
    skill = found.study.shown_skills[0]
    asked = [*found.of("task multiplier"), *found.of("crossover"), *found.of("compute multiplier")]
    shown = [one for one in asked if one.significance in ("significant", "primary") and one.verdict in SHOWN]
    if found.primary is not None and found.primary.finding in shown:
        yield found.primary.finding.sentence
    for one in shown:
        yield one.sentence
    conditions = _conditions(found)
    there = [c for c in conditions if _top(found, "K_A", c, skill).verdict in ("crossed", "below")]
    nowhere = [c for c in conditions if _top(found, "K_A", c, skill).verdict == "beyond"]
    if there and nowhere:
        top = f"up to {number(found.results.levels[-1])} tasks and {number(found.study.budgets[-1])} FLOPs"
        yield f"{top} {skill} appears with {listed(there)}, and nowhere with {listed(nowhere)}"
        yield f"{skill} appears with {len(there)} of {len(conditions)} conditions"
    yield f"no difference between {listed(conditions)} is significant"
    yield f"no difference between {len(conditions)} conditions is significant"


SHOWN = ("rises", "falls", "crosses", "a ahead throughout", "b ahead throughout")
"""Verdicts on two conditions that favour one of them."""


def _of_comparison(found: Findings) -> Iterator[str]:
    """The generalist against its specialists, at the largest number of tasks."""
    asked = found.of("generalist against its best") + found.of("generalist against its budget")
    several = any(one.skill == ALL for one in asked)
    asked = [one for one in asked if (one.skill == ALL) == several]
    for significance in ("primary", "significant"):
        for one in reversed(asked):
            if one.significance == significance and one.verdict in SHOWN:
                yield one.sentence
    yield "no difference between generalist and specialists is significant"


def listed(names: list[str]) -> str:
    """a, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def badge(found: Findings) -> tuple[str, str]:
    """The verdict on the primary claim, and the claim; ("exploratory", "...") where none was declared."""
    if found.primary is None:
        return "exploratory", "no claim was declared before the run"
    return found.primary.verdict, found.primary.claimed


def more(found: Findings) -> list[str]:
    """At most MAX_MORE further sentences, the most important first."""
    if not any(r["status"] in ("done", "diverged") for r in found.runs):
        return []
    said = list(dict.fromkeys(f"{one[0].upper()}{one[1:]}." for one in _further(found)))
    return said[:MAX_MORE]


def _further(found: Findings) -> Iterator[str]:
    """Further sentences without their full stop."""
    ended = sum(r["status"] != "open" for r in found.runs)
    if ended < len(found.runs):
        yield f"so far {ended} of {times(len(found.runs), 'trial')} have ended"
    lost = {status: sum(r["status"] == status for r in found.runs) for status in ("diverged", "failed")}
    if lost["diverged"]:
        yield f"{times(lost['diverged'], 'trial')} diverged: try a lower learning rate"
    if found.study.axes.replicates < 2:
        yield "one replicate gives no interval and no test"
    conditions = _conditions(found)
    for condition in conditions[:2]:
        if (memory := _top(found, "K_M", condition)).verdict != "missing":
            yield memory.sentence
    for question in ("drift of K_A", "drift of K_M", "dip along compute_flops"):
        yield from (one.sentence for one in found.of(question) if one.significance == "significant")
    if len(conditions) > 1:
        for condition in conditions[:3]:
            yield _top(found, "K_A", condition, found.study.shown_skills[0]).sentence
    yield from (one.sentence for one in found.of("speed") if one.verdict == "measured")
    untested = count(found.findings, "untested")
    if untested and not count(found.findings, "significant"):
        yield f"{untested:,} questions could not be tested with {times(found.study.axes.replicates, 'replicate')}"
