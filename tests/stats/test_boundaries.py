"""Boundaries, monotonicity, drift and crossovers: hand-computed values, simulated truths, and nulls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import optimize
from scipy import stats as reference
from simulate_boundaries import BOUNDARIES
from simulation import RUNS_IN_TESTS, Scenario

from orchestrator import stats
from orchestrator.stats import Bracket

GRID = [4.0, 16.0, 32.0, 64.0, 1024.0, 1e12]
"""The quickstart's numbers of tasks."""
NEVER, LATE = [0.0] * 6, [0, 0, 0, 0, 0, 1.0]

tables = some.integers(1, 6).flatmap(
    lambda n_levels: some.lists(
        some.lists(some.none() | some.floats(-3, 3), min_size=n_levels, max_size=n_levels), min_size=1, max_size=8
    )
)


def crossing_at(*indices: int) -> list[list[float]]:
    """Replicates that are across from these levels of GRID on."""
    return [[float(i >= k) for i in range(6)] for k in indices]


@pytest.mark.parametrize("scenario", BOUNDARIES, ids=lambda scenario: scenario.name)
def test_simulated_truths_are_covered_and_nothing_is_found_where_there_is_nothing(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


# Brackets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "direction", "expected"),
    [
        ([0.1, 0.2, 0.6, 0.9, 1, 1], "rising", Bracket(16, 32)),
        ([0.1, 0.2, 0.3, 0.4, 0.1, 0.2], "rising", Bracket(1e12, None)),
        ([0.9, 0.8, 0.3, 0.1, None, None], "falling", Bracket(16, 32)),
        ([0.9, 0.8, 0.7, None, None, None], "falling", Bracket(32, None)),
        ([0.1, None, 0.0, 0.0, 0.0, None], "falling", Bracket(None, 4)),
        ([0.1, None, 0.6, 0.9, 1, 1], "rising", Bracket(4, 32)),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], "rising", Bracket(None, 4)),
        ([0.1, 0.6, 0.2, 0.6, 1, 1], "rising", Bracket(4, 64)),  # back and forth: both crossings inside
        ([0.6, 0.2, 0.6, 0.9, 1, 1], "rising", Bracket(None, 32)),
        ([0.1, 0.6, 0.9, 0.9, 1, 0.4], "rising", Bracket(4, None)),  # not across at the last level
        ([0.9, 0.1, None, 0.9, None, 0.1], "falling", Bracket(4, 1e12)),
        ([0.6, 1, 1, 1, 1, 0.4], "rising", Bracket(None, None)),  # says nothing
        ([None] * 6, "rising", Bracket(None, None)),
    ],
)
def test_a_bracket_runs_from_the_last_level_before_to_the_level_from_which_it_stays_across(
    values, direction, expected
) -> None:
    beside_it = crossing_at(2)[0]  # or a row without values would be no table
    assert stats.boundary(GRID, [values, beside_it], direction).brackets[0] == expected


def test_five_equal_brackets_give_the_bracket() -> None:
    for n in (5, 6, 20):
        same = stats.boundary(GRID, crossing_at(2) * n, "rising")
        assert (same.low, same.high, same.verdict) == (16, 32, "crossed")


def test_three_equal_brackets_are_widened_until_agreeing_by_chance_is_rare() -> None:
    same = stats.boundary(GRID, crossing_at(2) * 3, "rising")
    assert same.low is not None and same.high is not None
    assert math.log2(same.high / 32) == pytest.approx(math.log2(16 / same.low))
    beyond = math.log2(same.high / 32)  # in widths of the bracket, which is one doubling

    def chance(spread: float) -> float:  # of three thresholds in (16, 32], where the boundary lies at same.high
        normal = reference.norm(math.log2(same.high or 0), spread)
        return float(normal.cdf(5) - normal.cdf(4)) ** 3

    worst = optimize.minimize_scalar(lambda spread: -chance(spread), bounds=(0.05, 5), method="bounded")
    assert -worst.fun == pytest.approx(0.05, abs=1e-4) and beyond == pytest.approx(0.16, abs=0.005)
    wide = stats.boundary(GRID, crossing_at(2) * 3, "rising", confidence=0.99)
    assert wide.high is not None and wide.high > same.high


