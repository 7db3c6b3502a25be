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
    """A number of FLOPs as text with four digits, in the notation of a study file: 1.131e11."""
    return f"{value:.4g}".replace("e+", "e")


MAX_DIGITS = 40
"""Most digits of a whole number in a study's or trial's file. Python converts longer ones slowly, and refuses to print them."""


class Record(BaseModel):
    """A frozen, strict record. It refuses unknown keys, strings for numbers and True for 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _integral(value: Any) -> Any:
    """A float that is whole becomes an int. YAML and JSON read 1e12 as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_integral), Field(gt=0)]
"""Type of a field: a whole number from 1."""

Index = Annotated[int, BeforeValidator(_integral), Field(ge=0)]
"""Type of a field: a whole number from 0."""

VARIANT = r"^([a-z0-9][a-z0-9_.-]*)?$"
"""Regular expression for the names of variants and sizes. They are part of ids and of folder names. "" is no name."""

_AT = r"[A-Za-z][A-Za-z0-9_]*=-?[0-9][0-9.e+-]*"
LABEL = rf"^([a-z0-9][a-z0-9_.-]*|{_AT}|[a-z0-9][a-z0-9_.-]*/{_AT})?$"
"""Regular expression for a variant at a value of a family parameter: `late`, `share=0.25`, `late/share=0.25`; "" is none."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Type of a field: a finite number above 0."""

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Type of a field: a finite number from 0."""


@dataclass(frozen=True)
class Limit:
    """The range of a field in a study's or trial's file. It stands in the field's annotation: `Annotated[Count, Limit(1000)]`.

    Only files that a person writes are checked against it (`beyond_limits`). Records from a journal are not, so results of an
    older, laxer version still open. Limits are generous. They refuse typing errors, and keep the arithmetic of FLOPs inside
    the range of a float.
    """

    most: float = float("inf")
    """Largest number, also for each number in a list. For text: most characters. For a mapping: most entries."""
    least: float = float("-inf")
    """Smallest positive number. The field's own type decides on 0 and negative numbers."""
    items: int | None = None
    """Most values in a list. None: no limit."""

    def broken_by(self, given: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Check `given`, a field's value as parsed from YAML or JSON. Yields (place, message) for each value beyond the limit.

        The place is the index in a list as a tuple, or () for `given` itself. The message has the limit and the value.
        """
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
    """A limit as text, in the notation of messages and of sweeps/README.md: 10,000, 1e6, 0.5."""
    return f"{int(value):,}" if abs(value) < 1e6 and float(value).is_integer() else short_number(value)


def beyond_limits(record: type[BaseModel], given: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Check `given`, a mapping as parsed from YAML or JSON, against the limits of a record's fields.

    Yields (place, message) for each value beyond its limit. The place begins with the field's name. Nested records are not
    checked.
    """
    for name, field in record.model_fields.items():
        for limit in field.metadata:
            if isinstance(limit, Limit) and name in given:
                yield from (((name, *place), message) for place, message in limit.broken_by(given[name]))


class Numbers(NamedTuple):
    """Describes tokens that are vectors of numbers instead of ids. The model predicts the first number of the next token."""

    width: int
    """Numbers per token."""
    noise_variance: float
    """Variance of the normal distribution around a prediction. The loss is minus its log density at the true number."""


def as_tuple(given: Any) -> Any:
    """A list of YAML or JSON as a tuple, for `BeforeValidator`; other values as they are."""
    return tuple(given) if isinstance(given, list) else given


def short_number(value: float) -> str:
    """The shortest exact text for a number: 64, 1024, 1e12, 1.5e11. Different numbers have different texts, as ids need."""
    plain = str(int(value)) if float(value).is_integer() else repr(float(value))
    science = np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e")
    exact = float(science) == value
    return science if exact and len(science) < len(plain) else plain
