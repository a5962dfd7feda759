"""Every error that a library of Kafka or ClickHouse can raise has a meaning here.

A new version of a library with errors that nobody has thought about fails these tests: decide what they mean.
The model provider's errors are in `tests/contract/test_summariser.py`, those of sources in
`test_addresses.py` and `test_object_store.py`.
"""

from __future__ import annotations

import inspect

import pytest
from aiokafka import errors as aiokafka_errors
from clickhouse_connect.driver import exceptions
from confluent_kafka import KafkaError

from docsum.errors import (
    FAILURES,
    BrokerRefused,
    BrokerUnavailable,
    Disposition,
    DocsumError,
    RowRefused,
    StoreMisconfigured,
    StoreUnavailable,
    row_of,
)
from docsum.kafka import producer, publisher
from docsum.settings import Kafka
from docsum.stores import connection

# -- ClickHouse --------------------------------------------------------------------------------------------


def store_errors() -> list[type[Exception]]:
    everything = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    return [kind for kind in everything if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", store_errors(), ids=lambda kind: str(kind.__name__))
def test_every_error_of_the_store_s_client_is_in_the_map(kind: type[Exception]) -> None:
    arguments = () if kind is exceptions.StreamClosedError else ("said so",)
    error = kind(*arguments)
    assert type(connection.translate(error)) is connection.ERRORS[kind]


def test_an_error_that_the_client_gets_later_is_treated_as_its_parent() -> None:
    class NewDataError(exceptions.DataError):
        pass

    assert isinstance(connection.translate(NewDataError("x")), RowRefused)
    assert isinstance(connection.translate(RuntimeError("Session is closed")), StoreUnavailable)


#: What the server's codes mean for a writer; every other code counts as unavailable.
UNAVAILABLE = (
    *(3, 76, 159, 198, 202, 203, 209, 210, 216, 225, 236, 241, 242, 243, 252, 279, 285, 286, 319, 394, 425),
    *(439, 473, 735, 999, 1002),
    100_000,  # nobody knows it
)
DEPLOYMENT = (16, 47, 60, 62, 81, 115, 164, 192, 193, 497, 516)
ROW = (6, 26, 27, 33, 38, 41, 53, 69, 70, 131, 349, 407)
CODES: dict[int, type[DocsumError]] = {
    **dict.fromkeys(UNAVAILABLE, StoreUnavailable),
    **dict.fromkeys(DEPLOYMENT, StoreMisconfigured),
    **dict.fromkeys(ROW, RowRefused),
}


@pytest.mark.parametrize("kind", [exceptions.DatabaseError, exceptions.OperationalError])
@pytest.mark.parametrize(("code", "wanted"), CODES.items())
def test_the_code_decides_whatever_the_class(
    code: int, wanted: type[DocsumError], kind: type[exceptions.Error]
) -> None:
    failure = connection.translate(
        kind(f"DB::Exception: a sentence. (A_NAME)\n{code}", code=code, name="A_NAME")
    )
    assert type(failure) is wanted
    assert str(code) in str(failure)


def test_no_code_has_two_meanings() -> None:
    assert not connection.ROW_CODES & connection.DEPLOYMENT_CODES
    assert frozenset(ROW) == connection.ROW_CODES
    assert frozenset(DEPLOYMENT) == connection.DEPLOYMENT_CODES


def test_only_a_row_s_own_fault_ever_leaves_the_flush() -> None:
    """Whatever else there is must be one of the two that the flush sends again."""
    kinds = {*connection.ERRORS.values(), *CODES.values()}
    assert kinds == {StoreUnavailable, StoreMisconfigured, RowRefused}
    retried = {kind for kind in kinds if FAILURES[kind].disposition is Disposition.RETRY}
    assert retried == {RowRefused}


# -- Kafka, the worker's own producer ----------------------------------------------------------------------


def of_aiokafka() -> set[type[aiokafka_errors.KafkaError]]:
    found = [kind for _, kind in inspect.getmembers(aiokafka_errors, inspect.isclass)]
    abstract = {aiokafka_errors.BrokerResponseError}  # it has no number, not even for its own text
    return {kind for kind in found if issubclass(kind, aiokafka_errors.KafkaError)} - abstract


#: May pass, though aiokafka itself does not try again; most of them never come from a producer.
PASSING = frozenset(
    """BrokerNotAvailableError CommitFailedError ConcurrentTransactions
    CorruptRecordException DuplicateSequenceNumber FetchSessionIdNotFound GroupAuthorizationFailedError
    GroupIdNotFound IllegalArgumentError IllegalGenerationError InconsistentGroupProtocolError
    InvalidCommitOffsetSizeError InvalidFetchRequestError InvalidFetchSessionEpoch InvalidGroupIdError
    InvalidPartitionsError InvalidReplicationAssignmentError InvalidReplicationFactorError
    InvalidRequestError InvalidSessionTimeoutError InvalidTransactionTimeout InvalidTxnState
    KafkaTimeoutError KafkaUnavailableError ListenerNotFound LogDirNotFound MemberIdRequired NoError
    NoOffsetForPartitionError NonEmptyGroup OffsetMetadataTooLargeError OffsetOutOfRangeError
    OperationNotAttempted QuotaViolationError ReassignmentInProgress RebalanceInProgressError
    ReplicaNotAvailableError StaleControllerEpochError StaleLeaderEpochCodeError TopicAlreadyExistsError
    TransactionCoordinatorFenced UnknownError UnknownMemberIdError""".split()
)


@pytest.mark.parametrize("kind", sorted(of_aiokafka(), key=str), ids=lambda kind: str(kind.__name__))
def test_every_error_of_the_worker_s_producer_has_one_meaning(
    kind: type[aiokafka_errors.KafkaError],
) -> None:
    meanings = [
        kind.retriable,
        kind in publisher.REFUSALS,
        kind in publisher.BROKEN,
        kind.__name__ in PASSING,
    ]
    assert meanings.count(True) == 1
    arguments = ("docsum.dlq",) if kind is aiokafka_errors.CommitFailedError else ("said so",)
    failure = publisher.translate(kind(*arguments), "a record for docsum.dlq", "user x", "docsum.dlq")
    assert type(failure) is (BrokerRefused if kind in publisher.REFUSALS else BrokerUnavailable)
    assert "docsum.dlq" in str(failure)
    about_rights = (
        aiokafka_errors.TopicAuthorizationFailedError,
        aiokafka_errors.ClusterAuthorizationFailedError,
    )
    assert ("The Kafka user x lacks Write on" if kind in about_rights else kind.__name__) in str(failure)
    assert row_of(failure).disposition is Disposition.PAUSE  # a copy is never given up


def test_what_is_no_error_of_kafka_s_is_told_with_its_name() -> None:
    failure = publisher.translate(AssertionError("Unrecognized partition"), "a record for docsum.dlq")
    assert type(failure) is BrokerUnavailable
    assert "AssertionError: Unrecognized partition" in str(failure)


# -- Kafka, the producer of the commands -------------------------------------------------------------------


def of_confluent() -> dict[str, int]:
    return {name: code for name, code in vars(KafkaError).items() if name.isupper() and isinstance(code, int)}


def test_every_refusal_is_a_code_of_confluent_kafka() -> None:
    assert len(of_confluent()) > 150
    assert sorted(producer.REFUSALS - of_confluent().keys()) == []


@pytest.mark.parametrize("name", sorted(of_confluent()))
def test_every_code_of_the_commands_producer_has_a_meaning(name: str) -> None:
    kafka = Kafka(bootstrap_servers="127.0.0.1:9092")
    failure = producer.translate("docsum.documents", KafkaError(of_confluent()[name]), kafka)
    assert type(failure) is (BrokerRefused if name in producer.REFUSALS else BrokerUnavailable)
    assert str(failure).endswith(".") and "None" not in str(failure)


def test_a_refusal_that_may_pass_is_not_one() -> None:
    retriable = [name for name in producer.REFUSALS if KafkaError(of_confluent()[name]).retriable()]
    assert retriable == []


def test_the_two_clients_agree_on_what_is_a_refusal() -> None:
    """By the number that the broker sends, as far as both know it."""
    ours = {kind.errno for kind in publisher.REFUSALS if getattr(kind, "errno", -1) > 0}
    theirs = {of_confluent()[name] for name in producer.REFUSALS}
    known = {kind.errno for kind in of_aiokafka() if getattr(kind, "errno", -1) > 0}
    assert ours == {code for code in theirs if code in known}
