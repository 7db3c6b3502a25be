"""Is there a break? One score along ascending scales: break, smooth, metric artefact, undecided, constant. Arrays in, verdicts out.

A **break** is a change of slope (hinge) or of level (jump) of the mean over replicates against the log scale, with at least two
scales on either side, that no smooth curve explains: no straight line, quadratic or cubic; no power law or exponential in the
scale; no transition (logistic, or either of the lopsided exp(-exp(-z)) and 1 - exp(-exp(z)), which is the exponential approach in
the scale itself) on top of any slope; no rounded bend, as long as 10-90 % of the transition or bend take SMOOTH_STEPS grid
steps or more. What happens faster than that, the grid cannot tell from a jump; what happens slower is smooth.

Three things must agree before the word is said, and each alone would be wrong:

1. The Davies test (Davies 1987, Biometrika 74:33; 2002, Biometrika 89:484) of hinge or jump at an unknown place against a
   straight line. Any curve fails it, so it is only the beginning: `p_straight`.
2. The same test on top of each smooth family in turn, fitted first (centre and width by profiling, their tangents kept in the
   design). The largest of these p-values, `p_smooth`, answers all families at once, so it is cautious: below ALPHA in 0.3
   to 1.2 % of simulated curves of these families.
3. Leave one scale out: break models must predict the scale they have not seen no worse than smooth ones. Beside a jump both
   are blind, so ties (OUT_OF_SAMPLE_TIE) count as agreement.

And there must be MIN_SCALES distinct scales, and MIN_REPLICATES replicates: where replicates switch each at its own place, three
of them switch between the same two scales in 6 % of studies although their mean curve is three steps wide, and look like a
clean jump.

**Smooth** is said only if no such evidence is near (SUGGESTIVE) and a jump of half the change is excluded; it does not exclude
a hinge, which a bend explains. **Constant** means that nothing moves beyond the noise, and comes with the jump that would have
been seen. All else is **undecided**, with the scales and replicates that it lacks, or that should settle it, where they are known.

Noise. Replicates may differ by an offset along the whole cut (trials of one trunk); offsets cancel, since every tested contrast
sums to zero. The variance of a contrast is the larger of two estimates: from each scale's spread (one pooled spread, unless
equal spread is refuted: bistable cells), and between replicates, which stays right whatever the correlation along a replicate.

What was measured is in tests/simulate_breaks.py: false breaks, power, and the places found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

MIN_SCALES = 8
"""Below this many distinct scales no break is claimed."""
MIN_REPLICATES = 4
"""With fewer replicates at the scales around it no break is claimed: see the module's head."""
SMOOTH_STEPS = 2.0
"""10-90 % of a transition in fewer grid steps is no longer smooth. Three would be the definition that one likes to quote; the
step between is the margin that keeps noisy transitions three steps wide from being called breaks."""
ALPHA = 0.05
SUGGESTIVE = 0.2
"""Between ALPHA and this, a break is neither found nor dismissed."""
POWER = 0.8
EQUAL_SPREAD_ALPHA = 0.1
"""Each scale keeps its own variance once equal spread is refuted at this level: bistable cells beside calm ones."""
PLACE_CONFIDENCE = 0.99
"""Of the limit behind the bracket of a break; it covers 95 % after the selection of what was found."""
EXCLUDED_JUMP = 0.5
"""`smooth` also means that a jump of this share of the whole change is excluded at every gap."""
OUT_OF_SAMPLE_TIE = 1.1
"""Break models may be this much worse out of sample: beside a jump both kinds of model are blind and their errors tie."""
OUT_OF_SAMPLE_WINS = 0.5
"""Smooth models with half the error of break models out of sample win, whatever p_smooth says: a curve of another shape."""
FLOOR = 0.002
"""Of the whole change: the noise of a mean is taken to be at least this. No smooth family is true to the last digit."""
MAX_REPLICATES = 1000
"""Beyond this, more replicates would not settle it."""
STEEP = (1 / 3, 2 / 3)
"""Abrupt: within this share of the log range lies at least this share of the change."""
GRADUAL = 0.5
"""A continuous score is gradual where a discrete one is abrupt, if at most this share of its change lies there."""
UNEXPLAINED = 0.1
"""Predicted exact match may miss the observed one by this share of its change, beyond the error."""

CENTRE_STEP = 0.25
WIDTH_RATIO = 1.35
HINGES_A_GAP = 2
"""How finely centres (grid steps), widths (ratio) and hinges are tried before refinement."""

