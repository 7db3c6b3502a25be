"""Break, smooth or metric artefact: one skill by its continuous and its discrete scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from orchestrator.stats.break_models import ALPHA, STEEP, Floats, column_means
from orchestrator.stats.breaks import Break, find_breaks, merged_scales
from orchestrator.stats.minimums import MIN_SCALES

GRADUAL = 0.5
"""A continuous score is gradual where a discrete one is abrupt, if at most this share of its change lies there."""
UNEXPLAINED = 0.1
"""Predicted exact match may miss the observed one by this share of its change, beyond the error."""


EmergenceReason = Literal[
    "no data",  # missing
    "nothing moves",  # constant
    "continuous scores break",  # break
    "continuous scores smooth",  # smooth
    "discrete score breaks alone",  # metric artefact
    "discrete score abrupt alone",  # metric artefact
    "continuous score undecided",  # undecided: why is told by metrics[decisive].reason
    "discrete score undecided",  # undecided: the continuous ones do not move at all
    "continuous scores disagree",  # undecided
    "no continuous score",  # undecided
    "exact match unexplained",  # undecided: it is abrupt alone, but is not what the token probabilities predict
    "exact match unpredicted",  # undecided: it is abrupt alone, and there is no prediction to compare with
]


class Emergence(NamedTuple):
    """The verdict on one skill along one cut, over all its scores."""

    verdict: Literal["break", "smooth", "metric artefact", "undecided", "constant", "missing"]
    reason: EmergenceReason
    metrics: dict[str, Break]
    """What is known of each score that was given: loss, brier, expected_accuracy, accuracy, exact_match."""
    decisive: str | None = None
    """The score on which the verdict rests: a continuous one, or the discrete one that makes the artefact."""
    low: float | None = None
    high: float | None = None
    """Log scales between which the break lies, or the apparent one of an artefact."""
    share_discrete: float | None = None
    share_continuous: float | None = None
    """Metric artefact: the share of its change that lies between low and high, of the discrete and the leading continuous score."""


def emergence(
    log_scale: Sequence[float] | Floats,
    loss: Floats | None,
    brier: Floats | None = None,
    expected_accuracy: Floats | None = None,
    accuracy: Floats | None = None,
    exact_match: Floats | None = None,
    predicted_exact_match: Floats | None = None,
) -> Emergence:
    """Is the skill's emergence a break, smooth, or an artefact of its metric?  Every score (R, S), NaN missing, or None.

    `loss` (nats per token), `brier`, `expected_accuracy` (mean probability of the right token) are continuous; the first that has
    data leads. `accuracy` (greedy, per token; the only discrete score of skills with one-token answers) and `exact_match` (of whole
    sequences) are discrete. `predicted_exact_match` is the mean over sequences of the product of the probabilities of their tokens:
    what sampled decoding would score.

    Break: the leading score breaks, and if there are others that move, not all of them are smooth. Metric artefact (Schaeffer et
    al. 2023, arXiv 2304.15004): the continuous scores do not break, and a discrete one does; or it has two thirds of its change
    within a third of the log range, where they have at most half of theirs. Exact match must then be what the token probabilities
    predict, within its error; greedy accuracy needs no prediction: the largest probability changes hands at once, however slowly
    the probabilities move. Raises ValueError where shapes differ.
    """
    given = {
        "loss": loss,
        "brier": brier,
        "expected_accuracy": expected_accuracy,
        "accuracy": accuracy,
        "exact_match": exact_match,
    }
    scores = {name: np.asarray(y, dtype=float) for name, y in given.items() if y is not None}
    predicted = None if predicted_exact_match is None else np.asarray(predicted_exact_match, dtype=float)
    if len({y.shape for y in [*scores.values(), *([] if predicted is None else [predicted])]}) > 1:
        raise ValueError(f"scores of different shapes: { {name: y.shape for name, y in scores.items()} }")
    if not scores:
        return Emergence("missing", "no data", {})
    metrics = dict(zip(scores, find_breaks(log_scale, np.stack(list(scores.values()))), strict=True))
    if predicted is None or "exact_match" not in scores:
        return weigh(metrics, None)
    return weigh(metrics, is_predicted(log_scale, scores["exact_match"], predicted))


def weigh(metrics: dict[str, Break], predicted: bool | None) -> Emergence:
    """The verdict over several scores; `predicted`: is exact match what token probabilities predict (None: nobody knows)?"""
    known = {name: found for name, found in metrics.items() if found.verdict != "missing"}
    continuous = {name: known[name] for name in ("loss", "brier", "expected_accuracy") if name in known}
    if not known:
        return Emergence("missing", "no data", metrics)
    if not continuous:
        return Emergence("undecided", "no continuous score", metrics)
    decisive, lead = next(iter(continuous.items()))
    others = [found for name, found in continuous.items() if name != decisive]
    out = Emergence("undecided", "continuous score undecided", metrics, decisive)
    if lead.verdict == "undecided":
        return out
    if lead.verdict == "break":
        if others and all(found.verdict in ("smooth", "constant") for found in others):
            return out._replace(reason="continuous scores disagree")
        return out._replace(verdict="break", reason="continuous scores break", low=lead.low, high=lead.high)
    if any(found.verdict == "break" for found in others):
        return out._replace(reason="continuous scores disagree")
    for name in ("exact_match", "accuracy"):
        if name not in known or (window := _sharper(known[name], list(continuous.values()))) is None:
            continue
        if name == "exact_match" and not predicted:
            out = out._replace(
                decisive=name,
                reason="exact match unpredicted" if predicted is None else "exact match unexplained",
            )
            continue
        return out._replace(
            verdict="metric artefact",
            reason="discrete score breaks alone" if known[name].verdict == "break" else "discrete score abrupt alone",
            decisive=name,
            low=window[0],
            high=window[1],
            share_discrete=_share(known[name], window),
            share_continuous=_share(lead, window),
        )
    if out.decisive != decisive:
        return out
    moving = {name: found for name, found in known.items() if found.verdict != "constant"}
    if not moving:
        return out._replace(verdict="constant", reason="nothing moves")
    name, first = next(iter(moving.items()))  # of a constant leading score, the next in line
    if first.verdict == "undecided":
        out = out._replace(decisive=name)
        return out if name in continuous else out._replace(reason="discrete score undecided")
    return out._replace(verdict="smooth", reason="continuous scores smooth", decisive=name)


def _sharper(discrete: Break, continuous: list[Break]) -> tuple[float, float] | None:
    """The window in which a discrete score rises as no continuous one does; None if it does not."""
    if discrete.verdict == "break" and discrete.low is not None and discrete.high is not None:
        return discrete.low, discrete.high
    if discrete.verdict not in ("smooth", "undecided") or discrete.steep is None or len(discrete.scales) < MIN_SCALES:
        return None
    low, high, share = discrete.steep
    bent = discrete.p_straight is not None and discrete.p_straight < ALPHA
    if not bent or share < STEEP[1]:
        return None
    gradual = all((_share(c, (low, high)) or 0) <= GRADUAL for c in continuous)
    return (low, high) if gradual else None


def _share(found: Break, window: tuple[float, float]) -> float | None:
    """The share of a score's change that lies in a window of log scales; None where nothing moves."""
    if found.verdict == "constant" or not found.change:
        return None
    low, high = np.interp(window, found.scales, found.means)
    return float(abs(high - low)) / found.change


