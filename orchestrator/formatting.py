"""Formats of numbers on the terminal, in MLflow and on the page. Imports nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast


def clock(seconds: float) -> str:
    """A duration: 45 s, 3:20 min, 2:05 h, 1.5 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"
    return f"{seconds / 86400:.1f} days"


def number(value: float) -> str:
    """A count or budget: 64, 1,024, 1e12, 4e11."""
    if value >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")  # rounded first: 9.999e11 is 1e12
        return f"{float(mantissa):g}e{int(exponent)}"
    if value < 0:
        return "\u2212" + number(-value)
    return f"{value:,.0f}" if value >= 10 or float(value).is_integer() else f"{value:.2g}"


def rounded(value: float) -> str:
    """An end of an interval in tasks, FLOPs or parameters: a whole number of three figures."""
    return number(float(f"{round(value):.3g}") if value >= 1 else value)


def figure(value: float | None) -> str:
    """A measured value to three figures, with a true minus sign; an em dash if missing."""
    if value is None or not math.isfinite(value):
        return "\u2014"
    return number(value) if abs(value) >= 1000 else f"{value:.3g}".replace("-", "\u2212")


def times(n: int, what: str) -> str:
    """A count and its noun: 1 scale, 3 scales."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """A share in percent, with a space before the sign."""
    return f"{share:.0%}".replace("%", " %")


def sure(confidence: float) -> str:
    """The confidence of an interval, never rounded up: 95 %, 99.2 %, 99.97 %."""
    digits = 0 if abs(100 * confidence - round(100 * confidence)) < 1e-9 else 1 if confidence < 0.999 else 2
    return f"{math.floor(100 * confidence * 10**digits + 1e-6) / 10**digits:.{digits}f} %"


def signed(value: float, digits: int | None = None) -> str:
    """A change to two figures, or to `digits` decimals, with a true minus sign; a zero has no sign."""
    text = f"{value:+.2g}" if digits is None else f"{value:+.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else text[1:]


def range_words(low: float | None, high: float | None, write: Callable[[float], str] = number) -> str:
    """An interval in words; an open end is named. write: the format of an end."""
    if low is None and high is None:
        return "nothing: the interval is open at both ends"
    if low is None or high is None:
        return f"at most {write(cast(float, high))}" if low is None else f"more than {write(low)}"
    return f"{write(low)} to {write(high)}"


def factor(value: float) -> str:
    """A factor or a number of doublings to two figures, never as 1e+02."""
    return number(value) if value >= 100 else f"{value:.2g}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A ratio to two decimals with a true minus sign; an em dash if missing."""
    if value is None or not math.isfinite(value):
        return "—"
    text = f"{value:.{digits}f}" if abs(value) < 99.5 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def counted(n: float, word: str) -> str:
    """A count and its noun: 1 task, 1,024 tasks."""
    return f"{number(n)} {word}{'' if n == 1 else 's'}"


_SPLITS = {"train_items": "training items", "held_out": "held-out tasks", "held_out_clusters": "untrained clusters"}


def on_split(split: str, of_text: bool = False) -> str:
    """The name of a split in sentences, such as `held-out tasks`. `seen` are training tasks; in families of text, which also read
    the training items themselves, they are `new items of training tasks`."""
    return _SPLITS.get(split, "new items of training tasks" if of_text else "training tasks")
