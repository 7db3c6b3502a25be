"""The memory estimate: against what autograd keeps, what is alive at the worst moment, and DeepSpeed's own arithmetic."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.budget import shape_of
from trainers.engine.rows import Rows
from trainers.fit import memory
from trainers.fit.memory import (
    FREE_SHARE,
    DoesNotFit,
    How,
    fit,
    is_out_of_memory,
    needs,
    state_bytes,
    workers_needed,
    zero_section,
)
from trainers.fit.place import Place, halved, shares
from trainers.models.transformer import Transformer, build
from trainers.objectives.supervised import Supervised
from trainers.records import Numbers
from trainers.shapes import PRESETS, Model, Precision, Shape
from trainers.spec import TrunkSpec

ROOT = Path(__file__).parents[2]
GB = 10**9


def trunk_of(size: str = "124m", batch_size: int = 64, **changes: Any) -> TrunkSpec:
    what = {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 8, "replicate": 0, "model": PRESETS[size]}
    return TrunkSpec(**what | {"training": {"batch_size": batch_size}} | changes)


# Activations, against torch ----------------------------------------------------------------------------------------

SHAPES = [
    {"norm": "layer", "positions": "learned"},
    {"conv_kernel": 3},
    {"attention_window": 8},
    {"n_layers": 6, "d_model": 48, "n_heads": 2, "d_mlp": 64},
    {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32},
]
every_shape = pytest.mark.parametrize("change", SHAPES, ids=str)
both_precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])
V, T, B = 50, 48, 6


def model_of(**change: Any) -> Model:
    return Model(**{"n_layers": 3, "d_model": 64, "n_heads": 4, "d_mlp": 256} | change)


def loss_of(net: Transformer, vocab_size: int, precision: str) -> torch.Tensor:
    tokens = torch.randint(0, vocab_size, (B, T + 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        mask = torch.ones(B, T, dtype=torch.bool)
        return F.cross_entropy(net(tokens[:, :-1], mask), tokens[:, 1:][mask])


def kept_bytes(shape: Shape, precision: Precision) -> int:
    """The estimate of what `kept_by_autograd` measures: both ends, all blocks, and log-probabilities at all positions."""
    blocks = shape.model.n_layers * shape.block_bytes(B, precision)
    return shape.ends_bytes(B, precision) + blocks + B * T * 4 * shape.vocab_size


def kept_by_autograd(net: Transformer, loss: Any) -> int:
    """Bytes of the distinct storages saved for the backward pass, weights and constants apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)


@every_shape
@both_precisions
@pytest.mark.parametrize("vocab_size", [V, 1000])
def test_what_autograd_keeps_is_estimated_to_ten_percent_and_never_too_low(change, precision, vocab_size):
    model = model_of(**change)
    net = build(model, vocab_size, T, 0)
    found = kept_by_autograd(net, lambda: loss_of(net, vocab_size, precision))
    estimate = kept_bytes(Shape(model, vocab_size, T), precision)
    assert found <= estimate * 1.001  # scalars
    assert estimate <= 1.1 * found


def test_what_autograd_keeps_of_tokens_that_are_numbers_is_estimated_to_ten_percent():
    numbers, model = Numbers(width=5, noise_variance=0.25), model_of()
    of_numbers: Any = SimpleNamespace(family=SimpleNamespace(numbers=numbers))
    net = build(model, 1, T, 0, None, numbers)
    tokens, mask = torch.randn(B, T + 1, 5), torch.ones(B, T, dtype=torch.bool)
    found = kept_by_autograd(net, lambda: Supervised(of_numbers).loss(net, Rows(tokens, mask)))
    assert found <= kept_bytes(Shape(model, 1, T, numbers), "fp32") <= 1.1 * found


class Alive(TorchDispatchMode):
    """The most bytes of tensors that are alive at once, but for those named."""

    def __init__(self, *apart: torch.Tensor) -> None:
        super().__init__()
        self.apart = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in apart}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = StorageWeakRef(tensor.untyped_storage())
                if storage.cdata not in self.apart:
                    self.alive[storage.cdata] = (storage, tensor.untyped_storage().nbytes())
        self.alive = {at: one for at, one in self.alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(n_bytes for _, n_bytes in self.alive.values()))
        return out


