"""The gain from more workers: training FLOPs per second, compared between conditions that differ in placement alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from orchestrator.analysis.finding import Ends, Finding, claim_of
from orchestrator.analysis.means import t_ends
from orchestrator.analysis.results import Results
from orchestrator.formatting import figure, times


def ask(results: Results) -> Iterator[Finding]:
    """The speed of every condition as a multiple of the condition with the fewest workers, if they differ in placement alone.

    The estimate is a geometric mean over pairs of trunks with the same number of tasks and replicate.
    """
    seconds, workers = _seconds(results)
    for alike in results.study.same_question():
        ran = [condition for condition in alike if condition in workers]
        if len({workers[condition] for condition in ran}) < 2:
            continue
        base = min(ran, key=lambda condition: workers[condition])
        speed = {condition: {at: flops / s for at, (flops, s) in seconds[condition].items()} for condition in ran}
        for condition in ran:
            if condition != base:
                ratios = [
                    math.log(speed[condition][at] / speed[base][at]) for at in speed[condition] if at in speed[base]
                ]
                yield _speed(condition, base, workers[condition], workers[base], ratios)


def _seconds(results: Results) -> tuple[dict[str, dict[tuple[int, int], list[float]]], dict[str, int]]:
    """Condition -> (n_tasks, replicate) -> [training FLOPs run, training seconds]; and condition -> number of workers."""
    seconds: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    workers: dict[str, int] = {}
    for row in results.runs:
        if row["status"] == "done" and row.get("train_seconds") and row.get("workers"):
            condition = row["arm"]
            if int(row["workers"]) != workers.setdefault(condition, int(row["workers"])):
                continue  # a later session ran on other workers: the first trial decides
            of_trunk = seconds[condition][row["n_tasks"], row["replicate"]]
            of_trunk[0] += row["flops_run"]
            of_trunk[1] += row["train_seconds"]
    return seconds, workers


def _speed(condition: str, base: str, workers: int, base_workers: int, ratios: list[float]) -> Finding:
    """The finding on one condition against `base`, which has fewer workers. ratios: log of the speed ratio, one for each pair of trunks."""

    def interval(confidence: float) -> Ends:
        low, high = (None if end is None else math.exp(end) for end in t_ends(ratios, confidence))
        return low, high

    def words(one: Finding) -> str:
        if one.estimate is None:
            return f"the speed of {times(workers, 'worker')} beside {times(base_workers, 'worker')} was not measured"
        sure = f" (95 % interval {figure(one.low)} to {figure(one.high)})" if one.has_interval else ""
        fast = f"{figure(one.estimate)} times as fast as {times(base_workers, 'worker')}"
        return f"{times(workers, 'worker')} train {fast}{sure}"

    return Finding(
        name=claim_of("speed", "workers", condition, base),
        question="speed",
        words=words,
        condition=condition,
        against=base,
        verdict="measured" if ratios else "missing",
        answered=bool(ratios),
        n=len(ratios),
        estimate=math.exp(sum(ratios) / len(ratios)) if ratios else None,
        interval=interval,
        counted=False,
    )
