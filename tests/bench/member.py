"""`docsum worker`, one of several that begin at the same moment; what it does is the same.

Deliveries wait inside it until SIGUSR1, so that all workers have their partitions and the whole run is
announced before the first document is begun: the rate is then that of the workers, without rebalances.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from docsum import serve, settings
from docsum.models import Outcome
from docsum.pipeline import Deferred, Pipeline, Trip


@dataclass(slots=True)
class Tally:
    """What one worker did. Moments are of time.monotonic, which all processes of a machine share."""

    deliveries: int = 0
    began: float = 0.0
    ended: float = 0.0
    cpu: tuple[float, float] = (0.0, 0.0)  # seconds of the whole process so far, at these two moments

    def begin(self) -> None:
        """A document is begun; the first one counts."""
        if not self.began:
            self.began = self.ended = time.monotonic()
            self.cpu = (time.process_time(),) * 2

    def end(self) -> None:
        self.deliveries += 1
        self.ended, self.cpu = time.monotonic(), (self.cpu[0], time.process_time())


def waiting_pipeline(whistle: asyncio.Event, tally: Tally) -> type[Pipeline]:
    """The pipeline, once the whistle is heard."""

    class WaitingPipeline(Pipeline):
        async def process(self, trip: Trip) -> Outcome | Deferred:
            await whistle.wait()
            tally.begin()
            outcome = await super().process(trip)
            tally.end()
            return outcome

    return WaitingPipeline


async def serve_when_told(tally: Tally) -> None:
    whistle = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, whistle.set)
    vars(serve).update(Pipeline=waiting_pipeline(whistle, tally))
    await serve.serve_worker(settings.load())


def main() -> None:
    """Be a worker until SIGTERM, then write what was measured to the file that is named."""
    tally = Tally()
    asyncio.run(serve_when_told(tally))
    Path(sys.argv[1]).write_text(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main()
