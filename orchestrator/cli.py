"""The command line: plan | run | status | stop | report | compare | publish | ui | clean.

    emergence run quickstart
    ray submit cluster.yaml orchestrator/cli.py run quickstart

Bad input: one clear message, exit code 2, nothing started. Ray, MLflow and torch are imported by the commands that use
them, never by loading, `plan` or `--help`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import math
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import unquote, urlsplit

from orchestrator.run import supervise

if Path(sys.argv[0]).stem in ("emergence", "cli"):  # we are the program; what follows takes a second to load
    supervise.begin()

import typer
from pydantic import ValidationError
from rich.table import Table
from typer.core import TyperGroup

from orchestrator import terminal
from orchestrator.analysis import answer, expected, findings, primary
from orchestrator.console import progress
from orchestrator.formatting import clock, number, sure, times
from orchestrator.plan import jobs, price, throughput
from orchestrator.plan.options import Options, slots_of
from orchestrator.record import files, journal, lease, links, provenance, recorded
from orchestrator.record.journal import State
from orchestrator.record.lease import LeaseLostError, StudyHeldError, StudyLock
from orchestrator.record.recorded import Recorded
from orchestrator.run import output
from orchestrator.stats.breaks import MIN_REPLICATES, MIN_SCALES
from orchestrator.study import reader
from orchestrator.study import schema as studies
from orchestrator.study.schema import Study, StudyError, model_words
from orchestrator.terminal import Terminal, say, shortened, styled
from trainers import budget, checkpoint


class Commands(TyperGroup):
    """The commands; Ctrl-C ends any of them with one line, and so does trouble with files, disks and networks."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("\nStopped; everything so far is kept, and the same command goes on.", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # typer ends quietly: nobody reads on
        except OSError as problem:
            _let_go_of_full_output()
            say(_trouble(problem), err=True)
            given = problem.errno in GIVEN_WRONG and ctx.invoked_subcommand != "run"
            raise typer.Exit(2 if given else 1) from None
        except RuntimeError:
            try:
                journal.home_folder()
            except RuntimeError:  # pathlib's: `~` of nobody
                raise UsageProblem(
                    f"EMERGENCE_HOME={os.environ.get('EMERGENCE_HOME')}: no home folder is known for the ~; give a "
                    "whole path, or set HOME"
                ) from None
            raise


