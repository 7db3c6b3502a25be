"""What a journal comes to for one study: events of its present settings, and as ended only trials whose rows are all there.

An event counts if the spec that made it is the study's: it names its fingerprint. Journals of earlier versions name it for trials
alone; of their other events it is worked out from the study that their session recorded.
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
from trainers.spec import TrialSpec, TrunkSpec


class Recorded(State):
    """The state of a study, by `of_study`."""

    short: tuple[str, ...] = ()
    """Trials that were recorded as ended and lack rows: they are not ended, and are trained again."""


def read(folder: Path, study: Study) -> Recorded:
    """What counts of the journal in a folder. Raises OSError."""
    return of_study(State.of(folder), study)


def of_study(state: State, study: Study) -> Recorded:
    """What counts of a journal for a study."""
    made_by = maker(state)
    found = Recorded()
    for name in ("study", "sessions", "trunks", "last_time", "record", "lease", "n_bytes", "damage"):
        setattr(found, name, getattr(state, name))
    trunks = {trunk.id: trunk for trunk in study.trunks()}
    for name, trunk in trunks.items():
        fingerprint = trunk.fingerprint() if name in state.evaluations else ""
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
    for event in state.ends:  # outside the study's axes: in no table, and counted
        if event["trial"] not in trials:
            found.trials.setdefault(event["trial"], event)
    return found


OF_RUNS = ("results.parquet", "runs.parquet", "report.html", "published.json")


def left_without_journal(state: State, folder: Path, study: Study | None = None) -> list[str]:
    """What earlier runs left in a folder whose journal is gone or empty: a new run would write over it.

    Checkpoints of the `study` are no such thing: they hold every event, and a run goes on from them.
    """
    if state.keys:
        return []
    left = [name for name in OF_RUNS if (folder / name).exists()]
    mine = {trunk.fingerprint() for trunk in study.trunks()} if study else set()
    for manifest in (folder / "checkpoints").rglob("manifest.json") if study else ():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if json.loads(manifest.read_bytes())["fingerprint"] not in mine:
                return [*left, "checkpoints of other settings"]
    return left


def trial_evaluations(state: State, trial: TrialSpec) -> list[tuple[str, Event]]:
    """A trial's evaluations, (phase, event) in order: its trunk up to its branch, then its branch."""
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


def missing(state: State, trial: TrialSpec, end: Event) -> list[tuple[str, int]]:
    """The evaluations, as (phase, step), that a trial must have for the way that it ended, and has not."""
    if end["status"] not in ("done", "diverged"):
        return []
    steps = budget.steps_of(trial, trial.compute_flops)
    reached = end["step"]  # one that diverged got no further
    wanted = [("trunk", s) for s in budget.evaluation_steps(trial, steps.branch) if s < steps.branch and s <= reached]
    if steps.branch < steps.end and reached >= steps.branch:
        wanted.append(("pre_decay", steps.branch))
    if end["status"] == "done":
        wanted.append(("final", steps.end))
    there = {(phase, event["step"]) for phase, event in trial_evaluations(state, trial)}
    return [one for one in wanted if one not in there]


def maker(state: State) -> Callable[[Event], str | None]:
    """A function: the fingerprint of the spec that made an event; None where nothing tells."""
    studies = {session.get("session", ""): session["study"] for session in state.sessions}
    of_session: dict[str, dict[str, str]] = {}

    def made_by(event: Event) -> str | None:
        if (named := event.get("fingerprint")) is not None or event["kind"] != "evaluation":
            return named
        session = event.get("session", "")
        if session not in of_session:
            of_session[session] = {}
            with contextlib.suppress(ValidationError, ValueError):  # a record that this version cannot read
                if session in studies:
                    trunks = Study.from_record(studies[session]).trunks()
                    of_session[session] = {trunk.id: trunk.fingerprint() for trunk in trunks}
        return of_session[session].get(event["trunk"])

    return made_by


def changed(state: State, study: Study) -> list[str]:
    """Fields of trunks that have recorded events and differ now, as `variant: training.learning_rate: 0.01 -> 0.02`."""
    made_by = maker(state)
    found: dict[str, None] = {}
    for trunk in study.trunks():
        events = state.evaluations.get(trunk.id)
        if events and trunk.fingerprint() not in (made := {made_by(e) for e in events}):
            said = _differences(state, trunk) or [f"fingerprint: {sorted(map(str, made))[0]} -> {trunk.fingerprint()}"]
            found |= dict.fromkeys(f"{trunk.variant or trunk.arm}: {field}" for field in said)
    ends = {(e["trial"], e.get("fingerprint")): e for e in state.ends}
    recorded = {trial for trial, made in ends if made is not None}
    for trial in study.trials():
        if trial.id in recorded and (trial.id, trial.fingerprint()) not in ends:
            said = _differences(state, trial.trunk) or [f"fingerprint of {trial.id}: now {trial.fingerprint()}"]
            found |= dict.fromkeys(f"{trial.variant or trial.arm}: {field}" for field in said)
    return list(found)


def _differences(state: State, trunk: TrunkSpec) -> list[str]:
    """How the newest recorded study that has this trunk sets it otherwise."""
    now = trunk.model_dump(mode="json")
    for session in reversed(state.sessions):
        with contextlib.suppress(ValidationError, ValueError):
            for other in Study.from_record(session["study"]).trunks():
                if other.id == trunk.id and (said := differences(other.model_dump(mode="json"), now)):
                    return said
    return []
