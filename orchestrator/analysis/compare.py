"""Two studies side by side. The second one is treated as another condition.

    emergence compare quickstart@1 quickstart@2

Only cells, budgets and skills that both have are compared. Replicates are paired if both studies have the same family, versions
and number of replicates: a replicate then has the same training tasks in both. Only paired studies are asked for ratios of
boundaries and for crossovers. Their estimators follow each replicate from one side to the other (`stats.drift`,
`stats.crossover`), and an interval for unpaired replicates would need others. The mean difference over all cells is tested
without correction; all other findings are corrected together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from orchestrator.analysis import arms, boundaries
from orchestrator.analysis.arms import Side
from orchestrator.analysis.boundaries import Measure
from orchestrator.analysis.finding import FALSE_SHARE, Ends, Finding, capitalised, claim_of, corrected, count
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.results import surface
from orchestrator.formatting import decimal, number, signed, sure, times
from orchestrator.stats import differences
from orchestrator.stats.intervals import by_chance
from orchestrator.study.schema import differences as fields_that_differ

OVERALL_SHARE = 0.04
"""Significance level of the mean difference, a part of FALSE_SHARE. All other findings are tested at the rest or, if the mean
difference is significant, at the whole of FALSE_SHARE (fallback procedure: Wiens and Dmitrienko 2005). So two equal studies
give a significant finding in at most FALSE_SHARE of comparisons. At this level three replicates suffice for the mean
difference."""

Pair = tuple[str, str]
"""A condition of the first study, and the condition of the second study that it is compared with."""


class Comparison(NamedTuple):
    """Two studies side by side, in the cells that both have, with their differences."""

    a: Findings
    """The first study."""
    b: Findings
    """The second study."""
    pairs: tuple[Pair, ...]
    """The conditions of the same name; if there are none, the first condition of each study."""
    skills: tuple[str, ...]
    """Skills that both show, in the first study's order."""
    levels: list[int]
    """Numbers of tasks that both have."""
    budgets: list[float]
    """Budgets that both have, in FLOPs."""
    paired: bool
    """Whether both studies have the same replicates with the same training tasks, so that tests are paired."""
    settings: tuple[str, ...]
    """Fields that differ, as `model.d_model: 64 -> 128`."""
    outside: tuple[int, int]
    """Number of recorded trials of each study that lie outside its present axes."""
    overall: Finding
    """The mean difference over cells: ability in the headline skill, clipped to 0 and 1, second study less first. Its `n_tasks`
    holds the number of cells."""
    findings: tuple[Finding, ...]
    """Differences in cells, ratios of boundaries and crossovers, corrected together."""

    @property
    def skill(self) -> str:
        """The headline skill."""
        return self.skills[0]

    @property
    def overall_is_significant(self) -> bool:
        """Whether the mean difference is significant at OVERALL_SHARE."""
        return self.overall.significance == "significant"

    def significant(self, question: str = "") -> list[Finding]:
        """The significant findings whose question begins with `question`; "" for all."""
        return [one for one in self.findings if one.significance == "significant" and one.question.startswith(question)]


def compare(a: Findings, b: Findings, outside: tuple[int, int] = (0, 0)) -> Comparison:
    """Compare two studies. Raises ValueError, a sentence, if they have no skill, number of tasks, budget or value in common.

    `outside`: number of recorded trials of each study outside its axes (`tables.outside`).
    """
    skills = [skill for skill in a.study.shown_skills if skill in b.study.shown_skills]
    levels = [n for n in a.results.levels if n in b.results.levels]
    budgets = [c for c in a.results.budgets if c in b.results.budgets]
    _refuse_nothing_in_common(a, b, skills, levels, budgets)
    shared = [name for name in a.study.conditions if name in b.study.conditions]
    pairs = tuple((name, name) for name in shared) or (
        (next(iter(a.study.conditions)), next(iter(b.study.conditions))),
    )
    same_families = all(a.study.family_of(one) == b.study.family_of(other) for one, other in pairs)
    same_versions = a.study.science()["versions"] == b.study.science()["versions"]
    paired = same_families and same_versions and a.study.axes.replicates == b.study.axes.replicates
    shell = Comparison(
        a=a,
        b=b,
        pairs=pairs,
        skills=tuple(skills),
        levels=levels,
        budgets=budgets,
        paired=paired,
        settings=tuple(_settings(a, b, pairs)),
        outside=outside,
        overall=cast(Finding, None),
        findings=(),
    )
    singles = [one for pair in pairs for one in _asked(shell, pair)]
    if not any(one.estimate is not None for one in singles):
        raise ValueError("none of the cells that both have has a value in both yet")
    overall = _overall(shell)
    rest = FALSE_SHARE if overall.significance == "significant" or overall.p is None else FALSE_SHARE - OVERALL_SHARE
    return shell._replace(overall=overall, findings=tuple(corrected(singles, false_share=rest)))