def is_predicted(log_scale: Sequence[float] | Floats, exact_match: Floats, predicted: Floats) -> bool:
    """Is exact match (R, S) what was predicted (R, S): at no scale further off than UNEXPLAINED of its change, beyond the error?

    The error is that of the paired differences over replicates (t, Bonferroni over the scales); one replicate has none.
    """
    _, (exact, difference) = merged_scales(
        np.asarray(log_scale, dtype=float), np.stack([exact_match, np.subtract(exact_match, predicted)])
    )
    mask = np.isfinite(difference)
    rows, columns = mask.any(1), mask.any(0)
    if not mask.any():
        return False
    mask, difference = mask[rows][:, columns], difference[rows][:, columns]
    change = float(np.ptp(column_means(exact[rows][:, columns])))
    n = mask.sum(0)
    error = np.zeros(len(n))
    if len(mask) > 1:
        off = np.where(mask, difference - column_means(difference), 0)
        df = max(int(mask.sum() - len(n)), 1)
        own = (off**2).sum(0) / np.maximum(n - 1, 1)
        error = special.stdtrit(df, 1 - ALPHA / 2 / len(n)) * np.sqrt(np.maximum(own, (off**2).sum() / df) / n)
    return bool(np.all(np.abs(column_means(difference)) <= UNEXPLAINED * change + error))
