"""Held-out tasks of text one by one: the mean share right with intervals over replicates, and over tasks too; the four item sets.

Replicates that train the same clusters share the held-out tasks. An interval over replicates says nothing on other tasks. Where
replicates have clusters of their own, they have tasks of their own too, and only the interval over both is given. The cell is
that of the most tasks and the largest budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from orchestrator.analysis.finding import CONFIDENCE, Ends, Finding, claim_of, in_condition
from orchestrator.analysis.measures import over_replicates
from orchestrator.analysis.results import Results, split_of
from orchestrator.formatting import decimal, number, on_split, sure, times
from orchestrator.stats.crossed import crossed
from trainers.tasks.text import FLOORS, SPLITS

THESE, OTHERS = "right on these tasks", "right on other tasks"
"""`Finding.question` of the mean over held-out tasks, with an interval over replicates, and over tasks and replicates."""


class Cell(NamedTuple):
    """The cell that is shown task by task."""

    condition: str
    n_tasks: int
    compute_flops: float


def cell_of(results: Results, condition: str) -> Cell:
    """The cell of a condition with the most tasks and the largest budget that has a row by task; without one, of the axes."""
    levels = {(n_tasks, flops) for name, n_tasks, flops in results.cells_by_task() if name == condition}
    return Cell(condition, *max(levels, default=(results.levels[-1], results.budgets[-1])))


def ask(results: Results) -> Iterator[Finding]:
    """The mean share right of a held-out task in each condition, with both intervals. Nothing for families that are none of text."""
    if not results.cells_by_task():
        return
    for condition in results.study.conditions:
        cell, split = cell_of(results, condition), split_of(results, results.study.shown_skills[0])
        _, shares = right_by_task(results, cell, split)
        for question in (OTHERS,) if own_tasks(shares) else (THESE, OTHERS):
            yield _mean(results, cell, split, question, shares)


def _mean(results: Results, cell: Cell, split: str, question: str, shares: np.ndarray) -> Finding:
    """One of both findings. shares: (tasks, replicates)."""
    own, skill = own_tasks(shares), results.study.shown_skills[0]
    found = crossed(shares, own_units=own)
    what = f"{on_split(split, of_text=True)}{in_condition(results, cell.condition)}"
    place = f"at {number(cell.n_tasks)} tasks and {number(cell.compute_flops)} FLOPs"

    def words(one: Finding) -> str:
        if found is None:
            return f"no answer on {what} {place} was recorded"
        units = f"{times(found.n_units, 'task')} and {times(found.n_replicates, 'replicate')}"
        scope = "further replicates on these tasks" if question == THESE else "other tasks of this kind, too"
        units += ", each with tasks of its own" if own else ""
        has = f"{sure(CONFIDENCE)} interval {decimal(one.low)} to {decimal(one.high)} for {scope}; {units}"
        none = f"no interval for {scope}: {units}{' that are alike' if found.n_replicates > 1 else ''}"
        return (
            f"the mean share right of {what} {place} is {decimal(one.estimate)} ({has if one.has_interval else none})"
        )

    return Finding(
        name=claim_of(question, "right", cell.condition, skill, f"{cell.n_tasks}/{cell.compute_flops!r}"),
        question=question,
        words=words,
        condition=cell.condition,
        skill=skill,
        n_tasks=cell.n_tasks,
        compute_flops=cell.compute_flops,
        verdict="missing" if found is None else "measured",
        answered=found is not None,
        n=0 if found is None else found.n_replicates,
        estimate=None if found is None else found.mean,
        interval=partial(_ends, shares, question),
        counted=False,
    )


def _ends(shares: np.ndarray, question: str, confidence: float) -> Ends:
    found = crossed(shares, confidence, own_tasks(shares))
    ends = None if found is None else found.over_replicates if question == THESE else found.over_both
    return ends or (None, None)


def own_tasks(shares: np.ndarray) -> bool:
    """Whether replicates were asked different tasks. shares: (tasks, replicates), NaN missing."""
    known = ~np.isnan(shares)
    return not known[:, known.any(axis=0)].all()


def right_by_task(results: Results, cell: Cell, split: str) -> tuple[list[str], np.ndarray]:
    """Names of the tasks of a split in a cell, and the share of right answers to each: (tasks, replicates), NaN missing."""
    rows = results.of_text("tasks", **cell._asdict(), split=split)
    names = {name: i for i, name in enumerate(sorted({row["task"] for row in rows}))}
    shares = np.full((len(names), results.n_replicates), np.nan)
    for row in rows:
        if row["n_sequences"] and row["replicate"] < results.n_replicates:
            shares[names[row["task"]], row["replicate"]] = row["n_right"] / row["n_sequences"]
    return list(names), shares


def asked_alike(results: Results, conditions: Sequence[str]) -> bool:
    """Whether these conditions were asked the same held-out tasks, as far as they have rows by task."""
    there = {condition for condition, _, _ in results.cells_by_task()}
    split = split_of(results, results.study.shown_skills[0])
    names = [right_by_task(results, cell_of(results, c), split)[0] for c in conditions if c in there]
    return all(some == names[0] for some in names)


class Seen(NamedTuple):
    """An item set in a cell: counts in one replicate, and means over the replicates; None is missing."""

    split: str
    n_tasks: int
    n_items: int
    answered: float | None
    right: float | None
    answer_tokens: float | None
    """Mean tokens of an answer."""
    floor: float | None
    predictor: str
    """The trivial predictor that is the floor, a name of FLOORS: the one right most often."""
    loss_nats: float | None


OF_ANSWERS = ("answered", "right", "answer_tokens", "floor")
"""Measures of the free answers in an item set."""


def item_sets(results: Results, cell: Cell) -> list[Seen]:
    """The four item sets of a cell, as far as they were read, in the order of SPLITS."""
    found, skill = [], results.study.shown_skills[0]
    place = results.levels.index(cell.n_tasks), results.budgets.index(cell.compute_flops)

    def mean(cube: np.ndarray) -> float | None:
        value = float(over_replicates(cube[place]))
        return None if np.isnan(value) else value

    for split in SPLITS:
        names, shares = right_by_task(results, cell, split)
        if not names:
            continue
        of = {name: mean(results.cube(name, cell.condition, skill, split)) for name in OF_ANSWERS}
        hits = {name: mean(results.counts(f"sum_right_{name}", cell.condition, skill, split)) for name in FLOORS}
        known = {name: value for name, value in hits.items() if value is not None}
        n_items = mean(results.counts("n_sequences", cell.condition, skill, split)) or 0
        loss = mean(results.cube("loss_nats", cell.condition, skill, split))
        predictor = max(known, key=lambda name: known[name]) if known else ""
        tasks = int((~np.isnan(shares)).sum(axis=0).max())
        found.append(Seen(split, tasks, round(n_items), **of, predictor=predictor, loss_nats=loss))
    return found


def floors(results: Results, condition: str) -> dict[int, float]:
    """Number of tasks -> the floor under ability, the mean over replicates. It is the same at all budgets. Missing ones are left out."""
    skill = results.study.shown_skills[0]
    cube = results.cube("floor", condition, skill, split_of(results, skill))
    means = over_replicates(cube.reshape(len(cube), -1))
    return {n: mean for n, mean in zip(results.levels, means.tolist(), strict=True) if not np.isnan(mean)}


class Example(NamedTuple):
    """Items of one task with the model's answers."""

    task: str
    right: float
    """Share of right answers to all its items that were read."""
    items: list[dict[str, object]]
    """Rows of `examples.parquet`."""


MAX_EXAMPLES = 4
"""Most tasks of an item set with examples."""


def examples(results: Results, cell: Cell, split: str) -> tuple[int, list[Example]]:
    """(replicate, examples) of an item set in a cell: tasks from the one answered best to the one answered worst, evenly chosen.

    Of the first replicate that has some. Empty without any.
    """
    rows = results.of_text("examples", **cell._asdict(), split=split)
    if not rows:
        return 0, []
    first = min(row["replicate"] for row in rows)
    names, shares = right_by_task(results, cell, split)
    right = dict(zip(names, shares[:, first].tolist(), strict=True))
    of: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        if row["replicate"] == first:
            of.setdefault(str(row["task"]), []).append(row)
    ranked = sorted(of, key=lambda task: (-right[task], task))
    chosen = np.unique(np.linspace(0, len(ranked) - 1, MAX_EXAMPLES).round().astype(int)).tolist()
    return first, [Example(ranked[i], right[ranked[i]], of[ranked[i]]) for i in chosen]
