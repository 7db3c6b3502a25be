"""What a study found, in sentences: the paragraph at the top of the report, on the terminal and in MLflow, from the numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis import arms, boundaries, primary
from orchestrator.analysis.arms import Overtaking, multiplier_words
from orchestrator.analysis.boundaries import (
    Boundaries,
    ability_words,
    dip_words,
    drift_words,
    interval_words,
    memory_words,
    seen_words,
)
from orchestrator.analysis.claims import claim_of, claim_of_arms, words_of_arm
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.generalists import Contest, claim_of_contest, contest_words
from orchestrator.analysis.results import surface
from orchestrator.analysis.speed import speed_sentence
from orchestrator.formatting import figure, number, range_words, sure, times
from trainers.tasks import Family

NOT_KEPT, NOT_TESTED = " (not kept after correction)", " (not tested: too few replicates)"


def paragraph(found: Findings) -> str:
    """One paragraph, written from the numbers: what the study says, or that it says nothing."""
    study = found.study
    ended = sum(r["status"] in ("done", "diverged") for r in found.runs)
    if not ended:
        waits = any(r["status"] not in ("diverged", "failed") for r in found.runs) or not found.runs
        return "Nothing can be said yet: no trial has ended." if waits else "Every trial failed: nothing can be said."
    missing = len(found.runs) - ended
    sentences = [f"So far, with {ended} of {times(len(found.runs), 'trial')} ended."] if missing else []
    sentences += [speed_sentence(one) for one in found.speeds if one.multiple is not None]
    lines = [alike[0] for alike in study.same_question()]  # the same on other workers comes to the same
    lines = lines if not found.contests else []  # else who wins is what was asked, and each line a paragraph
    memories = [_memory_sentences(found, arm) for arm in lines]
    nowhere = len(memories) > 1 and all(
        of_arm[:1] == [_no_memory(found, arm)] for arm, of_arm in zip(lines, memories, strict=True)
    )
    sentences += _scores(found, lines)
    for arm, of_arm in zip(lines, memories, strict=True):
        sentences += _ability_sentences(found, arm) + ([] if nowhere else of_arm)
    sentences += ["Memory is not defined here."] if nowhere else []
    sentences += _fewer_sentences(found) if not found.contests else []
    sentences += [_overtaking_sentence(found, o) for o in found.crossovers if o.result.verdict == "crosses"]
    sentences += _contest_sentences(found)
    if found.primary is not None:
        sentences.append(primary_sentence(found))
    sentences += _untested(found, lines)
    if study.axes.replicates < 2:
        sentences.append("One replicate: no interval can be given, and nothing of this can be tested.")
    diverged = sum(r["status"] == "diverged" for r in found.runs)
    if diverged:
        stay = f"{times(diverged, 'trial')} of {ended} diverged and stay in the count" if diverged < ended else ""
        sentences.append(f"{stay}{'; a' if stay else 'A'} lower learning rate is the first thing to try.")
    return " ".join(one[0].upper() + one[1:] for one in sentences)


SCORED_LINES = 5
"""Of more lines the scores would be a paragraph of their own; they stand in the tables."""


def _scores(found: Findings, lines: Sequence[str]) -> list[str]:
    """How often the headline skill is right at the largest budget, beside chance: with the most and the fewest training
    tasks that have ended, or of several lines with the most."""
    study, skill = found.study, found.study.shown_skills[0]
    chance, split = cast(Family, study.family).chance(skill), found.skill_split(skill)
    if chance is None or not 0 < len(lines) <= SCORED_LINES:
        return []
    scores = {
        (line, n, c): accuracy
        for line in lines
        for n in found.results.levels
        for c in study.budgets
        if (accuracy := found.mean("accuracy", line, skill, split, n, c)) is not None
    }
    if not scores:
        return []
    flops = max(c for _, _, c in scores)
    levels = sorted({n for _, n, c in scores if c == flops})
    shown = {n: [(line, scores[line, n, flops]) for line in lines if (line, n, flops) in scores] for n in levels}
    on = "unseen tasks" if split == "held_out" else "training tasks"
    top = shown[levels[-1]]
    said = f"At {number(flops)} FLOPs, trained on {number(levels[-1])} task{'s' if levels[-1] > 1 else ''}, {skill} on {on} is right in "
    if len(lines) > 1:
        said += f"this share of cases: {'; '.join(f'{line} {_share(accuracy)}' for line, accuracy in top)}"
    else:
        fewest = shown[levels[0]]
        said += f"{_share(top[0][1])} of cases"
        said += f", trained on {number(levels[0])} in {_share(fewest[0][1])}" if len(levels) > 1 else ""
    return [f"{said} (by chance {_share(chance)})."]


def _share(accuracy: float) -> str:
    """A share in per cent, never rounded up to all or down to nothing."""
    if 0.995 <= accuracy < 1:
        return f"{math.floor(1000 * accuracy) / 10:.1f} %"
    return f"{100 * accuracy:.2g} %" if 0 < accuracy < 0.005 else f"{100 * accuracy:.0f} %"


def _known(found: Findings, arm: str, boundaries: Boundaries) -> Boundaries:
    """The budgets to whose end a trial of the arm has come."""
    budgets = {r["compute_flops"] for r in found.runs if r["status"] in ("done", "diverged") and r["arm"] == arm}
    return [(c, b) for c, b in boundaries if c in budgets]


def _ended_levels(found: Findings, arm: str) -> list[float]:
    return sorted({float(r["n_tasks"]) for r in found.runs if r["status"] in ("done", "diverged") and r["arm"] == arm})


def confidence_words(found: Findings, boundary: stats.Boundary, claim: str) -> str:
    """The confidence of a boundary's interval in parentheses, where it has one."""
    return f" ({sure(found.confidence(claim))})" if boundary.verdict == "crossed" and len(boundary.brackets) > 1 else ""


