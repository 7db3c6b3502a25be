"""Two studies side by side: planted differences are found, equal studies are not told apart."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic

from orchestrator.compare import compare
from orchestrator.findings import Findings, find

AXES: dict[str, Any] = {"n_tasks": (4, 16, 64, 256), "compute_flops": (1e11, 4e11, 1.6e12), "replicates": 5}


def found_of(version: int = 1, centre: float = 64.0, noise: float = 0.01, **changes: Any) -> Findings:
    study = synthetic.made_up(**(AXES | {"version": version} | changes))
    return find(study, *synthetic.tables(study, ability=synthetic.rising(centre), noise=noise, draw=version))


def test_a_study_is_not_told_apart_from_itself() -> None:
    first, again = found_of(1), [compare(found_of(1), found_of(version)) for version in (2, 3, 4, 5)]
    assert sum(any(cell.kept for cell in found.cells) for found in again) <= 1  # one in twenty is allowed
    assert "are not told apart in any of" in again[1].answer and "Their settings are the same." in again[1].answer
    same = compare(first, first)
    assert all(pair.a == pair.b for pair in same.boundaries) and not any(cell.kept for cell in same.cells)


def test_a_boundary_that_moved_shows_in_the_cells_it_passed_over() -> None:
    found = compare(found_of(1, centre=64), found_of(2, centre=16, model={"d_model": 128}))
    passed = {
        (c.n_tasks, c.compute_flops)
        for c in found.cells
        if c.kept and c.measure == "ability" and c.skill == "recall" and c.difference.mean > 0.05
    }
    assert (16, 4e11) in passed and (256, 1.6e12) not in passed
    assert found.settings == ("model.d_model: 64 -> 128",)


def test_what_is_common_is_compared_and_nothing_common_is_refused() -> None:
    found = compare(found_of(1), found_of(2, n_tasks=(16, 1024), compute_flops=(4e11, 9e12)))
    assert {(c.n_tasks, c.compute_flops) for c in found.cells} == {(16, 4e11)}
    with pytest.raises(ValueError, match=r"no budget in common: made_up@1 has 1e11, 4e11, 1.6e12; made_up@2 has 7e11"):
        compare(found_of(1), found_of(2, compute_flops=(7e11,)))


def test_other_families_and_fewer_replicates_are_compared_unpaired_or_not_at_all() -> None:
    other = compare(found_of(1), found_of(2, family={"name": "cipher", "n_pairs": 12}))
    assert not other.paired and not other.crossovers and "replicates are not paired" in other.answer
    one = compare(found_of(1, replicates=1), found_of(2, replicates=1))
    assert "no difference can be tested" in one.answer
    fewer = compare(found_of(1), found_of(2, replicates=3))
    assert {cell.difference.n_a for cell in fewer.cells if cell.difference} == {3}


def test_shared_arms_are_compared_and_else_the_first_of_each() -> None:
    assert (
        compare(found_of(1, arm=("answer", "next_token")), found_of(2, arm=("next_token",))).arms == ("next_token",) * 2
    )
    crossed = compare(found_of(1), found_of(2, arm=("next_token",)))
    assert crossed.arms == ("answer", "next_token") and "arm: answer -> next_token" in crossed.settings
