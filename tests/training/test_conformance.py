"""What every family must keep, whatever it teaches: one suite for all of them, in the place of nine like it.

A family of another package is checked by the same: call `conforms(family)` from its own tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainers.spec import TrunkSpec
from trainers.tasks import FAMILIES, ExactFamily, Family, family_from
from trainers.tasks.laws import LawFamily

SMALL: dict[str, list[dict[str, Any]]] = {
    "cipher": [{"n_symbols": 8, "n_pairs": 10}, {"n_symbols": 5, "n_pairs": 6, "answers": "noise"}],
    "compose": [
        {"n_functions": 8},
        {"n_slots": 3, "n_functions": 6, "n_domains": 3},
        {"n_functions": 6, "n_domains": 3, "domain": 1},
    ],
    "grok": [{"modulus": 23}],
    "markov": [{"n_states": 4, "n_tokens": 24}, {"n_states": 3, "n_tokens": 16, "prior": "uniform"}],
    "modular": [{"modulus": 5, "n_inputs": 2, "n_examples": 6}],
    "parity": [{"n_bits": 10, "n_controls": 16}],
    "regression": [{"n_dims": 3, "n_pairs": 5}],
    "urns": [{"n_colors": 4, "n_draws": 16}],
}
"""Each family small, in the ways that it can differ."""
CASES = [
    pytest.param({"name": name} | parameters, id=f"{name}-{i}")
    for name, every in SMALL.items()
    for i, parameters in enumerate(every)
]


def trunk_of(family: Family, arm: str, replicate: int = 0, n_tasks: int | None = None, **training: Any) -> TrunkSpec:
    n = min(family.n_tasks_max, 12) if n_tasks is None else n_tasks
    return TrunkSpec(
        family=family,
        arm=arm,
        n_tasks=n,
        replicate=replicate,
        training={"batch_size": 6} | training,
        evaluation={"n_sequences": 16},
    )


def conforms(family: Family) -> None:
    """Everything below, of one family."""
    for arm in family.arms:
        trunk = trunk_of(family, arm)
        batches_are_as_declared(trunk)
        batches_depend_on_the_step_alone(trunk)
        suites_are_as_declared(trunk)
        references_are_sound(trunk)
    held_out_is_not_trained(family)
    if isinstance(family, ExactFamily):
        tasks_are_nested(family)
    if isinstance(family, LawFamily):
        held_out_sequences_are_the_same_for_all_trials(family)


def batches_are_as_declared(trunk: TrunkSpec) -> None:
    family: Any = trunk.family
    batch, length = family.batch(trunk.request, 3), family.length(trunk.arm)
    assert batch.loss_mask.shape == (6, length) and batch.loss_mask.dtype == bool and batch.loss_mask.any()
    assert batch.tokens.shape[:2] == (6, length + 1) and length <= family.seq_len
    if family.numbers is None:
        assert batch.tokens.dtype == np.int64 and batch.tokens.min() >= 0 and batch.tokens.max() < family.vocab_size
    else:
        assert batch.tokens.dtype == np.float32 and batch.tokens.shape[2] == family.numbers.width
        assert np.isfinite(batch.tokens).all()


def batches_depend_on_the_step_alone(trunk: TrunkSpec) -> None:
    """A resumed run sees what it would have seen; steps and replicates differ."""
    family: Any = trunk.family
    first = family.batch(trunk.request, 5)
    family.batch(trunk.request, 0)
    again = family.batch(trunk_of(family, trunk.arm).request, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    others = [
        family.batch(trunk_of(family, trunk.arm, replicate=r).request, s).tokens for r in (0, 1) for s in range(8)
    ]
    assert len({tokens.tobytes() for tokens in others}) == len(others)


def suites_are_as_declared(trunk: TrunkSpec) -> None:
    """Every declared skill has a probe of the right shape, and the suite costs what is said before it is built."""
    family: Any = trunk.family
    suite, again, length = family.suite(trunk.request), family.suite(trunk.request), family.length(trunk.arm)
    assert sum(len(items.tokens) * (1 + len(items.written)) for items in suite) == family.suite_size(trunk.request)
    probed = {(probe.skill, probe.split) for items in suite for probe in items.probes}
    assert set(family.skills) | {family.mixture} <= {skill for skill, _ in probed}
    assert (family.mixture, "seen") in probed and {split for _, split in probed} <= {"seen", "held_out"}
    for items, same in zip(suite, again, strict=True):
        assert np.array_equal(items.tokens, same.tokens)
        assert list(items.written) == sorted(set(items.written)) and all(0 <= j < length for j in items.written)
        for probe in items.probes:
            assert (
                probe.mask.shape == (len(items.tokens), length) == probe.target.shape[:2] and probe.mask.dtype == bool
            )


def references_are_sound(trunk: TrunkSpec) -> None:
    """Log losses are finite and chances are chances wherever a probe scores; knowing the rule is no worse than knowing nothing."""
    family: Any = trunk.family
    for items in family.suite(trunk.request):
        for probe in items.probes:
            for reference in probe.references.values():
                assert np.isfinite(reference.nll_nats[probe.mask]).all()
                assert ((reference.correct[probe.mask] >= 0) & (reference.correct[probe.mask] <= 1)).all()
            known = probe.references
            if {"uniform", "generalizer"} <= known.keys() and probe.skill == family.mixture and probe.mask.any():
                losses = [known[name].nll_nats[probe.mask].mean() for name in ("generalizer", "uniform")]
                assert losses[0] <= losses[1] + 1e-9 or getattr(family, "answers", "") == "noise"


def held_out_is_not_trained(family: Family) -> None:
    """Counted over contents, not ids: of thousands of training tasks none is held out. Two that are equal are one task."""
    n = min(family.n_tasks_max, 5000)
    request = trunk_of(family, family.arms[0], n_tasks=n).request
    trained, held_out = set(family.contents(request, "seen", 5000)), set(family.contents(request, "held_out", 500))
    assert trained and held_out and not trained & held_out
    assert len(trained) == min(5000, family.n_distinct(n))


def tasks_are_nested(family: ExactFamily) -> None:
    """Within a replicate the first tasks of a longer list are the shorter list; between replicates the lists differ."""
    n = family.n_train_ids
    whole = family.train_ids(0, np.arange(n if n < 4000 else 4000))
    assert np.array_equal(family.train_ids(0, np.arange(7)), whole[:7])
    assert len(set(whole.tolist())) == len(whole) and (whole < n).all() and (whole >= 0).all()
    assert not np.array_equal(family.train_ids(1, np.arange(len(whole))), whole)
    held_out = family.held_out_ids(50)
    assert (held_out >= n).all() and (held_out < family.universe_size).all()


def held_out_sequences_are_the_same_for_all_trials(family: LawFamily) -> None:
    """Whatever is trained and however; the seen ones differ."""
    trunks = [trunk_of(family, family.arms[0], r, n) for r, n in ((0, 3), (1, 12))]
    (held_out, seen), (same, others) = ([items.tokens for items in family.suite(t.request)] for t in trunks)
    assert np.array_equal(held_out, same) and not np.array_equal(seen, others)


@pytest.mark.parametrize("spec", CASES)
def test_a_family_keeps_what_every_family_must(spec: dict[str, Any]) -> None:
    conforms(family_from(spec))


def test_no_family_is_left_out() -> None:
    ours = {name for name, kind in FAMILIES.items() if kind.__module__.startswith("trainers.")}
    assert ours == set(SMALL)


@pytest.mark.parametrize("spec", CASES)
def test_every_kind_of_breach_is_found(spec: dict[str, Any]) -> None:
    """The suite can fail: a family whose held-out tasks train, one that draws anew at each call, one that miscounts."""
    family: Any = family_from(spec)

    class Leaky(type(family)):  # type: ignore[misc]
        def contents(self, request: Any, split: Any, n: int) -> list[bytes]:
            return super().contents(request, "seen", n)

    class Restless(type(family)):  # type: ignore[misc]
        def batch(self, request: Any, step: int) -> Any:
            calls.append(step)
            return super().batch(request, step + len(calls))

    class Miscounting(type(family)):  # type: ignore[misc]
        def suite_size(self, request: Any) -> int:
            return super().suite_size(request) + 1

    calls: list[int] = []
    for broken in (Leaky, Restless, Miscounting):
        with pytest.raises(AssertionError):
            conforms(broken.model_validate(family.model_dump()))
