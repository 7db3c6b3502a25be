"""Model size by a rule: which model each budget gets, which trials share a training run, and that all is read accordingly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import synthetic
from alone import go_on

from orchestrator.analysis import onsets, sizes
from orchestrator.analysis.findings import judge
from orchestrator.analysis.results import Results
from orchestrator.plan import jobs, price
from orchestrator.record import publisher
from orchestrator.record.journal import State
from orchestrator.report import curves
from orchestrator.study import claimable
from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError
from trainers import budget
from trainers.shapes import PRESETS

GROWING = """\
study: growing
version: 1
question: Does size pay?
family: {name: cipher, n_symbols: 8, n_pairs: 12}
axes:
  arm: [answer]
  variant:
    fixed: {}
    grown: {model: {tokens_per_parameter: 1}}
  n_tasks: [4, 64]
  compute_flops: [2e11, 8e11, 1e12, 3.2e12]
  replicates: 2
model: {preset: 0.1m, conv_kernel: 4}
training: {base_d_model: 64}
evaluation: {first_flops: 1e11, points_per_decade: 2, n_sequences: 16}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "growing.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load(written(tmp_path, GROWING))


# Which model, which run -----------------------------------------------------------------------------------------------


def test_each_budget_gets_the_largest_model_of_which_it_reads_so_many_tokens(study: Study) -> None:
    names = list(PRESETS)
    for trial in study.trials():
        if trial.variant == "fixed":
            assert trial.model == PRESETS["0.1m"].model_copy(update={"conv_kernel": 4}) and not trial.size
            continue
        shape = budget.shape_of(trial)
        larger = PRESETS[names[names.index(trial.size) + 1]].model_copy(update={"conv_kernel": 4})
        assert trial.model == PRESETS[trial.size].model_copy(update={"conv_kernel": 4})
        assert shape.tokens_per_parameter(trial.compute_flops) >= 1
        assert shape._replace(model=larger).tokens_per_parameter(trial.compute_flops) < 1
    grown = {t.compute_flops: t.size for t in study.trials() if t.variant == "grown"}
    assert len(set(grown.values())) == 3 and grown[8e11] == grown[1e12]


def test_budgets_of_one_size_share_a_training_run_and_others_do_not(study: Study) -> None:
    runs = {trunk.id: budgets for trunk, budgets in study.carried() if (trunk.n_tasks, trunk.replicate) == (4, 0)}
    sizes = [study.trunk_of("grown", c).size for c in (2e11, 8e11, 3.2e12)]
    assert runs == {
        "answer/n4/r0/fixed": (2e11, 8e11, 1e12, 3.2e12),
        f"answer/n4/r0/grown/{sizes[0]}": (2e11,),
        f"answer/n4/r0/grown/{sizes[1]}": (8e11, 1e12),
        f"answer/n4/r0/grown/{sizes[2]}": (3.2e12,),
    }
    todo = price.make(study, State(), slots=2, device="cpu")
    assert todo.n_trials == todo.n_open == 2 * 4 * 2 * 2 and len(todo.jobs) == 4 * 2 * 2
    assert {job.trunk.id: job.budgets for job in todo.jobs}.items() >= runs.items()


def test_a_trial_is_called_by_its_budget_and_is_the_trial_that_states_its_model(study: Study, tmp_path: Path) -> None:
    assert "answer/n4/c3.2e12/r0/grown" in {trial.id for trial in study.trials()}
    size = study.trunk_of("grown").size
    stated = load(written(tmp_path, GROWING.replace("tokens_per_parameter: 1", f"preset: {size}")))
    by_id = {trial.id: trial.fingerprint() for trial in stated.trials()}
    assert all(by_id[t.id] == t.fingerprint() for t in study.trials() if t.compute_flops == 3.2e12)


def test_a_rule_survives_the_journal_and_is_part_of_the_question(study: Study, tmp_path: Path) -> None:
    record = json.loads(json.dumps(study.model_dump(mode="json")))
    assert Study.from_record(record) == study and Study.from_record(record).trials() == study.trials()
    whole = GROWING.replace("preset: 0.1m", "tokens_per_parameter: 1").replace(
        "grown: {model: {tokens_per_parameter: 1}}", ""
    )
    one, other = (load(written(tmp_path, text)) for text in (whole, whole.replace("parameter: 1,", "parameter: 2,")))
    assert one.science() != other.science() and "n_layers" not in one.science()["model"]
    assert "tokens_per_parameter" not in study.science()["model"]  # studies of before there were rules are as they were


