"""`docsum ingest`: what is new, changed or gone in a source becomes live events."""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.bootstrap import open_lister
from docsum.cli.deployment import Deployment, deployment_for, download
from docsum.cli.options import MAX_LAG, JsonObject, MaxLag
from docsum.cli.output import Code, NothingRuns, WrongUsage, emit, finish, next_step, say
from docsum.sources import PAGES, STDIN, Source
from docsum.topics import parse_duration

if TYPE_CHECKING:
    from docsum.cli.ingest_view import Progress
    from docsum.ingest import Ingested, Wish
    from docsum.settings import Settings

_FOLLOW_PATIENCE = timedelta(hours=1)  # who follows is there to stay
_HELP = """Announce what is new or changed in a source, as live events.

SOURCE is what `docsum run` takes: a folder, a pattern in quotes, a file, a manifest, a bucket
(s3://reports/2026), or - for a manifest on standard input. What was announced is remembered: the same
source again announces only what has changed since. The workers summarise it by their own settings
(DOCSUM_MODEL__NAME and so on), before any run; DOCSUM_BUDGET__DAILY_USD limits what that costs.

--follow goes on until Ctrl-C. A folder is watched, and looked at as a whole at the start and every --rescan;
a bucket is listed every --every. A file is announced when nothing has happened to it for a second. A renamed
one is a new document; with --deletes the old one is deleted.

--deletes also announces what is gone, and its summary shows no more. Nothing is deleted when the source could
not be read completely, when it is empty, or when more than half of it (of more than 20 documents) is gone;
--yes agrees to the last two. What is piped in has no memory: each line is an event.

--check says why an event would be refused. FILE holds the value of one record in any encoding, or a JSON
event on every line; nothing needs to run.

\b
  docsum ingest ~/Documents/contracts
  docsum ingest ~/Documents/contracts --follow --deletes
  docsum ingest s3://reports/2026 --follow --every 1m
  producer --list | docsum ingest -
  docsum ingest --check event.json

Without DOCSUM_KAFKA__BOOTSTRAP_SERVERS it uses docsum on this machine, started when it is not running yet.
Ends with 4 when --deletes could not see all of the source, with 6 when it refuses to delete so much.
"""


