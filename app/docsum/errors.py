"""Every failure docsum knows, and the one table that says what happens then.

DocsumError
 + ConfigurationError            our own settings are wrong              STOP
 |  + ModelKeyRejected           401, 403                                STOP
 |  + ModelUnknown               404 for the model                       STOP
 |  + StoreMisconfigured         missing table or grant                  STOP
 |  + RightMissing               Kafka does not let this user            STOP
 + WorkPaused                   by a person or the flood guard         PAUSE
 + DailyBudgetSpent                                                     PAUSE
 + InvalidEvent                  not an event of ours                    DEAD_LETTER
 + FetchError
 |  + SourceNotFound             the file or object is not there         DEAD_LETTER
 |  + SourceNotAllowed           outside the allow-lists                 DEAD_LETTER
 |  + SourceTooLarge             larger than FETCH__MAX_BYTES            DEAD_LETTER
 |  + SourceOutdated             older than announced                    RETRY
 |  + SourceForbidden            the source says no to these credentials RETRY
 |  + SourceUnavailable          may work later                          RETRY
 |  + SourceDown                 nothing comes from its host or bucket   DEFER
 |  + SourceRootMissing          the whole file root is not mounted      PAUSE
 + ExtractError                                                          DEAD_LETTER
 |  + Encrypted, Scanned, NotADocument, DocumentBomb, Undecodable, EmptyDocument, ExtractTimeout
 |  + ExtractorCrashed           the child died twice                    DEAD_LETTER
 + WorkerCrashed                its workers died, one after the other    DEAD_LETTER
 + ModelError
 |  + TooLong                    too long even in parts                  DEAD_LETTER
 |  + ModelRefused               the model declined                      DEAD_LETTER
 |  + ModelRejectedDocument      400 for this document                   DEAD_LETTER
 |  + ModelAnswerInvalid         broke the schema, or was cut, twice     DEAD_LETTER
 |  + ModelFaltered              500, 529, reset or time-out             HOLD, then RETRY
 |  + ModelRateLimited           429                                     PAUSE
 |  + ModelUnreachable           no connection                           PAUSE
 |  + ModelAccountBlocked        spend cap, credit, billing              PAUSE
 + StoreError
 |  + StoreUnavailable                                                   PAUSE
 |  + RowRefused                 the store refuses this one row          RETRY
 + BrokerError
    + BrokerUnavailable          a copy could not be acknowledged        PAUSE
    |  + BrokerRefused           a grant or a limit is in its way        PAUSE
    + RegistryUnavailable        the schema registry does not answer     PAUSE
    + SchemaUnknown              nobody knows the schema it names        RETRY
Anything else is `internal_error`                                        RETRY
"""

from __future__ import annotations

import enum
import traceback
from dataclasses import dataclass
from datetime import timedelta

from docsum.models import Failure


class Disposition(enum.StrEnum):
    """What a failure means for the delivery that met it."""

    RETRY = "retry"  # this document's trouble, may pass: next retry topic
    DEAD_LETTER = "dead_letter"  # will never work
    HOLD = "hold"  # perhaps everyone's trouble: stay at the step for a while, then RETRY
    PAUSE = "pause"  # everyone's trouble: stay at the step until it is over
    DEFER = "defer"  # its source is out of order: the longest retry topic, no attempt spent
    STOP = "stop"  # ours: at start exit 78, at run time stay at the step and say so


