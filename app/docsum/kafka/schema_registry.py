"""The schema registry, by the Confluent API: schema ids to schemas and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from docsum.errors import BrokerError, ConfigurationError, InvalidEvent, RegistryUnavailable, SchemaUnknown

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

T = TypeVar("T")

COMPATIBILITY = "FULL_TRANSITIVE"  # a replayed record may be older or newer than its reader
_TIMEOUT = 5  # seconds for one request


class SchemaRegistry:
    """A thin layer over confluent-kafka's asynchronous client, which caches what it has read.

    Whoever asks the same at once asks together: a worker that begins would else ask a hundred times, and
    again each time that a registry is too slow for that.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError for an address that is not http(s)."""
        from confluent_kafka.schema_registry import AsyncSchemaRegistryClient

        # One retry only: a registry that stays down is waited for at the step, where it is told to people.
        options = {"url": url, "timeout": _TIMEOUT, "max.retries": 1, "retries.wait.ms": 200}
        try:
            self._client = AsyncSchemaRegistryClient.new_client(options)
        except ValueError as error:
            raise ConfigurationError(
                "DOCSUM_KAFKA__SCHEMA_REGISTRY_URL must be an http:// or https:// address."
            ) from error
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}  # Any: each question has its own answer

    async def aclose(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()
        await self._client.aclose()

    async def text_of(self, schema_id: int) -> str:
        """The Avro schema with this id. Raises SchemaUnknown, RegistryUnavailable or InvalidEvent."""
        try:
            schema = await self._together(schema_id, lambda: self._client.get_schema(schema_id))
        except Exception as error:
            raise _translated(error, f"schema {schema_id}") from error
        if not schema.schema_str:
            raise RegistryUnavailable(f"The schema registry gives no text for schema {schema_id}.")
        if schema.schema_type not in (None, "AVRO") or schema.references:
            raise InvalidEvent(f"Schema {schema_id} of the registry is not a plain Avro schema.")
        return str(schema.schema_str)

    async def id_of(self, subject: str, text: str) -> int:
        """The id under which the schema is registered. Raises SchemaUnknown or RegistryUnavailable."""
        try:
            found = await self._together(
                (subject, text), lambda: self._client.lookup_schema(subject, _avro(text))
            )
        except Exception as error:
            raise _translated(error, f"our schema under {subject}; run `docsum setup schemas`") from error
        if found.schema_id is None:
            raise RegistryUnavailable(f"The schema registry gives no id for the schema under {subject}.")
        return found.schema_id

    async def _together(self, key: Hashable, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer to a question that may be under way; who is cancelled leaves it to the others."""
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(ask())
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        answer: T = await asyncio.shield(asking)
        return answer

    async def has(self, subject: str, text: str) -> bool:
        """Whether the schema is registered under the subject. Raises RegistryUnavailable."""
        try:
            await self.id_of(subject, text)
        except SchemaUnknown:
            return False
        return True

    async def compatibility(self, subject: str | None = None) -> str:
        """The level of a subject, or the one where a subject says nothing. Raises RegistryUnavailable."""
        try:
            return str(await self._client.get_compatibility(subject))
        except Exception as error:
            failure = _translated(error, subject or "a level of compatibility")
            if subject and isinstance(failure, SchemaUnknown):
                return await self.compatibility()
            raise failure from error

    async def set_compatibility(self, subject: str | None) -> None:
        """Ours, for a subject or where a subject says nothing. Raises RegistryUnavailable."""
        try:
            await self._client.set_compatibility(subject, COMPATIBILITY)
        except Exception as error:
            raise _translated(error, subject or "a level of compatibility") from error

    async def register(self, subject: str, text: str) -> None:
        """May be repeated. Raises ConfigurationError when the schema is refused, else RegistryUnavailable."""
        try:
            await self._client.register_schema(subject, _avro(text))
            await self._client.set_compatibility(subject, COMPATIBILITY)
        except Exception as error:
            if getattr(error, "http_status_code", 0) in (409, 422):
                raise ConfigurationError(
                    f"The schema registry refuses our schema under {subject}: another one is there."
                ) from error
            raise _translated(error, subject) from error


def _avro(text: str) -> Schema:
    from confluent_kafka.schema_registry import Schema

    return Schema(text, "AVRO")


def _translated(error: Exception, what: str) -> BrokerError:
    """Only the registry's own 404xx codes say that a schema is unknown.

    A bare 404 comes from a wrong path or a proxy; taking it for an answer would dead-letter every record.
    """
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    if not isinstance(error, SchemaRegistryError):  # the HTTP client's own errors, or a reply that is no JSON
        return RegistryUnavailable(f"The schema registry does not answer ({type(error).__name__}).")
    if str(error.error_code).startswith("404") and error.error_code != 404:
        return SchemaUnknown(f"The schema registry does not know {what}.")
    return RegistryUnavailable(f"The schema registry answers with HTTP {error.http_status_code}.")
