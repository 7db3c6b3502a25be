"""Hostile text and homes in trouble: shown as they are, or one line and an exit code; never obeyed, never a traceback.

Nothing here needs Ray. The full disk and the read-only one are real file systems, in a namespace of their own.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import PATIENCE_SECONDS, tally
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from orchestrator import cli
from orchestrator.console import checks
from orchestrator.record import publisher
from orchestrator.record.journal import Journal
from orchestrator.record.provenance import session_event
from orchestrator.study.schema import Study, is_id
from orchestrator.terminal import Terminal, printable, shortened, styled
from trainers.fit.place import Place

ROOT = Path(__file__).parent.parent.parent
HOSTILE = "a [/INST] [see fig] :smile: \x1b[31mred\x1b]0;title\x07 \x9b2J \u202etxt.exe </script><img src=x onerror=alert(1)> $x_1$"
SEEN = r"a [/INST] [see fig] :smile: \x1b[31mred\x1b]0;title\x07 \x9b2J \u202etxt.exe </script><img src=x onerror=alert(1)> $x_1$"
SMALL: dict[str, Any] = {
    "study": "small",
    "version": 1,
    "question": HOSTILE,
    "family": {"name": "cipher", "n_symbols": 8, "n_pairs": 8},
    "axes": {"arm": ["answer"], "n_tasks": [4, 8], "compute_flops": [3e8], "replicates": 2},
    "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32},
    "training": {"batch_size": 8},
    "evaluation": {"n_sequences": 4, "first_flops": 1e8, "points_per_decade": 2},
}
FILE = """
study: small
version: 1
question: "a [/INST] [see fig] [bold]x[/bold] :smile: </script> $x_1$"
family: {name: cipher, n_symbols: 8, n_pairs: 8}
axes: {arm: [answer], n_tasks: [4, 8], compute_flops: [3e8], replicates: 2}
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}
training: {batch_size: 8}
evaluation: {n_sequences: 4, first_flops: 1e8, points_per_decade: 2}
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home, its name hostile too, with two studies: one trunk of four is real, another has failed with hostile words."""
    from trainers.train import run_trunk  # here: the processes that import this file need no torch

    home = tmp_path_factory.mktemp("home") / "[/b] [x] $a_b$ \x1b[7m"
    for version in (1, 2):
        study = Study.from_record(SMALL | {"version": version})
        log = Journal(home / study.id)
        log.append([session_event(study, {})])
        done, failed = study.trunks()[:2]
        run_trunk(done, study.budgets, Place(), log.append)
        end = {"trunk": failed.id, "trial": failed.trial(3e8).id, "status": "failed", "reason": HOSTILE, "time": 1.0}
        log.append([{"kind": "trial", "key": f"{failed.id}/end"} | end])
        log.close()
    return home


@pytest.fixture
def home(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    return Path(shutil.copytree(recorded, tmp_path / recorded.name))


def surroundings(home: Path | str, **changes: str) -> dict[str, str]:
    left_out = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "EMERGENCE_STORAGE", "MPLBACKEND", "MATPLOTLIBRC")
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return kept | {"EMERGENCE_HOME": str(home), "COLUMNS": "250", "PYTHONPATH": path} | changes


def emergence(*words: str, home: Path | str, cwd: Path | str = "/", **changes: str) -> Any:
    """The command line in a process of its own; standard output and error as bytes, undecoded."""
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    told = surroundings(home, **changes)
    return subprocess.run(command, env=told, capture_output=True, timeout=PATIENCE_SECONDS, cwd=cwd)


class Ended(NamedTuple):
    """What became of a command in one process with others."""

    code: int
    text: str
    """All that it printed, and the message of a refusal."""


def invoke(home: Path | str, *words: str) -> Ended:
    """A command in this very process."""
    done = CliRunner().invoke(cli.app, list(words), env={"EMERGENCE_HOME": str(home), "COLUMNS": "250"})
    refused = isinstance(done.exception, (checks.UsageProblem, cli.StudyError))
    if done.exception and not refused and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ended(2, f"{done.output}{done.exception}") if refused else Ended(done.exit_code, done.output)


SEVERAL = """
import json, os, sys
sys.path.insert(0, os.environ["TESTS"])
import test_terminal_and_home as tests
for command in sys.argv[1:]:
    if command.startswith("!"):
        os.system(command[1:])
    else:
        print(json.dumps(tests.invoke(os.environ["EMERGENCE_HOME"], *command.split())))
