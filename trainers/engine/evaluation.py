"""Evaluation: a trunk's suite is read by the model and scored where the logits are; nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trainers.engine.engine import Engine
from trainers.fit.memory import EVALUATION_SEQUENCES
from trainers.fit.place import Place
from trainers.spec import TrunkSpec
from trainers.tasks import ItemSet
from trainers.tasks.probes import ANSWERS, Probe

SUITES_BYTES = 64 * 2**20
"""Suites that a process keeps for trunks to come: some forty of the quickstart's, of 1.5 MB each."""

_SUITES: dict[str, list[ItemSet]] = {}  # by what they depend on, the one used last at the end


def suite_of(trunk: TrunkSpec) -> list[ItemSet]:
    """A trunk's evaluation suite, kept for others that ask the same: variants of it, or its trials one by one."""
    family: Any = trunk.family
    asked = trunk.request._replace(batch_size=0)  # no suite depends on it
    key = repr((family, asked))
    suite = _SUITES.pop(key) if key in _SUITES else family.suite(asked)
    _SUITES[key] = suite
    while sum(items.n_bytes for kept in _SUITES.values() for items in kept) > SUITES_BYTES:
        del _SUITES[next(iter(_SUITES))]
    return suite


def chunk_of(place: Place) -> int:
    """Sequences that are read at once: the planned micro-batch. On a CPU, where none is planned for want of memory, always so many:
    other chunks may move a last bit, and a result is promised to the bit however a trial is placed."""
    return EVALUATION_SEQUENCES if place.device == "cpu" else place.micro_batch or EVALUATION_SEQUENCES


@torch.no_grad()
def evaluate(engine: Engine, suite: list[ItemSet], before: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """One row of raw sums per probe of the suite (`Probe.score`); changes neither the model nor any stream.

    Every rank reads and scores its part of the sequences, a chunk at a time. A few numbers a position leave the device
    (`Probe.answers`), summed at the end, so that sums do not depend on ranks and chunks. Log-probabilities leave it only for
    probes that compare distributions. `before` is called before each forward pass; what it raises gives the evaluation up.
    """
    chunk = chunk_of(engine.place)
    rows: list[dict[str, Any]] = []
    for items in suite:
        n = len(items.tokens)
        n_here = -(-n // engine.world)
        mine = (
            np.arange(n_here) + engine.rank * n_here
        ) % n  # the last rank may begin again: what is too much is cut off
        by_answers = all(probe.scores_answers for probe in items.probes)
        parts: list[list[torch.Tensor]] = []
        for here in np.split(mine, range(chunk, n_here, chunk)):
            with engine.autocast():
                logs = _read(engine.model, torch.from_numpy(items.tokens[here, :-1]), items.written, before)
            parts.append([_answers(probe, logs, here) for probe in items.probes] if by_answers else [logs])
        found = [engine.gathered(torch.cat(column))[:n].cpu().numpy() for column in zip(*parts, strict=True)]
        if by_answers:
            rows += [probe.score_answers(answers) for probe, answers in zip(items.probes, found, strict=True)]
        else:
            rows += [probe.score(found[0]) for probe in items.probes]  # of (N, T, V), or (N, T) numbers
    return rows


def _answers(probe: Probe, logs: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """`Probe.answers` where the log-probabilities are: (b, T, ANSWERS) float64."""
    if logs.device.type == "cpu":
        return torch.from_numpy(probe.answers(logs.numpy(), rows))
    return answers_on_device(probe, logs, rows)


def answers_on_device(probe: Probe, logs: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """The same by torch, for devices that numpy cannot reach: equal but for the last digits."""
    mask, target = (torch.from_numpy(part[rows]).to(logs.device) for part in (probe.mask, probe.target))
    scored, target = logs[mask].double(), target[mask]  # (n, V), (n,)
    log_p = scored.gather(1, target[:, None])[:, 0]
    p, right = log_p.exp(), (scored.argmax(1) == target).double()
    squares = scored.mul_(2).exp_().sum(1)
    found = torch.zeros(*mask.shape, ANSWERS, dtype=torch.float64, device=logs.device)
    found[mask] = torch.stack([right, log_p, p, squares - 2 * p + 1], dim=1)
    return found


def _read(
    model: torch.nn.Module, tokens: torch.Tensor, written: Sequence[int], before: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Log-probabilities (B, T, V) for tokens (B, T); at the positions `written` the model's likeliest token is what it
    goes on from, so that an early mistake is carried along as it would be in use. Numbers (B, T) for tokens (B, T, W)."""
    device = next(model.parameters()).device
    tokens = tokens.to(device, copy=True)
    for position in written:
        if position + 1 < tokens.shape[1]:
            before()
            tokens[:, position + 1] = model(tokens)[:, position].argmax(-1)
    before()
    out = model(tokens).float()
    return torch.Tensor(out[:, :, 0] if tokens.is_floating_point() else out.log_softmax(-1))
