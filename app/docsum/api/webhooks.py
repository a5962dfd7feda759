"""Webhooks: whoever began a run is told when it finishes, pauses or fails. At least once, under a stable id.

A message is written down before it is sent, and every attempt before it is made: whoever is killed in
between leaves it to the next process that looks. Signed as the Standard Webhooks say.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http import HTTPStatus
from random import Random
from typing import Protocol
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import structlog
from standardwebhooks import Webhook

from docsum.api.runs import shown
from docsum.api.shapes import RunOut
from docsum.errors import ConfigurationError, StoreError
from docsum.models import (
    ControlState,
    DeliveryState,
    Run,
    RunProgress,
    RunState,
    WebhookAnswer,
    WebhookDelivery,
    to_ms,
)
from docsum.ports import Clock, ServiceStore

log = structlog.get_logger(__name__)

FINISHED, PAUSED, FAILED = "run.finished", "run.paused", "run.failed"
#: Waits between attempts: ten in all, over three days.
DELAYS = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)),
)
JITTER = 0.2  # a wait is longer by up to that part, so that receivers are not met by all at once
LOOK_EVERY = timedelta(seconds=5)
AT_ONCE, TO_ONE_HOST = 16, 2  # attempts of one process
CLAIM = timedelta(seconds=30)  # for longer than an attempt takes, nobody else makes one
#: Several workers may pause one run at the same moment, each a little later: the last one is told.
STANDS = timedelta(seconds=5)
#: Documents that are being announced while their run is cancelled get their end from a worker.
SETTLES = timedelta(minutes=1)
GOODBYE = timedelta(seconds=5)
_SECRETS = "DOCSUM_API__WEBHOOK_SECRETS"
_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)
_MESSAGES = UUID("b3a6e9b4-4f57-4b7d-8f5e-6c0c1f6f8a52")  # name space of message ids
_MOST = 10_000  # messages of a run that are looked at


class Sender(Protocol):
    """Takes a message to its receiver."""

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookAnswer:
        """One attempt, which takes less than `CLAIM`."""


# -- decisions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a run's webhook is to be told, and when it came about."""

    event: str
    moment: datetime

    def message_id(self, run_id: UUID) -> str:
        """The same whoever looks, and however often."""
        return f"msg_{uuid5(_MESSAGES, f'{run_id} {self.event} {to_ms(self.moment)}').hex}"


def may_be_due(run: Run) -> bool:
    """Whether it is worth counting the run's documents."""
    return run.state is RunState.PUBLISHED or run.wanted is not ControlState.RUNNING or bool(run.problem)


def due(run: Run, progress: RunProgress, now: datetime) -> list[Notice]:
    """What is to be told of a run as it stands. Of its end once, of each pause and failure anew."""
    since = now - run.control.changed_at if run.control else timedelta(0)
    finished = [Notice(FINISHED, run.created_at)]
    if run.wanted is ControlState.CANCELLED:
        return finished if not progress.remaining or since >= SETTLES else []
    if run.state is RunState.PUBLISHED and not progress.remaining:
        return finished
    found = []
    if run.problem:
        found.append(Notice(FAILED, run.updated_at))
    if run.control and run.wanted is ControlState.PAUSED and since >= STANDS:
        found.append(Notice(PAUSED, run.control.changed_at))
    return found


def message(
    notice: Notice, run: Run, progress: RunProgress, now: datetime, *, disabled: bool
) -> WebhookDelivery:
    """It has changed no later than what it tells of, so that written twice it hides no attempt."""
    data = RunOut.model_validate(shown(run, progress)).model_dump(mode="json")
    timestamp = now.isoformat().replace("+00:00", "Z")  # as the moments of `data`
    body = {"type": notice.event, "timestamp": timestamp, "data": data}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return WebhookDelivery(
        message_id=notice.message_id(run.id),
        run_id=run.id,
        event=notice.event,
        url=run.webhook,
        body=text.encode(errors="replace").decode(),
        created_at=now,
        changed_at=notice.moment,
        next_attempt_at=now,
        state=DeliveryState.DISABLED if disabled else DeliveryState.PENDING,
        answer=_NO_MORE if disabled else "",
    )


_NO_MORE = "It was not sent: the receiver has answered an earlier message 410 (Gone)."


