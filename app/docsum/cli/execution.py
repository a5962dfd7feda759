"""A run carried out in the foreground: announced and watched at the same time, then told how it ended."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from docsum.cli.controls import told_why
from docsum.cli.deployment import Deployment
from docsum.cli.options import MAX_LAG
from docsum.cli.output import Code, NothingRuns, emit, next_step, say
from docsum.cli.progress import Watch
from docsum.cli.report import projection_fields, report, report_projection, report_summaries
from docsum.errors import DocsumError
from docsum.models import Lane, Run, RunState
from docsum.runs import Published, Snapshot, follow, publish, run_fields
from docsum.sources import Source

if TYPE_CHECKING:
    from docsum.cli.sampling import Projection, Sample
    from docsum.ports import Clock, SummaryStore
_GOODBYE = 5.0  # seconds for a cancelled publisher: its producer waits longer for a broker that is down


@dataclass(frozen=True, slots=True)
class Manner:
    """How a run is carried out and shown."""

    wait: bool = True
    max_lag: int = MAX_LAG
    json: bool = False
    sample: Sample | None = None  # that the run is of: at its end it is told what all would cost
    command: str = ""  # that runs all


@dataclass(frozen=True, slots=True)
class Execution:
    """What carrying out a run needs."""

    source: Source
    deployment: Deployment
    store: SummaryStore
    clock: Clock
    manner: Manner

    async def carry_out(self, run: Run) -> Code:
        """From where it is to its end, with everything that a person or a program is told about it."""
        started = time.monotonic()
        snapshot = await self.follow(run)
        if not self.manner.wait:
            return self._announced(snapshot)
        seconds, found = time.monotonic() - started, await self._projection(snapshot)
        if self.manner.json:
            whole = {"all": projection_fields(found, self.manner.command)} if found else {}
            emit({**run_fields(snapshot.run, snapshot.progress), "seconds": round(seconds, 3), **whole})
        else:
            if self.deployment.started:
                say("docsum stays running for the next run; `docsum down` stops it.")
            if sample := self.manner.sample:  # its source is our own file: names are shown as in the whole
                snapshot = replace(snapshot, run=replace(snapshot.run, source=sample.whole))
                await report_summaries(snapshot.run, self.store)
            await report(snapshot, self.store, seconds)
            if found:
                report_projection(found, run.recipe.model, self.manner.command)
        if stopped := told_why(snapshot.run, snapshot.progress):
            return stopped
        return Code.DEAD_LETTERS if snapshot.progress.dead_lettered else Code.OK

    async def _projection(self, snapshot: Snapshot) -> Projection | None:
        if self.manner.sample is None:
            return None
        from docsum.cli.sampling import projection

        return await projection(self.manner.sample, self.source, snapshot, self.store)

    async def follow(self, run: Run) -> Snapshot:
        """Publishes what is not published yet, shows how it goes, and returns the last of it."""
        saved = asyncio.Event()
        with Watch() as watch:
            publishing = asyncio.create_task(self._publish(run, watch, saved))
            try:
                return await self._watched(run, publishing, saved, watch)
            except (asyncio.CancelledError, DocsumError):
                self._say_how_to_go_on(run, publishing, saved=saved.is_set())
                raise
            finally:
                publishing.cancel()
                await asyncio.wait({publishing}, timeout=_GOODBYE)

    async def _watched(
        self, run: Run, publishing: asyncio.Task[Run], saved: asyncio.Event, watch: Watch
    ) -> Snapshot:
        if not self.manner.wait:
            return Snapshot(await publishing, await self.store.progress(run.id))
        saving = asyncio.create_task(saved.wait())
        try:
            await asyncio.wait({publishing, saving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            saving.cancel()
        if not saved.is_set():
            await publishing  # raises what was in its way
        say(f"Run {run.id} ({run.name}).")
        while True:
            announced = publishing.done()
            async for snapshot in follow(run.id, self.store, self.clock):
                watch.show(snapshot, publishing=not publishing.done())
                if publishing.done():
                    await publishing
                if snapshot.trouble and not self.deployment.still_runs():
                    raise NothingRuns("docsum was stopped meanwhile: `docsum up -d` starts it again.")
            await publishing
            if announced:  # else it may have looked interrupted, as after a sleep, and more have come since
                return snapshot

    def _say_how_to_go_on(self, run: Run, publishing: asyncio.Task[Run], *, saved: bool) -> None:
        if not saved:
            say("Nothing has been announced.")
        elif publishing.done() and not publishing.cancelled() and publishing.exception() is None:
            say(f"Only the watching stopped, the run goes on. `docsum runs watch {run.id}` shows it.")
        else:
            say(f"Not everything has been announced. {self._resume(run)}")

    def _resume(self, run: Run) -> str:
        if self.source.repeatable:
            return f"`docsum runs resume {run.id}` goes on."
        return f"Pipe it again into `docsum run - --id {run.id}` to go on."

    async def _publish(self, run: Run, watch: Watch, saved: asyncio.Event) -> Run:
        """Sets `saved` once the run is in the store."""
        from docsum.bootstrap import open_admin, open_producer
        from docsum.kafka.announcer import Announcer
        from docsum.kafka.codec import EventCodec

        if run.state is RunState.PUBLISHED:
            saved.set()
            return run

        def tell(published: Published) -> None:
            saved.set()
            watch.publishing(published)

        settings = self.deployment.settings
        topology, admin = settings.topology(), open_admin(settings)
        async with (
            open_producer(settings) as producer,
            EventCodec(settings.kafka.schema_registry_url) as codec,
        ):
            return await publish(
                run,
                self.source.entries(),
                store=self.store,
                announce=Announcer(producer, codec, topology, self.clock),
                clock=self.clock,
                lag=None if run.lane is Lane.BATCH else partial(admin.waiting, topology, run.lane),
                max_lag=self.manner.max_lag,
                tell=tell,
                complain=watch.passed_over,
            )

    def _announced(self, snapshot: Snapshot) -> Code:
        if self.manner.json:
            emit(run_fields(snapshot.run, snapshot.progress))
        else:
            say(f"Announced: {snapshot.progress.total:,} documents of run {snapshot.run.id}.")
            next_step(f"`docsum runs watch {snapshot.run.id}`")
        return Code.OK
