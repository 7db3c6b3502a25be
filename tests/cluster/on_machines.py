"""`ray up`, `ray submit`, `ray job submit` and `ray down` for real, over SSH, between three machines that the test makes.

    make test-cluster

A laptop, a head, a worker and later a second (machines.py). The cluster is that of cluster.local.yaml, with three edits:
the addresses; the environment that is here in place of `make install`, so that nothing is downloaded; and its folder for
checkpoints. Not collected by plain `pytest`: needs root and an sshd, and takes minutes. The tests follow one another as a
day would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml  # type: ignore[import-untyped]  # as Ray reads it
from machines import ROOT, Machine, Network, missing, press_ctrl_c, wait_until

from orchestrator.record.journal import State, read
from orchestrator.record.lease import lock_holder

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

STUDY = """
study: {name}
version: 1
question: Does a tiny model learn anything?
family: {{name: cipher, n_symbols: 8, n_pairs: 8}}
axes:
  arm: [answer]
  n_tasks: {n_tasks}
  compute_flops: {budgets}
  replicates: 1
model: {{n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32, conv_kernel: 4}}
training: {{batch_size: 8, warmup_steps: 10}}
evaluation: {{points_per_decade: 4, first_flops: 1e8, n_sequences: 8}}
place: {{workers: {workers}}}
"""


class Request(NamedTuple):
    """What is asked in a study, and how many trials that makes."""

    budgets: str
    n_trials: int
    n_tasks: str = "[4, 1024]"
    workers: int = 1


STUDIES = {
    "tiny": Request("[3e8]", 2),
    "longer": Request("[1e9, 8e9]", 4),
    "group": Request("[4e8]", 1, "[64]", workers=4),
    "torn": Request("[2e9]", 1, "[64]", workers=4),
}
NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print("nodes", json.dumps([[n["NodeManagerAddress"], n["Alive"], n["Resources"].get("CPU", 0)] for n in ray.nodes()]))
"""


class Site:
    """The three machines, a copy of the project on the laptop, and the cluster's file there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project, self.shared = folder, folder / "project", folder / "shared"
        self.shared.mkdir()
        self._copy_project()
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        self.network = Network(folder)
        keep = [Path(sys.prefix), Path(sys.base_prefix), ROOT, folder]
        names = ("laptop", "head", "worker", "second")
        self.machines = [Machine(name, number, folder / name, keep) for number, name in enumerate(names, 1)]
        self.laptop, self.head, self.worker, self.second = self.machines
        for machine in self.machines:
            self.network.plug(machine)
        for machine in self.machines[1:]:
            machine.serve_ssh(folder / "host_key", folder / "key.pub")
        self.laptop.at = self.project
        self.results = self.head.own_home / "emergence"  # on the head's own disk: no other machine sees it
        (self.laptop.own_home / ".ssh").mkdir()
        shutil.copy(folder / "key", self.laptop.own_home / ".ssh" / "id_ed25519")
        self.laptop.run("ray get-auth-token --generate")

    def _copy_project(self) -> None:
        self.project.mkdir()
        for source in yaml.safe_load((ROOT / "cluster.local.yaml").read_text())["file_mounts"].values():
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, self.project / source, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / source).is_file():
                shutil.copy2(ROOT / source, self.project / source)
        text = (ROOT / "cluster.local.yaml").read_text()
        for old, new in {
            "HEAD_ADDRESS": "10.77.0.2",
            "WORKER_ADDRESS": "10.77.0.3",
            "USER": "root",
            "SHARED_FOLDER": f"{self.shared}/checkpoints",
            "make install": f"ln -sfn {sys.prefix} .venv",
            'bin:$PATH"': 'bin:$PATH" PYTHONPATH="$HOME/emergence-lab"',
        }.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (self.project / "mine.yaml").write_text(text)

    def write(self, study: str) -> None:
        """Write a study on the laptop."""
        text = STUDY.format(name=study, **STUDIES[study]._asdict())
        (self.project / "sweeps" / f"{study}.yaml").write_text(text)

    def alone(self, study: str) -> Path:
        """The folder of a study that ran on the laptop alone, a worker a trial."""
        home = self.folder / "alone"
        if not (home / f"{study}@1" / "results.parquet").exists():
            self.write(study)
            environment = f"EMERGENCE_HOME={home} PYTHONPATH={self.project}"
            line = f"{environment} emergence run sweeps/{study}.yaml --address local --workers 1"
            self.laptop.run(line, timeout=600)
        return home / f"{study}@1"

    def nodes(self) -> list[tuple[str, bool, float]]:
        """Address, alive, cores of every node that the cluster has had."""
        said = self.head.run(f". ~/.emergence_env && python -c '{NODES}'")
        (line,) = (line for line in said.splitlines() if line.startswith("nodes "))
        return [(address, alive, cores) for address, alive, cores in json.loads(line.removeprefix("nodes "))]

    def end(self) -> None:
        for machine in self.machines:
            machine.end()
        self.network.end()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The cluster, up."""
    here = Site(tmp_path_factory.mktemp("site"))
    try:
        took(here.laptop, "ray up --disable-usage-stats --yes mine.yaml")
        wait_until(lambda: len(here.nodes()) == 2, 240, "the worker has joined")
        yield here
    finally:
        here.end()


