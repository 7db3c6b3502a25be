"""What goes to a terminal. Text from elsewhere is shown, never obeyed: questions, names, paths, reasons.

A string is printed as it stands: its brackets are no markup, its control characters become escapes that can be read. Our own
emphasis is `styled`. After `prepare`, a terminal with few letters gets the nearest ones it has.
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
"""Control characters but tab and newline, marks that reorder what follows, and halves of letters (bytes of a path)."""
_NEAREST = str.maketrans(
    {"×": "x", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-", "→": "->", "≥": ">=", "≤": "<=", "½": "1/2"}
    | {"’": "'", "‘": "'", "“": '"', "”": '"', "±": "+-", "━": "-", "╸": "-", "╺": "-"}
)


def printable(text: str) -> str:
    """The text with everything that a terminal would obey or cannot show as an escape: `\\x1b`, `\\u202e`."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, longest: int = 600) -> str:
    """The beginning of a long text, and how much is left out."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest:,} characters more)"


def styled(*parts: str | tuple[str, str]) -> Text:
    """Words for a console, each plain or with a style: `styled(("Note:", "bold"), " all is well")`."""
    return Text.assemble(*(printable(p) if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts))


class Terminal(Console):
    """A console to which every string is plain text, in tables and titles too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"markup": False, "highlight": False, "emoji": False} | options))

    def render_str(self, text: str, **style: Any) -> Text:
        """What rich turns every string into."""
        return super().render_str(printable(text), **style)


def say(line: str, err: bool = False) -> None:
    """One line on standard output, or on standard error, where one that cannot be written is lost. Raises OSError."""
    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        print(printable(line), file=sys.stderr if err else sys.stdout, flush=True)


def prepare() -> None:
    """Let standard output and error take any letter, whatever their encoding."""
    codecs.register_error("nearest", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there may be none
            stream.reconfigure(errors="nearest")


def _nearest(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    letters = problem.object[problem.start : problem.end].translate(_NEAREST)
    return letters.encode("ascii", "backslashreplace").decode(), problem.end
