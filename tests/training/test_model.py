"""The transformer, against a slow one written in numpy, and its properties."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from trainers.engine.rows import Rows
from trainers.models.transformer import Transformer, build
from trainers.objectives.supervised import Supervised
from trainers.records import Numbers
from trainers.shapes import Model

V, T = 11, 9
OPTIONS = list(itertools.product(("rms", "layer"), ("rotary", "learned"), (0, 3)))
every_option = pytest.mark.parametrize(("norm", "positions", "conv_kernel"), OPTIONS)


def net_of(
    norm: str = "rms", positions: str = "rotary", conv_kernel: int = 0, replicate: int = 0, **shape
) -> Transformer:
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24} | shape
    return build(Model(norm=norm, positions=positions, conv_kernel=conv_kernel, **shape), V, T, replicate)


def tokens_of(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, V, (n, T)))


def slow_logits(net: Transformer, tokens: list[int], n_heads: int) -> np.ndarray:
    """One sequence through the same weights, one position and one head at a time, in float64."""
    w = {name: p.detach().numpy().astype(np.float64) for name, p in net.named_parameters()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        if f"{name}.bias" in w:
            return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        return x / np.sqrt((x**2).mean() + np.finfo(np.float32).eps) * w[f"{name}.weight"]

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        if "position" in w:
            return x
        half = len(x) // 2
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    xs = [w["embed.weight"][t] + (w["position"][i] if "position" in w else 0) for i, t in enumerate(tokens)]
    width = len(xs[0]) // n_heads
    for layer in range(len(net.blocks)):
        at = f"blocks.{layer}"
        hs = [norm(x, f"{at}.norm_attention") for x in xs]
        if f"{at}.conv.weight" in w:
            kernel = w[f"{at}.conv.weight"]
            hs = [h + sum(kernel[j] * hs[i - j] for j in range(len(kernel)) if i >= j) for i, h in enumerate(hs)]
        qkv = [w[f"{at}.attention.qkv.weight"] @ h for h in hs]
        mixed = []
        for i in range(len(xs)):
            heads = []
            for head in range(n_heads):
                part = [slice((k * n_heads + head) * width, (k * n_heads + head + 1) * width) for k in range(3)]
                q = turned(qkv[i][part[0]], i)
                scores = [q @ turned(qkv[j][part[1]], j) / math.sqrt(width) for j in range(i + 1)]
                heads.append(special.softmax(scores) @ [qkv[j][part[2]] for j in range(i + 1)])
            mixed.append(w[f"{at}.attention.out.weight"] @ np.concatenate(heads))
        xs = [x + m for x, m in zip(xs, mixed, strict=True)]
        for i, x in enumerate(xs):
            up = w[f"{at}.up.weight"] @ norm(x, f"{at}.norm_mlp")
            xs[i] = x + w[f"{at}.down.weight"] @ (up * stats.norm.cdf(up))  # the exact GELU
    return np.array([w["unembed.weight"] @ norm(x, "norm") for x in xs])


# What it computes ------------------------------------------------------------------------------------------------


@every_option
@torch.no_grad()
def test_the_transformer_agrees_with_a_slow_one(norm, positions, conv_kernel):
    net, tokens = net_of(norm, positions, conv_kernel, init_gain=1.5), tokens_of(2)
    for name, parameter in net.named_parameters():
        if "norm" in name:  # ones and zeros would hide a norm that is not applied
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    for row, logits in zip(tokens, net(tokens), strict=True):
        assert np.allclose(logits.numpy(), slow_logits(net, row.tolist(), 2), rtol=0, atol=2e-5)


@every_option
@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_prediction(norm, positions, conv_kernel):
    net, tokens = net_of(norm, positions, conv_kernel), tokens_of(4)
    before = net(tokens)
    for position in range(T):
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % V
        after = net(other)
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(dim=2).all()  # and does change all that follow


# Loss ------------------------------------------------------------------------------------------------------------


def loss_of(net: Transformer, tokens: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The log loss of targets (B, T) that need not be the next tokens."""
    return torch.nn.functional.cross_entropy(net(tokens, mask), targets[mask])


def test_the_loss_is_the_mean_over_the_positions_that_the_mask_names():
    net, tokens, targets = net_of(), tokens_of(), tokens_of(seed=1)
    mask = torch.from_numpy(np.random.default_rng(2).random((3, T)) < 0.4)
    log_probs = special.log_softmax(net(tokens).detach().numpy().astype(np.float64), axis=-1)
    losses = [-log_probs[b, t, targets[b, t]] for b, t in itertools.product(range(3), range(T)) if mask[b, t]]
    assert 3 < len(losses) < 3 * T
    assert loss_of(net, tokens, targets, mask).item() == pytest.approx(np.mean(losses), rel=1e-6)


