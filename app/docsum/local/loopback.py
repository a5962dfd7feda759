"""Ports and health on this machine's loopback address."""

from __future__ import annotations

import asyncio
import http.client
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from urllib.parse import urlsplit

HOST = "127.0.0.1"

# Below what Linux (32768) and macOS (49152) give to outgoing connections: one of those could hold a port
# just when its server restarts.
_PORTS = range(20_000, 32_768)


def free_port(preferred: int | None = None) -> int:
    """A port that nobody listens on now: the preferred one if it is free."""
    if preferred is not None and _is_free(preferred):
        return preferred
    return next(port for port in random.sample(_PORTS, len(_PORTS)) if _is_free(port))


def _is_free(port: int) -> bool:
    if listens(port):
        return False
    with closing(socket.socket()) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections may linger on it
        try:
            server.bind((HOST, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether something accepts connections at this port."""
    with closing(socket.socket()) as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0


def http_ready(url: str) -> Callable[[], Awaitable[bool]]:
    """A probe: does `GET url` answer 200?"""

    async def ready() -> bool:
        return await asyncio.to_thread(_answers, url)

    return ready


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or HOST, parts.port, timeout=2)) as connection:
        try:
            connection.request("GET", f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
