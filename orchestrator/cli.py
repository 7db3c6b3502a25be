"""The command line: plan | run | status | stop | report | compare | publish | ui | clean.

    emergence run quickstart
    ray submit cluster.yaml orchestrator/cli.py run quickstart

Bad input gives one clear message and exit code 2, and nothing is started. Ray, MLflow and torch are imported by the
commands that use them, never by loading, `plan` or `--help`.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from orchestrator.run import supervise

if __name__ == "__main__" or Path(sys.argv[0]).name == "emergence":  # the program, and the imports below take a second
    supervise.begin()

import typer
from typer.core import TyperGroup

from orchestrator import files, terminal
from orchestrator.console import checks, progress
from orchestrator.console.checks import UsageProblem, aside
from orchestrator.console.commands import program, this_again
from orchestrator.console.tables import list_studies, show_comparison, show_plan, show_result
from orchestrator.console.ui import serve
from orchestrator.formatting import clock, number, times
from orchestrator.plan import caps, jobs, price
from orchestrator.plan.options import Options, slots_of
from orchestrator.record import journal, lease, links, provenance, recorded
from orchestrator.record.journal import State
from orchestrator.record.lease import LeaseLostError, StudyHeldError, StudyLock
from orchestrator.run import output
from orchestrator.study import reader
from orchestrator.study.schema import Study, StudyError
from orchestrator.terminal import Terminal, say, styled
from trainers import checkpoint, weights


class Commands(TyperGroup):
    """The commands. Ctrl-C and errors of files, disks and networks end each of them with one line."""

    def invoke(self, ctx: Any) -> Any:
        given = [*getattr(ctx, "_protected_args", []), *ctx.args]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("\nStopped; everything so far is kept, and the same command resumes.", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # the reader is gone: typer ends quietly
        except OSError as problem:
            _let_go_of_full_output()
            say(checks.trouble_words(problem), err=True)
            wrong = problem.errno in checks.GIVEN_WRONG and ctx.invoked_subcommand != "run"
            raise typer.Exit(2 if wrong else 1) from None
        except Exception as problem:
            if hint := checks.hint_for(problem, given):
                raise UsageProblem(hint) from None
            raise


def _let_go_of_full_output() -> None:
    """Discard the buffer of a standard output that fails: Python would raise at its exit."""
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
Device = Annotated[Literal["cpu", "cuda"], typer.Option(envvar="EMERGENCE_DEVICE", help="The device of a slot.")]
Slots = Annotated[
    int | None, typer.Option(min=1, help="Slots in use at once; default: one per core, or per GPU share.")
]
Address = Annotated[
    str, typer.Option(help="local: Ray on this machine; auto: the cluster it belongs to; or host:port of its head.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Workers per trial; default: as the study states, or as few as fit.")
]
SlotsPerGpu = Annotated[int, typer.Option(min=1, help="Trunks of one worker that share one GPU.")]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1e6,
        envvar="EMERGENCE_GPU_MEMORY_GB",
        help="Memory of one GPU in GB (10^9 bytes), to fit trials into; default: that of a GPU here.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Place of the checkpoints: a folder that every node sees, or s3://..., gs://...; default: $EMERGENCE_STORAGE, else beside the results."
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else SQLite in the home folder.")
]
MaxHours = Annotated[
    float | None,
    typer.Option(help="End the study after so many wall-clock hours, over all its runs; default: the study's."),
]
MaxFlops = Annotated[
    float | None,
    typer.Option(help="End the study after so many training FLOPs, over all its runs; default: the study's."),
]
Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]


@app.callback(invoke_without_command=True)
def _top(context: typer.Context, version: Version = False) -> None:
    if version:
        from importlib.metadata import version as installed

        say(f"emergence-lab {installed('emergence-lab')}")
        raise typer.Exit
    try:
        files.home_folder()
    except RuntimeError:  # from pathlib
        home = os.environ.get("EMERGENCE_HOME")
        raise UsageProblem(
            f"EMERGENCE_HOME={home}: no folder is known for the ~; give another path, or set HOME"
        ) from None


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
    max_hours: MaxHours = None,
    max_flops: MaxFlops = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the speed with one short trial first.")
    ] = False,
) -> None:
    """Show what a study will do and cost, before any machine is taken."""
    study = checks.load_study(study_name)
    folder = journal.study_folder(study.id)
    everything = State.of(folder)
    jobs.check_against_record(study, everything, study_name)
    state = recorded.of_study(everything, study)
    checks.show_damage(state, folder, f"{program()} run {study_name} trains them again")
    options = checks.options_of(address, slots, device, workers, slots_per_gpu, gpu_memory_gb, storage)
    options = checks.with_caps(options, study, max_hours, max_flops)
    checks.check_room(study, options, absent_is_fine=not address)
    n_slots, known = checks.slots_for(options)
    speed = price.calibrate(study, device) if calibrate else None
    show_plan(price.make(study, state, n_slots, device, speed, folder, options), folder, known)


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
    max_hours: MaxHours = None,
    max_flops: MaxFlops = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Save the final weights of each trial as safetensors.")
    ] = False,
    tracking_uri: TrackingUri = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds between two saves of a trunk, the most that a kill costs.")
    ] = 30.0,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0, help="Further tries for a trunk that failed or lost its machine; default: 2 here, 10 on a cluster."
        ),
    ] = None,
) -> None:
    """Run a study or resume it: only missing trials are run. Ctrl-C is safe, Ctrl-Z does nothing."""
    if not math.isfinite(checkpoint_seconds):
        raise UsageProblem(f"--checkpoint-seconds {checkpoint_seconds}: a number of seconds is needed, such as 30")
    study = checks.load_study(study_name)
    uri = checks.tracking_uri_of(tracking_uri)
    options = checks.options_of(address, slots, device, workers, slots_per_gpu, gpu_memory_gb, storage)
    options = checks.with_caps(options, study, max_hours, max_flops)
    folder = checks.make_results_folder(journal.study_folder(study.id))
    tries = (2 if options.address == "local" else 10) if retries is None else retries
    options = options._replace(checkpoint_seconds=checkpoint_seconds, keep_weights=keep_weights, retries=tries)
    console = Terminal()
    with StudyLock(folder, study.id, lambda: State.of(folder).lease, aside) as lock:
        stop_request = supervise.StopRequest(folder)
        stop_request.clear()  # at once: a stop asked for while Ray starts must count
        output.outlive_readers(folder / "driver.log")
        everything = State.of(folder)
        if left := recorded.left_without_journal(everything, folder, study):
            raise UsageProblem(checks.journal_is_gone(folder, left))
        jobs.check_against_record(study, everything, study_name)
        state = recorded.of_study(everything, study)
        checks.show_damage(state, folder, "they are trained again now")
        if jobs.owes(study, state):
            checks.check_room(study, options)
            checks.check_writable(options.storage)
        source, kept = reader.find(study_name), folder / "study.yaml"
        if not (kept.exists() and source.samefile(kept)):
            files.replace(kept, source.read_bytes())
        outcome = _run_missing(study, state, folder, lock, options, uri, console, stop_request)
    shown = show_result(study, folder, uri, console, tracking_uri, study_name)
    if outcome == "capped":
        spent = caps.Meter(recorded.read(folder, study))
        console.print(
            f"\nEnded by its cap, with {number(spent.flops)} training FLOPs in {clock(3600 * spent.hours)} of all runs; everything so far is kept. To go on, raise the cap: --max-hours and --max-flops go before the study's."
        )
    if outcome == "stopped":
        console.print(f"\nStopped; everything so far is kept. Go on with: {this_again()}", soft_wrap=True)
        raise typer.Exit(130)
    again = {
        "broken": "Ray or Tune ended the run (see above); everything recorded is kept. Go on with",
        "failed": "Some trials failed (see above). Try them again with",
    }.get(outcome)
    if again:
        console.print(f"\n{again}: {this_again()}", soft_wrap=True)
    if again or not shown:  # MLflow may be late, with a message; tables and report may not
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
    """Run the missing trials; if there are none, only publish. Returns run.Outcome."""
    slots, known = checks.slots_for(options)
    todo = price.make(study, state, slots, options.device, folder=folder, options=options)
    if not todo.jobs:
        console.print(f"{study.id}: all {todo.n_trials} trials have ended; nothing to run.")
        _publish_if_needed(study, state, folder, lock, uri)
        return "complete"
    if reason := caps.reached(caps.Meter(state), options):
        console.print(f"{study.id}: {reason}; nothing is run, and {todo.n_open} of {todo.n_trials} trials stay open.")
        _publish_if_needed(study, state, folder, lock, uri)
        return "capped"
    show_plan(todo, folder, known, console, brief=True)
    source = provenance.source()
    if unknown := source.get("commit_unknown"):
        console.print(styled(("Note:", "bold"), f" the commit is not fully known: {unknown}."))
    if changes := source["changes"]:
        rest = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        console.print(styled(("Note:", "bold"), f" uncommitted changes: {', '.join(changes[:3])}{rest}."))
    if stop_request.is_asked():
        return "stopped"
    console.print("Starting Ray ..." if options.address == "local" else "Joining Ray ...")
    from orchestrator.run import machines  # imported here: Ray takes a second, and our refusals do not need it

    with progress.Progress(study, state, todo, console) as watcher:
        try:
            with machines.started(options, max(slots_of(job.placement, options) for job in todo.jobs)) as offered:
                machines.check_families([study.family_of(condition) for condition in study.conditions], options)
                watcher.on_slots(offered)  # which may change the order of work
                from orchestrator.run import driver  # imported here: the cluster's refusals do not need Ray Tune

                return driver.run(
                    study,
                    watcher.plan.jobs,
                    folder,
                    lock,
                    options,
                    uri,
                    watcher.take,
                    watcher.say,
                    stop_request,
                    watcher.watch,
                )
        except machines.ClusterProblem as problem:
            raise UsageProblem(str(problem)) from None


def _publish_if_needed(study: Study, state: State, folder: Path, lock: StudyLock, uri: str) -> None:
    """Bring the record up to the journal if it is behind, and record a study file whose wording has changed."""
    from orchestrator.record import publisher, trouble

    try:
        why = publisher.behind(folder, uri, study)
    except Exception as problem:  # from MLflow: the files were checked first
        found = trouble.of(problem, uri)
        if found.is_away:
            say(f"{found.what}; it is unknown whether it still has the published runs.")
            return
        why = found.what
    if not why:
        return
    say(f"{why}; writing it again ...")
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
    """Show the state of a study, or list all studies that ran."""
    console = Terminal()
    if study_name is None:
        list_studies(console)
        return
    folder, study, state = checks.recorded_study(study_name)
    ended = {t.id: state.trials[t.id]["status"] for t in study.trials() if t.id in state.trials}
    counts = {kind: sum(s == kind for s in ended.values()) for kind in ("done", "diverged", "failed")}
    running = "running" if lease.is_held(folder) else "not running"
    numbers = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind == "done")
    console.print(f"{study.id}: {running}; {numbers} of {len(study.trials())} trials")
    if not lease.is_held(folder) and (end := state.session_ends.get(state.sessions[-1]["session"])):
        console.print(f"The last run ended: {end['outcome']}")
    if lease.is_held(folder) and (holder := lease.lock_holder(folder)):
        console.print(f"Driver: process {holder['pid']} on {holder['host']}, since {holder['since']}")
    for trial, kind in ended.items():
        if kind in ("failed", "diverged"):
            console.print(f"  {trial} {kind}: {state.trials[trial].get('reason')}")
    console.print()
    console.print(progress.Surface(study, state).render())


@app.command(epilog="Example: emergence stop quickstart")
def stop(study_name: RecordedName) -> None:
    """Ask a running study to stop: every trunk saves after the step it is in."""
    try:
        folder, _, _ = checks.recorded_study(study_name)
    except UsageProblem:
        if not (Path(study_name).exists() or study_name in reader.shipped()):
            raise
        folder = journal.study_folder(reader.load(study_name).id)
        if not lease.is_held(folder):  # else it has just started, and has no record yet
            raise
    if not lease.is_held(folder):
        say(f"{folder.name} is not running; nothing to stop.")
        return
    supervise.StopRequest(folder).ask()
    say(f"Asked {folder.name} to stop. Go on later with: {program()} run {checks.source_of(study_name, folder)}")


@app.command(epilog="Example: emergence report quickstart")
def report(study_name: RecordedName) -> None:
    """Write the HTML report and its figures again from the journal; print its path."""
    folder, _, state = checks.recorded_study(study_name)
    from orchestrator.record import publisher

    say(str(publisher.rewrite(folder, aside)))
    if state.short:
        raise typer.Exit(1)


@app.command(epilog="Example: emergence compare quickstart@1 quickstart@2")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A study that ran, as for report.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The study to compare it with.")],
) -> None:
    """Compare two studies: settings, boundaries, and the cells in which they differ by more than noise."""
    from orchestrator.analysis import compare as comparing
    from orchestrator.analysis import findings
    from orchestrator.record import tables
    from orchestrator.report import compare_page

    both, outside = [], []
    for name in (first, second):
        folder, study, state = checks.recorded_study(name)
        tables.write_parquet(folder, state, study)
        both.append(findings.read(folder, study))
        outside.append(tables.outside(state, study))
    try:
        comparison = comparing.compare(both[0], both[1], (outside[0], outside[1]))
    except ValueError as problem:
        raise UsageProblem(f"{both[0].study.id} and {both[1].study.id} cannot be compared: {problem}") from None
    show_comparison(comparison)
    say(f"\nPage: {compare_page.write(files.home_folder(), comparison)}")


@app.command(epilog="Example: emergence publish quickstart --tracking-uri http://127.0.0.1:5000")
def publish(study_name: RecordedName, tracking_uri: TrackingUri = None) -> None:
    """Rebuild tables, report and MLflow runs from the journal. Repeating it changes nothing."""
    folder, study, state = checks.recorded_study(study_name)
    from orchestrator.record import publisher, trouble

    uri = checks.tracking_uri_of(tracking_uri)
    try:
        publisher.publish(folder, uri, say=aside)
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
    uri = checks.tracking_uri_of(tracking_uri)
    if not links.is_local(uri):
        say(f"MLflow runs elsewhere: open {links.ui_address(uri) or links.without_password(uri)}")
        return
    if (store := links.sqlite_file(uri)) is not None and not store.exists():
        ran = [folder.name for folder in checks.study_folders()]
        hint = (
            f"rebuild it with: {program()} publish {ran[0]}"
            if ran
            else f"run a study first: {program()} run quickstart"
        )
        raise UsageProblem(f"{links.without_password(uri)}: there is no MLflow store yet; {hint}")
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
            f"{problem.filename or files.home_folder()}: {problem.strerror}; the UI writes its address there"
        ) from None
    for folder in shown:
        say(f"  {folder.name}: {links.study_link(folder, uri)}")
    serve(port, uri)


@app.command(epilog="Example: emergence clean quickstart")
def clean(study_name: RecordedName, storage: Storage = None) -> None:
    """Free the space of a study's checkpoints; its results stay. A larger budget would then start again from step 0.

    The final weights of trials stay as long as trials that begin with them have not ended. Without them no further trial can
    begin with these.
    """
    folder, study, state = checks.recorded_study(study_name)
    with StudyLock(folder, study.id, lambda: State.of(folder).lease, aside):
        given = storage or os.environ.get("EMERGENCE_STORAGE")
        if given and given.startswith("file://"):  # a folder of this machine, whose links are checked below
            given = unquote(urlsplit(given).path)
        storage = checks.storage_of(given) if given else None
        checkpoints, starts = jobs.stored("checkpoints", folder, storage), jobs.stored("starts", folder, storage)
        if "://" not in checkpoints:
            root = Path(given) if given else files.home_folder()
            checkpoints, starts = (checks.within_home(root, Path(place)) for place in (checkpoints, starts))
        needed = jobs.needed_starts(study, state)
        n_bytes = checkpoint.clear(checkpoints)
        n_bytes += sum(weights.remove(starts, trial) for trial in {*jobs.donors_of(study).values()} - needed)
        n_bytes += 0 if needed else checkpoint.clear(starts)
        if checkpoint.store_of(checkpoints).n_bytes():
            raise UsageProblem(f"{checkpoints}: some files could not be removed; get access to them, and clean again")
    say(f"{study.id}: {n_bytes / 1e6:.1f} MB of checkpoints removed; results, runs and report stay.")
    if needed:
        say(f"The weights of {times(len(needed), 'trial')} stay: trials that have not ended begin with them.")
    if not n_bytes:
        say(f"There were none in {links.without_password(checkpoints)}; give --storage if they are elsewhere.")


def main() -> None:
    """The `emergence` command."""
    terminal.prepare()
    supervise.take_over()
    try:
        try:
            app()
        except (StudyError, StudyHeldError, LeaseLostError, UsageProblem) as problem:
            say(str(problem), err=True)
            sys.exit(1 if isinstance(problem, LeaseLostError) else 2)
    except SystemExit as end:
        supervise.tell("left", end.code if isinstance(end.code, int) else 1)
        raise


if __name__ == "__main__":
    main()
