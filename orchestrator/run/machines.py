"""The machines: start Ray here or join a cluster, count its slots, refuse trials that can never start.

Loads Ray but not Tune, so that a refusal comes quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
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
from ray.exceptions import AuthenticationError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.plan.options import Options
from orchestrator.record.provenance import cores
from orchestrator.run import supervise
from trainers.tasks import Family, family_from

HERE = Path(__file__).resolve().parents[2]
"""The folder that holds this code: the project's folder, or where it is installed."""

ANSWER_SECONDS = 10.0
"""A cluster that has not answered by then counts as absent. Ray itself waits for minutes and then ends the process."""

REFUSED_SECONDS = 10.0
"""A server of a running cluster that refuses calls for this long counts as dead."""


FAMILY_SECONDS = 60.0
"""Longest wait for the machines' answer on the families of other packages. A busy machine starts a process in some ten seconds."""


class ClusterProblem(Exception):
    """Ray cannot be started or joined, or lacks resources that the options ask for. Nothing ran."""


ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # actors are reused and would keep a changed working directory
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # our handler stops between two steps and saves
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a Tuner is never restored: its state file can be torn
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def _set_environment() -> None:
    """Set the environment variables that Ray reads, here and in its processes. Token mode is the default.

    Without a token everybody who reaches Ray's ports can run code here, other users of this machine first.
    """
    os.environ |= ENVIRONMENT
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    Config.initialize("")  # Ray read the environment when it was imported


@contextlib.contextmanager
def started(options: Options, widest: int) -> Iterator[int]:
    """Start or join Ray, yield its number of slots, and leave Ray at the end in every case. Raises ClusterProblem.

    Ray's own exit waits for processes that ignore signals.
    """
    try:
        yield _start_unless_stopped(options, widest)
    finally:
        shutdown()


def _start_unless_stopped(options: Options, widest: int) -> int:
    """Start Ray. A signal meanwhile becomes a KeyboardInterrupt."""
    try:
        with on_signals(supervise.interrupt), _children_shielded():
            slots = _start_ray(options, widest)
    except BaseException as problem:
        if supervise.is_asked() or isinstance(problem, SystemExit):  # Ray's own SIGTERM handler exits
            raise KeyboardInterrupt from None
        raise
    if supervise.is_asked():
        raise KeyboardInterrupt
    return slots


@contextlib.contextmanager
def _children_shielded() -> Iterator[None]:
    """Processes started inside this block, and their children, do not receive the signals that stop a run.

    A batch system may send signals to every process. Ray must live until all trunks have saved. This process still
    receives the signals, in a thread of its own (`supervise.py`).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shutdown() -> None:
    """Leave the cluster; repeating it changes nothing. Kills the processes started here, because they ignore SIGTERM."""
    below: list[psutil.Process] = []
    if (node := ray._private.worker._global_node) is not None:
        for process in (info.process for infos in node.all_processes.values() for info in infos):
            with contextlib.suppress(psutil.Error):
                below += psutil.Process(process.pid).children(recursive=True)
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **how: kill(**how | {"allow_graceful": False})
    ray.shutdown()
    for orphan in below:  # some would take a minute to notice
        with contextlib.suppress(psutil.Error):
            orphan.kill()


def _start_ray(options: Options, widest: int) -> int:
    """Start Ray on this machine, or join the cluster. Returns the number of slots.

    Raises ClusterProblem, also if a trunk of `widest` slots can never start.
    """
    _set_environment()
    address = options.address
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}  # we report failures ourselves
    if options.address == "local":
        quiet |= {"num_cpus": options.slots or cores(), "object_store_memory": 256 * 2**20}
        _make_token()
        quiet |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    else:
        address = _ask_for_an_answer(options.address) or options.address  # a bare `ray.init` joins any cluster it finds
        quiet |= {"runtime_env": {"env_vars": ENVIRONMENT}}  # workers elsewhere do not inherit ours
    try:
        with contextlib.chdir(HERE):  # Ray puts the current folder, maybe another checkout, on its workers' path
            ray.init(address=address, **quiet)
    except Exception as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        reason = lines[0] if lines else type(problem).__name__
        verb = "started" if options.address == "local" else "reached"
        raise ClusterProblem(f"{_named(options.address)}: Ray cannot be {verb}: {reason}") from None
    ray._private.worker.print_to_stdstream = _to_the_log
    limits = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    _refuse_too_wide(options, ray.cluster_resources(), limits, widest)
    return slots_there(options)


def _to_the_log(data: dict[str, Any], *given: Any, **how: Any) -> None:
    """Write to standard error what Ray prints despite `log_to_driver`. A dying raylet prints pages."""
    with contextlib.suppress(OSError):
        os.write(2, "\n".join([*data.get("lines", []), ""]).encode(errors="replace"))


def _refuse_too_wide(options: Options, there: dict[str, float], limits: dict[str, int], widest: int) -> None:
    """Raises ClusterProblem with the arithmetic if `widest` slots fit neither now nor in the largest cluster (`limits`)."""
    most = {name: max(there.get(name, 0), limits.get(name, 0)) for name in slot(options)}
    if _count(most, options) >= widest:
        return
    needed = slot(options)
    needs = "one slot needs" if widest == 1 else f"the widest trial takes {widest} slots, which need"
    lacking = min(needed, key=lambda name: most[name] / needed[name])
    text = f"{needs} {widest * needed[lacking]:g} {lacking}, Ray sees {there.get(lacking, 0):g}"
    text += f" and can grow to {most[lacking]:g}" if most[lacking] > there.get(lacking, 0) else ""
    limit = f", and --slots {options.slots} is given" if options.slots and options.slots < widest else ""
    raise ClusterProblem(f"{_named(options.address)}: {text}{limit}; it would never start")


def refuse_early(options: Options, widest: int, absent_is_fine: bool = False) -> None:
    """Refuse too wide a trial before joining the cluster, because joining takes seconds. Raises ClusterProblem.

    With `absent_is_fine` a cluster that does not answer is accepted.
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
    except Exception:  # joining will raise it again
        return
    finally:
        asked.disconnect()
    if there:
        _refuse_too_wide(options, there, limits, widest)


