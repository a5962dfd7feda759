"""The worker's small web page: `/metrics`, `/healthz` (alive) and `/readyz`.

Ready is a member of the group whose settings work: not one that holds for a key that was rejected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import exposition

from docsum.telemetry.metrics import Metrics


@asynccontextmanager
async def serve(host: str, port: int, metrics: Metrics, ready: Callable[[], bool]) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port, a free one when 0 was asked for.

    Alive means that the event loop answers: a held worker is alive, a stuck one is not.
    """

    async def scrape(request: web.Request) -> web.Response:
        encode, kind = exposition.choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": kind})

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readiness(_: web.Request) -> web.Response:
        is_ready = ready()
        return web.json_response({"ready": is_ready}, status=200 if is_ready else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", scrape), web.get("/healthz", alive), web.get("/readyz", readiness)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
