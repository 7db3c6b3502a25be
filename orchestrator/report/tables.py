"""The tables of the report and the words beside its figures, read off the findings. Computes no statistic itself."""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from orchestrator import stats
from orchestrator.analysis import claims
from orchestrator.analysis.boundaries import ability_words, interval_words, memory_words
from orchestrator.analysis.claims import claim_of
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import surface
from orchestrator.formatting import clock, decimal, figure, number, sure, times
from orchestrator.report.surfaces import ability_band, grid, has_values, memory_band, on_split
from orchestrator.study.schema import PARTS, Study, Variant, model_words
from trainers.tasks import Family

MAX_TRIAL_ROWS = 1000
"""Rows of the trial table on the page; all of them are in runs.parquet. Keeps the page well below 2 MB."""


def block_words(found: Findings, arm: str) -> dict[str, Any]:
    """What the page says beside an arm's figures, read off the findings."""
    study = found.study
    family = cast(Family, study.family)
    skill = study.shown_skills[0]
    cells = grid(found, "ability", arm, skill, found.skill_split(skill))
    states = {cell.state for line in cells for cell in line}
    partly = any(0 < cell.known < study.axes.replicates for line in cells for cell in line)
    memory = grid(found, "memory", arm, family.mixture, "seen", "pre_decay")
    undrawn = [
        s for s in study.shown_skills[1:] if not has_values(grid(found, "ability", arm, s, found.skill_split(s)))
    ]
    bands = [b for b in (ability_band(found, arm, skill), memory_band(found, arm)) if b]
    drawn = [boundary for band in bands for boundary in band.boundaries if boundary is not None]
    brackets = [bracket for boundary in drawn for bracket in boundary.brackets]
    levels = study.axes.n_tasks
    return {
        "fades": any(end is None or not min(levels) <= end <= max(levels) for b in drawn for end in (b.low, b.high)),
        "above": any(b.high is None and b.low is not None for b in brackets),
        "under": any(b.low is None and b.high is not None for b in brackets),
        "wide": any(_rows_between(levels, b) > 1 for b in brackets),
        "states": states,
        "across": bool((surface(found.results, "ability", arm, skill) >= stats.HALF).any()),
        "blank": bool(states - {"value", "undefined"}),
        "partly": partly,
        "undrawn": undrawn,
        "measured": found.ended(arm),
        "lost": lost_words(found, arm),
        "unmeasured": what_became(found, arm) or "no trial has come to the end of a budget",
        "memory_hatched": any(cell.state == "undefined" for line in memory for cell in line),
        "no_ability_boundary": ability_band(found, arm, skill) is None,
        "no_memory_boundary": memory_band(found, arm) is None,
        "memory_cells": has_values(memory),
        "diverged": sum(r["status"] == "diverged" and r["arm"] == arm for r in found.runs),
    }


def what_became(found: Findings, arm: str, flops: float | None = None) -> str:
    """ "Every trial diverged", where all of an arm (at a budget) have ended and none with a result; else nothing."""
    became = {r["status"] for r in found.runs if r["arm"] == arm and flops in (None, r["compute_flops"])}
    if not became or not became <= {"diverged", "failed"}:
        return ""
    return f"every trial {' or '.join(sorted(became))}"


def lost_words(found: Findings, arm: str) -> str:
    """Where no trial of an arm is left: what happened, when, and what to try first."""
    what = what_became(found, arm)
    if not what:
        return ""
    lost = [r for r in found.runs if r["arm"] == arm]
    reasons = Counter(r["reason"] for r in lost if r.get("reason"))
    said = f"{what[0].upper()}{what[1:]}"
    if reasons:
        said += f"{', for example' if len(reasons) > 1 else ''}: {reasons.most_common(1)[0][0]}"
    if "diverged" not in what:
        return f"{said}. What failed is tried again by the same run."
    here = {r["trial"] for r in lost}
    rates = sorted({t.training.learning_rate for t in found.study.trials() if t.id in here})
    return f"{said}. First to try: a lower training.learning_rate than {', '.join(f'{rate:g}' for rate in rates)}."


def _rows_between(levels: Sequence[int], bracket: stats.Bracket) -> int:
    """How many rows apart the ends of a bracket are; 0 where one is open."""
    grid = sorted(float(n) for n in levels)
    if bracket.low not in grid or bracket.high not in grid:
        return 0
    return grid.index(bracket.high) - grid.index(bracket.low)


