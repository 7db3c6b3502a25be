"""The place of a trunk: its machine, its workers and its placement on them.

A place may change the rounding of a result, and nothing else. No torch here: plans and studies use places too.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from trainers.records import Count, Index, Limit, NotNegative, Positive, Record


class Fitting(Record):
    """Placement of trunks, as a study may give it. Fields left out are chosen so that a trunk fits (`fit/memory.py`)."""

    workers: Annotated[Count | None, Limit(1e6)] = None
    """Workers that share each batch. Left out: the fewest on which the trunk fits."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """ZeRO stage: 0 partitions nothing between the workers, 1 the moments, 2 also gradients, 3 also weights."""
    micro_batch: Annotated[Count | None, Limit(1e6)] = None
    """Sequences that a worker processes at once, in one gradient accumulation step."""
    recompute: bool | None = None
    """Activation checkpointing: keep only each block's input for the backward pass, and compute the rest again."""
    offload: bool | None = None
    """Keep the optimiser's state in the host's memory."""
    compiled: bool | None = None
    """Compile the blocks. Left out: they are compiled on a GPU if the model is large enough to gain from it."""


class Place(Record):
    """Device, placement and output folders of a trunk. Nothing here enters a fingerprint.

    Every rank gets the same place. The number of workers is no part of it: the code that starts the workers knows it.
    """

    device: str = "cpu"
    """`cpu`, `cuda`, or one of several GPUs: `cuda:1`."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch on the CPU, one per slot. Results are equal to the bit only for equal numbers of threads."""
    checkpoint_folder: str | None = None
    """Folder of this trunk's checkpoints: a path, or a URI that pyarrow.fs knows. None: no checkpoints are written."""
    checkpoint_every_seconds: NotNegative = 30.0
    """Seconds between checkpoints. A killed run loses about that much work. 0 saves after every step.

    Slow saves are made less often (`train.SAVES_SHARE`). Saving the quickstart's model takes about 10 ms (see `make bench`)."""
    data_folder: str | None = None
    """Folder or URI of prepared tables, tokenizers and scorers, each in a folder named by its digest. A worker copies what lies
    behind a URI to its disk once. None: the family needs none."""
    weights_folder: str | None = None
    """Folder for the final weights of each trial, one safetensors file per trial. None: they are not kept."""
    starts_folder: str | None = None
    """Folder or URI of the weights with which other trunks begin (`TrunkSpec.start`), seen by all machines. A trunk with a start
    reads it. None: nobody begins with them."""
    starts: tuple[Positive, ...] = ()
    """Budgets of this trunk whose trials are donors: their final weights are written to `starts_folder`."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """ZeRO stage (Rajbhandari et al. 2020): 0 partitions nothing, 1 the moments, 2 also gradients, 3 also weights."""
    micro_batch: Count | None = None
    """Sequences per gradient accumulation step of a worker. None: its whole share of the batch, in one step."""
    recompute: bool = False
    """Activation checkpointing: keep only each block's input for the backward pass, and compute the rest again."""
    offload: bool = False
    """Keep the optimiser's state in the host's memory; needs a ZeRO stage of at least 1."""
    halvings: Index = 0
    """How often the micro-batch was halved because memory ran out. Each trial's record holds this number."""
    compiled: bool = False
    """Compile the blocks (torch.compile). Not with ZeRO 3: its hooks inside a block would break every graph.

    Compiled code stays in the machine's cache for later trials ($TORCHINDUCTOR_CACHE_DIR, else under /tmp)."""


def halved(place: Place, batch_size: int, workers: int) -> Place | None:
    """The same place with half the micro-batch and so twice the accumulation steps; None if the micro-batch is odd.

    Raises ValueError if workers or micro-batches cannot share the batch equally.
    """
    micro_batch, _ = shares(batch_size, workers, place.micro_batch)
    if micro_batch % 2:
        return None
    return place.model_copy(update={"micro_batch": micro_batch // 2, "halvings": place.halvings + 1})


def shares(batch_size: int, world: int, micro_batch: int | None) -> tuple[int, int]:
    """A worker's share of the global batch, as (micro-batch, gradient accumulation steps). `world` is the number of workers.

    Without a micro-batch the whole share is one. Raises ValueError if workers or micro-batches cannot share it equally.
    """
    if world < 1 or batch_size % world:
        raise ValueError(
            f"a batch of {batch_size} sequences cannot be shared by {world} workers; {_divisors_text(batch_size)} can"
        )
    share = batch_size // world
    micro = share if micro_batch is None else micro_batch
    if micro < 1 or share % micro:
        raise ValueError(
            f"micro_batch {micro} does not divide a worker's share of {share} sequences; {_divisors_text(share)} do"
        )
    return micro, share // micro


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return low + [number // k for k in reversed(low) if k * k != number]


def _divisors_text(number: int) -> str:
    """The first twelve divisors of a number for a message."""
    known = divisors(number)
    return ", ".join(str(k) for k in known[:12]) + (" ..." if len(known) > 12 else "")
