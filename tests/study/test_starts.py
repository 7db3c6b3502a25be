"""Trials that begin with the weights of others: which ones, what that makes of their budgets, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.study import starts
from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError
from trainers import budget

LADDER = """\
study: ladder
version: 1
question: What does a start give?
family: {name: compose}
axes:
  arm: [steps, answer]
  variant:
    scratch: {}
    early:
      arms: [answer]
      start_from: {arm: steps, compute_flops: 1e9}
    late:
      arms: [answer]
      start_from: {arm: steps, compute_flops: 2e9, n_tasks: 24}
  n_tasks: [8, 24]
  compute_flops: [1e9, 2e9, 4e9]
  replicates: 2
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}
training: {batch_size: 8}
evaluation: {points_per_decade: 1, first_flops: 1e9, n_sequences: 8}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "ladder.yaml"
    path.write_text(text)
    return str(path)


def changed(folder: Path, *changes: tuple[str, str]) -> str:
    text = LADDER
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return written(folder, text)


def refusal(path: str) -> list[str]:
    with pytest.raises(StudyError) as refused:
        load(path)
    return str(refused.value).splitlines()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load(written(tmp_path, LADDER))


def test_a_variant_runs_in_its_arms_and_begins_with_its_donors_replicate_by_replicate(study: Study) -> None:
    assert list(study.conditions) == ["steps, scratch", "answer, scratch", "answer, early", "answer, late"]
    trials = {trial.id: trial for trial in study.trials()}
    assert len(trials) == 2 * 2 * (3 + 3 + 2 + 1)  # at and below its donor's budget a dependent has none
    n_started = 0
    for trial in trials.values():
        if trial.start is None:
            assert trial.variant == "scratch"
            continue
        donor = trials[trial.start.trial]
        assert trial.start.fingerprint == donor.fingerprint()
        assert (donor.arm, donor.variant, donor.replicate) == ("steps", "scratch", trial.replicate)
        wanted = {"early": (1e9, trial.n_tasks), "late": (2e9, 24)}[trial.variant]
        assert (donor.compute_flops, donor.n_tasks) == wanted
        end = budget.steps_of(donor, donor.compute_flops).end
        assert trial.start.flops == end * budget.flops_per_step(donor)
        n_started += 1
    assert n_started == 2 * 2 * 3
    assert Study.from_record(study.model_dump(mode="json")) == study


def test_what_changes_the_donor_changes_its_dependents_and_no_other(study: Study, tmp_path: Path) -> None:
    other = load(
        changed(tmp_path, ("  n_tasks: [8", "  training_of_arm: {steps: {learning_rate: 1e-3}}\n  n_tasks: [8"))
    )
    prints = [{t.id: t.fingerprint() for t in of.trials()} for of in (study, other)]
    moved = {name for name in prints[0] if prints[0][name] != prints[1][name]}
    assert moved == {t.id for t in study.trials() if t.arm == "steps" or t.start}
    assert study.science() == other.science()


def test_a_chain_charges_each_trial_with_all_before_it(tmp_path: Path) -> None:
    chain = "start_from: {arm: answer, compute_flops: 2e9, variant: early}"
    study = load(changed(tmp_path, ("start_from: {arm: steps, compute_flops: 2e9, n_tasks: 24}", chain)))
    first, second = study.trunk_of("answer, early"), study.trunk_of("answer, late")
    assert first.start and second.start and second.start.trial == first.trial(2e9).id
    own = round((2e9 - first.start.flops) / budget.flops_per_step(first))
    assert second.start.flops == first.start.flops + own * budget.flops_per_step(first)
    ends = study.ends("answer, late")
    assert ends == [pytest.approx(4e9, rel=0.01)] and study.budgets_of("answer, late") == [4e9]


def test_the_start_of_arm_reward_stands_in_the_study_unless_a_variant_has_its_own(tmp_path: Path) -> None:
    text = (
        LADDER.split("  variant:")[0]
        .replace("answer]", "reward]")
        .replace("axes:", "start_from: {arm: steps, compute_flops: 1e9}\naxes:")
    )
    text += "  n_tasks:" + LADDER.split("  n_tasks:")[1].replace("batch_size: 8", "batch_size: 8, warmup_steps: 5")
    plain = load(written(tmp_path, text))
    assert plain.start_of("steps") is None
    start = plain.trunk_of("reward").start
    assert start is not None and start.trial == "steps/n8/c1e9/r0" and plain.budgets_of("reward") == [2e9, 4e9]
    varied = (
        "  variant: {a: {}, b: {start_from: {arm: steps, compute_flops: 2e9, variant: a}, arms: [reward]}}\n  n_tasks:"
    )
    both = load(written(tmp_path, text.replace("  n_tasks:", varied, 1)))
    donors = {c: trunk.start.trial for c in both.conditions if (trunk := both.trunk_of(c)).start}
    assert donors == {"reward, a": "steps/n8/c1e9/r0/a", "reward, b": "steps/n8/c2e9/r0/a"}
    other = load(written(tmp_path, text.replace("compute_flops: 1e9}", "compute_flops: 2e9}")))
    assert plain.science() != other.science()


