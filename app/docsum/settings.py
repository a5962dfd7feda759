"""The only reader of the environment. Frozen, nested, every secret masked.

`DOCSUM_<GROUP>__<NAME>`, durations as `10s` or `5m`, sizes as `100MB`, lists by comma, `.env` read from the
working directory, then files of `/run/secrets/docsum` named as the variables; `ANTHROPIC_API_KEY` and
`ANTHROPIC_BASE_URL` honoured, also in `.env`. A misspelt variable is an error wherever it stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from docsum.errors import ConfigurationError
from docsum.models import Lane, Recipe
from docsum.topics import Topology, duration_name, parse_duration

_SIZES = {"": 1, "B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "KIB": 1 << 10, "MIB": 1 << 20}
_SIZE = re.compile(r"(\d+)\s*([A-Z]*)")
_SECRETS_DIR = Path("/run/secrets/docsum")
_DOTENV = ".env"


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip().upper())
    if match is None or match[2] not in _SIZES:
        raise ValueError(f"{value!r} is not a size: write 500KB, 100MB or 1GB")
    return int(match[1]) * _SIZES[match[2]]


def _listed(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _durations(value: object) -> object:
    parts = _listed(value)
    return tuple(_duration(part) for part in parts) if isinstance(parts, tuple) else parts


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Durations = Annotated[tuple[timedelta, ...], NoDecode, BeforeValidator(_durations)]
Size = Annotated[int, BeforeValidator(_size)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kafka(_Group):
    bootstrap_servers: str = Field(
        "", description="Brokers, `host:port` by comma; set = an explicit deployment"
    )
    security_protocol: str = Field("PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    sasl_mechanism: str = Field("", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    sasl_username: str = Field("", description="SASL user")
    sasl_password: SecretStr = Field(SecretStr(""), description="SASL password")
    ssl_ca_location: str = Field("", description="CA file for TLS; empty = the system's")
    ssl_certificate_location: str = Field("", description="Certificate of this client, for mutual TLS")
    ssl_key_location: str = Field("", description="Its key; empty = in the same file")
    ssl_key_password: SecretStr = Field(SecretStr(""), description="Password of an encrypted key")
    allow_plaintext_password: bool = Field(
        False, description="Let SASL_PLAINTEXT send the password unencrypted to other machines"
    )
    group_id: str = Field("docsum-worker", description="Consumer group of the workers")
    batch_group_id: str = Field("docsum-batch", description="Consumer group of the batch lane")
    schema_registry_url: str = Field("", description="Confluent-compatible registry; empty = none is needed")

    def group_of(self, lane: Lane) -> str:
        """The consumer group that reads the lane; live and backfill are one group's work."""
        return self.batch_group_id if lane is Lane.BATCH else self.group_id


class Topics(_Group):
    prefix: str = Field("docsum", description="All topics begin with it")
    inputs: Names = Field((), description="Further live input topics, by comma")
    partitions: int = Field(12, ge=1, description="Partitions of every topic: the ceiling of parallel work")
    replication_factor: int = Field(-1, description="-1 = the broker's default")
    retention: Duration = Field(timedelta(days=45), description="How long unread events are kept")
    summaries: bool = Field(
        False, description="Tell upstreams what has become of their documents, on `<prefix>.summaries`"
    )


class ClickHouse(_Group):
    url: str = Field("", description="`http(s)://host:port`; required on an explicit deployment")
    database: str = Field("docsum", description="Database; made by `docsum setup store`")
    user: str = Field("default", description="User")
    password: SecretStr = Field(SecretStr(""), description="Password")
    ssl_ca_location: str = Field("", description="CA file for an https:// URL; empty = the system's")
    cluster: str = Field("", description="Cluster name for ON CLUSTER and replicated tables (unproven)")


class Model(_Group):
    name: str = Field("claude-haiku-5-5", description="Model of live events and of runs without --model")
    api_key: SecretStr = Field(SecretStr(""), description="Provider key; ANTHROPIC_API_KEY is honoured")
    base_url: str = Field("", description="Provider address; ANTHROPIC_BASE_URL is honoured")
    timeout: Duration = Field(timedelta(seconds=120), description="Longest wait for one answer")
    reuse_scope: str = Field("", description="Answers are reused only within the same scope")
    single_shot_tokens: int = Field(60_000, ge=1_000, description="A longer text is read in chunks")


class SummaryWish(_Group):
    instructions: str = Field("", max_length=8_000, description="What you want to know of every document")
    language: str = Field("same", description="`same` as the document, or a language such as `en`")
    words: int = Field(150, ge=20, le=2_000, description="About how long a summary is")


class Limits(_Group):
    requests_per_minute: int = Field(0, ge=0, description="Over the whole group; 0 = no limit")
    input_tokens_per_minute: int = Field(0, ge=0, description="Over the whole group; 0 = no limit")
    output_tokens_per_minute: int = Field(0, ge=0, description="Over the whole group; 0 = no limit")


