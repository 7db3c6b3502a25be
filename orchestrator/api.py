"""Studies from Python: what `from orchestrator import open_study, run_study` offers.

    study = open_study("quickstart")      # a file, a study that ships, or NAME@VERSION of one that ran
    study.plan(); study.run(slots=2)      # as the commands
    study.answer, study.results, study.runs, study.findings, study.figures["surface"]

Runs are child processes: `emergence run` with the same options. Everything else is read from the journal. pandas is loaded by
the frames alone, torch by `plan(calibrate=True)`, and Ray by the plan of a cluster. A study file that changed is read again by `run`
and by `open_study`, not by an open study. docs/python.md describes every column.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from orchestrator.console import checks
from orchestrator.console.checks import UsageProblem
from orchestrator.plan import jobs, price
from orchestrator.record import journal, recorded
from orchestrator.record.lease import StudyHeldError
from orchestrator.record.recorded import Recorded
from orchestrator.study import reader
from orchestrator.study import schema as studies
from orchestrator.study.schema import Study, StudyError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from orchestrator.analysis.findings import Findings
    from orchestrator.analysis.results import Results
    from orchestrator.report.notebook import Picture

P = ParamSpec("P")
T = TypeVar("T")


class StudyFailed(Exception):
    """A study that cannot be read or run, in the words of the command line; a notebook shows these alone."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """That of the command: 2 for input that can be corrected, 1 for a run that failed."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def _plainly(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with StudyFailed for every error that the command line would print."""

    @wraps(function)
    def plain(*args: P.args, **options: P.kwargs) -> T:
        try:
            return function(*args, **options)
        except (StudyError, StudyHeldError, UsageProblem) as problem:
            raise StudyFailed(str(problem)) from None
        except OSError as problem:
            raise StudyFailed(checks.trouble_words(problem), 1) from None

    return plain


@contextlib.contextmanager
def _home(home: str | os.PathLike[str] | None) -> Iterator[None]:
    """Within it, `home` is the folder of results; None: as set in the environment."""
    before = os.environ.get("EMERGENCE_HOME")
    try:
        if home is not None:
            os.environ["EMERGENCE_HOME"] = str(Path(home).expanduser().absolute())
        yield
    finally:
        if home is not None:
            os.environ.pop("EMERGENCE_HOME")
            os.environ |= {"EMERGENCE_HOME": before} if before is not None else {}


@_plainly
def open_study(study: str | os.PathLike[str], home: str | os.PathLike[str] | None = None) -> OpenStudy:
    """Open a study, whether it has run or not.

    study: a file, the name of a study that ships, or NAME@VERSION of one that ran. home: the folder of results; default:
    $EMERGENCE_HOME, else ./runs. Raises StudyFailed with every problem of a file, or the nearest name.
    """
    with _home(home):
        return OpenStudy(os.fspath(study))


@_plainly
def run_study(study: str | os.PathLike[str], home: str | os.PathLike[str] | None = None, **options: Any) -> OpenStudy:
    """Run a study, or resume it, and return it. Blocks until the command ends, and prints its lines.

    study, home: as for `open_study`. options: those of `emergence run`, as in `slots=2, device="cuda", keep_weights=True`.
    Raises StudyFailed, with exit_code 2 for bad input and 1 for a run that failed. KeyboardInterrupt (a notebook's stop button)
    stops the run cleanly, waits for it, and is raised again; a further call resumes. If `emergence stop` ends the run, the
    study is returned with open trials.
    """
    opened = open_study(study, home)
    # `-P` and PYTHONPATH: run this code, not a copy in the current folder.
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "run", opened.source, *_words("run", options)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    surroundings = os.environ | {"PYTHONPATH": path, "EMERGENCE_HOME": str(opened.folder.parent)}
    surroundings |= {"TTY_COMPATIBLE": "0"}
    surroundings.pop("FORCE_COLOR", None)  # a notebook's kernel sets it, and a pipe would be taken for a terminal
    code, last = _followed(command, surroundings)
    if code in (1, 2):
        raise StudyFailed(last, code)
    if code not in (0, 130):
        raise StudyFailed(f"{opened.id}: the command ended with exit code {code}; everything recorded is kept", code)
    return opened


