"""A driver without Ray: what `emergence run` does to a study's folder, in this process, for faults that need no cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps import Counter

from orchestrator.plan import jobs, order
from orchestrator.record import recorded, tables
from orchestrator.record.journal import Journal, State
from orchestrator.record.lease import StudyLock
from orchestrator.record.provenance import session_event
from orchestrator.study.schema import Study
from trainers.fit.place import Place
from trainers.train import run_trunk

TINY: dict[str, Any] = {
    "study": "tiny",
    "version": 1,
    "question": "What survives?",
    "family": {"name": "cipher", "n_symbols": 6, "n_pairs": 6},
    "axes": {
        "arm": ["answer"],
        "variant": {"plain": {}, "fast": {"training": {"learning_rate": 0.01}}},
        "n_tasks": [4],
        "compute_flops": [1e7, 2e7],
        "replicates": 1,
    },
    "model": {"n_layers": 1, "d_model": 8, "n_heads": 1, "d_mlp": 8},
    "training": {"batch_size": 4, "warmup_steps": 10},
    "evaluation": {"points_per_decade": 4, "first_flops": 2e6, "n_sequences": 4},
}


def study_with(**changes: Any) -> Study:
    """The tiny study with some keys changed; `axes` changes keys of the axes."""
    axes = TINY["axes"] | changes.pop("axes", {})
    return Study.from_record(TINY | changes | {"axes": axes})


def go_on(study: Study, folder: Path, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Run what is missing until `should_stop`; returns the optimizer steps that were trained. Raises as the driver does."""
    counter = Counter()
    with StudyLock(folder, study.id, lambda: State.of(folder).lease) as lock:
        everything = State.of(folder)
        jobs.check_against_record(study, everything, "tiny.yaml")
        state = recorded.of_study(everything, study)
        todo = order.donors_first(jobs.jobs_of(study, state, folder))
        if not todo:
            return 0
        journal = Journal(folder, lock)
        session = session_event(study, {}, state.record)
        journal.append([session])
        try:
            for job in todo:
                facts = {"session": session["session"], "host": "here", "device": "cpu"}
                place = Place(checkpoint_folder=jobs.checkpoint_folder(folder, job.trunk), checkpoint_every_seconds=1e9)
                starts = {"starts_folder": jobs.stored("starts", folder), "starts": job.starts}
                place = place.model_copy(update=starts)

                def emit(events: list[dict[str, Any]], facts: Any = facts) -> None:
                    journal.append([facts | event for event in events])

                ended = run_trunk(job.trunk, job.budgets, place, emit, should_stop)
                if ended == "stopped":
                    break
        finally:
            journal.close()
    return counter.steps


def rows_of(study: Study, folder: Path) -> list[dict[str, Any]]:
    """The rows of `results.parquet` as they would be written now."""
    return rows_in(study, State.of(folder))


def rows_in(study: Study, state: State) -> list[dict[str, Any]]:
    """The rows of `results.parquet` that a journal comes to."""
    return list(tables.results_table(recorded.of_study(state, study), study).to_pylist())
