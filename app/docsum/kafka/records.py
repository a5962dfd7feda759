"""Batches of records as aiokafka reads them, but without giving up at a header's name that is not UTF-8.

Brokers take such names. aiokafka 0.14 raises UnicodeDecodeError at one, every time that it reads the batch:
a single record of a careless producer would stop every worker that owns its partition, for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

_MAGIC = 16  # where a batch tells the version of its format


def read_any_header() -> None:
    """From now on, every consumer of this process reads `caf\\xe9` as a name with a backslash in it."""
    fetcher.MemoryRecords = Records


class Records(_MemoryRecordsPy):  # type: ignore[misc]  # aiokafka is not typed
    """The batches of one fetch of one partition."""

    def next_batch(self, *arguments: Any) -> Any:
        part = self._next_slice
        batch = super().next_batch(*arguments)
        return Batch(part) if batch is not None and part[_MAGIC] == 2 else batch


class Batch(_DefaultRecordBatchPy):  # type: ignore[misc]  # the same
    """Read by aiokafka's fast class where that can, else by its slow one."""

    _buffer: bytearray

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter([*DefaultRecordBatch(bytes(self._buffer))])
        except UnicodeDecodeError:
            self._maybe_uncompress()
            self._buffer = _Buffer(self._buffer)
            return self


class _Buffer(bytearray):
    """Its parts are decoded, which the slow class does only with the names of headers, whatever they hold."""

    def __getitem__(self, where: Any) -> Any:
        found = super().__getitem__(where)
        return _Name(found) if isinstance(where, slice) else found


class _Name(bytes):
    def decode(self, *_: Any) -> str:
        return super().decode("utf-8", "backslashreplace")
