"""The part of a journal that counts for one study: events of its present settings, and trials whose rows are complete.

An event counts if it carries the fingerprint of the study's spec. Journals of earlier versions have fingerprints on
trials only. For their other events the fingerprint is computed from the study in their session.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from orchestrator.record.journal import Event, State
from orchestrator.study.schema import Study, differences
from trainers import budget
from trainers.checkpoint import POINT
from trainers.spec import TrialSpec, TrunkSpec
from trainers.tasks.text import unpacked_names


class Recorded(State):
    """The state of a study, by `of_study`."""

    short: tuple[str, ...] = ()
    """Trials recorded as ended that lack rows: they count as open and are trained again."""


def read(folder: Path, study: Study) -> Recorded:
    """The counting part of the journal in a folder. Raises OSError."""
    return of_study(State.of(folder), study)


def of_study(state: State, study: Study) -> Recorded:
    """The counting part of a journal for a study."""
    made_by = maker(state)
    found = Recorded()
    for name in ("study", "sessions", "session_ends", "last_time", "record", "lease", "n_bytes", "damage"):
        setattr(found, name, getattr(state, name))
    trunks = {trunk.id: trunk for trunk in study.trunks()}
    for name, trunk in trunks.items():
        there = (state.evaluations, state.telemetry, state.tasks)
        fingerprint = trunk.fingerprint() if any(name in events for events in there) else ""
        if tasks := [e for e in state.tasks.get(name, []) if made_by(e) == fingerprint]:
            found.tasks[name] = tasks
        if telemetry := [e for e in state.telemetry.get(name, []) if made_by(e) == fingerprint]:
            found.telemetry[name] = telemetry
        mine = {e["key"]: e for e in reversed(state.evaluations.get(name, [])) if made_by(e) == fingerprint}
        if mine:
            found.evaluations[name] = list(reversed(mine.values()))
            found.keys |= mine.keys()
    trials = {trial.id: trial for trial in study.trials()}
    for event in state.ends:
        trial = trials.get(event["trial"])
        if trial is not None and made_by(event) in (None, trial.fingerprint()):
            found.feed([event])
    found.short = tuple(name for name, end in found.trials.items() if missing(found, trials[name], end))
    for name in found.short:
        found.keys.remove(found.trials.pop(name)["key"])
    for event in state.ends:  # trials outside the study's axes: counted, but in no table
        if event["trial"] not in trials:
            found.trials.setdefault(event["trial"], event)
    return found


def left_without_journal(state: State, folder: Path, study: Study | None = None) -> list[str]:
    """Results of earlier runs in a folder whose journal is gone or empty: a new run would overwrite them.

    Checkpoints of the `study` do not count: they hold every event, and a run resumes from them.
    """
    if state.keys:
        return []
    of_runs = ("results.parquet", "runs.parquet", "report.html", "published.json")
    left = [name for name in of_runs if (folder / name).exists()]
    mine = {trunk.fingerprint() for trunk in study.trunks()} if study else set()
    for manifest in (folder / "checkpoints").rglob("manifest.json") if study else ():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if json.loads(manifest.read_bytes())["fingerprint"] not in mine:
                return [*left, "checkpoints of other settings"]
    return left


def trial_evaluations(state: State, trial: TrialSpec) -> list[tuple[str, Event]]:
    """A trial's evaluations as (phase, event), in order: its trunk up to its branch, then its branch."""
    end, branch = budget.steps_of(trial, trial.compute_flops).end, budget.steps_of(trial, trial.compute_flops).branch
    found = []
    for event in state.evaluations.get(trial.trunk.id, []):
        if event["on"] == repr(trial.compute_flops):
            found.append(("final", event))
        elif event["on"] == "trunk" and event["step"] == branch and branch < end:
            found.append(("pre_decay", event))
        elif event["on"] == "trunk" and event["step"] < branch and event["grid"]:
            found.append(("trunk", event))
    return sorted(found, key=lambda pair: pair[1]["step"])


def trained_tasks(state: State, trunk: str) -> list[tuple[str, str]] | None:
    """(task, cluster) of each training task of a trunk, by name; None if its family names none, or it has not begun."""
    return unpacked_names(state.tasks[trunk][0]["packed"]) if trunk in state.tasks else None


