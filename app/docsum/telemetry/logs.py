"""Structured logs: a constant message plus fields. Never document text, never keys."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

import structlog

from docsum.errors import ConfigurationError

#: While a broker is away its client writes about 40 lines a second; one a logger in this time is enough.
QUIET_SECONDS = 10.0


class _Sparing(logging.Filter):
    """Lets the same line of a noisy library through once in `QUIET_SECONDS`."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(("aiokafka", "faust", "mode")):
            return True
        if len(self._last) > 1_000:
            self._last.clear()
        key, now = f"{record.name}:{record.lineno}", time.monotonic()
        if now - self._last.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._last[key] = now
        return True


def configure(level: str, form: str) -> None:
    """Send all logs to stderr: JSON for machines, aligned text on a terminal. Raises ConfigurationError."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(f"DOCSUM_LOG__LEVEL={level} is none of debug, info, warning, error.")
    if form not in ("auto", "json", "console"):
        raise ConfigurationError(f"DOCSUM_LOG__FORMAT={form} is none of auto, json, console.")
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [  # Any: structlog's processors have many types
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_logger,
    ]
    render: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Sparing())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if console else [structlog.processors.format_exc_info]),
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # Their ordinary life is not news; what they warn of is.
    for noisy in (
        "aiokafka",
        "faust",
        "mode",
        "httpx",
        "httpx2",
        "anthropic",
        "asyncio",
        "clickhouse_connect",
    ):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _name_logger(logger: Any, _: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record = event.get("_record")
    name = record.name if record is not None else getattr(logger, "name", "")
    return {**event, "logger": name}
