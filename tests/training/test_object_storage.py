"""Checkpoints and tables on an object store, over S3's own protocol: pyarrow's client against a server on this machine.

The server is moto's, which keeps the objects in its memory. That stands for what a client and a server say to each other, and
not for how Amazon's machines behave under load; Google's protocol is tried by nothing here.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_checkpoint import meta_of, same, save_and_lose_the_connection, tensors_of
from test_cli import SMALL, emergence
from test_prepared import files_of, table, write

from trainers import checkpoint, weights
from trainers.data.folders import fetch, put
from trainers.data.prepared import Columns, Rules, TableError, prepare
from trainers.data.sources import Source, system_of
from trainers.data.tokens import Tokens
from trainers.spec import Start, TrialSpec

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where an object store answers; it has one bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, "the object store did not start"
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def at(address: str, path: str) -> str:
    return f"s3://{path}?scheme=http&endpoint_override={address}&region=us-east-1"


@pytest.fixture
def uri(address: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own in the bucket, for each test."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return at(address, f"bucket/{re.sub('[^a-z0-9]+', '-', request.node.name)}")


def test_checkpoints_come_back_to_the_bit_and_two_are_kept(uri: str) -> None:
    assert checkpoint.load(uri, "f") is None and checkpoint.newest(uri, "f") is None
    for number in (1, 2, 3):
        checkpoint.save(uri, number, "f", meta_of(number), tensors_of(number))
        found = checkpoint.load(uri, "f")
        assert found is not None and found[0] == meta_of(number) == checkpoint.peek(uri, "f")
        assert same(found[1], tensors_of(number))
    assert sorted(int(name) for name in checkpoint.store_of(uri).names()) == [2, 3]
    assert checkpoint.load(uri, "g") is None
    assert checkpoint.clear(uri) > 0 and checkpoint.store_of(uri).names() == []


@pytest.mark.parametrize("n_written", range(4))
def test_a_save_that_was_cut_off_does_not_count(uri: str, monkeypatch: pytest.MonkeyPatch, n_written: int) -> None:
    checkpoint.save(uri, 1, "f", meta_of(1), tensors_of(1))
    save_and_lose_the_connection(uri, n_written, monkeypatch)
    assert checkpoint.newest(uri, "f") == 1
    checkpoint.save(uri, 2, "f", meta_of(2), tensors_of(2))
    assert checkpoint.newest(uri, "f") == 2


def test_weights_lie_under_their_name_and_a_trial_of_writing_leaves_nothing(uri: str) -> None:
    from safetensors.torch import load

    checkpoint.check_writable(uri)
    record = {"family": {"name": "cipher"}, "arm": "answer", "n_tasks": 64, "replicate": 0, "compute_flops": 1e12}
    trial = TrialSpec.model_validate(record)
    weights.save(uri, trial, {"w": torch.arange(3.0)})
    store = checkpoint.store_of(uri)
    written = store.read("answer/n64/c1e12", "r0.safetensors")
    assert store.names() == ["answer"] and torch.equal(load(written)["w"], torch.arange(3.0))
    start = Start(trial=trial.id, fingerprint=trial.fingerprint(), flops=1)
    assert torch.equal(weights.load(uri, start)["w"], torch.arange(3.0))
    assert weights.remove(uri, trial.id) == len(written)
    with pytest.raises(OSError, match=f"{trial.id}.*missing"):
        weights.load(uri, start)
    assert checkpoint.clear(uri) == 0


def test_a_bucket_that_is_not_there_is_not_writable(uri: str, address: str) -> None:
    with pytest.raises(OSError):
        checkpoint.check_writable(at(address, "another-bucket/prefix"))


def test_a_store_that_does_not_answer_refuses_a_run_in_one_line_and_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    done = emergence("run", str(file), "--storage", at(closed, "bucket/p"), home=tmp_path / "home", **KEYS)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "--storage s3://bucket/p" in done.stderr and "cannot be reached" in done.stderr
    assert not (tmp_path / "home" / "small@1" / "journal.jsonl").exists()


def test_a_table_on_the_store_is_the_table_on_disk(uri: str, tmp_path: Path) -> None:
    rows = table(12, 4)
    (tmp_path / "parts").mkdir()
    for number, ending in enumerate((".csv", ".jsonl", ".parquet", ".feather")):
        write(rows[number * 12 : number * 12 + 12], tmp_path / "parts" / f"{number}{ending}")
        with system_of(uri)[0].open_output_stream(f"{system_of(uri)[1]}/parts/{number}{ending}") as sink:
            sink.write((tmp_path / "parts" / f"{number}{ending}").read_bytes())
    local = prepare(tmp_path / "parts", Columns(), Tokens(), Rules(), tmp_path / "data")
    for place in (
        checkpoint.under(uri, "parts"),
        checkpoint.under(uri, "parts", "*.*"),
        checkpoint.under(uri, "**", "[0-9].*"),
    ):
        remote = prepare(place, Columns(), Tokens(), Rules(), tmp_path / "far")
        assert (remote.digest, remote.facts.n_rows) == (local.digest, len(rows))
    one = Source(checkpoint.under(uri, "parts", "1.jsonl"))
    assert len(one.files) == 1 and "endpoint" not in one.files[0].label


def test_a_prepared_table_travels_through_the_store(uri: str, tmp_path: Path) -> None:
    prepared = prepare(write(table(), tmp_path / "t.csv"), Columns(), Tokens(), Rules(), tmp_path / "data")
    put(prepared.folder, uri)
    assert files_of(fetch(uri, prepared.digest, tmp_path / "cache")) == files_of(prepared.folder)
    system, root = system_of(uri)
    with system.open_output_stream(f"{root}/{prepared.digest}/order.npy") as sink:
        sink.write(b"other")
    with pytest.raises(TableError, match=r"order\.npy"):
        fetch(uri, prepared.digest, tmp_path / "another")


@pytest.mark.parametrize("place", ["missing", "missing/*.csv"])
def test_a_table_that_is_not_on_the_store_is_refused_in_one_line(uri: str, place: str) -> None:
    for wrong in (checkpoint.under(uri, place), checkpoint.under(uri, place).replace("bucket", "another-bucket")):
        with pytest.raises(TableError) as caught:
            Source(wrong)
        assert len(str(caught.value).splitlines()) == 1 and "endpoint" not in str(caught.value)
