"""The room rules: who may import what, and what loading must not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported_by(path: Path) -> set[str]:
    """Top-level packages that a file imports, at module level or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            found |= {str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files_of("trainers"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_trainers_knows_no_ray_no_mlflow_and_no_study(path):
    assert not imported_by(path) & {"ray", "mlflow", "orchestrator"}


def test_only_the_modules_that_train_import_torch_and_deepspeed():
    heavy = {p.name for p in files_of("trainers") if imported_by(p) & {"torch", "deepspeed"}}
    assert heavy == {"model.py", "checkpoint.py", "engine.py", "train.py", "workers.py"}


@pytest.mark.parametrize(
    "module",
    [
        "trainers",
        "trainers.spec",
        "trainers.tasks",
        "trainers.budget",
        "trainers.streams",
        "trainers.checkpoint",
        "trainers.__main__",
        "orchestrator.cli",
    ],
)
def test_loading_a_spec_loads_no_torch(module):
    script = f"import sys, {module}; print(sorted({{'torch', 'deepspeed', 'ray', 'mlflow'}} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_ray_is_imported_by_the_runner_and_what_it_was_split_into_and_mlflow_by_the_record_only():
    users = {
        package: {p.name for p in files_of("orchestrator") if package in imported_by(p)}
        for package in ("ray", "mlflow")
    }
    assert users == {
        "ray": {"run.py", "machines.py", "admission.py", "together.py", "network.py"},
        "mlflow": {"record.py"},
    }


@pytest.mark.parametrize("path", files_of("orchestrator/stats"), ids=lambda path: path.name)
def test_statistics_know_arrays_only(path):
    libraries = {"numpy", "scipy", "statsmodels", "sklearn", "diptest"}
    assert (
        imported_by(path)
        <= {"__future__", "math", "collections", "dataclasses", "functools", "typing", "warnings", "orchestrator"}
        | libraries
    )
    source = path.read_text()
    assert "orchestrator." not in source.replace("orchestrator.stats", "")


@pytest.mark.parametrize("path", files_of("orchestrator/report"), ids=lambda path: path.name)
def test_the_report_computes_no_statistic_of_its_own(path):
    assert not imported_by(path) & {"scipy", "statsmodels", "sklearn", "diptest", "torch", "ray", "mlflow"}


def test_no_file_of_the_project_names_a_path_of_one_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git work tree")
    suspicious = ("/" + "home/", "/" + "root/", "/" + "Users/", "/" + "work/")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".j2", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not [mark for mark in suspicious if mark in text], name