Floats = np.ndarray
Verdict = Literal["break", "smooth", "undecided", "constant", "missing"]
Reason = Literal[
    "no data",  # missing
    "no movement",  # constant: none beyond the noise
    "only a break fits",  # break: no smooth curve explains it, and breaks predict unseen scales no worse
    "smooth fits",  # smooth: a smooth curve explains it, and no jump of half the change can hide in it
    "smooth predicts far better",  # smooth, of a shape that was not tried: it has half the error at unseen scales
    "few scales",  # undecided: further_scales, and further_replicates where these are few, too
    "few replicates",  # undecided: all speaks for a break; further_replicates
    "no noise estimate",  # undecided: one replicate; further_replicates
    "noisy",  # undecided: further_replicates, None if more would not settle it
    "smooth predicts better",  # undecided: a break fits best, smooth curves predict unseen scales better
    "one odd scale",  # undecided: without one scale, a smooth curve would do
    "nothing fits",  # undecided: neither smooth curves nor breaks describe it, such as two transitions in a row
]


class Break(NamedTuple):
    """What is known of one score along one cut. Fields that do not apply are None; none is ever NaN."""

    verdict: Verdict
    reason: Reason
    scales: tuple[float, ...] = ()
    """Distinct log scales with data, ascending."""
    means: tuple[float, ...] = ()
    """Means over replicates at these scales, offsets of incomplete replicates removed."""
    n_replicates: int = 0
    change: float | None = None
    """Largest minus smallest mean, in the units of the score."""
    noise: float | None = None
    """Standard deviation of one replicate at one scale, offsets removed; None for one replicate."""
    visible_jump: float | None = None
    """Verdict constant: the jump amid the scales that would have been seen with 80 % power or more."""
    kind: Literal["jump", "hinge"] | None = None
    """The better description of the break; only with verdict break."""
    low: float | None = None
    high: float | None = None
    """Verdict break: it lies between these two of the log scales (95 %)."""
    p_straight: float | None = None
    p_smooth: float | None = None
    smooth_error: float | None = None
    break_error: float | None = None
    """Root mean squared errors at scales left out, of the better smooth and break models, in the units of the score."""
    steep: tuple[float, float, float] | None = None
    """The steepest third of the log range: from, to, and the share of the change within."""
    further_scales: int | None = None
    further_replicates: int | None = None
    """Verdict undecided: the least with which a break could be told, so that the question could be settled either way; for
    reason `noisy`, what should settle it, if all stays as it looks. Both None where no number is known to help."""


def find_break(log_scale: Sequence[float] | Floats, scores: Floats) -> Break:
    """One score along one cut: log_scale (S,), scores (R, S) with NaN for missing. Raises ValueError for other shapes.

    Scales may come in any order; equal ones are averaged within a replicate; NaN scales are dropped.
    """
    return find_breaks(log_scale, np.asarray(scores, dtype=float)[None])[0]


def find_breaks(log_scale: Sequence[float] | Floats, scores: Floats) -> list[Break]:
    """Many scores along the same cut, scores (N, R, S): as `find_break` of each, in one go."""
    x, Y = np.asarray(log_scale, dtype=float), np.asarray(scores, dtype=float)
    if x.ndim != 1 or Y.ndim != 3 or Y.shape[2] != len(x):
        raise ValueError(f"scores {Y.shape[1:]} do not go with {x.shape} scales: (replicates, scales) is wanted")
    x, Y = _merged(x, Y)
    there = np.isfinite(Y)
    patterns: dict[bytes, list[int]] = {}
    for n, pattern in enumerate(there):
        patterns.setdefault(pattern.tobytes(), []).append(n)
    found: dict[int, Break] = {}
    for members in patterns.values():
        mask = there[members[0]]
        rows, columns = mask.any(1), mask.any(0)
        for lo in range(0, len(members), 256):  # blocks that stay in the cache
            block = members[lo : lo + 256]
            part = Y[block][:, rows][:, :, columns]
            found.update(zip(block, _judge(x[columns], part, mask[rows][:, columns]), strict=True))
    return [found[n] for n in range(len(Y))]


def _merged(x: Floats, Y: Floats) -> tuple[Floats, Floats]:
    """Ascending distinct scales; equal ones averaged within a replicate; infinite scores and scales are missing."""
    Y = np.where(np.isfinite(Y), Y, np.nan)[..., np.isfinite(x)]
    x = x[np.isfinite(x)]
    _, first, where = np.unique(np.round(x, 9), return_index=True, return_inverse=True)
    x = x[first]
    if len(x) == Y.shape[2]:
        return x, Y[..., np.argsort(where)]
    onto = where[:, None] == np.arange(len(x))  # (columns, S)
    n = np.isfinite(Y) @ onto.astype(float)
    return x, np.where(n > 0, np.nan_to_num(Y) @ onto.astype(float) / np.maximum(n, 1), np.nan)


