"""Run a study: Ray Tune executes its trunks, as many at once as fit on the machines.

The driver holds the study's lock and writes the journal through the journal callback, which only appends. It starts the
publisher in a process of its own. A stop reaches every training loop through the event relay. If Ray dies, the driver
ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import files
from orchestrator.plan import caps, jobs
from orchestrator.plan.options import Options, slots_of
from orchestrator.record import links, publisher, recorded
from orchestrator.record.journal import Event, Journal, State
from orchestrator.record.lease import LeaseLostError, StudyLock
from orchestrator.record.provenance import session_end, session_event
from orchestrator.run import machines, supervise, worker
from orchestrator.run.admission import Admission, Ask
from orchestrator.run.relay import Relay, hand_on_live, hand_on_stop
from orchestrator.run.supervise import StopRequest
from orchestrator.study.schema import Study
from trainers import checkpoint
from trainers.data import folders, store

Outcome = Literal["complete", "capped", "stopped", "failed", "broken"]


def run(
    study: Study,
    todo: list[jobs.Job],
    folder: Path,
    lock: StudyLock,
    options: Options,
    tracking_uri: str,
    take: Callable[[list[Event]], None],
    say: Callable[[str], None],
    stop_request: StopRequest,
    watch: Callable[[dict[str, Event]], None] = lambda live: None,
) -> Outcome:
    """Run the jobs of a study and publish it.

    The caller holds the `lock`, has shown the plan, and has started Ray (`machines.py`). Ray is shut down here. `take`
    receives events that are in the journal, and must return at once: their trunk is waiting. `say` shows a line.
    `watch` receives live values by trunk id each second, in a thread; they are in no journal.
    "broken" means that Ray or Tune ended the run. The journal then holds everything that was reported. Raises OSError
    if the journal cannot be written. Raises LeaseLostError if another driver took over. Every trunk has saved by then.
    If Ray dies, the process ends with exit code 1. This function then does not return.
    """
    failures: list[Event] = []
    broken = False
    outcome: Outcome = "broken"
    with machines.on_signals(stop_request.on_signal):
        session = session_event(study, options._asdict(), State.of(folder).record)
        journal, writing = Journal(folder, lock), threading.Lock()
        state = recorded.read(folder, study)
        meter, donors = caps.Meter(state), _Donors(state, todo)
        journal.append([session])
        publishing = publisher.start_publisher(folder, tracking_uri, follow=True)
        ray_ends, capped = threading.Event(), threading.Event()
        lifeline = machines.Lifeline.of(options)
        threading.Thread(target=_end_with_ray, args=(lifeline, ray_ends, writing), daemon=True).start()

        def at_cap(reason: str) -> None:
            capped.set()
            stop_request.ask_this_driver()
            say(f"{study.id}: {reason}.")

        capping = (meter, options, stop_request, ray_ends, at_cap)
        threading.Thread(target=_stop_at_a_cap, args=capping, daemon=True).start()
        sink = _Sink(journal, writing, (meter.take, donors.take, take), stop_request)

        def watch_all(live: dict[str, Event]) -> None:
            meter.watch(live)
            watch(live)

        try:
            if not stop_request.is_asked():
                _share_data(study, options)
                given = (folder, options, session["session"], sink, say, stop_request, watch_all)
                failures = _run_on_ray(todo, donors, *given)
            failures = undelivered(failures, recorded.read(folder, study))
            if failures:
                _leave_if_lost(lifeline, writing)  # if Ray died, the trials did not fail
                sink(failures)
        except KeyboardInterrupt:  # the second Ctrl-C: every trunk loses its work since its last checkpoint
            pass
        except Exception as problem:
            for _ in range(10):  # the error may come from Ray's death, before the lifeline has noticed it
                _leave_if_lost(lifeline, writing)
                time.sleep(0.2)
            if isinstance(problem, OSError):
                raise
            broken = True
            with contextlib.suppress(OSError):
                os.write(2, traceback.format_exc().encode())  # to the log
            reason = _reason(f"{type(problem).__name__}: {problem}")
            say(f"Ray or Tune ended the run: {reason}; for details see {folder / 'driver.log'}.")
        finally:
            ray_ends.set()
            machines.shutdown()
            with contextlib.suppress(OSError, LeaseLostError):  # then this run counts up to its last event
                outcome = _outcome(study, folder, broken, failures, capped.is_set(), stop_request)
                if sink.problem is None:
                    journal.append([session_end(session["session"], outcome, meter.running_flops)])
            journal.close()
            if not isinstance(sink.problem, LeaseLostError):
                stop_request.clear()  # after a lost lease the file belongs to the new holder
    if sink.problem is not None:
        publisher.leave_publishing(publishing)
        raise sink.problem
    say("Writing tables, report and MLflow runs ...")
    publisher.finish_publishing(
        publishing, folder, say, partial(publisher.start_publisher, folder, tracking_uri, follow=False)
    )
    return outcome


class _Sink:
    """Takes events: appends them to the journal, then hands them to the `takers`.

    A call never raises: an error in a callback would end Tune before any trunk could save. The first one stands in `problem`
    and stops this driver.
    """

    def __init__(
        self,
        journal: Journal,
        writing: threading.Lock,
        takers: tuple[Callable[[list[Event]], None], ...],
        stop_request: StopRequest,
    ) -> None:
        self.journal, self.writing, self.takers, self.stop_request = journal, writing, takers, stop_request
        self.problem: OSError | LeaseLostError | None = None

    def __call__(self, events: list[Event]) -> None:
        if self.problem is not None:
            return
        try:
            with self.writing:
                self.journal.append(events)
        except (OSError, LeaseLostError) as problem:  # the checkpoints hold these events and emit them again
            self.problem = problem
            self.stop_request.ask_this_driver()
            return
        for take in self.takers:
            take(events)


def _stop_at_a_cap(
    meter: caps.Meter,
    options: Options,
    stop_request: StopRequest,
    ray_ends: threading.Event,
    at_cap: Callable[[str], None],
) -> None:
    """In a thread until `ray_ends` or a stop: at the first cap that is reached, call `at_cap` with it in words."""
    while not ray_ends.wait(0.1):
        if stop_request.is_asked():
            return
        if reason := caps.reached(meter, options):
            at_cap(reason)
            return


def _outcome(
    study: Study, folder: Path, broken: bool, failures: list[Event], capped: bool, stop_request: StopRequest
) -> Outcome:
    """How a run ended. Failures come before a cap, and a stop by the user before failures."""
    if broken:
        return "broken"
    state = recorded.read(folder, study)
    lost_for_good = jobs.ended(study, state)  # those whose donor failed
    if {failure["trial"] for failure in failures} - lost_for_good and (capped or not stop_request.is_asked()):
        return "failed"
    if not jobs.owes(study, state):
        return "complete"
    return "capped" if capped else "stopped"


def undelivered(failures: list[Event], state: State) -> list[Event]:
    """The failures whose trial has no other outcome. Failures of earlier sessions are no outcome."""
    return [f for f in failures if state.trials.get(f["trial"], f)["status"] == "failed"]


def _end_with_ray(lifeline: machines.Lifeline, ray_ends: threading.Event, writing: threading.Lock) -> None:
    """In a thread until `ray_ends`: if Ray dies, end the process. The main thread may wait for Ray for ever."""
    while not ray_ends.wait(1.0):
        _leave_if_lost(lifeline, writing)


def _leave_if_lost(lifeline: machines.Lifeline, writing: threading.Lock) -> None:
    """End this process if Ray is dead, after a journal write in progress (at most 5 s)."""
    if reason := lifeline.lost():
        writing.acquire(timeout=5.0)
        supervise.tell("lost", reason)
        os._exit(1)


# Ray ----------------------------------------------------------------------------------------------------------------


class _Receiver(NamedTuple):
    take: Callable[[list[Event]], None]
    say: Callable[[str], None]
    failed: Callable[[str, str], None]
    """Takes the id of a trunk that failed for good, and the reason."""


_RECEIVERS: dict[str, _Receiver] = {}
"""Session -> receiver of its reports. A global, because Tune pickles callbacks and an open journal cannot be pickled."""


class JournalCallback(tune.Callback):
    """The journal callback: passes reports to the driver and does nothing else, because every trunk waits for it."""

    def __init__(self, session: str) -> None:
        self.session = session

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Tune calls this in the driver for each report, in order."""
        if "events" in result:
            _RECEIVERS[self.session].take(json.loads(result["events"]))
        if note := result.get("note"):
            _RECEIVERS[self.session].say(note)
        if reason := result.get("failed"):  # for good
            _RECEIVERS[self.session].failed(trial.config["job"]["trunk_id"], reason)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Tune calls this when a trunk failed or lost its machine, and is tried again."""
        trunk, reason = trial.config["job"]["trunk_id"], self._why(trial)
        left = trial.max_failures + 1 - trial.run_metadata.num_failures
        again = f"it resumes from its checkpoint; {left} {'try is' if left == 1 else 'tries are'} left"
        _RECEIVERS[self.session].say(f"{trunk} failed: {reason}; {again}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Tune calls this when a trunk has failed for good."""
        _RECEIVERS[self.session].failed(trial.config["job"]["trunk_id"], self._why(trial))

    def _why(self, trial: Any) -> str:
        """The reason of a failure, from the error file on the driver's disk. Tune's reader looks elsewhere and too early."""
        text = ""
        with contextlib.suppress(OSError, TypeError):  # an error here would end the whole run
            text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        return _reason(text)