def test_unequal_brackets_of_few_replicates_give_the_hand_computed_t_interval() -> None:
    mixed = stats.boundary(GRID, crossing_at(1, 2, 3), "rising")
    t, two = 4.302653, math.log(2)
    inner = np.array([2.5, 4.25, 5.25]) * two  # a quarter inside brackets of 2 to 4, 4 to 5 and 5 to 6 doublings
    assert mixed.low == pytest.approx(math.exp(inner.mean() - t * inner.std(ddof=1) / math.sqrt(3)), rel=1e-6)
    inner = np.array([3.5, 4.75, 5.75]) * two
    assert mixed.high == pytest.approx(math.exp(inner.mean() + t * inner.std(ddof=1) / math.sqrt(3)), rel=1e-6)


@given(some.lists(some.integers(0, 6), min_size=1, max_size=7), some.integers(0, 2**42 - 1))
def test_missing_cells_widen_the_brackets_of_monotone_replicates_and_never_move_them(crossings, mask) -> None:
    whole = stats.boundary(GRID, crossing_at(*crossings), "rising").brackets
    cells = [
        [v if mask >> (6 * r + i) & 1 else None for i, v in enumerate(row)]
        for r, row in enumerate(crossing_at(*crossings))
    ]
    for full, part in zip(whole, stats.boundary(GRID, cells, "rising").brackets, strict=False):
        assert (part.low or 0.0) <= (full.low or 0.0) and (part.high or math.inf) >= (full.high or math.inf)


def test_enough_replicates_give_order_statistics_of_the_ends() -> None:
    six = stats.boundary(GRID, crossing_at(1, 2, 2, 2, 3, 4), "rising")
    assert (six.low, six.high) == (4, 1024)  # the extremes: both on one side with 2/64 < 5 %
    ten = stats.boundary(GRID, crossing_at(1, 2, 2, 2, 2, 2, 3, 3, 3, 4), "rising")
    assert (ten.low, ten.high) == (16, 64)  # the second from either end: P(at most 1 head of 10) = 11/1024 < 2.5 %
    sure = stats.boundary(GRID, crossing_at(1, 2, 2, 2, 2, 2, 3, 3, 3, 4), "rising", confidence=0.99)
    assert (sure.low, sure.high) == (4, 1024)


def test_a_censored_replicate_leaves_its_end_open_among_few() -> None:
    undecided = stats.boundary(GRID, [NEVER, LATE, LATE], "rising")
    assert undecided.high is None and undecided.low is not None and undecided.verdict == "undecided"
    beyond = stats.boundary(GRID, [NEVER] * 5, "rising")
    assert (beyond.low, beyond.high, beyond.verdict) == (1e12, None, "beyond")
    everywhere = stats.boundary(GRID, [[1.0] * 6] * 5, "rising")
    assert (everywhere.low, everywhere.high, everywhere.verdict) == (None, 4, "below")
    assert stats.boundary(GRID, [[None] * 6] * 3, "falling").verdict == "missing"
    once = stats.boundary(GRID, [[0, 1, 1, 1, 1, 0]] * 3, "rising")
    assert once.verdict == "undecided" and once.high is None  # it was across: not "beyond"


def test_a_censored_or_lost_replicate_counts_on_its_side_among_many() -> None:
    found = stats.boundary(GRID, [*crossing_at(2) * 8, NEVER, [None] * 6], "rising")
    assert (found.low, found.high, found.verdict) == (16, None, "undecided")  # two of ten may lie above all levels
    found = stats.boundary(GRID, [*crossing_at(2) * 9, [None] * 6], "rising")
    assert (found.low, found.high, found.verdict) == (16, 32, "undecided")
    assert len(found.brackets) == 10


def test_a_lost_replicate_stays_in_the_count_and_opens_both_ends_among_few() -> None:
    good, lost = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0], [None] * 6
    found = stats.boundary(GRID, [good, lost, good], "rising")
    assert (found.low, found.high, found.verdict) == (None, None, "undecided")
    assert len(found.brackets) == 3


