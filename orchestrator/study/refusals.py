"""Checks between the fields of a study and against its family, after each single field is valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, cast

from orchestrator.study import claimable as primaries
from orchestrator.study import starts
from orchestrator.study.schema import Expected, Study, sized
from trainers import budget
from trainers.fit.place import shares
from trainers.spec import Reward, TrunkSpec
from trainers.tasks import Family

MAX_EVALUATION_SHARE = 0.10
"""Largest cost of a trial's evaluations, as a share of its training FLOPs."""

MAX_TRIALS = 100_000
"""Most trials of a study. More are taken for a typing error, and would fill the memory."""

MAX_STEPS = 10**9
"""Most optimizer steps of a budget. More can run on no machine: the budget has a wrong exponent."""


def problems_of(study: Study, family: Family, resolved: bool = True) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Check the fields of a study against each other and against the family.

    Yields (place, problem in words). A place is the keys and indices that lead to the value in the file. resolved: whether the
    contents of the family's files are known; if not, numbers of tasks and costs are not checked.
    """
    axes = study.axes
    twice = False
    for axis in ("arm", "n_tasks", "compute_flops"):
        seen: set[Any] = set()
        for i, value in enumerate(getattr(axes, axis)):
            if value in seen:
                given = f"{value:g}".replace("e+", "e") if isinstance(value, float) else value
                yield ("axes", axis, i), f"{given} is given twice"
                twice = True
            seen.add(value)
    for i, arm in enumerate(axes.arm):
        if arm not in family.arms:
            near = hint_of(arm, family.arms)
            yield (
                ("axes", "arm", i),
                f"{_name(family)} has no arm '{arm}'{near}; it has {', '.join(family.arms)}",
            )
    yield from (of_starts := list(starts.problems(study)))
    yield from (of_reward := list(_reward_meaning(study)))
    families = {condition: study.family_of(condition) for condition in study.conditions}
    for i, n_tasks in enumerate(axes.n_tasks if resolved else ()):
        for condition, of_condition in families.items():
            if n_tasks > of_condition.n_tasks_max:
                which = f" in {condition}" if study.conditions[condition][1] else ""
                each = " in each domain" if of_condition.domains else ""
                problem = (
                    f"{n_tasks} tasks given, {_name(family)} has {of_condition.n_tasks_max:,} for training{each}{which}"
                )
                yield ("axes", "n_tasks", i), problem
                break
    alike: dict[str, str] = {}
    for condition, (_, of) in study.conditions.items():
        settings = {k: v for k, v in study.settings(condition).items() if k != "variant"}
        same = alike.setdefault(repr((settings, study.fitting(condition))), condition)
        if same != condition:
            yield _place(study, of), f"'{condition}' has the same settings as '{same}'; remove one"
    objections = {
        _place(study, study.conditions[condition][1]): why
        for condition in study.conditions
        if (why := study.family_of(condition).objection(study.settings(condition)["training"].task_exponent))
        is not None
    }
    yield from objections.items()
    for i, skill in enumerate(study.skills):
        if skill in study.skills[:i]:
            yield ("skills", i), f"'{skill}' is given twice"
        if skill not in family.skills:
            near = hint_of(skill, family.skills)
            yield ("skills", i), f"{_name(family)} has no skill '{skill}'{near}; it has {', '.join(family.skills)}"
    for i, expected in enumerate(study.expected):
        yield from _expected_meaning(study, family, i, expected)
    claim = study.primary
    wrong = [] if claim is None else list(primaries.problems(study, family, claim))
    for key, problem in wrong:
        yield ("primary", key) if key else ("primary",), problem
    if twice or any(arm not in family.arms for arm in axes.arm) or objections or of_starts or of_reward:
        return
    if resolved and max(axes.n_tasks) > min(of_condition.n_tasks_max for of_condition in families.values()):
        return
    n_cells = sum(len(study.budgets_of(one)) * len(study.levels_of(one)) for one in study.conditions)
    n_trials = n_cells * axes.replicates
    if n_trials > MAX_TRIALS:
        yield ("axes",), f"{n_trials:,} trials; at most {MAX_TRIALS:,} are allowed"
        return
    yield from (
        unfit := [one for condition in study.conditions if resolved for one in starts.misfits(study, condition)]
    )
    if unfit:
        return
    unsound: dict[tuple[Any, ...], str] = {}  # one problem a place: similar conditions have the same problem
    for condition in study.conditions:
        of_budgets = _budget_meaning(study, condition) if resolved else ()
        for place, problem in (*of_budgets, *_fitting_meaning(study, condition)):
            unsound.setdefault(place, problem)
    yield from unsound.items()
    if not resolved or claim is None or wrong or unsound:  # the claim's reach is known only for sound axes
        return
    if problem := primaries.out_of_reach(study, family, claim):
        yield ("primary",), problem


def _reward_meaning(study: Study) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Problems of the settings of arm `reward`, as (place, problem)."""
    if "reward" not in study.axes.arm:
        if study.reward != Reward() or any(variant.reward for variant in study.axes.variant.values()):
            yield ("reward",), "only arm 'reward' has these settings; add the arm to axes.arm, or leave them out"
        return
    for condition, (arm, of) in study.conditions.items():
        if arm != "reward":
            continue
        settings = study.settings(condition)
        answers, size = settings["training"].batch_size, settings["reward"].group_size
        if answers % size:
            where = (*_place(study, of), "reward") if study.variant_of(of).reward else ("reward",)
            problem = f"group_size {size}: training.batch_size {answers} counts answers, and is no multiple of it"
            yield where, problem


