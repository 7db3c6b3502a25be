"""Preparing a table: the same rows in any format, split by content, with every row accounted for."""

from __future__ import annotations

import csv
import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from trainers.data import making
from trainers.data.folders import fetch, put
from trainers.data.leaks import content_hash
from trainers.data.making import _Seen, histogram
from trainers.data.prepared import Columns, Facts, Prepared, Rules, TableError, open_prepared, prepare
from trainers.data.tokens import Tokens, of_characters

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


# Counts and parts -------------------------------------------------------------------------------------------------------


def made(tmp_path: Path, rows: list[Row], rules: Rules | None = None, name: str = "t.jsonl") -> Prepared:
    return prepare(write(rows, tmp_path / name), Columns(), Tokens(), rules or Rules(), tmp_path / "data")


def refusal(tmp_path: Path, rows: list[Row], rules: Rules | None = None) -> str:
    """The message for a table that is refused. It is one line, and the refusal leaves nothing."""
    before = list((tmp_path / "data").glob("*"))
    with pytest.raises(TableError) as caught:
        made(tmp_path, rows, rules)
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "data").glob("*")) == before
    return str(caught.value)


def test_repeats_are_kept_once_in_a_task_and_counted(tmp_path: Path) -> None:
    """White space and the way to write an accent make no difference. The same item in another task is no repeat."""
    rows = table(10, 5)
    spaced = [row | {"prompt": f"  {row['prompt']} ".replace(" ", " \n")} for row in rows[:7]]
    accents = [{"prompt": f"caf{e}", "target": "a", "task": rows[0]["task"]} for e in ("é", "e\u0301")]
    elsewhere = [row | {"task": "another"} for row in rows[:3]]
    facts = made(tmp_path, rows + rows[:4] + spaced + accents + elsewhere).facts
    assert (facts.n_rows, facts.n_repeats, facts.n_items) == (50 + 4 + 7 + 2 + 3, 4 + 7 + 1, 50 + 1 + 3)


def test_repeats_are_found_over_many_batches_as_a_set_finds_them() -> None:
    rng = np.random.default_rng(0)
    seen, known = _Seen(), set()
    for _ in range(60):
        numbers, tasks = rng.integers(0, 900, 50), rng.integers(0, 3, 50).astype(np.int32)
        hashes = np.array([content_hash(str(n), "") for n in numbers], "S16")
        fresh = []
        for i, pair in enumerate(zip(numbers.tolist(), tasks.tolist(), strict=True)):
            if pair not in known:
                fresh.append(i)
            known.add(pair)
        assert seen.add(hashes, tasks).tolist() == fresh
    assert len(seen._runs) < 12


def test_an_item_that_is_too_long_stops_or_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = table(20, 5)
    rows[33] |= {"target": "9" * 100}
    alone = [{"prompt": "x" * 200, "target": "1", "task": "alone"}]
    message = refusal(tmp_path, rows, Rules(max_tokens=100))
    assert "line 34 " in message and "100" in message and "rules.too_long: drop" in message
    assert made(tmp_path, rows, Rules(max_tokens=len(rows[33]["prompt"]) + 102)).facts.n_too_long == 0
    facts = made(tmp_path, rows + alone, Rules(max_tokens=100, too_long="drop")).facts
    assert (facts.n_rows, facts.n_items, facts.n_too_long, facts.n_without_items) == (101, 99, 2, 1)
    assert facts.longest <= 100 and sum(n for _, n in facts.lengths) == 99
    refusal(tmp_path, rows, Rules(max_tokens=5, too_long="drop"))


def test_a_character_that_the_tokens_lack_is_named_by_row(tmp_path: Path) -> None:
    path = write([*table(2, 2), {"prompt": "\u0436", "target": "1", "task": "t"}], tmp_path / "t.csv")
    with pytest.raises(TableError, match=r"line 6 .*\u0436"):
        prepare(path, Columns(), of_characters(set("add toiemf0123 ")), Rules(), tmp_path / "data")