def test_one_replicate_gives_its_bracket_and_none_nothing() -> None:
    assert stats.boundary(GRID, crossing_at(2), "rising")[:2] == (16, 32)
    assert stats.boundary(GRID, [NEVER], "rising")[:2] == (1e12, None)
    assert stats.boundary(GRID, [], "rising") == (None, None, (), "missing")


def test_a_single_level_is_no_scale_to_widen_by() -> None:
    assert stats.boundary([4.0], [[0.0]] * 3, "rising")[:2] == (None, None)
    assert stats.boundary([4.0], [[0.0]] * 5, "rising")[:2] == (4, None)


def test_arrays_with_nan_give_the_same_as_lists_with_none() -> None:
    lists = [[0.1, None, 0.6, 0.9, 1, 1], [None] * 6, [0.9, 0.1, 0.2, 0.7, None, 0.8]]
    assert stats.boundary(GRID, np.array(lists, dtype=float), "rising") == stats.boundary(GRID, lists, "rising")


@pytest.mark.parametrize("levels", [[], [0.0, 1.0], [2.0, 1.0], [1.0, math.nan], [1.0, math.inf]])
def test_levels_that_are_no_ascending_grid_are_refused(levels) -> None:
    with pytest.raises(ValueError, match="ascending"):
        stats.boundary(levels, [[1.0] * len(levels)], "rising")


def test_a_table_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        stats.boundary(GRID, [[1.0] * 5], "rising")
    with pytest.raises(ValueError, match="not paired"):
        stats.crossover(GRID, [NEVER], [NEVER, NEVER])


@given(tables, some.sampled_from([0.8, 0.95, 0.99, 0.999]))
def test_ends_are_numbers_in_order_or_open_and_more_confidence_is_never_narrower(table, confidence) -> None:
    levels = [10.0 ** (5 * k + 1) for k in range(len(table[0]))]
    found = stats.boundary(levels, table, "rising", confidence)
    surer = stats.boundary(levels, table, "rising", (1 + confidence) / 2)
    low, high = found.low or 0.0, found.high or math.inf
    assert found.low is None or 0 < low < math.inf
    assert found.high is None or 0 < high < math.inf
    assert low <= high and (surer.low or 0.0) <= low * (1 + 1e-9) and (surer.high or math.inf) >= high * (1 - 1e-9)


@given(tables)
def test_a_falling_boundary_is_a_rising_one_of_the_complement_and_scales_with_the_levels(table) -> None:
    levels = [3.0 * 2**k for k in range(len(table[0]))]
    mirrored = [[None if v is None else 1 - v if v != 0.5 else -1.0 for v in row] for row in table]
    rising = stats.boundary(levels, table, "rising")
    assert stats.boundary(levels, mirrored, "falling") == rising
    scaled = stats.boundary([7 * level for level in levels], table, "rising")
    for end, more in ((rising.low, scaled.low), (rising.high, scaled.high)):
        assert (end is None) == (more is None)
        assert end is None or more == pytest.approx(7 * end)


def test_a_crossing_step_is_found_on_a_known_curve_and_never_invented() -> None:
    steps = [round(10 ** (k / 8)) for k in range(8, 25)]
    curve = [1 / (1 + (230 / s) ** 2) for s in steps]
    assert stats.crossing_step(steps, curve) == pytest.approx(230, rel=0.02)
    assert stats.crossing_step(steps, [0.4] * len(steps)) is None
    assert stats.crossing_step(steps, [0.6] * len(steps)) is None  # already across when first looked at
    assert stats.crossing_step([10, 100], [None, 0.7]) is None


# Monotone? ----------------------------------------------------------------------------------------------------------


def test_two_levels_are_compared_by_the_paired_t_test() -> None:
    values = np.array([[0.9, 0.7], [0.8, 0.75], [0.95, 0.6], [0.7, 0.65]])
    fall = stats.monotone([1.0, 2.0], values, "rising")
    wanted = reference.ttest_rel(values[:, 0], values[:, 1], alternative="greater").pvalue
    assert fall.p_value == pytest.approx(wanted) and fall.pair == (1, 2)
    assert fall.change == pytest.approx(-0.1625)
    assert stats.monotone([1.0, 2.0], values, "falling").p_value == pytest.approx(1 - wanted)