# --- several scores of one skill


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
    further_scales: int | None = None
    further_replicates: int | None = None


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
        return out._replace(further_scales=lead.further_scales, further_replicates=lead.further_replicates)
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
        out = out._replace(further_scales=first.further_scales, further_replicates=first.further_replicates)
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
    _, (exact, difference) = _merged(
        np.asarray(log_scale, dtype=float), np.stack([exact_match, np.subtract(exact_match, predicted)])
    )
    mask = np.isfinite(difference)
    rows, columns = mask.any(1), mask.any(0)
    if not mask.any():
        return False
    mask, difference = mask[rows][:, columns], difference[rows][:, columns]
    change = float(np.ptp(_means(exact[rows][:, columns])))
    n = mask.sum(0)
    error = np.zeros(len(n))
    if len(mask) > 1:
        off = np.where(mask, difference - _means(difference), 0)
        df = max(int(mask.sum() - len(n)), 1)
        own = (off**2).sum(0) / np.maximum(n - 1, 1)
        error = special.stdtrit(df, 1 - ALPHA / 2 / len(n)) * np.sqrt(np.maximum(own, (off**2).sum() / df) / n)
    return bool(np.all(np.abs(_means(difference)) <= UNEXPLAINED * change + error))


def _means(Y: Floats) -> Floats:
    """Means over replicates of what is there, (R, S) -> (S,); every column has something."""
    mask = np.isfinite(Y)
    return np.where(mask, Y, 0).sum(0) / np.maximum(mask.sum(0), 1)


# --- the verdict


def _judge(x: Floats, Y: Floats, mask: Floats) -> list[Break]:
    """Verdicts of curves Y (N, R, S) that share their scales and their pattern of missing cells."""
    N, (R, S) = len(Y), mask.shape
    if not mask.any():
        return [Break("missing", "no data")] * N
    data = _summary(Y, mask)
    m, scales = data.means, tuple(x.tolist())
    few = MIN_SCALES - S if S < MIN_SCALES else None
    wanting = max(MIN_REPLICATES - R, 0) or None
    blank = [
        Break(
            "undecided",
            "few scales" if few else "no noise estimate",
            scales=scales,
            means=tuple(m[n].tolist()),
            n_replicates=R,
            change=float(np.ptp(m[n])),
            noise=float(math.sqrt(data.pooled[n])) if data.df else None,
            steep=_steepest(x, m[n]),
            further_scales=few,
            further_replicates=wanting,
        )
        for n in range(N)
    ]
    low, high = np.where(mask, Y, np.inf).min((1, 2)), np.where(mask, Y, -np.inf).max((1, 2))
    still = high - low <= 1e-12 * np.maximum(np.abs(high), np.abs(low))
    moving = ~still
    visible = np.zeros(N)
    if S >= 4 and data.df:
        grid = _grid(scales)
        flat = _strongest(np.broadcast_to(grid.line[:1], (N, 1, S)), grid, data)
        straight = _strongest(np.broadcast_to(grid.line, (N, 2, S)), grid, data)
        blank = [b._replace(p_straight=float(p)) for b, p in zip(blank, straight.p, strict=True)]
        moving &= flat.p < ALPHA
        visible = _visible(flat, grid)
        if not few and moving.any():
            some = np.flatnonzero(moving)
            decided = _decide(grid, data.of(some), straight.p[some], [blank[n] for n in some])
            for n, found in zip(some, decided, strict=True):
                blank[n] = found
    for n in np.flatnonzero(~moving if S > 1 else []):
        blank[n] = blank[n]._replace(
            verdict="constant",
            reason="no movement",
            visible_jump=None if still[n] else float(visible[n]),
            p_straight=None,
            steep=None,
            further_scales=None,
            further_replicates=None,
        )
    return blank


def _decide(grid: _Grid, data: _Data, p_straight: Floats, blank: list[Break]) -> list[Break]:
    """The verdicts of moving curves with enough scales."""
    N, R = len(data.means), data.spread.shape[1]
    families = [_strongest(np.broadcast_to(grid.cubic, (N, *grid.cubic.shape)), grid, data)]
    families += [_strongest(_fitted(grid, shape, data.means), grid, data) for shape in SHAPES]
    best = _worst(families)
    unseen = _out_of_sample(grid, data)
    to_exclude = _replicates_to_exclude(best, grid, data)
    to_find = _replicates_to_find(best, R)
    p, smooth, broken = best.p, unseen.smooth, unseen.broken
    out = []
    for n, b in enumerate(blank):
        b = b._replace(p_smooth=float(p[n]), smooth_error=float(smooth[n]), break_error=float(broken[n]))
        b = b._replace(further_replicates=None)  # what is wanting depends on what is wrong
        excluded = to_exclude[n] <= R
        if max(p[n], p_straight[n]) < ALPHA and broken[n] <= OUT_OF_SAMPLE_TIE * smooth[n]:
            if doubt := unseen.doubt[n]:
                out.append(b._replace(reason=doubt))
                continue
            kind, i, j = _place(grid, data, n)
            there = int(data.present[i : j + 1].min())
            if there < MIN_REPLICATES:
                b = b._replace(reason="few replicates", further_replicates=MIN_REPLICATES - there)
            else:
                b = b._replace(
                    verdict="break", reason="only a break fits", kind=kind, low=b.scales[i], high=b.scales[j]
                )
        elif excluded and smooth[n] <= OUT_OF_SAMPLE_WINS * broken[n]:
            b = b._replace(verdict="smooth", reason="smooth predicts far better")
        elif p[n] < ALPHA:
            b = b._replace(reason="smooth predicts better")
        elif excluded and p[n] >= SUGGESTIVE and broken[n] > OUT_OF_SAMPLE_WINS * smooth[n]:
            b = b._replace(verdict="smooth", reason="smooth fits")
        else:
            total = to_find[n] if excluded else min(to_find[n], to_exclude[n])
            more = max(1, math.ceil(max(total, MIN_REPLICATES)) - R) if total <= MAX_REPLICATES else None
            b = b._replace(reason="noisy", further_replicates=more)
        out.append(b)
    return out


