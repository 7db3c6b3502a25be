"""A generalist against the specialists of its domains: who is compared with whom, and planted truths come back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.analysis import claims, findings, generalists, primary, summary
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.generalists import ALL, contest_words
from orchestrator.analysis.results import Results
from orchestrator.console import tables
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.study import claimable
from orchestrator.study.pairs import Pair, pairs_of
from orchestrator.study.schema import Study

BUDGETS = (1e11, 4e11, 1.6e12, 6.4e12)
VARIANTS: dict[str, Any] = {
    "generalist": {},
    "special_0": {"family": {"domain": 0}},
    "special_2": {"family": {"domain": 2}},
    "apart": {"family": {"share": False}},
    "apart_1": {"family": {"share": False, "domain": 1}},
}


def study_of(variants: dict[str, Any] = VARIANTS, primary: dict[str, Any] | None = None, **axes: Any) -> Study:
    axes = {"arm": ["answer"], "variant": variants, "n_tasks": [20], "compute_flops": BUDGETS, "replicates": 4} | axes
    record = {"study": "made_up", "version": 1, "question": "Who wins?", "axes": axes}
    return Study.from_record(record | {"family": {"name": "compose", "n_domains": 3}, "primary": primary})


def results_of(study: Study, ability: dict[str, list[float]], spread: float = 0.0, seed: int = 0) -> Results:
    """Every trial done; line -> ability at each budget, on every domain that any line is asked about."""
    rng, results, runs = np.random.default_rng(seed), [], []
    for trial in study.trials():
        line = trial.variant
        place = {"trial": trial.id, "trunk": trial.trunk.id, "arm": trial.arm, "variant": line}
        place |= {"n_tasks": trial.n_tasks, "compute_flops": trial.compute_flops, "replicate": trial.replicate}
        runs.append(place | {"status": "done", "steps": 100, "sequences": 6400})
        for d in range(3):
            level = ability[line][study.budgets.index(trial.compute_flops)] + spread * rng.standard_normal()
            row = {"step": 100, "flops": trial.compute_flops, "phase": "final", "skill": f"domain_{d}"}
            row |= {"split": "held_out", "n": 100_000, "n_correct": round(1e5 * level), "nll_nats": 1.0}
            row |= {"n_sequences": 100_000, "n_exact": round(1e5 * level), "exact_memorizer": 0.0}
            results.append(place | row)
    made = (pa.Table.from_pylist(rows, schema=schema) for rows, schema in ((results, RESULTS), (runs, RUNS)))
    return Results.of_tables(study, *made)


LEVEL = {"special_0": [0.5] * 4, "special_2": [0.6] * 4, "apart": [0.1] * 4, "apart_1": [0.9] * 4}


def contest(results: Results, generalist: str, domain: str, against: str, spent: float | None = None) -> Any:
    found = generalists.contests(results, lambda name: claims.CONFIDENCE)
    (one,) = (
        c
        for c in found
        if (c.generalist, c.domain, c.against, c.specialist_flops) == (generalist, domain, against, spent)
    )
    return one


def test_specialists_are_compared_with_the_generalist_that_trains_their_domain_with_the_same_functions():
    assert pairs_of(study_of()) == [
        Pair("generalist", "special_0", "domain_0"),
        Pair("generalist", "special_2", "domain_2"),
        Pair("apart", "apart_1", "domain_1"),
    ]


def test_another_arm_or_model_is_no_pair_and_shares_are_the_generalists_own():
    variants = {
        "general": {"family": {"domain_shares": [2, 1, 1]}},
        "wide": {"family": {"domain": 0}, "model": {"d_model": 128}},
        "special": {"family": {"domain": 0}},
    }
    found = pairs_of(study_of(variants, arm=["answer", "steps"]))
    assert [(p.generalist, p.specialist) for p in found] == [
        ("answer, general", "answer, special"),
        ("steps, general", "steps, special"),
    ]
    assert pairs_of(study_of({"plain": {}, "wide": {"model": {"d_model": 128}}})) == []


def test_lines_of_different_domains_are_not_asked_who_is_ahead():
    assert study_of().comparable == []  # the generalists, too: their domains are made of different functions
    shares = {"even": {}, "odd": {"family": {"domain_shares": [2, 1, 1]}}, "special": {"family": {"domain": 0}}}
    assert study_of(shares).comparable == [("even", "odd")]
    assert len(study_of({"a": {}, "b": {"model": {"n_layers": 3}}, "c": {"model": {"n_layers": 4}}}).comparable) == 3


def test_a_planted_multiple_comes_back():
    """The generalist passes the mean specialist, .55, between 4 and 16 times the smallest budget."""
    results = results_of(study_of(), LEVEL | {"generalist": [0.2, 0.4, 0.7, 0.8]}, spread=0.01)
    one = contest(results, "generalist", ALL, "its budget", 1e11)
    low, high = one.multiples
    assert one.result.verdict == "crosses" and 1 <= low <= 4 < 16 <= high <= 64
    assert "overtakes the mean specialist of 1e11 FLOPs at" in contest_words(one, results.budgets)
    assert contest_words(one, results.budgets).endswith("times its compute")
    later = contest(results, "generalist", ALL, "its budget", 4e11)
    assert later.multiples == pytest.approx((low / 4, high / 4), rel=0.3)
    for against in ("the same", "its best"):
        same = contest(results, "generalist", ALL, against)
        assert same.result.verdict == "crosses" and same.multiples[0] <= 4e11 < 1.6e12 <= same.multiples[1]
        assert contest_words(same, results.budgets).endswith("FLOPs")


def test_each_domain_is_judged_by_its_own_specialist():
    levels = LEVEL | {"special_2": [0.9] * 4, "generalist": [0.2, 0.4, 0.7, 0.8]}
    results = results_of(study_of(), levels, spread=0.01)
    assert contest(results, "generalist", "domain_0", "its best").result.verdict == "crosses"
    behind = contest(results, "generalist", "domain_2", "its best")
    assert behind.result.verdict == "a ahead throughout" and behind.multiples == (6.4e12, None)
    said = "generalist stays behind the specialist of domain_2 at its best, up to 6.4e12 FLOPs"
    assert contest_words(behind, results.budgets) == said


def test_a_specialist_that_gets_worse_is_taken_at_its_best():
    levels = LEVEL | {"special_0": [0.5, 0.75, 0.4, 0.3], "special_2": [0.5, 0.75, 0.4, 0.3]}
    results = results_of(study_of(), levels | {"generalist": [0.2, 0.4, 0.6, 0.65]}, spread=0.01)
    assert contest(results, "generalist", ALL, "the same").result.verdict == "crosses"
    assert contest(results, "generalist", ALL, "its best").result.verdict == "a ahead throughout"


def test_the_answer_and_the_summary_say_who_wins_and_the_control_apart():
    results = results_of(study_of(), LEVEL | {"generalist": [0.2, 0.4, 0.7, 0.8]}, spread=0.01)
    found = findings.judge(results)
    assert "With 20 tasks of a domain generalist overtakes the mean specialist of 1e11 FLOPs (at 0.5" in paragraph(
        found
    )
    assert "With 20 tasks of a domain generalist overtakes the mean specialist at its best (at 0.5" in paragraph(found)
    assert re.search(
        r"apart stays behind the specialist of domain_1 at its best \(at 0\.9\d\), up to 6.4e12 FLOPs", paragraph(found)
    )
    rows = [row for row in summary.rows(found) if row["quantity"].startswith("generalist")]
    assert len(rows) == (3 + 1) * 5  # two domains, their mean and the control; three budgets, equal compute, the best
    assert {claim.name for claim in found.claims if claim.name.startswith("generalist")} == {
        generalists.claim_of_contest(c.generalist, c.domain, c.n_tasks, c.against, c.specialist_flops)
        for c in found.contests
    }


@pytest.mark.parametrize("replicates", [3, 4, 10])
def test_where_nobody_is_ahead_nobody_is_said_to_overtake(replicates):
    """2,000 comparisons without a difference: at most 5 % claimed, in each of the three kinds."""
    rng = np.random.default_rng(7)
    study = study_of({k: VARIANTS[k] for k in ("generalist", "special_0")}, replicates=replicates)
    claimed: dict[Any, int] = {}
    n = 2000
    for _ in range(n):
        special, general = rng.normal(0.5, 0.05, (2, replicates, len(BUDGETS)))
        best = np.repeat(special.max(axis=1, keepdims=True), len(BUDGETS), axis=1)
        sides = generalists.Sides(special, best, general)
        at = generalists.at_one_level(study.budgets, "g", "domain_0", 20, sides, lambda name: 0.95)
        for one in at:
            key = (one.against, one.specialist_flops)
            claimed[key] = claimed.get(key, 0) + (one.result.verdict == "crosses")
    assert len(claimed) == 5 and max(claimed.values()) <= 0.05 * n


def test_what_was_not_measured_is_said_so():
    results = results_of(study_of(), LEVEL | {"generalist": [0.2, 0.4, 0.7, 0.8]})
    nothing = Results.of_tables(
        results.study, pa.Table.from_pylist([], schema=RESULTS), pa.Table.from_pylist([], schema=RUNS)
    )
    for one in generalists.contests(nothing, lambda name: 0.95):
        assert one.result.verdict == "missing" and "were not both measured" in contest_words(one, list(BUDGETS))


GROWS = {"generalist": [0.2, 0.4, 0.7, 0.8]}  # past .55, the mean specialist, between the second budget and the third


@pytest.mark.parametrize(
    ("claim", "verdict", "says"),
    [
        (
            {"hi": 1.8e12},
            "consistent",
            "generalist overtakes its mean specialist at its best at 20 tasks of a domain is",
        ),
        ({"hi": 1.8e12, "from_flops": 1e11}, "consistent", "its mean specialist of 1e11 FLOPs at 20 tasks"),
        ({"lo": 3e12}, "inconsistent", "is at least 3e12"),
        ({"skill": "domain_2", "hi": 1.8e12}, "consistent", "overtakes the specialist of domain_2 at its best"),
        ({"arm": "apart", "hi": 1.8e12}, "inconsistent", "apart overtakes its mean specialist"),
    ],
)
def test_a_study_may_claim_that_its_generalist_overtakes(claim: dict[str, Any], verdict: str, says: str) -> None:
    study = study_of(primary={"what": "overtakes", "arm": "generalist", "n_tasks": 20} | claim)
    assert study.primary is not None and says in primary.claim_words(study, study.primary)
    found = findings.judge(results_of(study, LEVEL | GROWS, spread=0.01))
    assert found.primary is not None and found.primary.verdict == verdict
    everything = len(findings.judge(results_of(study_of(), LEVEL | GROWS, spread=0.01)).claims)
    assert len(found.claims) == everything - 1  # the primary claim is not among those that are corrected


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (
            {"arm": "special_0", "hi": 1.6e12},
            "'overtakes' is of a generalist with specialists beside it; special_0 has none, the study's generalists: generalist, apart",
        ),
        ({"skill": "domain_1", "hi": 1.6e12}, "domain_1 is not in the study; it has domain_0, domain_2"),
        ({"from_flops": 6.4e12, "hi": 1.6e12}, "nothing is left to the generalist beyond the largest budget"),
        ({"hi": 1e11}, "an overtaking is seen from the second budget on"),
        ({"against": "special_0", "hi": 1.6e12}, "'overtakes' does not take 'against'"),
    ],
)
def test_a_claim_of_overtaking_that_cannot_be_decided_is_refused(claim: dict[str, Any], says: str) -> None:
    study = study_of(primary={"what": "overtakes", "arm": "generalist", "n_tasks": 20} | claim)
    assert study.primary is not None
    family = study.family_of("generalist")
    problems = list(claimable.problems(study, family, study.primary))
    problems = problems or list(claimable.out_of_reach(study, family, study.primary))
    assert any(says in said for _, said in problems), problems


def test_the_plan_tells_a_model_once_and_names_all_lines_that_have_it():
    rows = [row for name, row in tables.shape_rows(study_of()) if name == "model"]
    assert [row.split(":")[0] for row in rows] == ["generalist, special_0, special_2", "apart, apart_1"]
    assert all(row.endswith(" to answer") for row in rows)
