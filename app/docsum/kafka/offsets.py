"""Which offset of a partition may be committed. Pure: no clock, no broker.

The committed offset is the end of the finished prefix: it never passes the lowest unfinished delivery,
whatever the order in which deliveries finish and whatever holes compaction has left in the log.
"""

from __future__ import annotations

from collections import deque


class OffsetTracker:
    """The ordered deliveries of one partition within one assignment of it to this worker."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()  # from the lowest unfinished on
        self._unfinished: set[int] = set()
        self._last = -1
        self._committable: int | None = None

    def __len__(self) -> int:
        """How many offsets are held: unfinished ones, and finished ones behind an unfinished head."""
        return len(self._order)

    @property
    def last(self) -> int:
        """The highest offset seen; -1 before the first."""
        return self._last

    @property
    def committable(self) -> int | None:
        """The next offset to read after a restart; None while nothing has finished."""
        return self._committable

    def add(self, offset: int) -> None:
        """A delivery has arrived. Raises ValueError unless its offset is the highest so far."""
        if offset <= self._last:
            raise ValueError(f"offset {offset} after {self._last}")
        self._order.append(offset)
        self._unfinished.add(offset)
        self._last = offset

    def finish(self, offset: int) -> None:
        """Its outcome is durable. Raises KeyError for an offset that is not open."""
        self._unfinished.remove(offset)
        while self._order and self._order[0] not in self._unfinished:
            self._committable = self._order.popleft() + 1
