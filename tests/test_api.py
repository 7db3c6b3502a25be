"""Studies from Python: the frames hold what the journal holds, and errors are those of the command line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE_SECONDS
from test_cli import inside
from test_end_to_end import TINY
from test_recorded import recorded

from orchestrator import OpenStudy, StudyFailed, api, open_study, run_study
from orchestrator.analysis.measures import MEASURES, of_rows
from orchestrator.console.checks import UsageProblem
from orchestrator.record import lease, publisher, tables
from orchestrator.record.journal import Journal, State
from orchestrator.record.recorded import trial_evaluations
from orchestrator.report import palette
from trainers.checkpoint import POINT

ROOT = Path(__file__).parent.parent


def laid_out(home: Path, name: str, events: int | None = None) -> Path:
    """The folder of a recorded study in a home, with the first lines of its journal only."""
    folder = home / f"{name}@1"
    folder.mkdir(parents=True, exist_ok=True)
    lines = recorded(name)["journal.jsonl"].splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:events]))
    (folder / "study.yaml").write_bytes(recorded(name)["study.yaml"])
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with recorded studies, and the files that are made from them."""
    home = tmp_path_factory.mktemp("home")
    for name in ("quickstart_cut", "teach_cut"):
        publisher.rewrite(laid_out(home, name))
    return home


@pytest.fixture(scope="module", params=["quickstart_cut", "teach_cut"])
def study(request: pytest.FixtureRequest, home: Path) -> OpenStudy:
    return open_study(f"{request.param}@1", home)


def alone(script: str, **options: Any) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, **options).stdout


def test_importing_loads_nothing_of_its_own_and_opening_nothing_heavy() -> None:
    script = "import sys; before = {*sys.modules}; import orchestrator; print(*({*sys.modules} - before))"
    new = {name.partition(".")[0]: name for name in alone(script, cwd=ROOT).split()}
    assert new.keys() - sys.stdlib_module_names == {"orchestrator"} and len(new) < 10
    heavy = "{'torch', 'deepspeed', 'ray', 'mlflow', 'pandas', 'scipy', 'pyarrow'}"
    script = f"import sys; from orchestrator import open_study; open_study('quickstart'); print(*({heavy} & sys.modules.keys()))"
    assert alone(script, cwd=ROOT).split() == []


