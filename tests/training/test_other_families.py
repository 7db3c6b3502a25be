"""A family from another package: one file and an entry point, and studies use it like the ones that come along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, tally
from ruamel.yaml import YAML

from orchestrator.record import provenance
from orchestrator.record.journal import Journal
from orchestrator.study.reader import load

FAMILY = '''
"""echo: a task is a symbol, said over and over. The rule: say the last one again."""

from typing import ClassVar, Literal

import numpy as np

from trainers.streams import keyed_permutation, stream
from trainers.tasks import Batch, ExactFamily, ItemSet, Probe, Reference, register

TINY = 1e-6


@register
class Echo(ExactFamily):
    name: Literal["echo"] = "echo"
    n_symbols: int = 32

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("next_token",)
    headline: ClassVar[str] = "again"
    mixture: ClassVar[str] = "mixture"
    skills: ClassVar[dict[str, str]] = {"again": "say the last symbol again"}
    universe_size = property(lambda self: self.n_symbols)
    n_held_out = property(lambda self: self.n_symbols // 2)
    vocab_size = property(lambda self: self.n_symbols)
    seq_len = property(lambda self: 6)

    def tasks(self, ids):
        return keyed_permutation(self.n_symbols, "echo", "symbols")(ids)

    def _sequences(self, ids):
        symbols = keyed_permutation(self.n_symbols, "echo", "symbols")(ids)
        return np.repeat(symbols[:, None], self.seq_len + 1, axis=1)

    def batch(self, ask, step):
        draw = stream("echo", "batch", ask.replicate, step)
        ids = self.train_ids(ask.replicate, self.draw_tasks(ask, draw, ask.batch_size))
        return Batch(self._sequences(ids), np.ones((len(ids), self.seq_len), dtype=bool))

    def suite_size(self, ask):
        return 2 * ask.n_sequences

    def suite(self, ask):
        n = ask.n_sequences
        seen = self.train_ids(ask.replicate, self.seen_tasks(ask, n))
        return [self._set("held_out", self.held_out_ids(n)), self._set("seen", seen)]

    def _set(self, split, ids):
        tokens = self._sequences(ids)
        target = tokens[:, 1:]
        mask = np.ones(target.shape, dtype=bool)
        references = {
            "uniform": Reference(np.full(target.shape, np.log(self.n_symbols)), np.full(target.shape, 1 / self.n_symbols)),
            "generalizer": Reference(np.full(target.shape, TINY), np.ones(target.shape)),
        }
        parts = {"skill": "again", "split": split, "mask": mask, "target": target, "references": references}
        return ItemSet(tokens=tokens, probes=(Probe(**parts), Probe(**(parts | {"skill": "mixture"}))))
'''

STUDY = """\
study: echoes
version: 1
question: Does it say it again?
family: {name: echo, n_symbols: 24}
axes: {arm: [next_token], n_tasks: [4, 12], compute_flops: [2e9], replicates: 1}
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}
evaluation: {first_flops: 1e9, points_per_decade: 1, n_sequences: 16}
"""
TRIAL = {key: YAML(typ="safe").load(STUDY)[key] for key in ("family", "model", "evaluation")}
TRIAL |= {"arm": "next_token", "n_tasks": 12, "replicate": 0, "compute_flops": 2e9}


def installed(folder: Path, module: str) -> dict[str, str]:
    """The environment of a machine on which another package brings the family."""
    (folder / "echo_family.py").write_text(module)
    info = folder / "echo_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[emergence.families]\necho = echo_family\n")
    (folder / "echoes.yaml").write_text(STUDY)
    project = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), project]), "EMERGENCE_HOME": str(folder / "home")}


def call(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def test_a_family_of_another_package_is_planned_trained_and_examined(tmp_path: Path) -> None:
    environment = installed(tmp_path, FAMILY)
    planned = call(environment, "orchestrator.cli", "plan", str(tmp_path / "echoes.yaml"))
    assert planned.returncode == 0 and "4, 12 of 12" in planned.stdout, planned.stderr
    (tmp_path / "trial.json").write_text(json.dumps(TRIAL))
    trained = call(environment, "trainers", str(tmp_path / "trial.json"))
    assert trained.returncode == 0 and "again" in trained.stdout, trained.stderr


BROKEN = {
    "cannot be imported": (
        "import no_such_module\n",
        "echo_family could not be loaded: ModuleNotFoundError: No module",
    ),
    "leaves the program": ("raise SystemExit(3)\n", "echo_family could not be loaded: SystemExit: 3"),
    "lacks a method": (
        FAMILY.replace("def suite_size", "def size"),
        "FamilyError: Echo lacks suite_size(request: Request) -> int: ",
    ),
    "has no name": (FAMILY.replace("    name:", "    title:"), "FamilyError: Echo has no `name: Literal[...]`"),
    "fails in a property": (
        FAMILY.replace("lambda self: self.n_symbols)\n    n_held", "lambda self: 1 // 0)\n    n_held"),
        "family 'echo' of echo_family fails with ZeroDivisionError",
    ),
    "fails in a method": (
        FAMILY.replace("return 2 * ask", "return 2 * ask.evaluations"),
        "family 'echo' of echo_family fails with AttributeError",
    ),
}


ASK = """\
import contextlib, io, json, sys
from orchestrator.study.reader import load
from orchestrator.study.schema import StudyError
from trainers.__main__ import main

