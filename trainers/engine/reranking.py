"""New skill or re-ranking? What a trial that learned from a reward can do, against what its start model could already sample.

A reward may only sharpen: the start model had the answer among its samples, and now gives it first. It may compose: each token was
likely enough, and their sequence was never sampled. Or it may create: the answer holds a token that the start model would not write.
`orchestrator/analysis/reranking.py` draws that distinction from the numbers of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trainers import budget
from trainers.engine.engine import Engine
from trainers.engine.rows import VERDICTS
from trainers.spec import TrunkSpec
from trainers.tasks.probes import Questions


def against_start(
    engine: Engine, trunk: TrunkSpec, now: dict[str, Any], between: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """`{"reranking": ...}` with the lists of `_of_start` and `_of_end`; {} if the trunk does not ask.

    The lists of the start stay in `now`, the trunk's progress, for its later budgets.
    """
    if trunk.start is None or trunk.reward is None or not trunk.reward.samples_of_start:
        return {}
    family: Any = trunk.family
    asked = family.unseen_questions(trunk.request)
    if not asked.prompts:
        return {}
    now["of_start"] = now.get("of_start") or _of_start(engine, trunk, asked, between)
    return {"reranking": now["of_start"] | _of_end(engine, asked, between)}


def _of_start(engine: Engine, trunk: TrunkSpec, asked: Questions, between: Callable[[], None]) -> dict[str, Any]:
    """What the start model (`Engine.keep_start`) answers to N prompts, as lists of N numbers, equal on every rank.

    `greedy_right`: 1 if its likeliest answer is right. `sampled_right`: right ones of `n_samples` answers at temperature 1.
    `flops`: those charged for them, which are part of no budget.
    """
    assert trunk.reward is not None
    family: Any = trunk.family
    n_samples, right = trunk.reward.samples_of_start, VERDICTS.index("right")
    purpose = (family.name, "samples of the start", trunk.replicate)
    greedy = _written(engine, asked, True, between)[1]
    counts = np.zeros(len(asked.prompts), np.int64)
    at_once = max(1, 4096 // len(asked.prompts))  # samples of each prompt
    for first in range(0, n_samples, at_once):
        size = min(at_once, n_samples - first)
        repeated = asked.repeated(np.repeat(np.arange(len(asked.prompts)), size))
        samples = np.tile(np.arange(size), len(asked.prompts))
        sampled = engine.write(repeated, 1.0, (*purpose, first), samples, frozen=True, between=between)
        counts += sampled.verdicts[:, right].reshape(-1, size).sum(axis=1)
    flops = budget.start_flops(trunk, len(counts))
    lists = {"greedy_right": greedy.astype(int).tolist(), "sampled_right": counts.tolist()}
    return {"n_samples": n_samples, "flops": flops} | lists


def _of_end(engine: Engine, asked: Questions, between: Callable[[], None]) -> dict[str, list[Any]]:
    """What the model of now answers to N prompts, as lists of N numbers, equal on every rank.

    `right`: 1 if its likeliest answer is right. `log_p`: log-probability of that answer under the start model, in nats.
    `least_log_p`: that of its least likely token.
    """
    assert engine.start is not None
    tokens, right, n_tokens = _written(engine, asked, False, between)
    n, longest = len(asked.prompts), max(len(prompt) for prompt in asked.prompts)
    rows = np.zeros((n, longest + asked.n_new), np.int64)
    mask = np.zeros(rows.shape, bool)
    for i, (prompt, k) in enumerate(zip(asked.prompts, n_tokens.tolist(), strict=True)):
        rows[i, : len(prompt)] = prompt
        rows[i, len(prompt) : len(prompt) + k] = tokens[i, :k]
        mask[i, len(prompt) : len(prompt) + k] = True
    logs = np.zeros(rows.shape)
    with torch.no_grad(), engine.autocast():
        for here in np.split(np.arange(n), range(engine.micro_batch, n, engine.micro_batch)):
            between()
            given = torch.from_numpy(rows[here]).to(engine.place.device)
            at = torch.from_numpy(mask[here][:, 1:]).to(engine.place.device)
            scores = engine.start(given[:, :-1], at)  # (tokens, V)
            scores[:, list(asked.forbidden)] = -torch.inf
            chosen = scores.double().log_softmax(1).gather(1, given[:, 1:][at][:, None])[:, 0]
            logs[np.ix_(here, np.arange(1, rows.shape[1]))] = _spread(chosen.cpu().numpy(), mask[here][:, 1:])
    least = np.where(mask, logs, 0).min(axis=1)
    return {"right": right.astype(int).tolist(), "log_p": logs.sum(axis=1).tolist(), "least_log_p": least.tolist()}


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values (n,) at the set positions of a mask, 0 elsewhere."""
    out = np.zeros(mask.shape)
    out[mask] = values
    return out


def _written(
    engine: Engine, asked: Questions, frozen: bool, between: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy answers: tokens (N, n_new), right (N,) bool, numbers of tokens (N,)."""
    found = engine.write(asked, 0.0, (), np.zeros(len(asked.prompts), np.int64), frozen=frozen, between=between)
    return found.tokens, found.verdicts[:, VERDICTS.index("right")], found.n_tokens
