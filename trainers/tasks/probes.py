"""Batches, item sets and probes: the input of a model, and the scores of its predictions. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from trainers.tasks.decomposition import PREDICTORS, decompose


class Batch(NamedTuple):
    """Data of one optimizer step. The model reads tokens[:, :-1] and predicts tokens[:, 1:]. The loss mask selects positions."""

    tokens: np.ndarray  # (B, T+1) int64, or (B, T+1, W) float32 if tokens are numbers
    loss_mask: np.ndarray  # (B, T) bool
    positions: np.ndarray | None = None  # (B, T) int64, below T; set if several sequences share a row
    segments: np.ndarray | None = None  # (B, T) int64: number of a token's sequence; attention stays within it
    weights: np.ndarray | None = None  # (B, T) float32: weight of each written token's log-probability (arm `reward`)


class Reference(NamedTuple):
    """Scores of an exact predictor at each position of a probe: expected log loss, and probability that its likeliest token is
    right."""

    nll_nats: np.ndarray  # (N, T), finite at all scored positions
    correct: np.ndarray  # (N, T) in [0, 1]


def graded(probs: np.ndarray, answer: np.ndarray) -> Reference:
    """Score probabilities (..., V) on the right tokens `answer` (...), as a `Reference` with arrays (...).

    If several tokens are likeliest, one of them is guessed. The loss is infinite for an answer of probability 0.
    """
    p = np.take_along_axis(probs, answer[..., None], axis=-1)[..., 0]
    best = probs.max(axis=-1)
    tied = (probs >= best[..., None] - 1e-12).sum(axis=-1)
    with np.errstate(divide="ignore"):
        return Reference(-np.log(p), np.where(p >= best - 1e-12, 1 / tied, 0.0))


ANSWERS = 4
"""Number of scores per position that `Probe.answers` returns."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One skill on one item set: the scored positions, their targets and the scores of the references."""

    skill: str
    split: str  # "seen" | "held_out"
    mask: np.ndarray  # (N, T) bool
    target: np.ndarray  # (N, T) int64 token ids, or (N, T, V) probabilities: the true distribution of the next token
    references: dict[str, Reference] = field(default_factory=dict)  # uniform, memorizer, generalizer, oracle
    distributions: dict[str, np.ndarray] = field(default_factory=dict)  # (N, T, V): full predictions, for distances
    noise_variance: float | None = None
    """Set if numbers are predicted. Target and distributions are then (N, T) floats, and the target has no noise."""

    def score(self, predicted: np.ndarray) -> dict[str, Any]:
        """One row of raw counts and sums over the scored positions. Readers divide them by `n` for means.

        `predicted` is (N, T, V) log-probabilities (natural log), or (N, T) numbers. The row has:

        - `n`, the number of scored positions, and sums over them: `n_correct` (1 if the likeliest token is right), `nll_nats`,
          `p_correct` (probability of the target), `brier`;
        - for single answers `n_sequences`, the number of sequences with a scored position, and sums over them: `n_exact` (1 if
          the likeliest tokens are all right), `p_exact` (probability that sampled tokens are all right);
        - sums of the references' scores: `nll_<name>`, `correct_<name>` and, for single answers, `exact_<name>`;
        - `se_ability_gap` and `se_memory_gap`: standard errors, in nats, of the mean gaps U - G and G - M, by which ability and
          memory divide;
        - `skl_memorizer`, `skl_generalizer`, `skl_references`, if the probe has the distributions of both: sums of symmetrised
          KL divergences in nats, of the model and each reference and of the two references;
        - `weight_<name>` and `unexplained_nats`, if the probe has all of `decomposition.PREDICTORS`: the share of each in the
          mixture nearest to the model, and the remaining divergence per position. They are no sums.

        A value is None if there is nothing to sum or the sum is not finite.

        A predicted number is a hit within one standard deviation of the noise around the target. Its log loss is that of normal
        distributions of this variance, expected over the noise. It has no probability, Brier score or exact match.
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

    def not_finite(self) -> str | None:
        """The first reference with a score that is not finite at a scored position, in words; None if all are finite."""
        for name, reference in self.references.items():
            for part, scores in reference._asdict().items():
                given = scores[self.mask]
                if (wrong := ~np.isfinite(given)).any():
                    places = f"{wrong.sum()} of {given.size} scored positions"
                    return f"{part} of references['{name}']: {given[wrong][0]} at {places}"
        return None

    def _row(self, scores: dict[str, Any]) -> dict[str, Any]:
        """`scores` with the skill, the split, the number of scored positions and the standard errors of the gaps."""
        row: dict[str, Any] = {"skill": self.skill, "split": self.split, "n": int(self.mask.sum())}
        row |= scores
        row["se_ability_gap"] = self.gap_error("uniform", "generalizer")
        row["se_memory_gap"] = self.gap_error("generalizer", "memorizer")
        return row

    @property
    def scores_answers(self) -> bool:
        """Can this probe be scored from `answers`, a few numbers per position? Not if it compares whole distributions."""
        return self.target.ndim == 2 and not self.distributions and self.noise_variance is None

    def answers(self, logs: np.ndarray, rows: Any) -> np.ndarray:
        """Log-probabilities (b, T, V) -> scores of the right tokens (b, T, ANSWERS), 0 at positions that are not scored.

        `rows` selects the b sequences that `logs` belongs to: their numbers, or a slice. The scores of a position are: 1 if the
        likeliest token is right, else 0; log-probability of the right token; its probability; Brier score.
        """
        mask = self.mask[rows]
        scored, target = logs[mask].astype(np.float64), self.target[rows][mask]  # (n, V), (n,)
        at, probs = np.arange(len(target)), np.exp(scored)
        p = probs[at, target]
        answers = np.zeros((*mask.shape, ANSWERS))
        right = scored.argmax(1) == target if len(target) else target
        answers[mask] = np.stack([right, scored[at, target], p, (probs**2).sum(1) - 2 * p + 1], axis=1)
        return answers

    def score_answers(self, answers: np.ndarray) -> dict[str, Any]:
        """The row of `score`, from the `answers` (N, T, ANSWERS) of all sequences."""
        return self._row(self._of_answers(answers))

    def _of_answers(self, answers: np.ndarray) -> dict[str, Any]:
        """Sums of the scores of right tokens (N, T, ANSWERS), and sums for the references."""
        hits, log_p, p, brier = (np.ascontiguousarray(column) for column in answers[self.mask].T)
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
        """Sums for log-probabilities (n, V) at the scored positions against the true distributions, and for the references."""
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
        """Sums for predicted numbers (n,) at the scored positions, for the references, and of the distances to them."""
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
        """Sums over the scored positions for each reference. With `exact` also the expected number of wholly right sequences."""
        row: dict[str, Any] = {}
        n = self.mask.sum()
        for name, reference in self.references.items():
            row[f"nll_{name}"] = float(reference.nll_nats[self.mask].sum()) if n else None
            row[f"correct_{name}"] = float(reference.correct[self.mask].sum()) if n else None
            if exact:  # a reference breaks ties independently at each position
                right = np.where(self.mask, reference.correct, 1.0).prod(axis=1)[self.mask.any(axis=1)]
                row[f"exact_{name}"] = float(right.sum()) if n else None
        return row

    def _exact(self, hits: np.ndarray, log_p: np.ndarray) -> dict[str, Any]:
        """Number of sequences that are right at every scored position: with likeliest tokens, and expected with sampled ones.

        hits (n,) bool and log_p (n,), the log-probability of the right token, at the n scored positions.
        """
        sequence = np.nonzero(self.mask)[0]
        n = len(self.mask)
        counts = np.bincount(sequence, minlength=n)  # (N,) scored positions
        right = np.bincount(sequence, hits, minlength=n)
        together = np.exp(np.bincount(sequence, log_p, minlength=n))
        scored = counts > 0
        total = int(scored.sum())
        exact = int((right[scored] == counts[scored]).sum()) if total and not np.isnan(log_p).any() else None
        return {"n_sequences": total, "n_exact": exact, "p_exact": _number(together[scored].sum(), total)}

    def gap_error(self, worse: str, better: str) -> float | None:
        """Standard error, in nats, of the mean difference in log loss between two references, over the scored positions.

        Sequences are the independent units. None if a reference is missing or fewer than two sequences are scored.
        """
        counts = self.mask.sum(axis=1)  # (N,)
        if not {worse, better} <= self.references.keys() or (counts > 0).sum() < 2:
            return None
        gaps = ((self.references[worse].nll_nats - self.references[better].nll_nats) * self.mask).sum(axis=1)  # (N,)
        rest = gaps - counts * gaps.sum() / counts.sum()
        n = len(gaps)
        return float(np.sqrt((rest**2).sum() * n / (n - 1)) / counts.sum())

    def _distances(self, probs: np.ndarray, logs: np.ndarray) -> dict[str, float | None]:
        """Sums of symmetrised KL divergences in nats: of model and generaliser, of model and memoriser, and of these two.

        Empty unless the probe has the distributions of both. probs and logs (n, V) are the model's at the scored positions.
        """
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
        """Weight of each predictor in the mixture nearest to the model, and the remaining divergence in nats (`decompose`).

        Empty unless the probe has all PREDICTORS. logs (n, V) are the model's at the scored positions.
        """
        if not set(PREDICTORS) <= self.distributions.keys():
            return {}
        mixture = decompose(logs, {name: self.distributions[name][self.mask] for name in PREDICTORS})
        weights = {f"weight_{name}": mixture.weights[name] if mixture else None for name in PREDICTORS}
        return weights | {"unexplained_nats": mixture.residual_nats if mixture else None}


def normal_loss_nats(predicted: np.ndarray, mean: np.ndarray, variance: float) -> np.ndarray:
    """Expectation of minus the log density of N(predicted, variance) at a draw of N(mean, variance), in nats, elementwise.

    It is (predicted - mean)² / (2 variance) plus a constant. So ratios of its differences equal those of squared errors.
    """
    loss: np.ndarray = ((predicted - mean) ** 2 / variance + 1 + np.log(2 * np.pi * variance)) / 2
    return loss


def _number(value: float, n: int) -> float | None:
    """A sum over n positions as plain JSON; None if n is 0 or the sum is not finite, as for a diverged model."""
    return float(value) if n and np.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What the model is asked in an item set of text, and how its answers are judged. All lists have an entry per item."""

    prompts: list[np.ndarray]
    """Token ids that the model reads before it answers."""
    n_new: int
    """Most tokens of an answer, the end included."""
    end: int
    """Id of the token that ends an answer. -1: an answer has exactly `n_new` tokens, and always counts as ended."""
    forbidden: tuple[int, ...]
    """Ids that no answer holds: our other mark."""
    tasks: list[str]
    """Names of the tasks."""
    clusters: list[str]
    """Names of the tasks' clusters, "" without clusters."""
    texts: list[tuple[str, str]]
    """(prompt, target) as text."""
    floors: dict[str, np.ndarray]
    """Trivial predictor -> whether it is right, (N,) bool."""
    decode: Callable[[np.ndarray], str]
    """Token ids -> text."""
    scorer: Callable[[str, str, str], bool | None]
    """(prompt, target, answer) -> whether the answer is right; None if it is no answer at all."""
    oracle: Callable[[str, str, str], bool | None] | None = None
    """(prompt, target, answer) -> whether an answer that the scorer accepts is right for the right reason, every step included.
    None: the scorer is all there is."""

    def repeated(self, which: np.ndarray) -> Questions:
        """The questions numbered `which` (n,), in this order. A number may stand there several times."""
        every = which.tolist()
        return replace(
            self,
            prompts=[self.prompts[i] for i in every],
            tasks=[self.tasks[i] for i in every],
            clusters=[self.clusters[i] for i in every],
            texts=[self.texts[i] for i in every],
            floors={name: hits[which] for name, hits in self.floors.items()},
        )

    def judged(
        self, written: list[np.ndarray], ended: np.ndarray, before: Callable[[], None] = lambda: None
    ) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Judge the token ids that the model wrote, without the end: (texts, answered (N,) bool, right (N,) bool).

        An answer that did not end is no answer, and so not right. `before` is called before every eighth answer, so that a stop
        need not wait for a slow scorer; it may raise.
        """
        texts, verdicts = [self.decode(ids) for ids in written], []
        for i, (given, text, has_ended) in enumerate(zip(self.texts, texts, ended.tolist(), strict=True)):
            if i % 8 == 0:
                before()
            verdicts.append(self.scorer(*given, text) if has_ended else None)
        return texts, np.array([v is not None for v in verdicts], bool), np.array([v is True for v in verdicts], bool)


@dataclass(frozen=True, kw_only=True)
class ItemSet:
    """Sequences that the model reads in an evaluation, and the probes that are scored on its predictions for them.

    `written` are positions, ascending, at which the model writes the next token itself: later positions read its likeliest
    token instead of the one in `tokens`. Each costs one more forward pass. Scores are still against the targets.
    """

    tokens: np.ndarray  # (N, T+1) int64, or (N, T+1, W) float32 if tokens are numbers
    probes: tuple[Probe, ...]
    written: tuple[int, ...] = ()  # in 0 ... T-1; position j predicts tokens[:, j + 1]
    questions: Questions | None = None
    """Set for text: the model also answers each prompt freely. It costs one more forward pass per sequence."""

    @property
    def n_bytes(self) -> int:
        """Memory of all its arrays in bytes."""
        arrays = [self.tokens]
        for probe in self.probes:
            arrays += [probe.mask, probe.target, *probe.distributions.values()]
            arrays += [array for reference in probe.references.values() for array in reference]
        return sum(array.nbytes for array in arrays)
