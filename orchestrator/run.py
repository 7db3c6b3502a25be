"""Running a study: Ray Tune executes its trunks, as many as the machines have room for (`admission.py`, `together.py`).

The driver holds the study's lock, writes the journal (a Tune callback that only appends) and starts the publisher, which
is a process of its own. Ctrl-C raises a stop flag that every training loop looks at between two steps.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import links, machines, plan, record, together
from orchestrator.admission import Admission, Ask
from orchestrator.journal import Event, Journal, State
from orchestrator.plan import Options
from orchestrator.provenance import session_event
from orchestrator.study import Study
from trainers import checkpoint
from trainers.spec import TrunkSpec

STOP_FLAG = "stop"
"""A file of this name in a study's folder asks its driver and every trunk to stop; `emergence stop` makes it."""


class Watcher(Protocol):
    """What wants to know how a run gets on (`progress.py`)."""

    def on_slots(self, slots: int) -> None:
        """How many trunks can really run at once, now that Ray has told."""

    def take(self, events: list[Event]) -> None:
        """New events, already in the journal. Must return at once: the trunk that reported is waiting."""

    def say(self, line: str) -> None:
        """One line for the person who watches."""


Outcome = Literal["complete", "stopped", "failed"]


def run(
    study: Study, todo: list[plan.Job], folder: Path, options: Options, tracking_uri: str, watcher: Watcher
) -> Outcome:
    """Run the jobs of a study and publish it. The caller holds the lock and has shown the plan.

    Ray has been started (`machines.py`), and is shut down. Raises TuneError if Tune itself breaks; the journal then has what
    was reported.
    """
    flag = folder / STOP_FLAG
    flag.unlink(missing_ok=True)
    failures: list[Event] = []
    with machines.on_signals(_stopper(flag, watcher)):
        session = session_event(study, options._asdict())
        journal = Journal(folder)
        journal.append([session])
        publisher = record.start_publisher(folder, tracking_uri, follow=True)

        def sink(events: list[Event]) -> None:
            journal.append(events)
            watcher.take(events)

        try:
            if not flag.exists():
                failures = _run_on_ray(todo, folder, options, session["session"], sink, watcher.say)
            delivered = State.of(folder).trials
            failures = [f for f in failures if f["trial"] not in delivered]
            sink([] if flag.exists() else failures)
        except KeyboardInterrupt:  # the second Ctrl-C: every trunk loses what it did since its last checkpoint
            pass
        finally:
            ray.shutdown()
            journal.close()
            flag.unlink(missing_ok=True)
    watcher.say("Writing tables, report and MLflow runs ...")
    record.finish_publishing(publisher, folder, watcher.say)
    state = State.of(folder)
    if speed := plan.recorded_throughput(state, options.device):
        plan.remember_throughput(study, options.device, speed)
    if failures:
        return "failed"
    return "stopped" if plan.jobs(study, state) else "complete"


# Ray ----------------------------------------------------------------------------------------------------------------


class _Ears(NamedTuple):
    take: Callable[[list[Event]], None]
    say: Callable[[str], None]


_EARS: dict[str, _Ears] = {}
"""Where each session's reports go. Held here because Tune pickles callbacks, and an open journal cannot come along."""


class Scribe(tune.Callback):
    """Hands what trunks report to the driver's ears and does nothing else: every trunk waits for it."""

    def __init__(self, session: str) -> None:
        self.session = session

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Called by Tune in the driver for each report, in order."""
        if "events" in result:
            _EARS[self.session].take(json.loads(result["events"]))
        if note := result.get("note"):
            _EARS[self.session].say(note)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Called by Tune when a trunk failed, or its machine was lost, and is tried again."""
        trunk = trial.config["job"]["trunk_id"]
        how = ""
        with contextlib.suppress(OSError, TypeError):  # an error here would end the whole run
            how = Path(
                trial.error_file
            ).read_text()  # on the driver's disk; Tune's own reading looks elsewhere, too early
        left = trial.max_failures + 1 - trial.run_metadata.num_failures
        again = f"it goes on from its checkpoint; {left} {'try is' if left == 1 else 'tries are'} left"
        _EARS[self.session].say(f"{trunk} failed: {_reason(how)}; {again}")


