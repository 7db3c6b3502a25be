"""The page of a study with an axis of a family parameter: a surface along it, with its boundary, if tasks have one number."""

from __future__ import annotations

import csv
from pathlib import Path

from synthetic import VALUES, after, along

from orchestrator.analysis import answer
from orchestrator.report import page, surface


def test_with_one_number_of_tasks_the_surface_runs_along_the_parameter(tmp_path: Path) -> None:
    found = along(after(12), replicates=3, arm=("answer", "next_token"))
    planes = surface.planes(found)
    assert [plane.name for plane in planes] == ["answer", "next_token"] and planes[0].levels == VALUES
    cells = planes[0].cells(found, "ability")
    assert [round(line[0].value or 0, 2) for line in cells] == [0.05, 0.05, 0.05, 0.95, 0.95]
    (edge,) = planes[0].edges(found, "recall")
    assert edge.kind == "edge" and edge.heights == (2.5, 2.5)
    low, high = edge.intervals[0] or (0, 0)
    assert 1 < low < 2 and 3 < high < 4
    text = page.write(tmp_path, found, []).read_text()
    assert answer.sentence(found).startswith("Ability in recall (answer)") and "n_pairs 16" in text
    rows = list(csv.DictReader((tmp_path / "figures" / "surface.csv").read_text().splitlines()))
    values = {(row["condition"], float(row["family_n_pairs"])) for row in rows if row["family_n_pairs"]}
    assert values == {(arm, value) for arm in ("answer", "next_token") for value in VALUES}
    assert {row["high_n_pairs"] for row in rows if row["measure"] == "along n_pairs: ability"}
    assert "Along a parameter of the family" in text


def test_with_several_numbers_of_tasks_it_stays_that_of_tasks(tmp_path: Path) -> None:
    found = along(after(12), replicates=3, n_tasks=(4, 64))
    planes = surface.planes(found)
    assert [plane.name for plane in planes] == list(found.study.conditions) and planes[0].levels == (4, 64)
    text = page.write(tmp_path, found, []).read_text()
    assert "ability passes" not in text and "Along a parameter of the family" in text


def test_a_boundary_that_no_replicate_meets_has_no_line() -> None:
    found = along(dict.fromkeys(VALUES, 0.05), replicates=3)
    assert surface.planes(found)[0].edges(found, "recall") == []
