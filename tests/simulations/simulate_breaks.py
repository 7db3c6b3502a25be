"""Simulated truths for breaks: smooth curves, planted jumps and hinges, and thresholded scores.

Scores run from 0 to 1 over the cut, so noise is a share of the whole change. Every replicate has an offset (sd .05). By default
runs are dealt evenly over 4, 5, 10 replicates and 8, 10, 12 scales. The noise is then drawn log-uniformly between .005 and
.1, and the place of a transition uniformly along the cut. Results: docs/statistics.md, "Breaks".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import special
from simulation import Outcome, Scenario

from orchestrator.stats import break_models, breaks

Draw = np.random.Generator
Truth = Callable[[Draw, int, int], tuple[np.ndarray, np.ndarray]]
"""(generator, runs N, scales S) -> curves (N, S) from 0 to 1, and the place of the break (N,), NaN for none."""
Noise = Callable[[Draw, np.ndarray, int, np.ndarray], np.ndarray]
"""(generator, curves (N, S), replicates R, noise (N,)) -> scores (N, R, S)."""

STEPS_TO_Z = 2 * np.log(9)
"""10-90 % of a logistic, in units of its scale."""
OFFSET = 0.05


# --- truths ------------------------------------------------------------------------------------------------------------


def from_0_to_1(curve: np.ndarray) -> np.ndarray:
    return (curve - curve.min(1, keepdims=True)) / np.ptp(curve, axis=1, keepdims=True)


def smooth(shape: Callable[[np.ndarray, np.ndarray], np.ndarray], low: float = 0.0, high: float = 1.0) -> Truth:
    """Curves of shape(u (N, S), t (N, 1)): u the scale in grid steps, t uniform from low to high, in shares of the cut."""

    def truth(draw: Draw, n: int, S: int) -> tuple[np.ndarray, np.ndarray]:
        u, t = np.broadcast_to(np.arange(S, dtype=float), (n, S)), draw.uniform(low, high, (n, 1)) * (S - 1)
        return from_0_to_1(shape(u, t)), np.full(n, np.nan)

    return truth


def logistic(width: float) -> Truth:
    return smooth(lambda u, t: special.expit((u - t) * STEPS_TO_Z / width))


LINE = smooth(lambda u, t: u)
POWER_LAW = smooth(lambda u, t: -np.exp(-(0.1 + t / (u.shape[1] - 1)) * u))  # exponents .1 to 1.1 a grid step
SATURATION = smooth(
    lambda u, t: -np.exp(-np.exp(0.7 * (u - t)))
)  # exponential approach; the scale doubles at each step
QUADRATIC = smooth(lambda u, t: (u - t) ** 2, low=-0.3, high=0.5)
BEND = smooth(lambda u, t: np.logaddexp(0, (u - t) * STEPS_TO_Z / 3), low=0.15, high=0.85)
STAIRS = smooth(lambda u, t: sum(special.expit((u - q * u.shape[1]) * STEPS_TO_Z / 3) for q in (0.25, 0.75)))


def nothing(draw: Draw, n: int, S: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((n, S)), np.full(n, np.nan)


def odd_scale(draw: Draw, n: int, S: int) -> tuple[np.ndarray, np.ndarray]:
    """A line of height 1 from which one scale lies off by .5."""
    curve = np.arange(S) / (S - 1) + 0.5 * (np.arange(S) == draw.integers(1, S - 1, (n, 1)))
    return curve, np.full(n, np.nan)


def jump(share: float) -> Truth:
    """A jump of this share of the change, at a random gap with two scales on either side. The rest is a straight line."""

    def truth(draw: Draw, n: int, S: int) -> tuple[np.ndarray, np.ndarray]:
        first = draw.integers(2, S - 1, (n, 1))
        return (1 - share) * np.arange(S) / (S - 1) + share * (np.arange(S) >= first), first[:, 0] - draw.random(n)

    return truth


def hinge(draw: Draw, n: int, S: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat, then a straight rise, or the reverse. The corner lies in the middle half."""
    corner = draw.uniform(0.25, 0.75, (n, 1)) * (S - 1)
    u = np.arange(S)
    return from_0_to_1(np.where(draw.random((n, 1)) < 0.5, np.maximum(u, corner), np.minimum(u, corner))), corner[:, 0]


