"""Tables for `compose`: its functions, the order of its compositions, and their neighbours. All are drawn from fixed streams."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product

import numpy as np

from trainers.streams import KeyedPermutation, keyed_permutation, stream


def shuffled(size: int, n_functions: int, n_slots: int, domain: int) -> KeyedPermutation:
    """The permutation of all compositions of a domain: place in the order -> number of the composition."""
    return keyed_permutation(size, "compose", "unrank", n_functions, n_slots, domain)


class ShortFirst:
    """A permutation of compositions, as `shuffled`, but with those of at most `max_length` functions before the others."""

    def __init__(self, n_functions: int, n_slots: int, max_length: int) -> None:
        numbers = shuffled(n_functions**n_slots, n_functions, n_slots, 0)(np.arange(n_functions**n_slots))
        digits = numbers[:, None] // n_functions ** np.arange(n_slots) % n_functions
        self._numbers = numbers[np.argsort((digits > 0).sum(axis=1) > max_length, kind="stable")]
        self._places = np.argsort(self._numbers)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return self._numbers[places]

    def inverse(self, numbers: np.ndarray) -> np.ndarray:
        return self._places[numbers]


short_first = lru_cache(maxsize=4)(ShortFirst)


@lru_cache(maxsize=16)
def bijections(kind: str, n_points: int, n_slots: int, width: int, n_functions: int) -> np.ndarray:
    """Random functions for `Compose.functions`: (n_slots * width, n_points). Each block of n_functions begins with the identity.

    All other functions of a slot differ from each other and from the identity.
    """
    rows: list[tuple[int, ...]] = []
    for slot in range(n_slots):
        draw = stream("compose", "functions", kind, n_points, slot)
        identity = tuple(range(n_points))
        others: dict[tuple[int, ...], None] = {}
        while len(others) < width - width // n_functions:
            others[tuple(draw.permutation(n_points).tolist())] = None
            others.pop(identity, None)
        drawn = iter(others)
        rows += [next(drawn) if i % n_functions else identity for i in range(width)]
    table = np.array(rows)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=16)
def changes(n_slots: int, n_functions: int, radius: int) -> np.ndarray:
    """All changes of exactly `radius` slots, as (C, L): a row is added to a composition's functions, modulo n_functions."""
    rows = []
    for slots in combinations(range(n_slots), radius):
        shifts = np.array(list(product(range(1, n_functions), repeat=radius)), dtype=np.int64)
        block = np.zeros((len(shifts), n_slots), dtype=np.int64)
        block[:, slots] = shifts
        rows.append(block)
    return np.concatenate(rows)
