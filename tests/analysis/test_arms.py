"""Two conditions side by side: planted differences in tasks, in compute, and where one overtakes the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import synthetic
from synthetic import step

from orchestrator.analysis.finding import Finding
from orchestrator.analysis.findings import Findings, find

AXES: dict[str, Any] = {
    "arm": ("answer", "next_token"),
    "n_tasks": (4, 16, 64, 256, 1024, 4096),
    "compute_flops": (1e11, 2e11, 4e11, 8e11),
    "replicates": 8,
    "skills": ("recall",),
}


def found_of(first: synthetic.Truth, second: synthetic.Truth, statuses: Any = None, **axes: Any) -> Findings:
    """A truth for each of two arms."""
    return synthetic.found(AXES | axes, (first, second), statuses=statuses)


def only(found: Findings, question: str, **place: Any) -> Finding:
    (one,) = found.of(question, **place)
    return one


@pytest.mark.parametrize(("first", "second", "verdict"), [(10, 500, "rises"), (500, 10, "falls")])
def test_the_condition_that_needs_more_tasks_is_found_with_the_ratio(first: float, second: float, verdict: str) -> None:
    one = only(found_of(step(first), step(second)), "task multiplier")
    assert (one.verdict, one.significance, one.n, one.compute_flops) == (verdict, "significant", 8, 8e11)
    assert (one.against, one.condition) == ("answer", "next_token")
    ratio = 64 if verdict == "rises" else 1 / 64  # from 4 to 16 tasks against 256 to 1,024
    assert one.low <= ratio <= one.high and not one.low <= 1 <= one.high  # type: ignore[operator]


def test_the_condition_that_needs_more_compute_is_found_with_the_ratio() -> None:
    one = only(found_of(step(0, 3e10), step(0, 3e11)), "compute multiplier", n_tasks=256)
    assert (one.verdict, one.significance) == ("rises", "significant")
    assert 1 < one.low < 10 < one.high  # type: ignore[operator]


def test_conditions_that_are_alike_are_not_distinguishable() -> None:
    found = found_of(step(100, 1e11), step(100, 1e11))
    asked = [*found.of("task multiplier"), *found.of("compute multiplier"), *found.of("crossover")]
    assert asked and not any(one.significance == "significant" for one in asked)
    assert {one.verdict for one in asked} <= {"undecided", "no difference shown", "missing"}


def rising(share: float) -> synthetic.Truth:
    return lambda n, c, r: 0.2 + share * np.log2(c / 1e11) + 0.01 * (r % 3)


def constant(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return 0.5 + 0.01 * (r % 2)


@pytest.mark.parametrize("swapped", [False, True])
def test_an_overtaking_is_found_in_either_direction_under_one_name(swapped: bool) -> None:
    """The one that rises passes .5 between the second budget and the third."""
    sides = (constant, rising(0.2)) if not swapped else (rising(0.2), constant)
    one = only(found_of(*sides), "crossover", n_tasks=64)
    assert one.verdict == "crosses" and one.significance == "significant"
    assert (one.against, one.condition) == (("answer", "next_token") if not swapped else ("next_token", "answer"))
    assert one.name.startswith("crossover_answer/next_token/")
    assert (one.low, one.high) == (2e11, 4e11)


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "b ahead throughout"), (-0.3, "a ahead throughout")])
def test_a_condition_that_is_ahead_throughout_overtakes_nothing(gain: float, verdict: str) -> None:
    ahead = lambda n, c, r: constant(n, c, r) + gain  # noqa: E731
    one = only(found_of(constant, ahead), "crossover", n_tasks=64)
    assert (one.verdict, one.significance) == (verdict, "significant")
    assert (one.low, one.high) == ((None, 1e11) if gain > 0 else (8e11, None))


def test_only_the_claimed_number_of_tasks_keeps_the_direction_of_the_claim() -> None:
    claim = {"what": "crossover", "arm": "answer", "against": "next_token", "n_tasks": 64, "hi": 4e11}
    found = found_of(rising(0.2), constant, primary=claim)
    claimed, other = only(found, "crossover", n_tasks=64), only(found, "crossover", n_tasks=256)
    assert (claimed.condition, claimed.verdict, claimed.significance) == ("next_token", "undecided", "primary")
    assert (other.condition, other.verdict) == ("answer", "crosses")


def test_conditions_are_paired_by_the_replicates_that_both_have() -> None:
    apart = {("answer", None, None, r): "open" for r in (2, 3)} | {
        ("next_token", None, None, r): "open" for r in (0, 1)
    }
    found = found_of(step(10), step(500), apart, replicates=4)
    assert not found.of("compute multiplier") and only(found, "task multiplier").verdict == "missing"
    shared = {("answer", None, None, 3): "open", ("next_token", None, None, 0): "open"}
    found = found_of(step(10), step(500), shared, replicates=4)
    assert {one.n for one in (*found.of("compute multiplier"), *found.of("task multiplier"))} == {2}
    assert {one.replicates for one in found.of("compute multiplier")} == {(1, 2)}
    assert {one.n for one in found.of("crossover")} == {2}


def test_names_with_a_comma_are_conditions_like_any_other() -> None:
    variants: Any = {"one": {}, "two": {"model": {"n_layers": 3}}}
    study = synthetic.made_up(**(AXES | {"variant": variants}))
    truths = {condition: step(10 if condition.startswith("answer") else 500) for condition in study.conditions}
    found = find(study, *synthetic.of_variants(study, truths))
    significance = {(one.against, one.condition): one.significance for one in found.of("task multiplier")}
    differs = {pair for pair, of in significance.items() if of == "significant"}
    assert len(significance) == 6 and differs == {(a, b) for a, b in significance if a[:3] != b[:3]}
