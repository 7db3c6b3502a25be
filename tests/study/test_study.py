"""Study files: what they mean, and every refusal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.study import reader, refusals, yaml_file
from orchestrator.study.reader import load
from orchestrator.study.schema import OtherBudgets, Study, StudyError, differences
from trainers import budget
from trainers.records import MAX_DIGITS, Limit, limit_words
from trainers.shapes import PRESETS, Dial
from trainers.spec import Reward
from trainers.tasks import FAMILIES

GOOD = """\
study: good
version: 1
question: Is this well formed?
family:
  name: cipher
  n_symbols: 16
axes:
  arm: [answer]
  n_tasks: [4, 1e12]
  compute_flops: [1e11, 8e11]
  replicates: 2
model:
  d_model: 64
evaluation:
  points_per_decade: 1
"""


def written(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text)
    return str(path)


def test_a_good_file_becomes_the_full_crossing_of_its_axes(tmp_path: Path) -> None:
    study = load(written(tmp_path, GOOD))
    ids = [trial.id for trial in study.trials()]
    assert sorted(ids) == sorted(
        f"answer/n{n}/c{c}/r{r}" for n in ("4", "1e12") for c in ("1e11", "8e11") for r in range(2)
    )
    assert study.axes.n_tasks == (4, 10**12) and isinstance(study.axes.n_tasks[1], int)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_study_that_states_its_widths(name: str, tmp_path: Path) -> None:
    """Records and fingerprints know no presets: a study may be written either way, and gone on with in the other."""
    text = GOOD.replace("[1e11, 8e11]", "[1e16, 2e16]")  # enough steps of the largest, not too many of the smallest
    model = PRESETS[name]
    widths = (
        f"n_layers: {model.n_layers}\n  d_model: {model.d_model}\n  n_heads: {model.n_heads}\n  d_mlp: {model.d_mlp}"
    )
    short = load(written(tmp_path, text.replace("d_model: 64", f"preset: {name}\n  conv_kernel: 4\n  norm: layer")))
    long = load(written(tmp_path, text.replace("d_model: 64", f"{widths}\n  conv_kernel: 4\n  norm: layer")))
    assert short == long and short.science() == long.science()
    assert [t.fingerprint() for t in short.trials()] == [t.fingerprint() for t in long.trials()]
    assert Study.from_record(short.model_dump(mode="json")) == short
    assert name not in str(short.model_dump(mode="json")["model"])


def test_a_study_survives_the_journal(tmp_path: Path) -> None:
    study = load(written(tmp_path, GOOD))
    again = Study.from_record(study.model_dump(mode="json"))
    assert again == study and [t.fingerprint() for t in again.trials()] == [t.fingerprint() for t in study.trials()]


# (what is changed, the line that must be named, what the message must say)
REFUSALS = [
    ("a misspelt key", ("n_tasks:", "n_task:"), 9, ["unknown key 'n_task'", "did you mean 'n_tasks'", "compute_flops"]),
    ("a misspelt section", ("model:", "modle:"), 12, ["unknown key 'modle'", "did you mean 'model'"]),
    ("a misspelt family key", ("n_symbols", "n_symbol"), 6, ["unknown key 'n_symbol'", "did you mean 'n_symbols'"]),
    ("a duplicate key", ("version: 1", "version: 1\nversion: 2"), 3, ["'version' is given twice"]),
    ("a quoted number", ("d_model: 64", 'd_model: "64"'), 13, ["model.d_model", "whole number", "quotes"]),
    ("an unknown preset", ("d_model: 64", "preset: 125m"), 13, ["model.preset", "'125m'; did you mean '124m'?", "0.1m, "]),
    ("a preset and a depth", ("d_model: 64", "preset: 124m\n  depth: 6"), 12, ["'124m'", "depth 6", "keep one"]),
    ("half a block", ("d_model: 64", "depth: 2.5"), 13, ["model.depth", "whole number", "2.5"]),
    ("a depth for an axis", ("n_tasks:", "depth: [2, 4]\n  n_tasks:"), 9, ["'depth' is a key of model", "variant: {depth_2: "]),
    ("a number with a unit", ("8e11", "8e11 FLOPs"), 10, ["axes.compute_flops[1]", "without unit"]),
    ("a fraction of a task", ("[4,", "[4.5,"), 9, ["axes.n_tasks[0]", "whole number", "4.5"]),
    ("a negative count", ("[4,", "[-4,"), 9, ["axes.n_tasks[0]", "greater than 0", "-4"]),
    ("a value where a list is needed", ("[answer]", "answer"), 8, ["axes.arm", "a list is needed"]),
    ("an empty list", ("[4, 1e12]", "[]"), 9, ["axes.n_tasks", "at least one value"]),
    ("a value given twice", ("[4,", "[4, 4,"), 9, ["axes.n_tasks[1]", "given twice"]),
    ("a budget below 50 steps", ("[1e11,", "[600,"), 10, ["600 FLOPs", "at least 50 steps"]),
    ("two budgets of one length", ("[1e11,", "[1e11, 1.0001e11,"), 10, ["both 99 steps"]),
    ("more tasks than there are", ("1e12]", "1.2e13]"), 9, ["12000000000000 tasks", "10,461,394,944,000"]),
    ("an unknown family", ("cipher", "cypher"), 5, ["unknown family 'cypher'", "did you mean 'cipher'", "urns"]),
    ("an unknown arm", ("[answer]", "[anser]"), 8, ["has no arm 'anser'", "did you mean 'answer'", "next_token"]),
    ("an unknown skill", ("model:", "skills: [recal]\nmodel:"), 12, ["no skill 'recal'", "did you mean 'recall'"]),
    ("an evaluation that costs too much", ("decade: 1", "decade: 200"), 14, ["at most 10%", "points_per_decade"]),
    ("a missing key", ("version: 1\n", ""), 1, ["key 'version' is required"]),
    ("widths that do not fit", ("d_model: 64", "d_model: 66"), 12, ["d_model 66", "n_heads 4"]),
    ("a family without a name", ("name: cipher", "nam: cipher"), 4, ["'name'", "cipher, "]),
    ("a billion replicates", ("replicates: 2", "replicates: 1e9"), 11, ["at most 10000", "1000000000"]),
    ("an endless name", ("study: good", "study: " + "a" * 300), 1, ["study", "80"]),
    ("a long slip of the exponent", ("8e11]", "1.7e308]"), 10, ["axes.compute_flops[1]: at most 1e30", "1.7e308"]),
    ("a warm-up that never ends", ("model:", "training: {warmup_steps: 99999}\nmodel:"), 12, ["99999 steps", "largest"]),
    ("an arm to come", ("[answer]", "[reward]"), 8, ["has no arm 'reward'", "task_id"]),
    ("a setting for an axis", ("n_tasks:", "d_model: [64, 128]\n  n_tasks:"), 9, ["'d_model' is a key of model", "variant: {d_model_64: {model: {d_model: 64}}, d_model_128: {model: {d_model: 128}}}"]),
    ("settings of another arm", ("model:", "reward: {group_size: 4}\nmodel:"), 12, ["reward: only arm 'reward' has these settings"]),
    ("no such algorithm", ("model:", "reward: {algorithm: gpro}\nmodel:"), 12, ["reward.algorithm: one of", "leave_one_out"]),
    ("a rate for no arm", ("n_tasks:", "training_of_arm: {anser: {learning_rate: 1e-3}}\n  n_tasks:"), 9, ["axes.training_of_arm.anser: no arm of this study", "did you mean 'answer'"]),
    ("no key of training", ("n_tasks:", "training_of_arm: {answer: {learning_rat: 1e-3}}\n  n_tasks:"), 9, ["unknown key 'learning_rat'", "did you mean 'learning_rate'"]),
    ("a key of axes elsewhere", ("model:", "training_of_arm: {}\nmodel:"), 12, ["'training_of_arm' is a key of axes"]),
    ("a variant that is a list", ("n_tasks:", "variant: {a: [1]}\n  n_tasks:"), 9, ["axes.variant.a", "a mapping of keys"]),
    ("two variants that are one", ("n_tasks:", "variant: {a: {}, b: {model: {n_layers: 2}}}\n  n_tasks:"), 9, ["axes.variant.b: ", "'a'"]),
    ("no YAML", ("axes:", "axes: ["), 9, ["not YAML"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line", "says"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_bad_file_is_refused_with_place_and_reason(
    tmp_path: Path, change: tuple[str, str], line: int, says: list[str]
) -> None:
    assert change[0] in GOOD
    path = written(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(StudyError) as refusal:
        load(path)
    message = str(refusal.value)
    lines = message.splitlines()
    assert any(said.startswith(f"{path}:{line}: ") for said in lines), message
    assert all(word in message for word in says), message
    assert len(lines) == 1, message


CLAIM_AXES = (  # ten evaluations of a training run, five numbers of tasks, four budgets, two arms
    GOOD.replace("[4, 1e12]", "[4, 16, 64, 256, 1e4]")
    .replace("[answer]", "[answer, next_token]")
    .replace("[1e11, 8e11]", "[1e11, 2e11, 4e11, 8e11]")
    .replace("decade: 1", "decade: 4\n  n_sequences: 16")
)
CLAIMS = [
    # Nothing could refute it.
    ("no range", "{what: k_ability}", "give lo, hi or both"),
    ("all numbers of tasks", "{what: k_ability, lo: 2, hi: 2e4}", "cannot turn out false: the numbers of tasks of the"),
    ("the first number of tasks", "{what: k_ability, lo: 4}", "give lo above 4, or hi below 10,000"),
    ("beyond a memoriser", "{what: k_memory, hi: 300}", "give lo above 4, or hi below 256"),
    ("all evaluations", "{what: compute_to_skill, n_tasks: 4, hi: 8.1e11}", "the evaluations of the study end at 1.01e10 and 8e11 FLOPs"),
    ("all budgets", "{what: crossover, against: next_token, n_tasks: 4, hi: 8e11}", "hi below 8e11"),
    ("any drift", "{what: drift_ability, hi: 9}", "a drift of \u22126 to 6 doublings of tasks per doubling of compute"),
    ("any accuracy", "{what: accuracy, n_tasks: 4, lo: 0, hi: 1}", "give lo above 0, or hi below 1"),
    ("any ability", "{what: ability, n_tasks: 4, lo: -100}", "give lo above \u2212100, or hi below 1"),
    ("any change", "{what: change_accuracy, n_tasks: 4, from_flops: 1e11, lo: -1}", "give lo above \u22121, or hi below 1"),
    # Nothing could confirm it.
    ("a change from nowhere", "{what: change_accuracy, n_tasks: 4, hi: 0}", "is between two budgets; give from_flops, below 8e11"),
    ("a change backwards", "{what: change_ability, n_tasks: 4, from_flops: 8e11, compute_flops: 2e11, hi: 0}", "give from_flops, below 2e11"),
    ("too much ability", "{what: ability, n_tasks: 4, lo: 7}", "cannot turn out true: 'ability' lies between \u2212100 and 1"),
    ("more tasks than there are", "{what: k_ability, lo: 2e4}", "end at 4 and 10,000; give a range that reaches into it"),
    ("fewer tasks than there are", "{what: k_ability, hi: 2}", "end at 4 and 10,000; give a range that reaches into it"),
    ("within one step of tasks", "{what: k_ability, lo: 20, hi: 60}", "no two numbers of tasks of the study are in this range; widen it"),
    ("before any overtaking", "{what: crossover, against: next_token, n_tasks: 4, hi: 1e11}", "give a hi of at least 2e11"),
    ("too steep a drift", "{what: drift_ability, lo: 9}", "give a range that reaches into it"),
    ("too fine a drift", "{what: drift_memory, lo: 0, hi: 0.1}", "a drift to 1.3 at best"),
    ("too few numbers of tasks", "{what: emergence, compute_flops: 1e11, verdict: break}", "8 numbers of tasks, and the study has 5"),
    ("a quantity that is gone", "{what: memory, n_tasks: 4, hi: 0}", "give k_memory"),
    ("the wrong way round", "{what: k_ability, lo: 64, hi: 16}", "lo 64 < hi 16 does not hold"),
    # A key that is missing, ignored or wrong.
    ("no number of tasks", "{what: ability, lo: 0.5}", "give n_tasks"),
    ("one too many", "{what: k_ability, n_tasks: 4, lo: 16}", "does not take 'n_tasks', which would be ignored; leave it out (it takes arm, skill, compute_flops)"),
    ("a skill of memory", "{what: k_memory, skill: recall, lo: 16}", "does not take 'skill'"),
    ("a budget of a drift", "{what: drift_ability, compute_flops: 1e11, hi: 0}", "does not take 'compute_flops'"),
    ("an arm too many", "{what: k_memory, against: next_token, lo: 16}", "does not take 'against'"),
    ("a number of tasks off the axes", "{what: ability, n_tasks: 5, lo: 0.5}", "5 is not in the study; it has 4, 16, 64, 256, 10,000"),
    ("a budget off the axes", "{what: k_ability, compute_flops: 3e11, lo: 16}", "3e11 is not in the study; it has 1e11, 2e11"),
    ("a skill that is not there", "{what: k_ability, skill: recal, lo: 16}", "; did you mean 'recall'?"),
    ("an arm that is not there", "{what: k_ability, arm: reward, lo: 16}", "reward is not in the study; it has answer, next_token"),
    ("an arm against itself", "{what: crossover, n_tasks: 4, against: answer, lo: 2e11}", "give the other as 'against'"),
    ("a range for a verdict", "{what: emergence, n_tasks: 4, lo: 1}", "give verdict: break or smooth"),
    ("a verdict that is gone", "{what: emergence, n_tasks: 4, verdict: metric artefact}", "give break or smooth"),
    ("a verdict for a range", "{what: k_ability, verdict: break}", "claims a range"),
    ("both axes fixed", "{what: emergence, n_tasks: 4, compute_flops: 1e11, verdict: break}", "the one that stays fixed"),
    ("a quantity that is not there", "{what: k_abilty, lo: 16}", "one of 'k_ability', 'k_memory'"),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "says"), [c[1:] for c in CLAIMS], ids=[c[0] for c in CLAIMS])
def test_a_primary_claim_must_be_one_that_this_study_can_decide(tmp_path: Path, claim: str, says: str) -> None:
    with pytest.raises(StudyError, match=re.escape(says)) as refusal:
        load(written(tmp_path, CLAIM_AXES + f"primary: {claim}\n"))
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'x.yaml'}:17: primary") and len(message.splitlines()) == 1, message


@pytest.mark.parametrize(
    ("change", "claim", "says"),
    [
        (
            "[1e11, 2e11, 4e11, 8e11]",
            "{what: drift_ability, hi: 0}",
            "needs 2 budgets and 3 numbers of tasks or more; 1 and 5",
        ),
        ("[4, 16, 64, 256, 1e4]", "{what: drift_ability, hi: 0}", "3 numbers of tasks or more; 4 and 2"),
        ("[4, 16, 64, 256, 1e4]", "{what: k_memory, hi: 64}", "between two numbers of tasks, and 1 can"),
        ("[answer, next_token]", "{what: crossover, n_tasks: 4, hi: 2e11}", "add an arm to axes.arm"),
        ("decade: 4", "{what: emergence, n_tasks: 4, verdict: break}", "8 evaluations, and a training run has 3"),
    ],
)
def test_a_claim_that_the_axes_are_too_short_for_is_refused(tmp_path: Path, change: str, claim: str, says: str) -> None:
    short = {
        "[1e11, 2e11, 4e11, 8e11]": "[8e11]",
        "[4, 16, 64, 256, 1e4]": "[4, 1e4]",
        "[answer, next_token]": "[answer]",
    }
    text = CLAIM_AXES.replace(change, short.get(change, "decade: 1"))
    with pytest.raises(StudyError, match=re.escape(says)):
        load(written(tmp_path, text + f"primary: {claim}\n"))


def test_a_claim_may_be_any_that_the_study_can_decide(tmp_path: Path) -> None:
    for claim in (
        "{what: k_memory, compute_flops: 1e11, hi: 64}",
        "{what: k_ability, lo: 16, hi: 64}",
        "{what: k_ability, hi: 4}",
        "{what: k_ability, lo: 1e4}",
        "{what: compute_to_skill, n_tasks: 16, lo: 1e11}",
        "{what: crossover, arm: next_token, against: answer, n_tasks: 16, lo: 8e11}",
        "{what: drift_memory, hi: 0}",
        "{what: accuracy, n_tasks: 1e4, skill: recall, lo: 0.95}",
        "{what: emergence, n_tasks: 4, verdict: smooth}",
    ):
        assert load(written(tmp_path, CLAIM_AXES + f"primary: {claim}\n")).primary is not None, claim


def test_the_claims_that_the_readme_of_sweeps_shows_are_ones_its_study_could_decide(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "sweeps" / "README.md").read_text()
    (example,) = re.findall(r"```yaml\n(study:.*?)```", text, flags=re.DOTALL)
    wide = example.replace("[answer]", "[answer, next_token]").replace("[4, 16,", "[4, 8, 16, 32, 128,")
    shown = re.findall(r"^primary: .*$", text, flags=re.MULTILINE)
    assert len(shown) >= 7 and wide.count("128") == 1
    for line in shown:
        assert load(written(tmp_path, wide + line + "\n")).primary is not None, line


def test_several_problems_are_told_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("version: 1", "version: one").replace("d_model: 64", "d_modle: 64")
    with pytest.raises(StudyError) as refusal:
        load(written(tmp_path, text))
    numbers = [int(re.match(r".*?:(\d+): ", line)[1]) for line in str(refusal.value).splitlines()]  # type: ignore[index]
    assert numbers == [2, 13]


def test_a_study_that_does_not_exist_is_refused_with_the_ones_that_ship() -> None:
    with pytest.raises(StudyError, match=r"quikstart: no such study file; did you mean .*'quickstart'\?.*control_null"):
        load("quikstart")


def test_a_missing_file_is_refused_with_where_it_was_looked_for_and_what_comes_near(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    for given in (path.replace("x.yaml", "x.yml"), path.removesuffix(".yaml"), str(tmp_path / "xx.yaml")):
        with pytest.raises(StudyError) as refusal:
            load(given)
        assert str(tmp_path) in str(refusal.value) and f"'{path}'" in str(refusal.value), refusal.value
    with pytest.raises(StudyError, match=f"Looked in {tmp_path / 'no'}, which is no folder"):
        load(str(tmp_path / "no" / "x.yaml"))


def test_a_name_that_can_be_no_file_is_refused_in_one_line() -> None:
    """Fails with `is_file` unguarded: the system's own error for a name that is too long."""
    for name, said in (("x" * 5000, "File name too long"), ("a\nb", "a b: no such study file")):
        with pytest.raises(StudyError, match=said) as refusal:
            load(name)
        assert len(str(refusal.value).splitlines()) == 1


