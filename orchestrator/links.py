"""Where MLflow shows what was recorded: addresses for people, kept beside the results. Knows no MLflow.

A report links to the runs of its trials. A tracking server has an address of its own; a database is shown by `emergence ui`
at a port that may be another one each time, so that command leads the reports there (`serve_at`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from orchestrator.journal import home_folder

LINKS_FILE = "mlflow.json"
"""In a study's folder: {"base": address, "study": path, "runs": {trial id: path}, "store": which}."""
UI_FILE = "mlflow_ui.json"
"""In the home folder: the address that `emergence ui` served last."""
LOCAL_UI = "http://127.0.0.1:5000"
"""Where `emergence ui` serves unless told otherwise."""


def run_path(experiment: str, run: str) -> str:
    """A run's path in MLflow's UI. Without its query a browser that is new to MLflow opens the pages for agents, which are
    empty (seen with 3.17; the kind that the experiment is tagged with does not help)."""
    return f"#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def ui_address(tracking_uri: str) -> str:
    """Where people look at this store: a server itself (no user, no password), `emergence ui` for a database, else ""."""
    if tracking_uri.startswith(("http://", "https://")):
        parts = urlsplit(tracking_uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    if tracking_uri.startswith("databricks"):
        return ""
    return str((read_json(home_folder() / UI_FILE) or {}).get("address") or LOCAL_UI)


def is_local(tracking_uri: str) -> bool:
    """Is this a store that `emergence ui` shows?"""
    return not tracking_uri.startswith(("http://", "https://", "databricks"))


def serve_at(address: str, tracking_uri: str) -> list[Path]:
    """`emergence ui` shows this store at this address: lead the home's reports there. Returns the folders it shows.

    A report is a file, so its links are rewritten in place; nothing is drawn again.
    """
    write_json(home_folder() / UI_FILE, {"address": address})
    shown = []
    for folder in sorted(path.parent for path in home_folder().glob(f"*@*/{LINKS_FILE}")):
        found = of(folder)
        if found is None or found.get("store") != store_of(tracking_uri):
            continue
        report = folder / "report.html"
        if found["base"] != address and report.exists():
            page = report.read_text(encoding="utf-8")
            replace(report, page.replace(f"{found['base']}/#/experiments/", f"{address}/#/experiments/").encode())
        write(folder, found | {"base": address})
        shown.append(folder)
    return shown


def of(folder: Path) -> dict[str, Any] | None:
    """The MLflow addresses of a study's runs, as last published; None where it was not."""
    return read_json(folder / LINKS_FILE)


def write(folder: Path, found: dict[str, Any]) -> None:
    """Keep them. Raises OSError."""
    write_json(folder / LINKS_FILE, found)


def study_link(folder: Path, tracking_uri: str) -> str | None:
    """The address of a study's parent run; None where it was not published in this store, or has no address."""
    found = of(folder)
    if not found or found.get("store") != store_of(tracking_uri) or not found["base"] or not found["study"]:
        return None
    return f"{found['base']}/{found['study']}"


def store_of(tracking_uri: str) -> str:
    """Which store, as a hash: a tracking URI may carry a password."""
    return hashlib.sha256(tracking_uri.encode()).hexdigest()


def without_password(text: str) -> str:
    """A tracking URI, or a message that quotes one, as it may be shown."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]+@", r"\1:***@", text)


def read_json(path: Path) -> dict[str, Any] | None:
    """A small file of ours; None where it is missing or torn."""
    try:
        return cast(dict[str, Any], json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write it, in one rename. Raises OSError."""
    replace(path, json.dumps(value).encode())


def replace(path: Path, data: bytes) -> None:
    """Put a whole file in place of another, in one rename; on a full disk no part of it stays. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
