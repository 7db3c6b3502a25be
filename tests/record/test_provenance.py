"""Where results come from: which changes to the code are told, and which are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tally
from test_report import CASES, SESSION

from orchestrator.record.provenance import _quota, cores, source
from orchestrator.report import tables


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one file of the project, committed."""
    for name in ("orchestrator/cli.py", "sweeps/quick.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_study_of_ones_own_and_a_note_are_no_changes_to_the_code(project: Path) -> None:
    for name in ("mine.yaml", "sweeps/mine.yaml", "notes.py", "orchestrator/notes.txt"):
        (project / name).write_text("new")
    assert source(project) == {"commit": git(project, "rev-parse", "HEAD"), "changes": []}


def test_changes_to_tracked_files_and_new_code_in_the_packages_are_told_by_name(project: Path) -> None:
    head = git(project, "rev-parse", "HEAD")
    (project / "trainers" / "tasks").mkdir(parents=True)
    (project / "trainers" / "tasks" / "mine.py").write_text("new")
    assert source(project) == {"commit": f"{head}+changes", "changes": ["trainers/tasks/mine.py"]}
    (project / "sweeps" / "quick.yaml").write_text("second\n")
    (project / "orchestrator" / "cli.py").write_text("second\n")
    git(project, "add", "orchestrator")  # staged or not
    told = ["orchestrator/cli.py", "sweeps/quick.yaml", "trainers/tasks/mine.py"]
    assert source(project) == {"commit": f"{head}+changes", "changes": told}


def test_a_project_installed_inside_somebody_elses_repository_has_no_commit_of_theirs(project: Path) -> None:
    installed = project / "environment" / "site-packages"
    (installed / "orchestrator").mkdir(parents=True)
    (installed / "orchestrator" / "cli.py").write_text("installed")
    assert source(installed) == {"commit": None, "changes": []}
    assert source(project / "environment")["commit"] is None


def test_the_report_names_what_was_not_as_committed_and_counts_the_rest() -> None:
    found = CASES["nothing has ended"]()
    assert "Not as committed" not in dict(tables.provenance(found, [SESSION, SESSION | {"changes": []}]))
    sessions = [SESSION | {"changes": ["a/9.py", "a/0.py"]}, SESSION | {"changes": [f"a/{i}.py" for i in range(10)]}]
    said = dict(tables.provenance(found, sessions))["Not as committed"]
    assert said == "a/0.py, a/1.py, a/2.py, a/3.py, a/4.py, a/5.py, a/6.py, a/7.py and 2 more"


@pytest.fixture
def checkout(project: Path) -> Path:
    """The same with a pyproject.toml, as a clone of the project has it."""
    (project / "pyproject.toml").write_text("")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "second")
    return project


def of_another_user(folder: Path) -> None:
    """Give a checkout away. Skips where that is not allowed."""
    if os.geteuid():
        pytest.skip("a checkout of another user was not tried: only root can make one")
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, 12345, 12345)
    assert subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True).returncode


def test_the_commit_of_another_users_checkout_is_known_and_none_of_its_programs_is_run(checkout: Path) -> None:
    """Fails without safe.directory in `_git`; and without the settings beside it, a program of the repository runs."""
    head, ran = git(checkout, "rev-parse", "HEAD"), checkout / "ran"
    program = checkout / ".git" / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    for name in ("core.fsmonitor", "diff.external", "diff.x.textconv", "diff.x.command"):
        git(checkout, "config", name, str(program))
    (checkout / ".git" / "info" / "attributes").write_text("*.py diff=x\n")
    for hook in ("post-index-change", "reference-transaction"):
        (checkout / ".git" / "hooks" / hook).symlink_to(program)
    (checkout / "orchestrator" / "cli.py").write_text("second\n")
    ran.unlink(missing_ok=True)
    of_another_user(checkout)
    assert source(checkout) == {"commit": f"{head}+changes", "changes": ["orchestrator/cli.py"]}
    assert not ran.exists()
    tally("commits that git keeps back", 1, 1)


