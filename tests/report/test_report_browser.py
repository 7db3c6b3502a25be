"""The report in a browser: what a reader sees, points at, moves, sorts, filters, prints. What happens without Chromium: `browser.py`."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import DESKTOP, PHONE, Open, Opened, chromium, open_page, overlaps, sticking_out
from PIL import Image
from test_report import CASES, SESSION, Page, data_of, found_of, page_of, rows_in, study_of

from orchestrator.analysis.findings import Findings
from orchestrator.formatting import decimal, number
from orchestrator.report import page

__all__ = ["chromium", "open_page"]  # fixtures

LEVELS, BUDGETS = (4, 16, 32, 64, 1024, 10**12), (8e10, 1.6e11, 3.2e11, 6.4e11)


def ability(n_tasks: int, budget: float, replicate: int) -> float:
    """As in a real study: confidently wrong with few tasks, the rule with many, a lottery between."""
    along = math.log2(n_tasks) - 5 + 1.5 * math.log2(budget / 2.4e11) + (-0.6, 0.1, 0.7)[replicate]
    return 3.3 / (1 + math.exp(-along)) - 2.3 if n_tasks < 64 else 1 / (1 + math.exp(-2.5 * along))


def memory(n_tasks: int, budget: float, replicate: int) -> float | None:
    if n_tasks > 4096:
        return None
    return 2.4 / (1 + math.exp(math.log2(n_tasks) - 4 - math.log2(budget / 1.6e11) + replicate / 5)) - 1.4


def status(n_tasks: int, budget: float, replicate: int) -> str:
    """All but three done: one failed at its largest budget, one diverged, one not yet run."""
    odd = {
        (16, 6.4e11, 1): "failed",
        (1024, 3.2e11, 2): "diverged",
        (1024, 6.4e11, 2): "diverged",
        (4, 6.4e11, 0): "open",
    }
    return odd.get((n_tasks, budget, replicate), "done")


class Written(NamedTuple):
    """A report in its folder."""

    found: Findings
    folder: Path
    path: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A report like that of a real study, with links to MLflow for all trials but the first."""
    found, folder = (
        found_of(study_of(n_tasks=LEVELS, compute_flops=BUDGETS), ability, memory, status),
        tmp_path_factory.mktemp("real"),
    )
    runs = {run["trial"]: f"#/experiments/1/runs/{i:032x}" for i, run in enumerate(found.runs) if i}
    return Written(found, folder, page.write(folder, found, [SESSION], {"base": "http://127.0.0.1:5000", "runs": runs}))


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory: pytest.TempPathFactory) -> Written:
    found, folder = CASES["two arms"](), tmp_path_factory.mktemp("arms")
    return Written(found, folder, page.write(folder, found, [SESSION]))


def tip(page: Any) -> list[str]:
    """What the tooltip says, line by line; nothing where none is shown."""
    return page.locator("#tip > *").all_inner_texts() if page.locator("#tip").is_visible() else []


