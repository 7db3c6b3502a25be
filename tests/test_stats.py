"""Measures and intervals: hand-computed values, simulated truths, and nulls in which nothing may be found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator import stats
from orchestrator.stats import Bracket

GRID = [4.0, 16.0, 32.0, 64.0, 1024.0, 1e12]
"""The quickstart's numbers of tasks."""


def test_ability_is_zero_for_ignorance_one_for_the_rule_and_negative_for_confident_error() -> None:
    assert stats.ability(nll=2.0, uniform=2.0, generalizer=0.5) == 0
    assert stats.ability(nll=0.5, uniform=2.0, generalizer=0.5) == 1
    assert stats.ability(nll=5.0, uniform=2.0, generalizer=0.5) == pytest.approx(-2)


def test_memory_is_zero_for_the_rule_one_for_the_memoriser_and_negative_when_under_trained() -> None:
    assert stats.memory(nll=0.9, generalizer=0.9, memorizer=0.1) == 0
    assert stats.memory(nll=0.1, generalizer=0.9, memorizer=0.1) == 1
    assert stats.memory(nll=1.7, generalizer=0.9, memorizer=0.1) == pytest.approx(-1)


def test_references_that_coincide_give_no_ratio() -> None:
    assert stats.ability(1.0, 2.0, 1.91) is None  # 0.09 nats apart
    assert stats.ability(1.0, 2.0, 1.0, gap_error=0.11) is None  # 1 nat apart, 9 standard errors
    assert stats.ability(1.0, 2.0, 1.0, gap_error=0.09) == 1
    assert stats.memory(1.0, 1.0, 1.2) is None  # the "memoriser" is worse than the rule


def test_relative_distance_is_one_at_the_memoriser_and_zero_at_the_generaliser() -> None:
    assert stats.relative_distance(to_generalizer=3.0, to_memorizer=0.0, between=3.0) == 1
    assert stats.relative_distance(to_generalizer=0.0, to_memorizer=3.0, between=3.0) == 0
    assert stats.relative_distance(1.0, 1.0, 0.0) is None


@pytest.mark.parametrize(
    ("values", "direction", "expected"),
    [
        ([0.1, 0.2, 0.6, 0.9, 1, 1], "rising", Bracket(16, 32)),
        ([0.6, 0.2, 0.6, 0.9, 1, 1], "rising", Bracket(None, 4)),
        ([0.1, 0.2, 0.3, 0.4, 0.1, 0.2], "rising", Bracket(1e12, None)),
        ([0.9, 0.8, 0.3, 0.1, None, None], "falling", Bracket(16, 32)),
        ([0.9, 0.8, 0.7, None, None, None], "falling", Bracket(32, None)),
        ([0.1, None, 0.0, 0.0, 0.0, None], "falling", Bracket(None, 4)),
        ([0.1, None, 0.6, 0.9, 1, 1], "rising", Bracket(4, 32)),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], "rising", Bracket(None, 4)),
        ([None] * 6, "rising", None),
    ],
)
def test_a_bracket_is_the_last_cell_before_and_the_first_cell_across(values, direction, expected) -> None:
    assert stats.bracket(GRID, values, direction) == expected


def test_a_replicate_that_comes_back_is_counted_as_not_monotone() -> None:
    boundary = stats.boundary(GRID, [[0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1]], "rising")
    assert boundary.not_monotone == 1


