"""`docsum run`: a source becomes a run; and what `runs resume` and `demo` share with it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid4

import typer

from docsum.bootstrap import open_lister
from docsum.cli.controls import Budget, dollars
from docsum.cli.deployment import Deployment, deployment_for, download
from docsum.cli.options import MAX_LAG, JsonObject, MaxLag, NoWait
from docsum.cli.output import Code, WrongUsage, finish, say
from docsum.controls import set_budget
from docsum.errors import StoreError, StoreMisconfigured
from docsum.models import Lane, Recipe, Run, RunState
from docsum.sources import Source

if TYPE_CHECKING:
    from docsum.cli.execution import Manner
    from docsum.cli.reading import Asked
    from docsum.ports import SummaryStore
    from docsum.settings import Settings

_LANES = ("live", "backfill", "batch")
_SCANNED = ("fail", "send-pdf")
_HELP = """Summarise every document of a source.

SOURCE is a folder (with all below it), a pattern in quotes, one file, a manifest (.jsonl or .csv with the
columns document_id and uri), or - for a manifest on standard input. Hidden files are passed over. The same
source again resumes: what has a summary and has not changed is skipped without being read. The files of a
manifest must lie below its folder (of standard input: below this one), or below DOCSUM_FETCH__FILE_ROOTS.

What it will cost is known before: --dry-run reads a sample and says it, --sample buys a few summaries to look
at. A run that will probably cost more than $1 asks first; --yes answers.

\b
  docsum run ~/Documents/contracts
  docsum run ~/Documents/contracts --dry-run
  docsum run ~/Documents/contracts --sample 20
  docsum run 'reports/**/*.pdf' --words 80 --language en
  docsum run letters.csv --instructions 'Who wants what by when?'
  cat list.jsonl | docsum run -

