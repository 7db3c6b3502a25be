"""What a trunk and the driver say to each other while it runs, with a real event relay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, tally

from trainers.budget import flops_per_step
from trainers.spec import TrunkSpec

pytestmark = pytest.mark.end_to_end

JOB = {
    "trunk": json.dumps(
        {
            "family": {"name": "cipher", "n_symbols": 4, "n_pairs": 5},
            "arm": "answer",
            "n_tasks": 4,
            "replicate": 0,
            "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24},
            "training": {"batch_size": 8},
            "evaluation": {"first_flops": 1e6, "n_sequences": 4},
        }
    ),
    "trunk_id": "answer/n4/r0",
    "session": "s",
    "relay": "relay",
    "place": {},
}
"""What the driver gives a worker, without the budgets."""

SCRIPT = """
import json
import sys
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
request = type("Request", (), {"is_asked": lambda self: True, "by_signal": False})()
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

done, seen = threading.Event(), []


def watch(live):
    seen.append(live)
    assert len(seen) > 1, "the thread must live on"


thread = threading.Thread(target=relays.hand_on_live, args=(relay, done, watch))
thread.start()
show = relays.showing("relay", "t")
for step in range(1000):
    show({"step": step})
print("live", until(lambda: show({"step": 999}) or {"t": {"step": 999}} in seen, 60.0)[1], len(seen) < 100)
kill(relay)
print("again", until(lambda: show({"step": 1000}) or {"t": {"step": 1000}} in seen, 60.0)[1], thread.is_alive())


@ray.remote(num_cpus=1)
def train(job):
    from orchestrator.run import worker

    events = []
    worker._train(job, events.extend, "cpu")
    return events


seen.clear()
events = ray.get(train.remote(json.loads(sys.argv[1])))
until(lambda: "answer/n4/r0" in {name for live in seen for name in live}, 60.0)
done.set()
thread.join()
print("kinds", sorted({event["kind"] for event in events}))
print("last step", {live["last_step"] for of_all in seen for name, live in of_all.items() if name == "answer/n4/r0"} == {60})
ray.shutdown()
"""
"""In a process of its own: Ray leaves sockets open."""


def test_stops_and_live_values_pass_nobody_waits_for_them_and_a_relay_that_dies_loses_no_event() -> None:
    """Fails without `max_restarts` of the relay, without the second sending of what is lost, and if a stop is told once only.

    Live values are the newest of a trunk, reach the driver's thread, and are not among the events that a worker delivers.
    """
    cost = flops_per_step(TrunkSpec.model_validate_json(JOB["trunk"]))
    job = JOB | {"budgets": [60.0 * cost], "place": {"device": "cpu"}}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(job)],
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
        "Stopping: every trunk saves after the step it is in.",
        "True",
        "again True",
        "live True True",
        "again True True",
        "kinds ['evaluation', 'telemetry', 'trial', 'trunk']",
        "last step True",
    ]
    tally("killed: event relay", 4, 4)
