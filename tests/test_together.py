"""What a trunk and the driver say to each other while it runs, with a real desk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS

pytestmark = pytest.mark.end_to_end

SCRIPT = """
import time

import ray
from orchestrator import together

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
desk = together.Desk.remote()


def until(ask, seconds):
    # how often it was asked, and what it said last: for so long, or until it says yes
    begin, n = time.monotonic(), 0
    while time.monotonic() - begin < seconds and not ask():
        n += 1
        time.sleep(0.001)
    return n, ask()


together.PATIENCE_SECONDS = 0.5
ask, late = together._asking(desk), together._asking(desk)
n, answer = until(ask, 2.0)  # its question was answered with no, and it asked again
print("going", answer, n > 100)
ray.get(desk.stop.remote())
print("stopped", until(ask, 60.0)[1], until(late, 60.0)[1], ray.get(desk.is_stopping.remote()))

ray.get(desk.expect.remote("a"))
print("met", ray.get(desk.have_met.remote("a")))
ray.get(desk.meet.remote("a"))
print("met", ray.get(desk.have_met.remote("a")))
ray.get(desk.expect.remote("a"))
print("met", ray.get(desk.have_met.remote("a")))
ray.get(desk.put.remote("a", [{"key": 1}]))
ray.get(desk.put.remote("a", [{"key": 2}]))
print("taken", [e["key"] for e in ray.get(desk.take.remote("a"))], ray.get(desk.take.remote("a")))
ray.shutdown()
"""
"""In a process of its own: Ray leaves sockets open."""


def test_a_stop_is_heard_and_nobody_waits_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "going False True",
        "stopped True True True",
        "met False",
        "met True",
        "met False",
        "taken [1, 2] []",
    ]
