"""Tables of users: files of rows (prompt, target, task), read as a stream of checked batches.

Parquet, Arrow and Feather, JSON lines, CSV and TSV; a file, a folder, a glob, or a URI that pyarrow.fs reads. A table may be larger
than memory. Every row is checked. An error names the file, the row and the column.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import model_validator

from trainers.data.chat import plain
from trainers.data.sources import Source, TableError, TableFile, first_line
from trainers.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 4096
"""Most rows of a batch."""
BATCH_BYTES = 2**24
"""A batch ends early when its text has this many characters. So a batch fits in memory, however long the rows are."""
FIELD_CHARACTERS = 2**24
"""Most characters of a field of a CSV file. A quote that is never closed would otherwise read the whole file as one field."""
Render = Callable[[list[dict[str, str]]], tuple[str, str]]
"""Chat turns -> (prompt, target). Raises ValueError for turns that it cannot render."""


class Columns(Record):
    """The names of a table's columns. None: the column of the field's own name is used if the table has it."""

    prompt: str = "prompt"
    """Text that the model reads."""
    target: str = "target"
    """Text that the model must answer."""
    task: str = "task"
    """Name of the task."""
    cluster: str | None = None
    """Name of the cluster of tasks. Equal in all rows of a task."""
    split: str | None = None
    """`train` or `held_out`. Equal in all rows of a task."""
    weight: str | None = None
    """Weight of the task in the training mixture, above 0. Equal in all rows of a task."""
    messages: str | None = None
    """Chat turns, a list of {role, content}. They replace prompt and target; by default only if the table has neither."""

    @model_validator(mode="after")
    def _apart(self) -> Columns:
        if self.prompt == self.target:
            raise ValueError(f"prompt and target are both the column '{self.prompt}'; name two")
        return self


class Where(NamedTuple):
    """The places of a batch's rows. Called with a number in the batch, it returns file and row for a message."""

    file: TableFile
    numbers: Sequence[int]
    """From 1: lines of the file as an editor counts them, or rows of a Parquet or Arrow file."""

    def __call__(self, i: int) -> str:
        return place(self.file.label, self.file.format, self.numbers[i])


class Rows(NamedTuple):
    """A batch of n checked rows. Texts are not empty and are valid Unicode."""

    prompt: list[str]
    target: list[str]
    task: list[str]
    cluster: list[str] | None
    split: list[str] | None
    weight: list[float] | None
    where: Where
    unread: frozenset[str]
    """Columns of the file that are not used."""


class Fields(dict[str, str]):
    """Field -> column, of the columns that are used."""

    unread: frozenset[str] = frozenset()
    """The others."""


def place(label: str, file_format: str, number: int) -> str:
    """File and row as text."""
    if file_format in ("parquet", "arrow"):
        return f"{label}, row {number} (the first row is 1)"
    return f"{label}, line {number} (as an editor counts)"


# Rows -------------------------------------------------------------------------------------------------------------------

OPTIONAL = ("cluster", "split", "weight")
Raw = tuple[dict[str, list[Any]], Where]
"""Field -> its values in a batch, unchecked; and the batch's `where`."""


def rows(source: Source, columns: Columns, render: Render | None = None) -> Iterator[Rows]:
    """The rows of a table in order of file and row, in batches. `render` makes the text of chat turns, and of
    prompt and target as two turns; left out, it is `chat.plain` for turns.

    Raises TableError for the first row that cannot be used, with file, row and column.
    """
    first: tuple[str, dict[str, str]] | None = None
    for file in source.files:
        reader = {"parquet": _parquet, "arrow": _arrow, "jsonl": _json_lines, "csv": _csv, "tsv": _csv}[file.format]
        try:
            for fields, raw in reader(source.system, file, columns):
                first = first or (file.label, fields)
                if fields.keys() != first[1].keys():
                    odd = sorted(fields.keys() ^ first[1].keys())[0]
                    here, there = ("has", "has none") if odd in fields else ("has no", "has one")
                    raise TableError(
                        f"{file.label}: {here} column for '{odd}', and {first[0]} {there}; give it to all or none"
                    )
                if batch := _checked(raw, fields, render):
                    yield batch
        except TableError:
            raise
        except (
            OSError,
            ValueError,
            EOFError,
            NotImplementedError,
            MemoryError,
        ) as problem:  # all errors of Arrow are one of these
            raise TableError(
                f"{file.label}: cannot be read as {file.format}: {first_line(problem)}; write it again"
            ) from None
    if first is None:
        raise TableError(f"{source.label}: the table has no rows; it needs one a line with prompt, target and task")


