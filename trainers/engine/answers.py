"""Evaluation of text: the model reads each item for its loss, and answers each prompt freely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trainers.engine.engine import Engine
from trainers.sampling import generate
from trainers.tasks import ItemSet
from trainers.tasks.probes import Questions

LOGITS_AT_ONCE = 2**26
"""Most logits of one reading, 256 MB: 32 items of 40 target tokens with a vocabulary of 50,000."""
EXAMPLES_PER_TASK, EXAMPLES, EXAMPLE_CHARACTERS = 3, 60, 400
"""Items of a task that are kept with the model's answers, of an item set in all, and the characters of each text."""

_SUMS = ("n_tokens", "n_hits", "log_p", "p", "brier")
"""Columns of `_read`: sums over the target tokens of one item."""


def read_and_answer(
    engine: Engine, items: ItemSet, mine: np.ndarray, chunk: int, before: Callable[[], None], detailed: bool
) -> dict[str, Any]:
    """One row of raw counts and sums for an item set of text, equal on every rank.

    `mine` are the items that this rank reads, `chunk` the items that it reads at once. Beside the sums of `Probe.score` the row
    has `n_answered` and `n_right` of the free answers, `n_written` tokens in all, `n_long` answers of more than half the tokens
    that are allowed, and `right_<name>` for each trivial predictor. `detailed` adds `tasks`, counts by task, and `examples`.
    """
    given, (probe,) = items.questions, items.probes
    assert given is not None
    n = len(items.tokens)
    order = mine[np.argsort([len(given.prompts[i]) for i in mine], kind="stable")]  # neighbours are alike in length
    sums = np.zeros((n, len(_SUMS)))
    written, n_written, ended = np.zeros((n, given.n_new), np.int64), np.zeros(n, np.int64), np.zeros(n, bool)
    for here in np.split(order, range(chunk, len(order), chunk)):
        with engine.autocast():
            sums[here] = _read(engine, items, here, before)
            prompts, in_step = [given.prompts[i] for i in here], engine.place.zero_stage == 3 and engine.world > 1
            answers = generate(
                engine.model,
                prompts,
                given.n_new,
                given.end,
                forbidden=given.forbidden,
                before=before,
                all_passes=in_step,
            )
        written[here], n_written[here], ended[here] = answers.tokens, answers.n_tokens, answers.ended
    if engine.world > 1:
        parts = [torch.from_numpy(part[mine]).to(engine.place.device) for part in (sums, written, n_written, ended)]
        sums, written, n_written, ended = (engine.gathered(part)[:n].cpu().numpy() for part in parts)
    texts, answered, right = given.judged([row[:k] for row, k in zip(written, n_written, strict=True)], ended, before)
    totals = dict(zip(_SUMS, sums.sum(axis=0).tolist(), strict=True))
    finite = bool(np.isfinite(sums).all())
    row: dict[str, Any] = {"skill": probe.skill, "split": probe.split, "n": int(totals["n_tokens"])}
    row |= {"n_correct": int(totals["n_hits"]) if finite else None}
    row |= {name: totals[of] if finite else None for name, of in (("p_correct", "p"), ("brier", "brier"))}
    row |= {"nll_nats": -totals["log_p"] if finite else None, "n_sequences": n}
    exact = sums[:, _SUMS.index("n_hits")] == sums[:, _SUMS.index("n_tokens")]
    row |= {"n_exact": int(exact.sum()) if finite else None}
    row |= {"p_exact": float(np.exp(sums[:, _SUMS.index("log_p")]).sum()) if finite else None}
    row |= {"n_answered": int(answered.sum()), "n_right": int(right.sum())}
    row |= {"n_written": int(n_written.sum()), "n_long": int((2 * n_written > given.n_new).sum())}
    row |= {f"right_{name}": int(hits.sum()) for name, hits in given.floors.items()}
    if detailed:
        row |= {"tasks": _by_task(given, sums, answered, right)}
        row |= {"examples": _examples(given.tasks, given.texts, texts, answered, right)}
    return row


