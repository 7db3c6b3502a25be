"""A small parent of `emergence run`: it owns the signals, and tells how the driver ended. Standard library only.

The driver is the same program in a session of its own, so that what a batch system, `timeout` or a terminal sends to a whole
process group reaches the parent alone. The two hold a socket: if either dies, however, the other one sees its end. The driver
then stops as for a signal: every trunk saves.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

VARIABLE = "EMERGENCE_SUPERVISOR"
"""Names the driver's end of the socket. The driver takes it out of its environment: it is for no process further down."""
SAME_SECONDS = 0.5
"""A Ctrl-C so soon after another signal is the same one: wrappers send on what the terminal sent already."""
LEAVING_SECONDS = 20.0
"""A driver that has said how it leaves and is not gone by then is killed: some library's thread holds it."""
NOTHING_BEGUN = "\nStopped; nothing had begun.\n"

_asked = _forced = False
"""Plain, as all that a handler sets: the lock of an Event may be held by the very code that the signal interrupts."""
_link: socket.socket | None = None


def begin() -> None:
    """To be called first by the program. In the parent of a run it does not return.

    Until `main` takes over, Ctrl-C is one line: loading what follows takes a second.
    """
    _open_what_is_closed()
    end = os.environ.pop(VARIABLE, None)
    if end is None and sys.argv[1:2] == ["run"]:
        sys.exit(_supervise())
    for number in ending_signals() if end is not None else (signal.SIGINT,):
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _leave_early)
    if end is not None:
        _hold(int(end))


def _open_what_is_closed() -> None:
    """Put /dev/null where standard input, output or error is closed (`>&-`): else the next file that is opened takes its place.

    That file may be the study's lock.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin, sys.stdout, sys.stderr = (
        stream or open(number, how)  # noqa: SIM115 - they last as long as we do
        for number, (stream, how) in enumerate([(sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")])
    )


def ending_signals() -> list[signal.Signals]:
    """Signals that ask a run to stop. Those that we were started to ignore (`nohup`) stay ignored."""
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in every if signal.getsignal(number) is not signal.SIG_IGN]


# The driver's side ---------------------------------------------------------------------------------------------------


def take_over() -> None:
    """From now on what asks a command to end is a KeyboardInterrupt: for a run any of the signals, else Ctrl-C."""
    if _link is not None:
        for number in ending_signals():
            signal.signal(number, interrupt)
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler: KeyboardInterrupt for the first signal, and once leaving at once is asked for. Repeats change nothing."""
    global _asked
    first, _asked = not _asked, True
    if first or _forced:
        raise KeyboardInterrupt


def is_asked() -> bool:
    """Did anything ask this process to end?"""
    return _asked


class StopRequest:
    """What asks a run to stop: a file in the study's folder, which anybody can make, or a signal to this process."""

    def __init__(self, folder: Path) -> None:
        self.flag = folder / "stop"
        self._here = False

    def ask(self) -> None:
        """Ask for it. Works on a full disk too, if it is this process that is asked."""
        self.ask_this_driver()
        with contextlib.suppress(OSError):
            self.flag.touch()

    def ask_this_driver(self) -> None:
        """Ask this driver alone: the file may by now be another's, who has taken over."""
        global _asked
        _asked = self._here = True

    def is_asked(self) -> bool:
        """Is it to stop?"""
        if self.flag.exists():
            self.ask_this_driver()
        return self._here

    def clear(self) -> None:
        """Forget what was asked of an earlier run; for the holder of the study's lock."""
        self.flag.unlink(missing_ok=True)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """A handler: ask; KeyboardInterrupt once leaving at once is asked for. It prints nothing: it may interrupt a print."""
        global _asked
        _asked = True
        if _forced:
            raise KeyboardInterrupt
        self.ask()


