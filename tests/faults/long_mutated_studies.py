"""Fifty thousand studies broken in every way, on all cores: `make faults-long`. Some six minutes on two quiet cores.

They are the mutants of a seed of their own, none of them among those of `make test`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from conftest import tally

sys.path.insert(0, str(Path(__file__).parent))
import test_mutated_studies as short

MUTANTS = 50_000
A_TIME = 500
SEED = 1


def tried(start: int) -> tuple[Counter[str], list[str], tuple[float, str]]:
    """What became of the mutants from `start` on, as `test_mutated_studies.tried` says it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EMERGENCE_HOME"] = folder
        return short.tried(Path(folder), range(start, start + A_TIME), SEED)


def test_no_mutated_study_ends_in_anything_but_a_study_or_a_refusal() -> None:
    """Fails as its namesake of `make test` does."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = (0.0, "")
    with ProcessPoolExecutor() as workers:
        for n, (some, bad, slow) in enumerate(workers.map(tried, range(0, MUTANTS, A_TIME)), 1):
            ends, wrong, slowest = ends + some, wrong + bad, max(slowest, slow)
            if n % 10 == 0 or bad:
                print("\n".join([f"{n * A_TIME:,} mutants: {len(wrong)} wrong", *bad]), flush=True)
    print(f"{dict(sorted(ends.items()))}; the slowest took {slowest[0]:.2f} s of a core: {slowest[1]}")
    tally("mutated studies, long", sum(ends.values()), sum(ends.values()) - len(wrong))
    assert sum(ends.values()) == MUTANTS and not wrong, "\n".join(wrong[:20])
