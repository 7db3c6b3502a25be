"""An axis of a family parameter: its conditions and ids, what is refused, and the boundaries along it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.study.claimable import planned
from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError

PARITY = """\
study: taste
version: 1
question: From which share of worked answers on are greedy answers long?
family: {name: worked_parity, n_positions: 8}
axes:
  arm: [next_token]
  family: {share: [0.5, 0, 0.25]}
  n_tasks: [64]
  compute_flops: [2e11, 4e11]
  replicates: 3
training: {batch_size: 4}
evaluation: {first_flops: 4e11, points_per_decade: 1, n_sequences: 16}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "taste.yaml"
    path.write_text(text)
    return str(path)


def test_each_value_is_a_condition_with_ids_of_its_own(tmp_path: Path) -> None:
    study = load(written(tmp_path, PARITY))
    assert list(study.conditions) == ["share=0", "share=0.25", "share=0.5"]
    assert study.series == {"next_token": {0.0: "share=0", 0.25: "share=0.25", 0.5: "share=0.5"}}
    by_id = {trial.id: trial for trial in study.trials()}
    assert by_id["next_token/n64/c2e11/r0/share=0.25"].family.share == 0.25 and len(by_id) == 3 * 2 * 3
    assert by_id["next_token/n64/c2e11/r0/share=0"].trunk.id == "next_token/n64/r0/share=0"
    assert Study.from_record(study.model_dump(mode="json")) == study
    assert not study.comparable  # the boundary along the axis compares them
    more = load(written(tmp_path, PARITY.replace("0.25]", "0.25, 0.4]")))
    assert {t.id: t.fingerprint() for t in more.trials()}.items() > {
        t.id: t.fingerprint() for t in study.trials()
    }.items()
    assert more.science() == study.science()


def test_values_multiply_the_variants_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    variants = "variant: {two: {}, four: {family: {n_letters: 4}}}\n  arm: [next_token, answer]"
    text = PARITY.replace("arm: [next_token]", variants).replace("share: [0.5, 0, 0.25]", "n_positions: [9, 1e1]")
    study = load(written(tmp_path, text.replace(", n_positions: 8", "")))
    assert list(study.series) == ["next_token, two", "next_token, four", "answer, two", "answer, four"]
    four = study.family_of(study.series["answer, four"][10.0])
    assert (four.n_letters, four.n_positions) == (4, 10)
    (trial,) = [t for t in study.trials() if t.id == "answer/n64/c4e11/r2/four/n_positions=10"]
    assert trial.family == four
    pairs = {frozenset(study.labels[study.conditions[c][1]][1] for c in pair) for pair in study.comparable}
    assert pairs == {frozenset([9.0]), frozenset([10.0])}


def test_a_variant_may_run_at_some_of_the_values_and_a_start_is_at_the_same(tmp_path: Path) -> None:
    variants = """variant:
    taught: {arms: [next_token], values: [0.25, 0.5]}
    rewarded: {arms: [reward], values: [0.25], start_from: {arm: next_token, compute_flops: 2e11}}
  arm: [next_token, reward]"""
    text = PARITY.replace("arm: [next_token]", variants).replace("batch_size: 4", "batch_size: 8, warmup_steps: 1")
    study = load(written(tmp_path, text))
    assert study.series == {
        "next_token, taught": {0.25: "next_token, taught/share=0.25", 0.5: "next_token, taught/share=0.5"},
        "reward, rewarded": {0.25: "reward, rewarded/share=0.25"},
    }
    start = study.start_of("reward, rewarded/share=0.25")
    assert start is not None and start.variant == "taught/share=0.25"
    for given, says in (
        ("[0.3]", "0.3 is not in axes.family.share"),
        ("[0, 0]", "given twice"),
        ("[0]", "does not run"),
    ):
        with pytest.raises(StudyError, match=says):
            load(written(tmp_path, text.replace("values: [0.25],", f"values: {given},")))
    with pytest.raises(StudyError, match="which the study lacks"):
        load(written(tmp_path, text.replace("  family: {share: [0.5, 0, 0.25]}\n", "")))


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("share: [0.5", "shore: [0.5", 7, ["unknown key 'shore'", "did you mean 'share'"]),
        ("0, 0.25]", "0, 0.25], n_letters: [2, 4]", 7, ["share, n_letters", "axes.variant"]),
        ("0, 0.25]", "0, 0.5]", 7, ["axes.family.share[2]", "given twice"]),
        ("0, 0.25]", "0, 1.5]", 7, ["axes.family.share", "at most 1", "given 1.5"]),
        ("0, 0.25]", "0, half]", 7, ["axes.family.share[2]", "a number is needed"]),
        ("0, 0.25]", "0, .inf]", 7, ["axes.family.share[2]", "finite"]),
        ("share: [0.5, 0, 0.25]", "name: [1]", 7, ["axes.family"]),
        ("share: [0.5, 0, 0.25]", "n_letters: [2, 2.5]", 7, ["axes.family.n_letters", "whole number", "2.5"]),
        ("share: [0.5, 0, 0.25]", "n_positions: [20, 90]", 7, ["axes.family.n_positions", "62", "90"]),
        ("n_positions: 8", "n_positions: 5", 8, ["64 tasks given", "has 28 for training in share=0"]),
        ("n_positions: 8", "share: 0.1", 4, ["family.share", "axes.family", "leave it out"]),
        ("  n_tasks", "  variant: {a: {family: {share: 0.1}}}\n  n_tasks", 8, ["leave it out"]),
        ("  n_tasks", "  variant: {a=1: {}}\n  n_tasks", 8, ["axes.variant"]),
    ],
)  # fmt: skip
def test_an_axis_that_cannot_be_run_is_refused_at_its_line(
    tmp_path: Path, old: str, new: str, line: int, parts: list[str]
) -> None:
    assert old in PARITY
    with pytest.raises(StudyError) as refusal:
        load(written(tmp_path, PARITY.replace(old, new)))
    problems = str(refusal.value).splitlines()
    assert any(f"taste.yaml:{line}:" in one and all(part in one for part in parts) for one in problems), refusal.value