def test_a_repository_of_another_user_around_a_checkout_is_not_trusted_and_the_reason_is_named(tmp_path: Path) -> None:
    """Fails where safe.directory is `*`: whoever may write above us would run programs as us."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "here" / "orchestrator").mkdir(parents=True)
    for name in ("pyproject.toml", "orchestrator/cli.py"):
        (tmp_path / "here" / name).write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    of_another_user(tmp_path)
    told = source(tmp_path / "here")
    assert told["commit"] is None and "dubious ownership" in told["commit_unknown"]
    (tmp_path / "here" / "pyproject.toml").unlink()  # installed there: nothing of ours is lost
    assert source(tmp_path / "here") == {"commit": None, "changes": []}
    tally("commits that git keeps back", 2, 2)


def test_a_hooks_variables_lead_to_no_other_repository(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where git is given our whole environment."""
    head = git(checkout, "rev-parse", "HEAD")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "no_index"))
    assert source(checkout) == {"commit": head, "changes": []}
    tally("commits that git keeps back", 1, 1)


def test_a_worktree_and_a_shallow_clone_have_their_commit(checkout: Path, tmp_path: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "tree"))
    git(tmp_path, "clone", "--quiet", "--depth", "1", checkout.as_uri(), str(tmp_path / "shallow"))
    for folder in (tmp_path / "tree", tmp_path / "shallow"):
        assert source(folder) == {"commit": head, "changes": []}


def test_where_git_does_not_answer_about_a_checkout_the_reason_is_named(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where `source` passes over what git says: the commit is None without a word, or stands without its changes."""
    head = git(checkout, "rev-parse", "HEAD")
    empty, program = tmp_path / "bin", tmp_path / "bin" / "git"
    empty.mkdir()
    real = shutil.which("git")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(empty))
        assert source(checkout) == {"commit": None, "changes": [], "commit_unknown": "git is not installed"}
        program.write_text(f'#!/bin/sh\ncase "$*" in *diff*) exec /bin/sleep 60;; *) exec {real} "$@";; esac\n')
        program.chmod(0o755)
        patch.setattr("orchestrator.record.provenance.GIT_SECONDS", 0.5)
        told = source(checkout)
        assert told["commit"] == f"{head}+unknown" and "did not answer" in told["commit_unknown"]
    (checkout / ".git" / "HEAD").write_text("nonsense")
    assert "not a git repository" in source(checkout)["commit_unknown"]
    shutil.rmtree(checkout / ".git")
    assert source(checkout) == {"commit": None, "changes": []}  # an archive, not a clone
    tally("commits that git keeps back", 3, 3)


def test_the_report_says_why_a_commit_is_not_known() -> None:
    """Fails without the reason in `tables.provenance`."""
    found = CASES["nothing has ended"]()
    lost = SESSION | {"commit": None, "commit_unknown": "fatal: detected dubious ownership"}
    assert dict(tables.provenance(found, [lost]))["Commit"] == "not known: fatal: detected dubious ownership"


# Cores --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_held_to_one_core_counts_one() -> None:
    """Fails if `cores` counts those of the machine, wherever that has several."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from orchestrator.record import provenance; print(provenance.cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


V1 = "3:cpuset:/\n1:cpu,cpuacct:/job/step\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "250000 100000"}, 2.5),
        ("0::/job/step\n", {"job/step/cpu.max": "50000 100000"}, 0.5),
        ("0::/elsewhere\n", {"cpu.max": "300000 100000"}, 3.0),  # a container: its own cgroup is the root it sees
        (
            V1,
            {"cpu,cpuacct/job/step/cpu.cfs_quota_us": "150000", "cpu,cpuacct/job/step/cpu.cfs_period_us": "100000"},
            1.5,
        ),
        (V1, {"cpu/job/step/cpu.cfs_quota_us": "-1", "cpu/job/step/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "damaged"}, None),
    ],
)
def test_a_quota_of_cpu_time_is_a_number_of_cores_rounded_down_to_one_at_least(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    """Fails if only one version of cgroups is read, or only the innermost cgroup."""
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = there if expected is None else max(1, min(there, int(expected)))
    assert cores(tmp_path / "cgroup", tmp_path / "fs") == wanted
    assert _quota(tmp_path / "cgroup", tmp_path / "fs") == (expected or 1e9)
