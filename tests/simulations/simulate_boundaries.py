"""Simulated truths for boundaries, drift, crossovers and compute to skill.

Levels and boundaries are in doublings (log2). A replicate is a logistic curve around its own threshold, with noise in each cell.
Thresholds are normal around the boundary. Or cells are bimodal: each is across with a probability that rises along the levels,
the same for all replicates. Spread and width are drawn for each run unless a scenario names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from scipy import special
from simulation import Outcome, Scenario, median_of

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
    "uneven": np.cumsum([1.0, *[1, 1, 1, 6, 1] * 10]),
    "long": np.arange(1.0, 41),
    "quarter of a decade": np.arange(14) * np.log2(10) / 4,
}
BESIDE = 1e-6
"""Doublings between a boundary and a level at the worst place."""


# Values -------------------------------------------------------------------------------------------------------------


def step_of(grid: np.ndarray) -> float:
    return float(np.median(np.diff(grid)))


def curves(rng: Rng, grid: np.ndarray, thresholds: np.ndarray, width: np.ndarray | float, noise: float) -> np.ndarray:
    """Logistic in the level around each threshold (..., R), 0 to 1, with noise.  -> (..., R, L)"""
    clean = special.expit((grid - thresholds[..., None]) / width)
    return clean + noise * rng.standard_normal(clean.shape)


def bimodal(rng: Rng, shape: tuple[int, ...], probability: np.ndarray, noise: float = 0.01) -> np.ndarray:
    """1 or .05 with this probability, independently in each cell."""
    return np.where(rng.random(shape) < probability, 1.0, 0.05) + noise * rng.standard_normal(shape)


def places(rng: Rng, grid: np.ndarray, place: str, n_runs: int) -> np.ndarray:
    """Places of the boundary: anywhere within the grid, midway between two levels, or just beside one (either side)."""
    if place == "anywhere":
        return rng.uniform(grid[0], grid[-2], n_runs)
    if place == "within a bracket":
        return np.full(n_runs, grid[len(grid) // 2 - 1 : len(grid) // 2 + 1].mean())
    level = {"beside a level": grid[len(grid) // 2], "beside the first": grid[0], "beside the last": grid[-1]}[place]
    return level + BESIDE * rng.choice([-1, 1], n_runs)


def replicated(
    rng: Rng, grid: np.ndarray, R: int, n_runs: int, place: str, spread: float | None, noise: float = 0.05
) -> Tables:
    """Each replicate has its own threshold. Spread in grid steps (None: from .01 to 1.3). Transitions sharp to wide."""
    truth, step = places(rng, grid, place, n_runs), step_of(grid)
    spreads = rng.uniform(0.01, 1.3, n_runs) if spread is None else np.full(n_runs, spread)
    thresholds = truth[:, None] + step * spreads[:, None] * rng.standard_normal((n_runs, R))
    width = np.exp(rng.uniform(np.log(0.1), np.log(step), n_runs))[:, None, None]
    return curves(rng, grid, thresholds, width, noise), truth


Shape = Literal["evenly spread", "skewed", "of two kinds"]


def shaped(rng: Rng, grid: np.ndarray, R: int, n_runs: int, shape: Shape, spread: float) -> Tables:
    """Thresholds far from normal, sd `spread` in grid steps. Sharp transitions, no noise."""
    truth = rng.uniform(grid[len(grid) // 2 - 3], grid[len(grid) // 2 + 3], n_runs)
    size = (n_runs, R)
    drawn = {
        "evenly spread": lambda: np.sqrt(12) * (rng.random(size) - 0.5),
        "skewed": lambda: rng.exponential(size=size) - np.log(2),
        "of two kinds": lambda: rng.choice([-1.0, 1.0], size) + 0.1 * rng.standard_normal(size),
    }[shape]()
    return curves(rng, grid, truth[:, None] + spread * step_of(grid) * drawn, 0.01, 0), truth


def thinned(rng: Rng, tables: Tables) -> Tables:
    """Cells missing at random, for any value: at each level of a run with a probability of its own, 0 to .5."""
    values, truth = tables
    missing = rng.random(values.shape) < rng.uniform(0, 0.5, (len(values), 1, values.shape[2]))
    return np.where(missing, np.nan, values), truth


def by_lot(rng: Rng, grid: np.ndarray, R: int, n_runs: int, place: str) -> Tables:
    """Bimodal cells. The probability rises from 0 to 1 over a fifth of a step to six steps."""
    truth = places(rng, grid, place, n_runs)
    width = step_of(grid) * rng.uniform(0.05, 1.5, n_runs)[:, None]
    rising = special.expit((grid - truth[:, None]) / width)
    return bimodal(rng, (n_runs, R, len(grid)), rising[:, None]), truth


def unsettled(rng: Rng, grid: np.ndarray, R: int, n_runs: int, probability: float) -> Tables:
    """Never across on two levels, then with one and the same probability. The boundary is just above the second."""
    values = bimodal(rng, (n_runs, R, len(grid)), np.where(np.arange(len(grid)) < 2, 0, probability))
    return values, np.full(n_runs, grid[1] + BESIDE)


# Boundaries ---------------------------------------------------------------------------------------------------------


def width_ratio(low: float | None, high: float | None, brackets: Sequence[Bracket]) -> float:
    """The interval's width over the mean width of its closed brackets, in log units. Infinite if an end is open."""
    widths = [np.log(b.high / b.low) for b in brackets if b.low is not None and b.high is not None]
    return float(np.log(high / low) / np.mean(widths)) if low is not None and high is not None and widths else np.inf


