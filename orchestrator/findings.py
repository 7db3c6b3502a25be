"""What a study found: the record's rows joined into cells, handed to stats.py, and put into words.

Between record.py (tables) and report.py (figures). Knows the study and its tables; knows no figure, no MLflow, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from orchestrator import stats
from orchestrator.study import Expected, Study
from trainers.tasks import Family

Row = dict[str, Any]
Phase = Literal["pre_decay", "final"]


def row_accuracy(row: Row | None) -> float | None:
    """Share of greedy hits; None without items, or where a diverged model predicts nothing finite."""
    return row["n_correct"] / row["n"] if row and row["n"] and row["n_correct"] is not None else None


def row_probability(row: Row | None) -> float | None:
    """Mean probability given to the target; None without items."""
    return row["p_correct"] / row["n"] if row and row["n"] and row["p_correct"] is not None else None


def row_ability(row: Row | None) -> float | None:
    """Ability from one row of raw sums; None where a reference is missing or they coincide."""
    if not row or row["n"] < stats.MIN_ITEMS:
        return None
    if any(row.get(k) is None for k in ("nll_nats", "nll_generalizer", "nll_uniform")):
        return None
    nll, uniform, generalizer = (row[k] / row["n"] for k in ("nll_nats", "nll_uniform", "nll_generalizer"))
    return stats.ability(nll, uniform, generalizer, row.get("se_ability_gap"))


def row_memory(row: Row | None) -> float | None:
    """Memory from one row of raw sums on training tasks; None where a reference is missing or they coincide."""
    if not row or not row["n"] or row["split"] != "seen":
        return None
    if any(row.get(k) is None for k in ("nll_nats", "nll_memorizer", "nll_generalizer")):
        return None
    nll, generalizer, memorizer = (row[k] / row["n"] for k in ("nll_nats", "nll_generalizer", "nll_memorizer"))
    return stats.memory(nll, generalizer, memorizer, row.get("se_memory_gap"))


def row_relative_distance(row: Row | None) -> float | None:
    """The published index d_rel from one row; None where a family does not offer it."""
    if not row or row.get("skl_references") is None or row.get("skl_generalizer") is None:
        return None
    return stats.relative_distance(row["skl_generalizer"], row["skl_memorizer"], row["skl_references"])


MEASURES = {
    "accuracy": row_accuracy,
    "probability": row_probability,
    "ability": row_ability,
    "memory": row_memory,
    "d_rel": row_relative_distance,
}
Measure = Literal["accuracy", "probability", "ability", "memory", "d_rel"]


class Verdict(NamedTuple):
    """An expected value beside what was measured: one value a replicate, their interval, and whether they agree."""

    expected: Expected
    values: tuple[float, ...]
    measured: stats.Interval | None
    verdict: str
    censored: int
    """Replicates in which the quantity was not reached or is not defined."""


class Costs(NamedTuple):
    """What a study has cost so far."""

    train_flops: float
    """Training FLOPs actually run."""
    eval_flops: float
    saved_flops: float
    """What separate runs of every trial would have cost more."""
    slot_seconds: float
    """Training and evaluating, added up over slots."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything the report and MLflow say about a study. `rows` and `runs` are the two Parquet tables."""

    study: Study
    rows: list[Row]
    runs: list[Row]
    at: dict[tuple[Any, ...], Row]
    """(phase, arm, skill, split, n_tasks, compute_flops, replicate) -> row; both phases wherever a trial ended."""
    k_ability: dict[tuple[str, str], list[tuple[float, stats.Boundary]]] = field(default_factory=dict)
    """(arm, skill) -> per budget: where the skill appears, on held-out tasks, after the decay."""
    k_memory: dict[str, list[tuple[float, stats.Boundary]]] = field(default_factory=dict)
    """arm -> per budget: up to where the training tasks are memorised, before the decay."""
    verdicts: tuple[Verdict, ...] = ()
    answer: str = ""

    def skill_split(self, skill: str) -> str:
        """The split a skill is judged on: held-out tasks, or seen ones for skills that only exist there."""
        splits = {row["split"] for row in self.rows if row["skill"] == skill}
        return "seen" if splits == {"seen"} else "held_out"

    def values(
        self, measure: Measure, arm: str, skill: str, split: str, n_tasks: int, flops: float, phase: Phase = "final"
    ) -> list[float | None]:
        """One value per replicate at one cell; None where it is missing or not defined."""
        keys = [(phase, arm, skill, split, n_tasks, flops, r) for r in range(self.study.axes.replicates)]
        return [MEASURES[measure](self.at.get(key)) for key in keys]

    def mean(
        self, measure: Measure, arm: str, skill: str, split: str, n_tasks: int, flops: float, phase: Phase = "final"
    ) -> float | None:
        """Mean over the replicates that have the value."""
        known = [v for v in self.values(measure, arm, skill, split, n_tasks, flops, phase) if v is not None]
        return sum(known) / len(known) if known else None

    def reference_accuracy(self, reference: str, arm: str, skill: str, split: str, n_tasks: int) -> float | None:
        """How often a reference is right on the items of a skill: mean over replicates, as each has its own tasks."""
        known: dict[int, float] = {}  # by replicate; the items are the same at every evaluation
        for flops in self.study.budgets:
            for replicate in range(self.study.axes.replicates):
                row = self.at.get(("final", arm, skill, split, n_tasks, flops, replicate))
                if row and row["n"] and row.get(f"correct_{reference}") is not None:
                    known[replicate] = row[f"correct_{reference}"] / row["n"]
        return sum(known.values()) / len(known) if known else None

    def costs(self) -> Costs:
        """What the trials have cost together, each shared trunk charged once."""

        def total(key: str) -> float:
            return float(sum(r[key] for r in self.runs if r.get(key) is not None))

        own, run = total("flops_own"), total("flops_run")
        seconds = total("train_seconds") + total("eval_seconds")
        return Costs(run, total("eval_flops"), own - run, seconds)

    def curve(
        self, measure: Measure, arm: str, skill: str, split: str, n_tasks: int, replicate: int
    ) -> list[tuple[Row, float]]:
        """(row, value) along the trunk of the largest budget, then its branch: one replicate's emergence curve."""
        top = self.study.budgets[-1]
        mine = [
            r
            for r in self.rows
            if (r["arm"], r["skill"], r["split"], r["n_tasks"], r["replicate"], r["compute_flops"])
            == (arm, skill, split, n_tasks, replicate, top)
        ]
        pairs = [(r, MEASURES[measure](r)) for r in sorted(mine, key=lambda r: cast(int, r["step"]))]
        return [(r, v) for r, v in pairs if v is not None]

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """The boundaries as series for MLflow's parent run; the step counts the budgets from the smallest."""
        series: dict[str, list[tuple[int, float]]] = {}
        named = [(f"k_ability/{arm}/{skill}", bounds) for (arm, skill), bounds in self.k_ability.items()]
        named += [(f"k_memory/{arm}", bounds) for arm, bounds in self.k_memory.items()]
        for name, bounds in named:
            for i, (_, boundary) in enumerate(bounds):
                for end, value in (("low", boundary.low), ("high", boundary.high)):
                    if value is not None and boundary.verdict == "crossed":
                        series.setdefault(f"{name}/{end}", []).append((i, value))
        for status in ("done", "diverged", "failed", "open"):
            series[f"trials/{status}"] = [(0, float(sum(r["status"] == status for r in self.runs)))]
        return series


