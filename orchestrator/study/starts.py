"""Refusals of trials that begin with the weights of others (`start_from`), and of variants that name their arms.

A donor must be a trial of the study, no trial may depend on itself, and the weights must fit. May not import Ray, MLflow or torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from orchestrator.formatting import number
from orchestrator.study.schema import StartFrom, Study
from trainers import budget
from trainers.spec import TrunkSpec

Problem = tuple[tuple[Any, ...], str]
"""(place in the file, problem in words)."""

MAX_CHAIN = 10
"""Most starts in a row: a trial that begins with one that begins with one, and so on. More are taken for a slip."""


def problems(study: Study) -> Iterator[Problem]:
    """Problems of arms, numbers of tasks and donors that do not depend on sizes. Only without any may trunks be made."""
    axes = study.axes
    for name, variant in axes.variant.items():
        for i, arm in enumerate(variant.arms or ()):
            where: tuple[Any, ...] = ("axes", "variant", name, "arms", i)
            if arm in (variant.arms or ())[:i]:
                yield where, f"'{arm}' is given twice"
            elif arm not in axes.arm:
                yield where, f"no arm of this study{_near(arm, axes.arm)}; it has {', '.join(axes.arm)}"
        for i, n in enumerate(variant.n_tasks or ()):
            if n not in axes.n_tasks:
                listed = ", ".join(number(each) for each in axes.n_tasks)
                yield ("axes", "variant", name, "n_tasks", i), f"{number(n)} is not in axes.n_tasks, which has {listed}"
        for i, value in enumerate(variant.values or ()):
            where, values = ("axes", "variant", name, "values", i), sorted(axes.family.get(study.axis, ()))
            if not values:
                yield where, "it chooses among the values of axes.family, which the study lacks"
            elif value in (variant.values or ())[:i]:
                yield where, f"{value:g} is given twice"
            elif value not in values:
                listed = ", ".join(f"{each:g}" for each in values)
                yield where, f"{value:g} is not in axes.family.{study.axis}, which has {listed}"
    if any(of.values and not {*of.values} & {*axes.family.get(study.axis, ())} for of in axes.variant.values()):
        return
    if any(of.n_tasks and not {*of.n_tasks} & {*axes.n_tasks} for of in axes.variant.values()):
        return
    there = {arm for arm, _ in study.conditions.values()}
    for i, arm in enumerate(axes.arm):
        if arm not in there:
            yield ("axes", "arm", i), f"'{arm}' is in no variant: each has 'arms' without it; add it to one"
    if study.start_from is not None and "reward" not in axes.arm:
        yield ("start_from",), "it is for arm 'reward', which the study lacks; for other arms state it in a variant"
    for condition, (arm, label) in study.conditions.items():
        if (start := study.start_of(condition)) is not None:
            yield from _of_condition(study, condition, start)
        elif arm == "reward" and study.settings(condition)["reward"].algorithm == "star":
            name = study.labels[label][0]
            where = ("axes", "variant", name, "reward") if study.variant_of(label).reward else ("reward",)
            yield (*where, "algorithm"), "star samples from the model that a trial starts from; give start_from"


def place_of(study: Study, condition: str) -> tuple[Any, ...]:
    """The place of the file that states the start of a condition."""
    label = study.conditions[condition][1]
    of_variant = study.variant_of(label).start_from is not None
    return ("axes", "variant", study.labels[label][0], "start_from") if of_variant else ("start_from",)


def _of_condition(study: Study, condition: str, start: StartFrom) -> Iterator[Problem]:
    where, axes, labels = place_of(study, condition), study.axes, study.labels
    own, value = labels[study.conditions[condition][1]]
    if start.arm not in axes.arm:
        yield (*where, "arm"), f"no arm of this study{_near(start.arm, axes.arm)}; it has {', '.join(axes.arm)}"
        return
    there = [labels[of][0] for arm, of in study.conditions.values() if arm == start.arm and labels[of][1] == value]
    stated = (axes.variant[own].start_from if where[0] == "axes" else study.start_from) or start
    if start.variant not in labels or labels[start.variant][0] not in there:
        runs = f"it runs in {', '.join(there)}" if there and there != [""] else "the study has no variants"
        yield (*where, "variant"), f"arm '{start.arm}' does not run in '{start.variant}'; {runs}"
        return
    if stated.variant is None and own not in there and len(there) > 1:
        yield where, f"arm '{start.arm}' runs in several variants; give 'variant', one of {', '.join(there)}"
        return
    donor = study.condition_of(start.arm, start.variant or "")
    levels, asked = study.levels_of(donor), study.levels_of(condition) if start.n_tasks is None else [start.n_tasks]
    if lacking := [n for n in asked if n not in levels]:
        listed = ", ".join(number(n) for n in levels)
        yield (*where, "n_tasks"), f"the donor '{donor}' does not train {number(lacking[0])} tasks; it has {listed}"
    chain = [condition]
    while (of := study.start_of(chain[-1])) is not None:
        chain.append(study.condition_of(of.arm, of.variant or ""))
        if chain[-1] not in study.conditions:
            return  # reported for that condition
        if chain[-1] in chain[:-1]:
            circle = " from ".join(f"'{name}'" for name in chain[chain.index(chain[-1]) :])
            yield (
                where,
                f"a circle: {circle}; give another arm or variant, or 'arms' of the variant without the donor's",
            )
            return
        if len(chain) > MAX_CHAIN + 1:
            yield where, f"a chain of more than {MAX_CHAIN} starts; begin with an earlier trial"
            return
    if start.compute_flops not in (budgets := study.budgets_of(chain[1])):
        listed = ", ".join(number(c) for c in budgets) or "none"
        yield (*where, "compute_flops"), f"{number(start.compute_flops)} is no budget of '{chain[1]}'; it has {listed}"
    elif not study.budgets_of(condition):
        given, largest = number(start.compute_flops), number(study.budgets[-1])
        yield (
            (*where, "compute_flops"),
            f"no budget of the study is above {given}, so nothing could begin there; the largest is {largest}; give a "
            "smaller one, or add budgets",
        )


def misfits(study: Study, condition: str) -> Iterator[Problem]:
    """Problems of a condition whose donor's weights do not fit its models, or whose donor cannot be trained."""
    start = study.start_of(condition)
    if start is None:
        return
    donors = study.condition_of(start.arm, start.variant or "")
    try:
        donor = study.trunk_of(donors, start.compute_flops)
        budget.steps_of(donor, start.compute_flops)
        sizes = study.sizes(condition)
    except ValueError as problem:
        yield (*place_of(study, condition), "compute_flops"), str(problem)
        return
    for trunk, _ in sizes:
        if differ := _differences(donor, trunk):
            which = f"'{condition}'{f' {trunk.size}' if trunk.size else ''}"
            yield place_of(study, condition), f"the weights of '{donors}' do not fit {which}: {'; '.join(differ)}"
            return


def _differences(donor: TrunkSpec, trunk: TrunkSpec) -> list[str]:
    """What keeps a trunk from beginning with a donor's weights, as `model.d_model: 64 -> 128`."""
    mine, theirs = budget.shape_of(trunk), budget.shape_of(donor)
    kept = {"init_gain", "embed_std"}  # of initial weights alone
    pairs = {
        f"model.{name}": (getattr(theirs.model, name), getattr(mine.model, name))
        for name in type(mine.model).model_fields.keys() - kept
    }
    pairs["tokenizer"] = (getattr(donor.family, "text_tokens", None), getattr(trunk.family, "text_tokens", None))
    pairs |= {"vocabulary": (theirs.vocab_size, mine.vocab_size), "numbers per token": (theirs.numbers, mine.numbers)}
    if mine.model.positions == "learned" and theirs.seq_len < mine.seq_len:  # of more positions the first are taken
        pairs["learned positions"] = (theirs.seq_len, mine.seq_len)
    return [f"{name}: {a} -> {b}" for name, (a, b) in sorted(pairs.items()) if a != b]


def _near(word: str, among: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, among, 1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
