"""The function that Ray executes: one trunk, on a single worker or on a group.

A single worker is a reused actor. Ray Train starts a group. Both run the same `run_trunk` on every worker. Rank 0
passes its events to the event relay, an actor beside the driver. A stop arrives from there too. Only checkpoints need
storage that all machines see.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ray import tune

from orchestrator.record.journal import Event
from orchestrator.run.relay import RELAY_SECONDS, ask_relay, asking, showing

REPORT_EVERY_SECONDS = 3.0
"""Events are collected for this long. A report costs a trunk some milliseconds, and a short trunk emits twenty events."""

GROUP_START_SECONDS = 600.0
"""A group that has room and has not started by then is given up. Its trunk is tried again."""

SLOW_START_SECONDS = 60.0
"""A group that does not train by then is reported. Normally it takes ten seconds."""


def execute(config: dict[str, Any]) -> None:
    """Run one Ray Tune trial: one trunk and its open budgets. Called in a reused actor, off its main thread."""
    from trainers.fit import memory
    from trainers.fit.place import Place
    from trainers.spec import TrunkSpec
    from trainers.tasks.table import ScorerError

    job = config["job"]
    if ask_relay(job["relay"], "is_stopping"):
        tune.report({"events": "[]"})  # Tune prints a line about a trial without any report
        return
    batch_size = TrunkSpec.model_validate_json(job["trunk"]).training.batch_size

    def at(place: Place) -> None:
        placed = job | {"place": place.model_dump()}
        if job["workers"] > 1:
            _in_a_group(placed)
        else:
            _train(placed, _report, place.device)

    try:
        memory.with_less(at, Place(**job["place"]), batch_size, job["workers"])
    except ScorerError as problem:  # another try would end the same, so Tune is told of no error
        tune.report({"events": "[]", "failed": f"{problem}; mend it, and raise the study's version"})


NOTE = "note"
"""The kind of a message for the user. It travels among the events and is not written to the journal."""


def _report(events: list[Event]) -> None:
    """Pass events to the driver; returns when the driver has them."""
    notes = [event["text"] for event in events if event["kind"] == NOTE]
    lasting = json.dumps([event for event in events if event["kind"] != NOTE])
    tune.report({"events": lasting} | ({"note": "\n".join(notes)} if notes else {}))


def _in_a_group(job: dict[str, Any]) -> None:
    """Train on a new group of workers. The events that rank 0 leaves at the event relay are reported from here."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.run.network import OnTheClustersNetwork

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(GROUP_START_SECONDS)
    ask = partial(ask_relay, job["relay"])
    group = f"group-{job['trunk_id'].replace('/', '-')}-{time.time_ns()}"
    on_gpu = job["place"]["device"] == "cuda"
    trainer = TorchTrainer(
        _one_of_a_group,
        train_loop_config=job | {"group": group},
        scaling_config=ScalingConfig(
            num_workers=job["workers"], use_gpu=on_gpu, resources_per_worker={"CPU": 1} | ({"GPU": 1} if on_gpu else {})
        ),
        torch_config=OnTheClustersNetwork(backend="nccl" if on_gpu else "gloo"),
        run_config=RunConfig(
            name=group,
            storage_path=job["scratch"],
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    )
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as problem:
            failed.append(problem)

    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    speak_at, n_reported = time.monotonic() + SLOW_START_SECONDS, 0
    over = False
    while not over:
        fitting.join(REPORT_EVERY_SECONDS / 3)
        over = not fitting.is_alive()
        if not over and time.monotonic() > speak_at:
            speak_at = math.inf
            if not ask("have_met", group):
                note = (
                    f"{job['trunk_id']}: its {job['workers']} workers have not met after {SLOW_START_SECONDS:.0f} s. They "
                    "wait for slots, or cannot reach each other: docs/cluster.md, 'When workers do not meet'"
                )
                tune.report({"events": "[]", "note": note})
        if (events := ask("take", group, n_reported)) or over:
            _report(events)
            n_reported += len(events)
    ask("forget", group)
    if failed:
        raise failed[0]


def _one_of_a_group(job: dict[str, Any]) -> None:
    """Run on each worker of a group, after Ray Train has made the process group."""
    from ray.train.torch import get_device

    ask, group, device = partial(ask_relay, job["relay"]), job["group"], get_device()
    ask("meet", group)
    sent: list[Event] = []

    def deliver(events: list[Event]) -> None:
        start = len(sent)
        sent.extend(events)
        while (there := ask("put", group, start, sent[start:])) < len(sent):
            start = there

    try:
        _train(job, deliver, str(device))
    finally:  # the only other copy of the events ends with this process
        give_up_at = time.monotonic() + RELAY_SECONDS
        while not ask("is_taken", group, len(sent)) and time.monotonic() < give_up_at:
            deliver([])
            time.sleep(0.2)


def _train(job: dict[str, Any], deliver: Callable[[list[Event]], None], device: str) -> None:
    """Run the trunk until it ends or must stop, and pass its events on in batches."""
    from trainers.fit.place import Place
    from trainers.spec import TrunkSpec
    from trainers.train import run_trunk

    facts = {"session": job["session"], "host": socket.gethostname(), "device": job["place"]["device"]}
    waiting: list[Event] = []
    handed_in = time.monotonic()

    def hand_in() -> None:
        nonlocal handed_in
        deliver(list(waiting))
        waiting.clear()
        handed_in = time.monotonic()

    def emit(events: list[Event]) -> None:
        waiting.extend(facts | event for event in events)
        if time.monotonic() - handed_in > REPORT_EVERY_SECONDS:
            hand_in()

    def note(text: str) -> None:
        waiting.append({"kind": NOTE, "text": text})
        hand_in()

    trunk = TrunkSpec.model_validate_json(job["trunk"])
    place = Place(**job["place"] | {"device": device})
    try:
        relay = job["relay"]
        run_trunk(trunk, job["budgets"], place, emit, asking(relay), note, showing(relay, trunk.id))
    finally:
        hand_in()
