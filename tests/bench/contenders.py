"""Who takes part in the bench, and what each leaves behind when its process is killed.

A reader has to weigh the rates with that: docsum does all of its keeping in the time that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table."""

    id: str
    title: str
    keeps: str
    peer: bool = False  # runs in the environment of the peers


DOCSUM = "docsum"
CONTENDERS = (
    Contender("default", "AsyncAnthropic", "nothing"),
    Contender("aiohttp", "AsyncAnthropic, aiohttp", "nothing"),
    Contender("taskiq", "taskiq", "nothing: results in memory", peer=True),
    Contender("litellm", "litellm", "nothing", peer=True),
    Contender("abl", "async-batch-llm", "nothing: results in memory", peer=True),
    Contender(
        "abl-file", "async-batch-llm, checkpoints", "answers, a line each in a file, no fsync", peer=True
    ),
    Contender(DOCSUM, "docsum", "answers, summaries and costs in ClickHouse, offsets in Kafka"),
)
BY_ID = {contender.id: contender for contender in CONTENDERS}
RIVALS = tuple(name for name in BY_ID if name != DOCSUM)
