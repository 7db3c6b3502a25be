"""Variants of a study: what they change, what they are called, what is refused, and that tables keep them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from orchestrator.analysis.findings import find
from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError
from trainers import budget
from trainers.shapes import PRESETS, of_depth
from trainers.streams import stream

TWO = """\
study: two
version: 1
question: Does width pay?
family: {name: cipher, n_symbols: 8, n_pairs: 12}
axes:
  arm: [answer]
  variant:
    narrow: {}
    wide:
      model: {d_model: 128}
      training: {base_d_model: 64}
  n_tasks: [4, 64]
  compute_flops: [1e11, 4e11]
  replicates: 2
evaluation: {points_per_decade: 2, n_sequences: 16}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "two.yaml"
    path.write_text(text)
    return str(path)


def test_variants_are_crossed_with_all_else_and_change_what_they_say(tmp_path: Path) -> None:
    study = load(written(tmp_path, TWO))
    assert list(study.conditions) == ["narrow", "wide"] and len(study.trials()) == 2 * 2 * 2 * 2
    by_id = {trial.id: trial for trial in study.trials()}
    narrow, wide = by_id["answer/n4/c1e11/r0/narrow"], by_id["answer/n4/c1e11/r0/wide"]
    assert (narrow.model.d_model, wide.model.d_model) == (64, 128) and wide.training.base_d_model == 64
    assert narrow.fingerprint() != wide.fingerprint()
    steps = [budget.steps_of(t, 4e11).end for t in (narrow, wide)]
    assert steps[0] > 2 * steps[1]  # the same compute, in fewer and larger steps
    assert Study.from_record(study.model_dump(mode="json")) == study


def test_adding_a_variant_is_no_change_of_the_science_and_changing_one_moves_its_fingerprint(tmp_path: Path) -> None:
    study = load(written(tmp_path, TWO))
    more = load(
        written(tmp_path, TWO.replace("    narrow: {}\n", "    narrow: {}\n    deep: {model: {n_layers: 3}}\n"))
    )
    assert study.science() == more.science() and set(study.conditions) < set(more.conditions)
    other = load(written(tmp_path, TWO.replace("d_model: 128", "d_model: 112")))
    assert study.trunk_of("narrow").fingerprint() == other.trunk_of("narrow").fingerprint()
    assert study.trunk_of("wide").fingerprint() != other.trunk_of("wide").fingerprint()


def test_the_preset_or_depth_of_a_variant_goes_before_the_widths_of_the_study_and_leaves_the_rest(
    tmp_path: Path,
) -> None:
    base = "evaluation:"
    stated = "model: {n_layers: 5, d_model: 48, n_heads: 8, d_mlp: 40, conv_kernel: 4}\nevaluation:"
    named = "model: {preset: 0.3m, conv_kernel: 4}\nevaluation:"
    variants = "narrow: {model: {depth: 1}}\n    named: {model: {preset: 0.1m, conv_kernel: 0, n_heads: 2}}"
    for model in (stated, named):
        text = TWO.replace("narrow: {}", variants).replace(base, model).replace("[1e11, 4e11]", "[1e12, 4e12]")
        study = load(written(tmp_path, text))
        of = {condition: study.trunk_of(condition).model for condition in study.conditions}
        assert of["narrow"] == of_depth(1).model_copy(update={"conv_kernel": 4})
        assert of["named"] == PRESETS["0.1m"].model_copy(update={"conv_kernel": 0, "n_heads": 2})
        assert Study.from_record(study.model_dump(mode="json")) == study
    wide = of["wide"]  # changes d_model alone of the study's preset
    assert (wide.n_layers, wide.d_model, wide.n_heads, wide.d_mlp, wide.conv_kernel) == (2, 128, 4, 384, 4)


