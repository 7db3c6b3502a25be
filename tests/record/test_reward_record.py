"""Arm `reward` as it is seen: tables of what was sampled, MLflow, the page. One tiny study, really trained: one variant has no signal."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, Open, chromium, open_page, overlaps, sticking_out
from steps import Counter

from orchestrator import OpenStudy, open_study
from orchestrator.analysis import answer, findings
from orchestrator.analysis.samples import MEANS, SUMS, means
from orchestrator.record import mlflow_runs, publisher
from orchestrator.record.journal import Journal, State
from orchestrator.record.provenance import session_event
from orchestrator.report import curves, rewarded
from orchestrator.study.schema import Study
from trainers import budget
from trainers.fit.place import Place
from trainers.spec import TrialSpec, TrunkSpec
from trainers.train import run_trunk

__all__ = ["chromium", "open_page"]  # fixtures

STUDY: dict[str, Any] = {
    "study": "tasted",
    "version": 1,
    "question": "Does a reward teach it?",
    "family": {"name": "compose", "n_slots": 2, "n_functions": 4, "n_letters": 4},
    "axes": {
        "arm": ["steps", "reward"],
        "variant": {"easy": {}, "hard": {"family": {"n_input": 3, "n_letters": 12}}},
        "n_tasks": [3],
        "compute_flops": [6e7, 7e7],
        "replicates": 1,
    },
    "model": {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_mlp": 16},
    "training": {"batch_size": 16, "learning_rate": 0.01},
    "reward": {"group_size": 8, "temperature": 0.9},
    "evaluation": {"n_sequences": 20, "first_flops": 1e7, "points_per_decade": 3},
}
FILES = ("results.parquet", "samples.parquet", "transcripts.parquet")


def journal_of(home: Path, study: Study, events: list[dict[str, Any]]) -> Path:
    """The folder of a study in a home, with the journal of these events."""
    folder = home / study.id
    log = Journal(folder)
    log.append([session_event(study, {}), *events])
    log.close()
    return folder


class World:
    """The study, its journal and its projections, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.study, self.home, self.events = Study.from_record(STUDY), home, list[dict[str, Any]]()
        for trunk in self.study.trunks():
            run_trunk(trunk, self.study.budgets, Place(), self.events.extend)
        self.folder, self.uri = journal_of(home, self.study, self.events), f"sqlite:///{home / 'mlflow.db'}"
        publisher.publish(self.folder, self.uri)

    @property
    def rewarded(self) -> list[TrialSpec]:
        return [trial for trial in self.study.trials() if trial.arm == "reward"]

    def opened(self) -> OpenStudy:
        return open_study(self.study.id, self.home)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch, home = pytest.MonkeyPatch(), tmp_path_factory.mktemp("home")
    patch.setenv("EMERGENCE_HOME", str(home))
    yield World(home)
    patch.undo()


# Tables -------------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_trial_hold_every_answer_that_it_sampled_once(world: World) -> None:
    frame = pd.read_parquet(world.folder / "samples.parquet")
    assert set(frame["trial"]) == {trial.id for trial in world.rewarded}
    assert frame.groupby("trial")["phase"].nunique().eq(3).all() and not frame.duplicated(["trial", "step"]).any()
    totals = frame.groupby("trial")[list(SUMS)].sum()
    for trial in world.rewarded:
        steps = budget.steps_of(trial, trial.compute_flops).end
        assert totals.loc[trial.id, "n_samples"] == 16 * steps and totals.loc[trial.id, "n_groups"] == 2 * steps
    raw = {event["key"]: event["sampled"] for event in world.events if event.get("sampled")}
    for row in frame.to_dict("records"):
        on = repr(row["compute_flops"]) if row["phase"] == "final" else "trunk"
        sums = raw[f"{row['trunk']}/{on}/{row['step']}"]["sums"]
        assert {column: row[column] for column in SUMS} == {column: sums[key] for column, key in SUMS.items()}


def test_transcripts_are_those_of_the_journal_at_each_evaluation(world: World) -> None:
    frame = pd.read_parquet(world.folder / "transcripts.parquet")
    rows = pd.read_parquet(world.folder / "samples.parquet")
    assert (frame.groupby(["trial", "step"]).size() == 2).all() and frame["trial"].nunique() == len(world.rewarded)
    assert set(zip(frame["trial"], frame["step"], strict=True)) == set(zip(rows["trial"], rows["step"], strict=True))
    assert (frame["right"] >= frame["sound"]).all() and frame["ended"].all()
    asked = {
        (one["prompt"], one["answer"]) for e in world.events if e.get("sampled") for one in e["sampled"]["transcripts"]
    }
    assert asked == set(zip(frame["prompt"], frame["answer"], strict=True))


