"""report and figures: one page that says what the findings say, whatever is missing."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
import json
import math
import re
import xml.etree.ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import synthetic
from matplotlib import image
from matplotlib.figure import Figure

from orchestrator import stats
from orchestrator.analysis import findings
from orchestrator.analysis.answer import paragraph
from orchestrator.analysis.boundaries import ability_words, interval_words, memory_words
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.onsets import flops_words
from orchestrator.formatting import number
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.report import curves, embed, figures, plates, surfaces, tables, walk
from orchestrator.report import page as report_page
from orchestrator.study.schema import Study
from trainers.tasks import Family, family_from

Value = Callable[[int, float, int], float | None]  # (n_tasks, budget, replicate) -> value

N = 200  # positions a row sums over
UNIFORM, GENERALIZER, MEMORIZER = math.log(16), 1.2, 0.1  # nats a position


def study_of(**changes: Any) -> Study:
    """A cipher study over three numbers of tasks and two budgets; `changes` go to its top level or to its axes."""
    axes = {"arm": ("answer",), "n_tasks": (4, 64, 10**12), "compute_flops": (1e11, 8e11), "replicates": 3}
    axes |= {k: changes.pop(k) for k in list(changes) if k in axes}
    record = {"study": "made_up", "version": 2, "question": "From how many tasks on?", "expectation": "From 64 on."}
    record |= {"family": {"name": "cipher"}, "axes": axes, "training": {"schedule": "wsd", "decay_share": 0.2}}
    record |= changes
    return Study.model_validate(record | {"family": family_from(record["family"])})


def rising(n_tasks: int, budget: float, replicate: int) -> float:
    """The skill appears between 4 and 64 tasks, from the larger budget on."""
    return 0.97 - 0.01 * replicate if n_tasks >= 64 and budget > 2e11 else -0.6


def falling(n_tasks: int, budget: float, replicate: int) -> float | None:
    """4 tasks are memorised; a trillion cannot be enumerated."""
    return None if n_tasks > 4096 else 0.9 if n_tasks < 10 else -0.3


def row_of(skill: str, split: str, nll: float | None, hits: float | None, **references: Any) -> dict[str, Any]:
    """A row of raw sums from means a position."""
    row = {"skill": skill, "split": split, "n": N, "brier": 1.0 * N, "se_ability_gap": 0.001, "se_memory_gap": 0.001}
    row |= {"nll_nats": None if nll is None else nll * N, "n_correct": None if hits is None else round(hits * N)}
    row |= {"p_correct": None if hits is None else hits * N}
    for name, (loss, right) in references.items():
        row |= {f"nll_{name}": loss * N, f"correct_{name}": right * N}
    return row


def rows_at(ability: float | None, memory: float | None) -> list[dict[str, Any]]:
    """What cipher's suite would give for this ability of every skill and this memory of the training tasks."""
    uniform, rule = {"uniform": (UNIFORM, 1 / 16)}, {"generalizer": (0.0, 1.0)}
    known = {} if memory is None else {"memorizer": (MEMORIZER, 0.3)}
    nll = None if ability is None else (1 - ability) * UNIFORM
    hits = None if ability is None else min(max(ability, 0.06), 1.0)
    mixture_nll = GENERALIZER if memory is None else GENERALIZER - memory * (GENERALIZER - MEMORIZER)
    both = [row_of(s, "held_out", nll, hits, **uniform, **rule, **known) for s in ("recall", "recall_function")]
    return [
        *both,
        row_of("elimination", "held_out", nll, hits, uniform=(UNIFORM, 1 / 16), generalizer=(UNIFORM - 0.05, 0.1)),
        row_of("recall", "seen", 0.1, 0.98, **uniform, **rule, **known),
        row_of("mixture", "seen", mixture_nll, 0.5, **uniform, generalizer=(GENERALIZER, 0.5), **known),
        row_of("override", "seen", nll, hits, **uniform, **rule, **known),
        row_of("override_memory", "seen", 1.0, None if hits is None else 1 - hits, **uniform, **known),
    ]


def found_of(
    study: Study,
    ability: Value = rising,
    memory: Value = falling,
    status: Callable[[int, float, int], str] = lambda n, c, r: "done",
) -> Findings:
    """Findings of a study whose every trial has two looks along its trunk, one at its branch and one at its end."""
    rows, runs = [], []
    for trial in study.trials():
        n, c, r = trial.n_tasks, trial.compute_flops, trial.replicate
        axes = {"trial": trial.id, "trunk": trial.trunk.id, "arm": trial.arm}
        axes |= {"n_tasks": n, "compute_flops": c, "replicate": r}
        became, steps = status(n, c, r), round(c / 1e9)
        phases = [("trunk", 0.2), ("trunk", 0.5), ("pre_decay", 0.8), ("final", 1.0)]
        for phase, share in {"done": phases, "diverged": phases[:2]}.get(became, []):
            along = {"step": round(share * steps), "flops": share * c, "phase": phase, "train_loss_nats": 2.0}
            rows += [axes | along | row for row in rows_at(ability(n, c, r), memory(n, c, r))]
        run: dict[str, Any] = {"status": became, "fingerprint": "f" * 20}
        if became in ("done", "diverged"):
            run |= {"steps": steps, "sequences": 32 * steps, "distinct_tasks": min(n, 32.0 * steps), "attempt": 1}
            run |= {"flops_own": c, "flops_run": 0.6 * c, "eval_flops": 0.05 * c, "ended": 1_700_000_400_000 + r}
            run |= {"train_seconds": 20.0, "eval_seconds": 2.5, "host": "machine", "device": "cpu", "commit": "c" * 40}
        if became in ("failed", "diverged"):
            run["reason"] = "step 7: loss was not finite"
        runs.append(axes | run)
    tables = [pa.Table.from_pylist(rows, schema=RESULTS), pa.Table.from_pylist(runs, schema=RUNS)]
    return findings.find(study, *tables)


