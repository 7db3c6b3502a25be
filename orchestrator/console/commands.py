"""Commands for the user to copy, in the form in which this one was called, without passwords."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.record import links


def program() -> str:
    """The name of this program for commands to copy: `emergence` if it is on the path, else its file."""
    called = Path(sys.argv[0])
    if called.name != "emergence" or shutil.which("emergence"):
        return "emergence"
    return os.path.relpath(called) if called.is_absolute() else str(called)


def this_again() -> str:
    """This command, to copy, with all its options: without them it might not find its checkpoints."""
    return to_copy([program(), *sys.argv[1:]])


_SECRET_OPTIONS = {"--tracking-uri": "MLFLOW_TRACKING_URI", "--storage": "EMERGENCE_STORAGE"}
"""Options that may hold a password, and the variables with the same meaning."""


def to_copy(words: Sequence[str]) -> str:
    """A command that may be shown: an option with a password is left out, and its variable is named instead."""
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
    first = f"   (set {' and '.join(unset)} first: its value is not shown)" if unset else ""
    return shlex.join(kept) + first
