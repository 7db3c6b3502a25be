"""Caps: what all runs of a study have used, and when that is enough."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_plan import ended
from test_record import SMALL
from typer.testing import CliRunner

from orchestrator import cli
from orchestrator.console.checks import UsageProblem
from orchestrator.plan import caps
from orchestrator.plan.options import Options
from orchestrator.record.journal import State
from orchestrator.study.reader import load
from orchestrator.study.schema import Study
from trainers.fit.place import Place
from trainers.train import run_trunk


def test_a_meter_counts_what_a_trunk_ran_once_and_the_part_after_its_last_trial() -> None:
    study, state = Study.from_record(SMALL), State()
    trunk = study.trunks()[0]
    run_trunk(trunk, study.budgets, Place(), state.feed)
    evaluations, ends = state.evaluations[trunk.id], list(state.trials.values())
    meter = caps.Meter(State())
    events = sorted([*evaluations, *ends], key=lambda event: event["time"])
    at = 0.0
    for event in events:
        meter.take([event, event])
        assert meter.flops >= at  # it never falls: the end of a trial takes the place of its evaluations
        at = meter.flops
    assert at == sum(event["flops_run"] for event in ends)
    assert caps.Meter(state).flops == at
    meter.take(reversed(events))  # a resume from a checkpoint that is older than the journal
    assert meter.flops == at


def test_live_values_count_until_the_trial_ends_and_not_those_that_come_late() -> None:
    meter = caps.Meter(State())
    meter.watch({"t": {"time": 1.0, "flops_run": 50.0}})
    assert meter.flops == 50
    meter.take([{"kind": "evaluation", "key": "e", "trunk": "t", "time": 0.9, "flops_run": 40.0}])
    assert meter.flops == 50
    meter.take([{"kind": "trial", "key": "end", "trunk": "t", "trial": "t/1", "time": 2.0, "flops_run": 60.0}])
    meter.watch({"t": {"time": 1.9, "flops_run": 59.0}})
    assert meter.flops == 60
    meter.watch({"t": {"time": 2.5, "flops_run": 7.0}})
    assert meter.flops == 67


def test_hours_are_those_of_all_runs_and_the_gaps_between_them_do_not_count() -> None:
    study = load("quickstart")
    state = ended(study, [])
    state.sessions = [
        {"session": name, "time": start, "study": {}} for name, start in (("a", 0.0), ("b", 9e5), ("c", 9e6))
    ]
    first, second = study.trials()[:2]
    for trial, session, when in ((first, "a", 3600.0), (second, "b", 9e5 + 1800)):
        facts = {"kind": "trial", "key": trial.id, "trial": trial.id, "trunk": trial.trunk.id, "status": "failed"}
        state.feed([facts | {"session": session, "time": when}])
    assert caps.Meter(state).hours == pytest.approx(1.5, abs=0.01)  # the third run was killed before its first event
    state.feed([{"kind": "session_end", "key": "b", "session": "b", "time": 9e5 + 7200, "running_flops": {"t": 5.0}}])
    assert caps.Meter(state).hours == pytest.approx(3.0, abs=0.01)
    assert caps.Meter(state).flops == 5  # what the checkpoints hold beyond the last evaluation


@pytest.mark.parametrize(
    ("given", "word"),
    [({}, ""), ({"max_flops": 1e30}, ""), ({"max_flops": 1e-9}, "training FLOPs"), ({"max_hours": 1e-12}, "hours")],
)
def test_a_cap_that_is_reached_is_named(given: dict[str, float], word: str) -> None:
    study, state = Study.from_record(SMALL), State()
    run_trunk(study.trunks()[0], study.budgets[:1], Place(), state.feed)
    reached = caps.reached(caps.Meter(state), Options(**given))
    assert word in reached and bool(word) == bool(reached)


def test_a_cap_of_the_study_holds_unless_the_command_gives_one_and_changes_no_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load("quickstart")
    capped = Study.from_record(plain.model_dump(mode="json") | {"stop": {"max_flops": 5e12}})
    assert capped.science() == plain.science() and capped.trunks() == plain.trunks()
    assert cli.checks.with_caps(Options(), capped, None, None).max_flops == 5e12
    assert cli.checks.with_caps(Options(), capped, 8.0, 2.0).max_flops == 2.0
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    shown = CliRunner().invoke(cli.app, ["plan", "quickstart", "--max-hours", "8"])
    assert shown.exit_code == 0 and "8 hours" in shown.output
    for wrong in ("0", "-1", "nan", "inf"):
        with pytest.raises(UsageProblem, match=r"--max-flops .*a number above 0 is needed"):
            cli.checks.with_caps(Options(), plain, None, float(wrong))