SESSION = {
    "kind": "session",
    "session": "abc",
    "time": 1_700_000_000.0,
    "host": "machine",
    "machine": "Some CPU, 2 cores, Linux",
    "commit": "c" * 40 + "+changes",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "options": {"device": "cpu"},
}


class Page(HTMLParser):
    """The words that a reader sees, in order, and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[str] = []
        self._hidden = ""
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("style", "script", "title"):
            self._hidden = tag
        if tag == "script":
            self.scripts.append((dict(attributes), ""))
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset", "action", "poster"):
                self.links.append(value or "")
            if name == "style":
                self.styles.append(value or "")
            if name in ("alt", "aria-label", "title"):
                self.words.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if self._hidden == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        (self.styles if self._hidden else self.words).append(data)


def page_of(
    folder: Path, found: Findings, sessions: list[dict[str, Any]] | None = None, links: dict[str, Any] | None = None
) -> Page:
    path = report_page.write(folder, found, [SESSION] if sessions is None else sessions, links)
    assert path == folder / "report.html"
    return Page(path.read_text())


def rows_in(folder: Path, figure: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "figures" / f"{figure}.csv").read_text())))


CASES: dict[str, Callable[[], Findings]] = {
    "as usual": lambda: found_of(study_of()),
    "nothing has ended": lambda: found_of(study_of(), status=lambda n, c, r: "open"),
    "everything diverged": lambda: found_of(study_of(), status=lambda n, c, r: "diverged"),
    "everything failed": lambda: found_of(study_of(), status=lambda n, c, r: "failed"),
    "one replicate": lambda: found_of(study_of(replicates=1)),
    "one budget": lambda: found_of(study_of(compute_flops=(8e11,))),
    "one number of tasks": lambda: found_of(study_of(n_tasks=(64,))),
    "one of everything": lambda: found_of(study_of(n_tasks=(1,), compute_flops=(8e11,), replicates=1)),
    "a cell is missing": lambda: found_of(
        study_of(), status=lambda n, c, r: "open" if (n, c) == (64, 8e11) else "done"
    ),
    "replicates are missing": lambda: found_of(study_of(), status=lambda n, c, r: "failed" if r == n % 3 else "done"),
    "memory is defined nowhere": lambda: found_of(study_of(), memory=lambda n, c, r: None),
    "nothing is learned": lambda: found_of(study_of(), lambda n, c, r: 0.01 * r, lambda n, c, r: -1.0),
    "the skill is there from the start": lambda: found_of(study_of(), lambda n, c, r: 1.0, lambda n, c, r: 1.0),
    "predictions are not finite": lambda: found_of(study_of(), lambda n, c, r: None if n == 4 else 0.9),
    "replicates disagree": lambda: found_of(study_of(), lambda n, c, r: float(r == 0 or (r == 1 and n > 64))),
    "two arms": lambda: found_of(study_of(arm=("answer", "next_token"))),
    "a constant rate": lambda: found_of(study_of(training={"schedule": "constant"})),
}


class Written(NamedTuple):
    """A report that several tests look at."""

    found: Findings
    folder: Path
    page: Page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """A case's report, written once."""

    @functools.cache
    def write(case: str) -> Written:
        found, folder = CASES[case](), tmp_path_factory.mktemp("report")
        return Written(found, folder, page_of(folder, found))

    return write


Reports = Callable[[str], Written]


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_missing_the_page_is_written_and_prints_no_missing_value_as_one(
    case: str, written: Reports
) -> None:
    found, _, page = written(case)
    assert not re.search(r"\b(nan|NaN|None|null|inf|Infinity)\b|\{\{|\{%", page.text)
    for value in (*found.study.axes.n_tasks, *found.study.axes.compute_flops):
        assert re.search(rf"(?<![\w.,]){re.escape(number(value))}(?![\w])", page.text), value
    assert re.sub(r"\bK_([AM])\b", r"K \1", paragraph(found)) in page.text
    assert found.study.question in page.text and found.study.expectation in page.text


@pytest.mark.parametrize("case", CASES)
def test_the_page_stands_alone(case: str, written: Reports) -> None:
    _, folder, page = written(case)
    beside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert all(re.fullmatch(r"figures/\w+\.(png|svg|csv)", link) and (folder / link).exists() for link in beside)
    assert not re.search(r"@import|url\((?!['\"]?(#|data:))", " ".join(page.styles))
    assert not {"iframe", "object", "embed"} & set(page.tags)
    ((about_data, data), (about_script, script)) = page.scripts
    assert (about_data, about_script) == ({"type": "application/json", "id": "data"}, {})
    assert script.strip() == (report_page.TEMPLATES / "report.js").read_text().strip()
    assert not re.search(r"\beval\b|\bFunction\b|\bfetch\b|XMLHttpRequest|import\(|</", script)
    assert json.loads(data)["panels"]
    assert sum(path.is_file() for path in folder.iterdir()) == 1  # and no temporary file stays


def test_the_boundaries_are_told_in_the_words_of_the_findings(written: Reports) -> None:
    found, _, page = written("as usual")
    levels = [float(n) for n in sorted(found.study.axes.n_tasks)]
    _, (_, at_top) = found.k_ability[("answer", "recall")]
    table = page.text[page.text.index("The boundaries") :]
    assert (
        f"{ability_words(at_top, levels)} (too few to test) {interval_words(at_top, levels)} 95 % crossed 3 0" in table
    )
    for boundaries in (*found.k_ability.values(), *found.k_memory.values()):
        for _, boundary in boundaries:
            words = memory_words if boundaries in found.k_memory.values() else ability_words
            at = "95 %" if boundary.verdict in ("crossed", "undecided") else "—"
            settled = boundary.verdict in ("crossed", "beyond", "below")
            kept = " (too few to test)" if settled else ""  # three replicates can agree by chance
            told = f"{words(boundary, levels)}{kept} {interval_words(boundary, levels)} {at} {boundary.verdict}"
            assert told in table


