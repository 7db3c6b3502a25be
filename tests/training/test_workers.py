"""Several workers on one trunk: ZeRO 0 to 3, turns, recomputation, offloading, and checkpoints that change hands.

Two processes are started once for all cases; what they told is compared with one worker alone, in this process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from steps import Counter, Within

from trainers import checkpoint, telemetry
from trainers.budget import flops_at, flops_per_step
from trainers.engine.workers import together
from trainers.fit.place import Place, shares
from trainers.spec import Start, TrunkSpec
from trainers.train import run_trunk

Events = list[dict[str, Any]]


def trunk_of(**training: Any) -> TrunkSpec:
    """A trunk of odd sizes: 15 wide, so that no tensor divides by two without a rest."""
    record: dict[str, Any] = {
        "family": {"name": "cipher", "n_symbols": 5, "n_pairs": 6},
        "arm": "answer",
        "n_tasks": 8,
        "replicate": 0,
        "model": {
            "n_layers": 1, "d_model": 15, "n_heads": 3, "d_mlp": 21, "conv_kernel": 3, "positions": "learned", "norm": "layer"
        },
        "training": {"batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "weight_decay": 0.1, "clip_norm": 0.3} | training,
        "evaluation": {"first_flops": 1e6, "n_sequences": 5},
    }  # fmt: skip
    return TrunkSpec.model_validate(record)


def text_trunk() -> TrunkSpec:
    """A trunk of text: packed rows, and answers that end at different times on the two ranks."""
    family = {"name": "rewrite", "n_letters": 6, "n_string": 5, "lengths": (1, 2)}
    return TrunkSpec.model_validate(trunk_of(batch_size=4).model_dump() | {"family": family, "arm": "answer"})


def reward_trunk() -> TrunkSpec:
    """A trunk that learns from a reward alone: the two ranks sample answers of different lengths."""
    family = {"name": "worked_parity", "n_positions": 4}
    changes = {"family": family, "arm": "reward", "reward": {"group_size": 4}}
    return TrunkSpec.model_validate(trunk_of(batch_size=16).model_dump() | changes)


def budgets_of(trunk: TrunkSpec) -> list[float]:
    """50 and 60 steps: two branches, two returns to the trunk."""
    return [float(end * flops_per_step(trunk)) for end in (50, 60)]


def begun() -> tuple[TrunkSpec, list[float]]:
    """A trunk that begins with the weights of the first budget of `trunk_of`, and its budget."""
    trunk = trunk_of()
    donor = trunk.trial(budgets_of(trunk)[0])
    start = Start(trial=donor.id, fingerprint=donor.fingerprint(), flops=flops_at(trunk, 50))
    return trunk.model_copy(update={"start": start}), [float(flops_at(trunk, 100))]


BEGUN = (1, 3)
"""ZeRO stages of dependents. The donor of all of them ran at stage 2."""
EARLY, BRANCH = 30, 47
"""Steps at which a run is stopped: on the trunk, and on the first branch, which leaves the trunk at step 40."""
STOPS = {0: BRANCH, 2: EARLY, 3: BRANCH}
"""Where the workers of each ZeRO stage take each other's place. Stage 1 runs the code of stage 2."""

CASES: dict[str, dict[str, Any]] = {
    "ZeRO 0": {},
    "ZeRO 1": {"zero_stage": 1, "micro_batch": 2},
    "ZeRO 2": {"zero_stage": 2},
    "ZeRO 3": {"zero_stage": 3},
    "ZeRO 0 in turns": {"micro_batch": 1},
    "ZeRO 3 in turns, recomputing": {"zero_stage": 3, "micro_batch": 2, "recompute": True},
    "ZeRO 3 offloading": {"zero_stage": 3, "offload": True},
}
"""Place of each case that must come to the same as one worker alone."""
IN_TURNS = ("ZeRO 1", "ZeRO 3 in turns, recomputing")
"""Cases in which a step can be stopped between two micro-batches."""
EXPLODING = {"learning_rate": 1e30, "warmup_steps": 30}


