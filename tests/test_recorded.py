"""Numbers do not move: studies that an earlier commit ran are written again from their journals, byte for byte.

python tests/test_recorded.py            # what comes out is what is expected from now on
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.record import publisher
from orchestrator.record.journal import State
from orchestrator.study.schema import Study
from trainers.fit.place import Place
from trainers.train import run_trunk

RECORDED = Path(__file__).parent / "recorded"
PROCESSOR = "988709df27c3f2be"
"""`processor()` where the studies were recorded."""
STUDIES = ("quickstart_cut", "teach_cut", "generalist_cut")
FILES = ("results.parquet", "runs.parquet", "summary.csv")


@cache
def recorded(name: str) -> dict[str, bytes]:
    """The files of an archive, by their name."""
    with tarfile.open(RECORDED / f"{name}.tar.xz") as archive:
        members = [member for member in archive if member.isfile()]
        return {Path(member.name).name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def written(name: str) -> dict[str, bytes]:
    """The files that are written today from the journal of an archive."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / f"{name}@1"
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(recorded(name)["journal.jsonl"])
        publisher.rewrite(folder)
        return {file: (folder / file).read_bytes() for file in FILES}


def without_words(table: bytes) -> list[dict[str, str]]:
    """Rows of a summary without their sentences, which tests/analysis/test_sentences.py keeps."""
    return [{k: v for k, v in row.items() if k != "words"} for row in csv.DictReader(io.StringIO(table.decode()))]


@pytest.mark.parametrize("name", STUDIES)
def test_a_recorded_study_is_written_again_to_the_byte(name: str) -> None:
    now = written(name)
    for file in FILES:
        if file.endswith(".parquet"):
            assert now[file] == recorded(name)[file], file
        else:
            assert without_words(now[file]) == without_words(recorded(name)[file]), file


def processor() -> str:
    """What this processor makes of twenty steps of a small network of torch's own: others round otherwise."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 39, 32, generator=generator), torch.randint(0, 32, (64 * 39,), generator=generator)
    layers = [torch.nn.Linear(32, 96), torch.nn.RMSNorm(32), torch.nn.Linear(32, 32)]
    weights = [w for layer in layers for w in layer.parameters()]
    with torch.no_grad():
        for w in weights:
            w.copy_(torch.randn(w.shape, generator=generator) / 6)
    adamw = torch.optim.AdamW(weights, lr=1e-2, fused=True)
    for _ in range(20):
        q, k, v = (part.view(64, 39, 4, 8).transpose(1, 2) for part in layers[0](x).chunk(3, -1))
        h = (
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .reshape(64, 39, 32)
        )
        out = layers[2](layers[1](torch.nn.functional.gelu(h)))
        torch.nn.functional.cross_entropy(out.view(-1, 32), y).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adamw.step()
        adamw.zero_grad()
    return hashlib.sha256(b"".join(w.detach().numpy().tobytes() for w in weights)).hexdigest()[:16]


@pytest.mark.parametrize("name", STUDIES)
def test_a_trunk_trained_again_gives_the_recorded_losses_and_rows_to_the_bit(name: str) -> None:
    """Losses, evaluations and ids of the cheapest trunk, as the earlier commit had them."""
    torch.set_num_threads(1)
    if processor() != PROCESSOR:
        pytest.skip("this processor, or this torch, rounds otherwise than the one that recorded")
    lines = [json.loads(line) for line in recorded(name)["journal.jsonl"].splitlines()]
    state = State()
    state.feed(lines)
    assert state.study is not None
    study = Study.from_record(state.study)
    trunk, budgets = min(study.carried(), key=lambda one: (one[0].n_tasks, one[0].id))
    events: list[dict[str, Any]] = []
    assert run_trunk(trunk, budgets[:1], Place(), events.extend) == "finished"
    known = {line["key"]: line for line in lines if line.get("trunk") == trunk.id}
    compared = [event for event in events if event["kind"] == "evaluation" and event["key"] in known]
    assert len(compared) > 1
    for event in compared:
        before = known[event["key"]]
        fields = ("step", "rows", "train_loss_nats", "fingerprint")
        assert {f: event.get(f) for f in fields} == {f: before.get(f) for f in fields}, event["key"]


def main() -> None:
    """Replace the archives."""
    print(f"PROCESSOR = {processor()!r}")
    for name in STUDIES:
        files = recorded(name) | written(name)  # the journal stays
        with tarfile.open(RECORDED / f"{name}.tar.xz", "w:xz", preset=9) as archive:
            for file, data in sorted(files.items()):
                member = tarfile.TarInfo(f"{name}/{file}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
