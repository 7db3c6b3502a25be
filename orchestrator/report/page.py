"""The report of a study: one HTML file that can be mailed, printed and read on a phone, and its figures as files.

    emergence report quickstart

Sets what `analysis/` found beside the figures; computes no statistic itself, and knows no Ray, no MLflow and no torch. The
page is made of templates/: a frame, a file for each section, style and script. It loads nothing, and says the same without its
script, which lets a reader point at a figure, walk along compute, and sort and filter the trials.
"""

from __future__ import annotations

from orchestrator.report import surroundings  # noqa: F401 - before anything else loads matplotlib

# isort: split
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
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.findings import Findings
from orchestrator.files import replace
from orchestrator.formatting import decimal, number, times
from orchestrator.report import judged_tables, tables
from orchestrator.report.curves import Curves, decays, jumps
from orchestrator.report.embed import Embedded
from orchestrator.report.figures import plates_of
from orchestrator.report.plates import (
    CIVIDIS,
    LIST,
    MAX_SVG_BYTES,
    RULE,
    TINT,
    Drawn,
    Plate,
    draw,
    drawing,
    files_of,
    merged_words,
    shown,
)
from orchestrator.report.surfaces import on_split
from orchestrator.report.walk import walk_of
from orchestrator.terminal import printable
from trainers.tasks import Family

TEMPLATES = Path(__file__).parent / "templates"
OPEN_TRIAL_ROWS = 40
"""A longer table of trials starts folded."""
MAX_PICTURE_BYTES = 1_500_000
"""Panels that are larger together go on the page as coarser pictures; the files beside it keep their quality."""
MAX_PAGE_BYTES = 5_000_000
"""A larger page can hardly be mailed: it goes without what is also beside it, and says so."""


class Section(NamedTuple):
    """A part of the page: `templates/sections/<name>.html.j2`, the name also being its anchor."""

    name: str
    title: str
    """In the table of contents."""
    shown: Callable[[dict[str, Any]], bool] = lambda page: True
    """Is there anything to show? Given what the templates are given."""


def _any_block(figure: str) -> Callable[[dict[str, Any]], bool]:
    return lambda page: any(block[figure] for block in page["blocks"])


