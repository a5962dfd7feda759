"""S3 event notifications, as MinIO, Ceph and AWS write them, are events; others are refused in a sentence."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import InvalidEvent
from docsum.kafka.codec import LONGEST_ID
from docsum.models import DocumentReference, Operation, to_ms
from tests.unit.test_codec import NOW, decode

MINIO: dict[str, Any] = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "reports/2026/may report.pdf",
    "Records": [
        {
            "eventVersion": "2.0",
            "eventSource": "minio:s3",
            "awsRegion": "",
            "eventTime": "2026-11-23T11:59:58.116Z",
            "eventName": "s3:ObjectCreated:Put",
            "userIdentity": {"principalId": "minio"},
            "requestParameters": {"principalId": "minio", "region": "", "sourceIPAddress": "192.0.2.1"},
            "responseElements": {"x-amz-request-id": "181D59F971094A02"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "Config",
                "bucket": {"name": "reports", "arn": "arn:aws:s3:::reports"},
                "object": {
                    "key": "2026%2Fmay+report.pdf",
                    "size": 248682,
                    "eTag": "f1671feacb8bbf7b0397c6e9364e8c92",
                    "contentType": "application/pdf",
                    "userMetadata": {"content-type": "application/pdf"},
                    "sequencer": "181D59F9711A2B3C",
                },
            },
            "source": {"host": "192.0.2.1", "port": "", "userAgent": "MinIO"},
        }
    ],
}
CEPH: dict[str, Any] = {
    "Records": [
        {
            "eventVersion": "2.2",
            "eventSource": "ceph:s3",
            "awsRegion": "default",
            "eventTime": "2026-11-23 11:59:58.330496Z",
            "eventName": "ObjectCreated:Put",
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "docsum",
                "bucket": {"name": "reports", "id": "503a4c37.5332.38"},
                "object": {
                    "key": "2026/50%+tax may report.pdf",
                    "size": "1024",
                    "etag": "37b51d194a7513e45b56f6524f2d51f2",
                    "versionId": "",
                    "sequencer": "F7E6D75DC742D108",
                    "metadata": [],
                    "tags": [],
                },
            },
            "eventId": "1",
            "opaqueData": "",
        }
    ]
}


async def notified(message: dict[str, Any]) -> DocumentReference:
    return await decode(json.dumps(message).encode(), key=b"reports/2026/may report.pdf")


def changed(message: dict[str, Any], **fields: object) -> dict[str, Any]:
    """With other fields in its record: of the object where it has one of that name, else of the record."""
    found: dict[str, Any] = json.loads(json.dumps(message))
    record = found["Records"][0]
    for name, value in fields.items():
        (record["s3"]["object"] if name in record["s3"]["object"] else record)[name] = value
    return found


async def test_minio_escapes_keys_as_forms_do() -> None:
    found = await notified(MINIO)
    assert found.document_id == "s3://reports/2026/may report.pdf"
    assert found.uri == "s3://reports/2026/may%20report.pdf"
    assert found.source_version == "f1671feacb8bbf7b0397c6e9364e8c92"
    assert (found.size_bytes, found.media_type) == (248682, "application/pdf")
    assert found.occurred_at.isoformat() == "2026-11-23T11:59:58.116000+00:00"
    assert (found.operation, found.run_id, found.force) == (Operation.UPSERT, None, False)


async def test_ceph_escapes_nothing_and_writes_time_and_size_its_own_way() -> None:
    found = await notified(CEPH)
    assert found.document_id == "s3://reports/2026/50%+tax may report.pdf"
    assert found.uri == "s3://reports/2026/50%25%2Btax%20may%20report.pdf"
    assert found.source_version == "37b51d194a7513e45b56f6524f2d51f2"
    assert found.size_bytes == 1024
    assert found.occurred_at.isoformat() == "2026-11-23T11:59:58.330000+00:00"


@pytest.mark.parametrize("name", ["s3:ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated"])
@pytest.mark.parametrize("message", [MINIO, CEPH])
async def test_what_is_removed_is_deleted(message: dict[str, Any], name: str) -> None:
    found = await notified(changed(message, eventName=name))
    assert found.operation is Operation.DELETE
    assert found.source_version == ""
    assert found.document_id == (await notified(message)).document_id


async def test_an_etag_is_the_one_of_our_own_listing() -> None:
    assert (await notified(changed(MINIO, eTag='"abc-2"'))).source_version == "abc-2"
    assert (await notified(changed(MINIO, eTag=""))).source_version == ""


async def test_a_time_that_is_missing_is_the_one_of_the_record() -> None:
    assert to_ms((await notified(changed(MINIO, eventTime=None))).occurred_at) == to_ms(NOW)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200))
async def test_every_key_comes_back_from_either(key: str) -> None:
    for found in (
        await notified(changed(MINIO, key=quote_plus(key))),
        await notified(changed(CEPH, key=key)),
    ):
        assert found.document_id == f"s3://reports/{key}"


def without(*path: str | int) -> dict[str, Any]:
    found = json.loads(json.dumps(MINIO))
    inner = found
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    return found  # type: ignore[no-any-return]  # json


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"Records": []}, "The S3 notification has no record."),
        ({"Records": {}}, "The S3 notification has no record."),
        (
            {"Records": MINIO["Records"] * 2},
            "The S3 notification has 2 records: publish one a message, as MinIO and Ceph do.",
        ),
        ({"Records": [1]}, "The S3 notification has no record."),
        (without("Records", 0, "s3"), "The S3 notification has no s3."),
        (without("Records", 0, "s3", "bucket"), "The S3 notification has no s3.bucket."),
        (without("Records", 0, "s3", "object"), "The S3 notification has no s3.object."),
        (without("Records", 0, "s3", "bucket", "name"), "The S3 notification names no bucket."),
        (changed(MINIO, key=""), "The S3 notification names no key."),
        (changed(MINIO, key=4), "The S3 notification names no key."),
        (changed(MINIO, key="%ff"), "The key in the S3 notification is not UTF-8."),
        (changed(MINIO, key="a%00b"), "document_id holds a control character."),
        (changed(MINIO, key="k" * LONGEST_ID), "document_id has 525 characters; 512 are allowed."),
        (changed(MINIO, eTag=7), "The S3 notification names no eTag."),
        (changed(MINIO, size=-1), "size_bytes is not a number of bytes."),
        (changed(MINIO, contentType=7), "media_type is not text."),
        (changed(MINIO, eventTime="soon"), "occurred_at is not a time such as 2026-01-31T12:00:00Z."),
        (
            changed(MINIO, eventName="s3:ObjectAccessed:Get"),
            "The S3 notification is of 's3:ObjectAccessed:Get': only ObjectCreated and ObjectRemoved "
            "announce documents.",
        ),
        (
            changed(MINIO, eventName=None),
            "The S3 notification is of 'None': only ObjectCreated and ObjectRemoved announce documents.",
        ),
    ],
)
async def test_a_notification_that_is_no_event_gets_its_sentence(
    message: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidEvent) as refused:
        await notified(message)
    assert str(refused.value) == sentence


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["eventName", "eventTime", "s3", "key", "size", "eTag", "contentType", "etag"]), _JSON)
async def test_any_notification_is_an_event_or_has_a_reason(name: str, value: object) -> None:
    for message in (MINIO, CEPH):
        try:
            await notified(changed(message, **{name: value}))
        except InvalidEvent as refused:
            assert str(refused).endswith(".")


async def test_a_document_that_has_records_of_its_own_is_an_event_of_ours() -> None:
    found = await notified({"document_id": "a", "uri": "file:///a", "Records": []})
    assert found.document_id == "a"
