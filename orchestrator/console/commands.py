"""Commands to copy, as this one was called; a password is never among them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.record import links


def program() -> str:
    """How this program was called, for commands to copy: `emergence` where it is on the path, else its file."""
    called = Path(sys.argv[0])
    if called.name != "emergence" or shutil.which("emergence"):
        return "emergence"
    return os.path.relpath(called) if called.is_absolute() else str(called)


def this_again() -> str:
    """This very command, to copy: without its options it might not find its checkpoints again."""
    return to_copy([program(), *sys.argv[1:]])


_SECRET_OPTIONS = {"--tracking-uri": "MLFLOW_TRACKING_URI", "--storage": "EMERGENCE_STORAGE"}
"""Options that may hold a password, and the variables that say the same."""


def to_copy(words: Sequence[str]) -> str:
    """A command as it may be shown: an option that holds a password is left out, and the variable for it is named."""
    kept: list[str] = []
    unset: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, given, value = word.partition("=")
        if option in _SECRET_OPTIONS and (given or rest):
            value = value if given else rest.pop(0)
            if links.holds_secret(value):
                unset.append(_SECRET_OPTIONS[option])
            else:
                kept += [word] if given else [word, value]
        else:
            kept.append(links.without_password(word))
    first = f"   (set {' and '.join(unset)} first: what it holds is not repeated here)" if unset else ""
    return shlex.join(kept) + first
