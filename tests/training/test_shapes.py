"""Models by size: against counts made by hand, and the ratio of tokens to parameters that a budget is turned into."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainers.budget import flops_per_step, shape_of
from trainers.shapes import PRESETS, Model, Shape, expanded, of_depth, preset_for, with_preset
from trainers.spec import TrunkSpec


def count(model: Model, vocab_size: int = 256, seq_len: int = 1024) -> int:
    return Shape(model, vocab_size, seq_len).n_parameters


# Shapes and names ------------------------------------------------------------------------------------------------


def test_counts_agree_with_those_made_by_hand():
    """A block: 4 d² of attention, 8 d² of MLP, two norms of d. Outside: a table in, a table out, a norm."""
    assert count(PRESETS["0.1m"]) == 2 * (12 * 64 * 64 + 2 * 64) + 2 * 256 * 64 + 64 == 131_392
    assert count(of_depth(1)) == 12 * 64 * 64 + 2 * 64 + 2 * 256 * 64 + 64 == 82_112
    assert count(PRESETS["124m"]) == 12 * (12 * 768 * 768 + 2 * 768) + 2 * 256 * 768 + 768 == 85_347_072


def test_the_two_known_shapes_have_the_size_of_their_name_with_gpt2s_vocabulary_in_one_shared_table():
    for name, millions in (("124m", 124), ("350m", 350)):
        model = PRESETS[name]
        one_table = count(model, 50_257) - 50_257 * model.d_model
        assert one_table / 1e6 == pytest.approx(millions, rel=0.015)


def test_the_other_names_say_the_parameters_at_256_tokens():
    for name, model in PRESETS.items():
        if name not in ("124m", "350m"):
            said = float(name.removesuffix("m"))
            assert abs(count(model) / 1e6 - said) <= 0.05 * max(1.0, said), name


@given(st.integers(1, 60))
def test_every_depth_is_a_valid_model_larger_than_the_one_before(depth):
    model = of_depth(depth)
    assert (model.n_layers, model.d_model, model.d_mlp) == (depth, 64 * depth, 256 * depth)
    assert (model.d_model // model.n_heads) % 16 == 0
    assert depth < 4 or model.d_model // model.n_heads == 64
    assert count(model) < count(of_depth(depth + 1))


def test_a_model_without_a_block_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        of_depth(0)


def test_every_preset_and_depth_is_the_model_that_it_stands_for_in_a_spec():
    for name, model in PRESETS.items():
        assert Model.model_validate({"preset": name}) == model
    for depth in (1, 3, 4.0, 12):
        assert Model.model_validate({"depth": depth}) == of_depth(int(depth))
    spec = {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 8, "replicate": 0}
    assert TrunkSpec.model_validate(spec | {"model": {"preset": "124m"}}).model == PRESETS["124m"]


def test_keys_beside_a_preset_go_before_it():
    model = Model.model_validate({"preset": "124m", "conv_kernel": 4, "norm": "layer", "d_mlp": 64})
    assert model == PRESETS["124m"].model_copy(update={"conv_kernel": 4, "norm": "layer", "d_mlp": 64})


def test_a_model_of_no_preset_keeps_its_defaults():
    assert Model.model_validate({"preset": None, "depth": None}) == Model()
    assert expanded({"d_model": 32}) == {"d_model": 32}


def test_an_unknown_preset_is_refused_with_the_nearest_and_the_list():
    with pytest.raises(ValidationError) as refusal:
        Model.model_validate({"preset": "124M"})
    (error,) = refusal.value.errors()
    assert error["loc"] == ("preset",) and "did you mean '124m'?" in error["msg"]
    assert ", ".join(PRESETS) in error["msg"]


# From a budget to a size -----------------------------------------------------------------------------------------

ORDER = list(PRESETS)


@given(st.floats(1e12, 1e22), st.sampled_from([0.5, 3.0, 20.0]), st.sampled_from([16, 256, 50_257]))
def test_the_size_found_reads_enough_tokens_and_the_next_one_does_not(flops, least, vocab_size):
    shape = Shape(Model(), vocab_size, 128)

    def ratio(name: str) -> float:
        return shape._replace(model=PRESETS[name]).tokens_per_parameter(flops)

    if ratio("0.1m") < least:
        with pytest.raises(ValueError, match=r"smallest model, 0\.1m"):
            preset_for(shape, flops, least)
        return
    found = preset_for(shape, flops, least)
    assert ratio(found) >= least
    assert found == "350m" or ratio(ORDER[ORDER.index(found) + 1]) < least


def test_what_a_model_has_beside_its_widths_is_kept_and_counted():
    plain, longer = Model(), Model(conv_kernel=64, norm="layer")
    assert with_preset(longer, "0.3m") == PRESETS["0.3m"].model_copy(update={"conv_kernel": 64, "norm": "layer"})
    flops = next(f for f in (2e12 * 1.01**k for k in range(400)) if preset_for(Shape(plain, 16, 128), f, 20) == "0.3m")
    assert preset_for(Shape(longer, 16, 128), flops, 20) == "0.1m"  # its convolution takes FLOPs and parameters


def test_the_ratio_is_that_of_the_steps_that_a_trunk_is_charged_for():
    trunk = TrunkSpec(family={"name": "cipher"}, arm="answer", n_tasks=8, replicate=0, model=of_depth(2))
    family = trunk.family
    seq_len, n_steps = family.length(trunk.arm), 1234
    n_tokens = n_steps * trunk.training.batch_size * seq_len
    expected = n_tokens / Shape(trunk.model, family.vocab_size, seq_len).n_parameters
    found = shape_of(trunk).tokens_per_parameter(n_steps * flops_per_step(trunk))
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_budget_that_a_refusal_names_is_enough():
    with pytest.raises(ValueError, match="times the compute") as refusal:
        preset_for(Shape(Model(), 256, 256), 1e9, 20)
    factor = float(str(refusal.value).split("give ")[1].split(" times")[0])
    assert preset_for(Shape(Model(), 256, 256), 1e9 * factor * 1.01, 20) == "0.1m"
