"""The worker's small web page: `/metrics`, `/livez` (alive), `/readyz` and `/status`.

Ready is a member of the group whose settings work: not one that holds for a key that was rejected. `/status`
is what its heartbeat tells the store, for whoever asks while the store is down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from pydantic import TypeAdapter, ValidationError

from docsum.models import WorkerStatus
from docsum.telemetry.metrics import WorkerMetrics, exposed


@asynccontextmanager
async def serve(
    host: str,
    port: int,
    metrics: WorkerMetrics,
    ready: Callable[[], bool],
    status: Callable[[], WorkerStatus],
) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port, a free one when 0 was asked for.

    Alive means that the event loop answers: a held worker is alive, a stuck one is not.
    """

    async def scrape(request: web.Request) -> web.Response:
        body, kind = exposed(metrics.registry, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readiness(_: web.Request) -> web.Response:
        is_ready = ready()
        return web.json_response({"ready": is_ready}, status=200 if is_ready else 503)

    async def beat(_: web.Request) -> web.Response:
        return web.Response(body=_statuses().dump_json(status()), content_type="application/json")

    pages = {"/metrics": scrape, "/livez": alive, "/readyz": readiness, "/status": beat}
    app = web.Application()
    app.add_routes([web.get(path, page) for path, page in pages.items()])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def ask(address: str, patience: timedelta) -> WorkerStatus | None:
    """What the worker whose page is at `host:port` does; None when it does not answer."""
    timeout = ClientTimeout(total=patience.total_seconds())
    try:
        async with ClientSession(timeout=timeout) as session, session.get(f"http://{address}/status") as page:
            return (
                _statuses().validate_json(await page.read())
                if page.status == web.HTTPOk.status_code
                else None
            )
    except (ClientError, TimeoutError, ValidationError):
        return None


@cache
def _statuses() -> TypeAdapter[WorkerStatus]:
    return TypeAdapter(WorkerStatus)
