"""Who may start: a trunk is given out when all its workers have room, so that none ever holds a machine and waits for more.

Ray Tune asks for the next trial, and is told "later" until a slot is free for each of its workers. Two trunks that each held
some workers and waited for others would wait for ever, and say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune.search import Searcher

LOOK_EVERY_SECONDS = 1.0
"""How often the cluster is asked how large it is: it may grow and shrink."""
SAY_EVERY_SECONDS = 60.0
"""How often it is said what is being waited for."""


class Ask(NamedTuple):
    """One trunk that wants to run."""

    config: dict[str, Any]
    """What Ray Tune hands to the function that executes it."""
    slots: int
    """What it takes: one for each worker, or for each share of a GPU where it needs whole ones."""
    name: str


class Admission(Searcher):
    """Gives out trunks in their order, passing over those for which there is no room yet.

    They come widest first, so that what a wide one gives back is offered to the next as wide before it is to others. Where the
    cluster grew, narrow ones may hold it all: then the first that waits and would fit is passed over only as often as there
    are slots, and after that what becomes free is kept for it.
    """

    def __init__(
        self,
        asks: list[Ask],
        room: Callable[[], int],
        wanted: Callable[[int], None] = lambda slots: None,
        say: Callable[[str], None] = lambda line: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`room` tells how many slots there are now; `wanted` is told how many are of use, when that changes.

        Once `stopping`, nothing is given out.
        """
        super().__init__()
        self.waiting, self.running = list(asks), dict[str, int]()
        self._room, self._wanted, self._say, self._stopping = room, wanted, say, stopping
        self._looked, self._slots, self._said, self._told_wanted = -1e9, 0, time.monotonic(), -1
        self._passed = 0  # how often the first that waits was passed over, though it would fit

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Nothing is searched for."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trunk that has room; None: later; FINISHED: there are no more."""
        if not self.waiting or self._stopping():
            return Searcher.FINISHED
        self._look()
        free = self._slots - sum(self.running.values())
        first = self.waiting[0]
        if first.slots > self._slots:
            self._tell(first)
        elif first.slots > free and self._passed >= self._slots:
            return None
        for i, ask in enumerate(self.waiting):
            if ask.slots <= free:
                del self.waiting[i]
                self._passed = 0 if i == 0 else self._passed + (first.slots <= self._slots)
                self.running[trial_id] = ask.slots
                return ask.config
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trunk has ended, for good or not: its slots are free."""
        self.running.pop(trial_id, None)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY_SECONDS:
            self._looked, self._slots = now, self._room()
        wanted = sum(ask.slots for ask in self.waiting) + sum(self.running.values())
        if wanted != self._told_wanted:
            self._told_wanted = wanted
            self._wanted(wanted)

    def _tell(self, ask: Ask) -> None:
        if time.monotonic() - self._said > SAY_EVERY_SECONDS:
            self._said = time.monotonic()
            slots = f"{ask.slots} slot{'s' if ask.slots > 1 else ''}"
            self._say(f"Waiting for machines: {ask.name} needs {slots}, the cluster has {self._slots} now.")

    def __getstate__(self) -> dict[str, Any]:
        """A Tuner pickles all it is given, to be restored from; ours never is, and `say` holds a console."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Tune saves searchers; the journal is what a study goes on from."""

    def save(self, checkpoint_path: str) -> None:
        """As above."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """A Tuner is never restored."""
        raise NotImplementedError
