"""The training mixture: how often each task is drawn, the same in all families, and what memorisers make of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from families import find, suite_of
from pydantic import ValidationError
from scipy import special, stats

from orchestrator.study.reader import load
from orchestrator.study.schema import StudyError
from trainers.spec import TrunkSpec
from trainers.streams import stream
from trainers.tasks.references import zipf_ranks

FAMILIES: list[dict[str, Any]] = [
    {"name": "cipher", "n_symbols": 8, "n_pairs": 6},
    {"name": "urns", "n_colors": 3, "n_draws": 8},
    {"name": "compose"},
    {"name": "markov", "n_states": 3, "n_tokens": 8, "prior": "uniform"},
]
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family["name"])
TRILLION = 10**12


def trunk_of(family: dict[str, Any], exponent: float = 1.0, n_tasks: int = 8, **training: Any) -> TrunkSpec:
    return TrunkSpec.model_validate(
        {
            "family": family,
            "arm": "steps" if family["name"] == "compose" else "next_token",
            "n_tasks": n_tasks,
            "replicate": 1,
            "training": {"task_exponent": exponent, **training},
            "evaluation": {"n_sequences": 400},
        }
    )


# Drawing ---------------------------------------------------------------------------------------------------------


def ranks(exponent: float, n: int, size: int = 100_000) -> np.ndarray:
    return zipf_ranks(stream("test mixture", n, str(exponent)), exponent, n, size)


@pytest.mark.parametrize("exponent", [0.3, 0.999999, 1.0, 1.000001, 1.7, 4.0])
@pytest.mark.parametrize("n", [2, 4, 50])
def test_ranks_of_a_short_list_are_drawn_as_often_as_the_law_says(exponent: float, n: int) -> None:
    law = np.arange(1, n + 1) ** -exponent
    expected = law / law.sum() * 100_000
    counts = np.bincount(ranks(exponent, n), minlength=n + 1)
    assert counts[0] == 0 and counts.sum() == 100_000 and len(counts) == n + 1
    few = expected < 10  # too few for the chi-square's law: counted together
    binned = [np.append(c[~few], c[few].sum() if few.any() else []) for c in (counts[1:], expected)]
    assert stats.chisquare(*binned).pvalue > 1e-3


@pytest.mark.parametrize("exponent", [0.3, 0.9, 1.0, 1.1, 1.7])
def test_ranks_of_a_trillion_are_drawn_as_often_as_the_law_says(exponent: float) -> None:
    """Low ranks one by one, and the tail in seven bins, against the exact sum (Euler and Maclaurin)."""

    def mass(low: int, high: int) -> float:
        """Σ r^-exponent over low <= r <= high."""
        if high < 10_000:
            return float((np.arange(low, high + 1.0) ** -exponent).sum())
        if low < 1000:
            return mass(low, 999) + mass(1000, high)
        integral = (
            np.log(high / low) if exponent == 1 else (high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent)
        )
        return float(integral + (low**-exponent + high**-exponent) / 2 + exponent * low ** (-exponent - 1) / 12)

    edges = [1, 2, 3, 4, 6, 10, 100, 10**4, 10**6, 10**8, 10**10, 10**11, TRILLION + 1]
    if exponent > 1:  # the tail of the infinite sum is Hurwitz's zeta function: an independent look at `mass`
        exact = special.zeta(exponent, 100) - special.zeta(exponent, TRILLION + 1)
        assert mass(100, TRILLION) == pytest.approx(exact, rel=1e-9)
    found = ranks(exponent, TRILLION)
    expected = np.array([mass(a, b - 1) for a, b in itertools.pairwise(edges)])
    expected *= len(found) / expected.sum()
    counts = np.histogram(found, bins=edges)[0]
    few = expected < 10
    binned = [np.append(c[~few], c[few].sum() if few.any() else []) for c in (counts, expected)]
    assert found.min() >= 1 and found.max() <= TRILLION and counts.sum() == len(found)
    assert stats.chisquare(*binned).pvalue > 1e-3


@pytest.mark.parametrize("exponent", [0.01, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 2**53 + 1, 2**61])
def test_ranks_stay_in_the_list_however_long_it_is_and_however_steep_the_law(exponent: float, n: int) -> None:
    found = ranks(exponent, n, 2000)
    assert found.min() >= 1 and found.max() <= n
    assert exponent < 1e3 or (found == 1).all()  # a second task has a share of 2^-1000
    assert exponent > 0.01 or n < 3 or found.max() > n // 2


def test_ranks_are_a_pure_function_of_their_stream() -> None:
    assert np.array_equal(ranks(0.7, 10**6, 500), ranks(0.7, 10**6, 500))
    assert zipf_ranks(stream("pinned"), 1.0, TRILLION, 6).tolist() == PINNED


PINNED = [50701, 53, 4824615599, 13, 22, 608573]


# In the families -------------------------------------------------------------------------------------------------


@EACH_FAMILY
def test_at_exponent_0_tasks_are_drawn_as_they_always_were(family: dict[str, Any]) -> None:
    """No stream moves: the first numbers of a batch's stream are whole numbers below n_tasks, as before the mixture."""
    trunk = trunk_of(family, 0.0, n_tasks=300)
    draw, before = stream("x"), stream("x")
    assert np.array_equal(trunk.family.draw_tasks(trunk.request, draw, 50), before.integers(0, 300, 50))
    assert draw.random() == before.random()
    assert np.array_equal(trunk.family.seen_tasks(trunk.request, 700), np.arange(700) % 300)
    assert trunk.family.log_shares(trunk.request) is None
    bare = trunk.model_dump()
    del bare["training"]["task_exponent"]
    assert TrunkSpec.model_validate(bare).fingerprint() == trunk.fingerprint()


