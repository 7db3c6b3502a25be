"""Two studies side by side: what differs in their settings, in their surfaces and in their boundaries, and is it more than noise.

    emergence compare quickstart@1 quickstart@2

Only what both have is compared, arm by arm. One difference is tested for itself: the headline skill over all cells that
both have. All else, cells, boundaries and crossings, is corrected together for its number. Where both draw the same training
tasks for a replicate, replicates are paired. Knows findings; knows no figure, no MLflow, no Ray. compare_words.py says it in sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis import boundaries
from orchestrator.analysis.boundaries import Brackets, ability_words, brackets_in_both, interval_words, memory_words
from orchestrator.analysis.claims import FALSE_SHARE
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import surface
from orchestrator.formatting import number
from orchestrator.stats import differences, multiplicity
from orchestrator.study.schema import differences as fields_that_differ

OVERALL_SHARE = 0.04
"""Of FALSE_SHARE, what the overall difference may spend: it is claimed where p is at most this. All else is tested at the
rest or, once the overall difference is shown, at the whole of FALSE_SHARE (the fallback procedure: Wiens and Dmitrienko
2005). So two studies of one truth are told apart in anything in at most FALSE_SHARE of comparisons. A part for the overall
difference, because cells are many and three replicates agree by chance in 3 % of them; this much, for three to suffice."""

Measure = Literal["ability", "memory"]
Arms = tuple[str, str]
"""An arm of A (in a variant, if it has any: a line of the study) and the one of B that it is compared with: the same, or the
first of each where they share none."""


class Overall(NamedTuple):
    """The headline skill's ability, cut to 0 and 1, as a mean over cells and arms: B less A. Lost trials count as 0."""

    difference: differences.Difference | None
    """At 1 - OVERALL_SHARE; None where no cell has a value in every replicate that has any."""
    n_cells: int
    """Cells that go into it: those that every replicate has."""
    shown: bool


class CellDifference(NamedTuple):
    """One cell that both studies have: B less A."""

    arms: Arms
    measure: Measure
    skill: str
    """Empty for memory."""
    n_tasks: int
    compute_flops: float
    of_a: tuple[float, ...]
    of_b: tuple[float, ...]
    """The values behind the difference, in the same order if paired; what is there, where there is no difference."""
    lost: tuple[int, int]
    """Trials of either side that diverged or failed and have no value here."""
    difference: differences.Difference | None
    """At the claim's confidence; None where one side has no value, or no pair is complete."""
    claim: multiplicity.Claim

    @property
    def a(self) -> float | None:
        """Mean of `of_a`."""
        return sum(self.of_a) / len(self.of_a) if self.of_a else None

    @property
    def b(self) -> float | None:
        """Mean of `of_b`."""
        return sum(self.of_b) / len(self.of_b) if self.of_b else None

    @property
    def kept(self) -> bool:
        """Does the difference survive the correction?"""
        return self.claim.verdict == "selected"


class BoundaryPair(NamedTuple):
    """The same boundary in both studies at a budget that both have."""

    arms: Arms
    letter: str
    skill: str
    compute_flops: float
    intervals: tuple[str, str]
    """Of A and of B in figures, each on its own study's grid and at its own report's confidence."""
    words: tuple[str, str]
    brackets: Brackets
    """In A and in B, of the replicates that can be judged in both; empty where they are not paired."""
    shift: stats.Drift | None
    """From A to B in doublings of tasks, at the claim's confidence; None without brackets."""
    claim: multiplicity.Claim

    @property
    def kept(self) -> bool:
        """Does the shift survive the correction?"""
        return self.claim.verdict == "selected"


class Overtaking(NamedTuple):
    """One study against the other along compute, at one number of tasks, on the headline skill's ability."""

    arms: Arms
    n_tasks: int
    first: str
    second: str
    """Ids of the studies in the order in which the second is seen to overtake, if either is."""
    met: stats.Crossover
    """At the claim's confidence where it is kept."""
    claim: multiplicity.Claim

    @property
    def kept(self) -> bool:
        """Does the crossing survive the correction?"""
        return self.claim.verdict == "selected"


class Comparison(NamedTuple):
    """Two studies side by side; everything in it is of what both have."""

    a: Findings
    b: Findings
    arms: tuple[Arms, ...]
    skills: tuple[str, ...]
    """Those that both show, in A's order."""
    paired: bool
    settings: tuple[str, ...]
    """Fields that differ, as `model.d_model: 64 -> 128`."""
    outside: tuple[int, int]
    """Recorded trials of A and of B that their axes no longer hold."""
    overall: Overall
    cells: tuple[CellDifference, ...]
    boundaries: tuple[BoundaryPair, ...]
    crossovers: tuple[Overtaking, ...]
    false_share: float
    """At which cells, boundaries and crossings were corrected together."""

    @property
    def skill(self) -> str:
        """The headline."""
        return self.skills[0]

    @property
    def single(self) -> list[CellDifference | BoundaryPair | Overtaking]:
        """Everything that was looked at besides the overall difference."""
        return [*self.cells, *self.boundaries, *self.crossovers]

    @property
    def tested(self) -> int:
        """How many of these could be tested: what the correction is for."""
        return sum(one.claim.verdict != "untested" for one in self.single)

    @property
    def kept(self) -> int:
        """How many survive it."""
        return sum(one.kept for one in self.single)


