"""Counts optimizer steps where they are made. A test that stops a run at a step cannot count how often it was asked: it is asked
between micro-batches and in the middle of evaluations too.
"""

from __future__ import annotations

import traceback
from functools import wraps
from typing import Any

from trainers.engine.engine import Engine

made = 0
"""Steps that engines of this process have completed."""

_step = Engine.step


@wraps(_step)
def _counted(self: Engine, *given: Any) -> Any:
    global made
    outcome = _step(self, *given)
    made += 1
    return outcome


Engine.step = _counted  # type: ignore[method-assign]


class Counter:
    """A `should_stop` that counts the steps made since, and asks to stop instead of step number `stop_before`."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.first, self.stop_before = made, stop_before

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return made - self.first

    def __call__(self) -> bool:
        assert self.steps < 2000, "the trunk does not come to an end"
        return self.steps == self.stop_before


def under_way() -> str:
    """What a trunk is in the middle of, for a `should_stop` that is being asked: a step, an evaluation, or neither."""
    frames = [frame.name for frame in traceback.extract_stack()]
    return "evaluation" if "evaluate" in frames else "step" if "_counted" in frames else "neither"


class Within(Counter):
    """A `should_stop` that asks to stop in the middle of step number `n`, or of the evaluation before it."""

    def __init__(self, n: int, what: str) -> None:
        super().__init__(n)
        self.what = what

    def __call__(self) -> bool:
        return super().__call__() and under_way() == self.what
