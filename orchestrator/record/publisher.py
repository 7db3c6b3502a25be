"""The publisher: projects the journal into Parquet, the report and MLflow. Repeatable, never the truth.

It is a separate process, `python -m orchestrator.record.publisher FOLDER --follow`. It tails the journal until its
standard input closes, so a slow, locked or absent MLflow never slows training. `emergence publish` does the same once.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from orchestrator import files, terminal
from orchestrator.analysis import findings
from orchestrator.record import links, mlflow_runs, recorded, trouble
from orchestrator.record.journal import State, read
from orchestrator.record.lease import flock
from orchestrator.record.mlflow_runs import MlflowRecord, Say
from orchestrator.record.tables import RESULTS, outside, write_parquet, write_summary
from orchestrator.record.trouble import RecordProblem
from orchestrator.study.schema import Study

T = TypeVar("T")

FOLLOW_SECONDS = 2.0
"""Least pause between two looks at the journal."""


def publish(folder: Path, tracking_uri: str, follow: bool = False, say: Say = lambda line: None) -> None:
    """Project the journal of a study's folder into Parquet, report and MLflow; with `follow`, until stdin closes.

    One publisher works on a folder at a time; a second one waits. Parquet and report come first and do not need MLflow.
    MLflow's exceptions are raised only after they are written. Raises OSError if the folder cannot be written.
    """
    with open(folder / LOCK_FILE, "w") as lock:
        _wait_for(lock, folder)
        everything, position, target, reported, pause = State(), 0, None, "", FOLLOW_SECONDS
        page_due, n_shown = 0.0, -1  # the first page at once
        while True:
            ending = not follow or _stdin_closed(pause)
            began = time.monotonic()
            if ending:
                everything = State.of(folder)  # read again: a line of an older lease may no longer count
            else:
                events, position = read(folder, position)
                everything.feed(events)
            if everything.study is None:
                if ending:
                    return
                continue
            study = Study.from_record(everything.study)
            state = recorded.of_study(everything, study)
            if ending:
                break
            try:
                if target is None or target.study != study:
                    target = MlflowRecord(tracking_uri, study, state.record)
                    target.begin(state)
                target.publish(state)
                reported = ""
            except Exception as problem:  # MLflow is down or locked: the journal keeps the events, training goes on
                if (what := trouble.of(problem, tracking_uri).what) != reported:
                    print(f"MLflow: {what}", file=sys.stderr, flush=True)
                reported, target = what, None
            if time.monotonic() >= page_due and len(state.trials) > n_shown:
                seconds = _page_while_running(folder, study, state, target)
                page_due, n_shown = time.monotonic() + seconds, len(state.trials)
            pause = max(FOLLOW_SECONDS, 10 * (time.monotonic() - began))  # uses at most a tenth of a core
        for place in (folder, folder / "figures"):
            files.remove_stale(place)
        say("Tables ...")
        found = _write_tables(folder, state, study)
        _mark(folder, {"mlflow": None})
        unpublished: Exception | None = None
        say("MLflow runs ...")
        try:
            target = publish_runs(tracking_uri, study, state, say)
            links.write_json(folder / links.LINKS_FILE, target.links())
        except Exception as problem:  # raised after the report, which needs no MLflow
            unpublished = problem
        say("Report and figures ...")
        _write_report(folder, found, state)
        if unpublished is not None:
            raise unpublished
        assert target is not None
        say("Report, figures and tables to MLflow ...")
        last = target
        after_outages(lambda: last.publish_study(folder, found, state))
        if (store := links.sqlite_file(tracking_uri)) is not None and not store.exists():
            raise RecordProblem(f"{store} was removed while it was written; publish again")
        shown = _what_is_shown(folder, state)
        _mark(folder, {"mlflow": shown | {"store": links.store_of(tracking_uri), "record": target.record_id}})


PAGE_SECONDS, PAGE_SHARE = 60.0, 0.05
"""While a study runs, its page is written at its start. After that it is written when another trial has ended, at most this
often, and in this share of the time."""


def _page_while_running(folder: Path, study: Study, state: State, target: MlflowRecord | None) -> float:
    """Write tables and page of a running study, and its answer so far in MLflow (None: MLflow is away).

    Returns the seconds until the next time; a failure is printed.
    """
    began = time.monotonic()
    try:
        found = _write_tables(folder, state, study)
        if target is not None:
            links.write_json(folder / links.LINKS_FILE, target.links())
        _write_report(folder, found, state, running=True)
        if target is not None:
            target.show_so_far(folder, found)
    except Exception as problem:  # the page at the end is the one that must succeed
        print(f"Page: {problem}", file=sys.stderr, flush=True)
    return max(PAGE_SECONDS, (time.monotonic() - began) / PAGE_SHARE)


PAUSES_SECONDS = (1.0, 2.0, 4.0)
"""Pauses between attempts to reach MLflow after a lost or refused connection."""


def publish_runs(tracking_uri: str, study: Study, state: State, say: Say | None = None) -> MlflowRecord:
    """Bring MLflow's runs up to the journal, also through short outages. Raises MLflow's exceptions."""

    def attempt() -> MlflowRecord:
        target = MlflowRecord(tracking_uri, study, state.record)
        target.publish(state, say)
        target.find()  # again: MLflow may make a duplicate run long after the request
        return target

    return after_outages(attempt)


def after_outages(work: Callable[[], T]) -> T:
    """Do work that needs MLflow, again after a short outage. `work` must be repeatable."""
    for pause in PAUSES_SECONDS:
        try:
            return work()
        except Exception as problem:
            found = trouble.of(problem)
            if not found.is_away or found.is_slow:
                raise
        time.sleep(pause)
    return work()


def rewrite(folder: Path, say: Say = lambda line: None) -> Path:
    """Write tables, summary and report from the journal, without MLflow. Returns the report's path. Raises OSError."""
    everything = State.of(folder)
    assert everything.study is not None
    study = Study.from_record(everything.study)
    state = recorded.of_study(everything, study)
    say("Tables ...")
    found = _write_tables(folder, state, study)
    say("Report and figures ...")
    return _write_report(folder, found, state)