def compare(a: Findings, b: Findings, outside: tuple[int, int] = (0, 0)) -> Comparison:
    """Set two studies side by side. Raises ValueError, a sentence, where they have nothing in common.

    `outside`: recorded trials of either that its axes no longer hold (`tables.outside`).
    """
    skills = [skill for skill in a.study.shown_skills if skill in b.study.shown_skills]
    levels = [n for n in a.results.levels if n in b.results.levels]
    budgets = [c for c in a.results.budgets if c in b.results.budgets]
    _refuse_nothing_in_common(a, b, skills, levels, budgets)
    shared = [arm for arm in a.study.lines if arm in b.study.lines]
    arms = tuple((arm, arm) for arm in shared) or ((next(iter(a.study.lines)), next(iter(b.study.lines))),)
    paired = all(a.study.family_of(one) == b.study.family_of(other) for one, other in arms)
    looked = _Looked(a, b, arms, skills, levels, budgets, paired)
    cells = _cells(looked)
    if not any(cell.of_a and cell.of_b for cell in cells):
        raise ValueError("of the cells that both have, none has a value in both yet")
    overall = _overall(looked)
    tested = overall.difference is not None and overall.difference.p is not None
    false_share = FALSE_SHARE if overall.shown or not tested else FALSE_SHARE - OVERALL_SHARE
    everything = cells, _boundaries(looked), _crossovers(looked) if paired else ()
    cells, boundaries, crossovers = _corrected(looked, *everything, false_share)
    return Comparison(
        a=a,
        b=b,
        arms=arms,
        skills=tuple(skills),
        paired=paired,
        settings=tuple(_settings(a, b, arms)),
        outside=outside,
        overall=overall,
        cells=cells,
        boundaries=boundaries,
        crossovers=crossovers,
        false_share=false_share,
    )


class _Looked(NamedTuple):
    """What is compared with what."""

    a: Findings
    b: Findings
    arms: tuple[Arms, ...]
    skills: list[str]
    levels: list[int]
    budgets: list[float]
    paired: bool

    def sides(self, arms: Arms) -> tuple[tuple[Findings, str], tuple[Findings, str]]:
        return (self.a, arms[0]), (self.b, arms[1])

    def shared(self, found: Findings, cube: np.ndarray) -> np.ndarray:
        """The cells of a study's (n_tasks, compute, replicates) that both have."""
        rows = [found.results.levels.index(n) for n in self.levels]
        return cube[np.ix_(rows, [found.results.budgets.index(c) for c in self.budgets])]

    def measures(self) -> list[tuple[Measure, str]]:
        return [*(("ability", skill) for skill in self.skills), ("memory", "")]


def _refuse_nothing_in_common(
    a: Findings, b: Findings, skills: list[str], levels: list[int], budgets: list[float]
) -> None:
    names = [cast(Any, f.study.family).name for f in (a, b)]
    if names[0] != names[1] and not skills:
        raise ValueError(
            f"they ask about tasks of different families, {names[0]} and {names[1]}, which have no skill in common"
        )
    for what, common, of in (
        ("skill", skills, [list(f.study.shown_skills) for f in (a, b)]),
        ("number of tasks", levels, [[number(n) for n in f.results.levels] for f in (a, b)]),
        ("budget", budgets, [[number(c) for c in f.results.budgets] for f in (a, b)]),
    ):
        if not common:
            sides = (f"{f.study.id} has {', '.join(values)}" for f, values in zip((a, b), of, strict=True))
            hint = "; 'skills:' in a study file says which ones are shown" if what == "skill" else ""
            raise ValueError(f"no {what} in common: {'; '.join(sides)}{hint}")


def _settings(a: Findings, b: Findings, arms: tuple[Arms, ...]) -> list[str]:
    """What decides results, which a primary claim does not; what is not so in all arms, with the arm's name."""
    found: dict[str, list[Arms]] = {}
    for pair in arms:
        for line in fields_that_differ(_decisive(a, pair[0]), _decisive(b, pair[1])):
            found.setdefault(line, []).append(pair)
        if pair[0] != pair[1]:
            found[f"arm: {pair[0]} -> {pair[1]}"] = list(arms)
    return [
        line if len(pairs) == len(arms) else f"{', '.join(arm for arm, _ in pairs)}: {line}"
        for line, pairs in found.items()
    ]


