"""Ability and memory: ratios of mean log losses in nats. Definitions: docs/statistics.md, "Ability and memory"."""

from __future__ import annotations

import math

import numpy as np

MIN_GAP_NATS = 0.1
"""Two references whose mean log losses differ by fewer nats coincide: a ratio over their gap would only amplify noise."""
MIN_GAP_ERRORS = 10.0
"""References closer than this many standard errors of their gap coincide, too."""
MIN_ITEMS = 20
"""Ability is undefined with fewer evaluated items: two lucky answers are no ability."""


Values = np.ndarray | float
"""One cell or many; all functions work elementwise."""


def _ratio(part: Values, gap: Values, gap_error: Values) -> np.ndarray:
    """part / gap; NaN if the gap is below MIN_GAP_NATS or MIN_GAP_ERRORS of its standard errors.

    A gap_error of NaN (unknown) leaves only the first condition.
    """
    part, gap, gap_error = (np.asarray(x, float) for x in (part, gap, gap_error))
    with np.errstate(invalid="ignore", divide="ignore"):
        wide = (gap >= MIN_GAP_NATS) & ~(gap < MIN_GAP_ERRORS * gap_error)
        return np.where(wide, part / gap, np.nan)


def abilities(nll: Values, uniform: Values, generalizer: Values, gap_error: Values = math.nan) -> np.ndarray:
    """Ability (U - h) / (U - G), from mean log losses in nats on held-out tasks: 0 knows nothing, 1 is the perfect general rule.

    nll: the model's loss h. uniform: the loss U of a uniform guess. generalizer: that of the generaliser, G. gap_error: standard
    error of U - G. Elementwise and unclipped. A model that is confidently wrong has a negative ability. NaN if the
    references coincide or a loss is NaN.
    """
    return _ratio(uniform - nll, uniform - generalizer, gap_error)


def memories(nll: Values, generalizer: Values, memorizer: Values, gap_error: Values = math.nan) -> np.ndarray:
    """Memory (G - h) / (G - M), from mean log losses in nats on the training tasks: 0 is no better than the rule, 1 perfect memory.

    nll: the model's loss h. generalizer, memorizer: losses G and M of the two references. gap_error: standard error of G - M.
    Elementwise and unclipped. An under-trained model has a negative memory. NaN if the references coincide or a loss is
    NaN.
    """
    return _ratio(generalizer - nll, generalizer - memorizer, gap_error)


def relative_distances(to_generalizer: Values, to_memorizer: Values, between: Values) -> np.ndarray:
    """The published index d_rel = (r + 1) / 2, r = (d(h, G) - d(h, M)) / d(G, M): 0 generalises, 1 memorises (arXiv 2506.17859).

    d is the symmetrised KL divergence. The arguments are d(h, G), d(h, M) and d(G, M). NaN if d(G, M) is not positive.
    """
    between = np.asarray(between, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(between > 0, ((to_generalizer - to_memorizer) / between + 1) / 2, np.nan)
