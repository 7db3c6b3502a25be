"""Plans: what is still to do, in which order, at what price."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_record import SMALL

from orchestrator.plan import jobs, price
from orchestrator.record.journal import State
from orchestrator.study.reader import load
from orchestrator.study.schema import Study, StudyError
from trainers import budget
from trainers.fit.place import Place
from trainers.train import run_trunk


@pytest.fixture
def study() -> Study:
    return load("quickstart")


def ended(study: Study, which: list[str], status: str = "done") -> State:
    state = State()
    state.feed([{"kind": "session", "key": "s", "study": study.model_dump(mode="json"), "science": study.science()}])
    by_id = {t.id: t for t in study.trials()}
    for i in which:
        facts = {"trunk": by_id[i].trunk.id, "status": status, "fingerprint": by_id[i].fingerprint()}
        state.feed([{"kind": "trial", "key": f"end/{i}", "trial": i, **facts}])
    return state


def test_a_new_study_plans_every_trial_once_on_one_job_a_trunk(study: Study) -> None:
    todo = jobs.jobs_of(study, State())
    planned = [job.trunk.trial(b).id for job in todo for b in job.budgets]
    assert sorted(planned) == sorted(t.id for t in study.trials()) and len(todo) == len(study.trunks())


def test_done_and_diverged_trials_are_left_out_and_failed_ones_tried_again(study: Study) -> None:
    ids = [t.id for t in study.trials()]
    assert jobs.jobs_of(study, ended(study, ids)) == [] and jobs.jobs_of(study, ended(study, ids, "diverged")) == []
    again = jobs.jobs_of(study, ended(study, ids, "failed"))
    assert sum(len(job.budgets) for job in again) == len(ids)
    one = jobs.jobs_of(study, ended(study, ids[1:]))
    assert [(job.trunk.trial(b).id) for job in one for b in job.budgets] == ids[:1]


def test_a_plan_adds_up(study: Study) -> None:
    made = price.make(study, State(), slots=2, device="cpu", flops_per_second=4e10)
    assert made.n_trials == made.n_open == 72
    assert made.separate_flops == sum(
        budget.steps_of(t, t.compute_flops).end * budget.flops_per_step(t) for t in study.trials()
    )
    assert made.train_flops < made.separate_flops
    alone = (made.train_flops + made.eval_flops) / 4e10
    assert made.seconds is not None and alone / 2 < made.seconds < alone / 2 + price.START_SECONDS + 40


def test_a_study_with_a_larger_budget_is_priced_from_where_its_trunks_stand(tmp_path: Path) -> None:
    study = Study.from_record(SMALL)
    wider = Study.from_record(SMALL | {"axes": SMALL["axes"] | {"compute_flops": [3e8, 6e8, 2.4e9]}})
    trunk, state = study.trunks()[0], State()
    folder = jobs.checkpoint_folder(tmp_path, trunk)
    run_trunk(trunk, study.budgets, Place(checkpoint_folder=folder), state.feed)

    left = price.make(wider, state, 1, "cpu", 1e9, tmp_path)
    from_start = price.make(wider, state, 1, "cpu", 1e9)
    stands_at = budget.steps_of(trunk, 6e8).branch
    assert from_start.train_flops == pytest.approx(2.4e9, rel=0.01)
    assert left.kept_flops == stands_at * budget.flops_per_step(trunk) > 0
    assert left.train_flops + left.kept_flops == from_start.train_flops and from_start.kept_flops == 0
    assert left.eval_flops < from_start.eval_flops and left.tokens < from_start.tokens
    assert left.seconds is not None and from_start.seconds is not None and left.seconds < from_start.seconds - 0.4
    assert left.separate_flops == from_start.separate_flops

    smaller = Study.from_record(SMALL | {"axes": SMALL["axes"] | {"compute_flops": [2e8, 3e8, 6e8]}})
    assert price.make(smaller, state, 1, "cpu", 1e9, tmp_path).kept_flops == 0  # the trunk has passed it
    shutil.rmtree(tmp_path / "checkpoints")
    assert price.make(wider, state, 1, "cpu", 1e9, tmp_path) == from_start


def test_a_throughput_is_read_from_the_trials_of_the_journal(study: Study) -> None:
    state = State()
    facts = {"kind": "trial", "trunk": "t", "status": "done", "eval_flops": 2e9, "eval_seconds": 1.0}
    state.feed([facts | {"key": "a", "trial": "a", "flops_run": 38e9, "train_seconds": 1.0}])
    state.feed([facts | {"key": "b", "trial": "b", "flops_run": 18e9, "train_seconds": 1.0}])
    assert price.recorded_throughput(state, "cpu") == pytest.approx(60e9 / 4)
    assert price.recorded_throughput(State(), "cpu") is None
    assert (price.make(study, state, 2, "cpu").source, price.make(study, State(), 2, "cpu").source) == (
        "recorded in this study",
        "",
    )


def test_calibrating_measures_a_speed_that_training_really_has() -> None:
    assert price.calibrate(load("quickstart"), "cpu") > 0


def test_a_setting_changed_under_one_version_is_refused_by_name_and_new_axis_values_are_not(study: Study) -> None:
    state = ended(study, [study.trials()[0].id])
    wider = study.model_copy(update={"axes": study.axes.model_copy(update={"replicates": 9})})
    jobs.check_against_record(wider, state, "file")
    other = study.model_copy(update={"training": study.training.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(StudyError, match=r"training.learning_rate: 0.003 -> 0.001"):
        jobs.check_against_record(other, state, "file")
