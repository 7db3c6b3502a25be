"""Reading tables: every format and place, and one line for the first row that cannot be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from test_prepared import table, write

from trainers.data import tables
from trainers.data.sources import Source, TableError, shown
from trainers.data.tables import Columns, rows

GOOD = {"prompt": "1+1=", "target": "2", "task": "sums"}


def read(path: str | Path, columns: Columns | None = None, render: Any = None) -> list[tuple[str, str, str]]:
    batches = list(rows(Source(path), columns or Columns(), render))
    return [row for batch in batches for row in zip(batch.prompt, batch.target, batch.task, strict=True)]


def refusal(path: Path, columns: Columns | None = None, render: Any = None) -> str:
    """The message for a table that is refused. It is one line and names the file."""
    with pytest.raises(TableError) as caught:
        read(path, columns, render)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and path.name in message, message
    return message


BAD: dict[str, tuple[Any, str]] = {
    "empty": ("", "empty"),
    "blank": (" \t", "empty"),
    "null": (None, "null"),
    "a number": (0.5, "0.5"),
    "true": (True, "True"),
    "a list": (["2"], "list"),
}


@pytest.mark.parametrize("column", ["prompt", "target", "task"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_value_is_named_by_file_line_and_column(kind: str, column: str, tmp_path: Path) -> None:
    given, said = BAD[kind]
    message = refusal(write([GOOD] * 5000 + [GOOD | {column: given}, GOOD], tmp_path / "t.jsonl"))
    assert "line 5001 " in message and f"'{column}'" in message and said in message


@pytest.mark.parametrize("given", ["", None])
def test_a_bad_value_in_parquet_is_named_by_its_row(given: str | None, tmp_path: Path) -> None:
    message = refusal(write([GOOD] * 5000 + [GOOD | {"target": given}], tmp_path / "t.parquet"))
    assert "row 5001 " in message and "'target'" in message


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".arrow"])
def test_a_missing_column_is_named_with_the_nearest_one(ending: str, tmp_path: Path) -> None:
    path = write([{"prompt": "a", "targets": "b", "task": "c"}], tmp_path / f"t{ending}")
    message = refusal(path)
    assert "'target'" in message and "did you mean 'targets'" in message and "columns.target" in message
    assert read(path, Columns(target="targets")) == [("a", "b", "c")]


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.binary(), pa.list_(pa.string())])
def test_a_column_of_another_type_is_named(kind: pa.DataType, tmp_path: Path) -> None:
    columns = {"prompt": pa.array(["a"]), "target": pa.array([None], kind), "task": pa.array(["b"])}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    message = refusal(tmp_path / "t.parquet")
    assert "'target'" in message and str(kind).split("<")[0] in message


def test_whole_numbers_are_their_digits_in_every_format(tmp_path: Path) -> None:
    row = {"prompt": "1+1=", "target": 2, "task": 7}
    found = [read(write([row], tmp_path / f"t{ending}")) for ending in (".csv", ".jsonl", ".parquet", ".arrow")]
    assert found == [[("1+1=", "2", "7")]] * 4


def test_a_column_of_categories_is_text(tmp_path: Path) -> None:
    columns = {"prompt": ["a"], "target": ["b"], "task": pa.array(["c"]).dictionary_encode()}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [("a", "b", "c")]


TEXTS = {
    "no UTF-8": ("t.csv", b"prompt,target,task\na,b,c\na,\xe4,c\n", "line 3 "),
    "UTF-16": ("t.csv", "prompt,target,task\n".encode("utf-16"), "line 1 "),
    "too few fields": ("t.csv", b'prompt,target,task\n"a\nb",b,c\na,b\n', "line 4 "),
    "an open quote": ("t.csv", b'prompt,target,task\na,b,c\na,"b,c\n', "line 3 "),
    "two columns of a name": ("t.csv", b"prompt,target,task,task\na,b,c,d\n", "'task'"),
    "no JSON": ("t.jsonl", json.dumps(GOOD).encode() + b"\n{'prompt': 1}\n", "line 2 "),
    "no object": ("t.jsonl", b"[1, 2]\n", "line 1 "),
    "a column that ends": ("t.jsonl", json.dumps(GOOD).encode() + b'\n{"prompt": "a", "task": "b"}\n', "'target'"),
    "a column that begins": (
        "t.jsonl", b"".join(json.dumps(GOOD | more).encode() + b"\n" for more in ({}, {"cluster": "a"})), "'cluster'"),
    "half a character": ("t.jsonl", json.dumps(GOOD | {"target": "\ud800"}).encode(), "line 1 "),
    "no Parquet": ("t.parquet", b"prompt,target,task\n", "parquet"),
    "no Arrow": ("t.feather", b"ARROW1\0\0nothing", "arrow"),
    "nothing": ("t.csv", b"", "no rows"),
    "no rows": ("t.csv", b"prompt,target,task\n", "no rows"),
    "one JSON": ("t.json", b"[]", ".jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_a_damaged_file_is_named_with_its_line(kind: str, tmp_path: Path) -> None:
    name, data, said = TEXTS[kind]
    (tmp_path / name).write_bytes(data)
    assert said in refusal(tmp_path / name)


def test_bytes_in_parquet_that_are_no_text_are_named_by_row(tmp_path: Path) -> None:
    data = pa.array([b"a", b"\xff"]).cast(pa.binary()).view(pa.string())
    pa.parquet.write_table(pa.table({"prompt": data, "target": ["a", "b"], "task": ["c", "c"]}), tmp_path / "t.parquet")
    assert "row 2 " in refusal(tmp_path / "t.parquet")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".feather", ".arrow"])
def test_a_damaged_table_is_read_or_refused_in_one_line_and_crashes_nothing(ending: str, tmp_path: Path) -> None:
    """100 changes of up to four bytes, or of the length. Arrow's readers trust a file: unchecked, some of these end the process."""
    path = write(table(5, 8, cluster="c"), tmp_path / f"t{ending}")
    whole, draws = path.read_bytes(), np.random.default_rng(0)
    n_refused = 0
    for number in range(100):
        data = bytearray(whole)
        for at in draws.integers(0, len(data), 1 + number % 4):
            data[at] = draws.integers(0, 256)
        path.write_bytes(data[: draws.integers(1, len(data))] if number % 7 == 0 else data)
        try:
            read(path)
        except TableError as problem:
            n_refused += 1
            assert len(str(problem).splitlines()) == 1 and path.name in str(problem)
    assert n_refused > 5


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_of_a_spreadsheet_is_read(separator: str, tmp_path: Path) -> None:
    """With a byte-order mark, Windows' line ends, a line break and quotes inside a field, and an empty line at the end."""
    lines = ["prompt target task", '"say ""a""\r\nb" 🦊 t', ""]
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbf"
        + "\r\n".join(lines).replace(" ", separator).replace(f"say{separator}", "say ").encode()
        + b"\r\n"
    )
    assert read(tmp_path / "t.csv") == [('say "a"\r\nb', "🦊", "t")]


