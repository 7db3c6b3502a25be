"""What a study found, as two tables for spreadsheets and one page of Markdown for MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator import stats
from orchestrator.analysis import arms, claims, emergence
from orchestrator.analysis.answer import confidence_words, paragraph, primary_sentence
from orchestrator.analysis.arms import fewer_words, multiplier_words, overtaking_words, times_of
from orchestrator.analysis.boundaries import ability_words, drift_words, interval_words, memory_words, within
from orchestrator.analysis.claims import claim_of, claim_of_arms, words_of_arm
from orchestrator.analysis.emergence import emergence_words
from orchestrator.analysis.expected import verdict_line
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.generalists import claim_of_contest, contest_words
from orchestrator.analysis.onsets import flops_words
from orchestrator.formatting import number, percent

COLUMNS = (
    *("quantity", "arm", "skill", "n_tasks", "compute_flops", "low", "high", "confidence", "p", "adjusted_p", "kept"),
    *("verdict", "words"),
)
"""Columns of the summary table: an interval's ends are empty where it is open, or where there is none. `kept` is yes, no, primary,
untested (nothing defines the claim, or too few replicates), or empty where the words rest on no claim that is counted; p-values are those of the claim."""
CLAIM_COLUMNS = ("claim", "says", "p", "adjusted_p", "verdict", "confidence")
"""Columns of the table of claims."""

Row = tuple[str | None, dict[str, Any]]
"""The claim that the words rest on, if any, and the columns that are not empty."""


def rows(found: Findings) -> list[dict[str, Any]]:
    """What was found, a row each: the primary claim, boundaries, drifts, compute-to-skill, pairs of arms, breaks, expected values.
    The claims themselves have a table of their own, `claim_rows`."""
    parts = (_primary, _boundaries, _drifts, _to_skill, _fewer, _crossovers, _multipliers, _contests, _cuts, _expected)
    return [_filled(found, row) for part in parts for row in part(found)]


def claim_rows(found: Findings) -> list[dict[str, Any]]:
    """Every claim that was counted besides the primary one, the untested included."""
    return [
        dict(zip(CLAIM_COLUMNS, (c.name, c.says, c.p_value, c.adjusted_p, c.verdict, c.confidence), strict=True))
        for c in found.claims
    ]


def _filled(found: Findings, row: Row) -> dict[str, Any]:
    """A row with all its columns: where its claim stands, and its interval's confidence where it has one."""
    name, values = row
    standing = claims.Standing() if name is None else found.standings[name]
    ended = values.get("low") is not None or values.get("high") is not None
    one = found.study.axes.replicates < 2  # gives a bracket and no interval
    confidence = found.confidence(name or "") if ended and not one else None  # what is no claim is shown at 95 %
    return dict.fromkeys(COLUMNS) | standing._asdict() | {"confidence": confidence} | values


def _primary(found: Findings) -> Iterator[Row]:
    if found.primary is None:
        return
    claim = found.primary.claim
    arm = claim.arm or next(iter(found.study.lines))
    skill = claim.skill or ("" if claim.what.endswith("memory") else found.study.shown_skills[0])
    where = {"arm": arm, "skill": skill, "n_tasks": claim.n_tasks, "compute_flops": claim.compute_flops}
    ends = {"low": found.primary.low, "high": found.primary.high, "kept": "primary"}
    words = {"verdict": found.primary.verdict, "words": primary_sentence(found)}
    yield None, {"quantity": "primary claim"} | where | ends | words


def _boundaries(found: Findings) -> Iterator[Row]:
    levels = [float(n) for n in found.results.levels]
    for (arm, skill), whole in found.k_ability.items():
        for c, b in whole:
            where = {"quantity": "K_A", "arm": arm, "skill": skill, "compute_flops": c}
            yield claim_of("k", "ability", arm, skill, c), where | _told_within(b, levels, ability_words(b, levels))
    for arm, whole in found.k_memory.items():
        for c, b in whole:
            where = {"quantity": "K_M", "arm": arm, "compute_flops": c}
            yield claim_of("k", "memory", arm, "", c), where | _told_within(b, levels, memory_words(b, levels))


