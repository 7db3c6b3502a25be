"""Two thousand studies broken in every way: each is a study, or is refused in lines of file, line and reason. No other end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import PATIENCE_SECONDS, tally

from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError

sys.path.insert(0, str(Path(__file__).parent))
import mutations

HANG_SECONDS = 20
"""Of a core, so that a busy machine is no hang. Nothing depends on it but that one is found: the slowest takes half a second."""


class Hang(BaseException):
    """No Exception, which the code under test might take for one of a library's."""


def _ring(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises Hang in what takes longer than HANG_SECONDS."""
    before = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(folder: Path, mutant: mutations.Mutant) -> str:
    """`accepted`, `refused`, or what went wrong."""
    try:
        with watched():
            study = mutations.accepted(folder, mutant.data)
            if study is not None:
                mutations.planned(study)
        return "refused" if study is None else "accepted"
    except (Exception, Hang) as problem:
        return f"{mutant.how[:80]}: {type(problem).__name__}: {str(problem)[:300]}"


def tried(folder: Path, numbers: range, seed: int = 0) -> tuple[Counter[str], list[str], tuple[float, str]]:
    """How many mutants of each kind had which end, what went wrong, and the slowest: seconds of a core and what it was."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = (0.0, "")
    for number in numbers:
        mutant = mutations.mutant(number, seed)
        start = time.process_time()
        end = outcome(folder, mutant)
        slowest = max(slowest, (time.process_time() - start, f"{number}: {mutant.how[:60]}, {end}"))
        ends[f"{mutant.kind} {end if end in ('accepted', 'refused') else 'wrong'}"] += 1
        if end not in ("accepted", "refused"):
            wrong.append(f"mutant({number}, {seed}): {end}")
    return ends, wrong, slowest


def test_no_mutated_study_ends_in_anything_but_a_study_or_a_refusal(tmp_path: Path, monkeypatch: Any) -> None:
    """Fails without `trainers.records.Limit` (overflows), without the check for values given twice in `refusals.problems_of` (a division by
    zero beside a drift), without `yaml_file._check` (alias bombs, 9,000 values) and without `yaml_file._FORBIDDEN` (NUL)."""
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    ends, wrong, slowest = tried(tmp_path, range(2000))
    for kind in ("text", "value", "pair"):
        n_good = ends[f"{kind} accepted"] + ends[f"{kind} refused"]
        tally(f"mutated studies ({kind})", n_good + ends[f"{kind} wrong"], n_good)
        assert ends[f"{kind} accepted"] > 5 and ends[f"{kind} refused"] > 100
    print(f"{dict(sorted(ends.items()))}; the slowest took {slowest[0]:.2f} s of a core: {slowest[1]}")
    assert not wrong, "\n".join(wrong[:20])


GOOD = mutations.SMALL[0]
BOMB = (
    mutations.SMALL[-1]
    + "skills:\n  - &a [x]\n"
    + "".join(
        f"  - &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
)
WORST = {
    "an impossible date": (GOOD.replace("version: 1", "version: 2001-99-99"), 2, "a whole number is needed"),
    "a tag of Python's": (GOOD.replace("plain: {}", "plain: !!python/object:os.system {}"), 9, "is not allowed in a study"),
    "a tag that does not fit": (GOOD.replace("version: 1", "version: !!int one"), 2, "'one' is no int"),
    "5,000 digits": (GOOD.replace("replicates: 2", "replicates: " + "9" * 5000), 15, "a whole number of 5,000 digits"),
    "5,000 digits to base 16": (GOOD.replace("d_model: 16,", f"d_model: 0x{'f' * 5000},"), 16, "a whole number of 5,002 digits"),
    "a width of 1e300": (GOOD.replace("d_model: 16,", "d_model: 1e300,"), 16, "model.d_model: at most 100,000 is allowed; given 1e300"),
    "a width of 1e300 in a variant": (GOOD.replace("d_mlp: 64}", "d_mlp: 1e300}"), 10, "axes.variant.wide.model.d_mlp: at most 1e6"),
    "a depth of 1e300": (GOOD.replace("depth: 1}", "depth: 1e300}"), 11, "axes.variant.deep.model.depth: at most 1,000"),
    "a budget of 1e300": (GOOD.replace("4e9, 8e9, 1.6e10]", "4e9, 8e9, 1e300]"), 14, "axes.compute_flops[2]: at most 1e30 is allowed"),
    "a budget of nothing beside a rule": (mutations.SMALL[2].replace("[1e12, 4e12", "[5e-324, 4e12"), 8, "axes.compute_flops[0]: at least 1 is needed"),
    "a budget twice beside a drift": (mutations.SMALL[2].replace("[1e12, 4e12", "[1e12, 1e12, 4e12"), 8, "1e12 is given twice"),
    "a number of tasks twice beside a drift": (mutations.SMALL[2].replace("[2, 8", "[2, 2, 8"), 7, "2 is given twice"),
    "an alias bomb": (BOMB, 9, "more than 5,000 values"),
    "batches of 1e9": (GOOD.replace("batch_size: 8", "batch_size: 1e9"), 17, "training.batch_size: at most 1e6 is allowed; given 1e9"),
    "a learning rate of 1e3": (GOOD.replace("learning_rate: 3e-3", "learning_rate: 1e3"), 17, "training.learning_rate: at most 10 is allowed"),
    "a learning rate of 1e3 for an arm": (GOOD.replace("learning_rate: 1e-3", "learning_rate: 1e3"), 12, "axes.training_of_arm.next_token.learning_rate"),
    "a weight decay of 1e300": (GOOD.replace("weight_decay: 0.1", "weight_decay: 1e300"), 17, "training.weight_decay: at most 1,000"),
    "an empty question": (GOOD.replace("question: Is it well formed?", "question: ' '"), 3, "question: a question in words is needed"),
    "a NUL": (GOOD.replace("Is it", "Is\0it"), 3, "character U+0000"),
    "a NUL by escape": (GOOD.replace("question: Is it well formed?", 'question: "Is\\0it?"'), 3, "character U+0000"),
    "an escape sequence": (GOOD.replace("source: a guess", 'source: "a\\e[31mguess"'), 22, "character U+001B"),
    "10,000 budgets": (GOOD.replace("[4e9, 8e9, 1.6e10]", "[" + ", ".join(f"{i}e9" for i in range(1, 10_000)) + "]"), 1, "longer than 64,000 bytes"),
    "1,500 budgets": (GOOD.replace("[4e9, 8e9, 1.6e10]", "[" + ", ".join(f"{i}e9" for i in range(1, 1500)) + "]"), 14, "axes.compute_flops: at most 100 values are allowed; given 1,499"),
    "5,000 levels": (GOOD + "place: " + "[" * 5000, 23, "nested more than 20 levels deep"),
    "1e12 slots": (mutations.SMALL[1].replace("n_slots: 2", "n_slots: 1e12"), 6, "family.n_slots: a number of at most 62 is needed"),
    "1e9 domains": (mutations.SMALL[1].replace("n_domains: 2", "n_domains: 1e9"), 6, "family.n_domains: at most 100"),
    "a file that is no UTF-8": (GOOD.encode("utf-16"), 1, "byte 0xff is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORST)
def test_each_of_the_worst_is_refused_in_one_line_that_says_where_and_what(kind: str, tmp_path: Path) -> None:
    """Each fails with its limit or check removed; most then end in a traceback or take for ever."""
    text, line, says = WORST[kind]
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError) as refusal, watched():
        load(str(path))
    said = str(refusal.value)
    assert said.startswith(f"{path}:{line}: ") and says in said and len(said.splitlines()) == 1, said
    tally("worst studies", 1, 1)


BY_COMMAND = ("an impossible date", "a tag of Python's", "5,000 digits to base 16", "a width of 1e300", "a budget of 1e300", "a budget twice beside a drift", "an alias bomb", "batches of 1e9", "a learning rate of 1e3", "an empty question", "a NUL", "5,000 levels", "1e12 slots")  # fmt: skip


@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_command_line_refuses_the_worst_with_exit_code_two_and_starts_nothing(command: str, tmp_path: Path) -> None:
    """In one process for each, several at once; as `emergence` is called. Fails as the test above does."""
    home = tmp_path / "home"
    environment = os.environ | {"EMERGENCE_HOME": str(home)}
    for some in (BY_COMMAND[i : i + 4] for i in range(0, len(BY_COMMAND), 4)):
        started = []
        for kind in some:
            path = tmp_path / f"{kind.replace(' ', '_')}.yaml"
            text = WORST[kind][0]
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            words = [sys.executable, "-m", "orchestrator.cli", command, str(path)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
            started.append((kind, path, subprocess.Popen(words, env=environment, text=True, **pipes)))
        for kind, path, process in started:
            out, told = process.communicate(timeout=PATIENCE_SECONDS)
            assert (process.returncode, out) == (2, ""), (kind, out, told)
            assert told.startswith(f"{path}:{WORST[kind][1]}: ") and told.count("\n") == 1, (kind, told)
            assert WORST[kind][2] in told, (kind, told)
    assert not home.exists()
    tally("worst studies, by command", len(BY_COMMAND), len(BY_COMMAND))


def test_a_date_is_the_text_that_it_is(tmp_path: Path) -> None:
    """Nothing constructs dates, so that none can be impossible. Fails with `timestamp` out of the kinds of `yaml_file._scalar`."""
    path = tmp_path / "x.yaml"
    path.write_text(GOOD.replace("question: Is it well formed?", "question: 2001-99-99"))
    assert load(str(path)).question == "2001-99-99"


def test_a_study_recorded_before_a_limit_came_still_opens(tmp_path: Path) -> None:
    """Homes go on. Fails with a limit that the records themselves hold, such as `Field(le=10)` for `Limit(10)`."""
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    record = load(str(path)).model_dump(mode="json")
    record["training"] |= {"learning_rate": 1e5, "weight_decay": 1e300, "batch_size": 10**8, "clip_norm": 1e200}
    record["model"] |= {"n_layers": 5000, "d_model": 2**20, "d_mlp": 10**7}
    record["axes"]["training_of_arm"] = {"answer": {"learning_rate": 1e4}}
    record["family"] |= {"n_pairs": 50_000}
    record |= {"question": "", "expectation": "\0" * 20_000, "version": 10**17}
    old = Study.from_record(record)
    assert old.training.learning_rate == 1e5 and Study.from_record(old.model_dump(mode="json")) == old
    assert len(old.trials()) == len({trial.id for trial in old.trials()}) > 0