def settle(page: Any) -> None:
    """Wait until the page has drawn, and heard of, what it was made to do: a scroll is told a frame later."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


# Opening ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("which", ["real", "two_arms"])
def test_it_opens_without_a_complaint_asks_for_nothing_and_no_text_is_in_the_way(
    which: str, size: tuple[int, int], open_page: Open, request: pytest.FixtureRequest
) -> None:
    written: Written = request.getfixturevalue(which)
    opened = open_page(written.path, size)
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    settle(opened.page)
    assert overlaps(opened.page) == []
    assert sticking_out(opened.page) == []
    assert opened.requests == [written.path.as_uri()] and opened.complaints == []
    assert written.path.stat().st_size < 1e6


@pytest.mark.parametrize(
    "case", ["nothing has ended", "everything diverged", "one of everything", "replicates are missing"]
)
def test_whatever_is_missing_it_opens_and_no_text_is_in_the_way(case: str, open_page: Open, tmp_path: Path) -> None:
    page_of(tmp_path, CASES[case]())
    for size in (DESKTOP, PHONE):
        opened = open_page(tmp_path / "report.html", size)
        assert overlaps(opened.page) == [] and sticking_out(opened.page) == [] and opened.complaints == []


def test_the_check_of_texts_sees_what_it_should(open_page: Open, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<style>* { position: absolute; margin: 0; white-space: nowrap }</style><p>below</p><p style='top: 4px; left: 9px'>above</p>"
        "<p style='top: 60px; width: 60px; overflow: hidden'>cut off where its box ends</p><p style='top: 60px; left: 80px'>beside</p>"
        "<svg style='top: 100px'><text x=5 y=20>drawn</text><text x=20 y=24>over</text><text x=5 y=38>under it</text></svg>"
        "<p style='left: 1250px; top: 200px'>out of the window</p>"
    )
    opened = open_page(page)
    assert sorted(map(sorted, overlaps(opened.page))) == [["above", "below"], ["drawn", "over"]]
    assert "out of the window" in sticking_out(opened.page) and len(sticking_out(opened.page)) == 2


# Pointing -----------------------------------------------------------------------------------------------------------


def text_at(page: Any, panel: Any, words: str) -> dict[str, float]:
    """Where a panel's drawing has these words, in pixels of the window."""
    places = panel.locator("svg").first.evaluate(
        "(svg, words) => [...svg.querySelectorAll('text')].filter((t) => t.textContent === words).map((t) => t.getBoundingClientRect().toJSON())",
        words,
    )
    assert len(places) == 1, (words, places)
    return dict(places[0])


def middle(box: dict[str, float]) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_pointing_at_a_cell_shows_every_replicate_of_it(real: Written, open_page: Open) -> None:
    page = open_page(real.path).page
    panel = page.locator("#surface .panel").first
    panel.scroll_into_view_if_needed()
    settle(page)
    for n, c, told in ((64, 3.2e11, "3 of 3"), (16, 6.4e11, "2 of 3")):
        across, down = middle(text_at(page, panel, number(c)))[0], middle(text_at(page, panel, number(n)))[1]
        page.mouse.move(across, down)
        values = real.found.values("ability", "answer", "recall", "held_out", n, c)
        mean = real.found.mean("ability", "answer", "recall", "held_out", n, c)
        each = [f"{r}: {decimal(v, 3) if v is not None else 'failed'}" for r, v in enumerate(values)]
        assert tip(page) == [
            f"ability {decimal(mean)}, mean of {told} replicates",
            f"{n} tasks, {number(c)} FLOPs",
            "replicate " + " · ".join(each),
        ]
        assert decimal(mean) in panel.locator("svg").first.inner_html()
    page.mouse.move(2, 2)
    assert tip(page) == []


def test_pointing_at_the_end_of_a_curve_shows_its_trial_and_draws_its_line(real: Written, open_page: Open) -> None:
    page = open_page(real.path).page
    panel = page.locator("#curves figure", has=page.locator("b", has_text=re.compile("^32 tasks$"))).locator(".panel")
    panel.scroll_into_view_if_needed()
    settle(page)
    marks = panel.locator("svg use").evaluate_all("(all) => all.map((use) => use.getBoundingClientRect().toJSON())")
    y = {value: middle(text_at(page, panel, words))[1] for value, words in ((0.0, "0"), (1.0, "1"))}
    values = real.found.values("accuracy", "answer", "recall", "held_out", 32, 6.4e11)
    for replicate, value in enumerate(values):
        assert value is not None
        across, down = middle(text_at(page, panel, "6.4e11"))[0], y[0.0] + value * (y[1.0] - y[0.0])
        assert min(math.dist(middle(mark), (across, down)) for mark in marks) < 2.5  # there is a mark drawn
        page.mouse.move(across, down)
        assert tip(page)[:3] == [
            f"accuracy {decimal(value, 3)}, held-out tasks",
            f"32 tasks, 6.4e11 FLOPs, replicate {replicate}, step 640",
            f"answer/n32/c6.4e11/r{replicate}: done",
        ]
        ring = panel.locator(".over circle").bounding_box()
        assert math.dist(middle(ring), (across, down)) < 2.5
        line = panel.locator(".over polyline.line").first.get_attribute("points")
        assert line is not None and len(line.split()) >= 8  # the whole trunk of four budgets
    page.keyboard.press("Escape")
    assert tip(page) == []