Without DOCSUM_KAFKA__BOOTSTRAP_SERVERS it runs on this machine, started when it is not running yet. Ctrl-C
while announcing: `docsum runs resume ID` goes on; later it only stops the watching. Ends with 3 when some
documents failed.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for on the command line."""

    source: str
    id: UUID
    name: str = ""
    limit: int | None = None
    sample: int | None = None
    model: str | None = None
    instructions: str | None = None
    language: str | None = None
    words: int | None = None
    scanned: str | None = None
    lane: Lane = Lane.BACKFILL
    by: datetime | None = None
    force: bool = False
    budget: Decimal | None = None  # US dollars

    def recipe(self, settings: Settings) -> Recipe:
        """The settings' recipe, but for what the command line says."""
        base = settings.recipe()
        return replace(
            base,
            model=base.model if self.model is None else self.model,
            instructions=base.instructions if self.instructions is None else self.instructions,
            language=base.language if self.language is None else self.language,
            words=base.words if self.words is None else self.words,
            scanned=base.scanned if self.scanned is None else self.scanned,
        )


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum run`."""
    app.command(name)(run)


def run(
    source: Annotated[list[str], typer.Argument(help="What to summarise.", metavar="SOURCE|-")],
    *,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Only so many documents, drawn at random; says what all cost.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will cost, and do nothing.")
    ] = False,
    name: Annotated[str, typer.Option(help="A name for the run; else the source's.")] = "",
    id_: Annotated[
        str, typer.Option("--id", help="An id of your own (UUID): asked for twice, it is one run.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Another model than DOCSUM_MODEL__NAME.")] = None,
    instructions: Annotated[
        str | None,
        typer.Option(help="What you want to know of every document; @FILE reads it from a file."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="`same` as the document, or a language such as en.")
    ] = None,
    words: Annotated[int | None, typer.Option(min=20, max=2000, help="About how long a summary is.")] = None,
    scanned: Annotated[
        str | None,
        typer.Option(help="Pages that are pictures go to the model as they are.", metavar="fail|send-pdf"),
    ] = None,
    lane: Annotated[
        str,
        typer.Option(
            help="live goes before backfill; batch takes up to a day and costs half.",
            metavar="live|backfill|batch",
        ),
    ] = "backfill",
    by: Annotated[
        str,
        typer.Option(
            metavar="07:00|2026-12-01T07:00",
            help="With --lane batch: what no batch has by then is bought at once, at the full price.",
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Buy again even if nothing has changed.")] = False,
    no_wait: NoWait = False,
    max_lag: MaxLag = MAX_LAG,
    json: JsonObject = False,
    budget: Budget = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the price, whatever it is.")] = False,
) -> None:
    from docsum.cli.execution import Manner
    from docsum.settings import load

    if len(source) > 1:
        raise WrongUsage(
            "Give one source: put a pattern into quotes, so that docsum reads it, not the shell."
        )
    if lane not in _LANES:
        raise WrongUsage(f"There is no lane {lane!r}: choose {' or '.join(_LANES)}.")
    if scanned not in (None, *_SCANNED):
        raise WrongUsage(f"--scanned is {' or '.join(_SCANNED)}, not {scanned!r}.")
    if sample is not None and (limit is not None or dry_run):
        raise WrongUsage("--sample draws from the whole source and buys: leave out --limit and --dry-run.")
    order = Order(
        source=source[0],
        id=_id(id_) if id_ else uuid4(),
        name=name,
        limit=limit,
        sample=sample,
        model=model,
        instructions=None if instructions is None else _instructions(instructions),
        language=language,
        words=words,
        scanned=scanned,
        lane=Lane(lane),
        by=_by(by, lane),
        force=force,
        budget=dollars(budget),
    )
    options: dict[str, object] = {"--name": name, "--limit": limit, "--model": model, "--language": language}
    options |= {"--instructions": instructions, "--words": words, "--scanned": scanned}
    options |= {"--lane": "" if lane == Lane.BACKFILL else lane, "--force": force}
    command = _command(order.source, options)
    settings = load()
    opened = open_lister().open(order.source, sys.stdin.buffer)
    if dry_run:
        finish(_dry_run(order, opened, settings, command, json))
    paid = _is_paid(order, settings)
    agreed = yes or budget is not None
    if not opened.repeatable and sample is None and not agreed and paid:
        raise WrongUsage(
            "Standard input cannot be read twice, and this model costs money: add --yes to agree to that, or "
            "--budget USD to stop at."
        )
    download(settings)
    manner = Manner(not no_wait, max_lag, json, command=command)
    finish(_run(order, opened, settings, manner, ask=paid and not agreed))


run.__doc__ = _HELP


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise WrongUsage(f"{text!r} is no run id: `docsum runs ls` shows them.") from None


def _instructions(text: str) -> str:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUsage(f"The instructions cannot be read from {text[1:]!r}: {error}.") from None
    if len(text) > 8_000:
        raise WrongUsage(f"The instructions have {len(text):,} characters; 8,000 are allowed.")
    return text


def _command(source: str, options: Mapping[str, object]) -> str:
    """The line to type for a run with these options; those that are not given are left out."""
    words = ["docsum", "run", source]
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value not in (None, "", False):
            words += [name, str(value)]
    return shlex.join(words)


def _is_paid(order: Order, settings: Settings) -> bool:
    from docsum.local.compose import uses_local_model
    from docsum.summarisers.prices import Prices

    if not settings.explicit and uses_local_model(settings):
        return False
    price = Prices.load().models.get(order.recipe(settings).model)
    return price is None or price.base.output > 0  # an unknown model is refused later, with its own sentence


async def _run(order: Order, source: Source, settings: Settings, manner: Manner, *, ask: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.execution import Execution
    from docsum.ports import SystemClock

    deployment = await deployment_for(settings, source)
    recipe = order.recipe(deployment.settings)
    check_model(recipe)
    say(model_line(recipe, deployment))
    clock = SystemClock()
    async with open_store(deployment.settings) as store:
        earlier = await store.run(order.id)
        name = order.name or (Path(source.name).name if source.repeatable else "standard input")
        if order.sample is not None:
            source, manner = await _sampled(order, source, deployment, manner, exists=earlier is not None)
            name = f"sample of {name}"
        wanted = Run(
            id=order.id,
            name=name,
            source=source.name,
            recipe=recipe,
            lane=order.lane,
            state=RunState.PUBLISHING,
            created_at=clock.now(),
            updated_at=clock.now(),
            limit=order.limit,
            force=order.force,
            by=order.by,
        )
        run = same_run(wanted, earlier)
        if ask and earlier is None and not await _agreed(order, source, deployment, store, manner):
            return Code.FAILURE
        if order.budget is not None:
            await set_budget(store, clock, run, order.budget)
        return await Execution(source, deployment, store, clock, manner).carry_out(run)


async def _sampled(
    order: Order, source: Source, deployment: Deployment, manner: Manner, *, exists: bool
) -> tuple[Source, Manner]:
    """The sample as a source of its own."""
    from docsum.cli.sampling import drawn

    assert order.sample is not None
    sample = await drawn(order.id, source, order.sample, deployment.settings.home, exists=exists)
    return open_lister().open(str(sample.manifest), sys.stdin.buffer), replace(manner, sample=sample)


async def _agreed(
    order: Order, source: Source, deployment: Deployment, store: SummaryStore, manner: Manner
) -> bool:
    from docsum.cli.quoting import agreed

    asked = _asked(order, source, deployment.settings, store, local=deployment.local)
    may_ask, go = not manner.json and sys.stdin.isatty() and sys.stderr.isatty(), False
    try:
        go = await agreed(asked, may_ask=may_ask)
    finally:
        if not go:
            stays = " docsum stays running; `docsum down` stops it." if deployment.started else ""
            say(f"Nothing has been announced.{stays}")
    return go


async def _dry_run(order: Order, source: Source, settings: Settings, command: str, json: bool) -> Code:
    from docsum.cli.output import emit
    from docsum.cli.quoting import price
    from docsum.cli.report import quote_fields, quote_notes, report_quote

    async with _running(settings) as (reached, store, why):
        asked = _asked(order, source, reached, store, local=not settings.explicit)
        check_model(asked.recipe)
        priced = await price(asked)
    notes = quote_notes(priced)
    if why:
        notes.append(f"{why} So nothing was left out as unchanged.")
    if json:
        emit(quote_fields(priced, command, notes))
    else:
        report_quote(priced, command, notes)
    return Code.OK


@asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[tuple[Settings, SummaryStore | None, str]]:
    """The store of a deployment that runs, or why there is none; starts nothing."""
    from docsum.bootstrap import open_store
    from docsum.local.compose import attach, with_model

    if settings.explicit:
        reached = settings
    else:
        local = with_model(settings)
        found = attach(local)
        if found is None:
            yield local, None, f"No docsum runs in {settings.home}."
            return
        reached = found
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(open_store(reached))
        except (StoreError, StoreMisconfigured) as error:
            yield reached, None, str(error)
        else:
            yield reached, store, ""


def _asked(
    order: Order, source: Source, settings: Settings, store: SummaryStore | None, *, local: bool
) -> Asked:
    from docsum.cli.reading import Asked, readable

    return Asked(
        source,
        settings,
        readable(settings, source) if local else settings.fetch,
        order.recipe(settings),
        order.limit,
        order.force,
        store,
    )


def _by(text: str, lane: str) -> datetime | None:
    if not text:
        return None
    if lane != Lane.BATCH:
        raise WrongUsage("--by is for --lane batch: the other lanes buy at once.")
    return coming(text, datetime.now().astimezone())


def coming(text: str, now: datetime) -> datetime:
    """The moment that a person means by 07:00, or by a date and a time; `now` says where they are.

    Raises WrongUsage for anything else, and for what is past.
    """
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text):
            hour, minute = map(int, text.split(":"))
            moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return moment if moment > now else moment + timedelta(days=1)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(f"{text} is no time: write 07:00 or 2026-12-01T07:00.") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise WrongUsage(f"{text} is past: --by takes a time that lies ahead.")
    return moment


def same_run(wanted: Run, earlier: Run | None) -> Run:
    """The run under this id, where there is one. Raises WrongUsage when that asks for something else."""
    if earlier is None:
        return wanted
    for name in ("source", "recipe", "lane", "limit", "force"):
        if getattr(earlier, name) != getattr(wanted, name):
            raise WrongUsage(f"The run {wanted.id} exists with another {name}: choose another --id.")
    return earlier


def check_model(recipe: Recipe) -> None:
    """Raises ModelUnknown: without a price the money could not be counted."""
    from docsum.summarisers.prices import Prices

    Prices.load().of(recipe.model)


def model_line(recipe: Recipe, deployment: Deployment) -> str:
    """Says when the local model server only stands in for the model that was asked for."""
    from docsum.local.compose import LOCAL_MODEL, uses_local_model

    if deployment.local and uses_local_model(deployment.settings) and recipe.model != LOCAL_MODEL:
        return (
            f"No ANTHROPIC_API_KEY is set: the local model server stands in for {recipe.model}. This is a "
            "rehearsal: the summaries are extracts, and nobody charges the costs that are shown."
        )
    if recipe.model != deployment.settings.model.name:
        return deployment.model_line.replace(deployment.settings.model.name, recipe.model)
    return deployment.model_line