def _place(study: Study, label: str) -> tuple[Any, ...]:
    """The place of a variant (a name of `Study.labels`) in the file; without one, of `training`."""
    name = study.labels[label][0]
    return ("axes", "variant", name) if name else ("axes", "family") if label else ("training",)


def _fitting_meaning(study: Study, condition: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Problems of the placement of a condition's trials, as (place, problem)."""
    place, (_, variant) = study.fitting(condition), study.conditions[condition]
    where = (*_place(study, variant), "place") if study.variant_of(variant).place else ("place",)
    try:
        shares(study.settings(condition)["training"].batch_size, place.workers or 1, place.micro_batch)
    except ValueError as problem:
        yield where, str(problem)
    if place.compiled and place.zero_stage == 3:
        yield where, "compiled and zero_stage 3 exclude each other: its hooks inside a block break every graph"
    if place.offload and place.zero_stage == 0:
        yield where, "offload needs a zero_stage of 1, 2 or 3: ZeRO moves only the states that it partitions"


def _budget_meaning(study: Study, condition: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Problems of budgets in a condition, as (place, problem): too small, too large, alike in steps, or costly to evaluate."""
    which = f" ({condition})" if len(study.conditions) > 1 else ""
    seen: dict[tuple[str, int], float] = {}
    good = []
    fixed, stated = study.first_trunk(condition)
    own = study.budgets_of(condition)
    for i, flops in enumerate(study.axes.compute_flops):
        place = ("axes", "compute_flops", i)
        if flops not in own:
            continue
        try:
            trunk = sized(fixed, stated, flops)
            end = budget.steps_of(trunk, flops).end
        except ValueError as problem:  # too small a budget for any size, or for its size
            yield place, f"{problem}{which}"
            continue
        if end > MAX_STEPS:
            a_step = f"{budget.flops_per_step(trunk):.4g} FLOPs"
            yield place, f"{flops:g} FLOPs is {end:.3g} steps of {a_step}; at most {MAX_STEPS:g} can run{which}"
            continue
        if (same := seen.get((trunk.size, end), flops)) != flops:
            yield place, f"{flops:g} and {same:g} FLOPs are both {end} steps{which}; keep one"
        seen[trunk.size, end] = flops
        good.append((trunk, flops))
    warmup = study.settings(condition)["training"].warmup_steps
    for size in {size: None for size, _ in seen}:
        longest = max(end for of, end in seen if of == size)
        if warmup > longest:
            whose = f"the largest budget of size {size}" if size else "the largest budget"
            yield ("training", "warmup_steps"), f"{warmup} steps of warm-up given, {whose} has {longest} steps{which}"
            break
    for trunk, flops in good:
        price = budget.price(trunk, [flops])  # the trial alone, without a shared trunk
        share = price.eval_flops / price.train_flops
        if share > MAX_EVALUATION_SHARE:
            yield (
                ("evaluation",),
                f"evaluation would cost {share:.1%} of the training of a trial of {flops:g} FLOPs{which}, at most {MAX_EVALUATION_SHARE:.0%} is allowed; "
                f"{_cheaper(trunk, flops)}",
            )
            return


def _cheaper(trunk: TrunkSpec, flops: float) -> str:
    """Advice by which the evaluations of a trial cost no more than MAX_EVALUATION_SHARE: numbers that do, if one change will."""

    def does(**changes: Any) -> bool:
        evaluation = trunk.evaluation.model_copy(update=changes)
        price = budget.price(trunk.model_copy(update={"evaluation": evaluation}), [flops])
        return price.eval_flops <= MAX_EVALUATION_SHARE * price.train_flops

    for per_decade in range(trunk.evaluation.points_per_decade - 1, 0, -1):
        if does(points_per_decade=per_decade):
            return f"evaluation: {{points_per_decade: {per_decade}}} would do, and so would larger budgets"
    for k in range(3, -1, -1):
        if does(first_flops=flops * 10 ** (-k / 4), points_per_decade=1):
            first = f"{flops * 10 ** (-k / 4):.2g}".replace("e+", "e")
            return f"evaluation: {{points_per_decade: 1, first_flops: {first}}} would do, and so would larger budgets"
    return "raise the budget, or lower evaluation.n_sequences"


def _expected_meaning(
    study: Study, family: Family, i: int, expected: Expected
) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Problems of the i-th expected value, as (place, problem): a cell or quantity that the study does not have."""
    cell = expected.cell
    if expected.what == "crossing_steps" and not family.has_distances:
        yield ("expected", i, "what"), f"{_name(family)} has no relative distance to the memoriser"
    is_along = expected.what.startswith("along")
    if is_along and not study.axis:
        yield ("expected", i, "what"), f"'{expected.what}' needs an axis of a family parameter; add axes.family"
    if (why := primaries.without_answers(family, expected.what.removeprefix("along_"))) is not None:
        yield ("expected", i, "what"), why
    conditions = tuple(study.series if is_along else study.conditions)
    known = {"arm": conditions, "n_tasks": study.axes.n_tasks, "skill": tuple(family.skills)}
    own = study.budgets_of(*([cell.arm] if cell.arm in study.conditions else []))
    for key, problem in primaries.not_among(cell, known | {"compute_flops": own}):
        yield ("expected", i, "cell", key), problem


def _name(family: Family) -> str:
    return f"family '{cast(Any, family).name}'"


def closest(word: str, among: Any) -> list[str]:
    """The allowed word that is most similar to a misspelt one, as a list of one; empty if none is similar."""
    return difflib.get_close_matches(word, list(among), 1, cutoff=0.5)


def hint_of(word: str, among: Any) -> str:
    """The hint "; did you mean ...?" with the word from `closest`; "" if none is similar."""
    near = closest(word, among)
    return f"; did you mean '{near[0]}'?" if near else ""
