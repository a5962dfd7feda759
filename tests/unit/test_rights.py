"""What each role may do: no more than it needs, and printed so that it can be granted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
import yaml  # no stubs in the lock

from docsum.kafka.rights import DESCRIBING, Operation, Right, Role, lacks, missing, render, rights_of
from docsum.settings import Kafka
from docsum.topics import Topology

TOPOLOGY = Topology(inputs=("theirs",), results=True)
GROUPS = Kafka()
BY_NAME = {operation.value: operation for operation in Operation}


def printed(text: str) -> Iterator[tuple[str, Right]]:
    """User and right, as `kafka-acls.sh` understands the commands."""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        words = shlex.split(line)
        assert words[:4] == ["kafka-acls.sh", "--bootstrap-server", "$BOOTSTRAP_SERVERS", "--add"]
        options = list(zip(words[4::2], words[5::2], strict=True))
        (user,) = [value for name, value in options if name == "--allow-principal"]
        prefixed = ("--resource-pattern-type", "prefixed") in options
        for kind in ("topic", "group"):
            for resource in [value for name, value in options if name == f"--{kind}"]:
                for operation in [value for name, value in options if name == "--operation"]:
                    yield user, Right(BY_NAME[operation], kind, resource, prefixed)


def test_the_commands_grant_exactly_the_rights_of_every_role() -> None:
    wanted = [(f"User:docsum-{role}", right) for role in Role for right in rights_of(role, TOPOLOGY, GROUPS)]
    assert sorted(map(str, printed(render("kafka", TOPOLOGY, GROUPS)))) == sorted(map(str, wanted))


def test_strimzi_s_users_have_the_same_rights() -> None:
    users = list(yaml.safe_load_all(render("strimzi", TOPOLOGY, GROUPS)))
    assert [user["metadata"]["name"] for user in users] == [f"docsum-{role}" for role in Role]
    for role, user in zip(Role, users, strict=True):
        found = {
            Right(
                BY_NAME[operation],
                acl["resource"]["type"],
                acl["resource"]["name"],
                acl["resource"]["patternType"] == "prefix",
            )
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
        assert found == set(rights_of(role, TOPOLOGY, GROUPS))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("topology", [TOPOLOGY, Topology()], ids=["everything", "the least"])
def test_no_right_is_contained_in_another(role: Role, topology: Topology) -> None:
    rights = rights_of(role, topology, GROUPS)
    assert len(set(rights)) == len(rights)
    for right in rights:
        others = [each for each in rights if each is not right and each.kind == right.kind]
        covering = [each for each in others if each.covers(right.name)]
        assert not any(each.operation is right.operation for each in covering)
        if right.operation is Operation.DESCRIBE:
            assert not any(each.operation in DESCRIBING for each in covering)


def test_those_who_only_look_change_nothing() -> None:
    changing = {Operation.WRITE, Operation.CREATE, Operation.ALTER, Operation.ALTER_CONFIGS}
    assert not changing.intersection(right.operation for right in rights_of(Role.VIEWER, TOPOLOGY, GROUPS))


def test_what_is_missing_is_told_for_each_topic() -> None:
    rights = (
        Right(Operation.READ, "topic", "a"),
        Right(Operation.WRITE, "topic", "a"),
        Right(Operation.DESCRIBE_CONFIGS, "topic", "", prefixed=True),
        Right(Operation.READ, "group", "a"),
    )
    allowed = {
        "a": frozenset({Operation.READ, Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS}),
        "b": frozenset({Operation.DESCRIBE_CONFIGS}),
        "c": frozenset[Operation](),
    }
    assert dict(missing(rights, "topic", allowed)) == {
        "a": (Operation.WRITE,),
        "c": (Operation.DESCRIBE_CONFIGS,),
    }
    # Where nothing may be described, only what includes describing is missing for sure.
    assert dict(missing(rights, "topic", {"a": None})) == {"a": (Operation.READ, Operation.WRITE)}
    assert lacks("user x", (Operation.READ, Operation.WRITE), "topic", "a").startswith(
        "The Kafka user x lacks Read and Write on topic a: grant it"
    )
