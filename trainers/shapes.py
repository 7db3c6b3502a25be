"""What a model is made of, and its size from numbers alone: parameters, FLOPs, bytes. No torch here.

`Model` gives the widths, or one dial does: a model of `depth` is `depth` blocks deep and 64 x depth wide, so that a name, a ladder
of sizes or a budget needs no more than one number: `model: {depth: 6}` in a study, or `model: {preset: 124m}` (`Dial`). The rule
is in common use (nanochat's `depth`); at 12 it is the shape of GPT-2 small (Radford et al. 2019). `Shape` counts.
"""

from __future__ import annotations

import difflib
import functools
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import field_validator, model_validator

from trainers.records import Count, Index, Limit, Numbers, Positive, Record, flops_words


class Model(Record):
    """The decoder-only transformer (`trainers/models/transformer.py`)."""

    n_layers: Annotated[Count, Limit(1000)] = 2
    """Number of blocks, each attention then MLP, with a residual around both."""
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
    """Length of a depthwise causal convolution before attention; 0 has none. A built-in structure, and a strong one."""
    attention_window: Annotated[Index, Limit(1e6)] = 0
    """Positions that attention looks back on, its own included; 0 looks at all. A built-in structure."""
    init_gain: Annotated[Positive, Limit(1000)] = 0.58
    """Weight matrices start as N(0, init_gain² / fan_in); 0.58 is the spread of torch's default uniform, 1/sqrt(3)."""
    embed_std: Annotated[Positive, Limit(1000)] = 1.0
    """Standard deviation of token and learned position vectors at the start."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_dial(cls, value: Any) -> Any:
        """`preset` or `depth` in place of the widths (`Dial`): what is recorded is what they stand for."""
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
"""Also the width of a head, where there are enough of them."""
MIN_HEADS = 4
"""A model with one or two heads cannot look at several places at once: below 4 x 64 wide the heads get narrower instead."""


def _shape(n_layers: int, d_model: int) -> Model:
    n_heads = max(MIN_HEADS, d_model // WIDTH_PER_DEPTH)
    return Model(n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_mlp=4 * d_model)


def of_depth(depth: int) -> Model:
    """`depth` blocks, 64 x depth wide, the MLP four times that; heads 64 wide from depth 4 on, below it four narrower ones."""
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
"""By the parameters that `Shape.n_parameters` counts for a vocabulary of 256 and 1,024 positions (rotary ones cost nothing),
each step a factor of 2 to 3. The last two keep the names under which the shapes are known, GPT-2 small and GPT-3's medium
(Brown et al. 2020, table 2.1), counted with GPT-2's vocabulary of 50,257 in a table that input and output share; here they
have one each, so that 256 tokens make them 85 and 303 million, and 50,257 tokens 162 and 405 million."""


class Dial(Record):
    """The shape of a model in one word or number. Only the widths that it stands for are recorded."""

    preset: str | None = None
    """A model by its name, in place of its four widths: `0.1m` ... `350m` (`trainers/shapes.py`)."""
    depth: Annotated[Count | None, Limit(1000)] = None
    """Number of blocks; `d_model` is then 64 times that, `d_mlp` 256 times, and a head 64 wide (below depth 4 there are four)."""

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
"""What a preset or a depth stands for."""


def expanded(keys: dict[str, Any]) -> dict[str, Any]:
    """Keys of a model, `preset` or `depth` among them replaced by the widths that they stand for; other keys go before these.

    Raises pydantic's ValidationError for a preset that there is none of, a depth that is no whole number from 1, or both.
    """
    dial = Dial.model_validate({name: keys[name] for name in Dial.model_fields if name in keys})
    others = {name: value for name, value in keys.items() if name not in Dial.model_fields}
    if dial.preset is None and dial.depth is None:
        return others
    model = PRESETS[dial.preset] if dial.preset is not None else of_depth(dial.depth or 1)
    return {name: getattr(model, name) for name in SHAPE} | others


@functools.lru_cache(maxsize=1024)
def with_preset(others: Model, name: str) -> Model:
    """A preset's widths in a model that has all else from `others`."""
    return Model.model_validate(others.model_dump(include=Model.model_fields.keys() - set(SHAPE)) | {"preset": name})


# Sizes --------------------------------------------------------------------------------------------------------------

Precision = Literal["fp32", "bf16"]
"""What is multiplied; weights, moments and sums are fp32 in either."""


