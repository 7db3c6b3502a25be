"""Three hundred tiny trials in one process: memory, file descriptors and files stay flat.

    make faults-long          # some minutes; prints the figures

Each is saved, stopped on the way and resumed: what a worker of a study does all day, in an actor that is used again.
"""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

from conftest import tally
from steps import Counter
from test_train import budgets_of, place_of, trunk_of

from trainers import checkpoint
from trainers.train import run_trunk

TRIALS, WARM = 300, 60
GROWTH_BYTES = 32 * 2**20
"""What the later trials may add in all. Assumed: allocators keep some; a model, its moments and engine left behind by each
would be some 0.5 MB a trial, and a suite 0.1 MB."""


def used() -> tuple[int, int, int, int]:
    """Bytes in memory that are this process's own, descriptors, threads, and objects that the collector knows."""
    gc.collect()
    resident, shared = (int(pages) for pages in Path("/proc/self/statm").read_text().split()[1:3])
    return (
        (resident - shared) * os.sysconf("SC_PAGE_SIZE"),
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        len(gc.get_objects()),
    )


def test_many_trials_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    """Fails if an engine is not let go of, a file is left open, or checkpoints pile up."""
    early = used()
    for n in range(TRIALS):
        trunk = trunk_of(replicate=n % 10)  # a suite of each is kept on purpose, up to a limit
        budgets, folder = budgets_of(trunk, 50 + n % 3), tmp_path / "c"
        run_trunk(trunk, budgets, place_of(folder, 0.0), lambda events: None, Counter(20))
        assert run_trunk(trunk, budgets, place_of(folder), lambda events: None) == "finished"
        assert len(list(folder.iterdir())) == 2
        checkpoint.clear(folder)
        if n + 1 == WARM:
            early = used()
        if (n + 1) % 60 == 0:
            memory, descriptors, threads, objects = used()
            print(
                f"{n + 1} trials: {memory / 2**20:.0f} MB, {descriptors} descriptors, {threads} threads, {objects} objects"
            )
            tally("tiny trials in one process", 60, 60)
    late = used()
    assert late[0] - early[0] < GROWTH_BYTES, (early, late)
    assert late[1:3] == early[1:3]
    assert late[3] - early[3] < 0.02 * early[3]
    assert not list(tmp_path.iterdir())
