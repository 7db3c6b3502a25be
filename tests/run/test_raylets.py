"""A cluster of three raylets on this machine: a head without cores and two machines of one core each.

So every trial of two workers spans two machines, and only one such fits at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_cli import SMALL
from test_families_doc import FILES

from orchestrator.record.journal import read

pytestmark = pytest.mark.end_to_end

STUDY = """
study: shared
version: 1
question: Do two workers come to what one comes to?
family: {name: cipher, n_symbols: 6, n_pairs: 8}
axes:
  arm: [answer]
  variant:
    one: {place: {workers: 1}}
    zero2: {place: {workers: 2, zero_stage: 2, micro_batch: 2}}
    zero3: {place: {workers: 2, zero_stage: 3}}
  n_tasks: [8]
  compute_flops: [1.2e8, 2e8]
  replicates: 1
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}
training: {batch_size: 8, warmup_steps: 5}
evaluation: {n_sequences: 4, first_flops: 2e7, points_per_decade: 10}
"""


RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of this cluster alone"}
RAYLETS = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("at", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""In a process of its own: Ray leaves sockets open, and what it sets in its process would come along."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the head of the cluster answers."""
    command = [sys.executable, "-c", RAYLETS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | TOKEN
    ) as cluster:
        assert cluster.stdout is not None
        lines = iter(cluster.stdout.readline, "")
        found = next((line.split()[1] for line in lines if line.startswith("at ")), None)
        assert found is not None, "the cluster ended before it was there"
        yield found
        cluster.communicate("")  # closes its input, on which it ends


def emergence(folder: Path, *arguments: str, study: str = STUDY, **more: str) -> subprocess.CompletedProcess[str]:
    file = folder / "shared.yaml"
    file.write_text(study)
    environment = os.environ | TOKEN | {"EMERGENCE_HOME": str(folder / "runs"), "COLUMNS": "200"} | more
    environment.pop("RAY_ADDRESS", None)
    for package in ("trainers", "orchestrator"):  # as if another checkout lay in the current folder
        (folder / package).mkdir(exist_ok=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('code of another checkout was loaded')")
    command = [sys.executable, "-P", "-m", "orchestrator.cli", arguments[0], str(file), *arguments[1:]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


@contextlib.contextmanager
def plain_head(environment: dict[str, str], **more: str) -> Iterator[None]:
    """What `ray start --head` starts. At the end its processes are killed, which have this HOME: `ray stop` ends others' too."""
    command = [*RAY, "start", "--head", "--port", "0", "--num-cpus", "1", "--object-store-memory", "80000000"]
    command += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    marker = f"HOME={environment['HOME']}".encode()
    try:
        subprocess.run(command, env=environment | more, check=True, capture_output=True)
        yield
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(process.name) != os.getpid() and marker in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)


def test_a_plain_ray_start_is_refused_in_one_line_and_what_the_line_says_to_do_works(tmp_path: Path) -> None:
    """Fails with advice that leaves out the token: `RAY_AUTH_MODE=token ray start` without one is twenty lines of Ray's own."""
    with tempfile.TemporaryDirectory(prefix="el", dir="/tmp") as short:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH") and k != "RAY_ADDRESS"}
        mine = {"HOME": str(tmp_path), "RAY_TMPDIR": short, "EMERGENCE_HOME": str(tmp_path / "runs"), "COLUMNS": "200"}
        environment = clean | mine | {"RAY_USAGE_STATS_ENABLED": "0"}
        (tmp_path / "small.yaml").write_text(SMALL)
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(tmp_path / "small.yaml"), "--address", "auto"]
        with plain_head(environment):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == "", done
            assert not (tmp_path / "runs" / "small@1" / "journal.jsonl").exists()
        (advice,) = re.findall(r"'(ray stop; .*?)'", done.stderr)
        stop, generate, start = advice.split("; ")
        assert (stop, start) == ("ray stop", "RAY_AUTH_MODE=token ray start --head")
        subprocess.run([*RAY, *generate.split()[1:]], env=environment, check=True, capture_output=True)
        with plain_head(environment, RAY_AUTH_MODE="token"):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        assert len([e for e in read(tmp_path / "runs" / "small@1")[0] if e["kind"] == "trial"]) == 1