def covers(low: float | None, high: float | None, truth: float) -> bool:
    return (low is None or low <= truth) and (high is None or truth <= high)


def covered(
    levels: np.ndarray, tables: Tables, direction: Literal["rising", "falling"] = "rising", confidence: float = 0.95
) -> Outcome:
    """Share of intervals that cover, and their width. Replicates without any value are left out."""
    values = tables[0] if direction == "rising" else 1 - tables[0]
    there = ~np.isnan(values).all(-1)
    found = [
        stats.boundary(2.0**levels, table[r], direction, confidence) for table, r in zip(values, there, strict=True)
    ]
    hits = sum(covers(b.low, b.high, k) for b, k in zip(found, 2.0 ** tables[1], strict=True))
    return Outcome(hits / len(found), len(found), *median_of([width_ratio(b.low, b.high, b.brackets) for b in found]))


Draw = Callable[[Rng, np.ndarray, int], Tables]
"""(generator, grid, runs) -> tables."""
Widest = dict[int, float] | dict[int, None]
"""Replicates -> the promised width ratio. None if the truth leaves an end open."""
EVEN: Widest = {3: 3.5, 5: 2.2, 10: 2.1}
"""For an even grid. Three replicates hardly know their spread: t is 4.3."""


def covering(
    name: str,
    grid: str,
    draw: Draw,
    bound: float = 0.94,
    widest: float | None = None,
    direction: Literal["rising", "falling"] = "rising",
    confidence: float = 0.95,
) -> Scenario:
    """Coverage and width of the intervals of boundaries in these tables."""
    levels = GRIDS[grid]

    def run(n_runs: int, rng: Rng) -> Outcome:
        return covered(levels, draw(rng, levels, n_runs), direction, confidence)

    return Scenario(f"boundary: {name}", "coverage", bound, run, widest)


def apart(R: int, place: str, spread: float | None = None) -> Draw:
    return lambda rng, grid, n: replicated(rng, grid, R, n, place, spread)