@pytest.mark.parametrize(("n_items", "n_held"), [(1, 0), (2, 1), (4, 1), (10, 2), (39, 7), (100, 8)])
def test_a_fifth_of_a_tasks_items_are_new_up_to_eight(n_items: int, n_held: int, tmp_path: Path) -> None:
    prepared = made(tmp_path, table(3, n_items))
    for task, part in enumerate(prepared.part):
        new, train = prepared.new_items(task), prepared.train_items(task)
        assert (len(new), len(train)) == ((n_held, n_items - n_held) if part == "train" else (n_items, 0))
        assert not new.flags.owndata and not train.flags.owndata
    assert prepared.facts.n_single == (2 if n_items == 1 else 0)


def contents(prepared: Prepared) -> dict[str, set[tuple[str, str]]]:
    """Part of each task by name; and the new items by content."""
    new = {text_of(prepared, int(n)) for task in range(prepared.n_tasks) for n in prepared.new_items(task)}
    return {"parts": set(zip(prepared.names, prepared.part, strict=True)), "new": new}


def test_parts_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [row | {"cluster": f"c{int(row['target']) % 1}{row['task'][4:5]}"} for row in table(40, 10)]
    first = made(tmp_path, rows)
    order = np.random.default_rng(0).permutation(len(rows))
    other = made(tmp_path, [rows[i] for i in order], name="u.jsonl")
    assert first.digest != other.digest
    assert contents(first) == contents(other)


def test_clusters_are_held_out_whole_and_tasks_spread_over_the_others(tmp_path: Path) -> None:
    rows = [row | {"cluster": f"c{i // 50 % 10}"} for i, row in enumerate(table(100, 5))]
    prepared = made(tmp_path, rows)
    by_cluster = {
        c: [p for k, p in zip(prepared.clusters, prepared.part, strict=True) if k == c]
        for c in range(len(prepared.cluster_names))
    }
    assert sorted(map(len, by_cluster.values())) == [10] * 10
    whole = [parts for parts in by_cluster.values() if "held_out_clusters" in parts]
    assert len(whole) == 1 and set(whole[0]) == {"held_out_clusters"}
    assert sorted(parts.count("held_out") for parts in by_cluster.values()) == [0] + [2] * 9
    assert prepared.facts.n_tasks == {"train": 72, "held_out": 18, "held_out_clusters": 10}
    assert prepared.facts.n_clusters == {"train": 9, "held_out": 9, "held_out_clusters": 1}


def test_clusters_are_held_out_by_name_too_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    rows = [row | {"cluster": f"c{i // 25}"} for i, row in enumerate(table(20, 5))]
    prepared = made(tmp_path, rows, Rules(held_out_clusters=("c2",)))
    held = {
        prepared.cluster_names[c] for c, p in zip(prepared.clusters, prepared.part, strict=True) if p[8:] == "_clusters"
    }
    assert held == {"c2"}
    assert "did you mean 'c2'" in refusal(tmp_path, rows, Rules(held_out_clusters=("c22",)))
    assert made(tmp_path, rows).facts.n_clusters["held_out_clusters"] == 0  # four clusters are too few for a share


def test_every_cluster_keeps_a_training_task(tmp_path: Path) -> None:
    rows = [row | {"cluster": row["task"] if i < 30 else "large"} for i, row in enumerate(table(30, 3))]
    prepared = made(tmp_path, rows, Rules(held_out_tasks=0.9, held_out_clusters=0.0))
    trained = {c for c, part in zip(prepared.clusters, prepared.part, strict=True) if part == "train"}
    assert trained == set(range(11)) and prepared.facts.n_tasks["held_out"] == 19


def test_without_clusters_there_is_one_and_none_is_held_out(tmp_path: Path) -> None:
    prepared = made(tmp_path, table(40, 2))
    assert set(prepared.clusters) == {0} and prepared.cluster_names == []
    assert prepared.facts.n_clusters == {"train": 0, "held_out": 0, "held_out_clusters": 0}


