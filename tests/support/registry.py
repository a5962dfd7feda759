"""The part of a Confluent schema registry that registering, look-up and reading use, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from docsum.local.loopback import HOST


class Registry(BaseHTTPRequestHandler):
    """`failure`: what every request is answered with, status and body."""

    url: ClassVar[str]
    schemas: ClassVar[dict[tuple[str, str], int]]
    compatibility: ClassVar[dict[str, str]]
    reads: ClassVar[list[int]]
    failure: ClassVar[tuple[int, Any] | None]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.path.split("/")[2].partition("?")[0]
        key = (subject, body["schema"])
        if self.failure is None and "/versions" in self.path:
            number = self.schemas.setdefault(key, len(self.schemas) + 1)
            self._answer(200, {"id": number})
        elif self.failure is None and key in self.schemas:
            self._answer(200, {"id": self.schemas[key], "subject": subject, "version": 1} | body)
        else:
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.compatibility[self.path.split("/")[2].partition("?")[0]] = body["compatibility"]
        self._answer(200, body)

    def do_GET(self) -> None:
        number = int(self.path.rpartition("/")[2].partition("?")[0])
        self.reads.append(number)
        for (_, text), found in self.schemas.items():
            if found == number:
                self._answer(200, {"schema": text})
                return
        self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def _answer(self, status: int, body: Any) -> None:
        status, body = self.failure or (status, body)
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing on standard error."""


@contextmanager
def schema_registry() -> Iterator[type[Registry]]:
    """An empty one."""

    class Fresh(Registry):
        schemas: ClassVar = {}
        compatibility: ClassVar = {}
        reads: ClassVar = []
        failure: ClassVar = None

    server = ThreadingHTTPServer((HOST, 0), Fresh)
    Fresh.url = f"http://{HOST}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Fresh
    server.shutdown()
    thread.join()
    server.server_close()
