"""Output that survives the loss of its reader. If its terminal, pipe or log fails, a run goes on and saves."""

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
"""After a stop request, a reader that accepts nothing for this long is given up (Ctrl-S, a stopped pager)."""


class _Lasting(io.FileIO):
    """A file that becomes /dev/null at its first failed write, or if its reader is stuck during a stop."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write everything, or discard it. Never raises OSError."""
        rest = view = memoryview(data).cast("B")
        try:
            while rest:
                while not select.select((), (self,), (), STUCK_SECONDS)[1]:
                    if supervise.is_asked():
                        raise TimeoutError
                n_written = super().write(rest[: select.PIPE_BUF])  # a ready pipe accepts PIPE_BUF bytes at once
                rest = rest[n_written or 0 :]
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        return len(view)


def outlive_readers(log: Path) -> None:
    """From now on Python's output never fails, and native code's standard error goes to `log`.

    A dying Ray writes pages there; the user sees one line from us.
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
        cast(BinaryIO, _Lasting(number, "w", closefd=False)),  # unbuffered: a buffer repeats output after a Ctrl-C
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )
