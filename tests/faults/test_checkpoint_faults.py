"""Checkpoints under faults: damage, strangers, kills, full disks, power cuts, writers that live and writers that are gone.

What is loaded is always whole; a run that lost its newest checkpoint goes on from the one before, and ends the same to the bit.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tally
from safetensors.torch import load_file, save_file
from steps import Counter
from test_checkpoint import meta_of, number_loaded, save, tensors_of
from test_train import N_STEPS, budgets_of, keyed, place_of, trunk_of

from trainers import checkpoint
from trainers.train import run_trunk

TESTS = Path(__file__).parent.parent
FILES = ("manifest.json", "meta.json", "live.safetensors", "left.safetensors")


def signed(folder: Path, **facts: Any) -> None:
    """A manifest with the right sizes and hashes of what lies in `folder` now: as a stranger would write it."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    described = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    old = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(old | {"files": described} | facts))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with checkpoints 1 and 2."""
    save(tmp_path / "c", 1)
    save(tmp_path / "c", 2)
    return tmp_path / "c"


# Damage --------------------------------------------------------------------------------------------------------------


def damages(data: bytes, other: bytes, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Each kind of damage to a file: what it then holds; None where it is gone."""
    for end in {0, 1, 7, len(data) // 2, len(data) - 1, *(rng.randrange(len(data)) for _ in range(6))}:
        yield "checkpoint file cut short", data[:end]
    for _ in range(100):
        at = rng.randrange(len(data))
        yield "byte of a checkpoint changed", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    for begin, end in ((0, len(data)), (0, len(data) // 2), (len(data) // 2, len(data))):
        yield "checkpoint file zeroed", data[:begin] + bytes(end - begin) + data[end:]
    yield "checkpoint file lengthened", data + b"}"
    yield "checkpoint file of another checkpoint", other
    yield "checkpoint file removed", None


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_damaged_the_checkpoint_before_is_loaded(two: Path, file: str) -> None:
    """Fails without the comparison of sizes and hashes, or of the manifest's number with its folder's."""
    path = two / "000000000002" / file
    data, other = path.read_bytes(), (two / "000000000001" / file).read_bytes()
    for kind, damaged in damages(data, other, random.Random(file)):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        assert number_loaded(two) == 1, kind
        tally(kind, 1, 1)
        path.write_bytes(data)
    assert number_loaded(two) == 2


def test_checkpoints_whose_folders_were_exchanged_do_not_count(two: Path) -> None:
    """Fails if the manifest's number is not compared with its folder."""
    os.rename(two / "000000000001", two / "x")
    os.rename(two / "000000000002", two / "000000000001")
    os.rename(two / "x", two / "000000000002")
    assert number_loaded(two) is None


# Strangers -----------------------------------------------------------------------------------------------------------


def outside(two: Path) -> Path:
    """A whole tensor file beside the folder, which no checkpoint may reach."""
    path = two.parent / "outside.safetensors"
    shutil.copy(two / "000000000001" / "live.safetensors", path)
    return path


def with_file(name: str) -> Callable[[Path], None]:
    """The manifest names a file more, rightly described."""

    def change(newest: Path) -> None:
        target = outside(newest.parent)
        data = target.read_bytes()
        manifest = json.loads((newest / "manifest.json").read_text())
        facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][name.format(outside=target)] = facts
        (newest / "manifest.json").write_text(json.dumps(manifest))

    return change


def with_size(size: Any) -> Callable[[Path], None]:
    """The manifest states this size of the tensors."""

    def change(newest: Path) -> None:
        manifest = json.loads((newest / "manifest.json").read_text())
        manifest["files"]["live.safetensors"]["bytes"] = size
        (newest / "manifest.json").write_text(json.dumps(manifest))

    return change


def with_manifest(text: str | bytes) -> Callable[[Path], None]:
    """The manifest is this."""
    data = text.encode() if isinstance(text, str) else text
    return lambda newest: (newest / "manifest.json").write_bytes(data) and None  # type: ignore[func-returns-value]


def linked(name: str) -> Callable[[Path], None]:
    """A file is a link to the same content elsewhere."""

    def change(newest: Path) -> None:
        os.rename(newest / name, newest.parent.parent / name)
        (newest / name).symlink_to(newest.parent.parent / name)

    return change