def headers(delivery: WebhookDelivery, keys: Sequence[Webhook], now: datetime) -> dict[str, str]:
    """Of one attempt: a signature for every key, so that receivers may change theirs later."""
    signatures = [key.sign(delivery.message_id, now, delivery.body) for key in keys]
    return {
        "webhook-id": delivery.message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def begun(delivery: WebhookDelivery, now: datetime) -> WebhookDelivery:
    """Right before an attempt: it counts, whatever becomes of this process."""
    return _changed(replace(delivery, attempts=delivery.attempts + 1, next_attempt_at=now + CLAIM), now)


def ended(delivery: WebhookDelivery, answer: WebhookAnswer, now: datetime, chance: float) -> WebhookDelivery:
    """After an attempt. `chance`: between 0 and 1, for the jitter."""
    sentence = said(answer)
    if answer.status is not None and 200 <= answer.status < 300:
        return _changed(replace(delivery, state=DeliveryState.DELIVERED, answer=sentence), now)
    if answer.status == HTTPStatus.GONE:
        return _changed(replace(delivery, state=DeliveryState.DISABLED, answer=sentence), now)
    if delivery.attempts > len(DELAYS):
        return _changed(replace(delivery, state=DeliveryState.FAILED, answer=sentence), now)
    wait = DELAYS[delivery.attempts - 1] * (1 + JITTER * chance)
    if answer.status in _ASKS_FOR_TIME and answer.retry_after is not None:
        wait = max(wait, answer.retry_after)
    return _changed(replace(delivery, next_attempt_at=now + wait, answer=sentence), now)


_ASKS_FOR_TIME = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def said(answer: WebhookAnswer) -> str:
    """What came of an attempt, one sentence: nothing that the receiver has chosen but its status."""
    if answer.status is None:
        return answer.problem
    with suppress(ValueError):
        phrase = f"The receiver answered {answer.status} ({HTTPStatus(answer.status).phrase})"
        return f"{phrase}; redirects are not followed." if 300 <= answer.status < 400 else f"{phrase}."
    return f"The receiver answered {answer.status}."


def keys_of(text: str) -> list[Webhook]:
    """The keys that a setting lists by comma, none where it is empty. Raises ConfigurationError."""
    return [_key(part.strip()) for part in text.split(",") if part.strip()]


def _key(secret: str) -> Webhook:
    try:
        if not secret.startswith(_PREFIX):
            raise ValueError("no prefix")
        encoded = secret.removeprefix(_PREFIX).rstrip("=")
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        if len(key) not in _KEY_BYTES:
            raise ValueError("too short or too long")
    except (ValueError, binascii.Error):
        raise ConfigurationError(
            f"{_SECRETS} holds something that is no secret of a webhook: write `{_PREFIX}` and 24 to 64 "
            f'random bytes in base64, as `echo "{_PREFIX}$(openssl rand -base64 32)"` makes them.'
        ) from None
    return Webhook(key)


def refuse_unsigned(keys: Sequence[Webhook]) -> None:
    """Raises ConfigurationError where there is nothing to sign with."""
    if not keys:
        raise ConfigurationError(
            f"Webhooks are signed, and {_SECRETS} is empty: set it and start the API anew."
        )


def _changed(delivery: WebhookDelivery, now: datetime) -> WebhookDelivery:
    """Never with the same time twice: the newest shows."""
    return replace(delivery, changed_at=max(now, delivery.changed_at + timedelta(milliseconds=1)))


# -- effects -----------------------------------------------------------------------------------------------


@dataclass
class Webhooks:
    """Writes down what is to be told and sends it. Any number of processes may do so side by side."""

    store: ServiceStore
    clock: Clock
    sender: Sender
    keys: Sequence[Webhook]
    random: Random
    _looked_at: float = float("-inf")
    _written: frozenset[str] = frozenset()  # ids of what is due and was there at the last look
    _attempts: dict[str, tuple[str | None, asyncio.Task[None]]] = field(default_factory=dict)

    async def run(self) -> None:
        """Again and again; cancelled, it lets go of what is under way, which is sent by the next one."""
        try:
            while True:
                try:
                    await self._look()
                except StoreError as error:  # the next look asks again
                    log.warning("webhooks wait", action="webhook", message=str(error))
                except Exception:  # whatever it is, it must not end the loop unseen
                    log.exception("webhooks failed", action="webhook")
                await self._rest()
        finally:
            tasks = [task for _, task in self._attempts.values()]
            if tasks:
                await asyncio.wait(tasks, timeout=GOODBYE.total_seconds())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        if self.clock.monotonic() - self._looked_at >= LOOK_EVERY.total_seconds():
            self._looked_at = self.clock.monotonic()
            await self._write_down()
        for delivery in await self.store.webhooks_due(self.clock.now(), AT_ONCE * 4, TO_ONE_HOST):
            self._start(delivery)

    async def _rest(self) -> None:
        """Until the next look, or until there is room for another attempt."""
        rest = asyncio.create_task(self.clock.sleep(LOOK_EVERY.total_seconds()))
        try:
            tasks = (task for _, task in self._attempts.values())
            await asyncio.wait([rest, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            rest.cancel()

    async def _write_down(self) -> None:
        seen = set()
        for run in await self.store.runs_to_tell():
            if not may_be_due(run):
                continue
            try:
                seen |= await self._written_of(run)
            except StoreError as error:  # one run must not hold up the others
                log.warning("webhook waits", action="webhook", run_id=str(run.id), message=str(error))
            except Exception:  # nor one that cannot be put into words
                log.exception("webhook failed", action="webhook", run_id=str(run.id))
        self._written = frozenset(seen)

    async def _written_of(self, run: Run) -> set[str]:
        """The ids of what is due of this run; all of it is durable on return."""
        progress = await self.store.progress(run.id)
        now = self.clock.now()
        notices = {notice.message_id(run.id): notice for notice in due(run, progress, now)}
        if not notices.keys() <= self._written:
            earlier = await self.store.webhook_deliveries(run.id, limit=_MOST)
            disabled = any(each.state is DeliveryState.DISABLED for each in earlier)
            there = {each.message_id for each in earlier}
            for message_id, notice in notices.items():
                if message_id not in there:
                    row = message(notice, run, progress, now, disabled=disabled)
                    await self.store.save_webhook_delivery(row)
        return set(notices)

    def _start(self, delivery: WebhookDelivery) -> None:
        host = urlsplit(delivery.url).hostname
        to_host = sum(host == other for other, _ in self._attempts.values())
        if delivery.message_id in self._attempts or len(self._attempts) >= AT_ONCE or to_host >= TO_ONE_HOST:
            return
        task = asyncio.create_task(self._attempt(delivery), name=delivery.message_id)
        self._attempts[delivery.message_id] = (host, task)
        task.add_done_callback(lambda _: self._attempts.pop(delivery.message_id, None))

    async def _attempt(self, due_: WebhookDelivery) -> None:
        fields = {"action": "webhook", "run_id": str(due_.run_id), "message_id": due_.message_id}
        try:
            delivery = await self._claimed(due_)
            if delivery is None:
                return
            signed = headers(delivery, self.keys, self.clock.now())
            answer = await self.sender.send(delivery.url, delivery.body.encode(), signed)
            after = ended(delivery, answer, self.clock.now(), self.random.random())
            log.info(
                "webhook attempted",
                status=answer.status,
                attempt=after.attempts,
                state=after.state.value,
                **fields,
            )
            await self.store.save_webhook_delivery(after)
        except StoreError as error:  # what was not written down happens again
            log.warning("webhook not noted", message=str(error), **fields)
        except Exception:  # whatever it is, one message must not end the others
            log.exception("webhook failed", **fields)

    async def _claimed(self, due_: WebhookDelivery) -> WebhookDelivery | None:
        """The message, for an attempt of this process; None where there is none to make."""
        found = await self.store.webhook_deliveries(due_.run_id, limit=_MOST)
        delivery = next((each for each in found if each.message_id == due_.message_id), due_)
        now = self.clock.now()
        if delivery.state is not DeliveryState.PENDING or delivery.next_attempt_at > now:
            return None
        if any(each.state is DeliveryState.DISABLED for each in found):
            over = replace(delivery, state=DeliveryState.DISABLED, answer=_NO_MORE)
            await self.store.save_webhook_delivery(_changed(over, now))
            return None
        claimed = begun(delivery, now)
        await self.store.save_webhook_delivery(claimed)
        return claimed