def normal_spreads() -> Iterator[Scenario]:
    widest: Widest
    for grid, place, widest in (
        ("quickstart", "anywhere", {3: 3.5, 5: 2.6, 10: 2.2}),
        ("quickstart", "beside a level", {3: 4.0, 5: 2.6, 10: 2.4}),
        ("factor 2", "anywhere", EVEN),
        ("factor 2", "beside a level", EVEN),
        ("factor 4", "beside a level", EVEN),
        ("factor 16", "anywhere", {3: 3.5, 5: 3.1, 10: 2.1}),
        ("factor 16", "beside a level", EVEN),
        ("uneven", "beside a level", EVEN),
    ):
        for R, ratio in widest.items():
            yield covering(f"{grid}, {R} replicates, {place}", grid, apart(R, place), widest=ratio)
    for R, ratio in {3: 3.5, 5: 2.6, 10: 2.25}.items():
        yield covering(
            f"falling, {R} replicates", "quickstart", apart(R, "anywhere"), widest=ratio, direction="falling"
        )
    for R, bound, ratio in ((3, 0.92, 6.6), (5, 0.95, 4.2), (10, 0.97, 3.95)):
        name = f"uneven, spread of five steps, {R} replicates"
        yield covering(name, "uneven", apart(R, "beside a level", 5), bound, ratio)
    for R, ratio in {2: 67.0, 3: 7.4, 5: 2.9}.items():
        name = f"at 99 %, {R} replicates"
        yield covering(name, "factor 4", apart(R, "beside a level"), 0.975, ratio, confidence=0.99)


def agreeing() -> Iterator[Scenario]:
    for R, ratio in {3: 3.5, 4: 2.4, 5: 2.1, 10: 2.1}.items():  # on one side of the level: of three, every fourth run
        draw = apart(R, "beside a level", 0.01)
        yield covering(f"all at one level, {R} replicates", "factor 4", draw, widest=ratio)
    for R, ratio in {3: 1.35, 4: 1.06, 5: 1.01, 10: 1.01}.items():
        draw = apart(R, "within a bracket", 0.01)
        yield covering(f"all in one bracket, {R} replicates", "factor 4", draw, widest=ratio)


def at_the_ends() -> Iterator[Scenario]:
    for R in (3, 5, 10):
        for place in ("beside the first", "beside the last"):
            yield covering(f"{R} replicates, {place}", "factor 4", apart(R, place))


def odd_spreads() -> Iterator[Scenario]:
    shapes: tuple[tuple[Shape, float, dict[int, tuple[float, float]]], ...] = (
        ("evenly spread", 5.0, {3: (0.91, 24.5), 5: (0.95, 15), 10: (0.97, 12.7)}),
        ("skewed", 1.7, {3: (0.94, 6.7), 5: (0.95, 4.6), 10: (0.97, 4.3)}),
        # all of one kind in 2^(1 - R) of runs: the other is not seen
        ("of two kinds", 2.0, {3: (0.73, 12.6), 5: (0.92, 6.3), 10: (0.965, 5.3)}),
    )
    for shape, spread, promised in shapes:
        for R, (bound, ratio) in promised.items():

            def draw(
                rng: Rng, grid: np.ndarray, n: int, R: int = R, shape: Shape = shape, spread: float = spread
            ) -> Tables:
                return shaped(rng, grid, R, n, shape, spread)

            yield covering(f"thresholds {shape}, {R} replicates", "long", draw, bound, ratio)


def bimodal_cells() -> Iterator[Scenario]:
    for grid, widest in (("quickstart", {3: 3.5, 5: 3.15, 10: 2.4}), ("factor 2", {3: 3.4, 5: 2.3, 10: 2.1})):
        for R, ratio in widest.items():

            def draw(rng: Rng, grid: np.ndarray, n: int, R: int = R) -> Tables:
                return by_lot(rng, grid, R, n, "beside a level")

            yield covering(f"bimodal cells, {grid}, {R} replicates", grid, draw, 0.96, ratio)
    for R, chance, longest in ((3, 0.55, None), (5, 0.55, None), (10, 0.55, None), (10, 0.75, None), (20, 0.75, 1.9)):

        def stays(rng: Rng, grid: np.ndarray, n: int, R: int = R, chance: float = chance) -> Tables:
            return unsettled(rng, grid, R, n, chance)

        yield covering(f"bimodal cells that stay at {chance:g}, {R} replicates", "factor 2", stays, widest=longest)


def with_gaps() -> Iterator[Scenario]:
    for R, ratio in {3: 3.55, 5: 2.65, 10: 2.4}.items():

        def draw(rng: Rng, grid: np.ndarray, n: int, R: int = R) -> Tables:
            return thinned(rng, replicated(rng, grid, R, n, "anywhere", None))

        yield covering(f"cells missing at random, {R} replicates", "factor 2", draw, widest=ratio)

    def five(rng: Rng, grid: np.ndarray, n: int) -> Tables:
        return thinned(rng, replicated(rng, grid, 5, n, "beside a level", None))

    name = "cells missing at random, falling, 5 replicates"
    yield covering(name, "quickstart", five, widest=4.1, direction="falling")


