"""Durable files: names that survive a power cut, and the identity of the writing process. Standard library only."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents so that they survive a power cut. Raises OSError if the system refuses."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to disk, so that it survives a power cut. Raises OSError if that fails.

    Some file systems (FUSE, SMB) refuse to sync folders with EINVAL or ENOTSUP. That refusal is ignored.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


# The writing process ------------------------------------------------------------------------------------------------


def boot() -> str:
    """Id of the machine's present boot, new after each restart; "" if the system gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_space() -> str:
    """Id of the PID namespace of this process; "" if the system gives none. A PID is unique only within its namespace."""
    try:
        if str(Path("/proc/self").readlink()) != str(os.getpid()):
            return ""  # /proc shows the processes of another namespace
        return f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """Start time of a process, in clock ticks since boot; "" if it has ended, None if the system does not give it."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]


def lives(pid: int, since: str | None) -> bool:
    """Does the process with this id and start time (`started`) still run? True if the system gives no start time now.

    Id and time must come from this boot and this PID namespace.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return started(pid) in (since, None)