class _Donors:
    """How the trials have ended that others begin with, during a run."""

    def __init__(self, state: State, todo: list[jobs.Job]) -> None:
        """`state`: the journal before this run. Failures in it do not count for trials that are tried again now."""
        self._trunks = {job.trunk.trial(flops).id: job.trunk.id for job in todo for flops in job.budgets}
        self._ends = {trial: event for trial, event in state.trials.items() if trial not in self._trunks}
        self.reasons: dict[str, str] = {}
        """Trunks that failed for good in this run, with the reason."""

    def take(self, events: list[Event]) -> None:
        """Take note of trials that ended."""
        self._ends |= {event["trial"]: event for event in events if event["kind"] == "trial"}

    def status(self, donor: str) -> str | None:
        """How a donor ended: `done`, `diverged` or `failed`; None if it has not."""
        if donor in self._ends:
            return str(self._ends[donor]["status"])
        return "failed" if self._trunks.get(donor) in self.reasons else None

    def why_lost(self, donor: str) -> str:
        """The reason why trials that begin with a donor fail, by its end."""
        why = self._ends.get(donor, {}).get("reason") or self.reasons.get(self._trunks.get(donor, ""))
        words = f"it begins with the weights of {donor}, which {self.status(donor) or 'did not end'}"
        return f"{words}: {why}"[:500] if why else words