def _write_tables(folder: Path, state: State, study: Study) -> findings.Findings:
    write_parquet(folder, state, study)
    found = findings.read(folder, study)
    write_summary(folder, found)
    return found


def _write_report(folder: Path, found: findings.Findings, state: State, running: bool = False) -> Path:
    from orchestrator.report import page  # imported here: `--help` needs no template

    path = page.write(folder, found, state.sessions, links.of(folder), outside(state, found.study), running)
    facts = {name: files.facts_of(folder / name) for name in mlflow_runs.shown_files(folder)}
    _mark(folder, {"report": _what_is_shown(folder, state) | {"files": facts}})
    return path


LOCK_FILE = "publisher.lock"


def _mark(folder: Path, facts: dict[str, Any]) -> None:
    links.write_json(folder / links.MARKER_FILE, (links.read_json(folder / links.MARKER_FILE) or {}) | facts)


def _what_is_shown(folder: Path, state: State) -> dict[str, Any]:
    digest = _journal_hash(folder, state.n_bytes)
    return {"journal_bytes": state.n_bytes, "journal_sha256": digest, "study": state.study, "columns": RESULTS.names}


def _journal_hash(folder: Path, n_bytes: int) -> str:
    digest = hashlib.sha256()
    with open(folder / "journal.jsonl", "rb") as file:
        while n_bytes > 0 and (data := file.read(min(n_bytes, 1 << 20))):
            digest.update(data)
            n_bytes -= len(data)
    return digest.hexdigest()


PUBLISHER_PATIENCE_SECONDS = 300.0
"""A driver waits this long for MLflow at its end. The journal is safe long before."""


