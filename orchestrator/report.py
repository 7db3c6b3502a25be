"""Placeholder while the report is being written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.findings import Findings


def write(folder: Path, found: Findings, sessions: list[dict[str, Any]]) -> Path:
    path = folder / "report.html"
    path.write_text(found.answer)
    return path
