"""Sharpened, composed or created: planted cases of each, and none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.analysis.reranking import Reranking, counts, reranking

N = 1024


def facts(n: int, p_tokens: list[float], others: float = 0.0, before: int = 0) -> dict[str, Any]:
    """A trial that is right on all n prompts. Its start model gives the tokens of each answer these chances.

    `others`: the chance of other right answers. `before`: prompts that the start model answers right greedily.
    """
    log_p = sum(map(math.log, p_tokens))
    counts = np.random.default_rng(0).binomial(N, math.exp(log_p) + others, n)
    return {
        "n_samples": N,
        "greedy_right": [1] * before + [0] * (n - before),
        "sampled_right": counts.tolist(),
        "right": [1] * n,
        "log_p": [log_p] * n,
        "least_log_p": [math.log(min(p_tokens))] * n,
    }


def of(*planted: dict[str, Any]) -> Reranking:
    found = reranking([counts(facts) for facts in planted])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        (facts(60, [0.5, 0.1, 0.3]), "sharpened"),
        (facts(60, [0.9, 1e-5], others=0.05), "sharpened"),  # by another way to the answer
        (facts(60, [0.01, 0.01, 0.01, 0.05]), "composed"),
        (facts(60, [0.9, 0.9, 1e-6]), "created"),
    ],
)
def test_a_planted_case_gets_its_class(planted: dict[str, Any], verdict: str) -> None:
    found = of(planted)
    assert found.verdict == verdict
    lo, hi = found.interval(verdict)
    assert 0.5 < lo < hi <= 1
    assert found.n_new == 60


def test_prompts_that_the_start_answers_or_the_trial_misses_are_not_new() -> None:
    planted = facts(20, [0.9, 1e-6], before=8)
    planted["right"] = [1] * 15 + [0] * 5
    found = of(planted)
    assert (found.n_new, found.start_right, found.end_right) == (7, 0.4, 0.75)
    assert found.of_class == {"sharpened": 0, "composed": 0, "created": 7}


def test_a_trial_without_new_answers_has_no_class() -> None:
    found = of(facts(10, [0.9], before=10))
    assert (found.n_new, found.verdict) == (0, "")


def test_trials_are_counted_together_and_runs_without_a_start_left_out() -> None:
    found = reranking([counts(facts(10, [0.5])), {"n_prompts": None}, counts(facts(30, [1e-6]))])
    assert found is not None
    assert (found.n_trials, found.n_prompts, found.verdict) == (2, 40, "created")
    assert found.of_class == {"sharpened": 10, "composed": 0, "created": 30}
    assert found.start_sampled == 0.25
    assert reranking([{"n_prompts": None}]) is None