def test_results_hold_the_journals_counts_sums_and_means(study: OpenStudy) -> None:
    """Every row is looked up in the journal itself, and its means are computed from that row alone."""
    frame = study.results
    state, trials = State.of(study.folder), {t.id: t for t in study.definition.trials()}
    ability_of = study.definition.family.ability_of  # type: ignore[attr-defined]
    seen = 0
    for trial, rows in frame.groupby("trial"):
        known = {}
        for phase, event in trial_evaluations(state, trials[trial]):
            for row in event["rows"]:
                known[phase, event["step"], row["skill"], row["split"]] = row
        for row in rows.iloc[:: 1 + len(rows) // 10].to_dict("records"):
            raw = known[row["phase"], row["step"], row["skill"], row["split"]]
            assert row["condition"] == study.definition.condition_of(row["arm"], row["variant"])
            for column, value in (("n", "n"), ("n_correct", "n_correct"), ("sum_nll_nats", "nll_nats")):
                assert row[column] == raw[value] or (raw[value] is None and np.isnan(row[column]))
            for measure in MEASURES:
                (value,) = of_rows(measure, [raw], ability_of)
                np.testing.assert_equal(row[measure], np.nan if value is None else value)
            seen += 1
        assert len(rows) == len(known)
    assert seen > 300


def test_frames_begin_with_the_place_and_have_every_column_of_the_files(study: OpenStudy) -> None:
    for frame, name in ((study.results, "results"), (study.runs, "runs")):
        assert list(frame.columns[:4]) == ["condition", "n_tasks", "compute_flops", "replicate"]
        kept = pd.read_parquet(study.folder / f"{name}.parquet")
        pd.testing.assert_frame_equal(frame[kept.columns], kept)
    assert study.runs["n_tasks"].iloc[0] == min(study.definition.axes.n_tasks)
    assert study.results_arrow.to_pandas().equals(study.results)


def test_every_column_is_documented(study: OpenStudy) -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    for frame in (study.results, study.runs, study.findings, study.telemetry, study.tasks, study.examples):
        assert [name for name in frame.columns if f"`{name}`" not in text] == []


def test_runs_have_the_headline_measures_of_their_trial(study: OpenStudy) -> None:
    results, runs = study.results, study.runs.set_index("trial")
    headline = study.definition.shown_skills[0]
    ends = results[(results["phase"] == "final") & (results["skill"] == headline) & (results["split"] == "held_out")]
    for measure in ("ability", "accuracy"):
        pd.testing.assert_series_equal(runs[measure], ends.set_index("trial")[measure].reindex(runs.index))
    branch = results[(results["phase"] == "pre_decay") & (results["split"] == "seen")]
    mixture = branch[branch["skill"] == study.definition.family.mixture].set_index("trial")  # type: ignore[attr-defined]
    pd.testing.assert_series_equal(runs["memory"], mixture["memory"].reindex(runs.index))


def test_findings_are_the_rows_of_the_summary_and_the_first_is_the_primary_claim(study: OpenStudy) -> None:
    kept = pd.read_csv(study.folder / "summary.csv")
    assert study.findings["question"].tolist() == kept["question"].tolist()
    for column in ("estimate", "low", "high", "p"):
        np.testing.assert_allclose(study.findings[column].astype(float), kept[column], rtol=1e-12)
    primary = study.primary
    assert primary is not None and primary["question"] == "primary claim" and primary["verdict"] == kept["verdict"][0]


def test_a_surface_is_the_one_of_the_page(study: OpenStudy) -> None:
    drawn = pd.read_csv(study.folder / "figures" / "surface.csv")
    drawn = drawn[drawn["measure"] == "ability"]
    conditions = list(study.definition.conditions)
    for condition in conditions:
        surface = study.surface() if len(conditions) == 1 else study.surface()[condition]
        rows = drawn[drawn["condition"] == condition]
        expected = rows.groupby(["n_tasks", "compute_flops"])["value"].mean().unstack()
        pd.testing.assert_frame_equal(surface, expected, rtol=1e-12, check_index_type=False)
        html = study._repr_html_()
        assert all(f">{value:.2f}<".replace("-", "−") in html for value in surface.to_numpy().ravel() if value > 0.005)
    assert study.answer in html.replace("&#39;", "'")


def test_figures_are_those_of_the_page_and_their_style_stays_inside(study: OpenStudy, tmp_path: Path) -> None:
    kept = {path.stem for path in (study.folder / "figures").glob("*.svg")}
    assert kept == study.figures.keys() >= {"surface", "emergence"}
    for name, figure in study.figures.items():
        for suffix in (".svg", ".csv"):
            made = figure.save(tmp_path / f"{name}{suffix}")
            assert made.read_bytes() == (study.folder / "figures" / made.name).read_bytes()
        shown = figure._repr_svg_()
        style = shown[shown.index("<style>") + 7 : shown.index("</style>")]
        rules = style.replace("@media screen and (prefers-color-scheme: dark){", "")
        selectors = [s for rule in rules.split("}") if "{" in rule for s in rule.split("{")[0].split(",")]
        assert len(selectors) > 200 and all(s.startswith(f".{palette.NOTEBOOK}") for s in selectors)
        assert f'class="{palette.NOTEBOOK}"' in shown.split(">")[0] and palette.DARK.paper in style
    with pytest.raises(ValueError, match=r"\.svg or \.csv"):
        figure.save(tmp_path / "x.png")


def test_a_growing_journal_shows_without_any_call(tmp_path: Path) -> None:
    lines = recorded("quickstart_cut")["journal.jsonl"].splitlines(keepends=True)
    folder = laid_out(tmp_path, "quickstart_cut", len(lines) // 2)
    study = open_study("quickstart_cut@1", tmp_path)
    before, said = study.runs, study.answer
    assert 0 < (before["status"] == "done").sum() < len(before) and said.startswith("So far")
    assert before[before["status"] == "open"]["ability"].isna().all()
    with open(folder / "journal.jsonl", "ab") as file:
        file.writelines(lines[len(lines) // 2 :])
    assert (study.runs["status"] == "done").all() and len(study.results) > 0 and study.answer != said
    frame = study.results
    frame["ability"] = 0.0
    assert (study.results["ability"] != 0.0).any()


def reported(trunk: Any, on: str, steps: list[int], loss: float, system: list[dict[str, Any]]) -> dict[str, Any]:
    """An event of telemetry, as a worker emits it."""
    n = len(steps)
    event = {"kind": "telemetry", "key": f"{trunk.id}/telemetry/{on}/{steps[-1]}", "trunk": trunk.id, "on": on}
    event |= {"time": 9.0, "fingerprint": trunk.fingerprint(), "steps": steps, "times": [1.5 + s for s in steps]}
    numbers = {"loss_nats": [loss] * n, "learning_rate": [0.1] * n, "grad_norm": [None] * n}
    return event | numbers | {"tokens_per_second": [7.0] * n, "mfu": [0.5] * n, "system": system}


def test_telemetry_has_each_point_once_and_the_load_of_the_workers(tmp_path: Path) -> None:
    folder = laid_out(tmp_path, "quickstart_cut")
    study = open_study("quickstart_cut@1", tmp_path)
    assert len(study.telemetry) == 0 and "train_loss_nats" in study.telemetry and "loss_nats" not in study.telemetry
    trunk = study.definition.trunks()[0]
    loads = [
        {"cpu_percent": cpu, "memory_mb": cpu / 10, "gpu_percent": None, "gpu_memory_mb": None} for cpu in (50.0, 100.0)
    ]
    log = Journal(folder)
    log.append([reported(trunk, "trunk", [1, 2], 3.0, loads), reported(trunk, repr(1.2e10), [3], 1.0, loads[:1])])
    log.append([reported(trunk, "trunk", [2, 3], 4.0, loads)])  # resumed: step 2 comes again
    late = reported(trunk, "trunk", [70], 0.0, loads) | {name: [] for name in POINT} | {"step": 70}
    log.append([late])  # the load alone
    log.close()
    points = study.telemetry
    row = points[points["step"] == 70].iloc[0]
    assert (row["cpu_percent"], row["memory_mb"], row["time"]) == (75.0, 10.0, pd.Timestamp(9.0, unit="s", tz="UTC"))
    assert pd.isna(row["train_loss_nats"])
    points = points.dropna(subset="train_loss_nats").reset_index()
    assert points["step"].tolist() == [1, 2, 3, 3] and points["train_loss_nats"].tolist() == [3.0, 3.0, 4.0, 1.0]
    assert points["compute_flops"].isna().tolist() == [True, True, True, False] and points["grad_norm"].isna().all()
    np.testing.assert_equal(points["cpu_percent"].to_numpy(), [np.nan, 75.0, 75.0, 50.0])
    np.testing.assert_equal(points["memory_mb"].to_numpy(), [np.nan, 10.0, 10.0, 5.0])
    assert points["gpu_percent"].isna().all() and points["time"][0] == pd.Timestamp(2.5, unit="s", tz="UTC")
    assert set(points["trunk"]) == {trunk.id} and set(points["condition"]) == {"answer"}


def test_a_study_that_has_not_run_has_a_plan_and_empty_frames(tmp_path: Path) -> None:
    study = open_study("quickstart", tmp_path / "home")
    plan = study.plan(slots=2)
    assert (plan.n_trials, plan.n_open, plan.slots) == (72, 72, 2) and plan.train_flops == pytest.approx(
        1.35e13, rel=0.01
    )
    assert len(study.results) == 0 and {"ability", "sum_nll_nats"} <= set(study.results.columns)
    assert len(study.runs) == 72 and set(study.runs["status"]) == {"open"}
    assert study.surface().isna().all().all() and study.surface("memory").shape == (6, 4)
    assert study.answer.startswith("Nothing") and study._repr_html_()
    assert not (tmp_path / "home").exists()


BAD = ["quickstat", "nowhere/x.yaml", "small@1", "quickstart_cut@7", ".", "bad.yaml"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_or_file_raises_the_words_of_the_command_line(name: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("study: bad\nversion: 1\nquestio: What?\n")
    name = name if name != "bad.yaml" else str(tmp_path / name)
    with pytest.raises(StudyFailed) as failed:
        open_study(name, home)
    command = "report" if "@" in name else "plan"
    said = inside(command, name, home=home)
    assert (failed.value.exit_code, f"{failed.value}\n") == (said.returncode, said.stderr)
    assert failed.value._render_traceback_() == [f"StudyFailed: {failed.value}"] and failed.value.__suppress_context__


def test_the_home_that_is_given_is_used_and_the_environment_is_left_as_it_was(home: Path, monkeypatch: Any) -> None:
    for before in (None, "elsewhere"):
        monkeypatch.delenv("EMERGENCE_HOME", raising=False)
        if before:
            monkeypatch.setenv("EMERGENCE_HOME", before)
        study = open_study("quickstart_cut@1", home)
        assert study.folder == home / "quickstart_cut@1" and os.environ.get("EMERGENCE_HOME") == before
        with pytest.raises(StudyFailed):
            open_study("quickstart_cut@1")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_every_option_of_a_command_is_an_option_here_by_the_same_name(command: str) -> None:
    """Whatever options the command has: each is given, and read again as the command reads it."""
    names = [p.name for p in api._parameters(command) if p.param_type_name == "option"]
    assert {"slots", "device", "storage"} <= set(names)
    for name in names:
        assert any(read_again(command, name, value) == value for value in (True, 7, "cuda")), name
        default = api._parsed(command, [])[name]
        assert read_again(command, name, default) == default


def test_a_plan_reads_every_option_that_the_command_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the command gets an option that a plan from Python takes and ignores."""
    read = set()

    class Given(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            read.add(name)
            return super().__getitem__(name)

    parsed = api._parsed
    monkeypatch.setattr(api, "_parsed", lambda command, words: Given(parsed(command, words)))
    open_study("quickstart", tmp_path).plan(slots=2)
    assert read == {p.name for p in api._parameters("plan")} - {"study_name"}
    assert open_study("quickstart", tmp_path).plan(slots=2, max_flops=1e12).max_flops == 1e12
    with pytest.raises(StudyFailed, match="max-flops"):
        open_study("quickstart", tmp_path).plan(max_flops=-1.0)


def read_again(command: str, name: str, value: Any) -> Any:
    """An option as the command reads it; None if it refuses the value."""
    try:
        return api._parsed(command, api._words(command, {name: value}))[name]
    except UsageProblem:
        return None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"slot": 2}, "'slots'"),
        ({"device": "tpu"}, "device"),
        ({"slots": 0}, "slots"),
        ({"keep_weights": "no"}, "True or False"),
    ],
)
def test_a_bad_option_is_refused_before_anything_starts(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(StudyFailed, match=named) as failed:
        run_study("quickstart", tmp_path, **options)
    assert failed.value.exit_code == 2 and "\n" not in str(failed.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"measure": "abilty"}, {"skill": "recal"}])
def test_an_unknown_measure_or_skill_names_the_nearest(options: dict[str, str], home: Path) -> None:
    with pytest.raises(StudyFailed, match=r"did you mean '(ability|recall)'"):
        open_study("quickstart_cut@1", home).surface(**options)


def test_a_refusal_of_the_command_is_the_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyFailed, match="s3:/x") as failed:
        run_study("quickstart", tmp_path / "home", storage="s3:/x")
    assert failed.value.exit_code == 2 and "s3:/x" not in capfd.readouterr().err


SCRIPT = """
import sys
from orchestrator import run_study
run_study(sys.argv[1], sys.argv[2], slots=2, checkpoint_seconds=0.5)
"""


@pytest.mark.end_to_end
def test_an_interrupt_stops_the_run_cleanly_and_a_further_call_resumes_it(tmp_path: Path, capfd: Any) -> None:
    (file := tmp_path / "tiny.yaml").write_text(TINY)
    folder = tmp_path / "home" / "tiny@1"
    command = [sys.executable, "-c", SCRIPT, str(file), str(tmp_path / "home")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not State.of(folder).evaluations:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)  # to this process alone, as a notebook may
    out, err = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == -signal.SIGINT and "KeyboardInterrupt: the run has stopped" in err and "tiny@1" in out
    assert not lease.is_held(folder)
    study = open_study(file, tmp_path / "home")
    left = study.plan(slots=2).n_open
    assert study.run(slots=2) is study and (study.runs["status"] == "done").all() and left > 0
    assert f"{left} of {left} trials" in capfd.readouterr().out or left < 12
    assert study.plan(slots=2).n_open == 0 and study.results["ability"].notna().any()
    kept = io.BytesIO((folder / "results.parquet").read_bytes())
    pd.testing.assert_frame_equal(study.results[tables.RESULTS.names], pd.read_parquet(kept))
    assert json.loads((folder / "published.json").read_text())["mlflow"]