for name in sys.argv[1:]:
    said = []
    try:
        load(f"{name}.yaml")
    except StudyError as problem:
        said.append(str(problem))
    if name != "fails_in_a_method":  # of its evaluations, which the budgets of a trial do not depend on
        with contextlib.redirect_stderr(io.StringIO()) as told:
            assert main([f"{name}.json"]) == 2
        said.append(told.getvalue())
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A machine on which a package brings all of the broken families, each with a study and a trial; and its environment."""
    folder = tmp_path_factory.mktemp("broken")
    environment = installed(folder, FAMILY)
    points = ["[emergence.families]"]
    for how, (module, _) in BROKEN.items():
        name = how.replace(" ", "_")
        assert module != FAMILY
        (folder / f"{name}.py").write_text(module.replace('"echo"', f'"{name}"'))
        (folder / f"{name}.yaml").write_text(STUDY.replace("name: echo", f"name: {name}"))
        (folder / f"{name}.json").write_text(json.dumps(TRIAL | {"family": {"name": name, "n_symbols": 24}}))
        points.append(f"{name} = {name}")
    (folder / "echo_family-1.0.dist-info" / "entry_points.txt").write_text("\n".join(points))
    return folder, environment


def test_a_family_that_is_broken_is_named_to_its_study_and_disturbs_no_other(
    broken: tuple[Path, dict[str, str]],
) -> None:
    """Fails without `LEFT_OUT`, the checks of `register` and `failure_of`: tracebacks, or words to those who did not ask."""
    folder, environment = broken
    other = call(environment, "orchestrator.cli", "plan", "quickstart")
    assert (other.returncode, other.stderr) == (0, "")
    names = [how.replace(" ", "_") for how in BROKEN]
    asked = subprocess.run(
        [sys.executable, "-c", ASK, *names], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert (asked.returncode, asked.stderr) == (0, ""), asked.stderr
    for (how, (_, given)), name, line in zip(BROKEN.items(), names, asked.stdout.splitlines(), strict=True):
        told = json.loads(line)
        assert told[0].startswith(f"{name}.yaml:4: "), told
        assert len(told) == 1 + (how != "fails in a method") and all(len(one.splitlines()) == 1 for one in told), told
        reason = given.replace("echo_family", name).replace("'echo'", f"'{name}'")
        assert all(reason in one and "mend or update" in one for one in told), told
        tally("families of other packages", 1, 1)
    mine = call(environment, "orchestrator.cli", "plan", str(folder / "lacks_a_method.yaml"))
    assert (mine.returncode, mine.stdout) == (2, "") and mine.stderr.count("\n") == 1, mine.stderr


def test_the_list_of_studies_survives_those_whose_families_are_gone(broken: tuple[Path, dict[str, str]]) -> None:
    """Fails with the record of a study read unguarded where all are listed: one study then hides the others."""
    folder, environment = broken
    session = provenance.session_event(load("quickstart"), {})
    families = {how.replace(" ", "_"): how.replace(" ", "_") for how in BROKEN} | {"gone": "gone", "quick": "cipher"}
    for name, family in families.items():
        record = session["study"] | {"study": name, "family": {"name": family}, "primary": None, "skills": []}
        record |= {"axes": record["axes"] | {"arm": ["next_token"], "n_tasks": [4]}}
        journal = Journal(folder / "home" / f"{name}@1")
        journal.append([session | {"study": record}])
        journal.close()
    listed = call(environment, "orchestrator.cli", "status")
    assert (listed.returncode, listed.stderr) == (0, ""), listed.stderr
    assert (
        "quick@1: 0 of " in listed.stdout and "fails_in_a_method@1: 0 of " in listed.stdout
    )  # evaluations alone ask for it
    for name in families.keys() - {"quick", "fails_in_a_method"}:
        (line,) = [line for line in listed.stdout.splitlines() if line.startswith(f"{name}@1: ")]
        assert "cannot be read" in line, line
        tally("families of other packages", 1, 1)
    mine = call(environment, "orchestrator.cli", "status", "gone@1")
    assert (mine.returncode, mine.stdout) == (2, "") and mine.stderr.count("\n") == 1, mine.stderr
    assert "unknown family 'gone'" in mine.stderr


def test_an_entry_point_of_another_name_is_named_with_its_fault(tmp_path: Path) -> None:
    environment = installed(tmp_path, FAMILY.replace("def suite_size", "def size"))
    (tmp_path / "echo_family-1.0.dist-info" / "entry_points.txt").write_text("[emergence.families]\nx = echo_family\n")
    study = str(tmp_path / "echoes.yaml")
    commands = ("orchestrator.cli plan", "orchestrator.cli run", "trainers.tasks.conformance")
    for command, given in zip(commands, (study, study, "echo"), strict=True):
        asked = call(environment, *command.split(), given)
        assert (asked.returncode, asked.stdout, asked.stderr.count("\n")) == (2, "", 1), asked
        assert "entry point x = echo_family" in asked.stderr and "Echo lacks suite_size" in asked.stderr, asked


def test_a_second_family_of_a_name_is_refused_with_the_first(tmp_path: Path) -> None:
    environment = installed(tmp_path, FAMILY)
    (tmp_path / "another.py").write_text(FAMILY)
    asked = call(environment, "trainers.tasks.conformance", "another:Echo")
    assert (asked.returncode, asked.stderr.count("\n")) == (2, 1), asked
    assert "installed entry point" in asked.stderr and "module echo_family" in asked.stderr, asked


def test_a_reference_that_is_not_finite_is_refused_before_a_run_and_by_the_trainer(tmp_path: Path) -> None:
    """Fails without `Probe.not_finite`: the sums of the first evaluation are then no JSON."""
    environment = installed(tmp_path, FAMILY.replace("np.full(target.shape, TINY)", "np.full(target.shape, np.nan)"))
    planned = call(environment, "orchestrator.cli", "plan", str(tmp_path / "echoes.yaml"))
    (tmp_path / "trial.json").write_text(json.dumps(TRIAL))
    trained = call(environment, "trainers", str(tmp_path / "trial.json"))
    assert (planned.returncode, trained.returncode) == (2, 1)
    for line in (planned.stderr, trained.stderr):
        assert line.count("\n") == 1 and all(
            part in line for part in ("'echo'", "'again'", "held_out", "generalizer", "nan")
        )
