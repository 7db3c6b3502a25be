"""What a study claims: the primary claim against planted truths, the rest corrected, nulls in which nothing may be claimed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import synthetic

from orchestrator import analyses, claims, findings
from orchestrator.findings import Findings
from orchestrator.record import RUNS
from trainers.streams import stream

AXES: dict[str, Any] = {"n_tasks": (4, 16, 64, 256, 1024), "compute_flops": (1e11, 4e11, 1.6e12), "replicates": 5}


def found_of(primary: dict[str, Any] | None = None, **tables: Any) -> Findings:
    """K_A at 64 tasks at 1e11 FLOPs, falling as the root of compute; K_M at 16 and rising so (synthetic.py)."""
    study = synthetic.made_up(**AXES, **({"primary": primary} if primary else {}))
    return findings.find(study, *synthetic.tables(study, **tables))


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
    found = found_of(primary)
    assert found.primary is not None and found.primary.verdict == verdict
    assert (
        f": {verdict} (measured: 95 % interval " in findings.primary_sentence(found)
        and findings.primary_sentence(found) in found.answer
    )


def test_a_verdict_can_be_the_primary_claim() -> None:
    found = found_of({"what": "emergence", "compute_flops": 1e11, "verdict": "break"})
    assert found.primary is not None and found.primary.verdict == "inconclusive"  # five scales, eight needed
    assert "undecided" in findings.primary_sentence(found)


def test_a_crossover_can_be_the_primary_claim() -> None:
    study = synthetic.made_up(
        arm=("answer", "next_token"),
        n_tasks=(64,),
        compute_flops=(1e11, 2e11, 4e11, 8e11, 1.6e12),
        replicates=5,
        primary={
            "what": "crossover",
            "arm": "answer",
            "against": "next_token",
            "n_tasks": 64,
            "lo": 1.5e11,
            "hi": 1e12,
        },
    )
    results, runs = synthetic.tables(study)
    arm = np.array(results["arm"].to_pylist())
    flops = results["flops"].to_numpy()
    ability = np.where(arm == "answer", 0.4, 0.4 + 0.25 * np.log2(flops / 4e11))  # the second overtakes at 4e11
    ability = ability + 0.01 * stream("test", "crossover").standard_normal(len(ability))
    nll = (synthetic.UNIFORM - ability * (synthetic.UNIFORM - synthetic.RULE)) * synthetic.N_ITEMS
    results = results.set_column(results.column_names.index("nll_nats"), "nll_nats", [nll])
    found = findings.find(study, results, runs)
    assert found.primary is not None and found.primary.verdict == "consistent"
    assert [o.result.verdict for o in found.crossovers] == ["crosses"]
    assert "With 64 tasks next_token overtakes answer at " in found.answer


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


def test_on_a_null_no_skill_is_claimed() -> None:
    claimed = 0
    study = synthetic.made_up(**(AXES | {"replicates": 3}))
    for k in range(20):
        draws = stream("test", "null", k)

        def nothing(n: np.ndarray, c: np.ndarray, r: np.ndarray, draws: np.random.Generator = draws) -> np.ndarray:
            return 0.15 * draws.standard_normal(len(n))

        found = findings.find(study, *synthetic.tables(study, nothing, nothing, noise=0))
        false = [
            c
            for c in found.claims
            if c.verdict == "kept" and ("appears" in c.says or "breaks" in c.says or "drifts" in c.says)
        ]
        claimed += bool(false)
    assert claimed <= 1


def test_a_boundary_that_is_not_there_has_no_drift_to_measure() -> None:
    found = found_of({"what": "drift_ability", "hi": 0}, ability=lambda n, c, r: np.zeros(len(n)))
    assert found.primary is not None and found.primary.verdict == "not measured"


@pytest.mark.parametrize("what", [{"what": "k_ability", "lo": 1}, {"what": "compute_to_skill", "n_tasks": 64, "lo": 1}])
def test_one_replicate_decides_no_primary_claim(what: dict[str, Any]) -> None:
    study = synthetic.made_up(**(AXES | {"replicates": 1, "primary": what}))
    primary = findings.find(study, *synthetic.tables(study)).primary
    assert primary is not None and primary.verdict == "inconclusive" and primary.low is primary.high is None


def test_three_replicates_that_agree_are_kept_for_nothing_as_they_agree_by_chance_in_one_of_four() -> None:
    study = synthetic.made_up(**(AXES | {"replicates": 3}))
    found = findings.find(study, *synthetic.tables(study))
    assert not any(c.verdict == "kept" for c in found.claims if c.name.startswith(("k_", "to_")))
    assert "not kept after correction" in found.answer


def test_a_crossover_has_one_name_in_either_direction() -> None:
    assert analyses.claim_of_arms("a", "b", "recall", 4) == analyses.claim_of_arms("b", "a", "recall", 4)


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
    assert words in claims.range_words(low, high)
