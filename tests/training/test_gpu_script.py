"""`tests/gpu/run.sh` where there is no GPU: the same code in small, and plain words on what that cannot measure."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NEEDS_A_COMPILER = {
    "tokens_per_second_compiled",
    "compiled_over_eager",
    "compile_seconds",
    "engine_over_plain_compiled",
}


@pytest.fixture(scope="module")
def measure() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("measure", ROOT / "tests" / "gpu" / "measure.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report and the lines of one run, of a copy of trainers/ and tests/gpu/ and nothing else: so it will travel."""
    there = tmp_path_factory.mktemp("copy")
    for folder in ("trainers", "tests/gpu"):
        shutil.copytree(ROOT / folder, there / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = there / "gpu.json"
    command = [
        str(there / "tests/gpu/run.sh"),
        *["--device", "cpu", "--no-compile", "--curve-steps", "30", "--out"],
        str(out),
    ]
    environment = os.environ | {"PYTHON": sys.executable}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(out.read_text()), run.stdout


def test_what_was_not_measured_is_null_and_named_and_nothing_else(ran):
    report, _ = ran
    missing = {name for name, value in report["figures"].items() if value is None}
    assert missing == report["not_measured"].keys() > NEEDS_A_COMPILER and report["failed"] == {}
    for name, why in report["not_measured"].items():
        assert why == ("left out with --no-compile" if name in NEEDS_A_COMPILER else "no GPU")


def test_what_was_measured_is_finite_and_plausible(ran):
    figures = {name: value for name, value in ran[0]["figures"].items() if value is not None}
    assert all(math.isfinite(value) for value in figures.values())
    assert 0 < figures["mfu_causal"] < figures["mfu"] < 1
    assert 1e-3 < figures["matmul_tflops"] < 100
    assert figures["tokens_per_second"] == figures["tokens_per_second_eager"] > 0
    assert 0.02 < figures["engine_over_plain_eager"] < 5
    assert 0 < figures["step_estimate_gb"] < figures["trunk_estimate_gb"] < 1


def test_engine_and_plain_loop_train_the_same_and_reordered_sums_hardly_move_a_loss(ran):
    """bf16 does move one: else nothing was multiplied in it."""
    report, _ = ran
    figures, curves = report["figures"], report["details"]["curves"]
    assert figures["loss_engine_to_plain_nats"] <= 1e-6
    assert figures["reordered_max_nats"] < 1e-4 < figures["bf16_to_fp32_max_nats"] < 0.1
    assert curves["fp32"][-1] < curves["fp32"][0] - 0.5


def test_every_figure_has_its_line_and_no_aim_is_judged_without_a_gpu(ran, measure):
    report, lines = ran
    told = lines.splitlines()
    for name, figure in measure.FIGURES.items():
        (line,) = [
            line
            for line in told
            if f"  {figure.what}" in line and line.split("  " + figure.what)[1][:2] in ("", ": ", " (")
        ]
        assert ("not measured" in line) == (report["figures"][name] is None), line
    assert all(aim["held"] is None for aim in report["aims"].values())
    assert "Traceback" not in lines and "no GPU" in told[0]


# What a GPU would bring, from figures made by hand -----------------------------------------------------------------


def test_utilisation_is_the_flops_of_a_second_by_the_measured_peak(measure):
    """1,000 tokens a second, 2e9 FLOPs for each 100 of them: 2e10 a second, of a peak of 1e11."""
    speed = {"tokens_per_second": 1000.0, "tokens_per_step": 100, "flops_per_step": 2e9, "flops_per_step_causal": 1.5e9}
    found = measure._derived({"products": {"matmul_tflops": 0.1}, "speed": speed})
    assert found["mfu"] == pytest.approx(0.2) and found["mfu_causal"] == pytest.approx(0.15)
    assert "mfu" not in measure._derived({"speed": speed})


def test_attention_at_half_is_what_a_causal_mask_leaves_but_for_the_diagonal(measure):
    """Counted pair by pair: T (T + 1) / 2 of T² pairs are seen, 2 products of d each, forward and twice that backward."""
    model, T, B = measure.PRESETS["0.1m"], 64, 4
    trunk = measure._trunk(model, 256, T, B)
    found = measure._of_seconds(trunk, {"engine_eager": [1.0], "plain_eager": [2.0]})
    unseen = T * (T - 1) // 2
    by_hand = 3 * B * model.n_layers * unseen * 2 * 2 * model.d_model
    assert found["flops_per_step"] - found["flops_per_step_causal"] == pytest.approx(by_hand, rel=2 / T)
    assert found["tokens_per_second"] == B * T and found["engine_over_plain_eager"] == 2


def test_a_part_that_failed_leaves_null_with_its_reason_and_others_alone(measure):
    options = argparse.Namespace(device="cpu", preset=None, batch_size=None, curve_steps=None, no_compile=False)
    report = measure._report(options, {"products": {"matmul_tflops": 0.1}}, {"speed": "RuntimeError: lost"})
    assert report["figures"]["matmul_tflops"] == 0.1
    assert {v for k, v in report["figures"].items() if k != "matmul_tflops"} == {None}
    for name in ("mfu", "tokens_per_second", "engine_over_plain_eager"):
        assert report["not_measured"][name] == "part 'speed' failed: RuntimeError: lost"
