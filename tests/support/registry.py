"""The part of a Confluent schema registry that registering, look-up and reading use, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from docsum.kafka import schemas
from docsum.kafka.schema_registry import SchemaRegistry
from docsum.local.loopback import HOST
from docsum.topics import Topology


class Registry(BaseHTTPRequestHandler):
    """`failure`: what every request is answered with, status and body."""

    url: ClassVar[str]
    schemas: ClassVar[dict[tuple[str, str], int]]
    compatibility: ClassVar[dict[str, str]]
    level: ClassVar[str]  # where a subject says nothing
    reads: ClassVar[list[int]]
    questions: ClassVar[int]  # of any kind
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
        if subject := self._subject():
            self.compatibility[subject] = body["compatibility"]
        else:
            type(self).level = body["compatibility"]
        self._answer(200, body)

    def _subject(self) -> str:
        """Of a configuration; empty for that of everything."""
        return self.path.partition("?")[0].removeprefix("/config").removeprefix("/")

    def do_GET(self) -> None:
        if self.path.startswith("/config"):
            subject = self._subject()
            level = self.compatibility.get(subject) if subject else self.level
            if level is None:
                self._answer(404, {"error_code": 40408, "message": "Subject has no level of its own"})
            else:
                self._answer(200, {"compatibilityLevel": level})
            return
        number = int(self.path.rpartition("/")[2].partition("?")[0])
        self.reads.append(number)
        for (_, text), found in self.schemas.items():
            if found == number:
                self._answer(200, {"schema": text})
                return
        self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def _answer(self, status: int, body: Any) -> None:
        type(self).questions += 1
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
        level: ClassVar = "NONE"  # as Apicurio's
        reads: ClassVar = []
        questions: ClassVar = 0
        failure: ClassVar = None

    server = ThreadingHTTPServer((HOST, 0), Fresh)
    Fresh.url = f"http://{HOST}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Fresh
    server.shutdown()
    thread.join()
    server.server_close()


async def register(url: str, topology: Topology) -> None:
    """As `docsum setup schemas` does it."""
    async with aclosing(SchemaRegistry(url)) as registry:
        await schemas.setup(registry, topology)
