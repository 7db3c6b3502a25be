"""What a study found, in sentences: the paragraph at the top of the report, on the terminal and in MLflow, from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from orchestrator import analyses, claims, primary_verdict, stats
from orchestrator.analyses import Boundaries, Overtaking, claim_of, claim_of_arms
from orchestrator.generalists import Contest, claim_of_contest
from orchestrator.words import (
    ability_words,
    contest_words,
    drift_words,
    figure,
    memory_words,
    multiplier_words,
    number,
    sure,
    times,
)

if TYPE_CHECKING:
    from orchestrator.findings import Findings, Verdict
    from orchestrator.speed import Speed


def verdict_line(verdict: Verdict) -> str:
    """An expected value beside the measured one, in a line."""
    expected, measured = verdict.expected, verdict.measured
    where = f" at {number(expected.cell.n_tasks)} tasks"
    said = "not measured"
    if measured is not None:
        said = f"measured {figure(measured.mean)}"
        if measured.low is not None and measured.high is not None:
            ends = f"{figure(measured.low)} to {figure(measured.high)}"
            said += f" (95 % interval {ends}, {times(measured.n, 'replicate')})"
    elif verdict.values:
        reached = len(verdict.values)
        said = f"seen in {reached} of {reached + verdict.censored} replicates only"
    agreed = f"{figure(expected.lo)} to {figure(expected.hi)}"
    claim = f"expected {figure(expected.value)} ({agreed}, {expected.source})"
    return f"{expected.what.replace('_', ' ')}{where}: {said}; {claim}: {verdict.verdict}"


NOT_KEPT = " (not kept after correction)"
ENOUGH = 6
"""From so many replicates on, 95 % intervals of boundaries are order statistics (stats/boundaries.py)."""


def paragraph(found: Findings) -> str:
    """One paragraph, written from the numbers: what the study says, or that it says nothing."""
    study = found.study
    ended = sum(r["status"] in ("done", "diverged") for r in found.runs)
    if not ended:
        return "Nothing can be said yet: no trial has ended."
    missing = len(found.runs) - ended
    sentences = [f"So far, with {ended} of {times(len(found.runs), 'trial')} ended."] if missing else []
    sentences += [speed_sentence(one) for one in found.speeds if one.multiple is not None]
    lines = [alike[0] for alike in study.same_question()]  # the same on other workers comes to the same
    lines = lines if not found.contests else []  # else who wins is what was asked, and each line a paragraph
    memories = [_memory_sentences(found, arm) for arm in lines]
    nowhere = len(memories) > 1 and all(
        of_arm[:1] == [_no_memory(found, arm)] for arm, of_arm in zip(lines, memories, strict=True)
    )
    for arm, of_arm in zip(lines, memories, strict=True):
        sentences += _ability_sentences(found, arm) + ([] if nowhere else of_arm)
    sentences += ["Memory is not defined here."] if nowhere else []
    sentences += _fewer_sentences(found) if not found.contests else []
    sentences += [_overtaking_sentence(found, o) for o in found.crossovers if o.result.verdict == "crosses"]
    sentences += _contest_sentences(found)
    if found.primary is not None:
        sentences.append(primary_sentence(found))
    shown = {claims.name_of(found.results, study.primary)} | {c.name for c in found.claims if c.verdict == "kept"}
    headline = {
        claim_of("k", "ability", arm, study.shown_skills[0], c) for arm in study.lines for c in study.budgets[-1:]
    }
    defined = any(b.verdict != "missing" for a in study.lines for _, b in found.k_ability[(a, study.shown_skills[0])])
    if study.axes.replicates > 1 and defined and not headline <= shown and not found.contests:
        few = f": {study.axes.replicates} replicates can agree by chance" if study.axes.replicates < ENOUGH else ""
        sentences.append(f"Where the skill appears is not kept after correction for all that was looked at{few}.")
    if study.axes.replicates < 2:
        sentences.append("One replicate: no interval can be given, and nothing of this can be tested.")
    diverged = sum(r["status"] == "diverged" for r in found.runs)
    if diverged:
        sentences.append(f"{times(diverged, 'trial')} of {ended} diverged and stay in the count.")
    return " ".join(one[0].upper() + one[1:] for one in sentences)


def speed_sentence(speed: Speed) -> str:
    """2 workers train 1.8 times as fast as 1 ..."""
    assert speed.multiple is not None
    mean, low, high, n = speed.multiple
    sure = f" (95 % interval {figure(low)} to {figure(high)}, {times(n, 'pair')} of runs)" if low is not None else ""
    return (
        f"{times(speed.workers, 'worker')} train {figure(mean)} times as fast as {speed.beside_workers}{sure}: "
        f"a year's work of {speed.beside_workers} is done by {speed.workers} in {figure(12 / mean)} months."
    )


def _known(found: Findings, arm: str, boundaries: Boundaries) -> Boundaries:
    """The budgets to whose end a trial of the arm has come."""
    budgets = {r["compute_flops"] for r in found.runs if r["status"] in ("done", "diverged") and r["arm"] == arm}
    return [(c, b) for c, b in boundaries if c in budgets]


def _ended_levels(found: Findings, arm: str) -> list[float]:
    return sorted({float(r["n_tasks"]) for r in found.runs if r["status"] in ("done", "diverged") and r["arm"] == arm})


def of_line(found: Findings, arm: str) -> str:
    return f" ({arm})" if len(found.study.lines) > 1 else ""


def _at(found: Findings, claim: str, boundary: stats.Boundary) -> str:
    """What kind of interval a boundary's ends are, in brackets; nothing where they are none."""
    n = len(boundary.brackets)
    if boundary.verdict != "crossed" or n < 2:
        return ""
    return f" ({sure(found.confidence(claim))} interval, {times(n, 'replicate')})"


