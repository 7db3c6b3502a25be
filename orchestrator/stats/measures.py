"""Ability and memory: ratios of mean log losses in nats. Definitions: docs/statistics.md, "Ability and memory"."""

from __future__ import annotations

import math

import numpy as np

MIN_GAP_NATS = 0.1
"""References closer than this coincide. A ratio would only amplify noise."""
MIN_GAP_ERRORS = 10.0
"""References closer than this many standard errors of their gap coincide, too."""
MIN_ITEMS = 20
"""Fewer items give no ratio: two lucky answers are no ability."""


Values = np.ndarray | float


def _ratio(part: Values, gap: Values, gap_error: Values) -> np.ndarray:
    """part / gap, NaN if the gap is too narrow. An unknown error of the gap (NaN) does not forbid the ratio."""
    part, gap, gap_error = (np.asarray(x, float) for x in (part, gap, gap_error))
    with np.errstate(invalid="ignore", divide="ignore"):
        wide = (gap >= MIN_GAP_NATS) & ~(gap < MIN_GAP_ERRORS * gap_error)
        return np.where(wide, part / gap, np.nan)


def abilities(nll: Values, uniform: Values, generalizer: Values, gap_error: Values = math.nan) -> np.ndarray:
    """(U - h) / (U - G), mean log losses in nats on held-out tasks: 0 knows nothing, 1 the perfect general rule.

    Elementwise and unclipped. Negative is confidently wrong. NaN if the references coincide or something is missing.
    """
    return _ratio(uniform - nll, uniform - generalizer, gap_error)


def memories(nll: Values, generalizer: Values, memorizer: Values, gap_error: Values = math.nan) -> np.ndarray:
    """(G - h) / (G - M), mean log losses in nats on the training mixture: 0 no better than the rule, 1 perfect memory.

    Elementwise and unclipped. Negative is under-trained. NaN if the references coincide or something is missing.
    """
    return _ratio(generalizer - nll, generalizer - memorizer, gap_error)


def relative_distances(to_generalizer: Values, to_memorizer: Values, between: Values) -> np.ndarray:
    """The published index d_rel = (r + 1) / 2, r = (d(h, G) - d(h, M)) / d(G, M); 1 = memorising (arXiv 2506.17859)."""
    between = np.asarray(between, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(between > 0, ((to_generalizer - to_memorizer) / between + 1) / 2, np.nan)


def ability(nll: float, uniform: float, generalizer: float, gap_error: float | None = None) -> float | None:
    """`abilities` of one. None if the references coincide."""
    return _single(abilities(nll, uniform, generalizer, math.nan if gap_error is None else gap_error))


def memory(nll: float, generalizer: float, memorizer: float, gap_error: float | None = None) -> float | None:
    """`memories` of one. None if the references coincide."""
    return _single(memories(nll, generalizer, memorizer, math.nan if gap_error is None else gap_error))


def _single(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)
