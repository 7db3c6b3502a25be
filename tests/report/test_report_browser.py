"""The report in a browser: what stands on the first screen, on a phone, in the dark, on paper and without script."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import PHONE, Open, chromium, open_page, overlaps, sticking_out
from test_report import CASES, SESSION, found_of, page_of, study_of

from orchestrator.analysis.findings import Findings
from orchestrator.report import page

__all__ = ["chromium", "open_page"]  # fixtures

SCREEN = (1280, 800)
LEVELS, BUDGETS = (4, 16, 32, 64, 1024, 10**12), (8e10, 1.6e11, 3.2e11, 6.4e11)
QUESTION = (
    "A model is trained on n substitution ciphers. From which number of ciphers on, and from how much compute on, does "
    "it read an unseen cipher off its context, instead of recalling one it was trained on?"
)


def ability(n_tasks: int, budget: float, replicate: int) -> float:
    """As in a real study: confidently wrong with few tasks, the rule with many, by lot between."""
    along = math.log2(n_tasks) - 5 + 1.5 * math.log2(budget / 2.4e11) + (-0.6, 0.1, 0.7)[replicate]
    return 3.3 / (1 + math.exp(-along)) - 2.3 if n_tasks < 64 else 1 / (1 + math.exp(-2.5 * along))


def memory(n_tasks: int, budget: float, replicate: int) -> float | None:
    if n_tasks > 4096:
        return None
    return 2.4 / (1 + math.exp(math.log2(n_tasks) - 4 - math.log2(budget / 1.6e11) + replicate / 5)) - 1.4


def status(n_tasks: int, budget: float, replicate: int) -> str:
    """All but four done: one failed, two diverged, one not yet run."""
    odd = {(16, 6.4e11, 1): "failed", (1024, 3.2e11, 2): "diverged", (1024, 6.4e11, 2): "diverged"}
    return (odd | {(4, 6.4e11, 0): "open"}).get((n_tasks, budget, replicate), "done")


class Written(NamedTuple):
    """A report in its folder."""

    found: Findings
    path: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A report like that of a real study that is not finished, with a primary claim and links to MLflow."""
    declared = {"what": "k_ability", "compute_flops": 6.4e11, "lo": 16, "hi": 256}
    study = study_of(n_tasks=LEVELS, compute_flops=BUDGETS, question=QUESTION, primary=declared)
    found, folder = found_of(study, ability, memory, status), tmp_path_factory.mktemp("real")
    runs = {run["trial"]: f"#/experiments/1/runs/{i:032x}" for i, run in enumerate(found.runs) if i}
    return Written(found, page.write(folder, found, [SESSION], {"base": "http://127.0.0.1:5000", "runs": runs}))


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory: pytest.TempPathFactory) -> Written:
    found = CASES["two arms"]()
    return Written(found, page.write(tmp_path_factory.mktemp("arms"), found, [SESSION]))


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


def bottom(page: Any, selector: str) -> float:
    """The lower edge of the first visible match, in pixels of the page."""
    box = page.locator(selector).locator("visible=true").first.bounding_box()
    return float(box["y"] + box["height"])


SMALLEST = """() => {
  // The smallest visible text, in pixels as it is shown: an SVG that is shrunk shrinks its text.
  let least = [1000, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script, style, sub, title") || !parent.checkVisibility()) continue;
    const svg = parent.closest("svg"), drawn = svg && svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const size = parseFloat(getComputedStyle(parent).fontSize) * (drawn || 1);
    if (size < least[0]) least = [size, node.data];
  }
  return least;
}"""


@pytest.mark.parametrize("which", ["real", "two_arms"])
def test_the_first_screen_answers(which: str, open_page: Open, request: pytest.FixtureRequest) -> None:
    opened = open_page(request.getfixturevalue(which).path, SCREEN).page
    assert bottom(opened, "#answer") < 200
    for panel in opened.locator("#surface figure").locator("visible=true").all():
        box = panel.bounding_box()
        assert box["y"] > bottom(opened, "#answer") - 1 and box["y"] + box["height"] <= SCREEN[1]
    names = opened.locator("#surface svg").locator("visible=true").first.locator("text.b").all_text_contents()
    assert sorted(names) == ["memory ends", "skill appears"]
    if which == "real":
        assert bottom(opened, ".badge") < SCREEN[1]
    assert bottom(opened, ".legend") < SCREEN[1]


def test_a_phone_shows_sentence_surface_and_badge_in_this_order(real: Written, open_page: Open) -> None:
    opened = open_page(real.path, PHONE).page
    places = [bottom(opened, of) for of in ("#answer", "#surface figure", ".badge", "#more", "#emergence")]
    assert places == sorted(places)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SCREEN, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("which", ["real", "two_arms"])
