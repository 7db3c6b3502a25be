"""The shape of a model, and its parameters, FLOPs and bytes from that shape alone. No torch here.

`Model` holds the widths. `Dial` gives them by one number or name: `model: {depth: 6}` or `model: {preset: 124m}` in a study.
A model of depth n has n blocks and is 64 n wide. The rule is in common use (nanochat's `depth`). Depth 12 is the shape of
GPT-2 small (Radford et al. 2019). `Shape` counts parameters, FLOPs and bytes.
"""

from __future__ import annotations

import difflib
import functools
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import field_validator, model_validator

from trainers.records import Count, Index, Limit, Numbers, Positive, Record, flops_words


class Model(Record):
    """Widths and kind of the decoder-only transformer (`trainers/models/transformer.py`)."""

    n_layers: Annotated[Count, Limit(1000)] = 2
    """Number of blocks. Each is attention, then an MLP, each with a residual connection."""
    d_model: Annotated[Count, Limit(100_000)] = 64
    """Width of the residual stream; a multiple of `n_heads`."""
    n_heads: Annotated[Count, Limit(10_000)] = 4
    """Attention heads."""
    d_mlp: Annotated[Count, Limit(1e6)] = 256
    """Width of the hidden layer of the MLP."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalisation before attention, MLP and output: RMSNorm or LayerNorm."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary angles inside attention, or a learned vector added to each token."""
    conv_kernel: Annotated[Index, Limit(10_000)] = 0
    """Length of a depthwise causal convolution before attention; 0 means none. It is a strong inductive bias."""
    attention_window: Annotated[Index, Limit(1e6)] = 0
    """Positions that attention sees, its own included; 0 means all earlier ones. It is an inductive bias."""
    init_gain: Annotated[Positive, Limit(1000)] = 0.58
    """Weight matrices start as N(0, init_gain² / fan_in). 0.58 is 1/sqrt(3), as in torch's default uniform."""
    embed_std: Annotated[Positive, Limit(1000)] = 1.0
    """Standard deviation of token and learned position vectors at the start."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_dial(cls, value: Any) -> Any:
        """Replace the keys `preset` or `depth` (`Dial`) by the widths. Only the widths are recorded."""
        if not isinstance(value, dict) or not {"preset", "depth"} & value.keys():
            return value
        return expanded(value)

    @model_validator(mode="after")
    def _widths_fit(self) -> Model:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")
        if self.positions == "rotary" and (self.d_model // self.n_heads) % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.d_model // self.n_heads}")
        return self


WIDTH_PER_DEPTH = 64
"""A model of depth n is this many times n wide. A head is this wide too, if d_model is at least MIN_HEADS times that."""
MIN_HEADS = 4
"""Models narrower than 4 x 64 keep four heads, each narrower than 64. One or two heads cannot attend to several places."""


def _shape(n_layers: int, d_model: int) -> Model:
    """A model whose MLP is four times as wide as the residual stream, with heads by WIDTH_PER_DEPTH and MIN_HEADS."""
    n_heads = max(MIN_HEADS, d_model // WIDTH_PER_DEPTH)
    return Model(n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_mlp=4 * d_model)


def of_depth(depth: int) -> Model:
    """A model of `depth` blocks, 64 x depth wide. Its MLP is four times as wide. Heads are 64 wide; below depth 4 it has four.

    Raises ValueError for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth {depth}: a model has at least one block")
    return _shape(depth, WIDTH_PER_DEPTH * depth)


