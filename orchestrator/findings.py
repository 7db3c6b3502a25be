"""What a study found: its tables handed to the estimators of stats/, judged, and put into sentences.

Between results.py (tables as arrays) and report.py (figures). Knows the study; knows no figure, no MLflow, no Ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from orchestrator import analyses, claims, generalists, primary_verdict, stats
from orchestrator.analyses import (
    Boundaries,
    Cut,
    Midpoint,
    Multiplier,
    NoiseRow,
    Overtaking,
    ToSkill,
    claim_of,
    claim_of_arms,
)
from orchestrator.generalists import Contest, claim_of_contest
from orchestrator.results import Phase, Results, Row
from orchestrator.stats.forecast import Forecast
from orchestrator.stats.frontier import Chinchilla, Isoflops, Optimum
from orchestrator.study import Expected, Study
from orchestrator.words import (
    ability_words,
    contest_words,
    drift_words,
    emergence_words,
    figure,
    flops_words,
    interval_words,
    memory_words,
    multiplier_words,
    number,
    percent,
    sure,
    times,
    times_of,
)
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
    """Everything the report and MLflow say about a study. What is empty was not asked, or could not be answered."""

    study: Study
    results: Results
    primary: primary_verdict.PrimaryFinding | None = None
    """The claim that was declared; None where none was."""
    claims: tuple[claims.Claim, ...] = ()
    """All else that was looked at, corrected together."""
    k_ability: dict[tuple[str, str], Boundaries] = field(default_factory=dict)
    """(arm, skill) -> per budget: where the skill appears, on held-out tasks, after the decay."""
    k_memory: dict[str, Boundaries] = field(default_factory=dict)
    """arm -> per budget: up to where the training tasks are memorised, before the decay."""
    drift_ability: dict[tuple[str, str], stats.Drift] = field(default_factory=dict)
    drift_memory: dict[str, stats.Drift] = field(default_factory=dict)
    dips: dict[tuple[str, str], list[tuple[float, stats.Monotone]]] = field(default_factory=dict)
    """(arm, skill; "" is memory) -> per budget: is the mean monotone along the numbers of tasks? p-values are adjusted."""
    to_skill: dict[tuple[str, int], ToSkill] = field(default_factory=dict)
    """(arm, n_tasks) -> from how much compute on the headline skill is there."""
    onsets: dict[tuple[str, str, int], ToSkill] = field(default_factory=dict)
    """(arm, skill, n_tasks) -> the same for the other skills shown."""
    crossovers: tuple[Overtaking, ...] = ()
    multipliers: tuple[Multiplier, ...] = ()
    contests: tuple[Contest, ...] = ()
    """A generalist against the specialists of its domains."""
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

    def confidence(self, claim: str) -> float:
        """At which the interval of a claim holds: corrected where it is kept; 95 % for the primary and the untested."""
        return {c.name: c.confidence for c in self.claims}.get(claim, claims.CONFIDENCE)

    @property
    def runs(self) -> list[Row]:
        """One row a trial, ended or not."""
        return self.results.runs

    def skill_split(self, skill: str) -> str:
        """The split a skill is judged on: held-out tasks, or seen ones for skills that only exist there."""
        return analyses.split_of(self.results, skill)

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
    cuts = analyses.cuts(results, skills)
    made = claims.correct(claims.looked_at(results, skills, cuts), claims.name_of(results, study.primary))
    levels = {claim.name: claim.confidence for claim in made}

    def confidence(name: str) -> float:
        return levels.get(name, claims.CONFIDENCE)  # the primary claim, and what cannot be tested

    k_ability = {(a, s): analyses.boundaries(results, "ability", a, s, confidence) for a in arms for s in skills}
    k_memory = {a: analyses.boundaries(results, "memory", a, "", confidence) for a in arms}
    onsets = {
        (a, s, n): analyses.to_skill(results, a, s, n, confidence(claim_of("to", "skill", a, s, float(n))))
        for a in arms
        for s in skills
        for n in results.levels
    }
    known = {place: told for place, told in onsets.items() if told is not None}
    to_skill = {(a, n): told for (a, s, n), told in known.items() if s == skills[0]}
    midpoints = {a: analyses.midpoint(results, a, skills[0]) for a in arms}
    found = Findings(
        study=study,
        results=results,
        primary=primary_verdict.examine(results, cuts),
        claims=made,
        k_ability=k_ability,
        k_memory=k_memory,
        drift_ability={
            (a, s): analyses.drift(results, "ability", a, s, b, confidence(claim_of("drift", "ability", a, s)))
            for (a, s), b in k_ability.items()
        },
        drift_memory={
            a: analyses.drift(results, "memory", a, "", b, confidence(claim_of("drift", "memory", a, "")))
            for a, b in k_memory.items()
        },
        dips=analyses.dips(results, skills),
        to_skill=to_skill,
        onsets={place: told for place, told in known.items() if place[1] != skills[0]},
        crossovers=tuple(analyses.crossovers(results, skills[0], confidence)),
        multipliers=tuple(analyses.multipliers(results, skills[0], to_skill, confidence)),
        contests=tuple(generalists.contests(results, confidence)),
        cuts=tuple(cuts),
        noise=tuple(analyses.noise_table(results, skills)),
        midpoints={a: m for a, m in midpoints.items() if m is not None},
        forecasts={(a, n): f for a in arms for n, f in analyses.forecasts(results, a, skills[0], claims.CONFIDENCE)},
        laws={a: analyses.law(results, a, skills[0]) for a in study.axes.arm if len(study.axes.variant) > 2},
        frontier={a: analyses.isoflops(results, a, skills[0]) for a in study.axes.arm},
    )
    found = replace(found, verdicts=tuple(_verdict(found, expected) for expected in study.expected))
    return replace(found, answer=_answer(found))


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
        said = f"measured {figure(measured.mean)}"
        if measured.low is not None and measured.high is not None:
            ends = f"{figure(measured.low)} to {figure(measured.high)}"
            said += f" (95 % interval {ends}, {times(measured.n, 'replicate')})"
    elif verdict.values:
        reached = len(verdict.values)
        said = f"seen in {reached} of {reached + verdict.censored} replicates only"
    agreed = f"{figure(expected.lo)} to {figure(expected.hi)}"
    claim = f"expected {figure(expected.value)} ({agreed}, {expected.source})"
    return f"{expected.what.replace('_', ' ')}{where}: {said}; {claim}: {verdict.verdict}"


ENOUGH = 6
"""From so many replicates on, 95 % intervals of boundaries are order statistics (stats/boundaries.py)."""


def _answer(found: Findings) -> str:
    """One paragraph, written from the numbers: what the study says, or that it says nothing."""
    study = found.study
    ended = sum(r["status"] in ("done", "diverged") for r in found.runs)
    if not ended:
        return "Nothing can be said yet: no trial has ended."
    missing = len(found.runs) - ended
    sentences = [f"So far, with {ended} of {times(len(found.runs), 'trial')} ended."] if missing else []
    for arm in study.lines if not found.contests else ():  # else who wins is what was asked, and each line a paragraph
        sentences += _ability_sentences(found, arm) + _memory_sentences(found, arm)
    sentences += _fewer_sentences(found) if not found.contests else []
    sentences += [_overtaking_sentence(o) for o in found.crossovers if o.result.verdict == "crosses"]
    sentences += _contest_sentences(found)
    if found.primary is not None:
        sentences.append(primary_sentence(found))
    shown = {claims.name_of(found.results, study.primary)} | {c.name for c in found.claims if c.verdict == "kept"}
    headline = {
        claim_of("k", "ability", arm, study.shown_skills[0], c) for arm in study.lines for c in study.budgets[-1:]
    }
    if study.axes.replicates > 1 and not headline <= shown and not found.contests:
        few = f": {study.axes.replicates} replicates can agree by chance" if study.axes.replicates < ENOUGH else ""
        sentences.append(f"Where the skill appears is not kept after correction for all that was looked at{few}.")
    if study.axes.replicates < 2:
        sentences.append("One replicate: no interval can be given, and nothing of this can be tested.")
    diverged = sum(r["status"] == "diverged" for r in found.runs)
    if diverged:
        sentences.append(f"{times(diverged, 'trial')} of {ended} diverged and stay in the count.")
    return " ".join(one[0].upper() + one[1:] for one in sentences)


def _known(found: Findings, arm: str, boundaries: Boundaries) -> Boundaries:
    """The budgets to whose end a trial of the arm has come."""
    budgets = {r["compute_flops"] for r in found.runs if r["status"] in ("done", "diverged") and r["arm"] == arm}
    return [(c, b) for c, b in boundaries if c in budgets]


def _ended_levels(found: Findings, arm: str) -> list[float]:
    return sorted({float(r["n_tasks"]) for r in found.runs if r["status"] in ("done", "diverged") and r["arm"] == arm})


def _of(found: Findings, arm: str) -> str:
    return f" ({arm})" if len(found.study.lines) > 1 else ""


def _at(found: Findings, claim: str, boundary: stats.Boundary) -> str:
    """What kind of interval a boundary's ends are, in brackets; nothing where they are none."""
    n = len(boundary.brackets)
    if boundary.verdict != "crossed" or n < 2:
        return ""
    return f" ({sure(found.confidence(claim))} interval, {times(n, 'replicate')})"


