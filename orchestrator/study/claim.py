"""The primary claim as a study declares it: what is claimed, where, and in which range."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainers.records import Count, Positive, Record

RETIRED_QUANTITY = "memory"
"""A quantity that studies may have claimed and no new one can."""
RETIRED_VERDICT = "metric artefact"
"""A verdict that studies may have claimed and no new one can."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Primary(Record):
    """The one claim of a study, declared before it runs and tested without correction; the others are corrected for number."""

    what: Literal[
        "k_ability",
        "k_memory",
        "drift_ability",
        "drift_memory",
        "compute_to_skill",
        "crossover",
        "overtakes",
        "emergence",
        "accuracy",
        "ability",
        "memory",
        "change_accuracy",
        "change_ability",
    ]
    """The quantity: `k_*` the number of tasks at a boundary (at `compute_flops`), `drift_*` its doublings per doubling of
    compute, `compute_to_skill` and `crossover` (of `arm` by `against`) the FLOPs at `n_tasks`, `overtakes` the FLOPs from which on `arm`, a generalist, is ahead of the
    specialists of its domains as they were at `from_flops`, or at their best, `emergence` the verdict along
    the axis that is not given, `change_*` what is gained from the budget `from_flops` to `compute_flops` in the same replicates, the
    others a mean over replicates at a cell. `memory` is read in studies that have run, and refused in new ones."""
    arm: str | None = None
    """Arm, or the name of a variant; left out: the first."""
    against: str | None = None
    """The arm that overtakes (`crossover` only)."""
    skill: str | None = None
    """Skill; left out: the headline skill. Not for memory, which has none. For `overtakes` a domain; left out: their mean."""
    n_tasks: Count | None = None
    """Number of training tasks, for what is read at one (not `k_*`, `drift_*`)."""
    compute_flops: Positive | None = None
    """Budget, for what is read at one (`k_*` and means; left out: the largest. `emergence` along tasks)."""
    from_flops: Positive | None = None
    """The smaller budget of a `change_*`; for `overtakes` what the specialists had spent, left out: whatever was best for each."""
    lo: Finite | None = None
    """The claim: not below this."""
    hi: Finite | None = None
    """The claim: not above this."""
    verdict: Literal["break", "smooth", "metric artefact"] | None = None
    """The claim (`emergence` only): break or smooth. `metric artefact` is read in studies that have run, and refused in new ones."""
