"""Output to a terminal. Foreign text (questions, names, paths, reasons) is shown and never interpreted.

Strings are printed literally: brackets are no markup, and control characters become readable escapes. Our own emphasis
is `styled`. After `prepare`, an output with a limited encoding gets the nearest characters it has.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters except tab and newline, characters that reorder text, and surrogates (bytes of a path)."""
_NEAREST = str.maketrans(
    {"×": "x", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-", "→": "->", "≥": ">=", "≤": "<=", "½": "1/2"}
    | {"’": "'", "‘": "'", "“": '"', "”": '"', "±": "+-", "━": "-", "╸": "-", "╺": "-"}
)


def printable(text: str) -> str:
    """The text with control and unprintable characters as escapes: `\\x1b`, `\\u202e`."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """The beginning of a long text, with the number of characters left out."""
    return text if len(text) <= 600 else f"{text[:600]}… ({len(text) - 600:,} characters more)"


def styled(*parts: str | tuple[str, str]) -> Text:
    """Words for a console, each plain or with a style: `styled(("Note:", "bold"), " all is well")`."""
    return Text.assemble(*(printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts))


class Terminal(Console):
    """A console that treats every string as plain text, in tables and titles too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"markup": False, "highlight": False, "emoji": False} | options))

    def render_str(self, text: str, **style: Any) -> Text:
        """Convert a string for rich."""
        return super().render_str(printable(text), **style)


def say(line: str, err: bool = False) -> None:
    """Print one line to standard output, or to standard error, which ignores errors. Raises OSError."""
    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        print(printable(line), file=sys.stderr if err else sys.stdout, flush=True)


def prepare() -> None:
    """Let standard output and error accept any character, in any encoding."""
    codecs.register_error("nearest", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there may be none
            stream.reconfigure(errors="nearest")


def _nearest(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    letters = problem.object[problem.start : problem.end].translate(_NEAREST)
    return letters.encode("ascii", "backslashreplace").decode(), problem.end
