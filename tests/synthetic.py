"""Tables of studies that never ran: a known truth in the columns of the record, made by the column, for any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.analysis.findings import Findings, find
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.study.schema import Study
from trainers.streams import stream

N_ITEMS = 320
UNIFORM, RULE, LIST = np.log(16), 0.9, 0.1  # nats an item
Truth = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(n_tasks, compute_flops, replicate), each (rows,) -> values; NaN is not defined."""

SKILLS = {
    ("recall", "held_out"): "ability",
    ("recall", "seen"): "ability",
    ("elimination", "held_out"): "ability",
    ("recall_novel_pair", "held_out"): "ability",
    ("recall_function", "held_out"): "ability",
    ("override", "seen"): "ability",
    ("override_memory", "seen"): "ability",
    ("mixture", "seen"): "memory",
}


def made_up(**axes: Any) -> Study:
    """A cipher study with these axes. `axis` is `axes.family`, and other keys are the study's own."""
    whole = {"arm": ("answer",), "n_tasks": (4, 64, 1024), "compute_flops": (1e11, 8e11), "replicates": 3} | axes
    top = {
        k: whole.pop(k) for k in list(whole) if k not in ("arm", "variant", "n_tasks", "compute_flops", "replicates")
    }
    record: dict[str, Any] = {"study": "made_up", "version": 1, "question": "What is said?"}
    record |= {"family": {"name": "cipher"}, "axes": whole | {"family": top.pop("axis", {})}}
    return Study.from_record(record | top)


def rising(centre: float = 64.0, width: float = 0.3, spread: float = 0.2) -> Truth:
    """Ability rises through one half at `centre` tasks at 1e11 FLOPs and at fewer with more compute, as its square root."""

    def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        shift = spread * stream("synthetic", "ability").standard_normal(int(replicate.max()) + 1)[replicate]
        at = np.log2(centre) - 0.5 * np.log2(flops / 1e11) + shift
        return 1 / (1 + np.exp(-(np.log2(n_tasks) - at) / width))

    return truth


def falling(centre: float = 16.0, width: float = 0.3, spread: float = 0.2) -> Truth:
    """Memory falls through one half at `centre` tasks at 1e11 FLOPs and at more with more compute; unknown beyond 4,096."""

    def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        shift = spread * stream("synthetic", "memory").standard_normal(int(replicate.max()) + 1)[replicate]
        at = np.log2(centre) + 0.5 * np.log2(flops / 1e11) + shift
        return np.where(n_tasks > 4096, np.nan, 1 / (1 + np.exp((np.log2(n_tasks) - at) / width)))

    return truth


