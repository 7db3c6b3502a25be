"""What users of other tools would write first, in a study and on the command line: each guess gets the line that helps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_cli import inside, refused
from test_study import GOOD, written

from orchestrator.study.guesses import MEANT
from orchestrator.study.reader import load
from orchestrator.study.schema import StudyError

TOP, MODEL, AXES = "model:", "  d_model: 64", "  replicates: 2"
GUESSES = [  # (what stands there, what is written, what the line must name)
    (TOP, "training: {lr: 1e-3}\nmodel:", "training.learning_rate"),
    (TOP, "compute_tokens: 1e9\nmodel:", "key of axes"),
    (TOP, "tokens: 1e9\nmodel:", "axes.compute_flops"),
    (TOP, "epochs: 3\nmodel:", "axes.compute_flops"),
    (TOP, "training: {max_steps: 1000}\nmodel:", "axes.compute_flops"),
    (TOP, "device: cuda\nmodel:", "--device cuda"),
    (TOP, "n_trials: 20\nmodel:", "axes"),
    (TOP, "sampler: tpe\nmodel:", "axes"),
    (TOP, "defaults: [_self_]\nmodel:", "axes.variant"),
    (TOP, "num_fewshot: 5\nmodel:", "docs/families.md"),
    (TOP, "learning_rate: 1e-3\nmodel:", "'learning_rate' is a key of training"),
    (TOP, "model.depth: 4\nmodel:", "model: {depth: 4}"),
    (TOP, "output_dir: out\nmodel:", "EMERGENCE_HOME"),
    (TOP, "optimizer: {lr: 1e-3}\nmodel:", "AdamW"),
    ("model:\n  d_model: 64", "model: gpt2", "preset: 124m"),
    (MODEL, "  hidden_size: 64", "model.d_model"),
    (AXES, "  seeds: 3", "axes.replicates"),
    (AXES, "  n_seeds: 3", "axes.replicates"),
    (AXES, "  replicates: [0, 1, 2]", "replicates: 3"),
    ("n_tasks: [4, 1e12]", "n_tasks: 64", "n_tasks: [64]"),
    ("[1e11, 8e11]", "1e12", "compute_flops: [1e12]"),
    ("compute_flops: [1e11, 8e11]", "epochs: [1, 2]", "axes.compute_flops"),
    ("family:\n  name: cipher\n  n_symbols: 16", "family: cipher", "{name: cipher}"),
    ("study: good", "name: good", "write study"),
]


@pytest.mark.parametrize(("there", "written_instead", "named"), GUESSES, ids=[guess[1] for guess in GUESSES])
def test_a_guess_in_a_study_is_refused_in_one_line_with_what_is_meant(
    there: str, written_instead: str, named: str, tmp_path: Path
) -> None:
    assert there in GOOD
    with pytest.raises(StudyError) as refusal:
        load(written(tmp_path, GOOD.replace(there, written_instead, 1)))
    assert named in str(refusal.value) and len(str(refusal.value).splitlines()) == 1, refusal.value


LISTS = [
    (TOP, "training: {learning_rate: [1e-3, 3e-3]}\nmodel:", "", ("training", "learning_rate", [1e-3, 3e-3])),
    (TOP, "training: {lr: [1e-3, 3e-3]}\nmodel:", "", ("training", "learning_rate", [1e-3, 3e-3])),
    (AXES, f"{AXES}\n  learning_rate: [1e-3, 3e-3]", AXES, ("training", "learning_rate", [1e-3, 3e-3])),
    (AXES, f"{AXES}\n  variant: {{learning_rate: [1e-3, 3e-3]}}", AXES, ("training", "learning_rate", [1e-3, 3e-3])),
    (MODEL, "  norm: [rms, layer]", MODEL, ("model", "norm", ["rms", "layer"])),
    ("n_symbols: 16", "n_symbols: [16, 17]", "n_symbols: 16", ("family", "n_symbols", [16, 17])),
]


@pytest.mark.parametrize(("there", "guess", "without", "meant"), LISTS, ids=[guess[1] for guess in LISTS])
def test_a_list_of_values_is_answered_by_variants_that_can_be_pasted(
    there: str, guess: str, without: str, meant: tuple[str, str, list[float]], tmp_path: Path
) -> None:
    """Pasted under axes, the offered line makes the study of one condition a value."""
    with pytest.raises(StudyError) as refusal:
        load(written(tmp_path, GOOD.replace(there, guess, 1)))
    (offered,) = re.findall(r"variant: \{.*\}", str(refusal.value).splitlines()[0])
    text = GOOD.replace(there, without or TOP, 1).replace(AXES, f"{AXES}\n  {offered}", 1)
    study = load(written(tmp_path, text))
    part, key, values = meant
    found = [getattr(study.settings(condition)[part], key) for condition in study.conditions]
    assert found == values


OPTIONS = [
    (["--set", "model.depth=4"], "variant: {depth_4: {model: {depth: 4}}}"),
    (["--set=model.depth=4"], "variant: {depth_4: {model: {depth: 4}}}"),
    (["model.depth=4"], "variant: {depth_4: {model: {depth: 4}}}"),
    (["--model.depth", "4"], "variant: {depth_4: {model: {depth: 4}}}"),
    (["+training.lr=1e-3,3e-3"], "learning_rate_3e-3: {training: {learning_rate: 3e-3}}"),
    (["--lr", "1e-3"], "training.learning_rate"),
    (["--seed", "1"], "axes.replicates"),
    (["--n-trials", "20"], "axes"),
    (["--multirun"], "axes.variant"),
    (["--gpus", "2"], "--device cuda"),
    (["--output_path", "out"], "EMERGENCE_HOME"),
    (["trainer.max_epochs=3"], "axes.compute_flops"),
    (["--config-name", "x"], "emergence run FILE"),
]


@pytest.mark.parametrize(("given", "named"), OPTIONS, ids=[" ".join(given) for given, _ in OPTIONS])
def test_an_option_of_another_tool_is_refused_in_one_line_with_what_is_meant(
    given: list[str], named: str, tmp_path: Path
) -> None:
    done = inside("plan", "quickstart", *given, home=tmp_path / "home")
    refused(done, named)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "home").exists()


def test_a_command_of_another_tool_names_ours_and_others_stay_as_they_are(tmp_path: Path) -> None:
    refused(inside("train", "quickstart", home=tmp_path), "emergence run")
    refused(inside("plan", "quickstart", "--no-such-thing", home=tmp_path), "--no-such-thing")


def test_no_guess_hides_a_key_of_ours() -> None:
    """Fails with a key of a study among the names of other tools at the place where it is allowed."""
    for key in ("n_tasks", "learning_rate", "batch_size", "replicates", "compute_flops", "skills", "primary", "place"):
        assert key not in MEANT