@both_precisions
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("vocab_size", [V, 2000])
@pytest.mark.parametrize("change", [{"n_layers": 8, "conv_kernel": 3}, {"norm": "layer", "d_mlp": 512}], ids=str)
def test_the_worst_moment_of_a_step_is_never_estimated_too_low_and_at_most_two_thirds_too_high(
    change, vocab_size, recompute, precision
):
    """Gradients are counted whole though they come one by one, and autocast's copies though recomputing lets go of most: in
    models this large beside their batch both tell."""
    model = model_of(**change)
    net = build(model, vocab_size, T, 0)
    net.recompute = recompute
    alive = Alive(*net.parameters(), *net.buffers())
    with alive:
        loss_of(net, vocab_size, precision).backward()
    estimate = Shape(model, vocab_size, T).activation_bytes(B, precision, recompute)
    estimate += 4 * Shape(model, vocab_size, T).n_parameters  # gradients
    assert 0.6 * estimate <= alive.peak <= estimate


def test_matrices_and_the_largest_layer_are_those_of_the_built_model():
    for change, vocab_size in itertools.product(SHAPES, (20, 700)):
        model = model_of(**change)
        net = build(model, vocab_size, T, 0)
        linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
        assert Shape(model, vocab_size, T).n_matmul_parameters == sum(m.weight.numel() for m in linear)
        assert Shape(model, vocab_size, T).largest_layer == max(p.numel() for p in net.parameters())


# Training state, against DeepSpeed -----------------------------------------------------------------------------------

WORKER = """
import os, sys
rank, store = int(sys.argv[1]), sys.argv[2]
os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": str(rank), "WORLD_SIZE": "2", "DEEPSPEED_LOG_LEVEL": "error"}
if sys.platform == "linux":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import deepspeed, deepspeed.ops, torch
import torch.distributed as dist
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
deepspeed.init_distributed("gloo", dist_init_required=False, auto_mpi_discovery=False, verbose=False)
from tests.training.test_memory import Alive, WORKER_TRUNK as trunk
from trainers.budget import shape_of
from trainers.fit.memory import zero_section
from trainers.models.transformer import build

model, vocab_size, seq_len, _ = shape_of(trunk)
for stage in range(4):
    alive = Alive()
    with alive:
        net = build(model, vocab_size, seq_len, 0)
        matrices = [p for p in net.parameters() if p.ndim > 1]
        groups = [{"params": matrices}, {"params": [p for p in net.parameters() if p.ndim < 2]}]
        config = {
            "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
            "steps_per_print": 10**12, "zero_optimization": zero_section(trunk, stage, False),
            "zero_allow_untested_optimizer": True,
        }
        adamw = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        engine, *_ = deepspeed.initialize(model=net, optimizer=adamw, dist_init_required=False, config=config)
        tokens, mask = torch.randint(0, vocab_size, (2, seq_len + 1)), torch.ones(2, seq_len, dtype=torch.bool)
        for step in range(2):
            alive.peak = 0
            for turn in range(2):
                engine.set_gradient_accumulation_boundary(turn == 1)
                loss = torch.nn.functional.cross_entropy(engine(tokens[:, :-1], mask), tokens[:, 1:][mask])
                engine.backward(loss)
            engine.step()
    if rank == 0:
        print("peak", stage, alive.peak, flush=True)
    engine.destroy()
"""
WORKER_TRUNK = trunk_of(model=model_of(n_layers=4, d_model=128, d_mlp=512), batch_size=8)


