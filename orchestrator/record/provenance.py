"""The origin of results: commit, versions, machine, and the journal's entry for one run of the driver."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from orchestrator.record import links
from orchestrator.study.schema import Study


def session_event(study: Study, options: dict[str, Any], record: str = "") -> dict[str, Any]:
    """The first event of a driver: the resolved study, the options, the machine and the code. Its key is new each time.

    `record` identifies the journal that this session continues; empty starts a new one.
    """
    session = uuid.uuid4().hex[:12]
    usable, present = cores(), os.cpu_count()
    cores_words = f"{usable} cores" if usable == present else f"{usable} of {present} cores"
    return (
        {
            "kind": "session",
            "key": f"session/{session}",
            "session": session,
            "record": record or session,
            "time": time.time(),
            "study": study.model_dump(mode="json"),
            "science": study.science(),
            "host": socket.gethostname(),
            "machine": f"{cpu_name()}, {cores_words}, {platform.system()} {platform.machine()}",
            "options": {k: links.without_password(v) if isinstance(v, str) else v for k, v in options.items()},
            "versions": versions(),
        }
        | source()
        | data_of(study)
    )


def data_of(study: Study) -> dict[str, Any]:
    """`data`: counts and leak certificate of the data of each condition (`Family.data_facts`), for a report on any machine.

    Empty for families that make their tasks. Raises OSError if the data are not on this machine.
    """
    found: dict[str, dict[str, Any]] = {}
    for condition in study.conditions:
        if (facts := study.family_of(condition).data_facts()) is not None:
            found.setdefault(json.dumps(facts), {"conditions": [], "facts": facts})["conditions"].append(condition)
    return {"data": list(found.values())} if found else {}


def session_end(session: str, outcome: str, running_flops: dict[str, float]) -> dict[str, Any]:
    """The last event of a driver that was not killed: the time, and how its run ended (`run.driver.Outcome`).

    running_flops: FLOPs of open trunks since their last trial ended, for caps.
    """
    return {
        "kind": "session_end",
        "key": f"session_end/{session}",
        "session": session,
        "time": time.time(),
        "outcome": outcome,
        "running_flops": running_flops,
    }


PACKAGES = ("orchestrator", "trainers")
CODE = (".py", ".j2", ".css", ".js")
"""An untracked file in a package counts as code, and so as a change, only with one of these suffixes."""


def source(root: Path | None = None) -> dict[str, Any]:
    """`commit` of the project, with `+changes` if code or tracked files differ from it; `changes` lists them.

    The commit is None outside a repository, and in a repository that does not hold this project. If git fails in a
    checkout, `commit_unknown` gives the reason. `+unknown` after a commit means that the changes are not known.
    """
    root = root or Path(__file__).resolve().parents[2]
    here = f"{PACKAGES[0]}/cli.py"
    commit = None
    try:
        head = _git(root, "rev-parse", "--verify", "HEAD")[0]
        if not _git(root, "ls-files", "--", here):  # installed into another project's repository
            return {"commit": None, "changes": []}
        commit = f"{head}+unknown"
        changed = _git(root, "diff", *_NO_PROGRAMS, "--name-only", "--relative", "HEAD")
        unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    except _NoAnswer as problem:
        quiet = commit is None and not _is_checkout(root)
        return {"commit": commit, "changes": []} | ({} if quiet else {"commit_unknown": str(problem)})
    changes = sorted({*changed, *(path for path in unknown if path.endswith(CODE))})
    return {"commit": head + ("+changes" if changes else ""), "changes": changes}


class _NoAnswer(Exception):
    """Git is missing, refuses, or takes too long; the message is one line."""


GIT_SECONDS = 10
_NO_PROGRAMS = ("--no-ext-diff", "--no-textconv", "--ignore-submodules=all")


def _git(root: Path, *words: str) -> list[str]:
    """Lines of git's answer about this checkout. Raises _NoAnswer.

    Git refuses a checkout of another user, because its settings may name programs to run. We run its Python code
    already, so this folder alone is trusted, and those programs are switched off. Variables set by a git hook name
    another repository and are removed.
    """
    trusted = (f"safe.directory={root}", "core.fsmonitor=false", f"core.hooksPath={os.devnull}")
    settings = [word for setting in trusted for word in ("-c", setting)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name == "GIT_EXEC_PATH"}
    environment = kept | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none"}
    try:
        done = subprocess.run(
            ["git", *settings, *words], cwd=root, env=environment, capture_output=True, timeout=GIT_SECONDS
        )
    except FileNotFoundError:
        raise _NoAnswer("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"git did not answer within {GIT_SECONDS} s") from None
    except OSError as problem:
        raise _NoAnswer(f"git cannot be run: {problem.strerror}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _NoAnswer(lines[0] if lines else f"git ended with code {done.returncode}")
    return done.stdout.decode(errors="replace").splitlines()


def _is_checkout(root: Path) -> bool:
    """Whether these are the project's files in a repository. An installed wheel has no pyproject.toml beside it."""
    in_repository = any((folder / ".git").exists() for folder in (root, *root.parents))
    return in_repository and (root / "pyproject.toml").exists()


def versions() -> dict[str, str]:
    """Installed versions of the packages on which results or records may depend."""
    found = {"python": platform.python_version()}
    for name in ("emergence-lab", "torch", "deepspeed", "numpy", "ray", "mlflow", "pyarrow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu_name() -> str:
    """The processor's model name, if the system gives one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def cores(membership: Path = Path("/proc/self/cgroup"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, by its affinity (`taskset`, Slurm) and its cgroups' CPU quota (containers).

    A quota is rounded down, to at least one. `membership` and `cgroups` are Linux's paths for cgroups, version 1 or 2.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota(membership, cgroups))))


def _quota(membership: Path, cgroups: Path) -> float:
    """Cores by the smallest CPU quota of this process's cgroup and its parents; 1e9 if there is none."""
    least = 1e9
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = next(
                (cgroups / name for name in (controllers, "cpu") if controllers and (cgroups / name).is_dir()), cgroups
            )
            inner = top / path.lstrip("/")
            for folder in (inner, *inner.parents):
                least = min(least, _quota_of(folder))
                if folder == top:
                    break
    return least


def _quota_of(folder: Path) -> float:
    """Cores of one cgroup's quota: `cpu.max` in version 2, `cpu.cfs_*` in version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if float(quota) > 0:  # "max" and -1 mean none
                return float(quota) / float(period)
    return 1e9


def n_gpus() -> int | None:
    """The number of this machine's usable GPUs; None if unknown (no NVIDIA tools). Starts no CUDA."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    listed = _nvidia_smi("--list-gpus")
    return None if listed is None else sum(line.startswith("GPU ") for line in listed.splitlines())


def gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU; None if unknown."""
    sizes = (_nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits") or "").split()
    with contextlib.suppress(ValueError):  # no GPU, or a size that is not reported
        return min(int(size) for size in sizes) * 2**20
    return None


def _nvidia_smi(*words: str) -> str | None:
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
