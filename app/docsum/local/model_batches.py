"""Message Batches of the local model server: up to 100,000 requests answered at leisure, for half the price.

A batch is a folder, so that it outlives a SIGKILL of the server: `batch.json` says what it is,
`requests.jsonl` what was asked, and `results.jsonl` grows in the order in which the requests are answered,
which is a random one. Only the whole is ever shown. Whatever is wrong with the parameters of one request is
found out when its turn comes, never at creation, as it is at the public API.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO

from docsum.local.model_api import ApiError, Json, compact, invalid
from docsum.local.model_billing import Ledger, Outcome
from docsum.local.model_faults import Endpoint, Fault, FaultKind
from docsum.local.model_latency import Latency
from docsum.local.model_replies import Reply, message_body
from docsum.local.model_requests import Ask, parse_ask

MAX_BODY_BYTES = 256 * 1024 * 1024
MAX_REQUESTS = 100_000
LIFETIME = 24 * 3600.0  # seconds from its creation until what is not answered expires
RESULTS_KEPT = 29 * 24 * 3600.0  # seconds from its creation
MOST_WAITING = 200_000  # requests of all batches; the lowest tier of the public API

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_RESULTS = ("succeeded", "errored", "canceled", "expired")
_NEVER = float("inf")

#: The answer to a request, which may take a thread.
Answer = Callable[[Ask], Awaitable[Reply]]
#: The fault that is to spoil something at an endpoint, if any; the texts are what a rule may look for.
Draw = Callable[[Endpoint, Sequence[str], str], Fault | None]


@dataclass(slots=True)
class Batch:
    """What is known of a batch; times are Unix times of the server's own clock."""

    id: str
    version: str  # of the API that its creator speaks
    size: int
    created_at: float
    ready_at: float  # when the last request will have been answered, unless the end comes first
    cancel_initiated_at: float | None = None
    ended_at: float | None = None
    counts: Mapping[str, int] | None = None  # by result, once it has ended

    @property
    def expires_at(self) -> float:
        return self.created_at + LIFETIME

    @property
    def due_at(self) -> float:
        """When it ends."""
        stop = self.expires_at if self.cancel_initiated_at is None else self.cancel_initiated_at
        return min(self.ready_at, stop)

    @property
    def answered(self) -> int:
        """How many requests are answered until it ends; the others are canceled or expire."""
        if self.due_at >= self.ready_at:
            return self.size
        return int(self.size * (self.due_at - self.created_at) / (self.ready_at - self.created_at))

    def is_archived(self, now: float) -> bool:
        return now >= self.created_at + RESULTS_KEPT

    def body(self, url: str, now: float) -> Json:
        """As the API shows it; `url` is the server's."""
        status = "in_progress" if self.cancel_initiated_at is None else "canceling"
        has_results = self.ended_at is not None and not self.is_archived(now)
        counts = dict.fromkeys(("processing", *_RESULTS), 0)
        counts |= {"processing": self.size} if self.counts is None else self.counts
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": status if self.ended_at is None else "ended",
            "request_counts": counts,
            "created_at": shown(self.created_at),
            "expires_at": shown(self.expires_at),
            "ended_at": shown(self.ended_at),
            "cancel_initiated_at": shown(self.cancel_initiated_at),
            "archived_at": shown(self.created_at + RESULTS_KEPT) if self.is_archived(now) else None,
            "results_url": f"{url}/v1/messages/batches/{self.id}/results" if has_results else None,
        }


