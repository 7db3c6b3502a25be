"""Measures from the raw counts and sums of evaluations: ability, memory, accuracy and others.

A measure takes columns of the table `results` and returns an array (rows,), with NaN for missing or undefined.
A column that holds a sum over items is named `sum_...`; a mean has its plain name, a key of MEASURES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from orchestrator import stats
from trainers.tasks.decomposition import PREDICTORS
from trainers.tasks.text import FLOORS

Row = dict[str, Any]
"""A row of a table: column -> value, None if missing."""

Columns = Mapping[str, np.ndarray]
"""Columns of the table `results`: name -> (rows,). A row is one evaluation of one skill on one split."""


def _share(total: str, count: str = "n") -> Callable[[Columns], np.ndarray]:
    """The measure column `total` / column `count`: a mean over items, or over sequences. NaN for a count of 0."""

    def measure(columns: Columns) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(columns[count] > 0, columns[total] / columns[count], np.nan)

    return measure


def _ability(columns: Columns) -> np.ndarray:
    """Ability from raw sums; NaN with fewer than MIN_ITEMS items, or if a reference is missing or both coincide."""
    nll, uniform, generalizer = (_share(f"sum_nll_{k}")(columns) for k in ("nats", "uniform", "generalizer"))
    found = stats.abilities(nll, uniform, generalizer, columns["se_ability_gap"])
    return np.where(columns["n"] >= stats.MIN_ITEMS, found, np.nan)


MAX_MEMORIZER = 0.9
"""Ability from accuracy is undefined if the memoriser is right more often than this: too little is left above it."""


def _ability_of_matches(columns: Columns) -> np.ndarray:
    """Exact matches beyond the memoriser's on the same items, (acc - acc_M) / (1 - acc_M); NaN if acc_M is above 0.9, or
    with fewer than MIN_ITEMS sequences."""
    mine, memorizer = (_share(name, "n_sequences")(columns) for name in ("n_exact", "sum_exact_memorizer"))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (mine - memorizer) / (1 - memorizer)
    return np.where((columns["n_sequences"] >= stats.MIN_ITEMS) & (memorizer <= MAX_MEMORIZER), found, np.nan)


MAX_FLOOR = 0.9
"""Ability from right answers is undefined if a trivial predictor is right more often than this."""


def _ability_of_answers(columns: Columns) -> np.ndarray:
    """Right free answers beyond the best trivial predictor on the same items, (right - floor) / (1 - floor).

    NaN if the floor is above MAX_FLOOR, or with fewer than MIN_ITEMS items."""
    mine, floor = _share("n_right", "n_sequences")(columns), _floor(columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (mine - floor) / (1 - floor)
    return np.where((columns["n_sequences"] >= stats.MIN_ITEMS) & (floor <= MAX_FLOOR), found, np.nan)


def _floor(columns: Columns) -> np.ndarray:
    """The share of items on which the best trivial predictor (FLOORS) is right; NaN without one."""
    shares = np.stack([_share(f"sum_right_{name}", "n_sequences")(columns) for name in FLOORS])
    return np.where(np.isnan(shares).all(axis=0), np.nan, np.nanmax(np.nan_to_num(shares, nan=-1.0), axis=0))


def _memory_of_items(columns: Columns) -> np.ndarray:
    """1 - loss on training items / loss on new items of the same tasks: 0 recalls no item, 1 all of them.

    On the rows of new items only, which hold both losses. NaN if the loss on new items is below MIN_GAP_NATS a token: a ratio of
    two such small losses is noise."""
    trained, new = _share("sum_nll_train_items", "n_train_tokens")(columns), _share("sum_nll_nats")(columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - trained / new
    return np.where((columns["split"] == "seen") & (new >= stats.MIN_GAP_NATS), found, np.nan)


def _undefined(columns: Columns) -> np.ndarray:
    """NaN in every row, for a measure that a family does not define."""
    return np.full(len(columns["n"]), np.nan)


def _memory(columns: Columns) -> np.ndarray:
    """Memory from raw sums, on training tasks only; NaN if a reference is missing or both coincide."""
    nll, generalizer, memorizer = (_share(f"sum_nll_{k}")(columns) for k in ("nats", "generalizer", "memorizer"))
    found = stats.memories(nll, generalizer, memorizer, columns["se_memory_gap"])
    return np.where(columns["split"] == "seen", found, np.nan)


def _relative_distance(columns: Columns) -> np.ndarray:
    """The relative distance d_rel from the mean symmetrised KL divergences between model and references."""
    names = (f"sum_skl_{name}" for name in ("generalizer", "memorizer", "references"))
    return stats.relative_distances(*(columns[name] for name in names))


def _excess(reference: str) -> Callable[[Columns], np.ndarray]:
    """The measure log loss of a reference less that of the oracle, in nats."""

    def measure(columns: Columns) -> np.ndarray:
        return _share(f"sum_nll_{reference}")(columns) - _share("sum_nll_oracle")(columns)

    return measure


_WEIGHTS = [*(f"weight_{name}" for name in PREDICTORS), "unexplained_nats"]


MEASURES: dict[str, Callable[[Columns], np.ndarray]] = {
    "accuracy": _share("n_correct"),
    "probability": _share("sum_p_correct"),
    "brier": _share("sum_brier"),
    "loss_nats": _share("sum_nll_nats"),
    "exact_match": _share("n_exact", "n_sequences"),
    "predicted_exact_match": _share("sum_p_exact", "n_sequences"),
    "answered": _share("n_answered", "n_sequences"),
    "right": _share("n_right", "n_sequences"),
    "answer_tokens": _share("n_written", "n_sequences"),
    "long_answers": _share("n_long", "n_sequences"),
    "floor": _floor,
    "ability": _ability,
    "memory": _memory,
    "d_rel": _relative_distance,
    "excess_memorizer_nats": _excess("memorizer"),
    "excess_generalizer_nats": _excess("generalizer"),
    "memorizer_accuracy": _share("sum_correct_memorizer"),
    "generalizer_accuracy": _share("sum_correct_generalizer"),
    "oracle_accuracy": _share("sum_correct_oracle"),
    "uniform_loss_nats": _share("sum_nll_uniform"),
    "generalizer_loss_nats": _share("sum_nll_generalizer"),
    "memorizer_loss_nats": _share("sum_nll_memorizer"),
    "oracle_loss_nats": _share("sum_nll_oracle"),
} | {name: itemgetter(name) for name in _WEIGHTS}
"""Name -> function that computes the measure from columns of the table `results`.