def _confidence_words(found: Findings, boundary: stats.Boundary, claim: str) -> str:
    return f" ({sure(found.confidence(claim))})" if boundary.verdict == "crossed" and len(boundary.brackets) > 1 else ""


def _nothing_to_tell(found: Findings, arm: str) -> str | None:
    """Why nothing can be said of an arm; None where something can."""
    statuses = [r["status"] for r in found.runs if r["arm"] == arm]
    if found.ended(arm):
        return None
    which = f"of arm {arm} " if _of(found, arm) else ""
    if statuses and all(status in ("diverged", "failed") for status in statuses):
        how = (
            "diverged"
            if set(statuses) == {"diverged"}
            else "failed"
            if set(statuses) == {"failed"}
            else "diverged or failed"
        )
        return f"Every trial {which}{how}: nothing can be said of {found.study.shown_skills[0]}{_of(found, arm)}."
    return f"No trial {which}has come to the end of a budget with a result."


def _ability_sentences(found: Findings, arm: str) -> list[str]:
    """Where the headline skill appears at the largest budget, below which budget nowhere, and how that moves."""
    skill = found.study.shown_skills[0]
    what, levels = f"{skill}{_of(found, arm)}", _ended_levels(found, arm)
    known = _known(found, arm, found.k_ability[(arm, skill)])
    abilities = analyses.surface(found.results, "ability", arm, skill)
    if nothing := _nothing_to_tell(found, arm):
        return [nothing]
    if not known or np.isnan(abilities).all():
        return [f"{what}: ability is not defined at any cell (references coincide or are missing)."]
    top_flops, top = known[-1]
    if all(b.verdict in ("beyond", "missing") for _, b in known):
        best = f"; the highest ability of any trial is {figure(round(float(np.nanmax(abilities)), 2))}"
        return [
            f"{what} appears nowhere: at no number of tasks up to {number(levels[-1])} and no budget up to "
            f"{number(top_flops)} FLOPs does a replicate reach half of the general rule{best}."
        ]
    at = _at(found, claim_of("k", "ability", arm, skill, top_flops), top)
    said = f"{what} {ability_words(top, levels)} at {number(top_flops)} FLOPs{at}"
    never = [c for c, b in known if b.verdict == "beyond"]
    if never and known[0][1].verdict == "beyond":
        said += f", and nowhere up to {number(levels[-1])} tasks at {number(max(never))} FLOPs"
        said += " or less" if len(never) > 1 else ""
    sentences = [said + "."]
    moved = found.drift_ability.get((arm, skill))
    if moved is not None and moved.verdict in ("rises", "falls"):
        plainly = "fewer" if moved.verdict == "falls" else "more"
        sentences.append(f"The more compute, the {plainly} tasks it takes: {drift_words(moved, 'A')}.")
    return sentences


