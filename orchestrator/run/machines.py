"""The machines: start Ray here or join a cluster, count its slots, refuse what can never start. Loads Ray, but not Tune.

A refusal should not have to wait for what a run needs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
from ray._private.state import GlobalState
from ray._raylet import AuthenticationTokenLoader, Config, GcsClientOptions  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from orchestrator.plan.options import Options
from orchestrator.record.provenance import cores
from orchestrator.run import supervise

HERE = Path(__file__).resolve().parents[2]
"""Where this code is: the project's folder, or where it is installed."""

ANSWER_SECONDS = 10.0
"""A cluster that has not answered by then is taken for absent; Ray itself asks for minutes, and ends the process."""

REFUSED_SECONDS = 10.0
"""A server of a running cluster that refuses calls for so long is taken for dead."""


class ClusterProblem(Exception):
    """Ray cannot be started or joined, or lacks what the options ask for. Nothing ran."""


ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # actors are reused: a changed working directory would stay with them
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops between two steps and saves
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a Tuner is never restored: its state file can be torn
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def _set_environment() -> None:
    """What Ray reads from the environment, for us and what we start. Token mode, unless somebody decided otherwise.

    Without a token whoever reaches Ray's ports runs code here, other users of this machine first.
    """
    os.environ |= ENVIRONMENT
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    Config.initialize("")  # Ray has read it before, when it was imported


@contextlib.contextmanager
def started(options: Options, widest: int) -> Iterator[int]:
    """Start or join Ray, and leave it at the end, however that comes; gives the number of slots it offers.

    Ray's own way out waits for processes that heed no signal. Raises ClusterProblem.
    """
    try:
        yield _start_unless_stopped(options, widest)
    finally:
        shutdown()


def _start_unless_stopped(options: Options, widest: int) -> int:
    """Start Ray; a signal meanwhile is a KeyboardInterrupt, whatever Ray makes of it."""
    try:
        with on_signals(supervise.interrupt), _children_shielded():
            slots = _start_ray(options, widest)
    except BaseException as problem:
        if supervise.is_asked() or isinstance(
            problem, SystemExit
        ):  # Ray sets a handler of its own for SIGTERM, that exits
            raise KeyboardInterrupt from None
        raise
    if supervise.is_asked():
        raise KeyboardInterrupt
    return slots


@contextlib.contextmanager
def _children_shielded() -> Iterator[None]:
    """What is started meanwhile never hears of the signals that ask a run to stop, nor do its children.

    A batch system may send them to every process. Ray is to outlive that until all trunks have saved. This process still hears
    of them: a thread of its own takes them (`supervise.py`).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shutdown() -> None:
    """Leave the cluster; a second time changes nothing. What was started here is killed: it heeds no SIGTERM, and Ray would wait for each in turn."""
    below: list[psutil.Process] = []
    if (node := ray._private.worker._global_node) is not None:
        for process in (info.process for infos in node.all_processes.values() for info in infos):
            with contextlib.suppress(psutil.Error):
                below += psutil.Process(process.pid).children(recursive=True)
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **how: kill(**how | {"allow_graceful": False})
    ray.shutdown()
    for orphan in below:  # some would notice in a minute only
        with contextlib.suppress(psutil.Error):
            orphan.kill()


def _start_ray(options: Options, widest: int) -> int:
    """Start Ray on this machine, or join the cluster; the number of slots it offers. Raises ClusterProblem, also where a trunk
    of the `widest` number of slots can never start.

    A bare `ray.init` would join whatever it finds.
    """
    _set_environment()
    address = options.address
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}  # failures in our own words
    if options.address == "local":
        quiet |= {"num_cpus": options.slots or cores(), "object_store_memory": 256 * 2**20}
        _make_token()
        quiet |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    else:
        address = (
            _ask_for_an_answer(options.address) or options.address
        )  # that which was asked, and no other that Ray finds
        quiet |= {"runtime_env": {"env_vars": ENVIRONMENT}}  # workers elsewhere do not inherit ours
    try:
        with contextlib.chdir(
            HERE
        ):  # Ray puts the current folder on its workers' path, and another checkout may lie there
            ray.init(address=address, **quiet)
    except Exception as problem:  # some are bare
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        reason = lines[0] if lines else type(problem).__name__
        what = "started" if options.address == "local" else "reached"
        raise ClusterProblem(f"{_named(options.address)}: Ray cannot be {what}: {reason}") from None
    ray._private.worker.print_to_stdstream = _to_the_log
    _refuse_too_wide(options, ray.cluster_resources(), _limits(), widest)
    return slots_there(options)


def _to_the_log(data: dict[str, Any], *given: Any, **how: Any) -> None:
    """What Ray would print for the person, whatever `log_to_driver` says: pages of a raylet's log when it dies."""
    with contextlib.suppress(OSError):
        os.write(2, "\n".join([*data.get("lines", []), ""]).encode(errors="replace"))


