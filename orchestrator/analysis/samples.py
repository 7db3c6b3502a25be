"""What arm `reward` sampled in training: means of its counts, and the named outcome of a trial. Pure: numbers in, words out.

The definitions of the outcomes are in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SUMS = {
    **{f"n_{name}": name for name in ("samples", "ended", "answered", "right", "sound", "tokens")},
    "sum_entropy_nats": "nll_nats",
    "n_groups": "groups",
    "n_groups_all_right": "groups_right",
    "n_groups_all_wrong": "groups_wrong",
    "sum_flops": "flops",
}
"""Column of `samples.parquet` -> key in `sampled.sums` of an evaluation event (`trainers.objectives.reward`)."""

MEANS = (
    *("right", "spread", "answered", "sound", "ended", "tokens", "entropy_nats"),
    *("groups_all_right", "groups_all_wrong"),
)
"""Names of `means`."""


def means(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The means of the columns of `samples.parquet`, numbers or arrays (rows,), by the names of MEANS.

    Shares of the answers, `spread` (standard deviation of the reward), `tokens` of an answer, `entropy_nats` of a token (the mean
    of minus the log-probability of those drawn), and shares of the groups.
    """
    n = counts["n_samples"]
    found = {name: counts[f"n_{name}"] / n for name in ("right", "answered", "sound", "ended", "tokens")}
    found["spread"] = np.sqrt(found["right"] * (1 - found["right"]))
    found["entropy_nats"] = counts["sum_entropy_nats"] / counts["n_tokens"]
    found |= {name: counts[f"n_{name}"] / counts["n_groups"] for name in MEANS[-2:]}
    return {name: found[name] for name in MEANS}


OUTCOMES = {
    "checker hacking": "most answers are right, but under half of these for the strict judge",
    "length run-away": "most answers ended at first; at the end most run on to the limit",
    "collapse": "under half as many answers are right as at the best point before",
    "frozen": "the answers to a prompt have become alike, many of them wrong: hardly any reward differs any more",
    "no signal": "hardly any prompt had both right and wrong answers, so that there was nothing to learn from",
}
"""All outcomes with a name, in words. The first that applies is a trial's outcome."""

GROUPS_OF_POINT = 200
"""Evaluations are joined into points of at least so many groups: a share of fewer is noise."""
HALF = 0.5
ENOUGH = 0.9
"""From this share right on, it is no failure that rewards are alike."""
LEAST_BEST = 0.1
"""A share right below this is no height to fall from."""
LONG = 0.9
"""Answers that run away have more than this share of the tokens that are allowed."""
LEAST_MIXED, MUCH_MIXED = 0.01, 0.05
"""A share of groups with right and wrong answers under the first is no signal; over the second it is a clear one."""


def outcome(rows: Sequence[Mapping[str, Any]], most_tokens: int) -> str | None:
    """The named outcome of a trial that has ended; None if no name applies.

    rows: its rows of `samples.parquet` in order of steps. most_tokens: the most tokens of an answer.
    """
    points = [means(point) | {"mixed": _mixed(point)} for point in _points(rows)]
    if not points:
        return None
    first, end = points[0], points[-1]
    best = max(point["right"] for point in points)
    if end["right"] >= HALF and end["sound"] < HALF * end["right"]:
        return "checker hacking"
    if end["ended"] < HALF <= first["ended"] and end["tokens"] > LONG * most_tokens:
        return "length run-away"
    if best >= LEAST_BEST and end["right"] < HALF * best:
        return "collapse"
    if end["right"] < ENOUGH and end["mixed"] < LEAST_MIXED and max(point["mixed"] for point in points) > MUCH_MIXED:
        return "frozen"
    if end["right"] < ENOUGH and _mixed(_joined(rows)) < LEAST_MIXED:
        return "no signal"
    return None


def _mixed(counts: Mapping[str, Any]) -> float:
    """The share of groups with right and wrong answers."""
    return float(1 - (counts["n_groups_all_right"] + counts["n_groups_all_wrong"]) / counts["n_groups"])


def _joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: sum(row.get(name) or 0 for row in rows) for name in SUMS}


def _points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Sums of neighbouring rows with GROUPS_OF_POINT groups or more. A rest at the end joins the last point."""
    found: list[list[Mapping[str, Any]]] = []
    n_left = 0
    for row in rows:
        if n_left <= 0:
            found.append([])
            n_left = GROUPS_OF_POINT
        found[-1].append(row)
        n_left -= row["n_groups"]
    if n_left > 0 and len(found) > 1:
        found[-2:] = [found[-2] + found[-1]]
    return [_joined(part) for part in found]
