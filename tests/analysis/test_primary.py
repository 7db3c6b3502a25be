"""The primary claim: its verdict against planted truths, what is not measured, and the plan's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from orchestrator.analysis import findings, primary, summary
from orchestrator.analysis.primary import PrimaryFinding, examine
from orchestrator.analysis.results import Results
from orchestrator.stats.minimums import LEAST
from orchestrator.study.claimable import planned
from orchestrator.study.reader import load
from orchestrator.study.schema import Study
from trainers.streams import stream

AXES: dict[str, Any] = {
    "n_tasks": (4, 16, 64, 256, 1024),
    "compute_flops": (1e11, 4e11, 1.6e12),
    "replicates": 5,
    "skills": ("recall",),
}
TWO_ARMS: dict[str, Any] = AXES | {"arm": ("answer", "next_token")}


def examined(study: Study, tables: Any) -> PrimaryFinding:
    """The primary finding, among all findings only where its question is one of theirs."""
    results = Results.of_tables(study, *tables)
    asked = (one for ask in findings.QUESTIONS for one in ask(results)) if primary.name_of(study, study.primary) else ()
    found = examine(results, {one.name: one for one in asked})
    assert found is not None
    return found


def judged(claim: dict[str, Any], axes: dict[str, Any] | None = None, **tables: Any) -> PrimaryFinding:
    """K_A at 64 tasks at 1e11 FLOPs, falling as the root of compute; K_M at 16 and rising so (synthetic.py)."""
    study = synthetic.made_up(**(AXES | (axes or {}) | {"primary": claim}))
    return examined(study, synthetic.tables(study, **tables))


# Planted truths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"what": "k_ability", "compute_flops": 1e11, "lo": 10, "hi": 300}, "consistent"),
        ({"what": "k_ability", "compute_flops": 1e11, "lo": 300}, "inconsistent"),
        ({"what": "k_ability", "compute_flops": 1e11, "lo": 50, "hi": 60}, "inconclusive"),
        ({"what": "k_memory", "compute_flops": 1e11, "hi": 100}, "consistent"),
        ({"what": "k_memory", "compute_flops": 1e11, "lo": 100}, "inconsistent"),
        ({"what": "drift_ability", "hi": 0.5}, "consistent"),
        ({"what": "drift_memory", "hi": -0.5}, "inconsistent"),
        ({"what": "compute_to_skill", "n_tasks": 64, "hi": 1e12}, "consistent"),
        ({"what": "compute_to_skill", "n_tasks": 64, "lo": 1.5e12}, "inconsistent"),
        ({"what": "ability", "n_tasks": 1024, "lo": 0.9}, "consistent"),
        ({"what": "ability", "n_tasks": 4, "compute_flops": 1e11, "lo": 0.5}, "inconsistent"),
        ({"what": "memory", "n_tasks": 4, "lo": 0.9}, "consistent"),
        ({"what": "accuracy", "n_tasks": 1024, "lo": 0.9}, "consistent"),
        ({"what": "emergence", "compute_flops": 1e11, "verdict": "break"}, "inconclusive"),  # too few scales
    ],
)
def test_a_primary_claim_meets_its_truth(claim: dict[str, Any], verdict: str) -> None:
    found = judged(claim)
    assert found.verdict == verdict and found.finding.n == 5
    doubted = verdict != "inconclusive" and LEAST[claim["what"]].to_trust > 5
    assert bool(found.doubt) == doubted


def test_the_primary_claim_is_the_first_row_of_the_summary_and_its_finding_is_not_corrected() -> None:
    study = synthetic.made_up(**AXES, primary={"what": "k_ability", "compute_flops": 1e11, "lo": 50, "hi": 60})
    found = findings.find(study, *synthetic.tables(study))
    first, *others = summary.rows(found)
    assert (first["question"], first["verdict"], first["significance"]) == ("primary claim", "inconclusive", "primary")
    (same,) = [row for row in others if row["significance"] == "primary"]
    assert (same["question"], same["low"], same["high"]) == ("K_A", first["low"], first["high"])
    assert same["confidence"] == 0.95 and same["adjusted_p"] is None


@pytest.mark.parametrize(("hi", "verdict"), [(-0.1, "consistent"), (-0.3, "inconsistent"), (-0.2, "inconclusive")])
def test_a_change_is_that_of_each_replicate_however_much_they_differ_in_level(hi: float, verdict: str) -> None:
    """Levels from .45 to .85, and every replicate loses .2: the means of the two budgets overlap, the changes do not."""

    change = lambda r: -0.2 + 0.01 * (-1.0) ** r  # noqa: E731
    loses = lambda n, c, r: 0.45 + 0.1 * r + change(r) * (c > 1e12)  # noqa: E731
    claim = {"what": "change_ability", "n_tasks": 64, "from_flops": 1e11, "hi": hi}
    found = judged(claim, ability=loses, noise=0.0)
    low, high = found.finding.ends
    assert found.verdict == verdict and -0.22 < low < -0.2 < high < -0.18  # type: ignore[operator]


# Not measured, or not settled ---------------------------------------------------------------------------------------

EVERY_KIND: list[dict[str, Any]] = [
    {"what": "k_ability", "lo": 16},
    {"what": "k_memory", "lo": 16},
    {"what": "drift_ability", "hi": 0},
    {"what": "drift_memory", "hi": 0},
    {"what": "compute_to_skill", "n_tasks": 64, "hi": 1e12},
    {"what": "crossover", "against": "next_token", "n_tasks": 64, "hi": 4e11},
    {"what": "emergence", "n_tasks": 64, "verdict": "break"},
    {"what": "ability", "n_tasks": 64, "lo": 0.5},
    {"what": "memory", "n_tasks": 64, "lo": 0.5},
    {"what": "accuracy", "n_tasks": 64, "lo": 0.5},
    {"what": "change_ability", "n_tasks": 64, "from_flops": 1e11, "lo": 0},
    {"what": "change_accuracy", "n_tasks": 64, "from_flops": 1e11, "lo": 0},
]
kinds = pytest.mark.parametrize("claim", EVERY_KIND, ids=lambda claim: claim["what"])


def test_every_kind_of_claim_has_its_least_replicates() -> None:
    others = {"overtakes", "along_ability", "along_long_answers"}  # test_generalists.py, test_along.py
    assert {claim["what"] for claim in EVERY_KIND} | others == set(LEAST)


@kinds
def test_one_replicate_decides_nothing_no_record_is_not_measured_and_no_skill_is(claim: dict[str, Any]) -> None:
    one = judged(claim, TWO_ARMS | {"replicates": 1})
    assert one.verdict == "inconclusive" and not one.finding.has_interval
    assert str(LEAST[claim["what"]].to_settle) in one.doubt
    study = synthetic.made_up(**TWO_ARMS, primary=claim)
    empty = examined(study, tuple(table.slice(0, 0) for table in synthetic.tables(study)))
    assert empty.verdict == "not measured" and empty.finding.ends == (None, None)
    unlearned = judged(claim, TWO_ARMS, ability=synthetic.flat(0.0), memory=synthetic.flat(0.0))
    assert unlearned.verdict != "not measured" and "nan" not in unlearned.sentence


def test_a_boundary_that_is_not_there_has_no_drift_to_measure() -> None:
    found = judged({"what": "drift_ability", "hi": 0}, ability=synthetic.flat(0.0))
    assert (found.verdict, found.finding.verdict, found.finding.n) == ("inconclusive", "missing", 5)


def test_a_mean_waits_for_no_replicate_and_forgets_none_that_diverged() -> None:
    study = synthetic.made_up(**AXES, primary={"what": "ability", "n_tasks": 1024, "lo": 0.9})
    tables = synthetic.tables(study)
    for status, verdict, of in (("open", "consistent", "measured"), ("diverged", "inconclusive", "incomplete")):
        found = examined(study, synthetic.changed(tables, {(None, 1024, None, r): status for r in (0, 1)}))
        assert (found.verdict, found.finding.verdict, found.finding.n) == (verdict, of, 3)


@pytest.mark.parametrize(("lo", "hi", "settles"), [(16, 64, 5), (256, 1024, 5), (4, 256, 2)])
def test_replicates_that_agree_settle_a_narrow_range_from_five_on(lo: float, hi: float, settles: int) -> None:
    """All cross in one step of tasks. Fewer than five agree by chance in more than one study of 20."""
    at = min(hi, 64) if lo < 64 else hi
    step = lambda n, c, r: np.where(n >= at, 0.9, 0.1)  # noqa: E731
    claim = {"what": "k_ability", "compute_flops": 1e11, "lo": lo, "hi": hi}
    for replicates, verdict in ((settles - 1, "inconclusive"), (settles, "consistent")):
        assert judged(claim, {"replicates": replicates}, ability=step, noise=0).verdict == verdict


# Crossovers ---------------------------------------------------------------------------------------------------------

AHEAD, LEVEL, BEHIND = [0.3] * 5, [0.0] * 5, [-0.3] * 5


def overtaking(gain: list[float], claim: dict[str, Any], replicates: int = 5) -> PrimaryFinding:
    """next_token less answer at five budgets, 1e11 to 1.6e12, at 64 tasks; replicates differ by some 0.01."""
    budgets = (1e11, 2e11, 4e11, 8e11, 1.6e12)
    whole = {"what": "crossover", "against": "next_token", "n_tasks": 64} | claim
    axes = {"n_tasks": (64,), "compute_flops": budgets, "replicates": replicates, "primary": whole}
    study = synthetic.made_up(**(TWO_ARMS | axes))

    at = lambda c: np.interp(np.log(c), np.log(budgets), gain)  # noqa: E731
    noise = lambda c: 0.01 * stream("test", "crossover").standard_normal(len(c))  # noqa: E731
    truth = lambda n, c, who: 0.4 + np.where(who >= replicates, at(c), 0.0) + noise(c)  # noqa: E731
    return examined(study, synthetic.tables(study, truth, noise=0.0, arms_alike=False))


CROSSES = [-0.3, -0.2, 0.2, 0.3, 0.3]


@pytest.mark.parametrize(
    ("gain", "claim", "verdict", "of"),
    [
        (CROSSES, {"lo": 1e11, "hi": 8e11}, "consistent", "crosses"),
        (CROSSES, {"lo": 8e11}, "inconsistent", "crosses"),
        (CROSSES, {"lo": 3e11, "hi": 1e12}, "inconclusive", "crosses"),
        (LEVEL, {"hi": 4e11}, "inconclusive", "no difference shown"),
        (LEVEL, {"lo": 4e11}, "inconclusive", "no difference shown"),
        (AHEAD, {"hi": 4e11}, "inconclusive", "b ahead throughout"),
        (AHEAD, {"lo": 2e11, "hi": 8e11}, "inconsistent", "b ahead throughout"),
        (BEHIND, {"lo": 4e11}, "consistent", "a ahead throughout"),
        (BEHIND, {"lo": 2e11, "hi": 8e11}, "inconsistent", "a ahead throughout"),
        ([-0.3, -0.3, 0, 0, 0], {"lo": 2e11}, "consistent", "undecided"),
        ([-0.3, -0.3, 0, 0, 0], {"lo": 2e11, "hi": 8e11}, "inconclusive", "undecided"),
        ([0.3, 0.2, 0, -0.2, -0.3], {"hi": 8e11}, "inconclusive", "undecided"),
    ],
)
def test_an_overtaking_is_consistent_only_where_it_was_seen(
    gain: list[float], claim: dict[str, Any], verdict: str, of: str
) -> None:
    found = overtaking(gain, claim)
    assert (found.verdict, found.finding.verdict) == (verdict, of)
    assert (found.finding.against, found.finding.condition) == ("answer", "next_token")


def test_a_claim_in_the_other_direction_is_about_the_same_finding() -> None:
    """next_token overtakes answer; the claim is that answer overtakes next_token."""
    found = overtaking(CROSSES, {"arm": "next_token", "against": "answer", "hi": 8e11})
    assert (found.finding.against, found.finding.condition) == ("next_token", "answer")
    assert (found.verdict, found.finding.verdict) == ("inconclusive", "undecided")


def test_two_replicates_cannot_make_two_arms_distinguishable() -> None:
    found = overtaking(BEHIND, {"lo": 4e11}, replicates=2)
    assert (found.verdict, found.finding.verdict, found.finding.p) == ("inconclusive", "undecided", None)
    assert found.doubt


# The plan -----------------------------------------------------------------------------------------------------------


def test_the_plan_has_the_claim_its_least_replicates_and_a_warning_where_the_study_has_fewer() -> None:
    def rows(replicates: int, **claim: Any) -> dict[str, str]:
        return dict(planned(synthetic.made_up(**(AXES | {"replicates": replicates, "primary": claim}))))

    assert planned(synthetic.made_up()) == []
    for what, to_settle, to_trust in (("k_ability", 2, 5), ("ability", 2, 6), ("drift_ability", 3, 3)):
        claim = {"what": what, "lo": 0.5} | ({"n_tasks": 64} if what == "ability" else {})
        for n in (1, to_settle, to_trust):
            found = rows(n, **claim)
            assert f"least {to_settle} " in found["settled by"] and found["settled by"].endswith(f" {n}")
            assert ("warning" in found) == (n < to_trust)


def test_the_command_shows_the_claim_in_the_plan_and_only_its_warning_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.console import tables
    from orchestrator.plan import price
    from orchestrator.record import journal

    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    study = load("control_null")
    todo = price.make(study, journal.State(), slots=2, device="cpu")
    rows = dict(planned(study))
    for brief in (False, True):
        tables.show_plan(todo, tmp_path, brief=brief)
        shown = " ".join(capsys.readouterr().out.split())
        assert (rows["claim"][:40] in shown) == (not brief)
        assert rows["warning"][:40] in shown