def _memory_sentences(found: Findings, arm: str) -> list[str]:
    levels, known = _ended_levels(found, arm), _known(found, arm, found.k_memory[arm])
    if _nothing_to_tell(found, arm):
        return []
    if all(b.verdict == "missing" for _, b in known):
        return [f"Memory is not defined here{_of(found, arm)}."]
    if all(b.verdict in ("below", "missing") for _, b in known):
        return [f"Training tasks are memorised nowhere, not even {number(levels[0])} of them{_of(found, arm)}."]
    defined = [(c, b) for c, b in known if b.verdict != "missing"]
    flops, top = defined[-1]
    at = _at(found, claim_of("k", "memory", arm, "", flops), top)
    said = f"Memory of the training tasks{_of(found, arm)} {memory_words(top, levels)} at {number(flops)} FLOPs{at}"
    first_flops, first = next(((c, b) for c, b in defined if b.verdict != "below"), defined[-1])
    if first_flops != flops and memory_words(first, levels) != memory_words(top, levels):
        said += f"; at {number(first_flops)} it {memory_words(first, levels)}"
    sentences = [said + "."]
    moved = found.drift_memory.get(arm)
    if moved is not None and moved.verdict in ("rises", "falls"):
        plainly = "more" if moved.verdict == "rises" else "fewer"
        sentences.append(f"The more compute, the {plainly} tasks are memorised: {drift_words(moved, 'M')}.")
    return sentences


