"""docker-compose.yml, read by Docker's own plugin; and its Kafka, started with what it is told there."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from docsum.local.jars import cache_folder, ensure_jars
from docsum.local.kafka import kafka_spec
from docsum.local.loopback import HOST, free_port
from tests.support.manifests import COMPOSE, ROOT, compose

PROFILES = ("registry", "observability", "model-server")
BASE = {"kafka", "clickhouse", "setup", "worker", "batch-worker", "api"}
#: Read by the image's start script, not by the broker.
NOT_PROPERTIES = ("KAFKA_HEAP_OPTS",)


@pytest.fixture(scope="module")
def plugin() -> str:
    found = subprocess.run([ROOT / ".ci/need-compose"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stdout.strip())
    return found.stdout.strip()


def told(plugin: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [plugin, "--file", str(COMPOSE), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def services(plugin: str, *arguments: str, **environment: str) -> dict[str, Any]:
    done = told(plugin, *arguments, "config", "--format", "json", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.parametrize(
    ("profiles", "more"),
    [
        ((), set()),
        (("registry",), {"registry"}),
        (("observability",), {"prometheus", "grafana"}),
        (("model-server",), {"model-server"}),
        (PROFILES, {"registry", "prometheus", "grafana", "model-server"}),
    ],
)
def test_compose_reads_every_profile(plugin: str, profiles: tuple[str, ...], more: set[str]) -> None:
    chosen = [f"--profile={profile}" for profile in profiles]
    assert services(plugin, *chosen, ANTHROPIC_API_KEY="a-key").keys() == BASE | more


def test_without_a_key_it_says_what_to_do(plugin: str) -> None:
    done = told(plugin, "config")
    assert done.returncode != 0
    assert "set it, or add --env-file deploy/compose/without-key.env" in done.stderr


def test_without_a_key_the_workers_ask_the_local_model(plugin: str) -> None:
    found = services(plugin, "--env-file", str(ROOT / "deploy/compose/without-key.env"))
    assert found.keys() == BASE | {"model-server"}
    for name in ("worker", "batch-worker"):
        environment = found[name]["environment"]
        assert environment["ANTHROPIC_BASE_URL"] == "http://model-server:8089"
        assert environment["DOCSUM_MODEL__NAME"] == "local-extractive-1"
        assert found[name]["depends_on"]["model-server"]["condition"] == "service_healthy"
    assert found["model-server"]["build"]["args"] == {"LOCK": "local"}


async def test_its_kafka_starts_with_what_it_is_told(tmp_path: Path) -> None:
    inside, outside, controller = free_port(), free_port(), free_port()
    spec = kafka_spec(
        tmp_path, await asyncio.to_thread(ensure_jars, cache_folder(os.environ)), outside, controller
    )
    assert spec.prepare is not None
    await spec.prepare()
    lines = []
    for name, text in compose()["services"]["kafka"]["environment"].items():
        if name.startswith("KAFKA_") and name not in NOT_PROPERTIES:
            here = text.replace("/var/lib/kafka/data", "log").replace("kafka:", "localhost:")
            for port, free in ((19092, inside), (9092, outside), (9093, controller)):
                here = here.replace(f":{port}", f":{free}")
            here = here.replace("://:", f"://{HOST}:").replace("localhost", HOST)
            lines.append(f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={here}")
    log_dir = next(line for line in lines if line.startswith("log.dirs="))
    assert log_dir in (tmp_path / "server.properties").read_text().splitlines()  # that is what is formatted
    (tmp_path / "server.properties").write_text("\n".join(lines))
    with (tmp_path / "stdout").open("wb") as log:
        broker = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            spec.argv, env=dict(spec.env), cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(60):
            while not await spec.ready():
                assert broker.poll() is None, (tmp_path / "stdout").read_text()
                await asyncio.sleep(0.1)
        for port in (inside, outside):
            brokers = AdminClient({"bootstrap.servers": f"{HOST}:{port}"}).list_topics(timeout=10).brokers
            assert [each.port for each in brokers.values()] == [port]
    finally:
        broker.kill()
        broker.wait(20)