def test_a_resumed_run_has_the_same_tables_to_the_byte(world: World, tmp_path: Path) -> None:
    """A trunk of arm `reward` is stopped before and within a decay, and goes on; the others are those of the whole run."""
    (trunk,) = [trunk for trunk in world.study.trunks() if (trunk.arm, trunk.variant) == ("reward", "hard")]
    events = [event for event in world.events if event["trunk"] != trunk.id]
    place, first = (
        Place(checkpoint_folder=str(tmp_path / "checkpoints")),
        budget.steps_of(trunk, world.study.budgets[0]),
    )
    for at in (7, first.end - 7 - 3, None):
        run_trunk(trunk, world.study.budgets, place, events.extend, Counter(at))
    assert {event["attempt"] for event in events if event["kind"] == "trial" and event["trunk"] == trunk.id} == {3}
    folder = journal_of(tmp_path, world.study, events)
    publisher.rewrite(folder)
    for name in FILES:
        assert (folder / name).read_bytes() == (world.folder / name).read_bytes(), name


def test_frames_hold_tables_and_means_and_every_column_is_documented(world: World) -> None:
    study = world.opened()
    kept = pd.read_parquet(world.folder / "samples.parquet")
    pd.testing.assert_frame_equal(study.samples[kept.columns], kept)
    np.testing.assert_allclose(study.samples["right"], kept["n_right"] / kept["n_samples"])
    pd.testing.assert_frame_equal(study.transcripts, pd.read_parquet(world.folder / "transcripts.parquet"))
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    for frame in (study.samples, study.transcripts, study.runs):
        assert [name for name in frame.columns if f"`{name}`" not in text] == []
    assert set(study.figures) >= {"reward_1", "reward_2"}


def test_a_task_that_no_answer_solves_gives_no_signal_and_other_arms_have_no_outcome(world: World) -> None:
    runs = pd.read_parquet(world.folder / "runs.parquet").set_index("trial")
    for trial in world.study.trials():
        run = runs.loc[trial.id]
        if trial.arm == "reward":
            share = budget.sampling_flops(trial) / budget.flops_per_step(trial)
            assert run["sampling_flops_share"] == share and 0.05 < share < 0.6
        else:
            assert pd.isna(run["outcome"]) and np.isnan(run["sampling_flops_share"])
    hard = runs[(runs["arm"] == "reward") & (runs["variant"] == "hard")]
    assert len(hard) == 2 and set(hard["outcome"]) == {"no signal"}
    easy = runs[(runs["arm"] == "reward") & (runs["variant"] == "easy")]
    assert "no signal" not in set(easy["outcome"])
    (line,) = [line for line in answer.more(findings.read(world.folder, world.study)) if "no signal" in line]
    assert "2 no signal" in line and "4 trials" in line


def test_studies_without_the_arm_have_no_tables_and_no_columns_of_it(world: World, tmp_path: Path) -> None:
    study = Study.from_record(STUDY | {"axes": STUDY["axes"] | {"arm": ["steps"]}, "reward": {}})
    folder = journal_of(tmp_path, study, [])
    publisher.rewrite(folder)
    assert not {"samples.parquet", "transcripts.parquet"} & {path.name for path in folder.iterdir()}
    assert "outcome" not in pd.read_parquet(folder / "runs.parquet").columns
    assert 'id="rewarded"' not in (folder / "report.html").read_text()


# MLflow -------------------------------------------------------------------------------------------------------------


