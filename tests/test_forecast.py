"""Power laws and forecasts: hand-computed laws, simulated truths, what nobody can know, and degenerate input.

The scenarios are played at 300 runs each here, three standard errors allowed, and at length by `make calibration`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import simulate_forecast as simulated
from simulate_forecast import FALLS, LATER, PROMISED, STOPS, Truth, log_compute, losses, turns
from simulation import Scenario

from orchestrator.stats.forecast import CLEARLY, forecast, power_law
from trainers.streams import stream

X = np.geomspace(1, 1e4, 9)
COMPUTE = np.exp(log_compute(6))


# --- power laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "amplitude", "exponent"), [(0.0, 3.0, 0.3), (1.69, 5.0, 0.5), (0.5, 1.0, 1.2)])
def test_an_exact_law_is_recovered_with_its_floor(floor: float, amplitude: float, exponent: float) -> None:
    law = power_law(X, floor + amplitude * X**-exponent)
    assert law.floor == pytest.approx(floor, abs=1e-5)
    assert law.amplitude == pytest.approx(amplitude, rel=1e-5)
    assert law.exponent == pytest.approx(exponent, abs=1e-5)
    assert law.floor_at_bound == (floor == 0)


def test_a_known_floor_makes_a_straight_line_of_either_slope() -> None:
    law = power_law([1, 10, 100], [2 + 3, 2 + 0.3, 2 + 0.03], floor_low=2, floor_high=2)
    assert (law.floor, law.amplitude, law.exponent) == (2, pytest.approx(3), pytest.approx(1))
    rising = power_law([1, 10, 100], [2, 20, 200], floor_low=0, floor_high=0)
    assert rising.exponent == pytest.approx(-1)


def test_the_interval_of_a_known_floor_is_that_of_a_straight_line() -> None:
    # log y = 0, -1, -3 at log x = 0, 1, 2: slope -1.5, residuals 1/6, -1/3, 1/6, so error sqrt((1/6) / 1 / 2)
    law = power_law(np.exp([0, 1, 2]), np.exp([0, -1, -3]), 0, 0)
    assert law.exponent == pytest.approx(1.5)
    assert law.high is not None and law.exponent is not None
    assert law.high - law.exponent == pytest.approx(12.7062 * math.sqrt(1 / 12), rel=1e-4)


@pytest.mark.parametrize(("floor", "least"), [(0.0, 0.93), (1.0, 0.93), (3.0, 0.93)])
def test_the_interval_of_an_exponent_covers_it_for_independent_points(floor: float, least: float) -> None:
    draw, hits = stream("power law", str(floor)), 0
    for _ in range(500):
        y = (floor + 3 * X**-0.4) * np.exp(0.01 * draw.standard_normal(len(X)))
        law = power_law(X, y)
        hits += law.low is not None and law.high is not None and law.low <= 0.4 <= law.high
    assert hits / 500 >= least


def test_a_floor_stays_within_its_bounds() -> None:
    y = 1.5 + X**-0.5
    assert power_law(X, y, floor_low=0, floor_high=1).floor == 1
    assert power_law(X, y, floor_low=0, floor_high=1).floor_at_bound
    assert power_law(X, y, floor_low=1.4).floor == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "distinct"),
        ([1, 1, 1, 2], [3, 3, 3, 2], "2 distinct"),
        ([1, 2, 3], [1, None, None], "1 distinct"),
        ([1, 2, 4, 8], [1, 1, 1, 1], "no falling"),
        ([1, 2, 4, 8], [1, 2, 3, 4], "no falling"),
        ([1, 2, 4, 8], [3, 2, 1, 0], "floor"),
    ],
)
def test_where_there_is_no_law_there_is_a_reason(x, y, reason) -> None:
    law = power_law(np.array(x, dtype=float), np.array(y, dtype=float))
    assert law.exponent is None and law.floor is None and law.reason is not None and reason in law.reason


def test_three_points_give_a_law_and_no_interval() -> None:
    law = power_law([1, 10, 100], [3.0, 2.0, 1.5])
    assert law.exponent is not None and law.low is None and law.high is None
    with pytest.raises(ValueError, match="positive"):
        power_law([0, 1, 2], [1, 1, 1])


# --- coverage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", PROMISED, ids=lambda s: s.name)
def test_a_claimed_interval_holds_and_a_curve_that_stops_falling_gets_none(scenario: Scenario) -> None:
    outcome = scenario.play(300)
    missed_by = outcome.share - scenario.bound if scenario.kind == "false claims" else scenario.bound - outcome.share
    assert missed_by <= 3 * outcome.error, f"{outcome.share:.3f} of {outcome.n_runs}"


@pytest.mark.parametrize("name", [name for name, truth in FALLS.items() if truth.widest])
def test_the_interval_is_not_needlessly_wide(name: str) -> None:
    truth, n, widest = FALLS[name]
    for n_replicates in simulated.REPLICATES:
        ratio = simulated.of_claims(truth, n, n_replicates)(60, stream("width", name, n_replicates)).width_ratio
        assert ratio is not None and widest is not None and ratio <= widest


def test_two_replicates_are_covered_too_and_pay_with_width() -> None:
    found = {R: simulated.played(Truth(floor=1.0, lasts=0.5), 5, R, 200, stream("replicates", R)) for R in (2, 5)}
    claims = [f for f in found[2] if f.low is not None]
    assert len(claims) >= 150 and np.mean([f.covers for f in claims]) >= 0.93
    widths = {R: np.median([w for w in map(simulated.width, made) if w is not None]) for R, made in found.items()}
    assert widths[2] > 1.2 * widths[5]


def test_it_beats_what_costs_nothing_where_there_is_a_floor_and_loses_little_where_there_is_none() -> None:
    draw = stream("rivals")

    def error(truth: Truth) -> tuple[float, float]:
        found = simulated.played(truth, 6, 5, 200, draw)
        own = [f.log_error for f in found]
        rivals = [[r.log_error for r in f.rivals] for f in found]
        return float(np.sqrt(np.mean(np.square(own)))), float(np.sqrt(np.mean(np.square(rivals), 0)).min())

    own, best = error(Truth(floor=1.0))
    assert own < 0.6 * best
    own, best = error(Truth())  # here the plain law is the truth
    assert own < 2.5 * best


@pytest.mark.parametrize("name", list(STOPS))
def test_a_curve_that_stops_falling_within_the_fit_is_refused(name: str) -> None:
    found = simulated.played(*STOPS[name], 5, 100, stream("refused", name))
    refused = [f for f in found if f.verdict == "not falling"]
    assert len(refused) >= 85
    for made in refused:
        assert made.predicted is None and made.low is None and made.covers is None and not made.rivals
        assert made.falling is not None and made.falling < CLEARLY
        assert made.reason is not None and "does not clearly fall" in made.reason


@pytest.mark.parametrize(("noise", "share"), [(0.02, 1.0), (0.3, 0.0)])
def test_whether_a_fall_is_clear_depends_on_the_noise(noise: float, share: float) -> None:
    found = simulated.played(Truth(slope=0.1, noise=noise), 6, 5, 60, stream("clear", noise))
    assert np.mean([f.verdict != "not falling" for f in found]) == pytest.approx(share, abs=0.1)


def test_what_begins_beyond_the_fit_is_missed_and_nothing_seen_warns_of_it() -> None:
    """A report of what cannot be known, not a promise: the figures are those of simulate_forecast.py."""
    for name, factor in (
        ("a skill emerges later, half the loss", 2.0),
        ("a skill emerges later, a tenth of the loss", 9.4),
    ):
        found = simulated.played(*LATER[name], 5, 100, stream("later", name))
        assert np.mean([f.covers for f in found]) <= 0.05
        assert math.exp(np.median([f.log_error for f in found if f.log_error is not None])) == pytest.approx(
            factor, rel=0.06
        )
        assert all(f.verdict == "forecast" for f in found)


def test_a_rise_ahead_is_held_while_it_bends_no_more_sharply_than_what_was_seen() -> None:
    mild, sharp = (simulated.of_claims(turns(6, rises), 6, 5)(150, stream("rises", rises)).share for rises in (1, 4))
    assert mild >= 0.93 and sharp <= 0.4


# --- values ------------------------------------------------------------------------------------------------------------


def test_exact_lines_are_predicted_exactly_and_scored_in_natural_logs() -> None:
    x = 10.0 ** np.arange(0, 3.25, 0.25)
    y = np.outer([2.0, 3.0, 4.0], x**-0.5)
    found = forecast(x, y)
    truth = 3 * x[-1] ** -0.5
    assert found.predicted == pytest.approx(truth, rel=1e-4) and found.measured == pytest.approx(truth)
    assert found.falling == pytest.approx(1)
    last, constant, plain = found.rivals
    assert found.last_fitted == pytest.approx(10**2.25)  # 10^2.5 is more than a quarter of 10^3
    seen = x <= 10**2.3
    assert last.predicted == pytest.approx(3 * 10 ** (-2.25 / 2))
    assert last.log_error == pytest.approx(math.log(last.predicted / truth))
    assert constant.predicted == pytest.approx(y[:, seen].mean())
    lines = [np.exp(np.polyval(np.polyfit(np.log(x[seen]), np.log(row[seen]), 1), np.log(x[-1]))) for row in y]
    assert plain.predicted == pytest.approx(np.mean(lines))
    assert (found.n_points, found.n_replicates, found.n_measured) == (10, 3, 3)


def test_a_parabola_is_continued_and_a_law_with_a_floor_nearly_so() -> None:
    log_x = log_compute(6)
    parabola = np.exp(0.02 * (log_x - 7) ** 2) * np.array([[1.0], [1.1], [0.9]])
    found = forecast(np.exp(log_x), parabola)
    assert found.predicted == pytest.approx(float(parabola[:, -1].mean()), rel=1e-3) and found.winner == "forecast"
    law = 1 + np.exp(-0.5 * log_x) * np.array([[2.0], [3.0], [4.0]])
    found = forecast(np.exp(log_x), law)
    assert found.predicted == pytest.approx(float(law[:, -1].mean()), rel=0.02) and found.winner == "forecast"


def test_an_interval_wider_than_all_the_loss_could_do_is_uninformative() -> None:
    y = losses(Truth(floor=1.0), 6, 4, stream("span"))
    found = forecast(COMPUTE, y)
    assert found.verdict == "forecast" and found.low is not None and found.high is not None
    wide = found.high - found.low
    assert forecast(COMPUTE, y, span=0.99 * wide)._replace(verdict="forecast") == found
    assert forecast(COMPUTE, y, span=0.99 * wide).verdict == "uninformative"
    assert forecast(COMPUTE, y, span=1.01 * wide).verdict == "forecast"
    short = forecast(np.exp(log_compute(3)), losses(Truth(floor=1.0), 3, 5, stream("span", 3)))
    assert short.verdict == "uninformative" and short.low is not None and short.high is not None
    fell = [r.predicted for r in short.rivals]
    assert short.high - short.low > fell[1] - fell[0]


def test_the_forecast_does_not_move_when_the_top_arrives() -> None:
    y = losses(Truth(floor=1.0), 6, 4, stream("locked"))
    before = forecast(COMPUTE[:6], y[:, :6], top=float(COMPUTE[-1]))
    after = forecast(COMPUTE, y)
    assert (before.predicted, before.low, before.high) == (after.predicted, after.low, after.high)
    assert before.measured is None and before.covers is None and before.log_error is None and before.winner is None
    assert [r.log_error for r in before.rivals] == [None] * 3
    assert after.measured == pytest.approx(y[:, -1].mean())


def test_points_beyond_a_quarter_of_the_top_are_not_seen() -> None:
    y = losses(Truth(floor=1.0), 6, 4, stream("beyond"))
    changed = y.copy()
    changed[:, 6:-1] *= 3
    assert forecast(COMPUTE, y) == forecast(COMPUTE, changed)


def test_the_order_of_points_and_the_unit_of_loss_do_not_matter() -> None:
    y = losses(Truth(floor=1.0), 6, 4, stream("order"))
    order = stream("order", 1).permutation(len(COMPUTE))
    one, other = forecast(COMPUTE, y), forecast(COMPUTE[order], y[:, order])
    assert other.predicted == pytest.approx(one.predicted) and other.high == pytest.approx(one.high)
    scaled = forecast(7 * COMPUTE, 100 * y)
    for field in ("predicted", "low", "high", "measured"):
        assert getattr(scaled, field) == pytest.approx(100 * getattr(one, field), rel=1e-6)


def test_more_confidence_is_a_wider_interval() -> None:
    y = losses(Truth(floor=1.0), 6, 4, stream("confidence"))
    narrow, wide = forecast(COMPUTE, y, confidence=0.8), forecast(COMPUTE, y, confidence=0.99)
    assert narrow.low is not None and wide.low is not None and narrow.high is not None and wide.high is not None
    assert wide.low < narrow.low < narrow.high < wide.high


# --- degenerate --------------------------------------------------------------------------------------------------------


def test_one_replicate_gives_a_forecast_and_no_interval() -> None:
    for n in (5, 6):
        y = losses(Truth(floor=1.0), n, 1, stream("one", n))
        found = forecast(np.exp(log_compute(n)), y)
        assert found.predicted == pytest.approx(float(y[0, -1]), rel=0.5)
        assert found.low is None and found.high is None and found.covers is None and found.verdict == "forecast"
        assert found.log_error is not None and found.reason is None


def test_a_replicate_with_a_hole_is_left_out_and_one_that_stopped_later_still_counts_below() -> None:
    y = losses(Truth(floor=1.0), 6, 5, stream("holes"))
    y[0, 2] = np.nan  # a point is missing where the others have one
    y[1, -1] = np.nan  # lost after the fit
    y[2] = np.nan  # never evaluated
    found = forecast(COMPUTE, y)
    assert (found.n_replicates, found.n_measured, found.n_left_out) == (3, 2, 2)
    assert found.measured == pytest.approx(y[3:, -1].mean())
    assert found.predicted == forecast(COMPUTE, y[[1, 3, 4]]).predicted


def test_a_point_that_most_replicates_lack_costs_the_point_and_not_the_replicates() -> None:
    y = losses(Truth(floor=1.0), 6, 5, stream("sparse"))
    y[1:, 0] = np.nan
    found = forecast(COMPUTE, y)
    assert (found.n_points, found.n_replicates, found.n_left_out) == (5, 5, 0)


@pytest.mark.parametrize(
    ("compute", "loss", "reason"),
    [
        ([], np.empty((3, 0)), "no evaluation"),
        ([1, 2, 8], np.ones((3, 3)), "2 evaluations"),
        ([1, 2, 4, 64], np.full((3, 4), np.nan), "0 evaluations"),
        ([1, 2, 4, 64], np.empty((0, 4)), "0 evaluations"),
        ([1, 2, 4, 64], [[1, np.nan, 1, 1], [1, 1, np.nan, 1], [np.nan, 1, 1, 1]], "no replicate"),
        ([1, 2, 4, 64], [[3, 2, 0, 1]] * 2, "not positive"),
    ],
)
def test_where_nothing_can_be_forecast_it_says_why(compute, loss, reason) -> None:
    found = forecast(compute, loss)
    assert found.verdict == "missing" and found.predicted is None and found.low is None and found.winner is None
    assert found.reason is not None and reason in found.reason


def test_shapes_and_compute_that_make_no_sense_are_refused() -> None:
    for compute in ([0, 1, 2, 16], [1, 1, 2, 16], [1, 2, np.nan, 16]):
        with pytest.raises(ValueError, match="positive and distinct"):
            forecast(compute, np.ones((2, 4)))
    with pytest.raises(ValueError, match="must be"):
        forecast([1, 2, 3], np.ones((2, 4)))


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("flat", "not falling"),
        ("rising", "not falling"),
        ("jagged", "not falling"),
        ("wild", "not falling"),
        ("alike", "forecast"),
        ("steep", "forecast"),
    ],
)
def test_odd_curves_give_finite_numbers_or_none(kind: str, verdict: str) -> None:
    y = losses(Truth(floor=1.0), 6, 3, stream("odd"))
    odd = {
        "flat": np.full_like(y, 2.0),
        "rising": y[:, ::-1],
        "jagged": y * np.array([1, 3] * 5)[: y.shape[1]],
        "wild": np.exp(3 * stream("odd", 1).standard_normal(y.shape)),
        "alike": np.repeat(y[:1], 3, 0),
        "steep": np.exp(-3.0 * np.arange(y.shape[1]) ** 2) * y,
    }[kind]
    found = forecast(COMPUTE, odd)
    assert found.verdict == verdict and found.falling is not None and 0 <= found.falling <= 1
    numbers = [found.low, found.predicted, found.high]
    if verdict == "not falling":
        assert numbers == [None] * 3 and found.log_error is None
        return
    known = [v for v in (*numbers, found.log_error) if v is not None and math.isfinite(v)]
    assert len(known) == 4 and 0 <= known[0] <= known[1] <= known[2]
