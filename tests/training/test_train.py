"""The training loop: equal to a plain one, to itself after any interruption, and to each trial run alone. To the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steps import Counter

from trainers import budget, checkpoint, train
from trainers.__main__ import results_of
from trainers.budget import flops_per_step, price, steps_of
from trainers.engine import evaluation
from trainers.engine.engine import parameter_groups
from trainers.engine.evaluation import _read, evaluate
from trainers.engine.rows import Rows
from trainers.fit.place import Place
from trainers.models.transformer import build
from trainers.objectives.supervised import Supervised
from trainers.spec import TrunkSpec
from trainers.tasks import ItemSet
from trainers.train import run_trunk

Events = list[dict[str, Any]]
TIMES = {"time", "train_seconds", "eval_seconds", "setup_seconds", "wall_seconds", "resumed", "attempt"} | {
    "times",
    "tokens_per_second",
    "mfu",
    "system",
}


TINY: dict[str, Any] = {
    "family": {"name": "cipher", "n_symbols": 4, "n_pairs": 5},
    "arm": "answer",
    "n_tasks": 8,
    "replicate": 0,
    "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "conv_kernel": 2},
    "training": {"batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5},
    "evaluation": {"first_flops": 1e6, "n_sequences": 6},
}
"""A trunk of 5 ms a step: four symbols, one layer of width 16."""


def trunk_of(**changes: Any) -> TrunkSpec:
    return TrunkSpec.model_validate(TINY | changes)


def budgets_of(trunk: TrunkSpec, *ends: int) -> list[float]:
    """The budgets that are worth so many optimizer steps."""
    return [float(end * flops_per_step(trunk)) for end in ends]


def place_of(folder: Path, seconds: float = 1e9) -> Place:
    return Place(checkpoint_folder=str(folder), checkpoint_every_seconds=seconds)


def run(trunk: TrunkSpec, budgets: Sequence[float], place: Place | None = None, stop: Counter | None = None) -> Events:
    """All events of an uninterrupted run, or of one that `stop` interrupted."""
    events: Events = []
    status = run_trunk(trunk, budgets, place or Place(), events.extend, stop or Counter())
    assert status == ("finished" if stop is None or stop.stop_before is None else "stopped")
    return events


def alone(net: torch.nn.Module) -> Any:
    """What `evaluate` asks of an engine, of a model that has none."""
    return SimpleNamespace(model=net, world=1, rank=0, place=Place(), gathered=lambda rows: rows, autocast=nullcontext)


def keyed(events: Events) -> dict[str, dict[str, Any]]:
    """Results by key, without times. A key that occurs again must carry the same result."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        facts = {name: value for name, value in event.items() if name not in TIMES}
        assert found.setdefault(event["key"], facts) == facts
    return found


def ends(events: Events) -> dict[float, dict[str, Any]]:
    """How each trial ended, by its budget."""
    return {event["compute_flops"]: event for event in events if event["kind"] == "trial"}


def live_weights(trunk: TrunkSpec, folder: Path) -> checkpoint.Tensors:
    """Weights, moments and step counts of the newest checkpoint."""
    found = checkpoint.load(folder, trunk.fingerprint())
    assert found is not None
    return found[1]["live"]


# The same numbers as plain PyTorch -------------------------------------------------------------------------------


def plain_loop(
    trunk: TrunkSpec, n_steps: int, rate_of: Callable[[int], float]
) -> tuple[torch.nn.Module, list[float], list[float]]:
    """The textbook loop, without DeepSpeed: the model after `n_steps`, and loss and gradient norm of each step."""
    training, family = trunk.training, trunk.family
    net = build(trunk.model, family.vocab_size, family.seq_len, trunk.replicate)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(training.beta1, training.beta2),
        fused=True,
    )
    losses, norms = [], []
    for step in range(n_steps):
        batch = family.batch(trunk.request, step)
        tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.loss_mask)
        loss = F.cross_entropy(net(tokens[:, :-1], mask), tokens[:, 1:][mask])
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip_norm).item())
        for group in adamw.param_groups:
            group["lr"] = rate_of(step)
        adamw.step()
        losses.append(loss.item())
    return net, losses, norms


