"""The nouns of docsum, all frozen: what travels between the steps of the pipeline."""

from __future__ import annotations

import enum
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, rounded: a truncated float second would be one millisecond early."""
    return round((moment - EPOCH) / timedelta(milliseconds=1))


def from_ms(milliseconds: int) -> datetime:
    """The aware UTC moment of that many milliseconds since 1970."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def midnight(now: datetime) -> datetime:
    """Of that day, UTC: when the day's budget began."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


class Lane(enum.StrEnum):
    """Which road an event takes: live events never queue behind a run, batches cost half."""

    LIVE = "live"
    BACKFILL = "backfill"
    BATCH = "batch"


class State(enum.StrEnum):
    """The state of a document in a run, one spelling everywhere."""

    QUEUED = "queued"
    RETRYING = "retrying"
    HELD = "held"
    CANCELLED = "cancelled"
    DEAD_LETTERED = "dead_lettered"
    SKIPPED = "skipped"
    DONE = "done"

    @property
    def rank(self) -> int:
        """The class in a run row's version: a higher one always shows over a lower one."""
        return _RANKS.get(self, 0)

    @property
    def terminal(self) -> bool:
        return self.rank > 0


_RANKS = {State.CANCELLED: 1, State.DEAD_LETTERED: 2, State.SKIPPED: 3, State.DONE: 4}


class Operation(enum.StrEnum):
    """What happened to the document at its source."""

    UPSERT = "UPSERT"
    DELETE = "DELETE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, order=True)
class Coordinates:
    """Where a record is: topic, partition, offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One record as the broker handed it over, with what our own headers say of its history."""

    at: Coordinates
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int  # of this record; -1 when the broker has none
    origin: Coordinates  # of the first record; this one's own until it has been copied
    origin_timestamp_ms: int  # first publish; kept over retries and replays
    attempt: int = 1  # counts from 1
    not_before_ms: int | None = None  # a retry copy is not looked at earlier
    first_failed_ms: int | None = None
    attempt_log: str = ""
    replay_count: int = 0


@dataclass(frozen=True, slots=True)
class DocumentReference:
    """An announcement: which document, where, and as of when; decoded and checked."""

    event_id: str
    document_id: str
    uri: str
    occurred_at: datetime
    version: int  # UInt128, see `event_version`
    source_version: str = ""
    media_type: str | None = None
    size_bytes: int | None = None
    title: str | None = None
    run_id: UUID | None = None
    operation: Operation = Operation.UPSERT
    force: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)


def event_version(occurred_at: datetime, first_published_ms: int, event_id: str) -> int:
    """The version (UInt128) of an event: a pure function of it, so that a redelivery never looks new.

    Newer at the source wins; at the same instant the one published later wins.
    """
    return (to_ms(occurred_at) << 80) | (first_published_ms << 32) | zlib.crc32(event_id.encode())


