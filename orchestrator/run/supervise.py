"""The small parent of `emergence run`: it owns the signals and reports how the driver ended. Standard library only.

The driver is the same program in a session of its own. A batch system, `timeout` or a terminal signals a whole process
group. Such a signal reaches the parent alone. A socket connects the two, and each sees the other's death. The driver
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
"""Holds the driver's end of the socket. The driver removes it from its environment, so that its children do not see it."""
SAME_SECONDS = 0.5
"""A Ctrl-C this soon after another signal counts as the same one: wrappers repeat the terminal's signal."""
LEAVING_SECONDS = 20.0
"""A driver that has reported its exit code is killed after this time. Some library's thread may hold it."""
NOTHING_BEGUN = "\nStopped; nothing had begun.\n"

_asked = _forced = False
"""Plain booleans, because a signal handler sets them: the interrupted code may hold the lock of an Event."""
_link: socket.socket | None = None


def begin() -> None:
    """The program calls this first. In the parent of a run it does not return.

    Until `main` takes over, Ctrl-C prints one line: the imports take a second.
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
    """Open /dev/null as standard input, output or error if one is closed (`>&-`).

    Otherwise the next opened file, perhaps the study's lock, gets its number.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin, sys.stdout, sys.stderr = (
        stream or open(number, how)  # noqa: SIM115 - open until the process ends
        for number, (stream, how) in enumerate([(sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")])
    )


def ending_signals() -> list[signal.Signals]:
    """The signals that stop a run, without those that the process ignores from its start (`nohup`)."""
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in every if signal.getsignal(number) is not signal.SIG_IGN]


# The driver's side ---------------------------------------------------------------------------------------------------


def take_over() -> None:
    """From now on a stopping signal raises KeyboardInterrupt: in a run any of `ending_signals`, else only Ctrl-C."""
    if _link is not None:
        for number in ending_signals():
            signal.signal(number, interrupt)
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handler: KeyboardInterrupt at the first signal, and at every signal once an immediate exit is asked for."""
    global _asked
    first, _asked = not _asked, True
    if first or _forced:
        raise KeyboardInterrupt


def is_asked() -> bool:
    """Whether this process was asked to end."""
    return _asked


class StopRequest:
    """A request to stop a run: a signal to this process, or a file `stop` in the study's folder, made by anybody."""

    def __init__(self, folder: Path) -> None:
        self.flag = folder / "stop"
        self._here = self.by_signal = False

    def ask(self) -> None:
        """Ask for a stop. Inside the driver this works on a full disk too."""
        self.ask_this_driver()
        with contextlib.suppress(OSError):
            self.flag.touch()

    def ask_this_driver(self) -> None:
        """Ask this driver alone: after a takeover the file belongs to another driver."""
        global _asked
        _asked = self._here = True

    def is_asked(self) -> bool:
        """Whether a stop was asked for."""
        if self.flag.exists():
            self.ask_this_driver()
        return self._here

    def clear(self) -> None:
        """Remove the request made to an earlier run. Only the holder of the study's lock may call this."""
        self.flag.unlink(missing_ok=True)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handler: ask for a stop, or leave at once if that is asked for. Prints nothing: it may interrupt a print."""
        global _asked
        _asked = True
        if _forced:
            raise KeyboardInterrupt
        self.by_signal = True
        self.ask()


def tell(name: str, fact: str | int) -> None:
    """Send a fact to the parent.

    `log` is a path. `left` is the intended exit code. `lost` is the reason for having none. `needs` lists the processes
    that the driver depends on, as PID=NAME;PID=NAME.
    """
    if _link is not None:
        with contextlib.suppress(OSError):
            _link.sendall(f"{name} {fact}\n".encode())


def _hold(end: int) -> None:
    """Take the socket and start its listener. The thread receives signals even while the main thread blocks them."""
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
        os.kill(os.getpid(), signal.SIGTERM)


def _leave_early(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, NOTHING_BEGUN.encode())
    tell("left", 130)
    os._exit(130)


# The parent's side ---------------------------------------------------------------------------------------------------


def _supervise() -> int:
    """Start the driver, pass stopping signals on to it, and wait for it. Returns the exit code."""
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

    # Ctrl-Z does nothing. If only the parent paused, the driver would paint over the shell and receive no Ctrl-C. If the driver
    # paused too, its lease would run out, and Ray would take it for dead.
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
    facts = _facts(ours, driver)
    try:
        code = driver.wait(LEAVING_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        code = driver.wait()
    if "left" in facts:  # also if the teardown after it failed
        return int(facts["left"])
    if asked_at and code == -signal.SIGTERM:  # the driver had not yet installed its handlers
        _say(NOTHING_BEGUN)
        return 130
    if os.isatty(1):
        _say("\x1b[?25h\r")  # show the cursor, which a live panel had hidden
    how = facts.get("lost") or ("" if code < 0 else _first_dead(facts.get("needs", "")))
    how = how or (f"signal {-code}" if code < 0 else f"exit code {code}")
    log = f"; see {facts['log']}" if "log" in facts else ""
    _say(f"The driver ended unexpectedly ({how}{log}). Everything recorded is kept, and the same command resumes.\n")
    return 1


def _facts(link: socket.socket, driver: subprocess.Popen[bytes]) -> dict[str, str]:
    """Collect the driver's facts until it sends `left` or ends. Another process may hold the socket open after that."""
    facts, data, going = dict[str, str](), b"", True
    while going and "left" not in facts:
        going = driver.poll() is None
        with contextlib.suppress(OSError):
            while select.select([link], [], [], 1.0 if going else 0.0)[0]:
                if not (part := link.recv(4096)):
                    return facts
                *lines, data = (data + part).split(b"\n")
                facts |= dict(line.decode(errors="replace").split(" ", 1) for line in lines)
    return facts


def _first_dead(needed: str) -> str:
    """The first dead process of `needs`, in words; "" if all live. A dead raylet ends its driver at once."""
    for pid, _, name in (entry.partition("=") for entry in needed.split(";") if entry):
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
