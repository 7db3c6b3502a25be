"""The checks that every family passes, ours and those of other packages.

    python -m trainers.tasks.conformance line                    # a registered family, by its name
    python -m trainers.tasks.conformance line_family:Line p=13   # a class in a file of the current folder, with parameters

Each breach is one line: the family, the method, what is expected, what was given. Exit code 0 without a breach, else 2. In tests of
your own: `conforms(family)` raises the first `Breach`. docs/families.md explains how to write a family.

A batch's tasks are known only if `batch` reads them from a method `tasks(ids)`. A note names a family that is trusted there.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from trainers.tasks import FAMILIES, ExactFamily, Family, FamilyError, family_from, family_named
from trainers.tasks.base import lacking
from trainers.tasks.parity import Parity
from trainers.tasks.probes import Batch, ItemSet, Probe, Reference
from trainers.tasks.request import Request
from trainers.tasks.text import FLOORS, TextFamily

SPLITS = ("seen", "held_out", "train_items", "held_out_clusters")


class Breach(AssertionError):
    """A family does not keep its contract. Its text is one line: family, method, what is expected, what was given."""


def request_of(family: Family, arm: str, replicate: int = 0, n_tasks: int | None = None) -> Request:
    """A small request: 12 tasks or as many as there are, 6 sequences per batch, 16 per item set."""
    n = min(family.n_tasks_max, 12) if n_tasks is None else n_tasks
    return Request(arm=arm, n_tasks=n, replicate=replicate, batch_size=6, n_sequences=16)


def conforms(family: Family) -> None:
    """Check the whole contract. Raises the first `Breach`."""
    for problem in breaches(family):
        raise problem


def breaches(family: Family) -> Iterator[Breach]:
    """Check the whole contract. Yields at most one breach per check and arm; what a breach makes meaningless is not checked."""
    first: list[Callable[..., None]] = [tasks_are_as_declared] if isinstance(family, ExactFamily) else []
    for declared in (*first, declarations):
        if problem := _tried(family, declared):
            yield problem
            return
    requests = [request_of(family, arm) for arm in family.arms]
    shapes = [p for request in requests for check in SHAPES if (p := _tried(family, check, request))]
    yield from {str(problem): problem for problem in shapes}.values()
    if shapes:
        return
    for request in requests:
        for check in (batches_depend_on_the_step_alone, suites_are_repeatable, references_are_sound):
            if problem := _tried(family, check, request):
                yield problem
    checks: list[Callable[..., None]] = [contents_are_as_declared, contents_are_nested, held_out_is_not_trained]
    checks.append(batches_hold_training_tasks)
    if isinstance(family, ExactFamily):
        checks += [tasks_are_nested, tasks_depend_on_their_id_alone, the_universe_holds_each_task_once]
    if not isinstance(family, Parity):  # it asks each trial's own tasks, of new data
        checks.append(held_out_sequences_are_the_same_for_all_trials)
    yield from (problem for each in checks if (problem := _tried(family, each)))


def first_shape(family: Family, request: Request) -> Breach | None:
    """The first breach in the declarations, or in the shapes of one batch and one suite; None if all are as declared."""
    if (problem := _tried(family, declarations)) is not None:
        return problem
    return next((p for check in SHAPES if (p := _tried(family, check, request)) is not None), None)


def _tried(family: Family, check: Callable[..., None], *given: Any) -> Breach | None:
    """The breach that a check finds; an error in the family's own code is one, too."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a check names what is not finite
            check(family, *given)
    except Breach as problem:
        return problem
    except Exception as problem:
        frames = traceback.extract_tb(problem.__traceback__)
        ours = [i for i, frame in enumerate(frames) if frame.filename == __file__]
        inner = frames[ours[-1] + 1] if ours[-1] + 1 < len(frames) else frames[-1]
        own = sys.modules[type(family).__module__].__file__
        last = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
        text = " ".join(str(problem).split())[:300]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return _breach(family, f"{inner.name}()", f"no error; given {type(problem).__name__}: {text} ({where})")
    return None


def _breach(family: Family, part: str, expected: str) -> Breach:
    return Breach(f"family '{_name(family)}', {part}: expected {expected}")


def _name(family: Any) -> str:
    return str(getattr(family, "name", type(family).__name__))


