"""What is known of the data of studies of text, in words: counts, rows left out, the leak certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.formatting import number, times


class Data(NamedTuple):
    """What is known of the data of some conditions."""

    title: str
    facts: list[tuple[str, str]]
    leaks: list[str]
    """The sentences of the leak certificate."""
    examples: list[tuple[str, str]]
    """Pairs (held-out item, training item) that the certificate names."""


PARTS = {"train": "training", "held_out": "held out", "held_out_clusters": "in clusters held out whole"}
"""Parts of a table's tasks in words."""
SETS = {
    "train_items": "training items",
    "new_items": "new items of training tasks",
    "held_out": "of held-out tasks",
    "held_out_clusters": "of clusters held out whole",
}
"""Items of these parts in words."""
LEFT_OUT = {
    "n_repeats": "repeat an item of their task",
    "n_too_long": "are too long",
    "n_leaking": "stand in a held-out set, too",
}
"""Counts of `Facts` of rows that were left out -> why."""


def of_sessions(sessions: Sequence[Mapping[str, Any]]) -> list[Data]:
    """The data of a study from the last session that knew it; empty for families that make their tasks."""
    last: Sequence[Any] = next((session["data"] for session in reversed(sessions) if session.get("data")), [])
    return [_data(one["facts"], ", ".join(one["conditions"]) if len(last) > 1 else "") for one in last]


def _data(facts: Mapping[str, Any], title: str) -> Data:
    sets = (facts.get("certificate") or {}).get("sets") or {}
    pairs = [
        (e["held_out"], e["train"]) for of in sets.values() for kind in ("exact", "near") for e in of.get(kind) or ()
    ]
    return Data(title, data_words(facts), list(facts.get("leaks") or ()), pairs[:6])


def data_words(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, words) of the counts of a table: `Family.data_facts`."""

    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{number(n)} {PARTS.get(name, name.replace('_', ' '))}" for name, n in counts.items() if n)

    words = [
        ("Rows", f"{number(facts['n_rows'])}, {number(facts['n_items'])} items, {number(facts['n_tokens'])} tokens")
    ]
    words += [("Tasks", listed(facts["n_tasks"]))]
    if of := facts["n_clusters"] if any(facts["n_clusters"].values()) else {}:
        counts = (of["train"], of["held_out"], of["held_out_clusters"])
        words += [("Clusters", "{} to train, {} with held-out tasks, {} held out whole".format(*map(number, counts)))]
    held_out = [
        f"{name} {', '.join(map(repr, facts[key]))}{' ...' if len(facts[key]) < n else ''}"
        for key, name, n in (
            ("held_out_clusters", "clusters", facts["n_clusters"].get("held_out_clusters", 0)),
            ("held_out_tasks", "tasks of other clusters" if of else "tasks", facts["n_tasks"]["held_out"]),
        )
        if facts.get(key)
    ]
    words += [("Held out", "; ".join(held_out))] if held_out else []
    words += [("Items", ", ".join(f"{number(n)} {SETS[name]}" for name, n in facts["n_of_set"].items()))]
    out = [f"{number(facts[name])} {why}" for name, why in LEFT_OUT.items() if facts.get(name)]
    out += [f"{times(facts['n_without_items'], 'task')} without an item"] if facts.get("n_without_items") else []
    words += [("Left out", "; ".join(out) or "no row")]
    words += (
        [("One item", f"{times(facts['n_single'], 'training task')}, without new items")]
        if facts.get("n_single")
        else []
    )
    words += [("Columns not used", ", ".join(map(repr, facts["unread"])))] if facts.get("unread") else []
    if n := facts.get("n_two_targets"):
        words += [("Several targets", f"{times(n, 'prompt')} within a task, such as {facts['two_targets']}")]
    if n := facts.get("n_altered"):
        words += [("Tokenizer", f"gives back {times(n, 'target')} otherwise; {facts['altered']}")]
    return [*words, ("Longest item", f"{number(facts['longest'])} tokens")]