def _fewer_sentences(found: Findings) -> list[str]:
    """Which arm needs fewer tasks at the largest budget, where their intervals do not touch; else that none is shown to.

    And by how much more compute an arm needs than another, at the largest number of tasks at which that is shown.
    """
    skill, said, overlap = found.study.shown_skills[0], [], 0
    for a, b in found.study.comparable:
        (flops, first), (_, second) = found.k_ability[(a, skill)][-1], found.k_ability[(b, skill)][-1]
        if {first.verdict, second.verdict} & {"missing"} or first.verdict == second.verdict != "crossed":
            continue  # nothing to compare, or both beyond (or below) all that was tried
        if min(len(first.brackets), len(second.brackets)) < 2:
            continue
        at = f"at {number(flops)} FLOPs"
        for fewer, more, low, high in ((a, b, first, second), (b, a, second, first)):
            if low.high is not None and high.low is not None and low.high <= high.low:
                said.append(f"{fewer} needs fewer tasks than {more} {at}: their intervals do not touch.")
                break
        else:
            overlap += 1
    if overlap and not said:
        at = f"at {number(found.study.budgets[-1])} FLOPs"
        said.append(f"Which arm needs fewer tasks is not shown {at}: their intervals overlap.")
    shown = {(m.first, m.second): m for m in found.multipliers if m.ratio.verdict in ("rises", "falls")}
    return said + [
        f"Until {skill} is there to stay, {multiplier_words(m)} at {number(m.n_tasks)} tasks." for m in shown.values()
    ]


def _overtaking_sentence(o: Overtaking) -> str:
    where = claims.range_words(o.result.low, o.result.high)
    return f"With {number(o.n_tasks)} tasks {o.second} overtakes {o.first} at {where} FLOPs."


def _contest_sentences(found: Findings) -> list[str]:
    """Each generalist against its specialists together (or the one that it has) at their best, number of tasks by number of
    tasks; and from which multiple of their smallest budget on it is ahead of what they had then."""
    several = {c.generalist for c in found.contests if c.pooled}
    shown = [c for c in found.contests if c.pooled or c.generalist not in several]
    smallest = found.study.budgets[0]
    said = [c for c in shown if c.against == "its best" or c.specialist_flops == smallest]
    return [f"With {number(c.n_tasks)} tasks of a domain {contest_words(c, found.study.budgets)}." for c in said]


def primary_sentence(found: Findings) -> str:
    """The primary claim, what was found, whether they agree, and what is wanting if that is open."""
    assert found.primary is not None
    return primary_verdict.sentences(found.study, found.primary)


# For MLflow and for spreadsheets ------------------------------------------------------------------------------------

SUMMARY = ("quantity", "arm", "skill", "n_tasks", "compute_flops", "low", "high", "confidence", "verdict", "words")
"""Columns of the summary table: an interval's ends are empty where it is open, or where there is none."""