def _decisive(found: Findings, line: str) -> dict[str, Any]:
    """The settings of a line, its variant's changes made."""
    settings, science = found.study.settings(line), found.study.science()
    parts = {name: settings[name].model_dump(mode="json") for name in ("family", "model", "training", "evaluation")}
    return parts | {"versions": science["versions"]}


# Differences --------------------------------------------------------------------------------------------------------

_UNTESTED = multiplicity.Claim(None, None, "untested", None)
"""Until everything is corrected together."""


def _overall(looked: _Looked) -> Overall:
    """The mean over the cells that every replicate has which has any: the same cells on both sides and in each pair."""
    sides: list[list[np.ndarray]] = [[], []]
    for arms in looked.arms:
        for side, (found, arm) in zip(sides, looked.sides(arms), strict=True):
            cube, _ = boundaries.counted(found.results, "ability", arm, looked.skills[0])
            side.append(np.clip(looked.shared(found, cube), 0, 1).reshape(-1, found.results.n_replicates))
    x, y = (np.concatenate(side) for side in sides)  # (cells, replicates)
    used_x, used_y = (~np.isnan(side).all(axis=0) for side in (x, y))
    if looked.paired:
        n = min(len(used_x), len(used_y))
        used_x = used_y = used_x[:n] & used_y[:n]
        x, y = x[:, :n], y[:, :n]
    x, y = x[:, used_x], y[:, used_y]
    whole = ~np.isnan(x).any(axis=1) & ~np.isnan(y).any(axis=1)
    if not whole.any() or not x.size or not y.size:
        return Overall(None, 0, False)
    means = y[whole].mean(axis=0).tolist(), x[whole].mean(axis=0).tolist()
    difference = differences.guarded_difference(*means, looked.paired, 1 - OVERALL_SHARE)
    shown = difference is not None and difference.p is not None and difference.p <= OVERALL_SHARE
    return Overall(difference, int(whole.sum()), shown)


def _cells(looked: _Looked) -> tuple[CellDifference, ...]:
    cells = []
    for arms in looked.arms:
        for measure, skill in looked.measures():
            x, y = (
                looked.shared(found, surface(found.results, measure, arm, skill)) for found, arm in looked.sides(arms)
            )
            lost = _lost(looked, arms)
            for i, n in enumerate(looked.levels):
                for j, c in enumerate(looked.budgets):
                    of_a, of_b, comparable = _values(x[i, j], y[i, j], looked.paired)
                    if not len(of_a) and not len(of_b):
                        continue
                    difference = _difference(of_a, of_b, looked.paired) if comparable else None
                    gone = lost[0].get((n, c), 0), lost[1].get((n, c), 0)
                    cells.append(CellDifference(arms, measure, skill, n, c, of_a, of_b, gone, difference, _UNTESTED))
    return tuple(cells)


def _values(x: np.ndarray, y: np.ndarray, paired: bool) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """The values of one cell that are compared: of complete pairs, or all; and whether they can be."""
    if paired:
        n = min(len(x), len(y))
        pairs = differences.paired(x[:n].tolist(), y[:n].tolist())
        if len(pairs):
            return tuple(pairs[:, 0].tolist()), tuple(pairs[:, 1].tolist()), True
    of_a, of_b = (tuple(differences.present(side.tolist()).tolist()) for side in (x, y))
    return of_a, of_b, bool(of_a and of_b) and not paired


def _difference(
    of_a: Sequence[float], of_b: Sequence[float], paired: bool, confidence: float = 1 - FALSE_SHARE
) -> differences.Difference | None:
    return differences.guarded_difference(of_b, of_a, paired, confidence)


def _lost(looked: _Looked, arms: Arms) -> list[dict[tuple[int, float], int]]:
    """Trials that diverged or failed, by cell, for either side."""
    counts: list[dict[tuple[int, float], int]] = []
    for found, arm in looked.sides(arms):
        counts.append({})
        for run in found.runs:
            if run["arm"] == arm and run["status"] in ("diverged", "failed"):
                place = run["n_tasks"], run["compute_flops"]
                counts[-1][place] = counts[-1].get(place, 0) + 1
    return counts


# Boundaries and crossings -------------------------------------------------------------------------------------------


