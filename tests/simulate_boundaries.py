"""Simulated truths for boundaries, drift, crossovers and compute to skill: friendly ones, and the worst we know.

Levels and boundaries are in doublings (log2). A replicate is a logistic curve around its own threshold, thresholds normal
around the boundary, with noise in each cell; or a lottery, in which each cell is across with a probability that rises
along the levels, whatever the replicate. Where a scenario does not name them, spread and width are drawn for each run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from scipy import special
from simulation import Outcome, Scenario

from orchestrator import stats
from orchestrator.stats import Bracket, Crossover, survival

Rng = np.random.Generator
Values = Callable[[Rng, tuple[int, int, int]], np.ndarray]
"""(generator, (runs, R, L)) -> values of that shape."""
Tables = tuple[np.ndarray, np.ndarray]
"""Values (runs, R, L) and the true boundary of each run (runs,), in doublings."""

GRIDS = {
    "quickstart": np.log2([4, 16, 32, 64, 1024, 1e12]),
    "factor 2": np.arange(2.0, 12),
    "factor 4": np.arange(2.0, 14, 2),
    "factor 16": np.arange(2.0, 20, 4),
}
BESIDE = 1e-6
"""Doublings by which a boundary lies beside a level at the worst place."""


# Values -------------------------------------------------------------------------------------------------------------


def step_of(grid: np.ndarray) -> float:
    return float(np.median(np.diff(grid)))


def curves(rng: Rng, grid: np.ndarray, thresholds: np.ndarray, width: np.ndarray | float, noise: float) -> np.ndarray:
    """Logistic in the level around each threshold (..., R), 0 to 1, with noise.  -> (..., R, L)"""
    clean = special.expit((grid - thresholds[..., None]) / width)
    return clean + noise * rng.standard_normal(clean.shape)


def lottery(rng: Rng, shape: tuple[int, ...], probability: np.ndarray, noise: float = 0.01) -> np.ndarray:
    """1 or .05 with this probability, independently in each cell."""
    return np.where(rng.random(shape) < probability, 1.0, 0.05) + noise * rng.standard_normal(shape)


def places(rng: Rng, grid: np.ndarray, place: str, n_runs: int) -> np.ndarray:
    """Where the boundary is: anywhere within the grid, or just beside a level (either side)."""
    if place == "anywhere":
        return rng.uniform(grid[0], grid[-2], n_runs)
    level = {"beside a level": grid[len(grid) // 2], "beside the first": grid[0], "beside the last": grid[-1]}[place]
    return level + BESIDE * rng.choice([-1, 1], n_runs)


def replicated(
    rng: Rng, grid: np.ndarray, R: int, n_runs: int, place: str, spread: float | None, noise: float = 0.05
) -> Tables:
    """Each replicate with its own threshold, spread in grid steps (None: from .01 to 1.3); transitions sharp to wide."""
    truth, step = places(rng, grid, place, n_runs), step_of(grid)
    spreads = rng.uniform(0.01, 1.3, n_runs) if spread is None else np.full(n_runs, spread)
    thresholds = truth[:, None] + step * spreads[:, None] * rng.standard_normal((n_runs, R))
    width = np.exp(rng.uniform(np.log(0.1), np.log(step), n_runs))[:, None, None]
    return curves(rng, grid, thresholds, width, noise), truth


def by_lot(rng: Rng, grid: np.ndarray, R: int, n_runs: int, place: str) -> Tables:
    """A lottery whose probability rises from 0 to 1 over a fifth of a step to six steps."""
    truth = places(rng, grid, place, n_runs)
    width = step_of(grid) * rng.uniform(0.05, 1.5, n_runs)[:, None]
    rising = special.expit((grid - truth[:, None]) / width)
    return lottery(rng, (n_runs, R, len(grid)), rising[:, None]), truth


def unsettled(rng: Rng, grid: np.ndarray, R: int, n_runs: int, probability: float) -> Tables:
    """Never across on two levels, then with one and the same probability: the boundary is just above the second."""
    values = lottery(rng, (n_runs, R, len(grid)), np.where(np.arange(len(grid)) < 2, 0, probability))
    return values, np.full(n_runs, grid[1] + BESIDE)


# Boundaries ---------------------------------------------------------------------------------------------------------


def width_of(found: Sequence[Bracket]) -> float | None:
    """Median of the closed ones, in log units."""
    widths = [np.log(b.high / b.low) for b in found if b.low is not None and b.high is not None]
    return float(np.median(widths)) if widths else None


def covers(low: float | None, high: float | None, truth: float) -> bool:
    return (low is None or low <= truth) and (high is None or truth <= high)


def covered(
    levels: np.ndarray, tables: Tables, direction: Literal["rising", "falling"] = "rising", confidence: float = 0.95
) -> Outcome:
    """How often the interval covers; its width over that of a bracket where both are closed."""
    values = tables[0] if direction == "rising" else 1 - tables[0]
    found = [stats.boundary(2.0**levels, table, direction, confidence) for table in values]
    hits = sum(covers(b.low, b.high, k) for b, k in zip(found, 2.0 ** tables[1], strict=True))
    whole, part = width_of([Bracket(b.low, b.high) for b in found]), width_of([x for b in found for x in b.brackets])
    return Outcome(hits / len(found), len(found), whole / part if whole and part else None)


def boundaries() -> Iterator[Scenario]:
    for name, grid in GRIDS.items():
        for R in (3, 5, 10):
            for place in ("beside a level",) if name == "factor 4" else ("anywhere", "beside a level"):
                yield Scenario(
                    f"boundary: {name}, {R} replicates, {place}",
                    "coverage",
                    0.94,
                    lambda n, rng, g=grid, r=R, p=place: covered(g, replicated(rng, g, r, n, p, None)),
                )
    for R in (3, 4, 5, 10):  # all replicates on one side of the level: with three, every fourth run
        yield Scenario(
            f"boundary: all at one level, {R} replicates",
            "coverage",
            0.94,
            lambda n, rng, r=R: covered(
                GRIDS["factor 4"], replicated(rng, GRIDS["factor 4"], r, n, "beside a level", 0.01)
            ),
        )
    for R in (3, 10):
        yield Scenario(
            f"boundary: falling, {R} replicates",
            "coverage",
            0.94,
            lambda n, rng, r=R: covered(
                GRIDS["quickstart"], replicated(rng, GRIDS["quickstart"], r, n, "anywhere", None), "falling"
            ),
        )
        for place in ("beside the first", "beside the last"):
            yield Scenario(
                f"boundary: {R} replicates, {place}",
                "coverage",
                0.94,
                lambda n, rng, r=R, p=place: covered(
                    GRIDS["factor 4"], replicated(rng, GRIDS["factor 4"], r, n, p, None)
                ),
            )
        for name in ("quickstart", "factor 2"):
            yield Scenario(
                f"boundary: lottery, {name}, {R} replicates",
                "coverage",
                0.96,
                lambda n, rng, r=R, g=GRIDS[name]: covered(g, by_lot(rng, g, r, n, "beside a level")),
            )
    for R, probability in ((3, 0.55), (5, 0.55), (10, 0.55), (10, 0.75), (20, 0.75)):
        yield Scenario(
            f"boundary: lottery that stays at {probability:g}, {R} replicates",
            "coverage",
            0.94,
            lambda n, rng, r=R, p=probability: covered(GRIDS["factor 2"], unsettled(rng, GRIDS["factor 2"], r, n, p)),
        )
    for R in (2, 3, 5):
        yield Scenario(
            f"boundary: at 99 %, {R} replicates",
            "coverage",
            0.975,
            lambda n, rng, r=R: covered(
                GRIDS["factor 4"], replicated(rng, GRIDS["factor 4"], r, n, "beside a level", None), confidence=0.99
            ),
        )
    for R in (3, 10):
        yield Scenario(
            f"boundary: noise around 0 to .3, {R} replicates, rising", "false claims", 0.05, noise_bounded(R, "rising")
        )
        yield Scenario(
            f"boundary: noise around 0 to .3, {R} replicates, falling",
            "false claims",
            0.05,
            noise_bounded(R, "falling"),
        )
        yield Scenario(f"boundary: both ends closed, {R} replicates", "power", 0.8, closed(R))


def noise_bounded(R: int, direction: Literal["rising", "falling"]) -> Callable[[int, Rng], Outcome]:
    """How often a boundary with two ends is claimed where values never really come to one half."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = GRIDS["quickstart"]
        values = rng.uniform(0, 0.3, (n_runs, 1, 1)) + 0.1 * rng.standard_normal((n_runs, R, len(grid)))
        found = [stats.boundary(2.0**grid, table, direction) for table in values]
        return Outcome(sum(b.low is not None and b.high is not None for b in found) / n_runs, n_runs)

    return run