PRESETS: dict[str, Model] = {
    "0.1m": _shape(2, 64),
    "0.3m": _shape(2, 96),
    "0.7m": _shape(3, 128),
    "1.4m": of_depth(3),
    "3.3m": of_depth(4),
    "7.5m": _shape(6, 320),
    "17m": of_depth(7),
    "45m": _shape(9, 640),
    "124m": of_depth(12),
    "350m": _shape(24, 1024),
}
"""Models by name, ascending. A name is the number of parameters. Each model is 2 to 3 times as large as the one before.

The number is `Shape.n_parameters` for a vocabulary of 256 and 1,024 positions (rotary positions have no parameters). The last
two have the usual names of these shapes, GPT-2 small and GPT-3's medium (Brown et al. 2020, table 2.1). Those names count
GPT-2's vocabulary of 50,257, with one table shared by input and output. Ours has two tables: with 256 tokens they have 85 and
303 million parameters, with 50,257 tokens 162 and 405 million."""


class Dial(Record):
    """The keys of a study's `model` that set all four widths at once. Only the resulting widths are recorded."""

    preset: str | None = None
    """Name of a model, instead of its four widths: `0.1m` ... `350m` (`trainers/shapes.py`)."""
    depth: Annotated[Count | None, Limit(1000)] = None
    """Number of blocks. `d_model` is 64 times that, `d_mlp` 256 times. Heads are 64 wide (below depth 4 there are four)."""

    @field_validator("preset", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str) and value in PRESETS):
            return value
        near = difflib.get_close_matches(str(value).lower(), PRESETS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"unknown preset {value!r}{hint} Presets: {', '.join(PRESETS)}")

    @model_validator(mode="after")
    def _one_of_them(self) -> Dial:
        if self.preset is not None and self.depth is not None:
            raise ValueError(f"preset '{self.preset}' and depth {self.depth} both give the shape; keep one")
        return self


SHAPE = ("n_layers", "d_model", "n_heads", "d_mlp")
"""Fields of `Model` that a preset or a depth sets."""