@EACH_FAMILY
def test_batches_show_tasks_as_often_as_the_law_says(monkeypatch: pytest.MonkeyPatch, family: dict[str, Any]) -> None:
    trunk = trunk_of(family, 1.5, batch_size=512)
    shown: list[np.ndarray] = []
    plain = type(trunk.family).train_ids

    def train_ids(self: Any, replicate: int, indices: np.ndarray) -> np.ndarray:
        shown.append(indices)
        return plain(self, replicate, indices)

    monkeypatch.setattr(type(trunk.family), "train_ids", train_ids)
    for step in range(8):
        trunk.family.batch(trunk.request, step)
    law = np.arange(1.0, 9) ** -1.5
    counts = np.bincount(np.concatenate(shown), minlength=8)
    assert counts.sum() == 8 * 512
    assert stats.chisquare(counts, law / law.sum() * counts.sum()).pvalue > 1e-3
    assert np.exp(trunk.family.log_shares(trunk.request)) == pytest.approx(law / law.sum(), rel=1e-12)


@EACH_FAMILY
def test_seen_sequences_show_tasks_as_the_mixture_does(family: dict[str, Any]) -> None:
    trunk = trunk_of(family, 1.5)
    seen = trunk.family.seen_tasks(trunk.request, 4000)
    law = np.arange(1.0, 9) ** -1.5
    assert stats.chisquare(np.bincount(seen, minlength=8), law / law.sum() * 4000).pvalue > 1e-3
    sets = {True: trunk, False: trunk_of(family, 0.0)}
    tokens = {mixed: [i.tokens for i in t.family.suite(t.request)] for mixed, t in sets.items()}
    same = [np.array_equal(a, b) for a, b in zip(tokens[True], tokens[False], strict=True)]
    assert True in same and False in same  # held-out sequences stay as they are, seen ones follow the mixture


@pytest.mark.parametrize("family", [f for f in FAMILIES if f["name"] != "compose"], ids=lambda family: family["name"])
def test_on_the_mixture_the_memoriser_that_knows_it_loses_least(
    family: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other prior predicts better on average what was drawn from this one: against that of equal shares."""
    trunk = trunk_of(family, 2.0, n_tasks=64)
    _, known = find(trunk, trunk.family.mixture, "seen")
    suite_of.cache_clear()
    monkeypatch.setattr(type(trunk.family), "log_shares", lambda self, trunk: np.full(64, -np.log(64)))
    _, other = find(trunk, trunk.family.mixture, "seen")
    suite_of.cache_clear()
    assert known.references["memorizer"].nll_nats.mean() < other.references["memorizer"].nll_nats.mean() - 0.02


# Refusals and studies --------------------------------------------------------------------------------------------

STUDY = """\
study: mixtures
version: 1
question: Does a steep mixture hide the rare tasks?
family: {name: urns}
axes:
  arm: [next_token]
  variant:
    alike: {}
    zipf: {training: {task_exponent: 1}}
  n_tasks: [4, 1e12]
  compute_flops: [1e12]
  replicates: 1
evaluation: {points_per_decade: 1}
"""


def test_chains_that_have_a_mixture_of_their_own_refuse_a_second_one(tmp_path: Any) -> None:
    said = "task_exponent 1 and prior 'ranked' of family 'markov' .*; keep one"
    with pytest.raises(ValidationError, match=said):
        trunk_of({"name": "markov"})
    assert trunk_of({"name": "markov"}, 0.0).training.task_exponent == 0
    path = tmp_path / "x.yaml"
    path.write_text(STUDY.replace("urns", "markov"))
    with pytest.raises(StudyError, match=f"x.yaml:9: axes.variant.zipf: {said}") as refusal:
        load(str(path))
    assert len(str(refusal.value).splitlines()) == 1