def _worst(families: list[_Strongest]) -> _Strongest:
    """Of each curve the smooth family that leaves least to a break."""
    which = np.argmax([f.p for f in families], axis=0)
    everyone = np.arange(len(which))
    return _Strongest(*(np.stack(field)[which, everyone] for field in zip(*families, strict=True)))


def _replicates_to_exclude(best: _Strongest, grid: _Grid, data: _Data) -> Floats:
    """Replicates in all that exclude large jumps (EXCLUDED_JUMP of the change), if all estimates stay where they are: (N,).

    On top of the best smooth curve, the interval of every jump must stay below. And since a steep smooth curve may stand in for a
    jump, every straight line with such a jump must itself be refuted (F test of its lack of fit).
    """
    R, S = data.spread.shape[1:]
    large = EXCLUDED_JUMP * np.ptp(data.means, axis=1)[:, None]
    jumps = grid.is_jump & best.known
    left = np.maximum(large - np.abs(best.size), 1e-300)
    ratio = np.where(jumps, _critical(best, 1.0)[:, None] * best.error / left, 0).max(1)
    on_top = np.where(jumps.any(1), R * np.minimum(ratio, 1e9) ** 2, np.inf)
    e, jump = data.means - data.means @ grid.line.T @ grid.line, grid.unlined[grid.is_jump]
    size = e @ jump.T / (jump**2).sum(1)  # (N, K)
    size = np.where(size < 0, -1, 1) * np.maximum(np.abs(size), large)
    misfit = ((e[:, None] - size[..., None] * jump) ** 2 / data.variance[:, None]).sum(-1).min(1)  # F times S - 3
    enough = (S - 3) * (special.fdtri(S - 3, data.df, 1 - ALPHA) - 1)
    return np.maximum(on_top, R * enough / np.maximum(misfit - (S - 3), 1e-9))


def _replicates_to_find(best: _Strongest, R: int) -> Floats:
    """Replicates in all at which the strongest break, if it is as large as it looks, is found with POWER: (N,)."""
    total = np.full(len(best.top), float(R))
    for _ in range(2):  # the critical value falls as the degrees of freedom grow
        wanted = _critical(best, np.maximum(total - 1, 1) / (R - 1)) + special.ndtri(POWER)
        total = R * (wanted / np.maximum(best.top, 1e-3)) ** 2
    return total


# --- means, and their noise


class _Data(NamedTuple):
    """Of N curves with S scales and R replicates."""

    means: Floats  # (N, S), offsets removed
    variance: Floats  # (N, S) of the means
    own: Floats  # (N, S) does a scale's variance stand for itself, or is it the pooled one?
    present: Floats  # (S,) replicates at each scale
    df_own: Floats  # (S,)
    df: int
    pooled: Floats  # (N,) of one replicate at one scale
    spread: Floats  # (N, R, S) residual over count: the variance of a contrast is the sum of the squares of its own

    def of(self, some: Floats) -> _Data:
        return self._replace(**{k: getattr(self, k)[some] for k in ("means", "variance", "own", "pooled", "spread")})


