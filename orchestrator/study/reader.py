"""Reads a study file: returns a Study, or lists every problem with its line.

A bad file is refused in under two seconds, before anything starts.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from orchestrator import files, terminal
from orchestrator.study import yaml_file
from orchestrator.study.guesses import stands_for, unknown_key, wrong_value
from orchestrator.study.refusals import closest, hint_of, problems_of
from orchestrator.study.schema import (
    PART_MODELS,
    PARTS,
    Axes,
    Expected,
    OtherBudgets,
    Study,
    StudyError,
    is_id,
    with_changes,
)
from trainers import budget
from trainers.records import Record, beyond_limits
from trainers.shapes import Dial, Model
from trainers.spec import Evaluation, Training
from trainers.tasks import FAMILIES, Family, FamilyError, failure_of, family_from

MAX_PROBLEMS = 20
"""Most lines of a refusal; further problems are counted."""

MAX_GIVEN = 100
"""Most characters of a given value in a refusal."""


def shipped() -> dict[str, Path]:
    """The studies that ship with the project: name -> file. Empty if the folder sweeps/ is missing."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "sweeps", here.parent / "sweeps"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find(name: str) -> Path:
    """The file of a study. name: a path, or the name of a shipped study; an existing file comes first.

    Raises StudyError if there is neither, or if the path cannot be read.
    """
    path = Path(name)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as problem:  # a name too long, a folder without permission
        reason, shown = problem.strerror or problem, _one_line(name)[:MAX_GIVEN]
        raise StudyError(f"{shown}: cannot be read: {reason}; give the path of a study file") from None
    if is_file:
        return path
    if name in shipped():
        return shipped()[name]
    if is_folder:
        raise StudyError(f"{name}: that is a folder; give a study file, or a study that ships: {', '.join(shipped())}")
    raise StudyError(f"{_one_line(name)}: no such study file{_near(path)}")


def _near(path: Path) -> str:
    """The end of the refusal of a missing study file: similar names, the folder that was searched, the shipped studies."""
    folder = path.parent.absolute()
    files = {
        str(file)
        for place in dict.fromkeys([path.parent, Path(), Path("sweeps")])
        for pattern in ("*.yaml", "*.yml")
        for file in (place.glob(pattern) if os.access(place, os.R_OK) else ())
    }
    names = {name: Path(name).stem for name in sorted(files)} | {name: name for name in shipped()}
    close = difflib.get_close_matches(path.stem, names.values(), 2)
    near = [name for name, stem in names.items() if stem in close][:2]
    hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else "."
    there = "" if folder.is_dir() else ", which is no folder"
    return f"{hint} Looked in {folder}{there}; give a path, or one that ships: {', '.join(shipped())}"


def load(name: str) -> Study:
    """Read and check a study; name as in `find`. Raises StudyError with every problem, one line each."""
    path = find(name)
    try:
        raw, lines = yaml_file.read(path)
    except OSError as problem:
        raise StudyError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except yaml_file.Unreadable as problem:
        raise StudyError(f"{path}:{problem.line}: {_one_line(str(problem))}") from None
    if not isinstance(raw, dict):
        required = [name for name, field in Study.model_fields.items() if field.is_required()]
        raise StudyError(f"{path}:1: a study is a mapping of keys; required are {', '.join(required)}")
    return _Reader(path, raw, lines).study()


def stated_id(name: str) -> str:
    """NAME@VERSION as a study file states it, without reading the rest; "" if it states none. name as in `find`."""
    try:
        raw, _ = yaml_file.read(find(name))
    except (StudyError, OSError, yaml_file.Unreadable):
        return ""
    stated = f"{raw.get('study')}@{raw.get('version')}" if isinstance(raw, dict) else ""
    return stated if is_id(stated) else ""


def _one_line(text: str) -> str:
    """The text without line breaks, at most 1,000 characters."""
    plain = " ".join(text.split())
    return plain if len(plain) <= 1000 else f"{plain[:1000]} ..."


def _keys(model: type[BaseModel]) -> list[str]:
    """Keys that a settings record accepts: its fields, and those that stand for some of them (`Dial`, `OtherBudgets`)."""
    resolved = getattr(model, "resolved_fields", ())
    others = Dial if issubclass(model, Model) else OtherBudgets if issubclass(model, Axes) else Record
    return [*(k for k in model.model_fields if k not in resolved), *others.model_fields]


class _FileRefused(Exception):
    """A file that a family's settings name cannot be used. The text may begin with the key."""


