"""Where results come from: commit, versions, machine, and the journal's entry for one run of the driver."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from orchestrator import links
from orchestrator.study import Study


def session_event(study: Study, options: dict[str, Any]) -> dict[str, Any]:
    """The first event of a driver: the study as resolved, where and with what it runs. Its key is new each time."""
    session = uuid.uuid4().hex[:12]
    return {
        "kind": "session",
        "key": f"session/{session}",
        "session": session,
        "time": time.time(),
        "study": study.model_dump(mode="json"),
        "science": study.science(),
        "host": socket.gethostname(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "options": {k: links.without_password(v) if isinstance(v, str) else v for k, v in options.items()},
        "versions": versions(),
    } | source()


PACKAGES = ("orchestrator", "trainers")
CODE = (".py", ".j2", ".css", ".js")
"""A file that git does not know may still decide what runs, if it is one of these in a package; else it is a study or a note."""


def source(root: Path | None = None) -> dict[str, Any]:
    """`commit`: the project's, with `+changes` where code or tracked files differ from it; `changes`: which.

    The commit is None outside a repository, and where the repository around us does not hold this project.
    """
    root = root or Path(__file__).resolve().parent.parent
    here = f"{PACKAGES[0]}/{Path(__file__).name}"
    head = _git(root, "rev-parse", "HEAD")
    if not head or not _git(root, "ls-files", "--", here):  # installed into somebody else's repository
        return {"commit": None, "changes": []}
    changed = _git(root, "diff", "--name-only", "--relative", "HEAD") or []
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES) or []
    changes = sorted({*changed, *(path for path in unknown if path.endswith(CODE))})
    return {"commit": head[0] + ("+changes" if changes else ""), "changes": changes}


def _git(root: Path, *words: str) -> list[str] | None:
    """Lines of git's answer; None where it has none: no git, no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Installed versions of what results or records may depend on."""
    found = {"python": platform.python_version()}
    for name in ("emergence-lab", "torch", "deepspeed", "numpy", "ray", "mlflow", "pyarrow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def n_gpus() -> int | None:
    """GPUs of this machine that a process may use; None where nothing tells (no NVIDIA tools). Starts no CUDA."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else None


def gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU; None where nothing tells."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
        return min(int(line) for line in done.stdout.split()) * 2**20 if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
