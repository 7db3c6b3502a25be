"""Evaluation: the model reads the sequences of a trunk's suite, and its predictions are scored. It changes no weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trainers.engine.answers import read_and_answer, token_scores, with_train_items
from trainers.engine.engine import Engine
from trainers.fit.memory import EVALUATION_SEQUENCES
from trainers.fit.place import Place
from trainers.spec import TrunkSpec
from trainers.tasks import FamilyError, ItemSet
from trainers.tasks.probes import ANSWERS, Probe

SUITES_BYTES = 64 * 2**20
"""Most bytes of suites that a process caches for later trunks: about forty of the quickstart's, at 1.5 MB each."""

_SUITES: dict[str, list[ItemSet]] = {}  # by all that a suite depends on; the last used is at the end


def suite_of(trunk: TrunkSpec) -> list[ItemSet]:
    """A trunk's evaluation suite, cached. Trunks share a suite if their requests to the family differ in batch size alone.

    Raises FamilyError if a reference is not finite where it is scored.
    """
    family: Any = trunk.family
    request = trunk.request._replace(batch_size=0)  # no suite depends on it
    key = repr((family, request))
    suite = _SUITES.pop(key) if key in _SUITES else family.suite(request)
    for probe in (probe for items in suite for probe in items.probes):
        if wrong := probe.not_finite():
            raise FamilyError(f"{trunk.id}: family '{family.name}', skill '{probe.skill}' on {probe.split}: {wrong}")
    _SUITES[key] = suite
    while sum(items.n_bytes for cached in _SUITES.values() for items in cached) > SUITES_BYTES:
        del _SUITES[next(iter(_SUITES))]
    return suite


def chunk_of(place: Place) -> int:
    """Sequences that an evaluation reads at once. On a GPU: the micro-batch, or EVALUATION_SEQUENCES if the place sets none.

    On a CPU it is always EVALUATION_SEQUENCES, because memory sets no limit there. Another number may change the last bit of a
    result, and placement must not change results.
    """
    return EVALUATION_SEQUENCES if place.device == "cpu" else place.micro_batch or EVALUATION_SEQUENCES


@torch.no_grad()
def evaluate(
    engine: Engine, suite: list[ItemSet], before: Callable[[], None] = lambda: None, detailed: bool = False
) -> list[dict[str, Any]]:
    """One row of raw sums per probe of the suite (`Probe.score`), equal on every rank.

    Every rank reads and scores its part of the sequences, one chunk at a time. Only a few numbers per position leave the device
    (`Probe.answers`). They are summed at the end, so sums do not depend on ranks or chunks. Log-probabilities leave the device
    only for probes that compare distributions. `before` is called before each forward pass. If it raises an exception, the
    evaluation ends with that.

    Item sets of text are read and answered by `engine/answers.py`. Their rows are `detailed` if a trial ends here.
    """
    chunk = chunk_of(engine.place)
    rows: list[dict[str, Any]] = []
    for items in suite:
        n = len(items.tokens)
        mine = share_of(engine, n)
        n_here = len(mine)
        if items.questions is not None:
            rows.append(read_and_answer(engine, items, mine, chunk, before, detailed))
            continue
        by_answers = all(probe.scores_answers for probe in items.probes)
        parts: list[list[torch.Tensor]] = []
        for here in np.split(mine, range(chunk, n_here, chunk)):
            with engine.autocast():
                logs = _read(engine.model, torch.from_numpy(items.tokens[here, :-1]), items.written, before)
            parts.append([_answers(probe, logs, here) for probe in items.probes] if by_answers else [logs])
        arrays = [engine.gathered(torch.cat(column))[:n].cpu().numpy() for column in zip(*parts, strict=True)]
        if by_answers:
            rows += [probe.score_answers(answers) for probe, answers in zip(items.probes, arrays, strict=True)]
        else:
            rows += [probe.score(arrays[0]) for probe in items.probes]  # (N, T, V), or (N, T) numbers
    return with_train_items(rows)


def share_of(engine: Engine, n: int) -> np.ndarray:
    """The numbers of the sequences that this rank reads, of n in all. The last rank may wrap around; [:n] cuts that off."""
    n_here = -(-n // engine.world)
    return (np.arange(n_here) + engine.rank * n_here) % n


def _answers(probe: Probe, logs: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """`Probe.answers` as a tensor on the device of `logs`: (b, T, ANSWERS) float64. On a CPU, numpy computes it."""
    if logs.device.type == "cpu":
        return torch.from_numpy(probe.answers(logs.numpy(), rows))
    return answers_on_device(probe, logs, rows)


def answers_on_device(probe: Probe, logs: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """`Probe.answers` in torch, for GPUs. `rows` (b,) are the numbers of the sequences. Last digits may differ from numpy's."""
    mask, target = (torch.from_numpy(part[rows]).to(logs.device) for part in (probe.mask, probe.target))
    scored, target = logs[mask].double(), target[mask]  # (n, V), (n,)
    answers = torch.zeros(*mask.shape, ANSWERS, dtype=torch.float64, device=logs.device)
    answers[mask] = token_scores(scored, target)
    return answers


def _read(
    model: torch.nn.Module, tokens: torch.Tensor, written: Sequence[int], before: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Predictions for tokens: (B, T) ids -> log-probabilities (B, T, V); (B, T, W) numbers -> predicted numbers (B, T).

    After each position in `written` the model reads its own likeliest token instead of the given one. So an early mistake has
    the same consequences as if the model wrote its answer without help. `before` is called before each forward pass.
    """
    device = next(model.parameters()).device
    tokens = tokens.to(device, copy=True)
    for position in written:
        if position + 1 < tokens.shape[1]:
            before()
            tokens[:, position + 1] = model(tokens)[:, position].argmax(-1)
    before()
    out = model(tokens).float()
    return torch.Tensor(out[:, :, 0] if tokens.is_floating_point() else out.log_softmax(-1))
