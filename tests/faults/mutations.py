"""Studies broken in every way that a slip, an editor, a disk or a stranger could: mutant i of a seed is always the same text.

Three kinds. `text` mutates the YAML itself: bytes, lines, keys, tags, anchors, quotes, encodings. `value` puts a nasty value in
the place of one that a study has, or adds, drops or renames a key. `pair` does two of these. The bases are small studies that
use every feature between them, and the studies that ship.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from orchestrator.study import reader
from orchestrator.study import schema as studies
from orchestrator.study.claim import Primary

SMALL = (
    # Both arms, tuned apart; variants; a rule for sizes; a place; expected values.
    """\
study: small
version: 1
question: Is it well formed?
expectation: It is.
family: {name: cipher, n_symbols: 6, n_pairs: 6, answers: permutation}
axes:
  arm: [answer, next_token]
  variant:
    plain: {}
    wide: {model: {d_model: 32, d_mlp: 64}, training: {base_d_model: 16}}
    deep: {model: {depth: 1}, place: {workers: 2}}
  training_of_arm: {next_token: {learning_rate: 1e-3}}
  n_tasks: [4, 16, 64, 256]
  compute_flops: [4e9, 8e9, 1.6e10]
  replicates: 2
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32, conv_kernel: 4, init_gain: 1.0, embed_std: 0.3}
training: {batch_size: 8, learning_rate: 3e-3, beta1: 0.9, beta2: 0.98, weight_decay: 0.1, clip_norm: 1.0, warmup_steps: 10}
evaluation: {points_per_decade: 3, first_flops: 1e9, n_sequences: 8}
skills: [recall, override]
primary: {what: k_memory, arm: "answer, plain", lo: 16}
expected:
  - {what: accuracy, cell: {n_tasks: 4, compute_flops: 4e9, arm: "answer, plain", skill: recall, split: seen}, value: 0.5, lo: 0, hi: 1, source: a guess, evidence: C, replicates: 3}
""",
    # Domains, and a generalist beside its specialists; anchors and a merge.
    """\
study: domains
version: 2
question: >-
  Does one model for all
  beat the specialists?
family: {name: compose, n_slots: 2, n_functions: 6, n_input: 2, n_letters: 5, n_domains: 2, domain_shares: [1, 2]}
axes:
  arm: [steps]
  variant:
    all: {}
    one: {family: &one {domain: 0}}
    two: {family: {<<: *one, domain: 1}}
  n_tasks: [2, 4]
  compute_flops: [1e10, 2e10, 4e10]
  replicates: 2
model: {preset: 0.1m}
training: {batch_size: 16, schedule: constant, precision: bf16, task_exponent: 0.5}
evaluation: {points_per_decade: 2, first_flops: 1e9, n_sequences: 4}
place: {zero_stage: 1, micro_batch: 8, recompute: true, offload: true}
primary: {what: overtakes, arm: all, skill: domain_0, n_tasks: 4, from_flops: 1e10, lo: 1.5e10}
""",
    # A size that follows the budget, and a claim on a drift.
    """\
study: rule
version: 1
question: Which size?
family: {name: urns, n_colors: 4, n_draws: 16}
axes:
  arm: [next_token]
  n_tasks: [2, 8, 32, 128]
  compute_flops: [1e12, 4e12, 1.6e13, 6.4e13]
  replicates: 1
model: {tokens_per_parameter: 10, norm: layer, positions: learned}
training: {base_d_model: 64, decay_share: 0.1}
evaluation: {points_per_decade: 1, first_flops: 1e11, n_sequences: 4}
primary: {what: drift_memory, hi: 1.5}
""",
    *(
        f"""\