def test_another_budget_leaves_the_sizes_of_the_others_alone(study: Study, tmp_path: Path) -> None:
    more = load(written(tmp_path, GROWING.replace("3.2e12]", "3.2e12, 3e13]")))
    by_id = {trial.id: trial.fingerprint() for trial in more.trials()}
    assert all(by_id[trial.id] == trial.fingerprint() for trial in study.trials()) and len(by_id) > len(study.trials())
    jobs.check_against_record(more, _recorded(study), "growing.yaml")


def test_a_variant_that_states_widths_has_them_whatever_the_rule_of_the_study(tmp_path: Path) -> None:
    text = GROWING.replace("preset: 0.1m", "tokens_per_parameter: 1").replace("fixed: {}", "fixed: {model: {depth: 1}}")
    study = load(written(tmp_path, text.replace("model: {tokens_per_parameter: 1}}", "training: {beta2: 0.9}}")))
    assert not study.grows("fixed") and study.trunk_of("fixed").model.n_layers == 1
    assert study.grows("grown") and study.trunk_of("grown").model.conv_kernel == 4


def _recorded(study: Study) -> State:
    state = State()
    state.feed([{"kind": "session", "key": "s", "study": study.model_dump(mode="json"), "science": study.science()}])
    return state


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("preset: 0.1m", "preset: 0.1m, tokens_per_parameter: 1"), 13, "preset, tokens_per_parameter"),
        (("{tokens_per_parameter: 1}", "{tokens_per_parameter: 1, d_model: 32}"), 9, "d_model"),
        (("tokens_per_parameter: 1}", "tokens_per_parameter: 0}"), 9, "greater than 0"),
        (("tokens_per_parameter: 1}", "tokens_per_param: 1}"), 9, "did you mean 'tokens_per_parameter'?"),
        (("tokens_per_parameter: 1}", "tokens_per_parameter: 5}"), 11, "smallest model, 0.1m; 5 are asked for"),
        (("{base_d_model: 64}", "{base_d_model: 64, warmup_steps: 600}"), 14, "600 steps of warm-up, of size 0.1m has"),
    ],
)
def test_a_rule_that_says_nothing_is_refused_at_its_line(
    change: tuple[str, str], line: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError) as refusal:
        load(written(tmp_path, GROWING.replace(*change)))
    first = str(refusal.value).splitlines()[0]
    assert f"growing.yaml:{line}: " in first and all(word in first for word in says.split(", ")), first


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> Results:
    study = synthetic.made_up(
        model={"tokens_per_parameter": 1.0}, compute_flops=(2e11, 8e11, 3.2e12), n_tasks=(4, 64, 1024)
    )
    return Results.of_tables(study, *synthetic.tables(study))


@pytest.mark.parametrize("decayed", [True, False])
def test_along_compute_the_ends_of_budgets_are_all_there_is(decayed: bool, results: Results) -> None:
    flops, values = results.along("ability", "answer", "recall", "held_out", 64, decayed)
    phase = "final" if decayed else "pre_decay"
    np.testing.assert_allclose(flops, np.array(results.budgets) * (1 if decayed else 0.8))
    np.testing.assert_array_equal(values, results.cube("ability", "answer", "recall", "held_out", phase)[1].T)


def test_a_claim_is_held_to_the_flops_that_are_spent_and_not_to_those_that_were_asked_for(study: Study) -> None:
    for last, share in (("end", 1.0), ("branch", 0.8)):
        looks = claimable.looks(study, "grown", last)  # type: ignore[arg-type]
        assert looks == pytest.approx([share * c for c in study.budgets], rel=0.01) and looks != study.budgets
        spent = {t.compute_flops: budget.steps_of(t, t.compute_flops) for t in study.trials() if t.variant == "grown"}
        costs = {t.compute_flops: budget.flops_per_step(t) for t in study.trials() if t.variant == "grown"}
        assert looks == [getattr(spent[c], last) * costs[c] for c in study.budgets]


def test_the_trials_of_each_size_are_counted_with_their_own_parameters(results: Results) -> None:
    of = {one.compute: one.sizes for one in sizes.isoflops(results, "answer", "recall").budgets}
    for flops in results.budgets:
        assert of[flops] == (budget.shape_of(results.study.trunk_of("answer", flops)).n_parameters,)
    assert len(set(of.values())) == 3


def test_figures_draw_each_run_from_its_start_to_its_end(results: Results) -> None:
    run = curves.runs_of(judge(results), "ability", "answer", "recall", "held_out", 64, 0, "round", "")[0]
    assert len(run.strokes) == len(run.ends) == len(results.budgets)  # a model of its own for each budget
    for stroke, end, budget_flops in zip(run.strokes, run.ends, results.budgets, strict=True):
        assert stroke[-1] == end and end[0] == pytest.approx(budget_flops, rel=0.01)
        assert (np.diff([flops for flops, _ in stroke]) > 0).all() and len(stroke) > 1


