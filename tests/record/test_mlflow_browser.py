"""MLflow's UI in a browser, on a real server: columns, charts, the answer, and links that open the right page on the first click."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import DESKTOP, chromium
from conftest import PATIENCE_SECONDS
from test_mlflow_values import World

from orchestrator.analysis import answer, findings
from orchestrator.record import links, mlflow_values

__all__ = ["chromium"]  # a fixture
PATIENCE_MS = 120_000


class Served(NamedTuple):
    """A published study, and the address of `emergence ui` on its home."""

    world: World
    address: str
    printed: str
    """The address of the study that `emergence ui` prints."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    patch, home = pytest.MonkeyPatch(), tmp_path_factory.mktemp("home")
    patch.setenv("EMERGENCE_HOME", str(home))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    world = World(home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "orchestrator.cli", "ui", "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        lines = [server.stdout.readline() for _ in range(2)]
        address = f"http://127.0.0.1:{port}"
        for _ in range(PATIENCE_SECONDS):
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except OSError:
                with pytest.raises(subprocess.TimeoutExpired):  # it must not end
                    server.wait(1)
        yield Served(world, address, lines[1].split(": ", 1)[1].strip())
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
        patch.undo()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A browser that has never seen MLflow, but for its assistant, which covers a third of the window once."""
    context = chromium.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def headers(page: Any) -> list[str]:
    """The columns of the runs table inside the window, from the left."""
    page.wait_for_selector("[role=columnheader][col-id*=ability]")
    found = page.evaluate(
        """() => [...document.querySelectorAll("[role=columnheader][col-id]")]
          .map((one) => [one.getBoundingClientRect(), one.innerText.trim()])
          .filter(([box, words]) => words && box.width > 1 && box.right <= innerWidth)
          .sort(([a], [b]) => a.left - b.left).map(([, words]) => words)"""
    )
    return [str(words) for words in found]


def test_the_address_that_the_terminal_prints_opens_the_runs_with_their_columns(served: Served, page: Any) -> None:
    """Fails if the view's tag is of no use to this MLflow: the table would open with other columns, or with one row."""
    page.goto(served.printed)
    shown = headers(page)
    wanted = ["condition", "n_tasks", "compute_flops", "replicate", "ability", "accuracy", "memory"]
    assert [name for name in shown if name in wanted] == wanted
    page.wait_for_function("document.querySelectorAll('[col-id=\"tags.`n_tasks`\"][role=gridcell]').length > 8")
    cells = page.evaluate(
        """() => [...document.querySelectorAll("[role=row][row-index]")]
          .map((row) => [Number(row.getAttribute("row-index")), row.querySelector("[col-id='tags.`n_tasks`']")?.innerText])
          .filter(([, words]) => words).sort((a, b) => a[0] - b[0]).map(([, words]) => words)"""
    )
    assert cells == [
        "-",
        *["4"] * 2,
        *["64"] * 2,
        *["4"] * 2,
        *["64"] * 2,
    ]  # the study, then a surface for each condition


def test_the_plain_page_of_the_experiment_shows_all_runs_by_name_and_the_view_by_name(
    served: Served, page: Any
) -> None:
    experiment = re.search(r"experiments/(\d+)", served.printed)
    assert experiment is not None
    page.goto(f"{served.address}/#/experiments/{experiment[1]}/runs?workflowType=machine_learning")
    trial = served.world.study.trials()[0]
    page.get_by_text(mlflow_values.run_name(served.world.study, trial)).first.wait_for()
    page.get_by_text("Views", exact=True).first.click()
    page.get_by_text("Results by tasks and compute").first.click()
    assert "memory" in headers(page)


def test_the_answer_stands_above_the_runs_with_the_surface_as_a_picture(served: Served, page: Any) -> None:
    page.goto(served.printed)
    page.wait_for_selector(
        "img[alt='Ability by number of tasks and compute'], img[src^=get-artifact]", state="attached"
    )
    assert page.get_by_text("Nothing can be said").count() == 0
    page.wait_for_function("document.querySelector('img[src^=get-artifact]').naturalWidth > 300")
    follows = page.evaluate(
        """(words) => {
          const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
          while (walk.nextNode() && !walk.currentNode.data.includes(words)) {}
          const image = document.querySelector("img[src^=get-artifact]")
          return walk.currentNode.data.includes(words) && walk.currentNode.compareDocumentPosition(image)
        }""",
        answer.sentence(findings.read(served.world.folder, served.world.study))[:40],
    )
    assert follows & 4, follows  # Node.DOCUMENT_POSITION_FOLLOWING: the sentence stands above the picture


def test_the_links_of_the_description_open_table_and_charts(served: Served, page: Any) -> None:
    page.goto(served.printed)
    for name, mode in {"charts": "CHART", "Table of all runs": "TABLE"}.items():
        link = page.get_by_role("link", name=name, exact=True)
        link.first.wait_for(state="attached")
        link.first.evaluate("(one) => { one.removeAttribute('target'); one.click() }")
        page.wait_for_url(re.compile(f"compareRunsMode={mode}"))
    assert "memory" in headers(page)


def test_the_chart_view_opens_with_results_by_tasks(served: Served, page: Any) -> None:
    page.goto(served.printed.replace("compareRunsMode=TABLE", "compareRunsMode=CHART"))
    for title in (f"{x} vs. {y}" for x in ("log2_n_tasks", "log10_compute_flops") for y in ("ability", "memory")):
        page.get_by_text(title).first.wait_for()
    page.wait_for_function("document.querySelectorAll('.scatterlayer .point').length >= 8")
    n_labels, n_overlaps = page.evaluate(
        """() => {
          const rows = [...document.querySelectorAll(".xaxislayer-above")].map(
            (axis) => [...axis.querySelectorAll(".xtick text")].map((one) => one.getBoundingClientRect()))
          const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
          const pairs = rows.flatMap((row) => row.slice(1).map((box, i) => [row[i], box]))
          return [rows.flat().length, pairs.filter(([a, b]) => meet(a, b)).length]
        }"""
    )
    assert n_labels > 4 and n_overlaps == 0, (n_labels, n_overlaps)


def test_a_link_of_the_report_opens_the_run_of_its_trial_on_the_first_click(served: Served, page: Any) -> None:
    trial = served.world.study.trials()[1]
    shown = links.of(served.world.folder)
    assert shown is not None
    page.goto(Path(served.world.folder / "report.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    link = page.locator(f"a[href='{served.address}/{shown['runs'][trial.id]}']").first
    assert link.get_attribute("href").startswith(served.address)
    link.click()
    page.get_by_role("heading", name=mlflow_values.run_name(served.world.study, trial)).wait_for()
    page.get_by_text("log2_n_tasks").first.wait_for()