def closed(R: int) -> Callable[[int, Rng], Outcome]:
    """The intervals do not cover by being open: the spread is up to half a step."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = GRIDS["factor 2"]
        values, _ = replicated(rng, grid, R, n_runs, "anywhere", 0.5)
        found = [stats.boundary(2.0**grid, table, "rising") for table in values]
        return Outcome(sum(b.low is not None and b.high is not None for b in found) / n_runs, n_runs)

    return run


# Monotone? ----------------------------------------------------------------------------------------------------------


def called_not_monotone(draw: Values, R: int, L: int = 6) -> Callable[[int, Rng], Outcome]:
    def run(n_runs: int, rng: Rng) -> Outcome:
        found = [stats.monotone(2.0 ** np.arange(L), table, "rising") for table in draw(rng, (n_runs, R, L))]
        return Outcome(sum(m.p_value is not None and m.p_value <= 0.05 for m in found) / n_runs, n_runs)

    return run


def unequal(rng: Rng, shape: tuple[int, int, int]) -> np.ndarray:
    """Flat, with a spread of its own at each level, .003 to .4."""
    spread = np.exp(rng.uniform(np.log(0.003), np.log(0.4), (shape[0], 1, shape[2])))
    return spread * rng.standard_normal(shape)


def monotonicity() -> Iterator[Scenario]:
    nulls: dict[str, Values] = {
        "flat, unequal spreads": unequal,
        "lottery, the same at each level": lambda rng, shape: lottery(rng, shape, np.array(0.5)),
        "lottery at three levels, then settled": lambda rng, shape: lottery(
            rng, shape, np.array([0, 0.5, 0.5, 0.5, 1, 1])
        ),
        "rising lottery": lambda rng, shape: lottery(rng, shape, np.linspace(0.05, 0.95, shape[2]), 0.0001),
    }
    for name, draw in nulls.items():
        for R in (3, 5)[: 1 + (name == "flat, unequal spreads")]:  # lotteries deceive the fewer the more
            yield Scenario(f"monotone: {name}, {R} replicates", "false claims", 0.05, called_not_monotone(draw, R))

    def fall(rng: Rng, shape: tuple[int, int, int]) -> np.ndarray:
        return np.array([0.1, 0.5, 0.9, 0.9, 0.5, 0.5]) + 0.1 * rng.standard_normal(shape)

    for R, bound in ((3, 0.4), (5, 0.97)):
        yield Scenario(f"monotone: a fall by four sds, {R} replicates", "power", bound, called_not_monotone(fall, R))


# Drift --------------------------------------------------------------------------------------------------------------


def drifting(
    R: int, slope: float, place: str, wanted: str | None = None, n_budgets: int = 2
) -> Callable[[int, Rng], Outcome]:
    """Coverage of the drift of boundaries over budgets that span a factor eight; or the share of a verdict."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = GRIDS["quickstart" if place == "anywhere" else "factor 2"]
        doublings = np.linspace(0, 3, n_budgets)
        own_slope = slope + rng.choice([0, 0.5], (n_runs, 1, 1)) * rng.standard_normal((n_runs, R, 1))
        middle = rng.uniform(3, 8, n_runs) if place == "anywhere" else np.full(n_runs, grid[4] + BESIDE)
        thresholds = middle[:, None, None] + own_slope * (doublings - 1.5 * (place == "anywhere"))
        thresholds = thresholds + rng.uniform(0, 1, (n_runs, 1, 1)) * rng.standard_normal((n_runs, R, 1))
        values = curves(rng, grid, thresholds, 0.3, 0.05)  # (runs, R, B, L)
        hits = 0
        for table in values:
            rows = [stats.boundary(2.0**grid, table[:, j], "rising").brackets for j in range(n_budgets)]
            found = stats.drift(2.0**doublings, rows)
            hits += covers(found.low, found.high, slope) if wanted is None else found.verdict in wanted
        return Outcome(hits / n_runs, n_runs)

    return run