def with_train_items(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with the loss on training items beside that on new items: memory compares the two."""
    of_split = {row["split"]: row for row in rows if "n_right" in row}
    if {"train_items", "seen"} <= of_split.keys():
        trained = of_split["train_items"]
        of_split["seen"] |= {"n_train_tokens": trained["n"], "nll_train_items": trained["nll_nats"]}
    return rows


def _read(engine: Engine, items: ItemSet, here: np.ndarray, before: Callable[[], None]) -> np.ndarray:
    """The sums of `_SUMS` of the items numbered `here`, (b, 5). Only logits of target tokens are computed."""
    (probe,), given = items.probes, items.questions
    assert given is not None
    vocab_size = int(engine.model.unembed.out_features)
    per_item = probe.mask.sum(axis=1)  # of all items, so that all ranks read as often
    found = np.zeros((len(here), len(_SUMS)))
    n_here = max(1, int(LOGITS_AT_ONCE // (max(1, per_item.max()) * vocab_size)))
    for begin in range(0, len(here), n_here):
        rows = here[begin : begin + n_here]
        width = int(np.flatnonzero(probe.mask[rows].any(axis=0))[-1]) + 1
        device = engine.place.device
        tokens = torch.from_numpy(items.tokens[rows, :width]).to(device)
        mask = torch.from_numpy(probe.mask[rows, :width]).to(device)
        before()
        scores = engine.model(tokens, mask).float()  # (k, V)
        if engine.trunk.reward is not None and given.forbidden:  # nothing was learned of ids that are never sampled
            scores = scores.index_fill(1, tokens.new_tensor(given.forbidden), float("-inf"))
        logs = scores.log_softmax(-1).double()
        target = torch.from_numpy(probe.target[rows, :width]).to(device)[mask]
        found_here = token_scores(logs, target)
        columns = torch.cat([torch.ones_like(found_here[:, :1]), found_here], dim=1)  # (k, 5)
        sums = torch.zeros(len(rows), len(_SUMS), dtype=torch.float64, device=device)
        sums.index_add_(0, mask.nonzero()[:, 0], columns)
        found[begin : begin + len(rows)] = sums.cpu().numpy()
    return found


def token_scores(logs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`Probe.answers` of n tokens: log-probabilities (n, V) float64, which are overwritten, and right ids (n,) -> (n, 4)."""
    log_p = logs.gather(1, target[:, None])[:, 0]
    p, right = log_p.exp(), (logs.argmax(1) == target).double()
    squares = logs.mul_(2).exp_().sum(1)
    return torch.stack([right, log_p, p, squares - 2 * p + 1], dim=1)


def _by_task(given: Questions, sums: np.ndarray, answered: np.ndarray, right: np.ndarray) -> dict[str, list[Any]]:
    """Counts and sums of each task, as columns with an entry per task."""
    names, first, which = np.unique(np.array(given.tasks, object), return_index=True, return_inverse=True)

    def total(values: np.ndarray) -> list[Any]:
        return np.bincount(which, values, len(names)).tolist()

    return {
        "task": names.tolist(),
        "cluster": [given.clusters[i] for i in first.tolist()],
        "n_sequences": [int(n) for n in total(np.ones(len(given.tasks)))],
        "n_answered": [int(n) for n in total(answered)],
        "n_right": [int(n) for n in total(right)],
        "n": [int(n) for n in total(sums[:, 0])],
        "nll_nats": [float(-s) if np.isfinite(s) else None for s in total(sums[:, 2])],
    }


def _examples(
    tasks: list[str], asked: list[tuple[str, str]], texts: list[str], answered: np.ndarray, right: np.ndarray
) -> list[dict[str, Any]]:
    """The first items of each task with the model's answers, at most EXAMPLES of them."""
    count: dict[str, int] = {}
    found: list[dict[str, Any]] = []
    for task, (prompt, target), text, is_answer, is_right in zip(tasks, asked, texts, answered, right, strict=True):
        count[task] = count.get(task, 0) + 1
        if count[task] <= EXAMPLES_PER_TASK and len(found) < EXAMPLES:
            shown = {"prompt": prompt, "target": target, "answer": text}
            found.append({"task": task} | {k: v[:EXAMPLE_CHARACTERS] for k, v in shown.items()})
            found[-1] |= {"answered": bool(is_answer), "right": bool(is_right)}
    return found