`accuracy`: share of items whose most probable answer is right. `probability`: mean probability of the right answer, which is
the accuracy of sampled decoding. `loss_nats`: mean log loss. `exact_match`: share of sequences whose most probable answers are
all right. `predicted_exact_match`: the same predicted for sampled decoding, the mean product of the probabilities.
`answered`, `right`: shares of free answers to text that ended, and that the scorer accepts. `answer_tokens`: mean tokens of an
answer, without its end. `long_answers`: share of answers with more than half of the tokens that are allowed. `floor`: the share
on which the best trivial predictor is right.
`excess_*_nats`: a reference's mean log loss above the oracle's. `weight_<predictor>`: a predictor's share in the mixture of known
predictors nearest to the model. `unexplained_nats`: the distance of the model from this mixture."""


_OF_FAMILY: dict[str, dict[str, Callable[[Columns], np.ndarray]]] = {
    "accuracy": {"ability": _ability_of_matches, "memory": _undefined},
    "right": {"ability": _ability_of_answers, "memory": _memory_of_items},
}
"""`Family.ability_of` -> entries that replace those of MEASURES."""


def measure_of(name: str, ability_of: str) -> Callable[[Columns], np.ndarray]:
    """The function of a measure by its name in MEASURES. ability_of: `Family.ability_of`, which selects the kind of ability."""
    return _OF_FAMILY.get(ability_of, {}).get(name, MEASURES[name])


HEADLINE = ("ability", "accuracy", "memory")
"""Measures of a trial: ability and accuracy of the headline skill at its end, memory of the training tasks before the decay."""


def headline(ability_of: str) -> tuple[str, str, str]:
    """HEADLINE for families with this `Family.ability_of`. Of text, `right` takes the place of accuracy, which counts tokens."""
    return ("ability", "right", "memory") if ability_of == "right" else HEADLINE


def compared_on(ability_of: str) -> tuple[str, ...]:
    """Splits on which a skill is compared: the first of them on which it was measured.

    Of text held-out tasks alone: other item sets answer other questions. ability_of: `Family.ability_of`.
    """
    return ("held_out",) if ability_of == "right" else ("held_out", "seen")


REFERENCES = ("uniform", "generalizer", "memorizer", "oracle")

SUMS = (
    *("nll_nats", "p_correct", "brier", "p_exact"),
    *(f"nll_{name}" for name in REFERENCES),
    *(f"correct_{name}" for name in REFERENCES),
    "exact_memorizer",
    *(f"right_{name}" for name in FLOORS),
    "nll_train_items",
    *(f"skl_{name}" for name in ("memorizer", "generalizer", "references")),
)
"""Sums over items in the rows of an evaluation event (`trainers.tasks.probes`), by their names there."""

RAW = {f"sum_{name}": name for name in SUMS} | {"mean_train_loss_nats": "train_loss_nats"}
"""Column of the table `results` -> key in an evaluation event, for all columns whose names differ."""

_AXES = ("n_tasks", "compute_flops", "replicate", "step", "flops")

_COUNTS = ("n", "n_correct", "n_sequences", "n_exact", "n_answered", "n_right", "n_written", "n_long", "n_train_tokens")
_ERRORS = ("se_ability_gap", "se_memory_gap")
_OF_ROWS = (*_COUNTS, *(f"sum_{name}" for name in SUMS), *_WEIGHTS, *_ERRORS)

NUMBER_COLUMNS = (*_AXES, *_OF_ROWS)
"""Columns of the table `results` with numbers: place, counts, sums over items (`sum_nll_*` in nats), mixture weights and
standard errors."""

WORD_COLUMNS = ("arm", "skill", "split", "phase")
"""Columns of the table `results` with strings."""


def of_rows(measure: str, rows: Sequence[Row], ability_of: str = "nll") -> list[float | None]:
    """A measure of single rows of raw counts and sums, as an evaluation event holds them; None if missing or undefined.

    measure: a key of MEASURES. ability_of: `Family.ability_of`, which selects the kind of ability.
    """
    if not rows:
        return []
    columns: dict[str, np.ndarray] = {
        name: np.array([row.get(RAW.get(name, name)) for row in rows], float) for name in _OF_ROWS
    }
    columns["split"] = np.array([row.get("split") for row in rows], object)
    return [_or_none(value) for value in measure_of(measure, ability_of)(columns)]


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def over_replicates(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN, (..., replicates) -> (...); NaN if all are NaN."""
    known = ~np.isnan(values)
    n = known.sum(-1)
    return np.where(n > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(n, 1), np.nan)