# --- noise -------------------------------------------------------------------------------------------------------------


def even(draw: Draw, curve: np.ndarray, R: int, sd: np.ndarray) -> np.ndarray:
    n, S = curve.shape
    offset = OFFSET * draw.standard_normal((n, R, 1))
    return curve[:, None] + offset + sd[:, None, None] * draw.standard_normal((n, R, S))


def bistable_cells(draw: Draw, curve: np.ndarray, R: int, sd: np.ndarray) -> np.ndarray:
    """Every trial is up or down. The curve is the share of those that are up."""
    up = draw.random((len(curve), R, curve.shape[1])) < curve[:, None]
    return up + 0.01 * draw.standard_normal(up.shape)


def jumping_apart(draw: Draw, curve: np.ndarray, R: int, sd: np.ndarray) -> np.ndarray:
    """Every replicate jumps once, at its own place. The curve is the share of those that have jumped."""
    up = draw.random((len(curve), R, 1)) < curve[:, None]
    return up + 0.01 * draw.standard_normal(up.shape)


def loud_in_the_middle(draw: Draw, curve: np.ndarray, R: int, sd: np.ndarray) -> np.ndarray:
    """Noise up to .3 at half of the rise, .01 at its ends."""
    scores = even(draw, curve, R, np.full(len(curve), 0.01))
    return scores + 1.2 * (curve * (1 - curve))[:, None] * draw.standard_normal(scores.shape)


def wandering(draw: Draw, curve: np.ndarray, R: int, sd: np.ndarray) -> np.ndarray:
    """A random walk along every replicate, as of trials of one trunk, and a slope of its own."""
    scores = even(draw, curve, R, sd / 2)
    own_slope = 0.1 * draw.standard_normal((len(curve), R, 1)) * np.linspace(0, 1, curve.shape[1])
    return scores + own_slope + sd[:, None, None] * np.cumsum(draw.standard_normal(scores.shape), 2)


# --- played ------------------------------------------------------------------------------------------------------------


class Design(NamedTuple):
    """None: dealt evenly, or drawn, as in the module's docstring."""

    replicates: int | None = None
    scales: int | None = None
    sd: float | None = None


DEALT = Design()


class Part(NamedTuple):
    found: list[breaks.Break]
    places: np.ndarray


def parts(truth: Truth, noise: Noise, design: Design, n_runs: int, draw: Draw) -> Iterator[Part]:
    cells = [
        (R, S)
        for R in ((4, 5, 10) if design.replicates is None else (design.replicates,))
        for S in ((8, 10, 12) if design.scales is None else (design.scales,))
    ]
    for k, (R, S) in enumerate(cells):
        n = n_runs * (k + 1) // len(cells) - n_runs * k // len(cells)
        curve, places = truth(draw, n, S)
        sd = np.exp(draw.uniform(np.log(0.005), np.log(0.1), n)) if design.sd is None else np.full(n, design.sd)
        yield Part(breaks.find_breaks(np.arange(S, dtype=float), noise(draw, curve, R, sd)), places)


def said(verdict: str, truth: Truth, noise: Noise = even, design: Design = DEALT) -> Callable[[int, Draw], Outcome]:
    """Share of runs with this verdict."""

    def run(n_runs: int, draw: Draw) -> Outcome:
        counts = [sum(b.verdict == verdict for b in part.found) for part in parts(truth, noise, design, n_runs, draw)]
        return Outcome(sum(counts) / n_runs, n_runs)

    return run


def bent(truth: Truth, design: Design) -> Callable[[int, Draw], Outcome]:
    """Share of runs with p_straight below ALPHA."""

    def run(n_runs: int, draw: Draw) -> Outcome:
        found = [b for part in parts(truth, even, design, n_runs, draw) for b in part.found]
        return Outcome(
            sum(b.p_straight is not None and b.p_straight < break_models.ALPHA for b in found) / n_runs, n_runs
        )

    return run