def invented() -> Iterator[Scenario]:
    for R in (3, 10):
        for direction in ("rising", "falling"):
            name = f"boundary: noise around 0 to .3, {R} replicates, {direction}"
            yield Scenario(name, "false claims", 0.05, noise_bounded(R, direction))
        yield Scenario(f"boundary: both ends closed, {R} replicates", "power", 0.8, closed(R))


def noise_bounded(R: int, direction: Literal["rising", "falling"]) -> Callable[[int, Rng], Outcome]:
    """Share of boundaries with two closed ends, on values that never reach one half but by noise."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = GRIDS["quickstart"]
        values = rng.uniform(0, 0.3, (n_runs, 1, 1)) + 0.1 * rng.standard_normal((n_runs, R, len(grid)))
        found = [stats.boundary(2.0**grid, table, direction) for table in values]
        return Outcome(sum(b.low is not None and b.high is not None for b in found) / n_runs, n_runs)

    return run


def closed(R: int) -> Callable[[int, Rng], Outcome]:
    """Share of intervals with two closed ends. The spread is up to half a step."""

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
        "bimodal, the same at each level": lambda rng, shape: bimodal(rng, shape, np.array(0.5)),
        "bimodal at three levels, then settled": lambda rng, shape: bimodal(
            rng, shape, np.array([0, 0.5, 0.5, 0.5, 1, 1])
        ),
        "bimodal, rising": lambda rng, shape: bimodal(rng, shape, np.linspace(0.05, 0.95, shape[2]), 0.0001),
    }
    for name, draw in nulls.items():
        for R in (3, 5)[: 1 + (name == "flat, unequal spreads")]:  # the fewer bimodal replicates, the worse
            yield Scenario(f"monotone: {name}, {R} replicates", "false claims", 0.05, called_not_monotone(draw, R))

    def fall(rng: Rng, shape: tuple[int, int, int]) -> np.ndarray:
        return np.array([0.1, 0.5, 0.9, 0.9, 0.5, 0.5]) + 0.1 * rng.standard_normal(shape)

    for R, bound in ((3, 0.4), (5, 0.97)):
        yield Scenario(f"monotone: a fall by four sds, {R} replicates", "power", bound, called_not_monotone(fall, R))


# Drift --------------------------------------------------------------------------------------------------------------


def drifting(
    R: int, slope: float, place: str, wanted: str | None = None, n_budgets: int = 2
) -> Callable[[int, Rng], Outcome]:
    """Coverage of the drift over budgets that span a factor eight, or the share of a verdict."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = GRIDS["quickstart" if place == "anywhere" else "factor 2"]
        doublings = np.linspace(0, 3, n_budgets)
        own_slope = slope + rng.choice([0, 0.5], (n_runs, 1, 1)) * rng.standard_normal((n_runs, R, 1))
        middle = rng.uniform(3, 8, n_runs) if place == "anywhere" else np.full(n_runs, grid[4] + BESIDE)
        thresholds = middle[:, None, None] + own_slope * (doublings - 1.5 * (place == "anywhere"))
        thresholds = thresholds + rng.uniform(0, 1, (n_runs, 1, 1)) * rng.standard_normal((n_runs, R, 1))
        values = curves(rng, grid, thresholds, 0.3, 0.05).swapaxes(1, 2)  # (runs, B, R, L)
        all_rows = stats.boundary(2.0**grid, values.reshape(-1, len(grid)), "rising").brackets
        hits, widths = 0, []
        for k in range(0, len(all_rows), n_budgets * R):
            rows = [all_rows[j : j + R] for j in range(k, k + n_budgets * R, R)]
            found = stats.drift(2.0**doublings, rows)
            hits += covers(found.low, found.high, slope) if wanted is None else found.verdict in wanted
            closed = [b.high - b.low for b in found.slopes if b.low is not None and b.high is not None]
            whole = found.high - found.low if found.low is not None and found.high is not None else np.inf
            widths.append(whole / np.mean(closed) if closed else np.inf)
        return Outcome(hits / n_runs, n_runs, *median_of(widths))

    return run


