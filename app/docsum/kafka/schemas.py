"""What we write in Avro, subject by subject: registered, compared, described."""

from __future__ import annotations

from collections.abc import Mapping

from docsum.kafka import codec, results
from docsum.kafka.schema_registry import COMPATIBILITY, SchemaRegistry
from docsum.topics import Topology


def subjects(topology: Topology) -> Mapping[str, str]:
    """`<topic>-value` -> schema text, of every topic that our own producers write Avro to.

    Copies in retry, held and dead-letter topics keep the bytes that they have.
    """
    lanes = (topology.documents, topology.backfill, topology.batch)
    found = {f"{topic}-value": codec.written_schema() for topic in lanes}
    if topology.results:
        found[f"{topology.summaries}-value"] = results.written_schema()
    return found


async def setup(registry: SchemaRegistry, topology: Topology) -> list[str]:
    """Registers what is missing; returns what was done, one sentence each.

    The compatibility of everything is touched only where the registry has none, as Apicurio by default: a
    registry is shared. Raises ConfigurationError for a refused schema, RegistryUnavailable.
    """
    done = []
    if await registry.compatibility() == "NONE":
        await registry.set_compatibility(None)
        done.append(f"The registry now asks for {COMPATIBILITY} where a subject says nothing else.")
    for subject, text in subjects(topology).items():
        if await problem_of(registry, subject, text):
            await registry.register(subject, text)
            done.append(f"Registered {subject}, {COMPATIBILITY}.")
    return done


async def check(registry: SchemaRegistry, topology: Topology) -> list[str]:
    """What is wrong, one sentence each; empty when all is well. Raises RegistryUnavailable."""
    found = [await problem_of(registry, subject, text) for subject, text in subjects(topology).items()]
    return [problem for problem in found if problem]


async def problem_of(registry: SchemaRegistry, subject: str, text: str) -> str:
    """Empty when the schema is registered and may only change compatibly."""
    if not await registry.has(subject, text):
        return f"Our schema is not registered under {subject}."
    level = await registry.compatibility(subject)
    return "" if level == COMPATIBILITY else f"{subject} has compatibility {level}, not {COMPATIBILITY}."
