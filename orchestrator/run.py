"""Running a study: Ray Tune executes trunks on reused actors, one slot each. The only file that imports ray.

The driver holds the study's lock, writes the journal (a Tune callback that only appends) and starts the publisher, which
is a process of its own. Ctrl-C raises a stop flag that every training loop looks at between two steps.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

import ray
from ray import tune

from orchestrator import plan
from orchestrator.journal import Event, Journal, State
from orchestrator.study import Study
from trainers.spec import TrunkSpec

STOP_FLAG = "stop"
"""A file of this name in a study's folder asks its driver and every trunk to stop; `emergence stop` makes it."""
PUBLISHER_PATIENCE_SECONDS = 300.0
"""How long the driver waits for MLflow at the end; the journal is safe long before."""


class Options(NamedTuple):
    """Where a study runs: nothing here changes a result."""

    address: Literal["local", "auto"] | str = "local"
    """`local` starts Ray on this machine, `auto` joins the cluster this machine belongs to."""
    slots: int | None = None
    """Trunks at once; None: one per core (local), or as many as the cluster takes."""
    device: Literal["cpu", "cuda"] = "cpu"
    slots_per_gpu: int = 1
    """Trunks that share one GPU (`cuda` only)."""
    checkpoint_seconds: float = 30.0
    retries: int = 2
    """How often Ray starts a trunk again whose actor or machine died; it goes on from its checkpoint."""


class Watcher(Protocol):
    """What wants to know how a run gets on (`progress.py`)."""

    def take(self, events: list[Event]) -> None:
        """New events, already in the journal. Must return at once: the trunk that reported is waiting."""

    def say(self, line: str) -> None:
        """One line for the person who watches."""


Outcome = Literal["complete", "stopped", "failed"]


def run(study: Study, folder: Path, options: Options, tracking_uri: str, watcher: Watcher) -> Outcome:
    """Run what is missing of a study and publish. The caller holds the lock and has shown the plan.

    Raises whatever Ray raises when it cannot start; by then the journal holds a session and nothing else.
    """
    state = State.of(folder)
    todo = plan.jobs(study, state)
    session = session_event(study, options)
    flag = folder / STOP_FLAG
    flag.unlink(missing_ok=True)
    journal = Journal(folder)
    journal.append([session])
    publisher = start_publisher(folder, tracking_uri, follow=True)

    def sink(events: list[Event]) -> None:
        journal.append(events)
        watcher.take(events)

    try:
        with _stop_on_signals(flag, watcher):
            failures = _run_on_ray(todo, folder, options, session["session"], sink)
        stopped = flag.exists()
        if failures and not stopped:
            sink(failures)
    finally:
        journal.close()
        flag.unlink(missing_ok=True)
        watcher.say("Writing tables, report and MLflow runs ...")
        finish_publishing(publisher, folder, watcher)
    speed = plan.recorded_throughput(State.of(folder))
    if speed:
        plan.remember_throughput(study, options.device, speed)
    if stopped:
        return "stopped"
    return "failed" if failures else "complete"


def session_event(study: Study, options: Options) -> Event:
    """The journal's entry for this run of the driver: the study as resolved, where and with what it runs."""
    key = uuid.uuid4().hex[:12]
    return {
        "kind": "session",
        "key": f"session/{key}",
        "session": key,
        "time": time.time(),
        "study": study.model_dump(mode="json"),
        "science": study.science(),
        "host": socket.gethostname(),
        "machine": f"{plan.cpu_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "options": options._asdict(),
        "commit": commit(),
        "versions": versions(),
    }


