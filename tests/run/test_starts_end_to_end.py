"""Trials that begin with others, for real: the command line, Ray Tune on one slot, a donor that diverges, and a clean-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from alone import go_on, rows_of, study_with
from steps import Counter
from test_end_to_end import Home

from orchestrator.plan.jobs import jobs_of
from orchestrator.record.journal import State, read
from orchestrator.study.reader import load

pytestmark = pytest.mark.end_to_end

CHAIN = """
study: tiny
version: 1
question: What does a start give?
family: {name: cipher, n_symbols: 6, n_pairs: 6}
axes:
  arm: [answer, next_token]
  variant:
    scratch: {arms: [answer]}
    begun: {arms: [next_token], start_from: {arm: answer, compute_flops: 1e7, variant: scratch}}
    again: {arms: [answer], start_from: {arm: next_token, compute_flops: 2e7, variant: begun}}
  n_tasks: [4]
  compute_flops: [1e7, 2e7, 4e7]
  replicates: 1
model: {n_layers: 1, d_model: 8, n_heads: 1, d_mlp: 8}
training: {batch_size: 4, warmup_steps: 10}
evaluation: {points_per_decade: 4, first_flops: 2e6, n_sequences: 4}
"""
LOST = """
    hot: {arms: [answer], training: {weight_decay: 1000, learning_rate: 10}}
    burnt: {arms: [next_token], start_from: {arm: answer, compute_flops: 1e7, variant: hot}}
    ash: {arms: [answer], start_from: {arm: next_token, compute_flops: 2e7, variant: burnt}}
  n_tasks:"""


def test_dependents_run_after_their_donors_on_one_slot_and_those_of_a_lost_one_fail_for_good(tmp_path: Path) -> None:
    home, alone = Home(tmp_path / "home"), tmp_path / "alone"
    home.command = ("run", str(home.file), "--slots", "1")
    home.file.write_text(CHAIN)
    study = load(str(home.file))
    go_on(study, alone)
    go_on(study, home.study, Counter(100))  # stopped before the first donor has ended its trunk
    home.file.write_text(CHAIN.replace("\n  n_tasks:", LOST))

    code, out = home.run()
    assert code == 0 and "Traceback" not in out, out
    runs = {run["trial"]: run for run in pq.read_table(home.study / "runs.parquet").to_pylist()}
    statuses = {run["variant"]: run["status"] for run in runs.values()}
    assert statuses == dict.fromkeys(("scratch", "begun", "again"), "done") | {
        "hot": "diverged", "burnt": "failed", "ash": "failed"}  # fmt: skip
    assert "answer/n4/c1e7/r0/hot, which diverged: step" in runs["next_token/n4/c2e7/r0/burnt"]["reason"]
    assert "next_token/n4/c2e7/r0/burnt, which failed: it begins" in runs["answer/n4/c4e7/r0/ash"]["reason"]
    rows = pq.read_table(home.study / "results.parquet").to_pylist()
    assert [row for row in rows if row["variant"] != "hot"] == rows_of(study, alone)
    events = read(home.study)[0]
    at = {event["trial"]: i for i, event in enumerate(events) if event["kind"] == "trial"}
    for trunk in (trunk for trunk in study.trunks() if trunk.start):
        first = next(i for i, e in enumerate(events) if e["kind"] == "evaluation" and e["trunk"] == trunk.id)
        assert at[trunk.start.trial] < first and events[first]["flops"] == trunk.start.flops  # type: ignore[union-attr]
    tags = {run.data.tags["emergence.key"]: run.data.tags.get("emergence.start") for run in home.stored_runs()}
    assert (
        tags["answer/n4/c4e7/r0/again"] == "next_token/n4/c2e7/r0/begun" and tags["answer/n4/c1e7/r0/scratch"] is None
    )

    before = (home.study / "journal.jsonl").read_bytes()
    code, out = home.run()
    assert code == 0 and "nothing to run" in out and (home.study / "journal.jsonl").read_bytes() == before
    assert len(list((home.study / "starts").rglob("*.safetensors"))) == 2
    code, out = home.emergence("clean", str(home.file))
    assert code == 0 and not list((home.study / "starts").rglob("*.safetensors")), out

    more = (
        "\n    more: {arms: [next_token], start_from: {arm: answer, compute_flops: 2e7, variant: scratch}}\n  n_tasks:"
    )
    home.file.write_text(home.file.read_text().replace("\n  n_tasks:", more))
    code, out = home.run()
    assert code == 2 and "Starting Ray" not in out and "Traceback" not in out
    assert "answer/n4/c2e7/r0/scratch" in out.splitlines()[-1] and "missing; put" in out.splitlines()[-1], out
    assert (home.study / "journal.jsonl").read_bytes() == before


def test_how_a_donor_ended_is_known_from_the_journal_unless_it_is_tried_again_and_from_this_run() -> None:
    from orchestrator.run.driver import _Donors

    def ended(trial: str, status: str, reason: str | None = None) -> dict[str, Any]:
        return {
            "kind": "trial",
            "key": f"{trial}/{status}",
            "trial": trial,
            "status": status,
            "reason": reason,
            "time": 0.0,
        }

    study, state = study_with(), State()
    first, second, third, fourth = (trial.id for trial in study.trials())
    state.feed([ended(first, "failed"), ended(third, "diverged", "step 3"), ended(fourth, "failed", "its own donor")])
    donors = _Donors(state, [job for job in jobs_of(study, State()) if job.trunk.variant == "plain"])
    assert [donors.status(trial) for trial in (first, second, third, fourth)] == [None, None, "diverged", "failed"]
    assert donors.why_lost(third).endswith(f"{third}, which diverged: step 3")
    assert donors.why_lost(fourth).endswith(f"{fourth}, which failed: its own donor")
    donors.take([ended(first, "done"), {"kind": "evaluation"}])
    donors.reasons["answer/n4/r0/plain"] = "no room"
    assert [donors.status(trial) for trial in (first, second)] == ["done", "failed"]  # it ended before its trunk failed
    assert donors.why_lost(second).endswith(f"{second}, which failed: no room")
