"""All findings of a study: every question is asked once, and all p-values are corrected together.

A new question is a file with a function `ask` and a place in QUESTIONS. Uses the study and its tables; no figures, no MLflow
and no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.analysis import (
    along,
    arms,
    boundaries,
    by_task,
    dips,
    emergence,
    expected,
    generalists,
    onsets,
    primary,
    replicates,
    sizes,
    speed,
)
from orchestrator.analysis.finding import Finding, corrected
from orchestrator.analysis.measures import Row
from orchestrator.analysis.results import Results
from orchestrator.study.schema import Study

QUESTIONS: tuple[Callable[[Results], Iterator[Finding]], ...] = (
    boundaries.ask,
    along.ask,
    onsets.ask,
    arms.ask,
    generalists.ask,
    emergence.ask,
    dips.ask,
    replicates.ask,
    sizes.ask,
    speed.ask,
    by_task.ask,
    expected.ask,
)
"""All questions of a study. Each function yields the findings of one question."""


class Costs(NamedTuple):
    """FLOPs and time that the trials of a study took so far."""

    train_flops: float
    """Training FLOPs that ran. A trunk that several trials share counts once."""
    eval_flops: float
    """FLOPs of all evaluations."""
    saved_flops: float
    """Training FLOPs that were not run because trials share trunks, or begin with the weights of others."""
    slot_seconds: float
    """Seconds of training and evaluation, summed over slots."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A study, its results, and its findings: the input of every page, table and sentence."""

    study: Study
    results: Results
    """The evaluations and trials as arrays."""
    findings: tuple[Finding, ...] = ()
    """All findings, corrected, in the order of QUESTIONS."""
    primary: primary.PrimaryFinding | None = None
    """The primary claim with its finding and verdict; None if the study declares none."""

    def of(
        self,
        question: str,
        condition: str | None = None,
        skill: str | None = None,
        n_tasks: int | None = None,
        compute_flops: float | None = None,
    ) -> list[Finding]:
        """The findings of a question with the given condition, skill, n_tasks and budget; None admits any.

        A question that ends in a space is a prefix: `emergence ` selects all questions that begin with it.
        """
        asked = self._by_question.get(question, [])
        if question.endswith(" "):
            asked = [one for name, many in self._by_question.items() if name.startswith(question) for one in many]
        places = {"condition": condition, "skill": skill, "n_tasks": n_tasks, "compute_flops": compute_flops}
        wanted = {name: value for name, value in places.items() if value is not None}
        return [one for one in asked if all(getattr(one, name) == value for name, value in wanted.items())]

    @cached_property
    def _by_question(self) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for one in self.findings:
            found.setdefault(one.question, []).append(one)
        return found

    @property
    def runs(self) -> list[Row]:
        """One row for each trial, ended or not."""
        return self.results.runs

    def ended(self, condition: str) -> bool:
        """Whether a condition has an evaluation at the end of any trial."""
        return any(self.results.present(*group).any() for group in self.results.groups() if group[0] == condition)

    def costs(self) -> Costs:
        """FLOPs and seconds so far, over all trials."""

        def total(key: str) -> float:
            return float(sum(r[key] for r in self.runs if r.get(key) is not None))

        own, run = total("flops_own"), total("flops_run")
        return Costs(run, total("eval_flops"), own - run, total("train_seconds") + total("eval_seconds"))


def find(study: Study, results: Any, runs: Any, *of_text: Any, sampled: Sequence[Any] = ()) -> Findings:
    """Findings of a study from its Arrow tables (`Results.of_tables`). Missing values raise nothing."""
    return judge(Results.of_tables(study, results, runs, *of_text, sampled=sampled))


def read(folder: Path, study: Study) -> Findings:
    """Findings from the Parquet files of a study's folder. Raises OSError if a file is missing or damaged."""
    return judge(Results.read(folder, study))


def judge(results: Results) -> Findings:
    """Ask every question once, correct all p-values together, and give the verdict on the primary claim."""
    asked = [one for ask in QUESTIONS for one in ask(results)]
    found = corrected(asked, primary.name_of(results.study, results.study.primary))
    declared = primary.examine(results, {one.name: one for one in found})
    return Findings(study=results.study, results=results, findings=tuple(found), primary=declared)