def _run_on_ray(
    todo: list[plan.Job],
    folder: Path,
    options: Options,
    session: str,
    sink: Callable[[list[Event]], None],
    say: Callable[[str], None],
) -> list[Event]:
    """Execute the jobs through Ray Tune; returns a `trial` event of status failed for each trial that was lost."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures in our own words
    _EARS[session] = _Ears(sink, say)
    scratch = folder / ".tune"
    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)  # beside the driver, not on a worker that may go
    desk = together.Desk.options(name=f"desk-{session}", scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()
    watching = threading.Thread(target=together.watch, args=(folder / STOP_FLAG, desk, done), daemon=True)
    asks = [
        Ask({"job": _config(job, folder, options, session)}, plan.slots_of(job.laid, options), job.trunk.id)
        for job in todo
    ]
    admission = Admission(asks, partial(machines.slots_there, options), partial(machines.want, options), say)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "200"  # Tune would start one by one; admission lets in no more than fit
    try:
        watching.start()
        tuner = tune.Tuner(
            tune.with_resources(together.execute, partial(_resources_of, options)),
            tune_config=tune.TuneConfig(reuse_actors=True, search_alg=admission, num_samples=len(asks)),
            run_config=tune.RunConfig(
                name=session,
                storage_path=str(scratch),
                verbose=0,
                callbacks=[Scribe(session)],
                failure_config=tune.FailureConfig(max_failures=options.retries),
            ),
        )
        grid = tuner.fit()
        lost = [failure for i in range(len(grid)) if (failure := _failure(grid[i], session))]
        return [event for events in lost for event in events]
    finally:
        done.set()
        with contextlib.suppress(Exception):  # the cluster may be what was lost, and this would hide how
            machines.want(options, 0)
        del _EARS[session]
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            checkpoint.store_of(_scratch(folder, options, session)).remove("")


def _resources_of(options: Options, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Tune reserves: the slot itself, or, where Ray Train will reserve the workers', next to nothing on the head."""
    alone = config["job"]["workers"] == 1
    return tune.PlacementGroupFactory([machines.slot(options) if alone else {"node:__internal_head__": 0.001}])


def _config(job: plan.Job, folder: Path, options: Options, session: str) -> dict[str, Any]:
    place = {
        "device": options.device,
        "checkpoint_folder": plan.checkpoint_folder(folder, job.trunk, options.storage),
        "checkpoint_every_seconds": options.checkpoint_seconds,
        "weights_folder": plan.weights_of(folder, options.storage) if options.keep_weights else None,
        "compiled": job.laid.compiled,
    }
    if (fit := job.laid.fit) is not None:
        place |= {name: getattr(fit, name) for name in ("zero_stage", "micro_batch", "recompute", "offload")}
    return {
        "trunk": job.trunk.model_dump_json(),
        "trunk_id": job.trunk.id,
        "budgets": list(job.budgets),
        "workers": job.laid.workers,
        "session": session,
        "desk": f"desk-{session}",
        "scratch": _scratch(folder, options, session),
        "place": place,
    }


def _scratch(folder: Path, options: Options, session: str) -> str:
    """Where Ray Train puts what it insists on writing; it must be seen from every machine, and is thrown away."""
    if options.storage is None:
        return str(folder / ".tune")
    return checkpoint.under(options.storage, folder.name, f"scratch-{session}")


def _failure(result: Any, session: str) -> list[Event]:
    """The trials that a failed Ray Tune trial did not deliver, as events; the reason in one line."""
    if result.error is None or not result.config:
        return []
    job = result.config["job"]
    trunk = TrunkSpec.model_validate_json(job["trunk"])
    return [
        {
            "kind": "trial",
            "key": f"{trunk.id}/failed/{flops!r}/{session}",
            "trunk": trunk.id,
            "trial": trunk.trial(flops).id,
            "status": "failed",
            "reason": _reason(str(result.error) or type(result.error).__name__),
            "time": time.time(),
            "session": session,
        }
        for flops in job["budgets"]
    ]


def _reason(said: str) -> str:
    """Why something failed, in one line: the last of what Ray says."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return links.without_password(lines[-1].strip())[:500] if lines else "no reason given"


# Stopping -----------------------------------------------------------------------------------------------------------


def _stopper(flag: Path, watcher: Watcher) -> machines.Handler:
    """A handler that raises the stop flag; called again, it does not wait for the trunks."""

    def stop(number: int, frame: FrameType | None) -> None:
        if flag.exists():
            raise KeyboardInterrupt
        flag.touch()
        watcher.say("Stopping: every trunk saves after the step it is in. Ctrl-C again leaves at once.")

    return stop
