"""What a person sees: the counts add up, the surface fills in, logs stay readable."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator import plan
from orchestrator.journal import State
from orchestrator.progress import Progress, clock
from orchestrator.study import Study, load
from trainers import budget


@pytest.fixture
def study() -> Study:
    return load("quickstart")


def watch(study: Study) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    made = plan.make(study, State(), 2, "cpu")
    return Progress(study, State(), made, Console(file=out, width=120)), out


def events_of(study: Study, trunk: Any, accuracy: float, status: str = "done") -> list[dict[str, Any]]:
    """A trunk as the trainer would tell it, cheaply: a final look and an end per budget."""
    found = []
    cost = budget.marginal_flops(trunk, study.budgets)
    for flops in study.budgets:
        row = {"skill": "recall", "split": "held_out", "n": 100, "n_correct": round(100 * accuracy)}
        shared = {"trunk": trunk.id, "time": 0.0, "flops_run": cost[flops]}
        look = {"kind": "evaluation", "key": f"{trunk.id}/{flops}", "on": repr(flops), "rows": [row]}
        end = {"kind": "trial", "key": f"{trunk.id}/end/{flops}", "trial": trunk.trial(flops).id, "status": status}
        found += [shared | look, shared | end]
    return found


def test_when_every_trial_has_ended_all_of_the_flops_are_done(study: Study) -> None:
    progress, out = watch(study)
    for trunk in study.trunks():
        progress.take(events_of(study, trunk, 0.5))
    assert progress.flops == progress.plan.train_flops
    assert "72 of 72 trials · 100% of 1.35e13 FLOPs" in out.getvalue().splitlines()[-1]


def test_an_event_told_twice_counts_once(study: Study) -> None:
    progress, _ = watch(study)
    events = events_of(study, study.trunks()[0], 0.5)
    progress.take(events)
    once = progress.flops
    progress.take(events)
    assert progress.flops == once and progress.status["done"] == 4


def test_a_trial_that_a_checkpoint_made_cheaper_still_counts_in_full(study: Study) -> None:
    progress, _ = watch(study)
    events = [e | {"flops_run": 1.0} for trunk in study.trunks() for e in events_of(study, trunk, 0.5)]
    progress.take(events)
    assert progress.flops == progress.plan.train_flops


def test_the_surface_shows_the_mean_of_the_replicates_that_have_ended(study: Study) -> None:
    progress, _ = watch(study)
    trunks = [t for t in study.trunks() if t.n_tasks == 64]
    for trunk, accuracy in zip(trunks, (0.2, 0.4, 0.9), strict=True):
        progress.take(events_of(study, trunk, accuracy))
    screen = Console(file=io.StringIO(), width=120)
    screen.print(progress.surface.render())
    line = next(x for x in screen.file.getvalue().splitlines() if x.strip().startswith("64"))  # type: ignore[attr-defined]
    assert line.split() == ["64"] + ["0.50"] * 4


def test_a_failure_is_told_at_once_with_its_reason(study: Study) -> None:
    progress, out = watch(study)
    event = events_of(study, study.trunks()[0], 0.5)[1] | {"status": "failed", "reason": "disk full"}
    progress.take([event])
    assert "1 failed" in out.getvalue() and "disk full" in out.getvalue()


def test_a_log_of_many_trials_has_few_lines(study: Study) -> None:
    progress, out = watch(study)
    for trunk in study.trunks():
        progress.take(events_of(study, trunk, 0.5))
    assert len(out.getvalue().splitlines()) <= 3  # the first and the last of 72 that came at once


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (200, "3:20 min"), (7500, "2:05 h"), (4 * 86400, "4.0 days")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert clock(seconds) == said
