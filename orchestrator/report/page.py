"""The page of a study: one HTML file that can be mailed, printed and read on a phone, and its figures as files.

    emergence report quickstart

The first screen answers the question: one sentence, the surface with both boundaries, the verdict on the primary claim. Figures
follow, and everything else is behind one fold. The page loads nothing and works without its script. It computes no statistic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup, escape

from orchestrator.analysis import along, answer, by_task
from orchestrator.analysis.finding import capitalised, tested_words
from orchestrator.analysis.findings import Findings
from orchestrator.files import replace
from orchestrator.formatting import number, times
from orchestrator.report import asked, curves, facts, palette, rewarded, surface, svg, tables
from orchestrator.report.surface import Edge, Plane
from orchestrator.report.svg import Figure, Panel
from orchestrator.terminal import printable
from trainers.tasks import Family

TEMPLATES = Path(__file__).parent / "templates"
MAX_FIGURE_BYTES = 400_000
"""A figure of more bytes is a file beside the page, and the page links to it. So a page of 10,000 trials can be mailed (< 5 MB)."""
RELOAD_SECONDS = 60
"""Seconds between two reloads of the page of a running study."""
WIDTHS = (776, 540, 344, 262)
"""Width in pixels of a surface on the first screen with one, two, three or four conditions. Further conditions follow behind the
fold."""
NARROW = 344
"""Width in pixels of a surface on a phone."""


class Measure(NamedTuple):
    """Words for the legend of a surface: the measure, and the values of its colour scale."""

    words: str
    low: str
    """Words for values below 0; empty if there are none."""
    zero: str
    one: str


MEASURES = {
    "ability": Measure("share of the rule learned", "wrong", "knows nothing", "the exact rule"),
    "accuracy": Measure("share of answers right", "", "none right", "all right"),
    "memory": Measure("share of the list remembered", "under-trained", "as the rule", "the whole list"),
}
"""Measures that a reader can choose for the surface, with their legends. The page opens with the first."""
MEASURES_OF_TEXT = {
    "ability": Measure("right beyond the best trivial predictor", "worse", "as that predictor", "all right"),
    "right": Measure("share of answers right", "", "none right", "all right"),
    "memory": Measure("loss that memory of the items saves", "unlearned", "no item", "every item"),
}
"""MEASURES for families of text, whose answers are free."""
LONG = {
    "long_answers": Measure("share of long answers, more than half of what is allowed", "", "none long", "all long")
}
"""A further measure of text if surfaces run along a family parameter."""


def write(
    folder: Path,
    found: Findings,
    sessions: list[dict[str, Any]],
    links: Mapping[str, Any] | None = None,
    outside: int = 0,
    running: bool = False,
) -> Path:
    """Write `report.html` and `figures/` into a study's folder; returns the path of the page. Raises OSError if writing fails.

    sessions: one record for each start of a driver, from the journal, for the page's provenance. outside: number of recorded
    trials outside the study's axes. links: addresses of the trials' MLflow runs,
    {"base": "http://127.0.0.1:5000", "runs": {trial id: "#/..."}}; None: no links. running: the page reloads itself.
    """
    page = _contents(found, sessions, links, outside) | {"reload": RELOAD_SECONDS if running else 0}
    _write_files(folder, found.study.id, page)
    made = templates().get_template("report.html.j2").render(page)
    replace(folder / "report.html", made.encode(errors="replace"))
    return folder / "report.html"


def _write_files(folder: Path, study: str, page: Mapping[str, Any]) -> None:
    """Write figures as SVG and CSV, and long tables and the table of trials as CSV. Delete figures of earlier reports."""
    files: dict[str, bytes] = {}
    for figure in (page["hero"], *page["story"], *(one.figure for one in page["rewarded"]), *page["folded"]):
        files[f"{figure.name}.svg"] = svg.sheet(figure, study)
        files[f"{figure.name}.csv"] = svg.table([row for panel in figure.panels for row in panel.rows])
    for table in page["tables"]:
        if len(table.rows) > len(table.shown) or table.name == "trials":
            files[f"{table.name}.csv"] = svg.table(table.csv)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for stale in set(figures.iterdir()) - {figures / name for name in files}:
        if stale.suffix in (".png", ".svg", ".csv"):
            stale.unlink()
    for name, data in files.items():
        replace(figures / name, data, synced=False)  # one that a crash tears is found by its hash


def _contents(
    found: Findings, sessions: list[dict[str, Any]], links: Mapping[str, Any] | None, outside: int
) -> dict[str, Any]:
    """The variables of the template report.html.j2."""
    study = found.study
    views = _views(found)
    story, folded = _story(found), _folded(found)
    addresses, linked = _links(links)
    verdict, claim = answer.badge(found)
    return {
        "study": study,
        "progress": _progress(found),
        "answer": answer.sentence(found),
        "more": answer.more(found),
        "verdict": verdict,
        "claimed": claim,
        "claim": capitalised(found.primary.sentence.removeprefix("Primary claim: "))
        if found.primary
        else f"{claim[0].upper()}{claim[1:]}.",
        "views": views,
        "measures": _measures(found),
        "hero": _first_screen(found, views),
        "several": len(surface.planes(found)) > 1,
        "lines": _lines(found),
        "skill_words": cast(Family, study.family).skills.get(study.shown_skills[0], ""),
        "own_tasks": "" if by_task.asked_alike(found.results, [*study.conditions]) else surface.OWN_TASKS,
        "replicates": ("up to " if any(run["status"] != "done" for run in found.runs) else "")
        + times(study.axes.replicates, "replicate"),
        "story": story,
        "folded": folded,
        "largest": MAX_FIGURE_BYTES,
        "asked": asked.asked(found),
        "rewarded": rewarded.rewarded(found),
        "outcomes": rewarded.outcomes(found),
        "against_start": rewarded.against_start(found),
        "data": facts.of_sessions(sessions),
        "counts": tested_words(found.findings),
        "tables": [
            *tables.finding_tables(found),
            *filter(None, [tables.successes(found)]),
            tables.trials(found, addresses),
        ],
        "linked": linked,
        "outside": times(outside, "trial") if outside else "",
        "provenance": tables.provenance(found, sessions),
        "in_short": tables.in_short(found, sessions),
        "settings": tables.settings(study),
        "definitions": tables.definitions(found),
        "style": style(),
        "script": script(),
    }


def figures(found: Findings) -> list[Figure]:
    """All figures of the page, in its order: the first screen, those that follow, and those behind the fold."""
    return [_first_screen(found, _views(found)), *_story(found), *rewarded.figures(found), *_folded(found)]


def _story(found: Findings) -> list[Figure]:
    return [figure for make in curves.STORY if (figure := make(found))]


def _folded(found: Findings) -> list[Figure]:
    made = (make(found) for make in (curves.compute_to_skill, *curves.FOLDED, _more_conditions, _skills))
    return [figure for figure in made if figure]


def _progress(found: Findings) -> str:
    """Number of trials that have ended, diverged and failed, in words."""
    of = {status: sum(run["status"] == status for run in found.runs) for status in ("done", "diverged", "failed")}
    ended, total = sum(of.values()), times(len(found.runs), "trial")
    lost = ", ".join(f"{number(n)} {status}" for status, n in of.items() if n and status != "done")
    return (f"so far: {ended:,} of {total}" if ended < len(found.runs) else total) + (f" ({lost})" if lost else "")


def _lines(found: Findings) -> set[str]:
    """The boundaries and intervals that the first screen's surfaces draw, for their legend (`surface.legend`)."""
    first, _ = _planes(found)
    edges = [edge for plane in first for edge in plane.edges(found, found.study.shown_skills[0])]
    return surface.legend(edges, len(found.study.budgets), (WIDTHS[len(first) - 1], NARROW))


