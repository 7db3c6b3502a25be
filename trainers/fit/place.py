"""Where and how a trunk runs, none of which may change what a result means: machine, workers, and how it is fitted to them.

No torch here: a plan and a study speak of places too.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from trainers.records import Count, Index, Limit, NotNegative, Record


class Fitting(Record):
    """How trials are laid on workers. Left out, each is chosen by what fits (`trainers/fit/memory.py`)."""

    workers: Annotated[Count | None, Limit(1e6)] = None
    """Workers that share each batch; left out: as few as it fits on."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """What ZeRO shares out between them: 0 nothing, 1 the moments, 2 gradients, 3 weights too."""
    micro_batch: Annotated[Count | None, Limit(1e6)] = None
    """Sequences that a worker takes at once."""
    recompute: bool | None = None
    """Keep only each block's input for the backward pass, and compute the rest again."""
    offload: bool | None = None
    """Keep the optimiser's state in the host's memory."""
    compiled: bool | None = None
    """Compile the blocks; left out: on a GPU, where it pays."""


class Place(Record):
    """Where a trunk runs. Nothing here enters a fingerprint. Workers are counted where they are started: every rank is given
    the same place."""

    device: str = "cpu"
    """`cpu`, `cuda`, or one of several: `cuda:1`."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch on the CPU; one a slot, because results are promised to the bit only for the same number."""
    checkpoint_folder: str | None = None
    """Where this trunk's checkpoints live, a folder or a URI that pyarrow.fs knows; none are written without it."""
    checkpoint_every_seconds: NotNegative = 30.0
    """What a kill may cost; 0 saves after every step. Saving the quickstart's model takes about 10 ms (measure: `make bench`)."""
    weights_folder: str | None = None
    """Where the weights that a trial ends with are kept, as safetensors, a file each; none are without it."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What ZeRO shares out between workers (Rajbhandari et al. 2020): 0 nothing, 1 the moments, 2 gradients, 3 weights too."""
    micro_batch: Count | None = None
    """Sequences that a worker takes at once; it takes as many turns as its share of the batch needs. None: its whole share."""
    recompute: bool = False
    """Keep only each block's input for the backward pass, and compute the rest again."""
    offload: bool = False
    """Keep the optimiser's state in the host's memory; needs a ZeRO stage of at least 1."""
    halvings: Index = 0
    """How often the micro-batch was halved because memory ran out; told with each trial."""
    compiled: bool = False
    """Compile the blocks (torch.compile). Not with ZeRO 3, whose hooks inside a block would break every graph. What was
    compiled stays in a cache of the machine for all trials to come ($TORCHINDUCTOR_CACHE_DIR, else under /tmp)."""


def halved(place: Place, batch_size: int, workers: int) -> Place | None:
    """The same place with half as many sequences at once, in twice the turns; None where that does not go."""
    micro_batch, _ = shares(batch_size, workers, place.micro_batch)
    if micro_batch % 2:
        return None
    return place.model_copy(update={"micro_batch": micro_batch // 2, "halvings": place.halvings + 1})


def shares(batch_size: int, world: int, micro_batch: int | None) -> tuple[int, int]:
    """How a worker takes its share of the global batch: sequences a turn, and turns. Raises ValueError if it does not add up."""
    if world < 1 or batch_size % world:
        raise ValueError(
            f"a batch of {batch_size} sequences cannot be shared by {world} workers; {_able(batch_size)} can"
        )
    share = batch_size // world
    turn = share if micro_batch is None else micro_batch
    if turn < 1 or share % turn:
        raise ValueError(f"micro_batch {turn} does not divide a worker's share of {share} sequences; {_able(share)} do")
    return turn, share // turn


def divisors(n: int) -> list[int]:
    """All of them, ascending."""
    low = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return low + [n // k for k in reversed(low) if k * k != n]


def _able(n: int) -> str:
    found = divisors(n)
    return ", ".join(str(k) for k in found[:12]) + (" ..." if len(found) > 12 else "")
