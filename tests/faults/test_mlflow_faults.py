"""MLflow refuses, hangs, answers 500, cuts its answers or loses them; its store is locked, or was deleted; files are damaged.

A real server stands behind a proxy of ours, a real trunk in the journal. Each fault is compared with a publication that
nothing disturbed: the same histories, params and tags, one run for each key, none left running.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from conftest import PATIENCE_SECONDS, tally
from mlflow_facts import Facts, mlflow_facts, still_running
from mlflow_proxy import Fault, Proxy
from test_record import SMALL

from orchestrator import cli, files
from orchestrator.analysis import findings, summary
from orchestrator.console import checks, commands
from orchestrator.record import links, mlflow_runs, publisher, trouble
from orchestrator.record.journal import Journal, State
from orchestrator.record.provenance import session_event
from orchestrator.study.schema import Study
from trainers.fit.place import Place
from trainers.train import run_trunk

Events = list[dict[str, Any]]


class World:
    """A server, a proxy before it, and a study with its tables and report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = f"sqlite:///{folder / 'server.db'}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += [
            "--workers",
            "1",
            "--backend-store-uri",
            self.store,
            "--artifacts-destination",
            str(folder / "kept"),
        ]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(folder / "server.log", "wb") as log:
            self.server = subprocess.Popen(
                command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )
        self.proxy = Proxy(self.port)
        self.study = Study.from_record(SMALL)
        self.events: Events = [session_event(self.study, {})]  # the server starts meanwhile
        run_trunk(self.study.trunks()[0], self.study.budgets, Place(), self.events.extend)
        self.state = State()
        self.state.feed(self.events)
        self.home, self.uri = self.journal(files.home_folder() / self.study.id), mlflow_runs.default_tracking_uri()
        publisher.publish(self.home, self.uri)
        self.place = folder / self.study.id  # the same with two figures only: each is a request
        shutil.copytree(self.home, self.place)
        for figure in sorted((self.place / "figures").iterdir())[2:]:
            figure.unlink()
        self.found = findings.read(self.place, self.study)
        self.golden = self.publish("golden", f"http://127.0.0.1:{self.port}")

    def journal(self, folder: Path) -> Path:
        """A study's folder that has its journal and nothing else."""
        log = Journal(folder)
        log.append(self.events)
        log.close()
        return folder

    def wait_for_server(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert self.server.poll() is None and time.monotonic() < deadline, (self.folder / "server.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                return
            time.sleep(0.05)

    def publish(self, record_id: str, address: str = "", study: Study | None = None) -> Facts:
        """Publish under another record's name, as `publisher.publish` does it; returns what MLflow then holds."""
        self.wait_for_server()
        study = study or self.study
        uri = address or self.proxy.address
        state = State()
        state.feed([self.events[0] | {"session": record_id, "record": record_id}, *self.events[1:]])
        target = publisher.publish_runs(uri, study, state)
        publisher.after_outages(lambda: target.publish_study(self.place, self.found, state))
        return self.facts(record_id, study.id)

    def facts(self, record_id: str, study_id: str = "") -> Facts:
        """What the server's store holds of a record."""
        found = mlflow_facts(self.store, study_id or self.study.id, record_id)
        for runs in found.values():
            for run in runs:
                run["tags"].pop("emergence.study", None)
                run["tags"].pop("mlflow.runName", None)
        return found

    def made(self, record_id: str) -> int:
        """Runs that were ever made under a record's name, deleted ones included."""
        with contextlib.closing(sqlite3.connect(self.folder / "server.db")) as store:
            named = "SELECT count(*) FROM tags WHERE key = 'emergence.record' AND value = ?"
            return int(store.execute(named, (record_id,)).fetchone()[0])

    def close(self) -> None:
        self.proxy.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    patch = pytest.MonkeyPatch()
    patch.setattr(publisher, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    patch.setenv("EMERGENCE_HOME", str(tmp_path_factory.mktemp("home")))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    built: list[World] = []
    try:
        world = World.__new__(World)
        built.append(world)
        world.__init__(tmp_path_factory.mktemp("world"))  # type: ignore[misc] - what was started is ended, whatever fails
        yield world
    finally:
        built[0].close()
        patch.undo()


def test_an_undisturbed_publication_has_one_run_for_each_key(world: World) -> None:
    assert set(world.golden) == {mlflow_runs.PARENT, *(trial.id for trial in world.study.trials())}
    for key, runs in world.golden.items():
        assert len(runs) == 1 and runs[0]["status"] == "FINISHED" and runs[0]["metrics"]
        assert runs[0]["parent"] == (None if key == mlflow_runs.PARENT else mlflow_runs.PARENT)


def test_a_lost_cut_dropped_or_refused_answer_at_any_request_changes_nothing(world: World) -> None:
    """Fails with a fourth run where MLflow's client may repeat a request to create, and with an error where a
    publication is not tried again after a short outage."""
    with world.proxy.doing(Fault("none")):
        assert world.publish("counted") == world.golden
    requests = list(world.proxy.heard)
    assert sum(request.endswith("runs/create") for request in requests) == 3
    kind = [request.partition(" /api/2.0/mlflow-artifacts")[0] for request in requests]
    first_of_kind = {request: i for i, request in reversed(list(enumerate(kind)))}
    tried = [("lose", i) for i, request in enumerate(requests) if i in first_of_kind.values() or "PUT" not in request]
    kinds = itertools.cycle(("cut", "drop", "500"))  # each kind of request meets one of them, and creating all
    tried += [(next(kinds), i) for i in first_of_kind.values()]
    tried += [
        (how, i) for i, request in enumerate(requests) if request.endswith("create") for how in ("cut", "drop", "500")
    ]
    for how, i in tried:
        with world.proxy.doing(Fault(how, nth=i)):
            found = world.publish(f"{how}{i}")
        assert world.proxy.hits == 1
        assert found == world.golden, (how, i, requests[i])
        assert world.made(f"{how}{i}") == 3, (how, i, requests[i])
    tally("MLflow: an answer lost, cut or refused", len(tried), len(tried))
    assert still_running(world.store, world.study.id) == 0


@pytest.mark.parametrize("how", ["lose", "cut", "drop", "500"])
def test_one_experiment_is_made_whatever_happens_to_the_answer(world: World, how: str) -> None:
    """Fails where an experiment that exists by now is an error: two publishers may make it at the same moment."""
    study = world.study.model_copy(update={"study": f"made_{how}"})
    with world.proxy.doing(Fault(how, "experiments/create")):
        assert world.publish("made", study=study) == world.golden
    target = mlflow_runs.MlflowRecord(world.proxy.address, study, "made")
    assert target._create_experiment(world.proxy.address) == target.experiment
    tally("MLflow: an answer lost, cut or refused", 1, 1)


def test_runs_that_were_made_twice_become_one_and_none_stays_running(world: World) -> None:
    """Two drivers' leftovers: a second parent and second trials, one of them half written, and children of the wrong
    parent. Fails where the search does not delete doubles, or leaves children where they are."""
    address = f"http://127.0.0.1:{world.port}"
    client, state = mlflow_runs.connect(address), State()
    state.feed([world.events[0] | {"session": "twice", "record": "twice"}, *world.events[1:]])
    first = mlflow_runs.MlflowRecord(address, world.study, "twice")
    first.publish(state)
    second = mlflow_runs.MlflowRecord(address, world.study, "twice")
    for known in (second.runs, second._parents, second._settled, second._params):
        known.clear()
    second.begin(state)
    for trial in world.study.trials():
        tags = {
            "emergence.key": trial.id,
            "emergence.record": "twice",
            "mlflow.parentRunId": second.runs[mlflow_runs.PARENT],
        }
        client.create_run(second.experiment, tags=tags)
    client.set_tag(first.runs[world.study.trials()[0].id], "mlflow.parentRunId", second.runs[mlflow_runs.PARENT])
    assert sum(map(len, world.facts("twice").values())) == 6
    assert world.publish("twice") == world.golden
    assert still_running(world.store, world.study.id) == 0
    tally("MLflow: runs made twice", 3, 3)


def test_a_trial_whose_last_request_never_came_is_finished_by_the_next_publication(world: World) -> None:
    """Fails where the tag `emergence.ended` alone counts as the end: the run would stay RUNNING."""
    with world.proxy.doing(Fault("drop", "runs/update", times=1000)), pytest.raises(Exception, match="Connection"):
        world.publish("unended")
    assert still_running(world.store, world.study.id)
    assert world.publish("unended") == world.golden
    assert still_running(world.store, world.study.id) == 0
    tally("MLflow: down from one request on", 1, 1)


def test_a_server_that_is_away_for_good_is_told_in_one_line_and_costs_only_delay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the reason is MLflow's own text, or "when MLflow is up" is said of anything else."""
    closed = Proxy(world.port)
    closed.close()
    monkeypatch.setitem(mlflow_runs._PATIENCE, mlflow_runs._TIMEOUT, "1")
    monkeypatch.setattr(mlflow_runs, "_FIRST_TIMEOUT", "1")
    monkeypatch.delenv(mlflow_runs._TIMEOUT, raising=False)
    tried: list[tuple[str, Fault, str]] = [
        (closed.address, Fault("none"), "connection refused"),
        (world.proxy.address, Fault("hang", times=1000), "no answer in time"),
        (world.proxy.address, Fault("500", times=1000), "error 500"),
        (world.proxy.address, Fault("drop", nth=3, times=1000), "connection lost"),
    ]
    for address, fault, words in tried:
        with world.proxy.doing(fault), pytest.raises(Exception) as problem:
            world.publish("away", address)
        found = trouble.of(problem.value, address)
        assert words in found.what and address in found.what and found.advice == trouble.LATER and found.is_away
        assert "\n" not in found.what and "HTTPConnectionPool" not in found.what
    monkeypatch.setenv(mlflow_runs._TIMEOUT, "60")  # from here on it answers, on a busy machine maybe late
    assert world.publish("away") == world.golden
    tally("MLflow: down from one request on", len(tried), len(tried))


def test_a_publisher_killed_in_the_middle_is_made_good_by_the_next_one(world: World) -> None:
    """Killed when MLflow has made the second run and nobody has heard of it. Fails where a run is not found by its key."""
    study = world.study.model_copy(update={"study": "killed"})
    folder = world.folder / study.id
    session = {"study": study.model_dump(mode="json"), "session": "killed", "record": "killed"}
    log = Journal(folder)
    log.append([world.events[0] | session, *world.events[1:]])
    log.close()
    killed: list[subprocess.Popen[bytes]] = []
    with world.proxy.doing(Fault("call", "runs/create", nth=1, call=lambda: killed[0].kill())):
        killed.append(publisher.start_publisher(folder, world.proxy.address, follow=False))
        said: list[str] = []
        assert not publisher.finish_publishing(killed[0], folder, said.append)
    assert "signal 9" in said[-2]
    assert not publisher.mlflow_is_current(folder, world.proxy.address, study)
    assert len(world.facts("killed", study.id)) == 2
    assert world.publish("killed", study=study) == world.golden
    assert world.made("killed") == 3
    assert not still_running(world.store, study.id)
    tally("publisher killed", 1, 1)


# Files and stores ---------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_what_was_published_is_looked_at_file_by_file(world: World) -> None:
    """Fails where a note says that it was published and nobody looks, or a size alone stands for a file."""
    folder, uri = world.home, world.uri
    assert publisher.behind(folder, uri, world.study) == ""
    names = [
        "journal.jsonl",
        "results.parquet",
        "runs.parquet",
        "summary.csv",
        "report.html",
        links.LINKS_FILE,
    ]
    names += [f"figures/{path.name}" for path in (folder / "figures").iterdir()][:2]
    damages: list[Callable[[Path], None]] = [Path.unlink, _cut, _flip]
    tried = 0
    for name in names:
        whole = (folder / name).read_bytes()
        for damage in damages if name != links.LINKS_FILE else damages[:2]:
            damage(folder / name)
            why = publisher.behind(folder, uri, world.study)
            assert (str(folder / name) if name != "journal.jsonl" else "behind the journal") in why, (name, damage)
            if name != links.LINKS_FILE:
                assert not publisher.report_is_current(folder, world.study)
            (folder / name).write_bytes(whole)
            tried += 1
    whole = (folder / "runs.parquet").read_bytes()
    _cut(folder / "runs.parquet")
    with pytest.raises(OSError, match="is damaged"):
        findings.read(folder, world.study)
    (folder / "runs.parquet").write_bytes(whole)
    assert publisher.behind(folder, uri, world.study) == ""
    tally("published file damaged", tried, tried)


def test_what_mlflow_lost_is_noticed_and_written_again(world: World) -> None:
    """A run deleted, a run left running, an artifact deleted; then the whole store, of which `run` says so and rebuilds
    it. Fails where the store is not asked."""
    folder, uri, golden = world.home, world.uri, mlflow_facts(world.uri, world.study.id)
    client = mlflow_runs.connect(uri)
    trial = world.study.trials()[0].id

    def published() -> mlflow_runs.MlflowRecord:
        target = publisher.publish_runs(uri, world.study, world.state)
        links.write_json(folder / links.LINKS_FILE, target.links())
        target.publish_study(folder, world.found, world.state)
        return target

    def artifacts(target: mlflow_runs.MlflowRecord) -> Path:
        return Path(unquote(urlsplit(client.get_run(target.runs[mlflow_runs.PARENT]).info.artifact_uri).path))

    damages: list[Callable[[mlflow_runs.MlflowRecord], Any]] = [
        lambda target: client.delete_run(target.runs[trial]),
        lambda target: client.delete_run(target.runs[mlflow_runs.PARENT]),
        lambda target: client.update_run(target.runs[mlflow_runs.PARENT], status="RUNNING"),
        lambda target: (artifacts(target) / "report.html").unlink(),
        lambda target: shutil.rmtree(artifacts(target)),
        lambda target: client.delete_experiment(target.experiment),
    ]
    target = published()
    for damage in damages:
        damage(target)
        assert publisher.behind(folder, uri, world.study)
        target = published()
        assert publisher.behind(folder, uri, world.study) == "" and mlflow_facts(uri, world.study.id) == golden
    file = folder / "small.yaml"
    file.write_text(str(SMALL).replace("'", '"'))
    (folder.parent / "mlflow.db").unlink()
    _cut(folder / "runs.parquet")
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "runs.parquet is missing or damaged; " in done.stdout
    assert mlflow_facts(uri, world.study.id) == golden
    link = links.study_link(folder, uri)
    assert link is not None and link in done.stdout
    tally("MLflow's store damaged", len(damages) + 1, len(damages) + 1)


def _trouble_of(work: Callable[[], Any], uri: str) -> trouble.Trouble:
    with pytest.raises(Exception) as problem:
        work()
    found = trouble.of(problem.value, uri)
    assert "\n" not in found.what and "SQL:" not in found.what
    return found


def test_a_database_that_is_locked_read_only_or_damaged_is_told_by_name_and_tables_are_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where MLflow meets the database first: it tries ten times for minutes, and quotes SQL."""
    monkeypatch.setattr(mlflow_runs, "SQLITE_PATIENCE_SECONDS", 0.1)
    folder, path = world.journal(tmp_path / world.study.id), tmp_path / "m.db"
    uri = links.sqlite_uri(path)
    shutil.copyfile(world.folder / "server.db", path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        found = _trouble_of(lambda: publisher.publish(folder, uri), uri)
        assert "locked" in found.what and found.is_away and publisher.report_is_current(folder, world.study)
    with open(path, "r+b") as file:
        file.seek(18)
        file.write(b"\x03")  # of a format that this SQLite may read and not write
    found = _trouble_of(lambda: publisher.publish_runs(uri, world.study, world.state), uri)
    assert "can be read but not written" in found.what and not found.is_away and "is up" not in found.advice
    path.write_bytes(b"no database at all" * 100)
    found = _trouble_of(lambda: publisher.publish_runs(uri, world.study, world.state), uri)
    assert "is damaged" in found.what and "rebuilt" in found.advice and not found.is_away
    nowhere = f"sqlite:///{tmp_path}/nowhere/m.db"
    found = _trouble_of(lambda: publisher.publish_runs(nowhere, world.study, world.state), nowhere)
    assert "nowhere: no such folder" in found.what and not found.is_away
    tally("SQLite locked, read-only, damaged", 4, 4)


def test_a_full_disk_is_one_line_and_leaves_the_whole_file_that_was_there(world: World, tmp_path: Path) -> None:
    """Fails where a file is written in place, or an error of the file system ends in a traceback."""
    folder, store = tmp_path / world.study.id, f"sqlite:///{tmp_path}/m.db"
    folder.mkdir(parents=True)
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here in a namespace of one's own")
    (older := tmp_path / "results.parquet").write_text("what an earlier publication left")
    given = [world.place / "journal.jsonl", older]
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in given) + 8192
    script = (
        f"mount -t tmpfs -o size={size} tmpfs '{folder}' && cp '{given[0]}' '{given[1]}' '{folder}' && "
        f"'{sys.executable}' -m orchestrator.record.publisher '{folder}' --tracking-uri '{store}'; "
        f"echo code $?; ls -A '{folder}'; cmp '{given[1]}' '{folder}/results.parquet'"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1 and "No space left on device" in said[0]
    assert "code 1" in done.stdout and ".aside" not in done.stdout
    tally("disk full while publishing", 1, 1)


def test_a_home_with_any_name_keeps_its_store_and_its_artifacts(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a path is pasted into a URI: `?` begins settings there, `%41` is an A."""
    home = tmp_path / "a?b=c#d%41 e[x]&ü"
    folder = world.journal(home / world.study.id)
    monkeypatch.setenv("EMERGENCE_HOME", str(home))
    uri = mlflow_runs.default_tracking_uri()
    shutil.copytree(world.place, folder, dirs_exist_ok=True)
    target = publisher.publish_runs(uri, world.study, world.state)
    target.publish_study(folder, world.found, world.state)
    assert sorted(path.name for path in tmp_path.iterdir()) == [home.name]
    assert {"mlflow.db", "mlartifacts"} <= {path.name for path in home.iterdir()}
    assert len(list((home / "mlartifacts").rglob("report.html"))) == 1
    found = mlflow_facts(uri, world.study.id)
    assert set(found) == set(world.golden) and links.sqlite_file(uri) == home / "mlflow.db"
    assert checks.tracking_uri_of(None) == uri


QUESTION = "**Question.** "


def test_a_question_of_any_length_and_content_is_published_and_stays_a_text(world: World) -> None:
    """Fails where a tag is longer than MLflow takes, or foreign text reaches its note as Markdown."""
    foreign = (
        "![x](http://evil/p.png) <img src=x onerror=y> [a](javascript:b) www.evil.org # h\n\n- `c` | d me@evil.org"
    )
    study = world.study.model_copy(update={"study": "foreign", "question": foreign + " long" * 9000 + "\x1b[31m\0"})
    world.publish("foreign", study=study)
    client = mlflow_runs.connect(world.proxy.address)
    experiment = client.get_experiment_by_name(study.id)
    found = replace(world.found, study=study)
    lines = [*experiment.tags["mlflow.note.content"].splitlines(), *summary.description(found).splitlines()]
    quoted = [line.removeprefix(QUESTION) for line in lines if line.startswith(QUESTION)]
    assert len(quoted) == 2
    for note in quoted:
        assert not set("<>[]()!`|~@*_\x1b\0\n") & set(note), note
        assert "://" not in note and "www." not in note and len(note) <= 8000
    assert world.publish("foreign", study=study)[mlflow_runs.PARENT][0]["status"] == "FINISHED"
    assert summary.as_markdown("Does it learn, at 3e8 FLOPs?") == "Does it learn, at 3e8 FLOPs?"
    assert experiment.tags["emergence.question"].startswith("![x](http://evil/p.png)")


def test_publish_and_go_on_say_no_password(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a refusal quotes the URI, or the command to copy repeats it."""
    uri = "http://me:topsecret@127.0.0.1:9"
    with pytest.raises(checks.UsageProblem) as problem:
        cli.publish(world.study.id, uri)
    assert "topsecret" not in str(problem.value) and "\n" not in str(problem.value)
    assert "connection refused" in str(problem.value) and str(problem.value).endswith(trouble.LATER)
    argv = ["emergence", "run", "x", "--tracking-uri", uri, "--storage=s3://k:top/secret@b", "--slots", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    shown = commands.this_again()
    assert "secret" not in shown and shown.startswith("emergence run x ") and shown.endswith(" --slots 2")
