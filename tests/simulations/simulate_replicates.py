"""Simulated truths for replicates: their noise, many claims at once, one arm against another.

A bound of 0 on a coverage is measured, not promised. `python tests/simulations/calibration.py --only replicates` plays them at
length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special
from simulation import Outcome, Scenario

from orchestrator.stats import differences, multiplicity, replicates

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, n) -> the values of n replicates."""


def normal(mean: float, sd: float) -> Draw:
    """n normal values."""
    return lambda draw, n: mean + sd * draw.standard_normal(n)


def bimodal(share: float, sd: float) -> Draw:
    """Modes at .1 and .95; `share` of the replicates at .1."""
    return lambda draw, n: np.where(draw.random(n) < share, 0.1, 0.95) + sd * draw.standard_normal(n)


# --- how noisy? ---------------------------------------------------------------------------------------------------------


def spread_covered(what: str, n: int, cv: float) -> Callable[[int, np.random.Generator], Outcome]:
    """Coverage of the interval of the sd or the cv of n normal values of mean 1. An open end covers."""

    def run(n_runs: int, draw: np.random.Generator) -> Outcome:
        covered, told = 0, 0
        for _ in range(n_runs):
            found = replicates.noise((1 + cv * draw.standard_normal(n)).tolist())
            assert found is not None
            low, high = (found.sd_low, found.sd_high) if what == "sd" else (found.cv_low, found.cv_high)
            told += low is not None
            covered += low is not None and low <= cv and (high is None or cv <= high)
        return Outcome(covered / told, told)

    return run


