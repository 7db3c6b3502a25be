"""markov: induction (Park et al. 2025, arXiv 2412.01003). A task is a Markov chain over k states, rows Dirichlet(1).

A sequence is T states of one chain, the first from its stationary law; every next state is predicted. Four ways to do
so compete: remember the training chains or count in the context, and look at pairs of states or at single ones.
`decompose` says how much of each a model's predictions hold; `Probe.score` records it.

What learns it, at 0.1 s a step of one core: two layers of width 64, 4 heads, batch 32, rate 3e-3 after 100 steps of
warm-up, decayed over the last fifth. A billion chains: ability .22 at step 416 after a long plateau of counting single
states, .74 at 480, .87 at the end, 600. With conv_kernel 4 the rise is at 100 to 140; after 500 steps ability is .94 for a
billion chains and −.30 for 16, whose memory is .71. 64 chains show transience: the divergence from held-out chains falls
to .276 nats at step 311 and is back at .297 at 800 (another replicate: .272 and .285). One run each.
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
    """Chains over `n_states` states, shown as `n_tokens` states in a row."""

    name: Literal["markov"] = "markov"
    n_states: Annotated[Count, Field(ge=3, le=32)] = 8
    """k. With two states the transitions alternate, so that a sequence read backwards has the same counts."""
    n_tokens: Annotated[Count, Field(ge=4), Limit(100_000)] = 128
    """T: states per sequence; the model reads T - 1 and predicts as many."""
    prior: Literal["ranked", "uniform"] = "ranked"
    """How often each training chain is drawn: chain r of n in (1/n) Σ_{i=r..n} 1/i (`ranked`) or 1/n (`uniform`), which
    `training.task_exponent` may change."""

    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("next_token",)
    headline: ClassVar[str] = "induct"
    mixture: ClassVar[str] = "induct"
    skills: ClassVar[dict[str, str]] = {
        "induct": "predict the next state from what followed the same state before, scored against the chain itself"
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
            f"task_exponent {task_exponent:g} and prior '{self.prior}' of family 'markov' both say how often a "
            "chain is drawn; keep one, with prior: uniform or task_exponent: 0"
        )

    # Chains ----------------------------------------------------------------------------------------------------

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as matrices: ids (n,) -> (n, k, k), [i, j] = P(j follows i); rows Dirichlet(1), from exponentials."""
        k = self.n_states
        exponentials = -np.log(hashed_uniforms(ids, k * k, "markov", k)).reshape(-1, k, k)
        return exponentials / exponentials.sum(axis=2, keepdims=True)

    def ranks(self, draw: np.random.Generator, n_tasks: int, size: int) -> np.ndarray:
        """Which training chains, 0 ... n_tasks - 1, `size` sequences come from: two draws each, no table of any length.

        `ranked` draws i uniform in 1 ... n, then r uniform in 1 ... i: share (1/n) Σ_{i=r..n} 1/i, which is the mean of
        the r-th largest of n Dirichlet(1) weights (the broken stick, MacArthur 1957). Our choice, as we do not know the
        paper's. The sum of squared shares nears 2/n: n chains weigh as n/2 equal ones, whatever n is, where a Zipf law
        would make "more chains" mean less and less.
        """
        if self.prior == "uniform":
            return draw.integers(0, n_tasks, size)
        return draw.integers(0, 1 + draw.integers(0, n_tasks, size))

    def draw_tasks(self, request: Request, draw: np.random.Generator, size: int) -> np.ndarray:
        if request.task_exponent:
            return super().draw_tasks(request, draw, size)
        return self.ranks(draw, request.n_tasks, size)

    def shares(self, n_tasks: int) -> np.ndarray:
        """How often each of the training chains is drawn: (n_tasks,), summing to 1."""
        if self.prior == "uniform":
            return np.full(n_tasks, 1 / n_tasks)
        return np.cumsum(1 / np.arange(n_tasks, 0, -1))[::-1] / n_tasks

    def shown_tasks(self, request: Request, draw: np.random.Generator, n: int) -> np.ndarray:
        """As they are drawn in training: the training mixture."""
        return self.draw_tasks(request, draw, n)

    def sequences(self, tasks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        return self._walk(tasks, draw.random((len(tasks), self.n_tokens)))

    def _walk(self, chains: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Inverse-CDF draws: chains (N, k, k), uniforms (N, T) -> tokens (N, T).

        What each draw would do from every state is worked out at once; the walk is then one look-up a step: half the
        time of drawing in turn. Comparing in single precision is twice as fast, and moves probabilities by 1e-7 at most.
        """
        n, k = len(chains), self.n_states
        flat = k * np.arange(n)  # state s of sequence i is number k i + s
        first = (uniforms[:, :1] >= np.cumsum(stationary(chains), axis=1)[:, :-1]).sum(axis=1)  # (N,)
        edges = np.cumsum(chains, axis=2)[:, :, :, None].astype(np.float32)  # (N, k, k, 1)
        draws = uniforms[:, None, 1:].astype(np.float32)  # (N, 1, T-1)
        after = np.zeros((n, k, self.n_tokens - 1), dtype=np.uint8)  # the state after each state, were it here
        for j in range(k - 1):
            after += draws >= edges[:, :, j]
        steps = (after.transpose(2, 0, 1) + flat[:, None]).reshape(-1, n * k)  # (T-1, N k)
        out = np.empty((self.n_tokens, n), dtype=np.int64)
        out[0] = first + flat
        for step, here, there in zip(steps, out, out[1:], strict=False):
            step.take(here, None, there, "clip")  # nothing is out of range; "raise" would copy
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
        """All ways to predict, on tokens (N, T): name -> (N, T-1, k), from what stands before each prediction alone.

        `generalizer` and `memorizer` look at pairs of states, `unigram_...` at single ones; `backward` is the control:
        it counts what came before the present state, and no model that predicts forward should hold any of it (trained
        ones held .01 or less, but up to .04 while the rule arose; .08 with five states). The generaliser is exact but
        for what the first state says of the stationary law. The memorisers are missing without training chains (K, k, k);
        `shares` (K,) is how often each is drawn, left out as the prior has it.
        """
        before = self.transitions(tokens)  # (N, T-1, k, k)
        at = (*np.ogrid[: len(tokens), : tokens.shape[1] - 1], tokens[:, :-1])
        seen = np.cumsum(np.eye(self.n_states)[tokens[:, :-1]], axis=1)  # (N, T-1, k), the present state included
        found = {
            "generalizer": _smoothed(before[at]),
            "unigram_generalizer": _smoothed(seen),
            "uniform": np.full(seen.shape, 1 / self.n_states),
            "backward": _smoothed(before.swapaxes(2, 3)[at]),
        }
        if train is not None:
            laws = stationary(train)
            alone = np.repeat(laws[:, None], self.n_states, axis=1)
            found["memorizer"] = self.memorizer(tokens, train, laws, shares)
            found["unigram_memorizer"] = self.memorizer(tokens, alone, laws, shares)
        return found

    def transitions(self, tokens: np.ndarray) -> np.ndarray:
        """Steps i -> j made before each prediction: tokens (N, T) -> (N, T-1, k, k) counts; none before the first."""
        k = self.n_states
        steps = np.zeros((len(tokens), tokens.shape[1] - 1, k * k))
        np.put_along_axis(steps[:, 1:], (k * tokens[:, :-2] + tokens[:, 1:-1])[:, :, None], 1.0, axis=2)
        return np.cumsum(steps, axis=1).reshape(*steps.shape[:2], k, k)

    def memorizer(
        self, tokens: np.ndarray, train: np.ndarray, laws: np.ndarray, shares: np.ndarray | None = None
    ) -> np.ndarray:
        """Bayes over exactly the training chains, each weighing its share: tokens (N, T) -> (N, T-1, k).

        train (K, k, k), laws (K, k) of the first state, shares (K,) or those of the prior. Step by step, as each posterior
        is the last one times a look-up, and no logarithm or exponential is needed. A chain's weight is not let fall below
        1e-300: one that was out of the running can return.
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
    """Stationary laws, π = π P: chains (N, k, k) -> (N, k).

    Solves π (I - P + E) = e with E and e all ones, which is regular for any chain without zeros.
    """
    k = chains.shape[1]
    laws = np.linalg.solve(np.eye(k) - chains.swapaxes(1, 2) + 1, np.ones((len(chains), k, 1)))[:, :, 0]
    laws = np.maximum(laws, 1e-300)  # rounding, where a state is hardly ever visited
    return laws / laws.sum(axis=1, keepdims=True)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Posterior mean under Dirichlet(1): (..., k) counts -> (n_j + 1) / (n + k)."""
    return (counts + 1) / (counts.sum(axis=-1, keepdims=True) + counts.shape[-1])


def _reference(truth: np.ndarray, probs: np.ndarray) -> Reference:
    """Expected log loss against the true row; agreement with its likeliest state, ties shared. (N, T, k) both."""
    nll = -(truth * np.log(np.maximum(probs, 1e-300))).sum(axis=2)
    best = probs >= probs.max(axis=2, keepdims=True) - 1e-12
    hit = np.take_along_axis(best, truth.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    return Reference(nll, hit / best.sum(axis=2))
