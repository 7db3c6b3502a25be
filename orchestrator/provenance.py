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
        "options": options,
        "commit": commit(),
        "versions": versions(),
    }


def commit() -> str | None:
    """The project's commit, with `+changes` where the work tree differs; None outside a repository."""
    root = Path(__file__).resolve().parent.parent
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "") if head.returncode == 0 else None


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