def test_the_same_record_gives_the_same_bytes(written: Reports, tmp_path: Path) -> None:
    _, before, _ = written("as usual")
    page_of(tmp_path, CASES["as usual"]())
    files = sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        assert (before / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_every_figure_is_a_picture_a_drawing_and_numbers_of_the_same_name(written: Reports) -> None:
    _, folder, page = written("as usual")
    pngs, svgs, csvs = (sorted((folder / "figures").glob(f"*.{kind}")) for kind in ("png", "svg", "csv"))
    assert [p.stem for p in pngs] == [s.stem for s in svgs] == [c.stem for c in csvs]
    drawn = {"surface", "walk", "skills", "memory", "curves", "override", "override_compute", "to_skill", "scores"}
    assert drawn == {p.stem for p in pngs}
    assert {f"figures/{path.name}" for path in (*pngs, *svgs, *csvs)} <= set(page.links)
    for path in pngs:
        picture = image.imread(path)
        assert picture.shape[0] > 400 and picture.shape[1] > 800
        shades = np.unique((picture[::3, ::3, :3] * 15).astype(int) @ (1, 16, 256))
        assert len(shades) > 20, path
    for path in svgs:
        assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "surface_next_token.png"
    figure.parent.mkdir()
    figure.write_bytes(b"of an arm that is no longer there")
    numbers = figure.with_suffix(".csv")
    numbers.write_bytes(b"arm")
    page_of(tmp_path, CASES["nothing has ended"]())
    assert not figure.exists() and not numbers.exists() and (tmp_path / "figures" / "surface.png").exists()


def test_where_nothing_is_learned_no_boundary_is_drawn_and_the_page_says_so(written: Reports) -> None:
    _, folder, page = written("nothing is learned")
    assert "No K A is drawn" in page.text and "No K M is drawn" in page.text
    assert "appears nowhere" in page.text
    tints = set(plates.TINT.values())
    assert not any(tint in (folder / "figures" / "surface.svg").read_text() for tint in tints)
    assert all(tint in (written("as usual").folder / "figures" / "surface.svg").read_text() for tint in tints)


def test_an_undefined_cell_is_not_a_zero(written: Reports) -> None:
    found, folder, _ = written("as usual")
    cells = surfaces.grid(found, "memory", "answer", "mixture", "seen", "pre_decay")
    assert [cell.state for cell in cells[-1]] == ["undefined", "undefined"]
    assert [cell.value for cell in cells[0]] == [pytest.approx(0.9), pytest.approx(0.9)]
    words = "".join(xml.etree.ElementTree.parse(folder / "figures" / "memory.svg").getroot().itertext())
    assert words.count("—") == 2 and "0.00" not in words
    blank = surfaces.grid(CASES["a cell is missing"](), "ability", "answer", "recall", "held_out")
    assert blank[1][1].state == "open"


def test_a_skill_whose_references_coincide_has_no_surface_and_the_page_says_so(written: Reports) -> None:
    page = written("as usual").page  # the gap of elimination is 0.05 nats
    assert re.search(r"elimination \([^)]*\) has no surface: ability is not defined", page.text)


def test_before_anything_has_ended_the_page_says_what_it_will_show(written: Reports) -> None:
    page = written("nothing has ended").page
    assert "Nothing can be said yet" in page.text and "18 trials: 18 open" in page.text
    assert "ability on held-out tasks" in page.text
    assert page.text.count("no trial has come to the end of this budget") == 1  # for K_A of six skills, and K_M
    assert "not defined" not in page.text.split("Trials")[0].split("Verdicts")[0]


def test_where_every_trial_diverged_the_page_says_when_and_what_to_try_and_nothing_of_what_is_yet_to_come(
    written: Reports,
) -> None:
    text = written("everything diverged").page.text
    rate = written("everything diverged").found.study.training.learning_rate
    assert (
        f"Every trial diverged: step 7: loss was not finite. First to try: a lower training.learning_rate than {rate:g}."
        in text
    )
    assert "No trial has" not in text and "no trial has" not in text and "at any evaluation yet" not in text
    assert "lost , every trial there diverged or failed" in text and "No model size" not in text
    assert "learning_rate than" not in written("everything failed").page.text
    assert "Every trial failed: step 7" in written("everything failed").page.text
    assert "Every trial" not in written("replicates are missing").page.text


def test_skills_with_the_boundaries_of_the_headline_are_told_in_its_row(tmp_path: Path) -> None:
    groups = tables.boundary_rows(CASES["as usual"]())
    alike = [group for group in groups if group["like"]]
    told = [group["name"] for group in groups if group["letter"] == "A"] + [name for g in alike for name in g["like"]]
    assert sorted(told) == sorted(CASES["as usual"]().study.shown_skills)
    assert all(group["rows"] != groups[0]["rows"] for group in groups[1:] if group["letter"] == "A")


def test_under_the_title_stands_what_was_run_how_long_where_when_and_from_which_commit(written: Reports) -> None:
    found, _, page = written("as usual")
    flops = number(found.costs().train_flops)
    short = f"18 trials · {flops} FLOPs of training · 6:40 min of wall time · Some CPU, 2 cores, Linux · 14 November 2023 · commit ccccccc"
    assert f"made_up @2 {short}" in page.text
    assert "`" not in page.text


def test_every_arm_has_its_block(written: Reports) -> None:
    _, folder, page = written("two arms")
    for heading in ("Arm: answer", "Arm: next_token"):
        assert page.text.count(heading) >= 3
    assert (folder / "figures" / "surface_answer.png").exists()


def test_text_from_a_study_is_escaped(tmp_path: Path) -> None:
    study = study_of(question="Is a<b & <script>alert(1)</script>?")
    page = page_of(tmp_path, found_of(study, status=lambda n, c, r: "open"))
    assert "Is a<b & <script>alert(1)</script>?" in page.text
    assert page.tags.count("script") == 2


def test_text_in_the_data_cannot_end_its_script() -> None:
    given = {"name": "</script><script>alert(1)</script><!-- & \u2028"}
    text = str(embed.script_json(given))
    assert json.loads(text) == given
    assert not re.search("[<>&\u2028]", text)


def test_a_large_study_stays_below_two_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_TRIAL_ROWS", 150)
    study = study_of(
        n_tasks=tuple(4**k for k in range(1, 9)),
        compute_flops=tuple(1e10 * 2**k for k in range(5)),
        replicates=6,
        skills=("recall", "override", "override_memory"),
    )
    found = found_of(study, lambda n, c, r: 1 / (1 + math.exp(2 - math.log10(n) - r / 6 - math.log10(c / 1e11))))
    page = page_of(tmp_path, found)
    assert (tmp_path / "report.html").stat().st_size < 2e6
    assert "details" in page.tags and f"{8 * 5 * 6 - 150} more trials" in page.text
    assert "240 trials: 240 done" in page.text


def test_a_page_that_would_grow_too_large_gives_up_what_is_also_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Reports
) -> None:
    whole = written("as usual")
    for module, limit in (
        (embed, "MAX_POINTS"),
        (embed, "MAX_WALK_VALUES"),
        (embed, "MAX_CSV_BYTES"),
        (report_page, "MAX_PICTURE_BYTES"),
    ):
        monkeypatch.setattr(module, limit, 10)
    monkeypatch.setattr(plates, "COARSE_BYTES", 5_000)
    page = page_of(tmp_path, CASES["as usual"]())
    data, before = data_of(page), data_of(whole.page)
    assert data["walks"] == {} and "Too many trials for a slider" in page.text
    assert data["csv"] == {} and set(before["csv"]) == {path.stem for path in (tmp_path / "figures").glob("*.csv")}
    assert sum(isinstance(p[-1], str) for panel in data["panels"] for p in panel["points"]) > 0
    assert all(isinstance(p[-1], str) for panel in data["panels"] for p in panel["points"])
    assert "only cells and boundaries can be pointed at" in page.text
    assert [panel["areas"] for panel in data["panels"]] == [panel["areas"] for panel in before["panels"]]
    assert (tmp_path / "report.html").stat().st_size < 0.9 * (whole.folder / "report.html").stat().st_size
    for path in (whole.folder / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes()


def plate_of(found: Findings, name: str, arm: str = "answer") -> plates.Plate:
    """A plate as the report draws it."""
    lines = curves.Curves(found)
    plate = figures.plates_of(lines, arm, walk.walk_of(lines, arm))[name]
    assert plate is not None
    return plate


def blank_sheet() -> plates.Sheet:
    """A sheet of 200 by 100 pixels, whose axes are all of it and go from 0 to 1."""
    figure = plates._blank(200, 100)
    return plates.Sheet(axes=figure.add_axes((0, 0, 1, 1)), panel="a panel")


def test_no_line_joins_columns_more_than_a_hundredfold_apart_and_an_uneven_axis_says_so() -> None:
    levels = (4.0, 8.0, 800.0, 801.0, 1e12)
    assert curves.jumps(levels) == [4]
    sheet = blank_sheet()
    curves.join(sheet.axes, levels, np.array([0.0, 1.0, np.nan, 2.0, 3.0]))
    (line,) = sheet.axes.get_lines()
    whole = np.isfinite(np.asarray(line.get_ydata(), float))
    pairs = {(a, b) for (a, b), ok in zip(pairwise(line.get_xdata()), whole[1:] & whole[:-1], strict=True) if ok}
    assert pairs == {(0.0, 1.0)}
    assert curves.tasks_words(levels).endswith("not to scale")
    for even in ((4.0, 16.0, 64.0), (7.0,), (10.0, 1000.0)):
        assert not curves.tasks_words(even).endswith("not to scale")


def test_more_replicates_are_not_more_artists() -> None:
    counts = []
    for replicates in (3, 12):
        found, drawn = found_of(study_of(replicates=replicates)), {}
        for name in ("walk", "curves", "override", "override_compute", "scores", "to_skill"):
            panels, sheets = plate_of(found, name).panels, []
            with plates.drawing():
                for panel in panels:
                    sheets.append(blank_sheet())
                    panel.draw(sheets[-1])
            drawn[name] = [len(sheet.axes.get_children()) for sheet in sheets]
        counts.append(drawn)
    assert counts[0] == counts[1]


def test_of_marks_that_share_a_pixel_one_is_drawn_and_none_that_stands_alone_is_lost() -> None:
    places = [(0.25 + 1e-6 * k, 0.5) for k in range(plates.MANY)] + [(0.75, 0.1)]
    few, many = blank_sheet(), blank_sheet()
    few.marks(*zip(*places[1:], strict=True), marker="o")
    many.marks(*zip(*places, strict=True), marker="o")
    assert len(np.asarray(few.axes.lines[0].get_xdata())) == plates.MANY and few.merged == 0
    drawn = np.column_stack(many.axes.lines[0].get_data()).tolist()
    assert drawn == [[0.25, 0.5], [0.75, 0.1]] and many.merged == plates.MANY - 1


def test_a_figure_that_leaves_marks_out_says_so_beside_it_and_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Reports
) -> None:
    assert "share a pixel" not in written("as usual").page.text
    monkeypatch.setattr(plates, "MANY", 2)
    page = page_of(tmp_path, found_of(study_of(), lambda n, c, r: 0.9))
    assert re.search(r"Of marks that share a pixel only one is drawn \(\d+ are not\); the CSV has all\.", page.text)
    svg = "".join(xml.etree.ElementTree.parse(tmp_path / "figures" / "curves.svg").getroot().itertext())
    assert "share a pixel" in svg
    assert len(rows_in(tmp_path, "curves")) == len(rows_in(written("as usual").folder, "curves"))


