"""Measures and intervals: hand-computed values and simulated truths."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from orchestrator import stats


def test_ability_is_zero_for_ignorance_one_for_the_rule_and_negative_for_confident_error() -> None:
    assert stats.abilities(nll=2.0, uniform=2.0, generalizer=0.5) == 0
    assert stats.abilities(nll=0.5, uniform=2.0, generalizer=0.5) == 1
    assert stats.abilities(nll=5.0, uniform=2.0, generalizer=0.5) == pytest.approx(-2)


def test_memory_is_zero_for_the_rule_one_for_the_memoriser_and_negative_when_under_trained() -> None:
    assert stats.memories(nll=0.9, generalizer=0.9, memorizer=0.1) == 0
    assert stats.memories(nll=0.1, generalizer=0.9, memorizer=0.1) == 1
    assert stats.memories(nll=1.7, generalizer=0.9, memorizer=0.1) == pytest.approx(-1)


def test_references_that_coincide_give_no_ratio() -> None:
    assert np.isnan(stats.abilities(1.0, 2.0, 1.91))  # 0.09 nats apart
    assert np.isnan(stats.abilities(1.0, 2.0, 1.0, gap_error=0.11))  # 1 nat apart, 9 standard errors
    assert stats.abilities(1.0, 2.0, 1.0, gap_error=0.09) == 1
    assert np.isnan(stats.memories(1.0, 1.0, 1.2))  # the "memoriser" is worse than the rule


def test_relative_distance_is_one_at_the_memoriser_and_zero_at_the_generaliser() -> None:
    assert stats.relative_distances(to_generalizer=3.0, to_memorizer=0.0, between=3.0) == 1
    assert stats.relative_distances(to_generalizer=0.0, to_memorizer=3.0, between=3.0) == 0
    assert np.isnan(stats.relative_distances(1.0, 1.0, 0.0))


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


def test_the_table_of_least_replicates_loads_neither_numpy_nor_scipy() -> None:
    script = "import sys, orchestrator.stats.minimums; print(sorted({'numpy', 'scipy'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