def drifts() -> Iterator[Scenario]:
    for R, slope, place, n_budgets, ratio in (
        (3, 0.0, "beside", 4, 2.1),
        (3, -0.5, "anywhere", 2, 1.8),
        (5, -2.0, "beside", 2, None),  # to below the first level
    ):
        name = f"drift: {R} replicates, {slope:g}, {place}, {n_budgets} budgets"
        yield Scenario(name, "coverage", 0.95, drifting(R, slope, place, n_budgets=n_budgets), ratio)
    yield Scenario("drift: none, 3 replicates", "false claims", 0.05, drifting(3, 0.0, "anywhere", "rises falls"))
    yield Scenario("drift: falls by 2, 3 replicates", "power", 0.8, drifting(3, -2.0, "beside", "falls"))
    yield from of_two_kinds()


def two_kinds_told_apart(R: int, name: str, level: float) -> Callable[[int, Rng], Outcome]:
    """Share of runs in which two rows of thresholds drawn alike pass for different. Kinds lie three doublings apart.

    A drift between two budgets or, along compute on a fine grid, the ratio of compute that two arms need.
    """

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = GRIDS[name]
        middle = rng.uniform(grid[0] + 2, grid[-1] - 2, n_runs)
        thresholds = middle[:, None, None] + rng.choice([-1.5, 1.5], (n_runs, 2, R))
        values = curves(rng, grid, thresholds, 0.05, 0.03)  # (runs, 2, R, L)
        all_rows = stats.boundary(2.0**grid, values.reshape(-1, len(grid)), "rising").brackets
        hits = 0
        for k in range(0, len(all_rows), 2 * R):
            found = stats.drift([1.0, 2.0], [all_rows[k : k + R], all_rows[k + R : k + 2 * R]], 1 - level)
            told = found.p_value is not None and found.p_value <= level
            assert (found.verdict in ("rises", "falls")) == told, "p goes with the interval"
            hits += told
        return Outcome(hits / n_runs, n_runs)

    return run


def of_two_kinds() -> Iterator[Scenario]:
    for what, name in (("drift", "factor 2"), ("multiplier", "quarter of a decade")):
        for R in (2, 3, 5, 10):
            for level in (0.05, 0.005):
                yield Scenario(
                    f"{what}: none, {R} replicates of two kinds, at {level:.1%}",
                    "false claims",
                    level,
                    two_kinds_told_apart(R, name, level),
                )


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
    """A is ahead at the first level, then they are alike. One false finding for B is a false crossover."""
    a = 0.5 * (np.arange(shape[2]) == 0) + 0.05 * rng.standard_normal(shape)
    return a, 0.05 * rng.standard_normal(shape)


