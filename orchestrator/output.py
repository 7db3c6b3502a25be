"""Output that may lose its reader: a run goes on and saves, whatever becomes of its terminal, pipe or log."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from orchestrator import supervise


class _Lasting(io.FileIO):
    """A file whose first failed write turns it into /dev/null."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write, or pretend to: never raises OSError."""
        try:
            return super().write(data)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


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
    buffer = io.BufferedWriter(_Lasting(number, "w", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )
