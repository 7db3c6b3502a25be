"""What all tests share: one thread a process, surroundings that change nothing, and property tests that draw the same examples everywhere."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere; subprocesses inherit it

import pytest
from hypothesis import settings

for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
    os.environ.pop(name, None)  # a hook has them, and the repositories that tests make would be that hook's
for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # on a runner of GitHub's it would take a pipe for a terminal
# Ray's sockets have room for 107 bytes, which a long TMPDIR uses up; and a cluster on this machine is not to be found, nor lost.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="el", dir="/tmp")
atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

# A shell that starts tests in the background has SIGINT ignored, and children would inherit that: Ctrl-C is to reach them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda *_: None)  # the same under nohup: we are to go on, and children to hear of it

PATIENCE_SECONDS = 900
"""For what ends by itself. Nothing depends on it but that a hang is found: a machine may be busy with something else."""

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Files that start Ray first: they take longest, and the others fill up what time is left beside them."""
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


# Faults -------------------------------------------------------------------------------------------------------------

_FAULTS: dict[str, tuple[int, int]] = {}


def tally(kind: str, tried: int, survived: int) -> None:
    """Count faults of one kind that a test has tried and that the software survived; the sums are printed at the end."""
    before = _FAULTS.get(kind, (0, 0))
    _FAULTS[kind] = (before[0] + tried, before[1] + survived)


def pytest_sessionfinish(session: Any) -> None:
    """A worker of pytest-xdist hands in what it has counted."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = [[kind, *counts] for kind, counts in _FAULTS.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Add up what the workers have counted."""
    for kind, tried, survived in getattr(node, "workeroutput", {}).get("faults", []):
        tally(kind, tried, survived)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the faults that were tried, by kind: the table of docs/reliability.md."""
    if _FAULTS:
        terminalreporter.section("faults")
        for kind, (tried, survived) in sorted(_FAULTS.items()):
            terminalreporter.line(f"{kind}: {tried:,} tried, {survived:,} survived")
