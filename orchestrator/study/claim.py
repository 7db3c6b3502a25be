"""The primary claim as a study declares it: a quantity, the condition, tasks and budget at which it is read, and a range."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainers.records import Count, Positive, Record

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is neither infinite nor NaN."""


class Primary(Record):
    """The one claim of a study that is declared before it runs and tested without correction."""

    what: Literal[
        "k_ability",
        "k_memory",
        "drift_ability",
        "drift_memory",
        "along_ability",
        "along_long_answers",
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
    """The quantity:

    - `k_ability`, `k_memory`: the number of tasks at a boundary, at `compute_flops`
    - `drift_*`: its doublings per doubling of compute
    - `along_ability`, `along_long_answers`: the value of the parameter in `axes.family` at which ability, or the share of long
      answers, passes one half, at `n_tasks` and `compute_flops`
    - `compute_to_skill`: the FLOPs from which on the skill is there, at `n_tasks`
    - `crossover`: the FLOPs at which `against` overtakes `arm`, at `n_tasks`
    - `overtakes`: the FLOPs from which on the generalist `arm` is ahead of the specialists of its domains, as they were at
      `from_flops` or at their best
    - `emergence`: the verdict along the axis that is not given
    - `accuracy`, `ability`, `memory`: a mean over replicates in a cell; `memory` is read in old studies and refused in new ones
    - `change_*`: the gain from `from_flops` to `compute_flops` in the same replicates"""
    arm: str | None = None
    """Name of a condition; default: the first. For `along_*` the name without the value: `next_token`."""
    against: str | None = None
    """The condition that overtakes (`crossover` only)."""
    skill: str | None = None
    """Skill; default: the headline skill. Memory has none. For `overtakes` a domain; default: the mean over domains."""
    n_tasks: Count | None = None
    """Number of training tasks; not for `k_*` and `drift_*`."""
    compute_flops: Positive | None = None
    """Budget of `k_*`, `along_*`, of means, and of `emergence` along tasks; default: the largest."""
    from_flops: Positive | None = None
    """The smaller budget of a `change_*`. For `overtakes` the specialists' budget; default: the best one of each."""
    lo: Finite | None = None
    """Lower end of the claimed range."""
    hi: Finite | None = None
    """Upper end of the claimed range."""
    verdict: Literal["break", "smooth", "metric artefact"] | None = None
    """The claimed verdict (`emergence` only): break or smooth. `metric artefact` is read in old studies and refused in new ones."""