def fields_of(label: str, names: list[str], columns: Columns) -> Fields:
    """Field -> column, of the columns that a file has and that are used. Raises TableError for a column that is missing."""
    chat = columns.messages or ("messages" if columns.prompt not in names and "messages" in names else None)
    wanted = Fields({"messages": chat} if chat else {"prompt": columns.prompt, "target": columns.target})
    wanted["task"] = columns.task
    for field in OPTIONAL:
        column = getattr(columns, field)
        if column is not None or field in names:
            wanted[field] = column or field
    for field, column in wanted.items():
        if column not in names:
            near = difflib.get_close_matches(column, names, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise TableError(
                f"{label}: there is no column '{column}'; {hint}the columns are {', '.join(map(repr, names[:12]))}; "
                f"name the right one under columns.{field}"
            )
        if names.count(column) > 1:
            raise TableError(
                f"{label}: there are {names.count(column)} columns '{column}'; one is allowed; rename the others"
            )
    wanted.unread = frozenset(names) - {*wanted.values()}
    return wanted


Read = Iterator[tuple[Fields, Raw]]


def _parquet(system: Any, file: TableFile, columns: Columns) -> Read:
    import pyarrow.parquet as pq

    with system.open_input_file(file.path) as opened:
        table = pq.ParquetFile(opened, buffer_size=2**20, pre_buffer=False)  # else it holds all that it has read
        fields = fields_of(file.label, table.schema_arrow.names, columns)
        _check_types(file.label, table.schema_arrow, fields)
        seen = 0
        about = table.metadata
        n_bytes = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        n_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * about.num_rows // max(1, n_bytes)))
        for batch in table.iter_batches(n_rows, columns=list(dict.fromkeys(fields.values()))):
            yield from _of_arrow(file, fields, batch, seen)
            seen += batch.num_rows


def _arrow(system: Any, file: TableFile, columns: Columns) -> Read:
    import pyarrow as pa

    local = type(system).__name__ == "LocalFileSystem"
    with pa.memory_map(file.path) if local else system.open_input_file(file.path) as opened:
        magic = opened.read(6)
        opened.seek(0)
        if magic == b"ARROW1":
            table = pa.ipc.open_file(opened)
            batches: Iterator[Any] = (table.get_batch(i) for i in range(table.num_record_batches))
        else:  # the form that Hugging Face's datasets write
            table = pa.ipc.open_stream(opened)
            batches = iter(table)
        fields = fields_of(file.label, table.schema.names, columns)
        _check_types(file.label, table.schema, fields)
        seen = 0
        for batch in batches:
            yield from _of_arrow(file, fields, batch, seen)
            seen += batch.num_rows


def _check_types(label: str, schema: pa.Schema, fields: dict[str, str]) -> None:
    import pyarrow as pa

    t = pa.types
    for field, column in fields.items():
        kind = schema.field(column).type
        value = kind.value_type if t.is_dictionary(kind) else kind
        text = t.is_string(value) or t.is_large_string(value) or t.is_string_view(value) or t.is_integer(value)
        number = t.is_integer(value) or t.is_floating(value)
        chat = t.is_list(value) or t.is_large_list(value)
        if not {"weight": number, "messages": chat}.get(field, text):
            raise TableError(f"{label}: column '{column}' holds {kind}; allowed: {_allowed(field)}; convert it")


def _of_arrow(file: TableFile, fields: Fields, batch: Any, seen: int) -> Read:
    """A record batch in slices of at most `BATCH_ROWS` rows and about `BATCH_BYTES` bytes. `seen` rows came before it."""
    per_row = max(1, batch.nbytes // max(1, batch.num_rows))
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // per_row))
    for start in range(0, batch.num_rows, step):
        part = batch.slice(start, step)
        where = Where(file, range(seen + start + 1, seen + start + part.num_rows + 1))
        yield fields, ({f: _python(c, part.column(c), where) for f, c in fields.items()}, where)


def _python(column: str, values: Any, where: Where) -> list[Any]:
    """An Arrow array as a list. Raises TableError for damage and for bytes that are no UTF-8: Arrow checks neither by itself."""
    try:
        values.validate(full=True)
    except ValueError as problem:
        for i in range(len(values)):
            try:
                values.slice(i, 1).validate(full=True)
            except ValueError:
                raise _refused(where(i), column, first_line(problem), "text in UTF-8", "write it again") from None
        raise
    found: list[Any] = values.to_pylist()
    return found


class _Lines:
    """The lines of a file of text, decoded; it counts them."""

    def __init__(self, system: Any, file: TableFile) -> None:
        self.file, self.n = file, 0
        self._stream = system.open_input_stream(file.path)
        self._raw = io.BufferedReader(self._stream, 2**20)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._raw.readline() if not self._raw.closed else b""
        if not line:
            self._raw.close()
            raise StopIteration
        self.n += 1
        if self.n == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            return line.decode()
        except UnicodeDecodeError as problem:
            given = f"byte 0x{line[problem.start]:02x} at place {problem.start + 1} is no UTF-8"
            raise TableError(
                f"{place(self.file.label, self.file.format, self.n)}: {given}; save the file as UTF-8"
            ) from None


class _Collected:
    """Rows of a file of text, collected into batches."""

    def __init__(self, file: TableFile, fields: Fields) -> None:
        self.file, self.fields = file, fields
        self.clear()

    def clear(self) -> None:
        self.values: dict[str, list[Any]] = {field: [] for field in self.fields}
        self.lines: list[int] = []
        self.size = 0

    def add(self, line: int, size: int, values: list[Any]) -> bool:
        """Add a row. Is the batch full?"""
        for column, value in zip(self.values.values(), values, strict=True):
            column.append(value)
        self.lines.append(line)
        self.size += size
        return len(self.lines) >= BATCH_ROWS or self.size >= BATCH_BYTES

    def take(self) -> tuple[Fields, Raw]:
        raw = (self.values, Where(self.file, self.lines))
        self.clear()
        return self.fields, raw


def _json_lines(system: Any, file: TableFile, columns: Columns) -> Read:
    lines, batch = _Lines(system, file), None
    for line in lines:
        if not line.strip():
            continue
        at = place(file.label, file.format, lines.n)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise TableError(f"{at}: is no JSON: {first_line(problem)}; give one object a line") from None
        if not isinstance(row, dict):
            raise TableError(f"{at}: holds {_kind(row)}; give one object a line, {{...}}")
        if batch is None:
            batch, keys = _Collected(file, fields_of(at, list(row), columns)), row.keys()
        missing = [column for column in batch.fields.values() if column not in row]
        if missing or (row.keys() != keys and fields_of(at, list(row), columns) != batch.fields):
            odd = (
                missing[0]
                if missing
                else next(f for f in (*OPTIONAL, "messages") if f in row and f not in batch.fields)
            )
            raise TableError(
                f"{at}: column '{odd}' is {'missing here' if missing else 'not in the first row'}; give it in all rows or none"
            )
        batch.fields.unread |= row.keys() - {*batch.fields.values()}
        if batch.add(lines.n, len(line), [row[column] for column in batch.fields.values()]):
            yield batch.take()
    if batch is not None and batch.lines:
        yield batch.take()


def _csv(system: Any, file: TableFile, columns: Columns) -> Read:
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARACTERS))
    lines = _Lines(system, file)
    header = next(lines, "")
    separator = "\t" if file.format == "tsv" else max(",;\t", key=header.count)  # the first of equals
    reader = csv.reader(itertools.chain([header] if header else [], lines), delimiter=separator, strict=True)
    batch, names, before = None, [], 0
    while True:
        before = lines.n
        try:
            row = next(reader, None)
        except csv.Error as problem:
            raise TableError(f"{place(file.label, file.format, before + 1)}: {problem}; check its quotes") from None
        if row is None:
            break
        if batch is None:
            names = row
            batch = _Collected(file, fields_of(file.label, names, columns))
            if "messages" in batch.fields:
                raise TableError(
                    f"{file.label}: a CSV file holds no chat turns; give messages as Parquet or JSON lines"
                )
            places = [names.index(column) for column in batch.fields.values()]
            continue
        if not row:
            continue  # an empty line
        if len(row) != len(names):
            at = place(file.label, file.format, before + 1)
            raise TableError(
                f"{at}: {len(row)} fields, and the header has {len(names)}; put quotes around text with separators"
            )
        if batch.add(before + 1, sum(map(len, row)), [row[i] for i in places]):
            yield batch.take()
    if batch is not None and batch.lines:
        yield batch.take()


