"""The mean of a table of units by replicates, with intervals over one or both. docs/statistics.md, "Units and replicates"."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

Ends = tuple[float, float] | None
"""Low and high end of an interval; None: too few values, or no spread at all."""


class Crossed(NamedTuple):
    """The mean of a table and its intervals."""

    mean: float
    over_replicates: Ends
    """Generalises to further replicates, for these same units. None if replicates have units of their own."""
    over_both: Ends
    """Generalises to further units of this kind and to further replicates."""
    n_units: int
    n_replicates: int


def crossed(values: np.ndarray, confidence: float = 0.95, own_units: bool = False) -> Crossed | None:
    """The mean of shares `values` (units, replicates), NaN missing, with intervals cut to 0 ... 1. None without a value.

    Every unit has the same weight. Units and replicates are crossed random effects. Over replicates: the t-interval of their
    means. Over both: the squares of the half widths over units and over replicates are added (Howe 1974), each with its own t.
    own_units: replicates have units of their own by design. Every replicate then has the same weight, whatever its units.
    """
    known = ~np.isnan(values)
    table = values[known.any(axis=1)][:, known.any(axis=0)]
    if not table.size:
        return None
    n_units, n_replicates = table.shape
    table = table if own_units else _complete(table)
    of_replicates, of_units = np.nanmean(table, axis=0), np.nanmean(table, axis=1)
    mean = float(of_replicates.mean())
    over_replicates, over_units = _half(of_replicates, confidence), _half(of_units, confidence)
    over_both = None if over_replicates is None or over_units is None else math.hypot(over_replicates, over_units)
    halves = (None if own_units else over_replicates, over_both)
    ends = [(max(0.0, mean - half), min(1.0, mean + half)) if half else None for half in halves]
    return Crossed(mean, ends[0], ends[1], n_units, n_replicates)


def _half(means: np.ndarray, confidence: float) -> float | None:
    """Half the width of the t-interval of the mean of `means` (n,); None for a single one."""
    n = len(means)
    if n < 2:
        return None
    return float(special.stdtrit(n - 1, 0.5 + confidence / 2) * np.std(means, ddof=1) / math.sqrt(n))


def _complete(table: np.ndarray) -> np.ndarray:
    """A table without empty rows and columns, filled. A missing cell gets the sum of the effects of its unit and its replicate, so
    that a replicate that lacks a difficult unit does not look better for that."""
    known = ~np.isnan(table)
    filled = np.where(known, table, np.nanmean(table))
    for _ in range(0 if known.all() else 50):
        sums = filled.mean(axis=1, keepdims=True) + filled.mean(axis=0) - filled.mean()
        filled = np.where(known, table, sums)
    return filled
