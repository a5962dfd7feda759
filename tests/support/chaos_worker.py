"""`docsum worker` on a wall clock that a test may shift: by the seconds in DOCSUM_HOME/clock-PORT."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from docsum import cli, serve
from docsum.ports import SystemClock

_SHIFT = Path(os.environ["DOCSUM_HOME"]) / f"clock-{os.environ['DOCSUM_WORKER__PORT']}"


class ShiftedClock(SystemClock):
    def now(self) -> datetime:
        with suppress(OSError, ValueError):
            return super().now() + timedelta(seconds=float(_SHIFT.read_text()))
        return super().now()


if __name__ == "__main__":
    serve.SystemClock = ShiftedClock  # type: ignore[attr-defined]  # the one thing that is to be wrong
    cli.main()
