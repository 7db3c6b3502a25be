"""How much of the general rule, and of the memoriser's advantage, a model has: ratios of mean log losses in nats.

The definitions are told in README.md. Pure functions of numbers: know no study, no file, no figure.
"""

from __future__ import annotations

MIN_GAP_NATS = 0.1
"""References closer than this coincide: dividing by their gap would only amplify noise."""
MIN_GAP_ERRORS = 10.0
"""Neither are they told apart below this many standard errors of the gap."""
MIN_ITEMS = 20
"""Below this many items nothing is divided: two lucky answers are no ability."""


def _ratio(part: float, gap: float, gap_error: float | None) -> float | None:
    if gap < MIN_GAP_NATS or (gap_error is not None and gap < MIN_GAP_ERRORS * gap_error):
        return None
    return part / gap


def ability(nll: float, uniform: float, generalizer: float, gap_error: float | None = None) -> float | None:
    """(U - h) / (U - G), mean log losses in nats on held-out tasks: 0 knows nothing, 1 the perfect general rule.

    Unclipped: negative is confidently wrong. None where the references coincide.
    """
    return _ratio(uniform - nll, uniform - generalizer, gap_error)


def memory(nll: float, generalizer: float, memorizer: float, gap_error: float | None = None) -> float | None:
    """(G - h) / (G - M), mean log losses in nats on the training mixture: 0 no better than the rule, 1 perfect memory.

    Negative is under-trained. None where the references coincide.
    """
    return _ratio(generalizer - nll, generalizer - memorizer, gap_error)


def relative_distance(to_generalizer: float, to_memorizer: float, between: float) -> float | None:
    """The published index d_rel = (r + 1) / 2, r = (d(h, G) - d(h, M)) / d(G, M); 1 = memorising (arXiv 2506.17859)."""
    return None if between <= 0 else ((to_generalizer - to_memorizer) / between + 1) / 2
