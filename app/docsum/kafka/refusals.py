"""What aiokafka's errors mean: a right that is missing, by its name, a login, or a broker that is away."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from aiokafka import errors

from docsum.errors import BrokerUnavailable, DocsumError, RightMissing
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.rights import Operation, lacks
from docsum.kafka.security import identity
from docsum.settings import Kafka

_PATIENCE = timedelta(seconds=2)
#: After these a connection is tried anew, to learn why it failed: aiokafka tells its log alone.
_CONNECTION = (errors.KafkaConnectionError, errors.AuthenticationFailedError, errors.IllegalSaslStateError)


def right_missing(
    error: BaseException,
    who: str,
    *,
    topic: str = "",
    group: str = "",
    needed: Operation = Operation.READ,
    group_needed: Operation = Operation.READ,
) -> RightMissing | None:
    """None for an error that is about no right.

    `topic` and `group`: which it is about, where that is known; what was `needed` there.
    """
    match error:
        case errors.TopicAuthorizationFailedError():
            return RightMissing(lacks(who, (needed,), "topic", topic or _named(error)))
        case errors.GroupAuthorizationFailedError():
            return RightMissing(lacks(who, (group_needed,), "group", group or _named(error)))
        case errors.ClusterAuthorizationFailedError():
            # What an idempotent producer is told who may write nowhere.
            return RightMissing(lacks(who, (Operation.WRITE,), "topic", topic or "any"))
    return None


def _named(error: BaseException) -> str:
    """What the error is about: aiokafka hands in a name, several, or none."""
    names = error.args[0] if error.args else "that it needs"
    if isinstance(names, str):
        return names
    return ", ".join(sorted(map(str, names))) if isinstance(names, Collection) else str(names)


async def explained(error: Exception, kafka: Kafka, what: str) -> DocsumError:
    """An error of aiokafka, or of a connection, while we looked. Takes about two seconds at most."""
    if found := right_missing(error, identity(kafka), group_needed=Operation.DESCRIBE):
        return found
    away = BrokerUnavailable(f"Kafka at {kafka.bootstrap_servers} does not answer.")
    if isinstance(error, TimeoutError):  # it is slow, or frozen: another try would be, too
        return away
    if isinstance(error, (*_CONNECTION, OSError)):
        try:
            await KafkaAdmin(kafka, _PATIENCE).reach()
        except DocsumError as reason:
            return reason
        return away
    return BrokerUnavailable(f"Kafka at {kafka.bootstrap_servers} could not {what}: {type(error).__name__}.")
