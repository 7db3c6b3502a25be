"""The page of a comparison: what differs, surfaces side by side, boundaries, crossings and cells. Computes no statistic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.claims import FALSE_SHARE
from orchestrator.analysis.compare import OVERALL_SHARE, Arms, BoundaryPair, CellDifference, Comparison
from orchestrator.analysis.compare_words import answer, difference_words, left_out, overtaking_words, shift_words
from orchestrator.analysis.findings import Findings
from orchestrator.files import replace
from orchestrator.formatting import decimal, number, percent, sure, times
from orchestrator.report.judged_tables import p_words
from orchestrator.report.page import TEMPLATES, templates
from orchestrator.report.plates import LIST, RULE, TINT, drawing, inline
from orchestrator.report.surfaces import ability_band, memory_band, on_split, surface


def write(home: Path, found: Comparison) -> Path:
    """Write `compare_A_B.html` into the home folder, in one rename; returns its path. Raises OSError."""
    with drawing():
        surfaces = [[_surface(found, side, arms) for side in (0, 1)] for arms in found.arms]
    ids = [found.a.study.id, found.b.study.id]
    page = (
        templates()
        .get_template("compare.html.j2")
        .render(
            ids=ids,
            twins=ids[0] == ids[1],
            sentences=answer(found),
            left_out=left_out(found),
            skill=found.skill,
            surfaces=surfaces,
            settings=found.settings,
            several_arms=len(found.arms) > 1,
            paired=found.paired,
            boundaries=[(_arm(arms), _boundary_rows(found, arms)) for arms in found.arms],
            crossings=[overtaking_words(found, one) for one in found.crossovers if one.kept],
            overtaking=bool(found.crossovers),
            tables=_tables(found),
            counted=_counted(found),
            alone=[{"id": f.study.id, "answer": paragraph(f)} for f in (found.a, found.b)][: len(set(ids))],
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            colours={"rule": RULE, "list": LIST, "rule_tint": TINT[RULE], "list_tint": TINT[LIST]},
        )
    )
    path = home / f"compare_{ids[0]}_{ids[1]}.html"
    replace(path, page.encode(errors="replace"))
    return path


def _arm(arms: Arms) -> str:
    return arms[0] if arms[0] == arms[1] else f"{arms[0]} against {arms[1]}"


def _surface(comparison: Comparison, side: int, arms: Arms) -> dict[str, Any]:
    """One study's surface of the headline skill in one arm, with both boundaries."""
    found: Findings = (comparison.a, comparison.b)[side]
    arm, skill = arms[side], comparison.skill
    bands = [band for band in (ability_band(found, arm, skill), memory_band(found, arm)) if band]
    panel = surface(found, arm, "ability", skill, found.skill_split(skill), bands)
    drawn = inline(panel, f"side{side}{comparison.arms.index(arms)}")
    return {
        "id": found.study.id,
        "arm": arm,
        "on": on_split(found.skill_split(skill)),
        "picture": drawn.picture,
        "style": drawn.style,
    }


def _counted(found: Comparison) -> dict[str, Any]:
    """How much was looked at, how much of it could be tested, what is kept, and at which confidence."""
    confidences = {
        one.claim.verdict: sure(one.claim.confidence) for one in found.single if one.claim.confidence is not None
    }
    tested = [
        times(n, what) if what != "boundary" else f"{n:,} {'boundary' if n == 1 else 'boundaries'}"
        for what, those in (("cell", found.cells), ("boundary", found.boundaries), ("crossing", found.crossovers))
        if (n := sum(one.claim.verdict != "untested" for one in those))
    ]
    return {
        "tested": found.tested,
        "tested_words": times(found.tested, "difference"),
        "of": ", ".join(tested),
        "kept": found.kept,
        "untested": len(found.single) - found.tested,
        "kept_at": confidences.get("selected", ""),
        "others_at": confidences.get("not selected", ""),
        "share": percent(found.false_share),
        "overall_share": percent(OVERALL_SHARE),
        "rest": percent(FALSE_SHARE - OVERALL_SHARE),
        "all": percent(FALSE_SHARE),
        "overall_cells": times(found.overall.n_cells, "cell"),
        "overall_tested": found.overall.difference is not None and found.overall.difference.p is not None,
    }


def _boundary_rows(found: Comparison, arms: Arms) -> list[dict[str, str]]:
    return [
        {
            "letter": pair.letter,
            "skill": pair.skill if pair.letter == "A" else "",
            "flops": number(pair.compute_flops),
            "a": pair.intervals[0],
            "b": pair.intervals[1],
            "a_words": pair.words[0],
            "b_words": pair.words[1],
            "shift": _shift_words(pair),
        }
        for pair in found.boundaries
        if pair.arms == arms
    ]


def _shift_words(pair: BoundaryPair) -> str:
    if pair.kept and pair.shift is not None and pair.claim.confidence is not None:
        return f"{shift_words(pair.shift)} ({sure(pair.claim.confidence)})"
    return "not tested" if pair.claim.verdict == "untested" else "none shown"


def _tables(found: Comparison) -> list[dict[str, Any]]:
    """Cells that are kept, of the headline and of memory first, then the others; those that have rows, grouped by arm."""
    wanted = (
        ("Kept", lambda cell: cell.kept and cell.skill in (found.skill, "")),
        ("Kept, other skills", lambda cell: cell.kept and cell.skill not in (found.skill, "")),
        ("Not told apart", lambda cell: not cell.kept),
    )
    tables: list[dict[str, Any]] = []
    for title, among in wanted:
        groups = [(_arm(arms), [c for c in found.cells if c.arms == arms and among(c)]) for arms in found.arms]
        n = sum(len(cells) for _, cells in groups)
        if n:
            rows = [(arm, [_cell(found, cell) for cell in cells]) for arm, cells in groups]
            tables.append({"title": f"{title}: {times(n, 'cell')}", "groups": rows, "open": not tables})
    return tables


def _cell(found: Comparison, cell: CellDifference) -> dict[str, Any]:
    difference = cell.difference
    doubts = list(difference.doubts) if difference else []
    told, interval = difference_words(difference) if difference else ("—", "")
    n_a, n_b = len(cell.of_a), len(cell.of_b)
    in_pairs = found.paired and difference is not None
    return {
        "what": f"{cell.measure} {cell.skill}".strip(),
        "n_tasks": number(cell.n_tasks),
        "flops": number(cell.compute_flops),
        "a": decimal(cell.a),
        "b": decimal(cell.b),
        "n": str(n_a) if in_pairs or n_a == n_b else f"{n_a} and {n_b}",
        "difference": told,
        "interval": interval or "—",
        "confidence": sure(cell.claim.confidence) if cell.claim.confidence and interval else "—",
        "p": p_words(cell.claim.adjusted_p),
        "doubts": ", ".join([*doubts, *([f"{sum(cell.lost)} lost"] if any(cell.lost) else [])]),
    }
