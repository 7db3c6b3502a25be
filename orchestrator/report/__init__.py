"""The report of a study: one HTML file that can be mailed, printed and read on a phone, and its figures as files.

    emergence report quickstart

Sets what findings.py says beside the figures; computes no statistic itself, and knows no Ray, no MLflow and no torch. The
page is made of page/: a frame, a file for each section, style and script. It loads nothing, and says the same without its
script, which lets a reader point at a figure, walk along compute, and sort and filter the trials.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import jinja2
import matplotlib
from markupsafe import Markup, escape

from orchestrator import stats
from orchestrator.findings import Findings
from orchestrator.report import judged_tables, tables
from orchestrator.report.curves import Curves, decays
from orchestrator.report.embed import Embedded
from orchestrator.report.figures import plates_of
from orchestrator.report.plates import (
    CIVIDIS,
    LIST,
    RULE,
    STYLE,
    TINT,
    Inline,
    Plate,
    coarser,
    decimal,
    files_of,
    inline,
)
from orchestrator.report.surfaces import on_split
from orchestrator.report.walk import walk_of
from orchestrator.words import number, times
from trainers.tasks import Family

PAGE = Path(__file__).parent / "page"
OPEN_TRIAL_ROWS = 40
"""A longer table of trials starts folded."""
MAX_PICTURE_BYTES = 1_500_000
"""Panels that are larger together go on the page as coarser pictures; the files beside it keep their quality."""


class Section(NamedTuple):
    """A part of the page: `page/sections/<name>.html.j2`, the name also being its anchor."""

    name: str
    title: str
    """In the table of contents."""
    shown: Callable[[dict[str, Any]], bool] = lambda page: True
    """Is there anything to show? Given what the templates are given."""


def _any_block(figure: str) -> Callable[[dict[str, Any]], bool]:
    return lambda page: any(block[figure] for block in page["blocks"])


SECTIONS = (
    Section("surface", "Tasks × compute"),
    Section("walk", "Along compute"),
    Section("skills", "Skills and memory"),
    Section("curves", "Along training"),
    Section("override", "Context or memory", _any_block("override")),
    Section("distance", "Counting or remembering", _any_block("distance")),
    Section("boundaries", "Boundaries"),
    Section("to_skill", "From how much compute on", lambda page: bool(page["to_skill"])),
    Section("emergence", "Break or artefact", lambda page: bool(page["cuts"] or page["cuts_undecided"])),
    Section("arms", "Arms", lambda page: bool(page["overtaking"])),
    Section("replicates", "Replicates"),
    Section("forecast", "Forecast", lambda page: bool(page["forecasts"] or page["no_forecast"] or page["frontier"])),
    Section("expected", "Expected", lambda page: bool(page["expected"])),
    Section("claims", "Claims", lambda page: bool(page["claims"] or page["primary"])),
    Section("trials", "Trials"),
    Section("methods", "Methods"),
)
"""The page from top to bottom."""


def write(
    folder: Path,
    found: Findings,
    sessions: list[dict[str, Any]],
    links: Mapping[str, Any] | None = None,
    outside: int = 0,
) -> Path:
    """Write `report.html` and `figures/` into a study's folder; returns the path of the page. Raises OSError.

    `outside`: recorded trials that the study's axes no longer hold. `links` leads from trials to their MLflow runs: {"base": "http://127.0.0.1:5000", "runs": {trial id: "#/..."}}.
    """
    curves, embedded = Curves(found), Embedded(found)
    walks = {arm: walk_of(curves, arm) for arm in found.study.axes.arm}
    plates = {arm: plates_of(curves, arm, walk) for arm, walk in walks.items()}
    drawn = [plate for of_arm in plates.values() for plate in of_arm.values() if plate]
    with matplotlib.rc_context(STYLE):
        files = {f"{plate.name}.{kind}": data for plate in drawn for kind, data in files_of(plate).items()}
        pictures = _pictures(drawn)
    for plate in drawn:
        embedded.csv(plate.name, files[f"{plate.name}.csv"])
    blocks = [_block(found, arm, plates[arm], pictures, embedded) for arm in plates]
    for block, walk in zip(blocks, walks.values(), strict=True):
        block["slider"] = walk is not None and embedded.walk(walk)
    _write_files(folder, files)
    _replace(folder / "report.html", _page(found, sessions, blocks, embedded, links, outside).encode())
    return folder / "report.html"


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for stale in set(figures.iterdir()) - {figures / name for name in files}:
        if stale.suffix in (".png", ".svg", ".csv"):
            stale.unlink()
    for name, data in files.items():
        _replace(figures / name, data)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _pictures(plates: Sequence[Plate]) -> dict[str, list[Inline]]:
    """Every plate's panels for the page, by its name; coarser where they would make the page too large."""
    fine = {plate.name: [inline(panel, f"{plate.name}{i}") for i, panel in enumerate(plate.panels)] for plate in plates}
    if sum(len(panel.picture) for panels in fine.values() for panel in panels) <= MAX_PICTURE_BYTES:
        return fine
    return {
        plate.name: [coarser(*pair) for pair in zip(fine[plate.name], plate.panels, strict=True)] for plate in plates
    }


