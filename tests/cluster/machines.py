"""Machines for the cluster tests: Linux namespaces with an address, a home, a /tmp, processes and an sshd of their own.

`ray up`, `ray stop` and `~/.profile` mean a whole machine. Each Machine has its own network, process table, host name and
mounts, so that `ray stop` finds its own processes only and ~/.ssh, ~/.ray and ~/.profile of the real machine stay as they
are. The disk is shared but for the home and /tmp. All processes end with the machine, and the machine with the test.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "nsenter", "unshare", "setpriv", "mount", "script")


def missing() -> str:
    """Why no machines can be made here, or nothing."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces and an sshd"
    absent = [tool for tool in NEEDED if not shutil.which(tool)]
    if absent:
        return f"needs {', '.join(absent)}"
    tried = subprocess.run(["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "true"], capture_output=True)
    return "" if tried.returncode == 0 else f"namespaces are not allowed here: {tried.stderr.decode().strip()}"


INSIDE = """
set -e
mount --make-rprivate /
{keep}
mount --rbind {folder}/home {home}
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind {folder}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount --rbind {folder}/tmp /tmp
hostname {name}
ip link set lo up
touch {home}/.up
while :; do sleep 1000 & wait; done
"""
"""What the first process of a machine does; a shell, because it also buries the orphans that Ray's daemons become."""


class Machine:
    """One machine on the network 10.77.0.0/24. `folder` becomes its home and /tmp; `keep` stays visible inside."""

    def __init__(self, name: str, number: int, folder: Path, keep: list[Path]) -> None:
        self.name, self.address, self.folder = name, f"10.77.0.{number}", folder
        self.home = Path(pwd.getpwuid(0).pw_dir)
        self.own_home = folder / "home"
        self.at = Path("/")
        self.started: list[subprocess.Popen[str]] = []
        for own in ("home", "tmp"):
            (folder / own).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        # Its own name is 127.0.1.1 to it, as on Debian: what looks itself up by name gets no address that others reach.
        names = "".join(f"{'127.0.1.1' if n == number else f'10.77.0.{n}'} m{n}\n" for n in range(1, 9))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.own_home / ".bashrc").touch()
        script = INSIDE.format(folder=folder, home=self.home, name=f"m{number}", keep="\n".join(map(self._kept, keep)))
        unshare = [
            "unshare",
            "--net",
            "--pid",
            "--mount",
            "--uts",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
            "-c",
        ]
        self.first = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *unshare, script], stdin=subprocess.DEVNULL, text=True
        )
        wait_until(lambda: (self.own_home / ".up").exists(), 20, f"machine {name} is up", self.first)
        children = Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children").read_text().split()
        self.pid = int(children[0])

    def _kept(self, path: Path) -> str:
        """Commands that keep a path visible which the new home or /tmp would hide."""
        for hidden, own in ((self.home, self.folder / "home"), (Path("/tmp"), self.folder / "tmp")):
            if path.is_relative_to(hidden):
                place = own / path.relative_to(hidden)
                return f"mkdir -p {place} && mount --bind {path} {place}"
        return ""

    def command(self, line: str) -> list[str]:
        """A shell line as a command that runs on this machine, in the folder `at`."""
        return ["nsenter", "-t", str(self.pid), "-n", "-p", "-m", "-u", "--", "bash", "-c", f"cd {self.at} && {line}"]

    def start(self, line: str, log: Path | None = None, at_terminal: bool = False) -> subprocess.Popen[str]:
        """Start a shell line here, its output to a file or, without one, to a pipe. `at_terminal` gives it a terminal, at which
        `press_ctrl_c` works."""
        out = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600) if log else subprocess.PIPE
        process = subprocess.Popen(
            self.command(f"exec script -qefc {shlex.quote(line)} /dev/null" if at_terminal else line),
            env=self.environment(),
            stdin=subprocess.PIPE if at_terminal else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if log:
            os.close(out)
        self.started.append(process)
        return process

    def environment(self) -> dict[str, str]:
        """As a person at this machine has it: the project's tools on the path, the token asked for, nothing of the tests'."""
        tools = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": str(self.home), "USER": "root", "PATH": tools, "TERM": "dumb", "RAY_AUTH_MODE": "token"}

    def run(self, line: str, timeout: float = 240, expect: int | None = 0) -> str:
        """What a shell line prints here. Fails unless it ends with the code expected (None: any)."""
        process = self.start(line)
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            raise AssertionError(f"{self.name}: not done in {timeout:g} s: {line}\n{said}") from None
        assert expect is None or process.returncode == expect, f"{self.name}: {line}: {process.returncode}\n{said}"
        return said

    def serve_ssh(self, host_key: Path, authorized: Path) -> None:
        """Start an sshd on port 22 of this machine, which lets in the holder of one key."""
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress {self.address}:22\nListenAddress 127.0.0.1:22\nHostKey {host_key}\n"
            f"AuthorizedKeysFile {authorized}\nPidFile none\nUsePAM no\nStrictModes no\nUseDNS no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "MaxStartups 100\nSubsystem sftp internal-sftp\n"
        )
        self.sshd = self.start(f"exec {shutil.which('sshd')} -D -e -f {config}", self.folder / "sshd.log")
        wait_until(lambda: "listening on" in (self.folder / "sshd.log").read_text(), 20, "sshd listens", self.sshd)

    def runs(self, name: str) -> bool:
        """Is a process of this name alive here?"""
        return bool(self.run(f"pgrep -x {name}", expect=None).strip())

    def runs_with(self, word: str) -> bool:
        """Is a process alive here that has this word in its command?"""
        return bool(self.run(f"pgrep -f '[{word[0]}]{word[1:]}'", expect=None).strip())

    def end(self) -> None:
        """End the machine with every process on it."""
        self.first.send_signal(signal.SIGKILL)
        self.first.wait()
        for process in self.started:
            process.wait(timeout=20)
            for end in (process.stdin, process.stdout):
                if end:
                    end.close()


