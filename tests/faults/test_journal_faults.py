"""Damage to the journal: no line that is damaged, torn, late or missing ever leads to other results without a word."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from alone import go_on, rows_in, rows_of, study_with
from conftest import tally
from steps import Counter

from orchestrator.plan import jobs
from orchestrator.record import journal, recorded
from orchestrator.record.journal import INCOMPLETE, Journal, State
from orchestrator.study.reader import load
from orchestrator.study.schema import Study

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def study() -> Study:
    return study_with()


@pytest.fixture(scope="module")
def golden(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was run without a fault."""
    folder = tmp_path_factory.mktemp("golden") / study.id
    assert go_on(study, folder) > 0
    return folder


@pytest.fixture(scope="module")
def rows(study: Study, golden: Path) -> list[dict[str, Any]]:
    found = rows_of(study, golden)
    assert len({row["trial"] for row in found}) == 4
    return found


def copy_of(golden: Path, folder: Path) -> Path:
    return Path(shutil.copytree(golden, folder / golden.name))


def is_survived(study: Study, folder: Path, rows: list[dict[str, Any]]) -> bool:
    """Are the results the same, or are they fewer, none of them other, and the damage is named?"""
    state = State.of(folder)
    left = rows_in(study, state)
    return left == rows or (all(row in rows for row in left) and bool(state.damage))


# Every line, every kind of damage --------------------------------------------------------------------------------------


def _flipped(line: bytes) -> bytes:
    middle = len(line) // 2
    return line[:middle] + bytes([line[middle] ^ 1]) + line[middle + 1 :]


