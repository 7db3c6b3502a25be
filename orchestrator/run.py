"""Running a study: Ray Tune executes its trunks, as many as the machines have room for (`admission.py`, `together.py`).

The driver holds the study's lock, writes the journal (a Tune callback that only appends) and starts the publisher, which
is a process of its own. Ctrl-C raises a stop flag that every training loop looks at between two steps.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import ray
from ray import tune

from orchestrator import plan, record, together
from orchestrator.admission import Admission, Ask
from orchestrator.journal import Event, Journal, State
from orchestrator.plan import Options
from orchestrator.provenance import session_event
from orchestrator.study import Study
from trainers.spec import TrunkSpec

STOP_FLAG = "stop"
"""A file of this name in a study's folder asks its driver and every trunk to stop; `emergence stop` makes it."""

ANSWER_SECONDS = 10.0
"""A cluster that has not answered by then is taken for absent; Ray itself asks for minutes, and ends the process."""


class Watcher(Protocol):
    """What wants to know how a run gets on (`progress.py`)."""

    def on_slots(self, slots: int) -> None:
        """How many trunks can really run at once, now that Ray has told."""

    def take(self, events: list[Event]) -> None:
        """New events, already in the journal. Must return at once: the trunk that reported is waiting."""

    def say(self, line: str) -> None:
        """One line for the person who watches."""


Outcome = Literal["complete", "stopped", "failed"]


class ClusterProblem(Exception):
    """Ray cannot be started or joined, or lacks what the options ask for. Nothing ran."""


def run(
    study: Study, todo: list[plan.Job], folder: Path, options: Options, tracking_uri: str, watcher: Watcher
) -> Outcome:
    """Run the jobs of a study and publish it. The caller holds the lock and has shown the plan.

    Before anything is written, raises ClusterProblem, and KeyboardInterrupt if asked to stop while Ray starts. Raises
    TuneError if Tune itself breaks; the journal then has what was reported.
    """
    flag = folder / STOP_FLAG
    flag.unlink(missing_ok=True)
    failures: list[Event] = []
    watcher.on_slots(_start_unless_stopped(options, max(job.laid.workers for job in todo)))
    with _on_signals(_stopper(flag, watcher)):
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


_SINKS: dict[str, Callable[[list[Event]], None]] = {}
"""Where each session's reports go. Held here because Tune pickles callbacks, and an open journal cannot come along."""


class Scribe(tune.Callback):
    """Hands what trunks report to the driver's sink and does nothing else: every trunk waits for it."""

    def __init__(self, session: str) -> None:
        self.session = session

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Called by Tune in the driver for each report, in order."""
        if "events" in result:
            _SINKS[self.session](json.loads(result["events"]))


def _run_on_ray(
    todo: list[plan.Job],
    folder: Path,
    options: Options,
    session: str,
    sink: Callable[[list[Event]], None],
    say: Callable[[str], None],
) -> list[Event]:
    """Execute the jobs through Ray Tune; returns a `trial` event of status failed for each trial that was lost."""
    _SINKS[session] = sink
    scratch = folder / ".tune"
    desk = together.Desk.options(name=f"desk-{session}").remote()  # type: ignore[attr-defined]
    done = threading.Event()
    watching = threading.Thread(target=together.watch, args=(folder / STOP_FLAG, desk, done), daemon=True)
    asks = [Ask({"job": _config(job, folder, options, session)}, _slots_of(job, options), job.trunk.id) for job in todo]
    admission = Admission(asks, partial(_slots_there, options), partial(_want, options), say)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, _slots_there(options)))  # admission lets in no more than fit
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
        _want(options, 0)
        del _SINKS[session]
        shutil.rmtree(scratch, ignore_errors=True)


_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # actors are reused: a changed working directory would stay with them
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops between two steps and saves
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a Tuner is never restored: its state file can be torn
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def _start_unless_stopped(options: Options, widest: int) -> int:
    """Start Ray; the number of slots it offers. A signal meanwhile is a KeyboardInterrupt, whatever Ray makes of it.

    (Ctrl-C reaches Ray's own processes too: its dashboard dies of it, and `ray.init` then raises what it will.)
    """
    asked: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    try:
        with _on_signals(leave):
            slots = _start_ray(options, widest)
    except BaseException:
        if asked:
            raise KeyboardInterrupt from None
        raise
    if asked:
        raise KeyboardInterrupt
    return slots


def _start_ray(options: Options, widest: int) -> int:
    """Start Ray on this machine, or join the cluster; the number of slots it offers. Raises ClusterProblem, also where a trunk
    of the `widest` number of workers can never start.

    A bare `ray.init` would join whatever it finds.
    """
    os.environ |= _ENVIRONMENT
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}  # failures in our own words
    if options.address == "local":
        quiet |= {"num_cpus": options.slots or os.cpu_count(), "object_store_memory": 256 * 2**20}
        quiet |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    else:
        _ask_for_an_answer(options.address)
        quiet |= {"runtime_env": {"env_vars": _ENVIRONMENT}}  # workers elsewhere do not inherit ours
    try:
        ray.init(address=options.address, **quiet)
    except Exception as problem:  # some are bare
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        reason = lines[0] if lines else type(problem).__name__
        raise ClusterProblem(f"{_named(options.address)}: Ray cannot be reached: {reason}") from None
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    there, most = ray.cluster_resources(), _slots_at_most(options)
    if most < widest:
        needed, needs = _slot(options), "one slot needs" if widest == 1 else f"a trial of {widest} workers needs"
        lacking = min(needed, key=lambda name: there.get(name, 0) / needed[name])
        text = f"{needs} {widest * needed[lacking]:g} {lacking}, Ray sees {there.get(lacking, 0):g}"
        limit = f" and --slots {options.slots} is given" if options.slots else ""
        ray.shutdown()
        raise ClusterProblem(f"{_named(options.address)}: {text}{limit}; it would never start")
    return _slots_there(options)


def _slots_at_most(options: Options) -> int:
    """Slots that the cluster has, or may grow to where it says how far."""
    limits = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    there = ray.cluster_resources()
    return _count({name: max(there.get(name, 0), limits.get(name, 0)) for name in _slot(options)}, options)


def _slots_there(options: Options) -> int:
    """Slots that the cluster has now."""
    return _count(ray.cluster_resources(), options)


def _count(there: dict[str, float], options: Options) -> int:
    slots = min(int(there.get(name, 0) / share + 1e-9) for name, share in _slot(options).items())
    return min(slots, options.slots or slots)


def _want(options: Options, slots: int) -> None:
    """Tell the cluster's autoscaler, if it has one, how many slots are of use: pending trials are all that it sees by itself."""
    if options.address != "local":
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[_slot(options)] * min(slots, options.slots or slots))


