"""markov: induction (Park et al. 2025, arXiv 2412.01003). A task is a Markov chain over k states with rows Dirichlet(1).

A sequence is T states of one chain. The first is drawn from the stationary distribution, and every next state is predicted.
Four predictors compete. Memorisers weight the training chains, generalisers count in the context. There is one of each kind for
pairs of states, and one for single states. `decompose` estimates the share of each in a model's predictions. `Probe.score`
records the shares.

A recipe that learns it, at 0.1 s per step on one core: two layers of width 64, 4 heads, batch 32, rate 3e-3 after 100 steps of
warm-up, decayed over the last fifth. One run each:

- A billion chains: ability is .22 at step 416, after a long plateau of counting single states, .74 at 480 and .87 at the end,
  600.
- With conv_kernel 4 the rise is at steps 100 to 140. After 500 steps ability is .94 for a billion chains. For 16 chains ability
  is −.30 and memory .71.
- 64 chains show transience: the divergence from held-out chains falls to .276 nats at step 311 and rises to .297 at 800
  (another replicate: .272 and .285).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from trainers.records import Count, Limit
from trainers.streams import hashed_uniforms
from trainers.tasks.base import register
from trainers.tasks.laws import LawFamily, Listed
from trainers.tasks.probes import ItemSet, Probe, Reference
from trainers.tasks.request import Request


@register
class Markov(LawFamily):
    """Chains over `n_states` states, shown by sequences of `n_tokens` states."""

    name: Literal["markov"] = "markov"
    n_states: Annotated[Count, Field(ge=3, le=32)] = 8
    """k: number of states. With two, transitions alternate, and a sequence read backwards would have the same counts."""
    n_tokens: Annotated[Count, Field(ge=4), Limit(100_000)] = 128
    """T: states per sequence. The model reads T - 1 states and predicts T - 1."""
    prior: Literal["ranked", "uniform"] = "ranked"
    """Share of each training chain: (1/n) Σ_{i=r..n} 1/i for chain r of n (`ranked`), or 1/n (`uniform`). With `uniform`,
    `training.task_exponent` may change it."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("next_token",)
    headline: ClassVar[str] = "induct"
    mixture: ClassVar[str] = "induct"
    skills: ClassVar[dict[str, str]] = {
        "induct": "predict the next state from the states that followed the same state before, scored against the chain itself"
    }

    @property
    def vocab_size(self) -> int:
        return self.n_states

    @property
    def seq_len(self) -> int:
        return self.n_tokens - 1

    def chance(self, skill: str) -> float | None:
        return 1 / self.n_states

    def objection(self, task_exponent: float) -> str | None:
        if not task_exponent or self.prior == "uniform":
            return None
        return (
            f"task_exponent {task_exponent:g} and prior '{self.prior}' of family 'markov' both set how often a "
            "chain is drawn; keep one, with prior: uniform or task_exponent: 0"
        )

    # Chains ----------------------------------------------------------------------------------------------------

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as matrices: ids (n,) -> (n, k, k), [i, j] = P(j follows i). Rows are Dirichlet(1): normalised exponentials."""
        k = self.n_states
        exponentials = -np.log(hashed_uniforms(ids, k * k, "markov", k)).reshape(-1, k, k)
        return exponentials / exponentials.sum(axis=2, keepdims=True)

    def ranks(self, draw: np.random.Generator, n_tasks: int, size: int) -> np.ndarray:
        """Draw a training chain for each of `size` sequences by the `prior`: its place in the list, 0 ... n_tasks - 1, (size,).

        `ranked` draws i uniform in 1 ... n, then r uniform in 1 ... i. So the share of r is (1/n) Σ_{i=r..n} 1/i, the mean of
        the r-th largest of n Dirichlet(1) weights (the broken stick, MacArthur 1957). This is our choice, because we do not
        know the paper's. It needs two draws per sequence and no table. The sum of squared shares tends to 2/n, so n chains count
        like n/2 equal ones for every n. Under a Zipf law, more chains would add less and less.
        """
        if self.prior == "uniform":
            return draw.integers(0, n_tasks, size)
        return draw.integers(0, 1 + draw.integers(0, n_tasks, size))

    def draw_tasks(self, request: Request, draw: np.random.Generator, size: int) -> np.ndarray:
        if request.task_exponent:
            return super().draw_tasks(request, draw, size)
        return self.ranks(draw, request.n_tasks, size)

    def shares(self, n_tasks: int) -> np.ndarray:
        """Share of each training chain under the `prior`: (n_tasks,), summing to 1."""
        if self.prior == "uniform":
            return np.full(n_tasks, 1 / n_tasks)
        return np.cumsum(1 / np.arange(n_tasks, 0, -1))[::-1] / n_tasks

    def shown_tasks(self, request: Request, draw: np.random.Generator, n_sequences: int) -> np.ndarray:
        """The training task of each sequence in the seen split, drawn as in training."""
        return self.draw_tasks(request, draw, n_sequences)

    def sequences(self, tasks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        return self._walk(tasks, draw.random((len(tasks), self.n_tokens)))

    def _walk(self, chains: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """One walk on each chain by inverse CDF: chains (N, k, k), uniforms (N, T) -> tokens (N, T).

        The next state after every state is computed for all draws at once, and the walk is one look-up per step. This takes
        half the time of drawing step by step. Comparing in single precision is twice as fast, and moves probabilities by at
        most 1e-7.
        """
        n, k = len(chains), self.n_states
        flat = k * np.arange(n)  # state s of sequence i is number k i + s
        first = (uniforms[:, :1] >= np.cumsum(stationary(chains), axis=1)[:, :-1]).sum(axis=1)  # (N,)
        edges = np.cumsum(chains, axis=2)[:, :, :, None].astype(np.float32)  # (N, k, k, 1)
        draws = uniforms[:, None, 1:].astype(np.float32)  # (N, 1, T-1)
        after = np.zeros((n, k, self.n_tokens - 1), dtype=np.uint8)  # the state that would follow each state
        for j in range(k - 1):
            after += draws >= edges[:, :, j]
        steps = (after.transpose(2, 0, 1) + flat[:, None]).reshape(-1, n * k)  # (T-1, N k)
        out = np.empty((self.n_tokens, n), dtype=np.int64)
        out[0] = first + flat
        for step, here, there in zip(steps, out, out[1:], strict=False):
            step.take(here, None, there, "clip")  # no index is out of range; "raise" would copy
        return (out - flat).T.copy()

    # Evaluation ------------------------------------------------------------------------------------------------

    def item_set(
        self, split: Literal["seen", "held_out"], tasks: np.ndarray, tokens: np.ndarray, train: Listed | None
    ) -> ItemSet:
        truth = tasks[np.arange(len(tasks))[:, None], tokens[:, :-1]]  # (N, T-1, k)
        listed, logs = train or (None, None)
        predictors = self.predictors(tokens, listed, None if logs is None else np.exp(logs))
        scored = {name: predictors[name] for name in ("uniform", "generalizer", "memorizer") if name in predictors}
        probe = Probe(
            skill="induct",
            split=split,
            mask=np.ones(truth.shape[:2], dtype=bool),
            target=truth,
            references={name: _reference(truth, probs) for name, probs in (scored | {"oracle": truth}).items()},
            distributions=predictors,
        )
        return ItemSet(tokens=tokens, probes=(probe,))

    # References ------------------------------------------------------------------------------------------------

    def predictors(
        self, tokens: np.ndarray, train: np.ndarray | None, shares: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Each predictor's probabilities for the next states of tokens (N, T): name -> (N, T-1, k), from earlier tokens alone.

        `generalizer` and `memorizer` use pairs of states, `unigram_...` single states. `backward` is a control: it counts the
        states that came before the present one. A model that predicts forward should give it no weight. Trained models gave
        it .01 or less, but up to .04 while the skill emerged, and .08 with five states.

        The generaliser is exact, except that it ignores the information of the first state on the stationary distribution. The
        memorisers need the training chains `train` (K, k, k). If that is None, they are left out. `shares` (K,) are the chains'
        shares in training; left out, those of the prior.
        """
        before = self.transitions(tokens)  # (N, T-1, k, k)
        at = (*np.ogrid[: len(tokens), : tokens.shape[1] - 1], tokens[:, :-1])
        seen = np.cumsum(np.eye(self.n_states)[tokens[:, :-1]], axis=1)  # (N, T-1, k), the present state included
        predictors = {
            "generalizer": _smoothed(before[at]),
            "unigram_generalizer": _smoothed(seen),
            "uniform": np.full(seen.shape, 1 / self.n_states),
            "backward": _smoothed(before.swapaxes(2, 3)[at]),
        }
        if train is not None:
            laws = stationary(train)
            alone = np.repeat(laws[:, None], self.n_states, axis=1)
            predictors["memorizer"] = self.memorizer(tokens, train, laws, shares)
            predictors["unigram_memorizer"] = self.memorizer(tokens, alone, laws, shares)
        return predictors

    def transitions(self, tokens: np.ndarray) -> np.ndarray:
        """Number of transitions i -> j before each prediction, [..., i, j]: tokens (N, T) -> (N, T-1, k, k). The first are 0."""
        k = self.n_states
        steps = np.zeros((len(tokens), tokens.shape[1] - 1, k * k))
        np.put_along_axis(steps[:, 1:], (k * tokens[:, :-2] + tokens[:, 1:-1])[:, :, None], 1.0, axis=2)
        return np.cumsum(steps, axis=1).reshape(*steps.shape[:2], k, k)

    def memorizer(
        self, tokens: np.ndarray, train: np.ndarray, laws: np.ndarray, shares: np.ndarray | None = None
    ) -> np.ndarray:
        """Bayes over exactly the training chains, with their shares in training as prior: tokens (N, T) -> (N, T-1, k).

        train (K, k, k). `laws` (K, k) are the distributions of the first state. `shares` (K,); left out, those of `prior`. Each
        posterior is the last one times a look-up, so no logarithm or exponential is needed. A chain's weight stays at least
        1e-300, so it can grow again.
        """
        k, (n, length) = self.n_states, tokens.shape
        likelihood = np.ascontiguousarray(train.reshape(-1, k * k).T)  # (k*k, K)
        rows = np.ascontiguousarray(train.swapaxes(0, 1))  # (k, K, k)
        weight = (self.shares(len(train)) if shares is None else shares) * laws.T[tokens[:, 0]]  # (N, K)
        out = np.empty((n, length - 1, k))
        for t in range(length - 1):
            weight /= weight.sum(axis=1, keepdims=True)
            np.maximum(weight, 1e-300, out=weight)
            state, after = tokens[:, t], tokens[:, t + 1]
            for s in range(k):
                at = state == s
                out[at, t] = weight[at] @ rows[s]
            weight *= likelihood[k * state + after]
        return out


