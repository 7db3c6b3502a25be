"""The walk along compute: ability and memory against the number of tasks, at one compute after another.

The page's script draws it at the stop where its slider stands; on paper, without script and as a file it is a plate of the
same figure at every budget. Both are read off the same Walk.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes

from orchestrator.report.curves import Curves, Series, beside, decays, draw_dots
from orchestrator.report.plates import FAINT, LIST, RULE, TINT, Margins, Panel, Row, Sheet, counted, decimal
from orchestrator.report.surfaces import on_split
from orchestrator.results import Track
from orchestrator.words import number
from trainers.tasks import Family

LOWEST, HIGHEST = -0.55, 1.3
"""The figure shows no more than this, for what matters lies between 0 and 1; beyond it a triangle stands at the edge."""


class Stop(NamedTuple):
    """Where the walk stops: an evaluation on the grid along the trunk, or the end of a budget."""

    flops: float
    """As trained; a budget's end is within 1 % of the budget."""
    step: int
    budget: float | None

    @property
    def words(self) -> str:
        """Its compute as people write it."""
        return number(self.flops if self.budget is None else self.budget)


class Walk(NamedTuple):
    """What is known at every stop, (stops, n_tasks, replicates) by ascending axes; NaN is missing or not defined.

    At a budget's end ability is that after the decay and memory that before it, as on the surfaces.
    """

    arm: str
    stops: tuple[Stop, ...]
    series: tuple[Series, Series]
    """Ability, memory."""
    values: tuple[np.ndarray, np.ndarray]
    low: float
    high: float
    """Limits of the vertical axis."""


def walk_of(curves: Curves, arm: str) -> Walk | None:
    """An arm's walk; None where nothing that it shows is defined yet."""
    results, skill = curves.found.results, curves.found.study.shown_skills[0]
    split, mixture = curves.found.skill_split(skill), cast(Family, curves.found.study.family).mixture
    series = (
        Series("ability", skill, split, RULE, False, f"ability on {on_split(split)}"),
        Series("memory", mixture, "seen", LIST, True, "memory of the training tasks"),
    )
    tracks = [
        [
            [results.track(one.measure, arm, one.skill, one.split, n, r) for r in range(results.n_replicates)]
            for n in results.levels
        ]
        for one in series
    ]
    stops = _stops(curves, [track for of_series in tracks for line in of_series for track in line])
    cubes = results.cube("ability", arm, skill, split), results.cube("memory", arm, mixture, "seen", "pre_decay")
    filled = [_filled(stops, *pair, results.budgets) for pair in zip(tracks, cubes, strict=True)]
    known = np.concatenate([values[~np.isnan(values)] for values in filled])
    if not len(known):
        return None
    low, high = min(-0.06, float(known.min()) - 0.05), max(1.06, float(known.max()) + 0.05)
    return Walk(arm, stops, series, (filled[0], filled[1]), max(low, LOWEST), min(high, HIGHEST))


def _stops(curves: Curves, tracks: list[Track]) -> tuple[Stop, ...]:
    """Every look on the common grid and the end of every budget, by compute."""
    trunk: dict[int, float] = {}
    ends: dict[float, Stop] = {}
    for track in tracks:
        on_trunk, at_end = track.phases == "trunk", track.phases == "final"
        trunk |= dict(zip(track.steps[on_trunk].astype(int).tolist(), track.flops[on_trunk].tolist(), strict=True))
        for k in np.flatnonzero(at_end):
            budget = float(track.budgets[k])
            ends[budget] = Stop(float(track.flops[k]), int(track.steps[k]), budget)
    if not decays(curves.found):  # then a budget's end is a look along the trunk, and may lie on its grid
        for end in ends.values():
            trunk.pop(end.step, None)
    stops = [*(Stop(flops, step, None) for step, flops in trunk.items()), *ends.values()]
    return tuple(sorted(stops, key=lambda stop: (stop.flops, stop.budget is not None)))


def _filled(stops: tuple[Stop, ...], tracks: list[list[Track]], cube: np.ndarray, budgets: list[float]) -> np.ndarray:
    """Values at every stop: budgets' ends from the cube of the surfaces, the others from the tracks."""
    values = np.full((len(stops), *cube[:, 0].shape), np.nan)
    place = {stop.step: k for k, stop in enumerate(stops) if stop.budget is None}
    for k, stop in enumerate(stops):
        if stop.budget is not None:
            values[k] = cube[:, budgets.index(stop.budget)]
    for i, line in enumerate(tracks):
        for r, track in enumerate(line):
            for j in np.flatnonzero(track.phases == "trunk"):
                if int(track.steps[j]) in place:
                    values[place[int(track.steps[j])], i, r] = track.values[j]
    return values


