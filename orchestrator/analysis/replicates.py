"""The noise of replicates, and how many have the skill at its onset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orchestrator import stats
from orchestrator.analysis.results import Results, split_of, surface
from orchestrator.stats import replicates


class NoiseRow(NamedTuple):
    """Noise of one skill's replicates at the largest budget."""

    arm: str
    skill: str
    n_tasks: tuple[int, ...]
    """The noisiest cell, or several that are not distinguishable from it and are pooled. Only cells with at least half of the largest mean."""
    noise: replicates.Noise
    """Of `replicates.noisiest`."""


def noise_table(results: Results, skills: tuple[str, ...]) -> list[NoiseRow]:
    """The noisiest cells of every skill's accuracy, at the largest budget that has any."""
    rows = []
    for arm in results.study.lines:
        for skill in skills:
            cube = results.cube("accuracy", arm, skill, split_of(results, skill))
            for j in reversed(range(len(results.budgets))):
                row = _noisiest(results, arm, skill, cube[:, j])
                if row is not None:
                    rows.append(row)
                    break
    return rows


def _noisiest(results: Results, arm: str, skill: str, lines: np.ndarray) -> NoiseRow | None:
    measured = [(n, line) for n, line in zip(results.levels, lines, strict=True) if not np.isnan(line).all()]
    top = max((float(np.nanmean(line)) for _, line in measured), default=0.0)
    comparable = [(n, line.tolist()) for n, line in measured if np.nanmean(line) >= top / 2]
    found = replicates.noisiest([line for _, line in comparable])
    if found is None:
        return None
    return NoiseRow(arm, skill, tuple(comparable[i][0] for i in found.cells), found.noise)


class Midpoint(NamedTuple):
    """The cell with its mean ability nearest one half."""

    arm: str
    n_tasks: int
    compute_flops: float
    mean: float
    values: tuple[float, ...]
    success: replicates.Success
    """Its interval is corrected for the choice of the cell."""
    chosen_from: int
    """Number of cells with a value."""


NEAR = 0.35
"""Largest distance of the mean from one half. Assumed: further off, every replicate has the skill, or none."""


def midpoint(results: Results, arm: str, skill: str) -> Midpoint | None:
    """Replicates at the onset of the headline skill. None if no cell is near one half, or no replicate reaches it.

    Lost replicates count as without the skill.
    """
    cube, lost = surface(results, "ability", arm, skill), results.ended(arm, ("diverged", "failed"))
    cells = cube.reshape(-1, results.n_replicates)
    found = replicates.nearest_success(cells, stats.HALF, lost.reshape(cells.shape))
    if found is None or not (cells >= stats.HALF).any():
        return None
    place, made = found
    values = cells[place][~np.isnan(cells[place])]
    mean = float(values.mean())
    if abs(mean - stats.HALF) > NEAR:
        return None
    i, j = np.unravel_index(place, cube.shape[:2])
    looked = int((~np.isnan(cells).all(axis=1)).sum())
    return Midpoint(arm, results.levels[i], results.budgets[j], mean, tuple(values.tolist()), made, looked)