def shown(moment: float | None) -> str | None:
    """RFC 3339, as the API writes it."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def check_requests(body: Json) -> list[Json]:
    """The requests of a batch; one bad id refuses them all, bad parameters are found out later."""
    if not isinstance(body, dict) or body.keys() - {"requests", "user_profile_id"}:
        raise invalid("a batch is an object with requests")
    requests = body.get("requests")
    if not isinstance(requests, list) or not requests:
        raise invalid("requests: List should have at least 1 item")
    if len(requests) > MAX_REQUESTS:
        raise invalid(f"requests: List should have at most {MAX_REQUESTS} items, not {len(requests)}")
    seen = set()
    for number, request in enumerate(requests):
        at = f"requests.{number}"
        if not isinstance(request, dict) or request.keys() != {"custom_id", "params"}:
            raise invalid(f"{at}: custom_id and params are required, and nothing else")
        name = request["custom_id"]
        if not isinstance(name, str) or not _CUSTOM_ID.fullmatch(name):
            raise invalid(f"{at}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if not isinstance(request["params"], dict):
            raise invalid(f"{at}.params: Input should be an object")
        if name in seen:
            raise invalid(f"{at}.custom_id: {name} is there twice; ids are unique in a batch")
        seen.add(name)
    return requests


class Batches:
    """All batches of a server; made inside a running loop, and closed when the last request is done."""

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        answer: Answer,
        draw: Draw,
        *,
        duration: Latency,
        chance: random.Random,
        prefix: str,
    ) -> None:
        """`prefix` makes ids differ from those of all other runs of the server."""
        self._folder = folder
        self._ledger = ledger
        self._answer = answer
        self._draw = draw
        self._duration = duration
        self._chance = chance
        self._prefix = prefix
        self._numbers = count()
        self._ahead = 0.0  # seconds that this clock is ahead of the real one
        self._moved = asyncio.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._batches = {batch.id: batch for batch in self._stored()}
        self._tasks = {
            batch.id: asyncio.create_task(self._process(batch))
            for batch in self._batches.values()
            if batch.ended_at is None
        }

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def now(self) -> float:
        """Unix time of the clock that batches live by."""
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let so much time pass at once, for batches."""
        self._ahead += seconds
        self._moved.set()
        self._moved = asyncio.Event()

    def create(self, requests: Sequence[Json], version: str, *, never_ends: bool = False) -> Batch:
        """Raises a 429 where too many requests wait."""
        waiting = sum(batch.size for batch in self._batches.values() if batch.ended_at is None)
        if waiting + len(requests) > MOST_WAITING:
            raise ApiError(
                429,
                "rate_limit_error",
                f"This batch would exceed your limit of {MOST_WAITING:,} batch requests that wait.",
            )
        now = self.now()
        ready = _NEVER if never_ends else now + self._duration.draw(self._chance)
        name = f"msgbatch_{self._prefix}{next(self._numbers):06x}"
        batch = Batch(name, version, len(requests), now, ready)
        path = self._path(batch)
        path.mkdir()
        with (path / "requests.jsonl").open("w") as file:
            file.writelines(f"{compact(request)}\n" for request in requests)
        self._save(batch)
        self._batches[batch.id] = batch
        self._tasks[batch.id] = asyncio.create_task(self._process(batch))
        return batch

    def get(self, name: str) -> Batch:
        if name not in self._batches:
            raise ApiError(404, "not_found_error", f"Message batch {name} not found")
        return self._batches[name]

    def page(
        self, limit: int, after: str | None, before: str | None, youngest: float
    ) -> tuple[list[Batch], bool]:
        """Newest first, those after an older or before a newer one; and whether there are more.

        Batches younger than `youngest` seconds are not listed yet.
        """
        found = [batch for batch in reversed(self._batches.values()) if self.age(batch) >= youngest]
        names = [batch.id for batch in found]
        for name in (after, before):
            if name is not None and name not in names:
                raise invalid(f"{name} is no message batch of this workspace")
        if before is not None:
            newer = found[: names.index(before)]
            return newer[-limit:], len(newer) > limit
        rest = found[names.index(after) + 1 :] if after is not None else found
        return rest[:limit], len(rest) > limit

    def age(self, batch: Batch) -> float:
        return self.now() - batch.created_at

    def cancel(self, batch: Batch) -> None:
        """What has been answered until now is billed; nothing more will be."""
        if batch.ended_at is None and batch.cancel_initiated_at is None:
            batch.cancel_initiated_at = self.now()
            self._save(batch)
            self.advance(0)

    def delete(self, batch: Batch) -> None:
        if batch.ended_at is None:
            raise invalid(f"Message batch {batch.id} cannot be deleted before it has ended; cancel it first")
        shutil.rmtree(self._path(batch))
        del self._batches[batch.id]

    def results(self, batch: Batch) -> Path:
        """The file of its results."""
        if batch.ended_at is None:
            raise ApiError(
                404, "not_found_error", f"Message batch {batch.id} has not ended: it has no results yet"
            )
        if batch.is_archived(self.now()):
            raise ApiError(404, "not_found_error", f"The results of message batch {batch.id} are archived")
        return self._path(batch) / "results.jsonl"

    # -- files -------------------------------------------------------------------------------------------

    def _path(self, batch: Batch) -> Path:
        return self._folder / batch.id

    def _save(self, batch: Batch) -> None:
        path = self._path(batch) / "batch.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(batch)))
        new.replace(path)

    def _stored(self) -> list[Batch]:
        """What earlier processes left, oldest first; a folder without `batch.json` was never answered."""
        found = [Batch(**json.loads(path.read_text())) for path in self._folder.glob("msgbatch_*/batch.json")]
        return sorted(found, key=lambda batch: batch.created_at)

    # -- the work ----------------------------------------------------------------------------------------

    async def _process(self, batch: Batch) -> None:
        while (wait := batch.due_at - self.now()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), min(wait, 3600))
        path = self._path(batch)
        with (path / "requests.jsonl").open("rb") as asked, (path / "results.jsonl").open("a+b") as given:
            counts = _recovered(given)
            order = _offsets(asked)
            random.Random(batch.id).shuffle(order)  # noqa: S311 - repeatable, no secret
            for number in range(counts.total(), batch.size):
                asked.seek(order[number])
                result = await self._result(batch, number, json.loads(asked.readline()))
                counts[result.kind] += 1
                given.write(result.lines)
                given.flush()
                if result.bill:
                    result.bill()
                await asyncio.sleep(0)
        batch.ended_at, batch.counts = self.now(), {kind: counts[kind] for kind in _RESULTS}
        self._save(batch)
        del self._tasks[batch.id]

    async def _result(self, batch: Batch, number: int, request: Mapping[str, Json]) -> _Result:
        name = request["custom_id"]
        if number >= batch.answered:
            kind = "expired" if batch.cancel_initiated_at is None else "canceled"
            return _Result(kind, name, {"type": kind})
        request_id = f"req_{batch.id.removeprefix('msgbatch_')}x{number:05x}"
        try:
            ask = parse_ask(request["params"], batch.version)
            fault = self._draw(Endpoint.BATCH_ITEM, (*ask.texts, ask.system, name), ask.model.id)
            if fault and fault.kind is FaultKind.ERROR:
                raise fault.error()
        except ApiError as error:
            return _Result("errored", name, {"type": "errored", "error": error.body(request_id)})
        if fault and fault.kind in (FaultKind.EXPIRED, FaultKind.CANCELED):
            return _Result(str(fault.kind), name, {"type": str(fault.kind)})
        reply = await self._answer(ask)
        reply = fault.bend(reply) if fault else reply
        body = message_body(ask, reply, request_id)
        body["usage"]["service_tier"] = "batch"
        body = fault.decorate(body) if fault else body

        def bill() -> None:
            lost = fault is not None and fault.kind is FaultKind.MISSING
            receipt = self._ledger.accept(ask, reply, request_id, tier="batch")
            self._ledger.settle(receipt, Outcome.LOST if lost else Outcome.SERVED)

        return _Result(
            "succeeded", name, {"type": "succeeded", "message": body}, fault.kind if fault else None, bill
        )


