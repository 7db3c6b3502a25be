"""Records: frozen, strict, with the types and limits of their fields; and how numbers stand in ids and messages. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def flops_words(value: float) -> str:
    """As a study file would write it: 1.131e11."""
    return f"{value:.4g}".replace("e+", "e")


MAX_DIGITS = 40
"""Of a whole number in a file. Python converts long ones slowly, and refuses to write them."""


class Record(BaseModel):
    """A frozen, strict record: unknown keys, strings for numbers and True for 1 are all refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _integral(value: Any) -> Any:
    """YAML and JSON write a trillion as 1e12, a float: take it where it is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_integral), Field(gt=0)]

Index = Annotated[int, BeforeValidator(_integral), Field(ge=0)]

VARIANT = r"^([a-z0-9][a-z0-9_.-]*)?$"
"""Names of variants: they stand in ids and in folders."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Limit:
    """How far a value may go in a file that a person writes; in a field's annotation, `Annotated[Count, Limit(1000)]`.

    A record that is read back is not held to it: results of an older, laxer version still open. Limits are generous. They
    refuse slips of the pen, and keep the arithmetic of FLOPs inside what a float holds.
    """

    most: float = float("inf")
    """Of a number or of each in a list; of text the characters, of a mapping the entries."""
    least: float = float("-inf")
    items: int | None = None
    """Values in a list."""

    def broken_by(self, given: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What is beyond the limit: (place inside `given`, what is allowed and what was given)."""
        if isinstance(given, list | tuple):
            if self.items is not None and len(given) > self.items:
                yield (), f"at most {limit_words(self.items)} values are allowed; given {limit_words(len(given))}"
            else:
                yield from (((i,), said) for i, one in enumerate(given) for _, said in self.broken_by(one))
        elif isinstance(given, str | dict):
            if len(given) > self.most:
                what = "characters" if isinstance(given, str) else "entries"
                yield (), f"at most {limit_words(self.most)} {what} are allowed; given {limit_words(len(given))}"
        elif isinstance(given, int | float) and not isinstance(given, bool):
            if self.most < given < float("inf"):  # what is not finite is refused as such
                yield (), f"at most {limit_words(self.most)} is allowed; given {limit_words(given)}"
            elif self.least > given > 0:  # as is what is not positive
                yield (), f"at least {limit_words(self.least)} is needed; given {limit_words(given)}"


def limit_words(value: float) -> str:
    """A number as messages and sweeps/README.md write limits: 10,000, 1e6, 0.5."""
    return f"{int(value):,}" if abs(value) < 1e6 and float(value).is_integer() else short_number(value)


def beyond_limits(record: type[BaseModel], given: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What a mapping of keys gives beyond the limits of a record's fields: (place, what is allowed and what was given)."""
    for name, field in record.model_fields.items():
        for limit in field.metadata:
            if isinstance(limit, Limit) and name in given:
                yield from (((name, *place), said) for place, said in limit.broken_by(given[name]))


class Numbers(NamedTuple):
    """Tokens that are vectors of numbers instead of ids; the first number of the next one is what is predicted."""

    width: int
    """Numbers a token."""
    noise_variance: float
    """Of the normal law around a prediction; its log density is the loss."""


def short_number(value: float) -> str:
    """The shortest exact way to write a number in an id: 64, 1024, 1e12, 1.5e11. Two different numbers never agree."""
    plain = str(int(value)) if float(value).is_integer() else repr(float(value))
    science = np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e")
    exact = float(science) == value
    return science if exact and len(science) < len(plain) else plain