def moved(design: Design) -> Callable[[int, Draw], Outcome]:
    """Share of runs in which noise alone counts as movement."""

    def run(n_runs: int, draw: Draw) -> Outcome:
        found = [b for part in parts(nothing, even, design, n_runs, draw) for b in part.found]
        return Outcome(sum(b.moves for b in found) / n_runs, n_runs)

    return run


def located(truth: Truth, design: Design) -> Callable[[int, Draw], Outcome]:
    """Share of found breaks that lie within their bracket, and its width in grid steps."""

    def run(n_runs: int, draw: Draw) -> Outcome:
        hits, widths = [], []
        for found, places in parts(truth, even, design, n_runs, draw):
            for b, place in zip(found, places, strict=True):
                if b.low is not None and b.high is not None:
                    hits.append(b.low <= place <= b.high)
                    widths.append(b.high - b.low)
        return Outcome(float(np.mean(hits)), len(hits), float(np.median(widths)))

    return run


# --- thresholded scores ------------------------------------------------------------------------------------------------

Losses = Callable[[Draw, int, int], np.ndarray]
"""(generator, runs N, scales S) -> mean token loss (N, S), nats."""


def logistic_loss(draw: Draw, n: int, S: int) -> np.ndarray:
    """10-90 % in five steps of ten scales."""
    u = 9 * np.arange(S) / (S - 1)
    return 0.01 + 0.9 * special.expit(-(u - draw.uniform(2, 4, (n, 1))) * STEPS_TO_Z / 5)


def jumping_loss(draw: Draw, n: int, S: int) -> np.ndarray:
    return 0.7 - 0.2 * np.arange(S) / (S - 1) - 0.4 * (np.arange(S) >= draw.integers(2, S - 1, (n, 1)))


class Skill(NamedTuple):
    """A skill with answers of `length` tokens, measured on sequences of unequal difficulty."""

    losses: Losses
    length: int
    replicates: int = 5
    scales: int = 10
    sequences: int = 256


def emerge(skill: Skill, n_runs: int, draw: Draw) -> list[breaks.Emergence]:
    R, S = skill.replicates, skill.scales
    offset, noise = 0.05 * draw.standard_normal((n_runs, R, 1)), 0.05 * draw.standard_normal((n_runs, R, S))
    loss = skill.losses(draw, n_runs, S)[:, None] * np.exp(offset + noise)
    x = np.arange(S, dtype=float)
    difficulty = np.exp(0.3 * special.ndtri((np.arange(9) + 0.5) / 9))
    p = np.exp(-loss[..., None] * difficulty)
    exact = draw.binomial(skill.sequences, (p**skill.length).mean(-1)) / skill.sequences
    scores = {"loss": loss * difficulty.mean(), "expected_accuracy": p.mean(-1), "exact_match": exact}
    found = [breaks.find_breaks(x, y) for y in scores.values()]
    return [breaks.weigh(dict(zip(scores, each, strict=True))) for each in zip(*found, strict=True)]


def told(verdict: str, skill: Skill) -> Callable[[int, Draw], Outcome]:
    """Share of runs with this verdict on a skill."""

    def run(n_runs: int, draw: Draw) -> Outcome:
        return Outcome(sum(e.verdict == verdict for e in emerge(skill, n_runs, draw)) / n_runs, n_runs)

    return run


# --- the scenarios -----------------------------------------------------------------------------------------------------

EXACT, FEW = Design(10, 12, 0.005), Design(4, 8)

