"""Memory of a trunk on each device, and the placement that makes it fit. No torch here.

    fit(trunk, workers=8, device_bytes=80 * 10**9)     # Fit: the placement, and the reason as one sentence for a plan

The means are ZeRO, gradient accumulation, recomputation and offload. Memory is estimated. Estimates should rather be too large.
Tests compare it with measurements on the CPU. The global batch belongs to the spec and never changes. Each of W workers takes
its share in equal gradient accumulation steps: B = W x micro_batch x accumulation. GB are 10^9 bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from trainers.budget import shape_of
from trainers.fit.place import Place, divisors, halved, shares
from trainers.records import Count, Index, Record
from trainers.shapes import Precision, Shape
from trainers.spec import TrunkSpec

FREE_SHARE = 0.1
"""Share of a device that stays free for its context, the communication library and gaps between tensors. Assumed."""
BUCKET_ELEMENTS = 50_000_000
"""Most gradients that ZeRO reduces at once: 0.2 GB. DeepSpeed's default of 500 million takes 2 GB for every model."""
EVALUATION_SEQUENCES = 256
"""Sequences that an evaluation reads at once if the place sets no micro-batch (`engine/evaluation.py`)."""


class DoesNotFit(ValueError):
    """No allowed ZeRO stage, micro-batch, recomputation or offload makes the trunk fit the device."""


# Training state --------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Bytes that a run holds from its first step to its last: on each device, except `host`."""

    weights: int
    """Parameters in fp32."""
    gradients: int
    """Gradients in fp32."""
    partition: int
    """ZeRO's copy of the worker's share of the weights, which it updates. It is fp32 like the weights."""
    moments: int
    """AdamW's two moments of each parameter, in fp32."""
    left: int
    """Weights and moments of the trunk at the branch point, during a branch. With ZeRO they are on the host."""
    host: int
    """Host memory per worker that `offload` uses. `left` and the memory of a save are not included."""

    @property
    def device(self) -> int:
        """Total on the device."""
        return self.weights + self.gradients + self.partition + self.moments + self.left