# Checks -----------------------------------------------------------------------------------------------------------------


def _checked(raw: Raw, fields: Fields, render: Render | None) -> Rows | None:
    """A batch whose values are checked; None if it is empty. Raises TableError for the first value that cannot be used."""
    values, where = raw
    texts = {
        field: _texts(values[field], fields[field], where) for field in fields if field not in ("weight", "messages")
    }
    if "messages" in fields:
        pairs = [_rendered(turns, fields["messages"], where(i), render) for i, turns in enumerate(values["messages"])]
        texts["prompt"] = _texts([prompt for prompt, _ in pairs], fields["messages"], where)
        texts["target"] = _texts([target for _, target in pairs], fields["messages"], where)
    elif render is not None:
        user, assistant = ({"role": role} for role in ("user", "assistant"))
        turns = zip(texts["prompt"], texts["target"], strict=True)
        chats = [[user | {"content": prompt}, assistant | {"content": target}] for prompt, target in turns]
        pairs = [_rendered(chat, fields["prompt"], where(i), render) for i, chat in enumerate(chats)]
        texts["prompt"], texts["target"] = [prompt for prompt, _ in pairs], [target for _, target in pairs]
    for i, split in enumerate(texts.get("split", ())):
        if split not in ("train", "held_out"):
            raise _refused(where(i), fields["split"], repr(split), "'train' or 'held_out'", "rename it")
    weight = None
    if "weight" in fields:
        weight = [_weight(given, fields["weight"], where, i) for i, given in enumerate(values["weight"])]
    if not texts["task"]:
        return None
    optional = (texts.get("cluster"), texts.get("split"), weight)
    return Rows(texts["prompt"], texts["target"], texts["task"], *optional, where, fields.unread)