def drifts() -> Iterator[Scenario]:
    for R, slope, place, n_budgets in ((3, 0.0, "beside", 4), (3, -0.5, "anywhere", 2), (5, -2.0, "beside", 2)):
        name = f"drift: {R} replicates, {slope:g}, {place}, {n_budgets} budgets"
        yield Scenario(name, "coverage", 0.95, drifting(R, slope, place, n_budgets=n_budgets))
    yield Scenario("drift: none, 3 replicates", "false claims", 0.05, drifting(3, 0.0, "anywhere", "rises falls"))
    yield Scenario("drift: falls by 2, 3 replicates", "power", 0.8, drifting(3, -2.0, "beside", "falls"))


# Crossovers ---------------------------------------------------------------------------------------------------------

Arms = Callable[[Rng, tuple[int, int, int]], tuple[np.ndarray, np.ndarray]]


def crossings(levels: np.ndarray, arms: tuple[np.ndarray, np.ndarray]) -> list[Crossover]:
    return [stats.crossover(2.0**levels, a, b) for a, b in zip(*arms, strict=True)]


def falsely_crossed(draw: Arms, R: int, L: int = 8) -> Callable[[int, Rng], Outcome]:
    def run(n_runs: int, rng: Rng) -> Outcome:
        found = crossings(np.arange(float(L)), draw(rng, (n_runs, R, L)))
        return Outcome(sum(c.verdict == "crosses" for c in found) / n_runs, n_runs)

    return run