@pytest.fixture(scope="module")
def second(site: Site) -> Machine:
    """A second worker, added as a person adds a machine: its address into the cluster's file, and `ray up` again."""
    file = site.project / "mine.yaml"
    text, alone = file.read_text(), f"worker_ips: [{site.worker.address}]"
    assert text.count(alone) == 1
    file.write_text(text.replace(alone, f"worker_ips: [{site.worker.address}, {site.second.address}]"))
    took(site.laptop, "ray up --disable-usage-stats --yes mine.yaml")
    both = {(machine.address, True) for machine in (site.worker, site.second)}
    wait_until(lambda: {n[:2] for n in site.nodes()} >= both, 240, "both workers are there")
    return site.second


@pytest.fixture(scope="module")
def tunnel(site: Site) -> Iterator[None]:
    """The dashboard's port on the laptop, which `ray job` talks to."""
    process = site.laptop.start("exec ray dashboard mine.yaml", site.folder / "tunnel.log")
    connect = "python -c 'import socket; socket.create_connection((\"127.0.0.1\", 8265))' 2>/dev/null && echo yes"
    wait_until(lambda: "yes" in site.laptop.run(connect, expect=None), 60, "the tunnel is there", process)
    yield
    process.terminate()
    process.wait(20)


def took(machine: Machine, line: str, timeout: float = 400) -> str:
    """Run a line and print how long it took (`pytest -s` shows it)."""
    began = time.monotonic()
    said = machine.run(line, timeout)
    print(f"{time.monotonic() - began:6.1f} s  {line}")
    return said


def assert_equal_to_one_alone(site: Site, study: str, folder: Path) -> None:
    """Every trial once, trained on the worker only, and the table the same to the bit."""
    events = read(folder)[0]
    # A resumed trunk tells again what it had told: the same event by its key.
    ended = Counter(trial for trial, _ in {(e["trial"], e["key"]) for e in events if e["kind"] == "trial"})
    assert len(ended) == STUDIES[study].n_trials and set(ended.values()) == {1}
    assert [r["status"] for r in pq.read_table(folder / "runs.parquet").to_pylist()] == ["done"] * len(ended)
    assert {e["host"] for e in events if e["kind"] == "evaluation"} == {"m3"}
    assert (folder / "results.parquet").read_bytes() == (site.alone(study) / "results.parquet").read_bytes()
    assert (folder / "report.html").stat().st_size > 10_000


def n_evaluations(folder: Path) -> int:
    return sum(e["kind"] == "evaluation" for e in read(folder)[0])


def curve(folder: Path) -> dict[tuple[str, str, int], float]:
    """Training loss in nats by trunk, trunk or branch, and step."""
    return {
        (e["trunk"], e["on"], e["step"]): e["train_loss_nats"]
        for e in read(folder)[0]
        if e["kind"] == "evaluation" and e["train_loss_nats"] is not None
    }


def connections(machine: Machine, other: Machine) -> dict[tuple[int, int], int]:
    """Ray's workers here that are connected with the other machine: process by the connection's two ports, this end first."""
    said = machine.run(f"ss -Htnp state established dst {other.address}")
    found = re.findall(r":(\d+)\s+\S+:(\d+)\s+users:\(\(\"ray::[^\"]*\",pid=(\d+)", said)
    return {(int(here), int(there)): int(process) for here, there, process in found}


def joined(one: Machine, other: Machine) -> set[tuple[int, int]]:
    """Which worker of a group here is connected with which there: pairs of processes.

    Through Ray the workers of a group know nothing of one another, and to meet each needs rank 0 alone: that two and two are
    connected in all four ways is gloo's doing.
    """
    there = connections(other, one)
    return {(process, there[port[::-1]]) for port, process in connections(one, other).items() if port[::-1] in there}


def assert_close_to_one_worker(site: Site, study: str, folder: Path) -> None:
    """Its one trial ended once, and what it lost in training is to 1e-5 nats what one worker loses."""
    assert {(e["status"], e["workers"]) for e in read(folder)[0] if e["kind"] == "trial"} == {("done", 4)}
    assert len({(e["trial"], e["key"]) for e in read(folder)[0] if e["kind"] == "trial"}) == 1
    shared, alone = curve(folder), curve(site.alone(study))
    assert shared.keys() == alone.keys() and len(shared) >= 3
    print(f"{max(abs(shared[point] - alone[point]) for point in alone):.1g} nats at most from one worker's loss")
    assert shared == pytest.approx(alone, abs=1e-5, rel=0)


