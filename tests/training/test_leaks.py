"""The leak certificate: planted copies are found, clean sets are not accused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from trainers.data.leaks import Certificate, Compared, Item, Limits, compare, content_hash, exact_copies, pools
from trainers.data.near import words
from trainers.data.sources import TableError
from trainers.streams import stream

Texts = list[tuple[str, str]]

PAGE = Path(__file__).parents[2] / "docs" / "own_tasks.md"


def items(n: int, task: str = "a", start: int = 0) -> list[Item]:
    return [Item(f"prompt {i}", f"target {i}", task, f"row {i}") for i in range(start, start + n)]


def compared(train: list[Item], held_out: list[Item], **limits: float) -> Compared:
    pool = pools({"train": train, "held_out": held_out})
    return compare(pool["train"], {"held_out": pool["held_out"]}, Limits(**limits))


def test_no_item_of_ten_thousand_is_zero_and_a_planted_hundredth_is_found_whole() -> None:
    train, held_out = items(20_000), items(10_000, "b", 20_000)
    clean = compared(train, held_out)
    assert clean.certificate.sets["held_out"].n_exact == 0 and not clean.certificate.leaking and not len(clean.drop)
    planted = [Item(f" {item.prompt}\n", item.target.replace(" ", "  "), "c") for item in held_out[:100]]
    leaking = compared(train + planted, held_out)
    assert leaking.certificate.sets["held_out"].n_exact == 100 and "100 of 10000" in leaking.certificate.leaking
    assert leaking.drop.tolist() == list(range(20_000, 20_100))


def test_exact_copies_are_all_pairs_of_equal_hashes() -> None:
    draw = np.random.default_rng(0)
    train, held_out = (np.array([bytes([value]) * 16 for value in draw.integers(0, 9, n)], "S16") for n in (50, 20))
    pairs = set(zip(*(places.tolist() for places in exact_copies(train, held_out)), strict=True))
    assert pairs == {(h, t) for h in range(20) for t in range(50) if held_out[h] == train[t]}


def test_content_ignores_white_space_and_unicode_form_and_nothing_else() -> None:
    assert content_hash("a  b\n", "caf\u00e9") == content_hash("a b", "cafe\u0301")
    assert len({content_hash(*pair) for pair in [("a b", "c"), ("a", "b c"), ("ab", "c"), ("A b", "c")]}) == 4


# Near-duplicates ----------------------------------------------------------------------------------------------------


def english(n: int, draw: np.random.Generator) -> Texts:
    """Prompts of 8 to 60 words, as frequent as in English: the k-th word has a share of about 1 / k."""
    share = 1 / np.arange(1, 5001)
    texts = [draw.choice(5000, size, p=share / share.sum()) for size in draw.integers(9, 62, n)]
    return [(" ".join(f"w{i}" for i in text[:-1]), f"w{text[-1]}") for text in texts]


def instructions(n: int, draw: np.random.Generator) -> Texts:
    """One long instruction, which says at three places what is meant."""
    values = [
        [" ".join(f"v{i}" for i in draw.integers(0, 300, size)) for size in draw.integers(1, 5, 3)] for _ in range(n)
    ]
    template = (
        "Read the letter below, translate the phrase {} into German, keep the tone {} and do not add anything that is not there, then "
        "sign as {} at the end."
    )
    return [(template.format(*value), f"The answer is {value[0]}") for value in values]


def sums(n: int, draw: np.random.Generator) -> Texts:
    return [(f"What is {a} + {b}?", str(a + b)) for a, b in draw.integers(0, 10_000, (n, 2))]


def lists(n: int, draw: np.random.Generator) -> Texts:
    rows = [draw.integers(0, 60, size) for size in draw.integers(5, 25, n)]
    return [(f"Sort: {' '.join(f'w{i}' for i in row)}", " ".join(f"w{i}" for i in sorted(row))) for row in rows]


def long_tasks(n: int, draw: np.random.Generator) -> Texts:
    """Three items a task, whose instruction is long and their own content short."""
    texts = [" ".join(f"i{i}" for i in draw.integers(0, 3000, 40)) for _ in range(-(-n // 3))]
    own = [" ".join(f"w{i}" for i in draw.integers(0, 5000, size)) for size in draw.integers(1, 12, n)]
    return [(f"{texts[i // 3]}: {own[i]}", f"w{draw.integers(5000)}") for i in range(n)]


def split(make: Callable[[int, np.random.Generator], Texts], per_task: int) -> tuple[list[Item], list[Item]]:
    """1,600 training items and 800 held-out ones that differ from them. Both draw from the same tasks."""
    texts = make(2400, stream("leaks", "test", make.__name__))
    every = [Item(*text, f"task {i // per_task}") for i, text in enumerate(dict.fromkeys(texts))]
    return [item for i, item in enumerate(every) if i % 3 < 2], [item for i, item in enumerate(every) if i % 3 == 2]


def one_word_in_ten_changed(item: Item, draw: np.random.Generator) -> Item:
    prompt = item.prompt.split()
    for place in draw.choice(len(prompt), max(1, round(len(prompt) / 10)), replace=False):
        prompt[place] = f"w{draw.integers(5000)}"
    return item._replace(prompt=" ".join(prompt))


@pytest.mark.parametrize("make", [english, instructions, sums, lists, long_tasks], ids=lambda make: make.__name__)
def test_clean_sets_are_accused_in_at_most_a_thousandth(make: Callable[[int, np.random.Generator], Texts]) -> None:
    found = compared(*split(make, 3 if make is long_tasks else 3000), near_share=0.001)
    assert not found.certificate.leaking and found.certificate.sets["held_out"].n_near <= 1


@pytest.mark.parametrize("make", [english, instructions], ids=lambda make: make.__name__)
@pytest.mark.parametrize("per_task", [3000, 60])
def test_copies_with_one_word_in_ten_changed_are_found(
    make: Callable[[int, np.random.Generator], Texts], per_task: int
) -> None:
    train, held_out = split(make, per_task)
    draw = stream("leaks", "test", "changes")
    planted = [one_word_in_ten_changed(item, draw) for item in held_out[:200]]
    found = compared(train + planted, held_out, near_share=0.1)
    assert (found.drop >= len(train)).sum() >= 0.95 * len(planted) and (found.drop < len(train)).sum() <= 1
    assert "near-duplicates" in found.certificate.leaking
    assert not compared(train + planted, held_out).certificate.leaking  # no limit was declared


def test_a_sample_is_the_same_in_any_order_and_is_stated() -> None:
    train, held_out = split(english, 60)
    planted = [one_word_in_ten_changed(item, stream("leaks", "test", i)) for i, item in enumerate(held_out[:200])]
    once, again = (
        compared(rows, held_out, n_train=900, n_held_out=400).certificate
        for rows in (train + planted, planted[::-1] + train[::-1])
    )
    of = once.sets["held_out"]
    assert once == again and 10 < of.n_near < 100 and of.n_compared == 400 and once.n_train_compared == 900
    assert "900" in once.lines()[0]


def test_equal_inputs_with_other_answers_are_counted_apart() -> None:
    texts = english(300, stream("leaks", "test", "inputs"))
    train = [Item(f"Name the topic: {prompt}", "news", f"topic {i % 3}") for i, (prompt, _) in enumerate(texts)]
    held_out = [Item(f"Name the author: {prompt}", f"person {i}", "author") for i, (prompt, _) in enumerate(texts)]
    found = compared(train, held_out, near_share=0.0)
    of = found.certificate.sets["held_out"]
    assert of.n_near_other_answer == of.n_near >= 290 and not found.certificate.leaking and not len(found.drop)


def test_a_task_within_another_and_an_equal_instruction_are_named() -> None:
    texts = english(60, stream("leaks", "test", "tasks"))
    say = "Please write the following words in the opposite order"
    train = [Item(f"{say}: {p}", t, "old") for p, t in texts[:30]] + [Item(p, t, "other") for p, t in texts[30:40]]
    held_out = [Item(f"Turn around: {p}", t, "new") for p, t in texts[:20]] + [
        Item(f"{say}: {p}", t, "third") for p, t in texts[40:]
    ]
    found = compared(train, held_out).certificate
    assert (found.n_pairs, [(pair.held_out, pair.train) for pair in found.pairs]) == (1, [("new", "old")])
    assert found.pairs[0].n_found >= 19 and found.pairs[0].n_items == 20
    assert [(e.held_out_task, e.train_task) for e in found.same_template] == [("third", "old")]
    assert found.n_same_template == 1
    assert Certificate.model_validate_json(found.model_dump_json()) == found
    assert sum("'new'" in line or "'third'" in line for line in found.lines()) >= 2


def test_words_of_scripts_without_blanks_are_letters() -> None:
    assert len(words("日本語 Größe, x=3!")) == 6
    text = "".join(chr(0x4E00 + i) for i in stream("leaks", "test", "letters").integers(0, 3000, 40))
    found = compared([Item(text[:20] + "好" + text[21:], "是", "a"), *items(50)], [Item(text, "是", "b")])
    assert found.certificate.sets["held_out"].n_near == 1


def test_nothing_to_compare_is_no_leak() -> None:
    pool = pools({"train": items(3), "none": []})
    for train, sets in [
        (pool["train"], {}),
        (pool["train"], {"none": pool["none"]}),
        (pool["none"], {"held_out": pool["train"]}),
    ]:
        found = compare(train, sets)
        assert not found.certificate.leaking and not len(found.drop)


def test_without_the_extra_one_line_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(TableError, match=r"emergence-lab\[text\]") as refusal:
        compared(*split(english, 60))
    assert len(str(refusal.value).splitlines()) == 1


# reasoning-gym ------------------------------------------------------------------------------------------------------


def test_neighbouring_seeds_of_reasoning_gym_overlap() -> None:
    """Item i is drawn from Random(seed + i)."""
    import reasoning_gym

    def drawn(seed: int, size: int) -> list[Item]:
        names = ("chain_sum", "spell_backward", "gcd", "number_sorting")
        data = [(name, reasoning_gym.create_dataset(name, seed=seed, size=size)) for name in names]
        return [Item(item["question"], item["answer"], name) for name, items in data for item in items]

    found = compared(drawn(1, 300), drawn(2, 100)).certificate
    assert found.sets["held_out"].n_exact >= 0.95 * found.sets["held_out"].n_items and found.leaking


def test_the_script_of_the_page_exports_generators_by_content(tmp_path: Path) -> None:
    (script,) = re.findall(
        r"^```python\n(.*?import reasoning_gym.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    (tmp_path / "export_gym.py").write_text(script.replace("N_ITEMS = 200", "N_ITEMS = 50"))
    names = ["chain_sum", "ab", "jugs", "tower_of_hanoi"]
    command = [sys.executable, "export_gym.py", "gym.parquet", *names]
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    rows = pq.read_table(tmp_path / "gym.parquet").to_pylist()
    assert len({content_hash(row["prompt"], row["target"]) for row in rows}) == len(rows) > 150
    tasks = {row["task"]: row["cluster"] for row in rows}
    longer = "chain_sum min_terms=8 max_terms=12"
    assert tasks == {"chain_sum": "arithmetic", longer: "arithmetic", "ab": "algorithmic", "jugs": "algorithmic"}
    names_of: dict[str, Any] = {}
    exec(script.partition("def items")[0], names_of)
    assert names_of["LEFT_OUT"].keys() | names_of["SETTINGS"].keys() <= names_of["DATASETS"].keys()
