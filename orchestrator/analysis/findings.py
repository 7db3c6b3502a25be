"""What a study found: its tables handed to the estimators of stats/, judged, and put into sentences.

Between results.py (tables as arrays) and report.py (figures). Knows the study; knows no figure, no MLflow, no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from orchestrator import stats
from orchestrator.analysis import answer, boundaries, claims, generalists, primary
from orchestrator.analysis.boundaries import (
    Boundaries,
    Cut,
    Dip,
    Midpoint,
    Multiplier,
    NoiseRow,
    Overtaking,
    ToSkill,
    claim_of,
)
from orchestrator.analysis.claims import Standing
from orchestrator.analysis.generalists import Contest
from orchestrator.analysis.results import Phase, Results, Row
from orchestrator.analysis.speed import Speed, speeds
from orchestrator.stats.forecast import Forecast
from orchestrator.stats.frontier import Chinchilla, Isoflops, Optimum
from orchestrator.study.schema import Expected, Study
from trainers.tasks import Family


class Verdict(NamedTuple):
    """An expected value beside what was measured: one value a replicate, their interval, and whether they agree."""

    expected: Expected
    values: tuple[float, ...]
    measured: stats.Interval | None
    verdict: str
    censored: int
    """Replicates in which the quantity was not reached or is not defined."""
    caution: str = ""
    """What to doubt in the verdict, as of a primary claim; a clause, or nothing."""


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
    """Everything the report and MLflow say about a study. What is empty was not asked, or could not be answered."""

    study: Study
    results: Results
    primary: primary.PrimaryFinding | None = None
    """The claim that was declared; None where none was."""
    claims: tuple[claims.Claim, ...] = ()
    """All else that was looked at, corrected together."""
    k_ability: dict[tuple[str, str], Boundaries] = field(default_factory=dict)
    """(arm, skill) -> per budget: where the skill appears, on held-out tasks, after the decay."""
    k_memory: dict[str, Boundaries] = field(default_factory=dict)
    """arm -> per budget: up to where the training tasks are memorised, before the decay."""
    drift_ability: dict[tuple[str, str], stats.Drift] = field(default_factory=dict)
    drift_memory: dict[str, stats.Drift] = field(default_factory=dict)
    dips: tuple[Dip, ...] = ()
    """Is each mean monotone along the numbers of tasks, and ability along compute?"""
    to_skill: dict[tuple[str, int], ToSkill] = field(default_factory=dict)
    """(arm, n_tasks) -> from how much compute on the headline skill is there."""
    onsets: dict[tuple[str, str, int], ToSkill] = field(default_factory=dict)
    """(arm, skill, n_tasks) -> the same for the other skills shown."""
    crossovers: tuple[Overtaking, ...] = ()
    multipliers: tuple[Multiplier, ...] = ()
    contests: tuple[Contest, ...] = ()
    """A generalist against the specialists of its domains."""
    speeds: tuple[Speed, ...] = ()
    """What more workers gain, where lines differ in that."""
    cuts: tuple[Cut, ...] = ()
    """Break, smooth or metric artefact: every shown skill along either axis."""
    noise: tuple[NoiseRow, ...] = ()
    midpoints: dict[str, Midpoint] = field(default_factory=dict)
    """arm -> the cell at the onset of the headline skill."""
    forecasts: dict[tuple[str, int], Forecast] = field(default_factory=dict)
    """(arm, n_tasks) -> the loss at the largest budget, told from a quarter of it."""
    frontier: dict[str, Isoflops] = field(default_factory=dict)
    """arm -> the best model size at each compute."""
    laws: dict[str, tuple[Chinchilla, Optimum | None]] = field(default_factory=dict)
    """arm -> the parametric law of loss in size and tokens, and its best size at the largest budget."""
    verdicts: tuple[Verdict, ...] = ()
    answer: str = ""

    @cached_property
    def standings(self) -> Mapping[str, Standing]:
        """Where the claim behind each result stands after the correction, by its name."""
        return claims.standings(self.claims, claims.name_of(self.results, self.study.primary))

    def confidence(self, claim: str) -> float:
        """At which the interval of a claim holds: corrected where it is kept; 95 % for the primary and the untested."""
        return {c.name: c.confidence for c in self.claims}.get(claim, claims.CONFIDENCE)

    @property
    def runs(self) -> list[Row]:
        """One row a trial, ended or not."""
        return self.results.runs

    def skill_split(self, skill: str) -> str:
        """The split a skill is judged on: held-out tasks, or seen ones for skills that only exist there."""
        return boundaries.split_of(self.results, skill)

    def looks(self, arm: str, n_tasks: int, skill: str = "") -> list[float]:
        """Training FLOPs at which a skill, or the headline skill, was looked at along the training runs of one number of tasks."""
        skill = skill or self.study.shown_skills[0]
        return self.results.along("ability", arm, skill, self.skill_split(skill), n_tasks)[0].tolist()

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
    """Hand the tables to the estimators, correct for how much was looked at, and put together what they say."""
    study = results.study
    arms, skills = study.lines, study.shown_skills
    cuts = boundaries.cuts(results, skills)
    made = claims.correct(claims.looked_at(results, skills, cuts), claims.name_of(results, study.primary))
    levels = {claim.name: claim.confidence for claim in made}

    def confidence(name: str) -> float:
        return levels.get(name, claims.CONFIDENCE)  # the primary claim, and what cannot be tested

    k_ability = {(a, s): boundaries.boundaries_of(results, "ability", a, s, confidence) for a in arms for s in skills}
    k_memory = {a: boundaries.boundaries_of(results, "memory", a, "", confidence) for a in arms}
    onsets = {
        (a, s, n): boundaries.to_skill(results, a, s, n, confidence(claim_of("to", "skill", a, s, float(n))))
        for a in arms
        for s in skills
        for n in results.levels
    }
    known = {place: told for place, told in onsets.items() if told is not None}
    to_skill = {(a, n): told for (a, s, n), told in known.items() if s == skills[0]}
    midpoints = {a: boundaries.midpoint(results, a, skills[0]) for a in arms}
    found = Findings(
        study=study,
        results=results,
        primary=primary.examine(results, cuts),
        claims=made,
        k_ability=k_ability,
        k_memory=k_memory,
        drift_ability={
            (a, s): boundaries.drift(results, "ability", a, s, b, confidence(claim_of("drift", "ability", a, s)))
            for (a, s), b in k_ability.items()
        },
        drift_memory={
            a: boundaries.drift(results, "memory", a, "", b, confidence(claim_of("drift", "memory", a, "")))
            for a, b in k_memory.items()
        },
        dips=boundaries.dips(results, skills),
        to_skill=to_skill,
        onsets={place: told for place, told in known.items() if place[1] != skills[0]},
        crossovers=tuple(boundaries.crossovers(results, skills[0], confidence)),
        multipliers=tuple(boundaries.multipliers(results, skills[0], to_skill, confidence)),
        contests=tuple(generalists.contests(results, confidence)),
        speeds=speeds(results),
        cuts=tuple(cuts),
        noise=tuple(boundaries.noise_table(results, skills)),
        midpoints={a: m for a, m in midpoints.items() if m is not None},
        forecasts={(a, n): f for a in arms for n, f in boundaries.forecasts(results, a, skills[0], claims.CONFIDENCE)},
        laws={a: boundaries.law(results, a, skills[0]) for a in study.axes.arm if len(study.axes.variant) > 2},
        frontier={a: boundaries.isoflops(results, a, skills[0]) for a in study.axes.arm},
    )
    found = replace(found, verdicts=tuple(_verdict(found, expected) for expected in study.expected))
    return replace(found, answer=answer.paragraph(found))


def _known_or_none(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]


def _verdict(found: Findings, expected: Expected) -> Verdict:
    study, cell = found.study, expected.cell
    arm, flops = cell.arm or next(iter(study.lines)), cell.compute_flops or study.budgets[-1]
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
    verdict = stats.agreement(measured, expected.lo, expected.hi)
    settled = verdict in ("consistent", "inconsistent")
    caution = primary.lottery_words(expected.what, len(known)) if settled else ""
    return Verdict(expected, known, measured, verdict, len(values) - len(known), caution)


def crossing(found: Findings, arm: str, n_tasks: int, replicate: int) -> float | None:
    """Optimizer step at which d_rel on the training mixture rises through one half; None if it was not seen to."""
    mixture = cast(Family, found.study.family).mixture
    curve = found.results.curve("d_rel", arm, mixture, "seen", n_tasks, replicate)
    return stats.crossing_step(curve.steps.tolist(), curve.values.tolist())
