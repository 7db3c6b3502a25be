"""Tables of the verdicts: what was claimed, breaks, compute-to-skill, overtaking, replicates. Compute no statistic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from orchestrator import stats
from orchestrator.analysis import arms, claims, emergence
from orchestrator.analysis.answer import primary_sentence
from orchestrator.analysis.arms import Overtaking, multiplier_words, overtaking_words
from orchestrator.analysis.boundaries import dip_words, drift_words, slopes_words
from orchestrator.analysis.claims import claim_of, claim_of_arms
from orchestrator.analysis.emergence import Cut, break_words, emergence_words
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.generalists import claim_of_contest, contest_words
from orchestrator.analysis.onsets import ToSkill, flops_words
from orchestrator.analysis.sizes import frontier_words
from orchestrator.formatting import decimal, figure, number, percent, sure, times
from orchestrator.stats.minimums import MIN_SCALES
from orchestrator.study.pairs import measure_of

MAX_CLAIM_ROWS = 400
"""Rows of the table of claims on the page, the kept ones first; all are in claims.csv."""

NOT_CORRECTED = (
    "best sizes and their exponents, what more workers gain, expected values, smooth verdicts, and shares (k of n)"
)
"""What the report says outside the count of claims."""


def told(found: Findings) -> dict[str, Any]:
    """Everything that the sections of verdicts are given."""
    return {
        "primary": primary_sentence(found) if found.primary else "",
        "primary_verdict": found.primary.verdict if found.primary else "",
        "counted": claim_counts(found),
        "claims": claim_rows(found),
        "not_corrected": NOT_CORRECTED,
        "drifts": drift_rows(found),
        "dips": dip_rows(found),
        "to_skill": to_skill_rows(found),
        "onsets": onset_rows(found),
        "cuts": cut_rows(found),
        "cuts_undecided": undecided(found),
        "min_scales": MIN_SCALES,
        "some_grow": any(found.study.grows(line) for line in found.study.lines),
        "overtaking": overtaking_rows(found),
        "contests": contest_rows(found),
        "speeds": speed_rows(found),
        "contest_measure": "Exact match" if measure_of(found.study) == "exact_match" else "Ability",
        "noise": noise_rows(found),
        "midpoints": midpoint_rows(found),
        "frontier": frontiers(found),
    }


def speed_rows(found: Findings) -> list[dict[str, str]]:
    """What more workers gain, a row a line."""
    rows = []
    for one in found.speeds:
        mean, low, high, n = one.multiple or (None, None, None, 0)
        rows.append(
            {
                "line": one.line,
                "workers": str(one.workers),
                "speed": number(one.flops_per_second),
                "multiple": figure(mean) if mean is not None else "1 (what it is measured by)",
                "interval": f"{figure(low)} to {figure(high)}" if low is not None else "",
                "pairs": str(n) if n else "",
                "share": percent(mean * one.beside_workers / one.workers) if mean is not None else "",
            }
        )
    return rows


# Claims -------------------------------------------------------------------------------------------------------------


def claim_counts(found: Findings) -> dict[str, Any]:
    """How much was looked at, and how much of it was kept."""
    verdicts = Counter(claim.verdict for claim in found.claims)
    confidences = sorted({claim.confidence for claim in found.claims if claim.verdict == "kept"})
    return {
        "looked_at": verdicts["kept"] + verdicts["not kept"],
        "kept": verdicts["kept"],
        "untested": verdicts["untested"],
        "confidence": sure(confidences[-1]) if confidences else "",
        "false_share": percent(claims.FALSE_SHARE),
    }


def claim_rows(found: Findings) -> list[dict[str, str]]:
    """Every claim that could be tested, the surest first."""
    tested = [claim for claim in found.claims if claim.p_value is not None]
    tested.sort(key=lambda claim: (claim.verdict != "kept", claim.adjusted_p or 0.0))
    return [
        {
            "says": claim.says,
            "p": p_words(claim.p_value),
            "adjusted": p_words(claim.adjusted_p),
            "verdict": claim.verdict,
        }
        for claim in tested[:MAX_CLAIM_ROWS]
    ]


def adjusted_words(standing: claims.Standing) -> str:
    """The p-value that a claim is judged by among all others."""
    return standing.kept if standing.kept == "primary" else p_words(standing.adjusted_p)


def p_words(p: float | None) -> str:
    """A p-value as far as it means anything."""
    if p is None or math.isnan(p):
        return "—"
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 0.9995 else "1"


# Boundaries ---------------------------------------------------------------------------------------------------------


def drift_rows(found: Findings) -> list[dict[str, str]]:
    """How each boundary moves with compute; a row for those that say more than nothing."""
    if len(found.study.budgets) < 2:
        return []
    rows = []
    for (arm, skill), moved in found.drift_ability.items():
        name = claim_of("drift", "ability", arm, skill)
        rows.append(_drift_row(found, name, arm, skill, moved, "A"))
    for arm, moved in found.drift_memory.items():
        name = claim_of("drift", "memory", arm, "")
        rows.append(_drift_row(found, name, arm, "memory", moved, "M"))
    return rows


TOLD_SLOPES = 10
"""Replicates whose own drift is told."""


def _drift_row(found: Findings, claim: str, arm: str, skill: str, moved: stats.Drift, letter: str) -> dict[str, str]:
    told = len(moved.slopes) > 1 and not (moved.low is None and moved.high is None)  # one replicate gives no interval
    confidence = sure(found.confidence(claim)) if told else ""
    mark = claims.mark(found.standings[claim]) if moved.verdict in ("rises", "falls") else ""
    each = "" if moved.verdict == "missing" or len(moved.slopes) > TOLD_SLOPES else slopes_words(moved)
    words = {"words": drift_words(moved, letter), "each": each}
    return {"arm": arm, "skill": skill, **words, "confidence": confidence, "mark": mark}


def dip_rows(found: Findings) -> list[dict[str, str]]:
    """Where a mean goes against its direction by more than noise explains."""
    return [
        {
            "arm": dip.arm,
            "skill": dip.skill or "memory",
            "words": f"{dip_words(dip)} at {number(dip.fixed)} {'FLOPs' if dip.axis == 'n_tasks' else 'tasks'}",
            "p": p_words(dip.test.p_value),
        }
        for dip in found.dips
        if dip.is_shown
    ]


# Along compute ------------------------------------------------------------------------------------------------------


def to_skill_rows(found: Findings) -> list[dict[str, Any]]:
    """From how much compute on, at each number of tasks: the interval, and k of n at each budget."""
    headline = found.study.shown_skills[0]
    return _to_skill_rows(found, {(arm, headline, n): one for (arm, n), one in found.to_skill.items()})


def onset_rows(found: Findings) -> list[dict[str, Any]]:
    """The same for the other skills shown."""
    return _to_skill_rows(found, found.onsets)


def _to_skill_rows(found: Findings, told: dict[tuple[str, str, int], ToSkill]) -> list[dict[str, Any]]:
    """Rows with the same budgets, of those that any of them has come to."""
    budgets = sorted({c for one in told.values() for c, _ in one.successes})
    return [_to_skill_row(found, *place, one, budgets) for place, one in told.items()]


def _to_skill_row(
    found: Findings,
    arm: str,
    skill: str,
    n_tasks: int,
    one: ToSkill,
    budgets: list[float],
) -> dict[str, Any]:
    made = dict(one.successes)
    successes = [{"flops": number(c), "share": "—", "interval": ""} for c in budgets]
    for cell, c in zip(successes, budgets, strict=True):
        if (s := made.get(c)) is not None:
            cell |= {"share": f"{s.k} of {s.n}", "interval": f"{decimal(s.low)} to {decimal(s.high)}"}
    looks, claim = found.looks(arm, n_tasks, skill), claim_of("to", "skill", arm, skill, float(n_tasks))
    return {
        "arm": arm,
        "skill": skill,
        "n_tasks": number(n_tasks),
        "words": flops_words(one.boundary, looks),
        "mark": to_skill_mark(found, claim, one.boundary, looks),
        "confidence": sure(found.confidence(claim)) if _has_end(one.boundary, looks) else "—",
        "successes": successes,
    }


def to_skill_mark(found: Findings, claim: str, boundary: stats.Boundary, looks: Sequence[float]) -> str:
    """What stands beside its words: where they tell an end or a verdict, how that fared in the correction."""
    return claims.mark(found.standings[claim]) if boundary.is_told or _has_end(boundary, looks) else ""


def _has_end(boundary: stats.Boundary, looks: Sequence[float]) -> bool:
    """Do its words (`flops_words`) tell an end of its interval?"""
    if boundary.verdict not in ("crossed", "undecided") or len(boundary.brackets) < 2:
        return False
    low_told = boundary.low is not None and boundary.low >= min(looks)
    return low_told or (boundary.high is not None and boundary.high <= max(looks))


# Breaks -------------------------------------------------------------------------------------------------------------

_SCORES = {
    "loss": "loss",
    "brier": "Brier",
    "expected_accuracy": "probability",
    "accuracy": "accuracy",
    "exact_match": "exact match",
}


def _place(cut: Cut) -> str:
    return f"tasks, at {number(cut.fixed)} FLOPs" if cut.axis == "n_tasks" else f"compute, at {number(cut.fixed)} tasks"


def cut_rows(found: Findings) -> list[dict[str, Any]]:
    """The cuts that something can be said of; the undecided and the empty ones are told together."""
    rows = []
    known = found.standings
    for cut in found.cuts:
        if cut.result.verdict not in ("break", "smooth"):
            continue
        said = {_SCORES[name]: break_words(one) for name, one in cut.result.metrics.items()}
        rows.append(
            {
                "arm": cut.arm,
                "skill": cut.skill,
                "place": _place(cut),
                "verdict": cut.result.verdict,
                "mark": claims.mark(known[emergence.claim_of_cut(cut)]) if cut.result.verdict == "break" else "",
                "words": emergence_words(cut.result),
                "scores": [(name, said.get(name, "—")) for name in _SCORES.values()],
            }
        )
    return rows


def undecided(found: Findings) -> list[dict[str, str]]:
    """What is not decided, and what would settle it: one row for all cuts of which the same is said."""
    groups: dict[tuple[str, str], list[Cut]] = {}
    for cut in found.cuts:
        if cut.result.verdict in ("undecided", "missing"):
            groups.setdefault((cut.axis, emergence_words(cut.result)), []).append(cut)
    rows = []
    for (axis, words), cuts in groups.items():
        skills = list(dict.fromkeys(cut.skill for cut in cuts))
        along = "tasks" if axis == "n_tasks" else "compute"
        rows.append({"along": along, "n": times(len(cuts), "cut"), "skills": ", ".join(skills), "words": words})
    return rows


# Arms, replicates ---------------------------------------------------------------------------------------------------


NAMED = ("crosses", *arms.AHEAD)
"""Verdicts on two arms that name one: what is told of them has a claim behind it, and an interval's end in it."""


