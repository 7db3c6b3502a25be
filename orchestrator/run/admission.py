"""Admission: a trunk starts only when each of its workers has a free slot, and after the trial whose weights it begins with.

Without the first rule two trunks could each hold some workers and wait for the rest. Both would wait for ever, silently. A trunk
that waits for a donor holds no slot, so others run meanwhile.
"""

from __future__ import annotations

import bisect
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
    donor: str = ""
    """Id of the trial whose weights it begins with; "" if it begins with initial weights."""


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
        status: Callable[[str], str | None] = lambda donor: "done",
        lost: Callable[[Ask], None] = lambda ask: None,
    ) -> None:
        """`room()` returns the current number of slots. `wanted(slots)` is called when the number of useful slots
        changes.

        Once `stopping()` is true, no trunk is given out. `status(donor)` is how a donor ended, None if it has not. A trunk whose
        donor ended otherwise than done is never given out; `lost` is called with it.
        """
        super().__init__()
        self._order = {ask.name: i for i, ask in enumerate(asks)}
        self.waiting, self.running = [ask for ask in asks if not ask.donor], dict[str, int]()
        self.blocked: dict[str, list[Ask]] = {}  # by the donor that has yet to end
        for ask in asks:
            if ask.donor:
                self.blocked.setdefault(ask.donor, []).append(ask)
        self._room, self._wanted, self._say, self._stopping = room, wanted, say, stopping
        self._status, self._lost = status, lost
        self._looked_at, self._slots, self._message_at, self._last_wanted = -1e9, 0, time.monotonic(), -1
        self._first = ""  # the first waiting trunk
        self._skipped = 0  # how often it was skipped although the cluster could hold it

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept everything: this class does not search."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trunk that fits; None: later; FINISHED: none is left."""
        self._release()
        if not (self.waiting or self.blocked) or self._stopping():
            return Searcher.FINISHED
        self._look()
        if not self.waiting:
            return None
        free = self._slots - sum(self.running.values())
        first = self.waiting[0]
        if first.name != self._first:
            self._first, self._skipped = first.name, 0
        if first.slots > self._slots:
            self._announce_waiting(first)
        elif first.slots > free and self._skipped >= self._slots:
            return None
        for i, ask in enumerate(self.waiting):
            if ask.slots <= free:
                del self.waiting[i]
                self._skipped += i > 0 and first.slots <= self._slots
                self.running[trial_id] = ask.slots
                return ask.config
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Free the slots of a trunk that ended or failed."""
        self.running.pop(trial_id, None)

    def _release(self) -> None:
        """Let the trunks wait for slots whose donor is done, and give up those whose donor is lost."""
        while ended := [(donor, status) for donor in self.blocked if (status := self._status(donor)) is not None]:
            for donor, status in ended:
                self._unblock(donor, status)  # which may lose a donor of others
        if not self.waiting and not self.running:
            for donor in list(self.blocked):
                self._unblock(donor, "gone")  # no trunk is left that could end it

    def _unblock(self, donor: str, status: str) -> None:
        for ask in self.blocked.pop(donor):
            if status == "done":
                bisect.insort(self.waiting, ask, key=lambda one: self._order[one.name])
            else:
                self._lost(ask)

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
