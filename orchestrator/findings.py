"""What a study found: its tables handed to the estimators of stats/, judged, and put into sentences.

Between results.py (tables as arrays) and report.py (figures). Knows the study; knows no figure, no MLflow, no Ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.results import Phase, Results, Row
from orchestrator.study import Expected, Study
from orchestrator.words import ability_words, memory_words, number, said_once
from trainers.tasks import Family


class Verdict(NamedTuple):
    """An expected value beside what was measured: one value a replicate, their interval, and whether they agree."""

    expected: Expected
    values: tuple[float, ...]
    measured: stats.Interval | None
    verdict: str
    censored: int
    """Replicates in which the quantity was not reached or is not defined."""


class Costs(NamedTuple):
    """What a study has cost so far."""

    train_flops: float
    """Training FLOPs actually run."""
    eval_flops: float
    saved_flops: float
    """What separate runs of every trial would have cost more."""
    slot_seconds: float
    """Training and evaluating, added up over slots."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything the report and MLflow say about a study."""

    study: Study
    results: Results
    k_ability: dict[tuple[str, str], list[tuple[float, stats.Boundary]]] = field(default_factory=dict)
    """(arm, skill) -> per budget: where the skill appears, on held-out tasks, after the decay."""
    k_memory: dict[str, list[tuple[float, stats.Boundary]]] = field(default_factory=dict)
    """arm -> per budget: up to where the training tasks are memorised, before the decay."""
    verdicts: tuple[Verdict, ...] = ()
    answer: str = ""

    @property
    def runs(self) -> list[Row]:
        """One row a trial, ended or not."""
        return self.results.runs

    def skill_split(self, skill: str) -> str:
        """The split a skill is judged on: held-out tasks, or seen ones for skills that only exist there."""
        splits = {split for _, name, split in self.results.groups() if name == skill}
        return "seen" if splits == {"seen"} else "held_out"

    def values(
        self, measure: str, arm: str, skill: str, split: str, n_tasks: int, flops: float, phase: Phase = "final"
    ) -> list[float | None]:
        """One value per replicate at one cell; None where it is missing or not defined."""
        place = self.results.levels.index(n_tasks), self.results.budgets.index(flops)
        return _known_or_none(self.results.cube(measure, arm, skill, split, phase)[place])

    def mean(
        self, measure: str, arm: str, skill: str, split: str, n_tasks: int, flops: float, phase: Phase = "final"
    ) -> float | None:
        """Mean over the replicates that have the value."""
        known = [v for v in self.values(measure, arm, skill, split, n_tasks, flops, phase) if v is not None]
        return sum(known) / len(known) if known else None

    def reference_accuracy(self, reference: str, arm: str, skill: str, split: str, n_tasks: int) -> float | None:
        """How often a reference is right on the items of a skill: mean over replicates, as each has its own tasks."""
        cube = self.results.cube(f"{reference}_accuracy", arm, skill, split)[self.results.levels.index(n_tasks)]
        known = [column[~np.isnan(column)][0] for column in cube.T if not np.isnan(column).all()]
        return float(np.mean(known)) if known else None  # a replicate's items are the same at every evaluation

    def ended(self, arm: str) -> bool:
        """Has any trial of an arm come to the end of its budget with something to show?"""
        return any(self.results.present(*group).any() for group in self.results.groups() if group[0] == arm)

    def reached(self, arm: str, flops: float) -> bool:
        """Has any trial of an arm come to the end of this budget?"""
        place = self.results.budgets.index(flops)
        return any(self.results.present(*g)[:, place].any() for g in self.results.groups() if g[0] == arm)

    def costs(self) -> Costs:
        """What the trials have cost together, each shared trunk charged once."""

        def total(key: str) -> float:
            return float(sum(r[key] for r in self.runs if r.get(key) is not None))

        own, run = total("flops_own"), total("flops_run")
        seconds = total("train_seconds") + total("eval_seconds")
        return Costs(run, total("eval_flops"), own - run, seconds)

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """The boundaries as series for MLflow's parent run; the step counts the budgets from the smallest."""
        series: dict[str, list[tuple[int, float]]] = {}
        named = [(f"k_ability/{arm}/{skill}", bounds) for (arm, skill), bounds in self.k_ability.items()]
        named += [(f"k_memory/{arm}", bounds) for arm, bounds in self.k_memory.items()]
        for name, bounds in named:
            for i, (_, boundary) in enumerate(bounds):
                for end, value in (("low", boundary.low), ("high", boundary.high)):
                    if value is not None and boundary.verdict == "crossed":
                        series.setdefault(f"{name}/{end}", []).append((i, value))
        for status in ("done", "diverged", "failed", "open"):
            series[f"trials/{status}"] = [(0, float(sum(r["status"] == status for r in self.runs)))]
        return series


def find(study: Study, results: Any, runs: Any) -> Findings:
    """Findings of a study from its two tables (see record.py). Never fails on what is missing."""
    return judge(Results.of_tables(study, results, runs))


def read(folder: Path, study: Study) -> Findings:
    """Findings from the Parquet files of a study's folder. Raises OSError when there are none yet."""
    return judge(Results.read(folder, study))


def judge(results: Results) -> Findings:
    """Hand the tables to the estimators and put together what they say."""
    study = results.study
    found = Findings(study=study, results=results)
    arms, skills = study.axes.arm, study.shown_skills
    found = replace(
        found,
        k_ability={(arm, skill): _boundaries(found, "ability", arm, skill) for arm in arms for skill in skills},
        k_memory={arm: _boundaries(found, "memory", arm) for arm in arms},
        verdicts=tuple(_verdict(found, expected) for expected in study.expected),
    )
    return replace(found, answer=_answer(found))


