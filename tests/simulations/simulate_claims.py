"""Simulated studies for claims: lotteries in which nothing may be claimed, and studies that go on with the replicates they ask for.

Whole studies go through the tables, the analyses, the tests and the correction, as in a report. A study costs some 80 ms, so no
scenario plays more than MOST_RUNS of them, however many are asked for.

Of 600 lotteries below one half none was claimed anything of that is not so, of 600 onsets by lottery three (0.5 %); of 600
studies of arms drawn alike (4, 6 and 10 replicates in turn) a winner was kept in five (0.8 %). Of studies
that settle nothing and are told a number, it settled (1,000 studies begun; told): boundaries .88 (202) from 3 replicates and
.95 (114) from 5, means .85 (399) and .86 (220), crossovers .86 (176) and .92 (157), drifts from 3 all of 42.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import synthetic
from simulation import Outcome, Scenario

from orchestrator import stats
from orchestrator.analysis import claims, emergence, findings
from orchestrator.analysis.results import Results
from orchestrator.stats import further
from orchestrator.stats.minimums import MIN_SCALES
from orchestrator.stats.replicates import Needed

MOST_RUNS = 2000
Rng = np.random.Generator


# --- nothing may be claimed --------------------------------------------------------------------------------------------


class Looked(NamedTuple):
    """A study without figures: what was looked at, corrected, and the cuts behind the breaks."""

    claims: tuple[claims.Claim, ...]
    cuts: list[emergence.Cut]

    @property
    def kept(self) -> list[claims.Claim]:
        return [claim for claim in self.claims if claim.verdict == "kept"]


def look(tables: tuple[Any, Any], study: Any) -> Looked:
    results = Results.of_tables(study, *tables)
    cuts = emergence.cuts(results, study.shown_skills)
    return Looked(claims.correct(findings.looked_at(results, study.shown_skills, cuts), None), cuts)


LOTTERY_AXES: dict[str, Any] = {
    "arm": ("answer", "next_token"),
    "n_tasks": tuple(4**k for k in range(1, MIN_SCALES + 1)),
    "compute_flops": (1e11, 4e11),
    "skills": ("recall",),
}


def lottery(draw: Rng, replicates: int, share: synthetic.Truth) -> Looked:
    """A study of two arms in which each replicate has ability, and memory, by chance: at every cell and look anew, with the
    probability `share` (n_tasks, compute_flops, replicate)."""
    study = synthetic.made_up(**LOTTERY_AXES, replicates=replicates)

    def toss(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where(draw.random(len(n_tasks)) < share(n_tasks, flops, replicate), 0.95, 0.1)

    return look(synthetic.tables(study, toss, toss, noise=0.02), study)


def everywhere_less_than_half(draw: Rng, replicates: int) -> Looked:
    """The same 45 to 50 % in every cell."""
    p = draw.uniform(0.45, 0.5)
    return lottery(draw, replicates, lambda n, c, r: np.full(len(n), p))


def more_likely_with_tasks(draw: Rng, replicates: int) -> Looked:
    """From 5 to 95 %, three steps of tasks wide: a smooth onset whose cells are bistable, the same in both arms at any compute."""
    centre = draw.uniform(2, MIN_SCALES - 1)

    def share(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
        return 0.05 + 0.9 / (1 + np.exp(-2 * np.log(9) / 3 * (np.log(n) / np.log(4) - centre)))

    return lottery(draw, replicates, share)


ALIKE_AXES: dict[str, Any] = {
    "arm": ("answer", "next_token", "task_id"),
    "n_tasks": (4, 16, 64, 256, 1024, 4096),
    "compute_flops": (1e11, 4e11, 1.6e12),
    "skills": ("recall",),
}


def arms_drawn_alike(draw: Rng, replicates: int) -> Looked:
    """Three arms whose replicates come early or late by one law, normal or of two kinds."""
    study = synthetic.made_up(**ALIKE_AXES, replicates=replicates)
    truth = synthetic.alike(draw, len(study.axes.arm), replicates, two_kinds=bool(draw.integers(2)))
    return look(synthetic.tables(study, truth, noise=0.02, draw=int(draw.integers(2**31))), study)


OF_ARMS = ("overtakes", "is ahead", "different")
ALWAYS_FALSE = ("drifts", *OF_ARMS, "breaks")
NOT_OF_A_MINORITY = ("appears", "is there", "comes", "ends", "holds", *ALWAYS_FALSE)
"""Where fewer than half of the replicates have the skill it is true that it does not appear, and no more."""


def falsely_claimed(study: Callable[[Rng, int], Looked], false: tuple[str, ...]) -> Callable[[int, Rng], Outcome]:
    """Share of the studies of which anything is claimed that is not so; 4, 6 and 10 replicates in turn."""

    def run(n_runs: int, draw: Rng) -> Outcome:
        n_runs = min(n_runs, MOST_RUNS)
        wrong = 0
        for k in range(n_runs):
            looked = study(draw, (4, 6, 10)[k % 3])
            wrong += any(word in c.says for c in looked.kept for word in false)
        return Outcome(wrong / n_runs, n_runs)

    return run


# --- the replicates that are asked for settle it -----------------------------------------------------------------------

LEVELS = [2.0**k for k in range(1, 13)]
LO, HI = 16.0, 256.0
"""What is claimed of a boundary; of a mean, .4 to .8; of a drift, at most 0; of a crossover, 2e11 to 8e11 FLOPs."""


def decided(low: float | None, high: float | None, lo: float, hi: float) -> bool:
    least, most = -np.inf if low is None else low, np.inf if high is None else high
    return bool((lo <= least and most <= hi) or most < lo or least > hi)


class Kind(NamedTuple):
    """One kind of claim: replicates (R, ...) of a random truth, is it settled, and how many would settle it."""

    truth: Callable[[Rng], Callable[[int], np.ndarray]]
    settled: Callable[[np.ndarray], bool]
    needed: Callable[[np.ndarray, Rng], Needed | None]


def boundary_of(thresholds: np.ndarray) -> stats.Boundary:
    return stats.boundary(LEVELS, (np.log2(LEVELS) >= thresholds[:, None]).astype(float), "rising")


def thresholds(draw: Rng) -> Callable[[int], np.ndarray]:
    """Binary logarithms: anywhere on the grid, with a spread of .2 to 1 of its steps."""
    centre, spread = draw.uniform(2, 11), 10 ** draw.uniform(np.log10(0.2), 0)
    return lambda n: centre + spread * draw.standard_normal(n)


def means(draw: Rng) -> Callable[[int], np.ndarray]:
    """Anywhere from 0 to 1.2, with a spread of a tenth to a half of the claimed range."""
    centre, spread = draw.uniform(0, 1.2), 10 ** draw.uniform(np.log10(0.04), np.log10(0.2))
    return lambda n: centre + spread * draw.standard_normal(n)


BUDGETS = [1e11, 2e11, 4e11, 8e11, 1.6e12]


def drifting(draw: Rng) -> Callable[[int], np.ndarray]:
    """Thresholds (R, budgets) that drift by -1.5 to 1.5 doublings per doubling of compute, one replicate beside the other."""
    slope, spread = draw.uniform(-1.5, 1.5), 10 ** draw.uniform(np.log10(0.2), 0)
    at = 7 + slope * (np.arange(5) - 2)
    return lambda n: at + spread * (draw.standard_normal((n, 1)) + 0.5 * draw.standard_normal((n, 5)))


def drift_brackets(lines: np.ndarray) -> list[tuple[stats.Bracket, ...]]:
    return [boundary_of(line).brackets for line in lines.T]


def crossing(draw: Rng) -> Callable[[int], np.ndarray]:
    """How far one arm is ahead (R, budgets): it overtakes somewhere, or just before or after the budgets."""
    place, spread = draw.uniform(-0.5, 4.5), 10 ** draw.uniform(-1.5, -0.5)
    return lambda n: 0.2 * (np.arange(5) - place) + spread * draw.standard_normal((n, 5))


def _met(gain: np.ndarray) -> stats.Crossover:
    return stats.crossover(BUDGETS, np.zeros_like(gain), gain)


def _crossed(met: stats.Crossover) -> bool:
    return met.verdict == "crosses" and decided(met.low, met.high, 2e11, 8e11)


KINDS = {
    "boundary": Kind(
        thresholds,
        lambda t: decided(*boundary_of(t)[:2], LO, HI),
        lambda t, draw: further.for_boundary(
            LEVELS, boundary_of(t).brackets, lambda b: decided(b.low, b.high, LO, HI), draw
        ),
    ),
    "mean": Kind(
        means,
        lambda values: decided(*stats.t_interval(values.tolist())[1:3], 0.4, 0.8),  # type: ignore[index]
        lambda values, draw: further.for_mean(values.tolist(), lambda ends: decided(*ends, 0.4, 0.8), draw),
    ),
    "drift": Kind(
        drifting,
        lambda lines: decided(*stats.drift(BUDGETS, drift_brackets(lines))[:2], -np.inf, 0),
        lambda lines, draw: further.for_drift(
            LEVELS, BUDGETS, drift_brackets(lines), lambda d: decided(d.low, d.high, -np.inf, 0), draw
        ),
    ),
    "crossover": Kind(
        crossing,
        lambda gain: _crossed(_met(gain)),
        lambda gain, draw: further.for_crossover(BUDGETS, np.zeros_like(gain), gain, _crossed, draw),
    ),
}


def kept_promise(kind: Kind, replicates: int, even: bool = False) -> Callable[[int, Rng], Outcome]:
    """Of studies of so many replicates that settle nothing and are told a number: share that this number settles. `even`: of
    those that are told no more than the number of an even chance."""

    def run(n_runs: int, draw: Rng) -> Outcome:
        told = settled = 0
        for _ in range(min(n_runs, MOST_RUNS)):
            more = kind.truth(draw)
            seen = more(replicates)
            if kind.settled(seen):
                continue
            needed = kind.needed(seen, draw)
            if needed is None or needed.or_more != even or (even and needed.even is None):
                continue
            told += 1
            total = cast(int, needed.even) if even else needed.n
            settled += kind.settled(np.concatenate([seen, more(total - replicates)]))
        return Outcome(settled / max(told, 1), told)

    return run


SCENARIOS = (
    Scenario(
        "nothing is claimed of a lottery below one half",
        "false claims",
        0.05,
        falsely_claimed(everywhere_less_than_half, NOT_OF_A_MINORITY),
    ),
    Scenario(
        "nothing but its place is claimed of an onset by lottery",
        "false claims",
        0.05,
        falsely_claimed(more_likely_with_tasks, ALWAYS_FALSE),
    ),
    Scenario("of arms drawn alike none wins", "false claims", 0.05, falsely_claimed(arms_drawn_alike, OF_ARMS)),
    *(
        Scenario(f"the replicates asked for a {name} settle it, from {n}", "power", 0.8, kept_promise(kind, n))
        for name, kind in KINDS.items()
        for n in ((3,) if name == "drift" else (3, 5))  # of five, a drift is settled at once or never
    ),
    *(
        Scenario(
            f"from 3: an even chance to settle a {name} is one", "power", 0.4, kept_promise(KINDS[name], 3, even=True)
        )
        for name in ("boundary", "mean", "crossover")
    ),
)