"""


def several(home: Path, around: tuple[str, ...], *commands: str) -> list[Ended]:
    """Commands one after the other in one other process, started in surroundings; `!...` is one of the shell."""
    told = surroundings(home, TESTS=str(Path(__file__).parent))
    told["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")
    done = subprocess.run(
        [*around, sys.executable, "-c", SEVERAL, *commands],
        env=told,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]


def one_line(done: Ended, code: int, *said: str) -> None:
    """It ended with this code and with one line that says these things."""
    progress = ("Tables ...", "Report and figures ...", "MLflow runs ...")
    lines = [line for line in done.text.splitlines() if line.strip() and line not in progress]
    assert done.code == code and len(lines) == 1 and all(word in lines[0] for word in said), done


# Text -----------------------------------------------------------------------------------------------------------------


@given(st.text())
def test_what_is_shown_has_nothing_that_a_terminal_obeys_and_keeps_every_other_letter(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()  # no halves of letters
    assert printable(shown) == shown
    plain = re.sub("[^ -~]", "", text)
    assert printable(plain) == plain


def test_strings_are_plain_text_in_lines_tables_and_titles() -> None:
    """Fails without `Terminal.render_str`, and without markup=False there."""
    out = io.StringIO()
    console = Terminal(file=out, width=300, force_terminal=True, color_system=None)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    console.print(styled((HOSTILE, "dim"), HOSTILE))
    assert out.getvalue().count(SEEN) == 6 and "\x1b[31m" not in out.getvalue() and "\x9b" not in out.getvalue()
    tally("hostile texts on a terminal", 6, 6)


def test_every_command_shows_hostile_questions_reasons_and_homes_as_they_are(home: Path) -> None:
    """Fails where a command prints by rich's own console, or by `typer.echo`: a crash, a hole, or an escape sequence."""
    shown_home = printable(str(home))
    (home.parent / "small.yaml").write_text(FILE)
    for words, said in (
        (("status",), "small@2: 2 of 4 trials ended"),
        (("status", "small@1"), SEEN),
        (("plan", str(home.parent / "small.yaml")), "a [/INST] [see fig] [bold]x[/bold] :smile: </script> $x_1$"),
        (("status", "nothing"), shown_home),
        (("compare", "small@1", "small@2"), shown_home),
        (("clean", "small@1"), shown_home),
    ):
        code, text = invoke(home, *words)
        assert code == (2 if "nothing" in words else 0) and said in printable(text), text
        assert code == 2 or not re.search("[\x1b\x07\x9b\u202e]", text), text
        tally("hostile texts on a terminal", 1, 1)


def test_a_very_long_question_is_shortened_on_a_terminal(tmp_path: Path) -> None:
    """Fails without `shortened`: 9,600 letters go over the screen."""
    assert shortened("x" * 600) == "x" * 600
    (tmp_path / "long.yaml").write_text(re.sub("question: .*", f"question: {'why ' * 2_400}", FILE))
    done = invoke(tmp_path, "plan", str(tmp_path / "long.yaml"))
    assert done.code == 0 and len(done.text) < 5_000 and "characters more" in done.text


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_terminal_with_few_letters_is_given_the_nearest_ones(recorded: Path, settings: dict[str, str]) -> None:
    """Fails without `terminal.prepare`: the surface's `…` and `·` are no ASCII."""
    done = emergence("status", "small@1", home=recorded, **settings)
    text = done.stdout.decode("ascii" if "latin-1" not in settings.values() else "latin-1")
    assert done.returncode == 0 and b"Traceback" not in done.stderr and "..." in text and "none has ended yet" in text
    tally("terminals with few letters", 1, 1)