def tell(name: str, fact: str | int) -> None:
    """Leave a fact with the parent: `log`, a path; `left`, the exit code that is meant; `lost`, why there is none;
    `needs`, processes that it cannot live without, each PID=NAME, between semicolons."""
    if _link is not None:
        with contextlib.suppress(OSError):
            _link.sendall(f"{name} {fact}\n".encode())


def _hold(end: int) -> None:
    """Take the socket; a thread listens to it. The thread takes signals even while the main thread blocks them."""
    global _link
    _link = socket.socket(fileno=end)
    _link.set_inheritable(False)
    threading.Thread(target=_listen, args=(_link,), daemon=True).start()


def _listen(link: socket.socket) -> None:
    global _forced
    going = True
    while going:
        try:
            going = bool(link.recv(1))
        except OSError:
            going = False
        if going:
            _forced = True
        os.kill(os.getpid(), signal.SIGTERM)  # handled as if it had been sent to us


def _leave_early(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, NOTHING_BEGUN.encode())
    tell("left", 130)
    os._exit(130)


# The parent's side ---------------------------------------------------------------------------------------------------


def _supervise() -> int:
    """Start the driver, hand on what asks it to stop, wait for it. Returns the exit code."""
    ours, theirs = socket.socketpair()
    driver: subprocess.Popen[bytes] | None = None
    asked_at, again = 0.0, 0

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at, again
        before, asked_at = asked_at, time.monotonic()
        if not before:
            if driver is not None:
                driver.send_signal(signal.SIGTERM)
        elif number == signal.SIGINT and asked_at - before > SAME_SECONDS and driver is not None:
            again += 1
            if again > 1:
                driver.kill()
            with contextlib.suppress(OSError):
                ours.sendall(b"!")

    # Ctrl-Z does nothing. To stop us alone would leave a driver that paints over the shell and hears no Ctrl-C; to stop the
    # driver too, one whose lease runs out and whose Ray, which has clocks of its own, takes it for dead.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    for number in ending_signals():
        signal.signal(number, hand_on)
    driver = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {VARIABLE: str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    if asked_at:  # while it was being started
        driver.send_signal(signal.SIGTERM)
    told = _facts(ours, driver)
    try:
        code = driver.wait(LEAVING_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        code = driver.wait()
    if "left" in told:  # whatever happened in tearing down
        return int(told["left"])
    if asked_at and code == -signal.SIGTERM:  # it had not come so far as to listen
        _say(NOTHING_BEGUN)
        return 130
    if os.isatty(1):
        _say("\x1b[?25h\r")  # a live panel had hidden the cursor
    if code < 0:  # whatever died of it
        how = told.get("lost") or f"signal {-code}"
    else:
        how = told.get("lost") or _first_dead(told.get("needs", "")) or f"exit code {code}"
    words = f"; see {told['log']}" if "log" in told else ""
    _say(f"The driver ended unexpectedly ({how}{words}). Everything recorded is kept, and the same command goes on.\n")
    return 1


def _facts(link: socket.socket, driver: subprocess.Popen[bytes]) -> dict[str, str]:
    """What the driver tells us, until it says how it leaves or ends. A process of its own may keep the link open."""
    told, data, going = dict[str, str](), b"", True
    while going and "left" not in told:
        going = driver.poll() is None
        with contextlib.suppress(OSError):
            while select.select([link], [], [], 1.0 if going else 0.0)[0]:
                if not (part := link.recv(4096)):
                    return told
                *lines, data = (data + part).split(b"\n")
                told |= dict(line.decode(errors="replace").split(" ", 1) for line in lines)
    return told


def _first_dead(needed: str) -> str:
    """Which of the needed processes is dead, in words; empty where all live. A dead raylet ends its driver at once."""
    for pid, _, name in (one.partition("=") for one in needed.split(";") if one):
        try:
            os.kill(int(pid), 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return f"{name} died"
        except ProcessLookupError:
            return f"{name} died"
        except OSError:  # a system without /proc
            pass
    return ""


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
