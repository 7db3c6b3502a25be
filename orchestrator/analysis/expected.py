"""Expected values of a study (`Study.expected`) against the measured means: consistent, inconsistent or inconclusive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis import along
from orchestrator.analysis.finding import CONFIDENCE, Finding, claim_of, in_condition
from orchestrator.analysis.means import mean_words, t_ends
from orchestrator.analysis.results import Results
from orchestrator.formatting import figure, number
from orchestrator.study.schema import Expected
from trainers.tasks import Family


def ask(results: Results) -> Iterator[Finding]:
    """A finding for each expected value of the study, in its order."""
    for i, expected in enumerate(results.study.expected):
        yield _along(results, expected, i) if expected.what.startswith("along") else _beside(results, expected, i)


OF_CELLS = ("accuracy", "ability", "right", "answer_tokens", "long_answers")
"""Quantities of one skill that are means over the replicates of a cell."""


def _claimed(expected: Expected) -> str:
    return f"{figure(expected.lo)} to {figure(expected.hi)} was expected ({expected.source})"


def _along(results: Results, expected: Expected, i: int) -> Finding:
    """The finding for an expected boundary along a family parameter, the i-th expected value of the study.

    Consistent: the whole interval over replicates lies in the range. Inconsistent: none of it does.
    """
    study, cell = results.study, expected.cell
    series, skill = cell.arm or next(iter(study.series)), cell.skill or study.shown_skills[0]
    measure, flops = expected.what.removeprefix("along_"), cell.compute_flops or study.budgets[-1]
    one = along.boundary(results, measure, series, skill, cell.n_tasks, flops)
    low, high = one.interval(CONFIDENCE) if one.n > 1 else (None, None)
    return replace(
        one,
        name=claim_of("expected", expected.what, series, skill, str(i)),
        question=f"expected {expected.what}",
        words=lambda now: f"{one.sentence}; {_claimed(expected)}: {now.verdict}",
        verdict=stats.containment(low, high, expected.lo, expected.hi),
        answered=one.verdict != "missing",
        counted=False,
    )


def _beside(results: Results, expected: Expected, i: int) -> Finding:
    """The finding for one expected value, the i-th of the study. Its interval needs a value in every replicate."""
    study, cell = results.study, expected.cell
    condition, flops = cell.arm or next(iter(study.conditions)), cell.compute_flops or study.budgets[-1]
    values = _values(results, expected, condition, flops)
    known = [v for v in values if v is not None]
    complete = known if len(known) == len(values) else []
    skill = cell.skill or study.shown_skills[0] if expected.what in OF_CELLS else ""
    quantity = "crossing step" if expected.what == "crossing_steps" else expected.what.replace("_", " ")
    what = f"{quantity}{f' of {skill}' if skill else ''}{in_condition(results, condition)}"
    at = f"at {number(cell.n_tasks)} tasks" + (
        f" and {number(flops)} FLOPs" if expected.what != "crossing_steps" else ""
    )
    return Finding(
        name=claim_of("expected", expected.what, condition, skill, str(i)),
        question=f"expected {expected.what}",
        words=lambda one: f"{what} {at} is {mean_words(one)}; {_claimed(expected)}: {one.verdict}",
        condition=condition,
        skill=skill,
        n_tasks=cell.n_tasks,
        compute_flops=cell.compute_flops,
        verdict=stats.agreement(stats.t_interval(complete, CONFIDENCE), expected.lo, expected.hi),
        answered=bool(known),
        n=len(known),
        estimate=float(np.mean(known)) if known else None,
        interval=lambda confidence: t_ends(complete, confidence),
        counted=False,
    )


def _values(results: Results, expected: Expected, condition: str, flops: float) -> list[float | None]:
    """The measured quantity of an expected value, one value for each replicate; None if missing or undefined."""
    study, cell = results.study, expected.cell
    skill, mixture = cell.skill or study.shown_skills[0], cast(Family, study.family).mixture
    if expected.what in OF_CELLS:
        return results.values(expected.what, condition, skill, cell.split, cell.n_tasks, flops)
    if expected.what == "memory":
        return results.values("memory", condition, mixture, "seen", cell.n_tasks, flops, "pre_decay")
    if expected.what == "crossing_steps":
        return [crossing(results, condition, cell.n_tasks, r) for r in range(study.axes.replicates)]
    return results.values(expected.what, condition, mixture, cell.split, cell.n_tasks, flops)


def crossing(results: Results, condition: str, n_tasks: int, replicate: int) -> float | None:
    """Optimizer step at which the relative distance d_rel on seen tasks rises to one half, from generaliser to memoriser.

    None if it never does, or starts there.
    """
    mixture = cast(Family, results.study.family).mixture
    curve = results.curve("d_rel", condition, mixture, "seen", n_tasks, replicate)
    return stats.crossing_step(curve.steps.tolist(), curve.values.tolist())