def state_bytes(n_params: int, workers: int = 1, zero_stage: int = 0, offload: bool = False) -> State:
    """The training state: 4 bytes per parameter for weights, 4 for gradients, 8 for AdamW's moments. Autocast keeps all fp32.

    ZeRO partitions them as in Rajbhandari et al. 2020 (arXiv 1910.02054, figure 1). DeepSpeed 0.19 adds a copy of the worker's
    share of the weights, though they are fp32 already: `single_partition_of_fp32_groups` at stages 1 and 2,
    `fp32_partitioned_groups_flat` at stage 3. (At stage 3 it would share them if the devices compared equal. But it compares a
    name with a device.) With offload the host holds that copy, moments, gradients and a buffer to send weights back: 20 bytes
    for each parameter of the share.

    DeepSpeed's estimators differ because they assume 16-bit weights. At stage 2 they have 2 P + 18 P/W (2 weights,
    2 + 4 gradients, 4 copy, 8 moments); here it is 4 P + 16 P/W. At stage 3 they have 18 P/W plus 4 bytes for each parameter of
    the largest layer; here it is 20 P/W plus gathered weights (`Needs.gathered`).
    """
    whole = 4 * n_params
    share = -(-whole // workers)
    weights = share if zero_stage == 3 else whole
    gradients = share if zero_stage >= 2 else whole
    partition = share if zero_stage else 0
    moments = 2 * (share if zero_stage else whole)
    if offload:
        return State(weights, gradients, 0, 0, 0, 5 * share)
    return State(weights, gradients, partition, moments, 0 if zero_stage else 3 * whole, 0)


# All together ----------------------------------------------------------------------------------------------------


class How(NamedTuple):
    """One complete placement of a trunk on its workers. The fields mean the same as in `Place`."""

    zero_stage: int
    micro_batch: int
    recompute: bool
    offload: bool


class Given(NamedTuple):
    """The fields of a placement that are given. None: the field is to be chosen."""

    zero_stage: int | None = None
    micro_batch: int | None = None
    recompute: bool | None = None
    offload: bool | None = None


class Needs(NamedTuple):
    """Estimated bytes on each device. `state` is held during the whole run. The others are peaks at different times."""

    state: State
    activations: int
    """Training: tensors that autograd keeps, and temporary ones."""
    gathered: int
    """Training and evaluation: buckets for the reduction of gradients, and weights that ZeRO 3 gathers."""
    update: int
    """Optimizer step: flattened gradients and ZeRO's buckets."""
    saving: int
    """Checkpoint: one more copy of weights and moments. 0 with ZeRO, whose copy is in the host's memory."""
    evaluation: int
    """Evaluation: a forward pass without gradients. Arm `reward`: or the cache of the answers that are sampled at once."""
    start: int
    """Start: all weights before ZeRO 3 partitions them. (Stages 1 and 2 flatten them through the host if space is short.)"""
    copies: int = 0
    """Arm `reward`, held during the whole run: a copy of the start model, and under ZeRO 3 a whole model to sample from."""

    @property
    def device(self) -> int:
        """Peak of a run: the largest sum of the bytes that are held at the same time."""
        training, evaluating = self.activations + self.gathered, self.evaluation + self.gathered
        held = self.state.device + self.copies
        return max(held + max(training, evaluating, self.update, self.saving), self.start)


Tried = tuple[How, Needs]
"""A placement and the memory that it needs."""


def bucket_elements(shape: Shape) -> int:
    """Number of gradients that ZeRO reduces at once: all, but at most BUCKET_ELEMENTS, and at least the largest layer's."""
    most = max(min(shape.n_parameters, BUCKET_ELEMENTS), shape.largest_layer)
    return most + most % 2  # DeepSpeed insists on an even number


def zero_section(trunk: TrunkSpec, zero_stage: int, offload: bool) -> dict[str, Any]:
    """The section `zero_optimization` of DeepSpeed's configuration. The estimates of this module assume these values.

    With DeepSpeed's defaults, ZeRO 1 to 3 take a bucket of 2 GB. ZeRO 3 also keeps weights gathered if they are used again
    within a billion parameters: all the weights of every preset.
    """
    section: dict[str, Any] = {"stage": zero_stage}
    if not zero_stage:
        return section
    shape = shape_of(trunk)
    bucket, layer = bucket_elements(shape), shape.largest_layer
    section |= {"contiguous_gradients": True, "overlap_comm": False}
    section |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if zero_stage == 3:
        section |= {"stage3_max_live_parameters": 2 * layer, "stage3_prefetch_bucket_size": layer}
        section |= {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": shape.small_below}
    return section | ({"offload_optimizer": {"device": "cpu"}} if offload else {})


def needs(trunk: TrunkSpec, workers: int, how: How, precision: Precision | None = None) -> Needs:
    """The memory that a trunk needs in one placement. `precision` is the trunk's own if left out."""
    precision = precision or precision_of(trunk)
    shape = shape_of(trunk)
    n_params = shape.n_parameters
    gathered, update = _beside_the_state(trunk, workers, how, precision)
    return Needs(
        state=state_bytes(n_params, workers, how.zero_stage, how.offload),
        activations=shape.activation_bytes(how.micro_batch, precision, how.recompute),
        gathered=gathered,
        update=update,
        saving=0 if how.zero_stage else 12 * n_params,
        evaluation=max(
            _evaluation_bytes(trunk, workers, precision, how.micro_batch),
            _sampling_bytes(trunk, precision, how.micro_batch),
        ),
        start=4 * n_params + 4 * -(-n_params // workers) if how.zero_stage == 3 else 0,
        copies=4 * n_params * ((trunk.start is not None) + (how.zero_stage == 3)) if trunk.reward else 0,
    )


def _beside_the_state(trunk: TrunkSpec, workers: int, how: How, precision: Precision) -> tuple[int, int]:
    """Bytes of buffers for gradients and gathered weights, as (in training, at the optimizer step).

    Tests measure them with two workers.
    """
    shape = shape_of(trunk)
    n_params = shape.n_parameters
    if how.zero_stage == 0:
        return 0, 4 * n_params if workers > 1 else 0  # the gradients once more, to be reduced
    kinds = 2 if precision == "bf16" else 1  # kinds of gradients, each with its bucket
    buckets, share = kinds * 4 * bucket_elements(shape), 4 * -(-n_params // workers)
    training, update = buckets, buckets + (0 if how.offload else share)
    if how.zero_stage == 2 and trunk.training.batch_size > workers * how.micro_batch:
        training += share  # new gradients beside the accumulated ones
    if how.zero_stage == 3:
        training, update = training + buckets + share, update + buckets + share  # the rearranged bucket, and its sum
        training += 4 * 4 * shape.largest_layer  # two in use, one ahead, the gradient of one
        training += 4 * shape.n_small_parameters  # vectors, too small to be partitioned
    return training, update


def _evaluation_bytes(trunk: TrunkSpec, workers: int, precision: Precision, micro_batch: int) -> int:
    """Bytes of an evaluation: a block or the log-probabilities of the sequences that are read at once, whichever is more.

    If the family compares distributions, the log-probabilities of the whole suite are added, as if it were one item set. No
    test measures this.
    """
    shape = shape_of(trunk)
    family: Any = trunk.family
    n_here = -(-family.suite_size(trunk.request) // workers)
    a_block = shape._replace(seq_len=1).block_bytes(1, precision)
    log_probabilities = (3 * 4 + 8) * shape.vocab_size  # 8: a copy in float64
    token = max(a_block, log_probabilities) + shape.token_bytes
    kept = 2 * 4 * n_here * shape.vocab_size if family.has_distances else 0
    return shape.seq_len * (min(micro_batch, n_here) * token + kept)


def _sampling_bytes(trunk: TrunkSpec, precision: Precision, micro_batch: int) -> int:
    """Bytes of sampling `micro_batch` answers at once in arm `reward`, else 0: keys, values, inputs of convolutions, logits.

    A cache that drops ended answers is copied, and so counts twice. No test measures this.
    """
    if trunk.reward is None:
        return 0
    shape, w = shape_of(trunk), 4 if precision == "fp32" else 2
    model = shape.model
    position = model.n_layers * model.d_model * (2 * w + (4 if model.conv_kernel else 0))
    return micro_batch * (2 * shape.seq_len * position + 3 * 8 * shape.vocab_size)


def precision_of(trunk: TrunkSpec) -> Precision:
    """Precision of a trunk's matmuls (`training.precision`)."""
    return trunk.training.precision


# The choice ------------------------------------------------------------------------------------------------------


class Fit(Record):
    """The chosen placement of a trunk on its workers."""

    zero_stage: Index
    """ZeRO stage: 0 partitions nothing, 1 moments, 2 also gradients, 3 also weights."""
    micro_batch: Count
    """Sequences that a worker processes at once."""
    accumulation: Count
    """Gradient accumulation steps for a worker's share of the batch."""
    recompute: bool
    """Keep only each block's input for the backward pass."""
    offload: bool
    """Keep the optimiser's state in the host's memory."""
    device_bytes: Count
    """Estimated peak of memory on each device, in bytes."""
    why: str
    """The placement with its memory, and the memory of the next cheaper one, as one sentence for a plan."""


def fit(
    trunk: TrunkSpec,
    workers: int,
    device_bytes: int | None,
    precision: Precision | None = None,
    *,
    zero_stage: int | None = None,
    micro_batch: int | None = None,
    recompute: bool | None = None,
    offload: bool | None = None,
) -> Fit:
    """The cheapest placement of a trunk that fits on `workers` devices of `device_bytes` bytes.

    The order of cost is: the ZeRO stages from the lowest, then all stages with recomputation, then with offload. Each takes the
    largest micro-batch that fits. Values of `zero_stage` ... `offload` are kept, and those left None are chosen. If all four
    are given, the trunk is never refused.

    `device_bytes` None (a CPU) sets no limit. FREE_SHARE of a limit stays free. Raises DoesNotFit with the arithmetic if no
    placement fits. Raises ValueError for offload at stage 0, and if workers or micro-batches cannot share the batch equally.
    """
    precision = precision or precision_of(trunk)
    given = Given(zero_stage, micro_batch, recompute, offload)
    chosen, refused = _first_that_fits(trunk, workers, device_bytes, precision, given)
    if chosen is None and None in given:
        raise DoesNotFit(_refusal(trunk, workers, device_bytes or 0, precision, given, refused))
    if chosen is None:
        chosen = refused.pop()
        why = f"{_description(trunk, workers, *chosen, device_bytes)}: too much, but all of it is given"
    else:
        why = _description(trunk, workers, *chosen, device_bytes) + _instead_of(chosen[0], refused)
    return _fit(trunk, workers, *chosen, why)


def workers_needed(
    trunk: TrunkSpec, device_bytes: int | None, max_workers: int, precision: Precision | None = None
) -> int:
    """The fewest workers, up to `max_workers`, on which the trunk fits. Only numbers that share the batch equally count.

    Offload is used only if the trunk fits on no number of workers without it: sending moments to the host in every step costs
    more than another worker. Raises DoesNotFit if it fits on none, and ValueError if `max_workers` is below 1.
    """
    possible = [w for w in divisors(trunk.training.batch_size) if w <= max_workers]
    if not possible:
        raise ValueError(f"max_workers {max_workers}: a trunk needs at least one")
    for offload in (False, True):
        for workers in possible:
            try:
                fit(trunk, workers, device_bytes, precision, offload=offload)
            except DoesNotFit as refusal:
                last = refusal
            else:
                return workers
    raise last


OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
    "DefaultCPUAllocator:",
)
"""Parts of a class name or message by which a lack of memory is recognised: of torch, of CUDA's libraries, of NCCL and of torch's
allocator on the CPU."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Is this exception, or one that caused it, a lack of memory for tensors?

    Class names and messages decide (OUT_OF_MEMORY). So an error is recognised even if a library passed it on as text only.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [problem]
    while pending:
        error = pending.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        names = " ".join(kind.__name__ for kind in type(error).__mro__)
        if any(mark in f"{names} {error}" for mark in OUT_OF_MEMORY):
            return True
        pending += [error.__cause__, error.__context__]
    return False


def with_less(run: Callable[[Place], object], place: Place, batch_size: int, workers: int) -> None:
    """Call `run(place)`. If memory runs out, call it once more with half the micro-batch at the same global batch.

    The second call continues from the last checkpoint. If the micro-batch is odd or was halved before, there is no second call.
    All other exceptions of `run` are raised unchanged.
    """
    try:
        run(place)
        return
    except Exception as problem:
        smaller = halved(place, batch_size, workers) if not place.halvings and is_out_of_memory(problem) else None
        if smaller is None:
            raise
    gc.collect()  # only here, after `except`, are the failed frames gone; now free their tensors
    run(smaller)


# Parts of `fit` ----------------------------------------------------------------------------------------------------


def _usable(device_bytes: int) -> int:
    """Bytes of a device that a placement may use: all but FREE_SHARE."""
    return int((1 - FREE_SHARE) * device_bytes)


def _share(trunk: TrunkSpec, workers: int) -> int:
    """Sequences of the batch that each worker takes. Raises ValueError if the shares are not equal."""
    return shares(trunk.training.batch_size, workers, None)[0]


def _ways(
    workers: int, zero_stage: int | None, recompute: bool | None, offload: bool | None
) -> Iterator[tuple[int, bool, bool]]:
    """All (ZeRO stage, recompute, offload) that may be tried, in order of cost. Arguments that are not None are kept.

    One worker takes stage 0, or stage 1 for offload, because it has no other worker to share with.
    """
    again = (False, True) if recompute is None else (recompute,)
    ladder = [(r, False) for r in again] if not offload else []
    if offload is not False:
        ladder += [(again[-1], True)] if offload is None else [(r, True) for r in again]
    for r, away in ladder:
        stages = [zero_stage] if zero_stage is not None else [*range(4)] if workers > 1 else [0, 1]
        for stage in stages:
            if away and stage == 0:
                continue  # DeepSpeed offloads only what ZeRO manages
            if workers == 1 and zero_stage is None and stage and not away:
                continue
            yield stage, r, away


def _first_that_fits(
    trunk: TrunkSpec, workers: int, device_bytes: int | None, precision: Precision, given: Given
) -> tuple[Tried | None, list[Tried]]:
    """(The cheapest placement that fits, or None; the placements that were tried before and do not fit)."""
    share = _share(trunk, workers)
    shares(trunk.training.batch_size, workers, given.micro_batch)
    refused: list[Tried] = []
    if given.offload and given.zero_stage == 0:
        raise ValueError("offload needs ZeRO 1 or higher: at stage 0 DeepSpeed leaves the optimiser where it is")
    micros = divisors(share)[::-1] if given.micro_batch is None else [given.micro_batch]
    for stage, again, away in _ways(workers, given.zero_stage, given.recompute, given.offload):
        for micro in micros:
            tried = (how := How(stage, micro, again, away)), needs(trunk, workers, how, precision)
            if device_bytes is None or tried[1].device <= _usable(device_bytes):
                return tried, refused
            refused.append(tried)
    return None, refused


def _fit(trunk: TrunkSpec, workers: int, how: How, need: Needs, why: str) -> Fit:
    accumulation = _share(trunk, workers) // how.micro_batch
    return Fit(**how._asdict(), accumulation=accumulation, device_bytes=need.device, why=why)


def _gb(n_bytes: int) -> str:
    """Bytes in units of 10^9, with two digits: 0.31, 4.7, 92."""
    value = n_bytes / 1e9
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def _extras(how: How) -> str:
    """Words for a sentence: " with recomputation and offload", or as many of the two as the placement uses."""
    words = ["recomputation"] * how.recompute + ["offload"] * how.offload
    return f" with {' and '.join(words)}" if words else ""


def _description(trunk: TrunkSpec, workers: int, how: How, need: Needs, device_bytes: int | None) -> str:
    """The chosen placement and its memory as text: "ZeRO 2, 4 x 8 sequences: 61 of 80 GB"."""
    accumulation = _share(trunk, workers) // how.micro_batch
    chosen = f"ZeRO {how.zero_stage}{_extras(how)}, {accumulation} x {how.micro_batch} sequences"
    if device_bytes is None:
        return f"{chosen}: no limit of memory"
    host = f", and {_gb(need.state.host)} GB of the host's for each worker" if how.offload else ""
    return f"{chosen}: {_gb(need.device)} of {_gb(device_bytes)} GB{host}"


def _instead_of(how: How, refused: list[Tried]) -> str:
    """Text with the memory of the last placement that does not fit, the next cheaper one. Empty if the first one tried fits."""
    if not refused:
        return ""
    before, took = refused[-1]
    same = before._replace(micro_batch=how.micro_batch) == how
    what = f"{before.micro_batch} at once" if same else f"stage {before.zero_stage}{_extras(before)}"
    return f"; {what} would take {_gb(took.device)} GB"


def _refusal(
    trunk: TrunkSpec, workers: int, device_bytes: int, precision: Precision, given: Given, refused: list[Tried]
) -> str:
    """Message of DoesNotFit: the memory of the placement that takes least, and the changes that would make the trunk fit."""
    how, need = min(refused, key=lambda tried: tried[1].device)
    passing = need.device - need.state.device
    what = "at the start" if need.device == need.start else "of activations and other temporary tensors"
    n_params = shape_of(trunk).n_parameters

    def fits(n_workers: int, precision: Precision, given: Given = Given()) -> bool:  # noqa: B008 - a constant
        return _first_that_fits(trunk, n_workers, device_bytes, precision, given)[0] is not None

    more = next((w for w in divisors(trunk.training.batch_size) if w > workers and fits(w, precision)), None)
    advice = ["leaving open what is given"] if fits(workers, precision) else []
    advice += [f"{more} workers"] if more else []
    advice += ["precision bf16"] if precision == "fp32" and fits(workers, "bf16", given) else []
    advice += [f"devices of {_gb(int(1.05 * need.device / (1 - FREE_SHARE)))} GB", "a smaller model"]
    return (
        f"{n_params / 1e6:.4g} million parameters do not fit {_counted(workers, 'worker')} of {_gb(device_bytes)} GB, a tenth "
        f"of which stays free. At the least, with ZeRO {how.zero_stage}{_extras(how)} and "
        f"{_counted(how.micro_batch, 'sequence')} at once, a device holds {_gb(need.state.device)} GB of state and "
        f"{_gb(passing)} GB {what}: {_gb(need.device)} of {_gb(_usable(device_bytes))} GB. "
        f"What would help: {', '.join(advice[:-1])} or {advice[-1]}"
    )


def _counted(number: int, thing: str) -> str:
    """A count with its noun: 1 worker, 2 workers."""
    return f"{number} {thing}" + "s" * (number != 1)