def expanded(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a file's `model`, with `preset` or `depth` replaced by the widths. A width that is given itself wins.

    Raises pydantic's ValidationError for an unknown preset, for a depth that is no whole number from 1, and if both are given.
    """
    dial = Dial.model_validate({name: keys[name] for name in Dial.model_fields if name in keys})
    others = {name: value for name, value in keys.items() if name not in Dial.model_fields}
    if dial.preset is None and dial.depth is None:
        return others
    model = PRESETS[dial.preset] if dial.preset is not None else of_depth(dial.depth or 1)
    return {name: getattr(model, name) for name in SHAPE} | others


@functools.lru_cache(maxsize=1024)
def with_preset(others: Model, name: str) -> Model:
    """A copy of `others` with the widths and number of blocks of preset `name`. All its other fields stay."""
    return Model.model_validate(others.model_dump(include=Model.model_fields.keys() - set(SHAPE)) | {"preset": name})


# Sizes --------------------------------------------------------------------------------------------------------------

Precision = Literal["fp32", "bf16"]
"""Precision of matmuls. Weights, moments and sums are always fp32."""


class Shape(NamedTuple):
    """The numbers from which a model's parameters, FLOPs and bytes are counted. No model is built."""

    model: Model
    vocab_size: int
    """Outputs per position: the number of token ids, or 1 if tokens are vectors of numbers."""
    seq_len: int
    """Positions that the model reads, T."""
    numbers: Numbers | None = None
    """Set if tokens are vectors of numbers instead of ids."""

    # Parameters

    @property
    def n_parameters(self) -> int:
        """Trainable parameters, embeddings included. A test counts the built model against this."""
        d, f = self.model.d_model, self.model.d_mlp
        norm = d if self.model.norm == "rms" else 2 * d
        block = 4 * d * d + 2 * d * f + 2 * norm + self.model.conv_kernel * d
        learned = self.seq_len * d if self.model.positions == "learned" else 0
        # A table, or a matrix and its bias:
        embed = self.vocab_size * d if self.numbers is None else (self.numbers.width + 1) * d
        return embed + self.vocab_size * d + learned + self.model.n_layers * block + norm

    @property
    def n_matmul_parameters(self) -> int:
        """Weights that autocast copies to 16 bits: all matrices except an embedding table."""
        d = self.model.d_model
        blocks = self.model.n_layers * (4 * d * d + 2 * d * self.model.d_mlp)
        return blocks + d * self.vocab_size + (d * self.numbers.width if self.numbers else 0)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest single layer. ZeRO 3 must gather them at once."""
        d = self.model.d_model
        position = self.seq_len if self.model.positions == "learned" else 0
        return d * max(3 * d, self.model.d_mlp, self.vocab_size, position)

    @property
    def n_small_parameters(self) -> int:
        """Parameters of norms. Their vectors are too small for ZeRO 3 to partition."""
        return (4 * self.model.n_layers + 2) * self.model.d_model

    @property
    def small_below(self) -> int:
        """Threshold for ZeRO 3: a parameter with fewer elements stays whole on every worker."""
        return 4 * self.model.d_model

    @property
    def token_bytes(self) -> int:
        """Bytes of the residual stream of one token, in fp32."""
        return 4 * self.model.d_model

    # FLOPs

    @property
    def forward_flops(self) -> int:
        """FLOPs of one forward pass over one sequence.

        Per token: matmuls 2 per weight, attention 2 T d each for QK^T and AV, depthwise convolution 2 k d. Tokens that are
        numbers are embedded by a matmul. Looking up ids counts as 0.
        """
        d, t = self.model.d_model, self.seq_len
        matmul = self.model.n_layers * (4 * d * d + 2 * d * self.model.d_mlp) + d * self.vocab_size
        matmul += d * self.numbers.width if self.numbers else 0
        attention = self.model.n_layers * 2 * t * d
        convolution = self.model.n_layers * self.model.conv_kernel * d
        return 2 * t * (matmul + attention + convolution)

    def sampling_flops(self, n_prompt: int, n_new: int, n_answers: int) -> int:
        """FLOPs to read a prompt once and write `n_answers` answers of `n_new` tokens to it, with keys and values cached.

        The prompt's pass gives the first token of each answer. A later token reads one token, and its attention reaches that
        token's position and all before it. Only positions whose logits are needed pay for the output layer.
        """
        return self.written_flops(n_prompt, 1, np.full(n_answers, n_new))

    def written_flops(self, n_prompt: int, n_prompts: int, n_tokens: np.ndarray) -> int:
        """The same for `n_prompts` prompts and all answers to them, of `n_tokens` (n,) tokens each."""
        d, layers = self.model.d_model, self.model.n_layers
        block = layers * (4 * d * d + 2 * d * self.model.d_mlp + self.model.conv_kernel * d)
        later = n_tokens.astype(np.int64) - 1
        reach = int((n_prompt * later + later * (later + 1) // 2).sum())  # positions that the later tokens see
        prompt = n_prompt * block + 2 * layers * n_prompt**2 * d + d * self.vocab_size
        return 2 * (n_prompts * prompt + int(later.sum()) * (block + d * self.vocab_size) + 2 * layers * reach * d)

    def tokens_per_parameter(self, compute_flops: float) -> float:
        """Training tokens per parameter at a budget of training FLOPs. All tokens count, also those outside the loss mask.

        About 20 gives the lowest loss on text (Hoffmann et al. 2022, arXiv 2203.15556).
        """
        n_tokens = compute_flops / (3 * self.forward_flops) * self.seq_len  # backward costs twice the forward
        return n_tokens / self.n_parameters

    # Bytes

    def block_bytes(self, n_sequences: int, precision: Precision) -> int:
        """Bytes that autograd keeps for one block on tokens (n_sequences, seq_len), without the block's weights.

        Counted from `trainers/models/transformer.py`. A number takes 4 bytes in norms and residual stream. In matmuls it takes
        w bytes: 4 in fp32, 2 in bf16. Per token:

        - the inputs of both norms and their inverse lengths; for RMSNorm also the normed inputs
          (torch's fused GPU kernels drop these);
        - the inputs of the four matmuls;
        - queries, keys and values as one tensor, and queries and keys again after the rotation;
        - the output of attention and one log-sum per head.

        Attention is fused and never keeps T x T. On a GPU this needs heads whose width is a multiple of 8. A window adds one
        T x T mask for all sequences.
        """
        d, f, w = self.model.d_model, self.model.d_mlp, 4 if precision == "fp32" else 2
        norms = 2 * (2 * 4 * d + 4) if self.model.norm == "rms" else 2 * (4 * d + 8)
        turned = 2 * d if self.model.positions == "rotary" else 0
        matmuls = w * (d + 3 * d + turned + d + d + 2 * f)  # qkv's input, q k v, turned, attention's output, the MLP's
        n_tokens = n_sequences * self.seq_len
        conv = 4 * d * n_sequences * (self.seq_len + self.model.conv_kernel - 1) if self.model.conv_kernel else 0
        mask = (w + 1) * self.seq_len**2 if self.model.attention_window else 0
        return n_tokens * (norms + matmuls + 4 * self.model.n_heads) + conv + mask

    def ends_bytes(self, n_sequences: int, precision: Precision) -> int:
        """Bytes that autograd keeps before and after the blocks: ids, the last norm, the input of the output layer.

        Log-probabilities are not included. In bf16, autocast's 16-bit copies of all matrices (`n_matmul_parameters`) are added.
        They live from the forward to the backward pass, and are whole under ZeRO 3 too.
        """
        d, w = self.model.d_model, 4 if precision == "fp32" else 2
        norm = 2 * 4 * d + 4 if self.model.norm == "rms" else 4 * d + 8
        ids = 4 * (self.numbers.width + 4) if self.numbers else 8 * 2
        copies = 2 * self.n_matmul_parameters if precision == "bf16" else 0
        return n_sequences * self.seq_len * (norm + w * d + ids + 1) + copies

    def activation_bytes(self, n_sequences: int, precision: Precision = "fp32", recompute: bool = False) -> int:
        """Peak bytes of a forward and backward pass, without the training state: kept activations and temporary tensors.

        It is the larger of two moments. One is the start of the backward pass, with log-probabilities, their gradients and
        those of the logits. The other is inside a block, with the gradients of residual stream and MLP. With `recompute`,
        blocks keep only their inputs, and a block is computed again after the logits are freed.
        """
        n_tokens, w = n_sequences * self.seq_len, 4 if precision == "fp32" else 2
        ends = self.ends_bytes(n_sequences, precision)
        block = self.block_bytes(n_sequences, precision)
        logits = n_tokens * 3 * 4 * self.vocab_size
        inside = n_tokens * (2 * 4 * self.model.d_model + w * self.model.d_mlp)
        if recompute:
            return ends + self.model.n_layers * n_tokens * 4 * self.model.d_model + max(logits, block + inside)
        return ends + self.model.n_layers * block + max(logits, n_tokens * 4 * self.vocab_size + inside)


def preset_for(shape: Shape, compute_flops: float, tokens_per_parameter_min: float) -> str:
    """Name of the largest preset that the budget trains on at least `tokens_per_parameter_min` tokens per parameter.

    `shape` gives vocabulary, positions and all fields of the model except its widths, which the presets replace. Raises
    ValueError if the budget is too small for the smallest preset.
    """

    def ratio(name: str) -> float:
        return shape._replace(model=with_preset(shape.model, name)).tokens_per_parameter(compute_flops)

    enough = [name for name in PRESETS if ratio(name) >= tokens_per_parameter_min]
    if enough:
        return enough[-1]
    smallest = next(iter(PRESETS))
    raise ValueError(
        f"{flops_words(compute_flops)} FLOPs read {ratio(smallest):.3g} tokens for each parameter of the smallest model, {smallest}; "
        f"{tokens_per_parameter_min:g} are asked for: give {tokens_per_parameter_min / ratio(smallest):.3g} times the compute, "
        "or ask for fewer tokens per parameter"
    )
