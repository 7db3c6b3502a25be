"""A condition that begins with another has no trials up to its donor's budget: nothing waits for them, and nothing compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import synthetic

from orchestrator.analysis import means, onsets
from orchestrator.analysis.boundaries import counted
from orchestrator.analysis.findings import Findings, find
from orchestrator.report import page

START = {"arm": "answer", "compute_flops": 2e11}


def findings() -> Findings:
    study = synthetic.made_up(
        arm=("answer", "next_token"),
        variant={"scratch": {}, "begun": {"arms": ("next_token",), "start_from": START}},
        compute_flops=(1e11, 2e11, 4e11, 8e11),
        replicates=6,
    )
    truths = {"answer, scratch": synthetic.rising(), "next_token, scratch": synthetic.rising(256.0)}
    return find(study, *synthetic.of_variants(study, truths | {"next_token, begun": synthetic.rising(32.0)}))


def test_every_finding_of_such_a_condition_is_read_where_it_has_trials(tmp_path: Path) -> None:
    found = findings()
    results, begun = found.results, "next_token, begun"
    assert found.study.budgets_of(begun) == [4e11, 8e11] and found.study.budgets_of("answer, scratch", begun) == [
        4e11,
        8e11,
    ]
    assert not counted(results, "ability", begun, "recall")[1].any()
    verdicts = {one.compute_flops: (one.verdict, one.n) for one in found.of("K_A", begun, "recall")}
    assert {flops: verdict for flops, (verdict, _) in verdicts.items()} == {
        1e11: "missing", 2e11: "missing", 4e11: "crossed", 8e11: "crossed"}  # fmt: skip
    assert {n for _, n in verdicts.values()} == {0, 6}
    looks = onsets.looks_of(results, begun, "recall", 64, at_ends=True)
    assert looks is not None and len(looks.flops) == 2 and looks.values.shape == (6, 2)
    flops, values = results.along("ability", begun, "recall", "held_out", 64)
    start = found.study.trunk_of(begun).start
    assert start is not None and start.flops <= flops[0] and np.isfinite(values[:, 0]).all()
    states = [[cell.state for cell in line] for line in means.cells(results, "ability", begun, "recall")]
    assert states == [["no trial", "no trial", "value", "value"]] * 3
    assert {one.verdict for one in found.of("crossover", begun)} <= {"b ahead throughout", "no difference shown"}
    text = page.write(tmp_path, found, []).read_text()
    assert "begins with answer at 2e11 FLOPs" in " ".join(text.split())
    assert "have not ended" not in text
