"""A receiver of webhooks on loopback, in a thread of its own: it keeps what it got, answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from standardwebhooks import Webhook


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, object]:
        """The body, by the library that receivers use; it raises where signature or time are wrong."""
        found: dict[str, object] = Webhook(secret).verify(self.body, dict(self.headers))
        return found


HANG = 0  # an answer that does not come


class Receiver:
    """`answers`: a status for each request to come, then 200. A redirect leads to `/elsewhere`."""

    def __init__(self, *answers: int, port: int = 0) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self)

            do_GET = do_POST  # noqa: N815 - what follows a redirect of a POST

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        return Handler

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0"))).decode()
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append(Request(handler.path, headers, body))
        status = self.answers.pop(0) if self.answers else 200
        if status == HANG:
            self._over.wait(60)
            return
        handler.send_response(status)
        if 300 <= status < 400:
            handler.send_header("Location", "/elsewhere")
        if status in (429, 503):
            handler.send_header("Retry-After", "7200")
        handler.send_header("Content-Length", "7")
        handler.end_headers()
        handler.wfile.write(b"private")

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