# Surfaces -----------------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """One surface in one measure, drawn twice; CSS shows the drawing that fits the screen."""

    measure: str
    """A key of MEASURES or MEASURES_OF_TEXT."""
    title: str
    """Measure, skill and split."""
    wide: Panel
    """For a wide screen (WIDTHS)."""
    narrow: Panel
    """For a phone (NARROW)."""


def _planes(found: Findings) -> tuple[list[Plane], list[Plane]]:
    """The surfaces on the first screen, and the others."""
    return surface.split_planes(found, surface.planes(found), len(WIDTHS))


def _views(found: Findings) -> list[View]:
    """The surfaces of the first screen, by measure. Measures without a value are left out; ability stays if none has one."""
    first, _ = _planes(found)
    width, views = WIDTHS[len(first) - 1], []
    edges = [plane.edges(found, found.study.shown_skills[0]) for plane in first]
    cells = {measure: [plane.cells(found, measure) for plane in first] for measure in _measures(found)}
    for measure in [m for m in cells if any(map(surface.has_values, cells[m]))] or ["ability"]:
        for plane, those, lines in zip(first, cells[measure], edges, strict=True):
            shown = surface.shown_of(found, measure, plane.name)
            wide, narrow = (
                surface.panel(
                    (plane.levels, found.study.budgets),
                    shown,
                    those,
                    lines,
                    pixels,
                    title=plane.name if len(first) > 1 else "",
                    note=_absence(found, plane, lines),
                    labelled=any(edges),
                    rows=plane.rows,
                )
                for pixels in (width, NARROW)
            )
            views.append(View(measure, shown.title, wide, narrow))
    return views


def _measures(found: Findings) -> dict[str, Measure]:
    """The measures of a study's surfaces."""
    of_text = cast(Family, found.study.family).ability_of == "right"
    return MEASURES_OF_TEXT | (LONG if along.spans(found.study) else {}) if of_text else MEASURES