@dataclass(frozen=True, slots=True)
class _Result:
    """What becomes of one request."""

    kind: str
    custom_id: str
    result: Json
    fault: FaultKind | None = None
    bill: Callable[[], None] | None = None  # to be called once it is written down

    @property
    def lines(self) -> bytes:
        """Two of a duplicated one, an empty one in place of one that goes missing."""
        line = compact({"custom_id": self.custom_id, "result": self.result}).encode() + b"\n"
        if self.fault is FaultKind.MISSING:
            return b"\n"
        return line * (2 if self.fault is FaultKind.DUPLICATED else 1)


def _offsets(file: BinaryIO) -> array[int]:
    """Where each line begins."""
    found, at = array("Q"), 0
    for line in file:
        found.append(at)
        at += len(line)
    return found


def _recovered(file: BinaryIO) -> Counter[str]:
    """The results that an earlier process has written, by kind; half a line goes."""
    file.seek(0)
    counts: Counter[str] = Counter()
    end, last = 0, b""
    for line in file:
        if not line.endswith(b"\n"):
            break
        end += len(line)
        if line != last:  # a duplicated one counts once
            counts[json.loads(line)["result"]["type"] if line.strip() else "succeeded"] += 1
        last = line if line.strip() else b""
    os.ftruncate(file.fileno(), end)
    return counts


def lines_of(path: Path) -> Iterator[bytes]:
    """The results as they are sent, in pieces: without the empty lines."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line
