"""Two studies side by side: planted differences are found, studies of one truth are not distinguishable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import synthetic

from orchestrator.analysis.compare import OVERALL_SHARE, Comparison, compare, left_out, more, sentence
from orchestrator.analysis.finding import FALSE_SHARE, Finding, count
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import Results, surface
from trainers.streams import stream

AXES: dict[str, Any] = {"n_tasks": (4, 16, 64, 256), "compute_flops": (1e11, 4e11, 1.6e12), "replicates": 5}


def found_of(version: int = 1, centre: float = 64.0, statuses: Any = None, **changes: Any) -> Findings:
    """The tables of a study of a known truth. Nothing is asked of it alone: a comparison needs no more."""
    how = {"noise": changes.pop("noise", 0.01), "ability": changes.pop("ability", None) or synthetic.rising(centre)}
    study = synthetic.made_up(**(AXES | {"version": version} | changes))
    tables = synthetic.tables(study, draw=version, first_flops=1e14, **how)
    return Findings(study=study, results=Results.of_tables(study, *synthetic.changed(tables, statuses or {})))


def at(found: Comparison, question: str, **place: Any) -> Finding:
    """The finding of the headline skill at a place."""
    place |= {"question": question, "skill": found.skill}
    (one,) = (one for one in found.findings if all(getattr(one, name) == value for name, value in place.items()))
    return one


def cells(found: Comparison, skill: str = "recall", condition: str = "made_up@2") -> dict[tuple[int, float], float]:
    """Mean difference by cell, of the significant ones."""
    return {
        (one.n_tasks, one.compute_flops): one.estimate  # type: ignore[misc]
        for one in found.significant("difference of ability")
        if one.skill == skill and one.condition == condition
    }


# Planted differences ------------------------------------------------------------------------------------------------


def test_a_boundary_that_moved_shows_in_the_mean_in_the_cells_that_it_passed_over_and_in_its_shift() -> None:
    axes: dict[str, Any] = {"n_tasks": (4, 8, 16, 32, 64, 128, 256), "replicates": 8}
    found = compare(found_of(1, centre=64, **axes), found_of(2, centre=8, model={"d_model": 128}, **axes))
    passed = cells(found)
    assert passed[16, 4e11] > 0.5 and abs(passed.get((256, 1.6e12), 0.0)) < 0.05
    assert found.settings == ("model.d_model: 64 -> 128",)
    assert found.overall_is_significant and found.overall.n_tasks == 21 and found.overall.n == 8
    assert found.overall.confidence == pytest.approx(0.96)
    shift = at(found, "task multiplier", compute_flops=1e11)
    assert shift.significance == "significant" and shift.verdict == "falls"
    assert shift.low <= 1 / 8 <= shift.high < 1  # type: ignore[operator]


def test_the_mean_over_the_cells_and_replicates_that_both_have_by_hand() -> None:
    def truth(plus: float) -> synthetic.Truth:
        return lambda n_tasks, flops, replicate: 0.2 + plus + 0.02 * replicate * plus - 0.9 * (n_tasks == 4)

    a = found_of(1, ability=truth(0.0), noise=0.0, replicates=4)
    b = found_of(2, ability=truth(0.5), noise=0.0, replicates=6)
    overall = compare(a, b).overall
    # a: .2 in 9 of 12 cells, and in 3 below 0, which counts as 0. b: .7 + .01 r in 9, and in 3 still below 0.
    assert (overall.n, overall.estimate) == (4, pytest.approx(0.75 * (0.5 + 0.01 * 2.5)))


def test_three_replicates_show_in_the_mean_what_no_single_cell_may_claim() -> None:
    found = compare(found_of(1, centre=64, replicates=3), found_of(2, centre=24, replicates=3))
    assert found.overall_is_significant and found.overall.estimate > 0 and not found.significant()  # type: ignore[operator]


def test_studies_with_other_numbers_of_replicates_are_compared_unpaired_by_all_of_them() -> None:
    a, b = found_of(1), found_of(2, replicates=3)
    found = compare(a, b)
    place = a.results.levels.index(64), a.results.budgets.index(1e11)
    x, y = (surface(side.results, "ability", "answer", "recall")[place] for side in (a, b))
    cell = at(found, "difference of ability", n_tasks=64, compute_flops=1e11)
    assert not found.paired and (cell.n, cell.estimate) == (3, pytest.approx(float(y.mean() - x.mean())))


def test_every_shared_condition_is_compared_and_the_axes_of_one_study_alone_are_named() -> None:
    two, three = ("answer", "next_token"), ("next_token", "answer")
    axes = {"arm": three, "n_tasks": (4, 16, 64), "compute_flops": (4e11, 1.6e12, 9e12)}
    found = compare(found_of(1, arm=two), found_of(2, centre=8, **axes))
    assert found.pairs == (("answer", "answer"), ("next_token", "next_token"))
    assert (found.levels, found.budgets) == ([4, 16, 64], [4e11, 1.6e12])
    assert all(cells(found, condition=f"made_up@2 ({arm})") for arm in two)
    first, second = left_out(found)
    assert "256" in first and "1e11" in first and "9e12" in second
    one = compare(found_of(1, arm=two), found_of(2, arm=("next_token",)))
    assert one.pairs == (("next_token", "next_token"),) and "answer" in left_out(one)[0]


def test_variants_are_compared_like_arms_and_a_setting_of_one_carries_its_name() -> None:
    def found(version: int, width: int) -> Findings:
        variants = {"narrow": {}, "wide": {"model": {"d_model": width}}}
        study = synthetic.made_up(**(AXES | {"version": version, "variant": variants, "skills": ("recall",)}))
        truths = {"narrow": synthetic.rising(64), "wide": synthetic.rising(64 if width == 128 else 8)}
        return Findings(study=study, results=Results.of_tables(study, *synthetic.of_variants(study, truths)))

    compared = compare(found(1, 128), found(2, 256))
    assert compared.settings == ("wide: model.d_model: 128 -> 256",)
    assert cells(compared, condition="made_up@2 (wide)") and not cells(compared, condition="made_up@2 (narrow)")


def test_without_a_shared_condition_the_first_of_each_are_compared() -> None:
    crossed = compare(found_of(1), found_of(2, arm=("next_token",)))
    assert crossed.pairs == (("answer", "next_token"),) and "arm: answer -> next_token" in crossed.settings


@pytest.mark.parametrize("late_first", [False, True])
def test_an_overtaking_is_found_in_either_direction(late_first: bool) -> None:
    early = lambda n, c, r: np.where(c < 1e12, 0.4, 0.5) + 0.01 * r  # noqa: E731
    late = lambda n, c, r: np.where(c < 1e12, 0.1, 0.9) - 0.01 * r  # noqa: E731
    axes: dict[str, Any] = {"compute_flops": (1e11, 4e11, 1.6e12, 6.4e12)}
    truths = (late, early) if late_first else (early, late)
    found = compare(*(found_of(i + 1, ability=truth, **axes) for i, truth in enumerate(truths)))
    crossovers = [one for one in found.findings if one.question == "crossover"]
    assert [one.n_tasks for one in crossovers] == [4, 16, 64, 256]
    for one in crossovers:  # every replicate changes sides between these, and five may agree by chance
        assert (one.condition, one.significance) == ("made_up@1" if late_first else "made_up@2", "significant")
        assert 2e11 < one.low <= 4e11 and 1.6e12 <= one.high < 3.2e12  # type: ignore[operator]


# Nulls --------------------------------------------------------------------------------------------------------------


def bimodal(draw: int, share: float, replicates: int) -> synthetic.Truth:
    """Each trial has the skill by chance from 16 tasks on, with this probability up to 64, always beyond; never at 4."""
    chances = stream("compare", "null", draw).random((4, 3, replicates))

    def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        level, budget = np.searchsorted(AXES["n_tasks"], n_tasks), np.searchsorted(AXES["compute_flops"], flops)
        has = chances[level, budget, replicate] < np.where(n_tasks > 64, 1.0, share) * (n_tasks > 4)
        return np.where(has, 0.95, 0.05)

    return truth


@pytest.mark.parametrize(("replicates", "share"), [(3, 0.5), (5, 0.45)])
def test_two_bimodal_studies_of_one_truth_differ_in_anything_in_at_most_one_of_twenty_comparisons(
    replicates: int, share: float
) -> None:
    """At length: 4.5 % of 1,000 comparisons of five replicates."""
    claimed, n = 0, 60
    for draw in range(n):
        truths = {2 * draw + i: bimodal(2 * draw + i, share, replicates) for i in (1, 2)}
        sides = (found_of(i, ability=t, replicates=replicates, skills=("recall",)) for i, t in truths.items())
        found = compare(*sides)
        claimed += bool(found.significant() or found.overall_is_significant)
    assert claimed <= n / 20


def test_studies_of_one_truth_are_not_distinguishable() -> None:
    alike = compare(found_of(1), found_of(3))
    assert not alike.significant() and alike.overall.significance == "not significant"
    assert alike.overall.low < 0 < alike.overall.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("at_16", "shown", "share"), [(-0.3, False, FALSE_SHARE - OVERALL_SHARE), (0.3, True, FALSE_SHARE)]
)
def test_after_a_mean_difference_all_else_is_tested_at_the_whole_share(at_16: float, shown: bool, share: float) -> None:
    """The fallback procedure, read off the confidence of significant findings: 1 - share R / m."""
    moved = lambda n, c, r: 0.5 + 0.3 * (n == 64) + at_16 * (n == 16)  # noqa: E731
    axes: Any = {"replicates": 8, "skills": ("recall",)}
    found = compare(found_of(1, ability=synthetic.flat(0.5), **axes), found_of(2, ability=moved, **axes))
    assert found.overall_is_significant == shown
    significant, m = found.significant(), sum(one.p is not None for one in found.findings)
    assert {(one.n_tasks) for one in significant if one.question == "difference of ability"} == {16, 64}
    assert {round(one.confidence, 9) for one in significant} == {round(1 - share * len(significant) / m, 9)}


def test_an_interval_of_a_significant_cell_excludes_zero() -> None:
    for replicates in (3, 5, 8):
        found = compare(found_of(1, centre=64, replicates=replicates), found_of(2, centre=20, replicates=replicates))
        significant = found.significant("difference")
        assert all(one.low is None or not one.low <= 0 <= one.high for one in significant)  # type: ignore[operator]


def test_a_study_agrees_exactly_with_itself_even_with_fewer_cells() -> None:
    whole = found_of(1, noise=0.0)
    partial = found_of(1, noise=0.0, statuses={(None, 256, None, None): "open"})
    for other in (whole, partial):
        same = compare(whole, other)
        assert {one.verdict for one in same.findings if one.question.startswith("difference")} <= {"equal", "missing"}
        assert not same.significant() and same.settings == () and "exactly" in sentence(same)


def test_one_replicate_tests_nothing_and_two_show_nothing() -> None:
    one, two = (compare(found_of(1, replicates=n), found_of(2, centre=8, replicates=n)) for n in (1, 2))
    assert {f.p for f in (*one.findings, one.overall)} == {None} and one.overall.significance == "untested"
    assert two.overall.p is not None and not two.significant() and not two.overall_is_significant


# Refused, or left out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"compute_flops": (7e11,)}, "made_up@1 has 1e11, 4e11, 1.6e12; made_up@2 has 7e11"),
        ({"n_tasks": (8,)}, "made_up@1 has 4, 16, 64, 256; made_up@2 has 8"),
        ({"skills": ("override",)}, "made_up@1 has recall; made_up@2 has override"),
        ({"family": {"name": "urns"}, "arm": ("next_token",), "skills": ()}, "cipher and urns"),
    ],
)
def test_nothing_in_common_is_refused_with_both_sides_named(changes: dict[str, Any], says: str) -> None:
    a = found_of(1, skills=("recall",))
    study = synthetic.made_up(**(AXES | {"version": 2, "skills": ("recall",)} | changes))
    nothing = (table.slice(0, 0) for table in synthetic.tables(a.study))
    b = Findings(study=study, results=Results.of_tables(study, *nothing))
    with pytest.raises(ValueError, match=says):
        compare(a, b)


def test_cells_without_a_value_in_both_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the cells"):
        compare(found_of(1), found_of(2, statuses={(None,) * 4: "open"}))


def test_only_common_cells_are_compared() -> None:
    found = compare(found_of(1), found_of(2, n_tasks=(16, 1024), compute_flops=(4e11, 9e12)))
    asked = {(one.n_tasks, one.compute_flops) for one in found.findings if one.question.startswith("difference")}
    assert asked == {(16, 4e11)} and found.overall.n_tasks == 1
    assert not [one for one in found.findings if one.question == "crossover"]


def test_other_settings_of_a_family_are_compared_unpaired() -> None:
    other = compare(found_of(1), found_of(2, centre=8, replicates=6, family={"name": "cipher", "n_pairs": 12}))
    assert not other.paired and cells(other)
    assert {one.question.split(" of ")[0] for one in other.findings} == {"difference"}  # no shift, no crossover


def test_lost_trials_count_as_without_the_skill_and_all_that_do_not_count_are_named() -> None:
    constant: Any = {"ability": lambda n, c, r: 0.9 + 0 * n, "noise": 0.0}
    lost = found_of(2, statuses={(None, 256, None, 4): "diverged", (None, 4, 1e11, 0): "open"}, **constant)
    found = compare(found_of(1, **constant), lost, outside=(0, 1))
    # At one of four numbers of tasks, of one of five replicates; the open trial leaves out its replicate's cell for all.
    assert found.overall.n_tasks == 11 and found.overall.estimate == pytest.approx(-0.9 * 3 / 11 / 5)
    said = left_out(found)
    assert len(said) == 3 and [line[:2] for line in said] == ["1 ", "1 ", "3 "]
    assert set(said) <= set(more(found))
    assert count(found.findings, "significant") == 0
