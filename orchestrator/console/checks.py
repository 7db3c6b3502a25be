"""What a command checks before it starts: the study, the record, the folders, the options. Refusals are UsageProblems."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from pathlib import Path
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
from orchestrator.study import reader
from orchestrator.study import schema as studies
from orchestrator.study.schema import Study
from orchestrator.terminal import say
from trainers import checkpoint

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


def trouble_words(problem: OSError) -> str:
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


class UsageProblem(Exception):
    """Something the user can mend; told in one message, exit code 2."""


def study_folders() -> list[Path]:
    """Folders of studies that ran, in the home; other files and folders there are passed over. Raises OSError."""
    home = journal.home_folder()
    if not home.exists():
        return []
    return sorted(path for path in home.iterdir() if studies.is_id(path.name) and has_journal(path))


def has_journal(folder: Path) -> bool:
    """Does a folder hold a journal that can be read?"""
    try:
        return stat.S_ISREG((folder / "journal.jsonl").stat().st_mode)  # reading a pipe would wait for ever
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # and reading it says why not


def read_record(folder: Path) -> tuple[Study | None, Recorded]:
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


def load_study(name: str) -> Study:
    """A study to plan or run. Raises StudyError, and UsageProblem where the name is that of a study that ran."""
    if studies.is_id(name) and not Path(name).exists() and (kept := journal.study_folder(name) / "study.yaml").exists():
        raise UsageProblem(f"{name}: a study file is needed; the one that ran is kept: {program()} run {kept}")
    return reader.load(name)


def source_of(name: str, folder: Path) -> str:
    """What to call a study that ran by, so that it can be run again: as it was named, or the file that is kept."""
    return name if Path(name).exists() or name in reader.shipped() else str(folder / "study.yaml")


def recorded_study(name: str) -> tuple[Path, Study, Recorded]:
    """Folder, study and state of a study that ran. Raises UsageProblem when it has not, naming what comes near."""
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
            raise UsageProblem(
                f"{name}: no such study file; what ran under that name is {', '.join(of_name)}: give that"
            )
        if plain and not of_name and name == Path(name).stem:
            near = difflib.get_close_matches(name, [other.partition("@")[0] for other in known], 1)
            meant = f"; did you mean '{near[0]}'?" if near else f"; what ran there: {', '.join(known) or 'nothing'}"
            raise UsageProblem(f"{name}: has not been run in {journal.home_folder()}{meant}")
        study_id = of_name[0] if of_name and plain else reader.load(name).id
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
        raise UsageProblem(f"{study_id}: has not been run in {journal.home_folder()}{hint}")
    show_damage(state, folder, f"{program()} run {source_of(name, folder)} trains them again")
    if Path(name).is_file() and (differ := settings_that_differ(study, reader.load(name))):
        aside(f"{name} differs from what was run: {'; '.join(differ)}. This is what was run.")
    return folder, study, state


def settings_that_differ(ran: Study, other: Study) -> list[str]:
    """Axes and settings in which a study file differs from the study that ran."""
    before, now = (study.science() | {"axes": study.model_dump(mode="json")["axes"]} for study in (ran, other))
    return studies.differences(before, now)


def journal_is_gone(folder: Path, left: list[str]) -> str:
    """What to say of a folder whose journal is gone and whose results are not."""
    return (
        f"{folder / journal.FILE}: the journal is gone or empty, and of earlier runs there are {', '.join(left)}, which a run "
        "would write over. Put the journal back; or move those away, and a run goes on from checkpoints of these settings"
    )


def within_home(home: Path, folder: Path) -> str:
    """A folder that is to be deleted, without links. Raises UsageProblem where they lead out of the home or storage."""
    real = folder.resolve()
    if not real.is_relative_to(home.resolve()):
        raise UsageProblem(
            f"{folder}: a link leads to {real}, outside {home}, and nothing is deleted there; remove it by hand, or give "
            "the folder that holds it as EMERGENCE_HOME or --storage"
        )
    return str(real)


def make_results_folder(folder: Path) -> Path:
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


def tracking_uri_of(given: str | None) -> str:
    """The tracking URI that was given, or the default one. Raises UsageProblem for one that MLflow cannot write to."""
    from orchestrator.record import mlflow_runs  # here: pyarrow takes a moment that --help should not

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


def check_device(device: str) -> None:
    """Raises UsageProblem for a device that there is none of."""
    if device not in ("cpu", "cuda"):
        raise UsageProblem(f"--device {device}: cpu or cuda is needed")


def options_of(
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
        storage = storage_of(storage)
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


def storage_of(given: str) -> str:
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


def check_writable(storage: str | None) -> None:
    """Write a byte where checkpoints will go. Raises UsageProblem, before anything has started."""
    if storage is None:
        return
    try:
        checkpoint.check_writable(storage)
    except OSError as problem:
        said = links.hide(" ".join(str(problem).split()), storage)[:200]
        shown = links.without_password(storage)
        raise UsageProblem(f"--storage {shown}: checkpoints cannot be written there: {said}") from None


def check_room(study: Study, options: Options, absent_is_fine: bool = False) -> None:
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
    room, _ = slots_for(options)
    if wide > room and (options.slots or laid.workers > 1):
        what = "GPUs" if options.device == "cuda" else "cores"
        have = f"--slots {options.slots} is given" if options.slots else f"here are {room // (wide // laid.workers)}"
        raise UsageProblem(
            f"{study.id}: a trial of {line} takes {laid.workers} workers, one on each of as many {what}, and so "
            f"{wide} slots; {have}: it would never start. Give more, fewer --workers, or the --address of a cluster"
        )


def slots_for(options: Options) -> tuple[int, str]:
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


def keep_copy(source: Path, target: Path) -> None:
    """The study file as run, beside its results."""
    if not (target.exists() and source.samefile(target)):
        files.replace(target, source.read_bytes())


def show_damage(state: Recorded, folder: Path, remedy: str) -> None:
    """Name the lines of the journal that do not count, and the trials that lack rows."""
    damage = [line for line in state.damage if line != journal.INCOMPLETE or not lease.is_held(folder)]
    shown = damage[:MAX_DAMAGE_SHOWN]
    if len(damage) > len(shown):
        shown.append(f"... and {len(damage) - len(shown)} more like these")
    for line in shown:
        aside(f"{folder.name}: {line}")
    if damage and not state.short:
        aside(f"{folder.name}: lines that are damaged do not count; no row of a trial that has ended is missing.")
    if state.short:
        names = ", ".join(state.short[:3]) + (" ..." if len(state.short) > 3 else "")
        aside(f"{folder.name}: {times(len(state.short), 'trial')} without all rows ({names}): {remedy}.")


MAX_DAMAGE_SHOWN = 5
"""Damaged lines of a journal that a command names."""


def aside(line: str) -> None:
    """For the person who waits: not among what the command answers."""
    say(line, err=True)
