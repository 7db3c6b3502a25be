"""What a study claims besides its primary claim: all of it corrected together, nulls in which nothing may be claimed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import synthetic
from simulate_claims import ALIKE_AXES, LOTTERY_AXES, SCENARIOS, look, more_likely_with_tasks
from simulation import Scenario

from orchestrator.analysis import claims, emergence, findings, summary
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.findings import Findings
from orchestrator.formatting import range_words
from orchestrator.record.tables import RUNS
from orchestrator.report import judged_tables
from trainers.streams import stream

AXES: dict[str, Any] = {"n_tasks": (4, 16, 64, 256, 1024), "compute_flops": (1e11, 4e11, 1.6e12), "replicates": 5}


def found_of(primary: dict[str, Any] | None = None, **tables: Any) -> Findings:
    """K_A at 64 tasks at 1e11 FLOPs, falling as the root of compute; K_M at 16 and rising so (synthetic.py)."""
    study = synthetic.made_up(**AXES, **({"primary": primary} if primary else {}))
    return findings.find(study, *synthetic.tables(study, **tables))


def test_everything_looked_at_is_counted_once_and_the_primary_claim_not_at_all() -> None:
    without, with_one = found_of(), found_of({"what": "k_ability", "compute_flops": 1e11, "lo": 16})
    names = [claim.name for claim in without.claims]
    assert len(names) == len(set(names))
    left_out = set(names) - {claim.name for claim in with_one.claims}
    assert left_out == {"k_ability/answer/recall/100000000000.0"}
    assert {claim.verdict for claim in without.claims} >= {"not kept", "untested"}


def test_the_more_fails_correction_the_wider_the_intervals_of_what_is_kept() -> None:
    study = synthetic.made_up(**(AXES | {"replicates": 10}))  # fewer than six can agree by chance
    found = findings.find(study, *synthetic.tables(study))
    kept = {claim.confidence for claim in found.claims if claim.verdict == "kept"}
    assert len(kept) == 1 and 0.95 <= kept.pop() < 1


def test_arms_drawn_alike_are_hardly_ever_told_apart_where_each_replicate_is_of_one_of_two_kinds() -> None:
    """Whole studies: onset early or late in tasks and in compute, by lot, for every replicate of either arm."""
    axes = AXES | {"arm": ("answer", "next_token"), "replicates": 3, "skills": ("recall",)}
    study = synthetic.made_up(**axes)

    def by_lot(draw: np.random.Generator) -> synthetic.Truth:
        tasks, compute = (spread * draw.choice([-1, 1], 6) for spread in (3, 1.5))

        def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
            there = (np.log2(n_tasks / 64) > tasks[replicate]) & (np.log2(flops / 1.5e11) > compute[replicate])
            return 0.02 + 0.96 * there

        return truth

    told = 0
    for k in range(40):
        truth = by_lot(stream("test", "two kinds", k))
        found = findings.find(study, *synthetic.tables(study, truth, noise=0.02, draw=k, arms_alike=False))
        p_values = [m.ratio.p_value for m in found.multipliers]
        assert p_values and min(p for p in p_values if p is not None) >= 2 / 4**3
        told += any(
            c.verdict == "kept" and ("different compute" in c.says or "overtakes" in c.says) for c in found.claims
        )
    assert told <= 2


def test_arms_have_shifts_of_their_own_only_where_that_is_asked() -> None:
    study = synthetic.made_up(**(AXES | {"arm": ("answer", "next_token")}))
    alike, apart = (
        findings.find(study, *synthetic.tables(study, synthetic.rising(spread=1.5), noise=0.0, arms_alike=one))
        for one in (True, False)
    )
    brackets = [[b.brackets for _, b in f.k_ability[(arm, "recall")]] for f in (alike, apart) for arm in study.lines]
    assert brackets[0] == brackets[1] == brackets[2] != brackets[3]


@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if s.kind == "false claims"], ids=lambda scenario: scenario.name
)
def test_of_lotteries_no_more_is_claimed_than_correction_allows(scenario: Scenario) -> None:
    outcome = scenario.play(60)  # at length: make calibration
    assert outcome.share <= scenario.bound, outcome


WINNERS = (
    r"overtakes",
    r"ahead throughout",
    r" needs [\d.e+]+ to ",
    r" needs at (least|most) ",
    r" needs fewer tasks than ",
)


def winner_named(words: str) -> bool:
    return any(re.search(pattern, words) for pattern in WINNERS) and "not shown" not in words


@pytest.mark.parametrize("replicates", [1, 2, 3, 6, 10])
def test_whoever_wins_among_arms_drawn_alike_is_named_with_the_mark_but_where_correction_lets_it_through(
    replicates: int,
) -> None:
    draw, named, let_through = stream("test", "alike", replicates), 0, 0
    for k in range(8):
        study = synthetic.made_up(**ALIKE_AXES, replicates=replicates)
        truth = synthetic.alike(draw, 3, replicates, two_kinds=k % 2 == 0)
        found = findings.find(study, *synthetic.tables(study, truth, noise=0.02, draw=k))
        rows = judged_tables.overtaking_rows(found)
        told = [(row["words"], row["mark"], row["p"]) for row in rows]
        told += [(row["ratio"], row["ratio_mark"], row["ratio_p"]) for row in rows]
        marked = [p for words, mark, p in told if winner_named(words) and mark == "not kept"]
        unmarked = [p for words, mark, p in told if winner_named(words) and not mark]
        assert all(p.startswith((".", "1")) and float(p) > 0.05 for p in marked)  # the adjusted one
        assert all(p.startswith("<") or float(p) <= 0.05 for p in unmarked)
        lines = [row for row in summary.rows(found) if winner_named(row["words"])]
        assert all(row["kept"] == ("yes" if row["adjusted_p"] <= 0.05 else "no") for row in lines)
        for sentence in re.split(r"(?<=\.) |; ", paragraph(found)):
            assert (
                not winner_named(sentence) or "not kept" in sentence or unmarked or "yes" in {x["kept"] for x in lines}
            )
        named += bool(marked or unmarked)
        let_through += bool(unmarked or any(row["kept"] == "yes" for row in lines))
    assert bool(named) == (replicates > 2) and let_through <= 1  # two replicates name nobody


def test_what_the_nulls_must_not_claim_is_claimed_where_it_is_so() -> None:
    def truth(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.where(n > np.where(c < 2e11, 500, 30), 0.95, 0.1)

    study = synthetic.made_up(**LOTTERY_AXES, replicates=10)
    kept = {claim.says for claim in look(synthetic.tables(study, truth, truth, noise=0.02), study).kept}
    for said in ("appears", "drifts", "comes", "breaks"):
        assert any(said in claim for claim in kept), said


def break_said(claim: claims.Claim) -> bool:
    return claim.name.startswith("break_")


def jumping(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.where(n > 100, 0.95, 0.05)


def sloping(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return 0.1 + 0.08 * np.log2(n)


def flat(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.full(len(n), 0.3)


CUTS: dict[str, Any] = {
    "n_tasks": tuple(2**k for k in range(2, 12)),
    "compute_flops": (1e11, 4e11),
    "skills": ("recall",),
}


def test_a_break_is_claimed_only_where_the_verdict_is_one_and_then_always() -> None:
    studies = [more_likely_with_tasks(stream("test", "cuts", k), (4, 10)[k % 2]) for k in range(20)]
    for k, truth in enumerate([jumping, sloping, flat, synthetic.rising()] * 3):
        study = synthetic.made_up(**CUTS, replicates=(4, 6, 10)[k // 4])
        studies.append(look(synthetic.tables(study, truth, noise=0.02, draw=k), study))
    broken = 0
    for looked in studies:
        cuts = {emergence.claim_of_cut(cut): cut.result for cut in looked.cuts}
        said = [claim for claim in looked.claims if break_said(claim)]
        assert {claim.name for claim in said} == cuts.keys()
        for claim in said:
            is_break = cuts[claim.name].verdict == "break"
            assert is_break or claim.verdict != "kept", claim
            assert is_break == (claim.p_value is not None and claim.p_value < 0.05), claim
            broken += is_break
    assert broken >= 6  # the jumps, along tasks


@pytest.mark.parametrize("replicates", [2, 3, 6])
def test_what_could_be_tested_does_not_depend_on_what_came_out(replicates: int) -> None:
    untested = set()
    for truth in (jumping, sloping, flat, lambda n, c, r: np.zeros(len(n))):
        study = synthetic.made_up(**CUTS, replicates=replicates)
        looked = look(synthetic.tables(study, truth, truth, noise=0.02), study)
        untested.add(frozenset(claim.name for claim in looked.claims if claim.p_value is None))
    assert len(untested) == 1
    assert any(name.startswith("break_n_tasks") for name in untested.pop()) == (replicates < 4)


def test_three_replicates_that_agree_are_kept_for_nothing_as_they_agree_by_chance_in_one_of_four() -> None:
    study = synthetic.made_up(**(AXES | {"replicates": 3}))
    found = findings.find(study, *synthetic.tables(study))
    assert not any(c.verdict == "kept" for c in found.claims if c.name.startswith(("k_", "to_")))
    assert "where the skill appears and where memory ends is not tested, for which 6 are the least." in paragraph(found)


def test_a_crossover_has_one_name_in_either_direction() -> None:
    assert claims.claim_of_arms("a", "b", "recall", 4) == claims.claim_of_arms("b", "a", "recall", 4)


def test_a_diverged_trial_counts_as_one_without_the_skill() -> None:
    study = synthetic.made_up(**(AXES | {"replicates": 6}))
    results, runs = synthetic.tables(study)
    rows = runs.to_pylist()
    for row in rows:
        row["status"] = "diverged" if row["n_tasks"] == 1024 and row["replicate"] < 3 else row["status"]
    lost = np.array(
        [
            n == 1024 and r < 3
            for n, r in zip(results["n_tasks"].to_pylist(), results["replicate"].to_pylist(), strict=True)
        ]
    )
    found = findings.find(study, results.filter(pa.array(~lost)), pa.Table.from_pylist(rows, schema=RUNS))
    ((_, low), *_) = found.k_ability[("answer", "recall")]
    assert low.verdict == "undecided" and sum(b.high is None for b in low.brackets) == 3


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (None, None, "open at both ends"),
        (None, 4.0, "at most 4"),
        (16.0, None, "more than 16"),
        (16.0, 64.0, "16 to 64"),
    ],
)
def test_ranges_say_their_open_ends(low: float | None, high: float | None, words: str) -> None:
    assert words in range_words(low, high)
