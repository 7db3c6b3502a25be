"""What a person sees: the counts add up, the surface fills in, logs stay readable."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from steps import Counter

from orchestrator.console.progress import ID_WIDTH, Progress, _shortened
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
    screen = Console(file=io.StringIO(), width=80)
    screen.print(progress.surface.render())
    line = next(x for x in screen.file.getvalue().splitlines() if x.strip().startswith("64"))  # type: ignore[attr-defined]
    assert line.split() == ["64"] + ["0.50"] * 4
    (title,) = [x for x in screen.file.getvalue().splitlines() if "recall" in x]  # type: ignore[attr-defined]
    assert "ability on held-out tasks" in title and title.endswith("FLOPs")


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


# Live values ---------------------------------------------------------------------------------------------------------


def live_of(step: int, flops: float, when: float = 1.0, **others: Any) -> dict[str, Any]:
    values = {"on": "trunk", "step": step, "last_step": 771, "loss_nats": 2.345678, "tokens_per_second": 45678.9}
    return values | {"mfu": 0.0321, "flops_run": flops, "time": when} | others


def lines_of(progress: Progress, width: int = 80) -> list[str]:
    screen = Console(file=io.StringIO(), width=width)
    screen.print(progress.render())
    return screen.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_steps_that_are_under_way_count_and_give_a_time_before_any_trial_has_ended(study: Study, monkeypatch) -> None:
    progress, out = watch(study)
    clock = progress.started
    monkeypatch.setattr("orchestrator.console.progress.time", SimpleNamespace(monotonic=lambda: clock))
    trunk, cost = study.trunks()[0], budget.flops_per_step(study.trunks()[0])
    progress.watch({trunk.id: live_of(1, cost)})
    assert progress.seconds_left() is None
    clock += 10.0
    progress.watch({trunk.id: live_of(101, 101 * cost)})
    assert progress.flops == 101 * cost
    steps = progress.plan.train_flops / cost / 18
    assert progress.seconds_left() == pytest.approx(9 * steps / 5)  # 18 trunks on two slots, of 5 steps a second each
    assert out.getvalue() == ""  # nothing to print where there is no terminal
    clock += 90.0
    for other in study.trunks()[1:]:
        progress.take(events_of(study, other, 0.5))
    speed = (17 * steps + 100) / 100
    assert progress.seconds_left() == pytest.approx((steps - 101) / (speed / 2))  # the last trunk has one slot


def test_late_values_and_late_events_neither_count_twice_nor_bring_back_a_trunk(study: Study) -> None:
    progress, _ = watch(study)
    trunk = study.trunks()[0]
    events = [event | {"time": 5.0} for event in events_of(study, trunk, 0.5)]
    first, second = list(budget.marginal_flops(trunk, study.budgets).values())[:2]
    progress.watch({trunk.id: live_of(96, first, 4.0)})
    progress.watch({trunk.id: live_of(97, 1.0, 6.0)})  # of the second trial, before the end of the first is known
    assert progress.flops == first
    progress.take(events[:2])
    progress.watch({trunk.id: live_of(96, first, 4.5)})  # of the first, too late
    assert progress.flops == first
    progress.watch({trunk.id: live_of(190, second, 7.0)})
    progress.take([events[2] | {"flops_run": second / 2}])  # an evaluation that was reported late
    assert progress.flops == first + second
    progress.take([*events[3:], {"kind": "trunk", "key": "end", "trunk": trunk.id, "time": 9.0}])
    progress.watch({trunk.id: live_of(771, first, 8.9)})
    assert progress.flops == sum(budget.marginal_flops(trunk, study.budgets).values())
    assert not any(trunk.id in line for line in lines_of(progress))


def test_a_trunk_that_ends_while_its_last_values_come_is_not_shown_again(study: Study, monkeypatch: Any) -> None:
    """Fails without a lock: `take` of the driver's thread falls between two lines of `watch`."""
    progress, _ = watch(study)
    trunk, ran = study.trunks()[0].id, progress._ran
    end = {"kind": "trunk", "key": "end", "trunk": trunk, "time": 9.0}
    ending = threading.Thread(target=progress.take, args=([end],))

    def slowly(*given: Any) -> None:
        ending.start()
        ending.join(0.3)
        ran(*given)

    monkeypatch.setattr(progress, "_ran", slowly)
    progress.watch({trunk: live_of(96, 1.0, 8.0)})
    ending.join()
    assert not any(trunk in line for line in lines_of(progress))


@pytest.mark.parametrize(
    "name", ["s1/n123456789012/c1.234e12/r0/v2long_name_of_a_variant", "r2/n64/c123456789012345/r0/n1"]
)
def test_an_id_whose_names_have_digits_is_shortened_too(name: str) -> None:
    short = _shortened(name)
    assert len(short) <= ID_WIDTH and short.split("/")[1:4] == name.split("/")[1:4]


@pytest.mark.parametrize("width", [80, 120])
def test_a_running_trunk_is_one_line_however_large_its_numbers_and_only_eight_are_shown(width: int) -> None:
    study = Study.from_record(
        {
            "study": "wide",
            "version": 1,
            "question": "Does it fit?",
            "family": {"name": "cipher"},
            "axes": {
                "arm": ["answer", "next_token"],
                "variant": {"an_unusually_long_name_of_a_variant": {}, "another": {"training": {"batch_size": 16}}},
                "n_tasks": [123456789],
                "compute_flops": [1.234e12],
                "replicates": 3,
            },
        }
    )
    progress = Progress(study, State(), price.make(study, State(), 2, "cpu"), Console(file=io.StringIO(), width=width))
    large = {"last_step": 999_999, "tokens_per_second": 1.234567e9, "mfu": 0.999, "loss_nats": 12.5}
    live = {trunk.id: live_of(987_654, 1.0, **large) for trunk in study.trunks()}
    assert len(live) == 12
    progress.watch(live)
    lines = [line.rstrip() for line in lines_of(progress, width)]
    mine = [line for line in lines if "987,654 of 999,999" in line]
    assert len(mine) == 8 and len(set(mine)) == 8
    assert all(line.split()[-4:] == ["12.500", "1.23e9", "100", "%"] for line in mine)
    assert all("/n123456789/" in line and f"/r{i % 3}" in line for i, line in enumerate(mine))
    assert "and 4 more" in lines and max(map(len, lines)) <= width


def test_a_branch_has_the_name_of_its_trial(study: Study) -> None:
    progress, _ = watch(study)
    trunk = study.trunks()[0]
    progress.watch({trunk.id: live_of(90, 1.0, on=repr(study.budgets[0]), last_step=96)})
    (line,) = [line for line in lines_of(progress) if " of 96 " in line]
    assert line.split() == [trunk.trial(study.budgets[0]).id, "90", "of", "96", "2.346", "45,700", "3.2", "%"]
