"""`python -m trainers`: one trial or trunk alone, from a JSON file, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_train import TINY as TRUNK
from test_train import keyed

from trainers import __main__ as command
from trainers import budget
from trainers.budget import flops_per_step
from trainers.fit.place import Place
from trainers.spec import TrunkSpec
from trainers.train import run_trunk

ROOT = Path(__file__).parents[2]
STEP = flops_per_step(TrunkSpec.model_validate(TRUNK))


def write(folder: Path, content: Any) -> Path:
    path = folder / "trial.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def call(*arguments: Any, path_first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command from the repository, with `path_first` searched before everything installed."""
    start = f"import sys, runpy; sys.path[:0] = {[str(path_first)] if path_first else []!r}; "
    start += "sys.argv[0] = 'trainers'; runpy.run_module('trainers', run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False
    )


def results(lines: str) -> dict[str, Any]:
    """What a file of events says, by key; times, which may differ, left out."""
    return keyed([json.loads(line) for line in lines.splitlines()])


def keys_of(events: Path) -> set[str]:
    return {json.loads(line)["key"] for line in events.read_text().splitlines()}


def test_a_trunk_is_trained_proved_and_resumed(tmp_path, capsys):
    spec = write(tmp_path, TRUNK | {"compute_flops": [80 * STEP, 50 * STEP]})
    events, folder = tmp_path / "events.jsonl", tmp_path / "checkpoints"
    options = ["--events", str(events), "--checkpoints", str(folder)]
    assert command.main([str(spec), "--prove", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    ids = [f"answer/n8/c{n * STEP}/r0" for n in (50, 80)]
    assert [line for line in lines if "equals" in line] == [f"{i}: by itself equals the trunk, to the bit" for i in ids]
    for trial, n in zip(ids, (50, 80), strict=True):
        assert f"{trial}: done after {n} steps, {n * STEP:.4g} FLOPs" in lines
    told = results(events.read_text())
    assert {e["kind"] for e in told.values()} == {"evaluation", "telemetry", "trial", "trunk"}
    assert any("recall(held_out)" in line and line.startswith("step     50") for line in lines)

    events.unlink()
    assert command.main([str(spec), *options]) == 0
    assert "done after 80 steps" in capsys.readouterr().out
    assert results(events.read_text()) == told
    assert sum(e["flops_run"] for e in told.values() if e["kind"] == "trial") == (64 + 10 + 16) * STEP


AT_1E12 = TRUNK | {"compute_flops": 1e12}
BAD = {
    "no_json": ("{", "Expecting"),
    "no_object": ("[1]", "expected a JSON object"),
    "no_budget": (TRUNK, "compute_flops: None given"),
    "no_budgets": (TRUNK | {"compute_flops": []}, "compute_flops: [] given"),
    "budget_true": (TRUNK | {"compute_flops": [True]}, "compute_flops: [True] given"),
    "budget_infinite": ('{"compute_flops": Infinity, ' + json.dumps(TRUNK)[1:], "compute_flops: Input should be a fin"),
    "budget_small": (TRUNK | {"compute_flops": [1e12, 1e4]}, "at least 50 steps"),
    "inner_key": (AT_1E12 | {"model": {"deep": 3}}, "model.deep: Extra inputs"),
    "two_shapes": (AT_1E12 | {"model": {"depth": 2, "preset": "17m"}}, "model: preset '17m' and depth 2"),
    "n_tasks": (AT_1E12 | {"n_tasks": 19}, "n_tasks 19 is beyond the 18 training tasks"),
    "budget_huge": (TRUNK | {"compute_flops": [1e12, 1e300]}, "compute_flops.1: at most 1e30 is allowed; given 1e300"),
    "budget_beyond_floats": (TRUNK | {"compute_flops": 10**400}, "a whole number of 401 digits; at most 40"),
    "many_digits": ('{"n_tasks": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
    "key_twice": ('{"n_tasks": 3, "n_tasks": 4}', "key 'n_tasks' is given twice"),
    "deep": ("[" * 100_000, "trial.json"),
    "long": ('{"arm": "' + "x" * 2_000_000 + '"}', "longer than 1,000,000 characters"),
    "arm_of_two_lines": (AT_1E12 | {"arm": "a\nb" * 5000}, "has no arm 'a b"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_two(case, tmp_path, capsys):
    content, said = BAD[case]
    spec = write(tmp_path, content)
    assert command.main([str(spec)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"{spec}: ") and said in err


def test_a_file_that_is_not_there_is_one_line_and_exit_code_two(tmp_path, capsys):
    assert command.main([str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_input_and_help_are_answered_without_loading_torch(tmp_path):
    """In a process where importing torch raises."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was loaded')")
    bad = call(write(tmp_path, TRUNK | {"compute_flops": 1e3}), path_first=tmp_path)
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1 and "at least 50 steps" in bad.stderr
    helped = call("--help", path_first=tmp_path)
    assert helped.returncode == 0 and "--prove" in helped.stdout
    good = call(write(tmp_path, TRUNK | {"compute_flops": 50 * STEP}), path_first=tmp_path)
    assert good.returncode == 1 and "torch was loaded" in good.stderr  # so the trap does spring


def test_a_proof_that_fails_says_so_and_exits_with_one(tmp_path, capsys, monkeypatch):
    """A learning rate that depends on what was run before is what the proof is there to find."""
    sound, calls = budget.learning_rate_at, 0

    def drifting(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        return sound(*arguments) * (1 + 1e-6 * calls)

    monkeypatch.setattr(budget, "learning_rate_at", drifting)
    spec = write(tmp_path, TRUNK | {"compute_flops": [50 * STEP, 60 * STEP]})
    assert command.main([str(spec), "--prove"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert sum("by itself DIFFERS FROM" in line for line in out) == 2


def test_a_trial_that_diverges_at_once_is_told_like_any_other(capsys):
    """One update of 1e39, beyond float32 and what a file may ask for, and an exam after it that has no numbers to show."""
    trunk = TrunkSpec.model_validate(TRUNK | {"training": {"batch_size": 8, "learning_rate": 1e39}})
    run_trunk(trunk, [50.0 * STEP], Place(), lambda events: command._write(events, None))
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"diverged after 1 steps, {STEP:.4g} FLOPs")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "3"], "8 sequences cannot be shared by 3 workers; 1, 2, 4, 8 can"),
        (["--offload"], "--offload: needs --zero-stage 1, 2 or 3"),
        (["--compile", "--zero-stage", "3"], "--compile: not with --zero-stage 3"),
        (["--prove", "--workers", "2"], "--prove: needs --workers 1"),
        (["--checkpoints", "gopher://x"], "gopher://x: no storage"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(tmp_path, capsys, options, said):
    spec = write(tmp_path, TRUNK | {"compute_flops": 50 * STEP})
    assert command.main([str(spec), *options]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1


# Stops and faults ----------------------------------------------------------------------------------------------------

LONG = TRUNK | {"compute_flops": [400 * STEP, 500 * STEP], "evaluation": {"first_flops": 1e6, "n_sequences": 6, "points_per_decade": 9}}  # fmt: skip


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> dict[str, Any]:
    """What an uninterrupted run of LONG tells."""
    folder = tmp_path_factory.mktemp("golden")
    assert command.main([str(write(folder, LONG)), "--events", str(folder / "events.jsonl")]) == 0
    return results((folder / "events.jsonl").read_text())


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, golden, number, workers):
    """Sent to the process, or to all of its group, once the first line is there. Fails without the handlers, or where workers do not hear of a signal to all."""
    spec, events, folder = write(tmp_path, LONG), tmp_path / "events.jsonl", tmp_path / "checkpoints"
    options = ["--events", str(events), "--checkpoints", str(folder)]
    line = [sys.executable, "-m", "trainers", str(spec), *options, "--workers", str(workers)]
    line += ["--zero-stage", "1"] if workers > 1 else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=ROOT, start_new_session=True, **pipes) as running:
        assert running.stdout.readline().startswith("step")
        (os.kill if workers == 1 else os.killpg)(running.pid, number)
        _, said = running.communicate()
    assert running.returncode == 128 + number, said
    assert said.count("\n") == 1 and "stopped; the same command goes on" in said
    before = len(keys_of(events))
    assert 0 < before < len(golden) and len(list(folder.iterdir())) == 1
    assert command.main([str(spec), *options, "--keep-weights", str(tmp_path / "weights")]) == 0
    found = results(events.read_text()) if workers == 1 else keys_of(events)
    assert found == (golden if workers == 1 else golden.keys())
    assert len(list((tmp_path / "weights").rglob("*.safetensors"))) == 2


def test_training_goes_on_when_nobody_reads_any_more(tmp_path, golden, monkeypatch):
    """Its output is a pipe whose reader is gone. Fails if that ends the run."""
    spec, events, (reader, writer) = write(tmp_path, LONG), tmp_path / "events.jsonl", os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody, contextlib.suppress(BrokenPipeError):
        monkeypatch.setattr(sys, "stdout", nobody)
        assert command.main([str(spec), "--events", str(events)]) == 0
    assert results(events.read_text()) == golden


def test_a_line_of_events_that_was_cut_off_is_ended_before_the_next(tmp_path, golden):
    """Fails if the next line is glued to it."""
    events = tmp_path / "events.jsonl"
    events.write_text('{"kind": "evaluation", "key": "answ')
    assert command.main([str(write(tmp_path, LONG)), "--events", str(events)]) == 0
    torn, rest = events.read_text().split("\n", 1)
    assert torn.endswith('"answ') and results(rest) == golden


def test_checkpoints_that_cannot_be_written_are_one_line_and_exit_code_one(tmp_path, capsys, monkeypatch):
    """The folder is a file by the time of the save."""
    folder, sound = tmp_path / "checkpoints", command.check_writable

    def then_blocked(place: str) -> None:
        sound(place)
        folder.rmdir()
        folder.write_text("in the way")

    monkeypatch.setattr(command, "check_writable", then_blocked)
    spec = write(tmp_path, TRUNK | {"compute_flops": 50 * STEP})
    assert command.main([str(spec), "--checkpoints", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be written" in err and str(folder) in err