def _told_within(boundary: stats.Boundary, levels: Sequence[float], words: str) -> dict[str, Any]:
    """Open where it ends beyond what was looked at, as in the words and in the figures."""
    low, high = within(boundary, levels)
    return {"low": low, "high": high, "verdict": boundary.verdict, "words": words}


def _told(result: stats.Drift | stats.Crossover, words: str) -> dict[str, Any]:
    return {"low": result.low, "high": result.high, "verdict": result.verdict, "words": words}


def _drifts(found: Findings) -> Iterator[Row]:
    for (arm, skill), d in found.drift_ability.items():
        where = {"quantity": "drift of K_A", "arm": arm, "skill": skill}
        yield claim_of("drift", "ability", arm, skill), where | _told(d, drift_words(d, "A"))
    for arm, d in found.drift_memory.items():
        where = {"quantity": "drift of K_M", "arm": arm}
        yield claim_of("drift", "memory", arm, ""), where | _told(d, drift_words(d, "M"))


def _to_skill(found: Findings) -> Iterator[Row]:
    headline = found.study.shown_skills[0]
    every = {(arm, headline, n): told for (arm, n), told in found.to_skill.items()} | found.onsets
    for (arm, skill, n), told in every.items():
        where = {"quantity": "compute to skill", "arm": arm, "skill": skill, "n_tasks": n}
        looks = found.looks(arm, n, skill)
        words = flops_words(told.boundary, looks)
        yield claim_of("to", "skill", arm, skill, float(n)), where | _told_within(told.boundary, looks, words)


def _fewer(found: Findings) -> Iterator[Row]:
    """How many times the tasks of the first arm the second needs."""
    skill = found.study.shown_skills[0]
    for one in arms.fewer_tasks(found.results, skill, found.confidence):
        if one.shift is not None:
            where = {"quantity": "task multiplier", "arm": one.second, "skill": skill}
            low, high = times_of(one.shift)
            verdict = one.shift.verdict if one.shown or one.shift.verdict == "missing" else "undecided"
            words = {"low": low, "high": high, "verdict": verdict, "words": fewer_words(one)}
            yield one.name, where | {"compute_flops": one.compute_flops} | words


def _crossovers(found: Findings) -> Iterator[Row]:
    headline = found.study.shown_skills[0]
    for o in found.crossovers:
        where = {"quantity": "crossover", "arm": o.second, "skill": headline, "n_tasks": o.n_tasks}
        yield claim_of_arms(o.first, o.second, headline, o.n_tasks), where | _told(o.result, overtaking_words(o))


def _multipliers(found: Findings) -> Iterator[Row]:
    headline = found.study.shown_skills[0]
    for m in found.multipliers:
        where = {"quantity": "compute multiplier", "arm": m.second, "skill": headline, "n_tasks": m.n_tasks}
        low, high = times_of(m.ratio)
        words = {"low": low, "high": high, "verdict": m.ratio.verdict, "words": multiplier_words(m)}
        yield claim_of_arms(m.first, m.second, headline, m.n_tasks, "multiplier"), where | words


def _contests(found: Findings) -> Iterator[Row]:
    for met in found.contests:
        where: dict[str, Any] = {
            "quantity": f"generalist against {met.against}",
            "arm": met.generalist,
            "skill": met.domain,
        }
        where |= {"n_tasks": met.n_tasks, "compute_flops": met.specialist_flops}
        low, high = met.multiples
        words = {"verdict": met.result.verdict, "words": contest_words(met, found.study.budgets)}
        name = claim_of_contest(met.generalist, met.domain, met.n_tasks, met.against, met.specialist_flops)
        yield name, where | {"low": low, "high": high} | words


