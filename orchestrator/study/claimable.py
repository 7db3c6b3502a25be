"""Refusals of a primary claim: its keys and places, and whether the axes of the study could decide it.

A claim that no result could refute is no claim. A claim that no result could confirm wastes a study. Both are refused when
the study is loaded. Too few replicates are not refused, since they may be added later: `emergence plan` prints the least
number. May not import Ray, MLflow or torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

from orchestrator.formatting import number, times
from orchestrator.stats.minimums import CROSSING, LEAST, MIN_SCALES
from orchestrator.study.claim import Primary
from orchestrator.study.claimed import caution, claim_words, claimed_condition, is_along
from orchestrator.study.pairs import pairs_of
from orchestrator.study.schema import Study
from trainers import budget
from trainers.records import Record
from trainers.tasks import Family

Problem = tuple[str, str]
"""(key of the claim, or "" for all of it; problem and remedy)."""


_PLACE: dict[str, tuple[str, ...]] = {
    "k_ability": ("arm", "skill", "compute_flops"),
    "k_memory": ("arm", "compute_flops"),
    "along_ability": ("arm", "skill", "n_tasks", "compute_flops"),
    "along_long_answers": ("arm", "skill", "n_tasks", "compute_flops"),
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

WIDER = 5
"""With fewer replicates the interval of a boundary is wider than the step in which all of them agree (`stats.boundary`)."""

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
    if is_along(claim) and not study.axis:
        yield "what", f"'{claim.what}' needs an axis of a family parameter; add axes.family"
        return
    if (why := without_answers(family, claim.what.removeprefix("along_"))) is not None:
        yield "what", why
    yield from _ignored(claim)
    yield from _off_the_axes(study, claim)
    yield from _missing(study, claim)
    yield from _notnumber(claim)
    if claim.what.endswith("memory") and (family.ability_of == "accuracy" or family.memorizer_max_tasks == 0):
        named = f"memory has no meaning in family '{cast(Any, family).name}'"
        why = "knows no more of the list than the rule does" if family.ability_of == "accuracy" else "does not exist"
        yield "what", f"{named}: its exact memoriser {why}"


def _ignored(claim: Primary) -> Iterator[Problem]:
    """Problems of keys that the claimed quantity does not use."""
    read = _PLACE[claim.what]
    for key in ("arm", "against", "skill", "n_tasks", "from_flops", "compute_flops"):
        if getattr(claim, key) is not None and key not in read:
            yield (
                key,
                f"'{claim.what}' does not take '{key}', which would be ignored; leave it out (it takes {', '.join(read)})",
            )
    if claim.verdict is not None and claim.what != "emergence":
        yield "verdict", f"'{claim.what}' claims a range, not a verdict; give lo, hi or both"


def _off_the_axes(study: Study, claim: Primary) -> Iterator[Problem]:
    """Problems of names and values that the study does not have."""
    budgets = study.budgets_of(*(c for c in (claimed_condition(study, claim), claim.against) if c in study.conditions))
    known: dict[str, Sequence[Any]] = {
        "arm": tuple(study.series if is_along(claim) else study.conditions),
        "against": tuple(study.conditions),
        "n_tasks": _levels(study, claim),
        "compute_flops": budgets,
        "from_flops": budgets,
        "skill": study.shown_skills if claim.what != "overtakes" else _domains(study, claim),
    }
    yield from not_among(claim, {key: known[key] for key in _PLACE[claim.what]})


def _levels(study: Study, claim: Primary) -> list[int]:
    """The numbers of tasks of the claimed conditions: those that all of them train."""
    named = [c for c in (claimed_condition(study, claim), claim.against) if c in study.conditions]
    return [n for n in sorted(study.axes.n_tasks) if all(n in study.levels_of(c) for c in named)]


def without_answers(family: Family, measure: str) -> str | None:
    """The problem of a measure of free answers in a family that has none; None if there is no problem."""
    if family.ability_of == "right" or measure not in ("right", "answer_tokens", "long_answers"):
        return None
    return f"family '{cast(Any, family).name}' has no free answers, and so no '{measure}'"


def not_among(record: Record, known: Mapping[str, Sequence[Any]]) -> Iterator[Problem]:
    """The keys of a record whose value is none of the known ones."""
    for key, allowed in known.items():
        value = getattr(record, key)
        if value is not None and value not in allowed:
            listed = [a if isinstance(a, str) else number(a) for a in allowed]
            given = value if isinstance(value, str) else number(value)
            near = difflib.get_close_matches(given, listed, 1) if isinstance(value, str) else []
            meant = f"; did you mean '{near[0]}'?" if near else ""
            yield key, f"{given} is not in the study; it has {', '.join(listed)}{meant}"


def _domains(study: Study, claim: Primary) -> tuple[str, ...]:
    """The domains in which the claimed condition, a generalist, has a specialist to compare with."""
    return tuple(pair.domain for pair in pairs_of(study) if pair.generalist == claimed_condition(study, claim))


def _missing(study: Study, claim: Primary) -> Iterator[Problem]:
    """Problems of keys that the claimed quantity needs."""
    if claim.what == "emergence":
        if (claim.n_tasks is None) == (claim.compute_flops is None):
            yield ("", "'emergence' is read along one axis; give n_tasks or compute_flops, the one that stays fixed")
    elif "n_tasks" in _PLACE[claim.what] and claim.n_tasks is None:
        yield "", f"'{claim.what}' is read at one number of tasks; give n_tasks"
    if claim.what == "overtakes" and not _domains(study, claim):
        those = ", ".join(dict.fromkeys(pair.generalist for pair in pairs_of(study))) or "none"
        yield "", f"'overtakes' is of a generalist with specialists beside it; the study's generalists: {those}"
    if claim.what == "overtakes" and claim.from_flops == max(study.axes.compute_flops):
        yield ("from_flops", "nothing is left to the generalist beyond the largest budget; give a smaller one")
    if claim.what.startswith("change"):
        last = claim.compute_flops or max(study.axes.compute_flops)
        if claim.from_flops is None or claim.from_flops >= last:
            yield "", f"'{claim.what}' is between two budgets; give from_flops, below {number(last)}"
    if claim.what == "crossover" and len(study.conditions) < 2:
        yield "", "a crossover is of one arm by another, and the study has one; add an arm to axes.arm"
    elif claim.what == "crossover" and claim.against in (None, claimed_condition(study, claim)):
        yield "", "a crossover is of one arm by another; give the other as 'against'"


def _retired(claim: Primary) -> Iterator[Problem]:
    if claim.what == "memory":
        yield (
            "what",
            "'memory' is claimed no more; give k_memory, the number of tasks up to which all are memorised",
        )
    if claim.verdict == "metric artefact":
        yield (
            "verdict",
            "'metric artefact' is no verdict any more: the continuous scores decide; give break or smooth",
        )


def _notnumber(claim: Primary) -> Iterator[Problem]:
    """Problems of the claimed range or verdict in itself: missing, of the wrong kind, or empty."""
    if claim.what == "emergence":
        if claim.verdict is None or claim.lo is not None or claim.hi is not None:
            yield ("", "'emergence' claims a verdict, not a range; give verdict: break or smooth")
    elif claim.lo is None and claim.hi is None:
        if claim.verdict is None:
            yield "", "a claim that cannot turn out false; give lo, hi or both"
    elif claim.lo is not None and claim.hi is not None and claim.lo >= claim.hi:
        yield "lo", f"lo {number(claim.lo)} < hi {number(claim.hi)} does not hold"


# What the axes can decide ---------------------------------------------------------------------------------------------


def out_of_reach(study: Study, family: Family, claim: Primary) -> str:
    """Why a well-formed claim could not turn out false, or not true, on the axes of this study; "" if it could."""
    if claim.what == "emergence":
        return _too_few_scales(study, claim)
    if claim.what in BOUNDS:
        least, most = BOUNDS[claim.what]
        return _beyond(claim, least, most, f"'{claim.what}' lies between {number(least)} and {number(most)}")
    if claim.what.startswith("drift"):
        return _drift_out_of_reach(study, family, claim)
    return _boundary_out_of_reach(claim, *_grid(study, family, claim))


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
    return [float(budget.flops_at(trunk, step)) for step in sorted(points)]


def grid(study: Study, family: Family, claim: Primary) -> list[float]:
    """The levels between which the claimed crossing can lie, ascending.

    They are numbers of tasks; values of the family parameter for `along_*`; evaluations for `compute_to_skill`, and budgets for OVERTAKING, both in FLOPs.
    """
    return _grid(study, family, claim)[0]


def _grid(study: Study, family: Family, claim: Primary) -> tuple[list[float], str]:
    """The levels of `grid`, and their kind for messages: `numbers of tasks`, `evaluations`, `budgets` or `values of share`."""
    if is_along(claim):
        return [*study.series[claimed_condition(study, claim)]], f"values of {study.axis}"
    if claim.what == "compute_to_skill":
        return looks(study, claimed_condition(study, claim), "end"), "evaluations"
    if claim.what in OVERTAKING:
        return study.budgets_of(claimed_condition(study, claim), *([claim.against] if claim.against else [])), "budgets"
    longest = math.inf if family.memorizer_max_tasks is None else family.memorizer_max_tasks
    known = [float(n) for n in _levels(study, claim) if n <= longest or not claim.what.endswith("memory")]
    return known, "numbers of tasks"


def _too_few_scales(study: Study, claim: Primary) -> str:
    condition = claimed_condition(study, claim)
    if claim.n_tasks is None:
        n = len(_levels(study, claim))
        needed = f"along tasks needs {MIN_SCALES} numbers of tasks, and the study has {n}; add some to axes.n_tasks"
    elif study.grows(condition):
        return (
            f"'emergence' along compute needs one model, and the size of {condition} follows the budget: a break could be a "
            "change of size; name a condition of one size"
        )
    else:
        n = len(looks(study, condition, "branch"))
        needed = (
            f"along compute needs {MIN_SCALES} evaluations, and a training run has {n} here; raise "
            "evaluation.points_per_decade, or lower evaluation.first_flops"
        )
    return f"'emergence' {needed}" if n < MIN_SCALES else ""


def _beyond(claim: Primary, least: float, most: float, reach: str) -> str:
    """The problem of a range that holds all values from `least` to `most`, or none; "" if it holds some."""
    lo, hi = _ends(claim)
    if lo <= least and hi >= most:
        return (
            f"{_range(claim)} cannot turn out false: {reach}; give lo above {number(least)}, or hi below {number(most)}"
        )
    if lo > most or hi < least:
        return f"{_range(claim)} cannot turn out true: {reach}; give a range that reaches into it"
    return ""


def _boundary_out_of_reach(claim: Primary, levels: Sequence[float], unit: str) -> str:
    """The problem of a claim on a boundary, whose interval always holds two neighbouring levels or an open end."""
    if len(levels) < 2:
        return f"'{claim.what}' lies between two {unit}, and {len(levels)} can be used here; add some"
    flops = " FLOPs" if unit in ("evaluations", "budgets") else ""
    ends = f"the {unit} of the study end at {number(levels[0])} and {number(levels[-1])}{flops}"
    if problem := _beyond(claim, levels[0], levels[-1], ends):
        return problem
    lo, hi = _ends(claim)
    if claim.what in OVERTAKING and hi < levels[1]:  # an arm that is ahead from the first budget on overtook unseen
        return f"{_range(claim)} cannot turn out true: an overtaking is seen from the second budget on; give a hi of at least {number(levels[1])}"
    if math.inf not in (-lo, hi) and not any(lo <= a and b <= hi for a, b in pairwise(levels)):
        return (
            f"{_range(claim)} cannot turn out true: no two {unit} of the study are in this range; widen it, or add some"
        )
    return ""


def _drift_out_of_reach(study: Study, family: Family, claim: Primary) -> str:
    """The problem of a claim on a drift.

    The steepest drift that can be seen goes from the first level to the last but one, between two neighbouring budgets.
    The interval of a drift is at least two steps of the numbers of tasks wide, divided by the doublings of all the compute.
    """
    levels, budgets = _grid(study, family, claim)[0], study.budgets_of(claimed_condition(study, claim))
    if len(budgets) < 2 or len(levels) < 3:
        return f"'{claim.what}' needs 2 budgets and 3 numbers of tasks or more; {len(budgets)} and {len(levels)} can be used here; add some"
    steps = [math.log2(b / a) for a, b in pairwise(levels)]
    doublings = [math.log2(b / a) for a, b in pairwise(budgets)]
    steepest = math.log2(levels[-2] / levels[0]) / min(doublings)
    finest = 2 * min(steps) / sum(doublings)
    lo, hi = _ends(claim)
    shown = f"a drift of {number(-steepest)} to {number(steepest)} doublings of tasks per doubling of compute"
    if problem := _beyond(claim, -steepest, steepest, f"these axes can show {shown}"):
        return problem
    if hi - lo < finest:
        return (
            f"{_range(claim)} cannot turn out true: these axes resolve a drift to {number(finest)} at best; widen it, or add "
            "numbers of tasks or budgets"
        )
    return ""


def _ends(claim: Primary) -> tuple[float, float]:
    return -math.inf if claim.lo is None else claim.lo, math.inf if claim.hi is None else claim.hi


def _range(claim: Primary) -> str:
    """The claimed range for a message."""
    if claim.lo is not None and claim.hi is not None:
        return f"the range {number(claim.lo)} to {number(claim.hi)}"
    return f"lo {number(claim.lo)}" if claim.lo is not None else f"hi {number(claim.hi or 0.0)}"


# What a plan says -----------------------------------------------------------------------------------------------------


def planned(study: Study) -> list[tuple[str, str]]:
    """Rows on the primary claim for `emergence plan`, (name, text); empty if the study declares none.

    They hold the claim with its rule, the least replicates, and a warning if the study has fewer, or too few for its range.
    """
    claim = study.primary
    if claim is None:
        return []
    least, n = LEAST[claim.what], study.axes.replicates
    rule = (
        "consistent if the verdict is that one, inconsistent if it is another"
        if claim.what == "emergence"
        else "consistent if the whole 95 % interval over replicates lies in this range, inconsistent if none of it does"
    )
    rows = [("claim", f"{claim_words(study, claim)}; {rule}")]
    rows.append(
        ("settled by", f"at least {least.to_settle} replicates, and more where they disagree; this study has {n:,}")
    )
    if n < least.to_settle:
        rows.append(
            ("warning", f"{times(n, 'replicate')} cannot settle the claim; raise axes.replicates, now or later")
        )
    elif (
        LEAST[claim.what] is CROSSING
        and n < WIDER
        and _is_one_step(claim, grid(study, cast(Family, study.family), claim))
    ):
        rows.append(
            (
                "warning",
                f"between two neighbouring values of the study lies no interval of fewer than {WIDER} replicates, "
                "so the claim cannot come out consistent; claim a wider range, add values, or raise axes.replicates",
            )
        )
    elif words := caution(claim.what, n):
        rows.append(("warning", words))
    return rows


def _is_one_step(claim: Primary, levels: Sequence[float]) -> bool:
    """Whether the claimed range is that between two neighbouring levels, ascending."""
    inside = [level for level in levels if (claim.lo or -math.inf) <= level <= (claim.hi or math.inf)]
    return len(inside) == 2 and claim.lo is not None and claim.hi is not None
