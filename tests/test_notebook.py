"""The notebook of docs/ runs from the first cell to the last, and answers.

python tests/test_notebook.py            # run it, and store it with the outputs that name no machine
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"
SVG, HTML = "image/svg+xml", "text/html"


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook, run in a folder by a kernel of this interpreter on loopback. Raises CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    surroundings = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH", "")]),
        "IPYTHONDIR": str(folder / "ipython"),
        "EMERGENCE_HOME": str(folder / "runs"),
    }
    surroundings.pop("MLFLOW_TRACKING_URI", None)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=surroundings)
    return notebook


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """Everything that cells show in one format."""
    shown = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    return [one.data[kind] for one in shown if kind in one.get("data", {})]


@pytest.mark.end_to_end
def test_the_notebook_runs_and_shows_answer_frames_figure_and_telemetry(tmp_path: Path) -> None:
    notebook = executed(tmp_path)
    (answer,) = {text for text in outputs(notebook, "text/plain") if "skill recall" in text}
    assert "skill recall" in answer and answer.strip("'\"") in " ".join(outputs(notebook, HTML))
    assert len(outputs(notebook, SVG)) >= 1 and outputs(notebook, "image/png")
    assert sum("<table" in html for html in outputs(notebook, HTML)) >= 4
    printed = [one for cell in notebook.cells for one in cell.get("outputs", []) if one.output_type == "stream"]
    assert "18 of 18 trials" in (said := "".join(one.text for one in printed)) and "\x1b" not in said


def test_the_stored_notebook_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert not re.search(r"/(home|root|Users|tmp|work)/|127\.0\.0\.1|file://", text)
    assert all(one.output_type != "stream" for cell in nbformat.reads(text, 4).cells for one in cell.get("outputs", []))


def main() -> None:
    """Run the notebook and store it: without what its cells print, and with what they show."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(Path(folder))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.output_type != "stream"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    sys.exit(main())