def _boundaries(looked: _Looked) -> tuple[BoundaryPair, ...]:
    pairs = []
    for arms in looked.arms:
        sides = looked.sides(arms)
        for measure, skill in looked.measures():
            words = ability_words if skill else memory_words
            bounds = [dict(f.k_ability[(arm, skill)] if skill else f.k_memory[arm]) for f, arm in sides]
            brackets = _brackets(looked, arms, measure, skill)
            for flops in looked.budgets:
                a, b = (bound[flops] for bound in bounds)
                if a.verdict == b.verdict == "missing":
                    continue
                on_a, on_b = ([float(n) for n in f.results.levels] for f, _ in sides)
                told, said = (interval_words(a, on_a), interval_words(b, on_b)), (words(a, on_a), words(b, on_b))
                letter, of = ("A", skill) if skill else ("M", "memory")
                both = brackets[flops] if looked.paired else ((), ())
                pairs.append(
                    BoundaryPair(
                        arms, letter, of, flops, told, said, both, differences.shift(*both, 1 - FALSE_SHARE), _UNTESTED
                    )
                )
    return tuple(pairs)


def _brackets(looked: _Looked, arms: Arms, measure: Measure, skill: str) -> dict[float, Brackets]:
    """By budget, where each replicate crosses in A and in B; of the replicates that can be judged in both."""
    sides = []
    for found, arm in looked.sides(arms):
        judged = boundaries.judged(found.results, measure, arm, skill)
        sides.append(([float(n) for n in found.results.levels], dict(zip(found.results.budgets, judged, strict=True))))
    by_budget = {}
    for flops in looked.budgets:
        (on_a, of_a), (on_b, of_b) = ((levels, judged[flops]) for levels, judged in sides)
        by_budget[flops] = brackets_in_both((on_a, on_b), (of_a, of_b), measure)
    return by_budget


def _crossovers(looked: _Looked) -> tuple[Overtaking, ...]:
    """Along compute at each number of tasks, on the headline skill's ability; replicates that both have."""
    if len(looked.budgets) < 2:
        return ()
    return tuple(_overtaking(looked, arms, n) for arms in looked.arms for n in looked.levels)


def _overtaking(looked: _Looked, arms: Arms, n_tasks: int, confidence: float = 1 - FALSE_SHARE) -> Overtaking:
    tables = []
    for found, arm in looked.sides(arms):
        cube = looked.shared(found, surface(found.results, "ability", arm, looked.skills[0]))
        tables.append(cube[looked.levels.index(n_tasks)].T)  # (replicates, compute)
    n = min(map(len, tables))
    a, b = (table[:n] for table in tables)
    there, back = stats.crossover(looked.budgets, a, b, confidence), stats.crossover(looked.budgets, b, a, confidence)
    ids = looked.a.study.id, looked.b.study.id
    if (back.p_value or 0.0) < (there.p_value or 0.0):
        return Overtaking(arms, n_tasks, ids[1], ids[0], back, _UNTESTED)
    return Overtaking(arms, n_tasks, *ids, there, _UNTESTED)


# Correction ---------------------------------------------------------------------------------------------------------


def _corrected(
    looked: _Looked,
    cells: tuple[CellDifference, ...],
    boundaries: tuple[BoundaryPair, ...],
    crossovers: tuple[Overtaking, ...],
    false_share: float,
) -> tuple[tuple[CellDifference, ...], tuple[BoundaryPair, ...], tuple[Overtaking, ...]]:
    """All but the overall difference, corrected together; intervals at the confidence that goes with it."""
    p_values = [cell.difference.p if cell.difference else None for cell in cells]
    p_values += [pair.shift.p_value if pair.shift else None for pair in boundaries]
    p_values += [differences.crossing_p(one.met, len(looked.budgets)) for one in crossovers]
    made = iter(multiplicity.adjust(p_values, false_share).claims)
    return (
        tuple(_surer_cell(looked, cell, next(made)) for cell in cells),
        tuple(_surer_boundary(pair, next(made)) for pair in boundaries),
        tuple(_surer_crossing(looked, one, next(made)) for one in crossovers),
    )


def _surer_cell(looked: _Looked, cell: CellDifference, claim: multiplicity.Claim) -> CellDifference:
    if claim.confidence is None:  # untested
        return cell._replace(claim=claim)
    difference = _difference(cell.of_a, cell.of_b, looked.paired, claim.confidence)
    return cell._replace(difference=difference, claim=claim)


def _surer_boundary(pair: BoundaryPair, claim: multiplicity.Claim) -> BoundaryPair:
    if claim.confidence is None:
        return pair._replace(claim=claim)
    return pair._replace(shift=differences.shift(*pair.brackets, claim.confidence), claim=claim)


def _surer_crossing(looked: _Looked, one: Overtaking, claim: multiplicity.Claim) -> Overtaking:
    if claim.verdict != "selected" or claim.confidence is None:
        return one._replace(claim=claim)
    return _overtaking(looked, one.arms, one.n_tasks, claim.confidence)._replace(claim=claim)