def test_mlflow_has_the_means_along_each_trial_its_settings_outcome_and_transcripts(world: World) -> None:
    target = mlflow_runs.MlflowRecord(world.uri, world.study, State.of(world.folder).record)
    frame = world.opened().samples
    for trial in world.study.trials():
        run = target.client.get_run(target.runs[trial.id])
        mine, metrics = frame[frame["trial"] == trial.id], run.data.metrics
        grouped = {name for name in metrics if name.startswith("reward/")}
        if trial.arm != "reward":
            assert not grouped and "outcome" not in run.data.tags and "sampling_flops_share" not in run.data.params
            continue
        assert grouped == {f"reward/{name}" for name in (*MEANS, "samples_per_second")} and "train/grad_norm" in metrics
        for name in ("right", "entropy_nats", "groups_all_wrong"):
            history = target.client.get_metric_history(run.info.run_id, f"reward/{name}")
            assert {p.step: p.value for p in history} == dict(zip(mine["step"], mine[name], strict=True))
        for name, value in {"algorithm": "leave_one_out", "group_size": "8", "temperature": "0.9"}.items():
            assert run.data.params[f"reward.{name}"] == value
        share = budget.sampling_flops(trial) / budget.flops_per_step(trial)
        assert float(run.data.params["sampling_flops_share"]) == pytest.approx(share, rel=1e-5)
        assert (run.data.tags.get("outcome") == "no signal") == (trial.variant == "hard")
        assert {"path": mlflow_runs.TRANSCRIPTS, "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
        path = target.client.download_artifacts(run.info.run_id, mlflow_runs.TRANSCRIPTS)
        table = json.loads(Path(path).read_text())
        of_file = pd.read_parquet(world.folder / "transcripts.parquet")
        rows = pd.DataFrame(table["data"], columns=table["columns"]).sort_values("step", kind="stable")
        expected = of_file[of_file["trial"] == trial.id][table["columns"]]
        assert rows.to_dict("records") == expected.to_dict("records")


# The page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_shows_the_reward_its_outcomes_and_answers(
    world: World, size: tuple[int, int], open_page: Open
) -> None:
    opened = open_page(world.folder / "report.html", size)
    section = opened.page.locator("#rewarded")
    assert not opened.complaints and section.locator("section.figure").count() == 2
    assert section.locator("#outcomes tbody tr").last.inner_text().split()[:3] == ["No", "signal", "2"]
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    answers = pd.read_parquet(world.folder / "transcripts.parquet")
    shown = set(section.locator("dl.item dd").all_inner_texts())
    assert len(shown & set(answers["prompt"])) >= 3 and section.locator("dl.item").count() == 4
    assert overlaps(opened.page) == [] and sticking_out(opened.page) == []


def test_the_figures_hold_the_means_and_the_share_of_sampling_is_told(world: World) -> None:
    found = findings.read(world.folder, world.study)
    names = ["reward, easy", "reward, hard"]
    page = html.unescape((world.folder / "report.html").read_text())
    for name, figure in zip(names, rewarded.figures(found), strict=True):
        rows = [row | means(row) for row in found.results.sampled("samples", condition=name)]
        drawn = next(panel for panel in figure.panels if panel.title == "right in training").rows
        last = [row for row in rows if row["compute_flops"] == world.study.budgets[-1]]
        assert sorted(row["value"] for row in drawn) == sorted(row["right"] for row in last)
        (share,) = {run["sampling_flops_share"] for run in found.runs if run["arm"] == name}
        assert f"{share:.0%}".replace("%", " %") in figure.sentence and figure.sentence in page
        assert "dashed" not in figure.note  # no trunk has a start


def test_the_score_of_a_start_is_a_level_line(world: World, tmp_path: Path) -> None:
    """Planted: an evaluation at step 0, as a trunk has that begins with the weights of another trial."""
    trunk: TrunkSpec = next(trunk for trunk in world.study.trunks() if (trunk.arm, trunk.variant) == ("reward", "easy"))
    first = next(e for e in world.events if e["kind"] == "evaluation" and e["trunk"] == trunk.id)
    begun = first | {"key": f"{trunk.id}/trunk/0", "step": 0, "flops": 2e6, "sampled": None}
    folder = journal_of(tmp_path, world.study, [*world.events, begun])
    publisher.rewrite(folder)
    found = findings.read(folder, world.study)
    (figure,) = [one for one in rewarded.figures(found) if "easy" in one.title]
    emergence = curves.emergence(found)
    assert emergence is not None and curves.STARTED in figure.note and curves.STARTED in emergence.note
    assert (
        figure.panels[0].drawing.parts.count(next(p for p in figure.panels[0].drawing.parts if "thin dash" in p)) == 1
    )
    assert not any("thin dash" in part for panel in figure.panels[1:] for part in panel.drawing.parts)
    assert (folder / "samples.parquet").read_bytes() == (world.folder / "samples.parquet").read_bytes()