def _summary(Y: Floats, mask: Floats) -> _Data:
    """Fit scale + offset of the replicate by least squares; what is left is noise.  Y (N, R, S), mask (R, S)."""
    R, S = mask.shape
    count = mask.sum(0)
    if mask.all():
        m = Y.mean(1)
        E = Y - m[:, None] - Y.mean(2, keepdims=True) + Y.mean((1, 2), keepdims=True)
        df = (R - 1) * (S - 1)
    else:
        r, s = np.nonzero(mask)
        design = np.concatenate([np.eye(S)[s], np.eye(R)[r]], 1)  # (cells, S + R)
        y = Y[:, r, s]
        fit = y @ np.linalg.pinv(design).T
        E = np.zeros_like(Y)
        E[:, r, s] = y - fit @ design.T
        offsets = fit[:, S:]
        m = fit[:, :S] + offsets.mean(1, keepdims=True)  # as if every replicate had been everywhere
        df = len(r) - int(np.linalg.matrix_rank(design))
    squares = (E**2).sum(1)  # (N, S)
    df_own = np.maximum(count - 1, 0) * (S - 1) / S
    floor = R * np.maximum(FLOOR * np.ptp(m, axis=1), np.maximum(1e-9 * np.abs(m).max(1), 1e-100)) ** 2
    pooled = squares.sum(1) / max(df, 1)
    calm = np.maximum(pooled, floor)[:, None]
    own = np.where(df_own > 0, squares / np.maximum(df_own, 1e-9), 0)
    # Equal spread is refuted where one scale's share of the squares is too large (beta; Bonferroni over the scales).
    share = squares / np.maximum(squares.sum(1, keepdims=True), 1e-300)
    a, b = df_own / 2, (df_own.sum() - df_own) / 2
    tail = 1 - special.betainc(np.maximum(a, 1e-9), np.maximum(b, 1e-9), np.clip(share, 0, 1))
    unequal = np.where(a > 0, tail, 1.0).min(1) * S < EQUAL_SPREAD_ALPHA
    stands = unequal[:, None] & (own > calm)
    variance = np.where(stands, own, calm) / np.maximum(count, 1)
    return _Data(m, variance, stands, count, df_own, df, pooled, E / np.maximum(count, 1))


# --- the Davies test


class _Strongest(NamedTuple):
    """The strongest of K breaks on top of a design, for N curves."""

    p: Floats  # (N,) Davies' bound
    top: Floats  # (N,) the largest |t|
    df: Floats  # (N,) of it
    angle: Floats  # (N, K - 1) between neighbouring candidates; inf where a new chain starts
    size: Floats  # (N, K) estimated size of each break
    error: Floats  # (N, K) standard error of it
    known: Floats  # (N, K) can it be told from the design at all?


def _strongest(design: Floats, grid: _Grid, data: _Data) -> _Strongest:
    """t of every break added to an orthonormal design (N, p, S), and the p-value of the largest."""
    D = grid.breaks  # (K, S)
    rest = D - np.matmul(np.matmul(D, design.transpose(0, 2, 1)), design)  # (N, K, S)
    square = (rest**2).sum(-1)
    known = square > 0.01 * (grid.unlined**2).sum(1)  # less than that is left: the design imitates this break
    dot = np.matmul(rest, data.means[..., None])[..., 0]
    parts = rest**2 * data.variance[:, None]
    within, shared = parts.sum(-1), (parts * ~data.own[:, None]).sum(-1)
    own = (parts**2 * data.own[:, None] / np.maximum(data.df_own, 1e-9)).sum(-1)
    df = within**2 / np.maximum(own + shared**2 / data.df, 1e-300)  # Satterthwaite
    R = data.spread.shape[1]
    between = (np.matmul(rest, data.spread.transpose(0, 2, 1)) ** 2).sum(-1) * (R / max(R - 1, 1))
    variance = np.maximum(np.maximum(within, between), 1e-300)
    t = np.where(known, np.abs(dot) / np.sqrt(variance), 0)
    best = (np.arange(len(t)), t.argmax(1))
    scaled = rest * np.sqrt(data.variance)[:, None]
    scaled /= np.maximum(np.linalg.norm(scaled, axis=-1, keepdims=True), 1e-300)
    angle = np.arccos(np.clip(np.abs((scaled[:, 1:] * scaled[:, :-1]).sum(-1)), 0, 1))
    angle = np.where(grid.is_jump[1:] == grid.is_jump[:-1], angle, np.inf)
    angle = np.where(known[:, :-1], angle, np.inf)
    angle = np.where(known[:, 1:], angle, 0)
    square = np.maximum(square, 1e-300)
    df_best = np.maximum(df[best], 1)
    p = _bound(t[best], df_best, angle)
    return _Strongest(p, t[best], df_best, angle, dot / square, np.sqrt(variance / square), known)


def _bound(top: Floats, df: Floats, angle: Floats) -> Floats:
    """P(the largest |t| along a path of breaks exceeds `top`), at most: shapes (N,), (N,), (N, K - 1).

    Davies' bound for the linear model is the tail at the start plus, for each stretch of the path, its length on the unit sphere
    times (1 + top^2 / df)^(-(df - 1) / 2) / pi (Hotelling 1939; Davies 2002). On a grid of scales a hinge that moves between two
    neighbours follows a great circle, so lengths are sums of angles, exactly. And since no more than K breaks are tried, none need
    be charged more than a tail of its own (Bonferroni): that is less where neighbours are far apart, as jumps are.
    """
    tail = 2 * special.stdtr(df, -top)
    arc = np.maximum((1 + top**2 / df) ** (-(df - 1) / 2) / math.pi, 1e-300)
    return np.minimum(1.0, tail + np.minimum(angle * arc[:, None], tail[:, None]).sum(1))