def _limits() -> dict[str, int]:
    """How far the cluster may grow, where it says."""
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def _refuse_too_wide(options: Options, there: dict[str, float], limits: dict[str, int], widest: int) -> None:
    """Raises ClusterProblem with the arithmetic if a trunk of so many slots never fits on what is there or may come."""
    most = {name: max(there.get(name, 0), limits.get(name, 0)) for name in slot(options)}
    if _count(most, options) >= widest:
        return
    needed = slot(options)
    needs = "one slot needs" if widest == 1 else f"the widest trial takes {widest} slots, which need"
    lacking = min(needed, key=lambda name: most[name] / needed[name])
    text = f"{needs} {widest * needed[lacking]:g} {lacking}, Ray sees {there.get(lacking, 0):g}"
    text += f" and may come to {most[lacking]:g}" if most[lacking] > there.get(lacking, 0) else ""
    limit = f", and --slots {options.slots} is given" if options.slots and options.slots < widest else ""
    raise ClusterProblem(f"{_named(options.address)}: {text}{limit}; it would never start")


def refuse_early(options: Options, widest: int, absent_is_fine: bool = False) -> None:
    """Ask a cluster for what it has, without joining it: that and loading Ray Tune take seconds. Raises ClusterProblem, for a
    cluster that does not answer only if it must.

    A cluster that cannot be asked so (by a client's address) is not refused here: joining it will tell.
    """
    _set_environment()
    try:
        target = _ask_for_an_answer(options.address)
    except ClusterProblem:
        if absent_is_fine:
            return
        raise
    if not target:
        return
    asked = GlobalState()
    try:
        asked._initialize_global_state(GcsClientOptions.create(target, None, True, False))
        there, limits = asked.cluster_resources(), asked.get_max_resources_from_cluster_config() or {}
    except Exception:  # in Ray's words when it is joined
        return
    finally:
        asked.disconnect()
    if there:
        _refuse_too_wide(options, there, limits, widest)


def slots_there(options: Options) -> int:
    """Slots that the cluster has now."""
    return _count(ray.cluster_resources(), options)


def _count(there: dict[str, float], options: Options) -> int:
    slots = min(int(there.get(name, 0) / share + 1e-9) for name, share in slot(options).items())
    return min(slots, options.slots or slots)


class Lifeline:
    """Tells whether the Ray that we use is alive, without asking Ray: what waits for a dead Ray may wait for ever."""

    def __init__(self, processes: dict[str, Any], servers: dict[str, tuple[str, int]]) -> None:
        """Each is named in words: `processes` (Popen) that we started, `servers` (host and port) that were there."""
        self._processes, self._servers = processes, servers
        self._refused_since: dict[str, float] = {}

    @classmethod
    def of(cls, options: Options) -> Lifeline:
        """That of the Ray that has been started or joined."""
        node = ray._private.worker._global_node
        if node is None:  # a client (ray://), which Ray tells itself
            return cls({}, {})
        if options.address == "local":
            names = {"gcs_server": "Ray's GCS", "raylet": "Ray's raylet"}
            ours = {name: node.all_processes[kind][0].process for kind, name in names.items()}
            supervise.tell("needs", ";".join(f"{process.pid}={name}" for name, process in ours.items()))
            return cls(ours, {})
        host, _, port = node.gcs_address.rpartition(":")
        servers = {"the cluster's head": (host.strip("[]"), int(port))}
        for each in ray.nodes():
            if each["NodeID"] == ray.get_runtime_context().get_node_id():
                servers["Ray on this machine"] = (each["NodeManagerAddress"], each["NodeManagerPort"])
        return cls({}, servers)

    def lost(self) -> str | None:
        """What has died, in words; None while all is well.

        A server is dead that refuses every call for REFUSED_SECONDS. One that is silent may only be slow, and Ray gives it up.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                return f"{name} died"
        for name, place in self._servers.items():
            try:
                socket.create_connection(place, timeout=1.0).close()
                self._refused_since.pop(name, None)
            except ConnectionRefusedError:
                since = self._refused_since.setdefault(name, time.monotonic())
                if time.monotonic() - since > REFUSED_SECONDS:
                    return f"{name} no longer answers"
            except OSError:
                pass
        return None


def want(options: Options, slots: int) -> None:
    """Tell the cluster's autoscaler, if it has one, how many slots are of use: pending trials are all that it sees by itself."""
    if options.address != "local":
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[slot(options)] * min(slots, options.slots or slots))