def alike(draw: np.random.Generator, n_arms: int, replicates: int, two_kinds: bool = False) -> Truth:
    """Arms that differ by chance alone: every replicate of every arm has its own onset, along tasks around 64 and along compute
    around 1.5e11 FLOPs, drawn from one law: normal, or early and late. For `tables`, whose rows come arm by arm."""
    shape = (n_arms, replicates)
    if two_kinds:
        wide = (draw.choice([-1, 1], shape) for _ in range(2))
        late = [scale * sign + 0.1 * draw.standard_normal(shape) for scale, sign in zip((3, 1.5), wide, strict=True)]
    else:
        late = [scale * draw.standard_normal(shape) for scale in (1.5, 1.0)]

    def there(log_level: np.ndarray, at: np.ndarray, width: float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip((log_level - at) / width, -50, 50)))

    def truth(n_tasks: np.ndarray, flops: np.ndarray, replicate: np.ndarray) -> np.ndarray:
        arm = np.repeat(np.arange(n_arms), len(n_tasks) // n_arms)
        tasks = there(np.log2(n_tasks), 6 + late[0][arm, replicate], 0.3)
        return 0.02 + 0.96 * tasks * there(np.log2(flops / 1.5e11), late[1][arm, replicate], 0.2)

    return truth


def step(tasks: float, flops: float = 0.0) -> Truth:
    """The skill is there above so many tasks and so much compute."""
    return lambda n_tasks, compute, replicate: np.where((n_tasks > tasks) & (compute > flops), 0.95, 0.05)


def flat(level: float, spread: float = 0.0) -> Truth:
    """The same everywhere; replicates differ by a multiple of the spread."""
    return lambda n_tasks, compute, replicate: level + spread * (replicate % 3)


def by_arm(replicates: int, first: Truth, second: Truth) -> Truth:
    """A truth for each of two arms, for tables whose arms are not alike."""

    def truth(n_tasks: np.ndarray, compute: np.ndarray, who: np.ndarray) -> np.ndarray:
        return np.where(who < replicates, first(n_tasks, compute, who), second(n_tasks, compute, who % replicates))

    return truth


def found(
    axes: dict[str, Any],
    ability: Truth | tuple[Truth, Truth] | None = None,
    memory: Truth | None = None,
    statuses: dict[tuple[Any, ...], str] | None = None,
    **how: Any,
) -> Findings:
    """The findings of a made-up study. Two abilities are those of two arms; `statuses` as in `changed`."""
    study = made_up(**axes)
    if isinstance(ability, tuple):
        ability, how = by_arm(study.axes.replicates, *ability), how | {"arms_alike": False}
    of = tables(study, ability, memory, **how)
    return find(study, *(changed(of, statuses) if statuses else of))


def tables(
    study: Study,
    ability: Truth | None = None,
    memory: Truth | None = None,
    points_per_decade: int = 4,
    first_flops: float = 1e10,
    noise: float = 0.01,
    draw: int = 0,
    arms_alike: bool = True,
) -> tuple[pa.Table, pa.Table]:
    """`results` and `runs` of a study whose every trial is done: each with its trunk's looks, its branch point, its end.

    `arms_alike`: a replicate is the same in every arm. Otherwise truths see each arm's replicates numbered on from those of
    the arm before, and so draw shifts of their own for them.
    """
    ability, memory = ability or rising(), memory or falling()
    axes = study.axes
    budgets = np.array(study.budgets)
    grid = first_flops * 10 ** (np.arange(200) / points_per_decade)
    looks = []  # (budget index, flops, phase)
    for j, budget in enumerate(budgets):
        looks += [(j, c, "trunk") for c in grid if c < 0.8 * budget]
        looks += [(j, 0.8 * budget, "pre_decay"), (j, budget, "final")]
    groups = list(SKILLS)
    shape = (len(axes.arm), len(axes.n_tasks), axes.replicates, len(looks), len(groups))
    arm, level, replicate, look, group = (index.ravel() for index in np.indices(shape, np.int32))
    flops = np.array([c for _, c, _ in looks])[look]
    n_tasks = np.array(sorted(axes.n_tasks), float)[level]
    is_memory = np.array([SKILLS[g] == "memory" for g in groups])[group]
    who = replicate if arms_alike else arm * axes.replicates + replicate
    level_of = np.where(is_memory, memory(n_tasks, flops, who), ability(n_tasks, flops, who))
    level_of = level_of + noise * stream("synthetic", "noise", draw).standard_normal(len(level_of))
    undefined = np.isnan(level_of)
    value = np.where(undefined, 0.0, level_of)
    nll = np.where(is_memory, RULE - value * (RULE - LIST), UNIFORM - value * (UNIFORM - RULE))
    share = np.clip(value, 1 / 16, 1)
    budget = np.array([j for j, _, _ in looks])[look]

    def words(values: list[str], at: np.ndarray) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array(at, pa.int32()), pa.array(values)).cast(pa.string())

    ones = np.ones(len(flops))
    columns: dict[str, Any] = {
        "trial": pa.array([""] * len(flops)) if len(flops) < 1000 else words([""], np.zeros(len(flops), np.int32)),
        "trunk": words([""], np.zeros(len(flops), np.int32)),
        "arm": words(list(axes.arm), arm),
        "n_tasks": n_tasks.astype(np.int64),
        "compute_flops": budgets[budget],
        "replicate": replicate.astype(np.int64),
        "step": np.round(flops / 1e9).astype(np.int64),
        "flops": flops,
        "phase": words([p for _, _, p in looks], look),
        "skill": words([g[0] for g in groups], group),
        "split": words([g[1] for g in groups], group),
        "n": (N_ITEMS * ones).astype(np.int64),
        "n_correct": np.round(share * N_ITEMS).astype(np.int64),
        "sum_nll_nats": nll * N_ITEMS,
        "sum_p_correct": share * N_ITEMS,
        "sum_brier": (1 - share) * N_ITEMS,
        "n_sequences": (32 * ones).astype(np.int64),
        "n_exact": np.round(share**10 * 32).astype(np.int64),
        "sum_p_exact": share**10 * 32,
        "sum_nll_uniform": UNIFORM * N_ITEMS * ones,
        "sum_nll_generalizer": RULE * N_ITEMS * ones,
        "sum_nll_memorizer": pa.array(LIST * N_ITEMS * ones, mask=undefined | (n_tasks > 4096)),
        "sum_nll_oracle": LIST * N_ITEMS * ones,
        "sum_correct_uniform": ones * N_ITEMS / 16,
        "sum_correct_generalizer": 0.95 * ones * N_ITEMS,
        "sum_correct_memorizer": 0.3 * ones * N_ITEMS,
        "se_ability_gap": 0.001 * ones,
        "se_memory_gap": 0.001 * ones,
        "mean_train_loss_nats": nll,
    }
    arrays = [columns.get(f.name, pa.nulls(len(flops), f.type)) for f in RESULTS]
    results = pa.Table.from_arrays(
        [pa.array(a).cast(f.type) for a, f in zip(arrays, RESULTS, strict=True)], schema=RESULTS
    )
    return results, pa.Table.from_pylist(_runs(study), schema=RUNS)


