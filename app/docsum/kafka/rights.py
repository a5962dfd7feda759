"""What each role may do on a secured Kafka, no more than it needs: as values, and as text to grant it by.

Operations are Kafka's. Reading, writing, deleting and altering include describing, and altering settings
includes describing them (`StandardAuthorizer`), so none of those is named beside what includes it. An
idempotent producer needs nothing besides Write since Kafka 2.8 (KIP-679).
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from docsum.settings import Kafka
from docsum.topics import Topology


class Role(enum.StrEnum):
    """Who does what; each is a user of its own."""

    SETUP = "setup"  # docsum setup topics
    UPSTREAM = "upstream"  # announces documents, reads results
    WORKER = "worker"  # docsum worker
    BATCH = "batch"  # docsum worker --lane batch
    API = "api"  # docsum api
    OPERATOR = "operator"  # a person's commands: run, ingest, dlq replay, documents delete, status, doctor
    VIEWER = "viewer"  # a person's commands that change nothing: status, dlq show, runs watch


class Operation(enum.StrEnum):
    """As `kafka-acls.sh` names them."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    ALTER = "Alter"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"
    ALTER_CONFIGS = "AlterConfigs"


#: Whoever may do one of these may describe, too.
DESCRIBING = frozenset({Operation.READ, Operation.WRITE, Operation.ALTER, Operation.DESCRIBE})
Kind = Literal["topic", "group"]
_O = Operation


@dataclass(frozen=True, slots=True)
class Right:
    """One operation on one resource, or on all whose names begin like this."""

    operation: Operation
    kind: Kind
    name: str
    prefixed: bool = False

    def covers(self, name: str) -> bool:
        return name.startswith(self.name) if self.prefixed else name == self.name


def rights_of(role: Role, topology: Topology, kafka: Kafka) -> tuple[Right, ...]:
    """Everything that a role needs."""
    inputs = (topology.documents, topology.backfill, *topology.inputs)
    results = (topology.summaries,) * topology.results
    ours = f"{topology.prefix}."
    retries = f"{topology.prefix}.retry."  # former delays' too: their topics are emptied
    groups = (kafka.group_id, kafka.batch_group_id, positions_group(kafka.group_id))
    looking = (
        *_on((_O.READ,), *inputs, topology.batch, topology.held, topology.dead_letters),
        *_below((_O.READ,), retries),
        *(Right(_O.DESCRIBE, "group", group) for group in groups),
    )
    acting = _on((_O.WRITE,), *inputs, topology.batch, *results)
    match role:
        case Role.SETUP:
            return (
                *_below((_O.CREATE, _O.ALTER, _O.ALTER_CONFIGS), ours),
                *_on((_O.DESCRIBE,), *topology.inputs),
            )
        case Role.UPSTREAM:
            group = Right(_O.READ, "group", principal(role, topology), prefixed=True)
            return (
                *_on((_O.WRITE,), topology.documents),
                *_on((_O.READ,), *results),
                *((group,) * topology.results),
            )
        case Role.WORKER:
            return (
                *_on((_O.READ, _O.WRITE), *inputs, topology.held),
                *_below((_O.READ, _O.WRITE), retries),
                *_on((_O.WRITE,), topology.batch, topology.dead_letters, *results),
                *_below((_O.DESCRIBE_CONFIGS,), ours),
                *(
                    Right(_O.READ, "group", group)
                    for group in (kafka.group_id, positions_group(kafka.group_id))
                ),
            )
        case Role.BATCH:
            return (
                *_on((_O.READ,), topology.batch),
                *_on((_O.WRITE,), topology.held, topology.dead_letters, *results),
                *_on((_O.DESCRIBE,), *inputs),
                *_below((_O.DESCRIBE,), retries),
                *_below((_O.DESCRIBE_CONFIGS,), ours),
                Right(_O.READ, "group", kafka.batch_group_id),
            )
        case Role.API:
            return (
                *looking,
                *acting,
                *_below((_O.DESCRIBE_CONFIGS,), ours),
                *_on((_O.DESCRIBE_CONFIGS,), *topology.inputs),
            )
        case Role.OPERATOR:
            return (*looking, *acting, *_below((_O.DESCRIBE_CONFIGS,), ours))
        case Role.VIEWER:
            return looking


