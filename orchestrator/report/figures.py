"""Which figures a study has: the plates of an arm, drawn from the findings. Computes no statistic itself.

A new figure is a function here that gives a Plate, and a line in `plates_of`; its place on the page is a section of templates/.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from orchestrator.analysis import expected
from orchestrator.analysis.findings import Findings
from orchestrator.formatting import decimal, number
from orchestrator.report.contest_figures import contest_plate
from orchestrator.report.curves import (
    Curves,
    Distances,
    Lines,
    Series,
    curve_panel,
    decays,
    distance_panel,
    dots_panel,
    key_of,
)
from orchestrator.report.judged_figures import scores_plate, to_skill_plate
from orchestrator.report.plates import LIST, RULE, Plate
from orchestrator.report.surfaces import (
    SURFACE_KEY,
    ability_band,
    grid,
    has_values,
    memory_band,
    of_arm,
    on_split,
    surface,
)
from orchestrator.report.walk import Walk, rows_of, stop_panel
from trainers.tasks import Family


def plates_of(curves: Curves, arm: str, walk: Walk | None) -> dict[str, Plate | None]:
    """Every plate of an arm by its place on the page; None where there is nothing to draw."""
    found = curves.found
    plates = {
        "surface": _headline_plate(found, arm),
        "walk": _walk_plate(curves, arm, walk) if walk else None,
        "skills": _skills_plate(found, arm),
        "memory": _memory_plate(found, arm),
        "curves": _curves_plate(curves, arm),
        "override": _override_plate(curves, arm),
        "override_compute": _override_compute_plate(curves, arm),
        "distance": _distance_plate(curves, arm),
        "scores": scores_plate(curves, arm),
        "to_skill": to_skill_plate(curves, arm),
        "generalist": contest_plate(curves, arm),
    }
    suffix = f"_{arm.replace(', ', '_')}" if len(found.study.lines) > 1 else ""
    return {name: replace(plate, name=name + suffix) if plate else None for name, plate in plates.items()}


# Surfaces -----------------------------------------------------------------------------------------------------------


def _headline_plate(found: Findings, arm: str) -> Plate:
    skill = found.study.shown_skills[0]
    split = found.skill_split(skill)
    bands = [b for b in (ability_band(found, arm, skill), memory_band(found, arm)) if b]
    about = (
        f"{found.study.id}{of_arm(found, arm)}. Ability on {on_split(split)}, mean of up to {found.study.axes.replicates} "
        "replicates: 0 knows nothing, 1 the general rule; colour clipped to 0 … 1. Bars: intervals of the "
        "boundaries; marks: where each replicate crosses. Triangles: beyond the grid."
    )
    return Plate(
        heading=f"{skill}: tasks × compute",
        about=about,
        key=tuple(SURFACE_KEY[b.colour] for b in bands),
        panels=(surface(found, arm, "ability", skill, split, bands),),
    )


def _skills_plate(found: Findings, arm: str) -> Plate | None:
    panels = []
    for skill in found.study.shown_skills[1:]:
        split = found.skill_split(skill)
        if has_values(grid(found, "ability", arm, skill, split)):
            band = ability_band(found, arm, skill)
            panel = surface(found, arm, "ability", skill, split, [band] if band else [], small=True)
            panels.append(replace(panel, note=f"on {on_split(split)}"))
    if not panels:
        return None
    about = (
        f"{found.study.id}{of_arm(found, arm)}. Ability, mean over replicates; colour clipped to 0 … 1. Hatched: "
        "ability is not defined there."
    )
    return Plate(
        heading="The other skills: tasks × compute",
        about=about,
        key=(SURFACE_KEY[RULE],),
        panels=tuple(panels),
    )


def _memory_plate(found: Findings, arm: str) -> Plate | None:
    mixture = cast(Family, found.study.family).mixture
    if not has_values(grid(found, "memory", arm, mixture, "seen", "pre_decay")):
        return None
    band = memory_band(found, arm)
    before = " before the decay" if decays(found) else ""
    about = (
        f"{found.study.id}{of_arm(found, arm)}. Memory of the training tasks{before}, mean over replicates: "
        "0 no better than the general rule, 1 perfect memory; colour clipped to 0 … 1. Hatched: not defined there."
    )
    return Plate(
        heading="Memory: tasks × compute",
        about=about,
        key=(SURFACE_KEY[LIST],) if band else (),
        panels=(surface(found, arm, "memory", mixture, "seen", [band] if band else [], small=True),),
    )


# Along compute ------------------------------------------------------------------------------------------------------


def _walk_plate(curves: Curves, arm: str, walk: Walk) -> Plate | None:
    found = curves.found
    at = [k for k, stop in enumerate(walk.stops) if stop.budget is not None]
    if not at:
        return None
    when = ", ability after the decay and memory before it" if decays(found) else ""
    return Plate(
        heading=f"{found.study.shown_skills[0]}: ability and memory at every budget",
        about=f"{found.study.id}{of_arm(found, arm)}. Against the number of training tasks{when}. A mark is a replicate, a bar "
        "their mean; a triangle at the edge lies beyond it.",
        key=key_of(walk.series),
        panels=tuple(stop_panel(curves, walk, k) for k in at),
        rows=rows_of(curves, walk),
    )


def _curves_plate(curves: Curves, arm: str) -> Plate | None:
    found = curves.found
    skill = found.study.shown_skills[0]
    split = found.skill_split(skill)
    series = [Series("accuracy", skill, split, RULE, False, on_split(split))]
    if split != "seen":
        series.insert(0, Series("accuracy", skill, "seen", LIST, True, on_split("seen")))
    if not any(group[:2] == (arm, skill) for group in found.results.groups()):
        return None
    panels = []
    for n_tasks in sorted(found.study.axes.n_tasks):
        references = _references(found, arm, skill, split, n_tasks)
        known = [v for c in found.study.budgets for v in found.values("accuracy", arm, skill, split, n_tasks, c)]
        lines = ", ".join(f"{name} {decimal(value)}" for name, value in references)
        best = max((v for v in known if v is not None), default=None)
        alt = f"{skill} accuracy against compute, {number(n_tasks)} tasks; best {decimal(best)}; {lines}."
        panels.append(curve_panel(curves, arm, n_tasks, series, references, alt))
    return Plate(
        heading=f"{skill}: accuracy along training",
        about=f"{found.study.id}{of_arm(found, arm)}. Every {'budget and ' if found.study.grows(arm) else ''}replicate is a "
        "line; a mark is the end of a budget"
        f"{', after its decay' if decays(found) else ''}. Reference values are those on {on_split(split)}.",
        key=key_of(series[::-1]),
        panels=tuple(panels),
    )


def _references(found: Findings, arm: str, skill: str, split: str, n_tasks: int) -> Lines:
    """Generaliser, memoriser and chance on the items of a skill: (name, accuracy), as far as they exist."""
    named = [
        ("generaliser", found.reference_accuracy("generalizer", arm, skill, split, n_tasks)),
        ("memoriser", found.reference_accuracy("memorizer", arm, skill, split, n_tasks)),
        ("chance", cast(Family, found.study.family).chance(skill)),
    ]
    return [(name, value) for name, value in named if value is not None]


# Context against memory ---------------------------------------------------------------------------------------------

_OVERRIDE = (
    Series("probability", "override", "seen", RULE, False, "the context's answer"),
    Series("probability", "override_memory", "seen", LIST, True, "the memorised answer"),
)


def _override_plate(curves: Curves, arm: str) -> Plate | None:
    """P(context's answer) beside P(memorised answer) at the largest budget that has them."""
    found = curves.found
    flops = override_budget(found, arm)
    if flops is None:
        return None
    levels = sorted(found.study.axes.n_tasks)
    both = [(n, [found.mean("probability", arm, s.skill, "seen", n, flops) for s in _OVERRIDE]) for n in levels]
    words = "; ".join(f"{number(n)} tasks {decimal(a)} and {decimal(b)}" for n, (a, b) in both)
    alt = f"Probability of the context's answer and of the memorised answer at {number(flops)} FLOPs: {words}."
    return Plate(
        heading="Does the context win, or the memory?",
        about=f"{found.study.id}{of_arm(found, arm)}, at {number(flops)} FLOPs. Two answers of a training task are "
        "swapped in the context. A mark is a replicate, a bar their mean.",
        key=key_of(_OVERRIDE),
        panels=(dots_panel(curves, arm, flops, _OVERRIDE, _chance(found), alt),),
    )


def _chance(found: Findings) -> Lines:
    chance = cast(Family, found.study.family).chance("override")
    return [("chance", chance)] if chance is not None else []


def override_budget(found: Findings, arm: str) -> float | None:
    """The largest budget at which both sides of the override were measured."""
    for flops in reversed(found.study.budgets):
        cells = [
            [found.mean("probability", arm, s.skill, "seen", n, flops) for s in _OVERRIDE]
            for n in found.study.axes.n_tasks
        ]
        if any(None not in pair for pair in cells):
            return flops
    return None


def _override_compute_plate(curves: Curves, arm: str) -> Plate | None:
    found = curves.found
    if override_budget(found, arm) is None:
        return None
    panels = []
    for n in sorted(found.study.axes.n_tasks):
        alt = f"The same two probabilities against compute, {number(n)} tasks."
        panels.append(curve_panel(curves, arm, n, _OVERRIDE, _chance(found), alt))
    return Plate(
        heading="Context against memory along training",
        about=f"{found.study.id}{of_arm(found, arm)}. Probability of the two answers; every replicate is a line, a mark "
        "is the end of a budget.",
        key=key_of(_OVERRIDE),
        panels=tuple(panels),
    )


# The relative distance ----------------------------------------------------------------------------------------------


def _distance_plate(curves: Curves, arm: str) -> Plate | None:
    """The relative distance along training, for families that offer it."""
    found = curves.found
    mixture = cast(Family, found.study.family).mixture
    replicates = range(found.study.axes.replicates)
    tracks = {
        n: [found.results.curve("d_rel", arm, mixture, "seen", n, r) for r in replicates]
        for n in sorted(found.study.axes.n_tasks)
    }
    steps = [s for many in tracks.values() for one in many for s in one.steps.tolist() if s > 0]
    values = [v for many in tracks.values() for one in many for v in one.values.tolist()]
    if not steps:
        return None
    span = (min(steps) / 1.2, max(steps) * 1.2)
    heights = (max(min(*values, -0.05), -0.5), min(max(*values, 1.05), 1.5)) if len(values) > 1 else (-0.05, 1.05)
    panels = []
    for n, many in tracks.items():
        shown = Distances(arm, n, many, [expected.crossing(found.results, arm, n, r) for r in replicates])
        panels.append(distance_panel(curves, shown, span, heights))
    return Plate(
        heading="From counting to remembering",
        about=f"{found.study.id}{of_arm(found, arm)}. Relative distance along training: 0 predicts like the generaliser, "
        "1 like the memoriser. Every replicate is a line; a diamond is its crossing of one half.",
        panels=tuple(panels),
    )