@dataclass(frozen=True, slots=True)
class Following:
    """How a source is followed."""

    every: timedelta  # all of a source that cannot be watched
    rescan: timedelta  # all of a folder


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum ingest`."""
    app.command(name)(ingest)


def ingest(
    source: Annotated[list[str] | None, typer.Argument(help="What to announce.", metavar="SOURCE|-")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    deletes: Annotated[
        bool, typer.Option("--deletes", help="Also announce what is gone from the source.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --deletes: however much is gone.")] = False,
    every: Annotated[
        str, typer.Option(metavar="30s", help="With --follow: how often a bucket or a manifest is listed.")
    ] = "30s",
    rescan: Annotated[
        str, typer.Option(metavar="5m", help="With --follow: how often all of a folder is looked at.")
    ] = "5m",
    max_lag: MaxLag = MAX_LAG,
    check: Annotated[
        str, typer.Option(metavar="FILE|-", help="Say why the event in this file would be refused.")
    ] = "",
    json: JsonObject = False,
) -> None:
    from docsum.ingest import Wish
    from docsum.runs import PATIENCE
    from docsum.settings import load

    if check:
        from docsum.cli.ingest_check import check_file

        if source or follow or deletes:
            raise WrongUsage("--check looks at an event in a file: leave out SOURCE, --follow and --deletes.")
        finish(check_file(check, load(), json))
    if not source:
        raise WrongUsage("Name what to announce: `docsum ingest FOLDER`, or - for standard input.")
    if len(source) > 1:
        raise WrongUsage(
            "Give one source: put a pattern into quotes, so that docsum reads it, not the shell."
        )
    _refuse_combinations(source[0], follow=follow, deletes=deletes, yes=yes)
    following = Following(_duration(every, "--every"), _duration(rescan, "--rescan")) if follow else None
    wish = Wish(deletes, yes, max_lag, _FOLLOW_PATIENCE if follow else PATIENCE)
    settings = load()
    opened = open_lister().open(source[0], sys.stdin.buffer)
    download(settings)
    finish(_ingest(opened, settings, wish, following, json=json))


ingest.__doc__ = _HELP


def _refuse_combinations(source: str, *, follow: bool, deletes: bool, yes: bool) -> None:
    if source == STDIN and (follow or deletes):
        raise WrongUsage("Standard input is read once, to its end: leave out --follow and --deletes.")
    if follow and source.partition("://")[0].lower() in PAGES:
        raise WrongUsage("A web page tells no version, so it cannot be followed: leave out --follow.")
    if yes and not deletes:
        raise WrongUsage("--yes agrees to deletions: add --deletes.")


def _duration(text: str, option: str) -> timedelta:
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise WrongUsage(f"{option} is wrong: {error}.") from None
    if found < timedelta(seconds=1):
        raise WrongUsage(f"{option} is at least 1s.")
    return found


async def _ingest(
    source: Source, settings: Settings, wish: Wish, following: Following | None, *, json: bool
) -> Code:
    from docsum.cli.ingest_view import Progress
    from docsum.cli.run import check_model, model_line

    deployment = await deployment_for(settings, source)
    recipe = deployment.settings.recipe()
    check_model(recipe)
    say(model_line(recipe, deployment))
    started = time.monotonic()
    with Progress() as progress:
        try:
            await _announce(source, deployment, wish, following, progress)
        finally:
            count = progress.count
            if json:
                emit(_fields(source, count, time.monotonic() - started))
    if not json:
        _report(source, count)
    return _code(count)


async def _announce(
    source: Source, deployment: Deployment, wish: Wish, following: Following | None, progress: Progress
) -> None:
    from docsum.bootstrap import open_admin, open_producer, open_store
    from docsum.fetchers.watching import watch
    from docsum.following import follow
    from docsum.ingest import Ingester, pass_on
    from docsum.kafka.announcer import Announcer
    from docsum.kafka.codec import EventCodec
    from docsum.ports import SystemClock

    settings, clock = deployment.settings, SystemClock()
    topology = settings.topology()
    lag = partial(open_admin(settings).waiting, topology)

    def tell(count: Ingested) -> None:
        progress.show(count)
        if count.waiting and not deployment.still_runs():
            raise NothingRuns("docsum was stopped meanwhile: `docsum up -d` starts it again.")

    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(open_producer(settings))
        codec = await stack.enter_async_context(EventCodec(settings.kafka.schema_registry_url))
        announce = Announcer(producer, codec, topology, clock)
        if not source.repeatable:
            await pass_on(
                source,
                announce=announce,
                clock=clock,
                lag=lag,
                wish=wish,
                tell=tell,
                complain=progress.passed_over,
            )
            return
        ingester = Ingester(
            source,
            store=await stack.enter_async_context(open_store(settings)),
            announce=announce,
            clock=clock,
            lag=lag,
            wish=wish,
            tell=tell,
            complain=progress.passed_over,
        )
        if following is None:
            await ingester.look()
            return
        progress.say(f"Following {source.name}. Ctrl-C stops it; the next time it goes on from here.")
        watched = source.below is not None
        await follow(
            ingester,
            source,
            every=following.rescan if watched else following.every,
            clock=clock,
            watch=watch if watched else None,
            say=progress.say,
        )


def _code(count: Ingested) -> Code:
    if not count.kept:
        return Code.OK
    return Code.UNREACHABLE if count.incomplete else Code.PAUSED


def _report(source: Source, count: Ingested) -> None:
    parts = [f"{count.new:,} new", f"{count.changed:,} changed", f"{count.unchanged:,} as before"]
    if count.deleted:
        parts.append(f"{count.deleted:,} gone")
    if count.unreadable:
        parts.append(f"{count.unreadable:,} passed over")
    say(f"{source.name}: {', '.join(parts)}.")
    next_step("`docsum status` shows what waits, `docsum documents show PATH` one summary")


def _fields(source: Source, count: Ingested, seconds: float) -> dict[str, object]:
    return {
        "source": source.name,
        "listed": count.listed,
        "new": count.new,
        "changed": count.changed,
        "unchanged": count.unchanged,
        "deleted": count.deleted,
        "kept": count.kept,
        "why": count.why,
        "ignored": count.ignored,
        "unreadable": count.unreadable,
        "seconds": round(seconds, 3),
    }
