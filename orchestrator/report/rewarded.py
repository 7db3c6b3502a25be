"""The section "Learning from a reward" of studies with arm `reward`. Computes no statistic."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import NamedTuple

from orchestrator.analysis.findings import Findings
from orchestrator.analysis.measures import Row
from orchestrator.analysis.samples import OUTCOMES, means
from orchestrator.formatting import counted, decimal, figure, number, on_split, percent
from orchestrator.report.curves import STARTED, Run, along, bounds_of_runs, runs_of, some, span_of
from orchestrator.report.surface import shown_of, words_of
from orchestrator.report.svg import Figure
from orchestrator.report.tables import Table

MAX_CONDITIONS = 4
"""Most conditions in the section."""
TRANSCRIPTS = 3
"""Most answers of a condition that are shown."""
MEASURES = (
    ("right", "right in training", "share of sampled answers"),
    ("entropy_nats", "entropy", "nats a token"),
    ("tokens", "answer length", "tokens"),
)
"""(name in `samples.MEANS`, title of its panel, title of its axis)."""


class Answer(NamedTuple):
    """A sampled answer with its verdict in words."""

    prompt: str
    target: str
    answer: str
    right: bool
    verdict: str


class Rewarded(NamedTuple):
    """The section of one condition."""

    figure: Figure
    place: str
    """The cell of the transcripts in words."""
    answers: list[Answer]


def conditions(found: Findings) -> list[str]:
    """The conditions of arm `reward` that have a result, at most MAX_CONDITIONS."""
    names = [alike[0] for alike in found.study.same_question()]
    rewarded = [name for name in names if found.study.conditions[name][0] == "reward" and found.ended(name)]
    return rewarded[:MAX_CONDITIONS]


def figures(found: Findings) -> list[Figure]:
    """The figure of each condition: score, share right, entropy and length along compute."""
    names = conditions(found)
    return [_figure(found, name, f"reward_{k + 1}" if len(names) > 1 else "reward") for k, name in enumerate(names)]


def rewarded(found: Findings) -> list[Rewarded]:
    """The section, by condition; empty without arm `reward`, and before its first trial has ended."""
    names = conditions(found)
    return [Rewarded(one, *_answers(found, name)) for one, name in zip(figures(found), names, strict=True)]


def outcomes(found: Findings) -> Table | None:
    """Table of the named outcomes by condition; None if no trial has one."""
    names = conditions(found)
    counts = Counter((run["outcome"], run["arm"]) for run in found.runs if run.get("outcome"))
    rows = [
        [name[0].upper() + name[1:], *(str(counts[name, condition]) for condition in names), words]
        for name, words in OUTCOMES.items()
        if any(counts[name, condition] for condition in names)
    ]
    trials = [sum(run["arm"] == condition and run["status"] == "done" for run in found.runs) for condition in names]
    columns = [
        "Outcome",
        *(f"{c}, of {n}" if len(names) > 1 else f"Trials, of {n}" for c, n in zip(names, trials, strict=True)),
    ]
    note = "docs/statistics.md has the definitions. They are of the answers sampled in training."
    numeric = frozenset(range(1, len(columns)))
    return Table("outcomes", "Named outcomes", [*columns, "Meaning"], rows, note, numeric) if rows else None


# The figure of a condition ------------------------------------------------------------------------------------------


def _figure(found: Findings, condition: str, name: str) -> Figure:
    rows: dict[int, list[Row]] = {}
    for row in found.results.sampled("samples", condition=condition):
        rows.setdefault(row["n_tasks"], []).append(row | means(row))
    levels = some([n for n in found.results.levels if n in rows])
    shown, span, budgets = shown_of(found, "ability", condition), span_of(found, [condition]), found.study.budgets
    scores = [
        run for k, n in enumerate(levels) for run in runs_of(found, *shown[:4], n, k, "round", counted(n, "task"))
    ]
    panels = []
    if scores:
        title = f"{shown.skill} on {on_split(shown.split, shown.of_text)}"
        panels.append(along(scores, title, words_of(found).axis, bounds_of_runs(scores), span, budgets))
    for measure, title, axis in MEASURES:
        runs = [run for k, n in enumerate(levels) for run in _runs(found, measure, rows[n], n, k)]
        values = {v for run in runs for stroke in run.strokes for _, v in stroke}
        if measure == "tokens" and len(values) == 1:
            continue  # answers of a fixed length
        top = 1.0 if measure == "right" else max(values) or 1.0
        panels.append(along(runs, title, axis, (-0.03 * top, 1.05 * top), span, budgets, halves=measure == "right"))
    begun = STARTED if any(run.start is not None for run in scores) else ""
    return Figure(
        name=name,
        title=f"Along training{f', {condition}' if len(conditions(found)) > 1 else ''}",
        sentence=_words(found, condition, rows[levels[-1]]),
        panels=panels,
        key=[(k, "round", counted(n, "task")) for k, n in enumerate(levels)] if len(levels) > 1 else [],
        note=f"A line is a replicate; a mark is the end of a budget. Sampled answers: the mean since the evaluation before.{begun}",
    )


def _runs(found: Findings, measure: str, rows: list[Row], n_tasks: int, colour: int) -> list[Run]:
    """The curves of a mean of the sampled answers, one a replicate. rows: those of one number of tasks, with their means."""
    runs, name = [], counted(n_tasks, "task")
    for r in sorted({row["replicate"] for row in rows}):
        mine = [row for row in rows if row["replicate"] == r]
        budgets = sorted({row["compute_flops"] for row in mine})
        drawn = budgets if found.study.grows(mine[0]["condition"]) else budgets[-1:]
        strokes = [[(row["flops"], row[measure]) for row in mine if row["compute_flops"] == c] for c in drawn]
        ends = [(row["flops"], row[measure]) for row in mine if row["phase"] == "final"]
        runs.append(Run(name, colour, "round", strokes, ends, f"{name}, replicate {r}"))
    return runs


def _words(found: Findings, condition: str, rows: list[Row]) -> str:
    """What the figure shows at the most tasks and the largest budget: means over replicates, first and last."""
    last = max(row["compute_flops"] for row in rows)
    of: dict[int, list[Row]] = {}
    for row in rows:
        if row["compute_flops"] == last:
            of.setdefault(row["replicate"], []).append(row)
    first, end = ({m: fmean(mine[i][m] for mine in of.values()) for m, _, _ in MEASURES} for i in (0, -1))
    place = f"With {counted(rows[0]['n_tasks'], 'task')} and {number(last)} FLOPs"
    words = f"{place}, {decimal(end['right'])} of the sampled answers are right at the end ({decimal(first['right'])} at first)"
    words += f"; a token has {decimal(end['entropy_nats'])} nats of entropy ({decimal(first['entropy_nats'])})"
    words += f", an answer {figure(end['tokens'])} tokens ({figure(first['tokens'])})"
    shares = sorted({run["sampling_flops_share"] for run in found.runs if run["arm"] == condition})
    charged = " to ".join(dict.fromkeys(percent(share) for share in (shares[0], shares[-1])))
    return f"{words}. Sampling is charged {charged} of the training FLOPs."


# Transcripts --------------------------------------------------------------------------------------------------------


def _answers(found: Findings, condition: str) -> tuple[str, list[Answer]]:
    """(cell in words, answers) of the last step of a trial: the most tasks, the largest budget, the first replicate."""
    rows = found.results.sampled("transcripts", condition=condition, phase="final")
    if not rows:
        return "", []
    last = max((row["n_tasks"], row["compute_flops"], -row["replicate"]) for row in rows)
    mine = [row for row in rows if (row["n_tasks"], row["compute_flops"], -row["replicate"]) == last]
    place = f"{counted(last[0], 'task')}, {number(last[1])} FLOPs, replicate {-last[2]}"
    return place, [
        Answer(row["prompt"], row["target"], row["answer"], row["right"], _verdict(row)) for row in mine[:TRANSCRIPTS]
    ]


def _verdict(row: Row) -> str:
    if row["right"]:
        return "right" if row["sound"] else "right, but not sound: wrong by the strict judge"
    return "wrong" if row["answered"] else "cannot be read as an answer" if row["ended"] else "has no end"