JOB = "RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 ray job"


def test_ray_up_starts_a_head_that_trains_nothing_and_a_worker_that_does(site: Site) -> None:
    cores = {address: n for address, _, n in site.nodes()}
    assert cores[site.head.address] == 0 and cores[site.worker.address] > 0


def test_a_machine_without_the_token_is_refused(site: Site) -> None:
    asked = f"ray status --address {site.head.address}:6379"
    assert "CPU" in site.worker.run(asked)
    site.laptop.run(f"RAY_AUTH_TOKEN={'0' * 64} {asked}", expect=1)
    site.laptop.run(f"RAY_AUTH_MODE=disabled {asked}", expect=1)


def test_ray_submit_runs_an_edited_study_on_the_worker_and_leaves_its_report_on_the_head(site: Site) -> None:
    site.write("tiny")
    took(site.laptop, "ray rsync-up mine.yaml sweeps/ '~/emergence-lab/sweeps/'")
    said = took(site.laptop, "ray submit mine.yaml orchestrator/cli.py run sweeps/tiny.yaml -- --checkpoint-seconds 5")
    assert "2 of 2 trials" in said and "\x1b[2K" not in said.partition("Joining Ray")[2]  # lines, no moving picture
    assert_equal_to_one_alone(site, "tiny", site.results / "tiny@1")


def test_the_mlflow_ui_on_the_head_is_seen_on_the_laptop_and_ends_at_ctrl_c(site: Site) -> None:
    ui = site.laptop.start("exec ray exec mine.yaml --port-forward 5000 'emergence ui'", site.folder / "ui.log", True)
    fetch = "python -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:5000/health\").status)' 2>&1"
    wait_until(lambda: "200" in site.laptop.run(fetch, expect=None), 120, "the UI answers on the laptop", ui)
    assert site.head.runs_with("mlflow.server")
    press_ctrl_c(ui)
    ui.wait(60)
    wait_until(lambda: not site.head.runs_with("mlflow.server"), 60, "the UI has ended on the head")


def test_results_carried_off_and_brought_to_a_new_disk_need_no_trial_again(site: Site) -> None:
    before = (site.results / "tiny@1" / "results.parquet").read_bytes()
    took(site.laptop, "ray rsync-down mine.yaml '~/emergence/' kept/")
    shutil.rmtree(site.results)
    took(site.laptop, "ray rsync-up mine.yaml kept/ '~/emergence/'")
    said = site.laptop.run("ray submit mine.yaml orchestrator/cli.py run sweeps/tiny.yaml")
    assert "nothing to run" in said
    assert (site.results / "tiny@1" / "results.parquet").read_bytes() == before


def test_ctrl_c_at_ray_submit_lets_the_trunks_save(site: Site) -> None:
    site.write("longer")
    folder = site.results / "longer@1"
    site.laptop.run("ray rsync-up mine.yaml sweeps/ '~/emergence-lab/sweeps/'")
    run = "ray submit mine.yaml orchestrator/cli.py run sweeps/longer.yaml"
    submitted = site.laptop.start(run, site.folder / "ctrl_c.log", at_terminal=True)
    wait_until(lambda: n_evaluations(folder) >= 1, 120, "the study has begun", submitted)
    press_ctrl_c(submitted)
    submitted.wait(120)
    assert len(State.of(folder).trials) < STUDIES["longer"].n_trials  # stopped before it was through
    assert lock_holder(folder) is None and not (folder / "stop").exists()  # it left by itself: a kill leaves both


def test_a_job_that_is_stopped_saves_and_goes_on_when_submitted_again(site: Site, tunnel: None) -> None:
    site.write("longer")
    folder = site.results / "longer@1"
    run = f"{JOB} submit --submission-id {{}} --working-dir . {{}} -- emergence run sweeps/longer.yaml"
    sessions, evaluations = len(State.of(folder).sessions), n_evaluations(folder)
    site.laptop.run(run.format("first", "--no-wait"))
    wait_until(lambda: n_evaluations(folder) >= evaluations + 2, 120, "the job has begun")
    took(site.laptop, f"{JOB} stop first")
    assert len(State.of(folder).trials) < STUDIES["longer"].n_trials  # stopped before it was through
    lines = (folder / "journal.jsonl").read_text()
    assert lines.endswith("\n") and all(json.loads(line) for line in lines.splitlines())
    assert lock_holder(folder) is None and not (folder / "stop").exists()  # it left by itself: a kill leaves both

    took(site.laptop, run.format("second", ""))
    assert len(State.of(folder).sessions) == sessions + 2
    assert_equal_to_one_alone(site, "longer", folder)


