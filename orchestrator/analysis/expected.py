"""Expected values beside measured ones: consistent, inconsistent or inconclusive."""

from __future__ import annotations

from typing import NamedTuple, cast

from orchestrator import stats
from orchestrator.analysis import primary
from orchestrator.analysis.results import Results
from orchestrator.formatting import figure, number, times
from orchestrator.study.schema import Expected
from trainers.tasks import Family


class Verdict(NamedTuple):
    """An expected value beside what was measured: one value a replicate, their interval, and whether they agree."""

    expected: Expected
    values: tuple[float, ...]
    measured: stats.Interval | None
    verdict: str
    censored: int
    """Replicates in which the quantity was not reached or is not defined."""
    caution: str = ""
    """What to doubt in the verdict, as of a primary claim; a clause, or nothing."""


def verdict_on(results: Results, expected: Expected) -> Verdict:
    """What the results say on one expected value."""
    study, cell = results.study, expected.cell
    arm, flops = cell.arm or next(iter(study.lines)), cell.compute_flops or study.budgets[-1]
    skill, mixture = cell.skill or study.shown_skills[0], cast(Family, study.family).mixture
    values: list[float | None]
    if expected.what in ("accuracy", "ability"):
        values = results.values(expected.what, arm, skill, cell.split, cell.n_tasks, flops)
    elif expected.what == "memory":
        values = results.values("memory", arm, mixture, "seen", cell.n_tasks, flops, "pre_decay")
    elif expected.what == "crossing_steps":
        values = [crossing(results, arm, cell.n_tasks, r) for r in range(study.axes.replicates)]
    else:
        values = results.values(expected.what, arm, mixture, cell.split, cell.n_tasks, flops)
    known = tuple(v for v in values if v is not None)
    measured = stats.t_interval(known) if len(known) == len(values) else None
    verdict = stats.agreement(measured, expected.lo, expected.hi)
    settled = verdict in ("consistent", "inconsistent")
    caution = primary.lottery_words(expected.what, len(known)) if settled else ""
    return Verdict(expected, known, measured, verdict, len(values) - len(known), caution)


def crossing(results: Results, arm: str, n_tasks: int, replicate: int) -> float | None:
    """Optimizer step at which d_rel on the training mixture rises through one half; None if it was not seen to."""
    mixture = cast(Family, results.study.family).mixture
    curve = results.curve("d_rel", arm, mixture, "seen", n_tasks, replicate)
    return stats.crossing_step(curve.steps.tolist(), curve.values.tolist())


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
    doubt = f" ({verdict.caution})" if verdict.caution else ""
    return f"{expected.what.replace('_', ' ')}{where}: {said}; {claim}: {verdict.verdict}{doubt}"
