"""Refusals of a primary claim: its keys and places, and whether the axes of the study could decide it.

A claim that no result could refute is no claim. A claim that no result could confirm wastes a study. Both are refused when
the study is loaded. Too few replicates are not refused, since they may be added later: `emergence plan` prints the least
number. May not import Ray, MLflow or torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

from orchestrator.formatting import number
from orchestrator.stats.minimums import MIN_SCALES
from orchestrator.study.claim import RETIRED_QUANTITY, RETIRED_VERDICT, Primary
from orchestrator.study.claimed import claimed_condition
from orchestrator.study.pairs import pairs_of
from orchestrator.study.schema import Study
from trainers import budget
from trainers.tasks import Family

Problem = tuple[tuple[Any, ...], str]
"""A mistake: (keys and indices that lead to the value in the study file, problem and remedy in words)."""


_PLACE: dict[str, tuple[str, ...]] = {
    "k_ability": ("arm", "skill", "compute_flops"),
    "k_memory": ("arm", "compute_flops"),
    "drift_ability": ("arm", "skill"),
    "drift_memory": ("arm",),
    "compute_to_skill": ("arm", "skill", "n_tasks"),
    "crossover": ("arm", "against", "skill", "n_tasks"),
    "overtakes": ("arm", "skill", "n_tasks", "from_flops"),
    "emergence": ("arm", "skill", "n_tasks", "compute_flops"),
    "accuracy": ("arm", "skill", "n_tasks", "compute_flops"),
    "ability": ("arm", "skill", "n_tasks", "compute_flops"),
    "memory": ("arm", "n_tasks", "compute_flops"),
    "change_accuracy": ("arm", "skill", "n_tasks", "from_flops", "compute_flops"),
    "change_ability": ("arm", "skill", "n_tasks", "from_flops", "compute_flops"),
}
"""`Primary.what` -> the keys of the claim that select its condition, skill, tasks and budgets. Other such keys would be ignored, so
they are refused."""

OVERTAKING = ("crossover", "overtakes")
"""Values of `Primary.what` that claim that one condition overtakes another along the budgets."""

BOUNDS = {
    "accuracy": (0.0, 1.0),
    "ability": (-100.0, 1.0),
    "memory": (-100.0, 1.0),
    "change_accuracy": (-1.0, 1.0),
    "change_ability": (-101.0, 101.0),
}
"""`Primary.what` -> the least and the largest possible mean. An ability or memory above 1 beats an exact reference, which happens by
chance only. The lowest ability seen so far is -15 (elimination after training on 4 tasks); -100 is assumed to be out of reach."""


# Keys and places ----------------------------------------------------------------------------------------------------


def problems(study: Study, family: Family, claim: Primary) -> Iterator[Problem]:
    """The mistakes in a claim that do not depend on its range: unknown places, missing, ignored or retired keys.

    family: the study's family without variants.
    """
    if retired := list(_retired(claim)):
        yield from retired
        return
    yield from _ignored(claim)
    yield from _off_the_axes(study, claim)
    yield from _missing(study, claim)
    yield from _notnumber(claim)
    if claim.what.endswith("memory") and family.ability_of == "accuracy":
        name: Any = family
        yield (
            ("primary", "what"),
            f"memory has no meaning in family '{name.name}': its exact memoriser knows no more of the list than the rule does",
        )
    longest = family.memorizer_max_tasks
    if claim.what.endswith("memory") and longest == 0:
        yield (
            ("primary", "what"),
            f"memory has no meaning in family '{cast(Any, family).name}': it has no exact memoriser",
        )


def _ignored(claim: Primary) -> Iterator[Problem]:
    """Problems of keys that the claimed quantity does not use."""
    read = _PLACE[claim.what]
    for key in ("arm", "against", "skill", "n_tasks", "from_flops", "compute_flops"):
        if getattr(claim, key) is not None and key not in read:
            yield (
                ("primary", key),
                f"'{claim.what}' does not take '{key}', which would be ignored; leave it out (it takes {', '.join(read)})",
            )
    if claim.verdict is not None and claim.what != "emergence":
        yield ("primary", "verdict"), f"'{claim.what}' claims a range, not a verdict; give lo, hi or both"


def _off_the_axes(study: Study, claim: Primary) -> Iterator[Problem]:
    """Problems of names and values that the study does not have."""
    axes = study.axes
    for key, allowed in (
        ("arm", tuple(study.conditions)),
        ("against", tuple(study.conditions)),
        ("n_tasks", axes.n_tasks),
        ("compute_flops", axes.compute_flops),
        ("from_flops", axes.compute_flops),
        ("skill", tuple(study.shown_skills) if claim.what != "overtakes" else _domains(study, claim)),
    ):
        value = getattr(claim, key)
        if value is not None and key in _PLACE[claim.what] and value not in allowed:
            listed = ", ".join(a if isinstance(a, str) else number(a) for a in allowed)
            given = value if isinstance(value, str) else number(value)
            near = difflib.get_close_matches(given, listed.split(", "), 1) if isinstance(value, str) else []
            meant = f"; did you mean '{near[0]}'?" if near else ""
            yield ("primary", key), f"{given} is not in the study; it has {listed}{meant}"


def _domains(study: Study, claim: Primary) -> tuple[str, ...]:
    """The domains in which the claimed condition, a generalist, has a specialist to compare with."""
    return tuple(pair.domain for pair in pairs_of(study) if pair.generalist == claimed_condition(study, claim))


def _missing(study: Study, claim: Primary) -> Iterator[Problem]:
    """Problems of keys that the claimed quantity needs."""
    if claim.what == "emergence":
        if (claim.n_tasks is None) == (claim.compute_flops is None):
            yield (
                ("primary",),
                "'emergence' is read along one axis; give n_tasks or compute_flops, the one that stays fixed",
            )
    elif "n_tasks" in _PLACE[claim.what] and claim.n_tasks is None:
        yield ("primary",), f"'{claim.what}' is read at one number of tasks; give n_tasks"
    if claim.what == "overtakes" and not _domains(study, claim):
        those = ", ".join(dict.fromkeys(pair.generalist for pair in pairs_of(study))) or "none"
        said = f"'overtakes' is of a generalist with specialists beside it; {claimed_condition(study, claim)} has none, the study's generalists: {those}"
        yield ("primary",), said
    if claim.what == "overtakes" and claim.from_flops == max(study.axes.compute_flops):
        yield (
            ("primary", "from_flops"),
            "nothing is left to the generalist beyond the largest budget; give a smaller one",
        )
    if claim.what.startswith("change"):
        last = claim.compute_flops or max(study.axes.compute_flops)
        if claim.from_flops is None or claim.from_flops >= last:
            yield ("primary",), f"'{claim.what}' is between two budgets; give from_flops, below {number(last)}"
    if claim.what == "crossover" and len(study.conditions) < 2:
        yield ("primary",), "a crossover is of one arm by another, and the study has one; add an arm to axes.arm"
    elif claim.what == "crossover" and claim.against in (None, claimed_condition(study, claim)):
        yield ("primary",), "a crossover is of one arm by another; give the other as 'against'"


def _retired(claim: Primary) -> Iterator[Problem]:
    """Problems of a quantity or verdict that new studies may not claim."""
    if claim.what == RETIRED_QUANTITY:
        yield (
            ("primary", "what"),
            f"'{RETIRED_QUANTITY}' is claimed no more; give k_memory, the number of tasks up to which all are memorised",
        )
    if claim.verdict == RETIRED_VERDICT:
        yield (
            ("primary", "verdict"),
            f"'{RETIRED_VERDICT}' is no verdict any more: the continuous scores decide; give break or smooth",
        )


def _notnumber(claim: Primary) -> Iterator[Problem]:
    """Problems of the claimed range or verdict in itself: missing, of the wrong kind, or empty."""
    if claim.what == "emergence":
        if claim.verdict is None or claim.lo is not None or claim.hi is not None:
            yield (
                ("primary",),
                "'emergence' claims a verdict, not a range; give verdict: break or smooth",
            )
    elif claim.lo is None and claim.hi is None:
        if claim.verdict is None:
            yield ("primary",), "a claim that cannot turn out false; give lo, hi or both"
    elif claim.lo is not None and claim.hi is not None and claim.lo >= claim.hi:
        yield ("primary", "lo"), f"lo {number(claim.lo)} < hi {number(claim.hi)} does not hold"


# What the axes can decide ---------------------------------------------------------------------------------------------


def out_of_reach(study: Study, family: Family, claim: Primary) -> Iterator[Problem]:
    """Reasons why a claim without `problems` could not become inconsistent, or not consistent, on the axes of this study."""
    if claim.what == "emergence":
        yield from _too_few_scales(study, claim)
    elif claim.what in BOUNDS:
        yield from _mean_out_of_reach(claim)
    elif claim.what.startswith("drift"):
        yield from _drift_out_of_reach(study, family, claim)
    else:
        yield from _boundary_out_of_reach(claim, *_grid(study, family, claim))


def looks(study: Study, condition: str, last: Literal["end", "branch"]) -> list[float]:
    """Training FLOPs of the evaluations of a trunk up to the largest budget, ascending.

    last: whether the last one is the branch point before the decay, or the end after it. If the model's size follows the
    budget, there is no common trunk: then the last point of each budget.
    """
    if study.grows(condition):
        return study.ends(condition, last)
    trunk = study.trunk_of(condition)
    steps = budget.steps_of(trunk, study.budgets[-1])
    points = {*budget.evaluation_steps(trunk, steps.branch), steps.end if last == "end" else steps.branch}
    return [float(step * budget.flops_per_step(trunk)) for step in sorted(points)]


def grid(study: Study, family: Family, claim: Primary) -> list[float]:
    """The levels between which the claimed crossing can lie, ascending.

    They are numbers of tasks; evaluations for `compute_to_skill`, and budgets for OVERTAKING, both in FLOPs.
    """
    return _grid(study, family, claim)[0]


def _grid(study: Study, family: Family, claim: Primary) -> tuple[list[float], str]:
    """The levels of `grid`, and their kind for messages: `numbers of tasks`, `evaluations` or `budgets`."""
    if claim.what == "compute_to_skill":
        return looks(study, claimed_condition(study, claim), "end"), "evaluations"
    if claim.what in OVERTAKING:
        return study.budgets, "budgets"
    longest = math.inf if family.memorizer_max_tasks is None else family.memorizer_max_tasks
    known = [float(n) for n in sorted(study.axes.n_tasks) if n <= longest or not claim.what.endswith("memory")]
    return known, "numbers of tasks"


def _too_few_scales(study: Study, claim: Primary) -> Iterator[Problem]:
    """Problems of a claim on emergence along an axis with fewer than MIN_SCALES scales, or with models of several sizes."""
    if claim.n_tasks is None and len(study.axes.n_tasks) < MIN_SCALES:
        yield (
            ("primary",),
            f"'emergence' along tasks needs {MIN_SCALES} numbers of tasks, and the study has "
            f"{len(study.axes.n_tasks)}; add some to axes.n_tasks",
        )
    elif claim.n_tasks is not None and study.grows(condition := claimed_condition(study, claim)):
        yield (
            ("primary",),
            f"'emergence' along compute needs one model, and the size of {condition} follows the budget: a break could be a "
            "change of size; name a condition of one size",
        )
    elif claim.n_tasks is not None and (n := len(looks(study, claimed_condition(study, claim), "branch"))) < MIN_SCALES:
        yield (
            ("primary",),
            f"'emergence' along compute needs {MIN_SCALES} evaluations, and a training run has {n} here; raise "
            "evaluation.points_per_decade, or lower evaluation.first_flops",
        )


def _mean_out_of_reach(claim: Primary) -> Iterator[Problem]:
    """Problems of a claim on a mean whose range holds all possible values, or none."""
    bottom, top = BOUNDS[claim.what]
    between = f"'{claim.what}' lies between {number(bottom)} and {number(top)}"
    if not ((claim.lo is not None and claim.lo > bottom) or (claim.hi is not None and claim.hi < top)):
        yield (
            ("primary",),
            f"{_range(claim)} cannot turn out false: {between}; give lo above {number(bottom)}, or hi below {number(top)}",
        )
    elif (claim.lo is not None and claim.lo > top) or (claim.hi is not None and claim.hi < bottom):
        yield ("primary",), f"{_range(claim)} cannot turn out true: {between}; give a range that reaches into it"


def _boundary_out_of_reach(claim: Primary, levels: Sequence[float], unit: str) -> Iterator[Problem]:
    """Problems of a claim on a crossing between levels. Its interval always holds two neighbouring levels, or has an open end.

    levels: as from `grid`; unit: `numbers of tasks`, `evaluations` or `budgets`, for messages.
    """
    if not levels:
        yield ("primary",), f"'{claim.what}' can be measured at none of the study's numbers of tasks; add smaller ones"
        return
    if len(levels) < 2:
        yield ("primary",), f"'{claim.what}' lies between two {unit}, and one is usable here; add some"
        return
    first, last = levels[0], levels[-1]
    lo, hi = -math.inf if claim.lo is None else claim.lo, math.inf if claim.hi is None else claim.hi
    flops = "" if unit == "numbers of tasks" else " FLOPs"
    ends = f"the {unit} of the study end at {number(first)} and {number(last)}{flops}"
    # Before the second budget no overtaking is seen: an arm that is ahead from the first on was not seen to overtake.
    earliest = levels[1] if claim.what in OVERTAKING and len(levels) > 1 else first
    if lo <= first and hi >= last:
        yield (
            ("primary",),
            f"{_range(claim)} cannot turn out false: {ends}, and nothing beyond them is distinguishable; give lo above "
            f"{number(first)}, or hi below {number(last)}",
        )
    elif claim.hi is None or claim.lo is None:
        if lo > last or hi < earliest:
            least = f"lo of at most {number(last)}" if lo > last else f"hi of at least {number(earliest)}"
            seen = (
                ends
                if earliest == first
                else f"an overtaking is seen from the second budget on, {number(earliest)} FLOPs"
            )
            yield ("primary",), f"{_range(claim)} cannot turn out true: {seen}; give a {least}, or a wider axis"
    elif not any(lo <= a and b <= hi for a, b in pairwise(levels)):
        yield (
            ("primary",),
            f"{_range(claim)} cannot turn out true: it lies between two {unit} of the study, and no two are in "
            f"this range; widen it, or add some (there are {_neighbours(levels, lo, hi)}{flops})",
        )


def _neighbours(levels: Sequence[float], lo: float, hi: float) -> str:
    """The levels within a range and the next one on either side, for a message."""
    below, above = [v for v in levels if v < lo][-1:], [v for v in levels if v > hi][:1]
    shown = [*below, *(v for v in levels if lo <= v <= hi), *above]
    return ", ".join(map(number, shown))


def _drift_out_of_reach(study: Study, family: Family, claim: Primary) -> Iterator[Problem]:
    """Problems of a claim on a drift.

    The steepest drift that can be seen goes from the first level to the last but one, between two neighbouring budgets.
    The interval of a drift is at least two steps of the numbers of tasks wide, divided by the doublings of all the compute.
    """
    levels, _ = _grid(study, family, claim)
    if len(study.budgets) < 2 or len(levels) < 3:
        n, needed, what = len(study.budgets), 2, "budgets"
        if n >= needed:
            n, needed, what = len(levels), 3, "numbers of tasks"
        yield ("primary",), f"'{claim.what}' needs {needed} {what} or more, and {n} are usable here; add some"
        return
    steps = [math.log2(b / a) for a, b in pairwise(levels)]
    doublings = [math.log2(b / a) for a, b in pairwise(study.budgets)]
    steepest = math.log2(levels[-2] / levels[0]) / min(doublings)
    finest = 2 * min(steps) / sum(doublings)
    lo, hi = -math.inf if claim.lo is None else claim.lo, math.inf if claim.hi is None else claim.hi
    told = f"these axes can show a drift of {number(-steepest)} to {number(steepest)} doublings of tasks per doubling of compute"
    if lo <= -steepest and hi >= steepest:
        yield (
            ("primary",),
            f"{_range(claim)} cannot turn out false: {told}; give lo above {number(-steepest)}, or hi below {number(steepest)}",
        )
    elif lo > steepest or hi < -steepest:
        yield ("primary",), f"{_range(claim)} cannot turn out true: {told}; give a range that reaches into it"
    elif hi - lo < finest:
        yield (
            ("primary",),
            f"{_range(claim)} cannot turn out true: these axes resolve a drift to {number(finest)} at best; widen it, or add "
            "numbers of tasks or budgets",
        )


def _range(claim: Primary) -> str:
    """The claimed range for a message."""
    if claim.lo is not None and claim.hi is not None:
        return f"the range {number(claim.lo)} to {number(claim.hi)}"
    return f"lo {number(claim.lo)}" if claim.lo is not None else f"hi {number(claim.hi or 0.0)}"