def _absence(found: Findings, plane: Plane, edges: Sequence[Edge]) -> str:
    """The reason why a surface has no line for K_A; "" if the line is drawn, and along a family parameter."""
    verdicts = {one.verdict for one in found.of("K_A", plane.name, found.study.shown_skills[0])}
    if any(edge.kind == "edge" for edge in edges) or not verdicts - {"missing"} or plane.rows != surface.TASKS:
        return ""
    if not verdicts <= {"beyond", "missing"}:
        return "in few replicates only"
    waits = any(run["status"] == "open" and run["arm"] == plane.name for run in found.runs)
    return "skill not seen yet" if waits else "skill appears nowhere"


def _first_screen(found: Findings, views: Sequence[View]) -> Figure:
    """The ability surfaces of the first screen as a figure, for its SVG and CSV files. The CSV includes the boundaries."""
    first, _ = _planes(found)
    words = "Ability: 0 knows nothing, 1 the exact rule, below 0 wrong with confidence."
    if "right" in _measures(found):
        words = "Ability: 0 as the best trivial predictor, 1 all right, below 0 worse than that predictor."
    panels = [view.wide for view in views if view.measure == views[0].measure]
    skill = found.study.shown_skills[0]
    panels[0].rows += [row for plane in first for row in surface.edge_rows(found, plane, skill)]
    lines = "Solid line: the skill appears above it. Dashed line: memory ends above it."
    if along.spans(found.study):
        lines = "Solid line: ability passes ½. Dashed line: half of the answers are long."
    return Figure(
        name="surface",
        title=views[0].title,
        sentence=answer.sentence(found),
        panels=panels,
        note=f"{words} {lines} Bars: intervals for the median replicate.",
    )


def _more_conditions(found: Findings) -> Figure | None:
    """Surfaces that the first screen has no room for; None if there are none."""
    skill = found.study.shown_skills[0]
    panels = [_small(found, plane, skill, 44, plane.name) for plane in _planes(found)[1]]
    title = f"Ability in {skill}: the other conditions"
    return Figure(name="conditions_more", title=title, sentence="", panels=panels) if panels else None


def _small(found: Findings, plane: Plane, skill: str, tallest: float, title: str, note: str = "") -> Panel:
    """A surface of ability in a skill, as wide as on a phone. Its lines are those of the skill, and memory of the headline skill."""
    edges = [e for e in plane.edges(found, skill) if e.kind == "edge" or skill == found.study.shown_skills[0]]
    shown, cells = surface.shown_of(found, "ability", plane.name, skill), plane.cells(found, "ability", skill)
    axes = plane.levels, found.study.budgets
    return surface.panel(axes, shown, cells, edges, NARROW, tallest, title, note, labelled=True, rows=plane.rows)


def _skills(found: Findings) -> Figure | None:
    """Surfaces of the shown skills other than the headline, one after another; None if no such skill has a value."""
    panels, every = [], surface.planes(found)
    for plane in [plane for plane in every if any(map(found.ended, plane.conditions))]:
        for skill in found.study.shown_skills[1:]:
            if surface.has_values(plane.cells(found, "ability", skill)):
                title = skill + (f", {plane.name}" if len(every) > 1 else "")
                note = cast(Family, found.study.family).skills.get(skill, "")
                panels.append(_small(found, plane, skill, 30, title, note))
    sentence = "Ability on the scale of the first surface."
    return Figure(name="skills", title="The other skills", sentence=sentence, panels=panels) if panels else None


# Templates ----------------------------------------------------------------------------------------------------------


def _links(links: Mapping[str, Any] | None) -> tuple[dict[str, str], str]:
    """Trial id -> address of its MLflow run, and the place of the MLflow server. Empty without links, or if they are not HTTP.

    The place is `loopback` for the reader's own machine, else `elsewhere`. links: as in `write`.
    """
    base = str(links["base"]).rstrip("/") if links else ""
    if not base.startswith(("http://", "https://")):  # a link that a browser follows, and nothing else
        return {}, ""
    assert links is not None
    host = urlsplit(base).hostname or ""
    place = "loopback" if host in ("localhost", "::1") or host.startswith("127.") else "elsewhere"
    found = {trial: f"{base}/{str(run).lstrip('/')}" for trial, run in links["runs"].items()}
    return found, place if found else ""


def templates() -> jinja2.Environment:
    """The Jinja environment of templates/: it escapes HTML, and refuses undefined variables."""
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


def style() -> Markup:
    """The CSS of every page: colours of the palette, then report.css."""
    return Markup(palette.page_css() + (TEMPLATES / "report.css").read_text(encoding="utf-8"))


def script() -> Markup:
    """The JavaScript of every page: report.js."""
    return Markup((TEMPLATES / "report.js").read_text(encoding="utf-8"))


def subscripts(words: str) -> Markup:
    """Text as HTML, with the letters of K_A and K_M set as subscripts."""
    return Markup(re.sub(r"\bK_([AM])\b", r"<i>K</i><sub>\1</sub>", str(escape(printable(words)))))
