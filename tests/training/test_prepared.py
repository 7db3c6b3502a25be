"""Preparing a table: the same rows in any format, split by content, with every row accounted for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from trainers.data.prepared import Columns, Prepared, Rules, open_prepared, prepare
from trainers.data.tokens import Tokens

Row = dict[str, Any]


def table(n_tasks: int = 40, n_items: int = 12, **more: Any) -> list[Row]:
    """Rows of tasks that add a number to a word, with names that no path may hold."""
    return [
        {"prompt": f"add {task} to item {item} of {task}", "target": str(item + task), "task": f"add/{task} 🦊"} | more
        for task in range(n_tasks)
        for item in range(n_items)
    ]


def write(rows: list[Row], path: Path) -> Path:
    """Rows as a file, in the format of its ending."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(columns), path, row_group_size=100)
    elif path.suffix == ".feather":
        pa.feather.write_feather(pa.table(columns), path)
    else:
        with pa.ipc.new_stream(path, pa.table(columns).schema) as sink:
            sink.write_table(pa.table(columns))
    return path


def text_of(prepared: Prepared, number: int) -> tuple[str, str]:
    prompt, target = prepared.items.item(number)
    return bytes(prompt.astype(np.uint8)).decode(), bytes(target.astype(np.uint8)).decode()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet", ".feather", ".arrow"])
def test_the_same_rows_in_any_format_are_the_same_table_to_the_byte(ending: str, tmp_path: Path) -> None:
    rows = table(cluster="sums")
    first = prepare(write(rows, tmp_path / "a.csv"), Columns(), Tokens(), Rules(), tmp_path / "one")
    other = prepare(write(rows, tmp_path / f"b{ending}"), Columns(), Tokens(), Rules(), tmp_path / "two")
    assert first.digest == other.digest
    assert files_of(first.folder) == files_of(other.folder)


def test_every_row_is_an_item_of_its_task_and_each_item_in_one_part(tmp_path: Path) -> None:
    rows = table()
    prepared = prepare(write(rows, tmp_path / "t.jsonl"), Columns(), Tokens(), Rules(), tmp_path / "data")
    found = [
        (*text_of(prepared, int(number)), prepared.names[task])
        for task in range(prepared.n_tasks)
        for number in (*prepared.train_items(task), *prepared.new_items(task))
    ]
    assert sorted(found) == sorted((row["prompt"], row["target"], row["task"]) for row in rows)
    assert prepared.facts.n_tasks == {"train": 32, "held_out": 8, "held_out_clusters": 0}
    assert prepared.facts.n_of_set == {
        "train_items": 32 * 10, "new_items": 32 * 2, "held_out": 8 * 12, "held_out_clusters": 0}  # fmt: skip
    assert all(len(prepared.train_items(task)) == 0 for task, part in enumerate(prepared.part) if part == "held_out")


def test_an_unchanged_table_is_not_read_again_and_a_changed_one_is_another(tmp_path: Path) -> None:
    path = write(table(), tmp_path / "t.csv")
    first = prepare(path, Columns(), Tokens(), Rules(), tmp_path / "data")
    again = prepare(path, Columns(), Tokens(), Rules(), tmp_path / "data")
    assert again.digest == first.digest == open_prepared(first.folder).digest
    write(table(41), path)
    assert prepare(path, Columns(), Tokens(), Rules(), tmp_path / "data").digest != first.digest
