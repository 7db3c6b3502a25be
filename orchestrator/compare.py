"""Two studies side by side: what differs in their settings, in their surfaces and in their boundaries, and is it more than noise.

    emergence compare quickstart@1 quickstart@2

Only cells that both have are compared. Where both draw the same training tasks for a replicate, replicates are paired.
Knows findings; knows no figure, no MLflow, no Ray.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator import analyses, stats
from orchestrator.claims import FALSE_SHARE, range_words
from orchestrator.findings import Findings
from orchestrator.stats import compare as differences
from orchestrator.stats import multiplicity
from orchestrator.study import differences as fields_that_differ
from orchestrator.words import ability_words, interval_words, memory_words, number, percent, times


class CellDifference(NamedTuple):
    """One cell that both studies have: B less A."""

    measure: str
    skill: str
    n_tasks: int
    compute_flops: float
    a: float | None
    b: float | None
    difference: differences.Difference | None
    """At the confidence that goes with the correction for the number of cells; None where one side has no value."""
    kept: bool
    """Does the difference survive the correction?"""


class BoundaryPair(NamedTuple):
    """The same boundary in both studies at a budget that both have."""

    letter: str
    skill: str
    compute_flops: float
    a: str
    b: str
    """Intervals in words, each on its own study's grid."""
    a_words: str
    b_words: str


class Comparison(NamedTuple):
    """Two studies side by side; everything in it is of the arms `arms` and of shared cells only."""

    a: Findings
    b: Findings
    arms: tuple[str, str]
    paired: bool
    settings: tuple[str, ...]
    """Fields that differ, as `model.d_model: 64 -> 128`."""
    cells: tuple[CellDifference, ...]
    boundaries: tuple[BoundaryPair, ...]
    crossovers: tuple[tuple[int, stats.Crossover, bool], ...]
    """(n_tasks, where B overtakes A, or A overtakes B if the flag is set)."""
    answer: str


def compare(a: Findings, b: Findings) -> Comparison:
    """Set two studies side by side. Raises ValueError where they have no cell in common."""
    levels = [n for n in a.results.levels if n in b.results.levels]
    budgets = [c for c in a.results.budgets if c in b.results.budgets]
    if not levels or not budgets:
        axis = "number of tasks" if not levels else "budget"
        sides = (
            f"{f.study.id} has {', '.join(number(v) for v in (f.results.levels if not levels else f.results.budgets))}"
            for f in (a, b)
        )
        raise ValueError(f"no {axis} in common: {'; '.join(sides)}")
    shared = [arm for arm in a.study.axes.arm if arm in b.study.axes.arm]
    arms = (shared[0], shared[0]) if shared else (a.study.axes.arm[0], b.study.axes.arm[0])
    paired = a.study.family == b.study.family
    cells = _cells(a, b, arms, levels, budgets, paired)
    settings = fields_that_differ(a.study.science(), b.study.science())
    settings += [f"arm: {arms[0]} -> {arms[1]}"] if arms[0] != arms[1] else []
    found = Comparison(
        a=a,
        b=b,
        arms=arms,
        paired=paired,
        settings=tuple(settings),
        cells=cells,
        boundaries=_boundaries(a, b, arms, budgets),
        crossovers=_crossovers(a, b, arms, levels, budgets) if paired else (),
        answer="",
    )
    return found._replace(answer=_answer(found))


def _skills(a: Findings, b: Findings) -> list[str]:
    return [skill for skill in a.study.shown_skills if skill in b.study.shown_skills]


def _cells(
    a: Findings, b: Findings, arms: tuple[str, str], levels: list[int], budgets: list[float], paired: bool
) -> tuple[CellDifference, ...]:
    test = differences.paired_difference if paired else differences.welch_difference
    asked = [("ability", skill) for skill in _skills(a, b)] + [("memory", "")]
    places = [(m, s, n, c) for m, s in asked for n in levels for c in budgets]
    values = [(_values(a, arms[0], *place), _values(b, arms[1], *place)) for place in places]
    values = [pair if not paired else _same_length(*pair) for pair in values]
    plain = [test(y, x) for x, y in values]
    made = multiplicity.adjust([one.p if one else None for one in plain], FALSE_SHARE)
    cells = []
    for place, (x, y), claim in zip(places, values, made.claims, strict=True):
        difference = test(y, x, claim.confidence or 1 - FALSE_SHARE)
        cells.append(CellDifference(*place, _mean(x), _mean(y), difference, claim.verdict == "selected"))
    return tuple(cell for cell in cells if cell.a is not None or cell.b is not None)


