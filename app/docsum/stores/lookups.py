"""Many questions, one query: look-ups of the same kind that come close together share it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from docsum.errors import StoreUnavailable

V = TypeVar("V")
_CLOSED = "The store was closed before it answered."


class Lookup(Generic[V]):
    """Gathers keys for a few milliseconds, while a query is under way, or until there are `limit`.

    A query costs the store about the same for one key as for fifty, so there is one at a time as a rule.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Coroutine[Any, Any, Mapping[str, V]]],
        missing: V,
        *,
        gather: timedelta = timedelta(milliseconds=5),
        limit: int = 500,
    ) -> None:
        self._ask = ask
        self._missing = missing
        self._gather = gather.total_seconds()
        self._limit = limit
        self._waiting: dict[str, list[asyncio.Future[V]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._queries: set[asyncio.Task[Mapping[str, V]]] = set()

    async def __call__(self, key: str) -> V:
        """The value of the key, or what stands for none. Raises what the query raised."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[V] = loop.create_future()
        self._waiting.setdefault(key, []).append(answer)
        if len(self._waiting) >= self._limit:
            self._send()
        elif self._timer is None and not self._queries:
            self._timer = loop.call_later(self._gather, self._send)
        return await answer

    def close(self) -> None:
        """Whoever still waits gets StoreUnavailable."""
        self._stop_timer()
        for query in self._queries:
            query.cancel()
        waiting, self._waiting = self._waiting, {}
        for answer in (answer for answers in waiting.values() for answer in answers):
            if not answer.done():
                answer.set_exception(StoreUnavailable(_CLOSED))

    def _send(self) -> None:
        self._stop_timer()
        waiting, self._waiting = self._waiting, {}
        query = asyncio.get_running_loop().create_task(self._ask(list(waiting)))
        self._queries.add(query)
        query.add_done_callback(partial(self._answer, waiting))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answer(
        self, waiting: Mapping[str, Sequence[asyncio.Future[V]]], query: asyncio.Task[Mapping[str, V]]
    ) -> None:
        self._queries.discard(query)
        if self._waiting and not self._queries:
            self._send()
        error = StoreUnavailable(_CLOSED) if query.cancelled() else query.exception()
        for key, answers in waiting.items():
            for answer in answers:
                if answer.done():  # the caller was cancelled
                    continue
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(query.result().get(key, self._missing))
