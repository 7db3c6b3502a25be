"""What a trunk and the driver say to each other while it runs, with a real desk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

SCRIPT = """
import ray
from orchestrator import together

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
desk = together.Desk.remote()


def answered(ask, n):
    found = []
    for _ in range(n):
        together.time.monotonic = (lambda now: lambda: now)(together.time.monotonic() + 1.01)
        found.append(ask())
        ray.get(desk.is_stopping.remote())  # whatever was asked before has been answered by then
    return found


ask = together._asking(desk)
print("going", answered(ask, 3))
ray.get(desk.stop.remote())
print("stopped", answered(ask, 3))
together.time.monotonic = (lambda now: lambda: now)(together.time.monotonic())
asked = []
ask = together._asking(type("Desk", (), {"is_stopping": type("M", (), {"remote": staticmethod(lambda: asked.append(1))})}))
for _ in range(1000):
    ask()
print("asked", len(asked))

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


def test_a_stop_is_heard_at_the_second_look_and_nobody_waits_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "going [False, False, False]",
        "stopped [False, True, True]",
        "asked 1",
        "met False",
        "met True",
        "met False",
        "taken [1, 2] []",
    ]