def _nothing_to_tell(found: Findings, arm: str) -> str | None:
    """Why nothing can be said of an arm; None where something can."""
    statuses = [r["status"] for r in found.runs if r["arm"] == arm]
    if found.ended(arm):
        return None
    which = f"of arm {arm} " if words_of_arm(found.results, arm) else ""
    if statuses and all(status in ("diverged", "failed") for status in statuses):
        how = (
            "diverged"
            if set(statuses) == {"diverged"}
            else "failed"
            if set(statuses) == {"failed"}
            else "diverged or failed"
        )
        return f"Every trial {which}{how}: nothing can be said of {found.study.shown_skills[0]}{words_of_arm(found.results, arm)}."
    return f"No trial {which}has come to the end of a budget with a result."


def _ability_sentences(found: Findings, arm: str) -> list[str]:
    """Where the headline skill appears at the largest budget, below which budget nowhere, and how that moves."""
    skill = found.study.shown_skills[0]
    what, levels = f"{skill}{words_of_arm(found.results, arm)}", _ended_levels(found, arm)
    known = _known(found, arm, found.k_ability[(arm, skill)])
    abilities = surface(found.results, "ability", arm, skill)
    if nothing := _nothing_to_tell(found, arm):
        return [nothing]
    if not known or np.isnan(abilities).all():
        return [f"{what}: ability is not defined at any cell (references coincide or are missing)."]
    top_flops, top = known[-1]
    highest = float(np.nanmax(abilities))
    if all(b.verdict in ("beyond", "missing") for _, b in known):
        if highest >= stats.HALF:  # seen in cells that some replicates have yet to reach
            return [_not_yet(found, what, abilities)]
        upto = max(b.last for _, b in known if b.last is not None)
        return [
            f"{what} appears nowhere: at no number of tasks up to {number(upto)} and no budget up to "
            f"{number(top_flops)} FLOPs does a replicate reach half of the general rule; the highest ability of any "
            f"trial is {figure(round(highest, 2))}{_doubt_of(found, claim_of('k', 'ability', arm, skill, top_flops), top)}."
        ]
    if len(levels) == 1:
        memory = dict(found.k_memory[arm]).get(top_flops)
        there, n = _of_one(top)
        said = f"One number of tasks was tried, {number(levels[0])}, which tells no boundary: at {number(top_flops)} FLOPs {what} is there"
        said += f" in {there} of {times(n, 'replicate')}"
        if memory is not None and memory.verdict != "missing":
            forgotten, n = _of_one(memory)
            said += f", and the tasks are memorised in {n - forgotten} of {n}"
        return [said + "."]
    named = claim_of("k", "ability", arm, skill, top_flops)
    said = f"{what} {_bounded(top, ability_words(top, levels), 'appears', levels, top_flops, found.confidence(named))}"
    nowhere = list(itertools.takewhile(lambda one: one[1].verdict == "beyond", known))
    if nowhere and not (abilities[:, : len(nowhere)] >= stats.HALF).any():
        upto = min(b.last for _, b in nowhere if b.last is not None)
        said += f", and nowhere up to {number(upto)} tasks at {number(nowhere[-1][0])} FLOPs"
        said += " or less" if len(nowhere) > 1 else ""
    sentences = [f"{said}{_doubt_of(found, named, top)}."]
    lost = [d for d in found.dips if (d.arm, d.skill, d.axis) == (arm, skill, "compute_flops") and d.is_shown]
    if lost:
        deepest = min(lost, key=lambda dip: cast(float, dip.test.change))
        sentences.append(
            f"With {number(deepest.fixed)} tasks more compute takes some of {what} away: ability {dip_words(deepest)}."
        )
    moved = found.drift_ability.get((arm, skill))
    if moved is not None and moved.verdict in ("rises", "falls"):
        plainly = "fewer" if moved.verdict == "falls" else "more"
        of = claim_of("drift", "ability", arm, skill)
        sentences.append(_moves(found, of, f"the more compute, the {plainly} tasks it takes", drift_words(moved, "A")))
    return sentences