def boundary_rows(found: Findings) -> list[dict[str, Any]]:
    """Both boundaries at every budget, K_A of each skill first, in numbers and words."""
    study = found.study
    levels = [float(n) for n in sorted(study.axes.n_tasks)]
    known_claims, groups = found.standings, []
    for arm in study.lines:
        named = [("A", s, found.k_ability[(arm, s)], ability_words) for s in study.shown_skills]
        mixture = [("M", "memory of the training tasks", found.k_memory[arm], memory_words)]
        for letter, name, of_measure, words in [named[0], *mixture, *named[1:]]:
            rows = []
            for flops, boundary in of_measure:
                known = found.reached(arm, flops)
                claim = ("ability", arm, name) if letter == "A" else ("memory", arm, "")
                ended = boundary.low is not None or boundary.high is not None
                standing = known_claims[claim_of("k", *claim, flops)]
                interval = ended and boundary.verdict in ("crossed", "undecided") and len(boundary.brackets) > 1
                rows.append(
                    {
                        "flops": number(flops),
                        "interval": interval_words(boundary, levels),
                        "confidence": sure(found.confidence(claim_of("k", *claim, flops))) if interval else "—",
                        "words": words(boundary, levels)
                        if known
                        else what_became(found, arm, flops) or "no trial has come to the end of this budget",
                        "mark": claims.mark(standing) if known and boundary.is_told else "",
                        "verdict": boundary.verdict if known else "lost" if what_became(found, arm, flops) else "open",
                        "replicates": len(boundary.brackets),
                        "not_monotone": boundary.not_monotone,
                    }
                )
            alike = [{**row, "flops": ""} for row in rows]
            if len(rows) > 1 and all(row == alike[0] for row in alike):
                rows = [{**rows[0], "flops": "all"}]
            groups.append({"arm": arm, "letter": letter, "name": name, "rows": rows, "like": []})
    return _told_once(found, groups)


