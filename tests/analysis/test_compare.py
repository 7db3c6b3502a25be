"""Two studies side by side: planted differences are found and told in words, studies of one truth are not told apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import synthetic
from browser import DESKTOP, PHONE, Open, chromium, open_page, overlaps, sticking_out

from orchestrator.analysis import boundaries
from orchestrator.analysis.compare import OVERALL_SHARE, Comparison, compare
from orchestrator.analysis.compare_words import answer, left_out, shift_words
from orchestrator.analysis.findings import Findings, find
from orchestrator.analysis.results import Results, surface
from orchestrator.report import compare_page
from orchestrator.stats import Drift
from trainers.streams import stream

__all__ = ["chromium", "open_page"]  # fixtures

AXES: dict[str, Any] = {"n_tasks": (4, 16, 64, 256), "compute_flops": (1e11, 4e11, 1.6e12), "replicates": 5}


def found_of(
    version: int = 1,
    centre: float = 64.0,
    noise: float = 0.01,
    ability: synthetic.Truth | None = None,
    lost: int = 0,
    **changes: Any,
) -> Findings:
    """What a study of a known truth finds of boundaries: enough to compare it. The last `lost` trials diverged."""
    study = synthetic.made_up(**(AXES | {"version": version} | changes))
    truth = ability or synthetic.rising(centre)
    tables = synthetic.tables(study, ability=truth, noise=noise, draw=version, first_flops=1e14)
    return bounds_of(Results.of_tables(study, *tables), lost)


def bounds_of(results: Results, lost: int = 0) -> Findings:
    """The boundaries, at 95 %, and nothing else."""
    for run in results.runs[len(results.runs) - lost :]:
        run["status"] = "diverged"

    def bounds(measure: Any, arm: str, skill: str) -> boundaries.Boundaries:
        return boundaries.boundaries_of(results, measure, arm, skill, lambda name: 0.95)

    arms, skills = list(results.study.lines), results.study.shown_skills
    k_ability = {(arm, skill): bounds("ability", arm, skill) for arm in arms for skill in skills}
    k_memory = {arm: bounds("memory", arm, "") for arm in arms}
    return Findings(study=results.study, results=results, k_ability=k_ability, k_memory=k_memory)


def text_of(found: Comparison) -> str:
    """The whole answer."""
    return " ".join(answer(found))


def kept(found: Comparison, arm: str = "answer", skill: str = "recall") -> dict[tuple[int, float], float]:
    """Mean difference by cell, of those kept."""
    return {
        (c.n_tasks, c.compute_flops): c.difference.mean
        for c in found.cells
        if c.kept and c.arms[0] == arm and c.skill == skill and c.difference
    }


# What is found ------------------------------------------------------------------------------------------------------


def test_a_boundary_that_moved_shows_on_the_whole_in_the_cells_it_passed_over_and_in_its_shift() -> None:
    axes: dict[str, Any] = {"n_tasks": (4, 8, 16, 32, 64, 128, 256), "replicates": 8}
    found = compare(found_of(1, centre=64, **axes), found_of(2, centre=8, model={"d_model": 128}, **axes))
    passed = kept(found)
    assert passed[(16, 4e11)] > 0.5 and abs(passed.get((256, 1.6e12), 0.0)) < 0.05
    assert found.settings == ("model.d_model: 64 -> 128",)
    assert found.overall.shown and found.overall.n_cells == 21
    [pair] = [p for p in found.boundaries if (p.letter, p.skill, p.compute_flops) == ("A", "recall", 1e11)]
    assert pair.kept and pair.shift is not None and pair.shift.low is not None and pair.shift.high is not None
    assert pair.shift.low <= -3 <= pair.shift.high < 0  # 64 to 8: 3 doublings
    first = answer(found)[0]
    assert first.startswith(
        "made_up@2 is better at recall than made_up@1: over the 21 cells that both have, its ability,"
    )
    assert re.search(
        r"is on average 0\.\d\d higher \(96 % interval 0\.\d\d to 0\.\d\d, 8 pairs of replicates\)\.$", first
    )
    assert re.search(
        r"In made_up@2 recall appears with at least \S+ times fewer tasks at 1\.6e12 FLOPs \(9\d", text_of(found)
    )


def test_the_mean_on_the_whole_is_of_the_replicates_and_cells_that_both_have_computed_by_hand() -> None:
    def truth(plus: float) -> synthetic.Truth:
        return lambda n_tasks, flops, replicate: 0.2 + plus + 0.02 * replicate * plus - 0.9 * (n_tasks == 4)

    a = found_of(1, ability=truth(0.0), noise=0.0, replicates=4)
    b = found_of(2, ability=truth(0.5), noise=0.0, replicates=6)
    overall = compare(a, b).overall.difference
    assert overall is not None and (overall.n_a, overall.n_b) == (4, 4)
    # a: .2 in 9 of 12 cells, and in 3 below 0, which counts as 0. b: .7 + .01 r in 9, and in 3 still below 0.
    assert overall.mean == pytest.approx(0.75 * (0.5 + 0.01 * 1.5))


def test_three_replicates_show_on_the_whole_what_no_single_cell_may_claim() -> None:
    found = compare(found_of(1, centre=64, replicates=3), found_of(2, centre=24, replicates=3))
    assert found.overall.shown and not found.kept
    assert answer(found)[0].startswith("made_up@2 is better at recall than made_up@1")
    assert "None of" in answer(found)[1] and "3 replicates can agree by chance" in text_of(found)


def test_means_and_differences_of_a_cell_are_of_the_same_pairs() -> None:
    a, b = found_of(1), found_of(2, replicates=3)
    found = compare(a, b)
    place = a.results.levels.index(64), a.results.budgets.index(1e11)
    [cell] = [c for c in found.cells if (c.skill, c.n_tasks, c.compute_flops) == ("recall", 64, 1e11)]
    first_three = surface(a.results, "ability", "answer", "recall")[place][:3]
    assert cell.a == pytest.approx(first_three.mean()) and (len(cell.of_a), len(cell.of_b)) == (3, 3)
    assert cell.difference is not None and cell.difference.mean == pytest.approx(cell.b - cell.a)  # type: ignore[operator]
    assert "Only made_up@1 has 2 more replicates: left out of all differences." in left_out(found)
    assert "3 pairs of replicates" in answer(found)[0]


def test_every_shared_arm_is_compared_and_what_only_one_has_is_named() -> None:
    two, three = ("answer", "next_token"), ("next_token", "answer")
    found = compare(
        found_of(1, arm=two), found_of(2, centre=8, arm=three, n_tasks=(4, 16, 64), compute_flops=(4e11, 1.6e12, 9e12))
    )
    assert found.arms == (("answer", "answer"), ("next_token", "next_token"))
    assert kept(found, "answer") and kept(found, "next_token")
    assert left_out(found) == [
        "Only made_up@1 has 256 tasks; 1e11 FLOPs: left out of all differences.",
        "Only made_up@2 has 9e12 FLOPs: left out of all differences.",
    ]
    assert "ability at recall (answer) is higher" in text_of(found) and "ability at recall (next_token)" in text_of(
        found
    )
    one = compare(found_of(1, arm=two), found_of(2, arm=("next_token",)))
    assert one.arms == (("next_token", "next_token"),) and "Only made_up@1 has arm answer" in left_out(one)[0]


def test_variants_are_compared_like_arms_and_what_differs_in_one_only_is_told_with_its_name() -> None:
    def found(version: int, width: int) -> Findings:
        variants = {"narrow": {}, "wide": {"model": {"d_model": width}}}
        study = synthetic.made_up(**(AXES | {"version": version, "variant": variants, "skills": ("recall",)}))
        truths = {"narrow": synthetic.rising(64), "wide": synthetic.rising(64 if width == 128 else 8)}
        return bounds_of(Results.of_tables(study, *synthetic.of_variants(study, truths)))

    compared = compare(found(1, 128), found(2, 256))
    assert compared.arms == (("narrow", "narrow"), ("wide", "wide"))
    assert compared.settings == ("wide: model.d_model: 128 -> 256",)
    assert kept(compared, "wide") and not kept(compared, "narrow")


def test_without_a_shared_arm_the_first_of_each_are_compared_and_that_is_said() -> None:
    crossed = compare(found_of(1), found_of(2, arm=("next_token",)))
    assert crossed.arms == (("answer", "next_token"),) and "arm: answer -> next_token" in crossed.settings
    assert "They share no arm: answer of made_up@1 is set against next_token of made_up@2." in text_of(crossed)


def test_an_overtaking_is_found_and_is_corrected_with_all_the_rest() -> None:
    def early(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where(flops < 1e12, 0.4, 0.5) + 0.01 * replicate

    def late(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where(flops < 1e12, 0.1, 0.9) - 0.01 * replicate

    axes: dict[str, Any] = {"compute_flops": (1e11, 4e11, 1.6e12, 6.4e12)}
    for a, b in ((early, late), (late, early)):
        found = compare(found_of(1, ability=a, **axes), found_of(2, ability=b, **axes))
        second = "made_up@2" if b is late else "made_up@1"
        assert {(one.second, one.kept) for one in found.crossovers} == {(second, True)}
        for one in found.crossovers:  # every replicate changes sides between these, and five may agree by chance
            assert one.met.low is not None and one.met.high is not None
            assert 2e11 < one.met.low <= 4e11 and 1.6e12 <= one.met.high < 3.2e12
        assert f"With 64 tasks {second} overtakes" in text_of(found)
    assert found.tested == sum(one.claim.p is not None for one in found.single) and len(found.crossovers) == 4


# What is not found --------------------------------------------------------------------------------------------------


def lottery(name: str, draw: int, share: float) -> synthetic.Truth:
    """Each trial has the skill by lot from 16 tasks on, with this probability up to 64, and surely beyond; never at 4."""

    def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        chances = stream("compare", name, draw).random((4, 3, int(replicate.max()) + 1))
        level, budget = np.searchsorted(AXES["n_tasks"], n_tasks), np.searchsorted(AXES["compute_flops"], flops)
        lucky = chances[level, budget, replicate] < np.where(n_tasks > 64, 1.0, share) * (n_tasks > 4)
        return np.where(lucky, 0.95, 0.05)

    return truth


@pytest.mark.parametrize(("replicates", "share"), [(3, 0.5), (5, 0.45)])
def test_two_studies_of_one_lottery_differ_in_anything_in_at_most_one_of_twenty_comparisons(
    replicates: int, share: float
) -> None:
    axes: dict[str, Any] = {"replicates": replicates, "skills": ("recall",)}
    claimed, n = 0, 150
    for draw in range(n):
        a, b = (found_of(2 * draw + side, ability=lottery("null", 2 * draw + side, share), **axes) for side in (1, 2))
        found = compare(a, b)
        claimed += bool(found.kept or found.overall.shown)
    assert claimed <= 7  # at most one of twenty


def test_studies_of_one_truth_are_not_told_apart_and_that_is_said_with_an_interval() -> None:
    found = compare(found_of(1), found_of(3))
    assert not found.kept and not found.overall.shown and found.false_share == pytest.approx(0.05 - OVERALL_SHARE)
    assert re.match(
        r"made_up@1 and made_up@3 are not told apart: over the 12 cells that both have, the average difference in ability at "
        r"recall is [+−]0\.00\d+ \(96 % interval [+−]0\.00\d+ to [+−]0\.00\d+, 5 pairs of replicates\), and none of \d+ single "
        r"differences that were tested is more than noise\.$",
        answer(found)[0],
    )
    assert answer(found)[-1] == "Their settings are the same."


def test_an_interval_excludes_zero_exactly_where_its_difference_is_kept() -> None:
    for replicates in (3, 5, 8):
        found = compare(found_of(1, centre=64, replicates=replicates), found_of(2, centre=20, replicates=replicates))
        for cell in found.cells:
            one = cell.difference
            if one is not None and one.low is not None and one.high is not None:
                assert cell.kept == (not one.low <= 0 <= one.high)


def test_a_study_agrees_exactly_with_itself_even_with_fewer_replicates() -> None:
    whole, part = found_of(1, noise=0.0), found_of(1, noise=0.0, replicates=3)
    same = compare(whole, whole)
    assert text_of(same) == (
        "made_up@1 and made_up@1 agree exactly: every value that both have is the same. Their settings are the same."
    )
    assert not same.kept and all(pair.intervals[0] == pair.intervals[1] for pair in same.boundaries)
    fewer = compare(whole, part)
    assert text_of(fewer) == text_of(same) and fewer.tested
    assert left_out(fewer) == ["Only made_up@1 has 2 more replicates: left out of all differences."]


def test_one_replicate_tests_nothing_and_two_show_nothing() -> None:
    one = compare(found_of(1, replicates=1), found_of(2, centre=8, replicates=1))
    assert one.tested == 0 and answer(one)[0] == (
        "No difference between made_up@1 and made_up@2 can be tested: that takes two replicates on both sides."
    )
    two = compare(found_of(1, replicates=2), found_of(2, centre=8, replicates=2))
    assert not two.kept and "3 on either side are the least that could" in text_of(two)
    assert answer(two)[0].startswith(
        "2 replicates cannot show a difference between made_up@1 and made_up@2, however large"
    )
    assert "interval" not in answer(two)[0]


# What is refused, or left out ---------------------------------------------------------------------------------------


def test_nothing_in_common_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"no budget in common: made_up@1 has 1e11, 4e11, 1.6e12; made_up@2 has 7e11$"):
        compare(found_of(1), found_of(2, compute_flops=(7e11,)))
    with pytest.raises(
        ValueError, match=r"no number of tasks in common: made_up@1 has 4, 16, 64, 256; made_up@2 has 8$"
    ):
        compare(found_of(1), found_of(2, n_tasks=(8,)))
    with pytest.raises(
        ValueError, match=r"no skill in common: made_up@1 has recall; made_up@2 has override; 'skills:' in"
    ):
        compare(found_of(1, skills=("recall",)), found_of(2, skills=("override",)))
    urns: dict[str, Any] = {"family": {"name": "urns"}, "arm": ("next_token",)}
    with pytest.raises(
        ValueError, match=r"tasks of different families, cipher and urns, which have no skill in common$"
    ):
        compare(found_of(1), found_of(2, **urns))
    study = synthetic.made_up(**AXES, version=2)
    results, runs = synthetic.tables(study, first_flops=1e14)
    with pytest.raises(ValueError, match="of the cells that both have, none has a value in both yet"):
        compare(found_of(1), find(study, results.slice(0, 0), runs))


def test_what_is_common_is_compared() -> None:
    found = compare(found_of(1), found_of(2, n_tasks=(16, 1024), compute_flops=(4e11, 9e12)))
    assert {(c.n_tasks, c.compute_flops) for c in found.cells} == {(16, 4e11)}
    assert "in the one cell that both have" in answer(found)[0] and not found.crossovers


def test_other_settings_of_a_family_are_compared_unpaired_and_that_is_said() -> None:
    other = compare(found_of(1), found_of(2, centre=8, replicates=6, family={"name": "cipher", "n_pairs": 12}))
    assert not other.paired and not other.crossovers and "replicates are not paired" in text_of(other)
    assert {(len(c.of_a), len(c.of_b)) for c in other.cells} == {(5, 6)} and kept(other)
    assert "5 and 6 replicates" in answer(other)[0]
    assert all(pair.claim.verdict == "untested" for pair in other.boundaries)


def test_lost_trials_waiting_ones_and_recorded_ones_outside_the_axes_are_told() -> None:
    a, b = found_of(1, lost=1), found_of(2)
    b.results.runs[0]["status"] = b.results.runs[1]["status"] = "open"
    found = compare(a, b, outside=(0, 1))
    assert "1 trial of made_up@1 diverged or failed: without the skill in the overall difference" in text_of(found)
    assert "2 of 60 trials of made_up@2 have not ended." in left_out(found)
    alone = "1 recorded trial of made_up@2 lies outside the axes of its study file as it is now, and is left out."
    assert alone in left_out(found)


def test_lost_trials_count_as_without_the_skill_on_the_whole() -> None:
    study = synthetic.made_up(**AXES)
    results, runs = synthetic.tables(study, ability=lambda n, c, r: 0.9 + 0 * n, noise=0.0, first_flops=1e14)
    gone = pc.and_(pc.equal(results["n_tasks"], 256), pc.equal(results["replicate"], 4))
    partial = Results.of_tables(study, results.filter(pc.invert(gone)), runs)
    for run in partial.runs:
        if (run["n_tasks"], run["replicate"]) == (256, 4):
            run["status"] = "diverged"
    overall = compare(found_of(1, ability=lambda n, c, r: 0.9 + 0 * n, noise=0.0), bounds_of(partial)).overall
    assert overall.n_cells == 12 and overall.difference is not None
    assert overall.difference.mean == pytest.approx(-0.9 / 4 / 5)  # at one of four numbers of tasks, of one of five


def test_shifts_are_told_as_factors() -> None:
    def shift(low: float | None, high: float | None) -> Drift:
        return Drift(low, high, (), "undecided", 0.01)

    assert shift_words(shift(-3, -2)) == "4 to 8 times fewer"
    assert shift_words(shift(1, None)) == "at least 2 times more"
    assert shift_words(shift(None, -2)) == "at least 4 times fewer"


# The page -----------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_names_every_confidence_and_fits_a_screen_and_a_phone(
    open_page: Open, tmp_path: Path
) -> None:
    axes: dict[str, Any] = {"arm": ("answer", "next_token"), "replicates": 6}
    found = compare(found_of(1, lost=1, **axes), found_of(2, centre=12, **axes, model={"d_model": 128}), (3, 0))
    path = compare_page.write(tmp_path, found)
    assert path.name == "compare_made_up@1_made_up@2.html"
    for size in (DESKTOP, PHONE):
        opened = open_page(path, size=size)
        assert opened.requests == [path.as_uri()] and not opened.complaints
        assert not overlaps(opened.page) and not sticking_out(opened.page)
    text = opened.page.locator("body").inner_text()
    assert answer(found)[0] in text and f"{found.tested} differences were tested together" in text
    assert text.count("Arm next_token") >= 2 and "3 recorded trials of made_up@1 lie outside" in text
    rows = [r for r in opened.page.locator("table.trials tbody tr").all() if r.locator("td").count()]
    shown = [r.locator("td").all_inner_texts() for r in rows if r.is_visible()]
    assert shown and all(re.fullmatch(r"9[5-9](\.\d+)? %", row[8]) for row in shown if row[7] != "—")