def _critical(best: _Strongest, df_times: Floats | float) -> Floats:
    """The |t| at which the bound is ALPHA, with df_times the degrees of freedom: (N,)."""
    low, high = np.zeros(len(best.top)), np.full(len(best.top), 5.0)  # in log
    for _ in range(14):
        middle = (low + high) / 2
        beyond = _bound(np.exp(middle), best.df * df_times, best.angle) <= ALPHA
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.exp(high)


def _visible(flat: _Strongest, grid: _Grid) -> Floats:
    """The jump, where it is seen best, that would be seen with POWER in what looks constant: (N,)."""
    return (_critical(flat, 1.0) + special.ndtri(POWER)) * np.where(grid.is_jump, flat.error, np.inf).min(1)


# --- smooth curves


SHAPES = ("logistic", "early", "late", "bend")
"""Transitions: even, exp(-exp(-z)), 1 - exp(-exp(z)); and log(1 + exp(z)), whose slope is the logistic."""
_TEN_TO_NINETY = {
    "logistic": 2 * math.log(9),
    "early": math.log(math.log(10) / -math.log(0.9)),
    "late": math.log(math.log(10) / -math.log(0.9)),
    "bend": 2 * math.log(9),
}


def _curve(shape: str, z: Floats) -> tuple[Floats, Floats]:
    """The shape at z and its slope."""
    if shape == "logistic":
        f = special.expit(z)
        return f, f * (1 - f)
    if shape == "bend":
        return np.logaddexp(0, z), special.expit(z)
    if shape == "late":
        e = np.exp(np.minimum(z, 20.0))
        return -np.expm1(-e), e * np.exp(-e)
    e = np.exp(np.minimum(-z, 20.0))
    return np.exp(-e), e * np.exp(-e)


class _Grid(NamedTuple):
    """What depends on the scales alone. Positions u are in mean grid steps."""

    u: Floats  # (S,)
    line: Floats  # (2, S) orthonormal
    cubic: Floats  # (4, S) orthonormal; its first rows span the lower degrees
    theta: dict[str, Floats]  # shape -> (T, 2): centre, 10-90 % width
    unit: dict[str, Floats]  # shape -> (T, S): the curve, less its straight line, of norm 1
    breaks: Floats  # (K, S): jumps, then hinges in order
    is_jump: Floats  # (K,)
    unlined: Floats  # (K, S): breaks, less their straight line
    halves: tuple[Floats, ...]  # for every gap the orthonormal pair of lines split there

    def narrowest(self, centre: Floats) -> Floats:
        """The least width that is still smooth there: SMOOTH_STEPS of the gaps around."""
        return SMOOTH_STEPS * np.interp(centre, (self.u[1:] + self.u[:-1]) / 2, np.diff(self.u))


_grids: dict[tuple[float, ...], _Grid] = {}
"""Those already built: a study has few cuts and many skills, and building one takes longer than using it."""


def _grid(scales: tuple[float, ...]) -> _Grid:
    if scales not in _grids:
        if len(_grids) >= 64:
            _grids.clear()
        _grids[scales] = _new_grid(scales)
    return _grids[scales]


def _new_grid(scales: tuple[float, ...]) -> _Grid:
    x = np.array(scales)
    S = len(x)
    u = (x - x[0]) / (x[-1] - x[0]) * (S - 1)
    left = np.arange(S) < np.arange(1, S)[:, None]  # (S - 1, S): left of each gap
    v = 2 * u / u[-1] - 1
    line = _orthonormal([np.ones(S), v])
    jumps = ~left[1:-1]  # at least two scales on either side
    knots = np.interp(np.arange(0, S - 3, 1 / HINGES_A_GAP), np.arange(S - 2), u[1:-1])
    hinges = np.maximum(u - np.append(knots, u[-2])[:, None], 0)
    breaks = np.concatenate([jumps.astype(float), hinges])
    bare = _Grid(
        u=u, line=line, cubic=_orthonormal([v**k for k in range(4)]), theta={}, unit={}, breaks=breaks,
        is_jump=np.arange(len(breaks)) < len(jumps), unlined=breaks - breaks @ line.T @ line,
        halves=tuple(_orthonormal([a * 1.0, ~a * 1.0, a * u, ~a * u]) for a in left),
    )  # fmt: skip
    for shape in SHAPES if S >= MIN_SCALES else ():
        theta = _thetas(bare)
        curves, _ = _curve(shape, (u - theta[:, :1]) * _TEN_TO_NINETY[shape] / theta[:, 1:])
        rest = curves - curves @ line.T @ line
        norm = np.linalg.norm(rest, axis=1)
        some = norm > 1e-6
        bare.theta[shape], bare.unit[shape] = theta[some], rest[some] / norm[some, None]
    return bare