def overtaking_rows(found: Findings) -> list[dict[str, str]]:
    """Every pair of arms at every number of tasks."""
    known, skill = found.standings, found.study.shown_skills[0]
    rows = []
    for o in found.crossovers:
        name, met = claim_of_arms(o.first, o.second, skill, o.n_tasks), o.result
        ended = met.verdict in NAMED and (met.low is not None or met.high is not None)
        row = {
            "n_tasks": number(o.n_tasks),
            "pair": f"{o.second} against {o.first}",
            "words": overtaking_words(o),
            "mark": claims.mark(known[name]) if met.verdict in NAMED else "",
            "confidence": sure(found.confidence(name)) if ended else "—",
            "p": adjusted_words(known[name]),
        }
        rows.append(row | _ratio_cells(found, o))
    return rows


def _ratio_cells(found: Findings, o: Overtaking) -> dict[str, str]:
    """What the same pair needs of compute."""
    one = next((m for m in found.multipliers if (m.first, m.second, m.n_tasks) == _pair(o, found)), None)
    if one is None or (one.ratio.low is None and one.ratio.high is None):
        return {"ratio": "—", "ratio_mark": "", "ratio_confidence": "—", "ratio_p": "—"}
    name = claim_of_arms(o.first, o.second, found.study.shown_skills[0], o.n_tasks, "multiplier")
    standing = found.standings[name]
    return {
        "ratio": multiplier_words(one),
        "ratio_mark": claims.mark(standing) if one.ratio.verdict in ("rises", "falls") else "",
        "ratio_confidence": sure(found.confidence(name)) if len(one.ratio.slopes) > 1 else "—",
        "ratio_p": adjusted_words(standing),
    }