def commit() -> str | None:
    """The project's commit, with `+changes` where the work tree differs; None outside a repository."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def versions() -> dict[str, str]:
    """Installed versions of what results or records may depend on."""
    names = ("emergence-lab", "torch", "deepspeed", "numpy", "ray", "mlflow", "pyarrow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


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


def execute(config: dict[str, Any]) -> None:
    """One Ray Tune trial: one trunk with the budgets it owes. Runs inside a reused actor, off its main thread."""
    from trainers.spec import TrunkSpec
    from trainers.train import Place, run_trunk

    job = config["job"]
    flag = Path(job["folder"]) / STOP_FLAG
    if flag.exists():
        return
    facts = {"session": job["session"], "host": socket.gethostname(), "device": job["place"]["device"]}

    def emit(events: list[Event]) -> None:
        tune.report({"events": json.dumps([facts | event for event in events])})  # returns once the driver has it

    trunk = TrunkSpec.model_validate_json(job["trunk"])
    run_trunk(trunk, job["budgets"], Place(**job["place"]), emit, _throttled(flag.exists))


def _throttled(look: Callable[[], bool], every_seconds: float = 0.2) -> Callable[[], bool]:
    """Ask the file system at most five times a second, not at every step."""
    asked, answer = 0.0, False

    def ask() -> bool:
        nonlocal asked, answer
        if time.monotonic() - asked > every_seconds:
            asked, answer = time.monotonic(), look()
        return answer

    return ask


def _run_on_ray(
    todo: list[plan.Job], folder: Path, options: Options, session: str, sink: Callable[[list[Event]], None]
) -> list[Event]:
    """Execute the jobs through Ray Tune; returns a `trial` event of status failed for each trial that was lost."""
    os.environ |= _ENVIRONMENT
    _SINKS[session] = sink
    scratch = folder / ".tune"
    _start_ray(options)
    try:
        tuner = tune.Tuner(
            tune.with_resources(execute, _resources(options)),
            param_space={"job": tune.grid_search([_config(job, folder, options, session) for job in todo])},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=options.slots),
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
        ray.shutdown()
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


def _start_ray(options: Options) -> None:
    """Start Ray on this machine, or join the cluster. A bare `ray.init` would join whatever it finds."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address == "local":
        quiet |= {"num_cpus": options.slots or os.cpu_count(), "object_store_memory": 256 * 2**20}
        quiet |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    ray.init(address=options.address, **quiet)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told in our own words


def _resources(options: Options) -> dict[str, float]:
    """What one slot takes: a core, and on GPUs its share of one."""
    return {"CPU": 1} | ({"GPU": 1 / options.slots_per_gpu} if options.device == "cuda" else {})


def _config(job: plan.Job, folder: Path, options: Options, session: str) -> dict[str, Any]:
    place = {
        "device": options.device,
        "checkpoint_folder": str(checkpoint_folder(folder, job.trunk)),
        "checkpoint_every_seconds": options.checkpoint_seconds,
    }
    return {
        "trunk": job.trunk.model_dump_json(),
        "budgets": list(job.budgets),
        "folder": str(folder),
        "session": session,
        "place": place,
    }


def checkpoint_folder(folder: Path, trunk: TrunkSpec) -> Path:
    """Where a trunk keeps its checkpoints: under the study's folder, by its id."""
    return folder / "checkpoints" / trunk.id


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


@contextmanager
def _stop_on_signals(flag: Path, watcher: Watcher) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise the stop flag; a second Ctrl-C does not wait for the trunks."""

    def stop(number: int, frame: FrameType | None) -> None:
        if flag.exists():
            raise KeyboardInterrupt
        flag.touch()
        watcher.say("Stopping: every trunk saves after the step it is in. Ctrl-C again leaves at once.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Publishing ---------------------------------------------------------------------------------------------------------


def start_publisher(folder: Path, tracking_uri: str, follow: bool) -> subprocess.Popen[bytes]:
    """The publisher process; with `follow` it works until its standard input closes, that is until we end, however."""
    command = [sys.executable, "-m", "orchestrator.record", str(folder), "--tracking-uri", tracking_uri]
    log = open(folder / "publisher.log", "ab")  # noqa: SIM115 - the child keeps it
    with log:
        return subprocess.Popen(
            ["nice", "-n", "5", *command, *(["--follow"] if follow else [])],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the driver; the publisher finishes what it has
        )


def finish_publishing(publisher: subprocess.Popen[bytes], folder: Path, watcher: Watcher) -> bool:
    """Let the publisher finish. False, and a word to the watcher, if MLflow could not be brought up to date."""
    assert publisher.stdin is not None
    publisher.stdin.close()
    try:
        code = publisher.wait(PUBLISHER_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        watcher.say(f"MLflow is slow; the publisher goes on by itself (its log: {folder / 'publisher.log'}).")
        return False
    if code:
        lines = (folder / "publisher.log").read_text(errors="replace").strip().splitlines()
        watcher.say(f"The record is not up to date: {lines[-1] if lines else 'no reason given'}")
        watcher.say("The journal has everything; 'emergence publish' rebuilds the record from it.")
    return code == 0
