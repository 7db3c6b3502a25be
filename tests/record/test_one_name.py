"""One name is one quantity: Parquet, data frames, the page and MLflow of one study hold the same figures under the same names."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_recorded import recorded

from orchestrator import OpenStudy, open_study
from orchestrator.analysis.measures import HEADLINE, MEASURES, RAW
from orchestrator.formatting import decimal
from orchestrator.record import mlflow_runs, publisher
from orchestrator.record.journal import Event, Journal, State
from orchestrator.study.schema import Study
from trainers.checkpoint import CURVES
from trainers.spec import TrunkSpec


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    """A recorded study, published as a whole."""
    folder = tmp_path_factory.mktemp("home") / "quickstart_cut@1"
    folder.mkdir()
    for name in ("journal.jsonl", "study.yaml"):
        (folder / name).write_bytes(recorded("quickstart_cut")[name])
    log = Journal(folder)
    for trunk in Study.from_record(State.of(folder).study or {}).trunks():
        log.append([telemetry(trunk, "trunk", [1, 2], 3.0), telemetry(trunk, repr(1.2e10), [10**6], 1.0)])
    log.close()
    publisher.publish(folder, uri_of(folder))
    return open_study("quickstart_cut@1", folder.parent)


def telemetry(trunk: TrunkSpec, on: str, steps: list[int], first: float) -> Event:
    """An event of telemetry, with a number of its own at each place."""
    curves = {name: [first + k + step for step in steps] for k, name in enumerate(CURVES)}
    event = {"kind": "telemetry", "key": f"{trunk.id}/telemetry/{on}/{steps[-1]}", "trunk": trunk.id, "on": on}
    event |= {"time": 9.0, "fingerprint": trunk.fingerprint(), "steps": steps, "times": [1.5 + s for s in steps]}
    return event | curves | {"system": []}


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder.parent / 'mlflow.db'}"


@pytest.fixture(scope="module")
def trials(study: OpenStudy) -> dict[str, Any]:
    """Trial id -> its MLflow run."""
    client = mlflow_runs.connect(uri_of(study.folder))
    experiment = client.get_experiment_by_name(study.id)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return {run.data.tags["emergence.key"]: run for run in found}


def test_a_name_of_the_journals_sums_is_a_name_nowhere_else(study: OpenStudy) -> None:
    """A raw name such as nll_nats means a sum in the journal: no table or frame has it, unless for the mean (brier)."""
    for names in (study.results.columns, study.runs.columns, pd.read_parquet(study.folder / "results.parquet").columns):
        assert not set(names) & (set(RAW.values()) - MEASURES.keys())
    assert "brier" not in pd.read_parquet(study.folder / "results.parquet").columns
    counts = [name for name in study.results.columns if name.startswith(("n_", "sum_")) and name != "n_tasks"]
    assert len(counts) > 15 and not set(counts) & set(MEASURES)


def test_parquet_and_frame_hold_the_same_sums_and_the_means_follow_from_them(study: OpenStudy) -> None:
    kept, frame = pd.read_parquet(study.folder / "results.parquet"), study.results
    pd.testing.assert_frame_equal(frame[kept.columns], kept)
    shares = {
        "accuracy": "n_correct",
        "loss_nats": "sum_nll_nats",
        "probability": "sum_p_correct",
        "brier": "sum_brier",
    }
    for mean, total in shares.items():
        np.testing.assert_allclose(frame[mean], kept[total] / kept["n"], rtol=1e-12)
    gap = kept["sum_nll_uniform"] - kept["sum_nll_generalizer"]
    known = frame["ability"].notna()
    assert known.sum() > 500
    ability = (kept["sum_nll_uniform"] - kept["sum_nll_nats"]) / gap
    np.testing.assert_allclose(frame["ability"][known], ability[known], rtol=1e-9)


def test_the_page_shows_the_means_of_the_frames_cell_by_cell(study: OpenStudy) -> None:
    """Read from the page's text: each surface describes its cells for readers who cannot see it."""
    page = html.unescape((study.folder / "report.html").read_text())
    for measure in HEADLINE:
        surface = study.surface(measure)
        expected = study.runs.groupby(["n_tasks", "compute_flops"])[measure].mean().unstack()
        np.testing.assert_allclose(surface, expected, rtol=1e-12)
        drawn = [label for label in re.findall(r'aria-label="([^"]*)"', page) if label.lower().startswith(measure)]
        for n_tasks, cells in zip(surface.index, surface.to_numpy(), strict=True):
            words = ", ".join(decimal(None if np.isnan(value) else value) for value in cells)
            assert f": {words}." in drawn[0], (measure, n_tasks)