def slots_there(options: Options) -> int:
    """The number of slots that the cluster has now."""
    return _count(ray.cluster_resources(), options)


def _count(there: dict[str, float], options: Options) -> int:
    slots = min(int(there.get(name, 0) / share + 1e-9) for name, share in slot(options).items())
    return min(slots, options.slots or slots)


def check_families(families: list[Family], options: Options) -> None:
    """Ask every machine for the families of other packages that a study trains. Raises ClusterProblem if one lacks them.

    A machine that joins later is not asked: a trial that starts there without its family fails with the reason.
    """
    others = {
        type(family).__module__: family for family in families if not type(family).__module__.startswith("trainers.")
    }
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked: dict[Any, tuple[str, Family]] = {}
    for family in others.values():
        for node, place in nodes.items():
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            ask = ray.remote(num_cpus=0, max_retries=0)(_lacks).options(scheduling_strategy=here)
            asked[ask.remote(family.model_dump(mode="json"), *_code_of(family))] = place, family
    ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=FAMILY_SECONDS) if asked else ([], [])
    for answer in ready:
        place, family = asked[answer]
        reason = ""
        with contextlib.suppress(RayError):  # the machine went, or is too busy to answer
            reason = ray.get(answer)
        if reason:
            raise ClusterProblem(
                f"{_named(options.address)}: the machine {place} {reason}; install the package of {type(family).__module__} "
                "in the environment of every machine: docs/families.md, 'Make it known'"
            )


def _code_of(family: Family) -> tuple[int, str]:
    """Version of a family, and a hash of the file that defines it."""
    file = inspect.getsourcefile(type(family))
    return family.version, hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _lacks(family: dict[str, Any], version: int, code: str) -> str:
    """Run on a machine: why it cannot train a family of this version and code; "" if it can."""
    name = family["name"]
    try:
        found = _code_of(family_from(family))
    except Exception as problem:  # whatever the code of another package raises
        return f"cannot load the family '{name}': {' '.join(str(problem).split())[:300]}"
    if found[0] != version:
        return f"has version {found[0]} of the family '{name}', and the driver has {version}"
    return "" if found[1] == code else f"has other code for the family '{name}' than the driver"


class Lifeline:
    """Checks whether our Ray is alive. It makes no call to Ray: a call to a dead Ray may never return."""

    def __init__(self, processes: dict[str, Any], servers: dict[str, tuple[str, int]]) -> None:
        """Readable name -> `processes` (Popen) that we started, `servers` (host, port) that were already running."""
        self._processes, self._servers = processes, servers
        self._refused_since: dict[str, float] = {}

    @classmethod
    def of(cls, options: Options) -> Lifeline:
        """The lifeline of the Ray that was started or joined."""
        node = ray._private.worker._global_node
        assert node is not None
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
        """The name of the dead part and how it died; None while all is well.

        A server is dead if it refuses every call for REFUSED_SECONDS. A silent one may only be slow; Ray gives it up
        itself.
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
    """Request this many slots from the cluster's autoscaler, if it has one. By itself it sees only pending trials."""
    if options.address != "local":
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[slot(options)] * min(slots, options.slots or slots))