def curve(events: list[dict[str, Any]], variant: str) -> dict[tuple[str, int], float]:
    """Training loss by where and when it was measured."""
    return {
        (e["on"], e["step"]): e["train_loss_nats"]
        for e in events
        if e["kind"] == "evaluation" and e["trunk"].endswith(variant) and e["train_loss_nats"] is not None
    }


def test_trials_of_one_and_two_workers_end_once_each_and_agree(address: str, tmp_path: Path) -> None:
    """With as many slots as one could wish for: what is asked for beyond the machines must not keep them waiting."""
    storage = f"file://{tmp_path}/bucket"
    done = emergence(tmp_path, "run", "--address", address, "--slots", "1000", "--storage", storage, "--keep-weights")
    assert done.returncode == 0, done.stdout + done.stderr
    events = read(tmp_path / "runs" / "shared@1")[0]
    ends = [e for e in events if e["kind"] == "trial"]
    assert Counter(e["trial"] for e in ends) == {e["trial"]: 1 for e in ends} and len(ends) == 6
    assert {(e["trunk"].rpartition("/")[2], e["workers"], e["zero_stage"], e["status"]) for e in ends} == {
        ("one", 1, 0, "done"), ("zero2", 2, 2, "done"), ("zero3", 2, 3, "done")
    }  # fmt: skip
    alone = curve(events, "one")
    assert len(alone) >= 10
    for variant in ("zero2", "zero3"):
        assert curve(events, variant) == pytest.approx(alone, abs=1e-5, rel=0)
    assert pq.read_table(tmp_path / "runs" / "shared@1" / "results.parquet").num_rows > 0
    kept = {p.relative_to(tmp_path / "bucket/shared@1").parts[0] for p in (tmp_path / "bucket").rglob("*.safetensors")}
    assert kept == {"checkpoints", "weights"} and not (tmp_path / "runs" / "shared@1" / "checkpoints").exists()

    again = emergence(tmp_path, "run", "--address", "local", "--workers", "4", "--storage", storage)
    assert again.returncode == 0 and "nothing to run" in again.stdout  # and so nothing is refused for want of machines


def test_a_family_that_a_machine_lacks_is_refused_in_one_line_that_names_machine_and_family(
    address: str, tmp_path: Path
) -> None:
    """Fails without `check_families`: every try of every trial then fails in a worker."""
    module, project = tmp_path / "mine" / "line_family.py", str(Path(__file__).parents[2])
    info = tmp_path / "mine" / "line_family-1.0.dist-info"
    info.mkdir(parents=True)
    module.write_text(FILES["line_family.py"])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: line-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[emergence.families]\nline = line_family\n")
    paths = os.pathsep.join([str(tmp_path / "mine"), project])
    done = emergence(tmp_path, "run", "--address", address, study=FILES["lines.yaml"], PYTHONPATH=paths)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot load the family 'line': unknown family 'line'" in line and "docs/families.md" in line, line
    assert not (tmp_path / "runs" / "lines@1" / "journal.jsonl").exists()


def test_a_trial_that_the_cluster_can_never_hold_is_refused_with_the_arithmetic(address: str, tmp_path: Path) -> None:
    """Before Ray Tune is loaded, which alone takes as long again."""
    text = "the widest trial takes 4 slots, which need 4 CPU, Ray sees 2; it would never start"
    done = emergence(tmp_path, "run", "--address", address, "--workers", "4")
    assert done.returncode == 2 and text in done.stderr and len(done.stderr.splitlines()) == 1, done
    told = emergence(tmp_path, "plan", "--address", address, "--workers", "4", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time:")}
    assert told.returncode == 2 and text in told.stderr and "ray" in loaded
    assert sorted({"ray.tune", "torch", "mlflow"} & loaded) == []
    assert not (tmp_path / "runs" / "shared@1" / "journal.jsonl").exists()
