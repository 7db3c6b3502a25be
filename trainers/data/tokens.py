"""Tokens of text: bytes, characters, or the vocabulary of a tokenizer file. Part of a spec, and so of its fingerprint."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from trainers.data import store
from trainers.records import Count, Record

FILE = "tokenizer.json"
"""Name of a tokenizer in its prepared folder, in the format of the library `tokenizers`."""


class TokensError(ValueError):
    """A tokenizer cannot be read, or a text has a character that it lacks."""


class Tokens(Record):
    """Turns text into token ids and back. Two more ids, behind the vocabulary, mark where an answer begins and where it ends.

    An item is `[prompt] ANSWER [target] END`. The marks are ours, so no text contains them, whatever the tokenizer.
    """

    kind: Literal["bytes", "characters", "file"] = "bytes"
    """`bytes`: the 256 bytes of UTF-8. `characters`: those in `characters`. `file`: a tokenizer's own vocabulary."""
    characters: str = ""
    """The characters of kind `characters`, in order of their code points."""
    n_ids: Annotated[Count, Field(le=2**22)] = 256
    """Ids of the vocabulary, without the two marks."""
    digest: str = ""
    """BLAKE2b of the tokenizer file, for kind `file`."""

    @property
    def answer(self) -> int:
        """Id of the mark between prompt and target."""
        return self.n_ids

    @property
    def end(self) -> int:
        """Id of the mark behind the target. It also fills the rest of a row."""
        return self.n_ids + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, the two marks included."""
        return self.n_ids + 2

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (n,) int64. Raises TokensError for a character outside the vocabulary of kind `characters`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, (n,) int64 each. A tokenizer file encodes many texts faster at once."""
        if self.kind == "bytes":
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]
        if self.kind == "characters":
            ends = np.cumsum([len(text) for text in texts])
            return np.split(self._of_characters("".join(texts)), ends[:-1]) if texts else []
        found = _tokenizer(self.digest).encode_batch(texts, add_special_tokens=False)
        return [np.array(one.ids, np.int64) for one in found]

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids (n,), without marks. Bytes that are no UTF-8 become U+FFFD."""
        plain = [int(i) for i in ids if i < self.n_ids]
        if self.kind == "bytes":
            return bytes(plain).decode("utf-8", "replace")
        if self.kind == "characters":
            return "".join(self.characters[i] for i in plain)
        text: str = _tokenizer(self.digest).decode(plain, skip_special_tokens=False)
        return text

    @property
    def unknown(self) -> int | None:
        """The id that a tokenizer file puts in the place of text that it lacks; None if it has none."""
        return _unknown(self.digest) if self.kind == "file" else None

    def decode_batch(self, many: list[np.ndarray]) -> list[str]:
        """The text of each array of ids, as `decode`. A tokenizer file decodes many faster at once."""
        if self.kind != "file":
            return [self.decode(ids) for ids in many]
        plain = [ids[ids < self.n_ids].tolist() for ids in many]
        texts: list[str] = _tokenizer(self.digest).decode_batch(plain, skip_special_tokens=False)
        return texts

    def _of_characters(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.frombuffer(self.characters.encode("utf-32-le"), np.uint32)
        ids = np.searchsorted(known, codes)
        if len(wrong := np.flatnonzero((ids == len(known)) | (known[np.minimum(ids, len(known) - 1)] != codes))):
            raise TokensError(f"character {text[wrong[0]]!r} is none of the {len(known)} of this vocabulary")
        return ids


def of_characters(characters: set[str]) -> Tokens:
    """A vocabulary of single characters."""
    ordered = "".join(sorted(characters))
    return Tokens(kind="characters", characters=ordered, n_ids=len(ordered))


def of_file(path: Path, root: Path) -> Tokens:
    """The tokenizer in a file `tokenizer.json`, or in a folder that holds one. A copy is kept under `root`, by its digest.

    Raises TokensError, in one line, for a file that is none, and if the library `tokenizers` is not installed.
    """
    file = path / FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        others = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise TokensError(f"{path}: no {FILE} in this folder, which holds {others}; save the tokenizer as {FILE}")
    try:
        data = file.read_bytes()
    except OSError as problem:
        raise TokensError(f"{file}: cannot be read: {problem.strerror or problem}; give a {FILE}") from None
    try:
        n_ids = _library().from_str(data.decode()).get_vocab_size(with_added_tokens=True)
    except TokensError:
        raise
    except Exception as problem:  # the library raises bare Exceptions
        reason = " ".join(str(problem).split())[:200]
        raise TokensError(f"{file}: is no tokenizer of the library tokenizers ({reason}); give a {FILE}") from None
    ids = [*json.loads(data).get("model", {}).get("vocab", {}).values()] if data[:1] == b"{" else []
    n_ids = max([n_ids, *(i + 1 for i in ids if isinstance(i, int))])  # ids may have gaps
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    store.put(root, digest, {FILE: data})
    return Tokens(kind="file", n_ids=n_ids, digest=digest)


@lru_cache(maxsize=8)
def _tokenizer(digest: str) -> Any:
    made = _library().from_file(str(store.folder_of(digest) / FILE))
    made.no_truncation()  # files may hold settings of an earlier use
    made.no_padding()
    return made


@lru_cache(maxsize=8)
def _unknown(digest: str) -> int | None:
    model = json.loads((store.folder_of(digest) / FILE).read_bytes()).get("model", {})
    number, token = model.get("unk_id"), model.get("unk_token")
    if isinstance(number, int):
        return number
    found: int | None = _tokenizer(digest).token_to_id(token) if isinstance(token, str) else None
    return found


def _library() -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokensError(
            "tokenizer files need the library tokenizers, which is not installed: pip install 'emergence-lab[text]'"
        ) from None
    return Tokenizer
