"""The page of a comparison: two surfaces and their difference first, then the significant differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic
from browser import PHONE, Open, chromium, open_page, overlaps, sticking_out
from test_report import Page
from test_report_browser import SCREEN, SMALLEST

from orchestrator.analysis import compare, findings
from orchestrator.report import compare_page

__all__ = ["chromium", "open_page"]  # fixtures


@pytest.fixture(scope="module")
def compared() -> compare.Comparison:
    """The second study learns with half as many tasks."""

    def found(version: int, centre: float) -> findings.Findings:
        axes: dict[str, Any] = {"replicates": 8, "n_tasks": (4, 16, 64, 256), "version": version}
        study = synthetic.made_up(**axes)
        return findings.find(study, *synthetic.tables(study, synthetic.rising(centre), noise=0.02, draw=version))

    return compare.compare(found(1, 64.0), found(2, 24.0))


def test_the_page_says_what_the_comparison_says(compared: compare.Comparison, tmp_path: Path) -> None:
    page = Page(compare_page.write(tmp_path, compared).read_text())
    assert page.ids["answer"].split() == compare.sentence(compared).split()
    shown = compared.significant()
    assert shown and all(one.sentence[1:] in page.ids["significant_differences"] for one in shown)
    assert not [link for link in page.links if not link.startswith(("#", "data:"))]


def test_a_significant_cell_of_the_difference_has_a_star(compared: compare.Comparison) -> None:
    panel = compare_page._difference(compared, compared.pairs[0])
    cells = [one for one in compared.findings if one.question == "difference of ability" and one.skill == "recall"]
    starred = sum(part.count("*</text>") for part in panel.drawing.parts)
    assert starred == sum(one.significance == "significant" for one in cells) > 0
    assert len([row for row in panel.rows if row["replicate"] == 0]) in (0, len(cells))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SCREEN, PHONE], ids=["desktop", "phone"])
def test_no_text_overlaps_is_cut_or_too_small(
    size: tuple[int, int], scheme: str, compared: compare.Comparison, open_page: Open, tmp_path: Path
) -> None:
    path = compare_page.write(tmp_path, compared)
    opened = open_page(path, size, color_scheme=scheme)
    assert overlaps(opened.page) == [] and sticking_out(opened.page) == []
    assert opened.page.evaluate(SMALLEST)[0] >= 11
    assert opened.requests == [path.as_uri()] and opened.complaints == []
    if size == SCREEN:
        boxes = [figure.bounding_box() for figure in opened.page.locator("#surface figure").all()]
        assert len(boxes) == 3 and all(box["y"] + box["height"] < SCREEN[1] for box in boxes)