def test_an_expected_value_must_lie_in_its_range_and_its_cell_in_the_study(tmp_path: Path) -> None:
    entry = "expected:\n  - {what: accuracy, cell: {n_tasks: 5}, value: 1, lo: 0, hi: 2, source: s, evidence: C}\n"
    with pytest.raises(StudyError, match=r"expected\[0\].cell.n_tasks: 5 is not in the study; it has 4, 1e12"):
        load(written(tmp_path, GOOD + entry))
    with pytest.raises(StudyError, match=r"expected\[0\].hi: a finite number is needed; given inf"):
        load(written(tmp_path, GOOD + entry.replace("hi: 2", "hi: .inf").replace("n_tasks: 5", "n_tasks: 4")))
    with pytest.raises(StudyError, match="lo 0 <= value 3 <= hi 2 does not hold"):
        load(written(tmp_path, GOOD + entry.replace("value: 1", "value: 3").replace("n_tasks: 5", "n_tasks: 4")))


def test_every_study_that_ships_loads_and_says_what_it_asks() -> None:
    assert {"quickstart", "urns", "control_null"} <= reader.shipped().keys()
    for name, path in reader.shipped().items():
        if "made_by:" in path.read_text():
            continue  # it needs a table: test_instructions.py
        study = load(name)
        assert study.study == name and study.question and study.expectation


