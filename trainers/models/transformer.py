"""The decoder-only transformer. `shapes.Model` gives its shape.

Each parameter is drawn from its own named numpy stream. So its initial weights are the same on every device, and do not depend
on the other parameters of the model.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.records import Numbers
from trainers.shapes import Model
from trainers.streams import stream

ROTARY_BASE = 10_000.0
"""Pair i of a head with half the width h is rotated by position / ROTARY_BASE^(i / h) radians."""


class BlockCache(NamedTuple):
    """A block's part of a `Cache` in one forward pass over T tokens of each row."""

    slots: dict[str, Tensor]
    """`keys` and `values` (B, H, P, D/H), and with a convolution its `inputs` (B, 1, P, D), for P positions."""
    positions: Tensor | None
    """Positions (B, T) of the tokens in this pass. None: the first T of each row."""
    rows: Tensor | None = None
    """Numbers of the rows (B, 1)."""
    seen: Tensor | None = None
    """The slots (B, 1, T, S) that attention sees, of the S in use. None in a first pass: its tokens see each other alone."""

    def put(self, name: str, new: Tensor) -> Tensor:
        """Keep `new` (B, H, T, E) in the slots `name`. Returns all slots in use (B, H, S, E)."""
        slots = self.slots[name]
        if self.seen is None:
            slots[:, :, : new.shape[2]] = new
            return new
        slots[self.rows, :, self.positions] = new.transpose(1, 2).to(slots.dtype)
        return slots[:, :, : self.seen.shape[-1]]


class Cache:
    """Keys, values and inputs of the convolution for all tokens that each row has read, so that they are not read again.

    A token's slot is its position in its row, and a token sees only slots up to its own. So prompts of different lengths are
    padded on the right: no token of the row sees the padding, and the row's later tokens overwrite it. A row keeps the positions
    that it has alone, and its neighbours' lengths do not matter. The first pass is that of training, without a mask.
    Padding on the left would need a mask in attention and in the convolution, in the first pass as well.
    """

    def __init__(self, blocks: list[dict[str, Tensor]]) -> None:
        self.blocks, self.n_used = blocks, 0

    def advance(self, shape: torch.Size, positions: Tensor | None, window: int) -> list[BlockCache]:
        """The blocks' parts for a pass over tokens of this shape (B, T). Without positions it starts where the last pass ended."""
        B, T = shape
        device = self.blocks[0]["keys"].device
        if self.n_used and positions is None:
            positions = torch.arange(self.n_used, self.n_used + T, device=device).expand(B, T)
        self.n_used += T
        if positions is None:
            return [BlockCache(slots, None) for slots in self.blocks]
        rows = torch.arange(B, device=device)[:, None]
        behind = positions[:, :, None] - torch.arange(self.n_used, device=device)  # (B, T, S)
        seen = behind >= 0
        if window:
            seen &= behind < window
        return [BlockCache(slots, positions, rows, seen[:, None]) for slots in self.blocks]

    def select(self, rows: Tensor) -> None:
        """Keep these rows (n,), in this order. A row may be named several times."""
        self.blocks = [{name: kept[rows] for name, kept in slots.items()} for slots in self.blocks]


