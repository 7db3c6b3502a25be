"""How much memory a trial takes on each device, and how it is made to fit: ZeRO, turns, recomputation, offload. No torch here.

    fit(trunk, workers=8, device_bytes=80 * 10**9)     # Fit: what to do, and why, in a sentence that a plan prints

An estimate, held to reality by tests on the CPU and meant to err upward. The global batch is science and never changes: each
of W workers takes its share of it in equal turns, B = W x micro_batch x accumulation. GB are 10^9 bytes.
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
"""Of a device, kept free: its context, what the communication library takes and the gaps between tensors. Assumed."""
BUCKET_ELEMENTS = 50_000_000
"""Gradients that ZeRO reduces at once, at most: 0.2 GB. DeepSpeed's own 500 million take 2 GB, whatever the model."""
EVALUATION_SEQUENCES = 256
"""Sequences that an evaluation reads at once where no micro-batch is planned for want of memory (`engine/evaluation.py`)."""


class DoesNotFit(ValueError):
    """A trunk that no ZeRO stage, turns, recomputation or offload get onto the device."""


# Training state --------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Bytes on each device, apart from `host`, that a run holds from its first step to its last."""

    weights: int
    gradients: int
    partition: int
    """The copy of its share of the weights that ZeRO updates, fp32 like the weights themselves."""
    moments: int
    left: int
    """Weights and moments of where the trunk was left while it is on a branch; with ZeRO they wait on the host."""
    host: int
    """Of the host's memory, a worker: what `offload` moves there. Apart from `left` and what a save takes."""

    @property
    def device(self) -> int:
        """What counts on the device."""
        return self.weights + self.gradients + self.partition + self.moments + self.left


def state_bytes(n_params: int, workers: int = 1, zero_stage: int = 0, offload: bool = False) -> State:
    """4 bytes a parameter for weights, 4 for gradients, 8 for AdamW's moments (autocast leaves them all fp32).

    Shared out as in Rajbhandari et al. 2020 (arXiv 1910.02054, figure 1), plus what DeepSpeed 0.19 adds: at stages 1 and 2
    `single_partition_of_fp32_groups`, a copy of the worker's share of the weights, though they are fp32 already; at stage 3 the
    same (`fp32_partitioned_groups_flat`; it would share them where devices compare equal, but compares a name with a device).
    Offloading, the host holds that copy, moments, gradients and a buffer to send weights back from: 20 bytes for each
    parameter of the share.

    DeepSpeed's estimators differ because they assume 16-bit weights: stage 2 is 2 P + 18 P/W there (2 weights, 2 + 4 gradients,
    4 copy, 8 moments) and 4 P + 16 P/W here; stage 3 is 18 P/W plus 4 bytes for each parameter of the largest layer, and
    20 P/W here before what is gathered (`Needs.gathered`).
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
    """A way to run a trunk on its workers."""

    zero_stage: int
    micro_batch: int
    recompute: bool
    offload: bool


class Given(NamedTuple):
    """What of it is given; None is to be chosen."""

    zero_stage: int | None = None
    micro_batch: int | None = None
    recompute: bool | None = None
    offload: bool | None = None


class Needs(NamedTuple):
    """Bytes on each device. `state` stays; of the others one peak comes after the other."""

    state: State
    activations: int
    """Training: what autograd keeps and what passes."""
    gathered: int
    """Training and exam: the buckets in which gradients are reduced, and the weights that ZeRO 3 puts together."""
    update: int
    """The optimizer step: gradients, laid flat."""
    saving: int
    """A checkpoint: one more copy of weights and moments."""
    exam: int
    """An evaluation."""
    start: int
    """All weights, before ZeRO 3 has shared them out. (Stages 1 and 2 lay them flat through the host where space is short.)"""

    @property
    def device(self) -> int:
        """The largest sum that is there at once."""
        passing = max(self.activations + self.gathered, self.update, self.saving, self.exam + self.gathered)
        return max(self.state.device + passing, self.start)


Tried = tuple[How, Needs]


def bucket_elements(shape: Shape) -> int:
    """Gradients that are reduced at once: all, BUCKET_ELEMENTS, or the largest layer if that alone is more."""
    most = max(min(shape.n_parameters, BUCKET_ELEMENTS), shape.largest_layer)
    return most + most % 2  # DeepSpeed insists on an even number


def zero_section(trunk: TrunkSpec, zero_stage: int, offload: bool) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` as the estimate takes it for granted; stage 0 shares nothing out and needs none of it.

    With its own defaults ZeRO 1 to 3 take a bucket of 2 GB, and ZeRO 3 keeps gathered what is used again within a billion
    parameters: all the weights of every model that we have a name for.
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
    """The estimate for one way of running a trunk. `precision` is the trunk's own where left out."""
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
        exam=_exam_bytes(trunk, workers, precision, how.micro_batch),
        start=4 * n_params + 4 * -(-n_params // workers) if how.zero_stage == 3 else 0,
    )


