"""Claude, through the official SDK: one call a document, many for a long one, and no answer bought twice.

The order of things: deliveries of one worker that ask for the same text take turns; what is known of the
request (this worker's last answers, then the store's) is used before anything is bought; the call is a task
of its own, so that a delivery that is let go loses its place in the queue but never an answer that is already
being paid for; and the answer is handed to the store before anything else looks at it.

A long document is read in parts, and its summary is made from the notes on them (`chunking.Plan`). Every part
is a request like any other, so a document that was killed goes on with the part that it had reached.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache, partial
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import anthropic
import httpx2

from docsum import settings
from docsum.errors import (
    ConfigurationError,
    ModelAnswerInvalid,
    ModelFaltered,
    ModelRateLimited,
    ModelRefused,
    ModelRejectedDocument,
    StoreUnavailable,
    TooLong,
    row_of,
)
from docsum.models import Answer, DocumentReference, ExtractedText, Lane, Recipe, Summary, Usage
from docsum.ports import Clock, Later, Ledger
from docsum.summarisers import chunking, prompt, quality
from docsum.summarisers.chunking import Gaps, Plan
from docsum.summarisers.gate import CallGate
from docsum.summarisers.prices import OnTheirWay, Prices
from docsum.summarisers.prompt import Parsed, Reply, Request
from docsum.summarisers.provider_errors import reply_lost, translate

_COOL_DOWN = timedelta(seconds=10)  # after a 429 that does not say how long
_REMEMBERED = 512  # fingerprints whose answers may not be durable yet; two flushes hold fewer
_MOST_TOKENS = 32_000  # of a second, larger try
_PARTS_AT_ONCE = 4  # of one long document: others want to be read too
_SIZES = 3  # a text that is too long is tried in parts, each time of half the size
_LEAST_TOKENS = 500  # of a part: what does not fit then is not the text
_UNREADABLE = (ModelRefused, ModelAnswerInvalid, ModelRejectedDocument)  # this part; the others may be fine
_REVIEWED_HERE = 500_000  # characters; a longer text takes tens of milliseconds, so it goes to a thread
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
class Job:
    """A delivery, and what has been bought for it now."""

    reference: DocumentReference
    text: ExtractedText
    recipe: Recipe
    lane: Lane
    before_paying: Callable[[], Awaitable[None]]
    partition: int
    bought: list[Answer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Order:
    """One request of a job."""

    job: Job
    request: Request
    fingerprint: str
    chunk: int = 0  # 0 where the text is read at once; else from 1: the parts, the merges, the summary


@dataclass(frozen=True, slots=True)
class _Node:
    """A request for notes: on one part of a long document, or in place of the notes on several."""

    number: int  # `Answer.chunk`
    parts: tuple[int, ...]  # the numbers of the parts that the notes tell of
    render: Callable[[str], Request]  # of the random boundary


#: Lane, status of the answer or reason of the failure, seconds.
Called = Callable[[Lane, str, float], None]
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
        called: Called = lambda lane, reason, seconds: None,
    ) -> None:
        """`timeout` is the longest wait for one whole answer; `called` hears of every request that ended."""
        self._client = client
        self._gate = gate
        self._store = store
        self._clock = clock
        self._prices = prices
        self._timeout = timeout.total_seconds()
        self._reuse_scope = reuse_scope
        self._called = called
        self._queues: dict[str, _Queue] = {}
        self._calls: dict[str, _Call] = {}  # those that were sent, by fingerprint
        self._recent: OrderedDict[str, list[Answer]] = OrderedDict()
        self._on_their_way = OnTheirWay()

    def committed(self, run_id: UUID | None) -> Decimal:
        return self._on_their_way.of(run_id)

    async def pending(self, reference: DocumentReference, partition: int) -> Later | None:
        """Nothing: a call that is under way is waited for where its answer is needed."""
        return None

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
        before_paying: Callable[[], Awaitable[None]],
        *,
        partition: int = 0,
    ) -> Summary:
        """Cancelling it never cancels a call that has been sent, and its late answer is kept all the same.

        Raises a ModelError, a ConfigurationError of the model's, or what `SummaryStore.answers` or
        `before_paying` raises.
        """
        self._prices.of(recipe.model)  # refuses an unknown model before it costs anything
        job = Job(reference, text, recipe, lane, before_paying, partition)
        if text.pdf is not None:
            return await self._as_it_is(job, text.pdf)
        tokens = prompt.estimate_tokens(text.text)
        at_once = recipe.single_shot_tokens
        for tries_left in reversed(range(_SIZES)):
            try:
                return await (self._at_once(job) if tokens <= at_once else self._in_parts(job, at_once))
            except TooLong as error:
                at_once = min(at_once, tokens) // 2
                if at_once < _LEAST_TOKENS:
                    raise
                if not tries_left:
                    raise TooLong(
                        f"The text is too long, even in parts of {2 * at_once} tokens. {error}"
                    ) from error
        raise AssertionError("the last try returns or raises")

    async def _as_it_is(self, job: Job, pdf: bytes) -> Summary:
        """Pages that are pictures: the model reads the document itself."""
        return await self._alone(job, prompt.render_pdf(job.recipe, pdf, job.text.pages or 1))

    async def _at_once(self, job: Job) -> Summary:
        return await self._alone(job, prompt.render(job.recipe, job.text.text, _boundary()))

    async def _alone(self, job: Job, request: Request) -> Summary:
        order = Order(job, request, self._fingerprint(job, request))
        return _summary(job, await _reviewed(job, await self._in_turn(order)), order.fingerprint)

    async def _in_parts(self, job: Job, most_tokens: int) -> Summary:
        """Notes on every part, merged level by level, then the summary from what is left."""
        plan = await asyncio.to_thread(chunking.plan, job.text.text, job.recipe, most_tokens)
        gaps = Gaps(plan.chunks)
        nodes = [_Node(chunk.number, (chunk.number,), partial(plan.part, chunk)) for chunk in plan.chunks]
        notes = await self._notes(job, nodes, gaps)
        for level in plan.levels:
            nodes = _merged(plan, level, nodes, notes)
            notes = await self._notes(job, nodes, gaps)
        request = plan.whole(_present(notes), _boundary())
        order = Order(job, request, self._fingerprint(job, request), nodes[-1].number + 1)
        parsed = await _reviewed(job, await self._in_turn(order))
        summary = _summary(job, parsed, order.fingerprint)
        return replace(
            summary,
            warnings=(*summary.warnings, *gaps.warnings),
            chunks=len(plan.chunks),
            coverage=gaps.coverage,
        )

    async def _notes(self, job: Job, nodes: Sequence[_Node], gaps: Gaps) -> list[Parsed | None]:
        """What the model writes of each node, None of one that it cannot read: that is left out, in `gaps`.

        Requests are rendered twice, for their fingerprints and when their turn comes: a copy of the whole
        text is not held in between.
        """
        fingerprints = [await self._foresee(job, node) for node in nodes]
        known = await asyncio.gather(*map(self._known, fingerprints))
        notes = [_usable(answers) for answers in known]
        for answers, note in zip(known, notes, strict=True):
            if note is not None:  # what is missing is looked at again when its turn comes
                job.bought.extend(self._bought_for(job, answers))
        places = asyncio.Semaphore(_PARTS_AT_ONCE)

        async def read(place: int, node: _Node) -> None:
            async with places:
                order = Order(job, node.render(_boundary()), fingerprints[place], node.number)
                try:
                    notes[place] = await self._in_turn(order)
                except _UNREADABLE as error:
                    gaps.leave_out(node.parts, error)
                except Later as later:
                    if not later.answers:
                        raise  # no more of it is to be bought
                    ordered.extend(later.answers)

        ordered: list[asyncio.Future[None]] = []
        missing = [(place, node) for place, node in enumerate(nodes) if notes[place] is None and node.parts]
        try:
            await _together(read(place, node) for place, node in missing)
        except Later:
            await self._answered(fingerprints)
            raise
        if ordered:
            raise Later(ordered)
        return notes

    async def _answered(self, fingerprints: Sequence[str]) -> None:
        """Returns when none of these requests is in flight: what came of them is with the store."""
        if sent := [self._calls[name] for name in fingerprints if name in self._calls]:
            await asyncio.wait(sent)

    async def _foresee(self, job: Job, node: _Node) -> str:
        """The fingerprint of a request that comes later. Raises TooLong before its neighbours are bought."""
        request = node.render(_boundary())
        self._gate.permit(request.input_tokens, request.expected_tokens)
        await asyncio.sleep(0)  # rendering takes milliseconds, and there may be many
        return self._fingerprint(job, request)

    def _fingerprint(self, job: Job, request: Request) -> str:
        event_id = job.reference.event_id if job.reference.force else ""
        return prompt.fingerprint(request, self._reuse_scope, event_id)

    async def _in_turn(self, order: Order) -> Parsed:
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

    async def _obtain(self, order: Order) -> Parsed:
        if (call := self._calls.get(order.fingerprint)) is not None:
            await asyncio.wait((call,))  # of a delivery that was let go; its answer is as good as any
        known = await self._known(order.fingerprint)
        order.job.bought.extend(self._bought_for(order.job, known))
        if (reusable := _usable(known)) is not None:
            return reusable
        while True:
            max_tokens = next_try(known, order.request.max_tokens)
            answer, parsed = await self._buy(order, max_tokens)
            order.job.bought.append(answer)
            if parsed is not None:
                return parsed
            known.append(answer)

    def _bought_for(self, job: Job, known: Sequence[Answer]) -> Iterable[Answer]:
        """Of the answers that were there, those that this delivery has ordered: here none."""
        return ()

    async def _known(self, fingerprint: str) -> list[Answer]:
        """The answers to this request, oldest first: the store's, and ours that it may not show yet."""
        recent = self._recent.get(fingerprint, ())
        if any(answer.usable for answer in recent):
            return list(recent)
        stored = await self._store.answers(fingerprint)
        answers = (*stored, *self._recent.get(fingerprint, ()))
        return list({answer.request_id: answer for answer in answers}.values())

    async def _buy(self, order: Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
        """When cancelled it leaves at once: a call that was sent goes on, one that was not is dropped."""
        call = asyncio.create_task(self._call(order, max_tokens))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if self._calls.get(order.fingerprint) is not call:
                call.cancel()
            call.add_done_callback(_forget_failure)
            raise

    async def _call(self, order: Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
        this = asyncio.current_task()
        assert this is not None
        request = order.request
        permit = self._gate.permit(request.input_tokens, request.expected_tokens, order.job.lane)
        async with permit:
            try:
                if self._store.unavailable_since is not None:
                    raise StoreUnavailable("No call is made while its answer could not be stored.")
                await order.job.before_paying()
            except BaseException:
                permit.used(0, 0, requests=0)
                raise
            self._calls[order.fingerprint] = this
            estimate = self._prices.cost(request.model, _expected(request), Lane.LIVE)
            run_id = order.job.reference.run_id
            self._on_their_way.add(run_id, estimate)
            try:
                answer, parsed = await self._ask(order, max_tokens)
            finally:
                del self._calls[order.fingerprint]
                self._on_their_way.remove(run_id, estimate)
        permit.used(_prompt_tokens(answer.usage), answer.usage.output_tokens)
        return answer, parsed

    async def _ask(self, order: Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
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
            self._called(order.job.lane, row_of(failure).reason, self._clock.monotonic() - sent_at)
            if isinstance(failure, ModelRateLimited):
                headers = error.response.headers if isinstance(error, anthropic.APIStatusError) else None
                self._gate.cool_down(failure.retry_after or _COOL_DOWN, headers)
            elif isinstance(failure, ModelFaltered):
                self._gate.faltered()
            raise failure from error
        self._gate.heard(response.headers)
        self._called(order.job.lane, reply.status, self._clock.monotonic() - sent_at)
        return self._keep(order, reply, sent_at), reply.parsed

    def _lost(self, order: Order, detail: str) -> Reply:
        """In place of the reply to a request that may have been served: estimated, never forgotten."""
        return Reply(f"lost-{uuid4()}", "", _expected(order.request), "lost", detail)

    def _keep(self, order: Order, reply: Reply, sent_at: float) -> Answer:
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
            document_id=order.job.reference.document_id,
            run_id=order.job.reference.run_id,
            chunk=order.chunk,
            lane=order.job.lane,
            detail=reply.detail,
        )
        self._store.keep(answer)
        self._recent.setdefault(order.fingerprint, []).append(answer)
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        return answer


def _expected(request: Request) -> Usage:
    return Usage(request.input_tokens, request.expected_tokens)


def _boundary() -> str:
    return secrets.token_hex(8)


async def _reviewed(job: Job, parsed: Parsed) -> Parsed:
    """The answer as the reader may have it. Pages that are pictures are no source to compare it with."""
    source = job.text.text if job.text.pdf is None else ""
    if len(source) < _REVIEWED_HERE:
        return quality.review(parsed, source, job.recipe)
    return await asyncio.to_thread(quality.review, parsed, source, job.recipe)


def _summary(job: Job, parsed: Parsed, fingerprint: str) -> Summary:
    """The reader's summary, with what was bought for the job now."""
    return Summary(
        title=parsed.title,
        summary=parsed.summary,
        key_points=parsed.key_points,
        language=parsed.language,
        document_type=parsed.document_type,
        warnings=(*parsed.warnings, _CUT) if job.text.truncated else parsed.warnings,
        model=job.recipe.model,
        recipe=_recipe_id(job.recipe),
        fingerprint=fingerprint,
        input_tokens=sum(_prompt_tokens(answer.usage) for answer in job.bought),
        output_tokens=sum(answer.usage.output_tokens for answer in job.bought),
        cost=sum((answer.cost for answer in job.bought), Decimal(0)),
        reused=not job.bought,
        truncated=job.text.truncated,
    )


def _merged(
    plan: Plan, level: Sequence[range], nodes: Sequence[_Node], notes: Sequence[Parsed | None]
) -> list[_Node]:
    """The nodes of a level of merges; one has no parts where there are no notes at all to merge."""
    merged = []
    for number, group in enumerate(level, nodes[-1].number + 1):
        found = [(nodes[place].parts, note) for place in group if (note := notes[place]) is not None]
        parts = tuple(part for parts, _ in found for part in parts)
        merged.append(_Node(number, parts, partial(plan.merge, [note for _, note in found])))
    return merged


def _present(notes: Sequence[Parsed | None]) -> list[Parsed]:
    return [note for note in notes if note is not None]


def _forget_failure(call: _Call) -> None:
    """Of a call that nobody waits for any more; what it cost has been kept."""
    if not call.cancelled():
        call.exception()


async def _together(steps: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs them side by side. The first failure stops the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__


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