@pytest.mark.parametrize(("share", "given_up"), [(0.97, 1), (0.1, 4)])
def test_a_page_beyond_its_limit_goes_without_what_is_beside_it_and_says_so(
    share: float, given_up: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Reports
) -> None:
    size = (written("as usual").folder / "report.html").stat().st_size
    monkeypatch.setattr(report_page, "MAX_PAGE_BYTES", int(share * size))
    page = page_of(tmp_path, CASES["as usual"]())
    said = re.search(r"To stay below [\d.]+ MB this page goes without (.*?): all of it is in", page.text)
    assert said is not None and tuple(said[1].split(", ")) == embed.PARTS[:given_up]
    data = data_of(page)
    assert [not data["csv"], not any(p["areas"] for p in data["panels"]), not data["walks"]] == [
        given_up > k for k in (1, 2, 3)
    ]
    left = page.text.count("This figure is left to its files")
    assert (left > 0) == (given_up == len(embed.PARTS))
    if left < len(list((tmp_path / "figures").glob("*.png"))):
        assert (tmp_path / "report.html").stat().st_size <= share * size


def test_halfway_to_that_the_ends_of_budgets_can_still_be_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Reports
) -> None:
    before = data_of(written("as usual").page)
    monkeypatch.setattr(embed, "MAX_POINTS", sum(len(panel["points"]) for panel in before["panels"]) - 1)
    page = page_of(tmp_path, CASES["as usual"]())
    runs, panels = data_of(page)["runs"], data_of(page)["panels"]
    budgets = [runs[p[3]][3] for panel in panels for p in panel["points"] if not isinstance(p[-1], str)]
    assert len(budgets) > 50 and set(budgets) == {"1e11", "8e11"}
    assert "only the ends of budgets can be pointed at" in page.text


