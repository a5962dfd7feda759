"""The committed offset never passes the lowest unfinished delivery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.kafka.offsets import OffsetTracker


@given(st.data())
def test_the_committable_offset_is_the_end_of_the_finished_prefix(data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=60))
    offsets = [sum(gaps[: index + 1]) - 1 for index in range(len(gaps))]  # compaction leaves holes
    tracker, finished, arrived = OffsetTracker(), set[int](), list[int]()
    waiting = list(offsets)
    while waiting or len(finished) < len(offsets):
        unfinished = [offset for offset in arrived if offset not in finished]
        if waiting and (not unfinished or data.draw(st.booleans())):
            arrived.append(waiting.pop(0))
            tracker.add(arrived[-1])
        else:
            offset = data.draw(st.sampled_from(unfinished))
            finished.add(offset)
            tracker.finish(offset)
        unfinished = [offset for offset in arrived if offset not in finished]
        if tracker.committable is not None:
            assert all(tracker.committable <= offset for offset in unfinished)
            assert tracker.committable - 1 in finished
        prefix = [offset for offset in arrived if not unfinished or offset < unfinished[0]]
        assert tracker.committable == (prefix[-1] + 1 if prefix else None)
    assert len(tracker) == 0


def test_a_redelivered_offset_is_refused_so_that_a_new_tracker_is_started() -> None:
    tracker = OffsetTracker()
    tracker.add(5)
    tracker.finish(5)
    with pytest.raises(ValueError, match="offset 5 after 5"):
        tracker.add(5)
    with pytest.raises(ValueError, match="offset 3 after 5"):
        tracker.add(3)


def test_finishing_twice_or_what_never_came_is_refused() -> None:
    tracker = OffsetTracker()
    tracker.add(1)
    tracker.add(2)
    tracker.finish(2)
    with pytest.raises(KeyError):
        tracker.finish(2)
    with pytest.raises(KeyError):
        tracker.finish(7)
    assert tracker.committable is None


def test_a_new_generation_starts_from_nothing() -> None:
    old, new = OffsetTracker(), OffsetTracker()
    for offset in range(5):
        old.add(offset)
    old.finish(0)
    new.add(1)
    old.finish(1)  # a late finish in the old generation says nothing about the new one
    assert (old.committable, new.committable) == (2, None)
