"""What the local stack is made of: Kafka, the ClickHouse engine, the model server and the workers."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from docsum.errors import ConfigurationError, SourceNotAllowed
from docsum.fetchers import allowance, check_allowed
from docsum.local.jars import cache_folder, ensure_jars
from docsum.local.kafka import kafka_spec
from docsum.local.loopback import HOST, http_ready
from docsum.local.process import ProcessSpec
from docsum.local.stack import Stack
from docsum.local.stack_control import detach, restart, scale, stop
from docsum.local.stack_state import StackError, StackState, environment_digest, find
from docsum.settings import Fetch, Settings

LOCAL_MODEL = "local-extractive-1"
START_TIMEOUT = timedelta(minutes=3)
_PASSED_ON = ("HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
BATCH_WORKER, API = "batch-worker", "api"
_LANE: Mapping[str, Sequence[str]] = {BATCH_WORKER: ("--lane=batch",)}
_BEHIND = ("nice", "-n", "5")  # requests, and whatever else this machine does, come before the workers
_BATCHES_HERE = {name: timedelta(seconds=1) for name in ("quiet", "poll")}
_FLUSH_HERE = timedelta(milliseconds=20)  # a server wants few inserts, an engine of one's own no rest
_CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")  # how the variables begin that object stores are opened with
_RECEIVERS_HERE = ("127.0.0.1", "localhost")  # of webhooks, also by http
_ALLOWED = ("file_roots", "buckets", "hosts")  # of DOCSUM_FETCH, and the files in the home of the same names


@dataclass(frozen=True, slots=True)
class LocalStack:
    """A running stack, and the settings to reach it."""

    settings: Settings
    state: StackState
    started: bool  # by this call
    model_line: str  # which model does the work, in one sentence


Seen = Callable[[StackState], None]


def uses_local_model(settings: Settings, local_model: bool = False) -> bool:
    """Without a key, and in the demo, the model server of this machine does the work."""
    return local_model or not settings.model.api_key.get_secret_value()


def with_model(settings: Settings, local_model: bool = False) -> Settings:
    """The settings with the model that will do the work."""
    if not uses_local_model(settings, local_model):
        return settings
    named = "name" in settings.model.model_fields_set and not local_model
    name = settings.model.name if named else LOCAL_MODEL
    model = settings.model.model_copy(update={"name": name, "api_key": SecretStr(""), "base_url": ""})
    return settings.model_copy(update={"model": model})


def model_line(settings: Settings) -> str:
    """One sentence: which model, where, and whether it costs."""
    if uses_local_model(settings):
        return (
            "No ANTHROPIC_API_KEY is set: summaries are extracts made by the local model"
            f" ({settings.model.name}), free of charge."
        )
    where = settings.model.base_url or "the Anthropic API"
    return f"Summaries are made by {settings.model.name} at {where}, with your key."


def attach(settings: Settings) -> Settings | None:
    """The settings with the addresses of the running local stack; None when none runs."""
    state = find(settings.home)
    return None if state is None else _reached(settings, state.addresses)


async def ensure_stack(
    settings: Settings,
    *,
    place: str | None = None,
    workers: int = 2,
    local_model: bool = False,
    seen: Seen = lambda _state: None,
) -> LocalStack:
    """The local stack, ready: started in the background when none runs.

    Its workers may read what is at `place` afterwards, besides what they could read before, and are
    restarted when their settings, the key or the credentials of object stores differ. Raises
    SourceNotAllowed, StackError or DownloadFailed.
    """
    if place is not None:
        allow(settings, place)
    await asyncio.to_thread(ensure_jars, _cache())
    state = find(settings.home)
    started = state is None
    if state is None:
        state = await detach(
            [sys.executable, "-m", "docsum", "up", f"--workers={workers}", *_only_local(local_model)],
            {**os.environ, "DOCSUM_HOME": str(settings.home)},
            settings.home,
            settings.home / "logs" / "supervisor.log",
            timeout=START_TIMEOUT,
            on_change=seen,
        )
    else:
        state = await _with_current_settings(settings, state, local_model)
    reached = _reached(with_model(settings, local_model), state.addresses)
    return LocalStack(reached, state, started, model_line(with_model(settings, local_model)))


async def run_stack(
    settings: Settings, *, workers: int = 2, local_model: bool = False, seen: Seen = lambda _state: None
) -> None:
    """Be the supervisor until SIGINT or SIGTERM. Raises StackRunning, StackFailed or DownloadFailed."""
    jars = await asyncio.to_thread(ensure_jars, _cache())
    async with Stack.open(settings.home) as stack:
        plan = _Plan(settings, stack, local_model)
        await stack.run(plan.stages(jars, workers), plan.addresses, seen, plan.worker)


async def scale_stack(settings: Settings, workers: int, *, local_model: bool = False) -> StackState:
    """So many workers in the running stack, with the settings of now. Raises StackError."""
    timeout = settings.worker.shutdown_timeout + START_TIMEOUT
    state = await scale(settings.home, workers, timeout)
    return await _with_current_settings(settings, state, local_model)


async def stop_stack(settings: Settings) -> bool:
    """Stop it in order; False when none runs."""
    return await stop(settings.home, settings.worker.shutdown_timeout + timedelta(seconds=60))


class _Plan:
    """The processes of one stack, their ports and what each is told."""

    def __init__(self, settings: Settings, stack: Stack, local_model: bool) -> None:
        self.settings = settings
        self.local_model = local_model
        self.home = settings.home
        self.stack = stack
        self.token = _token_file(settings.home)
        self.addresses = {
            "kafka": f"{HOST}:{stack.port('kafka')}",
            "clickhouse": f"http://{HOST}:{stack.port('clickhouse')}",
            "model": f"http://{HOST}:{stack.port('model')}",
            "api": f"http://{HOST}:{stack.port(API, settings.api.port or None)}",
        }

    def stages(self, jars: Sequence[Path], workers: int) -> list[list[ProcessSpec]]:
        """The workers stop before what they need; they wait for it when they start. The last stage scales."""
        port = self.stack.port
        base = [
            kafka_spec(self.home / "kafka", jars, port("kafka"), port("kafka-controller")),
            self._engine(),
            self._model_server(),
        ]
        beside = [self._worker(BATCH_WORKER), self._api()]
        return [base, beside, [self.worker(number) for number in range(1, workers + 1)]]

    def _engine(self) -> ProcessSpec:
        port, data = self.stack.port("clickhouse"), self.home / "clickhouse"
        data.mkdir(mode=0o700, exist_ok=True)
        arguments = [f"--path={data}", f"--port={port}", f"--token-file={self.token}"]
        return self._python("clickhouse", "docsum.local.clickhouse_engine", arguments, port, "/ping")

    def _model_server(self) -> ProcessSpec:
        port, data = self.stack.port("model"), self.home / "model"
        data.mkdir(mode=0o700, exist_ok=True)
        arguments = [f"--home={data}", f"--port={port}"]
        return self._python("model", "docsum.local.model_server", arguments, port, "/health")

    def _python(self, name: str, module: str, arguments: list[str], port: int, probe: str) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            argv=[sys.executable, "-m", module, *arguments],
            env=_passed_on(),
            cwd=self.home,
            ready=http_ready(f"http://{HOST}:{port}{probe}"),
            port=port,
        )

    def _api(self) -> ProcessSpec:
        port = self.stack.port(API)
        settings = _reached(with_model(self.settings, self.local_model), self.addresses)
        return ProcessSpec(
            name=API,
            argv=[sys.executable, "-m", "docsum", "api", "--open", "--set-up"],
            env=api_environment(settings, port),
            cwd=self.home,
            ready=http_ready(f"http://{HOST}:{port}/livez"),
            port=port,
            ready_timeout=START_TIMEOUT,
        )

    def worker(self, number: int) -> ProcessSpec:
        return self._worker(f"worker-{number}")

    def _worker(self, name: str) -> ProcessSpec:
        port = self.stack.port(name)
        settings = _reached(with_model(self.settings, self.local_model), self.addresses)
        return ProcessSpec(
            name=name,
            argv=[*_BEHIND, sys.executable, "-m", "docsum", "worker", "--set-up", *_LANE.get(name, ())],
            env=worker_environment(settings, name, port),
            cwd=self.home,
            ready=http_ready(f"http://{HOST}:{port}/readyz"),
            port=port,
            ready_timeout=START_TIMEOUT,
            stop_timeout=self.settings.worker.shutdown_timeout + timedelta(seconds=30),
        )


def worker_environment(settings: Settings, name: str, port: int) -> Mapping[str, str]:
    """The whole environment of a worker of the local stack."""
    changed: dict[str, object] = {
        "worker": settings.worker.model_copy(update={"instance_id": name, "port": port}),
        "fetch": _allowed(settings),
    }
    if uses_local_model(settings):  # its batches take seconds
        changed["batch"] = settings.batch.model_copy(update=_BATCHES_HERE)
    return _environment(settings.model_copy(update=changed))


def api_environment(settings: Settings, port: int) -> Mapping[str, str]:
    """The whole environment of the API of the local stack; it needs no key, and tells receivers here, too."""
    hosts = dict.fromkeys((*settings.api.webhook_private_hosts, *_RECEIVERS_HERE))
    given = settings.api.webhook_secrets.get_secret_value()
    api = {
        "host": HOST,
        "port": port,
        "webhook_secrets": SecretStr(given or _webhook_secret(settings.home)),
        "webhook_private_hosts": tuple(hosts),
    }
    changed = {
        "api": settings.api.model_copy(update=api),
        "fetch": _allowed(settings),
        "model": settings.model.model_copy(update={"api_key": SecretStr("")}),
    }
    return _environment(settings.model_copy(update=changed))


def _environment(settings: Settings) -> Mapping[str, str]:
    if "flush_interval" not in settings.store.model_fields_set:
        store = settings.store.model_copy(update={"flush_interval": _FLUSH_HERE})
        settings = settings.model_copy(update={"store": store})
    credentials = {name: value for name, value in os.environ.items() if name.startswith(_CREDENTIALS)}
    return {**_passed_on(), **credentials, **settings.environment()}


async def _with_current_settings(settings: Settings, state: StackState, local_model: bool) -> StackState:
    reached = _reached(with_model(settings, local_model), state.addresses)
    stale: dict[str, Mapping[str, str]] = {}
    beside = [process for name in (BATCH_WORKER, API) if (process := state.process(name))]
    for process in (*state.workers, *beside):
        if process.port is not None:
            if process.name == API:
                wanted = api_environment(reached, process.port)
            else:
                wanted = worker_environment(reached, process.name, process.port)
            if environment_digest(wanted) != process.environment:
                stale[process.name] = wanted
    if not stale:
        return state
    timeout = settings.worker.shutdown_timeout + START_TIMEOUT
    return await restart(settings.home, stale, timeout)


def _reached(settings: Settings, addresses: Mapping[str, str]) -> Settings:
    token = _token_file(settings.home).read_text().strip()
    model = settings.model
    if uses_local_model(settings):
        model = model.model_copy(update={"base_url": addresses["model"]})
    return settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(update={"bootstrap_servers": addresses["kafka"]}),
            "clickhouse": settings.clickhouse.model_copy(
                update={"url": addresses["clickhouse"], "user": "default", "password": SecretStr(token)}
            ),
            "model": model,
        }
    )


def _only_local(local_model: bool) -> list[str]:
    return ["--local-model"] if local_model else []


def _passed_on() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _cache() -> Path:
    return cache_folder(os.environ)


def _token_file(home: Path) -> Path:
    """The engine's password."""
    return _secret_file(home / "engine.token", secrets.token_hex(32))


