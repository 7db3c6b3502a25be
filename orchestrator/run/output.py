"""Output that may lose its reader: a run goes on and saves, whatever becomes of its terminal, pipe or log."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from orchestrator.run import supervise

STUCK_SECONDS = 2.0
"""Once a stop is asked for, a reader who takes nothing for so long (a terminal held by Ctrl-S, a stopped pager) is given up."""


class _Lasting(io.FileIO):
    """A file whose first failed write turns it into /dev/null; so does a reader who is stuck while we are to stop."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write it all, or pretend to: never raises OSError."""
        rest = view = memoryview(data).cast("B")
        try:
            while rest:
                while not select.select((), (self,), (), STUCK_SECONDS)[1]:
                    if supervise.is_asked():
                        raise TimeoutError
                rest = rest[super().write(rest[: select.PIPE_BUF]) or 0 :]  # so much a pipe takes, if it takes anything
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        return len(view)


def outlive_readers(log: Path) -> None:
    """From now on Python's output never fails. What native code writes to standard error goes to `log`.

    A Ray that dies writes pages there, and we say it in one line.
    """
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, os.dup(2))
    with contextlib.suppress(OSError):
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(file, 2)
        os.close(file)
        supervise.tell("log", str(log))


def _lasting(stream: TextIO, number: int) -> TextIO:
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        cast(BinaryIO, _Lasting(number, "w", closefd=False)),  # a buffer between would repeat what a Ctrl-C interrupts
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )
