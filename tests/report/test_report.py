"""The report: one page that answers first, whatever is missing, and its figures as files."""

from __future__ import annotations

import csv
import functools
import io
import math
import re
import tarfile
import xml.etree.ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import synthetic

from orchestrator.analysis import answer, findings, means
from orchestrator.analysis.findings import Findings
from orchestrator.formatting import number
from orchestrator.record import publisher
from orchestrator.record.tables import RESULTS, RUNS
from orchestrator.report import curves, palette, surface, tables
from orchestrator.report import page as report_page
from orchestrator.study.reader import load
from orchestrator.study.schema import Study
from trainers.tasks import family_from

Value = Callable[[int, float, int], float | None]  # (n_tasks, budget, replicate) -> value

N = 200  # positions a row sums over
UNIFORM, GENERALIZER, MEMORIZER = math.log(16), 1.2, 0.1  # nats a position


def study_of(**changes: Any) -> Study:
    """A cipher study over three numbers of tasks and two budgets; `changes` go to its top level or to its axes."""
    axes = {"arm": ("answer",), "n_tasks": (4, 64, 10**12), "compute_flops": (1e11, 8e11), "replicates": 3}
    axes |= {k: changes.pop(k) for k in list(changes) if k in axes}
    record = {"study": "made_up", "version": 2, "question": "From how many tasks on?", "expectation": "From 64 on."}
    record |= {"family": {"name": "cipher"}, "axes": axes, "training": {"schedule": "wsd", "decay_share": 0.2}}
    record |= changes
    return Study.model_validate(record | {"family": family_from(record["family"])})


def rising(n_tasks: int, budget: float, replicate: int) -> float:
    """The skill appears between 4 and 64 tasks, from the larger budget on."""
    return 0.97 - 0.01 * replicate if n_tasks >= 64 and budget > 2e11 else -0.6


def falling(n_tasks: int, budget: float, replicate: int) -> float | None:
    """4 tasks are memorised; a trillion cannot be enumerated."""
    return None if n_tasks > 4096 else 0.9 if n_tasks < 10 else -0.3


def row_of(skill: str, split: str, nll: float | None, hits: float | None, **references: Any) -> dict[str, Any]:
    """A row of raw sums from means a position."""
    row = {
        "skill": skill,
        "split": split,
        "n": N,
        "sum_brier": 1.0 * N,
        "se_ability_gap": 0.001,
        "se_memory_gap": 0.001,
    }
    row |= {"sum_nll_nats": None if nll is None else nll * N, "n_correct": None if hits is None else round(hits * N)}
    row |= {"sum_p_correct": None if hits is None else hits * N}
    for name, (loss, right) in references.items():
        row |= {f"sum_nll_{name}": loss * N, f"sum_correct_{name}": right * N}
    return row


def rows_at(ability: float | None, memory: float | None) -> list[dict[str, Any]]:
    """What cipher's suite would give for this ability of every skill and this memory of the training tasks."""
    uniform, rule = {"uniform": (UNIFORM, 1 / 16)}, {"generalizer": (0.0, 1.0)}
    known = {} if memory is None else {"memorizer": (MEMORIZER, 0.3)}
    nll = None if ability is None else (1 - ability) * UNIFORM
    hits = None if ability is None else min(max(ability, 0.06), 1.0)
    mixture_nll = GENERALIZER if memory is None else GENERALIZER - memory * (GENERALIZER - MEMORIZER)
    both = [row_of(s, "held_out", nll, hits, **uniform, **rule, **known) for s in ("recall", "recall_function")]
    return [
        *both,
        row_of("elimination", "held_out", nll, hits, uniform=(UNIFORM, 1 / 16), generalizer=(UNIFORM - 0.05, 0.1)),
        row_of("recall", "seen", 0.1, 0.98, **uniform, **rule, **known),
        row_of("mixture", "seen", mixture_nll, 0.5, **uniform, generalizer=(GENERALIZER, 0.5), **known),
        row_of("override", "seen", nll, hits, **uniform, **rule, **known),
        row_of("override_memory", "seen", 1.0, None if hits is None else 1 - hits, **uniform, **known),
    ]


def found_of(
    study: Study,
    ability: Value = rising,
    memory: Value = falling,
    status: Callable[[int, float, int], str] = lambda n, c, r: "done",
) -> Findings:
    """Findings of a study whose every trial has two looks along its trunk, one at its branch and one at its end."""
    rows, runs = [], []
    for trial in study.trials():
        n, c, r = trial.n_tasks, trial.compute_flops, trial.replicate
        axes = {"trial": trial.id, "trunk": trial.trunk.id, "arm": trial.arm}
        axes |= {"n_tasks": n, "compute_flops": c, "replicate": r}
        became, steps = status(n, c, r), round(c / 1e9)
        phases = [("trunk", 0.2), ("trunk", 0.5), ("pre_decay", 0.8), ("final", 1.0)]
        for phase, share in {"done": phases, "diverged": phases[:2]}.get(became, []):
            along = {"step": round(share * steps), "flops": share * c, "phase": phase, "mean_train_loss_nats": 2.0}
            rows += [axes | along | row for row in rows_at(ability(n, c, r), memory(n, c, r))]
        run: dict[str, Any] = {"status": became, "fingerprint": "f" * 20}
        if became in ("done", "diverged"):
            run |= {"steps": steps, "sequences": 32 * steps, "distinct_tasks": min(n, 32.0 * steps), "attempt": 1}
            run |= {"flops_own": c, "flops_run": 0.6 * c, "eval_flops": 0.05 * c, "ended": 1_700_000_400_000 + r}
            run |= {"train_seconds": 20.0, "eval_seconds": 2.5, "host": "machine", "device": "cpu", "commit": "c" * 40}
        if became in ("failed", "diverged"):
            run["reason"] = "step 7: loss was not finite"
        runs.append(axes | run)
    tables = [pa.Table.from_pylist(rows, schema=RESULTS), pa.Table.from_pylist(runs, schema=RUNS)]
    return findings.find(study, *tables)


SESSION = {
    "kind": "session",
    "session": "abc",
    "time": 1_700_000_000.0,
    "host": "machine",
    "machine": "Some CPU, 2 cores, Linux",
    "commit": "c" * 40 + "+changes",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "options": {"device": "cpu"},
}


VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """A page in parts: its words, those outside the fold, its links, its elements by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.first: list[str] = []
        self.links: list[str] = []
        self.styles: list[str] = []
        self.script = ""
        self.tags: list[str] = []
        self.metas: list[dict[str, str | None]] = []
        self.ids: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        of = dict(attributes)
        if tag == "meta":
            self.metas.append(of)
        self.links += [
            of[name] or "" for name in ("src", "href", "xlink:href", "data", "srcset", "action") if name in of
        ]
        self.styles += [of["style"] or ""] if "style" in of else []
        self.words += [of["aria-label"] or ""] if "aria-label" in of else []
        if of.get("id"):
            self.ids[of["id"] or ""] = ""
        if tag not in VOID:
            self._open.append((tag, of.get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            while self._open and self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if "script" in inside:
            self.script += data
        elif "style" in inside:
            self.styles.append(data)
        elif "title" not in inside or "svg" in inside:
            self.words.append(data)
            if "details" not in inside:
                self.first.append(data)
            for _, name in self._open:
                if name:
                    self.ids[name] += data


def page_of(
    folder: Path, found: Findings, sessions: list[dict[str, Any]] | None = None, links: dict[str, Any] | None = None
) -> Page:
    path = report_page.write(folder, found, [SESSION] if sessions is None else sessions, links)
    assert path == folder / "report.html"
    return Page(path.read_text())


def rows_in(folder: Path, figure: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "figures" / f"{figure}.csv").read_text())))


CASES: dict[str, Callable[[], Findings]] = {
    "as usual": lambda: found_of(study_of()),
    "nothing has ended": lambda: found_of(study_of(), status=lambda n, c, r: "open"),
    "everything diverged": lambda: found_of(study_of(), status=lambda n, c, r: "diverged"),
    "everything failed": lambda: found_of(study_of(), status=lambda n, c, r: "failed"),
    "one replicate": lambda: found_of(study_of(replicates=1)),
    "one budget": lambda: found_of(study_of(compute_flops=(8e11,))),
    "one number of tasks": lambda: found_of(study_of(n_tasks=(64,))),
    "one of everything": lambda: found_of(study_of(n_tasks=(1,), compute_flops=(8e11,), replicates=1)),
    "a cell is missing": lambda: found_of(
        study_of(), status=lambda n, c, r: "open" if (n, c) == (64, 8e11) else "done"
    ),
    "replicates are missing": lambda: found_of(study_of(), status=lambda n, c, r: "failed" if r == n % 3 else "done"),
    "memory is defined nowhere": lambda: found_of(study_of(), memory=lambda n, c, r: None),
    "nothing is learned": lambda: found_of(study_of(), lambda n, c, r: 0.01 * r, lambda n, c, r: -1.0),
    "the skill is there from the start": lambda: found_of(study_of(), lambda n, c, r: 1.0, lambda n, c, r: 1.0),
    "predictions are not finite": lambda: found_of(study_of(), lambda n, c, r: None if n == 4 else 0.9),
    "replicates disagree": lambda: found_of(study_of(), lambda n, c, r: float(r == 0 or (r == 1 and n > 64))),
    "two arms": lambda: found_of(study_of(arm=("answer", "next_token"))),
    "a constant rate": lambda: found_of(study_of(training={"schedule": "constant"})),
}


class Written(NamedTuple):
    """A report that several tests look at."""

    found: Findings
    folder: Path
    page: Page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """A case's report, written once."""

    @functools.cache
    def write(case: str) -> Written:
        found, folder = CASES[case](), tmp_path_factory.mktemp("report")
        return Written(found, folder, page_of(folder, found))

    return write


Reports = Callable[[str], Written]


# The page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_missing_the_page_answers_and_prints_no_missing_value_as_one(case: str, written: Reports) -> None:
    found, _, page = written(case)
    assert not re.search(r"\b(nan|NaN|None|null|inf|Infinity)\b|\{\{|\{%", page.text)
    assert " ".join(page.ids["answer"].split()) == answer.sentence(found)
    assert found.study.question in page.text and found.study.expectation in page.ids["sure"]
    for value in (*found.study.axes.n_tasks, *found.study.axes.compute_flops):
        assert number(value) in page.ids["surface"], value


@pytest.mark.parametrize("case", CASES)
def test_the_page_stands_alone(case: str, written: Reports) -> None:
    _, folder, page = written(case)
    beside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert all(re.fullmatch(r"figures/\w+\.(svg|csv)", link) and (folder / link).exists() for link in beside)
    assert not re.search(r"@import|url\((?!['\"]?(#|data:))", " ".join(page.styles))
    assert not {"iframe", "object", "embed", "img"} & set(page.tags)
    assert not re.search(r"\beval\b|\bFunction\b|\bfetch\b|XMLHttpRequest|import\(|</", page.script)
    assert sum(path.is_file() for path in folder.iterdir()) == 1  # and no temporary file stays


def test_links_within_the_page_lead_somewhere(written: Reports) -> None:
    for case in CASES:
        page = written(case).page
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids), case


def test_a_page_reloads_itself_only_while_its_study_runs(written: Reports, tmp_path: Path) -> None:
    found = written(next(iter(CASES))).found
    for running in (False, True):
        text = report_page.write(tmp_path, found, [], running=running).read_text()
        assert text.count('http-equiv="refresh" content="60"') == running


def test_an_unfinished_page_says_so_far(written: Reports) -> None:
    for case in CASES:
        found, _, shown = written(case)
        waits = any(run["status"] == "open" for run in found.runs)
        assert shown.ids["progress"].startswith("so far: ") == waits, case


def test_an_unfinished_page_counts_the_trials_that_have_ended(written: Reports) -> None:
    assert "15 of 18 trials" in written("a cell is missing").page.ids["progress"]


def test_a_claim_is_a_badge_that_leads_to_its_details(tmp_path: Path) -> None:
    declared = {"what": "k_ability", "compute_flops": 8e11, "lo": 4, "hi": 1e12}
    found = found_of(study_of(primary=declared))
    page = page_of(tmp_path, found)
    assert found.primary is not None and "#claim" in page.links
    assert found.primary.verdict in " ".join(page.first) and found.primary.finding.sentence in page.ids["claim"]


def test_one_measure_is_shown_first_and_the_others_are_a_switch_away(written: Reports) -> None:
    whole = written("as usual").page
    assert {"by-ability", "by-accuracy", "by-memory"} <= set(whole.ids)
    none = written("memory is defined nowhere").page
    assert "by-accuracy" in none.ids and "by-memory" not in none.ids


def test_questions_without_a_test_are_one_count_and_no_rows(written: Reports) -> None:
    found, _, page = written("as usual")
    untested = sum(one.significance == "untested" for one in found.findings)
    assert untested > 10 and str(untested) in page.ids["claim"] and "untested" not in page.text
    shown = [row[0] for table in tables.finding_tables(found) for row in table.rows]
    assert shown and not [words for words in shown if "not settled" in words or "open whether" in words]


def test_a_table_for_each_question_has_the_findings_with_an_answer(written: Reports) -> None:
    found, _, page = written("as usual")
    for one in (*found.of("K_A", skill="recall"), *found.of("K_M")):
        sentence = f"{one.sentence[0].upper()}{one.sentence[1:]}"
        assert (sentence in page.ids["sure"]) == (one.verdict in ("beyond", "below") or one.has_interval), sentence


def test_expected_values_stand_beside_measured_ones(tmp_path: Path) -> None:
    cell = {"n_tasks": 64, "compute_flops": 8e11}
    expected = {
        "what": "accuracy",
        "cell": cell,
        "value": 0.95,
        "lo": 0.9,
        "hi": 1.0,
        "source": "a paper",
        "evidence": "V",
    }
    found = found_of(study_of(expected=(expected,)))
    (one,) = found.of("expected ")
    assert one.sentence[1:] in page_of(tmp_path, found).ids["expected_values"] and one.verdict == "consistent"


