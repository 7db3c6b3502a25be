"""All findings of a study, corrected together: counted once, nulls in which nothing may be claimed, and a question added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import simulate_claims
import synthetic
from simulation import Scenario

from orchestrator.analysis import findings, summary
from orchestrator.analysis.finding import CONFIDENCE, FALSE_SHARE, Finding, claim_of, claim_of_pair, corrected, count
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import Results
from orchestrator.stats import multiplicity
from trainers.streams import stream

AXES: dict[str, Any] = {
    "n_tasks": (4, 16, 64, 256, 1024),
    "compute_flops": (1e11, 4e11, 1.6e12),
    "replicates": 5,
    "skills": ("recall", "elimination"),
}


def found_of(truth: synthetic.Truth | None = None, memory: synthetic.Truth | None = None, **axes: Any) -> Findings:
    """K_A at 64 tasks at 1e11 FLOPs, falling as the root of compute; K_M at 16 and rising so (synthetic.py)."""
    return synthetic.found(AXES | axes, truth, memory, noise=0.02)


# The count ----------------------------------------------------------------------------------------------------------


def test_every_finding_is_counted_once_and_the_primary_one_not_at_all() -> None:
    claim = {"what": "k_ability", "compute_flops": 1e11, "lo": 16}
    without, with_one = found_of(replicates=6), found_of(replicates=6, primary=claim)
    names = [one.name for one in without.findings]
    assert len(names) == len(set(names))
    (primary,) = [one for one in with_one.findings if one.significance == "primary"]
    assert primary.name == claim_of("k", "ability", "answer", "recall", 1e11)
    assert primary.adjusted_p is None and primary.confidence == CONFIDENCE
    for found in (without, with_one):
        tested = [one for one in found.findings if one.counted and one.significance != "primary"]
        claims = multiplicity.adjust([one.p for one in tested], FALSE_SHARE).claims
        assert [one.adjusted_p for one in tested] == [claim.adjusted_p for claim in claims]
        assert {one.significance for one in found.findings if not one.counted} <= {"", "significant"}  # dips


def test_only_significant_findings_have_wider_intervals_all_at_one_confidence() -> None:
    found = found_of(replicates=10)
    of = {s: {one.confidence for one in found.findings if one.significance == s} for s in ("significant", "untested")}
    assert len(of["significant"]) == 1 and 0.95 < min(of["significant"]) < 1 and of["untested"] == {CONFIDENCE}
    one = found.of("K_A", skill="recall", compute_flops=4e11)[0]
    assert one.significance == "significant" and one.ends == one.interval(one.confidence)


def test_a_correction_by_hand() -> None:
    """Five findings, p of .001, .02, .04, none and .005 for the primary one: of three, q is 1/3, 2/3 and 1 of .05."""

    def finding(name: str, p: float | None) -> Finding:
        return Finding(name=name, question="?", words=lambda one: "", condition="", verdict="", n=9, p=p)

    asked = [finding(str(p), p) for p in (0.001, 0.02, 0.04, None, 0.005)]
    found = corrected(asked, primary="0.005")
    assert [one.adjusted_p for one in found] == pytest.approx([0.003, 0.03, 0.04, None, None])
    assert [one.significance for one in found] == ["significant"] * 3 + ["untested", "primary"]
    assert (count(found, "significant"), count(found, "untested")) == (3, 1)
    strict = corrected(asked, primary="0.005", false_share=0.031)
    assert [one.significance for one in strict][:3] == ["significant", "significant", "not significant"]
    assert [one.confidence for one in strict][:3] == pytest.approx([1 - 0.031 * 2 / 3] * 2 + [0.95])


def test_a_comparison_has_one_name_in_either_direction() -> None:
    assert claim_of_pair("crossover", "a", "b", "recall", 4) == claim_of_pair("crossover", "b", "a", "recall", 4)


@pytest.mark.parametrize("replicates", [2, 6])
def test_which_findings_are_untested_does_not_depend_on_the_outcome(replicates: int) -> None:
    axes = {"n_tasks": tuple(2**k for k in range(2, 12)), "compute_flops": (1e11, 4e11), "skills": ("recall",)}
    untested = set()
    for truth in (synthetic.step(100), sloping, synthetic.flat(0.0)):
        found = found_of(truth, truth, replicates=replicates, **axes)
        untested.add(frozenset(one.name for one in found.findings if one.significance == "untested"))
    assert len(untested) == 1
    assert any(name.startswith("break_n_tasks") for name in untested.pop()) == (replicates < 4)


# A question is a function that yields findings ----------------------------------------------------------------------


def test_a_new_question_is_one_function_and_is_corrected_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(results: Results) -> Iterator[Finding]:
        """Is the skill right more often than one half at the largest number of tasks?"""
        (condition,) = results.study.conditions
        values = results.cube("accuracy", condition, "recall", "held_out")[-1, -1]
        yield Finding(
            name=claim_of("right", "accuracy", condition, "recall"),
            question="mostly right",
            words=lambda one: f"recall is right in {one.estimate:.0%} of cases",
            condition=condition,
            skill="recall",
            verdict="yes" if values.mean() > 0.5 else "no",
            n=len(values),
            p=0.5 ** len(values),
            estimate=float(values.mean()),
        )

    before = found_of(replicates=10)
    monkeypatch.setattr(findings, "QUESTIONS", (*findings.QUESTIONS, ask))
    after = found_of(replicates=10)
    (row,) = [row for row in summary.rows(after) if row["question"] == "mostly right"]
    assert row["words"] == f"recall is right in {row['estimate']:.0%} of cases" and row["verdict"] == "yes"
    assert (row["significance"], row["confidence"]) == ("significant", None)
    assert row["p"] < row["adjusted_p"] < FALSE_SHARE
    assert len(summary.rows(after)) == len(summary.rows(before)) + 1
    assert set(row) == set(summary.COLUMNS)


# Nulls, and their opposite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", simulate_claims.SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_more_is_claimed_of_nulls_than_the_correction_allows(scenario: Scenario) -> None:
    outcome = scenario.play(9)  # at length: make calibration
    assert outcome.share <= scenario.bound, outcome


def test_the_verdicts_that_nulls_must_not_have_are_found_where_they_are_true() -> None:
    def truth(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.where(n > np.where(c < 2e11, 500, 30), 0.95, 0.1)

    found = found_of(truth, truth, **simulate_claims.LOTTERY_AXES, replicates=10)
    shown = {one.question for one in simulate_claims.significant(found)}
    assert shown >= {"K_A", "compute to skill", "drift of K_A", "emergence along n_tasks"}


# Breaks -------------------------------------------------------------------------------------------------------------


def sloping(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return 0.1 + 0.08 * np.log2(n)


def test_a_break_is_significant_only_where_the_verdict_is_one_and_lies_where_it_was_planted() -> None:
    axes = {"n_tasks": tuple(2**k for k in range(2, 12)), "compute_flops": (1e11, 4e11), "skills": ("recall",)}
    found = [found_of(truth, replicates=6, **axes) for truth in (synthetic.step(100), sloping)]
    found += [simulate_claims.more_likely_with_tasks(stream("test", "cuts", k), (4, 10)[k % 2]) for k in range(6)]
    for one in (one for study in found for one in study.of("emergence ")):
        assert (one.verdict == "break") == (one.p is not None and one.p < 0.05)
        assert one.verdict == "break" or one.significance != "significant"
    planted = found[0].of("emergence along n_tasks")
    assert {one.verdict for one in planted} == {"break"}
    assert {one.p for one in found[0].of("emergence along compute_flops")} == {1.0}
    assert all(one.low < 128 and one.high > 64 for one in planted)  # type: ignore[operator]
