"""Claude, through the official SDK: one call a document, and no answer bought twice.

The order of things: deliveries of one worker that ask for the same text take turns; what is known of the
request (this worker's last answers, then the store's) is used before anything is bought; the call is a task
of its own, so that a delivery that is let go loses its place in the queue but never an answer that is already
being paid for; and the answer is handed to the store before anything else looks at it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import anthropic
import httpx2

from docsum import settings
from docsum.errors import (
    ConfigurationError,
    DocsumError,
    ModelAccountBlocked,
    ModelAnswerInvalid,
    ModelFaltered,
    ModelKeyRejected,
    ModelRateLimited,
    ModelRefused,
    ModelRejectedDocument,
    ModelUnknown,
    ModelUnreachable,
    TooLong,
)
from docsum.models import Answer, DocumentReference, ExtractedText, Lane, Recipe, Summary, Usage
from docsum.ports import Clock
from docsum.summarisers import prompt
from docsum.summarisers.gate import CallGate
from docsum.summarisers.prices import Prices
from docsum.summarisers.prompt import Parsed, Reply, Request

_COOL_DOWN = timedelta(seconds=10)  # after a 429 that does not say how long
_LONGEST_RETRY_AFTER = timedelta(hours=1)
_REMEMBERED = 512  # fingerprints whose answers may not be durable yet; two flushes hold fewer
_MOST_TOKENS = 32_000  # of a second, larger try
_CUT = "The text was cut at the size limit; the summary covers what came before."


def make_client(model: settings.Model, max_in_flight: int) -> anthropic.AsyncAnthropic:
    """The SDK's client on its aiohttp transport, without retries: every call is a purchase of ours.

    Raises ConfigurationError when there is neither a key nor an address of a server that needs none.
    """
    key = model.api_key.get_secret_value()
    if not key and not model.base_url:
        raise ConfigurationError("There is no API key: set ANTHROPIC_API_KEY.")
    longest = model.timeout.total_seconds()
    places = max_in_flight + 8  # the gate counts the calls; the pool must never be what they wait for
    return anthropic.AsyncAnthropic(
        api_key=key or "local",
        base_url=model.base_url or None,
        max_retries=0,
        timeout=httpx2.Timeout(longest, connect=min(longest, 10.0)),
        http_client=anthropic.DefaultAioHttpClient(
            limits=httpx2.Limits(
                max_connections=places, max_keepalive_connections=places, keepalive_expiry=15.0
            ),
            trust_env=not _is_loopback(model.base_url),  # a proxy cannot reach our own machine
        ),
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class _Order:
    """What a delivery asks for."""

    request: Request
    fingerprint: str
    reference: DocumentReference
    lane: Lane
    paid: Callable[[], None]


class Ledger(Protocol):
    """The part of `SummaryStore` that knows what was paid for."""

    async def answers(self, fingerprint: str) -> Sequence[Answer]: ...

    def keep(self, answer: Answer) -> None: ...


_Call = asyncio.Task[tuple[Answer, Parsed | None]]


@dataclass(slots=True)
class _Queue:
    """The deliveries of this worker that ask for the same text: one at a time."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class AnthropicSummariser:
    """Implements the port `Summariser`; one for each worker."""

    def __init__(
        self,
        client: anthropic.AsyncAnthropic,
        gate: CallGate,
        store: Ledger,
        clock: Clock,
        prices: Prices,
        *,
        timeout: timedelta,
        reuse_scope: str = "",
        single_shot_tokens: int = 60_000,
    ) -> None:
        """`timeout` is the longest wait for one whole answer."""
        self._client = client
        self._gate = gate
        self._store = store
        self._clock = clock
        self._prices = prices
        self._timeout = timeout.total_seconds()
        self._reuse_scope = reuse_scope
        self._single_shot_tokens = single_shot_tokens
        self._queues: dict[str, _Queue] = {}
        self._calls: dict[str, _Call] = {}  # those that were sent, by fingerprint
        self._recent: OrderedDict[str, list[Answer]] = OrderedDict()

    @property
    def in_flight(self) -> int:
        """Calls that have been sent and not answered."""
        return len(self._calls)

    async def drain(self, timeout: timedelta) -> int:
        """Waits for the calls that are in flight now; returns how many still are."""
        if self._calls:
            await asyncio.wait(tuple(self._calls.values()), timeout=timeout.total_seconds())
        return len(self._calls)

    async def summarise(
        self,
        reference: DocumentReference,
        text: ExtractedText,
        recipe: Recipe,
        lane: Lane,
        paid: Callable[[], None],
    ) -> Summary:
        """Cancelling it never cancels a call that has been sent, and its late answer is kept all the same.

        Raises a ModelError, a ConfigurationError of the model's, or what `SummaryStore.answers` raises.
        """
        tokens = prompt.estimate_tokens(text.text)
        if tokens > self._single_shot_tokens:
            raise TooLong(
                f"The text has about {tokens} tokens; one request takes "
                f"{self._single_shot_tokens} (DOCSUM_MODEL__SINGLE_SHOT_TOKENS)."
            )
        self._prices.of(recipe.model)  # refuses an unknown model before it costs anything
        request = prompt.render(recipe, text.text, secrets.token_hex(8))
        fingerprint = prompt.fingerprint(
            request, self._reuse_scope, reference.event_id if reference.force else ""
        )
        order = _Order(request, fingerprint, reference, lane, paid)
        parsed, bought = await self._in_turn(order)
        return Summary(
            title=parsed.title,
            summary=parsed.summary,
            key_points=parsed.key_points,
            language=parsed.language,
            document_type=parsed.document_type,
            warnings=(*parsed.warnings, _CUT) if text.truncated else parsed.warnings,
            model=recipe.model,
            recipe=_recipe_id(recipe),
            fingerprint=fingerprint,
            input_tokens=sum(_prompt_tokens(answer.usage) for answer in bought),
            output_tokens=sum(answer.usage.output_tokens for answer in bought),
            cost=sum((answer.cost for answer in bought), Decimal(0)),
            reused=not bought,
        )

    async def _in_turn(self, order: _Order) -> tuple[Parsed, Sequence[Answer]]:
        """One delivery at a time for the same text: the next ones find the answer of the first."""
        queue = self._queues.setdefault(order.fingerprint, _Queue())
        queue.users += 1
        try:
            async with queue.turn:
                return await self._obtain(order)
        finally:
            queue.users -= 1
            if not queue.users:
                del self._queues[order.fingerprint]

    async def _obtain(self, order: _Order) -> tuple[Parsed, Sequence[Answer]]:
        """The answer, and what was bought for it now."""
        if (call := self._calls.get(order.fingerprint)) is not None:
            await asyncio.wait((call,))  # of a delivery that was let go; its answer is as good as any
        known = await self._known(order.fingerprint)
        if (reusable := _usable(known)) is not None:
            return reusable, ()
        bought: list[Answer] = []
        while True:
            max_tokens = next_try(known, order.request.max_tokens)
            answer, parsed = await self._buy(order, max_tokens)
            bought.append(answer)
            if parsed is not None:
                return parsed, bought
            known.append(answer)

    async def _known(self, fingerprint: str) -> list[Answer]:
        """The answers to this request, oldest first: the store's, and ours that it may not show yet."""
        recent = self._recent.get(fingerprint, ())
        if any(answer.usable for answer in recent):
            return list(recent)
        stored = await self._store.answers(fingerprint)
        answers = (*stored, *self._recent.get(fingerprint, ()))
        return list({answer.request_id: answer for answer in answers}.values())

    async def _buy(self, order: _Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
        """When cancelled it leaves at once: a call that was sent goes on, one that was not is dropped."""
        call = asyncio.create_task(self._call(order, max_tokens))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if self._calls.get(order.fingerprint) is not call:
                call.cancel()
            raise

    async def _call(self, order: _Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
        this = asyncio.current_task()
        assert this is not None
        request = order.request
        permit = self._gate.permit(request.input_tokens, request.expected_tokens)
        async with permit:
            self._calls[order.fingerprint] = this
            order.paid()
            try:
                answer, parsed = await self._ask(order, max_tokens)
            finally:
                del self._calls[order.fingerprint]
        permit.used(_prompt_tokens(answer.usage), answer.usage.output_tokens)
        return answer, parsed

    async def _ask(self, order: _Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
        """Sends the request. Whatever comes of it, what was paid for is with the store when this ends."""
        sent_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                # The plain response: making the SDK's models of it would double the work of a call.
                response = await self._client.post(
                    "/v1/messages", body=order.request.params(max_tokens), cast_to=httpx2.Response
                )
            reply = prompt.read_message(json.loads(response.content))
        except asyncio.CancelledError:  # the loop is being closed over us
            self._keep(order, self._lost(order, "cancelled"), sent_at)
            raise
        except (anthropic.AnthropicError, TimeoutError, ValueError) as error:
            if reply_lost(error):
                self._keep(order, self._lost(order, type(error).__name__), sent_at)
            failure = translate(error)
            if isinstance(failure, ModelRateLimited):
                self._gate.cool_down(failure.retry_after or _COOL_DOWN)
            raise failure from error
        return self._keep(order, reply, sent_at), reply.parsed

    def _lost(self, order: _Order, detail: str) -> Reply:
        """In place of the reply to a request that may have been served: estimated, never forgotten."""
        usage = Usage(order.request.input_tokens, order.request.expected_tokens)
        return Reply(f"lost-{uuid4()}", "", usage, "lost", detail)

    def _keep(self, order: _Order, reply: Reply, sent_at: float) -> Answer:
        answer = Answer(
            fingerprint=order.fingerprint,
            request_id=reply.id,
            model=order.request.model,
            raw=reply.text,
            usage=reply.usage,
            # Always the full price: this is no batch, whatever lane the event came by.
            cost=self._prices.cost(order.request.model, reply.usage, Lane.LIVE),
            price_version=self._prices.version,
            status=reply.status,
            answered_at=self._clock.now(),
            latency_ms=round((self._clock.monotonic() - sent_at) * 1000),
            document_id=order.reference.document_id,
            run_id=order.reference.run_id,
            lane=order.lane,
            detail=reply.detail,
        )
        self._store.keep(answer)
        self._recent.setdefault(order.fingerprint, []).append(answer)
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        return answer


@lru_cache(maxsize=64)
def _recipe_id(recipe: Recipe) -> str:
    return recipe.id


def _prompt_tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens


def _usable(known: Sequence[Answer]) -> Parsed | None:
    """The newest usable answer. One without text was purged: its money row stays, its words are gone."""
    for answer in reversed(known):
        if answer.usable and answer.raw:
            try:
                return prompt.parse(answer.raw)
            except ModelAnswerInvalid:  # kept by a version of docsum with other fields
                continue
    return None


def next_try(known: Sequence[Answer], max_tokens: int) -> int:
    """The `max_tokens` of the next call for a request that has these answers, none of them usable.

    Raises ModelRefused after a refusal, ModelAnswerInvalid after two answers that were paid for in vain. Lost
    replies do not count: nobody knows what they said.
    """
    vain = [answer for answer in known if answer.status in ("invalid", "truncated", "refused")]
    if refused := [answer for answer in vain if answer.status == "refused"]:
        raise ModelRefused(f"The model declined to summarise this document: {refused[-1].detail}.")
    if len(vain) >= 2:
        raise ModelAnswerInvalid(f"The model's answer was unusable twice: {vain[-1].detail}")
    if vain and vain[0].status == "truncated":
        return max(max_tokens, min(4 * max_tokens, _MOST_TOKENS))
    return max_tokens


# -- the SDK's errors in our terms ---------------------------------------------------------------------------

#: Every exception that the SDK exports. An exception is looked up by its class, then by its ancestors'.
ERRORS: dict[type[Exception], type[DocsumError]] = {
    anthropic.AnthropicError: ModelFaltered,
    anthropic.RetryableError: ModelFaltered,
    anthropic.CredentialsError: ModelKeyRejected,
    anthropic.IdentityTokenFileError: ModelKeyRejected,
    anthropic.APIError: ModelFaltered,
    anthropic.APIConnectionError: ModelFaltered,  # ModelUnreachable when nothing was sent
    anthropic.APITimeoutError: ModelFaltered,  # ModelUnreachable when nothing was sent
    anthropic.APIResponseValidationError: ModelFaltered,
    anthropic.APIWebhookValidationError: ModelFaltered,
    anthropic.APIStatusError: ModelFaltered,
    # 400, except for the phrases below
    anthropic.BadRequestError: ModelRejectedDocument,
    anthropic.RequestBodyEncodingInvalidError: ModelRejectedDocument,
    anthropic.RequestBodyEncodingUnsupportedError: ModelRejectedDocument,
    anthropic.CMEKKeyDisabledError: ModelAccountBlocked,
    anthropic.CMEKKeyNetworkBlockedError: ModelAccountBlocked,
    anthropic.OrganizationOnHoldError: ModelAccountBlocked,
    anthropic.OrganizationTypeNotSupportedError: ModelAccountBlocked,
    anthropic.ParentOrganizationRequiredError: ModelAccountBlocked,
    anthropic.ClaudeCodeKeyCreatorNotMemberError: ModelKeyRejected,
    anthropic.ClaudeCodeVersionTooOldError: ModelKeyRejected,
    # 401, 402, 403, 404
    anthropic.AuthenticationError: ModelKeyRejected,
    anthropic.PaymentRequiredError: ModelAccountBlocked,
    anthropic.LinkedOrganizationBillingUnavailableError: ModelAccountBlocked,
    anthropic.LinkedOrganizationSpendLimitReachedError: ModelAccountBlocked,
    anthropic.PermissionDeniedError: ModelKeyRejected,
    anthropic.SandboxEgressRestrictedError: ModelKeyRejected,
    anthropic.NotFoundError: ModelUnknown,
    # 408, 409, 412, 413, 422, 429, 431, 499
    anthropic.RequestTimeoutError: ModelFaltered,
    anthropic.ConflictError: ModelFaltered,
    anthropic.PreconditionFailedError: ModelFaltered,
    anthropic.ContentTooLargeError: TooLong,
    anthropic.RequestBodyTooLargeAfterDecodingError: TooLong,
    anthropic.UnprocessableEntityError: ModelRejectedDocument,
    anthropic.RateLimitError: ModelRateLimited,
    anthropic.RampLimitExceededError: ModelRateLimited,
    anthropic.ContractSpendLimitReachedError: ModelAccountBlocked,
    anthropic.EnforcedSpendLimitReachedError: ModelAccountBlocked,
    anthropic.RequestHeaderFieldsTooLargeError: ConfigurationError,
    anthropic.ClientClosedRequestError: ModelFaltered,
    # 5xx
    anthropic.InternalServerError: ModelFaltered,
    anthropic.HTTPNotImplementedError: ModelFaltered,
    anthropic.ServiceUnavailableError: ModelFaltered,
    anthropic.CMEKContextUnavailableError: ModelFaltered,
    anthropic.CMEKKeyUnreachableError: ModelFaltered,
    anthropic.GatewayTimeoutError: ModelFaltered,
    anthropic.OverloadedError: ModelFaltered,
    # not the SDK's: our own time-out of the whole call, and a 200 that is no message
    TimeoutError: ModelFaltered,
    ValueError: ModelFaltered,
}

#: The provider has no code for these, so the words decide.
_PHRASES: tuple[tuple[str, type[DocsumError]], ...] = (
    ("api usage limits", ModelAccountBlocked),
    ("credit balance is too low", ModelAccountBlocked),
    ("prompt is too long", TooLong),
    ("exceed context limit", TooLong),
)

#: Nothing had been sent when one of these was raised.
_UNSENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
    httpx2.ProxyError,
)


def translate(error: Exception) -> DocsumError:
    """The provider's failure in our terms, as a sentence, with its `retry-after` where it named one."""
    kind = next(ERRORS[ancestor] for ancestor in type(error).__mro__ if ancestor in ERRORS)
    if isinstance(error, anthropic.APIStatusError):
        said = (error.api_message or error.message).strip()
        if error.status_code in (400, 429):
            kind = next((found for phrase, found in _PHRASES if phrase in said.lower()), kind)
        request = f" ({error.request_id})" if error.request_id else ""
        sentence = f"The provider answered {error.status_code}: {said[:300]}{request}"
        return kind(sentence, retry_after=_retry_after(error.response.headers))
    if isinstance(error, anthropic.APIConnectionError):
        cause = error.__cause__ or error
        what = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        if not reply_lost(error):
            return ModelUnreachable(f"The provider cannot be reached: {what}.")
        return kind(f"The reply was lost: {what}.")
    if isinstance(error, TimeoutError):
        return kind("The provider did not answer in time (DOCSUM_MODEL__TIMEOUT).")
    return kind(f"The call of the model failed: {error}")


def reply_lost(error: BaseException) -> bool:
    """Whether the request may have been served, and paid for, though no answer came back."""
    if not isinstance(error, (anthropic.APIConnectionError, TimeoutError, ValueError)):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _UNSENT):
            return False
        cause = cause.__cause__
    return True


def _retry_after(headers: httpx2.Headers) -> timedelta | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = timedelta(seconds=float(headers[name]) * unit)
        except (
            KeyError,
            ValueError,
            OverflowError,
        ):  # the other form, an HTTP date, is not used by the provider
            continue
        return min(max(wait, timedelta()), _LONGEST_RETRY_AFTER)
    return None
