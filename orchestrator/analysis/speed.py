"""What more workers gain: the same training on one, two, ... of them, in seconds of it per second of wall time.

Read off the trials' costs, where lines of a study differ in their place alone. Knows no figure, no MLflow, no Ray.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

from orchestrator import stats
from orchestrator.analysis.results import Results
from orchestrator.formatting import figure, times


class Speed(NamedTuple):
    """How fast a line trains, beside the one of fewest workers that asks the same."""

    line: str
    workers: int
    beside: str
    beside_workers: int
    flops_per_second: float
    """Geometric mean over trunks; training alone, waiting for other workers included, starting them not."""
    multiple: stats.Interval | None
    """Seconds of training on `beside_workers` that pass in a second on `workers`: geometric mean and 95 % t-interval over pairs
    of trunks with the same tasks and replicate, on logarithms. None where there is no pair."""


def speeds(results: Results) -> tuple[Speed, ...]:
    """Every line that differs in workers from another that asks the same, in the order of the study; else none."""
    study = results.study
    seconds: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    workers: dict[str, int] = {}
    for row in results.runs:
        if row["status"] == "done" and row.get("train_seconds") and row.get("workers"):
            line = row["arm"]
            if int(row["workers"]) != workers.setdefault(line, int(row["workers"])):
                continue  # of a run on others: a line is what its first trial ran on
            of_trunk = seconds[line][row["n_tasks"], row["replicate"]]
            of_trunk[0] += row["flops_run"]
            of_trunk[1] += row["train_seconds"]
    found = []
    for alike in study.same_question():
        ran = [line for line in alike if line in workers]
        if len({workers[line] for line in ran}) < 2:
            continue
        base = min(ran, key=lambda line: workers[line])
        speed = {line: {at: flops / s for at, (flops, s) in seconds[line].items()} for line in ran}
        for line in ran:
            ratios = [math.log(speed[line][at] / speed[base][at]) for at in speed[line] if at in speed[base]]
            mean = math.exp(sum(map(math.log, speed[line].values())) / len(speed[line]))
            multiple = None if line == base or not ratios else _exp(stats.t_interval(ratios))
            found.append(Speed(line, workers[line], base, workers[base], mean, multiple))
    return tuple(found)


def _exp(logs: stats.Interval | None) -> stats.Interval | None:
    if logs is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return logs._replace(mean=math.exp(logs.mean), low=low, high=high)


def speed_sentence(speed: Speed) -> str:
    """2 workers train 1.8 times as fast as 1 ..."""
    assert speed.multiple is not None
    mean, low, high, n = speed.multiple
    sure = f" (95 % interval {figure(low)} to {figure(high)}, {times(n, 'pair')} of runs)" if low is not None else ""
    return (
        f"{times(speed.workers, 'worker')} train {figure(mean)} times as fast as {speed.beside_workers}{sure}: "
        f"a year's work of {speed.beside_workers} is done by {speed.workers} in {figure(12 / mean)} months."
    )