CLAIMS = [
    ("{what: along_long_answers, n_tasks: 64, lo: 0.25, hi: 0.5}", ""),
    ("{what: along_ability, n_tasks: 64, arm: next_token, compute_flops: 2e11, lo: 0.25}", ""),
    ("{what: along_ability, lo: 0.25}", "give n_tasks"),
    ("{what: along_ability, n_tasks: 64, arm: share=0.5, lo: 0.25}", "it has next_token"),
    ("{what: along_ability, n_tasks: 64, lo: 0.3, hi: 0.4}", "no two values of share"),
    ("{what: along_ability, n_tasks: 64, lo: 0, hi: 0.5}", "cannot turn out false"),
    ("{what: along_ability, n_tasks: 64, lo: 0.6}", "end at 0 and 0.5"),
]


@pytest.mark.parametrize(("claim", "says"), CLAIMS)
def test_a_claim_along_the_axis_is_one_that_its_values_can_decide(tmp_path: Path, claim: str, says: str) -> None:
    entry = "expected: [{what: long_answers, cell: {arm: share=0.5, n_tasks: 64}, value: 1, lo: 0.9, hi: 1, source: s, evidence: C}]\n"
    path = written(tmp_path, PARITY + f"primary: {claim}\n{entry}")
    if says:
        with pytest.raises(StudyError) as refusal:
            load(path)
        assert "taste.yaml:13: primary" in str(refusal.value) and says in str(refusal.value)
    else:
        study = load(path)
        (words, *_) = [text for name, text in planned(study) if name == "claim"]
        assert "share" in words and "64" in words
        one_step = "hi: 0.5" in claim  # three replicates that agree have an interval wider than that
        assert one_step == any(
            "cannot come out consistent" in text for name, text in planned(study) if name == "warning"
        )


def test_claims_along_an_axis_are_refused_without_one_and_answers_where_there_are_none(tmp_path: Path) -> None:
    cipher = PARITY.replace("{name: worked_parity, n_positions: 8}", "{name: cipher, n_symbols: 8}")
    plain = cipher.replace("  family: {share: [0.5, 0, 0.25]}\n", "").replace("next_token", "answer")
    along = plain.replace("  n_tasks", "  family: {n_pairs: [8, 12]}\n  n_tasks", 1)
    entry = "expected: [{{what: {}, cell: {{n_tasks: 64}}, value: 1, lo: 0, hi: 2, source: s, evidence: C}}]\n"
    for text, claim, says in (
        (plain, "primary: {what: along_ability, n_tasks: 64, lo: 9}\n", "add axes.family"),
        (plain, entry.format("along_ability"), "add axes.family"),
        (along, "primary: {what: along_long_answers, n_tasks: 64, lo: 9}\n", "no free answers"),
        (along, entry.format("right"), "no free answers"),
    ):
        with pytest.raises(StudyError, match=says):
            load(written(tmp_path, text + claim))
