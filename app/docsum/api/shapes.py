"""What goes in and out as JSON: the request bodies, checked, and the answers. They are the OpenAPI page."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from docsum.models import DeliveryState, Lane, Operation, State

_UNUSABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
MOST_INLINE = 1_000  # references in the body of a request
MOST_ATTRIBUTES = 100


def _clean(text: str) -> str:
    if _UNUSABLE.search(text):
        raise ValueError("it holds a control character, or is not valid Unicode")
    return text


def _printable(text: str) -> str:
    if not _clean(text).isprintable():
        raise ValueError("it holds a character that cannot be printed")
    return text


Text = Annotated[str, AfterValidator(_clean)]
Name = Annotated[str, AfterValidator(_printable), Field(max_length=200)]
DocumentId = Annotated[str, AfterValidator(_clean), Field(min_length=1, max_length=512)]
Uri = Annotated[
    str,
    AfterValidator(_clean),
    Field(max_length=8_192, pattern=r"^([Ff][Ii][Ll][Ee]|[Ss]3|[Gg][Ss]|[Aa][Zz]|[Hh][Tt][Tt][Pp][Ss]?):."),
]
Dollars = Annotated[Decimal, Field(gt=0, lt=1_000_000_000, max_digits=15, decimal_places=6)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


# -- requests ----------------------------------------------------------------------------------------------


class RecipeIn(_In):
    """How the summaries are made; what is left out is as docsum's settings say."""

    model: Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=200)] | None = None
    instructions: Annotated[Text, Field(max_length=8_000)] | None = Field(
        None, description="What you want to know of every document."
    )
    language: Annotated[str, Field(pattern=r"^(same|[a-z]{2,3})$")] | None = Field(
        None, description="`same` as the document, or a code such as `en`."
    )
    words: Annotated[int, Field(ge=20, le=2_000)] | None = Field(None, description="About how long.")
    scanned: Literal["fail", "send-pdf"] | None = Field(
        None, description="Pages that are pictures: `fail`, or `send-pdf` to the model (dearer)."
    )


class ReferenceIn(_In):
    """A document by its address."""

    document_id: DocumentId
    uri: Uri
    source_version: Annotated[Text, Field(max_length=1_000)] = Field(
        "", description="Etag, revision or the like; empty = unknown, so it is always fetched."
    )
    media_type: Annotated[Text, Field(max_length=200)] | None = None
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    title: Annotated[Text, Field(max_length=1_000)] | None = None
    attributes: Annotated[
        dict[Annotated[Text, Field(min_length=1, max_length=200)], Annotated[Text, Field(max_length=2_000)]],
        Field(max_length=MOST_ATTRIBUTES),
    ] = Field(default={}, description="Carried into the row, for filters.")


class RunIn(_In):
    """A run: a source that docsum lists, or the references themselves, or neither: then they are uploaded."""

    source: Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=4_096)] | None = Field(
        None,
        description="A folder, pattern, manifest or file as an absolute path, or s3://, gs://, az://, https://.",
    )
    documents: Annotated[list[ReferenceIn], Field(min_length=1, max_length=MOST_INLINE)] | None = None
    name: Name = ""
    recipe: RecipeIn = RecipeIn()
    lane: Lane = Lane.BACKFILL
    by: datetime | None = Field(
        None, description="In the batch lane: what no batch has by then is bought at once, at the full price."
    )
    limit: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    force: bool = Field(False, description="Buy again even if nothing has changed.")
    budget_usd: Dollars | None = Field(None, description="The run pauses when so much has been spent.")
    webhook: Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=2_000)] | None = Field(
        None, description="Is told when the run finishes, pauses or fails; signed, see Standard Webhooks."
    )


class EventIn(ReferenceIn):
    """One live event."""

    operation: Literal[Operation.UPSERT, Operation.DELETE] = Operation.UPSERT
    occurred_at: datetime | None = Field(None, description="When the source was in this state; now without.")
    force: bool = False


class PauseIn(_In):
    reason: Annotated[Text, Field(max_length=1_000)] = ""


class ResumeIn(_In):
    budget_usd: Dollars | None = Field(None, description="A larger one, where the old one is spent.")
    accept_dead_letters: bool = False


class SelectionIn(_In):
    """Which dead letters: single ones by `ids`, or all open ones that the filters leave."""

    ids: Annotated[list[Annotated[str, Field(max_length=600)]], Field(max_length=MOST_INLINE)] = Field(
        default=[], description="Such as `docsum.dlq[3]@17`."
    )
    reasons: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)] = []
    documents: Annotated[list[DocumentId], Field(max_length=MOST_INLINE)] = []
    run_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    everything: bool = Field(False, description="All that are open: needed where nothing else is given.")


