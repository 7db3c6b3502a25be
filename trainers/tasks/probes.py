"""Batches, item sets and probes: what a model reads, and what is counted on it. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from trainers.tasks.decomposition import PREDICTORS, decompose


class Batch(NamedTuple):
    """One optimizer step's data. The model reads tokens[:, :-1] and predicts tokens[:, 1:] where the mask is set."""

    tokens: np.ndarray  # (B, T+1) int64, or (B, T+1, W) float32 where tokens are numbers
    loss_mask: np.ndarray  # (B, T) bool
    positions: np.ndarray | None = None  # (B, T) int64, below T: where several sequences share a row
    segments: np.ndarray | None = None  # (B, T) int64: which of them a token belongs to; none sees another


class Reference(NamedTuple):
    """An exact predictor on a probe: per position, its expected log loss and its chance of being right (greedy)."""

    nll_nats: np.ndarray  # (N, T), finite wherever the probe scores
    correct: np.ndarray  # (N, T) in [0, 1]


def graded(probs: np.ndarray, answer: np.ndarray) -> Reference:
    """What predictions (..., V) score on single answers (...): log loss, and the chance that the likeliest one, drawn among
    ties, is right. Infinite where an answer was given no probability."""
    p = np.take_along_axis(probs, answer[..., None], axis=-1)[..., 0]
    best = probs.max(axis=-1)
    tied = (probs >= best[..., None] - 1e-12).sum(axis=-1)
    with np.errstate(divide="ignore"):
        return Reference(-np.log(p), np.where(p >= best - 1e-12, 1 / tied, 0.0))


