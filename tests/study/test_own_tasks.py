"""A study of a table: resolved once to its content, by variant too; a table that changed, or is gone, is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.plan import jobs
from orchestrator.record.journal import State
from orchestrator.record.provenance import session_event
from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError

STUDY = """\
study: mine
version: 1
question: From how many tasks on are unseen ones solved?
family:
  name: table
  path: tasks.csv
axes:
  arm: [answer]
  n_tasks: [4]
  compute_steps: [100]
  replicates: 1
evaluation: {n_sequences: 8, points_per_decade: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path / "home"))
    rows = [f"task {k},Say {k} and {i},{k} {i}" for k in range(12) for i in range(10)]
    (tmp_path / "tasks.csv").write_text("\n".join(["task,prompt,target", *rows]))
    (tmp_path / "mine.yaml").write_text(STUDY)
    return tmp_path


def read(folder: Path, old: str = "", new: str = "") -> Study:
    (folder / "mine.yaml").write_text(STUDY.replace(old, new, 1) if old else STUDY)
    return load(str(folder / "mine.yaml"))


def test_a_recorded_study_is_read_without_its_table(folder):
    study = read(folder)
    record = session_event(study, {})["study"]
    (folder / "tasks.csv").unlink()
    again = Study.from_record(record)
    assert [t.fingerprint() for t in again.trials()] == [t.fingerprint() for t in study.trials()]


def test_a_changed_table_is_named_and_an_unchanged_one_elsewhere_is_not(folder):
    study = read(folder)
    state = State()
    session = session_event(study, {})
    state.sessions.append(session)
    state.study = session["study"]
    (folder / "copy.csv").write_text((folder / "tasks.csv").read_text())
    jobs.check_against_record(read(folder, "tasks.csv", "copy.csv"), state, "mine.yaml")
    (folder / "tasks.csv").write_text((folder / "tasks.csv").read_text().replace("Say 3 and 4", "Say 3 and five"))
    with pytest.raises(StudyError, match=r"the content of tasks\.csv"):
        jobs.check_against_record(read(folder), state, "mine.yaml")


def test_a_variant_reads_its_own_table_and_rules(folder):
    (folder / "other.csv").write_text((folder / "tasks.csv").read_text().replace("Say", "Write"))
    variants = "  variant: {mine: {}, theirs: {family: {path: other.csv}}, few: {family: {rules: {held_out_tasks: 0.5}}}}\naxes"
    study = read(folder, "axes:", "axes:\n" + variants.removesuffix("\naxes"))
    found = {condition: study.family_of(condition).content for condition in study.conditions}
    assert len({content.digest for content in found.values()}) == 3
    assert sum(found["few"].tasks_per_cluster) < sum(found["mine"].tasks_per_cluster)
    again = Study.from_record(study.model_dump(mode="json"))
    assert {c: again.family_of(c).content for c in again.conditions} == found


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("n_tasks: [4]", "n_task: [4]", "n_task"),
        ("arm: [answer]", "arm: [answers]", "answers"),
        ("compute_steps: [100]", "compute_steps: [many]", "compute_steps"),
        ("compute_steps: [100]", "compute_flops: [1e9, 1e9]", "compute_flops"),
        ("replicates: 1", "replicates: 1\nskills: [solved]", "solved"),
        ("replicates: 1", "replicates: 1\ntraining: {batchsize: 4}", "batchsize"),
        ("replicates: 1", "replicates: 1\nplace: {workers: 7}", "place"),
        ("replicates: 1", "replicates: 1\nprimary: {what: ability, arm: other, n_tasks: 4, lo: 0.5}", "primary"),
        ("replicates: 1", "replicates: 1\n  variant: {a: {}, b: {family: {weight: given}}}", "weight"),
        ("  path: tasks.csv", "  path: tasks.csv\n  temperature: 2", "temperature"),
        ("  path: tasks.csv", "  path: tasks.csv\n  rules: {max_token: 9}", "max_token"),
    ],
)
def test_a_typing_error_is_refused_before_the_table_is_read(folder, old, new, named):
    budget = ("compute_steps: [100]", "compute_flops: [1e9]") if "primary" in new else ("", "")
    (folder / "mine.yaml").write_text(STUDY.replace(*budget).replace(old, new, 1))
    with pytest.raises(StudyError) as refused:
        load(str(folder / "mine.yaml"))
    assert named in str(refused.value) and not list(folder.rglob("facts.json"))


@pytest.mark.parametrize(
    ("old", "new", "line", "named"),
    [
        ("path: tasks.csv", "path: none.csv", 4, "none.csv"),
        ("path: tasks.csv", "path: tasks.csv\n  scorer: judge", 7, "family.scorer"),
        ("path: tasks.csv", "path: tasks.csv\n  content: {}", 7, "family.content"),
        ("path: tasks.csv", "path: tasks.csv\n  n_clusters: 3", 7, "n_clusters 3"),
        ("axes:", "axes:\n  variant: {a: {}, b: {family: {path: none.csv}}}", 8, "none.csv"),
        ("axes:", "axes:\n  variant: {a: {}, b: {family: {content: {}}}}", 8, "content"),
        ("n_tasks: [4]", "n_tasks: [40]", 9, "axes.n_tasks[0]"),
    ],
)
def test_what_cannot_be_used_is_refused_at_its_line(folder, old, new, line, named):
    with pytest.raises(StudyError) as refused:
        read(folder, old, new)
    first = str(refused.value).splitlines()[0]
    assert named in first, first
    assert int(first.split(":")[1]) in (line, 4), first