def _followed(command: list[str], surroundings: dict[str, str]) -> tuple[int, str]:
    """Run a command and print its lines as they come. Returns its exit code and its last message.

    Lines of standard error are held back until a further line of standard output: at the end they are the message of a refusal.
    An interrupt is handed on, and raised again after the end.
    """
    lines: queue.SimpleQueue[tuple[IO[str], str]] = queue.SimpleQueue()
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    child = subprocess.Popen(
        command, env=surroundings, stdin=null, stdout=pipe, stderr=pipe, text=True, errors="replace"
    )
    assert child.stdout is not None and child.stderr is not None

    def read(stream: IO[str]) -> None:
        with stream:
            for line in stream:
                lines.put((stream, line))
        lines.put((stream, ""))

    for stream in (child.stdout, child.stderr):
        threading.Thread(target=read, args=(stream,), daemon=True).start()
    is_open, held, last, interrupted = 2, list[str](), "", False
    while is_open:
        try:
            stream, line = lines.get()
            if not line:
                is_open -= 1
            elif stream is child.stderr:
                held.append(line)
            else:
                print("".join(held), file=sys.stderr, end="", flush=True)
                print(line, end="", flush=True)
                held, last = [], line.strip() or last
        except KeyboardInterrupt:
            interrupted = True
            child.send_signal(signal.SIGINT)
    code = child.wait()
    message = "".join(held).strip()
    if interrupted or code in (0, 130):
        print(message, file=sys.stderr, end="\n" if message else "", flush=True)
    if interrupted:
        stopped = KeyboardInterrupt("the run has stopped; everything so far is kept, and a further run resumes it")
        stopped._render_traceback_ = lambda: [f"KeyboardInterrupt: {stopped}"]  # type: ignore[attr-defined]  # for a notebook
        raise stopped
    return code, message or last


def _words(command: str, options: dict[str, Any]) -> list[str]:
    """Options of a command as words of its line. Raises UsageProblem for an unknown option or value."""
    words = []
    known = {p.name: p for p in _parameters(command) if p.param_type_name == "option"}
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise UsageProblem(f"{command}: no option '{name}'{hint} Options are {', '.join(known)}")
        if getattr(known[name], "is_flag", False):
            if not isinstance(value, bool):
                raise UsageProblem(f"{command}: {name}={value!r}: True or False is needed")
            words += known[name].opts[:1] if value else known[name].secondary_opts[:1]
        elif value is not None:
            words.append(f"{known[name].opts[0]}={value}")
    _parsed(command, words)
    return words


def _parsed(command: str, words: list[str]) -> dict[str, Any]:
    """The values of all parameters of a command, as it will read them. Raises UsageProblem for a bad value."""
    import typer

    try:
        return _command(command).make_context(command, ["a_study", *words]).params
    except typer.BadParameter as problem:
        name = problem.param.name if problem.param else "option"
        raise UsageProblem(f"{command}: {name}: {problem.message.removeprefix('Value error, ')}") from None


def _command(name: str) -> Any:
    from typer.main import get_command

    from orchestrator import cli  # imported here: it is loaded for its options alone

    group: Any = get_command(cli.app)
    return group.commands[name]


def _parameters(command: str) -> list[Any]:
    return list(_command(command).params)


@dataclass(frozen=True)
class _Snapshot:
    """A study's record at one moment. Each table is computed at its first use."""

    study: Study
    state: Recorded

    @cached_property
    def tables(self) -> tuple[pa.Table, pa.Table]:
        """`results` and `runs`, as in the Parquet files."""
        from orchestrator.record import tables

        return tables.results_table(self.state, self.study), tables.runs_table(self.state, self.study)

    @cached_property
    def arrays(self) -> Results:
        """Both tables as arrays."""
        from orchestrator.analysis.results import Results

        of_text = self.of_text if cast(Any, self.study.family).ability_of == "right" else ()
        sampled = self.sampled if "reward" in self.study.axes.arm else ()
        return Results.of_tables(self.study, *self.tables, *of_text, sampled=sampled)

    @cached_property
    def found(self) -> Findings:
        """All findings; they take seconds in a large study."""
        from orchestrator.analysis.findings import judge

        return judge(self.arrays)

    @cached_property
    def results(self) -> pa.Table:
        """The table `results`, with condition and means."""
        import pyarrow as pa

        from orchestrator.analysis.measures import MEASURES

        table, arrays = self.tables[0], self.arrays
        columns: dict[str, Any] = {"condition": pa.array(arrays.conditions, pa.string())}
        columns |= {name: table[name] for name in (*PLACE, *EVALUATION)}
        columns |= {name: pa.array(arrays.measured(name), pa.float64(), from_pandas=True) for name in MEASURES}
        return pa.table(columns | {name: table[name] for name in table.column_names if name not in columns})

    @cached_property
    def runs(self) -> pa.Table:
        """The table `runs`, with condition and the headline measures."""
        import pyarrow as pa

        from orchestrator.analysis.measures import headline
        from orchestrator.analysis.results import surface

        arrays, table = self.arrays, self.tables[1]
        rows = arrays.runs
        columns: dict[str, Any] = {"condition": pa.array([run["arm"] for run in rows], pa.string())}
        columns |= {name: table[name] for name in (*PLACE, "status")}
        for measure in headline(cast(Any, self.study.family).ability_of):
            cubes = {condition: surface(arrays, measure, condition) for condition in self.study.conditions}
            values = [cubes[run["arm"]][arrays.place_of(run)] for run in rows]
            columns[measure] = pa.array(values, pa.float64(), from_pandas=True)
        return pa.table(columns | {name: table[name] for name in table.column_names if name not in columns})

    @cached_property
    def of_text(self) -> tuple[pa.Table, pa.Table]:
        """`tasks` and `examples`; without rows if the family is none of text."""
        from orchestrator.record import tables

        return tables.tasks_table(self.state, self.study), tables.examples_table(self.state, self.study)

    @cached_property
    def sampled(self) -> tuple[pa.Table, pa.Table]:
        """`samples` and `transcripts`; without rows if the study has no arm `reward`."""
        from orchestrator.record import tables

        return tables.samples_table(self.state, self.study), tables.transcripts_table(self.state, self.study)

    @cached_property
    def telemetry(self) -> pa.Table:
        """The points of telemetry."""
        from orchestrator.record import tables

        return tables.telemetry_table(self.state, self.study)