def test_no_text_overlaps_is_cut_or_too_small(
    which: str, size: tuple[int, int], scheme: str, open_page: Open, request: pytest.FixtureRequest
) -> None:
    written: Written = request.getfixturevalue(which)
    opened = open_page(written.path, size, color_scheme=scheme)
    for unfolded in (False, True):
        if unfolded:
            unfold(opened.page)
        assert overlaps(opened.page) == []
        assert sticking_out(opened.page) == []
        least, words = opened.page.evaluate(SMALLEST)
        assert least >= 11, words
    assert opened.requests == [written.path.as_uri()] and opened.complaints == []


@pytest.mark.parametrize(
    "case", ["nothing has ended", "everything diverged", "one of everything", "replicates are missing"]
)
def test_whatever_is_missing_it_opens_and_no_text_is_in_the_way(case: str, open_page: Open, tmp_path: Path) -> None:
    page_of(tmp_path, CASES[case]())
    for size in (SCREEN, PHONE):
        opened = open_page(tmp_path / "report.html", size)
        unfold(opened.page)
        assert overlaps(opened.page) == [] and sticking_out(opened.page) == [] and opened.complaints == []


def test_the_first_view_has_few_words(real: Written, open_page: Open) -> None:
    words = open_page(real.path, SCREEN).page.locator("body").inner_text().split()
    assert 150 < len(words) < 2500


def test_dark_is_dark_and_paper_is_light(real: Written, open_page: Open) -> None:
    opened = open_page(real.path, SCREEN, color_scheme="dark").page

    def light(selector: str, of: str) -> float:
        colour = opened.locator(selector).first.evaluate(f"(e) => getComputedStyle(e).{of}")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])) / 3

    paper, word = ("body", "backgroundColor"), ("#emergence svg text", "fill")
    assert light(*paper) < 60 and light(*word) > 150
    opened.emulate_media(media="print")
    assert light(*paper) > 240 and light(*word) < 100


@pytest.mark.parametrize("scripted", [True, False], ids=["script", "no script"])
def test_the_switch_shows_one_measure_at_a_time(scripted: bool, real: Written, open_page: Open) -> None:
    opened = open_page(real.path, SCREEN, java_script_enabled=scripted).page
    for measure in ("accuracy", "memory", "ability"):
        opened.locator(f"label[for=by-{measure}]").click()
        shown = opened.locator("#surface figure").locator("visible=true")
        assert [one.get_attribute("class") for one in shown.all()] == [f"of {measure}"]


def test_without_script_the_fold_opens_and_nothing_is_offered_that_does_not_work(
    real: Written, open_page: Open
) -> None:
    opened = open_page(real.path, SCREEN, java_script_enabled=False).page
    assert opened.locator("#tip").is_hidden() and opened.locator("button, select, form").count() == 0
    opened.locator("summary").click()
    assert opened.locator("#claim").is_visible() and opened.locator("#trials table").is_visible()


def test_the_badge_opens_the_fold_at_the_claim(real: Written, open_page: Open) -> None:
    opened = open_page(real.path, SCREEN).page
    opened.locator(".badge").click()
    opened.wait_for_function("document.querySelector('details').open")
    opened.wait_for_function("document.getElementById('claim').getBoundingClientRect().top < innerHeight")


def test_pointing_at_a_cell_shows_its_replicates(real: Written, open_page: Open) -> None:
    opened = open_page(real.path, SCREEN).page
    cell = opened.locator("#surface .ability .wide g[data-tip]").nth(3)
    cell.hover()
    lines = opened.locator("#tip").inner_text().splitlines()
    values = [
        v for v in real.found.results.values("ability", "answer", "recall", "held_out", 4, 6.4e11) if v is not None
    ]
    assert lines[1] == "4 tasks, 6.4e11 FLOPs"
    assert lines[2].replace("−", "-").split(": ")[1] == ", ".join(["—", *(f"{v:.2f}" for v in values)])
    opened.mouse.move(2, 2)
    assert opened.locator("#tip").is_hidden()


def test_a_click_on_a_header_sorts_numbers_as_numbers_and_leaves_what_is_missing_last(
    real: Written, open_page: Open
) -> None:
    opened = open_page(real.path, SCREEN).page
    unfold(opened)
    head = opened.locator("#trials th", has_text="Ability")
    for order, sign in (("ascending", 1), ("descending", -1)):
        head.click()
        assert head.get_attribute("aria-sort") == order
        at = head.evaluate("(e) => e.cellIndex")
        cells = opened.locator("#trials tbody tr").evaluate_all(
            "(rows, at) => rows.map((r) => r.cells[at].textContent)", at
        )
        known = [sign * float(words.replace("−", "-")) for words in cells if words != "—"]
        assert known == sorted(known) and len(known) == 68 and set(cells[68:]) == {"—"}


def test_on_paper_everything_is_unfolded(real: Written, open_page: Open) -> None:
    opened = open_page(real.path, SCREEN).page
    opened.emulate_media(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.locator("#trials tbody tr").locator("visible=true").count() == 72 and overlaps(opened) == []
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("#trials").is_hidden()
