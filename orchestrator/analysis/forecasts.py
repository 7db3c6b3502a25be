"""The loss at the largest budget, forecast from the training before a quarter of it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from orchestrator.analysis.results import Results, split_of
from orchestrator.stats import forecast
from orchestrator.stats.forecast import Forecast


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


def forecast_words(found: Forecast) -> str:
    """A forecast and its score, as a sentence without its full stop."""
    if found.predicted is None:
        return f"no forecast: {found.reason}"
    interval = "" if found.low is None or found.high is None else f" ({found.low:.3g} to {found.high:.3g})"
    vague = ", an interval too wide to say anything" if found.verdict == "uninformative" else ""
    vague += "" if found.floor is not None else ", if the fall goes on to the top"
    told = f"{found.predicted:.3g} nats{interval}{vague}"
    if found.measured is None:
        return f"{told}; the top is not there yet"
    hit = {True: "inside the interval", False: "outside the interval", None: "no interval to hold it"}[found.covers]
    return f"{told}; measured {found.measured:.3g}, {hit}"


def forecast_score_words(found: Iterable[Forecast]) -> str | None:
    """How several forecasts fared, as sentences; None below two that could be scored."""
    scored = [one for one in found if one.log_error is not None]
    if len(scored) < 2:
        return None
    claims = [one for one in scored if one.covers is not None]
    vague = sum(one.verdict == "uninformative" for one in claims)
    wide = f" ({vague} of them too wide to say anything)" if vague else ""
    held = f"The measured loss lay inside {sum(bool(one.covers) for one in claims)} of {len(claims)} intervals{wide}. "
    nearer: dict[str, list[bool]] = {}
    for one in scored:
        for rival in one.rivals:
            if rival.log_error is not None and one.log_error is not None:
                nearer.setdefault(rival.name, []).append(abs(one.log_error) < abs(rival.log_error))
    than = ", ".join(f"the {name}'s in {sum(won)} of {len(won)}" for name, won in nearer.items())
    return f"{held if claims else ''}The forecast's log error was smaller than {than}."