def rows_of(curves: Curves, walk: Walk) -> tuple[Row, ...]:
    """Every value at every stop, for the CSV."""
    rows: list[Row] = []
    for series, values in zip(walk.series, walk.values, strict=True):
        for k, i, r in zip(*(part.tolist() for part in np.nonzero(~np.isnan(values))), strict=True):
            stop, n_tasks = walk.stops[k], curves.found.results.levels[i]
            ended = stop.budget is not None
            before = ended and decays(curves.found) and series.measure == "memory"
            trial, status = curves.trials.at(walk.arm, n_tasks, stop.budget, r) if stop.budget is not None else ("", "")
            rows.append(
                {
                    "panel": f"{stop.words} FLOPs",
                    "series": series.name,
                    "measure": series.measure,
                    "unit": "ratio",
                    "skill": series.skill,
                    "split": series.split,
                    "trial": trial,
                    "arm": walk.arm,
                    "n_tasks": n_tasks,
                    "compute_flops": stop.budget,
                    "replicate": r,
                    "status": status,
                    "phase": "pre_decay" if before else "final" if ended else "trunk",
                    "step": None if before else stop.step,
                    "flops": None if before else stop.flops,
                    "value": float(values[k, i, r]),
                }
            )
    return tuple(rows)


# The static figure --------------------------------------------------------------------------------------------------


def stop_panel(curves: Curves, walk: Walk, k: int) -> Panel:
    """The figure at one stop. Its numbers are in `rows_of`."""
    levels, stop = curves.found.results.levels, walk.stops[k]
    few = len(levels) <= 8

    def draw(sheet: Sheet) -> None:
        ax = sheet.axes
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_ylim(walk.low, walk.high)
        ticks = [(at, words) for at, words in ((-0.5, "−½"), (0, "0"), (0.5, "½"), (1, "1")) if at >= walk.low]
        ax.set_yticks([at for at, _ in ticks], [words for _, words in ticks], fontsize=9.5)
        named = [number(n) if few or i % 2 == 0 else "" for i, n in enumerate(levels)]
        ax.set_xticks(range(len(levels)), named, fontsize=9)
        ax.tick_params(axis="x", length=0)
        ax.set_xlabel("number of training tasks", fontsize=9, labelpad=2)
        for value in (0, 0.5, 1):
            ax.axhline(value, color="#8a8a8a" if value == 0.5 else FAINT, lw=0.9, zorder=1)
        for series, values, side in zip(walk.series, walk.values, (-0.2, 0.2), strict=True):
            at = [i + side for i in range(len(levels))]
            ax.plot(at, means(values[k]), color=TINT[series.colour], lw=1.3, zorder=2)
            for x, cell, mean in zip(at, values[k], means(values[k]), strict=True):
                inside = (cell >= walk.low) & (cell <= walk.high)
                shown = [float(v) if ok else None for v, ok in zip(cell, inside, strict=True)]
                draw_dots(ax, x, shown, mean if walk.low <= mean <= walk.high else None, series, 3.4)
                _draw_beyond(ax, x, cell, walk, series.colour)

    said = [
        f"{counted(n, 'task')} " + " and ".join(decimal(float(means(values[k])[i])) for values in walk.values)
        for i, n in enumerate(levels)
    ]
    return Panel(
        title=f"{stop.words} FLOPs",
        note=f"{number(stop.step)} steps",
        alt=f"Mean ability and memory at {stop.words} FLOPs: {'; '.join(said)}.",
        width=(38.0 if few else 27.0) * len(levels),
        height=150,
        margins=Margins(24, 8, 34, 8),
        draw=draw,
    )


def means(values: np.ndarray) -> np.ndarray:
    """(n_tasks, replicates) -> (n_tasks,): mean over those that have a value; NaN where none has."""
    known = ~np.isnan(values)
    n = known.sum(-1)
    return np.where(n > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(n, 1), np.nan)


def _draw_beyond(ax: Axes, x: float, cell: np.ndarray, walk: Walk, colour: str) -> None:
    """Open triangles at the edge for what lies beyond it."""
    for mark, beyond, y in (("v", cell < walk.low, walk.low), ("^", cell > walk.high, walk.high)):
        at = [x + beside(int(r), len(cell)) for r in np.flatnonzero(beyond)]
        ax.plot(
            at, [y] * len(at), ls="", marker=mark, ms=3.6, mfc="white", color=colour, mew=0.9, clip_on=False, zorder=5
        )
