"""Telemetry: a grid that no budget moves, values to look at while a trunk trains, and no trace in its results."""

from __future__ import annotations

import itertools
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_train import budgets_of, keyed, trunk_of

from trainers import budget, telemetry, train
from trainers.checkpoint import POINT, SYSTEM_FIELDS
from trainers.fit.place import Place
from trainers.telemetry import matmul_flops_per_second, on_grid
from trainers.train import run_trunk

Points = dict[tuple[str, int], tuple[float, ...]]


def points(events: list[dict[str, Any]]) -> Points:
    """Loss, learning rate and gradient norm of each point, by trunk or budget and step. None comes twice."""
    found: Points = {}
    for event in (event for event in events if event["kind"] == "telemetry"):
        assert event["key"] == f"{event['trunk']}/telemetry/{event['on']}/{event['steps'][-1]}"
        lists = (event[name] for name in ("steps", "loss_nats", "learning_rate", "grad_norm"))
        for step, *numbers in zip(*lists, strict=True):
            assert (event["on"], step) not in found
            found[event["on"], step] = tuple(numbers)
    return found


def test_the_grid_has_every_early_step_and_then_steps_at_a_constant_ratio() -> None:
    steps = [step for step in range(-1, 100_000) if on_grid(step)]
    assert steps[:50] == list(range(1, 51))
    assert all(1.08 < b / a < 1.12 for a, b in itertools.pairwise(steps[49:]))
    assert len(steps) == 50 + math.floor(math.log(100_000 / 50) / math.log(1.1))


def test_a_larger_budget_leaves_every_point_of_a_smaller_one_where_it_was() -> None:
    trunk = trunk_of()
    small, large = budgets_of(trunk, 60, 150)
    found = []
    for budgets in ([small], [large], [large, small]):
        events: list[dict[str, Any]] = []
        run_trunk(trunk, budgets, Place(), events.extend)
        found.append(points(events))
    alone, later, both = found
    assert alone.items() <= both.items() and later.items() <= both.items()
    assert both.keys() == alone.keys() | later.keys()
    for flops, on_the_way in ((small, alone), (large, both)):
        branch, end = budget.steps_of(trunk, flops)
        assert {s for on, s in on_the_way if on == "trunk"} == {s for s in range(branch + 1) if on_grid(s)}
        assert {s for on, s in on_the_way if on == repr(flops)} == {s for s in range(branch + 1, end + 1) if on_grid(s)}


def test_a_branch_that_diverges_keeps_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of(training={"batch_size": 8, "learning_rate": 1e20})
    events: list[dict[str, Any]] = []
    run_trunk(trunk, budgets_of(trunk, 50, 64), Place(), events.extend)
    (end, *_) = [event for event in events if event["kind"] == "trial"]
    assert list(points(events)) == [("trunk", step) for step in range(1, end["step"] + 1)]


def test_points_are_emitted_when_they_have_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own: a look at it takes a second."""
    ticks = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)), time=lambda: 0.0, perf_counter=lambda: 0.0)
    trunk, found = trunk_of(evaluation={"first_flops": 1e9, "n_sequences": 4}), []
    for seconds in (1e9, 30.0):
        events: list[dict[str, Any]] = []
        with monkeypatch.context() as patch:
            patch.setattr(telemetry, "time", clock)
            patch.setattr(telemetry, "PENDING_SECONDS", seconds)
            patch.setattr(telemetry, "LOAD_SECONDS", math.inf)
            patch.setattr(train, "matmul_flops_per_second", lambda *_: 1.0)
            run_trunk(trunk, budgets_of(trunk, 60), Place(), events.extend)
        found.append((points(events), sum(event["kind"] == "telemetry" for event in events)))
    (rarely, n_few), (often, n_many) = found
    assert rarely == often and n_few == 2 < 4 < n_many < 30


def test_the_load_is_emitted_when_no_point_is_there_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of()
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(telemetry, "LOAD_SECONDS", 0.0)
    run_trunk(trunk, budgets_of(trunk, 100), Place(), events.extend)
    alone = [event for event in events if event["kind"] == "telemetry" and not event["steps"]]
    assert all(not event[name] for event in alone for name in POINT)
    assert {("trunk", step) for step in range(51, 80) if not on_grid(step)} <= {(e["on"], e["step"]) for e in alone}
    assert all(e["system"][0]["memory_mb"] > 50 for e in alone)


def test_the_load_is_the_mean_but_of_memory_the_maximum() -> None:
    now = {"step": 0, "branch": None, "points": [], "steps_charged": 0}
    measured = telemetry.Telemetry(trunk_of(), Place(), 1.0, now, lambda live: None)
    nan = math.nan
    measured.samples = [
        [90.0, 900.0, nan, nan],
        [10.0, 100.0, 1.0, 5.0],
        [20.0, 400.0, 2.0, 7.0],
        [30.0, 100.0, 3.0, 6.0],
    ]
    measured.sampled_at = math.inf
    assert measured.system().tolist() == [[20.0, 400.0, 2.0, 7.0]]


def test_the_speed_of_a_matmul_is_measured_before_there_is_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a device without room for it would look as if the micro-batch were too large."""
    order: list[str] = []
    for name in ("matmul_flops_per_second", "Engine"):
        real = getattr(train, name)
        monkeypatch.setattr(train, name, lambda *given, name=name, real=real: order.append(name) or real(*given))
    run_trunk(trunk_of(), budgets_of(trunk_of(), 50), Place(), lambda events: None)
    assert order == ["matmul_flops_per_second", "Engine"]