def test_a_worker_cut_off_for_as_long_as_ray_waits_changes_no_result(site: Site, tunnel: None) -> None:
    """Ray's autoscaler on the head starts Ray on the worker again, as any supervisor of machines would."""
    site.write("longer")
    folder, checkpoints = site.head.own_home / "cut" / "longer@1", site.shared / "cut_checkpoints"
    job = site.laptop.start(
        f"{JOB} submit --submission-id cut --working-dir . -- env EMERGENCE_HOME={site.head.home}/cut EMERGENCE_STORAGE={checkpoints}"
        " emergence run sweeps/longer.yaml --checkpoint-seconds 1",
        site.folder / "cut.log",
    )
    wait_until(lambda: n_evaluations(folder) >= 2, 120, "the job has begun", job)
    site.network.cable(site.worker, "down")
    began, before = time.monotonic(), State.of(folder)
    assert len(before.trials) < STUDIES["longer"].n_trials
    wait_until(
        lambda: (site.worker.address, False) in {n[:2] for n in site.nodes()}, 240, "Ray has given the worker up"
    )
    print(f"{time.monotonic() - began:6.1f} s  until Ray gave up a worker that was cut off")
    site.network.cable(site.worker, "up")
    began = time.monotonic()
    wait_until(lambda: (site.worker.address, True) in {n[:2] for n in site.nodes()}, 240, "the worker is back")
    print(f"{time.monotonic() - began:6.1f} s  until the worker was back, from the cable on")
    assert job.wait(600) == 0, (site.folder / "cut.log").read_text()
    assert len(State.of(folder).sessions) == 1  # the driver never noticed more than a slow trunk
    assert_equal_to_one_alone(site, "longer", folder)


def test_a_group_that_spans_two_machines_comes_to_what_one_worker_comes_to(site: Site, second: Machine) -> None:
    """Four workers, and two cores on each machine."""
    site.write("group")
    site.laptop.run("ray rsync-up mine.yaml sweeps/ '~/emergence-lab/sweeps/'")
    began, log = time.monotonic(), site.folder / "group.log"
    run = site.laptop.start("exec ray submit mine.yaml orchestrator/cli.py run sweeps/group.yaml", log)
    wait_until(lambda: len(joined(site.worker, second)) == 4, 300, "each is connected with each", run)
    print(f"{time.monotonic() - began:6.1f} s  until the group was connected")
    assert run.wait(400) == 0, log.read_text()
    print(f"{time.monotonic() - began:6.1f} s  for the study")
    assert_close_to_one_worker(site, "group", site.results / "group@1")


def test_a_group_that_loses_a_machine_comes_to_the_same(site: Site, second: Machine) -> None:
    """It cannot go on until the machine is back, and then begins from its checkpoint."""
    site.write("torn")
    site.laptop.run("ray rsync-up mine.yaml sweeps/ '~/emergence-lab/sweeps/'")
    folder, log = site.results / "torn@1", site.folder / "torn.log"
    line = "exec ray submit mine.yaml orchestrator/cli.py run sweeps/torn.yaml -- --checkpoint-seconds 1"
    run = site.laptop.start(line, log)
    saved = site.shared / "checkpoints" / "torn@1" / "checkpoints"
    wait_until(lambda: any("manifest.json" in names for _, _, names in os.walk(saved)), 300, "it has saved", run)
    wait_until(lambda: n_evaluations(folder) >= 1, 300, "it has reported", run)
    assert joined(site.worker, second)
    site.network.cable(second, "down")
    began = time.monotonic()
    assert not State.of(folder).trials
    wait_until(lambda: (second.address, False) in {n[:2] for n in site.nodes()}, 240, "Ray has given the worker up")
    print(f"{time.monotonic() - began:6.1f} s  until Ray gave up a worker that was cut off")
    site.network.cable(second, "up")
    began = time.monotonic()
    assert run.wait(600) == 0, log.read_text()
    print(f"{time.monotonic() - began:6.1f} s  for the rest of the study, from the cable on")
    assert len(State.of(folder).sessions) == 1  # the driver never noticed more than a slow trunk
    assert [e["resumed"] for e in read(folder)[0] if e["kind"] == "trunk"] == [1]
    assert_close_to_one_worker(site, "torn", folder)


def test_ray_down_leaves_no_ray_on_any_machine(site: Site) -> None:
    workers = [machine for machine in (site.worker, site.second) if machine.runs("raylet")]
    assert site.head.runs("raylet") and site.worker in workers
    took(site.laptop, "ray down --yes mine.yaml")
    assert not site.head.runs("raylet") and not site.head.runs("gcs_server")
    # `ray down` does not visit the workers of a `local` provider: they end when they have missed the head for a minute.
    wait_until(lambda: not any(machine.runs("raylet") for machine in workers), 180, "they have ended by themselves")
