"""Expected values beside measured ones, from hand-made rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from orchestrator import formatting
from orchestrator.analysis.finding import Finding
from orchestrator.analysis.findings import find
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.study.schema import Study


def row(replicate: int, skill: str = "recall", split: str = "held_out", **sums: Any) -> dict[str, Any]:
    """A row at 64 tasks and 8e11 FLOPs."""
    place = {"arm": "answer", "n_tasks": 64, "compute_flops": 8e11, "replicate": replicate, "phase": "final"}
    references = {
        "sum_nll_uniform": 200.0,
        "sum_nll_generalizer": 100.0,
        "sum_nll_memorizer": 0.0,
        "n": 100,
        "n_correct": 50,
    }
    return place | {"step": 100, "flops": 8e11, "skill": skill, "split": split} | references | sums


def expected(entry: dict[str, Any], rows: list[dict[str, Any]], replicates: int) -> Finding:
    """The finding of a study with one expected value."""
    axes = {"arm": ["answer"], "n_tasks": [4, 64, 1024], "compute_flops": [1e11, 8e11], "replicates": replicates}
    record = {"study": "made_up", "version": 1, "question": "Is it so?", "family": {"name": "cipher"}, "axes": axes}
    entry = {"cell": {"n_tasks": 64}, "source": "made up", "evidence": "C"} | entry
    study = Study.from_record(record | {"expected": [entry]})
    (one,) = find(study, pa.Table.from_pylist(rows, schema=RESULTS), pa.Table.from_pylist([], schema=RUNS)).of(
        "expected "
    )
    return one


def curve_rows(crossing: float, replicate: int) -> list[dict[str, Any]]:
    """d_rel = 1 / (1 + (crossing / step)²) along the trunk of the largest budget."""
    rows = []
    for step in (round(10 ** (k / 8)) for k in range(8, 25)):
        d_rel = 1 / (1 + (crossing / step) ** 2)
        sums = {
            "sum_skl_generalizer": 2 * d_rel - 1,
            "sum_skl_memorizer": 0.0,
            "sum_skl_references": 1.0,
            "sum_nll_nats": 1.0,
        }
        rows.append(row(replicate, "mixture", "seen", **sums) | {"step": step, "phase": "trunk"})
    return rows


@pytest.mark.parametrize(
    ("crossings", "verdict"),
    [
        ((230, 240), "consistent"),
        ((700, 705), "inconsistent"),
        ((100, 390), "inconclusive"),
        ((230, 1e9), "inconclusive"),  # one replicate never crosses
    ],
)
def test_an_expected_crossing_gets_its_verdict(crossings: tuple[float, float], verdict: str) -> None:
    rows = [row for i, at in enumerate(crossings) for row in curve_rows(at, i)]
    one = expected({"what": "crossing_steps", "value": 230, "lo": 100, "hi": 400}, rows, 2)
    assert one.verdict == verdict and one.n == sum(at < 1e6 for at in crossings)
    assert one.significance == "" and not one.counted


@pytest.mark.parametrize(
    ("lo", "spread", "verdict"),
    [(0.8, 0.002, "consistent"), (0.97, 0.002, "inconsistent"), (0.89, 0.2, "inconclusive")],
)
def test_an_expected_mean_gets_its_verdict(lo: float, spread: float, verdict: str) -> None:
    rows = [row(r, sum_nll_nats=200 - 100 * (0.9 + spread * (r - 1) / 2)) for r in range(3)]
    one = expected({"what": "ability", "value": 0.98, "lo": lo, "hi": 0.99}, rows, 3)
    assert (one.verdict, one.n, one.estimate) == (verdict, 3, pytest.approx(0.9))


def test_numbers_and_confidences_are_written_as_people_write_them() -> None:
    """A confidence is never rounded up."""
    numbers = {64: "64", 1024: "1,024", 10**12: "1e12", 999999: "999,999", 7.46: "7.5", 9.999e11: "1e12"}
    assert [formatting.number(value) for value in numbers] == list(numbers.values())
    sure = {0.95: "95 %", 0.992: "99.2 %", 0.99968: "99.96 %", 0.9599: "95.9 %"}
    assert [formatting.sure(value) for value in sure] == list(sure.values())