GIVEN_WRONG = {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
"""Trouble with a path that was given: exit code 2. Any other ends a command that may have begun: 1."""
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have your quota raised",
    errno.EACCES: "get access to it, or set EMERGENCE_HOME to a folder that is yours",
    errno.EPERM: "get access to it, or set EMERGENCE_HOME to a folder that is yours",
    errno.EROFS: "set EMERGENCE_HOME to a folder that can be written",
    errno.ENOTDIR: "set EMERGENCE_HOME to a folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


def _trouble(problem: OSError) -> str:
    """Where, what, and what to do, in a line."""
    try:
        home = str(journal.home_folder())
    except RuntimeError:
        home = "the home folder"
    paths = [os.fsdecode(path) for path in (problem.filename, problem.filename2) if isinstance(path, (str, bytes))]
    where = " -> ".join(paths) or f"Reading, writing or printing (the home is {home})"
    said = problem.strerror or " ".join(str(problem).split())[:300] or type(problem).__name__
    remedy = REMEDIES.get(problem.errno or 0, "mend that")
    return f"{where}: {said}. Everything recorded so far is kept; {remedy}, and give the same command again."


def _let_go_of_full_output() -> None:
    """Throw away what waits in a standard output that does not take it: Python would fail over it at its very end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How many tasks, and how much compute, until a general skill emerges?\n\nExample: [bold]emergence run quickstart[/bold]",
)
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one that ships.")]
RecordedName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A study file, the name of one that ships, or NAME@VERSION of one that ran."),
]
Device = Annotated[str, typer.Option(envvar="EMERGENCE_DEVICE", help="cpu or cuda.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Workers at once; default: one per core, or per GPU share.")]
Address = Annotated[
    str, typer.Option(help="local: Ray on this machine; auto: the cluster it belongs to; or host:port of its head.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Workers that share each trial; default: as the study says, or as few as it fits on."),
]
SlotsPerGpu = Annotated[int, typer.Option(min=1, help="Trunks of one worker that share one GPU.")]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1e6,
        envvar="EMERGENCE_GPU_MEMORY_GB",
        help="GB (10^9 bytes) of one GPU, for what fits; default: that of a GPU here.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Where checkpoints go: a folder that every node sees, or s3://..., gs://...; default: $EMERGENCE_STORAGE, else beside the results."
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else SQLite in the home folder.")
]
Version = Annotated[bool, typer.Option("--version", help="Print the version and leave.")]


class UsageProblem(Exception):
    """Something the user can mend; told in one message, exit code 2."""


@app.callback(invoke_without_command=True)
def _top(context: typer.Context, version: Version = False) -> None:
    if version:
        from importlib.metadata import version as installed

        say(f"emergence-lab {installed('emergence-lab')}")
        raise typer.Exit


@app.command("plan", epilog="Example: emergence plan sweeps/quickstart.yaml --calibrate")
def plan_command(
    study_name: StudyName,
    slots: Slots = None,
    device: Device = "cpu",
    address: Address = "",
    workers: Workers = None,
    slots_per_gpu: SlotsPerGpu = 1,
    gpu_memory_gb: GpuMemory = None,
    storage: Storage = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the speed with one short trial first.")
    ] = False,
) -> None:
    """Show what a study will do and cost, before any machine is taken."""
    _check_device(device)
    study = _load(study_name)
    folder = journal.study_folder(study.id)
    everything = State.of(folder)
    jobs.check_against_record(study, everything, study_name)
    state = recorded.of_study(everything, study)
    _tell_damage(state, folder, f"{_program()} run {study_name} trains them again")
    options = _options(address, slots, device, workers, slots_per_gpu, gpu_memory_gb, storage)
    _check_room(study, options, absent_is_fine=not address)
    n_slots, known = _slots(options)
    speed = throughput.calibrate(study, device) if calibrate else None
    _show_plan(price.make(study, state, n_slots, device, speed, folder, options), folder, known)


@app.command(epilog="Example: emergence run quickstart --slots 2")
def run(
    study_name: StudyName,
    address: Address = "",
    slots: Slots = None,
    device: Device = "cpu",
    workers: Workers = None,
    slots_per_gpu: SlotsPerGpu = 1,
    gpu_memory_gb: GpuMemory = None,
    storage: Storage = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Keep the weights that each trial ends with, as safetensors.")
    ] = False,
    tracking_uri: TrackingUri = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="What a kill may cost, per trunk.")] = 30.0,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0, help="Tries more for a trunk that failed or lost its machine; default: 2 here, 10 on a cluster."
        ),
    ] = None,
) -> None:
    """Run a study, or go on with it: only what is missing is run. Ctrl-C is safe, Ctrl-Z does nothing."""
    _check_device(device)
    if not math.isfinite(checkpoint_seconds):
        raise UsageProblem(f"--checkpoint-seconds {checkpoint_seconds}: a number of seconds is needed, such as 30")
    study = _load(study_name)
    uri = _tracking_uri(tracking_uri)
    folder = _writable(journal.study_folder(study.id))
    options = _options(address, slots, device, workers, slots_per_gpu, gpu_memory_gb, storage)
    tries = (2 if options.address == "local" else 10) if retries is None else retries
    options = options._replace(checkpoint_seconds=checkpoint_seconds, keep_weights=keep_weights, retries=tries)
    console = Terminal()
    with StudyLock(folder, study.id, lambda: journal.last_lease(folder), _aside) as lock:
        stop_request = supervise.StopRequest(folder)
        stop_request.clear()  # now and not later: what is asked for while Ray starts counts
        output.outlive_readers(folder / "driver.log")
        everything = State.of(folder)
        if left := recorded.left_without_journal(everything, folder, study):
            raise UsageProblem(_journal_is_gone(folder, left))
        jobs.check_against_record(study, everything, study_name)
        state = recorded.of_study(everything, study)
        _tell_damage(state, folder, "they are trained again now")
        if jobs.owes(study, state):
            _check_room(study, options)
            _check_writable(options.storage)
        if left_out := len(state.trials.keys() - {t.id for t in study.trials()}):
            console.print(
                styled(
                    ("Note:", "bold"),
                    f" {left_out} recorded trials are outside the axes of {study_name}: they stay in the journal, and "
                    "out of tables, report and answer.",
                )
            )
        _keep_copy(reader.find(study_name), folder / "study.yaml")
        outcome = _run_missing(study, state, folder, lock, options, uri, console, stop_request)
    shown = _show_result(study, folder, uri, console, tracking_uri, study_name)
    if outcome == "stopped":
        console.print(f"\nStopped; everything so far is kept. Go on with: {_again()}", soft_wrap=True)
        raise typer.Exit(130)
    if outcome == "broken":
        again = f"\nThe run broke off (see above); everything recorded is kept. Go on with: {_again()}"
        console.print(again, soft_wrap=True)
        raise typer.Exit(1)
    if outcome == "failed":
        again = f"\nSome trials failed (see above). Try them again with: {_again()}"
        console.print(again, soft_wrap=True)
        raise typer.Exit(1)
    if not shown:  # MLflow may be late, and that is said; tables and report are not
        raise typer.Exit(1)


def _run_missing(
    study: Study,
    state: State,
    folder: Path,
    lock: StudyLock,
    options: Options,
    uri: str,
    console: Terminal,
    stop_request: supervise.StopRequest,
) -> str:
    """Run what is missing, or only publish where nothing is. Returns run.Outcome."""
    slots, known = _slots(options)
    todo = price.make(study, state, slots, options.device, folder=folder, options=options)
    if not todo.jobs:
        console.print(f"{study.id}: all {todo.n_trials} trials have ended; nothing to run.")
        _publish_if_needed(study, state, folder, lock, uri)
        return "complete"
    _show_plan(todo, folder, known, console, brief=True)
    source = provenance.source()
    if unknown := source.get("commit_unknown"):
        console.print(styled(("Note:", "bold"), f" the commit is not fully known: {unknown}."))
    if changes := source["changes"]:
        rest = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        console.print(styled(("Note:", "bold"), f" not as committed: {', '.join(changes[:3])}{rest}."))
    if stop_request.is_asked():
        return "stopped"
    console.print("Starting Ray ..." if options.address == "local" else "Joining Ray ...")
    from orchestrator.run import machines  # here: importing Ray takes a second that a refusal of ours should not

    with progress.Progress(study, state, todo, console) as watcher:
        try:
            with machines.started(options, max(slots_of(job.laid, options) for job in todo.jobs)) as offered:
                watcher.on_slots(offered)
                from orchestrator.run import (
                    driver as runner,  # here: a refusal of the cluster's should not wait for Ray Tune
                )

                return runner.run(study, todo.jobs, folder, lock, options, uri, watcher, stop_request)
        except machines.ClusterProblem as problem:
            raise UsageProblem(str(problem)) from None


def _publish_if_needed(study: Study, state: State, folder: Path, lock: StudyLock, uri: str) -> None:
    """Bring the record up to the journal where it is behind, and the journal up to a study file whose words changed."""
    from orchestrator.record import publisher, trouble

    try:
        why = publisher.behind(folder, uri, study)
    except Exception as problem:  # files were looked at first
        found = trouble.of(problem, uri)
        if found.is_away:
            say(f"{found.what}; whether it still has the runs that were published there is not known.")
            return
        why = found.what
    if not why:
        return
    say(f"{why}; writing it anew ...")
    if state.study != study.model_dump(mode="json"):
        file = journal.Journal(folder, lock)
        file.append([provenance.session_event(study, {}, state.record)])
        file.close()
    start = partial(publisher.start_publisher, folder, uri, follow=False)
    publisher.finish_publishing(start(), folder, say, start)


@app.command(epilog="Example: emergence status quickstart")
def status(
    study_name: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="As for run; left out: all studies.")
    ] = None,
) -> None:
    """Show where a study stands, or list all studies that ran."""
    console = Terminal()
    if study_name is None:
        _list_studies(console)
        return
    folder, study, state = _recorded(study_name)
    ended = {t.id: state.trials[t.id]["status"] for t in study.trials() if t.id in state.trials}
    counts = {kind: sum(s == kind for s in ended.values()) for kind in ("done", "diverged", "failed")}
    running = "running" if lease.is_held(folder) else "not running"
    said = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind == "done")
    console.print(f"{study.id}: {running}; {said} of {len(study.trials())} trials")
    if lease.is_held(folder) and (holder := lease.lock_holder(folder)):
        console.print(f"Driver: process {holder['pid']} on {holder['host']}, since {holder['since']}")
    for trial, kind in ended.items():
        if kind in ("failed", "diverged"):
            console.print(f"  {trial} {kind}: {state.trials[trial].get('reason')}")
    surface = progress.Surface(study)
    surface.take([e for events in state.evaluations.values() for e in events])
    console.print()
    console.print(surface.render())


@app.command(epilog="Example: emergence stop quickstart")
def stop(study_name: RecordedName) -> None:
    """Ask a running study to stop: every trunk saves after the step it is in."""
    try:
        folder, _, _ = _recorded(study_name)
    except UsageProblem:
        if not (Path(study_name).exists() or study_name in reader.shipped()):
            raise
        folder = journal.study_folder(reader.load(study_name).id)
        if not lease.is_held(folder):  # else it starts, and has recorded nothing yet
            raise
    if not lease.is_held(folder):
        say(f"{folder.name} is not running; nothing to stop.")
        return
    supervise.StopRequest(folder).ask()
    say(f"Asked {folder.name} to stop. Go on later with: {_program()} run {_source(study_name, folder)}")


@app.command(epilog="Example: emergence report quickstart")
def report(study_name: RecordedName) -> None:
    """Write the HTML report and its figures anew from the journal; print where it is."""
    folder, _, state = _recorded(study_name)
    from orchestrator.record import publisher

    say(str(publisher.rewrite(folder, _aside)))
    if state.short:
        raise typer.Exit(1)


@app.command(epilog="Example: emergence compare quickstart@1 quickstart@2")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A study that ran, as for report.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The one to set beside it.")],
) -> None:
    """Set two studies side by side: settings, boundaries, and in which cells they differ by more than noise."""
    from orchestrator.analysis import compare as comparing
    from orchestrator.record import tables
    from orchestrator.report import compare_page

    both, outside = [], []
    for name in (first, second):
        folder, study, state = _recorded(name)
        tables.write_parquet(folder, state, study)
        both.append(findings.read(folder, study))
        outside.append(tables.outside(state, study))
    try:
        comparison = comparing.compare(both[0], both[1], (outside[0], outside[1]))
    except ValueError as problem:
        raise UsageProblem(f"{both[0].study.id} and {both[1].study.id} cannot be compared: {problem}") from None
    _show_comparison(comparison)
    say(f"\nPage: {compare_page.write(journal.home_folder(), comparison)}")


@app.command(epilog="Example: emergence publish quickstart --tracking-uri http://127.0.0.1:5000")
def publish(study_name: RecordedName, tracking_uri: TrackingUri = None) -> None:
    """Rebuild tables, report and MLflow runs from the journal. Repeating it changes nothing."""
    folder, study, state = _recorded(study_name)
    from orchestrator.record import publisher, trouble

    uri = _tracking_uri(tracking_uri)
    try:
        publisher.publish(folder, uri, say=_aside)
    except Exception as problem:
        found = trouble.of(problem, uri)
        advice = f": {found.advice}" if found.advice else ""
        raise UsageProblem(
            f"{study.id}: the record is not up to date: {found.what}; the journal has everything{advice}"
        ) from None
    say(f"{study.id}: tables and report in {folder}, runs in {links.without_password(uri)}")
    if link := links.study_link(folder, uri):
        say(f"MLflow: {link}")
    if state.short:
        raise typer.Exit(1)


@app.command(epilog="Example: emergence ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    tracking_uri: TrackingUri = None,
) -> None:
    """Open the MLflow UI on the right store, on 127.0.0.1 only; Ctrl-C ends it."""
    uri = _tracking_uri(tracking_uri)
    if not links.is_local(uri):
        say(f"MLflow runs elsewhere: open {links.ui_address(uri) or links.without_password(uri)}")
        return
    if (store := links.sqlite_file(uri)) is not None and not store.exists():
        raise UsageProblem(
            f"{links.without_password(uri)}: no MLflow store there yet; run a study first, for example: {_program()} run quickstart"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as problem:
            raise UsageProblem(f"--port {port}: {problem.strerror}; give another one") from None
    address = f"http://127.0.0.1:{port}"
    say(f"MLflow UI, in some ten seconds: {address}   (Ctrl-C ends it)")
    try:
        shown = links.serve_at(address, uri)
    except OSError as problem:
        raise UsageProblem(
            f"{problem.filename or journal.home_folder()}: {problem.strerror}; the UI keeps its address there"
        ) from None
    for folder in shown:
        say(f"  {folder.name}: {links.study_link(folder, uri)}")
    _serve(port, uri)


def _serve(port: int, uri: str) -> None:
    """Run MLflow's UI until Ctrl-C, or until we are ended. Raises UsageProblem when it ends by itself.

    In a session of its own, and its many words in a file: it answers Ctrl-C with a page of traces from each of its processes.
    One worker serves one person, and nobody sends it jobs.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    settings["MLFLOW_BACKEND_STORE_URI"] = uri  # not among the arguments: it may hold a password
    path = journal.home_folder() / "mlflow_ui.log"
    with open(path, "ab") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:  # at once: who leaves from here on takes the server with him
        for ending in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.default_int_handler)
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, ending)
                server.wait(5)
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    said = links.hide(lines[-1], uri) if lines else ""
    raise UsageProblem(f"MLflow's UI ended with code {code}: {said}\nAll it said: {path}")


