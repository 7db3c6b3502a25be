"""What a study says when it was stopped early: the bracket that the first replicate shows, and what has not run."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

from test_recorded import recorded

from orchestrator.analysis import answer, findings
from orchestrator.plan import price
from orchestrator.record import publisher
from orchestrator.record.journal import Journal, State, read
from orchestrator.study.schema import Study


def cut(folder: Path, share: float, slots: int) -> findings.Findings:
    """A recorded study as it would stand after a share of its FLOPs on so many slots, in the order of its plan."""
    (folder / "journal.jsonl").write_bytes(recorded("quickstart_cut")["journal.jsonl"])
    state = State.of(folder)
    study = Study.from_record(state.study or {})
    events: dict[str, list[dict[str, Any]]] = {}
    for event in read(folder)[0]:
        events.setdefault(event.get("trunk", ""), []).append(event)
    timed, free = [], [0.0] * slots
    for job in price.make(study, State(), slots, "cpu").jobs:
        begun, done = heapq.heappop(free), 0.0
        for event in events[job.trunk.id]:
            timed.append((begun + done + event.get("flops_run", 0.0), event))
            done += event["flops_run"] if event["kind"] == "trial" else 0.0
        heapq.heappush(free, begun + done)
    (folder / "journal.jsonl").unlink()
    journal = Journal(folder)
    journal.append(events[""] + [event for at, event in sorted(timed, key=lambda e: e[0]) if at <= share * max(free)])
    journal.close()
    publisher.rewrite(folder)
    return findings.read(folder, study)


def test_a_quarter_of_the_compute_names_the_bracket_that_the_first_replicate_shows(tmp_path: Path) -> None:
    """Fails with trunks in the order of the axes, or with the largest first: then only few tasks have run."""
    brackets = []
    for share in (0.25, 1.0):
        folder = tmp_path / str(share) / "quickstart_cut@1"
        folder.mkdir(parents=True)
        found = cut(folder, share, 2)
        [k] = found.of("K_A", skill=found.study.shown_skills[0], compute_flops=found.study.budgets[-1])
        brackets.append(k.brackets[k.replicates.index(0)])
        if share < 1:
            assert (k.verdict, k.n) == ("crossed", 1)
            said = [answer.sentence(found), *answer.more(found)]
            assert said[0].startswith("So far") and "16 and 64" in said[0] and "replicates 1 and 2" in said[1]
    assert brackets == [(16, 64), (16, 64)]
