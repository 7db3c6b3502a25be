"""The report of hostile words: a page and figures that show them and do nothing else."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from pathlib import Path

import pytest
from browser import PHONE, Open, chromium, open_page, sticking_out  # noqa: F401 - fixtures
from conftest import tally
from test_report import SESSION, Page, found_of, study_of

from orchestrator.analysis.findings import Findings
from orchestrator.report import page, svg
from orchestrator.terminal import printable

WORDS = "</title></style></script><img src=x onerror=document.title=1><!-- {{ 7*7 }} &amp; \"'` K_A $x_1$ \\frac{ \x1b[31m\x00 \u202etxt \ud800"
LONG = WORDS + " " + "w" * 50_000 + " why" * 12_500


@pytest.fixture(scope="module")
def hostile() -> Findings:
    """A study of which every word that somebody else may write is hostile, and whose question is 100 kB long."""
    study = study_of(question=LONG, expectation=WORDS, arm=("answer", "next_token"))
    found = found_of(study, status=lambda n, c, r: "failed" if r == 0 else "done")
    for run in found.runs:
        run |= {"reason": WORDS, "host": WORDS, "device": WORDS, "commit": WORDS}
    return found


@pytest.fixture(scope="module")
def folder(hostile: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    path: Path = tmp_path_factory.mktemp("report")
    session = SESSION | {"changes": [WORDS], "machine": WORDS, "host": WORDS, "versions": {WORDS: WORDS}}
    links = {"base": "http://127.0.0.1:5000", "runs": {run["trial"]: f'#/"><b>{WORDS}' for run in hostile.runs}}
    page.write(path, hostile, [session], links)
    return path


def test_hostile_words_are_on_the_page_as_they_are_and_make_no_element(folder: Path) -> None:
    """Fails without autoescape, and without `finalize`: control characters and reordered words are on the page."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    page = Page(text)
    assert page.tags.count("script") == page.tags.count("body") == 1
    assert Page(re.sub(r"<svg.*?</svg>", "", text, flags=re.S)).tags.count("title") == 1
    assert not [link for link in page.links if not re.match(r"#|figures/|data:|http://127\.0\.0\.1:5000/#/", link)]
    shown = " ".join(printable(WORDS).replace("K_A", "K A").split())
    assert page.text.count(shown[:60]) > 5 and page.text.count("onerror=") > 5 and "{{ 7*7 }}" in page.text
    body = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\x9b\u202e]", body)
    tally("hostile texts in a report", 8, 8)


def test_hostile_names_in_a_figure_are_drawn_as_they_stand() -> None:
    """Fails without `svg._safe`: without its escape or without `printable` the file is no XML."""
    names = [WORDS, "$", "a & b < c", "]]>", "x\ty", '"><script>alert(1)</script>']
    for name in names:
        drawing = svg.Drawing(200, 100)
        drawing.text(10, 10, name)
        drawing.mark(5, 5, "f0", title=name)
        drawing.cell(0, 0, 10, 10, "z", [name], name)
        panels = [svg.Panel(title=name, note=name, alt=name, drawing=drawing, rows=[{"series": name}])] * 2
        figure = svg.Figure(name="figure", title=name, sentence=name, panels=panels, key=[(0, "round", name)])
        root = xml.etree.ElementTree.fromstring(svg.sheet(figure, name))
        texts = [" ".join("".join(e.itertext()).split()) for e in root.iter() if e.tag.endswith(("text", "title"))]
        shown = " ".join(printable(name).encode(errors="replace").decode().split())
        assert sum(shown in text for text in texts) >= 12 and "script" not in {e.tag.split("}")[1] for e in root.iter()}
    tally("hostile texts in a report", len(names), len(names))


def test_in_a_browser_hostile_words_run_nothing_and_stay_on_the_page(folder: Path, open_page: Open) -> None:  # noqa: F811
    """Fails without autoescape."""
    opened = open_page(folder / "report.html", size=PHONE)
    assert opened.page.title() == "made_up@2" and not opened.complaints
    assert all(url.startswith(("file://", "data:")) for url in opened.requests) and not sticking_out(opened.page)
