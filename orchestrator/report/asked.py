"""The section "What it was asked and what it answered" of studies of text. Computes no statistic."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orchestrator.analysis import by_task
from orchestrator.analysis.finding import capitalised
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.measures import over_replicates
from orchestrator.analysis.results import split_of
from orchestrator.formatting import decimal, figure, number, on_split, times
from orchestrator.report.tables import Table

MAX_CONDITIONS = 4
"""Most conditions with examples."""
BEST, WORST = 5, 5
"""Tasks that stand in the table of held-out tasks at either end."""

PREDICTORS = {
    "frequent": "the most frequent target",
    "copy": "a copy of the prompt",
    "nearest": "the target of the nearest training item",
    "memorizer": "the answer of the nearest training task",
}
"""Trivial predictors in words, by their names in `tasks.text.FLOORS`."""


class Examples(NamedTuple):
    """Example items of one item set."""

    title: str
    tasks: list[by_task.Example]


class Asked(NamedTuple):
    """The section of one condition."""

    title: str
    """The cell in words."""
    sets: Table
    """The item sets."""
    spread: str
    """A sentence on the held-out tasks."""
    means: list[str]
    """Sentences on the mean of the held-out tasks, with both intervals, and on the floor."""
    tasks: Table | None
    """The best and the worst held-out tasks; all of them if they are few."""
    examples: list[Examples]


def asked(found: Findings) -> list[Asked]:
    """The section, by condition; empty for families that are none of text, and before the first trial has ended."""
    results = found.results
    conditions = [alike[0] for alike in found.study.same_question()]
    there = {condition for condition, _, _ in results.cells_by_task()}
    return [_of(found, condition) for condition in conditions if condition in there][:MAX_CONDITIONS]


def _of(found: Findings, condition: str) -> Asked:
    results, several = found.results, len(found.study.conditions) > 1
    cell = by_task.cell_of(results, condition)
    place = f"{times(cell.n_tasks, 'training task')}, {number(cell.compute_flops)} FLOPs"
    sets = by_task.item_sets(results, cell)
    rows = [
        [
            _name(one.split),
            decimal(one.right),
            decimal(one.answered),
            figure(one.answer_tokens),
            decimal(one.floor),
            one.predictor or "—",
            figure(one.loss_nats),
            str(one.n_tasks),
            str(one.n_items),
        ]
        for one in sets
    ]
    columns = ["Item set", "Right", "Answered", "Tokens", "Floor", "Predictor", "Loss (nats)", "Tasks", "Items"]
    numeric = frozenset({1, 2, 3, 4, 6, 7, 8})
    used = dict.fromkeys(one.predictor for one in sets if one.predictor)
    words = "; ".join(f"{name}: {PREDICTORS.get(name, name)}" for name in used)
    note = f"Tokens: of a mean answer. Floor: the share right of the best trivial predictor ({words}). Loss: a target token."
    if any(one.split == "held_out_clusters" for one in sets):
        note += " Held-out tasks are of clusters that the trial trains."
    suffix = f"_{condition}" if several else ""
    table = Table(f"item_sets{suffix}", "The item sets", columns, rows, note, numeric)
    split = split_of(results, found.study.shown_skills[0])
    spread, tasks = _tasks(found, cell, split, suffix)
    asked_of = [one for question in (by_task.THESE, by_task.OTHERS) for one in found.of(question, condition)]
    means = [f"{capitalised(one.sentence)}." for one in asked_of] + _floor(by_task.floors(results, condition))
    shown = []
    for one in sets:
        replicate, those = by_task.examples(results, cell, one.split)
        if those:
            title = f"{_name(one.split)}: examples of {times(len(those), 'task')}"
            shown.append(Examples(f"{title} (replicate {replicate})", those))
    return Asked(f"{condition}: {place}" if several else place, table, spread, means, tasks, shown)


def _floor(floors: dict[int, float]) -> list[str]:
    """A sentence on the floor under ability by number of tasks; none without a floor."""
    alike = {decimal(floor) for floor in floors.values()}
    if len(alike) < 2:
        return [f"The floor under ability is {each} at every number of tasks." for each in alike]
    words = ", ".join(f"{decimal(floor)} at {times(n, 'task')}" for n, floor in floors.items())
    return [f"The floor under ability is {words}."]


def _has(n: int) -> str:
    return f"{n} {'has' if n == 1 else 'have'}"


def _name(split: str) -> str:
    words = on_split(split, of_text=True)
    return words[0].upper() + words[1:]


def _tasks(found: Findings, cell: by_task.Cell, split: str, suffix: str) -> tuple[str, Table | None]:
    """The sentence on the held-out tasks, and the table of the best and the worst."""
    names, shares = by_task.right_by_task(found.results, cell, split)
    if not names:
        return "", None
    mean = over_replicates(shares)
    order = sorted(range(len(names)), key=lambda i: (-mean[i], names[i]))
    never, always = int((mean == 0).sum()), int((mean == 1).sum())
    middle = decimal(float(np.sort(mean)[len(mean) // 2]))
    what = f"{len(names)} {on_split(split, of_text=True)}" if split == "held_out" else f"{times(len(names), 'task')}"
    own = by_task.own_tasks(shares)
    where = "in any replicate that was asked" if own else "in any replicate"
    sentence = f"Of {what}, {_has(never)} no right answer {where} and {_has(always)} all answers right; the middle one has {middle} right."
    shown = order if len(order) <= BEST + WORST else [*order[:BEST], *order[-WORST:]]
    n = shares.shape[1]
    rows = [[names[i], decimal(float(mean[i])), *(decimal(float(v)) for v in shares[i][:5])] for i in shown]
    columns = ["Task", "Right", *(f"Replicate {r}" for r in range(min(n, 5)))]
    title = (
        "Held-out tasks"
        if len(order) <= BEST + WORST
        else f"The {BEST} best and the {WORST} worst of {len(order)} tasks"
    )
    note = (
        "Share of right answers, the mean of the replicates and each of the first five. All tasks are in tasks.parquet."
    )
    note += " Each replicate is asked tasks of the clusters that it trains." if own else ""
    return sentence, Table(f"tasks{suffix}", title, columns, rows, note, frozenset(range(1, len(columns))))