def trial_telemetry(state: State, trial: TrialSpec) -> list[Event]:
    """A trial's telemetry in order of steps: of its trunk up to its branch, then of its branch. Each step comes once.

    The lists of an event may be shorter than in the journal. A resumed run emits some points again, and the first one counts.
    They are empty if an event holds the load of the workers alone, at its `step` and `time`.
    """
    branch = budget.steps_of(trial, trial.compute_flops).branch
    found = []
    for event in telemetry(state, trial.trunk.id):
        if event["on"] == repr(trial.compute_flops):
            found.append(event)
        elif event["on"] == "trunk" and (event["steps"] or [event["step"]])[0] <= branch:
            found.append(_with_points(event, [i for i, step in enumerate(event["steps"]) if step <= branch]))
    return sorted(found, key=lambda event: (event["steps"] or [event["step"]])[0])


def telemetry(state: State, trunk: str) -> list[Event]:
    """The telemetry of a trunk and its branches, in the journal's order. Each step of the trunk or a branch comes once."""
    known: set[tuple[str, int]] = set()
    found: list[Event] = []
    for event in state.telemetry.get(trunk, []):
        places = [(event["on"], step) for step in event["steps"]]
        fresh = [i for i, place in enumerate(places) if place not in known]
        known.update(places)
        if fresh or not places:
            found.append(_with_points(event, fresh))
    return found


def _with_points(event: Event, points: list[int]) -> Event:
    """A telemetry event with these of its points only, by index."""
    return event | {field: [event[field][i] for i in points] for field in POINT}


def missing(state: State, trial: TrialSpec, end: Event) -> list[tuple[str, int]]:
    """The evaluations, as (phase, step), that a trial should have for its end and lacks."""
    if end["status"] not in ("done", "diverged"):
        return []
    steps = budget.steps_of(trial, trial.compute_flops)
    reached = end["step"]  # a diverged trial has no later step
    wanted = [("trunk", s) for s in budget.evaluation_steps(trial, steps.branch) if s < steps.branch and s <= reached]
    if steps.branch < steps.end and reached >= steps.branch:
        wanted.append(("pre_decay", steps.branch))
    if end["status"] == "done":
        wanted.append(("final", steps.end))
    there = {(phase, event["step"]) for phase, event in trial_evaluations(state, trial)}
    return [pair for pair in wanted if pair not in there]


def maker(state: State) -> Callable[[Event], str | None]:
    """Return a function from an event to the fingerprint of its spec; None if that is unknown."""
    studies = {session.get("session", ""): session["study"] for session in state.sessions}
    of_session: dict[str, dict[str, str]] = {}

    def made_by(event: Event) -> str | None:
        if (named := event.get("fingerprint")) is not None or event["kind"] != "evaluation":
            return named
        session = event.get("session", "")
        if session not in of_session:
            of_session[session] = {}
            with contextlib.suppress(ValidationError, ValueError):  # this version may not read the recorded study
                if session in studies:
                    trunks = Study.from_record(studies[session]).trunks()
                    of_session[session] = {trunk.id: trunk.fingerprint() for trunk in trunks}
        return of_session[session].get(event["trunk"])

    return made_by


def changed(state: State, study: Study) -> list[str]:
    """Fields of recorded trunks that differ now, as `variant: training.learning_rate: 0.01 -> 0.02`."""
    made_by = maker(state)
    found: dict[str, None] = {}
    for trunk in study.trunks():
        events = state.evaluations.get(trunk.id)
        if events and trunk.fingerprint() not in (made := {made_by(e) for e in events}):
            changes = _differences(state, trunk)
            changes = changes or [f"fingerprint: {sorted(map(str, made))[0]} -> {trunk.fingerprint()}"]
            found |= dict.fromkeys(f"{trunk.variant or trunk.arm}: {field}" for field in changes)
    ends = {(e["trial"], e.get("fingerprint")): e for e in state.ends}
    recorded = {trial for trial, made in ends if made is not None}
    for trial in study.trials():
        if trial.id in recorded and (trial.id, trial.fingerprint()) not in ends:
            changes = _differences(state, trial.trunk) or [f"fingerprint of {trial.id}: now {trial.fingerprint()}"]
            found |= dict.fromkeys(f"{trial.variant or trial.arm}: {field}" for field in changes)
    return list(found)


def _differences(state: State, trunk: TrunkSpec) -> list[str]:
    """The differences from the newest recorded study that has this trunk with other settings."""
    now = trunk.model_dump(mode="json")
    for session in reversed(state.sessions):
        with contextlib.suppress(ValidationError, ValueError):
            for other in Study.from_record(session["study"]).trunks():
                if other.id == trunk.id and (changes := differences(other.model_dump(mode="json"), now)):
                    return changes
    return []