def _refuse_nothing_in_common(
    a: Findings, b: Findings, skills: list[str], levels: list[int], budgets: list[float]
) -> None:
    """Raise ValueError, with the values of both studies, if a list of common skills, levels or budgets is empty."""
    names = [cast(Any, f.study.family).name for f in (a, b)]
    if names[0] != names[1] and not skills:
        raise ValueError(f"the families {names[0]} and {names[1]} have no skill in common")
    for what, common, of in (
        ("skill", skills, [list(f.study.shown_skills) for f in (a, b)]),
        ("number of tasks", levels, [[number(n) for n in f.results.levels] for f in (a, b)]),
        ("budget", budgets, [[number(c) for c in f.results.budgets] for f in (a, b)]),
    ):
        if not common:
            sides = (f"{f.study.id} has {', '.join(values)}" for f, values in zip((a, b), of, strict=True))
            hint = "; 'skills:' in a study file sets which ones are shown" if what == "skill" else ""
            raise ValueError(f"no {what} in common: {'; '.join(sides)}{hint}")


def _settings(a: Findings, b: Findings, pairs: tuple[Pair, ...]) -> list[str]:
    """The settings that differ, as `model.d_model: 64 -> 128`, with the conditions in front if only some differ.

    Only settings that decide results count.
    """
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        for line in fields_that_differ(_decisive(a, pair[0]), _decisive(b, pair[1])):
            found.setdefault(line, []).append(pair)
        if pair[0] != pair[1]:
            found[f"arm: {pair[0]} -> {pair[1]}"] = list(pairs)
    return [
        line if len(of) == len(pairs) else f"{', '.join(name for name, _ in of)}: {line}" for line, of in found.items()
    ]


def _decisive(found: Findings, condition: str) -> dict[str, Any]:
    """The settings of a condition that decide its results, and the versions of family and trainer; nested, for a diff."""
    settings, science = found.study.settings(condition), found.study.science()
    parts = {name: settings[name].model_dump(mode="json") for name in ("family", "model", "training", "evaluation")}
    return parts | {"versions": science["versions"]}


# Questions ----------------------------------------------------------------------------------------------------------


def sides(comparison: Comparison, pair: Pair) -> tuple[Side, Side]:
    """Both sides of a pair, named by study and, if several pairs are compared, by condition."""
    names = [
        f"{f.study.id} ({name})" if len(comparison.pairs) > 1 else f.study.id
        for f, name in zip((comparison.a, comparison.b), pair, strict=True)
    ]
    return Side(comparison.a.results, pair[0], names[0]), Side(comparison.b.results, pair[1], names[1])


def _asked(comparison: Comparison, pair: Pair) -> Iterator[Finding]:
    """Differences in every cell and, if replicates are paired, ratios of boundaries and crossovers. For one pair of conditions."""
    a, b = sides(comparison, pair)
    measures: list[tuple[Measure, str]] = [*(("ability", skill) for skill in comparison.skills), ("memory", "")]
    for measure, skill in measures:
        yield from _cells(comparison, a, b, measure, skill)
    if comparison.paired:
        for measure, skill in measures:
            yield from (arms.fewer_tasks(a, b, measure, skill, flops) for flops in comparison.budgets)
        if len(comparison.budgets) > 1:
            yield from (arms.crossover(a, b, comparison.skill, n, comparison.budgets) for n in comparison.levels)


def _shared(comparison: Comparison, side: Side, cube: np.ndarray) -> np.ndarray:
    """The part of one study's cube (n_tasks, budgets, replicates) in the cells that both studies have."""
    rows = [side.results.levels.index(n) for n in comparison.levels]
    return cube[np.ix_(rows, [side.results.budgets.index(c) for c in comparison.budgets])]