def test_the_pages_files_hold_the_frames_figures(study: OpenStudy) -> None:
    drawn = pd.read_csv(study.folder / "figures" / "surface.csv").dropna(subset="value")
    place = ["condition", "n_tasks", "compute_flops", "replicate"]
    (measure,) = set(drawn["measure"])
    both = drawn.merge(study.runs, on=place)
    assert len(both) == 60
    np.testing.assert_allclose(both["value"], both[measure], rtol=1e-12)
    trials = pd.read_csv(study.folder / "figures" / "trials.csv", dtype=str)
    for name in HEADLINE:
        assert trials[name.capitalize()].tolist() == [decimal(value, 3) for value in study.runs[name]]
    kept = pd.read_csv(study.folder / "summary.csv")
    for column in ("estimate", "low", "high", "n", "p"):
        np.testing.assert_allclose(study.findings[column].astype(float), kept[column], rtol=1e-12)


def test_mlflow_has_the_headline_measures_of_each_trial_without_prefix(
    study: OpenStudy, trials: dict[str, Any]
) -> None:
    for run in study.runs.to_dict("records"):
        metrics = trials[run["trial"]].data.metrics
        for measure in HEADLINE:
            known = not np.isnan(run[measure])
            assert (measure in metrics) == known, (run["trial"], measure)
            assert not known or metrics[measure] == pytest.approx(run[measure], rel=1e-12)


def test_mlflow_has_the_means_of_each_skill_and_split_by_their_names(study: OpenStudy, trials: dict[str, Any]) -> None:
    ends = study.results[study.results["phase"] == "final"]
    compared = 0
    for row in ends.to_dict("records"):
        metrics = trials[row["trial"]].data.metrics
        for measure in MEASURES:
            if (value := metrics.get(f"{row['split']}/{row['skill']}/{measure}")) is not None:
                assert value == pytest.approx(row[measure], rel=1e-12)
                compared += 1
        grouped = {name.rpartition("/")[2] for name in metrics if name.startswith(("held_out/", "seen/"))}
        assert grouped <= MEASURES.keys() and {"accuracy", "ability", "loss_nats"} <= grouped
    assert compared > 1000


def test_mlflows_training_curves_are_those_of_the_telemetry_frame(study: OpenStudy, trials: dict[str, Any]) -> None:
    """`train/loss_nats` is `train_loss_nats` of the frame, whose plain `loss_nats` would be that of evaluation items."""
    assert not set(study.telemetry.columns) & MEASURES.keys()
    client, trial = (
        mlflow_runs.connect(uri_of(study.folder)),
        study.runs[study.runs["compute_flops"] == 1.2e10].iloc[-1],
    )
    frame = study.telemetry[study.telemetry["trunk"] == trial["trunk"]]
    assert len(frame) == 3
    for name in CURVES:
        points = client.get_metric_history(trials[trial["trial"]].info.run_id, f"train/{name}")
        column = frame["train_loss_nats" if name == "loss_nats" else name]
        shown = frame["compute_flops"].isna() | (frame["compute_flops"] == trial["compute_flops"])
        assert {p.step: p.value for p in points} == dict(zip(frame["step"][shown], column[shown], strict=True))
        assert len(points) == 3