def _cuts(found: Findings) -> Iterator[Row]:
    """Of the verdicts on a cut only a break is a claim that was counted."""
    for cut in found.cuts:
        where = {"quantity": f"emergence along {cut.axis}", "arm": cut.arm, "skill": cut.skill}
        place = {"compute_flops": cut.fixed} if cut.axis == "n_tasks" else {"n_tasks": int(cut.fixed)}
        words = {"verdict": cut.result.verdict, "words": emergence_words(cut.result)}
        yield emergence.claim_of_cut(cut) if cut.result.verdict == "break" else None, where | place | words


def _expected(found: Findings) -> Iterator[Row]:
    for v in found.verdicts:
        cell = v.expected.cell
        where: dict[str, Any] = {"quantity": f"expected {v.expected.what}", "arm": cell.arm, "skill": cell.skill}
        where |= {"n_tasks": cell.n_tasks, "compute_flops": cell.compute_flops}
        ends = {"low": v.measured.low, "high": v.measured.high} if v.measured else {}
        yield None, where | ends | {"verdict": v.verdict, "words": verdict_line(v)}


def _mark(boundary: stats.Boundary, standing: claims.Standing) -> str:
    words = claims.mark(standing) if boundary.is_told else ""
    return f" ({words})" if words else ""


MAX_QUESTION, MAX_DESCRIPTION = 600, 5000
"""Characters of a question and of the whole page that MLflow's notes take. The report has all of it."""
REST = "\n\n... The report among the artifacts has the rest."
_MARKUP = {ord(c): f"&#{ord(c)};" for c in "&<>[]()!*_`#|~\\:@"}


def as_markdown(text: str) -> str:
    """Foreign text as Markdown that shows it as it is: no image, link, HTML or heading of it comes alive.

    An entity never opens a structure. Nor does an address become a link without its colon, its @ or the dot after www.
    """
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split()).translate(_MARKUP).replace("www.", "www&#46;")


def _cut(text: str, limit: int, rest: str) -> str:
    return text if len(text) <= limit else text[: limit - len(rest)] + rest


def description(found: Findings) -> str:
    """The answer and both boundaries in Markdown, for a person who opens nothing but MLflow."""
    levels = [float(n) for n in found.results.levels]
    known = found.standings
    question = _cut(found.study.question.strip(), MAX_QUESTION, " ...")
    parts = [f"**{as_markdown(question)}**", paragraph(found)]
    for arm in found.study.lines:
        skill = found.study.shown_skills[0]
        pairs = zip(found.k_ability[(arm, skill)], found.k_memory[arm], strict=True)
        head = f"| training FLOPs{words_of_arm(found.results, arm)} | {skill} appears (K_A, tasks) | memory ends (K_M, tasks) |\n|---|---|---|"
        lines = []
        for (c, a), (_, m) in pairs:
            shown = [(a, claim_of("k", "ability", arm, skill, c)), (m, claim_of("k", "memory", arm, "", c))]
            cells = [
                interval_words(b, levels) + confidence_words(found, b, claim) + _mark(b, known[claim])
                for b, claim in shown
            ]
            lines.append(f"| {number(c)} | {' | '.join(cells)} |")
        parts.append("\n".join([head, *lines]))
    parts += [f"- {as_markdown(verdict_line(v))}" for v in found.verdicts]
    kept = sum(claim.verdict == "kept" for claim in found.claims)
    tested = sum(claim.verdict != "untested" for claim in found.claims)
    primary = "One primary claim" if found.primary else "No primary claim"
    parts.append(
        f"{primary}; {tested} other claims were tested, {kept} kept after correction (at most "
        f"{percent(claims.FALSE_SHARE)} of them expected to be false). Figures, tables and the report are among the artifacts."
    )
    page = "\n\n".join(parts)
    if len(page) <= MAX_DESCRIPTION:
        return page
    return page[: MAX_DESCRIPTION - len(REST)].rpartition("\n")[0] + REST  # a table ends with a whole row
