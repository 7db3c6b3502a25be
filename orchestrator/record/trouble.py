"""Errors of the record in one line: place, cause, and advice. Imports no MLflow; reads its exceptions."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.record import links


class RecordProblem(Exception):
    """A refusal of ours with a complete message."""


class Trouble(NamedTuple):
    """Why the record could not be brought up to date."""

    what: str
    """One line, without any password."""
    advice: str = ""
    """What to do; empty if unknown."""
    is_away: bool = False
    """MLflow does not answer, or its store is busy. Nothing is wrong here, and a later attempt helps."""
    is_slow: bool = False
    """It timed out: an immediate second attempt does not help."""


LATER = "try again when MLflow is up"


def of(problem: BaseException, tracking_uri: str = "") -> Trouble:
    """The trouble behind an exception of the publisher."""
    chain = list(_chain(problem))
    shown = links.without_password(tracking_uri)
    where = f"MLflow at {shown}" if shown else "MLflow"
    if isinstance(problem, RecordProblem):
        return Trouble(links.hide(str(problem), tracking_uri))
    text = " ".join(" ".join(str(each) for each in chain).split())
    found = _of_sqlite(chain, where) or _of_network(chain, text, where) or _of_files(chain)
    return found or Trouble(links.hide(one_line(problem), tracking_uri))


def one_line(problem: BaseException) -> str:
    """A short message without the password that MLflow quotes."""
    text = links.without_password(" ".join(str(problem).split()))
    return f"{type(problem).__name__}: {text[:300]}"


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__ or problem.__context__


def _of_sqlite(chain: list[BaseException], where: str) -> Trouble | None:
    messages = [" ".join(str(each).split()) for each in chain if isinstance(each, sqlite3.Error)]
    if not messages:
        return None
    text = messages[-1].lower()
    if "locked" in text or "busy" in text:
        return Trouble(f"{where} is locked by another process", "try again when that has ended", True, True)
    if "readonly" in text or "read-only" in text:
        return Trouble(f"{where} can be read but not written", "make the file writable, or give another --tracking-uri")
    if "malformed" in text or "not a database" in text:
        return Trouble(f"{where} is damaged", "move that file away and publish again: the runs are rebuilt")
    return Trouble(f"{where}: {messages[-1][:300]}")


_AWAY = (
    (r"timed out|timeout", "no answer in time"),
    (r"refused", "connection refused"),
    (r"name or service not known|name resolution|getaddrinfo|nodename|failed to resolve", "there is no such host"),
    (r"unreachable|no route", "there is no route to it"),
    (
        r"reset by peer|aborted|remote end closed|broken pipe|incomplete|connection broken|server closed",
        "connection lost",
    ),
    (r"could not connect|can't connect|connection error", "it cannot be reached"),
)
_HTTP = {
    "ConnectionError",
    "Timeout",
    "ConnectTimeout",
    "ReadTimeout",
    "ChunkedEncodingError",
    "RetryError",
    "HTTPError",
}


def _of_network(chain: list[BaseException], text: str, where: str) -> Trouble | None:
    names = {type(each).__name__ for each in chain}
    if "SSLError" in names:
        return Trouble(f"{where}: its certificate cannot be trusted", "check its certificate")
    if names & {"InvalidUrlException", "InvalidURL", "InvalidSchema", "MissingSchema", "LocationParseError"}:
        return Trouble(f"{where}: not an address", "give http://host:port")
    status = re.search(r"error code (\d{3})|too many (\d{3}) error|\b([45]\d\d) (?:Client|Server) Error", text)
    code = int(next(part for part in status.groups() if part)) if status else 0
    if code in (401, 403):
        return Trouble(
            f"{where} refuses access ({code})", "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if code == 404:
        return Trouble(f"{where} is no MLflow server (404)", "check the address")
    if code >= 500 or code in (408, 429):
        return Trouble(f"{where} answers with error {code}", LATER, True)
    if names & _HTTP or "OperationalError" in names or "API request to" in text:
        for pattern, words in _AWAY:
            if re.search(pattern, text, re.IGNORECASE):
                return Trouble(f"{where} does not answer: {words}", LATER, True, words == _AWAY[0][1])
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT)
_BARRED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _of_files(chain: list[BaseException]) -> Trouble | None:
    for each in chain:
        if isinstance(each, OSError) and each.errno is not None and not type(each).__module__.startswith("requests"):
            place = f"{each.filename}: " if each.filename else ""
            text = each.strerror or " ".join(str(each).split())[:300]
            advice = "make room" if each.errno in _FULL else "make it writable" if each.errno in _BARRED else ""
            return Trouble(f"{place}{text}", f"{advice} and publish again" if advice else "")
    return None
