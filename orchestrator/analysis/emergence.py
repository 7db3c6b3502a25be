"""Break or smooth: the verdict on every shown skill along tasks and along compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np

from orchestrator.analysis.claims import Looked, claim_of, words_of_arm
from orchestrator.analysis.results import Axis, Results, split_of
from orchestrator.formatting import number
from orchestrator.stats import breaks
from orchestrator.stats.breaks import Break, Emergence
from orchestrator.stats.minimums import MIN_REPLICATES, MIN_SCALES


class Cut(NamedTuple):
    """One cut of the surface: a skill along one axis, the other held fixed."""

    arm: str
    skill: str
    axis: Axis
    """The axis along which the skill is followed."""
    fixed: float
    """Place on the other axis."""
    result: Emergence


_METRICS = {
    "loss_nats": "loss",
    "brier": "brier",
    "probability": "expected_accuracy",
    "accuracy": "accuracy",
    "exact_match": "exact_match",
}
"""Name of a measure -> its name in `breaks.emergence`."""


def cuts(results: Results, skills: tuple[str, ...]) -> list[Cut]:
    """Every skill along the numbers of tasks at each budget, and along compute at each number of tasks.

    Along compute the training run is read at its constant rate. A decay at the end would look like a break.
    """
    found = []
    for arm in results.study.lines:
        for skill in skills:
            split = split_of(results, skill)
            if (arm, skill, split) not in results.groups():
                continue
            cubes = {m: results.cube(m, arm, skill, split) for m in _METRICS}
            for j, c in enumerate(results.budgets):
                lines = {m: cube[:, j].T for m, cube in cubes.items()}
                found.append(Cut(arm, skill, "n_tasks", c, _emergence(np.array(results.levels, float), lines)))
            for n in results.levels:
                runs = {m: results.along(m, arm, skill, split, n, decayed=False) for m in _METRICS}
                scale = max((flops for flops, _ in runs.values()), key=len)
                lines = {m: _on(scale, *run) for m, run in runs.items()}
                found.append(Cut(arm, skill, "compute_flops", float(n), _emergence(scale, lines)))
    return found


def _on(scale: np.ndarray, flops: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (R, P) at some places of the scale, as (R, scale) with NaN elsewhere."""
    table = np.full((len(values), len(scale)), np.nan)
    table[:, np.searchsorted(scale, flops)] = values
    return table


def _emergence(scale: np.ndarray, lines: dict[str, np.ndarray]) -> Emergence:
    scores = {_METRICS[m]: values for m, values in lines.items()}
    if not np.isfinite(scores["exact_match"]).any():
        del scores["exact_match"]
    return breaks.emergence(np.log(scale) if len(scale) else np.array([]), scores)


def claims_of_breaks(results: Results, cuts: list[Cut]) -> Iterator[Looked]:
    """The claim that a skill breaks, one for each cut."""
    for cut in cuts:
        along, unit = ("tasks", "FLOPs") if cut.axis == "n_tasks" else ("compute", "tasks")
        of_arm = words_of_arm(results, cut.arm)
        says = f"{cut.skill}{of_arm} breaks along {along} at {number(cut.fixed)} {unit}"
        yield claim_of_cut(cut), says, _break_p(cut)


def _break_p(cut: Cut) -> float | None:
    """p-value of a break: that of the decisive score if a break is called, else 1.

    None if no score has enough scales and replicates. Whether a claim is tested must not depend on its outcome.
    """
    scores = cut.result.metrics.values()
    if not any(len(one.scales) >= MIN_SCALES and one.n_replicates >= MIN_REPLICATES for one in scores):
        return None
    if cut.result.verdict != "break":
        return 1.0
    decisive = cut.result.metrics[cast(str, cut.result.decisive)]
    return max(cast(float, decisive.p_smooth), cast(float, decisive.p_straight))


def claim_of_cut(cut: Cut) -> str:
    """Name of the claim that a cut has a break."""
    return claim_of("break", cut.axis, cut.arm, cut.skill, cut.fixed)


_CONTINUOUS = {
    "loss": "the loss",
    "brier": "the Brier score",
    "expected_accuracy": "the probability of the right answer",
}


def break_words(found: Break) -> str:
    """The verdict on one score along one cut, as a clause."""
    if found.verdict == "break" and found.low is not None and found.high is not None:
        return f"{found.kind} between {number(math.exp(found.low))} and {number(math.exp(found.high))}"
    return f"undecided: {found.why}" if found.verdict == "undecided" else str(found.verdict)


def emergence_words(found: Emergence) -> str:
    """The verdict on one skill along one cut, as a sentence without its full stop."""
    if found.verdict == "missing":
        return "not measured"
    if found.verdict == "break" and found.low is not None and found.high is not None:
        place = f"between {number(math.exp(found.low))} and {number(math.exp(found.high))}"
        return f"a break of {_CONTINUOUS[cast(str, found.decisive)]} {place}: {found.why}"
    return f"{found.verdict}: {found.why}"
