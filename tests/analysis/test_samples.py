"""Named outcomes of arm `reward`: planted ones get their name, and noise alone gets none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.analysis import samples
from orchestrator.analysis.samples import MEANS, SUMS, means, outcome

MOST = 20
"""Most tokens of an answer."""


def row(right: float, mixed: float = 0.4, n_groups: int = 500, **other: float) -> dict[str, Any]:
    """Sums over groups of eight answers with this share right, and this share of groups with both."""
    n = 8 * n_groups
    of = {"ended": 1.0, "sound": right, "tokens": 6.0} | other
    counts = {"n_samples": n, "n_ended": of["ended"] * n, "n_answered": of["ended"] * n, "n_right": right * n}
    counts |= {"n_sound": of["sound"] * n, "n_tokens": of["tokens"] * n, "sum_entropy_nats": 0.5 * n}
    all_right = max(0.0, right - mixed / 2) * n_groups
    counts |= {"n_groups": n_groups, "n_groups_all_right": all_right}
    return counts | {"n_groups_all_wrong": (1 - mixed) * n_groups - all_right}


PLANTED = {
    "learns": ([row(0.1), row(0.5), row(0.9, 0.1)], None),
    "learns slowly": ([row(0.02), row(0.03), row(0.1)], None),
    "one guess for all sums of two letters": ([row(0.3, 0.5), row(0.55, 0.001)], "frozen"),
    "knows it all, and no group differs": ([row(0.9, 0.1), row(1.0, 0.0)], None),
    "falls a little": ([row(0.1), row(0.6), row(0.35)], None),
    "small from start to end": ([row(0.09), row(0.04)], None),
    "never differs": ([row(0.001, 0.004), row(0.0, 0.0)], "no signal"),
    "all or nothing from the start": ([row(0.3, 0.0), row(0.3, 0.0)], "no signal"),
    "falls to the half": ([row(0.1), row(0.6), row(0.29)], "collapse"),
    "falls to nothing": ([row(0.4), row(0.0, 0.0)], "collapse"),
    "stops exploring": ([row(0.2, 0.5), row(0.33, 0.1), row(0.33, 0.001)], "frozen"),
    "runs on": ([row(0.3), row(0.28, ended=0.4, tokens=19.0)], "length run-away"),
    "runs on and falls": ([row(0.5), row(0.05, ended=0.1, tokens=20.0)], "length run-away"),
    "never ended": ([row(0.3, ended=0.2, tokens=19.0), row(0.3, ended=0.2, tokens=19.0)], None),
    "short and endless": ([row(0.3), row(0.28, ended=0.4, tokens=12.0)], None),
    "right for the checker alone": ([row(0.3), row(0.8, sound=0.3)], "checker hacking"),
    "right for both": ([row(0.3), row(0.8, sound=0.5)], None),
    "hacks a little": ([row(0.1, sound=0.0), row(0.4, sound=0.0)], None),
    "nothing sampled": ([], None),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_outcome_has_its_name(name: str) -> None:
    rows, expected = PLANTED[name]
    assert outcome(rows, MOST) == expected


def test_all_names_are_planted() -> None:
    assert {name for _, name in PLANTED.values() if name} == samples.OUTCOMES.keys()


def test_few_groups_are_no_point() -> None:
    """A high share of a few answers is no height, and a low one at the end no fall."""
    steady = [row(0.2, n_groups=400)] * 3
    assert outcome([row(0.6, n_groups=8), *steady, row(0.02, n_groups=8)], MOST) is None
    assert outcome([row(0.6, n_groups=400), *steady, row(0.02, n_groups=400)], MOST) == "collapse"


@pytest.mark.parametrize("right", [0.06, 0.1, 0.2])
@pytest.mark.parametrize("alike", [0.05, 0.5])
def test_a_constant_chance_is_hardly_ever_a_collapse(right: float, alike: float) -> None:
    """Trials of 300 steps, four groups a step. alike: correlation of the rewards within a group."""
    draw, names, n_trials = np.random.default_rng(0), [], 100
    edges = [0, 1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 240, 300]
    for _ in range(n_trials):
        rows = []
        for n_groups in (4 * np.diff(edges)).tolist():
            hits = draw.binomial(8, draw.beta(right * (1 - alike) / alike, (1 - right) * (1 - alike) / alike, n_groups))
            counts = row(hits.sum() / (8 * n_groups), 0.0, n_groups)
            both = int((hits == 8).sum()), int((hits == 0).sum())
            rows.append(counts | dict(zip(("n_groups_all_right", "n_groups_all_wrong"), both, strict=True)))
        names.append(outcome(rows, MOST))
    assert n_trials - names.count(None) <= 2


def test_means_are_those_of_single_answers() -> None:
    rewards = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    n_tokens, log_probs = np.arange(16) % 5 + 1, -np.linspace(0.1, 1, 16)
    counts = dict.fromkeys(SUMS, 8.0) | {"n_samples": 16, "n_right": rewards.sum(), "n_tokens": n_tokens.sum()}
    counts |= {"sum_entropy_nats": -log_probs.sum()}
    counts |= {"n_groups": 4, "n_groups_all_right": 1, "n_groups_all_wrong": 1}
    found = means(counts)
    assert tuple(found) == MEANS
    assert found["right"] == rewards.mean() and found["spread"] == pytest.approx(rewards.std())
    assert found["tokens"] == n_tokens.mean() and found["entropy_nats"] == -log_probs.sum() / n_tokens.sum()
    assert (found["groups_all_right"], found["groups_all_wrong"]) == (0.25, 0.25)
    table = means({name: np.array([value, 2 * value]) for name, value in counts.items()})
    assert all((table[name] == found[name]).all() for name in MEANS)
