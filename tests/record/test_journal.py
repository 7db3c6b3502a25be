"""The journal: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.record import journal
from orchestrator.record.journal import Journal, State


def event(key: str, kind: str = "evaluation", **facts: object) -> dict:
    return {"kind": kind, "key": key, "trunk": "t", "time": 1.0, **facts}


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    log = Journal(tmp_path)
    log.append([event("a"), event("b")])
    log.append([event("c", "trial", trial="x", status="done")])
    log.close()
    events, position = journal.read(tmp_path)
    assert [e["key"] for e in events] == ["a", "b", "c"]
    assert position == (tmp_path / "journal.jsonl").stat().st_size
    assert journal.read(tmp_path, position) == ([], position)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path: Path, cut: int) -> None:
    log = Journal(tmp_path)
    log.append([event("a"), event("b")])
    log.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [e["key"] for e in journal.read(tmp_path)[0]] == ["a"]
    log = Journal(tmp_path)
    log.append([event("b"), event("c")])
    log.close()
    assert list(dict.fromkeys(e["key"] for e in journal.read(tmp_path)[0])) == ["a", "b", "c"]


def test_a_half_written_line_is_left_for_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    log = Journal(tmp_path)
    log.append([event("a")])
    whole = path.read_bytes()
    log.append([event("b")])
    log.close()
    both = path.read_bytes()
    path.write_bytes(both[: len(whole) + 20])
    events, position = journal.read(tmp_path)
    assert len(events) == 1 and position == len(whole)
    path.write_bytes(both)
    assert [e["key"] for e in journal.read(tmp_path, position)[0]] == ["b"]


def test_an_event_emitted_again_changes_nothing() -> None:
    once, twice = State(), State()
    events = [event("a", step=1), event("end", "trial", trial="x", status="done")]
    once.feed(events)
    twice.feed(events)
    twice.feed([event("a", step=2), *events])
    assert once.evaluations == twice.evaluations and once.trials == twice.trials


def test_a_failure_is_made_good_by_a_later_result_and_never_the_reverse() -> None:
    state = State()
    failed = event("f", "trial", trial="x", status="failed", reason="out of memory")
    done = event("d", "trial", trial="x", status="done")
    state.feed([failed, done, failed | {"key": "f2"}])
    assert state.trials["x"]["status"] == "done"


def test_infinity_and_nan_never_enter_a_journal(tmp_path: Path) -> None:
    log = Journal(tmp_path)
    with pytest.raises(ValueError):
        log.append([event("a", loss=float("nan"))])
    log.append([event("b")])
    log.close()
    assert [e["key"] for e in journal.read(tmp_path)[0]] == ["b"]