def with_status(results: Results, which: Callable[[dict[str, Any]], bool], status: str) -> Results:
    """The same, but that some trials have not ended, or not well: they have no results."""
    whole, runs = synthetic.tables(results.study)
    keep = [not which(row) for row in whole.select(["n_tasks", "compute_flops", "replicate"]).to_pylist()]
    told = [run | ({"status": status} if which(run) else {}) for run in runs.to_pylist()]
    return Results.of_tables(
        results.study, whole.filter(pa.array(keep)), pa.Table.from_pylist(told, schema=runs.schema)
    )


def test_a_replicate_whose_smaller_sizes_have_yet_to_run_is_not_judged_by_its_largest(results: Results) -> None:
    """The dearest trials run first; what they reach says nothing of when it was reached."""
    whole = onsets.onset(results, "answer", "recall", 1024)
    waiting = with_status(results, lambda t: t["replicate"] > 0 and t["compute_flops"] < 3e12, "open")
    part = onsets.onset(waiting, "answer", "recall", 1024)
    assert part.brackets == whole.brackets[:1] and len(part.brackets) == 1
    everywhere = with_status(results, lambda t: t["compute_flops"] < 3e12, "open")
    assert onsets.onset(everywhere, "answer", "recall", 1024).verdict == "missing"


def test_a_size_that_diverged_is_lost_alone(results: Results) -> None:
    diverged = with_status(results, lambda t: t["replicate"] == 0 and t["compute_flops"] < 3e11, "diverged")
    ends, curve = results.study.ends("answer"), onsets.curve(diverged, "answer", "recall", 1024)
    brackets = onsets.onset(diverged, "answer", "recall", 1024).brackets
    assert brackets[0] == (ends[0], ends[1])  # it is there from the next size on
    assert curve is not None and curve.steps[-1].reached == 1.0


def test_a_condition_of_one_size_is_read_along_its_training_run_whatever_rule_gave_it() -> None:
    study = synthetic.made_up(model={"tokens_per_parameter": 0.01}, compute_flops=(2e11, 3e11), n_tasks=(4, 64, 1024))
    assert not study.grows("answer") and study.trunk_of("answer").size
    table = Results.of_tables(study, *synthetic.tables(study))
    assert len(table.along("ability", "answer", "recall", "held_out", 64)[0]) > 4


def test_two_conditions_of_which_one_grows_are_compared_by_the_ends_of_their_budgets() -> None:
    """The same truth in both, so no multiple of compute may be told between them."""
    variants = {"fixed": {}, "grown": {"model": {"tokens_per_parameter": 1.0}}}
    study = synthetic.made_up(variant=variants, compute_flops=(2e11, 8e11, 3.2e12), n_tasks=(4, 64, 1024))
    found = judge(Results.of_tables(study, *synthetic.of_variants(study, dict.fromkeys(variants, synthetic.rising()))))
    multipliers = found.of("compute multiplier")
    assert multipliers and all(one.low is None or one.low <= 1 for one in multipliers)
    assert all(one.high is None or one.high >= 1 for one in multipliers)


# For real -------------------------------------------------------------------------------------------------------------

SMALL = """\
study: small
version: 1
question: Does it run?
family: {name: cipher, n_symbols: 8, n_pairs: 4}
axes: {arm: [answer], n_tasks: [4], compute_flops: [2.5e9, 7.5e9, 1e10], replicates: 1}
model: {tokens_per_parameter: 0.0125}
training: {batch_size: 4, warmup_steps: 10}
evaluation: {first_flops: 2.5e9, points_per_decade: 2, n_sequences: 4}
"""


def test_a_study_with_a_rule_runs_to_its_report_and_owes_nothing_after(tmp_path: Path) -> None:
    """Without Ray."""
    study, folder = load(written(tmp_path, SMALL)), tmp_path / "small@1"
    assert len(study.sizes("answer")) == 2
    assert go_on(study, folder) > 0 == go_on(study, folder)
    publisher.rewrite(folder)
    runs = {run["compute_flops"]: run for run in Results.read(folder, study).runs}
    for trial in study.trials():
        run = runs[trial.compute_flops]
        assert run["status"] == "done" and run["trunk"] == trial.trunk.id and run["fingerprint"] == trial.fingerprint()
        assert run["steps"] == budget.steps_of(trial, trial.compute_flops).end
    assert "at 2.5e9 FLOPs" in (folder / "report.html").read_text()