def test_a_report_is_the_same_whatever_matplotlib_and_the_locale_are_told(home: Path, tmp_path: Path) -> None:
    """Fails without `report.surroundings` (a backend that is not there), without `plates.drawing` (TeX), and where a file is read
    or written in the locale's encoding."""
    publisher.rewrite(home / "small@1")
    before = {path.name: path.read_bytes() for path in (home / "small@1").glob("**/*") if path.is_file()}
    (tmp_path / "matplotlibrc").write_text("text.usetex: true\nfont.size: 30\naxes.grid: true\nsavefig.bbox: tight\n")
    told = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    told |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = emergence("report", "small@1", home=home, cwd=tmp_path, **told)
    assert done.returncode == 0, done.stderr.decode()
    after = {path.name: path.read_bytes() for path in (home / "small@1").glob("**/*") if path.is_file()}
    assert len(before) > 10 and {name for name in before if before[name] != after[name]} <= {"published.json"}
    tally("settings that would change a report", 3, 3)


# Homes ----------------------------------------------------------------------------------------------------------------


def test_a_home_that_cannot_be_is_refused_in_one_line(recorded: Path, tmp_path: Path) -> None:
    """Fails without the handlers in `Commands.invoke`: tracebacks of pathlib."""
    (tmp_path / "file").write_text("")
    for words in (("status",), ("run", "quickstart"), ("report", "small@1")):
        one_line(invoke("~nobody_of_this_name/x", *words), 2, "EMERGENCE_HOME=~nobody_of_this_name/x", "HOME")
        one_line(invoke(tmp_path / "file", *words), 2, str(tmp_path / "file"), "set EMERGENCE_HOME")
    one_line(invoke(recorded, "status", "a" * 300), 2, "File name too long")
    done = emergence("status", home="~nobody_of_this_name/x")  # and all the way
    assert done.returncode == 2 and done.stderr.startswith(b"EMERGENCE_HOME=~nobody") and not done.stdout
    tally("homes in trouble", 8, 8)


def test_each_broken_study_is_a_line_of_the_list_and_hides_no_other(home: Path) -> None:
    """Fails without the `except` in `_read`: one study of a family that is not installed ends the list."""
    session = session_event(Study.from_record(SMALL), {})
    broken: dict[str, Any] = {
        "family@1": session | {"study": session["study"] | {"family": {"name": "not_here"}}},
        "session@1": {key: value for key, value in session.items() if key != "study"},
        "future@1": session | {"study": session["study"] | {"not_known_yet": 1}},
        "deep@1": '{"kind": "session", "key": "session/1", "study": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
        "noise@1": os.urandom(3000).hex() + "\n",
    }
    for name, made in broken.items():
        log = Journal(home / name)
        if isinstance(made, dict):
            log.append([made])
        log.close()
        if isinstance(made, str):
            (home / name / "journal.jsonl").write_text(made)
    (home / "link@1").mkdir()
    (home / "link@1" / "journal.jsonl").symlink_to("journal.jsonl")
    for foreign in ("copy of small@1", "small@1.bak", "x@0", "pipe@1", "folder@1/journal.jsonl"):
        (home / foreign).mkdir(parents=True)
    os.mkfifo(home / "pipe@1" / "journal.jsonl")
    shutil.copy(home / "small@1" / "journal.jsonl", home / "copy of small@1")
    (home / "file@1").write_text("")

    done = invoke(home, "status")
    lines = done.text.splitlines()
    assert done.code == 0
    named = ["deep@1", "family@1", "future@1", "link@1", "noise@1", "session@1", "small@1", "small@2"]
    assert [line.partition(":")[0] for line in lines] == named
    assert "not_here" in lines[1] and "not_known_yet" in lines[2] and "2 of 4 trials ended" in lines[-1]
    for name in ("family@1", "noise@1", "link@1", "pipe@1"):
        for words in (("report", name), ("compare", name, "small@1")):
            one_line(invoke(home, *words), 2, name)
    tally("broken studies in a home", len(broken) + 7, len(broken) + 7)