def onsets(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both arms rise to the ceiling, at times drawn alike."""
    times = shape[2] / 2 + rng.uniform(0.2, 2, (shape[0], 1, 1)) * rng.standard_normal((shape[0], 2 * shape[1], 1))
    both = curves(rng, np.arange(float(shape[2])), times[..., 0], 0.2, 0.01)
    return both[:, : shape[1]], both[:, shape[1] :]


def ahead_at_first(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A is ahead at the first level, then they are alike: one false finding for B is a false crossover."""
    a = 0.5 * (np.arange(shape[2]) == 0) + 0.05 * rng.standard_normal(shape)
    return a, 0.05 * rng.standard_normal(shape)


def ahead_always(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A gets there earlier in every replicate; alike at chance before, and at the ceiling after."""
    times = shape[2] / 2 + rng.standard_normal((shape[0], shape[1]))
    grid = np.arange(float(shape[2]))
    return curves(rng, grid, times - 1, 0.3, 0.02), curves(rng, grid, times + 1, 0.3, 0.02)


def reversed_arms(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return ahead_always(rng, shape)[::-1]


def alike_by_lot(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return lottery(rng, shape, np.array(0.5)), lottery(rng, shape, np.array(0.5))


def crossing(
    R: int, place: str, ask: Literal["coverage", "power"], spread: float | None
) -> Callable[[int, Rng], Outcome]:
    """A learns early, up to .7, B later, up to 1; both from chance. Coverage among the claims, or the share of claims."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = np.arange(10.0) if place == "anywhere" else 2 * np.arange(6.0)
        step = step_of(grid)
        truth = rng.uniform(grid[2], grid[-3], n_runs) if place == "anywhere" else places(rng, grid, place, n_runs)
        spreads = np.full(n_runs, spread) if spread is not None else rng.uniform(0, 1, n_runs)
        at = truth[:, None] + step * spreads[:, None] * rng.standard_normal((n_runs, R))
        a = 0.7 * curves(rng, grid, at - 2.5 * step, 0.5 * step, 0.02)
        b = curves(rng, grid, at - 0.5 * step * special.logit(0.7), 0.5 * step, 0.02)
        found = crossings(grid, (a, b))
        claimed = [(c, k) for c, k in zip(found, 2.0**truth, strict=True) if c.verdict == "crosses"]
        if ask == "power":
            return Outcome(len(claimed) / n_runs, n_runs)
        whole = width_of([Bracket(c.low, c.high) for c, _ in claimed])
        part = width_of([bracket for c, _ in claimed for bracket in c.brackets])
        hits = sum(covers(c.low, c.high, k) for c, k in claimed)
        return Outcome(hits / len(claimed), len(claimed), whole / part if whole and part else None)

    return run


def crossovers() -> Iterator[Scenario]:
    for R in (3, 10):
        for name, draw in (("alike, onset times", onsets), ("A ahead at first, then alike", ahead_at_first)):
            yield Scenario(f"crossover: {name}, {R} replicates", "false claims", 0.05, falsely_crossed(draw, R))
    for name, draw in (
        ("alike by lot", alike_by_lot),
        ("A always ahead", ahead_always),
        ("B always ahead", reversed_arms),
    ):
        yield Scenario(f"crossover: {name}, 3 replicates", "false claims", 0.05, falsely_crossed(draw, 3))
    for R in (3, 5, 10):
        for place in ("anywhere", "beside a level"):
            yield Scenario(
                f"crossover: {R} replicates, {place}", "coverage", 0.94, crossing(R, place, "coverage", None)
            )
    for R, bound in ((3, 0.5), (5, 0.9)):
        yield Scenario(
            f"crossover: found, spread of half a step, {R} replicates",
            "power",
            bound,
            crossing(R, "anywhere", "power", 0.5),
        )


# Compute to skill ---------------------------------------------------------------------------------------------------


def looks(per_decade: float, n: int) -> np.ndarray:
    """Evaluations, in doublings of compute."""
    return np.arange(n) * np.log2(10) / per_decade


def onset_times(rng: Rng, grid: np.ndarray, R: int, n_runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal onsets, sd .2 to 1 in natural log, of which 10-40 % come after the last look; and their median."""
    sd = rng.uniform(0.2, 1, n_runs) / np.log(2)
    median = grid[-1] + sd * special.ndtri(rng.uniform(0.1, 0.4, n_runs))
    return median[:, None] + sd[:, None] * rng.standard_normal((n_runs, R)), median


def skill_covered(per_decade: float, R: int) -> Callable[[int, Rng], Outcome]:
    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = looks(per_decade, 12)
        times, median = onset_times(rng, grid, R, n_runs)
        return covered(grid, (curves(rng, grid, times, 0.1, 0.05), median))

    return run


def curve_covered(R: int, leaves: bool, ask: Literal["share", "median"]) -> Callable[[int, Rng], Outcome]:
    """Kaplan-Meier at its worst look, some replicates leaving early or none; or the interval of its median.

    After the last replicate has left nothing is claimed, which counts as covering.
    """

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = looks(4, 8)
        share = special.ndtr((grid - grid[4] + 0.3) / (0.8 / np.log(2)))
        onset = grid[4] - 0.3 + 0.8 / np.log(2) * rng.standard_normal((n_runs, R))
        first = np.searchsorted(grid, onset)
        last = rng.integers(2, 8, (n_runs, R)) if leaves else np.full((n_runs, R), 7)
        seen = np.where(first <= last, 2.0 ** grid[np.minimum(first, 7)], np.nan)
        hits = np.ones((n_runs, len(grid)))
        for k, (times, left) in enumerate(zip(seen, 2.0 ** grid[last], strict=True)):
            found = survival.kaplan_meier(times, left, 2.0**grid)
            assert found is not None
            if ask == "median":
                hits[k] = covers(*found.median_interval, 2.0 ** (grid[4] - 0.3))
                continue
            steps = found.steps[1:]
            hits[k, : len(steps)] = [s.low <= p <= s.high for s, p in zip(steps, share[: len(steps)], strict=True)]
        return Outcome(float(hits.mean(0).min()), n_runs)

    return run


def to_skill() -> Iterator[Scenario]:
    for per_decade, name in ((4.0, "four looks a decade"), (1 / np.log10(2), "looks a factor 2 apart")):
        for R in (3, 5, 10):
            yield Scenario(f"compute to skill: {name}, {R} replicates", "coverage", 0.94, skill_covered(per_decade, R))


def survivals() -> Iterator[Scenario]:
    for R in (3, 5, 10, 20):
        yield Scenario(f"survival: worst look, {R} replicates", "coverage", 0.945, curve_covered(R, False, "share"))
    for R in (5, 10):
        yield Scenario(
            f"survival: worst look, {R} replicates, some leave early",
            "coverage",
            0.945,
            curve_covered(R, True, "share"),
        )
    yield Scenario(
        "survival: median, 10 replicates, some leave early", "coverage", 0.95, curve_covered(10, True, "median")
    )


SURVIVAL = tuple(survivals())
BOUNDARIES = (*boundaries(), *monotonicity(), *drifts(), *crossovers(), *to_skill())
SCENARIOS = (*BOUNDARIES, *SURVIVAL)
