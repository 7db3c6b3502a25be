"""Our families pass the suite that every family passes (`trainers/tasks/conformance.py`), and the suite can fail."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from trainers.spec import TrunkSpec
from trainers.tasks import FAMILIES, Family, family_from
from trainers.tasks.conformance import Breach, conforms

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
    "rewrite": [{"n_letters": 6, "n_string": 6, "lengths": [1, 2]}, {"items_total": 300}],
    "urns": [{"n_colors": 4, "n_draws": 16}],
    "worked_parity": [{"n_positions": 9, "n_letters": 3}, {"n_positions": 60, "share": 0.0}],
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


@pytest.mark.parametrize("spec", CASES)
def test_a_family_keeps_what_every_family_must(spec: dict[str, Any]) -> None:
    conforms(family_from(spec))


def test_no_family_is_left_out() -> None:
    ours = {name for name, kind in FAMILIES.items() if kind.__module__.startswith("trainers.")}
    assert ours - {"table"} == set(SMALL)  # a table has its own tests


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
        with pytest.raises(Breach):
            conforms(broken.model_validate(family.model_dump()))


def digest(family: Any) -> str:
    """Of batches, suites and references in every arm, with tasks drawn alike and not; numbers that are not whole to five digits."""
    h = hashlib.sha256()

    def put(*arrays: np.ndarray) -> None:
        for array in arrays:
            h.update((np.round(array, 5) + 0.0).tobytes() if array.dtype.kind == "f" else array.tobytes())

    for arm in (arm for arm in family.arms if arm != "reward"):  # its batches depend on the model
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
    "rewrite-0": "be65dba3de4f6b6f",
    "rewrite-1": "f2bdb009f38e1dae",
    "urns-0": "656140a34d707e03",
    "worked_parity-0": "543396491ebb1640",
    "worked_parity-1": "a64a5e95133116ec",
}


@pytest.mark.parametrize("spec", CASES)
def test_tasks_and_sequences_are_what_they_were_when_this_was_written(spec: dict[str, Any], request: Any) -> None:
    """When one moves, raise the version of its family."""
    assert digest(family_from(spec)) == PINNED[request.node.callspec.id]
