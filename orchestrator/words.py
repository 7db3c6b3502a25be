"""Numbers and boundaries as people say them: the same words on the terminal, in MLflow and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from orchestrator import stats


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


def said_once(words: Sequence[tuple[str, float]]) -> str:
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