def test_the_control_is_the_quickstart_on_noise_and_nothing_else() -> None:
    quick, null = load("quickstart").model_dump(mode="json"), load("control_null").model_dump(mode="json")
    quick, null = (record | {"primary": None} for record in (quick, null))  # each claims what it expects
    changed = {line.split(":")[0] for line in differences(quick, null)}
    assert changed == {"study", "question", "expectation", "family.answers"}


def test_differences_name_each_field_with_both_values() -> None:
    found = differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}})
    assert found == ["a.c: 2 -> 4", "d: 3 -> not stated"]


@pytest.mark.parametrize("words", [["--help"], ["plan", "urns"], ["plan", "quickstart"]])
def test_loading_planning_and_help_import_no_torch_ray_or_mlflow(words: list[str], tmp_path: Path) -> None:
    """Nor scipy, but where a plan tries what could settle a declared claim."""
    heavy = ["torch", "ray", "mlflow", "deepspeed"] + ["scipy"] * ("quickstart" not in words)
    script = (
        "import sys; from orchestrator import cli\n"
        f"sys.argv = ['emergence', *{words}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print('loaded:', [m for m in {heavy} if m in sys.modules])"
    )
    env = os.environ | {"EMERGENCE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert "loaded: []" in done.stdout, done.stdout + done.stderr


def test_the_readme_of_sweeps_explains_every_key_with_its_default_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "sweeps" / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z_0-9.]+)` \| (.*?) \|", text, flags=re.MULTILINE)
    in_tables_of_keys = {key: default.strip() for key, default in rows if "(" not in default and "`" not in default}
    in_tables_of_keys = {k: v for k, v in in_tables_of_keys.items() if k not in {*reader.shipped(), "cipher"}}
    assert in_tables_of_keys == all_keys()


