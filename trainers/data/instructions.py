"""Makes a table of small instruction tasks in plain English, for the study `instructions_by_tasks`.

    python -m trainers.data.instructions sweeps/instructions.parquet

A cluster is a kind of instruction, such as replacing a letter. A task is one wording of it with its parameters: `Put e for a in …`.
The items of a task differ in their contents: made-up words, or numbers. The same call makes the same rows. It knows no family
and no study: the study reads the table as it would read a user's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainers.streams import stream

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
LETTERS = tuple(sorted(VOWELS + CONSONANTS))
VERBS = ("Write", "Give", "Say", "Name", "Print", "Show")

Draw = np.random.Generator
Made = tuple[str, str]
"""The content of an item, and its target."""


class Kind(NamedTuple):
    """A kind of instruction: a cluster of tasks."""

    wordings: tuple[str, ...]
    """Texts in which {x} stands for the content, and {0}, {1}, {2} for the parameters."""
    parameters: tuple[tuple[str, ...], ...]
    """Values of each parameter. Tasks are wordings times all combinations."""
    make: Callable[[Draw, tuple[str, ...]], Made]
    """Draws the content of an item, and gives its target."""


def word(draw: Draw, letter: str = "", n_letters: int = 0) -> str:
    """A made-up word of 3 to 5 letters, or `n_letters`: vowels and consonants in turn, `letter` among them."""
    n, first = n_letters or int(draw.integers(3, 6)), int(draw.integers(2))
    kinds = [(VOWELS, CONSONANTS)[(first + i) % 2] for i in range(n)]
    letters = [kind[draw.integers(len(kind))] for kind in kinds]
    if letter and letter not in letters:
        fitting = [i for i in range(n) if letter in kinds[i]]
        letters[fitting[draw.integers(len(fitting))]] = letter
    return "".join(letters)


def words(draw: Draw, n: int) -> list[str]:
    """Different words of 3 letters."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[word(draw, n_letters=3)] = None
    return list(found)


def _of_a_word(change: Callable[..., str], letter: bool = True) -> Callable[[Draw, tuple[str, ...]], Made]:
    """Items on one word, which `change(word, *parameters)` turns into the target. `letter`: it has the first parameter's letter."""

    def make(draw: Draw, given: tuple[str, ...]) -> Made:
        x = word(draw, given[0] if letter else "")
        return x, change(x, *given)

    return make


def _of_numbers(change: Callable[[int, int], int]) -> Callable[[Draw, tuple[str, ...]], Made]:
    """Items on a number of two digits, which `change(number, parameter)` turns into the target."""

    def make(draw: Draw, given: tuple[str, ...]) -> Made:
        x = int(draw.integers(10, 100))
        return str(x), str(change(x, int(given[-1])))

    return make


def _picked(draw: Draw, given: tuple[str, ...]) -> Made:
    """Three words. The target is the one at the place that the parameter names."""
    three = words(draw, 3)
    return " ".join(three), three[{"first": 0, "second": 1, "third": 2, "last": -1}[given[0]]]


def _having(draw: Draw, given: tuple[str, ...]) -> Made:
    """Three words, one of which has the letter."""
    others = [w for w in (word(draw, n_letters=4) for _ in range(20)) if given[0] not in w][:2]
    right = word(draw, given[0], 4)
    three = [others[0], others[1], right]
    return " ".join(three[i] for i in draw.permutation(3)), right


def _pair(draw: Draw, given: tuple[str, ...]) -> Made:
    """Two words, and the same with the parameter between them."""
    one, other = words(draw, 2)
    return f"{one} {other}", f"{one}{given[0]}{other}"


def _part(x: str, end: str, number: str) -> str:
    """The first or last letters of a word."""
    n = {"two": 2, "three": 3}[number]
    return x[:n] if end == "first" else x[-n:]


SYLLABLES = tuple(c + v for c, v in itertools.product(CONSONANTS, VOWELS))