class ReplayIn(SelectionIn):
    dry_run: bool = False
    limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    rate: Annotated[int, Field(ge=1, le=10_000)] = 50
    sample: bool = Field(True, description="Ten go first; the rest when they do not fail again.")


class DiscardIn(SelectionIn):
    reason: Annotated[Text, Field(min_length=1, max_length=1_000)] = Field(description="Why, for the audit.")
    dry_run: bool = False


# -- answers -----------------------------------------------------------------------------------------------


class Problem(_Out):
    """What is wrong, and what to do (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[str] = []


class RunOut(_Out):
    """A run. The counts are exact at `as_of`."""

    run_id: UUID
    name: str
    source: str
    lane: Lane
    model: str
    state: str
    why: str
    problem: str
    budget_usd: float | None
    created_at: datetime
    listed: int
    unreadable: int
    by: datetime | None
    total: int
    queued: int
    retrying: int
    held: int
    done: int
    skipped: int
    dead_lettered: int
    cancelled: int
    remaining: int
    cost_usd: float
    as_of: datetime
    webhook: str


class RunDetail(RunOut):
    rate_per_second: float
    eta_seconds: float | None
    waits_for: list[str]
    behind: UUID | None


class RunAccepted(_Out):
    run_id: UUID
    state: str
    total: int
    passed_over: list[str] = []
    passed_over_count: int = 0


class RunPage(_Out):
    runs: list[RunOut]
    next_cursor: str | None


class RunDocument(_Out):
    document_id: str
    uri: str
    state: State
    attempt: int
    reason: str
    message: str
    written_at: datetime


class RunDocumentPage(_Out):
    documents: list[RunDocument]
    next_cursor: str | None


class RunState(_Out):
    run_id: UUID
    state: State
    attempt: int
    reason: str
    message: str
    written_at: datetime


class SummaryOut(_Out):
    title: str
    summary: str
    key_points: list[str]
    language: str
    document_type: str
    warnings: list[str]
    model: str
    recipe: str
    input_tokens: int
    output_tokens: int
    cost_usd: float
    reused: bool
    chunks: int
    coverage: float
    truncated: bool
    source_version: str
    occurred_at: datetime
    written_at: datetime
    attributes: dict[str, str]


class DocumentOut(_Out):
    document_id: str
    deleted: bool
    summary: SummaryOut | None
    runs: list[RunState]


class EventAccepted(_Out):
    event_id: str
    document_id: str
    topic: str
    partition: int
    offset: int


class DocumentDeleted(_Out):
    document_id: str
    purged: bool


class DeadLetterOut(_Out):
    id: str
    document_id: str
    run_id: UUID | None
    state: str
    reason: str
    stage: str
    message: str
    attempts: int
    replays: int
    first_failed_at: datetime
    failed_at: datetime
    original: str


class DeadLetterPage(_Out):
    dead_letters: list[DeadLetterOut]
    next_cursor: str | None


class Attempt(_Out):
    failed_at: str
    stage: str
    reason: str
    error: str


class DeadLetterDetail(_Out):
    """All that is known of one dead letter; fields are null where neither store nor Kafka has them."""

    id: str
    document_id: str | None = None
    run_id: UUID | None = None
    state: str | None
    reason: str | None = None
    stage: str | None = None
    message: str | None = None
    attempts: int | None = None
    replays: int | None = None
    first_failed_at: datetime | None = None
    failed_at: datetime | None = None
    original: str | None = None
    sentence: str
    hint: str
    event: dict[str, object] | None
    trouble: str
    first_bytes: str | None
    value_bytes: int | None
    key: str | None
    headers: dict[str, str] | None
    attempt_log: list[Attempt] | None
    cost_usd: float | None
    run_cost_usd: float | None


class Fates(_Out):
    reason: str
    replay: int
    park: int
    stay: int


class Stays(_Out):
    why: str
    entries: int


class SampleOut(_Out):
    sent: int
    helped: int
    failed: int
    waiting: int
    cause_remains: bool


class ReplayOut(_Out):
    """What a replay would do (`dry_run`), or how far it is."""

    replay_id: str
    state: Literal["dry_run", "running", "done", "stopped", "failed"]
    selection: str
    replayed: int
    parked: int
    gone: int
    sample: SampleOut | None
    reasons: list[Fates]
    stays: list[Stays]
    problem: str = ""


class Discarded(_Out):
    discarded: int
    dry_run: bool


class WebhookOut(_Out):
    message_id: str
    run_id: UUID
    event: str
    url: str
    state: DeliveryState
    attempts: int
    answer: str
    created_at: datetime
    next_attempt_at: datetime | None


class WebhookPage(_Out):
    deliveries: list[WebhookOut]


class Healthy(_Out):
    status: Literal["ok", "trouble"]
    troubles: list[str]