def find(study: Study, rows: list[Row], runs: list[Row]) -> Findings:
    """Findings of a study from the rows of `results.parquet` and `runs.parquet`. Never fails on what is missing."""
    bare = Findings(study=study, rows=rows, runs=runs, at=_index(rows))
    family = cast(Family, study.family)
    levels = sorted(study.axes.n_tasks)
    replicates = range(study.axes.replicates)

    def boundary(measure: Measure, arm: str, skill: str, split: str, flops: float, phase: Phase) -> stats.Boundary:
        table = [bare.values(measure, arm, skill, split, n, flops, phase) for n in levels]  # (levels, replicates)
        direction: Any = "falling" if measure == "memory" else "rising"
        return stats.boundary([float(n) for n in levels], [[row[r] for row in table] for r in replicates], direction)

    k_ability = {
        (arm, skill): [(c, boundary("ability", arm, skill, bare.skill_split(skill), c, "final")) for c in study.budgets]
        for arm in study.axes.arm
        for skill in study.shown_skills
    }
    k_memory = {
        arm: [(c, boundary("memory", arm, family.mixture, "seen", c, "pre_decay")) for c in study.budgets]
        for arm in study.axes.arm
    }
    verdicts = tuple(_verdict(bare, expected) for expected in study.expected)
    parts = {"k_ability": k_ability, "k_memory": k_memory, "verdicts": verdicts}
    whole = Findings(study=study, rows=rows, runs=runs, at=bare.at, **parts)  # type: ignore[arg-type]
    return Findings(study=study, rows=rows, runs=runs, at=bare.at, answer=_answer(whole), **parts)  # type: ignore[arg-type]