def test_the_same_record_gives_the_same_bytes(written: Reports, tmp_path: Path) -> None:
    _, before, _ = written("as usual")
    page_of(tmp_path, CASES["as usual"]())
    files = sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        assert (before / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("old.png", "old.svg", "old.csv", "mine.txt"):
        (tmp_path / "figures" / name).write_text("")
    page_of(tmp_path, CASES["as usual"]())
    assert {path.name for path in (tmp_path / "figures").iterdir() if path.stem in ("old", "mine")} == {"mine.txt"}


def test_text_from_a_study_is_escaped(tmp_path: Path) -> None:
    page = page_of(tmp_path, found_of(study_of(question="Is <b>1 & 2</b> {{ 3 }}?")))
    assert "Is <b>1 & 2</b> {{ 3 }}?" in page.text


def test_trials_lead_to_their_mlflow_runs_where_the_address_is_one(tmp_path: Path) -> None:
    found = CASES["as usual"]()
    runs = {run["trial"]: f"#/runs/{i}" for i, run in enumerate(found.runs) if i}
    page = page_of(tmp_path, found, links={"base": "https://host:5000/", "runs": runs})
    assert [link for link in page.links if link.startswith("http")] == [
        f"https://host:5000/{run}" for run in runs.values()
    ]
    page = page_of(tmp_path, found, links={"base": "javascript:alert(1)//", "runs": runs})
    assert not [link for link in page.links if "alert" in link]


def test_provenance_adds_up_and_survives_a_missing_session(written: Reports) -> None:
    found = written("as usual").found
    facts = dict(tables.provenance(found, [SESSION]))
    assert facts["Commit"] == "c" * 12 and facts["Sessions"] == "1"
    train = sum(run["flops_run"] for run in found.runs)
    assert number(train) in facts["Training"]
    assert dict(tables.provenance(found, []))["Sessions"] == "0"


def test_the_page_of_a_running_study_is_written_once_for_the_trials_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(Path(__file__).parents[1] / "recorded" / "quickstart_cut.tar.xz") as archive:
        (member,) = (m for m in archive if m.name.endswith("journal.jsonl"))
        lines = archive.extractfile(member).read().splitlines(keepends=True)  # type: ignore[union-attr]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))

    def down(*_: Any) -> Any:
        raise OSError("MLflow is down")

    closed, pages = iter([False, False, True]), []
    write = publisher._write_report

    def count(folder: Path, found: Findings, state: Any, running: bool = False) -> Path:
        pages.append(Page(write(folder, found, state, running).read_text()))
        return folder

    for name, value in {
        "PAGE_SECONDS": 0.0,
        "PAGE_SHARE": 1e9,
        "_stdin_closed": lambda _: next(closed),
        "MlflowRecord": down,
        "publish_runs": down,
        "_write_report": count,
    }.items():
        monkeypatch.setattr(publisher, name, value)
    with pytest.raises(OSError, match="MLflow is down"):
        publisher.publish(tmp_path, "sqlite://", follow=True)
    assert len(pages) == 2 and all(page.ids["progress"].startswith("so far: ") for page in pages)


def test_ten_thousand_trials_make_a_page_that_can_be_mailed(tmp_path: Path) -> None:
    levels, budgets = tuple(2**k for k in range(20)), tuple(1e9 * 2**k for k in range(25))
    study = synthetic.made_up(n_tasks=levels, compute_flops=budgets, replicates=20)
    found = findings.find(study, *synthetic.tables(study, synthetic.rising(2e3), points_per_decade=2))
    page = page_of(tmp_path, found)
    assert len(found.runs) == 10_000 and (tmp_path / "report.html").stat().st_size < 5e6
    assert "figures/trials.csv" in page.links and len(rows_in(tmp_path, "trials")) == 10_000


# Figures and their numbers ------------------------------------------------------------------------------------------


def test_every_figure_is_a_drawing_and_numbers_of_the_same_name(written: Reports) -> None:
    _, folder, _ = written("as usual")
    svgs, csvs = ({path.stem for path in (folder / "figures").glob(f"*.{kind}")} for kind in ("svg", "csv"))
    assert svgs == csvs - {"trials"}
    assert svgs == {"surface", "emergence", "memory", "compute_to_skill", "scores", "override", "skills"}
    for name in svgs:
        assert xml.etree.ElementTree.parse(folder / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert rows_in(folder, name)


def test_the_numbers_of_the_surface_are_its_cells_and_boundaries(written: Reports) -> None:
    found, folder, _ = written("as usual")
    rows = rows_in(folder, "surface")
    cube = found.results.cube("ability", "answer", "recall", "held_out")
    cells = [row for row in rows if row["measure"] == "ability"]
    assert len(cells) == cube.size
    np.testing.assert_allclose([float(row["value"]) for row in cells], cube.ravel())
    for question in ("K_A", "K_M"):
        for one, row in zip(found.of(question)[:2], [r for r in rows if r["measure"] == question], strict=True):
            assert [row["low_tasks"], row["high_tasks"]] == ["" if end is None else str(end) for end in one.ends]


def test_an_undefined_cell_is_not_a_zero(written: Reports) -> None:
    found = written("predictions are not finite").found
    cells = means.cells(found.results, "ability", "answer")
    assert [cell.state for cell in cells[0]] == ["undefined"] * 2 and cells[0][0].value is None
    assert [cell.state for cell in cells[1]] == ["value"] * 2


def test_boundaries_run_between_the_rows_that_they_lie_between(written: Reports) -> None:
    """By hand: nothing at 1e11; at 8e11 the skill appears between 4 and 64 tasks. Memory ends between 4 and 64 at both."""
    found = written("as usual").found
    skill, memory = surface.edges_of(found, "answer", "recall")
    assert (skill.heights, memory.heights) == ((2.5, 0.5), (0.5, 0.5))
    assert surface.edges_of(written("nothing is learned").found, "answer", "recall") == []


def test_the_name_of_a_boundary_that_leaves_the_surface_stands_at_the_end_of_its_line() -> None:
    """By hand: from 2e11 FLOPs on, the skill is there at all numbers of tasks, and memory never ends."""
    there = lambda n, c, r: 0.9 if n >= 64 or c > 2e11 else -0.2  # noqa: E731
    remembered = lambda n, c, r: 0.9 if n < 64 or c > 2e11 else -0.3  # noqa: E731
    found = found_of(study_of(n_tasks=(4, 64, 256), compute_flops=(1e11, 4e11, 8e11)), there, remembered)
    edges = surface.edges_of(found, "answer", "recall")
    assert [edge.heights for edge in edges] == [(0.5, -0.5, -0.5), (0.5, 2.5, 2.5)]
    shown, cells = surface.shown_of(found, "ability", "answer"), means.cells(found.results, "ability", "answer")
    panel = surface.panel((found.results.levels, found.study.budgets), shown, cells, edges, 776)
    grid = surface.grid_of(found.results.levels, 3, 776, 44, True)
    names = [
        re.search(r'x="([\d.]+)" y="([\d.]+)">(.*)<', p) for p in panel.drawing.parts if p.startswith('<text class="b')
    ]
    places = {name[3]: (float(name[1]), float(name[2])) for name in names if name}
    assert places["skill appears"][0] == places["memory ends"][0] == pytest.approx(grid.x(1), abs=0.1)
    assert places["memory ends"][1] < grid.y(2.5) and places["skill appears"][1] > grid.y(-0.5)


def test_where_more_conditions_than_surfaces_fit_the_others_follow_below(tmp_path: Path) -> None:
    variants = {f"v{k}": {"training": {"learning_rate": 1e-3 * (k + 1)}} for k in range(6)}
    study = synthetic.made_up(variant=variants)
    results, runs = synthetic.tables(synthetic.made_up())
    arms = [runs.set_column(runs.column_names.index("variant"), "variant", pa.array([v] * len(runs))) for v in variants]
    parts = [
        results.set_column(results.column_names.index("variant"), "variant", pa.array([v] * len(results)))
        for v in variants
    ]
    page = page_of(tmp_path, findings.find(study, pa.concat_tables(parts), pa.concat_tables(arms)))
    assert all(name in page.ids["surface"] for name in ("v0", "v3")) and "v5" not in page.ids["surface"]
    assert all(name in page.ids["conditions_more"] for name in ("v4", "v5")) and "conditions" in page.ids


def test_the_numbers_of_the_curves_are_every_evaluation(written: Reports) -> None:
    found, folder, _ = written("as usual")
    rows = rows_in(folder, "emergence")
    run = [(float(r["flops"]), float(r["value"])) for r in rows if r["panel"] == "64 tasks"]
    tracks = [found.results.curve("ability", "answer", "recall", "held_out", 64, r) for r in range(3)]
    assert run == [pair for t in tracks for pair in zip(t.flops.tolist(), t.values.tolist(), strict=True)]


def test_no_line_joins_numbers_of_tasks_more_than_a_hundredfold_apart(written: Reports) -> None:
    found = written("as usual").found  # 4, 64, 1e12
    series = [curves.Series("", 0, "round", np.array([[0.1], [0.2], [0.3]]))]
    panel = curves.by_tasks(found, series, "", "", (0, 1))
    lines = [part for part in panel.drawing.parts if part.startswith('<path class="s0')]
    assert len(lines) == 1 and lines[0].count("L") == 1


# Colours ------------------------------------------------------------------------------------------------------------


def test_the_scale_breaks_at_zero_and_below_zero_is_another_colour() -> None:
    assert palette.shade(0.004) == "z" and palette.shade(0.006)[0] == "p" and palette.shade(-0.006)[0] == "n"
    assert palette.shade(7.0) == palette.shade(1.0) and palette.shade(-7.0) == palette.shade(-1.0)


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_words_can_be_read_on_every_colour(colours: palette.Palette) -> None:
    """WCAG 2: a contrast of 4.5 at least."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for value in np.linspace(-1, 1, 81):
        cell = "#" + "".join(f"{part:02x}" for part in palette.mix(colours.scale, float(value)))
        assert contrast(cell, palette.ink_on(palette.mix(colours.scale, float(value)))) >= 4.5
    for ink in (colours.ink, colours.grey, *colours.series):
        assert contrast(ink, colours.paper) >= 4.5, ink


def test_the_claimed_condition_is_among_those_that_are_shown() -> None:
    study = load("taste_first")  # eight conditions, and a claim on the sixth
    found: Any = SimpleNamespace(study=study)
    every = [surface.Plane(name, (name,), (1.0,), surface.TASKS) for name in study.conditions]
    shown, others = surface.split_planes(found, every, 4)
    assert shown[0].name == "reward, taught_24"
    assert [plane.name for plane in (*shown[1:], *others)] == [n for n in study.conditions if n != "reward, taught_24"]
    assert surface.split_planes(found, every, 8) == (every, [])  # nothing is moved if all are shown