def _thetas(grid: _Grid) -> Floats:
    """Centres and widths to try, (T, 2). Centres lie well outside, too: there the tail of a transition is a power law."""
    found = []
    width, u = SMOOTH_STEPS * float(np.diff(grid.u).min()), grid.u
    while width < 4 * u[-1]:
        fine, coarse = max(CENTRE_STEP, width / 20), width / 4
        outside = np.arange(1, 7) * coarse
        centres = np.concatenate([u[0] - outside, np.arange(u[0], u[-1] + fine, fine), u[-1] + outside])
        centres = centres[width >= 0.999 * grid.narrowest(centres)]
        found.append(np.stack([centres, np.full(len(centres), width)], 1))
        width *= WIDTH_RATIO
    return np.concatenate(found)


def _orthonormal(columns: list[Floats]) -> Floats:
    """Gram-Schmidt, twice over; columns that add nothing are left out.  -> (p, S)"""
    found: list[Floats] = []
    for column in columns:
        rest = column
        for _ in range(2):
            for q in found:
                rest = rest - (rest @ q) * q
        norm = np.linalg.norm(rest)
        if norm > 1e-9 * max(float(np.linalg.norm(column)), 1e-300):
            found.append(rest / norm)
    return np.array(found)


def _fitted(grid: _Grid, shape: str, m: Floats) -> Floats:
    """Orthonormal designs (N, 5, S): line, the best curve of the shape, and its tangents in centre and width.

    Variable projection: for given centre and width the rest is linear, so the best pair is the one whose curve, less its line, has
    the largest dot product with the means: over the whole grid, then over two finer ones around the best. The tangents make up for
    what the grid misses and take the estimation of centre and width into account. At the least width its tangent is left out.
    """
    N, everyone = len(m), np.arange(len(m))
    best = grid.theta[shape][np.argmax((m @ grid.unit[shape].T) ** 2, axis=1)]  # (N, 2)
    step, ratio, around = np.maximum(CENTRE_STEP, best[:, 1] / 20), math.log(WIDTH_RATIO), np.linspace(-1, 1, 5)
    for shrink in (1, 3):
        centre = best[:, 0, None, None] + step[:, None, None] / shrink * around[:, None] + 0 * around
        width = best[:, 1, None, None] * np.exp(ratio / shrink * around) + 0 * centre
        width = np.maximum(width, grid.narrowest(centre))
        centre, width = centre.reshape(N, -1), width.reshape(N, -1)
        curve, _ = _curve(shape, (grid.u - centre[..., None]) * _TEN_TO_NINETY[shape] / width[..., None])
        rest = curve - curve @ grid.line.T @ grid.line
        square = (rest**2).sum(-1)
        fit = np.where(square > 1e-10, np.matmul(rest, m[..., None])[..., 0] ** 2 / np.maximum(square, 1e-10), -1)
        k = fit.argmax(1)
        best = np.stack([centre[everyone, k], width[everyone, k]], 1)
    z = (grid.u - best[:, :1]) * _TEN_TO_NINETY[shape] / best[:, 1:]
    curve, slope = _curve(shape, z)
    free = best[:, 1] > 1.02 * grid.narrowest(best[:, 0])
    design = [np.broadcast_to(q, curve.shape) for q in grid.line]
    for column in (curve, slope, z * slope * free[:, None]):
        rest = column
        for _ in range(2):
            for q in design:
                rest = rest - (rest * q).sum(1, keepdims=True) * q
        norm = np.linalg.norm(rest, axis=1, keepdims=True)
        some = norm > np.maximum(1e-4 * np.linalg.norm(column, axis=1, keepdims=True), 1e-9)
        design.append(np.where(some, rest / np.where(some, norm, 1), 0))
    return np.stack(design, 1)


# --- out of sample, and where


class _Unseen(NamedTuple):
    smooth: Floats  # (N,) root mean squared error at the scale left out: the better smooth model
    broken: Floats  # (N,) the better break model
    doubt: list[Reason | None]  # what explains the curve better than a break: one odd scale, or nothing that was tried