def test_the_pair_of_levels_that_goes_against_the_direction_is_named_and_corrected_for_all_pairs() -> None:
    rng = np.random.default_rng(3)
    values = np.array([0.1, 0.5, 0.9, 0.4]) + 0.02 * rng.standard_normal((5, 4))
    found = stats.monotone([1.0, 2.0, 4.0, 8.0], values, "rising")
    assert found.pair == (4, 8) and found.change == pytest.approx(-0.5, abs=0.05)
    own = reference.ttest_rel(values[:, 2], values[:, 3], alternative="greater").pvalue
    assert found.p_value is not None and 6 * own * (1 - 1e-9) <= found.p_value < 0.01
    assert stats.monotone([1.0, 2.0, 4.0], values[:, :3], "rising").p_value == 1


def test_two_replicates_test_nothing_and_three_bimodal_ones_show_nothing() -> None:
    assert stats.monotone(GRID, crossing_at(1, 2), "falling") == (None, None, None)
    assert stats.monotone(GRID, [[1, None] * 3, [None, 1] * 3, [1, None] * 3], "rising").p_value is None
    lucky = np.array([[0.0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0]])  # at 32 all are across, at 64 none
    assert (stats.monotone(GRID, lucky, "rising").p_value or 0) > 0.05


def test_identical_replicates_are_judged_by_their_means() -> None:
    assert stats.monotone(GRID, [[0.5] * 6] * 3, "rising").p_value == 1
    assert (stats.monotone(GRID, [[0, 1, 1, 1, 0.5, 1]] * 3, "rising").p_value or 0) < 1e-6


# Drift --------------------------------------------------------------------------------------------------------------


def test_the_drift_of_one_replicate_spans_the_drifts_that_its_brackets_allow() -> None:
    found = stats.drift([1e11, 4e11, 8e11], [[Bracket(64, 128)], [Bracket(None, None)], [Bracket(4, 16)]])
    assert (found.low, found.high) == pytest.approx((-5 / 3, -2 / 3))  # 128 to 4, and 64 to 16, over three doublings
    assert found.verdict == "undecided" and found.p_value is None  # of one replicate nothing is claimed


def test_the_drift_of_three_replicates_is_the_hand_computed_t_interval() -> None:
    top = [Bracket(4, 8), Bracket(8, 16), Bracket(2, 4)]
    found = stats.drift([1.0, 4.0], [[Bracket(512, 1024)] * 3, top])
    lows, highs, t = np.array([-8, -7, -9]) / 2, np.array([-6, -5, -7]) / 2, 4.302653
    inner = 0.25  # a quarter inside brackets of one doubling
    half = t * 0.5 / math.sqrt(3) - inner
    assert (found.low, found.high) == pytest.approx((lows.mean() - half, highs.mean() + half), rel=1e-6)
    assert np.array(found.slopes) == pytest.approx(np.stack([lows, highs], 1))
    assert found.verdict == "falls"
    by_spread = 2 * reference.t(2).sf((3 + inner) / (0.5 / math.sqrt(3)))
    assert by_spread < 0.01 and found.p_value == 2 / 4**3  # as often, six brackets of two kinds fall so


def test_the_p_value_of_a_drift_is_the_hand_computed_one_where_so_many_do_not_agree_by_chance() -> None:
    top = [Bracket(4, 8), Bracket(8, 16), Bracket(32, 64), Bracket(64, 128), Bracket(128, 256)]
    found = stats.drift([1.0, 4.0], [[Bracket(512, 1024)] * 5, top])
    inner = np.array([-8, -7, -5, -4, -3]) / 2 + 0.25  # the near ends of the slopes are one doubling above these
    error = inner.std(ddof=1) / math.sqrt(5)
    assert found.p_value == pytest.approx(2 * reference.t(4).sf(-(inner + 0.5).mean() / error), rel=1e-6)
    assert found.verdict == "falls"