def test_pointing_at_a_boundary_shows_its_interval_and_a_replicate_s_bracket(real: Written, open_page: Open) -> None:
    page = open_page(real.path).page
    panel = page.locator("#surface .panel").first
    panel.scroll_into_view_if_needed()
    settle(page)
    told = data_of(Page(real.path.read_text()))["panels"][0]
    box = panel.bounding_box()
    scale = box["width"] / told["box"][0]
    (flops, boundary) = real.found.k_ability[("answer", "recall")][2]
    x, y, says = next(p for p in told["points"] if p[2].startswith(f"K_A at {number(flops)}") and "crosses" in p[2])
    page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
    replicate = int(re.search(r"replicate (\d)", says)[1])  # type: ignore[index]
    bracket = boundary.brackets[replicate]
    assert tip(page)[1] == f"replicate {replicate}: crosses between {bracket.low:.0f} and {bracket.high:.0f} tasks"
    bar = next(area for area in told["areas"] if f"interval at {number(flops)} FLOPs" in area[4] and "K_A" in area[4])
    page.mouse.move(box["x"] + (bar[0] + bar[2] / 2) * scale, box["y"] + (bar[1] + 3) * scale)
    assert any(line.startswith(f"verdict: {boundary.verdict}") for line in tip(page))


def test_a_finger_shows_and_hides_a_tip(real: Written, open_page: Open) -> None:
    page = open_page(real.path, PHONE, has_touch=True, is_mobile=True).page
    panel = page.locator("#surface .panel").first
    panel.scroll_into_view_if_needed()
    settle(page)
    across, down = middle(text_at(page, panel, "1.6e11"))[0], middle(text_at(page, panel, "64"))[1]
    page.touchscreen.tap(across, down)
    assert tip(page)[1] == "64 tasks, 1.6e11 FLOPs"
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0]
    page.locator("#surface h2").tap()
    assert tip(page) == []


