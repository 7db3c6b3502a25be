"""What is asked of a study's tables, one question a function: boundaries and their drift, compute-to-skill, crossovers,
breaks, noise, forecast, frontier. Cuts the arrays and hands them to stats/; findings.py puts the answers together.

Every interval takes a confidence, because what is not the primary claim is corrected for how much was looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import

from orchestrator import stats
from orchestrator.analysis.results import Results
from orchestrator.stats import breaks, forecast, frontier, multiplicity, replicates, survival
from trainers import budget
from trainers.streams import stream
from trainers.tasks import Family

Axis = Literal["n_tasks", "compute_flops"]
Boundaries = list[tuple[float, stats.Boundary]]
"""(compute_flops, boundary) by ascending budget."""
Confidence = Callable[[str], float]
"""Name of a claim -> the confidence of its interval."""


def split_of(results: Results, skill: str) -> str:
    """The split a skill is judged on: held-out tasks, or seen ones for skills that only exist there."""
    splits = {split for _, name, split in results.groups() if name == skill}
    return "seen" if splits == {"seen"} else "held_out"


def surface(results: Results, measure: Literal["ability", "memory"], arm: str, skill: str = "") -> np.ndarray:
    """(n_tasks, compute, replicates): ability after the decay, memory of the training mixture before it."""
    if measure == "memory":
        return results.cube("memory", arm, cast(Family, results.study.family).mixture, "seen", "pre_decay")
    return results.cube("ability", arm, skill, split_of(results, skill), "final")


DIRECTION: dict[str, Literal["rising", "falling"]] = {"ability": "rising", "memory": "falling"}


# Boundaries along the numbers of tasks ------------------------------------------------------------------------------


def boundaries_of(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str, confidence: Confidence
) -> Boundaries:
    """K_A or K_M at every budget. A replicate that diverged or failed where others have a value counts as not there; one
    that has not come so far is not counted, neither as there nor as not."""
    levels = [float(n) for n in results.levels]
    tables = judged(results, measure, arm, skill)
    return [
        (c, stats.boundary(levels, table, DIRECTION[measure], confidence(claim_of("k", measure, arm, skill, c))))
        for c, (table, _) in zip(results.budgets, tables, strict=True)
    ]


def judged(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At every budget, what a boundary is read from: a table (replicates, n_tasks), and which replicates these are."""
    cube, waiting = counted(results, measure, arm, skill)
    tables = lambda: [settled(cube[:, j].T, waiting[:, j].T) for j in range(len(results.budgets))]  # noqa: E731
    return results.once(("judged", measure, arm, skill), tables)


def counted(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str
) -> tuple[np.ndarray, np.ndarray]:
    """The surface with its lost trials, and which trials have yet to end; (n_tasks, compute, replicates) each.

    Diverged and failed trials are as far below one half as need be, wherever the quantity is defined for another replicate.
    """
    return results.once(("counted", measure, arm, skill), lambda: _counted(results, measure, arm, skill))


def _counted(
    results: Results, measure: Literal["ability", "memory"], arm: str, skill: str
) -> tuple[np.ndarray, np.ndarray]:
    cube = surface(results, measure, arm, skill)
    ended = results.ended(arm, ("done", "diverged", "failed"))
    lost = results.ended(arm, ("diverged", "failed"))
    defined = ~np.isnan(cube).all(axis=2, keepdims=True)
    return np.where(lost & np.isnan(cube) & defined, -1.0, cube), ~ended & np.isnan(cube)