def test_two_replicates_have_no_drift_and_three_none_at_a_confidence_beyond_chance() -> None:
    rows = [[Bracket(512, 1024)] * 3, [Bracket(4, 8)] * 3]
    two = stats.drift([1.0, 4.0], [row[:2] for row in rows])
    assert (two.verdict, two.p_value) == ("undecided", None) and two.low < 0 < two.high  # type: ignore[operator]
    assert stats.drift([1.0, 4.0], rows).verdict == "falls"
    surer = stats.drift([1.0, 4.0], rows, 0.99)
    assert surer.verdict == "undecided" and surer.high == pytest.approx(-4 * ((0.01 * 4**3 / 2) ** (1 / 6) - 1))


def test_a_censored_bracket_leaves_an_end_open_and_can_still_show_the_direction() -> None:
    found = stats.drift([1.0, 2.0], [[Bracket(1024, None)] * 5, [Bracket(4, 8)] * 5])
    assert (found.low, found.verdict) == (None, "falls") and found.high == pytest.approx(-7)
    few = stats.drift([1.0, 2.0], [[Bracket(1024, None)] * 3, [Bracket(None, 1024)] * 3])
    assert (few.high, few.verdict) == (None, "undecided")  # agreement of three, and no width known to widen by
    lost = stats.drift([1.0, 2.0], [[Bracket(64, 128)] * 3, [Bracket(4, 8), Bracket(4, 8), Bracket(None, None)]])
    assert (lost.low, lost.high, lost.verdict) == (None, None, "undecided")


def test_budgets_without_brackets_are_passed_over_and_without_two_budgets_drift_is_missing() -> None:
    row = [Bracket(4, 8)] * 3
    assert stats.drift([1.0, 2.0, 4.0], [(), row, row]) == stats.drift([2.0, 4.0], [row, row])
    assert stats.drift([1.0, 2.0], [(), row]).verdict == "missing"
    assert stats.drift([1.0, 2.0], [(), ()]) == (None, None, (), "missing", None)
    with pytest.raises(ValueError, match="same replicates"):
        stats.drift([1.0, 2.0], [row, row[:2]])
    with pytest.raises(ValueError, match="ascending"):
        stats.drift([2.0, 1.0], [row, row])


ends = some.tuples(some.integers(0, 8), some.integers(1, 4)).map(lambda e: Bracket(2.0 ** e[0], 2.0 ** (e[0] + e[1])))


@given(some.integers(2, 7).flatmap(lambda n: some.tuples(*[some.lists(ends, min_size=n, max_size=n)] * 2)))
def test_the_interval_of_drift_excludes_zero_exactly_if_its_p_value_is_small(rows) -> None:
    for confidence in (0.8, 0.95, 0.99):
        found = stats.drift([1.0, 8.0], rows, confidence)
        assert found.low is not None and found.high is not None and found.low <= found.high
        assert (found.p_value is None) == (len(rows[0]) < 3)
        if found.p_value is None:
            assert (found.low > 0 or found.high < 0) <= (confidence < 0.875)  # two bimodal rows agree in an eighth
        elif abs(found.p_value - (1 - confidence)) > 1e-6:
            assert (found.p_value < 1 - confidence) == (found.low > 0 or found.high < 0)


# Crossovers ---------------------------------------------------------------------------------------------------------

