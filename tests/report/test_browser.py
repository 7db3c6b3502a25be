"""Tests that need a browser: without one they fail where nobody would notice that they were left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize(("github", "code", "counted"), [("true", 1, "1 error"), ("", 0, "1 skipped")])
def test_without_chromium_pages_count_as_failed_on_github_and_as_skipped_aloud_elsewhere(
    github: str, code: int, counted: str, tmp_path: Path
) -> None:
    (tmp_path / "test_page.py").write_text("from browser import chromium\n\ndef test_page(chromium):\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(HERE.parent / "pyproject.toml"), "-p", "no:cacheprovider"]
    environment = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(HERE), "GITHUB_ACTIONS": github}
    done = subprocess.run(
        [*command, "-v", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == code, done.stdout
    assert counted in done.stdout and "not looked at: no Chromium" in done.stdout
