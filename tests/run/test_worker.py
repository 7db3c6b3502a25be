"""What a trunk and the driver say to each other while it runs, with a real event relay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, tally

pytestmark = pytest.mark.end_to_end

SCRIPT = """
import threading
import time

import psutil
import ray
from orchestrator.run import relay as relays

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def until(ask, seconds):
    # how often it was asked, and what it said last: for so long, or until it says yes
    begin, n = time.monotonic(), 0
    while time.monotonic() - begin < seconds and not ask():
        n += 1
        time.sleep(0.001)
    return n, ask()


def kill(relay):
    # the process of the relay, by its name as Ray gives it
    for process in psutil.Process().children(recursive=True):
        if "ray::Relay" in " ".join(process.cmdline()):
            process.kill()
            process.wait()


relay = relays.Relay.options(name="relay").remote()
tell = lambda method, *given: relays.ask_relay("relay", method, *given)
relays.PATIENCE_SECONDS = 0.5
ask, late = relays.asking("relay"), relays.asking("relay")
n, answer = until(ask, 2.0)  # its question was answered with no, and it asked again
print("going", answer, n > 100)

print("met", tell("have_met", "a"))
tell("meet", "a")
print("met", tell("have_met", "a"))
print("here", tell("put", "a", 0, [{"key": 1}]), tell("put", "a", 1, [{"key": 2}]), tell("put", "a", 1, [{"key": 2}]))
print("taken", [e["key"] for e in tell("take", "a", 0)], tell("is_taken", "a", 2), tell("take", "a", 2), tell("is_taken", "a", 2))

kill(relay)
print("lost", tell("put", "a", 2, [{"key": 3}]), tell("put", "a", 0, [{"key": k} for k in (1, 2, 3)]))
print("taken", [e["key"] for e in tell("take", "a", 2)])
tell("forget", "a")
print("taken", tell("take", "a", 0))

ray.get(relay.stop.remote())
print("stopped", until(ask, 60.0)[1], until(late, 60.0)[1], tell("is_stopping"))
kill(relay)
print("going", tell("is_stopping"))
request = type("Request", (), {"is_asked": lambda self: True})()
done = threading.Event()
thread = threading.Thread(target=relays.hand_on_stop, args=(request, relay, done, print))
thread.start()
late = relays.asking("relay")
print(until(late, 60.0)[1])
kill(relay)
late = relays.asking("relay")
print("again", until(late, 60.0)[1])
done.set()
thread.join()
ray.shutdown()
"""
"""In a process of its own: Ray leaves sockets open."""


def test_a_stop_is_heard_nobody_waits_for_it_and_a_relay_that_dies_loses_nothing() -> None:
    """Fails without `max_restarts` of the relay, without the second sending of what is lost, and if a stop is told once only."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "(raylet)" not in line] == [
        "going False True",
        "met False",
        "met True",
        "here 1 2 2",
        "taken [1, 2] False [] True",
        "lost 0 3",
        "taken [3]",
        "taken []",
        "stopped True True True",
        "going False",
        "Stopping: every trunk saves after the step it is in. Ctrl-C again leaves at once.",
        "True",
        "again True",
    ]
    tally("killed: event relay", 3, 3)