def test_two_workers_hold_what_is_estimated_at_every_zero_stage_and_no_more(tmp_path):
    """Whatever is alive at the worst moment of the second step, on the CPU; a branch and its copies are not looked at."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=900)[0] for worker in workers]  # they import this file, not conftest
    peaks = {int(line.split()[1]): int(line.split()[2]) for line in said[0].splitlines() if line.startswith("peak ")}
    assert peaks.keys() == {0, 1, 2, 3}, said
    for stage, peak in peaks.items():
        need = needs(WORKER_TRUNK, 2, How(stage, 2, False, False))
        stays = need.state.device - need.state.left
        estimate = stays + max(need.activations + need.gathered, need.update)
        assert 0.8 * estimate <= peak <= 1.01 * estimate, (stage, peak, estimate)


@pytest.mark.parametrize("workers", [1, 2, 64])
@pytest.mark.parametrize("n_params", [10**6, 10**9])
def test_zero_2_is_what_deepspeed_estimates_but_for_weights_of_four_bytes(n_params, workers):
    """Its weights have 2 bytes instead of 4, and its gradients 2 more, shared out, beside 4."""
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    _, theirs = estimate_zero2_model_states_mem_needs(n_params, 1, workers, cpu_offload=False)
    ours = state_bytes(n_params, workers, 2).device
    assert ours == pytest.approx(theirs + 2 * n_params - 2 * n_params / workers, rel=1e-5)
    assert theirs * (1 - 1e-5) <= ours <= 2 * theirs


@pytest.mark.parametrize("workers", [1, 2, 64])
@pytest.mark.parametrize("n_params", [10**6, 10**9])
def test_zero_3_is_a_ninth_more_than_deepspeed_estimates_before_anything_is_gathered(n_params, workers):
    """20 bytes a parameter of a share, as measured above, for 18: weights of 4 instead of 2, gradients of 4 instead of 2 + 4,
    and the copy and moments of 12 alike."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    _, theirs, _ = estimate_zero3_model_states_mem_needs(n_params, 0, 1, workers, cpu_offload=False)
    ours = state_bytes(n_params, workers, 3).device
    assert ours == pytest.approx(theirs * 20 / 18, rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_leaves_weights_and_gradients_and_the_host_takes_no_more_than_deepspeed_says(stage):
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    n_params, workers = 124 * 10**6, 4
    here, away = state_bytes(n_params, workers, stage), state_bytes(n_params, workers, stage, offload=True)
    assert away.device == here.weights + here.gradients
    host, _ = estimate_zero2_model_states_mem_needs(n_params, workers, 1)
    assert workers * away.host <= host


@given(st.integers(1, 10**9), st.integers(1, 512))
def test_a_higher_stage_never_holds_more_but_for_the_copy_that_sharing_brings(n_params, workers):
    held = [state_bytes(n_params, workers, stage).device for stage in range(4)]
    assert held[1] >= held[2] >= held[3]
    assert held[1] <= held[0]


# The choice ----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(list(PRESETS)),
    st.sampled_from([1, 2, 4, 8, 64]),
    st.floats(0.05, 100),
    st.sampled_from(["fp32", "bf16"]),
    st.sampled_from([48, 64]),
)
def test_whatever_is_chosen_keeps_the_batch_and_fits(size, workers, device_gb, precision, batch_size):
    trunk, device = trunk_of(size, batch_size), int(device_gb * GB)
    if batch_size % workers:
        with pytest.raises(ValueError, match="cannot be shared by 64 workers; 1, 2, 3, 4"):
            fit(trunk, workers, device, precision)
        return
    try:
        found = fit(trunk, workers, device, precision)
    except DoesNotFit:
        least = How(3 if workers > 1 else 1, 1, True, True)
        assert needs(trunk, workers, least, precision).device > (1 - FREE_SHARE) * device - 1
        return
    assert workers * found.micro_batch * found.accumulation == batch_size
    how = How(found.zero_stage, found.micro_batch, found.recompute, found.offload)
    assert found.device_bytes == needs(trunk, workers, how, precision).device <= (1 - FREE_SHARE) * device
    assert workers > 1 or found.zero_stage == 0 or found.offload
    if found.micro_batch < batch_size // workers:  # the next larger turn does not fit
        larger = next(m for m in range(found.micro_batch + 1, 65) if (batch_size // workers) % m == 0)
        assert needs(trunk, workers, how._replace(micro_batch=larger), precision).device > (1 - FREE_SHARE) * device
    cheaper = found.zero_stage and not found.offload and not found.recompute
    if cheaper:
        with pytest.raises(DoesNotFit):
            fit(trunk, workers, device, precision, zero_stage=found.zero_stage - 1, recompute=False, offload=False)


def test_without_a_limit_the_share_is_one_turn_at_stage_0():
    found = fit(trunk_of(batch_size=64), 4, None)
    assert (found.zero_stage, found.micro_batch, found.accumulation) == (0, 16, 1)
    assert not (found.recompute or found.offload)


def test_less_memory_is_answered_in_order_of_cost():
    """Stages rise until none fits; then recomputation, then offload; and never back."""
    trunk = trunk_of("350m", 64)
    found, device = [], 40 * GB
    while True:
        try:
            found.append(fit(trunk, 8, device))
        except DoesNotFit:
            break
        device = int(device * 0.97)
    ways = [(one.offload, one.recompute, one.zero_stage) for one in found]
    assert ways == sorted(ways)
    assert {stage for _, _, stage in ways} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "given", [{"zero_stage": 3}, {"offload": True, "micro_batch": 4}, {"recompute": True}], ids=str
)
def test_what_is_given_is_kept(given):
    found = fit(trunk_of(), 4, 80 * GB, **given)
    assert {key: getattr(found, key) for key in given} == given
    assert 4 * found.micro_batch * found.accumulation == 64


def test_where_all_is_given_nothing_is_refused_but_it_is_said():
    found = fit(trunk_of("350m"), 1, GB, zero_stage=0, micro_batch=64, recompute=False, offload=False)
    assert "too much" in found.why
    with pytest.raises(DoesNotFit):
        fit(trunk_of("350m"), 1, GB, zero_stage=0, micro_batch=64)


def test_the_precision_of_the_trunk_counts_where_none_is_given():
    training = {"batch_size": 64, "precision": "bf16"}
    half, full = trunk_of("1.4m", training=training), trunk_of("1.4m")
    assert fit(half, 1, None).device_bytes == fit(full, 1, None, "bf16").device_bytes
    assert fit(half, 1, None, "fp32").device_bytes == fit(full, 1, None).device_bytes


def test_a_refusal_names_a_number_of_workers_and_a_size_of_device_that_are_enough():
    trunk, device = trunk_of("350m"), int(2.8 * GB)
    with pytest.raises(DoesNotFit, match=r"302\.1 million parameters do not fit 1 worker of 2\.8 GB") as refusal:
        fit(trunk, 1, device)
    said = str(refusal.value)
    assert fit(trunk, int(said.split("What would help: ")[1].split(" workers")[0]), device)
    assert fit(trunk, 1, int(float(said.split("devices of ")[1].split(" GB")[0]) * GB))


def test_a_refusal_advises_half_precision_only_where_it_is_enough():
    for device in (GB, 2 * GB, int(2.8 * GB)):
        with pytest.raises(DoesNotFit) as refusal:
            fit(trunk_of("350m"), 1, device)
        try:
            fit(trunk_of("350m"), 1, device, "bf16")
            enough = True
        except DoesNotFit:
            enough = False
        assert ("bf16" in str(refusal.value)) == enough


def test_a_device_of_the_size_that_a_refusal_names_is_enough():
    with pytest.raises(DoesNotFit) as refusal:
        fit(trunk_of("350m"), 1, GB)
    named = float(str(refusal.value).split("devices of ")[1].split(" GB")[0])
    assert fit(trunk_of("350m"), 1, int(named * GB))


def test_a_batch_that_cannot_be_shared_names_the_workers_that_can():
    with pytest.raises(ValueError, match="12 sequences cannot be shared by 5 workers; 1, 2, 3, 4, 6, 12 can"):
        fit(trunk_of(batch_size=12), 5, None)
    with pytest.raises(
        ValueError, match="micro_batch 4 does not divide a worker's share of 6 sequences; 1, 2, 3, 6 do"
    ):
        fit(trunk_of(batch_size=12), 2, None, micro_batch=4)
    with pytest.raises(ValueError, match="offload needs ZeRO 1"):
        fit(trunk_of(), 1, None, zero_stage=0, offload=True)


def test_the_fewest_workers_are_those_below_which_it_fits_with_offload_at_best():
    trunk = trunk_of("350m", 48)
    for device in (2 * GB, 3 * GB, 4 * GB, 8 * GB, 80 * GB):
        found = workers_needed(trunk, device, 48)
        assert 48 % found == 0
        assert not fit(trunk, found, device, offload=False).offload
        for fewer in (w for w in range(1, found) if 48 % w == 0):
            with pytest.raises(DoesNotFit):
                fit(trunk, fewer, device, offload=False)
    assert workers_needed(trunk, None, 48) == 1
    assert workers_needed(trunk, 8 * GB, 1) == 1  # with offload: there are no more workers
    with pytest.raises(DoesNotFit):
        workers_needed(trunk, GB // 10, 48)


def test_zero_is_configured_as_the_estimate_assumes():
    for stage in (1, 2, 3):
        section, away = (zero_section(trunk_of(), stage, offload) for offload in (False, True))
        assert shape_of(trunk_of()).largest_layer <= section["reduce_bucket_size"] <= 50_000_000
        assert "offload_optimizer" in away and "offload_optimizer" not in section


# Running out of memory -----------------------------------------------------------------------------------------------


def test_halving_keeps_the_batch_and_ends_at_an_odd_number():
    place: Place | None = Place()
    turns = []
    while place is not None:
        micro_batch, n_turns = shares(48, 4, place.micro_batch)
        assert 4 * micro_batch * n_turns == 48 and place.halvings == len(turns)
        turns.append(micro_batch)
        place = halved(place, 48, 4)
    assert turns == [12, 6, 3]


TIGHT = """
import json, resource, sys
from pathlib import Path
from trainers.budget import flops_per_step
from trainers.fit import memory
from trainers.fit.place import Place
from trainers.spec import TrunkSpec
from trainers.train import run_trunk

def trunk_of(batch_size):
    return TrunkSpec.model_validate({
        "family": {"name": "cipher", "n_symbols": 16, "n_pairs": 20}, "arm": "answer", "n_tasks": 8, "replicate": 0,
        "training": {"batch_size": batch_size}, "evaluation": {"first_flops": 1e6, "n_sequences": 4, "points_per_decade": 1},
    })

def run(trunk, place, told):
    asked = iter([False, False, True])
    run_trunk(trunk, [60.0 * flops_per_step(trunk)], place, told.extend, lambda: next(asked))

run(trunk_of(4), Place(), [])  # everything is loaded
trunk, room = trunk_of(1536), int(sys.argv[1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
tried = []
def at(place):
    tried.append((place.micro_batch, place.halvings))
    run(trunk, place, [])
memory.with_less(at, Place(), 1536, 1)
print(json.dumps(tried))
"""


def test_a_trunk_that_runs_out_of_memory_is_run_once_more_with_half_the_micro_batch():
    """For real: a process may take half as much again as half the batch needs, as estimated.

    Its allocator is told to give back what is freed: left alone it keeps some of it, and a limit counts what is kept.
    """
    trunk = trunk_of("0.1m", 1536, family={"name": "cipher", "n_symbols": 16, "n_pairs": 20})
    room = int(1.5 * shape_of(trunk).activation_bytes(768))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", TIGHT, str(room)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert found.stdout.splitlines()[-1:] == ["[[null, 0], [768, 1]]"], found.stderr


def test_what_is_no_lack_of_memory_is_not_tried_again_nor_a_second_lack():
    tried: list[Place] = []

    def fail(with_what: Exception) -> Callable[[Place], None]:
        def run(place: Place) -> None:
            tried.append(place)
            raise with_what

        return run

    with pytest.raises(ValueError, match="other"):
        memory.with_less(fail(ValueError("other")), Place(), 8, 1)
    assert tried == [Place()]
    with pytest.raises(torch.OutOfMemoryError):
        memory.with_less(fail(torch.OutOfMemoryError("CUDA out of memory")), Place(), 8, 2)
    assert [(p.micro_batch, p.halvings) for p in tried] == [(None, 0), (None, 0), (2, 1)]
    with pytest.raises(torch.OutOfMemoryError):
        memory.with_less(fail(torch.OutOfMemoryError("CUDA out of memory")), Place(), 3, 1)
    assert len(tried) == 4  # three sequences cannot be halved


def test_words_of_a_lack_of_memory_are_recognised_and_others_are_not():
    text = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert is_out_of_memory(torch.OutOfMemoryError(text))
    assert is_out_of_memory(RuntimeError(f"RayTaskError(OutOfMemoryError): {text}"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(Exception("worker 3: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    assert not is_out_of_memory(ValueError("memory")) and not is_out_of_memory(OSError(28, "No space left"))