# Looks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["one of everything", "one number of tasks"])
def test_nothing_of_a_panel_sticks_out_of_it(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, svg_of = [], plates._svg

    def look(figure: Figure, salt: str) -> str:
        for axes in figure.axes:
            box, whole = axes.get_tightbbox(), figure.bbox
            assert box is not None
            out.append((salt, max(-box.x0, -box.y0, box.x1 - whole.x1, box.y1 - whole.y1)))
        return svg_of(figure, salt)

    monkeypatch.setattr(plates, "_svg", look)
    page_of(tmp_path, CASES[case]())
    assert len(out) >= 12 and not [one for one in out if one[1] > 0.5]


def test_the_curve_of_compute_to_skill_is_of_what_is_there_to_stay_as_its_words_are(tmp_path: Path) -> None:
    def lost_again(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        return np.where((replicate == 0) == (flops < 1e11), 0.9, 0.1)  # 0 has it and loses it when the others get it

    study = synthetic.made_up(n_tasks=(64,))
    found = findings.find(study, *synthetic.tables(study, lost_again))
    page_of(tmp_path, found)
    rows = rows_in(tmp_path, "to_skill")
    shares = [float(row["value"]) for row in rows if row["series"] == "share"]
    assert shares[0] == 0 and shares[-1] == pytest.approx(2 / 3)
    told = found.to_skill["answer", 64]
    assert "is there to stay in 2 of 3 replicates" in flops_words(told.boundary, found.looks("answer", 64))
    (interval,) = [row for row in rows if row["series"] == "interval"]
    ends = [float(interval[name]) if interval.get(name) else None for name in ("low_flops", "high_flops")]
    assert ends == [told.boundary.low, told.boundary.high] and interval["verdict"] == told.boundary.verdict


# What a reader who points at something is told --------------------------------------------------------------------


def pointed_words(page: Page) -> list[str]:
    """All words that the page has for marks and areas."""
    panels = data_of(page)["panels"]
    return [t[-1] for panel in panels for t in (*panel["points"], *panel["areas"]) if isinstance(t[-1], str)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("14 to 36", "14 to 36 tasks"),
        ("7.5 or fewer", "7.5 or fewer tasks"),
        ("above 1e12", "above 1e12 tasks"),
        ("beyond 1e12 in all 3", "beyond 1e12 tasks in all 3 replicates"),
        ("below 1 in all 12", "below 1 task in all 12 replicates"),
        ("4 to 64 (one bracket)", "4 to 64 tasks (one bracket)"),
        ("open at both ends", "open at both ends"),
    ],
)
def test_an_interval_is_told_with_its_unit(words: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "interval_words", lambda boundary, levels: words)
    assert surfaces.interval_in_tasks(stats.Boundary(None, None, (), "missing", 0), []) == told


@pytest.mark.parametrize("case", ["as usual", "one replicate", "replicates disagree", "replicates are missing"])
def test_intervals_are_told_where_pointed_at_as_in_the_tables(case: str, written: Reports) -> None:
    found, _, page = written(case)
    levels, said = [float(n) for n in sorted(found.study.axes.n_tasks)], pointed_words(page)
    bars = [words.split("\n") for words in said if "\nverdict: " in words]
    headline = {"A": found.k_ability["answer", "recall"], "M": found.k_memory["answer"]}
    for group, (letter, boundaries) in zip(tables.boundary_rows(found), headline.items(), strict=False):
        assert group["letter"] == letter
        for k, (flops, boundary) in enumerate(boundaries):
            mark = group["rows"][min(k, len(group["rows"]) - 1)]["mark"]  # one row where all are alike
            told = f"K_{letter}: {surfaces.interval_in_tasks(boundary, levels)}"
            verdict = f"verdict: {boundary.verdict}{f' ({mark})' if mark else ''}"
            assert boundary.verdict == "missing" or [told, verdict] in [
                [bar[0], bar[2]] for bar in bars if f"at {number(flops)} FLOPs" in bar[1]
            ]
    section = page.text[page.text.index("From how much compute on: recall") :]
    for words in said:
        if "FLOPs" in words and ("interval for half" in words or "one bracket, no interval" in words):
            assert words.split("\n")[0] in section
        if "at the end of the budget" in words:
            share, low, high = re.search(r"(\d of \d) at .*interval ([\d.]+) to ([\d.]+)", words).groups()  # type: ignore[union-attr]
            assert f"{share} {low} to {high}" in section


def test_single_values_are_told_by_what_they_are_with_their_units(written: Reports) -> None:
    named = {tuple(one[:2]) for panel in data_of(written("as usual").page)["panels"] for one in panel["series"]}
    assert named == {
        ("accuracy", ", held-out tasks"),
        ("accuracy", ", training tasks"),
        ("probability", ", the context's answer"),
        ("probability", ", the memorised answer"),
        ("log loss", " nats"),
        ("Brier score", ""),
        ("accuracy", ", greedy"),
        ("accuracy", ", sampled"),
    }
    assert not [
        words for words in pointed_words(written("as usual").page) if re.search(r"\d_|_\w*\d|(?<=\s)-\d", words)
    ]


def test_a_bracket_is_told_of_the_replicate_that_it_is_of(tmp_path: Path) -> None:
    page = page_of(tmp_path, found_of(study_of(), status=lambda n, c, r: "open" if r == 0 else "done"))
    brackets = [words for words in pointed_words(page) if re.match(r"K_[AM] at ", words)]
    assert {r for words in brackets for r in re.findall(r"replicate (\d)", words)} == {"1", "2"}
    rows = [row for row in rows_in(tmp_path, "surface") if row["series"].endswith("of a replicate")]
    assert {row["replicate"] for row in rows} == {"1", "2"}


# Numbers of the figures ---------------------------------------------------------------------------------------------


def data_of(page: Page) -> dict[str, Any]:
    return dict(json.loads(page.scripts[0][1]))


def test_the_numbers_of_a_surface_are_its_cells_and_bounds(written: Reports) -> None:
    found, folder, _ = written("as usual")
    rows = rows_in(folder, "surface")
    cells = [row for row in rows if row["series"] == "cell"]
    assert len(cells) == 3 * 2 * 3
    for row in cells:
        n, c, r = int(row["n_tasks"]), float(row["compute_flops"]), int(row["replicate"])
        value = found.values("ability", "answer", "recall", "held_out", n, c)[r]
        assert (float(row["value"]), row["unit"], row["status"]) == (value, "ratio", "done")
        assert row["trial"] in {run["trial"] for run in found.runs}
    for name, boundaries in (("K_A", found.k_ability[("answer", "recall")]), ("K_M", found.k_memory["answer"])):
        whole = {float(r["compute_flops"]): r for r in rows if r["series"] == f"{name} interval"}
        each = [row for row in rows if row["series"] == f"{name} of a replicate"]
        assert len(each) == 6
        for c, boundary in boundaries:
            assert whole[c]["verdict"] == boundary.verdict and whole[c]["unit"] == "tasks"
            for end, value in (("low_tasks", boundary.low), ("high_tasks", boundary.high)):
                on_grid = value is not None and 4 <= value <= 1e12
                assert whole[c][end] == (str(value) if on_grid else "")
            brackets = [(r["low_tasks"], r["high_tasks"]) for r in each if float(r["compute_flops"]) == c]
            assert brackets == [tuple("" if end is None else str(end) for end in b) for b in boundary.brackets]


def test_the_numbers_of_curves_are_every_look_and_the_references(written: Reports) -> None:
    found, folder, _ = written("as usual")
    rows = rows_in(folder, "curves")
    for split, name in (("held_out", "held-out tasks"), ("seen", "training tasks")):
        for n, r in ((4, 0), (64, 2)):
            mine = [x for x in rows if (x["series"], x["n_tasks"], x["replicate"]) == (name, str(n), str(r))]
            track = found.results.track("accuracy", "answer", "recall", split, n, r)
            looks = {(int(s), f, v) for s, f, v in zip(*(part.tolist() for part in track[:3]), strict=True)}
            assert {(int(x["step"]), float(x["flops"]), float(x["value"])) for x in mine} == looks
            ends = {x["trial"]: float(x["compute_flops"]) for x in mine if x["phase"] == "final"}
            assert sorted(ends.values()) == [1e11, 8e11] and len(ends) == 2
    chance = [float(row["value"]) for row in rows if row["series"] == "chance"]
    assert chance == [1 / 16] * 3


def test_the_walk_goes_from_look_to_look_and_ends_budgets_as_the_surfaces_do(written: Reports) -> None:
    found, folder, page = written("as usual")
    walk = data_of(page)["walks"]["answer"]
    shares = {0.2, 0.5}  # of either budget: the looks along the trunk; the branch point is none of them
    trunk = {(number(c * s), False) for c in (1e11, 8e11) for s in shares}
    assert {(stop["flops"], stop["budget"]) for stop in walk["stops"]} == trunk | {("1e11", True), ("8e11", True)}
    flops = [float(stop["flops"].replace(",", "")) for stop in walk["stops"]]
    assert flops == sorted(flops)
    cubes = (
        found.results.cube("ability", "answer", "recall", "held_out"),
        found.results.cube("memory", "answer", "mixture", "seen", "pre_decay"),
    )
    for values, cube in zip(walk["values"], cubes, strict=True):
        for k, stop in enumerate(walk["stops"]):
            if stop["budget"]:
                shown = np.array(values[k], float)
                np.testing.assert_allclose(shown, cube[:, [1e11, 8e11].index(float(stop["flops"]))], rtol=1e-4)
    rows = rows_in(folder, "walk")
    assert len(rows) == sum(v is not None for values in walk["values"] for at in values for cell in at for v in cell)
    assert {row["phase"] for row in rows if row["measure"] == "memory"} == {"trunk", "pre_decay"}
    assert {row["phase"] for row in rows if row["measure"] == "ability"} == {"trunk", "final"}


def test_where_nothing_decays_a_look_at_the_end_of_a_budget_is_one_stop(written: Reports) -> None:
    walk = data_of(written("a constant rate").page)["walks"]["answer"]
    steps = [stop["step"] for stop in walk["stops"]]
    assert len(set(steps)) == len(steps)


def test_the_numbers_on_the_page_are_those_beside_it(written: Reports) -> None:
    _, folder, page = written("two arms")
    packed = data_of(page)["csv"]
    assert {f"{name}.csv" for name in packed} == {path.name for path in (folder / "figures").glob("*.csv")}
    for name, text in packed.items():
        assert gzip.decompress(base64.b64decode(text)) == (folder / "figures" / f"{name}.csv").read_bytes()


# Links --------------------------------------------------------------------------------------------------------------


def test_trials_lead_to_their_mlflow_runs(tmp_path: Path) -> None:
    found = CASES["as usual"]()
    trials = [run["trial"] for run in found.runs]
    links = {
        "base": "http://127.0.0.1:5000/",
        "runs": {t: f"#/experiments/3/runs/{i}" for i, t in enumerate(trials[1:])},
    }
    page = page_of(tmp_path, found, links=links)
    away = [link for link in page.links if link.startswith("http")]
    assert away == [f"http://127.0.0.1:5000/#/experiments/3/runs/{i}" for i in range(len(trials) - 1)]
    assert f"MLflow run of {trials[1]}" in page.text and f"MLflow run of {trials[0]}" not in page.text
    assert "MLflow on the machine that ran the study" in page.text and "emergence ui" in page.text


def test_links_elsewhere_need_no_server_of_ours_and_links_that_are_none_are_left_out(tmp_path: Path) -> None:
    found = CASES["one of everything"]()
    runs = {found.runs[0]["trial"]: "#/experiments/3/runs/a"}
    text = page_of(tmp_path, found, links={"base": "https://mlflow.example.org/team", "runs": runs})
    assert "https://mlflow.example.org/team/#/experiments/3/runs/a" in text.links
    assert "emergence ui" not in text.text
    page = page_of(tmp_path, found, links={"base": "javascript:alert(1)", "runs": runs})
    assert all(link.startswith(("#", "data:", "figures/")) for link in page.links) and "MLflow" not in page.text


# The rest of the page -----------------------------------------------------------------------------------------------


def test_the_contents_name_the_sections_there_are_in_their_order(written: Reports) -> None:
    text = (written("as usual").folder / "report.html").read_text()
    ids = re.findall(r'<section id="(\w+)"', text)
    assert re.findall(r'href="#(\w+)"', text[text.index("<nav") : text.index("</nav>")]) == ids
    assert ids == [
        name
        for name, *_ in report_page.SECTIONS
        if name not in ("distance", "expected", "generalists", "arms", "speed")
    ]


def test_expected_values_are_set_beside_what_was_measured(written: Reports, tmp_path: Path) -> None:
    cell = {"n_tasks": 64, "skill": "recall"}
    claims = [
        {"what": "ability", "cell": cell, "value": 0.95, "lo": 0.9, "hi": 1.0, "source": "paper A", "evidence": "V"},
        {"what": "ability", "cell": cell, "value": 0.5, "lo": 0.4, "hi": 0.6, "source": "figure B", "evidence": "F"},
    ]
    found = found_of(study_of(expected=claims))
    page = page_of(tmp_path, found)
    assert [v.verdict for v in found.verdicts] == ["consistent", "inconsistent"]
    table = page.text[page.text.index("Expected and measured") :]
    assert re.search(r"ability consistent .* 0\.95 0\.9 to 1 0\.96 0\.935 to 0\.985 3 paper A", table)
    assert re.search(r"ability inconsistent .* 0\.5 0\.4 to 0\.6 0\.96 0\.935 to 0\.985 3 figure B", table)
    assert "exploratory" not in page.text
    assert "exploratory" in written("as usual").page.text


def test_provenance_adds_up_and_survives_a_missing_session(written: Reports, tmp_path: Path) -> None:
    found, _, page = written("as usual")
    costs = found.costs()
    assert costs.train_flops == pytest.approx(0.6 * 9 * 9e11)  # 3 numbers of tasks x 3 replicates x (1e11 + 8e11)
    assert costs.saved_flops == pytest.approx(0.4 * 9 * 9e11)
    assert costs.eval_flops == pytest.approx(0.05 * 9 * 9e11)
    assert costs.slot_seconds == pytest.approx(18 * 22.5)
    text = page.text
    assert "4.86e12 FLOPs run; sharing trunks saved 3.24e12 FLOPs" in text
    assert "6:40 min, from the first session" in text and "14 November 2023, 22:13 UTC" in text
    assert "python 3.11.7, torch 2.13.0" in text and "Some CPU, 2 cores, Linux (machine)" in text
    assert "Sessions 0" in page_of(tmp_path, CASES["nothing has ended"](), []).text


def test_the_parts_of_the_report_know_no_estimator_no_trainer_and_no_server() -> None:
    for name in ("plates", "surfaces", "curves", "walk", "embed", "tables"):
        source = (report_page.TEMPLATES.parent / f"{name}.py").read_text()
        assert not re.search(r"^\s*(import|from) (scipy|statsmodels|torch|ray|mlflow)\b", source, re.M), name


def test_a_bracket_lies_between_the_rows_it_names() -> None:
    levels = [4.0, 16.0, 64.0]
    assert surfaces._rank(levels, 16.0, 9) == (1.0, True)
    assert surfaces._rank(levels, 8.0, 9) == (pytest.approx(0.5), True)
    assert surfaces._rank(levels, 1.0, 9) == (-0.5, False)
    assert surfaces._rank(levels, 1e9, 9) == (2.5, False)
    assert surfaces._rank(levels, None, 9) == (9, False)


def test_labels_keep_apart_and_stay_in_order() -> None:
    values = [1.0, 0.13, 0.06, 0.1]
    places = curves.spread(values, 0.08)
    assert sorted(range(4), key=places.__getitem__) == sorted(range(4), key=values.__getitem__)
    assert min(np.diff(sorted(places))) >= 0.08 - 1e-12
    assert places[0] == 1.0 and places[2] == 0.06


def test_ink_can_be_read_on_every_colour() -> None:
    for share in np.linspace(0, 1, 101):
        colour = plates.CIVIDIS(share)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        light = float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05
        assert max(1.05 / light if surfaces.ink_on(colour) == "white" else light / 0.05, 0) >= 4.5


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (4.0, 64.0, "4 to 64"),
        (None, 64.0, "64 or fewer"),
        (0.001, 64.0, "64 or fewer"),
        (64.0, None, "above 64"),
        (64.0, 1e20, "above 64"),
        (3.9, 64.0, "64 or fewer"),
        (64.0, 1025.0, "above 64"),
        (None, None, "open at both ends"),
    ],
)
def test_an_interval_is_not_told_beyond_the_grid(low: float | None, high: float | None, words: str) -> None:
    boundary = stats.Boundary(low, high, (stats.Bracket(low, high),) * 2, "crossed", 0)
    assert interval_words(boundary, [4.0, 64.0, 1024.0]) == words


