"""What decides a result, its fingerprint and its id; and what a spec refuses."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainers import spec
from trainers.records import short_number
from trainers.spec import TrialSpec, TrunkSpec
from trainers.tasks import Cipher

CIPHER: dict[str, Any] = {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 64, "replicate": 0}
URNS: dict[str, Any] = {
    "family": {"name": "urns"},
    "arm": "next_token",
    "n_tasks": 16,
    "replicate": 3,
    "model": {"n_layers": 1, "n_heads": 1},
    "training": {"batch_size": 64, "learning_rate": 5e-4, "schedule": "constant", "beta2": 0.999},
}

PAIRS = [
    ("permutation", "noise"),
    ("rms", "layer"),
    ("rotary", "learned"),
    ("wsd", "constant"),
    ("fp32", "bf16"),
    ("answer", "next_token"),
]
OTHER_WORDS = dict(PAIRS) | {there: here for here, there in PAIRS}
"""Another allowed value for each word that a spec holds; a new one must be added here, or the walk below fails."""


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths to all values of nested dictionaries."""
    if not isinstance(value, dict):
        return [path]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]


def at(record: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        record = record[key]
    return record


def changed(record: dict[str, Any], path: tuple[str, ...]) -> TrunkSpec:
    """A valid spec that differs from `record` at `path` alone."""
    old = at(record, path)
    others = [128] if old is None else [OTHER_WORDS[old]] if isinstance(old, str) else [old * 2, old + 1, old / 2]
    for new in others:
        other = copy.deepcopy(record)
        at(other, path[:-1])[path[-1]] = new
        try:
            found = TrunkSpec.model_validate(other)
        except ValidationError:
            continue
        if at(found.model_dump(), path) != old:
            return found
    raise AssertionError(f"no other valid value found for {path}")


# Fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprints_are_what_they_were_when_this_was_written():
    """When one moves without a reason, old studies can no longer be resumed; with a reason, raise a version."""
    assert TrunkSpec.model_validate(CIPHER).fingerprint() == "440c7a86a082fe8b2820"
    assert TrunkSpec.model_validate(URNS).fingerprint() == "259373048b771e6f37d4"
    compose = {"family": {"name": "compose"}, "arm": "steps"}  # `max_length` was added later
    assert TrunkSpec.model_validate(CIPHER | compose).fingerprint() == "cb781665afb3da809075"
    assert TrunkSpec.model_validate(CIPHER).trial(1e12).fingerprint() == "3d6098d8f6e2cf765c7d"


@pytest.mark.parametrize("record", [CIPHER, URNS], ids=["cipher", "urns"])
def test_a_change_of_any_field_moves_the_fingerprint(record):
    trunk = TrunkSpec.model_validate(record)
    whole = trunk.model_dump()
    names = {("family", "name"), ("variant",), ("size",)} | ({("arm",)} if len(trunk.family.arms) == 1 else set())
    paths = [path for path in leaves(whole) if path not in names and at(whole, path[:1]) is not None]
    assert len(paths) >= 20
    prints = {changed(whole, path).fingerprint() for path in paths}
    assert len(prints | {trunk.fingerprint()}) == len(paths) + 1


def test_the_name_of_a_variant_moves_the_id_and_not_the_fingerprint():
    plain = TrunkSpec.model_validate(CIPHER)
    named = TrunkSpec.model_validate(CIPHER | {"variant": "wide"})
    assert named.fingerprint() == plain.fingerprint()
    assert named.id == f"{plain.id}/wide" and named.trial(1e12).id == f"{plain.trial(1e12).id}/wide"
    assert named.trial(1e12).trunk == named
    with pytest.raises(ValidationError, match="variant"):
        TrunkSpec.model_validate(CIPHER | {"variant": "../up"})


def test_a_start_moves_the_fingerprint_by_its_donors_fingerprint_and_flops_and_not_by_its_name():
    start = {"trial": "steps/n64/c1e11/r0", "fingerprint": "440c7a86a082fe8b2820", "flops": 10**11}
    plain, begun = (TrunkSpec.model_validate(CIPHER | more) for more in ({}, {"start": start}))
    moved = [begun, *(begun.model_copy(update={"start": begun.start.model_copy(update=to)}) for to in (
        {"fingerprint": "3d6098d8f6e2cf765c7d"}, {"flops": 10**11 + 1}))]  # fmt: skip
    assert len({trunk.fingerprint() for trunk in (plain, *moved)}) == 4
    renamed = begun.model_copy(update={"start": begun.start.model_copy(update={"trial": "steps/n64/c1e11/r0/plain"})})
    assert renamed.fingerprint() == begun.fingerprint() and begun.trial(1e12).trunk == begun
    assert TrialSpec.model_validate_json(begun.trial(1e12).model_dump_json()) == begun.trial(1e12)


def test_the_versions_of_family_and_trainer_move_the_fingerprint(monkeypatch):
    trunk = TrunkSpec.model_validate(CIPHER)
    before = trunk.fingerprint()
    monkeypatch.setattr(Cipher, "version", Cipher.version + 1)
    newer_family = trunk.fingerprint()
    monkeypatch.setattr(spec, "TRAINER_VERSION", spec.TRAINER_VERSION + 1)
    assert len({before, newer_family, trunk.fingerprint()}) == 3


def test_the_budget_moves_a_trials_fingerprint_and_not_its_trunks():
    trunk = TrunkSpec.model_validate(CIPHER)
    small, large = trunk.trial(1e12), trunk.trial(2e12)
    assert len({small.fingerprint(), large.fingerprint(), trunk.fingerprint()}) == 3
    assert small.trunk == large.trunk == trunk
    assert small.trunk.fingerprint() == trunk.fingerprint()


def test_the_same_spec_written_differently_has_one_fingerprint():
    spelled = {
        "replicate": 0.0,
        "n_tasks": 64.0,
        "training": {"learning_rate": 0.003, "weight_decay": 0, "batch_size": 32.0},
        "model": {},
        "arm": "answer",
        "family": {"n_symbols": 16.0, "name": "cipher"},
    }
    trunk = TrunkSpec.model_validate(CIPHER)
    assert TrunkSpec.model_validate(spelled).fingerprint() == trunk.fingerprint()
    assert trunk.trial(10**12).fingerprint() == trunk.trial(1e12).fingerprint()
    as_json = trunk.trial(1e12).model_dump_json()
    assert TrialSpec.model_validate_json(as_json).fingerprint() == trunk.trial(1e12).fingerprint()


def test_a_place_never_enters_a_spec():
    from trainers.fit.place import Place

    in_the_spec = {key for path in leaves(TrunkSpec.model_validate(CIPHER).trial(1e12).model_dump()) for key in path}
    assert not in_the_spec & Place.model_fields.keys()
    for field, info in Place.model_fields.items():
        with pytest.raises(ValidationError, match=field):
            TrunkSpec.model_validate(CIPHER | {field: info.default})


# Ids -------------------------------------------------------------------------------------------------------------


def test_ids_carry_arm_tasks_compute_and_replicate():
    trunk = TrunkSpec.model_validate(CIPHER | {"n_tasks": 1e12, "replicate": 7})
    assert trunk.id == "answer/n1e12/r7"
    assert trunk.trial(1.5e11).id == "answer/n1e12/c1.5e11/r7"


@pytest.mark.parametrize(
    ("value", "written"),
    [(64, "64"), (1024, "1024"), (100, "100"), (1000, "1e3"), (1e12, "1e12"), (10**12, "1e12"), (1.5e11, "1.5e11")],
)
def test_short_numbers_are_as_a_person_would_write_them(value, written):
    assert short_number(value) == written


@given(st.integers(1, 2**62))
def test_the_short_form_of_a_count_is_exact(value):
    assert Fraction(short_number(value)) == value


@given(st.floats(1e-3, 1e300))
def test_the_short_form_of_a_budget_reads_back_as_the_same_number(value):
    assert float(short_number(value)) == value
    assert set(short_number(value)) <= set("0123456789.e-")


# Strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"n_tasks": "64"}, "n_tasks"),
        ({"n_tasks": True}, "n_tasks"),
        ({"n_tasks": 64.5}, "n_tasks"),
        ({"n_tasks": 0}, "n_tasks"),
        ({"n_tasks": float("nan")}, "n_tasks"),
        ({"replicate": -1}, "replicate"),
        ({"n_task": 64}, "n_task"),
        ({"compute_flops": 1e12}, "compute_flops"),
        ({"arm": 3}, "arm"),
        ({"arm": "steps"}, "has no arm 'steps'; it has answer, next_token"),
        ({"family": "cipher"}, "mapping with 'name'"),
        ({"family": {"name": "cypher"}}, "did you mean 'cipher'"),
        ({"family": {"name": 7}}, "unknown family"),
        ({"family": {"name": "cipher", "n_symbol": 8}}, "n_symbol"),
        ({"family": {"name": "cipher", "n_symbols": 21}}, "n_symbols"),
        ({"family": {"name": "cipher", "answers": "Noise"}}, "answers"),
        ({"model": {"d_model": 30}}, "d_model 30 is no multiple of n_heads 4"),
        ({"model": {"d_model": 12}}, "even head width, not 3"),
        ({"model": {"norm": "batch"}}, "norm"),
        ({"model": {"init_gain": 0}}, "init_gain"),
        ({"training": {"learning_rate": True}}, "learning_rate"),
        ({"training": {"learning_rate": float("inf")}}, "learning_rate"),
        ({"training": {"decay_share": 1.0}}, "decay_share"),
        ({"training": {"beta2": 1.0}}, "must stay below 1"),
        ({"training": {"warmup": 5}}, "warmup"),
        ({"evaluation": {"points_per_decade": 0}}, "points_per_decade"),
        ({"evaluation": []}, "evaluation"),
    ],
)
def test_a_spec_refuses(change, where):
    with pytest.raises(ValidationError, match=where):
        TrunkSpec.model_validate(CIPHER | change)