@app.command(epilog="Example: emergence clean quickstart")
def clean(study_name: RecordedName, storage: Storage = None) -> None:
    """Give back the space of a study's checkpoints; its results stay. A larger budget would then start afresh."""
    folder, study, _ = _recorded(study_name)
    with StudyLock(folder, study.id, lambda: journal.last_lease(folder), _aside):
        given = storage or os.environ.get("EMERGENCE_STORAGE")
        if given and given.startswith("file://"):  # a folder of this machine, whose links are looked at below
            given = unquote(urlsplit(given).path)
        checkpoints = jobs.checkpoints_of(folder, _storage(given) if given else None)
        if "://" not in checkpoints:
            checkpoints = _within(Path(given) if given else journal.home_folder(), Path(checkpoints))
        n_bytes = checkpoint.clear(checkpoints)
        if checkpoint.store_of(checkpoints).n_bytes():
            raise UsageProblem(f"{checkpoints}: not all of it could be removed; get access to it, and clean again")
    say(f"{study.id}: {n_bytes / 1e6:.1f} MB of checkpoints removed; results, runs and report stay.")
    if not n_bytes:
        say(f"There were none in {links.without_password(checkpoints)}; with another --storage they are there.")


# Showing ------------------------------------------------------------------------------------------------------------


def _show_plan(
    todo: price.Plan, folder: Path, slots_known: str = "", console: Terminal | None = None, brief: bool = False
) -> None:
    console = console or Terminal()
    study = todo.study
    family: Any = study.family
    question = shortened(study.question.strip())
    console.print(styled((study.id, "bold"), f": {question}"), soft_wrap=not console.is_terminal)
    done = todo.n_trials - todo.n_open
    work = f"{todo.n_open} trials on {len(todo.jobs)} trunks to run" + (
        f", {done} of {todo.n_trials} have ended" if done else ""
    )
    saved = 1 - (todo.train_flops + todo.kept_flops) / todo.separate_flops if todo.separate_flops else 0
    kept = f", {number(float(todo.kept_flops))} more are done, in checkpoints" if todo.kept_flops else ""
    lines = [
        ("work", work),
        ("compute", f"{number(float(todo.train_flops))} training FLOPs ({saved:.0%} saved by sharing trunks{kept}), "
                    f"evaluation {todo.eval_flops / max(todo.train_flops, 1):.1%} more"),
        ("time", _time_words(todo, slots_known)),
    ]  # fmt: skip
    if not brief:
        speed = f"{todo.flops_per_second:.3g} FLOPs/s a slot" if todo.flops_per_second else "unknown"
        lines += [
            ("speed", speed),
            ("tokens", f"{number(float(todo.tokens))} read in training"),
            *_shapes(study),
            *_places(todo),
            (
                "tasks",
                f"{', '.join(number(n) for n in sorted(study.axes.n_tasks))} of {number(float(family.n_tasks_max))}{' in each domain' if len(family.domains) > 1 else ''}",
            ),
            ("first", ", ".join(job.trunk.id for job in todo.jobs[:4]) + (" ..." if len(todo.jobs) > 4 else "")),
        ]
    lines += [row for row in primary.planned(study) if not brief or row[0] == "warning"]
    if not brief and len(study.axes.n_tasks) >= MIN_SCALES and study.axes.replicates < MIN_REPLICATES:
        lines.append(("warning", f"whether a skill breaks or slopes takes {MIN_REPLICATES} replicates or more to tell"))
    lines.append(("results", str(folder)))
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(name, text)
    console.print(table)