EVERY_STEP = {"first_flops": 1.0, "points_per_decade": 500, "n_sequences": 2}
PLAIN = {
    "wsd": {"learning_rate": 0.02, "warmup_steps": 10, "weight_decay": 0.1, "clip_norm": 0.5, "decay_share": 0.2},
    "constant": {"learning_rate": 0.003, "schedule": "constant", "beta1": 0.8, "beta2": 0.95, "clip_norm": 1e3},
}


@pytest.mark.parametrize("schedule", PLAIN)
def test_the_loop_equals_a_plain_pytorch_loop_to_the_bit(schedule, tmp_path):
    trunk = trunk_of(training={"batch_size": 8} | PLAIN[schedule], evaluation=EVERY_STEP, arm="next_token")
    end, last = 60, {"wsd": 48, "constant": 60}[schedule]
    budgets = budgets_of(trunk, end)

    def rate_of(step: int) -> float:
        if schedule == "constant":
            return 0.003
        return 0.02 * min(1.0, (step + 1) / 10) * ((60 - step) / 13 if step >= 48 else 1.0)

    stopped = run(trunk, budgets, place_of(tmp_path), Counter(end - 1))
    before, _, _ = plain_loop(trunk, end - 1, rate_of)
    live = live_weights(trunk, tmp_path)
    assert all(torch.equal(live[name], p.detach()) for name, p in before.named_parameters())

    events = stopped + run(trunk, budgets, place_of(tmp_path))
    net, losses, norms = plain_loop(trunk, end, rate_of)
    assert len(set(losses)) == 60 and losses[-1] < losses[0]
    assert max(norms) > 1  # so that clipping at 0.5 does something, and so does not clipping below 1,000
    found = keyed(events)
    reported = {e["step"]: e["train_loss_nats"] for e in found.values() if e["kind"] == "evaluation" and e.get("grid")}
    assert reported == {step: losses[step - 1] for step in range(1, last + 1)}
    final = found[f"{trunk.id}/{budgets[0]!r}/60"]
    assert final["rows"] == evaluate(alone(net), trunk.family.suite(trunk.request))
    points = [
        point
        for event in found.values()
        if event["kind"] == "telemetry"
        for point in zip(*(event[key] for key in ("steps", "loss_nats", "learning_rate", "grad_norm")), strict=True)
    ]
    assert points == [(n, losses[n - 1], rate_of(n - 1), norms[n - 1]) for n in (*range(1, 51), 55)]
    if schedule == "wsd":
        total = 0.0
        for loss in losses[48:]:
            total += loss
        assert final["train_loss_nats"] == total / 12


# Each trial as if it had been run alone --------------------------------------------------------------------------

KINDS = {
    "cipher": {},
    "learned": {
        "arm": "next_token",
        "model": {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24, "positions": "learned", "norm": "layer"},
        "training": {"batch_size": 4, "decay_share": 0.5, "warmup_steps": 30, "weight_decay": 0.1},
        "evaluation": {"first_flops": 1e6, "points_per_decade": 20, "n_sequences": 6},
    },
    "urns": {
        "family": {"name": "urns", "n_colors": 3, "n_draws": 12},
        "arm": "next_token",
        "training": {"batch_size": 4, "schedule": "constant"},
        "evaluation": {"first_flops": 1e6, "n_sequences": 6},
    },
    "regression": {
        "family": {"name": "regression", "n_dims": 2, "n_pairs": 5},
        "training": {"batch_size": 4},
        "evaluation": {"first_flops": 1e6, "n_sequences": 6},
    },
    "all_decay": {"training": {"batch_size": 4, "decay_share": 0.99}},
}


@pytest.fixture(scope="module", params=KINDS)
def several(request: pytest.FixtureRequest) -> tuple[TrunkSpec, list[float], Events]:
    """A trunk, its budgets (a little off whole steps) and what came of them together."""
    trunk = trunk_of(**KINDS[request.param])
    budgets = [1.004 * b for b in budgets_of(trunk, 50, 60, 75)]
    return trunk, budgets, run(trunk, budgets[::-1])