@dataclass(frozen=True, slots=True)
class Document:
    """The fetched bytes of a reference: in memory when small, else in a temporary file that we own."""

    size: int  # bytes
    source_version: str  # as the source had it when it was read
    content: bytes | None = None
    path: Path | None = None

    def read(self) -> bytes:
        """All of it; blocks where it lies in a file."""
        return (self.content or b"") if self.path is None else self.path.read_bytes()

    def discard(self) -> None:
        """Remove the temporary file, if there is one. May be called twice."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ExtractedText:
    """The text of a document, and what it turned out to be."""

    text: str
    media_type: str
    pages: int | None = None
    truncated: bool = False
    pdf: bytes | None = None  # the document itself where its pages are pictures and the recipe sends them


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a summary is made. Two summaries by the same recipe of the same text are the same request."""

    model: str
    instructions: str = ""
    language: str = "same"  # "same" as the document, or an ISO 639-1 code
    words: int = 150
    prompt_version: str = "1"
    max_output_tokens: int = 2_000
    effort: str = "low"
    single_shot_tokens: int = 60_000  # a longer text is read in chunks of at most that
    scanned: str = "fail"  # or "send-pdf": pages that are pictures go to the model as they are

    @property
    def id(self) -> str:
        """Sixteen hex digits over every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the provider counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One paid call: a row of the money ledger and, when usable, of the reuse index."""

    fingerprint: str  # hex sha256 of the rendered request
    request_id: str  # the provider's message id; our own ("lost-...") when the reply never came
    model: str
    raw: str  # the answer's text, as it came
    usage: Usage
    cost: Decimal  # US dollars
    price_version: str
    status: str  # ok, invalid, truncated, refused, lost
    answered_at: datetime
    latency_ms: int
    document_id: str
    run_id: UUID | None = None
    chunk: int = 0
    lane: Lane = Lane.LIVE
    detail: str = ""  # why it is unusable

    @property
    def usable(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class Summary:
    """What the reader gets, with what it cost and where it came from."""

    title: str
    summary: str
    key_points: tuple[str, ...]
    language: str
    document_type: str
    warnings: tuple[str, ...]
    model: str
    recipe: str  # Recipe.id
    fingerprint: str = ""
    input_tokens: int = 0  # 0 when the answer was reused
    output_tokens: int = 0
    cost: Decimal = Decimal(0)  # paid for this summary now; 0 when the answer was reused
    reused: bool = False
    chunks: int = 1  # calls that read the text; more than one for a long document
    coverage: float = 1.0  # share of the document's text that was read, 0 to 1
    truncated: bool = False  # the text was cut at a size limit


@dataclass(frozen=True, slots=True)
class Known:
    """What the store has for a document: enough to decide without reading the summary."""

    version: int
    state: State  # done or skipped: a redelivery writes the same again
    source_version: str
    recipe: str
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed step in the terms of the failure table: see `errors.FAILURES`."""

    reason: str
    message: str  # one sentence, for a person; never document text
    stage: str  # decode, fetch, extract, summarise, store, publish
    error_class: str
    stacktrace: str = ""


class BatchState(enum.StrEnum):
    """How far a batch is."""

    SUBMITTING = "submitting"  # the intent is durable, the request may be on its way
    SUBMITTED = "submitted"
    IN_DOUBT = "in_doubt"  # nobody knows yet whether the provider has made it
    APPLIED = "applied"  # every answer is in the ledger
    REJECTED = "rejected"  # the provider refused it: nothing was made
    ABANDONED = "abandoned"  # it was never made, as far as anybody can tell

    @property
    def is_open(self) -> bool:
        return self in OPEN_BATCHES

    @property
    def rank(self) -> int:
        """A higher one always shows over a lower one, whatever the clocks of two owners say."""
        return _BATCH_RANKS.index(self) if self in _BATCH_RANKS else len(_BATCH_RANKS)


OPEN_BATCHES = (BatchState.SUBMITTING, BatchState.IN_DOUBT, BatchState.SUBMITTED)
#: One that was given up may turn out to have been made: its worker was frozen while it sent it.
_BATCH_RANKS = (BatchState.SUBMITTING, BatchState.IN_DOUBT, BatchState.ABANDONED, BatchState.SUBMITTED)


@dataclass(frozen=True, slots=True)
class OpenBatches:
    """The batches in one of the open states."""

    state: BatchState
    count: int
    requests: int
    oldest: datetime  # when the intent of the oldest one was written


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were bought together, at half the price."""

    intent: str  # our id, 12 hex digits: every custom id begins with it
    partition: int  # of the batch topic: its owner looks after the batch
    state: BatchState
    size: int  # items
    created_at: datetime  # when the intent was written
    changed_at: datetime
    provider_id: str = ""
    ended_at: datetime | None = None  # when we found it ended
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0
    missing: int = 0  # submitted, and without a result
    cost: Decimal = Decimal(0)  # US dollars
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One request of a batch, and whom it is for."""

    fingerprint: str
    document_id: str
    version: int  # of the document
    run_id: UUID | None
    chunk: int  # `Answer.chunk`
    model: str
    input_tokens: int  # estimated, as the output
    output_tokens: int
    intent: str = ""  # of its batch; "" while it is collected
    custom_id: str = ""


class SkipReason(enum.StrEnum):
    """Why there was nothing to buy."""

    SUPERSEDED = "superseded"  # a newer event has been stored
    UNCHANGED = "unchanged"  # same source version, same recipe
    DELETED = "deleted"  # the source deleted it; a tombstone is stored
    CANCELLED = "cancelled"  # its run was cancelled


@dataclass(frozen=True, slots=True)
class Stored:
    """A summary is in the store. `redelivered`: it was there before, only the run's row is written again."""

    summary: Summary | None
    source_version: str
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing was bought. `summary` is the stored one where it must be carried to the new version."""

    reason: SkipReason
    summary: Summary | None = None
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Retried:
    """A copy goes to a retry topic, not to be looked at before `not_before`."""

    topic: str
    not_before: datetime
    failure: Failure
    spent: bool = True  # false: the attempt does not count


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A copy goes to the dead-letter topic."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Held:
    """A copy rests in the held topic until its run is resumed: no attempt is spent."""

    reason: str  # the sentence of the run's control


Outcome = Stored | Skipped | Retried | DeadLettered | Held


@dataclass(frozen=True, slots=True)
class RecordCopy:
    """A record to publish: a retry, a dead letter or a result. `partition` None: by key."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What upstreams are told of an outcome."""

    document_id: str
    version: int
    state: State  # done, skipped or dead_lettered
    reason: str  # why it was skipped or given up, else empty
    run_id: UUID | None
    source_version: str
    occurred_at: datetime
    written_at: datetime
    summary: Summary | None  # the newest one that is stored
    deleted: bool = False  # it is gone at its source: all that is told of it is taken back


class RunState(enum.StrEnum):
    """How far the publisher of a run is; finished is derived, never stored."""

    PUBLISHING = "publishing"
    PUBLISHED = "published"
    INTERRUPTED = "publishing-interrupted"


class ControlState(enum.StrEnum):
    """What a person, a budget or the flood guard wants of a run."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"  # final


#: Targets of a `Control` that are no run: all work, and the live events (those without a run).
ALL_WORK, LIVE_EVENTS = UUID(int=0), UUID(int=1)


@dataclass(frozen=True, slots=True)
class Control:
    """What is wanted of a run, of all work or of the live events. The newest one counts."""

    target: UUID
    state: ControlState = ControlState.RUNNING
    reason: str = ""  # one sentence: why it is paused or cancelled
    budget: Decimal | None = None  # US dollars; it pauses when so much has been spent
    unguarded: bool = False  # the flood guard lets it pass: somebody accepted its dead letters
    changed_at: datetime = EPOCH


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked: a source, a recipe, a lane."""

    id: UUID
    name: str
    source: str
    recipe: Recipe
    lane: Lane
    state: RunState
    created_at: datetime
    updated_at: datetime
    limit: int | None = None
    force: bool = False
    listed: int = 0  # sources seen by the publisher so far
    unreadable: int = 0  # sources that could not be announced
    by: datetime | None = None  # in the batch lane: what no batch has by then is bought live
    publisher: str = ""  # API: the service publishes it, in the background; "": whoever asked for it
    problem: str = ""  # why its source cannot be announced, one sentence; the publisher has given up
    webhook: str = ""  # the address that is told when it ends or pauses
    request: str = ""  # digest of the request that began it: the same key with another one is refused
    control: Control | None = None  # read only, see `SummaryStore.save_control`; None = nothing was asked

    @property
    def wanted(self) -> ControlState:
        return self.control.state if self.control else ControlState.RUNNING


#: `Run.publisher` of a run whose source the API lists.
API = "api"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Exact counts of a run at one moment."""

    run_id: UUID
    queued: int = 0
    retrying: int = 0
    held: int = 0
    done: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    cancelled: int = 0
    cost: Decimal = Decimal(0)
    as_of: datetime = EPOCH

    @property
    def remaining(self) -> int:
        return self.queued + self.retrying + self.held

    @property
    def total(self) -> int:
        return self.remaining + self.done + self.dead_lettered + self.skipped + self.cancelled


# -- rows: what the store writes ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A version of a document's summary, or its tombstone (`summary` None)."""

    document_id: str
    version: int
    state: State
    source_version: str
    uri: str
    summary: Summary | None
    attributes: Mapping[str, str]
    run_id: UUID | None
    origin: Coordinates
    occurred_at: datetime
    written_at: datetime


@dataclass(frozen=True, slots=True)
class RunDocumentRow:
    """The state of one document in one run."""

    run_id: UUID
    document_id: str
    state: State
    uri: str
    attempt: int
    reason: str
    message: str
    written_at: datetime

    @property
    def version(self) -> int:
        """Class << 56 | written ms: any order of arrival shows the same state in the end."""
        return (self.state.rank << 56) | to_ms(self.written_at)


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """Index of the dead-letter topic: keyed by the source's coordinates, holds the DLQ's own."""

    origin: Coordinates
    dead_letter: Coordinates
    document_id: str
    document_version: int
    run_id: UUID | None
    reason: str
    message: str
    stage: str
    attempts: int
    first_failed_at: datetime
    failed_at: datetime
    replay_count: int = 0
    state: str = "open"  # open, replayed, parked, discarded

    @property
    def version(self) -> int:
        return (self.replay_count << 8) | DEAD_LETTER_STATES.index(self.state)


DEAD_LETTER_STATES = ("open", "replayed", "parked", "discarded")
#: What a reader may also see: the document has been stored as new as the event that failed.
RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters are meant; an empty field means any."""

    states: tuple[str, ...] = ("open",)
    reasons: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    run_id: UUID | None = None
    since: datetime | None = None  # failed at or after
    until: datetime | None = None  # failed before


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """The dead letters of one reason in one state."""

    reason: str
    state: str
    count: int
    documents: int  # distinct
    oldest: datetime
    newest: datetime
    sample: str  # one of the messages


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What a person did that moved or dropped work."""

    at: datetime
    who: str
    action: str  # dlq replay, dlq discard, runs cancel, ...
    detail: str  # one sentence
    count: int = 0


class Scope(enum.StrEnum):
    """What a token allows; each one includes nothing of the others."""

    SUBMIT = "submit"  # runs and documents: begin, add to, pause, resume, cancel
    READ = "read"
    ADMIN = "admin"  # delete documents, replay and discard dead letters, pause everything


@dataclass(frozen=True, slots=True)
class Token:
    """Who may use the API. The token itself is known to its owner alone."""

    name: str
    digest: str  # hex sha256
    scopes: frozenset[Scope]
    created_at: datetime
    created_by: str
    revoked: bool = False
    changed_at: datetime = EPOCH


class DeliveryState(enum.StrEnum):
    """How far a webhook message is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # given up, after days
    DISABLED = "disabled"  # its receiver wants no more: 410


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """A message to the address of a run. Its id stays the same however often it is sent."""

    message_id: str
    run_id: UUID
    event: str  # run.finished, run.paused, run.failed
    url: str
    body: str  # JSON
    created_at: datetime
    changed_at: datetime
    next_attempt_at: datetime
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    answer: str = ""  # what came of the last attempt, one sentence


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What a receiver has said to a message."""

    status: int | None  # None: nothing, `problem` says why
    problem: str = ""  # one sentence
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Cursor:
    """What `docsum ingest` has announced last of one document of a source."""

    source: str
    document_id: str
    source_version: str
    scan: int  # the look at the source that saw it last, see `ingest.Ingester`: a later one counts
    seen_at: datetime
    gone: bool = False  # its deletion was announced


@dataclass(frozen=True, slots=True)
class DocumentCost:
    """What the calls for one document of a run have cost, and how long they took."""

    document_id: str
    calls: int
    cost: Decimal  # US dollars
    latency: timedelta  # of all its calls together


@dataclass(frozen=True, slots=True)
class Throughput:
    """How many documents of a run had their end in a stretch of time."""

    begins: datetime
    ended: int


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One failed step, for dashboards."""

    failed_at: datetime
    document_id: str
    run_id: UUID | None
    attempt: int
    reason: str
    stage: str
    disposition: str
    message: str
    worker: str


@dataclass(frozen=True, slots=True)
class Rows:
    """What one delivery writes; tables are written in this order."""

    answers: tuple[Answer, ...] = ()
    summaries: tuple[SummaryRow, ...] = ()
    run_documents: tuple[RunDocumentRow, ...] = ()
    dead_letters: tuple[DeadLetterRow, ...] = ()
    failures: tuple[FailureRow, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class AtRisk:
    """A delivery that is at work inside the worker's own process: what might end it."""

    stage: str  # decode or extract
    at: Coordinates

    def __str__(self) -> str:
        return f"{self.stage} {self.at}"


@dataclass(frozen=True, slots=True)
class Death:
    """A worker ended without a word while this delivery was at work in it."""

    worker: str
    started_at: datetime  # of that life of the worker
    died_at: datetime  # its last heartbeat
    work: AtRisk
    alone: bool  # nothing else was decoded or extracted at that time


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker's heartbeat: what it owns, what it does, what it waits for."""

    worker: str
    host: str
    pid: int
    lane: Lane
    started_at: datetime
    beat_at: datetime
    partitions: tuple[str, ...] = ()
    in_flight: int = 0
    holds: tuple[str, ...] = ()  # one sentence each: step, reason, since, next try
    breakers: tuple[str, ...] = ()  # one sentence for each that is open
    gate: str = ""  # what the model calls wait for: places, limits, a cool-down
    cost_in_flight: Decimal = Decimal(0)  # US dollars, estimated
    at_risk: tuple[AtRisk, ...] = ()
    alone: bool = False  # a suspected delivery is at work by itself
    stopped: bool = False

    def ended_silently(self, now: datetime, silence: timedelta) -> bool:
        """True for a worker that has not said goodbye and is not heard of any more."""
        return not self.stopped and now - self.beat_at > silence


# -- what waits in Kafka -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the workers have not finished of one topic."""

    topic: str
    events: int
    lost: int = 0  # deleted by retention before they were finished
    oldest: datetime | None = None  # when the oldest was published first; None: there is none, or no telling
    due: datetime | None = None  # in a retry topic, when the next one may be tried


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group, as the broker knows it."""

    name: str
    host: str
    partitions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """Where the workers are in one partition that they read."""

    topic: str
    partition: int
    offset: int  # the next one to be finished: the committed one, or the log's start where that is later
    left: int  # records from there to the end
    lost: int  # deleted by retention before they were finished
    oldest: datetime | None = None  # timestamp of the record at the offset; None: none, or it did not come


@dataclass(frozen=True, slots=True)
class Backlog:
    """Everything that waits, and who is there to do it."""

    topics: tuple[Waiting, ...]
    held: int  # events of paused runs
    dead_letters: int  # records of that topic, settled ones too
    members: tuple[Member, ...]
    positions: tuple[Position, ...] = ()
    held_since: datetime | None = None  # timestamp of the oldest of the events of paused runs


# -- money and traces: what the store is asked about --------------------------------------------------------


class CostBy(enum.StrEnum):
    """What the money is counted by."""

    RUN = "run"
    MODEL = "model"
    DAY = "day"
    REASON = "reason"  # the status of the answer: what the money went for


@dataclass(frozen=True, slots=True)
class CostLine:
    """What was paid for one run, model, day or status."""

    key: str  # run id ("" for live events), model, UTC day or status; "" for the total
    statuses: Mapping[str, int] = field(default_factory=dict)  # status of an answer -> calls
    usage: Usage = field(default_factory=Usage)
    cost: Decimal = Decimal(0)
    documents: int = 0  # distinct ones that were paid for: one may be in several lines

    @property
    def calls(self) -> int:
        return sum(self.statuses.values())

    @property
    def unusable(self) -> int:
        return self.calls - self.statuses.get("ok", 0)

    @property
    def per_document(self) -> Decimal:
        """0 when nothing was paid for."""
        return self.cost / self.documents if self.documents else Decimal(0)


@dataclass(frozen=True, slots=True)
class Costs:
    """The ledger, counted up."""

    lines: tuple[CostLine, ...]  # dearest first; days in their order
    total: CostLine
    reused: int = 0  # newest summaries that were made of an answer which was there already
    saved: Decimal = Decimal(0)  # what those answers had cost; at least, as of a long text one counts


@dataclass(frozen=True, slots=True)
class Traces:
    """What the store holds of one document's content: what a purge takes away, and what it leaves."""

    summaries: int = 0  # stored versions that are no tombstones
    answers: int = 0  # paid answers whose text nobody else uses
    shared: int = 0  # paid answers that the newest summary of another document stands on: they stay
    messages: int = 0  # rows with an error message