def _values(found: Findings, arm: str, measure: str, skill: str, n_tasks: int, flops: float) -> list[float | None]:
    results = found.results
    cube = analyses.surface(results, "ability" if measure == "ability" else "memory", arm, skill)
    line = cube[results.levels.index(n_tasks), results.budgets.index(flops)].tolist()
    return [None if v != v else v for v in line]


def _same_length(x: list[float | None], y: list[float | None]) -> tuple[list[float | None], list[float | None]]:
    longest = max(len(x), len(y))
    return x + [None] * (longest - len(x)), y + [None] * (longest - len(y))


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _boundaries(a: Findings, b: Findings, arms: tuple[str, str], budgets: list[float]) -> tuple[BoundaryPair, ...]:
    grids = [[float(n) for n in f.results.levels] for f in (a, b)]
    pairs = []
    for skill in [*_skills(a, b), ""]:
        words = ability_words if skill else memory_words
        sides = [
            dict(f.k_ability[(arm, skill)] if skill else f.k_memory[arm]) for f, arm in zip((a, b), arms, strict=True)
        ]
        for flops in budgets:
            both = [side[flops] for side in sides]
            if all(one.verdict == "missing" for one in both):
                continue
            told = [interval_words(one, grid) for one, grid in zip(both, grids, strict=True)]
            said = [words(one, grid) for one, grid in zip(both, grids, strict=True)]
            pairs.append(BoundaryPair("A" if skill else "M", skill or "memory", flops, *told, *said))
    return tuple(pairs)


def _crossovers(
    a: Findings, b: Findings, arms: tuple[str, str], levels: list[int], budgets: list[float]
) -> tuple[tuple[int, stats.Crossover, bool], ...]:
    """Along compute at each number of tasks, on the headline skill's ability; replicates that both have."""
    skills = _skills(a, b)
    if not skills or len(budgets) < 2:
        return ()
    n_replicates = min(a.results.n_replicates, b.results.n_replicates)
    found = []
    for n in levels:
        tables = []
        for f, arm in zip((a, b), arms, strict=True):
            cube = analyses.surface(f.results, "ability", arm, skills[0])[f.results.levels.index(n)]
            tables.append(cube[[f.results.budgets.index(c) for c in budgets]][:, :n_replicates].T)
        there, back = stats.crossover(budgets, *tables), stats.crossover(budgets, *reversed(tables))
        reverse = back.verdict == "crosses" and there.verdict != "crosses"
        found.append((n, back if reverse else there, reverse))
    return tuple(found)


def _answer(found: Comparison) -> str:
    """One paragraph: in how many cells they differ, which way, and where one overtakes the other."""
    a, b = found.a.study.id, found.b.study.id
    tested = [c for c in found.cells if c.difference is not None and c.difference.p is not None]
    kept = [c for c in tested if c.kept and c.difference is not None]
    sentences = []
    if not tested:
        sentences.append(f"{a} and {b}: no cell has two replicates on both sides, so no difference can be tested.")
    elif not kept:
        sentences.append(f"{a} and {b} are not told apart in any of {times(len(tested), 'shared cell')}.")
    else:
        up = sum(c.difference.mean > 0 for c in kept if c.difference)
        sentences.append(
            f"{b} differs from {a} in {len(kept)} of {times(len(tested), 'shared cell')} "
            f"(higher in {up}, lower in {len(kept) - up}; at most {percent(FALSE_SHARE)} of these expected to be false)."
        )
    for n, met, reverse in found.crossovers:
        if met.verdict == "crosses":
            first, second = (b, a) if reverse else (a, b)
            sentences.append(
                f"With {number(n)} tasks {second} overtakes {first} at {range_words(met.low, met.high)} FLOPs."
            )
    if not found.paired:
        sentences.append(
            "Their families differ: replicates are not paired, and ability is measured against different references."
        )
    if not found.settings:
        sentences.append("Their settings are the same.")
    return " ".join(sentences)
