"""The best size for a budget: a known law, hand-computed parabolas, simulated studies, and degenerate grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulate_frontier import EXPONENT, SCENARIOS, best_size, study
from simulation import RUNS_IN_TESTS, Scenario

from orchestrator.stats.frontier import isoflop


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_simulated_truth(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


# --- parabolas ---------------------------------------------------------------------------------------------------------


def test_a_parabola_gives_back_its_vertex_tokens_and_exponent() -> None:
    """Loss 2 + (log N - log N_opt)^2 / 100 with N_opt = 1e7 (C / 1e17)^.6 and D = C / (7 N)."""
    rows = []
    for C in (1e17, 1e18, 1e19):
        best = 1e7 * (C / 1e17) ** 0.6
        for factor in (0.2, 0.5, 1.1, 2.5, 5.0):
            N = best * factor
            rows.append((N, C / 7 / N, 2 + math.log(factor) ** 2 / 100, C))
    found = isoflop(*np.array(rows).T)
    assert found.exponent == pytest.approx(0.6)
    for budget, C in zip(found.budgets, (1e17, 1e18, 1e19), strict=True):
        assert budget.verdict == "minimum" and budget.n_optimal == pytest.approx(1e7 * (C / 1e17) ** 0.6)
        assert budget.compute == C
        assert budget.tokens_per_parameter == pytest.approx(C / 7 / budget.n_optimal**2, rel=1e-6)


def test_fiellers_interval_is_the_hand_computed_one() -> None:
    """Loss 2 + z^2 / 2 at z = -1.5, -.5, .5, 1.5, and an error that no parabola can follow: one degree of freedom."""
    z, e = np.array([-1.5, -0.5, 0.5, 1.5]), 0.01 * np.array([1, -3, 3, -1])  # e is orthogonal to 1, z and z^2
    found = isoflop(np.exp(z), np.exp(-z), 2 + z**2 / 2 + e, np.ones(4)).budgets[0]
    assert found.n_optimal == pytest.approx(1)
    # All x with |0 + x| <= t s sqrt(v11 + 4 x^2 v22): v11 = 1/5, v22 = 1/4, s^2 = 20e-4; then the parabola's own error.
    ts2 = 12.7062**2 * 0.002
    x = math.sqrt(ts2 / 5 / (1 - ts2)) + 0.1 * 1.5**2 / 10
    assert found.high is not None and found.low is not None
    assert math.log(found.high) == pytest.approx(x, rel=1e-4) and math.log(found.low) == pytest.approx(-x, rel=1e-4)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "minimum"), (-3.0, "below"), (3.0, "beyond"), (-20.0, "below"), (20.0, "beyond")]
)
def test_an_optimum_outside_the_sizes_is_no_minimum(shift: float, verdict: str) -> None:
    z = np.array([-2.0, -1, 0, 1, 2]) * math.log(2)
    found = isoflop(np.exp(z), np.exp(-z), 2 + 0.01 * (z - shift) ** 2, np.ones(5)).budgets[0]
    assert found.verdict == verdict
    assert (found.n_optimal is None) == (verdict != "minimum") and (found.low is None) == (verdict != "minimum")


def test_a_hill_and_a_zigzag_are_no_minimum() -> None:
    z = np.arange(5.0)
    hill = isoflop(np.exp(z), np.exp(-z), 2 - 0.01 * (z - 2.1) ** 2, np.ones(5)).budgets[0]
    assert hill.n_optimal is None
    zigzag = isoflop(np.exp(z), np.exp(-z), np.array([2, 2.2, 1.99, 2.2, 2]), np.ones(5)).budgets[0]
    assert zigzag.verdict == "unclear" and zigzag.n_optimal is None


def test_sizes_far_from_the_best_one_do_not_bend_the_parabola() -> None:
    C = 1e20
    wide = study([C], (4.0 ** np.arange(-6, 7)).tolist())
    found = isoflop(*wide[:4]).budgets[0]
    near = isoflop(*study([C], (4.0 ** np.arange(-2, 3)).tolist())[:4]).budgets[0]
    assert len(found.sizes) == 13 and found.n_optimal == pytest.approx(near.n_optimal)
    assert found.n_optimal is not None and abs(math.log(found.n_optimal / best_size(C))) < 0.08
    sparse = isoflop(*study([C], [1 / 400, 1 / 20, 1, 20, 400])[:4]).budgets[0]
    close = isoflop(*study([C], [1 / 20, 1, 20])[:4]).budgets[0]
    assert sparse.n_optimal == pytest.approx(close.n_optimal)  # the neighbours of the best are always kept


@pytest.mark.parametrize("n_sizes", [0, 1, 2])
def test_fewer_than_three_sizes_give_nothing(n_sizes: int) -> None:
    data = study([1e19, 1e20], [0.5, 1.0, 2.0][:n_sizes], 3)
    found = isoflop(*(data[:4] if n_sizes else np.empty((4, 0))))
    assert found.exponent is None
    assert all(b.verdict == "missing" and b.n_optimal is None for b in found.budgets)


def test_three_sizes_once_have_a_minimum_and_no_interval() -> None:
    found = isoflop(*study([1e19, 1e20], [0.4, 1.0, 2.0])[:4])
    assert all(b.verdict == "minimum" and b.low is None and b.high is None for b in found.budgets)
    assert found.exponent == pytest.approx(EXPONENT, abs=0.02) and found.low is None


def test_one_budget_has_no_exponent() -> None:
    data = study([1e19], [0.25, 0.5, 1, 2, 4], 2)
    loss = np.where(np.arange(10) == 3, np.nan, data[2])
    found = isoflop(data[0], data[1], loss, data[3], data[4].tolist())
    assert found.exponent is None
    assert found.budgets[0].verdict == "minimum"
    nothing = isoflop(data[0], data[1], np.full(10, np.nan), data[3])
    assert nothing.budgets[0].verdict == "missing"


def test_budgets_that_differ_by_a_step_are_one_budget() -> None:
    data = study([1e19], [0.25, 0.5, 1, 2, 4])
    found = isoflop(data[0], data[1], data[2], data[3] * np.array([1, 1.005, 0.995, 1.009, 1]))
    assert len(found.budgets) == 1 and found.budgets[0].verdict == "minimum"


def test_lengths_and_signs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry a trial"):
        isoflop([1, 2], [1, 2], [1, 2], [1])
    with pytest.raises(ValueError, match="positive"):
        isoflop([1, 2], [1, 2], [1, 2], [1, -1])