def play(rank: int, folder: Path) -> None:
    """Every case, on one of two ranks; rank 0 writes down what was told."""

    def told(name: str, training: dict[str, Any], stop: Callable[[], bool] = lambda: False, **place: Any) -> None:
        events: Events = []
        trunk = trunk_of(**training)
        run_trunk(trunk, budgets_of(trunk), Place(**place), events.extend, stop)
        if rank:
            assert not events  # a rank that tells too would count everything twice
        else:
            (folder / f"{name}.json").write_text(json.dumps(events))

    for stage in (0, 3):
        for name, trunk in (("text", text_trunk()), ("reward", reward_trunk())):
            events: Events = []
            run_trunk(trunk, budgets_of(trunk), Place(zero_stage=stage), events.extend)
            if not rank:
                (folder / f"{name} {stage}.json").write_text(json.dumps(events))
    telemetry.PENDING_SECONDS = math.inf if rank else 0.0  # rank 0 alone decides; the others would wait for ever
    told("impatient", {})
    telemetry.PENDING_SECONDS = math.inf
    for name, place in CASES.items():
        kept = {"weights_folder": f"{folder}/weights"} if name == "ZeRO 3" else {}
        kept |= (
            {"starts_folder": f"{folder}/starts", "starts": tuple(budgets_of(trunk_of())[:1])}
            if name == "ZeRO 2"
            else {}
        )
        told(name, {}, **place, **kept)
    for stage in BEGUN:
        events = []
        run_trunk(*begun(), Place(zero_stage=stage, starts_folder=f"{folder}/starts"), events.extend)
        if not rank:
            (folder / f"begun {stage}.json").write_text(json.dumps(events))
    for stage in STOPS:
        told(f"exploding {stage}", EXPLODING, zero_stage=stage, micro_batch=2)
        left = f"{folder}/left {stage}"
        told(f"left {stage}", {}, Counter(STOPS[stage]), zero_stage=stage, checkpoint_folder=left)
        told(f"taken {stage}", {}, zero_stage=stage, checkpoint_folder=f"{folder}/given {stage}")
    for case in IN_TURNS:
        place = CASES[case] | {"checkpoint_folder": f"{folder}/within {case}"}
        told(f"{case}, left in a step", {}, Within(BRANCH, "step"), **place)
        told(f"{case}, left in an evaluation", {}, Within(3, "evaluation"), **place)
        told(f"{case}, taken", {}, **place)
    offloading = {"zero_stage": 2, "offload": True, "checkpoint_folder": f"{folder}/offloading"}
    told("offloading, left", {}, Counter(BRANCH), **offloading)
    told("offloading, taken", {}, **offloading)
    told("bf16 in turns", {"precision": "bf16"}, micro_batch=2)
    told("bf16", {"precision": "bf16"}, zero_stage=2, micro_batch=2)
    told("bf16 whole", {"precision": "bf16"}, zero_stage=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers told, a file a case; and checkpoints that one worker left for them, and they for one."""
    folder = tmp_path_factory.mktemp("told")
    for stage, stop in STOPS.items():
        place = Place(checkpoint_folder=f"{folder}/given {stage}")
        assert run_trunk(trunk_of(), budgets_of(trunk_of()), place, lambda _: None, Counter(stop)) == "stopped"
    together(2, False, play, folder)
    return folder


def told(folder: Path, name: str) -> Events:
    return json.loads((folder / f"{name}.json").read_text())  # type: ignore[no-any-return]


def alone(training: dict[str, Any], **place: Any) -> Events:
    events: Events = []
    trunk = trunk_of(**training)
    run_trunk(trunk, budgets_of(trunk), Place(**place), events.extend)
    return events


@pytest.fixture(scope="module")
def reference() -> Events:
    return alone({})


def compare(these: Events, those: Events, tolerance: float, n_least: int = 10) -> None:
    """The same keys in the same order; losses and sums within a tolerance for each that was summed; counts equal."""
    assert [e["key"] for e in these if e["kind"] != "trunk"] == [e["key"] for e in those if e["kind"] != "trunk"]
    n_losses = 0
    for one, other in zip(these, those, strict=True):
        if one["kind"] != "evaluation":
            continue
        if one["train_loss_nats"] is not None:
            assert one["train_loss_nats"] == pytest.approx(other["train_loss_nats"], abs=tolerance, rel=0)
            n_losses += 1
        assert len(one["rows"]) == len(other["rows"])
        for row, same in zip(one["rows"], other["rows"], strict=True):
            assert (row["skill"], row["split"], row["n"]) == (same["skill"], same["split"], same["n"])
            if row["n"]:
                assert row["nll_nats"] == pytest.approx(same["nll_nats"], abs=tolerance * row["n"], rel=0)
    assert n_losses >= n_least


@pytest.mark.parametrize("case", CASES)
def test_two_workers_come_to_what_one_comes_to(folder, reference, case):
    compare(told(folder, case), reference, 1e-5)


@pytest.mark.parametrize("stage", (0, 3))
def test_two_workers_read_and_answer_text_as_one_does(folder, stage):
    events: Events = []
    run_trunk(text_trunk(), budgets_of(text_trunk()), Place(), events.extend)
    compare(told(folder, f"text {stage}"), events, 1e-5)
    pairs = zip(told(folder, f"text {stage}"), events, strict=True)
    rows = [(a, b) for one, other in pairs for a, b in zip(one.get("rows", ()), other.get("rows", ()), strict=True)]
    assert rows and all(a["n_answered"] == b["n_answered"] and a["n_right"] == b["n_right"] for a, b in rows)


@pytest.mark.parametrize("stage", (0, 3))
def test_two_workers_sample_the_answers_that_one_samples(folder, stage):
    """Draws are equal while rounding moves none of them: for all of these steps."""
    events: Events = []
    run_trunk(reward_trunk(), budgets_of(reward_trunk()), Place(), events.extend)
    pairs = [(a, b) for a, b in zip(told(folder, f"reward {stage}"), events, strict=True) if a["kind"] == "evaluation"]
    assert len(pairs) > 5 and pairs[-1][0]["sampled"]["sums"]["right"] > 20
    for one, other in pairs:
        sums, same = one["sampled"]["sums"], other["sampled"]["sums"]
        assert sums.pop("nll_nats") == pytest.approx(same.pop("nll_nats"), rel=1e-4)
        assert sums == same and sums["samples"] > 0
        assert one["sampled"]["transcripts"] == other["sampled"]["transcripts"]


def points(events: Events) -> dict[tuple[str, int], tuple[float, float]]:
    """Loss and gradient norm of every point of the telemetry, by trunk or budget and step. None comes twice."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for event in (event for event in events if event["kind"] == "telemetry"):
        for step, *numbers in zip(event["steps"], event["loss_nats"], event["grad_norm"], strict=True):
            assert found.setdefault((event["on"], step), (numbers[0], numbers[1])) == tuple(numbers)
    return found


@pytest.mark.parametrize("case", [*CASES, "impatient"])
def test_two_workers_have_the_gradient_norms_of_one_and_each_has_its_load(folder, reference, case):
    """Also where the clocks of the workers disagree about the time to emit: the points are then in single events."""
    events, expected = told(folder, case), points(reference)
    found = points(events)
    assert list(found) == list(expected) and len(found) > 50
    for key, numbers in expected.items():
        assert found[key] == pytest.approx(numbers, rel=1e-3)
    telemetry = [event for event in events if event["kind"] == "telemetry"]
    assert all(len(e["system"]) == 2 and e["system"][1]["memory_mb"] > 50 for e in telemetry)
    assert len(telemetry) == len(expected) if case == "impatient" else len(telemetry) < 20


def test_turns_and_recomputation_change_nothing_for_one_worker_either(reference):
    compare(alone({}, micro_batch=2), reference, 1e-5)
    assert [e.get("rows") for e in alone({}, recompute=True)] == [e.get("rows") for e in reference]  # to the bit


@pytest.mark.parametrize("stage", STOPS)
def test_what_two_workers_left_one_goes_on_with_to_the_same_losses(folder, reference, stage):
    before = told(folder, f"left {stage}")
    seen = {e["key"] for e in before}
    after = [e for e in alone({}, checkpoint_folder=f"{folder}/left {stage}") if e["key"] not in seen]
    assert seen and after and not any(e["kind"] == "trunk" for e in before)
    compare(before + after, reference, 1e-6)


@pytest.mark.parametrize("stage", STOPS)
def test_what_one_worker_left_two_go_on_with_to_the_same_losses(folder, reference, stage):
    compare(told(folder, f"taken {stage}"), reference, 1e-6)


@pytest.mark.parametrize("case", IN_TURNS)
def test_two_workers_stopped_within_a_step_and_an_evaluation_equal_an_uninterrupted_run_to_the_bit(folder, case):
    """Fails if the ranks do not stop at the same micro-batch, or if gradients of a step given up are left in a state."""
    names = ("left in a step", "left in an evaluation", "taken")
    stopped = [told(folder, f"{case}, {name}") for name in names]
    whole = {e["key"]: e.get("rows") for e in told(folder, case) if e["kind"] != "trunk"}
    assert not any(e["kind"] == "trunk" for e in stopped[0] + stopped[1])
    found = {e["key"]: e.get("rows") for events in stopped for e in events if e["kind"] != "trunk"}
    assert found == whole and len(whole) > 5


def test_offloaded_state_is_saved_and_taken_up_again(folder, reference):
    before = told(folder, "offloading, left")
    after = [e for e in told(folder, "offloading, taken") if e["key"] not in {e["key"] for e in before}]
    compare(before + after, reference, 1e-5)


@pytest.mark.parametrize("stage", (2, 3))
def test_a_checkpoint_is_the_same_whoever_left_it(folder, stage):
    """Whole tensors by the same names and of the same shapes, and equal within what the order of sums may do."""
    mine = checkpoint.load(f"{folder}/left {stage}", trunk_of().fingerprint())
    plain = checkpoint.load(f"{folder}/given {stage}", trunk_of().fingerprint())
    assert mine is not None and plain is not None
    ours, theirs = mine[1]["live"], plain[1]["live"]
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    assert sum("//" in name for name in ours) == 3 * sum("//" not in name for name in ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", STOPS)
def test_a_divergence_is_met_at_the_same_step_and_ends_the_same_trials(folder, stage):
    ends = [[(e["trial"], e["status"], e["step"]) for e in of if e["kind"] == "trial"] for of in (
        told(folder, f"exploding {stage}"), alone(EXPLODING)
    )]  # fmt: skip
    assert ends[0] == ends[1]
    assert len(ends[0]) == 2 and {status for _, status, _ in ends[0]} == {"diverged"}


def test_weights_are_kept_whole_as_each_trial_ended(folder, reference, tmp_path):
    alone({}, weights_folder=str(tmp_path))
    trunk = trunk_of()
    for flops in budgets_of(trunk):
        name = f"{trunk.trial(flops).id}.safetensors"
        ours, theirs = load_file(folder / "weights" / name), load_file(tmp_path / name)
        assert ours.keys() == theirs.keys() and "blocks.0.up.weight" in ours
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-5)
    first, last = (load_file(tmp_path / f"{trunk.trial(b).id}.safetensors") for b in budgets_of(trunk))
    assert not torch.equal(first["embed.weight"], last["embed.weight"])


@pytest.mark.parametrize("stage", BEGUN)
def test_two_workers_begin_with_the_weights_of_another_trial_as_one_does(folder, stage):
    events: Events = []
    run_trunk(*begun(), Place(starts_folder=f"{folder}/starts"), events.extend)
    compare(told(folder, f"begun {stage}"), events, 1e-5, n_least=3)
    first, donated = told(folder, f"begun {stage}")[0], told(folder, "ZeRO 2")
    end = next(e for e in donated if e["kind"] == "evaluation" and e["on"] != "trunk")
    for row, same in zip(first["rows"], end["rows"], strict=True):
        assert not row["n"] or row["nll_nats"] == pytest.approx(same["nll_nats"], abs=1e-5 * row["n"], rel=0)


def losses(events: Events) -> list[float]:
    return [e["train_loss_nats"] for e in events if e["kind"] == "evaluation" and e["train_loss_nats"] is not None]


def test_bf16_is_near_fp32_and_not_the_same(folder, reference):
    exact, plain = losses(reference), losses(alone({"precision": "bf16"}))
    for rounded in (losses(told(folder, "bf16")), losses(told(folder, "bf16 whole")), plain):
        assert len(rounded) == len(exact)
        gaps = [abs(a - b) for a, b in zip(rounded, exact, strict=True)]
        assert 1e-5 < max(gaps) < 0.02


def test_bf16_means_the_same_whatever_zero_shares_out(folder):
    """Sums of gradients stay fp32 at every stage: what differs is the order of sums, which rounding makes larger (2.8e-4 seen)."""
    shared, whole = losses(told(folder, "bf16")), losses(told(folder, "bf16 in turns"))
    assert max(abs(a - b) for a, b in zip(shared, whole, strict=True)) < 1e-3


def test_every_sequence_of_a_batch_is_taken_once():
    for batch in (1, 2, 12, 32):
        for world in (n for n in range(1, batch + 1) if batch % n == 0):
            for micro in (n for n in range(1, batch // world + 1) if batch // world % n == 0):
                size, turns = shares(batch, world, micro)
                rows = [(r * turns + t) * size + i for r in range(world) for t in range(turns) for i in range(size)]
                assert sorted(rows) == list(range(batch))