def _ask_for_an_answer(address: str) -> None:
    """Does a server speak to us at this address of a cluster? Raises ClusterProblem within ANSWER_SECONDS.

    `auto` is looked up where Ray does: $RAY_ADDRESS, then what `ray start` left on this machine.
    """
    import grpc  # type: ignore[import-untyped]  # what Ray's head, and its client server, speak; ray[default] brings it

    named, target = _named(address), address
    what = "give the address of a cluster's head, host:6379 or ray://host:10001, or '--address local' for this machine"
    if address == "auto":
        left = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
        target = os.environ.get("RAY_ADDRESS") or (left.read_text().strip() if left.exists() else "")
        named = f"{named} ({target})"
    if target.startswith(("http://", "https://")):
        raise ClusterProblem(f"{named}: that is where 'ray job submit' goes; {what}")
    place = target.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not (host and port.isdigit()):
        return  # Ray says at once what is wrong with it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as problem:
        raise ClusterProblem(f"{named}: nothing answers there ({problem}); {what}") from None
    if os.environ.get("RAY_USE_TLS") == "1":
        return  # only Ray has the certificates
    with grpc.insecure_channel(place, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise ClusterProblem(
                f"{named}: what listens there did not answer as Ray does within {ANSWER_SECONDS:g} s; {what}"
            ) from None


def _named(address: str) -> str:
    """An address with where it was given."""
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def _slot(options: Options) -> dict[str, float]:
    """What one slot takes: a core, and on GPUs its share of one."""
    return {"CPU": 1} | ({"GPU": 1 / options.slots_per_gpu} if options.device == "cuda" else {})


def _slots_of(job: plan.Job, options: Options) -> int:
    """Slots of a trunk: one, or one for each worker; of several workers each has a GPU to itself."""
    workers = job.laid.workers
    return workers if workers == 1 or options.device == "cpu" else workers * options.slots_per_gpu


def _resources_of(options: Options, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Tune reserves: the slot itself, or, where Ray Train will reserve the workers', next to nothing on the head."""
    alone = config["job"]["workers"] == 1
    return tune.PlacementGroupFactory([_slot(options) if alone else {"node:__internal_head__": 0.001}])


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
        "scratch": options.storage or str(folder / ".tune"),
        "place": place,
    }


def _failure(result: Any, session: str) -> list[Event]:
    """The trials that a failed Ray Tune trial did not deliver, as events; the reason in one line."""
    if result.error is None or not result.config:
        return []
    job = result.config["job"]
    trunk = TrunkSpec.model_validate_json(job["trunk"])
    lines = [line for line in str(result.error).strip().splitlines() if line.strip()]
    reason = lines[-1].strip()[:500] if lines else type(result.error).__name__
    return [
        {
            "kind": "trial",
            "key": f"{trunk.id}/failed/{flops!r}/{session}",
            "trunk": trunk.id,
            "trial": trunk.trial(flops).id,
            "status": "failed",
            "reason": reason,
            "time": time.time(),
            "session": session,
        }
        for flops in job["budgets"]
    ]


# Stopping -----------------------------------------------------------------------------------------------------------


Handler = Callable[[int, FrameType | None], None]


def _stopper(flag: Path, watcher: Watcher) -> Handler:
    """A handler that raises the stop flag; called again, it does not wait for the trunks."""

    def stop(number: int, frame: FrameType | None) -> None:
        if flag.exists():
            raise KeyboardInterrupt
        flag.touch()
        watcher.say("Stopping: every trunk saves after the step it is in. Ctrl-C again leaves at once.")

    return stop


@contextmanager
def _on_signals(handler: Handler) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to this handler meanwhile."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