def _beside_the_state(trunk: TrunkSpec, workers: int, how: How, precision: Precision) -> tuple[int, int]:
    """Bytes for ZeRO's work while training, and at the update: measured with two workers, see the tests."""
    shape = shape_of(trunk)
    n_params = shape.n_parameters
    if how.zero_stage == 0:
        return 0, 4 * n_params if workers > 1 else 0  # the gradients once more, to be reduced
    kinds = 2 if precision == "bf16" else 1  # of gradients, each with its bucket
    buckets, share = kinds * 4 * bucket_elements(shape), 4 * -(-n_params // workers)
    training, update = buckets, buckets + (0 if how.offload else share)
    if how.zero_stage == 2 and trunk.training.batch_size > workers * how.micro_batch:
        training += share  # a turn's gradients beside those of the turns before
    if how.zero_stage == 3:
        training, update = training + buckets + share, update + buckets + share  # the bucket laid out anew, and its sum
        training += 4 * 4 * shape.largest_layer  # two in use, one ahead, the gradient of one
        training += 4 * shape.n_small_parameters  # vectors, too small to be worth sharing out
    return training, update


def _exam_bytes(trunk: TrunkSpec, workers: int, precision: Precision, micro_batch: int) -> int:
    """Of an evaluation without gradients: a block or the log-probabilities of what is read at once; and where distributions are
    compared all of them, as if the whole suite were one item set. Not held to a measurement."""
    shape = shape_of(trunk)
    family: Any = trunk.family
    n_here = -(-family.suite_size(trunk.request) // workers)
    a_block = shape._replace(seq_len=1).block_bytes(1, precision)
    token = (
        max(a_block, (3 * 4 + 8) * shape.vocab_size) + shape.token_bytes
    )  # of the log-probabilities a copy in float64
    kept = 2 * 4 * n_here * shape.vocab_size if family.has_distances else 0
    return shape.seq_len * (min(micro_batch, n_here) * token + kept)


def precision_of(trunk: TrunkSpec) -> Precision:
    """Of its matmuls, as its `training` says."""
    return trunk.training.precision


# The choice ------------------------------------------------------------------------------------------------------


class Fit(Record):
    """How a trunk runs on its workers: place, not science."""

    zero_stage: Index
    """What ZeRO shares out: 0 nothing, 1 moments, 2 gradients too, 3 weights too."""
    micro_batch: Count
    """Sequences that a worker takes at once."""
    accumulation: Count
    """Turns in which it takes its share of the batch."""
    recompute: bool
    """Keep only each block's input for the backward pass."""
    offload: bool
    """Keep the optimiser's state in the host's memory."""
    device_bytes: Count
    """Estimated need of each device."""
    why: str
    """One sentence for a plan."""


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
    """The cheapest way that fits: the lowest ZeRO stage, then with recomputation, then with offload; each in as few turns as
    fit. What is given is kept, and the rest chosen around it; with all four given there is no choice, and no refusal.

    `device_bytes` None (a CPU) sets no limit; of a limit FREE_SHARE is kept free. Raises DoesNotFit with the arithmetic, and
    ValueError for a batch that the workers or turns cannot share equally and for offload at stage 0.
    """
    precision = precision or precision_of(trunk)
    given = Given(zero_stage, micro_batch, recompute, offload)
    found, refused = _first_that_fits(trunk, workers, device_bytes, precision, given)
    if found is None and None in given:
        raise DoesNotFit(_refusal(trunk, workers, device_bytes or 0, precision, given, refused))
    if found is None:
        found = refused.pop()
        return _fit(
            trunk, workers, *found, f"{_said(trunk, workers, *found, device_bytes)}: too much, but all of it is given"
        )
    return _fit(trunk, workers, *found, _said(trunk, workers, *found, device_bytes) + _instead_of(found[0], refused))


def workers_needed(
    trunk: TrunkSpec, device_bytes: int | None, max_workers: int, precision: Precision | None = None
) -> int:
    """The fewest workers, of those that share the batch equally, on whose devices the trunk fits without offload; if no number
    up to `max_workers` does, the fewest with it, because moments that cross to the host in every step cost more than a
    worker. Raises DoesNotFit."""
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
"""As torch says it: the class of a GPU's, its text and that of the driver, and of the allocator of the CPU."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Is it, or was it caused by, a lack of memory for tensors? Told by names and texts, so that what was passed on as text by
    something else is recognised too."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [problem]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        names = " ".join(kind.__name__ for kind in type(one).__mro__)
        if any(mark in f"{names} {one}" for mark in OUT_OF_MEMORY):
            return True
        pending += [one.__cause__, one.__context__]
    return False


def with_less(run: Callable[[Place], object], place: Place, batch_size: int, workers: int) -> None:
    """`run` at this place; if memory runs out, once more with half the micro-batch at the same global batch. What has been saved
    is gone on from. Raises what `run` raises."""
    try:
        run(place)
        return
    except Exception as problem:
        smaller = halved(place, batch_size, workers) if not place.halvings and is_out_of_memory(problem) else None
        if smaller is None:
            raise
    gc.collect()  # here: the frames in which it failed have been let go of, and now the tensors that they held
    run(smaller)


# Its parts -------------------------------------------------------------------------------------------------------


def _usable(device_bytes: int) -> int:
    return int((1 - FREE_SHARE) * device_bytes)


def _share(trunk: TrunkSpec, workers: int) -> int:
    """Sequences of the batch that each worker takes. Raises ValueError."""
    return shares(trunk.training.batch_size, workers, None)[0]


def _ways(
    workers: int, zero_stage: int | None, recompute: bool | None, offload: bool | None
) -> Iterator[tuple[int, bool, bool]]:
    """(ZeRO stage, recompute, offload) in order of cost. One worker has nobody to share with: stage 0, or 1 to offload."""
    again = (False, True) if recompute is None else (recompute,)
    ladder = [(r, False) for r in again] if not offload else []
    if offload is not False:
        ladder += [(again[-1], True)] if offload is None else [(r, True) for r in again]
    for r, away in ladder:
        stages = [zero_stage] if zero_stage is not None else [*range(4)] if workers > 1 else [0, 1]
        for stage in stages:
            if away and stage == 0:
                continue  # DeepSpeed offloads what ZeRO has in hand
            if workers == 1 and zero_stage is None and stage and not away:
                continue
            yield stage, r, away


def _first_that_fits(
    trunk: TrunkSpec, workers: int, device_bytes: int | None, precision: Precision, given: Given
) -> tuple[Tried | None, list[Tried]]:
    """The cheapest way that fits, if there is one, and those tried before it."""
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
    turns = _share(trunk, workers) // how.micro_batch
    return Fit(**how._asdict(), accumulation=turns, device_bytes=need.device, why=why)


def _gb(n_bytes: int) -> str:
    """0.31, 4.7, 92: as many digits as one reads. In 10^9 bytes."""
    value = n_bytes / 1e9
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def _turns(turns: int, micro_batch: int) -> str:
    return f"{turns} x {micro_batch} sequences"


def _extras(how: How) -> str:
    words = ["recomputation"] * how.recompute + ["offload"] * how.offload
    return f" with {' and '.join(words)}" if words else ""


def _said(trunk: TrunkSpec, workers: int, how: How, need: Needs, device_bytes: int | None) -> str:
    """What was chosen, and what it takes."""
    turns = _share(trunk, workers) // how.micro_batch
    chosen = f"ZeRO {how.zero_stage}{_extras(how)}, {_turns(turns, how.micro_batch)}"
    if device_bytes is None:
        return f"{chosen}: no limit of memory"
    host = f", and {_gb(need.state.host)} GB of the host's for each worker" if how.offload else ""
    return f"{chosen}: {_gb(need.device)} of {_gb(device_bytes)} GB{host}"


def _instead_of(how: How, refused: list[Tried]) -> str:
    """What the next cheaper way would have taken, in its smallest turns."""
    if not refused:
        return ""
    before, took = refused[-1]
    same = before._replace(micro_batch=how.micro_batch) == how
    what = f"{before.micro_batch} at once" if same else f"stage {before.zero_stage}{_extras(before)}"
    return f"; {what} would take {_gb(took.device)}"


def _refusal(
    trunk: TrunkSpec, workers: int, device_bytes: int, precision: Precision, given: Given, refused: list[Tried]
) -> str:
    """The arithmetic of the way that takes least, and what would help."""
    how, need = min(refused, key=lambda tried: tried[1].device)
    passing = need.device - need.state.device
    what = "at the start" if need.device == need.start else "of activations and what else passes"
    n_params = shape_of(trunk).n_parameters

    def would_do(of: int, at: Precision, within: Given = Given()) -> bool:  # noqa: B008 - a constant
        return _first_that_fits(trunk, of, device_bytes, at, within)[0] is not None

    more = next((w for w in divisors(trunk.training.batch_size) if w > workers and would_do(w, precision)), None)
    advice = ["leaving open what is given"] if would_do(workers, precision) else []
    advice += [f"{more} workers"] if more else []
    advice += ["precision bf16"] if precision == "fp32" and would_do(workers, "bf16", given) else []
    advice += [f"devices of {_gb(int(1.05 * need.device / (1 - FREE_SHARE)))} GB", "a smaller model"]
    return (
        f"{n_params / 1e6:.4g} million parameters do not fit {_counted(workers, 'worker')} of {_gb(device_bytes)} GB, a tenth "
        f"of which stays free. At the least, with ZeRO {how.zero_stage}{_extras(how)} and "
        f"{_counted(how.micro_batch, 'sequence')} at once, a device holds {_gb(need.state.device)} GB of state and "
        f"{_gb(passing)} GB {what}: {_gb(need.device)} of {_gb(_usable(device_bytes))} GB. "
        f"What would help: {', '.join(advice[:-1])} or {advice[-1]}"
    )


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}" + "s" * (n != 1)
