"""What files that last need: names that survive a power cut, and knowledge of who is writing. Standard library only."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each synced into the one that holds it. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut. Raises OSError.

    Some file systems (FUSE, SMB) sync no folders and say so; there is nothing more to be done there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


# Who writes ---------------------------------------------------------------------------------------------------------


def boot() -> str:
    """This start of this machine; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_space() -> str:
    """The name space in which this process's ids mean something; "" where the system does not say."""
    try:
        if str(Path("/proc/self").readlink()) != str(os.getpid()):
            return ""  # /proc shows the processes of another one
        return f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """When a process started, in ticks since boot; "" for one that has ended, None where the system does not say."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]


def lives(pid: int, since: str | None) -> bool:
    """Is this the process that had this id and `started` then? Of the same boot and process space."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return started(pid) in (since, None)
