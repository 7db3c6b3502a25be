"""Compute to skill: against exact intervals, another library's curve and simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats as reference
from simulate_boundaries import SURVIVAL
from simulation import RUNS_IN_TESTS, Scenario

from orchestrator.stats import survival

LOOKS = [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("scenario", SURVIVAL, ids=lambda scenario: scenario.name)
def test_simulated_shares_are_covered(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


def found(*args, **kwargs) -> survival.KaplanMeier:
    curve = survival.kaplan_meier(*args, **kwargs)
    assert curve is not None
    return curve


def test_the_curve_is_the_product_limit() -> None:
    seen, left = [2, 4, 4, None, None, 16], [16, 16, 16, 16, 8, 16]
    curve = found(seen, left, LOOKS)
    data = reference.CensoredData(uncensored=[2, 4, 4, 16], right=[16, 8])
    assert [s.reached for s in curve.steps] == pytest.approx([0, *(1 - reference.ecdf(data).sf.evaluate(LOOKS))])
    assert [s.reached for s in curve.steps] == pytest.approx([0, 0, 1 / 6, 1 / 2, 1 / 2, 3 / 4])
    assert [(s.at_risk, s.onsets) for s in curve.steps[1:]] == [(6, 0), (6, 1), (5, 2), (3, 0), (2, 1)]
    assert curve.n == 6


def test_without_censoring_before_the_last_look_the_intervals_are_clopper_and_pearsons() -> None:
    curve = found([2, 4, 4, 8, None, None, None, None], 16, LOOKS, confidence=0.9)
    for step, k in zip(curve.steps[1:], (0, 1, 3, 4, 4), strict=True):
        exact = reference.binomtest(k, 8).proportion_ci(0.9, method="exact")
        assert (step.low, step.high) == pytest.approx((exact.low, exact.high))


def test_with_censoring_the_interval_is_that_of_a_product_of_betas() -> None:
    curve = found([2, None, None, 8, None, None, 16], [16, 2, 4, 16, 4, 16, 16], LOOKS)
    rng = np.random.default_rng(0)
    shares = rng.beta(7, 1, 400_000) * rng.beta(3, 1, 400_000)  # 1 of 7 at 2, then 1 of 3 at 8
    low = 1 - np.quantile(shares, 0.975)
    high = 1 - np.quantile(shares * rng.beta(2, 1, 400_000), 0.025)  # two left
    assert (curve.steps[4].low, curve.steps[4].high) == pytest.approx((low, high), abs=0.01)


def test_coarser_looks_show_the_same_shares_where_they_look() -> None:
    rng = np.random.default_rng(5)
    onset = 2 ** rng.uniform(0, 5, 12)
    fine = found([next((x for x in LOOKS if x >= t), None) for t in onset], 16.0, LOOKS)
    coarse = found([next((x for x in LOOKS[::2] if x >= t), None) for t in onset], 16.0, LOOKS[::2])
    at = {s.at: s.reached for s in fine.steps}
    assert [at[s.at] for s in coarse.steps] == pytest.approx([s.reached for s in coarse.steps])


def test_replicates_that_were_never_looked_at_do_not_count() -> None:
    assert survival.kaplan_meier([], 16) is None
    assert survival.kaplan_meier([None, None], None) is None
    half = found([2.0, math.nan, None], [16, math.nan, 0], LOOKS)
    assert (half.n, half.steps[-1].at_risk) == (1, 1)


def test_left_out_looks_are_the_times_that_occur() -> None:
    assert [s.at for s in found([4, 8, None], 16).steps] == [0, 4, 8, 16]


def test_times_that_cannot_be_are_refused() -> None:
    for seen, left in (([0.0], 16), ([-1.0], 16), ([None], -1)):
        with pytest.raises(ValueError, match="above zero"):
            survival.kaplan_meier(seen, left)
    with pytest.raises(ValueError):
        survival.kaplan_meier([1.0, 2.0], [1.0, 2.0, 3.0])


def test_an_onset_is_the_look_from_which_a_replicate_stays_across() -> None:
    values = [
        [0.1, 0.2, 0.7, 0.9, 1.0],
        [0.1, 0.7, 0.4, None, 0.5],  # it had it, lost it, and has it again
        [0.6, 0.7, 0.8, 0.9, 0.4],  # not at the end
        [None, None, 0.6, None, 0.9],
        [0.6, 0.6, 0.6, 0.6, 0.6],
    ]
    seen, until = survival.onsets(LOOKS, values, [False] * 5)
    assert seen.tolist() == pytest.approx([4, 16, math.nan, 4, 1], nan_ok=True)
    assert until.tolist() == [16] * 5


def test_the_lost_never_get_there_the_half_done_are_censored_and_those_that_have_not_begun_do_not_count() -> None:
    values = [
        [0.1, 0.9, 0.9, 0.9, 0.9],  # gets there at 2
        [0.1, 0.2, 0.2, None, None],  # diverged after 4
        [0.1, 0.2, 0.8, None, None],  # had it at 4, and diverged
        [None] * 5,  # diverged before the first look
        [0.1, 0.2, None, None, None],  # half done: nothing known beyond 2
        [None] * 5,  # has not begun
        [0.1, 0.2, 0.3, 0.4, 0.8],  # gets there at 16
    ]
    lost = [False, True, True, True, False, False, False]
    seen, until = survival.onsets(LOOKS, values, lost)
    assert seen.tolist() == pytest.approx([2, *[math.nan] * 5, 16], nan_ok=True)
    assert until.tolist() == [16, 16, 16, 16, 2, 0, 16]
    curve = found(seen, until, LOOKS)
    assert curve.n == 6
    assert [(s.at_risk, s.onsets) for s in curve.steps] == [(6, 0), (6, 0), (6, 1), (4, 0), (4, 0), (4, 1)]
    assert curve.steps[-1].reached == pytest.approx(1 - 5 / 6 * 3 / 4)


def test_where_half_diverge_and_the_others_learn_the_curve_ends_at_one_half() -> None:
    learns, diverges = [0.1, 0.1, 0.1, 0.9, 0.9], [0.1, 0.1, None, None, None]
    curve = found(*survival.onsets(LOOKS, [learns] * 4 + [diverges] * 4, [False] * 4 + [True] * 4), LOOKS)
    assert curve.steps[-1].reached == 0.5 and curve.n == 8
    exact = reference.binomtest(4, 8).proportion_ci(0.95, method="exact")
    assert (curve.steps[-1].low, curve.steps[-1].high) == pytest.approx((exact.low, exact.high))
    unaware = found(*survival.onsets(LOOKS, [learns] * 4 + [diverges] * 4, [False] * 8), LOOKS)
    assert unaware.steps[-1].reached == 1


def test_onsets_without_replicates_and_of_rows_that_do_not_fit() -> None:
    assert survival.kaplan_meier(*survival.onsets(LOOKS, [], []), LOOKS) is None
    assert survival.kaplan_meier(*survival.onsets([], [[], []], [False, True])) is None
    assert survival.kaplan_meier(*survival.onsets(LOOKS, [[None] * 5], [False]), LOOKS) is None
    for looks, values, lost in ((LOOKS, [[0.1] * 4], [False]), (LOOKS, [[0.1] * 5], []), ([2, 1], [[0, 1]], [False])):
        with pytest.raises(ValueError, match=r"fit|ascending"):
            survival.onsets(looks, values, lost)


tables = some.integers(1, 6).flatmap(
    lambda n: some.tuples(
        some.lists(some.lists(some.none() | some.floats(-1, 2), min_size=5, max_size=5), min_size=n, max_size=n),
        some.lists(some.booleans(), min_size=n, max_size=n),
    )
)


@given(tables)
def test_losing_one_more_replicate_never_raises_the_curve(drawn) -> None:
    values, lost = drawn
    gone = [True, *lost[1:]]
    before = survival.kaplan_meier(*survival.onsets(LOOKS, values, lost), LOOKS)
    after = survival.kaplan_meier(*survival.onsets(LOOKS, values, gone), LOOKS)
    assert after is not None
    for less, more in zip(after.steps, before.steps if before else (), strict=False):
        assert less.reached <= more.reached + 1e-12
