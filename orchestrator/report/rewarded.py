"""The section "Learning from a reward" of studies with arm `reward`. Computes no statistic."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from orchestrator.analysis.answer import listed
from orchestrator.analysis.finding import capitalised
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.measures import Row
from orchestrator.analysis.reranking import CLASSES, Reranking, reranking
from orchestrator.analysis.samples import OUTCOMES, means
from orchestrator.formatting import decimal, figure, number, on_split, percent
from orchestrator.report.curves import STARTED, Run, along, bounds_of_runs, runs_of, some, span_of
from orchestrator.report.surface import TASKS, Plane, planes, shown_of, split_planes, words_of
from orchestrator.report.svg import Figure
from orchestrator.report.tables import Table
from trainers import budget

MAX_PLANES = 4
"""Most conditions, or series of conditions along a family parameter, with a figure. The tables have all."""
TRANSCRIPTS = 3
"""Most answers of a trial that are shown."""
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
    """The section of one plane."""

    figure: Figure
    place: str
    """The cell of the answers in words."""
    answers: list[Answer]


class _Line(NamedTuple):
    """The trials of one colour in a figure: one number of tasks, or one value of the family parameter."""

    name: str
    condition: str
    n_tasks: int
    rows: list[Row]
    """Their rows of `samples`, with the means."""


def figures(found: Findings) -> list[Figure]:
    """The figure of each plane: score, share right, entropy and length along compute."""
    return [one.figure for one in rewarded(found)]


def rewarded(found: Findings) -> list[Rewarded]:
    """The section, by plane; empty without arm `reward`, and before its first trial has ended."""
    every = _planes(found)
    those, others = split_planes(found, every, MAX_PLANES)
    made = []
    for k, plane in enumerate(those):
        lines, several = _lines(found, plane), len(every) > 1
        title = f"Along training{f', {plane.name}' if several else ''}"
        one = _figure(found, lines, f"reward_{k + 1}" if several else "reward", title)
        made.append(Rewarded(one, *_answers(found, lines)))
    if others:
        last = made[-1].figure
        more = f" Not drawn: {listed([plane.name for plane in others])}; samples.parquet has them."
        made[-1] = made[-1]._replace(figure=replace(last, note=last.note + more))
    return made


def outcomes(found: Findings) -> Table | None:
    """Table of the named outcomes by plane; None if no trial has one. Planes without any are left out."""
    done = {
        plane.name: [run for run in found.runs if run["arm"] in plane.conditions and run["status"] == "done"]
        for plane in _planes(found)
    }
    some_have = [name for name, runs in done.items() if any(run["outcome"] for run in runs)]
    counts = [Counter(run["outcome"] for run in done[name]) for name in some_have]
    seen = [name for name in OUTCOMES if any(count[name] for count in counts)]
    rows = [[capitalised(name), *(str(count[name]) for count in counts)] for name in seen]
    columns = ["Outcome", *(f"{name if len(done) > 1 else 'Trials'}, of {len(done[name])}" for name in some_have)]
    meant = " ".join(f"{capitalised(name)}: {OUTCOMES[name]}." for name in seen)
    note = f"{meant} docs/statistics.md has the definitions, which are of the answers sampled in training."
    numeric = frozenset(range(1, len(columns)))
    return Table("outcomes", "Named outcomes", columns, rows, note, numeric) if rows else None


def against_start(found: Findings) -> Table | None:
    """Table of the newly right answers by condition and number of tasks, at the largest budget; None without a start."""
    rows = []
    for condition in (name for plane in _planes(found) for name in plane.conditions):
        for n in found.results.levels:
            runs = [run for run in found.runs if (run["n_tasks"], run["arm"]) == (n, condition)]
            last = max((run["compute_flops"] for run in runs if run["status"] == "done"), default=0.0)
            if (one := reranking([run for run in runs if run["compute_flops"] == last])) is None:
                continue
            shares = [decimal(share) for share in (one.start_right, one.start_sampled, one.end_right)]
            rows.append([condition, number(n), *shares, *(_of_new(one, name) for name in CLASSES)])
    columns = [
        "Condition",
        "Tasks",
        "Start, likeliest",
        "Start, any sample",
        "End, likeliest",
        *map(str.title, CLASSES),
    ]
    note = (
        "Held-out prompts that the start model and the trial answer right, at the largest budget. The last columns count "
        "the newly right answers, with 95 % intervals of their shares (prompts as units). Sharpened: a right answer was among "
        "the start model's samples. Composed: none was, but each token of the answer was likely enough. Created: some token "
        "was not."
    )
    return Table("reranking", "New skill or re-ranking?", columns, rows, note, frozenset(range(1, 8))) if rows else None


def _of_new(one: Reranking, name: str) -> str:
    """`31 of 40 (.62 to .88)`."""
    if not one.n_new:
        return "–"
    low, high = one.interval(name)
    return f"{one.of_class[name]} of {one.n_new} ({decimal(low)} to {decimal(high)})"


def _planes(found: Findings) -> list[Plane]:
    """The planes of arm `reward` with a result."""
    arms = {name: arm for name, (arm, _) in found.study.conditions.items()}
    those = [plane for plane in planes(found) if arms[plane.conditions[0]] == "reward"]
    return [plane for plane in those if any(map(found.ended, plane.conditions))]


def _lines(found: Findings, plane: Plane) -> list[_Line]:
    """The lines of a plane with a result, at most as many as a figure shows."""
    places = [(plane.name, int(n)) for n in plane.levels]
    if plane.rows != TASKS:
        places = [(condition, found.results.levels[0]) for condition in plane.conditions]
    lines = []
    for level, (condition, n_tasks) in zip(plane.levels, places, strict=True):
        rows = [row | means(row) for row in found.results.sampled("samples", condition=condition, n_tasks=n_tasks)]
        lines += [_Line(plane.rows.place(level), condition, n_tasks, rows)] if rows else []
    return some(lines)


# Figures ------------------------------------------------------------------------------------------------------------


def _figure(found: Findings, lines: list[_Line], name: str, title: str) -> Figure:
    conditions = list(dict.fromkeys(line.condition for line in lines))
    shown, span, budgets = shown_of(found, "ability", conditions[0]), span_of(found, conditions), found.study.budgets
    scores = [
        run
        for k, line in enumerate(lines)
        for run in runs_of(
            found, shown.measure, line.condition, shown.skill, shown.split, line.n_tasks, k, "round", line.name
        )
    ]
    panels = []
    if scores:
        on = f"{shown.skill} on {on_split(shown.split, shown.of_text)}"
        panels.append(along(scores, on, words_of(found).axis, bounds_of_runs(scores), span, budgets))
    for measure, what, axis in MEASURES:
        runs = [run for k, line in enumerate(lines) for run in _runs(found, measure, line, k)]
        values = {v for run in runs for stroke in run.strokes for _, v in stroke}
        if measure == "tokens" and len(values) == 1:
            continue  # answers of a fixed length
        top = 1.0 if measure == "right" else max(values) or 1.0
        panels.append(along(runs, what, axis, (-0.03 * top, 1.05 * top), span, budgets, halves=measure == "right"))
    begun = STARTED if any(run.start is not None for run in scores) else ""
    return Figure(
        name=name,
        title=title,
        sentence=_words(found, lines[-1]),
        panels=panels,
        key=[(k, "round", line.name) for k, line in enumerate(lines)] if len(lines) > 1 else [],
        note=f"A line is a replicate; a mark is the end of a budget. Sampled answers: the mean since the evaluation before.{begun}",
    )


def _runs(found: Findings, measure: str, line: _Line, colour: int) -> list[Run]:
    """The curves of a mean of the sampled answers, one a replicate."""
    runs = []
    for r in sorted({row["replicate"] for row in line.rows}):
        mine = [row for row in line.rows if row["replicate"] == r]
        budgets = sorted({row["compute_flops"] for row in mine})
        drawn = budgets if found.study.grows(line.condition) else budgets[-1:]
        strokes = [[(row["flops"], row[measure]) for row in mine if row["compute_flops"] == c] for c in drawn]
        ends = [(row["flops"], row[measure]) for row in mine if row["phase"] == "final"]
        runs.append(Run(line.name, colour, "round", strokes, ends, f"{line.name}, replicate {r}"))
    return runs


def _words(found: Findings, line: _Line) -> str:
    """What is seen at the largest budget of a line, in means over replicates, first and last; and the share of sampling."""
    last = max(row["compute_flops"] for row in line.rows)
    of: dict[int, list[Row]] = {}
    for row in line.rows:
        if row["compute_flops"] == last:
            of.setdefault(row["replicate"], []).append(row)
    first, end = ({m: fmean(mine[i][m] for mine in of.values()) for m, _, _ in MEASURES} for i in (0, -1))
    words = (
        f"At {line.name} and {number(last)} FLOPs, {decimal(end['right'])} of the sampled answers are right at the end"
    )
    words += f" ({decimal(first['right'])} at first), with {decimal(end['entropy_nats'])} nats of entropy a token"
    words += f" ({decimal(first['entropy_nats'])})"
    if len({row["tokens"] for row in line.rows}) > 1:
        words += f" and {figure(end['tokens'])} tokens an answer ({figure(first['tokens'])})"
    (share,) = {
        run["sampling_flops_share"]
        for run in found.runs
        if run["arm"] == line.condition and run["compute_flops"] == last
    }
    mine = [t for t in found.study.trunks() if found.study.condition_of(t.arm, t.variant) == line.condition]
    charged = next((number(trunk.start.flops) for trunk in mine if trunk.start), "")
    begun = f" Training began with another trial's weights, whose {charged} FLOPs are charged." if charged else ""
    cost = budget.sampling_flops(mine[0]) / mine[0].training.batch_size  # of an answer, as charged
    written = [row["sum_flops"] / (row["n_samples"] * cost) for row in line.rows if row["sum_flops"]]
    short = written and fmean(written) < 0.995
    own = f", of which {percent(fmean(written))} were for tokens that were written" if short else ""
    return f"{words}. Sampling is charged {percent(share)} of the training FLOPs{own}.{begun}"


# Transcripts --------------------------------------------------------------------------------------------------------


def _answers(found: Findings, lines: list[_Line]) -> tuple[str, list[Answer]]:
    """(cell in words, answers) of the last step of a trial: of the last line, the largest budget, the first replicate."""
    for line in reversed(lines):
        rows = found.results.sampled("transcripts", condition=line.condition, n_tasks=line.n_tasks, phase="final")
        if rows:
            budget, replicate = max((row["compute_flops"], -row["replicate"]) for row in rows)
            mine = [row for row in rows if (row["compute_flops"], -row["replicate"]) == (budget, replicate)]
            place = f"{line.name}, {number(budget)} FLOPs, replicate {-replicate}"
            return place, [_answer(row) for row in mine[:TRANSCRIPTS]]
    return "", []


def _answer(row: Row) -> Answer:
    verdict = "wrong" if row["answered"] else "cannot be read as an answer" if row["ended"] else "has no end"
    if row["right"]:
        verdict = "right" if row["sound"] else "right, but wrong by the strict judge"
    return Answer(row["prompt"], row["target"], row["answer"], row["right"], verdict)
