"""The MLflow server behind `emergence ui`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from orchestrator.console.checks import UsageProblem
from orchestrator.record import journal, links


def serve(port: int, uri: str) -> None:
    """Run MLflow's UI until Ctrl-C, or until we are ended. Raises UsageProblem when it ends by itself.

    In a session of its own, and its many words in a file: it answers Ctrl-C with a page of traces from each of its processes.
    One worker serves one person, and nobody sends it jobs.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    settings["MLFLOW_BACKEND_STORE_URI"] = uri  # not among the arguments: it may hold a password
    path = journal.home_folder() / "mlflow_ui.log"
    with open(path, "ab") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:  # at once: who leaves from here on takes the server with him
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
    said = links.hide(lines[-1], uri) if lines else ""
    raise UsageProblem(f"MLflow's UI ended with code {code}: {said}\nAll it said: {path}")
