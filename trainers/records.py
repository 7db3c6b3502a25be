"""Records: frozen and strict, with the types and limits of their fields. Numbers are formatted here for ids and messages.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def flops_words(value: float) -> str:
    """FLOPs in the notation of a study file: 1.131e11."""
    return f"{value:.4g}".replace("e+", "e")


MAX_DIGITS = 40
"""Most digits of a whole number in a file. Python converts longer ones slowly, and refuses to print them."""


class Record(BaseModel):
    """A frozen, strict record. It refuses unknown keys, strings for numbers and True for 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _integral(value: Any) -> Any:
    """A float that is whole becomes an int. YAML and JSON read 1e12 as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_integral), Field(gt=0)]

Index = Annotated[int, BeforeValidator(_integral), Field(ge=0)]

VARIANT = r"^([a-z0-9][a-z0-9_.-]*)?$"
"""Pattern of variant names. They are part of ids and of folder names."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Limit:
    """The range of a value in a file that a person writes. It stands in a field's annotation: `Annotated[Count, Limit(1000)]`.

    Records that are read back are not checked against it, so results of an older, laxer version still open. Limits are
    generous. They refuse typing errors, and keep the arithmetic of FLOPs inside the range of a float.
    """

    most: float = float("inf")
    """Largest number, also for each number in a list. For text: most characters. For a mapping: most entries."""
    least: float = float("-inf")
    """Smallest positive number."""
    items: int | None = None
    """Most values in a list."""

    def broken_by(self, given: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Values beyond the limit, as (place inside `given`, message with the limit and the value)."""
        if isinstance(given, list | tuple):
            if self.items is not None and len(given) > self.items:
                yield (), f"at most {limit_words(self.items)} values are allowed; given {limit_words(len(given))}"
            else:
                yield from (((i,), message) for i, value in enumerate(given) for _, message in self.broken_by(value))
        elif isinstance(given, str | dict):
            if len(given) > self.most:
                what = "characters" if isinstance(given, str) else "entries"
                yield (), f"at most {limit_words(self.most)} {what} are allowed; given {limit_words(len(given))}"
        elif isinstance(given, int | float) and not isinstance(given, bool):
            if self.most < given < float("inf"):  # the field itself refuses infinity
                yield (), f"at most {limit_words(self.most)} is allowed; given {limit_words(given)}"
            elif self.least > given > 0:  # and values that are not positive
                yield (), f"at least {limit_words(self.least)} is needed; given {limit_words(given)}"


def limit_words(value: float) -> str:
    """A limit as messages and sweeps/README.md write it: 10,000, 1e6, 0.5."""
    return f"{int(value):,}" if abs(value) < 1e6 and float(value).is_integer() else short_number(value)


def beyond_limits(record: type[BaseModel], given: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Values of a mapping beyond the limits of a record's fields, as (place, message with the limit and the value)."""
    for name, field in record.model_fields.items():
        for limit in field.metadata:
            if isinstance(limit, Limit) and name in given:
                yield from (((name, *place), message) for place, message in limit.broken_by(given[name]))


class Numbers(NamedTuple):
    """Tokens that are vectors of numbers instead of ids. The model predicts the first number of the next token."""

    width: int
    """Numbers per token."""
    noise_variance: float
    """Variance of the normal distribution around a prediction. Minus its log density is the loss."""


def short_number(value: float) -> str:
    """The shortest exact form of a number for an id: 64, 1024, 1e12, 1.5e11. Different numbers have different forms."""
    plain = str(int(value)) if float(value).is_integer() else repr(float(value))
    science = np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e")
    exact = float(science) == value
    return science if exact and len(science) < len(plain) else plain