def test_every_trial_of_a_trunk_equals_the_trial_by_itself_to_the_bit(several):
    trunk, budgets, together = several
    for flops in budgets:
        found = results_of(together, trunk, flops)
        assert found == results_of(run(trunk, [flops]), trunk, flops)
        assert found[-1][0] == "trial" and found[-1][1] == steps_of(trunk, flops).end
        assert len(found) >= 3 or steps_of(trunk, flops).branch < 2
    assert len({str(results_of(together, trunk, flops)) for flops in budgets}) == 3


def test_what_was_spent_is_what_was_priced(several):
    trunk, budgets, together = several
    found, priced = ends(together), price(trunk, budgets)
    assert sum(e["flops_run"] for e in found.values()) == priced.train_flops
    assert sum(e["eval_flops"] for e in found.values()) == priced.eval_flops
    assert sum(e["flops_own"] for e in found.values()) == priced.separate_flops
    for flops, end in found.items():
        assert end["status"] == "done"
        assert abs(end["flops_own"] - flops) <= 0.01 * flops
        assert end["trial"] == trunk.trial(flops).id and end["fingerprint"] == trunk.trial(flops).fingerprint()


def test_budgets_that_leave_the_trunk_at_the_same_step_each_get_their_trial():
    trunk = trunk_of()
    budgets = budgets_of(trunk, 52, 53)
    assert steps_of(trunk, budgets[0]).branch == steps_of(trunk, budgets[1]).branch == 42
    together = run(trunk, budgets)
    assert {b: (e["status"], e["step"]) for b, e in ends(together).items()} == {
        b: ("done", n) for b, n in zip(budgets, (52, 53), strict=True)
    }
    for flops in budgets:
        assert results_of(together, trunk, flops) == results_of(run(trunk, [flops]), trunk, flops)
    assert sum(e["flops_run"] for e in ends(together).values()) == price(trunk, budgets).train_flops


# Stopped, killed, continued --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trunk() -> TrunkSpec:
    return trunk_of()


@pytest.fixture(scope="module")
def budgets(trunk: TrunkSpec) -> list[float]:
    """Branches at 40 and 50, ends at 50 and 62: 72 steps in all."""
    return budgets_of(trunk, 50, 62)


@pytest.fixture(scope="module")
def whole(trunk: TrunkSpec, budgets: list[float]) -> dict[str, dict[str, Any]]:
    """The results of the uninterrupted run."""
    found = keyed(run(trunk, budgets))
    assert [e["status"] for e in found.values() if e["kind"] == "trial"] == ["done"] * 2
    return found


N_STEPS = 50 + 10 + 12


def test_a_trunk_stopped_between_any_two_steps_equals_an_uninterrupted_one_to_the_bit(trunk, budgets, whole, tmp_path):
    """Stopped after every single step, on trunk and branches, and started again: the last call tells everything."""
    assert run(trunk, budgets, place_of(tmp_path), Counter(0)) == []
    calls = 0
    while True:
        events: Events = []
        counter = Counter(1)
        status = run_trunk(trunk, budgets, place_of(tmp_path), events.extend, counter)
        calls += 1
        if status == "finished":
            break
        assert counter.steps == 1 and calls <= N_STEPS
    assert calls == N_STEPS + 1 and counter.steps == 0  # the last one evaluates what the last step has come to
    assert keyed(events) == whole


class Killed(BaseException):
    """Nothing may catch it."""


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["saving each step", "saving never"])
def test_a_trunk_killed_at_any_event_equals_an_uninterrupted_one_to_the_bit(trunk, budgets, whole, tmp_path, seconds):
    """Killed right after each event in turn, once; what had been told before is told again, the same."""
    told: Events = []
    survived: set[str] = set()

    def emit(events: Events) -> None:
        told.extend(events)
        new = {event["key"] for event in events} - survived
        if new and len(new) == len(events) == 1:
            survived.update(new)
            if seconds == 0 or events[0]["kind"] == "trial":
                raise Killed

    kills = 0
    while True:
        try:
            status = run_trunk(trunk, budgets, place_of(tmp_path, seconds), emit)
        except Killed:
            kills += 1
        else:
            break
    assert status == "finished"
    assert kills == (len(whole) if seconds == 0 else 2)
    assert keyed(told) == whole


