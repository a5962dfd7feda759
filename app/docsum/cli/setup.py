"""`docsum setup`: topics, tables and schemas, made, checked, or printed for a team's own tooling."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Literal

import typer

from docsum.cli.deployment import reached
from docsum.cli.output import Code, WrongUsage, finish, next_step, say

Check = Annotated[bool, typer.Option("--check", help="Change nothing; end with 78 when something is wrong.")]


_TOPICS_GOOD = "The topics are as they should be."
_STORE_GOOD = "The tables are as they should be."
_SCHEMAS_GOOD = "The schemas are registered."
_FORMS: dict[str, Literal["kafka", "strimzi"]] = {"kafka": "kafka", "strimzi": "strimzi"}


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum setup ...`."""
    group = typer.Typer(
        rich_markup_mode=None,
        invoke_without_command=True,
    )
    group.callback()(everything)
    group.command("topics")(topics)
    group.command("store")(store)
    group.command("schemas")(schemas)
    app.add_typer(group, name=name)


def everything(
    context: typer.Context,
    check: Check = False,
    form: Annotated[
        str,
        typer.Option(
            "--print",
            metavar="kafka|strimzi|sql",
            help="Print topics or tables, and what each role may do there.",
        ),
    ] = "",
) -> None:
    """Make or check what docsum needs in Kafka, ClickHouse and the registry. Safe to run again.

    Without a command: all three.

    \b
      docsum setup
      docsum setup --check
      docsum setup --print kafka > kafka.sh
      docsum setup --print strimzi > kafka.yaml
      docsum setup --print sql > docsum.sql

    Each role is a user of its own, with no more rights than it needs.
    """
    if context.invoked_subcommand is not None:
        if form or check:
            raise WrongUsage("Options stand behind the command: `docsum setup topics --check`.")
        return
    if not form:
        finish(_then("docsum doctor", _everything(check), check))
        return
    from docsum.kafka import admin, rights
    from docsum.settings import load

    settings = load()
    if form == "sql":
        from docsum.stores import migrate, roles

        typer.echo(migrate.script(settings.clickhouse) + roles.script(settings.clickhouse), nl=False)
        return
    if form not in _FORMS:
        raise WrongUsage(f"There is no form {form!r}: choose kafka, strimzi or sql.")
    topology, kind = settings.topology(), _FORMS[form]
    typer.echo(admin.render(kind, topology, settings.topics.replication_factor), nl=False)
    typer.echo(rights.render(kind, topology, settings.kafka), nl=False)


async def _everything(check: bool) -> Code:
    """Also what comes after something that is wrong is looked at."""
    return max([await each(check) for each in (_topics, _store, _schemas)])


async def _then(command: str, work: Awaitable[Code], check: bool) -> Code:
    code = await work
    if code is Code.OK and not check:
        next_step(f"`{command}`")
    return code


def topics(
    check: Check = False,
    form: Annotated[
        str, typer.Option("--print", metavar="kafka|strimzi", help="Print commands or resources instead.")
    ] = "",
) -> None:
    """The topics: creates what is missing, raises what is too small.

    \b
      docsum setup topics
      docsum setup topics --check
      docsum setup topics --print strimzi > topics.yaml
    """
    from docsum.kafka.admin import render
    from docsum.settings import load

    if form in _FORMS:
        settings = load()
        typer.echo(render(_FORMS[form], settings.topology(), settings.topics.replication_factor), nl=False)
    elif form:
        raise WrongUsage(f"Topics cannot be printed as {form!r}: choose kafka or strimzi.")
    else:
        finish(_then("docsum setup store", _topics(check), check))


async def _topics(check: bool) -> Code:
    from docsum.bootstrap import open_admin

    settings = reached()
    admin, topology = open_admin(settings), settings.topology()
    if check:
        return _checked(await admin.check(topology), _TOPICS_GOOD, "topics")
    for line in await admin.setup(topology, settings.topics.replication_factor) or [_TOPICS_GOOD]:
        typer.echo(line)
    return Code.OK


def _checked(wrong: list[str], good: str, what: str) -> Code:
    for line in wrong or [good]:
        typer.echo(line)
    if wrong:
        say(f"`docsum setup {what}` puts that right.")
    return Code.CONFIGURATION if wrong else Code.OK


def store(
    check: Check = False,
    form: Annotated[str, typer.Option("--print", metavar="sql", help="Print the statements instead.")] = "",
) -> None:
    """The database, its tables and views: makes what is missing.

    \b
      docsum setup store
      docsum setup store --check
      docsum setup store --print sql > docsum.sql
    """
    from docsum.settings import load
    from docsum.stores.migrate import script

    if form == "sql":
        typer.echo(script(load().clickhouse), nl=False)
    elif form:
        raise WrongUsage(f"The tables cannot be printed as {form!r}: choose sql.")
    else:
        finish(_then("docsum doctor", _store(check), check))


async def _store(check: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.errors import StoreMisconfigured
    from docsum.stores.migrate import setup

    settings = reached()
    if not check:
        for name in await setup(settings.clickhouse) or (_STORE_GOOD,):
            typer.echo(name)
        return Code.OK
    try:
        async with open_store(settings):
            return _checked([], _STORE_GOOD, "store")
    except StoreMisconfigured as error:
        return _checked([str(error)], "", "store")


def schemas(check: Check = False) -> None:
    """Our schemas in the schema registry, where one is configured; workers write with them.

    Each is registered under `<topic>-value` with compatibility FULL_TRANSITIVE: a replayed event may be older
    or newer than its reader. A registry that asks for nothing, as Apicurio's default, then asks for the same.

    \b
      docsum setup schemas
      docsum setup schemas --check
    """
    finish(_then("docsum doctor", _schemas(check), check))


async def _schemas(check: bool) -> Code:
    from contextlib import aclosing

    from docsum.kafka import schemas
    from docsum.kafka.schema_registry import SchemaRegistry

    settings = reached()
    url, topology = settings.kafka.schema_registry_url, settings.topology()
    if not url:
        say("No DOCSUM_KAFKA__SCHEMA_REGISTRY_URL is set: what is written needs no registry.")
        return Code.OK
    async with aclosing(SchemaRegistry(url)) as registry:
        if check:
            return _checked(await schemas.check(registry, topology), _SCHEMAS_GOOD, "schemas")
        for line in await schemas.setup(registry, topology) or [_SCHEMAS_GOOD]:
            typer.echo(line)
    return Code.OK
