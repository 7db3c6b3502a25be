"""A comparison in sentences: what is different, how sure that is, what it hangs on, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis.compare import OVERALL_SHARE, CellDifference, Comparison, Overtaking
from orchestrator.formatting import number, percent, range_words, signed, sure, times
from orchestrator.stats import differences
from orchestrator.stats.boundaries import MIN_TESTED
from orchestrator.stats.intervals import by_chance


def left_out(found: Comparison) -> list[str]:
    """What only one of them has, what its axes no longer hold, and what has not ended; sentences."""
    sentences = []
    for side, (mine, other) in enumerate(((found.a, found.b), (found.b, found.a))):
        own = mine.study
        arms = [arm for arm in own.lines if arm not in {pair[side] for pair in found.arms}]
        skills = [skill for skill in own.shown_skills if skill not in found.skills]
        levels = [number(n) for n in mine.results.levels if n not in other.results.levels]
        budgets = [number(c) for c in mine.results.budgets if c not in other.results.budgets]
        more = own.axes.replicates - other.study.axes.replicates if found.paired else 0
        parts = [f"{'arm' if len(arms) == 1 else 'arms'} {_and(arms)}"] if arms else []
        parts += [f"{'skill' if len(skills) == 1 else 'skills'} {_and(skills)}"] if skills else []
        parts += [f"{_and(levels)} {'task' if levels == ['1'] else 'tasks'}"] if levels else []
        parts += [f"{_and(budgets)} FLOPs"] if budgets else []
        parts += [times(more, "more replicate")] if more > 0 else []
        if parts:
            sentences.append(f"Only {own.id} has {'; '.join(parts)}: left out of all differences.")
        if found.outside[side]:
            lie, are = ("lies", "is") if found.outside[side] == 1 else ("lie", "are")
            recorded = f"{times(found.outside[side], 'recorded trial')} of {own.id}"
            sentences.append(f"{recorded} {lie} outside the axes of its study file as it is now, and {are} left out.")
        waiting = sum(run["status"] == "open" for run in mine.runs)
        if waiting:
            have = "has" if waiting == 1 else "have"
            sentences.append(f"{waiting:,} of {times(len(mine.runs), 'trial')} of {own.id} {have} not ended.")
    return list(dict.fromkeys(sentences))


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def replicates_words(found: Comparison, difference: differences.Difference) -> str:
    """How many replicates a difference is of."""
    if found.paired:
        return f"{times(difference.n_a, 'pair')} of replicates"
    b, a = difference.n_a, difference.n_b
    return f"{times(a, 'replicate')} each" if a == b else f"{a} and {b} replicates"


def answer(found: Comparison) -> list[str]:
    """What is different and how sure that is; the first sentence says it to somebody who reads nothing else."""
    sentences = [_first_sentence(found)]
    if found.kept or found.overall.shown:
        sentences.append(_counted_sentence(found))
    sentences += _boundary_sentences(found) + _crossing_sentences(found) + _doubt_sentences(found)
    if len(found.arms) == 1 and found.arms[0][0] != found.arms[0][1]:
        arms = found.arms[0]
        sentences.append(
            f"They share no arm: {arms[0]} of {found.a.study.id} is set against {arms[1]} of {found.b.study.id}."
        )
    if not found.paired:
        sentences.append(
            "Their families are set differently: replicates are not paired, and ability may be measured against other references."
        )
    if not found.settings:
        sentences.append("Their settings are the same.")
    return sentences


def _first_sentence(found: Comparison) -> str:
    a, b, skill, overall = found.a.study.id, found.b.study.id, found.skill, found.overall.difference
    if _agree(found):
        return f"{a} and {b} agree exactly: every value that both have is the same."
    if not found.tested and (overall is None or overall.p is None):
        return f"No difference between {a} and {b} can be tested: that takes two replicates on both sides."
    single = _tested_words(found)
    if overall is None or overall.p is None:
        whole = "whether they differ on the whole cannot be tested, as no cell has all replicates yet"
        if found.kept:
            return f"{b} differs from {a} in {found.kept:,} of {single}; {whole}."
        return f"{a} and {b} are not told apart in any of {single}; {whole}."
    n = found.overall.n_cells
    where = f"over the {n:,} cells that both have" if n > 1 else "in the one cell that both have"
    size, ends = difference_words(overall)
    if found.overall.shown:  # a word says which way
        size, ends = size[1:], " to ".join(sorted((end[1:] for end in ends.split(" to ")), key=float)) if ends else ""
    interval = f"{sure(1 - OVERALL_SHARE)} interval {ends}, " if ends else ""
    measured = f"({interval}{replicates_words(found, overall)})"
    if found.overall.shown:
        better, higher = ("better", "higher") if overall.mean > 0 else ("worse", "lower")
        scale = "its ability, on the scale from 0 (knows nothing) to 1 (has the exact rule),"
        mean = "on average " if n > 1 else ""
        return f"{b} is {better} at {skill} than {a}: {where}, {scale} is {mean}{size} {higher} {measured}."
    mean = "the average difference" if n > 1 else "the difference"
    whole = f"{where}, {mean} in ability at {skill} is {size} {measured}"
    if found.kept:
        but = f"is not shown to be better or worse at {skill} on the whole"
        return f"{b} differs from {a} in {found.kept:,} of {single}, but {but}: {whole}."
    if by_chance(overall.n_a, overall.n_b) > OVERALL_SHARE:
        few = min(overall.n_a, overall.n_b)
        return (
            f"{times(few, 'replicate')} cannot show a difference between {a} and {b}, however large it looks: {whole}."
        )
    return f"{a} and {b} are not told apart: {whole}, and none of {single} is more than noise."


def _agree(found: Comparison) -> bool:
    """Is every value that both have the same?"""
    compared = [cell.difference for cell in found.cells if cell.difference]
    return found.paired and bool(compared) and all(d.mean == 0 and "no spread" in d.doubts for d in compared)


def difference_words(difference: differences.Difference) -> tuple[str, str]:
    """A difference and its interval, empty if there is none, in as many decimals as it takes to see on which side of zero
    they lie and how far apart; two at least."""
    ends = [] if difference.low is None or difference.high is None else [difference.low, difference.high]
    if min(difference.n_a, difference.n_b) < MIN_TESTED:
        ends = []  # two have a spread, and Student's interval from it can be a hundred times as wide as what is measured
    for digits in (2, 3, 4):
        said = [signed(value, digits) for value in (difference.mean, *ends)]
        hidden = any(value and not float(one[1:]) for value, one in zip((difference.mean, *ends), said, strict=True))
        if not hidden and (not ends or said[1] != said[2]):
            break
    return said[0], " to ".join(said[1:])


def _counted_sentence(found: Comparison) -> str:
    """How much was looked at, how much is kept, and what that is."""
    if not found.kept:
        return f"None of {_tested_words(found)} is more than noise by itself."
    kept = [cell for cell in found.cells if cell.kept and cell.difference]
    parts = []
    for arms in found.arms:
        of_arm = f" ({arms[0]})" if len(found.arms) > 1 else ""
        for measure, skill in (("ability", found.skill), ("memory", "")):
            of = [cell for cell in kept if (cell.arms, cell.measure, cell.skill) == (arms, measure, skill)]
            up = sum(cell.difference.mean > 0 for cell in of if cell.difference)
            both = [("higher", up)] * (up > 0) + [("lower", len(of) - up)] * (up < len(of))
            said = " and ".join(
                f"{way} in {times(n, 'cell') if i == 0 else number(n)}" for i, (way, n) in enumerate(both)
            )
            name = f"ability at {skill}" if skill else "memory"
            parts += [f"{name}{of_arm} is {said}"] if said else []
    others = sum(cell.measure == "ability" and cell.skill != found.skill for cell in kept)
    parts += [f"other skills differ in {times(others, 'cell')}"] if others else []
    moved = sum(pair.kept for pair in found.boundaries)
    parts += [f"{_boundaries_words(moved)} moved"] if moved else []
    crossed = sum(one.kept for one in found.crossovers)
    parts += [f"one study overtakes the other at {times(crossed, 'number')} of tasks"] if crossed else []
    return (
        f"Of {_tested_words(found)}, {found.kept:,} {'is' if found.kept == 1 else 'are'} kept "
        f"after correction for their number, of which at most {percent(found.false_share)} are expected to be false: "
        f"{', '.join(parts)}."
    )


def _tested_words(found: Comparison) -> str:
    return f"{times(found.tested, 'single difference')} that {'was' if found.tested == 1 else 'were'} tested"


def _boundaries_words(n: int) -> str:
    return f"{n:,} {'boundary has' if n == 1 else 'boundaries have'}"


def shift_words(shift: stats.Drift) -> str:
    """How many times more or fewer tasks a boundary that moved lies at."""
    least, most = sorted(abs(end) if end is not None else math.inf for end in (shift.low, shift.high))
    way = "more" if shift.low is not None and shift.low >= 0 else "fewer"
    by = f"{2**least:.2g} to {2**most:.2g}" if math.isfinite(most) else f"at least {2**least:.2g}"
    return f"{by} times {way}"


def _boundary_sentences(found: Comparison) -> list[str]:
    """How far the boundaries of the headline and of memory moved, at the largest budget at which that is shown."""
    sentences = []
    for arms in found.arms:
        of_arm = f" ({arms[0]})" if len(found.arms) > 1 else ""
        for letter, skill in (("A", found.skill), ("M", "memory")):
            moved = [p for p in found.boundaries if p.kept and (p.arms, p.letter, p.skill) == (arms, letter, skill)]
            if not moved:
                continue
            last = moved[-1]
            tasks, at = shift_words(cast(stats.Drift, last.shift)), f"at {number(last.compute_flops)} FLOPs"
            confidence = f"({sure(last.claim.confidence or 0.0)} interval)"
            said = f"{skill}{of_arm} appears with" if letter == "A" else f"memory{of_arm} ends at"
            sentences.append(f"In {found.b.study.id} {said} {tasks} tasks {at} {confidence}.")
    return sentences


def _crossing_sentences(found: Comparison) -> list[str]:
    return [f"{overtaking_words(found, one)}." for one in found.crossovers if one.kept]


def overtaking_words(found: Comparison, one: Overtaking) -> str:
    """Where one study overtakes the other, as a sentence without its full stop."""
    of_arm = f" ({one.arms[0]})" if len(found.arms) > 1 else ""
    where = f"{range_words(one.met.low, one.met.high)} FLOPs ({sure(one.claim.confidence or 0.0)} interval)"
    return f"With {times(one.n_tasks, 'task')}{of_arm} {one.second} overtakes {one.first} at {where}"


def _is_lottery(cell: CellDifference) -> bool:
    """Do replicates of a side fall into two groups, those that have the skill and those that do not?"""
    if cell.measure == "memory" or cell.difference is None or "two levels" not in cell.difference.doubts:
        return False
    sides = (np.array(cell.of_a), np.array(cell.of_b))
    return any(differences.two_levels(side) and side.min() < stats.HALF <= side.max() for side in sides)


def _doubt_sentences(found: Comparison) -> list[str]:
    """What a reader should not rely on."""
    if _agree(found):
        return []
    sentences = []
    overall = found.overall.difference
    if overall is not None and overall.p is not None:
        n = min(overall.n_a, overall.n_b)
        if by_chance(overall.n_a, overall.n_b) > OVERALL_SHARE:
            least = next(k for k in range(n, 100) if by_chance(k, k) <= OVERALL_SHARE)
            sentences.append(
                f"So few replicates agree by chance too often; {least} on either side are the least that could."
            )
        elif n < differences.FEW:
            sentences.append(f"{n} replicates can agree by chance: a single cell is kept only where many cells differ.")
    lotteries = sum(_is_lottery(cell) for cell in found.cells)
    if lotteries:
        sentences.append(
            f"In {times(lotteries, 'cell')} replicates fall into two groups, with the skill and without, and a mean describes neither."
        )
    for side, study in enumerate((found.a.study, found.b.study)):
        seen = {(cell.arms, cell.n_tasks, cell.compute_flops): cell.lost[side] for cell in found.cells}
        lost = sum(seen.values())
        if lost:
            sentences.append(
                f"{times(lost, 'trial')} of {study.id} diverged or failed: without the skill in the overall difference and "
                f"the boundaries, missing from single cells."
            )
    return sentences
