"""Addresses in MLflow's UI, kept beside the results. Imports no MLflow.

A report links to the runs of its trials. A tracking server has a fixed address. A database is shown by `emergence ui`,
whose port may change. That command therefore rewrites the links of the reports (`serve_at`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator import files
from orchestrator.files import home_folder

LINKS_FILE = "mlflow.json"
"""In a study's folder: {"base": address, "view": path of the runs table, "study": path of the parent run, "runs": {trial id:
path}, "store": hash of the store}."""
MARKER_FILE = "published.json"
"""In a study's folder: the published state of tables, report and MLflow, with hashes of the files (`publisher.py`)."""
UI_FILE = "mlflow_ui.json"
"""In the home folder: the last address of `emergence ui`."""
LOCAL_UI = "http://127.0.0.1:5000"
"""Default address of `emergence ui`."""


def run_path(experiment: str, run: str) -> str:
    """A run's path in MLflow's UI.

    Without the query a browser new to MLflow opens the pages for agents, which are empty. Seen with 3.17; the
    experiment's kind tag does not help.
    """
    return f"#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


VIEW_KEY = "emergence"
"""Key of the experiment's shared view (`mlflow_view.py`)."""


def view_path(experiment: str, mode: str = "TABLE") -> str:
    """The path of an experiment's runs in MLflow's UI, in our view of them. mode: `TABLE` or `CHART`."""
    view = f"viewStateShareKey={VIEW_KEY}&compareRunsMode={mode}"
    return f"#/experiments/{experiment}/runs?{view}&workflowType=machine_learning"


def markdown(experiment: str, parent: str) -> str:
    """A line of Markdown with links from a description to the runs table, its charts, and the files of the parent run."""
    table, charts = view_path(experiment), view_path(experiment, "CHART")
    files_path = run_path(experiment, parent).replace("?", "/artifacts?")
    return f"[Table of all runs]({table}) · [charts]({charts}) · [report and tables]({files_path})"


def ui_address(tracking_uri: str) -> str:
    """The UI's address for this store: a server without user and password, `emergence ui` for a database, else ""."""
    if is_local(tracking_uri):
        return str((read_json(home_folder() / UI_FILE) or {}).get("address") or LOCAL_UI)
    if tracking_uri.startswith("http"):
        parts = urlsplit(tracking_uri)
        if "@" not in parts.netloc and holds_secret(re.split(r"\?[\w.]+=", tracking_uri)[0]):
            return ""  # an unquoted password: the start of the host is ambiguous
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return ""


def is_local(tracking_uri: str) -> bool:
    """Whether `emergence ui` shows this store."""
    return not tracking_uri.startswith(("http://", "https://", "databricks"))


def serve_at(address: str, tracking_uri: str) -> list[Path]:
    """Rewrite the links of the home's reports to this address of `emergence ui`. Returns the study folders of this store."""
    write_json(home_folder() / UI_FILE, {"address": address})
    shown = []
    for folder in sorted(path.parent for path in home_folder().glob(f"*@*/{LINKS_FILE}")):
        found = of(folder)
        if found is None or found.get("store") != store_of(tracking_uri):
            continue
        if found["base"] != address:
            _lead(folder, found["base"], address)
        write_json(folder / LINKS_FILE, found | {"base": address})
        shown.append(folder)
    return shown


def _lead(folder: Path, before: str, address: str) -> None:
    """Rewrite a report's links to a new address. If the marker knew the old page, it is updated for the new one."""
    page, marker = folder / "report.html", read_json(folder / MARKER_FILE) or {}
    if not page.exists():
        return
    facts = (marker.get("report") or {}).get("files") or {}
    was_whole = files.is_whole(page, facts.get(page.name) or {})
    text = page.read_text(encoding="utf-8", errors="replace")
    files.replace(page, text.replace(f"{before}/#/experiments/", f"{address}/#/experiments/").encode())
    if was_whole:
        facts[page.name] = files.facts_of(page)
        write_json(folder / MARKER_FILE, marker)


def of(folder: Path) -> dict[str, Any] | None:
    """The MLflow addresses of a study's runs, as last published; None if never published."""
    return read_json(folder / LINKS_FILE)


def study_link(folder: Path, tracking_uri: str) -> str | None:
    """The address of a study's runs; None if it was not published in this store, or the store has no address."""
    found = of(folder)
    if not found or found.get("store") != store_of(tracking_uri) or not found["base"] or not found["study"]:
        return None
    return f"{found['base']}/{found.get('view') or found['study']}"