ANSWERS = 4
"""Numbers a position that say all of an answer (`Probe.answers`)."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One skill on one item set: which positions count, against what, and what the references score there."""

    skill: str
    split: str  # "seen" | "held_out"
    mask: np.ndarray  # (N, T) bool
    target: np.ndarray  # (N, T) int64 token ids, or (N, T, V) probabilities: the true distribution of the next token
    references: dict[str, Reference] = field(default_factory=dict)  # uniform, memorizer, generalizer, oracle
    distributions: dict[str, np.ndarray] = field(default_factory=dict)  # (N, T, V): full predictions, for distances
    noise_variance: float | None = None
    """Given, numbers are predicted: target and distributions are (N, T) floats, the target free of noise."""

    def score(self, predicted: np.ndarray) -> dict[str, Any]:
        """Raw counts and sums over the scored positions; divide when reading. predicted (N, T, V), log-probabilities
        (natural log); or (N, T), numbers.

        `n` positions, `n_correct` greedy hits, `nll_nats`, `p_correct` (probability given to the target), `brier`,
        each as a sum; over `n_sequences` with any scored position: `n_exact`, where every one is a greedy hit, and
        `p_exact`, the summed probability that sampling gets every one right; references as `nll_<name>`,
        `correct_<name>` and, against single answers, `exact_<name>`; None where there is nothing to sum, or a sum is
        not finite. The standard errors of the two gaps that ability and memory divide by are means, in nats.

        Where a probe offers all of `decomposition.PREDICTORS`, `weight_<name>` is the share of each in the mixture nearest to
        the model, and `unexplained_nats` the divergence left per position: of the whole, no sums.

        A number is a hit within one standard deviation of the noise around the target, and its log loss is that of
        normal laws of this variance, expected over the noise; it has no probability, Brier score or exact match.
        """
        if self.scores_answers:
            return self.score_answers(self.answers(predicted, slice(None)))
        scored = predicted[self.mask].astype(np.float64)  # (n, V), or (n,)
        if self.noise_variance is not None:
            return self._row(self._of_numbers(scored))
        if self.target.ndim == 2:
            row = self._of_answers(self.answers(predicted, slice(None)))
        else:
            row = self._of_truths(scored)
        return self._row(row | self._distances(np.exp(scored), scored) | self._weights(scored))

    def _row(self, scores: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"skill": self.skill, "split": self.split, "n": int(self.mask.sum())}
        row |= scores
        row["se_ability_gap"] = self._gap_error("uniform", "generalizer")
        row["se_memory_gap"] = self._gap_error("generalizer", "memorizer")
        return row

    @property
    def scores_answers(self) -> bool:
        """Are a few numbers a position (`answers`) enough to score this probe? Not where whole distributions are compared."""
        return self.target.ndim == 2 and not self.distributions and self.noise_variance is None

    def answers(self, logs: np.ndarray, rows: Any) -> np.ndarray:
        """What log-probabilities (b, T, V) of some rows of the tokens say of the answers: (b, T, ANSWERS), 0 where nothing is scored.

        At each position: was the likeliest token right, the log-probability of the right one, its probability, the Brier score.
        """
        mask = self.mask[rows]
        scored, target = logs[mask].astype(np.float64), self.target[rows][mask]  # (n, V), (n,)
        at, probs = np.arange(len(target)), np.exp(scored)
        p = probs[at, target]
        found = np.zeros((*mask.shape, ANSWERS))
        right = scored.argmax(1) == target if len(target) else target
        found[mask] = np.stack([right, scored[at, target], p, (probs**2).sum(1) - 2 * p + 1], axis=1)
        return found

    def score_answers(self, found: np.ndarray) -> dict[str, Any]:
        """The row of sums, from `answers` of all rows: (N, T, ANSWERS)."""
        return self._row(self._of_answers(found))

    def _of_answers(self, found: np.ndarray) -> dict[str, Any]:
        """Scores of single answers (N, T, ANSWERS), and of the references."""
        hits, log_p, p, brier = (np.ascontiguousarray(column) for column in found[self.mask].T)
        n = len(hits)
        row = self._exact(hits == 1, log_p)
        row |= {"n_correct": int(hits.sum()) if n and not np.isnan(log_p).any() else None}
        row |= {
            "nll_nats": _number(-log_p.sum(), n),
            "p_correct": _number(p.sum(), n),
            "brier": _number(brier.sum(), n),
        }
        return row | self._of_references(exact=True)

    def _of_truths(self, logs: np.ndarray) -> dict[str, Any]:
        """Scores of log-probabilities (n, V) against true distributions, and of the references; scored positions alone."""
        n, probs, truth = len(logs), np.exp(logs), self.target[self.mask]  # (n, V)
        hits = (logs.argmax(1) == truth.argmax(1)).sum() if n else 0
        row: dict[str, Any] = {"n_correct": int(hits) if n and not np.isnan(logs).any() else None}
        row |= {
            "nll_nats": _number(-(truth * logs).sum(), n),
            "p_correct": _number((truth * probs).sum(), n),
            "brier": _number(((probs**2).sum(1) - 2 * (truth * probs).sum(1) + 1).sum(), n),
        }
        return row | self._of_references(exact=False)

    def _of_numbers(self, numbers: np.ndarray) -> dict[str, Any]:
        """Scores of numbers, of the references, and distances to them: (n,), scored positions alone."""
        assert self.noise_variance is not None
        n, target, variance = len(numbers), self.target[self.mask], self.noise_variance
        hits = (np.abs(numbers - target) <= np.sqrt(variance)).sum()
        row: dict[str, Any] = {"n_correct": int(hits) if n and not np.isnan(numbers).any() else None}
        row["nll_nats"] = _number(normal_loss_nats(numbers, target, variance).sum(), n)
        row |= {"p_correct": None, "brier": None} | self._of_references(exact=False)
        if {"memorizer", "generalizer"} <= self.distributions.keys():
            memorizer, generalizer = (self.distributions[k][self.mask] for k in ("memorizer", "generalizer"))
            pairs = {"memorizer": (numbers, memorizer), "generalizer": (numbers, generalizer)}
            pairs["references"] = (memorizer, generalizer)
            row |= {f"skl_{k}": _number(((a - b) ** 2).sum() / variance, n) for k, (a, b) in pairs.items()}
        return row

    def _of_references(self, exact: bool) -> dict[str, Any]:
        """What each reference scores, whole sequences included if `exact`."""
        row: dict[str, Any] = {}
        n = self.mask.sum()
        for name, reference in self.references.items():
            row[f"nll_{name}"] = float(reference.nll_nats[self.mask].sum()) if n else None
            row[f"correct_{name}"] = float(reference.correct[self.mask].sum()) if n else None
            if exact:  # a reference that guesses among ties guesses anew at each position
                right = np.where(self.mask, reference.correct, 1.0).prod(axis=1)[self.mask.any(axis=1)]
                row[f"exact_{name}"] = float(right.sum()) if n else None
        return row

    def _exact(self, hits: np.ndarray, log_p: np.ndarray) -> dict[str, Any]:
        """Sequences with every scored position right: how many greedily, how many to expect of sampling. (n,) each."""
        sequence = np.nonzero(self.mask)[0]
        n = len(self.mask)
        counts = np.bincount(sequence, minlength=n)  # (N,) scored positions
        right = np.bincount(sequence, hits, minlength=n)
        together = np.exp(np.bincount(sequence, log_p, minlength=n))
        scored = counts > 0
        total = int(scored.sum())
        exact = int((right[scored] == counts[scored]).sum()) if total and not np.isnan(log_p).any() else None
        return {"n_sequences": total, "n_exact": exact, "p_exact": _number(together[scored].sum(), total)}

    def _gap_error(self, worse: str, better: str) -> float | None:
        """Standard error, in nats, of the mean log loss between two references; sequences are the independent units."""
        counts = self.mask.sum(axis=1)  # (N,)
        if not {worse, better} <= self.references.keys() or (counts > 0).sum() < 2:
            return None
        gaps = ((self.references[worse].nll_nats - self.references[better].nll_nats) * self.mask).sum(axis=1)  # (N,)
        rest = gaps - counts * gaps.sum() / counts.sum()
        n = len(gaps)
        return float(np.sqrt((rest**2).sum() * n / (n - 1)) / counts.sum())

    def _distances(self, probs: np.ndarray, logs: np.ndarray) -> dict[str, float | None]:
        """Symmetrised KL sums, model to generaliser and memoriser and between those, where the family offers both."""
        if not {"memorizer", "generalizer"} <= self.distributions.keys():
            return {}
        memorizer = self.distributions["memorizer"][self.mask]
        generalizer = self.distributions["generalizer"][self.mask]
        log_m, log_g = np.log(memorizer), np.log(generalizer)
        sums = {
            "skl_memorizer": ((probs - memorizer) * (logs - log_m)).sum(),
            "skl_generalizer": ((probs - generalizer) * (logs - log_g)).sum(),
            "skl_references": ((memorizer - generalizer) * (log_m - log_g)).sum(),
        }
        return {name: _number(value, len(probs)) for name, value in sums.items()}

    def _weights(self, logs: np.ndarray) -> dict[str, float | None]:
        """How much of each predictor the model holds, and what no mixture of them explains, where all are on offer."""
        if not set(PREDICTORS) <= self.distributions.keys():
            return {}
        found = decompose(logs, {name: self.distributions[name][self.mask] for name in PREDICTORS})
        weights = {f"weight_{name}": found.weights[name] if found else None for name in PREDICTORS}
        return weights | {"unexplained_nats": found.residual_nats if found else None}


