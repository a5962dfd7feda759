"""Announce documents from Python: one a line on standard input, with tabs between its fields.

DOCUMENT_ID, URI and, if you know it, SOURCE_VERSION. A line without a URI says that the document is gone:

    pip install confluent-kafka fastavro
    printf 'invoice-42\ts3://invoices/42.pdf\tetag-1\n' | python publish.py localhost:9092 docsum.documents
    printf 'invoice-42\ts3://invoices/42.pdf\n' | python publish.py --json localhost:9092 docsum.documents
"""

import json
import sys
import time
import uuid
from io import BytesIO
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer
from fastavro import parse_schema, schemaless_writer

SCHEMA = parse_schema(
    json.loads((Path(__file__).parents[1] / "document_reference.v1.avsc").read_text(encoding="utf-8"))
)
HEADER = bytes.fromhex("c3017469ac026b3a65e2")  # single-object encoding, this schema


def as_json(document_id: str, uri: str, source_version: str) -> bytes:
    event = {"document_id": document_id, "uri": uri, "source_version": source_version}
    return json.dumps(event, ensure_ascii=False).encode()


def as_avro(document_id: str, uri: str, source_version: str) -> bytes:
    event = {
        "event_id": str(uuid.uuid4()),  # keep it if you publish the same announcement again
        "document_id": document_id,
        "uri": uri,
        "source_version": source_version,
        "occurred_at": int(time.time() * 1000),  # when you saw the source like this
    }
    value = BytesIO()
    value.write(HEADER)
    schemaless_writer(value, SCHEMA, event, strict_allow_default=True)
    return value.getvalue()


def main(arguments: list[str]) -> str | int:
    encode = as_json if "--json" in arguments else as_avro
    servers, topic = [argument for argument in arguments if argument != "--json"]
    failed: list[str] = []

    def report(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(f"{message.key()!r}: {error}")

    producer = Producer(
        {
            "bootstrap.servers": servers,
            "partitioner": "murmur2_random",  # librdkafka's own default places keys elsewhere than Java does
            "enable.idempotence": True,
        }
    )
    for line in sys.stdin.buffer.read().decode().splitlines():
        document_id, uri, source_version = [*line.split("\t"), "", ""][:3]
        value = encode(document_id, uri, source_version) if uri else None
        producer.produce(topic, key=document_id.encode(), value=value, on_delivery=report)
        producer.poll(0)
    producer.flush()
    return "\n".join(failed) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