@every_option
def test_every_parameter_learns(norm, positions, conv_kernel):
    net = net_of(norm, positions, conv_kernel)
    loss_of(net, tokens_of(20), tokens_of(20, seed=1), torch.ones(20, T, dtype=torch.bool)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Numbers ---------------------------------------------------------------------------------------------------------


def net_of_numbers(norm: str = "rms", positions: str = "rotary", conv_kernel: int = 0) -> Transformer:
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_mlp": 24}
    return build(Model(norm=norm, positions=positions, conv_kernel=conv_kernel, **shape), 1, T, 0, None, NUMBERS)


NUMBERS = Numbers(V, 0.3)
of_numbers = pytest.mark.parametrize(("norm", "positions", "conv_kernel"), OPTIONS[::3])


@of_numbers
@torch.no_grad()
def test_numbers_that_are_a_one_at_an_id_are_read_as_the_id(norm, positions, conv_kernel):
    """Given the weights of a model of ids, its predictions are the first of that model's logits."""
    net, ids, tokens = net_of_numbers(norm, positions, conv_kernel), net_of(norm, positions, conv_kernel), tokens_of()
    weights = ids.state_dict()
    weights |= {"embed.weight": weights["embed.weight"].T, "embed.bias": torch.zeros(16)}
    net.load_state_dict(weights | {"unembed.weight": weights["unembed.weight"][:1]})
    found = net(torch.nn.functional.one_hot(tokens, V).float())
    torch.testing.assert_close(found, ids(tokens)[:, :, :1])


@of_numbers
def test_the_loss_of_numbers_is_the_mean_log_density_of_a_normal_law_and_teaches_every_parameter(
    norm, positions, conv_kernel
):
    net, draw = net_of_numbers(norm, positions, conv_kernel), np.random.default_rng(0)
    numbers = torch.from_numpy(draw.normal(size=(20, T + 1, V)).astype("float32"))
    mask = torch.from_numpy(draw.random((20, T)) < 0.4)
    learning: Any = SimpleNamespace(family=SimpleNamespace(numbers=NUMBERS))
    loss = Supervised(learning).loss(net, Rows(numbers, mask))
    predicted, truth = net(numbers[:, :-1]).detach()[:, :, 0].numpy(), numbers[:, 1:, 0].numpy()
    densities = stats.norm(predicted, math.sqrt(0.3)).logpdf(truth)[mask.numpy()]
    assert loss.item() == pytest.approx(-densities.mean(), rel=1e-5)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Weights at the start --------------------------------------------------------------------------------------------


def weights_of(net: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def test_initial_weights_depend_on_replicate_and_name_alone():
    base = weights_of(net_of())
    for other in (net_of(n_layers=4), net_of(conv_kernel=4), net_of(positions="learned"), net_of(n_heads=4)):
        found = weights_of(other)
        shared = [name for name in base if name in found]
        assert len(shared) >= 14
        assert all(torch.equal(base[name], found[name]) for name in shared)


def test_initial_weights_take_nothing_from_torchs_global_generator():
    torch.manual_seed(1)
    one = weights_of(net_of())
    torch.manual_seed(2)
    other = weights_of(net_of())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_two_matrices_and_no_two_replicates_start_alike():
    nets = [weights_of(net_of(conv_kernel=3, replicate=replicate)) for replicate in range(3)]
    drawn = [values.flatten() for net in nets for name, values in net.items() if "norm" not in name]
    numbers = torch.cat(drawn)
    assert len(numbers) == 3 * (2 * V * 16 + 2 * (4 * 256 + 2 * 16 * 24 + 3 * 16))
    assert len(numbers.unique()) > 0.999 * len(numbers)  # a few float32 coincide, no matrix does


def test_initial_weights_have_the_spread_that_the_spec_states():
    model = Model(n_layers=1, d_model=128, n_heads=2, d_mlp=512, conv_kernel=64, init_gain=0.7, embed_std=0.3)
    spread = {"embed": 0.3, "qkv": 0.7 / 128**0.5, "attention.out": 0.7 / 128**0.5, "up": 0.7 / 128**0.5}
    spread |= {"down": 0.7 / 512**0.5, "conv": 0.7 / 64**0.5, "unembed": 0.7 / 128**0.5}
    found = weights_of(build(model, 100, 8, 0))
    for part, std in spread.items():
        (name,) = [n for n in found if n.removesuffix(".weight").endswith(part) and not (part == "embed" and "un" in n)]
        assert stats.kstest(found[name].numpy().ravel() / std, "norm").pvalue > 1e-3, name
    learned = build(Model(d_model=128, positions="learned", embed_std=0.3), 5, 50, 0).position.detach().numpy()
    assert stats.kstest(learned.ravel() / 0.3, "norm").pvalue > 1e-3


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_start_as_one_and_zero(norm):
    found = {name: values for name, values in weights_of(net_of(norm)).items() if "norm" in name}
    assert len(found) == 5 * (2 if norm == "layer" else 1)
    assert all((values == (0 if name.endswith("bias") else 1)).all() for name, values in found.items())


def test_initial_weights_are_what_they_were_when_this_was_written():
    found = weights_of(net_of(conv_kernel=2, positions="learned"))
    golden = {
        "embed.weight": 1.8772665,
        "position": 0.23072641,
        "blocks.1.conv.weight": -0.38760346,
        "blocks.0.attention.qkv.weight": 0.048394714,
    }
    for name, value in golden.items():
        assert found[name].flatten()[-1].item() == pytest.approx(value, rel=1e-6)


def test_a_window_of_attention_sees_no_further_than_its_window():
    """With one layer, a token further back than the window changes nothing at the last position."""
    model = Model(n_layers=1, d_model=16, n_heads=2, d_mlp=16, attention_window=3)
    net = build(model, vocab_size=7, seq_len=8, replicate=0)
    tokens = torch.randint(0, 7, (2, 8), generator=torch.Generator().manual_seed(0))
    far, near = tokens.clone(), tokens.clone()
    far[:, 4], near[:, 5] = (tokens[:, 4] + 1) % 7, (tokens[:, 5] + 1) % 7
    with torch.no_grad():
        assert torch.equal(net(tokens)[:, 7], net(far)[:, 7])
        assert not torch.equal(net(tokens)[:, 7], net(near)[:, 7])
