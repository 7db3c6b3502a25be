"""Many claims at once: adjusted p-values, selection, and the confidence of every interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import special
from simulate_replicates import MULTIPLICITY
from simulation import RUNS_IN_TESTS, Scenario

from orchestrator.stats import multiplicity


@pytest.mark.parametrize("scenario", MULTIPLICITY, ids=lambda s: s.name)
def test_a_simulated_truth(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


PUBLISHED = [
    0.0001,
    0.0004,
    0.0019,
    0.0095,
    0.0201,
    0.0278,
    0.0298,
    0.0344,
    0.0459,
    0.3240,
    0.4262,
    0.5719,
    0.6528,
    0.7590,
    1.0,
]
"""Benjamini and Hochberg 1995, section 4.1. Their procedure selects the first four at .05."""


def test_the_published_example_selects_its_first_four() -> None:
    found = multiplicity.adjust(PUBLISHED[::-1])
    assert found.selected == 4
    assert [claim.verdict for claim in found.claims[-4:]] == ["selected"] * 4
    assert found.claims[-4].adjusted_p == pytest.approx(0.0095 * 15 / 4)
    assert found.claims[-4].confidence == pytest.approx(1 - 0.05 * 4 / 15)
    assert found.claims[0].confidence == pytest.approx(1 - 0.05 * 5 / 15)


def test_an_untestable_claim_is_listed_and_not_counted() -> None:
    found = multiplicity.adjust([0.001, None, 0.02, 0.5, math.nan])
    assert found.selected == 2
    assert found.claims[1] == found.claims[4] == (None, None, "untested", None)
    assert found.claims[2].adjusted_p == pytest.approx(0.03)


def test_one_claim_is_left_as_it_is_and_none_gives_none() -> None:
    alone = multiplicity.adjust([0.05])
    assert alone.claims == ((0.05, 0.05, "selected", 0.95),)
    nothing = multiplicity.adjust([])
    assert nothing == ((), 0)
    assert multiplicity.adjust([None]).selected == 0


def test_a_p_value_on_the_line_is_selected_for_any_rounding() -> None:
    for m in range(1, 60):
        assert multiplicity.adjust([0.05 * (i + 1) / m for i in range(m)]).selected == m


def test_a_number_outside_zero_to_one_is_refused() -> None:
    for wrong in ([1.01], [-0.1], [0.5, math.inf]):
        with pytest.raises(ValueError):
            multiplicity.adjust(wrong)
    with pytest.raises(ValueError):
        multiplicity.adjust([0.5], q=0)


@given(some.lists(some.floats(1e-12, 1.0), min_size=1, max_size=30))
def test_an_interval_excludes_zero_exactly_where_its_claim_is_selected_and_is_never_narrower_than_plain(
    p_values,
) -> None:
    found = multiplicity.adjust(p_values)
    for p, claim in zip(p_values, found.claims, strict=True):
        assert claim.confidence is not None and claim.confidence >= 0.95 - 1e-12
        t, reach = -special.stdtrit(7, p / 2), special.stdtrit(7, 0.5 + claim.confidence / 2)
        if abs(t - reach) > 1e-6 * reach:  # else zero is on the end
            assert (t > reach) == (claim.verdict == "selected")


@given(some.lists(some.floats(0.0, 1.0), min_size=1, max_size=30), some.randoms())
def test_order_changes_nothing_and_a_smaller_p_is_never_worse_off(p_values, random) -> None:
    found = multiplicity.adjust(p_values)
    by_p = sorted(found.claims, key=lambda claim: claim.p)
    assert all(a.adjusted_p <= b.adjusted_p for a, b in itertools.pairwise(by_p))
    shuffled = list(p_values)
    random.shuffle(shuffled)
    again = multiplicity.adjust(shuffled)
    assert sorted(claim.p for claim in again.claims if claim.verdict == "selected") == sorted(
        claim.p for claim in found.claims if claim.verdict == "selected"
    )
    assert np.isfinite([claim.adjusted_p for claim in found.claims]).all()
