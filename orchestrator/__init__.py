"""A study: reading it, planning it, running it on Ray, keeping its record, giving its answer.

    from orchestrator import open_study, run_study

Imports `trainers`, never the reverse. Each folder is a room; a room uses only rooms below it (`tests/test_rooms.py`).
Importing this package loads nothing else; the names above are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import OpenStudy, StudyFailed, open_study, run_study

__all__ = ["OpenStudy", "StudyFailed", "open_study", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'orchestrator' has no {name!r}")
    from orchestrator import api

    return getattr(api, name)