def stationary(chains: np.ndarray) -> np.ndarray:
    """Stationary distributions, π = π P: chains (N, k, k) -> (N, k).

    It solves π (I - P + E) = e with E and e all ones. This system is regular for any chain without zeros.
    """
    k = chains.shape[1]
    laws = np.linalg.solve(np.eye(k) - chains.swapaxes(1, 2) + 1, np.ones((len(chains), k, 1)))[:, :, 0]
    laws = np.maximum(laws, 1e-300)  # rounding of states that are almost never visited
    return laws / laws.sum(axis=1, keepdims=True)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """The posterior mean under Dirichlet(1): counts n_j (..., k) with sum n -> probabilities (n_j + 1) / (n + k)."""
    return (counts + 1) / (counts.sum(axis=-1, keepdims=True) + counts.shape[-1])


def _reference(truth: np.ndarray, probs: np.ndarray) -> Reference:
    """Scores of `probs` against the true distributions `truth`, both (N, T, k): expected log loss, and a hit if the likeliest
    states agree. If m predicted states tie, a hit counts 1/m."""
    nll = -(truth * np.log(np.maximum(probs, 1e-300))).sum(axis=2)
    best = probs >= probs.max(axis=2, keepdims=True) - 1e-12
    hit = np.take_along_axis(best, truth.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    return Reference(nll, hit / best.sum(axis=2))