def _block(
    found: Findings,
    arm: str,
    plates: Mapping[str, Plate | None],
    pictures: Mapping[str, list[Inline]],
    embedded: Embedded,
) -> dict[str, Any]:
    """One arm: its plates by their place, their panels ready for the page, and the words beside them."""
    shown: dict[str, Any] = {"arm": arm}
    for place, plate in plates.items():
        shown[place] = plate and {
            "name": plate.name,
            "panels": [
                {
                    "title": panel.title,
                    "note": panel.note,
                    "picture": drawn.picture,
                    "style": drawn.style,
                    "width": panel.box[0],
                    "number": embedded.panel(panel.box, drawn.sheet),
                }
                for panel, drawn in zip(plate.panels, pictures[plate.name], strict=True)
            ],
        }
    return shown | tables.block_words(found, arm)


def _links(links: Mapping[str, Any] | None) -> tuple[dict[str, str], str]:
    """Trial -> address of its MLflow run; and whether that is on the reader's own machine (`loopback`) or elsewhere."""
    base = str(links["base"]).rstrip("/") if links else ""
    if not base.startswith(("http://", "https://")):  # a link that a browser follows, and nothing else
        return {}, ""
    assert links is not None
    host = urlsplit(base).hostname or ""
    place = "loopback" if host in ("localhost", "::1") or host.startswith("127.") else "elsewhere"
    found = {trial: f"{base}/{str(run).lstrip('/')}" for trial, run in links["runs"].items()}
    return found, place if found else ""


def _page(
    found: Findings,
    sessions: list[dict[str, Any]],
    blocks: list[dict[str, Any]],
    embedded: Embedded,
    links: Mapping[str, Any] | None,
    outside: int,
) -> str:
    page = _told(found, sessions, blocks, links) | {"outside": times(outside, "trial") if outside else ""}
    page["data"], page["thinned"] = embedded.json(), embedded.thinned
    page["sections"] = [section for section in SECTIONS if section.shown(page)]
    return templates().get_template("report.html.j2").render(page)


def templates() -> jinja2.Environment:
    """The templates of page/, with what they may call."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["subscripts"] = subscripts
    return environment


def subscripts(words: str) -> Markup:
    """Words for the page, in which K_A and K_M have their letter below the line."""
    return Markup(re.sub(r"\bK_([AM])\b", r"<i>K</i><sub>\1</sub>", str(escape(words))))


def _told(
    found: Findings, sessions: list[dict[str, Any]], blocks: list[dict[str, Any]], links: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Everything that the templates are given."""
    study = found.study
    family = cast(Family, study.family)
    skill = study.shown_skills[0]
    split = found.skill_split(skill)
    status = Counter(r["status"] for r in found.runs)
    addresses, linked = _links(links)
    trials = tables.trial_rows(found, addresses)
    chance = family.chance(skill)
    levels = sorted(study.axes.n_tasks)
    return judged_tables.told(found) | {
        "study": study,
        "found": found,
        "blocks": blocks,
        "skill": skill,
        "skill_words": family.skills.get(skill, ""),
        "skills": family.skills,
        "on": on_split(split),
        "split": split,
        "after_decay": " after the decay" if decays(found) else "",
        "before_decay": " before the decay" if decays(found) else "",
        "status": [(name, number(status[name])) for name in ("done", "diverged", "failed", "open") if status[name]],
        "n_trials": number(len(found.runs)),
        "chance": decimal(chance) if chance is not None else "",
        "several_arms": len(study.axes.arm) > 1,
        "first_tasks": number(levels[0]),
        "last_tasks": number(levels[-1]),
        "boundaries": tables.boundary_rows(found),
        "expected": tables.expected_rows(found),
        "evidence": tables.EVIDENCE,
        "trials": trials,
        "attempts": any(run.get("attempt") is not None for run in found.runs),
        "linked": linked,
        "left_out": number(len(found.runs) - len(trials)) if len(found.runs) > len(trials) else "",
        "fold": len(trials) > OPEN_TRIAL_ROWS,
        "provenance": tables.provenance(found, sessions),
        "settings": tables.settings(study),
        "references": tables.reference_words(study),
        "rule_colour": RULE,
        "list_colour": LIST,
        "rule_tint": TINT[RULE],
        "list_tint": TINT[LIST],
        "ramp": ", ".join(matplotlib.colors.to_hex(CIVIDIS(i / 10)) for i in range(11)),
        "style": Markup((PAGE / "report.css").read_text()),
        "script": Markup((PAGE / "report.js").read_text()),
        "min_gap": stats.MIN_GAP_NATS,
        "min_errors": stats.MIN_GAP_ERRORS,
    }