def start_publisher(folder: Path, tracking_uri: str, follow: bool) -> subprocess.Popen[bytes]:
    """Start the publisher process. With `follow` it works until this process ends, because its standard input then closes."""
    # `-P` and PYTHONPATH: run this code, not a copy in the current folder.
    command = [sys.executable, "-P", "-m", "orchestrator.record.publisher", str(folder)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    # The URI may hold a password, so it is not an argument.
    environment = os.environ | {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": tracking_uri}
    log = open(folder / LOG_FILE, "ab")  # noqa: SIM115 - the child keeps it
    with log:
        return subprocess.Popen(
            ["nice", "-n", "5", *command, *(["--follow"] if follow else [])],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the driver only, and the publisher finishes its work
        )


def leave_publishing(publisher: subprocess.Popen[bytes]) -> None:
    """Let the publisher finish in the background."""
    assert publisher.stdin is not None
    with contextlib.suppress(OSError):
        publisher.stdin.close()


def finish_publishing(
    publisher: subprocess.Popen[bytes],
    folder: Path,
    say: Say,
    again: Callable[[], subprocess.Popen[bytes]] | None = None,
) -> bool:
    """Let the publisher finish and show its progress. Returns False, and shows the reason, if MLflow is not up to date.

    If the publisher was killed, `again` starts another one.
    """
    assert publisher.stdin is not None
    path = folder / LOG_FILE
    position = path.stat().st_size
    publisher.stdin.close()
    reasons: list[str] = []
    deadline = time.monotonic() + PUBLISHER_PATIENCE_SECONDS
    try:
        code = None
        while code is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = publisher.wait(0.2)
            lines, position = _new_lines(path, position)
            for line in lines:
                if line.startswith(PROGRESS):
                    say(line.removeprefix(PROGRESS))
                elif line.strip():
                    reasons.append(line)
    except KeyboardInterrupt:
        code = None
    if code is None:
        say(f"The publisher continues in the background (its log: {path}).")
        return False
    if code < 0 and again is not None:
        say(f"The publisher was ended by signal {-code}; another one does its work ...")
        return finish_publishing(again(), folder, say)
    if code:
        how = f"the publisher was ended by signal {-code}" if code < 0 else f"the publisher ended with code {code}"
        say(f"The record is not up to date: {reasons[-1] if reasons and code > 0 else how}")
        say("The journal has everything; 'emergence publish' rebuilds the record from it.")
    return code == 0


LOG_FILE = "publisher.log"

PROGRESS = "> "
"""Prefix of a progress line in the publisher's log."""


def _new_lines(path: Path, start: int) -> tuple[list[str], int]:
    """Whole lines of a file from byte `start` on, and the byte after them."""
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), start + len(whole)


def behind(folder: Path, tracking_uri: str, study: Study) -> str:
    """Why the record must be written again; "" if it is up to date with the journal.

    Checks files by size and hash, and asks MLflow's store for the runs. Raises MLflow's exceptions.
    """
    if not mlflow_is_current(folder, tracking_uri, study):
        return "The record is behind the journal"
    if lost := _lost_files(folder, study):
        return lost
    return _lost_runs(folder, tracking_uri, study)


def mlflow_is_current(folder: Path, tracking_uri: str, study: Study) -> bool:
    """Whether the whole journal was published in this store, by our own notes only."""
    marker = _marker(folder, "mlflow")
    return marker.get("store") == links.store_of(tracking_uri) and _shows_all(marker, folder, study)


def report_is_current(folder: Path, study: Study) -> bool:
    """Whether tables, report and figures are whole and up to date with the journal and the study."""
    return not _lost_files(folder, study)


def _lost_files(folder: Path, study: Study) -> str:
    marker = _marker(folder, "report")
    facts = marker.get("files")
    if not isinstance(facts, dict) or not _shows_all(marker, folder, study):
        return "The record is behind the journal"
    lost = [name for name, fact in facts.items() if not files.is_whole(folder / name, fact)]
    return f"{folder / lost[0]} is missing or damaged" if lost else ""


def _lost_runs(folder: Path, tracking_uri: str, study: Study) -> str:
    """The first published item that MLflow's store has lost, in words; "" if none."""
    store, shown = links.sqlite_file(tracking_uri), links.of(folder)
    if store is not None and not store.exists():
        return f"MLflow's store {store} is gone"
    if shown is None or shown.get("store") != links.store_of(tracking_uri):
        return f"{folder / links.LINKS_FILE} is missing or damaged"
    client = mlflow_runs.connect(tracking_uri)
    experiment = mlflow_runs.first_contact(client, study.id)
    if experiment is None or experiment.lifecycle_stage != "active":
        return "MLflow no longer has the experiment"
    wanted = shown["runs"] | {mlflow_runs.PARENT: shown["study"]}
    there: dict[str, str] = {}
    parent = ""
    for run in mlflow_runs.runs_of(client, experiment.experiment_id, _marker(folder, "mlflow")["record"]):
        key = run.data.tags["emergence.key"]
        if key in there or run.info.status == "RUNNING":
            return f"MLflow's run of {key} is not as it was published"
        there[key] = links.run_path(experiment.experiment_id, run.info.run_id)
        parent = run.info.run_id if key == mlflow_runs.PARENT else parent
    if lost := [key for key, path in wanted.items() if there.get(key) != path]:
        return f"MLflow no longer has the run of {lost[0]}"
    kept = {file.path for place in (None, "figures") for file in client.list_artifacts(parent, place)}
    if lost := [name for name in _marker(folder, "report")["files"] if name not in kept]:
        return f"MLflow no longer has the file {lost[0]}"
    return ""


def _marker(folder: Path, part: str) -> dict[str, Any]:
    """One part of the notes on the published state; empty if missing or written by an older version."""
    found = (links.read_json(folder / links.MARKER_FILE) or {}).get(part)
    return found if isinstance(found, dict) else {}


def _shows_all(marker: dict[str, Any], folder: Path, study: Study) -> bool:
    """Whether the notes match the journal, byte for byte, the study, and today's columns. A torn last line is no event."""
    journal, position = folder / "journal.jsonl", marker.get("journal_bytes")
    if not isinstance(position, int) or marker.get("study") != study.model_dump(mode="json"):
        return False
    if marker.get("columns") != RESULTS.names:  # an earlier version wrote the tables
        return False
    try:
        with open(journal, "rb") as file:
            file.seek(position)
            rest = file.read()
        return b"\n" not in rest and marker.get("journal_sha256") == _journal_hash(folder, position)
    except OSError:
        return False


def is_publishing(folder: Path) -> bool:
    """Whether a publisher on this machine works on this folder now."""
    try:
        with open(folder / LOCK_FILE, "rb") as lock:
            return flock(lock.fileno(), fcntl.LOCK_SH) is False
    except OSError:
        return False


def _wait_for(lock: IO[str], folder: Path) -> None:
    """Take the publisher's lock, with a message if another publisher has it.

    Some file systems have no locks. Two publishers may then work side by side: each file is still whole, and duplicate
    runs are healed.
    """
    if flock(lock.fileno(), fcntl.LOCK_EX) is False:
        print(f"Another publisher is at work on {folder.name}; waiting for it ...", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _stdin_closed(seconds: float) -> bool:
    """Wait; True as soon as standard input ends, because the driver has finished or died."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def main() -> int:
    """The process beside a driver. Returns the exit code: 1 if something could not be published."""
    terminal.prepare()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `ray job stop` sends it to all; we end when standard input closes
    parser = argparse.ArgumentParser(prog="python -m orchestrator.record.publisher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tracking-uri", default=mlflow_runs.default_tracking_uri())
    parser.add_argument("--follow", action="store_true", help="until standard input closes")
    options = parser.parse_args()
    try:
        publish(
            options.folder, options.tracking_uri, options.follow, say=lambda line: print(PROGRESS + line, flush=True)
        )
    except Exception as problem:  # one line for every error; tables and report may be written nevertheless
        print(trouble.of(problem, options.tracking_uri).what, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
