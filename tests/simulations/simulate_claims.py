"""Simulated studies with false claims to be made: bimodal cells, and arms drawn alike.

Whole studies go through the tables, the analyses, the tests and the correction, as in a report. A study costs some 80 ms, so no
scenario plays more than MOST_RUNS of them. Results: docs/statistics.md, "Whole studies".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from simulation import Outcome, Scenario

from orchestrator.stats.minimums import MIN_SCALES

if TYPE_CHECKING:  # loaded when a study is played: calibration.py imports this file only for the names of its scenarios
    import synthetic

    from orchestrator.analysis import claims, emergence

MOST_RUNS = 2000
Rng = np.random.Generator


# --- nothing may be claimed --------------------------------------------------------------------------------------------


class Looked(NamedTuple):
    """A study without figures: its claims, corrected, and the cuts behind the breaks."""

    claims: tuple[claims.Claim, ...]
    cuts: list[emergence.Cut]

    @property
    def kept(self) -> list[claims.Claim]:
        return [claim for claim in self.claims if claim.verdict == "kept"]


def look(tables: tuple[Any, Any], study: Any) -> Looked:
    from orchestrator.analysis import claims, emergence, findings
    from orchestrator.analysis.results import Results

    results = Results.of_tables(study, *tables)
    cuts = emergence.cuts(results, study.shown_skills)
    return Looked(claims.correct(findings.looked_at(results, study.shown_skills, cuts), None), cuts)


LOTTERY_AXES: dict[str, Any] = {
    "arm": ("answer", "next_token"),
    "n_tasks": tuple(4**k for k in range(1, MIN_SCALES + 1)),
    "compute_flops": (1e11, 4e11),
    "skills": ("recall",),
}


def bimodal_study(draw: Rng, replicates: int, share: synthetic.Truth) -> Looked:
    """A study of two arms with ability and memory by chance in each replicate, anew at every cell and look.

    `share` (n_tasks, compute_flops, replicate) is the probability.
    """
    import synthetic

    study = synthetic.made_up(**LOTTERY_AXES, replicates=replicates)

    def toss(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where(draw.random(len(n_tasks)) < share(n_tasks, flops, replicate), 0.95, 0.1)

    return look(synthetic.tables(study, toss, toss, noise=0.02), study)


def everywhere_less_than_half(draw: Rng, replicates: int) -> Looked:
    """The same 45 to 50 % in every cell."""
    p = draw.uniform(0.45, 0.5)
    return bimodal_study(draw, replicates, lambda n, c, r: np.full(len(n), p))


def more_likely_with_tasks(draw: Rng, replicates: int) -> Looked:
    """From 5 to 95 % over three steps of tasks: a smooth onset of bimodal cells, the same in both arms at any compute."""
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


def arms_drawn_alike(draw: Rng, replicates: int) -> Looked:
    """Three arms with onsets of one distribution, normal or of two kinds."""
    import synthetic

    study = synthetic.made_up(**ALIKE_AXES, replicates=replicates)
    truth = synthetic.alike(draw, len(study.axes.arm), replicates, two_kinds=bool(draw.integers(2)))
    return look(synthetic.tables(study, truth, noise=0.02, draw=int(draw.integers(2**31))), study)


OF_ARMS = ("overtakes", "is ahead", "different")
ALWAYS_FALSE = ("drifts", *OF_ARMS, "breaks")
NOT_OF_A_MINORITY = ("appears", "is there", "comes", "ends", "holds", *ALWAYS_FALSE)
"""Words of false claims if fewer than half of the replicates have the skill. Only "does not appear" is true."""


def falsely_claimed(study: Callable[[Rng, int], Looked], false: tuple[str, ...]) -> Callable[[int, Rng], Outcome]:
    """Share of studies with a false claim; 4, 6 and 10 replicates in turn."""

    def run(n_runs: int, draw: Rng) -> Outcome:
        n_runs = min(n_runs, MOST_RUNS)
        wrong = 0
        for k in range(n_runs):
            looked = study(draw, (4, 6, 10)[k % 3])
            wrong += any(word in c.says for c in looked.kept for word in false)
        return Outcome(wrong / n_runs, n_runs)

    return run


SCENARIOS = (
    Scenario(
        "nothing is claimed of bimodal cells below one half",
        "false claims",
        0.05,
        falsely_claimed(everywhere_less_than_half, NOT_OF_A_MINORITY),
    ),
    Scenario(
        "nothing but its place is claimed of a bimodal onset",
        "false claims",
        0.05,
        falsely_claimed(more_likely_with_tasks, ALWAYS_FALSE),
    ),
    Scenario("of arms drawn alike none wins", "false claims", 0.05, falsely_claimed(arms_drawn_alike, OF_ARMS)),
)