def _on(operations: Iterable[Operation], *topics: str) -> tuple[Right, ...]:
    return tuple(Right(operation, "topic", name) for name in topics for operation in operations)


def _below(operations: Iterable[Operation], prefix: str) -> tuple[Right, ...]:
    return tuple(Right(operation, "topic", prefix, prefixed=True) for operation in operations)


def positions_group(group: str) -> str:
    """Where the positions in the held topic are stored, of the workers of this group."""
    return f"{group}-held"


def principal(role: Role, topology: Topology) -> str:
    """The name of the role's user."""
    return f"{topology.prefix}-{role}"


# -- what is missing ---------------------------------------------------------------------------------------


def missing(
    rights: Iterable[Right], kind: Kind, allowed: Mapping[str, frozenset[Operation] | None]
) -> Iterator[tuple[str, tuple[Operation, ...]]]:
    """Names with the operations that are missing there.

    `allowed`: what each existing topic or group lets us do; None for one that we may not even describe.
    """
    wanted = [right for right in rights if right.kind == kind]
    for name, operations in allowed.items():
        mine = [right.operation for right in wanted if right.covers(name)]
        if operations is None:  # what else is missing there cannot be known
            lacking = [operation for operation in mine if operation in DESCRIBING] or mine
        else:
            lacking = [operation for operation in mine if operation not in operations]
        if lacking:
            yield name, tuple(dict.fromkeys(lacking))


def lacks(who: str, operations: Sequence[Operation], kind: Kind, name: str) -> str:
    """The one sentence for a missing right; `who` is of `security.identity`."""
    return (
        f"The Kafka {who} lacks {' and '.join(operations)} on {kind} {name}: "
        "grant it as `docsum setup --print kafka` says."
    )


# -- as text -----------------------------------------------------------------------------------------------


def render(form: Literal["kafka", "strimzi"], topology: Topology, kafka: Kafka) -> str:
    """The rights of all roles: commands for `kafka-acls.sh`, or Strimzi's users."""
    one = _commands if form == "kafka" else _user
    return "".join(one(role, rights_of(role, topology, kafka), topology) for role in Role)


Resource = tuple[Kind, str, bool]


def _by_resource(rights: Iterable[Right]) -> dict[Resource, list[Operation]]:
    found: dict[Resource, list[Operation]] = {}
    for right in rights:
        found.setdefault((right.kind, right.name, right.prefixed), []).append(right.operation)
    return found


def _commands(role: Role, rights: Iterable[Right], topology: Topology) -> str:
    """One command for all topics, or groups, of which the same is allowed."""
    lines = [f"# {role}\n"]

    def alike(each: tuple[Resource, list[Operation]]) -> tuple[Kind, bool, list[Operation]]:
        (kind, _, prefixed), operations = each
        return kind, prefixed, operations

    for (kind, prefixed, operations), same in groupby(_by_resource(rights).items(), alike):
        words = ["--add", "--allow-principal", f"User:{principal(role, topology)}"]
        words += [word for operation in operations for word in ("--operation", operation)]
        words += [word for (_, name, _), _ in same for word in (f"--{kind}", name)]
        words += ["--resource-pattern-type", "prefixed"] if prefixed else []
        lines.append(f'kafka-acls.sh --bootstrap-server "$BOOTSTRAP_SERVERS" {shlex.join(words)}\n')
    return "".join(lines)


def _user(role: Role, rights: Iterable[Right], topology: Topology) -> str:
    """API version v1, as the topics have it."""
    lines = [
        "---",
        "apiVersion: kafka.strimzi.io/v1",
        "kind: KafkaUser",
        "metadata:",
        f"  name: {re.sub(r'[^a-z0-9.-]', '-', principal(role, topology).lower()).strip('-.')}",
        "  labels:",
        "    strimzi.io/cluster: my-cluster  # the name of your Kafka resource",
        "spec:",
        "  authentication:",
        "    type: scram-sha-512  # or tls",
        "  authorization:",
        "    type: simple",
        "    acls:",
    ]
    for (kind, name, prefixed), operations in _by_resource(rights).items():
        lines += [
            "      - resource:",
            f"          type: {kind}",
            f"          name: {name}",
            f"          patternType: {'prefix' if prefixed else 'literal'}",
            f"        operations: [{', '.join(operations)}]",
        ]
    return "\n".join(lines) + "\n"
