"""Forecasts: simulated truths, what is refused and what nobody can know, hand-computed lines, and degenerate input.

The scenarios are played at 2,000 runs each (600 where hardly anything is forecast), with no error allowed for the simulation, and
at length by `make calibration`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import simulate_forecast as simulated
from simulate_forecast import FALLS, LATER, LEARNS, PROMISED, REPLICATES, STOPS, Case, Truth, log_compute, losses, turns
from simulation import Scenario

from orchestrator.stats.forecast import CLEARLY, _roughness, forecast
from trainers.streams import stream

COMPUTE = np.exp(log_compute(6))


# --- coverage ----------------------------------------------------------------------------------------------------------


CASES = [case for group in (FALLS, LEARNS, STOPS) for case in group.values() for _ in REPLICATES]


@pytest.mark.parametrize(
    ("scenario", "case"), list(zip(PROMISED, CASES, strict=True)), ids=[scenario.name for scenario in PROMISED]
)
def test_a_claimed_interval_holds_and_a_curve_that_cannot_be_continued_gets_none(
    scenario: Scenario, case: Case
) -> None:
    is_close = scenario.kind == "coverage" or "at the last point" in scenario.name
    outcome = scenario.play(2000 if is_close else 600)  # the others are refused nearly always
    assert scenario.holds(outcome), outcome
    assert scenario.kind == "false claims" or outcome.n_runs >= 2000 * case.made


def test_two_replicates_are_covered_too_and_pay_with_width() -> None:
    found = {R: simulated.played(Case(Truth(floor=1.0, lasts=0.5), 5), R, 200, stream("replicates", R)) for R in (2, 5)}
    claims = [f for f in found[2] if f.low is not None]
    assert len(claims) >= 140 and np.mean([f.covers for f in claims]) >= 0.93
    widths = {R: np.median([w for w in map(simulated.width, made) if w is not None]) for R, made in found.items()}
    assert widths[2] > 1.2 * widths[5]


def test_it_beats_what_costs_nothing_where_there_is_a_floor_and_loses_little_where_there_is_none() -> None:
    draw = stream("rivals")

    def error(truth: Truth) -> tuple[float, float]:
        found = [f for f in simulated.played(Case(truth), 5, 200, draw) if f.log_error is not None]
        own = [f.log_error for f in found]
        rivals = [[r.log_error for r in f.rivals] for f in found]
        return float(np.sqrt(np.mean(np.square(own)))), float(np.sqrt(np.mean(np.square(rivals), 0)).min())

    own, best = error(Truth(floor=1.0))
    assert own < 0.6 * best
    own, best = error(Truth())  # here the plain law is the truth
    assert own < 2.5 * best


@pytest.mark.parametrize(
    ("case", "verdict", "words"),
    [
        (STOPS["turns within the fit, rises as it fell"], "not falling", "does not clearly fall"),
        (STOPS["ends at a known floor a quarter decade later"], "floor", "the best possible predictor"),
        (LEARNS["a skill of 1.5 decades, within the fit"], "steepens", "a skill is being learned"),
        (Case(Truth(slope=0.05, noise=0.002)), "hardly fallen", "less than 20 %"),
    ],
)
def test_a_refusal_says_why_and_gives_no_number(case: Case, verdict: str, words: str) -> None:
    found = simulated.played(case, 5, 100, stream("refused", verdict))
    refused = [f for f in found if f.verdict == verdict]
    assert len(refused) >= 90
    for made in refused:
        assert made.predicted is None and made.low is None and made.covers is None and not made.rivals
        assert made.falling is not None and (made.falling < CLEARLY) == (verdict == "not falling")
        assert made.reason is not None and words in made.reason


def test_a_known_floor_refuses_what_would_pass_it_and_moves_no_interval() -> None:
    y = losses(Truth(), 6, 4, stream("floor"))
    free, low, high = (forecast(COMPUTE, y, floor=floor) for floor in (None, 0.01, float(y[:, -1].mean()) * 1.1))
    assert free.verdict == "forecast" and free._replace(floor=0.01) == low
    assert high.verdict == "floor" and high.predicted is None


def test_a_floor_that_the_fit_has_already_passed_is_refused_and_does_not_raise() -> None:
    y = losses(Truth(), 6, 4, stream("floor"))
    for floor in (float(y[:, 5].mean()), float(y.max()) * 2):
        assert forecast(COMPUTE, y, floor=floor).verdict == "floor"


@pytest.mark.parametrize(("noise", "share"), [(0.02, 1.0), (0.3, 0.0)])
def test_whether_a_fall_is_clear_depends_on_the_noise(noise: float, share: float) -> None:
    found = simulated.played(Case(Truth(slope=0.1, noise=noise)), 5, 60, stream("clear", noise))
    assert np.mean([f.verdict != "not falling" for f in found]) == pytest.approx(share, abs=0.1)


def test_what_begins_beyond_the_fit_is_missed_and_nothing_seen_warns_of_it() -> None:
    """A report of what cannot be known, not a promise: the figures are those of simulate_forecast.py."""
    for name, factor in (
        ("a skill emerges later, half the loss", 2.0),
        ("a skill emerges later, a tenth of the loss", 9.4),
    ):
        found = [f for f in simulated.played(LATER[name], 5, 100, stream("later", name)) if f.verdict != "steepens"]
        assert len(found) >= 90 and np.mean([f.covers for f in found]) <= 0.05
        assert math.exp(np.median([f.log_error for f in found if f.log_error is not None])) == pytest.approx(
            factor, rel=0.06
        )
        assert np.mean([f.verdict == "forecast" for f in found]) >= 0.95


def test_a_rise_ahead_is_held_while_it_bends_no_more_sharply_than_what_was_seen() -> None:
    mild, sharp = (simulated.of_claims(Case(turns(6, rises)), 5)(300, stream("rises", rises)).share for rises in (1, 4))
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


def test_value_slope_and_curvature_of_a_rough_curve_vary_together_as_its_integral_says() -> None:
    # Each is an integral of a kernel over the same white noise, so that covariances are integrals of products.
    x = np.array([0.0, 0.7, 1.5, 3.0, 5.0])
    u = (np.arange(200_000) + 0.5) * 5 / 200_000

    def kernel(at: float, derivative: int) -> np.ndarray:
        return np.where(u < at, ((at - u) ** 2 / 2, at - u, 1.0)[derivative], 0.0)

    kernels = np.array([*(kernel(v, 0) for v in x), kernel(x[-2], 1), *(kernel(v, 2) for v in x[:-1])])
    expected = kernels @ kernels.T * 5 / 200_000
    expected[4:6, 6:] = expected[6:, 4:6] = expected[4, 5] = expected[5, 4] = 0  # not used: see there
    assert _roughness(x) == pytest.approx(expected, abs=1e-3)


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
        ("alike", "steepens"),
        ("exact", "forecast"),
        ("steep", "steepens"),
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
        "exact": np.tile(1 + COMPUTE**-0.3, (3, 1)),
        "steep": np.exp(-3.0 * np.arange(y.shape[1]) ** 2) * y,
    }[kind]
    found = forecast(COMPUTE, odd)
    assert found.verdict == verdict and found.falling is not None and 0 <= found.falling <= 1
    numbers = [found.low, found.predicted, found.high]
    if verdict != "forecast":
        assert numbers == [None] * 3 and found.log_error is None
        return
    known = [v for v in (*numbers, found.log_error) if v is not None and math.isfinite(v)]
    assert len(known) == 4 and 0 <= known[0] <= known[1] <= known[2]
