"""How much of the general rule, and of the memoriser's advantage, a model has: ratios of mean log losses in nats.

The definitions are told in README.md. Pure functions of numbers: know no study, no file, no figure.
"""

from __future__ import annotations

import math

import numpy as np

MIN_GAP_NATS = 0.1
"""References closer than this coincide: dividing by their gap would only amplify noise."""
MIN_GAP_ERRORS = 10.0
"""Neither are they told apart below this many standard errors of the gap."""
MIN_ITEMS = 20
"""Below this many items nothing is divided: two lucky answers are no ability."""


Values = np.ndarray | float


def _ratio(part: Values, gap: Values, gap_error: Values) -> np.ndarray:
    """part / gap, NaN where the gap is too narrow to divide by; an unknown error of the gap (NaN) does not forbid it."""
    part, gap, gap_error = (np.asarray(x, float) for x in (part, gap, gap_error))
    with np.errstate(invalid="ignore", divide="ignore"):
        wide = (gap >= MIN_GAP_NATS) & ~(gap < MIN_GAP_ERRORS * gap_error)
        return np.where(wide, part / gap, np.nan)


def abilities(nll: Values, uniform: Values, generalizer: Values, gap_error: Values = math.nan) -> np.ndarray:
    """(U - h) / (U - G), mean log losses in nats on held-out tasks: 0 knows nothing, 1 the perfect general rule.

    Elementwise and unclipped: negative is confidently wrong. NaN where the references coincide or something is missing.
    """
    return _ratio(uniform - nll, uniform - generalizer, gap_error)


def memories(nll: Values, generalizer: Values, memorizer: Values, gap_error: Values = math.nan) -> np.ndarray:
    """(G - h) / (G - M), mean log losses in nats on the training mixture: 0 no better than the rule, 1 perfect memory.

    Elementwise. Negative is under-trained. NaN where the references coincide or something is missing.
    """
    return _ratio(generalizer - nll, generalizer - memorizer, gap_error)


def relative_distances(to_generalizer: Values, to_memorizer: Values, between: Values) -> np.ndarray:
    """The published index d_rel = (r + 1) / 2, r = (d(h, G) - d(h, M)) / d(G, M); 1 = memorising (arXiv 2506.17859)."""
    between = np.asarray(between, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(between > 0, ((to_generalizer - to_memorizer) / between + 1) / 2, np.nan)


def ability(nll: float, uniform: float, generalizer: float, gap_error: float | None = None) -> float | None:
    """`abilities` of one; None where the references coincide."""
    return _single(abilities(nll, uniform, generalizer, math.nan if gap_error is None else gap_error))


def memory(nll: float, generalizer: float, memorizer: float, gap_error: float | None = None) -> float | None:
    """`memories` of one; None where the references coincide."""
    return _single(memories(nll, generalizer, memorizer, math.nan if gap_error is None else gap_error))


def relative_distance(to_generalizer: float, to_memorizer: float, between: float) -> float | None:
    """`relative_distances` of one; None where the references are one."""
    return _single(relative_distances(to_generalizer, to_memorizer, between))


def _single(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)
