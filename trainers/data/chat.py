"""Chat templates: turns of a conversation become the text of a prompt and its target.

A template is Jinja text that is given `messages` and `add_generation_prompt`, as in the files of Hugging Face models. The last
turn is the assistant's. Its text is the target, and all text before it the prompt. The loss sees the target alone, so the text up
to the answer must be the beginning of the whole text. Each item is checked for that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainers.data.sources import TableError, first_line

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
"""The template of tables with chat turns, if none is given: `role: content`, one turn a line."""
_MARKS = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
"""Tags around the answer in templates of Hugging Face. Their effect on blanks is that of an `if`."""


class Template:
    """Turns -> (prompt, target). Templates run in a sandbox: they come from files of others."""

    def __init__(self, source: str, label: str, marks: dict[str, str] | None = None) -> None:
        """`marks` are special tokens that the text may name, such as `bos_token`. Raises TableError for bad Jinja."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.label, self.marks = label, marks or {}
        self.digest = hashlib.blake2b(json.dumps([source, self.marks]).encode(), digest_size=16).hexdigest()
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **given: json.dumps(value, ensure_ascii=False, **given)
        del environment.globals["lipsum"], environment.filters["random"]  # a text must not change from run to run
        try:
            self._template = environment.from_string(_MARKS.sub(_as_if, source))
        except TemplateError as problem:
            raise TableError(f"{label}: is no chat template: {first_line(problem)}") from None

    def __call__(self, turns: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """The prompt and target of a conversation. Raises ValueError if the target cannot be told from the prompt."""
        prompt = self._render(turns[:-1], True)
        whole = self._render(turns, False)
        if not whole.startswith(prompt):
            raise ValueError(
                f"with {self.label} the text before the answer, ending in {prompt[-40:]!r}, is no beginning of the whole text, "
                "so the loss cannot see the answer alone; give a template that honours add_generation_prompt"
            )
        target = whole[len(prompt) :]
        if str(turns[-1]["content"]).strip() not in target:
            raise ValueError(f"with {self.label} the answer {str(turns[-1]['content'])[:40]!r} is not in the target")
        return prompt, target

    def _render(self, turns: Sequence[dict[str, Any]], asks: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=list(turns), add_generation_prompt=asks, **self.marks)
        except (TemplateError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as problem:
            raise ValueError(f"{self.label} fails: {first_line(problem)}") from None


def template_of(path: Path) -> Template:
    """The template in a file, or in a model's folder (`chat_template.jinja` or `tokenizer_config.json`).

    Raises TableError, in one line, if there is none.
    """
    file, marks = path, {}
    try:
        if path.is_dir():
            config = path / "tokenizer_config.json"
            known = json.loads(config.read_text()) if config.is_file() else {}
            for name in ("bos_token", "eos_token"):
                mark = known.get(name)
                marks[name] = str(mark.get("content", "") if isinstance(mark, dict) else mark or "")
            file = path / "chat_template.jinja"
            if not file.is_file():
                if not isinstance(text := known.get("chat_template"), str):
                    raise TableError(
                        f"{path}: neither chat_template.jinja nor a chat_template in tokenizer_config.json"
                    )
                return Template(text, str(config), marks)
        return Template(file.read_text(), str(file), marks)
    except (OSError, ValueError) as problem:
        if isinstance(problem, TableError):
            raise
        raise TableError(f"{file}: cannot be read as a chat template: {first_line(problem)}") from None


def _as_if(tag: re.Match[str]) -> str:
    return f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}"


@lru_cache(maxsize=1)
def plain() -> Template:
    """The template PLAIN."""
    return Template(PLAIN, "the plain template")


def _refuse(message: str) -> None:
    """`raise_exception` of templates."""
    from jinja2 import TemplateError

    raise TemplateError(message)