DAMAGE: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "a flipped bit": lambda lines, i: [*lines[:i], _flipped(lines[i]), *lines[i + 1 :]],
    "missing": lambda lines, i: [*lines[:i], *lines[i + 1 :]],
    "cut short": lambda lines, i: [*lines[:i], lines[i][: len(lines[i]) // 2] + b"\n", *lines[i + 1 :]],
    "zeroed": lambda lines, i: [*lines[:i], bytes(len(lines[i]) - 1) + b"\n", *lines[i + 1 :]],
    "without its end": lambda lines, i: [*lines[:i], lines[i][:-1], *lines[i + 1 :]],
    "twice": lambda lines, i: [*lines[: i + 1], *lines[i:]],
    "later than the next": lambda lines, i: [*lines[:i], *lines[i + 1 : i + 2], lines[i], *lines[i + 2 :]],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_every_line_damaged_in_turn_is_named_and_what_it_held_comes_again(
    how: str, study: Study, golden: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Without checksums the flipped ones pass, without numbers the missing ones, without the count of a trial's rows the
    trial stands as done; each seen so. Checkpoints hold every event, so nothing is trained to make it good."""
    lines = (golden / journal.FILE).read_bytes().splitlines(keepends=True)
    survived = 0
    for i in range(len(lines)):
        folder = tmp_path / str(i)
        folder.mkdir()
        damaged = DAMAGE[how](lines, i)
        (folder / journal.FILE).write_bytes(b"".join(damaged))
        assert is_survived(study, folder, rows), (how, i)
        if damaged != lines and not (how == "missing" and i == len(lines) - 1):  # a last line leaves no gap
            assert State.of(folder).damage, (how, i)
        survived += 1
        if how != "a flipped bit" and i % 4:
            continue
        shutil.copytree(golden / "checkpoints", folder / "checkpoints")
        assert go_on(study, folder) == 0, (how, i)
        assert rows_of(study, folder) == rows, (how, i)
    tally(f"journal line: {how}", len(lines), survived)


def test_a_damaged_result_without_a_checkpoint_is_trained_again_to_the_bit(
    study: Study, golden: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    lines = (golden / journal.FILE).read_bytes().splitlines(keepends=True)
    wanted = ("evaluation", repr(study.budgets[0]))
    final = next(i for i, e in enumerate(map(json.loads, lines)) if (e["kind"], e.get("on")) == wanted)
    folder = copy_of(golden, tmp_path)
    (folder / journal.FILE).write_bytes(b"".join(DAMAGE["a flipped bit"](lines, final)))
    shutil.rmtree(folder / "checkpoints")
    short = recorded.read(folder, study)
    assert len(short.short) == 1 and short.short[0] not in short.trials
    assert len(rows_of(study, folder)) < len(rows)
    assert go_on(study, folder) > 0
    assert rows_of(study, folder) == rows and recorded.read(folder, study).short == ()


def test_of_1500_flipped_bits_none_gives_other_results_without_a_word(
    study: Study, golden: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """With the lines of the version before, 1,273 of 1,500 did."""
    whole = (golden / journal.FILE).read_bytes()
    draw = random.Random(1500)
    for _ in range(1500):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        (tmp_path / journal.FILE).write_bytes(flipped)
        assert State.of(tmp_path).damage and is_survived(study, tmp_path, rows), (place, bit)
    tally("journal: bit flips", 1500, 1500)


# Writes that fail -----------------------------------------------------------------------------------------------------


def test_a_tail_torn_at_any_byte_costs_what_was_not_yet_whole_and_the_next_line_stands_alone(
    study: Study, golden: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = (golden / journal.FILE).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = sorted({*range(ends[-3], len(whole), 7), *(end - 1 for end in ends[-5:]), *ends[-5:]})
    for cut in cuts:
        (tmp_path / journal.FILE).write_bytes(whole[:cut])
        before = State.of(tmp_path)
        assert before.damage == ([] if cut in ends else [INCOMPLETE])
        assert all(row in rows for row in rows_of(study, tmp_path))
        log = Journal(tmp_path)
        log.append([{"kind": "evaluation", "key": "after", "trunk": "other"}])
        log.close()
        after = State.of(tmp_path)
        unended = {json.loads(whole[:cut].splitlines()[-1])["key"]} if cut + 1 in ends else set()
        assert after.keys == before.keys | unended | {"after"} and after.damage == []
    tally("journal: torn tails", len(cuts), len(cuts))


def _events(n: int) -> list[dict[str, Any]]:
    return [{"kind": "evaluation", "key": f"e{i}", "trunk": "t", "filling": "x" * 50} for i in range(n)]


def test_a_write_that_fails_half_way_never_glues_the_next_line_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the look at what arrived, the next line is lost with the torn one; seen so."""
    really = os.write
    tries = list(range(0, 400, 13))
    for room in tries:
        folder = tmp_path / str(room)
        log = Journal(folder)
        log.append(_events(1))
        left = [room]

        def write(file: int, data: bytes, left: list[int] = left) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            n = really(file, data[: left[0]])
            left[0] -= n
            return n

        monkeypatch.setattr(journal.os, "write", write)
        for _ in range(2):  # full, and full still
            with pytest.raises(OSError, match="No space"):
                log.append(_events(4)[1:])
        monkeypatch.setattr(journal.os, "write", really)
        log.append(_events(6)[1:])
        log.close()
        state = State.of(folder)
        assert [e["key"] for e in state.evaluations["t"]] == [f"e{i}" for i in range(6)]
        assert state.damage == []
    tally("journal: writes that fail half-way", len(tries), len(tries))


def test_a_system_that_writes_a_few_bytes_at_a_time_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one os.write and no loop the line is cut; seen so."""
    really = os.write
    monkeypatch.setattr(journal.os, "write", lambda file, data: really(file, data[:7]))
    log = Journal(tmp_path)
    log.append(_events(3))
    log.close()
    assert State.of(tmp_path).keys == {"e0", "e1", "e2"} and State.of(tmp_path).damage == []


ON_A_SMALL_DISK = """
import errno, os, subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", sys.argv[1]], check=True)
from orchestrator.record.journal import Journal, State
folder = Path(sys.argv[1]) / "s@1"
log = Journal(folder)
written = 0
filling = Path(sys.argv[1]) / "filling"
filling.write_bytes(bytes(20_000))
try:
    for i in range(10_000):
        log.append([{"kind": "evaluation", "key": f"e{i}", "trunk": "t", "filling": "x" * 300}])
        written += 1
except OSError as problem:
    assert problem.errno == errno.ENOSPC
assert written > 50 and len(State.of(folder).keys) == written
filling.unlink()
log.append([{"kind": "trial", "key": "end", "trial": "x", "status": "done"}])
log.close()
state = State.of(folder)
assert len(state.keys) == written + 1 and state.damage == [], state.damage
print("survived")
"""


def test_a_disk_that_is_full_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parent.parent)},
    )
    assert done.stdout == "survived\n", done.stderr
    tally("journal: a full disk", 1, 1)


def test_a_power_cut_takes_nothing_that_was_acknowledged_as_ended(
    study: Study, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writes of a run are replayed up to the last fsync before each acknowledgement. Without the fsync in `append`
    trials are lost that the driver took for ended; seen so."""
    durable, written, ends = [0], [0], list[tuple[int, str]]()
    really_write, really_sync, really_append = os.write, os.fsync, Journal.append
    of_journal: list[int] = []

    def write(file: int, data: bytes) -> int:
        n = really_write(file, data)
        if file in of_journal:
            written[0] += n
        return n

    def sync(file: int) -> None:
        really_sync(file)
        if file in of_journal:
            durable[0] = written[0]

    def append(self: Journal, events: list[dict[str, Any]]) -> None:
        of_journal[:] = [self._file]
        really_append(self, events)
        ends.extend((durable[0], e["trial"]) for e in events if e["kind"] == "trial")

    monkeypatch.setattr(journal.os, "write", write)
    monkeypatch.setattr(journal.os, "fsync", sync)
    monkeypatch.setattr(Journal, "append", append)
    folder = tmp_path / "run" / study.id
    go_on(study, folder)
    monkeypatch.undo()
    whole = (folder / journal.FILE).read_bytes()
    assert len(ends) == 4
    for i, (size, _) in enumerate(ends):
        after = tmp_path / f"cut{i}" / study.id
        after.mkdir(parents=True)
        (after / journal.FILE).write_bytes(whole[:size])
        assert {trial for _, trial in ends[: i + 1]} <= recorded.read(after, study).trials.keys()
        go_on(study, after)
        assert rows_of(study, after) == rows
    tally("journal: power cuts", len(ends), len(ends))


def test_a_power_cut_takes_no_folder_that_a_journal_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose folder was not synced may be gone with all that is in it. Without `make_folder` and `sync_folder` this fails; seen so."""
    synced: list[str] = []
    really = os.fsync

    def sync(file: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        really(file)

    monkeypatch.setattr(journal.os, "fsync", sync)
    log = Journal(tmp_path / "home" / "s@1")
    log.close()
    assert {str(tmp_path), str(tmp_path / "home"), str(tmp_path / "home" / "s@1")} <= set(synced)


# Other settings -------------------------------------------------------------------------------------------------------


FAST = {"plain": {}, "fast": {"training": {"learning_rate": 0.02}}}
EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "a variant's training": ({"axes": {"variant": FAST}}, r"fast: training\.learning_rate: 0\.01 -> 0\.02"),
    "a variant's model": (
        {"axes": {"variant": {"plain": {}, "fast": {"training": {"learning_rate": 0.01}, "model": {"d_mlp": 12}}}}},
        r"fast: model\.d_mlp: 8 -> 12",
    ),
    "an arm's training": (
        {"axes": {"training_of_arm": {"answer": {"beta2": 0.9}}}},
        r"plain: training\.beta2: 0\.98 -> 0\.9",
    ),
    "the training": ({"training": {"batch_size": 8, "warmup_steps": 10}}, r"training\.batch_size: 4 -> 8"),
    "the model": ({"model": {"n_layers": 1, "d_model": 8, "n_heads": 1, "d_mlp": 16}}, r"model\.d_mlp: 8 -> 16"),
    "the evaluation": (
        {"evaluation": {"points_per_decade": 5, "first_flops": 2e6, "n_sequences": 4}},
        r"evaluation\.points_per_decade: 4 -> 5",
    ),
    "the family": ({"family": {"name": "cipher", "n_symbols": 7, "n_pairs": 6}}, r"family\.n_symbols: 6 -> 7"),
}
MOMENTS = {"before any trial has ended": 25, "on a branch": 50, "after one trial": 70, "in the second variant": 155}


@pytest.fixture(scope="module")
def stopped(study: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The study as it was stopped at each moment, by the number of its steps."""
    folders = {steps: tmp_path_factory.mktemp("stopped") / study.id for steps in MOMENTS.values()}
    for steps, folder in folders.items():
        go_on(study, folder, Counter(steps))
    return folders


@pytest.mark.parametrize("edit", EDITS)
def test_a_setting_changed_between_two_runs_is_refused_by_name_whenever_the_first_was_stopped(
    edit: str, stopped: dict[int, Path], tmp_path: Path
) -> None:
    """Where only ended trials are compared, a variant that has begun goes on with other settings; seen so."""
    changes, named = EDITS[edit]
    for moment, steps in MOMENTS.items():
        if "variant" in edit and steps < 155:
            continue  # nothing of that variant is recorded yet: see below
        folder = copy_of(stopped[steps], tmp_path / str(steps))
        before = (folder / journal.FILE).read_bytes()
        with pytest.raises(jobs.StudyError, match=named):
            go_on(study_with(**changes), folder)
        assert (folder / journal.FILE).read_bytes() == before, moment
    tally("edited studies", len(MOMENTS), len(MOMENTS))


def test_a_setting_of_a_trial_that_failed_is_refused_by_name_too(study: Study, tmp_path: Path) -> None:
    go_on(study, tmp_path, Counter(25))
    trial = next(trial for trial in study.trials() if trial.variant == "fast")
    log = Journal(tmp_path)
    log.append(
        [
            {"kind": "trial", "key": "f", "trial": trial.id, "trunk": trial.trunk.id, "status": "failed"}
            | {"fingerprint": trial.fingerprint(), "reason": "no reason"}
        ]
    )
    log.close()
    with pytest.raises(jobs.StudyError, match=r"fast: training\.learning_rate: 0\.01 -> 0\.02"):
        go_on(study_with(axes={"variant": FAST}), tmp_path)


def test_what_has_recorded_nothing_may_change_and_what_is_added_runs_alone(
    study: Study, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    go_on(study, tmp_path, Counter(50))  # the first variant, on a branch
    other = study_with(axes={"variant": FAST})
    go_on(other, tmp_path)
    mixed = rows_of(other, tmp_path)
    alone = tmp_path / "alone"
    go_on(other, alone)
    assert mixed == rows_of(other, alone)
    assert [r for r in mixed if r["variant"] == "plain"] == [r for r in rows if r["variant"] == "plain"]


def test_a_variant_taken_out_and_brought_back_changed_is_refused_and_unchanged_goes_on(
    study: Study, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    go_on(study, tmp_path, Counter(155))
    only = study_with(axes={"variant": {"plain": {}}})
    assert go_on(only, tmp_path) == 0
    with pytest.raises(jobs.StudyError, match=r"fast: training\.learning_rate: 0\.01 -> 0\.02"):
        go_on(study_with(axes={"variant": FAST}), tmp_path)
    turned = study_with(axes={"variant": dict(reversed(study.axes.variant.items())), "compute_flops": [2e7, 1e7]})
    go_on(turned, tmp_path)
    assert rows_of(study, tmp_path) == rows


def test_events_of_other_settings_in_one_journal_count_for_nothing(
    study: Study, golden: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As an earlier version left them. Where the first of a key counts, whoever made it, these rows are mixed; seen so."""
    go_on(study_with(axes={"variant": FAST}), tmp_path / "other", Counter(155))
    others = journal.read(tmp_path / "other")[0]
    assert any(e["kind"] == "evaluation" and e["trunk"].endswith("fast") for e in others)
    log = Journal(tmp_path / "both")
    log.append(others)
    log.append(journal.read(golden)[0])
    log.close()
    assert rows_of(study, tmp_path / "both") == rows
    assert go_on(study, tmp_path / "both") == 0


def test_another_version_is_another_study(study: Study, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    go_on(study, tmp_path / study.id, Counter(155))
    other = study_with(version=2, axes={"variant": FAST})
    assert go_on(other, tmp_path / other.id) > 0
    go_on(study, tmp_path / study.id)
    assert rows_of(study, tmp_path / study.id) == rows


# A home of the version before -----------------------------------------------------------------------------------------


@pytest.fixture
def before(tmp_path: Path) -> tuple[Study, Path]:
    """A study that the version before left half-way: its second variant was stopped on its way to the second budget."""
    shutil.copytree(HERE / "home_before", tmp_path / "home")
    return load(str(tmp_path / "home" / "old.yaml")), tmp_path / "home" / "old@1"


def test_a_home_of_the_version_before_goes_on_from_its_checkpoints_to_the_same_results(
    before: tuple[Study, Path],
) -> None:
    study, folder = before
    state = recorded.read(folder, study)
    assert len(state.trials) == 3 and state.damage == [] and state.short == ()
    old = [json.loads(line) for line in (folder / journal.FILE).read_bytes().splitlines()]
    steps = go_on(study, folder)
    assert 0 < steps < 92 - 46 + 23  # one trial was left, and its trunk had passed the first one's branch
    assert rows_of(study, folder) == pq.read_table(HERE / "home_before" / "results.parquet").to_pylist()
    assert journal.read(folder)[0][: len(old)] == old
    assert State.of(folder).damage == []
    kept = folder / "journal.before_checksums.jsonl"
    assert [json.loads(line) for line in kept.read_bytes().splitlines()] == old
    tally("homes of the version before", 1, 1)


def test_a_setting_changed_since_the_version_before_is_refused_by_name(before: tuple[Study, Path]) -> None:
    study, folder = before
    record = study.model_dump(mode="json")
    record["axes"]["variant"]["fast"]["training"]["learning_rate"] = 0.03
    with pytest.raises(jobs.StudyError, match=r"fast: training\.learning_rate: 0\.01 -> 0\.03"):
        go_on(Study.from_record(record), folder)


def test_a_damaged_line_of_the_version_before_is_named_and_never_a_traceback(before: tuple[Study, Path]) -> None:
    """Such lines have no checksum: what is no event, or lacks what its kind must have, does not count. Without the list of
    keys a flipped name is a KeyError; seen so."""
    study, folder = before
    lines = (folder / journal.FILE).read_bytes().splitlines(keepends=True)
    tried = 0
    for i, line in enumerate(lines):
        for old, new in ((b'"kind"', b'"kinf"'), (b'"trunk": "', b'"trujk": "'), (b"{", b"[")):
            if old in line:
                damaged = [*lines[:i], line.replace(old, new, 1), *lines[i + 1 :]]
                (folder / journal.FILE).write_bytes(b"".join(damaged))
                state = State.of(folder)
                recorded.of_study(state, study)
                recorded.changed(state, study)
                assert state.damage, (i, old)
                tried += 1
    tally("journal of the version before: damaged lines", tried, tried)


def test_lines_that_the_version_before_added_to_a_newer_journal_count(
    study: Study, golden: Path, tmp_path: Path
) -> None:
    """Somebody went back for a day. Where such lines stand under no lease they never count; seen so."""
    folder = copy_of(golden, tmp_path)
    event = {"kind": "evaluation", "key": "old", "trunk": "t", "on": "trunk", "grid": True, "step": 1, "flops": 1.0}
    event |= {"train_loss_nats": None, "rows": [], "time": 1.0}
    with open(folder / journal.FILE, "a") as file:
        file.write(json.dumps(event) + "\n")
    log = Journal(folder)
    log.append([event | {"key": "new"}])
    log.close()
    state = State.of(folder)
    assert {"old", "new"} <= state.keys and state.damage == []
