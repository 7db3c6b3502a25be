"""What a person sees: the counts add up, the surface fills in, logs stay readable."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from steps import Counter

from orchestrator.console.progress import Progress
from orchestrator.formatting import clock
from orchestrator.plan import jobs, price
from orchestrator.record.journal import State
from orchestrator.study.reader import load
from orchestrator.study.schema import Study
from trainers import budget
from trainers.fit.place import Place
from trainers.train import run_trunk


@pytest.fixture
def study() -> Study:
    return load("quickstart")


def watch(study: Study) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    made = price.make(study, State(), 2, "cpu")
    return Progress(study, State(), made, Console(file=out, width=120)), out


def events_of(study: Study, trunk: Any, ability: float, status: str = "done") -> list[dict[str, Any]]:
    """A trunk as the trainer would tell it, cheaply: a final look and an end per budget."""
    found = []
    cost = budget.marginal_flops(trunk, study.budgets)
    for flops in study.budgets:
        row = {"skill": "recall", "split": "held_out", "n": 1000, "nll_nats": 1000 * (2 - ability)}
        row |= {"nll_uniform": 2000.0, "nll_generalizer": 1000.0, "se_ability_gap": 0.01}
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
    lines = out.getvalue().splitlines()
    assert "72 of 72 trials · 100% of 1.35e13 FLOPs" in lines[-1] and len(lines) <= 3  # of 72 that came at once


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


@pytest.mark.parametrize("stop_after", [30, 75, 230])
def test_a_resumed_study_counts_what_this_run_does_and_ends_at_all_of_it(stop_after: int, tmp_path: Path) -> None:
    """Stopped on the trunk, on a branch and behind a branch; every number against the steps that were really run."""
    study = Study.from_record(
        {
            "study": "small",
            "version": 1,
            "question": "How far is it?",
            "family": {"name": "cipher", "n_symbols": 4, "n_pairs": 5},
            "axes": {"arm": ["answer"], "n_tasks": [4], "compute_flops": [8e7, 2.4e8], "replicates": 1},
            "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24},
            "training": {"batch_size": 8},
            "evaluation": {"n_sequences": 4, "first_flops": 1e7, "points_per_decade": 8},
        }
    )
    trunk, state, cost = study.trunks()[0], State(), budget.flops_per_step(study.trunks()[0])
    place = Place(checkpoint_folder=jobs.checkpoint_folder(tmp_path, trunk))
    told: list[dict[str, Any]] = []
    assert run_trunk(trunk, study.budgets, place, told.extend, Counter(stop_after)) == "stopped"
    state.feed(
        [e for e in told if e["kind"] == "evaluation"]
    )  # how a trial ended was lost on the way: it is told again
    made = price.make(study, state, 1, "cpu", folder=tmp_path)
    progress = Progress(study, state, made, Console(file=io.StringIO(), width=120))
    count = Counter()

    def take(events: list[dict[str, Any]]) -> None:
        progress.take(events)
        assert 0 <= progress.flops <= count.steps * cost

    assert run_trunk(trunk, study.budgets, place, take, count) == "finished"
    assert progress.flops == made.train_flops == count.steps * cost
    assert made.kept_flops == stop_after * cost


def test_when_ray_offers_other_slots_than_planned_the_time_is_counted_anew_and_told(study: Study) -> None:
    out = io.StringIO()
    made = price.make(study, State(), 1, "cuda", 4e10)
    progress = Progress(study, State(), made, Console(file=out, width=120))
    progress.on_slots(1)
    assert out.getvalue() == "" and progress.plan is made
    progress.on_slots(4)
    assert progress.plan == price.make(study, State(), 4, "cuda", 4e10)
    assert (
        progress.plan.seconds is not None
        and out.getvalue() == f"Ray offers 4 slots: about {clock(progress.plan.seconds)}\n"
    )


def test_the_surface_shows_the_mean_of_the_replicates_that_have_ended(study: Study) -> None:
    progress, _ = watch(study)
    trunks = [t for t in study.trunks() if t.n_tasks == 64]
    for trunk, accuracy in zip(trunks, (0.2, 0.4, 0.9), strict=True):
        progress.take(events_of(study, trunk, accuracy))
    screen = Console(file=io.StringIO(), width=120)
    screen.print(progress.surface.render())
    line = next(x for x in screen.file.getvalue().splitlines() if x.strip().startswith("64"))  # type: ignore[attr-defined]
    assert line.split() == ["64"] + ["0.50"] * 4
    assert "recall: ability on held-out tasks" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_a_failure_is_told_at_once_with_its_reason(study: Study) -> None:
    progress, out = watch(study)
    event = events_of(study, study.trunks()[0], 0.5)[1] | {"status": "failed", "reason": "disk full"}
    progress.take([event])
    assert "1 failed" in out.getvalue() and "disk full" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (200, "3:20 min"), (7500, "2:05 h"), (4 * 86400, "4.0 days")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert clock(seconds) == said