def _ask_for_an_answer(address: str) -> str:
    """Does a server speak to us at this address of a cluster? Raises ClusterProblem within ANSWER_SECONDS.

    `auto` is looked up where Ray does: $RAY_ADDRESS, then what `ray start` left on this machine. Returns host:port of the head;
    "" where that is not known.
    """
    import grpc  # type: ignore[import-untyped]  # what Ray's head, and its client server, speak; ray[default] brings it

    named, target = _named(address), address
    what = "give the address of a cluster's head, host:6379 or ray://host:10001, or '--address local' for this machine"
    if address == "auto":
        own = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # as Ray has it
        temporary = os.environ.get("RAY_TMPDIR") or own or "/tmp"
        left = Path(temporary) / "ray" / "ray_current_cluster"
        target = os.environ.get("RAY_ADDRESS", "")
        if target in ("", "auto"):
            target = left.read_text().strip() if left.exists() else ""
        if not target:
            raise ClusterProblem(f"{named}: this machine belongs to no cluster that 'ray start' made here; {what}")
        named = f"{named} ({target})"
    if target.startswith(("http://", "https://")):
        raise ClusterProblem(f"{named}: that is where 'ray job submit' goes; {what}")
    place = target.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not (host and port.isdigit()):
        return ""  # Ray says at once what is wrong with it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as problem:
        raise ClusterProblem(f"{named}: nothing answers there ({problem}); {what}") from None
    if os.environ.get("RAY_USE_TLS") == "1":
        return ""  # only Ray has the certificates
    with grpc.insecure_channel(place, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise ClusterProblem(
                f"{named}: what listens there did not answer as Ray does within {ANSWER_SECONDS:g} s; {what}"
            ) from None
        if target.startswith("ray://"):
            return ""
        _check_token(named, channel)
    return place


def _check_token(named: str, channel: Any) -> None:
    """Do this cluster and this machine agree on a token? Raises ClusterProblem with the cause, and what to do on which side."""
    import grpc

    def lets_in(token: str) -> bool | None:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(
                b"", timeout=ANSWER_SECONDS, metadata=metadata
            )
        except grpc.RpcError as problem:
            return False if problem.code() == grpc.StatusCode.UNAUTHENTICATED else None  # None: it does not tell
        return True

    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    everybody = lets_in("")
    if everybody is None or mode not in ("token", "disabled"):
        return
    see = "docs/cluster.md, 'Tokens'"
    if everybody and mode == "token":
        raise ClusterProblem(
            f"{named}: this cluster asks for no token, so all who reach it can run code on it. Start it with "
            f"RAY_AUTH_MODE=token in its environment ({see}), or set RAY_AUTH_MODE=disabled here to use it all the same"
        )
    if not everybody and mode == "disabled":
        raise ClusterProblem(
            f"{named}: this cluster asks for a token, and RAY_AUTH_MODE=disabled is set here; unset it ({see})"
        )
    if not everybody and not (token := _token()):
        raise ClusterProblem(
            f"{named}: this cluster asks for a token, and this machine has none; copy ~/.ray/auth_token of the head here ({see})"
        )
    if not everybody and lets_in(token) is False:
        where = next((f"${name}" for name in TOKEN_VARIABLES if os.environ.get(name)), "~/.ray/auth_token")
        raise ClusterProblem(
            f"{named}: this cluster refuses the token of this machine ({where}); copy ~/.ray/auth_token of the head here ({see})"
        )


TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Where Ray looks for a token before ~/.ray/auth_token."""


def _token() -> str:
    """The token that Ray finds on this machine; "" if there is none. Raises ClusterProblem for a path that leads to none."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return str(loader.get_raw_token(ignore_auth_mode=True)) if loader.has_token(ignore_auth_mode=True) else ""
    except AuthenticationError:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        raise ClusterProblem(f"RAY_AUTH_TOKEN_PATH={path}: no token can be read there; correct or unset it") from None


def _make_token() -> None:
    """See to a token for a Ray of our own: the one of this machine, else a new one, kept where Ray looks if that can be."""
    if os.environ["RAY_AUTH_MODE"].lower() != "token" or _token():
        return
    made = secrets.token_hex(32)
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an empty one
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made)
    if not _token():
        os.environ["RAY_AUTH_TOKEN"] = made
        _token()


def _named(address: str) -> str:
    """An address with where it was given."""
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def slot(options: Options) -> dict[str, float]:
    """What one slot takes: a core, and on GPUs its share of one."""
    return {"CPU": 1} | ({"GPU": 1 / options.slots_per_gpu} if options.device == "cuda" else {})


# Signals


Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def on_signals(handler: Handler) -> Iterator[None]:
    """Ctrl-C, SIGTERM, and the SIGHUP of a connection that was lost go to this handler meanwhile.

    Those that we were started to ignore (`nohup`) stay ignored.
    """
    before = {number: signal.signal(number, handler) for number in supervise.ending_signals()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