class Network:
    """A switch in a namespace of its own, and the cables to it, which can be pulled."""

    def __init__(self, folder: Path) -> None:
        self.switch = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "bash", "-c",
             f"ip link add br0 type bridge && ip link set br0 up && touch {folder}/switched && exec sleep infinity"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: (folder / "switched").exists(), 20, "the switch is up", self.switch)

    def plug(self, machine: Machine) -> None:
        """Connect a machine: its address, and a way out that leads nowhere (Ray finds its own address by asking for one)."""
        port, far = f"p{machine.address.rpartition('.')[2]}", str(machine.pid)
        at_switch = ["nsenter", "-t", str(self.switch.pid), "-n", "--"]
        _do(*at_switch, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", far)
        _do(*at_switch, "ip", "link", "set", port, "master", "br0", "up")
        machine.run(
            f"ip addr add {machine.address}/24 dev eth0 && ip link set eth0 up && ip route add default dev eth0"
        )

    def cable(self, machine: Machine, state: str) -> None:
        """Pull (`down`) or plug in (`up`) the cable at the switch's end."""
        port = f"p{machine.address.rpartition('.')[2]}"
        _do("nsenter", "-t", str(self.switch.pid), "-n", "--", "ip", "link", "set", port, state)

    def end(self) -> None:
        self.switch.kill()
        self.switch.wait()


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """What a person does at the terminal that a process was started at."""
    assert process.stdin is not None
    process.stdin.write("\x03")
    process.stdin.flush()


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def wait_until(
    true: object, seconds: float, what: str, process: subprocess.Popen[str] | subprocess.Popen[bytes] | None = None
) -> None:
    """Look until it is so. Fails after so many seconds, or at once when the process that should bring it about has ended."""
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, f"ended before {what}: code {process.returncode}"
        assert time.monotonic() < deadline, f"not so after {seconds:g} s: {what}"
        time.sleep(0.1)
