"""The table of instructions has what its study needs; the study names the command that makes it; both studies of text load."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from orchestrator.study import reader
from orchestrator.study.reader import load
from orchestrator.study.schema import StudyError
from trainers.data import instructions
from trainers.data.instructions import KINDS, main, rows, tasks_of, word

STUDY = "instructions_by_tasks"


def test_words_have_the_letter_that_is_asked_for_and_can_be_pronounced():
    draw = np.random.default_rng(0)
    for letter in instructions.LETTERS:
        for made in (word(draw, letter), word(draw, letter, 4)):
            is_vowel = [c in instructions.VOWELS for c in made]
            assert letter in made and all(a != b for a, b in pairwise(is_vowel))


@pytest.mark.parametrize(
    ("cluster", "task", "content", "target"),
    [
        ("replace", "Put e for a in …", "banana", "benene"),
        ("remove", "Drop every n: …", "banana", "baaa"),
        ("count", "Count a in …", "banana", "3"),
        ("part", "Say the last three letters of …", "banana", "ana"),
        ("backwards", "Backwards with z: …", "abc", "cbaz"),
        ("between", "Space … by q", "abc", "aqbqc"),
        ("pick", "Name word second of …", "ab cd ef", "cd"),
        ("join", "Join with ta: …", "ab cd", "abtacd"),
        ("add", "Add 7 to …", "35", "42"),
        ("larger", "The larger of 40 and …", "35", "40"),
    ],
)
def test_targets_are_right_by_hand(cluster, task, content, target, monkeypatch):
    monkeypatch.setattr(instructions, "word", lambda *_, **__: content)
    monkeypatch.setattr(instructions, "words", lambda *_: content.split())
    _, given = next(t for t in tasks_of(cluster) if t[0].format(*t[1], x="…") == task)

    class Draw:
        def integers(self, *_):
            return int(content)

    assert KINDS[cluster].make(Draw(), given) == (content, target)


def test_no_item_comes_twice_and_fewer_tasks_or_items_are_the_first_ones():
    small, more = list(rows(8, 6)), list(rows(12, 12))
    assert len(more) == 12 * 12 * len(KINDS) and set(small) < set(more)
    assert len({(row.prompt, row.target) for row in more}) == len(more)
    assert set(Counter(row.task for row in more).values()) == {12}
    assert all(row.target and row.prompt != row.task for row in more)


def test_every_kind_has_the_tasks_that_the_study_needs():
    names = {kind: [w.format(*given, x="…") for w, given in tasks_of(kind)] for kind in KINDS}
    of_all = [name for of_kind in names.values() for name in of_kind]
    assert len(KINDS) >= 12 and min(map(len, names.values())) >= 132 and len(of_all) == len(set(of_all))


def test_the_study_says_how_its_table_is_made_and_loads_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path / "home"))
    file = shutil.copy(reader.shipped()[STUDY], tmp_path)
    table = tmp_path / "instructions.parquet"
    with pytest.raises(StudyError, match=f"python -m trainers.data.instructions {table}"):
        load(str(file))
    assert main([str(table), "--items", "6"]) == 0
    study = load(str(file))
    assert study.axes.n_tasks[-1] <= min(study.trunk_of(c).family.n_tasks_max for c in study.conditions)
    assert main([str(table), "--items", "0"]) == 2
