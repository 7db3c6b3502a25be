"""Where MLflow shows what was recorded: addresses for people, kept beside the results. Knows no MLflow.

A report links to the runs of its trials. A tracking server has an address of its own; a database is shown by `emergence ui`
at a port that may be another one each time, so that command leads the reports there (`serve_at`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from orchestrator import files
from orchestrator.record.journal import home_folder

LINKS_FILE = "mlflow.json"
"""In a study's folder: {"base": address, "study": path, "runs": {trial id: path}, "store": which}."""
MARKER_FILE = "published.json"
"""In a study's folder: what tables, report and MLflow show by now, and the sizes and hashes of the files (`publisher.py`)."""
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
        if "@" not in parts.netloc and holds_secret(re.split(r"\?[\w.]+=", tracking_uri)[0]):
            return ""  # a password that is not quoted: where the host begins is anybody's guess
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
        if found["base"] != address:
            _lead(folder, found["base"], address)
        write(folder, found | {"base": address})
        shown.append(folder)
    return shown


def _lead(folder: Path, before: str, address: str) -> None:
    """Lead a report's links to another address; the marker then knows the new page, if it knew the old one."""
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


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file behind an SQLite URI; None for any other store, and for one in memory."""
    scheme, _, rest = tracking_uri.partition("://")
    if scheme.split("+")[0] != "sqlite" or not rest.startswith("/"):
        return None
    path = rest[1:].partition("?")[0]
    if "%" in path:
        from sqlalchemy.engine import make_url  # here: it takes a third of a second, and only such names need it

        path = make_url(tracking_uri).database or ""
    return Path(path) if path and path != ":memory:" else None


def sqlite_uri(path: Path) -> str:
    """The SQLite URI of a file, as SQLAlchemy reads it. Raises ValueError for a name that it cannot take."""
    if not set("?%") & set(str(path)):
        return f"sqlite:///{path}"
    from sqlalchemy.engine import URL, make_url

    # With the driver named: MLflow makes the folder of a plain `sqlite:///` URI itself, and takes the quoted name for it.
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
"""Settings in a query that hold no secret. The value of any other one is hidden."""


def without_password(text: str) -> str:
    """A URI, or a message that quotes some, as it may be shown.

    What stands before the host is hidden, but for the user of a database: a user may be a token. So is every setting in
    a query that is not known as harmless.
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
    """What follows `scheme://`, as (user as it may be shown, from the host on).

    A password may hold `/`, `?`, `#` or `@`, although they should be quoted there: it ends at the last `@` before the
    settings. Rather too much is hidden than too little.
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
    """Everything of a URI that is hidden where it is shown, as written and unquoted."""
    found = set()
    scheme, _, rest = uri.partition("://")
    user, place = _without_user(scheme.lower(), rest)
    if user:
        given = rest[: len(rest) - len(place) - 1]
        name, _, password = given.partition(":")
        found |= {given, password} if _DATABASE.match(scheme) else {given, name, password}
    with contextlib.suppress(ValueError):  # as a client reads it
        found.add(urlsplit(uri).password or "")
    found |= {m[3] for m in _QUERY.finditer(uri) if m[2].lower() not in _HARMLESS or re.search("@|%40", m[3])}
    return {each for secret in found for each in (secret, unquote(secret)) if len(each) >= SHORTEST_SECRET}


SHORTEST_SECRET = 3
"""Shorter ones cannot be found in a message: they stand in its words."""


def hide(text: str, *uris: str) -> str:
    """A message as it may be shown: without the secrets of these URIs either, in whatever way it quotes them."""
    for secret in sorted({each for uri in uris for each in secrets_of(uri)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_password(text)


def holds_secret(text: str) -> bool:
    """Is there anything in a text that may not be shown?"""
    return without_password(text) != text


# Files --------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any] | None:
    """A small file of ours; None where it is missing or torn."""
    try:
        return cast(dict[str, Any], json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write it, whole. Raises OSError."""
    files.replace(path, json.dumps(value).encode())