class Batch(_Group):
    max_requests: int = Field(1_000, ge=1, le=100_000, description="Requests in one batch of the batch lane")
    max_age: Duration = Field(timedelta(minutes=10), description="What was collected is sent after that time")
    quiet: Duration = Field(timedelta(seconds=30), description="Or when no more has come for that time")
    poll: Duration = Field(timedelta(seconds=30), description="How often an open batch is looked at")
    doubt: Duration = Field(
        timedelta(minutes=10), description="A batch whose create reply was lost is looked for so long"
    )
    open_documents: int = Field(
        10_000,
        ge=1,
        description="Documents of one partition that may wait for batches, about 5 KB of memory each",
    )


class Worker(_Group):
    max_in_flight: int = Field(64, ge=1, description="Model calls at once in one worker")
    slots_per_partition: int = Field(8, ge=1, description="Documents at once from one partition")
    drain_timeout: Duration = Field(
        timedelta(seconds=15), description="Calls in flight at a rebalance get this long"
    )
    shutdown_timeout: Duration = Field(
        timedelta(seconds=150), description="After SIGTERM, paid answers are stored for this long"
    )
    instance_id: str = Field("", description="Static membership where replicas have stable names")
    host: str = Field("127.0.0.1", description="Address of metrics and probes; 0.0.0.0 in a container")
    port: int = Field(0, ge=0, le=65535, description="Port of metrics and probes; 0 = a free one")


class Retry(_Group):
    delays: Durations = Field(
        (timedelta(seconds=10), timedelta(seconds=30), timedelta(seconds=90)),
        description="One retry topic each; attempts = 1 + their number",
    )

    max_age: Duration = Field(
        timedelta(hours=24), description="How long a document waits for a host or bucket that is down"
    )


class Budget(_Group):
    daily_usd: Decimal | None = Field(
        None, ge=0, description="US dollars for model calls in a day (UTC); not set = no limit"
    )


class Fetch(_Group):
    file_roots: Names = Field((), description="Folders that `file:` may read, by comma; empty = none")
    buckets: Names = Field(
        (), description="Buckets that may be read, by comma: `s3://reports`, `gs://a/folder`; empty = none"
    )
    hosts: Names = Field(
        (),
        description="Hosts that `http(s):` may read, by comma: `example.org`, `*.example.org`, `a.org:8443`",
    )
    private_hosts: Names = Field(
        (), description="Those of them that may be at private addresses, as internal wikis are"
    )
    max_bytes: Size = Field(100_000_000, ge=1, description="Largest document")
    timeout: Duration = Field(timedelta(minutes=5), description="Longest time to fetch one document")


class Extract(_Group):
    processes: int = Field(
        0, ge=0, description="Child processes for PDF, Word and HTML; 0 = one a core, at most 4"
    )
    timeout: Duration = Field(timedelta(seconds=60), description="Longest time for one document")
    memory: Size = Field(1_000_000_000, ge=100_000_000, description="Memory of one child process")
    scanned: Literal["fail", "send-pdf"] = Field(
        "fail", description="Pages that are pictures: `fail`, or `send-pdf` to the model (dearer)"
    )


class Store(_Group):
    flush_interval: Duration = Field(
        timedelta(milliseconds=250),
        description="Least time between two flushes; an idle store does not wait",
    )


class Api(_Group):
    host: str = Field("127.0.0.1", description="Address of the API and the page; 0.0.0.0 in a container")
    port: int = Field(8080, ge=0, le=65535, description="Port of the API and the page")
    max_lag: int = Field(
        100_000, ge=1, description="Above so many waiting events new work is refused: 429, try later"
    )
    max_upload: Size = Field(1_000_000_000, ge=1, description="Largest list of documents in one request")
    webhook_secrets: SecretStr = Field(
        SecretStr(""),
        description="What signs webhooks: `whsec_...`; two by comma while you change it",
    )
    webhook_private_hosts: Names = Field(
        (), description="Receivers of webhooks that may be at private addresses, and by http"
    )


class Log(_Group):
    level: str = Field("info", description="debug, info, warning or error")
    format: str = Field("auto", description="json, console, or auto = console on a terminal")