def _webhook_secret(home: Path) -> str:
    """What signs the webhooks of the local stack."""
    fresh = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    return _secret_file(home / "webhook.secret", fresh).read_text().strip()


def _secret_file(path: Path, fresh: str) -> Path:
    """Made once, readable by its owner alone."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(fresh)
        draft.replace(path)
    return path


def _allowed(settings: Settings) -> Fetch:
    """With what `docsum run` has opened to the workers. It stays open: retries read it."""
    fetch = settings.fetch
    for kind in _ALLOWED:
        path = settings.home / kind
        fetch = _with(fetch, kind, *path.read_text().splitlines() if path.exists() else ())
    return fetch


def _with(fetch: Fetch, kind: str, *entries: str) -> Fetch:
    return fetch.model_copy(update={kind: tuple(dict.fromkeys([*getattr(fetch, kind), *entries]))})


def allow(settings: Settings, place: str) -> None:
    """Lets the workers read there from their next start on; entries are kept in the home, one file a kind.

    Raises SourceNotAllowed for what is never read, such as an internal address that no setting names.
    """
    allowed = _allowed(settings)
    try:
        check_allowed(allowed, place)
    except SourceNotAllowed:
        kind, entry = allowance(place)
        if "," in entry or entry.splitlines() != [entry.strip()]:
            raise ConfigurationError(
                f"{entry!r} cannot be allowed by itself, for its comma, blank or line break: "
                f"add what is above it to DOCSUM_FETCH__{kind.upper()}."
            ) from None
        check_allowed(_with(allowed, kind, entry), place)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = settings.home / kind
        draft = path.with_name(f"{kind}.{os.getpid()}")
        draft.write_text((path.read_text() if path.exists() else "") + f"{entry}\n")
        draft.replace(path)


__all__ = ["LocalStack", "StackError", "attach", "ensure_stack", "run_stack", "scale_stack", "stop_stack"]