def test_the_split_of_the_table_rules(tmp_path: Path) -> None:
    """A held-out task whose cluster has no training task is one of a held-out cluster."""
    about = {0: ("a", "train"), 1: ("a", "held_out"), 2: ("b", "held_out"), 3: ("c", "train")}
    rows = [row | dict(zip(("cluster", "split"), about[i // 5], strict=True)) for i, row in enumerate(table(4, 5))]
    assert made(tmp_path, rows).part == ["train", "held_out", "held_out_clusters", "train"]
    rows[7] |= {"split": "train"}
    assert "line 8 " in (message := refusal(tmp_path, rows)) and "'held_out'" in message and "line 6 " in message
    rows[7] |= {"split": "test"}
    assert "line 8 " in (message := refusal(tmp_path, rows)) and "'test'" in message
    refusal(tmp_path, [row | {"split": "held_out"} for row in rows])
    assert "rules.held_out_tasks" in refusal(tmp_path, table(4, 5, split="train"), Rules(held_out_tasks=0.5))


@pytest.mark.parametrize("column", ["task", "cluster"])
@pytest.mark.parametrize("alike", ["caf\u00e9 ", "cafe\u0301", " caf\u00e9", "caf\u00e9\n"])
def test_names_that_look_alike_are_refused(alike: str, column: str, tmp_path: Path) -> None:
    rows = [row | {"cluster": row["task"]} for row in table(3, 2)]
    rows[0] |= {"task": "caf\u00e9", "cluster": "caf\u00e9"}
    rows[5] |= {"task": "own", "cluster": "own"} | {column: alike}
    message = refusal(tmp_path, rows)
    assert "line 1 " in message and "line 6 " in message and column in message


@pytest.mark.parametrize("weight", [0, -1, "x", float("nan"), None, True])
def test_weights_are_positive_and_one_a_task(weight: Any, tmp_path: Path) -> None:
    rows = [row | {"weight": 1 + i // 5} for i, row in enumerate(table(3, 5))]
    prepared = made(tmp_path, rows)
    assert prepared.weights.tolist() == [1, 2, 3] and prepared.facts.has_weights
    rows[7] |= {"weight": weight}
    assert "line 8 " in refusal(tmp_path, rows)


def test_copies_in_training_are_counted_or_dropped(tmp_path: Path) -> None:
    """A task that loses its last training item goes with it. Every row is still accounted for."""
    rows = [row | {"split": "held_out" if i // 10 == 3 else "train"} for i, row in enumerate(table(8, 10))]
    planted = [row | {"task": rows[0]["task"], "split": "train"} for row in rows[30:33]]
    lost = [row | {"task": "lost", "split": "train"} for row in rows[33:35]]
    found = made(tmp_path, rows + planted + lost).facts
    assert found.certificate.sets["held_out"].n_exact >= 1 and found.certificate.leaking and found.n_leaking == 0
    dropped = made(tmp_path, rows + planted + lost, Rules(on_leak="drop"))
    facts = dropped.facts
    assert not facts.certificate.leaking and "lost" not in dropped.names and facts.n_without_items == 1
    assert facts.n_rows == facts.n_items + facts.n_repeats + facts.n_too_long + facts.n_leaking
    assert 0 < facts.n_leaking <= 5 and facts.n_tasks["train"] == 7
    train = {text_of(dropped, int(n)) for task in range(dropped.n_tasks) for n in dropped.train_items(task)}
    held = {(row["prompt"], row["target"]) for row in rows[30:40]}
    assert not train & held and len(dropped.items_of(dropped.names.index(rows[30]["task"]))) == 10


def test_facts_come_back_from_json(tmp_path: Path) -> None:
    facts = made(tmp_path, table()).facts
    assert Facts.model_validate_json(facts.model_dump_json()) == facts
    rules = Rules(held_out_clusters=("a", "b"), max_tokens=9)
    assert (
        Rules.model_validate_json(rules.model_dump_json())
        == rules
        == Rules.model_validate(rules.model_dump(mode="json"))
    )


def test_bins_of_lengths_are_an_eighth_wide() -> None:
    lengths = np.arange(1, 3000)
    bins = histogram(lengths)
    assert sum(n for _, n in bins) == len(lengths) and bins[:18] == (
        *((n, 1) for n in range(1, 17)), (18, 2), (20, 2))  # fmt: skip
    upper = np.array([top for top, _ in bins])
    found = upper[np.searchsorted(upper, lengths)]
    assert ((found - lengths) / lengths).max() < 1 / 8


# Kills, damage, several processes ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from trainers.data import folders, making, prepared, shards, tables
from trainers.data.prepared import Columns, Rules, prepare
from trainers.data.tokens import Tokens

shards.BATCH_BYTES, tables.BATCH_ROWS = 2000, 50
table, root = sys.argv[1:]
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
def after(module, name, n=1):
    real, calls = getattr(module, name), []
    def killing(*given):
        calls.append(real(*given))
        if len(calls) >= n: kill()
        return calls[-1]
    setattr(module, name, killing)
POINTS = [
    lambda: after(making, "rows"), lambda: after(shards.Writer, "_flush", 3), lambda: after(shards.Writer, "close"),
    lambda: after(shards, "describe"), lambda: after(making.Index, "save"), lambda: setattr(shards, "seal", kill),
    lambda: after(shards, "seal"), lambda: after(folders, "publish"), lambda: after(prepared, "_remember"),
]
for point in POINTS:
    if not (child := os.fork()):
        point()
        prepare(table, Columns(), Tokens(), Rules(), root)
        os._exit(0)
    print(-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *sorted(p.name for p in Path(root).glob("[!.]*")))
"""


def run(script: str, *given: object) -> list[str]:
    command = [sys.executable, "-c", script, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_kill_at_any_point_leaves_nothing_that_counts_and_the_next_call_succeeds(tmp_path: Path) -> None:
    path = write(table(), tmp_path / "t.jsonl")
    *before, published, remembered = run(KILLED, path, tmp_path / "data")
    assert before == [str(int(signal.SIGKILL))] * 7  # and no name without a dot
    whole = prepare(path, Columns(), Tokens(), Rules(), tmp_path / "other")
    assert published.split() == ["9", whole.digest] and remembered.split() == ["9", whole.digest, "known.json"]
    found = prepare(path, Columns(), Tokens(), Rules(), tmp_path / "data")
    every = np.arange(len(whole.items))
    assert [a.tolist() for a in found.items.tokens(every)] == [a.tolist() for a in whole.items.tokens(every)]
    prepare(write(table(41), path), Columns(), Tokens(), Rules(), tmp_path / "data")  # sweeps
    assert not list((tmp_path / "data").glob(".*.part"))


TOGETHER = """
import os, sys
from trainers.data import making
from trainers.data.prepared import Columns, Rules, prepare
from trainers.data.tokens import Tokens

def reading(*given):
    os.write(1, b"reads\\n")  # one write, so that lines stay whole
    return rows(*given)
rows, making.rows = making.rows, reading
children = []
for path in sys.argv[1:-1]:
    if not (child := os.fork()):
        os.write(1, f"{prepare(path, Columns(), Tokens(), Rules(), sys.argv[-1]).digest}\\n".encode())
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] for child in children))
"""


def test_several_processes_at_once_prepare_a_table_once(tmp_path: Path) -> None:
    """Three read the same file, so one of them reads it. One reads the same rows from another file."""
    path, other = write(table(), tmp_path / "t.jsonl"), write(table(), tmp_path / "t.csv")
    printed = run(TOGETHER, path, path, path, other, tmp_path / "data")
    assert printed.count("reads") == 2 and len(printed) == 2 + 4 and len(set(printed)) == 2
    (digest,) = set(printed) - {"reads"}
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [digest, "known.json"]
    open_prepared(tmp_path / "data" / digest).items.verify()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(table(), tmp_path / "t.jsonl")
    monkeypatch.setattr(making._Seen, "add", lambda *_: path.write_text(path.read_text() + "\n") and np.arange(1))
    with pytest.raises(TableError, match=r"t\.jsonl.*changed"):
        prepare(path, Columns(), Tokens(), Rules(), tmp_path / "data")


@pytest.mark.parametrize("name", ["facts.json", "tasks.json", "order.npy", "n_target.npy", "shard-00000.arrow"])
def test_a_prepared_file_that_was_altered_is_refused_by_name(name: str, tmp_path: Path) -> None:
    prepared = made(tmp_path, table())
    data = bytearray((prepared.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (prepared.folder / name).write_bytes(data)
    with pytest.raises(TableError, match=re.escape(name)) as caught:
        open_prepared(prepared.folder).items.verify()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["manifest.json", "shard-00000.arrow", "n_prompt.npy", "tasks.json", "facts.json", "order.npy"]
)
def test_no_changed_byte_passes_or_crashes(name: str, tmp_path: Path) -> None:
    """40 changes a file, most near its ends, where formats keep their structure."""
    prepared = made(tmp_path, table(10, 4))
    path = prepared.folder / name
    whole, draws = path.read_bytes(), np.random.default_rng(0)
    for number in range(40):
        data = bytearray(whole)
        at = int(draws.integers(0, len(data) if number % 3 == 0 else min(len(data), 400))) * (-1 if number % 2 else 1)
        data[at] ^= int(draws.integers(1, 256))
        path.write_bytes(data)
        with pytest.raises(TableError) as caught:
            open_prepared(prepared.folder).items.verify()
        assert len(str(caught.value).splitlines()) == 1


def test_a_disk_that_is_full_is_named_in_one_line_and_left_empty(tmp_path: Path) -> None:
    path = write(table(), tmp_path / "t.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TableError) as caught:
            prepare(path, Columns(), Tokens(), Rules(), tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "data") in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "data").iterdir())
    with pytest.raises(TableError):
        prepare(path, Columns(), Tokens(), Rules(), path / "data")


def test_a_folder_that_was_half_deleted_is_made_again(tmp_path: Path) -> None:
    prepared = made(tmp_path, table())
    before = files_of(prepared.folder)
    (prepared.folder / "manifest.json").unlink()
    (prepared.folder / "order.npy").unlink()
    assert files_of(made(tmp_path, table()).folder) == before


# Other storage ----------------------------------------------------------------------------------------------------------

FETCHING = """
import os, sys
from trainers.data.folders import fetch

place, digest, cache = sys.argv[1:]
children = []
for _ in range(3):
    if not (child := os.fork()):
        os.write(1, f"{fetch(place, digest, cache)}\\n".encode())
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_prepared_folder_travels_through_other_storage(scheme: str, tmp_path: Path) -> None:
    prepared = made(tmp_path, table())
    place, cache = f"{scheme}{tmp_path}/there", tmp_path / "cache"
    put(prepared.folder, place)
    put(prepared.folder, place)
    printed = run(FETCHING, place, prepared.digest, cache)
    assert printed == [str(cache / prepared.digest)] * 3
    assert files_of(cache / prepared.digest) == files_of(prepared.folder)
    assert [p.name for p in cache.iterdir()] == [prepared.digest]
    open_prepared(fetch(place, prepared.digest, cache)).items.verify()


@pytest.mark.parametrize("name", ["order.npy", "shard-00000.arrow", "manifest.json", "n_prompt.npy"])
def test_a_copy_that_differs_from_its_manifest_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    prepared = made(tmp_path, table())
    put(prepared.folder, tmp_path / "there")
    file = tmp_path / "there" / prepared.digest / name
    file.write_bytes(file.read_bytes()[:-1] + b"\x07" if name == "order.npy" else file.read_bytes()[:-1])
    with pytest.raises(TableError, match=re.escape(name)) as caught:
        fetch(tmp_path / "there", prepared.digest, tmp_path / "cache")
    assert len(str(caught.value).splitlines()) == 1 and not list((tmp_path / "cache").iterdir())
    with pytest.raises(TableError):
        fetch(tmp_path / "there", "0" * 32, tmp_path / "cache")


def test_prompts_with_several_targets_are_counted_within_a_task_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = table(6, 8)
    twice = [rows[3] | {"target": "another"}, rows[3] | {"target": "a third"}, rows[20] | {"target": "another"}]
    elsewhere = [rows[9] | {"task": rows[-1]["task"], "target": "another"}]
    spaced = [rows[20] | {"prompt": f"  {rows[20]['prompt']} "}]  # the same item
    facts = made(tmp_path, rows + twice + elsewhere + spaced).facts
    assert (facts.n_two_targets, facts.n_items, facts.n_repeats) == (2, len(rows) + 4, 1)
    named = [row for row in (rows[3], rows[20]) if repr(row["prompt"]) in facts.two_targets]
    targets = [repr(target) for target in (named[0]["target"], "another", "a third")]
    assert len(named) == 1 and sum(target in facts.two_targets for target in targets) == 2
    assert made(tmp_path, rows).facts.n_two_targets == 0


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".feather"])
def test_columns_that_are_not_used_are_named_and_are_no_part_of_the_table(ending: str, tmp_path: Path) -> None:
    file = write(table(6, 8, difficulty="3", source="mine"), tmp_path / f"t{ending}")
    for _ in range(2):  # read, then known
        found = prepare(file, Columns(), Tokens(), Rules(), tmp_path / "data")
        assert found.unread == ("difficulty", "source")
    assert found.digest == made(tmp_path, table(6, 8)).digest