def test_the_arrow_keys_go_from_cell_to_cell(real: Written, open_page: Open) -> None:
    page = open_page(real.path).page
    panel = page.locator("#surface .panel").first
    panel.focus()
    page.keyboard.press("ArrowRight")
    assert tip(page)[1] == "4 tasks, 8e10 FLOPs"
    seen = []
    for key in ("ArrowUp", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        seen.append(tip(page)[1])
    assert seen == ["16 tasks, 8e10 FLOPs", "32 tasks, 8e10 FLOPs", "16 tasks, 8e10 FLOPs"]
    before = page.locator("#tip").bounding_box()["y"]
    page.evaluate("scrollBy(0, 60)")  # as the window does a moment after a panel was given the focus
    settle(page)
    assert tip(page)[1] == "16 tasks, 8e10 FLOPs" and page.locator("#tip").bounding_box()["y"] == pytest.approx(
        before - 60, abs=2
    )
    page.keyboard.press("Escape")
    assert tip(page) == []


# The walk -----------------------------------------------------------------------------------------------------------


def marks_of(page: Any, walk: Any) -> list[dict[str, Any]]:
    """The marks of a walk that are shown: series, level, value, and the height at which it is drawn."""
    page.evaluate("document.getAnimations().forEach((one) => one.finish())")  # they glide to their places
    return list(
        walk.locator(".mark[data-value]").evaluate_all(
            "(all) => all.map((m) => { const b = m.getBoundingClientRect(); return { series: m.dataset.series, level: +m.dataset.level,"
            " value: +m.dataset.value, x: b.x + b.width / 2, y: b.y + b.height / 2 }; })"
        )
    )


def test_the_slider_stops_at_every_look_and_shows_what_was_measured(real: Written, open_page: Open) -> None:
    opened = open_page(real.path)
    page, walk = opened.page, opened.page.locator(".walk")
    slider = walk.locator("input")
    slider.focus()
    cubes = {
        "ability": real.found.results.cube("ability", "answer", "recall", "held_out"),
        "memory": real.found.results.cube("memory", "answer", "mixture", "seen", "pre_decay"),
    }
    page.keyboard.press("Home")
    stops = int(slider.get_attribute("max")) + 1
    names = []
    for _ in range(stops):
        names.append((walk.locator(".now b").inner_text(), "end of a budget" in walk.locator(".at").inner_text()))
        if names[-1][1]:
            check_marks(page, walk, {name: cube[:, BUDGETS.index(float(names[-1][0]))] for name, cube in cubes.items()})
        page.keyboard.press("ArrowRight")
    assert names[-1] == ("6.4e11", True) and [float(name) for name, ended in names if ended] == list(BUDGETS)
    assert {name for name, ended in names if not ended} == {number(s * c) for c in BUDGETS for s in (0.2, 0.5)} - {""}
    assert slider.get_attribute("aria-valuetext") == "6.4e11 FLOPs, 640 steps, the end of a budget, after its decay"
    assert walk.locator(".ticks i").count() == stops and walk.locator(".ticks i.budget").count() == len(BUDGETS)
    assert opened.complaints == []


def check_marks(page: Any, walk: Any, expected: dict[str, np.ndarray]) -> None:
    """Every mark is where its value belongs, against the names 0 and 1 of the axis; all that is known has a mark."""
    marks = marks_of(page, walk)
    y = {value: middle(text_at(page, walk.locator(".stage"), words))[1] for value, words in ((0.0, "0"), (1.0, "1"))}
    for series, cells in expected.items():
        for level, cell in enumerate(cells):
            mine = sorted((m for m in marks if (m["series"], m["level"]) == (series, level)), key=lambda m: m["x"])
            known = cell[~np.isnan(cell)]
            np.testing.assert_allclose([m["value"] for m in mine], known, rtol=1e-4)
            for mark, value in zip(mine, known, strict=True):
                if -0.5 < value < 1.05:
                    assert abs(mark["y"] - (y[0.0] + value * (y[1.0] - y[0.0]))) < 1.5


def test_the_walk_tells_the_table_s_numbers_where_a_reader_points(real: Written, open_page: Open) -> None:
    page = open_page(real.path).page
    walk = page.locator(".walk")
    walk.scroll_into_view_if_needed()
    settle(page)
    mark = next(m for m in marks_of(page, walk) if (m["series"], m["level"]) == ("ability", 3))
    page.mouse.move(mark["x"], mark["y"])
    head, where, trial, *_ = tip(page)
    assert where == "64 tasks, 6.4e11 FLOPs, replicate 0" and trial == "answer/n64/c6.4e11/r0: done"
    columns = page.locator("table.trials thead th").all_inner_texts()
    row = page.locator('tr[data-trial="answer/n64/c6.4e11/r0"] td').all_text_contents()
    table = row[[c.strip() for c in columns].index("Ability")] if any(columns) else row[5]
    assert decimal(float(head.removeprefix("ability on held-out tasks "))) == table


def test_play_walks_to_the_end_and_stops(real: Written, open_page: Open) -> None:
    page = open_page(real.path).page
    walk = page.locator(".walk")
    play, slider = walk.locator("button"), walk.locator("input")
    click = "const play = document.querySelector('.walk button'), at = document.querySelector('.walk input');"
    assert page.evaluate(f"() => {{ {click} play.click(); return [play.textContent, at.value]; }}") == ["Pause", "0"]
    stop = "if (at.value < 2) return false; play.click(); return [play.textContent, at.value];"  # in one: it walks on
    said, at = page.wait_for_function(f"() => {{ {click} {stop} }}").json_value()
    page.wait_for_timeout(800)  # longer than a step: it has stopped
    last = int(slider.get_attribute("max"))
    assert said == "Play" and 2 <= int(at) < last and slider.input_value() == at
    slider.fill(str(last - 1))
    play.click()
    assert slider.input_value() == str(last)
    page.wait_for_function("document.querySelector('.walk button').textContent === 'Play'")


def test_every_arm_has_its_walk(two_arms: Written, open_page: Open) -> None:
    page = open_page(two_arms.path).page
    assert page.locator(".walk").count() == 2
    page.locator(".walk input").first.fill("0")
    assert page.locator(".walk .now b").all_inner_texts() == ["2e10", "8e11"]


# The trials ---------------------------------------------------------------------------------------------------------


def open_trials(opened: Opened) -> Any:
    opened.page.evaluate("location.hash = '#trials'")
    opened.page.wait_for_selector("table.trials tbody tr", state="visible")
    return opened.page.locator("table.trials")


def column(table: Any, name: str) -> list[str]:
    """The visible cells under a header."""
    at = [text.strip() for text in table.locator("thead th").all_inner_texts()].index(name)
    rows = "(rows, at) => rows.filter((row) => row.offsetParent).map((row) => row.cells[at].textContent)"
    return list(table.locator("tbody tr").evaluate_all(rows, at))


def test_headers_sort_numbers_as_numbers_and_leave_what_is_missing_last(
    two_arms: Written, real: Written, open_page: Open
) -> None:
    table = open_trials(open_page(real.path))
    for name in ("Ability", "Tasks", "FLOPs"):
        header = table.locator("thead th", has=table.page.locator(f"text=/^{name}$/"))
        for order, sign in (("ascending", 1), ("descending", -1)):
            header.locator("button").click()
            assert header.get_attribute("aria-sort") == order
            assert table.locator("[aria-sort$=ing]").count() == 1
            cells = column(table, name)
            known = [float(text.replace(",", "").replace("−", "-")) for text in cells if text != "—"]
            assert known == sorted(known, reverse=sign < 0) and len(known) >= 68
            assert cells[len(known) :] == ["—"] * (len(cells) - len(known))
    assert column(table, "Ability") != column(table, "Memory")


def test_filters_narrow_the_trials_and_count_them(real: Written, open_page: Open) -> None:
    opened = open_page(real.path)
    table, form = open_trials(opened), opened.page.locator("form.filter")
    assert form.locator("output").inner_text() == "72 of 72 shown"
    form.get_by_label("Tasks").select_option("16")
    form.get_by_label("FLOPs").select_option("6.4e11")
    assert form.locator("output").inner_text() == "3 of 72 shown"
    assert column(table, "Tasks") == ["16"] * 3 and column(table, "Status") == ["done", "failed", "done"]
    form.get_by_label("Status").select_option("failed")
    assert column(table, "Repl.") == ["1"]
    form.get_by_label("Status").select_option("")
    form.get_by_label("Find").fill("r2")
    assert column(table, "Repl.") == ["2"] and form.locator("output").inner_text() == "1 of 72 shown"
    assert opened.requests == [real.path.as_uri()]


def test_trials_lead_to_their_runs(real: Written, open_page: Open) -> None:
    opened = open_page(real.path)
    open_trials(opened)
    for i, run in enumerate(real.found.runs[:4]):
        link = opened.page.locator(f'tr[data-trial="{run["trial"]}"] a')
        assert link.count() == (i > 0)
        if i:
            assert link.get_attribute("href") == f"http://127.0.0.1:5000/#/experiments/1/runs/{i:032x}"


def test_a_page_that_was_mailed_alone_still_has_the_numbers(real: Written, open_page: Open, tmp_path: Path) -> None:
    alone = tmp_path / "mailed.html"
    alone.write_bytes(real.path.read_bytes())
    page = open_page(alone, accept_downloads=True).page
    for name in ("surface", "curves"):
        with page.expect_download() as download:
            page.locator(f'a[data-file="{name}"][data-kind="csv"]').first.click()
        assert download.value.suggested_filename == f"{name}.csv"
        assert Path(download.value.path()).read_bytes() == (real.folder / "figures" / f"{name}.csv").read_bytes()
    assert len(rows_in(real.folder, "surface")) > 72


def drawn_in(svg: bytes) -> Counter[str]:
    """What an SVG draws: its texts, and how many of each other element."""
    elements = [
        element for element in ElementTree.fromstring(svg).iter() if not element.tag.endswith(("}svg", "}style"))
    ]
    return Counter((element.text or "").strip() or element.tag for element in elements)


def test_a_page_that_was_mailed_alone_makes_the_pictures_that_lie_beside_it(
    real: Written, open_page: Open, tmp_path: Path
) -> None:
    alone = tmp_path / "mailed.html"
    alone.write_bytes(real.path.read_bytes())
    opened = open_page(alone, accept_downloads=True)
    for name in ("surface", "curves", "walk"):
        made = {}
        for kind in ("svg", "png"):
            with opened.page.expect_download() as download:
                opened.page.locator(f'a[data-file="{name}"][data-kind="{kind}"]:visible').first.click()
            assert download.value.suggested_filename == f"{name}.{kind}"
            made[kind] = Path(download.value.path()).read_bytes()
        assert drawn_in(made["svg"]) == drawn_in((real.folder / "figures" / f"{name}.svg").read_bytes())
        pictures = [Image.open(io.BytesIO(made["png"])), Image.open(real.folder / "figures" / f"{name}.png")]
        assert max(abs(a - b) for a, b in zip(pictures[0].size, pictures[1].size, strict=True)) <= 1
        small = [np.asarray(one.convert("L").resize((60, 40)), float) for one in pictures]
        assert np.abs(small[0] - small[1]).mean() < 6 < small[0].std()  # the same but for the reader's own font
    assert opened.requests == [alone.as_uri()] and opened.complaints == []


# On paper, and without script ---------------------------------------------------------------------------------------

CONTROLS = "nav, button, input, select, .files, .walk"


def test_on_paper_there_are_no_controls_but_the_walk_at_every_budget_and_every_trial(
    real: Written, open_page: Open
) -> None:
    opened = open_page(real.path)
    page = opened.page
    assert page.locator("#walk .static").is_hidden()
    open_trials(opened)
    page.locator("form.filter").get_by_label("Tasks").select_option("16")
    page.emulate_media(media="print")
    assert [
        one for one in page.locator(CONTROLS).all() if one.is_visible() and not one.evaluate("e => !!e.closest('th')")
    ] == []
    assert page.locator("#walk .static .panel:visible").count() == len(BUDGETS)
    assert page.locator("table.trials tbody tr:visible").count() == 72
    assert overlaps(page) == []
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".settings").is_visible()
    folded = page.locator("details", has_text="The other skills")
    assert folded.count() >= 2 and all(one.locator("table").is_visible() for one in folded.all())
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".settings").is_hidden()


def test_without_script_the_page_says_the_same_and_offers_nothing_that_does_not_work(
    real: Written, open_page: Open
) -> None:
    page = open_page(real.path, java_script_enabled=False).page
    assert page.locator("#walk .static .panel").first.is_visible()
    assert [one for one in page.locator("button, input, select, form").all() if one.is_visible()] == []
    assert page.locator("#tip").is_hidden()
    assert page.locator("details summary").first.is_visible()
