"""A generalist against the specialists of its domains: who is compared with whom, and planted truths come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator import stats
from orchestrator.analysis import findings, generalists
from orchestrator.analysis.finding import Finding
from orchestrator.analysis.generalists import ALL
from orchestrator.analysis.results import Results
from orchestrator.console import tables
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.study import claimable
from orchestrator.study.claimed import claim_words
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


def results_of(
    study: Study, ability: dict[str, list[float]], spread: float = 0.0, lost: tuple[str, int, str] | None = None
) -> Results:
    """Condition -> ability at each budget, on every domain. `lost`: a condition, a replicate, and how its trials ended."""
    rng, results, runs = np.random.default_rng(0), [], []
    for trial in study.trials():
        condition = trial.variant
        place = {"trial": trial.id, "trunk": trial.trunk.id, "arm": trial.arm, "variant": condition}
        place |= {"n_tasks": trial.n_tasks, "compute_flops": trial.compute_flops, "replicate": trial.replicate}
        status = lost[2] if lost and lost[:2] == (condition, trial.replicate) else "done"
        runs.append(place | {"status": status, "steps": 100, "sequences": 6400})
        if status != "done":
            continue
        for d in range(3):
            level = ability[condition][study.budgets.index(trial.compute_flops)] + spread * rng.standard_normal()
            row = {"step": 100, "flops": trial.compute_flops, "phase": "final", "skill": f"domain_{d}"}
            row |= {"split": "held_out", "n": 100_000, "n_correct": round(1e5 * level), "sum_nll_nats": 1.0}
            row |= {"n_sequences": 100_000, "n_exact": round(1e5 * level), "sum_exact_memorizer": 0.0}
            results.append(place | row)
    made = (pa.Table.from_pylist(rows, schema=schema) for rows, schema in ((results, RESULTS), (runs, RUNS)))
    return Results.of_tables(study, *made)


GROWS = {"generalist": [0.2, 0.4, 0.7, 0.8]}  # past .55, the mean specialist, between the second budget and the third
LEVEL = {"special_0": [0.5] * 4, "special_2": [0.6] * 4, "apart": [0.1] * 4, "apart_1": [0.9] * 4}


def comparison(results: Results, generalist: str, domain: str, against: str, spent: float | None = None) -> Finding:
    place = (generalist, domain, against, spent)
    (one,) = (
        one for one in generalists.ask(results) if (one.condition, one.skill, one.against, one.compute_flops) == place
    )
    return one


def test_specialists_are_compared_with_the_generalist_that_trains_their_domain_with_the_same_functions():
    assert pairs_of(study_of()) == [
        Pair("generalist", "special_0", "domain_0"),
        Pair("generalist", "special_2", "domain_2"),
        Pair("apart", "apart_1", "domain_1"),
    ]


def test_another_arm_or_model_is_no_pair_and_shares_are_the_generalists_own():
    wide = {"wide": {"family": {"domain": 0}, "model": {"d_model": 128}}}
    variants = {"general": {"family": {"domain_shares": [2, 1, 1]}}, **wide, "special": {"family": {"domain": 0}}}
    pairs = {(pair.generalist, pair.specialist) for pair in pairs_of(study_of(variants, arm=["answer", "steps"]))}
    assert pairs == {(f"{arm}, general", f"{arm}, special") for arm in ("answer", "steps")}
    assert pairs_of(study_of({"plain": {}, "wide": {"model": {"d_model": 128}}})) == []


def test_lines_of_different_domains_are_not_asked_who_is_ahead():
    assert study_of().comparable == []  # the generalists, too: their domains are made of different functions
    shares = {"even": {}, "odd": {"family": {"domain_shares": [2, 1, 1]}}, "special": {"family": {"domain": 0}}}
    assert study_of(shares).comparable == [("even", "odd")]
    assert len(study_of({"a": {}, "b": {"model": {"n_layers": 3}}, "c": {"model": {"n_layers": 4}}}).comparable) == 3


def test_a_planted_multiple_comes_back():
    """The generalist passes the mean specialist, .55, between 4 and 16 times the smallest budget."""
    results = results_of(study_of(), LEVEL | GROWS, spread=0.01)
    one = comparison(results, "generalist", ALL, "its budget", 1e11)
    assert one.verdict == "crosses" and 1 <= one.low <= 4 < 16 <= one.high <= 64  # type: ignore[operator]
    assert one.estimate == pytest.approx(0.55, abs=0.02)
    later = comparison(results, "generalist", ALL, "its budget", 4e11)
    assert later.ends == pytest.approx((one.low / 4, one.high / 4), rel=0.3)  # type: ignore[operator]
    for against in ("the same", "its best"):
        same = comparison(results, "generalist", ALL, against)
        assert same.verdict == "crosses" and same.low <= 4e11 < 1.6e12 <= same.high  # type: ignore[operator]


def test_each_domain_is_judged_by_its_own_specialist():
    results = results_of(study_of(), LEVEL | GROWS | {"special_2": [0.9] * 4}, spread=0.01)
    assert comparison(results, "generalist", "domain_0", "its best").verdict == "crosses"
    behind = comparison(results, "generalist", "domain_2", "its best")
    assert (behind.verdict, behind.ends, behind.p) == ("a ahead throughout", (6.4e12, None), 1.0)


def test_a_specialist_that_gets_worse_is_taken_at_its_best():
    levels = LEVEL | {name: [0.5, 0.75, 0.4, 0.3] for name in ("special_0", "special_2")}
    results = results_of(study_of(), levels | {"generalist": [0.2, 0.4, 0.6, 0.65]}, spread=0.01)
    assert comparison(results, "generalist", ALL, "the same").verdict == "crosses"
    assert comparison(results, "generalist", ALL, "its best").verdict == "a ahead throughout"


def test_a_lost_specialist_knows_nothing_and_an_open_one_is_left_out():
    for status, n, mean in (("diverged", 4, 0.75 * 0.5), ("open", 3, 0.5)):
        results = results_of(study_of(), LEVEL | GROWS, lost=("special_0", 3, status))
        one = comparison(results, "generalist", "domain_0", "its budget", 1e11)
        assert (one.n, one.estimate) == (n, pytest.approx(mean))


def test_all_comparisons_are_corrected_with_all_other_findings():
    found = findings.judge(results_of(study_of(replicates=6), LEVEL | GROWS, spread=0.01))
    asked = found.of("generalist ")
    assert len(asked) == (3 + 1) * 5  # two domains, their mean and the control; three budgets, equal compute, the best
    assert not found.of("task multiplier") and all(one.counted and one.significance for one in asked)
    (best,) = found.of("generalist against its best", "generalist", ALL)
    assert best.significance == "significant"
    assert {one.verdict for one in found.of("generalist ", "apart")} == {"a ahead throughout"}


@pytest.mark.parametrize("replicates", [3, 4, 10])
def test_where_nobody_is_ahead_nobody_is_found_to_overtake(replicates):
    """600 comparisons without a difference: at most 5 % claimed, against each of the five rivals."""
    rng, claimed, n = np.random.default_rng(7), {}, 600
    for _ in range(n):
        special, general = rng.normal(0.5, 0.05, (2, replicates, len(BUDGETS)))
        best = np.repeat(special.max(axis=1, keepdims=True), len(BUDGETS), axis=1)
        sides = generalists.Sides(special, best, general)
        for key, rival in generalists._rivals(sides, list(BUDGETS)).items():
            crosses = stats.crossover(BUDGETS, rival, general, 0.95).verdict == "crosses"
            claimed[key] = claimed.get(key, 0) + crosses
    assert len(claimed) == 5 and max(claimed.values()) <= 0.05 * n


def test_nothing_recorded_is_missing():
    nothing = (pa.Table.from_pylist([], schema=schema) for schema in (RESULTS, RUNS))
    for one in generalists.ask(Results.of_tables(study_of(), *nothing)):
        assert (one.verdict, one.n, one.p) == ("missing", 0, None)


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"hi": 1.8e12}, "consistent"),
        ({"hi": 1.8e12, "from_flops": 1e11}, "consistent"),
        ({"lo": 3e12}, "inconsistent"),
        ({"skill": "domain_2", "hi": 1.8e12}, "consistent"),
        ({"arm": "apart", "hi": 1.8e12}, "inconsistent"),
    ],
)
def test_a_study_may_claim_that_its_generalist_overtakes(claim: dict[str, Any], verdict: str) -> None:
    claim = {"what": "overtakes", "arm": "generalist", "n_tasks": 20} | claim
    study = study_of(primary=claim)
    assert study.primary is not None
    said = claim_words(study, study.primary)
    assert claim["arm"] in said and claim.get("skill", "mean specialist") in said
    found = findings.judge(results_of(study, LEVEL | GROWS, spread=0.01))
    assert found.primary is not None and found.primary.verdict == verdict
    assert [one.name for one in found.findings if one.significance == "primary"] == [found.primary.finding.name]
    assert found.primary.finding.condition == claim["arm"]


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"arm": "special_0", "hi": 1.6e12}, "generalist, apart"),
        ({"skill": "domain_1", "hi": 1.6e12}, "domain_0, domain_2"),
        ({"from_flops": 6.4e12, "hi": 1.6e12}, "largest budget"),
        ({"hi": 1e11}, "second budget"),
        ({"against": "special_0", "hi": 1.6e12}, "'against'"),
    ],
)
def test_a_claim_of_overtaking_that_cannot_be_decided_is_refused(claim: dict[str, Any], says: str) -> None:
    study = study_of(primary={"what": "overtakes", "arm": "generalist", "n_tasks": 20} | claim)
    assert study.primary is not None
    family = study.family_of("generalist")
    problems = list(claimable.problems(study, family, study.primary))
    problems = problems or [("", why) for why in [claimable.out_of_reach(study, family, study.primary)] if why]
    assert any(says in said for _, said in problems), problems


def test_the_plan_tells_a_model_once_and_names_all_lines_that_have_it():
    rows = [row for name, row in tables.shape_rows(study_of()) if name == "model"]
    assert [row.split(":")[0] for row in rows] == ["generalist, special_0, special_2", "apart, apart_1"]
    assert all(row.endswith(" to answer") for row in rows)