def test_equal_brackets_give_the_bracket_and_unequal_ones_the_hand_computed_t_interval() -> None:
    same = stats.boundary(GRID, [[0, 0, 1, 1, 1, 1]] * 3, "rising")
    assert (same.low, same.high, same.verdict) == (16, 32, "crossed")
    mixed = stats.boundary(GRID, [[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], "rising")
    lows, highs, t = np.log([4, 16, 32]), np.log([16, 32, 64]), 4.302653
    assert mixed.low == pytest.approx(math.exp(lows.mean() - t * lows.std(ddof=1) / math.sqrt(3)), rel=1e-6)
    assert mixed.high == pytest.approx(math.exp(highs.mean() + t * highs.std(ddof=1) / math.sqrt(3)), rel=1e-6)


def test_a_censored_replicate_leaves_its_end_open() -> None:
    never, late = [0.0] * 6, [0, 0, 0, 0, 0, 1.0]
    undecided = stats.boundary(GRID, [never, late, late], "rising")
    assert undecided.high is None and undecided.low is not None and undecided.verdict == "undecided"
    assert stats.boundary(GRID, [never] * 3, "rising").verdict == "beyond"
    everywhere = stats.boundary(GRID, [[1.0] * 6] * 3, "rising")
    assert everywhere.verdict == "below" and everywhere.low is None
    assert stats.boundary(GRID, [[None] * 6] * 3, "falling").verdict == "missing"


@pytest.mark.parametrize("direction", ["rising", "falling"])
@pytest.mark.parametrize("n_replicates", [3, 10])
@pytest.mark.parametrize("spread", [0.2, 0.7, 1.5])
def test_the_interval_covers_a_simulated_boundary_at_least_as_often_as_it_says(direction, n_replicates, spread) -> None:
    draw = np.random.default_rng(7)
    covered, decided = 0, 0
    for _ in range(2000):
        truth = math.exp(draw.uniform(math.log(10), math.log(400)))
        thresholds = truth * np.exp(spread * draw.standard_normal(n_replicates))
        sign = 1 if direction == "rising" else -1
        tables = [[0.5 + sign * (0.4 if level >= t else -0.4) for level in GRID] for t in thresholds]
        found = stats.boundary(GRID, tables, direction)
        covered += (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)
        decided += found.low is not None and found.high is not None
    assert covered / 2000 >= 0.95
    assert decided / 2000 >= 0.5  # it does not cover by being open


def test_nothing_is_found_where_there_is_nothing() -> None:
    draw = np.random.default_rng(1)
    for _ in range(500):
        noise = (0.1 * draw.standard_normal((3, len(GRID)))).tolist()
        assert stats.boundary(GRID, noise, "rising").verdict == "beyond"
        assert stats.boundary(GRID, noise, "falling").verdict == "below"


def test_a_t_interval_covers_the_mean_of_a_normal_at_its_level() -> None:
    draw = np.random.default_rng(2)
    hits = 0
    for _ in range(4000):
        interval = stats.t_interval(draw.normal(5, 2, 4).tolist())
        assert interval is not None and interval.low is not None and interval.high is not None
        hits += interval.low <= 5 <= interval.high
    assert abs(hits / 4000 - 0.95) < 0.012


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert stats.t_interval([3.0]) == (3.0, None, None, 1)
    assert stats.t_interval([]) is None


def test_wilson_agrees_with_published_values_and_refuses_nothing_at_all() -> None:
    low, high = stats.wilson_interval(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert stats.wilson_interval(20, 20)[0] == pytest.approx(0.8389, abs=1e-4) and stats.wilson_interval(20, 20)[1] == 1
    with pytest.raises(ValueError):
        stats.wilson_interval(0, 0)


def test_a_crossing_step_is_found_on_a_known_curve_and_never_invented() -> None:
    steps = [round(10 ** (k / 8)) for k in range(8, 25)]
    curve = [1 / (1 + (230 / s) ** 2) for s in steps]
    assert stats.crossing_step(steps, curve) == pytest.approx(230, rel=0.02)
    assert stats.crossing_step(steps, [0.4] * len(steps)) is None
    assert stats.crossing_step(steps, [0.6] * len(steps)) is None  # already across when first looked at
    assert stats.crossing_step([10, 100], [None, 0.7]) is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([230, 235, 240], "consistent"),
        ([600, 605, 610], "inconsistent"),
        ([100, 300, 500], "inconclusive"),
        ([230], "inconclusive"),
        ([410, 400, 395], "inconclusive"),
    ],
)
def test_agreement_needs_an_interval_as_narrow_as_the_claim(values, verdict) -> None:
    assert stats.agreement(stats.t_interval([float(v) for v in values]), 180, 400) == verdict
    assert stats.agreement(None, 180, 400) == "inconclusive"


def test_a_lost_replicate_stays_in_the_count_and_opens_both_ends() -> None:
    good, lost = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0], [None] * 6
    found = stats.boundary(GRID, [good, lost, good], "rising")
    assert (found.low, found.high, found.verdict) == (None, None, "undecided")
    assert len(found.brackets) == 3