def test_a_torn_checkpoint_costs_one_interval_and_no_result(trunk, budgets, whole, tmp_path):
    first = run(trunk, budgets, place_of(tmp_path, 0.0), Counter(45))
    newest = max(tmp_path.iterdir())
    live = newest / "live.safetensors"
    live.write_bytes(live.read_bytes()[:-1])
    counter = Counter()
    rest = run(trunk, budgets, place_of(tmp_path), stop=counter)
    assert counter.steps == N_STEPS - 44
    assert keyed(first + rest) == whole


def test_a_finished_trunk_tells_its_results_again_and_trains_nothing(trunk, budgets, whole, tmp_path):
    run(trunk, budgets, place_of(tmp_path))
    counter = Counter()
    assert keyed(run(trunk, budgets, place_of(tmp_path), stop=counter)) == whole
    assert counter.steps == 0


@pytest.mark.parametrize("save_seconds", [0.1, 2.0])
def test_a_crash_costs_at_most_what_lies_between_two_saves(trunk, budgets, whole, tmp_path, monkeypatch, save_seconds):
    """max(interval, 20 x the last save), and the step or evaluation that is under way; the first save after the interval.

    On a clock of the test's own: a step takes 1 s, a forward pass of an evaluation 2 s. Fails if evaluations follow each
    other without a look at the clock, if a save's length is not counted, or if it counts before there was one.
    """
    now, ended, gaps = 0.0, 0.0, []
    make_step, read, save = train.Engine.step, evaluation._read, checkpoint.save

    def passing(seconds: float, do: Callable[..., Any]) -> Callable[..., Any]:
        def taking(*given: Any) -> Any:
            nonlocal now
            now += seconds
            return do(*given)

        return taking

    def saving(*given: Any) -> str:
        nonlocal now, ended
        gaps.append(now - ended)
        now += save_seconds
        ended = now
        return save(*given)

    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: now, perf_counter=lambda: now)
    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(train.Engine, "step", passing(1.0, make_step))
    monkeypatch.setattr(evaluation, "_read", passing(2.0, read))
    monkeypatch.setattr(checkpoint, "save", saving)
    found = keyed(run(trunk, budgets, place_of(tmp_path, 10.0)))
    assert {k: v.get("rows") for k, v in found.items()} == {k: v.get("rows") for k, v in whole.items()}
    exam = 2.0 * len(evaluation.suite_of(trunk))
    most = max(10.0, train.SAVES_SHARE * save_seconds) + max(1.0, exam)
    assert len(gaps) >= 3 and 10.0 < gaps[0] <= 10.0 + max(1.0, exam)
    assert all(gap <= most for gap in gaps) and all(gap > most - max(1.0, exam) for gap in gaps[1:-1])


# Suites ----------------------------------------------------------------------------------------------------------


def same_suite(one: list[ItemSet], other: list[ItemSet]) -> bool:
    """Equal arrays, all of them."""

    def arrays(suite: list[ItemSet]) -> list[Any]:
        found = []
        for items in suite:
            found.append(items.tokens)
            for probe in items.probes:
                found += [probe.mask, probe.target, *probe.distributions.values()]
                found += [array for reference in probe.references.values() for array in reference]
        return found

    pairs = list(zip(arrays(one), arrays(other), strict=True))
    return all(np.array_equal(a, b) for a, b in pairs) and sum(a.nbytes for a, _ in pairs) == sum(
        items.n_bytes for items in one
    )


def test_a_suite_is_kept_for_trunks_that_are_asked_the_same_and_for_no_others():
    trunk = trunk_of(n_tasks=3)
    kept = evaluation.suite_of(trunk)
    wide = trunk_of(n_tasks=3, model={"d_model": 32, "n_heads": 2}, training={"batch_size": 64})
    run(trunk, budgets_of(trunk, 50))  # which leaves it as it was
    assert evaluation.suite_of(wide) is kept and same_suite(kept, wide.family.suite(wide.request))
    mixed = {"training": {"task_exponent": 1.0}}
    for other in ({"n_tasks": 4}, {"replicate": 1}, {"evaluation": {"n_sequences": 7}}, mixed):
        fresh = trunk_of(**{"n_tasks": 3} | other)
        assert evaluation.suite_of(fresh) is not kept
        assert same_suite(evaluation.suite_of(fresh), fresh.family.suite(fresh.request))


