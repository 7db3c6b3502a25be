"""Break, smooth or metric artefact: every shown skill along tasks and along compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np

from orchestrator.analysis.claims import Looked, claim_of, words_of_arm
from orchestrator.analysis.results import Axis, Results, split_of
from orchestrator.formatting import number, times
from orchestrator.stats import artefacts
from orchestrator.stats.artefacts import Emergence
from orchestrator.stats.breaks import Break
from orchestrator.stats.minimums import MIN_REPLICATES, MIN_SCALES


class Cut(NamedTuple):
    """One line through the surface: a skill along one axis, the other held fixed."""

    arm: str
    skill: str
    axis: Axis
    """Along which the skill is followed."""
    fixed: float
    """Where the other axis stands."""
    result: artefacts.Emergence


_METRICS = ("loss_nats", "brier", "probability", "accuracy", "exact_match", "predicted_exact_match")


def cuts(results: Results, skills: tuple[str, ...]) -> list[Cut]:
    """Every skill along the numbers of tasks at each budget, and along compute at each number of tasks.

    Along compute the training run is read at its constant rate: a decay at the end would look like a break.
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
    """Values (R, P) at some of the scale's places, spread over all of them."""
    table = np.full((len(values), len(scale)), np.nan)
    table[:, np.searchsorted(scale, flops)] = values
    return table


def _emergence(scale: np.ndarray, lines: dict[str, np.ndarray]) -> artefacts.Emergence:
    optional = {m: lines[m] if np.isfinite(lines[m]).any() else None for m in ("exact_match", "predicted_exact_match")}
    return artefacts.emergence(
        np.log(scale) if len(scale) else np.array([]),
        loss=lines["loss_nats"],
        brier=lines["brier"],
        expected_accuracy=lines["probability"],
        accuracy=lines["accuracy"],
        exact_match=optional["exact_match"],
        predicted_exact_match=optional["predicted_exact_match"],
    )


def claims_of_breaks(results: Results, cuts: list[Cut]) -> Iterator[Looked]:
    """That a skill breaks along one axis, for each cut."""
    for cut in cuts:
        along, unit = ("tasks", "FLOPs") if cut.axis == "n_tasks" else ("compute", "tasks")
        of_arm = words_of_arm(results, cut.arm)
        says = f"{cut.skill}{of_arm} breaks along {along} at {number(cut.fixed)} {unit}"
        yield claim_of_cut(cut), says, _break_p(cut)


def _break_p(cut: Cut) -> float | None:
    """p-value of a break: of the decisive score where one is called, 1 where one could have been and is not, None where there are
    too few scales or replicates for any: what cannot be tested must not depend on how it came out."""
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
    return f"undecided: {said}"