class _Reader:
    """Converts the values of one file to a Study. It collects all problems, each with its line, and raises them together.

    raw: the values of the file. lines: place of a value -> its line. A place is the keys and indices that lead to it.
    """

    def __init__(self, path: Path, raw: dict[str, Any], lines: dict[yaml_file.Place, int]) -> None:
        self.path, self.raw, self.lines = path, raw, lines
        self.problems: list[tuple[int, str]] = []
        self.n_left_out = 0
        self._broken: list[tuple[Any, ...]] = []  # places beyond their limits
        self._budgets = "compute_flops"  # the key under which the file states the budgets
        self._suggested: set[tuple[Any, ...]] = set()  # keys suggested for unknown ones

    def study(self) -> Study:
        """The study. Raises StudyError with every problem, one line each.

        Files that the family names are read last, and only if nothing else is wrong: a table may take minutes.
        """
        other = self._other_budgets()
        self._limits()
        has_files = self._without_resolved()
        study = self._checked(other, resolved=not has_files)
        if has_files and not self.problems:
            self._resolve()
            study = None if self.problems else self._checked(other, resolved=True)
        if study is not None and not self.problems:
            return study
        found = sorted(set(self.problems))
        shown = [f"{self.path}:{line}: {text}" for line, text in found[:MAX_PROBLEMS]]
        if n_more := len(found) - len(shown) + self.n_left_out:
            shown.append(f"{self.path}:{found[len(shown) - 1][0]}: and {n_more} more problems")
        raise StudyError("\n".join(shown))

    def _checked(self, other: tuple[str, tuple[float, ...]] | None, resolved: bool) -> Study | None:
        """The study from the values, None if they are no study; reports problems. Unless `resolved`, the contents of files are
        not known, and checks that need them are left out. other: as `_other_budgets` gives it."""
        family = self._family(self.raw.get("family")) if "family" in self.raw else None
        study = None
        try:
            study = Study.model_validate(self.raw | ({"family": family} if family else {}))
        except ValidationError as error:
            of_family = [e for e in error.errors() if e["loc"][:1] == ("family",) and e["type"] != "missing"]
            self._all([e for e in error.errors() if e not in of_family], (), Study)  # `_family` reported those
        if study and family:
            self._variants(study)
            self._axis(study, type(family))
            self._arms(study, family)
            if other and resolved and not self.problems:
                study = self._in_flops(study, *other)
            elif other:  # a claim names budgets in FLOPs, which are not known yet
                study = study.model_copy(update={"primary": None, "expected": ()})
            if not self.problems:
                self._meaning(study, family, resolved)
        return study

    def _other_budgets(self) -> tuple[str, tuple[float, ...]] | None:
        """(key, values) of budgets in tokens or steps; None without them. They stand under `compute_flops` until `_in_flops`."""
        axes: Any = self.raw.get("axes")
        given = [key for key in ("compute_flops", *OtherBudgets.model_fields) if isinstance(axes, dict) and key in axes]
        if not given or given == ["compute_flops"]:
            return None
        key = self._budgets = given[-1]
        if len(given) > 1:
            self._say(("axes", key), f"{' and '.join(given)} all give the budgets; keep one")
        self._beyond(("axes",), OtherBudgets)
        values = axes[key]
        try:
            values = getattr(OtherBudgets.model_validate({key: values}), key)
        except ValidationError as error:
            self._all(error.errors(), ("axes",), OtherBudgets)
            values = (1.0,)
        left = {k: v for k, v in axes.items() if k not in OtherBudgets.model_fields}
        self.raw = self.raw | {"axes": left | {"compute_flops": [*(values or ())]}}
        self.lines = self.lines | {
            ("axes", "compute_flops", *place[2:]): line
            for place, line in self.lines.items()
            if place[:2] == ("axes", key)
        }
        return key, tuple(values or ())

    def _in_flops(self, study: Study, key: str, values: tuple[float, ...]) -> Study:
        """The study with its budgets in FLOPs, whole optimizer steps. Reports conditions that differ in their cost."""
        if begins := [condition for condition in study.conditions if study.start_of(condition)]:
            self._say(("axes", key), f"'{begins[0]}' begins with another trial, whose FLOPs count; give compute_flops")
            return study
        costs: dict[tuple[int, int], str] = {}
        for condition in study.conditions:
            try:
                trunk, stated = study.first_trunk(condition)
            except ValidationError:  # an arm or number of tasks that the family lacks: `_meaning` reports it
                return study
            if stated.tokens_per_parameter is not None:
                self._say(("axes", key), "the model follows the budget (tokens_per_parameter); give compute_flops")
                return study
            n_tokens = trunk.training.batch_size * cast(Family, trunk.family).length(trunk.arm)
            costs.setdefault((budget.flops_per_step(trunk), n_tokens if key == "compute_tokens" else 1), condition)
        if len(costs) > 1:
            (one, of), (other, of_other) = list(costs.items())[:2]
            told = f"one costs {one[0] / one[1]:.4g} FLOPs in '{of}' and {other[0] / other[1]:.4g} in '{of_other}'"
            self._say(("axes", key), f"{told}, so equal numbers are not equal compute; give compute_flops")
            return study
        ((cost, per_step),) = costs
        flops = tuple(_shortest(max(1, round(value / per_step)), cost) for value in values)
        return study.model_copy(update={"axes": study.axes.model_copy(update={"compute_flops": flops})})

    def _limits(self) -> None:
        """Report values beyond the limits of their fields, at every place of the file."""
        axes, question = self.raw.get("axes"), self.raw.get("question")
        self._beyond((), Study)
        self._beyond(("axes",), Axes)
        self._beyond(("evaluation",), Evaluation)
        self._settings(())
        if isinstance(question, str) and not any(letter.isalnum() for letter in question):
            self._say(("question",), f"a question in words is needed; given {question!r:.80}")
        for i, _ in enumerate(given if isinstance(given := self.raw.get("expected"), list) else []):
            self._beyond(("expected", i), Expected)
        if not isinstance(axes, dict):
            return
        self._beyond(("axes", "family"), self._kind())
        for arm in _keys_of(axes.get("training_of_arm")):
            self._beyond(("axes", "training_of_arm", arm), Training)
        for name in _keys_of(axes.get("variant")):
            self._settings(("axes", "variant", name))

    def _settings(self, place: tuple[Any, ...]) -> None:
        """Check the limits in the study's settings, or in those of one variant."""
        for part, record in PART_MODELS.items():
            self._beyond((*place, part), record)
        self._beyond((*place, "model"), Dial)
        self._beyond((*place, "family"), self._kind())

    def _kind(self) -> type[Record]:
        """The record class of the named family; `Record` if the name is unknown."""
        given = self.raw.get("family")
        name = given.get("name") if isinstance(given, dict) else None
        return FAMILIES.get(name, Record) if isinstance(name, str) else Record

    def _beyond(self, place: tuple[Any, ...], record: type[BaseModel]) -> None:
        """Report values at a place of the file that are beyond the limits of `record`. Do nothing if no mapping is there."""
        given: Any = self.raw
        for part in place:
            if isinstance(given, dict):
                given = given.get(part)
            elif isinstance(given, list) and isinstance(part, int):
                given = given[part]
            else:
                return
        if isinstance(given, dict):
            for inner, problem in beyond_limits(record, given):
                self._say((*place, *inner), problem)
                self._broken.append((*place, *inner))

    def _family(self, given: Any) -> Family | None:
        """The family from its settings in the file; None, with the problem reported, if they are invalid."""
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            hint = f" (write family: {{name: {given}}})" if given in [*FAMILIES] else ""
            self._say(("family",), f"a mapping with 'name' is needed{hint}; families are {', '.join(FAMILIES)}")
            return None
        try:
            return cast(Family, family_from(given))
        except FamilyError as problem:
            self._say(("family", "name"), str(problem), named=False)
        except ValidationError as error:
            self._all(error.errors(), ("family",), self._kind())
        return None

    def _file(self, place: tuple[Any, ...], problem: _FileRefused) -> None:
        """Report a file that cannot be used, at the key of the family that its message begins with."""
        key, _, rest = str(problem).partition(": ")
        known = key in self._kind().model_fields
        self._say((*place, key) if known else place, rest if known else str(problem), named=known)

    def _settings_of_families(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Settings of the family and the changes by variants, by their places in the file."""
        axes: Any = self.raw.get("axes")
        variants: Any = axes.get("variant") if isinstance(axes, dict) else None
        named = {
            ("axes", "variant", name, "family"): variants[name].get("family")
            for name in _keys_of(variants)
            if isinstance(variants[name], dict)
        }
        return {place: given for place, given in named.items() if isinstance(given, dict)}

    def _without_resolved(self) -> bool:
        """Whether the family names files. Reports fields that only these may fill, and takes them out."""
        kind: type[Record] = self._kind()
        if not issubclass(kind, Family) or not kind.resolved_fields:
            return False
        for place, given in {("family",): self.raw["family"], **self._settings_of_families()}.items():
            for own in sorted(kind.resolved_fields & given.keys()):
                self._say((*place, own), "is resolved from the files; leave it out")
            self._put(place, {key: value for key, value in given.items() if key not in kind.resolved_fields})
        return True

    def _put(self, place: tuple[Any, ...], value: Any) -> None:
        """Replace the value at a place of the file."""
        for k in range(len(place) - 1, -1, -1):
            around: Any = self.raw
            for part in place[:k]:
                around = around[part]
            value = {**around, place[k]: value}
        self.raw = value

    def _resolve(self) -> None:
        """Put what the files of the family hold beside its settings, and those of a variant with another table, tokenizer or scorer
        beside its changes."""
        kind, stated = cast(type[Family], self._kind()), self.raw["family"]
        for place, changes in {("family",): stated, **self._settings_of_families()}.items():
            if place != ("family",) and not kind.resolved_from & changes.keys():
                continue
            try:
                made = self._resolved({**stated, **changes}, kind)
            except _FileRefused as problem:
                self._file(place, problem)
                continue
            held = {name: made[name] for name in kind.resolved_fields}
            plain = {name: of.model_dump(mode="json") if isinstance(of, Record) else of for name, of in held.items()}
            self._put(place, changes | plain)

    def _resolved(self, given: dict[str, Any], kind: type[Family]) -> dict[str, Any]:
        """The family's settings with the contents of their files. Raises _FileRefused for a file that cannot be used."""
        try:
            return kind.resolved(
                given, self.path.absolute().parent, files.data_folder(), partial(terminal.say, err=True)
            )
        except (ValueError, OSError, ImportError) as problem:
            raise _FileRefused(str(problem)) from None

    def _meaning(self, study: Study, family: Family, resolved: bool) -> None:
        """Check the fields against each other. A family of another package computes its numbers here, and may raise."""
        try:
            for loc, message in problems_of(study, family, resolved):
                self._say(loc, message)
        except Exception as problem:
            if (failed := failure_of(type(family), problem)) is None:
                raise
            self._say(("family", "name"), failed, named=False)

    def _all(self, errors: Iterable[Any], prefix: tuple[Any, ...], model: type[BaseModel]) -> None:
        """Report pydantic's errors, at most 100: missing keys last, so that a misspelt key is not reported as missing, too.

        prefix: place of the validated value in the file. model: its record class.
        """
        ordered = sorted(errors, key=lambda e: e["type"] == "missing")
        for error in ordered[: 5 * MAX_PROBLEMS]:
            self._pydantic(error, prefix, model)
        self.n_left_out += len(ordered[5 * MAX_PROBLEMS :])

    def _variants(self, study: Study) -> None:
        """Check every change of every variant against its record."""
        for name, variant in study.axes.variant.items():
            for part in (*PARTS, "place"):
                base, changes, place = getattr(study, part), getattr(variant, part), ("axes", "variant", name, part)
                if part == "family" and "name" in changes:
                    self._say((*place, "name"), "a variant keeps the family; compare families as studies of their own")
                    continue
                try:
                    with_changes(base, changes)
                except ValidationError as error:
                    self._all(error.errors(), place, type(base))

    def _axis(self, study: Study, kind: type[Family]) -> None:
        """Check the family parameter with several values: one, no other statement of it, and each value against the family."""
        place, parameter = ("axes", "family"), study.axis
        if len(study.axes.family) > 1:
            self._say(
                place,
                f"one parameter has several values; given {', '.join(study.axes.family)}; vary the others by name, under axes.variant",
            )
            return
        others = [("family",), *(("axes", "variant", name, "family") for name in study.axes.variant)]
        for other in others:
            if parameter and (*other, parameter) in self.lines:
                self._say((*other, parameter), f"axes.family gives the values of '{parameter}'; leave it out here")
        if parameter in kind.resolved_from | kind.resolved_fields:
            self._say((*place, parameter), "decides what is read from files; vary it by name, under axes.variant")
            return
        values = study.axes.family.get(parameter, ())
        for i, value in enumerate(values):
            if value in values[:i]:
                self._say((*place, parameter, i), f"{value:g} is given twice")
        for label in study.labels if parameter else ():
            try:
                with_changes(study.family, study.variant_of(label).family)
            except ValidationError as error:
                self._all(error.errors(), place, kind)

    def _arms(self, study: Study, family: Family) -> None:
        """Check every change of every arm against the training settings."""
        for arm, changes in study.axes.training_of_arm.items():
            place = ("axes", "training_of_arm", arm)
            if arm not in study.axes.arm and not set(study.axes.arm) <= set(family.arms):
                continue  # the arm in the axes may be misspelt, and is refused
            if arm not in study.axes.arm:
                allowed = ", ".join(study.axes.arm)
                self._say(place, f"no arm of this study{hint_of(arm, study.axes.arm)}; it has {allowed}")
                continue
            try:
                with_changes(study.training, changes)
            except ValidationError as error:
                self._all(error.errors(), place, Training)

    def _pydantic(self, error: Any, prefix: tuple[Any, ...], model: type[BaseModel]) -> None:
        """Report one of pydantic's errors in plain words."""
        loc, given, context = tuple(error["loc"]), error["input"], error.get("ctx", {})
        kind = error["type"]
        if kind == "too_short" and given:
            return  # its items are reported one by one
        if kind == "extra_forbidden":
            parent, key = _model_at(model, loc[:-1]), str(loc[-1])
            allowed = _keys(parent) if parent else []
            text = unknown_key(prefix + loc[:-1], key, given, allowed, _keys, hint_of(key, allowed))
            self._say(prefix + loc, text, named=False)
            self._suggested |= {(*prefix, *loc[:-1], near) for near in closest(key, allowed)}
        elif kind == "missing" and (
            prefix + loc in self._suggested or any(stands_for(text, prefix + loc) for _, text in self.problems)
        ):
            return  # it is present but misspelt, or by another tool's name
        elif kind == "value_error" and any(place[: len(prefix + loc)] == prefix + loc for place in self._broken):
            return  # keys that exclude each other, one of them beyond its limit
        elif kind == "missing":
            self._say(prefix + loc[:-1], f"key '{loc[-1]}' is required", named=bool(loc[:-1]))
        else:
            wanted = {
                "int_type": "a whole number is needed",
                "bool_type": "true or false is needed",
                "float_type": "a number is needed",
                "string_type": "text is needed",
                "tuple_type": "a list is needed",
                "too_short": "at least one value is needed",
                "finite_number": "a finite number is needed",
                "model_type": "a mapping of keys is needed",
                "dict_type": "a mapping of keys is needed",
                "string_pattern_mismatch": "small letters, digits and underscores only",
                "greater_than": f"a number greater than {context.get('gt')} is needed",
                "greater_than_equal": f"a number of at least {context.get('ge')} is needed",
                "less_than": f"a number below {context.get('lt')} is needed",
                "less_than_equal": f"a number of at most {context.get('le')} is needed",
                "literal_error": f"one of {context.get('expected')} is needed",
            }.get(kind, error["msg"].removeprefix("Value error, "))
            if isinstance(given, str) and kind in ("int_type", "float_type"):
                wanted += ", without unit or quotes"
            shown = repr(given) if len(repr(given)) <= MAX_GIVEN else f"{repr(given)[:MAX_GIVEN]} ..."
            hint = wrong_value(prefix + loc, given)
            self._say(prefix + loc, wanted if kind == "value_error" else f"{wanted}; given {shown}{hint}")

    def _say(self, loc: tuple[Any, ...], message: str, named: bool = True) -> None:
        """Note a problem at a place. named: put the place before the message. A place without a line gets that of its parent."""
        if loc[:2] == ("axes", "compute_flops"):
            loc = ("axes", self._budgets, *loc[2:])
        name = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part)[:MAX_GIVEN] for part in loc))
        line = next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), 1)
        self.problems.append((line, _one_line(f"{name}: {message}" if named and name else message)))


def _shortest(steps: int, cost: int) -> float:
    """The number of FLOPs with the fewest digits that is this many steps of `cost` FLOPs: ids of trials hold it."""
    every = (float(f"{steps * cost:.{digits}e}") for digits in range(2, 17))
    return next(
        (flops for flops in every if abs(flops / cost - steps) < 0.01 * steps and round(flops / cost) == steps),
        float(steps * cost),
    )


def _keys_of(given: Any) -> list[Any]:
    return list(given) if isinstance(given, dict) else []


def _model_at(model: type[BaseModel], loc: tuple[Any, ...]) -> type[BaseModel] | None:
    """The record class at a place (keys and indices) below `model`; None if no record is there."""
    current: Any = model
    named = False  # the next part names an entry of a mapping
    for part in loc:
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = current.model_fields[part].annotation
        named = getattr(annotation, "__origin__", None) is dict
        arguments = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)]
        current = next((a for a in [annotation, *arguments] if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if current is None:
            return None
    return cast("type[BaseModel] | None", current)
