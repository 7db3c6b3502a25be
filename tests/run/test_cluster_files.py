"""The files for `ray up` and `ray submit`: Ray's own checks, and the commands that each machine would be given.

Ray has no dry run. Here Ray's own updater renders its commands and a recorder takes them in place of ssh. What the
commands then do, `make test-cluster` sees on machines.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
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


# Slurm ----------------------------------------------------------------------------------------------------------------

STANDINS = {
    "ray": """[ "$1" = status ] && printf ' 1 node_a\\n 1 node_b\\n 1 node_c\\n'
[ "$2" = --head ] && mkdir -p "$RAY_TMPDIR/ray" && echo 10.0.0.1:6379 > "$RAY_TMPDIR/ray/ray_current_cluster"
true""",
    "srun": "true",
    "scontrol": "true",
    "emergence": """cp "$RAY_AUTH_TOKEN_PATH" token && ls -l "$RAY_AUTH_TOKEN_PATH" > mode
trap 'exit 130' TERM
echo ready > ready
[ "$2" = short.yaml ] && exit 0
while true; do sleep 0.1; done""",
}
"""Commands that write down what they were given, and do what the script waits for."""


def slurm_job(folder: Path, study: str) -> subprocess.Popen[bytes]:
    """The script of a job of three nodes, with stand-ins for its commands; `said` in the folder gets a line for each."""
    (folder / "bin").mkdir()
    for name, body in STANDINS.items():
        path = folder / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $RAY_AUTH_MODE $*" >> {folder}/said\n{body}\n')
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": f"9{os.getpid()}", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_NUM_NODES": "3"}
    slurm["SLURMD_NODENAME"] = "node_a"  # as Slurm names this node; `hostname` may have a domain
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "EMERGENCE_HOME": str(folder / "home")} | slurm
    command = ["bash", str(ROOT / "clusters" / "slurm.sh"), study, "--slots-per-gpu", "4"]
    return subprocess.Popen(command, env=environment, cwd=folder)


def test_a_slurm_job_starts_a_cluster_with_a_token_of_its_own_and_ends_with_its_study(tmp_path: Path) -> None:
    job = slurm_job(tmp_path, "short.yaml")
    assert job.wait(60) == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0].startswith("ray token start --head --port=0 --num-cpus=7 ")
    (workers,) = [line for line in said if line.startswith("srun")]
    assert {"--nodes=2", "--ntasks=2", "--exclude=node_a", "10.0.0.1:6379"} <= set(workers.split())
    assert said[-1] == "emergence token run short.yaml --address auto --slots-per-gpu 4"
    assert len((tmp_path / "token").read_text()) == 64 and (tmp_path / "mode").read_text().startswith("-rw-------")
    assert list((tmp_path / "home").iterdir()) == []  # the token is gone
    assert not Path(f"/tmp/ray-9{os.getpid()}").exists()


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_slurm_job_that_is_signalled_stops_its_study_and_only_at_the_time_limit_asks_to_be_queued_again(
    number: int, requeued: bool, tmp_path: Path
) -> None:
    """Fails with SIGINT handed on: a shell without job control starts what it puts in the background with SIGINT ignored."""
    job = slurm_job(tmp_path, "long.yaml")
    while not (tmp_path / "ready").exists():
        assert job.poll() is None
    job.send_signal(number)
    assert job.wait(60) == 130
    assert (f"scontrol token requeue 9{os.getpid()}" in (tmp_path / "said").read_text().splitlines()) == requeued


# KubeRay --------------------------------------------------------------------------------------------------------------


def test_the_manifests_of_kuberay_hold_the_same_cluster_with_a_token_and_what_every_pod_shares() -> None:
    """Their fields were checked against the schemas of KubeRay 1.5.1, 1.6.2 and 1.7.0 by hand: docs/cluster.md."""
    folder = ROOT / "clusters"
    cluster, job, volume = (
        yaml.safe_load((folder / f"kuberay-{n}.yaml").read_text()) for n in ("cluster", "job", "volume")
    )
    spec = cluster["spec"]
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob") and job["spec"]["rayClusterSpec"] == spec
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert spec["rayVersion"] == pinned and spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in pods:
        (container,) = pod["containers"]
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        }
        home = next(e["value"] for e in container["env"] if e["name"] == "EMERGENCE_HOME")
        assert [claims.get(m["name"]) for m in container["volumeMounts"] if m["mountPath"] == home] == [
            volume["metadata"]["name"]
        ]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    assert job["spec"]["entrypoint"].startswith("emergence run quickstart --address auto")


def test_the_image_copies_what_the_machines_of_a_cluster_are_given() -> None:
    lines = re.findall(r"^COPY (.*) \S+$", (ROOT / "clusters" / "Containerfile").read_text(), flags=re.MULTILINE)
    mounts = yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"]
    needed = {source for target, source in mounts.items() if target.startswith("~/emergence-lab/")} - {"Makefile"}
    assert {name for line in lines for name in line.split()} == needed


def test_the_slurm_script_may_be_executed() -> None:
    assert (ROOT / "clusters" / "slurm.sh").stat().st_mode & stat.S_IXUSR