def changed(of: tuple[pa.Table, pa.Table], statuses: dict[tuple[Any, ...], str]) -> tuple[pa.Table, pa.Table]:
    """The tables with other ends: (arm, n_tasks, compute, replicate) -> status, the first that fits; None fits all.

    A trial that is not done has no results.
    """
    results, runs = of
    axes = ("arm", "n_tasks", "compute_flops", "replicate")
    keep, ended = np.ones(results.num_rows, bool), []
    columns = {axis: results[axis].to_numpy(zero_copy_only=False) for axis in axes}
    for run in runs.to_pylist():
        fits = (
            s for place, s in statuses.items() if all(p in (None, run[a]) for p, a in zip(place, axes, strict=True))
        )
        ended.append(next(fits, "done"))
        if ended[-1] != "done":
            keep &= ~np.logical_and.reduce([columns[axis] == run[axis] for axis in axes])
    at = runs.column_names.index("status")
    return results.filter(pa.array(keep)), runs.set_column(at, "status", [pa.array(ended, pa.string())])


def without(of: tuple[pa.Table, pa.Table], *columns: str) -> tuple[pa.Table, pa.Table]:
    """The tables with some columns of the results empty."""
    results, runs = of
    for name in columns:
        at = results.column_names.index(name)
        results = results.set_column(
            at, results.schema.field(at), pa.nulls(len(results), results.schema.field(at).type)
        )
    return results, runs


def _runs(study: Study) -> list[dict[str, Any]]:
    """A row a trial, each done."""
    axes = study.axes
    runs = []
    for a, n, r, c in itertools.product(axes.arm, sorted(axes.n_tasks), range(axes.replicates), study.budgets):
        name = f"{a}/n{n}/c{c:g}/r{r}"
        place = {"trial": name, "trunk": name, "arm": a, "n_tasks": n, "compute_flops": c, "replicate": r}
        costs = {
            "flops_own": c,
            "flops_run": 0.6 * c,
            "eval_flops": 0.05 * c,
            "train_seconds": 20.0,
            "eval_seconds": 2.0,
        }
        runs.append(place | costs | {"status": "done", "steps": round(c / 1e9), "sequences": round(32 * c / 1e9)})
    return runs


def of_variants(study: Study, truths: dict[str, Truth]) -> tuple[pa.Table, pa.Table]:
    """`results` and `runs` of a study with variants, each with its own ability: condition -> truth.

    A condition with a start has rows from its FLOPs on.
    """
    parts = []
    for condition, truth in truths.items():
        arm, variant = study.conditions[condition]
        alone = study.model_copy(
            update={"axes": study.axes.model_copy(update={"arm": (arm,), "variant": {}, "family": {}})}
        )
        results, runs = tables(alone, truth, noise=0.0)
        budgets, start = pa.array(study.budgets_of(condition)), study.trunk_of(condition).start
        results, runs = (of.filter(pc.is_in(of["compute_flops"], budgets)) for of in (results, runs))
        results = results.filter(pc.greater_equal(results["flops"], start.flops if start else 0))
        names = pa.array([variant] * results.num_rows), [variant] * runs.num_rows
        place = results.column_names.index("variant")
        runs = runs.set_column(runs.column_names.index("variant"), "variant", pa.array(names[1], pa.string()))
        parts.append((results.set_column(place, "variant", names[0]), runs))
    return tuple(pa.concat_tables(tables_) for tables_ in zip(*parts, strict=True))  # type: ignore[return-value]


VALUES = (8.0, 10.0, 12.0, 16.0, 24.0)
"""Values of an axis of the parameter n_pairs."""
AXIS: dict[str, Any] = {
    "axis": {"n_pairs": VALUES},
    "n_tasks": (64,),
    "compute_flops": (1e11, 4e11),
    "skills": ("recall",),
}


def along(at: dict[float, float], statuses: dict[tuple[Any, ...], str] | None = None, **axes: Any) -> Findings:
    """The findings of a study in which ability is `at[value]` at each value of n_pairs, in every replicate."""
    study = made_up(**AXIS | axes)
    truths = {condition: flat(at[value]) for of in study.series.values() for value, condition in of.items()}
    of = of_variants(study, truths)
    return find(study, *(changed(of, statuses) if statuses else of))


def after(value: float) -> dict[float, float]:
    """Abilities for `along`: the skill is there at larger values of n_pairs."""
    return {v: 0.95 if v > value else 0.05 for v in VALUES}