def a_linked_folder(newest: Path) -> None:
    os.rename(newest, newest.parent.parent / "elsewhere")
    newest.symlink_to(newest.parent.parent / "elsewhere")


def a_pipe(newest: Path) -> None:
    """Opened carelessly, it is waited for without end."""
    (newest / "live.safetensors").unlink()
    os.mkfifo(newest / "live.safetensors")
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["live.safetensors"] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (newest / "manifest.json").write_text(json.dumps(manifest))


def a_folder(newest: Path) -> None:
    (newest / "live.safetensors").unlink()
    (newest / "live.safetensors").mkdir()


def without_meta(newest: Path) -> None:
    (newest / "meta.json").unlink()
    signed(newest)


def twice(newest: Path) -> None:
    text = (newest / "manifest.json").read_text()
    (newest / "manifest.json").write_text(text.replace("{", '{"fingerprint": "g", ', 1))


STRANGE = {
    **{f"file {name!r}": with_file(name) for name in ("{outside}", "../../outside.safetensors", "x/y.safetensors")},
    **{f"file {name!r}": with_file(name) for name in ("a\0.safetensors", "", ".", "x.pt", "é.safetensors", "a" * 300)},
    **{f"size {size!r:.20}": with_size(size) for size in (-1, 2**62, 10**30, 0, "12", 12.0, True, None, [], 1e400)},
    "list": with_manifest("[]"),
    "nested": with_manifest("[" * 30_000 + "]" * 30_000),
    "nested objects": with_manifest('{"a":' * 8_000 + "1" + "}" * 8_000),
    "no text": with_manifest(b"\xff\xfe\x00"),
    "huge": with_manifest(json.dumps({"fingerprint": "f", "padding": "x" * 2**21})),
    "long number": with_manifest('{"fingerprint": "f", "number": ' + "9" * 5_000 + ', "files": {}}'),
    "no file": with_manifest('{"fingerprint": "f", "number": 2, "files": {}}'),
    "key given twice": twice,
    "linked tensors": linked("live.safetensors"),
    "linked meta": linked("meta.json"),
    "linked manifest": linked("manifest.json"),
    "linked folder": a_linked_folder,
    "pipe": a_pipe,
    "folder for a file": a_folder,
    "no meta": without_meta,
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strangers_manifest_is_passed_over_and_saving_goes_on(two: Path, case: str) -> None:
    """Fails without the list of names, the refusal of links and pipes, the limit on a manifest, or its types."""
    STRANGE[case](two / "000000000002")
    assert number_loaded(two) == 1 and checkpoint.newest(two, "f") == 1
    assert checkpoint.peek(two, "f") == meta_of(1)
    save(two, 2)
    assert number_loaded(two) == 2
    tally("hostile manifests", 1, 1)


def test_folders_with_strange_digits_are_no_checkpoints(two: Path) -> None:
    """Fails where `str.isdigit` decides what is a number."""
    for name in ("²", "٣" * 12, "3", "0" * 13, "00000000000x"):
        (two / name).mkdir()
    assert number_loaded(two) == 2 and checkpoint.numbers(two) == [1, 2]
    save(two, 3)
    assert number_loaded(two) == 3


def changed_metas() -> Iterator[Any]:
    """Each key of a meta lost, and given values of other types."""
    for key in meta_of(2)["now"]:
        meta = meta_of(2)
        del meta["now"][key]
        yield meta
        for value in (None, "x", -1, True, {}, [None], 1.5, float("nan"), 2**70):
            meta = meta_of(2)
            sound = key in ("loss_sum", "train_seconds", "eval_seconds") and value in (1.5, 2**70)
            if sound or (key, value) in (("branch", None), ("loss_sum", -1)):
                continue
            meta["now"][key] = value
            yield meta
    on_branch = meta_of(2)["now"] | {"branch": 1e12}
    yield from ([], None, {}, {"now": {}}, {"now": meta_of(2)["now"]}, {"now": on_branch, "left": {}})
    yield {"now": on_branch, "left": {"step": 1, "loss_sum": "x", "loss_n": 0}}
    yield meta_of(2) | {"left": {"step": 1, "loss_sum": 0.0, "loss_n": 0}}  # the trunk left nothing


def test_a_meta_of_another_form_is_passed_over_though_its_hash_is_right(two: Path) -> None:
    """Fails without the check of its form: a run then dies of a KeyError, or trains with what it finds."""
    newest, n = two / "000000000002", 0
    for meta in changed_metas():
        (newest / "meta.json").write_text(json.dumps(meta))
        signed(newest)
        assert number_loaded(two) == 1, meta
        n += 1
    (newest / "meta.json").write_text("[" * 100_000)
    signed(newest)
    assert number_loaded(two) == 1
    tally("metas of another form", n + 1, n + 1)


def tensor_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


NO_TENSORS = {
    "empty": b"",
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 2^40 bytes": struct.pack("<Q", 2**40) + b"{}",
    "overlapping": tensor_file({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "a hole": tensor_file({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, bytes(20)),
    "beyond the end": tensor_file({"a": entry("F32", [2], 0, 8)}, bytes(4)),
    "backwards": tensor_file({"a": entry("F32", [2], 8, 0)}, bytes(8)),
    "unknown type": tensor_file({"a": entry("F99", [2], 0, 8)}, bytes(8)),
    "type that torch lacks": tensor_file({"a": entry("F4", [4], 0, 2)}, bytes(2)),
    "huge shape": tensor_file({"a": entry("F32", [2**62, 4], 0, 8)}, bytes(8)),
    "negative shape": tensor_file({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
    "list": tensor_file([1]),
    "nested": tensor_file(b"[" * 100_000),
    "no text": tensor_file(b"\xff\xfe"),
}


@pytest.mark.parametrize("case", NO_TENSORS)
def test_a_strangers_tensors_are_passed_over(two: Path, case: str) -> None:
    """Fails if what the reader of tensors raises is not caught."""
    newest = two / "000000000002"
    (newest / "live.safetensors").write_bytes(NO_TENSORS[case])
    signed(newest)
    assert number_loaded(two) == 1
    tally("hostile tensor files", 1, 1)


# Runs ----------------------------------------------------------------------------------------------------------------

TRUNK = trunk_of()
BUDGETS = budgets_of(TRUNK, 50, 62)
ON_A_BRANCH = 45


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The results of an uninterrupted run."""
    events: list[dict[str, Any]] = []
    run_trunk(TRUNK, BUDGETS, place_of(Path("unused")).model_copy(update={"checkpoint_folder": None}), events.extend)
    return keyed(events)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left that saved before each step and was stopped on a branch: checkpoints before steps 44 and 45."""
    folder = tmp_path_factory.mktemp("left") / "c"
    run_trunk(TRUNK, BUDGETS, place_of(folder, 0.0), lambda events: None, Counter(ON_A_BRANCH))
    found = [checkpoint.load(folder, TRUNK.fingerprint(), number) for number in checkpoint.numbers(folder)]
    assert [one[0]["now"]["step"] for one in found if one] == [ON_A_BRANCH - 1, ON_A_BRANCH]
    return folder


def resumed(folder: Path) -> tuple[dict[str, Any], int, list[str]]:
    """The results of a run to its end, how many steps it made, and what it noted."""
    events: list[dict[str, Any]] = []
    notes: list[str] = []
    count = Counter()
    assert run_trunk(TRUNK, BUDGETS, place_of(folder), events.extend, count, notes.append) == "finished"
    return keyed(events), count.steps, notes


def edit_tensors(file: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(newest: Path) -> None:
        tensors = load_file(newest / file)
        edit(tensors)
        save_file(tensors, newest / file)
        signed(newest)

    return change


def edit_meta(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(newest: Path) -> None:
        meta = json.loads((newest / "meta.json").read_text())
        edit(meta)
        (newest / "meta.json").write_text(json.dumps(meta))
        signed(newest)

    return change


def lose(newest: Path, file: str) -> None:
    (newest / file).unlink()
    signed(newest)


NORM, MATRIX = "norm.weight", "blocks.0.up.weight"
UNFIT = {
    "cut": lambda newest: (newest / "live.safetensors").write_bytes(b"x"),
    "tensor missing": edit_tensors("live.safetensors", lambda t: t.pop(NORM)),
    "moments missing": edit_tensors("live.safetensors", lambda t: t.pop(f"{NORM}//exp_avg")),
    "tensor more": edit_tensors("left.safetensors", lambda t: t.update(more=t[NORM].clone())),
    "other shape": edit_tensors("live.safetensors", lambda t: t.update({MATRIX: t[MATRIX].T.contiguous()})),
    "shape that broadcasts": edit_tensors("left.safetensors", lambda t: t.update({MATRIX: t[MATRIX][:1].clone()})),
    "other type": edit_tensors("live.safetensors", lambda t: t.update({NORM: t[NORM].double()})),
    "trunk's tensors missing": lambda newest: lose(newest, "left.safetensors"),
    "key missing": edit_meta(lambda meta: meta["now"].pop("exams_charged")),
    "point cut short": edit_meta(lambda meta: meta["now"].update(points=[[46, 1.5]])),
    "trunk's place missing": edit_meta(lambda meta: meta.update(left={})),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_run_passes_over_what_does_not_fit_and_ends_the_same_to_the_bit(
    whole: dict[str, Any], left: Path, tmp_path: Path, case: str
) -> None:
    """Fails without the check of names, shapes and types before a state is taken up."""
    folder = tmp_path / "c"
    shutil.copytree(left, folder)
    UNFIT[case](max(folder.iterdir()))
    found, steps, notes = resumed(folder)
    assert found == whole and steps == N_STEPS - ON_A_BRANCH + 1
    assert len(notes) == 1 and "\n" not in notes[0]
    tally("runs whose newest checkpoint does not fit", 1, 1)


@pytest.mark.parametrize("name", ["step", "left"])
def test_a_place_where_no_run_ever_stood_is_not_gone_on_from(
    whole: dict[str, Any], left: Path, tmp_path: Path, name: str
) -> None:
    """Beyond the end of a branch or of the trunk. Fails without the comparison with both ends: the run would not end."""
    folder = tmp_path / "c"
    shutil.copytree(left, folder)
    edit = {
        "step": lambda meta: meta["now"].update(step=10**9),
        "left": lambda meta: meta["left"].update(step=10**9),
    }
    edit_meta(edit[name])(max(folder.iterdir()))
    found, steps, _ = resumed(folder)
    assert found == whole and steps == N_STEPS
    tally("places where no run ever stood", 1, 1)


def test_a_run_whose_checkpoints_are_all_damaged_begins_at_the_start_and_ends_the_same(
    whole: dict[str, Any], left: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(left, folder)
    for path in folder.iterdir():
        UNFIT["other shape"](path)
    found, steps, notes = resumed(folder)
    assert found == whole and steps == N_STEPS and len(notes) == 1 and "damaged" in notes[0]
    tally("runs without a whole checkpoint", 1, 1)


def test_checkpoints_that_cannot_be_read_are_an_error_and_no_reason_to_start_again(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails is passed over for an older checkpoint, and never taken for an empty one. Fails if what cannot be
    read counts as damaged: the run would begin at the start, and remove what may be whole."""
    folder, read, bad = tmp_path / "c", checkpoint.Local.read, ["5"]
    shutil.copytree(left, folder)
    names = sorted(path.name for path in folder.iterdir())

    def fail(self: checkpoint.Local, name: str, file: str) -> bytes:
        if name in bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, name, file)

    monkeypatch.setattr(checkpoint.Local, "read", fail)  # a disk that fails cannot be had here
    bad[:] = names
    with pytest.raises(OSError, match="Input/output error") as problem:
        resumed(folder)
    assert "\n" not in str(problem.value)
    assert sorted(path.name for path in folder.iterdir()) == names
    bad[:] = names[1:]
    assert checkpoint.newest(folder, TRUNK.fingerprint()) == int(names[0])
    number = int(names[0])
    written = checkpoint.save(folder, number, TRUNK.fingerprint(), meta_of(number), tensors_of(number))
    assert int(written) == number + 2 and (folder / names[1]).exists()


def test_starting_again_leaves_what_others_keep_in_the_folder(whole: dict[str, Any], tmp_path: Path) -> None:
    """A budget that the trunk has passed is trained from the start. Fails if the whole folder is cleared for it."""
    run_trunk(TRUNK, BUDGETS[1:], place_of(tmp_path), lambda events: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    found, steps, _ = resumed(tmp_path)
    assert found == whole and steps == N_STEPS
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_every_event_names_its_setting_also_those_of_the_version_before(left: Path, tmp_path: Path) -> None:
    """Fails if events of a checkpoint that lack a fingerprint are told again without one."""
    folder, mine = tmp_path / "c", TRUNK.fingerprint()
    shutil.copytree(left, folder)

    def strip(meta: dict[str, Any]) -> None:
        assert len(meta["now"]["events"]) > 3
        del meta["now"]["points"]
        for event in meta["now"]["events"]:
            del event["fingerprint"]

    edit_meta(strip)(max(folder.iterdir()))
    events: list[dict[str, Any]] = []
    run_trunk(TRUNK, BUDGETS, place_of(folder), events.extend)
    assert {e["kind"] for e in events} == {"evaluation", "telemetry", "trial", "trunk"}
    for event in events:
        own = TRUNK.trial(event["compute_flops"]).fingerprint() if event["kind"] == "trial" else mine
        assert event["fingerprint"] == own
    assert all("fingerprint" in e for e in checkpoint.peek(folder, mine)["now"]["events"])


# Saves that fail -----------------------------------------------------------------------------------------------------


class Blocking:
    """An `emit` that puts a file in the place of the checkpoint folder at its second event, and may put it back."""

    def __init__(self, folder: Path, until: int | None) -> None:
        self.folder, self.aside, self.until = folder, folder.with_name("aside"), until
        self.events: list[dict[str, Any]] = []

    def __call__(self, events: list[dict[str, Any]]) -> None:
        self.events += events
        if len(self.events) == 2:
            os.rename(self.folder, self.aside)
            self.folder.write_text("in the way")
        if len(self.events) == self.until:
            self.free()

    def free(self) -> None:
        """Put it back."""
        self.folder.unlink()
        os.rename(self.aside, self.folder)


def test_a_save_that_fails_for_a_while_costs_no_training(whole: dict[str, Any], tmp_path: Path) -> None:
    """Fails if a periodic save that cannot be written ends the run, or is noted each time."""
    blocking, notes = Blocking(tmp_path / "c", until=5), []
    count = Counter()
    status = run_trunk(TRUNK, BUDGETS, place_of(tmp_path / "c", 0.0), blocking, count, notes.append)
    assert status == "finished" and keyed(blocking.events) == whole and count.steps == N_STEPS
    assert len(notes) == 1 and notes[0].startswith(TRUNK.id) and "\n" not in notes[0]
    assert len(checkpoint.numbers(tmp_path / "c")) == 2 and resumed(tmp_path / "c")[1] == 0
    tally("saves that fail for a while", 1, 1)


@pytest.mark.parametrize("stop_before", [20, None], ids=["a stop", "the end"])
def test_the_last_save_that_can_be_made_fails_in_one_line_and_leaves_the_older_one(
    whole: dict[str, Any], tmp_path: Path, stop_before: int | None
) -> None:
    blocking, notes = Blocking(tmp_path / "c", until=None), []
    with pytest.raises(OSError, match="cannot be written") as problem:
        run_trunk(TRUNK, BUDGETS, place_of(tmp_path / "c", 0.0), blocking, Counter(stop_before), notes.append)
    assert "\n" not in str(problem.value) and str(tmp_path / "c") in str(problem.value) and len(notes) == 1
    blocking.free()
    found, steps, _ = resumed(tmp_path / "c")
    assert found == whole and 0 < steps < N_STEPS
    tally("last saves that fail", 1, 1)


def test_a_folder_that_was_never_written_to_fails_at_the_first_save(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("in the way")
    count = Counter()
    with pytest.raises(OSError, match="cannot be written"):
        run_trunk(TRUNK, BUDGETS, place_of(tmp_path / "c", 0.0), lambda events: None, count)
    assert count.steps == 0


@pytest.mark.parametrize("n_written", range(4))
def test_an_object_stores_only_checkpoint_outlives_a_second_write_of_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    """There is no rename there. Fails if the number is cleared away before its new files are written."""
    uri, original, left_to_write = f"file://{tmp_path}/b", checkpoint.Remote._write, n_written
    checkpoint.save(uri, 1, "f", meta_of(1), tensors_of(1))

    def cut(self: Any, path: str, data: bytes) -> None:
        nonlocal left_to_write
        if left_to_write == 0:
            raise OSError("connection lost")
        left_to_write -= 1
        original(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Remote, "_write", cut)
        with pytest.raises(OSError, match="connection lost"):
            checkpoint.save(uri, 1, "f", meta_of(5), tensors_of(5))
    assert number_loaded(tmp_path / "b") == 1
    checkpoint.save(uri, 1, "f", meta_of(5), tensors_of(5))
    assert number_loaded(tmp_path / "b") == 5


# Kills ---------------------------------------------------------------------------------------------------------------

SAVING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import save
folder = Path(sys.argv[1])
print(0, flush=True)
for begin in map(int, sys.stdin):  # a child for each life
    child = os.fork()
    if not child:
        for number in range(begin, begin + 1000):
            os.write(1, b"%d\\n" % int(save(folder, number).name))  # in one piece: a kill leaves no half line
        os._exit(0)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_what_is_loaded_after_a_kill_in_the_middle_of_saving_is_whole(tmp_path: Path) -> None:
    """A process that saves without pause, killed 20 times at random moments: nothing that it called safe is lost. Fails if a
    checkpoint is written where it is to stand, or if files of killed writers are left behind."""
    folder, rng, last = tmp_path / "c", random.Random(0), 0
    command = [sys.executable, "-c", SAVING, str(folder), str(TESTS / "training")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as saving:
        assert saving.stdin and saving.stdout
        saving.stdout.readline()
        for _ in range(20):
            print(last + 1, file=saving.stdin, flush=True)
            child = int(saving.stdout.readline().split()[1])
            for _ in range(rng.randint(1, 2)):
                last = int(saving.stdout.readline())
            time.sleep(rng.random() * 0.02)  # a random moment, waiting for nothing
            os.kill(child, signal.SIGKILL)
            while (line := saving.stdout.readline().strip()) != "dead":
                last = int(line)
            loaded = number_loaded(folder)
            assert loaded is not None and loaded in (last, last + 1)
            last = loaded
            tally("kills in the middle of saving", 1, 1)
        saving.stdin.close()
        assert saving.wait(60) == 0
    save(folder, last + 1)
    assert not list(folder.glob(".*"))


# Writers -------------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from trainers import checkpoint
torn = Path(sys.argv[1]) / checkpoint._temporary("000000000009")
torn.mkdir()
print(torn.name, flush=True)
sys.stdin.read()
"""


def writer(folder: Path, *before: str) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of a save, for as long as it lives, and what it has written so far; aged by a year."""
    command = [*before, sys.executable, "-c", WRITER, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert one.stdout
    name = one.stdout.readline().strip()
    if not name:
        one.communicate()
        pytest.skip(f"not allowed here: {' '.join(before)}")
    return one, folder / name


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_a_writer_left_is_removed_once_it_is_gone_and_not_before(tmp_path: Path) -> None:
    """However old it is. Fails if torn folders of other processes are removed while they live; or if one that has ended but
    was not yet waited for passes for alive."""
    one, torn = writer(tmp_path)
    age(torn, 365 * 86_400)
    save(tmp_path, 1)
    assert torn.is_dir()
    one.kill()
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and still stands in the table of processes
    save(tmp_path, 2)
    assert not torn.exists()
    one.communicate()
    tally("writers that live, or are gone", 2, 2)


def test_a_writer_in_another_container_is_left_alone(tmp_path: Path) -> None:
    """It has the same host name and boot and a PID of its own counting. Fails if its PID is looked up here."""
    inside = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    one, torn = writer(tmp_path, *inside)
    try:
        save(tmp_path, 1)
        assert torn.is_dir()
    finally:
        one.communicate("")
    save(tmp_path, 2)
    assert torn.is_dir()  # nobody here can know that it is gone
    age(torn, checkpoint.TORN_SECONDS + 60)
    save(tmp_path, 3)
    assert not torn.exists()
    tally("writers that live, or are gone", 2, 2)


def test_who_writes_is_decided_by_boot_namespace_pid_and_start(tmp_path: Path) -> None:
    """Fails if any of the four is left out."""
    mine = checkpoint._temporary("000000000009").split("~")
    _, system, pid, started, unique = mine
    boot, _, namespace = system.rpartition("-")

    def torn(system: str = system, pid: str = pid, started: str = started, old: bool = False) -> Path:
        path = tmp_path / "~".join((".000000000009", system, pid, started, unique))
        path.mkdir(exist_ok=True)
        age(path, 2 * checkpoint.TORN_SECONDS if old else 0)
        return path

    another_boot = f"{boot[:-1]}{'0' if boot[-1] != '0' else '1'}-{namespace}"
    cases = [
        (torn(), True),  # another thread of this very process
        (torn(started=str(int(started) + 1)), False),  # our PID, as it was used before
        (torn(system=another_boot), True),
        (torn(system=another_boot, pid="4000000", old=True), False),
        (torn(system=f"{boot}-1", pid="4000000"), True),
        (torn(system="0", pid="4000000"), True),
        (torn(pid="4000000"), False),  # beyond what Linux gives out
    ]
    save(tmp_path, 1)
    assert [path.exists() for path, _ in cases] == [stays for _, stays in cases]
    tally("writers that live, or are gone", len(cases), len(cases))


def test_what_this_pid_left_before_a_restart_stops_no_save(tmp_path: Path) -> None:
    """By the names of this version and of the one before. Fails if a temporary name may occur twice."""
    import socket

    for name in ("000000000001", ".writable"):
        (tmp_path / f".{name}.{socket.gethostname()}.{os.getpid()}").mkdir()
    for _ in range(3):
        save(tmp_path, 1)
        checkpoint.check_writable(tmp_path)
    assert number_loaded(tmp_path) == 1
    names = {checkpoint._temporary("x") for _ in range(1000)}
    assert len(names) == 1000


# Power cuts ----------------------------------------------------------------------------------------------------------


class Disk:
    """What a power cut would leave of a folder: of files, what was synced; of names, those of folders that were synced, or
    also those that were not, whichever is worse."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data: dict[int, bytes] = {}  # by inode; held open, so that no number comes again
        self.names: dict[int, dict[str, int]] = {root.stat().st_ino: {}}
        self.kinds: dict[int, bool] = {}
        self.held: list[int] = []
        self.look()

    def look(self) -> None:
        """Hold on to every file and folder that there is."""
        for path in [self.root, *self.root.rglob("*")]:
            inode = path.stat().st_ino
            if inode not in self.kinds:
                self.kinds[inode] = path.is_dir()
                self.held.append(os.open(path, os.O_RDONLY))

    def synced(self, handle: int) -> None:
        """One file or folder has reached the disk."""
        self.look()
        path, inode = Path(f"/proc/self/fd/{handle}").readlink(), os.fstat(handle).st_ino
        if path.is_dir():
            self.names[inode] = {p.name: p.stat().st_ino for p in path.iterdir()}
        else:
            self.data[inode] = path.read_bytes()

    def left(self, target: Path, which: str) -> None:
        """Write to `target` what a power cut leaves now."""

        def copy(inode: int, here: Path | None, to: Path) -> None:
            to.mkdir()
            now = {p.name: p.stat().st_ino for p in here.iterdir()} if here and here.is_dir() else {}
            safe = self.names.get(inode, {})
            names = {"safe": safe, "all": now, "safe but removed": {n: i for n, i in safe.items() if n in now}}[which]
            for name, child in names.items():
                if self.kinds[child]:
                    copy(child, here / name if here else None, to / name)
                else:
                    (to / name).write_bytes(self.data.get(child, b""))

        copy(self.root.stat().st_ino, self.root, target)

    def close(self) -> None:
        """Let go."""
        for handle in self.held:
            os.close(handle)


def test_a_power_cut_at_any_moment_of_a_save_leaves_what_was_called_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded syncs replayed without what was not yet synced. Fails without the sync of a file, of the new folder, of the
    folder that it is moved into, or of a folder made above them; and if older checkpoints are removed before that."""
    (tmp_path / "disk").mkdir()
    disk, folder, safe, tried = Disk(tmp_path / "disk"), tmp_path / "disk" / "new" / "c", 0, 0

    def cut() -> None:
        nonlocal tried
        disk.look()
        for which in ("safe", "all", "safe but removed"):
            target = tmp_path / f"cut-{tried}"
            disk.left(target, which)
            found = number_loaded(target / "new" / "c")
            assert (found or 0) >= safe, f"{found} after a cut; {safe} was called safe"
            shutil.rmtree(target)
            tried += 1

    sync, rename, remove = os.fsync, os.rename, shutil.rmtree

    def synced(handle: int) -> None:
        sync(handle)
        disk.synced(handle)
        cut()

    def renamed(*given: Any) -> None:
        rename(*given)
        cut()

    def removed(path: Path, **how: Any) -> None:
        remove(path, **how)
        if "cut-" not in str(path):
            cut()

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    try:
        for number in (1, 2, 3, 4):
            save(folder, number)
            safe = number
            cut()
    finally:
        disk.close()
    assert tried > 100
    tally("power cuts in a save", tried, tried)


# Full disks ----------------------------------------------------------------------------------------------------------

FULL = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/faults", sys.argv[2] + "/training"]
from steps import Counter
import torch
from test_checkpoint import meta_of, number_loaded
from test_train import budgets_of, keyed, place_of, trunk_of
from trainers import checkpoint
from trainers.train import run_trunk

disk = Path(sys.argv[1])

def fill():
    with open(disk / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass

def save(number):
    tensors = {"live": {"w": torch.full((50_000,), float(number))}}  # 200 kB
    checkpoint.save(disk / "c", number, "f", meta_of(number), tensors)

def loaded():
    meta, parts = checkpoint.load(disk / "c", "f")
    assert (parts["live"]["w"] == meta["now"]["step"]).all()
    return meta["now"]["step"]

save(1)
fill()
said = []
for number in (2, 2, 2):
    try:
        save(number)
    except OSError as problem:
        said.append([problem.errno, str(problem)])
    assert loaded() == 1
hidden = [p.name for p in (disk / "c").iterdir()]
(disk / "filler").unlink()
save(2)
after = loaded()
checkpoint.clear(disk / "c")

trunk = trunk_of()
budgets = budgets_of(trunk, 50, 62)
whole, events, notes = [], [], []
run_trunk(trunk, budgets, place_of(disk / "t").model_copy(update={"checkpoint_folder": None}), whole.extend)

def emit(told):
    events.extend(told)
    if len(events) == 2:
        fill()
    if len(events) == 5:
        (disk / "filler").unlink()

count = Counter()
status = run_trunk(trunk, budgets, place_of(disk / "t", 0.0), emit, count, notes.append)
same = keyed(events) == keyed(whole)
print(json.dumps([said, hidden, after, status, same, count.steps, notes]))
"""


def test_a_full_disk_is_one_line_and_costs_neither_the_older_checkpoint_nor_the_training(tmp_path: Path) -> None:
    """A real file system of 1 MB, in a namespace of its own. Fails if what was half written stays and takes up the room."""
    script = f'mount -t tmpfs -o size=1m disk {tmp_path} && exec {sys.executable} -c "$0" {tmp_path} {TESTS}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, FULL]
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}"}
    if not shutil.which("unshare") or subprocess.run([*command[:4], "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here: a full disk cannot be had")
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    said, names, after, status, same, steps, notes = json.loads(found.stdout.splitlines()[-1])
    assert len(said) == 3 and all(number == errno.ENOSPC and "\n" not in text for number, text in said)
    assert names == ["000000000001"] and after == 2
    assert (status, same, steps, len(notes)) == ("finished", True, N_STEPS, 1)
    tally("full disks", 4, 4)


def test_a_write_that_is_cut_off_by_a_limit_fails_and_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """The system takes a part of the data and then refuses the rest. Fails if a short write passes for a whole one."""
    import resource

    save(tmp_path, 1)
    big = {"live": {"w": torch.zeros(50_000)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as problem:
            checkpoint.save(tmp_path, 2, "f", meta_of(2), big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert problem.value.errno == errno.EFBIG and "\n" not in str(problem.value)
    assert number_loaded(tmp_path) == 1 and not list(tmp_path.glob(".*"))
