"""The results of a study as arrays: a measure in every cell, and along every training run.

They come from two tables that `record/tables.py` writes: `results` has a row for each evaluation, `runs` one for each trial.
Columns are kept, not rows: a study of 10,000 trials has more than a million evaluations. A missing or undefined value is
NaN in arrays and None in lists. Column and row key `arm` holds the name of the condition. No figures, no MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np

from orchestrator.analysis.measures import NUMBER_COLUMNS, WORD_COLUMNS, Columns, Row, compared_on, measure_of
from orchestrator.study.schema import Study
from trainers.tasks import Family

Axis = Literal["n_tasks", "compute_flops"]
"""An axis along which a cut runs."""


def split_of(results: Results, skill: str) -> str:
    """The split on which a skill is compared, the first of `compared_on`; `held_out` if the skill was not measured on one."""
    splits = {split for _, name, split in results.groups() if name == skill}
    possible = compared_on(cast(Family, results.study.family).ability_of)
    return next((split for split in possible if split in splits), "held_out")


Phase = Literal["pre_decay", "final"]
"""The evaluation of a trial that is read: at its branch point, before the learning rate decays, or at its end."""


def scope_of(results: Results, measure: str, skill: str = "") -> tuple[str, str, Phase]:
    """(skill, split, phase) at which a measure is read: memory on the training tasks before the decay, any other after it.

    skill: "" for the headline skill. Memory has no skill.
    """
    if measure == "memory":
        return cast(Family, results.study.family).mixture, "seen", "pre_decay"
    skill = skill or results.study.shown_skills[0]
    return skill, split_of(results, skill), "final"


def surface(results: Results, measure: str, condition: str, skill: str = "") -> np.ndarray:
    """A measure in every cell, read at `scope_of`; (n_tasks, budgets, replicates), NaN missing."""
    return results.cube(measure, condition, *scope_of(results, measure, skill))


T = TypeVar("T")


class Track(NamedTuple):
    """A measure at the evaluations of one replicate at one number of tasks. All arrays are (evaluations,).

    Evaluations are in order of (budget, step). Each budget has those of the trunk up to its branch, then those of its branch.
    """

    steps: np.ndarray
    """Optimizer steps."""
    flops: np.ndarray
    """Training FLOPs spent at the evaluation."""
    values: np.ndarray
    """The measure; NaN is missing or undefined."""
    budgets: np.ndarray
    """Budget of the trial that the evaluation belongs to, in FLOPs."""
    phases: np.ndarray
    """`trunk`, `pre_decay` or `final`."""


class Coded(NamedTuple):
    """A column of repeated strings (dictionary-encoded): row i holds `names[codes[i]]`. It saves memory and makes grouping fast."""

    codes: np.ndarray  # (rows,) int
    names: np.ndarray  # (distinct strings,) object


class Results:
    """The tables `results` and `runs` of a study, with a measure of any cell or training run as an array.

    Missing values raise nothing. Evaluations outside the study's axes are left out.
    """

    def __init__(
        self,
        study: Study,
        numbers: Columns,
        words: Mapping[str, Coded],
        runs: list[Row],
        of_text: Sequence[Any] = (),
        sampled: Sequence[Any] = (),
    ) -> None:
        self.study, self.runs, self._of_text, self._sampled = study, runs, of_text, sampled
        columns = dict(numbers) | {name: word.names[word.codes] for name, word in words.items()}
        self.levels = sorted(study.axes.n_tasks)
        self.budgets = study.budgets
        self.n_replicates = study.axes.replicates
        self._columns = columns
        self._cubes: dict[tuple[str, ...], np.ndarray] = {}
        self._ended: dict[tuple[str, str], np.ndarray] = {}
        self._made: dict[tuple[str, ...], Any] = {}
        self._values: dict[str, np.ndarray] = {}
        level, self._level_known = _places(self.levels, columns["n_tasks"])
        budget, budget_known = _places(self.budgets, columns["compute_flops"])
        replicate = columns["replicate"].astype(int)
        known = self._level_known & budget_known & (replicate < self.n_replicates)
        order = np.flatnonzero(known)
        order = order[np.lexsort((columns["step"][order], budget[order], replicate[order], level[order]))]
        self._level, self._budget, self._replicate = level, budget, replicate
        self._groups = _grouped([words[k] for k in ("arm", "skill", "split")], order)
        self._starts: dict[tuple[str, ...], np.ndarray] = {}

    @classmethod
    def read(cls, folder: Path, study: Study) -> Results:
        """From the Parquet files in a study's folder. Raises OSError if `results` or `runs` is missing, or any is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        def tables(*names: str) -> list[Any]:
            found = []
            for name in names:
                try:
                    found.append(pq.read_table(folder / name))
                except pa.ArrowException as problem:
                    raise OSError(f"{folder / name} is damaged: {str(problem).splitlines()[0][:200]}") from None
            return found

        of_text = [name for name in ("tasks.parquet", "examples.parquet") if (folder / name).exists()]
        sampled = [name for name in ("samples.parquet", "transcripts.parquet") if (folder / name).exists()]
        results, runs = tables("results.parquet", "runs.parquet")
        return cls.of_tables(study, results, runs, *tables(*of_text), sampled=tables(*sampled))

    @classmethod
    def of_tables(cls, study: Study, results: Any, runs: Any, *of_text: Any, sampled: Sequence[Any] = ()) -> Results:
        """From pyarrow tables: `results` has a row for each evaluation, `runs` one for each trial. of_text: `tasks` and `examples`.
        sampled: `samples` and `transcripts`, of arm `reward`.

        A number column that an older table lacks is NaN in every row.
        """
        n = results.num_rows
        numbers: dict[str, np.ndarray] = {}
        for name in NUMBER_COLUMNS:
            here = name in results.column_names
            numbers[name] = (
                np.asarray(results.column(name).to_numpy(zero_copy_only=False), float) if here else np.full(n, np.nan)
            )
        words = {}
        runs = [run | {"arm": study.condition_of(run["arm"], run.get("variant") or "")} for run in runs.to_pylist()]
        for name in WORD_COLUMNS:
            column = results.column(name).combine_chunks().dictionary_encode()
            names = np.array([*column.dictionary.to_pylist(), None], object)[:-1]  # of objects, even if empty
            words[name] = Coded(column.indices.to_numpy(zero_copy_only=False), names)
        if "variant" in results.column_names:
            words["arm"] = _conditions(study, words["arm"], results.column("variant"))
        return cls(study, numbers, words, runs, of_text, sampled)

    def cells_by_task(self) -> set[tuple[str, int, float]]:
        """(condition, n_tasks, budget) of all cells with rows by task; none if the family is none of text."""
        names = ["condition", "n_tasks", "compute_flops"]
        cells = self._of_text[0].group_by(names).aggregate([]).to_pylist() if self._of_text else []
        return {(cell["condition"], cell["n_tasks"], cell["compute_flops"]) for cell in cells}

    def of_text(self, table: Literal["tasks", "examples"], **place: Any) -> list[Row]:
        """Rows of `tasks` or `examples` with these values of condition, n_tasks, compute_flops and split."""
        return _rows_at(self._of_text[0 if table == "tasks" else 1], place)

    def sampled(self, table: Literal["samples", "transcripts"], **place: Any) -> list[Row]:
        """Rows of `samples` or `transcripts` with these values of condition, n_tasks and others; none without arm `reward`."""
        return _rows_at(self._sampled[0 if table == "samples" else 1], place) if self._sampled else []

    def groups(self) -> set[tuple[str, str, str]]:
        """Every (condition, skill, split) with an evaluation."""
        return {cast(tuple[str, str, str], name) for name, rows in self._groups.items() if len(rows)}

    def rows_of(self, condition: str, skill: str, split: str) -> np.ndarray:
        """Indices of the rows of `results` with this condition, skill and split, by number of tasks, replicate, budget and step."""
        return self._groups.get((condition, skill, split), np.array([], int))

    def values(
        self, measure: str, condition: str, skill: str, split: str, n_tasks: int, flops: float, phase: Phase = "final"
    ) -> list[float | None]:
        """A measure in one cell, a value for each replicate; None if missing or undefined.

        measure: a key of `measures.MEASURES`. flops: the budget. Raises ValueError for an n_tasks or budget off the axes.
        """
        cell = self.cube(measure, condition, skill, split, phase)[self.levels.index(n_tasks), self.budgets.index(flops)]
        return [None if math.isnan(v) else v for v in cell.tolist()]

    def cube(self, measure: str, condition: str, skill: str, split: str, phase: Phase = "final") -> np.ndarray:
        """A measure of every trial, (n_tasks, budgets, replicates) by ascending axes; NaN is missing or undefined.

        measure: a key of `measures.MEASURES`. phase: `final` reads the end of each trial, `pre_decay` its branch point. A trial
        without a decay has no branch point, and `pre_decay` reads its end.
        """
        key = (measure, condition, skill, split, phase)
        if key not in self._cubes:
            cube = self._scattered(self.measured(measure), condition, skill, split, phase)
            if phase == "pre_decay":
                undecayed = ~self.present(condition, skill, split, "pre_decay", strictly=True)
                cube = np.where(undecayed, self.cube(measure, condition, skill, split, "final"), cube)
            self._cubes[key] = cube
        return self._cubes[key]

    def counts(self, column: str, condition: str, skill: str, split: str) -> np.ndarray:
        """A column of numbers of `results` at the end of every trial, as `cube`."""
        return self._scattered(self._columns[column], condition, skill, split, "final")

    def present(
        self, condition: str, skill: str, split: str, phase: Phase = "final", strictly: bool = False
    ) -> np.ndarray:
        """Whether a trial was evaluated, even if a measure is undefined there. (n_tasks, budgets, replicates) bool.

        phase as in `cube`. strictly: with `pre_decay`, the end of a trial without a decay does not count.
        """
        ones = np.ones(len(self._columns["step"]))
        there = ~np.isnan(self._scattered(ones, condition, skill, split, phase))
        if phase == "pre_decay" and not strictly:
            there |= ~np.isnan(self._scattered(ones, condition, skill, split, "final"))
        return there

    def ended(self, condition: str, how: Sequence[str]) -> np.ndarray:
        """Whether a trial has one of the statuses `how` (`done`, `diverged`, `failed`). (n_tasks, budgets, replicates) bool."""
        none = np.zeros((len(self.levels), len(self.budgets), self.n_replicates), bool)
        if not self._ended:
            level, budget = ({value: i for i, value in enumerate(axis)} for axis in (self.levels, self.budgets))
            for run in self.runs:
                cube = self._ended.setdefault((run["arm"], run["status"]), none.copy())
                cube[level[run["n_tasks"]], budget[run["compute_flops"]], run["replicate"]] = True
        return np.logical_or.reduce([none, *(self._ended.get((condition, status), none) for status in how)])

    def place_of(self, run: Row) -> tuple[int, int, int]:
        """The indices of a trial in the cubes of its condition: (n_tasks, budget, replicate)."""
        return self.levels.index(run["n_tasks"]), self.budgets.index(run["compute_flops"]), run["replicate"]

    def once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """The result of `make()`, cached under `key`: several questions share costly tables."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])

    def span(self, condition: str) -> tuple[float, float] | None:
        """Smallest and largest training FLOPs above zero at an evaluation of a condition; None without one."""
        flops = self._columns["flops"][self._columns["arm"] == condition]
        flops = flops[flops > 0]
        return (float(flops.min()), float(flops.max())) if len(flops) else None

    @property
    def conditions(self) -> np.ndarray:
        """The name of the condition in every row of the table `results`, (rows,)."""
        return self._columns["arm"]

    def measured(self, measure: str) -> np.ndarray:
        """A measure in every row of the table `results`, (rows,); NaN is missing, undefined or infinite."""
        if measure not in self._values:
            of_family = measure_of(measure, cast(Family, self.study.family).ability_of)
            values = np.asarray(of_family(self._columns), float)
            self._values[measure] = np.where(np.isfinite(values), values, np.nan)
        return self._values[measure]

    def _scattered(self, values: np.ndarray, condition: str, skill: str, split: str, phase: str) -> np.ndarray:
        """values (rows,) of one group at one phase, placed in a cube (n_tasks, budgets, replicates); NaN elsewhere."""
        cube = np.full((len(self.levels), len(self.budgets), self.n_replicates), np.nan)
        rows = self.rows_of(condition, skill, split)
        rows = rows[self._columns["phase"][rows] == phase]
        cube[self._level[rows], self._budget[rows], self._replicate[rows]] = values[rows]
        return cube

    def track(self, measure: str, condition: str, skill: str, split: str, n_tasks: int, replicate: int) -> Track:
        """A measure at all evaluations of one replicate, one trial after another; may be empty."""
        starts = self._starts_of(condition, skill, split)
        place = self.levels.index(n_tasks) * self.n_replicates + replicate
        rows = self.rows_of(condition, skill, split)[starts[place] : starts[place + 1]]
        columns = self._columns
        values, phases = self.measured(measure)[rows], columns["phase"][rows]
        return Track(columns["step"][rows], columns["flops"][rows], values, columns["compute_flops"][rows], phases)

    def _starts_of(self, condition: str, skill: str, split: str) -> np.ndarray:
        """Positions in `rows_of`, (n_tasks * replicates + 1,): run (level, replicate) has rows starts[k] to starts[k + 1],
        with k = level * n_replicates + replicate."""
        key = (condition, skill, split)
        if key not in self._starts:
            rows = self.rows_of(*key)
            place = self._level[rows] * self.n_replicates + self._replicate[rows]
            self._starts[key] = np.searchsorted(place, np.arange(len(self.levels) * self.n_replicates + 1))
        return self._starts[key]

    def curve(self, measure: str, condition: str, skill: str, split: str, n_tasks: int, replicate: int) -> Track:
        """A measure along one training run: the trunk up to the largest budget, then that budget's branch.

        Only evaluations with a value, by step. If each budget has a model of its own size, the run of the largest budget.
        """
        track = self.track(measure, condition, skill, split, n_tasks, replicate)
        if not len(track.steps):
            return track
        kept = (track.budgets == track.budgets.max()) & ~np.isnan(track.values)
        return Track(*(part[kept] for part in track))

    def along(
        self, measure: str, condition: str, skill: str, split: str, n_tasks: int, decayed: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """A measure along the training runs of all replicates: training FLOPs (P,) and values (replicates, P), NaN missing.

        The points are the evaluations of the trunk at its constant learning rate, then the end of the largest budget after its
        decay. Without `decayed`, the last point is the branch point, so that all points have one learning rate. If each
        budget has a model of its own size (`Study.grows`), the points are the ends of the budgets, or their branch points.
        """
        starts, n = self._starts_of(condition, skill, split), self.n_replicates
        first = self.levels.index(n_tasks) * n
        rows = self.rows_of(condition, skill, split)[starts[first] : starts[first + n]]
        values, phases, replicate = self.measured(measure)[rows], self._columns["phase"][rows], self._replicate[rows]
        kept = ~np.isnan(values)
        if self.study.grows(condition):
            kept &= phases != "trunk"
        else:
            largest = np.full(n, -1)
            np.maximum.at(largest, replicate, self._budget[rows])
            kept &= self._budget[rows] == largest[replicate]
        run = replicate * len(self.budgets) + self._budget[rows]
        branched = np.zeros(n * len(self.budgets), bool)  # where nothing decays, the end is as good as any point
        branched[run[kept & (phases == "pre_decay")]] = True
        kept &= (phases != "pre_decay") if decayed else (phases != "final") | ~branched[run]
        flops, at = np.unique(self._columns["flops"][rows][kept], return_inverse=True)
        table = np.full((n, len(flops)), np.nan)
        table[replicate[kept], at] = values[kept]
        return flops, table


def _rows_at(table: Any, place: Mapping[str, Any]) -> list[Row]:
    """The rows of an Arrow table that have these values."""
    import pyarrow.compute as pc

    for name, value in place.items():
        table = table.filter(pc.equal(table[name], value))
    return cast(list[Row], table.to_pylist())


def _conditions(study: Study, arm: Coded, variant: Any) -> Coded:
    """The column of condition names (`Study.conditions`), from a column of arms and an Arrow column of variants."""
    names = sorted({v or "" for v in variant.unique().to_pylist()})
    if names in ([], [""]):
        return arm
    at = {name: i for i, name in enumerate(names)}
    column = variant.combine_chunks().dictionary_encode()
    place = np.array([at[v or ""] for v in column.dictionary.to_pylist()], int)
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    variants = np.where(codes < 0, at.get("", 0), place[codes])
    conditions = [study.condition_of(str(a), v) for a in arm.names for v in names]
    return Coded(arm.codes * len(names) + variants, np.array([*conditions, None], object)[:-1])


def _places(values: Sequence[float], given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each given value among ascending `values`, and whether it is one of them."""
    grid = np.array(values, float)
    at = np.clip(np.searchsorted(grid, given), 0, len(grid) - 1)
    return at, grid[at] == given


def _grouped(words: Sequence[Coded], rows: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
    """Row indices grouped by their strings in all columns of `words`: (string of each column) -> its rows, in their order."""
    if not len(rows):
        return {}
    whole = np.zeros(len(rows), int)
    for word in words:
        whole = whole * len(word.names) + word.codes[rows]
    by_code = rows[np.argsort(whole, kind="stable")]
    used, starts = np.unique(np.sort(whole), return_index=True)
    groups = {}
    for code, part in zip(used.tolist(), np.split(by_code, starts[1:]), strict=True):
        names = []
        for word in reversed(words):
            code, i = divmod(code, len(word.names))
            names.append(str(word.names[i]))
        groups[tuple(reversed(names))] = part
    return groups
