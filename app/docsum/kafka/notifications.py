"""S3 event notifications, as MinIO, Ceph and what follows AWS publish them: the fields of an event.

One record each: MinIO and Ceph put one into a message. A message with several would be one Kafka record for
several documents, with one key and one offset: that is refused, not read in part.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote_plus

from docsum.errors import InvalidEvent
from docsum.models import Operation

_OPERATIONS = {"ObjectCreated": Operation.UPSERT, "ObjectRemoved": Operation.DELETE}
#: All others write keys as forms do, with + for a space; Ceph writes them as they are.
_PLAIN_KEYS = "ceph:s3"


def is_notification(fields: Mapping[str, object]) -> bool:
    """Whether a JSON object is one, and no event of ours."""
    return "Records" in fields and "document_id" not in fields


def event_fields(fields: Mapping[str, object]) -> Mapping[str, object]:
    """What an event of ours would say. Raises InvalidEvent."""
    records = fields["Records"]
    if not isinstance(records, list) or not records:
        raise InvalidEvent("The S3 notification has no record.")
    if len(records) > 1:
        raise InvalidEvent(
            f"The S3 notification has {len(records)} records: publish one a message, as MinIO and Ceph do."
        )
    record = _part(records[0], "record")
    name = record.get("eventName")
    operation = _OPERATIONS.get(str(name).removeprefix("s3:").partition(":")[0])
    if operation is None:
        raise InvalidEvent(
            f"The S3 notification is of {str(name)[:60]!r}: only ObjectCreated and ObjectRemoved "
            "announce documents."
        )
    s3 = _part(record.get("s3"), "s3")
    thing = _part(s3.get("object"), "s3.object")
    bucket, key = _text(_part(s3.get("bucket"), "s3.bucket").get("name"), "bucket"), _key(record, thing)
    created = operation is Operation.UPSERT
    return {
        "document_id": f"s3://{bucket}/{key}",
        "uri": f"s3://{bucket}/{quote(key)}",
        "source_version": _etag(thing) if created else "",
        "occurred_at": record.get("eventTime"),
        "size_bytes": _size(thing.get("size")) if created else None,
        "media_type": thing.get("contentType") if created else None,
        "operation": operation.value,
    }


def _part(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InvalidEvent(f"The S3 notification has no {name}.")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidEvent(f"The S3 notification names no {name}.")
    return value


def _key(record: Mapping[str, object], thing: Mapping[str, object]) -> str:
    key = _text(thing.get("key"), "key")
    if record.get("eventSource") == _PLAIN_KEYS:
        return key
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidEvent("The key in the S3 notification is not UTF-8.") from error


def _etag(thing: Mapping[str, object]) -> str:
    """As our lister has it, so that either one recognises what the other has announced."""
    found = thing.get("eTag") or thing.get("etag") or ""  # older Cephs write it small
    return _text(found, "eTag").removeprefix("W/").strip('"') if found else ""


def _size(value: object) -> object:
    """Ceph's own examples have it as a text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