EARLY, LATE = "{arm: steps, compute_flops: 1e9}", "{arm: steps, compute_flops: 2e9, n_tasks: 24}"


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        (EARLY, "{arm: step, compute_flops: 1e9}", 11, ["start_from.arm", "did you mean 'steps'", "steps, answer"]),
        (EARLY, "{arm: steps, compute_flop: 1e9}", 11, ["compute_flop", "did you mean 'compute_flops'"]),
        (EARLY, "{arm: steps, compute_flops: 3e9}", 11, ["3e9 is no budget of 'steps, scratch'", "1e9, 2e9, 4e9"]),
        (EARLY, "{arm: steps, compute_flops: 4e9}", 11, ["no budget of the study is above 4e9"]),
        (EARLY, "{arm: steps, compute_flops: 1e9, n_tasks: 16}", 11, ["n_tasks: the donor", "does not train 16 tasks", "8, 24"]),
        (EARLY, "{arm: steps, compute_flops: 1e9, variant: late}", 11, ["does not run in 'late'", "scratch"]),
        (EARLY, "{arm: answer, compute_flops: 1e9}", 11, ["a circle: 'answer, early' from 'answer, early'"]),
        (LATE, "{arm: answer, compute_flops: 2e9, variant: late}", 14, ["a circle"]),
        (EARLY, "{arm: answer, compute_flops: 2e9, variant: late}", 11, ["2e9 is no budget of 'answer, late'"]),
        ("arms: [answer]\n      start_from: " + EARLY, "arms: [answers]\n      start_from: " + EARLY, 10, ["no arm of this study", "'answer'"]),
        ("scratch: {}", "scratch: {arms: [answer]}", 6, ["'steps' is in no variant"]),
        ("scratch: {}", "scratch: {}\n    wide: {training: {batch_size: 16}}", 12, ["several variants", "scratch, wide"]),
        ("axes:", "start_from: {arm: steps, compute_flops: 1e9}\naxes:", 5, ["arm 'reward'"]),
        ("[1e9, 2e9, 4e9]", "[1e9, 1.01e9, 4e9]", 14, ["2e9 is no budget"]),
        ("[1e9, 2e9, 4e9]", "[1e9, 1.01e9, 2e9, 4e9]", 16, ["1.01e09 FLOPs", "of its start", "at least 50 steps", "(answer, early)"]),
        ("arms: [answer]\n      start_from: " + EARLY, "arms: [answer]\n      model: {d_model: 32}\n      start_from: " + EARLY, 12, ["model.d_model: 16 -> 32"]),
        ("arms: [answer]\n      start_from: " + EARLY, "arms: [answer]\n      family: {n_letters: 9}\n      start_from: " + EARLY, 12, ["vocabulary: 34 -> 35"]),
        ("compute_flops: [1e9, 2e9, 4e9]", "compute_steps: [1e4, 2e4]", 16, ["whose FLOPs count; give compute_flops"]),
    ],
)  # fmt: skip
def test_a_start_that_cannot_be_is_refused_at_its_line(
    old: str, new: str, line: int, parts: list[str], tmp_path: Path
) -> None:
    found = refusal(changed(tmp_path, (old, new)))
    assert any(f"ladder.yaml:{line}:" in one and all(part in one for part in parts) for one in found), found


def test_learned_positions_of_a_donor_may_be_more_than_needed_but_not_fewer(tmp_path: Path) -> None:
    learned = ("d_mlp: 32}", "d_mlp: 32, positions: learned}")
    assert load(changed(tmp_path, learned)).trunk_of("answer, early").start is not None  # rows of `steps` are longer
    found = refusal(changed(tmp_path, learned, ("arms: [answer]", "arms: [steps]"), ("{arm: steps", "{arm: answer")))
    assert any("learned positions: 5 -> 7" in one for one in found), found


