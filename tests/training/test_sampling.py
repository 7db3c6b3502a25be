"""Free-running answers: with the cache as without it, drawn from the model's distribution, and alone as in a batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from trainers.models.transformer import Transformer, build
from trainers.sampling import Answers, Keys, generate
from trainers.shapes import Model

V, T = 13, 32
OPTIONS = list(itertools.product(("rotary", "learned"), (0, 3), (0, 3)))
every_option = pytest.mark.parametrize(("positions", "attention_window", "conv_kernel"), OPTIONS)
PROMPTS = [np.random.default_rng(i).integers(0, V, n) for i, n in enumerate((3, 11, 1, 6, 6, 2))]
NEVER = V + 5  # an end that no model writes


def net_of(positions: str = "rotary", attention_window: int = 0, conv_kernel: int = 3, **shape) -> Transformer:
    """Weights as large as those of a trained model: the likeliest token is clear, and answers do not fall into one token."""
    shape = {"n_layers": 2, "d_model": 24, "n_heads": 2, "d_mlp": 48, "init_gain": 2.0} | shape
    model = Model(positions=positions, attention_window=attention_window, conv_kernel=conv_kernel, **shape)
    return build(model, V, T, 0)


def keys_of(n: int, *purpose: int) -> Keys:
    """A prompt of its own for each of n rows."""
    return Keys(purpose, np.arange(n), np.zeros(n, int))


def some(answers: Answers, rows: slice | list[int]) -> Answers:
    return Answers(*(part[rows] for part in answers))


def assert_equal(found: Answers, expected: Answers) -> None:
    for name, one, other in zip(Answers._fields, found, expected, strict=True):
        if name == "log_probs":
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
        else:
            np.testing.assert_array_equal(one, other, name)


@torch.no_grad()
def uncached(net: Transformer, prompt: np.ndarray, n_new: int) -> tuple[list[int], float]:
    """The likeliest tokens of a prompt alone, each from a pass over all tokens before it, and the smallest margin of a choice."""
    tokens, margin = prompt.tolist(), math.inf
    for _ in range(n_new):
        first, second = net(torch.tensor([tokens]))[0, -1].topk(2)[0].tolist()
        margin = min(margin, first - second)
        tokens.append(int(net(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :], margin


# The cache -------------------------------------------------------------------------------------------------------


@every_option
def test_greedy_answers_equal_those_without_a_cache_token_for_token(positions, attention_window, conv_kernel):
    net = net_of(positions, attention_window, conv_kernel)
    found = generate(net, PROMPTS, 20, NEVER)
    for prompt, tokens in zip(PROMPTS, found.tokens, strict=True):
        expected, margin = uncached(net, prompt, 20)
        assert margin > 1e-4  # hundreds of times the rounding: no token is open to chance
        assert tokens.tolist() == expected
    assert len({tuple(tokens) for tokens in found.tokens}) == len(PROMPTS) and not found.ended.any()


@every_option
@torch.no_grad()
def test_rows_may_be_read_in_passes_of_any_length(positions, attention_window, conv_kernel):
    net = net_of(positions, attention_window, conv_kernel)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, V, (3, T)))
    cache = net.new_cache(3, T)
    passes = tokens.split([5, 1, 2, 20, 4], dim=1)
    together = torch.cat([net(part, cache=cache) for part in passes], dim=1)
    torch.testing.assert_close(together, net(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("conv_kernel", [0, 3])
@torch.no_grad()
def test_under_autocast_the_cache_has_the_precision_of_attention(conv_kernel):
    """Two orders of bf16 sums may choose other tokens. So logits are compared: they differ less than those of fp32 do."""
    net, tokens = net_of(conv_kernel=conv_kernel), torch.from_numpy(np.stack([PROMPTS[1]] * 2))
    with torch.autocast("cpu", torch.bfloat16):
        cache = net.new_cache(2, 11)
        found = torch.cat([net(part, cache=cache) for part in tokens.split([4] + [1] * 7, dim=1)], dim=1)
        expected = net(tokens)
    assert {slots.dtype for block in cache.blocks for name, slots in block.items() if name != "inputs"} == {
        torch.bfloat16
    }
    spread = (expected - net(tokens)).abs().mean()
    assert (found - expected).abs().mean() < spread and spread > 0.01


@torch.no_grad()
def test_a_cache_refuses_packed_rows_and_too_many_positions():
    net = net_of()
    with pytest.raises(ValueError, match=f"{T + 1}.*{T}"):
        net.new_cache(2, T + 1)
    with pytest.raises(ValueError, match="segments"):
        net(torch.zeros(1, 4, dtype=torch.int64), segments=torch.zeros(1, 4), cache=net.new_cache(1, 4))


# Rows ------------------------------------------------------------------------------------------------------------


@every_option
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_depends_neither_on_its_neighbours_nor_on_the_split(
    positions, attention_window, conv_kernel, temperature
):
    net, keys = net_of(positions, attention_window, conv_kernel), keys_of(len(PROMPTS), 0, 7)
    together = generate(net, PROMPTS, 12, 0, temperature=temperature, keys=keys)
    for size in (1, 4):
        assert_equal(generate(net, PROMPTS, 12, 0, temperature=temperature, keys=keys, at_once=size), together)
    rows = [4, 1]
    part = Keys(keys.purpose, keys.prompts[rows], keys.samples[rows])
    chosen = [PROMPTS[i] for i in rows]
    assert_equal(generate(net, chosen, 12, 0, temperature=temperature, keys=part), some(together, rows))


def test_prompts_that_repeat_are_read_once_and_answered_each():
    net, order, sizes = net_of(), [2, 0, 2, 1, 0, 0], []
    prompts, samples = [PROMPTS[i] for i in order], np.arange(6)
    for temperature in (0.0, 1.0):

        def answers(rows: list[int], temperature: float = temperature) -> Answers:
            keys = Keys((0, 0), np.array(order)[rows], samples[rows])
            return generate(net, [prompts[i] for i in rows], 12, NEVER, temperature=temperature, keys=keys)

        alone = [answers([i]) for i in range(6)]
        hook = net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        together = answers(list(range(6)))
        hook.remove()
        assert_equal(together, Answers(*map(np.concatenate, zip(*alone, strict=True))))
    assert sizes[:2] == [3, 6] and len({tuple(tokens) for tokens in together.tokens}) == 6


@pytest.mark.parametrize("end", range(V))
def test_an_answer_ends_at_its_first_end_whatever_the_others_do(end):
    net = net_of()
    free = generate(net, PROMPTS, 20, NEVER)
    found = generate(net, PROMPTS, 20, end)
    for i, tokens in enumerate(free.tokens.tolist()):
        n = tokens.index(end) if end in tokens else 20
        assert found.tokens[i].tolist() == tokens[:n] + [end] * (20 - n)
        assert (found.n_tokens[i], found.ended[i]) == (n, end in tokens)
        written = min(n + 1, 20)
        np.testing.assert_allclose(found.log_probs[i, :written], free.log_probs[i, :written], rtol=0, atol=1e-4)
        assert (found.log_probs[i, written:] == 0).all() and (free.log_probs[i] < 0).all()


def test_rows_leave_after_their_end_and_the_last_end_ends_the_reading():
    net, keys, others = net_of(), keys_of(64), range(4, V)
    sizes, calls = [], []
    net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found = generate(
        net, [PROMPTS[0]] * 64, 29, 0, temperature=9.0, keys=keys, forbidden=others, before=lambda: calls.append(1)
    )
    lengths = found.n_tokens + found.ended
    assert found.ended.all() and len(calls) == 29 > lengths.max() == len(sizes)
    assert sizes[0] == 1  # equal prompts are read once
    for i, size in enumerate(sizes[1:], 1):
        live = (lengths > i).sum()
        assert live <= size < 2 * live
    with pytest.raises(KeyboardInterrupt):
        generate(net, PROMPTS, 4, 0, before=lambda: (_ for _ in ()).throw(KeyboardInterrupt))


# Chance ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_sampled_pairs_of_tokens_are_as_frequent_as_the_model_says():
    net, n, banned, temperature = net_of(init_gain=1.0), 20_000, [2, 5], 1.5
    keys = Keys((0, 3), np.full(n, 9), np.arange(n))
    found = generate(
        net, [PROMPTS[0]] * n, 2, NEVER, temperature=temperature, keys=keys, forbidden=banned, at_once=7000
    )

    def chances(tokens: np.ndarray) -> np.ndarray:
        logits = net(torch.from_numpy(tokens))[:, -1].double() / temperature
        logits[:, banned] = -torch.inf
        return logits.softmax(1).numpy()

    first = chances(PROMPTS[0][None])[0]
    second = chances(np.stack([np.append(PROMPTS[0], i) for i in range(V)]))
    expected = first[:, None] * second
    counts = np.zeros((V, V))
    np.add.at(counts, tuple(found.tokens.T), 1)
    possible = expected > 0
    assert counts[~possible].sum() == 0 and possible.sum() == (V - 2) ** 2 and (n * expected[possible]).min() > 5
    assert stats.chisquare(counts[possible], n * expected[possible]).pvalue > 1e-3
    one, two = found.tokens.T
    np.testing.assert_allclose(found.log_probs, np.log([first[one], second[one, two]]).T, rtol=0, atol=1e-4)


def test_every_replicate_step_prompt_and_sample_has_draws_of_its_own():
    net, prompts = net_of(), [PROMPTS[1]] * 2
    draws = [
        generate(net, prompts, 12, NEVER, temperature=2.0, keys=Keys(purpose, np.array([i, 10 * i]), np.array([j, j])))
        for purpose in ((0, 0), (0, 1), (1, 0))
        for i, j in ((1, 0), (1, 1), (2, 0))
    ]
    again = generate(net, prompts, 12, NEVER, temperature=2.0, keys=Keys((0, 0), np.array([1, 10]), np.array([0, 0])))
    assert_equal(again, draws[0])
    assert len({tuple(tokens) for found in draws for tokens in found.tokens}) == 18


def test_a_low_temperature_is_greedy_and_forbidden_ids_are_never_written():
    net = net_of()
    cold = generate(net, PROMPTS, 12, NEVER, temperature=1e-6, keys=keys_of(len(PROMPTS)))
    greedy = generate(net, PROMPTS, 12, NEVER)
    np.testing.assert_array_equal(cold.tokens, greedy.tokens)
    banned = np.unique(greedy.tokens)[:4].tolist()
    assert not np.isin(generate(net, PROMPTS, 12, NEVER, forbidden=banned).tokens, banned).any()


def test_what_cannot_be_answered_is_refused():
    net = net_of()
    generate(net, PROMPTS, T - 11 + 1, 0)  # the last new token is not read
    with pytest.raises(ValueError, match=rf"11 .*{T - 11 + 2} .*{T + 1}.*{T}"):
        generate(net, PROMPTS, T - 11 + 2, 0)
    with pytest.raises(ValueError, match="prompt 1"):
        generate(net, [PROMPTS[0], PROMPTS[0][:0]], 4, 0)
    for temperature, keys in ((1.0, None), (-1.0, keys_of(1)), (1.0, keys_of(2))):
        with pytest.raises(ValueError, match="keys"):
            generate(net, PROMPTS[:1], 4, 0, temperature=temperature, keys=keys)
    assert generate(net, [], 4, 0).tokens.shape == (0, 4)