def dropping(*capabilities: str) -> tuple[str, ...]:
    """As a user whom file permissions bind: root without what lets it pass them."""
    if os.geteuid():
        return ()
    around = ("setpriv", "--inh-caps=-all", f"--bounding-set={','.join(f'-{name}' for name in capabilities)}")
    if shutil.which("setpriv") is None or subprocess.run([*around, "true"], capture_output=True).returncode:
        pytest.skip("permissions were not tried: root cannot give up its own here")
    return around


def test_what_may_not_be_read_written_or_removed_is_named_in_one_line(home: Path) -> None:
    """Fails without `except OSError` in `Commands.invoke`, and without the second look of `clean`."""
    around = dropping("dac_override", "dac_read_search", "fowner")
    (home / "small@1" / "checkpoints" / "1").mkdir(parents=True)
    (home / "small@1" / "checkpoints" / "1" / "model").write_text("x" * 100)
    (home / "small@1" / "checkpoints" / "1").chmod(0o500)
    (home / "small@2" / "journal.jsonl").chmod(0o000)
    commands = ["status", "status small@2", "clean small@1", f"!chmod 500 '{home}/small@1'", "report small@1"]
    listed, *others = several(home, around, *commands, f"!chmod 000 '{home}'", "status", f"!chmod 700 '{home}'")
    lines = listed.text.splitlines()
    assert listed.code == 0 and "small@1: 2 of 4" in lines[0]
    assert lines[1].startswith("small@2: ") and "Permission denied" in lines[1]
    one_line(others[0], 2, "small@2/journal.jsonl", "Permission denied")
    one_line(others[1], 2, "small@1/checkpoints: ")
    one_line(others[2], 2, "small@1", "Permission denied")
    one_line(others[3], 2, "Permission denied", "EMERGENCE_HOME")
    (home / "small@1").chmod(0o700)
    (home / "small@1" / "checkpoints" / "1").chmod(0o700)
    tally("homes in trouble", 5, 5)


# Disks ----------------------------------------------------------------------------------------------------------------


def mounting(home: Path, mount: str) -> tuple[str, ...]:
    """A mount namespace of its own, in which the home is mounted so. Skips where the machine has none."""
    around = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    told = {"env": os.environ | {"EMERGENCE_HOME": str(home)}, "capture_output": True}
    if shutil.which("unshare") is None or subprocess.run([*around, "true"], **told).returncode:
        pytest.skip("full and read-only disks were not tried: no user namespaces on this machine")
    return around


def test_a_full_disk_ends_a_command_in_one_line_and_with_room_it_works_again(recorded: Path, tmp_path: Path) -> None:
    """Fails without `except OSError` in `Commands.invoke`, and without the `unlink` of `files.aside`: torn files stay."""
    around = mounting(tmp_path, f"mount -t tmpfs -o size=4m none '{tmp_path}'")
    here, kept = shlex.quote(str(tmp_path)), shlex.quote(str(recorded.parent / "torn"))
    copied = f"!cp -r {shlex.quote(str(recorded))}/. {here}"
    full = f"!cat /dev/zero > {here}/filler 2>&-"
    nearly = f"!truncate -s -60000 {here}/filler"
    torn = f"!find {here} -name '.*' > {kept}; rm {here}/filler"
    commands = [copied, full, "report small@1", "compare small@1 small@2", nearly, "report small@1", torn]
    *failed, done = several(tmp_path, around, *commands, "report small@1")
    for one in failed:
        one_line(one, 1, "No space left on device", "free some space")
    assert len(failed) == 3 and done.code == 0 and "small@1/report.html" in done.text
    assert not (recorded.parent / "torn").read_text()
    tally("full disks", 3, 3)


