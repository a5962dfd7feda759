"""`docsum worker` that is killed once when all is stored and upstreams have not been told of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from docsum import cli, serve
from docsum.kafka.publisher import CopyPublisher
from docsum.models import Coordinates, RecordCopy


class Untold(CopyPublisher):
    async def publish(self, copy: RecordCopy) -> Coordinates:
        died = Path(os.environ["DOCSUM_HOME"]) / "has-died"
        if copy.topic.endswith(".summaries") and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().publish(copy)


if __name__ == "__main__":
    serve.CopyPublisher = Untold  # type: ignore[attr-defined]  # where it is to end
    cli.main()
