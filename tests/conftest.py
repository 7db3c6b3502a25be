"""What all tests share: one thread a process, and property tests that draw the same examples on every machine."""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere; subprocesses inherit it

from hypothesis import settings

# A shell that starts tests in the background has SIGINT ignored, and children would inherit that: Ctrl-C is to reach them.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
