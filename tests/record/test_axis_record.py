"""A study with an axis of a family parameter, really trained: its ids, tables, findings and page. Three trunks of sixty steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator import open_study
from orchestrator.record import publisher
from orchestrator.record.journal import Journal
from orchestrator.record.provenance import session_event
from orchestrator.study.reader import load
from trainers.fit.place import Place
from trainers.train import run_trunk

STUDY = """study: taste
version: 1
question: From which share on are greedy answers long?
family: {name: worked_parity, n_positions: 5}
axes: {arm: [next_token], family: {share: [0, 0.25, 1]}, n_tasks: [16], compute_steps: [60], replicates: 1}
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 16}
training: {batch_size: 4, learning_rate: 1e-2}
evaluation: {n_sequences: 8, first_flops: 1e12, points_per_decade: 1}
primary: {what: along_long_answers, n_tasks: 16, lo: 0.25, hi: 1}
"""


def test_an_axis_is_in_ids_tables_findings_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    (tmp_path / "taste.yaml").write_text(STUDY)
    study = load(str(tmp_path / "taste.yaml"))
    events: list[dict[str, Any]] = [session_event(study, {})]
    for trunk in study.trunks():
        run_trunk(trunk, study.budgets, Place(), events.extend)
    folder = tmp_path / study.id
    log = Journal(folder)
    log.append(events)
    log.close()
    publisher.rewrite(folder)
    results, runs = (pd.read_parquet(folder / f"{name}.parquet") for name in ("results", "runs"))
    for table in (results, runs):
        at = {trial: float(trial.rpartition("share=")[2]) for trial in table["trial"]}
        assert set(at.values()) == {0, 0.25, 1} and (table["trial"].map(at) == table["family_share"]).all()
    assert (results["n_long"] <= results["n_sequences"]).all() and (
        results["n_written"] <= 6 * results["n_sequences"]
    ).all()
    opened = open_study(str(tmp_path / "taste.yaml"))
    ends = opened.results[opened.results["phase"] == "final"]
    assert set(ends["family_share"]) == {0, 0.25, 1} and ends["answer_tokens"].between(0, 6).all()
    long = ends[ends["split"] == "held_out"].groupby("family_share")["long_answers"].mean()
    findings = opened.findings[opened.findings["question"] == "along share: long_answers"]
    assert long[0] < 0.5 <= long[1] and len(findings) == 1 and findings["verdict"].iloc[0] == "crossed"
    assert opened.primary["verdict"] == "inconclusive"  # one replicate
    page = (folder / "report.html").read_text()
    assert "Long answers" in page and "share" in page
