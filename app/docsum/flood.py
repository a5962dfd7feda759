"""The flood guard: many failures whose cause may be ours stop their run before they fill the dead letters."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

#: Reasons that a broken prompt, model or extractor of ours gives to every document.
SUSPICIOUS = frozenset({"extractor_crashed", "invalid_answer", "model_rejected"})
WINDOW, LEAST = 200, 50
#: Keys that are counted at once.
_MOST = 1_000


class FloodGuard:
    """Counts the outcomes in one worker, by run and the moment when it was last resumed."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[Hashable, deque[bool]] = OrderedDict()

    def passed(self, key: Hashable) -> None:
        """A document came to a good end, or to a bad one of its own."""
        self._of(key).append(False)

    def failed(self, key: Hashable) -> bool:
        """A suspicious failure; true when they are more than half of the last 200 outcomes.

        Not before 50 outcomes were counted. Whoever is told so must not write this one down.
        """
        outcomes = self._of(key)
        outcomes.append(True)
        if len(outcomes) < LEAST or sum(outcomes) * 2 <= len(outcomes):
            return False
        outcomes.pop()  # it will come again
        return True

    def _of(self, key: Hashable) -> deque[bool]:
        outcomes = self._outcomes.setdefault(key, deque(maxlen=WINDOW))
        self._outcomes.move_to_end(key)
        if len(self._outcomes) > _MOST:
            self._outcomes.popitem(last=False)
        return outcomes
