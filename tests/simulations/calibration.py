"""Plays every simulated truth at length and prints a table: `make calibration`.

    python tests/simulations/calibration.py --only boundary --runs 5000

Imports each `tests/simulations/simulate_*.py` beside it and plays its `SCENARIOS`, one a process. The command ends with 1 if a
bound is missed by more than two standard errors of the simulation, an interval is wider than promised, a file cannot be
imported or a scenario raises. The tests play the same scenarios with `simulation.RUNS_IN_TESTS` runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported: one scenario a core, not one core a matrix

import argparse
import importlib
import math
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # `synthetic.py` is there; for `python tests/simulations/calibration.py`

from simulation import Outcome, Scenario  # noqa: E402

N_RUNS = 20_000


class Played(NamedTuple):
    """A scenario and its outcome."""

    scenario: Scenario
    outcome: Outcome | None
    """None: it raised `problem`."""
    seconds: float
    problem: str = ""

    @property
    def holds(self) -> bool:
        """True if the bounds hold within the error of the simulation."""
        return self.outcome is not None and self.scenario.holds(self.outcome)


def modules() -> list[str]:
    """Names of the files that list scenarios."""
    return sorted(path.stem for path in HERE.glob("simulate_*.py"))


def scenarios_of(module: str) -> tuple[Scenario, ...]:
    """The scenarios of a module. Raises any error of its import."""
    return tuple(importlib.import_module(module).SCENARIOS)


def play(module: str, index: int, n_runs: int) -> tuple[Outcome | None, float, str]:
    """One scenario, in a process of its own. Named by its place, because closures cannot be sent to another process."""
    start = time.perf_counter()
    try:
        return scenarios_of(module)[index].play(n_runs), time.perf_counter() - start, ""
    except Exception:  # shown in the table; the others go on
        return None, time.perf_counter() - start, traceback.format_exc()


def play_all(chosen: list[tuple[str, int, Scenario]], n_runs: int, n_processes: int) -> Iterator[Played]:
    """The chosen (module, place, scenario), as they come."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        waiting = {pool.submit(play, module, index, n_runs): scenario for module, index, scenario in chosen}
        for future in as_completed(waiting):
            yield Played(waiting[future], *future.result())


def row(played: Played, name_width: int) -> str:
    """One line of the table."""
    scenario, outcome = played.scenario, played.outcome
    share, width = "-", "-"
    if outcome is not None:
        share = f"{outcome.share:.4f} ± {outcome.error:.4f}"
        width = "-" if outcome.width_ratio is None else f"{outcome.width_ratio:.2f}"
        width = "open" if outcome.width_ratio == math.inf else width
    if scenario.widest is not None:
        width += f" <= {scenario.widest:g}"
    bound = f"{'<=' if scenario.kind == 'false claims' else '>='} {scenario.bound:.3f}"
    if scenario.kind != "false claims" and scenario.bound == 0:
        bound = "measured"
    verdict = "ok" if played.holds else "FAILS"
    return f"{scenario.name:<{name_width}}  {scenario.kind:<12}  {bound:<8}  {share:<15}  {width:>12}  {played.seconds:>7.1f}  {verdict}"


def main(arguments: list[str] | None = None) -> int:
    """Play, print, and return 1 if anything fails."""
    parser = argparse.ArgumentParser(description="Play every simulated truth at length.")
    parser.add_argument("--runs", type=int, default=N_RUNS, help=f"runs of each scenario (default {N_RUNS:,})")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of the name of a scenario or of its file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at once (default: one a core)")
    asked = parser.parse_args(arguments)
    if asked.runs < 1 or asked.processes < 1:
        parser.error("--runs and --processes want at least 1")

    broken, everything = 0, []
    for module in modules():
        try:
            everything += [(module, index, scenario) for index, scenario in enumerate(scenarios_of(module))]
        except Exception:
            broken += 1
            print(f"{module}.py cannot be imported:\n{traceback.format_exc()}", flush=True)
    names = Counter(scenario.name for _, _, scenario in everything)
    if twice := [name for name, count in names.items() if count > 1]:
        broken += len(twice)
        print(f"names are the streams' names, yet these are used twice: {', '.join(twice)}", flush=True)
    chosen = [one for one in everything if asked.only in one[0] or asked.only in one[2].name]
    if not chosen:
        print(f"no scenario has {asked.only!r} in its name; there are {len(everything)}")
        return 1

    name_width = max(len(scenario.name) for _, _, scenario in chosen)
    print(f"{len(chosen)} scenarios, {asked.runs:,} runs each, {asked.processes} at once")
    head = (
        f"{'scenario':<{name_width}}  {'kind':<12}  {'bound':<8}  {'share ± error':<15}  {'width*':>12}  {'seconds':>7}"
    )
    print(f"{head}\n{'-' * (len(head) + 7)}", flush=True)
    start, failed = time.perf_counter(), []
    for played in play_all(chosen, asked.runs, asked.processes):
        print(row(played, name_width), flush=True)
        if played.problem:
            print(played.problem, flush=True)
        if not played.holds:
            failed.append(played.scenario.name)
    print(
        "* median width of the interval over that of the brackets behind it; open: in half of the runs or more an end is"
    )
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{len(chosen) - len(failed)} of {len(chosen)} hold after {minutes:.1f} min; a bound may be missed by 2 errors"
    )
    for name in failed:
        print(f"FAILS: {name}")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