SECTIONS = (
    Section("speed", "Workers", lambda page: bool(page["speeds"])),
    Section("surface", "Tasks × compute"),
    Section("walk", "Along compute"),
    Section("skills", "Skills and memory"),
    Section("curves", "Along training"),
    Section("override", "Context or memory", _any_block("override")),
    Section("distance", "Counting or remembering", _any_block("distance")),
    Section("boundaries", "Boundaries"),
    Section("to_skill", "From how much compute on", lambda page: bool(page["to_skill"])),
    Section("emergence", "Break or smooth", lambda page: bool(page["cuts"] or page["cuts_undecided"])),
    Section("generalists", "Generalist against specialists", lambda page: bool(page["contests"])),
    Section("arms", "Arms", lambda page: bool(page["overtaking"])),
    Section("replicates", "Replicates"),
    Section("frontier", "Best size", lambda page: bool(page["frontier"])),
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
    walks = {arm: walk_of(curves, arm) for arm in found.study.lines}
    plates = {arm: plates_of(curves, arm, walk) for arm, walk in walks.items()}
    with drawing():
        files, pictures = _drawn([plate for of_arm in plates.values() for plate in of_arm.values() if plate], embedded)
    blocks = [_block(found, arm, plates[arm], pictures) for arm in plates]
    for walk in walks.values():
        if walk is not None:
            embedded.walk(walk)
    told = _told(found, sessions, blocks, links) | {"outside": times(outside, "trial") if outside else ""}
    _write_files(folder, files)
    replace(folder / "report.html", _fitting(told, blocks, embedded))
    return folder / "report.html"


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for stale in set(figures.iterdir()) - {figures / name for name in files}:
        if stale.suffix in (".png", ".svg", ".csv"):
            stale.unlink()
    for name, data in files.items():
        replace(figures / name, data, synced=False)  # hundreds; one that a crash tears is found by its hash


Shown = dict[str, Any]
"""A panel or a plate as the templates have it."""


def _drawn(plates: Sequence[Plate], embedded: Embedded) -> tuple[dict[str, bytes], dict[str, Shown]]:
    """The plates as files, by their names; and for the page, by theirs: coarser where they would make it too large."""
    drawn = {plate.name: [draw(panel, f"{plate.name}{i}") for i, panel in enumerate(plate.panels)] for plate in plates}
    coarse = sum(min(len(one.svg), MAX_SVG_BYTES) for many in drawn.values() for one in many) > MAX_PICTURE_BYTES
    files: dict[str, bytes] = {}
    pictures: dict[str, Shown] = {}
    for plate in plates:
        panels = drawn.pop(plate.name)  # hundreds of pictures would be a gigabyte
        made = files_of(plate, panels)
        files |= {f"{plate.name}.{kind}": getattr(made, kind) for kind in ("png", "svg", "csv")}
        embedded.files(plate.name, made.csv, made.frame)
        told = [_panel(one, coarse, embedded) for one in panels]
        pictures[plate.name] = {"name": plate.name, "panels": told, "merged": merged_words(panels)}
    return files, pictures


def _panel(drawn: Drawn, coarse: bool, embedded: Embedded) -> Shown:
    number = embedded.panel(drawn.box, drawn.sheet)
    about = {"title": drawn.panel.title, "note": drawn.panel.note, "width": drawn.box[0], "number": number}
    return about | shown(drawn, coarse)._asdict()


def _block(found: Findings, arm: str, plates: Mapping[str, Plate | None], pictures: Mapping[str, Shown]) -> Shown:
    """One arm: its plates by their place, ready for the page, and the words beside them."""
    by_place = {place: plate and pictures[plate.name] for place, plate in plates.items()}
    return {"arm": arm, "grows": found.study.grows(arm)} | by_place | tables.block_words(found, arm)


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


def _fitting(told: dict[str, Any], blocks: list[Shown], embedded: Embedded) -> bytes:
    """The page; where it is too large, without one part after another, and at last without its largest figures."""
    made = _page(told, blocks, embedded)
    more = True
    while len(made) > MAX_PAGE_BYTES and more:
        more = embedded.lighten()
        made = _page(told, blocks, embedded)
    if len(made) > MAX_PAGE_BYTES:
        _without_figures(blocks, len(made) - MAX_PAGE_BYTES)
        made = _page(told, blocks, embedded)
    return made


def _without_figures(blocks: list[Shown], excess: int) -> None:
    """Leave figures to their files, the largest first, until so many bytes are saved."""
    plates = [plate for block in blocks for plate in block.values() if isinstance(plate, dict) and plate.get("panels")]
    sizes = [(sum(len(panel["picture"]) for panel in plate["panels"]), plate) for plate in plates]
    for size, plate in sorted(sizes, key=lambda pair: -pair[0]):
        if excess > 0:
            plate["panels"] = []
            excess -= size


def _page(told: dict[str, Any], blocks: list[Shown], embedded: Embedded) -> bytes:
    """The page as it stands."""
    for block in blocks:
        block["slider"] = block["arm"] in embedded.walks
    page = told | {"data": embedded.json(), "thinned": embedded.thinned, "without": embedded.without}
    page["most"] = f"{MAX_PAGE_BYTES / 1e6:g} MB"
    page["sections"] = [section for section in SECTIONS if section.shown(page)]
    return templates().get_template("report.html.j2").render(page).encode(errors="replace")


def templates() -> jinja2.Environment:
    """The files of templates/, with what they may call."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup has been through it
    )
    environment.filters["subscripts"] = subscripts
    return environment


def subscripts(words: str) -> Markup:
    """Words for the page, in which K_A and K_M have their letter below the line."""
    return Markup(re.sub(r"\bK_([AM])\b", r"<i>K</i><sub>\1</sub>", str(escape(printable(words)))))


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
    judged = judged_tables.told(found)
    measured = {block["arm"] for block in blocks if block["measured"]}
    judged["drifts"] = [row for row in judged["drifts"] if row["arm"] in measured]
    if not measured:
        judged["frontier"] = []  # of models that came to nothing none is best
    parts = ["the primary claim"] * bool(found.primary) + ["the values under Expected"] * bool(study.expected)
    which = (
        f"{' and '.join(parts)}, not these words" if parts else "primary claims and expected values; here is neither"
    )
    return judged | {
        "judged_words": f"The software judges {which}.",
        "study": study,
        "found": found,
        "answer": paragraph(found),
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
        "several_arms": len(study.lines) > 1,
        "first_tasks": number(levels[0]),
        "last_tasks": number(levels[-1]),
        "jumps": jumps(levels),
        "boundaries": tables.boundary_rows(found),
        "expected": tables.expected_rows(found),
        "evidence": tables.EVIDENCE,
        "trials": trials,
        "attempts": any(run.get("attempt") is not None for run in found.runs),
        "linked": linked,
        "left_out": number(len(found.runs) - len(trials)) if len(found.runs) > len(trials) else "",
        "fold": len(trials) > OPEN_TRIAL_ROWS,
        "provenance": tables.provenance(found, sessions),
        "in_short": tables.in_short(found, sessions),
        "settings": tables.settings(study),
        "references": tables.reference_words(study),
        "rule_colour": RULE,
        "list_colour": LIST,
        "rule_tint": TINT[RULE],
        "list_tint": TINT[LIST],
        "ramp": ", ".join(matplotlib.colors.to_hex(CIVIDIS(i / 10)) for i in range(11)),
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        "ability_of": family.ability_of,
        "min_gap": stats.MIN_GAP_NATS,
        "min_errors": stats.MIN_GAP_ERRORS,
    }
