"""Telemetry in the journal: each point once, whatever was killed and emitted again."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from steps import Counter
from test_record import SMALL

from orchestrator.record import recorded, tables
from orchestrator.record.journal import Journal, State
from orchestrator.record.provenance import session_event
from orchestrator.record.recorded import trial_telemetry
from orchestrator.study.schema import Study
from trainers import budget, telemetry
from trainers.fit.place import Place
from trainers.train import run_trunk

Events = list[dict[str, Any]]
STUDY = Study.from_record(SMALL)
TRUNK = STUDY.trunks()[0]


class Killed(BaseException):
    """Nothing may catch it."""


def journaled(folder: Path, stops: list[int], kill_at: int | None) -> State:
    """The journal of a trunk that was stopped after so many steps each, and killed at three events."""
    log = Journal(folder)
    log.append([session_event(STUDY, {})])
    place = Place(checkpoint_folder=str(folder / "checkpoints"), checkpoint_every_seconds=0.0)
    left = [kill_at * k for k in (1, 2, 3)] if kill_at else []
    known: set[str] = set()

    def emit(events: Events) -> None:
        log.append(events)
        known.update(event["key"] for event in events)
        if left and len(known) >= left[0]:
            left.pop(0)
            raise Killed

    for stop in [*stops, None]:
        while True:
            with suppress(Killed):
                run_trunk(TRUNK, STUDY.budgets, place, emit, Counter(stop))
                break
    log.close()
    return State.of(folder)


def points(state: State, flops: float) -> list[tuple[Any, ...]]:
    """(on, step, loss, learning rate, gradient norm) of a trial's points, in order."""
    return [
        (event["on"], *numbers)
        for event in trial_telemetry(state, TRUNK.trial(flops))
        for numbers in zip(*(event[k] for k in ("steps", "loss_nats", "learning_rate", "grad_norm")), strict=True)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> State:
    return journaled(tmp_path_factory.mktemp("whole"), [], None)


@pytest.mark.parametrize("pending_seconds", [0.0, 0.02, math.inf])
@pytest.mark.parametrize(("stops", "kill_at"), [([17, 30, 1], None), ([], 6), ([40], 3)])
def test_a_killed_and_resumed_trunk_has_each_point_once(
    whole: State, stops: list[int], kill_at: int | None, pending_seconds: float, monkeypatch: Any, tmp_path: Path
) -> None:
    """The runs share out the points over their events in different ways."""
    monkeypatch.setattr(telemetry, "PENDING_SECONDS", pending_seconds)
    state = journaled(tmp_path, stops, kill_at)
    for flops in STUDY.budgets:
        branch, end = budget.steps_of(TRUNK, flops)
        expected = [("trunk", s) for s in range(1, branch + 1) if telemetry.on_grid(s)]
        expected += [(repr(flops), s) for s in range(branch + 1, end + 1) if telemetry.on_grid(s)]
        assert [point[:2] for point in points(state, flops)] == expected
        assert points(state, flops) == points(whole, flops)
    assert tables.results_table(state, STUDY).equals(tables.results_table(whole, STUDY))


def test_telemetry_of_other_settings_does_not_count(whole: State) -> None:
    record = json.loads(json.dumps(SMALL))
    record["training"]["learning_rate"] = 0.001
    changed = Study.from_record(record)
    assert recorded.of_study(whole, STUDY).telemetry == whole.telemetry
    assert len(whole.telemetry[TRUNK.id]) > 3
    assert recorded.of_study(whole, changed).telemetry == {}


def test_a_journal_without_telemetry_is_read_as_before(whole: State, tmp_path: Path) -> None:
    state = State()
    state.feed([whole.sessions[0], *whole.evaluations[TRUNK.id], *whole.ends])
    found = recorded.of_study(state, STUDY)
    assert found.telemetry == {} and not found.short and len(found.trials) == len(STUDY.trials())
    assert points(found, STUDY.budgets[0]) == []
    assert tables.results_table(found, STUDY).equals(tables.results_table(recorded.of_study(whole, STUDY), STUDY))