def ahead_always(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A rises earlier in every replicate. Alike at chance before, and at the ceiling after."""
    times = shape[2] / 2 + rng.standard_normal((shape[0], shape[1]))
    grid = np.arange(float(shape[2]))
    return curves(rng, grid, times - 1, 0.3, 0.02), curves(rng, grid, times + 1, 0.3, 0.02)


def reversed_arms(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return ahead_always(rng, shape)[::-1]


def alike_by_lot(rng: Rng, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return bimodal(rng, shape, np.array(0.5)), bimodal(rng, shape, np.array(0.5))


def crossing(
    R: int, place: str, ask: Literal["claims", "all", "power"], spread: float | None = None
) -> Callable[[int, Rng], Outcome]:
    """A learns early, up to .7, B later, up to 1, both from chance.

    Coverage of claimed crossings (`claims`) or of all intervals, bounds included (`all`); or the share of claims (`power`).
    """

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
        if ask == "all":
            claimed = list(zip(found, 2.0**truth, strict=True))
        hits = sum(covers(c.low, c.high, k) for c, k in claimed)
        widths = [width_ratio(c.low, c.high, c.brackets) for c, _ in claimed]
        return Outcome(hits / len(claimed), len(claimed), *median_of(widths))

    return run


def crossing_at_once(R: int, by_lot: bool) -> Callable[[int, Rng], Outcome]:
    """Coverage of claimed crossings. Each arm jumps (.1 doublings wide) at a place of its own in each replicate, on a grid in steps of 4.

    `by_lot`: B comes one and a half steps early or late, as a coin falls. Then every interval counts, because the claims of three
    replicates are just those that fell alike.
    """

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = 2 * np.arange(6.0)
        step = step_of(grid)
        truth = rng.uniform(grid[1], grid[-2], n_runs)
        spread = step * rng.uniform(0.1, 1.2, (n_runs, 1))
        a_at, b_at = truth[:, None] + spread * rng.standard_normal((2, n_runs, R))
        if by_lot:
            b_at = truth[:, None] + 1.5 * step * rng.choice([-1.0, 1.0], (n_runs, R))
        a = 0.7 * curves(rng, grid, a_at - 2.5 * step, 0.1, 0.02)
        found = crossings(grid, (a, curves(rng, grid, b_at, 0.1, 0.02)))
        said = [(c, k) for c, k in zip(found, 2.0**truth, strict=True) if by_lot or c.verdict == "crosses"]
        return Outcome(sum(covers(c.low, c.high, k) for c, k in said) / len(said), len(said))

    return run


def crossovers() -> Iterator[Scenario]:
    for R in (3, 10):
        for name, draw in (("alike, onset times", onsets), ("A ahead at first, then alike", ahead_at_first)):
            yield Scenario(f"crossover: {name}, {R} replicates", "false claims", 0.05, falsely_crossed(draw, R))
    for name, draw in (
        ("alike and bimodal", alike_by_lot),
        ("A always ahead", ahead_always),
        ("B always ahead", reversed_arms),
    ):
        yield Scenario(f"crossover: {name}, 3 replicates", "false claims", 0.05, falsely_crossed(draw, 3))
    widest: Widest
    for place, ask, widest in (
        ("anywhere", "claims", {3: 3.15, 5: 2.2, 10: 2.1}),
        ("beside a level", "claims", EVEN),
        ("beside a level", "all", {3: 3.7, 5: 2.2, 10: 2.1}),
        ("beside the last", "all", {3: None, 5: None, 10: None}),
    ):
        for R, ratio in widest.items():
            name = f"crossover: {R} replicates, {place}" + (", claimed or not" if ask == "all" else "")
            yield Scenario(name, "coverage", 0.94, crossing(R, place, ask), ratio)
    for R in (3, 5, 10):
        yield Scenario(f"crossover: arms that jump, {R} replicates", "coverage", 0.93, crossing_at_once(R, False))
    for R, bound in (
        (3, 0.74),
        (5, 0.92),
        (10, 0.95),
    ):  # three replicates can agree by chance
        yield Scenario(f"crossover: bimodal, {R} replicates", "coverage", bound, crossing_at_once(R, True))
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
    """Log-normal onsets, sd .2 to 1 in natural log, and their median. 10-40 % come after the last look."""
    sd = rng.uniform(0.2, 1, n_runs) / np.log(2)
    median = grid[-1] + sd * special.ndtri(rng.uniform(0.1, 0.4, n_runs))
    return median[:, None] + sd[:, None] * rng.standard_normal((n_runs, R)), median


def skill_covered(per_decade: float, R: int) -> Callable[[int, Rng], Outcome]:
    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = looks(per_decade, 12)
        times, median = onset_times(rng, grid, R, n_runs)
        return covered(grid, (curves(rng, grid, times, 0.1, 0.05), median))

    return run


def skill_met(per_decade: float, R: int) -> Callable[[int, Rng], Outcome]:
    """As `skill_covered`, with looks enough for every replicate to learn."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = looks(per_decade, 24)
        times, median = onset_times(rng, grid[:12], R, n_runs)
        return covered(grid, (curves(rng, grid, times, 0.1, 0.05), median))

    return run


def lots_covered(per_decade: float, R: int) -> Callable[[int, Rng], Outcome]:
    """Onsets of two kinds, one and a half looks or more to either side of the median, as a coin falls."""

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = looks(per_decade, 16)
        median, off = rng.uniform(grid[4], grid[-5], n_runs), step_of(grid) * rng.uniform(1.5, 3, n_runs)
        times = median[:, None] + off[:, None] * rng.choice([-1.0, 1.0], (n_runs, R))
        return covered(grid, (curves(rng, grid, times, 0.1, 0.05), median))

    return run


def curve_covered(R: int, leaves: bool) -> Callable[[int, Rng], Outcome]:
    """Kaplan-Meier at its worst look, some replicates leaving early or none.

    After the last replicate has left nothing is claimed. That counts as covering.
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
            steps = found.steps[1:]
            hits[k, : len(steps)] = [s.low <= p <= s.high for s, p in zip(steps, share[: len(steps)], strict=True)]
        return Outcome(float(hits.mean(0).min()), n_runs)

    return run


def reached_covered(R: int) -> Callable[[int, Rng], Outcome]:
    """Coverage of the share of begun replicates that learn for good, at the worst look.

    Three in ten diverge, before or after learning. Half are half done or have not begun, and may yet diverge.
    """

    def run(n_runs: int, rng: Rng) -> Outcome:
        grid = looks(4, 8)
        truth = 0.7 * special.ndtr((grid - grid[4] + 0.3) / (0.8 / np.log(2)))
        onset = grid[4] - 0.3 + 0.8 / np.log(2) * rng.standard_normal((n_runs, R))
        diverges, under_way = np.where(
            rng.random((2, n_runs, R)) < [[[0.3]], [[0.5]]], rng.integers(-1, 7, (2, n_runs, R)), 7
        )  # the last look before
        there = np.arange(8) <= np.minimum(diverges, under_way)[..., None]
        values = np.where(there, (grid >= onset[..., None]).astype(float), np.nan)
        hits = np.ones((n_runs, len(grid)))
        for k, (table, lost) in enumerate(zip(values, diverges < under_way, strict=True)):
            found = survival.kaplan_meier(*survival.onsets(2.0**grid, table, lost), 2.0**grid)
            steps = found.steps[1:] if found else ()
            hits[k, : len(steps)] = [s.low <= p <= s.high for s, p in zip(steps, truth[: len(steps)], strict=True)]
        return Outcome(float(hits.mean(0).min()), n_runs)

    return run


def to_skill() -> Iterator[Scenario]:
    for per_decade, name, widest in (
        (4.0, "four looks a decade", {3: 5.8, 5: 3.45, 10: 3.2}),
        (1 / np.log10(2), "looks a factor 2 apart", {3: 3.6, 5: 3.2, 10: 3.2}),
    ):
        for R, ratio in widest.items():
            named, every = f"{name}, {R} replicates", f"all get there, {name}, {R} replicates"
            yield Scenario(f"compute to skill: {named}", "coverage", 0.94, skill_covered(per_decade, R))
            yield Scenario(f"compute to skill: {every}", "coverage", 0.94, skill_met(per_decade, R), ratio)

    for R, bound in ((3, 0.74), (5, 0.92), (10, 0.95)):
        yield Scenario(f"compute to skill: of two kinds, {R} replicates", "coverage", bound, lots_covered(4.0, R))


def survivals() -> Iterator[Scenario]:
    for R in (3, 5, 10, 20):
        yield Scenario(f"survival: worst look, {R} replicates", "coverage", 0.945, curve_covered(R, False))
    for R in (5, 10):
        yield Scenario(
            f"survival: worst look, {R} replicates, some leave early",
            "coverage",
            0.945,
            curve_covered(R, True),
        )
    for R in (5, 10):
        name = f"survival: worst look, {R} replicates, some diverge, some are half done"
        yield Scenario(name, "coverage", 0.945, reached_covered(R))


SURVIVAL = tuple(survivals())
BOUNDARIES = (
    *normal_spreads(),
    *agreeing(),
    *at_the_ends(),
    *odd_spreads(),
    *bimodal_cells(),
    *with_gaps(),
    *invented(),
    *monotonicity(),
    *drifts(),
    *crossovers(),
    *to_skill(),
)
SCENARIOS = (*BOUNDARIES, *SURVIVAL)
