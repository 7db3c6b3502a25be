"""Tables and texts of a report, made from findings. Computes no statistic."""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from orchestrator.analysis import by_task, onsets
from orchestrator.analysis.finding import Finding, capitalised
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.generalists import ALL
from orchestrator.analysis.measures import headline
from orchestrator.analysis.results import scope_of, surface
from orchestrator.formatting import clock, decimal, figure, number, on_split, range_words, sure, times
from orchestrator.report.svg import Row
from orchestrator.study.pairs import pairs_of
from orchestrator.study.schema import PARTS, StartFrom, Study, Variant, model_words
from trainers.tasks import Family

MAX_ROWS = 300
"""Most rows of a table on the page. A longer table is a CSV file beside the page, and the page shows its first rows."""


class Table(NamedTuple):
    """A table of text for the page, drawn by the template macro `table`."""

    name: str
    """The name of its CSV file and of its anchor."""
    title: str
    columns: list[str]
    """Headings."""
    rows: list[list[str]]
    """Cells, in the order of `columns`."""
    note: str = ""
    numeric: frozenset[int] = frozenset()
    """Indices of the columns that are set flush right."""

    @property
    def shown(self) -> list[list[str]]:
        """The rows that the page shows: the first MAX_ROWS."""
        return self.rows[:MAX_ROWS]

    @property
    def csv(self) -> list[Row]:
        """All rows for the CSV file, heading -> cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


# Findings -----------------------------------------------------------------------------------------------------------

QUESTIONS = (
    ("Where the skill appears", ("K_A",)),
    ("Up to where tasks are memorised", ("K_M",)),
    ("Along a parameter of the family", ("along ",)),
    ("How both boundaries move with compute", ("drift of K_A", "drift of K_M")),
    ("Compute to skill", ("compute to skill",)),
    ("One condition against another", ("task multiplier", "compute multiplier", "crossover")),
    ("Generalist against specialists", ("generalist ",)),
    ("Break or smooth", ("emergence ",)),
    ("Falls against the expected direction", ("dip ",)),
    ("Replicates at the onset", ("share at the onset",)),
    ("How much replicates differ", ("noise",)),
    ("The best model size", ("best size", "growth of the best size")),
    ("What more workers gain", ("speed",)),
    ("Held-out tasks one by one", (by_task.THESE, by_task.OTHERS)),
    ("Expected values", ("expected ",)),
)
"""(title of a table, its questions as in `Finding.question`). A question that ends in a space is a prefix."""


def finding_tables(found: Findings) -> list[Table]:
    """The tables of QUESTIONS, with the findings on the headline skill, domains and memory. Findings without an answer are left out."""
    study = found.study
    headline = {study.shown_skills[0], "", ALL, *(pair.domain for pair in pairs_of(study))}
    made = []
    for title, questions in QUESTIONS:
        those = [one for question in questions for one in found.of(question) if one.skill in headline]
        if rows := [one for one in those if one.answered or one.significance in ("significant", "primary")]:
            made.append(finding_table(title, rows))
    return made


def finding_table(title: str, those: Sequence[Finding]) -> Table:
    """A table with a row for each finding; empty columns are left out."""
    columns = ["Finding", "Interval", "Confidence", "Replicates", "Adjusted p", "After correction"]
    rows = [
        [
            capitalised(one.sentence),
            interval,
            sure(one.confidence) if interval else "",
            str(one.n),
            p_words(one.adjusted_p),
            one.significance if one.significance != "untested" else "",
        ]
        for one in those
        for interval in [_interval(one)]
    ]
    used = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    return Table(
        name=re.sub("[^a-z]+", "_", title.lower()),
        title=title,
        columns=[columns[k] for k in used],
        rows=[[row[k] for k in used] for row in rows],
        numeric=frozenset(i for i, k in enumerate(used) if 1 <= k <= 4),
    )


def _interval(one: Finding) -> str:
    """The interval of a finding for its table; "" if it has none, or if its words name the end of the grid instead."""
    if not one.has_interval or one.verdict in ("beyond", "below"):
        return ""
    if one.question.startswith(("along ", "expected along")):
        return range_words(one.low, one.high, figure)
    if one.question not in ("K_A", "K_M", "compute to skill"):
        return range_words(one.low, one.high)
    low, high = (end and float(round(end)) for end in one.ends)  # tasks or FLOPs: as the words have them
    return range_words(low, high)


def p_words(p: float | None) -> str:
    """A p-value to three decimals, `.012` or `< .001`; "" if missing."""
    if p is None or math.isnan(p):
        return ""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 0.9995 else "1"


def successes(found: Findings) -> Table | None:
    """Table of the replicates with an ability of one half or more, by number of tasks and budget; None if there is no value.

    A cell holds k of n, with Wilson's interval of the share.
    """
    several, rows = len(found.study.conditions) > 1, []
    skill = found.study.shown_skills[0]
    for condition in found.study.conditions:
        for n in found.results.levels:
            if made := onsets.successes(found.results, condition, skill, n):
                cells = [
                    f"{s.k} of {s.n} ({decimal(s.low)} to {decimal(s.high)})" if (s := made.get(c)) else "—"
                    for c in found.study.budgets
                ]
                rows.append(([condition] if several else []) + [number(n), *cells])
    columns = (["Condition"] if several else []) + ["Tasks", *(f"{number(c)} FLOPs" for c in found.study.budgets)]
    note = "Replicates with an ability of ½ or more, with Wilson's 95 % interval of the share."
    return Table("successes", "Replicates with the skill", columns, rows, note, frozenset({several})) if rows else None


# Trials and provenance ----------------------------------------------------------------------------------------------


def trials(found: Findings, links: Mapping[str, str]) -> Table:
    """Table with a row for each trial: status, measures, costs.

    links: trial id -> address of its MLflow run, for the last column; without links there is no such column.
    """
    study, results = found.study, found.results
    levels = {n: i for i, n in enumerate(results.levels)}
    budgets = {c: i for i, c in enumerate(results.budgets)}
    several, share = len(study.conditions) > 1, headline(cast(Family, study.family).ability_of)[1]
    measures = [share, *(["floor"] if share == "right" else []), "ability", "memory"]
    cubes: dict[tuple[str, str], Any] = {}
    rows = []
    for run in found.runs:
        place = levels[run["n_tasks"]], budgets[run["compute_flops"]], run["replicate"]
        values = []
        for measure in measures:
            key = measure, run["arm"]
            if key not in cubes:
                cubes[key] = surface(results, *key)
            values.append(decimal(float(cubes[key][place]), 3))
        drawn, sequences = run.get("distinct_tasks"), run.get("sequences")
        seconds = [run[k] for k in ("train_seconds", "eval_seconds") if run.get(k) is not None]
        row = [run["arm"]] if several else []
        row += [number(run["n_tasks"]), number(run["compute_flops"]), str(run["replicate"])]
        row += [": ".join(filter(None, (run["status"], run.get("reason") or run.get("outcome")))), *values]
        row += [_count(run.get("steps")), _count(sequences), _count(drawn)]
        row += [_count(sequences / drawn) if drawn and sequences else "—"]
        row += [_count(run.get("flops_own")), _count(run.get("flops_run")), f"{sum(seconds):.0f}" if seconds else "—"]
        row += [links.get(run["trial"], "")] if links else []
        rows.append(row)
    columns = (["Condition"] if several else []) + [
        "Tasks",
        "FLOPs",
        "Replicate",
        "Status",
        *(measure.capitalize() for measure in measures),
    ]
    columns += ["Steps", "Sequences", "Distinct tasks", "Repeats a task", "FLOPs own", "FLOPs run", "Seconds"]
    columns += ["MLflow"] if links else []
    words = {"Condition", "Status", "MLflow"}
    return Table(
        name="trials",
        title=times(len(rows), "trial"),
        columns=columns,
        rows=rows,
        note="FLOPs run: training beyond the smaller budgets of the same run, so that shared training is charged once.",
        numeric=frozenset(k for k, name in enumerate(columns) if name not in words),
    )


def _count(value: float | None) -> str:
    """A count or cost in words; an em dash if it is missing."""
    if value is None or not math.isfinite(value):
        return "—"
    if value < 10 and not float(value).is_integer():
        return f"{value:.1f}"
    return number(value) if value >= 1 else f"{value:.2g}"


def provenance(found: Findings, sessions: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, words) of facts on the run: commits, versions, machines, FLOPs, time.

    sessions: one record for each start of a driver, from the journal.
    """
    costs = found.costs()
    facts: list[tuple[str, str]] = []
    commits = list(dict.fromkeys(r["commit"] for r in found.runs if r.get("commit")))
    commits = commits or list(dict.fromkeys(s["commit"] for s in sessions if s.get("commit")))
    reasons = dict.fromkeys(f"not known: {s['commit_unknown']}" for s in sessions if s.get("commit_unknown"))
    facts.append(
        ("Commit", ", ".join([*map(_short_commit, commits), *reasons]) or "unknown (not run from a repository)")
    )
    if changes := sorted({path for s in sessions for path in s.get("changes") or []}):
        rest = f" and {len(changes) - 8} more" if len(changes) > 8 else ""
        facts.append(("Not as committed", ", ".join(changes[:8]) + rest))
    if sessions:
        last = sessions[-1]
        versions = last.get("versions") or {}
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"))
        machines = [f"{s['machine']} ({s['host']})" for s in sessions if s.get("machine")]
        facts.append(("Driver on", "; ".join(dict.fromkeys(machines)) or "unknown"))
    hosts = Counter(f"{r['host']} ({r['device']})" for r in found.runs if r.get("host"))
    if hosts:
        facts.append(("Trials on", ", ".join(f"{host}: {count}" for host, count in sorted(hosts.items()))))
    facts += [
        ("Training", f"{_flops(costs.train_flops)} run; sharing trunks saved {_flops(costs.saved_flops)}"),
        ("Evaluation", f"{_flops(costs.eval_flops)}, not part of any budget"),
        ("Slot time", clock(costs.slot_seconds) + ", training and evaluating"),
    ]
    begun, ended = _span(found, sessions)
    if begun is not None:
        facts.append(("Begun", _date(begun)))
    if ended is not None:
        facts.append(("Last trial ended", _date(ended)))
    if begun is not None and ended is not None:
        facts.append(("Wall time", clock(max(ended - begun, 0.0)) + ", from the first session to the last trial's end"))
    facts.append(("Sessions", str(len(sessions))))
    options = sessions[-1].get("options") or {} if sessions else {}
    if caps := [f"{option}: {number(options[option])}" for option in ("max_hours", "max_flops") if options.get(option)]:
        facts.append(("Cap of the last session", ", ".join(caps)))
    return facts