def contest_rows(found: Findings) -> list[dict[str, str]]:
    """Every generalist against its specialists, number of tasks by number of tasks."""
    known, rows = found.standings, []
    for met in found.contests:
        name = claim_of_contest(met.generalist, met.domain, met.n_tasks, met.against, met.specialist_flops)
        named = met.result.verdict in NAMED
        interval = named and (met.result.low is not None or met.result.high is not None)
        spent = f"{number(met.specialist_flops)} FLOPs" if met.specialist_flops else ""
        rows.append(
            {
                "n_tasks": number(met.n_tasks),
                "generalist": met.generalist,
                "domain": "mean of them" if met.pooled else met.domain,
                "rival": {"its budget": spent, "the same": "equal compute", "its best": "its best"}[met.against],
                "words": contest_words(met, found.study.budgets),
                "mark": claims.mark(known[name]) if named else "",
                "has": decimal(met.rival),
                "confidence": sure(found.confidence(name)) if interval else "—",
                "p": adjusted_words(known[name]),
            }
        )
    return rows


def _pair(o: Overtaking, found: Findings) -> tuple[str, str, int]:
    """A pair in the order of the study's lines."""
    order = list(found.study.lines)
    first, second = sorted((o.first, o.second), key=order.index)
    return first, second, o.n_tasks