PLACE = ("n_tasks", "compute_flops", "replicate")
EVALUATION = ("phase", "skill", "split", "step", "flops")


class OpenStudy:
    """A study with its plan and its record.

    Every attribute is read from the journal anew if that has grown, so a notebook beside a running study is up to date without
    any call. Frames are copies: changing one changes nothing else. Every attribute raises StudyFailed if the record cannot be
    read.
    """

    def __init__(self, name: str) -> None:
        """As `open_study`, in the home that the environment sets. Raises UsageProblem, StudyError and OSError."""
        ran = {folder.name.partition("@")[0] for folder in checks.study_folders()}
        is_given = Path(name).exists() or name in reader.shipped()
        if not is_given and (studies.is_id(name) or name in ran):
            self.folder, self.definition, _ = checks.recorded_study(name)
        else:
            self.definition = reader.load(name)
            self.folder = journal.study_folder(self.definition.id)
        self.source = checks.source_of(name, self.folder)
        """The study file that `run` runs."""
        self.id = self.definition.id
        """NAME@VERSION."""
        self._snapshot: tuple[tuple[int, int] | None, _Snapshot] | None = None

    def _now(self) -> _Snapshot:
        """The record as it is now."""
        size = None
        with contextlib.suppress(FileNotFoundError):
            stat = (self.folder / journal.FILE).stat()
            size = stat.st_size, stat.st_mtime_ns
        if self._snapshot is None or self._snapshot[0] != size:
            study, state = checks.read_record(self.folder) if size is not None else (None, Recorded())
            self._snapshot = size, _Snapshot(study or self.definition, state)
        return self._snapshot[1]

    @_plainly
    def plan(self, **options: Any) -> pd.Series[Any]:
        """Numbers of the trials that are still to run: FLOPs, tokens, and seconds if the speed is known.

        options: those of `emergence plan`, as in `slots=2, calibrate=True`. Raises StudyFailed.
        """
        import pandas as pd

        given = _parsed("plan", _words("plan", options))
        everything = journal.State.of(self.folder)
        jobs.check_against_record(self.definition, everything, self.source)
        state = recorded.of_study(everything, self.definition)
        placed = checks.options_of(**{name: given[name] for name in inspect.signature(checks.options_of).parameters})
        placed = checks.with_caps(placed, self.definition, given["max_hours"], given["max_flops"])
        checks.check_room(self.definition, placed, absent_is_fine=not given["address"])
        slots, _ = checks.slots_for(placed)
        speed = price.calibrate(self.definition, placed.device) if given["calibrate"] else None
        made = price.make(self.definition, state, slots, placed.device, speed, self.folder, placed)
        numbers = {k: v for k, v in made._asdict().items() if v is None or isinstance(v, int | float | str)}
        numbers |= {"n_trunks": len(made.jobs), "max_hours": placed.max_hours, "max_flops": placed.max_flops}
        return pd.Series(numbers, dtype=object, name=self.id)

    def run(self, **options: Any) -> OpenStudy:
        """Run the study, or resume it; returns it. As `run_study`."""
        run_study(self.source, self.folder.parent, **options)
        return self

    @property
    @_plainly
    def results_arrow(self) -> pa.Table:
        """A row for each evaluation of a skill on a split: place, means, counts and sums. The means are those of the page."""
        return self._now().results

    @property
    def results(self) -> pd.DataFrame:
        """`results_arrow` as a pandas frame."""
        return self.results_arrow.to_pandas()

    @property
    @_plainly
    def runs_arrow(self) -> pa.Table:
        """A row for each trial, ended or not: place, status, ability, accuracy (of text: right), memory, cost, time and machine."""
        return self._now().runs

    @property
    def runs(self) -> pd.DataFrame:
        """`runs_arrow` as a pandas frame."""
        return self.runs_arrow.to_pandas()

    @property
    @_plainly
    def telemetry_arrow(self) -> pa.Table:
        """A row for each point along a training run: loss, learning rate, gradient norm, speed, and load of the workers."""
        return self._now().telemetry

    @property
    def telemetry(self) -> pd.DataFrame:
        """`telemetry_arrow` as a pandas frame."""
        return self.telemetry_arrow.to_pandas()

    @property
    @_plainly
    def tasks(self) -> pd.DataFrame:
        """A row for each task of an item set at the end of a trial, of families of text: the columns of tasks.parquet."""
        return self._now().of_text[0].to_pandas()

    @property
    @_plainly
    def examples(self) -> pd.DataFrame:
        """Items with the free answers of each trial, of families of text: the columns of examples.parquet."""
        return self._now().of_text[1].to_pandas()

    @property
    @_plainly
    def samples(self) -> pd.DataFrame:
        """A row for each evaluation of a trial of arm `reward`: the columns of samples.parquet, and their means."""
        from orchestrator.analysis.samples import means

        frame = self._now().sampled[0].to_pandas()
        return frame.assign(**means(frame))

    @property
    @_plainly
    def transcripts(self) -> pd.DataFrame:
        """Answers that trials of arm `reward` sampled for training: the columns of transcripts.parquet."""
        return self._now().sampled[1].to_pandas()

    @property
    @_plainly
    def findings(self) -> pd.DataFrame:
        """A row for each finding, the primary claim first: the columns of summary.csv."""
        import pandas as pd

        from orchestrator.analysis import summary

        frame = pd.DataFrame(summary.rows(self._now().found), columns=summary.COLUMNS)
        return frame.astype(dict.fromkeys(summary.NUMBERS, float))  # else a column without any value has no type

    @property
    @_plainly
    def answer(self) -> str:
        """The answer in one sentence. It begins with "So far" while trials are open."""
        from orchestrator.analysis import answer

        return answer.sentence(self._now().found)

    @property
    @_plainly
    def primary(self) -> pd.Series[Any] | None:
        """The primary claim, as the first row of `findings`: verdict, low, high, n, words; None if the study declares none."""
        return self.findings.iloc[0] if self._now().found.primary is not None else None

    @property
    @_plainly
    def figures(self) -> dict[str, Picture]:
        """The figures of the page by name. A notebook shows each; `save` writes it to a file."""
        from orchestrator.report import notebook

        return notebook.pictures(self._now().found)

    @_plainly
    def surface(self, measure: str = "ability", skill: str = "") -> pd.DataFrame:
        """A measure by number of tasks (rows) and budget (columns), the mean over the replicates; NaN is missing.

        measure: a column of `results`. It is read as on the page: memory on the training tasks before the decay, any other on
        held-out tasks at the end. skill: default, the headline skill. With several conditions, columns are (condition, budget).
        """
        import pandas as pd

        from orchestrator.analysis.measures import MEASURES, over_replicates
        from orchestrator.analysis.results import surface

        results = self._now().arrays
        skills = self.definition.family.skills  # type: ignore[attr-defined]
        for what, value, known in (("measure", measure, MEASURES), ("skill", skill, {"": "", **skills})):
            if value not in known:
                near = difflib.get_close_matches(value, known, 1)
                hint = f"; did you mean '{near[0]}'?" if near else "."
                raise UsageProblem(f"no {what} '{value}'{hint} There are {', '.join(filter(None, known))}")
        parts = {}
        for condition in results.study.conditions:
            values = over_replicates(surface(results, measure, condition, skill))
            index = pd.Index(results.levels, name="n_tasks")
            parts[condition] = pd.DataFrame(values, index, pd.Index(results.budgets, name="compute_flops"), dtype=float)
        return pd.concat(parts, axis=1, names=["condition"]) if len(parts) > 1 else next(iter(parts.values()))

    def _repr_html_(self) -> str:
        from orchestrator.report import notebook

        return notebook.answer_html(self._now().found)

    def __repr__(self) -> str:
        return f"<study {self.id}>"