def test_a_grid_of_a_coarse_last_step_lends_nothing_beyond_it() -> None:
    levels = [4.0, 16.0, 32.0, 64.0, 1024.0, 1e12]
    boundary = stats.boundary(levels, [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]], "rising")
    assert boundary.high is not None and boundary.high > 1e12  # what a t-interval says
    assert ability_words(boundary, levels) == "appears, at a number of tasks that is open at both ends"


def test_a_reference_is_averaged_over_replicates_not_over_budgets() -> None:
    found = found_of(study_of(), status=lambda n, c, r: "open" if r == 2 and c < 2e11 else "done")
    cube = found.results.cube("memorizer_accuracy", "answer", "recall", "held_out")
    cube[0] = np.where(np.isnan(cube[0]), np.nan, [0.1, 0.1, 0.4])
    assert found.reference_accuracy("memorizer", "answer", "recall", "held_out", 4) == pytest.approx(0.2)
    assert found.reference_accuracy("oracle", "answer", "recall", "held_out", 4) is None


def test_the_relative_distance_is_drawn_with_its_crossings(tmp_path: Path) -> None:
    study = study_of(
        family={"name": "urns"}, arm=("next_token",), n_tasks=(4, 16), training={"schedule": "constant"}, replicates=2
    )
    rows, family = [], study.family
    assert isinstance(family, Family)
    for trial in study.trials():
        for k in range(12):
            step = 10 * 2**k
            share = 1 / (1 + (100 * (1 + trial.replicate) / step) ** 2) if trial.n_tasks == 4 else 0.1
            row = row_of("predict", "seen", 1.8, 0.5, uniform=(UNIFORM, 0.1))
            row |= {"skl_generalizer": share * N, "skl_memorizer": (1 - share) * N, "skl_references": 1.0 * N}
            axes = {"trial": trial.id, "trunk": trial.trunk.id, "arm": trial.arm, "n_tasks": trial.n_tasks}
            axes |= {"compute_flops": trial.compute_flops, "replicate": trial.replicate}
            phase = "final" if k == 11 else "trunk"
            rows.append(axes | {"step": step, "flops": 1e7 * step, "phase": phase} | row)
    tables = pa.Table.from_pylist(rows, schema=RESULTS), pa.Table.from_pylist(found_of(study).runs, schema=RUNS)
    page = page_of(tmp_path, findings.find(study, *tables))
    told = re.search(r"4 tasks crosses ½ at step (\d+), (\d+)\b", page.text)
    assert told is not None and [int(step) for step in told.groups()] == pytest.approx([100, 200], rel=0.03)
    assert "16 tasks no crossing of ½ seen" in page.text
    assert (tmp_path / "figures" / "distance.png").exists()


def test_a_half_finished_study_is_not_said_to_have_nothing_where_some_replicates_have_the_skill(tmp_path: Path) -> None:
    found = found_of(study_of(), status=lambda n, c, r: "open" if n >= 64 and r > 0 else "done")
    page = page_of(tmp_path, found)
    assert all(b.verdict in ("beyond", "missing") for _, b in found.k_ability["answer", "recall"])
    assert (
        "replicates that have ended reach an ability of one half, but not all have at the numbers of tasks" in page.text
    )
    assert "no replicate reaches" not in page.text and "nowhere" not in paragraph(found).split("Memory")[0]