def _require(ok: Any, family: Family, part: str, expected: str, given: Any = None) -> None:
    """Raises Breach unless `ok`. given: what the family has in place of what is expected; None: it is plain from `expected`."""
    if not ok:
        shown = "" if given is None else f"; given {' '.join(str(given).split())[:200]}"
        raise _breach(family, part, f"{expected}{shown}")


def _kind(array: Any) -> str:
    """A value as a breach shows it: type and shape of an array, else the value."""
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {array.shape}"
    return f"{type(array).__name__} {array!r}"


def _is_array(array: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    return isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


# Declarations and shapes -------------------------------------------------------------------------------------------------


def declarations(family: Family) -> None:
    """Names and sizes have the types of the contract, and fit each other."""
    arms, skills = family.arms, family.skills
    _require(_is_count(family.version), family, "version", "a whole number from 1", family.version)
    named = isinstance(arms, tuple) and arms and all(isinstance(arm, str) for arm in arms)
    _require(named, family, "arms", "a tuple of at least one name", repr(arms))
    in_words = isinstance(skills, dict) and skills and all(isinstance(x, str) for kv in skills.items() for x in kv)
    _require(in_words, family, "skills", "a dict of skill -> one line of text, with at least one", repr(skills))
    _require(
        family.headline in skills, family, "headline", f"one of skills ({', '.join(skills)})", repr(family.headline)
    )
    _require(isinstance(family.mixture, str), family, "mixture", "the name of a skill", repr(family.mixture))
    for part in ("vocab_size", "seq_len", "n_tasks_max"):
        value = getattr(family, part)
        shown = "a method; @property is missing" if callable(value) else repr(value)
        _require(_is_count(value), family, part, "a whole number from 1", shown)
    lengths = [family.length(arm) for arm in arms]
    _require(all(map(_is_count, lengths)), family, "length(arm)", "a whole number from 1 for each arm", lengths)
    _require(
        max(lengths) == family.seq_len, family, "seq_len", f"the longest arm's length, {max(lengths)}", family.seq_len
    )
    _require(
        family.ability_of in ("nll", "accuracy", "right"),
        family,
        "ability_of",
        "nll, accuracy or right",
        family.ability_of,
    )
    unknown = [arm for arm, place in family.objectives.items() if arm not in arms or place.count(":") != 1]
    _require(not unknown, family, "objectives", "arm -> 'package.module:Class', for arms of this family", unknown)
    if family.numbers is not None:
        _require(family.vocab_size == 1, family, "vocab_size", "1, as tokens are numbers", family.vocab_size)
    for skill in skills:
        chance = family.chance(skill)
        sound = chance is None or (isinstance(chance, float | int) and 0 <= chance <= 1)
        _require(sound, family, "chance(skill)", "None or a probability", f"{chance!r} for {skill}")
    for exponent in (0.0, 1.0):
        why = family.objection(exponent)
        words = why is None or (isinstance(why, str) and exponent)
        _require(
            words, family, "objection(task_exponent)", "None at 0, and None or a reason in words elsewhere", repr(why)
        )
    n = family.n_distinct(family.n_tasks_max)
    _require(_is_count(n), family, "n_distinct(n_tasks)", "a whole number from 1", repr(n))


def batches_are_as_declared(family: Family, request: Request) -> None:
    """A batch has a row for each sequence, of the arm's length, with ids below vocab_size and a target to learn from."""
    batch, part = family.batch(request, 3), "batch(request, step)"
    n, length = request.batch_size, family.length(request.arm)
    _require(isinstance(batch, Batch), family, part, "a Batch(tokens, loss_mask)", _kind(batch))
    _tokens_are_sound(family, part, batch.tokens, n, length)
    shape = f"bool ({n}, {length}), (batch_size, length(arm))"
    mask = batch.loss_mask
    _require(_is_array(mask, (n, length), np.bool_), family, part, f"loss_mask {shape}", _kind(mask))
    _require(mask.any(), family, part, "a loss_mask with a target", "none")
    for name in ("positions", "segments"):
        packed = getattr(batch, name)
        good = packed is None or _is_array(packed, (n, length), np.int64)
        _require(good, family, part, f"{name} None or int64 ({n}, {length})", None if good else _kind(packed))


def _tokens_are_sound(family: Family, part: str, tokens: Any, n: int, length: int) -> None:
    if family.numbers is None:
        shape = f"tokens int64 ({n}, {length + 1}), (sequences, length(arm) + 1)"
        _require(_is_array(tokens, (n, length + 1), np.int64), family, part, shape, _kind(tokens))
        inside = tokens.min() >= 0 and tokens.max() < family.vocab_size
        among = f"{tokens.min()} ... {tokens.max()}"
        _require(inside, family, part, f"token ids from 0 to vocab_size - 1 = {family.vocab_size - 1}", among)
    else:
        wide = (n, length + 1, family.numbers.width)
        known = f"tokens float32 {wide}, (sequences, length(arm) + 1, numbers.width)"
        _require(_is_array(tokens, wide, np.float32), family, part, known, _kind(tokens))
        _require(np.isfinite(tokens).all(), family, part, "finite tokens", "some that are not")


def suites_are_as_declared(family: Family, request: Request) -> None:
    """A list of item sets whose probes have the shapes of their sequences, for each declared skill."""
    suite, part, length = family.suite(request), "suite(request)", family.length(request.arm)
    listed = isinstance(suite, list | tuple) and suite and all(isinstance(items, ItemSet) for items in suite)
    _require(listed, family, part, "a list of ItemSet", _kind(suite))
    probed = []
    for items in suite:
        _require(len(items.tokens), family, part, "at least one sequence in each item set", "none")
        _tokens_are_sound(family, part, items.tokens, len(items.tokens), length)
        written = list(items.written)
        places = written == sorted(set(written)) and all(0 <= j < length for j in written)
        _require(places, family, part, f"written positions ascending in 0 ... {length - 1}", written)
        if items.questions is not None:
            odd = sorted(items.questions.floors.keys() - set(FLOORS))
            _require(not odd, family, f"{part}, questions.floors", f"names among {', '.join(FLOORS)}", odd)
        for probe in items.probes:
            _require(isinstance(probe, Probe), family, part, "Probe in ItemSet.probes", _kind(probe))
            _probe_is_sound(family, f"{part}, probe '{probe.skill}' on {probe.split}", probe, len(items.tokens), length)
            probed.append((probe.skill, probe.split))
    twice = sorted({pair for pair in probed if probed.count(pair) > 1})
    _require(not twice, family, part, "one probe for a skill on a split", twice)
    declared, found = set(family.skills) | {family.mixture}, {skill for skill, _ in probed}
    gaps = [*sorted(declared - found), *(f"{skill} (undeclared)" for skill in sorted(found - declared))]
    _require(
        not gaps, family, part, "a probe for each of skills and for mixture, and no other", f"without {', '.join(gaps)}"
    )
    for skill, split in ((family.mixture, "seen"), (family.headline, "held_out")):
        _require((skill, split) in probed, family, part, f"a probe of '{skill}' on {split}", f"{len(probed)} others")


def _probe_is_sound(family: Family, part: str, probe: Probe, n: int, length: int) -> None:
    _require(probe.split in SPLITS, family, part, "split 'seen' or 'held_out'", repr(probe.split))
    where = f"({n}, {length}), (sequences, length(arm))"
    _require(_is_array(probe.mask, (n, length), np.bool_), family, part, f"mask bool {where}", _kind(probe.mask))
    target, kinds = probe.target, f"target int64 {where}, or floats with a last axis of vocab_size"
    wide = (n, length, family.vocab_size) if family.numbers is None else (n, length)
    whole = _is_array(target, (n, length), np.int64) and family.numbers is None
    floats = isinstance(target, np.ndarray) and target.dtype.kind == "f" and target.shape == wide
    _require(whole or floats, family, part, kinds, _kind(target))
    if whole and probe.mask.any():
        scored = target[probe.mask]
        inside = scored.min() >= 0 and scored.max() < family.vocab_size
        _require(inside, family, part, f"targets from 0 to vocab_size - 1 = {family.vocab_size - 1}", scored.max())
    for name, reference in probe.references.items():
        _require(isinstance(reference, Reference), family, part, f"Reference as references['{name}']", _kind(reference))
        for field, array in zip(reference._fields, reference, strict=True):
            good = isinstance(array, np.ndarray) and array.shape == (n, length)
            _require(good, family, part, f"references['{name}'].{field} of floats {where}", _kind(array))
    wrong = probe.not_finite()
    _require(not wrong, family, part, "finite references where they are scored", wrong)
    for name, array in probe.distributions.items():
        good = isinstance(array, np.ndarray) and array.shape == wide
        _require(good, family, part, f"distributions['{name}'] of floats {wide}", _kind(array))


def suites_cost_what_is_said(family: Family, request: Request) -> None:
    """`suite_size` is the number of sequences, times one reading and one for each written position."""
    size = family.suite_size(request)
    _require(_is_count(size), family, "suite_size(request)", "a whole number from 1", repr(size))
    suite = family.suite(request)
    counted = sum(len(items.tokens) * (1 + len(items.written)) for items in suite)
    if isinstance(family, TextFamily):  # each item is read and answered once, up to its end and not to the row's
        counted = -(-counted * (2 * family.longest + family.n_new) // (family.length(request.arm) + 1))
    _require(size == counted, family, "suite_size(request)", f"{counted}, as suite(request) has", size)


SHAPES = (batches_are_as_declared, suites_are_as_declared, suites_cost_what_is_said)
"""Checks of one arm's request: types and shapes only."""


# What batches and suites depend on ------------------------------------------------------------------------------------


def batches_depend_on_the_step_alone(family: Family, request: Request) -> None:
    """A resumed run gets the same batches. Steps and replicates differ."""
    part = "batch(request, step)"
    first = family.batch(request, 5)
    family.batch(request, 0)
    again = family.batch(request_of(family, request.arm), 5)
    same = all(np.array_equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    _require(
        same,
        family,
        part,
        "the same batch for the same step; draw from stream(name, 'batch', replicate, step)",
        "another",
    )
    others = [family.batch(request_of(family, request.arm, r), s).tokens.tobytes() for r in (0, 1) for s in range(8)]
    _require(len(set(others)) == len(others), family, part, "other batches for other steps and replicates", "the same")


def suites_are_repeatable(family: Family, request: Request) -> None:
    """Every evaluation reads the same sequences."""
    for items, same in zip(family.suite(request), family.suite(request), strict=True):
        equal = np.array_equal(items.tokens, same.tokens)
        _require(equal, family, "suite(request)", "the same sequences at each call; draw from stream(...)", "others")


def references_are_sound(family: Family, request: Request) -> None:
    """At scored positions log losses of tokens are not negative and chances are chances. On the mean, knowing more is no worse.

    The order holds for expected losses. It is checked to four standard errors and 0.01 nats, for predictors that are smoothed.
    """
    for probe in (probe for items in family.suite(request) for probe in items.probes if probe.mask.any()):
        part = f"suite(request), probe '{probe.skill}' on {probe.split}"
        for name, reference in probe.references.items():
            loss, right = reference.nll_nats[probe.mask], reference.correct[probe.mask]
            sound = loss.min() >= -1e-9 or family.numbers is not None  # a density may be above 1
            _require(sound, family, part, f"nll_nats of '{name}' from 0 where it is scored", f"{loss.min():.4g}")
            wrong = right[(right < -1e-9) | (right > 1 + 1e-9)]
            known, worst = f"correct of '{name}' in 0 ... 1 where it is scored", f"{wrong.max(initial=-1):.4g}"
            _require(not len(wrong), family, part, known, worst)
            sure = loss[(right == 0) & (loss < np.log(2) - 1e-6)]  # with such a loss its likeliest token is right
            known = f"nll_nats of '{name}' from ln 2 where its correct is 0"
            _require(not len(sure) or family.numbers is not None, family, part, known, f"{sure.min(initial=1):.4g}")
        if probe.skill != family.mixture:
            continue  # the skill may be the very items at which the memoriser errs
        ranks = ("oracle", "memorizer", "generalizer", "uniform")[0 if probe.split == "seen" else 2 :]
        means = {name: probe.references[name].nll_nats[probe.mask].mean() for name in ranks if name in probe.references}
        for better, worse in pairwise(means):
            if worse == "uniform" and getattr(family, "answers", "") == "noise":
                continue
            most = means[worse] + 4 * (probe.gap_error(worse, better) or 0) + 0.01
            known = f"a mean nll_nats of '{better}' no worse than that of '{worse}', {means[worse]:.4g}"
            _require(means[better] <= most, family, part, known, f"{means[better]:.4g}")


# Tasks ----------------------------------------------------------------------------------------------------------------


def contents_are_as_declared(family: Family) -> None:
    """Lists of bytes: of as many training tasks as there are, and of at least one held-out task."""
    request, part = request_of(family, family.arms[0]), "contents(request, split, n_first)"
    for split, least in (("seen", min(5, request.n_tasks)), ("held_out", 1)):
        given = family.contents(request, split, 5)  # type: ignore[arg-type]
        good = isinstance(given, list) and len(given) >= least and all(isinstance(one, bytes) for one in given)
        _require(good, family, part, f"a list of bytes for the first 5 tasks of '{split}'", _kind(given)[:80])


def contents_are_nested(family: Family) -> None:
    """Within a replicate, the training tasks of a smaller trial are the first ones of a larger trial."""
    most, part = min(family.n_tasks_max, 12), "contents(request, 'seen', n_first)"
    few = (most + 1) // 2
    small, large = (request_of(family, family.arms[0], n_tasks=n) for n in (few, most))
    first = family.contents(small, "seen", few)
    for request, n in ((large, few), (large, most), (small, most)):
        given = family.contents(request, "seen", n)
        same = given[: len(first)] == first
        words = f"the first {few} tasks of n_tasks={few} also with n_tasks={request.n_tasks} and n_first={n}"
        _require(same, family, part, words, "others")


def batches_hold_training_tasks(family: Family) -> None:
    """The tasks that `batch` reads from `tasks(ids)` are training tasks, by their contents. See `rows_of_batches`."""
    for arm in family.arms:
        request = request_of(family, arm)
        rows = rows_of_batches(family, request)
        trained = set(family.contents(request, "seen", family.n_distinct(request.n_tasks)))
        wrong, known = rows - trained, f"tasks of contents(request, 'seen', n_first) alone, of arm {arm}"
        held_out = len(wrong & set(family.contents(request, "held_out", 5000)))
        given = f"{len(wrong)} others among {len(rows)} tasks, {held_out} of them held out"
        _require(not wrong, family, "batch(request, step)", known, given)


def rows_of_batches(family: Any, request: Request) -> set[bytes]:
    """Rows that eight batches read from the family's method `tasks(ids)`, as bytes. Empty if it has none or they read none.

    Rows of another length than the contents are left out, as are those of a table: ids 0, 1, 2 ... beyond the batch size.
    """
    kind: Any = type(family)
    rows: set[bytes] = set()
    if not callable(getattr(kind, "tasks", None)):
        return set()

    class Watched(kind):
        def tasks(self, *given: Any) -> Any:
            found = super().tasks(*given)
            table = len(found) > request.batch_size and np.array_equal(given[-1], np.arange(len(found)))
            rows.update(() if table else (row.tobytes() for row in found))
            return found

    watched = Watched.model_construct(**dict(family))
    for step in range(8):
        watched.batch(request, step)
    length = len(family.contents(request, "seen", 1)[0])
    return {row for row in rows if len(row) == length}


def held_out_is_not_trained(family: Family) -> None:
    """Counted over contents, not ids: of thousands of training tasks none is held out, and none is there twice."""
    n, part = min(family.n_tasks_max, 5000), "contents(request, split, n_first)"
    request = request_of(family, family.arms[0], n_tasks=n)
    trained, held_out = set(family.contents(request, "seen", 5000)), set(family.contents(request, "held_out", 500))
    both = len(trained & held_out)
    _require(not both, family, part, "no held-out task among the training tasks", f"{both} of {len(held_out)}")
    distinct = min(5000, family.n_distinct(n))
    _require(len(trained) == distinct, family, part, f"{distinct} different training tasks", len(trained))


def tasks_are_as_declared(family: ExactFamily) -> None:
    """A row for each id, and a universe that holds training and held-out ids."""
    size = family.universe_size
    _require(_is_count(size) and size <= 2**62, family, "universe_size", "a whole number from 1 to 2^62", repr(size))
    held = family.n_held_out
    _require(_is_count(held) and held < size, family, "n_held_out", f"a whole number from 1 to {size - 1}", repr(held))
    ids = np.array([0, size - 1, size // 2])
    rows = family.tasks(ids)
    good = isinstance(rows, np.ndarray) and rows.shape[:1] == (3,)
    _require(good, family, "tasks(ids)", "an array with a row for each id: (3,) -> (3, ...)", _kind(rows))


def tasks_are_nested(family: ExactFamily) -> None:
    """Within a replicate the first tasks of a longer list are the shorter list. Between replicates the lists differ."""
    n, part = family.n_train_ids, "train_ids(replicate, indices)"
    whole = family.train_ids(0, np.arange(n if n < 4000 else 4000))
    few = min(7, len(whole))
    nested = np.array_equal(family.train_ids(0, np.arange(few)), whole[:few])
    _require(nested, family, part, "the same first ids in a longer list", "others")
    inside = len(set(whole.tolist())) == len(whole) and (whole < n).all() and (whole >= 0).all()
    _require(inside, family, part, f"different ids below n_train_ids = {n}", "others")
    differ = n < 4 or not np.array_equal(family.train_ids(1, np.arange(len(whole))), whole)
    _require(differ, family, part, "another order in another replicate", "the same")
    held_out, part = family.held_out_ids(50), "held_out_ids(n_ids)"
    _require(
        np.array_equal(held_out[:7], family.held_out_ids(7)),
        family,
        part,
        "the same first ids in a longer list",
        "others",
    )
    outside = (held_out >= n).all() and (held_out < family.universe_size).all()
    _require(outside, family, part, f"ids from n_train_ids = {n} to universe_size - 1", "others")


def tasks_depend_on_their_id_alone(family: ExactFamily) -> None:
    """Also across the whole universe; and neighbouring ids share no more than distant ones."""
    size, part = family.universe_size, "tasks(ids)"
    ids = np.array([size - 1, 0, size // 3, size - 1, size // 2])
    for task, row in zip(ids, family.tasks(ids), strict=True):
        _require(
            np.array_equal(family.tasks(np.array([task]))[0], row),
            family,
            part,
            "a row that depends on its id alone",
            "another",
        )
    n = min(size, 20_000)
    if n < 1000:
        return
    rows = family.tasks(np.arange(n))
    near, far = ((rows[1:] == np.roll(rows[1:], by, axis=0)).mean() for by in (1, n // 2))
    alike = abs(near - far) < 6 * np.sqrt(2 * max(far, 1 / n) / rows.size)
    hint = "as much in common between neighbouring ids as between distant ones; shuffle the ids with keyed_permutation"
    _require(alike, family, part, hint, f"{near:.3g} against {far:.3g}")


def the_universe_holds_each_task_once(family: ExactFamily) -> None:
    """Counted by content: a small universe whole; of a large one 20,000 training tasks of two replicates, and held-out ones."""
    size, n = family.universe_size, 20_000
    if size <= n:
        ids = np.arange(size)
    else:
        trained = [family.train_ids(r, np.arange(min(n, family.n_train_ids))) for r in (0, 1)]
        ids = np.unique(np.concatenate([*trained, family.held_out_ids(n)]))
    rows = family.tasks(ids)
    found = len(np.unique(rows.reshape(len(rows), -1), axis=0))
    _require(found == len(ids), family, "tasks(ids)", f"{len(ids)} different tasks for as many ids", found)


def held_out_sequences_are_the_same_for_all_trials(family: Family) -> None:
    """The same for every number of tasks and replicate that train the same clusters. Seen sequences differ."""
    most, part = family.n_tasks_max, "suite(request)"
    if most < 2:
        return
    small, *larger = (request_of(family, family.arms[0], r, n) for r, n in ((0, most // 2), (1, most), (0, most)))
    clusters = lambda request: {cluster for _, cluster in family.trained_names(request) or ()}  # noqa: E731
    large = next((request for request in larger if clusters(request) == clusters(small)), small)
    for one, other in zip(family.suite(small), family.suite(large), strict=True):
        splits = {probe.split for probe in one.probes}
        _require(len(splits) == 1, family, part, "probes of one split in an item set", sorted(splits))
        same = np.array_equal(one.tokens, other.tokens)
        if splits <= {"held_out", "held_out_clusters"}:
            _require(same, family, part, "the same held-out sequences for every n_tasks and replicate", "others")
        elif large.replicate:
            known = "seen sequences of the replicate's own tasks"
            _require(not same, family, part, known, "the same in two replicates")


# The command ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """The command: prints a line for each breach, or that there is none. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "Usage: python -m trainers.tasks.conformance NAME, or MODULE:CLASS, and then any parameters as PARAMETER=VALUE."
        )
        return 0 if arguments else 2
    try:
        kind = _class_of(arguments[0])
        family = family_from({"name": kind.model_fields["name"].default} | dict(map(_parameter, arguments[1:])))
    except ValidationError as problem:
        wrong = problem.errors()[0]
        place, allowed = (
            ".".join(map(str, wrong["loc"])),
            ", ".join(each for each in kind.model_fields if each != "name"),
        )
        why = "unknown" if wrong["type"] == "extra_forbidden" else wrong["msg"].removeprefix("Value error, ")
        where = f"parameter '{place}': " if place else ""
        print(f"{arguments[0]}: {where}{why}; parameters are {allowed or 'none'}", file=sys.stderr)
        return 2
    except Exception as problem:
        text = " ".join(str(problem).split())[:800] or type(problem).__name__
        print(
            text if isinstance(problem, ValueError) else f"{arguments[0]}: {type(problem).__name__}: {text}",
            file=sys.stderr,
        )
        return 2
    found = [str(breach) for breach in breaches(family)]
    if found:
        print("\n".join(found), file=sys.stderr)
        return 2
    counts = ((len(family.arms), "arm"), (len(family.skills), "skill"), (family.n_tasks_max, "task"))
    arms, skills, tasks = (f"{n:,} {what}{'' if n == 1 else 's'}" for n, what in counts)
    print(f"family '{_name(family)}' conforms: {arms}, {skills}, up to {tasks}")
    with np.errstate(all="ignore"):
        print("".join(f"Note: {note}\n" for note in notes(family)), end="")
    known = {point.value.partition(":")[0] for point in entry_points(group="emergence.families")}
    if kind.__module__ not in known and not kind.__module__.startswith("trainers."):
        print(f"Studies do not know it yet: name {kind.__module__} as an entry point of the group emergence.families")
    return 0


def notes(family: Family) -> Iterator[str]:
    """Notes that are no breaches: measures without their references, and a batch whose tasks cannot be read."""
    request = request_of(family, family.arms[0])
    probes = {(probe.skill, probe.split): probe for items in family.suite(request) for probe in items.probes}
    needed: dict[str, tuple[str, str, tuple[str, ...]]]
    needed = {"ability": (family.headline, "held_out", ("uniform", "generalizer"))}
    if family.ability_of == "right":
        needed = {}
    elif family.ability_of == "accuracy":
        needed["ability"] = (family.headline, "held_out", ("memorizer",))
    else:
        needed["memory"] = (family.mixture, "seen", ("generalizer", "memorizer"))
    for measure, (skill, split, names) in needed.items():
        if lacks := [name for name in names if name not in probes[skill, split].references]:
            yield f"{measure} is undefined: probe '{skill}' on {split} has no reference {' and no '.join(lacks)}."
    if not rows_of_batches(family, request):
        yield "batch is trusted to hold training tasks: it reads none from a method tasks(ids)."


def _class_of(given: str) -> type[Family]:
    """The class for `name` or `module:Class`. Raises FamilyError in one line if there is none, or it lacks a part."""
    module, colon, name = given.partition(":")
    if not colon:
        return family_named(given)
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as problem:
        text = " ".join(str(problem).split())[:800]
        raise FamilyError(
            f"{given}: {text if isinstance(problem, FamilyError) else f'{type(problem).__name__}: {text}'}"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Family)):
        own = [k for k, v in vars(sys.modules[module]).items() if isinstance(v, type) and v in FAMILIES.values()]
        what = f"'{name}' in module {module} is no Family" if kind is not None else f"module {module} has no '{name}'"
        raise FamilyError(f"{given}: {what}; its families: {', '.join(own) or 'none'}")
    if lacks := lacking(kind):
        raise FamilyError(f"{given}: {lacks}")
    if kind not in FAMILIES.values():
        raise FamilyError(f"{given}: expected the decorator @register on the class")
    return kind


def _parameter(given: str) -> tuple[str, Any]:
    name, _, value = given.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.path.insert(0, "")
    sys.exit(main(sys.argv[1:]))
