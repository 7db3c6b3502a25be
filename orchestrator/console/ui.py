"""The MLflow server behind `emergence ui`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from orchestrator import files
from orchestrator.console.checks import UsageProblem
from orchestrator.record import links


def serve(port: int, uri: str) -> None:
    """Run MLflow's UI until Ctrl-C or another end of this process. Raises UsageProblem if the server ends by itself.

    The server has its own session and logs to a file: at Ctrl-C each of its processes prints a page of traces. One
    worker is enough for one user, and job execution is off.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    settings["MLFLOW_BACKEND_STORE_URI"] = uri  # not an argument: it may hold a password
    path = files.home_folder() / "mlflow_ui.log"
    with open(path, "ab") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:  # from here on every exit ends the server
        for ending in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.default_int_handler)
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, ending)
                server.wait(5)
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    reason = links.hide(lines[-1], uri) if lines else ""
    raise UsageProblem(f"MLflow's UI ended with code {code}: {reason}\nIts log: {path}")