def _time_words(todo: price.Plan, slots_known: str) -> str:
    """How long it takes on how many slots, or when that will be known."""
    on = f"on {times(todo.slots, 'slot')}{slots_known}"
    if todo.seconds is None:
        return f"{on}: told after the first reports; before them by {_program()} plan --calibrate"
    return f"about {clock(todo.seconds)} {on}" + (f" (speed {todo.source})" if todo.seconds else "")


def _places(todo: price.Plan) -> list[tuple[str, str]]:
    """How the trials are laid on workers, and why, where that is not simply one worker and its whole batch."""
    rows = []
    for line, key in todo.study.lines.items():
        laid = {job.trunk.size: job.laid for job in todo.jobs if (job.trunk.arm, job.trunk.variant) == key}
        for size, (workers, fit, _) in laid.items():
            if fit is None:
                continue
            if todo.options.gpu_bytes or workers > 1 or fit.zero_stage or fit.accumulation > 1 or fit.recompute:
                which = " ".join([*([line] if len(todo.study.lines) > 1 else []), *([size] if size else [])])
                rows.append(("place", f"{which}{': ' if which else ''}{times(workers, 'worker')} a trial; {fit.why}"))
    return rows


def _shapes(study: Study) -> list[tuple[str, str]]:
    """The models and what the budgets come to, in rows of the plan; named, and told once, where several lines are alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for line in study.lines:
        for trunk, budgets in study.sizes(line):
            steps = ", ".join(f"{number(b)} = {budget.steps_of(trunk, b).end:,}" for b in budgets)
            name = f"{line} {trunk.size}".rstrip()
            alike.setdefault((model_words(trunk), f"{steps} steps"), []).append(name)
    rows = []
    for (model, steps), lines in alike.items():
        which = f"{', '.join(lines)}: " if len(alike) > 1 else ""
        rows += [("model", f"{which}{model}"), ("budgets", f"{which}{steps}")]
    return rows


def _show_result(
    study: Study, folder: Path, uri: str, console: Terminal, tracking_uri: str | None, study_name: str
) -> bool:
    """Print what came out and where it is. False where tables or report show less than the journal, and nobody is at them."""
    from orchestrator.record import publisher

    state = recorded.read(folder, study)
    surface = progress.Surface(study)
    surface.take([e for events in state.evaluations.values() for e in events])
    console.print()
    console.print(surface.render())
    page = folder / "report.html"
    found = None
    if publisher.report_is_current(folder, study):
        with contextlib.suppress(OSError):  # damaged or taken away a moment ago
            found = findings.read(folder, study)
    if found is not None:
        console.print(f"\n{answer.paragraph(found)}")
        for verdict in found.verdicts:
            console.print(f"  {expected.verdict_line(verdict)}")
        said = str(page)
    elif publisher.is_publishing(folder):
        said = f"still being written, to {page}"
    else:
        older = f"; what {page} shows is older" if page.exists() else ""
        said = f"not written yet{older}. Write it with: {_program()} publish {study_name}"
    console.print(f"\nReport:    {said}", soft_wrap=True)
    shown = found is not None or publisher.is_publishing(folder)
    published = publisher.mlflow_is_current(folder, uri, study) or publisher.is_publishing(folder)
    if not published:
        console.print(
            f"MLflow:    not up to date. Bring it there with: {_program()} publish {study_name}",
            soft_wrap=True,
        )
    elif link := links.study_link(folder, uri):
        console.print(f"MLflow:    {link}", soft_wrap=True)
    if links.is_local(uri):
        address = links.ui_address(uri)
        words = [_program(), "ui", *(["--port", str(urlsplit(address).port)] if address != links.LOCAL_UI else [])]
        words += ["--tracking-uri", tracking_uri] if tracking_uri else []
        console.print(f"MLflow UI: {_to_copy(words)}", soft_wrap=True)
    return shown


def _show_comparison(found: Any) -> None:
    from orchestrator.analysis.compare_words import answer, difference_words, left_out

    console = Terminal()
    a, b = found.a.study.id, found.b.study.id
    console.print("\n".join([" ".join(answer(found)), *left_out(found)]))
    if found.settings:
        console.print(styled(("\nSettings that differ", "bold"), f" ({a} -> {b})"))
        for line in found.settings:
            console.print(f"  {line}")
    of_arm = {arms: f" ({arms[0]})" if len(found.arms) > 1 else "" for arms in found.arms}
    table = _plain_table("\nBoundaries, in tasks", ("", "FLOPs", a, b), "left")
    for pair in found.boundaries:
        if pair.skill in (found.skill, "memory"):
            name = f"K_{pair.letter} {pair.skill}{of_arm[pair.arms]}"
            table.add_row(name, number(pair.compute_flops), *pair.intervals)
    console.print(table)
    kept = [cell for cell in found.cells if cell.kept and cell.skill in (found.skill, "")][:MAX_CELLS_SHOWN]
    if kept:
        heads = ("", "tasks", "FLOPs", "difference", f"{sure(kept[0].claim.confidence)} interval")
        table = _plain_table(f"\nCells that differ: {b} less {a}", heads, "right")
        for cell in kept:
            told, interval = difference_words(cell.difference)
            name = f"{cell.measure} {cell.skill}".strip() + of_arm[cell.arms]
            table.add_row(name, number(cell.n_tasks), number(cell.compute_flops), told, interval or "—")
        console.print(table)
    rest = sum(cell.kept for cell in found.cells) - len(kept)
    if rest:
        console.print(f"... and {rest} more, other skills included, on the page")


def _plain_table(title: str, heads: tuple[str, ...], justify: Any) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    for head in heads:
        table.add_column(
            head, header_style="dim", justify=justify if head else "left", no_wrap=not head, overflow="fold"
        )
    return table


MAX_CELLS_SHOWN = 30
"""Cells that a terminal shows of a comparison."""


def _program() -> str:
    """How this program was called, for commands to copy: `emergence` where it is on the path, else its file."""
    called = Path(sys.argv[0])
    if called.name != "emergence" or shutil.which("emergence"):
        return "emergence"
    return os.path.relpath(called) if called.is_absolute() else str(called)


def _again() -> str:
    """This very command, to copy: without its options it might not find its checkpoints again."""
    return _to_copy([_program(), *sys.argv[1:]])


_SECRET_OPTIONS = {"--tracking-uri": "MLFLOW_TRACKING_URI", "--storage": "EMERGENCE_STORAGE"}
"""Options that may hold a password, and the variables that say the same."""


def _to_copy(words: Sequence[str]) -> str:
    """A command as it may be shown: an option that holds a password is left out, and the variable for it is named."""
    kept: list[str] = []
    unset: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, given, value = word.partition("=")
        if option in _SECRET_OPTIONS and (given or rest):
            value = value if given else rest.pop(0)
            if links.holds_secret(value):
                unset.append(_SECRET_OPTIONS[option])
            else:
                kept += [word] if given else [word, value]
        else:
            kept.append(links.without_password(word))
    first = f"   (set {' and '.join(unset)} first: what it holds is not repeated here)" if unset else ""
    return shlex.join(kept) + first


def _list_studies(console: Terminal) -> None:
    """A line for each study, whatever is wrong with some of them."""
    folders = _study_folders()
    if not folders:
        console.print(f"No study has run yet in {journal.home_folder()}.")
    for folder in folders:
        try:
            study, state = _read(folder)
            held = lease.is_held(folder)
        except (OSError, UsageProblem) as problem:
            line = f"{folder.name}: {_trouble(problem)}" if isinstance(problem, OSError) else str(problem)
        else:
            running = "running" if held else "not running"
            line = f"{folder.name}: nothing is recorded yet, {running}"
            if study is not None:
                ended = sum(t.id in state.trials for t in study.trials())
                other = "" if study.id == folder.name else f"{folder.name}, which is renamed or copied: "
                line = f"{other}{study.id}: {ended} of {len(study.trials())} trials ended, {running}"
                line += "; its journal is damaged" if state.short else ""
        console.print(line, soft_wrap=True)


def _study_folders() -> list[Path]:
    """Folders of studies that ran, in the home; other files and folders there are passed over. Raises OSError."""
    home = journal.home_folder()
    if not home.exists():
        return []
    return sorted(path for path in home.iterdir() if studies.is_id(path.name) and _has_journal(path))


def _has_journal(folder: Path) -> bool:
    try:
        return stat.S_ISREG((folder / "journal.jsonl").stat().st_mode)  # reading a pipe would wait for ever
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # and reading it says why not


def _read(folder: Path) -> tuple[Study | None, Recorded]:
    """The study and state of a folder; None where nothing was recorded. Raises OSError, and UsageProblem for a record that
    cannot be read here."""
    try:
        state = State.of(folder)
        if state.study is not None:
            study = Study.from_record(state.study)
            return study, recorded.of_study(state, study)
        if not (folder / "journal.jsonl").stat().st_size:
            return None, Recorded()
        raise ValueError("no line of its journal says what was run")
    except OSError:
        raise
    except Exception as problem:  # of another version, of a family that is not installed, damaged, or anything else
        raise UsageProblem(f"{folder.name}: its record in {folder} cannot be read here: {_why(problem)}") from None


def _why(problem: Exception) -> str:
    """The reason in a line."""
    if isinstance(problem, ValidationError):
        first = problem.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]


# Checking -----------------------------------------------------------------------------------------------------------


def _load(name: str) -> Study:
    """A study to plan or run. Raises StudyError, and UsageProblem where the name is that of a study that ran."""
    if studies.is_id(name) and not Path(name).exists() and (kept := journal.study_folder(name) / "study.yaml").exists():
        raise UsageProblem(f"{name}: a study file is needed; the one that ran is kept: {_program()} run {kept}")
    return reader.load(name)


def _source(name: str, folder: Path) -> str:
    """What to call a study that ran by, so that it can be run again: as it was named, or the file that is kept."""
    return name if Path(name).exists() or name in reader.shipped() else str(folder / "study.yaml")


def _recorded(name: str) -> tuple[Path, Study, Recorded]:
    """Folder, study and state of a study that ran. Raises UsageProblem when it has not, naming what comes near."""
    known = [folder.name for folder in _study_folders()]
    if "@" in name and not Path(name).exists():
        if not studies.is_id(name):
            raise UsageProblem(
                f"{name}: neither a study file nor NAME@VERSION; a name has small letters, digits and underscores, "
                f"as in {known[0] if known else 'quickstart@1'}"
            )
        study_id = name
    else:
        of_name = [other for other in known if other.partition("@")[0] == Path(name).stem]
        plain = not Path(name).exists() and name not in reader.shipped()
        if of_name and plain and (len(of_name) > 1 or name != Path(name).stem):
            raise UsageProblem(
                f"{name}: no such study file; what ran under that name is {', '.join(of_name)}: give that"
            )
        if plain and not of_name and name == Path(name).stem:
            near = difflib.get_close_matches(name, [other.partition("@")[0] for other in known], 1)
            meant = f"; did you mean '{near[0]}'?" if near else f"; what ran there: {', '.join(known) or 'nothing'}"
            raise UsageProblem(f"{name}: has not been run in {journal.home_folder()}{meant}")
        study_id = of_name[0] if of_name and plain else reader.load(name).id
    folder = journal.study_folder(study_id)
    study, state = _read(folder) if _has_journal(folder) else (None, Recorded())
    if study is None and folder.is_dir() and (left := recorded.left_without_journal(state, folder)):
        raise UsageProblem(_journal_is_gone(folder, left))
    if study is None:
        known = [other for other in known if other != study_id]
        versions = [other for other in known if other.partition("@")[0] == study_id.partition("@")[0]]
        near = versions or difflib.get_close_matches(study_id, known, 1)
        hint = f"; {', '.join(near)} has" if near else ""
        hint += "" if "@" in name else f"; run it with: {_program()} run {name}"
        raise UsageProblem(f"{study_id}: has not been run in {journal.home_folder()}{hint}")
    _tell_damage(state, folder, f"{_program()} run {_source(name, folder)} trains them again")
    if Path(name).is_file() and (differ := _differences(study, reader.load(name))):
        _aside(f"{name} differs from what was run: {'; '.join(differ)}. This is what was run.")
    return folder, study, state


def _differences(ran: Study, other: Study) -> list[str]:
    """Axes and settings in which a study file differs from the study that ran."""
    before, now = (study.science() | {"axes": study.model_dump(mode="json")["axes"]} for study in (ran, other))
    return studies.differences(before, now)


def _journal_is_gone(folder: Path, left: list[str]) -> str:
    return (
        f"{folder / journal.FILE}: the journal is gone or empty, and of earlier runs there are {', '.join(left)}, which a run "
        "would write over. Put the journal back; or move those away, and a run goes on from checkpoints of these settings"
    )


def _within(home: Path, folder: Path) -> str:
    """A folder that is to be deleted, without links. Raises UsageProblem where they lead out of the home or storage."""
    real = folder.resolve()
    if not real.is_relative_to(home.resolve()):
        raise UsageProblem(
            f"{folder}: a link leads to {real}, outside {home}, and nothing is deleted there; remove it by hand, or give "
            "the folder that holds it as EMERGENCE_HOME or --storage"
        )
    return str(real)


def _writable(folder: Path) -> Path:
    """Make the results folder. Raises UsageProblem when that cannot be, before anything has started."""
    if "working_dir_files" in folder.parts:
        raise UsageProblem(
            "this job runs in a folder named after its content, so results left here would not be found again; "
            "set EMERGENCE_HOME to an absolute folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise UsageProblem(
            f"{folder}: results cannot be written there: {problem.strerror}; set EMERGENCE_HOME to a folder that can be"
        ) from None
    return folder


def _tracking_uri(given: str | None) -> str:
    from orchestrator.record import (  # here: pyarrow takes a moment that --help should not
        mlflow_runs,
    )

    try:
        uri = given or mlflow_runs.default_tracking_uri()
    except ValueError as problem:
        raise UsageProblem(f"{problem}; set EMERGENCE_HOME to a folder without ? and %") from None
    shown = links.without_password(uri)
    known = ("sqlite:///", "sqlite+", "postgresql", "mysql", "mssql", "http://", "https://", "databricks")
    if not uri.startswith(known):
        raise UsageProblem(
            f"{shown}: not a tracking URI that MLflow can write to; give http://host:port, sqlite:///path.db, or a "
            "database such as postgresql://..."
        )
    if uri.startswith(("http://", "https://")):
        _check_address(uri)
    elif uri.startswith("sqlite") and "?" in uri and not re.fullmatch(r"\w+=[^/]*", uri.partition("?")[2]):
        raise UsageProblem(f"{shown}: what follows the ? is taken for settings; in a path write %3F for it")
    return uri


def _check_address(uri: str) -> None:
    """Refuse an address that no client would read as it was meant. Raises UsageProblem, without any password."""
    try:
        parts = urlsplit(uri)
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host = None, None
    if not host or port == 0 or not links.ui_address(uri):
        raise UsageProblem(
            f"{links.without_password(uri)}: not an address; give http://host:port, and in a password write %2F for /, "
            "%3F for ?, %23 for # and %40 for @"
        )


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise UsageProblem(f"--device {device}: cpu or cuda is needed")


def _options(
    address: str,
    slots: int | None,
    device: str,
    workers: int | None,
    slots_per_gpu: int,
    gpu_memory_gb: float | None,
    storage: str | None,
) -> Options:
    """What the options of `plan` and `run` come to."""
    storage = storage or os.environ.get("EMERGENCE_STORAGE") or None
    if storage:
        storage = _storage(storage)
    gpu_bytes = round(gpu_memory_gb * 1e9) if gpu_memory_gb else provenance.gpu_bytes() if device == "cuda" else None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    is_local = address == "local"
    return Options(
        address=address,
        slots=slots,
        device="cuda" if device == "cuda" else "cpu",
        slots_per_gpu=slots_per_gpu,
        workers=workers,
        storage=storage,
        gpu_bytes=gpu_bytes,
        n_gpus=provenance.n_gpus() if device == "cuda" and is_local else None,
    )


def _storage(given: str) -> str:
    """A folder or URI for checkpoints, its path made absolute. Raises UsageProblem for one that is no such thing, or that does
    not answer."""
    what = "give a folder, or a URI such as s3://bucket/prefix"
    if re.match(r"[a-z][a-z0-9+]+:/(?!/)", given) or given.endswith("://"):
        raise UsageProblem(f"--storage {links.without_password(given)}: neither a folder nor a whole URI; {what}")
    try:
        checkpoint.store_of(given).names()
    except (ValueError, OSError) as problem:
        said = links.hide(" ".join(str(problem).split()), given)[:200]
        raise UsageProblem(f"--storage {links.without_password(given)}: cannot be reached: {said}; {what}") from None
    return given if "://" in given else str(Path(given).resolve())


def _check_writable(storage: str | None) -> None:
    """Write a byte where checkpoints will go. Raises UsageProblem, before anything has started."""
    if storage is None:
        return
    try:
        checkpoint.check_writable(storage)
    except OSError as problem:
        said = links.hide(" ".join(str(problem).split()), storage)[:200]
        shown = links.without_password(storage)
        raise UsageProblem(f"--storage {shown}: checkpoints cannot be written there: {said}") from None


def _check_room(study: Study, options: Options, absent_is_fine: bool = False) -> None:
    """Refuse a trial that can never start, before anything is priced: on this machine, under --slots, or on the cluster.

    A plan may be made before the cluster is there that the environment speaks of.
    """
    line, laid = jobs.widest(study, options)
    wide = slots_of(laid, options)
    if options.address != "local":
        from orchestrator.run import machines  # here: importing Ray takes a second that most refusals should not

        try:
            machines.refuse_early(options, wide, absent_is_fine)
        except machines.ClusterProblem as problem:
            raise UsageProblem(str(problem)) from None
    if options.address != "local" and not options.slots:
        return
    room, _ = _slots(options)
    if wide > room and (options.slots or laid.workers > 1):
        what = "GPUs" if options.device == "cuda" else "cores"
        have = f"--slots {options.slots} is given" if options.slots else f"here are {room // (wide // laid.workers)}"
        raise UsageProblem(
            f"{study.id}: a trial of {line} takes {laid.workers} workers, one on each of as many {what}, and so "
            f"{wide} slots; {have}: it would never start. Give more, fewer --workers, or the --address of a cluster"
        )


def _slots(options: Options) -> tuple[int, str]:
    """How many trunks at once, for the plan, and what that rests on where it is not given: Ray tells only once it runs."""
    if options.slots:
        return options.slots, ""
    local = options.address == "local"
    if options.device == "cpu":
        return provenance.cores(), "" if local else " (assumed: the cores of this machine, not those of the cluster)"
    gpus = provenance.n_gpus() if local else None
    if gpus:
        return gpus * options.slots_per_gpu, f" ({gpus} GPU{'s' if gpus > 1 else ''} here)"
    found = "; none was found here" if gpus == 0 else "; the cluster will tell" if not local else ""
    return options.slots_per_gpu, f" (assumed: one GPU{found})"


def _keep_copy(source: Path, target: Path) -> None:
    """The study file as run, beside its results."""
    if not (target.exists() and source.samefile(target)):
        files.replace(target, source.read_bytes())


def _tell_damage(state: Recorded, folder: Path, remedy: str) -> None:
    """Name the lines of the journal that do not count, and the trials that lack rows."""
    damage = [line for line in state.damage if line != journal.INCOMPLETE or not lease.is_held(folder)]
    shown = damage[:MAX_DAMAGE_SHOWN]
    if len(damage) > len(shown):
        shown.append(f"... and {len(damage) - len(shown)} more like these")
    for line in shown:
        _aside(f"{folder.name}: {line}")
    if damage and not state.short:
        _aside(f"{folder.name}: lines that are damaged do not count; no row of a trial that has ended is missing.")
    if state.short:
        names = ", ".join(state.short[:3]) + (" ..." if len(state.short) > 3 else "")
        _aside(f"{folder.name}: {times(len(state.short), 'trial')} without all rows ({names}): {remedy}.")


MAX_DAMAGE_SHOWN = 5
"""Damaged lines of a journal that a command names."""


def _aside(line: str) -> None:
    """For the person who waits: not among what the command answers."""
    say(line, err=True)


def _refuse(message: str) -> NoReturn:
    say(message, err=True)
    sys.exit(2)


def main() -> None:
    """The `emergence` command."""
    terminal.prepare()
    supervise.take_over()
    try:
        try:
            app()
        except (StudyError, StudyHeldError, UsageProblem) as problem:
            _refuse(str(problem))
        except LeaseLostError as problem:
            say(str(problem), err=True)
            sys.exit(1)
    except SystemExit as end:
        supervise.tell("left", end.code if isinstance(end.code, int) else 1)
        raise


if __name__ == "__main__":
    main()