def _span(found: Findings, sessions: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """Start of the first session and end of the last trial, in seconds since 1970; None if unknown."""
    begun = min((s["time"] for s in sessions), default=None)
    return begun, max((r["ended"].timestamp() for r in found.runs if r.get("ended") is not None), default=None)


def in_short(found: Findings, sessions: Sequence[Mapping[str, Any]]) -> str:
    """Number of trials, compute, wall time, machine, date and commit in one line. sessions: as in `provenance`."""
    begun, ended = _span(found, sessions)
    facts = [times(len(found.runs), "trial"), f"{_flops(found.costs().train_flops)} of training"]
    if begun is not None and ended is not None:
        facts.append(f"{clock(max(ended - begun, 0.0))} of wall time")
    machines = dict.fromkeys(s["machine"] for s in sessions if s.get("machine"))
    facts += ["; ".join(machines)] if machines else []
    facts += [_date(ended).rpartition(",")[0]] if ended is not None else []
    commits = dict.fromkeys(r["commit"] for r in found.runs if r.get("commit"))
    facts += [f"commit {', '.join(commit[:7] for commit in commits)}"] if commits else []
    return " · ".join(facts)


def _short_commit(commit: str) -> str:
    """The first twelve digits of a commit, with the part after "+" that marks uncommitted changes."""
    head, plus, changes = commit.partition("+")
    return head[:12] + plus + changes


def _flops(value: float) -> str:
    return f"{number(value) if value >= 1 else 0} FLOPs"


def _date(seconds: float) -> str:
    when = datetime.fromtimestamp(seconds, UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def settings(study: Study) -> list[tuple[str, list[tuple[str, str]]]]:
    """The study's settings with all defaults, as (group, [(key, value)]), and the size of each condition's models."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for part in ("family", "model", "training", "evaluation"):
        values = _flat(getattr(study, part).model_dump())
        groups.append((part, [(k, _setting(v)) for k, v in values.items()]))
    axes = study.axes
    crossed = [
        ("arm", ", ".join(axes.arm)),
        *((f"arm {arm}", _pairs(changes)) for arm, changes in axes.training_of_arm.items()),
        *((f"variant {name}", _changes(variant)) for name, variant in axes.variant.items()),
        *((name, ", ".join(_setting(v) for v in sorted(values))) for name, values in axes.family.items()),
        *([("start_from", _begins(study.start_from))] if study.start_from else []),
        ("n_tasks", ", ".join(number(n) for n in sorted(axes.n_tasks))),
        ("compute_flops", ", ".join(number(c) for c in study.budgets)),
        ("replicates", str(axes.replicates)),
    ]
    models = [
        (
            f"{condition} at {', '.join(number(b) for b in budgets)} FLOPs" if trunk.size else condition,
            model_words(trunk),
        )
        for condition in study.conditions
        for trunk, budgets in study.sizes(condition)
    ]
    return [("axes", crossed), *groups, ("models", models)]


def _flat(values: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """Nested settings under one key each, as `rules.max_tokens`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{of}{key}.") if isinstance(value, dict) else {f"{of}{key}": value}
    return found


def _changes(variant: Variant) -> str:
    """The settings that a variant changes, as `d_model 128, d_mlp 512`; its arms and the trial that it begins with."""
    parts = [_pairs(changes) for part in PARTS if (changes := getattr(variant, part))]
    parts += [f"arms {', '.join(variant.arms)}"] if variant.arms else []
    parts += [f"at {', '.join(_setting(v) for v in variant.values)}"] if variant.values else []
    return (
        ", ".join(parts + ([f"begins with {_begins(variant.start_from)}"] if variant.start_from else [])) or "as stated"
    )


def _begins(start: StartFrom) -> str:
    """The trial that others begin with, as `steps at 1e11 FLOPs and 24 tasks`."""
    tasks = f" and {number(start.n_tasks)} tasks" if start.n_tasks else ""
    return f"{start.arm}{f' of {start.variant}' if start.variant else ''} at {number(start.compute_flops)} FLOPs{tasks}"


def _pairs(changes: Mapping[str, Any]) -> str:
    """Settings as `d_model 128, d_mlp 512`; `as stated` if empty."""
    return ", ".join(f"{key} {_setting(value)}" for key, value in changes.items()) or "as stated"


def _setting(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:g}" if abs(value) < 1000 else number(value)


def reference_words(study: Study) -> list[tuple[str, str]]:
    """(name, words) for the family's generaliser and memoriser, from the docstrings of its methods, and their constants."""
    kind = type(study.family)
    module = importlib.import_module(kind.__module__)
    said = []
    for name, method in (("Generaliser", "generalizer"), ("Memoriser", "memorizer")):
        doc = getattr(getattr(kind, method, None), "__doc__", None)
        if doc:
            words = re.sub(r":[^:]*->.*", "", doc.strip().split("\n")[0])  # the shapes are for programmers
            said.append((name, words.rstrip(".").replace(" - ", " − ")))
    epsilon, most = getattr(module, "EPSILON", None), getattr(module, "MEMORIZER_MAX_TASKS", None)
    if epsilon is not None:
        words = "what the memoriser leaves to a uniform guess; its loss on held-out tasks depends on it"
        said.append(("ε", f"{epsilon:g}: {words}"))
    if most is not None:
        said.append(
            ("Enumerated", f"up to {number(most)} training tasks; beyond, the memoriser is missing, not guessed")
        )
    return said


def definitions(found: Findings) -> list[tuple[str, str]]:
    """(term, definition) of the terms on the page, as this study's family defines them."""
    study = found.study
    family = cast(Family, study.family)
    on = on_split(scope_of(found.results, "ability")[1], family.ability_of == "right")
    decays = study.training.schedule == "wsd" and study.training.decay_share > 0
    zero, one, missing = (
        "knows nothing",
        "has the rule",
        "the references coincide (less than 0.1 nats or 10 standard errors)",
    )
    wrong = "below 0 is confidently wrong"
    if family.ability_of == "right":
        ability = f"(right − floor) / (1 − floor) on {on}: answers beyond the floor, the best trivial predictor of the same items."
        memory = "1 − h(training items) / h(new items of the same tasks), of the mean log losses a target token."
        zero, one, wrong = "is the trivial predictor", "has every answer right", "below 0 is worse than that predictor"
        missing = "the floor is above 0.9, fewer than 20 items were answered, or new items cost under 0.1 nats a token"
        if any(split == "held_out_clusters" for _, _, split in found.results.groups()):
            ability += " These tasks are of the clusters that the trial trains."
            missing += ", or no held-out task is of these clusters"
    elif family.ability_of == "accuracy":
        ability = f"(acc − acc_M) / (1 − acc_M) on {on}: exact matches beyond those of the exact memoriser M."
        memory = "Not defined for this family."
    else:
        ability = f"(U − h) / (U − G) of the mean log losses on {on}: U guesses, G has the exact rule, h is the model."
        memory = "(G − h) / (G − M) on the training mixture: M is the exact memoriser of the training tasks."
    of_axis = []
    if study.axis:
        of_axis = [("Long answer", "A free answer with more than half of the tokens that are allowed.")] * (
            family.ability_of == "right"
        )
        where = f"The value of {study.axis} at which the median replicate passes ½. The values count as equal steps."
        of_axis += [(f"Along {study.axis}", where)]
    words = [
        ("Ability", f"{ability} 0 {zero}, 1 {one}, {wrong}. Not clipped."),
        ("Memory", memory + (" Read before the learning rate decays; ability after it." if decays else "")),
        ("K_A", "The number of tasks from which on half of the replicates reach an ability of ½: the skill appears."),
        ("K_M", "The number of tasks at which memory falls below ½ in half of the replicates: memory ends."),
        (
            "Interval",
            "Of the median replicate, from the tasks between which each one crosses; nothing is interpolated. With fewer than "
            "six replicates it is a t-interval, which is wider than what the replicates span (docs/statistics.md).",
        ),
        ("—", f"Missing, never zero: no result, or {missing}."),
        ("Replicates", "Differ in training tasks, weights and batches. Diverged and failed trials stay in the count."),
    ]
    return words + of_axis + reference_words(study)
