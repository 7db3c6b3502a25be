"""What every family must keep, whatever it teaches: one suite for all of them, in the place of nine like it.

A family of another package is checked by the same: call `conforms(family)` from its own tests.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from trainers.spec import TrunkSpec
from trainers.tasks import FAMILIES, ExactFamily, Family, family_from
from trainers.tasks.parity import Parity

SMALL: dict[str, list[dict[str, Any]]] = {
    "cipher": [{"n_symbols": 20, "n_pairs": 10}, {"n_symbols": 5, "n_pairs": 6, "answers": "noise"}],
    "compose": [
        {"n_functions": 8},
        {"n_slots": 3, "n_functions": 6, "n_domains": 3},
        {"n_functions": 6, "n_domains": 3, "domain": 1},
        {"n_slots": 14},
        {"kind": "positions", "n_input": 4},
    ],
    "grok": [{"modulus": 23}, {"modulus": 331}],
    "markov": [{"n_states": 4, "n_tokens": 24}, {"n_states": 3, "n_tokens": 16, "prior": "uniform"}],
    "modular": [{"modulus": 5, "n_inputs": 2, "n_examples": 6}, {"modulus": 29, "n_inputs": 12}],
    "parity": [{"n_bits": 10, "n_controls": 16}, {"n_bits": 60, "n_summed": 20, "n_controls": 100}],
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
        tasks_depend_on_their_id_alone(family)
        the_universe_holds_every_task_once(family)
    if not isinstance(family, Parity):  # which asks each trial's own tasks, of new data
        held_out_sequences_are_the_same_for_all_trials(family)
    assert max(family.length(arm) for arm in family.arms) == family.seq_len


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
    probed = [(probe.skill, probe.split) for items in suite for probe in items.probes]
    assert set(family.skills) | {family.mixture} == {skill for skill, _ in probed} and len(set(probed)) == len(probed)
    assert {(family.mixture, "seen"), (family.headline, "held_out")} <= set(probed)
    assert {split for _, split in probed} <= {"seen", "held_out"}
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
    assert np.array_equal(held_out[:7], family.held_out_ids(7))
    assert (held_out >= n).all() and (held_out < family.universe_size).all()


def tasks_depend_on_their_id_alone(family: ExactFamily) -> None:
    """Also across the whole universe; and neighbouring ids share no more than distant ones."""
    size = family.universe_size
    ids = np.array([size - 1, 0, size // 3, size - 1, size // 2])
    for task, row in zip(ids, family.tasks(ids), strict=True):
        assert np.array_equal(family.tasks(np.array([task]))[0], row)
    n = min(size, 20_000)
    rows = family.tasks(np.arange(n))
    near, far = ((rows[1:] == np.roll(rows[1:], by, axis=0)).mean() for by in (1, n // 2))
    assert abs(near - far) < 6 * np.sqrt(2 * max(far, 1 / n) / rows.size) or n < 1000


def the_universe_holds_every_task_once(family: ExactFamily) -> None:
    """Counted by content, whole where it is small; of a large one 20,000 training tasks of two replicates and held-out ones."""
    size, n = family.universe_size, 20_000
    if size <= n:
        ids = np.arange(size)
    else:
        trained = [family.train_ids(r, np.arange(min(n, family.n_train_ids))) for r in (0, 1)]
        ids = np.unique(np.concatenate([*trained, family.held_out_ids(n)]))
    rows = family.tasks(ids)
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == len(ids)


def held_out_sequences_are_the_same_for_all_trials(family: Family) -> None:
    """Whatever is trained and however, as long as it is enough; the seen ones differ."""
    most = family.n_tasks_max
    suites = [family.suite(trunk_of(family, family.arms[0], r, n).request) for r, n in ((0, most // 2), (1, most))]
    for one, other in zip(*suites, strict=True):
        (split,) = {probe.split for probe in one.probes}
        assert np.array_equal(one.tokens, other.tokens) == (split == "held_out")


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


def digest(family: Any) -> str:
    """Of batches, suites and references in every arm, with tasks drawn alike and not; numbers that are not whole to five digits."""
    h = hashlib.sha256()

    def put(*arrays: np.ndarray) -> None:
        for array in arrays:
            h.update((np.round(array, 5) + 0.0).tobytes() if array.dtype.kind == "f" else array.tobytes())

    for arm in family.arms:
        for exponent in (0.0, 1.0) if family.objection(1.0) is None else (0.0,):
            request = trunk_of(family, arm, replicate=1, task_exponent=exponent).request
            put(*family.batch(request, 7)[:2])
            for items in family.suite(request):
                put(items.tokens)
                for probe in items.probes:
                    h.update((probe.skill + probe.split).encode())
                    put(
                        probe.mask,
                        probe.target,
                        *(a for name in sorted(probe.references) for a in probe.references[name]),
                    )
    return h.hexdigest()[:16]


PINNED = {
    "cipher-0": "d7687383a5ea1bc8",
    "cipher-1": "065154a3cd9d9f59",
    "compose-0": "4e139356dc54685e",
    "compose-1": "1ba4e582606cae70",
    "compose-2": "3a0ce395a5ce276f",
    "compose-3": "cd998adbc2358e9e",
    "compose-4": "dfb3217655a7a412",
    "grok-0": "cfff5a93a6991f3c",
    "grok-1": "2ea33b963bc0b6ae",
    "markov-0": "b495b38fbd9366c2",
    "markov-1": "47fe9eaaff01d2e6",
    "modular-0": "21992bd8a3a5d1a8",
    "modular-1": "01e60efe47f062ee",
    "parity-0": "d4004d55b3c79fcd",
    "parity-1": "38bb73db7d88128b",
    "regression-0": "200d4f7a82fdff59",
    "urns-0": "656140a34d707e03",
}


@pytest.mark.parametrize("spec", CASES)
def test_tasks_and_sequences_are_what_they_were_when_this_was_written(spec: dict[str, Any], request: Any) -> None:
    """When one moves, raise the version of its family."""
    assert digest(family_from(spec)) == PINNED[request.node.callspec.id]