def noise_rows(found: Findings) -> list[dict[str, Any]]:
    """How much replicates differ."""
    rows = []
    for row in found.noise:
        noise = row.noise
        ends = "—"
        if noise.cv is not None:
            high = "unbounded" if noise.cv_high is None else percent(noise.cv_high)
            ends = percent(noise.cv) + (f" ({percent(noise.cv_low)} to {high})" if noise.cv_low is not None else "")
        rows.append(
            {
                "arm": row.arm,
                "skill": row.skill,
                "n_tasks": _pooled_words(row.n_tasks),
                "mean": decimal(noise.mean),
                "sd": decimal(noise.sd),
                "n": noise.n,
                "cv": ends,
            }
        )
    return rows


def _pooled_words(n_tasks: tuple[int, ...]) -> str:
    """The one number of tasks, or from where to where several are pooled."""
    if len(n_tasks) == 1:
        return number(n_tasks[0])
    return f"{len(n_tasks)} pooled, {number(n_tasks[0])} to {number(n_tasks[-1])}"


def midpoint_rows(found: Findings) -> list[dict[str, str]]:
    """How many replicates have the skill at its onset, and how far apart they lie."""
    rows = []
    for arm, at in found.midpoints.items():
        made = at.success
        where = f"{number(at.n_tasks)} tasks and {number(at.compute_flops)} FLOPs"
        chosen = (
            f", corrected for the {number(at.chosen_from)} cells that it was chosen from" if at.chosen_from > 1 else ""
        )
        said = f"{made.k} of {times(made.n, 'replicate')} {'reaches' if made.n == 1 else 'reach'} one half (95 % interval of the share {decimal(made.low)} to {decimal(made.high)}{chosen})"
        if len(at.values) > 1:
            said += f". Their ability lies between {decimal(min(at.values))} and {decimal(max(at.values))}"
        rows.append({"arm": arm, "where": where, "words": said})
    return rows


# Frontier -----------------------------------------------------------------------------------------------------------


def frontiers(found: Findings) -> list[str]:
    """What can be said of the best model size, an entry an arm; the same is said once."""
    said = [frontier_words(one) for one in found.frontier.values()]
    return [words for words in dict.fromkeys(said) if words]