def _boundaries(
    found: Findings, measure: Literal["ability", "memory"], arm: str, skill: str = ""
) -> list[tuple[float, stats.Boundary]]:
    """Where ability appears, or memory ends, along the numbers of tasks: one boundary a budget."""
    study = found.study
    if measure == "ability":
        cube = found.results.cube("ability", arm, skill, found.skill_split(skill), "final")
    else:
        cube = found.results.cube("memory", arm, cast(Family, study.family).mixture, "seen", "pre_decay")
    levels = [float(n) for n in found.results.levels]
    direction: Literal["rising", "falling"] = "rising" if measure == "ability" else "falling"
    return [
        (flops, stats.boundary(levels, [_known_or_none(line) for line in cube[:, j].T], direction))
        for j, flops in enumerate(study.budgets)
    ]


def _known_or_none(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]


def _verdict(found: Findings, expected: Expected) -> Verdict:
    study, cell = found.study, expected.cell
    arm, flops = cell.arm or study.axes.arm[0], cell.compute_flops or study.budgets[-1]
    skill, mixture = cell.skill or study.shown_skills[0], cast(Family, study.family).mixture
    values: list[float | None]
    if expected.what in ("accuracy", "ability"):
        values = found.values(expected.what, arm, skill, cell.split, cell.n_tasks, flops)
    elif expected.what == "memory":
        values = found.values("memory", arm, mixture, "seen", cell.n_tasks, flops, "pre_decay")
    elif expected.what == "crossing_steps":
        values = [crossing(found, arm, cell.n_tasks, r) for r in range(study.axes.replicates)]
    else:
        values = found.values(expected.what, arm, mixture, cell.split, cell.n_tasks, flops)
    known = tuple(v for v in values if v is not None)
    measured = stats.t_interval(known) if len(known) == len(values) else None
    return Verdict(
        expected, known, measured, stats.agreement(measured, expected.lo, expected.hi), len(values) - len(known)
    )


def crossing(found: Findings, arm: str, n_tasks: int, replicate: int) -> float | None:
    """Optimizer step at which d_rel on the training mixture rises through one half; None if it was not seen to."""
    mixture = cast(Family, found.study.family).mixture
    curve = found.results.curve("d_rel", arm, mixture, "seen", n_tasks, replicate)
    return stats.crossing_step(curve.steps.tolist(), curve.values.tolist())


# Sentences ----------------------------------------------------------------------------------------------------------


def verdict_line(verdict: Verdict) -> str:
    """An expected value beside the measured one, in a line."""
    expected, measured = verdict.expected, verdict.measured
    where = f" at {number(expected.cell.n_tasks)} tasks"
    said = "not measured"
    if measured is not None:
        said = f"measured {measured.mean:.3g}"
        if measured.low is not None and measured.high is not None:
            said += f" (95 % interval {measured.low:.3g} to {measured.high:.3g}, {measured.n} replicates)"
    elif verdict.values:
        reached = len(verdict.values)
        said = f"seen in {reached} of {reached + verdict.censored} replicates only"
    claim = f"expected {expected.value:g} ({expected.lo:g} to {expected.hi:g}, {expected.source})"
    return f"{expected.what}{where}: {said}; {claim}: {verdict.verdict}"


def _answer(found: Findings) -> str:
    """One paragraph, written from the numbers: what the study says, or that it says nothing."""
    study = found.study
    ended = sum(r["status"] in ("done", "diverged") for r in found.runs)
    if not ended:
        return "Nothing can be said yet: no trial has ended."
    known = [r for r in found.runs if r["status"] in ("done", "diverged")]
    levels = sorted({float(r["n_tasks"]) for r in known})
    budgets = {r["compute_flops"] for r in known}
    skill = study.shown_skills[0]
    missing = len(found.runs) - ended
    sentences = [f"So far, with {ended} of {len(found.runs)} trials ended:"] if missing else []
    for arm in study.axes.arm:
        of_arm = f" ({arm})" if len(study.axes.arm) > 1 else ""
        boundaries = [(c, b) for c, b in found.k_ability[(arm, skill)] if c in budgets]
        if all(b.verdict in ("beyond", "missing") for _, b in boundaries):
            abilities = found.results.cube("ability", arm, skill, found.skill_split(skill))
            best = None if np.isnan(abilities).all() else np.nanmax(abilities)
            best_words = f"; the highest ability of any trial is {best:.2f}" if best is not None else ""
            sentences.append(
                f"{skill}{of_arm} appears nowhere: at no number of tasks up to {number(levels[-1])} and no budget up to "
                f"{number(max(budgets))} FLOPs does a replicate reach half of the general rule{best_words}."
            )
        else:
            said = said_once([(ability_words(b, levels), c) for c, b in boundaries])
            sentences.append(f"{skill}{of_arm} {said}.")
        memories = [(c, b) for c, b in found.k_memory[arm] if c in budgets]
        if all(b.verdict == "missing" for _, b in memories):
            sentences.append("Memory is not defined here.")
        elif all(b.verdict in ("below", "missing") for _, b in memories):
            sentences.append(f"Training tasks are memorised nowhere, not even {number(levels[0])} of them.")
        else:
            said = said_once([(memory_words(b, levels), c) for c, b in memories])
            sentences.append(f"Memory of the training tasks{of_arm} {said}.")
    if study.axes.replicates < 2:
        sentences.append("One replicate: no interval can be given.")
    text = " ".join(sentences)
    return text[0].upper() + text[1:]