def normal_loss_nats(predicted: np.ndarray, mean: np.ndarray, variance: float) -> np.ndarray:
    """Expected minus log density of a draw of N(mean, variance) under N(predicted, variance), in nats; elementwise.

    That is (predicted - mean)² / (2 variance) and a constant: ratios of its differences are those of squared errors.
    """
    loss: np.ndarray = ((predicted - mean) ** 2 / variance + 1 + np.log(2 * np.pi * variance)) / 2
    return loss


def _number(value: float, n: int) -> float | None:
    """A sum over n positions as plain JSON: None over none, or where a diverged model predicts nothing finite."""
    return float(value) if n and np.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class ItemSet:
    """Sequences that the model reads, and the probes scored on that one reading.

    `written` are positions, ascending, at which the model answers for itself: its likeliest token stands there for all
    that follows, in place of the one in `tokens`. Each costs one more reading. Scores are still against the targets.
    """

    tokens: np.ndarray  # (N, T+1) int64, or (N, T+1, W) float32 where tokens are numbers
    probes: tuple[Probe, ...]
    written: tuple[int, ...] = ()  # in 0 ... T-1; position j predicts tokens[:, j + 1]

    @property
    def n_readings(self) -> int:
        """Forward passes that an evaluation of this set takes."""
        return 1 + len(self.written)

    @property
    def n_bytes(self) -> int:
        """Memory of its arrays."""
        arrays = [self.tokens]
        for probe in self.probes:
            arrays += [probe.mask, probe.target, *probe.distributions.values()]
            arrays += [array for reference in probe.references.values() for array in reference]
        return sum(array.nbytes for array in arrays)
