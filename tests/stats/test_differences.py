"""One arm against another: values computed by hand and by scipy, and degenerate arms."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from simulate_replicates import COMPARE, bimodal
from simulation import RUNS_IN_TESTS, Scenario

from orchestrator.stats import differences
from orchestrator.stats.intervals import by_chance
from trainers.streams import stream


@pytest.mark.parametrize("scenario", [s for s in COMPARE if s.bound > 0], ids=lambda s: s.name)
def test_a_simulated_truth(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


def test_a_paired_difference_computed_by_hand() -> None:
    found = differences.paired_difference([0.9, 0.8, 0.7], [0.5, 0.5, 0.5])
    assert found is not None
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == (
        pytest.approx(0.3),
        pytest.approx(0.3 - half),
        pytest.approx(0.3 + half),
    )
    assert (found.n_a, found.n_b, found.df) == (3, 3, 2)
    t = 0.3 / (0.1 / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # closed form of the t distribution with 2 degrees


def test_both_agree_with_scipy() -> None:
    from scipy import stats

    draw = stream("test", "compare")
    for n_a, n_b in ((3, 3), (5, 12), (2, 9)):
        a, b = draw.normal(1, 0.5, n_a), draw.normal(0.2, 0.1, n_b)
        found, theirs = differences.welch_difference(a.tolist(), b.tolist()), stats.ttest_ind(a, b, equal_var=False)
        assert found is not None
        interval = theirs.confidence_interval(0.95)
        assert (found.p, found.df, found.low, found.high) == pytest.approx(
            (theirs.pvalue, theirs.df, interval.low, interval.high)
        )
    pairs, theirs = (
        differences.paired_difference(b.tolist(), (b + a[0] * b**2).tolist()),
        stats.ttest_rel(b, b + a[0] * b**2),
    )
    assert pairs is not None
    interval = theirs.confidence_interval(0.95)
    assert (pairs.p, pairs.low, pairs.high) == pytest.approx((theirs.pvalue, interval.low, interval.high))


def test_only_replicates_in_both_arms_are_paired() -> None:
    found = differences.paired_difference([1.0, None, 3.0, 4.5, 9.0], [0.5, 1.0, 2.0, 3.0, float("nan")])
    assert found is not None and found.n_a == 3
    assert found.mean == pytest.approx(1.0)
    with pytest.raises(ValueError):
        differences.paired_difference([1.0], [1.0, 2.0])


def test_nothing_comes_of_nothing_and_one_replicate_has_no_interval() -> None:
    assert differences.paired_difference([None, 1.0], [1.0, None]) is None
    assert differences.paired_difference([], []) is None and differences.welch_difference([], [1.0]) is None
    one = differences.paired_difference([0.9], [0.5])
    assert one is not None and (one.mean, one.low, one.p) == (pytest.approx(0.4), None, None)
    lonely = differences.welch_difference([0.9], [0.5, 0.6, 0.7])
    assert lonely is not None and lonely.low is None and lonely.p is None


def test_equal_arms_differ_by_nothing_with_no_evidence_and_no_interval_of_zero_width() -> None:
    for found in (
        differences.paired_difference([0.3, 0.5, 0.9], [0.3, 0.5, 0.9]),
        differences.welch_difference([1.0] * 3, [1.0] * 3),
    ):
        assert found is not None
        assert (found.mean, found.p, found.low, found.high) == (0, 1, None, None)


def test_without_spread_the_difference_has_the_p_value_of_its_permutations() -> None:
    pairs = differences.paired_difference([0.3, 0.5, 0.9, 0.2, 0.7], [0.2, 0.4, 0.8, 0.1, 0.6])  # .1 but for rounding
    assert pairs is not None
    assert (pairs.mean, pairs.low, pairs.p) == (pytest.approx(0.1), None, 2 / 2**5)
    apart = differences.welch_difference([1.0] * 10, [0.0] * 10)
    assert apart is not None and (apart.mean, apart.low, apart.p) == (1, None, 2 / math.comb(20, 10))


def test_where_one_arm_has_no_spread_the_other_one_carries_the_interval() -> None:
    found = differences.welch_difference([1.0] * 6, [0.5, 0.6, 0.7, 0.55, 0.65, 0.6])
    assert found is not None and found.low is not None and found.df == 5


def test_swapping_the_arms_turns_the_interval_round_and_a_wider_confidence_holds_a_narrower_one() -> None:
    a, b = [0.4, 0.7, 0.6, 0.8], [0.2, 0.5, 0.3, 0.35]
    for difference in (differences.paired_difference, differences.welch_difference):
        ab, ba, wide = difference(a, b), difference(b, a), difference(a, b, 0.99)
        assert ab is not None and ba is not None and wide is not None
        assert (ab.low, ab.high) == (pytest.approx(-ba.high), pytest.approx(-ba.low)) and ab.p == pytest.approx(ba.p)
        assert wide.low < ab.low < ab.high < wide.high


def test_replicates_agree_by_chance_with_the_binomial_probability() -> None:
    """The worst share for all of one arm on one level and all of the other on the other."""
    for n_a, n_b in ((1, 1), (3, 3), (3, 10), (8, 8)):
        shares = np.linspace(0.001, 0.999, 999)
        worst = max(2 * share**n_a * (1 - share) ** n_b for share in shares)
        assert by_chance(n_a, n_b) == pytest.approx(worst, rel=1e-3)


def test_three_pairs_that_agree_are_surer_than_chance_for_t_alone_and_the_interval_reaches_back() -> None:
    low, high = [0.10, 0.11, 0.12], [0.95, 0.97, 0.95]
    plain = differences.paired_difference(high, low)
    assert plain is not None and plain.p is not None and plain.p < 0.001
    for found in (differences.guarded_difference(high, low, True), differences.guarded_difference(high, low, False)):
        assert found is not None and found.p == 2 / 4**3 and found.low is not None and found.low > 0  # .031 < .05
    surer = differences.guarded_difference(high, low, True, 0.99)
    assert surer is not None and surer.low == pytest.approx(surer.mean * ((0.01 * 32) ** (1 / 6) - 1)) and surer.low < 0
    mirrored = differences.guarded_difference(low, high, True, 0.99)
    assert mirrored is not None and mirrored.high == pytest.approx(-surer.low)


def test_where_chance_is_no_match_the_guarded_difference_is_the_plain_one_or_students() -> None:
    from scipy import stats

    draw = stream("test", "guarded")
    a, b = draw.normal(0.1, 1, 12), draw.normal(0, 0.1, 6)
    assert differences.guarded_difference(a[:6].tolist(), b.tolist(), True) == differences.paired_difference(
        a[:6].tolist(), b.tolist()
    )
    for x, y in ((a, b), (b, 10 * a)):
        found, welch = differences.guarded_difference(x.tolist(), y.tolist(), False), differences.welch_difference(x, y)
        student = stats.ttest_ind(x, y)
        assert found is not None and welch is not None and welch.p is not None
        assert found.p == pytest.approx(max(welch.p, student.pvalue))
        assert found.low == pytest.approx(min(welch.low, student.confidence_interval().low))
    assert differences.guarded_difference([1.0], [2.0], True) == differences.paired_difference([1.0], [2.0])
    assert differences.guarded_difference([], [2.0], False) is None


@pytest.mark.parametrize(("in_pairs", "n_a", "n_b", "alpha"), [(True, 3, 3, 0.002), (False, 3, 10, 0.05)])
def test_alike_bimodal_arms_differ_no_more_often_than_promised_and_in_plain_tests_they_do(
    in_pairs: bool, n_a: int, n_b: int, alpha: float
) -> None:
    plain_test = differences.paired_difference if in_pairs else differences.welch_difference
    draw, guarded, plain, n_runs = stream("test", "lotteries", n_a, n_b), 0, 0, 1500
    one_cell = bimodal(0.5, 0.01)
    for _ in range(n_runs):
        a, b = one_cell(draw, n_a).tolist(), one_cell(draw, n_b).tolist()
        found, naive = differences.guarded_difference(a, b, in_pairs), plain_test(a, b)
        assert found is not None and found.p is not None and naive is not None and naive.p is not None
        guarded, plain = guarded + (found.p <= alpha), plain + (naive.p <= alpha)
    assert guarded / n_runs <= 1.2 * alpha and plain / n_runs > 3 * alpha


def test_no_number_that_is_not_finite_ever_comes_out() -> None:
    draw = stream("test", "compare finite")
    for _ in range(500):
        n = int(draw.integers(1, 6))
        a, b = (np.round(draw.random((2, n)), 1) * 10.0 ** draw.integers(-100, 100)).tolist()
        for found in (differences.paired_difference(a, b), differences.welch_difference(a, b)):
            assert found is not None
            numbers = (found.mean, found.low, found.high, found.p, found.df)
            assert all(math.isfinite(v) for v in numbers if v is not None)


def test_loading_takes_no_heavy_library() -> None:
    script = (
        "import sys, orchestrator.stats.differences; print(sorted({'scipy.stats', 'statsmodels'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
