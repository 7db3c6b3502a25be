"""Simulated studies in which nothing may be claimed: replicates that have the skill by chance, and arms drawn alike.

Whole studies go through the tables, all questions and the correction, as in a report. A study costs some 250 ms, so no
scenario plays more than MOST_RUNS studies.

Of 600 studies below one half none had a false significant finding, of 600 bimodal onsets three (0.5 %). Of 600 studies of
arms drawn alike (4, 6 and 10 replicates in turn) four had a significant winner (0.7 %).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import synthetic
from simulation import Outcome, Scenario

from orchestrator.analysis.finding import Finding
from orchestrator.analysis.findings import Findings, find
from orchestrator.stats.minimums import MIN_SCALES

MOST_RUNS = 2000
Rng = np.random.Generator

LOTTERY_AXES: dict[str, Any] = {
    "arm": ("answer", "next_token"),
    "n_tasks": tuple(4**k for k in range(1, MIN_SCALES + 1)),
    "compute_flops": (1e11, 4e11),
    "skills": ("recall",),
}


def bimodal_study(draw: Rng, replicates: int, share: synthetic.Truth) -> Findings:
    """Two arms in which each replicate has ability, and memory, by chance, anew at every cell and evaluation.

    share: the probability at (n_tasks, compute_flops, replicate).
    """
    study = synthetic.made_up(**LOTTERY_AXES, replicates=replicates)

    def toss(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where(draw.random(len(n_tasks)) < share(n_tasks, flops, replicate), 0.95, 0.1)

    return find(study, *synthetic.tables(study, toss, toss, noise=0.02))


def everywhere_less_than_half(draw: Rng, replicates: int) -> Findings:
    """The same 45 to 50 % in every cell."""
    p = draw.uniform(0.45, 0.5)
    return bimodal_study(draw, replicates, lambda n, c, r: np.full(len(n), p))


def more_likely_with_tasks(draw: Rng, replicates: int) -> Findings:
    """From 5 to 95 %, three steps of tasks wide: a smooth onset with bimodal cells, alike in both arms at any compute."""
    centre = draw.uniform(2, MIN_SCALES - 1)

    def share(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
        return 0.05 + 0.9 / (1 + np.exp(-2 * np.log(9) / 3 * (np.log(n) / np.log(4) - centre)))

    return bimodal_study(draw, replicates, share)


ALIKE_AXES: dict[str, Any] = {
    "arm": ("answer", "next_token", "task_id"),
    "n_tasks": (4, 16, 64, 256, 1024, 4096),
    "compute_flops": (1e11, 4e11, 1.6e12),
    "skills": ("recall",),
}


def arms_drawn_alike(draw: Rng, replicates: int) -> Findings:
    """Three arms whose replicates come early or late by one distribution, normal or bimodal."""
    study = synthetic.made_up(**ALIKE_AXES, replicates=replicates)
    truth = synthetic.alike(draw, len(study.axes.arm), replicates, two_kinds=bool(draw.integers(2)))
    return find(study, *synthetic.tables(study, truth, noise=0.02, draw=int(draw.integers(2**31))))


def significant(found: Findings) -> list[Finding]:
    """The findings that survive the correction."""
    return [one for one in found.findings if one.counted and one.significance == "significant"]


OF_ARMS = ("crossover", "task multiplier", "compute multiplier")
ALWAYS_FALSE = ("drift of K_A", "drift of K_M", *OF_ARMS, "emergence along n_tasks", "emergence along compute_flops")
OF_THE_MAJORITY = {"K_A": ("crossed", "below"), "compute to skill": ("crossed", "below"), "K_M": ("crossed", "beyond")}
"""Verdicts that are false where fewer than half of the replicates have the skill, or memorise."""


def of_arms(one: Finding) -> bool:
    """Does it favour one of two arms?"""
    return one.question in OF_ARMS


def always_false(one: Finding) -> bool:
    """Is it false of a smooth onset that is alike in both arms at any compute?"""
    return one.question in ALWAYS_FALSE


def of_the_majority(one: Finding) -> bool:
    """Is it false where fewer than half of the replicates have the skill?"""
    return always_false(one) or one.verdict in OF_THE_MAJORITY.get(one.question, ())


def falsely_claimed(
    study: Callable[[Rng, int], Findings], is_false: Callable[[Finding], bool]
) -> Callable[[int, Rng], Outcome]:
    """Share of studies with a false significant finding; 4, 6 and 10 replicates in turn."""

    def run(n_runs: int, draw: Rng) -> Outcome:
        n_runs = min(n_runs, MOST_RUNS)
        wrong = sum(any(map(is_false, significant(study(draw, (4, 6, 10)[k % 3])))) for k in range(n_runs))
        return Outcome(wrong / n_runs, n_runs)

    return run


SCENARIOS = (
    Scenario(
        "nothing is claimed of a lottery below one half",
        "false claims",
        0.05,
        falsely_claimed(everywhere_less_than_half, of_the_majority),
    ),
    Scenario(
        "nothing but its place is claimed of an onset by lottery",
        "false claims",
        0.05,
        falsely_claimed(more_likely_with_tasks, always_false),
    ),
    Scenario("of arms drawn alike none wins", "false claims", 0.05, falsely_claimed(arms_drawn_alike, of_arms)),
)
