"""Boundaries, onsets and dips of whole studies: planted truths, trials still to come, lost trials. Synthetic tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import synthetic

from orchestrator import stats
from orchestrator.analysis import boundaries, onsets, summary
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import surface

NAN = np.nan
LEVELS = (4, 16, 64, 256)
AXES: dict[str, Any] = {"n_tasks": LEVELS, "compute_flops": (1e11, 4e11), "replicates": 4, "skills": ("recall",)}


def sharp(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    """The skill is there from 64 tasks on, and at 64 only with the larger compute."""
    return np.where((n_tasks > 64) | ((n_tasks == 64) & (flops > 2e11)), 0.95, 0.05)


def found_of(statuses: Any = None, ability: Any = sharp, memory: Any = None, **axes: Any) -> Findings:
    """A study whose trials are done, but for those of `statuses` (`synthetic.changed`)."""
    return synthetic.found(AXES | axes, ability, memory, statuses)


# Planted truths -----------------------------------------------------------------------------------------------------


def test_boundaries_and_onsets_meet_a_known_truth() -> None:
    found = found_of(memory=lambda n, flops, r: np.where(n <= np.where(flops < 2e11, 4, 64), 0.95, 0.05))
    small, large = found.of("K_A")
    assert set(small.brackets) == {(64, 256)} and set(large.brackets) == {(16, 64)}
    assert (small.verdict, small.n) == ("crossed", 4)
    assert 10 < large.low <= 16 and 64 <= large.high < 100  # type: ignore[operator]
    assert [set(one.brackets) for one in found.of("K_M")] == [{(4, 16)}, {(64, 256)}]
    assert [one.verdict for one in found.of("compute to skill")] == ["beyond", "beyond", "crossed", "below"]
    (onset,) = found.of("compute to skill", n_tasks=64)
    assert all(b.low < 2e11 <= b.high for b in onset.brackets)  # type: ignore[operator]


def test_a_drift_is_doublings_of_tasks_per_doubling_of_compute() -> None:
    axes: dict[str, Any] = {"n_tasks": tuple(2**k for k in range(1, 13)), "compute_flops": (1e11, 1.6e12, 2.56e13)}
    found = found_of(ability=synthetic.rising(1024, spread=0), memory=synthetic.falling(64, spread=0), **axes)
    for question, truth, verdict in (("drift of K_A", -0.5, "falls"), ("drift of K_M", 0.5, "rises")):
        (drift,) = found.of(question)
        assert drift.low <= truth <= drift.high and drift.verdict == verdict  # type: ignore[operator]


def test_where_nothing_is_learned_nothing_is_claimed() -> None:
    found = found_of(ability=synthetic.flat(0.02), memory=synthetic.flat(-2.0))
    verdicts = {one.question: one.verdict for one in found.findings}
    assert verdicts["K_A"] == verdicts["compute to skill"] == "beyond" and verdicts["K_M"] == "below"
    assert verdicts["drift of K_A"] == verdicts["drift of K_M"] == "missing"
    assert summary.metrics(found) == {}


def test_one_replicate_gives_a_bracket_and_no_interval() -> None:
    one = found_of(replicates=1).of("K_A", compute_flops=4e11)[0]
    assert one.ends == (16, 64) and not one.has_interval and one.p is None


def test_fewer_than_six_replicates_test_no_boundary_as_they_agree_by_chance() -> None:
    for replicates, p, significance in (
        (5, None, "untested"),
        (6, 2 / 2**6, "not significant"),
        (8, 2 / 2**8, "significant"),
    ):
        found = found_of(replicates=replicates)
        asked = {(one.p, one.significance) for one in (*found.of("K_A"), *found.of("compute to skill"))}
        assert asked == {(p, significance)}


def test_an_end_is_open_where_nothing_was_measured() -> None:
    """Memory has no value above 64 tasks; the interval of few replicates reaches further than that."""
    memory = lambda n, flops, r: np.where(n > 64, NAN, np.where(n > 16, 0.05, 0.95))  # noqa: E731
    one = found_of(memory=memory, replicates=3).of("K_M")[0]
    assert one.reach == (4, 64) and one.interval(0.95)[1] > 64 and one.high is None  # type: ignore[operator]
    widened = found_of({(None, 256, None, None): "open"}, ability=synthetic.rising(30, spread=0), replicates=3)
    assert all(one.reach == (4, 64) for one in widened.of("K_A"))


def test_ability_is_read_after_the_decay_and_memory_before_it() -> None:
    decayed = lambda n, flops, r: np.where(np.isin(flops, (1e11, 4e11)), 0.9, 0.1)  # noqa: E731
    found = found_of(ability=decayed, memory=decayed)
    assert {one.verdict for one in found.of("K_A")} == {"below"} == {one.verdict for one in found.of("K_M")}
    assert (
        np.nanmax(surface(found.results, "memory", "answer"))
        < 0.5
        < np.nanmin(surface(found.results, "ability", "answer", "recall"))
    )


def test_mlflow_gets_the_ends_of_both_boundaries_at_the_largest_budget() -> None:
    found = found_of()
    top = found.study.budgets[-1]
    (k_a,), (k_m,) = found.of("K_A", skill="recall", compute_flops=top), found.of("K_M", compute_flops=top)
    ends = {"K_A/low_tasks": k_a.low, "K_A/high_tasks": k_a.high, "K_M/low_tasks": k_m.low, "K_M/high_tasks": k_m.high}
    assert summary.metrics(found) == {name: value for name, value in ends.items() if value is not None} and k_a.low


def test_a_curve_gives_the_share_of_replicates_with_the_skill() -> None:
    found = found_of({(None, 256, None, 3): "diverged"})
    assert [(s.k, s.n) for s in onsets.successes(found.results, "answer", "recall", 256).values()] == [(3, 4), (3, 4)]
    curve = onsets.curve(found.results, "answer", "recall", 256)
    assert curve is not None and curve.steps[-1].reached == 0.75


# Trials that wait, and lost ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "waiting", "rows", "known"),
    [
        # Nothing waits: the table as it is, a hole included.
        ([[0, 1], [NAN, 1]], [[0, 0], [0, 0]], [0, 1], [[1, 1], [0, 1]]),
        # A replicate that has not run at all is not counted.
        ([[0, 1], [NAN, NAN]], [[0, 0], [1, 1]], [0], [[1, 1]]),
        # Three have both levels, one waits for the second: it is not counted.
        ([[0, 1], [0, 1], [0, 1], [0, NAN]], [[0, 0]] * 3 + [[0, 1]], [0, 1, 2], [[1, 1]] * 3),
        # One has a new level, three wait for it: the old levels of all four are more cells.
        ([[0, 1, 1]] + [[0, 1, NAN]] * 3, [[0, 0, 0]] + [[0, 0, 1]] * 3, [0, 1, 2, 3], [[1, 1, 0]] * 4),
        # A level for which all wait changes nothing.
        ([[0, NAN], [0, NAN]], [[0, 1], [0, 1]], [0, 1], [[1, 0], [1, 0]]),
    ],
)
def test_replicates_that_wait_are_not_counted_either_way(table: Any, waiting: Any, rows: Any, known: Any) -> None:
    settled, which = boundaries.settled(np.array(table, float), np.array(waiting, bool))
    assert which.tolist() == rows
    assert (~np.isnan(settled)).astype(int).tolist() == known


def test_a_widened_study_finds_what_its_finished_replicates_found() -> None:
    whole, widened = found_of(replicates=2), found_of({(None, None, None, r): "open" for r in (2, 3)})
    for question in ("K_A", "K_M", "drift of K_A", "compute to skill"):
        for a, b in zip(whole.of(question), widened.of(question), strict=True):
            assert (a.verdict, a.n, a.brackets, a.ends, a.p) == (b.verdict, b.n, b.brackets, b.ends, b.p)


def test_a_diverged_replicate_is_one_that_does_not_get_there() -> None:
    found = found_of({(None, n, None, 3): "diverged" for n in (64, 256)})
    for one in found.of("K_A"):
        assert one.verdict == "undecided" and [b.high is None for b in one.brackets] == [False] * 3 + [True]
    assert found.of("compute to skill", n_tasks=256)[0].verdict == "undecided"


def test_a_boundary_without_a_value_is_missing_and_untested() -> None:
    arms = ("answer", "next_token")
    for status in ("open", "diverged"):
        found = found_of({("next_token", None, None, None): status}, arm=arms, replicates=6)
        assert {(one.verdict, one.significance) for one in found.of("K_A", "next_token")} == {("missing", "untested")}
        assert {one.verdict for one in found.of("crossover")} == {"missing"}


# Dips ---------------------------------------------------------------------------------------------------------------


def test_dips_are_corrected_for_all_that_were_asked_and_for_nothing_else() -> None:
    found = found_of(replicates=3)
    dips = [one for one in found.findings if one.question.startswith("dip ")]
    assert not any(dip.counted for dip in dips)
    raw = []
    for measure, skill in (("ability", "recall"), ("memory", "")):
        cube, direction = surface(found.results, measure, "answer", skill), boundaries.DIRECTION[measure]  # type: ignore[index,arg-type]
        raw += [stats.monotone([float(n) for n in LEVELS], cube[:, j].T, direction) for j in range(2)]
        if skill:
            raw += [stats.monotone([1e11, 4e11], np.maximum(line, 0).T, "rising") for line in cube]
    assert [dip.p for dip in dips] == [one.p_value for one in raw]
    pairs = [(dip.adjusted_p, dip.p) for dip in dips if dip.p is not None]
    assert pairs and all(a is not None and a >= p for a, p in pairs)


def test_a_planted_fall_is_a_dip_and_a_rise_is_none() -> None:
    falls = lambda n, flops, r: np.where((flops > 2e11) & (n == 64), 0.3, 0.8)  # noqa: E731
    found = found_of(ability=falls, replicates=8)
    significant = {(dip.question, dip.n_tasks) for dip in found.of("dip ", skill="recall") if dip.significance}
    assert ("dip along compute_flops", 64) in significant and ("dip along compute_flops", 16) not in significant
    (dip,) = found.of("dip along compute_flops", n_tasks=64)
    assert dip.verdict == "dips" and dip.estimate == pytest.approx(-0.5, abs=0.02)
    assert not any(dip.significance for dip in found_of(replicates=8).of("dip "))
