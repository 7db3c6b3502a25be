"""Checkpoints survive crashes, tampering and strangers."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checkpoint, weights
from trainers.spec import Start, TrialSpec


def tensors_of(seed: int) -> dict[str, checkpoint.Tensors]:
    """A live state and a state left behind, with the values that get lost most easily."""
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, torch.finfo(torch.float32).max])
    live = {
        "weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)),
        "weight//step": torch.tensor(float(seed)),
        "odd": odd,
        "count": torch.tensor([2**62, -1]),
        "half": torch.arange(4).to(torch.bfloat16) / 3,
        "none": torch.empty(0, 4),
    }
    return {"live": live, "left": {"weight": live["weight"] + 1}}


def meta_of(seed: int) -> dict[str, Any]:
    """The form that a trainer writes, on the trunk."""
    now: dict[str, Any] = {"step": seed, "branch": None, "loss_sum": 0.1 + 0.2, "loss_n": 3, "resumed": 0, "saves": 1}
    now |= {"ended": [1e12], "exams": ["trunk/1"], "events": [{"kind": "evaluation", "key": "a/é", "rows": [None]}]}
    now |= {"steps_charged": 0, "exams_charged": 0, "train_seconds": 0.25, "eval_seconds": 0.0}
    return {"now": now, "left": {}}


def same(one: dict[str, checkpoint.Tensors], other: dict[str, checkpoint.Tensors]) -> bool:
    """Equal names, shapes and types, and equal bits (NaN included)."""

    def bits(parts: dict[str, checkpoint.Tensors]) -> dict[str, Any]:
        return {
            f"{part}/{name}": (t.dtype, t.shape, t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
            for part, tensors in parts.items()
            for name, t in tensors.items()
        }

    return bits(one) == bits(other)


def save(folder: Path, number: int, fingerprint: str = "f") -> Path:
    return folder / checkpoint.save(folder, number, fingerprint, meta_of(number), tensors_of(number))


def number_loaded(folder: Path, fingerprint: str = "f") -> int | None:
    """Which checkpoint a load takes; what it holds must then be whole."""
    found = checkpoint.load(folder, fingerprint)
    if found is None:
        return None
    meta, tensors = found
    number = meta["now"]["step"]
    assert meta == meta_of(number) and same(tensors, tensors_of(number))
    return number


def test_a_peek_is_the_meta_of_what_would_be_loaded_without_its_tensors(tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    assert checkpoint.peek(tmp_path, "f") == meta_of(2) and checkpoint.peek(tmp_path, "g") is None
    (newest / "live.safetensors").write_bytes(b"x")  # another size: this one would not be loaded
    assert checkpoint.peek(tmp_path, "f") == meta_of(1)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    path = save(tmp_path, 7)
    assert path.parent == tmp_path and path.is_dir()
    meta, tensors = checkpoint.load(tmp_path, "f")
    assert meta == meta_of(7)
    assert same(tensors, tensors_of(7)) and not same(tensors, tensors_of(8))


def test_the_newest_of_two_is_loaded_and_only_two_are_kept(tmp_path):
    for number in range(1, 13):  # past 9, where names of unequal length would sort wrongly
        save(tmp_path, number)
        assert number_loaded(tmp_path) == number
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [11, 12]


def test_saving_a_number_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, "f", meta_of(5), tensors_of(5))
    assert number_loaded(tmp_path) == 5


def test_another_fingerprints_checkpoint_is_not_loaded(tmp_path):
    save(tmp_path, 1, "f")
    save(tmp_path, 2, "g")
    assert number_loaded(tmp_path, "f") == 1
    assert number_loaded(tmp_path, "g") == 2
    assert checkpoint.load(tmp_path, "h") is None


def test_clearing_leaves_nothing_and_may_be_repeated(tmp_path):
    save(tmp_path / "c", 1)
    for _ in range(2):
        checkpoint.clear(tmp_path / "c")
        assert checkpoint.load(tmp_path / "c", "f") is None
    assert number_loaded(tmp_path) is None


# Damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of a tensor: its hash alone can show it
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"flipped": flip, "halved": halve, "emptied": lambda p: p.write_bytes(b""), "lost": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["live.safetensors", "left.safetensors", "meta.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_older_one(tmp_path, name, damage):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    DAMAGES[damage](newest / name)
    assert number_loaded(tmp_path) == 1


def test_two_damaged_checkpoints_load_as_nothing_and_a_new_start_is_safe_beside_them(tmp_path):
    """A run that starts again numbers from 1 again: what it saves must not be thrown out as the oldest."""
    for number in (7, 8):
        halve(save(tmp_path, number) / "live.safetensors")
    assert checkpoint.load(tmp_path, "f") is None
    for number in (1, 2, 3):
        save(tmp_path, number)
        assert number_loaded(tmp_path) == number
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 3]


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_tampered_pickle_is_never_opened(tmp_path):
    sprung = tmp_path / "sprung"
    save(tmp_path / "c", 1)
    newest = save(tmp_path / "c", 2)
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works
    sprung.unlink()
    (newest / "live.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    assert number_loaded(tmp_path / "c") == 1
    assert not sprung.exists()


# Crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_save_that_fails_says_so_and_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch, call):
    """The disk is full at the first, second, ... such call, up to the last that a save makes."""
    save(tmp_path, 1)
    original, failures = getattr(os, call), 0
    while True:
        left = failures

        def full(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device")
            left -= 1
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            try:
                save(tmp_path, 2)
            except OSError:
                failures += 1
            else:
                break
        assert number_loaded(tmp_path) in (1, 2)  # 2 only where the very last call failed, after the rename
        assert not list(tmp_path.glob(".*"))
        shutil.rmtree(tmp_path / "000000000002", ignore_errors=True)
    assert failures >= (4 if call == "fsync" else 1)
    assert number_loaded(tmp_path) == 2


# Elsewhere -------------------------------------------------------------------------------------------------------


@pytest.fixture
def uri(tmp_path) -> str:
    """Storage by URI: pyarrow's own local file system, which takes the way that an object store takes."""
    return f"file://{tmp_path}/bucket/prefix"


