"""The primary claim: what could settle it, what became of it against planted truths, and the least that could settle it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import synthetic

from orchestrator.analysis import answer, emergence, findings, primary
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.primary import PrimaryFinding, examine, least, planned, sentences
from orchestrator.analysis.results import Results
from orchestrator.record.tables import RUNS
from orchestrator.stats.boundaries import Crossover
from orchestrator.study.reader import load
from orchestrator.study.schema import Study
from trainers.streams import stream

AXES: dict[str, Any] = {"n_tasks": (4, 16, 64, 256, 1024), "compute_flops": (1e11, 4e11, 1.6e12), "replicates": 5}


def examined(study: Study, tables: tuple[Any, Any]) -> PrimaryFinding:
    results = Results.of_tables(study, *tables)
    assert study.primary is not None
    cuts = emergence.cuts(results, study.shown_skills[:1]) if study.primary.what == "emergence" else []
    found = examine(results, cuts)
    assert found is not None
    return found


def judged(primary: dict[str, Any], axes: dict[str, Any] | None = None, **tables: Any) -> PrimaryFinding:
    """K_A at 64 tasks at 1e11 FLOPs, falling as the root of compute; K_M at 16 and rising so (synthetic.py)."""
    study = synthetic.made_up(**(AXES | (axes or {}) | {"primary": primary}))
    return examined(study, synthetic.tables(study, **tables))


def nothing(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.zeros(len(n))


# --- planted truths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary", "verdict"),
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
    ],
)
def test_a_primary_claim_meets_its_truth(primary: dict[str, Any], verdict: str) -> None:
    found = judged(primary)
    assert found.verdict == verdict
    assert found.measured.startswith("measured: 95 % interval ")
    doubted = primary["what"] in ("ability", "memory", "accuracy")
    assert ("5 replicates can agree by chance" in found.wanting) == doubted


def test_the_answer_says_the_primary_claim_and_what_is_wanting() -> None:
    study = synthetic.made_up(**AXES, primary={"what": "k_ability", "compute_flops": 1e11, "lo": 50, "hi": 60})
    found = findings.find(study, *synthetic.tables(study))
    assert found.primary is not None
    said = sentences(study, found.primary)
    assert said in paragraph(found) and said == answer.primary_sentence(found)
    assert re.search(r"at 1e11 FLOPs is 50 to 60: inconclusive \(measured: 95 % interval \d+ to \d+\)\.$", said)


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"what": "k_ability", "arm": "next_token", "lo": 16}, "recall (next_token) appears at 1.6e12 FLOPs is at least 16"),
        ({"what": "k_memory", "lo": 16}, "up to which all are memorised (answer) at"),
        ({"what": "drift_ability", "hi": -0.125}, "the drift of K_A of recall (answer), in doublings per doubling of compute, is at most \u22120.125"),
        ({"what": "drift_memory", "hi": 0}, "the drift of K_M (answer), in"),
        ({"what": "compute_to_skill", "n_tasks": 64, "hi": 1e12}, "recall (answer) is there at 64 tasks is at most 1e12"),
        ({"what": "memory", "n_tasks": 4, "lo": 0.9}, "the memory of the training tasks (answer) at 4 tasks"),
        ({"what": "accuracy", "n_tasks": 4, "lo": 0.9}, "the accuracy of recall (answer) at 4 tasks and 1.6e12 FLOPs is at least 0.9"),
        ({"what": "change_accuracy", "n_tasks": 4, "from_flops": 4e11, "hi": 0}, "the change in accuracy of recall (answer) at 4 tasks from 4e11 to 1.6e12 FLOPs is at most 0"),
        ({"what": "emergence", "n_tasks": 4, "verdict": "smooth"}, "the emergence of recall (answer) along compute at 4 tasks is smooth"),
        ({"what": "crossover", "against": "next_token", "n_tasks": 4, "hi": 4e11}, "next_token overtakes answer in recall at 4 tasks is at most 4e11"),
    ],
)  # fmt: skip
def test_the_claim_names_its_arm_where_there_are_several(claim: dict[str, Any], says: str) -> None:
    two = synthetic.made_up(**AXES, arm=("answer", "next_token"), primary=claim)
    assert two.primary is not None and says in primary.claim_words(two, two.primary)
    if claim["what"] != "crossover":
        one = synthetic.made_up(**AXES, arm=("answer",), primary=claim)
        assert one.primary is not None and "(answer)" not in primary.claim_words(one, one.primary)


@pytest.mark.parametrize(("hi", "verdict"), [(-0.1, "consistent"), (-0.3, "inconsistent"), (-0.2, "inconclusive")])
def test_a_change_is_that_of_each_replicate_however_much_they_differ_in_level(hi: float, verdict: str) -> None:
    """Levels from .45 to .85, and every replicate loses .2: the means of the two budgets overlap, the changes do not."""

    def loses(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return 0.45 + 0.1 * replicate - 0.2 * (flops > 1e12) + 0.01 * (-1.0) ** replicate * (flops > 1e12)

    primary = {"what": "change_ability", "n_tasks": 64, "from_flops": 1e11, "hi": hi}
    study = synthetic.made_up(**AXES, primary=primary)
    found = findings.find(study, *synthetic.tables(study, loses, noise=0.0)).primary
    assert found is not None and found.verdict == verdict
    assert found.low is not None and found.high is not None and -0.22 < found.low < -0.2 < found.high < -0.18


# --- what is measured, and what is not -------------------------------------------------------------------------------


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
kinds = pytest.mark.parametrize("primary", EVERY_KIND, ids=lambda primary: primary["what"])
TWO_ARMS: dict[str, Any] = AXES | {"arm": ("answer", "next_token"), "skills": ("recall",)}


@kinds
def test_what_was_never_recorded_is_not_measured(primary: dict[str, Any]) -> None:
    study = synthetic.made_up(**TWO_ARMS, primary=primary)
    results, runs = synthetic.tables(study)
    found = examined(study, (results.slice(0, 0), runs.slice(0, 0)))
    assert found.verdict == "not measured" and found.low is found.high is None
    assert sentences(study, found).endswith("not measured (nothing was recorded that defines it).")


@kinds
def test_one_replicate_decides_no_primary_claim(primary: dict[str, Any]) -> None:
    found = judged(primary, TWO_ARMS | {"replicates": 1})
    assert found.verdict == "inconclusive" and found.low is found.high is None
    assert "are the least that could" in found.wanting or primary["what"] == "emergence"


@kinds
def test_a_study_that_shows_nothing_at_all_was_measured_all_the_same(primary: dict[str, Any]) -> None:
    found = judged(primary, TWO_ARMS, ability=nothing, memory=nothing)
    assert found.verdict != "not measured" and "nan" not in found.measured + found.wanting


def test_a_boundary_that_is_not_there_has_no_drift_to_measure() -> None:
    found = judged({"what": "drift_ability", "hi": 0}, ability=nothing)
    assert (found.verdict, found.measured) == ("inconclusive", "K_A is not seen at two budgets")


def test_a_mean_waits_for_no_replicate_and_forgets_none_that_diverged() -> None:
    primary = {"what": "ability", "n_tasks": 1024, "lo": 0.9}
    study = synthetic.made_up(**AXES, primary=primary)
    results, runs = synthetic.tables(study)
    missing = [
        n == 1024 and r < 2 for n, r in zip(*(results[k].to_pylist() for k in ("n_tasks", "replicate")), strict=True)
    ]
    results = results.filter(pa.array(np.logical_not(missing)))
    for status, verdict in (("open", "consistent"), ("diverged", "inconclusive")):
        rows = runs.to_pylist()
        for row in rows:
            row["status"] = status if row["n_tasks"] == 1024 and row["replicate"] < 2 else row["status"]
        found = examined(study, (results, pa.Table.from_pylist(rows, schema=RUNS)))
        assert found.verdict == verdict
    assert found.measured == "only 3 of 5 replicates have a value"


def test_a_break_that_too_few_scales_could_show_is_open_and_says_what_it_lacks() -> None:
    found = judged({"what": "emergence", "compute_flops": 1e11, "verdict": "break"})
    assert found.verdict == "inconclusive"
    assert found.measured.startswith("found: undecided: 5 scales, and a break needs 8")


# --- crossovers ------------------------------------------------------------------------------------------------------

AHEAD, LEVEL, BEHIND = [0.3] * 5, [0.0] * 5, [-0.3] * 5


def overtaking(gain: list[float], claim: dict[str, Any], replicates: int = 5) -> PrimaryFinding:
    """next_token less answer at five budgets, 1e11 to 1.6e12, at 64 tasks; replicates differ by some 0.01."""
    budgets = (1e11, 2e11, 4e11, 8e11, 1.6e12)
    primary = {"what": "crossover", "against": "next_token", "n_tasks": 64} | claim
    axes = {"arm": ("answer", "next_token"), "n_tasks": (64,), "compute_flops": budgets, "replicates": replicates}
    study = synthetic.made_up(**axes, primary=primary)
    results, runs = synthetic.tables(study)
    second = np.array(results["arm"].to_pylist()) == "next_token"
    at = np.interp(np.log(results["flops"].to_numpy()), np.log(budgets), gain)
    ability = np.where(second, 0.4 + at, 0.4) + 0.01 * stream("test", "crossover").standard_normal(len(at))
    nll = (synthetic.UNIFORM - ability * (synthetic.UNIFORM - synthetic.RULE)) * synthetic.N_ITEMS
    return examined(study, (results.set_column(results.column_names.index("nll_nats"), "nll_nats", [nll]), runs))


@pytest.mark.parametrize(
    ("gain", "claim", "verdict", "said"),
    [
        ([-0.3, -0.2, 0.2, 0.3, 0.3], {"lo": 1e11, "hi": 8e11}, "consistent", "measured: 95 % interval "),
        ([-0.3, -0.2, 0.2, 0.3, 0.3], {"lo": 8e11}, "inconsistent", "measured: 95 % interval "),
        ([-0.3, -0.2, 0.2, 0.3, 0.3], {"lo": 3e11, "hi": 1e12}, "inconclusive", "measured: 95 % interval "),
        (LEVEL, {"hi": 4e11}, "inconclusive", "the arms are not told apart at any budget"),
        (LEVEL, {"lo": 4e11}, "inconclusive", "the arms are not told apart at any budget"),
        (AHEAD, {"hi": 4e11}, "inconclusive", "next_token is ahead at 1e11 FLOPs and was not seen to overtake"),
        (AHEAD, {"lo": 2e11, "hi": 8e11}, "inconsistent", "next_token is ahead at 1e11 FLOPs and was not seen to overtake"),
        (BEHIND, {"lo": 4e11}, "consistent", "answer is ahead up to 1.6e12 FLOPs, and next_token was not seen to overtake"),
        (BEHIND, {"lo": 2e11, "hi": 8e11}, "inconsistent", "answer is ahead up to 1.6e12 FLOPs, and"),
        ([-0.3, -0.3, 0, 0, 0], {"lo": 2e11}, "consistent", "answer is ahead up to 2e11 FLOPs, and"),
        ([-0.3, -0.3, 0, 0, 0], {"lo": 2e11, "hi": 8e11}, "inconclusive", "answer is ahead up to 2e11 FLOPs, and"),
        ([0.3, 0.2, 0, -0.2, -0.3], {"hi": 8e11}, "inconclusive", "answer is ahead only at more compute than next_token"),
    ],
)  # fmt: skip
def test_an_overtaking_is_consistent_only_where_it_was_seen(
    gain: list[float], claim: dict[str, Any], verdict: str, said: str
) -> None:
    found = overtaking(gain, claim)
    assert (found.verdict, found.measured[: len(said)]) == (verdict, said)


def test_two_replicates_of_two_arms_lack_a_third() -> None:
    found = overtaking(BEHIND, {"lo": 4e11}, replicates=2)
    assert (found.verdict, found.measured) == ("inconclusive", "2 replicates cannot tell the arms apart")
    assert found.wanting.startswith("3 replicates are the least")


def test_no_crossing_is_taken_for_one_whatever_the_bounds() -> None:
    claim = synthetic.made_up(primary={"what": "crossover", "hi": 4e11}, **TWO_ARMS).primary
    assert claim is not None
    for verdict in ("a ahead throughout", "b ahead throughout", "no difference shown", "undecided"):
        met = Crossover(None, 1e11, (), verdict, None, (), (1e11,))  # type: ignore[arg-type]
        assert primary._of_crossover(claim, met) != "consistent"


# --- claims of earlier versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        {"what": "memory", "n_tasks": 4, "lo": 0.9},
        {"what": "emergence", "compute_flops": 1e11, "verdict": "metric artefact"},
    ],
    ids=str,
)
def test_a_claim_that_no_new_study_may_make_is_still_read_and_examined(claim: dict[str, Any]) -> None:
    study = synthetic.made_up(**(AXES | {"n_tasks": tuple(2**k for k in range(2, 12)), "primary": claim}))
    again = Study.from_record(study.model_dump(mode="json"))
    assert again == study
    found = examined(again, synthetic.tables(again))
    assert found.verdict == ("consistent" if claim["what"] == "memory" else "inconclusive")


# --- what it takes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary", "confirm", "refute"),
    [
        # Below the first level, or beyond the last, brackets are open: from 5 on agreeing is proof enough (0.5^5 < 0.05).
        ({"what": "k_ability", "hi": 4}, 5, 2),
        ({"what": "k_ability", "lo": 1024}, 5, 2),
        ({"what": "emergence", "compute_flops": 1e11, "verdict": "break"}, 4, 2),
        ({"what": "emergence", "compute_flops": 1e11, "verdict": "smooth"}, 2, 4),
        ({"what": "crossover", "against": "next_token", "n_tasks": 64, "lo": 4e11}, 3, 3),
        ({"what": "ability", "n_tasks": 4, "lo": 0.5}, 2, 2),
    ],
)
def test_the_least_replicates_are_those_of_the_estimators(primary: dict[str, Any], confirm: int, refute: int) -> None:
    study = synthetic.made_up(**TWO_ARMS, primary=primary)
    assert study.primary is not None and least(study, study.primary) == (confirm, refute)


@pytest.mark.parametrize(
    ("primary", "centre"),
    [
        ({"what": "k_ability", "compute_flops": 1e11, "lo": 16, "hi": 64}, 30),
        ({"what": "k_ability", "compute_flops": 1e11, "hi": 4}, 1),
        ({"what": "k_ability", "compute_flops": 1e11, "lo": 256}, 1e5),
        ({"what": "compute_to_skill", "n_tasks": 64, "hi": 4e11}, 40),
    ],
    ids=str,
)
def test_the_least_that_could_confirm_do_where_they_agree_and_one_fewer_do_not(
    primary: dict[str, Any], centre: float
) -> None:
    study = synthetic.made_up(**AXES, primary=primary)
    assert study.primary is not None
    n = least(study, study.primary).confirm
    assert n is not None
    truth = synthetic.rising(centre, spread=0)
    for replicates, verdict in ((n, "consistent"), (n - 1, "inconclusive")):
        found = judged(primary, {"replicates": replicates}, ability=truth, noise=0)
        assert found.verdict == verdict, replicates


def test_the_plan_says_the_claim_what_settles_it_and_when_there_are_too_few_replicates() -> None:
    rows = dict(planned(load("quickstart")))
    assert rows["claim"].startswith(
        "the number of tasks from which on recall appears at 6.4e11 FLOPs is 16 to 256; consistent"
    )
    assert rows["settled by"].endswith("This study has 3") and "by lottery" in rows["warning"]
    for replicates, warning in (
        (5, None),
        (4, "4 replicates cannot confirm the claim, however well they agree"),
        (1, "one replicate cannot settle the claim"),
    ):
        study = synthetic.made_up(**(AXES | {"replicates": replicates, "primary": {"what": "k_ability", "hi": 4}}))
        rows = dict(planned(study))
        assert rows["settled by"].startswith("5 replicates are the least that could confirm it, 2 that could refute it")
        assert (rows.get("warning") or "").startswith(warning or "") and (warning is None) == ("warning" not in rows)
    mean = {"what": "ability", "n_tasks": 64, "lo": 0.5}
    for replicates, doubt in ((3, "should the skill come by lottery there, 3 replicates"), (6, None)):
        rows = dict(planned(synthetic.made_up(**(AXES | {"replicates": replicates, "primary": mean}))))
        assert (rows.get("warning") or "").startswith(doubt or "") and (doubt is None) == ("warning" not in rows)
    assert planned(synthetic.made_up()) == []


def test_an_end_beyond_the_levels_is_told_as_open() -> None:
    primary = {"what": "k_ability", "compute_flops": 1e11, "lo": 256, "hi": 1024}

    def last(n_tasks: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.where(n_tasks >= 1024, 0.9, 0.1)

    found = judged(primary, {"replicates": 3}, ability=last, noise=0)
    assert found.verdict == "inconclusive" and found.high is None and "more than" in found.measured


def test_the_least_replicates_are_told_where_the_study_has_fewer() -> None:
    few = judged({"what": "k_ability", "compute_flops": 1e11, "hi": 4}, {"replicates": 1})
    assert few.wanting == "5 replicates are the least that could confirm it, 2 that could refute it"


def test_the_command_shows_the_claim_in_the_plan_and_only_its_warning_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.console import tables
    from orchestrator.plan import price
    from orchestrator.record import journal

    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    study = load("control_null")
    todo = price.make(study, journal.State(), slots=2, device="cpu")
    for brief in (False, True):
        tables.show_plan(todo, tmp_path, brief=brief)
        shown = " ".join(capsys.readouterr().out.split())
        assert ("the ability of recall at 1e12 tasks" in shown) == (not brief)
        assert "3 replicates can agree by chance" in shown
