"""Batches of records with any name of a header: read as aiokafka does, where that reads them at all."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from docsum.kafka.records import Records

NONE, ZSTD = 0, 4


class Raw(str):
    """The name of a header as a producer in another language sends it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return super().encode("latin-1")


def batch(names: list[str], compression: int = NONE) -> bytes:
    builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, -1, 1_000_000)
    for offset, name in enumerate(names):
        assert builder.append(offset, 1_790_000_000_000, b"key", b"value", [(name, b"1"), ("other", None)])
    return bytes(builder.build())


def read(data: bytes, reader: type[Any]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    records = reader(data)
    while records.has_next():
        part = records.next_batch()
        assert part.validate_crc()
        found += [(one.offset, one.timestamp, one.key, one.value, list(one.headers)) for one in part]
    return found


@pytest.mark.parametrize("compression", [NONE, ZSTD])
def test_a_name_that_is_not_utf_8_is_readable_and_spoils_nothing(compression: int) -> None:
    data = batch(["tag", Raw("café"), "näme"], compression)
    with pytest.raises(UnicodeDecodeError):
        [*DefaultRecordBatch(data)]
    names = [headers[0][0] for *_, headers in read(data, Records)]
    assert names == ["tag", "caf\\xe9", "näme"]
    assert read(data, Records)[1][:4] == (1, 1_790_000_000_000, b"key", b"value")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5), st.booleans())
def test_all_other_batches_are_read_as_before(names: list[str], packed: bool) -> None:
    data = batch(names, ZSTD if packed else NONE) * 2
    assert read(data, Records) == read(data, MemoryRecords)