def _told_once(found: Findings, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Skills that say what their arm's headline says named beside it; and of an arm of which nothing is known, one group."""
    kept: list[dict[str, Any]] = []
    headlines: dict[str, dict[str, Any]] = {}
    for group in groups:
        headline = headlines.setdefault(group["arm"], group)
        if not found.ended(group["arm"]) and group is not headline:
            headline["name"] = "and K_M, of every skill"
        elif group["letter"] == "A" and group is not headline and group["rows"] == headline["rows"]:
            headline["like"].append(group["name"])
        else:
            group["headline"] = group is headline or group["letter"] == "M"
            kept.append(group)
    return kept


EVIDENCE = {
    "V": "read in the paper or its code",
    "F": "read by eye off a published figure",
    "C": "computed or run by us",
}


def expected_rows(found: Findings) -> list[dict[str, Any]]:
    """Every expected value beside what was measured, in the words of the table."""
    rows = []
    for verdict in found.verdicts:
        expected, measured = verdict.expected, verdict.measured
        cell = expected.cell
        where = [f"{number(cell.n_tasks)} tasks" if cell.n_tasks else "all numbers of tasks"]
        where += [f"{number(cell.compute_flops)} FLOPs"] if cell.compute_flops else []
        where += [part for part in (cell.arm, cell.skill) if part]
        where += [on_split(cell.split)] if expected.what in ("accuracy", "ability") or "excess" in expected.what else []
        known = measured is not None and measured.low is not None and measured.high is not None
        missing = f"{len(verdict.values)} of {len(verdict.values) + verdict.censored} replicates have it"
        rows.append(
            {
                "what": expected.what.replace("_", " "),
                "where": ", ".join(where),
                "expected": figure(expected.value),
                "range": f"{figure(expected.lo)} to {figure(expected.hi)}",
                "measured": figure(measured.mean) if measured else missing,
                "interval": f"{figure(measured.low)} to {figure(measured.high)}" if known and measured else "—",
                "replicates": len(verdict.values),
                "verdict": verdict.verdict,
                "caution": verdict.caution,
                "source": expected.source,
                "source_replicates": expected.replicates,
                "evidence": expected.evidence,
            }
        )
    return rows


def trial_rows(found: Findings, links: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row a trial: what became of it, what it measured and what it cost."""
    study = found.study
    skill = study.shown_skills[0]
    split = found.skill_split(skill)
    mixture = cast(Family, study.family).mixture
    levels = {n: i for i, n in enumerate(found.results.levels)}
    budgets = {c: i for i, c in enumerate(found.results.budgets)}
    rows = []
    for run in found.runs[:MAX_TRIAL_ROWS]:
        place = levels[run["n_tasks"]], budgets[run["compute_flops"]], run["replicate"]

        def read(measure: str, *group: Any, arm: str = run["arm"], place: Any = place) -> float:
            return float(found.results.cube(measure, arm, *group)[place])

        drawn, sequences = run.get("distinct_tasks"), run.get("sequences")
        seconds = [run[k] for k in ("train_seconds", "eval_seconds") if run.get(k) is not None]
        rows.append(
            {
                "trial": run["trial"],
                "link": links.get(run["trial"], ""),
                "arm": run["arm"],
                "n_tasks": number(run["n_tasks"]),
                "flops": number(run["compute_flops"]),
                "replicate": run["replicate"],
                "status": run["status"],
                "reason": run.get("reason") or "",
                "accuracy": decimal(read("accuracy", skill, split), 3),
                "ability": decimal(read("ability", skill, split)),
                "memory": decimal(read("memory", mixture, "seen", "pre_decay")),
                "steps": _count(run.get("steps")),
                "sequences": _count(sequences),
                "distinct": _count(drawn),
                "repeats": _count(sequences / drawn) if drawn and sequences else "—",
                "own": _count(run.get("flops_own")),
                "run": _count(run.get("flops_run")),
                "seconds": f"{sum(seconds):.0f}" if seconds else "—",
                "attempt": run["attempt"] if run.get("attempt") is not None else "—",
            }
        )
    return rows


def _count(value: float | None) -> str:
    """A count or cost, an em dash where it is missing."""
    if value is None or not math.isfinite(value):
        return "—"
    if value < 10 and not float(value).is_integer():
        return f"{value:.1f}"
    return number(value) if value >= 1 else f"{value:.2g}"


def provenance(found: Findings, sessions: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Where the numbers come from and what they cost: (name, words), as far as it is known."""
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
    return facts


def _span(found: Findings, sessions: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """When the first session began and when the last trial ended, in seconds."""
    begun = min((s["time"] for s in sessions), default=None)
    return begun, max((r["ended"].timestamp() for r in found.runs if r.get("ended") is not None), default=None)


def in_short(found: Findings, sessions: Sequence[Mapping[str, Any]]) -> str:
    """What was run, how long, where, when and from which commit, in a line; all of it is told under Provenance."""
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
    """The first twelve digits; a changed work tree stays visible."""
    head, plus, changes = commit.partition("+")
    return head[:12] + plus + changes


def _flops(value: float) -> str:
    return f"{number(value) if value >= 1 else 0} FLOPs"


def _date(seconds: float) -> str:
    when = datetime.fromtimestamp(seconds, UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def settings(study: Study) -> list[tuple[str, list[tuple[str, str]]]]:
    """The study's settings as they were resolved, group by group."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for part in ("family", "model", "training", "evaluation"):
        values = getattr(study, part).model_dump()
        groups.append((part, [(k, _setting(v)) for k, v in values.items()]))
    axes = study.axes
    crossed = [
        ("arm", ", ".join(axes.arm)),
        *((f"arm {arm}", _pairs(changes)) for arm, changes in axes.training_of_arm.items()),
        *((f"variant {name}", _changes(variant)) for name, variant in axes.variant.items()),
        ("n_tasks", ", ".join(number(n) for n in sorted(axes.n_tasks))),
        ("compute_flops", ", ".join(number(c) for c in study.budgets)),
        ("replicates", str(axes.replicates)),
    ]
    models = [
        (f"{line} at {', '.join(number(b) for b in budgets)} FLOPs" if trunk.size else line, model_words(trunk))
        for line in study.lines
        for trunk, budgets in study.sizes(line)
    ]
    return [("axes", crossed), *groups, ("models", models)]


def _changes(variant: Variant) -> str:
    """What a variant changes: d_model 128, d_mlp 512."""
    return ", ".join(_pairs(changes) for part in PARTS if (changes := getattr(variant, part))) or "as stated"


def _pairs(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_setting(value)}" for key, value in changes.items()) or "as stated"


def _setting(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:g}" if abs(value) < 1000 else number(value)


def reference_words(study: Study) -> list[tuple[str, str]]:
    """What the family says of its exact predictors, and the constants it declares for them."""
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
