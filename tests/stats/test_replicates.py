"""The noise of replicates, how many succeed, and the command that plays simulated truths at length."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import calibration
import numpy as np
import pytest
from simulate_replicates import NOISE, SUCCESS
from simulation import RUNS_IN_TESTS, Outcome, Scenario

from orchestrator.stats import replicates
from trainers.streams import stream


@pytest.mark.parametrize("scenario", [s for s in (*NOISE, *SUCCESS) if "thirty" not in s.name], ids=lambda s: s.name)
def test_a_simulated_truth(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


# --- how noisy? ---------------------------------------------------------------------------------------------------------


def test_noise_of_three_values_computed_by_hand() -> None:
    found = replicates.noise([0.9, None, 1.0, 0.95])
    assert found is not None
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.95), pytest.approx(0.05))
    assert found.sd_low == pytest.approx(0.05 * math.sqrt(2 / 7.377759), rel=1e-6)  # chi-square table, 2 degrees
    assert found.sd_high == pytest.approx(0.05 * math.sqrt(2 / 0.0506356), rel=1e-5)
    assert found.cv == pytest.approx(0.05 / 0.95)
    assert found.cv_low is not None and found.cv_high is not None and found.cv_low < 0.0526 < found.cv_high


def test_the_interval_of_a_tiny_cv_is_that_of_the_sd_and_the_two_formulas_meet() -> None:
    for scale in (2e-3, 1.5e-3, 1e-3, 1e-6):
        found = replicates.noise([1 - scale, 1.0, 1 + scale])
        assert found is not None and found.sd_low is not None and found.sd_high is not None
        assert found.cv_low == pytest.approx(found.sd_low, rel=2e-3)
        assert found.cv_high == pytest.approx(found.sd_high, rel=2e-3)


def test_a_cv_is_missing_where_the_mean_may_be_zero_or_nothing_varies_or_one_value_is_all() -> None:
    assert replicates.noise([]) is None and replicates.noise([None, float("nan"), float("inf")]) is None
    one = replicates.noise([0.7])
    assert one == (1, 0.7, None, None, None, None, None, None)
    around_zero = replicates.noise([-1.0, 1.1, 0.2])
    assert around_zero is not None and around_zero.cv is None and around_zero.sd_high is not None
    still = replicates.noise([0.3, 0.1 + 0.2, 0.3])
    assert still is not None and (still.sd, still.cv, still.cv_high) == (0, 0, None)
    wild = replicates.noise([0.0, 0.1, 1.0])
    assert wild is not None and wild.cv is not None and wild.cv_low is not None and wild.cv_high is None  # unbounded


def test_no_number_that_is_not_finite_ever_comes_out() -> None:
    draw = stream("test", "finite")
    for _ in range(300):
        n = int(draw.integers(1, 8))
        values = (draw.normal(0, 1, n) * 10.0 ** draw.integers(-12, 12) + draw.integers(-1, 2)).tolist()
        found = replicates.noise(values)
        assert found is not None and all(math.isfinite(v) for v in found if v is not None)


def test_the_lost_stay_in_the_denominator_of_success_and_the_pending_do_not_enter_it() -> None:
    values = [0.9, 0.5, 0.4, None, 0.7, math.nan, None]
    found = replicates.success(values, 0.5, lost=[False, False, False, True, False, False, False])
    assert found is not None and (found.k, found.n, found.lost) == (3, 5, 1)
    assert (found.low, found.high) == (pytest.approx(0.2307, abs=1e-4), pytest.approx(0.8824, abs=1e-4))
    late = replicates.success([0.9, 0.2, 0.4], 0.5, lost=[True, True, False])  # lost after the budget that is asked for
    assert late is not None and (late.k, late.n, late.lost) == (1, 3, 0)
    all_lost = replicates.success([None] * 3, 0.5, lost=[True] * 3)
    assert all_lost is not None and (all_lost.k, all_lost.n, all_lost.low) == (0, 3, 0)


def test_success_without_replicates_is_none_and_not_zero() -> None:
    assert replicates.success([], 0.5) is None and replicates.success([None, math.nan], 0.5) is None
    with pytest.raises(ValueError, match="same replicates"):
        replicates.success([0.5, 0.6], 0.5, lost=[True])


# --- the command -------------------------------------------------------------------------------------------------------


def test_a_bound_may_be_missed_by_two_errors_of_the_simulation_and_no_more() -> None:
    coverage = Scenario("x", "coverage", 0.95, lambda n, draw: Outcome(0, n))
    assert calibration.Played(coverage, Outcome(0.945, 2000), 0).holds  # error .0051
    assert not calibration.Played(coverage, Outcome(0.935, 2000), 0).holds
    claims = Scenario("x", "false claims", 0.05, lambda n, draw: Outcome(0, n))
    assert calibration.Played(claims, Outcome(0.058, 2000), 0).holds
    assert not calibration.Played(claims, Outcome(0.065, 2000), 0).holds
    assert not calibration.Played(claims, None, 0, "it raised").holds


def test_an_interval_that_covers_by_being_wide_or_open_does_not_hold() -> None:
    narrow = Scenario("x", "coverage", 0.95, lambda n, draw: Outcome(0, n), widest=1.5)
    assert narrow.holds(Outcome(1.0, 2000, 1.5))
    for ratio in (1.51, math.inf, None):
        assert not narrow.holds(Outcome(1.0, 2000, ratio))
        assert not calibration.Played(narrow, Outcome(1.0, 2000, ratio), 0).holds
    assert not narrow.holds(Outcome(0.9, 2000, 1.0))


def test_every_scenario_has_a_name_of_its_own_because_names_are_streams() -> None:
    names = [scenario.name for module in calibration.modules() for scenario in calibration.scenarios_of(module)]
    assert len(names) == len(set(names)) >= 60


def test_the_command_plays_from_anywhere_and_ends_with_one_where_there_is_nothing_to_play(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(calibration.__file__)), "--runs", "200", "--only"]
    played = subprocess.run([*command, "noise: sd"], cwd=tmp_path, capture_output=True, text=True)
    assert played.returncode == 0 and "1 of 1 hold" in played.stdout, played.stdout + played.stderr
    assert calibration.main(["--only", "no such thing"]) == 1


# --- the noisiest of several cells -------------------------------------------------------------------------------------


def test_of_two_equal_cells_the_cvs_are_pooled_by_hand_and_the_interval_is_that_of_the_noisier_one() -> None:
    cells = [[0.9, 1.0, 1.1], [1.88, 2.0, 2.12]]
    found = replicates.noisiest([*cells, [0.5], [1.0, None]])  # of one value nothing is known
    assert found is not None and found.cells == (0, 1)
    assert found.noise.cv == pytest.approx(math.sqrt((0.1**2 + 0.06**2) / 2)) and found.noise.mean == pytest.approx(1.5)
    plain, surer = replicates.noise(cells[0]), replicates.noise(cells[0], 0.975)
    assert plain is not None and surer is not None
    assert (found.noise.cv_low, found.noise.cv_high) == (surer.cv_low, plain.cv_high)


def test_a_cell_that_is_far_noisier_is_not_pooled_and_equal_values_are_not_with_others() -> None:
    steady, wild = [0.99, 1.0, 1.01, 1.0, 1.005], [0.2, 0.9, 1.0, 0.3, 0.95]
    found = replicates.noisiest([steady, wild, [1.0] * 5, steady])
    assert found is not None and found.cells == (1,)
    own = replicates.noise(wild)
    assert own is not None and found.noise.cv == pytest.approx(own.cv)
    still = replicates.noisiest([[1.0] * 5, [0.9] * 5])
    assert still is not None and still.noise.cv == 0 and still.cells == (0, 1)
    assert replicates.noisiest([]) is None and replicates.noisiest([[0.3], [-1.0, 1.1, 0.2]]) is None


# --- the cell nearest one half -----------------------------------------------------------------------------------------


def test_the_cell_nearest_one_half_has_an_interval_corrected_for_the_choice() -> None:
    cells = np.array([[0.1] * 4, [np.nan] * 4, [0.9, 0.1, 0.9, np.nan], [1.0] * 4])
    lost = np.zeros(cells.shape, bool)
    lost[2, 3] = True
    found = replicates.nearest_success(cells, 0.5, lost)
    assert found is not None and found[0] == 2
    assert found[1] == replicates.success(cells[2], 0.5, lost[2], 1 - 0.05 / 3)  # one of the four has no value
    assert (found[1].k, found[1].n, found[1].lost) == (2, 4, 1)
    assert replicates.nearest_success(cells[1:2], 0.5, lost[1:2]) is None