def _run_on_ray(
    todo: list[jobs.Job],
    donors: _Donors,
    folder: Path,
    options: Options,
    session: str,
    sink: Callable[[list[Event]], None],
    say: Callable[[str], None],
    stop_request: StopRequest,
    watch: Callable[[dict[str, Event]], None],
) -> list[Event]:
    """Execute the jobs through Ray Tune. Returns a "failed" event for each trial of a trunk that failed."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures in our own words
    reasons = donors.reasons

    def failed(trunk: str, reason: str) -> None:
        if not stop_request.is_asked():  # else it may have failed because of the stop, and the next run tries it again
            reasons[trunk] = reason

    _RECEIVERS[session] = _Receiver(sink, say, failed)
    scratch = folder / ".tune"
    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)  # beside the driver, not on a worker that may be lost
    relay = Relay.options(name=f"relay-{session}", scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()
    stopping = threading.Thread(target=hand_on_stop, args=(stop_request, relay, done, say), daemon=True)
    watching = threading.Thread(target=hand_on_live, args=(relay, done, watch), daemon=True)
    asks = [
        Ask(
            {"job": _config(job, folder, options, session)},
            slots_of(job.placement, options),
            job.trunk.id,
            job.trunk.start.trial if job.trunk.start else "",
        )
        for job in todo
    ]
    admission = Admission(
        asks,
        partial(machines.slots_there, options),
        partial(machines.want, options),
        say,
        stop_request.is_asked,
        donors.status,
        lambda ask: failed(ask.name, donors.why_lost(ask.donor)),
    )
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "200"  # Tune would start one by one; admission lets in no more than fit
    try:
        stopping.start()
        watching.start()
        tuner = tune.Tuner(
            tune.with_resources(worker.execute, partial(_resources_of, options)),
            tune_config=tune.TuneConfig(reuse_actors=True, search_alg=admission, num_samples=len(asks)),
            run_config=tune.RunConfig(
                name=session,
                storage_path=str(scratch),
                verbose=0,
                callbacks=[JournalCallback(session)],
                failure_config=tune.FailureConfig(max_failures=options.retries),
            ),
        )
        tuner.fit()
        return [
            event for job in todo if job.trunk.id in reasons for event in _failures(job, reasons[job.trunk.id], session)
        ]
    finally:
        done.set()
        stopping.join(5.0)
        watching.join(5.0)
        with contextlib.suppress(Exception):  # the cluster may be lost, and an error here would hide the reason
            machines.want(options, 0)
        del _RECEIVERS[session]
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            checkpoint.store_of(_scratch(folder, options, session)).remove("")


def _resources_of(options: Options, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Resources that Tune reserves: one slot, or next to nothing on the head for a group, whose slots Ray Train reserves."""
    alone = config["job"]["workers"] == 1
    return tune.PlacementGroupFactory([machines.slot(options) if alone else {"node:__internal_head__": 0.001}])


