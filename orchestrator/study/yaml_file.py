"""Reads the YAML 1.2 text of a study file as plain values, and notes the line of each.

ruamel.yaml parses, and the values are built here. A study has text, numbers, true, false, null, lists and mappings
only. No tag, date or other object is ever constructed. Limits on size and depth keep the time short for every file.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trainers.records import MAX_DIGITS

MAX_BYTES = 64_000
"""Largest size of a study file: twenty times the longest shipped study."""
MAX_VALUES = 5_000
"""Most values in a file. Keys and expanded aliases count; the study with the widest axes has 3,000. ruamel.yaml reads some 25,000 a
second."""
MAX_DEPTH = 20
"""Most nested lists and mappings; a study needs six."""

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters except tab and newline, and characters that end a line or change the text direction on a terminal."""


class Unreadable(Exception):
    """A file that is not the YAML of a study: bad syntax, forbidden characters or tags, or beyond the limits.

    line: line of the problem, counted from 1.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


Place = tuple[str | int, ...]
"""Keys and indices that lead to a value, such as ("axes", "n_tasks", 0)."""


def read(path: Path) -> tuple[Any, dict[Place, int]]:
    """The values of a file, and place -> line, counted from 1.

    Raises OSError if the file cannot be opened, and Unreadable if its text is no study's YAML.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Unreadable(1, f"the file is longer than {MAX_BYTES:,} bytes, the most that a study may have; shorten it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise Unreadable(line, f"byte 0x{data[problem.start]:02x} is not UTF-8; save the file as UTF-8") from None
    if found := _FORBIDDEN.search(text):
        raise Unreadable(text.count("\n", 0, found.start()) + 1, _forbidden(found[0]))
    return _Values().of_document(text)


def _forbidden(character: str) -> str:
    name = unicodedata.name(character, "a control character")
    return f"character U+{ord(character):04X} ({name}) is not allowed in a study; remove it"


def _line(at: Any) -> int:
    return int(at.start_mark.line) + 1


class _Small(Composer):
    """A composer of ruamel.yaml that stops beyond MAX_VALUES or MAX_DEPTH: a thousand levels would take seconds."""

    depth = 0
    n_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node with its children, as ruamel.yaml's own method. Raises Unreadable beyond a limit."""
        self.depth += 1
        self.n_values += 1
        _check(self.n_values, self.depth, self.parser.peek_event())
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _check(n_values: int, depth: int, at: Any) -> None:
    """Raise Unreadable beyond MAX_VALUES or MAX_DEPTH. at: the node or event whose line is named."""
    if n_values > MAX_VALUES:
        raise Unreadable(_line(at), f"more than {MAX_VALUES:,} values, with aliases expanded; a study needs fewer")
    if depth > MAX_DEPTH:
        raise Unreadable(_line(at), f"nested more than {MAX_DEPTH} levels deep; a study needs six")


def _merges(key: Node) -> bool:
    """Whether a key is `<<`, which merges other mappings into this one."""
    return str(key.tag) == "tag:yaml.org,2002:merge"


class _Values:
    """Converts one YAML document to plain values: counts them and notes their lines."""

    def __init__(self) -> None:
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.Composer = _Small
        self.lines: dict[Place, int] = {}
        self.n_values = 0

    def of_document(self, text: str) -> tuple[Any, dict[Place, int]]:
        """The values of a text, and place -> line. Raises Unreadable as `read` does."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an anchor set twice, numbers of YAML 1.1
                root = self.yaml.compose(text)
                return (None if root is None else self._of(root, ())), self.lines
        except MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            raise Unreadable(mark.line + 1 if mark else 1, f"not YAML: {problem.problem or problem.context}") from None
        except RecursionError:
            raise Unreadable(1, f"nested more than {MAX_DEPTH} levels deep; a study needs six") from None
        except Unreadable:
            raise
        except Exception as problem:  # ruamel.yaml raises other errors for some broken files
            raise Unreadable(1, f"not YAML: {str(problem) or type(problem).__name__}") from None

    def _of(self, node: Node, place: Place, depth: int = 0) -> Any:
        """The plain value of a node at a place of the file. Raises Unreadable for tags and beyond the limits."""
        self.n_values += 1
        _check(self.n_values, depth, node)
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if isinstance(node, SequenceNode) and kind == "seq":
            items = []
            for i, item in enumerate(node.value):
                self.lines[*place, i] = _line(item)
                items.append(self._of(item, (*place, i), depth + 1))
            return items
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, place, depth)
        if isinstance(node, ScalarNode) and kind in ("str", "timestamp", "value", "int", "float", "bool", "null"):
            return self._scalar(node, kind)
        raise Unreadable(_line(node), f"tag {str(node.tag)[:80]!r} is not allowed in a study; give the plain value")

    def _mapping(self, node: MappingNode, place: Place, depth: int) -> dict[str, Any]:
        """The mapping of a node. Own keys override merged ones. Raises Unreadable for keys given twice."""
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in sorted(node.value, key=lambda pair: not _merges(pair[0])):
            if _merges(key_node):  # <<: keys of other mappings, unless given here
                sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                for source in sources:
                    values = self._of(source, place, depth + 1)
                    if not isinstance(values, dict):
                        raise Unreadable(_line(key_node), "'<<' takes a mapping, or a list of mappings")
                    merged = values | merged
                continue
            if not isinstance(key_node, ScalarNode):
                raise Unreadable(_line(key_node), "a list or mapping is no key; give a word")
            key = str(self._of(key_node, place, depth))
            if key in own:
                raise Unreadable(_line(key_node), f"key '{key[:80]}' is given twice; keep one")
            self.lines[*place, key] = _line(key_node)
            own[key] = self._of(value_node, (*place, key), depth + 1)
        return merged | own

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        """The text, number, bool or None of a node. A date stays text."""
        text = node.value
        if found := _FORBIDDEN.search(text.replace("\r", "\x00")):
            raise Unreadable(_line(node), _forbidden("\r" if "\r" in text else found[0]))
        if kind in ("str", "timestamp", "value"):  # a date stays text
            return text
        if kind == "int" and len(text) > MAX_DIGITS:
            raise Unreadable(_line(node), f"a whole number of {len(text):,} digits; at most {MAX_DIGITS} can be read")
        try:
            return self.yaml.constructor.construct_object(node)
        except Exception:
            raise Unreadable(_line(node), f"{text[:80]!r} is no {kind}") from None
