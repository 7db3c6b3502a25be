"""Admission: a trunk starts only when each of its workers has a free slot.

Without this rule two trunks could each hold some workers and wait for the rest. Both would wait for ever, silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune.search import Searcher

LOOK_EVERY_SECONDS = 1.0
"""Interval between two looks at the size of the cluster, which may grow and shrink."""
SAY_EVERY_SECONDS = 60.0
"""Least time between two messages about missing machines."""


class Ask(NamedTuple):
    """A trunk that waits to run."""

    config: dict[str, Any]
    """The config that Ray Tune passes to `worker.execute`."""
    slots: int
    """Slots that it takes: one per worker, or all slots of a GPU per worker if the trunk has several."""
    name: str


class Admission(Searcher):
    """A Tune search algorithm that gives out trunks in order and skips those that do not fit yet.

    The widest trunks come first. Slots that a wide trunk frees are therefore offered to the next wide one before the
    narrow ones. If the cluster has grown, narrow trunks may hold all of it. The first waiting trunk, if it can fit at
    all, is then skipped at most as many times as there are slots. After that, free slots are kept for it.
    """

    def __init__(
        self,
        asks: list[Ask],
        room: Callable[[], int],
        wanted: Callable[[int], None] = lambda slots: None,
        say: Callable[[str], None] = lambda line: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`room()` returns the current number of slots. `wanted(slots)` is called when the number of useful slots
        changes.

        Once `stopping()` is true, no trunk is given out.
        """
        super().__init__()
        self.waiting, self.running = list(asks), dict[str, int]()
        self._room, self._wanted, self._say, self._stopping = room, wanted, say, stopping
        self._looked_at, self._slots, self._message_at, self._last_wanted = -1e9, 0, time.monotonic(), -1
        self._skipped = 0  # how often the first waiting trunk was skipped although the cluster could hold it

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept everything: this class does not search."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trunk that fits; None: later; FINISHED: none is left."""
        if not self.waiting or self._stopping():
            return Searcher.FINISHED
        self._look()
        free = self._slots - sum(self.running.values())
        first = self.waiting[0]
        if first.slots > self._slots:
            self._announce_waiting(first)
        elif first.slots > free and self._skipped >= self._slots:
            return None
        for i, ask in enumerate(self.waiting):
            if ask.slots <= free:
                del self.waiting[i]
                self._skipped = 0 if i == 0 else self._skipped + (first.slots <= self._slots)
                self.running[trial_id] = ask.slots
                return ask.config
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Free the slots of a trunk that ended or failed."""
        self.running.pop(trial_id, None)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > LOOK_EVERY_SECONDS:
            self._looked_at, self._slots = now, self._room()
        wanted = sum(ask.slots for ask in self.waiting) + sum(self.running.values())
        if wanted != self._last_wanted:
            self._last_wanted = wanted
            self._wanted(wanted)

    def _announce_waiting(self, ask: Ask) -> None:
        if time.monotonic() - self._message_at > SAY_EVERY_SECONDS:
            self._message_at = time.monotonic()
            slots = f"{ask.slots} slot{'s' if ask.slots > 1 else ''}"
            self._say(f"Waiting for machines: {ask.name} needs {slots}, the cluster has {self._slots} now.")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing. Tune pickles its search algorithm, and `say` holds a console. A Tuner is never restored."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing: a study resumes from its journal."""

    def save(self, checkpoint_path: str) -> None:
        """Create an empty file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a Tuner is never restored."""
        raise NotImplementedError
