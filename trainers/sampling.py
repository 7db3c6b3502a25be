"""Free-running answers: a model continues prompts by its own tokens, greedily or at a temperature.

It knows no model. A model offers a cache (`Writer`), so that each new token costs one token of reading. A model that ZeRO 3
has spread over ranks gathers its weights at every pass, so `all_passes` makes all ranks pass equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.streams import hashed_uniforms


class Cache(Protocol):
    """A model's memory of the tokens that each row has read."""

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these numbers (n,), in this order. A number may stand there several times."""


class Writer(Protocol):
    """A model that can go on from tokens it has read. Weights decide the device, autocast the precision."""

    def new_cache(self, n_sequences: int, n_positions: int) -> Any:
        """An empty `Cache` for rows of at most `n_positions` tokens. Raises ValueError for more than the model has."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights."""

    def __call__(
        self, tokens: Tensor, *, at: Tensor | None = None, positions: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Read tokens (B, T) into the cache. Returns logits (B, T, V), or (n, V) at the n set positions of `at` (B, T).

        The first pass reads prompts from position 0, padded on the right. Later passes give `positions` (B, T), which go on
        from the end of each row's own prompt: the padding is never seen.
        """


class Keys(NamedTuple):
    """The random stream of every row: its tokens depend on no other draw."""

    purpose: tuple[str | int, ...]
    """Words and numbers of `streams.stream` for all rows, such as (replicate, step)."""
    prompts: np.ndarray
    """Number of each row's prompt (N,), from 0 and below 2^32."""
    samples: np.ndarray
    """Number of each row's sample of its prompt (N,), from 0 and below 2^32."""


class Answers(NamedTuple):
    """Answers to N prompts, of at most `n_new` tokens each."""

    tokens: np.ndarray
    """Ids (N, n_new) int64. Behind an answer stands `end` alone."""
    n_tokens: np.ndarray
    """Tokens of each answer (N,) int64, without `end`. The model has written n_tokens + ended tokens."""
    ended: np.ndarray
    """Whether the model wrote `end` (N,) bool. If not, the answer was cut."""
    log_probs: np.ndarray
    """Log-probability of each written token (N, n_new) float32, in nats, and 0 behind the answer.

    It is that of the distribution the token was drawn from: at the temperature, without the forbidden ids. Greedy tokens have
    theirs at temperature 1."""


@torch.no_grad()
def generate(
    model: Writer,
    prompts: Sequence[np.ndarray],
    n_new: int,
    end: int,
    *,
    temperature: float = 0.0,
    keys: Keys | None = None,
    forbidden: Sequence[int] = (),
    at_once: int | None = None,
    before: Callable[[], None] = lambda: None,
    all_passes: bool = False,
) -> Answers:
    """Continue each prompt (ids, 1-D) until the model writes `end`, by at most `n_new` tokens.

    At temperature 0 each token is the likeliest. Above, it is drawn from softmax(logits / temperature) with the streams of
    `keys`. `forbidden` ids are never written. At most `at_once` rows are read together; None: all. Other rows and the splitting
    change logits by rounding alone. Equal prompts of a batch are read once.

    `before` is called before each forward pass, and n_new times a batch even if all answers end earlier. Ranks with as many
    rows thus call it equally often, as a collective call needs. If it raises an exception, `generate` ends with that.

    With `all_passes` there are n_new forward passes, even if all answers end earlier. ZeRO 3 needs that on several ranks: each pass
    gathers weights from all of them.

    Raises ValueError for an empty prompt, for more positions than the model has, and for a temperature without a key
    for every row.
    """
    prompts = [np.ascontiguousarray(prompt, dtype=np.int64) for prompt in prompts]
    n = len(prompts)
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} is empty; a prompt has at least one token")
    if temperature < 0 or (temperature > 0 and keys is None):
        raise ValueError(f"temperature {temperature:g}: it is 0 (greedy), or above 0 with keys of the random streams")
    if n_new < 1 or (at_once is not None and at_once < 1):
        raise ValueError(f"n_new {n_new}, at_once {at_once}: both are at least 1")
    uniforms = np.zeros((n, n_new))
    if temperature and keys is not None:
        ids = np.asarray(keys.prompts, dtype=np.uint64) << np.uint64(32) | np.asarray(keys.samples, dtype=np.uint64)
        if len(ids) != n:
            raise ValueError(f"{len(ids)} keys for {n} prompts; every row has its own")
        uniforms = hashed_uniforms(ids, n_new, "sample", *keys.purpose)

    def choose(logits: Tensor, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits[:, list(forbidden)] = -torch.inf
        return _drawn(logits, temperature, numbers) if temperature else _likeliest(logits)

    size = at_once or max(n, 1)
    parts = [
        _write(model, prompts[i : i + size], uniforms[i : i + size], end, choose, before, all_passes)
        for i in range(0, n, size)
    ]
    return Answers(*map(np.concatenate, zip(_nothing(0, n_new, end), *parts, strict=True)))


def _nothing(n: int, n_new: int, end: int) -> Answers:
    """Answers to n prompts before the first token."""
    tokens, log_probs = np.full((n, n_new), end, np.int64), np.zeros((n, n_new), np.float32)
    return Answers(tokens, np.zeros(n, np.int64), np.zeros(n, bool), log_probs)


def _write(
    model: Writer,
    prompts: list[np.ndarray],
    uniforms: np.ndarray,
    end: int,
    choose: Callable[[Tensor, np.ndarray], tuple[np.ndarray, np.ndarray]],
    before: Callable[[], None],
    all_passes: bool,
) -> Answers:
    """Answers to the prompts of one batch. uniforms: (N, n_new), one number for each token."""
    device = next(iter(model.parameters())).device
    n_new = uniforms.shape[1]
    answers = _nothing(len(prompts), n_new, end)
    rows = np.arange(len(prompts))  # those that the cache holds; a row leaves some time after its end
    lengths = np.array([len(prompt) for prompt in prompts])
    cache, chosen = None, rows
    for i in range(n_new):
        before()
        live = ~answers.ended[rows]
        if not (live.any() or all_passes):
            continue
        if cache is None:
            logits, cache = _first(model, prompts, n_new, device)
        else:
            if 0 < 2 * live.sum() <= len(rows):  # so all these copies together cost less than the first one does
                cache.select(torch.from_numpy(np.flatnonzero(live)).to(device))
                rows, chosen, live = rows[live], chosen[live], live[live]
            next_ids, positions = (
                torch.from_numpy(part[:, None]).to(device) for part in (chosen, lengths[rows] + i - 1)
            )
            logits = model(next_ids, positions=positions, cache=cache)[:, 0]
        chosen, log_probs = choose(logits, uniforms[rows, i])
        writing = rows[live]
        answers.tokens[writing, i], answers.log_probs[writing, i] = chosen[live], log_probs[live]
        answers.ended[writing] = chosen[live] == end
        answers.n_tokens[writing] += chosen[live] != end
    return answers


def _first(model: Writer, prompts: list[np.ndarray], n_new: int, device: torch.device) -> tuple[Tensor, Any]:
    """Read the prompts, equal ones once. Returns the logits of each prompt's next token (N, V), and the cache of N rows."""
    distinct: dict[bytes, int] = {}
    which = [distinct.setdefault(prompt.tobytes(), len(distinct)) for prompt in prompts]
    read = [np.frombuffer(ids, dtype=np.int64) for ids in distinct]
    lengths = np.array([len(prompt) for prompt in read])
    longest = int(lengths.max())
    tokens = np.zeros((len(read), longest), np.int64)  # any id may pad
    for row, prompt in zip(tokens, read, strict=True):
        row[: len(prompt)] = prompt
    try:
        cache = model.new_cache(len(read), longest + n_new - 1)  # nothing is read after the last new token
    except ValueError as error:
        raise ValueError(f"a prompt of {longest} tokens and {n_new} new ones: {error}") from None
    last = np.arange(longest) == lengths[:, None] - 1
    logits = model(torch.from_numpy(tokens).to(device), at=torch.from_numpy(last).to(device), cache=cache)
    if len(read) < len(prompts):
        repeated = torch.tensor(which, device=device)
        logits = logits[repeated]
        cache.select(repeated)
    return logits, cache


def _likeliest(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The id of the largest logit of each row (N, V), the first of equals, and its log-probability: (N,) each."""
    most, chosen = logits.max(1)
    return chosen.cpu().numpy(), (most - logits.logsumexp(1)).cpu().numpy()


def _drawn(logits: Tensor, temperature: float, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids drawn from softmax(logits / temperature) by the inverse of its cumulative sum, and their log-probabilities: (N,) each.

    In float64 on the CPU: there the order of a sum is fixed, and a GPU's cumulative sums differ from call to call.
    """
    logs = (logits.double().cpu() / temperature).log_softmax(1)
    sums = logs.exp().cumsum(1).numpy()
    total = sums[:, -1]
    aim = np.minimum(uniforms * total, np.nextafter(total, 0))  # below the total, so no id of probability 0 is met
    chosen = (sums <= aim[:, None]).sum(1)
    return chosen, logs.numpy()[np.arange(len(chosen)), chosen]
