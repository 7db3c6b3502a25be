"""Checks of a command before it starts: the study, the record, the folders, the options. Refusals are UsageProblems."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from pydantic import ValidationError

from orchestrator import files
from orchestrator.console.commands import program
from orchestrator.formatting import times
from orchestrator.plan import jobs
from orchestrator.plan.options import Options, slots_of
from orchestrator.record import journal, lease, links, provenance, recorded
from orchestrator.record.journal import State
from orchestrator.record.recorded import Recorded
from orchestrator.study import guesses, reader
from orchestrator.study import schema as studies
from orchestrator.study.schema import Study
from orchestrator.terminal import say
from trainers import checkpoint
from trainers.data.sources import TableError
from trainers.tasks import Family, Request, conformance

GIVEN_WRONG = {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
"""Errors of a given path: exit code 2. All other errors may come from a command that has begun: exit code 1."""

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have your quota raised",
    errno.EACCES: "get access to it, or set EMERGENCE_HOME to a folder that is yours",
    errno.EPERM: "get access to it, or set EMERGENCE_HOME to a folder that is yours",
    errno.EROFS: "set EMERGENCE_HOME to a folder that can be written",
    errno.ENOTDIR: "set EMERGENCE_HOME to a folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


def trouble_words(problem: OSError) -> str:
    """An OSError in one line: place, reason, and remedy."""
    paths = [os.fsdecode(path) for path in (problem.filename, problem.filename2) if isinstance(path, (str, bytes))]
    where = " -> ".join(paths) or f"Reading, writing or printing (the home is {files.home_folder()})"
    reason = problem.strerror or " ".join(str(problem).split())[:300] or type(problem).__name__
    remedy = REMEDIES.get(problem.errno or 0, "correct that")
    return f"{where}: {reason}. Everything recorded so far is kept; {remedy}, and give the same command again."


class UsageProblem(Exception):
    """An error that the user can correct; one message, exit code 2."""


COMMANDS = {
    "run": ("train", "sweep", "fit", "optimize", "tune", "start", "launch", "resume", "submit", "continue"),
    "plan": ("check", "validate", "dry-run", "show", "describe", "estimate", "price"),
    "status": ("list", "ls", "ps", "progress", "watch", "studies"),
    "report": ("results", "plot", "analyze", "analyse", "summary", "html"),
    "ui": ("mlflow", "dashboard", "serve"),
    "compare": ("diff",),
    "stop": ("kill", "cancel", "pause"),
    "clean": ("rm", "remove", "delete"),
}
"""Command -> the names that other tools give it."""


def hint_for(problem: Exception, given: list[str]) -> str | None:
    """The line for an option, argument or command that only other tools have; None if `problem` is anything else.

    problem: the command line's own refusal. given: the words of the command line.
    """
    text = str(getattr(problem, "message", ""))
    if option := getattr(problem, "option_name", None):
        return guesses.wrong_option(str(option), given)
    if "unexpected extra argument" in text:
        return next((hint for word in given if word in text and (hint := guesses.wrong_option(word, given))), None)
    meant = next((name for name, others in COMMANDS.items() if given and given[0] in others), None)
    return f"{given[0]}: no such command; did you mean 'emergence {meant}'?" if meant and given[0] in text else None


def study_folders() -> list[Path]:
    """Folders of recorded studies in the home. Raises OSError."""
    home = files.home_folder()
    if not home.exists():
        return []
    return sorted(path for path in home.iterdir() if studies.is_id(path.name) and has_journal(path))


def has_journal(folder: Path) -> bool:
    """Whether a folder holds a journal."""
    try:
        return stat.S_ISREG((folder / "journal.jsonl").stat().st_mode)  # reading a pipe would wait for ever
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it will raise the reason


def read_record(folder: Path) -> tuple[Study | None, Recorded]:
    """The study and state of a folder; None if nothing was recorded. Raises OSError, and UsageProblem if it is unreadable."""
    try:
        state = State.of(folder)
        if state.study is not None:
            study = Study.from_record(state.study)
            return study, recorded.of_study(state, study)
        if not (folder / "journal.jsonl").stat().st_size:
            return None, Recorded()
        raise ValueError("no line of its journal holds the study")
    except OSError:
        raise
    except Exception as problem:  # another version, a family that is not installed, damage, or anything else
        raise UsageProblem(f"{folder.name}: its record in {folder} cannot be read here: {_why(problem)}") from None


def _why(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        first = problem.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]


def load_study(name: str) -> Study:
    """A study to plan or run. Raises StudyError, and UsageProblem if the name is that of a recorded study.

    A family of another package is asked for a batch and a suite first: a wrong type or shape is a UsageProblem.
    """
    if studies.is_id(name) and not Path(name).exists() and (kept := journal.study_folder(name) / "study.yaml").exists():
        raise UsageProblem(
            f"{name}: a study file is needed; a copy of the one that ran is here: {program()} run {kept}"
        )
    study = reader.load(name)
    for condition in study.conditions:
        trunk = study.trunk_of(condition)
        family = cast(Family, trunk.family)
        if type(family).__module__.startswith("trainers."):
            if family.data_digests:
                _read_once(family, trunk.request)
            continue
        if breach := conformance.first_shape(cast(Family, trunk.family), trunk.request):
            raise UsageProblem(f"{name}: {breach}; docs/families.md has the contract")
    return study


def _read_once(family: Family, request: Request) -> None:
    """Read prepared data as a first batch does. Raises UsageProblem if it was damaged since."""
    try:
        family.batch(request, 0)
    except TableError as problem:
        raise UsageProblem(str(problem)) from None


def source_of(name: str, folder: Path) -> str:
    """The name with which a recorded study can be run again: the given name, or the saved copy of its file."""
    return name if Path(name).exists() or name in reader.shipped() else str(folder / "study.yaml")


def _id_of(name: str, known: list[str]) -> str:
    """The id of a study file. A study that ran is known by its name even if a file of its family is gone."""
    try:
        return reader.load(name).id
    except studies.StudyError:
        if (stated := reader.stated_id(name)) in known:
            return stated
        raise


def recorded_study(name: str) -> tuple[Path, Study, Recorded]:
    """Folder, study and state of a recorded study. Raises UsageProblem with similar names if it has no record."""
    known = [folder.name for folder in study_folders()]
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
            raise UsageProblem(f"{name}: no such study file; studies that ran under that name: {', '.join(of_name)}")
        if plain and not of_name and name == Path(name).stem:
            near = difflib.get_close_matches(name, [other.partition("@")[0] for other in known], 1)
            meant = (
                f"; did you mean '{near[0]}'?" if near else f"; studies that ran there: {', '.join(known) or 'none'}"
            )
            raise UsageProblem(f"{name}: has not been run in {files.home_folder()}{meant}")
        study_id = of_name[0] if of_name and plain else _id_of(name, known)
    folder = journal.study_folder(study_id)
    study, state = read_record(folder) if has_journal(folder) else (None, Recorded())
    if study is None and folder.is_dir() and (left := recorded.left_without_journal(state, folder)):
        raise UsageProblem(journal_is_gone(folder, left))
    if study is None:
        known = [other for other in known if other != study_id]
        versions = [other for other in known if other.partition("@")[0] == study_id.partition("@")[0]]
        near = versions or difflib.get_close_matches(study_id, known, 1)
        hint = f"; {', '.join(near)} has" if near else ""
        hint += "" if "@" in name else f"; run it with: {program()} run {name}"
        raise UsageProblem(f"{study_id}: has not been run in {files.home_folder()}{hint}")
    show_damage(state, folder, f"{program()} run {source_of(name, folder)} trains them again")
    try:
        differ = settings_that_differ(study, reader.load(name)) if Path(name).is_file() else []
    except studies.StudyError as problem:
        aside(f"{str(problem).splitlines()[0]}. This command uses the study that ran.")
    else:
        if differ:
            aside(f"{name} differs from the study that ran: {'; '.join(differ)}. This command uses the study that ran.")
    return folder, study, state


def settings_that_differ(ran: Study, other: Study) -> list[str]:
    """Axes and settings in which a study file differs from the study that ran."""
    before, now = (study.science() | {"axes": study.model_dump(mode="json")["axes"]} for study in (ran, other))
    return studies.differences(before, now)


def journal_is_gone(folder: Path, left: list[str]) -> str:
    """The message for a folder that has results and no journal."""
    return (
        f"{folder / journal.FILE}: the journal is gone or empty, but {', '.join(left)} of earlier runs exist, and a run would "
        "overwrite them. Restore the journal; or move those away, and a run resumes from checkpoints of these settings"
    )


def within_home(home: Path, folder: Path) -> str:
    """The real path of a folder to be deleted. Raises UsageProblem if links lead out of the home or storage."""
    real = folder.resolve()
    if not real.is_relative_to(home.resolve()):
        raise UsageProblem(
            f"{folder}: a link leads to {real}, outside {home}, and nothing is deleted there; remove it by hand, or give "
            "the folder that holds it as EMERGENCE_HOME or --storage"
        )
    return str(real)


def make_results_folder(folder: Path) -> Path:
    """Make the results folder. Raises UsageProblem if it cannot be written, before anything has started."""
    if "working_dir_files" in folder.parts:
        raise UsageProblem(
            "this job runs in a folder named after its content, so results written here could not be found again; "
            "set EMERGENCE_HOME to an absolute folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise UsageProblem(
            f"{folder}: results cannot be written there: {problem.strerror}; set EMERGENCE_HOME to a writable folder"
        ) from None
    return folder


def tracking_uri_of(given: str | None) -> str:
    """The given or the default tracking URI. Raises UsageProblem if MLflow cannot write to it."""
    from orchestrator.record import mlflow_runs  # imported here: pyarrow would slow --help

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
        raise UsageProblem(f"{shown}: the text after ? counts as settings; in a path write %3F for it")
    return uri


def _check_address(uri: str) -> None:
    """Refuse an address that clients would misread. Raises UsageProblem, without any password."""
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


def options_of(
    address: str,
    slots: int | None,
    device: Literal["cpu", "cuda"],
    workers: int | None,
    slots_per_gpu: int,
    gpu_memory_gb: float | None,
    storage: str | None,
) -> Options:
    """The Options for the command-line options of `plan` and `run`."""
    storage = storage or os.environ.get("EMERGENCE_STORAGE")
    gpu_bytes = round(gpu_memory_gb * 1e9) if gpu_memory_gb else provenance.gpu_bytes() if device == "cuda" else None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    return Options(
        address=address,
        slots=slots,
        device=device,
        slots_per_gpu=slots_per_gpu,
        workers=workers,
        storage=storage_of(storage) if storage else None,
        gpu_bytes=gpu_bytes,
        n_gpus=provenance.n_gpus() if device == "cuda" and address == "local" else None,
    )


def with_caps(options: Options, study: Study, max_hours: float | None, max_flops: float | None) -> Options:
    """The options with the given caps, or those of the study. Raises UsageProblem for a cap that is not above 0."""
    for name, cap in (("--max-hours", max_hours), ("--max-flops", max_flops)):
        if cap is not None and not 0 < cap < float("inf"):
            raise UsageProblem(
                f"{name} {cap:g}: a number above 0 is needed, such as {'8' if 'hours' in name else '1e18'}"
            )
    return options._replace(max_hours=max_hours or study.stop.max_hours, max_flops=max_flops or study.stop.max_flops)


def storage_of(given: str) -> str:
    """A folder or URI for checkpoints, with an absolute path. Raises UsageProblem if it is malformed or does not answer."""
    advice, shown = "give a folder, or a URI such as s3://bucket/prefix", links.without_password(given)
    if re.match(r"[a-z][a-z0-9+]+:/(?!/)", given) or given.endswith("://"):
        raise UsageProblem(f"--storage {shown}: neither a folder nor a whole URI; {advice}")
    try:
        checkpoint.store_of(given).names()
    except (ValueError, OSError) as problem:
        reason = links.hide(" ".join(str(problem).split()), given)[:200]
        raise UsageProblem(f"--storage {shown}: cannot be reached: {reason}; {advice}") from None
    return given if "://" in given else str(Path(given).resolve())


def check_writable(storage: str | None) -> None:
    """Write a byte to the checkpoint storage. Raises UsageProblem, before anything has started."""
    if storage is None:
        return
    try:
        checkpoint.check_writable(storage)
    except OSError as problem:
        reason = links.hide(" ".join(str(problem).split()), storage)[:200]
        shown = links.without_password(storage)
        raise UsageProblem(f"--storage {shown}: checkpoints cannot be written there: {reason}") from None


def check_room(study: Study, options: Options, absent_is_fine: bool = False) -> None:
    """Refuse a trial that can never start on this machine, under --slots, or on the cluster. Raises UsageProblem.

    With `absent_is_fine` the cluster may not be up yet, as for a plan.
    """
    placements = jobs.placements_of(study, options)
    (condition, _), placement = max(placements.items(), key=lambda item: item[1].workers)
    wide = slots_of(placement, options)
    if options.address != "local":
        from orchestrator.run import machines  # imported here: Ray takes a second, and most refusals do not need it

        try:
            machines.refuse_early(options, wide, absent_is_fine)
        except machines.ClusterProblem as problem:
            raise UsageProblem(str(problem)) from None
    if options.address != "local" and not options.slots:
        return
    room, _ = slots_for(options)
    if wide > room and (options.slots or placement.workers > 1):
        unit = "GPU" if options.device == "cuda" else "core"
        have = (
            f"--slots {options.slots} is given" if options.slots else f"here are {room // (wide // placement.workers)}"
        )
        raise UsageProblem(
            f"{study.id}: a trial of {condition} takes {placement.workers} workers with one {unit} each, and so {wide} slots; {have}: "
            "it would never start. Give more slots, fewer --workers, or the --address of a cluster"
        )


def slots_for(options: Options) -> tuple[int, str]:
    """The number of slots for the plan, and the assumption behind it. Ray's own number is known only once it runs."""
    if options.slots:
        return options.slots, ""
    local = options.address == "local"
    if options.device == "cpu":
        return provenance.cores(), "" if local else " (assumed: the cores of this machine, not those of the cluster)"
    gpus = provenance.n_gpus() if local else None
    if gpus:
        return gpus * options.slots_per_gpu, f" ({gpus} GPU{'s' if gpus > 1 else ''} here)"
    found = "; none was found here" if gpus == 0 else "; known once the cluster is joined" if not local else ""
    return options.slots_per_gpu, f" (assumed: one GPU{found})"


def show_damage(state: Recorded, folder: Path, remedy: str) -> None:
    """Show the journal lines that do not count, and the trials that lack rows."""
    damage = [line for line in state.damage if line != journal.INCOMPLETE or not lease.is_held(folder)]
    for line in damage[:5]:
        aside(f"{folder.name}: {line}")
    if len(damage) > 5:
        aside(f"{folder.name}: ... and {len(damage) - 5} more like these")
    if damage and not state.short:
        aside(f"{folder.name}: damaged lines do not count; no row of an ended trial is missing.")
    if state.short:
        names = ", ".join(state.short[:3]) + (" ..." if len(state.short) > 3 else "")
        aside(f"{folder.name}: {times(len(state.short), 'trial')} without all rows ({names}): {remedy}.")


def aside(line: str) -> None:
    """Print a line for the user that is not part of the command's answer."""
    say(line, err=True)