def test_lines_are_named_by_what_tells_them_apart() -> None:
    both = synthetic.made_up(arm=("answer", "next_token"), variant={"a": {}, "b": {"model": {"conv_kernel": 2}}})
    assert list(both.conditions) == ["answer, a", "answer, b", "next_token, a", "next_token, b"]
    assert list(synthetic.made_up(arm=("answer", "next_token")).conditions) == ["answer", "next_token"]


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("d_model: 128", "d_modle: 128", 10, ["unknown key 'd_modle'", "did you mean 'd_model'"]),
        ("d_model: 128", "d_model: 126", 10, ["d_model 126 is no multiple of n_heads 4"]),
        (
            "d_model: 128",
            "preset: 0.2m",
            10,
            ["axes.variant.wide.model.preset: unknown preset '0.2m'; did you mean '0."],
        ),
        ("d_model: 128", "depth: -1", 10, ["axes.variant.wide.model.depth", "greater than 0"]),
        ("d_model: 128", "preset: 0.3m, depth: 2", 10, ["axes.variant.wide.model", "keep one"]),
        ("model: {d_model: 128}", "modle: {d_model: 128}", 10, ["unknown key 'modle'", "model, training, family"]),
        ("narrow: {}", "narrow: {family: {name: urns}}", 8, ["a variant keeps the family"]),
        ("narrow: {}", "narrow: {family: {n_symbols: 4}}", 12, ["64 tasks given", "has 18 for training in narrow"]),
        ("narrow: {}", "Narrow: {}", 8, ["axes.variant"]),
        ("base_d_model: 64", "warmup_steps: 1000", 1, ["1000 steps of warm-up given", "(wide)"]),
        ("compute_flops: [1e11", "compute_flops: [5e10", 13, ["at least 50 steps", "(wide)"]),
    ],
)
def test_a_variant_that_cannot_be_run_is_refused_at_its_line(
    tmp_path: Path, old: str, new: str, line: int, parts: list[str]
) -> None:
    assert old in TWO
    with pytest.raises(StudyError) as refusal:
        load(written(tmp_path, TWO.replace(old, new)))
    first = str(refusal.value).splitlines()
    assert any(f"two.yaml:{line}:" in one and all(part in one for part in parts) for one in first), refusal.value


def of_variant(study: Study, truth: dict[str, synthetic.Truth]) -> Any:
    """Findings of a made-up study whose variants have different truths."""
    return find(study, *synthetic.of_variants(study, truth))


def test_variants_of_several_sizes_give_a_frontier() -> None:
    """Loss E + A/N^a + B/D^b with the best size in the middle of the grid: it is found between its neighbours."""
    widths = (16, 32, 64, 128, 256)
    study = synthetic.made_up(
        variant={f"d{d}": {"model": {"d_model": d, "d_mlp": 4 * d}} for d in widths},
        n_tasks=(64,),
        compute_flops=(4e12, 1.6e13),
        replicates=3,
    )
    parameters = {condition: _size(study, condition) for condition in study.conditions}

    def truth(condition: str) -> synthetic.Truth:
        def ability(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
            best = parameters["d64"] * (c / 8e12) ** 0.5
            return 0.9 - 0.05 * np.log(parameters[condition] / best) ** 2

        return ability

    found = of_variant(study, {condition: truth(condition) for condition in study.conditions})
    assert [one.verdict for one in found.of("best size")] == ["minimum", "minimum"]
    (growth,) = found.of("growth of the best size")
    assert growth.estimate == pytest.approx(0.5, abs=0.05)
    for one in found.of("best size"):
        assert one.estimate == pytest.approx(parameters["d64"] * (one.compute_flops / 8e12) ** 0.5, rel=0.1)


def _size(study: Study, condition: str) -> int:
    return budget.shape_of(study.trunk_of(condition)).n_parameters


def test_the_compute_that_two_variants_need_is_compared_replicate_by_replicate() -> None:
    """One variant comes at 3e11 FLOPs, the other at 1.2e12: four times the compute, within the looks."""
    study = synthetic.made_up(
        variant={"taught": {}, "untaught": {"model": {"conv_kernel": 2}}},
        n_tasks=(64,),
        compute_flops=(4e11, 4e12),
        replicates=8,
    )

    def comes(at: float) -> synthetic.Truth:
        shift = 2 ** (0.2 * stream("test", "comes", int(at)).standard_normal(8))
        return lambda n, c, r: np.where(c >= at * shift[r], 0.95, 0.05)

    def never(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.full(len(n), 0.05)

    found = of_variant(study, {"taught": comes(3e11), "untaught": comes(1.2e12)})
    (one,) = found.of("compute multiplier")
    assert (one.condition, one.against, one.verdict) == ("untaught", "taught", "rises")
    assert one.low is not None and one.high is not None and 1 < one.low < 4 < one.high
    (back,) = of_variant(study, {"taught": comes(1.2e12), "untaught": comes(3e11)}).of("compute multiplier")
    assert back.verdict == "falls" and back.high is not None and back.high < 1
    (bound,) = of_variant(study, {"taught": comes(3e11), "untaught": never}).of("compute multiplier")
    assert bound.verdict == "rises" and bound.high is None and bound.low is not None and bound.low > 1
    (nobody,) = of_variant(study, {"taught": never, "untaught": never}).of("compute multiplier")
    assert nobody.ends == (None, None)