def _out_of_sample(grid: _Grid, data: _Data) -> _Unseen:
    """Leave one scale out: errors of smooth models (polynomials, logistic on a slope) and break models (jump, hinge, two lines).

    A model is a list of linear designs, one for each place of the break or each centre and width. For each scale left out, the
    design that fits the others best predicts it.
    """
    m, S = data.means, len(grid.u)
    polynomials = [_left_out(m, q[None]) for q in (grid.line, grid.cubic[:3], grid.cubic)]
    bent = grid.unlined / np.linalg.norm(grid.unlined, axis=1, keepdims=True)
    logistic, jump, hinge = (
        _left_out(m, np.concatenate([np.broadcast_to(grid.line, (len(unit), 2, S)), unit[:, None]], 1))
        for unit in (grid.unit["logistic"], bent[grid.is_jump], bent[~grid.is_jump])
    )
    lines = _left_out(m, np.stack(grid.halves[1:-1]))
    smooth, broken = [*polynomials, logistic], [jump, hinge, lines]
    # Schwarz's criterion: squares over the noise, plus log S for each parameter; the place of a break is one, an odd scale two.
    noise, parameters = np.maximum(data.variance.mean(1), 1e-300), (4, 5, 6, 7)
    squares = np.array([f.others / noise for f in smooth])  # without the oddest scale
    one_odd = np.min(squares + np.array(parameters)[:, None] * math.log(S), axis=0)
    a_break = np.min([f.all / noise + k * math.log(S) for f, k in zip(broken, (4, 4, 5), strict=True)], axis=0)
    fits = np.any(
        [q <= k * special.fdtri(k, data.df, 0.99) for q, k in zip(squares, S - np.array(parameters), strict=True)],
        axis=0,
    )
    doubt: list[Reason | None] = [
        None if better else "one odd scale" if fit else "nothing fits"
        for better, fit in zip(a_break <= one_odd, fits, strict=True)
    ]
    return _Unseen(np.min([f.error for f in smooth], axis=0), np.min([f.error for f in broken], axis=0), doubt)


class _LeftOut(NamedTuple):
    error: Floats  # (N,) root mean squared, over the scales left out
    others: Floats  # (N,) squares of the best fit to all scales but the oddest
    all: Floats  # (N,) squares of the best fit to all


def _left_out(m: Floats, designs: Floats) -> _LeftOut:
    """Means m (N, S), orthonormal designs (T, p, S). Left out, a scale is missed by e / (1 - h), h its leverage: no refit is needed.

    Where several designs fit the others equally well (a jump on either side of the scale left out), their mean predicts.
    """
    e = np.matmul(np.matmul(m, designs.transpose(0, 2, 1)), designs)  # (T, N, S)
    np.subtract(m, e, out=e)
    left = 1 - (designs**2).sum(1)[:, None]
    fixed = left < 1e-9  # this design follows this scale wherever it goes
    weight = np.where(fixed, 0, 1 / np.where(fixed, 1, left))
    others = e**2
    squares = others.sum(-1)  # (T, N)
    others *= -weight
    others += squares[..., None]
    others += np.where(fixed, np.inf, 0)
    least = others.min(0)  # (N, S)
    ties = others <= least + 1e-9 * (m.var(1) * m.shape[1])[:, None]
    e *= weight
    e *= ties
    predicted = e.sum(0) / ties.sum(0)
    return _LeftOut(np.sqrt((predicted**2).mean(1)), least.min(1), squares.min(0))


def _place(grid: _Grid, data: _Data, n: int) -> tuple[Literal["jump", "hinge"], int, int]:
    """The better kind of break, and which scales it lies between.

    Two separate lines, split in each gap in turn, contain hinges and jumps alike and know the place to within a gap. The bracket
    spans every gap whose split fits as well as the best, within what two parameters may do by chance (PLACE_CONFIDENCE).
    """
    m = data.means[n]
    squares = np.array([((m - m @ q.T @ q) ** 2).sum() for q in grid.halves])
    limit = 2 * float(special.fdtri(2, data.df, PLACE_CONFIDENCE)) * float(data.variance[n].mean())
    near = np.flatnonzero(squares <= squares.min() + limit)
    gain = (grid.unlined @ m) ** 2 / (grid.unlined**2).sum(1)
    kind: Literal["jump", "hinge"] = "jump" if gain[grid.is_jump].max() >= gain[~grid.is_jump].max() else "hinge"
    return kind, int(near[0]), int(near[-1]) + 1


def _steepest(x: Floats, m: Floats) -> tuple[float, float, float] | None:
    """The third of the log range (STEEP[0]), starting or ending at a scale, that holds the largest share of the change.

    Means are joined by straight lines, so that the window does not depend on how the grid divides into thirds.
    """
    change, width = float(np.ptp(m)), STEEP[0] * float(x[-1] - x[0])
    low = np.concatenate([x[x <= x[-1] - width], x[x >= x[0] + width] - width])
    share = np.abs(np.interp(low + width, x, m) - np.interp(low, x, m))
    if change <= 0 or not len(low):
        return None
    best = int(share.argmax())
    return float(low[best]), float(low[best] + width), float(share[best]) / change
