"""Findings: everything that a study found. Asks every question of the tables, corrects the claims, and keeps the results.

Knows the study and its tables; knows no figure, no MLflow and no Ray. `answer.py` writes the sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator import stats
from orchestrator.analysis import (
    arms,
    boundaries,
    claims,
    emergence,
    generalists,
    onsets,
    primary,
    replicates,
    sizes,
)
from orchestrator.analysis.arms import (
    Multiplier,
    Overtaking,
    claims_of_crossovers,
    claims_of_fewer_tasks,
    claims_of_multipliers,
)
from orchestrator.analysis.boundaries import Boundaries, Dip, claims_of_boundaries
from orchestrator.analysis.claims import CONFIDENCE, Looked, Standing, claim_of
from orchestrator.analysis.emergence import Cut, claims_of_breaks
from orchestrator.analysis.expected import Verdict, verdict_on
from orchestrator.analysis.generalists import Contest, claims_of_contests
from orchestrator.analysis.measures import Row
from orchestrator.analysis.onsets import ToSkill, claims_of_onsets
from orchestrator.analysis.replicates import Midpoint, NoiseRow
from orchestrator.analysis.results import Phase, Results, split_of
from orchestrator.analysis.speed import Speed, speeds
from orchestrator.stats.frontier import Isoflops
from orchestrator.study.schema import Study


def looked_at(results: Results, skills: tuple[str, ...], cuts: list[emergence.Cut]) -> list[Looked]:
    """Every claim that goes into the count, the primary one included. What a report says besides, it says uncorrected: see the
    page's section on claims."""
    told = {
        (arm, skill, n): onsets.to_skill(results, arm, skill, n, CONFIDENCE)
        for arm in results.study.lines
        for skill in skills
        for n in results.levels
    }
    return [
        *(claim for arm in results.study.lines for claim in claims_of_boundaries(results, arm, skills)),
        *claims_of_onsets(results, skills, told),
        *claims_of_fewer_tasks(results, skills[0]),
        *claims_of_crossovers(results, skills[0]),
        *claims_of_multipliers(results, skills[0], told),
        *claims_of_contests(results),
        *claims_of_breaks(results, cuts),
    ]


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
    """Break or smooth: every shown skill along either axis."""
    noise: tuple[NoiseRow, ...] = ()
    midpoints: dict[str, Midpoint] = field(default_factory=dict)
    """arm -> the cell at the onset of the headline skill."""
    frontier: dict[str, Isoflops] = field(default_factory=dict)
    """arm -> the best model size at each compute."""
    verdicts: tuple[Verdict, ...] = ()

    @cached_property
    def standings(self) -> Mapping[str, Standing]:
        """Where the claim behind each result stands after the correction, by its name."""
        return claims.standings(self.claims, primary.name_of(self.results, self.study.primary))

    def confidence(self, claim: str) -> float:
        """At which the interval of a claim holds: corrected where it is kept; 95 % for the primary and the untested."""
        return {c.name: c.confidence for c in self.claims}.get(claim, claims.CONFIDENCE)

    @property
    def runs(self) -> list[Row]:
        """One row a trial, ended or not."""
        return self.results.runs

    def skill_split(self, skill: str) -> str:
        """The split a skill is judged on: held-out tasks, or seen ones for skills that only exist there."""
        return split_of(self.results, skill)

    def looks(self, arm: str, n_tasks: int, skill: str = "") -> list[float]:
        """Training FLOPs at which a skill, or the headline skill, was looked at along the training runs of one number of tasks."""
        skill = skill or self.study.shown_skills[0]
        return self.results.along("ability", arm, skill, self.skill_split(skill), n_tasks)[0].tolist()

    def values(
        self, measure: str, arm: str, skill: str, split: str, n_tasks: int, flops: float, phase: Phase = "final"
    ) -> list[float | None]:
        """One value per replicate at one cell; None where it is missing or not defined."""
        return self.results.values(measure, arm, skill, split, n_tasks, flops, phase)

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
    """Findings of a study from its two tables (`record/tables.py`). Never fails on what is missing."""
    return judge(Results.of_tables(study, results, runs))


def read(folder: Path, study: Study) -> Findings:
    """Findings from the Parquet files of a study's folder. Raises OSError when there are none yet."""
    return judge(Results.read(folder, study))


def judge(results: Results) -> Findings:
    """Hand the tables to the estimators, correct for how much was looked at, and put together what they say."""
    study = results.study
    conditions, skills = study.lines, study.shown_skills
    cuts = emergence.cuts(results, skills)
    made = claims.correct(looked_at(results, skills, cuts), primary.name_of(results, study.primary))
    levels = {claim.name: claim.confidence for claim in made}

    def confidence(name: str) -> float:
        return levels.get(name, claims.CONFIDENCE)  # the primary claim, and what cannot be tested

    k_ability = {
        (a, s): boundaries.boundaries_of(results, "ability", a, s, confidence) for a in conditions for s in skills
    }
    k_memory = {a: boundaries.boundaries_of(results, "memory", a, "", confidence) for a in conditions}
    appears = {
        (a, s, n): onsets.to_skill(results, a, s, n, confidence(claim_of("to", "skill", a, s, float(n))))
        for a in conditions
        for s in skills
        for n in results.levels
    }
    known = {place: told for place, told in appears.items() if told is not None}
    to_skill = {(a, n): told for (a, s, n), told in known.items() if s == skills[0]}
    midpoints = {a: replicates.midpoint(results, a, skills[0]) for a in conditions}
    return Findings(
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
        crossovers=tuple(arms.crossovers(results, skills[0], confidence)),
        multipliers=tuple(arms.multipliers(results, skills[0], to_skill, confidence)),
        contests=tuple(generalists.contests(results, confidence)),
        speeds=speeds(results),
        cuts=tuple(cuts),
        noise=tuple(replicates.noise_table(results, skills)),
        midpoints={a: m for a, m in midpoints.items() if m is not None},
        frontier={a: sizes.isoflops(results, a, skills[0]) for a in study.axes.arm},
        verdicts=tuple(verdict_on(results, expected) for expected in study.expected),
    )
