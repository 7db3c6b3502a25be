"""Rows of the plan on the data of studies of text: counts, leaks, and padding of the rows into which items are packed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from orchestrator.formatting import percent, times
from orchestrator.record.provenance import data_of
from orchestrator.report.facts import data_words
from orchestrator.stats.measures import MIN_ITEMS
from orchestrator.study.schema import Study
from trainers.spec import TrunkSpec

MAX_PADDING = 0.25
"""With a larger share of padding in the training rows, the plan warns."""
_BATCHES = 3
_LONGER = (1.5, 2, 3, 4, 6, 8)
"""Multiples of the row's length that are tried where padding is above MAX_PADDING."""


def data_rows(study: Study) -> list[tuple[str, str]]:
    """(name, words) on tables, leaks and padding; empty for families without text."""
    rows, several = [], data_of(study).get("data", [])
    for one in several:
        of = f"{', '.join(one['conditions'])}: " if len(several) > 1 else ""
        words = (f"{name.lower()}: {text}" for name, text in data_words(one["facts"]))
        rows += [("data", of + "\n".join(words)), ("leaks", of + "\n".join(one["facts"].get("leaks", [])))]
        if n := one["facts"].get("n_altered"):
            rows.append(("warning", f"{of}the tokenizer alters {times(n, 'target')}; {one['facts']['altered']}"))
    alike: dict[str, list[TrunkSpec]] = {}  # the trunks of each family and arm
    for trunk in study.trunks():
        alike.setdefault(json.dumps([trunk.arm, trunk.family.model_dump(mode="json")]), []).append(trunk)
    for trunks in alike.values():
        of = f"{study.condition_of(trunks[0].arm, trunks[0].variant)}: " if len(alike) > 1 else ""
        rows += _few_rows(trunks, of) + _padding_rows(trunks[0], of)
    return rows


def _few_rows(trunks: list[TrunkSpec], of: str) -> list[tuple[str, str]]:
    """A warning if some trunks of a family are asked fewer held-out items than ability needs."""
    family: Any = trunks[0].family
    if family.ability_of != "right":
        return []
    counts = {(trunk.n_tasks, trunk.replicate): family.n_chosen(trunk.request, "held_out") for trunk in trunks}
    few = {place: n for place, n in counts.items() if n < MIN_ITEMS}
    if not few:
        return []
    (n_tasks, replicate), n = min(few.items(), key=lambda item: item[1])
    where = f" with {times(n_tasks, 'task')} in replicate {replicate}" if len(few) < len(counts) else ""
    asked = f"{of}{n} held-out items of trained clusters are asked{where}, and ability needs {MIN_ITEMS}"
    return [("warning", f"{asked}; raise evaluation.n_sequences, or hold out or train more tasks")]


def _padding_rows(trunk: TrunkSpec, of: str) -> list[tuple[str, str]]:
    """The share of padding in the rows of a trunk, and a warning with better `row_tokens` if it is large."""
    family: Any = trunk.family
    if (share := padding(trunk)) is None:
        return []
    rows = [("padding", f"{of}{percent(share)} of packed rows of {family.length(trunk.arm)} tokens")]
    if share <= MAX_PADDING:
        return rows
    better: list[str] = []
    for n in (int(-(-factor * family.length(trunk.arm) // 16) * 16) for factor in _LONGER):
        if "row_tokens" in type(family).model_fields and len(better) < 2:
            longer = trunk.model_copy(update={"family": family.model_copy(update={"row_tokens": n})})
            if (less := padding(longer) or 0.0) <= MAX_PADDING:
                better.append(f"{n} ({percent(less)})")
    hint = f"; family.row_tokens: {' or '.join(better)} would do" if better else ""
    return [*rows, ("warning", f"{of}more than {percent(MAX_PADDING)} of the training compute goes into padding{hint}")]


def padding(trunk: TrunkSpec) -> float | None:
    """The share of padding in the first batches of a trunk; None if its rows are not packed, as in arm `reward`."""
    family: Any = trunk.family
    if family.ability_of != "right" or trunk.reward is not None:
        return None
    found = [family.batch(trunk.request, step).segments for step in range(_BATCHES)]
    return float(np.mean([(segments < 0).mean() for segments in found]))