def test_suites_are_kept_up_to_a_limit_in_bytes_the_last_used_first(monkeypatch):
    trunks = [trunk_of(replicate=r) for r in range(5)]
    size = sum(items.n_bytes for items in evaluation.suite_of(trunks[0]))
    monkeypatch.setattr(evaluation, "_SUITES", {})
    monkeypatch.setattr(evaluation, "SUITES_BYTES", 3 * size)
    kept = [evaluation.suite_of(trunk) for trunk in trunks[:3]]
    assert evaluation.suite_of(trunks[0]) is kept[0]  # used again: the second is now the oldest
    evaluation.suite_of(trunks[3])
    assert evaluation.suite_of(trunks[0]) is kept[0] and evaluation.suite_of(trunks[2]) is kept[2]
    assert evaluation.suite_of(trunks[1]) is not kept[1]
    monkeypatch.setattr(evaluation, "SUITES_BYTES", size - 1)
    evaluation.suite_of(trunks[4])
    assert evaluation._SUITES == {}


# Budgets that come later -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["all", "only the new"])
def test_a_larger_budget_later_goes_on_from_the_constant_rate(trunk, budgets, whole, tmp_path, named):
    first = run(trunk, budgets[:1], place_of(tmp_path))
    counter = Counter()
    rest = run(trunk, budgets if named == "all" else budgets[1:], place_of(tmp_path), counter)
    assert counter.steps == N_STEPS - 50  # the first budget's 40 + 10 steps are not run again
    found = keyed(first + rest)
    assert found.pop(f"{trunk.id}/end/1")["kind"] == "trunk"
    assert found == whole
    assert ends(first)[budgets[0]] in rest  # told again as it was, times included


def test_a_smaller_budget_later_trains_again_and_equals_the_trial_by_itself(trunk, budgets, whole, tmp_path):
    run(trunk, budgets[1:], place_of(tmp_path))
    counter = Counter()
    later = run(trunk, budgets[:1], place_of(tmp_path), counter)
    assert counter.steps == 50
    assert results_of(later, trunk, budgets[0]) == results_of(list(whole.values()), trunk, budgets[0])
    everything = keyed(run(trunk, budgets, place_of(tmp_path)))
    assert everything == whole


def test_a_later_budget_that_leaves_at_the_same_step_is_a_branch_more(trunk, tmp_path):
    small, large = budgets_of(trunk, 52, 53)  # both branch off at 42
    run(trunk, [small], place_of(tmp_path))
    counter = Counter()
    rest = run(trunk, [small, large], place_of(tmp_path), counter)
    assert counter.steps == 11
    assert results_of(rest, trunk, large) == results_of(run(trunk, [large]), trunk, large)


@pytest.mark.parametrize("n", [20, 45, 50])
def test_the_price_of_what_is_left_is_what_is_then_run(trunk, budgets, tmp_path, n):
    before = run(trunk, budgets, place_of(tmp_path), Counter(n))
    meta = checkpoint.peek(tmp_path, trunk.fingerprint())
    standing = budget.Standing.of(meta).toward({b: budget.steps_of(trunk, b) for b in budgets})
    left, whole = budget.price(trunk, budgets, standing), budget.price(trunk, budgets)
    assert left.train_flops == (N_STEPS - n) * flops_per_step(trunk) < whole.train_flops
    counter = Counter()
    rest = run(trunk, budgets, place_of(tmp_path), stop=counter)
    assert counter.steps * flops_per_step(trunk) == left.train_flops
    exams = {e["key"] for e in rest if e["kind"] == "evaluation"}
    new = exams - {e["key"] for e in before}
    assert left.eval_flops * len(exams) == whole.eval_flops * len(new)
    assert standing.charged_steps * flops_per_step(trunk) + left.train_flops == sum(
        e["flops_run"] for flops, e in ends(rest).items() if flops not in standing.ended
    )


def test_a_branch_whose_budget_is_no_longer_wanted_is_left_out(trunk, budgets, whole, tmp_path):
    run(trunk, budgets, place_of(tmp_path), Counter(45))  # five steps into the first branch
    counter = Counter()
    rest = run(trunk, budgets[1:], place_of(tmp_path), counter)
    assert counter.steps == N_STEPS - 50  # the trunk goes on from where it was left, not from the start
    assert set(ends(rest)) == set(budgets[1:])
    cost = flops_per_step(trunk)
    assert [e["flops_run"] for e in ends(rest).values()] == [counter.steps * cost]  # the rest was told with the first
    for flops in budgets[1:]:
        assert results_of(rest, trunk, flops) == results_of(list(whole.values()), trunk, flops)