class Shape(NamedTuple):
    """What a model's parameters, FLOPs and bytes are counted from: no model is built for it."""

    model: Model
    vocab_size: int
    """Outputs a position."""
    seq_len: int
    """Positions, T."""
    numbers: Numbers | None = None
    """Where tokens are numbers and no ids."""

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
        """Weights that autocast copies to 16 bits: those of all matrices but a table of embeddings."""
        d = self.model.d_model
        blocks = self.model.n_layers * (4 * d * d + 2 * d * self.model.d_mlp)
        return blocks + d * self.vocab_size + (d * self.numbers.width if self.numbers else 0)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest single layer: what ZeRO 3 must gather at once."""
        d = self.model.d_model
        position = self.seq_len if self.model.positions == "learned" else 0
        return d * max(3 * d, self.model.d_mlp, self.vocab_size, position)

    @property
    def n_small_parameters(self) -> int:
        """Parameters of norms, in vectors too small for ZeRO 3 to share out."""
        return (4 * self.model.n_layers + 2) * self.model.d_model

    @property
    def small_below(self) -> int:
        """Parameters of fewer elements are too small for ZeRO 3 to share out."""
        return 4 * self.model.d_model

    @property
    def token_bytes(self) -> int:
        """The residual stream of one token."""
        return 4 * self.model.d_model

    # FLOPs

    @property
    def forward_flops(self) -> int:
        """Matmuls (2 per weight and token), attention (QK^T and AV, 2 T d each a token), depthwise convolution (2 k d).

        Tokens that are numbers are embedded by a matmul, where ids are looked up for nothing.
        """
        d, t = self.model.d_model, self.seq_len
        matmul = self.model.n_layers * (4 * d * d + 2 * d * self.model.d_mlp) + d * self.vocab_size
        matmul += d * self.numbers.width if self.numbers else 0
        attention = self.model.n_layers * 2 * t * d
        convolution = self.model.n_layers * self.model.conv_kernel * d
        return 2 * t * (matmul + attention + convolution)

    def tokens_per_parameter(self, compute_flops: float) -> float:
        """Tokens that a budget of training FLOPs reads, for each parameter of the model: all tokens of all sequences, seen by the
        loss or not. Hoffmann et al. 2022 (arXiv 2203.15556) found about 20 to use compute best, for text."""
        n_tokens = compute_flops / (3 * self.forward_flops) * self.seq_len  # backward costs twice the forward
        return n_tokens / self.n_parameters

    # Bytes

    def block_bytes(self, n_sequences: int, precision: Precision) -> int:
        """What autograd keeps of one block of (n_sequences, seq_len), its weights apart. Counted from `trainers/models/transformer.py`.

        For each token, in numbers of 4 bytes (norms, residual) or of w = 4 or 2 (matmuls): both norms' inputs, their inverse
        lengths and, for RMSNorm, normed inputs (torch's fused kernels on a GPU drop these); the inputs of the four matmuls; queries,
        keys and values as one tensor, queries and keys again once they are turned; attention's output and its log-sum a head,
        never T x T: fused attention, on a GPU too as long as heads are a multiple of 8 wide. A window adds its mask, T x T for all.
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
        """What autograd keeps before and after the blocks, log-probabilities apart: ids, the last norm, the output layer's input.

        In bf16 also autocast's 16-bit copies of all weights, which live from forward to backward; with ZeRO 3, too, they are whole.
        """
        d, w = self.model.d_model, 4 if precision == "fp32" else 2
        norm = 2 * 4 * d + 4 if self.model.norm == "rms" else 4 * d + 8
        ids = 4 * (self.numbers.width + 4) if self.numbers else 8 * 2
        copies = 2 * self.n_matmul_parameters if precision == "bf16" else 0
        return n_sequences * self.seq_len * (norm + w * d + ids + 1) + copies

    def kept_bytes(self, n_sequences: int, precision: Precision = "fp32") -> int:
        """What autograd keeps for the backward pass of one micro-batch (n_sequences, seq_len), without recomputation: both ends, all
        blocks, and log-probabilities in fp32 at all positions, as if the loss saw all."""
        ends = self.ends_bytes(n_sequences, precision)
        blocks = self.model.n_layers * self.block_bytes(n_sequences, precision)
        return ends + blocks + n_sequences * self.seq_len * 4 * self.vocab_size

    def activation_bytes(self, n_sequences: int, precision: Precision = "fp32", recompute: bool = False) -> int:
        """What is alive at the worst moment of a forward and backward pass, apart from the state: what is kept, and what passes.

        That moment is the beginning of the backward pass, with log-probabilities, their gradients and those of the logits; or the
        inside of a block, with the gradients of residual stream and MLP. With `recompute`, blocks keep their inputs alone, and the
        block that is computed again comes when the logits are gone.
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
    """The largest preset of which the budget still reads that many tokens a parameter, with all but its widths from `shape`.

    A budget beyond what the largest one needs gets the largest. Raises ValueError where not even the smallest gets them.
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
        "or ask for fewer tokens a parameter"
    )