def test_folder_and_globs_give_files_in_order_of_name_and_say_which_are_left_out(tmp_path: Path) -> None:
    for name in ("b.csv", "a/z [1].jsonl", "a/y.tsv", "c.parquet", "_old.csv", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write([GOOD | {"task": name}], tmp_path / name)
    (tmp_path / "README.md").write_text("about")

    def tasks(path: str) -> list[str]:
        return [task for _, _, task in read(path)]

    source = Source(tmp_path)
    assert [file.label for file in source.files] == [
        f"{tmp_path}/{name}" for name in ("a/y.tsv", "a/z [1].jsonl", "b.csv", "c.parquet")
    ]
    assert source.left_out == [".hidden.csv", "README.md", "_old.csv"]
    assert tasks(f"{tmp_path}/*.csv") == [".hidden.csv", "_old.csv", "b.csv"]
    assert tasks(f"{tmp_path}/[a-c].*") == ["b.csv", "c.parquet"]
    assert tasks(f"{tmp_path}/**/*.[tj]*") == ["a/y.tsv", "a/z [1].jsonl"]
    assert tasks(f"{tmp_path}/a/z [1].jsonl") == ["a/z [1].jsonl"]
    assert tasks(f"file://{tmp_path}/b.csv") == tasks(f"file://{tmp_path}/b*") == ["b.csv"]
    assert tasks(f"file://{tmp_path}/a") == ["a/y.tsv", "a/z [1].jsonl"]
    for wrong in (f"{tmp_path}/*.txt", f"{tmp_path}/none.csv", f"{tmp_path}/README.md", "nothing://there", "s3:///"):
        with pytest.raises(TableError) as caught:
            Source(wrong)
        assert len(str(caught.value).splitlines()) == 1


def test_no_message_holds_a_key() -> None:
    assert shown("s3://key:secret@bucket/t.csv?secret_key=x") == "s3://bucket/t.csv"
    assert shown("a?b@c.csv") == "a?b@c.csv"


def test_a_relative_path_and_a_packed_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert read("t.jsonl.gz") == read("*.gz") == read(".") == [("1+1=", "2", "sums")]
    Path("t.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    refusal(Path("t.jsonl.gz"))


def test_files_of_one_table_have_the_same_columns(tmp_path: Path) -> None:
    write([GOOD], tmp_path / "a.csv")
    write([GOOD | {"cluster": "c"}], tmp_path / "b.csv")
    with pytest.raises(TableError, match=r"b\.csv.*'cluster'.*a\.csv"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".feather"])
def test_batches_are_bounded_by_rows_and_by_text(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = table(30, 10)
    path = write(given, tmp_path / f"t{ending}")
    monkeypatch.setattr(tables, "BATCH_ROWS", 64)
    assert max(len(batch.task) for batch in rows(Source(path), Columns())) == 64
    monkeypatch.setattr(tables, "BATCH_BYTES", 500)
    batches = list(rows(Source(path), Columns()))
    assert max(len(batch.task) for batch in batches) <= 20
    assert [prompt for batch in batches for prompt in batch.prompt] == [row["prompt"] for row in given]
    numbers = [number for batch in batches for number in batch.where.numbers]
    assert numbers == list(range(2 if ending == ".csv" else 1, len(given) + (2 if ending == ".csv" else 1)))


TURNS = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


def rendered(turns: list[dict[str, str]]) -> tuple[str, str]:
    return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns[:-1]), turns[-1]["content"]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_the_last_turn_of_a_chat_is_the_target(ending: str, tmp_path: Path) -> None:
    path = write([{"messages": TURNS, "task": "sums"}], tmp_path / f"t{ending}")
    assert read(path, render=rendered) == [("<user>1+1=", "2", "sums")]
    assert read(path) == [("user: 1+1=\nassistant: ", "2\n", "sums")]


@pytest.mark.parametrize(
    "turns", [[], "2", [{"role": "user"}], [*TURNS, TURNS[0]], [{"role": "assistant", "content": ""}], [1], None]
)
def test_a_chat_without_an_answer_at_its_end_is_named(turns: Any, tmp_path: Path) -> None:
    rows_given = [{"messages": TURNS, "task": "t"}, {"messages": turns, "task": "t"}]
    message = refusal(write(rows_given, tmp_path / "t.jsonl"), render=rendered)
    assert "line 2 " in message and "'messages'" in message


def test_a_parquet_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """Of 8 MB in 16 row groups, Arrow holds a few at a time. With its buffering ahead it would hold all that it has read."""
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 50_000)))
    columns = {"prompt": [text[i : i + 1000] for i in range(8_000)], "target": ["a"] * 8_000, "task": ["b"] * 8_000}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet", 500, use_dictionary=False, compression="none")
    del columns
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in rows(Source(tmp_path / "t.parquet"), Columns())]
    assert len(held) > 1 and max(held) < 8e6