def read(folder: Path, study: Study) -> Findings:
    """Findings from the Parquet files of a study's folder. Raises OSError when there are none yet."""
    import pyarrow.parquet as pq

    rows, runs = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("results", "runs"))
    return find(study, rows, runs)


def _index(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
    at: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["phase"] in ("pre_decay", "final"):
            key = tuple(row[k] for k in ("arm", "skill", "split", "n_tasks", "compute_flops", "replicate"))
            at[(row["phase"], *key)] = row
            if row["phase"] == "final":
                at.setdefault(("pre_decay", *key), row)  # no decay: the two are one
    return at


def _verdict(found: Findings, expected: Expected) -> Verdict:
    study, cell = found.study, expected.cell
    arm, flops = cell.arm or study.axes.arm[0], cell.compute_flops or study.budgets[-1]
    skill = cell.skill or study.shown_skills[0]
    family = cast(Family, study.family)
    replicates = range(study.axes.replicates)
    values: list[float | None]
    if expected.what in ("accuracy", "ability"):
        values = found.values(cast(Measure, expected.what), arm, skill, cell.split, cell.n_tasks, flops)
    elif expected.what == "memory":
        values = found.values("memory", arm, family.mixture, "seen", cell.n_tasks, flops, "pre_decay")
    elif expected.what == "crossing_steps":
        values = [crossing(found, arm, cell.n_tasks, r) for r in replicates]
    else:
        reference = expected.what.removeprefix("excess_").removesuffix("_nats")
        keys = [("final", arm, family.mixture, cell.split, cell.n_tasks, flops, r) for r in replicates]
        values = [_excess(found.at.get(key), reference) for key in keys]
    known = tuple(v for v in values if v is not None)
    measured = stats.t_interval(known) if len(known) == len(values) else None
    return Verdict(
        expected, known, measured, stats.agreement(measured, expected.lo, expected.hi), len(values) - len(known)
    )


def crossing(found: Findings, arm: str, n_tasks: int, replicate: int) -> float | None:
    """Optimizer step at which d_rel on the training mixture rises through one half; None if it was not seen to."""
    family = cast(Family, found.study.family)
    curve = found.curve("d_rel", arm, family.mixture, "seen", n_tasks, replicate)
    return stats.crossing_step([float(row["step"]) for row, _ in curve], [value for _, value in curve])


def _excess(row: Row | None, reference: str) -> float | None:
    if not row or row.get(f"nll_{reference}") is None or row.get("nll_oracle") is None:
        return None
    return float((row[f"nll_{reference}"] - row["nll_oracle"]) / row["n"])


# Words --------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A count or budget as people write it: 64, 1,024, 1e12, 4e11."""
    if value >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")  # rounded first: 9.999e11 is 1e12
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if value >= 10 or float(value).is_integer() else f"{value:.2g}"


def _boundary_words(
    boundary: stats.Boundary, levels: Sequence[float], crossed: str, never: str, everywhere: str
) -> str:
    """A boundary in words, open ends said as such; {} is the last level seen, or the first."""
    if boundary.verdict == "missing":
        return "is not defined (references coincide or cannot be enumerated)"
    if boundary.verdict == "beyond":
        return never.format(number(max(b.low for b in boundary.brackets if b.low is not None)))
    if boundary.verdict == "below":
        return everywhere.format(number(min(b.high for b in boundary.brackets if b.high is not None)))
    if boundary.verdict == "undecided" or boundary.high is None:
        reached, n = sum(b.high is not None for b in boundary.brackets), len(boundary.brackets)
        least, most = stats.wilson_interval(reached, n)
        return f"{crossed} in {reached} of {n} replicates (95 % interval of the share {least:.2f} to {most:.2f})"
    beyond = boundary.high > max(levels)
    high = f"more than {number(max(levels))}" if beyond else number(boundary.high)
    if boundary.low is None or boundary.low < min(levels):
        return f"{crossed} at {high} tasks or {'anywhere below' if beyond else 'fewer'}"
    return f"{crossed} between {number(boundary.low)} and {high} tasks"


def interval_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """The interval of a boundary in figures. An end outside the grid is told by the grid's end: it was not measured."""
    if boundary.verdict == "missing":
        return "—"
    low, high = boundary.low, boundary.high
    if low is not None and low < min(levels):
        low = None
    if high is not None and high > max(levels):
        high = None
    if low is None and high is None:
        return "open at both ends"
    if high is None:
        return f"above {number(cast(float, low))}"
    return f"{number(high)} or fewer" if low is None else f"{number(low)} to {number(high)}"


def ability_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """K_A in words; an end outside the grid of `levels` is told by the grid's end."""
    said = ("appears", "does not appear up to {} tasks", "is there from {} tasks on")
    return _boundary_words(boundary, levels, *said)


def memory_words(boundary: stats.Boundary, levels: Sequence[float]) -> str:
    """K_M in words; an end outside the grid of `levels` is told by the grid's end."""
    return _boundary_words(
        boundary, levels, "ends", "holds up to {} tasks and more", "is not there, not even at {} tasks"
    )


def _said_once(words: Sequence[tuple[str, float]]) -> str:
    """(what, budget) in order -> one clause for each run of budgets of which the same is said."""
    groups: list[tuple[str, list[float]]] = []
    for what, flops in words:
        if groups and groups[-1][0] == what:
            groups[-1][1].append(flops)
        else:
            groups.append((what, [flops]))
    return "; ".join(
        f"{what} at {number(of[0])}{f' to {number(of[-1])}' if len(of) > 1 else ''} FLOPs" for what, of in groups
    )


def verdict_line(verdict: Verdict) -> str:
    """An expected value beside the measured one, in a line."""
    expected, measured = verdict.expected, verdict.measured
    where = f" at {number(expected.cell.n_tasks)} tasks"
    said = "not measured"
    if measured is not None:
        said = f"measured {measured.mean:.3g}"
        if measured.low is not None and measured.high is not None:
            said += f" (95 % interval {measured.low:.3g} to {measured.high:.3g}, {measured.n} replicates)"
    elif verdict.values:
        reached = len(verdict.values)
        said = f"seen in {reached} of {reached + verdict.censored} replicates only"
    claim = f"expected {expected.value:g} ({expected.lo:g} to {expected.hi:g}, {expected.source})"
    return f"{expected.what}{where}: {said}; {claim}: {verdict.verdict}"


def _answer(found: Findings) -> str:
    """One paragraph, written from the numbers: what the study says, or that it says nothing."""
    study = found.study
    ended = sum(r["status"] in ("done", "diverged") for r in found.runs)
    if not ended:
        return "Nothing can be said yet: no trial has ended."
    known = [r for r in found.runs if r["status"] in ("done", "diverged")]
    levels = sorted({float(r["n_tasks"]) for r in known})
    budgets = {r["compute_flops"] for r in known}
    skill = study.shown_skills[0]
    missing = len(found.runs) - ended
    sentences = [f"So far, with {ended} of {len(found.runs)} trials ended:"] if missing else []
    for arm in study.axes.arm:
        of_arm = f" ({arm})" if len(study.axes.arm) > 1 else ""
        boundaries = [(c, b) for c, b in found.k_ability[(arm, skill)] if c in budgets]
        if all(b.verdict in ("beyond", "missing") for _, b in boundaries):
            best = max((a for a in _all_abilities(found, arm, skill) if a is not None), default=None)
            best_words = f"; the highest ability of any trial is {best:.2f}" if best is not None else ""
            sentences.append(
                f"{skill}{of_arm} appears nowhere: at no number of tasks up to {number(levels[-1])} and no budget up to "
                f"{number(max(budgets))} FLOPs does a replicate reach half of the general rule{best_words}."
            )
        else:
            said = _said_once([(ability_words(b, levels), c) for c, b in boundaries])
            sentences.append(f"{skill}{of_arm} {said}.")
        memories = [(c, b) for c, b in found.k_memory[arm] if c in budgets]
        if all(b.verdict == "missing" for _, b in memories):
            sentences.append("Memory is not defined here.")
        elif all(b.verdict in ("below", "missing") for _, b in memories):
            sentences.append(f"Training tasks are memorised nowhere, not even {number(levels[0])} of them.")
        else:
            said = _said_once([(memory_words(b, levels), c) for c, b in memories])
            sentences.append(f"Memory of the training tasks{of_arm} {said}.")
    if study.axes.replicates < 2:
        sentences.append("One replicate: no interval can be given.")
    text = " ".join(sentences)
    return text[0].upper() + text[1:]


def _all_abilities(found: Findings, arm: str, skill: str) -> list[float | None]:
    split = found.skill_split(skill)
    cells = [(n, c) for n in found.study.axes.n_tasks for c in found.study.budgets]
    return [v for n, c in cells for v in found.values("ability", arm, skill, split, n, c)]