def _ask_for_an_answer(address: str) -> str:
    """Check that a Ray server answers at this address. Raises ClusterProblem within ANSWER_SECONDS.

    `auto` is looked up as in Ray: $RAY_ADDRESS, then the file that `ray start` left on this machine. Returns host:port
    of the head, or "" if that is not known.
    """
    import grpc  # type: ignore[import-untyped]  # the protocol of Ray's head and client server; part of ray[default]

    named, target = _named(address), address
    advice = "give the address of a cluster's head, such as host:6379, or '--address local' for this machine"
    if address == "auto":
        own = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # the same rule as in Ray
        temporary = os.environ.get("RAY_TMPDIR") or own or "/tmp"
        left = Path(temporary) / "ray" / "ray_current_cluster"
        target = os.environ.get("RAY_ADDRESS", "")
        if target in ("", "auto"):
            target = left.read_text().strip() if left.exists() else ""
        if not target:
            raise ClusterProblem(f"{named}: this machine belongs to no cluster that 'ray start' made; {advice}")
        named = f"{named} ({target})"
    if target.startswith(("http://", "https://")):
        raise ClusterProblem(f"{named}: this is an address for 'ray job submit'; {advice}")
    if target.startswith("ray://"):  # Ray's client would run Tune on the head, and its callbacks there
        raise ClusterProblem(
            f"{named}: a client's address, and the driver must run on a machine of the cluster; give host:6379 there, or "
            "submit a job from here: docs/cluster.md, 'A study, and three changed lines'"
        )
    host, _, port = target.rpartition(":")
    if not (host and port.isdigit()):
        return ""  # Ray itself reports at once that it is malformed
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as problem:
        raise ClusterProblem(f"{named}: nothing answers there ({problem}); {advice}") from None
    if os.environ.get("RAY_USE_TLS") == "1":
        return ""  # only Ray has the certificates
    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise ClusterProblem(
                f"{named}: the server there gave no answer of Ray's protocol within {ANSWER_SECONDS:g} s; {advice}"
            ) from None
        _check_token(named, channel)
    return target


def _check_token(named: str, channel: Any) -> None:
    """Check that cluster and machine agree on a token. Raises ClusterProblem with the cause and the side to correct."""
    import grpc

    def lets_in(token: str) -> bool | None:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(
                b"", timeout=ANSWER_SECONDS, metadata=metadata
            )
        except grpc.RpcError as problem:
            return False if problem.code() == grpc.StatusCode.UNAUTHENTICATED else None  # None: unknown
        return True

    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    everybody = lets_in("")
    if everybody is None or mode not in ("token", "disabled"):
        return
    copy = "copy ~/.ray/auth_token of the head here"
    if everybody and mode == "token":
        wrong = (
            "asks for no token, so everybody who reaches it can run code on it. Start it again with one: 'ray stop; ray "
            "get-auth-token --generate; RAY_AUTH_MODE=token ray start --head'; or set RAY_AUTH_MODE=disabled here to use it "
            "anyway"
        )
    elif everybody:
        return
    elif mode == "disabled":
        wrong = "asks for a token, and RAY_AUTH_MODE=disabled is set here; unset it"
    elif not (token := _token()):
        wrong = f"asks for a token, and this machine has none; {copy}"
    elif lets_in(token) is False:
        wrong = (
            f"refuses the token of this machine ($RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token); {copy}"
        )
    else:
        return
    raise ClusterProblem(f"{named}: this cluster {wrong}; see docs/cluster.md, 'Tokens'")


def _token() -> str:
    """The token that Ray finds on this machine, or "". Raises ClusterProblem if RAY_AUTH_TOKEN_PATH leads to no token."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return str(loader.get_raw_token(ignore_auth_mode=True)) if loader.has_token(ignore_auth_mode=True) else ""
    except AuthenticationError:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        raise ClusterProblem(f"RAY_AUTH_TOKEN_PATH={path}: no token can be read there; correct or unset it") from None


def _make_token() -> None:
    """Make sure that our own Ray has a token. A new one is saved in ~/.ray/auth_token if possible."""
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
    """An address with the name of the option or variable that gave it."""
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def slot(options: Options) -> dict[str, float]:
    """Ray resources of one slot: a core, and on GPUs its share of one."""
    return {"CPU": 1} | ({"GPU": 1 / options.slots_per_gpu} if options.device == "cuda" else {})


# Signals


Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def on_signals(handler: Handler) -> Iterator[None]:
    """Send SIGINT, SIGTERM, and the SIGHUP of a lost connection to `handler` inside this block.

    Signals that the process ignores from its start (`nohup`) stay ignored.
    """
    before = {number: signal.signal(number, handler) for number in supervise.ending_signals()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