SCENARIOS = (
    Scenario("a straight line is no break", "false claims", 0.02, said("break", LINE)),
    Scenario("a power law is no break", "false claims", 0.02, said("break", POWER_LAW)),
    Scenario("an exponential approach is no break", "false claims", 0.02, said("break", SATURATION)),
    Scenario("a quadratic is no break", "false claims", 0.02, said("break", QUADRATIC)),
    Scenario("a logistic three steps wide is no break", "false claims", 0.02, said("break", logistic(3))),
    Scenario("a logistic five steps wide is no break", "false claims", 0.02, said("break", logistic(5))),
    Scenario("a bend three steps wide is no break", "false claims", 0.02, said("break", BEND)),
    Scenario("nor is a precise one", "false claims", 0.02, said("break", BEND, even, EXACT)),
    Scenario("two transitions are no break", "false claims", 0.05, said("break", STAIRS, even, Design(5, 10, 0.06))),
    Scenario("one odd scale is no break", "false claims", 0.05, said("break", odd_scale)),
    Scenario("noise is no break", "false claims", 0.01, said("break", nothing)),
    Scenario("noise is no movement", "false claims", 0.05, moved(DEALT)),
    Scenario("a straight line is straight", "false claims", 0.05, bent(LINE, Design(3, 8))),
    Scenario("bistable cells are no break", "false claims", 0.05, said("break", logistic(3), bistable_cells, FEW)),
    Scenario("jumps at places of their own are no break", "false claims", 0.05, said("break", logistic(3), jumping_apart, FEW)),
    Scenario("noise amid the transition is no break", "false claims", 0.05, said("break", logistic(3), loud_in_the_middle)),
    Scenario("wandering replicates are no break", "false claims", 0.02, said("break", LINE, wandering)),
    Scenario("a wandering transition is no break", "false claims", 0.02, said("break", logistic(3), wandering)),
    Scenario("a smooth curve is called smooth", "power", 0.9, said("smooth", logistic(5), even, Design(5, 10, 0.05))),
    Scenario("half a jump is not called smooth", "false claims", 0.03, said("smooth", jump(0.5), even, Design(5, 10, 0.1))),
    Scenario("half a jump is found", "power", 0.88, said("break", jump(0.5), even, Design(5, 10, 0.05))),
    Scenario("half a jump is found with few data", "power", 0.75, said("break", jump(0.5), even, Design(4, 8, 0.05))),
    Scenario("a jump is found in noise", "power", 0.85, said("break", jump(1.0), even, Design(5, 10, 0.1))),
    Scenario("a hinge is found in little noise", "power", 0.75, said("break", hinge, even, Design(5, 10, 0.01))),
    Scenario("a hinge is found by many replicates", "power", 0.7, said("break", hinge, even, Design(10, 12, 0.02))),
    Scenario("a jump lies in its bracket", "coverage", 0.95, located(jump(0.5), Design(5, 10, 0.05))),
    Scenario("a jump in noise lies in its bracket", "coverage", 0.95, located(jump(0.7), Design(4, 10, 0.1))),
    Scenario("a hinge lies in its bracket", "coverage", 0.95, located(hinge, Design(5, 10, 0.02))),
    Scenario("a hinge in noise lies in its bracket", "coverage", 0.93, located(hinge, Design(10, 12, 0.05))),
    Scenario("exact match makes no break", "false claims", 0.02, told("break", Skill(logistic_loss, 20))),
    Scenario("a jump of the loss is a break", "power", 0.9, told("break", Skill(jumping_loss, 20))),
)  # fmt: skip


def power_table(n_runs: int) -> str:
    """The power table of docs/statistics.md, "Breaks"."""
    levels = (0.005, 0.01, 0.02, 0.05, 0.1)
    lines = ["truth          R   S  " + "  ".join(f"sd {sd:<5}" for sd in levels)]
    for name, truth in {
        "jump of 1": jump(1.0),
        "jump of 1/2": jump(0.5),
        "jump of 1/4": jump(0.25),
        "hinge": hinge,
    }.items():
        for R, S in ((4, 8), (5, 10), (10, 12)):
            played = [
                Scenario(f"{name} {R} {S} {sd}", "power", 0.0, said("break", truth, even, Design(R, S, sd))).play(
                    n_runs
                )
                for sd in levels
            ]
            lines.append(f"{name:12} {R:3} {S:3}  " + "  ".join(f"{outcome.share:8.2f}" for outcome in played))
    return "\n".join(lines)


if __name__ == "__main__":
    print(power_table(2000))
