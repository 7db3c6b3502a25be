"""Named randomness: every draw in the project comes from a stream that is keyed by its purpose.

A purpose is a sequence of words and numbers, such as "batch", replicate, step. The stream is a pure function of it. No draw
depends on earlier draws, so a resumed trial sees the same batches. Streams of different purposes do not overlap. Seeds by
addition would: seed + index overlaps its neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np

_U64 = np.uint64
_FEISTEL_ROUNDS = 10  # assumed to be enough: in theory 4 suffice for large halves; small universes need more


def key_of(*purpose: str | int) -> int:
    """The 128-bit key of a purpose, such as `key_of("batch", replicate, step)`. Types matter: 1 and "1" differ."""
    text = json.dumps(purpose, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def stream(*purpose: str | int) -> np.random.Generator:
    """A new random generator (Philox, counter-based) at the start of a purpose's stream. Equal purposes give equal draws."""
    return np.random.Generator(np.random.Philox(key=key_of(*purpose)))


def mix64(words: np.ndarray) -> np.ndarray:
    """A bijective hash of 64-bit words, elementwise: uint64 of any shape -> same shape.

    It is SplitMix64's finaliser (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        words = (words ^ (words >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> _U64(27))) * _U64(0x94D049BB133111EB)
        return words ^ (words >> _U64(31))


def hashed_uniforms(ids: np.ndarray, n_per_id: int, *purpose: str | int) -> np.ndarray:
    """Uniforms in (0, 1): ids (B,) -> (B, n_per_id) float64. Each is a pure function of (purpose, id, column).

    Thousands of ids are hashed at once. One generator per id would cost 10 µs each.
    """
    key = key_of(*purpose)
    with np.errstate(over="ignore"):
        rows = mix64(ids.astype(_U64) + _U64(key & (2**64 - 1)))[:, None]  # (B, 1)
        steps = mix64(np.arange(1, n_per_id + 1, dtype=_U64) * _U64(0x9E3779B97F4A7C15) ^ _U64(key >> 64))
        words = mix64(rows ^ steps)  # (B, n_per_id)
    return ((words >> _U64(12)).astype(np.float64) + 0.5) * 2.0**-52  # 52 bits: with 53 the last would round to 1


class KeyedPermutation:
    """A pseudorandom bijection of {0, ..., size-1}, keyed by a purpose. It shuffles a universe of tasks without a table.

    It is an additive Feistel network over Z_a x Z_b with a*b >= size. A value outside the range is mapped again until it
    falls inside (cycle walking, Black and Rogaway 2002). Outputs of neighbouring inputs share no structure. Raises ValueError
    for a size outside 1 ... 2^62.
    """

    def __init__(self, size: int, *purpose: str | int) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size {size} is outside 1 ... 2^62")
        self.size = size
        self._a = int(np.ceil(np.sqrt(size)))
        self._b = -(-size // self._a)
        self._round_keys = stream("feistel", *purpose).integers(0, 2**63, _FEISTEL_ROUNDS, dtype=np.int64).astype(_U64)

    def _scramble(self, values: np.ndarray) -> np.ndarray:
        a, b = _U64(self._a), _U64(self._b)
        left: np.ndarray = values // b
        right: np.ndarray = values % b
        for r, round_key in enumerate(self._round_keys):
            if r % 2 == 0:
                left = (left + mix64(right ^ round_key) % a) % a
            else:
                right = (right + mix64(left ^ round_key) % b) % b
        return left * b + right

    def _unscramble(self, values: np.ndarray) -> np.ndarray:
        a, b = _U64(self._a), _U64(self._b)
        left: np.ndarray = values // b
        right: np.ndarray = values % b
        for r in reversed(range(_FEISTEL_ROUNDS)):
            round_key = self._round_keys[r]
            if r % 2 == 0:
                left = (left + (a - mix64(right ^ round_key) % a)) % a
            else:
                right = (right + (b - mix64(left ^ round_key) % b)) % b
        return left * b + right

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Map values elementwise, int64 in [0, size). Raises ValueError outside that range."""
        return self._walk(self._scramble, values)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """The inverse map, elementwise. It finds the place of an id in the shuffled list. Raises ValueError like the map."""
        return self._walk(self._unscramble, values)

    def _walk(self, scramble: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
        """Apply `scramble` to each value until the result lies in the range. Raises ValueError for values outside it."""
        values = np.asarray(values, dtype=np.int64)
        if values.size and (values.min() < 0 or values.max() >= self.size):
            raise ValueError(f"values outside 0 ... {self.size - 1}")
        out: np.ndarray = scramble(values.astype(_U64))
        while (outside := out >= _U64(self.size)).any():
            out[outside] = scramble(out[outside])
        return out.astype(np.int64)


@lru_cache(maxsize=64)
def keyed_permutation(size: int, *purpose: str | int) -> KeyedPermutation:
    """The `KeyedPermutation` of a purpose, cached because building one draws its round keys."""
    return KeyedPermutation(size, *purpose)
