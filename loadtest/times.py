"""How long the answers took: as exact as a limit needs, in the same little memory after a minute and after a day."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

STEP = 1.001  # from one to the next
SHORTEST_MS = 0.001  # what is shorter counts as that: it bounds the steps


class Times:
    """Counts of times in steps of a thousandth, one of which ends at `limit_ms`: on which side of it a time lies is exact."""

    def __init__(self, limit_ms: float = 1.0) -> None:
        self._limit_ms = limit_ms
        self._counts: Counter[int] = Counter()

    def add(self, took_ms: float) -> None:
        """One answer more."""
        self._counts[math.ceil(math.log(max(took_ms, SHORTEST_MS) / self._limit_ms, STEP))] += 1

    def take(self) -> dict[int, int]:
        """The counts since the last take, for `merge` of another one with the same limit."""
        taken, self._counts = dict(self._counts), Counter()
        return taken

    def merge(self, counts: Mapping[int, int]) -> None:
        """What another one has taken."""
        self._counts.update(counts)

    def p99_ms(self) -> float:
        """The end of the step that the 99th percentile (nearest rank) lies in; above the limit where it is. 0 where nothing was added."""
        may_be_slower = self._counts.total() // 100
        for step in sorted(self._counts, reverse=True):
            may_be_slower -= self._counts[step]
            if may_be_slower < 0:
                return self._limit_ms * STEP**step
        return 0.0