def test_two_that_begin_with_each_other_and_a_long_chain_are_refused_at_once(tmp_path: Path) -> None:
    other = LATE, "{arm: answer, compute_flops: 1e9, variant: early}"
    found = refusal(changed(tmp_path, (EARLY, "{arm: answer, compute_flops: 1e9, variant: late}"), other))
    assert all("a circle: 'answer, " in one for one in found) and len(found) == 2
    links = [
        f"    v{i}: {{arms: [answer], start_from: {{arm: answer, compute_flops: 1e9, variant: v{i - 1}}}}}\n"
        for i in range(1, 90)
    ]
    text = LADDER.replace("    early:", "    v0: {}\n" + "".join(links) + "    early:")
    assert any(f"more than {starts.MAX_CHAIN}" in one for one in refusal(written(tmp_path, text)))


def test_star_needs_a_start(tmp_path: Path) -> None:
    star = ("axes:", "reward: {algorithm: star}\naxes:")
    arms: tuple[tuple[str, str], ...] = (("[steps, answer]", "[steps, reward]"), ("[answer]", "[reward]"))
    found = refusal(changed(tmp_path, star, *arms))
    assert len(found) == 1 and "ladder.yaml:5:" in found[0] and "start_from" in found[0]
    scratch: Any = ("scratch: {}", "scratch: {arms: [steps]}")
    assert load(changed(tmp_path, star, *arms, scratch)).trunk_of("reward, late").start is not None


TASTE = """\
study: taste
version: 1
question: Above which share does a reward do?
family: {name: worked_parity, n_positions: 6}
axes:
  arm: [next_token, reward]
  variant:
    taught: {arms: [next_token]}
    rewarded: {arms: [reward], start_from: {arm: next_token, compute_flops: 1e9}}
    again: {arms: [reward], start_from: {arm: reward, compute_flops: 4e9, variant: rewarded}}
  family: {share: [0.5, 0.25]}
  n_tasks: [1]
  compute_flops: [1e9, 4e9, 8e9]
  replicates: 1
model: {n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32}
training: {batch_size: 8}
evaluation: {points_per_decade: 1, first_flops: 4e9, n_sequences: 8}
"""


def test_a_donor_has_the_same_value_of_the_familys_axis(tmp_path: Path) -> None:
    study = load(written(tmp_path, TASTE))
    trials = {trial.id: trial for trial in study.trials()}
    begun = [trial for trial in trials.values() if trial.start]
    assert len(begun) == 2 * (2 + 1) and len(trials) == 2 * 3 + len(begun)
    for trial in begun:
        donor = trials[trial.start.trial]  # type: ignore[union-attr]
        assert donor.family.share == trial.family.share  # type: ignore[attr-defined]
        assert donor.fingerprint() == trial.start.fingerprint  # type: ignore[union-attr]
        name, value = trial.variant.split("/")
        assert donor.variant == f"{ {'rewarded': 'taught', 'again': 'rewarded'}[name] }/{value}"
    wrong = TASTE.replace("variant: rewarded}", "variant: reward}")
    assert [line.split(": ", 1)[0] for line in refusal(written(tmp_path, wrong))] == [f"{tmp_path}/ladder.yaml:10"]


def test_a_variant_may_train_some_numbers_of_tasks_alone(tmp_path: Path) -> None:
    """Its trials are those of the whole study at these numbers, and a donor must have the number that is asked for."""
    study = load(str(Path(__file__).parents[2] / "sweeps" / "taste_first.yaml"))
    assert {trunk.n_tasks for trunk in study.trunks() if trunk.arm == "reward"} == {448}
    assert {trunk.n_tasks for trunk in study.trunks() if trunk.arm == "steps"} == set(study.axes.n_tasks)
    text = (Path(__file__).parents[2] / "sweeps" / "taste_first.yaml").read_text()
    for given, changed, problem in (
        (
            "scratch: {arms: [reward], n_tasks: [448]}",
            "scratch: {arms: [reward], n_tasks: [447]}",
            "447 is not in axes",
        ),
        ("n_tasks: 8}", "n_tasks: 9}", "does not train 9 tasks"),
        ("n_tasks: 448\n", "n_tasks: 24\n", "primary.n_tasks"),
    ):
        path = tmp_path / "changed.yaml"
        path.write_text(text.replace(given, changed))
        with pytest.raises(StudyError, match=problem):
            load(str(path))
