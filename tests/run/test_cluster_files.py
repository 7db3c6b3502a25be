"""The files for `ray up` and `ray submit`: Ray's own checks, and the commands that each machine would be given.

Ray has no dry run. Here Ray's own updater renders its commands and a recorder takes them in place of ssh. What the
commands then do, `make test-cluster` sees on machines.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # as Ray reads them
from ray.autoscaler._private.updater import NodeUpdater
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_provider import NodeProvider

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster.local.yaml")


def prepared(name: str) -> dict[str, Any]:
    """The file as Ray takes it: its defaults filled in, its own checks passed."""
    config = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    validate_config(config)
    return config


class Recorder(NodeProvider, CommandRunnerInterface):
    """A machine that writes down what it is told. Ray's updater asks its provider for tags and its runner to run."""

    def __init__(self, config: dict[str, Any]) -> None:
        NodeProvider.__init__(self, config["provider"], config["cluster_name"])
        self.lines: list[str] = []
        self.copied: dict[str, str] = {}

    def get_command_runner(self, *_: Any, **__: Any) -> CommandRunnerInterface:
        return self

    def is_terminated(self, node_id: str) -> bool:
        return False

    def node_tags(self, node_id: str) -> dict[str, str]:
        return {}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        pass

    def run(self, cmd: str | None = None, *_: Any, environment_variables: dict | None = None, **__: Any) -> str:
        self.lines.append(cmd or "")
        return ""

    def run_rsync_up(self, source: str, target: str, options: Any = None) -> None:
        self.copied[target] = source

    def run_init(self, **_: Any) -> None:
        pass


def told(name: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    """What `ray up` would copy to a `head` or a `worker`, and run on it, in order."""
    (tmp_path / ".ray").mkdir(exist_ok=True)
    (tmp_path / ".ray" / "auth_token").write_text("a token")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    config = prepared(name)
    machine = Recorder(config)
    NodeUpdater(
        node_id="machine",
        provider_config={"type": "recorder"},
        provider=machine,
        auth_config=config["auth"],
        cluster_name=config["cluster_name"],
        file_mounts=config["file_mounts"],
        initialization_commands=config["initialization_commands"],
        setup_commands=config[f"{kind}_setup_commands"],
        ray_start_commands=config[f"{kind}_start_ray_commands"],
        runtime_hash="",
        file_mounts_contents_hash="",
        is_head_node=kind == "head",
        rsync_options={"rsync_exclude": config["rsync_exclude"]},
    ).run()
    return machine


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_each_machine_is_given_code_token_environment_and_then_one_ray(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = told(name, kind, monkeypatch, tmp_path)
    assert machine.copied["~/.ray/auth_token"] == str(tmp_path / ".ray" / "auth_token")
    made, written, stopped, started = (
        next(i for i, line in enumerate(machine.lines) if words in line)
        for words in ("make install", "cat > ~/.emergence_env", "ray stop", "ray start")
    )
    assert made < written < stopped < started == len(machine.lines) - 1
    start = machine.lines[started]
    assert "--disable-usage-stats" in start
    if kind == "head":
        assert {"--head", "--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1"} <= set(start.split())
    else:
        assert "--address=$RAY_HEAD_IP:6379" in start and "--num-cpus" not in start


@pytest.mark.parametrize("name", FILES)
def test_the_environment_file_is_a_shell_script_that_says_where_things_are_kept(name: str, tmp_path: Path) -> None:
    write = next(line for line in prepared(name)["setup_commands"] if ".emergence_env <<" in line)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    # As Ray wraps it: inside brackets, after other commands.
    subprocess.run(["bash", "-c", f"true && ({write})"], env=environment, check=True)
    shown = subprocess.run(
        ["bash", "-ec", ". ~/.emergence_env && env"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    found = dict(line.partition("=")[::2] for line in shown.splitlines())
    assert found["EMERGENCE_HOME"] == f"{tmp_path}/emergence"
    assert found["EMERGENCE_STORAGE"] in ("s3://BUCKET/emergence", "SHARED_FOLDER")
    assert found["PATH"] == f"{tmp_path}/emergence-lab/.venv/bin:/usr/bin:/bin"
    assert found["RAY_ADDRESS"] == "auto" and found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0" and int(found["RAY_JOB_STOP_WAIT_TIME_S"]) > 3


@pytest.mark.parametrize("name", FILES)
def test_setting_a_machine_up_twice_adds_to_its_profile_once(name: str, tmp_path: Path) -> None:
    lines = [c for c in prepared(name)["setup_commands"] if ".profile" in c or "~/sweeps" in c]
    (tmp_path / "emergence-lab" / "sweeps").mkdir(parents=True)
    for _ in range(2):
        for line in lines:
            subprocess.run(
                ["bash", "-c", f"({line})"], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True
            )
    assert (tmp_path / ".profile").read_text() == ". ~/.emergence_env\n"
    assert (tmp_path / "sweeps").resolve() == tmp_path / "emergence-lab" / "sweeps"


def test_what_is_copied_is_enough_to_install_the_project(tmp_path: Path) -> None:
    copied = tmp_path / "emergence-lab"
    copied.mkdir()
    mounts, others = (yaml.safe_load((ROOT / name).read_text())["file_mounts"] for name in FILES)
    assert mounts == others
    for target, source in mounts.items():
        if target.startswith("~/emergence-lab/"):
            path, place = ROOT / source, copied / target.removeprefix("~/emergence-lab/")
            if path.is_dir():
                shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(path, place)
    rules = subprocess.run(["make", "-n", "install"], cwd=copied, check=True, capture_output=True, text=True).stdout
    assert "torch==" in rules and "--editable" in rules
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run(command, cwd=copied, check=True)
    (wheel,) = copied.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(wheel, unpacked, "zip")
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert all((unpacked / package.replace(".", "/")).is_dir() for package in packages)


@pytest.mark.parametrize("name", FILES)
def test_the_commands_in_the_head_of_the_file_name_that_file_and_what_is_there(name: str) -> None:
    comment = "".join(line for line in (ROOT / name).read_text().splitlines(True) if line.startswith("#"))
    commands = re.findall(r"#   (ray (?:up|submit|rsync-up|down) .*)", comment)
    assert [c.split()[1] for c in commands] == ["up", "submit", "rsync-up", "down"]
    assert all(name in c.split() for c in commands)
    for path in re.findall(r"(?:orchestrator|sweeps)/\S+\.(?:py|yaml)", comment):
        assert (ROOT / path).exists(), path
