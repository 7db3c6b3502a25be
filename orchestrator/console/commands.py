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


def to_copy(words: Sequence[str]) -> str:
    """A command that may be shown, without passwords."""
    return shlex.join(map(links.without_password, words))