def _config(job: jobs.Job, folder: Path, options: Options, session: str) -> dict[str, Any]:
    place = {
        "device": options.device,
        "checkpoint_folder": jobs.checkpoint_folder(folder, job.trunk, options.storage),
        "checkpoint_every_seconds": options.checkpoint_seconds,
        "weights_folder": jobs.stored("weights", folder, options.storage) if options.keep_weights else None,
        "starts_folder": jobs.stored("starts", folder, options.storage),
        "starts": job.starts,
        "compiled": job.placement.compiled,
        "data_folder": _data_folder(options),
    }
    if (fit := job.placement.fit) is not None:
        place |= {name: getattr(fit, name) for name in ("zero_stage", "micro_batch", "recompute", "offload")}
    return {
        "trunk": job.trunk.model_dump_json(),
        "trunk_id": job.trunk.id,
        "budgets": list(job.budgets),
        "workers": job.placement.workers,
        "session": session,
        "relay": f"relay-{session}",
        "scratch": _scratch(folder, options, session),
        "place": place,
    }


def _data_folder(options: Options) -> str:
    """The folder or URI of prepared data, seen by all machines."""
    return checkpoint.under(options.storage, "data") if options.storage else str(files.data_folder())


def _share_data(study: Study, options: Options) -> None:
    """Copy the study's prepared data to the storage that all machines see. Raises TableError, in one line, if it refuses."""
    if options.storage:
        families = [study.family_of(condition) for condition in study.conditions]
        for digest in dict.fromkeys(d for family in families for d in family.data_digests):
            folders.put(store.folder_of(digest), _data_folder(options))


def _scratch(folder: Path, options: Options, session: str) -> str:
    """A folder, seen by all machines, for files that Ray Train always writes. It is deleted at the end."""
    if options.storage is None:
        return str(folder / ".tune")
    return checkpoint.under(options.storage, folder.name, f"scratch-{session}")


def _failures(job: jobs.Job, reason: str, session: str) -> list[Event]:
    """A "failed" event for each trial of a trunk. The caller drops those that were delivered."""
    trunk = job.trunk
    return [
        {
            "kind": "trial",
            "key": f"{trunk.id}/failed/{flops!r}/{session}",
            "trunk": trunk.id,
            "trial": trunk.trial(flops).id,
            "fingerprint": trunk.trial(flops).fingerprint(),
            "status": "failed",
            "reason": reason,
            "time": time.time(),
            "session": session,
        }
        for flops in job.budgets
    ]


def _reason(text: str) -> str:
    """The last line of an error text that says something, without passwords, at most 500 characters."""
    lines = [line for line in text.strip().splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return links.without_password(lines[-1].strip())[:500] if lines else "no reason given"