def of_every_key(told: Callable[[Any], Any]) -> dict[str, Any]:
    """What is told of the field of every key that a study may have, dotted."""

    def walk(model: Any, prefix: str) -> dict[str, Any]:
        found = {}
        for name, field in model.model_fields.items():
            if name in getattr(model, "resolved_fields", ()):
                continue
            found[prefix + name] = told(field)
            inner = reader._model_at(model, (name,))
            if inner is not None and name != "family":
                found |= walk(inner, f"{prefix}{name}.")
        return found

    keys = walk(Study, "") | walk(Dial, "model.") | walk(OtherBudgets, "axes.")
    for name, family in FAMILIES.items():
        keys |= walk(family, f"family.{name}.")
    return keys


def all_keys() -> dict[str, str]:
    """Every key with its default as the README writes it ("required", "" for none)."""

    def default(field: Any) -> str:
        if field.is_required():
            return "required"
        plain = isinstance(field.default, int | float | str)
        if isinstance(field.default, bool):
            return str(field.default).lower()
        return "" if not plain else field.default if isinstance(field.default, str) else f"{field.default:g}"

    keys = {key: words for key, words in of_every_key(default).items() if not re.fullmatch(r"family\.\w+\.name", key)}
    return keys | {"family.name": "required"}


def test_the_readme_of_sweeps_states_every_limit_and_no_other() -> None:
    """Fails with a limit of the schema changed, or a row's."""
    text = (Path(__file__).parents[2] / "sweeps" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_0-9.]+)` \| .*? \| (.*) \|$", text, flags=re.MULTILINE))
    limits = all_limits()
    assert len(limits) > 40
    for key, words in limits.items():
        assert all(re.search(rf"\b{re.escape(word)}\b", rows[key]) for word in words), (key, words)
    # With a tail: 2^62 is no limit of a field.
    stated = {key for key, row in rows.items() if re.search(r"[Aa]t most \d[\d,.e]*(?![\d,.e^])", row)}
    assert stated <= {*limits, "study"}  # of which the record itself keeps the length
    for number in (yaml_file.MAX_BYTES, yaml_file.MAX_VALUES, refusals.MAX_TRIALS):
        assert f"{number:,}" in text
    for number in (yaml_file.MAX_DEPTH, MAX_DIGITS, reader.MAX_PROBLEMS):
        assert re.search(rf"\b{number}\b", text)


def all_limits() -> dict[str, list[str]]:
    """Every key that has limits, with them as the README writes them."""

    def limits(field: Any) -> list[str]:
        found = []
        for part in field.metadata:
            of_field = (part.most, part.least, part.items) if isinstance(part, Limit) else (getattr(part, "le", None),)
            found += [limit_words(n) for n in of_field if n is not None and abs(n) != float("inf")]
        return found

    return {key: words for key, words in of_every_key(limits).items() if words}


def test_an_arm_may_have_a_rate_of_its_own_and_a_variant_goes_before_it(tmp_path: Path) -> None:
    """The others keep the study's, and their trials are the same with and without it."""
    plain = GOOD.replace("[answer]", "[answer, next_token]")
    tuned = plain.replace("n_tasks:", "training_of_arm: {next_token: {learning_rate: 1e-3}}\n  n_tasks:", 1)
    before, after = load(written(tmp_path, plain)), load(written(tmp_path, tuned))
    rates = {condition: after.trunk_of(condition).training.learning_rate for condition in after.conditions}
    assert rates == {"answer": before.training.learning_rate, "next_token": 1e-3}
    same = {a.id for a, b in zip(before.trials(), after.trials(), strict=True) if a.fingerprint() == b.fingerprint()}
    assert same == {trial.id for trial in before.trials() if trial.arm == "answer"}
    varied = tuned.replace("n_tasks:", "variant: {fast: {training: {learning_rate: 5e-3}}}\n  n_tasks:", 1)
    assert {t.training.learning_rate for t in load(written(tmp_path, varied)).trunks()} == {5e-3}
    assert Study.from_record(after.model_dump(mode="json")) == after


def test_a_claim_on_memory_is_refused_where_memory_has_no_meaning(tmp_path: Path) -> None:
    text = GOOD.replace("name: cipher", "name: compose").replace("[4, 1e12]", "[4, 64]")
    text = re.sub(r"\n  n_symbols.*", "", re.sub(r"\n  n_pairs.*", "", text))
    path = written(tmp_path, text + "primary: {what: k_memory, hi: 0.5}\n")
    with pytest.raises(StudyError, match="memory has no meaning in family 'compose'"):
        load(path)


BUDGETS = """\
study: units
version: 1
question: Are budgets in other units the same budgets?
family: {name: cipher}
axes:
  arm: [answer]
  n_tasks: [4]
  GIVEN
  replicates: 1
evaluation: {n_sequences: 8, points_per_decade: 1}
"""


def in_units(given: str, tmp_path: Path) -> Study:
    (tmp_path / "units.yaml").write_text(BUDGETS.replace("GIVEN", given))
    return load(str(tmp_path / "units.yaml"))


def test_budgets_in_steps_or_tokens_are_recorded_in_flops(tmp_path):
    steps = in_units("compute_steps: [100, 250]", tmp_path)
    trunk = steps.trunk_of("answer")
    assert [budget.steps_of(trunk, flops).end for flops in steps.budgets] == [100, 250]
    a_step = trunk.training.batch_size * trunk.family.length("answer")
    tokens = in_units(f"compute_tokens: [{100 * a_step}, {250 * a_step + a_step // 3}]", tmp_path)
    flops = in_units(f"compute_flops: [{steps.budgets[0]!r}, {steps.budgets[1]!r}]", tmp_path)
    assert steps == tokens == flops


@pytest.mark.parametrize(
    ("given", "line", "key"),
    [
        ("compute_steps: [100]\n  compute_flops: [1e12]", 8, "axes.compute_steps"),
        ("compute_tokens: [many]", 8, "axes.compute_tokens[0]"),
        ("compute_steps: []", 8, "axes.compute_steps"),
        ("compute_steps: [10]", 8, "axes.compute_steps[0]"),  # too few: in FLOPs, as any budget
        ("compute_step: [100]", 8, "compute_steps"),
        ("compute_steps: [100]\n  variant: {a: {}, b: {model: {d_model: 128}}}", 8, "axes.compute_steps"),
    ],
)
def test_wrong_budgets_in_other_units_are_refused_at_their_line(given, line, key, tmp_path):
    with pytest.raises(StudyError) as refused:
        in_units(given, tmp_path)
    assert f":{line}: " in str(refused.value) and key in str(refused.value), str(refused.value)


def test_a_study_refuses_groups_that_do_not_fill_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(
        "study: groups\nversion: 1\nquestion: Is it right?\nfamily: {name: compose}\naxes:\n  arm: [steps, reward]\n"
        "  n_tasks: [64]\n  compute_flops: [1e12]\n  replicates: 1\ntraining: {batch_size: 30}\n"
    )
    with pytest.raises(
        StudyError, match=r"groups\.yaml:1: reward: group_size 8: training\.batch_size 30 counts answers"
    ):
        load(str(path))
    path.write_text(path.read_text().replace("30", "32"))
    found = {trunk.arm: trunk.reward for trunk in load(str(path)).trunks()}
    assert found == {"steps": None, "reward": Reward()}