def _texts(values: list[Any], column: str, where: Where) -> list[str]:
    """Values as texts. A whole number becomes its digits. Raises TableError for others, for empty text and bad Unicode."""
    if not set(map(type, values)) <= {str}:
        for i, value in enumerate(values):
            if value is None:
                raise _refused(where(i), column, "no value (null)", "text", "fill it in or remove the row")
            if type(value) not in (str, int):
                raise _refused(where(i), column, _kind(value), "text", "convert it to text")
        values = [str(value) for value in values]
    for i, value in enumerate(values):
        if not value or value.isspace():
            raise _refused(where(i), column, "empty text", "text", "fill it in or remove the row")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        i = next(i for i, value in enumerate(values) if re.search("[\ud800-\udfff]", value))
        raise _refused(
            where(i), column, "half of a surrogate pair", "Unicode text", "write it again as UTF-8"
        ) from None
    return values


def _weight(given: Any, column: str, where: Where, i: int) -> float:
    try:
        value = math.nan if given is None or isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise _refused(where(i), column, repr(given)[:80], "a number above 0", "correct it")
    return value


def _rendered(turns: Any, column: str, at: str, render: Render | None) -> tuple[str, str]:
    """(prompt, target) of chat turns."""
    if not isinstance(turns, list) or not turns:
        raise _refused(at, column, "no turns" if turns == [] else _kind(turns), _allowed("messages"), "write it so")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise _refused(
                at, column, f"turn {number} without role or content as text", _allowed("messages"), "write it so"
            )
    if turns[-1]["role"] != "assistant":
        given = f"a last turn of role {turns[-1]['role']!r}"
        raise _refused(
            at, column, given, "a last turn of role 'assistant', which is the target", "remove the turns behind it"
        )
    try:
        return (render or plain())([{key: turn[key] for key in turn if turn[key] is not None} for turn in turns])
    except ValueError as problem:
        raise TableError(f"{at}, column '{column}': the chat template refuses it: {first_line(problem)}") from None


def _refused(at: str, column: str, given: str, allowed: str, advice: str) -> TableError:
    return TableError(f"{at}, column '{column}': given {given}; allowed: {allowed}; {advice}")


def _allowed(field: str) -> str:
    chat = "a list of turns {role, content}, both text"
    return {"weight": "numbers above 0", "messages": chat}.get(field, "text, or whole numbers")


def _kind(value: Any) -> str:
    return f"{value!r:.40} ({type(value).__name__})"
