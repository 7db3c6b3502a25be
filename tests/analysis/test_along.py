"""Boundaries along a family parameter: planted truths, directions, lost trials, claims. Synthetic tables."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic
from synthetic import AXIS, VALUES, after, along

from orchestrator.analysis import summary
from orchestrator.analysis.findings import find


def test_a_boundary_along_a_parameter_lies_between_its_values() -> None:
    found = along(after(12), replicates=6)
    small, large = found.of("along n_pairs: ability")
    assert (small.compute_flops, large.compute_flops, large.condition, large.n_tasks) == (1e11, 4e11, "answer", 64)
    assert set(large.brackets) == {(12, 16)} and large.ends == (12, 16) and large.verdict == "crossed"
    assert large.answered and large.significance == "significant"
    assert large.sentence.count("12") and large.sentence.count("16")
    rows = [row for row in summary.rows(found) if row["question"] == "along n_pairs: ability"]
    assert [(row["low"], row["high"]) for row in rows] == [(12, 16), (12, 16)]


def test_a_measure_that_falls_is_found_to_fall_and_one_that_does_neither_has_no_boundary() -> None:
    falls = {value: 1 - level for value, level in after(10).items()}
    (one, _) = along(falls, replicates=6).of("along n_pairs: ability")
    assert one.verdict == "crossed" and one.ends == (10, 12) and "falls" in one.sentence
    for level, verdict, ends in ((0.05, "beyond", (24, None)), (0.95, "below", (None, 8))):
        (one, _) = along(dict.fromkeys(VALUES, level), replicates=6).of("along n_pairs: ability")
        assert (one.verdict, one.ends) == (verdict, ends)


def test_the_interval_of_few_replicates_reaches_beyond_what_they_span_in_steps_of_the_axis() -> None:
    """Three that agree: the limits lie .16 of a step beyond the bracket, and within the neighbouring steps."""
    (one, _) = along(after(12), replicates=3).of("along n_pairs: ability")
    assert one.low is not None and one.high is not None
    assert 10 < one.low < 12 and 16 < one.high < 24
    assert (12 - one.low) / 2 == pytest.approx((one.high - 16) / 8, rel=0.01)  # equal shares of unequal steps
    other = synthetic.made_up(**AXIS | {"axis": {"n_pairs": [v / 2 for v in VALUES]}, "replicates": 3})
    of = synthetic.of_variants(
        other, {c: synthetic.flat(0.95 if v > 6 else 0.05) for v, c in other.series["answer"].items()}
    )
    (half, _) = find(other, *of).of("along n_pairs: ability")
    assert half.ends == pytest.approx((one.low / 2, one.high / 2))


def test_lost_trials_count_as_below_and_those_to_come_do_not() -> None:
    """A trial is named by its place alone in `changed`, so the loss is in all conditions of the replicate."""
    found = along(after(12), {(None, None, None, 2): "open"}, replicates=3)
    (one, _) = found.of("along n_pairs: ability")
    assert one.n == 2 and one.replicates == (0, 1)
    (one, _) = along(after(12), {(None, None, None, 2): "failed"}, replicates=3).of("along n_pairs: ability")
    assert one.n == 3 and one.brackets[2] == (24, None) and one.verdict == "undecided"


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"lo": 10, "hi": 20}, "consistent"),
        ({"hi": 10}, "inconsistent"),
        ({"lo": 13}, "inconclusive"),
        ({"lo": 10, "hi": 20, "arm": "answer"}, "consistent"),
    ],
)
def test_a_claim_on_the_boundary_meets_its_truth(claim: dict[str, Any], verdict: str) -> None:
    primary = {"what": "along_ability", "n_tasks": 64} | claim
    cell = {"n_tasks": 64, "compute_flops": 1e11}
    expected = {"what": "along_ability", "cell": cell, "value": 14, "lo": 10, "hi": 20, "source": "s", "evidence": "C"}
    found = along(after(12), replicates=5, primary=primary, expected=[expected])
    assert found.primary is not None and found.primary.verdict == verdict
    assert found.primary.finding.compute_flops == 4e11 and found.primary.finding.significance == "primary"
    (one,) = found.of("expected ")
    assert one.verdict == "consistent" and one.answered and not one.counted


def test_with_several_numbers_of_tasks_there_is_a_boundary_at_each() -> None:
    found = along(after(12), replicates=3, n_tasks=(4, 64), arm=("answer", "next_token"))
    asked = found.of("along n_pairs: ability")
    assert {(one.condition, one.n_tasks, one.compute_flops) for one in asked} == {
        (arm, n, c) for arm in ("answer", "next_token") for n in (4, 64) for c in (1e11, 4e11)
    }
    pairs = {(one.condition, one.against) for one in found.of("crossover")}
    assert pairs == {(f"next_token, n_pairs={v:g}", f"answer, n_pairs={v:g}") for v in VALUES}


def test_metrics_of_conditions_have_names_that_mlflow_allows() -> None:
    from mlflow.utils.validation import _validate_metric_name

    study = synthetic.made_up(**AXIS | {"n_tasks": (4, 64, 1024), "arm": ("answer", "next_token")})
    metrics = summary.metrics(
        find(study, *synthetic.of_variants(study, {c: synthetic.rising() for c in study.conditions}))
    )
    assert len(metrics) > 10
    for name in metrics:
        _validate_metric_name(name)