KINDS: dict[str, Kind] = {
    "replace": Kind(
        ("Put {1} for {0} in {x}", "Replace {0} by {1}: {x}", "Turn {0} into {1} in {x}", "{x} with {1} for {0}"),
        (LETTERS, LETTERS),
        _of_a_word(lambda x, a, b: x.replace(a, b)),
    ),
    "remove": Kind(
        ("Remove {0} from {x}", "Drop every {0}: {x}", "Leave out {0} in {x}", "{x} without {0}", "Erase {0} in {x}",
         "Take {0} out of {x}"),
        (LETTERS,),
        _of_a_word(lambda x, a: x.replace(a, "")),
    ),
    "double": Kind(
        ("Double {0} in {x}", "Double every {0}: {x}", "Write {0} twice in {x}", "{x} with {0} doubled", "Stutter {0}: {x}",
         "Let {0} come twice in {x}"),
        (LETTERS,),
        _of_a_word(lambda x, a: x.replace(a, a + a)),
    ),
    "capitals": Kind(
        ("Capital {0} in {x}", "Write {0} large: {x}", "Raise {0} in {x}", "{x} with a large {0}", "Make {0} big in {x}",
         "Shout the {0} of {x}"),
        (LETTERS,),
        _of_a_word(lambda x, a: x.replace(a, a.upper())),
    ),
    "prefix": Kind(
        ("Put {0} before {x}", "Begin with {0}: {x}", "{x} after {0}", "Set {0} in front of {x}"),
        (SYLLABLES,),
        _of_a_word(lambda x, s: s + x, letter=False),
    ),
    "suffix": Kind(
        ("Put {0} behind {x}", "End with {0}: {x}", "{x}, then {0}", "Add {0} to {x}"),
        (SYLLABLES,),
        _of_a_word(lambda x, s: x + s, letter=False),
    ),
    "join": Kind(
        ("Join with {0}: {x}", "Put {0} between {x}", "Link {x} by {0}", "Tie by {0}: {x}"),
        (SYLLABLES,),
        _pair,
    ),
    "repeat": Kind(
        ("{x} twice with {0}", "Say {x}, {0}, and again", "Repeat after {0}: {x}", "Twice, {0} between: {x}"),
        (SYLLABLES,),
        _of_a_word(lambda x, s: x + s + x, letter=False),
    ),
    "part": Kind(
        tuple(f"{verb} {rest}" for verb in VERBS for rest in (
            "the {0} {1} letters of {x}", "{0} {1} letters: {x}", "{0} {1} of {x}", "of {x} the {0} {1}",
            "the {0} {1} of the word {x}", "from {x} its {0} {1}")),
        (("first", "last"), ("two", "three")),
        _of_a_word(_part, letter=False),
    ),
    "backwards": Kind(
        ("Turn {x} round, then {0}", "Backwards with {0}: {x}", "{x} backwards and {0}", "Mirror {x}, add {0}",
         "Reverse {x} and put {0}", "From the end, then {0}: {x}"),
        (LETTERS,),
        _of_a_word(lambda x, a: x[::-1] + a, letter=False),
    ),
    "count": Kind(
        ("Count {0} in {x}", "How many {0} has {x}", "How often is {0} in {x}", "Number of {0}: {x}", "Tell how many {0}: {x}",
         "{x} has how many {0}"),
        (LETTERS,),
        _of_a_word(lambda x, a: str(x.count(a))),
    ),
    "pick": Kind(
        tuple(f"{verb} {rest}" for verb in VERBS for rest in (
            "the {0} word: {x}", "word {0} of {x}", "the {0} of {x}", "of {x} the {0}", "the {0} one of {x}",
            "the {0} among {x}", "{0} of the words {x}")),
        (("first", "second", "third", "last"),),
        _picked,
    ),
    "which": Kind(
        ("Which has {0}: {x}", "Find the word with {0}: {x}", "Where is {0}: {x}", "The one with {0} of {x}",
         "Seek {0} in {x}", "Choose the word that has {0}: {x}"),
        (LETTERS,),
        _having,
    ),
    "add": Kind(
        ("Add {0} to {x}", "{x} and {0} more", "Raise {x} by {0}", "{0} more than {x}"),
        (tuple(map(str, range(1, 41))),),
        _of_numbers(lambda x, k: x + k),
    ),
    "larger": Kind(
        ("The larger of {0} and {x}", "At least {0}: {x}", "{0} or {x}, take the more"),
        (tuple(map(str, range(11, 99))),),
        _of_numbers(max),
    ),
    "between": Kind(
        ("Put {0} between the letters of {x}", "Spell {x} with {0}", "Space {x} by {0}", "{x} with {0} between",
         "Part the letters by {0}: {x}", "Spread {x} with {0}"),
        (LETTERS,),
        _of_a_word(lambda x, a: a.join(x), letter=False),
    ),
}  # fmt: skip
"""Cluster -> its kind of instruction."""


class Row(NamedTuple):
    """A row of the table."""

    cluster: str
    task: str
    prompt: str
    target: str


def tasks_of(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """All (wording, parameters) of a kind, shuffled by a named stream. Parameters that are all equal change nothing: left out."""
    kind = KINDS[name]
    found = [
        (wording, given)
        for wording in kind.wordings
        for given in itertools.product(*kind.parameters)
        if len(given) < 2 or len(set(given)) > 1
    ]
    return [found[i] for i in stream("instructions", "tasks", name).permutation(len(found)).tolist()]


def rows(n_tasks: int, n_items: int) -> Iterator[Row]:
    """The rows of the table: at most `n_tasks` tasks of each cluster with `n_items` items each, no item twice.

    With more tasks the first ones stay as they are, and so do the first items.
    """
    seen: set[tuple[str, str]] = set()
    for cluster, kind in KINDS.items():
        for wording, given in tasks_of(cluster)[:n_tasks]:
            task = wording.format(*given, x="…")
            draw = stream("instructions", "items", cluster, task)
            left = n_items
            for _ in range(100 * n_items):
                content, target = kind.make(draw, given)
                prompt = wording.format(*given, x=content)
                if target and (prompt, target) not in seen:
                    seen.add((prompt, target))
                    yield Row(cluster, task, prompt, target)
                    left -= 1
                if not left:
                    break
            else:
                raise ValueError(f"{task}: fewer than {n_items} different items; ask for fewer")


def main(argv: list[str] | None = None) -> int:
    """The entry point. Returns the exit code: 0, or 2 for a bad path or number."""
    import pyarrow as pa
    from pyarrow import parquet

    parser = argparse.ArgumentParser(prog="python -m trainers.data.instructions", description="Make a table of tasks.")
    parser.add_argument("path", type=Path, help="the Parquet file to write")
    parser.add_argument("--tasks", type=int, default=132, help="most tasks of a cluster (default 132)")
    parser.add_argument("--items", type=int, default=32, help="items of a task (default 32)")
    options = parser.parse_args(argv)
    try:
        if min(options.tasks, options.items) < 1:
            raise ValueError(f"--tasks {options.tasks}, --items {options.items}: at least 1 is needed")
        made = list(rows(options.tasks, options.items))
        columns = dict(zip(Row._fields, map(list, zip(*made, strict=True)), strict=True))
        parquet.write_table(pa.table(columns), options.path)
    except (OSError, ValueError) as problem:
        print(f"{options.path}: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    print(f"{options.path}: {len(made):,} items of {len(set(columns['task'])):,} tasks in {len(KINDS)} clusters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
