"""Models by size: one dial, the depth, and names for sizes from 0.1 to 350 million parameters. No torch here.

A model of `depth` is `depth` blocks deep and 64 x depth wide, so that a name, a ladder of sizes or a budget needs no more than
one number: `model: {depth: 6}` in a study, or `model: {preset: 124m}` (`Dial`). The rule is in common use (nanochat's
`depth`); at 12 it is the shape of GPT-2 small (Radford et al. 2019).
"""

from __future__ import annotations

import difflib
import functools
from typing import Annotated, Any

from pydantic import field_validator, model_validator

from trainers import budget
from trainers.spec import Count, Limit, Model, Numbers, Record

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
"""By the parameters that `budget.n_parameters` counts for a vocabulary of 256 and 1,024 positions (rotary ones cost nothing),
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


def tokens_per_parameter(
    model: Model, compute_flops: float, vocab_size: int, seq_len: int, numbers: Numbers | None = None
) -> float:
    """Tokens that a budget of training FLOPs reads, for each parameter of the model: all tokens of all sequences, seen by the
    loss or not. Hoffmann et al. 2022 (arXiv 2203.15556) found about 20 to use compute best, for text."""
    forward = budget.forward_flops_per_sequence(model, vocab_size, seq_len, numbers)
    n_tokens = compute_flops / (3 * forward) * seq_len  # backward costs twice the forward
    return n_tokens / budget.n_parameters(model, vocab_size, seq_len, numbers)


def preset_for(
    compute_flops: float,
    tokens_per_parameter_min: float,
    vocab_size: int,
    seq_len: int,
    numbers: Numbers | None = None,
    others: Model = Model(),  # noqa: B008
) -> str:
    """The largest preset of which the budget still reads that many tokens a parameter, with all but its widths from `others`.

    A budget beyond what the largest one needs gets the largest. Raises ValueError where not even the smallest gets them.
    """

    def ratio(name: str) -> float:
        return tokens_per_parameter(with_preset(others, name), compute_flops, vocab_size, seq_len, numbers)

    enough = [name for name in PRESETS if ratio(name) >= tokens_per_parameter_min]
    if enough:
        return enough[-1]
    smallest = next(iter(PRESETS))
    raise ValueError(
        f"{budget.flops_words(compute_flops)} FLOPs read {ratio(smallest):.3g} tokens for each parameter of the smallest model, {smallest}; "
        f"{tokens_per_parameter_min:g} are asked for: give {tokens_per_parameter_min / ratio(smallest):.3g} times the compute, "
        "or ask for fewer tokens a parameter"
    )


@functools.lru_cache(maxsize=1024)
def with_preset(others: Model, name: str) -> Model:
    """A preset's widths in a model that has all else from `others`."""
    return Model.model_validate(others.model_dump(include=Model.model_fields.keys() - set(SHAPE)) | {"preset": name})