class Settings(BaseSettings):
    """Everything that can be set, one group a field."""

    model_config = SettingsConfigDict(
        env_prefix="DOCSUM_", env_nested_delimiter="__", env_file=_DOTENV, extra="ignore", frozen=True
    )

    home: Path = Field(Path("~/.docsum"), description="State of the local stack")
    secrets_dir: Path = Field(
        _SECRETS_DIR, description="A folder of files, each named as a variable and holding its value"
    )
    kafka: Kafka = Kafka()
    topics: Topics = Topics()
    clickhouse: ClickHouse = ClickHouse()
    model: Model = Model()
    summary: SummaryWish = SummaryWish()
    limits: Limits = Limits()
    batch: Batch = Batch()
    worker: Worker = Worker()
    retry: Retry = Retry()
    budget: Budget = Budget()
    fetch: Fetch = Fetch()
    extract: Extract = Extract()
    store: Store = Store()
    api: Api = Api()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values handed in, then the environment, then `.env`, then files."""
        files = NestedSecretsSettingsSource(file_secret_settings, secrets_dir_missing="error")
        return init_settings, env_settings, dotenv_settings, files

    @property
    def explicit(self) -> bool:
        """True on a deployment of the user's own; False: commands use the local stack."""
        return bool(self.kafka.bootstrap_servers)

    def topology(self) -> Topology:
        return Topology(
            prefix=self.topics.prefix,
            inputs=self.topics.inputs,
            partitions=self.topics.partitions,
            delays=self.retry.delays,
            retention=self.topics.retention,
            results=self.topics.summaries,
        )

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these settings; secrets are in it."""
        found = {"DOCSUM_HOME": str(self.home)}
        for group in type(self).model_fields:
            values = getattr(self, group)
            if isinstance(values, BaseModel):
                for name in type(values).model_fields:
                    value = getattr(values, name)
                    if value != type(values).model_fields[name].default:
                        found[f"DOCSUM_{group}__{name}".upper()] = text_of(value)
        return found

    def recipe(self) -> Recipe:
        """The recipe of live events, and what a run's options start from."""
        return Recipe(
            model=self.model.name,
            instructions=self.summary.instructions,
            language=self.summary.language,
            words=self.summary.words,
            single_shot_tokens=self.model.single_shot_tokens,
            scanned=self.extract.scanned,
        )


def text_of(value: object) -> str:
    """A value as its variable says it; a secret in the clear."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, timedelta):
        return duration_name(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(text_of(part) for part in value)
    return str(value)


#: Kubernetes injects these for every Service of the namespace, ours included.
_INJECTED = re.compile(
    r"\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*|\w+_PORT=(tcp|udp|sctp)://.*"
)


def known_variables() -> dict[str, str]:
    """Every variable with its description, in the order of the groups."""
    names = {}
    for group, outer in Settings.model_fields.items():
        kind = outer.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, inner in kind.model_fields.items():
                names[f"DOCSUM_{group}__{name}".upper()] = inner.description or ""
        else:
            names[f"DOCSUM_{group}".upper()] = outer.description or ""
    return names


def _refuse_unknown(names: Iterable[str]) -> None:
    known = known_variables()
    for name in names:
        if name.startswith("DOCSUM_") and name not in known and not _is_injected(name):
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            meant = f" Did you mean {near[0]}?" if near else " `docsum config show` lists all settings."
            raise ConfigurationError(f"There is no setting {name}.{meant}")


def _is_injected(name: str) -> bool:
    return bool(_INJECTED.fullmatch(f"{name}={os.environ.get(name, '')}"))


def _secrets_dir() -> Path | None:
    """The folder that was named, or the usual one where there is one."""
    named = os.environ.get("DOCSUM_SECRETS_DIR")
    return Path(named) if named else _SECRETS_DIR if _SECRETS_DIR.is_dir() else None


def secret_files() -> set[str]:
    """The variables that have a file. Raises ConfigurationError."""
    folder = _secrets_dir()
    try:
        return {path.name.upper() for path in folder.iterdir()} if folder else set()
    except OSError as error:
        raise ConfigurationError(f"DOCSUM_SECRETS_DIR cannot be read: {error}.") from error


def dotenv() -> dict[str, str]:
    """What `.env` says, where there is one. Raises ConfigurationError."""
    try:
        return {name: value or "" for name, value in dotenv_values(_DOTENV).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{Path(_DOTENV).absolute()} cannot be read: {error}.") from error


def load(**groups: Any) -> Settings:  # Any: what pydantic takes for its fields
    """The settings of this process. Raises ConfigurationError with one sentence for anything wrong."""
    given = {**dotenv(), **os.environ}
    _refuse_unknown((*given, *secret_files()))
    try:
        settings = Settings(_secrets_dir=_secrets_dir(), **groups)
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from error
    except (SettingsError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"A file of DOCSUM_SECRETS_DIR cannot be read: {error}.") from error
    model = settings.model.model_copy(
        update={
            "api_key": SecretStr(
                settings.model.api_key.get_secret_value() or given.get("ANTHROPIC_API_KEY", "")
            ),
            "base_url": settings.model.base_url or given.get("ANTHROPIC_BASE_URL", ""),
        }
    )
    settings = settings.model_copy(update={"model": model, "home": settings.home.expanduser().absolute()})
    if settings.explicit and not settings.clickhouse.url:
        raise ConfigurationError(
            "DOCSUM_KAFKA__BOOTSTRAP_SERVERS is set, so DOCSUM_CLICKHOUSE__URL must be set too."
        )
    settings.topology()  # refuses delays that do not grow
    return settings


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = "DOCSUM_" + "__".join(str(part) for part in first["loc"]).upper()
    return f"{name} is wrong: {first['msg'].removeprefix('Value error, ')}."