def test_a_budget_named_twice_is_one_trial(trunk, budgets, whole):
    assert keyed(run(trunk, [budgets[1], *budgets, budgets[0]])) == whole


def test_a_budget_below_fifty_steps_is_refused(trunk, budgets):
    with pytest.raises(budget.BudgetTooSmall):
        run_trunk(trunk, [*budgets, *budgets_of(trunk, 49)], Place(), lambda events: None)


# Divergence ------------------------------------------------------------------------------------------------------


def test_a_trunk_that_diverges_ends_all_its_trials_before_the_update(tmp_path):
    trunk = trunk_of(training={"batch_size": 8, "learning_rate": 1e20})
    budgets = budgets_of(trunk, 50, 64)
    events = run(trunk, budgets, place_of(tmp_path))
    assert {b: e["status"] for b, e in ends(events).items()} == dict.fromkeys(budgets, "diverged")
    (step,) = {e["step"] for e in ends(events).values()}
    live = live_weights(trunk, tmp_path)
    assert all(values.isfinite().all() for values in live.values())
    assert {int(values) for name, values in live.items() if name.endswith("//step")} == {step}
    assert step < 10
    assert sum(e["flops_run"] for e in ends(events).values()) == step * flops_per_step(trunk)
    json.dumps(events, allow_nan=False)
    again = run(trunk, budgets, place_of(tmp_path))
    assert keyed(events + again) == keyed(events)
    for flops in budgets:
        assert results_of(events, trunk, flops) == results_of(run(trunk, [flops]), trunk, flops)


