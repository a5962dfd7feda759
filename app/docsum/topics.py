"""Topics: names, delays, partitions, configs. The one place that knows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from docsum.errors import ConfigurationError
from docsum.models import Lane

SPARE_BYTES = 64 * 1024  # what our headers may add to a copied record, with room
MAX_MESSAGE_BYTES = 1_048_576  # an input record; copies may be larger by SPARE_BYTES
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
RETRY = "retry"  # stands beside the lanes, where topics are told apart


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as docsum wants it."""

    name: str
    partitions: int
    config: Mapping[str, str]


def duration_name(delay: timedelta) -> str:
    """The shortest name of a delay: 90 s is `90s`, 300 s is `5m`."""
    milliseconds = delay // timedelta(milliseconds=1)
    for unit in ("d", "h", "m"):
        if milliseconds % _UNITS[unit] == 0 and milliseconds >= _UNITS[unit]:
            return f"{milliseconds // _UNITS[unit]}{unit}"
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def parse_duration(text: str) -> timedelta:
    """`10s`, `5m`, `1h`, `45d`, `250ms`; raises ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 250ms, 10s, 5m, 1h or 45d")
    return timedelta(milliseconds=int(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, slots=True)
class Topology:
    """All topics of one deployment, derived from a prefix and a few numbers."""

    prefix: str = "docsum"
    inputs: tuple[str, ...] = ()  # further live topics, owned by others
    partitions: int = 12
    delays: tuple[timedelta, ...] = (timedelta(seconds=10), timedelta(seconds=30), timedelta(seconds=90))
    retention: timedelta = timedelta(days=45)
    dead_letter_retention: timedelta = timedelta(days=365)
    results: bool = False  # whether upstreams are told what has become of their documents

    def __post_init__(self) -> None:
        if list(self.delays) != sorted(self.delays) or len(set(self.delays)) != len(self.delays):
            raise ConfigurationError(
                "DOCSUM_RETRY__DELAYS must grow from one to the next, such as 10s,30s,90s."
            )
        if self.partitions < 1:
            raise ConfigurationError("DOCSUM_TOPICS__PARTITIONS must be at least 1.")

    @property
    def documents(self) -> str:
        return f"{self.prefix}.documents"

    @property
    def backfill(self) -> str:
        return f"{self.prefix}.backfill"

    @property
    def batch(self) -> str:
        return f"{self.prefix}.batch"

    @property
    def held(self) -> str:
        return f"{self.prefix}.held"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.dlq"

    @property
    def summaries(self) -> str:
        """Where results go, if they are wanted."""
        return f"{self.prefix}.summaries"

    @property
    def max_attempts(self) -> int:
        return 1 + len(self.delays)

    def retry(self, delay: timedelta) -> str:
        return f"{self.prefix}.retry.{duration_name(delay)}"

    @property
    def retries(self) -> tuple[str, ...]:
        return tuple(self.retry(delay) for delay in self.delays)

    def is_retry(self, topic: str) -> bool:
        """Also true for a retry topic of former delays: the worker empties every one that exists."""
        return topic.startswith(f"{self.prefix}.retry.")

    def is_read(self, topic: str, lane: Lane) -> bool:
        """Whether the group of this lane reads it; LIVE and BACKFILL share a group."""
        if lane is Lane.BATCH:
            return topic == self.batch
        return topic in (self.documents, self.backfill, *self.inputs) or self.is_retry(topic)

    def lane_topic(self, lane: Lane) -> str:
        """Where events of a lane are published."""
        return {Lane.LIVE: self.documents, Lane.BACKFILL: self.backfill, Lane.BATCH: self.batch}[lane]

    def lane_of(self, topic: str) -> Lane:
        """The lane of an original topic; topics of others are live."""
        return {self.backfill: Lane.BACKFILL, self.batch: Lane.BATCH}.get(topic, Lane.LIVE)

    def _compacted(self) -> dict[str, str]:
        """The newest record of a document stays for ever, a deletion as long as a reader may be away."""
        return {
            "cleanup.policy": "compact",
            "delete.retention.ms": str(self.retention // timedelta(milliseconds=1)),
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
        }

    def topics(self) -> tuple[Topic, ...]:
        """Every topic that docsum owns, in the order in which they are created."""

        def config(retention: timedelta, copies: bool) -> dict[str, str]:
            size = MAX_MESSAGE_BYTES + (SPARE_BYTES if copies else 0)
            return {
                "retention.ms": str(retention // timedelta(milliseconds=1)),
                "max.message.bytes": str(size),
            }

        count = self.partitions
        inputs = config(self.retention, copies=False)
        copies = config(self.retention, copies=True)
        return (
            *(Topic(name, count, inputs) for name in (self.documents, self.backfill, self.batch)),
            *(Topic(name, count, copies) for name in (*self.retries, self.held)),
            Topic(self.dead_letters, count, config(self.dead_letter_retention, copies=True)),
            *((Topic(self.summaries, count, self._compacted()),) * self.results),
        )


def lane_of(topic: str, topology: Topology) -> str:
    """Of a topic that the workers read: a lane, or `retry`."""
    return RETRY if topology.is_retry(topic) else topology.lane_of(topic).value
