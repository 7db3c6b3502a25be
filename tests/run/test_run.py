"""Before a run: what is said of a cluster that does not answer, and that Ctrl-C is one line at any moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import PATIENCE_SECONDS
from test_cli import SMALL, emergence

from orchestrator.record.journal import State
from orchestrator.run import machines

pytestmark = pytest.mark.end_to_end


# A cluster that is not there ------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes calls and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_cluster_that_does_not_answer_is_one_refusal_and_nothing_is_run(tmp_path: Path) -> None:
    file, address = tmp_path / "small.yaml", f"127.0.0.1:{closed_port()}"
    file.write_text(SMALL)
    done = emergence("run", str(file), "--address", address, home=tmp_path / "home")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"--address {address}: nothing answers there" in done.stderr and "--address local" in done.stderr
    assert not (tmp_path / "home" / "small@1" / "journal.jsonl").exists()


def test_what_listens_but_does_not_speak_as_ray_does_is_refused_in_time(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "ANSWER_SECONDS", 0.3)
    with pytest.raises(machines.ClusterProblem, match=r"within 0\.3 s"):
        machines._ask_for_an_answer(silent)


def test_an_address_of_rays_client_is_refused_with_the_way_to_submit() -> None:
    """Fails with such an address joined: Tune then runs on the head, and the driver here ends in a traceback."""
    with pytest.raises(machines.ClusterProblem, match=r"ray://127\.0\.0\.1:10001: .*submit a job.*docs/cluster\.md"):
        machines._ask_for_an_answer("ray://127.0.0.1:10001")


class Guarded(grpc.GenericRpcHandler):
    """Answers as Ray's head does: to everybody, or to those with a token."""

    def __init__(self, token: str) -> None:
        self.token = token

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            given = dict(context.invocation_metadata()).get("authorization")
            if self.token and given != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("cluster", "mode", "here", "refused"),
    [
        (
            "",
            "",
            "",
            r"asks for no token.*get-auth-token --generate; RAY_AUTH_MODE=token ray start.*RAY_AUTH_MODE=disabled",
        ),
        ("", "token", "secret", r"asks for no token"),
        ("", "disabled", "", None),
        ("secret", "", "", r"asks for a token, and this machine has none; copy ~/.ray/auth_token of the head"),
        ("secret", "", "other", r"refuses the token of this machine \(\$RAY_AUTH_TOKEN, "),
        ("secret", "disabled", "secret", r"asks for a token, and RAY_AUTH_MODE=disabled is set here"),
        ("secret", "", "secret", None),
    ],
)
def test_a_token_on_which_cluster_and_machine_do_not_agree_is_named_with_the_side_to_mend(
    cluster: str, mode: str, here: str, refused: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails without `_check_token`: Ray then joins, and says pages about it or fails every trial."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": here, "RAY_AUTH_TOKEN_PATH": ""}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    server = grpc.server(ThreadPoolExecutor(1), handlers=(Guarded(cluster),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        if refused:
            with pytest.raises(machines.ClusterProblem, match=rf"^--address 127.0.0.1:{port}: this cluster {refused}"):
                machines._ask_for_an_answer(f"127.0.0.1:{port}")
        else:
            machines._ask_for_an_answer(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("home", ["empty", "absent", "dead", "not writable"])
def test_a_ray_of_our_own_has_a_token_whatever_the_home_folder_holds(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails without `_make_token`: Ray ends at a folder where it cannot write, with a traceback."""
    monkeypatch.setenv("HOME", str(tmp_path / "absent" if home == "absent" else tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    if home == "dead":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch()
    if home == "not writable":
        (tmp_path / ".ray").touch()  # a file where the folder should be: not even root can write below it
    machines._make_token()
    made = machines._token()
    assert len(made) == 64
    kept = tmp_path / ("absent" if home == "absent" else "") / ".ray" / "auth_token"
    if home == "not writable":
        assert os.environ["RAY_AUTH_TOKEN"] == made
    else:
        assert kept.read_text() == made and kept.stat().st_mode & 0o777 == 0o600
    machines._make_token()
    assert machines._token() == made


def test_an_address_from_the_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # right for 'ray job submit', and only for that
    with pytest.raises(machines.ClusterProblem, match=r"^RAY_ADDRESS=http://127.0.0.1:8265: .*ray job submit"):
        machines._ask_for_an_answer("http://127.0.0.1:8265")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    with pytest.raises(machines.ClusterProblem, match=r"^--address auto \(127.0.0.1:\d+\): nothing answers there"):
        machines._ask_for_an_answer("auto")


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform == "linux" else [])])
def test_auto_looks_where_ray_start_left_the_address(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(machines.ClusterProblem, match="belongs to no cluster"):
        machines._ask_for_an_answer("auto")
    place = f"127.0.0.1:{closed_port()}"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(place)
    with pytest.raises(machines.ClusterProblem, match=rf"^--address auto \({place}\): nothing answers there"):
        machines._ask_for_an_answer("auto")


def test_a_ray_that_died_is_noticed_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a process that ended, or a server that refuses calls, counts as alive."""
    going = subprocess.Popen(["sleep", "600"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()[:2]
        lifeline = machines.Lifeline({"Ray's raylet": going}, {"the cluster's head": place})
        assert lifeline.lost() is None
    assert lifeline.lost() is None  # refused once: it may be back in a moment
    monkeypatch.setattr(machines, "REFUSED_SECONDS", 0.0)
    assert lifeline.lost() == "the cluster's head no longer answers"
    going.kill()
    going.wait()
    assert lifeline.lost() == "Ray's raylet died"


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


def descendants(home: Path) -> list[str]:
    """Command lines of the processes that were started, through any number of others, with this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"EMERGENCE_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if ours and words:  # a zombie has none
            found.append(words)
    return found


def test_ctrl_c_while_ray_starts_is_one_line_and_leaves_nothing_running(tmp_path: Path) -> None:
    """As a terminal does it: the signal goes to every process of the group, and Ray's dashboard dies of it."""
    file, home = tmp_path / "small.yaml", tmp_path / "home"
    file.write_text(SMALL)
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "run", str(file), "--slots", "1"]
    driver = subprocess.Popen(
        command,
        env=environment | {"EMERGENCE_HOME": str(home), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    while "Starting Ray" not in driver.stdout.readline():
        assert driver.poll() is None
    while not any("dashboard.py" in words for words in descendants(home)):
        assert driver.poll() is None
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGINT)
    out, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 130
    before, line, after = out.split("\n")
    assert (before, after) == ("", "") and line.startswith("Stopped")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while descendants(home):
        assert time.monotonic() < deadline, descendants(home)
        time.sleep(0.05)
    assert not (home / "small@1" / "journal.jsonl").exists()


def test_ctrl_c_while_the_program_is_loaded_is_one_line_too(tmp_path: Path) -> None:
    stand_in = tmp_path / "typer.py"  # the first module that takes time: here it is interrupted, and says so if not
    stand_in.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('still here')\n")
    done = emergence("--help", home=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nStopped; nothing had begun.\n")


def test_a_trial_that_fails_again_in_a_later_session_is_a_failure_again() -> None:
    """Fails if what failed in an earlier session counts as delivered: the run then says that it was stopped."""
    from orchestrator.run.driver import undelivered

    def ended(trial: str, status: str, session: str) -> dict[str, Any]:
        return {"kind": "trial", "key": f"{trial}/{status}/{session}", "trial": trial, "status": status, "time": 0.0}

    state = State()
    state.feed([ended("a", "failed", "1"), ended("b", "done", "2"), ended("c", "diverged", "2")])
    failures = [ended(trial, "failed", "2") for trial in "abcd"]
    assert [f["trial"] for f in undelivered(failures, state)] == ["a", "d"]


# Ray breaks off -------------------------------------------------------------------------------------------------------

BREAKS = """
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(sys.argv[1])))
from alone import study_with
from orchestrator.plan import jobs
from orchestrator.record import lease, publisher
from orchestrator.run import driver, machines, supervise

folder, seconds, study = Path(sys.argv[2]), sys.argv[3], study_with()
raylet = subprocess.Popen(["sleep", seconds])
machines.Lifeline.of = lambda options: machines.Lifeline({"Ray's raylet": raylet}, {})


def breaks(*given):
    raise RuntimeError("Tune broke")


driver._run_on_ray = breaks
publisher.start_publisher = lambda *given, **how: subprocess.Popen(["cat"], stdin=subprocess.PIPE)
(folder / publisher.LOG_FILE).touch()
with lease.StudyLock(folder, study.id) as lock:
    options = jobs.Options()
    print(driver.run(study, [], folder, lock, options, "", print, print, supervise.StopRequest(folder)))
raylet.kill()
"""
"""A run on a Ray of which one process is real: it ends after some seconds. What Tune raises comes first."""


@pytest.mark.parametrize(("seconds", "code", "said"), [("0.5", 1, ""), ("600", 0, "broken\n")])
def test_what_ray_raises_as_it_dies_is_its_death_and_else_it_is_a_line(
    seconds: str, code: int, said: str, tmp_path: Path
) -> None:
    """Fails if an error is raised on before Ray was given a moment to be found dead."""
    faults = str(Path(__file__).parents[1] / "faults")
    done = subprocess.run(
        [sys.executable, "-c", BREAKS, faults, str(tmp_path), seconds],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert done.returncode == code and done.stdout.endswith(said), done
    assert ("RuntimeError: Tune broke" in done.stdout) == bool(said), done
