"""The page of a comparison: both surfaces side by side, the boundaries, and the cells that differ. Computes no statistic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup

from orchestrator.claims import range_words
from orchestrator.compare import CellDifference, Comparison
from orchestrator.findings import Findings
from orchestrator.report import PAGE, templates
from orchestrator.report.plates import LIST, RULE, STYLE, TINT, decimal, inline
from orchestrator.report.surfaces import ability_band, memory_band, on_split, surface
from orchestrator.words import number, signed


def write(home: Path, found: Comparison) -> Path:
    """Write `compare_A_B.html` into the home folder, in one rename; returns its path. Raises OSError."""
    with matplotlib.rc_context(STYLE):
        sides = [_side(f, arm) for f, arm in zip((found.a, found.b), found.arms, strict=True)]
    page = (
        templates()
        .get_template("compare.html.j2")
        .render(
            sides=sides,
            answer=found.answer,
            settings=found.settings,
            boundaries=[pair._asdict() | {"flops": number(pair.compute_flops)} for pair in found.boundaries],
            crossovers=_crossovers(found),
            cells=[_cell(cell) for cell in sorted(found.cells, key=lambda c: not c.kept)],
            kept=sum(cell.kept for cell in found.cells),
            paired=found.paired,
            style=Markup((PAGE / "report.css").read_text()),
            colours={"rule": RULE, "list": LIST, "rule_tint": TINT[RULE], "list_tint": TINT[LIST]},
        )
    )
    path = home / f"compare_{found.a.study.id}_{found.b.study.id}.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page)
    os.replace(temporary, path)
    return path


def _side(found: Findings, arm: str) -> dict[str, Any]:
    """One study: its headline surface and its answer."""
    study = found.study
    skill = study.shown_skills[0]
    bands = [band for band in (ability_band(found, arm, skill), memory_band(found, arm)) if band]
    drawn = inline(surface(found, arm, "ability", skill, found.skill_split(skill), bands), study.id)
    return {
        "id": study.id,
        "arm": arm,
        "skill": skill,
        "on": on_split(found.skill_split(skill)),
        "answer": found.answer,
        "picture": drawn.picture,
        "style": drawn.style,
    }


def _crossovers(found: Comparison) -> list[dict[str, str]]:
    rows = []
    for n, met, reverse in found.crossovers:
        a, b = (found.b.study.id, found.a.study.id) if reverse else (found.a.study.id, found.b.study.id)
        said = {
            "crosses": f"{b} overtakes {a} at {range_words(met.low, met.high)} FLOPs",
            "a ahead throughout": f"{a} is ahead wherever the two are told apart",
            "b ahead throughout": f"{b} is ahead wherever the two are told apart",
            "no difference shown": "no difference is shown at any budget",
            "missing": "not measured",
        }.get(met.verdict, "undecided")
        rows.append({"n_tasks": number(n), "words": said})
    return rows


def _cell(cell: CellDifference) -> dict[str, Any]:
    difference = cell.difference
    interval, doubts = "—", ""
    if difference is not None:
        doubts = ", ".join(difference.doubts)
        if difference.low is not None and difference.high is not None:
            interval = f"{signed(difference.low, 2)} to {signed(difference.high, 2)}"
    return {
        "what": f"{cell.measure} {cell.skill}".strip(),
        "n_tasks": number(cell.n_tasks),
        "flops": number(cell.compute_flops),
        "a": decimal(cell.a),
        "b": decimal(cell.b),
        "difference": signed(difference.mean, 2) if difference else "—",
        "interval": interval,
        "kept": "yes" if cell.kept else "no",
        "doubts": doubts,
    }