def test_live_values_come_after_some_time_each_and_never_among_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own: a step takes 0.2 s, and half a second must pass."""
    trunk, clock = trunk_of(), 0.0
    budgets, live = budgets_of(trunk, 50, 60), []
    plain: list[dict[str, Any]] = []
    run_trunk(trunk, budgets, Place(), plain.extend)
    after_step = telemetry.Telemetry.after_step

    def slowly(self: telemetry.Telemetry, *given: Any) -> None:
        nonlocal clock
        clock += 0.2
        after_step(self, *given[:3], 0.2, *given[4:])

    time = SimpleNamespace(monotonic=lambda: clock, time=lambda: clock, perf_counter=telemetry.time.perf_counter)
    monkeypatch.setattr(telemetry, "time", time)
    monkeypatch.setattr(telemetry, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(telemetry.Telemetry, "after_step", slowly)
    events: list[dict[str, Any]] = []
    run_trunk(trunk, budgets, Place(), events.extend, watch=live.append)
    assert keyed(events) == keyed(plain)
    assert len(live) == math.ceil((50 + 8 + 12) / 3)  # 0.6 s is the first time beyond half a second
    assert [(e["on"], e["step"], e["last_step"]) for e in (live[0], live[14], live[-1])] == [
        ("trunk", 1, 60),
        (repr(budgets[0]), 43, 50),
        (repr(budgets[1]), 60, 60),
    ]
    cost, tokens = budget.flops_per_step(trunk), 8 * trunk.family.length(trunk.arm)  # type: ignore[attr-defined]
    peak = matmul_flops_per_second("cpu", "fp32", 1)
    for e in live:
        assert e["tokens_per_second"] == pytest.approx(tokens / 0.2)
        assert e["mfu"] == pytest.approx(cost / 0.2 / peak)
    assert live[14]["flops_run"] == 43 * cost and live[-1]["flops_run"] == (8 + 12) * cost


def test_the_speed_of_a_matmul_is_measured_once_and_touches_no_random_stream() -> None:
    matmul_flops_per_second.cache_clear()
    before = torch.get_rng_state()
    first = matmul_flops_per_second("cpu", "fp32", 1)
    assert torch.equal(before, torch.get_rng_state())
    assert matmul_flops_per_second("cpu", "fp32", 1) == first > 0


def test_what_a_process_uses_is_sampled_and_what_is_unknown_stays_unknown() -> None:
    trunk = trunk_of()
    events: list[dict[str, Any]] = []
    run_trunk(
        trunk, budgets_of(trunk, 60), Place(), events.extend, watch=lambda live: time.sleep(0.2)
    )  # a share needs time
    found = [event for event in events if event["kind"] == "telemetry"]
    assert any((event["system"][0]["cpu_percent"] or 0) > 0 for event in found)
    for event in found:
        ((cpu, memory, *gpu),) = ([*load.values()] for load in event["system"])
        assert list(event["system"][0]) == list(SYSTEM_FIELDS)
        assert (cpu is None or cpu < 10_000) and memory > 50 and gpu == [None, None]
