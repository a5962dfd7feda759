"""Read what has become of your documents: one a line, with tabs between its fields.

DOCUMENT_ID, OUTCOME, REASON and TITLE. Where docsum uses a schema registry, its address is one more argument:

    pip install confluent-kafka fastavro
    python results.py localhost:9092 docsum.summaries
    python results.py localhost:9092 docsum.summaries http://localhost:8081
"""

import json
import sys
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from fastavro import parse_schema, schemaless_reader

SCHEMA = parse_schema(
    json.loads((Path(__file__).parents[1] / "summary_result.v1.avsc").read_text(encoding="utf-8"))
)
HEADER = bytes.fromhex("c3014019c911e808ba91")  # single-object encoding, this schema


class Decoder:
    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.schemas: dict[int, Any] = {}

    def decode(self, value: bytes) -> Any:
        if value[:10] == HEADER:
            return schemaless_reader(BytesIO(value[10:]), SCHEMA, None)
        if value[:1] != b"\x00":
            raise ValueError("The value is of a later schema: take its file from docsum.")
        return schemaless_reader(BytesIO(value[5:]), self.schema(int.from_bytes(value[1:5], "big")), SCHEMA)

    def schema(self, number: int) -> Any:
        if number not in self.schemas:
            with urllib.request.urlopen(f"{self.registry}/schemas/ids/{number}", timeout=10) as answer:
                self.schemas[number] = parse_schema(json.loads(json.load(answer)["schema"]))
        return self.schemas[number]


def records(servers: str, topic: str) -> Iterator[Message]:
    """All that the topic holds now; follow it with `subscribe` and a group of your own instead."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "results", "enable.auto.commit": False})
    try:
        for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            start, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            consumer.assign([TopicPartition(topic, number, start)])
            while start < end:
                record = consumer.poll(10)
                if record is None or record.error():
                    raise RuntimeError(record.error() if record else "Kafka does not answer.")
                yield record
                start = record.offset() + 1
    finally:
        consumer.close()


def main(arguments: list[str]) -> None:
    servers, topic, *registry = arguments
    decoder = Decoder(*registry or [""])
    newest: dict[str, tuple[bytes, Any]] = {}  # a null value: the document is deleted
    for record in records(servers, topic):
        document_id, version = (record.key() or b"").decode(), dict(record.headers() or ())["docsum-version"]
        if version >= newest.get(document_id, (b"", None))[0]:  # an older record may come last
            value = record.value()
            newest[document_id] = version, None if value is None else decoder.decode(value)
    for document_id, (_, result) in sorted(newest.items()):
        if result is not None:
            print(document_id, result["outcome"], result["reason"], result["title"] or "", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