def confidence_words(found: Findings, boundary: stats.Boundary, claim: str) -> str:
    return f" ({sure(found.confidence(claim))})" if boundary.verdict == "crossed" and len(boundary.brackets) > 1 else ""


def _nothing_to_tell(found: Findings, arm: str) -> str | None:
    """Why nothing can be said of an arm; None where something can."""
    statuses = [r["status"] for r in found.runs if r["arm"] == arm]
    if found.ended(arm):
        return None
    which = f"of arm {arm} " if of_line(found, arm) else ""
    if statuses and all(status in ("diverged", "failed") for status in statuses):
        how = (
            "diverged"
            if set(statuses) == {"diverged"}
            else "failed"
            if set(statuses) == {"failed"}
            else "diverged or failed"
        )
        return f"Every trial {which}{how}: nothing can be said of {found.study.shown_skills[0]}{of_line(found, arm)}."
    return f"No trial {which}has come to the end of a budget with a result."


def _ability_sentences(found: Findings, arm: str) -> list[str]:
    """Where the headline skill appears at the largest budget, below which budget nowhere, and how that moves."""
    skill = found.study.shown_skills[0]
    what, levels = f"{skill}{of_line(found, arm)}", _ended_levels(found, arm)
    known = _known(found, arm, found.k_ability[(arm, skill)])
    abilities = analyses.surface(found.results, "ability", arm, skill)
    if nothing := _nothing_to_tell(found, arm):
        return [nothing]
    if not known or np.isnan(abilities).all():
        return [f"{what}: ability is not defined at any cell (references coincide or are missing)."]
    top_flops, top = known[-1]
    if all(b.verdict in ("beyond", "missing") for _, b in known):
        best = f"; the highest ability of any trial is {figure(round(float(np.nanmax(abilities)), 2))}"
        return [
            f"{what} appears nowhere: at no number of tasks up to {number(levels[-1])} and no budget up to "
            f"{number(top_flops)} FLOPs does a replicate reach half of the general rule{best}."
        ]
    at = _at(found, claim_of("k", "ability", arm, skill, top_flops), top)
    said = f"{what} {ability_words(top, levels)} at {number(top_flops)} FLOPs{at}"
    never = [c for c, b in known if b.verdict == "beyond"]
    if never and known[0][1].verdict == "beyond":
        said += f", and nowhere up to {number(levels[-1])} tasks at {number(max(never))} FLOPs"
        said += " or less" if len(never) > 1 else ""
    sentences = [said + "."]
    moved = found.drift_ability.get((arm, skill))
    if moved is not None and moved.verdict in ("rises", "falls"):
        plainly = "fewer" if moved.verdict == "falls" else "more"
        of = claim_of("drift", "ability", arm, skill)
        sentences.append(_moves(found, of, f"the more compute, the {plainly} tasks it takes", drift_words(moved, "A")))
    return sentences


def _moves(found: Findings, claim: str, plainly: str, measured: str) -> str:
    """How a boundary moves with compute, as sure as it is: plainly where the claim is kept or was declared, else with a doubt."""
    if not _doubt(found, claim):
        return f"{plainly}: {measured}."
    n_tested = sum(c.verdict != "untested" for c in found.claims)
    return (
        f"It looks as if {plainly} ({measured}), but that is not kept after correction for {times(n_tested, 'claim')}."
    )


def _doubt(found: Findings, *names: str) -> str:
    """To follow a sentence that rests on these claims: nothing where each is kept, or is the primary one."""
    verdicts = {c.name: c.verdict for c in found.claims}
    kept = all(verdicts.get(name, "kept") == "kept" for name in names)
    return "" if kept else NOT_KEPT


def _no_memory(found: Findings, arm: str) -> str:
    return f"Memory is not defined here{of_line(found, arm)}."


