"""Tokens of text: every kind gives back the text, its marks lie behind the vocabulary, and a wrong file is refused in a line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from trainers.data import store
from trainers.data.tokens import Tokens, TokensError, of_characters, of_file
from trainers.tasks import Table, family_from

TEXTS = ["", "a", "Reverse: abc", "Ünïcode 🙂\nnew line", "12 + 7 = 19"]


def word_file(folder, words):
    """A tokenizer file of whole words, made with the library itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_and_characters_give_back_the_text(text):
    for tokens in (Tokens(), of_characters(set("".join(TEXTS)))):
        ids = tokens.encode(text)
        assert ids.dtype == np.int64 and (ids < tokens.n_ids).all()
        assert tokens.decode(np.append(ids, [tokens.answer, tokens.end])) == text
        assert tokens.vocab_size == tokens.n_ids + 2


def test_an_unknown_character_is_named():
    with pytest.raises(TokensError, match="'z'"):
        of_characters(set("abc")).encode("abz")


def test_a_tokenizer_file_is_known_by_its_content_and_found_by_its_digest(tmp_path):
    folder = word_file(tmp_path / "mine", ["red", "blue"])
    tokens = of_file(folder, tmp_path / "data")
    assert tokens == of_file(folder / "tokenizer.json", tmp_path / "data")
    assert tokens.encode("blue red").tolist() == [2, 1] and tokens.decode(np.array([2])) == "blue"
    assert (store.folder_of(tokens.digest) / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert tokens.digest != of_file(word_file(tmp_path / "other", ["red", "green"]), tmp_path / "data").digest


def test_ids_with_a_gap_stay_below_the_marks(tmp_path):
    file = word_file(tmp_path / "gap", ["red"]) / "tokenizer.json"
    made = json.loads(file.read_text())
    made["model"]["vocab"]["red"] = 9
    file.write_text(json.dumps(made))
    tokens = of_file(file, tmp_path / "data")
    assert tokens.encode("red").tolist() == [9] and tokens.answer == 10


def test_a_files_truncation_and_padding_are_left_off(tmp_path):
    file = word_file(tmp_path / "cut", ["red", "blue"]) / "tokenizer.json"
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(file))
    made.enable_truncation(2)
    made.enable_padding(length=5)
    made.save(str(file))
    tokens = of_file(file, tmp_path / "data")
    assert tokens.encode("red blue red").tolist() == [1, 2, 1] and tokens.encode("red").tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1, 2]"])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokensError) as refused:
        of_file(tmp_path, tmp_path / "data")
    assert "\n" not in str(refused.value) and "tokenizer.json" in str(refused.value)


@pytest.mark.parametrize("library", ["tokenizers", "datasketch"])
def test_without_the_extra_one_line_says_which_and_how(library, tmp_path, monkeypatch):
    """As on a machine where the library is not installed: its import fails."""
    word_file(tmp_path / "mine", ["red"])
    rows = [f"task {k},say {k} and {i} of the many words here,{i}" for k in range(6) for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["task,prompt,target", *rows]))
    monkeypatch.setitem(sys.modules, library, None)
    given = {"name": "table", "path": "t.csv", "tokenizer": "mine" if library == "tokenizers" else "bytes"}
    with pytest.raises((ValueError, ImportError)) as refused:
        Table.resolved(given, tmp_path, tmp_path / "data", print)
    assert library in str(refused.value) and "emergence-lab[text]" in str(refused.value)
    assert "\n" not in str(refused.value)


def lower_file(folder, words):
    """A tokenizer file that writes words small, and knows every letter but z; it puts [UNK] in the place of others."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = {letter: i for i, letter in enumerate(["[UNK]", *words])}
    made = Tokenizer(models.BPE(letters, [], unk_token="[UNK]", fuse_unk=True))
    made.normalizer = normalizers.Lowercase()
    made.decoder = decoders.Fuse()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("target", "n_altered", "refused"), [("red", 0, False), ("Red", 36, False), ("zed", 0, True)])
def test_targets_that_a_tokenizer_does_not_give_back_are_counted_or_refused(target, n_altered, refused, tmp_path):
    lower_file(tmp_path / "mine", "abcdefghijklmnopqrstuvwxy 0123456789")
    rows = [f"task {k},say {k} and {i} zero,{target} {i}" for k in range(6) for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["task,prompt,target", *rows]))
    given = {"name": "table", "path": "t.csv", "tokenizer": "mine"}
    if refused:
        with pytest.raises(ValueError) as problem:
            Table.resolved(given, tmp_path, tmp_path / "data", print)
        words = str(problem.value)
        assert "line 2" in words and "'[UNK]ed 0'" in words and "36 of 36" in words and "\n" not in words
        return
    facts = family_from(Table.resolved(given, tmp_path, tmp_path / "data", print)).prepared.facts
    assert facts.n_altered == n_altered and ("'red 0'" in facts.altered) == bool(n_altered)
