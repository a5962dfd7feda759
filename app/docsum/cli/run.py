"""`docsum run`: a source becomes a run; and what `runs resume` and `demo` share with it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid4

import typer

from docsum.cli.deployment import Deployment, deployment_for, download, lister
from docsum.cli.options import MAX_LAG, JsonObject, MaxLag, NoWait
from docsum.cli.output import Code, WrongUsage, finish, say
from docsum.models import Lane, Recipe, Run, RunState
from docsum.sources import Source

if TYPE_CHECKING:
    from docsum.cli.execution import Manner
    from docsum.settings import Settings

_LANES = ("live", "backfill")
_HELP = """Summarise every document of a source.

SOURCE is a folder (with all below it), a pattern in quotes, one file, a manifest (.jsonl or .csv with the
columns document_id and uri), or - for a manifest on standard input. Hidden files are passed over. The same
source again resumes: what has a summary and has not changed is skipped without being read. The files of a
manifest must lie below its folder (of standard input: below this one), or below DOCSUM_FETCH__FILE_ROOTS.

\b
  docsum run ~/Documents/contracts
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
    model: str | None = None
    instructions: str | None = None
    language: str | None = None
    words: int | None = None
    lane: Lane = Lane.BACKFILL
    force: bool = False

    def recipe(self, settings: Settings) -> Recipe:
        """The settings' recipe, but for what the command line says."""
        base = settings.recipe()
        return replace(
            base,
            model=base.model if self.model is None else self.model,
            instructions=base.instructions if self.instructions is None else self.instructions,
            language=base.language if self.language is None else self.language,
            words=base.words if self.words is None else self.words,
        )


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum run`."""
    app.command(name)(run)


def run(
    source: Annotated[list[str], typer.Argument(help="What to summarise.", metavar="SOURCE|-")],
    *,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents.")] = None,
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
    lane: Annotated[
        str, typer.Option(help="live goes before backfill.", metavar="live|backfill")
    ] = "backfill",
    force: Annotated[bool, typer.Option("--force", help="Buy again even if nothing has changed.")] = False,
    no_wait: NoWait = False,
    max_lag: MaxLag = MAX_LAG,
    json: JsonObject = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Agree to pay for standard input, which cannot be read twice.")
    ] = False,
) -> None:
    from docsum.cli.execution import Manner
    from docsum.settings import load

    if len(source) > 1:
        raise WrongUsage(
            "Give one source: put a pattern into quotes, so that docsum reads it, not the shell."
        )
    if lane not in _LANES:
        raise WrongUsage(f"There is no lane {lane!r}: choose {' or '.join(_LANES)}.")
    order = Order(
        source=source[0],
        id=_id(id_) if id_ else uuid4(),
        name=name,
        limit=limit,
        model=model,
        instructions=None if instructions is None else _instructions(instructions),
        language=language,
        words=words,
        lane=Lane(lane),
        force=force,
    )
    settings = load()
    opened = lister().open(order.source, sys.stdin.buffer)
    if not opened.repeatable and not yes and _is_paid(order, settings):
        raise WrongUsage(
            "Standard input cannot be read twice, and this model costs money: add --yes to agree to that."
        )
    download(settings)
    finish(_run(order, opened, settings, Manner(not no_wait, max_lag, json)))


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


def _is_paid(order: Order, settings: Settings) -> bool:
    from docsum.local.compose import uses_local_model

    return settings.explicit or not uses_local_model(settings)


async def _run(order: Order, source: Source, settings: Settings, manner: Manner) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.execution import Execution
    from docsum.ports import SystemClock

    deployment = await deployment_for(settings, source)
    recipe = order.recipe(deployment.settings)
    check_model(recipe)
    say(model_line(recipe, deployment))
    clock = SystemClock()
    async with open_store(deployment.settings) as store:
        wanted = Run(
            id=order.id,
            name=order.name or (Path(source.name).name if source.repeatable else "standard input"),
            source=source.name,
            recipe=recipe,
            lane=order.lane,
            state=RunState.PUBLISHING,
            created_at=clock.now(),
            updated_at=clock.now(),
            limit=order.limit,
            force=order.force,
        )
        earlier = await store.run(order.id)
        return await Execution(source, deployment, store, clock, manner).carry_out(same_run(wanted, earlier))


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