class DocsumError(Exception):
    """Something went wrong in docsum."""

    def __init__(self, message: str = "", *, retry_after: timedelta | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.retry_after = retry_after


class ConfigurationError(DocsumError):
    """The settings are wrong; trying again will not help."""


class ModelKeyRejected(ConfigurationError):
    """The model provider does not accept this API key."""


class ModelUnknown(ConfigurationError):
    """The model does not exist, or this key may not use it."""


class StoreMisconfigured(ConfigurationError):
    """A table, column or grant is missing in the store."""


class RightMissing(ConfigurationError):
    """Kafka does not let this user do what is needed."""


class WorkPaused(DocsumError):
    """Somebody has paused all work, or the live events."""


class DailyBudgetSpent(DocsumError):
    """What may be spent in a day is spent."""


class InvalidEvent(DocsumError):
    """The record is not a document reference."""


class FetchError(DocsumError):
    """The document could not be fetched."""


class SourceNotFound(FetchError):
    """There is nothing at this address."""


class SourceNotAllowed(FetchError):
    """This address is outside what docsum may read."""


class SourceTooLarge(FetchError):
    """The document is larger than DOCSUM_FETCH__MAX_BYTES."""


class SourceOutdated(FetchError):
    """The source still has an older state than was announced."""


class SourceForbidden(FetchError):
    """The source refuses to give the document to these credentials."""


class SourceUnavailable(FetchError):
    """The source did not give the document this time."""


class SourceDown(FetchError):
    """The host or bucket of the document gives nothing to anybody at the moment."""


class SourceRootMissing(FetchError):
    """The folder that the documents are in is not there at all."""


class ExtractError(DocsumError):
    """No text could be taken from the document."""


class Encrypted(ExtractError):
    """The document needs a password."""


class Scanned(ExtractError):
    """The pages are pictures without text."""

    def __init__(self, message: str = "", *, pages: int | None = None) -> None:
        super().__init__(message)
        self.pages = pages


class NotADocument(ExtractError):
    """The content is not a document, whatever its name says."""


class DocumentBomb(ExtractError):
    """The document unpacks to far more than it should."""


class Undecodable(ExtractError):
    """The document is damaged: no library could read it."""


class EmptyDocument(ExtractError):
    """There is no text in the document."""


class ExtractTimeout(ExtractError):
    """Reading the document took longer than DOCSUM_EXTRACT__TIMEOUT."""


class ExtractorCrashed(ExtractError):
    """The process that read the document died."""


class WorkerCrashed(DocsumError):
    """Workers end when they read this document."""


class ModelError(DocsumError):
    """The model gave no usable answer."""


class TooLong(ModelError):
    """The text is too long, even in parts."""


class ModelRefused(ModelError):
    """The model declined to summarise this document."""


class ModelRejectedDocument(ModelError):
    """The provider rejects the request for this document."""


class ModelAnswerInvalid(ModelError):
    """The model's answer was cut or broke the schema, twice."""


class ModelFaltered(ModelError):
    """The provider failed on this call: an error of its own, a reset or a time-out."""


class ModelRateLimited(ModelError):
    """The provider asked us to slow down."""


class ModelUnreachable(ModelError):
    """The provider cannot be reached."""


class ModelAccountBlocked(ModelError):
    """The provider's account has no credit or has reached its spend cap."""


class StoreError(DocsumError):
    """The store did not do what it was asked."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or is overloaded."""


class RowRefused(StoreError):
    """The store refuses the rows of this document."""


class BrokerError(DocsumError):
    """Kafka did not do what it was asked."""


class BrokerUnavailable(BrokerError):
    """Kafka did not acknowledge the record."""


class BrokerRefused(BrokerUnavailable):
    """Kafka refuses the record."""


class RegistryUnavailable(BrokerError):
    """The schema registry cannot be reached."""


class SchemaUnknown(BrokerError):
    """Neither this docsum nor the schema registry knows the schema that this record names."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the failure table: the reason's one spelling, its sentence and its fix hint."""

    reason: str
    disposition: Disposition
    sentence: str
    hint: str
    attempts: int | None = None  # at most so many, where more would not help; None: as many as there are


_D = Disposition

#: Every error has a row; `classify` finds it by the error's class or the nearest ancestor's.
FAILURES: dict[type[DocsumError], Row] = {
    DocsumError: Row(
        "internal_error",
        _D.RETRY,
        "docsum itself failed on this document.",
        "Look at the error in `docsum dlq show ID`; report it if it repeats.",
    ),
    ConfigurationError: Row(
        "configuration",
        _D.STOP,
        "The settings are wrong.",
        "Run `docsum doctor`, correct the setting that it names and restart.",
    ),
    ModelKeyRejected: Row(
        "model_key_rejected",
        _D.STOP,
        "The model provider does not accept the API key.",
        "Set ANTHROPIC_API_KEY to a valid key and restart the workers.",
    ),
    ModelUnknown: Row(
        "model_unknown",
        _D.STOP,
        "The model does not exist, or this key may not use it.",
        "Choose another with --model or DOCSUM_MODEL__NAME.",
    ),
    StoreMisconfigured: Row(
        "store_misconfigured",
        _D.STOP,
        "A table, column or grant is missing in ClickHouse.",
        "Correct the user or its grants, or run `docsum setup store`, whichever the message says.",
    ),
    RightMissing: Row(
        "right_missing",
        _D.STOP,
        "Kafka does not let this user do what is needed.",
        "Grant it as `docsum setup --print kafka` says; then start again.",
    ),
    WorkPaused: Row(
        "paused",
        _D.PAUSE,
        "Work is paused.",
        "See why with `docsum status`; `docsum resume --all` goes on.",
    ),
    DailyBudgetSpent: Row(
        "daily_budget",
        _D.PAUSE,
        "The day's budget is spent.",
        "It goes on at midnight UTC; `docsum resume --all` grants the same again.",
    ),
    InvalidEvent: Row(
        "invalid_event",
        _D.DEAD_LETTER,
        "The record is not a document reference.",
        "Compare it with schemas/README.md and publish it again.",
    ),
    FetchError: Row(
        "fetch_failed",
        _D.RETRY,
        "The document could not be fetched.",
        "Check that the workers can read the address.",
    ),
    SourceNotFound: Row(
        "source_not_found",
        _D.DEAD_LETTER,
        "There is nothing at this address.",
        "Put the document there and run again, or ignore it if it was deleted.",
    ),
    SourceNotAllowed: Row(
        "source_not_allowed",
        _D.DEAD_LETTER,
        "The address is outside what docsum may read.",
        "Allow it: DOCSUM_FETCH__FILE_ROOTS for folders, __BUCKETS, __HOSTS (and __PRIVATE_HOSTS);"
        " restart the workers, then replay.",
    ),
    SourceTooLarge: Row(
        "too_large",
        _D.DEAD_LETTER,
        "The document is larger than docsum may fetch.",
        "Raise DOCSUM_FETCH__MAX_BYTES if it is a document at all.",
    ),
    SourceOutdated: Row(
        "source_outdated",
        _D.RETRY,
        "The source still has an older state than was announced.",
        "Usually passes; else check the announcing system's clock.",
    ),
    SourceForbidden: Row(
        "source_forbidden",
        _D.RETRY,
        "The source refuses to give the document to these credentials.",
        "Let the workers' credentials read it; then replay or run again.",
    ),
    SourceUnavailable: Row(
        "source_unavailable",
        _D.RETRY,
        "The source did not give the document.",
        "Check the source; replay when it is back.",
    ),
    SourceDown: Row(
        "source_down",
        _D.DEFER,
        "The host or bucket of the document is out of order.",
        "Check it; its documents wait in the longest retry topic and go on by themselves for a day.",
    ),
    SourceRootMissing: Row(
        "source_root_missing",
        _D.PAUSE,
        "The folder that the documents are in is not there.",
        "Mount it on every worker; work goes on by itself.",
    ),
    ExtractError: Row(
        "extract_failed",
        _D.DEAD_LETTER,
        "No text could be taken from the document.",
        "Open it by hand; convert it to PDF or text and run again.",
    ),
    Encrypted: Row(
        "encrypted",
        _D.DEAD_LETTER,
        "The document needs a password.",
        "Remove the password and run again.",
    ),
    Scanned: Row(
        "scanned",
        _D.DEAD_LETTER,
        "The pages are pictures without text.",
        "Run it through OCR, or run again with --scanned send-pdf (dearer).",
    ),
    NotADocument: Row(
        "not_a_document",
        _D.DEAD_LETTER,
        "The content is not a document, whatever its name says.",
        "Nothing to do if it is a program or an archive; else convert it.",
    ),
    DocumentBomb: Row(
        "bomb",
        _D.DEAD_LETTER,
        "The document unpacks to far more than it should.",
        "Do not open it; ask where it came from.",
    ),
    Undecodable: Row(
        "undecodable",
        _D.DEAD_LETTER,
        "The document is damaged.",
        "Get it from its source again, or repair it with its own program.",
    ),
    EmptyDocument: Row(
        "empty",
        _D.DEAD_LETTER,
        "There is no text in the document.",
        "Nothing to do if it is meant to be empty.",
    ),
    ExtractTimeout: Row(
        "timeout",
        _D.DEAD_LETTER,
        "Reading the document took too long.",
        "Raise DOCSUM_EXTRACT__TIMEOUT if the document is a good one.",
    ),
    ExtractorCrashed: Row(
        "extractor_crashed",
        _D.DEAD_LETTER,
        "The process that read the document died.",
        "The document is hostile or a library has a bug; convert it and run again.",
    ),
    WorkerCrashed: Row(
        "worker_crash",
        _D.DEAD_LETTER,
        "Workers end when they read this document.",
        "Look at the end of the workers' logs and at their memory limit; convert the document and run again.",
    ),
    ModelError: Row(
        "model_failed",
        _D.RETRY,
        "The model gave no usable answer.",
        "Replay it; report it if it repeats.",
    ),
    TooLong: Row(
        "too_long",
        _D.DEAD_LETTER,
        "The text is too long, even in parts.",
        "Raise the limit that the message names, or split the document.",
    ),
    ModelRefused: Row(
        "refused",
        _D.DEAD_LETTER,
        "The model declined to summarise this document.",
        "Read the category; another model may accept it (--model).",
    ),
    ModelRejectedDocument: Row(
        "model_rejected",
        _D.DEAD_LETTER,
        "The provider rejects the request for this document.",
        "Read the provider's message in `docsum dlq show ID`.",
    ),
    ModelAnswerInvalid: Row(
        "invalid_answer",
        _D.DEAD_LETTER,
        "The model's answer was cut or broke the schema, twice.",
        "Try another model (--model) or fewer words (--words).",
    ),
    ModelFaltered: Row(
        "model_faltered",
        _D.HOLD,
        "The provider failed on this call.",
        "Passes by itself; look at the provider's status page if it lasts.",
    ),
    ModelRateLimited: Row(
        "rate_limited",
        _D.PAUSE,
        "The provider asked us to slow down.",
        "Passes by itself; set DOCSUM_LIMITS__REQUESTS_PER_MINUTE to your tier.",
    ),
    ModelUnreachable: Row(
        "model_unreachable",
        _D.PAUSE,
        "The provider cannot be reached.",
        "Check the network and ANTHROPIC_BASE_URL; work goes on by itself.",
    ),
    ModelAccountBlocked: Row(
        "account_blocked",
        _D.PAUSE,
        "The provider's account has no credit or has reached its spend cap.",
        "Raise the cap or add credit; work goes on by itself.",
    ),
    StoreError: Row(
        "store_failed",
        _D.PAUSE,
        "The store did not do what it was asked.",
        "Look at ClickHouse's log; work goes on by itself.",
    ),
    StoreUnavailable: Row(
        "store_unavailable",
        _D.PAUSE,
        "ClickHouse cannot be reached or is overloaded.",
        "Check DOCSUM_CLICKHOUSE__URL and the server; work goes on by itself.",
    ),
    RowRefused: Row(
        "row_refused",
        _D.RETRY,
        "ClickHouse refuses the rows of this document.",
        "Look at the code in the message; report it if it repeats.",
    ),
    BrokerError: Row(
        "broker_failed",
        _D.PAUSE,
        "Kafka did not do what it was asked.",
        "Look at the broker's log; work goes on by itself.",
    ),
    BrokerUnavailable: Row(
        "broker_unavailable",
        _D.PAUSE,
        "Kafka did not acknowledge a record.",
        "Check the broker and the grants of the topic; work goes on by itself.",
    ),
    BrokerRefused: Row(
        "broker_refused",
        _D.PAUSE,
        "Kafka refuses a record.",
        "Correct the grants, the user or the topic: `docsum setup topics --check`; work goes on by itself.",
    ),
    RegistryUnavailable: Row(
        "registry_unavailable",
        _D.PAUSE,
        "The schema registry cannot be reached.",
        "Check DOCSUM_KAFKA__SCHEMA_REGISTRY_URL; work goes on by itself.",
    ),
    SchemaUnknown: Row(
        "schema_unknown",
        _D.RETRY,
        "The schema of this record is not known here.",
        "Register the producer's schema, or update the workers where there is no registry; then replay.",
        attempts=2,  # its producer may be about to register it, or a worker that knows it takes it up
    ),
}

#: Reason -> row, for pages and commands that start from a stored reason.
REASONS: dict[str, Row] = {row.reason: row for row in FAILURES.values()}


def row_of(error: BaseException) -> Row:
    """The failure table's row for an error; a foreign exception is an internal error."""
    for ancestor in type(error).__mro__:
        if ancestor in FAILURES:
            return FAILURES[ancestor]
    return FAILURES[DocsumError]


def classify(error: Exception, stage: str) -> Failure:
    """The failure that an error is. The stack is kept only where the fault may be ours."""
    row = row_of(error)
    known = isinstance(error, DocsumError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    stack = "" if known else "".join(traceback.format_exception(error))[-4096:]
    return Failure(row.reason, message[:1000], stage, type(error).__name__, stack)