def _memory_sentences(found: Findings, arm: str) -> list[str]:
    levels, known = _ended_levels(found, arm), _known(found, arm, found.k_memory[arm])
    if _nothing_to_tell(found, arm):
        return []
    if all(b.verdict == "missing" for _, b in known):
        return [_no_memory(found, arm)]
    if all(b.verdict in ("below", "missing") for _, b in known):
        return [f"Training tasks are memorised nowhere, not even {number(levels[0])} of them{of_line(found, arm)}."]
    defined = [(c, b) for c, b in known if b.verdict != "missing"]
    flops, top = defined[-1]
    at = _at(found, claim_of("k", "memory", arm, "", flops), top)
    said = f"Memory of the training tasks{of_line(found, arm)} {memory_words(top, levels)} at {number(flops)} FLOPs{at}"
    first_flops, first = next(((c, b) for c, b in defined if b.verdict != "below"), defined[-1])
    if first_flops != flops and memory_words(first, levels) != memory_words(top, levels):
        said += f"; at {number(first_flops)} it {memory_words(first, levels)}"
    sentences = [said + "."]
    moved = found.drift_memory.get(arm)
    if moved is not None and moved.verdict in ("rises", "falls"):
        plainly = "more" if moved.verdict == "rises" else "fewer"
        of = claim_of("drift", "memory", arm, "")
        sentences.append(
            _moves(found, of, f"the more compute, the {plainly} tasks are memorised", drift_words(moved, "M"))
        )
    return sentences


def _fewer_sentences(found: Findings) -> list[str]:
    """Which arms need fewer tasks at the largest budget, where their intervals do not touch; else that none is shown to.

    And by how much more compute an arm needs than another, at the largest number of tasks at which that is shown.
    """
    skill, top, overlap = found.study.shown_skills[0], found.study.budgets[-1], 0
    fewer: dict[str, list[str]] = {}
    unsure: set[str] = set()
    at = f"at {number(top)} FLOPs"
    for a, b in found.study.comparable:
        first, second = found.k_ability[(a, skill)][-1][1], found.k_ability[(b, skill)][-1][1]
        if {first.verdict, second.verdict} & {"missing"} or first.verdict == second.verdict != "crossed":
            continue  # nothing to compare, or both beyond (or below) all that was tried
        if min(len(first.brackets), len(second.brackets)) < 2:
            continue
        for less, more, low, high in ((a, b, first, second), (b, a, second, first)):
            if low.high is not None and high.low is not None and low.high <= high.low:
                fewer.setdefault(less, []).append(more)
                unsure |= {line for line in (a, b) if _doubt(found, claim_of("k", "ability", line, skill, top))}
                break
        else:
            overlap += 1
    alike: dict[tuple[str, ...], list[str]] = {}
    for less, those in fewer.items():
        alike.setdefault(tuple(those), []).append(less)
    said = [
        f"{listed(these)} {'needs' if len(these) == 1 else 'need'} fewer tasks than {listed(those)} {at}: their intervals do not touch"
        f"{NOT_KEPT if unsure & {*these, *those} else ''}."
        for those, these in alike.items()
    ]
    if overlap and not said:
        said.append(f"Which arm needs fewer tasks is not shown {at}: their intervals overlap.")
    shown = {(m.first, m.second): m for m in found.multipliers if m.ratio.verdict in ("rises", "falls")}
    by_level: dict[int, list[str]] = {}
    for m in shown.values():
        doubt = _doubt(found, claim_of_arms(m.first, m.second, skill, m.n_tasks, "multiplier"))
        by_level.setdefault(m.n_tasks, []).append(multiplier_words(m) + doubt)
    return said + [
        f"Until {skill} is there to stay, {'; '.join(many)} at {number(n)} tasks." for n, many in by_level.items()
    ]


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _overtaking_sentence(found: Findings, o: Overtaking) -> str:
    where = claims.range_words(o.result.low, o.result.high)
    doubt = _doubt(found, claim_of_arms(o.first, o.second, found.study.shown_skills[0], o.n_tasks))
    return f"With {number(o.n_tasks)} tasks {o.second} overtakes {o.first} at {where} FLOPs{doubt}."


def _contest_sentences(found: Findings) -> list[str]:
    """Each generalist against its specialists together (or the one that it has), number of tasks by number of tasks: as they
    were when they had learned half of their domain, and at their best."""
    several = {c.generalist for c in found.contests if c.pooled}
    shown = [c for c in found.contests if c.pooled or c.generalist not in several]
    said = []
    for place in dict.fromkeys((c.generalist, c.n_tasks) for c in shown):
        here = [c for c in shown if (c.generalist, c.n_tasks) == place]
        taught = [c for c in here if c.against == "its budget" and (c.rival or 0.0) >= stats.HALF]
        said += [*taught[:1], *(c for c in here if c.against == "its best")]
    return [
        f"With {number(c.n_tasks)} tasks of a domain {contest_words(c, found.study.budgets, True)}{_contest_doubt(found, c)}."
        for c in said
    ]


def _contest_doubt(found: Findings, c: Contest) -> str:
    """Where a winner is named, whether that is kept."""
    if c.result.verdict not in ("crosses", "a ahead throughout", "b ahead throughout"):
        return ""
    return _doubt(found, claim_of_contest(c.generalist, c.domain, c.n_tasks, c.against, c.specialist_flops))


def primary_sentence(found: Findings) -> str:
    """The primary claim, what was found, whether they agree, and what is wanting if that is open."""
    assert found.primary is not None
    return primary_verdict.sentences(found.study, found.primary)
