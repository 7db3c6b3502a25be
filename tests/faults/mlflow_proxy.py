"""A small HTTP proxy in front of an MLflow server that does to requests what networks and servers do.

A fault is given by which request it hits and how: `drop` hangs up before the server has heard of it, `500` answers so
instead of the server, `cut` sends half of the answer, `lose` hangs up after the server has done the work, `hang` never
answers, `call` runs something first and then hangs up, the server having done the work.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What happens to requests of one kind."""

    how: str
    path: str = ""
    """Part of `METHOD path` of the requests that count; "" for all."""
    nth: int = 0
    """The first one that is hit, from 0."""
    times: int = 1
    """How many are hit, one after the other."""
    call: Callable[[], None] = lambda: None
    met: int = 0


class Proxy:
    """Listens on a loopback port of its own and passes requests on, but for the fault that it was told."""

    def __init__(self, target_port: int) -> None:
        self.fault: Fault | None = None
        self.heard: list[str] = []
        """`METHOD path` of each request, without its query."""
        self.hits = 0
        self._lock, self._released = threading.Lock(), threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def log_message(self, *_: Any) -> None:
                pass

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy._fault_of(f"{self.command} {self.path.partition('?')[0]}")
                how = fault.how if fault else ""
                if how in ("drop", "hang"):
                    if how == "hang":
                        proxy._released.wait()
                    return self._hang_up()
                if how == "500":
                    return self._answer(
                        500, [("Content-Type", "application/json")], b'{"error_code": "INTERNAL_ERROR"}'
                    )
                status, headers, data = proxy._ask(target_port, self.command, self.path, body, dict(self.headers))
                if fault and how in ("lose", "call"):
                    fault.call()
                    return self._hang_up()
                self._answer(status, headers, data, cut=how == "cut")

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) + (1 if cut else 0)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.close_connection = self.close_connection or cut

            def _hang_up(self) -> None:
                self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Clients hang up; that is what this is about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def doing(self, fault: Fault) -> Iterator[Fault]:
        """Do this to requests for a while."""
        self.heard.clear()
        self.fault, self.hits = fault, 0
        self._released.clear()
        try:
            yield fault
        finally:
            self.fault = None
            self._released.set()

    def close(self) -> None:
        """Stop listening: from here on connections are refused."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _fault_of(self, request: str) -> Fault | None:
        with self._lock:
            self.heard.append(request)
            fault = self.fault
            if fault is None or fault.path not in request:
                return None
            fault.met += 1
            if not fault.nth < fault.met <= fault.nth + fault.times:
                return None
            self.hits += 1
            return fault

    @staticmethod
    def _ask(
        port: int, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", port)
        try:
            kept = {k: v for k, v in headers.items() if k.lower() not in ("connection", "host", "accept-encoding")}
            server.request(method, path, body, kept)
            answer = server.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            server.close()
