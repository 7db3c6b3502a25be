"""Shards: token ids come back as they were written, and a damaged file is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainers.data import shards
from trainers.data.sources import TableError

ANSWER, END = 256, 257


def sequences(n: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prompt ids, target ids) of n items. Some prompts and targets are empty."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, rng.integers(0, 9)), rng.integers(0, 256, rng.integers(0, 5))) for _ in range(n)]


def write(folder: Path, items: list[tuple[np.ndarray, np.ndarray]], vocab_size: int = 258, at_once: int = 7) -> Path:
    folder.mkdir()
    writer = shards.Writer(folder, vocab_size)
    for start in range(0, len(items), at_once):
        part = items[start : start + at_once]
        ids = np.concatenate([piece for p, t in part for piece in (p, [ANSWER], t, [END])])
        writer.add(ids, np.array([len(p) for p, _ in part]), np.array([len(t) for _, t in part]))
    writer.close()
    shards.seal(folder, shards.describe(folder, "d", vocab_size))
    shards._VERIFIED.clear()  # as in another process
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of about 40 items, record batches of about 10."""
    monkeypatch.setattr(shards, "SHARD_ITEMS", 40)
    monkeypatch.setattr(shards, "BATCH_BYTES", 200)


@pytest.mark.parametrize("vocab_size", [258, 70_000])
@pytest.mark.usefixtures("small")
def test_items_come_back_in_any_order_over_all_shards(vocab_size: int, tmp_path: Path) -> None:
    given = sequences(200)
    items = shards.Items(write(tmp_path / "d", given, vocab_size))
    assert len(items) == 200 and len(list((tmp_path / "d").glob("*.arrow"))) > 3
    numbers = np.random.default_rng(1).integers(0, 200, 500)  # some twice
    ids, offsets, n_prompt = items.tokens(numbers)
    assert ids.dtype == (np.uint16 if vocab_size == 258 else np.uint32)
    for i, number in enumerate(numbers.tolist()):
        prompt, target = given[number]
        found = ids[offsets[i] : offsets[i + 1]].tolist()
        assert found == [*prompt, ANSWER, *target, END] and n_prompt[i] == len(prompt)
        assert [part.tolist() for part in items.item(number)] == [prompt.tolist(), target.tolist()]
    assert items.n_prompt.tolist() == [len(p) for p, _ in given]
    assert items.n_target.tolist() == [len(t) for _, t in given]


def test_an_item_is_a_view_and_cannot_be_written_to(tmp_path: Path) -> None:
    prompt, target = shards.Items(write(tmp_path / "d", sequences(20))).item(3)
    assert not prompt.flags.owndata and not prompt.flags.writeable and not target.flags.owndata


def test_no_items_and_numbers_outside(tmp_path: Path) -> None:
    items = shards.Items(write(tmp_path / "d", sequences(20)))
    ids, offsets, n_prompt = items.tokens(np.zeros(0, np.int64))
    assert (len(ids), offsets.tolist(), len(n_prompt)) == (0, [0], 0)
    for wrong in ([20], [-1]):
        with pytest.raises(IndexError):
            items.tokens(np.array(wrong))
    with pytest.raises(IndexError):
        items.item(20)


def _truncate(folder: Path) -> str:
    path = folder / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    return path.name


def _remove(folder: Path) -> str:
    (folder / "shard-00001.arrow").unlink()
    return "shard-00001.arrow"


def _cut_the_manifest(folder: Path) -> str:
    path = folder / shards.MANIFEST
    path.write_bytes(path.read_bytes()[:-9])
    return path.name


def _lead_out_of_the_folder(folder: Path) -> str:
    path = folder / shards.MANIFEST
    path.write_text(path.read_text().replace('"n_prompt.npy"', '"../n_prompt.npy"'))
    return path.name


def _retype(folder: Path) -> str:
    """A valid Arrow file of another type, with the right size and checksum in the manifest."""
    path = folder / "shard-00001.arrow"
    wrong = pa.table({"ids": pa.array([[1, 2]], pa.large_list(pa.int32()))})
    with pa.ipc.new_file(path, wrong.schema) as sink:
        sink.write_table(wrong)
    return _reseal(folder, path)


def _no_arrow(folder: Path) -> str:
    (folder / "shard-00001.arrow").write_bytes(b"nothing")
    return _reseal(folder, folder / "shard-00001.arrow")


def _retype_lengths(folder: Path) -> str:
    np.save(folder / "n_target.npy", np.load(folder / "n_target.npy").astype(np.int64))
    return _reseal(folder, folder / "n_target.npy")


def _one_length_less(folder: Path) -> str:
    np.save(folder / "n_target.npy", np.load(folder / "n_target.npy")[1:])
    return _reseal(folder, folder / "n_target.npy")


def _pickle(folder: Path) -> str:
    np.save(folder / "n_target.npy", np.array([{}]), allow_pickle=True)
    return _reseal(folder, folder / "n_target.npy")


def _alter_lengths(folder: Path) -> str:
    _flip(folder / "n_prompt.npy")
    return "n_prompt.npy"


def _reseal(folder: Path, path: Path) -> str:
    shards.seal(folder, shards.describe(folder, "d", 258))
    shards._VERIFIED.clear()
    return path.name


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate, _remove, _cut_the_manifest, _lead_out_of_the_folder, _retype, _no_arrow, _retype_lengths, _one_length_less,
        _pickle, _alter_lengths,
    ],
)  # fmt: skip
@pytest.mark.usefixtures("small")
def test_a_damaged_folder_is_refused_by_the_name_of_its_file(damage: Callable[[Path], str], tmp_path: Path) -> None:
    shutil.copytree(write(tmp_path / "whole", sequences(200)), tmp_path / "d")
    name = damage(tmp_path / "d")
    with pytest.raises(TableError) as caught:
        shards.Items(tmp_path / "d")
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1
    shards.Items(tmp_path / "whole").verify()


@pytest.mark.usefixtures("small")
def test_an_altered_shard_is_refused_on_first_use_and_the_others_serve(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", sequences(200))
    _flip(folder / "shard-00001.arrow")
    items = shards.Items(folder)
    assert len(items.tokens(np.arange(30))[0])
    for use in (lambda: items.tokens(np.arange(100)), lambda: items.item(60), items.verify):
        with pytest.raises(TableError, match=r"shard-00001\.arrow"):
            use()
