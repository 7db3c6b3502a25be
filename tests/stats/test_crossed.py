"""Intervals over tasks and replicates: by hand, against a mixed model's components, on simulated truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference
from simulate_crossed import SCENARIOS
from simulation import RUNS_IN_TESTS

from orchestrator.stats.crossed import crossed

TABLE = np.array([[0.0, 0.25], [0.5, 0.5], [1.0, 0.75], [0.5, 0.75]])


def test_both_intervals_by_an_independent_computation() -> None:
    found = crossed(TABLE)
    assert found is not None and (found.n_units, found.n_replicates) == (4, 2)
    mean = TABLE.mean()
    replicates = reference.t.interval(0.95, 1, mean, reference.sem(TABLE.mean(axis=0)))
    units = reference.t.interval(0.95, 3, mean, reference.sem(TABLE.mean(axis=1)))
    assert found.mean == mean and found.over_replicates == pytest.approx(np.clip(replicates, 0, 1))
    half = np.hypot(replicates[1] - mean, units[1] - mean)
    assert found.over_both == pytest.approx((max(0, mean - half), min(1, mean + half)))


def test_what_cannot_be_known_is_left_out() -> None:
    assert crossed(np.full((3, 2), np.nan)) is None
    one = crossed(TABLE[:, :1])
    assert one is not None and one.over_replicates is None and one.over_both is None and one.mean == 0.5
    alike = crossed(np.zeros((5, 3)))
    assert alike is not None and alike.over_both is None  # no task solved: no spread, and no interval of width 0


def test_a_missing_cell_does_not_favour_its_replicate() -> None:
    additive = np.add.outer([0.1, 0.2, 0.3, 0.7], [0.0, 0.02, 0.05])
    holes = additive.copy()
    holes[3, 0] = holes[0, 2] = np.nan
    whole, partial = crossed(additive), crossed(np.vstack([holes, np.full(3, np.nan)]))
    assert whole is not None and partial is not None
    assert partial.mean == pytest.approx(whole.mean) and partial.n_units == 4
    assert partial.over_both == pytest.approx(whole.over_both, abs=1e-6)


def test_replicates_with_units_of_their_own_count_alike_whatever_their_units() -> None:
    table = np.array([[0.0, np.nan], [0.5, np.nan], [1.0, 0.75], [np.nan, 0.25]])
    found = crossed(table, own_units=True)
    assert found is not None and found.mean == 0.5 and found.over_replicates is None  # both means are one half
    half = reference.t.ppf(0.975, 3) * reference.sem([0.0, 0.5, 0.875, 0.25])
    assert found.over_both == pytest.approx((max(0, 0.5 - half), min(1, 0.5 + half)))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_intervals_cover(scenario) -> None:  # type: ignore[no-untyped-def]
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome, 3.0), outcome