def summary(found: Findings) -> list[dict[str, Any]]:
    """The study in one table: boundaries, drifts, compute-to-skill, crossovers, breaks, claims; a row each."""
    levels = [float(n) for n in found.results.levels]
    confidences = {claim.name: claim.confidence for claim in found.claims}
    rows: list[dict[str, Any]] = []

    def add(quantity: str, claim: str | None, **values: Any) -> None:
        confidence = None if claim is None else confidences.get(claim, claims.CONFIDENCE)
        rows.append(dict.fromkeys(SUMMARY) | {"quantity": quantity, "confidence": confidence} | values)

    if found.primary is not None:
        claim = found.primary.claim
        where = {"arm": claim.arm, "skill": claim.skill, "n_tasks": claim.n_tasks, "compute_flops": claim.compute_flops}
        ends = {"low": found.primary.low, "high": found.primary.high, "confidence": claims.CONFIDENCE}
        add("primary claim", None, **where, **ends, verdict=found.primary.verdict, words=primary_sentence(found))
    for (arm, skill), whole in found.k_ability.items():
        for c, b in whole:
            name, said = claim_of("k", "ability", arm, skill, c), ability_words(b, levels)
            add(
                "K_A",
                name,
                arm=arm,
                skill=skill,
                compute_flops=c,
                low=b.low,
                high=b.high,
                verdict=b.verdict,
                words=said,
            )
    for arm, whole in found.k_memory.items():
        for c, b in whole:
            name, said = claim_of("k", "memory", arm, "", c), memory_words(b, levels)
            add("K_M", name, arm=arm, compute_flops=c, low=b.low, high=b.high, verdict=b.verdict, words=said)
    for (arm, skill), d in found.drift_ability.items():
        name, said = claim_of("drift", "ability", arm, skill), drift_words(d, "A")
        add("drift of K_A", name, arm=arm, skill=skill, low=d.low, high=d.high, verdict=d.verdict, words=said)
    for arm, d in found.drift_memory.items():
        name, said = claim_of("drift", "memory", arm, ""), drift_words(d, "M")
        add("drift of K_M", name, arm=arm, low=d.low, high=d.high, verdict=d.verdict, words=said)
    headline = found.study.shown_skills[0]
    every = {(arm, headline, n): told for (arm, n), told in found.to_skill.items()} | found.onsets
    for (arm, skill, n), told in every.items():
        b, name = told.boundary, claim_of("to", "skill", arm, skill, float(n))
        said = flops_words(b, found.looks(arm, n, skill))
        ends = {"low": b.low, "high": b.high}
        add("compute to skill", name, arm=arm, skill=skill, n_tasks=n, verdict=b.verdict, words=said, **ends)
    for o in found.crossovers:
        said = f"{o.second} over {o.first}: {o.result.verdict}"
        ends = {"low": o.result.low, "high": o.result.high}
        name = claim_of_arms(o.first, o.second, headline, o.n_tasks)
        add(
            "crossover",
            name,
            arm=o.second,
            skill=headline,
            n_tasks=o.n_tasks,
            verdict=o.result.verdict,
            words=said,
            **ends,
        )
    for m in found.multipliers:
        name, (low, high) = claim_of_arms(m.first, m.second, headline, m.n_tasks, "multiplier"), times_of(m.ratio)
        where = {"arm": m.second, "skill": headline, "n_tasks": m.n_tasks}
        add("compute multiplier", name, **where, low=low, high=high, verdict=m.ratio.verdict, words=multiplier_words(m))
    for met in found.contests:
        name = claim_of_contest(met.generalist, met.domain, met.n_tasks, met.against, met.specialist_flops)
        where = {"arm": met.generalist, "skill": met.domain, "n_tasks": met.n_tasks}
        (low, high), said = met.multiples, contest_words(met, found.study.budgets)
        ends = {"low": low, "high": high, "compute_flops": met.specialist_flops}
        add(f"generalist against {met.against}", name, **where, **ends, verdict=met.result.verdict, words=said)
    for cut in found.cuts:
        place: dict[str, Any] = {"compute_flops": cut.fixed} if cut.axis == "n_tasks" else {"n_tasks": int(cut.fixed)}
        said = emergence_words(cut.result)
        add(
            f"emergence along {cut.axis}",
            None,
            arm=cut.arm,
            skill=cut.skill,
            verdict=cut.result.verdict,
            words=said,
            **place,
        )
    for v in found.verdicts:
        cell = v.expected.cell
        where = {"arm": cell.arm, "skill": cell.skill, "n_tasks": cell.n_tasks, "compute_flops": cell.compute_flops}
        ends = {"low": v.measured.low, "high": v.measured.high} if v.measured else {}
        add(f"expected {v.expected.what}", None, **where, **ends, verdict=v.verdict, words=verdict_line(v))
    return rows


def description(found: Findings) -> str:
    """The answer and both boundaries in Markdown, for a person who opens nothing but MLflow."""
    levels = [float(n) for n in found.results.levels]
    parts = [f"**{found.study.question.strip()}**", found.answer]
    for arm in found.study.lines:
        skill = found.study.shown_skills[0]
        pairs = zip(found.k_ability[(arm, skill)], found.k_memory[arm], strict=True)
        head = f"| training FLOPs{_of(found, arm)} | {skill} appears (K_A, tasks) | memory ends (K_M, tasks) |\n|---|---|---|"
        lines = []
        for (c, a), (_, m) in pairs:
            shown = [(a, claim_of("k", "ability", arm, skill, c)), (m, claim_of("k", "memory", arm, "", c))]
            cells = [interval_words(b, levels) + _confidence_words(found, b, claim) for b, claim in shown]
            lines.append(f"| {number(c)} | {' | '.join(cells)} |")
        parts.append("\n".join([head, *lines]))
    parts += [f"- {verdict_line(v)}" for v in found.verdicts]
    kept = sum(claim.verdict == "kept" for claim in found.claims)
    tested = sum(claim.verdict != "untested" for claim in found.claims)
    primary = "One primary claim" if found.primary else "No primary claim"
    parts.append(
        f"{primary}; {tested} other claims were tested, {kept} kept after correction (at most "
        f"{percent(claims.FALSE_SHARE)} of them expected to be false). Figures, tables and the report are among the artifacts."
    )
    return "\n\n".join(parts)