study: other
version: 1
question: What of {family.split(",")[0]}?
family: {{name: {family}}}
axes: {{arm: [{arm}], n_tasks: [2, 4, 8, 16], compute_flops: [1e10, 4e10], replicates: 1}}
model: {{n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}}
evaluation: {{points_per_decade: 1, first_flops: 1e9, n_sequences: 4}}
"""
        for family, arm in (
            ("markov, n_states: 4, n_tokens: 16, prior: uniform", "next_token"),
            ("modular, modulus: 5, n_inputs: 2, n_examples: 4", "task_id"),
            ("parity, n_bits: 8, n_summed: 2, n_controls: 20", "answer"),
            ("regression, n_dims: 4, n_pairs: 4, noise_variance: 0.25", "answer"),
            ("grok, modulus: 11", "answer"),
        )
    ),
)

PRIMARIES = tuple(
    f"{{what: {what}{more}}}"
    for what in Primary.model_fields["what"].annotation.__args__  # type: ignore[union-attr]
    for more in (
        ", hi: 1",
        ", lo: 0.5, n_tasks: 4",
        ", verdict: break, n_tasks: 16",
        ", lo: -1e308, hi: 1e308, compute_flops: 8e9",
        ", against: next_token, n_tasks: 4, lo: 8e9, from_flops: 4e9",
    )
)

NUMBERS = (
    "0", "-1", "1", "2", "3", "0.5", "-0.0", "1e-300", "5e-324", "1e-9", "7", "1000", "1e5", "1e9", "1e12", "1e18", "4611686018427387904",
    "1e19", "1e30", "1e100", "1e300", "1.7976931348623157e308", "1e309", "-1e300", ".inf", "-.inf", ".nan", "9" * 30, "9" * 5000,
    "0x" + "f" * 5000, "0o" + "7" * 4000, "0b1", "1_000", "1e1_0", "0." + "3" * 5000, "1e-400", "+1", "01", "--1", "1e", "0x",
)  # fmt: skip
TEXTS = (
    "''", '"12"', "'1e12'", "1e12 FLOPs", "true", "false", "null", "~", "yes", "2001-99-99", "2026-02-30", "2026-02-28T25:61:61Z", "12:30:99",
    "!!int abc", "!!float x", "!!binary xx", "!!timestamp 2001-99-99", "!!python/object:os.system x", "!!set {a, b}", "!!omap [a: 1]",
    "!foo bar", "!!str 12", "!!bool maybe", "!!null x", "!<tag:yaml.org,2002:int> 3", "!!seq {}", "!!map []", "*nowhere", "&a [*a]", "&a {a: *a}",
    '"\\0"', '"a\\e[31mb"', '"\\u202Eabc"', '"\\ud800"', '"a\\nb"', '"a\\rb"', '"\\u2028x"', "'[/INST] [see fig] {x} $y$ <b>&amp;'", "answer", "ANSWER",
    '"' + "x" * 20_000 + '"', '"' + "é" * 5000 + '"', "../../x@1", "a/b", "日本語", "\U0001f600", "=", "<<", "?", "-", "[", "{", "@x", "`x", "%x",
)  # fmt: skip
NESTED = (
    "[]", "{}", "[[]]", "[{}]", "{a: 1}", "[1]", "[null]", "[1, 1]", "[4, 4]", "[a, 1, [2]]", "[.nan, .inf]", "{1: 2}", "{null: null}",
    "{[a]: b}", "{a: {b: {c: {d: {e: {f: {g: 1}}}}}}}", "{<<: {a: 1}}", "{<<: 3}", "{? [x] : y}", "[1e300, 2e300]", "[4e9, 4.00001e9]",
    "[8e9, 4e9, 8e9]", "[1e10, 1.0000001e10]",
    "[" * 3000, "[" * 15 + "]" * 15, "{a: " * 500, "[" + "1, " * 10**6 + "1]", "[" + ", ".join(map(str, range(1, 7000))) + "]",
    "[" + ", ".join(f"{i}e9" for i in range(1, 1500)) + "]", "[" + ", ".join(f"{i}e10" for i in range(1, 101)) + "]",
    "[" + ", ".join(map(str, range(1, 1001))) + "]", "[" + "a, " * 9000 + "a]", "{" + ", ".join(f"a{i}: {{}}" for i in range(3000)) + "}",
    "{" + ", ".join(f"a{i}: {{model: {{n_layers: {i + 1}}}}}" for i in range(99)) + "}", "[" + "{}, " * 5000 + "{}]",
    "{a: &a [x, x, x, x, x, x, x, x, x], b: &b [*a, *a, *a, *a, *a, *a, *a, *a], c: &c [*b, *b, *b, *b, *b, *b, *b, *b], "
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c], e: &e [*d, *d, *d, *d, *d, *d, *d, *d], f: [*e, *e, *e, *e, *e, *e, *e, *e]}",
)  # fmt: skip
NASTY = (*NUMBERS, *TEXTS, *NESTED)


class Mutant(NamedTuple):
    """A study file that somebody could hand in."""

    kind: str
    """`text`, `value` or `pair`."""
    how: str
    """What was done."""
    data: bytes


@functools.cache
def bases() -> tuple[str, ...]:
    """The studies that are mutated: the small ones, and those that ship without their comments."""
    shipped = (path.read_text() for path in reader.shipped().values())
    return (*SMALL, *(re.sub(r"(^|\s+)#.*", "", text) for text in shipped))


def mutant(number: int, seed: int = 0) -> Mutant:
    """Mutant `number` of a seed: always the same bytes."""
    draw = random.Random(f"{seed}/{number}")
    base = bases()[draw.randrange(len(SMALL)) if draw.random() < 0.85 else draw.randrange(len(bases()))]
    kind = draw.choice(("text", "text", "value", "value", "pair"))
    if kind == "text":
        return Mutant(kind, *_of_text(draw, base))
    if kind == "value":
        return Mutant(kind, *_encoded(_of_value(draw, base)))
    said, text = _of_value(draw, base, times=draw.choice((1, 2)))
    more, data = _of_text(draw, text) if draw.random() < 0.5 else _encoded((", and no more", text))
    return Mutant(kind, f"{said}; {more}", data)


def _encoded(told: tuple[str, str]) -> tuple[str, bytes]:
    return told[0], told[1].encode("utf-8", "surrogatepass")


# Values -------------------------------------------------------------------------------------------------------------


@functools.cache
def _parsed(base: str) -> Any:
    return YAML(typ="safe", pure=True).load(base)


def _places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [place] if place else []
    if isinstance(node, dict):
        return found + [p for k, v in node.items() for p in _places(v, (*place, k))]
    if isinstance(node, list):
        return found + [p for i, v in enumerate(node) for p in _places(v, (*place, i))]
    return found


class _Written(str):
    """YAML that stands in a study as it is."""


def _flow(node: Any) -> str:
    """Written in one line; what is nasty as it is."""
    if isinstance(node, _Written):
        return str(node)
    if isinstance(node, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(_flow, node)) + "]"
    if isinstance(node, str):
        return '"' + node.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return {None: "null", True: "true", False: "false"}[node] if node is None or isinstance(node, bool) else repr(node)


def _of_value(draw: random.Random, base: str, times: int = 1) -> tuple[str, str]:
    """A nasty value in the place of one that is there; or a key dropped, renamed, or added that a study may have."""
    study = _copied(_parsed(base))
    said = []
    for _ in range(times):
        place = draw.choice(_places(study))
        at: Any = study
        for part in place[:-1]:
            at = at[part]
        where, last = ".".join(map(str, place)), place[-1]
        what = draw.random()
        if what < 0.08 and isinstance(at, dict):
            del at[last]
            said.append(f"no {where}")
        elif what < 0.14 and isinstance(at, dict):
            at[_misspelt(draw, str(last))] = at.pop(last)
            said.append(f"{where} misspelt")
        elif what < 0.24:
            study["primary"] = _Written(draw.choice(PRIMARIES))
            said.append(f"primary {study['primary']}")
        elif what < 0.34:
            part, key, value = draw.choice(ADDED)
            of = study.setdefault(part, {})
            if isinstance(of, dict):
                of[key] = _Written(value if draw.random() < 0.5 else draw.choice(NUMBERS))
            said.append(f"{part}.{key} added")
        else:
            at[last] = _Written(draw.choice(NASTY))
            said.append(f"{where} = {at[last][:40]}")
    return ", ".join(said), "".join(f"{key}: {_flow(value)}\n" for key, value in study.items())


ADDED = (
    ("axes", "variant", "{a: {}, b: {model: {n_layers: 2}}, c: {place: {workers: 1}}}"),
    ("axes", "variant", "{a: {model: {depth: 99}}, b: {training: {weight_decay: 1e300}}}"),
    ("axes", "training_of_arm", "{answer: {learning_rate: 1e3}}"),
    ("axes", "replicates", "10000"),
    ("axes", "n_tasks", "[2, 3, 5, 9, 17, 33, 65, 129, 257]"),
    ("axes", "compute_flops", "[1e9, 2e9, 4e9, 8e9, 8e9]"),
    ("evaluation", "points_per_decade", "1000"),
    ("evaluation", "first_flops", "1e-300"),
    ("evaluation", "n_sequences", "1e6"),
    ("training", "batch_size", "1e9"),
    ("training", "batch_size", "720720"),
    ("training", "task_exponent", "1e300"),
    ("model", "d_model", "1e300"),
    ("model", "preset", "350m"),
    ("model", "tokens_per_parameter", "1e-300"),
    ("place", "workers", "7"),
    ("place", "micro_batch", "3"),
    ("family", "domain_shares", "[1e300, 1e-300]"),
    ("family", "n_slots", "1e12"),
    ("family", "n_domains", "1e9"),
)


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _copied(v) for k, v in node.items()}
    return [_copied(v) for v in node] if isinstance(node, list) else node


def _misspelt(draw: random.Random, key: str) -> str:
    i = draw.randrange(len(key) + 1)
    return key[:i] + draw.choice("aeiou_xzÉ-1") + key[i + draw.randrange(2) :]


# Text ---------------------------------------------------------------------------------------------------------------


def _of_text(draw: random.Random, base: str) -> tuple[str, bytes]:
    name = draw.choice(sorted(TEXT_WAYS))
    done = TEXT_WAYS[name](draw, base)
    return name, done if isinstance(done, bytes) else done.encode("utf-8", "surrogatepass")


def _lines(change: Callable[[random.Random, list[str], int], None]) -> Callable[[random.Random, str], str]:
    def way(draw: random.Random, text: str) -> str:
        lines = text.splitlines(keepends=True)
        change(draw, lines, draw.randrange(len(lines)))
        return "".join(lines)

    return way


def _drop(draw: random.Random, lines: list[str], i: int) -> None:
    del lines[i : i + draw.choice((1, 1, 2, 5))]


def _double(draw: random.Random, lines: list[str], i: int) -> None:
    lines.insert(draw.choice((i, len(lines), 0)), lines[i])


def _indent(draw: random.Random, lines: list[str], i: int) -> None:
    lines[i] = draw.choice((" ", "  ", "\t", "      ")) + lines[i] if draw.random() < 0.7 else lines[i].lstrip()


def _swap(draw: random.Random, lines: list[str], i: int) -> None:
    j = draw.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]


def _insert_line(draw: random.Random, lines: list[str], i: int) -> None:
    lines.insert(i, draw.choice(("---\n", "...\n", "%YAML 1.1\n---\n", "%YAML 9.9\n", "%TAG ! tag:x,2026:\n", "- a\n", "? x\n", ": y\n", "x\n", "}\n", "]\n", "# \x07\n", "<<: *one\n", "!!set\n", "'\n", '"\n', "|\n", "&a\n", "\x85\n", "\u2028", "key: >\n", "\ufeff")))  # fmt: skip


def _bytes(draw: random.Random, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(draw.choice((1, 1, 3, 20))):
        i = draw.randrange(len(data))
        data[i] = data[i] ^ (1 << draw.randrange(8)) if draw.random() < 0.5 else draw.randrange(256)
    return bytes(data)


def _before_value(words: tuple[str, ...]) -> Callable[[random.Random, str], str]:
    def way(draw: random.Random, text: str) -> str:
        at = draw.choice([m.end() for m in re.finditer(r"[:\[,-] ", text)] or [0])
        return text[:at] + draw.choice(words) + text[at:]

    return way


def _number(draw: random.Random, text: str) -> str:
    found = draw.choice(list(re.finditer(r"\b\d[\d.e+-]*\b", text)) or [re.match("", text)])
    assert found is not None
    return text[: found.start()] + draw.choice(NUMBERS) + text[found.end() :]


def _key(draw: random.Random, text: str) -> str:
    found = draw.choice(list(re.finditer(r"\b[a-z_]+(?=:)", text)) or [re.match("", text)])
    assert found is not None
    new = _misspelt(draw, found[0]) if draw.random() < 0.6 else draw.choice(("", "1", "null", "true", "1e2", "[a]", "? a", "'a\\nb'", "x" * 3000, "é", "__class__", "name", "what"))  # fmt: skip
    return text[: found.start()] + new + text[found.end() :]


def _character(draw: random.Random, text: str) -> str:
    odd = ("\x00", "\x1b[31m", "\x07", "\x85", "\u2028", "\u202e", "\ufeff", "\ud800", "\uffff", "\x7f", "\r", "\xa0", "\u200b", "\U0001f600", "ı", "\t", "\u3000", "１２")  # fmt: skip
    at = draw.randrange(len(text))
    return text[:at] + draw.choice(odd) + text[at:]


def _bomb(draw: random.Random, text: str) -> str:
    first, *rest = (chr(ord("a") + i) for i in range(draw.choice((3, 9, 20))))
    key = draw.choice(("skills", "expected", "bomb", "primary"))
    lines = [f"{first}: &{first} [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in zip([first, *rest], rest, strict=False):
        kind = ("[" + f"*{before}, " * 9 + f"*{before}]") if draw.random() < 0.8 else f"{{<<: *{before}, k: *{before}}}"
        lines.append(f"{name}: &{name} {kind}")
    return text + f"{key}:\n" + "".join(f"  {line}\n" for line in lines)


TAGS = ("!!int ", "!!str ", "!!float ", "!!python/name:os.system ", "!x ", "!!timestamp ", "!!binary ", "!!set ", "!!null ", "!<x> ", "!! ", "! ", "!!bool ", "!!seq ", "!!map ", "!!omap ")  # fmt: skip
QUOTES = ("'", '"', "| ", "> ", "|\n", "[", "{", "]", "}", ",", "? ", "- ", ": ", "# ", "@", "`", "%", "\\", ">-9\n", "|+0 ")  # fmt: skip
WHOLE = ("", "\n", "null", "[]", "3", "x", "---\n", "- a\n- b\n", "study", "\x00", "{}", "#", "...", "study: x", "!!map {}", "!x {}", "&a {a: *a}")  # fmt: skip

TEXT_WAYS: dict[str, Callable[[random.Random, str], str | bytes]] = {
    "bytes changed": _bytes,
    "lines dropped": _lines(_drop),
    "a line twice": _lines(_double),
    "a line indented": _lines(_indent),
    "lines swapped": _lines(_swap),
    "a line put in": _lines(_insert_line),
    "a tag": _before_value(TAGS),
    "an anchor": _before_value(("&a ", "*a ", "*one ", "&one ", "<<: ", "&", "*", "&a &b ", "*a*a ")),
    "a quote": _before_value(QUOTES),
    "a value before a value": _before_value(tuple(value + " " for value in NASTY if len(value) < 6000)),
    "a number": _number,
    "a key": _key,
    "a character": _character,
    "an alias bomb": _bomb,
    "cut off": lambda draw, text: text[: draw.randrange(len(text))],
    "CRLF": lambda draw, text: text.replace("\n", draw.choice(("\r\n", "\r", "\n\r", "\n\n"))),
    "a BOM": lambda draw, text: (
        draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf\xef\xbb\xbf")) + text.encode()
    ),
    "another encoding": lambda draw, text: (text + "# é\n").encode(
        draw.choice(("utf-16", "utf-32", "latin-1", "utf-7", "utf-16-le"))
    ),
    "long": lambda draw, text: (
        text
        + draw.choice(
            ("# x\n" * 20_000, "\n" * 100_000, " " * 200_000, "x: " + "y" * 63_000, "- \n" * 9000, "a:\n " * 4000)
        )
    ),
    "deep": lambda draw, text: (
        text + "skills: " + draw.choice(("[", "{a: ", "[{a: ", "- ", "? ")) * draw.choice((10, 100, 5000))
    ),
    "replaced": lambda draw, text: draw.choice(WHOLE),
}


def accepted(folder: Path, data: bytes) -> studies.Study | None:
    """What reading a mutant comes to: a study; or None, refused in lines of file, line and reason. Raises what is neither."""
    path = folder / "mutant.yaml"
    path.write_bytes(data)
    try:
        return reader.load(str(path))
    except studies.StudyError as refusal:
        lines = str(refusal).split("\n")
        assert len(lines) <= reader.MAX_PROBLEMS + 1, lines[:3]
        for line in lines:
            assert re.fullmatch(rf"{re.escape(str(path))}:[1-9]\d*: \S.*", line) and len(line.splitlines()) == 1, line[
                :300
            ]
            assert len(line) < 2000 and not re.search(r"[\x00-\x1f\x7f-\x9f]", line), line[:300]
        return None


def planned(study: studies.Study) -> None:
    """Plan an accepted study, and take it through the journal. Raises where either goes wrong. Of thousands of replicates two do."""
    from orchestrator.plan import price
    from orchestrator.record.journal import State

    few = study.axes.model_copy(update={"replicates": min(2, study.axes.replicates)})
    try:
        made = price.make(study.model_copy(update={"axes": few}), State(), 2, "cpu")
    except studies.StudyError as refusal:
        assert len(str(refusal).splitlines()) == 1 and str(refusal).startswith(f"{study.id}: "), refusal
    else:
        assert made.n_open == made.n_trials > 0 and made.train_flops > 0
    assert studies.Study.from_record(study.model_dump(mode="json")) == study