def _not_yet(found: Findings, what: str, abilities: np.ndarray) -> str:
    """Of a skill that some trials have, at levels that other replicates have yet to come to: abilities (n_tasks, compute, R)."""
    n, c, _ = np.unravel_index(np.nanargmax(abilities), abilities.shape)
    cell, highest = abilities[n, c], figure(round(float(np.nanmax(abilities)), 2))
    ended, n_tasks = int((~np.isnan(cell)).sum()), number(found.results.levels[n])
    return (
        f"From how many tasks on {what} appears cannot be told yet: {int((cell >= stats.HALF).sum())} of the {times(ended, 'replicate')} "
        f"that {'has' if ended == 1 else 'have'} ended at {n_tasks} tasks and {number(found.results.budgets[c])} FLOPs {'has' if ended == 1 else 'have'} it "
        f"(the highest ability is {highest}), and the others have yet to end."
    )


def _of_one(boundary: stats.Boundary) -> tuple[int, int]:
    """What one number of tasks tells: how many replicates are across, of how many."""
    return sum(b.low is None and b.high is not None for b in boundary.brackets), len(boundary.brackets)


def _bounded(
    found: stats.Boundary, words: str, verb: str, levels: Sequence[float], flops: float, confidence: float
) -> str:
    """What a boundary says at a budget: where the replicates were seen to cross, and the interval for the median one."""
    at, seen = f"at {number(flops)} FLOPs", seen_words(found)
    if not seen or len(found.brackets) < 2:
        one_end = found.verdict == "crossed" and len(found.brackets) > 1
        return f"{words} {at}{f' ({sure(confidence)} interval)' if one_end else ''}"
    n = len(found.brackets)
    those = "both" if n == 2 else f"all {n}"
    interval = f"{sure(confidence)} interval for the median one: {interval_words(found, levels)}"
    return f"{verb} {seen} in {those} replicates {at} ({interval})"


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
    stands = {verdicts.get(name, "kept") for name in names}
    return NOT_KEPT if "not kept" in stands else NOT_TESTED if "untested" in stands else ""


def _doubt_of(found: Findings, claim: str, boundary: stats.Boundary) -> str:
    """The same of a boundary that says something; one replicate is doubted once, at the end."""
    doubt = _doubt(found, claim) if _says(boundary) else ""
    return "" if doubt == NOT_TESTED else doubt  # said once, at the end


def _says(boundary: stats.Boundary) -> bool:
    """Does a boundary's verdict say something of several replicates?"""
    return boundary.is_told and len(boundary.brackets) > 1


def _untested(found: Findings, lines: Sequence[str]) -> list[str]:
    """That where skills appear and memory ends is told of too few replicates to be tested, where it is."""
    skill = found.study.shown_skills[0]
    told = [(claim_of("k", "ability", a, skill, c), b) for a in lines for c, b in found.k_ability[(a, skill)]]
    told += [(claim_of("k", "memory", a, "", c), b) for a in lines for c, b in found.k_memory[a]]
    if len(found.results.levels) < 2 or not any(_says(b) and _doubt(found, name) == NOT_TESTED for name, b in told):
        return []
    both = "where the skill appears" + (
        " and where memory ends" if any(_says(b) for name, b in told if name.startswith("k_memory")) else ""
    )
    return [
        f"So few replicates can agree by chance: {both} is not tested, for which {boundaries.LEAST_TESTED} are the least."
    ]


def _no_memory(found: Findings, arm: str) -> str:
    return f"Memory is not defined here{words_of_arm(found.results, arm)}."