class CausalConvolution(nn.Module):
    """Depthwise causal convolution over time with a residual: y_t = x_t + sum_j w_j * x_{t-j}.  (B, T, D) -> same.

    With `segments` (B, T) it uses only tokens of the same segment.

    It is a sum of shifted products. On a CPU, `conv1d` with one group per channel made a step of the quickstart's model slower
    (25.8 against 23.2 ms and 38 against 27 ms, in two runs on a busy machine).
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, width))

    def forward(self, x: Tensor, segments: Tensor | None = None, cache: BlockCache | None = None) -> Tensor:
        inputs = x if cache is None else cache.put("inputs", x[:, None])[:, 0]
        if cache is not None and cache.positions is not None:
            return self._of_slots(x, inputs, cache.positions)
        kernel, seq_len = self.weight.shape[0], x.shape[1]
        padded = F.pad(x, (0, 0, kernel - 1, 0))  # (B, T + k - 1, D)
        out = x
        for j in range(kernel):
            before = padded[:, kernel - 1 - j : kernel - 1 - j + seq_len]
            if segments is not None:  # tokens of another segment count as padding
                before = before * (F.pad(segments, (j, 0), value=-1)[:, :seq_len] == segments)[:, :, None]
            out = out + self.weight[j] * before
        return out

    def _of_slots(self, x: Tensor, inputs: Tensor, positions: Tensor) -> Tensor:
        """The convolution at `positions` (B, T) of rows whose inputs (B, S, D) are known in slots by position."""
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        places = positions[:, :, None] - torch.arange(len(self.weight), device=x.device)  # (B, T, k)
        before = inputs[rows, places.clamp(min=0)] * (places >= 0)[..., None]  # (B, T, k, D)
        return x + (before * self.weight).sum(2)


class Attention(nn.Module):
    """Multi-head causal attention over all earlier positions or a window of them.  (B, T, D) -> (B, T, D).

    `angles` are the cosines and sines for `rotate`; None for learned positions. With `segments` (B, T) a token attends only to
    its own segment.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.n_heads, self.window = model.n_heads, model.attention_window
        self.qkv = nn.Linear(model.d_model, 3 * model.d_model, bias=False)
        self.out = nn.Linear(model.d_model, model.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        segments: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        B, T, D = x.shape
        q_k, v = self.qkv(x).view(B, T, 3, self.n_heads, D // self.n_heads).split((2, 1), dim=2)
        if angles is not None:
            q_k = rotate(q_k, *angles)  # (B, T, 2, H, D/H): both at once, half the operations
        q, k, v = (part.transpose(1, 2) for part in (*q_k.unbind(2), v.squeeze(2)))  # each (B, H, T, D/H)
        if cache is not None:
            k, v = cache.put("keys", k), cache.put("values", v)
        if cache is not None and cache.seen is not None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.seen)
        elif self.window or segments is not None:
            behind = torch.arange(T, device=x.device)[:, None] - torch.arange(T, device=x.device)  # (T, T)
            seen = (behind >= 0) & (behind < (self.window or T))
            if segments is not None:
                seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])  # (B, 1, T, T)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): the numbers i and i + E/2 of a vector are rotated by an angle, as a point in the plane.

    The angle grows with the position. vectors (B, T, ..., E), cos and sin (T, E/2) or (B, T, E/2) -> same shape as vectors.
    """
    shape = (*cos.shape[:-1], *(1 for _ in vectors.shape[2:-1]), cos.shape[-1])
    cos, sin = cos.view(shape), sin.view(shape)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """Attention, then an MLP, each with a residual connection. With `conv_kernel` the input of attention is convolved first."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        norm = nn.RMSNorm if model.norm == "rms" else nn.LayerNorm
        self.conv = CausalConvolution(model.d_model, model.conv_kernel) if model.conv_kernel else None
        self.norm_attention = norm(model.d_model)
        self.attention = Attention(model)
        self.norm_mlp = norm(model.d_model)
        self.up = nn.Linear(model.d_model, model.d_mlp, bias=False)
        self.down = nn.Linear(model.d_mlp, model.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        segments: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        h = self.norm_attention(x)
        if self.conv is not None:
            h = self.conv(h, segments, cache)
        x = x + self.attention(h, angles, segments, cache)
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Transformer(nn.Module):
    """Tokens (B, T) int64 -> logits of the next token (B, T, vocab_size) fp32.

    With a mask `at` (B, T) it returns only the logits of its n set positions: (n, vocab_size).

    With `numbers`: tokens (B, T, width) float -> predictions (B, T, 1) of the first number of the next token. The embedding
    then has a bias. Without it, the norm of the first block would keep only the sign of a token with a single number.

    Several sequences may share a row. `segments` (B, T) is the number of each token's sequence, and attention stays within a
    sequence. `positions` (B, T) count from 0 in each sequence and stay below `seq_len`. Left out, a row is one sequence.

    With a `cache` (`new_cache`) a row continues the tokens that earlier passes read into it. `positions` are those in the row.
    A row whose earlier tokens ended in padding continues at the padding's first position.
    """

    def __init__(self, model: Model, vocab_size: int, seq_len: int, numbers: Numbers | None = None) -> None:
        super().__init__()
        norm = nn.RMSNorm if model.norm == "rms" else nn.LayerNorm
        self.numbers = numbers
        self.model, self.seq_len = model, seq_len
        self.recompute = False  # keep only each block's input for the backward pass; the engine sets it from the place
        self.embed = nn.Linear(numbers.width, model.d_model) if numbers else nn.Embedding(vocab_size, model.d_model)
        self.position = nn.Parameter(torch.empty(seq_len, model.d_model)) if model.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.n_layers))
        self.norm = norm(model.d_model)
        self.unembed = nn.Linear(model.d_model, vocab_size, bias=False)
        if model.positions == "rotary":
            half = model.d_model // model.n_heads // 2
            self.cos: Tensor
            self.sin: Tensor
            rates = ROTARY_BASE ** (-torch.arange(half) / half)
            angles = torch.arange(seq_len)[:, None] * rates  # (T, E/2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

    def new_cache(self, n_sequences: int, n_positions: int) -> Cache:
        """An empty cache for rows of at most `n_positions` tokens, on the weights' device.

        Keys and values have the precision in which attention reads them. So call it under the autocast of the passes to come.
        A position of a row takes 2 x n_layers x d_model numbers, and with a convolution n_layers x d_model fp32 numbers more.
        Raises ValueError for more positions than the model has.
        """
        if n_positions > self.seq_len:
            raise ValueError(f"{n_positions} positions are needed; the model has {self.seq_len}")
        weight, width, n_heads = self.unembed.weight, self.model.d_model, self.model.n_heads
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        blocks = []
        for _ in self.blocks:
            shape = (n_sequences, n_heads, n_positions, width // n_heads)
            slots = {name: weight.new_zeros(shape, dtype=dtype) for name in ("keys", "values")}
            if self.model.conv_kernel:
                slots["inputs"] = weight.new_zeros(n_sequences, 1, n_positions, width)
            blocks.append(slots)
        return Cache(blocks)

    def forward(
        self,
        tokens: Tensor,
        at: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        parts = None
        if cache is not None:
            if segments is not None:
                raise ValueError("with a cache each row is one sequence; leave segments out")
            parts = cache.advance(tokens.shape[:2], positions, self.model.attention_window)
            positions = parts[0].positions
        where: Any = slice(tokens.shape[1]) if positions is None else positions
        x = self.embed(tokens)  # (B, T, D)
        if self.position is not None:
            x = x + self.position[where]
        angles = (self.cos[where], self.sin[where]) if self.position is None else None
        for i, block in enumerate(self.blocks):
            if parts is not None:  # not compiled: each pass has another shape
                x = block.forward(x, angles, None, parts[i])
                continue
            again = self.recompute and torch.is_grad_enabled()
            given = (x, angles, segments) if segments is not None else (x, angles)
            x = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        x = self.norm(x)
        return self.unembed(x if at is None else x[at]).float()


def build(
    model: Model,
    vocab_size: int,
    seq_len: int,
    replicate: int,
    base_d_model: int | None = None,
    numbers: Numbers | None = None,
) -> Transformer:
    """A transformer with the initial weights of a replicate: matrices N(0, init_gain²/fan_in), embeddings N(0, embed_std²).

    With `base_d_model` the output matrix is N(0, init_gain²/fan_in * base_d_model/d_model), by the maximal update rule.
    """
    net = Transformer(model, vocab_size, seq_len, numbers)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name:
                continue  # ones and zeros, as built
            if name.startswith(("embed", "position")):
                std = model.embed_std  # also for tokens that are numbers: a 1 is embedded like a look-up
            else:  # (out, in) matrices, and the convolution's (kernel, width), which sums over the kernel
                fan_in = parameter.shape[0] if name.endswith("conv.weight") else parameter.shape[1]
                std = model.init_gain / math.sqrt(fan_in)
                if base_d_model is not None and name.startswith("unembed"):
                    std *= math.sqrt(base_d_model / model.d_model)
            draw = stream("weights", replicate, name).standard_normal(tuple(parameter.shape), dtype="float32")
            parameter.copy_(torch.from_numpy(draw) * std)
    return net