def _cells(comparison: Comparison, a: Side, b: Side, measure: Measure, skill: str) -> Iterator[Finding]:
    """The difference of a measure in every common cell with a value in one of the studies."""
    x, y = (_shared(comparison, side, surface(side.results, measure, side.condition, skill)) for side in (a, b))
    for i, n in enumerate(comparison.levels):
        for j, c in enumerate(comparison.budgets):
            if not (np.isnan(x[i, j]).all() and np.isnan(y[i, j]).all()):
                yield _cell(comparison, a, b, measure, skill, n, c, x[i, j], y[i, j])


def _cell(
    comparison: Comparison,
    a: Side,
    b: Side,
    measure: Measure,
    skill: str,
    n: int,
    c: float,
    x: np.ndarray,
    y: np.ndarray,
) -> Finding:
    """The difference of a measure in the cell at n tasks and c FLOPs: the mean of y (second study) less that of x (first).

    x and y are (replicates,), NaN for missing.
    """
    first, second = x.tolist(), y.tolist()

    def interval(confidence: float) -> Ends:
        found = differences.guarded_difference(second, first, comparison.paired, confidence)
        return (None, None) if found is None else (found.low, found.high)

    what = f"{measure}{f' of {skill}' if skill else ''}"
    return Finding(
        name=claim_of("cell", measure, f"{a.name} {b.name}", skill, f"{n}/{c!r}"),
        question=f"difference of {measure}",
        words=lambda one: (
            f"{what} at {number(n)} tasks and {number(c)} FLOPs is {difference_words(one, f' in {b.name} than in {a.name}')}"
        ),
        condition=b.name,
        skill=skill,
        n_tasks=n,
        compute_flops=c,
        against=a.name,
        **_measured(differences.guarded_difference(second, first, comparison.paired)),
        interval=interval,
    )


def _measured(found: differences.Difference | None) -> dict[str, Any]:
    """The fields of a finding on a difference of means."""
    if found is None:
        return {"verdict": "missing", "n": 0}
    verdict = "differs" if found.mean else "equal"
    return {"verdict": verdict, "n": min(found.n_a, found.n_b), "p": found.p, "estimate": found.mean}


def _overall(comparison: Comparison) -> Finding:
    """The mean difference of ability: a mean over cells for each replicate, then a test over replicates.

    Only cells in which all used replicates have a value count, over all pairs of conditions. A lost trial counts as 0.
    """
    columns: list[list[np.ndarray]] = [[], []]
    for pair in comparison.pairs:
        for column, side in zip(columns, sides(comparison, pair), strict=True):
            cube, _ = boundaries.counted(side.results, "ability", side.condition, comparison.skill)
            column.append(np.clip(_shared(comparison, side, cube), 0, 1).reshape(-1, side.results.n_replicates))
    x, y = (np.concatenate(column) for column in columns)  # (cells, replicates)
    used_x, used_y = (~np.isnan(side).all(axis=0) for side in (x, y))
    if comparison.paired:
        used_x = used_y = used_x & used_y
    x, y = x[:, used_x], y[:, used_y]
    whole = ~np.isnan(x).any(axis=1) & ~np.isnan(y).any(axis=1)
    usable = bool(whole.any() and x.size and y.size)
    means = [side[whole].mean(axis=0).tolist() for side in (y, x)] if usable else []
    found = differences.guarded_difference(means[0], means[1], comparison.paired, 1 - OVERALL_SHARE) if usable else None
    shown = found is not None and found.p is not None and found.p <= OVERALL_SHARE
    return Finding(
        name="overall",
        question="mean difference of ability",
        words=lambda one: (
            f"ability of {comparison.skill} is {difference_words(one)} on average over {times(one.n_tasks or 0, 'cell')}"
        ),
        condition=comparison.b.study.id,
        skill=comparison.skill,
        n_tasks=int(whole.sum()) if usable else 0,
        against=comparison.a.study.id,
        **_measured(found),
        interval=lambda confidence: (found.low, found.high) if found else (None, None),
        significance="significant" if shown else "not significant" if found and found.p is not None else "untested",
        confidence=1 - OVERALL_SHARE,
    )


# Words --------------------------------------------------------------------------------------------------------------