def largest_covered(cvs: Sequence[float], n: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Coverage of the interval of the largest cv among normal cells of mean 1. An open end covers."""

    def run(n_runs: int, draw: np.random.Generator) -> Outcome:
        covered = 0
        for _ in range(n_runs):
            cells = 1 + np.array(cvs)[:, None] * draw.standard_normal((len(cvs), n))
            found = replicates.noisiest(cells.tolist())
            assert found is not None and found.noise.cv_low is not None
            covered += found.noise.cv_low <= max(cvs) and (
                found.noise.cv_high is None or max(cvs) <= found.noise.cv_high
            )
        return Outcome(covered / n_runs, n_runs)

    return run


def asked_of_equals(n: int) -> Callable[[int, np.random.Generator], Outcome]:
    """Six cells of cv .1: share of pooled squared cvs within a factor two of the truth."""

    def run(n_runs: int, draw: np.random.Generator) -> Outcome:
        hits = 0
        for _ in range(n_runs):
            found = replicates.noisiest((1 + 0.1 * draw.standard_normal((6, n))).tolist())
            assert found is not None and found.noise.cv is not None
            hits += 1 / 2 <= (found.noise.cv / 0.1) ** 2 <= 2
        return Outcome(hits / n_runs, n_runs)

    return run


NOISE = (
    *(
        Scenario(f"noise: {what} of {n}, cv {cv}", "coverage", 0.93, spread_covered(what, n, cv))
        for what, n, cv in (("sd", 3, 0.1), ("cv", 3, 0.05), ("cv", 3, 0.3), ("cv", 10, 0.5))
    ),
    *(
        Scenario(f"noise: the noisiest of {name}, {n} replicates", "coverage", 0.93, largest_covered(cvs, n))
        for n in (2, 3, 5, 10)
        for name, cvs in (
            ("six of .1", (0.1,) * 6),
            ("six of .3", (0.3,) * 6),
            ("one of .1 and five of .05", (0.1, *(0.05,) * 5)),
            ("one of .1 and five of .01", (0.1, *(0.01,) * 5)),
            ("thirty of .1", (0.1,) * 30),
        )
    ),
    *(
        Scenario(
            f"noise: asks six equal cells of {n} for the number they need, within a factor two",
            "power",
            bound,
            asked_of_equals(n),
        )
        for n, bound in ((3, 0.75), (5, 0.85), (10, 0.95))
    ),
)


# --- how many made it? -------------------------------------------------------------------------------------------------


def chosen_covered(p: float, n: int, alike: bool = False) -> Callable[[int, np.random.Generator], Outcome]:
    """Coverage of the probability of success in the cell nearest one half, among 18.

    `alike`: in every six cells along compute the replicates succeed together, as along one training run.
    """

    def run(n_runs: int, draw: np.random.Generator) -> Outcome:
        covered = 0
        for _ in range(n_runs):
            chances = np.repeat(draw.random((3, n)), 6, axis=0) if alike else draw.random((18, n))
            cells = (chances < p).astype(float)
            found = replicates.nearest_success(cells, 0.5, np.zeros(cells.shape, bool))
            assert found is not None
            covered += found[1].low <= p <= found[1].high
        return Outcome(covered / n_runs, n_runs)

    return run


SUCCESS = tuple(
    Scenario(
        f"success: of 18 cells of {p} the nearest to one half, {n} replicates{', alike' * alike}",
        "coverage",
        0.93,
        chosen_covered(p, n, alike),
    )
    for p in (0.2, 0.35, 0.8)
    for n in (3, 5, 10, 20)
    for alike in (False, True)
)


# --- many claims at once -----------------------------------------------------------------------------------------------

N_CLAIMS = 20
Counted = Callable[[multiplicity.Adjusted, np.ndarray, np.ndarray, np.ndarray], float]
"""(adjusted, truths, means, standard errors, all (claims,)) -> a share in one run."""


def claims(
    truths: np.ndarray, count: Counted, n: int = 5, shared: float = 0.0
) -> Callable[[int, np.random.Generator], Outcome]:
    """Means of n normal values each, correlated by `shared` between claims, tested against zero and corrected."""

    def run(n_runs: int, draw: np.random.Generator) -> Outcome:
        total = 0.0
        for _ in range(n_runs):
            own = draw.standard_normal((n, len(truths)))
            common = draw.standard_normal((n, 1))
            values = truths + np.sqrt(1 - shared) * own + np.sqrt(shared) * common
            means, errors = values.mean(0), values.std(0, ddof=1) / np.sqrt(n)
            p = 2 * special.stdtr(n - 1, -np.abs(means / errors))
            total += count(multiplicity.adjust(p.tolist()), truths, means, errors)
        return Outcome(total / n_runs, n_runs)

    return run


def _selected(found: multiplicity.Adjusted) -> np.ndarray:
    return np.array([claim.verdict == "selected" for claim in found.claims])


def _missed(
    truths: np.ndarray, means: np.ndarray, errors: np.ndarray, confidence: np.ndarray, n: int = 5
) -> np.ndarray:
    return np.abs(means - truths) > special.stdtrit(n - 1, 0.5 + confidence / 2) * errors


def false_discoveries(found: multiplicity.Adjusted, truths: np.ndarray, *_: np.ndarray) -> float:
    """Share of nulls among the selected. 0 if none is."""
    return float((_selected(found) & (truths == 0)).sum() / max(1, found.selected))


def false_coverage(found: multiplicity.Adjusted, truths: np.ndarray, means: np.ndarray, errors: np.ndarray) -> float:
    """Share of intervals that miss among the selected. 0 if none is."""
    confidence = np.array([claim.confidence for claim in found.claims])
    return float((_selected(found) & _missed(truths, means, errors, confidence)).sum() / max(1, found.selected))


def false_coverage_unadjusted(
    found: multiplicity.Adjusted, truths: np.ndarray, means: np.ndarray, errors: np.ndarray
) -> float:
    """The same with plain 95 % intervals, and the claims selected by p < .05."""
    chosen = 2 * special.stdtr(4, -np.abs(means / errors)) < 0.05
    return float((chosen & _missed(truths, means, errors, np.full(len(truths), 0.95))).sum() / max(1, chosen.sum()))


def false_coverage_plain_after_selection(
    found: multiplicity.Adjusted, truths: np.ndarray, means: np.ndarray, errors: np.ndarray
) -> float:
    """Selected properly, shown with plain 95 % intervals."""
    missed = _missed(truths, means, errors, np.full(len(truths), 0.95))
    return float((_selected(found) & missed).sum() / max(1, found.selected))


def misses_in_table(found: multiplicity.Adjusted, truths: np.ndarray, means: np.ndarray, errors: np.ndarray) -> float:
    """Share of intervals that miss over all rows, selected or not."""
    return float(_missed(truths, means, errors, np.array([claim.confidence for claim in found.claims])).mean())


def misses_among_others(
    found: multiplicity.Adjusted, truths: np.ndarray, means: np.ndarray, errors: np.ndarray
) -> float:
    """Share of intervals that miss among those not selected."""
    confidence = np.array([claim.confidence for claim in found.claims])
    others = ~_selected(found)
    return float((others & _missed(truths, means, errors, confidence)).sum() / max(1, others.sum()))


NULLS = np.zeros(N_CLAIMS)
MIXED = np.array([0.0] * 12 + [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 5.0, -3.0])
"""In standard deviations of one replicate."""
WEAK = np.array([0.0] * 10 + [0.5] * 5 + [1.0] * 5)

MULTIPLICITY = (
    Scenario("claims: false discoveries, mixed truths", "false claims", 0.05, claims(MIXED, false_discoveries)),
    Scenario("claims: false discoveries, weak truths", "false claims", 0.05, claims(WEAK, false_discoveries)),
    Scenario(
        "claims: false discoveries, correlated .5", "false claims", 0.05, claims(MIXED, false_discoveries, shared=0.5)
    ),
    Scenario(
        "claims: false discoveries, correlated .9", "false claims", 0.05, claims(WEAK, false_discoveries, shared=0.9)
    ),
    Scenario(
        "claims: any discovery of nothing", "false claims", 0.065, claims(NULLS, false_discoveries)
    ),  # .05 exactly
    Scenario(
        "claims: false coverage, mixed truths", "false claims", 0.06, claims(MIXED, false_coverage)
    ),  # close to .05
    Scenario("claims: false coverage, weak truths", "false claims", 0.05, claims(WEAK, false_coverage)),
    Scenario("claims: false coverage, correlated .5", "false claims", 0.06, claims(MIXED, false_coverage, shared=0.5)),
    Scenario("claims: misses over the whole table", "false claims", 0.05, claims(MIXED, misses_in_table)),
    Scenario("claims: misses among those not selected", "false claims", 0.05, claims(WEAK, misses_among_others)),
    Scenario(
        "claims: uncorrected intervals of p < .05 miss, weak truths",
        "power",
        0.2,
        claims(WEAK, false_coverage_unadjusted),
    ),
    Scenario(
        "claims: uncorrected intervals of p < .05 miss, all nulls",
        "power",
        0.6,
        claims(NULLS, false_coverage_unadjusted),
    ),
    Scenario(
        "claims: 95 % intervals of corrected ones miss",
        "power",
        0.06,
        claims(MIXED, false_coverage_plain_after_selection),
    ),
)


# --- one arm against another -------------------------------------------------------------------------------------------


def difference_covered(
    how: str, a: Draw, b: Draw, truth: float, n_a: int, n_b: int
) -> Callable[[int, np.random.Generator], Outcome]:
    """Coverage of the intervals. Runs without spread have none."""

    def run(n_runs: int, draw: np.random.Generator) -> Outcome:
        compare_arms = differences.paired_difference if how == "paired" else differences.welch_difference
        covered, told = 0, 0
        for _ in range(n_runs):
            found = compare_arms(a(draw, n_a).tolist(), b(draw, n_b).tolist())
            if found is None or found.low is None or found.high is None:
                continue
            told += 1
            covered += found.low <= truth <= found.high
        return Outcome(covered / told, told)

    return run


COMPARE = (
    *(
        Scenario(
            f"compare: {how} normal, {n} replicates",
            "coverage",
            0.93,
            difference_covered(how, normal(0.8, 0.1), normal(0.5, 0.1), 0.3, n, n),
        )
        for how in ("paired", "unpaired")
        for n in (3, 5, 10)
    ),
    *(
        Scenario(
            f"compare: unpaired normal, {n_a} of sd .3 and {n_b} of sd .05",
            "coverage",
            0.93,
            difference_covered("unpaired", normal(0.8, 0.3), normal(0.5, 0.05), 0.3, n_a, n_b),
        )
        for n_a, n_b in ((3, 3), (10, 3))
    ),
    Scenario(  # Welch's weak spot: few replicates where the spread is
        "compare: unpaired normal, 3 of sd .2 and 10 of sd .1",
        "coverage",
        0.91,
        difference_covered("unpaired", normal(0.8, 0.2), normal(0.5, 0.1), 0.3, 3, 10),
    ),
    *(
        Scenario(
            f"compare: {how}, {n} bimodal of {p_a} and {p_b} (measured)",
            "coverage",
            0.0,
            difference_covered(how, bimodal(1 - p_a, 0.05), bimodal(1 - p_b, 0.05), 0.85 * (p_a - p_b), n, n),
        )
        for how in ("paired", "unpaired")
        for n in (3, 5, 10, 20)
        for p_a, p_b in ((0.5, 0.8), (0.2, 0.8), (0.9, 0.99))
    ),
    *(
        Scenario(
            f"compare: unpaired, {n} bimodal of {p} and a steady arm (measured)",
            "coverage",
            0.0,
            difference_covered("unpaired", bimodal(1 - p, 0.05), normal(0.1, 0.05), 0.85 * p, n, n),
        )
        for n in (3, 5, 10, 20)
        for p in (0.5, 0.9)
    ),
)

SCENARIOS: tuple[Scenario, ...] = (*NOISE, *SUCCESS, *MULTIPLICITY, *COMPARE)
