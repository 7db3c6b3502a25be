"""The walk along compute: ability and memory against the number of tasks, at one compute after another.

The page's script draws it at the stop where its slider stands; on paper, without script and as a file it is a plate of the
same figure at every budget. Both are read off the same Walk.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import numpy as np

from orchestrator.analysis.results import Track
from orchestrator.formatting import counted, decimal, number
from orchestrator.report.curves import Curves, Series, beside, decays, draw_dots, halves, join, means, tasks_axis
from orchestrator.report.plates import LIST, RULE, TINT, Margins, Panel, Row, Sheet
from orchestrator.report.surfaces import on_split
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
    if curves.found.study.grows(arm):  # what is on the way to one budget says nothing of another's model
        tracks = [[[_ends(track) for track in line] for line in of_series] for of_series in tracks]
    stops = _stops(curves, [track for of_series in tracks for line in of_series for track in line])
    cubes = results.cube("ability", arm, skill, split), results.cube("memory", arm, mixture, "seen", "pre_decay")
    filled = [_filled(stops, *pair, results.budgets) for pair in zip(tracks, cubes, strict=True)]
    known = np.concatenate([values[~np.isnan(values)] for values in filled])
    if not len(known):
        return None
    low, high = min(-0.06, float(known.min()) - 0.05), max(1.06, float(known.max()) + 0.05)
    return Walk(arm, stops, series, (filled[0], filled[1]), max(low, LOWEST), min(high, HIGHEST))


def _ends(track: Track) -> Track:
    final = track.phases == "final"
    return Track(*(part[final] for part in track))


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
            along = {
                "panel": f"{stop.words} FLOPs",
                "phase": "pre_decay" if before else "final" if ended else "trunk",
                "step": None if before else stop.step,
                "flops": None if before else stop.flops,
            }
            rows.append(curves.row(series, walk.arm, n_tasks, r, float(values[k, i, r]), stop.budget, **along))
    return tuple(rows)


# The static figure --------------------------------------------------------------------------------------------------


def stop_panel(curves: Curves, walk: Walk, k: int) -> Panel:
    """The figure at one stop. Its numbers are in `rows_of`."""
    levels, stop = curves.found.results.levels, walk.stops[k]
    at_stop = [means(values[k]).tolist() for values in walk.values]
    said = [
        f"{counted(n, 'task')} " + " and ".join(decimal(mean) for mean in pair)
        for n, *pair in zip(levels, *at_stop, strict=True)
    ]
    return Panel(
        title=f"{stop.words} FLOPs",
        note=counted(stop.step, "step"),
        alt=f"Mean ability and memory at {stop.words} FLOPs: {'; '.join(said)}.",
        width=(38.0 if len(levels) <= 8 else 27.0) * len(levels),
        height=150,
        margins=Margins(24, 8, 34, 8),
        draw=partial(_draw_stop, levels, walk, k),
    )


def _draw_stop(levels: list[int], walk: Walk, k: int, sheet: Sheet) -> None:
    """The panel's axes, means and dots; open triangles at the edge for what lies beyond it."""
    ax = sheet.axes
    tasks_axis(ax, levels)
    ax.set_ylim(walk.low, walk.high)
    halves(ax)
    for series, values, side in zip(walk.series, walk.values, (-0.2, 0.2), strict=True):
        join(ax, levels, means(values[k]), side, color=TINT[series.colour], lw=1.3, zorder=2)
        draw_dots(sheet, values[k], side, series, 3.4, (walk.low, walk.high))
        for mark, beyond, edge in (("v", values[k] < walk.low, walk.low), ("^", values[k] > walk.high, walk.high)):
            columns, replicates = np.nonzero(beyond)
            x = columns + side + beside(replicates, values.shape[2])
            style = {"marker": mark, "ms": 3.6, "mfc": "white", "color": series.colour, "mew": 0.9}
            sheet.marks(x, np.full(len(x), edge), **style, clip_on=False, zorder=5)