def difference_words(one: Finding, sides: str = "") -> str:
    """A difference with its interval: 0.12 higher in b than in a (95 % interval +0.05 to +0.19)."""
    if one.estimate is None:
        return "not measured on both sides"
    mean = one.estimate
    way = f"{decimal(abs(mean))} {'higher' if mean > 0 else 'lower'}{sides}"
    if not round(mean, 2):
        way = f"{'about ' if mean else ''}equal{sides.replace(' than in', ' and')}"
    if one.n < 3 or one.low is None or one.high is None:  # the interval from two values is no help
        return way
    return f"{way} ({sure(one.confidence)} interval {signed(one.low, 2)} to {signed(one.high, 2)})"


def sentence(comparison: Comparison) -> str:
    """The answer of a comparison in one sentence: which study is better, or that they are not distinguishable."""
    a, b, overall = comparison.a.study.id, comparison.b.study.id, comparison.overall
    tested = count(comparison.findings, "significant") + count(comparison.findings, "not significant")
    shown = comparison.significant()
    cells = {one.verdict for one in comparison.findings if one.question.startswith("difference")}
    if comparison.paired and cells <= {"equal", "missing"}:
        return f"{a} and {b} agree exactly: every value that both have is the same."
    if not tested and overall.p is None:
        return f"No difference between {a} and {b} can be tested: that takes two replicates on each side."
    if comparison.overall_is_significant:
        better = "better" if (overall.estimate or 0.0) > 0 else "worse"
        return f"{b} is {better} at {comparison.skill} than {a}: {overall.sentence}."
    whole = f": {overall.sentence}" if overall.verdict != "missing" else ""
    if shown:
        return (
            f"{b} differs from {a} in {len(shown):,} of {times(tested, 'tested finding')}, but not on average{whole}."
        )
    if overall.p is not None and by_chance(overall.n, overall.n) > OVERALL_SHARE:
        return f"{times(overall.n, 'replicate')} cannot show a difference between {a} and {b}{whole}."
    return f"{a} and {b} are not distinguishable{whole}."


def more(comparison: Comparison) -> list[str]:
    """Further sentences: up to two significant ratios of boundaries and two crossovers, caveats, and left-out parts."""
    ratios = comparison.significant("task multiplier")
    shown = ([one for one in ratios if one.skill == comparison.skill] or ratios)[-2:] + comparison.significant(
        "crossover"
    )[-2:]
    said = [f"{capitalised(one.sentence)}." for one in shown]
    if comparison.pairs[0][0] != comparison.pairs[0][1]:
        said.append(f"They share no condition: {comparison.pairs[0][0]} is compared with {comparison.pairs[0][1]}.")
    if not comparison.paired:
        said.append("Their families, versions or numbers of replicates differ, so replicates are not paired.")
    if not comparison.settings:
        said.append("Their settings are the same.")
    return said + left_out(comparison)


def left_out(comparison: Comparison) -> list[str]:
    """Sentences on conditions, skills, tasks and budgets that only one study has, and on trials without a result."""
    said = []
    for side, (mine, other) in enumerate(((comparison.a, comparison.b), (comparison.b, comparison.a))):
        own = mine.study
        conditions = [name for name in own.conditions if name not in {pair[side] for pair in comparison.pairs}]
        skills = [skill for skill in own.shown_skills if skill not in comparison.skills]
        levels = [number(n) for n in mine.results.levels if n not in other.results.levels]
        budgets = [number(c) for c in mine.results.budgets if c not in other.results.budgets]
        parts = _part("condition", conditions) + _part("skill", skills)
        parts += _part("number of tasks", levels, "numbers of tasks") + _part("budget", budgets)
        if parts:
            said.append(f"Only {own.id} has {'; '.join(parts)}.")
        if comparison.outside[side]:
            lie, are = ("lies", "is") if comparison.outside[side] == 1 else ("lie", "are")
            recorded = f"{times(comparison.outside[side], 'recorded trial')} of {own.id}"
            said.append(f"{recorded} {lie} outside its axes and {are} left out.")
        for status in ("open", "diverged", "failed"):
            if n := sum(run["status"] == status for run in mine.runs):
                words = status if status != "open" else "has not ended" if n == 1 else "have not ended"
                said.append(f"{n:,} of {times(len(mine.runs), 'trial')} of {own.id} {words}.")
    return said


def _part(what: str, values: Sequence[str], several: str = "") -> list[str]:
    """A phrase such as `the budgets 1e9, 2e9`, as a list of one; empty without values. several: the plural of `what`."""
    noun = what if len(values) == 1 else several or f"{what}s"
    return [f"the {noun} {', '.join(values)}"] if values else []