@pytest.mark.parametrize("missing", ["family", "arm", "n_tasks", "replicate"])
def test_a_spec_refuses_to_guess_what_names_the_trial(missing):
    with pytest.raises(ValidationError, match=missing):
        TrunkSpec.model_validate({k: v for k, v in CIPHER.items() if k != missing})


@pytest.mark.parametrize("flops", ["1e12", True, 0, float("inf"), float("nan"), None])
def test_a_budget_that_is_no_positive_number_is_refused(flops):
    with pytest.raises(ValidationError, match="compute_flops"):
        TrialSpec.model_validate(CIPHER | {"compute_flops": flops})


def test_whole_floats_are_taken_as_the_counts_that_they_are():
    trunk = TrunkSpec.model_validate(CIPHER | {"n_tasks": 1e12, "training": {"warmup_steps": 1e2}})
    assert trunk.n_tasks == 10**12 and type(trunk.n_tasks) is int
    assert trunk.training.warmup_steps == 100 and type(trunk.training.warmup_steps) is int


@pytest.mark.parametrize(
    ("family", "n_train"),
    [
        ({"name": "cipher", "n_symbols": 4}, 18),  # 24 tasks, a quarter held out
        ({"name": "cipher", "n_symbols": 9}, 272_160),  # 362,880, a quarter held out
        ({"name": "cipher", "n_symbols": 10}, 1_814_400),  # from 2^20 tasks on one half is held out
        ({"name": "cipher", "n_symbols": 16}, 10_461_394_944_000),
    ],
)
def test_n_tasks_may_use_up_the_training_tasks_and_no_more(family, n_train):
    assert TrunkSpec.model_validate(CIPHER | {"family": family, "n_tasks": n_train}).n_tasks == n_train
    with pytest.raises(ValidationError, match=f"beyond the {n_train} training tasks of family 'cipher'"):
        TrunkSpec.model_validate(CIPHER | {"family": family, "n_tasks": n_train + 1})


@pytest.mark.parametrize("flops", [10**12, 1e12, 1.5e11])
def test_the_trial_of_a_trunk_is_the_one_that_its_fields_validate_to(flops):
    """`TrunkSpec.trial` checks nothing again; it must not come to another fingerprint for that."""
    trunk = TrunkSpec.model_validate(CIPHER)
    ours, checked = trunk.trial(flops), TrialSpec(**dict(trunk), compute_flops=flops)
    assert ours == checked and ours.fingerprint() == checked.fingerprint() and ours.id == checked.id
    assert ours.model_dump_json() == checked.model_dump_json() and ours.trunk == trunk
