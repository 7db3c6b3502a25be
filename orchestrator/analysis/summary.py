"""The findings of a study as a table for spreadsheets, and as one page of Markdown for MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from orchestrator.analysis import along
from orchestrator.analysis.answer import badge, more, sentence
from orchestrator.analysis.boundaries import interval_words
from orchestrator.analysis.finding import Finding, in_condition
from orchestrator.analysis.findings import Findings
from orchestrator.formatting import number

COLUMNS = (
    *("question", "condition", "skill", "n_tasks", "compute_flops", "against"),
    *("estimate", "low", "high", "confidence", "n", "p", "adjusted_p", "significance", "verdict", "words"),
)
"""Columns of summary.csv, as the fields of `Finding`. `low` and `high` are empty if open. `words`: the finding as a sentence."""

NUMBERS = ("n_tasks", "compute_flops", "estimate", "low", "high", "confidence", "n", "p", "adjusted_p")
"""The columns that hold numbers."""


def rows(found: Findings) -> list[dict[str, Any]]:
    """The rows of summary.csv, column -> value: the primary claim, then every finding."""
    first = [_primary(found)] if found.primary is not None else []
    return first + [_row(one) for one in found.findings]


def _primary(found: Findings) -> dict[str, Any]:
    """The row of the primary claim: its finding, with the claim's verdict and sentence."""
    assert found.primary is not None
    row = _row(found.primary.finding)
    said = {"verdict": found.primary.verdict, "words": found.primary.sentence, "significance": "primary"}
    return row | {"question": "primary claim"} | said


def _row(one: Finding) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in COLUMNS if name not in ("words", "confidence")}
    return values | {"confidence": one.confidence if one.has_interval else None, "words": one.sentence}


MAX_QUESTION, MAX_DESCRIPTION = 600, 5000
"""Most characters of the study's question, and of the whole description, in MLflow's notes. The report has the full text."""
REST = "\n\n... The report among the artifacts has the rest."
_MARKUP = {ord(c): f"&#{ord(c)};" for c in "&<>[]()!*_`#|~\\:@"}
_OF_OURS = {ord(c): f"&#{ord(c)};" for c in "&<>*_"}
"""Markup that a name in a sentence of ours may hold. MLflow's list of experiments shows the sentence with its entities."""


def as_markdown(text: str) -> str:
    """Text from a study file as Markdown that shows it literally: no image, link, HTML or heading takes effect.

    Every special character becomes an entity, and so does the dot after www. Without colon, @ and that dot no address is a link.
    """
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split()).translate(_MARKUP).replace("www.", "www&#46;")


def _cut(text: str, limit: int, rest: str) -> str:
    """The text, or its beginning with `rest` behind it if it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - len(rest)] + rest


def description(found: Findings, picture: str = "", links: Sequence[str] = ()) -> str:
    """The answer of a study in Markdown, for MLflow: the sentence, the primary claim, the surface, both boundaries.

    picture: address of the surface as an image. links: lines of Markdown to show below it. MLflow shows a line or two
    until the reader unfolds the description, so the sentence comes first.
    """
    answer, _, certainty = sentence(found).partition("; ")  # MLflow shows one line until it is unfolded
    parts = [part.translate(_OF_OURS) for part in (f"{answer.removesuffix('.')}.", certainty) if part]
    if found.primary is not None:
        verdict, words = badge(found)
        found_words = as_markdown(found.primary.finding.sentence)
        parts.append(
            f"**Primary claim: {verdict}.** Claimed before the run: {as_markdown(words)}. Found: {found_words}."
        )
    parts += [f"![{ALTERNATIVE}]({picture})"] if picture else []
    parts += links
    question = _cut(found.study.question.strip(), MAX_QUESTION, " ...")
    parts.append(f"**Question.** {as_markdown(question)}")
    parts += [as_markdown(one) for one in more(found)]
    skill = found.study.shown_skills[0]
    parts += [f"- {as_markdown(one.sentence)}" for one in found.of("along ", skill=skill) if one.answered]
    for condition in () if along.spans(found.study) else found.study.conditions:
        of = in_condition(found.results, condition)
        head = (
            f"| training FLOPs{of}&emsp; | {skill} appears at (tasks)&emsp; | memory ends at (tasks) |\n|---|---|---|"
        )
        pairs = zip(found.of("K_A", condition, skill), found.of("K_M", condition), strict=True)
        lines = [f"| {number(a.compute_flops or 0.0)} | {interval_words(a)} | {interval_words(m)} |" for a, m in pairs]
        parts.append("\n".join([head, *lines]))
    parts += [f"- {as_markdown(one.sentence)}" for one in found.of("expected ")]
    page = "\n\n".join(parts)
    if len(page) <= MAX_DESCRIPTION:
        return page
    return page[: MAX_DESCRIPTION - len(REST)].rpartition("\n")[0] + REST  # a table ends with a whole row


ALTERNATIVE = "Ability by number of tasks and compute"
"""Text in place of the picture in `description`."""


def metrics(found: Findings) -> dict[str, float]:
    """Metrics of the study's MLflow run: the ends of K_A (headline skill) and K_M at the largest budget, in tasks.

    Names are `K_A/low_tasks`, `K_M/high_tasks`, ...; with several conditions `K_A/<condition>/low_tasks`. An open end has
    no metric. A colon stands for characters that MLflow allows in no name: `K_A/next_token: share:0.25/low_tasks`.
    """
    values: dict[str, float] = {}
    for condition in found.study.conditions:
        of = "/" + re.sub(r"[^\w./ -]", ":", condition) if len(found.study.conditions) > 1 else ""
        for question, skill in (("K_A", found.study.shown_skills[0]), ("K_M", None)):
            for one in found.of(question, condition, skill, compute_flops=found.study.budgets[-1]):
                ends = {"low": one.low, "high": one.high} if one.verdict == "crossed" else {}
                values |= {f"{question}{of}/{end}_tasks": v for end, v in ends.items() if v is not None}
    return values