def test_a_read_only_home_is_read_and_what_writes_says_so(home: Path) -> None:
    """Fails without `except OSError` in `Commands.invoke`."""
    here = shlex.quote(str(home))
    around = mounting(home, f"mount --bind {here} {here} && mount -o remount,ro,bind {here}")
    read, *written = several(home, around, "status small@1", "run quickstart", "report small@1", "clean small@1")
    assert read.code == 0
    for done, code in zip(written, (2, 1, 1), strict=True):
        one_line(done, code, "Read-only file system", "EMERGENCE_HOME")
    tally("homes in trouble", 4, 4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full standard output was not tried: no /dev/full")
def test_a_standard_output_that_is_full_ends_a_command_in_one_line(recorded: Path) -> None:
    """Fails without `_let_go_of_full_output`: Python flushes at its end, and says more."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "status"],
            env=surroundings(recorded, PYTHONUNBUFFERED=""),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
        )
    one_line(Ended(done.returncode, done.stderr.decode()), 1, "No space left on device", "free some space")
    tally("full disks", 1, 1)


# Strangers ------------------------------------------------------------------------------------------------------------


def test_a_study_is_named_by_its_id_and_by_nothing_else() -> None:
    assert all(map(is_id, ("a@1", "quickstart@12", "a_1@1")))
    wrong = (
        "../../x@1",
        "x@1/..",
        "x@0",
        "x@",
        "@1",
        "x@1\n",
        "X@1",
        "x@-1",
        "x@1.bak",
        "~@1",
        "x@" + "1" * 200,
        "/x@1",
    )
    assert not any(map(is_id, wrong))


@pytest.mark.parametrize("command", ["status", "stop", "report", "publish", "clean", "compare"])
def test_no_command_takes_a_name_that_leads_out_of_the_home(command: str, home: Path, tmp_path: Path) -> None:
    """Fails without `is_id` in `_recorded`: the checkpoints of a stranger's folder are deleted."""
    outside = shutil.copytree(home / "small@1", tmp_path / "x@1")
    (Path(outside) / "checkpoints").mkdir()
    (Path(outside) / "checkpoints" / "kept").write_text("mine")
    names = ("../x@1", "../../x@1", f"{tmp_path}/x@1", "x@0")
    for name in names:
        words = [command, name, *(["small@1"] if command == "compare" else [])]
        done = CliRunner().invoke(cli.app, words, env={"EMERGENCE_HOME": str(home)})
        assert isinstance(done.exception, (checks.UsageProblem, cli.StudyError)) and "x@" in str(done.exception)
    assert (Path(outside) / "checkpoints" / "kept").read_text() == "mine"
    tally("names that lead out of the home", len(names), len(names))


@pytest.mark.parametrize("linked", ["study", "checkpoints"])
def test_clean_deletes_nothing_that_a_link_leads_to_outside_the_home(linked: str, home: Path, tmp_path: Path) -> None:
    """Fails without `_within`: checkpoints outside the home are deleted, or are said to be."""
    outside = tmp_path / "outside"
    if linked == "study":
        shutil.move(home / "small@1", outside)
        (home / "small@1").symlink_to(outside)
        kept = outside / "checkpoints" / "1" / "kept"
    else:
        (home / "small@1" / "checkpoints").symlink_to(outside)
        kept = outside / "1" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert CliRunner().invoke(cli.app, ["status", "small@1"], env={"EMERGENCE_HOME": str(home)}).exit_code == 0
    for storage in ([], ["--storage", str(home)], ["--storage", home.as_uri()]):
        done = CliRunner().invoke(cli.app, ["clean", "small@1", *storage], env={"EMERGENCE_HOME": str(home)})
        assert isinstance(done.exception, checks.UsageProblem) and str(outside) in str(done.exception)
    assert kept.read_text() == "mine"
    tally("names that lead out of the home", 3, 3)
