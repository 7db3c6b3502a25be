"""Where MLflow shows a study: addresses follow the server, or the port that `emergence ui` has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import files
from orchestrator.record import links

STORE = "sqlite:////somewhere/mlflow.db"
TRIAL, PARENT = "#/experiments/1/runs/aa", "#/experiments/1/runs/bb"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMERGENCE_HOME", str(tmp_path))
    return tmp_path


def published(home: Path, study_id: str, store: str = STORE) -> Path:
    """A study's folder as publishing leaves it, with a page that links to a run."""
    folder = home / study_id
    folder.mkdir()
    base = links.ui_address(store)
    links.write_json(
        folder / links.LINKS_FILE, {"base": base, "study": PARENT, "runs": {"t": TRIAL}, "store": links.store_of(store)}
    )
    (folder / "report.html").write_text(f'<a href="{base}/{TRIAL}">run</a> <a href="http://127.0.0.1:5000/x">other</a>')
    return folder


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        (STORE, "http://127.0.0.1:5000"),
        ("postgresql://me:secret@db/mlflow", "http://127.0.0.1:5000"),
        ("https://me:secret@mlflow.example.org:8443/team/", "https://mlflow.example.org:8443/team"),
        ("databricks", ""),
    ],
)
def test_people_look_at_a_server_itself_and_at_a_database_through_the_ui(uri: str, address: str, home: Path) -> None:
    assert links.ui_address(uri) == address


def test_reports_follow_the_ui_to_another_port_and_back(home: Path) -> None:
    folder = published(home, "mine@1")
    assert links.serve_at("http://127.0.0.1:5001", STORE) == [folder]
    assert (folder / "report.html").read_text() == (
        f'<a href="http://127.0.0.1:5001/{TRIAL}">run</a> <a href="http://127.0.0.1:5000/x">other</a>'
    )
    assert links.study_link(folder, STORE) == f"http://127.0.0.1:5001/{PARENT}"
    later = published(home, "mine@2")  # a study that ends while the UI is there links to it at once
    assert f"http://127.0.0.1:5001/{TRIAL}" in (later / "report.html").read_text()
    assert links.serve_at("http://127.0.0.1:5000", STORE) == [folder, later]
    assert ":5001" not in (folder / "report.html").read_text() + (later / "report.html").read_text()


def test_reports_of_another_store_stay_as_they_are(home: Path) -> None:
    server = "https://mlflow.example.org"
    elsewhere, other = published(home, "mine@1", server), published(home, "mine@2", "sqlite:////other.db")
    before = [(folder / "report.html").read_text() for folder in (elsewhere, other)]
    assert links.serve_at("http://127.0.0.1:5001", STORE) == []
    assert [(folder / "report.html").read_text() for folder in (elsewhere, other)] == before
    assert links.study_link(elsewhere, server) == f"{server}/{PARENT}"
    assert links.study_link(elsewhere, STORE) is None and links.study_link(home, STORE) is None


def test_a_store_without_a_page_has_no_link_and_torn_files_are_none(home: Path) -> None:
    assert links.study_link(published(home, "mine@1", "databricks"), "databricks") is None
    (home / links.UI_FILE).write_text("{")
    (home / "mine@1" / links.LINKS_FILE).write_text("")
    assert links.ui_address(STORE) == links.LOCAL_UI and links.of(home / "mine@1") is None
    assert links.serve_at("http://127.0.0.1:5001", STORE) == []


def test_no_password_is_kept_or_shown(home: Path) -> None:
    uri = "http://me:s3cr%40t@host:5000/a"
    folder = published(home, "mine@1", uri)
    assert "s3cr" not in json.dumps(links.of(folder)) + (folder / "report.html").read_text()
    assert links.without_password(f"GET {uri} failed") == "GET http://***@host:5000/a failed"
    for harmless in ("sqlite:////a/b.db", "http://host:5000/a@b:c", "postgresql://me@db/x", "plain: words @ all"):
        assert links.without_password(harmless) == harmless


SECRET = "s3cret"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{SECRET}@host:5000/a",
        f"http://me:x@{SECRET}@host:5000",
        f"http://me:x?{SECRET}#y@host",
        f"https://{SECRET}@host",
        f"https://:{SECRET}@host",
        f"https://host/mlflow?token={SECRET}",
        f"https://host/mlflow#access_token={SECRET}",
        f"postgresql://me:{SECRET}/x@db:5432/mlflow",
        f"postgresql://db/mlflow?user=me&password={SECRET}&sslmode=require",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
        f"s3://AKIA:{SECRET}/x+y@bucket/prefix?region=eu",
        f"s3://bucket/prefix?access_key=AKIA&secret_key={SECRET}",
        f"s3://bucket/prefix?region=eu&endpoint_override=http%3A%2F%2Fme%3A{SECRET}%40host",
        f"abfss://container@account/x?sig={SECRET}&sv=1",
    ],
)
def test_a_secret_is_hidden_wherever_a_uri_holds_it(uri: str, home: Path) -> None:
    """Fails where a password ends at the first / or @, or only a user with a password is looked at."""
    for text in (uri, f"GET {uri} failed", f"Invalid url: '{uri}'", f"--storage={uri}/tiny@1/checkpoints"):
        assert SECRET not in links.without_password(text) and "***" in links.without_password(text)
    assert SECRET not in links.hide(f"cannot parse {uri.partition('://')[2]}", uri)
    assert links.holds_secret(uri)
    if uri.startswith("http"):
        assert SECRET not in links.ui_address(uri)


@pytest.mark.parametrize(
    "harmless",
    [
        "s3://bucket/prefix/tiny@1/checkpoints?region=eu-central-1&endpoint_override=host:9000",
        "http://127.0.0.1:9000/bucket/tiny@1/checkpoints",
        "http://[::1]:5000/tiny@1",
        "http://host:5000/#/experiments/1/runs/aa?workflowType=machine_learning",
        "sqlite:////a:b@c/mlflow.db",
        "file:///a/b@c:d@e",
    ],
)
def test_what_holds_no_secret_is_shown_whole(harmless: str) -> None:
    assert links.without_password(harmless) == harmless and not links.holds_secret(harmless)


@pytest.mark.parametrize("name", ["plain", "a b", "a?b=c", "a%41b", "a%b", "a#b", "[x]", "ü&=;"])
def test_a_file_of_any_name_has_an_sqlite_uri_that_leads_back_to_it(name: str) -> None:
    path = Path("/somewhere") / name / "mlflow.db"
    assert links.sqlite_file(links.sqlite_uri(path)) == path
    assert links.sqlite_file("postgresql://db/x") is None and links.sqlite_file("sqlite:///:memory:") is None


def test_a_report_that_is_led_elsewhere_stays_the_one_that_was_published(home: Path) -> None:
    """Fails where the note on what was published keeps the hash of the page before."""
    folder = published(home, "mine@1")
    page = folder / "report.html"
    note = {"report": {"files": {page.name: files.facts_of(page)}}}
    links.write_json(folder / links.MARKER_FILE, note)
    links.serve_at("http://127.0.0.1:5001", STORE)
    assert links.read_json(folder / links.MARKER_FILE) == {"report": {"files": {page.name: files.facts_of(page)}}}
    page.write_text("damaged")
    links.serve_at("http://127.0.0.1:5000", STORE)
    facts = (links.read_json(folder / links.MARKER_FILE) or {})["report"]["files"][page.name]
    assert not files.is_whole(page, facts)