def store_of(tracking_uri: str) -> str:
    """A hash that identifies the store: a tracking URI may carry a password."""
    return hashlib.sha256(tracking_uri.encode()).hexdigest()


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of an SQLite URI; None for any other store and for an in-memory database."""
    scheme, _, rest = tracking_uri.partition("://")
    if scheme.split("+")[0] != "sqlite" or not rest.startswith("/"):
        return None
    path = rest[1:].partition("?")[0]
    if "%" in path:
        from sqlalchemy.engine import make_url  # imported here: it takes a third of a second, and is rarely needed

        path = make_url(tracking_uri).database or ""
    return Path(path) if path and path != ":memory:" else None


def sqlite_uri(path: Path) -> str:
    """The SQLite URI of a file, as SQLAlchemy reads it. Raises ValueError for a name that no URI can express."""
    if not set("?%") & set(str(path)):
        return f"sqlite:///{path}"
    from sqlalchemy.engine import URL, make_url

    # The driver must be named: for a plain `sqlite:///` URI MLflow makes the folder itself, under the quoted name.
    uri = URL.create("sqlite+pysqlite", database=str(path)).render_as_string(hide_password=False)
    if make_url(uri).database != str(path):
        raise ValueError(f"{path}: no SQLite URI can name it")
    return uri


# Secrets ------------------------------------------------------------------------------------------------------------

HIDDEN = "***"
_URI = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*)://(\S*)")
_QUERY = re.compile(r"([?&;#]|&amp;)([\w.%~\[\]-]+)=([^&;#\s]*)")
_DATABASE = re.compile(r"postgres|mysql|mariadb|mssql|oracle|sqlite")
_HARMLESS = {
    *("region", "scheme", "endpoint_override", "allow_bucket_creation", "retry_limit_seconds", "uri", "mode", "cache"),
    *("timeout", "sslmode", "charset", "driver", "experiment_name", "run_id", "workflowtype"),
}
"""Query settings that hold no secret. The value of every other setting is hidden."""


def without_password(text: str) -> str:
    """A URI, or a message that quotes URIs, without secrets.

    The part before the host is hidden, because a user may be a token; the user of a database is shown. Query settings
    that are not known as harmless are hidden too.
    """

    def shown(found: re.Match[str]) -> str:
        scheme, rest = found[1], found[2]
        if scheme.lower() == "file":
            return found[0]
        user, place = _without_user(scheme.lower(), rest)
        return f"{scheme}://{user}{place}"

    def setting(found: re.Match[str]) -> str:
        is_harmless = found[2].lower() in _HARMLESS and not re.search("@|%40|%3b", found[3], re.IGNORECASE)
        value = found[3] if is_harmless else HIDDEN
        return f"{found[1]}{found[2]}={value}"

    return _QUERY.sub(setting, _URI.sub(shown, text))


def _without_user(scheme: str, rest: str) -> tuple[str, str]:
    """Split the text after `scheme://` into the user as it may be shown, and the rest from the host on.

    A password may hold `/`, `?`, `#` or `@`, although they should be quoted. It ends at the last `@` before the
    settings, so too much is hidden rather than too little.
    """
    host, is_database = re.split(r"[/?#]", rest, maxsplit=1)[0], bool(_DATABASE.match(scheme))
    port = r"(\[.*\]|[^:@]*)(:\d{0,5})?" if not is_database else r"(\[.*\]|[^:@]*)"
    if "@" not in rest or re.fullmatch(port, host):
        return "", rest
    before_settings = re.split(r"\?[\w.]+=", rest)[0]
    end = before_settings.rindex("@") if "@" in before_settings else rest.rindex("@")
    user, place = rest[:end], rest[end + 1 :]
    name, colon, _ = user.partition(":")
    if is_database:
        return (f"{name}:{HIDDEN}@" if colon else f"{name}@"), place
    return f"{HIDDEN}@", place


def secrets_of(uri: str) -> set[str]:
    """All hidden parts of a URI, as written and unquoted."""
    found = set()
    scheme, _, rest = uri.partition("://")
    user, place = _without_user(scheme.lower(), rest)
    if user:
        given = rest[: len(rest) - len(place) - 1]
        name, _, password = given.partition(":")
        found |= {given, password} if _DATABASE.match(scheme) else {given, name, password}
    with contextlib.suppress(ValueError):  # the password as a client reads it
        found.add(urlsplit(uri).password or "")
    found |= {m[3] for m in _QUERY.finditer(uri) if m[2].lower() not in _HARMLESS or re.search("@|%40", m[3])}
    return {each for secret in found for each in (secret, unquote(secret)) if len(each) >= SHORTEST_SECRET}


SHORTEST_SECRET = 3
"""Shorter secrets cannot be removed from a message: they also occur in ordinary words."""


def hide(text: str, *uris: str) -> str:
    """A message without secrets, including those of these URIs in any quoting."""
    for secret in sorted({each for uri in uris for each in secrets_of(uri)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_password(text)


def holds_secret(text: str) -> bool:
    """Whether a text holds a secret."""
    return without_password(text) != text


# Files --------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a small JSON file of ours; None if it is missing or torn."""
    with contextlib.suppress(OSError, ValueError):
        return found if isinstance(found := json.loads(path.read_text()), dict) else None
    return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises OSError."""
    files.replace(path, json.dumps(value).encode())
