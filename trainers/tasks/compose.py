"""compose: function composition. A task names one function for each of L slots. 8 functions in 14 slots are 4.4e12 tasks.

A sequence is f1 ... fL : x y1 ... yL with y1 = f1(x), y2 = f2(y1), ...; x and each y are S letters. The skill can be taught
step by step (`steps`) or by the final answer alone (`answer`, `latent`). A model may memorise whole compositions. Or it may
learn each function in its slot and apply one after another, which also works for unseen compositions. Lists of functions are
held out. As maps of letters two lists may agree: by default 2 of the 64 held-out lists agree with a trained one.

A recipe that learns it in a minute on one core: 2 layers of width 64, `positions: learned`, `embed_std: 0.1`, batch 128, rate
2e-3. With arm `steps` and 400 optimizer steps, accuracy on unseen compositions is .20 for 8 tasks, .46 for 16, .74 for 32 and
1.00 for 64 (one run each). With rotary positions (3 layers, batch 256, rate 1e-3) 64 tasks end at .59, though all training
compositions are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb, factorial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from trainers.records import Count, Index, Limit, Positive, as_tuple
from trainers.streams import KeyedPermutation, keyed_permutation, stream
from trainers.tasks.base import SkillsOfParameters, register
from trainers.tasks.compositions import ShortFirst, bijections, changes, short_first, shuffled
from trainers.tasks.probes import Batch, ItemSet, Probe, Questions, Reference, graded
from trainers.tasks.references import SMALL_UNIVERSE, ExactFamily
from trainers.tasks.request import Request

EPSILON = 1e-3
"""ε: the references give 1 - ε to their letter and spread ε over the alphabet. So no loss is infinite."""
MEMORIZER_MAX_TASKS = 2**16
"""Longer lists of training tasks are not enumerated. They have a memoriser only if every composition in the evaluation has a
training task that differs in at most two slots, so that it can be looked up (`_looked_up`). 65,536 tasks of 14 functions cost a
trunk 0.4 s of one core, 1,024 cost 0.03 s."""
_MAX_LOOKED_UP = 2**20
"""Most compositions that `_looked_up` tries at once. With more there is no memoriser."""
_CANDIDATES = 64
"""Compositions drawn for each unseen one that is needed. One in eight is held out in a small universe, one in two in a large."""


@register
class Compose(ExactFamily):
    """Compositions of `n_slots` functions. Each slot has `n_functions` to choose from, the identity among them."""

    name: Literal["compose"] = "compose"
    n_slots: Annotated[Count, Field(ge=2, le=62)] = 3  # 2 functions in 62 slots are 2^62 tasks
    """L: number of functions that are applied one after another."""
    n_functions: Annotated[Count, Field(ge=2), Limit(1000)] = 8
    """F: functions to choose from in each slot. The first is the identity. The universe has F^L tasks, at most 2^62."""
    kind: Literal["letters", "positions"] = "letters"
    """Kind of function: `letters` maps each letter to another, `positions` permutes the positions."""
    n_input: Annotated[Count, Field(le=6)] = 1
    """S: number of letters of the input and of every step, up to 6."""
    n_letters: Annotated[Count, Field(ge=4, le=26)] = 8
    """A: number of letters of the alphabet, from 4 to 26."""
    n_domains: Annotated[Index, Limit(100)] = 0
    """Number of domains. A domain holds the compositions that begin with one function. 0: no domains."""
    domain: Index | None = None
    """The only domain that a specialist trains on (from 0). Left out: a generalist, with n_tasks compositions of each domain."""
    domain_shares: Annotated[tuple[Positive, ...], BeforeValidator(as_tuple), Limit(1e6, 1e-6, 100)] = ()
    """Relative frequency of each domain for a generalist, one number per domain. Left out: equal. A specialist ignores it."""
    max_length: Annotated[Count | None, Limit(61)] = None
    """Most functions other than the identity in a training task, below `n_slots`. Skill `longer` asks tasks with more. Left out: all
    tasks may train. Not with domains, and for fewer than 2^20 tasks."""
    share: bool = True
    """Do the domains share the functions of the later slots? `false` gives each its own: a control without transfer."""

    version: ClassVar[int] = 2
    neutral: ClassVar[dict[str, Any]] = {"max_length": None}
    arms: ClassVar[tuple[str, ...]] = ("steps", "answer", "latent", "next_token", "reward")
    headline: ClassVar[str] = "compose"
    mixture: ClassVar[str] = "mixture"
    ability_of: ClassVar[Literal["nll", "accuracy"]] = "accuracy"
    memorizer_max_tasks: ClassVar[int | None] = MEMORIZER_MAX_TASKS
    skills: ClassVar[dict[str, str]] = SkillsOfParameters()  # type: ignore[assignment]

    @model_validator(mode="after")
    def _fits(self) -> Compose:
        if self.kind == "positions" and self.n_input > self.n_letters:
            raise ValueError(
                f"n_input {self.n_input}: kind positions needs different letters, at most n_letters {self.n_letters}"
            )
        if self._n_bijections > factorial(self._n_points):
            needs = f"a slot needs {self._n_bijections} different functions"
            allowed = f"{self._n_points} {self.kind} allow only {factorial(self._n_points)}"
            raise ValueError(f"n_functions {self.n_functions}: {needs}, but {allowed}")
        if self.n_domains >= self.n_functions:
            raise ValueError(
                f"n_domains {self.n_domains}: at most {self.n_functions - 1}, one per function other than the identity"
            )
        if self.domain is not None and self.domain >= self.n_domains:
            raise ValueError(f"domain {self.domain} is none of the {self.n_domains} of n_domains")
        if self.domain_shares and len(self.domain_shares) != self.n_domains:
            raise ValueError(f"domain_shares: {len(self.domain_shares)} given, but n_domains is {self.n_domains}")
        if not self.share and not self.n_domains:
            raise ValueError("share: false makes no difference without n_domains")
        if self.universe_size > 2**62:
            raise ValueError(f"{self.n_functions} functions in {self.n_slots} slots are more than 2^62 tasks")
        if self.max_length is not None:
            if self.max_length >= self.n_slots:
                raise ValueError(
                    f"max_length {self.max_length}: it is below n_slots, {self.n_slots}; left out, all tasks may train"
                )
            if self.n_domains or self.universe_size >= SMALL_UNIVERSE:
                raise ValueError(f"max_length needs n_domains 0 and fewer than {SMALL_UNIVERSE:,} tasks")
        return self

    def _skills(self) -> dict[str, str]:
        several = range(2, (self.max_length or self.n_slots) + 1)
        longer = f"unseen compositions of more than {self.max_length} functions, the most of a training task"
        strata = {f"compose_{k}": f"those compositions in which {k} functions are not the identity" for k in several}
        domains = {f"domain_{d}": f"unseen compositions of domain {d}" for d in range(self.n_domains)}
        return {
            "compose": "unseen compositions of functions that were all trained in their slots",
            **strata,
            **({"longer": longer} if self.max_length else {}),
            "single_step": "unseen compositions in which only one function is not the identity",
            "out_of_order": "control: the functions stand in slots in which they were never trained",
            "novel_function": "control: unseen compositions with a function that was never trained in its slot",
            **domains,
        }

    # The universe ----------------------------------------------------------------------------------------------

    @property
    def _n_points(self) -> int:
        """Number of points that a function permutes: letters or positions."""
        return self.n_letters if self.kind == "letters" else self.n_input

    @property
    def _width(self) -> int:
        """Number of function tokens of a slot: F, or F for each domain if the domains share no functions."""
        return self.n_functions if self.share else self.n_functions * self.n_domains

    @property
    def _n_bijections(self) -> int:
        """Number of different functions that a slot needs. The identity counts once."""
        return 1 + (self._width // self.n_functions) * (self.n_functions - 1)

    @property
    def _per_domain(self) -> int:
        """Number of compositions in a domain. Without domains: in the universe."""
        return int(self.n_functions ** (self.n_slots - (self.n_domains > 0)))

    @property
    def _lists(self) -> int:
        """Number of domains that train, each with its own list of tasks; 1 without domains.

        Ids run through the domains in turn: id = place in the domain * _lists + domain.
        """
        return self.n_domains if self.n_domains and self.domain is None else 1

    @property
    def universe_size(self) -> int:
        return self._per_domain * self._lists

    @property
    def n_held_out(self) -> int:
        if self.max_length is not None:
            return self.universe_size - self._n_short + max(1, self._n_short // 8)
        per = self._per_domain
        return self._lists * (max(1, per // 8) if per < SMALL_UNIVERSE else per - per // 2)

    @property
    def _n_short(self) -> int:
        """Number of compositions with at most `max_length` functions other than the identity."""
        lengths = range((self.max_length or self.n_slots) + 1)
        return sum(comb(self.n_slots, k) * (self.n_functions - 1) ** k for k in lengths)

    @property
    def n_train_ids(self) -> int:
        return self.universe_size - self.n_held_out

    def held_out_ids(self, n_ids: int) -> np.ndarray:
        """As in `ExactFamily`. With `max_length` none is longer than that."""
        if self.max_length is None:
            return super().held_out_ids(n_ids)
        ids = super().held_out_ids(self.n_held_out)
        return np.resize(ids[ids < self._n_short], n_ids)

    def train_ids(self, replicate: int, indices: np.ndarray) -> np.ndarray:
        """As in `ExactFamily`. With domains, a generalist trains on the same tasks of a domain as the domain's specialist."""
        place, domain = np.divmod(np.asarray(indices, dtype=np.int64), self._lists)
        order = keyed_permutation(self.n_train_ids // self._lists, "compose", "training tasks", replicate)
        return order(place) * self._lists + domain

    def n_distinct(self, n_tasks: int) -> int:
        return n_tasks * self._lists

    def draws_alike(self, task_exponent: float) -> bool:
        return super().draws_alike(task_exponent) and (self._lists == 1 or len(set(self.domain_shares)) < 2)

    @property
    def n_tasks_max(self) -> int:
        return self.n_train_ids // self._lists

    @property
    def domains(self) -> tuple[str, ...]:
        trained = range(self.n_domains) if self.domain is None else (self.domain,)
        return tuple(f"domain_{d}" for d in trained)

    @property
    def whole(self) -> Compose:
        return self.model_copy(update={"domain": None})

    def draw_tasks(self, request: Request, draw: np.random.Generator, size: int) -> np.ndarray:
        """As in `ExactFamily` within a domain. The domain of each sequence is drawn separately, by `domain_shares`."""
        place = super().draw_tasks(request, draw, size)
        if self._lists == 1:
            return place
        shares = np.array(self.domain_shares or (1.0,) * self._lists)
        edges = np.cumsum(shares / shares.sum())[:-1]
        return place * self._lists + np.searchsorted(edges, draw.random(size), side="right")

    def seen_tasks(self, request: Request, n_sequences: int) -> np.ndarray:
        if not self.domain_shares or self._lists == 1:
            return super().seen_tasks(request, n_sequences)
        return self.draw_tasks(request, stream("compose", "seen tasks", request.replicate), n_sequences)

    @property
    def vocab_size(self) -> int:
        return self.n_letters + self.n_slots * self._width + 2

    @property
    def seq_len(self) -> int:
        return self.length("steps")

    def length(self, arm: str) -> int:
        return self.n_slots + self.n_input * (2 if arm == "answer" else self.n_slots + 1)

    def chance(self, skill: str) -> float | None:
        return 1 / self.n_letters

    def tasks(self, ids: np.ndarray) -> np.ndarray:
        return self.compositions(ids)

    def compositions(self, ids: np.ndarray) -> np.ndarray:
        """Tasks as rows: ids (n,) -> (n, L), the function of each slot.

        Functions are numbered over all slots: slot * _width + number in the slot. Number 0 in each slot is the identity.
        """
        place, domain = np.divmod(np.asarray(ids, dtype=np.int64), self._lists)
        domain += self.domain or 0
        rank = np.empty_like(place)
        for d in np.unique(domain):
            rank[domain == d] = self._order(int(d))(place[domain == d])
        out = np.empty((len(rank), self.n_slots), dtype=np.int64)
        for slot in range(self.n_slots - 1, -1, -1):
            if slot == 0 and self.n_domains:
                out[:, 0] = 1 + domain
            else:
                rank, digit = np.divmod(rank, self.n_functions)
                out[:, slot] = slot * self._width + digit + (0 if self.share else self.n_functions * domain)
        return out

    def ids(self, compositions: np.ndarray) -> np.ndarray:
        """The inverse of `compositions`: rows (n, L) -> ids (n,). The rows must be tasks of this family."""
        functions = compositions - np.arange(self.n_slots) * self._width
        domain = functions[:, 0] - 1 if self.n_domains else np.zeros(len(functions), dtype=np.int64)
        rank = np.zeros(len(functions), dtype=np.int64)
        for slot in range(self.n_domains > 0, self.n_slots):
            rank = rank * self.n_functions + functions[:, slot] % self.n_functions
        for d in np.unique(domain):
            rank[domain == d] = self._order(int(d)).inverse(rank[domain == d])
        return rank * self._lists + (domain if self._lists > 1 else 0)

    def _order(self, domain: int) -> KeyedPermutation | ShortFirst:
        """The permutation of the compositions within a domain: index in the domain's task list -> number of the composition."""
        if self.max_length is not None:
            return short_first(self.n_functions, self.n_slots, self.max_length)
        return shuffled(self._per_domain, self.n_functions, self.n_slots, domain)

    def functions(self) -> np.ndarray:
        """The table of all functions, numbered as in `compositions`: (L * _width, A) for letters, (L * _width, S) for positions.

        Row f has the letter to which f maps each letter, or the position from which it takes each position's letter.
        """
        return bijections(self.kind, self._n_points, self.n_slots, self._width, self.n_functions)

    def steps(self, compositions: np.ndarray, inputs: np.ndarray) -> Iterator[np.ndarray]:
        """Apply the functions one after another: compositions (N, L), inputs (N, S). Yields y1, ..., yL, each (N, S)."""
        functions, y = self.functions(), inputs
        for slot in range(self.n_slots):
            function = functions[compositions[:, slot]]  # (N, n)
            table, at = (function, y) if self.kind == "letters" else (y, function)
            y = np.take_along_axis(table, at, axis=1)
            yield y

    def maps(self, compositions: np.ndarray) -> np.ndarray:
        """Each composition as one function, in the form of a row of `functions`: (N, L) -> (N, A) or (N, S)."""
        *_, last = self.steps(compositions, np.tile(np.arange(self._n_points), (len(compositions), 1)))
        return last

    # Sequences -------------------------------------------------------------------------------------------------

    def _inputs(self, draw: np.random.Generator, n: int) -> np.ndarray:
        """Random inputs (n, S). For `positions` all letters differ, because a wrong permutation of equal ones could be right."""
        if self.kind == "letters":
            return draw.integers(0, self.n_letters, (n, self.n_input))
        return draw.random((n, self.n_letters)).argsort(axis=1)[:, : self.n_input]

    def _sequences(self, arm: str, compositions: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Tokens (N, T+1). Token ids are: letters 0 ... A-1, the functions slot by slot, the colon, the filler of `latent`."""
        *before, answer = self.steps(compositions, x)
        colon = np.full((len(x), 1), self.vocab_size - 2)
        if arm == "answer":
            before = []
        elif arm == "latent":
            before = [np.full_like(y, self.vocab_size - 1) for y in before]
        return np.concatenate([self.n_letters + compositions, colon, x, *before, answer], axis=1)

    def _loss_from(self, arm: str) -> int:
        """First position in the loss mask, which has all later ones. The last S positions predict the answer, L * S the steps."""
        if arm == "next_token":
            return 0
        return self.n_slots + self.n_input if arm in ("steps", "reward") else self.length(arm) - self.n_input

    def batch(self, request: Request, step: int) -> Batch:
        draw = stream("compose", "batch", request.replicate, step)
        size = request.batch_size
        ids = self.train_ids(request.replicate, self.draw_tasks(request, draw, size))
        tokens = self._sequences(request.arm, self.compositions(ids), self._inputs(draw, size))
        loss_mask = np.zeros((size, self.length(request.arm)), dtype=bool)
        loss_mask[:, self._loss_from(request.arm) :] = True
        return Batch(tokens, loss_mask)

    @property
    def answer_shape(self) -> tuple[int, int]:
        return self.n_slots + 1 + self.n_input, self.n_slots * self.n_input

    def questions(self, request: Request, step: int, n_prompts: int) -> Questions:
        """Prompts `f1 ... fL : x`. An answer is the letters of all steps, and right if the last step is. The oracle wants all."""
        draw = stream("compose", "questions of a step", request.replicate, step)
        ids = self.train_ids(request.replicate, self.draw_tasks(request, draw, n_prompts))
        return self._asked(self.compositions(ids), self._inputs(draw, n_prompts))

    def unseen_questions(self, request: Request) -> Questions:
        compositions = self.compositions(self.held_out_ids(request.n_sequences))
        return self._asked(compositions, self._inputs(stream("compose", "questions", "held out"), len(compositions)))

    def _asked(self, compositions: np.ndarray, x: np.ndarray) -> Questions:
        """Questions on compositions (n, L) of inputs x (n, S)."""
        tokens, n_prompts = self._sequences("reward", compositions, x), len(x)
        (n_prompt, n_new), s = self.answer_shape, self.n_input
        names = [" ".join(str(f - slot * self._width) for slot, f in enumerate(row)) for row in compositions.tolist()]

        def scorer(prompt: str, steps: str, answer: str) -> bool | None:
            return answer[-s:] == steps[-s:] if len(answer) == n_new and answer.isalpha() else None

        return Questions(
            prompts=[row[:n_prompt] for row in tokens],
            n_new=n_new,
            end=-1,
            forbidden=(),
            tasks=names,
            clusters=[""] * n_prompts,
            floors={},
            texts=[
                (f"{name} : {self._text(row[n_prompt - s : n_prompt])}", self._text(row[n_prompt:]))
                for name, row in zip(names, tokens, strict=True)
            ],
            decode=self._text,
            scorer=scorer,
            oracle=lambda prompt, steps, answer: answer == steps,
        )

    def _text(self, ids: np.ndarray) -> str:
        """Letters as a, b, ...; every other token as a mark."""
        return "".join(chr(ord("a") + i) if i < self.n_letters else "#" for i in ids.tolist())

    # Evaluation ------------------------------------------------------------------------------------------------

    def _written(self, arm: str) -> tuple[int, ...]:
        """Positions at which the model writes the steps y1 ... y(L-1) itself in an evaluation. Empty for arms without steps.

        The model reads the right letters of the answer yL. So the probabilities of its letters multiply to that of the whole
        answer. Greedy exact match is the same as if the model wrote yL too.
        """
        if arm not in ("steps", "next_token", "reward"):
            return ()
        return tuple(range(self.n_slots + self.n_input, self.length(arm) - self.n_input))

    def suite_size(self, request: Request) -> int:
        return (
            (5 + self.n_domains + (self.max_length is not None))
            * request.n_sequences
            * (1 + len(self._written(request.arm)))
        )

    def suite(self, request: Request) -> list[ItemSet]:
        n = request.n_sequences
        train = None
        n_distinct = self.n_distinct(request.n_tasks)
        if n_distinct <= MEMORIZER_MAX_TASKS:
            tasks = self.compositions(self.train_ids(request.replicate, np.arange(n_distinct)))
            train = (tasks, self.maps(tasks))
        everything = np.ones(n, dtype=bool)
        trained = self._trained(request)
        seen = self.compositions(self.train_ids(request.replicate, self.seen_tasks(request, n)))
        held_out = self.compositions(self.held_out_ids(n))
        recombined = self._recombined(trained, _CANDIDATES * n)
        is_longer = self._n_changing(recombined) > (self.max_length or self.n_slots)
        unseen, is_unseen = self._unseen(recombined[~is_longer], trained, held_out)
        single, is_single = self._unseen(self._single_steps(), trained, held_out)
        shift = (np.arange(self.n_slots) + 1 + np.arange(n)[:, None] % (self.n_slots - 1)) % self.n_slots
        out_of_order = np.take_along_axis(unseen, shift, axis=1)
        n_changing, several = self._n_changing(unseen), range(2, (self.max_length or self.n_slots) + 1)
        strata = {f"compose_{k}": is_unseen & (n_changing == k) for k in several}
        novel = ~trained[held_out].all(axis=1)
        sets = [
            self._item_set(request, "compose", unseen, {"compose": is_unseen, **strata}, train),
            self._item_set(request, "single step", single, {"single_step": is_single}, train),
            self._item_set(request, "out of order", out_of_order, {"out_of_order": is_unseen}, train),
            self._item_set(request, "held out", held_out, {self.mixture: everything, "novel_function": novel}, train),
            self._item_set(request, "seen", seen, {self.mixture: everything, "compose": everything}, train, "seen"),
        ]
        if self.max_length is not None:
            longer, is_unseen = self._unseen(recombined[is_longer], trained, held_out)
            sets.append(self._item_set(request, "longer", longer, {"longer": is_unseen}, train))
        for d in range(self.n_domains):
            specialist = self.model_copy(update={"domain": d})
            tasks = specialist.compositions(specialist.held_out_ids(n))
            sets.append(self._item_set(request, f"domain {d}", tasks, {f"domain_{d}": everything}, train))
        return sets

    def _trained(self, request: Request) -> np.ndarray:
        """Is the function in any training task, in its slot? (L * _width,) bool, numbered as in `compositions`."""
        first = self._lists if self.n_domains else self.n_functions
        possible = first + (self.n_slots - 1) * self.n_functions * (1 if self.share else self._lists)
        trained = np.zeros(self.n_slots * self._width, dtype=bool)
        n_distinct = self.n_distinct(request.n_tasks)
        for start in range(0, n_distinct, 1024):
            chunk = self.train_ids(request.replicate, np.arange(start, min(start + 1024, n_distinct)))
            trained[self.compositions(chunk)] = True
            if trained.sum() == possible:
                break
        return trained

    def _recombined(self, trained: np.ndarray, n: int) -> np.ndarray:
        """Random compositions (n, L) of functions that were all trained in their slots.

        `trained` is the array of `_trained`. Trials that trained all functions have the same compositions.
        """
        uniforms = stream("compose", "recombined").random((n, self.n_slots))
        by_slot = trained.reshape(self.n_slots, -1, self.n_functions)  # (L, blocks, F)
        first = np.flatnonzero(by_slot[0])
        out = np.empty((n, self.n_slots), dtype=np.int64)
        out[:, 0] = first[(uniforms[:, 0] * len(first)).astype(np.int64)]
        block = np.zeros(n, dtype=np.int64) if self.share else out[:, 0] - 1
        for slot in range(1, self.n_slots):
            n_trained = np.cumsum(by_slot[slot], axis=1)[block]  # (n, F): trained functions up to each
            rank = (uniforms[:, slot] * n_trained[:, -1]).astype(np.int64)
            function = (n_trained <= rank[:, None]).sum(axis=1)
            out[:, slot] = slot * self._width + block * self.n_functions + function
        return out

    def _n_changing(self, compositions: np.ndarray) -> np.ndarray:
        """The functions of each composition that are not the identity, (n, L) -> (n,)."""
        changing: np.ndarray = (compositions % self.n_functions > 0).sum(axis=1)
        return changing

    def _single_steps(self) -> np.ndarray:
        """All tasks in which one function is not the identity, (n, L), shuffled. With domains, that is the first function."""
        identity = np.arange(self.n_slots) * self._width
        if self.n_domains:
            domain = np.arange(self.n_domains) if self.domain is None else np.array([self.domain])
            rows = identity + np.where(self.share, 0, self.n_functions * domain)[:, None]
            rows[:, 0] = 1 + domain
        else:
            changes = np.eye(self.n_slots, dtype=np.int64)[:, None] * np.arange(1, self.n_functions)[:, None]
            rows = (identity + changes).reshape(-1, self.n_slots)
        return stream("compose", "single steps").permutation(rows)

    def _unseen(
        self, candidates: np.ndarray, trained: np.ndarray, fallback: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose the first distinct candidates that are held out and have only trained functions.

        candidates (m, L), `trained` of `_trained`, fallback (n, L) -> compositions (n, L) and whether they were found, (n,)
        bool. Too few candidates repeat. If there is none, the rows are `fallback`, and all are marked False.
        """
        n = len(fallback)
        ids = self.ids(candidates)
        _, once = np.unique(ids, return_index=True)
        once = np.sort(once)
        unseen = candidates[once[(ids[once] >= self.n_train_ids) & trained[candidates[once]].all(axis=1)]]
        return (unseen[np.arange(n) % len(unseen)], np.ones(n, bool)) if len(unseen) else (fallback, np.zeros(n, bool))

    def _item_set(
        self,
        request: Request,
        purpose: str,
        compositions: np.ndarray,
        skills: dict[str, np.ndarray],
        train: tuple[np.ndarray, np.ndarray] | None,
        split: str = "held_out",
    ) -> ItemSet:
        """The item set of compositions (n, L), scored on their answers.

        `purpose` names the random stream of the inputs. `skills` maps each skill to the rows that it scores, (n,) bool. `train`
        has the training tasks (K, L) and their `maps`. If it is None, the memoriser looks tasks up, or is missing.
        """
        x = self._inputs(stream("compose", "questions", purpose), len(compositions))
        tokens = self._sequences(request.arm, compositions, x)
        answer = tokens[:, -self.n_input :]
        if train is None and (near := self._looked_up(request, compositions)) is not None:
            train = (near, self.maps(near))
        scored = np.arange(self.length(request.arm)) >= self.length(request.arm) - self.n_input
        references = {
            name: self._reference(request.arm, p, answer)
            for name, p in self._predictions(compositions, x, answer, train).items()
        }
        probes = tuple(
            Probe(skill=skill, split=split, mask=rows[:, None] & scored, target=tokens[:, 1:], references=references)
            for skill, rows in skills.items()
        )
        return ItemSet(tokens=tokens, probes=probes, written=self._written(request.arm))

    # References ------------------------------------------------------------------------------------------------

    def _predictions(
        self,
        compositions: np.ndarray,
        x: np.ndarray,
        answer: np.ndarray,
        train: tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, np.ndarray]:
        """Each reference's probabilities (N, S, A) for each letter of the answer, given the right letters before it.

        compositions (N, L), inputs x and answer (N, S). `train` has the training tasks and their `maps`; None: no memoriser.
        """
        predictions = {
            "uniform": np.full((*answer.shape, self.n_letters), 1 / self.n_letters),
            "generalizer": self._smooth(np.eye(self.n_letters)[answer]),
        }
        if train is not None:
            predictions["memorizer"] = self.memorizer(compositions, x, answer, *train)
        return predictions

    def _smooth(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities (..., A) mixed with a share ε of the uniform distribution over letters."""
        return (1 - EPSILON) * probs + EPSILON / self.n_letters

    def _looked_up(self, request: Request, asked: np.ndarray) -> np.ndarray | None:
        """The training tasks nearest to the compositions `asked` (N, L): (K, L), distinct, without a list of all tasks.

        It tries all compositions that differ in no slot, then in one, then in two. It inverts the permutations to see which of
        them train. Returns None with domains, if a composition is no task of this family or has no training task within two
        slots, or if more than _MAX_LOOKED_UP compositions had to be tried at once.
        """
        rest = asked - np.arange(self.n_slots) * self._width  # functions of compositions without a neighbour so far
        if self.n_domains or rest.min() < 0 or rest.max() >= self.n_functions:
            return None
        order = keyed_permutation(self.n_train_ids, "compose", "training tasks", request.replicate)
        nearest = []
        for radius in range(3):
            moves = changes(self.n_slots, self.n_functions, radius)
            if len(rest) * len(moves) > _MAX_LOOKED_UP:
                return None
            near = (rest[:, None] + moves) % self.n_functions + np.arange(self.n_slots) * self._width  # (n, C, L)
            ids = self.ids(near.reshape(-1, self.n_slots))
            listed = ids < self.n_train_ids
            listed[listed] = order.inverse(ids[listed]) < request.n_tasks
            listed = listed.reshape(near.shape[:2])
            nearest.append(near[listed])
            rest = rest[~listed.any(axis=1)]
            if not len(rest):
                return np.unique(np.concatenate(nearest), axis=0)  # two compositions may share a neighbour
        return None

    def memorizer(
        self, compositions: np.ndarray, inputs: np.ndarray, answer: np.ndarray, train: np.ndarray, maps: np.ndarray
    ) -> np.ndarray:
        """Answers like a training task that shares most functions with the one asked, drawn uniformly from all such tasks.

        So it is exact for training tasks. Each letter is predicted by Bayes over these tasks from the letters before it. A task
        gives its letter the probability 1 - ε. compositions (N, L), inputs and answer (N, S), train (K, L) and its `maps` (K, A)
        or (K, S) -> probabilities (N, S, A).
        """
        byte = np.min_scalar_type(self.n_slots * self._width)  # small type, because this array is the costly one
        slots = np.ascontiguousarray(train.T.astype(byte))  # (L, K)
        out = np.empty((*answer.shape, self.n_letters))
        for i, asked in enumerate(compositions.astype(byte)):
            shared = np.zeros(len(train), dtype=np.uint8)  # functions in common with each training task
            for slot, function in zip(slots, asked, strict=True):
                shared += slot == function
            near = maps[shared == shared.max()]
            given = near[:, inputs[i]] if self.kind == "letters" else inputs[i][near]  # (nearest, S)
            weight = np.ones(len(near))
            for s, letter in enumerate(answer[i]):
                out[i, s] = np.bincount(given[:, s], weight, self.n_letters) / weight.sum()
                weight *= self._smooth(given[:, s] == letter)
        return self._smooth(out)

    def _reference(self, arm: str, probs: np.ndarray, answer: np.ndarray) -> Reference:
        """Scores of probabilities (N, S, A) on the letters of the answer (N, S), moved to their positions: (N, T) each."""
        before = np.zeros((len(answer), self.length(arm) - self.n_input))
        return Reference(*(np.concatenate([before, scores], axis=1) for scores in graded(probs, answer)))