def _memory_sentences(found: Findings, arm: str) -> list[str]:
    levels, known = _ended_levels(found, arm), _known(found, arm, found.k_memory[arm])
    if _nothing_to_tell(found, arm):
        return []
    if all(b.verdict == "missing" for _, b in known):
        return [_no_memory(found, arm)]
    if len(levels) == 1:
        return []  # said with the skill: one number of tasks tells no boundary
    if all(b.verdict in ("below", "missing") for _, b in known):
        top_flops, top = next((c, b) for c, b in reversed(known) if b.verdict == "below")
        doubt = _doubt_of(found, claim_of("k", "memory", arm, "", top_flops), top)
        return [
            f"Training tasks are memorised nowhere, not even {number(levels[0])} of them{words_of_arm(found.results, arm)}{doubt}."
        ]
    defined = [(c, b) for c, b in known if b.verdict != "missing"]
    flops, top = defined[-1]
    named = claim_of("k", "memory", arm, "", flops)
    sure_of = found.confidence(named)
    which = f"Memory of the training tasks{words_of_arm(found.results, arm)}"
    said = f"{which} {_bounded(top, memory_words(top, levels), 'ends', levels, flops, sure_of)}"
    first_flops, first = next(((c, b) for c, b in defined if b.verdict != "below"), defined[-1])
    if first_flops != flops and memory_words(first, levels) != memory_words(top, levels):
        seen = seen_words(first)
        said += f"; at {number(first_flops)} it {f'ends {seen}' if seen else memory_words(first, levels)}"
    sentences = [f"{said}{_doubt_of(found, named, top)}."]
    moved = found.drift_memory.get(arm)
    if moved is not None and moved.verdict in ("rises", "falls"):
        plainly = "more" if moved.verdict == "rises" else "fewer"
        of = claim_of("drift", "memory", arm, "")
        sentences.append(
            _moves(found, of, f"the more compute, the {plainly} tasks are memorised", drift_words(moved, "M"))
        )
    return sentences


def _fewer_sentences(found: Findings) -> list[str]:
    """Which arms need fewer tasks at the largest budget, replicate by replicate; else that none is shown to.

    And by how much more compute an arm needs than another, at the largest number of tasks at which that is shown.
    """
    skill, top = found.study.shown_skills[0], found.study.budgets[-1]
    pairs = [one for one in arms.fewer_tasks(found.results, skill, found.confidence) if _can_be_compared(found, one)]
    fewer: dict[str, list[str]] = {}
    doubts: dict[tuple[str, str], str] = {}
    for one in pairs:
        if one.shown and one.shift is not None:
            less, more = (one.first, one.second) if one.shift.verdict == "rises" else (one.second, one.first)
            fewer.setdefault(less, []).append(more)
            doubts[(less, more)] = _doubt(found, one.name)
    alike: dict[tuple[str, ...], list[str]] = {}
    for less, those in fewer.items():
        alike.setdefault(tuple(those), []).append(less)
    at, said = f"at {number(top)} FLOPs", []
    for many, these in alike.items():
        those = list(many)
        doubt = next(filter(None, (doubts[(less, more)] for less in these for more in those)), "")
        need = "needs" if len(these) == 1 else "need"
        said.append(f"{listed(these)} {need} fewer tasks than {listed(those)} {at}, replicate by replicate{doubt}.")
    if pairs and not said:
        said.append(f"Which arm needs fewer tasks is not shown {at}.")
    shown = {(m.first, m.second): m for m in found.multipliers if m.ratio.verdict in ("rises", "falls")}
    by_level: dict[int, list[str]] = {}
    for m in shown.values():
        doubt = _doubt(found, claim_of_arms(m.first, m.second, skill, m.n_tasks, "multiplier"))
        by_level.setdefault(m.n_tasks, []).append(multiplier_words(m) + doubt)
    return said + [
        f"Until {skill} is there to stay, {'; '.join(many)} at {number(n)} tasks." for n, many in by_level.items()
    ]


def _can_be_compared(found: Findings, pair: arms.Fewer) -> bool:
    """Are both measured in two replicates or more, and not both beyond, or below, all that was tried?"""
    skill = found.study.shown_skills[0]
    first, second = (found.k_ability[(line, skill)][-1][1] for line in (pair.first, pair.second))
    if "missing" in (first.verdict, second.verdict) or first.verdict == second.verdict != "crossed":
        return False
    return min(len(first.brackets), len(second.brackets)) > 1


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _overtaking_sentence(found: Findings, o: Overtaking) -> str:
    where = range_words(o.result.low, o.result.high)
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
    return primary.sentences(found.study, found.primary)
