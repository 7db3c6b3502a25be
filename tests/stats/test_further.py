"""Replicates that would settle a claim: the predictive distribution behind them, and whether the promise is kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from simulate_claims import LEVELS, SCENARIOS, decided
from simulation import Scenario

from orchestrator.stats import Boundary, Bracket, further
from orchestrator.stats.further import MOST, Ends, for_boundary, for_crossover, for_drift, for_mean
from trainers.streams import stream


def within(lo: float, hi: float):  # type: ignore[no-untyped-def]
    def settled(found: Boundary | Ends) -> bool:
        return decided(found[0], found[1], lo, hi)

    return settled


RUNS = {"a boundary": 120, "a mean": 200, "a crossover": 50}
"""Enough for some 20 studies that are told a number; at length: make calibration."""


@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if s.name.endswith("from 3") and "drift" not in s.name], ids=lambda s: s.name
)
def test_the_replicates_named_settle_it_as_often_as_promised(scenario: Scenario) -> None:
    (runs,) = (n for what, n in RUNS.items() if what in scenario.name)
    outcome = scenario.play(runs)
    assert outcome.n_runs >= 10 and outcome.share >= scenario.bound, outcome


def test_a_further_replicate_is_drawn_from_students_predictive_distribution() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.6, 0.3])
    drawn = further._more_like(np.broadcast_to(values[:, None], (20_000, 5, 1)), stream("test", "predictive"))[:, 0, 0]
    t = (drawn - values.mean()) / (values.std(ddof=1) * np.sqrt(1 + 1 / 5))  # Student's with 4 degrees of freedom
    for share in (0.025, 0.25, 0.5, 0.9, 0.975):
        assert np.mean(t < special.stdtrit(4, share)) == pytest.approx(share, abs=0.01)


def test_columns_of_a_replicate_stay_together() -> None:
    rows = np.array(
        [[0.0, 1.0, 5.0], [1.0, 3.0, 5.0], [0.5, 2.0, 5.0]]
    )  # the second is twice the first and one, the third fixed
    new = further._more_like(np.broadcast_to(rows, (50, 3, 3)), stream("test", "columns"))
    assert new.shape == (50, MOST - 3, 3)
    assert np.allclose(new[..., 1], 2 * new[..., 0] + 1) and np.allclose(new[..., 2], 5)
    assert np.ptp(new[..., 0]) > 1


def test_new_brackets_are_steps_of_the_grid_and_as_wide_as_those_seen() -> None:
    logs = np.log(LEVELS)
    narrow, wide, beyond = Bracket(16, 32), Bracket(16, 128), Bracket(4096, None)
    for seen, steps in (([narrow, Bracket(32, 64)], 1), ([wide, wide], 3)):
        places = further._new_places(logs, further._places(LEVELS, [seen]), stream("test", "brackets"))
        low, high = places[..., 0, 0], places[..., 0, 1]
        inside = (low >= 0) & (high < len(LEVELS))
        assert inside.mean() > 0.5 and set((high - low)[inside].tolist()) == {steps}
        assert low.min() >= -1 and high.max() <= len(LEVELS)
    places = further._new_places(logs, further._places(LEVELS, [[beyond, beyond]]), stream("test", "beyond"))
    assert (places[..., 0, 1] == len(LEVELS)).mean() > 0.5


def test_more_spread_and_a_nearer_edge_take_more_replicates() -> None:
    values = np.array([-1.0, -0.2, 0.1, 0.3, 0.8])

    def needed(spread: float, edge: float) -> float:
        found = for_mean((0.5 + spread * values).tolist(), within(edge, 10), stream("test", "spread"))
        assert found is not None
        return 2 * found.n if found.or_more else found.n

    assert 6 <= needed(0.1, 0.4) < needed(0.2, 0.4) <= needed(0.4, 0.4)
    assert needed(0.1, 0.4) < needed(0.1, 0.45)
    assert needed(0.1, 0.499) == 2 * MOST


def test_what_has_no_spread_or_no_replicates_gives_no_estimate() -> None:
    draw = stream("test", "none")
    assert for_mean([0.5], within(0, 1), draw) is None
    assert for_mean([0.5, 0.5, 0.5], within(0, 1), draw) is None
    assert for_boundary(LEVELS, [Bracket(16, 32)], within(2, 4), draw) is None
    assert for_boundary([4.0], [Bracket(None, 4), Bracket(4, None)], within(2, 4), draw) is None
    assert for_drift(LEVELS, [1e11], [[Bracket(16, 32)] * 3], within(0, 1), draw) is None
    ones = np.ones((3, 2))
    assert for_crossover([1e11, 2e11], ones, ones, lambda met: True, draw) is None
    assert for_crossover([1e11, 2e11], ones, np.where(np.eye(3, 2) > 0, np.nan, 2), lambda met: True, draw) is None
    crowd = for_mean(list(np.linspace(0, 1, MOST)), within(0.4, 10), draw)
    assert crowd is not None and crowd.or_more
