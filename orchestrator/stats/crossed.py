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
    """Generalises to further replicates, for these same units."""
    over_both: Ends
    """Generalises to further units of this kind and to further replicates."""
    n_units: int
    n_replicates: int


def crossed(values: np.ndarray, confidence: float = 0.95) -> Crossed | None:
    """The mean of shares `values` (units, replicates), NaN missing, with intervals cut to 0 ... 1. None without a value.

    Every unit has the same weight. Units and replicates are crossed random effects. Over replicates: the t-interval of their
    means. Over both: the squares of the half widths over units and over replicates are added (Howe 1974), each with its own t.
    """
    table = _complete(values)
    if table is None:
        return None
    n_units, n_replicates = table.shape
    mean = float(table.mean())
    over_replicates = _half(table.mean(axis=0), confidence)
    over_units = _half(table.mean(axis=1), confidence)
    over_both = None if over_replicates is None or over_units is None else math.hypot(over_replicates, over_units)
    ends = [(max(0.0, mean - half), min(1.0, mean + half)) if half else None for half in (over_replicates, over_both)]
    return Crossed(mean, ends[0], ends[1], n_units, n_replicates)


def _half(means: np.ndarray, confidence: float) -> float | None:
    """Half the width of the t-interval of the mean of `means` (n,); None for a single one."""
    n = len(means)
    if n < 2:
        return None
    return float(special.stdtrit(n - 1, 0.5 + confidence / 2) * np.std(means, ddof=1) / math.sqrt(n))


def _complete(values: np.ndarray) -> np.ndarray | None:
    """The table without empty rows and columns. A missing cell gets the sum of the effects of its unit and its replicate, so that a
    replicate that lacks a difficult unit does not look better for that."""
    known = ~np.isnan(values)
    known, table = (part[known.any(axis=1)][:, known.any(axis=0)] for part in (known, values))
    if not table.size:
        return None
    filled = np.where(known, table, np.nanmean(table))
    for _ in range(0 if known.all() else 50):
        sums = filled.mean(axis=1, keepdims=True) + filled.mean(axis=0) - filled.mean()
        filled = np.where(known, table, sums)
    return filled