def test_weights_that_are_not_finite_from_the_start_are_a_result_too():
    trunk = trunk_of(model={"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "init_gain": 1e30})
    (end,) = ends(run(trunk, budgets_of(trunk, 50))).values()
    assert (end["status"], end["step"], end["flops_run"]) == ("diverged", 0, 0)


@pytest.mark.parametrize("kind", ["cipher", "regression"])
def test_an_exam_of_weights_that_are_not_finite_reports_missing_numbers(kind):
    """One update of 1e39, beyond float32: the next exam comes before the next loss."""
    trunk = trunk_of(**KINDS[kind] | {"training": {"batch_size": 8, "learning_rate": 1e39}})
    events = run(trunk, budgets_of(trunk, 50))
    (exam,) = [e for e in events if e["kind"] == "evaluation"]
    assert exam["step"] == 1
    assert {row["nll_nats"] for row in exam["rows"]} == {row["n_correct"] for row in exam["rows"]} == {None}
    json.dumps(events, allow_nan=False)


def fault(monkeypatch: pytest.MonkeyPatch, at: int, decay_from: int | None) -> None:
    """One update with a rate of 1e20, at step `at` of the trunk or of the branch that left it at `decay_from`."""
    sound = budget.learning_rate_at

    def faulty(training: Any, step: int, branch: int | None, end: int) -> float:
        return 1e20 if (step, branch) == (at, decay_from) else sound(training, step, branch, end)

    monkeypatch.setattr(budget, "learning_rate_at", faulty)


def test_a_branch_that_diverges_ends_its_trial_alone(trunk, budgets, whole, monkeypatch, tmp_path):
    fault(monkeypatch, at=43, decay_from=40)
    events = run(trunk, budgets, place_of(tmp_path))
    found = ends(events)
    assert [found[b]["status"] for b in budgets] == ["diverged", "done"]
    assert 43 < found[budgets[0]]["step"] < 50
    for flops in budgets[1:]:
        assert results_of(events, trunk, flops) == results_of(list(whole.values()), trunk, flops)
    run_again = keyed(run(trunk, budgets, place_of(tmp_path)))
    assert run_again == keyed(events)


def test_a_trunk_that_diverges_late_keeps_the_trials_that_had_ended(trunk, budgets, whole, monkeypatch, tmp_path):
    fault(monkeypatch, at=47, decay_from=None)
    events = run(trunk, budgets, place_of(tmp_path))
    found = ends(events)
    assert [found[b]["status"] for b in budgets] == ["done", "diverged"]
    assert results_of(events, trunk, budgets[0]) == results_of(list(whole.values()), trunk, budgets[0])
    assert found[budgets[1]]["step"] == 48
    assert all(values.isfinite().all() for values in live_weights(trunk, tmp_path).values())


@pytest.mark.parametrize("n", [42, 44])
def test_a_stop_around_a_divergence_changes_nothing(trunk, budgets, monkeypatch, tmp_path, n):
    fault(monkeypatch, at=43, decay_from=40)
    uninterrupted = keyed(run(trunk, budgets))
    first = run(trunk, budgets, place_of(tmp_path), Counter(n))
    assert keyed(first + run(trunk, budgets, place_of(tmp_path))) == uninterrupted


# Evaluations -----------------------------------------------------------------------------------------------------


def test_evaluating_more_often_changes_no_final_number(trunk, budgets):
    """Also not the training: the weights of a trial's end answer the same exam."""
    finals = []
    for per_decade in (1, 4, 60):
        denser = trunk_of(evaluation={"first_flops": 1e5, "n_sequences": 6, "points_per_decade": per_decade})
        events = run(denser, budgets)
        at_ends = [e for e in events if e["kind"] == "evaluation" and e["on"] != "trunk"]
        finals.append([(e["on"], e["step"], e["train_loss_nats"], e["rows"]) for e in at_ends])
        assert len(at_ends) == 2
    assert finals[0] == finals[1] == finals[2]


def log_probs_of(trunk: TrunkSpec, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Predictions of the model in the newest checkpoint, rebuilt here."""
    net = build(trunk.model, trunk.family.vocab_size, trunk.family.seq_len, replicate=99)
    net.load_state_dict({k: v for k, v in live_weights(trunk, folder).items() if "//" not in k})
    logits = net(torch.from_numpy(tokens[:, :-1])).detach().double().numpy()
    return logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))


def test_cipher_rows_are_what_one_counts_from_the_final_weights(tmp_path):
    trunk = trunk_of(training={"batch_size": 8, "schedule": "constant", "learning_rate": 0.01})
    events = run(trunk, budgets_of(trunk, 80), place_of(tmp_path))
    rows = {(row["skill"], row["split"]): row for row in events[-3]["rows"]}
    assert (events[-3]["kind"], events[-3]["step"]) == ("evaluation", 80)
    held_out, seen = (trunk.family.suite(trunk.request)[i].tokens for i in (0, 1))
    for split, tokens in (("held_out", held_out), ("seen", seen)):
        log_probs = log_probs_of(trunk, tmp_path, tokens)
        for skill, asked_before in (("recall", True), ("elimination", False)):
            n = n_correct = 0
            nll = brier = 0.0
            for sequence, predictions in zip(tokens.tolist(), log_probs, strict=True):
                for i in range(0, 10, 2):
                    if (sequence[i] in sequence[:i]) != asked_before:
                        continue
                    n += 1
                    n_correct += int(predictions[i].argmax() == sequence[i + 1])
                    nll -= predictions[i][sequence[i + 1]]
                    brier += sum((math.exp(p) - (v == sequence[i + 1])) ** 2 for v, p in enumerate(predictions[i]))
            row = rows[skill, split]
            assert (row["n"], row["n_correct"]) == (n, n_correct)
            assert row["nll_nats"] == pytest.approx(nll, rel=1e-5)
            assert row["brier"] == pytest.approx(brier, rel=1e-5)
            assert n > 5


def test_regression_rows_are_what_one_counts_from_the_final_weights(tmp_path):
    trunk = trunk_of(**KINDS["regression"] | {"training": {"batch_size": 8, "schedule": "constant"}})
    events = run(trunk, budgets_of(trunk, 80), place_of(tmp_path))
    rows = {row["split"]: row for row in events[-3]["rows"]}
    net = build(trunk.model, 1, 9, replicate=99, numbers=trunk.family.numbers)
    net.load_state_dict({k: v for k, v in live_weights(trunk, tmp_path).items() if "//" not in k})
    for items, split, ids in zip(
        trunk.family.suite(trunk.request),
        ("held_out", "seen"),
        (trunk.family.held_out_ids(6), trunk.family.train_ids(0, np.arange(6))),
        strict=True,
    ):
        x = items.tokens[:, 0::2, 1:]
        truth = np.einsum("nkd,nd->nk", x, trunk.family.tasks(ids))
        predicted = net(torch.from_numpy(items.tokens[:, :-1])).detach().double().numpy()[:, 0::2, 0]
        loss = (predicted - truth) ** 2 / 0.5 + 0.5 + 0.5 * math.log(0.5 * math.pi)  # ½ log 2πσ², σ² = ¼
        assert rows[split]["n"] == 30
        assert rows[split]["nll_nats"] == pytest.approx(loss.sum(), rel=1e-5)
        assert rows[split]["n_correct"] == (np.abs(predicted - truth) < 0.5).sum()


def test_the_generaliser_and_the_memoriser_can_be_told_apart_after_a_little_training():
    """Simulated truth at the smallest scale: one task is memorised within 200 steps, and is no general rule."""
    trunk = trunk_of(n_tasks=1, training={"batch_size": 16, "learning_rate": 0.01})
    (exam,) = [e for e in run(trunk, budgets_of(trunk, 200)) if e["kind"] == "evaluation" and e["on"] != "trunk"]
    rows = {(row["skill"], row["split"]): row for row in exam["rows"]}
    seen, held_out = rows["mixture", "seen"], rows["recall_novel_pair", "held_out"]
    assert seen["nll_nats"] < 0.2 * seen["nll_generalizer"]
    assert held_out["nll_nats"] > held_out["nll_uniform"]


@pytest.mark.parametrize("kind", ["cipher", "regression"])
def test_the_maximal_update_rule_keeps_the_first_step_of_wide_models_as_large_as_that_of_narrow_ones(kind):
    """Output of one AdamW step, at the same rate: without the rule it grows with the width, with it it does not."""

    def change(width: int, base: int | None) -> float:
        model = {"n_layers": 1, "d_model": width, "n_heads": width // 16, "d_mlp": 4 * width, "init_gain": 1.0}
        training = {"batch_size": 8, "learning_rate": 0.01, "base_d_model": base}
        trunk = trunk_of(**KINDS[kind] | {"model": model, "training": training})
        net = build(trunk.model, trunk.family.vocab_size, trunk.family.seq_len, 0, base, trunk.family.numbers)
        adamw = torch.optim.AdamW(parameter_groups(net, trunk), lr=1e-2)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * group["rate_share"]
        batch = trunk.family.batch(trunk.request, 0)
        tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.loss_mask)
        before = net(tokens[:, :-1]).detach()
        learning: Any = Supervised(trunk)
        learning.loss(net, Rows(tokens, mask)).backward()
        adamw.step()
        return float((net(tokens[:, :-1]) - before).detach().square().mean().sqrt())

    grown = change(512, None) / change(32, None)
    kept = change(512, 32) / change(32, 32)
    assert grown > 3 and kept < 2 and kept < grown / 3


def test_at_the_base_width_the_rule_changes_nothing_to_the_bit():
    training = {"batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5}
    plain, ruled = (trunk_of(training=training | {"base_d_model": base}) for base in (None, 16))
    assert plain.fingerprint() != ruled.fingerprint()
    first, second = (
        [e["rows"] for e in run(t, budgets_of(t, 60)) if e["kind"] == "evaluation"] for t in (plain, ruled)
    )
    assert first == second


def test_what_the_model_writes_is_what_it_goes_on_from():
    """A stub that answers `token + 1`: read freely from a wrong start it carries its own answers along."""

    class Next(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.here = torch.nn.Parameter(torch.zeros(()))

        def forward(self, tokens):
            return 9.0 * torch.nn.functional.one_hot((tokens + 1) % 8, 8).float() + self.here

    tokens = torch.tensor([[1, 5, 5, 5]])
    told = _read(Next(), tokens, ())[0].argmax(-1).tolist()
    free = _read(Next(), tokens, (0, 1, 2, 3))[0].argmax(-1).tolist()
    assert told == [2, 6, 6, 6] and free == [2, 3, 4, 5] and tokens.tolist() == [[1, 5, 5, 5]]