COMPUTE = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def arms(gain: list[float], n: int, noise: float = 0.01, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = 0.5 + 0.2 * rng.standard_normal((n, 1)) + np.zeros(len(gain))
    return a, a + np.array(gain) + noise * rng.standard_normal((n, len(gain)))


def test_b_overtakes_a_between_the_levels_where_the_sign_changes() -> None:
    found = stats.crossover(COMPUTE, *arms([0, -0.3, -0.3, 0.3, 0.3, 0], 5))
    assert (found.low, found.high, found.verdict) == (4, 8, "crosses")
    assert found.brackets == (Bracket(4, 8),) * 5
    assert found.p_value is not None and found.p_value < 0.001


def test_a_crossover_of_three_that_agree_is_widened_as_a_boundary_is() -> None:
    found = stats.crossover(COMPUTE, *arms([-0.3, -0.3, -0.3, 0.3, 0.3, 0.3], 3))
    boundary = stats.boundary(COMPUTE, crossing_at(3) * 3, "rising")
    assert found.verdict == "crosses" and (found.low, found.high) == (boundary.low, boundary.high)


def test_few_replicates_that_agree_do_not_narrow_it_below_the_levels_at_which_nothing_is_shown() -> None:
    a, b = arms([-0.3, -0.3, 0, 0, 0.3, 0.3], 3, noise=0.001)
    b[:, 2:4] = a[:, 2:4] + np.array([[0.5, 0.5], [0.2, 0.1], [0.01, 0.3]])  # above, but not shown to be
    found = stats.crossover(COMPUTE, a, b)
    assert found.brackets == (Bracket(2, 4),) * 3
    assert found.low is not None and found.low < 2 and found.high == 16


def test_an_arm_ahead_throughout_has_the_p_value_of_a_two_sided_paired_test() -> None:
    """One level needs no correction. With two levels, A is tested at the last and B at its surest, by Holm."""
    draw = np.random.default_rng(3)
    a, b = draw.normal(0, 1, (2, 6, 1))
    for first, second, verdict in ((a + 3, b, "a ahead throughout"), (a, b + 3, "b ahead throughout")):
        found = stats.crossover([1.0], first, second)
        assert found.verdict == verdict
        assert found.ahead_p == pytest.approx(reference.ttest_rel(first[:, 0], second[:, 0]).pvalue)
    assert stats.crossover([1.0], a, b).ahead_p is None
    both = stats.crossover([1.0, 2.0], np.hstack([a, a]), np.hstack([b + 3, b + 6]))
    assert both.verdict == "b ahead throughout" and both.ahead_p is not None and both.ahead_p < found.ahead_p


def test_without_a_crossover_the_ends_are_bounds() -> None:
    ahead = stats.crossover(COMPUTE, *arms([0, -0.1, -0.3, -0.3, -0.3, -0.3], 5))
    assert (ahead.low, ahead.high, ahead.verdict) == (32, None, "a ahead throughout")
    behind = stats.crossover(COMPUTE, *arms([0, 0, 0.3, 0.3, 0.3, 0], 5))
    assert (behind.low, behind.high, behind.verdict) == (None, 4, "b ahead throughout")
    closing = stats.crossover(COMPUTE, *arms([0, -0.3, -0.3, -0.3, -0.1, 0], 5, seed=2))
    assert closing.verdict == "undecided" and closing.low in (8, 16) and closing.high is None
    reverse = stats.crossover(COMPUTE, *arms([0.3, 0.3, 0.3, -0.3, -0.3, -0.3], 5))
    assert (reverse.low, reverse.high, reverse.verdict) == (None, None, "undecided")
    alike = stats.crossover(COMPUTE, *arms([0.0] * 6, 5))
    assert (alike.low, alike.high, alike.verdict) == (None, None, "no difference shown")


def test_two_replicates_show_nothing_and_lost_arms_less() -> None:
    two = stats.crossover(COMPUTE, *arms([-0.3, -0.3, -0.3, 0.3, 0.3, 0.3], 2))
    assert (two.low, two.high, two.verdict, two.p_value) == (None, None, "undecided", None)
    assert two.brackets == (Bracket(4, 8),) * 2
    a, b = arms([-0.3, -0.3, -0.3, 0.3, 0.3, 0.3], 3)
    assert stats.crossover(COMPUTE, np.full((3, 6), np.nan), b).verdict == "missing"
    assert stats.crossover(COMPUTE, [], []).verdict == "missing"
    assert stats.crossover(COMPUTE, a, a).verdict == "no difference shown"


@given(some.integers(0, 400), some.sampled_from([3, 5, 10]), some.sampled_from([0.05, 0.2, 0.5]))
def test_a_crossover_is_claimed_exactly_if_its_p_value_is_small(seed, n, noise) -> None:
    a, b = arms([-0.3, -0.2, -0.1, 0.1, 0.2, 0.3], n, noise, seed)
    for confidence in (0.8, 0.95, 0.99):
        found = stats.crossover(COMPUTE, a, b, confidence)
        assert found.p_value is not None
        assert (found.p_value < 1 - confidence) == (found.verdict == "crosses")
        assert found.low is None or found.high is None or found.low < found.high