def save_and_lose_the_connection(uri: str, n_written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save of number 2 of which so many files are written."""
    original, left = checkpoint.Remote._write, n_written

    def cut(self: Any, path: str, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise OSError("connection lost")
        left -= 1
        original(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Remote, "_write", cut)
        with pytest.raises(OSError, match="connection lost"):
            checkpoint.save(uri, 2, "f", meta_of(2), tensors_of(2))


def test_a_place_is_found_to_be_writable_and_left_as_it_was(uri, tmp_path):
    for place, folder in ((uri, tmp_path / "bucket/prefix"), (tmp_path / "here", tmp_path / "here")):
        checkpoint.check_writable(place)
        assert list(folder.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", f"file://{tmp_path}/file"):
        with pytest.raises(OSError):
            checkpoint.check_writable(place)


def test_a_uri_that_no_storage_answers_to_is_refused_by_name():
    with pytest.raises(ValueError, match="gopher://x: no storage"):
        checkpoint.newest("gopher://x", "f")


def test_weights_are_written_whole_with_facts_in_their_header(uri, tmp_path):
    from safetensors import safe_open

    for where, folder in ((uri, tmp_path / "bucket/prefix"), (str(tmp_path / "here"), tmp_path / "here")):
        weights.save(where, TRIAL, {"w": torch.arange(3.0)})
        with safe_open(folder / f"{TRIAL.id}.safetensors", "pt") as file:
            assert TrialSpec.model_validate_json(file.metadata()["trial"]) == TRIAL
            assert torch.equal(file.get_tensor("w"), torch.arange(3.0))


def test_a_start_takes_the_weights_of_its_donor_and_nothing_that_is_lost_damaged_or_of_another(uri, tmp_path):
    start = Start(trial=TRIAL.id, fingerprint=TRIAL.fingerprint(), flops=1)
    for where, folder in ((uri, tmp_path / "bucket/prefix"), (str(tmp_path / "here"), tmp_path / "here")):
        with pytest.raises(OSError, match=rf"{TRIAL.id}.* are missing; put"):
            weights.load(where, start)
        assert weights.size(where, TRIAL.id) == weights.remove(where, TRIAL.id) == 0
        weights.save(where, TRIAL, {"w": torch.arange(300.0)})
        assert torch.equal(weights.load(where, start)["w"], torch.arange(300.0))
        with pytest.raises(OSError, match=rf"{TRIAL.id}.* of a trial with other settings; put"):
            weights.load(where, start.model_copy(update={"fingerprint": "another"}))
        file = folder / f"{TRIAL.id}.safetensors"
        whole = file.read_bytes()
        draw = random.Random(1)
        cut = [whole[: draw.randrange(len(whole))] for _ in range(15)]
        places = [draw.randrange(len(whole)) for _ in range(100)]
        flipped = [whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :] for at in places]
        for damaged in [*cut, *flipped]:
            file.write_bytes(damaged)
            try:  # a byte of the spec in the header is for people alone
                assert torch.equal(weights.load(where, start)["w"], torch.arange(300.0))
            except OSError as problem:
                assert TRIAL.id in str(problem) and len(str(problem).splitlines()) == 1
            except KeyError:  # the name of a tensor: no model has one of this name (`Engine.misfit`)
                assert damaged in flipped
        assert weights.remove(where, TRIAL.id) == len(damaged) and weights.size(where, TRIAL.id) == 0


TRIAL = TrialSpec.model_validate(
    {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 64, "replicate": 0, "compute_flops": 1e12}
)


@pytest.mark.parametrize(
    ("uri", "asked"),
    [
        ("gs://bucket/p", "gs://bucket/p?retry_limit_seconds=30"),
        ("gs://bucket/p?scheme=http", "gs://bucket/p?scheme=http&retry_limit_seconds=30"),
        ("gs://bucket/p?retry_limit_seconds=5", "gs://bucket/p?retry_limit_seconds=5"),
        ("s3://bucket/p/?region=us-east-1", "s3://bucket/p?region=us-east-1"),
    ],
)
def test_googles_storage_is_not_tried_for_ever(uri, asked, monkeypatch):
    from pyarrow import fs

    seen = []
    told = staticmethod(lambda uri: (seen.append(uri), (None, ""))[1])
    monkeypatch.setattr(fs, "FileSystem", type("FileSystem", (), {"from_uri": told}))
    checkpoint.store_of(uri)
    assert seen == [asked]


def test_a_folder_inside_a_place_leaves_its_query_at_the_end():
    assert checkpoint.under("s3://b/p/?region=x", "study@1", "checkpoints") == "s3://b/p/study@1/checkpoints?region=x"
    assert checkpoint.under("file:///a/b", "c") == "file:///a/b/c" and checkpoint.under("/a/b/", "c/d") == "/a/b/c/d"


def test_two_runs_may_try_one_place_at_the_same_moment(uri, tmp_path):
    """Each leaves the other's file alone: with one name for both, a quarter of these found theirs gone."""
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(checkpoint.check_writable, uri) for _ in range(200)]:
            done.result()
    assert list((tmp_path / "bucket/prefix").iterdir()) == []