def settled(table: np.ndarray, waiting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a table (replicates, levels) with trials still to come: the replicates that can be judged, and which they are.

    A replicate that lacks a level others have would count as not across there, though it has only not run yet. So the
    levels that some replicate has are kept with the replicates that have all of them: the choice with the most cells,
    and, of equals, the one with the most replicates. Other levels are blank. Nothing waiting: the table as it is.
    """
    known = ~np.isnan(table)
    if not (waiting & known.any(axis=0)).any():
        rows = np.flatnonzero(known.any(axis=1) | ~waiting.all(axis=1))
        return table[rows], rows
    best: tuple[int, int] = (0, 0)
    kept, rows = np.zeros(table.shape[1], bool), np.array([], int)
    for levels in np.unique(known, axis=0):
        can = np.flatnonzero(~waiting[:, levels].any(axis=1) & known[:, levels].any(axis=1))
        score = (len(can) * int(levels.sum()), len(can))
        if score > best:
            best, kept, rows = score, levels, can
    return np.where(kept, table[rows], np.nan), rows


def claim_of(kind: str, measure: str, arm: str, skill: str, place: float | str = "") -> str:
    """Name of a claim, the same wherever it is counted and wherever its interval is drawn."""
    at = repr(place) if isinstance(place, float) else str(place)
    return f"{kind}_{measure}/{arm}/{skill}/{at}"


def claim_of_arms(a: str, b: str, skill: str, n_tasks: int, kind: str = "crossover") -> str:
    """Name of the claim that one of two arms overtakes the other, whichever of them; or that it needs more compute."""
    first, second = sorted((a, b))
    return claim_of(kind, first, second, skill, float(n_tasks))


LEAST_TESTED = 6
"""Replicates of which a sign test can tell the median at 5 %, if all agree: 2 x 2^-6 = .031."""


def boundary_p(table: np.ndarray, verdict: str, direction: Literal["rising", "falling"]) -> float | None:
    """Two-sided sign test of what a boundary's verdict says of the median replicate. table (replicates, levels).

    `crossed`: the first level is not across and the last one is; `below`: the first is; `beyond`: the last is not. A boundary
    is a median over replicates, and n of them agree by chance with probability 2^-n on either side: below LEAST_TESTED
    nothing can be shown at 5 %, however clear each one is. Such a test could not be kept and would only make the others
    harder to keep, so it is none (Tarone 1990: what its least p-value, known before the outcome, rules out is left out of the
    count). An undecided boundary is a claim that failed (p = 1), not one that could not be tested. None, too, where nothing is
    defined.
    """
    known = table.T[~np.isnan(table).all(axis=0)]  # (levels, replicates)
    if not len(known) or known.shape[1] < LEAST_TESTED:
        return None
    if verdict not in ("crossed", "below", "beyond"):
        return 1.0

    def sign_p(line: np.ndarray, should_be_across: bool) -> float:
        line = line[~np.isnan(line)]
        across = (line >= stats.HALF) == (direction == "rising")
        return min(1.0, 2 * float(special.bdtr(int((across != should_be_across).sum()), len(line), 0.5)))

    if verdict == "below":
        return sign_p(known[0], True)
    if verdict == "beyond":
        return sign_p(known[-1], False)
    return max(sign_p(known[0], False), sign_p(known[-1], True))


def drift(
    results: Results,
    measure: Literal["ability", "memory"],
    arm: str,
    skill: str,
    found: Boundaries,
    confidence: float,
) -> stats.Drift:
    """How a boundary moves with compute, in doublings per doubling, between the budgets at which every replicate crosses.

    Where none does, at a budget too small for anything, the distance to the grid's end is the grid's and not a rate.
    Only replicates that have come to all of these budgets can say how they moved.
    """
    of_budget = [rows.tolist() for _, rows in judged(results, measure, arm, skill)]
    crossed = [b.verdict == "crossed" for _, b in found]
    common = set(range(results.n_replicates)).intersection(
        *(of for of, yes in zip(of_budget, crossed, strict=True) if yes)
    )
    rows = [
        tuple(bracket for r, bracket in zip(of, b.brackets, strict=True) if r in common) if yes else ()
        for (_, b), of, yes in zip(found, of_budget, crossed, strict=True)
    ]
    return stats.drift([c for c, _ in found], rows, confidence)


class Dip(NamedTuple):
    """Does a mean go against its direction along one axis, the other held fixed?"""

    arm: str
    skill: str
    """"" is memory."""
    axis: Axis
    fixed: float
    test: stats.Monotone
    """p-values are adjusted."""

    @property
    def is_shown(self) -> bool:
        """Is it more than noise explains, at 5 % of what is told being false?"""
        return self.test.p_value is not None and self.test.p_value < 0.05


def dips(results: Results, skills: tuple[str, ...]) -> tuple[Dip, ...]:
    """Is each mean monotone along the numbers of tasks at every budget, and ability along the budgets at every number of tasks,
    or does noise not explain a dip? p-values are adjusted (Benjamini and Hochberg) over all that is asked here.

    Along compute a negative ability counts as 0: a model that knows nothing and grows surer of it loses no skill.
    """
    levels = [float(n) for n in results.levels]
    asked: list[Dip] = []
    for arm in results.study.lines:
        measures: list[tuple[Literal["ability", "memory"], str]] = [("ability", skill) for skill in skills]
        for measure, skill in [*measures, ("memory", "")]:
            cube = surface(results, measure, arm, skill)
            for j, c in enumerate(results.budgets):
                test = stats.monotone(levels, cube[:, j].T, DIRECTION[measure])
                asked += [Dip(arm, skill, "n_tasks", c, test)] if not np.isnan(cube[:, j]).all() else []
            for i, n in enumerate(results.levels if measure == "ability" else ()):
                test = stats.monotone(results.budgets, np.maximum(cube[i], 0.0).T, "rising")
                asked += [Dip(arm, skill, "compute_flops", float(n), test)] if not np.isnan(cube[i]).all() else []
    adjusted = multiplicity.adjust([one.test.p_value for one in asked]).claims
    return tuple(
        one._replace(test=one.test._replace(p_value=claim.adjusted_p))
        for one, claim in zip(asked, adjusted, strict=True)
    )


# Along compute ------------------------------------------------------------------------------------------------------


class ToSkill(NamedTuple):
    """From how much compute on the headline skill is there, at one number of tasks."""

    boundary: stats.Boundary
    """In training FLOPs, along the evaluations of the largest budget's training run; where the model's size follows the budget,
    over the budgets."""
    curve: survival.KaplanMeier | None
    """Kaplan-Meier: share of replicates that have the skill by then; None where nothing was measured."""
    successes: tuple[tuple[float, replicates.Success], ...]
    """(budget, k of n replicates at or above one half after its decay)."""
    p_value: float | None
    """Of what the boundary's verdict says."""
    judged: tuple[int, ...]
    """The replicates behind the boundary's brackets."""


def to_skill(
    results: Results, arm: str, skill: str, n_tasks: int, confidence: float, at_ends: bool = False
) -> ToSkill | None:
    """Compute-to-skill; None where ability was never defined.

    A replicate whose training run diverged or failed is not there from then on; one that is still under way is not
    judged beyond its last look, and not at all where it has none. `at_ends`: by the ends of budgets alone, which is all there
    is where the model's size follows the budget; each is a training run of its own then, and is lost by itself; a replicate
    counts once all of its budgets have ended.
    """
    at_ends = at_ends or results.study.grows(arm)
    key = ("looks", arm, skill, str(n_tasks), str(at_ends))
    seen = results.once(key, lambda: (_at_ends if at_ends else _along)(results, arm, skill, n_tasks))
    if seen is None:
        return None
    boundary = stats.boundary(seen.flops, seen.values, "rising", confidence)
    p_value = boundary_p(seen.values, boundary.verdict, "rising")
    curve = survival.kaplan_meier(*seen.onsets, seen.flops, confidence)
    return ToSkill(boundary, curve, seen.successes, p_value, seen.judged)


class _Looks(NamedTuple):
    """What compute-to-skill is read from, at whatever confidence."""

    flops: list[float]
    values: np.ndarray  # (replicates that can be judged, looks)
    onsets: tuple[np.ndarray, np.ndarray]
    """Of all replicates, for the Kaplan-Meier curve."""
    successes: tuple[tuple[float, replicates.Success], ...]
    judged: tuple[int, ...]
    """The replicates that `values` are of."""


def _at_ends(results: Results, arm: str, skill: str, n_tasks: int) -> _Looks | None:
    level, looks = results.levels.index(n_tasks), results.study.ends(arm)
    cube, open_trials = counted(results, "ability", arm, skill)
    rows = np.flatnonzero(~open_trials[level].any(axis=0))  # a larger budget says nothing of one that has yet to run
    counting = cube[level].T[rows]
    if not np.isfinite(counting).any():
        return None
    onsets = survival.onsets(looks, counting, np.zeros(len(counting), bool))
    return _Looks(looks, counting, onsets, _successes(results, arm, skill, level), tuple(rows.tolist()))


def _along(results: Results, arm: str, skill: str, n_tasks: int) -> _Looks | None:
    flops, values = results.along("ability", arm, skill, split_of(results, skill), n_tasks)
    if not np.isfinite(values).any():
        return None
    level = results.levels.index(n_tasks)
    lost = results.ended(arm, ("diverged", "failed"))[level].any(axis=0)
    waiting = counted(results, "ability", arm, skill)[1][level].any(axis=0)
    onsets = survival.onsets(flops, values, lost)
    looked = np.array([flops[~np.isnan(line)].max(initial=0.0) for line in values])
    after = flops > looked[:, None]  # (replicates, looks)
    values = np.where(after & lost[:, None], -1.0, values)
    counting, rows = settled(values, after & np.isnan(values) & waiting[:, None])
    return _Looks(flops.tolist(), counting, onsets, _successes(results, arm, skill, level), tuple(rows.tolist()))


def _successes(results: Results, arm: str, skill: str, level: int) -> tuple[tuple[float, replicates.Success], ...]:
    values, lost = surface(results, "ability", arm, skill)[level], results.ended(arm, ("diverged", "failed"))[level]
    return tuple(
        (c, cast(replicates.Success, replicates.success(line, stats.HALF, gone)))
        for c, line, gone in zip(results.budgets, values, lost, strict=True)
        if not np.isnan(line).all()
    )


# Arms ---------------------------------------------------------------------------------------------------------------


class Overtaking(NamedTuple):
    """One arm against another along compute, at one number of tasks, on the headline skill's ability."""

    first: str
    second: str
    n_tasks: int
    result: stats.Crossover


def crossovers(results: Results, skill: str, confidence: Confidence) -> list[Overtaking]:
    """Every pair of arms at every number of tasks; the order in which one is seen to overtake, if either is."""
    found = []
    for a, b in results.study.comparable:
        for i, n in enumerate(results.levels):
            first, second = (surface(results, "ability", arm, skill)[i].T for arm in (a, b))
            level = confidence(claim_of_arms(a, b, skill, n))
            there = stats.crossover(results.budgets, first, second, level)
            back = stats.crossover(results.budgets, second, first, level)
            reverse = back.verdict == "crosses" and there.verdict != "crosses"
            found.append(Overtaking(b, a, n, back) if reverse else Overtaking(a, b, n, there))
    return found


class Multiplier(NamedTuple):
    """How much more compute than `first` the arm `second` needs until the headline skill is there, at one number of tasks."""

    first: str
    second: str
    n_tasks: int
    ratio: stats.Drift
    """In doublings: 2 is four times the compute, negative is less. Per replicate, paired; an end is open where one is censored."""


def multipliers(
    results: Results, skill: str, told: dict[tuple[str, int], ToSkill], confidence: Confidence
) -> list[Multiplier]:
    """Every pair of arms at every number of tasks, by the replicates that can be judged of both; compute to skill against compute to
    skill.

    Where the size of one follows the budget, both are read at the ends of budgets: like against like.
    """
    found = []
    for a, b in results.study.comparable:
        at_ends = results.study.grows(a) != results.study.grows(b)
        for n in results.levels:
            pair = [
                to_skill(results, arm, skill, n, 0.95, at_ends=True) if at_ends else told.get((arm, n))
                for arm in (a, b)
            ]
            of = [dict(zip(one.judged, one.boundary.brackets, strict=True)) if one else {} for one in pair]
            both = sorted(of[0].keys() & of[1].keys())
            if not both:
                continue
            rows = [[brackets[r] for r in both] for brackets in of]
            level = confidence(claim_of_arms(a, b, skill, n, "multiplier"))
            found.append(Multiplier(a, b, n, stats.drift([1.0, 2.0], rows, level)))
    return found


# Breaks -------------------------------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """One line through the surface: a skill along one axis, the other held fixed."""

    arm: str
    skill: str
    axis: Axis
    """Along which the skill is followed."""
    fixed: float
    """Where the other axis stands."""
    result: breaks.Emergence


_METRICS = ("loss_nats", "brier", "probability", "accuracy", "exact_match", "predicted_exact_match")


def cuts(results: Results, skills: tuple[str, ...]) -> list[Cut]:
    """Every skill along the numbers of tasks at each budget, and along compute at each number of tasks.

    Along compute the training run is read at its constant rate: a decay at the end would look like a break.
    """
    found = []
    for arm in results.study.lines:
        for skill in skills:
            split = split_of(results, skill)
            if (arm, skill, split) not in results.groups():
                continue
            cubes = {m: results.cube(m, arm, skill, split) for m in _METRICS}
            for j, c in enumerate(results.budgets):
                lines = {m: cube[:, j].T for m, cube in cubes.items()}
                found.append(Cut(arm, skill, "n_tasks", c, _emergence(np.array(results.levels, float), lines)))
            for n in results.levels:
                runs = {m: results.along(m, arm, skill, split, n, decayed=False) for m in _METRICS}
                scale = max((flops for flops, _ in runs.values()), key=len)
                lines = {m: _on(scale, *run) for m, run in runs.items()}
                found.append(Cut(arm, skill, "compute_flops", float(n), _emergence(scale, lines)))
    return found


def _on(scale: np.ndarray, flops: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (R, P) at some of the scale's places, spread over all of them."""
    table = np.full((len(values), len(scale)), np.nan)
    table[:, np.searchsorted(scale, flops)] = values
    return table


def _emergence(scale: np.ndarray, lines: dict[str, np.ndarray]) -> breaks.Emergence:
    optional = {m: lines[m] if np.isfinite(lines[m]).any() else None for m in ("exact_match", "predicted_exact_match")}
    return breaks.emergence(
        np.log(scale) if len(scale) else np.array([]),
        loss=lines["loss_nats"],
        brier=lines["brier"],
        expected_accuracy=lines["probability"],
        accuracy=lines["accuracy"],
        exact_match=optional["exact_match"],
        predicted_exact_match=optional["predicted_exact_match"],
    )


# Replicates ---------------------------------------------------------------------------------------------------------


class NoiseRow(NamedTuple):
    """How much replicates of one skill differ at the largest budget, and how many a comparison would need."""

    arm: str
    skill: str
    n_tasks: tuple[int, ...]
    """Where they differ most among the numbers of tasks at which the mean is at least half its largest: one, or several that
    are not told apart and are pooled."""
    noise: replicates.Noise
    """`replicates.noisiest`."""
    needed: dict[float, tuple[replicates.Needed | None, ...]]
    """Relative difference -> replicates an arm, and those for the low and the high end of the cv's interval."""


DIFFERENCES = (0.01, 0.05, 0.2)


def noise_table(results: Results, skills: tuple[str, ...]) -> list[NoiseRow]:
    """Of every skill's accuracy the noisiest cells at the largest budget that has them, where there is something to compare."""
    rows = []
    for arm in results.study.lines:
        for skill in skills:
            cube = results.cube("accuracy", arm, skill, split_of(results, skill))
            for j in reversed(range(len(results.budgets))):
                row = _noisiest(results, arm, skill, cube[:, j])
                if row is not None:
                    rows.append(row)
                    break
    return rows


def _noisiest(results: Results, arm: str, skill: str, lines: np.ndarray) -> NoiseRow | None:
    measured = [(n, line) for n, line in zip(results.levels, lines, strict=True) if not np.isnan(line).all()]
    top = max((float(np.nanmean(line)) for _, line in measured), default=0.0)
    comparable = [(n, line.tolist()) for n, line in measured if np.nanmean(line) >= top / 2]
    found = replicates.noisiest([line for _, line in comparable])
    if found is None:
        return None
    ends = (found.noise.cv, found.noise.cv_low, found.noise.cv_high)
    needed = {d: tuple(replicates.replicates_needed(cv, d) for cv in ends) for d in DIFFERENCES}
    return NoiseRow(arm, skill, tuple(comparable[i][0] for i in found.cells), found.noise, needed)


class Midpoint(NamedTuple):
    """The cell whose mean ability is nearest one half: one kind of replicates there, or two?"""

    arm: str
    n_tasks: int
    compute_flops: float
    mean: float
    values: tuple[float, ...]
    kinds: replicates.Bimodality
    success: replicates.Success
    """Its interval is corrected for the choice."""
    chosen_from: int
    """Cells with a value."""


NEAR = 0.35
"""A cell further from one half than this is not at the onset: every replicate has the skill there, or none (assumed)."""


def midpoint(results: Results, arm: str, skill: str) -> Midpoint | None:
    """Replicates at the onset of the headline skill; None where no cell is near one half, or no replicate reaches it in any.
    The lost count as not there."""
    cube, lost = surface(results, "ability", arm, skill), results.ended(arm, ("diverged", "failed"))
    cells = cube.reshape(-1, results.n_replicates)
    found = replicates.nearest_success(cells, stats.HALF, lost.reshape(cells.shape))
    if found is None or not (cells >= stats.HALF).any():
        return None
    place, made = found
    values = cells[place][~np.isnan(cells[place])]
    mean = float(values.mean())
    if abs(mean - stats.HALF) > NEAR:
        return None
    i, j = np.unravel_index(place, cube.shape[:2])
    looked = int((~np.isnan(cells).all(axis=1)).sum())
    kinds = replicates.bimodality(values.tolist())
    return Midpoint(arm, results.levels[i], results.budgets[j], mean, tuple(values.tolist()), kinds, made, looked)


# Forecast and frontier ----------------------------------------------------------------------------------------------


def forecasts(results: Results, arm: str, skill: str, confidence: float) -> list[tuple[int, forecast.Forecast]]:
    """At each number of tasks: is the loss at the largest budget told by what came before a quarter of it?"""
    split = split_of(results, skill)
    found = []
    for n in results.levels:
        flops, loss = results.along("loss_nats", arm, skill, split, n, decayed=False)
        if len(flops) and np.isfinite(loss).any():
            span, floor = _references(results, arm, skill, split, n)
            found.append((n, forecast.forecast(flops, loss, span, confidence=confidence, floor=floor)))
    return found


def _references(results: Results, arm: str, skill: str, split: str, n_tasks: int) -> tuple[float | None, float | None]:
    """Nats from knowing nothing to the general rule, and the least loss a model can have; None without references.

    An interval as wide as the first says nothing. The second is the exact generaliser's on tasks never seen; on seen
    ones a list of them may be better.
    """

    def mean(name: str) -> float | None:
        values = results.along(f"{name}_loss_nats", arm, skill, split, n_tasks)[1]
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    know_nothing, rule, listed = (
        mean("uniform"),
        mean("generalizer"),
        None if split == "held_out" else mean("memorizer"),
    )
    span = None if know_nothing is None or rule is None or know_nothing <= rule else know_nothing - rule
    return span, rule if listed is None or rule is None else min(rule, listed)


class Sized(NamedTuple):
    """Trials of an arm at the largest number of tasks, over all its variants; arrays of one length."""

    n_parameters: np.ndarray
    n_tokens: np.ndarray
    loss_nats: np.ndarray
    compute_flops: np.ndarray
    replicates: np.ndarray
    trunks: np.ndarray
    """Trials along one training run share their noise."""


def sized(results: Results, arm: str, skill: str) -> Sized:
    """The trials of an arm (`axes.arm`) by the size of their model."""
    study, parts = results.study, []
    for k, (line, (of_arm, _)) in enumerate(study.lines.items()):
        if of_arm != arm:
            continue
        loss = results.cube("loss_nats", line, skill, split_of(results, skill))[-1]  # (compute, replicates)
        for i, (trunk, budgets) in enumerate(study.sizes(line)):
            of = loss[[results.budgets.index(c) for c in budgets]]
            length = cast(Family, trunk.family).length(arm)
            compute, replicate = np.meshgrid(budgets, np.arange(loss.shape[1]), indexing="ij")
            size = np.full(of.size, float(budget.n_parameters(*budget.shape_of(trunk))))
            tokens = compute.ravel() / budget.flops_per_step(trunk) * trunk.training.batch_size * length
            trunks = (k * len(results.budgets) + i) * results.n_replicates + replicate.ravel()
            parts.append((size, tokens, of.ravel(), compute.ravel(), replicate.ravel(), trunks))
    return Sized(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def isoflops(results: Results, arm: str, skill: str) -> frontier.Isoflops:
    """Which model size is best at which compute, over all variants of an arm, at the largest number of tasks."""
    of = sized(results, arm, skill)
    replicate = [int(r) for r in of.replicates]
    return frontier.isoflop(of.n_parameters, of.n_tokens, of.loss_nats, of.compute_flops, replicate)


def law(results: Results, arm: str, skill: str) -> tuple[frontier.Chinchilla, frontier.Optimum | None]:
    """The parametric law of loss in size and tokens over the same trials, and the best size that it gives for the largest budget."""
    of = sized(results, arm, skill)
    draws = stream("report", "frontier", arm)
    found = frontier.chinchilla(of.n_parameters, of.n_tokens, of.loss_nats, of.trunks.tolist(), draws)
    per = float(np.median(of.compute_flops / (of.n_parameters * of.n_tokens)))  # these models' own FLOPs, not 6 N D
    return found, frontier.optimum(found, results.budgets[-1], per)
