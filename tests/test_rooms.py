"""The room rules: who may import what, and what loading must not cost."""

from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


ORDER = {
    "orchestrator": (
        ("api",), ("cli",), ("console",), ("run",), ("plan",), ("record",), ("report",), ("analysis",), ("study",), ("stats",),
        ("files", "formatting", "terminal"),
    ),
    "trainers": (
        ("__main__",), ("train",), ("objectives", "telemetry"), ("engine",), ("sampling", "weights"), ("models", "checkpoint"), ("fit",), ("budget",),
        ("spec",), ("tasks",), ("data",), ("shapes",), ("records", "streams", "durable"),
    ),
}  # fmt: skip
"""The rooms of each package, top to bottom. A room uses only rooms below its own, and none that stands beside it."""

ALLOWED = {
    "ray": {"orchestrator/run"},
    "mlflow": {"orchestrator/record"},
    "transformers": {"trainers/models/hf.py"},
    "peft": {"trainers/models/hf.py"},
    "tokenizers": {"trainers/data"},
    "datasketch": {"trainers/data"},
    "pyarrow.dataset": {"trainers/data"},
    "deepspeed": {"trainers/engine"},
    "torch": {
        "trainers/engine",
        "trainers/models",
        "trainers/objectives",
        "trainers/checkpoint.py",
        "trainers/sampling.py",
        "trainers/train.py",
        "trainers/telemetry.py",
    },
    "typer": {"orchestrator/cli.py", "orchestrator/api.py"},
}
"""Libraries that few may import, at module level or inside a function: the folders or files that may."""

MOST_LINES = 600


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, by its full name; and is that inside a function? TYPE_CHECKING blocks count as well."""
    tree = ast.parse(path.read_text())
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append((f"{'.' * node.level}{node.module or ''}", id(node) in inside))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{alias.name}", id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            found += [(str(arg.value), id(node) in inside) for arg in node.args if isinstance(arg, ast.Constant)]
    return found


def imported_by(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.split(".")[0] for name, _ in imports_of(path)}


def files_of(folder: str, root: Path = ROOT) -> list[Path]:
    return sorted((root / folder).rglob("*.py"))


def modules(root: Path) -> dict[str, Path]:
    """Every module of the two packages by its full name."""
    found = {}
    for path in (path for package in ORDER for path in files_of(package, root)):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, wherever in the file."""
    known = modules(root)

    def target(name: str) -> str | None:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or None

    return {
        module: {to for name, _ in imports_of(path) if (to := target(name)) is not None} - {module}
        for module, path in known.items()
    }


def floor_of(module: str) -> tuple[str, str, int] | None:
    """Package, room and floor from the top; None for a package itself."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return next(((package, room, i) for i, rooms in enumerate(ORDER[package]) if room in rooms), None) if room else None


def breaches(root: Path) -> list[str]:
    """Arrows that run up, rooms that stand nowhere, libraries where they may not be, circles and files that are too long."""
    found = []
    graph = arrows(root)
    for module, others in graph.items():
        here = floor_of(module)
        if here is None and "." in module:
            found.append(f"{module}: in no room")
        for other in sorted(others):
            there = floor_of(other)
            if here is None or there is None:
                continue
            if here[0] == "trainers" and there[0] == "orchestrator":
                found.append(f"{module} imports {other}: trainers knows no orchestrator")
            elif here[0] == there[0] and here[1] != there[1] and here[2] >= there[2]:
                found.append(f"{module} imports {other}: a room above")
    for package in ORDER:
        for path in files_of(package, root):
            name = path.relative_to(root).as_posix()
            named = {name for name, _ in imports_of(path)}
            for library in sorted(lib for lib in ALLOWED if any(f"{name}.".startswith(f"{lib}.") for name in named)):
                if not any(name == place or name.startswith(f"{place}/") for place in ALLOWED[library]):
                    found.append(f"{name} imports {library}")
            found += [
                f"{name} imports {relative} by a relative name"
                for relative in sorted(named)
                if relative.startswith(".")
            ]
            if (n := len(path.read_text().splitlines())) > MOST_LINES:
                found.append(f"{name}: {n} lines")
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as circle:
        found.append(f"circle: {' -> '.join(circle.args[1])}")
    return found


def test_every_room_uses_only_rooms_below_it_and_no_file_is_crowded() -> None:
    assert breaches(ROOT) == []


PLANTED = {
    "a room above": ("orchestrator/stats/measures.py", "from orchestrator.study.schema import Study", "a room above"),
    "hidden behind TYPE_CHECKING": (
        "orchestrator/analysis/results.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from orchestrator.analysis.findings import Findings",
        "circle",
    ),
    "a circle in one room": (
        "orchestrator/study/schema.py", "def late():\n    from orchestrator.study.reader import load", "circle"),
    "MLflow": ("orchestrator/console/ui.py", "from mlflow import log_metric", "imports mlflow"),
    "torch in what plan loads": ("trainers/fit/memory.py", "import torch", "imports torch"),
    "by name": ("trainers/spec.py", "x = __import__('ray')", "imports ray"),
    "a relative import": ("orchestrator/stats/measures.py", "from . import boundaries", "a relative name"),
    "the reverse": ("trainers/train.py", "from orchestrator import formatting", "knows no orchestrator"),
    "a crowded file": ("orchestrator/formatting.py", "x = 1\n" * 600, " lines"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_breach_is_found(kind: str, tmp_path: Path) -> None:
    """The rules can fail: each of these, planted in a copy, is found, and nothing else is."""
    name, text, said = PLANTED[kind]
    for package in ORDER:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "templates"))
    with open(tmp_path / name, "a") as file:
        file.write(f"\n{text}\n")
    found = breaches(tmp_path)
    assert found and all(said in line or "circle" in line for line in found), found


@pytest.mark.parametrize(
    "module",
    ["trainers.fit.memory", "trainers.checkpoint", "trainers.__main__", "orchestrator.cli", "orchestrator.plan.price"],
)
def test_loading_what_plan_needs_loads_no_torch_and_no_scipy(module: str) -> None:
    heavy = "{'torch', 'deepspeed', 'ray', 'mlflow', 'scipy'}"
    script = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", files_of("orchestrator/stats"), ids=lambda path: path.name)
def test_statistics_know_arrays_only(path: Path) -> None:
    libraries = {"numpy", "scipy", "statsmodels"}
    plain = {"__future__", "math", "collections", "dataclasses", "functools", "importlib", "typing", "warnings"}
    assert imported_by(path) <= plain | libraries | {"orchestrator"}


@pytest.mark.parametrize("path", files_of("orchestrator/report"), ids=lambda path: path.name)
def test_the_report_computes_no_statistic_of_its_own(path):
    assert not imported_by(path) & {"scipy", "statsmodels", "torch", "ray", "mlflow"}
    assert not [name for name, _ in imports_of(path) if name.startswith("orchestrator.stats")]


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
