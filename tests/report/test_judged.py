"""The verdicts of whole studies with planted truths: found, worded and drawn as what they are; and what cannot be told, said so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from test_report import Page, page_of

from orchestrator import stats
from orchestrator.analysis import boundaries, summary
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.claims import claim_of
from orchestrator.analysis.findings import Findings, find
from orchestrator.analysis.summary import description
from orchestrator.report import judged_tables
from trainers.streams import stream

LEVELS = tuple(2**k for k in range(2, 12))  # ten numbers of tasks
AXES: dict[str, Any] = {"n_tasks": LEVELS, "compute_flops": (1e11, 4e11), "replicates": 6, "skills": ("recall",)}


def found_of(truth: synthetic.Truth, noise: float = 0.02, **axes: Any) -> Findings:
    study = synthetic.made_up(**(AXES | axes))
    return find(study, *synthetic.tables(study, truth, noise=noise))


def jump(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    """A skill that is there from 100 tasks on, and nothing of it before, in every replicate."""
    return np.where(n_tasks > 100, 0.95, 0.05)


def slope(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    """Ability as a straight line in the logarithm of the number of tasks."""
    return 0.1 + 0.08 * np.log2(n_tasks)


def lottery(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    """At 64 tasks every other replicate has the skill; with more all have it."""
    return np.where(n_tasks > 64, 0.95, np.where((n_tasks == 64) & (replicate % 2 == 0), 0.9, 0.08))


def along_tasks(found: Findings) -> list[str]:
    return [cut.result.verdict for cut in found.cuts if cut.axis == "n_tasks"]


def test_a_planted_break_is_called_a_break_where_it_is() -> None:
    found = found_of(jump)
    assert along_tasks(found) == ["break", "break"]
    for cut in (cut for cut in found.cuts if cut.axis == "n_tasks"):
        assert cut.result.low is not None and cut.result.high is not None
        assert np.exp(cut.result.low) < 100 < np.exp(cut.result.high)
    rows = judged_tables.cut_rows(found)
    assert "a break of the loss between 64 and 128: no smooth curve explains it" in {row["words"] for row in rows}
    assert any(
        claim.says == "recall breaks along tasks at 1e11 FLOPs" and claim.verdict == "kept" for claim in found.claims
    )


def test_a_straight_line_is_no_break() -> None:
    found = found_of(slope)
    assert "break" not in along_tasks(found)
    assert not any("breaks" in claim.says and claim.verdict == "kept" for claim in found.claims)


def test_fewer_scales_than_eight_are_never_a_break_and_the_sentence_counts_them() -> None:
    found = found_of(jump, n_tasks=LEVELS[2:8])
    assert along_tasks(found) == ["undecided", "undecided"]
    (row,) = [row for row in judged_tables.undecided(found) if row["along"] == "tasks"]
    assert row["n"] == "2 cuts" and "6 scales, and a break needs 8" in row["words"]


def test_a_lottery_at_the_onset_is_told_by_how_many_have_the_skill_and_how_far_apart_they_lie() -> None:
    (row,) = judged_tables.midpoint_rows(found_of(lottery))
    assert row["where"].startswith("64 tasks") and "3 of 6 replicates reach one half" in row["words"]
    assert re.search(r"between 0\.0\d and 0\.[89]\d", row["words"])


def test_compute_to_skill_counts_the_replicates_that_have_it() -> None:
    def late(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where(flops > 1.5e11 * (1 + (replicate > 3)), 0.9, 0.1)  # four at 1.5e11, two at 3e11

    found = found_of(late)
    row = judged_tables.to_skill_rows(found)[0]
    assert [one["share"] for one in row["successes"]] == ["0 of 6", "6 of 6"]
    curve = found.to_skill[("answer", 64)].curve
    assert curve is not None and {round(step.reached, 3) for step in curve.steps} == {0, 0.667, 1}


@pytest.mark.parametrize(("come", "replicates", "bound"), [(1, 3, False), (5, 12, True)])
def test_where_few_replicates_come_to_a_skill_a_confidence_stands_beside_a_bound_alone(
    come: int, replicates: int, bound: bool
) -> None:
    def seldom(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        late = flops > (1.5e11 if bound else 0)  # else one is there at the first look, which leaves the lower end open
        return np.where(late & (replicate < come), 0.9, 0.1)

    row = judged_tables.to_skill_rows(found_of(seldom, replicates=replicates))[0]
    assert f"is there to stay in {come} of {replicates} replicates" in row["words"]
    assert ("not before" in row["words"]) == ("%" in row["confidence"]) == bound


def two_arms(ahead: Any, replicates: int) -> Findings:
    """`answer` is ahead of `next_token` where told (n_tasks, flops) so, by .2; every replicate with its own noise."""
    study = synthetic.made_up(
        **AXES | {"arm": ("answer", "next_token"), "replicates": replicates, "n_tasks": LEVELS[:5]}
    )

    def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        first = np.arange(len(n_tasks)) < len(n_tasks) // 2
        return np.where(np.log2(n_tasks) > np.where(first & ahead(n_tasks, flops), 3.5, 5.5), 0.9, 0.1)

    return find(study, *synthetic.tables(study, truth, noise=0.03))


def test_who_is_ahead_or_needs_fewer_tasks_is_kept_with_enough_replicates_and_marked_with_few() -> None:
    for replicates, mark in ((10, ""), (3, "not kept")):
        found = two_arms(lambda n, c: True, replicates)
        rows = [row for row in judged_tables.overtaking_rows(found) if row["n_tasks"] in ("16", "32")]
        assert all(row["words"].startswith("answer is ahead throughout") for row in rows)
        assert {row["mark"] for row in rows} == {mark}
        assert all((row["p"] == "< .001" or float(row["p"]) <= 0.05) == (not mark) for row in rows)
        assert "Answer needs fewer tasks than next_token" in paragraph(found)
        (line,) = [row for row in summary.rows(found) if row["quantity"] == "task multiplier"]
        assert line["low"] < 4 < line["high"] and line["words"].startswith("answer needs fewer tasks than next_token, ")
        assert line["kept"] == ("no" if mark else "yes")
        assert any("need different numbers of tasks" in claim.says for claim in found.claims)


def test_the_summary_says_of_each_row_what_became_of_its_claim() -> None:
    primary = {"what": "k_ability", "compute_flops": 1e11, "lo": 16}
    found = found_of(jump, primary=primary, replicates=10)
    rows = {(row["quantity"], row["skill"], row["compute_flops"]): row for row in summary.rows(found)}
    assert rows[("K_A", "recall", 1e11)]["kept"] == rows[("primary claim", "recall", 1e11)]["kept"] == "primary"
    other = rows[("K_A", "recall", 4e11)]
    assert other["kept"] == "yes" and other["p"] <= other["adjusted_p"] <= 0.05
    for row in summary.rows(found):
        assert (row["kept"] in ("yes", "no")) == (row["adjusted_p"] is not None)
        assert (row["confidence"] is not None) == (row["low"] is not None or row["high"] is not None)
        assert row["kept"] == "" or not row["quantity"].startswith("emergence") or row["verdict"] == "break"
    assert [row["claim"] for row in summary.claim_rows(found)] == [claim.name for claim in found.claims]


def test_the_page_marks_what_is_not_kept_and_says_what_is_outside_the_count(tmp_path: Path) -> None:
    few: Page = page_of(tmp_path, two_arms(lambda n, c: True, 3))
    assert "answer is ahead throughout; no crossover below 4e11 FLOPs (not kept)" in few.text
    assert re.search(r"it may be chance\. Too few to test ?: so few replicates", few.text)
    assert "Not corrected" in few.text and "best sizes" in few.text


def test_one_replicate_has_no_noise() -> None:
    assert found_of(slope, noise=0.1).noise and found_of(slope, replicates=1).noise == ()


def test_equally_noisy_cells_are_pooled_and_one_that_is_noisier_stands_alone() -> None:
    def apart(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return 0.8 + 0.15 * (n_tasks == 64) * (replicate % 2 - 0.5)

    equal, wide = found_of(lambda n, c, r: 0.8 + 0 * n, noise=0.05), found_of(apart)
    (of_equal,), (of_wide,) = judged_tables.noise_rows(equal), judged_tables.noise_rows(wide)
    assert re.fullmatch(r"\d+ pooled, [\d,]+ to [\d,]+", of_equal["n_tasks"]) and len(equal.noise[0].n_tasks) > 5
    assert of_wide["n_tasks"] == "64"


def test_one_model_size_has_no_frontier_and_says_so() -> None:
    assert judged_tables.frontiers(found_of(slope)) == [
        "One model size in this study: which is best for a budget takes 3 or more, at two budgets, to tell."
    ]


def test_arms_that_cross_are_told_with_the_interval(tmp_path: Path) -> None:
    study = synthetic.made_up(
        arm=("answer", "next_token"), n_tasks=(64,), compute_flops=tuple(1e11 * 2**k for k in range(6)), replicates=6
    )
    results, runs = synthetic.tables(study)
    second = np.array(results["arm"].to_pylist()) == "next_token"
    ability = np.where(second, 0.5 + 0.2 * np.log2(results["flops"].to_numpy() / 5.6e11), 0.5)
    ability = ability + 0.01 * stream("test", "arms").standard_normal(len(ability))
    nll = (synthetic.UNIFORM - ability * (synthetic.UNIFORM - synthetic.RULE)) * synthetic.N_ITEMS
    found = find(study, results.set_column(results.column_names.index("nll_nats"), "nll_nats", [nll]), runs)
    (row,) = judged_tables.overtaking_rows(found)
    assert row["words"].startswith("next_token overtakes answer at ") and row["words"] in page_of(tmp_path, found).text
    (met,) = found.crossovers
    assert met.result.low is not None and met.result.high is not None and met.result.low < 5.6e11 < met.result.high


def test_the_page_shows_the_claims_the_scores_and_what_would_settle_the_rest(tmp_path: Path) -> None:
    page: Page = page_of(tmp_path, found_of(jump))
    assert "No primary claim was declared" in page.text
    tested = re.search(r"(\d+) claims were tested; (\d+) are kept", page.text)
    assert tested is not None and int(tested[1]) >= int(tested[2]) > 0
    for words_ in ("Log loss", "Brier score", "Accuracy of an answer", "Exact match", "How they move with compute"):
        assert words_ in page.text


def test_the_summary_and_the_description_say_what_the_page_says() -> None:
    found = found_of(jump)
    rows = summary.rows(found)
    assert {row["quantity"] for row in rows} >= {
        "K_A",
        "K_M",
        "drift of K_A",
        "compute to skill",
        "emergence along n_tasks",
    }
    assert all("nan" not in str(value).lower() for row in rows for value in row.values())
    text = description(found)
    assert paragraph(found) in text and "| training FLOPs |" in text and "other claims were tested" in text


@pytest.mark.parametrize(
    ("low", "high", "verdict", "said"),
    [
        (-2.0, -0.5, "falls", "K_A falls with compute, by 0.5 to 2 doublings of tasks per doubling of compute"),
        (None, -0.5, "falls", "K_A falls with compute, by at least 0.5 doublings of tasks per doubling of compute"),
        (0.5, None, "rises", "K_A rises with compute, by at least 0.5 doublings of tasks per doubling of compute"),
        (-1.0, 1.0, "undecided", "not settled (−1 to +1 doublings"),
        (None, 1.0, "undecided", "not settled (+1 or less doublings"),
        (None, None, "undecided", "open at both ends"),
        (None, None, "missing", "cannot be told"),
    ],
)
def test_a_drift_is_told_with_its_open_ends(low: Any, high: Any, verdict: Any, said: str) -> None:
    assert said in boundaries.drift_words(stats.Drift(low, high, (), verdict, None), "A")


def test_replicates_that_have_it_at_the_first_row_or_lose_it_again_are_told() -> None:
    levels, up, here, back, never = [4.0, 16.0, 64.0], (0, 1, 1), (1, 1, 1), (0, 1, 0), (0, 0, 0)
    mostly = stats.boundary(levels, [here] * 5 + [up], "rising")
    assert boundaries.ability_words(mostly, levels) == (
        "appears at 16 tasks or fewer (in 5 of 6 replicates it is there at 4 already)"
    )
    forgot = stats.boundary(levels, [never] * 5 + [(1, 0, 0)], "falling")
    assert boundaries.memory_words(forgot, levels) == (
        "ends at 16 tasks or fewer (in 5 of 6 replicates not even 4 are memorised)"
    )
    within = stats.boundary(levels, [(1, 1, 0), (1, 0, 0)], "falling")
    assert "not even" not in boundaries.memory_words(within, levels)
    some = stats.boundary(levels, [up, up, back, back, never, never], "rising")
    assert boundaries.ability_words(some, levels).startswith(
        "appears up to 64 tasks in 2 of 6 replicates, in 2 more only to be lost again (95 % interval"
    )
    both = stats.boundary(levels, [back, (1, 0, 1), up], "rising")
    assert (both.not_monotone, both.lost_again) == (2, 1)


def test_what_each_replicate_allows_of_a_drift_is_told_in_the_same_unit() -> None:
    slopes = ((-1.0, 0.0), (0.25, None), (None, -0.5), (None, None))
    moved = stats.Drift(None, None, tuple(stats.Bracket(*ends) for ends in slopes), "undecided", None)
    assert boundaries.slopes_words(moved) == "−1 to 0, +0.25 or more, −0.5 or less, open"


def test_the_other_skills_have_their_own_compute_to_skill_counted_among_the_claims() -> None:
    """They rise together here, so each is told what the headline skill is; memory is no skill."""
    study = synthetic.made_up(skills=("recall", "elimination"))
    found = find(study, *synthetic.tables(study, noise=0.0))
    assert {place[1] for place in found.onsets} == {"elimination"}
    headline, others = judged_tables.to_skill_rows(found), judged_tables.onset_rows(found)
    assert [row["n_tasks"] for row in others] == [row["n_tasks"] for row in headline]
    assert [row["words"] for row in others] == [row["words"] for row in headline]
    names = [claim.name for claim in found.claims]
    assert all(claim_of("to", "skill", *place[:2], float(place[2])) in names for place in found.onsets)
    told = [row for row in summary.rows(found) if row["quantity"] == "compute to skill"]
    assert sorted(row["skill"] for row in told) == ["elimination"] * 3 + ["recall"] * 3


def test_a_drift_that_is_not_kept_is_told_with_its_doubt_and_one_that_is_kept_without() -> None:
    def moving(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        at = 8.5 - 3 * np.log2(flops / 1e11) + (replicate % 3 == 0)
        return np.where(np.log2(n_tasks) > at, 0.95, 0.05)

    doubtful = found_of(moving, replicates=3, n_tasks=LEVELS, compute_flops=(1e11, 2e11))
    drift = doubtful.drift_ability[("answer", "recall")]
    assert drift.verdict == "falls" and not any(c.verdict == "kept" and "K_A" in c.says for c in doubtful.claims)
    assert "It looks as if the more compute, the fewer tasks it takes" in paragraph(doubtful)
    assert "not kept after correction" in paragraph(doubtful)
    sure = found_of(moving, replicates=12, n_tasks=LEVELS, compute_flops=(1e11, 2e11))
    assert any(c.verdict == "kept" and "K_A" in c.says for c in sure.claims)
    assert "The more compute, the fewer tasks it takes: K_A falls" in paragraph(
        sure
    ) and "looks as if" not in paragraph(sure)


def test_a_skill_that_is_defined_up_to_some_level_is_told_up_to_there() -> None:
    levels = [4.0, 16.0, 64.0, 256.0]
    found = stats.boundary(levels, [[0, 0, 1, np.nan], [0, 0, 0, np.nan], [0, 0, 0, np.nan]], "rising")
    assert "appears up to 64 tasks in 1 of 3 replicates" in boundaries.ability_words(found, levels)


def test_what_more_compute_takes_away_again_is_said_and_noise_or_deeper_ignorance_is_not(tmp_path: Path) -> None:
    def eroded(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        late = flops > 2e11
        return np.where(
            n_tasks == 32, np.where(late, 0.6, 0.9), np.where(n_tasks > 32, 0.95, np.where(late, -2.0, -0.5))
        )

    found = found_of(eroded, noise=0.05)
    said = "With 32 tasks more compute takes some of recall away: ability changes by \u22120."
    assert said in paragraph(found) and " between 1e11 and 4e11 FLOPs" in paragraph(found)
    (row,) = judged_tables.dip_rows(found)
    assert row["words"].startswith("changes by \u22120.") and row["words"].endswith("FLOPs at 32 tasks")
    assert "Noise does not explain these: recall changes by" in page_of(tmp_path, found).text
    assert not judged_tables.dip_rows(found_of(jump, noise=0.05)) and "takes some" not in paragraph(
        found_of(jump, noise=0.05)
    )
