"""docs/families.md: its files, taken from the page, pass the suite, install, plan and train; what is missing or wrong is one line."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from orchestrator.console.checks import UsageProblem, load_study
from trainers.tasks import FAMILIES
from trainers.tasks.conformance import main

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
FILES = dict(re.findall(r"^`([a-z_]+\.(?:py|toml|yaml))`:\n\n```\w+\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
LINE, EXACT = FILES["line_family.py"], FILES["exact_family.py"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, from which modules are imported; what they register is forgotten at the end."""
    before, modules = dict(FAMILIES), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    FAMILIES.clear()
    FAMILIES.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith(("line_family", "exact_family")):
            del sys.modules[name]


def checked(folder: Path, source: str, given: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of the suite on a family of this source, and what it says on standard error."""
    (folder / f"{given.partition(':')[0]}.py").write_text(source)
    importlib.invalidate_caches()
    code = main([given])
    return code, capsys.readouterr().err


def test_the_page_has_the_files_of_which_it_speaks() -> None:
    assert FILES.keys() == {"line_family.py", "exact_family.py", "pyproject.toml", "lines.yaml", "test_exact.py"}


def test_its_package_installs_and_both_families_conform_plan_and_train(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", "site", "."], cwd=tmp_path, check=True)
    project = str(Path(__file__).parents[2])
    paths = os.pathsep.join([str(tmp_path / "site"), project])
    environment = os.environ | {"PYTHONPATH": paths, "EMERGENCE_HOME": str(tmp_path / "home"), "COLUMNS": "150"}

    def call(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    commands = re.findall(r"python -m (trainers\.tasks\.conformance \S+(?: \w+=\S+)*)", PAGE.replace("`", " "))
    assert len(commands) == 4
    for command in commands:
        assert "conforms: 1 arm, 1 skill" in call(*command.split())
    (tested,) = re.findall(r"`(conforms\(.*?\))`", PAGE)
    imports = "from line_family import Line; from trainers.tasks.conformance import conforms"
    (tmp_path / "site" / "own_test.py").write_text(f"{imports}\n{tested}\n")
    call("own_test")
    for family in ("line", "exact_line"):
        assert "Studies do not know it" not in call("trainers.tasks.conformance", family)
        (tmp_path / "lines.yaml").write_text(FILES["lines.yaml"].replace("name: line", f"name: {family}"))
        assert "2, 8, 24 of 3" in call("orchestrator.cli", "plan", "lines.yaml")
        study = YAML(typ="safe").load(FILES["lines.yaml"])
        trial = {"family": study["family"] | {"name": family}, "arm": "answer", "n_tasks": 8, "replicate": 0}
        trial |= {"compute_flops": 1e9, "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32}}
        (tmp_path / "trial.json").write_text(json.dumps(trial | {"evaluation": {"first_flops": 1e9, "n_sequences": 8}}))
        shown = call("trainers", "trial.json")
        assert "solve" in shown and "all_answers" in shown
    small = FILES["lines.yaml"].replace("[2e10, 1e11]", "[1e10]").replace("[2, 8, 24]", "[8]")
    (tmp_path / "lines.yaml").write_text(small.replace("replicates: 2", "replicates: 1"))
    call("orchestrator.cli", "run", "lines.yaml")


NAMES = ("version", "arms", "skills", "headline", "mixture")
REQUIRED = {
    LINE: (*NAMES, "vocab_size", "seq_len", "n_tasks_max", "contents", "batch", "suite", "suite_size"),
    EXACT: ("universe_size", "n_held_out", "tasks"),
}


@pytest.mark.parametrize(("source", "part"), [(s, part) for s, parts in REQUIRED.items() for part in parts])
def test_a_missing_part_is_one_line_that_says_what_is_expected(
    source: str, part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = re.sub(rf"^(    (?:def )?){part}\b(?=[(:])", rf"\1other_{part}", source, count=1, flags=re.MULTILINE)
    assert without != source
    code, said = checked(folder, without, "line_family:Line" if source == LINE else "exact_family:ExactLine", capsys)
    assert code == 2 and len(said.splitlines()) == 1, said
    assert re.search(rf"(Line|ExactLine) lacks (@property )?{part}\b", said), said


WRONG = [  # (file, what is replaced, by what, the part that the line must name)
    (LINE, "at >= 2 * first_pair), (n, 1))", "at >= 2 * first_pair), (n, 1)).astype(int)", "batch(request, step)"),
    (LINE, "return Batch(self.sequences", "return (self.sequences", "batch(request, step)"),
    (LINE, '(request.replicate, places), draw), self.mask', '(request.replicate, places), draw)[:, 1:], self.mask', "batch(request, step)"),
    (LINE, ".reshape(len(ids), -1)", ".reshape(len(ids), -1).astype(np.int32)", "batch(request, step)"),
    (LINE, "(a * x + b) % self.p]", "(a * x + b)]", "batch(request, step)"),
    (LINE, 'stream("line", "batch", request.replicate, step)', "np.random.default_rng()", "batch(request, step)"),
    (LINE, 'stream("line", "batch", request.replicate, step)', 'stream("line", "batch", request.replicate)', "batch(request, step)"),
    (LINE, "return 2 * request.n_sequences", "return request.n_sequences", "suite_size(request)"),
    (LINE, "return 2 * request.n_sequences", "return 2.0 * request.n_sequences", "suite_size(request)"),
    (LINE, "return 2 * request.n_sequences", "return 2 * request.n_evaluations", "suite_size()"),
    (LINE, 'skill="solve", split', 'skill="solved", split', "suite(request)"),
    (LINE, "target=target)\n        return", "target=tokens)\n        return", "probe 'all_answers'"),
    (LINE, "ItemSet(tokens=tokens, probes", "dict(tokens=tokens, probes", "suite(request)"),
    (LINE, 'stream("line", "held out")', 'stream("line", "held out", request.replicate)', "suite(request)"),
    (LINE, "self.n_tasks_max + np.arange(n) %", "np.arange(n) %", "contents(request, split, n_first)"),
    (LINE, "[task.tobytes() for task", "[tuple(task) for task", "contents(request, split, n_first)"),
    (LINE, "    @property\n    def vocab_size", "    def vocab_size", "vocab_size"),
    (LINE, 'headline: ClassVar[str] = "solve"', 'headline: ClassVar[str] = "solv"', "headline"),
    (LINE, '("answer",)', '("answer")', "arms"),
    (LINE, "return 2 * self.n_pairs - 1", "return 2 * self.n_pairs", "batch(request, step)"),
    (EXACT, "codes // self.p + 1, codes % self.p], axis=1)", "codes // self.p + 1, codes % self.p])", "tasks(ids)"),
    (EXACT, "codes // self.p + 1, codes", "codes // self.p // 2 + 1, codes", "tasks(ids)"),
    (EXACT, "np.full(target.shape, np.log(self.p))", "np.full(target.shape, np.inf)", "uniform"),
    (EXACT, "np.full(target.shape, np.log(self.p))", "np.full(target.shape, 0.3)", "'uniform', 0.3"),
    (EXACT, "return Reference(nll, correct)", "return Reference(nll - 1, correct)", "nll_nats of 'generalizer'"),
    (EXACT, "return Reference(nll, correct)", "return Reference(nll, 2 * correct)", "correct of 'generalizer'"),
    (EXACT, "return Reference(nll, correct)", "return Reference(nll, correct[:, ::-1])", "its correct is 0"),
    (EXACT, "return Reference(nll, correct)", "return Reference(nll / (nll > 0), correct)", "'generalizer']: nan at "),
    (EXACT, 'replicate, np.arange(request.n_tasks)))', 'replicate, np.arange(request.n_tasks) + 1))', "memorizer"),
    (EXACT, "self.train_ids(request.replicate, self", "(lambda r, ids: ids)(request.replicate, self", "batch(request, step)"),
    (LINE, '"training tasks", replicate)', '"training tasks", replicate, len(places))', "contents(request, 'seen', n_first)"),
    (LINE, "self.train_ids(request.replicate, places), draw", "self.n_lines - 1 - places, draw", "held out"),
    (LINE, "at >= 2 * first_pair), (n, 1))", "at >= 2 * self.first_pear), (n, 1))", "(line_family.py:"),
    (EXACT, "return self.universe_size // 4", "return self.universe_size", "n_held_out"),
    (EXACT, "return Reference(nll, correct)", "return Reference(nll[:, 1:], correct)", "nll_nats"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "right", "wrong", "part"), WRONG, ids=[f"{w[3]}-{i}" for i, w in enumerate(WRONG)])
def test_a_wrong_part_is_one_line_a_breach_and_never_a_traceback(
    source: str, right: str, wrong: str, part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert source.count(right) == 1, source.count(right)
    given = "line_family:Line" if source == LINE else "exact_family:ExactLine"
    code, said = checked(folder, source.replace(right, wrong), given, capsys)
    assert code == 2 and "Traceback" not in said, said
    lines = said.splitlines()
    assert all(line.startswith(f"family '{'line' if source == LINE else 'exact_line'}', ") for line in lines), said
    assert any(part in line for line in lines) and all(": expected " in line for line in lines), said


def test_a_study_with_a_wrong_shape_is_refused_in_one_line_before_anything_starts(folder: Path) -> None:
    """Fails without the check of `load_study`: the trial then fails in a worker, after Ray has started."""
    source = LINE.replace("at >= 2 * first_pair), (n, 1))", "at >= 2 * first_pair), (n, 1)).astype(int)")
    (folder / "line_family.py").write_text(source)
    (folder / "lines.yaml").write_text(FILES["lines.yaml"])
    importlib.import_module("line_family")
    with pytest.raises(
        UsageProblem, match=r"^lines\.yaml: family 'line', batch\(request, step\): .*int64 \(32, 7\)"
    ) as refusal:
        load_study("lines.yaml")
    assert len(str(refusal.value).splitlines()) == 1


def test_the_test_of_the_page_passes_and_can_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "exact_family.py").write_text(EXACT)
    names: dict[str, Any] = {}
    exec(FILES["test_exact.py"], names)
    names["test_the_generalizer_by_counting"]()
    right = names["ExactLine"].predictor
    twice = lambda self, tokens, lines: right(self, tokens, np.concatenate([lines, lines[:1]]))  # noqa: E731
    monkeypatch.setattr(names["ExactLine"], "predictor", twice)
    with pytest.raises(AssertionError):
        names["test_the_generalizer_by_counting"]()


@pytest.mark.parametrize(("given", "part"), [([], "PARAMETER"), (["line_family:Lin"], "Line"), (["line_family:np"], "Line"),
                                             (["line_family:Line", "p=5"], "n_pairs 6"), (["line_family:Line", "q=5"], "'q'")])  # fmt: skip
def test_a_wrong_command_is_one_line(
    given: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "line_family.py").write_text(LINE)
    assert main(given) == 2
    shown = "".join(capsys.readouterr())
    assert part in shown and len(shown.splitlines()) == 1, shown


def test_what_cannot_be_measured_or_checked_is_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "exact_family.py").write_text(EXACT.replace('references["uniform"]', 'references["other"]'))
    assert main(["exact_family:ExactLine"]) == 0
    shown = capsys.readouterr().out
    assert "ability is undefined" in shown and "memory is undefined" not in shown and "trusted" not in shown
